//! The only crate that speaks HTTP: OpenAI's API over one engine.
//!
//! ```text
//! connection ─▶ key ─▶ body, fields ─▶ template, tokens, guide ─▶ Worker ─▶ Engine (a thread of its own)
//!                                                                    │
//! response  ◀── JSON or SSE ◀── stop strings, calls of tools ◀── text ◀── tokens
//! ```
//!
//! In the order one uses them:
//! - [`Settings`] say where to listen, who may ask and how much; [`Keys`] are a file of hashes, [`new_key`] makes one.
//! - [`Server::bind`] takes a [`Model`] and a way to make its engine, and is refused an address that others reach unless there
//!   are keys and TLS.
//! - [`Server::run`] serves until it is told to stop, lets what is on its way end, and returns.
//!
//! [`grade`] and [`watch`] are pages of another kind, for this machine alone and without a model: on one people compare responses, the
//! other draws a training run. [`client`] is the other end of the wire.
//!
//! The engine is synchronous and lives on a thread that owns it; handlers talk to it by channels, and what nobody waits for any
//! more is called off there. A field of a request is carried out or refused by name. Nothing that was asked or answered goes to a
//! log, a metric or a disk: events of `tracing` hold ids, counts and times.

mod answer;
pub mod client;
mod error;
pub mod grade;
mod http;
mod keys;
mod local;
mod meter;
mod metrics;
mod model;
mod registry;
mod tls;
mod tools;
pub mod watch;
mod wire;
mod worker;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

pub use keys::{Keys, new_key};
pub use local::Page;
pub use model::{Model, vocabulary};
pub use tls::Tls;
pub use wire::read_body;
pub use worker::MakeEngine;

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why a server cannot be started: a sentence for a person.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is at fault.
    #[error("{0}")]
    Setting(String),
    /// The engine or an adapter is at fault.
    #[error(transparent)]
    Engine(#[from] russet_engine::Error),
    /// The machine is at fault.
    #[error("the server cannot be started: {0}")]
    Start(String),
}

/// Where to listen, who may ask, and for how much.
#[derive(Debug)]
pub struct Settings {
    /// Where to listen; port 0 takes a free one.
    pub address: SocketAddr,
    /// Who may ask; `None`: whoever reaches the address.
    pub keys: Option<Keys>,
    /// What it shows and proves itself by; `None`: what is said travels in the clear.
    pub tls: Option<Tls>,
    /// Whether others may reach a server that lacks keys or TLS.
    pub insecure: bool,
    /// Names and PEFT folders of adapters to begin with.
    pub adapters: Vec<(String, PathBuf)>,
    /// Below which folder requests may load adapters; `None`: they may not.
    pub adapter_dir: Option<PathBuf>,
    /// What is told as `system_fingerprint`: which program and weights answer.
    pub fingerprint: String,
    /// The bounds.
    pub limits: Limits,
}

/// Bounds on what requests may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest body, in bytes.
    pub body: usize,
    /// Answers of one request: its prompts times `n`.
    pub answers: usize,
    /// How long an answer may take, waiting included.
    pub deadline: Duration,
    /// How long a body may take to arrive, and a piece of an answer to be taken.
    pub patience: Duration,
    /// Connections at once.
    pub connections: usize,
    /// After how much silence a stream has a comment.
    pub keep_alive: Duration,
    /// How long answers may go on once the server is told to stop.
    pub drain: Duration,
}

impl Default for Limits {
    /// 4 MiB, 128 answers, ten minutes, 30 seconds, 1,024 connections, a comment every 15 seconds, 30 seconds to end.
    fn default() -> Limits {
        Limits {
            body: 4 << 20,
            answers: 128,
            deadline: Duration::from_secs(600),
            patience: Duration::from_secs(30),
            connections: 1024,
            keep_alive: Duration::from_secs(15),
            drain: Duration::from_secs(30),
        }
    }
}

/// A server that listens and does not answer yet.
pub struct Server {
    listener: TcpListener,
    tls: Option<Tls>,
    state: Arc<http::State>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("listener", &self.listener)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Makes the engine, reads the adapters and takes the address.
    ///
    /// # Errors
    /// When others can reach the address and there are no keys or no TLS, unless that was asked for; when a setting, the engine or an
    /// adapter is at fault; or the address is taken.
    pub fn bind(settings: Settings, model: Model, make: MakeEngine) -> Result<Server> {
        let Settings {
            address, insecure, ..
        } = settings;
        let tls = settings.tls.clone();
        if !address.ip().is_loopback() && !insecure {
            let lacks = match (&settings.keys, &tls) {
                (None, _) => "without keys whoever reaches it may ask; give --api-keys FILE",
                (_, None) => {
                    "without TLS keys and texts travel in the clear; give --tls-cert FILE and --tls-key FILE"
                }
                _ => "",
            };
            if !lacks.is_empty() {
                return Err(Error::Setting(format!(
                    "{address} can be reached by others, and {lacks}, or say --insecure if that is what you want"
                )));
            }
        }
        let listener = listen(address)?;
        let state = http::State::new(settings, model, make)?;
        Ok(Server {
            listener,
            tls,
            state: Arc::new(state),
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is set, then lets what is on its way end, for as long as [`Limits::drain`] allows.
    ///
    /// # Errors
    /// When the system gives no threads or takes the socket away.
    pub fn run(self, stop: Arc<AtomicBool>) -> Result<()> {
        let failed = |error: std::io::Error| Error::Start(error.to_string());
        let runtime = runtime().map_err(failed)?;
        let state = self.state.clone();
        let serving = http::listen::serve(self.listener, self.tls.as_ref(), state, stop);
        let served = runtime.block_on(serving);
        self.state.worker.stop();
        runtime.shutdown_timeout(Duration::from_secs(1));
        served.map_err(failed)
    }
}

/// Takes an address.
fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .map_err(|error| Error::Start(format!("{address}: {error}; is another server there?")))
}

/// Threads for connections; what computes has others.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("http")
        .enable_all()
        .build()
}
