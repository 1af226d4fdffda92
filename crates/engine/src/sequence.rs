//! A request on its way: what it has, and where it stands.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::sync::Mutex;
use std::time::Instant;

use russet_kernels::Isa;
use russet_tensor::Stack;

use crate::guide::{Grammar, Guide, Masks, Next};
use crate::prefix::{NodeId, Scope};
use crate::{
    Drawn, Error, Event, Finish, Flow, Generation, Request, RequestId, Result, Sampler, Token,
};

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
    logprobs: Vec<f32>,      // of the answer
    top: Vec<Vec<Token>>,    // of the answer, where that is asked for
    scored: Vec<Drawn>,      // tokens of the prompt from the second on, where that is asked for
    summed: Vec<f64>,        // hidden states of the prompt, where their mean is asked for
    pooled: usize,           // how many of them
    damaged: bool,           // a row of the prompt was not finite
    drawing: Mutex<Drawing>, // its own, whichever thread draws
    /// Tokens of the prompt that need not be computed when it was first admitted.
    pub reused: usize,
    /// When it was first admitted.
    pub admitted: Option<Instant>,
    first: Option<Instant>, // when the first token came
}

/// What tokens are drawn with.
struct Drawing {
    sampler: Sampler,
    guide: Option<Guide>,            // made with the first mask
    next: Option<Result<Vec<Next>>>, // what may come at each row of the step
}

/// What a step chose for a sequence.
#[derive(Default)]
pub(crate) struct Choice {
    pub tokens: Vec<Drawn>,
    /// Whether the guide allows nothing behind them.
    pub ended: bool,
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
    /// A sequence of a request that was checked, for a model of `vocab` tokens.
    pub fn new(
        id: RequestId,
        mut request: Request,
        stack: Stack,
        scope: Scope,
        vocab: usize,
    ) -> Sequence {
        if let Some(grammar) = &request.guide {
            request.stop_tokens.extend(grammar.vocabulary().ends());
        }
        let (sampling, bias) = (request.sampling, &request.logit_bias);
        let sampler = Sampler::new(sampling, bias, &request.prompt, vocab);
        Sequence {
            id,
            family: None,
            stack,
            scope,
            tokens: request.prompt.clone(),
            logprobs: Vec::new(),
            top: Vec::new(),
            scored: Vec::new(),
            summed: Vec::new(),
            pooled: 0,
            damaged: false,
            drawing: Mutex::new(Drawing {
                sampler: sampler.expect("the request was checked"),
                guide: None,
                next: None,
            }),
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

    /// Whether a guide says what may follow.
    pub fn is_guided(&self) -> bool {
        self.request.guide.is_some()
    }

    /// Of the rows from position `past` to `end` those whose next token is one of the prompt and still has to be scored.
    pub fn unscored(&self, past: usize, end: usize) -> std::ops::Range<usize> {
        let last = self.request.prompt.len() - 1;
        match self.request.prompt_logprobs {
            // What was preempted comes by a second time.
            Some(_) => past.max(self.scored.len())..end.min(last),
            None => 0..0,
        }
    }

    /// Takes the scores of the next tokens of the prompt.
    pub fn take_score(&mut self, score: Result<Drawn>) {
        match score {
            Ok(scored) => self.scored.push(scored),
            Err(_) => self.damaged = true,
        }
    }

    /// Adds the hidden states `[rows, D]` of the positions from `past` on, where their mean is asked for: those of the prompt,
    /// each once and in their order, so that the sum does not depend on how they were cut into steps.
    pub fn pool(&mut self, past: usize, hidden: &[f32], width: usize) {
        if !self.request.embedding {
            return;
        }
        self.summed.resize(width, 0.0);
        let rows = hidden.chunks_exact(width).zip(past..);
        for (row, position) in rows {
            // What was preempted comes by a second time.
            if position != self.pooled || position == self.request.prompt.len() {
                continue;
            }
            for (sum, &value) in self.summed.iter_mut().zip(row) {
                *sum += f64::from(value);
            }
            self.pooled += 1;
        }
        self.damaged |= !self.summed.iter().all(|sum| sum.is_finite());
    }

    /// What is chosen where the prompt alone is asked about: nothing.
    pub fn choose_nothing(&self) -> Result<Choice> {
        match self.damaged {
            true => Err(Error::NotFinite),
            false => Ok(Choice::default()),
        }
    }

    /// The answer so far.
    pub fn answer(&self) -> &[u32] {
        &self.tokens[self.request.prompt.len()..]
    }

    /// Lends the guide out, to the thread that makes masks.
    pub fn lend_guide(&mut self) -> Guide {
        let drawing = self.drawing.get_mut();
        let drawing = drawing.unwrap_or_else(|poisoned| poisoned.into_inner());
        let fresh = || self.request.guide.as_ref().map(Grammar::guide);
        drawing.guide.take().or_else(fresh).expect("it is guided")
    }

    /// Takes the guide back, with what may come after the answer and after each token that was proposed.
    pub fn take_masks(&mut self, masks: Masks) {
        let drawing = self.drawing.get_mut();
        let drawing = drawing.unwrap_or_else(|poisoned| poisoned.into_inner());
        (drawing.guide, drawing.next) = (Some(masks.guide), Some(masks.next));
    }

    /// The tokens that follow, of the logits `[rows, V]` of the last token and of the `proposed` ones after it: one, and one
    /// more for each proposed token that is what would have been chosen anyway.
    pub fn choose(&self, isa: Isa, logits: &[f32], proposed: &[u32]) -> Result<Choice> {
        if self.damaged {
            return Err(Error::NotFinite);
        }
        let mut drawing = self.drawing.lock().unwrap_or_else(|p| p.into_inner());
        let Drawing {
            sampler,
            guide,
            next,
        } = &mut *drawing;
        let next = next.take().transpose()?;
        let vocab = logits.len() / (1 + proposed.len());
        let mut answer = Cow::Borrowed(self.answer());
        let mut choice = Choice::default();
        for (row, logits) in logits.chunks_exact(vocab).enumerate() {
            let allowed = match next.as_ref().map(|next| &next[row]) {
                None => None,
                Some(Next::Tokens(allowed)) => Some(allowed),
                Some(Next::End) => {
                    choice.ended = true;
                    return Ok(choice);
                }
            };
            let drawn = sampler.pick(isa, logits, &answer, allowed)?;
            let id = drawn.token.id;
            choice.tokens.push(drawn);
            let right = proposed.get(row) == Some(&id);
            if right || guide.is_some() {
                answer.to_mut().push(id);
            }
            if !right {
                break;
            }
        }
        if let Some(guide) = guide {
            choice.ended = guide.is_at_end(&answer)?;
        }
        Ok(choice)
    }

    /// Appends a token and decides whether it is the last.
    pub fn take(
        &mut self,
        drawn: Drawn,
        limit: usize,
        on_event: &mut dyn FnMut(Event) -> Flow,
    ) -> Option<Finish> {
        let Drawn { token, top } = drawn;
        self.first.get_or_insert_with(Instant::now);
        self.tokens.push(token.id);
        self.logprobs.push(token.logprob);
        let stops = self.request.stop_tokens.contains(&token.id);
        if self.request.sampling.top_logprobs > 0 {
            if !stops {
                on_event(Event::Top(self.id, top.clone()));
            }
            self.top.push(top);
        }
        if stops {
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
        let scored = self
            .scored
            .into_iter()
            .map(|drawn| (drawn.token, drawn.top));
        let (prompt_logprobs, prompt_top) = scored.unzip();
        let whole = self.pooled == prompt_tokens;
        let mean = self.summed.iter().filter(|_| whole);
        let embedding = mean.map(|sum| (sum / prompt_tokens as f64) as f32);
        Generation {
            embedding: embedding.collect(),
            tokens: self.tokens.split_off(prompt_tokens),
            logprobs: self.logprobs,
            top: self.top,
            prompt_logprobs,
            prompt_top,
            speculation: None,
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
