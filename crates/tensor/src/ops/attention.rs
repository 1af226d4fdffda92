//! Causal attention over flat tokens, heads grouped over fewer keys and values (arXiv 2305.13245),
//! tile by tile without the matrix of scores (arXiv 2307.08691).

use russet_kernels::Pool;
use russet_kernels::attention::{self as kernel, Keys, Pages8, Query};
use russet_kernels::rope::HeadShape;

use crate::{Ctx, Segments, Tensor};

/// One layer's keys and values in the cache. Position t of the sequence in slot s lies in page
/// `tables[s][t / 64]`.
pub struct CacheView<'a> {
    /// The numbers.
    pub pages: CachePages<'a>,
    /// Page numbers by slot.
    pub tables: &'a [Vec<u32>],
}

/// The numbers of one layer's pages.
pub enum CachePages<'a> {
    /// In `f32`.
    F32 {
        /// Pages one after another, each `[2 (keys, values), G, 64, K]`.
        arena: &'a mut [f32],
        /// Floats from one page to the next.
        stride: usize,
    },
    /// In 8 bits, with a scale a token, head, and keys and values apart.
    Int8 {
        /// Pages one after another, as the kernel orders them.
        numbers: &'a mut [i8],
        /// Theirs.
        scales: &'a mut [f32],
    },
}

impl CachePages<'_> {
    /// Adds the keys and values of new tokens to a sequence.
    fn append(&mut self, pool: &Pool, shape: HeadShape, rows: &[f32], past: usize, table: &[u32]) {
        match self {
            CachePages::F32 { arena, stride } => {
                kernel::append_to_pages(shape, rows, past, arena, *stride, table);
            }
            CachePages::Int8 { numbers, scales } => {
                kernel::append_to_pages8(pool, shape, rows, past, numbers, scales, table);
            }
        }
    }

    /// The keys and values of one sequence.
    fn keys<'k>(&'k self, table: &'k [u32]) -> Keys<'k> {
        match self {
            CachePages::F32 { arena, stride } => Keys::Pages {
                arena,
                page_stride: *stride,
                table,
            },
            CachePages::Int8 { numbers, scales } => Keys::Pages8(Pages8 {
                numbers,
                scales,
                table,
            }),
        }
    }
}

/// `softmax(q kᵀ / √K) v` of each token over its segment up to itself: `[N, (H+2G)·K]` to `[N, H·K]`.
/// With a cache, the keys and values are first appended to it and what lies before is attended to.
///
/// # Panics
/// When a cache is given while recording: gradients do not reach cached keys.
pub fn attention(
    ctx: &mut Ctx,
    shape: HeadShape,
    qkv: &Tensor,
    segments: &Segments,
    cache: Option<CacheView>,
) -> Tensor {
    let (tokens, qkv_width) = qkv.dims2();
    assert_eq!(tokens, segments.tokens(), "segments must cover all tokens");
    let width = shape.heads * shape.head_dim;
    let mut out = ctx.buffer(tokens * width);
    let mut lse = ctx.buffer(tokens * shape.heads);
    if let Some(CacheView { mut pages, tables }) = cache {
        assert!(
            !ctx.is_recording(),
            "a cache is for inference: gradients do not reach cached keys"
        );
        for s in segments.iter() {
            let rows = &qkv.data()[s.start * qkv_width..][..s.len * qkv_width];
            pages.append(&ctx.pool, shape, rows, s.past, &tables[s.slot]);
        }
        let queries: Vec<Query> = segments
            .iter()
            .map(|s| Query {
                start: s.start,
                len: s.len,
                past: s.past,
                keys: pages.keys(&tables[s.slot]),
            })
            .collect();
        kernel::attention_forward(
            &ctx.pool,
            ctx.compute,
            shape,
            qkv.data(),
            qkv_width,
            &queries,
            &mut out,
            &mut lse,
        );
    } else {
        let queries: Vec<Query> = segments
            .iter()
            .map(|s| Query::flat(shape, qkv.data(), s.start, s.len))
            .collect();
        kernel::attention_forward(
            &ctx.pool,
            ctx.compute,
            shape,
            qkv.data(),
            qkv_width,
            &queries,
            &mut out,
            &mut lse,
        );
    }
    let out = Tensor::new(&[tokens, width], out);
    if ctx.records(&[qkv]) {
        let (qkv, saved) = (qkv.clone(), out.clone());
        let runs: Vec<(usize, usize)> = segments.iter().map(|s| (s.start, s.len)).collect();
        ctx.record(&out, move |back, d_out| {
            let mut d_qkv = back.buffer(qkv.len());
            let (d_out, out) = (d_out.data(), saved.data());
            kernel::attention_backward(
                back.pool,
                back.compute,
                shape,
                qkv.data(),
                &runs,
                out,
                &lse,
                d_out,
                &mut d_qkv,
            );
            let d_qkv = Tensor::new(qkv.shape(), d_qkv);
            back.accumulate(&qkv, d_qkv);
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{check_gradients, random};

    #[test]
    fn gradients_equal_finite_differences() {
        let shape = HeadShape {
            heads: 4,
            kv_heads: 2,
            head_dim: 8,
        };
        let segments = Segments::packed(&[5, 1, 3]);
        check_gradients(&[random(&[9, 64], 1)], |ctx, x| {
            attention(ctx, shape, &x[0], &segments, None)
        });
    }
}
