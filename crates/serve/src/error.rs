//! Why a request is refused, in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

/// Seconds after which a client that found the queue full may ask again.
const RETRY_AFTER: u64 = 1;

/// A refusal that a client gets to read.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub status: StatusCode,
    kind: &'static str,
    message: String,
    pub param: Option<String>,
    code: Option<&'static str>,
    /// Seconds until it makes sense to ask again.
    retry_after: Option<u64>,
}

/// The body of a refusal.
#[derive(Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    error: ErrorObject,
}

#[derive(Serialize, ToSchema)]
struct ErrorObject {
    message: String,
    #[serde(rename = "type")]
    kind: &'static str,
    /// The field at fault.
    param: Option<String>,
    code: Option<&'static str>,
}

pub(crate) type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> ApiError {
        ApiError {
            status,
            kind,
            message: message.into(),
            param: None,
            code: None,
            retry_after: None,
        }
    }

    /// 400: the field `param` is at fault.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError {
            param: Some(param.into()),
            ..ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
        }
    }

    /// 400: the body as a whole is at fault.
    pub fn body(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// A request that another status than 400 says more of.
    pub fn refused(status: StatusCode, code: &'static str, message: impl Into<String>) -> ApiError {
        let kind = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        ApiError::new(status, kind, message).coded(code)
    }

    /// 404: no model of that name.
    pub fn no_model(name: &str) -> ApiError {
        let message =
            format!("the model `{name}` does not exist here; /v1/models lists those that do");
        ApiError {
            param: Some("model".to_owned()),
            ..ApiError::refused(StatusCode::NOT_FOUND, "model_not_found", message)
        }
    }

    /// 500: a bug; what it was about stays here.
    pub fn bug() -> ApiError {
        ApiError::refused(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal_error",
            "this request ran into a bug of the server; others go on",
        )
    }

    /// 503: not now.
    pub fn unavailable(message: &str) -> ApiError {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        ApiError {
            retry_after: Some(RETRY_AFTER),
            ..ApiError::refused(status, "unavailable", message)
        }
    }

    /// 504: the request's deadline.
    pub fn deadline() -> ApiError {
        ApiError::refused(
            StatusCode::GATEWAY_TIMEOUT,
            "deadline_exceeded",
            "the answer was not complete when the time that the server gives a request had passed; ask for fewer tokens",
        )
    }

    pub fn coded(mut self, code: &'static str) -> ApiError {
        self.code = Some(code);
        self
    }

    /// Names the field, where none is named yet.
    pub fn about(mut self, param: &str) -> ApiError {
        self.param.get_or_insert_with(|| param.to_owned());
        self
    }

    /// What the engine says of a request whose prompt stood in the field `prompt`.
    pub fn of_engine(error: &russet_engine::Error, prompt: &'static str) -> ApiError {
        use russet_engine::Error;
        let said = error.to_string();
        match error {
            Error::PromptTooLong { .. } | Error::NeverFits { .. } => {
                ApiError::field(prompt, said).coded("context_length_exceeded")
            }
            Error::EmptyPrompt => ApiError::field(prompt, said),
            Error::UnknownToken { place, .. } => {
                let param = match place.contains("logit_bias") {
                    true => "logit_bias",
                    false => prompt,
                };
                ApiError::field(param, said)
            }
            Error::Setting { setting, .. } => ApiError::field(*setting, said),
            Error::Guide { .. } => ApiError::field("response_format", said).coded("guide"),
            Error::QueueFull { .. } => ApiError {
                retry_after: Some(RETRY_AFTER),
                ..ApiError::refused(StatusCode::TOO_MANY_REQUESTS, "queue_full", said)
            },
            Error::UnknownAdapter { name, .. } => ApiError::no_model(name),
            Error::AdapterBudget { .. } => ApiError::unavailable(&said),
            Error::Request { problem, .. } => ApiError::of_engine(problem, prompt),
            Error::NotFinite => {
                ApiError::refused(StatusCode::INTERNAL_SERVER_ERROR, "not_finite", said)
            }
            // What remains speaks of files and machines, which are no client's business.
            _ => ApiError::bug(),
        }
    }

    /// The sentence.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The object as it goes over the wire.
    pub fn json(&self) -> Value {
        let error = ErrorObject {
            message: self.message.clone(),
            kind: self.kind,
            param: self.param.clone(),
            code: self.code,
        };
        serde_json::to_value(ErrorBody { error }).expect("keys are texts")
    }

    /// 429: the key has asked for as much as it may; it makes sense again after so many seconds.
    pub fn limited(message: impl Into<String>, seconds: u64) -> ApiError {
        ApiError {
            retry_after: Some(seconds),
            ..ApiError::refused(
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_exceeded",
                message,
            )
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = crate::http::json(self.status, &self.json());
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let bearer = HeaderValue::from_static("Bearer");
            headers.insert(header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}
