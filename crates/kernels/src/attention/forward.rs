//! Attention forward: online softmax over tiles of keys.
//!
//! In bf16, q, k, v and the exponentials are rounded as operands of products; scores, their sums and the results are f32. Scores
//! are scaled after the product, so that the backward pass finds the same ones whatever √K.

use super::pack;
use super::tile::{Left, Right, Rows, TILE, product, tile_of, widened};
use super::{Keys, Query, seen};
use crate::isa::Isa;
use crate::matmul::words;
use crate::pool::{Disjoint, Pool};
use crate::rope::HeadShape;
use crate::scratch::with_scratch;
use crate::simd::{Body, Simd, dispatch_in};

/// Rows of the products of one task, about: positions times the heads that share their keys. Enough to
/// amortise transposing the keys, few enough for L2.
const ROWS: usize = 96;
/// The same where tiles multiply them, 32 rows at once.
const ROWS_IN_TILES: usize = 128;

/// Scores are formed in so many columns at a time: two vectors of the widest, which make one of pairs.
const CHUNK: usize = 32;

/// For so few rows the values are read once or twice, and not worth copying.
const FEW_ROWS: usize = 12;

/// See [`super::attention_forward`].
pub(super) fn forward<const BF16: bool>(
    pool: &Pool,
    shape: HeadShape,
    q: &[f32],
    q_stride: usize,
    queries: &[Query],
    out: &mut [f32],
    lse: &mut [f32],
) {
    // A task is (query, run of positions, kv head).
    let rows = if BF16 && pool.isa() == Isa::Amx {
        ROWS_IN_TILES
    } else {
        ROWS
    };
    let step = (rows / shape.group()).clamp(8, 64);
    let runs = queries.iter().enumerate().flat_map(|(index, query)| {
        (0..query.len)
            .step_by(step)
            .map(move |first| (index, first))
    });
    let runs: Vec<(usize, usize)> = runs.collect();
    let (out, lse) = (Disjoint::new(out), Disjoint::new(lse));
    pool.run(runs.len() * shape.kv_heads, |task| {
        let (index, first) = runs[task / shape.kv_heads];
        let query = &queries[index];
        let task = Task {
            shape,
            q,
            q_stride,
            query,
            first,
            positions: step.min(query.len - first),
            kv_head: task % shape.kv_heads,
            out: &out,
            lse: &lse,
        };
        let rows = task.positions * shape.group();
        let wide = match query.keys {
            Keys::Pages16 { .. } => 2 * shape.head_dim * TILE,
            _ => 0,
        };
        let len = rows * (2 * shape.head_dim + TILE + 2) + 2 * shape.head_dim * TILE + wide;
        with_scratch(len, |scratch| {
            dispatch_in::<BF16, _>(pool.isa(), Attend::<BF16> { task, scratch })
        });
    });
}

/// Some positions of one query for the heads that share a kv head.
#[derive(Clone, Copy)]
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

struct Attend<'a, const BF16: bool> {
    task: Task<'a>,
    scratch: &'a mut [f32],
}

impl<const BF16: bool> Body for Attend<'_, BF16> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Attend { task, scratch } = self;
        let Task {
            shape,
            query,
            first,
            positions,
            kv_head,
            ..
        } = task;
        let (group, head_dim) = (shape.group(), shape.head_dim);
        let rows = positions * group;
        let depth = words::<S, BF16>(head_dim); // of K numbers
        let (q, rest) = scratch.split_at_mut(rows * head_dim); // [rows, words(K)]; of f32 scaled
        let (sums, rest) = rest.split_at_mut(rows * head_dim); // [rows, K]
        let (scores, rest) = rest.split_at_mut(rows * TILE); // [rows, TILE], then words of [rows, words(TILE)]
        let (highest, rest) = rest.split_at_mut(rows);
        let (totals, rest) = rest.split_at_mut(rows);
        let (keys_t, rest) = rest.split_at_mut(head_dim * TILE); // [words(K), TILE]
        let (values_copy, wide) = rest.split_at_mut(head_dim * TILE); // [words(TILE), K]
        let scale = (head_dim as f32).sqrt().recip();
        for (row, q) in q.chunks_exact_mut(depth).take(rows).enumerate() {
            let (n, head) = task.place(row);
            let from = &task.q[n * task.q_stride + head * head_dim..][..head_dim];
            if BF16 {
                let from = Rows {
                    at: from,
                    stride: head_dim,
                };
                pack::along::<S, BF16>(simd, from, 1, head_dim, q);
            } else {
                for (to, from) in q.iter_mut().zip(from) {
                    *to = scale * from;
                }
            }
        }
        sums.fill(0.0);
        highest.fill(f32::NEG_INFINITY);
        totals.fill(0.0);
        let begin = query.past + first; // position of the first row
        let end = query.keys.of(begin + positions); // keys that the last row sees
        for tile in seen(begin, query.window).start / TILE..end.div_ceil(TILE) {
            let count = TILE.min(end - tile * TILE);
            // Rows before `skip` see no key of the tile, nor do those from `until` on, whose windows begin behind it.
            let skip = (tile * TILE).saturating_sub(begin) * group;
            let reach = query.window.saturating_add(tile * TILE + count - 1);
            let until = reach.saturating_sub(begin).min(positions) * group;
            if until <= skip {
                continue; // keys that have ended before a window begins
            }
            // Scores beyond are of keys that no row sees.
            let cols = count.next_multiple_of(CHUNK);
            let (keys, values) = match query.keys {
                Keys::Pages16 { arena, table } => {
                    let pages = (arena, table);
                    widened(simd, shape, pages, (tile, count), kv_head, wide)
                }
                keys => tile_of(shape, keys, tile, count, kv_head),
            };
            pack::columns::<S, BF16>(simd, keys, count, head_dim, keys_t);
            let values = if BF16 || rows > FEW_ROWS && values.stride != head_dim {
                pack::down::<S, BF16>(simd, values, count, head_dim, values_copy);
                Rows {
                    at: values_copy,
                    stride: head_dim,
                }
            } else {
                values
            };
            let left = |at: &[f32], row: usize| Left {
                at: at[skip * row..].as_ptr(),
                row,
                col: 1,
            };
            // SAFETY: [rows, words(K)] times [words(K), cols] to [rows, cols] at a distance of TILE, all of them within the
            // scratch.
            unsafe {
                let keys = Right {
                    at: keys_t.as_ptr(),
                    stride: TILE,
                };
                let to = Right {
                    at: scores[skip * TILE..].as_mut_ptr(),
                    stride: TILE,
                };
                product::<S, BF16>(
                    simd,
                    [until - skip, cols, depth],
                    left(q, depth),
                    keys,
                    to,
                    false,
                );
            }
            for row in skip..until {
                let seen = seen(begin + row / group, query.window);
                let scores = &mut scores[row * TILE..][..cols];
                scores[..seen.start.saturating_sub(tile * TILE)].fill(f32::NEG_INFINITY);
                scores[(seen.end - tile * TILE).min(count)..].fill(f32::NEG_INFINITY);
                let sums = &mut sums[row * head_dim..][..head_dim];
                if BF16 {
                    soften_to_bf16(
                        simd,
                        scores,
                        scale,
                        sums,
                        &mut highest[row],
                        &mut totals[row],
                    );
                } else {
                    soften(simd, scores, sums, &mut highest[row], &mut totals[row]);
                }
            }
            // SAFETY: [rows, words(count)] of the scores times `words(count)` rows of K words of the values, in the scratch or
            // where `tile_of` has bounded them, to [rows, K].
            unsafe {
                let values = Right {
                    at: values.at.as_ptr(),
                    stride: values.stride,
                };
                let to = Right {
                    at: sums[skip * head_dim..].as_mut_ptr(),
                    stride: head_dim,
                };
                product::<S, BF16>(
                    simd,
                    [until - skip, head_dim, words::<S, BF16>(count)],
                    left(scores, TILE),
                    values,
                    to,
                    true,
                );
            }
        }
        for row in 0..rows {
            let (n, head) = task.place(row);
            let at = n * shape.heads + head;
            // SAFETY: row n and head belong to this task alone: queries share no rows, tasks of a query
            // share neither positions nor heads.
            let (out, lse) = unsafe {
                (
                    task.out.range(at * head_dim, head_dim),
                    task.lse.range(at, 1),
                )
            };
            // Of keys that are another rank's a row may see none.
            let inverse = if totals[row] == 0.0 {
                0.0
            } else {
                totals[row].recip()
            };
            for (out, sum) in out.iter_mut().zip(&sums[row * head_dim..]) {
                *out = sum * inverse;
            }
            lse[0] = highest[row] + libm::logf(totals[row]);
        }
    }
}

/// Turns the scores of a tile into e^(score - highest), where `highest` is first raised to the tile's, and scales
/// what was summed under the old one.
#[inline(always)]
fn soften<S: Simd>(
    simd: S,
    scores: &mut [f32],
    sums: &mut [f32],
    highest: &mut f32,
    total: &mut f32,
) {
    let mut top = simd.splat(*highest);
    for scores in scores.chunks_exact(S::LANES) {
        // SAFETY: the chunk has LANES numbers.
        top = simd.max(top, unsafe { simd.load(scores.as_ptr()) });
    }
    let new = simd.maximum(top);
    let top = simd.splat(new);
    let mut sum = simd.splat(0.0);
    for scores in scores.chunks_exact_mut(S::LANES) {
        // SAFETY: the chunk has LANES numbers.
        unsafe {
            let e = simd.exp(simd.sub(simd.load(scores.as_ptr()), top));
            sum = simd.add(sum, e);
            simd.store(scores.as_mut_ptr(), e);
        }
    }
    fade(simd, new, sums, highest, total);
    *total += simd.sum(sum);
}

/// [`soften`] for scores that have not been scaled. What it leaves in their place is rounded to bf16, in words; the total is
/// of what it was before, in sixteen lanes on every instruction set.
#[inline(always)]
fn soften_to_bf16<S: Simd>(
    simd: S,
    scores: &mut [f32],
    scale: f32,
    sums: &mut [f32],
    highest: &mut f32,
    total: &mut f32,
) {
    let mut top = simd.splat(f32::NEG_INFINITY);
    for scores in scores.chunks_exact(S::LANES) {
        // SAFETY: the chunk has LANES numbers.
        top = simd.max(top, unsafe { simd.load(scores.as_ptr()) });
    }
    let new = highest.max(scale * simd.maximum(top));
    let (scale, top) = (simd.splat(scale), simd.splat(-new));
    let mut parts = [simd.splat(0.0); 2];
    if S::PAIRS {
        let at = scores.as_mut_ptr();
        for i in (0..scores.len()).step_by(2 * S::LANES) {
            // SAFETY: scores come in whole chunks, which are two vectors; their words end no later than they.
            unsafe {
                let first = simd.exp(simd.mul_add(simd.load(at.add(i)), scale, top));
                let second = simd.load(at.add(i + S::LANES));
                let second = simd.exp(simd.mul_add(second, scale, top));
                parts[0] = simd.add(simd.add(parts[0], first), second);
                simd.store(at.add(i / 2), simd.neighbours(first, second));
            }
        }
    } else {
        for (i, scores) in scores.chunks_exact_mut(S::LANES).enumerate() {
            // SAFETY: the chunk has LANES numbers.
            unsafe {
                let e = simd.exp(simd.mul_add(simd.load(scores.as_ptr()), scale, top));
                let part = &mut parts[if S::LANES < 16 { i % 2 } else { 0 }];
                *part = simd.add(*part, e);
                simd.store(scores.as_mut_ptr(), e);
            }
        }
        pack::round(scores);
    }
    fade(simd, new, sums, highest, total);
    *total += simd.sum(simd.add(parts[0], parts[1]));
}

/// Raises `highest` to `new` and scales what was summed under the old one.
#[inline(always)]
pub(super) fn fade<S: Simd>(
    simd: S,
    new: f32,
    sums: &mut [f32],
    highest: &mut f32,
    total: &mut f32,
) {
    if new > *highest {
        let fade = simd.first(simd.exp(simd.splat(*highest - new)));
        *highest = new;
        *total *= fade;
        for sum in sums {
            *sum *= fade;
        }
    }
}
