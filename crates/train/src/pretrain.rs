//! Pre-training: the loop on packed token shards, and the checkpoint it leaves.
//!
//! ```text
//! OUT/         the checkpoint: a Hugging Face folder, written at the end
//! OUT.best/    that of the lowest validation loss, where it is kept
//! OUT.state/   where the run stands, while it runs
//! OUT.log/     losses and rates, kept
//! ```
//! Where a running mean of the weights is kept, it is what is validated and what the checkpoints are.

use std::cell::Cell;
use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russet_artifact::{Draft, Hold, Interrupt, Kind, NoProgress, Progress, RunLog, Stage, Tool};
use russet_model::{Decoder, checkpoint};
use russet_tensor::Ctx;
use russet_tensor::mesh::{AXES, Mesh, MeshShape};
use russet_tensor::threads::{self, Failure};
use serde::Serialize;

use crate::average::Average;
use crate::launch::{Launch, World};
use crate::loader::Batches;
use crate::plan::Plan;
use crate::probe::matmul_gflops_in;
use crate::publish::Checkpoint;
use crate::ranks::place_in_data;
use crate::run::{Ended, Keep, Loop, Measure, Record, Saving, train};
use crate::save::{Job, Writer};
use crate::settings::Recompute;
use crate::state::{State, StateStore, speaks};
use crate::validation::{GoesOn, Validation};
use crate::{Result, TrainError};

/// What to do with what an earlier process left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resume {
    /// Go on from a saved state of the same run; refuse that of another; do nothing if the checkpoint is there.
    #[default]
    Continue,
    /// Begin at the first step, whatever is there.
    Restart,
}

/// How [`pretrain`] ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The checkpoint is written.
    Finished(TrainReport),
    /// The checkpoint of these settings and inputs was there already.
    Current,
    /// Stopped on request; the same call goes on from here.
    Interrupted {
        /// Steps done.
        step: u64,
    },
}

/// What a finished run says of itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainReport {
    /// Loss of the first step, in nats per token, with the terms of z-loss and teacher where there are any.
    pub first_loss: f32,
    /// That of the last step.
    pub last_loss: f32,
    /// Updates of the weights.
    pub steps: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Seconds spent in steps, over all resumes.
    pub seconds: f64,
    /// The one by the other.
    pub tokens_per_second: f64,
    /// Operations that the model needs over those that the machine, at the rate measured at the start, could have done.
    pub mfu: f64,
    /// The measured rate of the machine's products, in GFLOP/s.
    pub peak_gflops: f64,
    /// Mean loss on held-out text, in nats per token.
    pub validation_nats: Option<f64>,
    /// The same in bits per byte of text.
    pub bits_per_byte: Option<f64>,
    /// Steps whose gradients were thrown away.
    pub skipped_steps: u64,
    /// The step of the lowest validation loss, where its checkpoint is kept.
    pub best_step: Option<u64>,
    /// Ranks that shared the work.
    pub ranks: usize,
    /// The most bytes of weights, gradients, moments, a copy being saved and activations at one time, over all ranks.
    pub peak_bytes: usize,
    /// Those of each rank.
    pub peak_bytes_per_rank: Vec<usize>,
    /// Bytes that each rank sent in the last step, but for validation and saves, by the count of [`russet_tensor::mesh`].
    pub bytes_moved_per_step: Vec<u64>,
    /// The loss of each step since this process began.
    pub losses: Vec<f32>,
}

/// Trains a decoder by `plan` and leaves its checkpoint in `out`. Killed at any moment and called again, it leaves the
/// same weights to the last bit. Ranks are threads of this process.
///
/// # Errors
/// When `out` or the state beside it holds something else, the run diverges, or the system refuses.
pub fn pretrain(
    plan: &Plan,
    out: &Path,
    tool: &Tool,
    resume: Resume,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<Outcome> {
    pretrain_as(
        &Launch::Threads,
        plan,
        out,
        tool,
        resume,
        progress,
        interrupt,
    )
}

/// As [`pretrain`], with ranks as they were launched. Each process calls it alike and returns alike; `progress` hears of the
/// first alone. After an error the other processes may still wait for this one, so it is to end them.
///
/// # Errors
/// As [`pretrain`], and when there are not as many processes as ranks.
pub fn pretrain_as(
    launch: &Launch,
    plan: &Plan,
    out: &Path,
    tool: &Tool,
    resume: Resume,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<Outcome> {
    let shape = plan.mesh();
    let stage = plan.stage(tool)?;
    let run = Run {
        plan,
        store: StateStore::new(
            beside(out, "state")?,
            stage.clone(),
            plan.settings().train.keep_last,
        ),
        stage,
        best: beside(out, "best")?,
        log: beside(out, "log")?,
        ranks_here: launch.ranks_here(shape)?,
        interrupt,
    };
    if let Launch::Processes(world) = launch {
        return run.on_process(world, out, resume, progress);
    }
    let Some((draft, _hold)) = run.begin(out, resume)? else {
        return Ok(Outcome::Current);
    };
    if shape.ranks() == 1 {
        return run.on_rank(None, Some(draft), progress);
    }
    let first = |mesh| run.on_rank(Some(mesh), Some(draft), progress);
    let others = |mesh| run.on_rank(Some(mesh), None, &mut NoProgress);
    match threads::run_with(shape, first, others) {
        Ok(mut outcomes) => Ok(outcomes.swap_remove(0)),
        Err(Failure::Error(error)) => Err(error),
        Err(Failure::Panicked { rank, message }) => Err(TrainError::Rank {
            rank,
            ranks: shape.ranks(),
            problem: message,
        }),
    }
}

/// What all ranks of a run are told.
struct Run<'a> {
    plan: &'a Plan,
    stage: Stage,
    store: StateStore,
    best: PathBuf,
    log: PathBuf,
    ranks_here: usize,
    interrupt: &'a Interrupt,
}

impl Run<'_> {
    /// What the first rank does before all others: looks at what is there, keeps other processes out, and makes the draft of
    /// the checkpoint; `None` where that is there already.
    fn begin(&self, out: &Path, resume: Resume) -> Result<Option<(Draft, Hold)>> {
        let Run {
            plan, stage, store, ..
        } = self;
        let hold = Hold::take(out, &self.log)?;
        if resume == Resume::Continue && stage.current(out, Kind::Checkpoint).is_ok() {
            // Left where the process was killed just after its last rename.
            if store.holds_this_run() {
                store.remove()?;
            }
            return Ok(None);
        }
        let memory = plan.describe().memory;
        memory.check_share(self.ranks_here, plan.mesh().ranks())?;
        // Before the work: a place that cannot be written to is found now.
        let draft = Draft::of_stage(out, Kind::Checkpoint, &stage.name)?;
        if plan.settings().train.keep_best {
            drop(Draft::create(&self.best, Kind::Checkpoint)?);
        }
        // Last, when nothing more can be refused.
        if resume == Resume::Restart {
            store.remove()?;
        }
        Ok(Some((draft, hold)))
    }

    /// The part of one process of several.
    fn on_process(
        &self,
        world: &World,
        out: &Path,
        resume: Resume,
        progress: &mut dyn Progress,
    ) -> Result<Outcome> {
        let machines = world.machines();
        let mesh = world.mesh(self.plan.mesh());
        let is_first = mesh.rank() == 0;
        // The others wait in the call below until the first has made up its mind.
        let (draft, _hold) = match is_first {
            true => self.begin(out, resume)?.unzip(),
            false => (None, None),
        };
        let begun = mesh.all().all_gather_bytes(&[u8::from(draft.is_some())]);
        if begun[0] == [0] {
            return Ok(Outcome::Current);
        }
        let mut silent = NoProgress;
        let progress = match is_first {
            true => {
                progress.message(&places(&machines));
                progress
            }
            false => &mut silent,
        };
        let (rank, ranks) = (mesh.rank(), world.size());
        let part = || self.on_rank(Some(mesh), draft, progress);
        catch_unwind(AssertUnwindSafe(part)).unwrap_or_else(|panic| {
            let problem = threads::message(&*panic);
            Err(TrainError::Rank {
                rank,
                ranks,
                problem,
            })
        })
    }

    /// The part of one rank. The first has the draft of the checkpoint.
    fn on_rank(
        &self,
        mesh: Option<Arc<Mesh>>,
        draft: Option<Draft>,
        progress: &mut dyn Progress,
    ) -> Result<Outcome> {
        let Run {
            plan,
            stage,
            store,
            best,
            log,
            ranks_here,
            interrupt,
        } = self;
        let settings = &plan.settings().train;
        let is_first = draft.is_some();
        let objective = plan.objective()?;
        let mut ctx = Ctx::new(Arc::new(plan.pool(*ranks_here)?));
        ctx.compute = plan.settings().compute.dtype.kernel();
        ctx.recompute = plan.settings().compute.recompute == Recompute::Block;
        // Of all ranks together; measured by one while the others wait for it.
        let ranks = plan.mesh().ranks() as f64;
        let peak_flops = match is_first {
            true => ranks * matmul_gflops_in(&ctx.pool, ctx.compute) * 1e9,
            false => f64::NAN,
        };
        let (place, places) = place_in_data(mesh.as_ref());
        let mut batches = plan.open_train()?.shared(place, places);
        let fresh = |decoder: Decoder| State {
            average: (settings.ema > 0.0).then(|| Average::new(settings.ema, &decoder)),
            ..State::new(decoder, plan.optimizer())
        };
        let mut state = match store.load(mesh.as_ref(), fresh, ctx.pool.isa())? {
            Some(loaded) => {
                batches.restore(&loaded.batches)?;
                progress.message(&format!(
                    "going on after step {} of {}",
                    loaded.state.step,
                    plan.steps()
                ));
                if let Some(isa) = loaded.other_isa {
                    progress.message(&format!(
                    "the steps before ran on {isa} and these run on {:?}, which round differently: the weights will not be \
                     to the last bit those of a run in one go (set RUSSET_ISA to go on as it began)",
                    ctx.pool.isa()
                ));
                }
                if let Some(mesh) = loaded.other_mesh {
                    progress.message(&format!(
                    "the steps before ran on {} and these run on {}, which add up in another order: losses agree within 1e-5, \
                     not to the last bit",
                    ranks_of(mesh),
                    ranks_of(plan.mesh())
                ));
                }
                loaded.state
            }
            None => {
                let config = plan.config();
                fresh(match plan.checkpoint() {
                    Some(folder) => {
                        progress.message(&format!("beginning with {}", folder.display()));
                        let decoder = match &mesh {
                            None => checkpoint::load(folder)?,
                            Some(mesh) => checkpoint::load_on_mesh(folder, mesh)?,
                        };
                        decoder.with_positions(config.rope_theta, config.context)
                    }
                    None => Decoder::random_on_mesh(config, settings.seed, mesh.as_ref()),
                })
            }
        };
        let mut log = match (is_first, state.step) {
            (false, _) => None,
            (true, 0) => Some(RunLog::create(log)?),
            (true, step) => Some(RunLog::resume(log, step)?),
        };

        let validation = plan.open_validation()?.map(|shard| {
            let pass_tokens = plan.packing().micro_batch_sequences * settings.sequence_length;
            Validation::new(
                shard,
                plan.begin_of_text(),
                settings.validation_tokens,
                settings.sequence_length,
                pass_tokens,
            )
        });
        let validation = validation.transpose()?;
        let measured = Cell::new(None);
        let mut measure = |ctx: &mut Ctx, decoder: &Decoder, goes_on: &mut GoesOn| {
            let validation = validation
                .as_ref()
                .expect("only handed over where there is one");
            let result = validation.measure(ctx, decoder, goes_on)?;
            measured.set(result);
            Ok(result.map(|result| {
                vec![
                    ("validation_loss", result.nats_per_token),
                    ("validation_bits_per_byte", result.bits_per_byte),
                ]
            }))
        };
        let measure: &mut Measure = &mut measure;
        let keep = |state: &State| {
            let Some(checkpoint) = Checkpoint::of(plan, state, measured.get()) else {
                return Ok(None);
            };
            let mut stage = stage.clone();
            stage.name = "pretrain-best".to_owned();
            stage.recipe["best_step"] = state.step.into();
            let place = best.clone();
            let work = move || {
                let draft = Draft::create(&place, Kind::Checkpoint)?;
                checkpoint.write(&draft)?;
                draft.commit(&stage)?;
                Ok(())
            };
            Ok(Some(Job {
                what: format!("the best checkpoint, of step {},", state.step),
                work: Box::new(work),
            }))
        };
        let keep: &Keep = &keep;
        let mut writer = Writer::new()?;
        let mut record = Record::default();
        let run = Loop {
            name: "pretrain",
            steps: plan.steps(),
            schedule: plan.schedule(),
            clip_norm: (settings.clip_norm > 0.0).then_some(settings.clip_norm),
            skip_norm: (settings.skip_norm > 0.0).then_some(settings.skip_norm),
            spike_deviations: settings.spike_deviations,
            objective: &*objective,
            batches: &mut batches,
            measure: validation
                .is_some()
                .then_some((settings.validate_every, measure)),
            saving: Some(Saving {
                every: settings.checkpoint_every,
                store,
                writer: &mut writer,
                best: settings.keep_best.then_some(keep),
            }),
            log: log.as_mut().map(|log| (settings.log_every, log)),
            progress,
            record: Some(&mut record),
            interrupt,
            peak_flops,
        };
        if train(run, &mut ctx, &mut state)? == Ended::Interrupted {
            return Ok(Outcome::Interrupted { step: state.step });
        }
        let measured = measured.get();
        if let Some(average) = &mut state.average {
            average.swap(&mut state.decoder);
        }
        let own = OwnBytes::of(
            &state,
            &ctx,
            settings.checkpoint_every,
            record.moved.total(),
        );
        let bytes = own.of_all(mesh.as_deref());
        let checkpoint = Checkpoint::of(plan, &state, measured);
        if let (Some(checkpoint), Some(draft)) = (checkpoint, draft) {
            checkpoint.write(&draft)?;
            draft.commit(stage)?;
            store.remove()?;
        }

        let tally = state.tally;
        Ok(Outcome::Finished(TrainReport {
            first_loss: tally.first_loss,
            last_loss: tally.last_loss,
            steps: state.step,
            tokens: tally.tokens,
            seconds: tally.seconds,
            tokens_per_second: tally.tokens as f64 / tally.seconds,
            mfu: tally.flops / tally.seconds / peak_flops,
            peak_gflops: peak_flops / 1e9,
            validation_nats: measured.map(|result| result.nats_per_token),
            bits_per_byte: measured.map(|result| result.bits_per_byte),
            skipped_steps: tally.skipped,
            best_step: tally.best.map(|(step, _)| step),
            ranks: bytes.len(),
            peak_bytes: bytes.iter().map(|bytes| bytes.peak).sum(),
            peak_bytes_per_rank: bytes.iter().map(|bytes| bytes.peak).collect(),
            bytes_moved_per_step: bytes.iter().map(|bytes| bytes.moved).collect(),
            losses: record.losses,
        }))
    }
}

/// Bytes of a rank.
struct OwnBytes {
    peak: usize,
    moved: u64,
}

impl OwnBytes {
    fn of(state: &State, ctx: &Ctx, checkpoint_every: u64, moved: u64) -> OwnBytes {
        let parameters = state.decoder.parameters();
        let weights = parameters
            .iter()
            .map(|p| size_of_val(p.tensor.data()))
            .sum::<usize>();
        let average = state.average.as_ref().map_or(0, Average::bytes);
        let kept = weights + state.optimizer.bytes() + average;
        let saves = checkpoint_every > 0 && checkpoint_every < state.step && speaks(&state.decoder);
        OwnBytes {
            peak: kept + if saves { kept } else { 0 } + ctx.peak_bytes(),
            moved,
        }
    }

    /// Those of all ranks, in order.
    fn of_all(self, mesh: Option<&Mesh>) -> Vec<OwnBytes> {
        let Some(mesh) = mesh else {
            return vec![self];
        };
        let heard = mesh
            .all()
            .all_gather_f64(&[self.peak as f64, self.moved as f64]);
        let bytes = |said: Vec<f64>| OwnBytes {
            peak: said[0] as usize,
            moved: said[1] as u64,
        };
        heard.into_iter().map(bytes).collect()
    }
}

/// "4 ranks: 0-1 on one, 2-3 on another".
fn places(machines: &[String]) -> String {
    let mut places: Vec<String> = Vec::new();
    let mut first = 0;
    for run in machines.chunk_by(|a, b| a == b) {
        let last = first + run.len() - 1;
        let ranks = match run.len() {
            1 => first.to_string(),
            _ => format!("{first}-{last}"),
        };
        places.push(format!("{ranks} on {}", run[0]));
        first = last + 1;
    }
    const SHOWN: usize = 16;
    let more = match places.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    places.truncate(SHOWN);
    format!("{} ranks: {}{more}", machines.len(), places.join(", "))
}

/// "2 ranks (fsdp 2)".
fn ranks_of(mesh: MeshShape) -> String {
    let axes = AXES.into_iter().filter(|axis| mesh.size(*axis) > 1);
    let axes: Vec<String> = axes
        .map(|axis| format!("{} {}", axis.name(), mesh.size(axis)))
        .collect();
    match axes.is_empty() {
        true => "1 rank".to_owned(),
        false => format!("{} ranks ({})", mesh.ranks(), axes.join(", ")),
    }
}

/// The folder beside `out` that has its name and `.WORD`.
fn beside(out: &Path, word: &str) -> Result<PathBuf> {
    let name = out.file_name().ok_or_else(|| TrainError::Data {
        place: out.to_owned(),
        problem: "does not end in a folder's name; say where the checkpoint goes".to_owned(),
    })?;
    let mut name: OsString = name.to_owned();
    name.push(format!(".{word}"));
    Ok(out.with_file_name(name))
}
