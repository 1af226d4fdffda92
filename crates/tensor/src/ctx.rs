//! What an operation runs in: threads, workspace, and a tape while training.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use russet_kernels::{Compute, Pool, ROW_BLOCK};

use crate::tape::{Backward, Gradients, Step, Tape};
use crate::tensor::{Node, Tensor, TensorId};
use crate::trace::{Op, Trace};
use crate::workspace::{Buffer, Workspace};

/// The ranges of [`ROW_BLOCK`] rows that make up `rows`.
pub(crate) fn row_blocks(rows: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows)
        .step_by(ROW_BLOCK)
        .map(move |start| start..rows.min(start + ROW_BLOCK))
}

/// What a checkpoint makes: what goes on, and what others use beside it.
pub type Made = (Tensor, Option<Tensor>);

/// The context of operations. One forward pass uses one context; a context outlives many passes.
pub struct Ctx {
    /// The threads that kernels run on.
    pub pool: Arc<Pool>,
    /// The type in which dense products and those of attention multiply; what is kept is `f32`.
    pub compute: Compute,
    /// Whether [`Ctx::checkpoint`] keeps inputs only and computes the rest again in the backward pass.
    pub recompute: bool,
    /// N, the tokens of the pass, where a mesh shares their rows out and a tensor does not say how many there are in all.
    pub tokens: usize,
    /// Where what runs is written down, if anywhere.
    pub trace: Option<Trace>,
    workspace: Arc<Workspace>,
    tape: Option<Tape>,
    replays: bool,
}

impl Ctx {
    /// A context without a tape, whose products multiply in `f32`: inference.
    pub fn new(pool: Arc<Pool>) -> Ctx {
        Ctx {
            pool,
            compute: Compute::F32,
            recompute: false,
            tokens: 0,
            trace: None,
            workspace: Arc::default(),
            tape: None,
            replays: false,
        }
    }

    /// A context that records on a given tape, for [`Backward`].
    pub(crate) fn replaying(
        pool: Arc<Pool>,
        compute: Compute,
        workspace: Arc<Workspace>,
        tape: Tape,
    ) -> Ctx {
        Ctx {
            pool,
            compute,
            recompute: false,
            tokens: 0,
            trace: None,
            workspace,
            tape: Some(tape),
            replays: true,
        }
    }

    /// The tape of a context that records.
    pub(crate) fn into_tape(self) -> Tape {
        self.tape.expect("the context was made with a tape")
    }

    /// Runs an operation, and writes it down where there is a trace. Only then is `op` asked what it is.
    pub fn timed<T>(&mut self, op: impl FnOnce() -> Op, run: impl FnOnce(&mut Ctx) -> T) -> T {
        if self.trace.is_none() {
            return run(self);
        }
        let begun = Instant::now();
        let out = run(self);
        if let Some(trace) = &mut self.trace {
            trace.add(op(), begun);
        }
        out
    }

    /// Starts recording. `watched` are the tensors whose gradients are wanted (the parameters).
    pub fn start_tape(&mut self, watched: impl IntoIterator<Item = TensorId>) {
        self.tape = Some(Tape::new(watched));
    }

    /// Ends recording and adds to `gradients` the derivative of `weight · loss` with respect to every
    /// watched tensor. The tape frees what it held as it is walked.
    ///
    /// # Panics
    /// When no tape was started.
    pub fn backward(&mut self, loss: &Tensor, weight: f32, gradients: &mut Gradients) {
        let tape = self
            .tape
            .take()
            .expect("`backward` needs a tape: call `start_tape` before the forward pass");
        tape.backward(
            &self.pool,
            self.compute,
            &self.workspace,
            loss,
            weight,
            gradients,
        );
    }

    /// Whether a gradient must flow to any of `inputs`, so that the operation has to be recorded.
    pub fn records(&self, inputs: &[&dyn Node]) -> bool {
        self.tape
            .as_ref()
            .is_some_and(|tape| inputs.iter().any(|tensor| tape.tracks(tensor.id())))
    }

    /// Whether a tape is running at all.
    pub fn is_recording(&self) -> bool {
        self.tape.is_some()
    }

    /// Records how a gradient of `output` becomes gradients of its inputs.
    pub fn record(
        &mut self,
        output: &Tensor,
        backward: impl FnOnce(&mut Backward, Tensor) + Send + 'static,
    ) {
        if let Some(tape) = &mut self.tape {
            tape.record(Step::One(output.id(), Box::new(backward)));
        }
    }

    /// As [`Ctx::record`], of an operation that makes several tensors.
    pub fn record_many(
        &mut self,
        outputs: &[Tensor],
        backward: impl FnOnce(&mut Backward, Vec<Option<Tensor>>) + Send + 'static,
    ) {
        if let Some(tape) = &mut self.tape {
            let outputs = outputs.iter().map(Tensor::id).collect();
            tape.record(Step::Many(outputs, Box::new(backward)));
        }
    }

    /// Whether this pass is one of the backward pass, which computes again what [`Ctx::checkpoint`] did not keep.
    pub fn replays(&self) -> bool {
        self.replays
    }

    /// Runs `forward` on `input`. While a tape runs and `recompute` is set, nothing of it is kept but `input`: the backward
    /// pass runs it once more, all rows at a time. For what several ranks do together, who have other rows.
    ///
    /// Gradients must enter by `input`, by watched tensors, and by what other checkpoints have made.
    pub fn checkpoint_whole(
        &mut self,
        input: &Tensor,
        forward: impl Fn(&mut Ctx, &Tensor) -> Made + Send + 'static,
    ) -> Made {
        match &mut self.tape {
            Some(tape) if self.recompute && !tape.follows_only => tape.follows_only = true,
            _ => return forward(self, input),
        }
        let made = forward(self, input);
        if let Some(tape) = &mut self.tape {
            tape.follows_only = false;
        }
        if self.records(&[&made.0]) {
            let input = input.clone();
            self.record_made(&made, move |back, d_made| {
                back.replay_whole(&input, forward, d_made)
            });
        }
        made
    }

    /// Records how gradients of what a checkpoint has made go on.
    fn record_made(
        &mut self,
        (output, beside): &Made,
        backward: impl FnOnce(&mut Backward, Made) + Send + 'static,
    ) {
        match beside {
            None => self.record(output, |back, d_output| backward(back, (d_output, None))),
            Some(beside) => {
                let both = [output.clone(), beside.clone()];
                self.record_many(&both, |back, mut gradients| {
                    let d_beside = gradients.pop().flatten();
                    let d_output = gradients.pop().flatten();
                    let d_output = d_output.expect("a loss depends on what a checkpoint puts out");
                    backward(back, (d_output, d_beside));
                });
            }
        }
    }

    /// `tail(head(input))`. While a tape runs and `recompute` is set, nothing of it is kept but `input`: the backward pass runs
    /// both once more (Chen et al., arXiv 1604.06174), and `tail`, which must act on each row alone, on [`ROW_BLOCK`] rows at
    /// a time, so that what it makes on the way never exists for all rows. Losses and gradients are the same to the bit:
    /// sums over rows go on from block to block where they would have gone on within one. What `head` makes beside its result is
    /// kept, and gradients of it are waited for.
    ///
    /// Gradients must enter by `input`, by watched tensors, and by what other checkpoints have made.
    pub fn checkpoint(
        &mut self,
        input: &Tensor,
        head: impl Fn(&mut Ctx, &Tensor) -> Made + Send + 'static,
        tail: impl Fn(&mut Ctx, &Tensor) -> Tensor + Send + 'static,
    ) -> Made {
        match &mut self.tape {
            Some(tape) if self.recompute && !tape.follows_only => tape.follows_only = true,
            _ => {
                let (middle, beside) = head(self, input);
                return (tail(self, &middle), beside);
            }
        }
        let (middle, beside) = head(self, input);
        let (output, followed) = self.in_row_blocks(middle, &tail);
        if let Some(tape) = &mut self.tape {
            tape.follows_only = false;
        }
        let made = (output, beside);
        if followed {
            let input = input.clone();
            self.record_made(&made, move |back, d_made| {
                back.replay(&input, head, tail, d_made)
            });
        }
        made
    }

    /// `tail` on [`ROW_BLOCK`] rows at a time; and whether gradients would flow through it.
    fn in_row_blocks(
        &mut self,
        input: Tensor,
        tail: &impl Fn(&mut Ctx, &Tensor) -> Tensor,
    ) -> (Tensor, bool) {
        let (rows, _) = input.dims2();
        if rows <= ROW_BLOCK {
            let output = tail(self, &input);
            let followed = self.records(&[&output]);
            return (output, followed);
        }
        let mut all: Option<(Buffer, usize)> = None;
        let mut followed = false;
        let reaches = self.records(&[&input]);
        for block in row_blocks(rows) {
            let part = input.rows(&self.workspace, block.clone());
            if reaches && let Some(tape) = &mut self.tape {
                tape.track(part.id());
            }
            let part = tail(self, &part);
            followed |= self.records(&[&part]);
            let width = part.dims2().1;
            let (out, _) = all.get_or_insert_with(|| (self.workspace.take(rows * width), width));
            out[block.start * width..][..part.len()].copy_from_slice(part.data());
        }
        let (out, width) = all.expect("more rows than a block has");
        (Tensor::new(&[rows, width], out), followed)
    }

    pub(crate) fn workspace(&self) -> &Arc<Workspace> {
        &self.workspace
    }

    /// A buffer of `len` floats with unspecified content.
    pub fn buffer(&self, len: usize) -> Buffer {
        self.workspace.take(len)
    }

    /// A buffer of `len` zeros.
    pub fn zeros(&self, len: usize) -> Buffer {
        self.workspace.zeros(len)
    }

    /// The most bytes of activations and gradients that were in use at one time.
    pub fn peak_bytes(&self) -> usize {
        self.workspace.peak_bytes()
    }
}
