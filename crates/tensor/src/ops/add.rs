//! The residual sum.

use russet_kernels::elementwise;

use crate::{Ctx, Tensor};

/// `a + b`, both `[N, D]`.
pub fn add(ctx: &mut Ctx, a: &Tensor, b: &Tensor) -> Tensor {
    assert_eq!(a.shape(), b.shape(), "a sum needs equal shapes");
    let mut out = ctx.buffer(a.len());
    elementwise::add(&ctx.pool, a.data(), b.data(), &mut out);
    let out = Tensor::new(a.shape(), out);
    if ctx.records(&[a, b]) {
        let (a, b) = (a.handle(), b.handle());
        // d_a = d_b = d_out
        ctx.record(&out, move |back, d_out| {
            if back.wants(&a) {
                back.accumulate(&a, d_out.clone());
            }
            if back.wants(&b) {
                back.accumulate(&b, d_out);
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
        check_gradients(&[random(&[3, 5], 1), random(&[3, 5], 2)], |ctx, x| {
            super::add(ctx, &x[0], &x[1])
        });
    }

    #[test]
    fn a_tensor_added_to_itself_gets_both_gradients() {
        check_gradients(&[random(&[3, 5], 1)], |ctx, x| {
            super::add(ctx, &x[0], &x[0])
        });
    }
}
