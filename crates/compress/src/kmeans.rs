//! Weighted k-means on a line, solved exactly.
//!
//! On a line the best clusters are intervals of the sorted points, so with `cost(i, j)` the weighted squared error of
//! points i..j around their mean, the best k clusters of the first n points follow from
//! ```text
//! best(k, n) = minᵢ best(k − 1, i) + cost(i, n)
//! ```
//! The minimising i never falls as n grows, so a layer is filled by divide and conquer in n log n
//! (Wang and Song, *Ckmeans.1d.dp*, 2011; Grønlund et al., arXiv 1701.07204). What is left out: SMAWK, which would save
//! the log n of a step that takes a twentieth of the time.

use std::ops::Range;

/// Points in ascending order, by what sums over intervals need.
pub(crate) struct Sorted {
    /// Σω, Σωx and Σωx² of the points before, one more than there are points.
    before: Vec<[f64; 3]>,
}

/// The best clusters of [`Sorted`] points.
#[derive(Debug)]
pub(crate) struct Clusters {
    /// Which points each cluster has, in order. Some are empty where there are fewer points than clusters.
    pub members: Vec<Range<usize>>,
    /// Σ ω (x − mean)² over all points; the tests hold it against brute force.
    #[cfg(test)]
    pub cost: f64,
}

impl Sorted {
    /// Points given as `[ω, ωx, ωx²]`, with x ascending. A histogram's bin is one point with the sums of what fell into it.
    pub fn new(points: impl Iterator<Item = [f64; 3]>) -> Sorted {
        let mut sums = [0.0; 3];
        let mut before = vec![sums];
        before.extend(points.map(|point| {
            for (sum, x) in sums.iter_mut().zip(point) {
                *sum += x;
            }
            sums
        }));
        Sorted { before }
    }

    /// How many points.
    pub fn len(&self) -> usize {
        self.before.len() - 1
    }

    fn sums(&self, points: Range<usize>) -> [f64; 3] {
        let (a, b) = (self.before[points.start], self.before[points.end]);
        [b[0] - a[0], b[1] - a[1], b[2] - a[2]]
    }

    fn cost(&self, points: Range<usize>) -> f64 {
        let [weight, first, second] = self.sums(points);
        // Rounding may leave a sum of squares a little below the square of the sum.
        if weight > 0.0 {
            (second - first * first / weight).max(0.0)
        } else {
            0.0
        }
    }

    /// The weighted mean of some points; nothing where they weigh nothing.
    pub fn mean(&self, points: Range<usize>) -> Option<f64> {
        let [weight, first, _] = self.sums(points);
        (weight > 0.0).then(|| first / weight)
    }

    /// The best partition into each number of clusters.
    pub fn cluster(&self, counts: &[usize]) -> Vec<Clusters> {
        let n = self.len();
        let mut best: Vec<f64> = (0..=n).map(|end| self.cost(0..end)).collect();
        let mut next = vec![0.0; n + 1];
        let mut splits: Vec<Vec<usize>> = Vec::new(); // [k - 1][n + 1]: where the last of 2, 3, … clusters begins
        #[cfg(test)]
        let mut costs = vec![best[n]];
        for _ in 1..counts.iter().copied().max().unwrap_or(1) {
            let mut split = vec![0; n + 1];
            self.layer(&best, &mut next, &mut split, 0..n + 1, 0..n + 1);
            splits.push(split);
            std::mem::swap(&mut best, &mut next);
            #[cfg(test)]
            costs.push(best[n]);
        }
        let of = |&k: &usize| {
            let mut end = n;
            let mut members: Vec<Range<usize>> = splits[..k - 1]
                .iter()
                .rev()
                .map(|split| {
                    let start = split[end];
                    let range = start..end;
                    end = start;
                    range
                })
                .collect();
            members.push(0..end);
            members.reverse();
            Clusters {
                members,
                #[cfg(test)]
                cost: costs[k - 1],
            }
        };
        counts.iter().map(of).collect()
    }

    /// Fills `next[ends]`, whose best splits lie in `starts`.
    fn layer(
        &self,
        best: &[f64],
        next: &mut [f64],
        split: &mut [usize],
        ends: Range<usize>,
        starts: Range<usize>,
    ) {
        if ends.is_empty() {
            return;
        }
        let end = ends.start + ends.len() / 2;
        let (mut least, mut at) = (f64::INFINITY, starts.start);
        let candidates = starts.start..starts.end.min(end + 1);
        for (start, before) in candidates.clone().zip(&best[candidates]) {
            let cost = before + self.cost(start..end);
            if cost < least {
                (least, at) = (cost, start);
            }
        }
        (next[end], split[end]) = (least, at);
        self.layer(best, next, split, ends.start..end, starts.start..at + 1);
        self.layer(best, next, split, end + 1..ends.end, at..starts.end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sorted(points: &[(f64, f64)]) -> Sorted {
        let mut points = points.to_vec();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Sorted::new(points.iter().map(|&(x, w)| [w, w * x, w * x * x]))
    }

    /// The least cost over all ways to cut the first `n` points into `k` intervals: the oracle.
    fn brute(points: &Sorted, n: usize, k: usize) -> f64 {
        match k {
            1 => points.cost(0..n),
            _ => (0..=n)
                .map(|i| brute(points, i, k - 1) + points.cost(i..n))
                .fold(f64::INFINITY, f64::min),
        }
    }

    fn check(points: &[(f64, f64)], k: usize) -> Clusters {
        let points = sorted(points);
        let clusters = points.cluster(&[k]).remove(0);
        let want = brute(&points, points.len(), k);
        let scale = points.before[points.len()][2].max(1e-12);
        assert!(
            (clusters.cost - want).abs() <= 1e-12 * scale,
            "{} clusters cost {}, least {want}",
            k,
            clusters.cost
        );
        assert_eq!(clusters.members.len(), k);
        assert_eq!(
            (clusters.members[0].start, clusters.members[k - 1].end),
            (0, points.len())
        );
        assert!(
            clusters
                .members
                .windows(2)
                .all(|pair| pair[0].end == pair[1].start),
            "{:?}",
            clusters.members
        );
        let sum: f64 = clusters
            .members
            .iter()
            .map(|members| points.cost(members.clone()))
            .sum();
        assert!(
            (sum - clusters.cost).abs() <= 1e-12 * scale,
            "the members cost {sum}, said to be {}",
            clusters.cost
        );
        clusters
    }

    #[test]
    fn two_heaps_are_found_whatever_their_weights() {
        let clusters = check(&[(1.0, 1.0), (1.1, 5.0), (7.0, 0.1), (7.2, 0.1)], 2);
        assert_eq!(clusters.members, [0..2, 2..4]);
    }

    /// Lloyd's way on a line, over the same sums: borders halfway between means, until nothing moves. Begins with equal weights.
    fn lloyd(points: &Sorted, x: &[f64], k: usize) -> f64 {
        let total = points.before[points.len()][0];
        let at = |weight: f64| points.before.partition_point(|sums| sums[0] < weight);
        let mut borders: Vec<usize> = (0..=k)
            .map(|j| at(total * j as f64 / k as f64).min(points.len()))
            .collect();
        borders[k] = points.len();
        for _ in 0..200 {
            let means: Vec<Option<f64>> = borders
                .windows(2)
                .map(|b| points.mean(b[0]..b[1]))
                .collect();
            let before = borders.clone();
            for j in 1..k {
                if let (Some(a), Some(b)) = (means[j - 1], means[j]) {
                    borders[j] = x.partition_point(|&x| x < 0.5 * (a + b));
                }
            }
            if borders == before {
                break;
            }
        }
        borders.windows(2).map(|b| points.cost(b[0]..b[1])).sum()
    }

    /// What the figures in LOG.md come from: `cargo test -p russet-compress --lib lloyd -- --nocapture`.
    #[test]
    #[allow(
        clippy::print_stdout,
        reason = "a figure for whoever asks for it with --nocapture"
    )]
    fn lloyd_is_never_better_and_seldom_as_good() {
        for k in [4usize, 8, 16] {
            let (mut exact_cost, mut lloyd_cost) = (0.0, 0.0);
            let (mut exact_time, mut lloyd_time) = (0.0, 0.0);
            for seed in 0..20 {
                // A strip of 16 x 256 weights of a normal shape, on 1024 bins.
                let normal = |i: u64| -> f64 {
                    let sum: f64 = (0..12)
                        .map(|j| f64::from(russet_kernels::random::uniform(seed, i, j)))
                        .sum();
                    sum - 6.0
                };
                let mut bins = vec![[0.0; 3]; 1024];
                for i in 0..4096 {
                    let (x, weight) = (normal(i), normal(i + 5000).powi(2));
                    let bin = &mut bins[((x + 4.0) * 128.0).clamp(0.0, 1023.0) as usize];
                    for (sum, part) in bin.iter_mut().zip([weight, weight * x, weight * x * x]) {
                        *sum += part;
                    }
                }
                bins.retain(|bin| bin[0] > 0.0);
                let x: Vec<f64> = bins.iter().map(|bin| bin[1] / bin[0]).collect();
                let points = Sorted::new(bins.into_iter());
                let start = std::time::Instant::now();
                let exact = points.cluster(&[k]).remove(0).cost;
                exact_time += start.elapsed().as_secs_f64();
                let start = std::time::Instant::now();
                let plain = lloyd(&points, &x, k);
                lloyd_time += start.elapsed().as_secs_f64();
                assert!(
                    exact <= plain * (1.0 + 1e-9),
                    "{exact} is more than {plain}"
                );
                (exact_cost, lloyd_cost) = (exact_cost + exact, lloyd_cost + plain);
            }
            let more = lloyd_cost / exact_cost - 1.0;
            println!(
                "{k} entries: Lloyd's cost {:.2} % more; {:.0} us a strip exactly, {:.0} us Lloyd",
                100.0 * more,
                5e4 * exact_time,
                5e4 * lloyd_time
            );
            assert!(more > 1e-4, "Lloyd found the best {k} every time");
        }
    }

    #[test]
    fn points_that_weigh_nothing_cost_nothing() {
        check(&[(0.0, 0.0), (1.0, 0.0), (2.0, 1.0), (5.0, 0.0)], 2);
        assert_eq!(check(&[(0.0, 0.0), (3.0, 0.0)], 3).cost, 0.0);
    }

    #[test]
    fn more_clusters_than_points_cost_nothing() {
        assert_eq!(check(&[(1.0, 2.0), (4.0, 1.0)], 4).cost, 0.0);
    }

    proptest! {
        #[test]
        fn dynamic_programming_equals_brute_force(
            points in prop::collection::vec((-4.0..4.0f64, 0.0..3.0f64), 1..11),
            k in 1usize..5,
        ) {
            check(&points, k);
        }

        #[test]
        fn another_cluster_never_costs_more(points in prop::collection::vec((-4.0..4.0f64, 0.01..3.0f64), 1..60)) {
            let points = sorted(&points);
            let costs: Vec<f64> = (1..9).map(|k| points.cluster(&[k]).remove(0).cost).collect();
            prop_assert!(costs.windows(2).all(|pair| pair[1] <= pair[0] + 1e-9), "{:?}", costs);
        }
    }
}
