//! Structured pruning: a smaller feed-forward layer, chosen on data.
//!
//! ```text
//! every layer      down(λ · swiglu(gate_up x)),   λ = σ((s - τ) / ε),  Σ λ = k          [F]
//! learned          s by the next-token loss, while ε falls from ε₀ to ε₁, so that λ hardens
//! then             the k greatest of λ stay: rows of gate and up, columns of down times their λ
//! ```
//! Soft top-k as in CoDA (arXiv 2304.04947) and AFM (arXiv 2407.21075, section 6.1): hidden dims of the feed-forward layers
//! alone, the same number in each. Masks sit in front of `down` as a [`russet_model::Linear`], so the one forward pass and the one training
//! loop serve. What comes out is a checkpoint like any other, with a smaller `intermediate_size`.
//!
//! Beside the learned choice stand two that it has to beat: by magnitude and at random.

mod mask;
mod slice;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use russet_artifact::{Artifact, Interrupt, Progress};
use russet_kernels::{Pool, mask as kernel, random};
use russet_model::{Config, Decoder, Embedding, checkpoint};
use russet_tensor::Ctx;
use russet_tokenizer::{TokenShard, Tokenizer};
use serde::{Deserialize, Serialize};

use crate::loader::{Mixture, Packing};
use crate::objective::NextToken;
use crate::run::{Ended, Loop, train};
use crate::schedule::{Schedule, Shape};
use crate::settings::{AdamWSettings, OptimizerSettings, PackingKind};
use crate::state::State;
use crate::validation::Validation;
use crate::{Result, TrainError};

use mask::{Annealed, Sharpness, masked, scores};
use slice::{magnitudes, slice};

/// The file of a pruned checkpoint that says what was kept.
pub const PRUNE_REPORT: &str = "prune.json";

/// Random numbers of the choice at random.
const CHOICE: u64 = 0x5052_554e_4500_0000;

/// `[prune]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneSettings {
    /// k, hidden dims of each feed-forward layer that stay.
    pub ffn: usize,
    /// How they are chosen.
    #[serde(default)]
    pub method: PruneMethod,
    /// Updates of the scores.
    #[serde(default = "steps")]
    pub steps: u64,
    /// The learning rate of the scores, which begin at 0.
    #[serde(default = "lr")]
    pub lr: f64,
    /// That of the weights, which learn along with the masks; 0 keeps them as they are.
    #[serde(default)]
    pub weight_lr: f64,
    /// ε₀.
    #[serde(default = "epsilon_start")]
    pub epsilon_start: f64,
    /// ε₁.
    #[serde(default = "epsilon_end")]
    pub epsilon_end: f64,
    /// Sequences of a step.
    #[serde(default = "batch_sequences")]
    pub batch_sequences: usize,
    /// Sequences of a pass; all of the step's where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch_sequences: Option<usize>,
    /// Tokens of a sequence.
    #[serde(default = "sequence_length")]
    pub sequence_length: usize,
    /// What the order of the data and the choice at random follow from.
    #[serde(default)]
    pub seed: u64,
    /// The split to learn on.
    #[serde(default = "train_split")]
    pub train: String,
    /// The split to measure on before and after; none where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<String>,
    /// Tokens that are measured at least, in whole documents; all of the split where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_tokens: Option<u64>,
}

/// How hidden dims are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PruneMethod {
    /// By soft top-k masks that learn from data.
    #[default]
    Learned,
    /// By ‖gate row‖ · ‖up row‖ · ‖down column‖, which stays the same when one is made longer and another shorter.
    Magnitude,
    /// At random.
    Random,
}

fn steps() -> u64 {
    300
}

fn lr() -> f64 {
    0.02
}

fn epsilon_start() -> f64 {
    1.0
}

fn epsilon_end() -> f64 {
    0.01
}

fn batch_sequences() -> usize {
    8
}

fn sequence_length() -> usize {
    256
}

fn train_split() -> String {
    "train".to_owned()
}

/// What pruning has come to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PruneReport {
    /// How hidden dims were chosen.
    pub method: PruneMethod,
    /// F before.
    pub ffn_before: usize,
    /// F now.
    pub ffn: usize,
    /// All weights before.
    pub parameters_before: usize,
    /// All weights now.
    pub parameters: usize,
    /// Loss of the last step under soft masks, in nats per token; none where nothing was learnt.
    pub last_loss: Option<f32>,
    /// The share of Σ λ that lies on what was kept, in the mean of the layers: 1 where the masks have become hard.
    pub hardness: Option<f64>,
    /// Nats per token held out, before.
    pub nats_before: Option<f64>,
    /// Nats per token held out, of what is written.
    pub nats_after: Option<f64>,
    /// The hidden dims that stay, of each layer.
    pub kept: Vec<Vec<usize>>,
}

impl PruneSettings {
    /// Checks what does not depend on the inputs.
    ///
    /// # Errors
    /// When a number is out of its range.
    pub fn check(&self) -> Result<()> {
        let positive = [
            ("prune.ffn", self.ffn as u64),
            ("prune.steps", self.steps),
            ("prune.batch_sequences", self.batch_sequences as u64),
            ("prune.micro_batch_sequences", self.micro() as u64),
            ("prune.sequence_length", self.sequence_length as u64),
        ];
        for (key, value) in positive {
            if !(1..=1 << 24).contains(&value) {
                let problem = format!("is {value}; it must be from 1 to 16777216");
                return Err(TrainError::setting(key, problem));
            }
        }
        if !self.batch_sequences.is_multiple_of(self.micro()) {
            let (micro, batch) = (self.micro(), self.batch_sequences);
            let problem = format!("is {micro}, which does not divide the batch of {batch}");
            return Err(TrainError::setting("prune.micro_batch_sequences", problem));
        }
        if !(self.lr > 0.0 && self.lr <= 10.0) {
            let problem = format!("is {}; it must be above 0 and at most 10", self.lr);
            return Err(TrainError::setting("prune.lr", problem));
        }
        if !(0.0..=1.0).contains(&self.weight_lr) {
            let problem = format!("is {}; it must be from 0 to 1", self.weight_lr);
            return Err(TrainError::setting("prune.weight_lr", problem));
        }
        if self.weight_lr > 0.0 && self.method != PruneMethod::Learned {
            let problem = "is there, but only `method = \"learned\"` trains anything; leave it out";
            return Err(TrainError::setting("prune.weight_lr", problem));
        }
        let learns = [
            ("prune.steps", self.steps != steps()),
            ("prune.lr", self.lr != lr()),
            ("prune.epsilon_start", self.epsilon_start != epsilon_start()),
            ("prune.epsilon_end", self.epsilon_end != epsilon_end()),
            ("prune.train", self.train != train_split()),
        ];
        if let (true, Some((key, _))) = (
            self.method != PruneMethod::Learned,
            learns.iter().find(|(_, given)| *given),
        ) {
            let problem = "is there, but only `method = \"learned\"` trains anything; leave it out";
            return Err(TrainError::setting(key, problem));
        }
        if self.method == PruneMethod::Magnitude && self.seed != 0 {
            let problem = "is there, but nothing reads it with this `prune.method`; leave it out";
            return Err(TrainError::setting("prune.seed", problem));
        }
        let passes = [
            (
                "prune.batch_sequences",
                self.batch_sequences != batch_sequences(),
            ),
            (
                "prune.micro_batch_sequences",
                self.micro_batch_sequences.is_some(),
            ),
            (
                "prune.sequence_length",
                self.sequence_length != sequence_length(),
            ),
        ];
        if let (true, Some((key, _))) = (
            self.method != PruneMethod::Learned && self.validation.is_none(),
            passes.iter().find(|(_, given)| *given),
        ) {
            let problem = "is there, but without `prune.validation` nothing reads it with this `prune.method`; leave it out";
            return Err(TrainError::setting(key, problem));
        }
        if self.validation.is_none() && self.validation_tokens.is_some() {
            let problem = "is there, but nothing to measure on; set `prune.validation` to a split, or leave it out";
            return Err(TrainError::setting("prune.validation_tokens", problem));
        }
        for (key, epsilon) in [
            ("prune.epsilon_start", self.epsilon_start),
            ("prune.epsilon_end", self.epsilon_end),
        ] {
            if !(1e-4..=1e3).contains(&epsilon) {
                let problem = format!("is {epsilon}; it must be from 0.0001 to 1000");
                return Err(TrainError::setting(key, problem));
            }
        }
        if self.epsilon_end > self.epsilon_start {
            let problem = format!(
                "is {}, more than `prune.epsilon_start` {}; masks harden as it falls",
                self.epsilon_end, self.epsilon_start
            );
            return Err(TrainError::setting("prune.epsilon_end", problem));
        }
        Ok(())
    }

    /// Whether a decoder has more hidden dims than are to stay, and was made for sequences this long.
    ///
    /// # Errors
    /// When it has not.
    pub fn check_model(&self, config: &Config) -> Result<()> {
        if self.ffn >= config.ffn {
            let problem = format!(
                "is {}, but the checkpoint's feed-forward layers are {} wide; write a smaller number",
                self.ffn, config.ffn
            );
            return Err(TrainError::setting("prune.ffn", problem));
        }
        if self.sequence_length > config.context {
            let problem = format!(
                "is {}, but the checkpoint was made for {} tokens of context; write at most that",
                self.sequence_length, config.context
            );
            return Err(TrainError::setting("prune.sequence_length", problem));
        }
        Ok(())
    }

    fn micro(&self) -> usize {
        self.micro_batch_sequences.unwrap_or(self.batch_sequences)
    }
}

/// Prunes `checkpoint` on `tokens` and leaves the smaller one in `out`, a draft's folder.
///
/// # Errors
/// When the inputs do not belong together, the disk refuses, or `interrupt` is raised.
pub fn prune(
    settings: &PruneSettings,
    checkpoint: &Path,
    tokens: &Artifact,
    out: &Path,
    pool: &Arc<Pool>,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<PruneReport> {
    settings.check()?;
    let refuse = |problem: String| TrainError::Data {
        place: checkpoint.to_owned(),
        problem,
    };
    let decoder = checkpoint::open(checkpoint)?;
    let (config, k) = (decoder.config().clone(), settings.ffn);
    if matches!(decoder.output_table(), Embedding::Int8(_)) {
        return Err(refuse(
            "it is a package; prune the checkpoint that it was made from".to_owned(),
        ));
    }
    settings.check_model(&config)?;
    let tokenizer = Tokenizer::open(checkpoint)?;
    let shard = |split: &str| -> Result<TokenShard> {
        let shard = TokenShard::open(tokens.file(&format!("{split}.tokens.safetensors"))?)?;
        if shard.tokenizer_blake3() != tokenizer.blake3() {
            return Err(refuse(format!(
                "it has another tokenizer than the one that made {}; encode the text with this one",
                shard.path().display()
            )));
        }
        Ok(shard)
    };
    let mut ctx = Ctx::new(pool.clone());
    let begin_of_text = |shard: &TokenShard| tokenizer.special().bos.unwrap_or(shard.end_of_text());
    let validation = match &settings.validation {
        None => None,
        Some(split) => {
            let shard = shard(split)?;
            let (begin, length) = (begin_of_text(&shard), settings.sequence_length);
            let pass = settings.micro() * length;
            Some(Validation::new(
                shard,
                begin,
                settings.validation_tokens,
                length,
                pass,
            )?)
        }
    };
    let mut measure = |decoder: &Decoder| -> Result<Option<f64>> {
        let measured = validation.as_ref().map(|validation| {
            let goes_on = &mut |_| !interrupt.is_raised();
            let measured = validation.measure(&mut ctx, decoder, goes_on)?;
            measured.ok_or(TrainError::Interrupted)
        });
        Ok(measured.transpose()?.map(|result| result.nats_per_token))
    };
    let nats_before = measure(&decoder)?;

    let (mut last_loss, mut hardness) = (None, None);
    let (source, kept, factors) = match settings.method {
        PruneMethod::Learned => {
            let shard = shard(&settings.train)?;
            let begin = begin_of_text(&shard);
            let learnt = learn(settings, decoder, shard, begin, pool, progress, interrupt)?;
            last_loss = Some(learnt.loss);
            let masks = learnt.masks;
            let kept: Vec<Vec<usize>> = masks.iter().map(|mask| greatest(mask, k)).collect();
            let factors: Vec<Vec<f32>> = masks
                .iter()
                .zip(&kept)
                .map(|(mask, kept)| kept.iter().map(|&i| mask[i]).collect())
                .collect();
            let sum: f64 = factors.iter().flatten().map(|&f| f64::from(f)).sum();
            hardness = Some(sum / (k * kept.len()) as f64);
            let source = match learnt.decoder {
                Some(decoder) => decoder,
                None => checkpoint::load(checkpoint)?,
            };
            (source, kept, factors)
        }
        PruneMethod::Magnitude => {
            let scores = magnitudes(&decoder);
            let kept = scores.iter().map(|scores| greatest(scores, k)).collect();
            (decoder, kept, vec![vec![1.0; k]; config.layers])
        }
        PruneMethod::Random => {
            let score = |layer: usize, i: usize| {
                random::uniform(settings.seed ^ CHOICE, layer as u64, i as u64)
            };
            let kept = (0..config.layers)
                .map(|layer| {
                    let scores: Vec<f32> = (0..config.ffn).map(|i| score(layer, i)).collect();
                    greatest(&scores, k)
                })
                .collect();
            (decoder, kept, vec![vec![1.0; k]; config.layers])
        }
    };
    let small = slice(&source, &kept, &factors);
    let report = PruneReport {
        method: settings.method,
        ffn_before: config.ffn,
        ffn: k,
        parameters_before: config.parameters(),
        parameters: small.config().parameters(),
        last_loss,
        hardness,
        nats_before,
        nats_after: measure(&small)?,
        kept,
    };
    write(&small, checkpoint, &report, out)?;
    Ok(report)
}

/// What learning masks leaves.
struct Learnt {
    masks: Vec<Vec<f32>>, // λ at ε₁, a layer each
    loss: f32,
    decoder: Option<Decoder>, // where its weights have changed
}

/// Learns the masks of all layers by the one training loop.
fn learn(
    settings: &PruneSettings,
    decoder: Decoder,
    shard: TokenShard,
    begin_of_text: u32,
    pool: &Arc<Pool>,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<Learnt> {
    // One rate for all: where the weights learn too, scores are kept shorter by the quotient of the rates, and so is ε.
    let joint = settings.weight_lr > 0.0;
    let peak = if joint {
        settings.weight_lr
    } else {
        settings.lr
    };
    let gain = settings.lr / peak;
    let sharpness = Sharpness::new(settings.epsilon_start / gain);
    let decoder = masked(decoder, settings.ffn, &sharpness, joint);
    let packing = Packing {
        kind: PackingKind::Stream,
        sequence_length: settings.sequence_length,
        batch_sequences: settings.batch_sequences,
        micro_batch_sequences: settings.micro(),
        seed: settings.seed,
    };
    let mut batches = Annealed {
        batches: Mixture::single(shard, begin_of_text, packing)?,
        sharpness: sharpness.clone(),
        from: settings.epsilon_start / gain,
        to: settings.epsilon_end / gain,
        step: 0,
        steps: settings.steps,
    };
    let adamw = AdamWSettings {
        weight_decay: 0.0, // too short to need it
        ..AdamWSettings::default()
    };
    let mut state = State::new(decoder, OptimizerSettings::AdamW(adamw));
    let mut ctx = Ctx::new(pool.clone());
    let run = Loop {
        name: "prune",
        steps: settings.steps,
        schedule: Schedule {
            peak,
            warmup_steps: settings.steps.div_ceil(20),
            steps: settings.steps,
            shape: Shape::Cosine { final_ratio: 0.1 },
        },
        clip_norm: joint.then_some(1.0), // that of the scores alone says little about their scale
        skip_norm: None,
        spike_deviations: 0.0,
        objective: &NextToken,
        batches: &mut batches,
        measure: None,
        measures_start: false,
        at_end: None,
        saving: None,
        log: None,
        progress,
        record: None,
        interrupt,
        peak_flops: crate::matmul_gflops(pool) * 1e9,
    };
    if train(run, &mut ctx, &mut state)? == Ended::Interrupted {
        return Err(TrainError::Interrupted);
    }
    let masks = scores(&state.decoder).into_iter().map(|scores| {
        let mut mask = vec![0.0; scores.len()];
        let epsilon = settings.epsilon_end / gain;
        kernel::soft_top_k(scores.data(), settings.ffn, epsilon, &mut mask);
        mask
    });
    Ok(Learnt {
        masks: masks.collect(),
        loss: state.tally.last_loss,
        decoder: joint.then_some(state.decoder),
    })
}

/// Where the k greatest scores stand, in rising order; the first of equals stay.
fn greatest(scores: &[f32], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order.truncate(k);
    order.sort_unstable();
    order
}

/// Everything that a folder of the Hugging Face hub has.
fn write(decoder: &Decoder, source: &Path, report: &PruneReport, out: &Path) -> Result<()> {
    let io = |place: &Path| {
        let place = place.to_owned();
        move |error: std::io::Error| TrainError::Data {
            place,
            problem: error.to_string(),
        }
    };
    checkpoint::save(decoder, out)?;
    for name in crate::publish::TOKENIZER_FILES {
        let from = source.join(name);
        if from.exists() {
            fs::copy(&from, out.join(name)).map_err(io(&from))?;
        }
    }
    let json = serde_json::to_string_pretty(report).expect("numbers and strings can be written");
    let path = out.join(PRUNE_REPORT);
    fs::write(&path, json + "\n").map_err(io(&path))?;
    let method = match report.method {
        PruneMethod::Learned => "by soft top-k masks learned on data",
        PruneMethod::Magnitude => "by the magnitude of their weights",
        PruneMethod::Random => "at random",
    };
    let card = format!(
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [russet]\n---\n\n# Pruned model\n\n\
         {} of {} hidden dims of each feed-forward layer were kept, chosen {method}: {} of {} parameters. Meant as the start \
         of further training.\n\nWhat was kept stands in `{PRUNE_REPORT}`, settings, inputs and hashes in `manifest.json`.\n",
        report.ffn, report.ffn_before, report.parameters, report.parameters_before
    );
    let path = out.join("README.md");
    fs::write(&path, card).map_err(io(&path))
}

#[cfg(test)]
mod tests;
