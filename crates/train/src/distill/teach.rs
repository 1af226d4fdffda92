//! Stage `teacher-logits`: a teacher is asked about every token of a shard once, so that many students can learn from it.
//!
//! The shard is cut into windows of T tokens from its beginning, as the first epoch of training cuts it: a student with the
//! same `sequence_length` then sees exactly what the teacher would have said beside it. Later epochs cut elsewhere; there a
//! prediction near the head of a window rests on a little more or less context than the student has.

use std::path::Path;
use std::sync::Arc;

use russet_artifact::{Artifact, Interrupt, Progress};
use russet_kernels::cross_entropy::{MAX_SPARSE, log_sum_exp};
use russet_kernels::{Isa, Pool};
use russet_model::Config;
use russet_tensor::{Ctx, ops};
use russet_tokenizer::{TokenShard, Tokenizer};
use serde::{Deserialize, Serialize};

use super::open_teacher;
use super::store::{TeacherWriter, file_name};
use crate::loader::{Batch, append};
use crate::{Result, TrainError};

/// Logits that exist at a time: 16 MiB.
const LOGITS: usize = 1 << 22;

/// Tokens of a forward pass, or one window where that is longer.
const PASS_TOKENS: usize = 2048;

/// `[teacher_logits]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeachSettings {
    /// K, the tokens kept of each position.
    #[serde(default = "k")]
    pub k: usize,
    /// T, tokens of a window: the student's `train.sequence_length`.
    pub sequence_length: usize,
    /// The splits of the tokens to ask about.
    #[serde(default = "splits")]
    pub splits: Vec<String>,
}

fn k() -> usize {
    16
}

fn splits() -> Vec<String> {
    vec!["train".to_owned()]
}

/// What a teacher has said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TeachReport {
    /// Tokens asked about.
    pub tokens: u64,
    /// The mean probability that the K tokens have together.
    pub covered: f64,
    /// Mean loss of the teacher itself, in nats per token.
    pub nats_per_token: f64,
}

impl TeachSettings {
    /// Checks what does not depend on the inputs.
    ///
    /// # Errors
    /// When a number is out of its range or there is no split.
    pub fn check(&self) -> Result<()> {
        if !(1..=MAX_SPARSE).contains(&self.k) {
            let problem = format!("is {}; it must be from 1 to {MAX_SPARSE}", self.k);
            return Err(TrainError::setting("teacher_logits.k", problem));
        }
        if !(1..=1 << 24).contains(&self.sequence_length) {
            let problem = format!("is {}; it must be from 1 to 16777216", self.sequence_length);
            return Err(TrainError::setting(
                "teacher_logits.sequence_length",
                problem,
            ));
        }
        if self.splits.is_empty() {
            let problem = "is empty; name a split of the tokens, such as \"train\"";
            return Err(TrainError::setting("teacher_logits.splits", problem));
        }
        Ok(())
    }

    /// Checks what depends on the teacher's shape.
    ///
    /// # Errors
    /// When it knows fewer tokens or shorter sequences.
    pub fn check_teacher(&self, teacher: &Config) -> Result<()> {
        let Config { context, vocab, .. } = *teacher;
        if self.sequence_length > context {
            let problem = format!(
                "is {}, but the teacher was made for {context} tokens of context",
                self.sequence_length
            );
            return Err(TrainError::setting(
                "teacher_logits.sequence_length",
                problem,
            ));
        }
        if self.k > vocab {
            let problem = format!("is {}, more than the vocabulary of {vocab}", self.k);
            return Err(TrainError::setting("teacher_logits.k", problem));
        }
        Ok(())
    }
}

/// Asks the checkpoint `teacher` about the splits of `tokens` and leaves a file each in `out`, a draft's folder.
///
/// # Errors
/// When the inputs do not belong together, the disk refuses, or `interrupt` is raised.
pub fn teach(
    settings: &TeachSettings,
    teacher: &Path,
    tokens: &Artifact,
    out: &Path,
    pool: &Arc<Pool>,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<TeachReport> {
    settings.check()?;
    let mut shards = Vec::new();
    for split in &settings.splits {
        let path = tokens.file(&format!("{split}.tokens.safetensors"))?;
        shards.push((split, TokenShard::open(path)?));
    }
    let total: u64 = shards.iter().map(|(_, shard)| shard.tokens() as u64).sum();
    let decoder = open_teacher(teacher, &shards[0].1)?;
    let vocab = decoder.config().vocab;
    let (length, k) = (settings.sequence_length, settings.k);
    settings.check_teacher(decoder.config())?;
    // As the student's plan has it.
    let begin_of_text = Tokenizer::open(teacher)?.special().bos;
    let mut ctx = Ctx::new(pool.clone());
    let (mut done, mut covered, mut nats) = (0, 0.0, 0.0);
    progress.begin("teacher-logits", Some(total), "tokens");
    for (split, shard) in &shards {
        let begin_of_text = begin_of_text.unwrap_or(shard.end_of_text());
        let mut writer =
            TeacherWriter::create(&out.join(file_name(split)), shard.tokens(), k, vocab)?;
        let pass = (PASS_TOKENS / length).max(1) * length;
        for start in (0..shard.tokens()).step_by(pass) {
            if interrupt.is_raised() {
                return Err(TrainError::Interrupted);
            }
            let mut batch = Batch::default();
            let end = shard.tokens().min(start + pass);
            for start in (start..end).step_by(length) {
                append(
                    &mut batch,
                    shard,
                    0,
                    begin_of_text,
                    start..end.min(start + length),
                )?;
            }
            let hidden = decoder.forward(&mut ctx, &batch.tokens, &batch.segments, None); // [N, D]
            let chunk = (LOGITS / vocab).max(1);
            for first in (0..batch.tokens.len()).step_by(chunk) {
                let rows: Vec<usize> = (first..batch.tokens.len().min(first + chunk)).collect();
                let part = ops::rows(&mut ctx, &hidden, &rows);
                let logits = decoder.logits(&mut ctx, &part); // [rows, V]
                let targets = &batch.targets[first..][..rows.len()];
                let mut likeliest = vec![(0, 0.0); rows.len() * k];
                pool.for_each_chunk(&mut likeliest, k, |row, out| {
                    most(pool.isa(), &logits.data()[row * vocab..][..vocab], out);
                });
                for (row, &target) in logits.data().chunks_exact(vocab).zip(targets) {
                    nats += f64::from(log_sum_exp(pool.isa(), row) - row[target as usize]);
                }
                covered += likeliest
                    .iter()
                    .map(|&(_, log_prob)| libm::exp(f64::from(log_prob)))
                    .sum::<f64>();
                writer.push(&likeliest)?;
            }
            done += (end - start) as u64;
            progress.update(done, &[("covered", covered / done as f64)]);
        }
        writer.finish();
    }
    Ok(TeachReport {
        tokens: total,
        covered: covered / total as f64,
        nats_per_token: nats / total as f64,
    })
}

/// The likeliest tokens of a row with their log-probabilities, the likeliest first, the lower id first of two alike.
fn most(isa: Isa, logits: &[f32], out: &mut [(u32, f32)]) {
    let log_sum = log_sum_exp(isa, logits);
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let by_logit = |a: &u32, b: &u32| {
        logits[*b as usize]
            .total_cmp(&logits[*a as usize])
            .then(a.cmp(b))
    };
    let k = out.len();
    if k < order.len() {
        order.select_nth_unstable_by(k - 1, by_logit);
    }
    order[..k].sort_unstable_by(by_logit);
    for (out, &id) in out.iter_mut().zip(&order) {
        // Rounding may leave the likeliest a little above certainty.
        *out = (id, (logits[id as usize] - log_sum).min(0.0));
    }
}
