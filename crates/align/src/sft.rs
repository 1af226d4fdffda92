//! Fine-tuning on conversations: the next-token loss on what the assistant says.
//!
//! ```text
//! loss = 1/M Σ -log p(target | its conversation so far)        over the M learnt tokens of a step
//! ```
//! The loss itself is pre-training's [`russet_train::NextToken`]; what is different is which targets count
//! ([`crate::data`]). Here is only how held-out conversations are measured.

use russet_model::Decoder;
use russet_tensor::Ctx;
use russet_tensor::ops::IGNORE;
use russet_train::validation::GoesOn;
use russet_train::{Batch, Measured, VALIDATION_LOSS};

/// Mean loss of the learnt tokens of held-out conversations, as [`VALIDATION_LOSS`]; none where told to stop.
pub fn measure(
    passes: &[Batch],
    ctx: &mut Ctx,
    decoder: &Decoder,
    goes_on: &mut GoesOn,
) -> Option<Measured> {
    let (mut sum, mut learnt) = (0.0, 0u64);
    for (number, pass) in passes.iter().enumerate() {
        if !goes_on(number as f64 / passes.len() as f64) {
            return None;
        }
        let hidden = decoder.forward(ctx, &pass.tokens, &pass.segments, None); // [N, D]
        let losses = decoder.token_losses(ctx, &hidden, &pass.targets); // 0 where ignored
        sum += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
        learnt += pass
            .targets
            .iter()
            .filter(|&&target| target != IGNORE)
            .count() as u64;
    }
    Some(vec![(VALIDATION_LOSS, sum / learnt.max(1) as f64)])
}
