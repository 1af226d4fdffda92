//! Next-token loss without the logits of all tokens at once.
//!
//! `loss = Σₙ weightₙ · (logsumexp(zₙ) − zₙ[targetₙ])` with `zₙ = hiddenₙ · tableᵀ`. The logits `[N, V]`
//! exist a chunk of rows at a time; while a tape runs, their gradient is formed in the same visit.

use russet_kernels::cross_entropy as kernel;
use russet_kernels::elementwise;

use crate::{Ctx, Node, Tensor};

/// What [`cross_entropy`] returns.
pub struct TokenLoss {
    /// The weighted sum, one number.
    pub loss: Tensor,
    /// Each token's own loss in nats, 0 where the target is ignored, `[N]`.
    pub per_token: Vec<f32>,
}

/// The loss of `hidden [N, D]` against `targets [N]` through the output table `[V, D]`.
/// A target of [`crate::ops::IGNORE`] counts nothing.
pub fn cross_entropy(
    ctx: &mut Ctx,
    hidden: &Tensor,
    table: &Tensor,
    targets: &[u32],
    weights: &[f32],
) -> TokenLoss {
    let (tokens, _) = hidden.dims2();
    assert_eq!(
        (targets.len(), weights.len()),
        (tokens, tokens),
        "a target and a weight for each token"
    );
    if !ctx.records(&[hidden, table]) {
        let per_token = token_losses(ctx, hidden, table, targets);
        return TokenLoss {
            loss: weighted_sum(&per_token, weights),
            per_token,
        };
    }
    let mut per_token = vec![0.0; tokens];
    let mut d_hidden = ctx.buffer(hidden.len());
    let mut d_table = ctx.zeros(table.len());
    let (h, w) = (hidden.data(), table.data());
    kernel::forward_backward(
        &ctx.pool,
        ctx.compute,
        h,
        w,
        targets,
        weights,
        &mut per_token,
        &mut d_hidden,
        &mut d_table,
    );
    let loss = weighted_sum(&per_token, weights);
    let (hidden, table) = (hidden.handle(), table.handle());
    ctx.record(&loss, move |back, d_loss| {
        let factor = d_loss.data()[0];
        for (tensor, mut gradient) in [(hidden, d_hidden), (table, d_table)] {
            if back.wants(&tensor) {
                if factor != 1.0 {
                    elementwise::scale_in_place(back.pool, &mut gradient, factor);
                }
                let gradient = Tensor::new(tensor.shape(), gradient);
                back.accumulate(&tensor, gradient);
            }
        }
    });
    TokenLoss { loss, per_token }
}

/// Each token's loss in nats, `[N]`, without gradients.
pub fn token_losses(ctx: &mut Ctx, hidden: &Tensor, table: &Tensor, targets: &[u32]) -> Vec<f32> {
    let mut losses = vec![0.0; targets.len()];
    kernel::forward(
        &ctx.pool,
        ctx.compute,
        hidden.data(),
        table.data(),
        targets,
        &mut losses,
    );
    losses
}

fn weighted_sum(losses: &[f32], weights: &[f32]) -> Tensor {
    let sum: f64 = losses
        .iter()
        .zip(weights)
        .map(|(&l, &w)| l as f64 * w as f64)
        .sum();
    Tensor::new(&[1], vec![sum as f32])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::IGNORE;
    use crate::ops::check::{check_gradients, random};

    #[test]
    fn gradients_equal_finite_differences() {
        check_gradients(&[random(&[4, 6], 1), random(&[11, 6], 2)], |ctx, x| {
            cross_entropy(
                ctx,
                &x[0],
                &x[1],
                &[3, IGNORE, 10, 0],
                &[0.5, 1.0, 0.25, 2.0],
            )
            .loss
        });
    }
}
