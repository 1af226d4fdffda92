//! Soft masks that keep k of n columns, and products of columns by them.
//!
//! Soft top-k with entropy (CoDA, arXiv 2304.04947, section 3.2):
//!
//! ```text
//! λ = argmax over [0, 1]ⁿ, Σ λ = k, of  s·λ + ε H(λ),     H(λ) = -Σ (λ ln λ + (1 - λ) ln(1 - λ))
//!   = σ((s - τ) / ε)      with the one τ at which Σ λ = k
//! ```
//! Large ε gives k/n everywhere, ε → 0 the k greatest of s. CoDA comes near τ by coordinate descent in some twenty rounds; here
//! it is found exactly, by halving an interval that must hold it.

use crate::elementwise::rows_per_task;
use crate::pool::Pool;
use crate::profile::{Kernel, span};

/// Columns of one task of [`column_dots`].
const COLUMNS: usize = 64;

/// `mask = λ` of `scores`, both `[n]`. Returns τ (-∞ where k = n).
///
/// # Panics
/// When k is not from 1 to n, ε is not positive, or a score is not finite.
pub fn soft_top_k(scores: &[f32], k: usize, epsilon: f64, mask: &mut [f32]) -> f64 {
    let _span = span(Kernel::Elementwise);
    let n = scores.len();
    assert_eq!(n, mask.len(), "soft_top_k: scores and mask");
    assert!(
        (1..=n).contains(&k) && epsilon > 0.0 && epsilon.is_finite(),
        "soft_top_k: {k} of {n} at epsilon {epsilon}"
    );
    assert!(
        scores.iter().all(|s| s.is_finite()),
        "soft_top_k: a score is not finite"
    );
    if k == n {
        mask.fill(1.0);
        return f64::NEG_INFINITY;
    }
    let value = |score: f32, threshold: f64| {
        1.0 / (1.0 + libm::exp((threshold - f64::from(score)) / epsilon))
    };
    let sum = |threshold: f64| -> f64 { scores.iter().map(|&s| value(s, threshold)).sum() };
    // Where all scores are the least, or all the greatest, each λ would be k/n: the two thresholds that belong to it hold τ.
    let odds = epsilon * libm::log(k as f64 / (n - k) as f64);
    let least = scores.iter().fold(f32::INFINITY, |a, &b| a.min(b));
    let greatest = scores.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let (mut low, mut high) = (f64::from(least) - odds, f64::from(greatest) - odds);
    loop {
        let middle = low + (high - low) / 2.0;
        if middle <= low || middle >= high {
            break; // neighbours in f64
        }
        if sum(middle) >= k as f64 {
            low = middle;
        } else {
            high = middle;
        }
    }
    for (mask, &score) in mask.iter_mut().zip(scores) {
        *mask = value(score, low) as f32;
    }
    low
}

/// `d_scores` from the λ that [`soft_top_k`] gave and `d_mask`, all `[n]`.
///
/// With w = λ (1 - λ): moving s moves τ by Σ w ds / Σ w, so d_s = w / ε · (d_λ - Σ w d_λ / Σ w). Zero where the mask is hard.
///
/// # Panics
/// When the lengths differ.
pub fn soft_top_k_backward(mask: &[f32], epsilon: f64, d_mask: &[f32], d_scores: &mut [f32]) {
    let _span = span(Kernel::Elementwise);
    assert!(
        mask.len() == d_mask.len() && mask.len() == d_scores.len(),
        "soft_top_k backward: lengths differ"
    );
    let slope = |mask: f32| f64::from(mask) * (1.0 - f64::from(mask));
    let total: f64 = mask.iter().map(|&m| slope(m)).sum();
    if total == 0.0 {
        d_scores.fill(0.0);
        return;
    }
    let weighted: f64 = mask
        .iter()
        .zip(d_mask)
        .map(|(&m, &d)| slope(m) * f64::from(d))
        .sum();
    let mean = weighted / total;
    for ((out, &m), &d) in d_scores.iter_mut().zip(mask).zip(d_mask) {
        *out = (slope(m) / epsilon * (f64::from(d) - mean)) as f32;
    }
}

/// `out[n, c] = x[n, c] · factors[c]`; `x` and `out` `[N, C]`, `factors` `[C]`.
///
/// # Panics
/// When the lengths do not fit.
pub fn scale_columns(pool: &Pool, x: &[f32], factors: &[f32], out: &mut [f32]) {
    let _span = span(Kernel::Elementwise);
    let width = factors.len();
    assert!(
        width > 0 && x.len() == out.len() && x.len().is_multiple_of(width),
        "scale_columns: {} by {width} into {}",
        x.len(),
        out.len()
    );
    let chunk = rows_per_task(width) * width;
    pool.for_each_chunk(out, chunk, |task, out| {
        let x = &x[task * chunk..][..out.len()];
        for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            for ((out, x), factor) in out.iter_mut().zip(x).zip(factors) {
                *out = x * factor;
            }
        }
    });
}

/// `out[c] = Σₙ a[n, c] · b[n, c]`, added in f64 from the first row to the last; `a` and `b` `[N, C]`, `out` `[C]`.
///
/// # Panics
/// When the lengths do not fit.
pub fn column_dots(pool: &Pool, a: &[f32], b: &[f32], out: &mut [f32]) {
    let _span = span(Kernel::Elementwise);
    let width = out.len();
    assert!(
        width > 0 && a.len() == b.len() && a.len().is_multiple_of(width),
        "column_dots: {} and {} into {width}",
        a.len(),
        b.len()
    );
    pool.for_each_chunk(out, COLUMNS, |task, out| {
        let mut sums = [0.0f64; COLUMNS];
        let first = task * COLUMNS;
        for (a, b) in a.chunks_exact(width).zip(b.chunks_exact(width)) {
            let (a, b) = (&a[first..][..out.len()], &b[first..][..out.len()]);
            for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
                *sum += f64::from(a) * f64::from(b);
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = sum as f32;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isa, random};

    fn scores(n: usize, seed: u64) -> Vec<f32> {
        (0..n as u64).map(|i| random::normal(seed, 0, i)).collect()
    }

    #[test]
    fn the_mask_sums_to_k_and_keeps_the_order_of_the_scores() {
        for (n, k, seed) in [
            (7, 3, 1),
            (100, 99, 2),
            (100, 1, 3),
            (2048, 700, 4),
            (5, 5, 5),
        ] {
            let s = scores(n, seed);
            for epsilon in [100.0, 1.0, 0.1, 1e-3] {
                let mut mask = vec![0.0; n];
                soft_top_k(&s, k, epsilon, &mut mask);
                let sum: f64 = mask.iter().map(|&m| f64::from(m)).sum();
                // n numbers of at most 1, each rounded to f32.
                assert!(
                    (sum - k as f64).abs() < 1e-7 * n as f64,
                    "{sum} for {k} of {n}"
                );
                for i in 1..n {
                    let rising = s[i] >= s[i - 1];
                    assert!(if rising {
                        mask[i] >= mask[i - 1]
                    } else {
                        mask[i] <= mask[i - 1]
                    });
                }
            }
        }
    }

    /// No other point of the simplex has a greater s·λ + ε H(λ).
    #[test]
    fn the_mask_is_the_maximum() {
        let (n, k, epsilon) = (9, 4, 0.5);
        let s = scores(n, 8);
        let mut mask = vec![0.0; n];
        soft_top_k(&s, k, epsilon, &mut mask);
        let value = |mask: &[f64]| -> f64 {
            let entropy = |m: f64| -(m * m.ln() + (1.0 - m) * (1.0 - m).ln());
            mask.iter()
                .zip(&s)
                .map(|(&m, &s)| f64::from(s) * m + epsilon * entropy(m))
                .sum()
        };
        let best: Vec<f64> = mask.iter().map(|&m| f64::from(m)).collect();
        for from in 0..n {
            for to in (0..n).filter(|&to| to != from) {
                let mut other = best.clone();
                other[from] -= 1e-3;
                other[to] += 1e-3;
                assert!(value(&other) < value(&best), "{from} to {to}");
            }
        }
    }

    #[test]
    fn a_small_epsilon_gives_the_k_greatest_and_a_large_one_k_of_n_everywhere() {
        let s = [0.3, -2.0, 1.5, 0.31, 0.0];
        let mut mask = [0.0; 5];
        soft_top_k(&s, 2, 1e-4, &mut mask);
        for (mask, want) in mask.iter().zip([0.0, 0.0, 1.0, 1.0, 0.0]) {
            assert!((mask - want).abs() < 1e-20, "{mask}, not {want}"); // what is lost beside 2 in f64 may be left
        }
        soft_top_k(&s, 2, 1e6, &mut mask);
        assert!(mask.iter().all(|m| (m - 0.4).abs() < 1e-5), "{mask:?}");
    }

    /// Equal scores may share what is left for them.
    #[test]
    fn equal_scores_have_equal_masks() {
        let mut mask = [0.0; 4];
        soft_top_k(&[1.0, 1.0, 1.0, -9.0], 2, 0.01, &mut mask);
        assert!(
            mask[..3].iter().all(|m| (m - 2.0 / 3.0).abs() < 1e-6),
            "{mask:?}"
        );
    }

    /// Central differences in a step of 1e-3: 1e-6 of the third derivative, and rounding of λ to f32, 6e-8 / 1e-3.
    #[test]
    fn the_gradient_equals_finite_differences() {
        for (k, epsilon) in [(4, 1.0), (1, 0.3), (9, 0.5), (10, 1.0)] {
            let (s, d) = (scores(10, 1), scores(10, 2));
            let at = |s: &[f32]| -> f64 {
                let mut mask = vec![0.0; 10];
                soft_top_k(s, k, epsilon, &mut mask);
                mask.iter()
                    .zip(&d)
                    .map(|(&m, &d)| f64::from(m) * f64::from(d))
                    .sum()
            };
            let (mut mask, mut got) = (vec![0.0; 10], vec![0.0; 10]);
            soft_top_k(&s, k, epsilon, &mut mask);
            soft_top_k_backward(&mask, epsilon, &d, &mut got);
            for i in 0..10 {
                let moved = |by: f32| {
                    let mut s = s.clone();
                    s[i] += by;
                    at(&s)
                };
                let want = (moved(1e-3) - moved(-1e-3)) / 2e-3;
                assert!(
                    (f64::from(got[i]) - want).abs() < 1e-3,
                    "{k}, {i}: {} and {want}",
                    got[i]
                );
            }
        }
    }

    #[test]
    fn columns_are_scaled_and_multiplied_on_any_threads() {
        let (rows, width) = (301, 130);
        let (a, b) = (scores(rows * width, 1), scores(rows * width, 2));
        let factors = scores(width, 3);
        for threads in [1, 2] {
            let pool = Pool::with_isa(threads, Isa::best());
            let (mut scaled, mut dots) = (vec![0.0; a.len()], vec![0.0; width]);
            scale_columns(&pool, &a, &factors, &mut scaled);
            column_dots(&pool, &a, &b, &mut dots);
            for (i, &x) in scaled.iter().enumerate() {
                assert_eq!(x, a[i] * factors[i % width]);
            }
            for (c, &dot) in dots.iter().enumerate() {
                let want: f64 = (0..rows)
                    .map(|n| f64::from(a[n * width + c]) * f64::from(b[n * width + c]))
                    .sum();
                assert_eq!(dot, want as f32);
            }
        }
    }
}
