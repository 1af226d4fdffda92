//! Why a request cannot be answered.

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// A sentence for a person: what was found, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The prompt has no tokens.
    #[error("the prompt has no tokens; begin it with the model's beginning-of-text token at least")]
    EmptyPrompt,
    /// The prompt does not fit the context, or leaves no room for an answer.
    #[error(
        "the prompt has {prompt} tokens, but the context holds {context}, one of an answer among them where one is asked for; shorten the prompt or enlarge the context"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens that one sequence may have.
        context: usize,
    },
    /// A token that the model has no row for.
    #[error("{place} is {token}, but the model knows only tokens 0 to {}; was it made with another tokenizer?", vocab - 1)]
    UnknownToken {
        /// Which of the request's tokens.
        place: String,
        /// Its id.
        token: u32,
        /// V.
        vocab: usize,
    },
    /// A setting outside its range.
    #[error("{setting} is {value}, but it must be {wanted}")]
    Setting {
        /// The setting's name.
        setting: &'static str,
        /// What was given.
        value: String,
        /// What would have been right.
        wanted: String,
    },
    /// One of several requests is at fault.
    #[error("request {index} (counted from 0): {problem}")]
    Request {
        /// Its place among the requests.
        index: usize,
        /// What is wrong with it.
        problem: Box<Error>,
    },
    /// The model computed something that is no number.
    #[error(
        "the model's hidden states or logits hold a value that is not finite, so they say nothing; the weights are damaged or training diverged"
    )]
    NotFinite,
    /// A mask leaves no token of the model's vocabulary.
    #[error(
        "no token of the model's vocabulary is allowed here; was the guide made of another tokenizer's tokens?"
    )]
    NoneAllowed,
    /// A guide that cannot be made or cannot go on.
    #[error("the {name} cannot guide an answer: {problem}")]
    Guide {
        /// What kind of constraint.
        name: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The model's context has no room for a prompt and an answer.
    #[error(
        "the model's context holds {context} token, but a prompt and an answer need 2 at least; was `max_position_embeddings` of its config.json changed?"
    )]
    NoRoom {
        /// Tokens of the model's context.
        context: usize,
    },
    /// The cache does not fit.
    #[error(
        "a key-value cache for {slots} sequences of {context} tokens needs {bytes} bytes, more than this machine gives; lower the context or the number of sequences"
    )]
    Memory {
        /// Sequences at once.
        slots: usize,
        /// Tokens of each.
        context: usize,
        /// What they need, as a number.
        bytes: u128,
    },
    /// The prompt can never be in the cache, whatever else ends.
    #[error(
        "the prompt has {prompt} tokens, but the whole cache holds {capacity}, one of an answer among them where one is asked for; shorten the prompt or give the cache more memory"
    )]
    NeverFits {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens that the cache holds.
        capacity: usize,
    },
    /// Too many requests wait.
    #[error("{waiting} requests wait already, as many as may; ask again later")]
    QueueFull {
        /// How many wait.
        waiting: usize,
    },
    /// An adapter that nobody has loaded.
    #[error("there is no adapter `{name}`; {known}")]
    UnknownAdapter {
        /// The name asked for.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// An adapter beyond the bytes that adapters may take.
    #[error(
        "the adapter `{name}` takes {bytes} bytes, but of the {budget} that adapters may take {held} are pinned or in use; unpin one or allow more"
    )]
    AdapterBudget {
        /// Its name.
        name: String,
        /// What it takes.
        bytes: usize,
        /// What all may take.
        budget: usize,
        /// What cannot be let go.
        held: usize,
    },
    /// Weights are replaced between batches, not within one.
    #[error(
        "{requests} requests are not answered yet, and their cached tokens belong to the present weights; let them end or cancel them first"
    )]
    Busy {
        /// How many.
        requests: usize,
    },
    /// The model's cache refused.
    #[error(transparent)]
    Model(#[from] russet_model::ModelError),
    /// Another implementation of [`crate::Generate`] failed in its own way.
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    pub(crate) fn setting(
        setting: &'static str,
        value: impl std::fmt::Display,
        wanted: impl Into<String>,
    ) -> Error {
        Error::Setting {
            setting,
            value: value.to_string(),
            wanted: wanted.into(),
        }
    }
}
