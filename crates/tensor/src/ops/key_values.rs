//! Keys and values of a layer as a tensor of their own, for layers that use them after it.

use std::sync::Arc;

use russet_kernels::rope::HeadShape;

use crate::workspace::{Buffer, Workspace};
use crate::{Ctx, Tensor};

/// The keys and values of a packed `qkv [N, (H+2G)·K]`, `[N, 2G·K]`.
pub fn key_values(ctx: &mut Ctx, shape: HeadShape, qkv: &Tensor) -> Tensor {
    let kv = copied(ctx.workspace(), shape, qkv);
    if ctx.records(&[qkv]) {
        let handle = qkv.handle();
        let len = qkv.len();
        ctx.record(&kv, move |back, d_kv| {
            let mut d_qkv = back.workspace().zeros(len);
            add_to(shape, &d_kv, &mut d_qkv);
            let rows = d_kv.dims2().0;
            let d_qkv = Tensor::new(&[rows, shape.qkv_width()], d_qkv);
            back.accumulate(&handle, d_qkv);
        });
    }
    kv
}

/// A copy of these columns.
pub(super) fn copied(workspace: &Arc<Workspace>, shape: HeadShape, qkv: &Tensor) -> Tensor {
    let (rows, width) = qkv.dims2();
    let kv_width = 2 * shape.kv_width();
    let mut kv = workspace.take(rows * kv_width);
    let from = qkv.data().chunks_exact(width);
    for (kv, row) in kv.chunks_exact_mut(kv_width).zip(from) {
        kv.copy_from_slice(&row[shape.q_width()..]);
    }
    Tensor::new(&[rows, kv_width], kv)
}

/// Adds gradients of keys and values to their columns.
pub(super) fn add_to(shape: HeadShape, d_kv: &Tensor, d_qkv: &mut Buffer) {
    let rows = d_kv.data().chunks_exact(2 * shape.kv_width());
    for (row, d_kv) in d_qkv.chunks_exact_mut(shape.qkv_width()).zip(rows) {
        for (sum, x) in row[shape.q_width()..].iter_mut().zip(d_kv) {
            *sum += x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{check_gradients, random};

    #[test]
    fn gradients_equal_finite_differences() {
        let shape = HeadShape {
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
        };
        check_gradients(&[random(&[3, 16], 1)], |ctx, x| {
            key_values(ctx, shape, &x[0])
        });
    }
}
