//! What can be wrong with a model's files.

use std::path::{Path, PathBuf};

/// A sentence for a person: what was found, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file could not be read or written.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        problem: String,
    },
    /// A tensor is missing, superfluous, or has the wrong shape or type.
    #[error("{}: tensor `{name}` {problem}", path.display())]
    Tensor {
        /// The file or folder.
        path: PathBuf,
        /// The tensor's name in it.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The cache has no room for more tokens.
    #[error(
        "the key-value cache holds {capacity} tokens and all are taken; shorten the prompt, ask for fewer tokens, or enlarge the cache"
    )]
    CacheFull {
        /// Tokens that the cache holds in all.
        capacity: usize,
    },
}

impl ModelError {
    /// A problem with a whole file.
    pub fn file(path: &Path, problem: impl std::fmt::Display) -> ModelError {
        ModelError::File {
            path: path.to_path_buf(),
            problem: problem.to_string(),
        }
    }

    /// A file that cannot be mapped, its path said once.
    pub(crate) fn unmapped(path: &Path, error: russet_kernels::mmap::MmapError) -> ModelError {
        use russet_kernels::mmap::MmapError;
        let problem = match error {
            MmapError::Open { source, .. } => {
                format!("cannot be opened: {source}; check that the file exists and may be read")
            }
            MmapError::NotAFile { .. } => "is not a regular file; name the file itself".to_owned(),
            MmapError::Empty { .. } => {
                "is empty; it was probably not written to its end, so write or fetch it again"
                    .to_owned()
            }
            MmapError::Map { bytes, source, .. } => {
                format!("cannot be mapped into memory ({bytes} bytes): {source}")
            }
        };
        ModelError::file(path, problem)
    }

    /// A problem with one tensor of a file.
    pub fn tensor(path: &Path, name: &str, problem: impl std::fmt::Display) -> ModelError {
        ModelError::Tensor {
            path: path.to_path_buf(),
            name: name.to_owned(),
            problem: problem.to_string(),
        }
    }
}
