//! The product with AVX2: `vpshufb` looks up 32 weights, `vpmaddubsw` and `vpmaddwd` multiply.
//!
//! `vpmaddubsw` multiplies unsigned by signed bytes and adds neighbours with *saturation* at 16
//! bits, so unsigned weights up to 255 would be wrong: 2 · 255 · 127 = 64,770. Here the first
//! factor is |w| <= 128 (|-128| = 128 is right as an unsigned byte) and the second is q with the
//! sign of w moved to it. |q| <= 127, so the sign flips without overflow, and a pair sums to at
//! most 2 · 128 · 127 = 32,512 < 32,767: it never saturates, and the product is exact. (Adding two
//! such pairs at 16 bits could overflow, so `vpmaddwd` widens each at once.)
//!
//! Palettes of pairs have more entries than one `vpshufb` looks at: their weights are decoded a block of inputs at a time
//! and kept for all tokens.
#![cfg(target_arch = "x86_64")]
// Arrays are registers here; `t`, `s` and `half` name them.
#![allow(clippy::needless_range_loop)]

use super::strips::{Format, LINE, Results, STRIP, Strips};
use crate::quantize::{BLOCK, PANEL, Panel};
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
                Format::TwoPairs => pairs::<2>(strips, strip, panel, results, column),
                Format::ThreePairs => pairs::<3>(strips, strip, panel, results, column),
                Format::FourPairs => pairs::<4>(strips, strip, panel, results, column),
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

/// The weights of a strip and a block of 128 inputs, four inputs of all rows after another.
#[repr(align(32))]
struct Decoded([[u8; LINE]; BLOCK / 4]);

/// All tokens of a panel x one strip of pairs.
///
/// # Safety
/// As for a tile of one strip; the strips are of pairs with BITS bits a weight.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pairs<const BITS: usize>(
    strips: &Strips<'_>,
    strip: usize,
    panel: &Panel<'_>,
    results: &mut Results,
    column: usize,
) {
    let inputs = strips.format.inputs(); // of a unit
    let unit = strips.format.unit() * LINE; // bytes
    let per_block = BLOCK / inputs * unit; // bytes
    let table = pair_table(strips.table(strip));
    let mut decoded = Decoded([[0; LINE]; BLOCK / 4]);
    let mut totals = [[_mm256_setzero_ps(); 2]; PANEL];
    for (block, bytes) in strips.strip(strip).chunks(per_block).enumerate() {
        let groups = bytes.len() / unit * inputs / 4;
        for (unit, groups) in bytes
            .chunks_exact(unit)
            .zip(decoded.0.chunks_exact_mut(inputs / 4))
        {
            // SAFETY: a unit has whole lines, as many as the format says, and four inputs of it are a group.
            // Prefetching may name any address.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(unit.as_ptr().wrapping_add(2048).cast());
                decode_pairs::<BITS>(unit, &table, groups);
            }
        }
        for token in (0..panel.tokens).step_by(4) {
            let tokens = token..panel.tokens.min(token + 4);
            let totals = &mut totals[tokens.clone()];
            // SAFETY: `tokens` exist, and there are as many totals.
            unsafe {
                match tokens.len() {
                    1 => multiply::<1>(&decoded.0[..groups], panel, block, token, totals),
                    2 => multiply::<2>(&decoded.0[..groups], panel, block, token, totals),
                    3 => multiply::<3>(&decoded.0[..groups], panel, block, token, totals),
                    _ => multiply::<4>(&decoded.0[..groups], panel, block, token, totals),
                }
            }
        }
    }
    let scales = &strips.scales[strip * STRIP..(strip + 1) * STRIP];
    for (result, totals) in results.0.iter_mut().zip(&totals).take(panel.tokens) {
        let result = &mut result[column..column + STRIP];
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

/// Adds the products of a block's decoded weights with T tokens from `token` to their totals.
///
/// # Safety
/// At most BLOCK / 4 groups; `token + T <= panel.tokens`; `totals` has T places.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply<const T: usize>(
    groups: &[[u8; LINE]],
    panel: &Panel<'_>,
    block: usize,
    token: usize,
    totals: &mut [[__m256; 2]],
) {
    let ones = _mm256_set1_epi16(1);
    let at = block * panel.width + token;
    let x = panel.values[at * BLOCK..(at + T) * BLOCK].as_ptr();
    let mut sums = [[_mm256_setzero_si256(); 2]; T];
    for (group, weights) in groups.iter().enumerate() {
        for half in 0..2 {
            // SAFETY: a group has 64 bytes, and `x` 128 values for each of T tokens; group * 4 + 4 <= 128.
            unsafe {
                let weights = _mm256_load_si256(weights.as_ptr().add(half * 32).cast());
                let sizes = _mm256_abs_epi8(weights);
                for t in 0..T {
                    let four = x.add(t * BLOCK + group * 4).cast::<i32>();
                    let four = _mm256_set1_epi32(four.read_unaligned());
                    let signed = _mm256_sign_epi8(four, weights);
                    let pairs = _mm256_maddubs_epi16(sizes, signed);
                    let fours = _mm256_madd_epi16(pairs, ones);
                    sums[t][half] = _mm256_add_epi32(sums[t][half], fours);
                }
            }
        }
    }
    for (t, totals) in totals.iter_mut().enumerate().take(T) {
        let scale = _mm256_set1_ps(panel.scales[at + t]);
        for half in 0..2 {
            let sum = _mm256_cvtepi32_ps(sums[t][half]);
            totals[half] = _mm256_fmadd_ps(sum, scale, totals[half]);
        }
    }
}

/// The weights of a unit of pairs, four inputs at a time.
///
/// # Safety
/// `unit` has the lines of a unit and `out` two groups for every eight inputs of it.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn decode_pairs<const BITS: usize>(
    unit: &[u8],
    table: &[[__m128i; 16]; 2],
    out: &mut [[u8; LINE]],
) {
    let only = |packed, mask| _mm256_and_si256(packed, _mm256_set1_epi8(mask));
    for half in 0..2 {
        // SAFETY: the caller vouches for the lines; a line has two halves of 32 bytes.
        let line = |line: usize| unsafe {
            _mm256_loadu_si256(unit.as_ptr().add(line * LINE + half * 32).cast())
        };
        for (eight, out) in out.chunks_exact_mut(2).enumerate() {
            // `vpshufb` gives 0 where the top bit is set, so what lies above an index must go.
            let indices = match (BITS, eight) {
                (2, 0) => only(line(0), 15),
                (2, _) => only(_mm256_srli_epi16::<4>(line(0)), 15),
                (3, 0..3) => only(line(eight), 63),
                (3, _) => {
                    let low = only(_mm256_srli_epi16::<6>(line(0)), 3);
                    let middle = only(_mm256_srli_epi16::<4>(line(1)), 12);
                    let high = only(_mm256_srli_epi16::<2>(line(2)), 48);
                    _mm256_or_si256(_mm256_or_si256(low, middle), high)
                }
                _ => line(0),
            };
            let mut found = [_mm256_setzero_si256(); 2];
            for chunk in 0..1 << (2 * BITS - 4) {
                // 0 to 15 for the indices of these 16 entries, 16 and more for all others; then 112 to 127, and 128 and more.
                let own = _mm256_sub_epi8(indices, _mm256_set1_epi8((16 * chunk) as i8));
                let own = _mm256_adds_epu8(own, _mm256_set1_epi8(112));
                for (found, table) in found.iter_mut().zip(table) {
                    let entries = _mm256_broadcastsi128_si256(table[chunk]);
                    *found = _mm256_or_si256(*found, _mm256_shuffle_epi8(entries, own));
                }
            }
            for (out, found) in out.iter_mut().zip(found) {
                // SAFETY: a group has two halves of 32 bytes.
                unsafe { _mm256_storeu_si256(out.as_mut_ptr().add(half * 32).cast(), found) };
            }
        }
    }
}

/// A strip's palette of pairs, 16 entries a vector: first weights, then second ones.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn pair_table(palette: &[i8]) -> [[__m128i; 16]; 2] {
    let mut table = [[_mm_setzero_si128(); 16]; 2];
    let halves = palette.chunks_exact(palette.len() / 2);
    for (table, palette) in table.iter_mut().zip(halves) {
        for (table, palette) in table.iter_mut().zip(palette.chunks_exact(16)) {
            // SAFETY: 16 entries are 16 bytes.
            *table = unsafe { _mm_loadu_si128(palette.as_ptr().cast()) };
        }
    }
    table
}
