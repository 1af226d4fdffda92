//! `/v1/chat/completions`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Extension, Request, State as From};
use axum::http::StatusCode;
use axum::response::Response;
use russet_engine::Token;
use russet_tokenizer::Conversation;
use serde_json::{Value, json};

use super::stream::{Broken, Out, respond, unless_gone};
use super::{Shared, body, json as reply};
use crate::answer::{Answers, Delta, Ended, Said, Scored, Style};
use crate::error::{ApiError, ApiResult};
use crate::keys::Caller;
use crate::model::Text;
use crate::registry::now;
use crate::tools::{self, Calls, Choice, Piece};
use crate::wire::{chat, parse};
use crate::worker::Ticket;

/// Answers a conversation.
pub(super) async fn chat(
    From(state): From<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> ApiResult<Response> {
    let begun = Instant::now();
    let bytes = body(&state, request).await?;
    let mut body: chat::Body = parse(&bytes)?;
    drop(bytes);
    let (mut common, own) = (body.common()?, body.own()?);
    let adapters = state.registry.stack(&common.model)?;
    let calls = own.choice != Choice::None;
    if calls {
        let Some(open) = state.text.tools else {
            return Err(ApiError::field(
                "tools",
                "this model's chat template has no form for tools that is known here",
            ));
        };
        if common.constraint.is_some() {
            return Err(ApiError::field(
                "response_format",
                "an answer that may call tools has the form of their calls; leave tools out or say \"tool_choice\": \"none\"",
            ));
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
    let prompt = encode(&state, conversation, true).await?;
    let guide = state.grammar(common.constraint.take()).await?;
    let mut asked = state.request(&common, &caller, &adapters);
    asked.sampling.top_logprobs = own.logprobs.unwrap_or(0);
    asked.max_tokens = own.max_tokens.unwrap_or(usize::MAX);
    asked.guide = guide;
    let job = Job {
        id: state.id("chatcmpl-"),
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
        usage: common.include_usage,
        model: common.model,
    };
    asked.prompt = prompt;
    let ticket = state
        .submit(vec![asked], job.answers, &job.model, "messages")
        .await?;
    if common.stream {
        return Ok(respond(&state, move |state, out| {
            stream(state, out, job, ticket)
        }));
    }
    let whole = job.whole(&state, ticket).await?;
    Ok(reply(StatusCode::OK, &whole))
}

/// A conversation's tokens.
pub(super) async fn encode(
    state: &Shared,
    conversation: Conversation,
    add_generation_prompt: bool,
) -> ApiResult<Vec<u32>> {
    let text = state.text.clone();
    let encode = move || {
        text.tokenizer
            .encode_conversation(&conversation, add_generation_prompt)
    };
    let encoded = state.blocking(encode).await?;
    encoded.map_err(|error| ApiError::field("messages", error.to_string()))
}

/// What is to be answered.
struct Job {
    id: String,
    created: u64,
    begun: Instant,
    model: String,
    prompt_tokens: usize,
    answers: usize,
    style: Style,
    /// Where the answer may call tools.
    calls: Option<Choice>,
    usage: bool,
}

impl Job {
    fn answers<'a>(&self, state: &'a Shared, ticket: Ticket) -> Answers<'a> {
        let begins = vec![true; self.answers];
        let tokenizer = &state.text.tokenizer;
        Answers::new(
            ticket,
            tokenizer,
            &begins,
            &self.style,
            &state.metrics,
            self.begun,
        )
    }

    /// How an answer ended, in OpenAI's words.
    fn reason(&self, ended: &Ended, calls: usize) -> &'static str {
        match &self.calls {
            // A call that was asked for by name is no surprise.
            Some(Choice::Named(_)) | None => ended.reason,
            Some(_) if calls > 0 && ended.reason == "stop" => "tool_calls",
            Some(_) => ended.reason,
        }
    }

    fn call_id(state: &Shared) -> String {
        state.id("call_")
    }

    /// The object of the whole answer.
    async fn whole(&self, state: &Shared, ticket: Ticket) -> ApiResult<Value> {
        let mut answers = self.answers(state, ticket);
        let mut choices: Vec<Message> = (0..self.answers).map(|_| Message::default()).collect();
        let mut usage = Usage::new(self.prompt_tokens);
        while let Some(said) = answers.next().await? {
            let (place, delta, ended) = match said {
                Said::More(place, delta) => (place, delta, None),
                Said::End(place, delta, ended) => (place, delta, Some(ended)),
            };
            let choice = &mut choices[place];
            choice.scored.extend(delta.scored);
            if self.calls.is_none() {
                choice.content += &delta.text;
            } else {
                let mut pieces = Vec::new();
                choice.calls.push(&delta.text, &mut pieces);
                if ended.is_some() {
                    choice.calls.finish(&mut pieces);
                }
                pieces.into_iter().for_each(|piece| choice.take(piece));
            }
            if let Some(ended) = ended {
                usage.add(&ended);
                choice.reason = self.reason(&ended, choice.calls.begun);
            }
        }
        let choices = choices.into_iter().enumerate();
        let choices: Vec<Value> = choices
            .map(|(index, choice)| {
                let mut message =
                    json!({"role": "assistant", "content": choice.content, "refusal": null});
                if !choice.called.is_empty() {
                    if choice.content.is_empty() {
                        message["content"] = Value::Null;
                    }
                    let calls = choice.called.into_iter().map(|(name, arguments)| {
                        let function = json!({"name": name, "arguments": arguments});
                        json!({"id": Job::call_id(state), "type": "function", "function": function})
                    });
                    message["tool_calls"] = calls.collect();
                }
                json!({
                    "index": index,
                    "message": message,
                    "logprobs": self.logprobs(&state.text, &choice.scored),
                    "finish_reason": choice.reason,
                })
            })
            .collect();
        Ok(json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": state.fingerprint,
            "choices": choices,
            "usage": usage.json(),
        }))
    }

    /// Log-probabilities as they stand beside a choice.
    fn logprobs(&self, text: &Text, scored: &[Scored]) -> Value {
        if !self.style.scored {
            return Value::Null;
        }
        let token = |token: &Token| {
            let bytes = text.tokenizer.token_bytes(token.id);
            json!({"token": text.shown(token.id), "logprob": token.logprob, "bytes": bytes})
        };
        let content = scored.iter().map(|scored| {
            let mut object = token(&scored.token);
            object["top_logprobs"] = scored.top.iter().map(token).collect();
            object
        });
        json!({"content": content.collect::<Vec<_>>(), "refusal": null})
    }

    /// A piece of the stream.
    fn chunk(&self, state: &Shared, choices: Value, usage: Option<Value>) -> Value {
        let mut chunk = json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": state.fingerprint,
            "choices": choices,
        });
        if self.usage {
            chunk["usage"] = usage.unwrap_or(Value::Null);
        }
        chunk
    }

    fn delta(&self, state: &Shared, index: usize, delta: Value, logprobs: Value) -> Value {
        let choice =
            json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": null});
        self.chunk(state, json!([choice]), None)
    }
}

/// A message in the making.
#[derive(Default)]
struct Message {
    content: String,
    called: Vec<(String, String)>,
    calls: Calls,
    scored: Vec<Scored>,
    reason: &'static str,
}

impl Message {
    fn take(&mut self, piece: Piece) {
        match piece {
            Piece::Content(text) => self.content += &text,
            Piece::Call(name) => self.called.push((name, String::new())),
            Piece::Arguments(text) => {
                if let Some((_, arguments)) = self.called.last_mut() {
                    *arguments += &text;
                }
            }
        }
    }
}

/// Writes an answer as it comes.
async fn stream(state: Shared, out: Arc<Out>, job: Job, ticket: Ticket) -> Result<(), Broken> {
    let mut answers = job.answers(&state, ticket);
    let mut usage = Usage::new(job.prompt_tokens);
    let mut calls: Vec<Calls> = (0..job.answers).map(|_| Calls::default()).collect();
    for index in 0..job.answers {
        let role = json!({"role": "assistant", "content": "", "refusal": null});
        out.send(&job.delta(&state, index, role, Value::Null))
            .await?;
    }
    while let Some(said) = unless_gone(&out, answers.next()).await? {
        let (index, delta, ended) = match said {
            Said::More(index, delta) => (index, delta, None),
            Said::End(index, delta, ended) => (index, delta, Some(ended)),
        };
        if job.calls.is_none() {
            if !delta.is_empty() {
                let Delta { text, scored } = delta;
                let logprobs = job.logprobs(&state.text, &scored);
                let delta = json!({"content": text});
                out.send(&job.delta(&state, index, delta, logprobs)).await?;
            }
        } else {
            let (parser, mut pieces) = (&mut calls[index], Vec::new());
            let before = parser.begun;
            parser.push(&delta.text, &mut pieces);
            if ended.is_some() {
                parser.finish(&mut pieces);
            }
            let mut begun = before;
            for piece in pieces {
                let delta = match piece {
                    Piece::Content(text) => json!({"content": text}),
                    Piece::Call(name) => {
                        begun += 1;
                        let function = json!({"name": name, "arguments": ""});
                        let call = json!({
                            "index": begun - 1,
                            "id": Job::call_id(&state),
                            "type": "function",
                            "function": function,
                        });
                        json!({"tool_calls": [call]})
                    }
                    Piece::Arguments(text) => {
                        let call = json!({"index": begun - 1, "function": {"arguments": text}});
                        json!({"tool_calls": [call]})
                    }
                };
                out.send(&job.delta(&state, index, delta, Value::Null))
                    .await?;
            }
        }
        if let Some(ended) = ended {
            usage.add(&ended);
            let reason = job.reason(&ended, calls[index].begun);
            let choice =
                json!({"index": index, "delta": {}, "logprobs": null, "finish_reason": reason});
            out.send(&job.chunk(&state, json!([choice]), None)).await?;
        }
    }
    if job.usage {
        out.send(&job.chunk(&state, json!([]), Some(usage.json())))
            .await?;
    }
    Ok(())
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
}
