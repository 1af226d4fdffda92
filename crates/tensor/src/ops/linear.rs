//! The dense product `y = x Wᵀ`, multiplied in the context's type.

use russet_kernels::{Mat, MatMut, matmul_in};

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
    matmul_in(
        &ctx.pool,
        ctx.compute,
        Mat::new(x.data(), tokens, width),
        w.t(),
        MatMut::new(&mut out, tokens, features),
        false,
    );
    let out = Tensor::new(&[tokens, features], out);
    if ctx.records(&[x, weight]) {
        // The gradient of a frozen weight is not wanted, so x is not either.
        let values = ctx.records(&[weight]).then(|| x.kept());
        let (x, weight) = (x.handle(), weight.kept());
        ctx.record(&out, move |back, d_out| {
            let d_y = Mat::new(d_out.data(), tokens, features);
            let compute = back.compute;
            if let Some(values) = values {
                // d_W += d_yᵀ x
                let x = back.values(&values);
                back.accumulate_with(&weight, |pool, sum| {
                    let x = Mat::new(x.data(), tokens, width);
                    matmul_in(
                        pool,
                        compute,
                        d_y.t(),
                        x,
                        MatMut::new(sum, features, width),
                        true,
                    );
                });
            }
            if back.wants(&x) {
                // d_x = d_y W
                let mut d_x = back.buffer(tokens * width);
                let weight = back.values(&weight);
                let w = Mat::new(weight.data(), features, width);
                matmul_in(
                    back.pool,
                    back.compute,
                    d_y,
                    w,
                    MatMut::new(&mut d_x, tokens, width),
                    false,
                );
                let d_x = Tensor::new(&[tokens, width], d_x);
                back.accumulate(&x, d_x);
            }
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use crate::ops::check::{check_gradients, context, random};
    use crate::{Gradients, Tensor};
    use russet_kernels::Compute;

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

    #[test]
    fn in_bf16_all_three_products_are_of_rounded_operands() {
        // A product with the identity shows the rounding of each operand alone.
        let identity = |n: usize| Tensor::from_fn(&[n, n], |i| f32::from(u8::from(i / n == i % n)));
        let rounded = |t: &Tensor| -> Vec<f32> {
            let half = |&x: &f32| half::bf16::from_f32(x).to_f32();
            t.data().iter().map(half).collect()
        };
        let (x, w) = (random(&[6, 6], 1), identity(6));
        let mut ctx = context();
        ctx.compute = Compute::Bf16;
        assert_eq!(super::linear(&mut ctx, &x, &w).data(), rounded(&x));
        // loss = Σ y · c by way of a second product, so that the gradient of y is c.
        let (weight, c) = (random(&[6, 6], 2), random(&[6, 6], 3));
        for wanted in [&x, &weight] {
            let mut gradients = Gradients::default();
            let other = identity(6);
            ctx.start_tape([wanted.id()]);
            let y = if wanted.id() == x.id() {
                super::linear(&mut ctx, &x, &other)
            } else {
                super::linear(&mut ctx, &other, &weight)
            };
            let sum = y
                .data()
                .iter()
                .zip(c.data())
                .map(|(y, c)| y * c)
                .sum::<f32>();
            let loss = Tensor::new(&[1], vec![sum]);
            let (y, d_y) = (y.handle(), c.clone());
            ctx.record(&loss, move |back, _| back.accumulate(&y, d_y));
            ctx.backward(&loss, 1.0, &mut gradients);
            let mut want = rounded(&c);
            if wanted.id() == weight.id() {
                want = (0..36).map(|i| want[i % 6 * 6 + i / 6]).collect(); // dW = dYᵀ
            }
            assert_eq!(gradients.get(wanted).unwrap().data(), want);
        }
    }
}
