//! What can go wrong between a text and its tokens, said as sentences.

use std::fmt::Display;
use std::path::{Path, PathBuf};

/// `Result` with [`TokenizerError`].
pub type Result<T, E = TokenizerError> = std::result::Result<T, E>;

/// Why a file, text, template or setting was refused. Every message names the thing and says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A file or folder could not be read, written or understood.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What was found and what to do.
        reason: String,
    },
    /// One line of a data file is bad.
    #[error("{}, line {line}: {reason}", path.display())]
    Line {
        /// The data file.
        path: PathBuf,
        /// Line number, counted from one, after decompression.
        line: u64,
        /// What was found and what to do.
        reason: String,
    },
    /// A tokenizer cannot be trained as asked.
    #[error("cannot train a tokenizer: {0}")]
    Train(String),
    /// A text cannot be encoded by this tokenizer.
    #[error("cannot encode the text: {0}")]
    Encode(String),
    /// A chat template or a conversation is refused.
    #[error("chat template: {0}")]
    Chat(String),
    /// A tokenizer cannot be said in a GGUF file, or that of one cannot be understood.
    #[error("the tokenizer in GGUF: {0}")]
    Gguf(String),
    /// A range of a token shard was asked for that it does not hold, or a token in it is impossible.
    #[error("token shard {}: {reason}", path.display())]
    Shard {
        /// The shard file.
        path: PathBuf,
        /// What was found and what to do.
        reason: String,
    },
    /// The `progress` closure broke it off.
    #[error("stopped before the end; nothing whole was written")]
    Interrupted,
}

impl TokenizerError {
    pub(crate) fn file(path: &Path, reason: impl Display) -> Self {
        Self::File {
            path: path.to_path_buf(),
            reason: reason.to_string(),
        }
    }

    pub(crate) fn shard(path: &Path, reason: impl Display) -> Self {
        Self::Shard {
            path: path.to_path_buf(),
            reason: reason.to_string(),
        }
    }
}
