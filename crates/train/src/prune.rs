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

mod learn;
mod mask;
mod slice;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use russet_artifact::{Artifact, Interrupt, Kind, Progress, Stage};
use russet_kernels::random;
use russet_model::{Config, Decoder, Embedding, checkpoint};
use russet_tensor::Ctx;
use russet_tokenizer::{TokenShard, Tokenizer};
use serde::{Deserialize, Serialize};

use crate::price::Memory;
use crate::publish::Publication;
use crate::run::{Measured, VALIDATION_LOSS};
use crate::settings::{ComputeSettings, Recompute};
use crate::training::{Outcome, Resume};
use crate::validation::{Validation, ValidationResult};
use crate::{Result, TrainError};

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
        let learns = [
            ("prune.steps", self.steps != steps()),
            ("prune.lr", self.lr != lr()),
            ("prune.weight_lr", self.weight_lr > 0.0),
            ("prune.epsilon_start", self.epsilon_start != epsilon_start()),
            ("prune.epsilon_end", self.epsilon_end != epsilon_end()),
            ("prune.train", self.train != train_split()),
        ];
        let given = learns.iter().filter(|(_, given)| *given);
        let given: Vec<&str> = given.map(|(key, _)| *key).collect();
        if let ([key, others @ ..], true) = (&given[..], self.method != PruneMethod::Learned) {
            let others = others.iter().map(|key| format!(", and so is `{key}`"));
            let problem = format!(
                "is there{}, but only `method = \"learned\"` trains anything; leave out what it alone reads",
                others.collect::<String>()
            );
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

    /// Operations of learning: weights that do not learn have no gradients of their own to be made.
    pub fn flops(&self, config: &Config) -> f64 {
        let passes = match (self.method, self.weight_lr > 0.0) {
            (PruneMethod::Learned, true) => 3.0,
            (PruneMethod::Learned, false) => 2.0,
            _ => 0.0,
        };
        let tokens = self.steps as f64 * (self.batch_sequences * self.sequence_length) as f64;
        passes * tokens * config.forward_flops(self.sequence_length / 2)
    }

    /// What learning takes: beside a training's step the masked inputs of each layer's `down`. Weights that do not learn have neither
    /// gradients nor moments.
    pub fn memory(&self, config: &Config, recompute: Recompute) -> Memory {
        let scores = config.layers * config.ffn;
        let learns = match self.weight_lr > 0.0 {
            true => config.parameters() + scores,
            false => scores,
        };
        let rows = self.micro().saturating_mul(self.sequence_length);
        let saves = self.steps > learn::CHECKPOINT_EVERY;
        let mut memory = Memory::of_step(config, rows, recompute, learns, 0, saves);
        let masked = rows.saturating_mul(size_of::<f32>() * scores);
        memory.activations = memory.activations.saturating_add(masked);
        if self.weight_lr == 0.0 {
            // To be cut they are read once more, since what does not learn is no parameter of the decoder with masks.
            memory.weights = memory.weights.saturating_mul(2);
        }
        memory
    }

    fn micro(&self) -> usize {
        self.micro_batch_sequences.unwrap_or(self.batch_sequences)
    }
}

/// A checkpoint to be pruned, and the tokens that go with it.
#[derive(Debug)]
pub struct Pruning {
    settings: PruneSettings,
    checkpoint: PathBuf,
    config: Config,
    tokenizer: Tokenizer,
    train: PathBuf,
    validation: Option<PathBuf>,
}

/// How pruning ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pruned {
    /// The checkpoint is written.
    Finished,
    /// It was there already.
    Current,
    /// Stopped on request; the same call goes on from here.
    Interrupted {
        /// Steps of the masks done.
        step: u64,
    },
}

/// What stays of each layer.
struct Choice {
    /// Hidden dims in rising order.
    kept: Vec<Vec<usize>>,
    /// What their columns of down are multiplied by.
    factors: Vec<Vec<f32>>,
}

impl Pruning {
    /// Looks at what is there.
    ///
    /// # Errors
    /// When a setting is out of its range, or the inputs do not belong together.
    pub fn new(settings: PruneSettings, checkpoint: &Path, tokens: &Artifact) -> Result<Pruning> {
        settings.check()?;
        let refuse = |problem: String| TrainError::Data {
            place: checkpoint.to_owned(),
            problem,
        };
        let decoder = checkpoint::open(checkpoint)?;
        let what = match (decoder.output_table(), decoder.reward_head()) {
            (Embedding::Frozen(_), _) => Some("a package"),
            (_, Some(_)) => Some("a reward model"),
            _ => None,
        };
        if let Some(what) = what {
            let problem = format!("it is {what}; prune the checkpoint that it was made from");
            return Err(refuse(problem));
        }
        settings.check_model(decoder.config())?;
        let tokenizer = Tokenizer::open(checkpoint)?;
        let shard = |split: &str| -> Result<PathBuf> {
            let path = tokens.file(&format!("{split}.tokens.safetensors"))?;
            let shard = TokenShard::open(path)?;
            if shard.tokenizer_blake3() != tokenizer.blake3() {
                return Err(refuse(format!(
                    "it has another tokenizer than the one that made {}; encode the text with this one",
                    shard.path().display()
                )));
            }
            Ok(shard.path().to_owned())
        };
        Ok(Pruning {
            train: match settings.method {
                PruneMethod::Learned => shard(&settings.train)?,
                _ => PathBuf::new(), // nothing is learnt
            },
            validation: settings.validation.as_deref().map(shard).transpose()?,
            config: decoder.config().clone(),
            checkpoint: checkpoint.to_owned(),
            settings,
            tokenizer,
        })
    }

    /// Prunes, and leaves the smaller checkpoint in `out`, as the artifact of `stage`. Learning that is killed at any moment goes on
    /// when this is called again, and leaves the same bytes.
    ///
    /// # Errors
    /// When `out` or the state beside it holds something else, the masks diverge, the system refuses, or `interrupt` is raised while
    /// nothing is learnt.
    pub fn run(
        &self,
        stage: Stage,
        compute: &ComputeSettings,
        out: &Path,
        resume: Resume,
        progress: &mut dyn Progress,
        interrupt: &Interrupt,
    ) -> Result<Pruned> {
        if self.settings.method == PruneMethod::Learned {
            let outcome = self.learn(stage, compute, out, resume, progress, interrupt)?;
            return Ok(match outcome {
                Outcome::Finished(_) => Pruned::Finished,
                Outcome::Current => Pruned::Current,
                Outcome::Interrupted { step } => Pruned::Interrupted { step },
            });
        }
        if resume == Resume::Continue && stage.current(out, Kind::Checkpoint).is_ok() {
            return Ok(Pruned::Current);
        }
        let draft = stage.begin(out, Kind::Checkpoint)?;
        self.choose(compute, interrupt)?.write(&draft)?;
        draft.commit(&stage)?;
        Ok(Pruned::Finished)
    }

    /// Chooses by what needs no learning.
    fn choose(&self, compute: &ComputeSettings, interrupt: &Interrupt) -> Result<Publication> {
        let settings = &self.settings;
        let mut ctx = Ctx::new(Arc::new(compute.pool(1)?));
        ctx.compute = compute.dtype.kernel();
        let mut measure = |decoder: &Decoder| -> Result<Measured> {
            let Some(validation) = self.validation()? else {
                return Ok(Measured::new());
            };
            let goes_on = &mut |_| !interrupt.is_raised();
            let result = validation.measure(&mut ctx, decoder, goes_on)?;
            result
                .map(ValidationResult::measured)
                .ok_or(TrainError::Interrupted)
        };
        let decoder = checkpoint::load(&self.checkpoint)?;
        let before = measure(&decoder)?;
        let k = settings.ffn;
        let kept: Vec<Vec<usize>> = match settings.method {
            PruneMethod::Random => {
                let score = |layer: usize, i: usize| {
                    random::uniform(settings.seed ^ CHOICE, layer as u64, i as u64)
                };
                (0..self.config.layers)
                    .map(|layer| {
                        let scores: Vec<f32> =
                            (0..self.config.ffn).map(|i| score(layer, i)).collect();
                        greatest(&scores, k)
                    })
                    .collect()
            }
            _ => {
                let scores = magnitudes(&decoder);
                scores.iter().map(|scores| greatest(scores, k)).collect()
            }
        };
        let factors = vec![vec![1.0; k]; self.config.layers];
        let small = slice(&decoder, &kept, &factors);
        drop(decoder);
        let after = measure(&small)?;
        let report = self.report(Choice { kept, factors }, None, &before, &after);
        let mut publication =
            Publication::checkpoint(&small, &self.checkpoint).expect("it is on no mesh");
        publication.files = files(&report);
        Ok(publication)
    }

    fn report(
        &self,
        choice: Choice,
        last_loss: Option<f32>,
        before: &Measured,
        after: &Measured,
    ) -> PruneReport {
        let Choice { kept, factors } = choice;
        let small = Config {
            ffn: self.settings.ffn,
            ..self.config.clone()
        };
        let nats = |measured: &Measured| {
            let loss = measured.iter().find(|(name, _)| *name == VALIDATION_LOSS);
            loss.map(|(_, loss)| *loss)
        };
        let sum: f64 = factors.iter().flatten().map(|&f| f64::from(f)).sum();
        PruneReport {
            method: self.settings.method,
            ffn_before: self.config.ffn,
            ffn: small.ffn,
            parameters_before: self.config.parameters(),
            parameters: small.parameters(),
            last_loss,
            hardness: last_loss.map(|_| sum / (small.ffn * kept.len()) as f64),
            nats_before: nats(before),
            nats_after: nats(after),
            kept,
        }
    }

    /// A split as it lies there, and what its documents begin with.
    fn shard(&self, path: &Path) -> Result<(TokenShard, u32)> {
        let shard = TokenShard::open(path)?;
        let begin_of_text = self.tokenizer.special().bos.unwrap_or(shard.end_of_text());
        Ok((shard, begin_of_text))
    }

    /// What it is measured on, if on anything.
    fn validation(&self) -> Result<Option<Validation>> {
        let Some(path) = &self.validation else {
            return Ok(None);
        };
        let (shard, begin) = self.shard(path)?;
        let length = self.settings.sequence_length;
        let pass = self.settings.micro() * length;
        let tokens = self.settings.validation_tokens;
        Ok(Some(Validation::new(shard, begin, tokens, length, pass)?))
    }
}

/// Where the k greatest scores stand, in rising order; the first of equals stay.
fn greatest(scores: &[f32], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order.truncate(k);
    order.sort_unstable();
    order
}

/// What goes beside the weights.
fn files(report: &PruneReport) -> Vec<(String, Vec<u8>)> {
    let json = serde_json::to_string_pretty(report).expect("numbers and strings can be written");
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
    vec![
        ("README.md".to_owned(), card.into_bytes()),
        (PRUNE_REPORT.to_owned(), (json + "\n").into_bytes()),
    ]
}

#[cfg(test)]
mod tests;
