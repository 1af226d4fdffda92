//! Whether a stage has to run: the same stage, tool version, recipe and input bytes leave the same artifact.
//!
//! Nothing here looks at a clock: touching a file runs nothing again, changing one byte of it does. An artifact counts as
//! an input by its manifest (`Manifest::identity`), which stands for its files; plain files and folders are hashed whole.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::artifact::Artifact;
use crate::draft::{self, Draft};
use crate::error::{Error, Result};
use crate::hash::{self, Hash, shorten};
use crate::manifest::{self, InputKind, Kind, MANIFEST, Manifest, Tool, check_input_name};

/// One stage of a run: everything its artifact is a function of.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Which stage: "pretrain".
    pub name: String,
    /// The program.
    pub tool: Tool,
    /// Its full settings; see [`crate::Recipe::resolved_json`].
    pub recipe: Value,
    /// Everything it reads.
    pub inputs: Inputs,
}

impl Stage {
    /// Puts the four together.
    pub fn new(name: &str, tool: &Tool, recipe: Value, inputs: Inputs) -> Self {
        Self {
            name: name.to_owned(),
            tool: tool.clone(),
            recipe,
            inputs,
        }
    }

    /// What decides whether it has to run again; equals [`Manifest::key`] of what it committed.
    pub fn key(&self) -> Hash {
        let inputs = self
            .inputs
            .iter()
            .map(|(name, input)| (name, input.kind, input.hash));
        manifest::key(&self.name, &self.tool, &self.recipe, inputs)
    }

    /// The artifact at `dir`, if this stage would only write it again. Reads every byte of it.
    ///
    /// # Errors
    /// Not an error but the reason why the stage has to run.
    pub fn current(&self, dir: &Path, kind: Kind) -> std::result::Result<Artifact, Stale> {
        let artifact = Artifact::open(dir, kind).map_err(|error| Stale(error.to_string()))?;
        if artifact.manifest().key() != self.key() {
            return Err(Stale(self.difference(artifact.manifest(), dir)));
        }
        artifact
            .verify()
            .map_err(|error| Stale(error.to_string()))?;
        Ok(artifact)
    }

    /// A draft of its artifact for `dir`, as [`Draft::of_stage`] makes it, once every byte of the artifacts that it reads is
    /// what their manifests say: the result's manifest names those bytes, so it must not be made of others.
    ///
    /// # Errors
    /// When an input is damaged or was written anew since it was opened, and as [`Draft::of_stage`].
    pub fn begin(&self, dir: &Path, kind: Kind) -> Result<Draft> {
        let draft = Draft::of_stage(dir, kind, &self.name)?;
        self.inputs.verify()?;
        Ok(draft)
    }

    /// Whether [`Stage::begin`] would take this place: it holds nothing, or an older artifact of this kind and stage.
    ///
    /// # Errors
    /// When it holds anything else.
    pub fn check_place(&self, dir: &Path, kind: Kind) -> Result<()> {
        draft::occupant(dir, kind, Some(&self.name)).map(drop)
    }

    fn difference(&self, old: &Manifest, dir: &Path) -> String {
        if old.stage != self.name {
            return format!(
                "it was written by `{}`, and this is `{}`",
                shorten(&old.stage),
                self.name
            );
        }
        if old.tool.version != self.tool.version {
            return format!(
                "it was written by version {}, and this is {}",
                shorten(&old.tool.version),
                self.tool.version
            );
        }
        for (name, input) in self.inputs.iter() {
            match old.inputs.get(name) {
                None => return format!("input `{name}` is new"),
                Some(was) if (was.kind, was.blake3) != (input.kind, input.hash) => {
                    let (then, now) = (dir.join(&was.path), &input.path);
                    let whole = |path: &Path| fs::canonicalize(path).ok();
                    return match (whole(&then), whole(now)) {
                        (then, now) if then == now => format!("input `{name}` has changed"),
                        (found, _) => format!(
                            "input `{name}` has changed: it was {}, and is {}",
                            found.unwrap_or(then).display(),
                            now.display()
                        ),
                    };
                }
                Some(_) => {}
            }
        }
        if let Some(name) = old
            .inputs
            .keys()
            .find(|name| !self.inputs.0.contains_key(*name))
        {
            return format!("input `{}` is gone", shorten(name));
        }
        let mut found = Vec::new();
        setting_differences("", &old.recipe, &self.recipe, &mut found);
        let more = match found.len().saturating_sub(SHOWN_DIFFERENCES) {
            0 => String::new(),
            more => format!(", and {more} more settings"),
        };
        found.truncate(SHOWN_DIFFERENCES);
        match found.is_empty() {
            true => "its recipe has changed".to_owned(),
            false => found.join(", ") + &more,
        }
    }
}

/// Settings that a sentence names.
const SHOWN_DIFFERENCES: usize = 3;

/// The settings that differ, in key order: "`train.steps` was 10, is 12".
fn setting_differences(path: &str, old: &Value, new: &Value, found: &mut Vec<String>) {
    if let (Value::Object(old), Value::Object(new)) = (old, new) {
        let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        for key in keys {
            let path = if path.is_empty() {
                key.clone()
            } else {
                format!("{path}.{key}")
            };
            match (old.get(key), new.get(key)) {
                (Some(old), Some(new)) => setting_differences(&path, old, new, found),
                (None, _) => found.push(format!("`{}` is new", shorten(&path))),
                (_, None) => found.push(format!("`{}` is gone", shorten(&path))),
            }
        }
        return;
    }
    let show = |value: &Value| match value {
        Value::String(text) => format!("\"{}\"", shorten(text)),
        value => shorten(&value.to_string()).replace("\\\"", "\""),
    };
    if old != new {
        found.push(format!(
            "`{}` was {}, is {}",
            shorten(path),
            show(old),
            show(new)
        ));
    }
}

/// Why a stage has to run: a clause in lower case, without a full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stale(String);

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Everything a stage reads, by name.
#[derive(Clone, Debug, Default)]
pub struct Inputs(BTreeMap<String, Input>);

#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(crate) kind: InputKind,
    pub(crate) hash: Hash,
    pub(crate) path: PathBuf,
}

impl Inputs {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an artifact, which counts by its manifest.
    ///
    /// # Errors
    /// When the name is taken, empty, too long or has control characters.
    pub fn artifact(self, name: &str, input: &Artifact) -> Result<Self> {
        let kind = InputKind::Artifact(input.kind());
        self.add(
            name,
            Input {
                kind,
                hash: input.manifest_hash(),
                path: input.dir().to_owned(),
            },
        )
    }

    /// Adds a plain file, or a plain folder with all files below it, which counts by its bytes; reads them all.
    ///
    /// # Errors
    /// When nothing is there, it cannot be read, or the name is as in [`Inputs::artifact`].
    pub fn path(self, name: &str, path: &Path) -> Result<Self> {
        let is = fs::metadata(path).map_err(Error::io("find the input", path))?;
        let (kind, hash) = if is.is_dir() {
            (InputKind::Folder, hash::hash_folder(path)?)
        } else if is.is_file() {
            (InputKind::File, hash::hash_file(path)?)
        } else {
            return Err(bad_input(name, path, "is neither a file nor a folder"));
        };
        self.add(
            name,
            Input {
                kind,
                hash,
                path: path.to_owned(),
            },
        )
    }

    /// Adds a folder that may be an artifact of `kind` or somebody else's, a downloaded checkpoint say, which counts by its
    /// bytes. What has a manifest is an artifact and must be a whole one.
    ///
    /// # Errors
    /// As [`Inputs::path`], and when the manifest is damaged or of another kind, or a file it lists is.
    pub fn artifact_or_path(self, name: &str, path: &Path, kind: Kind) -> Result<Self> {
        match path.join(MANIFEST).exists() {
            true => self.artifact(name, &Artifact::open(path, kind)?),
            false => self.path(name, path),
        }
    }

    /// Reads every byte of the artifacts among them. (Plain files and folders have been read when they were added.)
    fn verify(&self) -> Result<()> {
        for (name, input) in self.iter() {
            let InputKind::Artifact(kind) = input.kind else {
                continue;
            };
            let artifact = Artifact::open(&input.path, kind)?;
            if artifact.manifest_hash() != input.hash {
                let reason = "was written anew while this began; start again";
                return Err(bad_input(name, &input.path, reason));
            }
            artifact.verify_listed()?;
        }
        Ok(())
    }

    fn add(mut self, name: &str, input: Input) -> Result<Self> {
        check_input_name(name)
            .map_err(|why| bad_input(&shorten(name), &input.path, &format!("the name {why}")))?;
        if self.0.contains_key(name) {
            return Err(bad_input(
                name,
                &input.path,
                "there is another input of this name; give each its own",
            ));
        }
        self.0.insert(name.to_owned(), input);
        Ok(self)
    }

    /// The hash of the input that lies at this path, as it was given.
    pub fn hash_of(&self, path: &Path) -> Option<Hash> {
        let mut inputs = self.0.values();
        inputs
            .find(|input| input.path == path)
            .map(|input| input.hash)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Input)> {
        self.0.iter().map(|(name, input)| (name.as_str(), input))
    }
}

fn bad_input(name: &str, path: &Path, reason: &str) -> Error {
    Error::BadInput {
        name: name.to_owned(),
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}
