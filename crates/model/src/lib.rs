//! The decoder: AFM's architecture, its layers, its cache and its files.
//!
//! There is one [`Decoder::forward`]. It trains, evaluates, serves palettized weights and runs under
//! adapters; what a layer's weights are and where they live is the business of its [`Linear`].
//! Checkpoints are Hugging Face folders (`Qwen3ForCausalLM`, ours, and `LlamaForCausalLM`), adapters
//! are PEFT folders, packages are safetensors in the kernels' own order, mapped and used in place.
//!
//! On a mesh of several ranks each has a part of the weights ([`cut`]) and runs the same forward pass ([`parallel`]).
//!
//! This crate knows nothing of text, optimizers or sampling.

pub mod adapter;
mod block;
pub mod cache;
pub mod checkpoint;
pub mod config;
pub mod cut;
mod decoder;
mod embedding;
mod error;
pub mod gguf;
pub mod linear;
pub mod llama2c;
pub mod package;
pub mod parallel;
pub mod reward;
pub mod stored;
mod weights;

pub use block::{Block, projections};
pub use cache::KvCache;
pub use config::{Attention, Config, Family};
pub use cut::Cut;
pub use decoder::{Decoder, Parameter, ParameterKind};
pub use embedding::Embedding;
pub use error::ModelError;
pub use linear::{Dense, Frozen, Layout, Linear, Lora, Palettized, Projection};
pub use reward::{Judged, RewardHead};
pub use russet_kernels::attention::KvFormat;
pub use weights::Weights;
