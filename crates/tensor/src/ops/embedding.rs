//! Rows of the embedding table.

use russet_kernels::embedding as kernel;

use crate::{Ctx, Tensor};

/// `tokens [N]` through `table [V, D]` to `[N, D]`.
///
/// # Panics
/// When a token is not below V: callers check ids where they come in.
pub fn embedding(ctx: &mut Ctx, table: &Tensor, tokens: &[u32]) -> Tensor {
    let (_, width) = table.dims2();
    let mut out = ctx.buffer(tokens.len() * width);
    kernel::gather(&ctx.pool, table.data(), tokens, &mut out);
    let out = Tensor::new(&[tokens.len(), width], out);
    if ctx.records(&[table]) {
        let (table, tokens) = (table.handle(), tokens.to_vec());
        ctx.record(&out, move |back, d_out| {
            back.accumulate_with(&table, |pool, sum| {
                kernel::scatter_add(pool, &tokens, d_out.data(), sum)
            });
        });
    }
    out
}

/// As [`embedding`], of a `table` that holds the rows of a vocabulary from `first` on: tokens of other rows give zeros.
pub fn embedding_part(ctx: &mut Ctx, table: &Tensor, first: usize, tokens: &[u32]) -> Tensor {
    let (_, width) = table.dims2();
    let mut out = ctx.buffer(tokens.len() * width);
    kernel::gather_part(&ctx.pool, table.data(), first, tokens, &mut out);
    let out = Tensor::new(&[tokens.len(), width], out);
    if ctx.records(&[table]) {
        let (table, tokens) = (table.handle(), tokens.to_vec());
        ctx.record(&out, move |back, d_out| {
            back.accumulate_with(&table, |pool, sum| {
                kernel::scatter_add_part(pool, first, &tokens, d_out.data(), sum)
            });
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use crate::ops::check::{check_gradients, random};

    #[test]
    fn gradients_of_a_part_are_those_of_its_rows() {
        for (first, rows) in [(0, 3), (3, 3), (1, 4)] {
            check_gradients(&[random(&[rows, 4], 1)], |ctx, x| {
                super::embedding_part(ctx, &x[0], first, &[5, 0, 5, 2, 5])
            });
        }
    }

    #[test]
    fn gradients_of_repeated_tokens_add_up() {
        check_gradients(&[random(&[6, 4], 1)], |ctx, x| {
            super::embedding(ctx, &x[0], &[5, 0, 5, 2, 5])
        });
    }
}
