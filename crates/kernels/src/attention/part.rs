//! Attention to keys that lie in another buffer than the rows' own, all of them before the rows: what a ring of ranks adds to its
//! own part a message at a time (ring attention, arXiv 2310.01889).
//!
//! ```text
//! lse = ln (e^lse₁ + e^lse₂)        out = e^(lse₁ − lse) out₁ + e^(lse₂ − lse) out₂
//! ```
//! Backward there is nothing to put together: with the whole lse and out, each part's probabilities and D are those of the whole,
//! and gradients add up.

use super::backward::Task;
use super::{Keys, Query, attention_forward, check_disjoint, query_stride};
use crate::matmul::Compute;
use crate::pool::{Disjoint, Pool};
use crate::profile::{Kernel, span};
use crate::rope::HeadShape;

/// Rows that one task puts together.
const ROWS: usize = 64;

/// Rows `[start, start + len)` of queries, which see all of the keys in rows `[first_key, first_key + keys)` of a packed
/// `kv [M, 2G·K]`, keys and then values, as far as a window reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// First row.
    pub start: usize,
    /// Number of rows.
    pub len: usize,
    /// First key.
    pub first_key: usize,
    /// Number of keys, at least one.
    pub keys: usize,
    /// Positions between the last key and the first row, for windows; then rows and keys are neighbours in their sequence.
    pub gap: usize,
}

impl Part {
    /// Its keys and values.
    fn keys(self, shape: HeadShape, kv: &[f32]) -> Keys<'_> {
        Keys::packed(shape, kv, self.first_key, self.keys)
    }

    /// Whether a window reaches from the first row back to the last key.
    pub fn is_seen(&self, window: usize) -> bool {
        window > self.gap.saturating_add(1)
    }
}

/// Takes the keys of `parts` into the `out [N, H·K]` and `lse [N, H]` of what the rows have seen before; other rows are left
/// alone. `part_out` and `part_lse` are as large, and room to work in. Queries are `[N, H·K]`, or the first columns of a packed
/// `[N, (H+2G)·K]`.
///
/// # Panics
/// When a part leaves the rows or the keys, has no keys, or shares rows with another one.
pub fn attention_part_forward(
    pool: &Pool,
    compute: Compute,
    shape: HeadShape,
    window: usize,
    [q, kv]: [&[f32]; 2],
    parts: &[Part],
    [part_out, part_lse]: [&mut [f32]; 2],
    [out, lse]: [&mut [f32]; 2],
) {
    let query = |part: &Part| {
        assert!(part.keys > 0, "a part has keys");
        Query {
            start: part.start,
            len: part.len,
            past: part.keys + part.gap, // all keys lie before the first row
            window,
            keys: part.keys(shape, kv),
        }
    };
    let queries: Vec<Query> = parts.iter().map(query).collect();
    let stride = query_stride(shape, q, lse);
    attention_forward(
        pool, compute, shape, q, stride, &queries, part_out, part_lse,
    );
    let _span = span(Kernel::Attention);
    let (out, lse) = (Disjoint::new(out), Disjoint::new(lse));
    let rows = parts.iter().flat_map(|part| {
        let end = part.start + part.len;
        (part.start..end)
            .step_by(ROWS)
            .map(move |start| start..end.min(start + ROWS))
    });
    let rows: Vec<_> = rows.collect();
    pool.run(rows.len(), |task| {
        let (start, len) = (
            rows[task].start * shape.heads,
            rows[task].len() * shape.heads,
        );
        let (at, k) = (start * shape.head_dim, shape.head_dim);
        // SAFETY: these rows are this task's alone: parts share none, as the forward pass has checked.
        let (out, lse) = unsafe { (out.range(at, len * k), lse.range(start, len)) };
        let others = part_out[at..].chunks_exact(k).zip(&part_lse[start..]);
        for ((out, lse), (other, &other_lse)) in out.chunks_exact_mut(k).zip(lse).zip(others) {
            let highest = lse.max(other_lse);
            let (own, part) = (libm::expf(*lse - highest), libm::expf(other_lse - highest));
            let total = own + part;
            let (own, part) = (own / total, part / total);
            for (out, other) in out.iter_mut().zip(other) {
                *out = own * *out + part * other;
            }
            *lse = highest + libm::logf(total);
        }
    });
}

/// Adds the gradients of `parts` to those of the queries, which are as wide as `q`, and to `d_kv [M, 2G·K]`; `out` and `lse` are the
/// whole ones of the forward pass.
///
/// # Panics
/// When a part leaves the rows or the keys, or shares rows or keys with another one.
pub fn attention_part_backward(
    pool: &Pool,
    compute: Compute,
    shape: HeadShape,
    window: usize,
    [q, kv]: [&[f32]; 2],
    parts: &[Part],
    [out, lse, d_out]: [&[f32]; 3],
    [d_q, d_kv]: [&mut [f32]; 2],
) {
    let _span = span(Kernel::Attention);
    check_disjoint(parts.iter().map(|part| (part.start, part.len)));
    check_disjoint(parts.iter().map(|part| (part.first_key, part.keys)));
    let (d_q, d_kv) = (Disjoint::new(d_q), Disjoint::new(d_kv));
    let q_stride = query_stride(shape, q, lse);
    let d_kv_stride = 2 * shape.kv_width();
    // The largest first, so that none is left for the end.
    let mut order: Vec<&Part> = parts.iter().collect();
    order.sort_by_key(|part| std::cmp::Reverse(part.len * part.keys));
    pool.run(parts.len() * shape.kv_heads, |task| {
        let part = order[task / shape.kv_heads];
        let task = Task {
            shape,
            q,
            q_stride,
            start: part.start,
            len: part.len,
            keys: part.keys(shape, kv),
            keys_len: part.keys,
            past: part.keys + part.gap,
            window,
            own: false,
            kv_head: task % shape.kv_heads,
            out,
            lse,
            d_out,
            d_q: &d_q,
            d_kv: &d_kv,
            d_kv_at: part.first_key * d_kv_stride,
            d_kv_stride,
        };
        task.run(compute, pool);
    });
}

#[cfg(test)]
mod tests;
