//! `/v1/responses`: the same answers as a chat's, told as items and by OpenAI's newer events. Nothing of them is kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::extract::{Extension, Request, State as From};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::conversation::{Job, More, Talk, Usage, scores};
use super::stream::{Broken, Line, Out, respond, unless_gone};
use super::{Shared, body, json as reply};
use crate::error::{ApiError, ApiResult};
use crate::keys::Caller;
use crate::tools::Piece;
use crate::wire::{parse, responses};
use crate::worker::Ticket;

/// Answers a conversation.
pub(super) async fn responses(
    From(state): From<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> ApiResult<Response> {
    let begun = Instant::now();
    let bytes = body(&state, request).await?;
    let body: responses::Body = parse(&bytes)?;
    drop(bytes);
    let (common, own, told) = body.check()?;
    let streamed = common.stream;
    let (job, ticket) = Job::begin(&state, &caller, begun, (common, own), "input").await?;
    let response = Reply {
        id: state.id("resp_"),
        job,
        told,
        events: AtomicU64::new(0),
    };
    if streamed {
        let response = Arc::new(response);
        let failing = response.clone();
        let last = move |outcome: ApiResult<()>| outcome.err().map(|error| failing.failed(&error));
        return Ok(respond(&state, last, move |state, out| {
            stream(state, out, response, ticket)
        }));
    }
    let mut speech = Speech::new(&state, &response, ticket);
    while speech.next().await? {
        speech.output.events.clear();
    }
    Ok(reply(StatusCode::OK, &speech.object()))
}

/// An answer as this endpoint writes it.
struct Reply {
    id: String,
    job: Job,
    told: responses::Told,
    /// How many events have been numbered.
    events: AtomicU64,
}

impl Reply {
    /// The object, as far as it is.
    fn object(&self, status: &str, output: &[Value], usage: Value) -> Value {
        let told = &self.told;
        let incomplete = match status {
            "incomplete" => json!({"reason": "max_output_tokens"}),
            _ => Value::Null,
        };
        json!({
            "id": self.id,
            "object": "response",
            "created_at": self.job.created,
            "status": status,
            "background": false,
            "error": null,
            "incomplete_details": incomplete,
            "instructions": told.instructions,
            "max_output_tokens": told.max_output_tokens,
            "metadata": told.metadata,
            "model": self.job.model,
            "output": output,
            "parallel_tool_calls": told.parallel_tool_calls,
            "previous_response_id": null,
            "service_tier": "default",
            "store": false,
            "temperature": told.temperature,
            "text": told.text,
            "tool_choice": told.tool_choice,
            "tools": told.tools,
            "top_logprobs": told.top_logprobs,
            "top_p": told.top_p,
            "truncation": "disabled",
            "usage": usage,
            "user": told.user,
        })
    }

    /// An event with the next number.
    fn line(&self, name: &'static str, fields: Value) -> Line {
        let mut event = Map::new();
        event.insert("type".to_owned(), name.into());
        let number = self.events.fetch_add(1, Ordering::Relaxed);
        event.insert("sequence_number".to_owned(), number.into());
        if let Value::Object(fields) = fields {
            event.extend(fields);
        }
        Line::named(name, &Value::Object(event))
    }

    /// The event of an answer that could not go on.
    fn failed(&self, error: &ApiError) -> Line {
        let mut object = self.object("failed", &[], Value::Null);
        object["error"] = json!({"code": "server_error", "message": error.message()});
        self.line("response.failed", json!({"response": object}))
    }
}

/// An answer being said.
struct Speech<'a> {
    state: &'a Shared,
    reply: &'a Reply,
    talk: Talk<'a>,
    output: Output,
    usage: Usage,
    status: &'static str,
}

impl<'a> Speech<'a> {
    fn new(state: &'a Shared, reply: &'a Reply, ticket: Ticket) -> Speech<'a> {
        Speech {
            state,
            reply,
            talk: reply.job.talk(state, ticket),
            output: Output::default(),
            usage: Usage::new(reply.job.prompt_tokens),
            status: "in_progress",
        }
    }

    /// Takes in what is said next; whether there was something.
    async fn next(&mut self) -> ApiResult<bool> {
        let Some(more) = self.talk.next().await? else {
            return Ok(false);
        };
        let More {
            pieces,
            scored,
            end,
            ..
        } = more;
        let mut scored = scores(&self.state.text, &scored);
        for piece in pieces {
            let id = |prefix: &str| self.state.id(prefix);
            self.output.take(piece, std::mem::take(&mut scored), &id);
        }
        if let Some((reason, ended)) = end {
            self.usage.add(&ended);
            self.status = match reason {
                "length" => "incomplete",
                _ => "completed",
            };
            self.output
                .finish(self.status, &|prefix| self.state.id(prefix));
        }
        Ok(true)
    }

    /// The object of the whole answer.
    fn object(&self) -> Value {
        let usage = self.usage.of_response();
        self.reply.object(self.status, &self.output.items, usage)
    }
}

/// The items of a response, and the events that tell of them: both from one place, so that they say the same.
#[derive(Default)]
struct Output {
    items: Vec<Value>,
    open: Option<Item>,
    events: Vec<(&'static str, Value)>,
}

/// An item in the making.
struct Item {
    id: String,
    kind: Kind,
    /// What it says, or the arguments of its call.
    text: String,
}

enum Kind {
    Message { scored: Vec<Value> },
    Call { call_id: String, name: String },
}

impl Item {
    fn json(&self, status: &str) -> Value {
        match &self.kind {
            Kind::Message { .. } => {
                let content = match status {
                    "in_progress" => json!([]),
                    _ => json!([self.part()]),
                };
                json!({"id": self.id, "type": "message", "status": status, "role": "assistant", "content": content})
            }
            Kind::Call { call_id, name } => json!({
                "id": self.id,
                "type": "function_call",
                "status": status,
                "call_id": call_id,
                "name": name,
                "arguments": self.text,
            }),
        }
    }

    /// The content of a message.
    fn part(&self) -> Value {
        let scored = match &self.kind {
            Kind::Message { scored } => &scored[..],
            Kind::Call { .. } => &[],
        };
        json!({"type": "output_text", "text": self.text, "annotations": [], "logprobs": scored})
    }
}

impl Output {
    /// Takes a piece of the answer. `id` makes names.
    fn take(&mut self, piece: Piece, scored: Vec<Value>, id: &dyn Fn(&str) -> String) {
        let index = match (&piece, &self.open) {
            (Piece::Arguments(_), _) => self.items.len(),
            (Piece::Content(_), Some(item)) if matches!(item.kind, Kind::Message { .. }) => {
                self.items.len()
            }
            _ => {
                self.close("completed");
                self.items.len()
            }
        };
        match piece {
            Piece::Content(text) => {
                let item = self.open.get_or_insert_with(|| {
                    let item = Item {
                        id: id("msg_"),
                        kind: Kind::Message { scored: Vec::new() },
                        text: String::new(),
                    };
                    let added = json!({"output_index": index, "item": item.json("in_progress")});
                    self.events.push(("response.output_item.added", added));
                    let part = json!({"item_id": item.id, "output_index": index, "content_index": 0, "part": item.part()});
                    self.events.push(("response.content_part.added", part));
                    item
                });
                if text.is_empty() && scored.is_empty() {
                    return;
                }
                item.text += &text;
                let delta = json!({
                    "item_id": item.id, "output_index": index, "content_index": 0, "delta": text, "logprobs": scored,
                });
                self.events.push(("response.output_text.delta", delta));
                if let Kind::Message { scored: all } = &mut item.kind {
                    all.extend(scored);
                }
            }
            Piece::Call(name) => {
                let item = Item {
                    id: id("fc_"),
                    kind: Kind::Call {
                        call_id: id("call_"),
                        name,
                    },
                    text: String::new(),
                };
                let added = json!({"output_index": index, "item": item.json("in_progress")});
                self.events.push(("response.output_item.added", added));
                self.open = Some(item);
            }
            Piece::Arguments(text) => {
                if let Some(item) = &mut self.open {
                    item.text += &text;
                    let delta = json!({"item_id": item.id, "output_index": index, "delta": text});
                    self.events
                        .push(("response.function_call_arguments.delta", delta));
                }
            }
        }
    }

    /// Ends the item that is in the making.
    fn close(&mut self, status: &str) {
        let Some(item) = self.open.take() else {
            return;
        };
        let (index, whole) = (self.items.len(), item.json(status));
        match &item.kind {
            Kind::Message { scored } => {
                let done = json!({
                    "item_id": item.id, "output_index": index, "content_index": 0, "text": item.text, "logprobs": scored,
                });
                self.events.push(("response.output_text.done", done));
                let part = json!({"item_id": item.id, "output_index": index, "content_index": 0, "part": item.part()});
                self.events.push(("response.content_part.done", part));
            }
            Kind::Call { name, .. } => {
                let done = json!({"item_id": item.id, "output_index": index, "name": name, "arguments": item.text});
                self.events
                    .push(("response.function_call_arguments.done", done));
            }
        }
        let done = json!({"output_index": index, "item": whole});
        self.events.push(("response.output_item.done", done));
        self.items.push(whole);
    }

    /// Ends the answer: with an empty message, where it said nothing.
    fn finish(&mut self, status: &str, id: &dyn Fn(&str) -> String) {
        if self.items.is_empty() && self.open.is_none() {
            self.take(Piece::Content(String::new()), Vec::new(), id);
        }
        self.close(status);
    }
}

/// Writes an answer as it comes.
async fn stream(
    state: Shared,
    out: Arc<Out>,
    reply: Arc<Reply>,
    ticket: Ticket,
) -> Result<(), Broken> {
    // Before the first word, so that who leaves at once is counted.
    let mut speech = Speech::new(&state, &reply, ticket);
    for name in ["response.created", "response.in_progress"] {
        let object = reply.object("in_progress", &[], Value::Null);
        out.line(reply.line(name, json!({"response": object})))
            .await?;
    }
    while unless_gone(&out, speech.next()).await? {
        for (name, fields) in speech.output.events.drain(..) {
            out.line(reply.line(name, fields)).await?;
        }
    }
    let name = match speech.status {
        "incomplete" => "response.incomplete",
        _ => "response.completed",
    };
    out.line(reply.line(name, json!({"response": speech.object()})))
        .await?;
    Ok(())
}
