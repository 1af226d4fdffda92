//! Reverse-mode differentiation over coarse operations.
//!
//! The tape is a list of closures in the order of the forward pass, walked backwards once. It knows
//! tensors by identity only, so parameters stay plain tensors and nothing is marked on them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use russet_kernels::{Compute, Pool, ROW_BLOCK, elementwise};

use crate::ctx::{Ctx, Made, row_blocks};
use crate::tensor::{Kept, Node, Tensor, TensorId};
use crate::workspace::{Buffer, Workspace};

type OneStep = dyn FnOnce(&mut Backward, Tensor) + Send;
type ManyStep = dyn FnOnce(&mut Backward, Vec<Option<Tensor>>) + Send;

/// How a gradient of what an operation made becomes gradients of what it was made of.
pub(crate) enum Step {
    /// Of the one tensor that most operations make.
    One(TensorId, Box<OneStep>),
    /// Of several at once; one that nothing used has no gradient.
    Many(Vec<TensorId>, Box<ManyStep>),
}

impl Step {
    fn outputs(&self) -> &[TensorId] {
        match self {
            Step::One(output, _) => std::slice::from_ref(output),
            Step::Many(outputs, _) => outputs,
        }
    }
}

/// The record of one forward pass.
pub struct Tape {
    tracked: HashSet<TensorId>,
    steps: Vec<Step>,
    /// Whether steps are only followed, to see where gradients would flow, and not kept.
    pub(crate) follows_only: bool,
}

/// Gradients by tensor. Those of watched tensors add up over several backward passes.
#[derive(Default)]
pub struct Gradients {
    by_tensor: HashMap<TensorId, Tensor>,
}

/// What a recorded step works with while the tape is walked.
pub struct Backward<'a> {
    /// The threads that kernels run on.
    pub pool: &'a Arc<Pool>,
    /// The type in which dense products multiply.
    pub compute: Compute,
    workspace: &'a Arc<Workspace>,
    gradients: &'a mut Gradients,
    tracked: &'a HashSet<TensorId>,
}

impl Tape {
    pub(crate) fn new(watched: impl IntoIterator<Item = TensorId>) -> Tape {
        Tape {
            tracked: watched.into_iter().collect(),
            steps: Vec::new(),
            follows_only: false,
        }
    }

    pub(crate) fn tracks(&self, id: TensorId) -> bool {
        self.tracked.contains(&id)
    }

    /// Lets gradients flow to a tensor that no step has made.
    pub(crate) fn track(&mut self, id: TensorId) {
        self.tracked.insert(id);
    }

    pub(crate) fn record(&mut self, step: Step) {
        self.tracked.extend(step.outputs());
        if !self.follows_only {
            self.steps.push(step);
        }
    }

    pub(crate) fn backward(
        self,
        pool: &Arc<Pool>,
        compute: Compute,
        workspace: &Arc<Workspace>,
        loss: &Tensor,
        weight: f32,
        gradients: &mut Gradients,
    ) {
        assert_eq!(
            loss.len(),
            1,
            "the loss must be one number, found {:?}",
            loss.shape()
        );
        gradients
            .by_tensor
            .insert(loss.id(), Tensor::new(loss.shape(), vec![weight]));
        self.walk(pool, compute, workspace, gradients);
    }

    /// Pushes the gradients of outputs back, last step first.
    fn walk(
        self,
        pool: &Arc<Pool>,
        compute: Compute,
        workspace: &Arc<Workspace>,
        gradients: &mut Gradients,
    ) {
        let Tape { tracked, steps, .. } = self;
        let mut back = Backward {
            pool,
            compute,
            workspace,
            gradients,
            tracked: &tracked,
        };
        for step in steps.into_iter().rev() {
            let mut take = |output| back.gradients.by_tensor.remove(output);
            // An output that nothing used has no gradient, and its inputs get none from it.
            match step {
                Step::One(output, step) => {
                    if let Some(d_output) = take(&output) {
                        step(&mut back, d_output);
                    }
                }
                Step::Many(outputs, step) => {
                    let d_outputs: Vec<_> = outputs.iter().map(take).collect();
                    if d_outputs.iter().any(Option::is_some) {
                        step(&mut back, d_outputs);
                    }
                }
            }
        }
    }
}

impl Gradients {
    /// The gradient of a watched tensor, if anything flowed to it.
    pub fn get(&self, tensor: &Tensor) -> Option<&Tensor> {
        self.by_tensor.get(&tensor.id())
    }

    /// The gradient's elements, to be scaled or clipped in place.
    pub fn get_mut(&mut self, tensor: &Tensor) -> Option<&mut [f32]> {
        self.by_tensor.get_mut(&tensor.id()).map(Tensor::data_mut)
    }

    /// Takes the gradient of a watched tensor out.
    pub fn take(&mut self, tensor: &impl Node) -> Option<Tensor> {
        self.by_tensor.remove(&tensor.id())
    }

    /// Puts a gradient in the place of what there was.
    pub fn put(&mut self, tensor: &impl Node, gradient: Tensor) {
        self.by_tensor.insert(tensor.id(), gradient);
    }

    /// Forgets all gradients; their buffers go back to the workspace.
    pub fn clear(&mut self) {
        self.by_tensor.clear();
    }
}

impl Backward<'_> {
    /// Whether the gradient of `tensor` is wanted.
    pub fn wants(&self, tensor: &impl Node) -> bool {
        self.tracked.contains(&tensor.id())
    }

    /// A buffer of `len` floats with unspecified content.
    pub fn buffer(&self, len: usize) -> Buffer {
        self.workspace.take(len)
    }

    /// Where buffers come from.
    pub(crate) fn workspace(&self) -> &Arc<Workspace> {
        self.workspace
    }

    /// The elements of what was kept, computed again where they were not.
    pub fn values(&self, kept: &Kept) -> Tensor {
        kept.tensor(self.pool, self.workspace)
    }

    /// Runs `head` on `input` and `tail` on its result once more, this time recorded, and pushes the gradient of the result
    /// back through them; `tail` a block of rows at a time, first block first, as sums over all rows go.
    pub(crate) fn replay(
        &mut self,
        input: &Tensor,
        head: impl FnOnce(&mut Ctx, &Tensor) -> Made,
        tail: impl Fn(&mut Ctx, &Tensor) -> Tensor,
        (d_output, d_beside): Made,
    ) {
        let ((middle, beside), tape) = self.recorded(None, |ctx| head(ctx, input));
        let (rows, width) = middle.dims2();
        let flows = tape.tracks(middle.id());
        let through = |back: &mut Self, middle: &Tensor, d_output: Tensor| {
            let (output, tape) = back.recorded(flows.then(|| middle.id()), |ctx| tail(ctx, middle));
            back.gradients.by_tensor.insert(output.id(), d_output);
            drop(output);
            tape.walk(back.pool, back.compute, back.workspace, back.gradients);
        };
        if rows <= ROW_BLOCK {
            through(self, &middle, d_output);
        } else {
            let mut d_middle = self.buffer(middle.len());
            for block in row_blocks(rows) {
                let part = middle.rows(self.workspace, block.clone());
                let d_part = d_output.rows(self.workspace, block.clone());
                through(self, &part, d_part);
                if let Some(d_part) = self.gradients.by_tensor.remove(&part.id()) {
                    d_middle[block.start * width..][..d_part.len()].copy_from_slice(d_part.data());
                }
            }
            drop(d_output);
            if flows {
                let d_middle = Tensor::new(middle.shape(), d_middle);
                self.gradients.by_tensor.insert(middle.id(), d_middle);
            }
        }
        drop(middle);
        self.put_beside(beside, d_beside);
        tape.walk(self.pool, self.compute, self.workspace, self.gradients);
    }

    /// Runs `forward` on `input` once more, this time recorded, and pushes the gradient of its result back through it.
    pub(crate) fn replay_whole(
        &mut self,
        input: &Tensor,
        forward: impl FnOnce(&mut Ctx, &Tensor) -> Made,
        (d_output, d_beside): Made,
    ) {
        let ((output, beside), tape) = self.recorded(None, |ctx| forward(ctx, input));
        self.gradients.by_tensor.insert(output.id(), d_output);
        drop(output);
        self.put_beside(beside, d_beside);
        tape.walk(self.pool, self.compute, self.workspace, self.gradients);
    }

    /// The gradient of what was made beside a result, where something used it.
    fn put_beside(&mut self, beside: Option<Tensor>, d_beside: Option<Tensor>) {
        if let (Some(beside), Some(d_beside)) = (beside, d_beside) {
            self.gradients.by_tensor.insert(beside.id(), d_beside);
        }
    }

    /// What `forward` makes, and the tape that recorded it; gradients flow to what this pass tracks and to `also`.
    fn recorded<T>(
        &self,
        also: Option<TensorId>,
        forward: impl FnOnce(&mut Ctx) -> T,
    ) -> (T, Tape) {
        let tape = Tape::new(self.tracked.iter().copied().chain(also));
        let (pool, workspace) = (self.pool.clone(), self.workspace.clone());
        let mut ctx = Ctx::replaying(pool, self.compute, workspace, tape);
        let made = forward(&mut ctx);
        (made, ctx.into_tape())
    }

    /// Adds `gradient` to what `tensor` has so far.
    pub fn accumulate(&mut self, tensor: &impl Node, gradient: Tensor) {
        assert_eq!(
            tensor.shape(),
            gradient.shape(),
            "gradient {:?} of {:?}",
            gradient.shape(),
            tensor.shape()
        );
        match self.gradients.by_tensor.remove(&tensor.id()) {
            None => {
                self.gradients.by_tensor.insert(tensor.id(), gradient);
            }
            Some(sum) => {
                let shape = sum.shape().to_vec();
                let workspace = self.workspace;
                let mut sum = sum.into_buffer(|len| workspace.take(len));
                elementwise::add_assign(self.pool, &mut sum, gradient.data());
                self.gradients
                    .by_tensor
                    .insert(tensor.id(), Tensor::new(&shape, sum));
            }
        }
    }

    /// Hands `add` the gradient so far of a parameter, to be added to in place: a weight's product
    /// accumulates without a second buffer. The first time it is zeros.
    pub fn accumulate_with(&mut self, tensor: &impl Node, add: impl FnOnce(&Pool, &mut [f32])) {
        let mut sum = match self.gradients.by_tensor.remove(&tensor.id()) {
            Some(sum) => {
                let workspace = self.workspace;
                sum.into_buffer(|len| workspace.take(len))
            }
            None => self.workspace.zeros(tensor.shape().iter().product()),
        };
        add(self.pool, &mut sum);
        self.gradients
            .by_tensor
            .insert(tensor.id(), Tensor::new(tensor.shape(), sum));
    }
}
