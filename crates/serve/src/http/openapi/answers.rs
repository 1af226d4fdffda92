//! The forms of answers, for the description alone: handlers write them field by field as they come. `tests/openapi.rs` holds real
//! answers against these.
#![expect(dead_code, reason = "described and never made")]

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::ToSchema;

/// `/v1/chat/completions`, whole.
#[derive(ToSchema)]
pub(crate) struct ChatCompletion {
    id: String,
    /// `chat.completion`
    object: String,
    /// Seconds since 1970.
    created: u64,
    model: String,
    system_fingerprint: String,
    choices: Vec<ChatChoice>,
    usage: Usage,
}

#[derive(ToSchema)]
struct ChatChoice {
    index: u32,
    message: ChatMessage,
    #[schema(required = true)]
    logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`
    finish_reason: String,
}

#[derive(ToSchema)]
struct ChatMessage {
    /// `assistant`
    role: String,
    #[schema(required = true)]
    content: Option<String>,
    #[schema(required = true)]
    refusal: Option<String>,
    tool_calls: Option<Vec<ToolCall>>,
}

#[derive(ToSchema)]
struct ToolCall {
    /// Of a stream's pieces: which call they belong to.
    index: Option<u32>,
    /// A stream says it with the first piece.
    id: Option<String>,
    /// `function`
    r#type: Option<String>,
    function: CalledFunction,
}

#[derive(ToSchema)]
struct CalledFunction {
    name: Option<String>,
    /// JSON as a text; of a stream a piece of it.
    arguments: String,
}

#[derive(ToSchema)]
struct ChatLogprobs {
    content: Vec<ScoredToken>,
    #[schema(required = true)]
    refusal: Option<Value>,
}

#[derive(ToSchema)]
struct ScoredToken {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    top_logprobs: Vec<TokenScore>,
}

#[derive(ToSchema)]
struct TokenScore {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

#[derive(ToSchema)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: CachedTokens,
}

#[derive(ToSchema)]
struct CachedTokens {
    cached_tokens: u64,
}

/// An event of `/v1/chat/completions`; the last one is `[DONE]`.
#[derive(ToSchema)]
pub(crate) struct ChatCompletionChunk {
    id: String,
    /// `chat.completion.chunk`
    object: String,
    created: u64,
    model: String,
    system_fingerprint: String,
    /// Empty beside the usage.
    choices: Vec<ChunkChoice>,
    /// Where `stream_options.include_usage` asks for it: null but in the last chunk.
    usage: Option<Usage>,
}

#[derive(ToSchema)]
struct ChunkChoice {
    index: u32,
    delta: Delta,
    #[schema(required = true)]
    logprobs: Option<ChatLogprobs>,
    #[schema(required = true)]
    finish_reason: Option<String>,
}

#[derive(ToSchema)]
struct Delta {
    role: Option<String>,
    content: Option<String>,
    refusal: Option<String>,
    tool_calls: Option<Vec<ToolCall>>,
}

/// `/v1/completions`, whole or a chunk of it.
#[derive(ToSchema)]
pub(crate) struct Completion {
    id: String,
    /// `text_completion`
    object: String,
    created: u64,
    model: String,
    system_fingerprint: String,
    choices: Vec<CompletionChoice>,
    /// Of a chunk: where it is asked for.
    usage: Option<Usage>,
}

#[derive(ToSchema)]
struct CompletionChoice {
    index: u32,
    text: String,
    #[schema(required = true)]
    logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`; null until then.
    #[schema(required = true)]
    finish_reason: Option<String>,
}

#[derive(ToSchema)]
struct CompletionLogprobs {
    tokens: Vec<String>,
    /// The first token of a prompt has none.
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
    /// In characters.
    text_offset: Vec<u64>,
}

/// `/v1/responses`.
#[derive(ToSchema)]
pub(crate) struct Response {
    id: String,
    /// `response`
    object: String,
    created_at: u64,
    /// `in_progress`, `completed`, `incomplete` or `failed`
    status: String,
    background: bool,
    #[schema(required = true)]
    error: Option<ResponseError>,
    #[schema(required = true)]
    incomplete_details: Option<IncompleteDetails>,
    #[schema(required = true)]
    instructions: Option<String>,
    #[schema(required = true)]
    max_output_tokens: Option<u64>,
    metadata: BTreeMap<String, String>,
    model: String,
    output: Vec<OutputItem>,
    parallel_tool_calls: bool,
    #[schema(required = true)]
    previous_response_id: Option<String>,
    service_tier: String,
    store: bool,
    temperature: f32,
    text: Value,
    tool_choice: Value,
    tools: Vec<Value>,
    top_logprobs: u64,
    top_p: f32,
    truncation: String,
    #[schema(required = true)]
    usage: Option<ResponseUsage>,
    #[schema(required = true)]
    user: Option<String>,
}

#[derive(ToSchema)]
struct ResponseError {
    code: String,
    message: String,
}

#[derive(ToSchema)]
struct IncompleteDetails {
    /// `max_output_tokens`
    reason: String,
}

/// A message (`role`, `content`) or a call of a function (`call_id`, `name`, `arguments`).
#[derive(ToSchema)]
struct OutputItem {
    id: String,
    /// `message` or `function_call`
    r#type: String,
    status: String,
    role: Option<String>,
    content: Option<Vec<OutputText>>,
    call_id: Option<String>,
    name: Option<String>,
    arguments: Option<String>,
}

#[derive(ToSchema)]
struct OutputText {
    /// `output_text`
    r#type: String,
    text: String,
    annotations: Vec<Value>,
    logprobs: Vec<ScoredToken>,
}

#[derive(ToSchema)]
struct ResponseUsage {
    input_tokens: u64,
    input_tokens_details: CachedTokens,
    output_tokens: u64,
    output_tokens_details: ReasoningTokens,
    total_tokens: u64,
}

#[derive(ToSchema)]
struct ReasoningTokens {
    reasoning_tokens: u64,
}

/// An event of `/v1/responses`, and what goes with its `type` beside these.
#[derive(ToSchema)]
pub(crate) struct ResponseEvent {
    r#type: String,
    sequence_number: u64,
    response: Option<Response>,
    item: Option<OutputItem>,
    part: Option<OutputText>,
    item_id: Option<String>,
    output_index: Option<u64>,
    content_index: Option<u64>,
    delta: Option<String>,
    text: Option<String>,
    name: Option<String>,
    arguments: Option<String>,
    logprobs: Option<Vec<ScoredToken>>,
}

/// `/v1/models`.
#[derive(ToSchema)]
pub(crate) struct ModelList {
    /// `list`
    object: String,
    data: Vec<ModelCard>,
}

/// A model, or an adapter of it.
#[derive(ToSchema)]
pub(crate) struct ModelCard {
    id: String,
    /// `model`
    object: String,
    created: u64,
    owned_by: String,
    root: String,
    /// Of an adapter: the base.
    #[schema(required = true)]
    parent: Option<String>,
    max_model_len: u64,
}

/// `/tokenize`.
#[derive(ToSchema)]
pub(crate) struct Tokenized {
    count: u64,
    max_model_len: u64,
    tokens: Vec<u32>,
    #[schema(required = true)]
    token_strs: Option<Vec<String>>,
}

/// `/detokenize`.
#[derive(ToSchema)]
pub(crate) struct Detokenized {
    prompt: String,
}

/// `/health` and `/ready`.
#[derive(ToSchema)]
pub(crate) struct Status {
    /// `ok` or `ready`
    status: String,
}

/// An object of whatever fields.
#[derive(ToSchema)]
pub(crate) struct AnyObject(BTreeMap<String, Value>);
