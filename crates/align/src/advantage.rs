//! Advantages and policy-gradient losses, as functions of numbers.
//!
//! K responses y_1 … y_K are drawn from the rollout policy π_k for each prompt x. A response has a reward r, and each loss
//! here says how much it is and by how much each response's log-probability ℓ = log π_θ(y|x) should move it: with weights
//! w = -∂loss/∂ℓ the gradient is the one of `Σ w · (-ℓ)`, a weighted next-token loss, which is the only loss that the training
//! loop needs to know ([`crate::preference`] has the same seam).
//!
//! ```text
//! leave-one-out  A_i = R_i - 1/(K-1) Σ_{j≠i} R_j                      RLOO, arXiv 2402.14740
//! group          A_i = (r_i - mean r) / (std r + ε)                   GRPO, arXiv 2402.03300
//! regularised    R   = r - β log(π_k / π_ref)                         no gradient flows through it
//! RLOO           -1/n Σ A log π_θ
//! PPO-clip       -1/n Σ min(ρ A, clip(ρ, 1±ε) A),  ρ = π_θ / π_k      arXiv 1707.06347
//! MDLOO          -1/n Σ ρ A - γ (ρ log ρ - ρ + 1)                     AFM, arXiv 2407.21075; MDPO, arXiv 2005.09814
//! ```
//! What is deliberately not here: models, tokens but as log-probabilities, sampling.

use libm::{exp, sqrt};

/// A loss, and how it pulls on each log-probability.
#[derive(Clone, Debug, PartialEq)]
pub struct Surrogate {
    /// The loss.
    pub loss: f64,
    /// `-∂loss/∂ℓ` of each response: what its negative log-probability is weighted with.
    pub weights: Vec<f64>,
}

/// `A_i = R_i - 1/(K-1) Σ_{j≠i} R_j` of one prompt's rewards `[K]`. The baseline of a response does not depend on it, so the
/// gradient stays unbiased (Kool et al., 2019; RLOO, arXiv 2402.14740).
///
/// # Panics
/// When there are fewer than two: nothing is left when one is out.
pub fn leave_one_out(rewards: &[f64]) -> Vec<f64> {
    let others = rewards.len().checked_sub(1).filter(|&others| others > 0);
    let others = others.expect("leave-one-out needs two responses a prompt at least") as f64;
    let sum: f64 = rewards.iter().sum();
    rewards
        .iter()
        .map(|reward| reward - (sum - reward) / others)
        .collect()
}

/// `A_i = (r_i - mean r) / (std r + ε)` of one prompt's rewards `[K]`, with the deviation of the group itself (over K), as
/// GRPO has it (arXiv 2402.03300). Where all are equal the advantages are 0.
pub fn group_normalised(rewards: &[f64], epsilon: f64) -> Vec<f64> {
    let count = rewards.len().max(1) as f64;
    let mean = rewards.iter().sum::<f64>() / count;
    let square = rewards
        .iter()
        .map(|reward| (reward - mean) * (reward - mean))
        .sum::<f64>()
        / count;
    let scale = sqrt(square) + epsilon;
    let scale = if scale > 0.0 { scale } else { 1.0 };
    rewards
        .iter()
        .map(|reward| (reward - mean) / scale)
        .collect()
}

/// `R = r - β (log π_k - log π_ref)`, of each response: the reward that pays for leaving the reference.
///
/// # Panics
/// When there are not as many of each.
pub fn regularised_rewards(
    rewards: &[f64],
    rollout_log_probs: &[f64],
    reference_log_probs: &[f64],
    beta: f64,
) -> Vec<f64> {
    assert_eq!(
        (rollout_log_probs.len(), reference_log_probs.len()),
        (rewards.len(), rewards.len()),
        "log-probabilities of each response"
    );
    rewards
        .iter()
        .zip(rollout_log_probs.iter().zip(reference_log_probs))
        .map(|(reward, (rollout, reference))| reward - beta * (rollout - reference))
        .collect()
}

/// REINFORCE with the advantages `[n]` as they are: `-1/n Σ A ℓ`, at the rollout policy. With [`leave_one_out`] it is RLOO.
pub fn reinforce(advantages: &[f64], log_probs: &[f64]) -> Surrogate {
    mean(
        advantages
            .iter()
            .zip(log_probs)
            .map(|(&advantage, &log_prob)| (advantage * log_prob, advantage)),
        advantages.len(),
    )
}

/// PPO's clipped loss of each response as one action: `-1/n Σ min(ρ A, clip(ρ, 1-ε, 1+ε) A)` with `log ρ` in `log_ratios`.
/// Where the clip holds, the weight is 0.
pub fn ppo_clip(advantages: &[f64], log_ratios: &[f64], epsilon: f64) -> Surrogate {
    let one = |(&advantage, &log_ratio): (&f64, &f64)| {
        let ratio = exp(log_ratio);
        let clipped = ratio.clamp(1.0 - epsilon, 1.0 + epsilon);
        match ratio * advantage <= clipped * advantage {
            true => (ratio * advantage, ratio * advantage),
            false => (clipped * advantage, 0.0),
        }
    };
    mean(advantages.iter().zip(log_ratios).map(one), advantages.len())
}

/// Mirror descent with leave-one-out advantages: `-1/n Σ ρ A - γ (ρ log ρ - ρ + 1)`, `log ρ = log π_θ - log π_k` of the whole
/// response. Its weights are AFM's `ρ (A - γ log ρ) / n`; the term `ρ - 1`, whose mean under π_k is 0, makes the divergence of each
/// sample at least 0 and the gradient exactly that. At `ρ = 1` it is RLOO.
///
/// A whole response's ρ has a high variance, so `log ρ` counts as at most `clamp` away from 0 in the weights. Beyond, the loss goes
/// on as a straight line: a response that has gone too far can still come back.
pub fn mdloo(advantages: &[f64], log_ratios: &[f64], gamma: f64, clamp: f64) -> Surrogate {
    mean(
        advantages
            .iter()
            .zip(log_ratios)
            .map(|(&advantage, &log_ratio)| mirror(advantage, log_ratio, gamma, clamp)),
        advantages.len(),
    )
}

/// [`mdloo`] with ratios and divergence token by token: `-1/n Σ_i Σ_t ρ_t A_i - γ (ρ_t log ρ_t - ρ_t + 1)`, of `log_ratios[i][t]`.
/// It is another objective (each token's ratio takes the place of the response's) of far lower variance, and at `ρ = 1` RLOO too.
/// The weights are of all tokens, one response after another.
pub fn mdloo_by_token(
    advantages: &[f64],
    log_ratios: &[&[f64]],
    gamma: f64,
    clamp: f64,
) -> Surrogate {
    let tokens = advantages
        .iter()
        .zip(log_ratios)
        .flat_map(|(&advantage, ratios)| {
            ratios
                .iter()
                .map(move |&log_ratio| mirror(advantage, log_ratio, gamma, clamp))
        });
    mean(tokens, advantages.len())
}

/// What is gained by one action, and its derivative by `log_ratio`.
fn mirror(advantage: f64, log_ratio: f64, gamma: f64, clamp: f64) -> (f64, f64) {
    let inside = log_ratio.clamp(-clamp, clamp);
    let ratio = exp(inside);
    let gain = ratio * advantage - gamma * (ratio * inside - ratio + 1.0);
    let weight = ratio * (advantage - gamma * inside);
    (gain + weight * (log_ratio - inside), weight)
}

/// The loss of gains and their derivatives, over `count` responses.
fn mean(gains: impl Iterator<Item = (f64, f64)>, count: usize) -> Surrogate {
    let count = count.max(1) as f64;
    let (mut loss, mut weights) = (0.0, Vec::new());
    for (gain, weight) in gains {
        loss -= gain / count;
        weights.push(weight / count);
    }
    Surrogate { loss, weights }
}

#[cfg(test)]
mod tests;
