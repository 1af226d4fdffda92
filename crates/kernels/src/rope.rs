//! Per-head RMS normalisation of queries and keys and rotary position embedding, in one pass over a packed qkv.
//!
//! A row of qkv holds H query heads, G key heads and G value heads of K numbers. Each query and key
//! head is normalised over K (Qwen3's QK-norm; left out for Llama, whose weights are `None`) and then
//! rotated by its position p (Su et al., arXiv 2104.09864) in the convention of Hugging Face
//! (GPT-NeoX), which pairs number i with i + K/2:
//! ```text
//! (a, b) ← (a cos pθᵢ - b sin pθᵢ,  b cos pθᵢ + a sin pθᵢ),   θᵢ = θ^(-2i/K)
//! ```
//! Values are copied. Frequency scaling is the model's: it hands over the frequencies.

use crate::elementwise::rows_per_task;
use crate::norm::{backward_row, inverse_rms};
use crate::pool::{Disjoint, Pool};
use crate::profile::{Kernel, span};
use crate::simd::vectorize;

/// How the heads of an attention layer divide a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    /// Query heads, H.
    pub heads: usize,
    /// Key and value heads, G; divides H. 0 where queries are alone, which attention does not take.
    pub kv_heads: usize,
    /// Width of a head, K; even.
    pub head_dim: usize,
}

impl HeadShape {
    /// Width of a packed row, (H + 2 G) · K.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
    /// Width of the queries, H · K.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }
    /// Width of the keys, and of the values, G · K.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
    /// Query heads that share a key head, H / G.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
    /// # Panics
    /// When H is no multiple of G, H or K is 0, or K is odd.
    pub(crate) fn check(&self) {
        let HeadShape {
            heads,
            kv_heads,
            head_dim,
        } = *self;
        assert!(
            heads > 0 && (kv_heads == 0 || heads % kv_heads == 0),
            "{heads} heads cannot share {kv_heads} kv-heads"
        );
        assert!(
            head_dim > 0 && head_dim % 2 == 0,
            "a head of {head_dim} has no halves to rotate"
        );
    }
}

/// Cosines and sines of position · frequency.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// `[P, K/2]`
    pub cos: Vec<f32>,
    /// `[P, K/2]`
    pub sin: Vec<f32>,
    /// K/2
    pub half: usize,
}

impl RopeTable {
    /// For positions `0..positions` with frequencies θ^(-2i/K).
    pub fn new(positions: usize, head_dim: usize, theta: f64) -> RopeTable {
        let frequency = |i: usize| libm::pow(theta, -2.0 * i as f64 / head_dim as f64) as f32;
        RopeTable::from_frequencies(
            positions,
            &(0..head_dim / 2).map(frequency).collect::<Vec<_>>(),
        )
    }

    /// For positions `0..positions` with the given K/2 frequencies, in radians a position.
    ///
    /// The angle is the f32 product of the two, as in Hugging Face's code: trained weights expect that rounding.
    pub fn from_frequencies(positions: usize, frequencies: &[f32]) -> RopeTable {
        let half = frequencies.len();
        let angles =
            (0..positions).flat_map(|p| frequencies.iter().map(move |f| f64::from(p as f32 * f)));
        let (cos, sin) = angles
            .map(|angle| (libm::cos(angle) as f32, libm::sin(angle) as f32))
            .unzip();
        RopeTable { cos, sin, half }
    }

    /// P, the number of positions.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }

    #[inline(always)]
    fn at(&self, position: u32) -> (&[f32], &[f32]) {
        let start = position as usize * self.half;
        (
            &self.cos[start..][..self.half],
            &self.sin[start..][..self.half],
        )
    }
}

/// Normalises (where weights `[K]` are given) and rotates the q and k heads of `qkv` into `out`, and copies v.
///
/// `qkv`, `out` `[N, (H+2G)·K]`; `positions` `[N]`; `inv_rms` `[N, H+G]` receives what the backward
/// pass needs, 1 where there is no norm.
///
/// # Panics
/// When the lengths do not fit or a position lies beyond the table.
pub fn qk_norm_rope_forward(
    pool: &Pool,
    shape: HeadShape,
    qkv: &[f32],
    positions: &[u32],
    table: &RopeTable,
    q_norm: Option<&[f32]>,
    k_norm: Option<&[f32]>,
    eps: f32,
    out: &mut [f32],
    inv_rms: &mut [f32],
) {
    assert_eq!(
        out.len(),
        qkv.len(),
        "qk_norm_rope: out and qkv differ in length"
    );
    let rows = Rows {
        shape,
        positions,
        table,
        norms: [q_norm, k_norm],
        eps,
    };
    let width = shape.qkv_width();
    rows.each(pool, out, inv_rms, |row, out| {
        out.copy_from_slice(&qkv[row * width..][..width]);
    });
}

/// As [`qk_norm_rope_forward`], of `qkv` itself.
///
/// # Panics
/// As there.
pub fn qk_norm_rope_in_place(
    pool: &Pool,
    shape: HeadShape,
    qkv: &mut [f32],
    positions: &[u32],
    table: &RopeTable,
    norms: [Option<&[f32]>; 2],
    eps: f32,
    inv_rms: &mut [f32],
) {
    let rows = Rows {
        shape,
        positions,
        table,
        norms,
        eps,
    };
    rows.each(pool, qkv, inv_rms, |_, _| {});
}

/// What rows are normalised and rotated with.
struct Rows<'a> {
    shape: HeadShape,
    positions: &'a [u32],
    table: &'a RopeTable,
    norms: [Option<&'a [f32]>; 2],
    eps: f32,
}

impl Rows<'_> {
    /// Each row of `out`, once `begin` has put there what it is before.
    fn each(
        &self,
        pool: &Pool,
        out: &mut [f32],
        inv_rms: &mut [f32],
        begin: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let _span = span(Kernel::Norm);
        let shape = self.shape;
        check(
            shape,
            out.len(),
            self.positions,
            self.table,
            self.norms,
            inv_rms.len(),
        );
        if out.is_empty() {
            return;
        }
        let (width, normed) = (shape.qkv_width(), shape.heads + shape.kv_heads);
        let step = rows_per_task(width);
        let inv_rms = Disjoint::new(inv_rms);
        pool.for_each_chunk(out, step * width, |task, out| {
            let count = out.len() / width;
            // SAFETY: task `task` alone takes these rows.
            let inv_rms = unsafe { inv_rms.range(task * step * normed, count * normed) };
            vectorize!(pool.isa(), || {
                let rows = out
                    .chunks_exact_mut(width)
                    .zip(inv_rms.chunks_exact_mut(normed));
                for (row, (out, inv_rms)) in (task * step..).zip(rows) {
                    begin(row, out);
                    self.row(self.positions[row], out, inv_rms);
                }
            });
        });
    }

    #[inline(always)]
    fn row(&self, position: u32, out: &mut [f32], inv_rms: &mut [f32]) {
        let (cos, sin) = self.table.at(position);
        let heads = out.chunks_exact_mut(self.shape.head_dim).zip(inv_rms);
        for (head, (out, inv_rms)) in heads.enumerate() {
            *inv_rms = 1.0;
            if let Some(weight) = self.norms[usize::from(head >= self.shape.heads)] {
                *inv_rms = inverse_rms(out, self.eps);
                for (out, &weight) in out.iter_mut().zip(weight) {
                    *out = *out * *inv_rms * weight;
                }
            }
            rotate(out, cos, sin);
        }
    }
}

/// Writes `d_qkv` and adds to the gradients of the norms' weights, from the forward's `qkv` and `inv_rms` and from `d_out`.
///
/// Shapes as in [`qk_norm_rope_forward`]. The weights' gradients are summed over the rows of a task
/// and then over tasks in order; where `None`, they are left out.
///
/// # Panics
/// When the lengths do not fit, or a gradient is wanted of a norm that is not there.
pub fn qk_norm_rope_backward(
    pool: &Pool,
    shape: HeadShape,
    qkv: &[f32],
    positions: &[u32],
    table: &RopeTable,
    q_norm: Option<&[f32]>,
    k_norm: Option<&[f32]>,
    inv_rms: &[f32],
    d_out: &[f32],
    d_qkv: &mut [f32],
    d_q_norm: Option<&mut [f32]>,
    d_k_norm: Option<&mut [f32]>,
) {
    let _span = span(Kernel::Norm);
    check(
        shape,
        qkv.len(),
        positions,
        table,
        [q_norm, k_norm],
        inv_rms.len(),
    );
    assert!(
        d_out.len() == qkv.len() && d_qkv.len() == qkv.len(),
        "qk_norm_rope_backward: lengths differ"
    );
    for (weight, gradient) in [(q_norm, &d_q_norm), (k_norm, &d_k_norm)] {
        if let Some(gradient) = gradient {
            assert!(weight.is_some(), "a gradient of a norm that is not there");
            assert_eq!(
                gradient.len(),
                shape.head_dim,
                "the gradient of a norm over {}",
                shape.head_dim
            );
        }
    }
    if qkv.is_empty() {
        return;
    }
    let (width, normed, head_dim) = (
        shape.qkv_width(),
        shape.heads + shape.kv_heads,
        shape.head_dim,
    );
    let step = rows_per_task(width);
    // [tasks, 2 (q, k), K]
    let mut partial = vec![0.0; positions.len().div_ceil(step) * 2 * head_dim];
    let shared = Disjoint::new(&mut partial);
    pool.for_each_chunk(d_qkv, step * width, |task, d_qkv| {
        let start = task * step * width;
        let (qkv, d_out) = (&qkv[start..][..d_qkv.len()], &d_out[start..][..d_qkv.len()]);
        let inv_rms = &inv_rms[task * step * normed..];
        // SAFETY: each task takes its own row of partial sums.
        let (d_q, d_k) =
            unsafe { shared.range(task * 2 * head_dim, 2 * head_dim) }.split_at_mut(head_dim);
        let mut unrotated = vec![0.0; head_dim];
        vectorize!(pool.isa(), || {
            let rows = qkv
                .chunks_exact(width)
                .zip(d_out.chunks_exact(width))
                .zip(d_qkv.chunks_exact_mut(width));
            for ((((x, d_out), d_x), inv_rms), &position) in rows
                .zip(inv_rms.chunks_exact(normed))
                .zip(&positions[task * step..])
            {
                let (cos, sin) = table.at(position);
                for (head, &inv_rms) in inv_rms.iter().enumerate() {
                    let range = head * head_dim..(head + 1) * head_dim;
                    unrotated.copy_from_slice(&d_out[range.clone()]);
                    rotate_back(&mut unrotated, cos, sin);
                    let (weight, d_weight) = if head < shape.heads {
                        (q_norm, &mut *d_q)
                    } else {
                        (k_norm, &mut *d_k)
                    };
                    let (x, d_x) = (&x[range.clone()], &mut d_x[range]);
                    match weight {
                        Some(weight) => {
                            backward_row(x, weight, inv_rms, &unrotated, d_x, Some(d_weight))
                        }
                        None => d_x.copy_from_slice(&unrotated),
                    }
                }
                let values = normed * head_dim..;
                d_x[values.clone()].copy_from_slice(&d_out[values]);
            }
        });
    });
    for (which, gradient) in [d_q_norm, d_k_norm].into_iter().enumerate() {
        let Some(gradient) = gradient else { continue };
        for partial in partial.chunks_exact(2 * head_dim) {
            for (sum, part) in gradient.iter_mut().zip(&partial[which * head_dim..]) {
                *sum += part;
            }
        }
    }
}

/// Rotates the pairs (i, i + K/2) of a head.
#[inline(always)]
fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (a, b) = head.split_at_mut(cos.len());
    for (((a, b), &cos), &sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

/// The inverse, which is the transpose, of [`rotate`].
#[inline(always)]
fn rotate_back(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (a, b) = head.split_at_mut(cos.len());
    for (((a, b), &cos), &sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos + *b * sin, *b * cos - *a * sin);
    }
}

fn check(
    shape: HeadShape,
    qkv: usize,
    positions: &[u32],
    table: &RopeTable,
    norms: [Option<&[f32]>; 2],
    inv_rms: usize,
) {
    shape.check();
    let rows = positions.len();
    assert_eq!(
        qkv,
        rows * shape.qkv_width(),
        "{rows} positions for {qkv} elements of qkv, {shape:?}"
    );
    assert_eq!(
        inv_rms,
        rows * (shape.heads + shape.kv_heads),
        "inv_rms for {rows} rows of {shape:?}"
    );
    assert_eq!(
        table.half * 2,
        shape.head_dim,
        "a rope table for heads of {}",
        table.half * 2
    );
    let highest = positions.iter().copied().max().unwrap_or(0) as usize;
    assert!(
        rows == 0 || highest < table.positions(),
        "position {highest} in a rope table of {}",
        table.positions()
    );
    for norm in norms.into_iter().flatten() {
        assert_eq!(
            norm.len(),
            shape.head_dim,
            "a norm over heads of {}",
            shape.head_dim
        );
    }
}

#[cfg(test)]
mod tests;
