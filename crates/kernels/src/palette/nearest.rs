//! Which entry of a table of pairs is nearest to a pair of weights: the inner loop of k-means and of error feedback.
//!
//! ```text
//! indices[n] = argmin_k  ω₀[n] (x₀[n] − p₀[k])² + ω₁[n] (x₁[n] − p₁[k])²        the first of equals
//! ```
//! In f32, product by product and no fused multiply-adds, so every instruction set says the same: there is one body, which
//! the compiler translates for each. It has no faster plan than looking at every entry.

use crate::Isa;
use crate::simd::{Body, Simd, dispatch};

/// Points that pass the entries together: a vector register of any width holds some of them.
const LANES: usize = 32;

/// The nearest entry of each point.
///
/// # Panics
/// When slices that belong together differ in length, or there are no entries or more than 256.
pub fn nearest(
    isa: Isa,
    entries: [&[f32]; 2],
    points: [&[f32]; 2],
    importance: [&[f32]; 2],
    indices: &mut [u8],
) {
    let same = |slices: [&[f32]; 2], len| slices.iter().all(|slice| slice.len() == len);
    assert!(
        same(entries, entries[0].len()) && (1..=256).contains(&entries[0].len()),
        "tables of {} and {} numbers",
        entries[0].len(),
        entries[1].len()
    );
    assert!(
        same(points, indices.len()) && same(importance, indices.len()),
        "{} indices for {} and {} numbers of {} and {}",
        indices.len(),
        points[0].len(),
        points[1].len(),
        importance[0].len(),
        importance[1].len()
    );
    let search = Search {
        entries,
        points,
        importance,
        indices,
    };
    dispatch(isa, search);
}

struct Search<'a> {
    entries: [&'a [f32]; 2],
    points: [&'a [f32]; 2],
    importance: [&'a [f32]; 2],
    indices: &'a mut [u8],
}

impl Body for Search<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        body(self.entries, self.points, self.importance, self.indices);
    }
}

#[inline(always)]
fn body(entries: [&[f32]; 2], points: [&[f32]; 2], importance: [&[f32]; 2], indices: &mut [u8]) {
    for (chunk, indices) in indices.chunks_mut(LANES).enumerate() {
        let lanes = |from: &[f32]| {
            let mut lanes = [0.0f32; LANES];
            let from = &from[chunk * LANES..];
            let count = from.len().min(LANES);
            lanes[..count].copy_from_slice(&from[..count]);
            lanes
        };
        let ([x, y], [a, b]) = (points.map(lanes), importance.map(lanes));
        let mut least = [f32::INFINITY; LANES];
        let mut at = [0i32; LANES];
        for (k, (&p, &q)) in entries[0].iter().zip(entries[1]).enumerate() {
            for lane in 0..LANES {
                let (d, e) = (x[lane] - p, y[lane] - q);
                let cost = a[lane] * d * d + b[lane] * e * e;
                let less = cost < least[lane];
                at[lane] = if less { k as i32 } else { at[lane] };
                least[lane] = if less { cost } else { least[lane] };
            }
        }
        for (index, at) in indices.iter_mut().zip(at) {
            *index = at as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random;

    #[test]
    fn every_body_finds_the_first_of_the_nearest() {
        for (entries, count) in [(1, 5), (16, 100), (64, 33), (256, 64)] {
            // Small whole numbers, so that many are equally near and all arithmetic is exact.
            let numbers = |stream, len: usize| -> Vec<f32> {
                (0..len)
                    .map(|at| random::below(7, stream, at as u64, 24) as f32)
                    .collect()
            };
            let table = [numbers(0, entries), numbers(1, entries)];
            let points = [numbers(2, count), numbers(3, count)];
            let importance = [numbers(4, count), numbers(5, count)];
            let want: Vec<u8> = (0..count)
                .map(|n| {
                    let cost = |k: usize| -> f32 {
                        let part =
                            |h: usize| importance[h][n] * (points[h][n] - table[h][k]).powi(2);
                        part(0) + part(1)
                    };
                    let first = |best: usize, k| if cost(k) < cost(best) { k } else { best };
                    (0..entries).fold(0, first) as u8
                })
                .collect();
            for isa in Isa::available() {
                let mut found = vec![255; count];
                let [table, points, importance] = [&table, &points, &importance]
                    .map(|two: &[Vec<f32>; 2]| [&two[0][..], &two[1][..]]);
                nearest(isa, table, points, importance, &mut found);
                assert_eq!(found, want, "{isa:?}");
            }
        }
    }
}
