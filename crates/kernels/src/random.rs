//! Counter-based random numbers: the value at (seed, stream, counter) is a pure function of the three.
//!
//! There is no generator state, so the order of calls, the number of threads and a resumed run
//! change nothing. `stream` names what the numbers are for (a tensor, a step, a request) and
//! `counter` the position in it. Each key passes through the finaliser of SplitMix64 (Steele, Lea and
//! Flood, "Fast splittable pseudorandom number generators", 2014). Not for cryptography.

/// 2⁶⁴ divided by the golden ratio, the increment of SplitMix64.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// 64 uniformly distributed bits for (`seed`, `stream`, `counter`).
#[inline]
pub fn hash(seed: u64, stream: u64, counter: u64) -> u64 {
    let keyed = finalise(seed.wrapping_add(GOLDEN));
    let keyed = finalise((keyed ^ stream).wrapping_add(GOLDEN));
    finalise((keyed ^ counter).wrapping_add(GOLDEN))
}

/// A number uniform on `[0, 1)`, a multiple of 2⁻²⁴.
#[inline]
pub fn uniform(seed: u64, stream: u64, counter: u64) -> f32 {
    (hash(seed, stream, counter) >> 40) as f32 * (1.0 / (1u64 << 24) as f32)
}

/// An integer uniform on `0..bound`, by Lemire's multiplication; the bias is below `bound` / 2⁶⁴.
///
/// # Panics
/// When `bound` is 0.
#[inline]
pub fn below(seed: u64, stream: u64, counter: u64, bound: u64) -> u64 {
    assert!(bound > 0, "random::below needs a bound of at least 1");
    ((u128::from(hash(seed, stream, counter)) * u128::from(bound)) >> 64) as u64
}

/// A standard normal number, by Box and Muller's transform of the two halves of the hash.
#[inline]
pub fn normal(seed: u64, stream: u64, counter: u64) -> f32 {
    let bits = hash(seed, stream, counter);
    // (0, 1], so that the logarithm is finite.
    let radius = ((bits >> 32) as f64 + 1.0) / (1u64 << 32) as f64;
    let angle = (bits & 0xFFFF_FFFF) as f64 / (1u64 << 32) as f64;
    ((-2.0 * libm::log(radius)).sqrt() * libm::cos(std::f64::consts::TAU * angle)) as f32
}

/// The output function of SplitMix64: a bijection of 64 bits in which every input bit moves every output bit.
#[inline]
fn finalise(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_output_is_splitmix64s() {
        // SplitMix64 seeded with 0 starts with this number in every published implementation.
        assert_eq!(finalise(GOLDEN), 0xE220_A839_7B1D_CDAF);
    }

    #[test]
    fn uniform_fills_the_unit_interval_evenly() {
        let mut bins = [0usize; 16];
        for counter in 0..16_000 {
            let value = uniform(1, 2, counter);
            assert!((0.0..1.0).contains(&value));
            bins[(value * 16.0) as usize] += 1;
        }
        // 1000 expected in each, standard deviation 31: five of them.
        assert!(
            bins.iter().all(|&count| (845..1155).contains(&count)),
            "{bins:?}"
        );
    }

    #[test]
    fn normal_has_the_moments_of_a_normal() {
        let values: Vec<f64> = (0..20_000).map(|i| f64::from(normal(7, 3, i))).collect();
        let moment =
            |power: i32| values.iter().map(|v| v.powi(power)).sum::<f64>() / values.len() as f64;
        assert!(moment(1).abs() < 0.04, "mean {}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.05, "variance {}", moment(2));
        assert!((moment(4) - 3.0).abs() < 0.4, "fourth moment {}", moment(4));
    }

    #[test]
    fn seed_stream_and_counter_all_matter() {
        let base = hash(1, 2, 3);
        for other in [
            hash(2, 2, 3),
            hash(1, 3, 3),
            hash(1, 2, 4),
            hash(2, 1, 3),
            hash(1, 3, 2),
        ] {
            assert!((base ^ other).count_ones() > 8);
        }
    }

    #[test]
    fn below_reaches_every_value_and_no_more() {
        let mut seen = [false; 7];
        for counter in 0..500 {
            seen[below(5, 0, counter, 7) as usize] = true;
        }
        assert_eq!(seen, [true; 7]);
    }
}
