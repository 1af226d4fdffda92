//! Everything that can go wrong here, each as a sentence that says what was found, where, and what to do.

use std::io;
use std::path::{Path, PathBuf};

use crate::Kind;

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What was found, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something.
    #[error("cannot {action} {}: {source}{}", path.display(), advice(source))]
    Io {
        /// What was attempted, as a verb: "read", "write", "rename".
        action: &'static str,
        /// What it was attempted on.
        path: PathBuf,
        /// The system's own words.
        source: io::Error,
    },
    /// A folder without a manifest, or no folder at all.
    #[error("{} is not an artifact: {reason}", dir.display())]
    NotAnArtifact {
        /// The folder that was opened.
        dir: PathBuf,
        /// What it is instead.
        reason: String,
    },
    /// An artifact, but of another kind than the one wanted.
    #[error("{} is a {found} artifact, and a {wanted} is wanted here: name the folder that the stage before this one wrote", dir.display())]
    WrongKind {
        /// The folder that was opened.
        dir: PathBuf,
        /// What its manifest says it is.
        found: Kind,
        /// What the caller asked for.
        wanted: Kind,
    },
    /// A manifest that Russet cannot have written.
    #[error("{} cannot be trusted: {reason}; write the artifact again or restore it from a copy", path.display())]
    BadManifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that is not what the manifest says.
    #[error("{}: file `{name}` {reason}; write the artifact again or restore it from a copy", dir.display())]
    BadFile {
        /// The artifact.
        dir: PathBuf,
        /// The file, as the manifest names it.
        name: String,
        /// How it differs.
        reason: String,
    },
    /// Something on the disk that is not a plain file or folder, or has no plain name.
    #[error("{} {reason}", path.display())]
    BadPath {
        /// What was met.
        path: PathBuf,
        /// What it is, and what is wanted instead.
        reason: String,
    },
    /// A manifest does not list the file or input that was asked for.
    #[error("{} lists no {what} `{name}`; it has {has}", dir.display())]
    NotListed {
        /// The artifact.
        dir: PathBuf,
        /// "file" or "input".
        what: &'static str,
        /// The name that was asked for.
        name: String,
        /// The names there are.
        has: String,
    },
    /// The place for a new artifact holds something that must not be deleted.
    #[error("{} will not be replaced: {reason}", dir.display())]
    Occupied {
        /// The place.
        dir: PathBuf,
        /// What lies there, and what to do.
        reason: String,
    },
    /// A place that another process is writing to.
    #[error("{}: another process is at work on it; wait until that has ended, or name another folder", place.display())]
    Held {
        /// The place.
        place: PathBuf,
    },
    /// A draft that cannot become an artifact.
    #[error("{} cannot be written: {reason}", dir.display())]
    BadDraft {
        /// The place the artifact was meant for.
        dir: PathBuf,
        /// What stands against it.
        reason: String,
    },
    /// An input that is no artifact, file or folder of files, or no longer what it was.
    #[error("input `{name}` ({}): {reason}", path.display())]
    BadInput {
        /// The input's name in the manifest.
        name: String,
        /// Where it lies.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A recipe that cannot be understood.
    #[error("{place}: {reason}")]
    Recipe {
        /// File and line, or the override.
        place: String,
        /// Key and what is wrong with it.
        reason: String,
    },
    /// A `--set` that cannot be understood.
    #[error("--set {text}: {reason}")]
    Override {
        /// The override as typed.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A run log that cannot be read, or a value that cannot be logged.
    #[error("{}: {reason}", path.display())]
    Log {
        /// The log file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Settings that have no JSON form.
    #[error("these settings cannot be written down as JSON: {0}")]
    Settings(String),
}

impl Error {
    /// For `map_err`: the action and path around a system error.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space and run again, what was there before is untouched"
        }
        io::ErrorKind::FileTooLarge => {
            "; raise the file size limit (ulimit -f) and run again, what was there before is untouched"
        }
        io::ErrorKind::PermissionDenied => "; check who owns it",
        _ => "",
    }
}
