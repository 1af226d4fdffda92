//! Causal attention with grouped key heads on flat tokens, forward and backward.
//!
//! Scores exist a tile of 64 keys at a time, never as a matrix (FlashAttention-2, arXiv 2307.08691). Tiles begin at multiples
//! of 64 positions wherever the keys lie, and every element of every product is one chain in a fixed order, so a row has the same
//! bits in training, prefill of any chunks, decoding, and any batch.
//!
//! With a window W a row sees its own key and the W - 1 before it (arXiv 2310.06825). A tile that lies outside the windows of some rows of
//! a product is left out for these, so that work goes with N·W, and a row takes in the same tiles whoever is beside it.
//!
//! Products multiply in f32, or in bf16 as [`crate::matmul_in`] does: q, k, v, probabilities and gradients are rounded as operands,
//! sums and the softmax are f32. Then AVX2 and AVX-512 give the same bits as far as dense products do; AMX tiles sum in an order of
//! their own, and the portable body's exponentials round otherwise.
//!
//! The oracle follows the formula in f64.

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::matmul::Compute;
use crate::pool::{Disjoint, Pool};
use crate::profile::{Kernel, span};
use crate::rope::HeadShape;

mod backward;
mod forward;
mod forward8;
#[cfg(test)]
mod oracle;
mod pack;
mod pages8;
mod part;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests8;
mod tile;

pub use pages8::{Pages8, append_to_pages8, page8_len, page8_scales};
pub use part::{Part, attention_part_backward, attention_part_forward};

/// The widest head over [`Pages8`]: products of wider ones would overflow 32 bits.
pub const WIDEST_HEAD8: usize = 512;

/// Tokens of a cache page, and keys of a tile.
pub const PAGE_TOKENS: usize = 64;

/// The window of rows that see all keys before them.
pub const NO_WINDOW: usize = usize::MAX;

/// The keys that a row at `position` sees.
#[inline(always)]
fn seen(position: usize, window: usize) -> Range<usize> {
    (position + 1).saturating_sub(window)..position + 1
}

/// Where the keys and values of one sequence lie.
#[derive(Clone, Copy, Debug)]
pub enum Keys<'a> {
    /// Rows at a distance of `stride`: the key of position t and kv-head g is `keys[t * stride + g * K..][..K]`.
    Rows {
        /// From the first key on, up to the last one or the end of its row.
        keys: &'a [f32],
        /// From the first value on.
        values: &'a [f32],
        /// Distance between rows.
        stride: usize,
    },
    /// Pages of [`PAGE_TOKENS`] positions: position t lies in page `table[t / 64]`; page p begins at
    /// `arena[p * page_stride]` and is laid out `[2 (keys, values), G, 64, K]`.
    Pages {
        /// All pages.
        arena: &'a [f32],
        /// Distance between pages, at least [`page_len`].
        page_stride: usize,
        /// The pages of this sequence in order.
        table: &'a [u32],
    },
    /// The same pages of half precision, one after another, for inference: products are those of the same numbers in f32.
    Pages16 {
        /// All pages; page p begins at `p * page_len(shape)`.
        arena: &'a [f16],
        /// The pages of this sequence in order.
        table: &'a [u32],
    },
    /// Pages of 8-bit numbers, for inference: products are of integers, exact, whatever type other products multiply in.
    Pages8(Pages8<'a>),
}

impl<'a> Keys<'a> {
    /// Rows `[start, start + len)` of a packed `kv` `[M, 2G·K]`, keys and then values.
    pub fn packed(shape: HeadShape, kv: &'a [f32], start: usize, len: usize) -> Keys<'a> {
        let stride = 2 * shape.kv_width();
        let rows = &kv[start * stride..(start + len) * stride];
        Keys::Rows {
            keys: rows,
            values: rows.get(shape.kv_width()..).unwrap_or(&[]),
            stride,
        }
    }

    /// How many of the first `count` there are: a table has all pages that it is asked for.
    fn of(&self, count: usize) -> usize {
        match self {
            Keys::Rows { keys, stride, .. } => count.min(keys.len().div_ceil(*stride)),
            Keys::Pages { .. } | Keys::Pages16 { .. } | Keys::Pages8(_) => count,
        }
    }
}

/// Rows `[start, start + len)` of q, which are positions `past..past + len` of a sequence with these keys.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// First row.
    pub start: usize,
    /// Number of rows.
    pub len: usize,
    /// Position of the first row: keys before it.
    pub past: usize,
    /// W, how many keys a row sees at most: its own and those just before it. [`NO_WINDOW`] for all of them; never 0.
    pub window: usize,
    /// Keys and values of positions `0..past + len`; of rows that end before, row i sees those that there are.
    pub keys: Keys<'a>,
}

impl<'a> Query<'a> {
    /// A whole sequence in rows `[start, start + len)` of a packed `qkv` `[N, (H+2G)·K]`, attending to itself.
    pub fn flat(shape: HeadShape, qkv: &'a [f32], start: usize, len: usize) -> Self {
        let stride = shape.qkv_width();
        let row = &qkv[start * stride..(start + len) * stride];
        let keys = if len == 0 {
            &[]
        } else {
            &row[shape.q_width()..]
        };
        let values = if len == 0 {
            &[]
        } else {
            &row[shape.q_width() + shape.kv_width()..]
        };
        Query {
            start,
            len,
            past: 0,
            window: NO_WINDOW,
            keys: Keys::Rows {
                keys,
                values,
                stride,
            },
        }
    }

    /// A whole sequence in rows `[start, start + len)` of queries, attending to the same rows of a packed `kv` `[N, 2G·K]`: keys and
    /// values of another layer.
    pub fn shared(shape: HeadShape, kv: &'a [f32], start: usize, len: usize) -> Self {
        Query {
            start,
            len,
            past: 0,
            window: NO_WINDOW,
            keys: Keys::packed(shape, kv, start, len),
        }
    }

    /// The same with a window.
    pub fn within(self, window: usize) -> Self {
        Query { window, ..self }
    }
}

/// What pages of keys and values are of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvFormat {
    /// As they are computed.
    #[default]
    F32,
    /// Half precision: half of the memory. Numbers beyond 65,504 become that.
    F16,
    /// 8 bits, with a scale a token and head, keys and values apart: about a quarter of the memory.
    Int8,
}

impl KvFormat {
    /// The widest head that it can keep.
    pub fn widest_head(self) -> usize {
        match self {
            KvFormat::F32 | KvFormat::F16 => usize::MAX,
            KvFormat::Int8 => WIDEST_HEAD8,
        }
    }

    /// Bytes of a page.
    pub fn page_bytes(self, shape: HeadShape) -> usize {
        match self {
            KvFormat::F32 => size_of::<f32>() * page_len(shape),
            KvFormat::F16 => size_of::<f16>() * page_len(shape),
            KvFormat::Int8 => page8_len(shape) + size_of::<f32>() * page8_scales(shape),
        }
    }
}

/// Numbers of one cache page of floats: keys and values of [`PAGE_TOKENS`] positions.
pub fn page_len(shape: HeadShape) -> usize {
    2 * shape.kv_width() * PAGE_TOKENS
}

/// A float that pages are of.
pub trait PageFloat: Copy {
    /// The nearest ones of `from`, which is as long.
    fn round(from: &[f32], to: &mut [Self]);
}

impl PageFloat for f32 {
    fn round(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl PageFloat for f16 {
    fn round(from: &[f32], to: &mut [f16]) {
        // An infinity that was none would be a fault of every row of a product, those that do not see it among them.
        const LARGEST: f32 = 65_504.0;
        let mut chunk = [0.0; 64];
        for (from, to) in from.chunks(chunk.len()).zip(to.chunks_mut(chunk.len())) {
            let chunk = &mut chunk[..from.len()];
            for (x, &from) in chunk.iter_mut().zip(from) {
                *x = match from.is_finite() {
                    true => from.clamp(-LARGEST, LARGEST),
                    false => from,
                };
            }
            to.convert_from_f32_slice(chunk);
        }
    }
}

/// Copies the keys and values of new tokens, rows of a packed `qkv` `[n, (H+2G)·K]`, to positions `past..past + n` of a sequence.
///
/// # Panics
/// When the table is too short or a page lies outside the arena.
pub fn append_to_pages<T: PageFloat>(
    shape: HeadShape,
    qkv: &[f32],
    past: usize,
    arena: &mut [T],
    page_stride: usize,
    table: &[u32],
) {
    let _span = span(Kernel::Attention);
    let (width, head_dim) = (shape.qkv_width(), shape.head_dim);
    assert_eq!(
        qkv.len() % width,
        0,
        "{} elements are no rows of {width}",
        qkv.len()
    );
    for (n, row) in qkv.chunks_exact(width).enumerate() {
        let position = past + n;
        let page = table[position / PAGE_TOKENS] as usize * page_stride;
        let page = &mut arena[page..][..page_len(shape)];
        for (head, from) in row[shape.q_width()..].chunks_exact(head_dim).enumerate() {
            let at = (head * PAGE_TOKENS + position % PAGE_TOKENS) * head_dim;
            T::round(from, &mut page[at..][..head_dim]);
        }
    }
}

/// out = softmax(q kᵀ / √K) v for each row, over the keys at or before its position, within its window.
///
/// `q`: row n, head h at `q[n * q_stride + h * K..]`; `out` `[N, H·K]`; `lse` `[N, H]`, natural
/// logarithm of the sum of exponentials. Rows in no query are left alone. Products multiply in the type `compute`, keys and values
/// wherever they lie.
///
/// # Panics
/// When a query leaves `q`, `out` or its pages, has a window of 0, or two queries share a row. Keys in rows may be fewer than a query's
/// last position: those that are there are seen, and a row whose window has none of them gets zeros and the logarithm of 0.
pub fn attention_forward(
    pool: &Pool,
    compute: Compute,
    shape: HeadShape,
    q: &[f32],
    q_stride: usize,
    queries: &[Query],
    out: &mut [f32],
    lse: &mut [f32],
) {
    let _span = span(Kernel::Attention);
    check_disjoint(queries.iter().map(|query| (query.start, query.len)));
    assert!(
        queries.iter().all(|query| query.window > 0),
        "a row sees its own key at least"
    );
    let over_8_bits: Vec<forward8::Query8> = queries
        .iter()
        .filter_map(|query| match query.keys {
            Keys::Pages8(pages) => Some((*query, pages)),
            _ => None,
        })
        .collect();
    if !over_8_bits.is_empty() {
        assert_eq!(
            over_8_bits.len(),
            queries.len(),
            "keys of one pass lie in 8-bit pages or none do"
        );
        forward8::forward(pool, shape, q, q_stride, &over_8_bits, out, lse);
        return;
    }
    let forward = match compute {
        Compute::F32 => forward::forward::<false>,
        Compute::Bf16 => forward::forward::<true>,
    };
    forward(pool, shape, q, q_stride, queries, out, lse);
}

/// `d_qkv` on the rows of `segments` (start, len), each a sequence attending to itself; `compute`, `window`, `out` and `lse` are
/// the forward pass's. Other rows are left alone.
///
/// # Panics
/// When a segment leaves the rows, or two share one.
pub fn attention_backward(
    pool: &Pool,
    compute: Compute,
    shape: HeadShape,
    window: usize,
    qkv: &[f32],
    segments: &[(usize, usize)],
    out: &[f32],
    lse: &[f32],
    d_out: &[f32],
    d_qkv: &mut [f32],
) {
    let _span = span(Kernel::Attention);
    check_disjoint(segments.iter().copied());
    let d_qkv = Disjoint::new(d_qkv);
    let width = shape.qkv_width();
    backward::each(
        pool,
        compute,
        shape.kv_heads,
        segments,
        |start, len, kv_head| backward::Task {
            shape,
            q: qkv,
            q_stride: width,
            start,
            len,
            keys: Query::flat(shape, qkv, start, len).keys,
            keys_len: len,
            past: 0,
            window,
            own: true,
            kv_head,
            out,
            lse,
            d_out,
            d_q: &d_qkv,
            d_kv: &d_qkv,
            d_kv_at: start * width + shape.q_width(),
            d_kv_stride: width,
        },
    );
}

/// The same of queries `[N, H·K]` that see keys and values of another layer, `kv` `[N, 2G·K]`: the gradients of both, on the rows of
/// `segments`.
///
/// # Panics
/// As for [`attention_backward`].
pub fn attention_shared_backward(
    pool: &Pool,
    compute: Compute,
    shape: HeadShape,
    window: usize,
    [q, kv]: [&[f32]; 2],
    segments: &[(usize, usize)],
    [out, lse, d_out]: [&[f32]; 3],
    [d_q, d_kv]: [&mut [f32]; 2],
) {
    let _span = span(Kernel::Attention);
    check_disjoint(segments.iter().copied());
    let (d_q, d_kv) = (Disjoint::new(d_q), Disjoint::new(d_kv));
    let d_kv_stride = 2 * shape.kv_width();
    backward::each(
        pool,
        compute,
        shape.kv_heads,
        segments,
        |start, len, kv_head| backward::Task {
            shape,
            q,
            q_stride: shape.q_width(),
            start,
            len,
            keys: Keys::packed(shape, kv, start, len),
            keys_len: len,
            past: 0,
            window,
            own: true,
            kv_head,
            out,
            lse,
            d_out,
            d_q: &d_q,
            d_kv: &d_kv,
            d_kv_at: start * d_kv_stride,
            d_kv_stride,
        },
    );
}

/// The distance between the rows of queries, which are alone or with their keys and values; there are as many as of `lse` `[N, H]`.
fn query_stride(shape: HeadShape, q: &[f32], lse: &[f32]) -> usize {
    let rows = lse.len() / shape.heads;
    match q.len() == rows * shape.q_width() {
        true => shape.q_width(),
        false => {
            assert_eq!(q.len(), rows * shape.qkv_width(), "{rows} rows of queries");
            shape.qkv_width()
        }
    }
}

/// Tasks write the rows of their own run only, so runs must not overlap.
fn check_disjoint(runs: impl Iterator<Item = (usize, usize)>) {
    let mut runs: Vec<(usize, usize)> = runs.collect();
    runs.sort_unstable();
    for pair in runs.windows(2) {
        let [(start, len), (next, _)] = pair else {
            unreachable!("windows of two")
        };
        assert!(
            start + len <= *next,
            "rows {start}+{len} and {next} overlap"
        );
    }
}
