use super::*;
use crate::data::{Dealing, Dealt, Encoded, Mean};
use crate::preference::PreferenceLoss;
use russet_kernels::{Pool, random};
use russet_model::config::RopeScaling;
use russet_model::{Config, Family};
use russet_tensor::Gradients;
use std::path::PathBuf;

fn decoder(seed: u64) -> Decoder {
    let config = Config {
        family: Family::Qwen3,
        vocab: 24,
        width: 16,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        ffn: 24,
        norm_epsilon: 1e-5,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
        attention: Default::default(),
        context: 32,
        tied: true,
        bos: None,
        eos: Vec::new(),
    };
    Decoder::random(&config, seed)
}

/// Pairs of random tokens: a prompt of 3, answers of 2 to 5.
fn source(pairs: u64) -> Source {
    let example = |pair: u64, side: u64| {
        let length = 5 + random::below(1, pair, side, 4) as usize;
        let token = |place: usize| {
            let stream = if place < 3 { 7 } else { 8 + side };
            random::below(2, pair, stream * 100 + place as u64, 24) as u32
        };
        let inputs: Vec<u32> = (0..length).map(token).collect();
        let targets = (0..length)
            .map(|place| if place < 2 { IGNORE } else { token(place + 1) })
            .collect();
        Encoded {
            inputs,
            targets,
            row: pair as usize,
        }
    };
    Source {
        path: PathBuf::from("pairs.jsonl"),
        label: "pairs".to_owned(),
        examples: (0..pairs)
            .flat_map(|pair| [example(pair, 0), example(pair, 1)])
            .collect(),
        sequences: (0..pairs as usize)
            .map(|pair| vec![2 * pair, 2 * pair + 1])
            .collect(),
        judgements: Vec::new(),
        counts: Default::default(),
    }
}

fn settings(loss: PreferenceLoss, length_normalised: bool) -> DpoSettings {
    DpoSettings {
        loss,
        beta: 0.5,
        length_normalised,
    }
}

fn step(source: &[Source], micro_batch_sequences: usize) -> Vec<Batch> {
    let dealing = Dealing {
        batch_sequences: 4,
        micro_batch_sequences,
        seed: 1,
        mean: Mean::Sequences,
    };
    Dealt::new(source, &[1.0], dealing).at(0)
}

/// The loss of a step and its gradients, as the loop computes them.
fn gradients(objective: &Preferences, decoder: &Decoder, batches: &[Batch]) -> (f64, Gradients) {
    let mut ctx = Ctx::new(Arc::new(Pool::new(1).unwrap()));
    let (mut sum, mut gradients) = (0.0, Gradients::default());
    for batch in batches {
        ctx.start_tape(
            decoder
                .parameters()
                .iter()
                .map(|parameter| parameter.tensor.id()),
        );
        let loss = objective.loss(decoder, &mut ctx, batch).loss;
        sum += f64::from(loss.data()[0]);
        ctx.backward(&loss, 1.0, &mut gradients);
    }
    (sum, gradients)
}

fn reference(source: &[Source]) -> Arc<Reference> {
    let mut ctx = Ctx::new(Arc::new(Pool::new(1).unwrap()));
    Arc::new(Reference::of(&mut ctx, &decoder(1), source, source))
}

#[test]
fn gradients_equal_finite_differences_of_the_loss() {
    let sources = [source(6)];
    let reference = reference(&sources);
    let batches = step(&sources, 2);
    for (loss, normalised) in [
        (PreferenceLoss::Dpo, false),
        (PreferenceLoss::Dpo, true),
        (PreferenceLoss::Ipo, false),
        (PreferenceLoss::Ipo, true),
    ] {
        let objective = Preferences::new(settings(loss, normalised), reference.clone());
        let policy = decoder(2);
        let (_, found) = gradients(&objective, &policy, &batches);
        let count = policy.parameters().len();
        for number in 0..count {
            // Along the gradient itself: the largest slope of this parameter, far above the rounding of f32.
            let direction = found
                .get(policy.parameters()[number].tensor)
                .unwrap()
                .data()
                .to_vec();
            let norm = direction
                .iter()
                .map(|&g| f64::from(g) * f64::from(g))
                .sum::<f64>()
                .sqrt();
            let moved = |by: f64| {
                let (mut moved, mut at) = (decoder(2), 0);
                moved.visit_mut(&mut |tensor| {
                    if at == number {
                        for (weight, &g) in tensor.data_mut().iter_mut().zip(&direction) {
                            *weight += (by * f64::from(g) / norm) as f32;
                        }
                    }
                    at += 1;
                });
                gradients(&objective, &moved, &batches).0
            };
            let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            assert!(
                (slope - norm).abs() < 0.02 * norm + 1e-4,
                "{loss:?} {normalised}, parameter {number}: {slope} and {norm}"
            );
        }
    }
}

#[test]
fn micro_batches_and_neighbours_change_nothing_but_rounding() {
    let sources = [source(6)];
    let objective = Preferences::new(settings(PreferenceLoss::Dpo, false), reference(&sources));
    let policy = decoder(2);
    let (one, whole) = gradients(&objective, &policy, &step(&sources, 4));
    let (four, parts) = gradients(&objective, &policy, &step(&sources, 1));
    assert!((one - four).abs() < 1e-6, "{one} and {four}");
    for parameter in policy.parameters() {
        let (a, b) = (
            whole.get(parameter.tensor).unwrap(),
            parts.get(parameter.tensor).unwrap(),
        );
        let off = a
            .data()
            .iter()
            .zip(b.data())
            .fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(off < 1e-5, "{off}");
    }
}

#[test]
fn a_policy_that_is_its_reference_has_a_loss_of_ln_2_and_no_margin() {
    let sources = [source(6)];
    let objective =
        Preferences::new(settings(PreferenceLoss::Dpo, false), reference(&sources)).held_out();
    let mut ctx = Ctx::new(Arc::new(Pool::new(1).unwrap()));
    let passes = step(&sources, 2);
    let measured = objective
        .measure(&passes, &mut ctx, &decoder(1), &mut |_| true)
        .unwrap();
    assert_eq!(measured[1], ("preference_accuracy", 0.5));
    assert_eq!(measured[2], ("preference_margin", 0.0));
    assert!((measured[0].1 - 2f64.ln()).abs() < 1e-12);
    assert!(
        objective
            .measure(&passes, &mut ctx, &decoder(1), &mut |_| false)
            .is_none()
    );
}
