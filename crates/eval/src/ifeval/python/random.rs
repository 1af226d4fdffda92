//! `random.Random`: the Mersenne Twister (Matsumoto and Nishimura 1998), seeded and drawn from as CPython does.
//!
//! The reference's language detector samples n-grams with it. With the same generator the same seed gives the same
//! answer, not only a likely one.

const N: usize = 624;
const M: usize = 397;

/// A generator and its place.
pub struct Random {
    state: [u32; N],
    next: usize,
    gauss: Option<f64>,
}

impl Random {
    /// `Random(seed)`.
    pub fn new(seed: u32) -> Random {
        let mut state = initial(19_650_218);
        let mut i = 1;
        // `init_by_array` with a key of one word: the index into the key is 0 all along.
        for _ in 0..N {
            let previous = state[i - 1];
            state[i] = (state[i] ^ (previous ^ (previous >> 30)).wrapping_mul(1_664_525))
                .wrapping_add(seed);
            i += 1;
            if i == N {
                state[0] = state[N - 1];
                i = 1;
            }
        }
        for _ in 0..N - 1 {
            let previous = state[i - 1];
            state[i] = (state[i] ^ (previous ^ (previous >> 30)).wrapping_mul(1_566_083_941))
                .wrapping_sub(i as u32);
            i += 1;
            if i == N {
                state[0] = state[N - 1];
                i = 1;
            }
        }
        state[0] = 0x8000_0000;
        Random {
            state,
            next: N,
            gauss: None,
        }
    }

    fn word(&mut self) -> u32 {
        if self.next == N {
            for i in 0..N {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
                let twisted = if y & 1 == 0 { 0 } else { 0x9908_b0df };
                self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ twisted;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// `random()`: 53 bits of [0, 1).
    fn uniform(&mut self) -> f64 {
        let (high, low) = (self.word() >> 5, self.word() >> 6);
        (f64::from(high) * 67_108_864.0 + f64::from(low)) / 9_007_199_254_740_992.0
    }

    /// `gauss(0, 1)`: two at a time, the second kept.
    pub fn gauss(&mut self) -> f64 {
        if let Some(kept) = self.gauss.take() {
            return kept;
        }
        let angle = self.uniform() * std::f64::consts::TAU;
        let radius = libm::sqrt(-2.0 * libm::log(1.0 - self.uniform()));
        self.gauss = Some(libm::sin(angle) * radius);
        libm::cos(angle) * radius
    }

    /// `randrange(below)`, 1 to 2³¹ - 1.
    pub fn below(&mut self, below: u32) -> u32 {
        let bits = u32::BITS - below.leading_zeros();
        loop {
            let drawn = self.word() >> (u32::BITS - bits);
            if drawn < below {
                return drawn;
            }
        }
    }
}

fn initial(seed: u32) -> [u32; N] {
    let mut state = [seed; N];
    for i in 1..N {
        let previous = state[i - 1];
        state[i] = (previous ^ (previous >> 30))
            .wrapping_mul(1_812_433_253)
            .wrapping_add(i as u32);
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_pythons() {
        // random.seed(0); [random.random() for _ in range(2)], random.gauss(0, 1) twice, [random.randrange(1000) …]
        let mut random = Random::new(0);
        assert_eq!(random.uniform(), RANDOM[0]);
        assert_eq!(random.uniform(), RANDOM[1]);
        for expected in GAUSS {
            assert!((random.gauss() - expected).abs() < 1e-15);
        }
        let drawn: Vec<u32> = (0..4).map(|_| random.below(1000)).collect();
        assert_eq!(drawn, BELOW);
    }

    const RANDOM: [f64; 2] = [0.8444218515250481, 0.7579544029403025];
    const GAUSS: [f64; 2] = [-0.6797144480784211, 0.3705035674606598];
    const BELOW: [u32; 4] = [523, 497, 414, 940];
}
