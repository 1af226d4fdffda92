//! From logits to a token.
//!
//! The settings act in this order, each on what the one before left:
//! 1. `temperature` divides the logits; 0 takes the highest logit and nothing below applies.
//! 2. `top_k` keeps the k most probable tokens.
//! 3. `top_p` keeps the fewest of the most probable tokens whose probabilities, those of step 2 scaled to sum to 1,
//!    reach p up to one part in 10⁵ (nucleus sampling, arXiv 1904.09751).
//! 4. `min_p` keeps those at least `min_p` times as probable as the most probable one (arXiv 2407.01082).
//!
//! Of equally probable tokens the lower id counts as the more probable one. The random number is a pure function of
//! (seed, position in the sequence), so neither the batch nor a restart changes it; requests that should differ need
//! different seeds. Left out: penalties of repetition, grammars.

use russet_kernels::elementwise::highest;
use russet_kernels::{Isa, cross_entropy, random};

use crate::{Error, Result, Token};

/// How a token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// What logits are divided by; 0 chooses the most probable token always.
    pub temperature: f32,
    /// How many of the most probable tokens stay; `None`: all.
    pub top_k: Option<usize>,
    /// The share of probability that stays, in (0, 1]; 1: all.
    pub top_p: f32,
    /// The least probability that stays, as a share of the highest, in [0, 1]; 0: all.
    pub min_p: f32,
    /// Where the random numbers start from.
    pub seed: u64,
}

impl Default for Sampling {
    /// The model's own distribution, nothing cut, seed 0.
    fn default() -> Sampling {
        Sampling {
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
        }
    }
}

impl Sampling {
    /// The most probable token always.
    pub const GREEDY: Sampling = Sampling {
        temperature: 0.0,
        top_k: None,
        top_p: 1.0,
        min_p: 0.0,
        seed: 0,
    };

    /// Whether every setting is in its range.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::setting(
                "temperature",
                self.temperature,
                "0 (greedy) or a number above it",
            ));
        }
        if self.top_k == Some(0) {
            return Err(Error::setting(
                "top_k",
                0,
                "at least 1; leave it out to keep all tokens",
            ));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::setting(
                "top_p",
                self.top_p,
                "above 0 and at most 1 (1 keeps all tokens)",
            ));
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return Err(Error::setting(
                "min_p",
                self.min_p,
                "from 0 (keeps all tokens) to 1",
            ));
        }
        Ok(())
    }

    /// The token at `position` of a sequence, from its logits `[V]`. Its log-probability is that of the model itself,
    /// before temperature and cuts: what a trainer computes for it.
    ///
    /// # Errors
    /// When a logit is not finite.
    pub fn pick(&self, isa: Isa, logits: &[f32], position: u64) -> Result<Token> {
        let log_sum = cross_entropy::log_sum_exp(isa, logits);
        if !log_sum.is_finite() {
            return Err(Error::NotFinite);
        }
        let id = if self.temperature == 0.0 {
            highest(logits)
        } else {
            self.draw(isa, logits, uniform(self.seed, position))
        };
        Ok(Token {
            id: id as u32,
            logprob: logits[id] - log_sum,
        })
    }

    /// The token below which a share `uniform` of the kept probability lies, most probable tokens first.
    fn draw(&self, isa: Isa, logits: &[f32], uniform: f64) -> usize {
        let mut ranked = Ranked::new(logits, self.temperature);
        let mut kept = logits.len();
        let mut mass = match self.top_k {
            Some(k) if k < kept => {
                kept = k;
                ranked.mass(k)
            }
            _ => ranked.total(isa),
        };
        if self.top_p < 1.0 {
            (kept, mass) = ranked.reaching(f64::from(self.top_p) * mass, kept);
        }
        if self.min_p > 0.0 {
            let least = f64::from(self.min_p); // the weight of the most probable token is 1
            kept = (1..kept)
                .find(|&rank| ranked.weight(rank) < least)
                .unwrap_or(kept);
            mass = ranked.mass(kept);
        }
        // Rounding can leave the sum of the walk just below the mass; then it is the last token of any weight.
        let (mut sum, mut last) = (0.0, ranked.id(0));
        for rank in 0..kept {
            let weight = ranked.weight(rank);
            if weight == 0.0 {
                break;
            }
            sum += weight;
            last = ranked.id(rank);
            if sum > uniform * mass {
                break;
            }
        }
        last
    }
}

/// Uniform on [0, 1), a multiple of 2⁻⁵³: tokens far rarer than one in 2²⁴ keep their chance.
fn uniform(seed: u64, position: u64) -> f64 {
    const STREAM: u64 = u64::from_be_bytes(*b"\0sampler");
    (random::hash(seed, STREAM, position) >> 11) as f64 / (1u64 << 53) as f64
}

/// Tokens in falling order of probability with their weights, probabilities relative to the highest. Both are found
/// only as far as they are asked for: of 49,152 tokens a draw mostly looks at a few, and sorting them all costs
/// a hundred times as much as finding the highest.
struct Ranked<'a> {
    logits: &'a [f32],
    temperature: f32,
    top: f32,        // the highest logit
    order: Vec<u32>, // ids of the logits from `floor` up, the highest first
    floor: f32,
    reach: f32, // the next floor lies this many temperatures below the top
}

impl Ranked<'_> {
    fn new(logits: &[f32], temperature: f32) -> Ranked<'_> {
        let top = logits[highest(logits)];
        Ranked {
            logits,
            temperature,
            top,
            order: Vec::new(),
            floor: f32::INFINITY,
            reach: 2.0,
        }
    }

    /// The id of the token at `rank`, which must be below V.
    fn id(&mut self, rank: usize) -> usize {
        while rank >= self.order.len() {
            self.lower();
        }
        self.order[rank] as usize
    }

    /// Lowers the floor, at last to where all tokens are.
    fn lower(&mut self) {
        let ceiling = self.floor;
        self.floor = if self.reach > 64.0 {
            f32::NEG_INFINITY
        } else {
            self.top - self.reach * self.temperature
        };
        self.reach *= 2.0;
        let known = self.order.len();
        let logits = self.logits;
        let floor = self.floor;
        let fresh = logits
            .iter()
            .zip(0..)
            .filter(|&(&logit, _)| logit >= floor && logit < ceiling)
            .map(|(_, id)| id);
        self.order.extend(fresh);
        self.order[known..].sort_unstable_by(|&a, &b| {
            let falling = logits[b as usize].partial_cmp(&logits[a as usize]);
            falling
                .expect("their sum is finite, so none is NaN")
                .then(a.cmp(&b))
        });
    }

    fn weight(&mut self, rank: usize) -> f64 {
        let logit = self.logits[self.id(rank)];
        libm::exp(f64::from((logit - self.top) / self.temperature))
    }

    /// The weight of the `count` most probable tokens.
    fn mass(&mut self, count: usize) -> f64 {
        (0..count).map(|rank| self.weight(rank)).sum()
    }

    /// The weight of all tokens: vectors of `f32` within a chunk, `f64` from chunk to chunk.
    fn total(&self, isa: Isa) -> f64 {
        const CHUNK: usize = 1024;
        let mut scaled = [0.0; CHUNK];
        let chunk = |logits: &[f32]| {
            let scaled = &mut scaled[..logits.len()];
            for (scaled, logit) in scaled.iter_mut().zip(logits) {
                // A chunk all at minus infinity would have no maximum; e⁻²⁰⁰ adds nothing to a sum of at least 1.
                *scaled = ((logit - self.top) / self.temperature).max(-200.0);
            }
            libm::exp(f64::from(cross_entropy::log_sum_exp(isa, scaled)))
        };
        self.logits.chunks(CHUNK).map(chunk).sum()
    }

    /// How many of the most probable tokens, one at least and `limit` at most, weigh `wanted`; and what they weigh.
    /// One part in 10⁵ is forgiven, so that two of four equal tokens are half of them however sums are rounded.
    fn reaching(&mut self, wanted: f64, limit: usize) -> (usize, f64) {
        let mut mass = 0.0;
        for rank in 0..limit {
            mass += self.weight(rank);
            if mass >= wanted * (1.0 - 1e-5) {
                return (rank + 1, mass);
            }
        }
        (limit, mass)
    }
}

#[cfg(test)]
mod tests;
