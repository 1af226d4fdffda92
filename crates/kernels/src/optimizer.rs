//! One step of an optimizer over one matrix, in place: AdamW here, AdaStar and RMSProp in files of their own.
//!
//! AdamW (Loshchilov and Hutter, arXiv 1711.05101), weight decay decoupled from the gradient:
//!
//! ```text
//! m ← β₁ m + (1-β₁) g          v ← β₂ v + (1-β₂) g²
//! w ← w (1 - lr·λ) - lr · (m / (1-β₁ᵗ)) / (√(v / (1-β₂ᵗ)) + ε)
//! ```
//! They know nothing of schedules, norms or which weights decay: the caller says. Each multiplies the gradient by a factor
//! as it reads it, so that clipping costs no pass of its own. The loops are plain and free of fused products, so every
//! instruction set and number of threads gives the same bits; memory is the limit.

mod adastar;
mod average;
mod rmsprop;

pub use adastar::{AdaStar, adastar_apply, adastar_squares, adastar_step};
pub use average::average_step;
pub use rmsprop::{RmsProp, rmsprop_step};

use crate::pool::{Disjoint, Pool};
use crate::profile::{Kernel, span};
use crate::simd::vectorize;

/// The settings of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment, β₁.
    pub beta1: f32,
    /// Decay of the second moment, β₂.
    pub beta2: f32,
    /// Added to the root of the second moment, ε.
    pub eps: f32,
    /// λ; the weight shrinks by lr · λ.
    pub weight_decay: f32,
    /// What the gradient is multiplied by first; 1 for the gradient as it is.
    pub grad_scale: f32,
    /// t, counted from 1; corrects the moments, which start at zero.
    pub step: u64,
}

/// Elements of one task.
const CHUNK: usize = 16 * 1024;

/// Updates `weight` and the moments `m` and `v` by `grad`; all of one length.
///
/// # Panics
/// When lengths differ or `step` is 0.
pub fn adamw_step(
    pool: &Pool,
    adamw: &AdamW,
    weight: &mut [f32],
    grad: &[f32],
    m: &mut [f32],
    v: &mut [f32],
) {
    let _span = span(Kernel::Optimizer);
    let len = weight.len();
    assert!(
        grad.len() == len && m.len() == len && v.len() == len,
        "adamw_step: weight {len}, grad {}, m {}, v {}",
        grad.len(),
        m.len(),
        v.len()
    );
    assert!(adamw.step > 0, "adamw_step: steps count from 1");
    let AdamW {
        lr,
        beta1,
        beta2,
        eps,
        weight_decay,
        grad_scale,
        step,
    } = *adamw;
    // In f64: 1 - β₂ᵗ loses its digits in f32 at small t.
    let correction = |beta: f32| 1.0 - libm::pow(f64::from(beta), step as f64);
    let rate = (f64::from(lr) / correction(beta1)) as f32;
    let unbias = (1.0 / correction(beta2).sqrt()) as f32;
    let keep = (1.0 - f64::from(lr) * f64::from(weight_decay)) as f32;
    let (gain1, gain2) = (
        (1.0 - f64::from(beta1)) as f32,
        (1.0 - f64::from(beta2)) as f32,
    );

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
                *m = beta1 * *m + gain1 * g;
                *v = beta2 * *v + gain2 * (g * g);
                *w = keep * *w - rate * (*m / (v.sqrt() * unbias + eps));
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
    fn oracle(adamw: &AdamW, w: &mut f64, g: f64, m: &mut f64, v: &mut f64) {
        let (b1, b2) = (f64::from(adamw.beta1), f64::from(adamw.beta2));
        let (lr, t) = (f64::from(adamw.lr), adamw.step as f64);
        let g = f64::from(adamw.grad_scale) * g;
        *m = b1 * *m + (1.0 - b1) * g;
        *v = b2 * *v + (1.0 - b2) * g * g;
        let direction =
            (*m / (1.0 - b1.powf(t))) / ((*v / (1.0 - b2.powf(t))).sqrt() + f64::from(adamw.eps));
        *w = *w * (1.0 - lr * f64::from(adamw.weight_decay)) - lr * direction;
    }

    #[test]
    fn three_steps_follow_the_formula_on_every_isa_and_thread_count() {
        let len = CHUNK + 37;
        let draw = |stream: u64| -> Vec<f32> {
            (0..len as u64)
                .map(|i| random::normal(4, stream, i))
                .collect()
        };
        let mut first: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            for threads in [1, 2, 3] {
                let pool = Pool::with_isa(threads, isa);
                let (mut w, mut m, mut v) = (draw(0), vec![0.0; len], vec![0.0; len]);
                let mut wide: Vec<[f64; 3]> = w.iter().map(|&w| [f64::from(w), 0.0, 0.0]).collect();
                for step in 1..=3 {
                    let adamw = AdamW {
                        lr: 0.01,
                        beta1: 0.9,
                        beta2: 0.95,
                        eps: 1e-8,
                        weight_decay: 0.1,
                        grad_scale: 0.5,
                        step,
                    };
                    let grad = draw(step);
                    adamw_step(&pool, &adamw, &mut w, &grad, &mut m, &mut v);
                    for (state, &g) in wide.iter_mut().zip(&grad) {
                        let [w, m, v] = state;
                        oracle(&adamw, w, f64::from(g), m, v);
                    }
                }
                // A step moves a weight by about lr, whose relative error of 1e-6 adds to half an ulp of w a step.
                for (got, want) in w.iter().zip(&wide) {
                    assert!(
                        (f64::from(*got) - want[0]).abs() < 1e-6,
                        "{isa:?}: {got} {}",
                        want[0]
                    );
                }
                // No fused products: every instruction set gives the same bits.
                assert_eq!(
                    first.get_or_insert_with(|| w.clone()),
                    &w,
                    "{isa:?}, {threads} threads"
                );
            }
        }
    }
}
