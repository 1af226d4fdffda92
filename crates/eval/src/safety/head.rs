//! A trained head: a reward model that has learnt which of two answers is the harmless one, as a probability of harm.
//!
//! ```text
//! harm(r) = 1 / (1 + exp(a·r + b))        a > 0: the higher the reward, the less harm
//! ```
//! Rewards of pairs have no zero of their own, so `a` and `b` are fitted to answers whose harm is known: Platt's logistic regression of one
//! variable with his targets, (N₊ + 1) / (N₊ + 2) and 1 / (N₋ + 2) in place of 1 and 0, which keep it finite where all are told apart; by Newton's
//! steps with halving (Lin, Lin, Weng, "A note on Platt's probabilistic outputs for support vector machines", 2007).

use serde::Serialize;

use crate::stats::logistic;
use crate::{Error, Result};

/// Steps at most; ten are usual.
const STEPS: usize = 100;

/// A slope of the loss that counts as none.
const FLAT: f64 = 1e-9;

/// Harm as a function of reward.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Head {
    /// a.
    pub slope: f64,
    /// b.
    pub offset: f64,
}

impl Head {
    /// Fits it to the rewards of harmless and of harmful answers.
    ///
    /// # Errors
    /// When there are none of one kind, or harmful ones have the higher rewards, so that the model knows nothing of harm.
    pub fn fit(harmless: &[f64], harmful: &[f64]) -> Result<Head> {
        if harmless.is_empty() || harmful.is_empty() {
            return Err(Error::Head(
                "it takes harmless and harmful answers to fit harm to".to_owned(),
            ));
        }
        let (less, more) = (harmless.len() as f64, harmful.len() as f64);
        let (is, is_not) = ((more + 1.0) / (more + 2.0), 1.0 / (less + 2.0));
        let harmless = harmless.iter().map(|&reward| (reward, is_not));
        let samples: Vec<(f64, f64)> = harmless
            .chain(harmful.iter().map(|&reward| (reward, is)))
            .collect();
        let mut head = Head {
            slope: 0.0,
            offset: ((less + 1.0) / (more + 1.0)).ln(),
        };
        let mut loss = head.loss(&samples);
        for _ in 0..STEPS {
            // Of the loss in (a, b): the gradient, and the second derivatives with a little more on the diagonal.
            let (mut da, mut db, mut aa, mut ab, mut bb) = (0.0, 0.0, 1e-12, 0.0, 1e-12);
            for &(reward, target) in &samples {
                let harm = head.harm(reward);
                let (slope, bend) = (target - harm, harm * (1.0 - harm));
                da += slope * reward;
                db += slope;
                aa += bend * reward * reward;
                ab += bend * reward;
                bb += bend;
            }
            if da.abs() < FLAT && db.abs() < FLAT {
                break;
            }
            let determinant = aa * bb - ab * ab;
            let step = (
                -(bb * da - ab * db) / determinant,
                -(aa * db - ab * da) / determinant,
            );
            let mut share = 1.0;
            let better = loop {
                let tried = Head {
                    slope: head.slope + share * step.0,
                    offset: head.offset + share * step.1,
                };
                let its = tried.loss(&samples);
                if its < loss {
                    break Some((tried, its));
                }
                share *= 0.5;
                if share < 1e-10 {
                    break None;
                }
            };
            match better {
                Some(better) => (head, loss) = better,
                None => break, // as near as numbers come
            }
        }
        match head.slope > 0.0 {
            true => Ok(head),
            false => Err(Error::Head(
                "the model gives harmful answers rewards as high as harmless ones, so it knows nothing of harm; train it on pairs \
                 whose chosen answer is the harmless one"
                    .to_owned(),
            )),
        }
    }

    /// How probably an answer of this reward is harmful.
    pub fn harm(&self, reward: f64) -> f64 {
        logistic(-(self.slope * reward + self.offset))
    }

    fn loss(&self, samples: &[(f64, f64)]) -> f64 {
        let one = |&(reward, target): &(f64, f64)| {
            let z = self.slope * reward + self.offset; // harm = σ(-z)
            target * crate::stats::softplus(z) + (1.0 - target) * crate::stats::softplus(-z)
        };
        samples.iter().map(one).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use russet_kernels::random;

    /// Rewards from -4 to 4, each harmful with the probability that `head` says.
    fn drawn(head: &Head, count: u64) -> [Vec<f64>; 2] {
        let mut of = [Vec::new(), Vec::new()];
        for number in 0..count {
            let uniform =
                |stream| random::below(7, number, stream, 1 << 24) as f64 / (1u64 << 24) as f64;
            let reward = 8.0 * uniform(0) - 4.0;
            of[usize::from(uniform(1) < head.harm(reward))].push(reward);
        }
        of
    }

    #[test]
    fn a_head_that_draws_is_found_again() {
        let truth = Head {
            slope: 1.5,
            offset: -0.7,
        };
        let [harmless, harmful] = drawn(&truth, 20_000);
        let found = Head::fit(&harmless, &harmful).unwrap();
        // Three standard errors of 20,000 draws.
        assert!((found.slope - truth.slope).abs() < 0.08, "{found:?}");
        assert!((found.offset - truth.offset).abs() < 0.08, "{found:?}");
        assert!((found.harm(0.7 / 1.5) - 0.5).abs() < 0.03);
    }

    #[test]
    fn the_fit_is_where_no_step_in_any_direction_is_better() {
        let (harmless, harmful) = ([2.0, 1.0, 0.5, -1.0], [-2.0, -0.5, 0.7]);
        let found = Head::fit(&harmless, &harmful).unwrap();
        let (is, is_not) = (4.0 / 5.0, 1.0 / 6.0);
        let samples: Vec<(f64, f64)> = harmless
            .map(|reward| (reward, is_not))
            .into_iter()
            .chain(harmful.map(|reward| (reward, is)))
            .collect();
        let least = found.loss(&samples);
        for (a, b) in [(1e-3, 0.0), (-1e-3, 0.0), (0.0, 1e-3), (0.0, -1e-3)] {
            let other = Head {
                slope: found.slope + a,
                offset: found.offset + b,
            };
            assert!(other.loss(&samples) > least, "{found:?} and {other:?}");
        }
    }

    #[test]
    fn answers_that_are_all_told_apart_make_no_infinite_slope() {
        let found = Head::fit(&[5.0, 6.0], &[-5.0, -6.0]).unwrap();
        assert!(found.slope.is_finite() && found.harm(5.0) < 0.3 && found.harm(-5.0) > 0.7);
    }

    #[test]
    fn a_model_that_knows_nothing_of_harm_is_refused() {
        for (harmless, harmful) in [
            (&[-1.0, -2.0][..], &[1.0, 2.0][..]),
            (&[1.0, 1.0], &[1.0, 1.0]),
            (&[], &[1.0]),
            (&[1.0], &[]),
        ] {
            assert!(Head::fit(harmless, harmful).is_err());
        }
    }
}
