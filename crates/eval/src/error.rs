//! Why there is no score.

use std::path::PathBuf;

use russet_tokenizer::TokenizerError;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A sentence for a person: what was found, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting outside its range.
    #[error("{setting} is {value}, but it must be {wanted}")]
    Setting {
        /// The setting's name.
        setting: &'static str,
        /// What was given.
        value: usize,
        /// What would have been right.
        wanted: String,
    },
    /// The documents hold nothing.
    #[error(
        "the documents hold {tokens} tokens of {bytes} bytes in all, so there is nothing to score"
    )]
    Empty {
        /// Their tokens.
        tokens: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// A token that the model has no row for.
    #[error("{place} is {token}, but the model knows only tokens 0 to {}; was the text encoded with another tokenizer?", vocab - 1)]
    UnknownToken {
        /// Where it stands.
        place: String,
        /// Its id.
        token: u32,
        /// V.
        vocab: usize,
    },
    /// A trained head that tells nothing of harm.
    #[error("{0}")]
    Head(String),
    /// Two models over different vocabularies.
    #[error(
        "the reference model has {reference} tokens in its vocabulary and the other {other}; only models over the same tokens can be compared"
    )]
    Vocabularies {
        /// V of the reference.
        reference: usize,
        /// V of the other.
        other: usize,
    },
    /// An instruction that cannot be checked.
    #[error("instruction {id}: {problem}")]
    Instruction {
        /// Its kind.
        id: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A row that is not what it should be.
    #[error("{}, line {line}: {problem}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: u64,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// There are rows, but nothing to score.
    #[error("{}: there are no responses in it; give rows of `prompt` and `response`", path.display())]
    NoResponses {
        /// The file.
        path: PathBuf,
    },
    /// There are rows, but nothing to count.
    #[error("{}: there are no judgements in it; give rows of AlpacaEval, PandaLM, or of `prompt`, `model_a`, `model_b`, `winner`", path.display())]
    NoJudgements {
        /// The file.
        path: PathBuf,
    },
    /// A set without anything in it.
    #[error("{}: there are no {what} in it", path.display())]
    NoRows {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// Programs cannot be run apart here.
    #[error(
        "programs that a model wrote cannot be run apart from this system: {problem}; `--unconfined` runs them with limits of time and memory alone"
    )]
    Sandbox {
        /// What failed.
        problem: String,
    },
    /// Some rows of a regression have what others lack.
    #[error(
        "{known} of {rows} judgements of two models have an `instruction_difficulty`; give it with all of them and with the gamed rows, or with none"
    )]
    Difficulty {
        /// Rows that have it.
        known: usize,
        /// All rows.
        rows: usize,
    },
    /// Something that cannot be graded as it was asked for.
    #[error("{0}")]
    Study(String),
    /// What a grader said is no answer to what was asked.
    #[error("{0}")]
    Answer(String),
    /// A file of grades that cannot be gone on with.
    #[error("{}: {problem}", path.display())]
    Kept {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A model that cannot answer.
    #[error("the model cannot answer: {0}")]
    Model(String),
    /// A file that cannot be read whole.
    #[error("{}: {problem}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A file that cannot be read.
    #[error(transparent)]
    File(#[from] TokenizerError),
    /// The model computed something that is no number.
    #[error("a token's loss is not finite; the weights are damaged or training diverged")]
    NotFinite,
    /// Someone asked to stop.
    #[error("evaluation was interrupted, so there is no score")]
    Interrupted,
}
