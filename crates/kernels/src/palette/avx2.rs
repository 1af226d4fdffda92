//! The product with AVX2: `vpshufb` looks up 32 weights, `vpmaddubsw` and `vpmaddwd` multiply.
//!
//! `vpmaddubsw` multiplies unsigned by signed bytes and adds neighbours with *saturation* at 16
//! bits, so unsigned weights up to 255 would be wrong: 2 · 255 · 127 = 64,770. Here the first
//! factor is |w| <= 128 (|-128| = 128 is right as an unsigned byte) and the second is q with the
//! sign of w moved to it. |q| <= 127, so the sign flips without overflow, and a pair sums to at
//! most 2 · 128 · 127 = 32,512 < 32,767: it never saturates, and the product is exact. (Adding two
//! such pairs at 16 bits could overflow, so `vpmaddwd` widens each at once.)
#![cfg(target_arch = "x86_64")]
// Arrays are registers here; `t`, `s` and `half` name them.
#![allow(clippy::needless_range_loop)]

use super::strips::{Format, LINE, Results, STRIP, Strips};
use crate::quantize::{BLOCK, Panel};
use std::arch::x86_64::*;

/// See [`super::strips::Tile`].
pub(super) unsafe fn tile(
    strips: &Strips<'_>,
    first: usize,
    count: usize,
    panel: &Panel<'_>,
    results: &mut Results,
    column: usize,
) {
    for index in 0..count {
        let (strip, column) = (first + index, column + index * STRIP);
        // SAFETY: the caller's promise holds for each of the strips.
        unsafe {
            match strips.format {
                Format::Two => by_tokens::<2>(strips, strip, panel, results, column),
                Format::Three => by_tokens::<3>(strips, strip, panel, results, column),
                Format::Four => by_tokens::<4>(strips, strip, panel, results, column),
                Format::Eight => by_tokens::<8>(strips, strip, panel, results, column),
            }
        }
    }
}

/// Cuts a panel into runs of four tokens and a rest: 8 of 16 registers accumulate.
///
/// # Safety
/// As for a tile of one strip; BITS is the format's.
unsafe fn by_tokens<const BITS: usize>(
    strips: &Strips<'_>,
    strip: usize,
    panel: &Panel<'_>,
    results: &mut Results,
    column: usize,
) {
    for token in (0..panel.tokens).step_by(4) {
        // SAFETY: tokens `token..token + T` exist.
        unsafe {
            match panel.tokens - token {
                1 => body::<BITS, 1>(strips, strip, panel, token, results, column),
                2 => body::<BITS, 2>(strips, strip, panel, token, results, column),
                3 => body::<BITS, 3>(strips, strip, panel, token, results, column),
                _ => body::<BITS, 4>(strips, strip, panel, token, results, column),
            }
        }
    }
}

/// T tokens of a panel, from `token`, x one strip.
///
/// # Safety
/// As for a tile of one strip; `token + T <= panel.tokens`; BITS is the format's.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn body<const BITS: usize, const T: usize>(
    strips: &Strips<'_>,
    strip: usize,
    panel: &Panel<'_>,
    token: usize,
    results: &mut Results,
    column: usize,
) {
    let per_block = BITS * BLOCK / 32; // lines
    let unit = if BITS == 3 { 3 } else { 1 }; // lines
    let inputs = unit * 32 / BITS; // of a unit
    let table = table::<BITS>(strips, strip);
    let ones = _mm256_set1_epi16(1);
    let mut totals = [[_mm256_setzero_ps(); 2]; T];
    for (block, lines) in strips.strip(strip).chunks(per_block * LINE).enumerate() {
        let at = block * panel.width + token;
        // A block's values of these T tokens; the lines below cover at most its 128 inputs.
        let x = panel.values[at * BLOCK..(at + T) * BLOCK].as_ptr();
        let mut sums = [[_mm256_setzero_si256(); 2]; T];
        for (index, lines) in lines.chunks_exact(unit * LINE).enumerate() {
            // SAFETY: a unit has 64 bytes a line, two loads of 32 each; `x` has 128 values for each
            // of T tokens, and index * inputs + group * 4 + 4 <= 128. Prefetching may name any
            // address.
            unsafe {
                let mut packed = [[_mm256_setzero_si256(); 2]; 3];
                for line in 0..unit {
                    let from = lines.as_ptr().add(line * LINE);
                    packed[line][0] = _mm256_loadu_si256(from.cast());
                    packed[line][1] = _mm256_loadu_si256(from.add(32).cast());
                    _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(2048).cast());
                }
                for group in 0..inputs / 4 {
                    for half in 0..2 {
                        let packed = [packed[0][half], packed[1][half], packed[2][half]];
                        let weights = decode::<BITS>(packed, group, table);
                        let sizes = _mm256_abs_epi8(weights);
                        for t in 0..T {
                            let four = x.add(t * BLOCK + index * inputs + group * 4);
                            let four = _mm256_set1_epi32(four.cast::<i32>().read_unaligned());
                            let signed = _mm256_sign_epi8(four, weights);
                            let pairs = _mm256_maddubs_epi16(sizes, signed);
                            let fours = _mm256_madd_epi16(pairs, ones);
                            sums[t][half] = _mm256_add_epi32(sums[t][half], fours);
                        }
                    }
                }
            }
        }
        for t in 0..T {
            let scale = _mm256_set1_ps(panel.scales[at + t]);
            for half in 0..2 {
                let sum = _mm256_cvtepi32_ps(sums[t][half]);
                totals[t][half] = _mm256_fmadd_ps(sum, scale, totals[t][half]);
            }
        }
    }
    let scales = &strips.scales[strip * STRIP..(strip + 1) * STRIP];
    for (t, totals) in totals.iter().enumerate() {
        let result = &mut results.0[token + t][column..column + STRIP];
        for half in 0..2 {
            // SAFETY: 8 scales of 2 bytes and 8 floats from half * 8 <= 8, of 16 each.
            unsafe {
                let scale = _mm_loadu_si128(scales.as_ptr().add(half * 8).cast());
                let total = _mm256_mul_ps(totals[half], _mm256_cvtph_ps(scale));
                _mm256_storeu_ps(result.as_mut_ptr().add(half * 8), total);
            }
        }
    }
}

/// Group `group` of four inputs of half the lines of a unit, as signed weights.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn decode<const BITS: usize>(packed: [__m256i; 3], group: usize, table: __m256i) -> __m256i {
    if BITS == 8 {
        return packed[0];
    }
    if BITS == 3 {
        let low = low_bits::<2>(packed[group / 4], group % 4);
        let high = packed[2];
        let high = match group {
            0 => _mm256_slli_epi16::<2>(high),
            1 => _mm256_slli_epi16::<1>(high),
            2 => high,
            3 => _mm256_srli_epi16::<1>(high),
            4 => _mm256_srli_epi16::<2>(high),
            5 => _mm256_srli_epi16::<3>(high),
            6 => _mm256_srli_epi16::<4>(high),
            _ => _mm256_srli_epi16::<5>(high),
        };
        let low = _mm256_and_si256(low, _mm256_set1_epi8(3));
        let high = _mm256_and_si256(high, _mm256_set1_epi8(4));
        return _mm256_shuffle_epi8(table, _mm256_or_si256(low, high));
    }
    let indices = low_bits::<BITS>(packed[0], group);
    // `vpshufb` gives 0 where the top bit is set, so what the shift left above must go.
    _mm256_shuffle_epi8(table, _mm256_and_si256(indices, _mm256_set1_epi8(15)))
}

/// Index `group` of each byte, with whatever lies above it.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn low_bits<const BITS: usize>(packed: __m256i, group: usize) -> __m256i {
    match group * BITS {
        0 => packed,
        2 => _mm256_srli_epi16::<2>(packed),
        4 => _mm256_srli_epi16::<4>(packed),
        _ => _mm256_srli_epi16::<6>(packed),
    }
}

/// A strip's palette repeated over both 16-byte lanes; nothing for 8 bits.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn table<const BITS: usize>(strips: &Strips<'_>, strip: usize) -> __m256i {
    if BITS == 8 {
        return _mm256_setzero_si256();
    }
    let palette = strips.table(strip);
    let mut bytes = [0i8; 16];
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = palette[place % (1 << BITS)];
    }
    // SAFETY: `bytes` has 16 bytes.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}
