//! How well a model predicts a text, and how far a squeezed model strays from the one it came from.
//!
//! [`perplexity`] gives nats, perplexity and bits per byte of a text; [`compare`] adds the Kullback-Leibler divergence
//! between two models' predictions and how often their most probable token is the same. Both take dense checkpoints
//! and packages alike, and read documents in windows as [`Settings`] describes.
//!
//! [`needle`] asks whether a model finds one fact in a long text.
//!
//! [`ifeval`] asks whether responses follow instructions that can be checked: IFEval's 25 kinds, each a rule by itself.
//!
//! [`choice`] scores multiple choice by likelihood, [`math`] and [`code`] responses by the number they end in and by tests that a program
//! passes in a [`sandbox`], [`calls`] calls of functions; [`positions`] has losses by how far back a text goes.
//!
//! [`strata`] draws the texts that features are tried on, [`summaries`], [`slots`] and [`safety`] judge what they do; [`report`] puts all of it onto one page.
//!
//! [`pairwise`] compares models by judgements of which response is better; [`prompts`](prompts()) are questions for it, of
//! eleven categories; [`grading`] asks people.
//!
//! Documents come as tokens with the number of bytes they stand for: this crate neither encodes texts nor prints. It
//! works in batches of forward passes, never with the logits of all tokens in memory.

pub mod calls;
pub mod choice;
pub mod code;
mod compare;
mod document;
mod error;
pub mod grading;
pub mod ifeval;
mod letter;
pub mod math;
pub mod needle;
pub mod pairwise;
mod perplexity;
pub mod positions;
mod prompts;
pub mod report;
mod rows;
pub mod safety;
pub mod sandbox;
mod sensitive;
pub mod slots;
mod stats;
pub mod strata;
pub mod summaries;

pub use compare::{Comparison, compare};
pub use document::{Document, Settings};
pub use error::{Error, Result};
pub use perplexity::{Scores, perplexity};
pub use prompts::{CATEGORIES, Prompt, prompts};
pub use rows::{Answers, Begun, Row, read_answers, read_begun, read_named, read_rows};
pub use stats::mean_interval;
