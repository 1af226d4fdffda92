//! The product with AVX-512: `vpermb` looks up 64 weights, `vpdpbusd` multiplies them by a
//! broadcast of four activations.
//!
//! `vpdpbusd` wants its first factor unsigned, so tables hold int8 + 128 and the accumulator starts
//! at -128 Σ x instead of 0. A table is repeated over all 64 bytes, so `vpermb`, which looks at six
//! bits, ignores whatever a 16-bit shift leaves above the index, and nothing is masked. At 3 bits
//! one `vpternlogd` puts the two low bits of one line under the high bit of another.
//!
//! Of pairs an index is looked up twice, in the table of first weights and in that of second ones, and gives the operands
//! of two products. With 16 or 64 entries that is a `vpermb` each, with 256 two `vpermi2b` and a blend. Three of four
//! indices of six bits need not even be shifted: `vpermb` does not see the two bits above them.
#![cfg(target_arch = "x86_64")]
// Arrays are registers here; `t`, `s` and `half` name them.
#![allow(clippy::needless_range_loop)]

use super::strips::{Format, LINE, Results, STRIP, Strips};
use crate::quantize::{BLOCK, PANEL, Panel};
use std::arch::x86_64::*;
use std::hint::black_box;
use std::mem::MaybeUninit;

/// How many bytes before their use weights are asked for. Hardware prefetch stops at each page's
/// end; this reaches across, and from the end of the strips at hand into the next ones.
pub(super) const AHEAD: usize = 8192;

/// See [`super::strips::Tile`].
pub(super) unsafe fn tile(
    strips: &Strips<'_>,
    first: usize,
    count: usize,
    panel: &Panel<'_>,
    results: &mut Results,
    column: usize,
) {
    macro_rules! by_format {
        ($($format:ident)*; $($pairs:ident)*) => {
            match strips.format {
                $(Format::$format => {
                    by_tokens::<{ Format::$format as usize }>(strips, first, count, panel, results, column)
                })*
                $(Format::$pairs => {
                    one_by_one::<{ Format::$pairs as usize }>(strips, first, count, panel, results, column)
                })*
            }
        };
    }
    // SAFETY: handed on unchanged.
    unsafe { by_format!(Two Three Four Eight; TwoPairs ThreePairs FourPairs) }
}

/// # Safety
/// As for a tile; FORMAT is the number of the strips' format.
unsafe fn by_tokens<const FORMAT: usize>(
    strips: &Strips<'_>,
    first: usize,
    count: usize,
    panel: &Panel<'_>,
    results: &mut Results,
    column: usize,
) {
    // Two strips share the broadcasts of activations. At 3 bits their six lines find no room beside 24
    // accumulators, and one strip's twelve already cover the latency of a product.
    let alone = |tokens| FORMAT == THREE && tokens > 6;
    let mut totals = Totals([MaybeUninit::uninit(); PANEL * 2]);
    let totals = &mut totals;
    macro_rules! body {
        ($($tokens:literal)*) => {
            match (panel.tokens, count) {
                $(($tokens, 1) => body::<FORMAT, $tokens, 1>(strips, first, panel, totals, results, column),
                ($tokens, 2) if alone($tokens) => {
                    body::<FORMAT, $tokens, 1>(strips, first, panel, totals, results, column);
                    body::<FORMAT, $tokens, 1>(strips, first + 1, panel, totals, results, column + STRIP);
                }
                ($tokens, 2) => body::<FORMAT, $tokens, 2>(strips, first, panel, totals, results, column),)*
                _ => unreachable!("a tile of {} tokens x {count} strips", panel.tokens),
            }
        };
    }
    // SAFETY: handed on; T and S are the numbers of tokens and strips.
    unsafe { body!(1 2 3 4 5 6 7 8 9 10 11 12) }
}

/// For pairs, whose tables leave no room for a second strip.
///
/// # Safety
/// As for a tile; FORMAT is the number of the strips' format.
unsafe fn one_by_one<const FORMAT: usize>(
    strips: &Strips<'_>,
    first: usize,
    count: usize,
    panel: &Panel<'_>,
    results: &mut Results,
    column: usize,
) {
    let mut totals = Totals([MaybeUninit::uninit(); PANEL * 2]);
    let totals = &mut totals;
    for (index, strip) in (first..first + count).enumerate() {
        let column = column + index * STRIP;
        macro_rules! body {
            ($($tokens:literal)*) => {
                match panel.tokens {
                    $($tokens => body::<FORMAT, $tokens, 1>(strips, strip, panel, totals, results, column),)*
                    _ => unreachable!("a tile of {} tokens", panel.tokens),
                }
            };
        }
        // SAFETY: handed on; T is the number of tokens.
        unsafe { body!(1 2 3 4 5 6 7 8 9 10 11 12) }
    }
}

/// Room for the f32 totals of the largest tile, 24 registers. Beside as many int32 sums they do not
/// fit, and where the compiler has to find that out for itself, it spills them to a stack aligned to
/// 16 bytes, where each crosses two cache lines: 83 % of the int8 peak instead of 88.
#[repr(align(64))]
struct Totals([MaybeUninit<__m512>; PANEL * 2]);

/// T tokens x S strips.
///
/// # Safety
/// As for a tile of S strips and a panel of T tokens; FORMAT is the number of the strips' format.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
unsafe fn body<const FORMAT: usize, const T: usize, const S: usize>(
    strips: &Strips<'_>,
    first: usize,
    panel: &Panel<'_>,
    memory: &mut Totals,
    results: &mut Results,
    column: usize,
) {
    let lines = strips.lines();
    let per_block = const { Format::ALL[FORMAT].bits() * BLOCK / 32 }; // lines
    let unit = const { Format::ALL[FORMAT].unit() }; // lines
    let inputs = const { Format::ALL[FORMAT].inputs() }; // of a unit
    // A `vpdpbusd` takes four or five cycles and two can start in each, so a few tokens x strips are
    // spread over more accumulators, group by group. Int32 sums do not mind the order.
    let spread = if FORMAT == FOUR_PAIRS { 4 } else { 8 }; // eight tables leave less room
    let chains = (if T * S <= 2 { 4 } else { 2 }).min(if T * S <= spread { inputs / 4 } else { 1 });
    let mut tables = [[_mm512_setzero_si512(); TABLES]; S];
    for (s, place) in tables.iter_mut().enumerate() {
        *place = table::<FORMAT, 0x80>(strips, first + s);
    }
    let stride = lines * LINE;
    let blocks = lines.div_ceil(per_block);
    let ahead = AHEAD / S / (per_block * LINE); // blocks
    let mut totals = [[_mm512_setzero_ps(); T]; S];
    let in_memory = T * S > 12;
    let memory = memory.0.as_mut_ptr().cast::<__m512>();
    if in_memory {
        for place in 0..T * S {
            // SAFETY: T * S is at most PANEL * 2, the vectors that `Totals` has.
            unsafe { *memory.add(place) = _mm512_setzero_ps() };
        }
    }
    for block in 0..blocks {
        let at = block * panel.width; // of scales and corrections
        // The same line `ahead` blocks on; past the last block, in the next S strips.
        let next = ahead * per_block * LINE
            + if block + ahead < blocks {
                0
            } else {
                (S - 1) * stride
            };
        // SAFETY: `at + T` is at most blocks * width, the length of scales, of corrections and,
        // times 128, of values. Strips `first..first + S` lie one after another, `stride` bytes
        // each, and `line < lines`, a multiple of `unit`, so each load of 64 bytes stays inside its
        // strip. A block's lines cover at most its 128 inputs. `memory` holds T * S totals, set above and used
        // through this pointer only. Prefetching may name any address.
        unsafe {
            let weights = strips.data.as_ptr().add(first * stride);
            let x = panel.values.as_ptr().add(at * BLOCK);
            let corrections = panel.corrections.as_ptr().add(at);
            let mut sums = [[[_mm512_setzero_si512(); T]; S]; 4];
            for t in 0..T {
                for s in 0..S {
                    sums[0][s][t] = _mm512_set1_epi32(*corrections.add(t));
                }
            }
            macro_rules! group {
                ($group:literal, $packed:ident, $x:ident) => {
                    let mut decoded = [_mm512_setzero_si512(); S];
                    for s in 0..S {
                        decoded[s] = decode::<FORMAT, $group>(&$packed[s], &tables[s]);
                    }
                    for t in 0..T {
                        let four = $x.add(t * BLOCK + $group * 4).cast::<i32>();
                        let four = _mm512_set1_epi32(four.read_unaligned());
                        for s in 0..S {
                            let sum = &mut sums[$group % chains][s][t];
                            *sum = _mm512_dpbusd_epi32(*sum, decoded[s], four);
                        }
                    }
                };
            }
            let first_line = block * per_block;
            for line in (first_line..lines.min(first_line + per_block)).step_by(unit) {
                let mut packed = [[_mm512_setzero_si512(); 3]; S];
                for s in 0..S {
                    for l in 0..unit {
                        let from = weights.add(s * stride + (line + l) * LINE);
                        packed[s][l] = _mm512_loadu_si512(from.cast());
                        _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(next).cast());
                    }
                }
                if T > 4 {
                    // The activations of the next block: 12 tokens x 128, over this block's units.
                    let share = PANEL * BLOCK / per_block * unit;
                    let from = panel.width * BLOCK + (line - first_line) / unit * share;
                    for part in (0..share).step_by(64) {
                        _mm_prefetch::<_MM_HINT_T0>(x.wrapping_add(from + part).cast());
                    }
                }
                let x = x.add((line - first_line) / unit * inputs);
                group!(0, packed, x);
                if const { Format::ALL[FORMAT].inputs() >= 8 } {
                    group!(1, packed, x);
                }
                if const { Format::ALL[FORMAT].inputs() >= 16 } {
                    group!(2, packed, x);
                    group!(3, packed, x);
                }
                if const { Format::ALL[FORMAT].inputs() >= 32 } {
                    group!(4, packed, x);
                    group!(5, packed, x);
                    group!(6, packed, x);
                    group!(7, packed, x);
                }
            }
            // Hides the pointer; else the compiler carries totals from block to block in registers,
            // and spills those.
            let memory = black_box(memory);
            for t in 0..T {
                let scale = _mm512_set1_ps(*panel.scales.as_ptr().add(at + t));
                for s in 0..S {
                    let mut sum = sums[0][s][t];
                    for chain in 1..chains {
                        sum = _mm512_add_epi32(sum, sums[chain][s][t]);
                    }
                    let sum = _mm512_cvtepi32_ps(sum);
                    if in_memory {
                        let total = memory.add(s * T + t);
                        *total = _mm512_fmadd_ps(sum, scale, *total);
                    } else {
                        totals[s][t] = _mm512_fmadd_ps(sum, scale, totals[s][t]);
                    }
                }
            }
        }
    }
    for s in 0..S {
        let scales = &strips.scales[(first + s) * STRIP..][..STRIP];
        // SAFETY: 16 scales of 2 bytes.
        let scale = unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(scales.as_ptr().cast())) };
        for t in 0..T {
            let result = &mut results.0[t][column + s * STRIP..][..STRIP];
            // SAFETY: the result has 16 places; totals are as above.
            unsafe {
                let total = if in_memory {
                    *memory.add(s * T + t)
                } else {
                    totals[s][t]
                };
                _mm512_storeu_ps(result.as_mut_ptr(), _mm512_mul_ps(total, scale));
            }
        }
    }
}

// Formats by number: what does not depend on a format is left out before LLVM sees it, or this file takes minutes.
const TWO: usize = Format::Two as usize;
const THREE: usize = Format::Three as usize;
const FOUR: usize = Format::Four as usize;
const EIGHT: usize = Format::Eight as usize;
const TWO_PAIRS: usize = Format::TwoPairs as usize;
const THREE_PAIRS: usize = Format::ThreePairs as usize;
const FOUR_PAIRS: usize = Format::FourPairs as usize;

/// Registers of a strip's palette at most: 256 entries of a pair.
pub(super) const TABLES: usize = 8;

/// Group GROUP of four inputs of a unit: entries of the table; at 8 bits the weights, turned as it says.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) fn decode<const FORMAT: usize, const GROUP: usize>(
    packed: &[__m512i; 3],
    tables: &[__m512i; TABLES],
) -> __m512i {
    let half = GROUP % 2; // of a pair
    match FORMAT {
        EIGHT => _mm512_xor_si512(packed[0], tables[0]),
        TWO | FOUR => {
            let bits = const { Format::ALL[FORMAT].bits() };
            _mm512_permutexvar_epi8(low_bits(packed[0], GROUP * bits), tables[0])
        }
        THREE => {
            let low = low_bits(packed[GROUP / 4 % 2], GROUP % 4 * 2);
            let high = match GROUP {
                0 => _mm512_slli_epi16::<2>(packed[2]),
                1 => _mm512_slli_epi16::<1>(packed[2]),
                2 => packed[2],
                3 => _mm512_srli_epi16::<1>(packed[2]),
                4 => _mm512_srli_epi16::<2>(packed[2]),
                5 => _mm512_srli_epi16::<3>(packed[2]),
                6 => _mm512_srli_epi16::<4>(packed[2]),
                _ => _mm512_srli_epi16::<5>(packed[2]),
            };
            // Bits 0 and 1 of `low`, bit 2 of `high`; what lies above is looked past.
            let indices = _mm512_ternarylogic_epi32::<0xca>(_mm512_set1_epi8(3), low, high);
            _mm512_permutexvar_epi8(indices, tables[0])
        }
        TWO_PAIRS => _mm512_permutexvar_epi8(low_bits(packed[0], GROUP / 2 * 4), tables[half]),
        THREE_PAIRS if GROUP < 6 => _mm512_permutexvar_epi8(packed[GROUP / 2 % 3], tables[half]),
        THREE_PAIRS => {
            // The two high bits of each line come to bits 0, 2 and 4; what lies above is looked past.
            let (low, high) = (_mm512_srli_epi16::<6>(packed[0]), packed[1]);
            let middle = _mm512_srli_epi16::<4>(high);
            let low = _mm512_ternarylogic_epi32::<0xca>(_mm512_set1_epi8(3), low, middle);
            let high = _mm512_srli_epi16::<2>(packed[2]);
            let indices = _mm512_ternarylogic_epi32::<0xca>(_mm512_set1_epi8(15), low, high);
            _mm512_permutexvar_epi8(indices, tables[half])
        }
        _ => {
            let indices = packed[0];
            let [a, b, c, d] = std::array::from_fn(|i| tables[4 * half + i]);
            let low = _mm512_permutex2var_epi8(a, indices, b);
            let high = _mm512_permutex2var_epi8(c, indices, d);
            _mm512_mask_blend_epi8(_mm512_movepi8_mask(indices), low, high)
        }
    }
}

/// Each byte's bits from `shift` on, and above them bits of a neighbour.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn low_bits(packed: __m512i, shift: usize) -> __m512i {
    match shift {
        0 => packed,
        2 => _mm512_srli_epi16::<2>(packed),
        4 => _mm512_srli_epi16::<4>(packed),
        _ => _mm512_srli_epi16::<6>(packed),
    }
}

/// A strip's palette, up to 64 entries in a register and fewer repeated over its 64 bytes, each byte with the bits of FLIP turned:
/// 0x80 makes int8 + 128. Of pairs the registers of first weights and then those of second ones. For 8 bits FLIP alone.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) fn table<const FORMAT: usize, const FLIP: u8>(
    strips: &Strips<'_>,
    strip: usize,
) -> [__m512i; TABLES] {
    let mut tables = [_mm512_setzero_si512(); TABLES];
    if FORMAT == EIGHT {
        tables[0] = hidden(_mm512_set1_epi8(FLIP as i8));
        return tables;
    }
    let flip = u32::from_ne_bytes([FLIP; 4]);
    let palette = strips.table(strip);
    assert_eq!(palette.len(), const { Format::ALL[FORMAT].table() });
    let from = palette.as_ptr();
    // SAFETY: a palette of so many bytes was asked for above: 4, 8, 16, twice 16, twice 64 or twice 256.
    unsafe {
        let sixteen = |at: usize| {
            let entries = _mm_loadu_si128(from.add(at).cast());
            let flip = _mm_set1_epi8(FLIP as i8);
            _mm512_broadcast_i32x4(_mm_xor_si128(entries, flip))
        };
        match FORMAT {
            TWO => {
                let entries = from.cast::<u32>().read_unaligned();
                tables[0] = hidden(_mm512_set1_epi32((entries ^ flip) as i32));
            }
            THREE => {
                let entries = from.cast::<u64>().read_unaligned();
                let flip = u64::from(flip) << 32 | u64::from(flip);
                tables[0] = hidden(_mm512_set1_epi64((entries ^ flip) as i64));
            }
            FOUR => tables[0] = hidden(sixteen(0)),
            TWO_PAIRS => {
                tables[0] = hidden(sixteen(0));
                tables[1] = hidden(sixteen(16));
            }
            _ => {
                let registers = const { Format::ALL[FORMAT].table() / LINE };
                for (at, table) in tables.iter_mut().enumerate().take(registers) {
                    let entries = _mm512_loadu_si512(from.add(at * LINE).cast());
                    let flip = _mm512_set1_epi8(FLIP as i8);
                    *table = hidden(_mm512_xor_si512(entries, flip));
                }
            }
        }
    }
    tables
}

/// The same vector, made who knows how: where LLVM 22 sees that what a look-up takes is repeated or turned, its legalizer may turn it
/// to and fro for ever.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn hidden(mut vector: __m512i) -> __m512i {
    // SAFETY: no instruction, only a claim to change the register.
    unsafe {
        std::arch::asm!("/* {0} */", inout(zmm_reg) vector, options(pure, nomem, nostack));
    }
    vector
}
