//! Alignment: from a model that continues text to one that answers, and answers as people prefer.
//!
//! ```text
//! rows ─▶ conversations ─▶ tokens, the answers' known ─▶ batches ─┐
//!                                                                 ├─▶ the loop of russet-train ─▶ checkpoint | adapter
//! losses: next token on answers · preferences · rewards ──────────┤
//! prompts ─▶ answers of the engine ─▶ rewards ─▶ advantages ──────┘
//! prompts ─▶ answers of a committee ─▶ rewards ─▶ the best ─▶ rows
//! ```
//! In the order of the flow: [`rows`] reads data sets as people publish them, [`data`] makes batches of them, [`sft`], [`dpo`] and
//! [`reward_model`] are what is learnt, and a [`Plan`] is a checked recipe that runs. [`rewards`] say what an answer is worth,
//! [`rlhf`] learns from that by a plan of its own, and [`committee`] keeps the best answers of several models. [`advantage`],
//! [`preference`] and [`reward`] are the formulas, as functions of numbers: nothing in them knows of models.
//!
//! There is no training loop here, no forward pass, no renderer of chat templates and no sampling: those are `russet-train`'s,
//! `russet-model`'s, `russet-tokenizer`'s and `russet-engine`'s. Checkers of answers that evaluation has come in by a trait.

pub mod advantage;
pub mod committee;
pub mod data;
pub mod dpo;
pub mod plan;
pub mod preference;
pub mod reward;
pub mod reward_model;
pub mod rewards;
pub mod rlhf;
pub mod rows;
pub mod settings;
pub mod sft;
mod start;

pub use plan::{Plan, Sources};
pub use settings::{Lesson, Settings};
pub use start::REPORT;
