//! Where a run stands, and how that survives the process.
//!
//! A saved state is a train-state artifact: `model.safetensors` (an ordinary checkpoint, `config.json` beside it),
//! `optimizer.safetensors` and `state.json`. It is written as a draft and renamed into place, so a crash while saving
//! leaves the state before. Its manifest has the key of the run it belongs to (recipe and inputs, without settings that
//! do not matter): the state of another run is refused, not silently thrown away.

use std::fs;
use std::path::{Path, PathBuf};

use russet_artifact::{Artifact, Draft, Kind, Stage};
use russet_kernels::Isa;
use russet_model::{Decoder, checkpoint};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::optimizer::Optimizer;
use crate::{Result, TrainError};

/// What the loop changes.
pub struct State {
    /// The weights.
    pub decoder: Decoder,
    /// The rule that updates them, with what it remembers.
    pub optimizer: Optimizer,
    /// Steps done.
    pub step: u64,
    /// What was counted on the way.
    pub tally: Tally,
}

/// Counted over the whole run, resumes included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tally {
    /// Loss of the first step.
    pub first_loss: f32,
    /// Loss of the last step so far.
    pub last_loss: f32,
    /// Tokens seen.
    pub tokens: u64,
    /// Floating-point operations that the model needed for them.
    pub flops: f64,
    /// Seconds spent in steps; validation, saving and the time between processes are not counted.
    pub seconds: f64,
}

impl State {
    /// Before the first step.
    pub fn new(decoder: Decoder, optimizer: Optimizer) -> State {
        State {
            decoder,
            optimizer,
            step: 0,
            tally: Tally::default(),
        }
    }
}

/// `state.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    step: u64,
    batches: Value,
    tally: Tally,
    isa: String,
}

const STATE: &str = "state.json";

/// The folder that a run's state is saved in, and the run's identity.
#[derive(Debug)]
pub struct StateStore {
    dir: PathBuf,
    stage: Stage,
}

/// What [`StateStore::load`] found.
pub struct Loaded {
    /// The run as it stood.
    pub state: State,
    /// For [`crate::Batches::restore`].
    pub batches: Value,
    /// Whether the steps so far ran on another instruction set, whose sums round differently.
    pub other_isa: Option<String>,
}

impl StateStore {
    /// States of the run `stage`, in `dir`.
    pub fn new(dir: PathBuf, stage: Stage) -> StateStore {
        StateStore { dir, stage }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Replaces the saved state by this one.
    ///
    /// # Errors
    /// When the disk refuses, or the place holds something else than a state.
    pub fn save(&self, state: &State, batches: Value, isa: Isa) -> Result<()> {
        let draft = Draft::create(&self.dir, Kind::TrainState)?;
        checkpoint::save(&state.decoder, draft.path())?;
        state.optimizer.save(&state.decoder, draft.path())?;
        let stored = Stored {
            step: state.step,
            batches,
            tally: state.tally,
            isa: format!("{isa:?}"),
        };
        let stored =
            serde_json::to_vec_pretty(&stored).expect("numbers and strings can be written");
        draft.write(STATE, &stored)?;
        draft.commit(&self.stage)?;
        Ok(())
    }

    /// The saved state, if there is one. `optimizer` makes the optimizer, whose memory is then filled.
    ///
    /// # Errors
    /// When what is there is damaged or belongs to another run; the sentence says what differs.
    pub fn load(
        &self,
        optimizer: impl FnOnce(&Decoder) -> Optimizer,
        isa: Isa,
    ) -> Result<Option<Loaded>> {
        let artifact = match self.stage.current(&self.dir, Kind::TrainState) {
            Ok(artifact) => artifact,
            Err(_) if is_missing(&self.dir) => return Ok(None),
            Err(stale) => {
                let problem = format!(
                    "this is no state to go on from: {stale}. Undo that, or start over: russet pretrain RECIPE --restart \
                     --out {}",
                    self.dir.with_extension("").display()
                );
                return Err(TrainError::State {
                    dir: self.dir.clone(),
                    problem,
                });
            }
        };
        let path = artifact.file(STATE)?;
        let bad = |problem: String| TrainError::State {
            dir: path.clone(),
            problem,
        };
        let text = fs::read(&path).map_err(|error| bad(format!("cannot be read: {error}")))?;
        let stored: Stored = serde_json::from_slice(&text)
            .map_err(|error| bad(format!("is not what was saved: {error}")))?;
        let decoder = checkpoint::load(artifact.dir())?;
        let mut optimizer = optimizer(&decoder);
        optimizer.load(&decoder, artifact.dir())?;
        let state = State {
            decoder,
            optimizer,
            step: stored.step,
            tally: stored.tally,
        };
        let other_isa = (stored.isa != format!("{isa:?}")).then_some(stored.isa);
        Ok(Some(Loaded {
            state,
            batches: stored.batches,
            other_isa,
        }))
    }

    /// Removes the saved state of this run, if there is one. It vanishes in one step, by a rename to a name that the next
    /// draft for this place sweeps up.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn remove(&self) -> Result<()> {
        let Some(name) = self.dir.file_name().and_then(|name| name.to_str()) else {
            return Ok(());
        };
        if Artifact::open(&self.dir, Kind::TrainState).is_err() {
            return Ok(());
        }
        let aside =
            self.dir
                .with_file_name(format!(".{name}.tmp-{}-{}", std::process::id(), u64::MAX));
        let refused = |error: std::io::Error| {
            let problem = format!("cannot be removed: {error}; remove this folder yourself");
            TrainError::State {
                dir: self.dir.clone(),
                problem,
            }
        };
        fs::rename(&self.dir, &aside).map_err(refused)?;
        fs::remove_dir_all(&aside).map_err(refused)
    }

    /// Whether a whole state of this run lies there.
    pub fn holds_this_run(&self) -> bool {
        let key = |artifact: Artifact| artifact.manifest().key();
        Artifact::open(&self.dir, Kind::TrainState)
            .map(key)
            .is_ok_and(|key| key == self.stage.key())
    }
}

/// Nothing there, or an empty folder.
fn is_missing(dir: &Path) -> bool {
    match fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}
