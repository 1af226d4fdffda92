//! A shuffle without an array: the place of every index is computed when it is asked for.
//!
//! A Feistel network over the smallest even number of bits that holds all indices is a bijection whatever its round
//! function is; results beyond the end are sent through again until one falls inside ("cycle walking", Black and
//! Rogaway, "Ciphers with arbitrary finite domains", 2002). Fewer than four passes are expected. Its whole state is the
//! key, so a resumed run needs an index and nothing else.

use russet_kernels::random;

/// Rounds of the network; four make it a strong pseudorandom permutation (Luby and Rackoff, 1988), two more cover the
/// halves of few bits that small sets have.
const ROUNDS: u64 = 6;

/// A bijection of `0..len`, chosen by a seed and a stream.
#[derive(Clone, Copy, Debug)]
pub struct Permutation {
    len: u64,
    half_bits: u32,
    seed: u64,
    stream: u64,
}

impl Permutation {
    /// The permutation of `0..len` that belongs to (`seed`, `stream`).
    pub fn new(len: u64, seed: u64, stream: u64) -> Permutation {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        Permutation {
            len,
            half_bits: bits.div_ceil(2).max(1),
            seed,
            stream,
        }
    }

    /// Where `index` goes.
    ///
    /// # Panics
    /// When `index` is not below the length.
    pub fn at(&self, index: u64) -> u64 {
        assert!(
            index < self.len,
            "index {index} of a permutation of {}",
            self.len
        );
        let mut image = self.network(index);
        // Ends: the walk stays on the cycle of `index`, which is itself inside.
        while image >= self.len {
            image = self.network(image);
        }
        image
    }

    fn network(&self, value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for round in 0..ROUNDS {
            let noise = random::hash(self.seed, self.stream, round << 32 | right);
            (left, right) = (right, left ^ (noise & mask));
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_index_is_met_once(len in 1u64..600, seed: u64, stream: u64) {
            let permutation = Permutation::new(len, seed, stream);
            let mut images: Vec<u64> = (0..len).map(|index| permutation.at(index)).collect();
            images.sort_unstable();
            prop_assert!(images.into_iter().eq(0..len));
        }
    }

    #[test]
    fn places_are_spread_evenly() {
        // Of 4000 permutations of 5, each index lands in each place about 800 times; the standard deviation is 25.
        let mut counts = [[0; 5]; 5];
        for stream in 0..4000 {
            let permutation = Permutation::new(5, 1, stream);
            for index in 0..5 {
                counts[index as usize][permutation.at(index) as usize] += 1;
            }
        }
        assert!(
            counts
                .as_flattened()
                .iter()
                .all(|count| (675..925).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn neighbours_part() {
        let permutation = Permutation::new(1 << 40, 7, 0);
        let steps =
            (0..1000).filter(|&i| permutation.at(i).abs_diff(permutation.at(i + 1)) < 1 << 30);
        assert!(steps.count() < 20); // 2 expected
    }
}
