//! What a stage leaves behind, what it was told, and what it said on the way.
//!
//! Every stage of Russet reads a recipe and artifacts and leaves one artifact: a folder of files with a `manifest.json`
//! that names the tool, the settings, the BLAKE3 hash of every file, and the hash of every input's manifest. Following the
//! inputs walks any score back to the text it came from.
//!
//! ```text
//! recipe.toml ──▶ Recipe ──▶ settings ─┐
//! Artifact ─────▶ Inputs ──────────────┼─▶ Stage ──▶ current?  skip
//!                                      └─▶ Draft ──▶ commit ──▶ Artifact
//!                                              RunLog, Progress, Interrupt on the way
//! ```
//!
//! - [`Artifact`], [`Draft`], [`Manifest`]: whole folders, old or new and never half.
//! - [`Stage`], [`Inputs`]: whether a stage has to run again, and why.
//! - [`Recipe`], [`Override`]: TOML into settings, nothing ignored.
//! - [`RunLog`]: JSON Lines and TensorBoard event files.
//! - [`Progress`], [`Interrupt`]: how a long job speaks and how it is stopped.
//!
//! ```
//! use russet_artifact::{Artifact, Draft, Inputs, Kind, Recipe, Stage, Tool};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Settings {
//!     vocab: u32,
//! }
//!
//! # let run = tempfile::tempdir()?;
//! # std::fs::write(run.path().join("text.txt"), "once upon a time")?;
//! let recipe = Recipe::from_text("01-tokenizer", "vocab = 512", &["vocab=1024".parse()?])?;
//! let settings: Settings = recipe.parse()?;
//! let inputs = Inputs::new().path("text", &run.path().join("text.txt"))?;
//! let tool = Tool::new(env!("CARGO_PKG_VERSION"), "unknown");
//! let stage = Stage::new("tokenizer", &tool, Recipe::resolved_json(&settings)?, inputs);
//!
//! let place = run.path().join("01-tokenizer");
//! let tokenizer: Artifact = match stage.current(&place, Kind::Tokenizer) {
//!     Ok(artifact) => artifact,
//!     Err(stale) => {
//!         assert!(stale.to_string().contains("there is nothing"));
//!         let draft = Draft::create(&place, Kind::Tokenizer)?;
//!         draft.write("tokenizer.json", b"{}")?;
//!         draft.commit(&stage)?
//!     }
//! };
//! tokenizer.verify()?;
//! assert!(stage.current(&place, Kind::Tokenizer).is_ok());
//! assert_eq!(tokenizer.manifest().recipe["vocab"], 1024);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! It knows nothing of models, tokens or terminals, holds no clock and no host name in a manifest, and has no `unsafe`.

mod artifact;
mod disk;
mod draft;
mod error;
mod hash;
mod hold;
mod manifest;
mod overrides;
mod progress;
mod recipe;
mod run_log;
mod stage;
pub mod tensorboard;

pub use artifact::Artifact;
pub use disk::atomic_write;
pub use draft::Draft;
pub use error::{Error, Result};
pub use hash::{Hash, hash_file, hash_folder};
pub use hold::Hold;
pub use manifest::{FORMAT, FileRecord, InputKind, InputRecord, Kind, MANIFEST, Manifest, Tool};
pub use overrides::{Override, split_overrides};
pub use progress::{Interrupt, NoProgress, Progress};
pub use recipe::Recipe;
pub use run_log::{LogEvent, RunLog, read_log};
pub use stage::{Inputs, Stage, Stale};
