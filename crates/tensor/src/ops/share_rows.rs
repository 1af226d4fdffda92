//! Rows that the ranks of a group share out, brought together and summed up: the two steps around a product whose weight
//! is cut (Korthikanti et al., arXiv 2205.05198, section 4.2.2). Each is the other's transpose.
//!
//! ```text
//! gather_rows   [n, D] on each rank ─▶ [N, D] on all        d_x = own rows of Σ d_out
//! scatter_rows  [N, D] on each rank ─▶ own rows of Σ x       d_x = d_out of all
//! ```

use std::sync::Arc;

use crate::collective::{Gather, Reduce, Rows};
use crate::mesh::Group;
use crate::tensor::Recipe;
use crate::workspace::Workspace;
use crate::{Ctx, Tensor};

/// The whole of which each rank has some rows, `x` this one.
pub(super) fn gather(group: &Group, workspace: &Arc<Workspace>, x: &Tensor, rows: Rows) -> Tensor {
    let message = Gather {
        part: x.clone(),
        rows,
        out: workspace.take(rows.len()),
    };
    let [out] = group
        .all_gather(vec![message])
        .try_into()
        .ok()
        .expect("one message");
    Tensor::new(&[rows.rows, rows.width], out)
}

/// This rank's rows of the sum of what all ranks have.
pub(super) fn scatter(group: &Group, workspace: &Arc<Workspace>, x: Tensor, rows: Rows) -> Tensor {
    let own = group.part(rows).len();
    let message = Reduce {
        data: x,
        rows,
        out: workspace.take(own),
    };
    let [out] = group
        .reduce_scatter(vec![message])
        .try_into()
        .ok()
        .expect("one message");
    Tensor::new(&[own / rows.width, rows.width], out)
}

/// The rows of all ranks, `[N, D]`, of which this one has `x [n, D]`; N is [`Ctx::tokens`].
///
/// What is kept for the backward pass are the own rows: a product's derivative brings them together once more.
pub fn gather_rows(ctx: &mut Ctx, group: &Arc<Group>, x: &Tensor) -> Tensor {
    let rows = Rows {
        rows: ctx.tokens,
        width: x.dims2().1,
    };
    let mut out = gather(group, ctx.workspace(), x, rows);
    if ctx.records(&[x]) {
        let (group, values, x) = (group.clone(), x.kept(), x.handle());
        let recipe: Arc<Recipe> = Arc::new({
            let group = group.clone();
            move |pool, workspace| gather(&group, workspace, &values.tensor(pool, workspace), rows)
        });
        out = out.computed_by(&recipe);
        ctx.record(&out, move |back, d_out| {
            drop(recipe);
            let d_x = scatter(&group, back.workspace(), d_out, rows);
            back.accumulate(&x, d_x);
        });
    }
    out
}

/// This rank's rows of the sum of `x [N, D]` over all ranks.
pub fn scatter_rows(ctx: &mut Ctx, group: &Arc<Group>, x: &Tensor) -> Tensor {
    let (tokens, width) = x.dims2();
    let rows = Rows {
        rows: tokens,
        width,
    };
    let out = scatter(group, ctx.workspace(), x.clone(), rows);
    if ctx.records(&[x]) {
        let (group, x) = (group.clone(), x.handle());
        ctx.record(&out, move |back, d_out| {
            let d_x = gather(&group, back.workspace(), &d_out, rows);
            back.accumulate(&x, d_x);
        });
    }
    out
}
