use super::*;
use crate::loader::Batch;
use crate::pieces;
use crate::run::tests::{context, synthetic, tiny};
use crate::settings::{AdamWSettings, RmsPropSettings};
use crate::{NextToken, Objective};
use russet_model::stored::Stored;
use russet_tensor::Ctx;

fn adamw() -> OptimizerSettings {
    OptimizerSettings::default()
}

fn adastar(settings: AdaStarSettings) -> OptimizerSettings {
    OptimizerSettings::AdaStar(settings)
}

fn step(update: u64, rate: f64) -> Step {
    Step {
        update,
        rate,
        share: 1.0,
        grad_scale: 1.0,
    }
}

/// The gradients of one batch, its weights multiplied by `factor`.
fn gradients(ctx: &mut Ctx, decoder: &Decoder, factor: f32) -> Gradients {
    let mut batch: Batch = synthetic(0, 1).pop().unwrap();
    batch
        .weights
        .iter_mut()
        .for_each(|weight| *weight *= factor);
    let mut gradients = Gradients::default();
    ctx.start_tape(
        decoder
            .parameters()
            .iter()
            .map(|parameter| parameter.tensor.id()),
    );
    let loss = NextToken.loss(decoder, ctx, &batch).loss;
    ctx.backward(&loss, 1.0, &mut gradients);
    gradients
}

fn values(decoder: &Decoder) -> Vec<Vec<f32>> {
    decoder
        .parameters()
        .iter()
        .map(|parameter| parameter.tensor.data().to_vec())
        .collect()
}

fn all(decoder: &Decoder, gradients: &Gradients) -> Vec<f32> {
    let get = |parameter: &Parameter| gradients.get(parameter.tensor).unwrap().data().to_vec();
    decoder.parameters().iter().flat_map(get).collect()
}

#[test]
fn matrices_decay_and_norms_do_not() {
    let mut ctx = context(1);
    let mut decoder = tiny();
    // Without gradients only the decay is left.
    let zero = gradients(&mut ctx, &decoder, 0.0);
    let before = values(&decoder);
    Optimizer::new(adamw(), &decoder).update(&ctx.pool, &mut decoder, &zero, step(1, 0.5));
    let kinds: Vec<ParameterKind> = decoder
        .parameters()
        .iter()
        .map(|parameter| parameter.kind)
        .collect();
    for ((before, after), kind) in before.iter().zip(values(&decoder)).zip(kinds) {
        let keep = if kind == ParameterKind::Norm {
            1.0
        } else {
            0.95
        };
        assert!(
            before.iter().zip(&after).all(|(b, a)| b * keep == *a),
            "{kind:?}"
        );
    }
}

#[test]
fn the_first_step_moves_every_weight_by_the_rate_against_its_gradient() {
    let mut ctx = context(1);
    let mut decoder = tiny();
    let found = gradients(&mut ctx, &decoder, 1.0);
    let (before, gradient) = (values(&decoder).concat(), all(&decoder, &found));
    let settings = AdamWSettings {
        weight_decay: 0.0,
        epsilon: 1e-30,
        ..AdamWSettings::default()
    };
    let settings = OptimizerSettings::AdamW(settings);
    Optimizer::new(settings, &decoder).update(&ctx.pool, &mut decoder, &found, step(1, 0.125));
    let after = values(&decoder).concat();
    let mut moved = 0;
    for ((before, after), gradient) in before.iter().zip(after).zip(gradient) {
        // Adam's first step is lr · sign(g), to rounding; squares of gradients below 1e-15 leave the range of f32.
        if gradient.abs() > 1e-15 {
            assert!(
                (after - (before - 0.125 * gradient.signum())).abs() < 1e-5,
                "{before} {after} {gradient}"
            );
            moved += 1;
        }
    }
    assert!(moved > 5000, "{moved} weights were met");
}

#[test]
fn the_norm_is_that_of_all_gradients_and_clipping_is_exact() {
    let mut ctx = context(2);
    let decoder = tiny();
    let found = gradients(&mut ctx, &decoder, 3.0);
    let norm = sum_of_squares(&ctx.pool, &decoder, &found).sqrt();
    let naive = all(&decoder, &found)
        .iter()
        .map(|&g| f64::from(g) * f64::from(g))
        .sum::<f64>()
        .sqrt();
    assert!(
        (norm - naive).abs() < 1e-12 * naive,
        "{norm} is not {naive}"
    );
    assert_eq!(clip_factor(norm, Some(norm)), 1.0, "at the limit");
    assert_eq!(clip_factor(norm, None), 1.0);
    assert_eq!(clip_factor(4.0, Some(1.0)), 0.25);

    // A factor given with the step is one that the gradients had before; halves are exact.
    for rule in [
        adamw(),
        adastar(AdaStarSettings::default()),
        OptimizerSettings::RmsProp(RmsPropSettings::default()),
    ] {
        let [scaled, before] = [(3.0, 0.5), (1.5, 1.0)].map(|(factor, grad_scale)| {
            let mut decoder = tiny();
            let found = gradients(&mut ctx, &decoder, factor);
            let now = Step {
                grad_scale,
                ..step(1, 0.01)
            };
            Optimizer::new(rule, &decoder).update(&ctx.pool, &mut decoder, &found, now);
            values(&decoder)
        });
        assert_eq!(scaled, before, "{rule:?}");
    }
}

#[test]
fn saved_moments_read_back_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let mut ctx = context(1);
    let mut decoder = tiny();
    let mut optimizer = Optimizer::new(adamw(), &decoder);
    for number in 1..4 {
        let found = gradients(&mut ctx, &decoder, number as f32);
        optimizer.update(&ctx.pool, &mut decoder, &found, step(number, 0.01));
    }
    let mut outputs = Vec::new();
    optimizer.outputs(&mut outputs);
    pieces::write(dir.path(), 0, &outputs).unwrap();
    let mut again = Optimizer::new(adamw(), &decoder);
    let mut saved = Pieces::open(dir.path(), decoder.config(), pieces::ONE_RANK).unwrap();
    again.load(&mut saved).unwrap();
    saved.finish().unwrap();
    for (a, b) in optimizer.moments.iter().zip(&again.moments) {
        assert!(a.m == b.m && a.v == b.v && a.v.iter().any(|&v| v > 0.0));
    }
    // Packed products lie in the file under the names of their parts.
    let stored = Stored::open(dir.path(), "rank-00000").unwrap();
    assert!(
        stored.has("model.layers.1.self_attn.k_proj.weight.m") && stored.has("model.norm.weight.v")
    );
    assert_eq!(optimizer.bytes(), 8 * decoder.config().parameters());
}

/// AdaStar as AFM has it, in f64, over named blocks: two steps of real gradients.
#[test]
fn adastar_limits_each_projection_of_a_packed_product_alone() {
    let mut ctx = context(2);
    let mut decoder = tiny();
    // A limit low enough that every block is shortened, each by its own factor.
    let settings = AdaStarSettings {
        clip_rms: 0.3,
        mup_base_width: 48,
        ..AdaStarSettings::default()
    };
    let (peak, shares) = (0.02, [0.5, 1.0]);
    let mut optimizer = Optimizer::new(adastar(settings), &decoder);
    let mut wide: Vec<[Vec<f64>; 3]> = Vec::new();
    for value in values(&decoder) {
        let zeros = vec![0.0; value.len()];
        wide.push([
            value.iter().map(|&w| f64::from(w)).collect(),
            zeros.clone(),
            zeros,
        ]);
    }
    let mut blocks = 0;
    for (number, share) in (1..).zip(shares) {
        let found = gradients(&mut ctx, &decoder, number as f32);
        for (parameter, [w, m, v]) in decoder.parameters().iter().zip(&mut wide) {
            let g = found.get(parameter.tensor).unwrap().data();
            let is_norm = parameter.kind == ParameterKind::Norm;
            let decay = if is_norm { 0.0 } else { 3.16e-4 };
            let mup = match parameter.kind {
                ParameterKind::Matrix => 48.0 / 24.0,
                _ => 1.0,
            };
            let width = *parameter.tensor.shape().last().unwrap();
            let mut start = 0;
            for (_, rows) in &parameter.parts {
                let block = start..start + rows * width;
                start = block.end;
                blocks += 1;
                let mut u = Vec::new();
                for i in block.clone() {
                    v[i] = 0.95 * v[i] + 0.05 * (f64::from(g[i]).powi(2) + 1e-30);
                    let corrected = v[i] / (1.0 - 0.95f64.powi(number as i32));
                    u.push(f64::from(g[i]) / corrected.sqrt());
                }
                let rms = (u.iter().map(|u| u * u).sum::<f64>() / u.len() as f64).sqrt();
                for (i, u) in block.zip(u) {
                    m[i] = 0.95 * m[i] + 0.05 * u / (rms / 0.3).max(1.0);
                    w[i] -= share * (peak * mup * m[i] + decay * w[i]);
                }
            }
        }
        let now = Step {
            share,
            ..step(number, peak * share)
        };
        optimizer.update(&ctx.pool, &mut decoder, &found, now);
        for (found, [w, ..]) in values(&decoder).iter().zip(&wide) {
            for (found, want) in found.iter().zip(w) {
                // A step moves a weight by at most 0.04 · 0.05 · 20; gradients and weights are f32.
                assert!((f64::from(*found) - want).abs() < 1e-6, "{found} {want}");
            }
        }
    }
    // Table, last norm, and in each of two layers 7 matrices and 4 norms, twice.
    assert_eq!(blocks, 2 * (2 + 2 * 11));
}

#[test]
fn mup_multiplies_the_rate_of_matrices_alone() {
    let mut ctx = context(1);
    let base = tiny();
    let found = |ctx: &mut Ctx, decoder: &Decoder| gradients(ctx, decoder, 1.0);
    for rule in [
        |mup_base_width| {
            OptimizerSettings::AdamW(AdamWSettings {
                weight_decay: 0.0,
                mup_base_width,
                ..AdamWSettings::default()
            })
        },
        |mup_base_width| {
            OptimizerSettings::RmsProp(RmsPropSettings {
                mup_base_width,
                ..RmsPropSettings::default()
            })
        },
    ] {
        let moved = [0, 96].map(|base_width| {
            let mut decoder = tiny();
            let gradients = found(&mut ctx, &decoder);
            let mut optimizer = Optimizer::new(rule(base_width), &decoder);
            // A power of two, so that products with the multiplier of 4 are exact.
            optimizer.update(&ctx.pool, &mut decoder, &gradients, step(1, 0.0078125));
            values(&decoder)
        });
        for ((before, parameter), (plain, mup)) in values(&base)
            .iter()
            .zip(base.parameters())
            .zip(moved[0].iter().zip(&moved[1]))
        {
            let times = match parameter.kind {
                ParameterKind::Matrix => 4.0,
                _ => 1.0,
            };
            for ((before, plain), mup) in before.iter().zip(plain).zip(mup) {
                let want = before + times * (plain - before);
                assert!((mup - want).abs() < 1e-6, "{:?}", parameter.kind);
            }
        }
    }
}
