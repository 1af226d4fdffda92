//! A soft choice of k columns, and columns scaled by it. The formula stands at [`russet_kernels::mask`].

use russet_kernels::mask as kernel;

use crate::{Ctx, Tensor};

/// `scores [n]` to λ `[n]`, the soft top-k mask of sharpness ε.
pub fn soft_top_k(ctx: &mut Ctx, scores: &Tensor, k: usize, epsilon: f64) -> Tensor {
    let mut mask = ctx.buffer(scores.len());
    kernel::soft_top_k(scores.data(), k, epsilon, &mut mask);
    let mask = Tensor::new(scores.shape(), mask);
    if ctx.records(&[scores]) {
        let (scores, kept) = (scores.handle(), mask.clone());
        ctx.record(&mask, move |back, d_mask| {
            let mut d_scores = back.buffer(kept.len());
            kernel::soft_top_k_backward(kept.data(), epsilon, d_mask.data(), &mut d_scores);
            back.accumulate(&scores, Tensor::new(kept.shape(), d_scores));
        });
    }
    mask
}

/// `x [N, C]` with column c times `factors[c]`.
pub fn scale_columns(ctx: &mut Ctx, x: &Tensor, factors: &Tensor) -> Tensor {
    let (_, width) = x.dims2();
    assert_eq!(factors.shape(), [width], "a factor for each column");
    let mut out = ctx.buffer(x.len());
    kernel::scale_columns(&ctx.pool, x.data(), factors.data(), &mut out);
    let out = Tensor::new(x.shape(), out);
    if ctx.records(&[x, factors]) {
        let (x, factors) = (x.clone(), factors.clone());
        ctx.record(&out, move |back, d_out| {
            if back.wants(&factors) {
                let mut d_factors = back.buffer(factors.len());
                kernel::column_dots(back.pool, x.data(), d_out.data(), &mut d_factors);
                back.accumulate(&factors, Tensor::new(factors.shape(), d_factors));
            }
            if back.wants(&x) {
                let mut d_x = back.buffer(x.len());
                kernel::scale_columns(back.pool, d_out.data(), factors.data(), &mut d_x);
                back.accumulate(&x, Tensor::new(x.shape(), d_x));
            }
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use crate::ops::check::{check_gradients, random};

    #[test]
    fn gradients_of_the_mask_equal_finite_differences() {
        for k in [1, 5, 8] {
            check_gradients(&[random(&[9], 1)], |ctx, x| {
                super::soft_top_k(ctx, &x[0], k, 0.7)
            });
        }
    }

    #[test]
    fn gradients_through_masked_columns_equal_finite_differences() {
        check_gradients(&[random(&[4, 9], 2), random(&[9], 1)], |ctx, x| {
            let mask = super::soft_top_k(ctx, &x[1], 4, 1.0);
            super::scale_columns(ctx, &x[0], &mask)
        });
    }
}
