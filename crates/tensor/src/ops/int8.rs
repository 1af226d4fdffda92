//! The 8-bit embedding: one table, mapped once, gathered from at the input and multiplied by at the output.

use russet_kernels::int8 as kernel;

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

#[cfg(test)]
mod tests {
    use super::*;
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
}
