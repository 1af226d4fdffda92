//! The nearest entry of each weight of a row, and what the weights come to by entry: the inner loop of k-means on a line.
//!
//! ```text
//! index = #{middles between entries that are not above w / s}
//! first[k] = Σ ω w,  weight[k] = Σ ω  over the weights with entry k        error = Σ ω (w − s p[index])²
//! ```
//! Every weight meets every middle, so that nothing is looked up or scattered. Sums are f32 in [`LANES`] lanes for [`PIECE`] weights and then
//! f64; no fused multiply-adds: every instruction set says the same.

use super::columns::{ENTRIES, WHOLE};
use crate::Isa;
use crate::simd::{Body, Simd, dispatch};

/// Weights that pass the middles together.
const LANES: usize = 16;

/// Weights whose sums are f32: 64 additions a lane.
const PIECE: usize = 64 * LANES;

/// What a row's weights come to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowSums {
    /// Σ ω w by entry.
    pub first: [f64; ENTRIES],
    /// Σ ω by entry.
    pub weight: [f64; ENTRIES],
    /// Σ ω (w − s p)².
    pub error: f64,
}

/// The nearest entry of `table`, ascending, times `scale` of each of a row's weights, and their sums.
///
/// # Panics
/// When the table has not 4, 8 or 16 entries, or the slices differ in length.
pub fn assign(
    isa: Isa,
    table: &[i8],
    scale: f32,
    weight: &[f32],
    importance: &[f32],
    indices: &mut [u8],
) -> RowSums {
    debug_assert!(table.is_sorted(), "{table:?}");
    assert!(
        weight.len() == importance.len() && weight.len() == indices.len(),
        "{} weights, {} numbers of importance and {} indices",
        weight.len(),
        importance.len(),
        indices.len()
    );
    let mut entries = [0.0f32; ENTRIES];
    for (entry, &value) in entries.iter_mut().zip(table) {
        *entry = f32::from(value);
    }
    let row = Row {
        middles: table.len() - 1,
        entries,
        scale,
        weight,
        importance,
        indices: &mut *indices,
    };
    let sums = dispatch(isa, row);
    match sums.error.is_finite() {
        true => sums,
        false => plain(table, scale, weight, importance, indices),
    }
}

/// The same in f64 by trying every entry: for squares past what f32 holds, and the oracle.
fn plain(
    table: &[i8],
    scale: f32,
    weight: &[f32],
    importance: &[f32],
    indices: &mut [u8],
) -> RowSums {
    let mut sums = RowSums::default();
    for ((&w, &o), index) in weight.iter().zip(importance).zip(indices) {
        let (w, o) = (f64::from(w), f64::from(o));
        let off = |k: usize| (w - f64::from(scale) * f64::from(table[k])).abs();
        let nearer = |best: usize, k: usize| if off(k) < off(best) { k } else { best };
        let k = (0..table.len()).fold(0, nearer);
        *index = k as u8;
        sums.first[k] += o * w;
        sums.weight[k] += o;
        sums.error += o * off(k) * off(k);
    }
    sums
}

struct Row<'a> {
    middles: usize,
    entries: [f32; ENTRIES],
    scale: f32,
    weight: &'a [f32],
    importance: &'a [f32],
    indices: &'a mut [u8],
}

impl Body for Row<'_> {
    type Out = RowSums;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> RowSums {
        match self.middles {
            3 => body::<S, 3>(simd, self),
            7 => body::<S, 7>(simd, self),
            15 => body::<S, 15>(simd, self),
            middles => panic!("tables have 4, 8 or 16 entries, not {}", middles + 1),
        }
    }
}

/// Sums of a piece: Σ ω w and Σ ω by entry, and Σ ω (w − s p)².
struct Lanes {
    first: [[f32; LANES]; ENTRIES],
    total: [[f32; LANES]; ENTRIES],
    error: [f32; LANES],
}

/// `LANES` weights, in as many vectors as they take.
#[inline(always)]
fn step<S: Simd, const MIDDLES: usize>(
    simd: S,
    entries: &[f32; ENTRIES],
    (scale, inverse): (f32, f32),
    w: &[f32; LANES],
    o: &[f32; LANES],
    sums: &mut Lanes,
    indices: &mut [u8; LANES],
) {
    let mut index = [WHOLE; LANES];
    for at in (0..LANES).step_by(S::LANES) {
        let add = |to: &mut [f32; LANES], more: S::V| {
            // SAFETY: `at + S::LANES` is at most LANES, which the length of a vector divides.
            unsafe {
                let to = to.as_mut_ptr().add(at);
                simd.store(to, simd.add(simd.load(to), more));
            }
        };
        // SAFETY: as above.
        let (w, o) = unsafe { (simd.load(w.as_ptr().add(at)), simd.load(o.as_ptr().add(at))) };
        let (x, product) = (simd.mul(w, simd.splat(inverse)), simd.mul(o, w));
        let one = simd.splat(1.0);
        // What belongs to this entry or one after it.
        let (mut firsts, mut totals) = (product, o);
        let (mut count, mut value) = (simd.splat(0.0), simd.splat(entries[0]));
        for k in 0..MIDDLES {
            let middle = simd.splat(0.5 * (entries[k] + entries[k + 1]));
            let step = simd.splat(entries[k + 1] - entries[k]); // of whole numbers: exact
            count = simd.add(count, simd.zero_where_below(x, middle, one));
            value = simd.add(value, simd.zero_where_below(x, middle, step));
            let beyond = simd.zero_where_below(x, middle, product);
            add(&mut sums.first[k], simd.sub(firsts, beyond));
            firsts = beyond;
            let beyond = simd.zero_where_below(x, middle, o);
            add(&mut sums.total[k], simd.sub(totals, beyond));
            totals = beyond;
        }
        add(&mut sums.first[MIDDLES], firsts);
        add(&mut sums.total[MIDDLES], totals);
        let off = simd.sub(w, simd.mul(simd.splat(scale), value));
        add(&mut sums.error, simd.mul(simd.mul(o, off), off));
        add(&mut index, count);
    }
    for (to, index) in indices.iter_mut().zip(index) {
        *to = index.to_bits() as u8;
    }
}

/// The same a weight at a time: where there are no vectors, sums by index are quicker than sums by middle. To the same bits, since
/// what another entry gets there is zero.
#[inline(always)]
fn step_by_one<const MIDDLES: usize>(
    entries: &[f32; ENTRIES],
    (scale, inverse): (f32, f32),
    w: &[f32; LANES],
    o: &[f32; LANES],
    sums: &mut Lanes,
    indices: &mut [u8; LANES],
) {
    for lane in 0..LANES {
        let (w, o) = (w[lane], o[lane]);
        let x = w * inverse;
        let mut k = 0;
        for middle in 0..MIDDLES {
            let below = x < 0.5 * (entries[middle] + entries[middle + 1]);
            k += usize::from(!below); // as vectors have it for what is no number
        }
        sums.first[k & (ENTRIES - 1)][lane] += o * w;
        sums.total[k & (ENTRIES - 1)][lane] += o;
        let off = w - scale * entries[k & (ENTRIES - 1)];
        sums.error[lane] += o * off * off;
        indices[lane] = k as u8;
    }
}

#[inline(always)]
fn body<S: Simd, const MIDDLES: usize>(simd: S, row: Row) -> RowSums {
    let Row {
        entries,
        scale,
        weight,
        importance,
        indices,
        ..
    } = row;
    let factors = (scale, if scale == 0.0 { 0.0 } else { scale.recip() });
    let step = |w: &_, o: &_, sums: &mut _, indices: &mut _| match S::LANES {
        1 => step_by_one::<MIDDLES>(&entries, factors, w, o, sums, indices),
        _ => step::<S, MIDDLES>(simd, &entries, factors, w, o, sums, indices),
    };
    let (mut first, mut total, mut error) = ([0.0f64; ENTRIES], [0.0f64; ENTRIES], 0.0);
    let pieces = weight.chunks(PIECE).zip(importance.chunks(PIECE));
    for ((weight, importance), indices) in pieces.zip(indices.chunks_mut(PIECE)) {
        let mut lanes = Lanes {
            first: [[0.0; LANES]; ENTRIES],
            total: [[0.0; LANES]; ENTRIES],
            error: [0.0; LANES],
        };
        let (whole, rest) = weight.as_chunks::<LANES>();
        let (whole_o, rest_o) = importance.as_chunks::<LANES>();
        let (whole_indices, rest_indices) = indices.as_chunks_mut::<LANES>();
        for ((w, o), indices) in whole.iter().zip(whole_o).zip(whole_indices) {
            step(w, o, &mut lanes, indices);
        }
        if !rest.is_empty() {
            let (mut w, mut o) = ([0.0; LANES], [0.0; LANES]); // what is not there matters nothing
            w[..rest.len()].copy_from_slice(rest);
            o[..rest.len()].copy_from_slice(rest_o);
            let mut indices = [0; LANES];
            step(&w, &o, &mut lanes, &mut indices);
            rest_indices.copy_from_slice(&indices[..rest.len()]);
        }
        let sum = |lanes: &[f32; LANES]| lanes.iter().map(|&x| f64::from(x)).sum::<f64>();
        for k in 0..=MIDDLES {
            first[k] += sum(&lanes.first[k]);
            total[k] += sum(&lanes.total[k]);
        }
        error += sum(&lanes.error);
    }
    RowSums {
        first,
        weight: total,
        error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random;

    fn check(len: usize, table: &[i8], scale: f32) {
        let weight: Vec<f32> = (0..len).map(|i| random::normal(31, 0, i as u64)).collect();
        let importance: Vec<f32> = (0..len)
            .map(|i| random::normal(31, 1, i as u64).powi(2))
            .collect();
        let mut chosen = vec![0u8; len];
        let want = plain(table, scale, &weight, &importance, &mut chosen);
        // Σ ω (1 + |w|) of each entry's own weights, which its sums are held against.
        let sizes = || {
            let mut sizes = [0.0f64; ENTRIES];
            for ((&w, &o), &k) in weight.iter().zip(&importance).zip(&chosen) {
                sizes[usize::from(k)] += f64::from(o) * (1.0 + f64::from(w.abs()));
            }
            sizes
        };
        let mut first: Option<RowSums> = None;
        for isa in Isa::available() {
            let mut indices = vec![0; len];
            let sums = assign(isa, table, scale, &weight, &importance, &mut indices);
            if scale != 0.0 {
                assert_eq!(indices, chosen, "{isa:?}, {len} weights");
                let each = want
                    .first
                    .iter()
                    .chain(&want.weight)
                    .zip(sums.first.iter().chain(&sums.weight));
                let sizes = sizes();
                for ((want, got), all) in each.zip(sizes.iter().chain(&sizes)) {
                    assert!(
                        (want - got).abs() <= 1e-5 * all,
                        "{isa:?}: {got}, not {want}"
                    );
                }
            }
            assert!(
                (sums.error - want.error).abs() <= 1e-5 * want.error,
                "{isa:?}"
            );
            assert_eq!(*first.get_or_insert(sums), sums, "{isa:?} has other bits");
        }
    }

    #[test]
    fn every_body_finds_the_nearest_and_sums_by_it() {
        let four = [-100, -20, 30, 90];
        let eight = [-127, -60, -30, -4, 11, 31, 70, 120];
        let sixteen: Vec<i8> = (0..16).map(|i| (i * i - 120) as i8).collect();
        for len in [1, 15, 16, 100, 1024, 3000] {
            check(len, &four, 0.02);
            check(len, &eight, 0.02);
            check(len, &sixteen, 0.02);
        }
        check(33, &four, 0.0);
    }

    #[test]
    fn squares_past_f32_are_summed_in_f64() {
        let (weight, mut indices) = ([1e30f32, -2.0, 3e37], [0; 3]);
        let sums = assign(
            Isa::Scalar,
            &[-9, 0, 5, 9],
            1.0,
            &weight,
            &[1.0; 3],
            &mut indices,
        );
        // From so far away every entry looks as near: the first.
        assert_eq!((indices, sums.error.is_finite()), ([0, 1, 0], true));
    }

    #[test]
    fn a_negative_scale_turns_the_table_around() {
        check(50, &[-100, -20, 30, 90], -0.02);
    }
}
