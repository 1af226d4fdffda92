//! Indices, tables and scales chosen by the error of the product's output.
//!
//! With inputs x and H = E[a x xᵀ] the output's error of a matrix W stored as Q is
//! ```text
//! J = Σᵣ Δᵣ H Δᵣᵀ,   Δ = W − Q
//! ```
//! where errors of correlated inputs can cancel, which k-means (the diagonal of H) cannot know. Three steps lower J:
//!
//! - *feedback*: columns are rounded in order, and each sees the error of those before it. With H = U D Uᵀ, U unit
//!   upper triangular, column j rounds to the entry nearest w + Σ_{i<j} Δᵢ U[i, j]. This is GPTQ (Frantar et al., arXiv
//!   2210.17323) in the form of QuIP's LDLQ (Chee et al., arXiv 2307.13304), which needs no inverse; through a
//!   table it is GPTVQ's one-dimensional case (van Baalen et al., arXiv 2402.15319).
//! - *descent*: each index in turn takes the entry that is best for all others held, nearest to q + (ΔH)ⱼ / H[j, j].
//! - *refit*: entries and scales by least squares under H, the entries by conjugate gradients, a product a step.
//!
//! Of pairs the columns lie so that a pair's two are neighbours, and both take their entry together: with U's part between the two,
//! or H's for descent, the cost of an entry is D₀ (t₀ − p₀)² + D₁ (t₁ − p₁ − u p₀)².
//!
//! The columns go in blocks, so that nearly all arithmetic is matrix products. H carries gradient weights a where they
//! are known (Kim et al., *GuidedQuant*, arXiv 2505.07004, with one group).

use std::borrow::Cow;

use half::f16;
use russet_kernels::palette::{Bits, STRIP, nearest};
use russet_kernels::{Mat, MatMut, Pool, matmul};

use crate::matrix::Matrix;

/// Columns of a block.
const BLOCK: usize = 128;

/// Added to H's diagonal, as a part of its mean: GPTQ's constant.
const DAMPING: f64 = 0.01;

/// Steps of conjugate gradients in a refit. The systems have 4, 8 or 16 unknowns; measured, more gain nothing.
const STEPS: usize = 4;

/// What a column that only completes a pair weighs, over H's mean: nothing, but H stays positive.
const ABSENT: f32 = 1e-6;

/// H of a product's inputs and its factor, columns in the order of [`columns`].
pub(crate) struct Curvature {
    h: Vec<f32>,     // [D, D], damped
    upper: Vec<f32>, // [D, D], U above the diagonal and D on it
    width: usize,
}

/// A matrix being refined.
pub(crate) struct Refinement<'a> {
    pool: &'a Pool,
    curvature: &'a Curvature,
    weight: Cow<'a, [f32]>, // [F, D]
    matrix: Matrix,
    cols: usize,        // D, with what completes the last pairs
    delta: Vec<f32>,    // W − Q, [F, D]
    weight_h: Vec<f32>, // W H, [F, D]
}

/// How a sweep chooses.
#[derive(Clone, Copy, PartialEq)]
enum Sweep {
    Feedback,
    Descent,
}

/// What a sweep makes of a strip's part of a block of columns, a column's rows side by side.
#[derive(Clone)]
struct Tile {
    delta: [[f32; STRIP]; BLOCK],
    indices: [[u8; STRIP]; BLOCK],
}

/// A strip's part of a block of columns, a column's rows side by side.
struct Part {
    weight: [[f32; STRIP]; BLOCK],
    said: [[f32; STRIP]; BLOCK], // what the columns before or beside it say
    scales: [f32; STRIP],
    inverses: [f32; STRIP],
}

/// The columns that a matrix of pairs has for [`Refinement`], a pair's two side by side; nothing where a pair has only one.
fn columns(cols: usize) -> Vec<Option<usize>> {
    // All widths of pairs have the same ones.
    let bits = Bits::TwoPairs;
    let inputs = (0..bits.indices(cols)).flat_map(|index| bits.inputs(index));
    inputs
        .map(|input| (input < cols).then_some(input))
        .collect()
}

impl Curvature {
    /// Of a sum of weighted squares `[D, D]`, for matrices of pairs or of single weights.
    pub fn new(pool: &Pool, mut h: Vec<f32>, width: usize, pairs: bool) -> Curvature {
        let mean = (0..width).map(|i| f64::from(h[i * width + i])).sum::<f64>() / width as f64;
        // A product that never saw anything but zeros is as good with any indices.
        let (scale, damping) = if mean > 0.0 {
            (mean.recip(), DAMPING)
        } else {
            (0.0, 1.0)
        };
        h.iter_mut()
            .for_each(|h| *h = (f64::from(*h) * scale) as f32);
        for i in 0..width {
            h[i * width + i] += damping as f32;
        }
        let (h, width) = match pairs {
            true => in_pairs(&h, width),
            false => (h, width),
        };
        let upper = factor(pool, &h, width);
        Curvature { h, upper, width }
    }
}

/// H in the order of [`columns`].
fn in_pairs(h: &[f32], width: usize) -> (Vec<f32>, usize) {
    let columns = columns(width);
    let mut out = vec![0.0; columns.len() * columns.len()];
    for (row, (out, from)) in out
        .chunks_exact_mut(columns.len())
        .zip(&columns)
        .enumerate()
    {
        match from {
            None => out[row] = ABSENT,
            Some(from) => {
                for (out, col) in out.iter_mut().zip(&columns) {
                    *out = col.map_or(0.0, |col| h[from * width + col]);
                }
            }
        }
    }
    (out, columns.len())
}

/// U with H = U D Uᵀ, unit upper triangular, and D on its diagonal: Cholesky from the last column to the first, in blocks.
fn factor(pool: &Pool, h: &[f32], width: usize) -> Vec<f32> {
    let mut a = h.to_vec();
    let blocks = width.div_ceil(BLOCK);
    for block in (0..blocks).rev() {
        let (start, end) = (block * BLOCK, width.min((block + 1) * BLOCK));
        let size = end - start;
        // The block on the diagonal, in f64: [size, size], row by row.
        let mut diagonal: Vec<f64> = (0..size * size)
            .map(|i| f64::from(a[(start + i / size) * width + start + i % size]))
            .collect();
        for j in (0..size).rev() {
            let root = diagonal[j * size + j].max(1e-12).sqrt();
            for i in 0..=j {
                diagonal[i * size + j] /= root;
            }
            diagonal[j * size + j] = root;
            for i in 0..j {
                for k in 0..=i {
                    diagonal[k * size + i] -= diagonal[k * size + j] * diagonal[i * size + j];
                }
            }
        }
        // The rows above it: x with x Rᵀ = a.
        let mut above = vec![0.0f32; start * size];
        pool.for_each_chunk(&mut above, size, |row, x| {
            for j in (0..size).rev() {
                let mut sum = f64::from(a[row * width + start + j]);
                for k in j + 1..size {
                    sum -= f64::from(x[k]) * diagonal[j * size + k];
                }
                x[j] = (sum / diagonal[j * size + j]) as f32;
            }
        });
        let negative: Vec<f32> = above.iter().map(|x| -x).collect();
        let rest = MatMut::strided(&mut a, start, start, width, 1);
        matmul(
            pool,
            Mat::new(&negative, start, size),
            Mat::new(&above, start, size).t(),
            rest,
            true,
        );
        // Columns over their diagonals are U's.
        for j in 0..size {
            let root = diagonal[j * size + j];
            let inverse = root.recip();
            a[(start + j) * width + start + j] = (root * root) as f32;
            for i in 0..j {
                a[(start + i) * width + start + j] = (diagonal[i * size + j] * inverse) as f32;
            }
            for i in 0..start {
                a[i * width + start + j] = (f64::from(above[i * size + j]) * inverse) as f32;
            }
        }
    }
    a
}

impl<'a> Refinement<'a> {
    /// Of a matrix that k-means made of `weight [F, D]`.
    pub fn new(
        pool: &'a Pool,
        curvature: &'a Curvature,
        weight: &'a [f32],
        matrix: Matrix,
    ) -> Self {
        assert_eq!(weight.len(), matrix.rows * matrix.cols);
        let (weight, cols) = match matrix.bits.dims() {
            1 => (Cow::Borrowed(weight), matrix.cols),
            _ => {
                let columns = columns(matrix.cols);
                let row = |row: &'a [f32]| {
                    let column = |from: &Option<usize>| from.map_or(0.0, |from| row[from]);
                    columns.iter().map(column).collect::<Vec<f32>>()
                };
                let rows = weight.chunks_exact(matrix.cols);
                (Cow::Owned(rows.flat_map(row).collect()), columns.len())
            }
        };
        let rows = matrix.rows;
        assert_eq!(curvature.width, cols, "a {rows} x {cols} matrix");
        let mut refinement = Refinement {
            pool,
            curvature,
            weight,
            matrix,
            cols,
            delta: Vec::new(),
            weight_h: Vec::new(),
        };
        refinement.weight_h = refinement.by_h(&refinement.weight);
        refinement.set_delta();
        refinement
    }

    /// What it has become.
    pub fn finish(self) -> Matrix {
        self.matrix
    }

    /// J, with H relative to its mean.
    pub fn error(&self) -> f64 {
        let delta_h = self.by_h(&self.delta);
        self.strip_sums(|row| dot(self.row(&self.delta, row), self.row(&delta_h, row)))
            .iter()
            .sum()
    }

    /// J of a matrix of zeros.
    pub fn energy(&self) -> f64 {
        self.strip_sums(|row| dot(self.row(&self.weight, row), self.row(&self.weight_h, row)))
            .iter()
            .sum()
    }

    /// Rounds every column anew, each with the error of those before it.
    pub fn feed_back(&mut self) {
        self.sweep(Sweep::Feedback);
    }

    /// Chooses every index anew, each with all others held. J does not rise.
    pub fn descend(&mut self) {
        self.sweep(Sweep::Descent);
    }

    fn by_h(&self, x: &[f32]) -> Vec<f32> {
        let (rows, cols) = (self.matrix.rows, self.cols);
        let mut out = vec![0.0; x.len()];
        let h = Mat::new(&self.curvature.h, cols, cols);
        matmul(
            self.pool,
            Mat::new(x, rows, cols),
            h,
            MatMut::new(&mut out, rows, cols),
            false,
        );
        out
    }

    fn set_delta(&mut self) {
        let mut delta = self.spread(&self.entries(), true);
        delta
            .iter_mut()
            .zip(&*self.weight)
            .for_each(|(q, w)| *q = w - *q);
        self.delta = delta;
    }

    fn entries(&self) -> Vec<f64> {
        let palette = self.matrix.palette.iter();
        palette.map(|&entry| f64::from(entry)).collect()
    }

    fn row<'m>(&self, x: &'m [f32], row: usize) -> &'m [f32] {
        &x[row * self.cols..][..self.cols]
    }

    /// Σ `of(row)` over the rows of each strip.
    fn strip_sums(&self, mut of: impl FnMut(usize) -> f64) -> Vec<f64> {
        let mut sums = vec![0.0; self.matrix.rows.div_ceil(STRIP)];
        for row in 0..self.matrix.rows {
            sums[row / STRIP] += of(row);
        }
        sums
    }

    fn sweep(&mut self, sweep: Sweep) {
        let (rows, cols) = (self.matrix.rows, self.cols);
        let dims = self.matrix.bits.dims();
        let mut tiles = vec![
            Tile {
                delta: [[0.0; STRIP]; BLOCK],
                indices: [[0; STRIP]; BLOCK]
            };
            rows.div_ceil(STRIP)
        ];
        let mut seen = vec![0.0; rows * BLOCK];
        for start in (0..cols).step_by(BLOCK) {
            let end = cols.min(start + BLOCK);
            let size = end - start;
            let (others, coefficients) = match sweep {
                Sweep::Feedback => (0..start, &self.curvature.upper),
                Sweep::Descent => (0..cols, &self.curvature.h),
            };
            let seen = &mut seen[..rows * size];
            seen.fill(0.0);
            if !others.is_empty() {
                let delta = Mat::new(&self.delta, rows, cols).cols(others.clone());
                let coefficients = Mat::new(coefficients, cols, cols)
                    .rows(others)
                    .cols(start..end);
                matmul(
                    self.pool,
                    delta,
                    coefficients,
                    MatMut::new(seen, rows, size),
                    false,
                );
            }
            let this = &*self;
            this.pool.for_each_chunk(&mut tiles, 1, |strip, tile| {
                this.tile(sweep, strip, start..end, seen, &mut tile[0])
            });
            for (strip, tile) in tiles.iter().enumerate() {
                for row in strip * STRIP..rows.min((strip + 1) * STRIP) {
                    for k in 0..size {
                        self.delta[row * cols + start + k] = tile.delta[k][row % STRIP];
                    }
                    for k in 0..size / dims {
                        let at = (row * cols + start) / dims + k;
                        self.matrix.indices[at] = tile.indices[k][row % STRIP];
                    }
                }
            }
        }
    }

    /// One strip's part of a block; `seen [F, size]` is what the columns outside the block say.
    fn tile(
        &self,
        sweep: Sweep,
        strip: usize,
        columns: std::ops::Range<usize>,
        seen: &[f32],
        tile: &mut Tile,
    ) {
        let (matrix, cols, size) = (&self.matrix, self.cols, columns.len());
        let rows = strip * STRIP..matrix.rows.min((strip + 1) * STRIP);
        let mut part = Part {
            weight: [[0.0; STRIP]; BLOCK],
            said: [[0.0; STRIP]; BLOCK],
            scales: [0.0; STRIP],
            inverses: [0.0; STRIP],
        };
        for (lane, row) in rows.enumerate() {
            part.scales[lane] = matrix.scales[row].to_f32();
            if part.scales[lane] != 0.0 {
                part.inverses[lane] = part.scales[lane].recip();
            }
            for k in 0..size {
                part.weight[k][lane] = self.weight[row * cols + columns.start + k];
                part.said[k][lane] = seen[row * size + k];
                if sweep == Sweep::Descent {
                    tile.delta[k][lane] = self.delta[row * cols + columns.start + k];
                }
            }
        }
        let palette = &matrix.palette[strip * matrix.bits.table()..][..matrix.bits.table()];
        match matrix.bits.dims() {
            1 => self.singles(sweep, palette, columns, part, tile),
            _ => self.pairs(sweep, palette, columns, part, tile),
        }
    }

    /// An entry for each weight of a tile.
    fn singles(
        &self,
        sweep: Sweep,
        palette: &[i8],
        columns: std::ops::Range<usize>,
        part: Part,
        tile: &mut Tile,
    ) {
        let (cols, size) = (self.cols, columns.len());
        let Part {
            weight,
            mut said,
            scales,
            inverses,
        } = part;
        let mut values = [0.0f32; 16];
        let mut middles = [f32::INFINITY; 15]; // beyond the table nothing lies above
        for (k, &entry) in palette.iter().enumerate() {
            values[k] = f32::from(entry);
            if k > 0 {
                middles[k - 1] = 0.5 * (values[k - 1] + values[k]);
            }
        }
        let coefficients = match sweep {
            Sweep::Feedback => &self.curvature.upper,
            Sweep::Descent => &self.curvature.h,
        };
        for j in 0..size {
            let coefficients = &coefficients[(columns.start + j) * cols..][columns.clone()];
            let mut change = [0.0f32; STRIP];
            let inverse_h = coefficients[j].recip(); // of H only; U's diagonal says something else
            for lane in 0..STRIP {
                let w = weight[j][lane];
                let (target, before) = match sweep {
                    Sweep::Feedback => (w + said[j][lane], 0.0),
                    Sweep::Descent => (
                        w - tile.delta[j][lane] + said[j][lane] * inverse_h,
                        tile.delta[j][lane],
                    ),
                };
                let x = target * inverses[lane];
                let mut below = 0;
                for middle in middles {
                    below += i32::from(x > middle);
                }
                let delta = w - scales[lane] * values[below as usize & 15];
                tile.indices[j][lane] = below as u8;
                tile.delta[j][lane] = delta;
                change[lane] = delta - before;
            }
            for k in j + 1..size {
                let coefficient = coefficients[k];
                for lane in 0..STRIP {
                    said[k][lane] += change[lane] * coefficient;
                }
            }
        }
    }

    /// An entry for each pair of a tile.
    fn pairs(
        &self,
        sweep: Sweep,
        palette: &[i8],
        columns: std::ops::Range<usize>,
        part: Part,
        tile: &mut Tile,
    ) {
        let (cols, size) = (self.cols, columns.len());
        let Part {
            weight,
            mut said,
            scales,
            inverses,
        } = part;
        let palette: Vec<f32> = palette.iter().map(|&entry| f32::from(entry)).collect();
        let (first, second) = palette.split_at(palette.len() / 2);
        let mut joined = vec![0.0; second.len()]; // p₁ + u p₀
        let coefficients = match sweep {
            Sweep::Feedback => &self.curvature.upper,
            Sweep::Descent => &self.curvature.h,
        };
        for j in (0..size).step_by(2) {
            let row = |j: usize| &coefficients[(columns.start + j) * cols..][columns.clone()];
            let (one, two) = (row(j), row(j + 1));
            let (u, d) = match sweep {
                Sweep::Feedback => (one[j + 1], [one[j], two[j + 1]]),
                Sweep::Descent => {
                    let u = one[j + 1] / two[j + 1];
                    (u, [one[j] - u * one[j + 1], two[j + 1]])
                }
            };
            for ((joined, first), second) in joined.iter_mut().zip(first).zip(second) {
                *joined = second + u * first;
            }
            let mut targets = [[0.0f32; STRIP]; 2];
            let mut before = [[0.0f32; STRIP]; 2];
            for lane in 0..STRIP {
                let [w, said] = [&weight, &said].map(|from| [from[j][lane], from[j + 1][lane]]);
                let [t, t_joined] = match sweep {
                    // The second column sees the first one's error, w₀ − s p₀, times u.
                    Sweep::Feedback => [w[0] + said[0], w[1] + said[1] + u * w[0]],
                    // The best pair of numbers, others held, is as far from that of now as H's part for the two says.
                    Sweep::Descent => {
                        before[0][lane] = tile.delta[j][lane];
                        before[1][lane] = tile.delta[j + 1][lane];
                        let step = (said[0] - u * said[1]) / d[0];
                        let t = w[0] - before[0][lane] + step;
                        let other = w[1] - before[1][lane] + said[1] / d[1] - u * step;
                        [t, other + u * t]
                    }
                };
                targets[0][lane] = t * inverses[lane];
                targets[1][lane] = t_joined * inverses[lane];
            }
            let indices = &mut tile.indices[j / 2];
            nearest(
                self.pool.isa(),
                [first, &joined],
                [&targets[0], &targets[1]],
                [&[d[0]; STRIP], &[d[1]; STRIP]],
                indices,
            );
            let mut change = [[0.0f32; STRIP]; 2];
            for lane in 0..STRIP {
                let index = usize::from(indices[lane]);
                for (half, entries) in [first, second].into_iter().enumerate() {
                    let delta = weight[j + half][lane] - scales[lane] * entries[index];
                    tile.delta[j + half][lane] = delta;
                    change[half][lane] = delta - before[half][lane];
                }
            }
            for k in j + 2..size {
                let [a, b] = [one[k], two[k]];
                for lane in 0..STRIP {
                    said[k][lane] += change[0][lane] * a + change[1][lane] * b;
                }
            }
        }
    }

    /// New entries and scales for the indices that there are. J does not rise.
    pub fn refit(&mut self) {
        let delta_h = self.by_h(&self.delta);
        let before =
            self.strip_sums(|row| dot(self.row(&self.delta, row), self.row(&delta_h, row)));
        let (palette, scales) = (self.matrix.palette.clone(), self.matrix.scales.clone());
        self.refit_entries(&delta_h);
        let after = self.refit_scales();
        // Rounding may undo what was gained; such strips stay as they were.
        let (len, single) = (self.matrix.bits.table(), self.matrix.bits.dims() == 1);
        for (strip, (after, before)) in after.into_iter().zip(before).enumerate() {
            let table = &mut self.matrix.palette[strip * len..][..len];
            if after >= before || single && !table.is_sorted() {
                table.copy_from_slice(&palette[strip * len..][..len]);
                let rows = strip * STRIP..(strip + 1) * STRIP;
                self.matrix.scales[rows.clone()].copy_from_slice(&scales[rows]);
            }
        }
        self.set_delta();
    }

    /// All entries of each strip at once: conjugate gradients on its equations, one for each number of the table, from ΔH.
    fn refit_entries(&mut self, delta_h: &[f32]) {
        let entries = self.matrix.bits.table();
        // −½ dJ/dp = Σ s (ΔH) over the weights that use an entry.
        let mut residual = self.gather(delta_h);
        let mut change = vec![0.0; residual.len()];
        let mut direction = residual.clone();
        let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
        for _ in 0..STEPS {
            let image = self.gather(&self.by_h(&self.spread(&direction, true)));
            let strips = change
                .chunks_exact_mut(entries)
                .zip(residual.chunks_exact_mut(entries));
            let others = direction
                .chunks_exact_mut(entries)
                .zip(image.chunks_exact(entries));
            for ((change, residual), (direction, image)) in strips.zip(others) {
                let (curvature, before) = (dot(direction, image), dot(residual, residual));
                if curvature <= 0.0 || before == 0.0 {
                    continue;
                }
                let step = before / curvature;
                for k in 0..entries {
                    change[k] += step * direction[k];
                    residual[k] -= step * image[k];
                }
                let turn = dot(residual, residual) / before;
                for k in 0..entries {
                    direction[k] = residual[k] + turn * direction[k];
                }
            }
        }
        for (entry, change) in self.matrix.palette.iter_mut().zip(change) {
            *entry = (f64::from(*entry) + change).round() as i8; // saturates
        }
    }

    /// The best scale of each row for the entries that there are. Returns J of each strip.
    fn refit_scales(&mut self) -> Vec<f64> {
        let values = self.spread(&self.entries(), false); // Z: the entries without scales
        let values_h = self.by_h(&values);
        let mut scales = self.matrix.scales.clone();
        let errors = self.strip_sums(|row| {
            let (z, z_h, w_h) = (
                self.row(&values, row),
                self.row(&values_h, row),
                self.row(&self.weight_h, row),
            );
            let (square, product) = (dot(z, z_h), dot(z, w_h));
            if square > 0.0 {
                scales[row] = f16::from_f64((product / square).clamp(-65504.0, 65504.0));
            }
            let scale = scales[row].to_f64();
            dot(self.row(&self.weight, row), w_h) + scale * (scale * square - 2.0 * product)
        });
        self.matrix.scales = scales;
        errors
    }

    /// `out[strip, k] = Σ s x[r, c]` over the weights of the strip that use number k of its table.
    fn gather(&self, x: &[f32]) -> Vec<f64> {
        let bits = self.matrix.bits;
        let (dims, entries, table) = (bits.dims(), bits.entries(), bits.table());
        let (cols, width) = (self.cols, self.cols / dims);
        let mut out = vec![0.0; self.matrix.palette.len()];
        self.pool.for_each_chunk(&mut out, table, |strip, out| {
            for row in strip * STRIP..self.matrix.rows.min((strip + 1) * STRIP) {
                let mut sums = [0.0f64; 512];
                let indices = &self.matrix.indices[row * width..][..width];
                for (x, &index) in x[row * cols..][..cols].chunks_exact(dims).zip(indices) {
                    for (half, &x) in x.iter().enumerate() {
                        sums[(half * entries + usize::from(index)) & 511] += f64::from(x);
                    }
                }
                let factor = self.matrix.scales[row].to_f64();
                out.iter_mut()
                    .zip(sums)
                    .for_each(|(out, sum)| *out += factor * sum);
            }
        });
        out
    }

    /// `out[r, c] = s · x[strip, k]`, k the number of the table that the weight uses; without s where not `scaled`.
    fn spread(&self, x: &[f64], scaled: bool) -> Vec<f32> {
        let bits = self.matrix.bits;
        let (dims, entries, table) = (bits.dims(), bits.entries(), bits.table());
        let (cols, width) = (self.cols, self.cols / dims);
        let mut out = vec![0.0; self.weight.len()];
        self.pool.for_each_chunk(&mut out, cols, |row, out| {
            let scale = match scaled {
                true => self.matrix.scales[row].to_f64(),
                false => 1.0,
            };
            let x = &x[row / STRIP * table..][..table];
            let indices = &self.matrix.indices[row * width..][..width];
            for (out, &index) in out.chunks_exact_mut(dims).zip(indices) {
                for (half, out) in out.iter_mut().enumerate() {
                    *out = (scale * x[half * entries + usize::from(index)]) as f32;
                }
            }
        });
        out
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(&a, &b)| f64::from(a) * f64::from(b))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::palettize;
    use crate::strip::Importance;
    use russet_kernels::palette::Bits;
    use russet_kernels::random;

    /// H of correlated inputs: few directions and a little noise.
    fn curvature(pool: &Pool, width: usize, seed: u64) -> Vec<f32> {
        let (tokens, directions) = (2 * width, 1 + width / 8);
        let normal = |stream: u64, i: usize| random::normal(seed, stream, i as u64);
        let mix: Vec<f32> = (0..directions * width).map(|i| normal(0, i)).collect();
        let sources: Vec<f32> = (0..tokens * directions).map(|i| normal(1, i)).collect();
        let mut x: Vec<f32> = (0..tokens * width).map(|i| 0.3 * normal(2, i)).collect();
        let (sources, mix) = (
            Mat::new(&sources, tokens, directions),
            Mat::new(&mix, directions, width),
        );
        matmul(pool, sources, mix, MatMut::new(&mut x, tokens, width), true);
        let mut h = vec![0.0; width * width];
        let x = Mat::new(&x, tokens, width);
        matmul(pool, x.t(), x, MatMut::new(&mut h, width, width), false);
        h
    }

    #[test]
    fn the_factor_multiplies_back_to_h() {
        let pool = Pool::new(2).unwrap();
        for width in [1, 5, 128, 130, 300] {
            let Curvature { h, upper, .. } =
                Curvature::new(&pool, curvature(&pool, width, 1), width, false);
            let unit = |i: usize, j: usize| match i.cmp(&j) {
                std::cmp::Ordering::Less => f64::from(upper[i * width + j]),
                std::cmp::Ordering::Equal => 1.0,
                std::cmp::Ordering::Greater => 0.0,
            };
            // U⁻¹ H U⁻ᵀ is diagonal; the last column of U is H's over its corner, and so on upwards.
            let mut rest: Vec<f64> = h.iter().map(|&h| f64::from(h)).collect();
            for j in (0..width).rev() {
                let d = rest[j * width + j];
                assert!(d > 0.0, "D[{j}] is {d}");
                for i in 0..=j {
                    for k in 0..=j {
                        rest[i * width + k] -= unit(i, j) * d * unit(k, j);
                    }
                }
            }
            let largest = rest.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
            assert!(
                largest < 1e-4,
                "width {width}: U D Uᵀ is off by {largest}, where H's diagonal is about 1"
            );
        }
    }

    /// J by its definition.
    fn error(refinement: &Refinement, weight: &[f32], h: &[f32]) -> f64 {
        let matrix = &refinement.matrix;
        let (rows, cols) = (matrix.rows, matrix.cols);
        let mut stored = vec![0.0; rows * cols];
        matrix.dequantize(refinement.pool, &mut stored);
        let mut sum = 0.0;
        for row in 0..rows {
            let delta: Vec<f64> = (row * cols..(row + 1) * cols)
                .map(|at| f64::from(weight[at]) - f64::from(stored[at]))
                .collect();
            for i in 0..cols {
                let product: f64 = (0..cols)
                    .map(|j| f64::from(h[i * cols + j]) * delta[j])
                    .sum();
                sum += delta[i] * product;
            }
        }
        sum
    }

    fn check(rows: usize, cols: usize, bits: Bits) {
        let pool = Pool::new(2).unwrap();
        let curvature = Curvature::new(&pool, curvature(&pool, cols, 3), cols, bits.dims() > 1);
        let h = Curvature::new(&pool, self::curvature(&pool, cols, 3), cols, false).h;
        let weight: Vec<f32> = (0..rows * cols)
            .map(|i| 0.05 * random::normal(4, 0, i as u64))
            .collect();
        let diagonal: Vec<f32> = (0..cols).map(|i| h[i * cols + i]).collect();
        let start = palettize(&pool, &weight, cols, Importance::columns(&diagonal), bits).matrix;
        let mut refinement = Refinement::new(&pool, &curvature, &weight, start);
        let mut last = refinement.error();
        let mut expect = |refinement: &Refinement, at_most: f64, step: &str| {
            let (error, want) = (refinement.error(), error(refinement, &weight, &h));
            assert!(
                (error - want).abs() < 1e-3 * want,
                "{step}: {error}, by its definition {want}"
            );
            assert!(error <= at_most * last, "{step}: from {last} to {error}");
            last = error;
        };
        refinement.feed_back();
        expect(&refinement, 0.8, "feedback");
        for _ in 0..2 {
            refinement.refit();
            expect(&refinement, 1.0001, "refit");
            refinement.descend();
            expect(&refinement, 1.0001, "descent");
        }
        assert!(last < 0.95 * refinement.energy());
    }

    #[test]
    fn feedback_lowers_the_output_error_and_the_other_steps_never_raise_it() {
        for (rows, cols) in [(16, 64), (37, 150), (5, 257)] {
            for bits in Bits::ALL {
                check(rows, cols, bits);
            }
        }
    }

    #[test]
    fn weights_that_a_table_holds_exactly_stay() {
        let pool = Pool::new(2).unwrap();
        let curvature = Curvature::new(&pool, curvature(&pool, 40, 3), 40, false);
        let indices: Vec<u8> = (0..16 * 40)
            .map(|i| {
                if i % 41 == 0 {
                    0
                } else {
                    random::below(5, 0, i as u64, 4) as u8
                }
            })
            .collect();
        let (palette, scales) = (vec![-127, -40, 30, 100], vec![f16::from_f32(0.001); 16]);
        let matrix = Matrix {
            bits: Bits::Two,
            rows: 16,
            cols: 40,
            indices,
            palette,
            scales,
        };
        let mut weight = vec![0.0; 16 * 40];
        matrix.dequantize(&pool, &mut weight);
        let mut refinement = Refinement::new(&pool, &curvature, &weight, matrix.clone());
        refinement.feed_back();
        refinement.refit();
        refinement.descend();
        assert_eq!(refinement.finish(), matrix);
    }

    #[test]
    fn a_product_that_saw_only_zeros_is_left_in_order() {
        let pool = Pool::new(1).unwrap();
        let curvature = Curvature::new(&pool, vec![0.0; 24 * 24], 24, false);
        let weight: Vec<f32> = (0..16 * 24)
            .map(|i| random::normal(6, 0, i as u64))
            .collect();
        let start = palettize(
            &pool,
            &weight,
            24,
            Importance::columns(&[1.0; 24]),
            Bits::Four,
        )
        .matrix;
        let mut refinement = Refinement::new(&pool, &curvature, &weight, start);
        let before = refinement.error();
        refinement.feed_back();
        refinement.refit();
        assert!(refinement.error() <= 1.0001 * before);
    }
}
