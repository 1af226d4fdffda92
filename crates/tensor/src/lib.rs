//! Tensors, the context that operations run in, and the tape that differentiates them.
//!
//! A [`Tensor`] is an immutable, cheaply cloned value; an operation is a function from a [`Ctx`] and
//! tensors to a tensor. There are about a dozen, coarse, one file each under [`ops`], the forward
//! pass above its derivative. When the context carries a [`Tape`] an operation also records how
//! to push a gradient back through itself; without one, nothing is recorded or kept.
//!
//! Deliberately left out: broadcasting, views with strides, lazy graphs, generic dtypes in
//! arithmetic. Activations are `f32`; other dtypes are storage that an operation reads in place.

pub mod ctx;
pub mod ops;
pub mod segments;
pub mod tape;
mod tensor;
mod weights;
mod workspace;

pub use ctx::Ctx;
pub use segments::{Segment, Segments};
pub use tape::{Backward, Gradients, Tape};
pub use tensor::{DType, Device, Handle, Kept, Node, Tensor, TensorError, TensorId};
pub use weights::{Int8Weight, PaletteWeight};
pub use workspace::{Buffer, Workspace};
