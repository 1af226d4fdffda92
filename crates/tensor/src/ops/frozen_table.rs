//! A package's table: mapped once, gathered from at the input and multiplied by at the output, in whichever form it is stored.
//!
//! The gradient passes through to the hidden states, by the weights that the table stands for and straight through the rounding of
//! activations (the straight-through estimator, arXiv 1308.3432). Left out: a gradient for the table, which is frozen.

use russet_kernels::{Mat, MatMut, matmul};

use super::cross_entropy::{LossTerms, TokenLoss, cross_entropy};
use super::palette::{rounded, with_quantized};
use crate::{Ctx, FrozenTable, Tensor};

/// `tokens [N]` through a frozen table `[V, D]` to `[N, D]`, exact.
pub fn frozen_embedding(ctx: &mut Ctx, table: &FrozenTable, tokens: &[u32]) -> Tensor {
    let mut out = ctx.buffer(tokens.len() * table.cols());
    table.gather(&ctx.pool, tokens, &mut out);
    Tensor::new(&[tokens.len(), table.cols()], out)
}

/// `x [N, D]` by a frozen table `[V, D]` to `[N, V]`. The gradient passes through to x.
pub fn frozen_linear(ctx: &mut Ctx, x: &Tensor, table: &FrozenTable) -> Tensor {
    let (tokens, width) = x.dims2();
    let features = table.rows();
    let mut out = ctx.buffer(tokens * features);
    with_quantized(&ctx.pool, x.data(), width, |x| {
        table.multiply(&ctx.pool, x, &mut out);
    });
    let out = Tensor::new(&[tokens, features], out);
    if ctx.records(&[x]) {
        let (x, table) = (x.handle(), table.clone());
        ctx.record(&out, move |back, d_out| {
            let mut weight = back.buffer(features * width);
            table.dequantize(back.pool, &mut weight);
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

/// [`cross_entropy`] through a frozen table: of the logits that [`frozen_linear`] gives, but for the order in which their f32 sums
/// are rounded. `hidden` is rounded as that product rounds it, and the gradient passes straight through the rounding.
pub fn frozen_cross_entropy(
    ctx: &mut Ctx,
    hidden: &Tensor,
    table: &FrozenTable,
    targets: &[u32],
    weights: &[f32],
    terms: &LossTerms,
) -> TokenLoss {
    let rounded = rounded(ctx, hidden);
    let mut weight = ctx.buffer(table.rows() * table.cols());
    table.dequantize(&ctx.pool, &mut weight);
    let weight = Tensor::new(&[table.rows(), table.cols()], weight);
    cross_entropy(ctx, &rounded, &weight, targets, weights, terms)
}

#[cfg(test)]
mod tests {
    use half::f16;
    use russet_kernels::palette::Bits;
    use russet_kernels::{int8, palette};

    use super::*;
    use crate::ops::LossTeacher;
    use crate::ops::check::{context, gradient, random};
    use crate::{DType, Int8Weight, PaletteWeight, ops};

    fn bytes(values: &[i8]) -> Tensor {
        let bytes: Vec<u8> = values.iter().map(|&value| value as u8).collect();
        Tensor::from_bytes(DType::I8, &[bytes.len()], bytes).unwrap()
    }

    /// Random weights in each form of table, with the weights that they stand for: told by a formula, not by a kernel.
    fn tables(rows: usize, cols: usize) -> Vec<(FrozenTable, Tensor)> {
        let dense = random(&[rows, cols], 1);
        let int8::Quantized { data, scales } = int8::quantize(rows, cols, dense.data()).unwrap();
        let values = int8::unpack(rows, cols, &data).unwrap();
        let stands_for = Tensor::from_fn(&[rows, cols], |at| {
            scales[at / cols].to_f32() * f32::from(values[at])
        });
        let halves = |scales: Vec<f16>| Tensor::from_halves(&[scales.len()], scales);
        let table = Int8Weight::new(rows, cols, bytes(&data), halves(scales)).unwrap();
        let mut tables = vec![(FrozenTable::Int8(table), stands_for)];
        for bits in [Bits::Four, Bits::Two] {
            // Entries spread evenly, another set for each strip; the nearest one is as good as any here.
            let (sizes, count) = (palette::sizes(bits, rows, cols).unwrap(), bits.entries());
            let entry = |at: usize| {
                ((at % count * 240 / (count - 1)) as i32 - 120 + (at / count) as i32) as i8
            };
            let palettes: Vec<i8> = (0..sizes.palette).map(entry).collect();
            let scale = |row: usize| f16::from_f32(0.01 + 0.001 * (row % 3) as f32);
            let number =
                |at: usize| russet_kernels::random::below(2, 0, at as u64, count as u64) as u8;
            let indices: Vec<u8> = (0..rows * cols).map(number).collect();
            let stands_for = Tensor::from_fn(&[rows, cols], |at| {
                let row = at / cols;
                let entry = palettes[row / palette::STRIP * count + usize::from(indices[at])];
                scale(row).to_f32() * f32::from(entry)
            });
            let packed = palette::pack(bits, rows, cols, &indices).unwrap();
            let indices = Tensor::from_bytes(DType::U8, &[packed.len()], packed).unwrap();
            let scales = halves((0..sizes.scales).map(scale).collect());
            let table = PaletteWeight::new(bits, rows, cols, indices, bytes(&palettes), scales);
            tables.push((FrozenTable::Palette(table.unwrap()), stands_for));
        }
        tables
    }

    #[test]
    fn gathered_rows_are_exactly_what_the_table_stands_for() {
        // The last strip is not full.
        for (table, dense) in tables(37, 20) {
            let got = frozen_embedding(&mut context(), &table, &[36, 0, 5, 36]);
            for (got, row) in got.data().chunks(20).zip([36, 0, 5, 36]) {
                assert_eq!(got, &dense.data()[row * 20..][..20], "row {row}");
            }
        }
    }

    #[test]
    fn the_product_is_the_dense_product_up_to_rounding() {
        for (table, dense) in tables(37, 20) {
            let x = random(&[3, 20], 2);
            let mut ctx = context();
            let got = frozen_linear(&mut ctx, &x, &table);
            let want = ops::linear(&mut ctx, &x, &dense);
            for (got, want) in got.data().iter().zip(want.data()) {
                // Each of 20 inputs is off by at most max|x|/254, about 0.01, times weights of up to 3.
                assert!((got - want).abs() < 0.2, "{got}, dense {want}");
            }
        }
    }

    #[test]
    fn a_token_is_the_same_alone_and_among_others() {
        for (table, _) in tables(37, 200) {
            let x = random(&[40, 200], 2);
            let mut ctx = context();
            let all = frozen_linear(&mut ctx, &x, &table);
            for (x, want) in x.data().chunks(200).zip(all.data().chunks(37)) {
                let got = frozen_linear(&mut ctx, &Tensor::new(&[1, 200], x.to_vec()), &table);
                assert_eq!(got.data(), want);
            }
        }
    }

    #[test]
    fn the_gradient_is_exactly_that_of_the_dequantized_product() {
        // Rounding x makes y a staircase, so finite differences cannot judge.
        for (table, dense) in tables(37, 20) {
            let x = random(&[5, 20], 2);
            let got = gradient(&x, |ctx, x| frozen_linear(ctx, x, &table));
            let want = gradient(&x, |ctx, x| ops::linear(ctx, x, &dense));
            assert_eq!(got, want);
        }
    }

    #[test]
    fn the_loss_is_that_of_the_logits_that_are_served() {
        for (table, _) in tables(37, 200) {
            let x = random(&[5, 200], 2);
            let (targets, weights) = ([3, 36, ops::IGNORE, 0, 7], [0.25; 5]);
            let mut ctx = context();
            let logits = frozen_linear(&mut ctx, &x, &table);
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
            let trained = frozen_cross_entropy(&mut ctx, &x, &table, &targets, &weights, &terms);
            for (trained, served) in trained.per_token.iter().zip(&served) {
                // Logits of up to 20, whose sums of 200 terms are rounded in another order: some roundings of 2e-6.
                assert!(
                    (trained - served).abs() < 2e-5,
                    "{trained}, served {served}"
                );
            }
        }
    }

    #[test]
    fn the_gradient_of_the_loss_is_that_of_the_dense_table_at_the_rounded_states() {
        for (table, dense) in tables(37, 20) {
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
                frozen_cross_entropy(ctx, x, &table, &targets, &weights, &terms).loss
            });
            let at = rounded(&mut context(), &x);
            assert_ne!(at.data(), x.data());
            let want = gradient(&at, |ctx, x| {
                cross_entropy(ctx, x, &dense, &targets, &weights, &terms).loss
            });
            assert_eq!(got, want);
        }
    }

    #[test]
    fn a_look_up_reads_a_row_its_scale_and_its_palette() {
        let bytes: Vec<usize> = tables(37, 21)
            .iter()
            .map(|(table, _)| table.row_bytes())
            .collect();
        // 21 bytes, 11 of nibbles and 6 of four each; f16 scales; 16 entries and 4.
        assert_eq!(bytes, [21 + 2, 11 + 2 + 16, 6 + 2 + 4]);
    }
}
