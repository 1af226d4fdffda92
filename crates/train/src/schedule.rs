//! The learning rate: a linear rise, then half a cosine down to a share of the peak (arXiv 1608.03983).
//!
//! ```text
//! n = step + 1
//! n ≤ w:  peak · n / w
//! n > w:  peak · (r + (1 - r) · (1 + cos(π · (n - w) / (steps - w))) / 2)
//! ```
//! The peak is reached with step w - 1 and the final rate `r · peak` with the last step. AFM's core pre-training rises over
//! 5000 steps and ends at r = 0.005.

/// A learning rate for each step; a pure function.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The highest rate.
    pub peak: f64,
    /// w, steps of the rise.
    pub warmup_steps: u64,
    /// All steps.
    pub steps: u64,
    /// r, the last rate as a share of the peak.
    pub final_ratio: f64,
}

impl Schedule {
    /// The rate of `step`, counted from 0. Beyond the last step it stays at the final rate.
    pub fn at(&self, step: u64) -> f64 {
        let (n, warmup) = (step.saturating_add(1), self.warmup_steps);
        if n <= warmup {
            return self.peak * n as f64 / warmup as f64;
        }
        if n >= self.steps {
            return self.peak * self.final_ratio;
        }
        let angle = std::f64::consts::PI * (n - warmup) as f64 / (self.steps - warmup) as f64;
        self.peak * (self.final_ratio + (1.0 - self.final_ratio) * 0.5 * (1.0 + libm::cos(angle)))
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
    }

    #[test]
    fn rises_in_a_line_and_falls_in_a_cosine() {
        let schedule = Schedule {
            peak: 1.0,
            warmup_steps: 4,
            steps: 8,
            final_ratio: 0.0,
        };
        let half = std::f64::consts::FRAC_1_SQRT_2 / 2.0;
        check(
            schedule,
            &[0.25, 0.5, 0.75, 1.0, 0.5 + half, 0.5, 0.5 - half, 0.0, 0.0],
        );
    }

    #[test]
    fn ends_at_the_final_ratio() {
        let schedule = Schedule {
            peak: 0.01,
            warmup_steps: 1,
            steps: 3,
            final_ratio: 0.1,
        };
        check(schedule, &[0.01, 0.0055, 0.001, 0.001]);
    }

    #[test]
    fn no_warm_up_starts_below_the_peak_by_one_step_of_the_cosine() {
        let schedule = Schedule {
            peak: 2.0,
            warmup_steps: 0,
            steps: 2,
            final_ratio: 0.5,
        };
        check(schedule, &[1.5, 1.0]);
    }

    #[test]
    fn a_run_that_is_all_warm_up_ends_at_the_peak() {
        let schedule = Schedule {
            peak: 3.0,
            warmup_steps: 3,
            steps: 3,
            final_ratio: 0.1,
        };
        check(schedule, &[1.0, 2.0, 3.0]);
    }
}
