//! The table between tokens and vectors, at the input and, where it is tied, at the output too.

use russet_tensor::ops::{self, IGNORE, LossTerms, TokenLoss};
use russet_tensor::{Ctx, FrozenTable, Tensor};

/// Rows of logits that are formed at a time where losses go through a frozen table.
const LOGIT_ROWS: usize = 128;

/// A vocabulary's table, `[V, D]`.
#[derive(Clone)]
pub enum Embedding {
    /// In `f32`, trainable.
    Dense(Tensor),
    /// A package's, of eight bits or of palettes.
    Frozen(FrozenTable),
}

impl Embedding {
    /// V.
    pub fn vocab(&self) -> usize {
        match self {
            Embedding::Dense(table) => table.dims2().0,
            Embedding::Frozen(table) => table.rows(),
        }
    }

    /// Bytes of the whole table, which the product with it reads.
    pub fn stored_bytes(&self) -> usize {
        match self {
            Embedding::Dense(table) => table.bytes().len(),
            Embedding::Frozen(table) => table.stored_bytes(),
        }
    }

    /// Bytes of one row, which looking a token up reads.
    pub fn row_bytes(&self) -> usize {
        match self {
            Embedding::Dense(table) => size_of::<f32>() * table.dims2().1,
            Embedding::Frozen(table) => table.row_bytes(),
        }
    }

    /// `tokens [N]` to `[N, D]`.
    ///
    /// # Panics
    /// When a token is not below V.
    pub fn lookup(&self, ctx: &mut Ctx, tokens: &[u32]) -> Tensor {
        match self {
            Embedding::Dense(table) => ops::embedding(ctx, table, tokens),
            Embedding::Frozen(table) => ops::frozen_embedding(ctx, table, tokens),
        }
    }

    /// `hidden [M, D]` to logits `[M, V]`.
    pub fn logits(&self, ctx: &mut Ctx, hidden: &Tensor) -> Tensor {
        match self {
            Embedding::Dense(table) => ops::linear(ctx, hidden, table),
            Embedding::Frozen(table) => ops::frozen_linear(ctx, hidden, table),
        }
    }

    /// `Σ weightₙ · lossₙ` of `hidden [N, D]` against `targets [N]`, in nats, with further terms, recorded. Through a frozen
    /// table the gradient passes to `hidden` alone.
    pub fn loss(
        &self,
        ctx: &mut Ctx,
        hidden: &Tensor,
        targets: &[u32],
        weights: &[f32],
        terms: &LossTerms,
    ) -> TokenLoss {
        match self {
            Embedding::Dense(table) => {
                ops::cross_entropy(ctx, hidden, table, targets, weights, terms)
            }
            Embedding::Frozen(table) => {
                ops::frozen_cross_entropy(ctx, hidden, table, targets, weights, terms)
            }
        }
    }

    /// Each token's loss in nats, `[N]`, never with more than a chunk of logits in memory.
    pub fn token_losses(&self, ctx: &mut Ctx, hidden: &Tensor, targets: &[u32]) -> Vec<f32> {
        if let Embedding::Dense(table) = self {
            return ops::token_losses(ctx, hidden, table, targets);
        }
        let mut losses = Vec::with_capacity(targets.len());
        for (chunk, targets) in targets.chunks(LOGIT_ROWS).enumerate() {
            let start = chunk * LOGIT_ROWS;
            let picked: Vec<usize> = (start..start + targets.len()).collect();
            let hidden = ops::rows(ctx, hidden, &picked);
            let logits = self.logits(ctx, &hidden);
            for (row, &target) in logits.data().chunks_exact(self.vocab()).zip(targets) {
                losses.push(match target {
                    IGNORE => 0.0,
                    _ => {
                        russet_kernels::cross_entropy::log_sum_exp(ctx.pool.isa(), row)
                            - row[target as usize]
                    }
                });
            }
        }
        losses
    }
}
