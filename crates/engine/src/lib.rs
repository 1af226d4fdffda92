//! Token ids in, token ids out: batches, a cache, a sampler.
//!
//! [`Engine`] continues prompts with a [`russet_model::Decoder`], dense, palettized or adapted, one or many at a time;
//! [`bench()`] measures how fast. A request's answer does not depend on what else runs: with palettized weights to the
//! last bit, with dense ones up to the rounding of products of another height.
//!
//! Synchronous, and ignorant of text, files, HTTP and async runtimes: `cli` and `serve` bring those. Left out so far:
//! sharing pages between slots, preemption, speculation, adapters chosen by request.

pub mod bench;
mod engine;
mod error;
mod request;
mod sampler;

pub use bench::{Bench, BenchConfig, Shares, bench, bytes_per_token};
pub use engine::{Engine, EngineConfig, Reuse};
pub use error::{Error, Result};
pub use request::{Finish, Flow, Generate, Generation, Request, Token};
pub use sampler::Sampling;
