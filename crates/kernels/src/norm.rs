//! Root-mean-square normalisation (Zhang and Sennrich, arXiv 1910.07467) of rows, forward and backward.
//!
//! ```text
//! r = 1 / √(mean(x²) + ε)      y = x · r · w
//! x̂ = x · r,  g = w · dy       dx = r (g - x̂ · mean(g · x̂))      dw += Σ over rows of dy · x̂
//! ```
//! Sums over a row run in sixteen interleaved lanes on every instruction set, so all give the same
//! bits. Adding to a residual stream is the caller's.

use crate::elementwise::rows_per_task;
use crate::pool::{Disjoint, Pool};
use crate::profile::{Kernel, span};
use crate::simd::vectorize;

/// `out = x · inv_rms · weight`. `x`, `out` `[N, D]`, `weight` `[D]`, `inv_rms` `[N]`.
///
/// # Panics
/// When the lengths do not fit.
pub fn rms_norm_forward(
    pool: &Pool,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut [f32],
    inv_rms: &mut [f32],
) {
    let _span = span(Kernel::Norm);
    let (rows, width) = (inv_rms.len(), weight.len());
    assert!(
        x.len() == rows * width && out.len() == x.len(),
        "rms_norm: x {} and out {} for {rows} rows of {width}",
        x.len(),
        out.len()
    );
    if x.is_empty() {
        return;
    }
    let step = rows_per_task(width);
    let inv_rms = Disjoint::new(inv_rms);
    pool.for_each_chunk(out, step * width, |task, out| {
        let count = out.len() / width;
        let x = &x[task * step * width..][..out.len()];
        // SAFETY: task `task` alone takes these rows.
        let inv_rms = unsafe { inv_rms.range(task * step, count) };
        vectorize!(pool.isa(), || {
            let rows = x.chunks_exact(width).zip(out.chunks_exact_mut(width));
            for ((x, out), inv_rms) in rows.zip(inv_rms) {
                *inv_rms = inverse_rms(x, eps);
                for ((out, &x), &weight) in out.iter_mut().zip(x).zip(weight) {
                    *out = x * *inv_rms * weight;
                }
            }
        });
    });
}

/// Writes `d_x` `[N, D]` and adds to `d_weight` `[D]`, from the forward's `x`, `weight` and `inv_rms` and `d_out` `[N, D]`.
///
/// `d_weight` is summed over the rows of a task and then over tasks in order, whatever the threads.
///
/// # Panics
/// When the lengths do not fit.
pub fn rms_norm_backward(
    pool: &Pool,
    x: &[f32],
    weight: &[f32],
    inv_rms: &[f32],
    d_out: &[f32],
    d_x: &mut [f32],
    d_weight: &mut [f32],
) {
    let _span = span(Kernel::Norm);
    let (rows, width) = (inv_rms.len(), weight.len());
    assert!(
        x.len() == rows * width
            && d_out.len() == x.len()
            && d_x.len() == x.len()
            && d_weight.len() == width,
        "rms_norm_backward: x {}, d_out {}, d_x {}, d_weight {} for {rows} rows of {width}",
        x.len(),
        d_out.len(),
        d_x.len(),
        d_weight.len()
    );
    if x.is_empty() {
        return;
    }
    let step = rows_per_task(width);
    let mut partial = vec![0.0; rows.div_ceil(step) * width];
    let shared = Disjoint::new(&mut partial);
    pool.for_each_chunk(d_x, step * width, |task, d_x| {
        let start = task * step * width;
        let (x, d_out) = (&x[start..][..d_x.len()], &d_out[start..][..d_x.len()]);
        let inv_rms = &inv_rms[task * step..];
        // SAFETY: each task takes its own row of partial sums.
        let d_weight = unsafe { shared.range(task * width, width) };
        vectorize!(pool.isa(), || {
            let rows = x.chunks_exact(width).zip(d_out.chunks_exact(width));
            for (((x, d_out), d_x), &inv_rms) in rows.zip(d_x.chunks_exact_mut(width)).zip(inv_rms)
            {
                backward_row(x, weight, inv_rms, d_out, d_x, Some(&mut *d_weight));
            }
        });
    });
    for partial in partial.chunks_exact(width) {
        for (sum, part) in d_weight.iter_mut().zip(partial) {
            *sum += part;
        }
    }
}

/// 1 / √(mean(x²) + ε).
#[inline(always)]
pub(crate) fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
}

/// One row of the backward pass; `d_out` may not alias `d_x`.
#[inline(always)]
pub(crate) fn backward_row(
    x: &[f32],
    weight: &[f32],
    inv_rms: f32,
    d_out: &[f32],
    d_x: &mut [f32],
    d_weight: Option<&mut [f32]>,
) {
    for ((d_x, &d_out), &weight) in d_x.iter_mut().zip(d_out).zip(weight) {
        *d_x = d_out * weight;
    }
    let mean = dot(x, d_x) * inv_rms / x.len() as f32;
    for (d_x, &x) in d_x.iter_mut().zip(x) {
        *d_x = (*d_x - x * inv_rms * mean) * inv_rms;
    }
    if let Some(d_weight) = d_weight {
        for ((sum, &d_out), &x) in d_weight.iter_mut().zip(d_out).zip(x) {
            *sum += d_out * (x * inv_rms);
        }
    }
}

/// Σ a·b in sixteen lanes, added by halving.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (a16, a_rest) = a.as_chunks::<16>();
    let (b16, b_rest) = b.as_chunks::<16>();
    for (a, b) in a16.iter().zip(b16) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += a * b;
    }
    let mut width = 8;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests;
