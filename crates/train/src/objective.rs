//! What is learnt: a loss from a batch.

use russet_model::Decoder;
use russet_tensor::Ctx;
use russet_tensor::ops::TokenLoss;

use crate::loader::Batch;

/// A loss that training lowers. It may hold what it needs besides the decoder: a reference model, a teacher.
pub trait Objective {
    /// The batch's share of the step's loss, recorded on the context's tape: the losses of all micro-batches of a step add
    /// up to the step's loss.
    fn loss(&self, decoder: &Decoder, ctx: &mut Ctx, batch: &Batch) -> TokenLoss;

    /// What else there is to log of the step whose micro-batches have all been through; mostly nothing.
    fn facts(&self) -> Vec<(&'static str, f64)> {
        Vec::new()
    }
}

/// `Σₙ weightₙ · (-log p(targetₙ | its document so far))`, in nats: pre-training, and supervised fine-tuning with other
/// weights.
#[derive(Clone, Copy, Debug, Default)]
pub struct NextToken;

impl Objective for NextToken {
    fn loss(&self, decoder: &Decoder, ctx: &mut Ctx, batch: &Batch) -> TokenLoss {
        let hidden = decoder.forward(ctx, &batch.tokens, &batch.segments, None); // [N, D]
        decoder.loss(ctx, &hidden, &batch.targets, &batch.weights)
    }
}
