//! A choice of rows: the last token of each sequence, before the product with the vocabulary.

use crate::{Ctx, Tensor};

/// Rows `picked` of `x [N, D]`, `[M, D]`.
pub fn rows(ctx: &mut Ctx, x: &Tensor, picked: &[usize]) -> Tensor {
    let (_, width) = x.dims2();
    let mut out = ctx.buffer(picked.len() * width);
    for (row, &n) in out.chunks_exact_mut(width).zip(picked) {
        row.copy_from_slice(&x.data()[n * width..][..width]);
    }
    let out = Tensor::new(&[picked.len(), width], out);
    if ctx.records(&[x]) {
        let (x, picked) = (x.handle(), picked.to_vec());
        ctx.record(&out, move |back, d_out| {
            back.accumulate_with(&x, |_, sum| {
                for (row, &n) in d_out.data().chunks_exact(width).zip(&picked) {
                    for (s, d) in sum[n * width..][..width].iter_mut().zip(row) {
                        *s += d;
                    }
                }
            });
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use crate::ops::check::{check_gradients, random};

    #[test]
    fn gradients_return_to_the_rows_picked() {
        check_gradients(&[random(&[6, 4], 1)], |ctx, x| {
            super::rows(ctx, &x[0], &[5, 1, 1])
        });
    }
}
