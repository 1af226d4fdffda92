//! What can stop a training run, as sentences.

use std::path::PathBuf;

use russet_artifact::Kind;

/// `Result` with [`TrainError`].
pub type Result<T> = std::result::Result<T, TrainError>;

/// What was found, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// An artifact, recipe or log.
    #[error(transparent)]
    Artifact(#[from] russet_artifact::Error),
    /// A model's files.
    #[error(transparent)]
    Model(#[from] russet_model::ModelError),
    /// A tokenizer or token shard.
    #[error(transparent)]
    Tokenizer(#[from] russet_tokenizer::TokenizerError),
    /// The instruction set asked for.
    #[error(transparent)]
    Isa(#[from] russet_kernels::IsaError),
    /// A setting of the recipe that cannot be.
    #[error("`{key}` {problem}")]
    Setting {
        /// The key with its table: `train.steps`.
        key: &'static str,
        /// What is wrong with it and what to do.
        problem: String,
    },
    /// Data that cannot be trained on.
    #[error("{}: {problem}", place.display())]
    Data {
        /// The file or folder.
        place: PathBuf,
        /// What is wrong with it and what to do.
        problem: String,
    },
    /// The state of an earlier run that cannot be gone on from.
    #[error("{}: {problem}", dir.display())]
    State {
        /// Its folder.
        dir: PathBuf,
        /// What is wrong with it and what to do.
        problem: String,
    },
    /// No thread for what goes on beside training.
    #[error("the system gives no thread to save with: {0}; stop other programs and run again")]
    Thread(std::io::Error),
    /// The state that a stop should have saved.
    #[error("{what} could not be saved: {source}")]
    Unsaved {
        /// "the state of step 200".
        what: String,
        /// Why.
        source: Box<TrainError>,
    },
    /// The result of a run that has come to its end.
    #[error(
        "training has ended, but the {what} could not be written: {source}. What was saved last is untouched, and the same command \
         goes on from there"
    )]
    NotWritten {
        /// What the run leaves.
        what: Kind,
        /// Why.
        source: Box<TrainError>,
    },
    /// A rank of a mesh that ended in the middle.
    #[error(
        "rank {rank} of {ranks} is gone: {problem}. What was saved before is untouched; the same command goes on from there"
    )]
    Rank {
        /// Which, counted from 0.
        rank: usize,
        /// How many there were.
        ranks: usize,
        /// What it said at last.
        problem: String,
    },
    /// Processes that were started together and cannot work together.
    #[error("{0}")]
    Launch(String),
    /// What a task of a crate above says.
    #[error("{0}")]
    Task(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Someone asked to stop a job that keeps nothing of what it had.
    #[error("stopped; the same command begins this again")]
    Interrupted,
    /// Gradients that have grown past `train.skip_norm` and stay there.
    #[error(
        "step {step}: the last {in_a_row} steps were all skipped, their gradients' norms at or above {limit} (`train.skip_norm`; now \
         {norm:.4}). Nothing is learnt by them, so training stops here: lower `train.peak_lr` or raise `train.skip_norm`, \
         and begin again with --restart. What was saved before is untouched"
    )]
    Skipped {
        /// The step, counted from 1.
        step: u64,
        /// How many steps.
        in_a_row: u64,
        /// The last one's norm.
        norm: f64,
        /// `train.skip_norm`.
        limit: f64,
    },
    /// A run came to its end and changed no weight.
    #[error(
        "all {steps} steps were skipped, their gradients' norms at or above {limit} (`train.skip_norm`), so nothing was learnt and nothing \
         is written: lower `train.peak_lr` or raise `train.skip_norm`, and begin again with --restart"
    )]
    NothingLearnt {
        /// Of the run.
        steps: u64,
        /// `train.skip_norm`.
        limit: f64,
    },
    /// The run has diverged, or a batch is poisonous.
    #[error(
        "step {step}: the {what} is {value}, so training stops here; the step saw {documents}. Look at \
         those documents, or lower `train.peak_lr` and begin again with --restart, or with a checkpoint that was kept \
         (`train.keep_best`) as `inputs.checkpoint`. What was saved before is untouched"
    )]
    NotFinite {
        /// The step, counted from 1.
        step: u64,
        /// "loss" or "gradient's norm".
        what: &'static str,
        /// NaN or an infinity.
        value: f64,
        /// "documents 3-7, 12 of …".
        documents: String,
    },
}

impl TrainError {
    pub(crate) fn setting(key: &'static str, problem: impl Into<String>) -> TrainError {
        TrainError::Setting {
            key,
            problem: problem.into(),
        }
    }
}
