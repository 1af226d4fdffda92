use super::*;
use crate::loader::Batch;
use crate::run::tests::{context, synthetic, tiny};
use crate::{NextToken, Objective};
use russet_tensor::Ctx;

const SETTINGS: AdamWSettings = AdamWSettings {
    beta1: 0.9,
    beta2: 0.95,
    epsilon: 1e-8,
    weight_decay: 0.1,
};

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
    Optimizer::adamw(SETTINGS, &decoder).update(&ctx.pool, &mut decoder, &zero, 1, 0.5);
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
        ..SETTINGS
    };
    Optimizer::adamw(settings, &decoder).update(&ctx.pool, &mut decoder, &found, 1, 0.125);
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
fn clipping_is_exact() {
    let mut ctx = context(2);
    let decoder = tiny();
    let mut found = gradients(&mut ctx, &decoder, 3.0);
    let before = all(&decoder, &found);
    let norm = gradient_norm(&ctx.pool, &decoder, &found);
    let naive = before
        .iter()
        .map(|&g| f64::from(g) * f64::from(g))
        .sum::<f64>()
        .sqrt();
    assert!(
        (norm - naive).abs() < 1e-12 * naive,
        "{norm} is not {naive}"
    );

    clip_gradients(&ctx.pool, &decoder, &mut found, norm, norm);
    assert_eq!(
        all(&decoder, &found),
        before,
        "a norm at the limit stays to the bit"
    );

    let limit = norm / 3.0;
    clip_gradients(&ctx.pool, &decoder, &mut found, norm, limit);
    let factor = (limit / norm) as f32;
    let expected: Vec<f32> = before.iter().map(|g| g * factor).collect();
    assert_eq!(
        all(&decoder, &found),
        expected,
        "every gradient is multiplied by limit / norm"
    );
    let clipped = gradient_norm(&ctx.pool, &decoder, &found);
    assert!(
        (clipped / limit - 1.0).abs() < 1e-6,
        "{clipped} is not {limit}"
    );
}

#[test]
fn saved_moments_read_back_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let mut ctx = context(1);
    let mut decoder = tiny();
    let mut optimizer = Optimizer::adamw(SETTINGS, &decoder);
    for step in 1..4 {
        let found = gradients(&mut ctx, &decoder, step as f32);
        optimizer.update(&ctx.pool, &mut decoder, &found, step, 0.01);
    }
    optimizer.save(&decoder, dir.path()).unwrap();
    let mut again = Optimizer::adamw(SETTINGS, &decoder);
    again.load(&decoder, dir.path()).unwrap();
    let (Optimizer::AdamW(a), Optimizer::AdamW(b)) = (&optimizer, &again);
    for (a, b) in a.moments.iter().zip(&b.moments) {
        assert!(a.m == b.m && a.v == b.v && a.v.iter().any(|&v| v > 0.0));
    }
    // Packed products lie in the file under the names of their parts.
    let stored = Stored::open(dir.path(), FILE).unwrap();
    assert!(
        stored.has("model.layers.1.self_attn.k_proj.weight.m") && stored.has("model.norm.weight.v")
    );
    assert_eq!(optimizer.bytes(), 8 * decoder.config().parameters());
}
