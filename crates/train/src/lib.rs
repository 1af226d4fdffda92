//! Training: one loop, whatever is learnt.
//!
//! ```text
//! tokens ─▶ Batches ─▶ Objective ─▶ gradients ─▶ clip ─▶ Optimizer ─▶ weights      x steps
//!                                                        Schedule ─┘
//!             every so often: Validation, RunLog, TrainState; at the end: a checkpoint
//! ```
//!
//! [`train`] is that loop. It does not know what a batch means: [`Batches`] brings the tokens and an [`Objective`] makes a
//! loss of them, so alignment adds data and losses and never a second loop. [`pretrain`] is the loop on packed token
//! shards with the next-token loss, from a checked [`Plan`].
//!
//! The same recipe on the same tokens gives the same weights to the last bit, on any number of threads, in one go or
//! killed and resumed at any moment. (On another instruction set sums round differently; a resumed run says so.)
//!
//! Left out for now: more than one machine, and optimizers other than AdamW.

pub mod bench;
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;
pub mod distill;
mod error;
pub mod loader;
pub mod objective;
pub mod optimizer;
mod permutation;
pub mod plan;
mod pretrain;
pub mod price;
mod probe;
pub mod prune;
mod run;
pub mod schedule;
pub mod settings;
pub mod state;
pub mod validation;

pub use bench::{BenchReport, bench};
pub use distill::{Distill, DistillKind, DistillSettings, Teacher, TeacherInput, teach};
pub use error::{Result, TrainError};
pub use loader::{Batch, Batches, PackedShard};
pub use objective::{NextToken, Objective};
pub use optimizer::{AdamWSettings, Optimizer};
pub use permutation::Permutation;
pub use plan::Plan;
pub use pretrain::{Outcome, Resume, TrainReport, pretrain};
pub use price::{Description, Estimate, Memory, Price};
pub use probe::{matmul_gflops, matmul_gflops_in};
pub use run::{Ended, Loop, Measure, train};
pub use schedule::Schedule;
pub use settings::Settings;
pub use state::{State, StateStore, Tally};
pub use validation::{Validation, ValidationResult};
