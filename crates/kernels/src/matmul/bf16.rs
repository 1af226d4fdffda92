//! Rounding to bf16, the upper half of an f32, and packing in pairs.

use super::micro::AHEAD;
use crate::simd::Simd;

/// How many steps of depth ahead packing asks for rows that lie along the panel.
const ROWS_AHEAD: usize = 16;

/// To the nearest bf16, halves to even; subnormal numbers become 0 of their sign, as in the CPU's own conversion.
#[inline(always)]
pub fn round(x: f32) -> f32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    let quiet = (bits | 0x40_0000) & 0xffff_0000;
    let magnitude = bits & 0x7fff_ffff;
    f32::from_bits(if magnitude > 0x7f80_0000 {
        quiet // NaN
    } else if magnitude < 0x80_0000 {
        bits & 0x8000_0000
    } else {
        rounded
    })
}

/// [`super::micro::pack`] into pairs: word (r, k) holds elements (r, 2 k) and (r, 2 k + 1).
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn pack_pairs<S: Simd>(
    simd: S,
    from: *const f32,
    row_stride: usize,
    depth_stride: usize,
    rows: usize,
    depth: usize,
    to: *mut f32,
    width: usize,
) {
    // SAFETY: as the caller promises; loads stop at `rows` and `depth`, stores run over by less than a vector.
    unsafe {
        if depth_stride == 1 {
            for strip in (0..rows).step_by(S::LANES) {
                let count = S::LANES.min(rows - strip);
                let from = from.add(strip * row_stride);
                for k in (0..depth).step_by(2 * S::LANES) {
                    for row in 0..count {
                        let ahead = from.wrapping_add(row * row_stride + k + AHEAD);
                        simd.prefetch(ahead);
                        simd.prefetch(ahead.wrapping_add(16));
                    }
                    let cols = (2 * S::LANES).min(depth - k);
                    let block = simd.load_pairs_transposed(from.add(k), row_stride, count, cols);
                    let to = to.add(k / 2 * width + strip);
                    for (j, &v) in block.as_ref().iter().take(cols.div_ceil(2)).enumerate() {
                        simd.store(to.add(j * width), v);
                    }
                }
            }
        } else if row_stride == 1 {
            for k in (0..depth).step_by(2) {
                for strip in (0..rows).step_by(S::LANES) {
                    let at = from.add(k * depth_stride + strip);
                    // Each step of depth is elsewhere in memory, and the CPU does not follow.
                    simd.prefetch(at.wrapping_add(ROWS_AHEAD * depth_stride));
                    simd.prefetch(at.wrapping_add((ROWS_AHEAD + 1) * depth_stride));
                    let even = simd.load_up_to(at, rows - strip);
                    let odd = if k + 1 < depth {
                        simd.load_up_to(at.add(depth_stride), rows - strip)
                    } else {
                        simd.splat(0.0)
                    };
                    simd.store(to.add(k / 2 * width + strip), simd.pairs(even, odd));
                }
            }
        } else {
            for k in (0..depth).step_by(2) {
                for r in 0..rows {
                    let at = from.add(r * row_stride + k * depth_stride);
                    let odd = if k + 1 < depth {
                        *at.add(depth_stride)
                    } else {
                        0.0
                    };
                    let word = round(*at).to_bits() >> 16 | round(odd).to_bits();
                    *to.add(k / 2 * width + r) = f32::from_bits(word);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::round;

    #[test]
    fn rounding_goes_to_the_nearest_and_from_halves_to_even() {
        for (x, want) in [
            (1.0, 1.0),
            (1.0 + 1.0 / 256.0, 1.0),
            (1.0 + 3.0 / 256.0, 1.0 + 4.0 / 256.0),
            (-1.0 - 1.1 / 256.0, -1.0 - 2.0 / 256.0),
            (f32::MAX, f32::INFINITY),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
            (-1e-39, -0.0),
        ] {
            assert_eq!(round(x).to_bits(), f32::to_bits(want), "{x}");
        }
        assert!(round(f32::from_bits(0x7f80_0001)).is_nan());
    }
}
