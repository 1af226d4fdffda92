//! The rank that the others wait for.
//!
//! ```text
//! busy = time of the steps − time in calls to other ranks
//! ```
//! All ranks take the same steps in the same time, as each waits for the slowest; what differs is how much of it they wait.
//! Every [`WINDOW`] steps they tell one another how long they were busy. A rank stands out if it was a third busier than the
//! median, and by more than a second: shorter holdups of a machine with other things to do are nobody's business. Among ranks
//! that share cores a rank is busy too while another one has its core.

use std::time::Duration;

/// Steps from one look to the next.
pub(crate) const WINDOW: u64 = 32;

/// How long a rank was busy since the last look.
#[derive(Debug, Default)]
pub(crate) struct Busy {
    time: Duration,
    steps: u64,
}

impl Busy {
    /// Counts a step. What is returned is to be told to all, every so many steps.
    pub(crate) fn step(&mut self, took: Duration, waited: Duration) -> Option<f64> {
        self.time += took.saturating_sub(waited);
        self.steps += 1;
        if self.steps < WINDOW {
            return None;
        }
        let Busy { time, .. } = std::mem::take(self);
        Some(time.as_secs_f64())
    }
}

/// The rank that stands out, by the busy seconds of each; with the median.
pub(crate) fn straggler(busy: &[f64]) -> Option<(usize, f64)> {
    let mut sorted = busy.to_vec();
    sorted.sort_by(f64::total_cmp);
    // Of two ranks the faster is the measure.
    let median = *sorted.get(sorted.len().checked_sub(1)? / 2)?;
    let most = *sorted.last()?;
    let rank = busy.iter().position(|&seconds| seconds == most)?;
    (most > median * 4.0 / 3.0 && most > median + 1.0).then_some((rank, median))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_that_is_much_busier_than_most_stands_out() {
        assert_eq!(straggler(&[6.0, 6.1, 9.0, 5.9]), Some((2, 6.0)));
        assert_eq!(straggler(&[9.0, 6.0]), Some((0, 6.0)));
        // A quarter, and a moment, are no reason to speak.
        assert_eq!(straggler(&[6.0, 6.1, 7.5, 5.9]), None);
        assert_eq!(straggler(&[0.1, 0.1, 0.9]), None);
        assert_eq!(straggler(&[]), None);
    }

    #[test]
    fn waiting_is_not_being_busy() {
        let mut busy = Busy::default();
        let (second, tenth) = (Duration::from_secs(1), Duration::from_millis(100));
        for _ in 1..WINDOW {
            assert_eq!(busy.step(second, second - tenth), None);
        }
        let told = busy.step(second, second - tenth).unwrap();
        assert!((told - 3.2).abs() < 1e-9, "{told}");
        assert_eq!(busy.step(second, second), None);
    }
}
