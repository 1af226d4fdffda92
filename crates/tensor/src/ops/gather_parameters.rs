//! Parameters that the ranks of a group share out, whole just while they are used (ZeRO stage 3, arXiv 1910.02054; FSDP,
//! arXiv 2304.11277).
//!
//! ```text
//! forward    pieces of all ranks ─▶ whole parameters ─▶ used, and forgotten
//! backward   pieces of all ranks ─▶ whole parameters ─▶ used; whole gradients ─▶ own pieces of their sums
//! ```
//! A [`Unit`] is what comes and goes together, a block's parameters say: one message each way. While it is used the next
//! one's message is on its way.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::collective::{Gather, Pending, Reduce, Rows};
use crate::mesh::Group;
use crate::tensor::{Handle, Recipe};
use crate::workspace::Workspace;
use crate::{Ctx, Tensor};

/// Parameters of which each rank has a piece, cut flat by [`crate::collective::share`].
pub struct Unit {
    group: Arc<Group>,
    shapes: Vec<Vec<usize>>, // of the whole parameters
    pending: Mutex<Option<Box<dyn Pending>>>,
}

/// A unit with the pieces that this rank has.
pub type Pieces = (Arc<Unit>, Vec<Tensor>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn elements(shape: &[usize]) -> usize {
    shape.iter().product()
}

impl Unit {
    /// Parameters of the given shapes, shared out over a group.
    pub fn new(group: Arc<Group>, shapes: Vec<Vec<usize>>) -> Unit {
        Unit {
            group,
            shapes,
            pending: Mutex::default(),
        }
    }

    /// Sends for the parameters, of which `pieces` are this rank's. Whoever begins must take: [`gather_parameters`].
    pub fn begin(&self, ctx: &Ctx, pieces: &[Tensor]) {
        self.begin_in(ctx.workspace(), pieces);
    }

    fn begin_in(&self, workspace: &Arc<Workspace>, pieces: &[Tensor]) {
        lock(&self.pending).get_or_insert_with(|| {
            let message = |(piece, shape): (&Tensor, &Vec<usize>)| Gather {
                part: piece.clone(),
                rows: Rows::flat(elements(shape)),
                out: workspace.take(elements(shape)),
            };
            let messages = pieces.iter().zip(&self.shapes).map(message).collect();
            self.group.begin_all_gather(messages)
        });
    }

    fn take(&self, workspace: &Arc<Workspace>, pieces: &[Tensor]) -> Vec<Tensor> {
        self.begin_in(workspace, pieces);
        let pending = lock(&self.pending).take().expect("begun just now");
        let whole = pending.wait().into_iter().zip(&self.shapes);
        whole
            .map(|(whole, shape)| Tensor::new(shape, whole))
            .collect()
    }
}

/// Whole parameters in the backward pass: there from the first use to the last.
struct Whole {
    pieces: Pieces,
    before: Option<Pieces>,
    values: Mutex<Option<Vec<Tensor>>>,
}

impl Whole {
    fn get(&self, workspace: &Arc<Workspace>, number: usize) -> Tensor {
        let mut values = lock(&self.values);
        if values.is_none() {
            let (unit, pieces) = &self.pieces;
            *values = Some(unit.take(workspace, pieces));
            self.send_for_the_one_before(workspace);
        }
        values.as_ref().expect("filled just now")[number].clone()
    }

    fn send_for_the_one_before(&self, workspace: &Arc<Workspace>) {
        if let Some((unit, pieces)) = &self.before {
            unit.begin_in(workspace, pieces);
        }
    }
}

/// The whole parameters of a unit. `before` is the unit that the backward pass needs after this one.
pub fn gather_parameters(
    ctx: &mut Ctx,
    (unit, pieces): Pieces,
    before: Option<Pieces>,
) -> Vec<Tensor> {
    let mut whole = unit.take(ctx.workspace(), &pieces);
    if !pieces.iter().any(|piece| ctx.records(&[piece])) {
        return whole;
    }
    let handles: Vec<Handle> = pieces.iter().map(Tensor::handle).collect();
    let kept = Arc::new(Whole {
        pieces: (unit.clone(), pieces),
        before,
        // A pass of the backward pass is followed by its derivative at once.
        values: Mutex::new(ctx.replays().then(|| whole.clone())),
    });
    if ctx.replays() {
        kept.send_for_the_one_before(ctx.workspace());
    }
    let mut recipes: Vec<Arc<Recipe>> = Vec::new();
    for (number, tensor) in whole.iter_mut().enumerate() {
        let kept = kept.clone();
        let recipe: Arc<Recipe> = Arc::new(move |_, workspace| kept.get(workspace, number));
        *tensor = tensor.clone().computed_by(&recipe);
        recipes.push(recipe);
    }
    ctx.record_many(&whole, move |back, d_whole| {
        drop((recipes, kept));
        let message = |(gradient, shape): (Option<Tensor>, &Vec<usize>)| {
            let rows = Rows::flat(elements(shape));
            let none = || Tensor::new(shape, back.workspace().zeros(rows.len()));
            Reduce {
                data: gradient.unwrap_or_else(none),
                rows,
                out: back.buffer(unit.group.part(rows).len()),
            }
        };
        let messages = d_whole.into_iter().zip(&unit.shapes).map(message).collect();
        for (piece, sum) in handles.iter().zip(unit.group.reduce_scatter(messages)) {
            back.accumulate(piece, Tensor::new(&[sum.len()], sum));
        }
    });
    whole
}
