//! Activations as int8: one f32 scale for each token and each block of 128 inputs.
//!
//! ```text
//! scale[n, b] = max |x[n, i]| / 127      over the inputs i of block b
//! q[n, i]     = round(x[n, i] · 127 / max |x|)      to nearest, ties to even, so |q| <= 127
//! ```
//! Every instruction set computes the same bits, and a token's values do not depend on the tokens
//! beside it. A block of zeros (anything below 1e-30) has scale 0; a block that holds a NaN or an
//! infinity has scale NaN, so the fault shows in the product instead of vanishing. The scheme is
//! the usual dynamic symmetric one (Dettmers et al., *LLM.int8()*, 2022, with blocks for rows); it
//! leaves out zero points, outlier columns and static calibration.

use crate::pool::Disjoint;
use crate::profile::{Kernel, span};
use crate::{Isa, Pool};

/// Rows of a tile of AMX.
const SIDE: usize = 16;
/// The most tokens in a panel for tiles: all that a task multiplies, so that a block of theirs lies in one run. Panels of 32 would be
/// a power of two apart, and all of them would map to one set of the cache.
const TILED_PANEL: usize = 512;

/// Inputs that share an activation scale, and over which products accumulate in int32: at most
/// 128 · 255 · 127 = 4.1 M, far from overflow and exact in f32.
pub const BLOCK: usize = 128;

/// The most tokens in a panel: 12 tokens x 32 rows are 24 accumulators, the most that AVX-512
/// holds in registers beside weights and tables.
pub(crate) const PANEL: usize = 12;

/// Rows from which on panels are those of AMX's tiles, where there are any: fewer are bound by memory, and then 16 rows of a tile
/// would do for one.
const TILED: usize = 16;

/// Below this a block counts as zero: 127 / max|x| must stay finite, and weights times 1e-30 do
/// not reach any f32 sum.
const ZERO: f32 = 1e-30;

/// Int8 activations `[N, D]`, ready for [`crate::palette::matmul`] and [`crate::int8::matmul`].
///
/// The order in memory is private: panels of up to 12 tokens, for AMX's tiles of up to 512, and inside a panel
/// `[block, token, 128]`, so a tile of the product reads one contiguous run and never strides by a
/// power of two (which would map all its tokens to one set of the cache).
#[derive(Clone, Debug, Default)]
pub struct QuantizedRows {
    rows: usize,
    cols: usize,
    /// Tokens in each panel (the last may have fewer; its tail is zero).
    width: usize,
    /// Whether panels are those of AMX's tiles.
    tiled: bool,
    values: Vec<Values>,   // [panel, block, width]
    scales: Vec<f32>,      // [panel, block, width]
    corrections: Vec<i32>, // [panel, block, width]: -128 Σ q, undoing the +128 of unsigned tables
}

/// A block of a token; a row of a tile is half of one, and one that crossed a line of the cache would be read as two.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
struct Values([i8; BLOCK]);

/// Some tokens of a [`QuantizedRows`]: what one tile of a product reads.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    /// Tokens that exist, `<= width`.
    pub tokens: usize,
    /// Tokens that memory holds for each block.
    pub width: usize,
    pub values: &'a [i8],       // [block, width, 128]
    pub scales: &'a [f32],      // [block, width]
    pub corrections: &'a [i32], // [block, width]
}

impl QuantizedRows {
    /// Quantizes `x`: `[N, cols]`.
    ///
    /// # Panics
    /// When `cols` is 0 or does not divide the length of `x`.
    pub fn new(pool: &Pool, x: &[f32], cols: usize) -> QuantizedRows {
        let mut rows = QuantizedRows::default();
        rows.set(pool, x, cols);
        rows
    }

    /// Like [`QuantizedRows::new`], in the memory that `self` already has.
    ///
    /// # Panics
    /// When `cols` is 0 or does not divide the length of `x`.
    pub fn set(&mut self, pool: &Pool, x: &[f32], cols: usize) {
        assert!(
            cols > 0 && x.len().is_multiple_of(cols),
            "activations of {} values are no rows of {cols}",
            x.len()
        );
        let _span = span(Kernel::Palette);
        let rows = x.len() / cols;
        let blocks = cols.div_ceil(BLOCK);
        self.tiled = pool.isa() == Isa::Amx && rows >= TILED;
        let (most, step) = if self.tiled {
            (TILED_PANEL, SIDE)
        } else {
            (PANEL, 1)
        };
        // Equal widths waste least: 13 tokens are 7 + 6, not 12 + 1.
        let width = match rows.div_ceil(most) {
            0 => 0,
            panels => rows.div_ceil(panels).next_multiple_of(step),
        };
        let panels = if width == 0 { 0 } else { rows.div_ceil(width) };
        (self.rows, self.cols, self.width) = (rows, cols, width);
        let zero = Values([0; BLOCK]);
        self.values.resize(panels * blocks * width, zero);
        self.scales.resize(panels * blocks * width, 0.0);
        self.corrections.resize(panels * blocks * width, 0);

        let values = Disjoint::new(&mut self.values);
        let scales = Disjoint::new(&mut self.scales);
        let corrections = Disjoint::new(&mut self.corrections);
        let quantize = match pool.isa() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => quantize_block_avx2 as unsafe fn(&[f32], &mut [i8; BLOCK]) -> (f32, i32),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => quantize_block_avx512,
            _ => quantize_block,
        };
        // About 32k values a task: some microseconds, and a few tokens stay on this thread.
        let group = (1usize << 15).div_ceil(cols * width.max(1)).max(1); // panels
        pool.run(panels.div_ceil(group), |task| {
            for panel in task * group..((task + 1) * group).min(panels) {
                let len = blocks * width;
                // SAFETY: each panel belongs to one task, and panels do not overlap.
                let (values, scales, corrections) = unsafe {
                    (
                        values.range(panel * len, len),
                        scales.range(panel * len, len),
                        corrections.range(panel * len, len),
                    )
                };
                for slot in 0..width {
                    let row = panel * width + slot;
                    for b in 0..blocks {
                        let at = b * width + slot;
                        let (scale, sum) = if row < rows {
                            let first = row * cols + b * BLOCK;
                            let last = (first + BLOCK).min((row + 1) * cols);
                            // SAFETY: the pool vouches for its instructions.
                            unsafe { quantize(&x[first..last], &mut values[at].0) }
                        } else {
                            values[at].0.fill(0);
                            (0.0, 0)
                        };
                        scales[at] = scale;
                        corrections[at] = -128 * sum;
                    }
                }
            }
        });
    }

    /// Tokens, N.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs of a token, D.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The int8 values of one block of a token; fewer than 128 in a ragged last block.
    ///
    /// # Panics
    /// When `row` or `block` is out of range.
    pub fn values(&self, row: usize, block: usize) -> &[i8] {
        let values = &self.values[self.position(row, block)].0;
        &values[..BLOCK.min(self.cols - block * BLOCK)]
    }

    /// The scale of one block of a token: x ≈ scale · value, off by at most scale / 2.
    ///
    /// # Panics
    /// When `row` or `block` is out of range.
    pub fn scale(&self, row: usize, block: usize) -> f32 {
        self.scales[self.position(row, block)]
    }

    /// Writes what the int8 values stand for into `out`: `[N, D]`.
    ///
    /// # Panics
    /// When `out` has another length.
    pub fn dequantize(&self, out: &mut [f32]) {
        assert_eq!(
            out.len(),
            self.rows * self.cols,
            "dequantizing [{}, {}]",
            self.rows,
            self.cols
        );
        for (row, out) in out.chunks_exact_mut(self.cols.max(1)).enumerate() {
            for (block, out) in out.chunks_mut(BLOCK).enumerate() {
                let scale = self.scale(row, block);
                for (out, &value) in out.iter_mut().zip(self.values(row, block)) {
                    *out = f32::from(value) * scale;
                }
            }
        }
    }

    /// How many panels there are.
    pub(crate) fn panels(&self) -> usize {
        if self.width == 0 {
            0
        } else {
            self.rows.div_ceil(self.width)
        }
    }

    /// Whether panels are those of AMX's tiles, whole multiples of 16 tokens wide.
    pub(crate) fn tiled(&self) -> bool {
        self.tiled
    }

    /// Tokens in each panel but perhaps the last.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Panel `index`: tokens from `index · width`.
    pub(crate) fn panel(&self, index: usize) -> Panel<'_> {
        let len = self.cols.div_ceil(BLOCK) * self.width;
        let all = index * len..(index + 1) * len;
        Panel {
            tokens: self.width.min(self.rows - index * self.width),
            width: self.width,
            values: bytemuck::cast_slice(&self.values[all.clone()]),
            scales: &self.scales[all.clone()],
            corrections: &self.corrections[all],
        }
    }

    fn position(&self, row: usize, block: usize) -> usize {
        let blocks = self.cols.div_ceil(BLOCK);
        assert!(
            row < self.rows && block < blocks,
            "row {row}, block {block} of activations with {} rows of {blocks} blocks",
            self.rows
        );
        let (panel, slot) = (row / self.width, row % self.width);
        (panel * blocks + block) * self.width + slot
    }
}

/// Quantizes up to 128 inputs; the rest of `values` becomes 0. Returns the scale and Σ values.
///
/// One body for every instruction set. It is written so that the compiler can use any vector width
/// without changing a bit: the maximum runs over the bits of |x| (as integers they order as the
/// floats do, NaN above infinity above all numbers), and rounding adds and removes 1.5 · 2^23,
/// where the spacing of f32 is 1, so the hardware's own ties-to-even does it.
#[inline(always)]
fn quantize_block(x: &[f32], values: &mut [i8; BLOCK]) -> (f32, i32) {
    let mut padded = [0.0f32; BLOCK];
    let x: &[f32; BLOCK] = match x.try_into() {
        Ok(full) => full,
        Err(_) => {
            padded[..x.len()].copy_from_slice(x);
            &padded
        }
    };
    let (scale, inverse) = scale_of(x, 127.0);
    if inverse == 0.0 {
        values.fill(0);
        return (scale, 0);
    }
    let mut sum = 0i32;
    for (value, &x) in values.iter_mut().zip(x) {
        // |x · inverse| <= 127 (1 + 2^-22), which rounds to 127.
        let rounded = rounded(x, inverse);
        *value = rounded as i8;
        sum += rounded;
    }
    (scale, sum)
}

/// What one step of a symmetric scale is worth whose largest step is `largest`, and the inverse to multiply numbers by: (0, 0) where
/// all count as zero, (NaN, 0) where one is NaN or infinite.
#[inline(always)]
pub(crate) fn scale_of(x: &[f32], largest: f32) -> (f32, f32) {
    let bits = x
        .iter()
        .fold(0u32, |largest, x| largest.max(x.to_bits() & 0x7fff_ffff));
    let max = f32::from_bits(bits);
    if !max.is_finite() {
        (f32::NAN, 0.0)
    } else if max < ZERO {
        (0.0, 0.0)
    } else {
        (max / largest, largest / max)
    }
}

/// x · inverse to the nearest integer, ties to even; 0 where the inverse is 0, whatever x is. |x · inverse| is below 2^22.
#[inline(always)]
pub(crate) fn rounded(x: f32, inverse: f32) -> i32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 · 2^23
    let rounded = (x * inverse + SHIFT)
        .to_bits()
        .wrapping_sub(SHIFT.to_bits()) as i32;
    if inverse == 0.0 { 0 } else { rounded }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn quantize_block_avx2(x: &[f32], values: &mut [i8; BLOCK]) -> (f32, i32) {
    quantize_block(x, values)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn quantize_block_avx512(x: &[f32], values: &mut [i8; BLOCK]) -> (f32, i32) {
    quantize_block(x, values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random;

    fn pools() -> impl Iterator<Item = Pool> {
        Isa::available().map(|isa| Pool::with_isa(2, isa))
    }

    /// The formula at the top of the module, one block.
    fn formula(x: &[f32]) -> (f32, Vec<i8>) {
        let max = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        let inverse = 127.0 / max;
        (
            max / 127.0,
            x.iter()
                .map(|x| (x * inverse).round_ties_even() as i8)
                .collect(),
        )
    }

    #[test]
    fn every_body_equals_the_formula() {
        for (rows, cols) in [(1, 128), (3, 1), (13, 300), (40, 129), (130, 512)] {
            let x: Vec<f32> = (0..rows * cols)
                .map(|at| random::normal(1, 0, at as u64) * 10f32.powi(at as i32 % 7 - 3))
                .collect();
            for pool in pools() {
                let quantized = QuantizedRows::new(&pool, &x, cols);
                assert_eq!((quantized.rows(), quantized.cols()), (rows, cols));
                for (row, x) in x.chunks(cols).enumerate() {
                    for (block, x) in x.chunks(BLOCK).enumerate() {
                        let (scale, values) = formula(x);
                        assert_eq!(quantized.scale(row, block).to_bits(), scale.to_bits());
                        assert_eq!(quantized.values(row, block), values, "{:?}", pool.isa());
                    }
                }
            }
        }
    }

    #[test]
    fn values_are_off_by_half_a_step_at_most() {
        let (rows, cols) = (5, 200);
        let x: Vec<f32> = (0..rows * cols)
            .map(|at| random::normal(2, 0, at as u64))
            .collect();
        for pool in pools() {
            let quantized = QuantizedRows::new(&pool, &x, cols);
            let mut back = vec![0.0; x.len()];
            quantized.dequantize(&mut back);
            for (at, (back, x)) in back.iter().zip(&x).enumerate() {
                let scale = quantized.scale(at / cols, at % cols / BLOCK);
                assert!((back - x).abs() <= scale * 0.5001, "{back} for {x}");
            }
        }
    }

    #[test]
    fn ties_go_to_even_and_the_largest_to_127() {
        for pool in pools() {
            let x = [127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -127.0];
            let quantized = QuantizedRows::new(&pool, &x, x.len());
            assert_eq!(quantized.values(0, 0), [127, 0, 2, 2, 0, -2, -127]);
            assert_eq!(quantized.scale(0, 0), 1.0);
        }
    }

    #[test]
    fn tiny_zero_and_faulty_blocks_are_told_apart() {
        for pool in pools() {
            let mut x = vec![0.0; 4 * BLOCK];
            x[0] = -1e-31;
            x[2 * BLOCK] = 1e-29;
            x[3 * BLOCK] = 1.0;
            x[3 * BLOCK + 5] = f32::NAN;
            let quantized = QuantizedRows::new(&pool, &x, 4 * BLOCK);
            assert_eq!([0, 1].map(|block| quantized.scale(0, block)), [0.0, 0.0]);
            assert_eq!(quantized.values(0, 2)[0], 127);
            assert!(quantized.scale(0, 3).is_nan());
            assert!(
                [0, 1, 3]
                    .iter()
                    .all(|&block| quantized.values(0, block) == [0; BLOCK])
            );
        }
    }

    #[test]
    fn memory_used_again_forgets_what_it_held() {
        for pool in pools() {
            let large: Vec<f32> = (0..40 * 300)
                .map(|at| random::normal(3, 0, at as u64))
                .collect();
            let mut used = QuantizedRows::new(&pool, &large, 300);
            for (rows, cols) in [(1, 300), (13, 130), (40, 300), (0, 7), (25, 3)] {
                used.set(&pool, &large[..rows * cols], cols);
                let fresh = QuantizedRows::new(&pool, &large[..rows * cols], cols);
                assert_eq!(
                    (used.rows, used.cols, used.width),
                    (fresh.rows, fresh.cols, fresh.width)
                );
                assert_eq!(used.values, fresh.values);
                assert_eq!(used.scales, fresh.scales);
                assert_eq!(used.corrections, fresh.corrections);
            }
        }
    }
}
