//! One step of RMSProp with momentum (Tieleman and Hinton, lecture 6.5, 2012; the momentum as in PyTorch), weight decay
//! decoupled from the gradient.
//!
//! ```text
//! v ← α v + (1-α) g²          m ← μ m + g / (√v + ε)
//! w ← w (1 - lr·λ) - lr · m
//! ```
//! v starts at zero and is not corrected, so the first step is 1 / √(1-α) times too long: warm up.

use super::CHUNK;
use crate::pool::{Disjoint, Pool};
use crate::profile::{Kernel, span};
use crate::simd::vectorize;

/// The settings of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsProp {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the squares' mean, α.
    pub alpha: f32,
    /// What stays of the last step, μ.
    pub momentum: f32,
    /// Added to the root of the squares' mean, ε.
    pub eps: f32,
    /// λ; the weight shrinks by lr · λ.
    pub weight_decay: f32,
    /// What the gradient is multiplied by first; 1 for the gradient as it is.
    pub grad_scale: f32,
}

/// Updates `weight`, `m` and `v` by `grad`; all of one length.
///
/// # Panics
/// When lengths differ.
pub fn rmsprop_step(
    pool: &Pool,
    rmsprop: &RmsProp,
    weight: &mut [f32],
    grad: &[f32],
    m: &mut [f32],
    v: &mut [f32],
) {
    let _span = span(Kernel::Optimizer);
    let len = weight.len();
    assert!(
        grad.len() == len && m.len() == len && v.len() == len,
        "rmsprop_step: weight {len}, grad {}, m {}, v {}",
        grad.len(),
        m.len(),
        v.len()
    );
    let RmsProp {
        lr,
        alpha,
        momentum,
        eps,
        weight_decay,
        grad_scale,
    } = *rmsprop;
    let keep = (1.0 - f64::from(lr) * f64::from(weight_decay)) as f32;
    let gain = (1.0 - f64::from(alpha)) as f32;
    let (weight, m, v) = (Disjoint::new(weight), Disjoint::new(m), Disjoint::new(v));
    pool.run(len.div_ceil(CHUNK), |task| {
        let start = task * CHUNK;
        let count = CHUNK.min(len - start);
        // SAFETY: each task takes its own chunk of each.
        let (weight, m, v) = unsafe {
            (
                weight.range(start, count),
                m.range(start, count),
                v.range(start, count),
            )
        };
        let grad = &grad[start..][..count];
        vectorize!(pool.isa(), || {
            for (((w, &g), m), v) in weight.iter_mut().zip(grad).zip(m).zip(v) {
                let g = grad_scale * g;
                *v = alpha * *v + gain * (g * g);
                *m = momentum * *m + g / (v.sqrt() + eps);
                *w = keep * *w - lr * *m;
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::random;

    /// The formula in f64, one weight.
    fn oracle(settings: &RmsProp, [w, m, v]: &mut [f64; 3], g: f64) {
        let (alpha, lr) = (f64::from(settings.alpha), f64::from(settings.lr));
        let g = f64::from(settings.grad_scale) * g;
        *v = alpha * *v + (1.0 - alpha) * g * g;
        *m = f64::from(settings.momentum) * *m + g / (v.sqrt() + f64::from(settings.eps));
        *w = *w * (1.0 - lr * f64::from(settings.weight_decay)) - lr * *m;
    }

    #[test]
    fn three_steps_follow_the_formula_on_every_isa_and_thread_count() {
        let len = CHUNK + 37;
        let draw = |stream: u64| -> Vec<f32> {
            (0..len as u64)
                .map(|i| random::normal(4, stream, i))
                .collect()
        };
        let rmsprop = RmsProp {
            lr: 1e-3,
            alpha: 0.99,
            momentum: 0.9,
            eps: 1e-8,
            weight_decay: 0.1,
            grad_scale: 0.5,
        };
        let mut first: Option<Vec<f32>> = None;
        for (isa, threads) in Isa::available().flat_map(|isa| [1, 2, 3].map(|t| (isa, t))) {
            let pool = Pool::with_isa(threads, isa);
            let (mut w, mut m, mut v) = (draw(0), vec![0.0; len], vec![0.0; len]);
            let mut wide: Vec<[f64; 3]> = w.iter().map(|&w| [f64::from(w), 0.0, 0.0]).collect();
            for step in 1..=3 {
                let grad = draw(step);
                rmsprop_step(&pool, &rmsprop, &mut w, &grad, &mut m, &mut v);
                for (state, &g) in wide.iter_mut().zip(&grad) {
                    oracle(&rmsprop, state, f64::from(g));
                }
            }
            // m is at most 10 / (1 - 0.9) = 27 after three steps; lr · m to a relative 1e-6, and half an ulp of w a step.
            for (got, want) in w.iter().zip(&wide) {
                let error = (f64::from(*got) - want[0]).abs();
                assert!(error < 1e-6, "{isa:?}: {got} {}", want[0]);
            }
            assert_eq!(
                first.get_or_insert_with(|| w.clone()),
                &w,
                "{isa:?} {threads}"
            );
        }
    }
}
