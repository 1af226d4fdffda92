//! The 8-bit embedding: one table, mapped once, gathered from at the input and multiplied by at the output.

use russet_kernels::int8 as kernel;

use super::cross_entropy::{LossTerms, TokenLoss, cross_entropy};
use super::palette::with_quantized;
use crate::{Ctx, Int8Weight, Tensor};
use russet_kernels::{Mat, MatMut, matmul};

/// `tokens [N]` through an 8-bit table `[V, D]` to `[N, D]`. The table is frozen.
pub fn int8_embedding(ctx: &mut Ctx, table: &Int8Weight, tokens: &[u32]) -> Tensor {
    let mut out = ctx.buffer(tokens.len() * table.cols());
    kernel::gather(&ctx.pool, table.view(), tokens, &mut out);
    Tensor::new(&[tokens.len(), table.cols()], out)
}

/// `x [N, D]` by an 8-bit table `[V, D]` to `[N, V]`. The table is frozen; the gradient passes through to x.
pub fn int8_linear(ctx: &mut Ctx, x: &Tensor, table: &Int8Weight) -> Tensor {
    let (tokens, width) = x.dims2();
    let features = table.rows();
    let mut out = ctx.buffer(tokens * features);
    with_quantized(&ctx.pool, x.data(), width, |x| {
        kernel::matmul(&ctx.pool, table.view(), x, &mut out);
    });
    let out = Tensor::new(&[tokens, features], out);
    if ctx.records(&[x]) {
        let (x, table) = (x.handle(), table.clone());
        ctx.record(&out, move |back, d_out| {
            let mut weight = back.buffer(features * width);
            kernel::dequantize(back.pool, table.view(), &mut weight);
            let mut d_x = back.buffer(tokens * width);
            let d_y = Mat::new(d_out.data(), tokens, features);
            matmul(
                back.pool,
                d_y,
                Mat::new(&weight, features, width),
                MatMut::new(&mut d_x, tokens, width),
                false,
            );
            let d_x = Tensor::new(&[tokens, width], d_x);
            back.accumulate(&x, d_x);
        });
    }
    out
}

/// [`cross_entropy`] through a frozen 8-bit table: of the logits that [`int8_linear`] gives, but for the order in which their f32 sums
/// are rounded. `hidden` is rounded as that product rounds it, and the gradient passes straight through the rounding.
pub fn int8_cross_entropy(
    ctx: &mut Ctx,
    hidden: &Tensor,
    table: &Int8Weight,
    targets: &[u32],
    weights: &[f32],
    terms: &LossTerms,
) -> TokenLoss {
    let rounded = rounded(ctx, hidden);
    let mut weight = ctx.buffer(table.rows() * table.cols());
    kernel::dequantize(&ctx.pool, table.view(), &mut weight);
    let weight = Tensor::new(&[table.rows(), table.cols()], weight);
    cross_entropy(ctx, &rounded, &weight, targets, weights, terms)
}

/// What `x [N, D]` is after 8-bit products have rounded it.
fn rounded(ctx: &mut Ctx, x: &Tensor) -> Tensor {
    let (_, width) = x.dims2();
    let mut out = ctx.buffer(x.len());
    with_quantized(&ctx.pool, x.data(), width, |rows| rows.dequantize(&mut out));
    let out = Tensor::new(x.shape(), out);
    if ctx.records(&[x]) {
        let x = x.handle();
        ctx.record(&out, move |back, d_out| back.accumulate(&x, d_out));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::LossTeacher;
    use crate::ops::check::{context, gradient, random};
    use crate::{DType, ops};

    fn table(rows: usize, cols: usize) -> (Int8Weight, Tensor) {
        let dense = random(&[rows, cols], 1);
        let kernel::Quantized { data, scales } =
            kernel::quantize(rows, cols, dense.data()).unwrap();
        let bytes: Vec<u8> = data.iter().map(|&b| b as u8).collect();
        let values = Tensor::from_bytes(DType::I8, &[bytes.len()], bytes).unwrap();
        let scales = Tensor::from_halves(&[scales.len()], scales);
        (Int8Weight::new(rows, cols, values, scales).unwrap(), dense)
    }

    #[test]
    fn gathered_rows_are_the_dense_rows_up_to_rounding() {
        let (table, dense) = table(37, 20);
        let mut ctx = context();
        let got = int8_embedding(&mut ctx, &table, &[36, 0, 5]);
        for (n, row) in [36, 0, 5].into_iter().enumerate() {
            for c in 0..20 {
                let (got, want) = (got.data()[n * 20 + c], dense.data()[row * 20 + c]);
                assert!(
                    (got - want).abs() < 0.02,
                    "row {row}, column {c}: {got}, dense {want}"
                );
            }
        }
    }

    #[test]
    fn the_product_is_the_dense_product_up_to_rounding() {
        let (table, dense) = table(37, 20);
        let x = random(&[3, 20], 2);
        let mut ctx = context();
        let got = int8_linear(&mut ctx, &x, &table);
        let want = ops::linear(&mut ctx, &x, &dense);
        for (got, want) in got.data().iter().zip(want.data()) {
            assert!((got - want).abs() < 0.2, "{got}, dense {want}");
        }
    }

    #[test]
    fn the_gradient_is_exactly_that_of_the_dequantized_product() {
        // Rounding x makes y a staircase, so finite differences cannot judge: the gradient passes straight through it
        // (the straight-through estimator, arXiv 1308.3432), by the weights that the table stands for.
        let (table, dense) = table(37, 20);
        let mut weight = vec![f32::NAN; 37 * 20];
        kernel::dequantize(&context().pool, table.view(), &mut weight);
        let weight = Tensor::new(&[37, 20], weight);
        let off = weight.data().iter().zip(dense.data());
        assert!(off.map(|(w, d)| (w - d).abs()).fold(0.0, f32::max) < 0.02);
        let x = random(&[5, 20], 2);
        let got = gradient(&x, |ctx, x| int8_linear(ctx, x, &table));
        let want = gradient(&x, |ctx, x| ops::linear(ctx, x, &weight));
        assert_eq!(got, want);
    }

    #[test]
    fn the_loss_is_that_of_the_logits_that_are_served() {
        let (table, _) = table(37, 200);
        let x = random(&[5, 200], 2);
        let (targets, weights) = ([3, 36, ops::IGNORE, 0, 7], [0.25; 5]);
        let mut ctx = context();
        let logits = int8_linear(&mut ctx, &x, &table);
        let served: Vec<f32> = logits
            .data()
            .chunks_exact(37)
            .zip(targets)
            .map(|(row, target)| match target {
                ops::IGNORE => 0.0,
                target => {
                    russet_kernels::cross_entropy::log_sum_exp(ctx.pool.isa(), row)
                        - row[target as usize]
                }
            })
            .collect();
        let terms = LossTerms::default();
        let trained = int8_cross_entropy(&mut ctx, &x, &table, &targets, &weights, &terms);
        for (trained, served) in trained.per_token.iter().zip(&served) {
            // Logits of up to 20, whose sums of 200 terms are rounded in another order: some roundings of 2e-6.
            assert!(
                (trained - served).abs() < 2e-5,
                "{trained}, served {served}"
            );
        }
    }

    #[test]
    fn the_gradient_of_the_loss_is_that_of_the_dequantized_table_at_the_rounded_states() {
        let (table, _) = table(37, 20);
        let mut weight = vec![f32::NAN; 37 * 20];
        kernel::dequantize(&context().pool, table.view(), &mut weight);
        let weight = Tensor::new(&[37, 20], weight);
        let (x, taught, teacher) = (
            random(&[5, 20], 2),
            random(&[5, 12], 3),
            random(&[37, 12], 4),
        );
        let terms = LossTerms {
            z_loss: 1e-3,
            teacher: Some((
                LossTeacher::Full {
                    hidden: &taught,
                    table: &teacher,
                    temperature: 1.0,
                },
                0.7,
            )),
        };
        let (targets, weights) = ([3, 36, ops::IGNORE, 0, 7], [0.25; 5]);
        let got = gradient(&x, |ctx, x| {
            int8_cross_entropy(ctx, x, &table, &targets, &weights, &terms).loss
        });
        let at = rounded(&mut context(), &x);
        assert_ne!(at.data(), x.data());
        let want = gradient(&at, |ctx, x| {
            cross_entropy(ctx, x, &weight, &targets, &weights, &terms).loss
        });
        assert_eq!(got, want);
    }
}
