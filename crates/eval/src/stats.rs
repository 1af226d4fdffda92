//! Means, their errors, and intervals by resampling.

use russet_kernels::random;

/// What the random numbers of resampling are for.
const RESAMPLE: u64 = 0x424f_4f54_5354_5250;

/// The arithmetic mean; not a number of nothing.
pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The standard error of the mean, the deviation over n − 1; none of fewer than two.
pub(crate) fn standard_error(values: &[f64]) -> Option<f64> {
    deviation(values).map(|deviation| deviation / (values.len() as f64).sqrt())
}

/// The standard deviation over n − 1; none of fewer than two.
pub(crate) fn deviation(values: &[f64]) -> Option<f64> {
    let middle = mean(values);
    let squares: f64 = values.iter().map(|value| (value - middle).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

/// 1 / (1 + e^−x) without overflow.
pub(crate) fn logistic(x: f64) -> f64 {
    match x >= 0.0 {
        true => 1.0 / (1.0 + libm::exp(-x)),
        false => libm::exp(x) / (1.0 + libm::exp(x)),
    }
}

/// ln(1 + e^x) without overflow.
pub(crate) fn softplus(x: f64) -> f64 {
    x.max(0.0) + libm::log1p(libm::exp(-x.abs()))
}

/// The middle 95 % of draws, interpolated between them; sorts them.
pub(crate) fn interval(draws: &mut [f64]) -> [f64; 2] {
    draws.sort_unstable_by(f64::total_cmp);
    [0.025, 0.975].map(|share| quantile(draws, share))
}

/// Of sorted draws.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

/// Which of `count` clusters a round of resampling takes, with replacement.
pub(crate) fn resample(seed: u64, round: u64, count: usize) -> impl Iterator<Item = usize> {
    (0..count as u64)
        .map(move |draw| random::below(seed ^ RESAMPLE, round, draw, count as u64) as usize)
}

/// The 95 % interval of a mean, by resampling the values; none of fewer than two.
pub fn mean_interval(values: &[f64], rounds: usize, seed: u64) -> Option<[f64; 2]> {
    let alone: Vec<Vec<usize>> = (0..values.len()).map(|place| vec![place]).collect();
    cluster_interval(values, &alone, rounds, seed)
}

/// The same of values that belong together, by resampling clusters of their places; none of fewer than two clusters.
pub(crate) fn cluster_interval(
    values: &[f64],
    clusters: &[Vec<usize>],
    rounds: usize,
    seed: u64,
) -> Option<[f64; 2]> {
    if clusters.len() < 2 || rounds == 0 {
        return None;
    }
    let sums = clusters.iter().map(|cluster| {
        let sum: f64 = cluster.iter().map(|place| values[*place]).sum();
        (sum, cluster.len() as f64)
    });
    let sums: Vec<(f64, f64)> = sums.collect();
    let round = |round| {
        let drawn = resample(seed, round, sums.len()).map(|place| sums[place]);
        let (sum, count) = drawn.fold((0.0, 0.0), |all, one| (all.0 + one.0, all.1 + one.1));
        sum / count
    };
    let mut means: Vec<f64> = (0..rounds as u64).map(round).collect();
    Some(interval(&mut means))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_errors_are_the_textbooks() {
        let values = [1.0, 2.0, 4.0];
        assert!((standard_error(&values).unwrap() - 0.881_917_103_688_196_9).abs() < 1e-15);
        assert_eq!(standard_error(&[1.0]), None);
        assert_eq!(quantile(&[0.0, 10.0], 0.975), 9.75);
        assert_eq!((logistic(-800.0), logistic(800.0)), (0.0, 1.0));
        assert_eq!((softplus(-800.0), softplus(800.0)), (0.0, 800.0));
    }

    #[test]
    fn an_interval_of_a_mean_has_the_width_that_theory_gives() {
        // Half zeros, half ones: 1.96 · 0.5 / √400 = 0.049 to either side.
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 2)).collect();
        let [low, high] = mean_interval(&values, 2000, 3).unwrap();
        assert!(
            (low - 0.451).abs() < 0.006 && (high - 0.549).abs() < 0.006,
            "{low} {high}"
        );
        assert_eq!(mean_interval(&values, 50, 3), mean_interval(&values, 50, 3));
        assert_ne!(mean_interval(&values, 50, 3), mean_interval(&values, 50, 4));
    }
}
