//! Token ids in, token ids out: a scheduler, a cache, adapters, a sampler.
//!
//! [`Engine`] continues prompts with a [`russet_model::Decoder`], dense, palettized or adapted, one or many at a time;
//! [`bench()`] measures how fast. A request's answer does not depend on what else runs, to the last bit.
//!
//! ```text
//! submit ─▶ waiting ─▶ running ─▶ Event::End        step: shares of rows ─▶ blocks ─▶ forward ─▶ tokens
//!              ▲          │ no blocks
//!              └──────────┘
//! ```
//!
//! Synchronous, and ignorant of text, files but adapters', HTTP and async runtimes: `cli` and `serve` bring those.

mod adapters;
pub mod bench;
mod engine;
mod error;
pub mod guide;
mod intake;
mod prefix;
mod request;
mod sampler;
mod scheduler;
mod sequence;
mod speculate;
mod stats;

pub use adapters::{AdapterStats, Adapters, Held};
pub use bench::{Bench, BenchConfig, Shares, bench, bytes_per_token};
pub use engine::{CacheSize, Engine, EngineConfig, Reuse};
pub use error::{Error, Result};
pub use request::{Event, Finish, Flow, Generate, Generation, Request, RequestId, Token};
pub use sampler::{Allowed, Drawn, Sampler, Sampling};
pub use scheduler::Propose;
pub use speculate::{DraftModel, PromptLookup, Speculation};
pub use stats::Stats;
