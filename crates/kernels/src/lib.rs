//! The arithmetic of Russet: slices in, slices out.
//!
//! This is the only crate with `unsafe`. It knows nothing of tensors, models, files' meaning or
//! threads other than its own [`Pool`]. Every operation has a plain oracle and, where it pays,
//! AVX2 and AVX-512 bodies chosen at run time by [`Isa`]. Work is cut into tasks by shape alone and
//! each task runs sequentially, so no result depends on the number of threads.
#![allow(unsafe_code)]

pub mod isa;
pub mod pool;
pub mod random;
mod scratch;
mod simd;

pub mod adapter;
pub mod attention;
pub mod codebook;
pub mod cross_entropy;
pub mod elementwise;
pub mod embedding;
pub mod mask;
pub mod matmul;
pub mod norm;
pub mod optimizer;
pub mod rope;
pub mod swiglu;

pub mod int8;
pub mod palette;
pub mod probe;
pub mod process;
pub mod profile;
pub mod quantize;

pub mod mmap;

pub use isa::{Isa, IsaError};
pub use matmul::{Compute, Mat, MatMut, matmul, matmul_in};
pub use mmap::Mmap;
pub use pool::Pool;

/// Rows at which sums over all rows of a batch can be cut and gone on with later, to the same bits: every such sum is made in
/// blocks that divide this one (256 and 512 deep in products, a power of two of rows in norms), one after the other.
pub const ROW_BLOCK: usize = 1024;
