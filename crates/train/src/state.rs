//! Where a run stands, and how that survives the process.
//!
//! A saved state is a train-state artifact: `config.json`, `state.json`, and for each rank that has something of its own
//! `rank-00000.safetensors` with weights, moments and the running mean; one rank's has them whole. Of a run that trains
//! adapters the weights are theirs, and the frozen base is opened anew. It is
//! written as a draft and renamed into place, so a crash while saving leaves the state before. Its manifest has the key of the run it belongs
//! to (recipe and inputs, without settings that do not matter): the state of another run is refused, not silently thrown
//! away.
//!
//! The newest lies in `OUT.state`. Where more are kept, older ones lie beside it as `OUT.state-STEP`; the newest of these
//! is what is gone on from where the first is missing.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use russet_artifact::{Artifact, Draft, Kind, Stage, Stale};
use russet_kernels::{Compute, Isa};
use russet_model::{Config, Cut, Decoder, checkpoint, cut};
use russet_tensor::Ctx;
use russet_tensor::mesh::{Mesh, MeshShape};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::average::Average;
use crate::check;
use crate::named::{self, Named};
use crate::optimizer::Optimizer;
use crate::pieces::{self, Pieces};
use crate::schedule::Schedule;
use crate::settings::{OptimizerSettings, ScheduleSettings, TrainSettings};
use crate::spike::SpikeWatch;
use crate::{Result, TrainError};

/// What the loop changes.
pub struct State {
    /// The weights.
    pub decoder: Decoder,
    /// The rule that updates them, with what it remembers.
    pub optimizer: Optimizer,
    /// The running mean of the weights, where one is kept.
    pub average: Option<Average>,
    /// Steps done.
    pub step: u64,
    /// What was counted on the way.
    pub tally: Tally,
}

/// Counted over the whole run, resumes included.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tally {
    /// Loss of the first step.
    pub first_loss: f32,
    /// Loss of the last step so far.
    pub last_loss: f32,
    /// Tokens seen.
    pub tokens: u64,
    /// Those of each source.
    pub tokens_by_source: Vec<u64>,
    /// Steps whose gradients were thrown away.
    pub skipped: u64,
    /// Those of them since the last step that was not.
    #[serde(default)]
    pub skipped_in_a_row: u64,
    /// What is remembered of the losses, to tell spikes.
    pub spikes: SpikeWatch,
    /// The step and the loss of the best validation so far.
    pub best: Option<(u64, f64)>,
    /// Whether the last step is still to be measured: a stop came in between.
    #[serde(default)]
    pub unmeasured: bool,
    /// What was measured before the first step, where that was asked for.
    #[serde(default)]
    pub before: Vec<(String, f64)>,
    /// Floating-point operations that the model needed for them.
    pub flops: f64,
    /// Seconds spent in steps; validation, saving and the time between processes are not counted.
    pub seconds: f64,
}

impl State {
    /// Before the first step, without a running mean.
    pub fn new(decoder: Decoder, rule: OptimizerSettings) -> State {
        State {
            optimizer: Optimizer::new(rule, &decoder),
            decoder,
            average: None,
            step: 0,
            tally: Tally::default(),
        }
    }
}

/// A copy of what a rank has of a state, which can be written while the state goes on.
#[derive(Debug)]
pub struct Snapshot {
    config: Config,
    rank: usize,
    copy: Option<Copied>, // where it has something that no other rank speaks for
    stored: Stored,
}

#[derive(Debug)]
struct Copied {
    weights: Vec<Named>,
    optimizer: Optimizer,
    average: Option<Average>,
}

/// The instruction set whose bits steps have: AMX rounds as AVX-512 does but where products are of bf16.
pub(crate) fn rounding(ctx: &Ctx) -> Isa {
    match (ctx.pool.isa(), ctx.compute) {
        (Isa::Amx, Compute::F32) => Isa::Avx512,
        (isa, _) => isa,
    }
}

impl Snapshot {
    /// The state as it is, with the place in the data and whose rounding the steps so far have.
    pub fn of(state: &State, batches: Value, isa: Isa) -> Snapshot {
        let mesh = state.decoder.mesh();
        let copy = speaks(&state.decoder).then(|| Copied {
            weights: Named::weights(&state.decoder),
            optimizer: state.optimizer.clone(),
            average: state.average.clone(),
        });
        Snapshot {
            config: state.decoder.config().clone(),
            rank: mesh.map_or(0, |mesh| mesh.rank()),
            copy,
            stored: Stored {
                step: state.step,
                batches,
                tally: state.tally.clone(),
                isa: format!("{isa:?}"),
                mesh: mesh.map_or(pieces::ONE_RANK, |mesh| mesh.shape()).sizes,
            },
        }
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.stored.step
    }

    /// Writes the rank's part into the folder of a draft; the first rank's has what all have in common.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        if let Some(copy) = &self.copy {
            let mut outputs = Named::outputs(&copy.weights);
            copy.optimizer.outputs(&mut outputs);
            if let Some(average) = &copy.average {
                average.outputs(&mut outputs);
            }
            pieces::write(folder, self.rank, &outputs)?;
        }
        if self.rank > 0 {
            return Ok(());
        }
        checkpoint::save_config(&self.config, folder)?;
        let stored =
            serde_json::to_vec_pretty(&self.stored).expect("numbers and strings can be written");
        let path = folder.join(STATE);
        fs::write(&path, stored).map_err(|error| TrainError::State {
            dir: path,
            problem: format!("cannot be written: {error}"),
        })
    }
}

/// Whether a decoder has a part that no other rank speaks for.
pub(crate) fn speaks(decoder: &Decoder) -> bool {
    let parameters = decoder.parameters();
    let mut cuts = parameters.iter().map(named::cut);
    cuts.any(|cut| cut.owned && !cut.is_empty())
}

/// `state.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    step: u64,
    batches: Value,
    tally: Tally,
    isa: String,
    mesh: [usize; 4], // ranks along data, fsdp, sequence and tensor
}

const STATE: &str = "state.json";

/// The folder that a run's state is saved in, and the run's identity.
#[derive(Clone, Debug)]
pub struct StateStore {
    dir: PathBuf,
    stage: Stage,
    keep_last: usize,
    any_length: Option<Schedule>, // the run's, where a state of another length may be gone on from
}

/// Settings of a recipe's `train` that say how long a run is and, with its `schedule`, how its rates go.
const LENGTH: [&str; 3] = ["steps", "warmup_steps", "final_lr_ratio"];

/// What [`StateStore::load`] found.
pub struct Loaded {
    /// The run as it stood.
    pub state: State,
    /// For [`crate::Batches::restore`].
    pub batches: Value,
    /// Whether the steps so far ran on another instruction set, whose sums round differently.
    pub other_isa: Option<String>,
    /// The mesh of the steps so far, where it was another: sums are taken in another order from here on.
    pub other_mesh: Option<MeshShape>,
    /// The steps that the run was to have when it was saved, where they were others.
    pub other_length: Option<u64>,
}

impl StateStore {
    /// States of the run `stage`, in `dir`; the newest `keep_last` are kept.
    pub fn new(dir: PathBuf, stage: Stage, keep_last: usize) -> StateStore {
        StateStore {
            dir,
            stage,
            keep_last: keep_last.max(1),
            any_length: None,
        }
    }

    /// The same for a run whose steps are a function of the rates alone, however many follow: the state of a run with more or fewer
    /// steps is gone on from where the steps done had the rates of this `schedule`.
    pub fn of_any_length(self, schedule: Schedule) -> StateStore {
        StateStore {
            any_length: Some(schedule),
            ..self
        }
    }

    /// The folder of the newest.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Saves a state, in the place of the oldest where as many are kept as there may be.
    ///
    /// # Errors
    /// When the disk refuses, or the place holds something else than a state. What was saved before is then as it was.
    pub fn save(&self, snapshot: &Snapshot) -> Result<()> {
        let draft = self.begin()?;
        snapshot.write(draft.path())?;
        self.commit(draft)
    }

    /// An empty state, for the ranks to write into.
    ///
    /// # Errors
    /// When the disk refuses, or the place holds something else than a state.
    pub(crate) fn begin(&self) -> Result<Draft> {
        Ok(Draft::create(&self.dir, Kind::TrainState)?)
    }

    /// Puts a state that all ranks have written into its place.
    ///
    /// # Errors
    /// When the disk refuses. What was saved before is then as it was.
    pub(crate) fn commit(&self, draft: Draft) -> Result<()> {
        if self.keep_last == 1 {
            draft.commit(&self.stage)?;
            return Ok(());
        }
        // From here to the rename inside of `commit` the newest state is the one set aside, and `load` finds it there.
        let aside = self.set_aside()?;
        if let Err(error) = draft.commit(&self.stage) {
            if let Some(aside) = aside {
                fs::rename(&aside, &self.dir).map_err(|error| self.refused("put back", error))?;
            }
            return Err(error.into());
        }
        let older = self.older();
        for (_, old) in older.iter().skip(self.keep_last - 1) {
            self.vanish(old)?;
        }
        Ok(())
    }

    /// Renames the newest state to the name with its step; where it went.
    fn set_aside(&self) -> Result<Option<PathBuf>> {
        let Ok(artifact) = Artifact::open(&self.dir, Kind::TrainState) else {
            return Ok(None);
        };
        let step = self.stored(&artifact)?.step;
        let Some(aside) = self.beside(&format!("-{step:06}")) else {
            return Ok(None);
        };
        // The same step, from before a resume.
        if Artifact::open(&aside, Kind::TrainState).is_ok() {
            self.vanish(&aside)?;
        }
        fs::rename(&self.dir, &aside).map_err(|error| self.refused("set aside", error))?;
        Ok(Some(aside))
    }

    /// The folder's own name with something behind it.
    fn beside(&self, end: &str) -> Option<PathBuf> {
        let name = self.dir.file_name()?.to_str()?;
        Some(self.dir.with_file_name(format!("{name}{end}")))
    }

    /// Steps and folders of the states set aside, the newest first.
    fn older(&self) -> Vec<(u64, PathBuf)> {
        let (Some(prefix), Some(parent)) = (self.beside("-"), self.dir.parent()) else {
            return Vec::new();
        };
        let parent = match parent.as_os_str().is_empty() {
            true => Path::new("."),
            false => parent,
        };
        let prefix = prefix.file_name().and_then(|name| name.to_str());
        let prefix = prefix.expect("made of text just now").to_owned();
        let step = |path: &Path| -> Option<u64> {
            let digits = path.file_name()?.to_str()?.strip_prefix(&prefix)?;
            let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| digits.parse().ok()).flatten()
        };
        let entries = fs::read_dir(parent).into_iter().flatten().flatten();
        let mut found: Vec<(u64, PathBuf)> = entries
            .map(|entry| entry.path())
            .filter_map(|path| Some((step(&path)?, path)))
            .filter(|(_, path)| Artifact::open(path, Kind::TrainState).is_ok())
            .collect();
        found.sort_unstable_by(|a, b| b.cmp(a));
        found
    }

    fn refused(&self, what: &str, error: std::io::Error) -> TrainError {
        TrainError::State {
            dir: self.dir.clone(),
            problem: format!(
                "a saved state cannot be {what}: {error}; look at this folder and those beside it"
            ),
        }
    }

    fn stored(&self, artifact: &Artifact) -> Result<Stored> {
        let path = artifact.file(STATE)?;
        let bad = |problem: String| TrainError::State {
            dir: path.clone(),
            problem,
        };
        let text = fs::read(&path).map_err(|error| bad(format!("cannot be read: {error}")))?;
        serde_json::from_slice(&text)
            .map_err(|error| bad(format!("is not what was saved: {error}")))
    }

    /// The step of the newest saved state, if there is one.
    ///
    /// # Errors
    /// As [`StateStore::load`].
    pub(crate) fn step(&self) -> Result<Option<u64>> {
        Ok(self.newest()?.map(|(_, stored)| stored.step))
    }

    /// The newest saved state, which must be one of this run.
    fn newest(&self) -> Result<Option<(Artifact, Stored)>> {
        let mut dir = self.dir.clone();
        if is_missing(&dir) {
            match self.older().into_iter().next() {
                Some((_, older)) => dir = older,
                None => return Ok(None),
            }
        }
        let artifact = self.accept(&dir).map_err(|stale| {
            let older = self.older();
            let others: Vec<_> = older.iter().filter(|(_, path)| *path != dir).collect();
            let whole = others.iter().find(|(_, path)| self.accept(path).is_ok());
            let advice = match whole {
                Some((step, _)) => format!(
                    "The state of step {step}, which was kept before it, is whole: remove this folder to go on from there"
                ),
                None => format!(
                    "Undo that, or remove this folder{} to start over (so does --restart, of the verb that runs this stage alone)",
                    match others.is_empty() {
                        true => "",
                        false => " and those of earlier steps beside it",
                    }
                ),
            };
            let other = |schedule| self.of_other_length(&dir, schedule)?.1;
            let length = self.any_length.and_then(other).map_or(String::new(), |step| {
                format!(
                    "; the length alone may change, but the rate of step {} is another one in a run of this length",
                    step + 1
                )
            });
            let problem = format!("this is no state to go on from: {stale}{length}. {advice}");
            TrainError::State {
                dir: dir.clone(),
                problem,
            }
        })?;
        let stored = self.stored(&artifact)?;
        Ok(Some((artifact, stored)))
    }

    /// The state in a folder, where this run may go on from it.
    fn accept(&self, dir: &Path) -> std::result::Result<Artifact, Stale> {
        let current = self.stage.current(dir, Kind::TrainState);
        match (current, self.any_length) {
            (Err(stale), Some(schedule)) => match self.of_other_length(dir, schedule) {
                Some((artifact, None)) => Ok(artifact),
                _ => Err(stale),
            },
            (current, _) => current,
        }
    }

    /// A whole state of a run that differs in its length alone, with the first step whose rates were others: without one, going on
    /// from it is this run in one go.
    fn of_other_length(&self, dir: &Path, schedule: Schedule) -> Option<(Artifact, Option<u64>)> {
        let artifact = Artifact::open(dir, Kind::TrainState).ok()?;
        let recipe = &artifact.manifest().recipe;
        let its = schedule_of(recipe)?;
        let mut stage = self.stage.clone();
        stage.recipe["schedule"] = recipe["schedule"].clone();
        let train = stage.recipe["train"].as_object_mut();
        let train = train.expect("settings of a run have a table of training");
        for key in LENGTH {
            match recipe["train"].get(key) {
                Some(its) => drop(train.insert(key.to_owned(), its.clone())),
                None => drop(train.remove(key)),
            }
        }
        stage.current(dir, Kind::TrainState).ok()?;
        let step = self.stored(&artifact).ok()?.step;
        let rates = |of: &Schedule, step| (of.at(step).to_bits(), of.share(step).to_bits());
        // The bound first: a step that nobody has done is no reason to count to it.
        let both = step.min(schedule.steps).min(its.steps);
        let other = (0..both).find(|&step| rates(&schedule, step) != rates(&its, step));
        Some((artifact, other.or((both < step).then_some(both))))
    }

    /// What this rank has of the newest saved state, if there is one, whatever mesh it was saved on. `frame` makes the decoder
    /// of which the state has the parameters only, and nothing where it has all weights; `fresh` makes what a decoder is trained
    /// with, whose memory is then filled.
    ///
    /// # Errors
    /// When what is there is damaged or belongs to another run; the sentence says what differs.
    pub fn load(
        &self,
        mesh: Option<&Arc<Mesh>>,
        frame: impl FnOnce() -> Result<Option<Decoder>>,
        fresh: impl FnOnce(Decoder) -> State,
        isa: Isa,
    ) -> Result<Option<Loaded>> {
        let Some((artifact, stored)) = self.newest()? else {
            return Ok(None);
        };
        let config = Config::open(artifact.dir())?;
        let saved_on = self.mesh_of(&artifact, &config, &stored)?;
        let (mut saved, decoder) = match frame()? {
            None => {
                let mut saved = Pieces::open(artifact.dir(), &config, saved_on)?;
                let read = |number, cut: &_| saved.read(number, cut, "");
                let decoder = Decoder::on_mesh(&config, mesh, read)?;
                (saved, decoder)
            }
            Some(mut decoder) => {
                let cuts: Vec<Cut> = decoder.parameters().iter().map(named::cut).collect();
                let mut saved = Pieces::of(artifact.dir(), std::iter::once(cuts.clone()))?;
                let mut values = Vec::new();
                for (number, cut) in cuts.iter().enumerate() {
                    values.push(saved.read(number, cut, "")?);
                }
                let mut values = values.into_iter();
                decoder.visit_mut(&mut |tensor| {
                    let own = values.next().expect("as many as parameters");
                    tensor.data_mut().copy_from_slice(&own);
                });
                (saved, decoder)
            }
        };
        let mut state = fresh(decoder);
        state.optimizer.load(&mut saved)?;
        if let Some(average) = &mut state.average {
            average.load(&mut saved)?;
        }
        saved.finish()?;
        let own = mesh.map_or(pieces::ONE_RANK, |mesh| mesh.shape());
        let other_mesh = (own != saved_on).then_some(saved_on);
        let steps = |recipe: &Value| recipe["train"]["steps"].as_u64();
        let other_length = steps(&artifact.manifest().recipe)
            .filter(|its| steps(&self.stage.recipe).is_some_and(|own| own != *its));
        (state.step, state.tally) = (stored.step, stored.tally);
        let other_isa = (stored.isa != format!("{isa:?}")).then_some(stored.isa);
        Ok(Some(Loaded {
            state,
            batches: stored.batches,
            other_isa,
            other_mesh,
            other_length,
        }))
    }

    /// The mesh that a state was saved on, which must be one of its model's.
    fn mesh_of(&self, artifact: &Artifact, config: &Config, stored: &Stored) -> Result<MeshShape> {
        let sizes = stored.mesh;
        let ranks = sizes
            .iter()
            .try_fold(1usize, |ranks, &size| ranks.checked_mul(size));
        let bad = match ranks {
            Some(1..=0x1_0000) => cut::check(config, sizes[3]).err(),
            _ => Some("is no mesh".to_owned()),
        };
        match bad {
            Some(problem) => Err(TrainError::State {
                dir: artifact.dir().join(STATE),
                problem: format!("`mesh` {sizes:?} {problem}; remove this folder to begin anew"),
            }),
            None => Ok(MeshShape { sizes }),
        }
    }

    /// Removes the saved states of this run, if there are any.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn remove(&self) -> Result<()> {
        for (_, older) in self.older() {
            self.vanish(&older)?;
        }
        if is_missing(&self.dir) {
            return Ok(());
        }
        // A damaged one is one too, but what never was is not ours to remove.
        if Artifact::open(&self.dir, Kind::TrainState).is_ok() || self.dir.join(STATE).is_file() {
            return self.vanish(&self.dir);
        }
        Err(TrainError::State {
            dir: self.dir.clone(),
            problem: "is not a state of training, and training needs this place for one; move it elsewhere"
                .to_owned(),
        })
    }

    /// Removes a state in one step, by a rename to a name that the next draft for this place sweeps up.
    fn vanish(&self, dir: &Path) -> Result<()> {
        // From the end, so that drafts of this process, which count from 0, are never met.
        static NEXT: AtomicU64 = AtomicU64::new(u64::MAX);
        let number = NEXT.fetch_sub(1, Ordering::Relaxed);
        let Some(name) = self.dir.file_name().and_then(|name| name.to_str()) else {
            return Ok(());
        };
        let aside = format!(".{name}.tmp-{}-{number}", std::process::id());
        let aside = self.dir.with_file_name(aside);
        fs::rename(dir, &aside)
            .and_then(|()| fs::remove_dir_all(&aside))
            .map_err(|error| TrainError::State {
                dir: dir.to_owned(),
                problem: format!("cannot be removed: {error}; remove this folder yourself"),
            })
    }
}

/// The rates of a recipe as a manifest has it, if it has any.
fn schedule_of(recipe: &Value) -> Option<Schedule> {
    let train: TrainSettings = serde_json::from_value(recipe.get("train")?.clone()).ok()?;
    let schedule = serde_json::from_value(recipe.get("schedule")?.clone()).ok()?;
    // As resolved settings are, and those of a manifest should be.
    let ends = train.final_lr_ratio.is_some() || schedule == ScheduleSettings::Constant {};
    (train.steps? > 0 && train.warmup_steps.is_some() && ends)
        .then(|| check::schedule(&train, &schedule))
}

/// Nothing there, or an empty folder.
fn is_missing(dir: &Path) -> bool {
    match fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}
