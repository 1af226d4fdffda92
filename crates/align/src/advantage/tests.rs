//! A policy that can be enumerated: 8 tokens, 3 places, 512 responses, a table of logits for each beginning. What papers
//! promise of means over all responses is computed, not estimated.

use super::*;
use libm::log;
use russet_kernels::random;

const VOCAB: usize = 8;
const RESPONSES: usize = VOCAB * VOCAB * VOCAB;
/// Beginnings: the empty one, 8 of one token, 64 of two.
const STATES: usize = 1 + VOCAB + VOCAB * VOCAB;

/// Logits of each beginning's next token.
#[derive(Clone)]
struct Table(Vec<[f64; VOCAB]>);

fn tokens(response: usize) -> [usize; 3] {
    [
        response / (VOCAB * VOCAB),
        response / VOCAB % VOCAB,
        response % VOCAB,
    ]
}

/// The beginnings before each token.
fn states(response: usize) -> [usize; 3] {
    let [first, second, _] = tokens(response);
    [0, 1 + first, 1 + VOCAB + first * VOCAB + second]
}

impl Table {
    fn random(seed: u64, scale: f64) -> Table {
        let logit = |state: usize| {
            let at = |token| random::normal(seed, state as u64, token as u64);
            std::array::from_fn(|token| scale * f64::from(at(token)))
        };
        Table((0..STATES).map(logit).collect())
    }

    fn log_shares(&self, state: usize) -> [f64; VOCAB] {
        let sum: f64 = self.0[state].iter().map(|&logit| exp(logit)).sum();
        self.0[state].map(|logit| logit - log(sum))
    }

    /// Of each token.
    fn token_log_probs(&self, response: usize) -> [f64; 3] {
        let (states, tokens) = (states(response), tokens(response));
        std::array::from_fn(|place| self.log_shares(states[place])[tokens[place]])
    }

    fn log_prob(&self, response: usize) -> f64 {
        self.token_log_probs(response).iter().sum()
    }

    /// Adds `weights[place] · ∇ log π(token at place)`.
    fn add_gradient(&self, response: usize, weights: [f64; 3], to: &mut [[f64; VOCAB]]) {
        let (states, tokens) = (states(response), tokens(response));
        for place in 0..3 {
            let shares = self.log_shares(states[place]).map(exp);
            let sums = &mut to[states[place]];
            for token in 0..VOCAB {
                sums[token] -= weights[place] * shares[token];
            }
            sums[tokens[place]] += weights[place];
        }
    }

    /// `-∇` of a loss given by weights of responses: what ascends.
    fn pull(&self, responses: &[usize], weights: &[f64]) -> Vec<[f64; VOCAB]> {
        let mut sum = vec![[0.0; VOCAB]; STATES];
        for (&response, &weight) in responses.iter().zip(weights) {
            self.add_gradient(response, [weight; 3], &mut sum);
        }
        sum
    }

    fn step(&mut self, pull: &[[f64; VOCAB]], rate: f64) {
        for (logits, pulls) in self.0.iter_mut().zip(pull) {
            for (logit, pull) in logits.iter_mut().zip(pulls) {
                *logit += rate * pull;
            }
        }
    }

    /// Responses drawn by the policy.
    fn draw(&self, count: usize, seed: u64) -> Vec<usize> {
        let mut sum = 0.0;
        let up_to: Vec<f64> = (0..RESPONSES)
            .map(|response| {
                sum += exp(self.log_prob(response));
                sum
            })
            .collect();
        let one = |number| {
            let at = f64::from(random::uniform(seed, 7, number)) * sum;
            up_to
                .partition_point(|&upper| upper <= at)
                .min(RESPONSES - 1)
        };
        (0..count as u64).map(one).collect()
    }
}

fn reward(response: usize) -> f64 {
    2.0 * f64::from(random::uniform(11, 3, response as u64)) - 1.0
}

fn flat(table: &[[f64; VOCAB]]) -> impl Iterator<Item = f64> {
    table.iter().flatten().copied()
}

fn near(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-12, "{a} and {b}");
}

#[test]
fn advantages_equal_values_by_hand() {
    assert_eq!(leave_one_out(&[1.0, 2.0, 6.0]), [-3.0, -1.5, 4.5]);
    // mean 3, deviation √(14/3)
    let group = group_normalised(&[1.0, 2.0, 6.0], 0.0);
    let deviation = sqrt(14.0 / 3.0);
    for (found, wanted) in group.into_iter().zip([-2.0, -1.0, 3.0]) {
        near(found, wanted / deviation);
    }
    assert_eq!(group_normalised(&[0.5; 4], 0.0), [0.0; 4]);
    let regularised = regularised_rewards(&[1.0, 1.0], &[-2.0, -4.0], &[-3.0, -3.0], 0.5);
    assert_eq!(regularised, [0.5, 1.5]);
    // ρ = 1.5 is clipped at 1.2 where the advantage is positive and counts in full where it is not.
    let clipped = ppo_clip(&[2.0, -2.0], &[log(1.5), log(1.5)], 0.2);
    near(clipped.loss, -(2.4 - 3.0) / 2.0);
    assert_eq!(clipped.weights[0], 0.0);
    near(clipped.weights[1], -1.5);
    // ρ = 2, A = 1, γ = 0.5: gain 2 - 0.5 (2 ln 2 - 1), weight 2 (1 - 0.5 ln 2).
    let mirrored = mdloo(&[1.0], &[log(2.0)], 0.5, 10.0);
    near(mirrored.loss, -(2.0 - 0.5 * (2.0 * log(2.0) - 1.0)));
    near(mirrored.weights[0], 2.0 * (1.0 - 0.5 * log(2.0)));
}

#[test]
fn weights_are_the_slopes_of_the_losses() {
    let advantages = [0.7, -1.1, 0.4, 2.0, -0.3];
    // The last two lie beyond the clamp and the clip.
    let ratios = [0.05, -0.1, 0.0, 0.9, -1.3];
    type Loss = fn(&[f64], &[f64]) -> Surrogate;
    let losses: [Loss; 4] = [
        |a, l| mdloo(a, l, 0.3, 0.5),
        |a, l| ppo_clip(a, l, 0.2),
        reinforce,
        |a, l| {
            let parts: Vec<&[f64]> = l.iter().map(std::slice::from_ref).collect();
            mdloo_by_token(a, &parts, 0.3, 0.5)
        },
    ];
    for (number, loss) in losses.into_iter().enumerate() {
        let weights = loss(&advantages, &ratios).weights;
        for place in 0..ratios.len() {
            let moved = |by: f64| {
                let mut ratios = ratios;
                ratios[place] += by;
                loss(&advantages, &ratios).loss
            };
            let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!(
                (slope + weights[place]).abs() < 1e-8,
                "loss {number}, response {place}: {slope} and {}",
                weights[place]
            );
        }
    }
}

/// At the rollout policy all are `-1/n Σ A ∇ log π`.
#[test]
fn one_step_a_batch_is_rloo() {
    let policy = Table::random(1, 0.5);
    let reference = Table::random(2, 0.5);
    let responses = policy.draw(16, 5);
    let log_probs: Vec<f64> = responses.iter().map(|&y| policy.log_prob(y)).collect();
    let references: Vec<f64> = responses.iter().map(|&y| reference.log_prob(y)).collect();
    let rewards: Vec<f64> = responses.iter().map(|&y| reward(y)).collect();
    let rewards = regularised_rewards(&rewards, &log_probs, &references, 0.1);
    let advantages = leave_one_out(&rewards);
    // RLOO by its own formula.
    let mut by_formula = vec![[0.0; VOCAB]; STATES];
    for (place, &response) in responses.iter().enumerate() {
        let others: f64 = (0..16).filter(|&j| j != place).map(|j| rewards[j]).sum();
        let weight = (rewards[place] - others / 15.0) / 16.0;
        policy.add_gradient(response, [weight; 3], &mut by_formula);
    }
    let still = vec![0.0; 16];
    for made in [
        mdloo(&advantages, &still, 0.7, 2.0),
        reinforce(&advantages, &log_probs),
        ppo_clip(&advantages, &still, 0.2),
    ] {
        let pull = policy.pull(&responses, &made.weights);
        for (found, wanted) in flat(&pull).zip(flat(&by_formula)) {
            assert!((found - wanted).abs() < 1e-6, "{found} and {wanted}");
        }
    }
    let still: Vec<&[f64]> = vec![&[0.0; 3]; 16];
    let made = mdloo_by_token(&advantages, &still, 0.7, 2.0);
    let mut pull = vec![[0.0; VOCAB]; STATES];
    for (&response, weights) in responses.iter().zip(made.weights.chunks_exact(3)) {
        policy.add_gradient(response, weights.try_into().unwrap(), &mut pull);
    }
    for (found, wanted) in flat(&pull).zip(flat(&by_formula)) {
        assert!((found - wanted).abs() < 1e-6, "{found} and {wanted}");
    }
}

/// All 262,144 pairs of responses, K = 2: the mean of the estimate is the true gradient, and it scatters less about it than
/// without a baseline. Rewards lie around 1, so that a baseline has something to take away.
#[test]
fn leave_one_out_is_unbiased_and_scatters_less() {
    let policy = Table::random(4, 0.7);
    let shares: Vec<f64> = (0..RESPONSES).map(|y| exp(policy.log_prob(y))).collect();
    let rewards: Vec<f64> = (0..RESPONSES).map(|y| 1.0 + reward(y)).collect();
    // ∇ E r = Σ π(y) r(y) ∇ log π(y)
    let weights: Vec<f64> = shares.iter().zip(&rewards).map(|(p, r)| p * r).collect();
    let all: Vec<usize> = (0..RESPONSES).collect();
    let truth = policy.pull(&all, &weights);
    // Gradients ∇ log π(y) as vectors, their squares and products, once.
    let scores: Vec<Vec<f64>> = all
        .iter()
        .map(|&y| flat(&policy.pull(&[y], &[1.0])).collect())
        .collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (mut mean, mut square, mut square_without) = (vec![0.0; RESPONSES], 0.0, 0.0);
    for a in 0..RESPONSES {
        for b in 0..RESPONSES {
            let share = shares[a] * shares[b];
            let product = dot_of(&scores, a, b, &dot);
            let (aa, bb) = (dot_of(&scores, a, a, &dot), dot_of(&scores, b, b, &dot));
            let norm =
                |w: &[f64]| w[0] * w[0] * aa + 2.0 * w[0] * w[1] * product + w[1] * w[1] * bb;
            let own = reinforce(&leave_one_out(&[rewards[a], rewards[b]]), &[0.0; 2]).weights;
            let without = reinforce(&[rewards[a], rewards[b]], &[0.0; 2]).weights;
            square += share * norm(&own);
            square_without += share * norm(&without);
            mean[a] += share * own[0];
            mean[b] += share * own[1];
        }
    }
    let mean = policy.pull(&all, &mean);
    for (found, wanted) in flat(&mean).zip(flat(&truth)) {
        assert!((found - wanted).abs() < 1e-12, "{found} and {wanted}");
    }
    let truth: f64 = flat(&truth).map(|g| g * g).sum();
    let (variance, without) = (square - truth, square_without - truth);
    assert!(variance < 0.5 * without, "{variance} and {without}");
}

/// `scores[a] · scores[b]`, which is not 0 only where the responses share a beginning.
fn dot_of(scores: &[Vec<f64>], a: usize, b: usize, dot: &impl Fn(&[f64], &[f64]) -> f64) -> f64 {
    let (of_a, of_b) = (states(a), states(b));
    (0..3)
        .filter(|&place| of_a[place] == of_b[place])
        .map(|place| dot(row(scores, a, of_a[place]), row(scores, b, of_b[place])))
        .sum()
}

fn row(scores: &[Vec<f64>], response: usize, state: usize) -> &[f64] {
    &scores[response][state * VOCAB..][..VOCAB]
}

/// The optimum of `E r - β KL(π ‖ π_ref)` is `π* ∝ π_ref exp(r / β)` (arXiv 2305.18290, its appendix A.1). There `R` is the same
/// for every response, so nothing scatters any longer, and drawing a few responses is enough to arrive.
#[test]
fn mdloo_arrives_at_the_regularised_optimum() {
    let (beta, samples, steps, rate) = (1.0, 64, 4, 4.0);
    let reference = Table::random(2, 0.5);
    let tilted: Vec<f64> = (0..RESPONSES)
        .map(|y| exp(reference.log_prob(y) + reward(y) / beta))
        .collect();
    let sum: f64 = tilted.iter().sum();
    let distance = |policy: &Table| {
        let off = |y: usize| (exp(policy.log_prob(y)) - tilted[y] / sum).abs();
        0.5 * (0..RESPONSES).map(off).sum::<f64>()
    };
    let mut policy = reference.clone();
    let begins = distance(&policy);
    assert!(begins > 0.2, "{begins}");
    for round in 0..2000 {
        let responses = policy.draw(samples, round);
        let rollout: Vec<f64> = responses.iter().map(|&y| policy.log_prob(y)).collect();
        let references: Vec<f64> = responses.iter().map(|&y| reference.log_prob(y)).collect();
        let rewards: Vec<f64> = responses.iter().map(|&y| reward(y)).collect();
        let regularised = regularised_rewards(&rewards, &rollout, &references, beta);
        let advantages = leave_one_out(&regularised);
        for _ in 0..steps {
            let ratios: Vec<f64> = responses
                .iter()
                .zip(&rollout)
                .map(|(&y, rollout)| policy.log_prob(y) - rollout)
                .collect();
            let made = mdloo(&advantages, &ratios, 1.0, 2.0);
            let pull = policy.pull(&responses, &made.weights);
            policy.step(&pull, rate);
        }
    }
    let ends = distance(&policy);
    assert!(ends < 1e-3, "{begins} to {ends}");
}
