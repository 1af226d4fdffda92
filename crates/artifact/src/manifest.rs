//! `manifest.json`: what an artifact is, how it was made, and the hash of everything in it.
//!
//! ```json
//! {
//!   "files":  { "config.json": { "blake3": "…", "bytes": 512 } },
//!   "format": 1,
//!   "inputs": { "tokens": { "blake3": "…", "kind": "tokens", "path": "../02-tokens" } },
//!   "kind":   "checkpoint",
//!   "recipe": { "train": { "steps": 12 } },
//!   "stage":  "pretrain",
//!   "tool":   { "commit": "…", "version": "0.1.0" }
//! }
//! ```
//!
//! There is one way to write a manifest (keys sorted, two spaces, a final newline) and only that way is read, so nothing
//! can hide in it: no second key of the same name, no unknown field, no number that is not the one it seems. No time, no
//! host, no user. Its hash leaves out where the inputs lay, so that a run can be moved. A manifest from elsewhere is only data: names that lead out of the
//! folder are refused before any of them is opened.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::hash::{Hash, shorten};

/// The name of the manifest in an artifact's folder.
pub const MANIFEST: &str = "manifest.json";

/// The format this version reads and writes.
pub const FORMAT: u64 = 1;

/// 16 MiB, about a hundred thousand files: a bound on what is read before anything is believed.
const MAX_BYTES: u64 = 16 << 20;

/// The longest file name, in bytes, that a manifest may list.
const MAX_NAME: usize = 1024;

/// What an artifact is. A stage asks for a kind and refuses every other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Kind {
    /// Curated documents.
    Text,
    /// A trained tokenizer.
    Tokenizer,
    /// Token shards.
    Tokens,
    /// A teacher's stored predictions of token shards.
    TeacherLogits,
    /// Weights and configuration, as a Hugging Face folder.
    Checkpoint,
    /// A checkpoint with optimizer state and loader position, to go on from.
    TrainState,
    /// A checkpoint with a reward head.
    RewardModel,
    /// Generated or graded answers.
    Samples,
    /// Palettized weights, ready to serve.
    Package,
    /// Low-rank weights beside a base.
    Adapter,
    /// The results of an evaluation.
    Scores,
    /// Measured times of a served model.
    Trace,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 12] = [
        Self::Text,
        Self::Tokenizer,
        Self::Tokens,
        Self::TeacherLogits,
        Self::Checkpoint,
        Self::TrainState,
        Self::RewardModel,
        Self::Samples,
        Self::Package,
        Self::Adapter,
        Self::Scores,
        Self::Trace,
    ];

    /// The name in manifests, and in sentences.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Tokenizer => "tokenizer",
            Self::Tokens => "tokens",
            Self::TeacherLogits => "teacher-logits",
            Self::Checkpoint => "checkpoint",
            Self::TrainState => "train-state",
            Self::RewardModel => "reward-model",
            Self::Samples => "samples",
            Self::Package => "package",
            Self::Adapter => "adapter",
            Self::Scores => "scores",
            Self::Trace => "trace",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| {
                let kinds = Self::ALL.map(Self::name).join(", ");
                format!(
                    "`{}` is no kind of artifact; there are {kinds}",
                    shorten(text)
                )
            })
    }
}

/// The program that wrote an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// Its version; another version runs a stage again.
    pub version: String,
    /// Its git commit, for the record; another commit alone runs nothing again.
    pub commit: String,
}

impl Tool {
    /// From a version (`env!("CARGO_PKG_VERSION")`) and a git commit ("unknown" where there is none).
    pub fn new(version: &str, commit: &str) -> Self {
        Self {
            version: version.to_owned(),
            commit: commit.to_owned(),
        }
    }
}

/// What a manifest says of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Hash of its bytes.
    pub blake3: Hash,
    /// How many bytes.
    pub bytes: u64,
}

/// What an input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum InputKind {
    /// A plain file; its hash is that of its bytes.
    File,
    /// A plain folder; its hash is [`crate::hash_folder`]'s.
    Folder,
    /// An artifact; its hash is [`Manifest::identity`].
    Artifact(Kind),
}

impl From<InputKind> for String {
    fn from(kind: InputKind) -> Self {
        match kind {
            InputKind::File => "file".to_owned(),
            InputKind::Folder => "folder".to_owned(),
            InputKind::Artifact(kind) => kind.name().to_owned(),
        }
    }
}

impl TryFrom<String> for InputKind {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        match text.as_str() {
            "file" => Ok(Self::File),
            "folder" => Ok(Self::Folder),
            kind => kind.parse().map(Self::Artifact),
        }
    }
}

/// What a manifest says of one input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputRecord {
    /// What it was.
    pub kind: InputKind,
    /// Its hash; see [`InputKind`].
    pub blake3: Hash,
    /// Where it lay, relative to the artifact, with `/`: `../02-tokens`. For a person, and no part of
    /// [`Manifest::identity`].
    pub path: String,
}

/// What an artifact is, how it was made, and the hash of everything in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: u64,
    /// What the artifact is.
    pub kind: Kind,
    /// The stage that made it: "pretrain".
    pub stage: String,
    /// The program that made it.
    pub tool: Tool,
    /// The stage's full settings, defaults filled in.
    pub recipe: Value,
    /// Every file but the manifest, by relative name with `/`.
    pub files: BTreeMap<String, FileRecord>,
    /// Everything that was read to make it.
    pub inputs: BTreeMap<String, InputRecord>,
}

impl Manifest {
    /// What decides whether the stage has to run again: stage, tool version, recipe, and the inputs' hashes.
    ///
    /// Not the commit, and not where the inputs lay.
    pub fn key(&self) -> Hash {
        let inputs = self
            .inputs
            .iter()
            .map(|(name, input)| (name.as_str(), input.kind, input.blake3));
        key(&self.stage, &self.tool, &self.recipe, inputs)
    }

    /// BLAKE3 of these bytes without the `path` of any input: what later stages write down of this artifact. A run that
    /// was moved or renamed, and one that was made elsewhere, have the same.
    pub fn identity(&self) -> Hash {
        let mut value = self.to_value();
        if let Some(inputs) = value["inputs"].as_object_mut() {
            for input in inputs.values_mut().filter_map(Value::as_object_mut) {
                input.remove("path");
            }
        }
        Hash::of(&canonical(&value))
    }

    pub(crate) fn new(
        kind: Kind,
        stage: &str,
        tool: &Tool,
        recipe: &Value,
        files: BTreeMap<String, FileRecord>,
        inputs: BTreeMap<String, InputRecord>,
    ) -> Self {
        let (stage, tool, recipe) = (stage.to_owned(), tool.clone(), recipe.clone());
        Self {
            format: FORMAT,
            kind,
            stage,
            tool,
            recipe,
            files,
            inputs,
        }
    }

    /// The one way to write it.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        canonical(&self.to_value())
    }

    fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("a manifest has only strings, numbers and string keys")
    }

    /// Reads bytes that may come from anywhere; the error is the reason only.
    pub(crate) fn from_bytes(bytes: &[u8]) -> std::result::Result<Self, String> {
        if bytes.len() as u64 > MAX_BYTES {
            return Err(format!("it is longer than {MAX_BYTES} bytes"));
        }
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|error| format!("it is not whole JSON ({error})"))?;
        match value.get("format").and_then(Value::as_u64) {
            Some(FORMAT) => {}
            Some(other) => {
                return Err(format!(
                    "it has format {other}, and this version of Russet reads format {FORMAT}"
                ));
            }
            None => return Err("it has no `format` number, so another program wrote it".to_owned()),
        }
        let manifest: Self =
            serde_json::from_value(value).map_err(|error| shorten_to(error.to_string(), 300))?;
        manifest.check()?;
        if manifest.to_bytes() != bytes {
            return Err(
                "it is not byte for byte what Russet writes, so it was edited or damaged"
                    .to_owned(),
            );
        }
        Ok(manifest)
    }

    /// Reads `dir/manifest.json`.
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        let bad = |reason: String| Error::BadManifest {
            path: path.clone(),
            reason,
        };
        // Looked at before it is opened: opening a pipe would wait for ever.
        let is = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::NotAnArtifact {
                    dir: dir.to_owned(),
                    reason: format!(
                        "it has no {MANIFEST}; name a folder that a stage of Russet wrote"
                    ),
                });
            }
            is => is.map_err(Error::io("look at", &path))?,
        };
        if !is.is_file() {
            return Err(bad("it is a link or a folder, not a plain file".to_owned()));
        }
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
            .map_err(Error::io("read", &path))?;
        Self::from_bytes(&bytes).map_err(bad)
    }

    fn check(&self) -> std::result::Result<(), String> {
        for name in self.files.keys() {
            check_file_name(name).map_err(|why| format!("file name `{}` {why}", shorten(name)))?;
        }
        for (name, input) in &self.inputs {
            check_input_name(name)
                .map_err(|why| format!("input name `{}` {why}", shorten(name)))?;
            check_input_path(&input.path).map_err(|why| {
                format!("path `{}` of input `{name}` {why}", shorten(&input.path))
            })?;
        }
        Ok(())
    }
}

pub(crate) fn key<'a>(
    stage: &str,
    tool: &Tool,
    recipe: &Value,
    inputs: impl Iterator<Item = (&'a str, InputKind, Hash)>,
) -> Hash {
    let inputs: serde_json::Map<String, Value> = inputs
        .map(|(name, kind, hash)| {
            (
                name.to_owned(),
                json!([String::from(kind), hash.to_string()]),
            )
        })
        .collect();
    let version = &tool.version;
    Hash::of(&canonical(
        &json!({ "stage": stage, "version": version, "recipe": recipe, "inputs": inputs }),
    ))
}

/// JSON with sorted keys (whatever order the map type of this build keeps), two spaces, a final newline.
pub(crate) fn canonical(value: &Value) -> Vec<u8> {
    fn sorted(value: &Value) -> Value {
        match value {
            Value::Object(map) => {
                let mut pairs: Vec<_> = map.iter().collect();
                pairs.sort_unstable_by_key(|(key, _)| *key);
                Value::Object(
                    pairs
                        .into_iter()
                        .map(|(key, value)| (key.clone(), sorted(value)))
                        .collect(),
                )
            }
            Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
            other => other.clone(),
        }
    }
    let mut bytes = serde_json::to_vec_pretty(&sorted(value)).expect("a JSON value can be written");
    bytes.push(b'\n');
    bytes
}

/// A name may lead to a file below the folder and nowhere else, on any system.
pub(crate) fn check_file_name(name: &str) -> std::result::Result<(), &'static str> {
    if name == MANIFEST {
        return Err("is the manifest's own");
    }
    if name.is_empty() || name.len() > MAX_NAME {
        return Err("is empty or too long");
    }
    check_characters(name)?;
    for part in name.split('/') {
        match part {
            "" => return Err("begins or ends with `/` or has two in a row"),
            "." | ".." => return Err("leads out of the folder"),
            _ => {}
        }
    }
    Ok(())
}

pub(crate) fn check_input_name(name: &str) -> std::result::Result<(), &'static str> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err("is empty or too long");
    }
    check_characters(name)
}

/// Leading `..`s, then names: as relative paths come out of [`crate::draft`].
fn check_input_path(path: &str) -> std::result::Result<(), &'static str> {
    if path.is_empty() || path.len() > 4 * MAX_NAME {
        return Err("is empty or too long");
    }
    check_characters(path)?;
    let mut parts = path.split('/').skip_while(|part| *part == "..");
    if parts.any(|part| matches!(part, "" | "." | "..")) {
        return Err("is absolute or winding");
    }
    Ok(())
}

fn check_characters(name: &str) -> std::result::Result<(), &'static str> {
    if name.chars().any(|c| c == '\\' || c.is_control()) {
        return Err("has a backslash or control character");
    }
    if name.as_bytes().get(1) == Some(&b':') {
        return Err("begins with a drive letter");
    }
    Ok(())
}

fn shorten_to(mut text: String, bytes: usize) -> String {
    if text.len() > bytes {
        text.truncate(text.floor_char_boundary(bytes));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests;
