//! The recipes of fine-tuning, of preferences and of reward models, as they stand in TOML.
//!
//! Tables that training has anyway (`[train]`, `[optimizer]`, `[schedule]`, `[adapter]`, `[compute]`) are its own. Defaults
//! follow AFM's device model (arXiv 2407.21075): a constant rate of 2e-5. There is no dropout: AFM has 0.1, and none is
//! implemented here, so the key is refused.

use std::path::PathBuf;

use russet_train::settings::{ComputeSettings, OptimizerSettings, ScheduleSettings, TrainSettings};
use russet_train::{AdapterSettings, Result, TrainError};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::data::TooLong;
use crate::preference::PreferenceLoss;
use crate::reward::Strength;

/// The rate of AFM's device model.
const PEAK_LR: f64 = 2e-5;

/// Everything that fine-tuning is told, on conversations or preferences.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The loop. `peak_lr` is 2e-5, `warmup_steps` and `skip_norm` are 0 where absent; `steps` and `tokens` may both be absent, then
    /// `data.epochs` says how long.
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
    /// The loss of preferences; of `dpo` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dpo: Option<DpoSettings>,
    /// The loss of a reward model; of `reward` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward: Option<RewardSettings>,
    /// On what.
    pub data: DataSettings,
    /// With what.
    #[serde(default)]
    pub compute: ComputeSettings,
}

/// `[data]`: files of rows (see [`crate::rows`]).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// Learnt from, all of them alike: each sequence of any counts the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub train: Vec<PathBuf>,
    /// Files by weight, instead of `train`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mixture: Vec<FileSettings>,
    /// Held out and measured; nothing where absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub validation: Vec<PathBuf>,
    /// Times that all sequences are met, rounded up to whole steps; instead of `train.steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// What becomes of examples longer than `train.sequence_length`; conversations are cut and preferences dropped where
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub too_long: Option<TooLong>,
    /// Whether rows that cannot be read are left out and counted, not refused.
    #[serde(default)]
    pub skip_malformed: bool,
    /// A chat template (Jinja) to learn and to leave in the checkpoint; the model's own where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<PathBuf>,
}

/// `[[data.mixture]]`: one file of several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSettings {
    /// The file.
    pub file: PathBuf,
    /// Its share of the sequences is this over the sum of all weights.
    pub weight: f64,
}

/// `[dpo]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DpoSettings {
    /// Which loss.
    #[serde(default)]
    pub loss: PreferenceLoss,
    /// β: how dear it is to leave the reference. 0.1, DPO's, where absent.
    #[serde(default = "beta")]
    pub beta: f64,
    /// Whether log-probabilities are means over a response's tokens.
    #[serde(default)]
    pub length_normalised: bool,
}

impl Default for DpoSettings {
    fn default() -> DpoSettings {
        DpoSettings {
            loss: PreferenceLoss::Dpo,
            beta: beta(),
            length_normalised: false,
        }
    }
}

/// `[reward]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardSettings {
    /// λ: what the grades of single responses count beside the comparison. AFM's is not published; 0.1 where absent, a share that
    /// eight grades of a row do not outweigh the comparison with.
    #[serde(default = "grade_weight")]
    pub grade_weight: f64,
    /// The strength of rows that name none; plain "better" where absent.
    #[serde(default = "plain")]
    pub strength: Strength,
}

impl Default for RewardSettings {
    fn default() -> RewardSettings {
        RewardSettings {
            grade_weight: grade_weight(),
            strength: plain(),
        }
    }
}

fn grade_weight() -> f64 {
    0.1
}

fn plain() -> Strength {
    Strength::Better
}

fn beta() -> f64 {
    0.1 // arXiv 2305.18290
}

/// A constant schedule.
pub fn constant() -> ScheduleSettings {
    ScheduleSettings::Constant {}
}

/// `[train]`, with the defaults of fine-tuning.
///
/// # Errors
/// As its fields have it.
pub fn train_table<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<TrainSettings, D::Error> {
    // No norm is skipped: AFM's 100 is one of pre-training, and the slopes of preferences scale with 1/β and a response's length.
    let defaults = [
        ("peak_lr", Value::from(PEAK_LR)),
        ("warmup_steps", 0.into()),
        ("skip_norm", 0.0.into()),
    ];
    train_with(deserializer, defaults)
}

/// `[train]` with some of its keys filled in where they are absent.
pub(crate) fn train_with<'de, D: Deserializer<'de>>(
    deserializer: D,
    defaults: impl IntoIterator<Item = (&'static str, Value)>,
) -> std::result::Result<TrainSettings, D::Error> {
    let mut table = Map::<String, Value>::deserialize(deserializer)?;
    for (key, value) in defaults {
        table.entry(key).or_insert(value);
    }
    serde_json::from_value(Value::Object(table)).map_err(D::Error::custom)
}

/// How long training goes on: so many steps (or tokens), or so many epochs.
pub(crate) fn how_long(train: &TrainSettings, epochs: Option<f64>) -> Result<()> {
    match (epochs, train.steps.is_some() || train.tokens.is_some()) {
        (Some(_), true) => refuse(
            "data.epochs",
            "stands beside `train.steps` or `train.tokens`; keep one of them",
        ),
        (None, false) => refuse(
            "data.epochs",
            "is missing, and so is `train.steps`; say how long to train, such as epochs = 2",
        ),
        (Some(epochs), false) if !(epochs > 0.0 && epochs <= 1e6) => refuse(
            "data.epochs",
            format!("is {epochs}; it must be above 0 and at most 1e6"),
        ),
        _ => Ok(()),
    }
}

/// The best can be kept of several measurements only.
pub(crate) fn best_of_several(train: &TrainSettings) -> Result<()> {
    if train.keep_best && train.validate_every == 0 {
        return refuse(
            "train.keep_best",
            "keeps the best of several measurements, but `train.validate_every` is 0, so there is one, at the end; say \
             how often to measure",
        );
    }
    Ok(())
}

pub(crate) fn refuse<T>(key: &'static str, problem: impl Into<String>) -> Result<T> {
    Err(TrainError::Setting {
        key,
        problem: problem.into(),
    })
}

/// What the files' rows teach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lesson {
    /// To answer as in conversations: `sft`.
    Conversations,
    /// Which of two answers is better: `dpo`.
    Preferences,
    /// How good an answer is, from the same rows: `reward`.
    Rewards,
}

impl Lesson {
    /// The stage, as recipes and manifests write it.
    pub fn word(self) -> &'static str {
        match self {
            Lesson::Conversations => "sft",
            Lesson::Preferences => "dpo",
            Lesson::Rewards => "reward",
        }
    }
}

impl Settings {
    /// Checked, and with everything filled in that follows without the data.
    ///
    /// # Errors
    /// When a setting cannot be.
    pub fn resolved(mut self, lesson: Lesson) -> Result<Settings> {
        let (data, train) = (&mut self.data, &self.train);
        match (data.train.is_empty(), data.mixture.is_empty()) {
            (true, true) => {
                return refuse(
                    "data.train",
                    "is missing; name files of rows, such as [\"train.jsonl\"]",
                );
            }
            (false, false) => {
                return refuse(
                    "data.train",
                    "stands beside `data.mixture`; keep one of them",
                );
            }
            _ => {}
        }
        let files = data.train.len() + data.mixture.len();
        let most = russet_train::loader::MOST;
        if files > most {
            return refuse(
                "data.train",
                format!("has {files} files; at most {most} can be mixed, so join some"),
            );
        }
        for file in &data.mixture {
            if !(file.weight > 0.0 && file.weight <= 1e9) {
                let problem = format!(
                    "of {} is {}; it must be above 0 and at most 1e9, so leave the file out or raise it",
                    file.file.display(),
                    file.weight
                );
                return refuse("data.mixture.weight", problem);
            }
        }
        how_long(train, data.epochs)?;
        let held_out = !data.validation.is_empty();
        let measured = [
            ("train.keep_best", train.keep_best),
            ("train.validate_every", train.validate_every > 0),
            ("train.validation_tokens", train.validation_tokens.is_some()),
        ];
        if let Some((key, _)) = measured.iter().find(|(_, given)| *given && !held_out) {
            return refuse(
                key,
                "is there, but nothing to measure on; name held-out files in `data.validation`",
            );
        }
        best_of_several(train)?;
        let pairs = lesson != Lesson::Conversations;
        let usual = if pairs { TooLong::Drop } else { TooLong::Cut };
        if *data.too_long.get_or_insert(usual) == TooLong::Cut && pairs {
            return refuse(
                "data.too_long",
                "is \"cut\", but a response that is cut is not the one that was preferred; write \"drop\"",
            );
        }
        if pairs && train.z_loss > 0.0 {
            return refuse(
                "train.z_loss",
                "is a term of the next-token loss, which preferences do not have; leave it out",
            );
        }
        if self.dpo.is_some() && lesson != Lesson::Preferences {
            return refuse(
                "dpo",
                "is a table of the stage `dpo`, and this stage has none; leave it out",
            );
        }
        if self.reward.is_some() && lesson != Lesson::Rewards {
            return refuse(
                "reward",
                "is a table of the stage `reward`, and this stage has none; leave it out",
            );
        }
        match lesson {
            Lesson::Conversations => {}
            Lesson::Preferences => {
                let dpo = self.dpo.get_or_insert_default();
                if !(dpo.beta > 0.0 && dpo.beta <= 100.0) {
                    return refuse(
                        "dpo.beta",
                        format!("is {}; it must be above 0 and at most 100", dpo.beta),
                    );
                }
            }
            Lesson::Rewards => {
                let reward = self.reward.get_or_insert_default();
                if !(0.0..=100.0).contains(&reward.grade_weight) {
                    return refuse(
                        "reward.grade_weight",
                        format!("is {}; it must be from 0 to 100", reward.grade_weight),
                    );
                }
            }
        }
        if self.adapter.is_some() && data.chat_template.is_some() {
            return refuse(
                "data.chat_template",
                "stands beside `[adapter]`, but an adapter answers with its base's chat template; put it into the base's \
                 folder as chat_template.jinja and leave this out",
            );
        }
        self.adapter = self.adapter.map(AdapterSettings::resolved).transpose()?;
        Ok(self)
    }
}
