//! Conversations: what `/v1/chat/completions` and `/v1/responses` do alike. Each reads its own body and writes its own objects;
//! between them there is one way to an answer.

use std::time::{Instant, SystemTime};

use russet_engine::Token;
use russet_tokenizer::Conversation;
use serde_json::{Value, json};

use super::Shared;
use crate::answer::{Answers, Ended, Said, Scored, Style};
use crate::error::{ApiError, ApiResult};
use crate::keys::Caller;
use crate::model::Text;
use crate::registry::now;
use crate::tools::{self, Calls, Choice, Piece};
use crate::wire::{Common, chat::Own};
use crate::worker::Ticket;

/// What is to be answered.
pub(super) struct Job {
    pub created: u64,
    begun: Instant,
    pub model: String,
    pub prompt_tokens: usize,
    /// Answers to the conversation.
    pub answers: usize,
    pub style: Style,
    /// Where the answer may call tools.
    calls: Option<Choice>,
}

impl Job {
    /// Hands a conversation to the engine. `field` is the one that it came in.
    pub async fn begin(
        state: &Shared,
        caller: &Caller,
        begun: Instant,
        (mut common, own): (Common, Own),
        field: &'static str,
    ) -> ApiResult<(Job, Ticket)> {
        let adapters = state.registry.stack(&common.model)?;
        let calls = own.choice != Choice::None;
        if calls {
            let Some(open) = state.text.tools else {
                return Err(ApiError::field(
                    "tools",
                    "this model's chat template has no form for tools that is known here",
                ));
            };
            if let Some((_, form)) = common.constraint {
                let said = "an answer that may call tools has the form of their calls; leave tools out or say \"tool_choice\": \"none\"";
                return Err(ApiError::field(form, said));
            }
            let constraint = tools::constraint(&own.tools, &own.choice, own.parallel, open);
            common.constraint = Some((constraint, "tools"));
        }
        let conversation = Conversation {
            messages: own.messages,
            tools: match calls {
                true => own.tools.iter().map(|tool| tool.value.clone()).collect(),
                false => Vec::new(),
            },
        };
        let prompt = encode(state, conversation, true, field).await?;
        let guide = state.grammar(common.constraint.take()).await?;
        let mut asked = state.request(&common, caller, &adapters);
        asked.sampling.top_logprobs = own.logprobs.unwrap_or(0);
        asked.max_tokens = own.max_tokens.unwrap_or(usize::MAX);
        asked.guide = guide;
        let job = Job {
            created: now(),
            begun,
            prompt_tokens: prompt.len(),
            answers: common.answers,
            style: Style {
                stops: std::mem::take(&mut common.stops),
                scored: own.logprobs.is_some(),
                specials: calls && state.text.tools == Some(tools::Open::Token),
            },
            calls: calls.then_some(own.choice),
            model: common.model,
        };
        asked.prompt = prompt;
        let ticket = state
            .submit(caller, vec![asked], job.answers, &job.model, field)
            .await?;
        Ok((job, ticket))
    }

    /// What the answers say, as it comes.
    pub fn talk<'a>(&'a self, state: &'a Shared, ticket: Ticket) -> Talk<'a> {
        let (begins, tokenizer) = (vec![true; self.answers], &state.text.tokenizer);
        let (style, metrics) = (&self.style, &state.metrics);
        Talk {
            answers: Answers::new(ticket, tokenizer, &begins, style, metrics, self.begun),
            calls: self.calls.as_ref(),
            parsers: begins.iter().map(|_| Calls::default()).collect(),
        }
    }
}

/// A conversation's tokens.
pub(super) async fn encode(
    state: &Shared,
    conversation: Conversation,
    add_generation_prompt: bool,
    field: &'static str,
) -> ApiResult<Vec<u32>> {
    let text = state.text.clone();
    let now = SystemTime::now();
    let encode = move || {
        text.tokenizer
            .encode_conversation(&conversation, add_generation_prompt, now)
    };
    let encoded = state.blocking(encode).await?;
    encoded.map_err(|error| ApiError::field(field, error.to_string()))
}

/// Answers with the calls in them found.
pub(super) struct Talk<'a> {
    answers: Answers<'a>,
    calls: Option<&'a Choice>,
    parsers: Vec<Calls>,
}

/// What the answer in this place says next.
pub(super) struct More {
    pub place: usize,
    pub pieces: Vec<Piece>,
    /// The tokens of the text, where their log-probabilities are wanted.
    pub scored: Vec<Scored>,
    /// How it ended, and OpenAI's word for it.
    pub end: Option<(&'static str, Ended)>,
}

impl Talk<'_> {
    /// What comes next; `None`: all answers have ended.
    pub async fn next(&mut self) -> ApiResult<Option<More>> {
        let Some(said) = self.answers.next().await? else {
            return Ok(None);
        };
        let (place, delta, ended) = match said {
            Said::More(place, delta) => (place, delta, None),
            Said::End(place, delta, ended) => (place, delta, Some(ended)),
        };
        let (parser, mut pieces) = (&mut self.parsers[place], Vec::new());
        if self.calls.is_some() {
            parser.push(&delta.text, &mut pieces);
            if ended.is_some() {
                parser.finish(&mut pieces);
            }
        } else if !delta.is_empty() {
            pieces.push(Piece::Content(delta.text));
        }
        let reason = |ended: &Ended| match self.calls {
            // A call that was asked for by name is no surprise.
            Some(Choice::Named(_)) | None => ended.reason,
            Some(_) if parser.begun > 0 && ended.reason == "stop" => "tool_calls",
            Some(_) => ended.reason,
        };
        Ok(Some(More {
            place,
            pieces,
            scored: delta.scored,
            end: ended.map(|ended| (reason(&ended), ended)),
        }))
    }
}

/// Tokens with their log-probabilities, as they stand beside a text.
pub(super) fn scores(text: &Text, scored: &[Scored]) -> Vec<Value> {
    let token = |token: &Token| {
        let bytes = text.tokenizer.token_bytes(token.id);
        json!({"token": text.shown(token.id), "logprob": token.logprob, "bytes": bytes})
    };
    let score = |scored: &Scored| {
        let mut object = token(&scored.token);
        object["top_logprobs"] = scored.top.iter().map(token).collect();
        object
    };
    scored.iter().map(score).collect()
}

/// How many tokens it took.
pub(super) struct Usage {
    prompt: usize,
    cached: usize,
    generated: usize,
}

impl Usage {
    pub fn new(prompt: usize) -> Usage {
        Usage {
            prompt,
            cached: 0,
            generated: 0,
        }
    }

    pub fn add(&mut self, ended: &Ended) {
        self.generated += ended.tokens;
        // Of several answers to a prompt the later ones find all of it: what counts is what the first has found.
        if self.cached == 0 {
            self.cached = ended.cached.min(self.prompt);
        }
    }

    pub fn json(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt + self.generated,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        })
    }

    /// In the words of `/v1/responses`.
    pub fn of_response(&self) -> Value {
        json!({
            "input_tokens": self.prompt,
            "input_tokens_details": {"cached_tokens": self.cached},
            "output_tokens": self.generated,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.prompt + self.generated,
        })
    }
}
