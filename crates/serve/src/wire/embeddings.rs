//! The body of `/v1/embeddings`.

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::completions::{Prompt, prompts};
use super::label;
use crate::error::{ApiError, ApiResult};

/// The most inputs of one request, as at OpenAI.
const MOST_INPUTS: usize = 2048;

/// `/v1/embeddings`.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = EmbeddingRequest)]
#[serde(deny_unknown_fields)]
pub(crate) struct Body {
    pub model: String,
    input: Value,
    pub encoding_format: Option<Encoding>,
    dimensions: Option<usize>,
    // Changes no answer.
    user: Option<String>,
}

/// How a vector is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Encoding {
    /// A list of numbers.
    #[default]
    Float,
    /// Its values as little-endian f32, in base64.
    Base64,
}

impl Body {
    /// What is to be embedded by a model whose vectors have `width` values.
    pub fn inputs(&mut self, width: usize) -> ApiResult<Vec<Prompt>> {
        label("user", self.user.as_deref())?;
        if self.dimensions.is_some_and(|asked| asked != width) {
            let said = format!(
                "this model's vectors have {width} values, and it was not trained so that the first of them would stand for \
                 all; leave dimensions out"
            );
            return Err(ApiError::field("dimensions", said));
        }
        let inputs = prompts("input", MOST_INPUTS, std::mem::take(&mut self.input))?;
        let empty = |input: &Prompt| matches!(input, Prompt::Text(text) if text.is_empty());
        match inputs.iter().position(empty) {
            None => Ok(inputs),
            Some(place) => Err(ApiError::field(
                "input",
                format!("text {place} of the input (counted from 0) is empty; leave it out"),
            )),
        }
    }
}
