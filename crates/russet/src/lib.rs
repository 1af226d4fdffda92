//! Russet's public API, for those who build on it: one module a crate, nothing of its own.

pub use russet_align as align;
pub use russet_artifact as artifact;
pub use russet_compress as compress;
pub use russet_engine as engine;
pub use russet_eval as eval;
pub use russet_kernels as kernels;
pub use russet_model as model;
pub use russet_serve as serve;
pub use russet_tensor as tensor;
pub use russet_tokenizer as tokenizer;
pub use russet_train as train;
