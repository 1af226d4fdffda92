//! Next-token loss through an output table whose rows the ranks of a group share out, as they share out the rows of the hidden
//! states (vocabulary-parallel cross-entropy, arXiv 1909.08053, section 3). Terms and chunks are those of
//! [`super::cross_entropy`], without a teacher.

use std::sync::Arc;

use russet_kernels::cross_entropy as kernel;
use russet_kernels::elementwise;

use super::TokenLoss;
use super::cross_entropy::weighted_sum;
use crate::collective::{Gather, Reduce, Rows};
use crate::mesh::Group;
use crate::{Ctx, Node, Tensor};

/// The part of an output table that a rank has.
pub struct TablePart<'a> {
    /// The ranks that have the others.
    pub group: &'a Arc<Group>,
    /// `[v, D]`.
    pub table: &'a Tensor,
    /// The first token whose row it has.
    pub first: usize,
}

/// The loss of all N tokens, the same on every rank, of which this one has the hidden states `hidden [n, D]`.
pub fn cross_entropy_part(
    ctx: &mut Ctx,
    hidden: &Tensor,
    part: &TablePart,
    targets: &[u32],
    weights: &[f32],
    z_loss: f32,
) -> TokenLoss {
    let rows = Rows {
        rows: targets.len(),
        width: hidden.dims2().1,
    };
    let all = gather(ctx, part.group, hidden, rows);
    let head = kernel::Head {
        hidden: all.data(),
        table: part.table.data(),
    };
    let mut per_token = vec![0.0; targets.len()];
    let mut exchange = |said: Vec<f32>| exchange(part.group, said);
    if !ctx.records(&[hidden, part.table]) {
        kernel::of_part(
            &ctx.pool,
            ctx.compute,
            head,
            part.first,
            targets,
            weights,
            z_loss,
            &mut per_token,
            None,
            &mut exchange,
        );
        return TokenLoss {
            loss: weighted_sum(&per_token, weights),
            per_token,
        };
    }
    let mut d_all = ctx.buffer(rows.len());
    let mut d_table = ctx.zeros(part.table.len());
    let gradients = kernel::HeadGradients {
        hidden: &mut d_all,
        table: &mut d_table,
    };
    kernel::of_part(
        &ctx.pool,
        ctx.compute,
        head,
        part.first,
        targets,
        weights,
        z_loss,
        &mut per_token,
        Some(gradients),
        &mut exchange,
    );
    drop(all);
    // Summed up at once, so that no rank holds the gradients of all rows until the backward pass.
    let message = Reduce {
        data: Tensor::new(&[rows.rows, rows.width], d_all),
        rows,
        out: ctx.buffer(part.group.part(rows).len()),
    };
    let sums = part.group.reduce_scatter(vec![message]);
    let [d_hidden] = sums.try_into().ok().expect("one message");
    let loss = weighted_sum(&per_token, weights);
    let (hidden, table) = (hidden.handle(), part.table.handle());
    ctx.record(&loss, move |back, d_loss| {
        let factor = d_loss.data()[0];
        for (tensor, mut gradient) in [(hidden, d_hidden), (table, d_table)] {
            if back.wants(&tensor) {
                if factor != 1.0 {
                    elementwise::scale_in_place(back.pool, &mut gradient, factor);
                }
                let gradient = Tensor::new(tensor.shape(), gradient);
                back.accumulate(&tensor, gradient);
            }
        }
    });
    TokenLoss { loss, per_token }
}

fn gather(ctx: &Ctx, group: &Group, hidden: &Tensor, rows: Rows) -> Tensor {
    let message = Gather {
        part: hidden.clone(),
        rows,
        out: ctx.buffer(rows.len()),
    };
    let [out] = group
        .all_gather(vec![message])
        .try_into()
        .ok()
        .expect("one message");
    Tensor::new(&[rows.rows, rows.width], out)
}

/// What all ranks say, of as many numbers each.
fn exchange(group: &Group, said: Vec<f32>) -> Vec<Vec<f32>> {
    let (count, size) = (said.len(), group.size());
    let message = Gather {
        part: Tensor::new(&[count], said),
        rows: Rows {
            rows: size,
            width: count,
        },
        out: vec![0.0; size * count].into(),
    };
    let [heard] = group
        .all_gather(vec![message])
        .try_into()
        .ok()
        .expect("one message");
    heard.chunks_exact(count).map(<[f32]>::to_vec).collect()
}
