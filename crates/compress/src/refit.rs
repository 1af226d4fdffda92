//! New tables and scales for the indices that there are, by least squares under H.
//!
//! A strip stores Q[r, c] = s[r] p[index[r, c]]. With other tables and scales its error changes by δQ = s′p′ − sp, and J by
//! ```text
//! J′ − J = −2 Σ δQ ∘ (ΔH) + Σᵣ δQᵣ H δQᵣᵀ
//! ```
//! The first part is exact from sums of ΔH by entry. In the second H stands as its sketch, diag(d) + V Vᵀ, for which sums of d and V by entry are
//! enough; so tables and scales are fitted in turn on a few numbers a strip, without going back to the weights. The product δQ H is made once, at
//! the end, for the result as it is stored: what it says is exact, strips for which it says that J rises stay as they were, and it is what ΔH changes by.

use half::f16;
use russet_kernels::palette::STRIP;
use russet_kernels::{Mat, MatMut, matmul};

use crate::curvature::RANK;
use crate::feedback::Refinement;
use crate::strip::to_scale;

/// Times that table and scales are fitted in turn.
const TURNS: usize = 3;

/// Steps of conjugate gradients for a table; those of single weights have at most 16 unknowns.
const STEPS: usize = 8;

/// What J depends on when indices stay: sums over the weights of each row by number of the table.
struct Sums {
    table: usize,
    slopes: Vec<f64>, // [16, table]: Σ ΔH + d q + V (V q), what fitting is drawn to
    rest: Vec<f64>,   // [16, table]: Σ d
    near: Vec<[f32; RANK]>, // [16, table]: Σ V
}

impl Refinement<'_> {
    /// Fits tables and scales to the indices. J does not rise.
    pub fn refit(&mut self) {
        let (rows, cols, pool) = (self.matrix.rows, self.cols, self.pool);
        let bits = self.matrix.bits;
        let (table, single) = (bits.table(), bits.dims() == 1);
        let strips = rows.div_ceil(STRIP);
        let mut fits = vec![(Vec::new(), [f16::ZERO; STRIP]); strips];
        let this = &*self;
        pool.for_each_chunk(&mut fits, 1, |strip, fit| fit[0] = this.fit(strip));
        let mut change = vec![0.0; rows * cols]; // δQ
        let fits = &fits;
        pool.for_each_chunk(&mut change, cols, |row, out| {
            let (strip, lane) = (row / STRIP, row % STRIP);
            let (palette, scales) = &fits[strip];
            let now = this.matrix.scales[row].to_f32();
            let then = scales[lane].to_f32();
            let mut values = [0.0f32; 512];
            let before = &this.matrix.palette[strip * table..][..table];
            for (value, (&before, &after)) in values.iter_mut().zip(before.iter().zip(palette)) {
                *value = then * f32::from(after) - now * f32::from(before);
            }
            this.each(row, |at, number| out[at] = values[number & 511]);
        });
        let mut image = vec![0.0; rows * cols]; // δQ H
        let h = Mat::new(&self.curvature.h, cols, cols);
        let out = MatMut::new(&mut image, rows, cols);
        matmul(pool, Mat::new(&change, rows, cols), h, out, false);
        let mut gains = vec![0.0; strips];
        let (change, image, this) = (&change, &image, &*self);
        pool.for_each_chunk(&mut gains, 1, |strip, gain| {
            let rows = strip * STRIP * cols..rows.min((strip + 1) * STRIP) * cols;
            let numbers = change[rows.clone()].iter();
            let others = this.delta_h[rows.clone()].iter().zip(&image[rows]);
            gain[0] = numbers
                .zip(others)
                .map(|(&x, (&g, &h))| f64::from(x) * (2.0 * f64::from(g) - f64::from(h)))
                .sum();
        });
        let gains = &gains;
        // Rounding, or what the sketch lacks, may undo what was gained; such strips stay as they were.
        let taken = |strip: usize| gains[strip] > 0.0;
        for (strip, (palette, scales)) in fits.iter().enumerate() {
            if taken(strip) {
                self.matrix.palette[strip * table..][..table].copy_from_slice(palette);
                self.matrix.scales[strip * STRIP..][..STRIP].copy_from_slice(scales);
                self.errors[strip] -= gains[strip];
                if single && !palette.is_sorted() {
                    self.sort(strip);
                }
            }
        }
        for (of, less) in [(&mut self.delta, change), (&mut self.delta_h, image)] {
            pool.for_each_chunk(of, STRIP * cols, |strip, out| {
                if taken(strip) {
                    let less = &less[strip * STRIP * cols..][..out.len()];
                    out.iter_mut()
                        .zip(less)
                        .for_each(|(out, less)| *out -= less);
                }
            });
        }
    }

    /// Puts a strip's entries in order: what is stored stays.
    fn sort(&mut self, strip: usize) {
        let table = self.matrix.bits.table();
        let palette = &mut self.matrix.palette[strip * table..][..table];
        let mut order: Vec<usize> = (0..table).collect();
        order.sort_by_key(|&entry| palette[entry]);
        let sorted: Vec<i8> = order.iter().map(|&entry| palette[entry]).collect();
        palette.copy_from_slice(&sorted);
        let mut places = [0; 16];
        for (place, &entry) in (0..).zip(&order) {
            places[entry] = place;
        }
        let rows = strip * STRIP..self.matrix.rows.min((strip + 1) * STRIP);
        for index in &mut self.matrix.indices[rows.start * self.cols..rows.end * self.cols] {
            *index = places[usize::from(*index)];
        }
    }

    /// Calls `of` with each column of a row and the number of the table that it has there.
    fn each(&self, row: usize, mut of: impl FnMut(usize, usize)) {
        let (dims, entries) = (self.matrix.bits.dims(), self.matrix.bits.entries());
        let width = self.cols / dims;
        let indices = &self.matrix.indices[row * width..][..width];
        match dims {
            1 => indices
                .iter()
                .enumerate()
                .for_each(|(at, &index)| of(at, usize::from(index))),
            _ => indices.iter().enumerate().for_each(|(at, &index)| {
                of(2 * at, usize::from(index));
                of(2 * at + 1, entries + usize::from(index));
            }),
        }
    }

    /// Table and scales of a strip that are best for its indices under the sketch, as they are stored.
    fn fit(&self, strip: usize) -> (Vec<i8>, [f16; STRIP]) {
        let table = self.matrix.bits.table();
        let rows = strip * STRIP..self.matrix.rows.min((strip + 1) * STRIP);
        let mut palette: Vec<f64> = self.matrix.palette[strip * table..][..table]
            .iter()
            .map(|&entry| f64::from(entry))
            .collect();
        let mut scales = [0.0f64; STRIP];
        let stored = &self.matrix.scales[strip * STRIP..][..STRIP];
        for (scale, stored) in scales.iter_mut().zip(stored) {
            *scale = stored.to_f64();
        }
        let sums = self.sums(rows, &palette, &scales);
        for turn in 0..TURNS {
            if turn > 0 {
                sums.fit_scales(&palette, &mut scales);
            }
            sums.fit_table(&mut palette, &scales);
        }
        let palette: Vec<i8> = palette.iter().map(|p| p.round() as i8).collect(); // saturates
        let rounded: Vec<f64> = palette.iter().map(|&p| f64::from(p)).collect();
        sums.fit_scales(&rounded, &mut scales);
        (palette, scales.map(to_scale))
    }

    fn sums(&self, rows: std::ops::Range<usize>, palette: &[f64], scales: &[f64; STRIP]) -> Sums {
        let (table, cols) = (palette.len(), self.cols);
        let mut sums = Sums {
            table,
            slopes: vec![0.0; STRIP * table],
            rest: vec![0.0; STRIP * table],
            near: vec![[0.0; RANK]; STRIP * table],
        };
        let (rest, near) = (
            &self.curvature.rest,
            self.curvature.near.as_chunks::<RANK>().0,
        );
        for (lane, row) in rows.enumerate() {
            let delta_h = &self.delta_h[row * cols..][..cols];
            let at = lane * table..(lane + 1) * table;
            let slopes = &mut sums.slopes[at.clone()];
            let (rests, nears) = (&mut sums.rest[at.clone()], &mut sums.near[at]);
            self.each(row, |column, number| {
                slopes[number] += f64::from(delta_h[column]);
                rests[number] += f64::from(rest[column]);
                for (sum, v) in nears[number].iter_mut().zip(&near[column]) {
                    *sum += v;
                }
            });
            let scale = scales[lane];
            let along = sum_along(nears, palette.iter().map(|p| scale * p));
            for number in 0..table {
                let q = scale * palette[number];
                slopes[number] += rests[number] * q + dot(&nears[number], &along);
            }
        }
        sums
    }
}

/// Σ x V, the part of a row that V sees.
fn sum_along(near: &[[f32; RANK]], x: impl Iterator<Item = f64>) -> [f64; RANK] {
    let mut along = [0.0; RANK];
    for (near, x) in near.iter().zip(x) {
        for (along, &v) in along.iter_mut().zip(near) {
            *along += x * f64::from(v);
        }
    }
    along
}

fn dot(a: &[f32; RANK], b: &[f64; RANK]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * b).sum()
}

impl Sums {
    fn row(&self, lane: usize) -> std::ops::Range<usize> {
        lane * self.table..(lane + 1) * self.table
    }

    /// The best scale of each row for a table.
    fn fit_scales(&self, palette: &[f64], scales: &mut [f64; STRIP]) {
        for (lane, scale) in scales.iter_mut().enumerate() {
            let (row, mut product, mut square) = (self.row(lane), 0.0, 0.0);
            let slopes = self.slopes[row.clone()].iter().zip(&self.rest[row.clone()]);
            for (p, (slope, rest)) in palette.iter().zip(slopes) {
                product += p * slope;
                square += p * p * rest;
            }
            let along = sum_along(&self.near[row], palette.iter().copied());
            square += along.iter().map(|x| x * x).sum::<f64>();
            if square > 0.0 {
                *scale = product / square;
            }
        }
    }

    /// The best table for scales: conjugate gradients from the one that there is, each number in units of its own curvature.
    fn fit_table(&self, palette: &mut [f64], scales: &[f64; STRIP]) {
        let table = self.table;
        let mut own = vec![0.0f64; table];
        let mut residual = vec![0.0; table];
        for (lane, scale) in scales.iter().enumerate() {
            for (number, at) in self.row(lane).enumerate() {
                let square: f64 = self.near[at].iter().map(|&v| f64::from(v).powi(2)).sum();
                own[number] += scale * scale * (self.rest[at] + square);
                residual[number] += scale * self.slopes[at];
            }
        }
        let by_own = |x: &[f64]| -> Vec<f64> {
            let each = x.iter().zip(&own);
            each.map(|(x, own)| if *own > 0.0 { x / own } else { 0.0 })
                .collect()
        };
        let along = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
        let image = self.by_curvature(palette, scales);
        residual.iter_mut().zip(image).for_each(|(r, x)| *r -= x);
        let mut turned = by_own(&residual);
        let mut direction = turned.clone();
        let mut size = along(&residual, &turned);
        for _ in 0..STEPS {
            let image = self.by_curvature(&direction, scales);
            let bend = along(&direction, &image);
            if bend <= 0.0 || size <= 0.0 {
                break;
            }
            let step = size / bend;
            for number in 0..table {
                palette[number] += step * direction[number];
                residual[number] -= step * image[number];
            }
            turned = by_own(&residual);
            let next = along(&residual, &turned);
            let turn = next / size;
            size = next;
            for number in 0..table {
                direction[number] = turned[number] + turn * direction[number];
            }
        }
    }

    /// Half of what J's slope changes by when the table changes by `x`.
    fn by_curvature(&self, x: &[f64], scales: &[f64; STRIP]) -> Vec<f64> {
        let mut out = vec![0.0; self.table];
        for (lane, scale) in scales.iter().enumerate() {
            let row = self.row(lane);
            let along = sum_along(&self.near[row.clone()], x.iter().copied());
            for (number, at) in row.enumerate() {
                let sum = self.rest[at] * x[number] + dot(&self.near[at], &along);
                out[number] += scale * scale * sum;
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curvature::Curvature;
    use crate::curvature::tests::correlated;
    use crate::matrix::{Matrix, palettize};
    use crate::strip::Importance;
    use russet_kernels::palette::Bits;
    use russet_kernels::{Pool, random};

    /// Of a strip the least J that any table reaches, with indices and scales held, entries in f64: the normal equations, dense.
    fn best_table(matrix: &Matrix, weight: &[f32], h: &[f32]) -> f64 {
        let (rows, cols, table) = (matrix.rows, matrix.cols, matrix.bits.table());
        let (mut a, mut b, mut energy) = (vec![0.0; table * table], vec![0.0; table], 0.0);
        for row in 0..rows {
            let scale = matrix.scales[row].to_f64();
            let (weight, indices) = (
                &weight[row * cols..][..cols],
                &matrix.indices[row * cols..][..cols],
            );
            for i in 0..cols {
                for j in 0..cols {
                    let h = f64::from(h[i * cols + j]);
                    let (k, l) = (usize::from(indices[i]), usize::from(indices[j]));
                    a[k * table + l] += scale * scale * h;
                    b[k] += scale * h * f64::from(weight[j]);
                    energy += h * f64::from(weight[i]) * f64::from(weight[j]);
                }
            }
        }
        // Gauss; the matrix is symmetric and positive where every entry is used.
        let mut x = b.clone();
        for pivot in 0..table {
            for row in pivot + 1..table {
                let factor = a[row * table + pivot] / a[pivot * table + pivot];
                for col in pivot..table {
                    a[row * table + col] -= factor * a[pivot * table + col];
                }
                x[row] -= factor * x[pivot];
            }
        }
        for row in (0..table).rev() {
            let sum: f64 = (row + 1..table)
                .map(|col| a[row * table + col] * x[col])
                .sum();
            x[row] = (x[row] - sum) / a[row * table + row];
        }
        energy - b.iter().zip(&x).map(|(b, x)| b * x).sum::<f64>()
    }

    #[test]
    fn a_sketch_finds_what_all_of_h_would_find() {
        let pool = Pool::new(1).unwrap();
        let cols = 200;
        for bits in [Bits::Two, Bits::Three, Bits::Four] {
            let curvature = Curvature::new(&pool, correlated(&pool, cols, 5), cols, false);
            let weight: Vec<f32> = (0..STRIP * cols)
                .map(|i| 0.05 * random::normal(4, 1, i as u64))
                .collect();
            let ones = vec![1.0; cols];
            let start = palettize(&pool, &weight, cols, Importance::columns(&ones), bits).matrix;
            let mut refinement = Refinement::feed_back(&pool, &curvature, &weight, start);
            let before = refinement.error();
            let best = best_table(&refinement.matrix, &weight, &curvature.h);
            refinement.refit();
            let gained = (before - refinement.error()) / (before - best);
            // Scales are fitted as well, which can gain more; entries are whole numbers, which costs.
            assert!(gained > 0.7, "{bits:?}: {gained} of what there is to gain");
        }
    }
}
