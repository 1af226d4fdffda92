//! The recipe of rejection sampling, as it stands in TOML, but for who answers.
//!
//! How many answers AFM draws a prompt, and how many it keeps, is not published. Four of each member and the best one kept are what a
//! committee of a few members affords; all are settings.

use std::path::PathBuf;

use russet_train::Result;
use serde::{Deserialize, Serialize};

use crate::rewards::{RewardKeys, asks_model, check_rewards};
use crate::rlhf::settings::RewardSettings;
use crate::settings::refuse;

/// What the keys of its rewards are called.
pub(crate) const KEYS: RewardKeys = RewardKeys {
    rewards: "reject.rewards",
    kind: "reject.rewards.kind",
    weight: "reject.rewards.weight",
    pattern: "reject.rewards.pattern",
};

/// Everything that rejection sampling is told, but for who answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How answers are drawn and judged.
    pub reject: RejectSettings,
    /// What an answer must be.
    #[serde(default)]
    pub filter: FilterSettings,
    /// How many are kept.
    #[serde(default)]
    pub keep: KeepSettings,
    /// To which prompts.
    pub data: QuestionSettings,
}

/// `[data]`: files of rows that ask something ([`crate::rows::read_prompts`]).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuestionSettings {
    /// The files.
    #[serde(default)]
    pub prompts: Vec<PathBuf>,
    /// Whether rows that cannot be read or judged, or ask what an earlier one asks, are left out and counted, not refused.
    #[serde(default)]
    pub skip_malformed: bool,
}

/// `[reject]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RejectSettings {
    /// K, answers of each member to a prompt.
    #[serde(default = "samples")]
    pub samples: usize,
    /// 1 draws from the model's own distribution, lower is tamer.
    #[serde(default = "one")]
    pub temperature: f64,
    /// Keep the likeliest tokens that make up this share of the probability.
    #[serde(default = "one")]
    pub top_p: f64,
    /// The most tokens of an answer.
    pub max_tokens: usize,
    /// What all random numbers follow from.
    #[serde(default)]
    pub seed: u64,
    /// Answers that a member of this machine generates at once; changes nothing but time and memory.
    #[serde(default = "slots")]
    pub slots: usize,
    /// What answers are worth.
    #[serde(default)]
    pub rewards: Vec<RewardSettings>,
}

/// `[filter]`: what an answer must be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FilterSettings {
    /// Ended by itself.
    pub finished: bool,
    /// Of so many characters at least, blanks around it not counted.
    pub min_characters: usize,
    /// And at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_characters: Option<usize>,
    /// Worth at least this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_score: Option<f64>,
    /// The most of [`super::repetition`].
    pub max_repetition: f64,
    /// From which [`super::similarity`] on it says what a better one says.
    pub near_duplicate: f64,
}

impl Default for FilterSettings {
    fn default() -> FilterSettings {
        FilterSettings {
            finished: true,
            min_characters: 1,
            max_characters: None,
            min_score: None,
            max_repetition: 0.5,
            near_duplicate: 0.8,
        }
    }
}

/// `[keep]`: how many are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeepSettings {
    /// Answers of a prompt at most.
    pub answers: usize,
    /// Of all that is kept, what one member may have at most.
    pub member_share: f64,
    /// Preferences of a prompt at most.
    pub pairs: usize,
    /// By how much the better of two must be worth more; always by something.
    pub min_margin: f64,
}

impl Default for KeepSettings {
    fn default() -> KeepSettings {
        KeepSettings {
            answers: 1,
            member_share: 1.0,
            pairs: 1,
            min_margin: 0.0,
        }
    }
}

fn samples() -> usize {
    4
}

fn slots() -> usize {
    32
}

fn one() -> f64 {
    1.0
}

impl Settings {
    /// Checked, for so many members.
    ///
    /// # Errors
    /// When a setting cannot be.
    pub fn check(&self, members: usize) -> Result<()> {
        let Settings {
            reject,
            filter,
            keep,
            data,
        } = self;
        if data.prompts.is_empty() {
            return refuse(
                "data.prompts",
                "is missing; name files of prompts, such as [\"prompts.jsonl\"]",
            );
        }
        for (key, value, most) in [
            ("reject.samples", reject.samples, 256),
            ("reject.slots", reject.slots, 4096),
            ("reject.max_tokens", reject.max_tokens, 1 << 20),
            ("filter.min_characters", filter.min_characters, 1 << 24),
            ("keep.answers", keep.answers, 256),
        ] {
            if !(1..=most).contains(&value) {
                return refuse(key, format!("is {value}; it must be from 1 to {most}"));
            }
        }
        let below = |most: &usize| *most < filter.min_characters;
        if let Some(most) = filter.max_characters.filter(below) {
            let problem = format!(
                "is {most}, below `filter.min_characters` {}, so nothing would be kept; mend one",
                filter.min_characters
            );
            return refuse("filter.max_characters", problem);
        }
        if reject.samples * members < 2 && keep.pairs > 0 {
            return refuse(
                "reject.samples",
                "is 1 of one member, so there is nothing to reject; draw more answers, name more members, or write `keep.pairs = 0`",
            );
        }
        for (key, value, least, most) in [
            ("reject.temperature", reject.temperature, 0.0, 100.0),
            ("reject.top_p", reject.top_p, 1e-6, 1.0),
            ("filter.max_repetition", filter.max_repetition, 0.0, 1.0),
            ("keep.min_margin", keep.min_margin, 0.0, f64::MAX),
        ] {
            if !(least..=most).contains(&value) {
                return refuse(
                    key,
                    format!("is {value}; it must be from {least} to {most}"),
                );
            }
        }
        if !(filter.near_duplicate > 0.0 && filter.near_duplicate <= 1.0) {
            let problem = format!(
                "is {}; it must be above 0 and at most 1, which leaves out what has all its words in a row in common",
                filter.near_duplicate
            );
            return refuse("filter.near_duplicate", problem);
        }
        if filter.min_score.is_some_and(|floor| !floor.is_finite()) {
            return refuse("filter.min_score", "must be a number");
        }
        if reject.temperature == 0.0 && reject.samples > 1 {
            let problem = format!(
                "is 0, which draws the same answer {} times; write more than 0, or `reject.samples = 1`",
                reject.samples
            );
            return refuse("reject.temperature", problem);
        }
        let even = 1.0 / members as f64;
        if !(keep.member_share >= even - 1e-9 && keep.member_share <= 1.0) {
            let problem = format!(
                "is {}, but of {members} members one has at least {even:.4} of what is kept; write a share from there to 1",
                keep.member_share
            );
            return refuse("keep.member_share", problem);
        }
        check_rewards(&reject.rewards, &KEYS)
    }

    /// Whether a reward model is asked.
    pub fn asks_model(&self) -> bool {
        asks_model(&self.reject.rewards)
    }
}
