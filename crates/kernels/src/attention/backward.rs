//! Attention backward: scores are formed again tile by tile from the saved logarithms of their sums.
//!
//! With P = e^(S − lse), D = Σ dO·O a row: dV = Pᵀ dO, dP = dO Vᵀ, dS = P (dP − D) / √K, dQ = dS K, dK = dSᵀ Q.
//!
//! A task holds the keys of its segment as operands, and the gradients of keys and values, and goes through the rows of its heads
//! tile by tile, so each operand is made once. Where a tile meets its own keys, half of the scores are masked: products leave out
//! what strips of 16 rows do not see, or, on AMX, of 32, which are whole squares of tiles.

use std::ops::Range;

use super::pack;
use super::tile::{Left, Right, Rows, SQUARE, TILE, product, tile_of};
use super::{Keys, seen};
use crate::matmul::{Compute, bf16, words};
use crate::norm::dot;
use crate::pool::{Disjoint, Pool};
use crate::rope::HeadShape;
use crate::scratch::with_scratch;
use crate::simd::{Body, Simd, dispatch_in};

/// Rows of a strip of a tile that meets its own keys.
#[inline(always)]
fn strip<S: Simd, const BF16: bool>() -> usize {
    if BF16 && S::TILES { SQUARE } else { 16 }
}

/// Runs the task of each of `segments` (start, len) and each kv head.
pub(super) fn each<'a>(
    pool: &Pool,
    compute: Compute,
    kv_heads: usize,
    segments: &[(usize, usize)],
    task: impl Fn(usize, usize, usize) -> Task<'a> + Sync,
) {
    // The longest first, so that none is left for the end.
    let mut order: Vec<usize> = (0..segments.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(segments[index].1));
    pool.run(segments.len() * kv_heads, |number| {
        let (start, len) = segments[order[number / kv_heads]];
        if len > 0 {
            task(start, len, number % kv_heads).run(compute, pool);
        }
    });
}

/// A run of rows, the keys that they see, and the heads that share a kv head. Rows and keys are no other task's.
#[derive(Clone, Copy)]
pub(super) struct Task<'a> {
    pub shape: HeadShape,
    pub q: &'a [f32],
    /// Between rows of queries and of their gradients.
    pub q_stride: usize,
    pub start: usize,
    pub len: usize,
    pub keys: Keys<'a>,
    pub keys_len: usize,
    /// Position of the first row, counted from the first key.
    pub past: usize,
    pub window: usize,
    /// Whether row i has the position of key i, and gradients are written; else all keys lie before the rows, and gradients are added
    /// to.
    pub own: bool,
    pub kv_head: usize,
    pub out: &'a [f32],
    pub lse: &'a [f32],
    pub d_out: &'a [f32],
    pub d_q: &'a Disjoint<'a, f32>,
    /// Where the gradients of keys go, and those of values behind them.
    pub d_kv: &'a Disjoint<'a, f32>,
    /// That of the first key.
    pub d_kv_at: usize,
    pub d_kv_stride: usize,
}

impl Task<'_> {
    pub(super) fn run(self, compute: Compute, pool: &Pool) {
        match compute {
            Compute::F32 => self.run_in::<false>(pool),
            Compute::Bf16 => self.run_in::<true>(pool),
        }
    }

    fn run_in<const BF16: bool>(self, pool: &Pool) {
        let block = self.shape.head_dim * TILE;
        let size = 5 * self.keys_len.div_ceil(TILE) * block
            + 5 * block
            + 3 * TILE * TILE
            + 2 * TILE
            + self.shape.head_dim;
        let task = self;
        with_scratch(size, |scratch| {
            dispatch_in::<BF16, _>(pool.isa(), Differentiate::<BF16> { task, scratch })
        });
    }
}

struct Differentiate<'a, const BF16: bool> {
    task: Task<'a>,
    scratch: &'a mut [f32],
}

impl<const BF16: bool> Body for Differentiate<'_, BF16> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Differentiate { task, scratch } = self;
        let Task {
            shape,
            q: queries,
            q_stride: width,
            start,
            len,
            keys: of_keys,
            keys_len,
            past,
            window,
            own: causal,
            kv_head,
            out,
            lse,
            d_out,
            d_q: d_queries,
            d_kv,
            d_kv_at,
            d_kv_stride,
        } = task;
        let (group, k) = (shape.group(), shape.head_dim);
        let q_width = shape.q_width();
        let scale = (k as f32).sqrt().recip();
        let tiles = keys_len.div_ceil(TILE);
        let depth = words::<S, BF16>(k); // of K numbers
        // Words of a tile of rows, whichever way pairs go; K and TILE are even.
        let block = depth * TILE;
        let (keys_t, rest) = scratch.split_at_mut(tiles * block); // tiles of [words(K), TILE]
        let (values_t, rest) = rest.split_at_mut(tiles * block); // the same
        let (keys, rest) = rest.split_at_mut(tiles * block); // tiles of [words(TILE), K]
        let (d_keys, rest) = rest.split_at_mut(tiles * TILE * k); // [keys, K]
        let (d_values, rest) = rest.split_at_mut(tiles * TILE * k); // [keys, K]
        let (q, rest) = rest.split_at_mut(block); // [rows, words(K)]
        let (d_o, rest) = rest.split_at_mut(block); // [rows, words(K)]
        let (q_down, rest) = rest.split_at_mut(block); // [words(rows), K]
        let (d_o_down, rest) = rest.split_at_mut(block); // [words(rows), K]
        let (d_q, rest) = rest.split_at_mut(TILE * k); // [rows, K]
        let (p, rest) = rest.split_at_mut(TILE * TILE); // [rows, TILE], then [words(rows), TILE]
        let (d_s, rest) = rest.split_at_mut(TILE * TILE); // [rows, TILE], then [words(rows), TILE]
        let (d_s_along, rest) = rest.split_at_mut(TILE * TILE); // [rows, words(TILE)]
        let (dots, rest) = rest.split_at_mut(TILE); // D, [rows]
        let (log_sums, rest) = rest.split_at_mut(TILE); // [rows]
        let d_o_row = &mut rest[..k]; // [K]
        for tile in 0..tiles {
            let count = TILE.min(keys_len - tile * TILE);
            let (key_rows, value_rows) = tile_of(shape, of_keys, tile, count, kv_head);
            let at = tile * block..(tile + 1) * block;
            pack::columns::<S, BF16>(simd, key_rows, count, k, &mut keys_t[at.clone()]);
            pack::columns::<S, BF16>(simd, value_rows, count, k, &mut values_t[at.clone()]);
            pack::down::<S, BF16>(simd, key_rows, count, k, &mut keys[at]);
        }
        d_keys.fill(0.0);
        d_values.fill(0.0);
        let row_tiles = (kv_head * group..(kv_head + 1) * group)
            .flat_map(|head| (0..len).step_by(TILE).map(move |first| (head, first)));
        for (head, first) in row_tiles {
            let rows = TILE.min(len - first);
            // Tiles of keys that some row sees: up to the one of its own, from the one where the first row's window begins.
            let from = seen(past + first, window).start / TILE;
            let to = if causal { first / TILE + 1 } else { tiles };
            if from >= to {
                continue; // of keys that lie before the rows there may be none, and nothing to add
            }
            let q_rows = Rows {
                at: &queries[(start + first) * width + head * k..],
                stride: width,
            };
            let out_at = (start + first) * q_width + head * k;
            let d_o_rows = Rows {
                at: &d_out[out_at..],
                stride: q_width,
            };
            for row in 0..rows {
                let at = out_at + row * q_width;
                let d_out = &d_out[at..][..k];
                dots[row] = if BF16 {
                    // As the products see it, so that the gradients of a row's scores add up to no more than rounding.
                    for (to, &from) in d_o_row.iter_mut().zip(d_out) {
                        *to = bf16::round(from);
                    }
                    dot(&out[at..][..k], d_o_row)
                } else {
                    dot(&out[at..][..k], d_out)
                };
                log_sums[row] = lse[(start + first + row) * shape.heads + head];
            }
            pack::down::<S, BF16>(simd, q_rows, rows, k, q_down);
            pack::down::<S, BF16>(simd, d_o_rows, rows, k, d_o_down);
            let (q, d_o) = if BF16 && S::PAIRS {
                pack::along::<S, BF16>(simd, q_rows, rows, k, q);
                pack::along::<S, BF16>(simd, d_o_rows, rows, k, d_o);
                (&*q, &*d_o)
            } else {
                (&*q_down, &*d_o_down) // single numbers go both ways
            };
            for tile in from..to {
                let first_key = tile * TILE;
                let count = TILE.min(keys_len - first_key);
                let own = causal && first_key == first; // and `count` is `rows`
                let strip = if own { strip::<S, BF16>() } else { TILE };
                let at = tile * block;
                for row in (0..rows).step_by(strip) {
                    let height = strip.min(rows - row);
                    // Keys that the strip sees, but for the mask along its diagonal.
                    let cols = if own { row + strip } else { TILE };
                    // SAFETY: [height, words(K)] times [words(K), cols] to [height, cols], rows and columns of blocks of the
                    // scratch.
                    unsafe {
                        let size = [height, cols, depth];
                        let left = left_of(q, row * depth, depth, 1);
                        let to = result_in(p, row * TILE, TILE);
                        product::<S, BF16>(simd, size, left, right_of(keys_t, at, TILE), to, false);
                        let left = left_of(d_o, row * depth, depth, 1);
                        let to = result_in(d_s, row * TILE, TILE);
                        product::<S, BF16>(
                            simd,
                            size,
                            left,
                            right_of(values_t, at, TILE),
                            to,
                            false,
                        );
                    }
                    for row in (row..row + height).step_by(2) {
                        let rows = row..rows.min(row + 2);
                        let (p, d_s) = (&mut p[..], &mut d_s[..]);
                        let scores = Scores {
                            p,
                            d_s,
                            cols,
                            count,
                            position: past + first - first_key,
                            window,
                        };
                        let terms = rows.clone().map(|row| (log_sums[row], dots[row]));
                        if BF16 && S::PAIRS {
                            scores.differentiate_pair(simd, rows, terms, scale, d_s_along);
                        } else {
                            scores.differentiate::<S, BF16>(simd, rows, terms, scale);
                        }
                    }
                    // SAFETY: [height, words(keys)] times [words(keys), K] to [height, K], likewise.
                    unsafe {
                        let left = if BF16 && S::PAIRS {
                            left_of(d_s_along, row * TILE / 2, TILE / 2, 1)
                        } else {
                            left_of(d_s, row * TILE, TILE, 1)
                        };
                        let size = [height, k, words::<S, BF16>(cols.min(count))];
                        let to = result_in(d_q, row * k, k);
                        product::<S, BF16>(
                            simd,
                            size,
                            left,
                            right_of(keys, at, k),
                            to,
                            tile > from,
                        );
                    }
                }
                for key in (0..count).step_by(strip) {
                    // Of its own tile, only rows from the key on see it.
                    let before = words::<S, BF16>(key);
                    // SAFETY: [keys, words(rows)] times [words(rows), K] to [keys, K], likewise.
                    unsafe {
                        let size = [strip.min(count - key), k, words::<S, BF16>(rows) - before];
                        let to = (first_key + key) * k;
                        let left = left_of(p, before * TILE + key, 1, TILE);
                        let right = right_of(d_o_down, before * k, k);
                        product::<S, BF16>(
                            simd,
                            size,
                            left,
                            right,
                            result_in(d_values, to, k),
                            true,
                        );
                        let left = left_of(d_s, before * TILE + key, 1, TILE);
                        let right = right_of(q_down, before * k, k);
                        product::<S, BF16>(simd, size, left, right, result_in(d_keys, to, k), true);
                    }
                }
            }
            for (row, d_q) in d_q.chunks_exact(k).take(rows).enumerate() {
                let at = (start + first + row) * width + head * k;
                // SAFETY: this head's columns of these rows are this task's alone.
                put(unsafe { d_queries.range(at, k) }, d_q, causal);
            }
        }
        for (row, (d_key, d_value)) in d_keys
            .chunks_exact(k)
            .zip(d_values.chunks_exact(k))
            .take(keys_len)
            .enumerate()
        {
            let at = d_kv_at + row * d_kv_stride + kv_head * k;
            // SAFETY: this kv head's columns of these keys are this task's alone.
            let (to_key, to_value) =
                unsafe { (d_kv.range(at, k), d_kv.range(at + shape.kv_width(), k)) };
            put(to_key, d_key, causal);
            put(to_value, d_value, causal);
        }
    }
}

/// Writes numbers, or adds them to what is there.
#[inline(always)]
fn put(to: &mut [f32], from: &[f32], writes: bool) {
    if writes {
        to.copy_from_slice(from);
    } else {
        for (to, from) in to.iter_mut().zip(from) {
            *to += from;
        }
    }
}

#[inline(always)]
fn left_of(at: &[f32], from: usize, row: usize, col: usize) -> Left {
    Left {
        at: at[from..].as_ptr(),
        row,
        col,
    }
}

#[inline(always)]
fn right_of(at: &[f32], from: usize, stride: usize) -> Right<*const f32> {
    Right {
        at: at[from..].as_ptr(),
        stride,
    }
}

#[inline(always)]
fn result_in(at: &mut [f32], from: usize, stride: usize) -> Right<*mut f32> {
    Right {
        at: at[from..].as_mut_ptr(),
        stride,
    }
}

/// A tile of scores q·k and of gradients dO·v, `[rows, TILE]`, to become probabilities and gradients of q·k.
struct Scores<'a> {
    p: &'a mut [f32],
    d_s: &'a mut [f32],
    /// Columns that have been formed, a multiple of 16.
    cols: usize,
    /// Keys that there are.
    count: usize,
    /// Position of row 0, counted from the first of these keys.
    position: usize,
    window: usize,
}

impl Scores<'_> {
    /// Gives `row` no probabilities but of what it sees, up to column `cols`.
    #[inline(always)]
    fn mask(&mut self, row: usize, cols: usize) {
        let seen = seen(self.position + row, self.window);
        for hidden in [
            0..seen.start.min(cols),
            seen.end.min(self.count).min(cols)..cols,
        ] {
            self.p[row * TILE..][hidden.clone()].fill(f32::NEG_INFINITY);
            self.d_s[row * TILE..][hidden].fill(0.0);
        }
    }

    /// The row's probabilities and gradients in place, rounded for `BF16`; `terms` are each row's logarithm and D. Behind an odd
    /// row comes one of zeros.
    #[inline(always)]
    fn differentiate<S: Simd, const BF16: bool>(
        mut self,
        simd: S,
        rows: Range<usize>,
        terms: impl Iterator<Item = (f32, f32)>,
        scale: f32,
    ) {
        for (row, terms) in rows.clone().zip(terms) {
            self.mask(row, self.cols);
            let terms = Terms::new(simd, terms, scale);
            let p = &mut self.p[row * TILE..][..self.cols];
            let d_s = &mut self.d_s[row * TILE..][..self.cols];
            for (p, d_s) in p
                .chunks_exact_mut(S::LANES)
                .zip(d_s.chunks_exact_mut(S::LANES))
            {
                // SAFETY: both chunks have LANES numbers.
                unsafe {
                    let (e, gradient) = terms.of(simd, p.as_ptr(), d_s.as_ptr());
                    simd.store(p.as_mut_ptr(), e);
                    simd.store(d_s.as_mut_ptr(), gradient);
                }
            }
            if BF16 {
                pack::round(p);
                pack::round(d_s);
            }
        }
        if BF16 && rows.len() == 1 && rows.end < TILE {
            self.p[rows.end * TILE..][..self.cols].fill(0.0);
            self.d_s[rows.end * TILE..][..self.cols].fill(0.0);
        }
    }

    /// The same of two rows, the second of which may be missing, in pairs down the rows: row 2 i and the next become row i. Pairs
    /// of gradients along the rows go to `along`, `[rows, TILE / 2]`.
    #[inline(always)]
    fn differentiate_pair<S: Simd>(
        mut self,
        simd: S,
        rows: Range<usize>,
        terms: impl Iterator<Item = (f32, f32)>,
        scale: f32,
        along: &mut [f32],
    ) {
        let step = 2 * S::LANES;
        let cols = self.cols.next_multiple_of(step);
        let mut both = [Terms::new(simd, (0.0, 0.0), scale); 2];
        for ((row, terms), to) in rows.clone().zip(terms).zip(&mut both) {
            self.mask(row, cols);
            *to = Terms::new(simd, terms, scale);
        }
        let (row, two) = (rows.start, rows.len() == 2);
        assert!(
            cols <= TILE && self.p.len() >= rows.end * TILE && self.d_s.len() >= rows.end * TILE
        );
        assert!(along.len() >= rows.end * TILE / 2);
        for col in (0..cols).step_by(step) {
            // SAFETY: columns up to `cols` of these rows lie in `p` and `d_s`, by the assertions, and are read before what lies
            // there is written; row i of pairs lies no further on than row 2 i.
            unsafe {
                let (p, d_s) = (self.p.as_mut_ptr(), self.d_s.as_mut_ptr());
                let (to_p, to_d_s) = (p.add(row / 2 * TILE + col), d_s.add(row / 2 * TILE + col));
                let along = along.as_mut_ptr().add(row * TILE / 2 + col / 2);
                let zero = simd.splat(0.0);
                let mut e = [[zero; 2]; 2]; // by row and half
                let mut gradients = [[zero; 2]; 2];
                for half in 0..2 {
                    let at = row * TILE + col + half * S::LANES;
                    (e[0][half], gradients[0][half]) = both[0].of(simd, p.add(at), d_s.add(at));
                    if two {
                        let at = at + TILE;
                        (e[1][half], gradients[1][half]) = both[1].of(simd, p.add(at), d_s.add(at));
                    }
                }
                for half in 0..2 {
                    let at = half * S::LANES;
                    simd.store(to_p.add(at), simd.pairs(e[0][half], e[1][half]));
                    let pairs = simd.pairs(gradients[0][half], gradients[1][half]);
                    simd.store(to_d_s.add(at), pairs);
                }
                simd.store(along, simd.neighbours(gradients[0][0], gradients[0][1]));
                if two {
                    let pairs = simd.neighbours(gradients[1][0], gradients[1][1]);
                    simd.store(along.add(TILE / 2), pairs);
                }
            }
        }
    }
}

/// What makes a row's probabilities and gradients.
#[derive(Clone, Copy)]
struct Terms<V> {
    lse: V,
    dot: V,
    scale: V,
}

impl<V: Copy> Terms<V> {
    #[inline(always)]
    fn new<S: Simd<V = V>>(simd: S, (lse, dot): (f32, f32), scale: f32) -> Terms<V> {
        Terms {
            lse: simd.splat(lse),
            dot: simd.splat(dot),
            scale: simd.splat(scale),
        }
    }

    /// From q·k and dO·v the probability and the gradient of q·k.
    ///
    /// # Safety
    /// Both are readable for LANES numbers.
    #[inline(always)]
    unsafe fn of<S: Simd<V = V>>(&self, simd: S, score: *const f32, d_p: *const f32) -> (V, V) {
        // SAFETY: as the caller promises.
        let (score, d_p) = unsafe { (simd.load(score), simd.load(d_p)) };
        let e = simd.exp(simd.sub(simd.mul(score, self.scale), self.lse));
        let gradient = simd.mul(simd.mul(e, simd.sub(d_p, self.dot)), self.scale);
        (e, gradient)
    }
}
