//! What the operations' tests share: gradients against finite differences.

use std::sync::Arc;

use russet_kernels::{Pool, random as rng};

use crate::{Ctx, Gradients, Tensor};

/// A tensor of standard normal values, away from nothing in particular.
pub fn random(shape: &[usize], seed: u64) -> Tensor {
    Tensor::from_fn(shape, |i| rng::normal(seed, 0, i as u64))
}

/// A context on two threads with the widest instruction set, or with the one that `RUSSET_ISA` names.
pub fn context() -> Ctx {
    Ctx::new(Arc::new(
        Pool::new(2).expect("an instruction set of this CPU in RUSSET_ISA"),
    ))
}

/// Compares the tape's gradients of `Σ cᵢ f(inputs)ᵢ`, c fixed and random, with central differences.
///
/// With a step of 1e-2 on values of order 1 the truncation error is about 1e-4 of the third derivative and the
/// rounding error about 1e-7 / 1e-2 = 1e-5 a term; 1e-2 relative to the largest entry leaves room for both
/// and is far below what a wrong term would cost.
pub fn check_gradients(inputs: &[Tensor], f: impl Fn(&mut Ctx, &[Tensor]) -> Tensor) {
    let mut ctx = context();
    let value = |ctx: &mut Ctx, inputs: &[Tensor]| -> f64 {
        let y = f(ctx, inputs);
        y.data()
            .iter()
            .enumerate()
            .map(|(i, &y)| y as f64 * rng::normal(99, 0, i as u64) as f64)
            .sum()
    };
    let mut gradients = Gradients::default();
    ctx.start_tape(inputs.iter().map(Tensor::id));
    let y = f(&mut ctx, inputs);
    let loss = project(&mut ctx, &y);
    ctx.backward(&loss, 1.0, &mut gradients);
    for (k, input) in inputs.iter().enumerate() {
        let gradient = gradients
            .get(input)
            .unwrap_or_else(|| panic!("input {k} got no gradient"))
            .data()
            .to_vec();
        let step = 1e-2f32;
        let differences: Vec<f64> = (0..input.len())
            .map(|i| {
                let at = |delta: f32| {
                    let mut changed = inputs.to_vec();
                    let mut data = input.data().to_vec();
                    data[i] += delta;
                    changed[k] = Tensor::new(input.shape(), data);
                    value(&mut context(), &changed)
                };
                (at(step) - at(-step)) / (2.0 * step as f64)
            })
            .collect();
        let largest = differences.iter().fold(1e-3f64, |a, d| a.max(d.abs()));
        for (i, (&g, &d)) in gradient.iter().zip(&differences).enumerate() {
            assert!(
                (g as f64 - d).abs() <= 1e-2 * largest,
                "input {k}[{i}]: tape {g}, differences {d}"
            );
        }
    }
}

/// The tape's gradient of `Σ cᵢ f(x)ᵢ` by x, c fixed and random: whatever f gives, its own gradient is c.
///
/// For operations that round x on the way, and whose gradient passes straight through the rounding: their outputs are steps, so
/// differences of them say nothing.
pub fn gradient(x: &Tensor, f: impl Fn(&mut Ctx, &Tensor) -> Tensor) -> Vec<f32> {
    let mut ctx = context();
    let mut gradients = Gradients::default();
    ctx.start_tape([x.id()]);
    let y = f(&mut ctx, x);
    let loss = project(&mut ctx, &y);
    ctx.backward(&loss, 1.0, &mut gradients);
    let gradient = gradients.get(x).expect("x got a gradient");
    gradient.data().to_vec()
}

/// `Σ cᵢ yᵢ` with the fixed random c, recorded.
fn project(ctx: &mut Ctx, y: &Tensor) -> Tensor {
    let c: Vec<f32> = (0..y.len()).map(|i| rng::normal(99, 0, i as u64)).collect();
    let loss = Tensor::new(
        &[1],
        vec![y.data().iter().zip(&c).map(|(y, c)| y * c).sum::<f32>()],
    );
    let y = y.clone();
    ctx.record(&loss, move |back, d| {
        let d_y = Tensor::new(
            y.shape(),
            c.iter().map(|c| c * d.data()[0]).collect::<Vec<_>>(),
        );
        back.accumulate(&y, d_y);
    });
    loss
}
