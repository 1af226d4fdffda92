//! Losses of preferences: which of two responses to a prompt is the better one, as functions of log-probabilities.
//!
//! ```text
//! h   = (log π(c) - log π_ref(c)) - (log π(r) - log π_ref(r))        c chosen, r rejected
//! DPO   -log σ(β h)                                                  arXiv 2305.18290
//! IPO   (h - 1 / (2β))²                                              arXiv 2310.12036, τ = β
//! ```
//! In the length-normalised forms each log-probability is the mean over the response's tokens, not the sum, so that a
//! long response is not the better one for its length (R-DPO, arXiv 2403.19159, discusses why).

use libm::{exp, log1p};
use serde::{Deserialize, Serialize};

/// Which loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PreferenceLoss {
    /// Direct preference optimisation.
    #[default]
    Dpo,
    /// Identity preference optimisation: the margin is drawn to a finite place, so noise-free preferences do not overfit.
    Ipo,
}

/// One response under two models.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// `log π(y|x)`, the sum over its tokens.
    pub policy: f64,
    /// `log π_ref(y|x)`.
    pub reference: f64,
    /// Its tokens.
    pub tokens: usize,
}

/// What a pair comes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairLoss {
    /// The loss.
    pub loss: f64,
    /// h: above 0 where the policy prefers the chosen one more than the reference does.
    pub margin: f64,
    /// `-∂loss/∂log π(c)`: what each chosen token's loss is weighted with.
    pub chosen: f64,
    /// `-∂loss/∂log π(r)`; below 0.
    pub rejected: f64,
}

/// `log(1 + eˣ)` without overflow.
pub fn softplus(x: f64) -> f64 {
    x.max(0.0) + log1p(exp(-x.abs()))
}

/// `1 / (1 + e⁻ˣ)` without overflow.
pub fn sigmoid(x: f64) -> f64 {
    match x >= 0.0 {
        true => 1.0 / (1.0 + exp(-x)),
        false => exp(x) / (1.0 + exp(x)),
    }
}

/// The loss of one pair.
pub fn pair_loss(
    kind: PreferenceLoss,
    beta: f64,
    length_normalised: bool,
    chosen: Scored,
    rejected: Scored,
) -> PairLoss {
    let share = |scored: Scored| match length_normalised {
        true => 1.0 / scored.tokens.max(1) as f64,
        false => 1.0,
    };
    let ratio = |scored: Scored| (scored.policy - scored.reference) * share(scored);
    let margin = ratio(chosen) - ratio(rejected);
    let (loss, slope) = match kind {
        // d/dh -log σ(βh) = -β σ(-βh)
        PreferenceLoss::Dpo => (softplus(-beta * margin), -beta * sigmoid(-beta * margin)),
        PreferenceLoss::Ipo => {
            let off = margin - 0.5 / beta;
            (off * off, 2.0 * off)
        }
    };
    PairLoss {
        loss,
        margin,
        chosen: -slope * share(chosen),
        rejected: slope * share(rejected),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libm::log;

    const CHOSEN: Scored = Scored {
        policy: -4.0,
        reference: -5.0,
        tokens: 4,
    };
    const REJECTED: Scored = Scored {
        policy: -6.5,
        reference: -6.0,
        tokens: 2,
    };

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} and {b}");
    }

    /// h = (−4 + 5) − (−6.5 + 6) = 1.5.
    #[test]
    fn losses_equal_values_by_hand() {
        let dpo = pair_loss(PreferenceLoss::Dpo, 0.1, false, CHOSEN, REJECTED);
        near(dpo.margin, 1.5);
        near(dpo.loss, -log(1.0 / (1.0 + exp(-0.15))));
        near(dpo.chosen, 0.1 / (1.0 + exp(0.15)));
        near(dpo.rejected, -dpo.chosen);
        let ipo = pair_loss(PreferenceLoss::Ipo, 0.1, false, CHOSEN, REJECTED);
        near(ipo.loss, 12.25); // (1.5 - 5)²
        near(ipo.chosen, 7.0);
        // Means over 4 and 2 tokens: h = 1/4 + 0.5/2 = 0.5.
        let mean = pair_loss(PreferenceLoss::Dpo, 2.0, true, CHOSEN, REJECTED);
        near(mean.margin, 0.5);
        near(mean.loss, log(1.0 + exp(-1.0)));
        near(mean.chosen, 2.0 / (1.0 + exp(1.0)) / 4.0);
        near(mean.rejected, -2.0 / (1.0 + exp(1.0)) / 2.0);
        // A policy that is its reference: ln 2, as in every paper.
        let same = |tokens| Scored {
            policy: -3.0,
            reference: -3.0,
            tokens,
        };
        let first = pair_loss(PreferenceLoss::Dpo, 0.5, false, same(1), same(9));
        near(first.loss, log(2.0));
    }

    #[test]
    fn weights_are_the_slopes_of_the_loss() {
        for kind in [PreferenceLoss::Dpo, PreferenceLoss::Ipo] {
            for normalised in [false, true] {
                let at = |chosen: f64, rejected: f64| {
                    let move_by = |scored: Scored, by: f64| Scored {
                        policy: scored.policy + by,
                        ..scored
                    };
                    pair_loss(
                        kind,
                        0.3,
                        normalised,
                        move_by(CHOSEN, chosen),
                        move_by(REJECTED, rejected),
                    )
                };
                let (step, here) = (1e-5, at(0.0, 0.0));
                let chosen = (at(step, 0.0).loss - at(-step, 0.0).loss) / (2.0 * step);
                let rejected = (at(0.0, step).loss - at(0.0, -step).loss) / (2.0 * step);
                assert!((chosen + here.chosen).abs() < 1e-8, "{kind:?}");
                assert!((rejected + here.rejected).abs() < 1e-8, "{kind:?}");
            }
        }
    }

    #[test]
    fn far_margins_neither_overflow_nor_vanish_wrongly() {
        for margin in [-1e4, 1e4] {
            let far = Scored {
                policy: margin,
                reference: 0.0,
                tokens: 1,
            };
            let none = Scored { policy: 0.0, ..far };
            let made = pair_loss(PreferenceLoss::Dpo, 1.0, false, far, none);
            assert!(made.loss.is_finite() && made.chosen.is_finite());
            near(made.loss, (-margin).max(0.0));
        }
    }
}
