//! A palettized weight matrix while it is being made: strips side by side, indices a byte each.

use half::f16;
use russet_kernels::Pool;
use russet_kernels::palette::{self, Bits, LayoutError, STRIP};
use russet_model::package::PaletteTensors;

use crate::strip::{Importance, Strip};
use crate::{pairs, strip};

/// `weight[r, c] = scales[r] · palette[r / 16][indices[r, c]]`, or of pairs as `russet_kernels::palette` says it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Matrix {
    pub bits: Bits,
    pub rows: usize,
    pub cols: usize,
    /// `[rows, cols]`, of pairs `[rows, indices of a row]`.
    pub indices: Vec<u8>,
    /// `[strips, entries]`, of pairs `[strips, 2, entries]`.
    pub palette: Vec<i8>,
    /// Rows padded to 16.
    pub scales: Vec<f16>,
}

/// What fitting a strip gives.
pub(crate) struct StripFit {
    /// As in [`Matrix`], of this strip.
    pub palette: Vec<i8>,
    /// One a row, 0 for rows that there are not.
    pub scales: [f16; STRIP],
    /// As in [`Matrix`], of this strip.
    pub indices: Vec<u8>,
    /// Σ ω Δw².
    pub error: f64,
    /// Σ ω w².
    pub energy: f64,
}

/// A matrix with how far it is from the weights that it was made of.
pub(crate) struct Fitted {
    pub matrix: Matrix,
    /// Σ ω Δw², or J where errors were fed back.
    pub error: f64,
    /// The same of a matrix of zeros.
    pub energy: f64,
}

impl Fitted {
    /// Error over energy; 0 for a matrix that matters nothing.
    pub fn relative_error(&self) -> f64 {
        if self.energy > 0.0 {
            self.error / self.energy
        } else {
            0.0
        }
    }
}

/// Palettizes `weight [rows, cols]` by weighted k-means, a task a strip.
pub(crate) fn palettize(
    pool: &Pool,
    weight: &[f32],
    cols: usize,
    importance: Importance,
    bits: Bits,
) -> Fitted {
    let mut fits = palettize_each(pool, weight, cols, importance, &[bits]);
    fits.remove(0)
}

/// The same with each of `widths`.
pub(crate) fn palettize_each(
    pool: &Pool,
    weight: &[f32],
    cols: usize,
    importance: Importance,
    widths: &[Bits],
) -> Vec<Fitted> {
    let rows = weight.len() / cols;
    let strips = rows.div_ceil(STRIP);
    let singles: Vec<Bits> = widths
        .iter()
        .copied()
        .filter(|bits| bits.dims() == 1)
        .collect();
    let mut fits: Vec<Vec<StripFit>> = (0..strips).map(|_| Vec::new()).collect();
    pool.for_each_chunk(&mut fits, 1, |strip, fitted| {
        let range = strip * STRIP..rows.min((strip + 1) * STRIP);
        let importance = importance.skip_rows(range.start);
        let weight = &weight[range.start * cols..range.end * cols];
        let strip = Strip {
            weight,
            cols,
            importance,
        };
        let fits = match singles.is_empty() {
            true => Vec::new(),
            false => strip::fits(pool.isa(), strip, &singles),
        };
        let mut single = fits.into_iter();
        fitted[0].extend(widths.iter().map(|&bits| match bits.dims() {
            1 => single.next().expect("a fit of each width").into(),
            _ => pairs::fit(pool.isa(), strip, bits),
        }));
    });
    let mut matrices: Vec<Fitted> = widths
        .iter()
        .map(|&bits| Fitted {
            matrix: Matrix {
                bits,
                rows,
                cols,
                indices: Vec::with_capacity(rows * bits.indices(cols)),
                palette: Vec::with_capacity(strips * bits.table()),
                scales: Vec::with_capacity(strips * STRIP),
            },
            error: 0.0,
            energy: 0.0,
        })
        .collect();
    for fits in fits {
        for (fitted, fit) in matrices.iter_mut().zip(fits) {
            fitted.matrix.indices.extend(fit.indices);
            fitted.matrix.palette.extend(fit.palette);
            fitted.matrix.scales.extend(fit.scales);
            fitted.error += fit.error;
            fitted.energy += fit.energy;
        }
    }
    matrices
}

impl From<strip::Fit> for StripFit {
    fn from(fit: strip::Fit) -> StripFit {
        StripFit {
            palette: fit.table.entries().to_vec(),
            scales: fit.table.scales,
            indices: fit.indices,
            error: fit.error,
            energy: fit.energy,
        }
    }
}

impl Matrix {
    /// The stored form.
    pub fn pack(&self) -> Result<PaletteTensors, LayoutError> {
        Ok(PaletteTensors {
            bits: self.bits,
            indices: palette::pack(self.bits, self.rows, self.cols, &self.indices)?,
            palette: self.palette.clone(),
            scales: self.scales.clone(),
        })
    }

    /// The weights that it stands for, `[rows, cols]`.
    pub fn dequantize(&self, pool: &Pool, out: &mut [f32]) {
        assert_eq!(
            out.len(),
            self.rows * self.cols,
            "a {} x {} matrix",
            self.rows,
            self.cols
        );
        let (entries, table) = (self.bits.entries(), self.bits.table());
        let width = self.bits.indices(self.cols);
        pool.for_each_chunk(out, self.cols, |row, out| {
            let scale = self.scales[row].to_f32();
            let mut values = [0.0; 512];
            for (value, &entry) in values
                .iter_mut()
                .zip(&self.palette[row / STRIP * table..][..table])
            {
                *value = scale * f32::from(entry);
            }
            let indices = &self.indices[row * width..][..width];
            if self.bits.dims() == 1 {
                for (out, &index) in out.iter_mut().zip(indices) {
                    *out = values[usize::from(index) & 15];
                }
                return;
            }
            for (number, &index) in indices.iter().enumerate() {
                for (half, input) in self.bits.inputs(number).into_iter().enumerate() {
                    if let Some(out) = out.get_mut(input) {
                        *out = values[half * entries + usize::from(index)];
                    }
                }
            }
        });
    }

    /// Σ ω (w − stored)².
    pub fn error(&self, pool: &Pool, weight: &[f32], importance: Importance) -> f64 {
        let mut stored = vec![0.0; weight.len()];
        self.dequantize(pool, &mut stored);
        let rows = stored
            .chunks_exact(self.cols)
            .zip(weight.chunks_exact(self.cols))
            .enumerate();
        rows.map(|(row, (stored, weight))| {
            let square = |((&q, &w), &o): ((&f32, &f32), &f32)| {
                f64::from(o) * (f64::from(w) - f64::from(q)).powi(2)
            };
            stored
                .iter()
                .zip(weight)
                .zip(importance.row(row, self.cols))
                .map(square)
                .sum::<f64>()
        })
        .sum()
    }
}

/// Bytes that a matrix takes in a package.
pub(crate) fn stored_bytes(bits: Bits, rows: usize, cols: usize) -> Result<usize, LayoutError> {
    let sizes = palette::sizes(bits, rows, cols)?;
    Ok(sizes.indices + sizes.palette + 2 * sizes.scales)
}

#[cfg(test)]
mod tests {
    use super::*;
    use russet_kernels::palette::PaletteMatrix;
    use russet_kernels::random;

    fn check(rows: usize, cols: usize, bits: Bits) {
        let weight: Vec<f32> = (0..rows * cols)
            .map(|i| 0.02 * random::normal(1, 0, i as u64))
            .collect();
        let importance: Vec<f32> = (0..cols).map(|i| random::uniform(1, 1, i as u64)).collect();
        let fit = |threads| {
            let pool = Pool::new(threads).unwrap();
            palettize(&pool, &weight, cols, Importance::columns(&importance), bits)
        };
        let (one, two) = (fit(1), fit(2));
        assert_eq!(
            (&one.matrix, one.error),
            (&two.matrix, two.error),
            "the number of threads changed the result"
        );

        let pool = Pool::new(1).unwrap();
        let tensors = one.matrix.pack().unwrap();
        assert_eq!(tensors.bytes(), stored_bytes(bits, rows, cols).unwrap());
        let view = PaletteMatrix::new(
            bits,
            rows,
            cols,
            &tensors.indices,
            &tensors.palette,
            &tensors.scales,
        )
        .unwrap();
        let (mut got, mut want) = (vec![0.0; rows * cols], vec![0.0; rows * cols]);
        one.matrix.dequantize(&pool, &mut got);
        palette::dequantize(&pool, view, &mut want);
        assert_eq!(got, want);
        let error = one
            .matrix
            .error(&pool, &weight, Importance::columns(&importance));
        assert!(
            (error - one.error).abs() < 1e-6 * one.energy,
            "{error} by the weights, {} by the sums",
            one.error
        );
    }

    #[test]
    fn what_is_measured_is_what_is_stored_on_any_number_of_threads() {
        for (rows, cols) in [(16, 8), (37, 100), (5, 300), (64, 33)] {
            for bits in Bits::ALL {
                check(rows, cols, bits);
            }
        }
    }
}
