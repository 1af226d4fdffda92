//! From logits to a token.
//!
//! The settings act in this order, each on what the one before left:
//! 1. `temperature` divides the logits; 0 takes the highest logit and nothing below applies.
//! 2. `top_k` keeps the k most probable tokens.
//! 3. `top_p` keeps the fewest of the most probable tokens whose probabilities, those of step 2 scaled to sum to 1,
//!    reach p (nucleus sampling, arXiv 1904.09751).
//! 4. `min_p` keeps those at least `min_p` times as probable as the most probable one (arXiv 2407.01082).
//!
//! Of equally probable tokens the lower id counts as the more probable one. The random number is a pure function of
//! (seed, position in the sequence), so neither the batch nor a restart changes it; requests that should differ need
//! different seeds. Left out: penalties of repetition, grammars.

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
        Sampling { temperature: 1.0, top_k: None, top_p: 1.0, min_p: 0.0, seed: 0 }
    }
}

impl Sampling {
    /// The most probable token always.
    pub const GREEDY: Sampling = Sampling { temperature: 0.0, top_k: None, top_p: 1.0, min_p: 0.0, seed: 0 };

    /// Whether every setting is in its range.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::setting("temperature", self.temperature, "0 (greedy) or a number above it"));
        }
        if self.top_k == Some(0) {
            return Err(Error::setting("top_k", 0, "at least 1; leave it out to keep all tokens"));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::setting("top_p", self.top_p, "above 0 and at most 1 (1 keeps all tokens)"));
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return Err(Error::setting("min_p", self.min_p, "from 0 (keeps all tokens) to 1"));
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
        let id = if self.temperature == 0.0 { highest(logits) } else { self.draw(logits, uniform(self.seed, position)) };
        Ok(Token { id: id as u32, logprob: logits[id] - log_sum })
    }

    /// The token below which a share `uniform` of the kept probability lies, most probable tokens first.
    fn draw(&self, logits: &[f32], uniform: f64) -> usize {
        let mut ranked = Ranked::new(logits, self.temperature);
        let (mut kept, mut mass) = (logits.len(), ranked.total());
        if let Some(k) = self.top_k.filter(|&k| k < kept) {
            kept = k;
            mass = ranked.mass(kept);
        }
        if self.top_p < 1.0 {
            let wanted = f64::from(self.top_p) * mass;
            (kept, mass) = ranked.reaching(wanted, kept);
        }
        if self.min_p > 0.0 {
            let least = self.min_p; // the weight of the most probable token is 1
            kept = (1..kept).find(|&rank| ranked.weight(rank) < least).unwrap_or(kept);
            mass = ranked.mass(kept);
        }
        // Rounding can leave the sum of the walk just below the mass; then it is the last token of any weight.
        let (mut sum, mut last) = (0.0, ranked.id(0));
        for rank in 0..kept {
            let weight = ranked.weight(rank);
            if weight == 0.0 {
                break;
            }
            sum += f64::from(weight);
            last = ranked.id(rank);
            if sum > uniform * mass {
                break;
            }
        }
        last
    }
}

/// The token with the highest logit, the lowest of several.
pub(crate) fn highest(logits: &[f32]) -> usize {
    let mut best = 0;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = id;
        }
    }
    best
}

/// Uniform on [0, 1), a multiple of 2⁻⁵³: tokens far rarer than one in 2²⁴ keep their chance.
fn uniform(seed: u64, position: u64) -> f64 {
    const STREAM: u64 = u64::from_be_bytes(*b"\0sampler");
    (random::hash(seed, STREAM, position) >> 11) as f64 / (1u64 << 53) as f64
}

/// Tokens in falling order of probability, put in order only as far as they are asked for: of 49,152 tokens a
/// draw mostly looks at a few.
struct Ranked<'a> {
    logits: &'a [f32],
    weights: Vec<f32>, // [V] probabilities relative to the highest
    order: Vec<u32>,   // [V] ids, of which the first `sorted` are the most probable in order
    sorted: usize,
}

impl Ranked<'_> {
    fn new(logits: &[f32], temperature: f32) -> Ranked<'_> {
        let top = logits[highest(logits)];
        let weights = logits.iter().map(|logit| ((logit - top) / temperature).exp()).collect();
        Ranked { logits, weights, order: (0..logits.len() as u32).collect(), sorted: 0 }
    }

    fn id(&mut self, rank: usize) -> usize {
        while rank >= self.sorted {
            let logits = self.logits;
            let before = |&a: &u32, &b: &u32| {
                let falling = logits[b as usize].partial_cmp(&logits[a as usize]);
                falling.expect("their sum is finite, so none is NaN").then(a.cmp(&b))
            };
            let upto = (8 * self.sorted).clamp(64, self.order.len().max(64)).min(self.order.len());
            let rest = &mut self.order[self.sorted..];
            let count = upto - self.sorted;
            if count < rest.len() {
                rest.select_nth_unstable_by(count, before);
            }
            rest[..count].sort_unstable_by(before);
            self.sorted = upto;
        }
        self.order[rank] as usize
    }

    fn weight(&mut self, rank: usize) -> f32 {
        let id = self.id(rank);
        self.weights[id]
    }

    /// The weight of all tokens.
    fn total(&self) -> f64 {
        self.weights.iter().map(|&weight| f64::from(weight)).sum()
    }

    /// The weight of the `count` most probable tokens.
    fn mass(&mut self, count: usize) -> f64 {
        (0..count).map(|rank| f64::from(self.weight(rank))).sum()
    }

    /// How many of the most probable tokens, one at least and `limit` at most, weigh `wanted`; and what they weigh.
    fn reaching(&mut self, wanted: f64, limit: usize) -> (usize, f64) {
        let mut mass = 0.0;
        for rank in 0..limit {
            mass += f64::from(self.weight(rank));
            if mass >= wanted {
                return (rank + 1, mass);
            }
        }
        (limit, mass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(sampling: Sampling, logits: &[f32], position: u64) -> u32 {
        sampling.pick(Isa::Scalar, logits, position).unwrap().id
    }

    /// Which tokens ever come of 400 draws.
    fn support(sampling: Sampling, logits: &[f32]) -> Vec<u32> {
        let mut seen: Vec<u32> = (0..400).map(|position| pick(sampling, logits, position)).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    fn logits(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln() + 3.0).collect()
    }

    #[test]
    fn greedy_takes_the_highest_and_of_equals_the_lowest_id() {
        assert_eq!(pick(Sampling::GREEDY, &[1.0, 3.0, -2.0, 3.0], 0), 1);
        assert_eq!(pick(Sampling::GREEDY, &[0.0; 5], 9), 0);
        assert_eq!(pick(Sampling { seed: 7, ..Sampling::GREEDY }, &[-1.0, -3.0], 9), 0);
    }

    /// Draws 40,000 times and compares counts with probabilities by Pearson's statistic.
    fn check_distribution(sampling: Sampling, logits: &[f32], expected: &[f64]) {
        let draws = 40_000;
        let mut counts = vec![0u32; logits.len()];
        for position in 0..draws {
            counts[pick(sampling, logits, position) as usize] += 1;
        }
        let mut statistic = 0.0;
        let mut kept = 0;
        for (id, (&count, &share)) in counts.iter().zip(expected).enumerate() {
            if share == 0.0 {
                assert_eq!(count, 0, "token {id} was cut but drawn: {counts:?}");
                continue;
            }
            kept += 1;
            let wanted = share * draws as f64;
            statistic += (f64::from(count) - wanted).powi(2) / wanted;
        }
        // Chi-square has mean k and deviation √2k for k degrees of freedom: five deviations.
        let freedom = f64::from(kept - 1);
        assert!(statistic < freedom + 5.0 * (2.0 * freedom).sqrt(), "{statistic} with {counts:?}, wanted {expected:?}");
    }

    #[test]
    fn draws_follow_the_models_distribution() {
        let p = [0.05, 0.4, 0.1, 0.25, 0.2];
        check_distribution(Sampling::default(), &logits(&p), &p.map(f64::from));
        check_distribution(Sampling { seed: 11, ..Sampling::default() }, &logits(&p), &p.map(f64::from));
        // Enough tokens that they are put in order in several goes.
        let flat = [0.0f32; 700];
        check_distribution(Sampling::default(), &flat, &[1.0 / 700.0; 700]);
    }

    #[test]
    fn temperature_raises_probabilities_to_its_inverse() {
        let p = [0.1f32, 0.6, 0.3];
        for temperature in [0.5, 2.0] {
            let powers = p.map(|p| f64::from(p).powf(1.0 / f64::from(temperature)));
            let sum: f64 = powers.iter().sum();
            let sampling = Sampling { temperature, seed: 3, ..Sampling::default() };
            check_distribution(sampling, &logits(&p), &powers.map(|p| p / sum));
        }
    }

    #[test]
    fn what_is_kept_keeps_its_proportions() {
        let p = [0.1, 0.4, 0.2, 0.3];
        let kept = [0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0];
        let all = Sampling { seed: 5, ..Sampling::default() };
        check_distribution(Sampling { top_k: Some(2), ..all }, &logits(&p), &kept);
        check_distribution(Sampling { top_p: 0.6, ..all }, &logits(&p), &kept);
        check_distribution(Sampling { min_p: 0.6, ..all }, &logits(&p), &kept);
    }

    #[test]
    fn top_p_keeps_the_fewest_that_reach_it() {
        let flat = [1.0; 4]; // equal weights are exactly a quarter each
        let kept = |top_p| support(Sampling { top_p, ..Sampling::default() }, &flat);
        assert_eq!(kept(0.25), [0]);
        assert_eq!(kept(0.2501), [0, 1]);
        assert_eq!(kept(0.5), [0, 1]);
        assert_eq!(kept(0.75), [0, 1, 2]);
        assert_eq!(kept(0.7501), [0, 1, 2, 3]);
        assert_eq!(kept(1e-9), [0]);
        assert_eq!(kept(1.0), [0, 1, 2, 3]);
    }

    #[test]
    fn cuts_act_in_the_stated_order() {
        let p = logits(&[0.4, 0.3, 0.2, 0.1]);
        let sampling = Sampling { seed: 2, ..Sampling::default() };
        // Half of what top_k left, 0.35 of 0.7, is reached by the first token; half of everything is not.
        assert_eq!(support(Sampling { top_k: Some(2), top_p: 0.5, ..sampling }, &p), [0]);
        assert_eq!(support(Sampling { top_p: 0.5, ..sampling }, &p), [0, 1]);
        // min_p would leave 0.7, of which 0.55 is reached by the first token; top_p acts first and keeps two.
        assert_eq!(support(Sampling { top_p: 0.55, min_p: 0.7, ..sampling }, &p), [0, 1]);
        // A low temperature makes the first token's share 0.59 before the cut.
        assert_eq!(support(Sampling { temperature: 0.4, top_p: 0.5, ..sampling }, &p), [0]);
        assert_eq!(support(Sampling { min_p: 1.0, ..sampling }, &p), [0]);
        assert_eq!(support(Sampling { top_k: Some(99), ..sampling }, &p), [0, 1, 2, 3]);
    }

    #[test]
    fn extreme_temperatures_stay_within_the_tokens() {
        for temperature in [f32::MIN_POSITIVE, 1e-30, 1e30, f32::MAX] {
            let sampling = Sampling { temperature, ..Sampling::default() };
            let seen = support(sampling, &[5.0, 9.0, -80.0]);
            assert_eq!(seen, if temperature < 1.0 { vec![1] } else { vec![0, 1, 2] });
        }
    }

    #[test]
    fn seed_and_position_alone_decide() {
        let flat = [0.0; 1000];
        let run = |seed, from: u64| -> Vec<u32> {
            let sampling = Sampling { seed, ..Sampling::default() };
            (from..from + 20).map(|position| pick(sampling, &flat, position)).collect()
        };
        assert_eq!(run(1, 0), run(1, 0));
        assert_eq!(run(1, 0)[5..], run(1, 5)[..15]);
        assert_ne!(run(1, 0), run(2, 0));
        assert_ne!(run(1, 0), run(1, 100));
    }

    #[test]
    fn ranks_equal_a_full_sort() {
        let logits: Vec<f32> = (0..900).map(|i| random::below(4, 0, i, 50) as f32).collect();
        let mut wanted: Vec<usize> = (0..900).collect();
        wanted.sort_by(|&a, &b| logits[b].total_cmp(&logits[a])); // stable: ties stay by id
        let mut ranked = Ranked::new(&logits, 1.0);
        assert_eq!((0..900).map(|rank| ranked.id(rank)).collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn log_probabilities_are_those_of_the_model_itself() {
        let p = [0.1f32, 0.6, 0.3];
        for sampling in [Sampling::GREEDY, Sampling { temperature: 3.0, top_k: Some(1), ..Sampling::default() }] {
            let token = sampling.pick(Isa::Scalar, &logits(&p), 0).unwrap();
            assert_eq!(token.id, 1);
            assert!((token.logprob - 0.6f32.ln()).abs() < 1e-6, "{token:?}");
        }
    }

    #[test]
    fn logits_that_are_no_numbers_are_refused() {
        for damaged in [f32::NAN, f32::INFINITY] {
            for isa in [Isa::Scalar, Isa::best()] {
                let mut logits = vec![0.5; 100];
                logits[37] = damaged;
                for sampling in [Sampling::GREEDY, Sampling::default()] {
                    assert!(matches!(sampling.pick(isa, &logits, 0), Err(Error::NotFinite)), "{damaged} on {isa:?}");
                }
            }
        }
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let all = Sampling::default();
        for (setting, sampling) in [
            ("temperature", Sampling { temperature: -0.1, ..all }),
            ("temperature", Sampling { temperature: f32::NAN, ..all }),
            ("temperature", Sampling { temperature: f32::INFINITY, ..all }),
            ("top_k", Sampling { top_k: Some(0), ..all }),
            ("top_p", Sampling { top_p: 0.0, ..all }),
            ("top_p", Sampling { top_p: 1.1, ..all }),
            ("top_p", Sampling { top_p: f32::NAN, ..all }),
            ("min_p", Sampling { min_p: -0.1, ..all }),
            ("min_p", Sampling { min_p: 1.1, ..all }),
            ("min_p", Sampling { min_p: f32::NAN, ..all }),
        ] {
            let sentence = sampling.check().unwrap_err().to_string();
            assert!(sentence.starts_with(setting), "{sentence}");
        }
        assert!(all.check().is_ok() && Sampling::GREEDY.check().is_ok());
    }
}
