//! Watching the loss for spikes: steps whose documents a person should look at.
//!
//! ```text
//! spike  ⇔  loss > mean + k · deviation          after the first 50 steps
//! mean, variance ← exponential, over about 50 steps
//! ```
//! The mean follows the loss as it falls. A spike itself enters it at no more than the threshold, or one would hide the next.

use serde::{Deserialize, Serialize};

/// The share that a new loss has in the mean.
const GAIN: f64 = 0.02;
/// Losses that are seen before one can be a spike.
const FIRST: u64 = 50;

/// What is remembered of the losses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpikeWatch {
    seen: u64,
    mean: f64,
    variance: f64,
}

/// A loss that stands out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spike {
    /// The mean of the losses before.
    pub mean: f64,
    /// Their standard deviation.
    pub deviation: f64,
}

impl SpikeWatch {
    /// Takes the next loss in and says whether it is more than `deviations` standard deviations above the mean; 0 never is.
    pub fn take(&mut self, loss: f64, deviations: f64) -> Option<Spike> {
        let deviation = self.variance.sqrt();
        let limit = self.mean + deviations * deviation;
        let is_spike = deviations > 0.0 && self.seen >= FIRST && loss > limit;
        let spike = is_spike.then_some(Spike {
            mean: self.mean,
            deviation,
        });
        self.seen += 1;
        // The first losses have equal shares, so that the mean does not begin at zero.
        let gain = GAIN.max(1.0 / self.seen as f64);
        let away = if is_spike { limit } else { loss } - self.mean;
        self.mean += gain * away;
        self.variance = (1.0 - gain) * (self.variance + gain * away * away);
        spike
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use russet_kernels::random;

    /// A loss that falls from 8 to 3 with noise of 0.1.
    fn loss(step: u64) -> f64 {
        3.0 + 5.0 * (-(step as f64) / 100.0).exp() + 0.1 * f64::from(random::normal(1, 0, step))
    }

    #[test]
    fn a_falling_noisy_loss_has_no_spikes_and_a_jump_is_one() {
        let mut watch = SpikeWatch::default();
        for step in 0..2000 {
            assert_eq!(watch.take(loss(step), 6.0), None, "step {step}");
        }
        assert!((watch.mean - 3.0).abs() < 0.1 && (watch.variance.sqrt() - 0.1).abs() < 0.03);
        let spike = watch.take(4.5, 6.0).expect("a jump of 15 deviations");
        assert!((spike.mean - 3.0).abs() < 0.1 && (spike.deviation - 0.1).abs() < 0.03);
        assert!(
            watch.take(4.5, 6.0).is_some(),
            "the first does not hide the second"
        );
        assert_eq!(watch.take(4.5, 0.0), None, "0 never reports");
        assert_eq!(watch.take(1.0, 6.0), None, "a fall is none");
    }

    #[test]
    fn the_first_losses_are_none() {
        let mut watch = SpikeWatch::default();
        for step in 0..FIRST {
            let loss = if step % 10 == 9 { 100.0 } else { 1.0 };
            assert_eq!(watch.take(loss, 1.0), None);
        }
        assert!(watch.take(200.0, 1.0).is_some());
    }
}
