//! The recipes of stages that have no crate's own settings: what each asks for in TOML.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `stage = "tokenizer"`: texts to a tokenizer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerRecipe {
    pub stage: String,
    pub tokenizer: TokenizerSettings,
    pub data: Texts,
}

/// `[tokenizer]`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerSettings {
    /// Entries of the vocabulary, special tokens and bytes included.
    #[serde(default = "vocab_size")]
    pub vocab_size: usize,
}

fn vocab_size() -> usize {
    49_152 // AFM on device
}

/// Files of text.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Texts {
    pub texts: Vec<PathBuf>,
}

/// `stage = "tokens"`: texts and a tokenizer to token shards.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokensRecipe {
    pub stage: String,
    pub inputs: TokensInputs,
    /// Each split's files, by its name.
    pub data: BTreeMap<String, Vec<PathBuf>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokensInputs {
    pub tokenizer: PathBuf,
}

/// `stage = "pretrain"`: token shards to a checkpoint.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainRecipe {
    pub stage: String,
    pub inputs: PretrainInputs,
    #[serde(default)]
    pub model: russet_train::settings::ModelSettings,
    pub train: russet_train::settings::TrainSettings,
    #[serde(default)]
    pub optimizer: russet_train::settings::OptimizerSettings,
    #[serde(default)]
    pub schedule: russet_train::settings::ScheduleSettings,
    #[serde(default)]
    pub data: russet_train::settings::DataSettings,
    #[serde(default)]
    pub compute: russet_train::settings::ComputeSettings,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainInputs {
    pub tokens: PathBuf,
    /// The checkpoint to begin with; random weights where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<PathBuf>,
}

/// `stage = "palettize"`: a checkpoint to a package.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PalettizeRecipe {
    pub stage: String,
    pub inputs: PalettizeInputs,
    pub data: PalettizeData,
    #[serde(default)]
    pub palettize: russet_compress::Settings,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PalettizeInputs {
    pub checkpoint: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PalettizeData {
    /// Text that the weights' importance is measured on.
    pub calibration: Vec<PathBuf>,
}

/// `stage = "eval"`: a checkpoint and its package to scores.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalRecipe {
    pub stage: String,
    pub inputs: EvalInputs,
    pub data: EvalData,
    #[serde(default)]
    pub eval: EvalSettings,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalInputs {
    pub checkpoint: PathBuf,
    pub package: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalData {
    pub heldout: PathBuf,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalSettings {
    /// Tokens in view at a time; the model's context, at most 1024, where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
}

/// `stage = "sample"`: a model and a prompt to a text.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleRecipe {
    pub stage: String,
    pub inputs: SampleInputs,
    pub sample: SampleSettings,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleInputs {
    pub model: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleSettings {
    pub prompt: String,
    pub max_tokens: usize,
    /// 0 takes the likeliest token.
    #[serde(default)]
    pub temperature: f64,
    /// Keep the likeliest tokens that make up this share of the probability.
    #[serde(default = "one")]
    pub top_p: f64,
    #[serde(default)]
    pub seed: u64,
}

fn one() -> f64 {
    1.0
}
