//! What is asked for and what comes back; the trait between them, so that a teacher elsewhere can stand in.

use std::time::Instant;

use crate::guide::Grammar;
use crate::{Error, Result, Sampling, Speculation};

/// Something that continues token sequences: the [`crate::Engine`], or a model behind a wire.
pub trait Generate {
    /// Continues `request`, showing every token of the answer to `on_token` as it comes. The stop token is not shown.
    ///
    /// # Errors
    /// When the request cannot be answered; the sentence says why.
    fn generate(
        &mut self,
        request: &Request,
        on_token: &mut dyn FnMut(Token) -> Flow,
    ) -> Result<Generation>;

    /// Continues several requests; the answers come in their order. Unless overridden, one after another.
    ///
    /// # Errors
    /// When one of them cannot be answered; the sentence says which and why.
    fn generate_batch(&mut self, requests: &[Request]) -> Result<Vec<Generation>> {
        let one = |(index, request)| {
            let generation = self.generate(request, &mut |_| Flow::Continue);
            generation.map_err(|problem| Error::Request {
                index,
                problem: Box::new(problem),
            })
        };
        requests.iter().enumerate().map(one).collect()
    }
}

/// What is to be continued, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The tokens to continue, with the beginning-of-text token where the model wants one; at least one.
    pub prompt: Vec<u32>,
    /// The most tokens to generate. `usize::MAX`: until the context is full. 0, where `embedding` or `prompt_logprobs` ask for
    /// something: the prompt alone is run, and may fill the context.
    pub max_tokens: usize,
    /// How each token is chosen.
    pub sampling: Sampling,
    /// What is added to the logits of these tokens, each from -100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
    /// `Some(k)`: the answer comes with the log-probability of every token of the prompt but the first, and the k most probable
    /// ones at its place, at most 256. Such a prompt is computed whole, whatever of it lies in the cache. Of several answers to it
    /// the first has them.
    pub prompt_logprobs: Option<usize>,
    /// Whether the answer comes with the mean of the prompt's hidden states. Such a prompt is computed whole, too, and of several
    /// answers to it the first has it.
    pub embedding: bool,
    /// What the answer must be; `None`: anything.
    pub guide: Option<Grammar>,
    /// Tokens that end the answer. Those that end one by its guide's vocabulary do too.
    pub stop_tokens: Vec<u32>,
    /// Names of the adapters that its tokens go through, one after another; none: the model itself.
    pub adapters: Vec<String>,
    /// Whose request it is, where [`crate::Reuse::Tenant`] keeps beginnings apart.
    pub tenant: Option<String>,
    /// Of several that wait the highest goes first, and the lowest makes room; 0 unless something else is wanted.
    pub priority: i32,
    /// When it ends with what it has.
    pub deadline: Option<Instant>,
}

impl Default for Request {
    /// Nothing to continue yet; until the context is full, drawn from the model's own distribution, without haste.
    fn default() -> Request {
        Request {
            prompt: Vec::new(),
            max_tokens: usize::MAX,
            sampling: Sampling::default(),
            logit_bias: Vec::new(),
            prompt_logprobs: None,
            embedding: false,
            guide: None,
            stop_tokens: Vec::new(),
            adapters: Vec::new(),
            tenant: None,
            priority: 0,
            deadline: None,
        }
    }
}

/// The number of a request in an engine, in the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(crate) u64);

/// What a step has brought.
#[derive(Debug)]
pub enum Event {
    /// The most probable tokens at the place of the token that comes next, where `top_logprobs` asks for them.
    Top(RequestId, Vec<Token>),
    /// A token of an answer; the stop token is not shown.
    Token(RequestId, Token),
    /// The answer is over, or could not go on.
    End(RequestId, Result<Generation>),
}

/// One generated token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The natural logarithm of its probability under the model itself: before temperature and cuts.
    pub logprob: f32,
}

/// Whether a callback wants more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// End this answer here.
    Stop,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// With one of the stop tokens.
    Stop,
    /// At `max_tokens`.
    Length,
    /// At the end of the context.
    Context,
    /// By the callback.
    Callback,
    /// Where its guide allows nothing more.
    Guide,
    /// At its deadline.
    Deadline,
    /// Called off.
    Cancelled,
}

impl std::fmt::Display for Finish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Context => "context",
            Finish::Callback => "callback",
            Finish::Guide => "guide",
            Finish::Deadline => "deadline",
            Finish::Cancelled => "cancelled",
        })
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The generated tokens, the stop token last where one ended it: a trainer needs it too.
    pub tokens: Vec<u32>,
    /// The [`Token::logprob`] of each.
    pub logprobs: Vec<f32>,
    /// The `top_logprobs` most probable tokens at the place of each; empty where none were asked for.
    pub top: Vec<Vec<Token>>,
    /// The tokens of the prompt from the second on, with their log-probabilities, where `prompt_logprobs` asked for them.
    pub prompt_logprobs: Vec<Token>,
    /// The most probable tokens at the place of each of them.
    pub prompt_top: Vec<Vec<Token>>,
    /// `[D]`: the mean of the normed hidden states of the prompt's tokens, where `embedding` asked for it; empty otherwise.
    pub embedding: Vec<f32>,
    /// How guesses fared, where there were any.
    pub speculation: Option<Speculation>,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// How many of them lay in the cache already and were not computed.
    pub reused_tokens: usize,
    /// From the request's admission to its first token, 0 without one. Other requests of the batch may have run in that time.
    pub prefill_seconds: f64,
    /// From the first token to the last.
    pub decode_seconds: f64,
}

impl Generation {
    /// The tokens without the stop token: those that the callback saw.
    pub fn content(&self) -> &[u32] {
        match self.finish {
            Finish::Stop => &self.tokens[..self.tokens.len() - 1],
            _ => &self.tokens,
        }
    }

    /// Prompt tokens computed a second.
    pub fn prefill_tokens_per_second(&self) -> f64 {
        rate(
            self.prompt_tokens - self.reused_tokens,
            self.prefill_seconds,
        )
    }

    /// Tokens after the first a second; the first one's time is the prompt's. 0 where there are none.
    pub fn decode_tokens_per_second(&self) -> f64 {
        rate(self.tokens.len().saturating_sub(1), self.decode_seconds)
    }
}

fn rate(tokens: usize, seconds: f64) -> f64 {
    if seconds > 0.0 {
        tokens as f64 / seconds
    } else {
        0.0
    }
}
