//! The dense product `y = x Wᵀ`.

use russet_kernels::{Mat, MatMut, matmul};

use crate::{Ctx, Tensor};

/// `x [N, D]` by `weight [F, D]` to `[N, F]`.
pub fn linear(ctx: &mut Ctx, x: &Tensor, weight: &Tensor) -> Tensor {
    let (tokens, width) = x.dims2();
    let (features, inputs) = weight.dims2();
    assert_eq!(
        width,
        inputs,
        "a product of {:?} by the transpose of {:?}",
        x.shape(),
        weight.shape()
    );
    let mut out = ctx.buffer(tokens * features);
    let w = Mat::new(weight.data(), features, width);
    matmul(
        &ctx.pool,
        Mat::new(x.data(), tokens, width),
        w.t(),
        MatMut::new(&mut out, tokens, features),
        false,
    );
    let out = Tensor::new(&[tokens, features], out);
    if ctx.records(&[x, weight]) {
        let (x, weight) = (x.clone(), weight.clone());
        ctx.record(&out, move |back, d_out| {
            let d_y = Mat::new(d_out.data(), tokens, features);
            if back.wants(&weight) {
                // d_W += d_yᵀ x
                back.accumulate_with(&weight, |pool, sum| {
                    let x = Mat::new(x.data(), tokens, width);
                    matmul(pool, d_y.t(), x, MatMut::new(sum, features, width), true);
                });
            }
            if back.wants(&x) {
                // d_x = d_y W
                let mut d_x = back.buffer(x.len());
                let w = Mat::new(weight.data(), features, width);
                matmul(
                    back.pool,
                    d_y,
                    w,
                    MatMut::new(&mut d_x, tokens, width),
                    false,
                );
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
        check_gradients(&[random(&[5, 7], 1), random(&[9, 7], 2)], |ctx, x| {
            super::linear(ctx, &x[0], &x[1])
        });
    }

    #[test]
    fn a_weight_used_twice_gets_both_gradients() {
        check_gradients(&[random(&[5, 7], 1), random(&[7, 7], 2)], |ctx, x| {
            let y = super::linear(ctx, &x[0], &x[1]);
            super::linear(ctx, &y, &x[1])
        });
    }
}
