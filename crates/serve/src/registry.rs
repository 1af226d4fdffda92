//! The adapters by the names that requests give, over the engine's own registry; what `/v1/models` lists.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use russet_engine::{AdapterStats, Adapters};

use crate::error::{ApiError, ApiResult};

/// The longest name of an adapter, in bytes.
const LONGEST_NAME: usize = 128;
/// The most names.
const MOST: usize = 4096;

/// The registry.
pub(crate) struct Registry {
    base: String,
    /// Below which folder requests may name adapters.
    below: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    adapters: Option<Adapters>, // of the engine that there is
    known: BTreeMap<String, Known>,
}

/// An adapter that is a model to those who ask.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    folder: PathBuf,
    /// Seconds since 1970.
    pub created: u64,
    /// What the world gets to see of the folder: its name.
    pub root: String,
}

impl Registry {
    /// A registry beside the base of that name. `below` must exist.
    pub fn new(base: &str, below: Option<&Path>) -> crate::Result<Registry> {
        let below = below.map(|folder| {
            let real = folder.canonicalize();
            real.map_err(|error| {
                crate::Error::Setting(format!("--adapter-dir {}: {error}", folder.display()))
            })
        });
        Ok(Registry {
            base: base.to_owned(),
            below: below.transpose()?,
            state: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the adapters of another engine in the place of the former ones; it reads them when they are asked for.
    pub fn replace(&self, adapters: Adapters) {
        let mut state = self.lock();
        for (name, known) in &state.known {
            adapters.register(name, &known.folder);
        }
        state.adapters = Some(adapters);
    }

    /// What the base is called.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The adapters that a request for `model` goes through: none for the base.
    pub fn stack(&self, model: &str) -> ApiResult<Vec<String>> {
        if model == self.base {
            return Ok(Vec::new());
        }
        match self.lock().known.contains_key(model) {
            true => Ok(vec![model.to_owned()]),
            false => Err(ApiError::no_model(model)),
        }
    }

    /// Those there are.
    pub fn list(&self) -> Vec<(String, Known)> {
        let state = self.lock();
        let known = state.known.iter();
        known.map(|(n, k)| (n.clone(), k.clone())).collect()
    }

    /// Those of the engine that there is.
    pub fn adapters(&self) -> Option<Adapters> {
        self.lock().adapters.clone()
    }

    pub fn stats(&self) -> AdapterStats {
        self.adapters()
            .map_or_else(AdapterStats::default, |adapters| adapters.stats())
    }

    /// Reads the adapter in `folder` and makes it known; who runs on a former one of that name keeps it. Blocks.
    pub fn load(&self, name: &str, folder: &Path) -> Result<(), LoadError> {
        if name.is_empty() || name.len() > LONGEST_NAME || name.chars().any(char::is_control) {
            return Err(LoadError::Name(format!(
                "an adapter's name has 1 to {LONGEST_NAME} bytes and no control characters"
            )));
        }
        if name == self.base {
            return Err(LoadError::Name(format!(
                "`{name}` is the base itself; give the adapter another name"
            )));
        }
        let adapters = {
            let state = self.lock();
            if state.known.len() >= MOST && !state.known.contains_key(name) {
                return Err(LoadError::Name(format!(
                    "{MOST} adapters are known already, as many as may; unload one"
                )));
            }
            state.adapters.clone().ok_or(LoadError::Gone)?
        };
        // Outside the lock: files take their time, and requests go on.
        adapters.load(name, folder).map_err(LoadError::Engine)?;
        let known = Known {
            folder: folder.to_path_buf(),
            created: now(),
            root: folder.file_name().map_or_else(
                || name.to_owned(),
                |folder| folder.to_string_lossy().into_owned(),
            ),
        };
        self.lock().known.insert(name.to_owned(), known);
        Ok(())
    }

    /// Whether requests may load adapters.
    pub fn is_open(&self) -> bool {
        self.below.is_some()
    }

    /// [`Registry::load`] for a request: the folder must lie below the one that was opened for it, links followed.
    pub fn load_below(&self, name: &str, path: &str, replace: bool) -> ApiResult<()> {
        let below = self.below.as_ref().ok_or_else(closed)?;
        let outside = || {
            ApiError::field(
                "lora_path",
                "there is no such folder below the one that --adapter-dir names; paths count from it",
            )
        };
        let folder = below.join(path).canonicalize().map_err(|_| outside())?;
        if !folder.starts_with(below) || !folder.is_dir() {
            return Err(outside());
        }
        if !replace && self.lock().known.contains_key(name) {
            let said = format!(
                "the adapter `{name}` is loaded already; say \"load_inplace\": true to replace it"
            );
            return Err(ApiError::field("lora_name", said));
        }
        self.load(name, &folder).map_err(|problem| match problem {
            LoadError::Name(said) => ApiError::field("lora_name", said),
            LoadError::Gone => ApiError::unavailable("the engine is gone"),
            LoadError::Engine(russet_engine::Error::Model(problem)) => {
                // The sentence names the file by its whole path, of which a client knows the end only.
                let said = problem.to_string();
                let shown = said.replace(&*below.to_string_lossy(), "…");
                ApiError::field("lora_path", shown)
            }
            LoadError::Engine(problem) => ApiError::of_engine(&problem, "lora_name"),
        })
    }

    /// Forgets an adapter; who runs on it keeps it.
    pub fn unload(&self, name: &str) -> ApiResult<()> {
        if !self.is_open() {
            return Err(closed());
        }
        let mut state = self.lock();
        if state.known.remove(name).is_none() {
            let mut error = ApiError::no_model(name);
            error.param = Some("lora_name".to_owned());
            return Err(error);
        }
        if let Some(adapters) = &state.adapters {
            adapters.remove(name);
        }
        Ok(())
    }
}

fn closed() -> ApiError {
    ApiError::refused(
        StatusCode::FORBIDDEN,
        "adapters_closed",
        "this server loads no adapters for requests; it would if it were started with --adapter-dir",
    )
}

/// Why an adapter was not loaded.
#[derive(Debug)]
pub(crate) enum LoadError {
    Name(String),
    Engine(russet_engine::Error),
    Gone,
}

impl From<LoadError> for crate::Error {
    fn from(error: LoadError) -> crate::Error {
        match error {
            LoadError::Name(said) => crate::Error::Setting(format!("--adapter: {said}")),
            LoadError::Engine(problem) => crate::Error::Engine(problem),
            LoadError::Gone => crate::Error::Start("the engine is gone".to_owned()),
        }
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
