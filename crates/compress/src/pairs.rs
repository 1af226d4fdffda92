//! One strip of a weight matrix with a table of pairs: sixteen rows, an entry for two weights of a row, a scale a row.
//!
//! Minimised is the error of [`crate::strip`], in which an index now stands for two weights, four inputs apart:
//! ```text
//! E = Σ ω[r, a] (w[r, a] − s[r] · p₀[index])² + ω[r, b] (w[r, b] − s[r] · p₁[index])²
//! ```
//! In two dimensions k-means has no exact solution that is quick, so it begins several times with entries drawn by k-means++
//! (Arthur and Vassilvitskii, 2007) on a sample of the strip's pairs, runs Lloyd's rounds there, and the best start goes on with
//! all pairs, int8 entries and f16 scales: entries, scales and indices in turn, each exact for the others held, so E never
//! rises. Numbers are drawn by place, so a strip's table is the same on any number of threads. Vector palettes at such widths are
//! those of GPTVQ (van Baalen et al., arXiv 2402.15319).

use half::f16;
use russet_kernels::palette::{Bits, STRIP, nearest};
use russet_kernels::{Isa, random};

use crate::matrix::StripFit;
use crate::strip::{GAIN, ROUNDS, RowSize, Strip, row_size, to_scale};

/// Pairs at most that entries are first chosen for.
const SAMPLE: usize = 4096;

/// Draws of first entries for each way to size rows.
const STARTS: u64 = 3;

/// Lloyd's rounds at most on the sample.
const LLOYD: usize = 25;

/// The random numbers' seed: any will do.
const SEED: u64 = 0x7061_6972;

/// Pairs of weights, each with its two importances; `first` and `second` of each.
struct Points {
    x: [Vec<f32>; 2],
    o: [Vec<f32>; 2],
}

/// A table with its row scales, as stored.
#[derive(Clone)]
struct Table {
    entries: [Vec<i8>; 2],
    scales: [f16; STRIP],
}

/// What E is made of besides the table: Σωw and Σω of each row's weights by entry, for both numbers of a pair.
struct Sums {
    first: [Vec<f64>; 2],  // [STRIP, entries] each
    weight: [Vec<f64>; 2], // the same
    entries: usize,
}

/// Fits table, scales and indices of a strip; see the module.
pub(crate) fn fit(isa: Isa, strip: Strip, bits: Bits) -> StripFit {
    let energy = strip.energy();
    let pairs = Pairs::new(isa, strip, bits);
    let fits = [RowSize::RootMeanSquare, RowSize::Largest].map(|size| {
        let table = pairs.start(size);
        pairs.improve(table, energy, &mut |_| ())
    });
    let [a, b] = fits;
    if b.error < a.error { b } else { a }
}

/// A strip by its pairs.
struct Pairs<'a> {
    isa: Isa,
    strip: Strip<'a>,
    entries: usize,
    width: usize, // pairs of a row
    points: Points,
}

impl<'a> Pairs<'a> {
    fn new(isa: Isa, strip: Strip<'a>, bits: Bits) -> Pairs<'a> {
        let width = bits.indices(strip.cols);
        let empty = || [Vec::new(), Vec::new()];
        let mut points = Points {
            x: empty(),
            o: empty(),
        };
        for row in 0..strip.rows() {
            let (weight, importance) = strip.row(row);
            for index in 0..width {
                for (half, input) in bits.inputs(index).into_iter().enumerate() {
                    // A weight that there is not matters nothing.
                    let at = |from: &[f32]| from.get(input).copied().unwrap_or(0.0);
                    points.x[half].push(at(weight));
                    points.o[half].push(at(importance));
                }
            }
        }
        Pairs {
            isa,
            strip,
            entries: bits.entries(),
            width,
            points,
        }
    }

    /// The best of several starts on a sample of the pairs, each divided by its row's size.
    fn start(&self, size: RowSize) -> Table {
        let sizes: Vec<f64> = (0..self.strip.rows())
            .map(|row| row_size(self.strip.row(row).0, size))
            .collect();
        let sample = self.sample(&sizes);
        let starts = (0..STARTS).map(|start| sample.lloyd(self.isa, self.entries, start));
        let best = starts.reduce(|a, b| if b.1 < a.1 { b } else { a });
        let (centres, _) = best.expect("there is a start");
        let all = centres.iter().flatten();
        let largest = all.fold(0.0f64, |largest, &c| largest.max(f64::from(c).abs()));
        let mut table = Table {
            entries: [vec![0; self.entries], vec![0; self.entries]],
            scales: [f16::ZERO; STRIP],
        };
        if largest > 0.0 {
            for (entries, centres) in table.entries.iter_mut().zip(&centres) {
                for (entry, &centre) in entries.iter_mut().zip(centres) {
                    *entry = (f64::from(centre) / largest * 127.0).round() as i8;
                }
            }
            for (scale, size) in table.scales.iter_mut().zip(&sizes) {
                *scale = to_scale(size * largest / 127.0);
            }
        }
        table
    }

    /// Evenly taken of all pairs of rows that are not 0.
    fn sample(&self, sizes: &[f64]) -> Points {
        let empty = || [Vec::new(), Vec::new()];
        let mut sample = Points {
            x: empty(),
            o: empty(),
        };
        let all = self.points.x[0].len();
        let count = all.min(SAMPLE);
        for at in (0..count).map(|number| number * all / count) {
            let size = sizes[at / self.width];
            if size > 0.0 {
                let (inverse, square) = (size.recip() as f32, (size * size) as f32);
                for half in 0..2 {
                    sample.x[half].push(self.points.x[half][at] * inverse);
                    sample.o[half].push(self.points.o[half][at] * square);
                }
            }
        }
        sample
    }

    /// Entries, scales and indices in turn until little is gained. `seen` is told E after each round.
    fn improve(&self, table: Table, energy: f64, seen: &mut dyn FnMut(f64)) -> StripFit {
        let mut indices = vec![0; self.points.x[0].len()];
        let mut sums = self.assign(&table, &mut indices);
        let mut error = table.error(&sums, energy);
        let mut best = (table, indices.clone());
        seen(error);
        for _ in 0..ROUNDS {
            let mut table = best.0.clone();
            table.refit_entries(&sums);
            table.refit_scales(&sums);
            table.refit_entries(&sums);
            sums = self.assign(&table, &mut indices);
            let next = table.error(&sums, energy);
            if next >= error {
                break;
            }
            let enough = error - next < GAIN * error;
            error = next;
            best.0 = table;
            best.1.copy_from_slice(&indices);
            seen(error);
            if enough {
                break;
            }
        }
        let (table, indices) = best;
        StripFit {
            palette: table.entries.concat(),
            scales: table.scales,
            indices,
            error,
            energy,
        }
    }

    /// Chooses all indices and sums up the weights by them.
    fn assign(&self, table: &Table, indices: &mut [u8]) -> Sums {
        let floats = table.entries.each_ref().map(|entries| {
            entries
                .iter()
                .map(|&entry| f32::from(entry))
                .collect::<Vec<f32>>()
        });
        let zeros = || vec![0.0; STRIP * self.entries];
        let mut sums = Sums {
            first: [zeros(), zeros()],
            weight: [zeros(), zeros()],
            entries: self.entries,
        };
        let mut scaled = [vec![0.0; self.width], vec![0.0; self.width]];
        for (row, indices) in indices.chunks_exact_mut(self.width).enumerate() {
            let scale = table.scales[row].to_f32();
            let inverse = if scale == 0.0 { 0.0 } else { scale.recip() };
            let range = row * self.width..(row + 1) * self.width;
            let [x, o] = [&self.points.x, &self.points.o]
                .map(|both| both.each_ref().map(|numbers| &numbers[range.clone()]));
            for (scaled, x) in scaled.iter_mut().zip(x) {
                for (scaled, x) in scaled.iter_mut().zip(x) {
                    *scaled = x * inverse;
                }
            }
            nearest(
                self.isa,
                [&floats[0], &floats[1]],
                [&scaled[0], &scaled[1]],
                o,
                indices,
            );
            for half in 0..2 {
                for ((&w, &o), &index) in x[half].iter().zip(o[half]).zip(&*indices) {
                    let at = row * self.entries + usize::from(index);
                    sums.first[half][at] += f64::from(o) * f64::from(w);
                    sums.weight[half][at] += f64::from(o);
                }
            }
        }
        sums
    }
}

impl Points {
    /// Entries by k-means++ and Lloyd's rounds, and what they cost.
    fn lloyd(&self, isa: Isa, entries: usize, start: u64) -> ([Vec<f32>; 2], f64) {
        let mut centres = self.draw(entries, start);
        let mut indices = vec![0; self.x[0].len()];
        let mut last = f64::INFINITY;
        for _ in 0..LLOYD {
            self.nearest(isa, &centres, &mut indices);
            let costs = self.costs(&centres, &indices);
            let cost = costs.iter().sum();
            if last - cost < GAIN * last || indices.is_empty() {
                return (centres, cost);
            }
            last = cost;
            self.move_to_means(&mut centres, &indices, costs);
        }
        self.nearest(isa, &centres, &mut indices);
        let cost = self.costs(&centres, &indices).iter().sum();
        (centres, cost)
    }

    fn nearest(&self, isa: Isa, centres: &[Vec<f32>; 2], indices: &mut [u8]) {
        let [centres, x, o] =
            [centres, &self.x, &self.o].map(|both| both.each_ref().map(Vec::as_slice));
        nearest(isa, centres, x, o, indices);
    }

    /// What a centre at `(p, q)` costs a point.
    fn cost(&self, at: usize, p: f32, q: f32) -> f64 {
        let part = |half: usize, p: f32| {
            f64::from(self.o[half][at]) * (f64::from(self.x[half][at]) - f64::from(p)).powi(2)
        };
        part(0, p) + part(1, q)
    }

    fn costs(&self, centres: &[Vec<f32>; 2], indices: &[u8]) -> Vec<f64> {
        let [p, q] = centres;
        let cost = |(at, &index): (usize, &u8)| {
            let index = usize::from(index);
            self.cost(at, p[index], q[index])
        };
        indices.iter().enumerate().map(cost).collect()
    }

    /// Points drawn one after another, each with the chance of what it costs by those before: the first by what it would cost at 0.
    fn draw(&self, entries: usize, start: u64) -> [Vec<f32>; 2] {
        let [mut first, mut second] = [vec![0.0; entries], vec![0.0; entries]];
        let mut costs: Vec<f64> = (0..self.x[0].len())
            .map(|at| self.cost(at, 0.0, 0.0))
            .collect();
        for (k, centre) in first.iter_mut().zip(&mut second).enumerate() {
            let total: f64 = costs.iter().sum();
            let mut left = total * f64::from(random::uniform(SEED, start, k as u64));
            let drawn = costs.iter().position(|cost| {
                left -= cost;
                left < 0.0
            });
            // Nothing is left to serve: the other entries stay 0.
            let Some(drawn) = drawn else { break };
            let (p, q) = (self.x[0][drawn], self.x[1][drawn]);
            (*centre.0, *centre.1) = (p, q);
            for (at, cost) in costs.iter_mut().enumerate() {
                let own = self.cost(at, p, q);
                // The first is drawn by distances to 0, where no entry is.
                *cost = if k == 0 { own } else { cost.min(own) };
            }
        }
        [first, second]
    }

    /// Each centre to the weighted mean of its points, number by number; one without points to the point that costs most.
    fn move_to_means(&self, centres: &mut [Vec<f32>; 2], indices: &[u8], mut costs: Vec<f64>) {
        let entries = centres[0].len();
        let mut served = vec![false; entries];
        for (half, centres) in centres.iter_mut().enumerate() {
            let mut sums = vec![(0.0f64, 0.0f64); entries];
            for ((&x, &o), &index) in self.x[half].iter().zip(&self.o[half]).zip(indices) {
                let (first, weight) = &mut sums[usize::from(index)];
                *first += f64::from(o) * f64::from(x);
                *weight += f64::from(o);
            }
            for (k, (first, weight)) in sums.into_iter().enumerate() {
                if weight > 0.0 {
                    centres[k] = (first / weight) as f32;
                    served[k] = true;
                }
            }
        }
        for k in (0..entries).filter(|&k| !served[k]) {
            let dearest = (0..costs.len()).reduce(|a, b| if costs[b] > costs[a] { b } else { a });
            let Some(dearest) = dearest else { break };
            costs[dearest] = 0.0;
            for (half, centres) in centres.iter_mut().enumerate() {
                centres[k] = self.x[half][dearest];
            }
        }
    }
}

impl Table {
    /// The best entries for given sums and scales.
    fn refit_entries(&mut self, sums: &Sums) {
        for (half, entries) in self.entries.iter_mut().enumerate() {
            for (k, entry) in entries.iter_mut().enumerate() {
                let (mut first, mut weight) = (0.0, 0.0);
                for (row, scale) in self.scales.iter().enumerate() {
                    let (scale, at) = (scale.to_f64(), row * sums.entries + k);
                    first += scale * sums.first[half][at];
                    weight += scale * scale * sums.weight[half][at];
                }
                if weight > 0.0 {
                    *entry = (first / weight).round() as i8; // saturates
                }
            }
        }
    }

    /// The best scales for given sums and entries.
    fn refit_scales(&mut self, sums: &Sums) {
        for row in 0..STRIP {
            let (first, weight) = self.moments(sums, row);
            if weight > 0.0 {
                self.scales[row] = to_scale(first / weight);
            }
        }
    }

    /// Σ ω p w and Σ ω p² of a row.
    fn moments(&self, sums: &Sums, row: usize) -> (f64, f64) {
        let (mut first, mut weight) = (0.0, 0.0);
        let range = row * sums.entries..(row + 1) * sums.entries;
        for (half, entries) in self.entries.iter().enumerate() {
            let firsts = &sums.first[half][range.clone()];
            let weights = &sums.weight[half][range.clone()];
            for ((&p, f), w) in entries.iter().zip(firsts).zip(weights) {
                let p = f64::from(p);
                first += p * f;
                weight += p * p * w;
            }
        }
        (first, weight)
    }

    fn error(&self, sums: &Sums, energy: f64) -> f64 {
        let change: f64 = (0..STRIP)
            .map(|row| {
                let (scale, (first, weight)) = (self.scales[row].to_f64(), self.moments(sums, row));
                scale * (scale * weight - 2.0 * first)
            })
            .sum();
        (energy + change).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strip::{self, Importance};
    use proptest::prelude::*;

    /// Rows of normal weights of different sizes, some of them correlated with the one four inputs before, and uneven importance.
    fn data(rows: usize, cols: usize, seed: u64) -> (Vec<f32>, Vec<f32>) {
        let normal = |stream: u64, i: usize| random::normal(seed, stream, i as u64);
        let weight = (0..rows * cols).map(|i| 0.02 * (1 + i / cols % 3) as f32 * normal(0, i));
        let importance = (0..rows * cols).map(|i| normal(1, i).powi(2));
        (weight.collect(), importance.collect())
    }

    /// The weight that is stored for row `row`, input `col`.
    fn stored(bits: Bits, cols: usize, fit: &StripFit, row: usize, col: usize) -> f64 {
        let index = fit.indices[row * bits.indices(cols) + col / 8 * 4 + col % 4];
        let entry = fit.palette[col / 4 % 2 * bits.entries() + usize::from(index)];
        fit.scales[row].to_f64() * f64::from(entry)
    }

    /// E by its definition.
    fn error(strip: Strip, bits: Bits, fit: &StripFit) -> f64 {
        let mut sum = 0.0;
        for (i, &w) in strip.weight.iter().enumerate() {
            let (row, col) = (i / strip.cols, i % strip.cols);
            sum += f64::from(strip.importance.row(row, strip.cols)[col])
                * (f64::from(w) - stored(bits, strip.cols, fit, row, col)).powi(2);
        }
        sum
    }

    fn check(rows: usize, cols: usize, seed: u64, bits: Bits) -> StripFit {
        let (weight, importance) = data(rows, cols, seed);
        let strip = Strip {
            weight: &weight,
            cols,
            importance: Importance::elements(&importance, cols),
        };
        let fits: Vec<StripFit> = Isa::available().map(|isa| fit(isa, strip, bits)).collect();
        let first = &fits[0];
        assert!(fits.iter().all(|fit| fit.indices == first.indices
            && fit.palette == first.palette
            && fit.scales == first.scales));
        assert_eq!(first.indices.len(), rows * bits.indices(cols));
        assert_eq!(first.palette.len(), bits.table());
        let want = error(strip, bits, first);
        assert!(
            (first.error - want).abs() <= 1e-9 * first.energy,
            "error {}, by its definition {want}",
            first.error
        );
        fits.into_iter().next().unwrap()
    }

    #[test]
    fn the_error_is_that_of_what_is_stored() {
        for (rows, cols) in [(16, 40), (16, 300), (3, 17), (1, 1), (16, 1), (5, 1037)] {
            check(rows, cols, 7, Bits::TwoPairs);
            check(rows, cols, 8, Bits::ThreePairs);
            check(rows, cols, 9, Bits::FourPairs);
        }
    }

    #[test]
    fn the_error_never_rises() {
        let mut rounds = 0;
        for seed in 0..6 {
            let (weight, importance) = data(16, 64 + 40 * (seed as usize % 2), seed);
            let cols = weight.len() / 16;
            let strip = Strip {
                weight: &weight,
                cols,
                importance: Importance::elements(&importance, cols),
            };
            for (bits, size) in [
                (Bits::TwoPairs, RowSize::Largest),
                (Bits::ThreePairs, RowSize::RootMeanSquare),
            ] {
                let pairs = Pairs::new(Isa::best(), strip, bits);
                let mut seen = Vec::new();
                pairs.improve(pairs.start(size), strip.energy(), &mut |error| {
                    seen.push(error)
                });
                assert!(seen.windows(2).all(|pair| pair[1] < pair[0]), "{seen:?}");
                rounds += seen.len() - 1;
            }
        }
        assert!(
            rounds > 12,
            "only {rounds} rounds gained anything, so the test shows nothing"
        );
    }

    /// Of independent normal weights a good table of pairs has a little less error than one of single weights of as many bits:
    /// about 0.45 dB of the 1.53 that any number of dimensions could gain.
    #[test]
    fn pairs_serve_better_than_single_weights_of_as_many_bits() {
        let (weight, importance) = data(16, 1024, 3);
        let strip = Strip {
            weight: &weight,
            cols: 1024,
            importance: Importance::elements(&importance, 1024),
        };
        for (single, pairs) in [(Bits::Two, Bits::TwoPairs), (Bits::Three, Bits::ThreePairs)] {
            let (one, two) = (
                strip::fits(Isa::Scalar, strip, &[single])[0].error,
                fit(Isa::best(), strip, pairs).error,
            );
            assert!(two < 0.97 * one, "{pairs:?}: {two}, single weights {one}");
        }
    }

    #[test]
    fn weights_that_come_from_a_table_come_back() {
        let table: [[i8; 16]; 2] = [
            [
                -127, -90, -60, -41, 0, -19, -8, -2, 3, 0, 20, 33, 47, 66, 90, 120,
            ],
            [
                60, -90, 100, -41, 127, -99, 50, -2, 3, -60, 110, 33, -47, 0, -100, 80,
            ],
        ];
        let bits = Bits::TwoPairs;
        let weight: Vec<f32> = (0..16 * 64)
            .map(|i| {
                let (row, col) = (i / 64, i % 64);
                let number = col / 8 * 4 + col % 4;
                // Every row has both largest numbers, as rows of any length do.
                let index = match number {
                    0 => 0,
                    1 => 4,
                    _ => random::below(3, row as u64, number as u64, 16) as usize,
                };
                f16::from_f32(0.001 * (1.0 + row as f32)).to_f32()
                    * f32::from(table[col / 4 % 2][index])
            })
            .collect();
        let ones = vec![1.0; 64];
        let strip = Strip {
            weight: &weight,
            cols: 64,
            importance: Importance::columns(&ones),
        };
        let fit = fit(Isa::best(), strip, bits);
        assert!(fit.error < 1e-12 * fit.energy, "{}", fit.error / fit.energy);
    }

    #[test]
    fn rows_of_zeros_and_weights_that_matter_nothing_do_no_harm() {
        let (mut weight, mut importance) = data(16, 40, 5);
        weight[80..120].fill(0.0);
        importance[..40].fill(0.0);
        let strip = Strip {
            weight: &weight,
            cols: 40,
            importance: Importance::elements(&importance, 40),
        };
        let fitted = fit(Isa::best(), strip, Bits::ThreePairs);
        assert!(fitted.error < 0.05 * fitted.energy);
        assert_eq!(fitted.scales[2], f16::ZERO);
        for nothing in [[0.0; 40], [1.0; 40]] {
            let strip = Strip {
                weight: &[0.0; 640],
                cols: 40,
                importance: Importance::columns(&nothing),
            };
            let fit = fit(Isa::best(), strip, Bits::TwoPairs);
            assert_eq!((fit.error, fit.energy), (0.0, 0.0));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn any_finite_weights_are_fitted(
            weight in prop::collection::vec(prop::num::f32::NORMAL | prop::num::f32::ZERO, 1..80), rows in 1usize..5
        ) {
            let cols = weight.len().div_ceil(rows);
            let weight = &weight[..weight.len() / cols * cols];
            let ones = vec![1.0; cols];
            let strip = Strip { weight, cols, importance: Importance::columns(&ones) };
            let fit = fit(Isa::best(), strip, Bits::TwoPairs);
            prop_assert!(fit.error <= fit.energy && fit.scales.iter().all(|scale| scale.is_finite()));
        }
    }
}
