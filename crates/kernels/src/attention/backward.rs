//! Attention backward: scores are formed again tile by tile from the saved logarithms of their sums.
//!
//! With P = e^(S − lse), D = Σ dO·O a row: dV = Pᵀ dO, dP = dO Vᵀ, dS = P (dP − D) / √K, dQ = dS K, dK = dSᵀ Q.

use super::Query;
use super::tile::{Left, Right, Rows, TILE, gather, product, tile_of, transpose};
use crate::norm::dot;
use crate::pool::{Disjoint, Pool};
use crate::rope::HeadShape;
use crate::scratch::with_scratch;
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
            let size = shape.group() * len + 8 * shape.head_dim * TILE + 2 * TILE * TILE;
            with_scratch(size, |scratch| {
                dispatch(pool.isa(), Differentiate { task, scratch })
            });
        }
    });
}

/// One segment and the heads that share a kv head.
#[derive(Clone, Copy)]
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

struct Differentiate<'a> {
    task: Task<'a>,
    scratch: &'a mut [f32],
}

impl Body for Differentiate<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Differentiate { task, scratch } = self;
        let Task {
            shape,
            qkv,
            start,
            len,
            kv_head,
            out,
            lse,
            d_out,
            d_qkv,
        } = task;
        let (group, k) = (shape.group(), shape.head_dim);
        let (width, q_width) = (shape.qkv_width(), shape.q_width());
        let scale = (k as f32).sqrt().recip();
        let segment = Query::flat(shape, qkv, start, len);
        let (dots, rest) = scratch.split_at_mut(group * len); // D, [group, len]
        let (keys_t, rest) = rest.split_at_mut(k * TILE); // [K, TILE]
        let (values_t, rest) = rest.split_at_mut(k * TILE); // [K, TILE]
        let (keys, rest) = rest.split_at_mut(TILE * k); // [TILE, K], as all until `p`
        let (d_keys, rest) = rest.split_at_mut(TILE * k);
        let (d_values, rest) = rest.split_at_mut(TILE * k);
        let (q, rest) = rest.split_at_mut(TILE * k);
        let (d_o, rest) = rest.split_at_mut(TILE * k);
        let (p, rest) = rest.split_at_mut(TILE * TILE); // [rows, TILE]
        let d_s = &mut rest[..TILE * TILE]; // [rows, TILE]
        for (h, dots) in dots.chunks_exact_mut(len).enumerate() {
            for (row, to) in dots.iter_mut().enumerate() {
                let at = (start + row) * q_width + (kv_head * group + h) * k;
                *to = dot(&out[at..][..k], &d_out[at..][..k]);
            }
        }
        for tile in 0..len.div_ceil(TILE) {
            let first_key = tile * TILE;
            let count = TILE.min(len - first_key);
            let (key_rows, value_rows) = tile_of(shape, segment.keys, tile, count, kv_head);
            transpose(simd, key_rows, count, k, keys_t);
            transpose(simd, value_rows, count, k, values_t);
            gather(key_rows, count, k, keys);
            d_keys.fill(0.0);
            d_values.fill(0.0);
            for (h, dots) in dots.chunks_exact(len).enumerate() {
                let head = kv_head * group + h;
                for first in (first_key..len).step_by(TILE) {
                    let rows = TILE.min(len - first);
                    let q_at = (start + first) * width + head * k;
                    gather(
                        Rows {
                            at: &qkv[q_at..],
                            stride: width,
                        },
                        rows,
                        k,
                        q,
                    );
                    let d_at = (start + first) * q_width + head * k;
                    gather(
                        Rows {
                            at: &d_out[d_at..],
                            stride: q_width,
                        },
                        rows,
                        k,
                        d_o,
                    );
                    let plain = |at: &[f32], row: usize| Left {
                        at: at.as_ptr(),
                        row,
                        col: 1,
                    };
                    let turned = |at: &[f32]| Left {
                        at: at.as_ptr(),
                        row: 1,
                        col: TILE,
                    };
                    let right = |at: &[f32], stride: usize| Right {
                        at: at.as_ptr(),
                        stride,
                    };
                    let to = |at: &mut [f32], stride: usize| Right {
                        at: at.as_mut_ptr(),
                        stride,
                    };
                    // SAFETY: [rows, K] times [K, TILE] to [rows, TILE], all of the scratch, rows ≤ TILE.
                    unsafe {
                        let size = [rows, TILE, k];
                        product(
                            simd,
                            size,
                            plain(q, k),
                            right(keys_t, TILE),
                            to(p, TILE),
                            false,
                        );
                        product(
                            simd,
                            size,
                            plain(d_o, k),
                            right(values_t, TILE),
                            to(d_s, TILE),
                            false,
                        );
                    }
                    for row in 0..rows {
                        let seen = (first + row + 1 - first_key).min(TILE);
                        let lse = lse[(start + first + row) * shape.heads + head];
                        let (p, d_s) =
                            (&mut p[row * TILE..][..TILE], &mut d_s[row * TILE..][..TILE]);
                        gradients_of_scores(simd, p, d_s, seen, lse, dots[first + row], scale);
                    }
                    let d_q = d_qkv.pointer(q_at, (rows - 1) * width + k);
                    // SAFETY: the first two multiply [count, rows] by [rows, K] into [count, K], all of the
                    // scratch. The third writes K columns of this head in `rows` rows of this segment, which
                    // are this task's alone.
                    unsafe {
                        let size = [count, k, rows];
                        product(simd, size, turned(p), right(d_o, k), to(d_values, k), true);
                        product(simd, size, turned(d_s), right(q, k), to(d_keys, k), true);
                        let d_q = Right {
                            at: d_q,
                            stride: width,
                        };
                        product(
                            simd,
                            [rows, k, count],
                            plain(d_s, TILE),
                            right(keys, k),
                            d_q,
                            tile > 0,
                        );
                    }
                }
            }
            for row in 0..count {
                let at = (start + first_key + row) * width + shape.q_width() + kv_head * k;
                // SAFETY: this kv head's columns of this segment's rows are this task's alone.
                let (to_key, to_value) =
                    unsafe { (d_qkv.range(at, k), d_qkv.range(at + shape.kv_width(), k)) };
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
