//! What evaluations come to, on one page: tables with intervals and bars, two runs side by side, and every response behind its score.
//!
//! A run is a folder in which each evaluation has left a record, `NAME.json` (its scores, its settings, what was read by its
//! hash), and its rows,
//! `NAME.rows.jsonl`. [`html`] needs nothing but the page: no script, no font, no picture from elsewhere, and a policy within it
//! that forbids them. Whatever a model has written is shown as text ([`html::escape`]). [`markdown`] is for a model card.

mod figures;
pub mod html;
pub mod markdown;
mod metrics;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use metrics::{Metric, metrics};

use crate::rows::{read_rows, read_up_to};
use crate::{Error, Result};

/// The most bytes of a record.
const RECORD_BYTES: u64 = 64 << 20;

/// The version of records.
pub const FORMAT: u64 = 1;

/// What an evaluation leaves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`FORMAT`].
    pub format: u64,
    /// Which evaluation.
    pub eval: String,
    /// As it prints them.
    pub scores: Value,
    /// What it was asked for with.
    pub settings: Value,
    /// What was read: a path with its hash, or with that of an artifact's manifest, which leads back to the text.
    pub inputs: BTreeMap<String, Value>,
    /// Version and commit of the program.
    pub tool: Value,
}

/// A row of an evaluation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Case {
    /// What tells it apart, beside the prompt.
    #[serde(default)]
    pub name: String,
    /// What was asked.
    #[serde(default)]
    pub prompt: String,
    /// What was answered.
    pub response: Option<String>,
    /// What kind of prompt it is.
    pub category: Option<String>,
    /// Whether it was right.
    pub passed: Option<bool>,
    /// What else there is to say.
    pub note: Option<String>,
}

/// A folder of records.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its folder's name.
    pub name: String,
    /// By evaluation.
    pub records: BTreeMap<String, Record>,
    /// By evaluation.
    pub cases: BTreeMap<String, Vec<Case>>,
}

impl Run {
    /// Reads a folder.
    ///
    /// # Errors
    /// When it cannot be read, a record is of another format or malformed, two are of one evaluation or of different models, or there is
    /// none.
    pub fn read(folder: &Path) -> Result<Run> {
        let failed = |path: &Path, problem: String| Error::Unreadable {
            path: path.to_path_buf(),
            problem,
        };
        let entries =
            std::fs::read_dir(folder).map_err(|error| failed(folder, error.to_string()))?;
        let mut paths: Vec<PathBuf> = Vec::new();
        for entry in entries {
            paths.push(
                entry
                    .map_err(|error| failed(folder, error.to_string()))?
                    .path(),
            );
        }
        paths.sort();
        let mut run = Run {
            name: folder
                .canonicalize()
                .ok()
                .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
                .unwrap_or_else(|| folder.display().to_string()),
            records: BTreeMap::new(),
            cases: BTreeMap::new(),
        };
        // Of each evaluation its file; and of which model the first is that says so.
        let mut found: BTreeMap<String, PathBuf> = BTreeMap::new();
        let mut of: Option<(Value, PathBuf)> = None;
        for path in paths
            .iter()
            .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
        {
            if path.file_name().is_some_and(|name| name == "scores.json") {
                continue; // a report's own
            }
            let bytes = read_up_to(path, RECORD_BYTES, "a record of an evaluation is not")?;
            let record: Record = serde_json::from_slice(&bytes).map_err(|error| {
                failed(path, format!("it is no record of an evaluation: {error}; `--save DIR` of the verbs of eval writes them"))
            })?;
            if record.format != FORMAT {
                return Err(failed(
                    path,
                    format!(
                        "it has format {}, and this program reads {FORMAT}; evaluate again",
                        record.format
                    ),
                ));
            }
            let rows = path.with_extension("rows.jsonl");
            let cases = match rows.exists() {
                true => cases(&rows)?,
                false => Vec::new(),
            };
            if let Some(other) = found.insert(record.eval.clone(), path.clone()) {
                return Err(failed(
                    path,
                    format!(
                        "it is a record of {}, and {} is one too; a run has one of each, so put one into a folder of its own",
                        record.eval,
                        other.display()
                    ),
                ));
            }
            if let Some(is) = model_of(&record) {
                match &of {
                    Some((was, other)) if *was != is => {
                        return Err(failed(
                            path,
                            format!(
                                "it is of another model than {}; a run is of one model, so put the records of each into a folder of their own",
                                other.display()
                            ),
                        ));
                    }
                    _ => of = Some((is, path.clone())),
                }
            }
            run.cases.insert(record.eval.clone(), cases);
            run.records.insert(record.eval.clone(), record);
        }
        match run.records.is_empty() {
            true => Err(failed(
                folder,
                "there is no record of an evaluation in it; `--save DIR` of the verbs of eval writes them".to_owned(),
            )),
            false => Ok(run),
        }
    }
}

/// Which model a record is of, by its bytes or its server; none where it does not say so, or is of a reward model, which stands beside
/// the one that it rates.
fn model_of(record: &Record) -> Option<Value> {
    if record.eval == "reward" {
        return None;
    }
    let bytes = |name: &str| {
        let input = record.inputs.get(name)?;
        input.get("manifest").or(input.get("blake3")).cloned()
    };
    let settings = &record.settings;
    match (bytes("model"), settings.get("endpoint")) {
        (Some(model), _) => Some(serde_json::json!([model, bytes("adapter")])),
        (None, Some(endpoint)) => Some(serde_json::json!([endpoint, settings["model"]])),
        (None, None) => None,
    }
}

fn cases(path: &Path) -> Result<Vec<Case>> {
    let case = |row: crate::Row| {
        let object = Value::Object(row.object.clone());
        serde_json::from_value(object)
            .map_err(|error| row.wrong(format!("it is no row of an evaluation: {error}")))
    };
    read_rows(path)?.into_iter().map(case).collect()
}

/// All records of all runs, as one object: `{"format", "runs": [{"name", "evals": {NAME: RECORD}}]}`.
pub fn scores(runs: &[Run]) -> Value {
    let runs: Vec<Value> = runs
        .iter()
        .map(|run| serde_json::json!({"name": run.name, "evals": run.records}))
        .collect();
    serde_json::json!({"format": FORMAT, "runs": runs})
}

/// Evaluations that any of the runs has, in order.
fn evals(runs: &[Run]) -> Vec<&str> {
    let mut all: Vec<&str> = runs
        .iter()
        .flat_map(|run| run.records.keys().map(String::as_str))
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// The metrics of one evaluation: of each label, that of every run that has it.
fn lined_up(runs: &[Run], eval: &str) -> Vec<(String, Vec<Option<Metric>>)> {
    let of_runs: Vec<Vec<Metric>> = runs
        .iter()
        .map(|run| {
            run.records
                .get(eval)
                .map_or(Vec::new(), |record| metrics(eval, &record.scores))
        })
        .collect();
    let mut labels: Vec<String> = Vec::new();
    for metric in of_runs.iter().flatten() {
        if !labels.contains(&metric.label) {
            labels.push(metric.label.clone());
        }
    }
    labels
        .into_iter()
        .map(|label| {
            let of = |all: &Vec<Metric>| all.iter().find(|metric| metric.label == label).cloned();
            let all = of_runs.iter().map(of).collect();
            (label, all)
        })
        .collect()
}
