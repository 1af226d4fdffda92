//! The training loop.
//!
//! ```text
//! for each step:
//!     for each micro-batch:  loss → backward, gradients add up
//!     norm → skip, or clip → update → running mean
//!     log · validate · save, each every so many steps
//! ```
//! A request to stop is honoured between micro-batches: the step begun is dropped, the state before it saved. A loss or
//! gradient that is not finite ends the run before it touches the weights. Saving is a copy here and the work of another
//! thread ([`crate::save`]).
//!
//! A step whose gradients are skipped counts as a step (the schedule and the data go on) but not as an update: the moments'
//! correction and the running mean count updates.

use std::time::Instant;

use russet_artifact::{Interrupt, Progress, RunLog};
use russet_model::Config;
use russet_tensor::{Ctx, Gradients, Segments};

use crate::loader::{Batch, Batches, Origin};
use crate::objective::Objective;
use crate::optimizer::{Step, clip_factor, gradient_norm};
use crate::save::{Job, Writer, Written};
use crate::schedule::Schedule;
use crate::spike::Spike;
use crate::state::{Snapshot, State, StateStore, Tally};
use crate::{Result, TrainError};

/// Named numbers that say how good the decoder is now.
pub type Measure<'a> =
    dyn FnMut(&mut Ctx, &russet_model::Decoder) -> Result<Vec<(&'static str, f64)>> + 'a;

/// The measure whose lowest value is the best.
const VALIDATION_LOSS: &str = "validation_loss";

/// Where and how a run is saved.
pub struct Saving<'a> {
    /// Steps from one saved state to the next (0: only when interrupted).
    pub every: u64,
    /// Where states lie.
    pub store: &'a StateStore,
    /// The thread that writes.
    pub writer: &'a mut Writer,
    /// What keeps the decoder of the best measure so far, if it is kept.
    pub best: Option<&'a Keep<'a>>,
}

/// Makes the job that keeps the decoder of a state; where there is a running mean, its weights are that just now.
pub type Keep<'a> = dyn Fn(&State) -> Result<Job> + 'a;

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
    /// The norm from which gradients are thrown away; `None` for no such norm.
    pub skip_norm: Option<f64>,
    /// A loss so many standard deviations above its mean is reported; 0 never is.
    pub spike_deviations: f64,
    /// What is learnt.
    pub objective: &'a dyn Objective,
    /// From what.
    pub batches: &'a mut dyn Batches,
    /// How the decoder is measured, every so many steps (0: never but after the last).
    pub measure: Option<(u64, &'a mut Measure<'a>)>,
    /// Where the state is saved, if it is.
    pub saving: Option<Saving<'a>>,
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
        let labels: Vec<String> = self.batches.labels();
        let labels: Vec<String> = labels.iter().map(|name| format!("tokens_{name}")).collect();
        state.tally.tokens_by_source.resize(labels.len(), 0);
        let Tally {
            mut seconds,
            mut tokens,
            mut flops,
            ..
        } = state.tally;
        while state.step < self.steps {
            let begun = Instant::now();
            let before = self.batches.state();
            let batches = self.batches.next()?;
            let Some(loss) = self.forward_backward(ctx, state, &batches, &mut gradients)? else {
                self.batches.restore(&before)?;
                self.save(ctx, state);
                self.saved(true)?;
                return Ok(Ended::Interrupted);
            };
            let (norm, rate) = self.update(ctx, state, &batches, &mut gradients)?;
            state.tally.seconds += begun.elapsed().as_secs_f64();
            count(state, &batches);
            state.tally.last_loss = loss;
            if state.step == 0 {
                state.tally.first_loss = loss;
            }
            state.step += 1;
            self.watch_for_spikes(state, loss, &batches)?;

            let (step, tally) = (state.step, &state.tally);
            let passed = tally.seconds - seconds;
            let speed = (tally.tokens - tokens) as f64 / passed;
            let utilisation = (tally.flops - flops) / passed / self.peak_flops;
            let mut fields = vec![
                ("loss", f64::from(loss)),
                ("learning_rate", rate),
                ("gradient_norm", norm),
                ("tokens_per_second", speed),
                ("mfu", utilisation),
            ];
            self.progress.update(step, &fields);
            let every = self.log.as_ref().map_or(1, |(every, _)| *every);
            if step == 1 || step == self.steps || step.is_multiple_of(every) {
                fields.push(("skipped_steps", tally.skipped as f64));
                let by_source = labels.iter().zip(&tally.tokens_by_source);
                fields.extend(by_source.map(|(label, &count)| (label.as_str(), count as f64)));
                (seconds, tokens, flops) = (tally.seconds, tally.tokens, tally.flops);
                self.log(step, &fields)?;
            }
            self.measure(ctx, state)?;
            let saves = self
                .saving
                .as_ref()
                .is_some_and(|saving| saving.every > 0 && step.is_multiple_of(saving.every));
            if saves && step < self.steps {
                self.save(ctx, state);
            }
            self.saved(false)?;
        }
        self.saved(true)?;
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
        let rate = self.schedule.at(state.step);
        if self.skip_norm.is_some_and(|limit| norm >= limit) {
            gradients.clear();
            state.tally.skipped += 1;
            let step = state.step + 1;
            let documents = document_list(batches, &self.batches.names());
            let message = format!(
                "step {step}: the gradient's norm is {norm:.4}, from {} on steps are skipped (`train.skip_norm`); skipped so \
                 far {}; the step saw {documents}",
                self.skip_norm.expect("just compared"),
                state.tally.skipped
            );
            self.say(step, "skipped", &message)?;
            return Ok((norm, rate));
        }
        let update = state.step + 1 - state.tally.skipped;
        let step = Step {
            update,
            rate,
            share: self.schedule.share(state.step),
            grad_scale: clip_factor(norm, self.clip_norm),
        };
        state
            .optimizer
            .update(&ctx.pool, &mut state.decoder, gradients, step);
        gradients.clear();
        if let Some(average) = &mut state.average {
            average.take(&ctx.pool, &state.decoder, update);
        }
        Ok((norm, rate))
    }

    fn measure(&mut self, ctx: &mut Ctx, state: &mut State) -> Result<()> {
        let step = state.step;
        let due = match &self.measure {
            Some((every, _)) => step == self.steps || (*every > 0 && step.is_multiple_of(*every)),
            None => false,
        };
        if !due {
            return Ok(());
        }
        // Where there is a running mean, it is what the run leaves, so it is what is measured.
        swap_average(state);
        let measured = self.measure_now(ctx, state);
        swap_average(state);
        let fields = measured?;
        self.log(step, &fields)?;
        self.progress.update(step, &fields);
        Ok(())
    }

    fn measure_now(
        &mut self,
        ctx: &mut Ctx,
        state: &mut State,
    ) -> Result<Vec<(&'static str, f64)>> {
        let (_, measure) = self.measure.as_mut().expect("it is due");
        let fields = measure(ctx, &state.decoder)?;
        let loss = fields.iter().find(|(name, _)| *name == VALIDATION_LOSS);
        if let (Some(&(_, loss)), Some(saving)) = (loss, &mut self.saving)
            && let Some(keep) = saving.best
            && state.tally.best.is_none_or(|(_, least)| loss < least)
        {
            state.tally.best = Some((state.step, loss));
            saving.writer.submit(keep(state)?);
        }
        Ok(fields)
    }

    /// Hands a copy of the state to the thread that writes.
    fn save(&mut self, ctx: &Ctx, state: &State) {
        let Some(saving) = &mut self.saving else {
            return;
        };
        let snapshot = Snapshot::of(state, self.batches.state(), ctx.pool.isa());
        let store = saving.store.clone();
        saving.writer.submit(Job {
            what: format!("the state of step {}", snapshot.step()),
            work: Box::new(move || store.save(&snapshot)),
        });
    }

    /// Looks at what has been written, at the end all that is to be. What failed is told, and of the last state at a stop
    /// it is an error.
    fn saved(&mut self, at_end: bool) -> Result<()> {
        let Some(saving) = &mut self.saving else {
            return Ok(());
        };
        let written = if at_end {
            saving.writer.wait()
        } else {
            saving.writer.written()
        };
        let last = written.len().saturating_sub(1);
        for (number, Written { what, result }) in written.into_iter().enumerate() {
            let Err(source) = result else { continue };
            if at_end && number == last && self.interrupt.is_raised() {
                let source = Box::new(source);
                return Err(TrainError::Unsaved { what, source });
            }
            self.progress.message(&format!(
                "{what} could not be saved: {source}. What was saved before is untouched; training goes on, and the next save \
                 tries again"
            ));
        }
        Ok(())
    }

    fn watch_for_spikes(&mut self, state: &mut State, loss: f32, batches: &[Batch]) -> Result<()> {
        let loss = f64::from(loss);
        let spike = state.tally.spikes.take(loss, self.spike_deviations);
        let Some(Spike { mean, deviation }) = spike else {
            return Ok(());
        };
        let step = state.step;
        let documents = document_list(batches, &self.batches.names());
        let message = format!(
            "step {step}: the loss is {loss:.4}, {:.1} standard deviations ({deviation:.4}) above its running mean \
             ({mean:.4}); the step saw {documents}. Look at those documents if this comes again",
            (loss - mean) / deviation
        );
        self.say(step, "spike", &message)
    }

    /// Tells a person, now and in the log.
    fn say(&mut self, step: u64, name: &str, message: &str) -> Result<()> {
        self.progress.message(message);
        match &mut self.log {
            Some((_, log)) => Ok(log.text(step, name, message)?),
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
        let documents = document_list(batches, &self.batches.names());
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

/// Adds a step's batches to the counts.
fn count(state: &mut State, batches: &[Batch]) {
    let (config, tally) = (state.decoder.config(), &mut state.tally);
    for batch in batches {
        tally.tokens += batch.tokens.len() as u64;
        tally.flops += training_flops(config, &batch.segments);
        for origin in &batch.origins {
            if let Some(count) = tally.tokens_by_source.get_mut(origin.source) {
                *count += origin.targets.len() as u64;
            }
        }
    }
}

/// Exchanges weights and running mean, where there is one.
fn swap_average(state: &mut State) {
    if let Some(average) = &mut state.average {
        average.swap(&mut state.decoder);
    }
}

/// "documents 3-7, 12 (counted from 0) of NAME and 4 of ANOTHER", at most a few of them.
fn document_list(batches: &[Batch], names: &[String]) -> String {
    const SHOWN: usize = 16;
    let origins: Vec<_> = batches.iter().flat_map(|batch| &batch.origins).collect();
    let mut lists: Vec<String> = Vec::new();
    for (source, name) in names.iter().enumerate() {
        let shown = origins.iter().take(SHOWN);
        let list: Vec<String> = shown
            .filter(|origin| origin.source == source)
            .map(|Origin { documents, .. }| match documents.len() {
                1 => documents.start.to_string(),
                _ => format!("{}-{}", documents.start, documents.end - 1),
            })
            .collect();
        if !list.is_empty() {
            let counted = if lists.is_empty() {
                " (counted from 0)"
            } else {
                ""
            };
            lists.push(format!("{}{counted} of {name}", list.join(", ")));
        }
    }
    let more = match origins.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(", and {more} more runs of documents"),
    };
    format!("documents {}{more}", lists.join(" and "))
}

#[cfg(test)]
pub(crate) mod tests;
