//! The body of `/v1/chat/completions`: messages as templates want them, and tools.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{MOST_TOP, at_least_one, body};
use crate::error::{ApiError, ApiResult};
use crate::tools::{Choice, Form, Tool};

/// The most messages of one request.
pub(super) const MOST_MESSAGES: usize = 4096;
/// The most tools of one request, as at OpenAI.
const MOST_TOOLS: usize = 128;

body! {
    /// `/v1/chat/completions`.
    Body as ChatCompletionRequest {
        messages: Vec<Message>,
        max_tokens: Option<usize>,
        max_completion_tokens: Option<usize>,
        logprobs: Option<bool>,
        top_logprobs: Option<usize>,
        tools: Option<Vec<Value>>,
        tool_choice: Option<Value>,
        parallel_tool_calls: Option<bool>,
        modalities: Option<Vec<String>>,
    }
}

/// The fields of `/v1/chat/completions` alone.
pub(crate) struct Own {
    /// As templates take them.
    pub messages: Vec<Map<String, Value>>,
    /// `None`: until the context is full.
    pub max_tokens: Option<usize>,
    /// How many alternatives beside each token's log-probability.
    pub logprobs: Option<usize>,
    pub tools: Vec<Tool>,
    pub choice: Choice,
    pub parallel: bool,
}

impl Body {
    /// What the fields say that `/v1/chat/completions` has alone.
    pub fn own(&mut self) -> ApiResult<Own> {
        let text_alone = |kinds: &Vec<String>| kinds.len() == 1 && kinds[0] == "text";
        if !self.modalities.as_ref().is_none_or(text_alone) {
            return Err(ApiError::field(
                "modalities",
                "answers are text; leave modalities out or say [\"text\"]",
            ));
        }
        let logprobs = match (self.logprobs.unwrap_or(false), self.top_logprobs) {
            (true, top) => Some(top.unwrap_or(0)),
            (false, None | Some(0)) => None,
            (false, Some(_)) => {
                let said = "top_logprobs come beside logprobs; add \"logprobs\": true";
                return Err(ApiError::field("top_logprobs", said));
            }
        };
        if logprobs.is_some_and(|top| top > MOST_TOP) {
            let said = format!("top_logprobs is from 0 to {MOST_TOP}");
            return Err(ApiError::field("top_logprobs", said));
        }
        let older = at_least_one("max_tokens", self.max_tokens)?;
        let newer = at_least_one("max_completion_tokens", self.max_completion_tokens)?;
        if older.is_some() && newer.is_some_and(|newer| Some(newer) != older) {
            let said = "max_tokens is the older name of max_completion_tokens; give one of them";
            return Err(ApiError::field("max_tokens", said));
        }
        if self.messages.is_empty() || self.messages.len() > MOST_MESSAGES {
            let said = format!("there must be 1 to {MOST_MESSAGES} messages");
            return Err(ApiError::field("messages", said));
        }
        let tools = tools(self.tools.take(), Form::Nested)?;
        let choice = Choice::parse(self.tool_choice.as_ref(), &tools, Form::Nested)?;
        if self.parallel_tool_calls.is_some() && tools.is_empty() {
            let said = "parallel_tool_calls says how tools are called, but there are none";
            return Err(ApiError::field("parallel_tool_calls", said));
        }
        if logprobs.is_some() && !tools.is_empty() && choice != Choice::None {
            let said = "log-probabilities are not told beside tools; leave logprobs out or say \"tool_choice\": \"none\"";
            return Err(ApiError::field("logprobs", said));
        }
        let messages = std::mem::take(&mut self.messages);
        let message = |(place, message): (usize, Message)| message.check(place);
        Ok(Own {
            messages: messages
                .into_iter()
                .enumerate()
                .map(message)
                .collect::<ApiResult<_>>()?,
            max_tokens: newer.or(older),
            logprobs,
            tools,
            choice,
            parallel: self.parallel_tool_calls.unwrap_or(true),
        })
    }
}

/// The tools of a request.
pub(super) fn tools(tools: Option<Vec<Value>>, form: Form) -> ApiResult<Vec<Tool>> {
    let tools = tools.unwrap_or_default();
    if tools.len() > MOST_TOOLS {
        let said = format!(
            "there are {} tools, but {MOST_TOOLS} are the most",
            tools.len()
        );
        return Err(ApiError::field("tools", said));
    }
    let mut checked: Vec<Tool> = Vec::new();
    for (place, tool) in tools.iter().enumerate() {
        let at = format!("tools[{place}]");
        let tool = Tool::parse(tool, form).map_err(|error| error.about(&at))?;
        if checked.iter().any(|other| other.name == tool.name) {
            let said = format!("there are two tools `{}`", tool.name);
            return Err(ApiError::field(format!("{at}.{}", form.name()), said));
        }
        checked.push(tool);
    }
    Ok(checked)
}

/// A message as it comes. What only answers of other servers hold may be there, empty.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Message {
    role: String,
    content: Option<Value>,
    name: Option<String>,
    tool_calls: Option<Vec<Call>>,
    tool_call_id: Option<String>,
    refusal: Option<Value>,
    annotations: Option<Vec<Value>>,
    audio: Option<Value>,
    function_call: Option<Value>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Call {
    id: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    function: CalledFunction,
    // Of a streamed answer that was put together again.
    #[serde(rename = "index")]
    _index: Option<u64>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CalledFunction {
    name: String,
    arguments: String,
}

impl Message {
    /// As a template takes it. `place` is where it stands.
    pub fn check(self, place: usize) -> ApiResult<Map<String, Value>> {
        let at = |field: &str| format!("messages[{place}].{field}");
        let wrong = |field: &str, said: &str| Err(ApiError::field(at(field), said));
        let empty = |value: &Option<Value>| value.as_ref().is_none_or(Value::is_null);
        for (name, value) in [
            ("refusal", &self.refusal),
            ("audio", &self.audio),
            ("function_call", &self.function_call),
        ] {
            if !empty(value) {
                return wrong(
                    name,
                    &format!("`{name}` of a message is not supported; leave it out"),
                );
            }
        }
        if self.annotations.is_some_and(|list| !list.is_empty()) {
            return wrong(
                "annotations",
                "`annotations` of a message are not supported; leave them out",
            );
        }
        if self.name.is_some() {
            return wrong(
                "name",
                "names of speakers are not supported: templates do not tell them to the model; leave `name` out",
            );
        }
        // What OpenAI calls developer is what models know as system.
        let role = match self.role.as_str() {
            "developer" => "system",
            "system" | "user" | "assistant" | "tool" => self.role.as_str(),
            _ => {
                return wrong(
                    "role",
                    "a role is system, developer, user, assistant or tool",
                );
            }
        };
        let calls = self.tool_calls.unwrap_or_default();
        if role != "assistant" && !calls.is_empty() {
            return wrong("tool_calls", "only the assistant calls tools");
        }
        if (role == "tool") != self.tool_call_id.is_some() {
            return wrong(
                "tool_call_id",
                "the result of a tool, and nothing else, names the call that it is of",
            );
        }
        let content = match self.content.as_ref() {
            None | Some(Value::Null) if role == "assistant" && !calls.is_empty() => Value::Null,
            None | Some(Value::Null) => return wrong("content", "a message needs a content"),
            Some(content) => match text(content) {
                Some(text) => Value::String(text),
                None => {
                    return wrong(
                        "content",
                        "a content is a text or a list of {\"type\": \"text\", \"text\": …}; other kinds are not supported",
                    );
                }
            },
        };
        let mut message = Map::new();
        message.insert("role".to_owned(), role.into());
        message.insert("content".to_owned(), content);
        if !calls.is_empty() {
            let calls = calls.into_iter().enumerate().map(|(number, call)| {
                let field = |field: &str| at(&format!("tool_calls[{number}].{field}"));
                if call.kind.as_deref().is_some_and(|kind| kind != "function") {
                    return Err(ApiError::field(
                        field("type"),
                        "only functions can be called",
                    ));
                }
                let CalledFunction { name, arguments } = call.function;
                called(&call.id, &name, &arguments, &field("function.arguments"))
            });
            let calls = calls.collect::<ApiResult<Vec<_>>>()?;
            message.insert("tool_calls".to_owned(), calls.into());
        }
        if let Some(id) = self.tool_call_id {
            message.insert("tool_call_id".to_owned(), id.into());
        }
        Ok(message)
    }
}

/// A call as templates take it, which write the arguments as JSON themselves; `at` is where those stand.
pub(super) fn called(id: &str, name: &str, arguments: &str, at: &str) -> ApiResult<Value> {
    let arguments: Map<String, Value> = serde_json::from_str(arguments)
        .map_err(|_| ApiError::field(at, "arguments are the text of a JSON object"))?;
    let function = json!({"name": name, "arguments": arguments});
    Ok(json!({"type": "function", "id": id, "function": function}))
}

/// A text, or parts of one.
fn text(content: &Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) if !parts.is_empty() => {
            fn part(part: &Value) -> Option<&str> {
                let part = part.as_object()?;
                let plain = part.len() == 2 && part.get("type")?.as_str()? == "text";
                plain.then_some(part.get("text")?.as_str()?)
            }
            parts.iter().map(part).collect()
        }
        _ => None,
    }
}
