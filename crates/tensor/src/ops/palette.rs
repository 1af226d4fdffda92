//! The product with palettized weights, used as stored.
//!
//! Activations are quantized to 8 bits a block of 128 inputs, products accumulate exactly in 32-bit
//! integers. The weights are frozen: the gradient passes through to x, by the dequantized weights and
//! straight through the rounding of x (the straight-through estimator, arXiv 1308.3432).

use std::cell::RefCell;

use russet_kernels::quantize::QuantizedRows;
use russet_kernels::{Mat, MatMut, Pool, matmul, palette as kernel};

use super::adapters::{INFERENCE, levels};
use super::{add, swiglu};
use crate::segments::Adapted;
use crate::{Ctx, PaletteWeight, Tensor};

/// `x [N, D]` by several palettized matrices that share their inputs, to `[N, sum of rows]`, their outputs side by side.
pub fn palette_linear(ctx: &mut Ctx, x: &Tensor, parts: &[PaletteWeight]) -> Tensor {
    palette_linear_adapted(ctx, x, parts, &[], 0)
}

/// As [`palette_linear`] and then [`super::adapt`], to the same bits, in one job where rows are few.
///
/// # Panics
/// When there are adapters and a gradient would have to pass.
pub fn palette_linear_adapted(
    ctx: &mut Ctx,
    x: &Tensor,
    parts: &[PaletteWeight],
    runs: &[Adapted],
    place: usize,
) -> Tensor {
    let levels = levels(runs, place);
    assert!(levels.is_empty() || !ctx.is_recording(), "{INFERENCE}");
    let (tokens, width) = x.dims2();
    let features: usize = parts.iter().map(PaletteWeight::rows).sum();
    let views: Vec<_> = parts.iter().map(PaletteWeight::view).collect();
    let mut out = ctx.buffer(tokens * features);
    with_quantized(&ctx.pool, x.data(), width, |rounded| {
        if levels.is_empty() {
            kernel::matmul(&ctx.pool, &views, rounded, &mut out);
        } else {
            let x = Mat::new(x.data(), tokens, width);
            kernel::matmul_adapted(&ctx.pool, &views, rounded, &mut out, x, &levels);
        }
    });
    let out = Tensor::new(&[tokens, features], out);
    if ctx.records(&[x]) {
        let (x, parts) = (x.handle(), parts.to_vec());
        ctx.record(&out, move |back, d_out| {
            let mut d_x = back.buffer(tokens * width);
            let mut column = 0;
            for (k, part) in parts.iter().enumerate() {
                let mut weight = back.buffer(part.rows() * width);
                kernel::dequantize(back.pool, part.view(), &mut weight);
                let d_part =
                    Mat::new(d_out.data(), tokens, features).cols(column..column + part.rows());
                let weight = Mat::new(&weight, part.rows(), width);
                matmul(
                    back.pool,
                    d_part,
                    weight,
                    MatMut::new(&mut d_x, tokens, width),
                    k > 0,
                );
                column += part.rows();
            }
            let d_x = Tensor::new(&[tokens, width], d_x);
            back.accumulate(&x, d_x);
        });
    }
    out
}

/// As [`palette_linear_adapted`] and then [`super::add`] of it to `to [N, sum of rows]`, to the same bits. Without adapters and gradients
/// the sum is formed while the products are at hand.
pub fn palette_linear_added(
    ctx: &mut Ctx,
    x: &Tensor,
    parts: &[PaletteWeight],
    (runs, place): (&[Adapted], usize),
    to: &Tensor,
) -> Tensor {
    if !is_alone(ctx, runs, place) {
        let y = palette_linear_adapted(ctx, x, parts, runs, place);
        return add(ctx, to, &y);
    }
    let views: Vec<_> = parts.iter().map(PaletteWeight::view).collect();
    let mut out = ctx.buffer(to.len());
    with_quantized(&ctx.pool, x.data(), x.dims2().1, |rounded| {
        kernel::matmul_added(&ctx.pool, &views, rounded, to.data(), &mut out);
    });
    Tensor::new(to.shape(), out)
}

/// As [`palette_linear_adapted`] of gate and up and then [`super::swiglu`], `[N, F]`, to the same bits. Without adapters and gradients gates
/// and ups are not written where rows are many.
pub fn palette_linear_gated(
    ctx: &mut Ctx,
    x: &Tensor,
    parts: &[PaletteWeight],
    (runs, place): (&[Adapted], usize),
) -> Tensor {
    let [gate, up] = parts else {
        panic!("gate and up are two parts, not {}", parts.len())
    };
    if !is_alone(ctx, runs, place) {
        let y = palette_linear_adapted(ctx, x, parts, runs, place);
        return swiglu(ctx, &y);
    }
    let (tokens, width) = x.dims2();
    let views = [gate.view(), up.view()];
    let mut out = ctx.buffer(tokens * gate.rows());
    with_quantized(&ctx.pool, x.data(), width, |rounded| {
        if kernel::takes_gated(rounded) {
            kernel::matmul_gated(&ctx.pool, &views, rounded, &mut out);
            return;
        }
        let mut both = ctx.workspace().take(2 * out.len());
        kernel::matmul(&ctx.pool, &views, rounded, &mut both);
        russet_kernels::swiglu::forward(&ctx.pool, &both, gate.rows(), &mut out);
    });
    Tensor::new(&[tokens, gate.rows()], out)
}

/// Whether nothing is done to a product but what its operation says.
fn is_alone(ctx: &Ctx, runs: &[Adapted], place: usize) -> bool {
    !ctx.is_recording() && levels(runs, place).is_empty()
}

/// `x [N, D]` as a palettized product sees it: rounded to 8 bits in blocks of 128. The gradient passes straight through.
pub fn rounded(ctx: &mut Ctx, x: &Tensor) -> Tensor {
    let width = x.dims2().1;
    let mut out = ctx.buffer(x.len());
    with_quantized(&ctx.pool, x.data(), width, |rows| rows.dequantize(&mut out));
    let out = Tensor::new(x.shape(), out);
    if ctx.records(&[x]) {
        let x = x.handle();
        ctx.record(&out, move |back, d_out| back.accumulate(&x, d_out));
    }
    out
}

thread_local! {
    /// What this thread rounded last, for its memory: fresh megabytes for every product are a page fault per 4 KiB.
    static QUANTIZED: RefCell<QuantizedRows> = RefCell::default();
}

/// Runs `body` with `x [N, width]` rounded to 8 bits.
pub(super) fn with_quantized<R>(
    pool: &Pool,
    x: &[f32],
    width: usize,
    body: impl FnOnce(&QuantizedRows) -> R,
) -> R {
    let mut rows = QUANTIZED.take();
    rows.set(pool, x, width);
    let result = body(&rows);
    QUANTIZED.set(rows);
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{context, gradient, random};
    use crate::{DType, ops};
    use half::f16;
    use russet_kernels::palette::Bits;

    /// A palettized matrix and the dense matrix that it stands for.
    fn weight(bits: Bits, rows: usize, cols: usize, seed: u64) -> (PaletteWeight, Tensor) {
        let choice = |i: usize| {
            russet_kernels::random::below(seed, 0, i as u64, bits.entries() as u64) as u8
        };
        let width = bits.indices(cols);
        let indices: Vec<u8> = (0..rows * width).map(choice).collect();
        let sizes = kernel::sizes(bits, rows, cols).unwrap();
        let entries = bits.entries();
        let palette: Vec<i8> = (0..sizes.palette)
            .map(|i| ((i % entries) * 255 / (entries - 1)) as u8 as i8)
            .collect();
        let scales: Vec<f16> = (0..sizes.scales)
            .map(|r| f16::from_f32(0.001 * (1 + r % 3) as f32))
            .collect();
        let dense = Tensor::from_fn(&[rows, cols], |i| {
            let (row, col) = (i / cols, i % cols);
            let (number, half) = match bits.dims() {
                1 => (col, 0),
                _ => (col / 8 * 4 + col % 4, col / 4 % 2),
            };
            let entry = half * entries + usize::from(indices[row * width + number]);
            scales[row].to_f32() * palette[row / 16 * bits.table() + entry] as f32
        });
        let bytes = |data: &[i8]| data.iter().map(|&b| b as u8).collect();
        let packed = kernel::pack(bits, rows, cols, &indices).unwrap();
        let weight = PaletteWeight::new(
            bits,
            rows,
            cols,
            Tensor::from_bytes(DType::U8, &[sizes.indices], packed).unwrap(),
            Tensor::from_bytes(DType::I8, &[sizes.palette], bytes(&palette)).unwrap(),
            Tensor::from_halves(&[sizes.scales], scales),
        );
        (weight.unwrap(), dense)
    }

    #[test]
    fn it_equals_the_dense_product_up_to_the_rounding_of_x() {
        let (a, dense_a) = weight(Bits::Four, 20, 130, 1);
        let (b, dense_b) = weight(Bits::Three, 32, 130, 2);
        let x = random(&[5, 130], 3);
        let mut ctx = context();
        let y = palette_linear(&mut ctx, &x, &[a, b]);
        for (columns, dense) in [(0..20, dense_a), (20..52, dense_b)] {
            let want = ops::linear(&mut ctx, &x, &dense);
            for n in 0..5 {
                for c in columns.clone() {
                    let (got, want) = (
                        y.data()[n * 52 + c],
                        want.data()[n * columns.len() + c - columns.start],
                    );
                    // Each of 130 inputs is off by at most max|x|/254, about 0.012, times weights of up to 0.38.
                    assert!(
                        (got - want).abs() < 0.15,
                        "token {n}, output {c}: {got}, dense {want}"
                    );
                }
            }
        }
    }

    #[test]
    fn its_gradient_is_exactly_that_of_the_dense_product() {
        // Rounding x makes y a staircase, so finite differences cannot judge: the gradient is defined as the dense one's.
        for bits in Bits::ALL {
            let (a, dense) = weight(bits, 20, 130, 1);
            let x = random(&[5, 130], 3);
            let got = gradient(&x, |ctx, x| {
                palette_linear(ctx, x, std::slice::from_ref(&a))
            });
            let want = gradient(&x, |ctx, x| ops::linear(ctx, x, &dense));
            assert_eq!(got, want, "{bits:?}");
        }
    }

    #[test]
    fn the_gradient_of_parts_is_that_of_the_dense_matrix_they_stack_up_to() {
        let (a, dense_a) = weight(Bits::Four, 20, 130, 1);
        let (b, dense_b) = weight(Bits::Two, 32, 130, 2);
        let stacked = Tensor::new(&[52, 130], [dense_a.data(), dense_b.data()].concat());
        let x = random(&[5, 130], 3);
        let parts = [a, b];
        let got = gradient(&x, |ctx, x| palette_linear(ctx, x, &parts));
        let want = gradient(&x, |ctx, x| ops::linear(ctx, x, &stacked));
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            // Sums of 52 terms of up to 0.4, the same ones added in two parts instead of one: a few roundings of 6e-8.
            assert!((got - want).abs() < 2e-6, "d_x[{i}]: {got}, dense {want}");
        }
    }
}
