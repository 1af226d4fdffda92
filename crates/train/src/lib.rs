//! Training: one loop, whatever is learnt.
//!
//! ```text
//! tokens ─▶ Batches ─▶ Objective ─▶ gradients ─▶ skip, clip ─▶ Optimizer ─▶ weights ─▶ Average      x steps
//!                                                              Schedule ─┘
//!             every so often: Validation, RunLog, TrainState (by a thread of its own); at the end: a checkpoint
//! ```
//!
//! [`train`] is that loop. It does not know what a batch means: [`Batches`] brings the tokens and an [`Objective`] makes a
//! loss of them, so alignment adds data and losses and never a second loop. [`Training`] is what surrounds it, from settings to
//! the artifact, whatever the [`Task`] and whether all weights are trained or adapters. [`pretrain`] is the task of packed token
//! shards with the next-token loss, from a checked [`Plan`].
//!
//! The same recipe on the same tokens gives the same weights to the last bit, on any number of threads, in one go or
//! killed and resumed at any moment. (On another instruction set sums round differently; a resumed run says so.)
//!
//! Several ranks may share a step out over a mesh (`[parallel]`): each runs this loop on its part of the tokens and weights,
//! and adds up with the others what belongs together. docs/parallel.md has the axes and the formulas.
//!
//! Ranks are threads of this process, or processes of MPI on one machine or many ([`Launch`]).

pub mod adapt;
pub mod average;
pub mod bench;
mod check;
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;
pub mod device;
pub mod distill;
mod error;
pub mod launch;
pub mod loader;
mod named;
pub mod objective;
pub mod optimizer;
pub mod parallel;
mod permutation;
mod pieces;
pub mod plan;
mod pretrain;
pub mod price;
mod probe;
pub mod prune;
mod publish;
mod ranks;
mod run;
pub mod save;
pub mod schedule;
pub mod settings;
pub mod spike;
mod standing;
pub mod state;
mod straggler;
pub mod training;
pub mod validation;
mod wrapped;

pub use adapt::{AdapterSettings, AdapterType, ProjectionName};
pub use bench::{BenchReport, bench};
pub use check::Start;
pub use device::{Device, DeviceKind, copy_bytes_a_second};
pub use distill::{Distill, DistillKind, DistillSettings, Teacher, TeacherInput, teach};
pub use error::{Result, TrainError};
pub use launch::Launch;
pub use loader::{Batch, Batches, Mixture, Origin};
pub use objective::{NextToken, Objective};
pub use optimizer::Optimizer;
pub use parallel::{Expected, MeshPlan, Outlook, RankPlan};
pub use permutation::Permutation;
pub use plan::{Plan, Sources};
pub use pretrain::{pretrain, pretrain_as};
pub use price::{Description, Estimate, Memory, Price, TeacherPrice};
pub use probe::{Rate, matmul_gflops, matmul_gflops_in};
pub use publish::{WriteFiles, card_rows};
pub use run::{
    BITS_PER_BYTE, Ended, Loop, Measure, Measured, Record, Saving, VALIDATION_LOSS, train,
};
pub use schedule::Schedule;
pub use settings::Settings;
pub use standing::Standing;
pub use state::{State, StateStore, Tally};
pub use training::{Adapters, First, Make, Outcome, Resume, Task, TrainReport, Trained, Training};
pub use validation::{GoesOn, Validation, ValidationResult};
pub use wrapped::{Unwrapped, Wrapped};
