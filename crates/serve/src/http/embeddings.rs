//! `/v1/embeddings`: the mean of the final hidden states of an input's tokens, of length 1.
//!
//! Inputs are prompts that ask for no token, so they run in the steps of everything else. They are handed in [`AT_ONCE`] at a
//! time: of a request of thousands no more than that stands before another's.

use std::time::Instant;

use axum::extract::{Extension, Request, State as From};
use axum::http::StatusCode;
use axum::response::Response;
use russet_engine::Generation;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Shared, body, json as reply};
use crate::answer::finished;
use crate::error::{ApiError, ApiResult};
use crate::keys::Caller;
use crate::metrics::{Cut, Metrics};
use crate::wire::completions::Prompt;
use crate::wire::embeddings::{Body, Encoding};
use crate::wire::parse;
use crate::worker::Told;

/// Inputs of one request that run or wait to run.
const AT_ONCE: usize = 32;

/// `/v1/embeddings`.
#[derive(Serialize, ToSchema)]
#[schema(as = EmbeddingList)]
pub(super) struct List {
    object: &'static str,
    data: Vec<Embedding>,
    model: String,
    usage: Usage,
}

#[derive(Serialize, ToSchema)]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

/// Numbers, or base64 of little-endian f32.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(Serialize, ToSchema)]
#[schema(as = EmbeddingUsage)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// Embeds texts.
pub(super) async fn embeddings(
    From(state): From<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> ApiResult<Response> {
    let begun = Instant::now();
    let bytes = body(&state, request).await?;
    let mut body: Body = parse(&bytes)?;
    drop(bytes);
    let inputs = body.inputs(state.worker.width())?;
    let adapters = state.registry.stack(&body.model)?;
    let text = state.text.clone();
    let encode = move |input| match input {
        Prompt::Tokens(tokens) => Ok(tokens),
        Prompt::Text(input) => text
            .encode_prompt(&input)
            .map_err(|error| ApiError::field("input", error.to_string())),
    };
    let encoded = move || {
        inputs
            .into_iter()
            .map(encode)
            .collect::<ApiResult<Vec<_>>>()
    };
    let encoded = state.blocking(encoded).await??;
    let tokens = encoded.iter().map(Vec::len).sum();
    let at_once = AT_ONCE.min(state.limits.answers).max(1);
    let (mut encoded, mut vectors) = (encoded.into_iter(), Vec::new());
    loop {
        let some = encoded.by_ref().take(at_once);
        let some = some.map(|prompt| russet_engine::Request {
            prompt,
            max_tokens: 0,
            embedding: true,
            adapters: adapters.clone(),
            tenant: caller.name.clone(),
            deadline: Some(begun + state.limits.deadline),
            ..russet_engine::Request::default()
        });
        let some: Vec<_> = some.collect();
        if some.is_empty() {
            break;
        }
        vectors.extend(embed(&state, &caller, some, &body.model).await?);
    }
    state.metrics.whole(begun.elapsed());
    let encoding = body.encoding_format.unwrap_or_default();
    let data = vectors.into_iter().enumerate().map(|(index, vector)| {
        let vector = unit(&vector);
        Embedding {
            object: "embedding",
            index,
            embedding: match encoding {
                Encoding::Float => Vector::Float(vector),
                Encoding::Base64 => Vector::Base64(base64(&vector)),
            },
        }
    });
    let list = List {
        object: "list",
        data: data.collect(),
        model: body.model,
        usage: Usage {
            prompt_tokens: tokens,
            total_tokens: tokens,
        },
    };
    Ok(reply(StatusCode::OK, &list))
}

/// The mean hidden states `[D]` of each request's prompt.
async fn embed(
    state: &Shared,
    caller: &Caller,
    requests: Vec<russet_engine::Request>,
    model: &str,
) -> ApiResult<Vec<Vec<f32>>> {
    let mut vectors = vec![Vec::new(); requests.len()];
    let mut ticket = state.submit(caller, requests, 1, model, "input").await?;
    let mut open = Open {
        inputs: vectors.len(),
        metrics: &state.metrics,
    };
    while open.inputs > 0 {
        let told = ticket.next().await;
        let (place, generation) = ended(told).map_err(|(why, error)| {
            open.cut(why);
            error
        })?;
        state.metrics.answered("embedding", 0, 0);
        open.inputs -= 1;
        vectors[place] = generation.embedding;
    }
    Ok(vectors)
}

/// An input's place and what became of it. They ask for no token, so their end is all that is told of them.
fn ended(told: Option<Told>) -> Result<(usize, Generation), (Cut, ApiError)> {
    let failed = |error| Err((Cut::Error, error));
    match told {
        Some(Told::End(place, Some(Ok(generation)))) => {
            finished(&generation).map(|_| (place, generation))
        }
        Some(Told::End(_, Some(Err(error)))) => failed(ApiError::of_engine(&error, "input")),
        Some(Told::End(_, None) | Told::Token(..)) => failed(ApiError::bug()),
        None => failed(ApiError::unavailable("the engine is gone")),
    }
}

/// Inputs that are on their way. Those that are left when this goes were left by their client.
struct Open<'a> {
    inputs: usize,
    metrics: &'a Metrics,
}

impl Open<'_> {
    fn cut(&mut self, why: Cut) {
        for _ in 0..std::mem::take(&mut self.inputs) {
            self.metrics.cut(why, 0);
        }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.cut(Cut::dropped());
    }
}

/// The vector of length 1 in the same direction; of zeros, the same.
fn unit(vector: &[f32]) -> Vec<f32> {
    let squares = vector.iter().map(|&value| f64::from(value).powi(2));
    let length = squares.sum::<f64>().sqrt();
    let scaled = |&value: &f32| match length > 0.0 {
        true => (f64::from(value) / length) as f32,
        false => value,
    };
    vector.iter().map(scaled).collect()
}

/// Little-endian f32 in base64 (RFC 4648, padded).
fn base64(vector: &[f32]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = vector
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |n: usize| u32::from(three.get(n).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for letter in 0..4 {
            text.push(match letter <= three.len() {
                true => char::from(LETTERS[(bits >> (18 - 6 * letter)) as usize & 63]),
                false => '=',
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_everyone_else() {
        // Of Python's base64.b64encode(struct.pack("<3f", …)).
        assert_eq!(base64(&[]), "");
        assert_eq!(base64(&[1.0]), "AACAPw==");
        assert_eq!(base64(&[1.0, -2.5]), "AACAPwAAIMA=");
        assert_eq!(base64(&[1.0, -2.5, 3.0e-5]), "AACAPwAAIMCCqPs3");
    }

    #[test]
    fn a_vector_has_length_1() {
        assert_eq!(unit(&[3.0, -4.0]), [0.6, -0.8]);
        assert_eq!(unit(&[0.0, 0.0]), [0.0, 0.0]);
        assert_eq!(unit(&[f32::MAX, 0.0]), [1.0, 0.0]);
    }
}
