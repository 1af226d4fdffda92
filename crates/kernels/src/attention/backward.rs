//! Attention backward: scores are formed again tile by tile from the saved logarithms of their sums.
//!
//! With P = e^(S − lse), D = Σ dO·O a row: dV = Pᵀ dO, dP = dO Vᵀ, dS = P (dP − D) / √K, dQ = dS K, dK = dSᵀ Q.

use super::Query;
use super::tile::{Left, Scratch, TILE, product, tile_of, transpose};
use crate::pool::{Disjoint, Pool};
use crate::rope::HeadShape;
use crate::simd::{Body, Simd, dispatch};

/// See [`super::attention_backward`].
pub(super) fn backward(
    pool: &Pool,
    shape: HeadShape,
    qkv: &[f32],
    segments: &[(usize, usize)],
    out: &[f32],
    lse: &[f32],
    d_out: &[f32],
    d_qkv: &mut [f32],
) {
    let d_qkv = Disjoint::new(d_qkv);
    // The longest first, so that none is left for the end.
    let mut order: Vec<usize> = (0..segments.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(segments[index].1));
    pool.run(segments.len() * shape.kv_heads, |task| {
        let (start, len) = segments[order[task / shape.kv_heads]];
        if len > 0 {
            let kv_head = task % shape.kv_heads;
            let task = Task {
                shape,
                qkv,
                start,
                len,
                kv_head,
                out,
                lse,
                d_out,
                d_qkv: &d_qkv,
            };
            dispatch(pool.isa(), task);
        }
    });
}

/// One segment and the heads that share a kv head.
struct Task<'a> {
    shape: HeadShape,
    qkv: &'a [f32],
    start: usize,
    len: usize,
    kv_head: usize,
    out: &'a [f32],
    lse: &'a [f32],
    d_out: &'a [f32],
    d_qkv: &'a Disjoint<'a, f32>,
}

impl Body for Task<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Task {
            shape,
            start,
            len,
            kv_head,
            ..
        } = self;
        let (group, k, width, q_width) = (
            shape.group(),
            shape.head_dim,
            shape.qkv_width(),
            shape.q_width(),
        );
        let scale = (k as f32).sqrt().recip();
        let query = Query::flat(shape, self.qkv, start, len);
        let mut scratch = Scratch::take(group * len + 4 * k * TILE + 2 * TILE * TILE);
        let scratch = scratch.floats();
        let (dots, rest) = scratch.split_at_mut(group * len); // D, [group, len]
        let (keys_t, rest) = rest.split_at_mut(k * TILE); // [K, TILE]
        let (values_t, rest) = rest.split_at_mut(k * TILE); // [K, TILE]
        let (d_keys, rest) = rest.split_at_mut(TILE * k); // [TILE, K]
        let (d_values, rest) = rest.split_at_mut(TILE * k); // [TILE, K]
        let (p, d_s) = rest.split_at_mut(TILE * TILE); // [rows, TILE] each
        for (h, dots) in dots.chunks_exact_mut(len).enumerate() {
            for (row, dot) in dots.iter_mut().enumerate() {
                let at = (start + row) * q_width + (kv_head * group + h) * k;
                let pairs = self.out[at..][..k].iter().zip(&self.d_out[at..][..k]);
                *dot = pairs.map(|(o, d)| o * d).sum();
            }
        }
        for tile in 0..len.div_ceil(TILE) {
            let first_key = tile * TILE;
            let count = TILE.min(len - first_key);
            let (keys, values) = tile_of(shape, query.keys, tile, count, kv_head);
            transpose(keys, count, k, keys_t);
            transpose(values, count, k, values_t);
            d_keys.fill(0.0);
            d_values.fill(0.0);
            for (h, dots) in dots.chunks_exact(len).enumerate() {
                let head = kv_head * group + h;
                for first in (first_key..len).step_by(TILE) {
                    let rows = TILE.min(len - first);
                    let q = &self.qkv[(start + first) * width + head * k..];
                    let q = &q[..(rows - 1) * width + k];
                    let d_out = &self.d_out[(start + first) * q_width + head * k..];
                    let d_out = &d_out[..(rows - 1) * q_width + k];
                    let q_left = Left {
                        at: q.as_ptr(),
                        row: width,
                        col: 1,
                    };
                    let d_left = Left {
                        at: d_out.as_ptr(),
                        row: q_width,
                        col: 1,
                    };
                    // SAFETY: `rows` rows of K numbers, as cut above, times [K, TILE] to [rows, TILE] of the scratch.
                    unsafe {
                        let size = [rows, TILE, k];
                        product(
                            simd,
                            size,
                            q_left,
                            (keys_t.as_ptr(), TILE),
                            (p.as_mut_ptr(), TILE),
                            false,
                        );
                        product(
                            simd,
                            size,
                            d_left,
                            (values_t.as_ptr(), TILE),
                            (d_s.as_mut_ptr(), TILE),
                            false,
                        );
                    }
                    for row in 0..rows {
                        let seen = (first + row + 1 - first_key).min(TILE);
                        let lse = self.lse[(start + first + row) * shape.heads + head];
                        let (p, d_s) =
                            (&mut p[row * TILE..][..TILE], &mut d_s[row * TILE..][..TILE]);
                        gradients_of_scores(simd, p, d_s, seen, lse, dots[first + row], scale);
                    }
                    let transposed = |at: &[f32]| Left {
                        at: at.as_ptr(),
                        row: 1,
                        col: TILE,
                    };
                    let q_at = (start + first) * width + head * k;
                    // SAFETY: the first two multiply [count, rows] by rows of K numbers into [count, K] of the scratch. The third
                    // writes K columns of this head in `rows` rows of this segment, which are this task's alone.
                    unsafe {
                        let size = [count, k, rows];
                        product(
                            simd,
                            size,
                            transposed(p),
                            (d_out.as_ptr(), q_width),
                            (d_values.as_mut_ptr(), k),
                            true,
                        );
                        product(
                            simd,
                            size,
                            transposed(d_s),
                            (q.as_ptr(), width),
                            (d_keys.as_mut_ptr(), k),
                            true,
                        );
                        let left = Left {
                            at: d_s.as_ptr(),
                            row: TILE,
                            col: 1,
                        };
                        let d_q = self.d_qkv.pointer(q_at, (rows - 1) * width + k);
                        product(
                            simd,
                            [rows, k, count],
                            left,
                            (keys.at.as_ptr(), keys.stride),
                            (d_q, width),
                            tile > 0,
                        );
                    }
                }
            }
            for row in 0..count {
                let at = (start + first_key + row) * width + q_width + kv_head * k;
                // SAFETY: this kv head's columns of this segment's rows are this task's alone.
                let (to_key, to_value) = unsafe {
                    (
                        self.d_qkv.range(at, k),
                        self.d_qkv.range(at + shape.kv_width(), k),
                    )
                };
                to_key.copy_from_slice(&d_keys[row * k..][..k]);
                to_value.copy_from_slice(&d_values[row * k..][..k]);
            }
        }
    }
}

/// Scores q·k in `p` and gradients of probabilities in `d_s` become probabilities and gradients of q·k; zeros from `seen` on.
#[inline(always)]
fn gradients_of_scores<S: Simd>(
    simd: S,
    p: &mut [f32],
    d_s: &mut [f32],
    seen: usize,
    lse: f32,
    dot: f32,
    scale: f32,
) {
    p[seen..].fill(f32::NEG_INFINITY);
    d_s[seen..].fill(0.0);
    let (lse, dot, scale) = (simd.splat(lse), simd.splat(dot), simd.splat(scale));
    for (p, d) in p
        .chunks_exact_mut(S::LANES)
        .zip(d_s.chunks_exact_mut(S::LANES))
    {
        // SAFETY: both chunks have LANES numbers.
        unsafe {
            let e = simd.exp(simd.sub(simd.mul(simd.load(p.as_ptr()), scale), lse));
            let gradient = simd.mul(simd.mul(e, simd.sub(simd.load(d.as_ptr()), dot)), scale);
            simd.store(p.as_mut_ptr(), e);
            simd.store(d.as_mut_ptr(), gradient);
        }
    }
}
