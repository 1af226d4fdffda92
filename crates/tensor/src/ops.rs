//! The operations, one file each: the forward pass above its derivative.

mod adapters;
mod add;
mod attention;
mod cross_entropy;
mod cross_entropy_part;
mod divergence;
mod embedding;
mod frozen_table;
mod gather_parameters;
mod key_values;
mod learnt;
mod linear;
mod lora;
mod mask;
mod palette;
mod qk_norm_rope;
mod ring_attention;
mod rms_norm;
mod rows;
mod share_rows;
mod stand_in;
mod swiglu;

pub use adapters::{Adapter, adapt, adapt_cost, as_adapted};
pub use add::add;
pub use attention::{CachePages, CacheView, attention};
pub use cross_entropy::{LossTeacher, LossTerms, TokenLoss, cross_entropy, token_losses};
pub use cross_entropy_part::{TablePart, cross_entropy_part};
pub use divergence::divergence;
pub use embedding::{embedding, embedding_part};
pub use frozen_table::{frozen_cross_entropy, frozen_embedding, frozen_linear};
pub use gather_parameters::{Pieces, Unit, gather_parameters};
pub use key_values::key_values;
pub use learnt::{Learnt, LearntFrom, learnt_weight};
pub use linear::linear;
pub use lora::{LoraPart, lora};
pub use mask::{scale_columns, soft_top_k};
pub use palette::{
    palette_linear, palette_linear_adapted, palette_linear_added, palette_linear_gated, rounded,
};
pub use qk_norm_rope::{QkNorm, qk_norm_rope};
pub use ring_attention::ring_attention;
pub use rms_norm::rms_norm;
pub use rows::rows;
pub use share_rows::{gather_rows, scatter_rows};
pub use stand_in::{given, stand_in};
pub use swiglu::swiglu;

pub use russet_kernels::attention::NO_WINDOW;
pub use russet_kernels::cross_entropy::IGNORE;
pub use russet_kernels::rope::{HeadShape, RopeTable};

#[cfg(test)]
mod check;
#[cfg(test)]
mod shared_tests;
