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
//! - *refit*: entries and scales by least squares under a sketch of H; see [`crate::refit`].
//! - *descent*: each index in turn takes the entry that is best for all others held, nearest to q + (ΔH)ⱼ / H[j, j].
//!
//! The columns go in blocks, so that nearly all arithmetic is matrix products, and no product is made twice: with e = ΔU, which feedback leaves,
//! J = Σ D e² and ΔH = e D Uᵀ; the refit says what it changes ΔH by; descent says what it changes J by. In operations a weight, D the
//! width: feedback D, ΔH D, refit 2 D, descent D.
//!
//! Of pairs the columns lie so that a pair's two are neighbours, and both take their entry together: with U's part between the two,
//! or H's for descent, the cost of an entry is D₀ (t₀ − p₀)² + D₁ (t₁ − p₁ − u p₀)².
//!
//! H carries gradient weights a where they are known (Kim et al., *GuidedQuant*, arXiv 2505.07004, with one group).

use std::borrow::Cow;
use std::ops::Range;

use russet_kernels::palette::{COLUMNS, Columns, STRIP, Sweep, nearest, sweep};
use russet_kernels::{Mat, MatMut, Pool, matmul};

use crate::curvature::{Curvature, columns};
use crate::matrix::Matrix;

/// A matrix being refined.
pub(crate) struct Refinement<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) curvature: &'a Curvature,
    weight: Cow<'a, [f32]>, // [F, D]
    pub(crate) matrix: Matrix,
    pub(crate) cols: usize,       // D, with what completes the last pairs
    pub(crate) delta: Vec<f32>,   // W − Q, [F, D]
    pub(crate) delta_h: Vec<f32>, // ΔH, [F, D]
    pub(crate) errors: Vec<f64>,  // J of each strip
}

impl<'a> Refinement<'a> {
    /// Begins with the tables and scales of a matrix that k-means made of `weight [F, D]`: rounds every column anew, each with the error of
    /// those before it.
    pub fn feed_back(
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
            delta: vec![0.0; weight.len()],
            delta_h: vec![0.0; weight.len()],
            errors: vec![0.0; rows.div_ceil(STRIP)],
            weight,
            matrix,
            cols,
        };
        refinement.round();
        refinement.set_delta_h();
        refinement
    }

    /// What it has become.
    pub fn finish(self) -> Matrix {
        self.matrix
    }

    /// J, with H relative to its mean.
    pub fn error(&self) -> f64 {
        self.errors.iter().sum()
    }

    /// Feedback over all columns. Leaves e D in the place of ΔH.
    fn round(&mut self) {
        let (rows, cols) = (self.matrix.rows, self.cols);
        let upper = &self.curvature.upper;
        let mut seen = vec![0.0; rows * COLUMNS];
        for block in blocks(cols) {
            let seen = &mut seen[..rows * block.len()];
            seen.fill(0.0);
            if block.start > 0 {
                let delta = Mat::new(&self.delta, rows, cols).cols(0..block.start);
                let factor = Mat::new(upper, cols, cols)
                    .rows(0..block.start)
                    .cols(block.clone());
                let out = MatMut::new(seen, rows, block.len());
                matmul(self.pool, delta, factor, out, false);
            }
            let tiles = self.choose(Sweep::Feedback, &block, |row| {
                &seen[row * block.len()..][..block.len()]
            });
            self.keep(&block, &tiles);
            self.pool
                .for_each_chunk(&mut self.delta_h, STRIP * cols, |strip, rows| {
                    for (lane, row) in rows.chunks_exact_mut(cols).enumerate() {
                        for (k, e) in row[block.clone()].iter_mut().enumerate() {
                            let at = block.start + k;
                            *e = tiles[strip].0.said[k][lane] * upper[at * cols + at];
                        }
                    }
                });
            for (error, (_, more)) in self.errors.iter_mut().zip(&tiles) {
                *error += more;
            }
        }
    }

    /// ΔH = (e D) Uᵀ from what [`Refinement::round`] left in its place.
    fn set_delta_h(&mut self) {
        let (rows, cols) = (self.matrix.rows, self.cols);
        let upper = &self.curvature.upper;
        let mut product = vec![0.0; rows * COLUMNS];
        let mut corner = Vec::new(); // U's block on the diagonal, its ones and zeros included
        for block in blocks(cols) {
            let size = block.len();
            corner.clear();
            corner.extend((0..size * size).map(|at| {
                let (i, j) = (at / size, at % size);
                match i.cmp(&j) {
                    std::cmp::Ordering::Less => upper[(block.start + i) * cols + block.start + j],
                    std::cmp::Ordering::Equal => 1.0,
                    std::cmp::Ordering::Greater => 0.0,
                }
            }));
            let left = Mat::new(&self.delta_h, rows, cols);
            let product = &mut product[..rows * size];
            let mut out = MatMut::new(product, rows, size);
            let corner = Mat::new(&corner, size, size).t();
            let own = left.cols(block.clone());
            matmul(self.pool, own, corner, out.reborrow(), false);
            if block.end < cols {
                let factor = Mat::new(upper, cols, cols);
                let factor = factor.rows(block.clone()).cols(block.end..cols).t();
                matmul(self.pool, left.cols(block.end..cols), factor, out, true);
            }
            // Blocks to come need nothing of this one.
            self.pool
                .for_each_chunk(&mut self.delta_h, cols, |row, all| {
                    all[block.clone()].copy_from_slice(&product[row * size..][..size])
                });
        }
    }

    /// Chooses every index anew, each with all others held. J does not rise. Leaves nothing of worth in the place of ΔH, so it comes last.
    pub fn descend(mut self) -> Self {
        let (rows, cols) = (self.matrix.rows, self.cols);
        let mut change = vec![0.0; rows * COLUMNS];
        for block in blocks(cols) {
            let tiles = self.choose(Sweep::Descent, &block, |row| {
                &self.delta_h[row * cols..][block.clone()]
            });
            self.keep(&block, &tiles);
            for (error, (_, more)) in self.errors.iter_mut().zip(&tiles) {
                *error += more;
            }
            if block.end == cols {
                break;
            }
            let size = block.len();
            let change = &mut change[..rows * size];
            self.pool
                .for_each_chunk(change, STRIP * size, |strip, rows| {
                    for (lane, row) in rows.chunks_exact_mut(size).enumerate() {
                        for (change, said) in row.iter_mut().zip(&tiles[strip].0.said) {
                            *change = said[lane];
                        }
                    }
                });
            let h = Mat::new(&self.curvature.h, cols, cols)
                .rows(block.clone())
                .cols(block.end..cols);
            let out = MatMut::new(&mut self.delta_h, rows, cols).cols(block.end..cols);
            matmul(self.pool, Mat::new(change, rows, size), h, out, true);
        }
        self
    }

    /// Each strip's part of a block of columns with its entries chosen, and what [`sweep`] says of it; `said(row)` is what columns outside the block say.
    fn choose<'s>(
        &'s self,
        how: Sweep,
        block: &Range<usize>,
        said: impl Fn(usize) -> &'s [f32] + Sync,
    ) -> Vec<(Columns, f64)> {
        let (matrix, cols, size) = (&self.matrix, self.cols, block.len());
        let coefficients = match how {
            Sweep::Feedback => &self.curvature.upper,
            Sweep::Descent => &self.curvature.h,
        };
        let coefficients = (&coefficients[block.start * cols + block.start..], cols);
        let mut tiles = vec![(Columns::default(), 0.0); matrix.rows.div_ceil(STRIP)];
        self.pool.for_each_chunk(&mut tiles, 1, |strip, tile| {
            let (tile, cost) = &mut tile[0];
            let rows = strip * STRIP..matrix.rows.min((strip + 1) * STRIP);
            let mut scales = [0.0f32; STRIP];
            for (lane, row) in rows.enumerate() {
                scales[lane] = matrix.scales[row].to_f32();
                let weight = &self.weight[row * cols..][block.clone()];
                let delta = &self.delta[row * cols..][block.clone()];
                for (k, ((weight, delta), said)) in
                    weight.iter().zip(delta).zip(said(row)).enumerate()
                {
                    tile.weight[k][lane] = *weight;
                    tile.delta[k][lane] = *delta;
                    tile.said[k][lane] = *said;
                }
            }
            let palette = &matrix.palette[strip * matrix.bits.table()..][..matrix.bits.table()];
            *cost = match matrix.bits.dims() {
                1 => sweep(
                    self.pool.isa(),
                    how,
                    palette,
                    &scales,
                    coefficients,
                    size,
                    tile,
                ),
                _ => self.pairs(how, palette, &scales, coefficients, size, tile),
            };
        });
        tiles
    }

    /// Takes over the errors and indices of a block.
    fn keep(&mut self, block: &Range<usize>, tiles: &[(Columns, f64)]) {
        let (cols, dims) = (self.cols, self.matrix.bits.dims());
        self.pool
            .for_each_chunk(&mut self.delta, STRIP * cols, |strip, rows| {
                for (lane, row) in rows.chunks_exact_mut(cols).enumerate() {
                    for (delta, tile) in row[block.clone()].iter_mut().zip(&tiles[strip].0.delta) {
                        *delta = tile[lane];
                    }
                }
            });
        let (width, block) = (cols / dims, block.start / dims..block.end / dims);
        self.pool
            .for_each_chunk(&mut self.matrix.indices, STRIP * width, |strip, rows| {
                for (lane, row) in rows.chunks_exact_mut(width).enumerate() {
                    for (index, tile) in row[block.clone()].iter_mut().zip(&tiles[strip].0.indices)
                    {
                        *index = tile[lane];
                    }
                }
            });
    }

    /// As [`sweep`], an entry for each pair of neighbours.
    fn pairs(
        &self,
        how: Sweep,
        palette: &[i8],
        scales: &[f32; STRIP],
        (coefficients, stride): (&[f32], usize),
        size: usize,
        tile: &mut Columns,
    ) -> f64 {
        let inverses = scales.map(|scale| if scale == 0.0 { 0.0 } else { scale.recip() });
        let palette: Vec<f32> = palette.iter().map(|&entry| f32::from(entry)).collect();
        let (first, second) = palette.split_at(palette.len() / 2);
        let mut joined = vec![0.0; second.len()]; // p₁ + u p₀
        let mut cost = 0.0f64;
        for j in (0..size).step_by(2) {
            let row = |j: usize| &coefficients[j * stride..][..size];
            let (one, two) = (row(j), row(j + 1));
            let (between, h) = (one[j + 1], [one[j], two[j + 1]]);
            let (u, d) = match how {
                Sweep::Feedback => (between, h),
                Sweep::Descent => {
                    let u = between / h[1];
                    (u, [h[0] - u * between, h[1]])
                }
            };
            for ((joined, first), second) in joined.iter_mut().zip(first).zip(second) {
                *joined = second + u * first;
            }
            let (weight, said) = (
                [tile.weight[j], tile.weight[j + 1]],
                [tile.said[j], tile.said[j + 1]],
            );
            let before = match how {
                Sweep::Feedback => [[0.0; STRIP]; 2],
                Sweep::Descent => [tile.delta[j], tile.delta[j + 1]],
            };
            let mut targets = [[0.0f32; STRIP]; 2];
            for lane in 0..STRIP {
                let [w, said] = [weight, said].map(|from| from.map(|from| from[lane]));
                let [t, t_joined] = match how {
                    // The second column sees the first one's error, w₀ − s p₀, times u.
                    Sweep::Feedback => [w[0] + said[0], w[1] + said[1] + u * w[0]],
                    // The best pair of numbers, others held, is as far from that of now as H's part for the two says.
                    Sweep::Descent => {
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
                    let delta = weight[half][lane] - scales[lane] * entries[index];
                    tile.delta[j + half][lane] = delta;
                    change[half][lane] = delta - before[half][lane];
                }
                let [a, b] = change.map(|change| change[lane]);
                match how {
                    Sweep::Feedback => {
                        let e = [a + said[0][lane], b + said[1][lane] + u * a];
                        tile.said[j][lane] = e[0];
                        tile.said[j + 1][lane] = e[1];
                        cost += f64::from(d[0] * e[0] * e[0] + d[1] * e[1] * e[1]);
                    }
                    Sweep::Descent => {
                        let slope = a * said[0][lane] + b * said[1][lane];
                        let bend = a * a * h[0] + b * b * h[1] + 2.0 * a * b * between;
                        tile.said[j][lane] = a;
                        tile.said[j + 1][lane] = b;
                        cost += f64::from(2.0 * slope + bend);
                    }
                }
            }
            let changes = || change[0].iter().zip(&change[1]);
            for k in j + 2..size {
                let [a, b] = [one[k], two[k]];
                for (said, (first, second)) in tile.said[k].iter_mut().zip(changes()) {
                    *said += first * a + second * b;
                }
            }
        }
        cost
    }
}

/// The columns in blocks.
fn blocks(cols: usize) -> impl Iterator<Item = Range<usize>> {
    let starts = (0..cols).step_by(COLUMNS);
    starts.map(move |start| start..cols.min(start + COLUMNS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curvature::tests::correlated;
    use crate::matrix::palettize;
    use crate::strip::Importance;
    use half::f16;
    use russet_kernels::palette::Bits;
    use russet_kernels::random;

    /// J by its definition.
    fn error(pool: &Pool, matrix: &Matrix, weight: &[f32], h: &[f32]) -> f64 {
        let (rows, cols) = (matrix.rows, matrix.cols);
        let mut stored = vec![0.0; rows * cols];
        matrix.dequantize(pool, &mut stored);
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
        let moments = correlated(&pool, cols, 3);
        check_under(&pool, rows, cols, bits, &moments, 0.8);
    }

    /// Feedback brings J to `at_most` of that of k-means, and no step raises it.
    fn check_under(
        pool: &Pool,
        rows: usize,
        cols: usize,
        bits: Bits,
        moments: &[f32],
        at_most: f64,
    ) {
        let curvature = Curvature::new(pool, moments.to_vec(), cols, bits.dims() > 1);
        let h = Curvature::new(pool, moments.to_vec(), cols, false).h;
        let weight: Vec<f32> = (0..rows * cols)
            .map(|i| 0.05 * random::normal(4, 0, i as u64))
            .collect();
        let diagonal: Vec<f32> = (0..cols).map(|i| h[i * cols + i]).collect();
        let start = palettize(pool, &weight, cols, Importance::columns(&diagonal), bits).matrix;
        let exact = |matrix: &Matrix| error(pool, matrix, &weight, &h);
        let before = exact(&start);
        let mut refinement = Refinement::feed_back(pool, &curvature, &weight, start);
        let mut last = before;
        let mut expect = |refinement: &Refinement, at_most: f64, step: &str| {
            let (error, want) = (refinement.error(), exact(&refinement.matrix));
            assert!(
                (error - want).abs() < 1e-3 * want,
                "{step}: {error}, by its definition {want}"
            );
            assert!(error <= at_most * last, "{step}: from {last} to {error}");
            last = error;
        };
        expect(&refinement, at_most, "feedback");
        for _ in 0..2 {
            refinement.refit();
            expect(&refinement, 1.0001, "refit");
        }
        let refinement = refinement.descend();
        expect(&refinement, 1.0001, "descent");
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
    fn inputs_that_stand_out_are_alike_or_never_come_do_no_harm() {
        let pool = Pool::new(2).unwrap();
        let cols = 150;
        for bits in Bits::ALL {
            let mut h = correlated(&pool, cols, 3);
            for i in 0..cols {
                // The third input is a thousand times as large, the fifth never comes, the eighth is the seventh.
                h[i * cols + 2] *= 1e3;
                h[2 * cols + i] *= 1e3;
                h[i * cols + 4] = 0.0;
                h[4 * cols + i] = 0.0;
            }
            for i in 0..cols {
                h[i * cols + 7] = h[i * cols + 6];
            }
            for i in 0..cols {
                h[7 * cols + i] = h[6 * cols + i];
            }
            check_under(&pool, 20, cols, bits, &h, 1.01);
        }
    }

    #[test]
    fn energy_is_the_error_of_zeros() {
        let (pool, tokens, rows, cols) = (Pool::new(1).unwrap(), 50, 16, 24);
        let normal = |stream: u64, i: usize| random::normal(8, stream, i as u64);
        let x: Vec<f32> = (0..tokens * cols).map(|i| normal(0, i)).collect();
        let weight: Vec<f32> = (0..rows * cols).map(|i| normal(1, i)).collect();
        let mut h = vec![0.0; cols * cols];
        let mut y = vec![0.0; tokens * rows];
        let (x, w) = (Mat::new(&x, tokens, cols), Mat::new(&weight, rows, cols));
        matmul(&pool, x.t(), x, MatMut::new(&mut h, cols, cols), false);
        matmul(&pool, x, w.t(), MatMut::new(&mut y, tokens, rows), false);
        let outputs: Vec<f64> = (0..rows)
            .map(|row| {
                y.iter()
                    .skip(row)
                    .step_by(rows)
                    .map(|&y| f64::from(y).powi(2))
                    .sum()
            })
            .collect();
        let curvature = Curvature::new(&pool, h, cols, false);
        let nothing = Matrix {
            bits: Bits::Two,
            rows,
            cols,
            indices: vec![0; rows * cols],
            palette: vec![0; 4],
            scales: vec![f16::ZERO; STRIP],
        };
        let want = error(&pool, &nothing, &weight, &curvature.h);
        let energy = curvature.energy(&outputs, &weight);
        assert!((energy - want).abs() < 1e-5 * want, "{energy}, not {want}");
    }

    #[test]
    fn weights_that_a_table_holds_exactly_stay() {
        let pool = Pool::new(2).unwrap();
        let curvature = Curvature::new(&pool, correlated(&pool, 40, 3), 40, false);
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
        let mut refinement = Refinement::feed_back(&pool, &curvature, &weight, matrix.clone());
        refinement.refit();
        assert_eq!(refinement.descend().finish(), matrix);
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
        let before = error(&pool, &start, &weight, &curvature.h);
        let mut refinement = Refinement::feed_back(&pool, &curvature, &weight, start);
        refinement.refit();
        assert!(refinement.error() <= 1.0001 * before);
    }
}
