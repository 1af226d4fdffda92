//! Tensors, the context that operations run in, and the tape that differentiates them.
//!
//! A [`Tensor`] is an immutable, cheaply cloned value; an operation is a function from a [`Ctx`] and
//! tensors to a tensor. There are about a dozen, coarse, one file each under [`ops`], the forward
//! pass above its derivative. When the context carries a [`Tape`] an operation also records how
//! to push a gradient back through itself; without one, nothing is recorded or kept.
//!
//! Several ranks may share the work: a [`Mesh`] names the axes along which they do, [`collective`] has what they say to one
//! another, and the operations that speak have the transpose of what they say as their derivative.
//!
//! Deliberately left out: broadcasting, views with strides, lazy graphs, generic dtypes in
//! arithmetic. Activations are `f32`; other dtypes are storage that an operation reads in place.

pub mod collective;
pub mod ctx;
pub mod mesh;
pub mod ops;
pub mod ring;
pub mod segments;
pub mod tape;
mod tensor;
pub mod threads;
pub mod trace;
mod weights;
mod workspace;

pub use collective::Lost;
pub use ctx::{Ctx, Made};
pub use mesh::{Axis, Mesh, MeshShape};
pub use segments::{Adapted, Segment, Segments, Stack};
pub use tape::{Backward, Gradients, Tape};
pub use tensor::{DType, Device, Handle, Kept, Node, Tensor, TensorError, TensorId};
pub use trace::{Op, Trace};
pub use weights::{FrozenTable, Int8Weight, PaletteWeight};
pub use workspace::{Buffer, Workspace};
