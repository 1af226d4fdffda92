//! A page that draws a training run as it goes, for this machine alone.
//!
//! ```text
//! GET /              the page
//! GET /api/run/SEEN  what the run's log says; only whether the run goes on where the page has seen it all already
//! ```
//! What is told is the business of whoever starts the page. Curves are drawn by uPlot 1.6.32 (MIT), which the page carries.

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use serde_json::Value;

use crate::error::{ApiError, ApiResult};
use crate::http::plain::of_one_file;
use crate::http::{json, wrong_method};
use crate::{Page, Result};

/// One file: script and style are in it, and nothing is loaded from elsewhere.
const PAGE: &str = concat!(
    include_str!("watch/head.html"),
    "<!-- uPlot 1.6.32, https://github.com/leeoniya/uPlot\n",
    include_str!("watch/uPlot.LICENSE"),
    "-->\n<style>",
    include_str!("watch/uPlot.min.css"),
    "</style>\n<script>",
    include_str!("watch/uPlot.iife.min.js"),
    "</script>\n",
    include_str!("watch/page.html"),
);

/// Tells of a run: an object for the page, given how much of the log the page has seen (0: nothing yet); or a sentence.
pub type Tell = dyn Fn(u64) -> std::result::Result<Value, String> + Send + Sync;

/// The page of a run; it takes a port of this machine's own address, 0 a free one.
///
/// # Errors
/// When the port is taken.
pub fn page(port: u16, tell: Arc<Tell>) -> Result<Page> {
    Page::bind(port, |_| {
        Router::new()
            .route("/", get(async || of_one_file(PAGE)))
            .route("/api/run/{seen}", get(run))
            .fallback(nothing_here)
            .method_not_allowed_fallback(wrong_method)
            .with_state(tell)
    })
}

async fn nothing_here() -> ApiError {
    ApiError::refused(
        StatusCode::NOT_FOUND,
        "not_found",
        "there is nothing at this path; the page is at /",
    )
}

async fn run(
    State(tell): State<Arc<Tell>>,
    seen: std::result::Result<Path<u64>, PathRejection>,
) -> ApiResult<Response> {
    let Ok(Path(seen)) = seen else {
        return Err(nothing_here().await);
    };
    let told = tokio::task::spawn_blocking(move || tell(seen)).await;
    let told = told.map_err(|_| ApiError::bug())?;
    let object = told
        .map_err(|said| ApiError::refused(StatusCode::INTERNAL_SERVER_ERROR, "not_read", said))?;
    Ok(json(StatusCode::OK, &object))
}
