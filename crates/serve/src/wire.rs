//! Bodies of requests: OpenAI's fields, and what becomes of each. A field is carried out or answered with 400 naming it; none is
//! ignored, but those few that change no answer (`user`, `metadata`, `store: false` and their like), which are named in
//! docs/serve.md and go no further than here.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod embeddings;
pub(crate) mod responses;
pub(crate) mod schema;

use std::collections::BTreeMap;

use russet_engine::guide::Constraint;
use russet_engine::{Request, Sampling};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use utoipa::ToSchema;

use crate::error::{ApiError, ApiResult};

/// The most stop strings, and the most bytes of each.
const MOST_STOPS: usize = 16;
const LONGEST_STOP: usize = 1024;
/// The most tokens that may be biased.
const MOST_BIASES: usize = 1024;
/// The most alternatives beside a token, as at OpenAI.
pub(crate) const MOST_TOP: usize = 20;
/// The most pairs of `metadata` and the longest texts of the fields that go no further, as at OpenAI.
const MOST_METADATA: usize = 16;
const LONGEST_LABEL: usize = 512;

/// Reads a body. Fields that are not known are refused by name.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> ApiResult<T> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let parsed = serde_path_to_error::deserialize(&mut json);
    let parsed = parsed.map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        if inner.is_syntax() || inner.is_eof() {
            return ApiError::body(format!("the body is not JSON: {inner}")).coded("invalid_json");
        }
        misread(&path, &inner.to_string())
    })?;
    json.end().map_err(|_| {
        ApiError::body("something follows the JSON of the body").coded("invalid_json")
    })?;
    Ok(parsed)
}

/// Reads a body as the endpoint at `path` does and answers nothing: for whoever wants to know whether it would be refused, and for
/// fuzzing. Vectors are taken to have 32 values.
///
/// # Errors
/// The refusal, as JSON; of a path that takes no conversation, text or tokens too.
pub fn read_body(path: &str, body: &[u8]) -> Result<(), String> {
    let read = match path {
        "/v1/chat/completions" => parse::<chat::Body>(body).and_then(|mut body| {
            body.common()?;
            body.own().map(drop)
        }),
        "/v1/completions" => parse::<completions::Body>(body).and_then(|mut body| {
            body.common()?;
            body.own().map(drop)
        }),
        "/v1/responses" => parse::<responses::Body>(body).and_then(|body| body.check().map(drop)),
        "/v1/embeddings" => {
            parse::<embeddings::Body>(body).and_then(|mut body| body.inputs(32).map(drop))
        }
        _ => Err(ApiError::body("this path takes no such body")),
    };
    read.map_err(|error| error.json().to_string())
}

/// Reads a part of a body that stands at `at`, as [`parse`] reads the whole.
pub(crate) fn part<T: DeserializeOwned>(value: Value, at: &str) -> ApiResult<T> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = match error.path().to_string() {
            path if path == "." => at.to_owned(),
            path => format!("{at}.{path}"),
        };
        misread(&path, &error.into_inner().to_string())
    })
}

/// What serde says of the value at `path`.
fn misread(path: &str, said: &str) -> ApiError {
    // serde names a field between backticks where it is unknown, missing or there twice.
    let named = ["unknown field `", "missing field `", "duplicate field `"];
    let named = named.iter().find_map(|start| said.strip_prefix(start));
    let named = named.and_then(|rest| rest.split('`').next());
    let outer = (path != ".").then_some(path);
    let param = match (outer, named) {
        (Some(outer), Some(named)) if outer != named && !outer.ends_with(&format!(".{named}")) => {
            format!("{outer}.{named}")
        }
        (Some(outer), _) => outer.to_owned(),
        (None, Some(named)) => named.to_owned(),
        (None, None) => {
            return ApiError::body(format!("the body is not of the right form: {said}"));
        }
    };
    let (code, said) = match said.starts_with("unknown field") {
        true => (
            "unsupported_parameter",
            format!(
                "`{param}` is not supported here; leave it out (docs/serve.md lists the fields)"
            ),
        ),
        false => ("invalid_value", format!("`{param}`: {said}")),
    };
    ApiError::field(param, said).coded(code)
}

/// Declares a body: its own fields and those that both ways to ask for text share.
macro_rules! body {
    ($(#[$about:meta])* $name:ident as $schema:ident { $($(#[$say:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$about])*
        #[derive(Debug, serde::Deserialize, utoipa::ToSchema)]
        #[schema(as = $schema)]
        #[serde(deny_unknown_fields)]
        pub(crate) struct $name {
            $($(#[$say])* pub $field: $kind,)*
            pub model: String,
            pub temperature: Option<f32>,
            pub top_p: Option<f32>,
            pub top_k: Option<i64>,
            pub min_p: Option<f32>,
            pub presence_penalty: Option<f32>,
            pub frequency_penalty: Option<f32>,
            pub repetition_penalty: Option<f32>,
            pub logit_bias: Option<std::collections::BTreeMap<String, f32>>,
            pub seed: Option<i64>,
            pub n: Option<usize>,
            pub stop: Option<serde_json::Value>,
            pub ignore_eos: Option<bool>,
            pub stream: Option<bool>,
            pub stream_options: Option<$crate::wire::StreamOptions>,
            pub structured_outputs: Option<$crate::wire::Structured>,
            pub response_format: Option<serde_json::Value>,
            // What follows changes no answer.
            user: Option<String>,
            metadata: Option<std::collections::BTreeMap<String, String>>,
            store: Option<bool>,
            service_tier: Option<String>,
            safety_identifier: Option<String>,
            prompt_cache_key: Option<String>,
        }

        impl $name {
            /// The fields that both bodies have, taken out and checked.
            pub fn common(&mut self) -> $crate::error::ApiResult<$crate::wire::Common> {
                let format = self.response_format.take();
                let format = format.map(|format| $crate::wire::schema::response_format(&format));
                let format = format.transpose()?.flatten();
                $crate::wire::Raw {
                    model: std::mem::take(&mut self.model),
                    temperature: self.temperature,
                    top_p: self.top_p,
                    top_k: self.top_k,
                    min_p: self.min_p,
                    presence_penalty: self.presence_penalty,
                    frequency_penalty: self.frequency_penalty,
                    repetition_penalty: self.repetition_penalty,
                    logit_bias: self.logit_bias.take(),
                    seed: self.seed,
                    n: self.n,
                    stop: self.stop.take(),
                    ignore_eos: self.ignore_eos,
                    stream: self.stream,
                    stream_options: self.stream_options.take(),
                    structured: self.structured_outputs.take(),
                    format: format.map(|constraint| (constraint, "response_format")),
                    labels: [
                        ("user", self.user.take()),
                        ("safety_identifier", self.safety_identifier.take()),
                        ("prompt_cache_key", self.prompt_cache_key.take()),
                    ],
                    metadata: self.metadata.take(),
                    store: self.store,
                    service_tier: self.service_tier.take(),
                }
                .check()
            }
        }
    };
}
pub(crate) use body;

/// How a stream tells more than text.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamOptions {
    include_usage: Option<bool>,
    include_obfuscation: Option<bool>,
}

/// vLLM's way to ask for a form of the answer.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = StructuredOutputs)]
#[serde(deny_unknown_fields)]
pub(crate) struct Structured {
    json: Option<Value>,
    regex: Option<String>,
    choice: Option<Vec<String>>,
    grammar: Option<String>,
    json_object: Option<bool>,
}

/// The shared fields as they came.
#[derive(Default)]
pub(crate) struct Raw {
    pub model: String,
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<i64>,
    pub min_p: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub logit_bias: Option<BTreeMap<String, f32>>,
    pub seed: Option<i64>,
    pub n: Option<usize>,
    pub stop: Option<Value>,
    pub ignore_eos: Option<bool>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub structured: Option<Structured>,
    /// The form of the answer, and the field that gave it.
    pub format: Option<(Constraint, &'static str)>,
    pub labels: [(&'static str, Option<String>); 3],
    pub metadata: Option<BTreeMap<String, String>>,
    pub store: Option<bool>,
    pub service_tier: Option<String>,
}

/// The shared fields, checked.
#[derive(Debug)]
pub(crate) struct Common {
    pub model: String,
    pub sampling: Sampling,
    pub logit_bias: Vec<(u32, f32)>,
    /// Whether a seed was given; without one each request has its own.
    pub seeded: bool,
    /// Answers to each prompt.
    pub answers: usize,
    pub stops: Vec<String>,
    pub ignore_eos: bool,
    pub stream: bool,
    pub include_usage: bool,
    /// What the answer must be, and the field that says so.
    pub constraint: Option<(Constraint, &'static str)>,
}

impl Raw {
    pub fn check(mut self) -> ApiResult<Common> {
        self.labels()?;
        let (constraint, stops) = (self.constraint()?, stops(self.stop.as_ref())?);
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(1.0),
            top_k: match self.top_k {
                // vLLM's word for all of them.
                None | Some(0 | -1) => None,
                Some(k) => Some(usize::try_from(k).map_err(|_| {
                    ApiError::field(
                        "top_k",
                        format!("top_k is {k}; it is 1 or more, or 0 for all"),
                    )
                })?),
            },
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(0.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            top_logprobs: 0,
            seed: self.seed.unwrap_or(0).cast_unsigned(),
        };
        sampling
            .check()
            .map_err(|error| ApiError::of_engine(&error, "temperature"))?;
        if sampling.temperature > 2.0 {
            let said = format!("temperature is {}; it is from 0 to 2", sampling.temperature);
            return Err(ApiError::field("temperature", said));
        }
        let stream = self.stream.unwrap_or(false);
        let options = self.stream_options;
        if options.is_some() && !stream {
            let said =
                "stream_options says how a stream goes; add \"stream\": true or leave it out";
            return Err(ApiError::field("stream_options", said));
        }
        let asked = |option: fn(&StreamOptions) -> Option<bool>| {
            options.as_ref().and_then(option).unwrap_or(false)
        };
        if asked(|options| options.include_obfuscation) {
            let said =
                "padding of streams is not supported; leave include_obfuscation out or say false";
            return Err(ApiError::field("stream_options.include_obfuscation", said));
        }
        let answers = self.n.unwrap_or(1);
        if answers == 0 {
            return Err(ApiError::field("n", "n is 0, but it must be at least 1"));
        }
        Ok(Common {
            include_usage: asked(|options| options.include_usage),
            model: self.model,
            sampling,
            logit_bias: biases(self.logit_bias)?,
            seeded: self.seed.is_some(),
            answers,
            stops,
            ignore_eos: self.ignore_eos.unwrap_or(false),
            stream,
            constraint,
        })
    }

    /// The fields that change no answer: they may be there, and are bounded.
    fn labels(&self) -> ApiResult<()> {
        for (name, text) in &self.labels {
            label(name, text.as_deref())?;
        }
        if let Some(metadata) = &self.metadata {
            let mut texts = metadata.iter().flat_map(|(key, value)| [key, value]);
            if metadata.len() > MOST_METADATA || texts.any(|text| text.len() > LONGEST_LABEL) {
                let said = format!(
                    "metadata has at most {MOST_METADATA} pairs of texts of {LONGEST_LABEL} bytes"
                );
                return Err(ApiError::field("metadata", said));
            }
        }
        if self.store == Some(true) {
            let said = "nothing is stored here; leave `store` out or say false";
            return Err(ApiError::field("store", said));
        }
        match self.service_tier.as_deref() {
            None | Some("auto" | "default") => Ok(()),
            Some(_) => {
                let said = "there is one tier here; leave service_tier out or say \"auto\"";
                Err(ApiError::field("service_tier", said))
            }
        }
    }

    fn constraint(&mut self) -> ApiResult<Option<(Constraint, &'static str)>> {
        let format = self.format.take();
        let structured = match &self.structured {
            None => None,
            Some(structured) => Some((structured.constraint()?, "structured_outputs")),
        };
        match (format, structured) {
            (Some((_, field)), Some(_)) => Err(ApiError::field(
                "structured_outputs",
                format!("the answer has one form; give {field} or structured_outputs, not both"),
            )),
            (format, structured) => Ok(format.or(structured)),
        }
    }
}

/// A text that changes no answer: it may be there, and is bounded.
fn label(name: &'static str, text: Option<&str>) -> ApiResult<()> {
    match text {
        Some(text) if text.len() > LONGEST_LABEL => Err(ApiError::field(
            name,
            format!("`{name}` has more than {LONGEST_LABEL} bytes"),
        )),
        _ => Ok(()),
    }
}

impl Structured {
    fn constraint(&self) -> ApiResult<Constraint> {
        let json = self.json.as_ref().map(schema::constraint).transpose()?;
        let given = [
            json,
            self.regex.clone().map(Constraint::Regex),
            self.choice.clone().map(Constraint::Choice),
            self.grammar.clone().map(Constraint::Grammar),
            (self.json_object == Some(true)).then_some(Constraint::JsonObject),
        ];
        let mut given = given.into_iter().flatten();
        match (given.next(), given.next()) {
            (Some(constraint), None) => Ok(constraint),
            _ => Err(ApiError::field(
                "structured_outputs",
                "the answer has one form: give exactly one of json, json_object, regex, choice and grammar",
            )),
        }
    }
}

/// A stop string or a list of them.
fn stops(value: Option<&Value>) -> ApiResult<Vec<String>> {
    let wrong = || {
        ApiError::field(
            "stop",
            format!(
                "stop must be a text or a list of at most {MOST_STOPS} texts, each of 1 to {LONGEST_STOP} bytes"
            ),
        )
    };
    let stops = match value {
        None => return Ok(Vec::new()),
        Some(Value::String(stop)) => vec![stop.clone()],
        Some(Value::Array(stops)) => {
            let texts = stops.iter().map(|stop| stop.as_str().map(str::to_owned));
            texts.collect::<Option<Vec<_>>>().ok_or_else(wrong)?
        }
        Some(_) => return Err(wrong()),
    };
    let fits = |stop: &String| (1..=LONGEST_STOP).contains(&stop.len());
    match stops.len() <= MOST_STOPS && stops.iter().all(fits) {
        true => Ok(stops),
        false => Err(wrong()),
    }
}

/// Token ids, as texts, and what is added to their logits.
fn biases(map: Option<BTreeMap<String, f32>>) -> ApiResult<Vec<(u32, f32)>> {
    let map = map.unwrap_or_default();
    if map.len() > MOST_BIASES {
        let said = format!(
            "logit_bias names {} tokens; {MOST_BIASES} are the most",
            map.len()
        );
        return Err(ApiError::field("logit_bias", said));
    }
    let bias = |(token, bias): (String, f32)| match token.parse() {
        Ok(token) => Ok((token, bias)),
        Err(_) => Err(ApiError::field(
            "logit_bias",
            "logit_bias must map ids of tokens, written as texts (\"42\"), to numbers",
        )),
    };
    map.into_iter().map(bias).collect()
}

impl Common {
    /// A request of the engine's with these settings, but for its prompt, its length and who asks.
    pub fn request(&self) -> Request {
        Request {
            sampling: self.sampling,
            logit_bias: self.logit_bias.clone(),
            ..Request::default()
        }
    }
}

/// A limit on tokens that must be 1 at least.
pub(crate) fn at_least_one(name: &'static str, tokens: Option<usize>) -> ApiResult<Option<usize>> {
    match tokens {
        Some(0) => Err(ApiError::field(
            name,
            format!("{name} is 0, but it must be at least 1"),
        )),
        tokens => Ok(tokens),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use russet_kernels::random;
    use serde_json::json;

    const PATHS: [&str; 4] = [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
    ];

    fn read(body: &[u8]) -> bool {
        let read = PATHS.map(|path| read_body(path, body).is_ok());
        read.contains(&true)
    }

    #[test]
    fn damaged_bodies_are_refused_and_never_panic() {
        let tool = json!({"type": "function", "function": {"name": "a", "parameters": {"type": "object"}}});
        let call =
            json!({"id": "1", "type": "function", "function": {"name": "a", "arguments": "{}"}});
        let chat = json!({
            "model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "é"}]},
            {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "1", "content": "x"}],
            "tools": [tool], "tool_choice": {"type": "function", "function": {"name": "a"}}, "stop": ["a", "b"], "n": 2, "stream": true,
            "stream_options": {"include_usage": true}, "logit_bias": {"5": -1.5}, "seed": -3, "temperature": 0.5,
        });
        let schema = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}});
        let completion = json!({
            "model": "m", "prompt": [[1, 2], [3]], "echo": true, "logprobs": 2, "max_tokens": 0, "response_format": schema,
            "metadata": {"a": "b"}, "store": false, "top_k": -1,
        });
        let embedding = json!({"model": "m", "input": ["a", [1, 2]], "encoding_format": "base64", "dimensions": 32, "user": "u"});
        let tool = json!({"type": "function", "name": "a", "parameters": {"type": "object"}, "strict": true});
        let said = json!([{"type": "output_text", "text": "é", "annotations": [], "logprobs": []}]);
        let response = json!({
            "model": "m", "instructions": "i", "max_output_tokens": 5, "tools": [tool], "tool_choice": {"type": "function", "name": "a"},
            "text": {"format": {"type": "text"}}, "stream": true, "metadata": {"a": "b"}, "input": [
                {"role": "user", "content": "a"}, {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "é"}]},
                {"type": "message", "id": "1", "status": "completed", "role": "assistant", "content": said},
                {"type": "function_call", "call_id": "1", "name": "a", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": "x"},
            ],
        });
        let mut accepted = 0;
        for (stream, body) in [chat, completion, embedding, response]
            .map(|body| body.to_string())
            .iter()
            .enumerate()
        {
            assert!(read(body.as_bytes()), "{body}");
            let mut count = 0;
            let mut below = |bound: usize| {
                count += 1;
                random::below(stream as u64, 1, count, bound as u64) as usize
            };
            for _ in 0..10_000 {
                let mut bytes = body.clone().into_bytes();
                for _ in 0..1 + below(4) {
                    if bytes.is_empty() {
                        break;
                    }
                    let at = below(bytes.len());
                    match below(5) {
                        0 => bytes[at] = below(256) as u8,
                        1 => drop(bytes.remove(at)),
                        2 => bytes.insert(at, b"{}[]\",:0-e\\"[below(11)]),
                        3 => bytes.truncate(at + 1),
                        _ => {
                            let piece = bytes[at..(at + 8).min(bytes.len())].to_vec();
                            let to = below(bytes.len());
                            bytes.splice(to..to, piece);
                        }
                    }
                }
                accepted += usize::from(read(&bytes));
            }
        }
        // A changed letter within a text is still a body.
        assert!(accepted > 100, "{accepted}");
    }
}
