//! Next-token loss through an output table whose rows the ranks of a group share out, as they share out the rows of the hidden
//! states (vocabulary-parallel cross-entropy, arXiv 1909.08053, section 3). Terms and chunks are those of
//! [`super::cross_entropy`], without a teacher.

use std::sync::Arc;

use russet_kernels::cross_entropy as kernel;

use super::TokenLoss;
use super::cross_entropy::{record_gradients, weighted_sum};
use super::share_rows::{gather, scatter};
use crate::collective::{Gather, Rows};
use crate::mesh::Group;
use crate::{Ctx, Tensor};

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
    let all = gather(part.group, ctx.workspace(), hidden, rows);
    let head = kernel::Head {
        hidden: all.data(),
        table: part.table.data(),
    };
    let mut per_token = vec![0.0; targets.len()];
    let records = ctx.records(&[hidden, part.table]);
    let mut d_all_and_table = records.then(|| {
        let d_table = ctx.zeros(part.table.len());
        (ctx.buffer(rows.len()), d_table)
    });
    let gradients = d_all_and_table
        .as_mut()
        .map(|(hidden, table)| kernel::HeadGradients {
            hidden,
            table: Some(table),
        });
    kernel::of_part(
        &ctx.pool,
        ctx.compute,
        head,
        part.first,
        targets,
        weights,
        z_loss,
        &mut per_token,
        gradients,
        &mut |said| exchange(part.group, said),
    );
    drop(all);
    let loss = weighted_sum(&per_token, weights);
    if let Some((d_all, d_table)) = d_all_and_table {
        // Summed up at once, so that no rank holds the gradients of all rows until the backward pass.
        let d_all = Tensor::new(&[rows.rows, rows.width], d_all);
        let d_hidden = scatter(part.group, ctx.workspace(), d_all, rows);
        let d_table = Tensor::new(part.table.shape(), d_table);
        record_gradients(ctx, &loss, vec![(hidden, d_hidden), (part.table, d_table)]);
    }
    TokenLoss { loss, per_token }
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
