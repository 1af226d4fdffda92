//! Choosing the entries of some columns of a strip, each with what the choices before it leave: the inner loop of error feedback.
//!
//! ```text
//! feedback   t = w + said                  index = nearest(t / s)   e = t − s p[index]    said[k] += (w − s p[index]) · c[j, k],  k > j
//! descent    t = w − δ + said · (1 / c[j, j])  the same              change = δ' − δ       said[k] += change · c[j, k],            k > j
//! ```
//! c are coefficients between the columns. In f32, product by product and no fused multiply-adds, so every instruction set says the same.

use super::STRIP;
use crate::Isa;
use crate::simd::{Body, Simd, dispatch};

/// Columns that are chosen together.
pub const COLUMNS: usize = 128;

/// Entries of the largest table of single weights.
pub(super) const ENTRIES: usize = 16;

/// How a sweep over columns chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sweep {
    /// Each column sees the error of those before it.
    Feedback,
    /// Each weight takes the best entry with all others held.
    Descent,
}

/// Up to [`COLUMNS`] columns of a strip, a column's rows side by side.
#[derive(Clone)]
pub struct Columns {
    /// What is to be stored.
    pub weight: [[f32; STRIP]; COLUMNS],
    /// What other columns say; a sweep leaves e or the change there.
    pub said: [[f32; STRIP]; COLUMNS],
    /// Weight less what is stored.
    pub delta: [[f32; STRIP]; COLUMNS],
    /// The entries that are stored.
    pub indices: [[u8; STRIP]; COLUMNS],
}

impl Default for Columns {
    fn default() -> Columns {
        Columns {
            weight: [[0.0; STRIP]; COLUMNS],
            said: [[0.0; STRIP]; COLUMNS],
            delta: [[0.0; STRIP]; COLUMNS],
            indices: [[0; STRIP]; COLUMNS],
        }
    }
}

/// Chooses an entry of `palette`, ascending, for each weight of the first `size` columns. `coefficients` has a row of `stride` numbers for each
/// column, of which the first `size` are its coefficients. Returns what feedback costs, Σ c[j, j] e², or by how much descent changed that.
///
/// # Panics
/// When the palette has not 4, 8 or 16 entries, or the coefficients are fewer than `size` rows of `size`.
pub fn sweep(
    isa: Isa,
    how: Sweep,
    palette: &[i8],
    scales: &[f32; STRIP],
    (coefficients, stride): (&[f32], usize),
    size: usize,
    columns: &mut Columns,
) -> f64 {
    debug_assert!(palette.is_sorted(), "{palette:?}");
    assert!(size <= COLUMNS && size <= stride, "{size} columns");
    let mut table = [0.0f32; ENTRIES];
    for (value, &entry) in table.iter_mut().zip(palette) {
        *value = f32::from(entry);
    }
    let mut rows = [&[0.0f32; 0][..]; COLUMNS];
    for (j, row) in rows[..size].iter_mut().enumerate() {
        *row = &coefficients[j * stride..][..size];
    }
    let block = Block {
        how,
        middles: palette.len() - 1,
        table,
        scales,
        rows: &rows[..size],
        columns,
    };
    dispatch(isa, block)
}

struct Block<'a> {
    how: Sweep,
    middles: usize,
    table: [f32; ENTRIES],
    scales: &'a [f32; STRIP],
    rows: &'a [&'a [f32]],
    columns: &'a mut Columns,
}

impl Body for Block<'_> {
    type Out = f64;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f64 {
        match (self.middles, self.how) {
            (3, Sweep::Feedback) => body::<S, 3, true>(simd, self),
            (7, Sweep::Feedback) => body::<S, 7, true>(simd, self),
            (15, Sweep::Feedback) => body::<S, 15, true>(simd, self),
            (3, Sweep::Descent) => body::<S, 3, false>(simd, self),
            (7, Sweep::Descent) => body::<S, 7, false>(simd, self),
            (15, Sweep::Descent) => body::<S, 15, false>(simd, self),
            (middles, _) => panic!("tables have 4, 8 or 16 entries, not {}", middles + 1),
        }
    }
}

/// A whole number below 2²³ is the lowest bits of its sum with 2²³.
pub(super) const WHOLE: f32 = 8_388_608.0;

#[inline(always)]
fn body<S: Simd, const MIDDLES: usize, const FEEDBACK: bool>(simd: S, block: Block) -> f64 {
    let Block {
        table,
        scales,
        rows,
        columns,
        ..
    } = block;
    let inverses = scales.map(|scale| if scale == 0.0 { 0.0 } else { scale.recip() });
    let load = |from: &[f32; STRIP], at: usize| {
        debug_assert!(at + S::LANES <= STRIP);
        // SAFETY: `at` is a multiple of the length of a vector below STRIP, which that length divides.
        unsafe { simd.load(from.as_ptr().add(at)) }
    };
    let store = |to: &mut [f32; STRIP], at: usize, v: S::V| {
        debug_assert!(at + S::LANES <= STRIP);
        // SAFETY: as above.
        unsafe { simd.store(to.as_mut_ptr().add(at), v) }
    };
    let mut cost = [0.0f32; STRIP];
    for (j, row) in rows.iter().enumerate() {
        let own = row[j];
        let mut change = [0.0f32; STRIP];
        let mut index = [0.0f32; STRIP];
        for at in (0..STRIP).step_by(S::LANES) {
            let (weight, said) = (load(&columns.weight[j], at), load(&columns.said[j], at));
            let before = load(&columns.delta[j], at);
            let target = match FEEDBACK {
                true => simd.add(weight, said),
                false => {
                    let step = simd.mul(said, simd.splat(own.recip()));
                    simd.add(simd.sub(weight, before), step)
                }
            };
            let x = simd.mul(target, load(&inverses, at));
            let (mut count, mut value) = (simd.splat(WHOLE), simd.splat(table[0]));
            for k in 0..MIDDLES {
                let middle = simd.splat(0.5 * (table[k] + table[k + 1]));
                let step = simd.splat(table[k + 1] - table[k]); // of whole numbers: exact
                count = simd.add(count, simd.zero_where_below(x, middle, simd.splat(1.0)));
                value = simd.add(value, simd.zero_where_below(x, middle, step));
            }
            let delta = simd.sub(weight, simd.mul(load(scales, at), value));
            let (left, changed, more);
            if FEEDBACK {
                changed = delta;
                left = simd.add(said, delta);
                more = simd.mul(simd.mul(simd.splat(own), left), left);
            } else {
                changed = simd.sub(delta, before);
                left = changed;
                let bend = simd.mul(simd.splat(own), changed);
                more = simd.mul(changed, simd.add(simd.add(said, said), bend));
            }
            store(&mut change, at, changed);
            store(&mut index, at, count);
            store(&mut columns.delta[j], at, delta);
            store(&mut columns.said[j], at, left);
            let sum = simd.add(load(&cost, at), more);
            store(&mut cost, at, sum);
        }
        columns.indices[j] = index.map(|index| index.to_bits() as u8);
        for (said, &coefficient) in columns.said.iter_mut().zip(*row).skip(j + 1) {
            for at in (0..STRIP).step_by(S::LANES) {
                let more = simd.mul(load(&change, at), simd.splat(coefficient));
                let sum = simd.add(load(said, at), more);
                store(said, at, sum);
            }
        }
    }
    cost.iter().map(|&cost| f64::from(cost)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random;

    /// A weight at a time, each by trying every entry.
    fn oracle(
        how: Sweep,
        palette: &[i8],
        scales: &[f32; STRIP],
        c: &[f32],
        size: usize,
        columns: &mut Columns,
    ) -> f64 {
        let mut cost = 0.0;
        for (lane, &scale) in scales.iter().enumerate() {
            for j in 0..size {
                let (w, said, before) = (
                    columns.weight[j][lane],
                    columns.said[j][lane],
                    columns.delta[j][lane],
                );
                let target = match how {
                    Sweep::Feedback => w + said,
                    Sweep::Descent => w - before + said / c[j * size + j],
                };
                let off = |k: usize| (target - scale * f32::from(palette[k])).abs();
                let best = (0..palette.len())
                    .min_by(|&a, &b| off(a).total_cmp(&off(b)))
                    .unwrap();
                let delta = w - scale * f32::from(palette[best]);
                let (left, change) = match how {
                    Sweep::Feedback => (said + delta, delta),
                    Sweep::Descent => (delta - before, delta - before),
                };
                let own = f64::from(c[j * size + j]);
                cost += match how {
                    Sweep::Feedback => own * f64::from(left).powi(2),
                    Sweep::Descent => {
                        f64::from(change) * (2.0 * f64::from(said) + own * f64::from(change))
                    }
                };
                columns.said[j][lane] = left;
                columns.delta[j][lane] = delta;
                columns.indices[j][lane] = best as u8;
                for k in j + 1..size {
                    columns.said[k][lane] += change * c[j * size + k];
                }
            }
        }
        cost
    }

    #[test]
    fn every_body_chooses_what_trying_every_entry_chooses() {
        for (size, entries) in [(1, 4), (5, 8), (37, 16), (COLUMNS, 8), (COLUMNS, 16)] {
            let normal = |stream: u64, i: usize| random::normal(21, stream, i as u64);
            let mut palette: Vec<i8> = (0..entries)
                .map(|i| (60.0 * normal(0, i)).clamp(-128.0, 127.0) as i8)
                .collect();
            palette.sort_unstable();
            let mut scales: [f32; STRIP] = std::array::from_fn(|i| 0.01 * normal(1, i));
            scales[3] = 0.0; // a row of zeros
            let mut c: Vec<f32> = (0..size * size).map(|i| 0.1 * normal(2, i)).collect();
            for j in 0..size {
                c[j * size + j] = 1.0 + normal(3, j).abs();
            }
            let mut start = Columns::default();
            for j in 0..size {
                for lane in 0..STRIP {
                    start.weight[j][lane] = normal(4, j * STRIP + lane);
                    start.delta[j][lane] = 0.1 * normal(5, j * STRIP + lane);
                    start.said[j][lane] = 0.1 * normal(6, j * STRIP + lane);
                }
            }
            for how in [Sweep::Feedback, Sweep::Descent] {
                let mut want = start.clone();
                let cost = oracle(how, &palette, &scales, &c, size, &mut want);
                let mut first = None;
                for isa in Isa::available() {
                    let mut got = start.clone();
                    let found = sweep(isa, how, &palette, &scales, (&c, size), size, &mut got);
                    // Of a row of zeros any entry is as good.
                    let chosen =
                        |of: &Columns| of.indices.map(|row| [&row[..3], &row[4..]].concat());
                    assert!(
                        chosen(&got) == chosen(&want),
                        "{isa:?}, {how:?}, {size} columns"
                    );
                    let close = |got: &[[f32; STRIP]], want: &[[f32; STRIP]]| {
                        let mut pairs = got.iter().flatten().zip(want.iter().flatten());
                        pairs.all(|(a, b)| (a - b).abs() < 1e-4)
                    };
                    assert!(close(&got.said, &want.said), "{isa:?}, {how:?}");
                    assert!(close(&got.delta, &want.delta), "{isa:?}, {how:?}");
                    assert!(
                        (found - cost).abs() < 1e-4 * cost.abs(),
                        "{found}, not {cost}"
                    );
                    let bits = (got.said.map(|row| row.map(f32::to_bits)), found.to_bits());
                    assert!(*first.get_or_insert(bits) == bits, "{isa:?} has other bits");
                }
            }
        }
    }
}
