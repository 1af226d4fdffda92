//! Reinforcement learning from rewards: answers are drawn, judged, and made more or less probable.
//!
//! ```text
//!        ┌── θ_k ──▶ engine: K answers a prompt ─▶ rewards ─▶ advantages ─┐
//! prompts┤                                                               ├─▶ the loop, several steps a batch ─▶ θ_{k+1}
//!        └── log π_θk, log π_ref ─────────────────────────────────────────┘
//! ```
//! MDLOO (AFM, arXiv 2407.21075) and its relatives, as settings of one table:
//! ```text
//! R(x, y) = r(x, y) - β log(π_θk(y|x) / π_ref(y|x))            A_i = R_i - mean of the others to the prompt
//! mdloo     -1/n Σ ρ A - γ D,  ρ = π_θ / π_θk                  D by answer, by token, or over the vocabulary
//! rloo      -1/n Σ A log π_θ          ppo, grpo   -1/n Σ min(ρ A, clip(ρ) A)
//! ```
//! The formulas are [`crate::advantage`]'s. Here they meet a decoder: a loss of log-probabilities is a weighted next-token loss with
//! its slopes as weights, as in [`crate::dpo`], so there is no second loop, forward pass or head.
//!
//! - [`rollout`] makes a batch: it is [`russet_train::Batches`], and looks at the model that the loop trains.
//! - [`PolicyGradient`] is the [`Objective`] of its steps.
//! - [`Plan`] is a checked recipe, and runs.
//!
//! Generation is synchronous: answers are drawn by the weights that the first step on them begins with (staleness 0), through a
//! second hold on the same weights, not a copy. Temperature is 1 and nothing is cut off, or the answers would not be the policy's.

pub mod plan;
pub mod prompts;
pub mod rollout;
pub mod settings;

use std::sync::{Arc, Mutex, MutexGuard};

use libm::exp;
use russet_model::{Decoder, Embedding};
use russet_tensor::ops::{self, TokenLoss, stand_in};
use russet_tensor::{Ctx, Tensor};
use russet_train::{Batch, Objective};

pub use plan::{Plan, Sources};
pub use settings::{Algorithm, Coefficient, Divergence, RlhfSettings, Settings};

use crate::advantage::{Surrogate, mdloo, mdloo_by_token, ppo_clip, reinforce};

/// An answer that the policy has given, and what came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rolled {
    /// Prompt and answer without its last token, `[N]`.
    pub inputs: Vec<u32>,
    /// What follows each where it is the answer's, `IGNORE` elsewhere, `[N]`.
    pub targets: Vec<u32>,
    /// `log π_θk` of each token of the answer, `[T]`: the last T of the targets.
    pub log_probs: Vec<f32>,
    /// What the objective raises it by.
    pub advantage: f64,
    /// The rollout policy's hidden states before the answer's tokens, `[T, D]`, where the divergence is over the vocabulary.
    pub hidden: Vec<f32>,
}

/// What the batches and the objective of a run tell one another.
#[derive(Debug, Default)]
pub(crate) struct Board {
    /// The answers of the batch.
    pub answers: Vec<Rolled>,
    /// The rollout policy's output table, where the divergence is over the vocabulary.
    pub table: Option<Tensor>,
    /// Which batch, counted from 0.
    pub batch: u64,
    /// Steps that have begun on it.
    pub used: u64,
    /// Steps that have begun in all.
    pub step: u64,
    /// Whether the policy has gone further from the rollout policy than it may.
    pub over: bool,
    /// What the log says of the batch.
    pub facts: Vec<(&'static str, f64)>,
    /// Of the step's micro-batches so far.
    sums: Sums,
}

#[derive(Debug, Default)]
struct Sums {
    answers: f64,
    divergence: f64,
    actions: f64,
    clamped: f64,
}

/// The board of a run, which one thread uses at a time.
pub(crate) type SharedBoard = Arc<Mutex<Board>>;

pub(crate) fn locked(board: &Mutex<Board>) -> MutexGuard<'_, Board> {
    board
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The loss of a batch of answers, at each of the steps on it.
pub struct PolicyGradient {
    settings: RlhfSettings,
    steps: u64,
    board: SharedBoard,
}

impl PolicyGradient {
    pub(crate) fn new(settings: RlhfSettings, steps: u64, board: SharedBoard) -> PolicyGradient {
        PolicyGradient {
            settings,
            steps,
            board,
        }
    }

    /// The loss of one answer and the weight of each of its tokens, of `log ρ` by token and the log-probabilities themselves.
    fn surrogate(&self, gamma: f64, advantage: f64, ratios: &[f64], log_prob: f64) -> Surrogate {
        let settings = &self.settings;
        let whole: f64 = ratios.iter().sum();
        let spread = |made: Surrogate| Surrogate {
            weights: vec![made.weights[0]; ratios.len()],
            ..made
        };
        let (clamp, clip) = (settings.clamp.unwrap_or(0.0), settings.clip.unwrap_or(0.0));
        match (settings.algorithm, settings.divergence.unwrap_or_default()) {
            (Algorithm::Rloo, _) => spread(reinforce(&[advantage], &[log_prob])),
            (Algorithm::Ppo, _) => spread(ppo_clip(&[advantage], &[whole], clip)),
            (Algorithm::Grpo, _) => ppo_clip(&vec![advantage; ratios.len()], ratios, clip),
            (Algorithm::Mdloo, Divergence::Answer) => {
                spread(mdloo(&[advantage], &[whole], gamma, clamp))
            }
            (Algorithm::Mdloo, Divergence::Token) => {
                mdloo_by_token(&[advantage], &[ratios], gamma, clamp)
            }
            // The divergence is a term of its own.
            (Algorithm::Mdloo, Divergence::Vocabulary) => {
                mdloo_by_token(&[advantage], &[ratios], 0.0, clamp)
            }
        }
    }

    /// Actions of an answer, and how many of them the clamp or the clip holds.
    fn held(&self, made: &Surrogate, advantage: f64, ratios: &[f64]) -> (f64, f64) {
        let count = |held: usize| held as f64;
        let whole: f64 = ratios.iter().sum();
        let clamp = self.settings.clamp.unwrap_or(f64::INFINITY);
        match (
            self.settings.algorithm,
            self.settings.divergence.unwrap_or_default(),
        ) {
            (Algorithm::Rloo, _) => (1.0, 0.0),
            (Algorithm::Ppo, _) => (
                1.0,
                count(usize::from(made.weights[0] == 0.0 && advantage != 0.0)),
            ),
            (Algorithm::Grpo, _) => {
                let held = made
                    .weights
                    .iter()
                    .filter(|&&weight| weight == 0.0 && advantage != 0.0);
                (ratios.len() as f64, count(held.count()))
            }
            (Algorithm::Mdloo, Divergence::Answer) => {
                (1.0, count(usize::from(whole.abs() > clamp)))
            }
            (Algorithm::Mdloo, _) => {
                let held = ratios.iter().filter(|ratio| ratio.abs() > clamp);
                (ratios.len() as f64, count(held.count()))
            }
        }
    }
}

impl Objective for PolicyGradient {
    fn loss(&self, decoder: &Decoder, ctx: &mut Ctx, batch: &Batch) -> TokenLoss {
        let hidden = decoder.forward(ctx, &batch.tokens, &batch.segments, None); // [N, D]
        let losses = decoder.token_losses(ctx, &hidden, &batch.targets);
        let mut board = locked(&self.board);
        let all = board.answers.len();
        let share = 1.0 / all as f64;
        let gamma = self.settings.gamma.map_or(0.0, |gamma| {
            gamma.at(board.step.saturating_sub(1), self.steps)
        });
        let mut weights = vec![0.0; batch.tokens.len()];
        let mut before = board.table.is_some().then(|| vec![0.0; hidden.len()]);
        let (mut value, mut sums) = (0.0, Sums::default());
        for (segment, origin) in batch.segments.iter().zip(&batch.origins) {
            let rolled = &board.answers[origin.documents.start % all];
            let end = segment.start + segment.len;
            let rows = end - rolled.log_probs.len()..end;
            let own = losses[rows.clone()].iter().map(|&loss| -f64::from(loss));
            let ratios: Vec<f64> = own
                .clone()
                .zip(&rolled.log_probs)
                .map(|(own, &old)| own - f64::from(old))
                .collect();
            let made = self.surrogate(gamma, rolled.advantage, &ratios, own.sum());
            value += share * made.loss;
            for (weight, slope) in weights[rows.clone()].iter_mut().zip(&made.weights) {
                *weight = (share * slope) as f32;
            }
            if let Some(before) = &mut before {
                let width = hidden.dims2().1;
                before[rows.start * width..rows.end * width].copy_from_slice(&rolled.hidden);
            }
            let (actions, clamped) = self.held(&made, rolled.advantage, &ratios);
            sums.answers += 1.0;
            sums.actions += actions;
            sums.clamped += clamped;
            // Of KL(π_θk ‖ π_θ), never below 0 and without a bias: its sample ρ - 1 - log ρ by token.
            sums.divergence += ratios
                .iter()
                .map(|&ratio| exp(ratio) - 1.0 - ratio)
                .sum::<f64>();
        }
        board.sums.add(&sums);
        let mut made = decoder.loss(ctx, &hidden, &batch.targets, &weights);
        if let (Some(before), Some(table), Embedding::Dense(own)) =
            (before, &board.table, decoder.output_table())
        {
            let before = Tensor::new(hidden.shape(), before);
            let learnt = |weight: &u32| match *weight {
                ops::IGNORE => 0.0,
                _ => (share * gamma) as f32,
            };
            let dear: Vec<f32> = batch.targets.iter().map(learnt).collect();
            let apart = ops::divergence(ctx, &hidden, own, (&before, table), &dear);
            value += f64::from(apart.loss.data()[0]);
            made.loss = ops::add(ctx, &made.loss, &apart.loss);
        }
        TokenLoss {
            loss: stand_in(ctx, &made.loss, value as f32),
            per_token: made.per_token,
        }
    }

    /// Of the batch `reward`, `kl` (to the reference, nats an answer), `length`, `entropy` (nats a token), `unfinished`, `rollout_gap`;
    /// of the step `policy_kl` (from the rollout policy, nats an answer) and `clamped`, the share of actions that clamp or clip hold.
    fn facts(&self) -> Vec<(&'static str, f64)> {
        let mut board = locked(&self.board);
        let sums = std::mem::take(&mut board.sums);
        let divergence = sums.divergence / sums.answers.max(1.0);
        let limit = self.settings.batch_kl.unwrap_or(f64::INFINITY);
        board.over = divergence > limit || divergence.is_nan();
        let mut facts = board.facts.clone();
        facts.push(("policy_kl", divergence));
        facts.push(("clamped", sums.clamped / sums.actions.max(1.0)));
        facts
    }
}

impl Sums {
    fn add(&mut self, other: &Sums) {
        self.answers += other.answers;
        self.divergence += other.divergence;
        self.actions += other.actions;
        self.clamped += other.clamped;
    }
}

#[cfg(test)]
mod tests;
