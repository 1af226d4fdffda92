//! A request on its way: what it has, and where it stands.

use std::cmp::Reverse;
use std::time::Instant;

use russet_kernels::Isa;
use russet_tensor::Stack;

use crate::prefix::{NodeId, Scope};
use crate::{Event, Finish, Flow, Generation, Request, RequestId, Result, Token};

/// Who goes first: the higher priority, then the earlier arrival.
pub(crate) type Rank = (Reverse<i32>, RequestId);

/// A request that is not answered yet.
pub(crate) struct Sequence {
    pub id: RequestId,
    pub request: Request,
    /// The first of several answers to one prompt, of which this is one.
    pub family: Option<RequestId>,
    /// The adapters, as they were when the request came.
    pub stack: Stack,
    pub scope: Scope,
    /// Prompt and answer. What is cached of them is the scheduler's business, and comes back after a preemption.
    pub tokens: Vec<u32>,
    logprobs: Vec<f32>, // of the answer
    /// Tokens of the prompt that need not be computed when it was first admitted.
    pub reused: usize,
    /// When it was first admitted.
    pub admitted: Option<Instant>,
    first: Option<Instant>, // when the first token came
}

/// Where a running sequence stands.
pub(crate) struct Running {
    pub sequence: Sequence,
    pub slot: usize,
    /// The node of the last of its `kept` blocks; `None` with none.
    pub node: Option<NodeId>,
    /// Its whole blocks that the prefix cache has, from the first on.
    pub kept: usize,
    /// Whether the prefix cache still takes its blocks.
    pub keeps: bool,
}

impl Sequence {
    pub fn new(id: RequestId, request: Request, stack: Stack, scope: Scope) -> Sequence {
        Sequence {
            id,
            family: None,
            stack,
            scope,
            tokens: request.prompt.clone(),
            logprobs: Vec::new(),
            reused: 0,
            admitted: None,
            first: None,
            request,
        }
    }

    pub fn rank(&self) -> Rank {
        (Reverse(self.request.priority), self.id)
    }

    pub fn is_expired(&self, now: Instant) -> bool {
        self.request
            .deadline
            .is_some_and(|deadline| deadline <= now)
    }

    /// Tokens that may still follow within `limit` tokens of a sequence.
    pub fn left(&self, limit: usize) -> usize {
        let asked = self.request.max_tokens - self.logprobs.len();
        asked.min(limit - self.tokens.len())
    }

    /// The tokens that follow, of the logits `[rows, V]` of the last token and of the `proposed` ones after it: one, and one
    /// more for each proposed token that is what would have been chosen anyway.
    pub fn choose(&self, isa: Isa, logits: &[f32], proposed: &[u32]) -> Result<Vec<Token>> {
        let vocab = logits.len() / (1 + proposed.len());
        let mut chosen = Vec::with_capacity(1 + proposed.len());
        for (row, logits) in logits.chunks_exact(vocab).enumerate() {
            let position = (self.tokens.len() + row) as u64;
            let token = self.request.sampling.pick(isa, logits, position)?;
            chosen.push(token);
            if proposed.get(row) != Some(&token.id) {
                break;
            }
        }
        Ok(chosen)
    }

    /// Appends a token and decides whether it is the last.
    pub fn take(
        &mut self,
        token: Token,
        limit: usize,
        on_event: &mut dyn FnMut(Event) -> Flow,
    ) -> Option<Finish> {
        self.first.get_or_insert_with(Instant::now);
        self.tokens.push(token.id);
        self.logprobs.push(token.logprob);
        if self.request.stop_tokens.contains(&token.id) {
            Some(Finish::Stop)
        } else if on_event(Event::Token(self.id, token)) == Flow::Stop {
            Some(Finish::Callback)
        } else if self.logprobs.len() == self.request.max_tokens {
            Some(Finish::Length)
        } else if self.tokens.len() == limit {
            Some(Finish::Context)
        } else {
            None
        }
    }

    /// The answer as far as it came.
    pub fn generation(mut self, finish: Finish) -> Generation {
        let prompt_tokens = self.request.prompt.len();
        let times = self.admitted.zip(self.first);
        Generation {
            tokens: self.tokens.split_off(prompt_tokens),
            logprobs: self.logprobs,
            finish,
            prompt_tokens,
            reused_tokens: self.reused,
            prefill_seconds: times.map_or(0.0, |(from, to)| (to - from).as_secs_f64()),
            decode_seconds: self
                .first
                .map_or(0.0, |first| first.elapsed().as_secs_f64()),
        }
    }
}
