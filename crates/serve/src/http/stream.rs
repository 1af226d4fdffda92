//! Server-sent events: what is said goes out as it comes, and stops being made when nobody takes it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::{HeaderValue, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde_json::Value;
use tokio::sync::mpsc;

use super::Shared;
use super::guard::{Guarded, Panicked};
use crate::error::{ApiError, ApiResult};

/// Events that may wait for a slow reader.
const WAITING: usize = 16;

/// An event: what it says, and its name where it has one.
pub(crate) struct Line {
    name: Option<&'static str>,
    data: String,
}

impl Line {
    pub fn named(name: &'static str, value: &Value) -> Line {
        Line {
            name: Some(name),
            data: value.to_string(),
        }
    }

    fn plain(data: String) -> Line {
        Line { name: None, data }
    }
}

/// Where a stream's writer puts its events.
pub(crate) struct Out {
    events: mpsc::Sender<Line>,
    patience: Duration,
}

/// The reader is gone, or takes nothing.
#[derive(Debug)]
pub(crate) struct Gone;

impl Out {
    /// Sends one object.
    pub async fn send(&self, value: &Value) -> Result<(), Gone> {
        self.line(Line::plain(value.to_string())).await
    }

    /// Sends one event.
    pub async fn line(&self, line: Line) -> Result<(), Gone> {
        let sent = tokio::time::timeout(self.patience, self.events.send(line)).await;
        sent.map_err(|_| Gone)?.map_err(|_| Gone)
    }

    /// Waits until the reader is gone.
    pub async fn gone(&self) {
        self.events.closed().await;
    }
}

/// What ends a stream early.
#[derive(Debug)]
pub(crate) enum Broken {
    Gone,
    Api(ApiError),
}

impl From<Gone> for Broken {
    fn from(_: Gone) -> Broken {
        Broken::Gone
    }
}

impl From<ApiError> for Broken {
    fn from(error: ApiError) -> Broken {
        Broken::Api(error)
    }
}

/// The last line of a stream of chunks: `[DONE]` where it is whole, an error where it is broken.
pub(crate) fn done(outcome: ApiResult<()>) -> Option<Line> {
    Some(Line::plain(match outcome {
        Ok(()) => "[DONE]".to_owned(),
        Err(error) => error.json().to_string(),
    }))
}

/// A response whose events `write` makes, and behind them `last` of how that went.
pub(crate) fn respond<L, W, F>(state: &Shared, last: L, write: W) -> Response
where
    L: FnOnce(ApiResult<()>) -> Option<Line> + Send + 'static,
    W: FnOnce(Shared, Arc<Out>) -> F + Send + 'static,
    F: Future<Output = Result<(), Broken>> + Send + 'static,
{
    let (events, waiting) = mpsc::channel(WAITING);
    let out = Arc::new(Out {
        events,
        patience: state.limits.patience,
    });
    let shared = state.clone();
    let writing = Guarded::new(write(state.clone(), out.clone()));
    tokio::spawn(async move {
        let outcome = match writing.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Broken::Gone)) => return,
            Ok(Err(Broken::Api(error))) => Err(error),
            Err(Panicked) => {
                shared.metrics.panicked();
                Err(ApiError::bug())
            }
        };
        if let Some(line) = last(outcome) {
            let _ = out.line(line).await;
        }
    });
    let silence = KeepAlive::new()
        .interval(state.limits.keep_alive)
        .text("keep-alive");
    let mut response = Sse::new(Events(waiting))
        .keep_alive(silence)
        .into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that gather what they pass on would undo the stream.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

struct Events(mpsc::Receiver<Line>);

impl Stream for Events {
    type Item = Result<Event, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let line = self.0.poll_recv(context);
        line.map(|line| {
            line.map(|Line { name, data }| {
                let event = name.map_or_else(Event::default, |name| Event::default().event(name));
                Ok(event.data(data))
            })
        })
    }
}

/// Waits for what is said next, or for the reader to leave.
pub(crate) async fn unless_gone<T>(
    out: &Out,
    next: impl Future<Output = ApiResult<T>>,
) -> Result<T, Broken> {
    tokio::select! {
        () = out.gone() => Err(Broken::Gone),
        said = next => Ok(said?),
    }
}
