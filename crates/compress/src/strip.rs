//! One strip of a weight matrix: sixteen rows, one table, a scale a row.
//!
//! Minimised is the weighted squared error of what is *stored*, with int8 entries p and f16 scales s:
//! ```text
//! E = Σ ω[r, c] (w[r, c] − s[r] · p[index[r, c]])²
//! ```
//! Two tables start, of which the better one after a round goes on. A table starts as the exact weighted k-means of the rows divided by their size (a histogram of 256 bins, as
//! fine as int8 entries), then three steps alternate, each exact for the others held: the best entries are a
//! weighted mean rounded to int8, the best scale of a row is a quotient rounded to f16 (the nearest representable
//! number minimises a parabola), the best index is the nearest entry. So E never rises.
//! Weighting by Fisher information is SqueezeLLM's (Kim et al., arXiv 2306.07629).

use half::f16;
use russet_kernels::Isa;
use russet_kernels::palette::{Bits, RowSums, STRIP, assign};

use crate::kmeans::{Clusters, Sorted};

/// Bins of the histogram that k-means runs on.
const BINS: usize = 256;

/// At most so many rounds of entries, scales, indices; two to five are usual.
pub(crate) const ROUNDS: usize = 12;

/// Rounds end when one gains less than this part of E.
pub(crate) const GAIN: f64 = 3e-3;

/// Entries of the largest table.
const ENTRIES: usize = 16;

/// How much each weight of some rows matters: its own number, or one for each column, common to all rows.
#[derive(Clone, Copy)]
pub(crate) struct Importance<'a> {
    data: &'a [f32],
    row_stride: usize,
}

impl<'a> Importance<'a> {
    /// `[cols]`, common to all rows.
    pub fn columns(data: &'a [f32]) -> Importance<'a> {
        Importance {
            data,
            row_stride: 0,
        }
    }

    /// `[rows, cols]`.
    pub fn elements(data: &'a [f32], cols: usize) -> Importance<'a> {
        Importance {
            data,
            row_stride: cols,
        }
    }

    /// That of row `row`, `[cols]`.
    pub fn row(self, row: usize, cols: usize) -> &'a [f32] {
        &self.data[row * self.row_stride..][..cols]
    }

    /// That of the rows from `row` on.
    pub fn skip_rows(self, row: usize) -> Importance<'a> {
        Importance {
            data: &self.data[row * self.row_stride..],
            ..self
        }
    }
}

/// A table with its row scales, as stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Table {
    /// Ascending; the first 4, 8 or 16 count.
    pub entries: [i8; ENTRIES],
    /// One a row, 0 for rows that there are not.
    pub scales: [f16; STRIP],
    /// 4, 8 or 16.
    len: usize,
}

/// What fitting a strip gives.
#[derive(Clone, Debug)]
pub(crate) struct Fit {
    pub table: Table,
    /// `[rows, cols]`, one a byte.
    pub indices: Vec<u8>,
    /// E.
    pub error: f64,
    /// Σ ω w²: the error of a table of zeros.
    pub energy: f64,
}

/// Up to sixteen rows `[rows, cols]`.
#[derive(Clone, Copy)]
pub(crate) struct Strip<'a> {
    pub weight: &'a [f32],
    pub cols: usize,
    pub importance: Importance<'a>,
}

/// What E is made of besides the table: sums of each row's weights by entry, and E itself.
#[derive(Clone)]
struct Sums([RowSums; STRIP]);

/// A fit on its way.
struct Climb {
    best: Fit,
    sums: Sums,     // of the best
    spare: Vec<u8>, // indices of the next
}

/// Fits table, scales and indices of a strip for each of `widths`; see the module.
pub(crate) fn fits(isa: Isa, strip: Strip, widths: &[Bits]) -> Vec<Fit> {
    let energy = strip.energy();
    let sizes = [RowSize::RootMeanSquare, RowSize::Largest];
    let [first, second] = sizes.map(|size| strip.start(widths, size));
    let tables = first.into_iter().zip(second);
    let fit = |(first, second)| {
        let starts = [first, second].map(|table| {
            let mut climb = strip.begin(isa, table, energy);
            let goes_on = strip.round(isa, &mut climb);
            (climb, goes_on)
        });
        let [a, b] = starts;
        let (mut climb, mut goes_on) = if b.0.best.error < a.0.best.error {
            b
        } else {
            a
        };
        for _ in 1..ROUNDS {
            if !goes_on {
                break;
            }
            goes_on = strip.round(isa, &mut climb);
        }
        climb.best
    };
    tables.map(fit).collect()
}

/// What rows are divided by before they share a table.
#[derive(Clone, Copy)]
pub(crate) enum RowSize {
    /// Makes rows of equal distribution equal, whatever their outliers.
    RootMeanSquare,
    /// Recovers rows that were made from a table exactly, and keeps entries for outliers.
    Largest,
}

impl Table {
    /// The entries that count.
    pub fn entries(&self) -> &[i8] {
        &self.entries[..self.len]
    }

    /// The best entries for given sums and scales.
    fn refit_entries(&mut self, sums: &Sums) {
        for k in 0..self.len {
            let (mut first, mut weight) = (0.0, 0.0);
            for (row, scale) in self.scales.iter().enumerate() {
                let scale = scale.to_f64();
                first += scale * sums.0[row].first[k];
                weight += scale * scale * sums.0[row].weight[k];
            }
            if weight > 0.0 {
                self.entries[k] = (first / weight).round() as i8; // saturates
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
        self.entries()
            .iter()
            .enumerate()
            .fold((0.0, 0.0), |(first, weight), (k, &p)| {
                let p = f64::from(p);
                (
                    first + p * sums.0[row].first[k],
                    weight + p * p * sums.0[row].weight[k],
                )
            })
    }
}

impl Sums {
    /// E.
    fn error(&self) -> f64 {
        self.0.iter().map(|row| row.error).sum()
    }
}

/// The nearest scale that can be stored. A negative one is as good as another: it turns the table around.
pub(crate) fn to_scale(scale: f64) -> f16 {
    f16::from_f64(scale.clamp(-65504.0, 65504.0))
}

impl Strip<'_> {
    pub fn rows(&self) -> usize {
        self.weight.len() / self.cols
    }

    pub fn row(&self, row: usize) -> (&[f32], &[f32]) {
        (
            &self.weight[row * self.cols..][..self.cols],
            self.importance.row(row, self.cols),
        )
    }

    pub fn energy(&self) -> f64 {
        let square = |(&w, &o): (&f32, &f32)| f64::from(o) * f64::from(w) * f64::from(w);
        (0..self.rows())
            .map(|row| {
                let (weight, importance) = self.row(row);
                weight.iter().zip(importance).map(square).sum::<f64>()
            })
            .sum()
    }

    /// The tables of exact k-means over all rows, each divided by its size, one for each width.
    fn start(&self, widths: &[Bits], size: RowSize) -> Vec<Table> {
        let sizes: Vec<f64> = (0..self.rows())
            .map(|row| row_size(self.row(row).0, size))
            .collect();
        let points = self.points(&sizes);
        let counts: Vec<usize> = widths.iter().map(|bits| bits.entries()).collect();
        let clusters = points.cluster(&counts);
        let tables = clusters
            .iter()
            .map(|clusters| table(&points, clusters, &sizes));
        tables.collect()
    }

    /// The weights divided by their rows' sizes, in order: all of them where they are few, else a histogram.
    fn points(&self, sizes: &[f64]) -> Sorted {
        let rows = || sizes.iter().enumerate().filter(|(_, size)| **size > 0.0);
        if self.weight.len() <= BINS {
            let mut all = Vec::with_capacity(self.weight.len());
            for (row, &size) in rows() {
                let (weight, importance) = self.row(row);
                let point =
                    |(&w, &o): (&f32, &f32)| (f64::from(w) / size, f64::from(o) * size * size);
                all.extend(weight.iter().zip(importance).map(point));
            }
            all.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
            return Sorted::new(all.into_iter().map(|(x, o)| [o, o * x, o * x * x]));
        }
        let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
        for (row, &size) in rows() {
            let inverse = size.recip() as f32;
            for &w in self.row(row).0 {
                low = low.min(w * inverse);
                high = high.max(w * inverse);
            }
        }
        let per_unit = if high > low {
            BINS as f32 / (high - low)
        } else {
            0.0
        };
        let mut bins = vec![[0.0f64; 3]; BINS];
        for (row, &size) in rows() {
            let (weight, importance) = self.row(row);
            let inverse = size.recip() as f32;
            for (&w, &o) in weight.iter().zip(importance) {
                let x = w * inverse;
                let bin = (((x - low) * per_unit) as usize).min(BINS - 1);
                let (x, o) = (f64::from(x), f64::from(o) * size * size);
                for (sum, part) in bins[bin].iter_mut().zip([o, o * x, o * x * x]) {
                    *sum += part;
                }
            }
        }
        Sorted::new(bins.into_iter().filter(|bin| bin[0] > 0.0))
    }

    /// The indices for a table that has only begun.
    fn begin(&self, isa: Isa, table: Table, energy: f64) -> Climb {
        let mut indices = vec![0; self.weight.len()];
        let sums = self.assign(isa, &table, &mut indices);
        Climb {
            best: Fit {
                table,
                indices,
                error: sums.error(),
                energy,
            },
            sums,
            spare: vec![0; self.weight.len()],
        }
    }

    /// Entries, scales and indices in turn, where that is better. Whether another round is worth it.
    fn round(&self, isa: Isa, climb: &mut Climb) -> bool {
        let mut table = climb.best.table;
        table.refit_entries(&climb.sums);
        table.refit_scales(&climb.sums);
        table.refit_entries(&climb.sums);
        table.entries[..table.len].sort_unstable(); // rarely, new scales make neighbours swap
        let sums = self.assign(isa, &table, &mut climb.spare);
        let (before, error) = (climb.best.error, sums.error());
        if error >= before {
            return false;
        }
        climb.best.table = table;
        climb.best.error = error;
        climb.sums = sums;
        std::mem::swap(&mut climb.best.indices, &mut climb.spare);
        before - error >= GAIN * before
    }

    /// Chooses all indices and sums up the weights by them.
    fn assign(&self, isa: Isa, table: &Table, indices: &mut [u8]) -> Sums {
        let mut sums = Sums([RowSums::default(); STRIP]);
        for (row, indices) in indices.chunks_exact_mut(self.cols).enumerate() {
            let (weight, importance) = self.row(row);
            let scale = table.scales[row].to_f32();
            sums.0[row] = assign(isa, table.entries(), scale, weight, importance, indices);
        }
        sums
    }
}

/// The table that clusters of rows divided by `sizes` make.
fn table(points: &Sorted, clusters: &Clusters, sizes: &[f64]) -> Table {
    let entries = clusters.members.len();
    let mut centres = [0.0; ENTRIES];
    let mut last = f64::NEG_INFINITY;
    for (centre, members) in centres.iter_mut().zip(&clusters.members) {
        // A cluster of nothing takes the place of the one before, so that the table stays ascending.
        last = points.mean(members.clone()).unwrap_or(last);
        *centre = last;
    }
    let centres = centres.map(|centre| if centre.is_finite() { centre } else { 0.0 });
    let largest = centres
        .iter()
        .fold(0.0f64, |largest, centre| largest.max(centre.abs()));
    let mut table = Table {
        entries: [0; ENTRIES],
        scales: [f16::ZERO; STRIP],
        len: entries,
    };
    if largest > 0.0 {
        for (entry, centre) in table.entries.iter_mut().zip(&centres[..entries]) {
            *entry = (centre / largest * 127.0).round() as i8;
        }
        table.entries[..entries].sort_unstable(); // leading empty clusters are zeros
        for (scale, size) in table.scales.iter_mut().zip(sizes) {
            *scale = to_scale(size * largest / 127.0);
        }
    }
    table
}

/// What a row is divided by; 0 for one of zeros, and for one so small that a division would not do: f16 has no scale for either.
pub(crate) fn row_size(weight: &[f32], size: RowSize) -> f64 {
    let size = match size {
        RowSize::Largest => f64::from(
            weight
                .iter()
                .fold(0.0f32, |largest, w| largest.max(w.abs())),
        ),
        RowSize::RootMeanSquare => {
            let square: f64 = weight.iter().map(|&w| f64::from(w) * f64::from(w)).sum();
            (square / weight.len() as f64).sqrt()
        }
    };
    match (size.recip() as f32).is_finite() {
        true => size,
        false => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use russet_kernels::random;

    fn fit(strip: Strip, bits: Bits) -> Fit {
        fits(Isa::Scalar, strip, &[bits]).remove(0)
    }

    /// Rows of normal weights of different sizes with a few outliers, and uneven importance.
    fn data(rows: usize, cols: usize, seed: u64) -> (Vec<f32>, Vec<f32>) {
        let weight = (0..rows * cols).map(|i| {
            let outlier = if random::below(seed, 2, i as u64, 50) == 0 {
                6.0
            } else {
                1.0
            };
            outlier * 0.02 * (1 + i / cols % 3) as f32 * random::normal(seed, 0, i as u64)
        });
        let importance = (0..rows * cols).map(|i| random::normal(seed, 1, i as u64).powi(2));
        (weight.collect(), importance.collect())
    }

    /// E by its definition.
    fn error(strip: Strip, fit: &Fit) -> f64 {
        let mut sum = 0.0;
        for (i, (&w, &index)) in strip.weight.iter().zip(&fit.indices).enumerate() {
            let (row, col) = (i / strip.cols, i % strip.cols);
            let stored =
                fit.table.scales[row].to_f64() * f64::from(fit.table.entries[usize::from(index)]);
            sum += f64::from(strip.importance.row(row, strip.cols)[col])
                * (f64::from(w) - stored).powi(2);
        }
        sum
    }

    fn check(rows: usize, cols: usize, seed: u64, bits: Bits) -> Fit {
        let (weight, importance) = data(rows, cols, seed);
        let strip = Strip {
            weight: &weight,
            cols,
            importance: Importance::elements(&importance, cols),
        };
        let fit = fit(strip, bits);
        assert_eq!(
            (fit.indices.len(), fit.table.len),
            (rows * cols, bits.entries())
        );
        let want = error(strip, &fit);
        assert!(
            (fit.error - want).abs() <= 1e-5 * fit.energy,
            "error {}, by its definition {want}",
            fit.error
        );
        // No other entry serves a weight better; the choice is made in f32.
        for (i, (&w, &index)) in weight.iter().zip(&fit.indices).enumerate() {
            let off =
                |p: i8| (f64::from(w) - fit.table.scales[i / cols].to_f64() * f64::from(p)).abs();
            let least = fit
                .table
                .entries()
                .iter()
                .map(|&p| off(p))
                .fold(f64::INFINITY, f64::min);
            assert!(
                off(fit.table.entries[usize::from(index)]) <= least + 1e-6,
                "weight {i}"
            );
        }
        fit
    }

    #[test]
    fn the_error_is_that_of_what_is_stored() {
        for (rows, cols) in [(16, 40), (16, 300), (3, 17), (1, 1), (16, 1), (5, 2000)] {
            check(rows, cols, 7, Bits::Four);
            check(rows, cols, 8, Bits::Two);
            check(rows, cols, 9, Bits::Three);
        }
    }

    #[test]
    fn the_error_never_rises() {
        let mut rounds = 0;
        for seed in 0..20 {
            let (weight, importance) = data(16, 64 + 40 * (seed as usize % 2), seed);
            let cols = weight.len() / 16;
            let strip = Strip {
                weight: &weight,
                cols,
                importance: Importance::elements(&importance, cols),
            };
            for (bits, size) in [
                (Bits::Two, RowSize::Largest),
                (Bits::Three, RowSize::RootMeanSquare),
                (Bits::Four, RowSize::RootMeanSquare),
            ] {
                let mut seen = Vec::new();
                let table = strip.start(&[bits], size).remove(0);
                let mut climb = strip.begin(Isa::Scalar, table, strip.energy());
                seen.push(climb.best.error);
                while strip.round(Isa::Scalar, &mut climb) {
                    seen.push(climb.best.error);
                }
                assert!(seen.windows(2).all(|pair| pair[1] < pair[0]), "{seen:?}");
                rounds += seen.len() - 1;
            }
        }
        assert!(
            rounds > 40,
            "only {rounds} rounds gained anything, so the test shows nothing"
        );
    }

    #[test]
    fn more_entries_serve_better_and_weights_that_matter_best() {
        let (four, two) = (check(16, 200, 1, Bits::Four), check(16, 200, 1, Bits::Two));
        let three = check(16, 200, 1, Bits::Three);
        assert!(3.0 * four.error < three.error && 3.0 * three.error < two.error);
        assert!(
            four.error < 0.02 * four.energy && two.error < 0.25 * two.energy,
            "{} {} {}",
            four.error,
            two.error,
            two.energy
        );
        // Fitting without importance costs more of what matters.
        let (weight, importance) = data(16, 200, 1);
        let ones = vec![1.0; 200];
        let plain = fit(
            Strip {
                weight: &weight,
                cols: 200,
                importance: Importance::columns(&ones),
            },
            Bits::Two,
        );
        let strip = Strip {
            weight: &weight,
            cols: 200,
            importance: Importance::elements(&importance, 200),
        };
        assert!(
            error(strip, &plain) > 1.05 * two.error,
            "{} weighted, {} plain",
            two.error,
            error(strip, &plain)
        );
    }

    #[test]
    fn weights_that_come_from_a_table_come_back() {
        let table: [i8; 16] = [
            -127, -90, -60, -41, -30, -19, -8, -2, 3, 9, 20, 33, 47, 66, 90, 120,
        ];
        let scale = |row: usize| f16::from_f32(0.001 * (1.0 + row as f32)).to_f32();
        let weight: Vec<f32> = (0..16 * 50)
            .map(|i| {
                // Every row has the largest entry, as rows of any length do.
                let index = if i % 50 == 0 {
                    0
                } else {
                    random::below(3, 0, i as u64, 16) as usize
                };
                scale(i / 50) * f32::from(table[index])
            })
            .collect();
        let ones = vec![1.0; 50];
        let fit = fit(
            Strip {
                weight: &weight,
                cols: 50,
                importance: Importance::columns(&ones),
            },
            Bits::Four,
        );
        assert_eq!(
            (fit.table.entries, fit.error < 1e-12 * fit.energy),
            (table, true),
            "{}",
            fit.error / fit.energy
        );
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
        let fitted = fit(strip, Bits::Four);
        assert!(fitted.error < 0.02 * fitted.energy);
        assert_eq!(fitted.table.scales[2], f16::ZERO);
        for nothing in [
            Importance::columns(&[0.0; 40]),
            Importance::columns(&[1.0; 40]),
        ] {
            let fit = fit(
                Strip {
                    weight: &[0.0; 640],
                    cols: 40,
                    importance: nothing,
                },
                Bits::Two,
            );
            assert_eq!((fit.error, fit.energy), (0.0, 0.0));
        }
    }

    #[test]
    fn a_row_too_small_to_divide_by_leaves_the_others_alone() {
        let (mut weight, importance) = data(16, 40, 5);
        weight[80..120].fill(1e-40);
        let strip = Strip {
            weight: &weight,
            cols: 40,
            importance: Importance::elements(&importance, 40),
        };
        let fitted = fit(strip, Bits::Four);
        assert!(
            fitted.error < 0.02 * fitted.energy,
            "{}",
            fitted.error / fitted.energy
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn any_finite_weights_are_fitted(
            weight in prop::collection::vec(prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL | prop::num::f32::ZERO, 1..600), rows in 1usize..5
        ) {
            let cols = weight.len().div_ceil(rows);
            let weight = &weight[..weight.len() / cols * cols];
            let ones = vec![1.0; cols];
            let fit = fit(Strip { weight, cols, importance: Importance::columns(&ones) }, Bits::Two);
            // What cannot be stored at all costs its energy, but for the rounding of sums in f32.
            let most = fit.energy * (1.0 + 1e-5) + f64::from(f32::MIN_POSITIVE);
            prop_assert!(fit.error <= most && fit.table.scales.iter().all(|scale| scale.is_finite()));
        }
    }
}
