//! Normalised, rotated queries and keys.
//!
//! Each query and key head is divided by its root mean square and multiplied by a weight (QK-norm,
//! arXiv 2302.05442, where the model has it), then its two halves are rotated by position
//! (arXiv 2104.09864, in the halves-apart order of the Hugging Face checkpoints). Values pass through.

use std::sync::Arc;

use russet_kernels::rope::{self, HeadShape, RopeTable};

use crate::{Ctx, Tensor};

/// The weights of QK-norm, `[K]` each.
#[derive(Clone, Copy)]
pub struct QkNorm<'a> {
    /// Of the query heads.
    pub query: &'a Tensor,
    /// Of the key heads; none where queries are alone.
    pub key: Option<&'a Tensor>,
    /// Added to the mean square.
    pub epsilon: f32,
}

/// `qkv [N, (H+2G)·K]` to the same shape, where G is 0 of queries alone; row n is rotated by row `positions[n]` of `table`. In its own
/// memory where no gradient is wanted and nobody else has it.
pub fn qk_norm_rope(
    ctx: &mut Ctx,
    shape: HeadShape,
    qkv: Tensor,
    norm: Option<QkNorm>,
    table: &Arc<RopeTable>,
    positions: &Arc<[u32]>,
) -> Tensor {
    let (tokens, _) = qkv.dims2();
    let mut inv_rms = ctx.buffer(tokens * (shape.heads + shape.kv_heads));
    let epsilon = norm.map_or(0.0, |norm| norm.epsilon);
    let q_norm = norm.map(|norm| norm.query.clone());
    let k_norm = norm.and_then(|norm| norm.key.cloned());
    let normed = q_norm
        .iter()
        .chain(&k_norm)
        .any(|weight| ctx.records(&[weight]));
    let norms = [&q_norm, &k_norm].map(|weight| weight.as_ref().map(Tensor::data));
    if !(normed || ctx.records(&[&qkv])) {
        let dims = [tokens, shape.qkv_width()];
        let mut qkv = qkv.into_buffer(|len| ctx.buffer(len));
        let pool = &ctx.pool;
        rope::qk_norm_rope_in_place(
            pool,
            shape,
            &mut qkv,
            positions,
            table,
            norms,
            epsilon,
            &mut inv_rms,
        );
        return Tensor::new(&dims, qkv);
    }
    let mut out = ctx.buffer(qkv.len());
    rope::qk_norm_rope_forward(
        &ctx.pool,
        shape,
        qkv.data(),
        positions,
        table,
        norms[0],
        norms[1],
        epsilon,
        &mut out,
        &mut inv_rms,
    );
    let out = Tensor::new(qkv.shape(), out);
    let (table, positions) = (table.clone(), positions.clone());
    ctx.record(&out, move |back, d_out| {
        let mut d_qkv = back.buffer(qkv.len());
        let mut d_q = q_norm.as_ref().map(|weight| vec![0.0; weight.len()]);
        let mut d_k = k_norm.as_ref().map(|weight| vec![0.0; weight.len()]);
        rope::qk_norm_rope_backward(
            back.pool,
            shape,
            qkv.data(),
            &positions,
            &table,
            q_norm.as_ref().map(Tensor::data),
            k_norm.as_ref().map(Tensor::data),
            &inv_rms,
            d_out.data(),
            &mut d_qkv,
            d_q.as_deref_mut(),
            d_k.as_deref_mut(),
        );
        for (weight, gradient) in [(q_norm, d_q), (k_norm, d_k)] {
            if let (Some(weight), Some(gradient)) = (weight, gradient)
                && back.wants(&weight)
            {
                back.accumulate(&weight, Tensor::new(weight.shape(), gradient));
            }
        }
        if back.wants(&qkv) {
            let d_qkv = Tensor::new(qkv.shape(), d_qkv);
            back.accumulate(&qkv, d_qkv);
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{check_gradients, random};

    const SHAPE: HeadShape = HeadShape {
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
    };

    #[test]
    fn gradients_equal_finite_differences() {
        let table = Arc::new(RopeTable::new(16, 8, 10_000.0));
        let positions: Arc<[u32]> = [0, 1, 2, 0, 9].into();
        check_gradients(
            &[random(&[5, 64], 1), random(&[8], 2), random(&[8], 3)],
            |ctx, x| {
                let norm = QkNorm {
                    query: &x[1],
                    key: Some(&x[2]),
                    epsilon: 1e-5,
                };
                qk_norm_rope(ctx, SHAPE, x[0].clone(), Some(norm), &table, &positions)
            },
        );
    }

    #[test]
    fn gradients_of_queries_alone_equal_finite_differences() {
        let table = Arc::new(RopeTable::new(16, 8, 10_000.0));
        let positions: Arc<[u32]> = [0, 1, 2, 0, 9].into();
        let alone = HeadShape {
            kv_heads: 0,
            ..SHAPE
        };
        check_gradients(&[random(&[5, 32], 1), random(&[8], 2)], |ctx, x| {
            let norm = QkNorm {
                query: &x[1],
                key: None,
                epsilon: 1e-5,
            };
            qk_norm_rope(ctx, alone, x[0].clone(), Some(norm), &table, &positions)
        });
    }

    #[test]
    fn gradients_without_norm_equal_finite_differences() {
        let table = Arc::new(RopeTable::new(16, 8, 10_000.0));
        let positions: Arc<[u32]> = [0, 1, 2, 0, 9].into();
        check_gradients(&[random(&[5, 64], 1)], |ctx, x| {
            qk_norm_rope(ctx, SHAPE, x[0].clone(), None, &table, &positions)
        });
    }
}
