//! The training loop.
//!
//! ```text
//! for each step:
//!     for each micro-batch:  loss → backward, gradients add up
//!     norm → skip, or clip → update → running mean
//!     log · validate · save, each every so many steps
//! ```
//! A request to stop is honoured between micro-batches: the step begun is dropped, the state before it saved; where steps share
//! what only this process has ([`Batches::is_whole`]), after the last of them. A loss or
//! gradient that is not finite ends the run before it touches the weights. Saving is a copy here and the work of another
//! thread ([`crate::save`]).
//!
//! On a mesh every rank runs this loop on its share of the tokens and its part of the state (`ranks.rs`). Then a stop is
//! voted on before each step, not between micro-batches, and a state is saved in two acts: each rank's thread writes its part,
//! and when a vote finds all of them down the first rank puts the whole in its place.
//!
//! A step whose gradients are skipped counts as a step (the schedule and the data go on) but not as an update: the moments'
//! correction and the running mean count updates.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use russet_artifact::{Draft, Interrupt, Progress, RunLog};
use russet_model::Decoder;
use russet_tensor::mesh::Moved;
use russet_tensor::{Ctx, Gradients, Segments};

use crate::loader::{Batch, Batches, Origin};
use crate::objective::Objective;
use crate::optimizer::{Step, clip_factor, sum_of_squares};
use crate::ranks::{Ranks, Saved, Sums};
use crate::save::{Job, Writer, Written};
use crate::schedule::Schedule;
use crate::spike::Spike;
use crate::state::{Snapshot, State, StateStore, Tally, rounding};
use crate::straggler::{Busy, WINDOW, straggler};
use crate::validation::GoesOn;
use crate::{Result, TrainError};

/// Named numbers that say how good the decoder is now; none where it was told not to go on.
pub type Measure<'a> = dyn FnMut(&mut Ctx, &Decoder, &mut GoesOn) -> Result<Option<Measured>> + 'a;

/// Names and values.
pub type Measured = Vec<(&'static str, f64)>;

/// Steps in a row whose gradients may be no numbers: from more of them nothing comes back.
const NOT_FINITE_IN_A_ROW: u64 = 10;

/// Steps in a row whose gradients may be skipped: a run that has learnt nothing for so long will hardly learn again.
const SKIPPED_IN_A_ROW: u64 = 100;

/// Steps in a row after which gradients that are exactly zero are told: the schedule's end may round a few away, not so many.
const ZERO_IN_A_ROW: u64 = 20;

/// The measure whose lowest value is the best, in nats per token where the loss is.
pub const VALIDATION_LOSS: &str = "validation_loss";

/// The same of text, in bits per byte, where a task knows them.
pub const BITS_PER_BYTE: &str = "validation_bits_per_byte";

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
/// On a mesh all ranks make it, and the first one gets it.
pub type Keep<'a> = dyn Fn(&State) -> Result<Option<Job>> + 'a;

/// What a run leaves besides its state.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// The loss of each step.
    pub losses: Vec<f32>,
    /// What this rank sent in the last step, but for validation and saves.
    pub moved: Moved,
    /// What the machine can do, in FLOP/s: [`Loop::peak_flops`], or what steps have reached where that is more.
    pub peak_flops: f64,
}

/// What the loop needs besides the state it changes.
pub struct Loop<'a> {
    /// What is being done, for the progress bar: the name of the artifact's folder.
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
    /// Whether it is measured before the first step too, for [`Tally::before`].
    pub measures_start: bool,
    /// What becomes of a state after the last step and before it is measured; twice is nothing.
    pub at_end: Option<&'a dyn Fn(&mut State)>,
    /// Where the state is saved, if it is.
    pub saving: Option<Saving<'a>>,
    /// Where numbers are written, every so many steps.
    pub log: Option<(u64, &'a mut RunLog)>,
    /// What is shown.
    pub progress: &'a mut dyn Progress,
    /// What is remembered of the steps, where it is asked for.
    pub record: Option<&'a mut Record>,
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
    if state.step > 0 {
        run.progress.resumed(state.step);
    }
    let ranks = Ranks::of(&state.decoder);
    let mut stepping = Stepping {
        run: &mut run,
        ranks,
        begun: None,
        best: None,
        busy: Busy::default(),
        not_finite: 0,
        zero: 0,
        log_fails: false,
    };
    let ended = stepping.all_steps(ctx, state);
    run.progress.end();
    ended
}

/// A loop that runs.
struct Stepping<'a, 'l> {
    run: &'a mut Loop<'l>,
    ranks: Ranks,
    begun: Option<Begun>,
    best: Option<Best>,
    busy: Busy,
    not_finite: u64, // steps in a row
    zero: u64,       // likewise
    log_fails: bool,
}

/// The best decoder so far, which is being written or has been.
struct Best {
    what: String,
    before: Option<(u64, f64)>, // the step and loss of the one before
    failed: bool,
}

/// A save of several ranks that has begun.
struct Begun {
    what: String,
    draft: Option<Draft>, // of the first rank
    own: Saved,
}

impl Stepping<'_, '_> {
    fn all_steps(&mut self, ctx: &mut Ctx, state: &mut State) -> Result<Ended> {
        let mut gradients = Gradients::default();
        let labels: Vec<String> = self.run.batches.labels();
        let labels: Vec<String> = labels.iter().map(|name| format!("tokens_{name}")).collect();
        state.tally.tokens_by_source.resize(labels.len(), 0);
        let Tally {
            mut seconds,
            mut tokens,
            mut flops,
            ..
        } = state.tally;
        let begins = state.step == 0 && self.run.measures_start && self.run.measure.is_some();
        if begins && !self.measure(ctx, state)? {
            return self.stop(ctx, state);
        }
        if state.tally.unmeasured && state.step < self.run.steps {
            if !self.measure(ctx, state)? {
                return self.stop(ctx, state);
            }
            self.save(ctx, state)?; // so that a kill after this does not have it measured again
        }
        let mut saves = false;
        while state.step < self.run.steps {
            let begun = Instant::now();
            let (sent, waited) = (self.moved(), self.waited());
            let before = self.run.batches.state();
            let whole = self.run.batches.is_whole();
            let mut stop = self.vote()?;
            if !stop {
                self.run.batches.prepare(ctx, &state.decoder)?;
                if let Some(why) = self.run.batches.ends() {
                    self.say(state.step, "ended", &why);
                    break;
                }
                stop = self.stops_alone(whole);
            }
            let made = match stop {
                true => None,
                false => {
                    let batches = self.run.batches.next()?;
                    let loss =
                        self.forward_backward(ctx, state, &batches, &mut gradients, whole)?;
                    loss.map(|loss| (loss, batches))
                }
            };
            let Some((loss, batches)) = made else {
                self.run.batches.restore(&before)?;
                return self.stop(ctx, state);
            };
            self.ranks
                .add_gradients(ctx, &state.decoder, &mut gradients);
            let sums = self.ranks.add(Sums {
                loss,
                squares: sum_of_squares(&ctx.pool, &state.decoder, &gradients),
                ..counts(state, &batches)
            });
            let loss = sums.loss as f32;
            let (norm, rate) = self.update(ctx, state, &batches, &mut gradients, &sums)?;
            let took = begun.elapsed();
            let waited = self.waited() - waited;
            state.tally.seconds += took.as_secs_f64();
            count(state, &sums);
            state.tally.last_loss = loss;
            if state.step == 0 {
                state.tally.first_loss = loss;
            }
            state.step += 1;
            let sent = self.moved() - sent;
            if let Some(record) = &mut self.run.record {
                record.losses.push(loss);
                record.moved = sent;
            }
            self.watch_for_spikes(state, loss, &batches);
            if let Some(busy) = self.busy.step(took, waited) {
                self.watch_for_stragglers(state.step, busy);
            }

            let (step, tally) = (state.step, &state.tally);
            let passed = tally.seconds - seconds;
            let speed = (tally.tokens - tokens) as f64 / passed;
            let rate_of_flops = (tally.flops - flops) / passed;
            // A peak that was measured while the machine was busy is corrected by what is reached.
            self.run.peak_flops = self.run.peak_flops.max(rate_of_flops);
            if let Some(record) = &mut self.run.record {
                record.peak_flops = self.run.peak_flops;
            }
            let utilisation = rate_of_flops / self.run.peak_flops;
            let mut fields = vec![
                ("loss", f64::from(loss)),
                ("learning_rate", rate),
                ("gradient_norm", norm),
                ("tokens_per_second", speed),
                ("mfu", utilisation),
            ];
            fields.extend(self.run.objective.facts());
            self.run.progress.update(step, &fields);
            let every = self.run.log.as_ref().map_or(1, |(every, _)| *every);
            if step == 1 || step == self.run.steps || step.is_multiple_of(every) {
                fields.push(("steps", self.run.steps as f64));
                fields.push(("skipped_steps", tally.skipped as f64));
                let by_source = labels.iter().zip(&tally.tokens_by_source);
                fields.extend(by_source.map(|(label, &count)| (label.as_str(), count as f64)));
                (seconds, tokens, flops) = (tally.seconds, tally.tokens, tally.flops);
                self.log(step, &fields);
            }
            // Where a stop comes in between, the next step is not begun, and whoever goes on measures first.
            if step < self.run.steps && self.is_measured(step) {
                self.measure(ctx, state)?;
            }
            saves |= self
                .run
                .saving
                .as_ref()
                .is_some_and(|saving| saving.every > 0 && step.is_multiple_of(saving.every));
            if saves && step < self.run.steps && self.run.batches.is_whole() {
                saves = false;
                self.save(ctx, state)?;
            }
            self.saved(false)?;
        }
        if let Some(at_end) = self.run.at_end {
            at_end(state);
        }
        if self.run.measure.is_some() && !self.measure(ctx, state)? {
            return self.stop(ctx, state);
        }
        self.saved(true)?;
        self.forget_failed_best(state);
        Ok(Ended::Finished)
    }

    /// Whether a rank that is alone stops now: asked to, and where a later process could go on from.
    fn stops_alone(&self, whole: bool) -> bool {
        // Ranks decide together: they have voted on a stop.
        whole && self.ranks.mesh().is_none() && self.run.interrupt.is_raised()
    }

    /// Saves the state and ends.
    fn stop(&mut self, ctx: &Ctx, state: &State) -> Result<Ended> {
        self.save(ctx, state)?;
        self.saved(true)?;
        Ok(Ended::Interrupted)
    }

    /// Whether a step in the middle is.
    fn is_measured(&self, step: u64) -> bool {
        let every = self.run.measure.as_ref().map_or(0, |(every, _)| *every);
        every > 0 && step.is_multiple_of(every)
    }

    /// What this rank has sent so far.
    fn moved(&self) -> Moved {
        self.ranks
            .mesh()
            .map_or(Moved::default(), |mesh| mesh.moved())
    }

    /// How long this rank has been in calls to others.
    fn waited(&self) -> Duration {
        self.ranks
            .mesh()
            .map_or(Duration::ZERO, |mesh| mesh.waited())
    }

    fn watch_for_stragglers(&mut self, step: u64, busy: f64) {
        let Some(mesh) = self.ranks.mesh() else {
            return;
        };
        let all: Vec<f64> = mesh.all().all_gather_f64(&[busy]).concat();
        let Some((rank, median)) = straggler(&all) else {
            return;
        };
        let message = format!(
            "step {step}: rank {rank} of {} is a straggler: busy for {:.1} s of the last {WINDOW} steps, where the median rank was \
             for {median:.1} s and then waited; look at its machine if this comes again",
            all.len(),
            all[rank]
        );
        self.say(step, "straggler", &message);
    }

    /// Adds the gradients of this rank's micro-batches up and returns their loss; `None` when asked to stop where it may.
    fn forward_backward(
        &mut self,
        ctx: &mut Ctx,
        state: &State,
        batches: &[Batch],
        gradients: &mut Gradients,
        whole: bool,
    ) -> Result<Option<f64>> {
        let decoder = &state.decoder;
        // Of ranks a loss that is not finite is one of all.
        let alone = self.ranks.mesh().is_none();
        let mut sum = 0.0;
        for batch in batches {
            if self.stops_alone(whole) {
                gradients.clear();
                return Ok(None);
            }
            ctx.start_tape(
                decoder
                    .parameters()
                    .iter()
                    .map(|parameter| parameter.tensor.id()),
            );
            let loss = self.run.objective.loss(decoder, ctx, batch).loss;
            let value = f64::from(loss.data()[0]);
            if alone && !value.is_finite() {
                return Err(self.not_finite(state, "loss", value, std::slice::from_ref(batch)));
            }
            ctx.backward(&loss, 1.0, gradients);
            sum += value;
        }
        Ok(Some(sum))
    }

    /// Clips and applies the gradients, and forgets them. Returns their norm and the learning rate.
    fn update(
        &mut self,
        ctx: &Ctx,
        state: &mut State,
        batches: &[Batch],
        gradients: &mut Gradients,
        sums: &Sums,
    ) -> Result<(f64, f64)> {
        if !sums.loss.is_finite() {
            return Err(self.not_finite(state, "loss", sums.loss, batches));
        }
        let norm = sums.squares.sqrt();
        self.not_finite = if norm.is_finite() {
            0
        } else {
            self.not_finite + 1
        };
        let skips = self.run.skip_norm.is_some();
        if !norm.is_finite() && (!skips || self.not_finite > NOT_FINITE_IN_A_ROW) {
            return Err(self.not_finite(state, "gradient's norm", norm, batches));
        }
        let rate = self.run.schedule.at(state.step);
        // An infinite norm is above every limit, and NaN comes of infinities.
        if self
            .run
            .skip_norm
            .is_some_and(|limit| norm.is_nan() || norm >= limit)
        {
            gradients.clear();
            self.skip(state, batches, norm)?;
            return Ok((norm, rate));
        }
        state.tally.skipped_in_a_row = 0;
        self.watch_for_zeros(state, norm, batches);
        let update = state.step + 1 - state.tally.skipped;
        let step = Step {
            update,
            rate,
            share: self.run.schedule.share(state.step),
            grad_scale: clip_factor(norm, self.run.clip_norm),
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

    /// Counts a step whose gradients are thrown away. The first of a row is told, the log has all.
    fn skip(&mut self, state: &mut State, batches: &[Batch], norm: f64) -> Result<()> {
        state.tally.skipped += 1;
        state.tally.skipped_in_a_row += 1;
        let in_a_row = state.tally.skipped_in_a_row;
        let step = state.step + 1;
        let limit = self.run.skip_norm.expect("a step was compared with it");
        let origins = self.ranks.origins(batches);
        let names = self.run.batches.names();
        let sentence = |most| {
            format!(
                "step {step}: the gradient's norm is {norm:.4}, from {limit} on steps are skipped (`train.skip_norm`); skipped \
                 so far {}; the step saw {}",
                state.tally.skipped,
                document_list(&origins, &names, most)
            )
        };
        if in_a_row == 1 {
            self.run.progress.message(&sentence(SHOWN));
        }
        self.log_text(step, "skipped", &sentence(usize::MAX));
        if in_a_row > SKIPPED_IN_A_ROW {
            let error = TrainError::Skipped {
                step,
                in_a_row,
                norm,
                limit,
            };
            self.log_text(step, "stuck", &error.to_string());
            return Err(error);
        }
        Ok(())
    }

    /// Tells once that nothing is learnt any more. No error: rewards that are all alike give no gradient, and the next may.
    fn watch_for_zeros(&mut self, state: &State, norm: f64, batches: &[Batch]) {
        self.zero = if norm == 0.0 { self.zero + 1 } else { 0 };
        if self.zero == ZERO_IN_A_ROW {
            let step = state.step + 1;
            let origins = self.ranks.origins(batches);
            let head = format!(
                "step {step}: the gradient has been exactly zero for {ZERO_IN_A_ROW} steps, so nothing is learnt; look at the \
                 loss and at `train.peak_lr`, a rate too high does this for good; the step saw"
            );
            self.say_of(&origins, step, "zero_gradient", &head, "");
        }
    }

    /// Measures the decoder; `false` where a stop came in between.
    fn measure(&mut self, ctx: &mut Ctx, state: &mut State) -> Result<bool> {
        self.forget_failed_best(state);
        // Where there is a running mean, it is what the run leaves, so it is what is measured.
        swap_average(state);
        let measured = self.measure_now(ctx, state);
        swap_average(state);
        let measured = measured?;
        state.tally.unmeasured = measured.is_none();
        let Some(fields) = measured else {
            return Ok(false);
        };
        self.log(state.step, &fields);
        self.run.progress.update(state.step, &fields);
        Ok(true)
    }

    fn measure_now(&mut self, ctx: &mut Ctx, state: &mut State) -> Result<Option<Measured>> {
        let run = &mut *self.run;
        let (_, measure) = run.measure.as_mut().expect("it is due");
        // Where no process could go on from, the measurement is not left undone.
        let may_stop = run.batches.is_whole() || state.step == run.steps;
        let mut goes_on = |share: f64| {
            run.progress.update(state.step, &[("validated", share)]);
            !self.ranks.any(may_stop && run.interrupt.is_raised())
        };
        let Some(fields) = measure(ctx, &state.decoder, &mut goes_on)? else {
            return Ok(None);
        };
        if state.step == 0 {
            let named = |&(name, value): &(&str, f64)| (name.to_owned(), value);
            state.tally.before = fields.iter().map(named).collect();
        }
        let loss = fields.iter().find(|(name, _)| *name == VALIDATION_LOSS);
        if let (Some(&(_, loss)), Some(saving)) = (loss, &mut self.run.saving)
            && let Some(keep) = saving.best
            && loss.is_finite()
            && state.tally.best.is_none_or(|(_, least)| loss < least)
        {
            let before = state.tally.best.replace((state.step, loss));
            let job = keep(state)?;
            self.best = Some(Best {
                what: job.as_ref().map_or(String::new(), |job| job.what.clone()),
                before,
                failed: false,
            });
            if let Some(job) = job {
                saving.writer.submit(job);
            }
        }
        Ok(Some(fields))
    }

    /// Where the best decoder could not be written, the one before is the best again: it is what lies on the disk, and the next
    /// that is better than that is kept.
    fn forget_failed_best(&mut self, state: &mut State) {
        let failed = self.best.as_ref().is_some_and(|best| best.failed);
        if self.ranks.any(failed)
            && let Some(best) = self.best.take()
        {
            state.tally.best = best.before;
        }
    }

    /// Whether to stop; on a mesh the ranks agree, and look at how the save under way has come out.
    fn vote(&mut self) -> Result<bool> {
        if self.ranks.mesh().is_none() {
            return Ok(false); // looked at before each micro-batch
        }
        let own = self.begun.as_ref().map_or(Saved::Whole, |begun| begun.own);
        let (stop, saved) = self.ranks.vote(self.run.interrupt.is_raised(), own);
        if saved != Saved::Pending {
            self.put_in_place(saved)?;
        }
        Ok(stop)
    }

    /// Hands a copy of the state to the thread that writes.
    fn save(&mut self, ctx: &Ctx, state: &State) -> Result<()> {
        let Some(saving) = &mut self.run.saving else {
            return Ok(());
        };
        let snapshot = |run: &Loop| Snapshot::of(state, run.batches.state(), rounding(ctx));
        let what = format!("the state of step {}", state.step);
        if self.ranks.mesh().is_none() {
            let store = saving.store.clone();
            let snapshot = snapshot(self.run);
            let saving = self.run.saving.as_mut().expect("looked at above");
            saving.writer.submit(Job {
                what,
                work: Box::new(move || store.save(&snapshot)),
            });
            return Ok(());
        }
        // The one before must be done, so that no rank is a save ahead.
        self.end_begun_save(false)?;
        let Some((draft, folder)) = self.begin_save(&what)? else {
            return Ok(());
        };
        let snapshot = snapshot(self.run);
        let saving = self.run.saving.as_mut().expect("looked at above");
        saving.writer.submit(Job {
            what: what.clone(),
            work: Box::new(move || snapshot.write(&folder)),
        });
        self.begun = Some(Begun {
            what,
            draft,
            own: Saved::Pending,
        });
        Ok(())
    }

    /// The first rank makes a draft and tells the others where; `None` where it cannot.
    fn begin_save(&mut self, what: &str) -> Result<Option<(Option<Draft>, PathBuf)>> {
        let saving = self.run.saving.as_ref().expect("only where there is one");
        let made = match self.ranks.is_first() {
            true => Some(saving.store.begin()),
            false => None,
        };
        let said = match &made {
            Some(Ok(draft)) => draft.path().to_string_lossy().into_owned(),
            _ => String::new(),
        };
        let folder = self.ranks.hear_first(said);
        match made {
            Some(Err(source)) => {
                self.not_saved(what, &source);
                if self.run.interrupt.is_raised() {
                    return Err(unsaved(what.to_owned(), source));
                }
                Ok(None)
            }
            _ if folder.is_empty() => Ok(None),
            made => Ok(Some((made.and_then(Result::ok), PathBuf::from(folder)))),
        }
    }

    /// Ends a save of several ranks whose parts have come out.
    fn put_in_place(&mut self, saved: Saved) -> Result<()> {
        let Some(Begun { what, draft, own }) = self.begun.take() else {
            return Ok(());
        };
        let Some(draft) = draft else { return Ok(()) };
        if saved == Saved::Failed {
            // An own failure has been told with its reason.
            if own != Saved::Failed {
                self.run.progress.message(&format!(
                    "{what} could not be saved: another rank could not write its part. What was saved before is untouched; training goes \
                     on, and the next save tries again"
                ));
            }
            return Ok(());
        }
        let saving = self.run.saving.as_mut().expect("it began a save");
        let store = saving.store.clone();
        saving.writer.submit(Job {
            // Not the name of the parts' job, which a save of the same step may give again while this one is done.
            what: what.replacen("the state", "the whole state", 1),
            work: Box::new(move || store.commit(draft)),
        });
        Ok(())
    }

    /// Waits until the save under way is in its place or given up.
    fn end_begun_save(&mut self, at_end: bool) -> Result<()> {
        if self.ranks.mesh().is_none() || self.run.saving.is_none() {
            return Ok(());
        }
        self.hear_writer(true, at_end)?;
        let own = self.begun.as_ref().map_or(Saved::Whole, |begun| begun.own);
        let (_, saved) = self.ranks.vote(false, own);
        self.put_in_place(saved)
    }

    /// Looks at what has been written, at the end all that is to be.
    fn saved(&mut self, at_end: bool) -> Result<()> {
        if at_end {
            self.end_begun_save(true)?;
        }
        self.hear_writer(at_end, at_end)
    }

    /// What failed is told, and of the last state at a stop it is an error.
    fn hear_writer(&mut self, waits: bool, at_end: bool) -> Result<()> {
        let Some(saving) = &mut self.run.saving else {
            return Ok(());
        };
        let written = if waits {
            saving.writer.wait()
        } else {
            saving.writer.written()
        };
        let last = written.len().saturating_sub(1);
        for (number, Written { what, result }) in written.into_iter().enumerate() {
            if let Some(begun) = &mut self.begun
                && begun.what == what
                && begun.own == Saved::Pending
            {
                begun.own = match result {
                    Ok(()) => Saved::Whole,
                    Err(_) => Saved::Failed,
                };
            }
            let Err(source) = result else { continue };
            if let Some(best) = self.best.as_mut().filter(|best| best.what == what) {
                best.failed = true;
            }
            if at_end && number == last && self.run.interrupt.is_raised() {
                return Err(unsaved(what, source));
            }
            self.not_saved(&what, &source);
        }
        Ok(())
    }

    fn not_saved(&mut self, what: &str, source: &TrainError) {
        self.run.progress.message(&format!(
            "{what} could not be saved: {source}. What was saved before is untouched; training goes on, and the next save \
             tries again"
        ));
    }

    fn watch_for_spikes(&mut self, state: &mut State, loss: f32, batches: &[Batch]) {
        let loss = f64::from(loss);
        let spike = state.tally.spikes.take(loss, self.run.spike_deviations);
        let Some(Spike { mean, deviation }) = spike else {
            return;
        };
        let step = state.step;
        let origins = self.ranks.origins(batches);
        let head = format!(
            "step {step}: the loss is {loss:.4}, {:.1} standard deviations ({deviation:.4}) above its running mean \
             ({mean:.4}); the step saw",
            (loss - mean) / deviation
        );
        let tail = ". Look at those documents if this comes again";
        self.say_of(&origins, step, "spike", &head, tail);
    }

    /// Tells a person, now and in the log.
    fn say(&mut self, step: u64, name: &str, message: &str) {
        self.run.progress.message(message);
        self.log_text(step, name, message);
    }

    /// The same of documents, named between `head` and `tail`: now a few, in the log all.
    fn say_of(&mut self, origins: &[Origin], step: u64, name: &str, head: &str, tail: &str) {
        let names = self.run.batches.names();
        let sentence = |most| format!("{head} {}{tail}", document_list(origins, &names, most));
        self.run.progress.message(&sentence(SHOWN));
        self.log_text(step, name, &sentence(usize::MAX));
    }

    fn log_text(&mut self, step: u64, name: &str, text: &str) {
        if let Some((_, log)) = &mut self.run.log {
            let written = log.text(step, name, text);
            self.hear_log(written);
        }
    }

    fn log(&mut self, step: u64, fields: &[(&str, f64)]) {
        if let Some((_, log)) = &mut self.run.log {
            let written = log.scalars(step, fields);
            self.hear_log(written);
        }
    }

    /// A full disk is no reason to lose the steps done: the log has a gap then, and its first line that is lost is told.
    fn hear_log(&mut self, written: russet_artifact::Result<()>) {
        if let (Err(error), false) = (&written, self.log_fails) {
            self.run.progress.message(&format!(
                "the log is not written: {error}. Training goes on, and the log once it can be written again"
            ));
        }
        self.log_fails = written.is_err();
    }

    fn not_finite(
        &mut self,
        state: &State,
        what: &'static str,
        value: f64,
        batches: &[Batch],
    ) -> TrainError {
        let origins = self.ranks.origins(batches);
        let names = self.run.batches.names();
        let step = state.step + 1;
        let error = |most| TrainError::NotFinite {
            step,
            what,
            value,
            documents: document_list(&origins, &names, most),
        };
        let name = match what {
            "loss" => "loss",
            _ => "gradient_norm",
        };
        self.log(step, &[(name, value)]);
        self.log_text(step, "not_finite", &error(usize::MAX).to_string());
        error(SHOWN)
    }
}

/// The operations that a forward and backward pass over these segments needs: exactly the products of the weights and of
/// each token with those before it in its segment that a layer sees, and nothing that an implementation may waste. Frozen weights take no
/// gradient, which is a third of it; what adapters on them need is not counted.
fn training_flops(decoder: &Decoder, segments: &Segments) -> f64 {
    let config = decoder.config();
    let passes = if decoder.is_frozen() { 2.0 } else { 3.0 };
    let alone = config.forward_flops(0);
    let pairs: f64 = segments.iter().map(|s| config.pairs(s.len)).sum();
    passes * (segments.tokens() as f64 * alone + pairs * config.pair_flops())
}

/// What a rank's batches of a step count.
fn counts(state: &State, batches: &[Batch]) -> Sums {
    let mut sums = Sums {
        tokens_by_source: vec![0; state.tally.tokens_by_source.len()],
        ..Sums::default()
    };
    for batch in batches {
        sums.tokens += batch.tokens.len() as u64;
        sums.flops += training_flops(&state.decoder, &batch.segments);
        for origin in &batch.origins {
            if let Some(count) = sums.tokens_by_source.get_mut(origin.source) {
                *count += origin.targets.len() as u64;
            }
        }
    }
    sums
}

/// Adds a step to the counts.
fn count(state: &mut State, sums: &Sums) {
    let tally = &mut state.tally;
    tally.tokens += sums.tokens;
    tally.flops += sums.flops;
    for (all, count) in tally
        .tokens_by_source
        .iter_mut()
        .zip(&sums.tokens_by_source)
    {
        *all += count;
    }
}

fn unsaved(what: String, source: TrainError) -> TrainError {
    let source = Box::new(source);
    TrainError::Unsaved { what, source }
}

/// Exchanges weights and running mean, where there is one.
fn swap_average(state: &mut State) {
    if let Some(average) = &mut state.average {
        average.swap(&mut state.decoder);
    }
}

/// Runs of documents that a sentence for a person names; the log names all.
const SHOWN: usize = 16;

/// "documents 3-7, 12 (counted from 0) of NAME and 4 of ANOTHER", at most so many of them.
fn document_list(origins: &[Origin], names: &[String], most: usize) -> String {
    let mut lists: Vec<String> = Vec::new();
    for (source, name) in names.iter().enumerate() {
        let shown = origins.iter().take(most);
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
    let more = match origins.len().saturating_sub(most) {
        0 => String::new(),
        more => format!(", and {more} more runs of documents"),
    };
    format!("documents {}{more}", lists.join(" and "))
}

#[cfg(test)]
pub(crate) mod tests;
