//! What training costs: parameters, operations, memory, time. Formulas only; nothing is run.

use std::fmt;

use russet_kernels::ROW_BLOCK;
use russet_model::Config;
use serde::Serialize;

use crate::check::{Start, check_mesh, packing};
use crate::parallel::MeshPlan;
use crate::probe::Rate;
use crate::settings::{Recompute, Settings, StageName};
use crate::{Result, TrainError};

/// The share of the measured peak that a whole step reaches, for estimates: 0.78 to 0.80 on the tiny recipe's model
/// (Zen 4, 2 threads), a little less on others.
pub(crate) const EXPECTED_MFU: f64 = 0.75;
/// The same where products are on tiles, which leave the rest of a step the more of its time: about 0.3 to 0.5 of models of 6.5 and 21 million
/// parameters (`bench/ranks.py`, `russet bench train`; Emerald Rapids, 2 threads, a peak that wavers).
pub(crate) const EXPECTED_MFU_ON_TILES: f64 = 0.5;

/// What a plan amounts to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Description {
    /// All weights.
    pub parameters: usize,
    /// Those in the embedding and, where it is another, the output table.
    pub embedding_parameters: usize,
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// Updates of the weights.
    pub steps: u64,
    /// Tokens of a step.
    pub tokens_per_step: u64,
    /// Tokens seen in all.
    pub tokens: u64,
    /// What they come from.
    pub sources: Vec<SourceDescription>,
    /// Floating-point operations that the model needs for it, forward and backward, of full windows.
    pub flops: f64,
    /// What a teacher in the same process adds to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<TeacherPrice>,
    /// Memory at one time, of all ranks.
    pub memory: Memory,
    /// What each rank of a mesh has of it, and sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallel: Option<MeshPlan>,
    /// The rate of matrices over the schedule's: muP's, 1 without it.
    pub matrix_rate: f64,
    /// Threads.
    pub threads: usize,
    /// Whether there is something held out to measure.
    pub validates: bool,
    /// Tokens that are measured in all, over all measurements.
    pub validation_tokens: u64,
    /// Operations of that.
    pub validation_flops: f64,
}

/// A shard that is trained on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SourceDescription {
    /// Its name in the log.
    pub name: String,
    /// Its share of the sequences.
    pub share: f64,
    /// Tokens in it.
    pub tokens: u64,
    /// Documents in it.
    pub documents: u64,
    /// How often each token is seen.
    pub epochs: f64,
}

/// Bytes that a step takes, by formula.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Memory {
    /// The weights.
    pub weights: usize,
    /// Their gradients.
    pub gradients: usize,
    /// The optimizer's two moments, and the running mean of the weights where there is one.
    pub optimizer: usize,
    /// The copy of weights, moments and mean that is written while training goes on.
    pub saving: usize,
    /// What the forward pass of one micro-batch keeps for the backward pass, and the largest gradients of activations.
    pub activations: usize,
    /// The weights of a teacher in the same process, once a rank.
    pub teacher: usize,
}

/// What a recipe costs, known before any token exists: for a look ahead of the run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Price {
    /// All weights.
    pub parameters: usize,
    /// Updates of the weights.
    pub steps: u64,
    /// Tokens seen in all.
    pub tokens: u64,
    /// Floating-point operations that the model needs for it, forward and backward, of full windows.
    pub flops: f64,
    /// Memory at one time, of all ranks.
    pub memory: Memory,
    /// What each rank of a mesh has of it, and sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallel: Option<MeshPlan>,
}

impl Price {
    /// The price of settings with a vocabulary of `vocab`. `start` is the shape of the checkpoint to begin with, if any.
    ///
    /// # Errors
    /// When a setting cannot be.
    pub fn new(settings: Settings, vocab: usize, start: Option<&Config>) -> Result<Price> {
        let settings = settings.resolved(Start::from(start))?;
        let config = settings.decoder(vocab, start)?;
        check_mesh(&settings, &config)?;
        let packing = packing(&settings);
        let steps = settings.train.steps.expect("resolved");
        let tokens = steps * (packing.batch_sequences * packing.sequence_length) as u64;
        Ok(Price {
            parameters: config.parameters(),
            steps,
            tokens,
            flops: training_flops(&config, &settings, tokens),
            memory: memory(&config, &settings),
            parallel: MeshPlan::new(&config, &settings),
        })
    }

    /// How long it takes on a machine of the given rate in the recipe's type.
    pub fn estimate(&self, rate: Rate) -> Estimate {
        Estimate::new(self.flops, rate)
    }
}

/// How long a plan takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Were the machine to do nothing but the model's products at the given rate.
    pub seconds_at_peak: f64,
    /// At the share of it that whole steps usually reach.
    pub seconds: f64,
}

impl Estimate {
    /// How long so many operations take at a rate.
    pub fn new(flops: f64, rate: Rate) -> Estimate {
        let seconds_at_peak = flops / (rate.gflops * 1e9);
        Estimate {
            seconds_at_peak,
            seconds: seconds_at_peak / rate.reaches,
        }
    }
}

/// Forward once and backward at twice its price, at once its price where the weights are frozen; a token sees half of its
/// window on average.
pub(crate) fn training_flops(config: &Config, settings: &Settings, tokens: u64) -> f64 {
    let passes = match settings.adapter {
        None => 3.0,
        Some(_) => 2.0,
    };
    passes * tokens as f64 * config.forward_flops(settings.train.sequence_length / 2)
}

/// The bytes that a step takes. What the tape keeps of N tokens in each block: the residual stream before both norms (2 D),
/// queries, keys and values before and after rotation, the attention's output, gate and up (2 F), and a few numbers a
/// head; what norms and the activation make of it is computed again. Behind the blocks the last norm's input and output
/// with its gradient. The gradients of activations are largest in the feed-forward layer. Where blocks are computed again,
/// all but one keep their input only, and keys and values that later layers use.
///
/// Of several ranks it is the sum. Where adapters are trained, gradients, moments and saves are theirs, and the weights are the
/// base's: at most its numbers in f32, while a package is mapped and less.
pub(crate) fn memory(config: &Config, settings: &Settings) -> Memory {
    if let Some(plan) = MeshPlan::new(config, settings) {
        let all = |bytes: usize| bytes.saturating_mul(plan.ranks);
        let rank = plan.rank;
        return Memory {
            weights: all(rank.weights),
            gradients: all(rank.gradients),
            optimizer: all(rank.optimizer),
            saving: all(rank.saving),
            activations: all(rank.passing),
            teacher: 0,
        };
    }
    let packing = packing(settings);
    let rows = packing.micro_batch_sequences * packing.sequence_length;
    let projections = config.projection_parameters();
    let learns = match &settings.adapter {
        // Tables and scales are few beside them.
        None if settings.stage == StageName::Qat => projections,
        None => config.parameters(),
        Some(adapter) => adapter.parameters(config),
    };
    let means = usize::from(settings.train.ema > 0.0);
    let every = settings.train.checkpoint_every;
    let saves = every > 0 && every < settings.train.steps.expect("resolved");
    let recompute = settings.compute.recompute;
    let mut memory = Memory::of_step(config, rows, recompute, learns, means, saves);
    if settings.stage == StageName::Qat {
        // What the palettes stand for, and its gradient.
        let expanded = bytes(projections.saturating_mul(2));
        memory.activations = memory.activations.saturating_add(expanded);
    }
    memory
}

/// What the tape and the way back take of so many rows, in bytes.
fn activations(config: &Config, rows: usize, recompute: Recompute) -> usize {
    let Config {
        width,
        layers,
        heads,
        kv_heads,
        head_dim,
        ffn,
        ..
    } = *config;
    let statistics = 2 + 2 * heads + kv_heads;
    let kv = 2 * kv_heads * head_dim;
    // What a layer without keys and values spares; and keys that later layers use, with their gradients.
    let spared = config.attention.kv_shared * (2 * kv + kv_heads);
    let lent = config.lenders() * 2 * kv;
    // Floats that a row keeps, and that its gradient takes on the way back.
    let (attention, d_attention) = (
        2 * config.qkv_width() + heads * head_dim + width + statistics,
        2 * config.qkv_width() + heads * head_dim + 2 * width,
    );
    let (ffn, d_ffn) = (2 * ffn + width, 3 * ffn + 2 * width);
    let blocks = match recompute {
        Recompute::None => {
            rows.saturating_mul(layers * (attention + ffn) - spared + lent + d_ffn + 3 * width)
        }
        // One block's attention for all rows, and then the way back through its feed-forward layer, some rows at a time, or
        // through the attention.
        Recompute::Block => {
            let feed_forward = rows.min(ROW_BLOCK).saturating_mul(ffn + d_ffn);
            rows.saturating_mul(layers * width + attention + lent)
                .saturating_add(feed_forward.max(rows.saturating_mul(d_attention)))
        }
    };
    bytes(blocks)
}

/// Saturating: what no machine has need not be said to the byte.
fn bytes(floats: usize) -> usize {
    floats.saturating_mul(size_of::<f32>())
}

/// What a teacher in the same process adds to a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct TeacherPrice {
    /// Operations of its forward passes, one of every token.
    pub flops: f64,
    /// Bytes of its weights, in f32, once a rank.
    pub bytes: usize,
}

impl TeacherPrice {
    /// Of a teacher of this shape in a run of so many tokens by resolved settings.
    pub fn new(teacher: &Config, settings: &Settings, tokens: u64) -> TeacherPrice {
        let ranks = settings.parallel.mesh().ranks();
        TeacherPrice {
            flops: tokens as f64 * teacher.forward_flops(settings.train.sequence_length / 2),
            bytes: (teacher.parameters() * ranks).saturating_mul(size_of::<f32>()),
        }
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millions = |count: usize| count as f64 / 1e6;
        writeln!(
            f,
            "model    {:.2} M parameters, {:.2} M of them in the table of {} tokens",
            millions(self.parameters),
            millions(self.embedding_parameters),
            self.vocab
        )?;
        writeln!(
            f,
            "training {} steps of {} tokens = {:.2} M tokens",
            self.steps,
            self.tokens_per_step,
            self.tokens as f64 / 1e6,
        )?;
        if self.matrix_rate != 1.0 {
            writeln!(
                f,
                "rates    matrices learn at {:.3} times the schedule's rate (`optimizer.mup_base_width` over the width)",
                self.matrix_rate
            )?;
        }
        for source in &self.sources {
            writeln!(
                f,
                "  from {:.1} % {}, {:.2} epochs of {:.2} M tokens in {} documents",
                100.0 * source.share,
                source.name,
                source.epochs,
                source.tokens as f64 / 1e6,
                source.documents
            )?;
        }
        writeln!(
            f,
            "work     {:.3e} floating-point operations on {}",
            self.flops,
            match self.threads {
                1 => "1 thread".to_owned(),
                threads => format!("{threads} threads"),
            }
        )?;
        write!(f, "memory   {}", self.memory)?;
        if let Some(plan) = &self.parallel {
            write!(f, "\n{plan}")?;
        }
        if self.validates {
            let millions = self.validation_tokens as f64 / 1e6;
            write!(f, "\nheld out {millions:.2} M tokens over all measurements")?;
        } else {
            write!(
                f,
                "\nnothing is held out: set `data.validation` to a shard's name to measure as it trains"
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "model    {:.2} M parameters",
            self.parameters as f64 / 1e6
        )?;
        let millions = self.tokens as f64 / 1e6;
        writeln!(f, "training {} steps, {millions:.2} M tokens", self.steps)?;
        writeln!(f, "work     {:.3e} floating-point operations", self.flops)?;
        write!(f, "memory   {}", self.memory)?;
        match &self.parallel {
            Some(plan) => write!(f, "\n{plan}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: usize| bytes as f64 / (1u64 << 20) as f64;
        let parts = [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("a save", self.saving),
            ("activations", self.activations),
            ("the teacher", self.teacher),
        ];
        let parts: Vec<String> = parts
            .into_iter()
            .filter(|&(_, bytes)| bytes > 0)
            .map(|(name, bytes)| format!("{name} {:.0}", mib(bytes)))
            .collect();
        write!(f, "{:.0} MiB: {}", mib(self.total()), parts.join(", "))
    }
}

impl Memory {
    /// Of steps on one rank, of so many rows a pass: a decoder of which so many numbers learn, with running means of them, with a copy
    /// being saved.
    pub(crate) fn of_step(
        config: &Config,
        rows: usize,
        recompute: Recompute,
        learns: usize,
        means: usize,
        saves: bool,
    ) -> Memory {
        let learns = bytes(learns);
        Memory {
            weights: bytes(config.parameters()),
            gradients: learns,
            optimizer: learns.saturating_mul(2 + means),
            saving: learns.saturating_mul(usize::from(saves) * (3 + means)),
            activations: activations(config, rows, recompute),
            teacher: 0,
        }
    }

    /// All of it.
    pub fn total(&self) -> usize {
        [
            self.gradients,
            self.optimizer,
            self.saving,
            self.activations,
            self.teacher,
        ]
        .iter()
        .fold(self.weights, |sum, part| sum.saturating_add(*part))
    }

    /// Refuses what this machine's free memory cannot hold; an allocation that fails later would end the process without
    /// a sentence. Where the system does not say what is free, nothing is refused.
    ///
    /// # Errors
    /// When it needs more than there is.
    pub fn check(&self) -> Result<()> {
        self.check_share(1, 1)
    }

    /// As [`Memory::check`], where this machine has so many of all ranks.
    ///
    /// # Errors
    /// When its share needs more than there is.
    pub fn check_share(&self, ranks_here: usize, ranks: usize) -> Result<()> {
        let share = self.total() / ranks * ranks_here;
        match available_memory() {
            Some(available) if share > available => {
                let gib = |bytes: usize| bytes as f64 / (1u64 << 30) as f64;
                let problem = format!(
                    "with this batch needs {:.1} GiB to train, and {:.1} GiB are free; make it smaller, or give a pass fewer or \
                     shorter sequences",
                    gib(share),
                    gib(available)
                );
                Err(TrainError::setting("model", problem))
            }
            _ => Ok(()),
        }
    }
}

/// Bytes that a new process may take, by the kernel's own estimate; `None` where there is none.
fn available_memory() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: usize = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}
