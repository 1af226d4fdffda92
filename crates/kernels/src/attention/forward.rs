//! Attention forward: online softmax over tiles of keys.

use super::Query;
use super::tile::{Left, Scratch, TILE, product, tile_of, transpose};
use crate::pool::{Disjoint, Pool};
use crate::rope::HeadShape;
use crate::simd::{Body, Simd, dispatch};

/// Positions that share a pass over the keys; times the heads of a group they are the rows of the products.
const POSITIONS: usize = 32;

/// See [`super::attention_forward`].
pub(super) fn forward(
    pool: &Pool,
    shape: HeadShape,
    q: &[f32],
    q_stride: usize,
    queries: &[Query],
    out: &mut [f32],
    lse: &mut [f32],
) {
    // A task is (query, tile of positions, kv head).
    let tiles = queries.iter().enumerate().flat_map(|(index, query)| {
        (0..query.len)
            .step_by(POSITIONS)
            .map(move |first| (index, first))
    });
    let tiles: Vec<(usize, usize)> = tiles.collect();
    let (out, lse) = (Disjoint::new(out), Disjoint::new(lse));
    pool.run(tiles.len() * shape.kv_heads, |task| {
        let (index, first) = tiles[task / shape.kv_heads];
        let query = &queries[index];
        let task = Task {
            shape,
            q,
            q_stride,
            query,
            first,
            positions: POSITIONS.min(query.len - first),
            kv_head: task % shape.kv_heads,
            out: &out,
            lse: &lse,
        };
        dispatch(pool.isa(), task);
    });
}

/// Some positions of one query for the heads that share a kv head.
struct Task<'a> {
    shape: HeadShape,
    q: &'a [f32],
    q_stride: usize,
    query: &'a Query<'a>,
    first: usize,
    positions: usize,
    kv_head: usize,
    out: &'a Disjoint<'a, f32>,
    lse: &'a Disjoint<'a, f32>,
}

impl Body for Task<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (group, head_dim) = (self.shape.group(), self.shape.head_dim);
        let rows = self.positions * group;
        let mut scratch = Scratch::take(rows * (2 * head_dim + TILE + 2) + head_dim * TILE);
        let scratch = scratch.floats();
        let (q, rest) = scratch.split_at_mut(rows * head_dim); // [rows, K], scaled
        let (sums, rest) = rest.split_at_mut(rows * head_dim); // [rows, K]
        let (scores, rest) = rest.split_at_mut(rows * TILE); // [rows, TILE]
        let (highest, rest) = rest.split_at_mut(rows);
        let (totals, keys_t) = rest.split_at_mut(rows); // and [K, TILE]
        let scale = (head_dim as f32).sqrt().recip();
        for (row, q) in q.chunks_exact_mut(head_dim).enumerate() {
            let (n, head) = self.place(row);
            let from = &self.q[n * self.q_stride + head * head_dim..][..head_dim];
            q.iter_mut()
                .zip(from)
                .for_each(|(to, &from)| *to = scale * from);
        }
        sums.fill(0.0);
        highest.fill(f32::NEG_INFINITY);
        totals.fill(0.0);
        let end = self.query.past + self.first + self.positions; // keys that the last row sees
        for tile in 0..end.div_ceil(TILE) {
            let count = TILE.min(end - tile * TILE);
            let (keys, values) = tile_of(self.shape, self.query.keys, tile, count, self.kv_head);
            transpose(keys, count, head_dim, keys_t);
            let a = Left {
                at: q.as_ptr(),
                row: head_dim,
                col: 1,
            };
            // SAFETY: [rows, K] times [K, TILE] to [rows, TILE], all of them whole parts of the scratch.
            unsafe {
                let to = (scores.as_mut_ptr(), TILE);
                product(
                    simd,
                    [rows, TILE, head_dim],
                    a,
                    (keys_t.as_ptr(), TILE),
                    to,
                    false,
                );
            }
            for row in 0..rows {
                let position = self.query.past + self.first + row / group;
                let seen = (position + 1).saturating_sub(tile * TILE).min(TILE);
                let scores = &mut scores[row * TILE..][..TILE];
                if seen == 0 {
                    scores.fill(0.0);
                    continue;
                }
                let before = highest[row];
                let top = scores[..seen].iter().fold(before, |a, &b| a.max(b));
                let total = exponentials(simd, scores, seen, top);
                let fade = (before - top).exp();
                highest[row] = top;
                totals[row] = totals[row] * fade + total;
                sums[row * head_dim..][..head_dim]
                    .iter_mut()
                    .for_each(|sum| *sum *= fade);
            }
            let a = Left {
                at: scores.as_ptr(),
                row: TILE,
                col: 1,
            };
            // SAFETY: [rows, count] of the scores times `count` rows of K values, which `tile_of` has bounded, to [rows, K].
            unsafe {
                let to = (sums.as_mut_ptr(), head_dim);
                product(
                    simd,
                    [rows, head_dim, count],
                    a,
                    (values.at.as_ptr(), values.stride),
                    to,
                    true,
                );
            }
        }
        for row in 0..rows {
            let (n, head) = self.place(row);
            let at = n * self.shape.heads + head;
            let inverse = totals[row].recip();
            // SAFETY: row n and head belong to this task alone: queries share no rows, tasks of a query share neither
            // positions nor heads.
            let (out, lse) = unsafe {
                (
                    self.out.range(at * head_dim, head_dim),
                    self.lse.range(at, 1),
                )
            };
            let sums = &sums[row * head_dim..][..head_dim];
            out.iter_mut()
                .zip(sums)
                .for_each(|(out, &sum)| *out = sum * inverse);
            lse[0] = highest[row] + totals[row].ln();
        }
    }
}

impl Task<'_> {
    /// The row of `q` and the head of a row of the products.
    #[inline(always)]
    fn place(&self, row: usize) -> (usize, usize) {
        let group = self.shape.group();
        (
            self.query.start + self.first + row / group,
            self.kv_head * group + row % group,
        )
    }
}

/// e^(score − top) of the first `seen` scores, zeros after; returns their sum.
#[inline(always)]
fn exponentials<S: Simd>(simd: S, scores: &mut [f32], seen: usize, top: f32) -> f32 {
    scores[seen..].fill(f32::NEG_INFINITY);
    let top = simd.splat(top);
    let mut total = simd.splat(0.0);
    for chunk in scores.chunks_exact_mut(S::LANES) {
        // SAFETY: the chunk has LANES numbers.
        unsafe {
            let e = simd.exp(simd.sub(simd.load(chunk.as_ptr()), top));
            total = simd.add(total, e);
            simd.store(chunk.as_mut_ptr(), e);
        }
    }
    simd.sum(total)
}
