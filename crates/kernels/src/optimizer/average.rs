//! A running mean of weights.

use super::CHUNK;
use crate::pool::Pool;
use crate::profile::{Kernel, span};
use crate::simd::vectorize;

/// `average += gain · (weight - average)`, both `[n]`.
///
/// # Panics
/// When the lengths differ.
pub fn average_step(pool: &Pool, average: &mut [f32], weight: &[f32], gain: f32) {
    let _span = span(Kernel::Optimizer);
    assert_eq!(average.len(), weight.len(), "average_step: lengths differ");
    pool.for_each_chunk(average, CHUNK, |index, average| {
        let weight = &weight[index * CHUNK..][..average.len()];
        vectorize!(pool.isa(), || {
            for (a, &w) in average.iter_mut().zip(weight) {
                *a += gain * (w - *a);
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::random;

    #[test]
    fn the_mean_moves_by_its_gain() {
        let len = CHUNK + 5;
        let draw = |stream| -> Vec<f32> {
            (0..len as u64)
                .map(|i| random::normal(2, stream, i))
                .collect()
        };
        let weight = draw(1);
        for isa in Isa::available() {
            let mut average = draw(0);
            let before = average.clone();
            average_step(&Pool::with_isa(2, isa), &mut average, &weight, 0.25);
            for i in 0..len {
                assert_eq!(
                    average[i],
                    before[i] + 0.25 * (weight[i] - before[i]),
                    "{isa:?}"
                );
            }
            // A gain of 1 takes what is new; the difference of nearby numbers is exact.
            average_step(&Pool::with_isa(1, isa), &mut average, &weight, 1.0);
            assert!(
                average
                    .iter()
                    .zip(&weight)
                    .all(|(a, w)| (a - w).abs() < 1e-6)
            );
        }
    }
}
