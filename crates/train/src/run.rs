//! The training loop.
//!
//! ```text
//! for each step:
//!     for each micro-batch:  loss → backward, gradients add up
//!     norm → clip → update
//!     log · validate · save, each every so many steps
//! ```
//! A request to stop is honoured between micro-batches: the step begun is dropped, the state before it saved. A loss or
//! gradient that is not finite ends the run before it touches the weights.

use std::time::Instant;

use russet_artifact::{Interrupt, Progress, RunLog};
use russet_model::Config;
use russet_tensor::{Ctx, Gradients, Segments};

use crate::loader::{Batch, Batches};
use crate::objective::Objective;
use crate::optimizer::{clip_gradients, gradient_norm};
use crate::schedule::Schedule;
use crate::state::{State, StateStore};
use crate::{Result, TrainError};

/// Named numbers that say how good the decoder is now.
pub type Measure<'a> =
    dyn FnMut(&mut Ctx, &russet_model::Decoder) -> Result<Vec<(&'static str, f64)>> + 'a;

/// What the loop needs besides the state it changes.
pub struct Loop<'a> {
    /// What is being done, for the progress bar: "pretrain".
    pub name: &'a str,
    /// The step to stop at.
    pub steps: u64,
    /// The learning rates.
    pub schedule: Schedule,
    /// The largest norm of the gradients; `None` for no limit.
    pub clip_norm: Option<f64>,
    /// What is learnt.
    pub objective: &'a dyn Objective,
    /// From what.
    pub batches: &'a mut dyn Batches,
    /// How the decoder is measured, every so many steps (0: never but after the last).
    pub measure: Option<(u64, &'a mut Measure<'a>)>,
    /// Where the state is saved, every so many steps (0: only when interrupted).
    pub store: Option<(u64, &'a StateStore)>,
    /// Where numbers are written, every so many steps.
    pub log: Option<(u64, &'a mut RunLog)>,
    /// What is shown.
    pub progress: &'a mut dyn Progress,
    /// The request to stop.
    pub interrupt: &'a Interrupt,
    /// What the machine can do, in FLOP/s, for the utilisation that is reported.
    pub peak_flops: f64,
}

/// How the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All steps are done.
    Finished,
    /// It was asked to stop; the state is that after the last whole step, and saved if there is a store.
    Interrupted,
}

/// Trains until `state.step` is `run.steps`.
///
/// # Errors
/// When a loss or gradient is not finite, or data, log or state cannot be read or written. The state on the disk is then
/// the one saved last.
pub fn train(mut run: Loop, ctx: &mut Ctx, state: &mut State) -> Result<Ended> {
    run.progress.begin(run.name, Some(run.steps), "steps");
    let ended = run.all_steps(ctx, state);
    run.progress.end();
    ended
}

impl Loop<'_> {
    fn all_steps(&mut self, ctx: &mut Ctx, state: &mut State) -> Result<Ended> {
        let mut gradients = Gradients::default();
        let mut logged = state.tally;
        while state.step < self.steps {
            let begun = Instant::now();
            let before = self.batches.state();
            let batches = self.batches.next()?;
            let Some(loss) = self.forward_backward(ctx, state, &batches, &mut gradients)? else {
                self.batches.restore(&before)?;
                self.save(ctx, state)?;
                return Ok(Ended::Interrupted);
            };
            let (norm, rate) = self.update(ctx, state, &batches, &mut gradients)?;
            let tally = &mut state.tally;
            tally.seconds += begun.elapsed().as_secs_f64();
            tally.tokens += batches
                .iter()
                .map(|batch| batch.tokens.len() as u64)
                .sum::<u64>();
            tally.flops += batches
                .iter()
                .map(|batch| training_flops(state.decoder.config(), &batch.segments))
                .sum::<f64>();
            tally.last_loss = loss;
            if state.step == 0 {
                tally.first_loss = loss;
            }
            state.step += 1;

            let step = state.step;
            let seconds = state.tally.seconds - logged.seconds;
            let fields = [
                ("loss", f64::from(loss)),
                ("learning_rate", rate),
                ("gradient_norm", norm),
                (
                    "tokens_per_second",
                    (state.tally.tokens - logged.tokens) as f64 / seconds,
                ),
                (
                    "mfu",
                    (state.tally.flops - logged.flops) / seconds / self.peak_flops,
                ),
            ];
            self.progress.update(step, &fields);
            let every = self.log.as_ref().map_or(1, |(every, _)| *every);
            if step == 1 || step == self.steps || step.is_multiple_of(every) {
                self.log(step, &fields)?;
                logged = state.tally;
            }
            self.measure(ctx, state)?;
            let saves = self
                .store
                .as_ref()
                .is_some_and(|(every, _)| *every > 0 && step.is_multiple_of(*every));
            if saves && step < self.steps {
                self.save(ctx, state)?;
            }
        }
        Ok(Ended::Finished)
    }

    /// Adds the gradients of a step's micro-batches up and returns its loss; `None` when asked to stop.
    fn forward_backward(
        &mut self,
        ctx: &mut Ctx,
        state: &State,
        batches: &[Batch],
        gradients: &mut Gradients,
    ) -> Result<Option<f32>> {
        let decoder = &state.decoder;
        let mut sum = 0.0;
        for batch in batches {
            if self.interrupt.is_raised() {
                gradients.clear();
                return Ok(None);
            }
            ctx.start_tape(
                decoder
                    .parameters()
                    .iter()
                    .map(|parameter| parameter.tensor.id()),
            );
            let loss = self.objective.loss(decoder, ctx, batch).loss;
            let value = f64::from(loss.data()[0]);
            if !value.is_finite() {
                return Err(self.not_finite(state, "loss", value, std::slice::from_ref(batch)));
            }
            ctx.backward(&loss, 1.0, gradients);
            sum += value;
        }
        Ok(Some(sum as f32))
    }

    /// Clips and applies the gradients, and forgets them. Returns their norm and the learning rate.
    fn update(
        &mut self,
        ctx: &Ctx,
        state: &mut State,
        batches: &[Batch],
        gradients: &mut Gradients,
    ) -> Result<(f64, f64)> {
        let norm = gradient_norm(&ctx.pool, &state.decoder, gradients);
        if !norm.is_finite() {
            return Err(self.not_finite(state, "gradient's norm", norm, batches));
        }
        if let Some(limit) = self.clip_norm {
            clip_gradients(&ctx.pool, &state.decoder, gradients, norm, limit);
        }
        let rate = self.schedule.at(state.step);
        state.optimizer.update(
            &ctx.pool,
            &mut state.decoder,
            gradients,
            state.step + 1,
            rate,
        );
        gradients.clear();
        Ok((norm, rate))
    }

    fn measure(&mut self, ctx: &mut Ctx, state: &State) -> Result<()> {
        let step = state.step;
        let Some((every, measure)) = &mut self.measure else {
            return Ok(());
        };
        if step == self.steps || (*every > 0 && step.is_multiple_of(*every)) {
            let fields = measure(ctx, &state.decoder)?;
            self.log(step, &fields)?;
            self.progress.update(step, &fields);
        }
        Ok(())
    }

    fn save(&mut self, ctx: &Ctx, state: &State) -> Result<()> {
        match &self.store {
            Some((_, store)) => store.save(state, self.batches.state(), ctx.pool.isa()),
            None => Ok(()),
        }
    }

    fn log(&mut self, step: u64, fields: &[(&str, f64)]) -> Result<()> {
        match &mut self.log {
            Some((_, log)) => Ok(log.scalars(step, fields)?),
            None => Ok(()),
        }
    }

    fn not_finite(
        &self,
        state: &State,
        what: &'static str,
        value: f64,
        batches: &[Batch],
    ) -> TrainError {
        let documents = document_list(batches, &self.batches.name());
        TrainError::NotFinite {
            step: state.step + 1,
            what,
            value,
            documents,
        }
    }
}

/// The operations that a forward and backward pass over these segments needs: exactly the products of the weights and of
/// each token with those before it in its segment, and nothing that an implementation may waste.
fn training_flops(config: &Config, segments: &Segments) -> f64 {
    let alone = config.forward_flops(0);
    let pair = config.forward_flops(1) - alone;
    let pairs: f64 = segments
        .iter()
        .map(|s| s.len as f64 * (s.len as f64 + 1.0) / 2.0)
        .sum();
    3.0 * (segments.tokens() as f64 * alone + pairs * pair)
}

/// "documents 3-7, 12 of NAME", at most a few of them.
fn document_list(batches: &[Batch], name: &str) -> String {
    const SHOWN: usize = 16;
    let ranges: Vec<_> = batches.iter().flat_map(|batch| &batch.documents).collect();
    let mut list: Vec<String> = ranges
        .iter()
        .take(SHOWN)
        .map(|range| match range.len() {
            1 => range.start.to_string(),
            _ => format!("{}-{}", range.start, range.end - 1),
        })
        .collect();
    if ranges.len() > SHOWN {
        list.push(format!("and {} more sequences", ranges.len() - SHOWN));
    }
    format!("documents {} (counted from 0) of {name}", list.join(", "))
}

#[cfg(test)]
pub(crate) mod tests;
