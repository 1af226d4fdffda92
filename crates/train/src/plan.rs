//! A recipe that has been checked: what would be trained, on what, at what price.
//!
//! Settings are checked once, here; the loop does not doubt them again. What the recipe left open is filled in, so that
//! the resolved settings say everything the result is a function of.

use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use russet_artifact::{Artifact, Inputs, Kind, Recipe, Stage, Tool};
use russet_kernels::Pool;
use russet_model::config::RopeScaling;
use russet_model::{Config, Family};
use russet_tokenizer::{SpecialIds, TokenShard, Tokenizer};
use serde_json::Value;

use crate::distill::{Distill, TeacherInput};
use crate::loader::Packing;
use crate::objective::{NextToken, Objective};
use crate::optimizer::AdamWSettings;
use crate::price::{Description, Estimate, memory, training_flops};
use crate::schedule::Schedule;
use crate::settings::{ModelSettings, Settings, TrainSettings};
use crate::{Result, TrainError};

/// Settings that never change the weights or what is said of them; a run that differs in these alone is the same run.
const IDLE_SETTINGS: [(&str, &str); 5] = [
    ("compute", "threads"),
    ("compute", "recompute"),
    ("train", "log_every"),
    ("train", "checkpoint_every"),
    ("train", "validate_every"),
];

/// A checked recipe with its data.
#[derive(Debug)]
pub struct Plan {
    settings: Settings,
    config: Config,
    steps: u64,
    tokens: Artifact,
    tokenizer: PathBuf,
    train: PathBuf,
    validation: Option<PathBuf>,
    shard_tokens: u64,
    shard_documents: u64,
    begin_of_text: u32,
    teacher: Option<TeacherInput>,
}

impl Plan {
    /// Checks settings against each other and against the tokens in the folder `tokens`.
    ///
    /// # Errors
    /// When a setting cannot be, or the folder is no tokens artifact with the shards and the tokenizer that are needed.
    pub fn new(mut settings: Settings, tokens: &Path) -> Result<Plan> {
        settings = settings.resolved()?;
        let tokens = Artifact::open(tokens, Kind::Tokens)?;
        let train = shard_path(&tokens, &settings.data.train)?;
        let validation = settings
            .data
            .validation
            .as_ref()
            .map(|name| shard_path(&tokens, name))
            .transpose()?;
        let folder = match tokens.file("tokenizer.json") {
            Ok(_) => tokens.dir().to_owned(),
            Err(_) => tokens.input("tokenizer")?.dir().to_owned(),
        };
        let tokenizer = Tokenizer::open(&folder)?;
        let shard = TokenShard::open(&train)?;
        check_tokenizer(&shard, &tokenizer, &folder)?;
        if let Some(path) = &validation {
            check_tokenizer(&TokenShard::open(path)?, &tokenizer, &folder)?;
        }

        let mut config = decoder_config(&settings.model, tokenizer.special(), shard.vocab_size())?;
        // A tokenizer that names no beginning of texts begins each with the end of the one before.
        let begin_of_text = *config.bos.get_or_insert(shard.end_of_text());
        let steps = settings.train.steps.expect("resolved above");
        Ok(Plan {
            config,
            steps,
            tokenizer: folder,
            train,
            validation,
            shard_tokens: shard.tokens() as u64,
            shard_documents: shard.documents() as u64,
            begin_of_text,
            teacher: None,
            tokens,
            settings,
        })
    }

    /// The plan with a teacher for its `[distill]`.
    ///
    /// # Errors
    /// When there is no `[distill]`, or it asks for what this teacher does not offer.
    pub fn taught_by(mut self, teacher: TeacherInput) -> Result<Plan> {
        let Some(distill) = &self.settings.distill else {
            let problem = "is missing, but `inputs` name a teacher; say what to learn from it, such as kind = \"hard\"";
            return Err(TrainError::setting("distill", problem));
        };
        teacher.check(distill)?;
        self.teacher = Some(teacher);
        Ok(self)
    }

    /// What is learnt. Opens the teacher, if there is one.
    ///
    /// # Errors
    /// When the teacher is missing or knows other tokens.
    pub fn objective(&self) -> Result<Box<dyn Objective>> {
        let z_loss = self.settings.train.z_loss as f32;
        let teacher = match (&self.settings.distill, &self.teacher) {
            (None, _) if z_loss == 0.0 => return Ok(Box::new(NextToken)),
            (None, _) => None,
            (Some(_), None) => {
                let problem = "is there, but no teacher; name a checkpoint in `inputs.teacher`, or stored predictions in \
                               `inputs.teacher_logits`";
                return Err(TrainError::setting("distill", problem));
            }
            (Some(distill), Some(input)) => {
                let split = &self.settings.data.train;
                let length = self.settings.train.sequence_length;
                let teacher = input.open(&self.tokens, split, &self.open_train()?, length)?;
                Some((teacher, *distill))
            }
        };
        Ok(Box::new(Distill { z_loss, teacher }))
    }

    /// The settings with everything that was left open filled in, except threads.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The decoder's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Updates of the weights.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The folder of the tokenizer that made the tokens.
    pub fn tokenizer(&self) -> &Path {
        &self.tokenizer
    }

    /// The learning rates.
    pub fn schedule(&self) -> Schedule {
        let train = &self.settings.train;
        Schedule {
            peak: train.peak_lr,
            warmup_steps: train.warmup_steps.expect("resolved"),
            steps: self.steps,
            final_ratio: train.final_lr_ratio,
        }
    }

    /// The optimizer's settings.
    pub fn adamw(&self) -> AdamWSettings {
        let TrainSettings {
            beta1,
            beta2,
            epsilon,
            weight_decay,
            ..
        } = self.settings.train;
        AdamWSettings {
            beta1,
            beta2,
            epsilon,
            weight_decay,
        }
    }

    /// How the training shard is cut.
    pub fn packing(&self) -> Packing {
        packing(&self.settings.train)
    }

    /// The token that stands before each document.
    pub fn begin_of_text(&self) -> u32 {
        self.begin_of_text
    }

    /// Opens the training shard.
    ///
    /// # Errors
    /// When it has gone or changed since the plan was made.
    pub fn open_train(&self) -> Result<TokenShard> {
        Ok(TokenShard::open(&self.train)?)
    }

    /// Opens the held-out shard, if there is one.
    ///
    /// # Errors
    /// As [`Plan::open_train`].
    pub fn open_validation(&self) -> Result<Option<TokenShard>> {
        Ok(self.validation.as_ref().map(TokenShard::open).transpose()?)
    }

    /// The threads to train on.
    ///
    /// # Errors
    /// When `RUSSET_ISA` asks for an instruction set that there is not.
    pub fn pool(&self) -> Result<Pool> {
        Ok(Pool::new(self.threads())?)
    }

    fn threads(&self) -> usize {
        self.settings
            .compute
            .threads
            .unwrap_or_else(|| available_parallelism().map_or(1, |cores| cores.get()))
    }

    /// The stage that writes the checkpoint: everything the result is a function of, and nothing else. Threads and how
    /// often something is logged, saved or validated are not part of it.
    ///
    /// # Errors
    /// When the tokens have gone.
    pub fn stage(&self, tool: &Tool) -> Result<Stage> {
        let mut recipe = Recipe::resolved_json(&self.settings)?;
        for (table, key) in IDLE_SETTINGS {
            if let Some(Value::Object(table)) = recipe.get_mut(table) {
                table.remove(key);
            }
        }
        let mut inputs = Inputs::new().artifact("tokens", &self.tokens)?;
        if let Some(teacher) = &self.teacher {
            inputs = teacher.record(inputs)?;
        }
        Ok(Stage::new("pretrain", tool, recipe, inputs))
    }

    /// What it amounts to.
    pub fn describe(&self) -> Description {
        let packing = self.packing();
        let tokens_per_step = (packing.batch_sequences * packing.sequence_length) as u64;
        let tokens = self.steps * tokens_per_step;
        let flops = training_flops(&self.config, packing, tokens);
        Description {
            parameters: self.config.parameters(),
            embedding_parameters: self.config.embedding_parameters(),
            vocab: self.config.vocab,
            steps: self.steps,
            tokens_per_step,
            tokens,
            shard_tokens: self.shard_tokens,
            shard_documents: self.shard_documents,
            epochs: tokens as f64 / self.shard_tokens as f64,
            flops,
            memory: memory(
                &self.config,
                self.packing(),
                self.settings.compute.recompute,
            ),
            threads: self.threads(),
            validates: self.validation.is_some(),
        }
    }

    /// How long it takes on a machine of the given rate, which [`crate::matmul_gflops`] measures.
    pub fn estimate(&self, gflops: f64) -> Estimate {
        Estimate::new(self.describe().flops, gflops)
    }
}

impl Settings {
    /// Checked, and with everything filled in that follows without the tokens: what [`Plan::new`] begins with.
    ///
    /// # Errors
    /// When a setting cannot be.
    pub fn resolved(mut self) -> Result<Settings> {
        resolve(&mut self)?;
        check_train(&self.train)?;
        if let Some(distill) = &self.distill {
            distill.check()?;
        }
        if self
            .compute
            .threads
            .is_some_and(|threads| !(1..=1024).contains(&threads))
        {
            return Err(TrainError::setting(
                "compute.threads",
                "must be from 1 to 1024; leave it out to use every core",
            ));
        }
        // Of any vocabulary: only its size is the tokens' to say.
        self.decoder(1)?;
        Ok(self)
    }

    /// The decoder that resolved settings describe, over a vocabulary of `vocab`.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn decoder(&self, vocab: usize) -> Result<Config> {
        decoder_config(&self.model, &SpecialIds::default(), vocab)
    }
}

pub(crate) fn packing(train: &TrainSettings) -> Packing {
    Packing {
        sequence_length: train.sequence_length,
        batch_sequences: train.batch_sequences,
        micro_batch_sequences: train.micro_batch_sequences.expect("resolved"),
        seed: train.seed,
    }
}

/// Fills in what was left open.
pub(crate) fn resolve(settings: &mut Settings) -> Result<()> {
    let Settings { model, train, .. } = settings;
    for (key, size) in [
        ("model.width", model.width),
        ("model.layers", model.layers),
        ("model.heads", model.heads),
        ("model.kv_heads", model.kv_heads),
        ("model.ffn", model.ffn),
        ("model.head_dim", model.head_dim.unwrap_or(1)),
        ("model.context", model.context.unwrap_or(1)),
        ("train.batch_sequences", train.batch_sequences),
        ("train.sequence_length", train.sequence_length),
        (
            "train.micro_batch_sequences",
            train.micro_batch_sequences.unwrap_or(1),
        ),
    ] {
        if !(1..=1 << 24).contains(&size) {
            return Err(TrainError::setting(
                key,
                format!("is {size}; it must be from 1 to 16777216"),
            ));
        }
    }
    if model.head_dim.is_none() {
        if !model.width.is_multiple_of(model.heads) {
            let problem = format!(
                "is missing, and `model.width` {} is no multiple of `model.heads` {}; say how wide a head is",
                model.width, model.heads
            );
            return Err(TrainError::setting("model.head_dim", problem));
        }
        model.head_dim = Some(model.width / model.heads);
    }
    model.context.get_or_insert(train.sequence_length);
    train
        .micro_batch_sequences
        .get_or_insert(train.batch_sequences);
    let per_step = (train.batch_sequences * train.sequence_length) as u64;
    let steps = match (train.steps, train.tokens.take()) {
        (Some(_), Some(_)) => {
            return Err(TrainError::setting(
                "train.tokens",
                "stands beside `train.steps`; keep one of them",
            ));
        }
        (None, None) => {
            return Err(TrainError::setting(
                "train.steps",
                "is missing; say how long to train",
            ));
        }
        (Some(steps), None) => steps,
        (None, Some(tokens)) => tokens.div_ceil(per_step),
    };
    if !(1..=1 << 32).contains(&steps) {
        return Err(TrainError::setting(
            "train.steps",
            format!("is {steps}; it must be from 1 to 4294967296"),
        ));
    }
    train.steps = Some(steps);
    train.warmup_steps.get_or_insert(steps.div_ceil(100));
    Ok(())
}

/// Whether the numbers of `[train]` make sense. Comparisons are written so that NaN fails them.
pub(crate) fn check_train(train: &TrainSettings) -> Result<()> {
    let refuse = |key, problem: String| Err(TrainError::setting(key, problem));
    let (batch, micro) = (
        train.batch_sequences,
        train.micro_batch_sequences.expect("resolved"),
    );
    if !batch.is_multiple_of(micro) {
        return refuse(
            "train.micro_batch_sequences",
            format!("is {micro}, which does not divide the batch of {batch}"),
        );
    }
    if batch * train.sequence_length > 1 << 31 {
        return refuse(
            "train.batch_sequences",
            "times `train.sequence_length` is more than 2^31 tokens".to_owned(),
        );
    }
    let (warmup, steps) = (
        train.warmup_steps.expect("resolved"),
        train.steps.expect("resolved"),
    );
    if warmup > steps {
        return refuse(
            "train.warmup_steps",
            format!("is {warmup}, more than all {steps} steps; lower it too"),
        );
    }
    if !(train.peak_lr > 0.0 && train.peak_lr <= 10.0) {
        return refuse(
            "train.peak_lr",
            format!("is {}; it must be above 0 and at most 10", train.peak_lr),
        );
    }
    if !(0.0..=1.0).contains(&train.final_lr_ratio) {
        return refuse(
            "train.final_lr_ratio",
            format!("is {}; it must be from 0 to 1", train.final_lr_ratio),
        );
    }
    if !(0.0..=1.0 / train.peak_lr).contains(&train.weight_decay) {
        let problem = format!(
            "is {}; it must be from 0 to 1 / `train.peak_lr`",
            train.weight_decay
        );
        return refuse("train.weight_decay", problem);
    }
    for (key, beta) in [("train.beta1", train.beta1), ("train.beta2", train.beta2)] {
        if !(0.0..1.0).contains(&beta) {
            return refuse(key, format!("is {beta}; it must be at least 0 and below 1"));
        }
    }
    if !(train.epsilon > 0.0 && train.epsilon <= 1.0) {
        return refuse(
            "train.epsilon",
            format!("is {}; it must be above 0 and at most 1", train.epsilon),
        );
    }
    if !(train.clip_norm >= 0.0 && train.clip_norm.is_finite()) {
        return refuse(
            "train.clip_norm",
            format!(
                "is {}; it must be positive, or 0 for no limit",
                train.clip_norm
            ),
        );
    }
    if !(0.0..=1.0).contains(&train.z_loss) {
        return refuse(
            "train.z_loss",
            format!("is {}; it must be from 0 to 1", train.z_loss),
        );
    }
    if train.log_every == 0 {
        return refuse("train.log_every", "is 0; it must be at least 1".to_owned());
    }
    if train.validation_tokens == Some(0) {
        return refuse(
            "train.validation_tokens",
            "is 0; leave it out to measure the whole shard".to_owned(),
        );
    }
    Ok(())
}

pub(crate) fn decoder_config(
    model: &ModelSettings,
    special: &SpecialIds,
    vocab: usize,
) -> Result<Config> {
    let config = Config {
        family: Family::Qwen3,
        vocab,
        width: model.width,
        layers: model.layers,
        heads: model.heads,
        kv_heads: model.kv_heads,
        head_dim: model.head_dim.expect("resolved"),
        ffn: model.ffn,
        norm_epsilon: model.norm_epsilon as f32,
        rope_theta: model.rope_theta,
        rope_scaling: RopeScaling::None,
        context: model.context.expect("resolved"),
        tied: model.tied,
        bos: special.bos,
        eos: special.eos.clone(),
    };
    config
        .check()
        .map_err(|problem| TrainError::setting("model", format!("cannot be built: {problem}")))?;
    Ok(config)
}

fn shard_path(tokens: &Artifact, name: &str) -> Result<PathBuf> {
    Ok(tokens.file(&format!("{name}.tokens.safetensors"))?)
}

fn check_tokenizer(shard: &TokenShard, tokenizer: &Tokenizer, folder: &Path) -> Result<()> {
    if shard.tokenizer_blake3() == tokenizer.blake3()
        && shard.vocab_size() == tokenizer.vocab_size()
    {
        return Ok(());
    }
    let problem = format!(
        "was not made by the tokenizer in {}; encode the text again",
        folder.display()
    );
    Err(TrainError::Data {
        place: shard.path().to_owned(),
        problem,
    })
}

#[cfg(test)]
mod tests;
