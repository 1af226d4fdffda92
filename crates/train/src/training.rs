//! A run from what it is told to the artifact that it leaves, whatever is learnt.
//!
//! ```text
//! OUT/         the artifact, written at the end: a checkpoint (a Hugging Face folder), or an adapter (a PEFT folder)
//! OUT.best/    that of the lowest validation loss, where it is kept
//! OUT.state/   where the run stands, while it runs
//! OUT.log/     losses and rates, kept
//! ```
//! Where a running mean of the weights is kept, it is what is validated and what is written.
//!
//! A caller says what is learnt by a [`Task`] (data, loss, measure, and what goes beside the weights) and what is trained by
//! [`Trained`]; [`Training::run`] does the rest: it starts or goes on, runs the loop on every rank, saves, logs, measures, keeps
//! the best, and leaves the artifact. Pre-training is [`crate::Plan`]'s task, accuracy recovery the same on a package under
//! adapters, and supervised fine-tuning one of the crate above:
//! ```text
//! let schedule = settings.train.resolve(&settings.optimizer, &settings.schedule)?;      // checks; fills in what was left open
//! let training = Training {
//!     stage: Stage::new("sft", tool, recipe, inputs),   // what the result is a function of; `inputs` has the base
//!     train: &settings.train, optimizer, schedule, compute: &settings.compute, mesh,
//!     trained: Trained::Weights { config, checkpoint: Some(base), tokenizer }, or Trained::Adapters(Adapters { base, settings, first }),
//!     reward: false,
//!     memory: None,
//!     task: &task,                                      // an implementation of Task
//!     measures_start: true,
//! };
//! match training.run(&launch, out, resume, progress, interrupt)? { Outcome::Finished(report) => ... }
//! ```

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russet_artifact::{
    Artifact, Draft, Hold, Interrupt, Kind, NoProgress, Progress, RunLog, Stage,
};
use russet_kernels::Pool;
use russet_model::{Config, Decoder, RewardHead, adapter, checkpoint};
use russet_tensor::mesh::{AXES, Mesh, MeshShape};
use russet_tensor::threads::{self, Failure};
use russet_tensor::{Ctx, Tensor};
use serde::Serialize;
use serde_json::Value;

use crate::adapt::AdapterSettings;
use crate::average::Average;
use crate::launch::{Launch, World};
use crate::loader::Batches;
use crate::objective::Objective;
use crate::price::Memory;
use crate::probe::matmul_gflops_in;
use crate::publish::Publication;
use crate::ranks::place_in_data;
use crate::run::{
    BITS_PER_BYTE, Ended, Keep, Loop, Measure, Measured, Record, Saving, VALIDATION_LOSS, train,
};
use crate::save::{Job, Writer};
use crate::schedule::Schedule;
use crate::settings::{ComputeSettings, OptimizerSettings, Recompute, TrainSettings};
use crate::state::{State, StateStore, rounding, speaks};
use crate::validation::GoesOn;
use crate::wrapped::{Unwrapped, Wrapped};
use crate::{Result, TrainError};

/// What is learnt, and from what. Each rank of a mesh asks for its own.
pub trait Task: Sync {
    /// The loss, with whatever it holds besides the decoder.
    ///
    /// # Errors
    /// When that cannot be read.
    fn objective(&self) -> Result<Box<dyn Objective + '_>>;

    /// The data at the first step: of ranks that see other sequences each, the share of place `place` of `places`.
    ///
    /// # Errors
    /// When they cannot be read.
    fn batches(&self, place: usize, places: usize) -> Result<Box<dyn Batches + '_>>;

    /// How good the decoder is; nothing where there is nothing to measure on. [`VALIDATION_LOSS`] decides which is the best, and
    /// with [`BITS_PER_BYTE`] stands in the report.
    ///
    /// # Errors
    /// When what it measures on cannot be read.
    fn measure(&self) -> Result<Option<Box<Measure<'_>>>>;

    /// Whether a step is the same however many follow it, but for its rates: then a run that was stopped may go on to another
    /// number of steps.
    fn is_of_any_length(&self) -> bool {
        false
    }

    /// Files that go beside the weights, by name: `README.md`, a report. No time goes into them, nor a name: the same run leaves
    /// the same bytes. `measured` is what was measured last.
    ///
    /// # Errors
    /// When they cannot be made.
    fn files(&self, state: &State, measured: &Measured) -> Result<Vec<(String, Vec<u8>)>>;
}

/// What is trained, and with which numbers it begins.
pub enum Trained<'a> {
    /// All weights; the run leaves a checkpoint.
    Weights {
        /// The decoder's shape.
        config: Config,
        /// Whose weights are the first; random ones by the run's seed where absent.
        checkpoint: Option<PathBuf>,
        /// The folder of the tokenizer that goes with it.
        tokenizer: PathBuf,
    },
    /// Low-rank matrices beside the frozen weights of a package or a checkpoint; the run leaves an adapter. On one rank.
    Adapters(Adapters<'a>),
    /// A checkpoint or a package whose layers stand in others while they are trained. On one rank.
    Wrapped(Wrapped<'a>),
}

/// Adapters to be trained.
pub struct Adapters<'a> {
    /// The package or checkpoint, which must be an input of the stage: an adapter names its base by the input's hash.
    pub base: PathBuf,
    /// Ranks, targets and the type in the file.
    pub settings: AdapterSettings,
    /// The first numbers.
    pub first: First<'a>,
}

/// The first numbers of adapters.
pub enum First<'a> {
    /// Those that change nothing yet.
    New,
    /// Those of a PEFT folder, whose ranks and targets hold.
    Of(PathBuf),
    /// Of each projection by its name A `[R, D]` and B `[F, R]`, made when a run begins and not when it goes on.
    Made(&'a Make<'a>),
}

/// Makes the first matrices of adapters.
pub type Make<'a> =
    dyn Fn(&Arc<Pool>, &mut dyn Progress) -> Result<BTreeMap<String, (Tensor, Tensor)>> + Sync + 'a;

/// A run that has been checked.
pub struct Training<'a> {
    /// Everything that the result is a function of. Its name is the verb's: "pretrain".
    pub stage: Stage,
    /// The loop, resolved.
    pub train: &'a TrainSettings,
    /// The rule that updates weights.
    pub optimizer: OptimizerSettings,
    /// The learning rates.
    pub schedule: Schedule,
    /// Threads and types.
    pub compute: &'a ComputeSettings,
    /// The ranks.
    pub mesh: MeshShape,
    /// What it takes, of all ranks: a run is refused that has not as much. Nobody asks where absent.
    pub memory: Option<Memory>,
    /// What is trained.
    pub trained: Trained<'a>,
    /// Whether the decoder has a reward head, which is trained whatever else is: a new one by the run's seed where what the run
    /// begins with has none.
    pub reward: bool,
    /// What is learnt.
    pub task: &'a dyn Task,
    /// Whether it is measured before the first step too.
    pub measures_start: bool,
}

/// What to do with what an earlier process left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resume {
    /// Go on from a saved state of the same run; refuse that of another; do nothing if the artifact is there.
    #[default]
    Continue,
    /// Begin at the first step, whatever is there.
    Restart,
}

/// How a run ended.
#[allow(
    clippy::large_enum_variant,
    reason = "there is one, at the end of a run"
)]
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The artifact is written.
    Finished(TrainReport),
    /// The artifact of these settings and inputs was there already.
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
    /// The measured rate of the machine's products, or what steps reached where that is more, in GFLOP/s.
    pub peak_gflops: f64,
    /// Mean loss on held-out text, in nats per token.
    pub validation_nats: Option<f64>,
    /// The same in bits per byte of text.
    pub bits_per_byte: Option<f64>,
    /// Mean loss on held-out text before the first step, where that was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_nats_before: Option<f64>,
    /// The same in bits per byte of text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits_per_byte_before: Option<f64>,
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

impl TrainReport {
    /// What a closing line should say besides the loss: ", 12 of 100 steps skipped"; nothing where nothing is to be said.
    pub fn skipped_words(&self) -> String {
        match self.skipped_steps {
            0 => String::new(),
            skipped => format!(", {skipped} of {} steps skipped", self.steps),
        }
    }
}

impl Training<'_> {
    /// Trains, and leaves the artifact in `out`. Killed at any moment and called again, it leaves the same bytes.
    ///
    /// Each process of a launch calls it alike and returns alike; `progress` hears of the first alone. After an error the other
    /// processes may still wait for this one, so it is to end them.
    ///
    /// # Errors
    /// When `out` or the state beside it holds something else, there are not as many processes as ranks, the run diverges, or the
    /// system refuses.
    pub fn run(
        &self,
        launch: &Launch,
        out: &Path,
        resume: Resume,
        progress: &mut dyn Progress,
        interrupt: &Interrupt,
    ) -> Result<Outcome> {
        let shape = self.mesh;
        if self.reward && shape.ranks() > 1 {
            let problem =
                "makes several ranks, but a reward head is trained on one; leave `[parallel]` out";
            return Err(TrainError::setting("parallel", problem));
        }
        let whole = match &self.trained {
            Trained::Weights { .. } => None,
            Trained::Adapters(_) => Some("adapters"),
            Trained::Wrapped(wrapped) if wrapped.kind == Kind::Package => Some("palettes"),
            Trained::Wrapped(_) => Some("masks"),
        };
        if let (Some(what), 2..) = (whole, shape.ranks()) {
            let problem = format!(
                "makes {} ranks, but {what} are trained on one; leave `[parallel]` out",
                shape.ranks()
            );
            return Err(TrainError::setting("parallel", problem));
        }
        let run = Run {
            training: self,
            store: self.store(out)?,
            best: beside(out, "best")?,
            log: beside(out, "log")?,
            name: out
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            ranks_here: launch.ranks_here(shape)?,
            interrupt,
        };
        if let Launch::Processes(world) = launch {
            return run.on_process(world, out, resume, progress);
        }
        let Some((draft, _hold)) = run.begin(out, resume, progress)? else {
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

    /// Where its states lie.
    pub(crate) fn store(&self, out: &Path) -> Result<StateStore> {
        let dir = beside(out, "state")?;
        let store = StateStore::new(dir, self.stage.clone(), self.train.keep_last);
        Ok(match self.task.is_of_any_length() {
            true => store.of_any_length(self.schedule),
            false => store,
        })
    }

    fn steps(&self) -> u64 {
        self.train.steps.expect("resolved settings say how many")
    }

    /// The hash of the input that lies in this folder, which stands for its bytes.
    fn base(&self, folder: &Path) -> Option<String> {
        let hash = self.stage.inputs.hash_of(folder);
        hash.map(|hash| hash.to_string())
    }

    /// What is written of a state. On a mesh all ranks ask, and the first gets it.
    fn publication(&self, state: &State, measured: &Measured) -> Result<Option<Publication>> {
        let Some(mut publication) = (match &self.trained {
            Trained::Weights { tokenizer, .. } => {
                Publication::checkpoint(&state.decoder, tokenizer)
            }
            Trained::Adapters(Adapters { base, settings, .. }) => {
                let base = self.base(base);
                let dtype = settings.dtype.dtype();
                Some(Publication::adapter(&state.decoder, base, dtype))
            }
            Trained::Wrapped(Wrapped { base, unwrap, .. }) => match unwrap(&state.decoder)? {
                Unwrapped::Decoder(decoder) => Publication::checkpoint(&decoder, base),
                Unwrapped::Files(write) => Some(Publication::files(write)),
            },
        }) else {
            return Ok(None);
        };
        publication.files = self.task.files(state, measured)?;
        Ok(Some(publication))
    }
}

impl Trained<'_> {
    /// What it leaves.
    pub fn kind(&self) -> Kind {
        match self {
            Trained::Weights { .. } => Kind::Checkpoint,
            Trained::Adapters(_) => Kind::Adapter,
            Trained::Wrapped(wrapped) => wrapped.kind,
        }
    }

    /// What a saved state is laid into: a decoder of which it has the parameters; nothing where it has all that a configuration
    /// tells of.
    fn frame(&self, base: Option<&str>, reward: bool) -> Result<Option<Decoder>> {
        let decoder = match self {
            Trained::Weights {
                config,
                checkpoint: Some(folder),
                ..
            } if reward => {
                checkpoint::load(folder)?.with_positions(config.rope_theta, config.context)
            }
            Trained::Weights { config, .. } if reward => Decoder::random(config, 0),
            Trained::Weights { .. } => return Ok(None),
            Trained::Adapters(adapters) => {
                let decoder = checkpoint::open(&adapters.base)?;
                match &adapters.first {
                    First::Of(folder) => adapter::attach(decoder, folder, base)?,
                    First::New | First::Made(_) => adapters.settings.attach(decoder, 0),
                }
            }
            Trained::Wrapped(Wrapped { wrap, .. }) => wrap()?,
        };
        Ok(Some(with_reward(decoder, reward, 0)))
    }
}

/// The decoder with a reward head, a new one where none is there; or without, where none is wanted.
fn with_reward(decoder: Decoder, wanted: bool, seed: u64) -> Decoder {
    match (wanted, decoder.reward_head().is_some()) {
        (true, false) => {
            let head = RewardHead::random(decoder.config(), seed);
            decoder.with_reward(head)
        }
        (false, true) => decoder.without_reward(),
        _ => decoder,
    }
}

/// What all ranks of a run are told.
struct Run<'a> {
    training: &'a Training<'a>,
    store: StateStore,
    best: PathBuf,
    log: PathBuf,
    /// Of the artifact's folder: what the progress is that of.
    name: String,
    ranks_here: usize,
    interrupt: &'a Interrupt,
}

impl Run<'_> {
    /// What the first rank does before all others: looks at what is there, keeps other processes out, and makes the draft of
    /// the artifact; `None` where that is there already.
    fn begin(
        &self,
        out: &Path,
        resume: Resume,
        progress: &mut dyn Progress,
    ) -> Result<Option<(Draft, Hold)>> {
        let Run {
            training, store, ..
        } = self;
        let (stage, kind) = (&training.stage, training.trained.kind());
        let hold = Hold::take(out, &self.log)?;
        let current = stage.current(out, kind);
        if resume == Resume::Continue && current.is_ok() {
            // Left where the process was killed just after its last rename.
            if matches!(store.step(), Ok(Some(_))) {
                store.remove()?;
            }
            return Ok(None);
        }
        if let Some(memory) = &training.memory {
            memory.check_share(self.ranks_here, training.mesh.ranks())?;
        }
        // Before the work: a place that cannot be written to is found now.
        let draft = stage.begin(out, kind)?;
        if training.train.keep_best {
            drop(Draft::create(&self.best, kind)?);
        }
        if Artifact::open(out, kind).is_ok() {
            let why = current
                .err()
                .map_or(String::new(), |why| format!(": {why}"));
            progress.message(&format!(
                "{} holds the result of an earlier run, which this one replaces when it has ended{why}",
                out.display()
            ));
        }
        if let Ok(best) = Artifact::open(&self.best, kind)
            && self
                .best_stage(best.manifest().recipe["best_step"].clone())
                .key()
                != best.manifest().key()
        {
            progress.message(&format!(
                "{} is of another run, or of another length of this one{}",
                self.best.display(),
                match training.train.keep_best {
                    true => ", and is replaced when this one measures a lower loss",
                    false => ", and is left as it is",
                }
            ));
        }
        // Last, when nothing more can be refused.
        if resume == Resume::Restart {
            store.remove()?;
        }
        Ok(Some((draft, hold)))
    }

    /// What leaves the best so far, of that step.
    fn best_stage(&self, step: Value) -> Stage {
        let mut stage = self.training.stage.clone();
        stage.name += "-best";
        stage.recipe["best_step"] = step;
        stage
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
        let mesh = world.mesh(self.training.mesh);
        let is_first = mesh.rank() == 0;
        // The others wait in the call below until the first has made up its mind.
        let (draft, _hold) = match is_first {
            true => self.begin(out, resume, progress)?.unzip(),
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

    /// The part of one rank. The first has the draft of the artifact.
    fn on_rank(
        &self,
        mesh: Option<Arc<Mesh>>,
        draft: Option<Draft>,
        progress: &mut dyn Progress,
    ) -> Result<Outcome> {
        let Run {
            training,
            store,
            best,
            log,
            name,
            ranks_here,
            interrupt,
        } = self;
        let (settings, compute, trained) = (training.train, training.compute, &training.trained);
        let is_first = draft.is_some();
        let objective = training.task.objective()?;
        let mut ctx = Ctx::new(Arc::new(compute.pool(*ranks_here)?));
        ctx.compute = compute.dtype.kernel();
        ctx.recompute = compute.recompute == Recompute::Block;
        // Of all ranks together; measured by one while the others wait for it.
        let ranks = training.mesh.ranks() as f64;
        let peak_flops = match is_first {
            true => ranks * matmul_gflops_in(&ctx.pool, ctx.compute) * 1e9,
            false => f64::NAN,
        };
        let (place, places) = place_in_data(mesh.as_ref());
        let mut batches = training.task.batches(place, places)?;
        let fresh = |decoder: Decoder| State {
            average: (settings.ema > 0.0).then(|| Average::new(settings.ema, &decoder)),
            ..State::new(decoder, training.optimizer)
        };
        let base = match trained {
            Trained::Weights { .. } | Trained::Wrapped(_) => None,
            Trained::Adapters(adapters) => training.base(&adapters.base),
        };
        let frame = || trained.frame(base.as_deref(), training.reward);
        let mut state = match store.load(mesh.as_ref(), frame, fresh, rounding(&ctx))? {
            Some(loaded) => {
                batches.restore(&loaded.batches)?;
                progress.message(&format!(
                    "going on after step {} of {}",
                    loaded.state.step,
                    training.steps()
                ));
                if let Some(steps) = loaded.other_length {
                    progress.message(&format!(
                        "it began as a run of {steps} steps, whose rates so far are those of this one of {}",
                        training.steps()
                    ));
                }
                if let Some(isa) = loaded.other_isa {
                    progress.message(&format!(
                    "the steps before ran on {isa} and these run on {:?}, which round differently: the weights will not be \
                     to the last bit those of a run in one go (set RUSSET_ISA to go on as it began)",
                    rounding(&ctx)
                ));
                }
                if let Some(mesh) = loaded.other_mesh {
                    progress.message(&format!(
                    "the steps before ran on {} and these run on {}, which add up in another order: losses agree within 1e-5, \
                     not to the last bit",
                    ranks_of(mesh),
                    ranks_of(training.mesh)
                ));
                }
                loaded.state
            }
            None => {
                let decoder =
                    self.first_decoder(&ctx.pool, mesh.as_ref(), base.as_deref(), progress)?;
                fresh(with_reward(decoder, training.reward, settings.seed))
            }
        };
        let mut log = match (is_first, state.step) {
            (false, _) => None,
            (true, 0) => Some(RunLog::create(log)?),
            (true, step) => Some(RunLog::resume(log, step)?),
        };

        let mut own = training.task.measure()?;
        let is_measured = own.is_some();
        let measured = RefCell::new(Measured::new());
        let mut measure = |ctx: &mut Ctx, decoder: &Decoder, goes_on: &mut GoesOn| {
            let own = own.as_mut().expect("only handed over where there is one");
            let result = own(ctx, decoder, goes_on)?;
            measured.replace(result.clone().unwrap_or_default());
            Ok(result)
        };
        let measure: &mut Measure = &mut measure;
        let keep = |state: &State| {
            let Some(publication) = training.publication(state, &measured.borrow())? else {
                return Ok(None);
            };
            let stage = self.best_stage(state.step.into());
            let (place, kind) = (best.clone(), trained.kind());
            let work = move || {
                let draft = Draft::create(&place, kind)?;
                publication.write(&draft)?;
                draft.commit(&stage)?;
                Ok(())
            };
            Ok(Some(Job {
                what: format!("the best {kind}, of step {},", state.step),
                work: Box::new(work),
            }))
        };
        let keep: &Keep = &keep;
        let mut writer = Writer::new()?;
        let mut record = Record::default();
        // What is written is what is measured last.
        let round = |state: &mut State| {
            if let Trained::Adapters(adapters) = trained {
                let dtype = adapters.settings.dtype.dtype();
                let round = |tensor: &mut Tensor| adapter::round(dtype, tensor.data_mut());
                state.decoder.visit_mut(&mut { round });
                if let Some(average) = &mut state.average {
                    average.each(&mut |mean| adapter::round(dtype, mean));
                }
            }
        };
        let run = Loop {
            name,
            steps: training.steps(),
            schedule: training.schedule,
            clip_norm: (settings.clip_norm > 0.0).then_some(settings.clip_norm),
            skip_norm: (settings.skip_norm > 0.0).then_some(settings.skip_norm),
            spike_deviations: settings.spike_deviations,
            objective: &*objective,
            batches: &mut *batches,
            measure: is_measured.then_some((settings.validate_every, measure)),
            measures_start: training.measures_start,
            at_end: Some(&round),
            saving: Some(Saving {
                every: settings.checkpoint_every,
                store,
                writer: &mut writer,
                best: settings.keep_best.then_some(keep),
            }),
            log: log.as_mut().map(|log| (settings.log_every, log)),
            progress: &mut *progress,
            record: Some(&mut record),
            interrupt,
            peak_flops,
        };
        if train(run, &mut ctx, &mut state)? == Ended::Interrupted {
            return Ok(Outcome::Interrupted { step: state.step });
        }
        let measured = measured.take();
        if state.tally.skipped > 0 && state.tally.skipped == state.step {
            return Err(TrainError::NothingLearnt {
                steps: state.step,
                limit: settings.skip_norm,
            });
        }
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
        let publication = training.publication(&state, &measured)?;
        if let (Some(publication), Some(draft)) = (publication, draft) {
            let written = publication.write(&draft);
            let written = written.and_then(|()| Ok(draft.commit(&training.stage)?));
            written.map_err(|source| TrainError::NotWritten {
                what: trained.kind(),
                source: Box::new(source),
            })?;
            store.remove()?;
        }
        let last = |name: &str| measured.iter().find(|one| one.0 == name).map(|one| one.1);

        let even = libm::log(state.decoder.config().vocab as f64);
        // Of other tasks the loss is not one of tokens.
        let tokens = last(BITS_PER_BYTE).and(last(VALIDATION_LOSS));
        if let Some(loss) = tokens.filter(|&loss| loss > even) {
            progress.message(&format!(
                "the loss held out is {loss:.3} nats a token, above the {even:.3} of a model that holds every token equally likely: what was \
                 learnt is of no use for it; look at the losses, and lower the learning rate if they rose"
            ));
        }
        let tally = state.tally;
        let peak_flops = peak_flops.max(record.peak_flops);
        let before = |name: &str| {
            tally
                .before
                .iter()
                .find(|one| one.0 == name)
                .map(|one| one.1)
        };
        Ok(Outcome::Finished(TrainReport {
            first_loss: tally.first_loss,
            last_loss: tally.last_loss,
            steps: state.step,
            tokens: tally.tokens,
            seconds: tally.seconds,
            tokens_per_second: tally.tokens as f64 / tally.seconds,
            // The steps before a resume may have run on a faster machine.
            mfu: (tally.flops / tally.seconds / peak_flops).min(1.0),
            peak_gflops: peak_flops / 1e9,
            validation_nats: last(VALIDATION_LOSS),
            bits_per_byte: last(BITS_PER_BYTE),
            validation_nats_before: before(VALIDATION_LOSS),
            bits_per_byte_before: before(BITS_PER_BYTE),
            skipped_steps: tally.skipped,
            best_step: tally.best.map(|(step, _)| step),
            ranks: bytes.len(),
            peak_bytes: bytes.iter().map(|bytes| bytes.peak).sum(),
            peak_bytes_per_rank: bytes.iter().map(|bytes| bytes.peak).collect(),
            bytes_moved_per_step: bytes.iter().map(|bytes| bytes.moved).collect(),
            losses: record.losses,
        }))
    }

    /// What a run trains before its first step.
    fn first_decoder(
        &self,
        pool: &Arc<Pool>,
        mesh: Option<&Arc<Mesh>>,
        base: Option<&str>,
        progress: &mut dyn Progress,
    ) -> Result<Decoder> {
        let seed = self.training.train.seed;
        let (config, folder) = match &self.training.trained {
            Trained::Weights {
                config, checkpoint, ..
            } => (config, checkpoint),
            Trained::Wrapped(Wrapped { base, wrap, .. }) => {
                progress.message(&format!("beginning with {}", base.display()));
                return wrap();
            }
            Trained::Adapters(adapters) => {
                progress.message(&format!("adapting {}", adapters.base.display()));
                let decoder = checkpoint::open(&adapters.base)?;
                return Ok(match &adapters.first {
                    First::New => adapters.settings.attach(decoder, seed),
                    First::Of(folder) => adapter::attach(decoder, folder, base)?,
                    First::Made(make) => {
                        let made = make(pool, progress)?;
                        adapter::attach_made(decoder, made, adapters.settings.scale())
                    }
                });
            }
        };
        let Some(folder) = folder else {
            return Ok(Decoder::random_on_mesh(config, seed, mesh));
        };
        progress.message(&format!("beginning with {}", folder.display()));
        let decoder = match mesh {
            None => checkpoint::load(folder)?,
            Some(mesh) => checkpoint::load_on_mesh(folder, mesh)?,
        };
        Ok(decoder.with_positions(config.rope_theta, config.context))
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
        let frozen = match state.decoder.is_frozen() {
            true => state.decoder.stored_bytes() - weights,
            false => 0,
        };
        let average = state.average.as_ref().map_or(0, Average::bytes);
        let kept = weights + state.optimizer.bytes() + average;
        let saves = checkpoint_every > 0 && checkpoint_every < state.step && speaks(&state.decoder);
        OwnBytes {
            peak: frozen + kept + if saves { kept } else { 0 } + ctx.peak_bytes(),
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
pub(crate) fn beside(out: &Path, word: &str) -> Result<PathBuf> {
    let name = out.file_name().ok_or_else(|| TrainError::Data {
        place: out.to_owned(),
        problem: "does not end in a folder's name; say where the artifact goes".to_owned(),
    })?;
    let mut name: OsString = name.to_owned();
    name.push(format!(".{word}"));
    Ok(out.with_file_name(name))
}
