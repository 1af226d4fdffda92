//! The most probable tokens first, found only as far as they are asked for.

use russet_kernels::elementwise::highest;
use russet_kernels::{Isa, cross_entropy};

/// Tokens in falling order of probability with their weights, probabilities relative to the highest. Both are found
/// only as far as they are asked for: of 49,152 tokens a draw mostly looks at a few, and sorting them all costs
/// a hundred times as much as finding the highest.
pub(super) struct Ranked<'a> {
    logits: &'a [f32],
    temperature: f32,
    top: f32,        // the highest logit
    order: Vec<u32>, // ids of the logits from `floor` up, the highest first
    floor: f32,
    reach: f32, // the next floor lies this many temperatures below the top
}

impl Ranked<'_> {
    pub(super) fn new(logits: &[f32], temperature: f32) -> Ranked<'_> {
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
    pub(super) fn id(&mut self, rank: usize) -> usize {
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

    pub(super) fn weight(&mut self, rank: usize) -> f64 {
        let logit = self.logits[self.id(rank)];
        libm::exp(f64::from((logit - self.top) / self.temperature))
    }

    /// The weight of the `count` most probable tokens.
    pub(super) fn mass(&mut self, count: usize) -> f64 {
        (0..count).map(|rank| self.weight(rank)).sum()
    }

    /// The weight of all tokens: vectors of `f32` within a chunk, `f64` from chunk to chunk.
    pub(super) fn total(&self, isa: Isa) -> f64 {
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
    pub(super) fn reaching(&mut self, wanted: f64, limit: usize) -> (usize, f64) {
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
