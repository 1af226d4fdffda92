//! How far a model's predictions are from another's, over the whole vocabulary.
//!
//! ```text
//! loss = Σₙ weightₙ · KL(pₙ ‖ qₙ),  KL = Σ_v p_v (ln p_v - ln q_v)        p = softmax(hidden · tableᵀ), q of the other model
//! ∂KL/∂z_v = p_v (ln p_v - ln q_v - KL)
//! ```
//! The gradient goes through p alone: this is the divergence that mirror descent stays near a policy by (arXiv 2005.09814). A
//! teacher's, KL(q ‖ p), is a term of [`crate::ops::cross_entropy`]. The logits of both exist a chunk of rows at a time, and the
//! gradient is formed in the same visit.

use russet_kernels::cross_entropy::log_softmax;
use russet_kernels::{Mat, MatMut, matmul_in};

use super::cross_entropy::{TokenLoss, of_tokens};
use crate::{Ctx, Tensor};

/// Rows of logits that exist together.
const ROWS: usize = 64;

/// `Σ weightₙ · KL(pₙ ‖ qₙ)` of `hidden [N, D]` through `table [V, D]` against `other`, `[N, E]` and `[V, E]`. A row of weight 0 is
/// not looked at.
pub fn divergence(
    ctx: &mut Ctx,
    hidden: &Tensor,
    table: &Tensor,
    other: (&Tensor, &Tensor),
    weights: &[f32],
) -> TokenLoss {
    let ((rows, width), (vocab, _)) = (hidden.dims2(), table.dims2());
    assert_eq!(
        (weights.len(), other.0.dims2().0, other.1.dims2().0),
        (rows, rows, vocab),
        "a weight and the other model's state for each row, of one vocabulary"
    );
    let wants_table = ctx.records(&[table]);
    let records = wants_table || ctx.records(&[hidden]);
    let mut per_token = vec![0.0; rows];
    let mut made = records.then(|| {
        let d_table = wants_table.then(|| ctx.zeros(table.len()));
        (ctx.zeros(hidden.len()), d_table)
    });
    let isa = ctx.pool.isa();
    for start in (0..rows).step_by(ROWS) {
        let chunk = start..rows.min(start + ROWS);
        if weights[chunk.clone()].iter().all(|&weight| weight == 0.0) {
            continue;
        }
        let count = chunk.len();
        let logits = |hidden: &Tensor, table: &Tensor| {
            let width = table.dims2().1;
            let mut logits = ctx.buffer(count * vocab);
            matmul_in(
                &ctx.pool,
                ctx.compute,
                Mat::new(
                    &hidden.data()[start * width..][..count * width],
                    count,
                    width,
                ),
                Mat::new(table.data(), vocab, width).t(),
                MatMut::new(&mut logits, count, vocab),
                false,
            );
            logits
        };
        let (mut own, mut theirs) = (logits(hidden, table), logits(other.0, other.1)); // [n, V]
        let mut visits: Vec<_> = own
            .chunks_exact_mut(vocab)
            .zip(theirs.chunks_exact_mut(vocab))
            .zip(&weights[chunk.clone()])
            .zip(&mut per_token[chunk])
            .collect();
        ctx.pool.for_each_chunk(&mut visits, 1, |_, visit| {
            let (((own, theirs), weight), divergence) = &mut visit[0];
            if **weight == 0.0 {
                own.fill(0.0);
                return;
            }
            log_softmax(isa, own);
            log_softmax(isa, theirs);
            let mut sum = 0.0;
            for (&p, q) in own.iter().zip(theirs.iter()) {
                sum += f64::from(libm::expf(p)) * f64::from(p - q);
            }
            **divergence = sum as f32;
            for (p, q) in own.iter_mut().zip(theirs.iter()) {
                *p = **weight * libm::expf(*p) * (*p - q - sum as f32); // ∂/∂z
            }
        });
        if let Some((d_hidden, d_table)) = &mut made {
            let d_logits = Mat::new(&own, count, vocab);
            matmul_in(
                &ctx.pool,
                ctx.compute,
                d_logits,
                Mat::new(table.data(), vocab, width),
                MatMut::new(
                    &mut d_hidden[start * width..][..count * width],
                    count,
                    width,
                ),
                false,
            );
            if let Some(d_table) = d_table {
                let hidden = &hidden.data()[start * width..][..count * width];
                matmul_in(
                    &ctx.pool,
                    ctx.compute,
                    d_logits.t(),
                    Mat::new(hidden, count, width),
                    MatMut::new(d_table, vocab, width),
                    true,
                );
            }
        }
    }
    of_tokens(ctx, per_token, weights, (hidden, table), made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{check_gradients, context, random};

    const WEIGHTS: [f32; 5] = [0.5, 0.0, 1.0, -0.25, 2.0];

    #[test]
    fn gradients_equal_finite_differences() {
        let (hidden, table) = (random(&[5, 3], 3), random(&[11, 3], 4));
        check_gradients(&[random(&[5, 6], 1), random(&[11, 6], 2)], |ctx, x| {
            divergence(ctx, &x[0], &x[1], (&hidden, &table), &WEIGHTS).loss
        });
    }

    #[test]
    fn it_equals_the_sum_over_the_vocabulary_and_is_nothing_of_a_model_and_itself() {
        // More rows than a chunk has.
        let (rows, vocab) = (ROWS + 7, 9);
        let (hidden, table) = (random(&[rows, 6], 1), random(&[vocab, 6], 2));
        let other = (&random(&[rows, 4], 3), &random(&[vocab, 4], 4));
        let weights = vec![1.0; rows];
        let mut ctx = context();
        let found = divergence(&mut ctx, &hidden, &table, other, &weights).per_token;
        let shares = |hidden: &Tensor, table: &Tensor, row: usize| -> Vec<f64> {
            let width = table.dims2().1;
            let dot = |v: usize| -> f64 {
                let pairs = hidden.data()[row * width..][..width]
                    .iter()
                    .zip(&table.data()[v * width..][..width]);
                pairs.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
            };
            let all: Vec<f64> = (0..vocab).map(|v| libm::exp(dot(v))).collect();
            let sum: f64 = all.iter().sum();
            all.iter().map(|one| one / sum).collect()
        };
        for (row, found) in found.into_iter().enumerate() {
            let (p, q) = (shares(&hidden, &table, row), shares(other.0, other.1, row));
            let terms = p.iter().zip(&q).map(|(p, q)| p * libm::log(p / q));
            let wanted = terms.sum::<f64>() as f32;
            assert!(
                (found - wanted).abs() < 1e-5,
                "row {row}: {found} and {wanted}"
            );
        }
        let itself = divergence(&mut ctx, &hidden, &table, (&hidden, &table), &weights);
        assert_eq!(itself.loss.data(), [0.0]);
    }
}
