//! The learning rate: a linear rise, then one of three ways on.
//!
//! ```text
//! n = step + 1, w steps of rise, r the final ratio, d steps of decay
//! n ≤ w:     peak · n / w
//! cosine:    peak · (r + (1 - r) · (1 + cos(π · (n - w) / (steps - w))) / 2)         arXiv 1608.03983
//! constant:  peak
//! wsd:       peak, and from the step after steps - d on                             arXiv 2404.06395
//!            peak · (r + (1 - r) · f(x)),  x = (n - (steps - d)) / d,  f = 1 - x, (1 + cos πx) / 2 or 1 - √x
//! ```
//! The peak is reached with step w - 1, and with the last step the final rate `r · peak` of a cosine or a decay. AFM's core
//! pre-training rises over 5000 steps and ends a cosine at r = 0.005.

use crate::settings::Decay;

/// A learning rate for each step; a pure function.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The highest rate.
    pub peak: f64,
    /// w, steps of the rise.
    pub warmup_steps: u64,
    /// All steps.
    pub steps: u64,
    /// How it goes on.
    pub shape: Shape,
}

/// What follows the rise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// Half a cosine down to a share of the peak.
    Cosine {
        /// r, the last rate as a share of the peak.
        final_ratio: f64,
    },
    /// The peak, and at the end a decay.
    Wsd {
        /// d, steps of the decay.
        decay_steps: u64,
        /// f.
        decay: Decay,
        /// r, the last rate as a share of the peak.
        final_ratio: f64,
    },
    /// The peak.
    Constant,
}

impl Schedule {
    /// The rate of `step`, counted from 0. Beyond the last step it stays at the last rate.
    pub fn at(&self, step: u64) -> f64 {
        self.of_peak(step, self.peak)
    }

    /// The rate of `step` as a share of the peak.
    pub fn share(&self, step: u64) -> f64 {
        self.of_peak(step, 1.0)
    }

    fn of_peak(&self, step: u64, peak: f64) -> f64 {
        let (n, warmup) = (step.saturating_add(1), self.warmup_steps);
        if n <= warmup {
            return peak * n as f64 / warmup as f64;
        }
        let (from, ratio, decay) = match self.shape {
            Shape::Constant => return peak,
            Shape::Cosine { final_ratio } => (warmup, final_ratio, Decay::Cosine),
            Shape::Wsd {
                decay_steps,
                decay,
                final_ratio,
            } => (self.steps - decay_steps, final_ratio, decay),
        };
        if n <= from {
            return peak;
        }
        if n >= self.steps {
            return peak * ratio;
        }
        let (passed, all) = ((n - from) as f64, (self.steps - from) as f64);
        let left = match decay {
            Decay::Linear => 1.0 - passed / all,
            Decay::Cosine => 0.5 * (1.0 + libm::cos(std::f64::consts::PI * passed / all)),
            Decay::Sqrt => 1.0 - (passed / all).sqrt(),
        };
        peak * (ratio + (1.0 - ratio) * left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(schedule: Schedule, expected: &[f64]) {
        let found: Vec<f64> = (0..expected.len() as u64)
            .map(|step| schedule.at(step))
            .collect();
        let close = found
            .iter()
            .zip(expected)
            .all(|(a, b)| (a - b).abs() <= 1e-15);
        assert!(close, "{found:?} is not {expected:?}");
        for (step, rate) in found.iter().enumerate() {
            let share = schedule.share(step as u64);
            assert!((share * schedule.peak - rate).abs() <= 1e-15);
        }
    }

    fn cosine(peak: f64, warmup_steps: u64, steps: u64, final_ratio: f64) -> Schedule {
        Schedule {
            peak,
            warmup_steps,
            steps,
            shape: Shape::Cosine { final_ratio },
        }
    }

    #[test]
    fn rises_in_a_line_and_falls_in_a_cosine() {
        let half = std::f64::consts::FRAC_1_SQRT_2 / 2.0;
        check(
            cosine(1.0, 4, 8, 0.0),
            &[0.25, 0.5, 0.75, 1.0, 0.5 + half, 0.5, 0.5 - half, 0.0, 0.0],
        );
    }

    #[test]
    fn ends_at_the_final_ratio() {
        check(cosine(0.01, 1, 3, 0.1), &[0.01, 0.0055, 0.001, 0.001]);
    }

    #[test]
    fn no_warm_up_starts_below_the_peak_by_one_step_of_the_cosine() {
        check(cosine(2.0, 0, 2, 0.5), &[1.5, 1.0]);
    }

    #[test]
    fn a_run_that_is_all_warm_up_ends_at_the_peak() {
        check(cosine(3.0, 3, 3, 0.1), &[1.0, 2.0, 3.0]);
    }

    #[test]
    fn a_constant_stays_and_a_decay_comes_at_the_end() {
        let mut schedule = Schedule {
            peak: 1.0,
            warmup_steps: 2,
            steps: 8,
            shape: Shape::Constant,
        };
        check(schedule, &[0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        let half = std::f64::consts::FRAC_1_SQRT_2 / 2.0;
        for (decay, [a, b, c]) in [
            (Decay::Linear, [0.75, 0.5, 0.25]),
            (Decay::Cosine, [0.5 + half, 0.5, 0.5 - half]),
            (Decay::Sqrt, [0.5, 1.0 - 2.0 * half, 1.0 - 0.75f64.sqrt()]),
        ] {
            schedule.shape = Shape::Wsd {
                decay_steps: 4,
                decay,
                final_ratio: 0.0,
            };
            check(schedule, &[0.5, 1.0, 1.0, 1.0, a, b, c, 0.0, 0.0]);
        }
        schedule.shape = Shape::Wsd {
            decay_steps: 2,
            decay: Decay::Linear,
            final_ratio: 0.1,
        };
        check(schedule, &[0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.55, 0.1, 0.1]);
    }
}
