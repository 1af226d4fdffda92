//! From a dense checkpoint to a palettized package of a given size.
//!
//! Each projection's weights are replaced by 2-, 3- or 4-bit indices into tables of 4, 8 or 16 entries, one table for every 16 output
//! rows (arXiv 2407.21075, section 5), or, where that is asked for, pairs of weights by indices into tables of pairs. Which entries: k-means weighted by diagonal Fisher information (arXiv 2306.07629), solved
//! exactly in one dimension, then errors fed forward column by column (arXiv 2210.17323). Which bits: the assignment of least
//! harm, predicted or measured, that meets the target, an exact knapsack. The tables of embedding and output go to 8 bits
//! with a scale a row, or to 4-bit indices as well.
//!
//! One block of the checkpoint is in memory at a time, and work that was cut off goes on where it was. The result is the same on any number of
//! threads. To palettize no tokenizer is needed: the crate says which
//! [`Excerpt`]s of a text to measure on, and takes them as tokens. Before all of it the decoder may be rotated ([`Rotation`]). What is lost is
//! brought back by [`recover()`], adapters that are trained on the package, or by [`qat()`], which trains its palettes.

mod allocate;
mod budget;
mod calibration;
mod card;
mod curvature;
mod error;
mod excerpts;
mod feedback;
mod importance;
mod kept;
mod kmeans;
pub mod lossless;
mod low_rank;
mod matrix;
mod model;
mod on_package;
mod pairs;
mod palettize;
mod price;
mod qat;
mod recover;
mod refine;
mod refit;
mod rotate;
mod sensitivity;
mod settings;
mod stream;
mod strip;
mod table;
mod tap;
mod watch;

pub use budget::TradeOff;
pub use error::CompressError;
pub use excerpts::Excerpt;
pub use kept::State;
pub use on_package::HeldOut;
pub use palettize::{Compressed, REPORT, palettize};
pub use price::Price;
pub use qat::{QAT_REPORT, QatMethod, QatReport, QatSettings, qat};
pub use recover::{RECOVER_REPORT, RecoverReport, RecoverSettings, RecoverStart, recover};
pub use settings::{
    LayerReport, Report, Rotation, Sensitivity, Settings, TableBits, Weighting, Width,
};
