//! What a report is made of: an evaluation's scores with where they come from, and its rows.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use russet_artifact::{Artifact, MANIFEST, atomic_write, hash_file, hash_folder};
use serde_json::{Map, Value, json};

use crate::app::{App, Usage};

#[derive(Args, Default)]
pub struct SaveArgs {
    /// Folder of a run, where scores, their provenance and each row go for `eval report`
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
}

/// What goes into `DIR/NAME.json` and `DIR/NAME.rows.jsonl`.
pub struct Saved<'a> {
    /// The evaluation, the verb's word.
    pub name: &'a str,
    /// Its scores, as printed.
    pub scores: &'a Value,
    /// What they were asked for with.
    pub settings: Value,
    /// What was read: a name and a path.
    pub inputs: Vec<(&'a str, &'a Path)>,
    /// Each row: `name`, and what else there is of `prompt`, `response`, `passed`, `note`.
    pub rows: Vec<Value>,
}

impl SaveArgs {
    /// Refuses a folder that cannot be one of a run, before a model has answered for long.
    pub fn check(&self) -> Result<()> {
        self.save.as_deref().map_or(Ok(()), not_into_an_artifact)
    }

    /// Writes them where that was asked for.
    pub fn save(&self, app: &App, saved: &Saved) -> Result<()> {
        let Some(folder) = &self.save else {
            return Ok(());
        };
        not_into_an_artifact(folder)?;
        std::fs::create_dir_all(folder)
            .with_context(|| format!("{}: the folder cannot be made", folder.display()))?;
        let mut inputs = Map::new();
        for (name, path) in &saved.inputs {
            inputs.insert((*name).to_owned(), source(path)?);
        }
        let record = folder.join(format!("{}.json", saved.name));
        same_kind(&record, &inputs)?;
        let rows: String = saved.rows.iter().map(|row| format!("{row}\n")).collect();
        let scores = json!({
            "format": 1,
            "eval": saved.name,
            "scores": saved.scores,
            "settings": saved.settings,
            "inputs": inputs,
            "tool": app.tool,
        });
        // The record last: where it is, its rows are.
        atomic_write(
            &folder.join(format!("{}.rows.jsonl", saved.name)),
            rows.as_bytes(),
        )?;
        atomic_write(&record, format!("{scores:#}\n").as_bytes())?;
        Ok(())
    }
}

/// Refuses to put scores in the place of others that are of another text or model. The same ones measured anew take their place.
fn same_kind(record: &Path, inputs: &Map<String, Value>) -> Result<()> {
    let there = std::fs::read(record).ok();
    let there = there.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    let Some(there) = there else {
        return Ok(());
    };
    let bytes = |of: &Value| of.get("manifest").or(of.get("blake3")).cloned();
    for (name, is) in inputs {
        let was = &there["inputs"][name];
        // Other answers of the same model are its answers anew, and lie in the same place.
        let answers = name == "responses" && was["path"] == is["path"];
        if was.is_object() && bytes(was) != bytes(is) && !answers {
            let sentence = format!(
                "{}: it has the scores of {} as {name}, and these are of {}; name another folder by --save",
                record.display(),
                was["path"].as_str().unwrap_or_default(),
                is["path"].as_str().unwrap_or_default()
            );
            return Err(Usage(sentence).into());
        }
    }
    Ok(())
}

/// Refuses to write into a file that is read.
pub fn not_onto(option: &str, out: &Path, inputs: &[&Path]) -> Result<()> {
    let Ok(place) = out.canonicalize() else {
        return Ok(()); // nothing is there
    };
    match inputs
        .iter()
        .any(|input| input.canonicalize().is_ok_and(|input| input == place))
    {
        true => Err(Usage(format!(
            "{option} {}: this file is read by the same command; name another one",
            out.display()
        ))
        .into()),
        false => Ok(()),
    }
}

/// A file's name without the endings of rows and their packing.
pub fn plain_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = [".zst", ".gz"]
        .iter()
        .find_map(|end| name.strip_suffix(end))
        .unwrap_or(&name);
    let name = [".jsonl", ".json"]
        .iter()
        .find_map(|end| name.strip_suffix(end))
        .unwrap_or(name);
    name.to_owned()
}

/// Refuses a folder that is an artifact of ours: what is added to it later would no longer be what its manifest says.
pub fn not_into_an_artifact(folder: &Path) -> Result<()> {
    if folder.join(MANIFEST).is_file() {
        let sentence = format!(
            "{}: this folder is an artifact, which has a manifest of all its files; name another one",
            folder.display()
        );
        return Err(Usage(sentence).into());
    }
    if folder.is_file() {
        let sentence = format!("{}: a file lies there; name a folder", folder.display());
        return Err(Usage(sentence).into());
    }
    Ok(())
}

/// A file by its bytes, an artifact by its manifest, from which all it was made of can be walked back, any other folder by all its bytes.
pub fn source(path: &Path) -> Result<Value> {
    if path.is_dir() {
        return Ok(match Artifact::open_any(path) {
            Ok(artifact) => json!({"path": path, "manifest": artifact.manifest_hash()}),
            Err(_) => json!({"path": path, "blake3": hash_folder(path)?}),
        });
    }
    Ok(json!({"path": path, "blake3": hash_file(path)?}))
}
