//! Root-mean-square normalisation, `y = x / sqrt(mean(x²) + ε) · w` (arXiv 1910.07467).

use std::sync::Arc;

use russet_kernels::{Pool, norm};

use crate::tensor::Recipe;
use crate::{Ctx, Tensor};

/// Normalises each row of `x [N, D]` and multiplies by `weight [D]`.
pub fn rms_norm(ctx: &mut Ctx, x: &Tensor, weight: &Tensor, epsilon: f32) -> Tensor {
    let (tokens, _) = x.dims2();
    let mut out = ctx.buffer(x.len());
    let mut inv_rms = ctx.buffer(tokens);
    norm::rms_norm_forward(
        &ctx.pool,
        x.data(),
        weight.data(),
        epsilon,
        &mut out,
        &mut inv_rms,
    );
    let mut out = Tensor::new(x.shape(), out);
    if ctx.records(&[x, weight]) {
        let (x, weight) = (x.clone(), weight.clone());
        let recipe: Arc<Recipe> = Arc::new({
            // x is kept for the derivative here; the products behind it need not keep its norm too.
            let (x, weight) = (x.clone(), weight.clone());
            move |pool, workspace| {
                let (mut out, mut inv_rms) = (workspace.take(x.len()), vec![0.0; tokens]);
                let (values, weight) = (x.data(), weight.data());
                norm::rms_norm_forward(pool, values, weight, epsilon, &mut out, &mut inv_rms);
                Tensor::new(x.shape(), out)
            }
        });
        out = out.computed_by(&recipe);
        ctx.record(&out, move |back, d_out| {
            drop(recipe);
            let mut d_x = back.buffer(x.len());
            let mut derive = |pool: &Pool, d_weight: &mut [f32]| {
                norm::rms_norm_backward(
                    pool,
                    x.data(),
                    weight.data(),
                    &inv_rms,
                    d_out.data(),
                    &mut d_x,
                    d_weight,
                );
            };
            if back.wants(&weight) {
                back.accumulate_with(&weight, derive);
            } else {
                derive(back.pool, &mut vec![0.0; weight.len()]);
            }
            if back.wants(&x) {
                let d_x = Tensor::new(x.shape(), d_x);
                back.accumulate(&x, d_x);
            }
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use crate::ops::check::{check_gradients, random};

    #[test]
    fn gradients_equal_finite_differences() {
        check_gradients(&[random(&[4, 24], 1), random(&[24], 2)], |ctx, x| {
            super::rms_norm(ctx, &x[0], &x[1], 1e-5)
        });
    }
}
