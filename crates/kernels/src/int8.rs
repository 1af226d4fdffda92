//! 8-bit weights with a scale for each row: the embedding table and the output head.
//!
//! ```text
//! weight[r, i] = scales[r] · q[r, i]
//! ```
//! Stored like palettized weights (see [`crate::palette`]): strips of 16 rows, 64 bytes of a strip
//! holding 4 inputs of all 16 rows, bytes `4r..4r + 4` being row r. The product takes the same
//! activations, sums exactly in int32 for each block of 128, and gives the same bits in any batch,
//! on any number of threads and on every instruction set. It leaves out zero points and groups
//! within a row.

pub use crate::palette::LayoutError;

use crate::palette::dense;
use crate::palette::strips::{self, Format, Strips, Then};
use crate::profile::{Kernel, span};
use crate::quantize::QuantizedRows;
use crate::{Isa, Pool};
use half::f16;

/// Element counts of the two tensors of a matrix; see [`sizes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Int8 weights in strip order.
    pub data: usize,
    /// F16 row scales, rows padded to 16.
    pub scales: usize,
}

/// What a `[rows, cols]` matrix takes.
///
/// # Errors
/// When a size is 0, or the bytes could not be addressed.
pub fn sizes(rows: usize, cols: usize) -> Result<Sizes, LayoutError> {
    let lengths = strips::lengths(Format::Eight, rows, cols)?;
    Ok(Sizes {
        data: lengths.data,
        scales: lengths.scales,
    })
}

/// An 8-bit matrix `[rows, cols]` in somebody else's memory, checked.
#[derive(Clone, Copy, Debug)]
pub struct Int8Matrix<'a> {
    strips: Strips<'a>,
}

impl<'a> Int8Matrix<'a> {
    /// A view of two buffers whose lengths must be those of [`sizes`].
    ///
    /// # Errors
    /// When a size is 0 or absurd, or a buffer has another length. Never panics.
    pub fn new(
        rows: usize,
        cols: usize,
        data: &'a [i8],
        scales: &'a [f16],
    ) -> Result<Int8Matrix<'a>, LayoutError> {
        let data = ("data", bytemuck::cast_slice(data));
        Ok(Int8Matrix {
            strips: Strips::new(Format::Eight, rows, cols, data, &[], scales)?,
        })
    }

    /// Output features, or tokens of an embedding.
    pub fn rows(&self) -> usize {
        self.strips.rows
    }

    /// Input features, or the width of an embedding.
    pub fn cols(&self) -> usize {
        self.strips.cols
    }

    /// The weights in strip order.
    pub fn data(&self) -> &'a [i8] {
        bytemuck::cast_slice(self.strips.data)
    }

    /// The row scales, rows padded to 16.
    pub fn scales(&self) -> &'a [f16] {
        self.strips.scales
    }

    /// Writes one dense row into `out`: `[cols]`. [`gather`] is the fast way for several.
    ///
    /// # Panics
    /// When there is no such row, or `out` has another length.
    pub fn gather_row(&self, row: usize, out: &mut [f32]) {
        dense::row(Isa::Scalar, &self.strips, row, out);
    }
}

/// Row-major int8 weights `[rows, cols]` to strip order, padded with 0.
///
/// # Errors
/// When a size is 0 or absurd, or there are not `rows · cols` values.
pub fn pack(rows: usize, cols: usize, values: &[i8]) -> Result<Vec<i8>, LayoutError> {
    let lengths = strips::lengths(Format::Eight, rows, cols)?;
    strips::check_values("row-major weights", Format::Eight, rows, cols, values.len())?;
    let mut data = vec![0i8; lengths.data];
    let (values, bytes) = (
        bytemuck::cast_slice(values),
        bytemuck::cast_slice_mut(&mut data),
    );
    strips::pack(Format::Eight, rows, cols, values, bytes);
    Ok(data)
}

/// The inverse of [`pack`].
///
/// # Errors
/// When a size is 0 or absurd, or `data` has another length than [`sizes`] says.
pub fn unpack(rows: usize, cols: usize, data: &[i8]) -> Result<Vec<i8>, LayoutError> {
    let values = strips::unpack(
        Format::Eight,
        rows,
        cols,
        ("data", bytemuck::cast_slice(data)),
    )?;
    Ok(values.into_iter().map(|value| value as i8).collect())
}

/// What [`quantize`] makes of dense weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// Int8 weights in strip order.
    pub data: Vec<i8>,
    /// F16 row scales, rows padded to 16 with 0.
    pub scales: Vec<f16>,
}

/// Dense weights `[rows, cols]` to 8 bits, symmetric: a row's scale is max|w| / 127 as the nearest
/// f16, and each weight the nearest multiple of it within ±127.
///
/// # Errors
/// When a size is 0 or absurd, there are not `rows · cols` weights, or one is NaN, infinite or
/// larger than 127 times the largest f16.
pub fn quantize(rows: usize, cols: usize, weight: &[f32]) -> Result<Quantized, LayoutError> {
    let lengths = strips::lengths(Format::Eight, rows, cols)?;
    strips::check_values("dense weights", Format::Eight, rows, cols, weight.len())?;
    let mut scales = vec![f16::ZERO; lengths.scales];
    let mut values = vec![0i8; weight.len()];
    for (row, (weights, values)) in weight
        .chunks_exact(cols)
        .zip(values.chunks_exact_mut(cols))
        .enumerate()
    {
        let largest = 127.0 * f16::MAX.to_f32();
        if let Some(col) = weights
            .iter()
            .position(|weight| weight.is_nan() || weight.abs() > largest)
        {
            return Err(LayoutError::Weight {
                row,
                col,
                value: weights[col],
            });
        }
        let max = weights
            .iter()
            .fold(0.0f32, |max, weight| max.max(weight.abs()));
        let scale = f16::from_f32(max / 127.0);
        scales[row] = scale;
        if scale == f16::ZERO {
            continue; // less than half the smallest f16: the row is 0
        }
        for (value, weight) in values.iter_mut().zip(weights) {
            *value = (weight / scale.to_f32())
                .round_ties_even()
                .clamp(-127.0, 127.0) as i8;
        }
    }
    Ok(Quantized {
        data: pack(rows, cols, &values)?,
        scales,
    })
}

/// `out[n] = weight[tokens[n]]`: `[N, cols]`, the embedding look-up.
///
/// # Panics
/// When a token is no row, or `out` is not `[N, cols]`.
pub fn gather(pool: &Pool, matrix: Int8Matrix<'_>, tokens: &[u32], out: &mut [f32]) {
    let _span = span(Kernel::Palette);
    dense::gather(pool, &matrix.strips, tokens, out);
}

/// Writes the dense weights of `matrix` into `out`: `[rows, cols]`, exact.
///
/// # Panics
/// When `out` has another length.
pub fn dequantize(pool: &Pool, matrix: Int8Matrix<'_>, out: &mut [f32]) {
    let _span = span(Kernel::Palette);
    dense::all(pool, &matrix.strips, out);
}

/// `out[n] = W x[n]`: `[N, rows]`.
///
/// # Panics
/// When `matrix` has other columns than `x`, or `out` is not `[N, rows]`.
pub fn matmul(pool: &Pool, matrix: Int8Matrix<'_>, x: &QuantizedRows, out: &mut [f32]) {
    let _span = span(Kernel::Palette);
    strips::product(pool, 1, |_| &matrix.strips, x, out, Then::Store, None);
}

// Products, gathering and layout are tested with the palettes, in `palette::tests`.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantizing_is_off_by_half_a_step() {
        let (rows, cols) = (5, 37);
        let weight: Vec<f32> = (0..rows * cols)
            .map(|at| crate::random::normal(1, 0, at as u64))
            .collect();
        let Quantized { data, scales } = quantize(rows, cols, &weight).unwrap();
        let matrix = Int8Matrix::new(rows, cols, &data, &scales).unwrap();
        let mut out = vec![0.0; cols];
        for (row, weight) in weight.chunks(cols).enumerate() {
            matrix.gather_row(row, &mut out);
            let scale = scales[row].to_f32();
            for (out, weight) in out.iter().zip(weight) {
                // Half a step; the largest weight, cut at 127 steps of a scale rounded down by at
                // most 2^-11, up to 127 / 2^11 = 0.06 of one.
                assert!((out - weight).abs() <= 0.5001 * scale, "{out} for {weight}");
            }
            assert!(
                out.iter().any(|out| out.abs() >= 126.0 * scale),
                "the range is used"
            );
        }
        assert_eq!(unpack(rows, cols, &data).unwrap().len(), rows * cols);
    }

    #[test]
    fn a_row_of_zeros_stays_zero() {
        let Quantized { data, scales } =
            quantize(2, 4, &[0.0, 0.0, -0.0, 1e-9, 1.0, 2.0, 3.0, 4.0]).unwrap();
        let matrix = Int8Matrix::new(2, 4, &data, &scales).unwrap();
        let mut out = [1.0; 4];
        matrix.gather_row(0, &mut out);
        assert_eq!(out, [0.0; 4]);
    }

    #[test]
    fn weights_beyond_f16_scales_are_refused() {
        for fault in [f32::NAN, f32::INFINITY, -1e7] {
            let said = quantize(2, 2, &[0.0, 0.0, 0.0, fault])
                .unwrap_err()
                .to_string();
            assert!(said.contains("row 1, column 1"), "{said}");
        }
        assert!(quantize(1, 1, &[8.3e6]).is_ok());
    }
}
