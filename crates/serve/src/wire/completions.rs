//! The body of `/v1/completions`.

use serde_json::Value;

use super::{MOST_TOP, body};
use crate::error::{ApiError, ApiResult};

/// The most prompts of one request.
const MOST_PROMPTS: usize = 256;
/// Tokens of an answer where nothing else is said, as at OpenAI.
const MAX_TOKENS: usize = 16;

body! {
    /// `/v1/completions`.
    Body as CompletionRequest {
        prompt: Option<Value>,
        max_tokens: Option<usize>,
        echo: Option<bool>,
        logprobs: Option<usize>,
        best_of: Option<usize>,
        suffix: Option<String>,
    }
}

/// A text to continue, or its tokens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

impl Body {
    /// What the fields say that `/v1/completions` has alone.
    pub fn own(&mut self) -> ApiResult<Own> {
        if self
            .suffix
            .as_ref()
            .is_some_and(|suffix| !suffix.is_empty())
        {
            return Err(ApiError::field(
                "suffix",
                "text cannot be put in between here; leave `suffix` out",
            ));
        }
        if self.best_of.is_some_and(|best| best != self.n.unwrap_or(1)) {
            let said = "best_of is not supported beyond n; leave it out and ask for several answers with n";
            return Err(ApiError::field("best_of", said));
        }
        if self.logprobs.is_some_and(|count| count > MOST_TOP) {
            let said = format!("logprobs is from 0 to {MOST_TOP}");
            return Err(ApiError::field("logprobs", said));
        }
        let echo = self.echo.unwrap_or(false);
        let max_tokens = self.max_tokens.unwrap_or(MAX_TOKENS);
        if max_tokens == 0 && !echo {
            let said = "max_tokens is 0, which asks for nothing; with \"echo\": true it asks for the prompt alone";
            return Err(ApiError::field("max_tokens", said));
        }
        Ok(Own {
            prompts: match self.prompt.take() {
                // As at OpenAI: the beginning of a document.
                None => vec![Prompt::Text(String::new())],
                Some(prompt) => prompts("prompt", MOST_PROMPTS, prompt)?,
            },
            max_tokens,
            echo,
            logprobs: self.logprobs,
        })
    }
}

/// The fields of `/v1/completions` alone.
pub(crate) struct Own {
    pub prompts: Vec<Prompt>,
    /// 0: the prompt alone.
    pub max_tokens: usize,
    pub echo: bool,
    pub logprobs: Option<usize>,
}

/// A text, a list of texts, tokens, or a list of lists of tokens.
pub(super) fn prompts(field: &'static str, most: usize, value: Value) -> ApiResult<Vec<Prompt>> {
    let wrong = || {
        let said = format!(
            "{field} must be a text, a list of 1 to {most} texts, a list of tokens, or a list of 1 to {most} lists of tokens"
        );
        ApiError::field(field, said)
    };
    let prompts = match value {
        Value::String(text) => vec![Prompt::Text(text)],
        Value::Array(values) => match values.first() {
            Some(Value::Number(_)) => vec![tokens(&values).ok_or_else(wrong)?],
            _ => {
                let prompt = |value| match value {
                    Value::String(text) => Some(Prompt::Text(text)),
                    Value::Array(values) => tokens(&values),
                    _ => None,
                };
                let prompts: Option<Vec<Prompt>> = values.into_iter().map(prompt).collect();
                prompts.ok_or_else(wrong)?
            }
        },
        _ => return Err(wrong()),
    };
    match (1..=most).contains(&prompts.len()) {
        true => Ok(prompts),
        false => Err(wrong()),
    }
}

fn tokens(values: &[Value]) -> Option<Prompt> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids: Option<Vec<u32>> = values.iter().map(id).collect();
    ids.filter(|ids| !ids.is_empty()).map(Prompt::Tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_prompt_is_a_text_tokens_or_a_list_of_either() {
        let text = |text: &str| Prompt::Text(text.to_owned());
        for (given, wanted) in [
            (json!("a"), vec![text("a")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([1, 2]), vec![Prompt::Tokens(vec![1, 2])]),
            (
                json!([[1], [2, 3]]),
                vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])],
            ),
        ] {
            assert_eq!(prompts("prompt", 2, given).unwrap(), wanted);
        }
        for wrong in [
            json!([]),
            json!(1),
            json!([1, "a"]),
            json!([[]]),
            json!([-1]),
            json!([1.5]),
            json!({}),
            json!([null]),
            json!(["a", "b", "c"]),
        ] {
            assert!(prompts("prompt", 2, wrong.clone()).is_err(), "{wrong}");
        }
    }
}
