//! What can go wrong while a model is compressed.

use russet_kernels::palette::LayoutError;
use russet_model::ModelError;

/// A sentence for a person: what was found, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum CompressError {
    /// The checkpoint cannot be read or the package not written.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A setting makes no sense.
    #[error("`{key}` is {value}, but {problem}")]
    Setting {
        /// The setting.
        key: &'static str,
        /// What it is.
        value: String,
        /// What it must be.
        problem: String,
    },
    /// The checkpoint is of a kind that cannot be compressed.
    #[error("{0}")]
    Checkpoint(String),
    /// A weight is not a number.
    #[error(
        "tensor `{name}` holds {value} at row {row}, column {column}; a checkpoint of a diverged run cannot be compressed"
    )]
    Weight {
        /// The projection or table.
        name: String,
        /// NaN or an infinity.
        value: f32,
        /// Where.
        row: usize,
        /// Where.
        column: usize,
    },
    /// The calibration text cannot be used.
    #[error("the calibration text {0}")]
    Calibration(String),
    /// A file could not be copied.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// What the system says.
        problem: std::io::Error,
    },
    /// A matrix has a size that the format does not offer.
    #[error("tensor `{name}`: {problem}")]
    Layout {
        /// The projection or table.
        name: String,
        /// What is wrong with its size.
        problem: LayoutError,
    },
    /// The state of unfinished work is another process's, or cannot be had.
    #[error(transparent)]
    Artifact(#[from] russet_artifact::Error),
    /// The data that a recovery is trained on.
    #[error(transparent)]
    Train(Box<russet_train::TrainError>),
    /// Somebody asked to stop.
    #[error("interrupted; the same call goes on from what is done")]
    Interrupted,
}

impl CompressError {
    /// Refuses a setting.
    pub(crate) fn setting<T>(
        key: &'static str,
        value: &dyn ToString,
        problem: &str,
    ) -> Result<T, CompressError> {
        Err(CompressError::Setting {
            key,
            value: value.to_string(),
            problem: problem.to_owned(),
        })
    }
}
