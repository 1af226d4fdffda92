//! Routes, and what stands before all of them: who asks, by which address, and what becomes of a panic.

mod chat;
mod completions;
mod conversation;
mod embeddings;
pub(crate) mod guard;
mod linger;
pub(crate) mod listen;
mod openapi;
pub(crate) mod plain;
mod responses;
mod stream;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use russet_engine::guide::{Constraint, Grammar};
use serde::Serialize;
use tokio::sync::Semaphore;

use crate::error::{ApiError, ApiResult};
use crate::keys::{Caller, Keys};
use crate::meter::Pass;
use crate::metrics::Metrics;
use crate::model::{Model, Text};
use crate::registry::{Registry, now};
use crate::wire::{self, Common};
use crate::worker::{MakeEngine, Refusal, Ticket, Worker};
use crate::{Limits, Settings};
use openapi::{Route, answers};

/// Templates, tokenizers and grammars that run at once; they take a processor each.
const AT_WORK: usize = 4;

/// What handlers share.
pub(crate) struct State {
    pub text: Arc<Text>,
    pub worker: Worker,
    pub registry: Arc<Registry>,
    pub metrics: Metrics,
    pub limits: Limits,
    pub fingerprint: String,
    pub created: u64,
    pub draining: AtomicBool,
    /// `/openapi.json`.
    pub description: String,
    /// Paths as metrics write them, and whether they are answered without a key.
    endpoints: Vec<(&'static str, bool)>,
    keys: Option<Keys>,
    /// Whether only this machine reaches the server: then only its names are good in `Host`.
    local: bool,
    at_work: Arc<Semaphore>,
    secret: [u8; 32],
    next: AtomicU64,
}

pub(crate) type Shared = Arc<State>;

impl State {
    pub fn new(settings: Settings, model: Model, make: MakeEngine) -> crate::Result<State> {
        let Settings {
            address,
            keys,
            adapters,
            adapter_dir,
            fingerprint,
            limits,
            ..
        } = settings;
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)
            .map_err(|error| crate::Error::Start(format!("no random numbers: {error}")))?;
        let registry = Arc::new(Registry::new(&model.name, adapter_dir.as_deref())?);
        let text = Text::new(model)?;
        let worker = Worker::start(make, registry.clone())?;
        for (name, folder) in &adapters {
            registry.load(name, folder)?;
        }
        let routes = routes();
        let manner = openapi::Manner {
            keys: keys.is_some(),
            local: address.ip().is_loopback(),
        };
        let description = openapi::document(&routes, manner);
        Ok(State {
            description: serde_json::to_string(&description).expect("keys are texts"),
            endpoints: routes
                .iter()
                .map(|route| (route.shown, route.open))
                .collect(),
            text,
            worker,
            registry,
            metrics: Metrics::default(),
            limits,
            fingerprint,
            created: now(),
            draining: AtomicBool::new(false),
            keys,
            local: address.ip().is_loopback(),
            at_work: Arc::new(Semaphore::new(AT_WORK)),
            secret,
            next: AtomicU64::new(0),
        })
    }

    /// Random numbers that nobody can tell in advance.
    fn random(&self) -> blake3::Hash {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        blake3::keyed_hash(&self.secret, &number.to_le_bytes())
    }

    /// A path as it may stand in a metric, and whether it is answered without a key.
    fn endpoint(&self, path: &str) -> (&'static str, bool) {
        let fits = |shown: &str| match shown.split_once('{') {
            Some((before, _)) => path
                .strip_prefix(before)
                .is_some_and(|name| !name.is_empty()),
            None => path == shown,
        };
        let mut known = self.endpoints.iter();
        let found = known.find(|(shown, _)| fits(shown));
        found.copied().unwrap_or(("other", false))
    }

    /// A name that nothing else has.
    pub fn id(&self, prefix: &str) -> String {
        format!("{prefix}{}", &self.random().to_hex()[..24])
    }

    pub fn seed(&self) -> u64 {
        let hash = self.random();
        u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("eight of 32 bytes"))
    }

    /// Runs what takes a processor for a while where it keeps nobody else waiting.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> ApiResult<T> {
        let permit = self.at_work.clone().acquire_owned().await;
        let work = move || {
            let _permit = permit;
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| {
            self.metrics.panicked();
            ApiError::bug()
        })
    }

    /// A constraint compiled.
    pub async fn grammar(
        &self,
        constraint: Option<(Constraint, &'static str)>,
    ) -> ApiResult<Option<Grammar>> {
        let Some((constraint, field)) = constraint else {
            return Ok(None);
        };
        let text = self.text.clone();
        let compiled = self
            .blocking(move || Grammar::compile(&text.vocabulary, &constraint))
            .await?;
        compiled
            .map(Some)
            .map_err(|error| ApiError::field(field, error.to_string()).coded("guide"))
    }

    /// Hands prompts to the engine. `prompt` is the field that they came in.
    pub async fn submit(
        &self,
        caller: &Caller,
        requests: Vec<russet_engine::Request>,
        answers: usize,
        model: &str,
        prompt: &'static str,
    ) -> ApiResult<Ticket> {
        let most = self.limits.answers;
        if requests.len().saturating_mul(answers) > most {
            let said = format!(
                "prompts times n are {}, but {most} answers are the most",
                requests.len().saturating_mul(answers)
            );
            let field = if answers > 1 { "n" } else { prompt };
            return Err(ApiError::field(field, said));
        }
        let tokens = requests.iter().map(|request| request.prompt.len()).sum();
        match self.worker.submit(requests, answers).await {
            Ok(ticket) => {
                self.metrics.taken(model, tokens);
                if let Some(meter) = &caller.meter {
                    meter.spend(tokens);
                }
                Ok(ticket.metered(caller.meter.clone()))
            }
            Err(Refusal::Engine(error)) => Err(ApiError::of_engine(&error, prompt)),
            // It panicked over this request, and there is another one; or there is none.
            Err(Refusal::Gone) if self.worker.is_alive() => Err(ApiError::bug()),
            Err(Refusal::Gone) => Err(ApiError::unavailable("the engine is gone")),
        }
    }

    /// A request of the engine's: what is common, for this caller.
    pub fn request(
        &self,
        common: &Common,
        caller: &Caller,
        adapters: &[String],
    ) -> russet_engine::Request {
        let mut request = common.request();
        if !common.seeded {
            request.sampling.seed = self.seed();
        }
        if !common.ignore_eos {
            request.stop_tokens = self.text.eos.clone();
        }
        request.adapters = adapters.to_vec();
        request.tenant = caller.name.clone();
        request.deadline = Some(Instant::now() + self.limits.deadline);
        request
    }
}

/// All paths.
fn routes() -> Vec<Route> {
    vec![
        Route::get("/", plain::page, "The page to chat on")
            .says("text/html")
            .open(),
        Route::get("/health", plain::health, "Whether there is an engine")
            .gives::<answers::Status>()
            .open(),
        Route::get("/ready", plain::ready, "Whether requests are welcome")
            .gives::<answers::Status>()
            .open(),
        Route::get("/metrics", plain::metrics, "Numbers for Prometheus").says("text/plain"),
        Route::get("/openapi.json", openapi::openapi, "This description")
            .gives::<answers::AnyObject>(),
        Route::get(
            "/tokenizer_info",
            plain::tokenizer_info,
            "The tokenizer's configuration, with its chat template",
        )
        .gives::<answers::AnyObject>(),
        Route::post(
            "/tokenize",
            plain::tokenize,
            "Tokens of a text or a conversation",
        )
        .of::<plain::Tokenize>()
        .gives::<answers::Tokenized>(),
        Route::post("/detokenize", plain::detokenize, "The text of tokens")
            .of::<plain::Detokenize>()
            .gives::<answers::Detokenized>(),
        Route::get("/v1/models", plain::models, "The base and its adapters")
            .gives::<answers::ModelList>(),
        Route::get("/v1/models/{*name}", plain::one_model, "One of them")
            .shown("/v1/models/{name}")
            .gives::<answers::ModelCard>(),
        Route::post("/v1/chat/completions", chat::chat, "Answers a conversation")
            .of::<wire::chat::Body>()
            .gives::<answers::ChatCompletion>()
            .streams::<answers::ChatCompletionChunk>()
            .queued(),
        Route::post(
            "/v1/completions",
            completions::completions,
            "Continues prompts",
        )
        .of::<wire::completions::Body>()
        .gives::<answers::Completion>()
        .streams::<answers::Completion>()
        .queued(),
        Route::post(
            "/v1/responses",
            responses::responses,
            "Answers a conversation in items and events",
        )
        .of::<wire::responses::Body>()
        .gives::<answers::Response>()
        .streams::<answers::ResponseEvent>()
        .queued(),
        Route::post("/v1/embeddings", embeddings::embeddings, "Texts to vectors")
            .of::<wire::embeddings::Body>()
            .gives::<embeddings::List>()
            .queued(),
        Route::post(
            "/v1/load_lora_adapter",
            plain::load_adapter,
            "Loads an adapter",
        )
        .of::<plain::Load>()
        .says("text/plain")
        .guarded(),
        Route::post(
            "/v1/unload_lora_adapter",
            plain::unload_adapter,
            "Unloads an adapter",
        )
        .of::<plain::Unload>()
        .says("text/plain")
        .guarded(),
    ]
}

/// The routes.
pub(crate) fn router(state: Shared) -> Router {
    let add = |router: Router<Shared>, route: Route| router.route(route.path, route.handler);
    routes()
        .into_iter()
        .fold(Router::new(), add)
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(state.clone(), enter))
        .with_state(state)
}

/// Before and after every handler.
async fn enter(
    axum::extract::State(state): axum::extract::State<Shared>,
    mut request: Request,
    next: Next,
) -> Response {
    let (begun, id) = (Instant::now(), state.id("req-"));
    let (endpoint, open) = state.endpoint(request.uri().path());
    let mut metered = None;
    let entered = allowed(&state, &request, open).and_then(|caller| {
        // What only reads costs the engine nothing.
        metered = caller
            .meter
            .clone()
            .filter(|_| request.method() == Method::POST);
        let pass = metered.as_ref().map(|meter| meter.enter(begun));
        Ok((caller, pass.transpose()?))
    });
    let mut response = match entered {
        Err(error) => error.into_response(),
        Ok((caller, pass)) => {
            request.extensions_mut().insert(caller);
            match guard::Guarded::new(next.run(request)).await {
                Ok(response) => match pass {
                    Some(pass) => response.map(|body| Body::new(Held { body, _pass: pass })),
                    None => response,
                },
                Err(guard::Panicked) => {
                    state.metrics.panicked();
                    ApiError::bug().into_response()
                }
            }
        }
    };
    let status = response.status().as_u16();
    state.metrics.response(endpoint, status);
    let milliseconds = begun.elapsed().as_millis() as u64;
    tracing::info!(request = id, endpoint, status, milliseconds, "answered");
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert("x-request-id", id);
    }
    for (of, stands) in metered
        .iter()
        .flat_map(|meter| meter.standing(Instant::now()))
    {
        for (what, value) in [
            ("limit", stands.limit.to_string()),
            ("remaining", stands.remaining.to_string()),
            ("reset", stands.reset()),
        ] {
            let name = HeaderName::try_from(format!("x-ratelimit-{what}-{of}"));
            if let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(value)) {
                headers.insert(name, value);
            }
        }
    }
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}

/// A body that is on its way as long as its request counts as open.
struct Held {
    body: Body,
    _pass: Pass,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Whether this request may go on, and whose it is.
fn allowed(state: &State, request: &Request, open: bool) -> ApiResult<Caller> {
    if state.local {
        asked_here(request)?;
    }
    let Some(keys) = state.keys.as_ref().filter(|_| !open) else {
        return Ok(Caller {
            name: None,
            adapters: state.keys.is_none(),
            meter: None,
        });
    };
    let shown = request.headers().get(header::AUTHORIZATION);
    let shown = shown.and_then(|value| value.to_str().ok());
    let key = shown.and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
    });
    key.and_then(|key| keys.find(key)).ok_or_else(|| {
        let said = match shown {
            None => "this server wants a key: Authorization: Bearer KEY",
            Some(_) => "this server does not know that key",
        };
        ApiError::refused(StatusCode::UNAUTHORIZED, "invalid_api_key", said)
    })
}

/// Refuses a request that was sent to another name than this machine's own: a page elsewhere can make its name point here, and the
/// browser then says that name.
pub(crate) fn asked_here(request: &Request) -> ApiResult<()> {
    let host = request.headers().get(header::HOST);
    match host.is_none_or(is_local) {
        true => Ok(()),
        false => Err(ApiError::refused(
            StatusCode::FORBIDDEN,
            "wrong_host",
            "this server listens for this machine alone and answers to localhost, 127.0.0.1 and [::1]",
        )),
    }
}

fn is_local(host: &HeaderValue) -> bool {
    let Ok(host) = host.to_str() else {
        return false;
    };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|c| c.is_ascii_digit()) => name,
        _ => host,
    };
    name.eq_ignore_ascii_case("localhost") || name == "127.0.0.1" || name == "[::1]"
}

async fn nothing_here() -> ApiError {
    ApiError::refused(
        StatusCode::NOT_FOUND,
        "not_found",
        "there is nothing at this path; docs/serve.md lists the endpoints",
    )
}

pub(crate) async fn wrong_method(method: Method) -> ApiError {
    ApiError::refused(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        format!("this path does not take {method}"),
    )
}

/// The body of a request, within its bounds. It must say that it is JSON: a page elsewhere can make a browser send plain text
/// here unasked, but not JSON.
pub(crate) async fn body(state: &State, request: Request) -> ApiResult<Bytes> {
    body_within(&state.limits, request).await
}

/// The same within other bounds.
pub(crate) async fn body_within(limits: &Limits, request: Request) -> ApiResult<Bytes> {
    let headers = request.headers();
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let kind = kind.map(|kind| kind.split(';').next().unwrap_or(kind).trim());
    if !kind.is_some_and(|kind| kind.eq_ignore_ascii_case("application/json")) {
        return Err(ApiError::refused(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "the body must be JSON and say so: Content-Type: application/json",
        ));
    }
    let limit = limits.body;
    let too_large = || {
        ApiError::refused(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("a body has {limit} bytes at most"),
        )
    };
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|l| l.to_str().ok());
    if length.is_some_and(|length| {
        length
            .parse()
            .is_ok_and(|length: u64| length > limit as u64)
    }) {
        return Err(too_large());
    }
    let read = to_bytes(request.into_body(), limit);
    match tokio::time::timeout(limits.patience, read).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => {
            let long = std::error::Error::source(&error)
                .is_some_and(|source| source.to_string().contains("limit"));
            Err(match long {
                true => too_large(),
                false => ApiError::body("the body did not arrive whole"),
            })
        }
        Err(_) => Err(ApiError::refused(
            StatusCode::REQUEST_TIMEOUT,
            "body_too_slow",
            format!(
                "the body did not arrive within {} seconds",
                limits.patience.as_secs()
            ),
        )),
    }
}

/// A JSON response.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let text = serde_json::to_string(value).expect("keys are texts");
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
