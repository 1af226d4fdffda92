//! One step of AdaStar, the optimizer of AFM (arXiv 2407.21075, section 3.1.5; AXLearn's `adastar_optimizer`), over one
//! parameter block.
//!
//! ```text
//! v ← β₂ v + (1-β₂) (g² + ε)          u = g / √(v / (1-β₂ᵗ))
//! u ← u / max(1, RMS(u) / clip)       RMS over the block
//! m ← β₁ m + (1-β₁) u                 not corrected: the first steps are small
//! w ← w (1 - decay) - rate · m
//! ```
//! RMS(u) is known only when every u of the block is, so there are two passes: the first updates v and adds g² / v up,
//! which needs no root, the second forms u from v. So each has about as much arithmetic as it has memory to wait for; to
//! form u in the first and keep it would put root, quotient and another stream of writes into one.

use super::CHUNK;
use crate::pool::{Disjoint, Pool};
use crate::profile::{Kernel, span};
use crate::simd::vectorize;

/// The settings of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdaStar {
    /// What the smoothed update is multiplied by: the schedule's share of the peak rate, times muP's multiplier.
    pub rate: f32,
    /// The share of the weight that a step takes: the schedule's share times the weight decay.
    pub decay: f32,
    /// Decay of the updates' mean, β₁.
    pub beta1: f32,
    /// Decay of the squares' mean, β₂.
    pub beta2: f32,
    /// Added to each square, ε.
    pub eps: f32,
    /// The largest RMS of the block's u; infinity for no limit.
    pub clip_rms: f32,
    /// What the gradient is multiplied by first; 1 for the gradient as it is.
    pub grad_scale: f32,
    /// t, counted from 1; corrects the squares' mean, which starts at zero.
    pub step: u64,
}

/// Sums that squares are dealt to, so that the compiler keeps them in vectors and their order is fixed.
const LANES: usize = 16;
/// Squares that are added up in f32 before they go to f64: 32 a lane, which costs a relative 2e-6 at worst.
const RUN: usize = 32 * LANES;

/// Updates one block's `weight`, `m` and `v` by `grad`; all of one length. Returns the RMS of u before it was limited.
///
/// # Panics
/// When lengths differ or `step` is 0.
pub fn adastar_step(
    pool: &Pool,
    adastar: &AdaStar,
    weight: &mut [f32],
    grad: &[f32],
    m: &mut [f32],
    v: &mut [f32],
) -> f64 {
    let sum = adastar_squares(pool, adastar, grad, v);
    let mean = sum / weight.len().max(1) as f64;
    adastar_apply(pool, adastar, mean, weight, grad, m, v)
}

/// The first pass, over a block or a piece of one: updates `v` by `grad` and returns the sum of their g² / v.
///
/// # Panics
/// When lengths differ.
pub fn adastar_squares(pool: &Pool, adastar: &AdaStar, grad: &[f32], v: &mut [f32]) -> f64 {
    let _span = span(Kernel::Optimizer);
    let len = grad.len();
    assert_eq!(v.len(), len, "adastar_squares: v and {len} of grad");
    let AdaStar {
        beta2,
        eps,
        grad_scale,
        ..
    } = *adastar;
    let gain2 = (1.0 - f64::from(beta2)) as f32;
    let tasks = len.div_ceil(CHUNK);
    let chunk = |task: usize| (task * CHUNK, CHUNK.min(len - task * CHUNK));
    let mut squares = vec![0.0f64; tasks];
    {
        let (v, squares) = (Disjoint::new(v), Disjoint::new(&mut squares));
        pool.run(tasks, |task| {
            let (start, count) = chunk(task);
            // SAFETY: each task takes its own chunk and its own sum.
            let (v, sum) = unsafe { (v.range(start, count), squares.range(task, 1)) };
            let grad = &grad[start..][..count];
            vectorize!(pool.isa(), || {
                let square = |g: f32, v: &mut f32| {
                    let g = grad_scale * g;
                    *v = beta2 * *v + gain2 * (g * g + eps);
                    g * g / *v
                };
                for (grad, v) in grad.chunks(RUN).zip(v.chunks_mut(RUN)) {
                    let mut sums = [0.0f32; LANES];
                    let (grad, grad_rest) = grad.as_chunks::<LANES>();
                    let (v, v_rest) = v.as_chunks_mut::<LANES>();
                    for (grad, v) in grad.iter().zip(v) {
                        for lane in 0..LANES {
                            sums[lane] += square(grad[lane], &mut v[lane]);
                        }
                    }
                    for (lane, (&g, v)) in grad_rest.iter().zip(v_rest).enumerate() {
                        sums[lane] += square(g, v);
                    }
                    sum[0] += sums.iter().map(|&sum| f64::from(sum)).sum::<f64>();
                }
            });
        });
    }
    squares.iter().sum::<f64>()
}

/// The second pass: `mean` is that of g² / v over the whole block. Returns the RMS of u before it was limited.
///
/// # Panics
/// When lengths differ or `step` is 0.
pub fn adastar_apply(
    pool: &Pool,
    adastar: &AdaStar,
    mean: f64,
    weight: &mut [f32],
    grad: &[f32],
    m: &mut [f32],
    v: &[f32],
) -> f64 {
    let _span = span(Kernel::Optimizer);
    let len = weight.len();
    assert!(
        grad.len() == len && m.len() == len && v.len() == len,
        "adastar_step: weight {len}, grad {}, m {}, v {}",
        grad.len(),
        m.len(),
        v.len()
    );
    assert!(adastar.step > 0, "adastar_step: steps count from 1");
    let AdaStar {
        rate,
        decay,
        beta1,
        beta2,
        clip_rms,
        grad_scale,
        step,
        ..
    } = *adastar;
    // In f64: 1 - β₂ᵗ loses its digits in f32 at small t.
    let correction = 1.0 - libm::pow(f64::from(beta2), step as f64);
    let unbias = correction.sqrt() as f32;
    let gain1 = (1.0 - f64::from(beta1)) as f32;

    let tasks = len.div_ceil(CHUNK);
    let chunk = |task: usize| (task * CHUNK, CHUNK.min(len - task * CHUNK));
    let rms = (correction * mean).sqrt();
    let shrink = unbias * (1.0 / (rms / f64::from(clip_rms)).max(1.0)) as f32;
    let keep = (1.0 - f64::from(decay)) as f32;

    let (weight, m) = (Disjoint::new(weight), Disjoint::new(m));
    pool.run(tasks, |task| {
        let (start, count) = chunk(task);
        // SAFETY: each task takes its own chunk of both.
        let (weight, m) = unsafe { (weight.range(start, count), m.range(start, count)) };
        let (grad, v) = (&grad[start..][..count], &v[start..][..count]);
        vectorize!(pool.isa(), || {
            for (((w, &g), m), &v) in weight.iter_mut().zip(grad).zip(m).zip(v) {
                let u = shrink * (grad_scale * g) / v.sqrt();
                *m = beta1 * *m + gain1 * u;
                *w = keep * *w - rate * *m;
            }
        });
    });
    rms
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::random;

    const ADASTAR: AdaStar = AdaStar {
        rate: 0.01,
        decay: 1e-3,
        beta1: 0.95,
        beta2: 0.95,
        eps: 1e-30,
        clip_rms: 1.0,
        grad_scale: 1.0,
        step: 1,
    };

    /// The formula in f64, one block: weight, m, v each.
    fn oracle(settings: &AdaStar, block: &mut [[f64; 3]], grad: &[f32]) -> f64 {
        let (b1, b2) = (f64::from(settings.beta1), f64::from(settings.beta2));
        let debias = 1.0 - b2.powf(settings.step as f64);
        let mut u = Vec::new();
        for ([_, _, v], &g) in block.iter_mut().zip(grad) {
            let g = f64::from(settings.grad_scale) * f64::from(g);
            *v = b2 * *v + (1.0 - b2) * (g * g + f64::from(settings.eps));
            u.push(g / (*v / debias).sqrt());
        }
        let rms = (u.iter().map(|u| u * u).sum::<f64>() / u.len() as f64).sqrt();
        for ([w, m, _], u) in block.iter_mut().zip(u) {
            let u = u / (rms / f64::from(settings.clip_rms)).max(1.0);
            *m = b1 * *m + (1.0 - b1) * u;
            *w -= f64::from(settings.rate) * *m + f64::from(settings.decay) * *w;
        }
        rms
    }

    /// Gradients whose size jumps at the third step, so that the block's RMS passes 1 and is limited.
    fn gradient(step: u64, len: usize) -> Vec<f32> {
        let size = if step == 3 { 20.0 } else { 1.0 };
        (0..len as u64)
            .map(|i| size * random::normal(4, step, i))
            .collect()
    }

    #[test]
    fn five_steps_follow_the_formula_on_every_isa_and_thread_count() {
        for len in [1, 7, CHUNK + 37] {
            let draw: Vec<f32> = (0..len as u64).map(|i| random::normal(4, 0, i)).collect();
            let mut first: Option<Vec<f32>> = None;
            for (isa, threads) in Isa::available().flat_map(|isa| [1, 2, 3].map(|t| (isa, t))) {
                let pool = Pool::with_isa(threads, isa);
                let (mut w, mut m, mut v) = (draw.clone(), vec![0.0; len], vec![0.0; len]);
                let mut wide: Vec<[f64; 3]> =
                    draw.iter().map(|&w| [f64::from(w), 0.0, 0.0]).collect();
                let mut limited = 0;
                for step in 1..=5 {
                    let settings = AdaStar {
                        grad_scale: 0.5,
                        step,
                        ..ADASTAR
                    };
                    let grad = gradient(step, len);
                    let rms = adastar_step(&pool, &settings, &mut w, &grad, &mut m, &mut v);
                    let want = oracle(&settings, &mut wide, &grad);
                    // Each u is right to a few units in the last place.
                    assert!(
                        (rms - want).abs() < 1e-6 * want,
                        "{isa:?}: {rms}, not {want}"
                    );
                    limited += u32::from(rms > 1.0);
                }
                assert!(
                    len < 100 || (1..5).contains(&limited),
                    "{limited} steps were limited"
                );
                // A step moves a weight by rate · m, at most 0.01 · 4, to a relative 1e-6; and half an ulp of w.
                for (got, want) in w.iter().zip(&wide) {
                    let error = (f64::from(*got) - want[0]).abs();
                    assert!(error < 1e-6, "{isa:?}: {got} {}", want[0]);
                }
                // No fused products, sums in a fixed order: the same bits everywhere.
                assert_eq!(
                    first.get_or_insert_with(|| w.clone()),
                    &w,
                    "{isa:?} {threads}"
                );
            }
        }
    }

    #[test]
    fn a_gradient_of_zero_leaves_the_decay_alone() {
        let pool = Pool::with_isa(1, Isa::Scalar);
        let (mut w, mut m, mut v) = ([2.0f32; 3], [0.0; 3], [0.0; 3]);
        let rms = adastar_step(&pool, &ADASTAR, &mut w, &[0.0; 3], &mut m, &mut v);
        assert_eq!((rms, m), (0.0, [0.0; 3]));
        assert_eq!(w, [2.0 * 0.999; 3]);
        assert!(v[0] > 0.0, "ε keeps the root from zero");
    }
}
