//! The body of `/v1/responses`: items of a conversation, translated to the messages, tools and forms that a chat has.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::chat::{MOST_MESSAGES, Own, called, tools};
use super::{Common, MOST_TOP, Raw, StreamOptions, Structured, at_least_one, part, schema};
use crate::error::{ApiError, ApiResult};
use crate::tools::{Choice, Form};

/// What asks for log-probabilities.
const LOGPROBS: &str = "message.output_text.logprobs";

/// `/v1/responses`.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ResponseRequest)]
#[serde(deny_unknown_fields)]
pub(crate) struct Body {
    model: String,
    input: Value,
    instructions: Option<String>,
    max_output_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    include: Option<Vec<String>>,
    top_logprobs: Option<usize>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    text: Option<Text>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    // As in vLLM.
    top_k: Option<i64>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    seed: Option<i64>,
    ignore_eos: Option<bool>,
    structured_outputs: Option<Structured>,
    // One value of each is what happens here.
    truncation: Option<String>,
    background: Option<bool>,
    store: Option<bool>,
    previous_response_id: Option<Value>,
    conversation: Option<Value>,
    // Told back with the response.
    metadata: Option<BTreeMap<String, String>>,
    // What follows changes no answer.
    user: Option<String>,
    service_tier: Option<String>,
    safety_identifier: Option<String>,
    prompt_cache_key: Option<String>,
}

/// What the answer's text must be.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ResponseText)]
#[serde(deny_unknown_fields)]
struct Text {
    format: Option<Value>,
}

/// A message of the input: one to go on from, or one that was an answer.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    role: String,
    content: Value,
    // Of answers.
    #[serde(rename = "id")]
    _id: Option<String>,
    #[serde(rename = "status")]
    _status: Option<String>,
}

/// A call that an answer made.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FunctionCall {
    call_id: String,
    name: String,
    arguments: String,
    #[serde(rename = "id")]
    _id: Option<String>,
    #[serde(rename = "status")]
    _status: Option<String>,
}

/// What a call has come to.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FunctionCallOutput {
    call_id: String,
    output: Value,
    #[serde(rename = "id")]
    _id: Option<String>,
    #[serde(rename = "status")]
    _status: Option<String>,
}

/// A piece of a text. What an answer has beside it may be there: annotations empty, log-probabilities.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    annotations: Option<Vec<Value>>,
    #[serde(rename = "logprobs")]
    _logprobs: Option<Vec<Value>>,
}

/// What a response tells of its request.
#[derive(Debug)]
pub(crate) struct Told {
    pub instructions: Option<String>,
    pub max_output_tokens: Option<usize>,
    pub metadata: BTreeMap<String, String>,
    pub parallel_tool_calls: bool,
    pub temperature: f32,
    pub text: Value,
    pub tool_choice: Value,
    pub tools: Vec<Value>,
    pub top_logprobs: usize,
    pub top_p: f32,
    pub user: Option<String>,
}

impl Body {
    /// A chat's fields, and what the response tells of its request.
    pub fn check(mut self) -> ApiResult<(Common, Own, Told)> {
        self.one_way()?;
        let logprobs = self.logprobs()?;
        let declared = self.tools.take().unwrap_or_default();
        let tools = tools(Some(declared.clone()), Form::Flat)?;
        let choice = Choice::parse(self.tool_choice.as_ref(), &tools, Form::Flat)?;
        if self.parallel_tool_calls.is_some() && tools.is_empty() {
            let said = "parallel_tool_calls says how tools are called, but there are none";
            return Err(ApiError::field("parallel_tool_calls", said));
        }
        if logprobs.is_some() && choice != Choice::None {
            let said = "log-probabilities are not told beside tools; leave them out of include or say \"tool_choice\": \"none\"";
            return Err(ApiError::field("include", said));
        }
        let format = self.text.and_then(|text| text.format);
        let constraint = format.as_ref().map(schema::text_format).transpose()?;
        let told = Told {
            instructions: self.instructions.clone(),
            max_output_tokens: at_least_one("max_output_tokens", self.max_output_tokens)?,
            metadata: self.metadata.clone().unwrap_or_default(),
            parallel_tool_calls: self.parallel_tool_calls.unwrap_or(true),
            temperature: self.temperature.unwrap_or(1.0),
            text: json!({"format": format.unwrap_or_else(|| json!({"type": "text"}))}),
            tool_choice: self.tool_choice.unwrap_or_else(|| "auto".into()),
            tools: declared,
            top_logprobs: logprobs.unwrap_or(0),
            top_p: self.top_p.unwrap_or(1.0),
            user: self.user.clone(),
        };
        let common = Raw {
            model: self.model,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            ignore_eos: self.ignore_eos,
            stream: self.stream,
            stream_options: self.stream_options,
            structured: self.structured_outputs,
            format: constraint.flatten().map(|form| (form, "text.format")),
            labels: [
                ("user", self.user),
                ("safety_identifier", self.safety_identifier),
                ("prompt_cache_key", self.prompt_cache_key),
            ],
            metadata: self.metadata,
            store: self.store,
            service_tier: self.service_tier,
            ..Raw::default()
        };
        let common = common.check()?;
        if common.include_usage {
            let said =
                "the last event of a stream has the usage in any case; leave include_usage out";
            return Err(ApiError::field("stream_options.include_usage", said));
        }
        let own = Own {
            messages: messages(self.instructions, self.input)?,
            max_tokens: told.max_output_tokens,
            logprobs,
            tools,
            choice,
            parallel: told.parallel_tool_calls,
        };
        Ok((common, own, told))
    }

    /// Refuses what there is one way of here, where another is asked for.
    fn one_way(&self) -> ApiResult<()> {
        let kept = "nothing is kept here, so there is nothing to go on from; give the whole conversation as `input`";
        if self.previous_response_id.is_some() {
            return Err(ApiError::field("previous_response_id", kept));
        }
        if self.conversation.is_some() {
            return Err(ApiError::field("conversation", kept));
        }
        if self.background == Some(true) {
            let said = "nothing is kept here that could be asked for later; leave background out and stream the answer";
            return Err(ApiError::field("background", said));
        }
        match self.truncation.as_deref() {
            None | Some("disabled") => Ok(()),
            Some(_) => {
                let said = "nothing is cut from a conversation here; leave truncation out or say \"disabled\"";
                Err(ApiError::field("truncation", said))
            }
        }
    }

    /// How many alternatives beside each token's log-probability, where those are told.
    fn logprobs(&self) -> ApiResult<Option<usize>> {
        let include = self.include.as_deref().unwrap_or_default();
        if include.iter().any(|what| what != LOGPROBS) {
            let said = format!("include may ask for \"{LOGPROBS}\" and nothing else here");
            return Err(ApiError::field("include", said));
        }
        match (include.is_empty(), self.top_logprobs) {
            (_, Some(top)) if top > MOST_TOP => {
                let said = format!("top_logprobs is from 0 to {MOST_TOP}");
                Err(ApiError::field("top_logprobs", said))
            }
            (false, top) => Ok(Some(top.unwrap_or(0))),
            (true, None | Some(0)) => Ok(None),
            (true, Some(_)) => {
                let said = format!(
                    "top_logprobs come beside log-probabilities; add \"include\": [\"{LOGPROBS}\"]"
                );
                Err(ApiError::field("top_logprobs", said))
            }
        }
    }
}

/// An input as a chat's messages, which templates take.
fn messages(instructions: Option<String>, input: Value) -> ApiResult<Vec<Map<String, Value>>> {
    let mut messages: Vec<Map<String, Value>> = Vec::new();
    let instructions = instructions.map(|text| message("system", text.into()));
    messages.extend(instructions);
    match input {
        Value::String(text) => messages.push(message("user", text.into())),
        Value::Array(items) if (1..=MOST_MESSAGES).contains(&items.len()) => {
            for (place, item) in items.into_iter().enumerate() {
                add(&mut messages, item, &format!("input[{place}]"))?;
            }
        }
        _ => {
            let said = format!("input is a text or a list of 1 to {MOST_MESSAGES} items");
            return Err(ApiError::field("input", said));
        }
    }
    Ok(messages)
}

fn message(role: &str, content: Value) -> Map<String, Value> {
    let mut message = Map::new();
    message.insert("role".to_owned(), role.into());
    message.insert("content".to_owned(), content);
    message
}

/// Adds the item that stands at `at`. Calls are part of the assistant's message before them.
fn add(messages: &mut Vec<Map<String, Value>>, item: Value, at: &str) -> ApiResult<()> {
    let Value::Object(mut fields) = item else {
        return Err(ApiError::field(at, "an item of the input is an object"));
    };
    let kind = fields.remove("type").unwrap_or_else(|| "message".into());
    let fields = Value::Object(fields);
    match kind.as_str() {
        Some("message") => {
            let Message { role, content, .. } = part(fields, at)?;
            // What OpenAI calls developer is what models know as system.
            let role = match role.as_str() {
                "developer" => "system",
                "system" | "user" | "assistant" => &role,
                _ => {
                    let said = "a role is system, developer, user or assistant";
                    return Err(ApiError::field(format!("{at}.role"), said));
                }
            };
            let content = text(content, &format!("{at}.content"))?;
            messages.push(message(role, content.into()));
        }
        Some("function_call") => {
            let call: FunctionCall = part(fields, at)?;
            let place = format!("{at}.arguments");
            let call = called(&call.call_id, &call.name, &call.arguments, &place)?;
            let spoke = |message: &&mut Map<String, Value>| message["role"] == "assistant";
            if messages.last_mut().filter(spoke).is_none() {
                messages.push(message("assistant", Value::Null));
            }
            if let Some(message) = messages.last_mut() {
                let calls = message.entry("tool_calls").or_insert_with(|| json!([]));
                calls
                    .as_array_mut()
                    .into_iter()
                    .for_each(|calls| calls.push(call.clone()));
            }
        }
        Some("function_call_output") => {
            let FunctionCallOutput {
                call_id, output, ..
            } = part(fields, at)?;
            let mut result = message("tool", text(output, &format!("{at}.output"))?.into());
            result.insert("tool_call_id".to_owned(), call_id.into());
            messages.push(result);
        }
        _ => {
            let said = "an item is a message, a function_call or a function_call_output; other kinds are not supported";
            return Err(ApiError::field(format!("{at}.type"), said));
        }
    }
    Ok(())
}

/// A text, or parts of one, put together.
fn text(content: Value, at: &str) -> ApiResult<String> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) if !parts.is_empty() => parts,
        _ => {
            let said = "a content is a text or a list of {\"type\": \"input_text\", \"text\": …}";
            return Err(ApiError::field(at, said));
        }
    };
    let mut whole = String::new();
    for (place, value) in parts.into_iter().enumerate() {
        let at = format!("{at}[{place}]");
        let plain = value["type"] == "input_text" || value["type"] == "output_text";
        if !plain {
            let said =
                "a part of a content is input_text or output_text; other kinds are not supported";
            return Err(ApiError::field(format!("{at}.type"), said));
        }
        let piece: Part = part(value, &at)?;
        if piece.annotations.is_some_and(|list| !list.is_empty()) {
            let said = "annotations of a text are not supported; leave them out";
            return Err(ApiError::field(format!("{at}.annotations"), said));
        }
        let text = piece.text;
        whole += &text.ok_or_else(|| {
            ApiError::field(format!("{at}.text"), format!("{} needs a text", piece.kind))
        })?;
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(input: Value, wanted: &Value) {
        let got = messages(Some("Be brief.".to_owned()), input).unwrap();
        let mut all = vec![json!({"role": "system", "content": "Be brief."})];
        all.extend(wanted.as_array().unwrap().clone());
        assert_eq!(json!(got), Value::from(all));
    }

    #[test]
    fn items_become_the_messages_of_a_chat() {
        let user = json!({"role": "user", "content": "a"});
        check(json!("a"), &json!([user]));
        check(json!([{"role": "user", "content": "a"}]), &json!([user]));
        let parts =
            json!([{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]);
        check(
            json!([{"type": "message", "role": "developer", "content": parts}]),
            &json!([{"role": "system", "content": "ab"}]),
        );
        // What an answer was goes back as it came: the text and two calls are one message of the assistant's.
        let call = |id: &str| json!({"type": "function_call", "id": "fc_1", "call_id": id, "name": "f", "arguments": "{\"x\": 1}", "status": "completed"});
        let output =
            |id: &str| json!({"type": "function_call_output", "call_id": id, "output": "7"});
        let said =
            json!([{"type": "output_text", "text": "Well", "annotations": [], "logprobs": []}]);
        let called = |id: &str| json!({"type": "function", "id": id, "function": {"name": "f", "arguments": {"x": 1}}});
        check(
            json!([
                user,
                {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": said},
                call("1"), call("2"), output("1"), output("2"), call("3"),
            ]),
            &json!([
                user,
                {"role": "assistant", "content": "Well", "tool_calls": [called("1"), called("2")]},
                {"role": "tool", "content": "7", "tool_call_id": "1"},
                {"role": "tool", "content": "7", "tool_call_id": "2"},
                {"role": "assistant", "content": null, "tool_calls": [called("3")]},
            ]),
        );
    }

    #[test]
    fn an_item_that_is_not_understood_is_named() {
        for (input, param) in [
            (json!(1), "input"),
            (json!([]), "input"),
            (json!(["a"]), "input[0]"),
            (json!([{"role": "tool", "content": "a"}]), "input[0].role"),
            (json!([{"role": "user"}]), "input[0].content"),
            (json!([{"role": "user", "content": 1}]), "input[0].content"),
            (
                json!([{"role": "user", "content": "a", "name": "b"}]),
                "input[0].name",
            ),
            (json!([{"type": "reasoning"}]), "input[0].type"),
            (
                json!([{"type": "function_call", "call_id": "1", "name": "f", "arguments": "["}]),
                "input[0].arguments",
            ),
            (
                json!([{"type": "function_call_output", "call_id": "1"}]),
                "input[0].output",
            ),
            (
                json!([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]),
                "input[0].content[0].type",
            ),
            (
                json!([{"role": "user", "content": [{"type": "input_text"}]}]),
                "input[0].content[0].text",
            ),
            (
                json!([{"role": "assistant", "content": [{"type": "output_text", "text": "a", "annotations": [1]}]}]),
                "input[0].content[0].annotations",
            ),
        ] {
            let error = messages(None, input.clone()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{input}");
        }
    }
}
