//! Low-rank adapters: `y += scale · (x Aᵀ) Bᵀ` on some of the output columns (arXiv 2106.09685).

use std::ops::Range;

use russet_kernels::{Mat, MatMut, elementwise, matmul_in};

use crate::{Ctx, Tensor};

/// The adapter of one named projection, which is a range of columns of a packed product.
#[derive(Clone)]
pub struct LoraPart {
    /// The columns of y that it adds to.
    pub columns: Range<usize>,
    /// `[R, D]`, the way down.
    pub a: Tensor,
    /// `[columns, R]`, the way up.
    pub b: Tensor,
    /// What the product is multiplied by, `alpha / rank`.
    pub scale: f32,
}

/// `base [N, F]` plus what the adapters make of `x [N, D]`. The base's buffer is reused where nothing else holds it.
pub fn lora(ctx: &mut Ctx, base: Tensor, x: &Tensor, parts: &[LoraPart]) -> Tensor {
    let (tokens, width) = x.dims2();
    let (_, features) = base.dims2();
    let base_handle = base.handle();
    let mut out = base.into_buffer(|len| ctx.buffer(len));
    let mut downs = Vec::with_capacity(parts.len());
    for part in parts {
        let (rank, _) = part.a.dims2();
        let mut down = ctx.buffer(tokens * rank); // x Aᵀ, scaled
        let a = Mat::new(part.a.data(), rank, width);
        matmul_in(
            &ctx.pool,
            ctx.compute,
            Mat::new(x.data(), tokens, width),
            a.t(),
            MatMut::new(&mut down, tokens, rank),
            false,
        );
        elementwise::scale_in_place(&ctx.pool, &mut down, part.scale);
        let b = Mat::new(part.b.data(), part.columns.len(), rank);
        let y = MatMut::new(&mut out, tokens, features).cols(part.columns.clone());
        matmul_in(
            &ctx.pool,
            ctx.compute,
            Mat::new(&down, tokens, rank),
            b.t(),
            y,
            true,
        );
        downs.push(down);
    }
    let out = Tensor::new(&[tokens, features], out);
    let adapted = parts.iter().any(|part| ctx.records(&[&part.a, &part.b]));
    if adapted || ctx.records(&[x, &base_handle]) {
        let (x, parts) = (x.kept(), parts.to_vec());
        ctx.record(&out, move |back, d_out| {
            let d_y = Mat::new(d_out.data(), tokens, features);
            let compute = back.compute;
            let values = back.values(&x);
            for (part, down) in parts.iter().zip(downs) {
                let (rank, _) = part.a.dims2();
                let d_columns = d_y.cols(part.columns.clone());
                if back.wants(&part.b) {
                    // d_B += d_yᵀ (scale x Aᵀ)
                    back.accumulate_with(&part.b, |pool, sum| {
                        let sum = MatMut::new(sum, part.columns.len(), rank);
                        matmul_in(
                            pool,
                            compute,
                            d_columns.t(),
                            Mat::new(&down, tokens, rank),
                            sum,
                            true,
                        );
                    });
                }
                let mut d_down = back.buffer(tokens * rank); // scale d_y B
                let b = Mat::new(part.b.data(), part.columns.len(), rank);
                matmul_in(
                    back.pool,
                    compute,
                    d_columns,
                    b,
                    MatMut::new(&mut d_down, tokens, rank),
                    false,
                );
                elementwise::scale_in_place(back.pool, &mut d_down, part.scale);
                if back.wants(&part.a) {
                    back.accumulate_with(&part.a, |pool, sum| {
                        let x = Mat::new(values.data(), tokens, width);
                        matmul_in(
                            pool,
                            compute,
                            Mat::new(&d_down, tokens, rank).t(),
                            x,
                            MatMut::new(sum, rank, width),
                            true,
                        );
                    });
                }
                if back.wants(&x) {
                    back.accumulate_with(&x, |pool, sum| {
                        let a = Mat::new(part.a.data(), rank, width);
                        matmul_in(
                            pool,
                            compute,
                            Mat::new(&d_down, tokens, rank),
                            a,
                            MatMut::new(sum, tokens, width),
                            true,
                        );
                    });
                }
            }
            if back.wants(&base_handle) {
                back.accumulate(&base_handle, d_out);
            }
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{check_gradients, random};

    #[test]
    fn gradients_equal_finite_differences() {
        let inputs = [
            random(&[5, 7], 1),
            random(&[5, 9], 2),
            random(&[2, 7], 3),
            random(&[4, 2], 4),
            random(&[3, 7], 5),
            random(&[3, 3], 6),
        ];
        check_gradients(&inputs, |ctx, t| {
            let part = |columns, a: usize, scale| LoraPart {
                columns,
                a: t[a].clone(),
                b: t[a + 1].clone(),
                scale,
            };
            lora(
                ctx,
                t[1].clone(),
                &t[0],
                &[part(0..4, 2, 0.5), part(6..9, 4, 2.0)],
            )
        });
    }
}
