//! `/v1/chat/completions`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Extension, Request, State as From};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::conversation::{Job, More, Usage, scores};
use super::stream::{Broken, Out, done, respond, unless_gone};
use super::{Shared, body, json as reply};
use crate::answer::Scored;
use crate::error::ApiResult;
use crate::keys::Caller;
use crate::model::Text;
use crate::tools::Piece;
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
    let (common, own) = (body.common()?, body.own()?);
    let (streamed, usage) = (common.stream, common.include_usage);
    let (job, ticket) = Job::begin(&state, &caller, begun, (common, own), "messages").await?;
    let chat = Chat {
        id: state.id("chatcmpl-"),
        job,
        usage,
    };
    if streamed {
        return Ok(respond(&state, done, move |state, out| {
            stream(state, out, chat, ticket)
        }));
    }
    let whole = chat.whole(&state, ticket).await?;
    Ok(reply(StatusCode::OK, &whole))
}

/// An answer as this endpoint writes it.
struct Chat {
    id: String,
    job: Job,
    /// Whether a stream tells it.
    usage: bool,
}

fn call_id(state: &Shared) -> String {
    state.id("call_")
}

impl Chat {
    /// The object of the whole answer.
    async fn whole(&self, state: &Shared, ticket: Ticket) -> ApiResult<Value> {
        let mut talk = self.job.talk(state, ticket);
        let mut choices: Vec<Message> = (0..self.job.answers).map(|_| Message::default()).collect();
        let mut usage = Usage::new(self.job.prompt_tokens);
        while let Some(more) = talk.next().await? {
            if let Some((_, ended)) = &more.end {
                usage.add(ended);
            }
            choices[more.place].take(more);
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
                        json!({"id": call_id(state), "type": "function", "function": function})
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
            "created": self.job.created,
            "model": self.job.model,
            "system_fingerprint": state.fingerprint,
            "choices": choices,
            "usage": usage.json(),
        }))
    }

    /// Log-probabilities as they stand beside a choice.
    fn logprobs(&self, text: &Text, scored: &[Scored]) -> Value {
        match self.job.style.scored {
            true => json!({"content": scores(text, scored), "refusal": null}),
            false => Value::Null,
        }
    }

    /// A piece of the stream.
    fn chunk(&self, state: &Shared, choices: Value, usage: Option<Value>) -> Value {
        let mut chunk = json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.job.created,
            "model": self.job.model,
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
    scored: Vec<Scored>,
    reason: &'static str,
}

impl Message {
    fn take(&mut self, more: More) {
        self.scored.extend(more.scored);
        for piece in more.pieces {
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
        if let Some((reason, _)) = more.end {
            self.reason = reason;
        }
    }
}

/// Writes an answer as it comes.
async fn stream(state: Shared, out: Arc<Out>, chat: Chat, ticket: Ticket) -> Result<(), Broken> {
    let mut talk = chat.job.talk(&state, ticket);
    let mut usage = Usage::new(chat.job.prompt_tokens);
    let mut called = vec![0; chat.job.answers]; // calls begun
    for index in 0..chat.job.answers {
        let role = json!({"role": "assistant", "content": "", "refusal": null});
        out.send(&chat.delta(&state, index, role, Value::Null))
            .await?;
    }
    while let Some(more) = unless_gone(&out, talk.next()).await? {
        let (index, mut scored) = (more.place, more.scored);
        for piece in more.pieces {
            let delta = match piece {
                Piece::Content(text) => json!({"content": text}),
                Piece::Call(name) => {
                    called[index] += 1;
                    let function = json!({"name": name, "arguments": ""});
                    let call = json!({
                        "index": called[index] - 1,
                        "id": call_id(&state),
                        "type": "function",
                        "function": function,
                    });
                    json!({"tool_calls": [call]})
                }
                Piece::Arguments(text) => {
                    let call = json!({"index": called[index] - 1, "function": {"arguments": text}});
                    json!({"tool_calls": [call]})
                }
            };
            let logprobs = chat.logprobs(&state.text, &std::mem::take(&mut scored));
            out.send(&chat.delta(&state, index, delta, logprobs))
                .await?;
        }
        if let Some((reason, ended)) = more.end {
            usage.add(&ended);
            let choice =
                json!({"index": index, "delta": {}, "logprobs": null, "finish_reason": reason});
            out.send(&chat.chunk(&state, json!([choice]), None)).await?;
        }
    }
    if chat.usage {
        out.send(&chat.chunk(&state, json!([]), Some(usage.json())))
            .await?;
    }
    Ok(())
}
