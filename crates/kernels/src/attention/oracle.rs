//! Attention as the formula has it: all scores of a row, in f64.

use std::borrow::Cow;

use super::{Keys, PAGE_TOKENS, Query, page_len, seen};
use crate::rope::HeadShape;

/// The key and the value of a position.
fn key_value<'a>(
    shape: HeadShape,
    keys: &Keys<'a>,
    position: usize,
    kv_head: usize,
) -> (Cow<'a, [f32]>, Cow<'a, [f32]>) {
    let head_dim = shape.head_dim;
    match *keys {
        Keys::Rows {
            keys,
            values,
            stride,
        } => {
            let at = position * stride + kv_head * head_dim;
            (
                keys[at..][..head_dim].into(),
                values[at..][..head_dim].into(),
            )
        }
        Keys::Pages {
            arena,
            page_stride,
            table,
        } => {
            let page = &arena[table[position / PAGE_TOKENS] as usize * page_stride..];
            let at = (kv_head * PAGE_TOKENS + position % PAGE_TOKENS) * head_dim;
            (
                page[at..][..head_dim].into(),
                page[shape.kv_heads * PAGE_TOKENS * head_dim + at..][..head_dim].into(),
            )
        }
        Keys::Pages16 { arena, table } => {
            let page = &arena[table[position / PAGE_TOKENS] as usize * page_len(shape)..];
            let at = (kv_head * PAGE_TOKENS + position % PAGE_TOKENS) * head_dim;
            let wide = |at: usize| page[at..][..head_dim].iter().map(|x| x.to_f32()).collect();
            (wide(at), wide(shape.kv_width() * PAGE_TOKENS + at))
        }
        Keys::Pages8(pages) => {
            let tile = pages.tile(shape, position / PAGE_TOKENS, kv_head);
            let (t, width) = (position % PAGE_TOKENS, head_dim.next_multiple_of(16));
            let key = |i: usize| f32::from(tile.keys[(i / 2 * PAGE_TOKENS + t) * 2 + i % 2]);
            let value = |i: usize| f32::from(tile.values[(t / 2 * width + i) * 2 + t % 2]);
            (
                (0..head_dim).map(|i| tile.key_scales[t] * key(i)).collect(),
                (0..head_dim)
                    .map(|i| tile.value_scales[t] * value(i))
                    .collect(),
            )
        }
    }
}

/// Probabilities of the keys `0..=position` for one row and head, and ln Σ exp; 0 of those outside the window.
fn probabilities(
    shape: HeadShape,
    q: &[f32],
    keys: &Keys,
    kv_head: usize,
    position: usize,
    window: usize,
) -> (Vec<f64>, f64) {
    let scale = 1.0 / (shape.head_dim as f64).sqrt();
    let scores: Vec<f64> = (0..=position)
        .map(|t| match seen(position, window).contains(&t) {
            true => scale * dot(q, &key_value(shape, keys, t, kv_head).0),
            false => f64::NEG_INFINITY,
        })
        .collect();
    let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = highest + scores.iter().map(|s| (s - highest).exp()).sum::<f64>().ln();
    (scores.iter().map(|s| (s - lse).exp()).collect(), lse)
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(&a, &b)| f64::from(a) * f64::from(b))
        .sum()
}

/// See [`super::attention_forward`].
pub(crate) fn forward(
    shape: HeadShape,
    q: &[f32],
    q_stride: usize,
    queries: &[Query],
    out: &mut [f32],
    lse: &mut [f32],
) {
    let (heads, head_dim) = (shape.heads, shape.head_dim);
    for query in queries {
        for (row, head) in (0..query.len).flat_map(|row| (0..heads).map(move |head| (row, head))) {
            let n = query.start + row;
            let q = &q[n * q_stride + head * head_dim..][..head_dim];
            let kv_head = head / shape.group();
            let (position, window) = (query.past + row, query.window);
            let (p, log_sum) = probabilities(shape, q, &query.keys, kv_head, position, window);
            lse[n * heads + head] = log_sum as f32;
            let mut sum = vec![0.0f64; head_dim];
            for (t, p) in p.iter().enumerate() {
                let (_, value) = key_value(shape, &query.keys, t, kv_head);
                sum.iter_mut()
                    .zip(&*value)
                    .for_each(|(sum, &v)| *sum += p * f64::from(v));
            }
            let out = &mut out[(n * heads + head) * head_dim..][..head_dim];
            out.iter_mut()
                .zip(&sum)
                .for_each(|(out, &sum)| *out = sum as f32);
        }
    }
}

/// See [`super::attention_backward`].
pub(crate) fn backward(
    shape: HeadShape,
    window: usize,
    qkv: &[f32],
    segments: &[(usize, usize)],
    d_out: &[f32],
    d_qkv: &mut [f32],
) {
    let (heads, head_dim, width) = (shape.heads, shape.head_dim, shape.qkv_width());
    let scale = 1.0 / (head_dim as f64).sqrt();
    for &(start, len) in segments {
        let query = Query::flat(shape, qkv, start, len);
        let mut d = vec![0.0f64; len * width];
        for (row, head) in (0..len).flat_map(|row| (0..heads).map(move |head| (row, head))) {
            let kv_head = head / shape.group();
            let q = &qkv[(start + row) * width + head * head_dim..][..head_dim];
            let d_out = &d_out[((start + row) * heads + head) * head_dim..][..head_dim];
            let (p, _) = probabilities(shape, q, &query.keys, kv_head, row, window);
            let d_p: Vec<f64> = (0..=row)
                .map(|t| dot(d_out, &key_value(shape, &query.keys, t, kv_head).1))
                .collect();
            let mean: f64 = p.iter().zip(&d_p).map(|(p, d)| p * d).sum();
            for t in 0..=row {
                let (key, _) = key_value(shape, &query.keys, t, kv_head);
                let d_score = p[t] * (d_p[t] - mean) * scale;
                for i in 0..head_dim {
                    let key_at = t * width + (heads + kv_head) * head_dim + i;
                    d[row * width + head * head_dim + i] += d_score * f64::from(key[i]);
                    d[key_at] += d_score * f64::from(q[i]);
                    d[key_at + shape.kv_width()] += p[t] * f64::from(d_out[i]);
                }
            }
        }
        for (to, from) in d_qkv[start * width..].iter_mut().zip(&d) {
            *to = *from as f32;
        }
    }
}
