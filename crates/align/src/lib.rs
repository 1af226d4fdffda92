//! Alignment: from a model that continues text to one that answers, and answers as people prefer.
//!
//! ```text
//! rows ─▶ conversations ─▶ tokens, the answers' known ─▶ batches ─┐
//!                                                                 ├─▶ the loop of russet-train ─▶ checkpoint | adapter
//! losses: next token on answers · preferences against a reference ┘
//! ```
//! In the order of the flow: [`rows`] reads data sets as people publish them, [`data`] makes batches of them, [`sft`] and
//! [`dpo`] are what is learnt, and a [`Plan`] is a checked recipe that runs. [`advantage`], [`preference`] and [`reward`] are the
//! formulas, as functions of numbers: nothing in them knows of models.
//!
//! There is no training loop here, no forward pass and no renderer of chat templates: those are `russet-train`'s,
//! `russet-model`'s and `russet-tokenizer`'s. Left out so far: the reward model's head, rollouts, and with them reinforcement
//! learning, of which the formulas alone are here.

pub mod advantage;
pub mod data;
pub mod dpo;
pub mod plan;
pub mod preference;
pub mod reward;
pub mod rows;
pub mod settings;
pub mod sft;

pub use plan::{Plan, Sources};
pub use settings::{Lesson, Settings};
