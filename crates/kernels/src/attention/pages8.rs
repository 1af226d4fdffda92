//! Cache pages of 8-bit keys and values: their layout, and how new tokens get there.
//!
//! ```text
//! key[t, i] = scale[t] · q[t, i],   scale[t] = max |key[t]| / 127,   for each token, kv head, and keys and values apart
//! ```
//! Numbers lie in the order in which attention multiplies them, in twos that one lane adds up:
//!
//! - a page is `[G, (keys, values)]`, each of 64 tokens;
//! - keys are `[K / 2, 64, 2]`: two numbers of each token, so that a lane is a token;
//! - values are `[32, W, 2]`, W being K rounded up to 16: a number of two tokens, so that a lane is a number;
//! - scales are `[G, (keys, values), 64]`, in memory of their own.
//!
//! Rounding is that of [`crate::quantize`]: to nearest, ties to even, below 1e-30 zero. A token that holds a NaN or an infinity has
//! the scale NaN, so that the fault shows in every row that sees it.

use super::{PAGE_TOKENS, WIDEST_HEAD8};
use crate::pool::{Disjoint, Pool};
use crate::profile::{Kernel, span};
use crate::quantize::{rounded, scale_of};
use crate::rope::HeadShape;
use crate::simd::vectorize;

/// 8-bit pages of all sequences, and those of one of them.
#[derive(Clone, Copy, Debug)]
pub struct Pages8<'a> {
    /// Page p begins at `p * page8_len(shape)`.
    pub numbers: &'a [i8],
    /// Those of page p begin at `p * page8_scales(shape)`.
    pub scales: &'a [f32],
    /// The pages of this sequence in order: position t lies in page `table[t / 64]`.
    pub table: &'a [u32],
}

/// Numbers of an 8-bit page.
pub fn page8_len(shape: HeadShape) -> usize {
    shape.kv_heads * head_len(shape)
}

/// Scales of an 8-bit page.
pub fn page8_scales(shape: HeadShape) -> usize {
    2 * shape.kv_heads * PAGE_TOKENS
}

/// Width of a row of values: whole vectors of every instruction set.
pub(super) fn value_width(shape: HeadShape) -> usize {
    shape.head_dim.next_multiple_of(16)
}

/// Numbers of one kv head in a page.
fn head_len(shape: HeadShape) -> usize {
    (shape.head_dim + value_width(shape)) * PAGE_TOKENS
}

/// Keys and values of one kv head in one page, as they lie.
#[derive(Clone, Copy)]
pub(super) struct Tile8<'a> {
    pub keys: &'a [i8],          // [K / 2, 64, 2]
    pub values: &'a [i8],        // [32, W, 2]
    pub key_scales: &'a [f32],   // [64]
    pub value_scales: &'a [f32], // [64]
}

impl<'a> Pages8<'a> {
    /// Tile `tile` of the sequence.
    pub(super) fn tile(&self, shape: HeadShape, tile: usize, kv_head: usize) -> Tile8<'a> {
        let page = self.table[tile] as usize;
        let numbers = &self.numbers[page * page8_len(shape)..][..page8_len(shape)];
        let (keys, values) = numbers[kv_head * head_len(shape)..][..head_len(shape)]
            .split_at(shape.head_dim * PAGE_TOKENS);
        let scales = &self.scales[page * page8_scales(shape)..][..page8_scales(shape)];
        let (key_scales, value_scales) =
            scales[kv_head * 2 * PAGE_TOKENS..][..2 * PAGE_TOKENS].split_at(PAGE_TOKENS);
        Tile8 {
            keys,
            values,
            key_scales,
            value_scales,
        }
    }
}

/// Tokens whose keys and values one task rounds; fewer stay on the calling thread.
const TASK: usize = 16;

/// Rounds the keys and values of new tokens, rows of a packed `qkv` `[n, (H+2G)·K]`, to positions `past..past + n` of the sequence
/// whose pages `table` names.
///
/// # Panics
/// When the table is too short, names a page twice among those written, a page lies outside `numbers` or `scales`, or heads are wider than
/// [`WIDEST_HEAD8`].
pub fn append_to_pages8(
    pool: &Pool,
    shape: HeadShape,
    qkv: &[f32],
    past: usize,
    numbers: &mut [i8],
    scales: &mut [f32],
    table: &[u32],
) {
    let _span = span(Kernel::Attention);
    shape.check();
    let (width, head_dim) = (shape.qkv_width(), shape.head_dim);
    assert!(
        head_dim <= WIDEST_HEAD8,
        "heads of {head_dim} are too wide for 8-bit pages"
    );
    assert_eq!(
        qkv.len() % width,
        0,
        "{} elements are no rows of {width}",
        qkv.len()
    );
    let end = past + qkv.len() / width;
    if past == end {
        return;
    }
    // Tasks write pages apart from each other.
    let pages = &table[past / PAGE_TOKENS..end.div_ceil(PAGE_TOKENS)];
    let mut sorted = pages.to_vec();
    sorted.sort_unstable();
    assert!(
        sorted.windows(2).all(|pair| pair[0] != pair[1]),
        "the pages {pages:?} hold one twice"
    );
    let (numbers, scales) = (Disjoint::new(numbers), Disjoint::new(scales));
    // A task is (page, kv head), or all of them where they are little work.
    let tasks = pages.len() * shape.kv_heads;
    let each = if end - past < TASK { tasks } else { 1 };
    pool.run(tasks.div_ceil(each), |first| {
        for task in first * each..(first + 1) * each {
            let (page, kv_head) = (task / shape.kv_heads, task % shape.kv_heads);
            let begin = (past / PAGE_TOKENS + page) * PAGE_TOKENS; // its first position
            let page = pages[page] as usize;
            // SAFETY: (page, head) is one task's, pages are distinct, and heads do not overlap.
            let (numbers, scales) = unsafe {
                (
                    numbers.range(
                        page * page8_len(shape) + kv_head * head_len(shape),
                        head_len(shape),
                    ),
                    scales.range(
                        page * page8_scales(shape) + kv_head * 2 * PAGE_TOKENS,
                        2 * PAGE_TOKENS,
                    ),
                )
            };
            let (keys, values) = numbers.split_at_mut(head_dim * PAGE_TOKENS);
            let (key_scales, value_scales) = scales.split_at_mut(PAGE_TOKENS);
            vectorize!(pool.isa(), || {
                for position in past.max(begin)..end.min(begin + PAGE_TOKENS) {
                    let row = &qkv[(position - past) * width + shape.q_width()..];
                    let at = position - begin;
                    let key = &row[kv_head * head_dim..][..head_dim];
                    key_scales[at] = scale_key(key, &mut keys[at * 2..]);
                    let value = &row[shape.kv_width() + kv_head * head_dim..][..head_dim];
                    let width = value_width(shape);
                    let to = &mut values[at / 2 * 2 * width..];
                    value_scales[at] = scale_value(value, to, at % 2 == 1);
                }
            });
        }
    });
}

/// Writes twos of a key, 64 twos apart; its scale.
#[inline(always)]
fn scale_key(key: &[f32], to: &mut [i8]) -> f32 {
    let mut row = [0; WIDEST_HEAD8];
    let row = &mut row[..key.len()];
    let scale = to_8_bits(key, row);
    for (two, to) in row.chunks_exact(2).zip(to.chunks_mut(2 * PAGE_TOKENS)) {
        to[..2].copy_from_slice(two);
    }
    scale
}

/// Writes the numbers of a value, every `second` or first one of the twos; its scale.
#[inline(always)]
fn scale_value(value: &[f32], to: &mut [i8], second: bool) -> f32 {
    let mut row = [0; WIDEST_HEAD8];
    let row = &mut row[..value.len()];
    let scale = to_8_bits(value, row);
    // As numbers of 16 bits, which vectors have; bytes two apart they have not.
    let (shift, keep) = if second { (8, 0x00ff) } else { (0, 0xff00) };
    for (&number, to) in row.iter().zip(to.chunks_exact_mut(2)) {
        let both = u16::from_le_bytes([to[0] as u8, to[1] as u8]);
        let both = both & keep | u16::from(number as u8) << shift;
        let [first, second] = both.to_le_bytes();
        (to[0], to[1]) = (first as i8, second as i8);
    }
    scale
}

/// Rounds numbers to 8 bits; their scale.
#[inline(always)]
fn to_8_bits(from: &[f32], to: &mut [i8]) -> f32 {
    let (scale, inverse) = scale_of(from, 127.0);
    for (to, from) in to.iter_mut().zip(from) {
        *to = rounded(*from, inverse) as i8;
    }
    scale
}
