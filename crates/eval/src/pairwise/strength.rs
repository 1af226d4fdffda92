//! How strong models are, from who beat whom.
//!
//! Bradley and Terry: p(i beats j) = 1 / (1 + e^(θⱼ − θᵢ)). The likelihood of all scores, a tie being half a win for each, is
//! maximised by Newton's method. To it belongs a weak prior on each θ, normal with deviation 10: it moves nothing that a few games
//! can see, gives a model that never lost a large strength and not an infinite one, and centres models that never met.
//! Elo: each game in turn moves both ratings by K · (score − expected); the games come in another random order in each round.

use russet_kernels::random;

use crate::stats::{logistic, softplus};

/// A strength of 1 in points of Elo: 400 / ln 10.
pub const SCALE: f64 = 400.0 / std::f64::consts::LN_10;

/// Of the prior: 1 / 10².
const PRIOR: f64 = 0.01;

/// How far one game moves a rating; small, since the models do not change while they play.
const K: f64 = 4.0;

const ORDER: u64 = 0x454c_4f5f_4f52_4445;

/// The strengths of `models` models from games of (first, second, score of the second); their mean is 0. Games of a model against itself
/// say nothing.
pub fn bradley_terry(
    models: usize,
    games: impl IntoIterator<Item = (usize, usize, f64)>,
) -> Vec<f64> {
    // [M, M]: what the row's model has won of the column's.
    let mut won = vec![0.0; models * models];
    for (first, second, score) in games {
        if first != second {
            won[second * models + first] += score;
            won[first * models + second] += 1.0 - score;
        }
    }
    let loss = |theta: &[f64]| {
        let mut loss = PRIOR / 2.0 * theta.iter().map(|value| value * value).sum::<f64>();
        for (i, one) in theta.iter().enumerate() {
            for (j, two) in theta.iter().enumerate() {
                if won[i * models + j] > 0.0 {
                    loss += won[i * models + j] * softplus(two - one);
                }
            }
        }
        loss
    };
    let mut theta = vec![0.0; models];
    let mut now = loss(&theta);
    for _ in 0..100 {
        let mut gradient: Vec<f64> = theta.iter().map(|value| PRIOR * value).collect();
        let mut curvature = vec![0.0; models * models];
        curvature
            .iter_mut()
            .step_by(models + 1)
            .for_each(|own| *own = PRIOR);
        let pairs = (0..models).flat_map(|i| (0..i).map(move |j| (i, j)));
        for (i, j) in pairs {
            let (wins, losses) = (won[i * models + j], won[j * models + i]);
            if wins + losses == 0.0 {
                continue;
            }
            let p = logistic(theta[i] - theta[j]);
            let slope = (wins + losses) * p - wins;
            gradient[i] += slope;
            gradient[j] -= slope;
            let bend = (wins + losses) * p * (1.0 - p);
            curvature[i * models + i] += bend;
            curvature[j * models + j] += bend;
            curvature[i * models + j] -= bend;
            curvature[j * models + i] -= bend;
        }
        let step = solve(&mut curvature, gradient);
        let (mut rate, before) = (1.0, now);
        let next = loop {
            let next: Vec<f64> = theta
                .iter()
                .zip(&step)
                .map(|(value, step)| value - rate * step)
                .collect();
            now = loss(&next);
            // Near the end rounding decides, and the step is right.
            if now <= before + 1e-13 * before || rate < 1e-6 {
                break next;
            }
            rate /= 2.0;
        };
        theta = next;
        if step.iter().all(|step| step.abs() < 1e-10) {
            break;
        }
    }
    theta
}

/// x of A x = b, A symmetric and positive definite: Cholesky, in place.
#[allow(clippy::needless_range_loop, reason = "the textbook's indices")]
pub(super) fn solve(a: &mut [f64], mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for i in 0..n {
        for j in 0..=i {
            let dot: f64 = (0..j).map(|k| a[i * n + k] * a[j * n + k]).sum();
            let value = a[i * n + j] - dot;
            a[i * n + j] = match i == j {
                true => value.max(f64::MIN_POSITIVE).sqrt(),
                false => value / a[j * n + j],
            };
        }
        let dot: f64 = (0..i).map(|k| a[i * n + k] * b[k]).sum();
        b[i] = (b[i] - dot) / a[i * n + i];
    }
    for i in (0..n).rev() {
        let dot: f64 = (i + 1..n).map(|k| a[k * n + i] * b[k]).sum();
        b[i] = (b[i] - dot) / a[i * n + i];
    }
    b
}

/// Elo ratings after the drawn games in a random order; all begin at 1000.
pub(super) fn elo(
    games: &[(usize, usize, f64)],
    drawn: &[usize],
    models: usize,
    seed: u64,
    round: u64,
) -> Vec<f64> {
    let mut order: Vec<(u64, usize)> = drawn
        .iter()
        .zip(0..)
        .map(|(&game, place)| (random::hash(seed ^ ORDER, round, place), game))
        .collect();
    order.sort_unstable();
    let mut ratings = vec![1000.0; models];
    for (_, game) in order {
        let (first, second, score) = games[game];
        let expected = logistic((ratings[second] - ratings[first]) / SCALE);
        let change = K * (score - expected);
        ratings[second] += change;
        ratings[first] -= change;
    }
    ratings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_models_have_the_odds_of_their_games() {
        // 30 of 40: ln 3 apart, but for the prior.
        let games = (0..40).map(|i| (0, 1, f64::from(u8::from(i < 30))));
        let theta = bradley_terry(2, games);
        assert!(
            (theta[1] - theta[0] - 3.0f64.ln()).abs() < 1e-3,
            "{theta:?}"
        );
        assert!((theta[0] + theta[1]).abs() < 1e-9);
    }

    #[test]
    fn who_never_lost_is_strong_and_who_never_played_is_average() {
        let theta = bradley_terry(3, (0..40).map(|_| (0, 1, 1.0)));
        assert!(theta[1] > 2.0 && theta[1] < 10.0, "{theta:?}");
        assert_eq!(theta[2], 0.0);
        assert_eq!(bradley_terry(1, [(0, 0, 1.0)]), [0.0]);
    }

    #[test]
    fn elo_goes_where_the_games_point() {
        let games: Vec<(usize, usize, f64)> = (0..400)
            .map(|i| (0, 1, f64::from(u8::from(i % 4 > 0))))
            .collect();
        let drawn: Vec<usize> = (0..400).collect();
        let ratings = elo(&games, &drawn, 2, 0, 0);
        // ln 3 in points is 190.8; the last games weigh most.
        assert!(
            (ratings[1] - ratings[0] - 190.8).abs() < 60.0,
            "{ratings:?}"
        );
        assert_eq!(ratings, elo(&games, &drawn, 2, 0, 0));
    }
}
