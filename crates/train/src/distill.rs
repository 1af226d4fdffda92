//! Distillation: a student learns from a teacher's predictions beside the text.
//!
//! ```text
//! loss = (1 - m) (-ln p[t]) + m D + ζ (ln Σ exp z)²
//! hard    D = -ln p[a],  a the teacher's likeliest token     label = m onehot(a) + (1 - m) onehot(t): AFM, m = 0.9
//! kl      D = τ² Σ q ln(q / p),  q and p at temperature τ    (arXiv 1503.02531)
//! top_k   D over K tokens and the rest as one outcome        from what a `teacher-logits` stage stored
//! ```
//! The teacher runs in the same process, one forward pass a micro-batch without a tape, or was asked beforehand and its
//! answers lie in a file ([`store`]). Nothing flows back to it. The student's tokens must be the teacher's: the same
//! tokenizer to the byte.

pub mod store;
mod teach;

use std::fmt;
use std::path::{Path, PathBuf};

use russet_artifact::{Artifact, Inputs, Kind};
use russet_model::{Config, Decoder, Embedding, checkpoint};
use russet_tensor::ops::{LossTeacher, LossTerms, TokenLoss};
use russet_tensor::{Ctx, Tensor};
use russet_tokenizer::{TokenShard, Tokenizer};
use serde::{Deserialize, Serialize};

use crate::loader::Batch;
use crate::objective::Objective;
use crate::{Result, TrainError};

pub use store::{TeacherLogits, TeacherWriter};
pub use teach::{TeachReport, TeachSettings, teach};

/// `[distill]`: what is learnt from the teacher that `[inputs]` names.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistillSettings {
    /// Which divergence.
    pub kind: DistillKind,
    /// m, the teacher's share of the loss.
    #[serde(default = "mix")]
    pub mix: f64,
    /// τ of `kl`.
    #[serde(default = "temperature")]
    pub temperature: f64,
}

impl fmt::Display for DistillSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            DistillKind::Hard => "its likeliest token as a second label",
            DistillKind::Kl => "all of its probabilities",
            DistillKind::TopK => "its stored probabilities",
        };
        write!(f, "{kind}, {} of the loss", self.mix)
    }
}

/// Which divergence draws the student to the teacher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DistillKind {
    /// The teacher's likeliest token as a second label.
    Hard,
    /// All probabilities.
    Kl,
    /// K stored probabilities of each token.
    TopK,
}

fn mix() -> f64 {
    0.9 // AFM
}

fn temperature() -> f64 {
    1.0
}

/// Where a teacher's predictions come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TeacherInput {
    /// A checkpoint, run beside the student.
    Checkpoint(PathBuf),
    /// An artifact of the stage `teacher-logits`.
    Logits(PathBuf),
}

/// A teacher that fits the student's tokens.
pub enum Teacher {
    /// Runs in this process.
    Model(Box<Decoder>),
    /// Was asked beforehand, of each source in order.
    Stored(Vec<TeacherLogits>),
}

/// The next-token loss with z-loss and, where there is one, a teacher.
pub struct Distill {
    /// ζ.
    pub z_loss: f32,
    /// Who teaches, and how.
    pub teacher: Option<(Teacher, DistillSettings)>,
}

impl DistillSettings {
    /// # Errors
    /// When a number is out of its range.
    pub(crate) fn check(&self) -> Result<()> {
        if !(self.mix > 0.0 && self.mix <= 1.0) {
            let problem = format!("is {}; it must be above 0 and at most 1", self.mix);
            return Err(TrainError::setting("distill.mix", problem));
        }
        if !(0.01..=100.0).contains(&self.temperature) {
            let problem = format!("is {}; it must be from 0.01 to 100", self.temperature);
            return Err(TrainError::setting("distill.temperature", problem));
        }
        if self.temperature != 1.0 && self.kind != DistillKind::Kl {
            let problem = format!(
                "is {}, but only `distill.kind = \"kl\"` has a temperature; leave it out",
                self.temperature
            );
            return Err(TrainError::setting("distill.temperature", problem));
        }
        Ok(())
    }
}

impl TeacherInput {
    /// The name of the input that it is.
    pub fn input(&self) -> &'static str {
        match self {
            TeacherInput::Checkpoint(_) => "teacher",
            TeacherInput::Logits(_) => "teacher_logits",
        }
    }

    fn path(&self) -> &Path {
        match self {
            TeacherInput::Checkpoint(path) | TeacherInput::Logits(path) => path,
        }
    }

    /// Refuses what `settings` cannot use.
    ///
    /// # Errors
    /// When stored predictions are asked for what only a model knows, or the other way round.
    pub fn check(&self, settings: &DistillSettings) -> Result<()> {
        match (self, settings.kind) {
            (TeacherInput::Logits(_), DistillKind::Kl) => Err(TrainError::setting(
                "distill.kind",
                "is \"kl\", which needs all probabilities, but `inputs.teacher_logits` stores some of them; name a \
                 checkpoint in `inputs.teacher`, or write \"top_k\"",
            )),
            (TeacherInput::Checkpoint(_), DistillKind::TopK) => Err(TrainError::setting(
                "distill.kind",
                "is \"top_k\", which reads stored probabilities, but `inputs.teacher` is a checkpoint; write \"kl\", which \
                 uses all of them at the same price, or name a teacher-logits artifact in `inputs.teacher_logits`",
            )),
            _ => Ok(()),
        }
    }

    /// Adds itself to what a stage was made from.
    pub(crate) fn record(&self, inputs: Inputs) -> Result<Inputs> {
        Ok(match self {
            TeacherInput::Checkpoint(path) => {
                inputs.artifact_or_path(self.input(), path, Kind::Checkpoint)?
            }
            TeacherInput::Logits(path) => {
                let artifact = Artifact::open(path, Kind::TeacherLogits)?;
                inputs.artifact(self.input(), &artifact)?
            }
        })
    }

    /// Refuses what cannot teach students on such a shard, without reading weights or predictions; the shape of a checkpoint.
    ///
    /// # Errors
    /// When a checkpoint has another tokenizer or vocabulary, or was made for shorter sequences; when predictions were stored of
    /// windows of another length.
    pub(crate) fn look(
        &self,
        shard: &TokenShard,
        sequence_length: usize,
    ) -> Result<Option<Config>> {
        let problem = match self {
            TeacherInput::Checkpoint(path) => {
                let config = look_at_teacher(path, shard)?;
                let context = config.context;
                if context >= sequence_length {
                    return Ok(Some(config));
                }
                format!(
                    "the teacher was made for {context} tokens of context, but `train.sequence_length` is {sequence_length}; \
                     lower that, or take another teacher"
                )
            }
            TeacherInput::Logits(path) => {
                let artifact = Artifact::open(path, Kind::TeacherLogits)?;
                let asked = &artifact.manifest().recipe["teacher_logits"]["sequence_length"];
                let Some(asked) = asked.as_u64().filter(|&one| one != sequence_length as u64)
                else {
                    return Ok(None);
                };
                format!(
                    "the teacher was asked in windows of {asked} tokens, but `train.sequence_length` is {sequence_length}, so it \
                     saw another context than the student will; write {asked} there, or ask it again with {sequence_length}"
                )
            }
        };
        Err(TrainError::Data {
            place: self.path().to_owned(),
            problem,
        })
    }

    /// Opens it as a teacher of a student over `shards`, all of one tokenizer, whose sequences have `sequence_length` tokens.
    /// Stored predictions must be of the same tokens artifacts and splits.
    ///
    /// # Errors
    /// When it is not there, is no dense checkpoint, or has other tokens than the student.
    pub(crate) fn open(&self, shards: &[Taught], sequence_length: usize) -> Result<Teacher> {
        let refuse = |problem: String| TrainError::Data {
            place: self.path().to_owned(),
            problem,
        };
        self.look(&shards[0].shard, sequence_length)?;
        match self {
            TeacherInput::Checkpoint(path) => Ok(Teacher::Model(Box::new(open_teacher(
                path,
                &shards[0].shard,
            )?))),
            TeacherInput::Logits(path) => {
                let artifact = Artifact::open(path, Kind::TeacherLogits)?;
                let of = artifact.manifest().inputs.get("tokens");
                let of = of.map(|input| input.blake3);
                let mut stored = Vec::<TeacherLogits>::new();
                for Taught {
                    tokens,
                    split,
                    shard,
                } in shards
                {
                    if of != Some(tokens.manifest_hash()) {
                        return Err(refuse(format!(
                            "the teacher was asked about other tokens than those in {}; run its `teacher-logits` stage on them",
                            tokens.dir().display()
                        )));
                    }
                    let logits = TeacherLogits::open(&artifact.file(&store::file_name(split))?)?;
                    if logits.tokens() != shard.tokens() || logits.vocab() != shard.vocab_size() {
                        return Err(refuse(format!(
                            "it holds predictions of {} tokens out of {}, but the shard has {} out of {}; write it again",
                            logits.tokens(),
                            logits.vocab(),
                            shard.tokens(),
                            shard.vocab_size()
                        )));
                    }
                    if let Some(first) = stored.first()
                        && first.k() != logits.k()
                    {
                        return Err(refuse(format!(
                            "it holds {} predictions a token of one split and {} of `{split}`; write it again",
                            first.k(),
                            logits.k()
                        )));
                    }
                    stored.push(logits);
                }
                Ok(Teacher::Stored(stored))
            }
        }
    }
}

/// A shard that a student learns from.
pub(crate) struct Taught {
    /// The artifact that it lies in.
    pub tokens: Artifact,
    /// Its name there.
    pub split: String,
    /// The shard.
    pub shard: TokenShard,
}

/// The shape of a teacher, which must have been trained on the tokens of `shard`.
fn look_at_teacher(path: &Path, shard: &TokenShard) -> Result<Config> {
    let refuse = |problem: String| TrainError::Data {
        place: path.to_owned(),
        problem,
    };
    let tokenizer = Tokenizer::open(path)?;
    if tokenizer.blake3() != shard.tokenizer_blake3() {
        return Err(refuse(format!(
            "the teacher has another tokenizer than the one that made {}, so its predictions are of other tokens; encode the \
             text with the teacher's tokenizer, or take a teacher trained on this one",
            shard.path().display()
        )));
    }
    let config = Config::open(path)?;
    let vocab = config.vocab;
    if vocab != shard.vocab_size() {
        return Err(refuse(format!(
            "the teacher's vocabulary has {vocab} entries, but the tokens are out of {}; padded tables cannot teach",
            shard.vocab_size()
        )));
    }
    Ok(config)
}

/// Reads a teacher that [`look_at_teacher`] lets pass.
pub(crate) fn open_teacher(path: &Path, shard: &TokenShard) -> Result<Decoder> {
    look_at_teacher(path, shard)?;
    let decoder = checkpoint::open(path)?;
    match decoder.output_table() {
        Embedding::Dense(_) => Ok(decoder),
        Embedding::Frozen(_) => Err(TrainError::Data {
            place: path.to_owned(),
            problem: "the teacher is a package; name the checkpoint that it was made from"
                .to_owned(),
        }),
    }
}

impl Objective for Distill {
    fn loss(&self, decoder: &Decoder, ctx: &mut Ctx, batch: &Batch) -> TokenLoss {
        // The teacher first: what its pass takes is free again before the student's tape fills. Its weights are not watched, so
        // nothing of it is recorded.
        let asked = self
            .teacher
            .as_ref()
            .map(|(teacher, settings)| match teacher {
                Teacher::Model(teacher) => {
                    let hidden = teacher.forward(ctx, &batch.tokens, &batch.segments, None); // [N, D of the teacher]
                    (Asked::Hidden(teacher, hidden), settings)
                }
                Teacher::Stored(sources) => {
                    let k = match settings.kind {
                        DistillKind::Hard => 1,
                        _ => sources[0].k(),
                    };
                    let (mut ids, mut log_probs) = (Vec::new(), Vec::new()); // [N, k] each
                    for origin in &batch.origins {
                        let rows = sources[origin.source].rows(origin.targets.clone(), k);
                        ids.extend(rows.0);
                        log_probs.extend(rows.1);
                    }
                    if settings.kind == DistillKind::Hard {
                        log_probs.fill(0.0);
                    }
                    assert_eq!(ids.len(), k * batch.targets.len(), "origins of all targets");
                    (Asked::Rows(ids, log_probs), settings)
                }
            });
        let teacher = asked.as_ref().map(|(asked, settings)| {
            let teacher = match asked {
                Asked::Hidden(teacher, hidden) => {
                    let Embedding::Dense(table) = teacher.output_table() else {
                        unreachable!("checked when the teacher was opened");
                    };
                    match settings.kind {
                        DistillKind::Hard => LossTeacher::Top1 { hidden, table },
                        _ => LossTeacher::Full {
                            hidden,
                            table,
                            temperature: settings.temperature as f32,
                        },
                    }
                }
                Asked::Rows(ids, log_probs) => LossTeacher::Sparse { ids, log_probs },
            };
            (teacher, settings.mix as f32)
        });
        let terms = LossTerms {
            z_loss: self.z_loss,
            teacher,
        };
        let hidden = decoder.forward(ctx, &batch.tokens, &batch.segments, None); // [N, D]
        decoder.loss_with(ctx, &hidden, &batch.targets, &batch.weights, &terms)
    }
}

/// What the teacher says of a batch.
enum Asked<'a> {
    Hidden(&'a Decoder, Tensor),
    Rows(Vec<u32>, Vec<f32>),
}

#[cfg(test)]
mod tests;
