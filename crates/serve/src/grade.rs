//! A page on which people grade responses, for this machine alone.
//!
//! ```text
//! GET /, /results        the page; what it comes to so far
//! GET /api/study         what is asked                          POST /api/next   {grader}
//! GET /api/results       progress, scores, agreement            POST /api/say    {grader, place, answer}
//! GET /export/NAME       a file, once all is graded             POST /api/skip   {grader, place}      POST /api/undo   {grader}
//! ```
//! What is asked, kept and exported is a [`Desk`]'s business, which whoever starts the page brings along; here are its routes. Who may
//! use them is a [`Page`]'s: graders have no keys, a name is taken at its word. No log says what anybody wrote.

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::error::{ApiError, ApiResult};
use crate::http::plain::of_one_file;
use crate::http::{body_within, json, wrong_method};
use crate::wire::parse;
use crate::{Limits, Page, Result};

/// One file: script and style are in it, and nothing is loaded from elsewhere.
const PAGE: &str = include_str!("grade/page.html");
/// Calls of a desk that run at once.
const AT_WORK: usize = 4;

/// Why a desk does not do what it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// What was asked is at fault; the sentence is for whoever asked.
    Asked(String),
    /// Not now.
    Early(String),
    /// Files or the machine are at fault; the sentence is for the log of whoever started the page.
    Failed(String),
}

/// What a desk answers: an object for the page.
pub type Answered = std::result::Result<Value, Refusal>;

/// Who keeps a study: knows what is asked, in which order, and what was said. Calls come from several threads at once. What a call
/// has changed is on disk when it returns.
pub trait Desk: Send + Sync + 'static {
    /// What is asked. No model is named.
    fn study(&self) -> Value;
    /// The next task of a grader. No model is named, here and in all that follows but the last two.
    ///
    /// # Errors
    /// As [`Refusal`] has it; likewise of the others.
    fn next(&self, grader: &str) -> Answered;
    /// Takes what a grader says of the task at a place of their order; the next one.
    fn say(&self, grader: &str, place: usize, answer: &Value) -> Answered;
    /// Puts a task off; the next one.
    fn skip(&self, grader: &str, place: usize) -> Answered;
    /// Takes back what a grader said last; that task again.
    fn undo(&self, grader: &str) -> Answered;
    /// What it comes to so far.
    fn results(&self) -> Answered;
    /// A file of what was said, where there is one of that name.
    fn export(&self, name: &str) -> std::result::Result<Option<String>, Refusal>;
}

/// What handlers share.
struct At {
    desk: Arc<dyn Desk>,
    limits: Limits,
    at_work: Arc<Semaphore>,
}

type Shared = State<Arc<At>>;

/// The page of a desk; it takes a port of this machine's own address, 0 a free one.
///
/// # Errors
/// When the port is taken.
pub fn page(port: u16, desk: Arc<dyn Desk>) -> Result<Page> {
    Page::bind(port, |limits| {
        let at_work = Arc::new(Semaphore::new(AT_WORK));
        router(Arc::new(At {
            desk,
            limits,
            at_work,
        }))
    })
}

fn router(at: Arc<At>) -> Router {
    Router::new()
        .route("/", get(front))
        .route("/results", get(front))
        .route("/api/study", get(study))
        .route("/api/next", post(next))
        .route("/api/say", post(say))
        .route("/api/skip", post(skip))
        .route("/api/undo", post(undo))
        .route("/api/results", get(results))
        .route("/export/{name}", get(export))
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method)
        .with_state(at)
}

async fn nothing_here() -> ApiError {
    ApiError::refused(
        StatusCode::NOT_FOUND,
        "not_found",
        "there is nothing at this path; graders begin at /, and /results has what it comes to",
    )
}

async fn front() -> Response {
    of_one_file(PAGE)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Who {
    grader: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Where {
    grader: String,
    place: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Says {
    grader: String,
    place: usize,
    answer: Value,
}

impl At {
    async fn read<T: DeserializeOwned>(&self, request: Request) -> ApiResult<T> {
        parse(&body_within(&self.limits, request).await?)
    }

    /// Asks the desk where it keeps no connection waiting.
    async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&dyn Desk) -> std::result::Result<T, Refusal> + Send + 'static,
    ) -> ApiResult<T> {
        let permit = self.at_work.clone().acquire_owned().await;
        let desk = self.desk.clone();
        let work = move || {
            let _permit = permit;
            ask(&*desk)
        };
        let answered = tokio::task::spawn_blocking(work).await;
        answered.map_err(|_| ApiError::bug())?.map_err(|refusal| match refusal {
            Refusal::Asked(said) => ApiError::body(said),
            Refusal::Early(said) => ApiError::refused(StatusCode::CONFLICT, "too_early", said),
            Refusal::Failed(said) => {
                tracing::error!("{said}");
                ApiError::refused(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "not_kept",
                    "the grades can be neither read nor written just now; what was said last was not kept, if anything. Whoever \
                     started this page finds the reason where it was started",
                )
            }
        })
    }
}

fn ok(value: Value) -> Response {
    json(StatusCode::OK, &value)
}

async fn study(State(at): Shared) -> Response {
    ok(at.desk.study())
}

async fn next(State(at): Shared, request: Request) -> ApiResult<Response> {
    let Who { grader } = at.read(request).await?;
    at.ask(move |desk| desk.next(&grader)).await.map(ok)
}

async fn say(State(at): Shared, request: Request) -> ApiResult<Response> {
    let Says {
        grader,
        place,
        answer,
    } = at.read(request).await?;
    let ask = move |desk: &dyn Desk| desk.say(&grader, place, &answer);
    at.ask(ask).await.map(ok)
}

async fn skip(State(at): Shared, request: Request) -> ApiResult<Response> {
    let Where { grader, place } = at.read(request).await?;
    at.ask(move |desk| desk.skip(&grader, place)).await.map(ok)
}

async fn undo(State(at): Shared, request: Request) -> ApiResult<Response> {
    let Who { grader } = at.read(request).await?;
    at.ask(move |desk| desk.undo(&grader)).await.map(ok)
}

async fn results(State(at): Shared) -> ApiResult<Response> {
    at.ask(|desk| desk.results()).await.map(ok)
}

async fn export(
    State(at): Shared,
    name: std::result::Result<Path<String>, PathRejection>,
) -> ApiResult<Response> {
    let Ok(Path(name)) = name else {
        return Err(nothing_here().await);
    };
    let asked = name.clone();
    let text = at.ask(move |desk| desk.export(&asked)).await?;
    let Some(text) = text else {
        return Err(nothing_here().await);
    };
    let mut headers = HeaderMap::new();
    let kind = HeaderValue::from_static("application/jsonl; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, kind);
    // The desk knows the name, so it is one of its own.
    let disposition = HeaderValue::from_str(&format!("attachment; filename=\"{name}\""));
    headers.insert(
        header::CONTENT_DISPOSITION,
        disposition.map_err(|_| ApiError::bug())?,
    );
    Ok((headers, text).into_response())
}
