//! Causal attention over flat tokens, heads grouped over fewer keys and values (arXiv 2305.13245),
//! tile by tile without the matrix of scores (arXiv 2307.08691).

use half::f16;
use russet_kernels::Pool;
use russet_kernels::attention::{self as kernel, Keys, KvFormat, Pages8, Query};
use russet_kernels::rope::HeadShape;

use crate::segments::Segment;
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
    /// In half precision.
    F16 {
        /// Pages one after another, as those of `f32`.
        arena: &'a mut [f16],
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
    /// Bytes of the keys and values of one token.
    pub fn token_bytes(&self, shape: HeadShape) -> usize {
        let format = match self {
            CachePages::F32 { .. } => KvFormat::F32,
            CachePages::F16 { .. } => KvFormat::F16,
            CachePages::Int8 { .. } => KvFormat::Int8,
        };
        format.page_bytes(shape) / kernel::PAGE_TOKENS
    }

    /// Adds the keys and values of new tokens to a sequence.
    fn append(&mut self, pool: &Pool, shape: HeadShape, rows: &[f32], past: usize, table: &[u32]) {
        match self {
            CachePages::F32 { arena, stride } => {
                kernel::append_to_pages(shape, rows, past, arena, *stride, table);
            }
            CachePages::F16 { arena } => {
                let stride = kernel::page_len(shape);
                kernel::append_to_pages(shape, rows, past, arena, stride, table);
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
            CachePages::F16 { arena } => Keys::Pages16 { arena, table },
            CachePages::Int8 { numbers, scales } => Keys::Pages8(Pages8 {
                numbers,
                scales,
                table,
            }),
        }
    }
}

/// `softmax(q kᵀ / √K) v` of each token over its segment up to itself, as far as `window` reaches back
/// ([`NO_WINDOW`](kernel::NO_WINDOW): to the beginning): to `[N, H·K]`.
///
/// `q` is a packed `[N, (H+2G)·K]` with keys and values of its own; with a cache, they are first appended to it and what lies before
/// is attended to. Or it is queries alone, `[N, H·K]`, for keys and values of another layer: `kv [N, 2G·K]`, or those in that layer's
/// cache.
///
/// # Panics
/// When a cache is given while recording: gradients do not reach cached keys. When queries alone have neither keys nor cache.
pub fn attention(
    ctx: &mut Ctx,
    shape: HeadShape,
    window: usize,
    q: &Tensor,
    kv: Option<&Tensor>,
    segments: &Segments,
    cache: Option<CacheView>,
) -> Tensor {
    let (tokens, q_width) = q.dims2();
    assert_eq!(tokens, segments.tokens(), "segments must cover all tokens");
    let packed = q_width == shape.qkv_width();
    assert!(
        packed || q_width == shape.q_width() && (kv.is_some() || cache.is_some()),
        "queries of {q_width} numbers need keys of {shape:?}"
    );
    let width = shape.q_width();
    let mut out = ctx.buffer(tokens * width);
    let mut lse = ctx.buffer(tokens * shape.heads);
    let mut cache = cache;
    if let Some(CacheView { pages, tables }) = &mut cache {
        assert!(
            !ctx.is_recording(),
            "a cache is for inference: gradients do not reach cached keys"
        );
        for s in segments.iter().filter(|_| packed) {
            let rows = &q.data()[s.start * q_width..][..s.len * q_width];
            pages.append(&ctx.pool, shape, rows, s.past, &tables[s.slot]);
        }
    }
    let query = |s: &Segment| match (&cache, kv) {
        (Some(CacheView { pages, tables }), _) => Query {
            start: s.start,
            len: s.len,
            past: s.past,
            window,
            keys: pages.keys(&tables[s.slot]),
        },
        (None, None) => Query::flat(shape, q.data(), s.start, s.len).within(window),
        (None, Some(kv)) => Query::shared(shape, kv.data(), s.start, s.len).within(window),
    };
    let queries: Vec<Query> = segments.iter().map(query).collect();
    kernel::attention_forward(
        &ctx.pool,
        ctx.compute,
        shape,
        q.data(),
        q_width,
        &queries,
        &mut out,
        &mut lse,
    );
    let out = Tensor::new(&[tokens, width], out);
    if ctx.records(&[q]) || kv.is_some_and(|kv| ctx.records(&[kv])) {
        let (q, kv, saved) = (q.clone(), kv.cloned(), out.clone());
        let runs: Vec<(usize, usize)> = segments.iter().map(|s| (s.start, s.len)).collect();
        ctx.record(&out, move |back, d_out| {
            let mut d_q = back.buffer(q.len());
            let (d_out, out) = (d_out.data(), saved.data());
            let (pool, compute) = (back.pool, back.compute);
            match kv {
                None => kernel::attention_backward(
                    pool,
                    compute,
                    shape,
                    window,
                    q.data(),
                    &runs,
                    out,
                    &lse,
                    d_out,
                    &mut d_q,
                ),
                Some(kv) => {
                    let mut d_kv = back.buffer(kv.len());
                    kernel::attention_shared_backward(
                        pool,
                        compute,
                        shape,
                        window,
                        [q.data(), kv.data()],
                        &runs,
                        [out, &lse, d_out],
                        [&mut d_q, &mut d_kv],
                    );
                    if back.wants(&kv) {
                        let d_kv = Tensor::new(kv.shape(), d_kv);
                        back.accumulate(&kv, d_kv);
                    }
                }
            }
            if back.wants(&q) {
                let d_q = Tensor::new(q.shape(), d_q);
                back.accumulate(&q, d_q);
            }
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{check_gradients, random};

    const SHAPE: HeadShape = HeadShape {
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
    };

    #[test]
    fn gradients_equal_finite_differences() {
        let segments = Segments::packed(&[5, 1, 3]);
        for window in [kernel::NO_WINDOW, 1, 3] {
            check_gradients(&[random(&[9, 64], 1)], |ctx, x| {
                attention(ctx, SHAPE, window, &x[0], None, &segments, None)
            });
        }
    }

    #[test]
    fn gradients_of_another_layers_keys_equal_finite_differences() {
        let segments = Segments::packed(&[5, 1, 3]);
        for window in [kernel::NO_WINDOW, 2] {
            check_gradients(&[random(&[9, 32], 1), random(&[9, 32], 2)], |ctx, x| {
                attention(ctx, SHAPE, window, &x[0], Some(&x[1]), &segments, None)
            });
        }
    }
}
