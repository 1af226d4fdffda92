//! Strip order back to dense f32 rows: what a gradient through a frozen palettized layer needs.
//!
//! `w[r, i] = s[r] · value`, with 11 and 8 significant bits, is exact in f32, so all bodies agree
//! trivially. A row's scaled palette is one vector, and a look-up is one permutation of it; palettes of pairs are larger, and
//! looked up in memory, on every instruction set alike.

use super::strips::{self, Format, HALF, LINE, STRIP, Strips};
use crate::{Isa, Pool};

/// Bytes of f32 that a task writes.
const TASK: usize = 256 << 10;
/// Inputs of a strip that pass before its next row: their lines stay in L1 for all 16 rows.
const SEGMENT: usize = 2048;

/// All rows, `[rows, cols]`, row-major.
pub(crate) fn all(pool: &Pool, strips: &Strips<'_>, out: &mut [f32]) {
    let (rows, cols) = (strips.rows, strips.cols);
    assert_eq!(out.len(), rows * cols, "dequantizing [{rows}, {cols}]");
    let segment = segment(pool.isa(), strips.format);
    let strips_each = TASK.div_ceil(4 * STRIP * cols);
    pool.for_each_chunk(out, strips_each * STRIP * cols, |task, out| {
        for (index, out) in out.chunks_mut(STRIP * cols).enumerate() {
            let strip = task * strips_each + index;
            for start in (0..cols).step_by(SEGMENT) {
                for (row, out) in (strip * STRIP..).zip(out.chunks_exact_mut(cols)) {
                    let out = &mut out[start..cols.min(start + SEGMENT)];
                    // SAFETY: row < rows, as `out` has just these; start + len <= cols; SEGMENT is
                    // a multiple of 32; the pool vouches for its instructions.
                    unsafe { segment(strips, row, start, out) };
                }
            }
        }
    });
}

/// Rows by number: `[N, cols]`.
pub(crate) fn gather(pool: &Pool, strips: &Strips<'_>, rows: &[u32], out: &mut [f32]) {
    let cols = strips.cols;
    assert_eq!(
        out.len(),
        rows.len() * cols,
        "gathering [{}, {cols}]",
        rows.len()
    );
    let isa = pool.isa();
    let rows_each = TASK.div_ceil(4 * cols);
    pool.for_each_chunk(out, rows_each * cols, |task, out| {
        for (out, &number) in out.chunks_exact_mut(cols).zip(&rows[task * rows_each..]) {
            row(isa, strips, number as usize, out);
        }
    });
}

/// One row, `[cols]`.
pub(crate) fn row(isa: Isa, strips: &Strips<'_>, row: usize, out: &mut [f32]) {
    assert!(
        row < strips.rows,
        "row {row} of a matrix with {} rows",
        strips.rows
    );
    assert_eq!(
        out.len(),
        strips.cols,
        "one row of [{}, {}]",
        strips.rows,
        strips.cols
    );
    // SAFETY: row and length were checked, 0 is a multiple of 32, and the caller's pool vouches for `isa`.
    unsafe { segment(isa, strips.format)(strips, row, 0, out) }
}

/// Writes inputs `start..start + out.len()` of `row`.
///
/// # Safety
/// `row < rows`, `start` is a multiple of 32 and `start + out.len() <= cols`; the CPU has the
/// instructions.
type Segment = unsafe fn(&Strips<'_>, row: usize, start: usize, out: &mut [f32]);

fn segment(isa: Isa, format: Format) -> Segment {
    match isa {
        _ if format.pairs() => segment_pairs,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => segment_avx2,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => segment_avx512,
        _ => segment_scalar,
    }
}

fn segment_scalar(strips: &Strips<'_>, row: usize, start: usize, out: &mut [f32]) {
    let scale = strips.scales[row].to_f32();
    let table = strips.table(row / STRIP);
    for (col, out) in (start..).zip(out) {
        let value = strips::get(strips.format, strips.cols, strips.data, row, col);
        *out = scale
            * f32::from(match strips.format {
                Format::Eight => value as i8,
                _ => table[usize::from(value)],
            });
    }
}

/// Of pairs, eight inputs at a time: four indices, each a weight of the first four and one of the others.
fn segment_pairs(strips: &Strips<'_>, row: usize, start: usize, out: &mut [f32]) {
    let (format, entries) = (strips.format, strips.format.entries());
    let scale = strips.scales[row].to_f32();
    let mut table = [0.0f32; 512];
    for (value, &entry) in table.iter_mut().zip(strips.table(row / STRIP)) {
        *value = scale * f32::from(entry);
    }
    let (first, second) = table.split_at(entries);
    let unit = format.unit() * LINE;
    let strip = &strips.strip(row / STRIP)[start / format.inputs() * unit..];
    let units = strip.chunks_exact(unit);
    for (unit, out) in units.zip(out.chunks_mut(format.inputs())) {
        let bytes = |line: usize| -> [u8; 4] {
            let at = line * LINE + row % STRIP * 4;
            unit[at..at + 4].try_into().expect("four bytes")
        };
        for (four, out) in out.chunks_mut(2 * HALF).enumerate() {
            let indices = match format {
                Format::TwoPairs => bytes(0).map(|byte| byte >> (4 * four) & 15),
                Format::ThreePairs if four < 3 => bytes(four).map(|byte| byte & 63),
                Format::ThreePairs => {
                    let [a, b, c] = [bytes(0), bytes(1), bytes(2)];
                    std::array::from_fn(|j| a[j] >> 6 | b[j] >> 6 << 2 | c[j] >> 6 << 4)
                }
                _ => bytes(0),
            };
            let mut eight = [0.0; 2 * HALF];
            for (j, index) in indices.into_iter().enumerate() {
                eight[j] = first[usize::from(index)];
                eight[HALF + j] = second[usize::from(index)];
            }
            out.copy_from_slice(&eight[..out.len()]);
        }
    }
}

/// The four bytes of a row in `line` of its strip.
#[inline(always)]
#[cfg(target_arch = "x86_64")]
fn lane(strip: &[u8], row: usize, line: usize) -> i32 {
    let at = line * LINE + row % STRIP * 4;
    i32::from_le_bytes(strip[at..at + 4].try_into().expect("four bytes"))
}

/// A row's scale times its strip's palette, repeated to 16 entries.
#[inline(always)]
#[cfg(target_arch = "x86_64")]
fn scaled_table(strips: &Strips<'_>, row: usize) -> [f32; 16] {
    let scale = strips.scales[row].to_f32();
    let palette = strips.table(row / STRIP);
    std::array::from_fn(|place| scale * f32::from(palette[place % palette.len()]))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn segment_avx512(strips: &Strips<'_>, row: usize, start: usize, out: &mut [f32]) {
    use std::arch::x86_64::*;
    let strip = strips.strip(row / STRIP);
    let whole = out.len() / 16 * 16;
    let first = start / strips.format.inputs() * strips.format.unit();
    let (runs, rest) = out.split_at_mut(whole);
    if strips.format == Format::Eight {
        let scale = _mm512_set1_ps(strips.scales[row].to_f32());
        for (index, out) in runs.chunks_exact_mut(16).enumerate() {
            let line = first + index * 4;
            let [a, b, c, d] = std::array::from_fn(|i| lane(strip, row, line + i));
            let values = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_setr_epi32(a, b, c, d)));
            // SAFETY: `out` has 16 places.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_mul_ps(values, scale)) };
        }
    } else {
        let table = scaled_table(strips, row);
        // SAFETY: `table` has 16 floats.
        let table = unsafe { _mm512_loadu_ps(table.as_ptr()) };
        // Lane i holds input i of 16: at 4 bits byte i % 4 of one line of 8 inputs or the next, low
        // or high nibble; at 2 bits byte i % 4, pair i / 4. The permutation reads four bits. At 3
        // bits the high bit, bit i / 4 of byte i % 4 in the unit's last line, turns to bit 2.
        let four = _mm512_setr_epi32(0, 8, 16, 24, 4, 12, 20, 28, 0, 8, 16, 24, 4, 12, 20, 28);
        let two = _mm512_setr_epi32(0, 8, 16, 24, 2, 10, 18, 26, 4, 12, 20, 28, 6, 14, 22, 30);
        let high = _mm512_setr_epi32(30, 6, 14, 22, 31, 7, 15, 23, 0, 8, 16, 24, 1, 9, 17, 25);
        let later = _mm512_setr_epi32(2, 10, 18, 26, 3, 11, 19, 27, 4, 12, 20, 28, 5, 13, 21, 29);
        let high = [high, later];
        for (index, out) in runs.chunks_exact_mut(16).enumerate() {
            let indices = match strips.format {
                Format::Four => {
                    let line = first + index * 2;
                    let low = _mm512_set1_epi32(lane(strip, row, line));
                    let both = _mm512_mask_set1_epi32(low, 0xff00, lane(strip, row, line + 1));
                    _mm512_srlv_epi32(both, four)
                }
                Format::Three => {
                    let (unit, half) = (first + index / 2 * 3, index % 2);
                    let low = _mm512_set1_epi32(lane(strip, row, unit + half));
                    let bits = _mm512_set1_epi32(lane(strip, row, unit + 2));
                    let low = _mm512_and_si512(_mm512_srlv_epi32(low, two), _mm512_set1_epi32(3));
                    let bits = _mm512_rorv_epi32(bits, high[half]);
                    let bits = _mm512_and_si512(bits, _mm512_set1_epi32(4));
                    _mm512_or_si512(low, bits)
                }
                _ => _mm512_srlv_epi32(_mm512_set1_epi32(lane(strip, row, first + index)), two),
            };
            // SAFETY: `out` has 16 places.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_permutexvar_ps(indices, table)) };
        }
    }
    segment_scalar(strips, row, start + whole, rest);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn segment_avx2(strips: &Strips<'_>, row: usize, start: usize, out: &mut [f32]) {
    use std::arch::x86_64::*;
    let strip = strips.strip(row / STRIP);
    let whole = out.len() / 16 * 16;
    let first = start / strips.format.inputs() * strips.format.unit();
    let (runs, rest) = out.split_at_mut(whole);
    if strips.format == Format::Eight {
        let scale = _mm256_set1_ps(strips.scales[row].to_f32());
        for (index, out) in runs.chunks_exact_mut(8).enumerate() {
            let line = first + index * 2;
            let (a, b) = (lane(strip, row, line), lane(strip, row, line + 1));
            let values = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_setr_epi32(a, b, 0, 0)));
            // SAFETY: `out` has 8 places.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_mul_ps(values, scale)) };
        }
    } else {
        let table = scaled_table(strips, row);
        // SAFETY: `table` has 16 floats, read as two halves of 8.
        let (low, high) = unsafe {
            (
                _mm256_loadu_ps(table.as_ptr()),
                _mm256_loadu_ps(table.as_ptr().add(8)),
            )
        };
        let shifts = if strips.format == Format::Four {
            let nibbles = _mm256_setr_epi32(0, 8, 16, 24, 4, 12, 20, 28);
            [nibbles, nibbles]
        } else {
            let pairs = _mm256_setr_epi32(0, 8, 16, 24, 2, 10, 18, 26);
            [pairs, _mm256_add_epi32(pairs, _mm256_set1_epi32(4))]
        };
        let singles = _mm256_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25);
        for (index, out) in runs.chunks_exact_mut(8).enumerate() {
            let line = match strips.format {
                Format::Four => index,
                Format::Three => index / 4 * 3 + index % 4 / 2,
                _ => index / 2,
            };
            let bits = _mm256_set1_epi32(lane(strip, row, first + line));
            let mut indices = _mm256_srlv_epi32(bits, shifts[index % 2]);
            if strips.format == Format::Three {
                // The high bits of a unit's 32 inputs, here of its quarter `index % 4`.
                let bits = _mm256_set1_epi32(lane(strip, row, first + index / 4 * 3 + 2));
                let quarter = _mm256_set1_epi32((index % 4 * 2) as i32);
                let bits = _mm256_srlv_epi32(bits, _mm256_add_epi32(singles, quarter));
                let bits = _mm256_slli_epi32::<2>(_mm256_and_si256(bits, _mm256_set1_epi32(1)));
                indices = _mm256_and_si256(indices, _mm256_set1_epi32(3));
                indices = _mm256_or_si256(indices, bits);
            }
            // The permutation reads three bits; the fourth, moved to the sign, chooses the half.
            // At 2 and 3 bits both halves are the same.
            let values = _mm256_blendv_ps(
                _mm256_permutevar8x32_ps(low, indices),
                _mm256_permutevar8x32_ps(high, indices),
                _mm256_castsi256_ps(_mm256_slli_epi32::<28>(indices)),
            );
            // SAFETY: `out` has 8 places.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), values) };
        }
    }
    segment_scalar(strips, row, start + whole, rest);
}
