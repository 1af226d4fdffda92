//! The recipe of reinforcement learning, as it stands in TOML.
//!
//! K, β and γ of AFM are not published. K = 4 and β = 0.05 are what the field has for models of this size (RLOO, arXiv 2402.14740, has
//! K from 2 to 4 and β from 0.03 to 0.1), γ = β makes the two divergences as dear as one another, and four steps a batch are few
//! enough that the clamp is seldom met. All are settings.

use std::path::PathBuf;

use russet_train::settings::{
    ComputeSettings, ComputeType, OptimizerSettings, ScheduleSettings, TrainSettings,
};
use russet_train::{AdapterSettings, Result};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::rewards::{RewardKeys, asks_model, check_rewards};
use crate::settings::{best_of_several, constant, how_long, refuse, train_with};

/// The rate where a recipe names none: a tenth of what fine-tuning has, as policies are trained.
const PEAK_LR: f64 = 2e-6;

/// Everything that reinforcement learning is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The loop. `batch_sequences` are the answers of a batch, `sequence_length` bounds prompt and answer together. `peak_lr` is 2e-6,
    /// `warmup_steps`, `skip_norm` and `spike_deviations` are 0 where absent; `steps` may be absent where `data.epochs` says how long.
    #[serde(deserialize_with = "train_table")]
    pub train: TrainSettings,
    /// By which rule.
    #[serde(default)]
    pub optimizer: OptimizerSettings,
    /// With which rates; constant where absent.
    #[serde(default = "constant")]
    pub schedule: ScheduleSettings,
    /// The low-rank matrices that are trained in the place of the weights; none where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterSettings>,
    /// By which algorithm, for which rewards.
    pub rlhf: RlhfSettings,
    /// On which prompts.
    pub data: PromptSettings,
    /// With what.
    #[serde(default)]
    pub compute: ComputeSettings,
}

/// `[data]`: files of rows that ask something ([`crate::rows::read_prompts`]).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptSettings {
    /// Learnt from, all prompts alike.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub train: Vec<PathBuf>,
    /// Held out: their mean reward is measured, an answer each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub validation: Vec<PathBuf>,
    /// Times that all prompts are met, rounded up to whole batches; instead of `train.steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Whether rows that cannot be read are left out and counted, not refused.
    #[serde(default)]
    pub skip_malformed: bool,
}

/// `[rlhf]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RlhfSettings {
    /// Which loss.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// Over what ratios and the divergence from the rollout policy are taken; of `mdloo`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub divergence: Option<Divergence>,
    /// K, answers a prompt.
    #[serde(default = "samples")]
    pub samples: usize,
    /// Updates of the weights on one batch of answers; 4 of `mdloo`, `ppo` and `grpo`, 1 of `rloo` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps_per_batch: Option<u64>,
    /// β: how dear it is to leave the reference, in the reward.
    #[serde(default = "beta")]
    pub beta: Coefficient,
    /// γ: how dear it is to leave the rollout policy; of `mdloo`. β where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gamma: Option<Coefficient>,
    /// How far log ρ counts from 0 in the weights; of `mdloo`. 2 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clamp: Option<f64>,
    /// ε of the clip; of `ppo` and `grpo`. 0.2 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
    /// The most tokens of an answer.
    pub max_tokens: usize,
    /// What is added to the reward of an answer that did not end within them.
    #[serde(default)]
    pub unfinished: f64,
    /// The divergence from the rollout policy, in nats an answer, beyond which the next step takes a new batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_kl: Option<f64>,
    /// The divergence from the reference, in nats an answer, beyond which the run ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_kl: Option<f64>,
    /// Answers that are generated at once.
    #[serde(default = "slots")]
    pub slots: usize,
    /// What answers are worth.
    #[serde(default)]
    pub rewards: Vec<RewardSettings>,
}

/// Which loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// Mirror descent with leave-one-out advantages, AFM's.
    #[default]
    Mdloo,
    /// REINFORCE with leave-one-out advantages.
    Rloo,
    /// PPO's clip of the whole answer's ratio, with leave-one-out advantages.
    Ppo,
    /// PPO's clip token by token, with advantages of the group: GRPO.
    Grpo,
}

impl Algorithm {
    /// As recipes have it.
    pub fn word(self) -> &'static str {
        match self {
            Algorithm::Mdloo => "mdloo",
            Algorithm::Rloo => "rloo",
            Algorithm::Ppo => "ppo",
            Algorithm::Grpo => "grpo",
        }
    }
}

/// Over what MDLOO takes ratios and the divergence from the rollout policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Divergence {
    /// The whole answer: one action, as published.
    #[default]
    Answer,
    /// Each token that was drawn.
    Token,
    /// Ratios of each token, the divergence over the whole vocabulary at its place.
    Vocabulary,
}

/// A number, or one that goes from one to another over the run in a straight line.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Coefficient {
    /// The same at every step.
    Constant(f64),
    /// From the first step to the last.
    Linear {
        /// At the first.
        from: f64,
        /// At the last.
        to: f64,
    },
}

impl Coefficient {
    /// At a step of so many.
    pub fn at(self, step: u64, steps: u64) -> f64 {
        match self {
            Coefficient::Constant(value) => value,
            Coefficient::Linear { from, to } => {
                let last = steps.saturating_sub(1).max(1);
                from + (to - from) * (step.min(last) as f64 / last as f64)
            }
        }
    }

    fn ends(self) -> [f64; 2] {
        match self {
            Coefficient::Constant(value) => [value; 2],
            Coefficient::Linear { from, to } => [from, to],
        }
    }

    /// Whether it is 0 all the time.
    pub fn is_none(self) -> bool {
        self.ends() == [0.0; 2]
    }

    fn check(self, key: &'static str) -> Result<()> {
        match self.ends().iter().find(|end| !(0.0..=100.0).contains(*end)) {
            Some(end) => refuse(key, format!("is {end}; it must be from 0 to 100")),
            None => Ok(()),
        }
    }
}

/// `[[rlhf.rewards]]` and `[[reject.rewards]]`: one of several, which add up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardSettings {
    /// `"model"` (`inputs.reward`), `"format"`, or a rule that the program knows: `"exact"`, `"instructions"`.
    pub kind: String,
    /// What it counts.
    #[serde(default = "one")]
    pub weight: f64,
    /// The regular expression of `"format"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
}

/// What the keys of its rewards are called.
pub(crate) const KEYS: RewardKeys = RewardKeys {
    rewards: "rlhf.rewards",
    kind: "rlhf.rewards.kind",
    weight: "rlhf.rewards.weight",
    pattern: "rlhf.rewards.pattern",
};

fn samples() -> usize {
    4
}

fn beta() -> Coefficient {
    Coefficient::Constant(0.05)
}

fn slots() -> usize {
    32
}

fn one() -> f64 {
    1.0
}

/// `[train]`, with the defaults of reinforcement learning.
///
/// # Errors
/// As its fields have it.
pub fn train_table<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<TrainSettings, D::Error> {
    // Losses are differences of rewards: they lie about 0 and say nothing by their size.
    let defaults = [
        ("peak_lr", Value::from(PEAK_LR)),
        ("warmup_steps", 0.into()),
        ("skip_norm", 0.0.into()),
        ("spike_deviations", 0.0.into()),
    ];
    train_with(deserializer, defaults)
}

impl Settings {
    /// Checked, and with everything filled in that follows without the data.
    ///
    /// # Errors
    /// When a setting cannot be.
    pub fn resolved(mut self) -> Result<Settings> {
        let (train, data, rlhf) = (&self.train, &self.data, &mut self.rlhf);
        if data.train.is_empty() {
            return refuse(
                "data.train",
                "is missing; name files of prompts, such as [\"prompts.jsonl\"]",
            );
        }
        if train.tokens.is_some() {
            return refuse(
                "train.tokens",
                "says how long, but how many tokens answers have is not known ahead; write `train.steps` or `data.epochs`",
            );
        }
        how_long(train, data.epochs)?;
        if train.z_loss > 0.0 {
            return refuse(
                "train.z_loss",
                "is a term of the next-token loss, which is not learnt here; leave it out",
            );
        }
        if self.compute.dtype != ComputeType::F32 {
            return refuse(
                "compute.dtype",
                "is \"bf16\", but answers are generated in f32, and their log-probabilities must be those of training; leave it out",
            );
        }
        let held_out = !data.validation.is_empty();
        for (key, given) in [
            ("train.keep_best", train.keep_best),
            ("train.validate_every", train.validate_every > 0),
            ("train.validation_tokens", train.validation_tokens.is_some()),
        ] {
            if given && (!held_out || key == "train.validation_tokens") {
                return refuse(
                    key,
                    "is there, but held-out prompts are measured as a whole and only where `data.validation` names some; mend that",
                );
            }
        }
        best_of_several(train)?;
        if !(2..=256).contains(&rlhf.samples) {
            let problem = format!(
                "is {}; it must be from 2 to 256, since an answer is compared with the others to its prompt",
                rlhf.samples
            );
            return refuse("rlhf.samples", problem);
        }
        if !train.batch_sequences.is_multiple_of(rlhf.samples) || train.batch_sequences == 0 {
            let problem = format!(
                "is {}, which are no whole prompts of {} answers (`rlhf.samples`) each; write a multiple",
                train.batch_sequences, rlhf.samples
            );
            return refuse("train.batch_sequences", problem);
        }
        if !(1..train.sequence_length).contains(&rlhf.max_tokens) {
            let problem = format!(
                "is {}; it must be at least 1 and leave room for a prompt within `train.sequence_length` {}",
                rlhf.max_tokens, train.sequence_length
            );
            return refuse("rlhf.max_tokens", problem);
        }
        if !(1..=4096).contains(&rlhf.slots) {
            return refuse(
                "rlhf.slots",
                format!("is {}; it must be from 1 to 4096", rlhf.slots),
            );
        }
        let mirror = rlhf.algorithm == Algorithm::Mdloo;
        for (key, given) in [
            ("rlhf.divergence", rlhf.divergence.is_some()),
            ("rlhf.gamma", rlhf.gamma.is_some()),
            ("rlhf.clamp", rlhf.clamp.is_some()),
        ] {
            if given && !mirror {
                return refuse(key, "belongs to the algorithm \"mdloo\"; leave it out");
            }
        }
        if rlhf.clip.is_some() && !matches!(rlhf.algorithm, Algorithm::Ppo | Algorithm::Grpo) {
            return refuse(
                "rlhf.clip",
                "belongs to the algorithms \"ppo\" and \"grpo\"; leave it out",
            );
        }
        if mirror {
            rlhf.divergence.get_or_insert_default();
            rlhf.gamma.get_or_insert(rlhf.beta);
            rlhf.clamp.get_or_insert(2.0);
        }
        if matches!(rlhf.algorithm, Algorithm::Ppo | Algorithm::Grpo) {
            rlhf.clip.get_or_insert(0.2); // arXiv 1707.06347
        }
        let usual = if rlhf.algorithm == Algorithm::Rloo {
            1
        } else {
            4
        };
        let steps = *rlhf.steps_per_batch.get_or_insert(usual);
        if !(1..=1024).contains(&steps) {
            return refuse(
                "rlhf.steps_per_batch",
                format!("is {steps}; it must be from 1 to 1024"),
            );
        }
        if rlhf.algorithm == Algorithm::Rloo && steps > 1 {
            return refuse(
                "rlhf.steps_per_batch",
                "is above 1, but \"rloo\" holds for answers of the policy as it is; write 1, or the algorithm \"mdloo\"",
            );
        }
        rlhf.beta.check("rlhf.beta")?;
        rlhf.gamma
            .map_or(Ok(()), |gamma| gamma.check("rlhf.gamma"))?;
        for (key, value) in [
            ("rlhf.clamp", rlhf.clamp),
            ("rlhf.batch_kl", rlhf.batch_kl),
            ("rlhf.stop_kl", rlhf.stop_kl),
        ] {
            if let Some(value) = value.filter(|value| !(*value > 0.0 && value.is_finite())) {
                return refuse(key, format!("is {value}; it must be a number above 0"));
            }
        }
        if let Some(clip) = rlhf.clip.filter(|clip| !(*clip > 0.0 && *clip < 1.0)) {
            return refuse(
                "rlhf.clip",
                format!("is {clip}; it must lie between 0 and 1"),
            );
        }
        if !rlhf.unfinished.is_finite() {
            return refuse("rlhf.unfinished", "must be a number");
        }
        check_rewards(&rlhf.rewards, &KEYS)?;
        self.adapter = self.adapter.map(AdapterSettings::resolved).transpose()?;
        Ok(self)
    }

    /// Whether a reward model is asked.
    pub fn asks_model(&self) -> bool {
        asks_model(&self.rlhf.rewards)
    }

    /// Whether the model that training begins with is asked what it makes of answers.
    pub(crate) fn asks_reference(&self) -> bool {
        !self.rlhf.beta.is_none() || self.rlhf.stop_kl.is_some()
    }
}
