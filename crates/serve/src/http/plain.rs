//! The endpoints that ask the engine for nothing: models, adapters, tokens, health, numbers, the page.

use axum::extract::{Extension, Path, Request, State as From};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use russet_tokenizer::Conversation;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{Shared, body, json as reply};
use crate::error::{ApiError, ApiResult};
use crate::keys::Caller;
use crate::registry::Known;
use crate::wire::{chat, parse};
use std::sync::atomic::Ordering;

/// The chat page: one file, nothing loaded from elsewhere.
const PAGE: &str = include_str!("page.html");
/// What the page may do: its own script and style, and asking this server.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; \
                           img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) async fn page() -> Response {
    of_one_file(PAGE)
}

/// A page that is one file, and may do no more than that.
pub(crate) fn of_one_file(page: &'static str) -> Response {
    let mut response = Html(page).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(PAGE_POLICY),
    );
    headers.insert(
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    );
    response
}

/// Whether there is an engine.
pub(super) async fn health(From(state): From<Shared>) -> ApiResult<Response> {
    match state.worker.is_alive() {
        true => Ok(reply(StatusCode::OK, &json!({"status": "ok"}))),
        false => Err(ApiError::unavailable("the engine is gone")),
    }
}

/// Whether requests are welcome.
pub(super) async fn ready(From(state): From<Shared>) -> ApiResult<Response> {
    if state.draining.load(Ordering::SeqCst) {
        return Err(ApiError::unavailable("the server is going down"));
    }
    if !state.worker.is_alive() {
        return Err(ApiError::unavailable("the engine is gone"));
    }
    Ok(reply(StatusCode::OK, &json!({"status": "ready"})))
}

pub(super) async fn metrics(From(state): From<Shared>) -> Response {
    let worker = &state.worker;
    let text = state
        .metrics
        .text(&worker.stats(), &state.registry.stats(), worker.restarts());
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    (
        [(header::CONTENT_TYPE, HeaderValue::from_static(kind))],
        text,
    )
        .into_response()
}

pub(super) async fn models(From(state): From<Shared>) -> Response {
    let adapters = state.registry.list().into_iter();
    let adapters = adapters.map(|(name, known)| adapter(&state, &name, &known));
    let data: Vec<Value> = std::iter::once(base(&state)).chain(adapters).collect();
    reply(StatusCode::OK, &json!({"object": "list", "data": data}))
}

pub(super) async fn one_model(
    From(state): From<Shared>,
    Path(name): Path<String>,
) -> ApiResult<Response> {
    if name == state.registry.base() {
        return Ok(reply(StatusCode::OK, &base(&state)));
    }
    let known = state
        .registry
        .list()
        .into_iter()
        .find(|(other, _)| *other == name);
    let (name, known) = known.ok_or_else(|| ApiError::no_model(&name))?;
    Ok(reply(StatusCode::OK, &adapter(&state, &name, &known)))
}

/// vLLM's `/tokenizer_info`: what `tokenizer_config.json` says.
pub(super) async fn tokenizer_info(From(state): From<Shared>) -> Response {
    let tokenizer = &state.text.tokenizer;
    let mut info = tokenizer.config();
    info["model_max_length"] = state.worker.context().into();
    if let Some(template) = tokenizer.chat_template() {
        info["chat_template"] = template.source().into();
    }
    reply(StatusCode::OK, &info)
}

fn base(state: &Shared) -> Value {
    let name = state.registry.base();
    json!({
        "id": name,
        "object": "model",
        "created": state.created,
        "owned_by": "russet",
        "root": name,
        "parent": null,
        "max_model_len": state.worker.context(),
    })
}

fn adapter(state: &Shared, name: &str, known: &Known) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": known.created,
        "owned_by": "russet",
        "root": known.root,
        "parent": state.registry.base(),
        "max_model_len": state.worker.context(),
    })
}

/// vLLM's `/tokenize`: a text, or a conversation.
#[derive(Deserialize, ToSchema)]
#[schema(as = TokenizeRequest)]
#[serde(deny_unknown_fields)]
pub(super) struct Tokenize {
    model: Option<String>,
    prompt: Option<String>,
    add_special_tokens: Option<bool>,
    messages: Option<Vec<chat::Message>>,
    add_generation_prompt: Option<bool>,
    return_token_strs: Option<bool>,
}

pub(super) async fn tokenize(From(state): From<Shared>, request: Request) -> ApiResult<Response> {
    let asked: Tokenize = parse(&body(&state, request).await?)?;
    known(&state, asked.model.as_deref())?;
    let tokens = match (asked.prompt, asked.messages) {
        (Some(prompt), None) => {
            if asked.add_generation_prompt.is_some() {
                let said = "add_generation_prompt is for messages; leave it out beside a prompt";
                return Err(ApiError::field("add_generation_prompt", said));
            }
            let (text, special) = (state.text.clone(), asked.add_special_tokens.unwrap_or(true));
            let encoded = state
                .blocking(move || text.tokenizer.encode(&prompt, special))
                .await?;
            encoded.map_err(|error| ApiError::field("prompt", error.to_string()))?
        }
        (None, Some(messages)) => {
            if asked.add_special_tokens.is_some() {
                let said = "a template brings its own special tokens; leave add_special_tokens out beside messages";
                return Err(ApiError::field("add_special_tokens", said));
            }
            let messages = messages.into_iter().enumerate();
            let messages = messages.map(|(place, message)| message.check(place));
            let conversation = Conversation {
                messages: messages.collect::<ApiResult<_>>()?,
                tools: Vec::new(),
            };
            let prompt = asked.add_generation_prompt.unwrap_or(true);
            super::conversation::encode(&state, conversation, prompt, "messages").await?
        }
        _ => {
            return Err(ApiError::field(
                "prompt",
                "give a prompt or messages, one of them",
            ));
        }
    };
    let strings = asked.return_token_strs.unwrap_or(false).then(|| {
        let shown = tokens.iter().map(|&id| state.text.shown(id));
        shown.collect::<Vec<_>>()
    });
    let object = json!({
        "count": tokens.len(),
        "max_model_len": state.worker.context(),
        "tokens": tokens,
        "token_strs": strings,
    });
    Ok(reply(StatusCode::OK, &object))
}

/// vLLM's `/detokenize`.
#[derive(Deserialize, ToSchema)]
#[schema(as = DetokenizeRequest)]
#[serde(deny_unknown_fields)]
pub(super) struct Detokenize {
    model: Option<String>,
    tokens: Vec<u32>,
}

pub(super) async fn detokenize(From(state): From<Shared>, request: Request) -> ApiResult<Response> {
    let asked: Detokenize = parse(&body(&state, request).await?)?;
    known(&state, asked.model.as_deref())?;
    let vocab = state.text.tokenizer.vocab_size();
    if let Some(token) = asked.tokens.iter().find(|&&token| token as usize >= vocab) {
        let said = format!("there is no token {token}; the tokenizer has {vocab}, counted from 0");
        return Err(ApiError::field("tokens", said));
    }
    let text = state.text.clone();
    let prompt = state
        .blocking(move || text.tokenizer.decode(&asked.tokens, false))
        .await?;
    Ok(reply(StatusCode::OK, &json!({"prompt": prompt})))
}

fn known(state: &Shared, model: Option<&str>) -> ApiResult<()> {
    model.map_or(Ok(()), |model| state.registry.stack(model).map(drop))
}

/// vLLM's body to load an adapter.
#[derive(Deserialize, ToSchema)]
#[schema(as = LoadAdapterRequest)]
#[serde(deny_unknown_fields)]
pub(super) struct Load {
    lora_name: String,
    lora_path: String,
    load_inplace: Option<bool>,
}

pub(super) async fn load_adapter(
    From(state): From<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> ApiResult<Response> {
    may_change(&caller)?;
    let asked: Load = parse(&body(&state, request).await?)?;
    let (registry, name) = (state.registry.clone(), asked.lora_name.clone());
    let replace = asked.load_inplace.unwrap_or(false);
    let load = move || registry.load_below(&asked.lora_name, &asked.lora_path, replace);
    state.blocking(load).await??;
    Ok(format!("Success: LoRA adapter '{name}' added successfully.").into_response())
}

/// vLLM's body to unload an adapter.
#[derive(Deserialize, ToSchema)]
#[schema(as = UnloadAdapterRequest)]
#[serde(deny_unknown_fields)]
pub(super) struct Unload {
    lora_name: String,
}

pub(super) async fn unload_adapter(
    From(state): From<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> ApiResult<Response> {
    may_change(&caller)?;
    let asked: Unload = parse(&body(&state, request).await?)?;
    state.registry.unload(&asked.lora_name)?;
    let name = asked.lora_name;
    Ok(format!("Success: LoRA adapter '{name}' removed successfully.").into_response())
}

fn may_change(caller: &Caller) -> ApiResult<()> {
    match caller.adapters {
        true => Ok(()),
        false => Err(ApiError::refused(
            StatusCode::FORBIDDEN,
            "key_without_adapters",
            "this key may not load or unload adapters",
        )),
    }
}
