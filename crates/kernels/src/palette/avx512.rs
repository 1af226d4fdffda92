//! The product with AVX-512: `vpermb` looks up 64 weights, `vpdpbusd` multiplies them by a
//! broadcast of four activations.
//!
//! `vpdpbusd` wants its first factor unsigned, so tables hold int8 + 128 and the accumulator starts
//! at -128 Σ x instead of 0. A table is repeated over all 64 bytes, so `vpermb`, which looks at six
//! bits, ignores whatever a 16-bit shift leaves above the index, and nothing is masked.
#![cfg(target_arch = "x86_64")]
// Arrays are registers here; `t`, `s` and `half` name them.
#![allow(clippy::needless_range_loop)]

use super::strips::{Format, LINE, Output, STRIP, Strips};
use crate::quantize::{BLOCK, Panel};
use std::arch::x86_64::*;

/// How far ahead of the line in use weights are asked for. Hardware prefetch stops at a page's end.
const AHEAD: usize = 2048;

/// See [`super::strips::Tile`].
pub(super) unsafe fn tile(
    strips: &Strips<'_>,
    first: usize,
    count: usize,
    panel: &Panel<'_>,
    out: Output,
) {
    // SAFETY: handed on unchanged.
    unsafe {
        match strips.format {
            Format::Two => by_tokens::<2>(strips, first, count, panel, out),
            Format::Four => by_tokens::<4>(strips, first, count, panel, out),
            Format::Eight => by_tokens::<8>(strips, first, count, panel, out),
        }
    }
}

/// # Safety
/// As for a tile; BITS is the format's.
unsafe fn by_tokens<const BITS: usize>(
    strips: &Strips<'_>,
    first: usize,
    count: usize,
    panel: &Panel<'_>,
    out: Output,
) {
    macro_rules! body {
        ($($tokens:literal)*) => {
            match (panel.tokens, count) {
                $(($tokens, 1) => body::<BITS, $tokens, 1>(strips, first, panel, out),
                ($tokens, 2) => body::<BITS, $tokens, 2>(strips, first, panel, out),)*
                _ => unreachable!("a tile of {} tokens x {count} strips", panel.tokens),
            }
        };
    }
    // SAFETY: handed on; T and S are the numbers of tokens and strips.
    unsafe { body!(1 2 3 4 5 6 7 8 9 10 11 12) }
}

/// T tokens x S strips.
///
/// # Safety
/// As for a tile of S strips and a panel of T tokens; BITS is the format's.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
unsafe fn body<const BITS: usize, const T: usize, const S: usize>(
    strips: &Strips<'_>,
    first: usize,
    panel: &Panel<'_>,
    out: Output,
) {
    let lines = strips.lines();
    let per_block = BITS * BLOCK / 32; // lines
    let mut tables = [_mm512_setzero_si512(); S];
    for (s, table) in tables.iter_mut().enumerate() {
        *table = unsigned_table::<BITS>(strips, first + s);
    }
    let mut weights = strips.strip(first).as_ptr();
    let mut x = panel.values.as_ptr();
    let mut totals = [[_mm512_setzero_ps(); T]; S];
    let mut left = lines;
    let mut at = 0; // of scales and corrections: block * width
    while left > 0 {
        let here = left.min(per_block);
        // SAFETY: strips `first..first + S` lie one after another, `lines * 64` bytes each, and
        // `weights` is `lines - left` lines into the first of them, so `here <= left` lines can be
        // read from each. `x` is block * width * 128 bytes into the panel, which holds all blocks
        // of `width >= T` tokens; a block's lines cover at most its 128 inputs. `at + T` is at most
        // blocks * width, the length of scales and corrections.
        unsafe {
            let sums = block::<BITS, T, S>(
                weights,
                lines * LINE,
                here,
                per_block,
                tables,
                x,
                panel.corrections.as_ptr().add(at),
            );
            for s in 0..S {
                for t in 0..T {
                    let scale = _mm512_set1_ps(*panel.scales.as_ptr().add(at + t));
                    totals[s][t] =
                        _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[s][t]), scale, totals[s][t]);
                }
            }
            weights = weights.add(here * LINE);
            x = x.add(panel.width * BLOCK);
        }
        at += panel.width;
        left -= here;
    }
    for s in 0..S {
        let rows = strips.rows_of(first + s);
        let mask = (0xffffu32 >> (STRIP - rows)) as __mmask16;
        // SAFETY: scales hold 16 values for every strip. The mask keeps the store to the rows
        // that exist, which with T tokens is the caller's rectangle.
        unsafe {
            let scale = strips.scales.as_ptr().add((first + s) * STRIP);
            let scale = _mm512_cvtph_ps(_mm256_loadu_si256(scale.cast()));
            for t in 0..T {
                let at = out.at.add(t * out.stride + s * STRIP);
                _mm512_mask_storeu_ps(at, mask, _mm512_mul_ps(totals[s][t], scale));
            }
        }
    }
}

/// Σ w · q over `lines` lines (at most a block) of S strips, for T tokens.
///
/// # Safety
/// From `weights`, `lines` lines can be read in each of S strips `stride` bytes apart; from `x`,
/// 128 values for each of T tokens; from `corrections`, T values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
unsafe fn block<const BITS: usize, const T: usize, const S: usize>(
    weights: *const u8,
    stride: usize,
    lines: usize,
    per_block: usize,
    tables: [__m512i; S],
    x: *const i8,
    corrections: *const i32,
) -> [[__m512i; T]; S] {
    // A `vpdpbusd` takes four cycles and two can start in each, so eight chains keep it busy;
    // few tokens x strips are spread over more accumulators. Int32 sums do not mind the order.
    let mut sums = [[[_mm512_setzero_si512(); T]; S]; 2];
    let spread = if T * S <= 8 { 2 } else { 1 };
    // SAFETY: line < lines, so each load stays inside what the caller grants; inputs of a block's
    // lines are below 128. Prefetching may name any address.
    unsafe {
        for s in 0..S {
            for t in 0..T {
                sums[0][s][t] = _mm512_set1_epi32(*corrections.add(t));
            }
        }
        let mut step = |line: usize| {
            let mut packed = [_mm512_setzero_si512(); S];
            for s in 0..S {
                let from = weights.add(s * stride + line * LINE);
                packed[s] = _mm512_loadu_si512(from.cast());
                if T * S <= 8 {
                    _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD).cast());
                }
            }
            for group in 0..8 / BITS {
                let mut decoded = [_mm512_setzero_si512(); S];
                for s in 0..S {
                    decoded[s] = decode::<BITS>(packed[s], group, tables[s]);
                }
                let chain = group % spread;
                for t in 0..T {
                    let four = x.add(t * BLOCK + line * (32 / BITS) + group * 4);
                    let four = _mm512_set1_epi32(four.cast::<i32>().read_unaligned());
                    for s in 0..S {
                        sums[chain][s][t] =
                            _mm512_dpbusd_epi32(sums[chain][s][t], decoded[s], four);
                    }
                }
            }
        };
        if lines == per_block {
            for line in 0..per_block {
                step(line);
            }
        } else {
            for line in 0..lines {
                step(line);
            }
        }
        if spread == 2 {
            for s in 0..S {
                for t in 0..T {
                    sums[0][s][t] = _mm512_add_epi32(sums[0][s][t], sums[1][s][t]);
                }
            }
        }
    }
    sums[0]
}

/// Group `group` of four inputs of a line, as unsigned weights (int8 + 128).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn decode<const BITS: usize>(packed: __m512i, group: usize, table: __m512i) -> __m512i {
    if BITS == 8 {
        return _mm512_xor_si512(packed, table);
    }
    let indices = match group * BITS {
        0 => packed,
        2 => _mm512_srli_epi16::<2>(packed),
        4 => _mm512_srli_epi16::<4>(packed),
        _ => _mm512_srli_epi16::<6>(packed),
    };
    _mm512_permutexvar_epi8(indices, table)
}

/// A strip's palette as int8 + 128, repeated over 64 bytes; for 8 bits the constant 128.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn unsigned_table<const BITS: usize>(strips: &Strips<'_>, strip: usize) -> __m512i {
    let flip = _mm512_set1_epi8(-128);
    if BITS == 8 {
        return flip;
    }
    let palette = strips.table(strip);
    let mut bytes = [0i8; LINE];
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = palette[place % (1 << BITS)];
    }
    // SAFETY: `bytes` has 64 bytes.
    let table = unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
    _mm512_xor_si512(table, flip)
}
