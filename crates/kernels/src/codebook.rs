//! Palettes while they learn: tables and scales in f32, and what they make of weights.
//!
//! ```text
//! held      ŵ = s · p[i]                 i as given                          d_p, d_s
//! nearest   i = argmin |w / s − p|²      ŵ as above                          d_p, d_s, and to w straight through (arXiv 1308.3432)
//! soft      a = softmax(−|w / s − p|² / τ)     ŵ = s · Σ a p                 d_p, d_s, d_w: differentiable k-means (arXiv 2108.12659)
//! ```
//! s is a row's, p a strip's of 16 rows, as in [`crate::palette`]; of pairs w and p have two numbers, four inputs apart. In the soft form
//! entries are what gradients move, where the paper lets a fixed point of weighted means find them; τ is held. Sums run in one order
//! on any number of threads.

use crate::Pool;
use crate::palette::{Bits, STRIP};
use crate::profile::{Kernel, span};

/// A palettized matrix `[rows, cols]` whose numbers are not those of a file yet.
#[derive(Clone, Copy, Debug)]
pub struct Codebook<'a> {
    /// Bits a weight, of single weights or of pairs.
    pub bits: Bits,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// `[strips, entries]`, of pairs `[strips, 2, entries]`; whole numbers from -128 to 127 where they are as stored.
    pub entries: &'a [f32],
    /// One a row.
    pub scales: &'a [f32],
}

/// The entries of a strip, for as many numbers as an index stands for.
#[derive(Clone, Copy)]
struct Table<'a>([&'a [f32]; 2]);

/// Room for what each entry counts.
type Shares = [f32; 256];

/// The logarithm of 2⁻²⁵, half of what f32 tells from 1.
const NOTHING: f32 = -17.328_68;

impl<'a> Codebook<'a> {
    fn check(&self, out: usize) {
        assert_eq!(
            (self.entries.len(), self.scales.len(), out),
            (
                self.rows.div_ceil(STRIP) * self.bits.table(),
                self.rows,
                self.rows * self.cols
            ),
            "a codebook of {} x {}",
            self.rows,
            self.cols
        );
    }

    fn table(&self, strip: usize) -> Table<'a> {
        let count = self.bits.entries();
        let all = &self.entries[strip * self.bits.table()..][..self.bits.table()];
        Table([&all[..count], &all[all.len() - count..]])
    }

    /// What a row's weights are divided by, turned over; 0 of a row that has no scale.
    fn inverse(&self, row: usize) -> f32 {
        match self.scales[row] {
            0.0 => 0.0,
            scale => scale.recip(),
        }
    }

    fn width(&self) -> usize {
        self.bits.indices(self.cols)
    }

    /// The inputs of an index that there are: the second of a pair may lie past the end.
    fn inputs(&self, index: usize) -> (usize, Option<usize>) {
        let [first, second] = self.bits.inputs(index);
        (
            first,
            (second != first && second < self.cols).then_some(second),
        )
    }

    /// τ of each strip for a temperature: its share of the squared step between entries, were they even.
    pub fn softness(&self, temperature: f32) -> Vec<f32> {
        let steps = libm::powf(self.bits.entries() as f32, 1.0 / self.bits.dims() as f32) - 1.0;
        let tau = |strip: &[f32]| {
            let most = strip.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
            let least = strip.iter().fold(f32::INFINITY, |a, &b| a.min(b));
            // Of a table of equal entries every choice is the same.
            (temperature * ((most - least) / steps).powi(2)).max(f32::MIN_POSITIVE.sqrt())
        };
        self.entries.chunks(self.bits.table()).map(tau).collect()
    }
}

impl Table<'_> {
    /// |v − p|² of entry k.
    fn distance(&self, k: usize, v: f32, second: Option<f32>) -> f32 {
        let d = v - self.0[0][k];
        match second {
            None => d * d,
            Some(v) => {
                let e = v - self.0[1][k];
                d * d + e * e
            }
        }
    }

    /// The first of the nearest entries.
    fn nearest(&self, v: f32, second: Option<f32>) -> usize {
        let (mut best, mut least) = (0, self.distance(0, v, second));
        for k in 1..self.0[0].len() {
            let distance = self.distance(k, v, second);
            if distance < least {
                (best, least) = (k, distance);
            }
        }
        best
    }

    /// a of every entry, and the mean of each number under it.
    fn shares(&self, v: f32, second: Option<f32>, tau: f32, shares: &mut Shares) -> [f32; 2] {
        let count = self.0[0].len();
        let mut least = f32::INFINITY;
        for (k, share) in shares[..count].iter_mut().enumerate() {
            *share = self.distance(k, v, second);
            least = least.min(*share);
        }
        let mut sum = 0.0;
        for share in &mut shares[..count] {
            let power = (least - *share) / tau;
            // Most entries are far away: a share that would not change a sum of one is nothing, and costs no exponential. All of 255 together come to 8e-6.
            *share = if power > NOTHING {
                libm::expf(power)
            } else {
                0.0
            };
            sum += *share;
        }
        let mut means = [0.0; 2];
        for (k, share) in shares[..count].iter_mut().enumerate() {
            *share /= sum;
            means[0] += *share * self.0[0][k];
            means[1] += *share * self.0[1][k];
        }
        means
    }
}

/// The index of the nearest entry for each weight `[rows, cols]`, of pairs for each two: `[rows, indices of a row]`.
///
/// # Panics
/// When the lengths do not fit.
pub fn nearest(pool: &Pool, book: &Codebook, weights: &[f32], indices: &mut [u8]) {
    let _span = span(Kernel::Elementwise);
    book.check(weights.len());
    let (cols, width) = (book.cols, book.width());
    assert_eq!(indices.len(), book.rows * width, "an index each");
    pool.for_each_chunk(indices, width, |row, indices| {
        let (table, inverse) = (book.table(row / STRIP), book.inverse(row));
        let weights = &weights[row * cols..][..cols];
        for (number, index) in indices.iter_mut().enumerate() {
            let (first, second) = book.inputs(number);
            let value = |input: usize| weights[input] * inverse;
            *index = table.nearest(value(first), second.map(value)) as u8;
        }
    });
}

/// What the indices stand for: `out` `[rows, cols]`.
///
/// # Panics
/// When the lengths do not fit, or an index has no entry.
pub fn expand(pool: &Pool, book: &Codebook, indices: &[u8], out: &mut [f32]) {
    let _span = span(Kernel::Elementwise);
    book.check(out.len());
    let width = book.width();
    pool.for_each_chunk(out, book.cols, |row, out| {
        let (table, scale) = (book.table(row / STRIP), book.scales[row]);
        for (number, &index) in indices[row * width..][..width].iter().enumerate() {
            let (first, second) = book.inputs(number);
            out[first] = scale * table.0[0][usize::from(index)];
            if let Some(second) = second {
                out[second] = scale * table.0[1][usize::from(index)];
            }
        }
    });
}

/// Gradients of [`expand`]: of its entries, laid out as they are, and of its scales.
///
/// # Panics
/// When the lengths do not fit.
pub fn expand_backward(
    pool: &Pool,
    book: &Codebook,
    indices: &[u8],
    d_out: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    let _span = span(Kernel::Elementwise);
    book.check(d_out.len());
    let (cols, width, count) = (book.cols, book.width(), book.bits.entries());
    by_strip(pool, book, |strip, row, d_entries, d_scale| {
        let (table, scale) = (book.table(strip), book.scales[row]);
        let d_out = &d_out[row * cols..][..cols];
        for (number, &index) in indices[row * width..][..width].iter().enumerate() {
            let index = usize::from(index);
            let (first, second) = book.inputs(number);
            d_entries[index] += scale * d_out[first];
            *d_scale += table.0[0][index] * d_out[first];
            if let Some(second) = second {
                d_entries[count + index] += scale * d_out[second];
                *d_scale += table.0[1][index] * d_out[second];
            }
        }
    })
}

/// The soft form of weights `[rows, cols]`: `out` `[rows, cols]`. `tau` is that of each strip, from [`Codebook::softness`].
///
/// # Panics
/// When the lengths do not fit.
pub fn soften(pool: &Pool, book: &Codebook, weights: &[f32], tau: &[f32], out: &mut [f32]) {
    let _span = span(Kernel::Elementwise);
    book.check(out.len());
    let cols = book.cols;
    pool.for_each_chunk(out, cols, |row, out| {
        let (strip, inverse, scale) = (row / STRIP, book.inverse(row), book.scales[row]);
        let (table, tau) = (book.table(strip), tau[strip]);
        let weights = &weights[row * cols..][..cols];
        let value = |input: usize| weights[input] * inverse;
        let mut shares: Shares = [0.0; 256];
        for number in 0..book.width() {
            let (first, second) = book.inputs(number);
            let means = table.shares(value(first), second.map(value), tau, &mut shares);
            out[first] = scale * means[0];
            if let Some(second) = second {
                out[second] = scale * means[1];
            }
        }
    });
}

/// Gradients of [`soften`]: `d_weights` `[rows, cols]`, and as [`expand_backward`] those of entries and scales.
///
/// With v = w / s, m = Σ a p and C the covariance of p under a: dm/dv = 2 C / τ, and of entry k
/// `dm = a dp + a · 2 / τ · ((v − p) · dp) (p − m)`.
///
/// # Panics
/// When the lengths do not fit.
pub fn soften_backward(
    pool: &Pool,
    book: &Codebook,
    weights: &[f32],
    tau: &[f32],
    d_out: &[f32],
    d_weights: &mut [f32],
) -> (Vec<f32>, Vec<f32>) {
    let _span = span(Kernel::Elementwise);
    book.check(d_out.len());
    assert_eq!(d_weights.len(), weights.len(), "a gradient each");
    let (cols, count) = (book.cols, book.bits.entries());
    // What both passes below want of one index: its inputs, v, d_out there, the shares and means.
    let at = |row: usize, number: usize, shares: &mut Shares| {
        let (strip, inverse) = (row / STRIP, book.inverse(row));
        let (first, second) = book.inputs(number);
        let value = |input: usize| weights[row * cols + input] * inverse;
        let v = [value(first), second.map_or(0.0, value)];
        let d = [
            d_out[row * cols + first],
            second.map_or(0.0, |second| d_out[row * cols + second]),
        ];
        let means = book
            .table(strip)
            .shares(v[0], second.map(|_| v[1]), tau[strip], shares);
        (first, second, v, d, means)
    };
    // dm/dv applied to d: 2 / τ · Cov · d.
    let through = |strip: usize, shares: &Shares, means: [f32; 2], d: [f32; 2]| {
        let table = book.table(strip);
        let mut sums = [0.0; 2];
        for (k, share) in shares[..count].iter().enumerate() {
            let off = [table.0[0][k] - means[0], table.0[1][k] - means[1]];
            let dot = share * (off[0] * d[0] + off[1] * d[1]);
            sums = [sums[0] + dot * off[0], sums[1] + dot * off[1]];
        }
        sums.map(|sum| 2.0 / tau[strip] * sum)
    };
    pool.for_each_chunk(d_weights, cols, |row, d_weights| {
        let mut shares: Shares = [0.0; 256];
        for number in 0..book.width() {
            let (first, second, _, d, means) = at(row, number, &mut shares);
            // ŵ = s m(w / s): the scales cancel, but where there is none nothing comes through.
            let on = if book.scales[row] == 0.0 { 0.0 } else { 1.0 };
            let back = through(row / STRIP, &shares, means, d).map(|back| on * back);
            d_weights[first] = back[0];
            if let Some(second) = second {
                d_weights[second] = back[1];
            }
        }
    });
    by_strip(pool, book, |strip, row, d_entries, d_scale| {
        let (table, scale) = (book.table(strip), book.scales[row]);
        let mut shares: Shares = [0.0; 256];
        for number in 0..book.width() {
            let (_, second, v, d, means) = at(row, number, &mut shares);
            let back = through(strip, &shares, means, d);
            *d_scale += d[0] * means[0] + d[1] * means[1] - v[0] * back[0] - v[1] * back[1];
            for (k, share) in shares[..count].iter().enumerate() {
                if *share == 0.0 {
                    continue;
                }
                let p = [table.0[0][k], table.0[1][k]];
                let gain = d[0] * (p[0] - means[0]) + d[1] * (p[1] - means[1]);
                let pull = 2.0 / tau[strip] * gain;
                d_entries[k] += scale * share * (d[0] + pull * (v[0] - p[0]));
                if second.is_some() {
                    d_entries[count + k] += scale * share * (d[1] + pull * (v[1] - p[1]));
                }
            }
        }
    })
}

/// Gradients of entries and scales, `body` adding up those of one row after another of a strip: its entries', and the row's own.
fn by_strip(
    pool: &Pool,
    book: &Codebook,
    body: impl Fn(usize, usize, &mut [f32], &mut f32) + Sync,
) -> (Vec<f32>, Vec<f32>) {
    let table = book.bits.table();
    let strips = book.rows.div_ceil(STRIP);
    let mut sums = vec![0.0; strips * (table + STRIP)];
    pool.for_each_chunk(&mut sums, table + STRIP, |strip, sums| {
        let (d_entries, d_scales) = sums.split_at_mut(table);
        let rows = strip * STRIP..book.rows.min((strip + 1) * STRIP);
        for (row, d_scale) in rows.zip(d_scales) {
            body(strip, row, d_entries, d_scale);
        }
    });
    let (mut d_entries, mut d_scales) = (Vec::new(), Vec::new());
    for sums in sums.chunks_exact(table + STRIP) {
        d_entries.extend_from_slice(&sums[..table]);
        d_scales.extend_from_slice(&sums[table..]);
    }
    d_scales.truncate(book.rows);
    (d_entries, d_scales)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::palette::{self, PaletteMatrix};
    use crate::random;
    use half::f16;

    fn drawn(len: usize, stream: u64) -> Vec<f32> {
        (0..len)
            .map(|i| random::normal(7, stream, i as u64))
            .collect()
    }

    /// Entries that are whole numbers, and scales that f16 has.
    fn book(bits: Bits, rows: usize) -> (Vec<f32>, Vec<f32>) {
        let entry = |x: f32| (60.0 * x).round().clamp(-127.0, 127.0);
        let table = rows.div_ceil(STRIP) * bits.table();
        let entries = drawn(table, 1).into_iter().map(entry).collect();
        let scale = |r: usize| f16::from_f32(0.001 * (1 + r % 3) as f32).to_f32();
        (entries, (0..rows).map(scale).collect())
    }

    #[test]
    fn what_is_expanded_is_what_the_stored_matrix_says() {
        let (rows, cols) = (20, 37);
        let pool = Pool::new(2).unwrap();
        for bits in Bits::ALL {
            let (entries, scales) = book(bits, rows);
            let book = Codebook {
                bits,
                rows,
                cols,
                entries: &entries,
                scales: &scales,
            };
            let weights: Vec<f32> = drawn(rows * cols, 2).iter().map(|x| 0.1 * x).collect();
            let mut indices = vec![0; rows * bits.indices(cols)];
            nearest(&pool, &book, &weights, &mut indices);
            let mut got = vec![0.0; rows * cols];
            expand(&pool, &book, &indices, &mut got);

            let packed = palette::pack(bits, rows, cols, &indices).unwrap();
            let stored: Vec<i8> = entries.iter().map(|&x| x as i8).collect();
            let mut padded: Vec<f16> = scales.iter().map(|&s| f16::from_f32(s)).collect();
            padded.resize(32, f16::ZERO);
            let view = PaletteMatrix::new(bits, rows, cols, &packed, &stored, &padded).unwrap();
            let mut want = vec![0.0; rows * cols];
            palette::dequantize(&pool, view, &mut want);
            assert_eq!(got, want, "{bits:?}");
        }
    }

    #[test]
    fn no_entry_is_nearer_than_the_one_chosen() {
        let (rows, cols) = (17, 24);
        let pool = Pool::new(1).unwrap();
        for bits in Bits::ALL {
            let (entries, scales) = book(bits, rows);
            let book = Codebook {
                bits,
                rows,
                cols,
                entries: &entries,
                scales: &scales,
            };
            let weights: Vec<f32> = drawn(rows * cols, 2).iter().map(|x| 0.1 * x).collect();
            let mut indices = vec![0; rows * bits.indices(cols)];
            nearest(&pool, &book, &weights, &mut indices);
            let error = |indices: &[u8]| {
                let mut out = vec![0.0; rows * cols];
                expand(&pool, &book, indices, &mut out);
                let square = |(a, b): (&f32, &f32)| f64::from(a - b).powi(2);
                out.iter().zip(&weights).map(square).sum::<f64>()
            };
            let least = error(&indices);
            for other in 0..bits.entries() as u8 {
                let one = |at: usize| {
                    let mut changed = indices.clone();
                    changed[at] = other;
                    changed
                };
                for at in [0, 5, indices.len() - 1] {
                    assert!(error(&one(at)) >= least - 1e-9, "{bits:?}, {at}: {other}");
                }
            }
        }
    }

    const SHAPE: (usize, usize) = (18, 13);

    fn of<'a>(bits: Bits, entries: &'a [f32], scales: &'a [f32]) -> Codebook<'a> {
        let (rows, cols) = SHAPE;
        Codebook {
            bits,
            rows,
            cols,
            entries,
            scales,
        }
    }

    /// Directional derivatives by central differences in f64 sums, of `Σ d · ŵ`.
    #[test]
    fn gradients_equal_finite_differences() {
        let (rows, cols) = SHAPE;
        let pool = Pool::new(2).unwrap();
        for bits in Bits::ALL {
            let entries: Vec<f32> = drawn(2 * bits.table(), 1);
            let scales: Vec<f32> = drawn(rows, 3).iter().map(|x| 0.5 + 0.1 * x.abs()).collect();
            let weights = drawn(rows * cols, 2);
            let d_out = drawn(rows * cols, 4);
            let start = of(bits, &entries, &scales);
            let tau = start.softness(3.0); // smooth enough for differences
            let mut indices = vec![0; rows * bits.indices(cols)];
            nearest(&pool, &start, &weights, &mut indices);
            let dot = |out: &[f32]| -> f64 {
                let terms = out.iter().zip(&d_out);
                terms.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            };
            let soft = |entries: &[f32], scales: &[f32], weights: &[f32]| {
                let mut out = vec![0.0; rows * cols];
                soften(&pool, &of(bits, entries, scales), weights, &tau, &mut out);
                dot(&out)
            };
            let hard = |entries: &[f32], scales: &[f32]| {
                let mut out = vec![0.0; rows * cols];
                expand(&pool, &of(bits, entries, scales), &indices, &mut out);
                dot(&out)
            };
            let along = |x: &[f32], way: &[f32], h: f32| -> Vec<f32> {
                x.iter().zip(way).map(|(x, way)| x + h * way).collect()
            };
            let check = |what: &str, gradient: &[f32], way: &[f32], f: &dyn Fn(f32) -> f64| {
                let h = 2e-3;
                let want = (f(h) - f(-h)) / (2.0 * f64::from(h));
                let terms = gradient.iter().zip(way);
                let got: f64 = terms.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                let off = (got - want).abs() / want.abs().max(1.0);
                assert!(off < 5e-3, "{bits:?}, {what}: {got}, by differences {want}");
            };
            let (e, s, w) = (
                drawn(entries.len(), 5),
                drawn(rows, 6),
                drawn(weights.len(), 8),
            );
            let (d_e, d_s) = expand_backward(&pool, &start, &indices, &d_out);
            check("entries held", &d_e, &e, &|h| {
                hard(&along(&entries, &e, h), &scales)
            });
            check("scales held", &d_s, &s, &|h| {
                hard(&entries, &along(&scales, &s, h))
            });
            let mut d_w = vec![0.0; weights.len()];
            let (d_e, d_s) = soften_backward(&pool, &start, &weights, &tau, &d_out, &mut d_w);
            check("entries", &d_e, &e, &|h| {
                soft(&along(&entries, &e, h), &scales, &weights)
            });
            check("scales", &d_s, &s, &|h| {
                soft(&entries, &along(&scales, &s, h), &weights)
            });
            check("weights", &d_w, &w, &|h| {
                soft(&entries, &scales, &along(&weights, &w, h))
            });
        }
    }

    #[test]
    fn the_colder_it_is_the_nearer_soft_is_to_nearest() {
        let (rows, cols, bits) = (16, 64, Bits::Two);
        let pool = Pool::new(1).unwrap();
        let (entries, scales) = book(bits, rows);
        let book = Codebook {
            bits,
            rows,
            cols,
            entries: &entries,
            scales: &scales,
        };
        let weights: Vec<f32> = drawn(rows * cols, 2).iter().map(|x| 0.1 * x).collect();
        let mut indices = vec![0; rows * cols];
        nearest(&pool, &book, &weights, &mut indices);
        let mut hard = vec![0.0; rows * cols];
        expand(&pool, &book, &indices, &mut hard);
        let distance = |temperature: f32| {
            let mut soft = vec![0.0; rows * cols];
            soften(
                &pool,
                &book,
                &weights,
                &book.softness(temperature),
                &mut soft,
            );
            let square = |(a, b): (&f32, &f32)| f64::from(a - b).powi(2);
            soft.iter().zip(&hard).map(square).sum::<f64>()
        };
        let distances: Vec<f64> = [1.0, 0.1, 0.01, 0.001].map(distance).to_vec();
        assert!(distances.is_sorted_by(|a, b| a > b), "{distances:?}");
        assert!(distances[3] < 0.01 * distances[0], "{distances:?}");
    }
}
