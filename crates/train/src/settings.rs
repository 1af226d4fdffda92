//! The recipe of pre-training, of accuracy recovery and of quantization-aware training, as it stands in TOML.
//!
//! Nothing is checked here but names and types; [`crate::Plan`] checks what the values mean and fills in those that depend
//! on others. Defaults follow AFM (arXiv 2407.21075) where it is published and applies.

mod mesh;
mod rule;

use std::path::PathBuf;
use std::thread::available_parallelism;

use russet_kernels::{Compute, Pool};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::adapt::AdapterSettings;
use crate::distill::DistillSettings;

pub use mesh::{MeshRule, ParallelSettings};
pub use rule::{
    AdaStarSettings, AdamWSettings, Decay, OptimizerSettings, RmsPropSettings, ScheduleSettings,
    WsdSettings,
};

/// Everything that pre-training and what is trained on a package are told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The verb that the recipe belongs to.
    #[serde(default)]
    pub stage: StageName,
    /// The decoder; of one that begins with an earlier checkpoint's weights only what differs.
    #[serde(default)]
    pub model: ModelSettings,
    /// How it is trained.
    pub train: TrainSettings,
    /// By which rule.
    #[serde(default)]
    pub optimizer: OptimizerSettings,
    /// With which rates.
    #[serde(default)]
    pub schedule: ScheduleSettings,
    /// The low-rank matrices that are trained in the place of the weights; none where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterSettings>,
    /// From whom besides the text; nobody where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distill: Option<DistillSettings>,
    /// On what.
    #[serde(default)]
    pub data: DataSettings,
    /// With what.
    #[serde(default)]
    pub compute: ComputeSettings,
    /// On how many ranks.
    #[serde(default)]
    pub parallel: ParallelSettings,
}

/// `stage = "pretrain"`, `"recover"` or `"qat"`; any other word is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StageName {
    /// Pre-training.
    #[default]
    Pretrain,
    /// The same on a package under adapters, to bring back what palettizing lost.
    Recover,
    /// The same on the palettes of a package: quantization-aware training.
    Qat,
}

impl StageName {
    /// As recipes and manifests write it.
    pub fn word(self) -> &'static str {
        match self {
            StageName::Pretrain => "pretrain",
            StageName::Recover => "recover",
            StageName::Qat => "qat",
        }
    }
}

impl ComputeSettings {
    /// Threads of all ranks on this machine.
    pub fn threads(&self) -> usize {
        let all = || available_parallelism().map_or(1, |cores| cores.get());
        self.threads.unwrap_or_else(all)
    }

    /// The threads of one of so many ranks on this machine: at least one.
    ///
    /// # Errors
    /// When `RUSSET_ISA` asks for an instruction set that there is not.
    pub fn pool(&self, ranks_here: usize) -> Result<Pool> {
        Ok(Pool::new((self.threads() / ranks_here).max(1))?)
    }
}

/// `[model]`: the shape of the decoder. The vocabulary is the tokenizer's. Where the weights come from an earlier
/// checkpoint the shape is its own, and only `context` and `rope_theta` may stand here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// D, width of the residual stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<usize>,
    /// H, query heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// G, key and value heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_heads: Option<usize>,
    /// K, width of a head; `width / heads` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// F, hidden width of the feed-forward layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ffn: Option<usize>,
    /// Tokens of context that the model says it is made for; `train.sequence_length` where absent, or the checkpoint's if
    /// that is more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<usize>,
    /// The base of the rotary frequencies; AFM's 500,000 where absent, or the checkpoint's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// W, how many tokens a row of a sliding layer sees, its own among them. All layers slide unless `layer_types` says which; none does
    /// where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sliding_window: Option<usize>,
    /// Which layers slide: one word a layer, or as many as divide their number, which are then repeated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_types: Option<Vec<LayerType>>,
    /// How many of the last layers have no keys and values of their own and use those of the last layer before them of their kind; 0
    /// where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_kv_shared_layers: Option<usize>,
    /// Added to the mean square in every norm; AFM's 1e-5 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm_epsilon: Option<f64>,
    /// Whether input and output share one table; yes where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tied: Option<bool>,
}

/// A layer's kind, in the words of `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerType {
    /// Sees all that came before.
    #[serde(rename = "full_attention")]
    Full,
    /// Sees `sliding_window` tokens.
    #[serde(rename = "sliding_attention")]
    Sliding,
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
    /// The last learning rate as a share of the highest; 0.005 of a cosine and 0 of a decay where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_lr_ratio: Option<f64>,
    /// The largest norm of all gradients together; longer ones are shortened to it. 0 for no limit.
    #[serde(default = "clip_norm")]
    pub clip_norm: f64,
    /// The norm from which the step's gradients are thrown away and no weight is changed. 0 for no such norm.
    #[serde(default = "skip_norm")]
    pub skip_norm: f64,
    /// Decay of a running mean of the weights, which is then what is validated and written; 0 for none.
    #[serde(default)]
    pub ema: f64,
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
    /// Saved states that are kept, the newest.
    #[serde(default = "keep_last")]
    pub keep_last: usize,
    /// Whether the weights of the lowest validation loss so far are kept as a checkpoint of their own.
    #[serde(default)]
    pub keep_best: bool,
    /// A loss so many standard deviations above its running mean is reported with the documents that it came from; 0 never
    /// reports.
    #[serde(default = "spike_deviations")]
    pub spike_deviations: f64,
    /// Steps from one line of the log to the next.
    #[serde(default = "log_every")]
    pub log_every: u64,
}

/// `[data]`: shards of the tokens, by the names of their splits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// Trained on; `"train"` where this and `mixture` are absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train: Option<String>,
    /// Several shards to train on, instead of `train`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mixture: Vec<MixtureSettings>,
    /// How documents become sequences.
    #[serde(default)]
    pub packing: PackingKind,
    /// Held out and measured; nothing where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<String>,
}

/// `[[data.mixture]]`: one shard of several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixtureSettings {
    /// The tokens artifact that it lies in; `inputs.tokens` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<PathBuf>,
    /// The name of its split.
    pub split: String,
    /// Its share of the sequences is this over the sum of all weights.
    pub weight: f64,
}

/// How documents become sequences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PackingKind {
    /// All documents one after another, cut every `sequence_length` tokens.
    #[default]
    Stream,
    /// Whole documents where they fit, put together so that little room is left (arXiv 2404.10830).
    BestFit,
}

/// `[compute]`: nothing here changes the result, except the type.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComputeSettings {
    /// The type in which dense products and attention multiply. Weights, activations and sums are `f32` either way.
    #[serde(default)]
    pub dtype: ComputeType,
    /// What of the forward pass is computed again in the backward pass.
    #[serde(default)]
    pub recompute: Recompute,
    /// Threads; all cores where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
}

/// The type in which dense products and attention multiply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ComputeType {
    /// IEEE single precision.
    #[default]
    F32,
    /// The upper half of it, with sums in f32: faster where the CPU multiplies pairs of them (AVX-512 BF16 of AMD) or tiles (AMX).
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

fn clip_norm() -> f64 {
    1.0 // AFM
}

fn skip_norm() -> f64 {
    100.0 // AFM
}

fn keep_last() -> usize {
    1
}

fn spike_deviations() -> f64 {
    6.0
}

fn checkpoint_every() -> u64 {
    500
}

fn log_every() -> u64 {
    10
}
