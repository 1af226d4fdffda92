//! Losses of a reward model: soft Bradley-Terry targets by how strong a preference is, and grades of single responses.
//!
//! ```text
//! L = -p log σ(r_c - r_r) - (1 - p) log σ(r_r - r_c) + λ Σ_grades CE        AFM, arXiv 2407.21075
//! ```
//! p is 0.95, 0.85, 0.75 or 0.65 by strength. A grade is one of three levels of instruction following, verbosity,
//! truthfulness or harmlessness; a head of its own tells it from the same hidden state.

use libm::{exp, log};
pub use russet_model::reward::LEVELS;
use serde::{Deserialize, Serialize};

use crate::preference::{sigmoid, softplus};

/// How strong a preference is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strength {
    /// Significantly better.
    Significantly,
    /// Better.
    Better,
    /// Slightly better.
    Slightly,
    /// Negligibly better.
    Negligibly,
}

impl Strength {
    /// The strongest first.
    pub const ALL: [Strength; 4] = [
        Strength::Significantly,
        Strength::Better,
        Strength::Slightly,
        Strength::Negligibly,
    ];

    /// As rows have it.
    pub fn word(self) -> &'static str {
        match self {
            Strength::Significantly => "significantly",
            Strength::Better => "better",
            Strength::Slightly => "slightly",
            Strength::Negligibly => "negligibly",
        }
    }

    /// p: how sure one is that the chosen response is the better one.
    pub fn target(self) -> f64 {
        match self {
            Strength::Significantly => 0.95,
            Strength::Better => 0.85,
            Strength::Slightly => 0.75,
            Strength::Negligibly => 0.65,
        }
    }
}

/// The loss of two rewards under the target p, and its derivatives by the chosen and the rejected reward. It is least where
/// `σ(r_c - r_r) = p`: a weak preference asks for a small difference.
pub fn soft_preference(chosen: f64, rejected: f64, target: f64) -> (f64, [f64; 2]) {
    let difference = chosen - rejected;
    let loss = target * softplus(-difference) + (1.0 - target) * softplus(difference);
    let slope = sigmoid(difference) - target;
    (loss, [slope, -slope])
}

/// The cross-entropy of one grade's logits against its level, and its gradient.
///
/// # Panics
/// When `level` is none.
pub fn grade(logits: [f64; LEVELS], level: usize) -> (f64, [f64; LEVELS]) {
    let most = logits.into_iter().fold(f64::NEG_INFINITY, f64::max);
    let shares = logits.map(|logit| exp(logit - most));
    let sum: f64 = shares.iter().sum();
    let loss = log(sum) - (logits[level] - most);
    let mut gradient = shares.map(|share| share / sum);
    gradient[level] -= 1.0;
    (loss, gradient)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} and {b}");
    }

    #[test]
    fn losses_equal_values_by_hand() {
        // r_c - r_r = 1: -0.95 ln 0.731… - 0.05 ln 0.268…
        let (loss, slopes) = soft_preference(1.5, 0.5, Strength::Significantly.target());
        let right = 1.0 / (1.0 + exp(-1.0));
        near(loss, -0.95 * log(right) - 0.05 * log(1.0 - right));
        near(slopes[0], right - 0.95);
        near(slopes[0], -slopes[1]);
        assert!((loss - 0.363_261_687_518_222_8).abs() < 1e-12, "{loss}");
        let (loss, gradient) = grade([log(1.0), log(2.0), log(5.0)], 1);
        near(loss, log(4.0));
        for (found, wanted) in gradient.into_iter().zip([0.125, 0.25 - 1.0, 0.625]) {
            near(found, wanted);
        }
    }

    #[test]
    fn the_best_difference_is_the_targets_own() {
        for (strength, target) in [
            (Strength::Significantly, 0.95),
            (Strength::Better, 0.85),
            (Strength::Slightly, 0.75),
            (Strength::Negligibly, 0.65),
        ] {
            near(strength.target(), target);
            let best = log(target / (1.0 - target));
            let (least, slopes) = soft_preference(best, 0.0, target);
            near(slopes[0], 0.0);
            assert!(soft_preference(best + 0.1, 0.0, target).0 > least);
            assert!(soft_preference(best - 0.1, 0.0, target).0 > least);
        }
    }

    #[test]
    fn gradients_equal_finite_differences() {
        let step = 1e-5;
        let (_, slopes) = soft_preference(0.3, 0.9, 0.75);
        let up = soft_preference(0.3 + step, 0.9, 0.75).0;
        let down = soft_preference(0.3 - step, 0.9, 0.75).0;
        assert!(((up - down) / (2.0 * step) - slopes[0]).abs() < 1e-8);
        let logits = [0.2, -1.0, 3.0];
        let (_, gradient) = grade(logits, 0);
        for place in 0..LEVELS {
            let moved = |by: f64| {
                let mut logits = logits;
                logits[place] += by;
                grade(logits, 0).0
            };
            let slope = (moved(step) - moved(-step)) / (2.0 * step);
            assert!((slope - gradient[place]).abs() < 1e-8);
        }
    }
}
