//! The objective's gradient, through a decoder, against differences of its loss.

use super::*;
use russet_kernels::Pool;
use russet_model::Config;
use russet_model::config::{Family, RopeScaling};
use russet_tensor::ops::IGNORE;
use russet_tensor::{Gradients, Segments};
use russet_train::Origin;
use serde_json::json;

fn config() -> Config {
    Config {
        family: Family::Qwen3,
        vocab: 13,
        width: 8,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        head_dim: 4,
        ffn: 12,
        norm_epsilon: 1e-5,
        rope_theta: 500_000.0,
        rope_scaling: RopeScaling::None,
        attention: Default::default(),
        context: 16,
        tied: true,
        bos: Some(0),
        eos: vec![1],
    }
}

fn context() -> Ctx {
    Ctx::new(Arc::new(Pool::new(1).unwrap()))
}

/// Two answers drawn by another policy, so that ratios are not 1.
fn answers(ctx: &mut Ctx, rollout: &Decoder) -> (Vec<Rolled>, Batch) {
    let all = [
        ([3u32, 5, 2, 7, 11], 2usize, 0.8),
        ([4, 4, 9, 6, 1], 3, -0.5),
    ];
    let (mut answers, mut batch) = (Vec::new(), Batch::default());
    for (number, (tokens, prompt, advantage)) in all.into_iter().enumerate() {
        let inputs = tokens[..4].to_vec();
        let mut targets = vec![IGNORE; prompt - 1];
        targets.extend_from_slice(&tokens[prompt..]);
        let hidden = rollout.forward(ctx, &inputs, &Segments::packed(&[4]), None);
        let losses = rollout.token_losses(ctx, &hidden, &targets);
        batch.tokens.extend_from_slice(&inputs);
        batch.targets.extend_from_slice(&targets);
        batch.segments.push(4, 0, 0);
        batch.origins.push(Origin {
            source: 0,
            documents: number..number + 1,
            targets: 0..4,
        });
        answers.push(Rolled {
            inputs,
            targets,
            log_probs: losses[prompt - 1..].iter().map(|loss| -loss).collect(),
            advantage,
            hidden: hidden.data()[(prompt - 1) * 8..].to_vec(),
        });
    }
    batch.weights = vec![0.0; batch.tokens.len()];
    (answers, batch)
}

#[test]
fn gradients_equal_finite_differences() {
    let mut ctx = context();
    let rollout = Decoder::random(&config(), 2);
    let (answers, batch) = answers(&mut ctx, &rollout);
    for change in [
        json!({"algorithm": "mdloo", "divergence": "answer", "gamma": 0.3, "clamp": 20.0}),
        json!({"algorithm": "mdloo", "divergence": "token", "gamma": 0.3, "clamp": 20.0}),
        json!({"algorithm": "mdloo", "divergence": "vocabulary", "gamma": 0.3, "clamp": 20.0}),
        json!({"algorithm": "rloo"}),
        json!({"algorithm": "ppo", "clip": 0.9}),
        json!({"algorithm": "grpo", "clip": 0.9}),
    ] {
        let mut settings = change.clone();
        settings["max_tokens"] = 4.into();
        let settings: RlhfSettings = serde_json::from_value(settings).unwrap();
        let wide = settings.divergence == Some(Divergence::Vocabulary);
        let board = SharedBoard::default();
        {
            let mut board = locked(&board);
            board.answers = answers.clone();
            let Embedding::Dense(table) = rollout.output_table() else {
                unreachable!("it was made dense")
            };
            board.table = wide.then(|| table.clone());
        }
        let objective = PolicyGradient::new(settings, 4, board);
        let mut decoder = Decoder::random(&config(), 3);
        let value = |ctx: &mut Ctx, decoder: &Decoder| {
            f64::from(objective.loss(decoder, ctx, &batch).loss.data()[0])
        };
        let ids: Vec<_> = decoder.parameters().iter().map(|p| p.tensor.id()).collect();
        ctx.start_tape(ids);
        let loss = objective.loss(&decoder, &mut ctx, &batch).loss;
        let mut gradients = Gradients::default();
        ctx.backward(&loss, 1.0, &mut gradients);
        let found: Vec<Vec<f32>> = decoder
            .parameters()
            .iter()
            .map(|p| gradients.get(p.tensor).unwrap().data().to_vec())
            .collect();
        drop(gradients);
        // Along the gradient itself the slope is its squared length.
        let square: f64 = found
            .iter()
            .flatten()
            .map(|&g| f64::from(g) * f64::from(g))
            .sum();
        assert!(square > 1e-6, "{change}: no gradient");
        let step = 2e-3 / square.sqrt();
        let mut moved = |ctx: &mut Ctx, by: f64| {
            let mut own = found.iter();
            decoder.visit_mut(&mut |tensor| {
                let own = own.next().unwrap();
                for (value, slope) in tensor.data_mut().iter_mut().zip(own) {
                    *value += (by * f64::from(*slope)) as f32;
                }
            });
            value(ctx, &decoder)
        };
        let up = moved(&mut ctx, step);
        let down = moved(&mut ctx, -2.0 * step);
        let slope = (up - down) / (2.0 * step);
        assert!(
            (slope - square).abs() < 0.02 * square,
            "{change}: {slope} by differences, {square} by the tape"
        );
    }
}

#[test]
fn coefficients_go_in_a_straight_line() {
    let line: Coefficient = serde_json::from_value(json!({"from": 0.1, "to": 0.3})).unwrap();
    assert_eq!(line.at(0, 5), 0.1);
    assert!((line.at(2, 5) - 0.2).abs() < 1e-12);
    assert!((line.at(4, 5) - 0.3).abs() < 1e-12);
    assert!((line.at(9, 5) - 0.3).abs() < 1e-12);
    let still: Coefficient = serde_json::from_value(json!(0)).unwrap();
    assert!(still.is_none() && still.at(3, 5) == 0.0);
}
