//! Pages for this machine alone: grading, and a run as it goes.
//!
//! A page listens on a loopback address and there is no way to let it listen on another. Every request must name this machine
//! (`Host`), and one that changes something must be sent by the page itself (`Origin`, `Sec-Fetch-Site`, JSON).

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};

use crate::error::{ApiError, ApiResult};
use crate::http::asked_here;
use crate::http::guard::{Guarded, Panicked};
use crate::http::listen::connections;
use crate::{Error, Limits, Result};

/// A page that listens and does not answer yet.
#[derive(Debug)]
pub struct Page {
    listener: TcpListener,
    router: Router,
    limits: Limits,
}

impl Page {
    /// Takes a port of this machine's own address, 0 a free one, for routes that keep to the limits they are given.
    ///
    /// # Errors
    /// When the port is taken.
    pub(crate) fn bind(port: u16, routes: impl FnOnce(Limits) -> Router) -> Result<Page> {
        let listener = crate::listen(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        let limits = Limits {
            body: 64 << 10,
            connections: 256,
            drain: Duration::from_secs(5),
            ..Limits::default()
        };
        Ok(Page {
            listener,
            router: routes(limits).layer(middleware::from_fn(enter)),
            limits,
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until `stop` is set.
    ///
    /// # Errors
    /// When the system gives no threads or takes the socket away.
    pub fn run(self, stop: Arc<AtomicBool>) -> Result<()> {
        let failed = |error: std::io::Error| Error::Start(error.to_string());
        let runtime = crate::runtime().map_err(failed)?;
        let served = runtime.block_on(connections(
            self.listener,
            None,
            self.router,
            &self.limits,
            stop,
            || {},
            || {},
        ));
        runtime.shutdown_timeout(Duration::from_secs(1));
        served.map_err(failed)
    }
}

/// Before and after every handler.
async fn enter(request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let method = request.method().clone();
    let mut response = match asked_here(&request).and_then(|()| asked_by_the_page(&request)) {
        Err(error) => error.into_response(),
        Ok(()) => match Guarded::new(next.run(request)).await {
            Ok(response) => response,
            Err(Panicked) => ApiError::bug().into_response(),
        },
    };
    let status = response.status().as_u16();
    let milliseconds = begun.elapsed().as_millis() as u64;
    tracing::debug!(%method, status, milliseconds, "answered");
    let headers = response.headers_mut();
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Refuses what a page from elsewhere makes a browser send. What is no browser sends neither header.
fn asked_by_the_page(request: &Request) -> ApiResult<()> {
    if request.method() == Method::GET {
        return Ok(()); // changes nothing, and other pages may not read the answer
    }
    let headers = request.headers();
    let text = |name: header::HeaderName| headers.get(name).map(|value| value.to_str().ok());
    let host = text(header::HOST).flatten().unwrap_or_default();
    let origin = text(header::ORIGIN);
    let own = origin.is_none_or(|origin| {
        origin.and_then(|origin| origin.strip_prefix("http://")) == Some(host)
    });
    let site = text(header::HeaderName::from_static("sec-fetch-site"));
    match own && site.is_none_or(|site| site == Some("same-origin")) {
        true => Ok(()),
        false => Err(ApiError::refused(
            StatusCode::FORBIDDEN,
            "wrong_origin",
            "only the page itself may send this",
        )),
    }
}
