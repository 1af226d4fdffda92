//! The recipe of pre-training, as it stands in TOML.
//!
//! Nothing is checked here but names and types; [`crate::Plan`] checks what the values mean and fills in those that depend
//! on others. Defaults follow AFM (arXiv 2407.21075) where it is published and applies to AdamW.

use russet_kernels::Compute;
use serde::{Deserialize, Serialize};

use crate::distill::DistillSettings;

/// Everything that pre-training is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The verb that the recipe belongs to.
    #[serde(default)]
    pub stage: StageName,
    /// The decoder.
    pub model: ModelSettings,
    /// How it is trained.
    pub train: TrainSettings,
    /// From whom besides the text; nobody where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distill: Option<DistillSettings>,
    /// On what.
    #[serde(default)]
    pub data: DataSettings,
    /// With what.
    #[serde(default)]
    pub compute: ComputeSettings,
}

/// `stage = "pretrain"`; any other word is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StageName {
    /// Pre-training.
    #[default]
    Pretrain,
}

/// `[model]`: the shape of the decoder. The vocabulary is the tokenizer's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// D, width of the residual stream.
    pub width: usize,
    /// Blocks.
    pub layers: usize,
    /// H, query heads.
    pub heads: usize,
    /// G, key and value heads.
    pub kv_heads: usize,
    /// K, width of a head; `width / heads` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// F, hidden width of the feed-forward layer.
    pub ffn: usize,
    /// Tokens of context that the model says it is made for; `train.sequence_length` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<usize>,
    /// The base of the rotary frequencies.
    #[serde(default = "rope_theta")]
    pub rope_theta: f64,
    /// Added to the mean square in every norm.
    #[serde(default = "norm_epsilon")]
    pub norm_epsilon: f64,
    /// Whether input and output share one table.
    #[serde(default = "yes")]
    pub tied: bool,
}

/// `[train]`: the loop. One of `steps` and `tokens` is given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSettings {
    /// Updates of the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Tokens to see, rounded up to whole steps; instead of `steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Sequences of a step.
    pub batch_sequences: usize,
    /// Tokens of a sequence.
    pub sequence_length: usize,
    /// Sequences of one forward and backward pass, whose gradients add up to the step's: less memory, the same step but
    /// for rounding. `batch_sequences` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch_sequences: Option<usize>,
    /// The highest learning rate.
    pub peak_lr: f64,
    /// Steps of the linear rise to it; a hundredth of all steps where absent (AFM: 5000 of about 375,000).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u64>,
    /// The last learning rate as a share of the highest.
    #[serde(default = "final_lr_ratio")]
    pub final_lr_ratio: f64,
    /// λ of AdamW: every step takes `learning rate · λ` of each decayed weight.
    #[serde(default = "weight_decay")]
    pub weight_decay: f64,
    /// Decay of the first moment.
    #[serde(default = "beta1")]
    pub beta1: f64,
    /// Decay of the second moment.
    #[serde(default = "beta2")]
    pub beta2: f64,
    /// Added to the root of the second moment.
    #[serde(default = "epsilon")]
    pub epsilon: f64,
    /// The largest norm of all gradients together; longer ones are shortened to it. 0 for no limit.
    #[serde(default = "clip_norm")]
    pub clip_norm: f64,
    /// ζ of the term `ζ (ln Σ exp z)²` of the loss, which keeps logits from drifting; AFM has 1e-6. 0 for none.
    #[serde(default)]
    pub z_loss: f64,
    /// What the first weights and the order of the data follow from.
    #[serde(default)]
    pub seed: u64,
    /// Steps from one validation to the next; 0 validates at the end only.
    #[serde(default)]
    pub validate_every: u64,
    /// Tokens that a validation measures at least, in whole documents; all of the shard where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_tokens: Option<u64>,
    /// Steps from one saved state to the next; 0 saves when interrupted only.
    #[serde(default = "checkpoint_every")]
    pub checkpoint_every: u64,
    /// Steps from one line of the log to the next.
    #[serde(default = "log_every")]
    pub log_every: u64,
}

/// `[data]`: shards of the tokens, by the names of their splits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// Trained on.
    #[serde(default = "train_shard")]
    pub train: String,
    /// Held out and measured; nothing where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<String>,
}

/// `[compute]`: nothing here changes the result, except the type.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComputeSettings {
    /// The type in which dense products multiply. Weights, activations and sums are `f32` either way.
    #[serde(default)]
    pub dtype: ComputeType,
    /// What of the forward pass is computed again in the backward pass.
    #[serde(default)]
    pub recompute: Recompute,
    /// Threads; all cores where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
}

impl Default for DataSettings {
    fn default() -> Self {
        DataSettings {
            train: train_shard(),
            validation: None,
        }
    }
}

/// The type in which dense products multiply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ComputeType {
    /// IEEE single precision.
    #[default]
    F32,
    /// The upper half of it: twice as fast on CPUs that have AVX-512 BF16, the same result on all others.
    Bf16,
}

impl ComputeType {
    /// The kernels' word for it.
    pub fn kernel(self) -> Compute {
        match self {
            ComputeType::F32 => Compute::F32,
            ComputeType::Bf16 => Compute::Bf16,
        }
    }
}

/// What of the forward pass is computed again in the backward pass, to save memory. The result is the same to the bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recompute {
    /// Nothing that costs a product.
    #[default]
    None,
    /// Each block, of which only the input is kept: a fourth more time, much less memory with long sequences.
    Block,
}

fn rope_theta() -> f64 {
    500_000.0 // AFM
}

fn norm_epsilon() -> f64 {
    1e-5 // AFM
}

fn yes() -> bool {
    true
}

fn final_lr_ratio() -> f64 {
    0.005 // AFM
}

fn weight_decay() -> f64 {
    0.1 // With AdamW: GPT-3 (arXiv 2005.14165) and Llama (arXiv 2302.13971). AFM's 3.16e-4 does not scale with the rate.
}

fn beta1() -> f64 {
    0.9 // As the weight decay.
}

fn beta2() -> f64 {
    0.95 // As the weight decay; AFM's optimizer has it too.
}

fn epsilon() -> f64 {
    1e-8
}

fn clip_norm() -> f64 {
    1.0 // AFM
}

fn checkpoint_every() -> u64 {
    500
}

fn log_every() -> u64 {
    10
}

fn train_shard() -> String {
    "train".to_owned()
}
