//! `stage = "report"`: several models, the same evaluations of each, one page.
//!
//! An evaluation is a verb of `eval` by its name and options, so a recipe and the command line mean the same by the same word. What
//! models answer lies beside the artifact (`NAME.answers/`), where a run that was stopped goes on.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::builder::ValueParser;
use clap::{CommandFactory, Parser};
use russet_artifact::{Hash, Inputs, Kind, MANIFEST, Recipe, atomic_write};
use russet_eval::report::{Run, html, markdown, scores};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Made, Outlook, Place, Plan, StageKind, Work, make, ours_or_not};
use crate::app::{App, Usage};
use crate::args::EvalVerb;
use crate::eval::respond::about;
use crate::eval::save::{plain_name, source};
use crate::eval::server::ServerArgs;

/// The file of all scores.
const SCORES: &str = "scores.json";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReportRecipe {
    stage: StageKind,
    model: Vec<Judged>,
    task: Vec<Task>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Judged {
    /// What the page calls it.
    name: String,
    /// A checkpoint or package; of an endpoint what the server calls the model.
    model: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<PathBuf>,
    /// The address of a server, `http://HOST:PORT/v1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    /// The environment variable that holds the server's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_env: Option<String>,
}

/// A verb of `eval`, and its options with `_` for `-`.
#[derive(Serialize, Deserialize)]
struct Task {
    kind: String,
    #[serde(flatten)]
    options: Map<String, Value>,
}

/// Options that the stage gives itself.
const OWN: [&str; 8] = [
    "model",
    "adapter",
    "endpoint",
    "key_env",
    "responses",
    "keep",
    "save",
    "verdicts",
];

/// Names that the artifact's own files have.
const TAKEN: [&str; 4] = [SCORES, "report.html", "report.md", MANIFEST];

#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Words {
    #[command(subcommand)]
    verb: EvalVerb,
}

impl Task {
    /// What its record is called.
    fn record(&self) -> String {
        let task = self.options.get("task").and_then(Value::as_str);
        match (&self.kind[..], task) {
            ("calls", _) if !self.options.contains_key("answers") => "calls-irrelevance".to_owned(),
            ("choice", Some(task)) => format!("choice-{}", plain_name(Path::new(task))),
            _ => self.kind.clone(),
        }
    }

    /// What it reads, each under its option's name.
    fn files(&self, place: &Place) -> Vec<(&str, PathBuf)> {
        let texts = self.options.iter();
        let texts = texts.filter_map(|(key, value)| Some((&key[..], value.as_str()?)));
        let texts = texts.filter(|(key, _)| is_path(&self.kind, key));
        let paths = texts.map(|(key, text)| {
            let text = Path::new(text);
            let folder = place.input(text);
            (
                key,
                if folder.is_dir() {
                    folder
                } else {
                    place.rows(text)
                },
            )
        });
        paths.collect()
    }

    /// The command line, for one model.
    fn verb(&self, number: usize, place: &Place, more: &[(&str, &Path)]) -> Result<EvalVerb> {
        let files = self.files(place);
        let mut words: Vec<OsString> = vec![self.kind.clone().into()];
        for (key, value) in &self.options {
            let word = match (value, files.iter().find(|(name, _)| name == key)) {
                (_, Some((_, path))) => Some(path.clone().into_os_string()),
                (Value::String(text), None) => Some(text.into()),
                (Value::Array(all), None) => {
                    let all: Vec<String> = all.iter().map(Value::to_string).collect();
                    Some(all.join(",").into())
                }
                (Value::Bool(false), None) => continue, // a switch that is not set
                (Value::Bool(true), None) => None,
                (value, None) => Some(value.to_string().into()),
            };
            words.push(format!("--{}", key.replace('_', "-")).into());
            words.extend(word);
        }
        for (key, path) in more.iter().filter(|(key, _)| takes(&self.kind, key)) {
            words.push(format!("--{key}").into());
            words.push(path.into());
        }
        let parsed = Words::try_parse_from(words).map_err(|error| {
            let said = error.to_string();
            let said = said.lines().take_while(|line| !line.starts_with("Usage:"));
            let said: Vec<&str> = said
                .map(str::trim)
                .filter(|line| !line.is_empty())
                .collect();
            let said = said.join(" ");
            Usage(format!(
                "`task.{number}` ({}): {}; options are those of `russet eval {}`, with _ for -",
                self.kind,
                said.trim_start_matches("error: "),
                self.kind
            ))
        })?;
        Ok(parsed.verb)
    }
}

/// Whether a verb of `eval` has an option.
fn takes(verb: &str, option: &str) -> bool {
    let command = Words::command();
    let verb = command.find_subcommand(verb);
    verb.is_some_and(|verb| {
        verb.get_arguments()
            .any(|argument| argument.get_long() == Some(option))
    })
}

/// Whether an option of it is a path.
fn is_path(verb: &str, option: &str) -> bool {
    let command = Words::command();
    let option = option.replace('_', "-");
    let argument = command.find_subcommand(verb).and_then(|verb| {
        verb.get_arguments()
            .find(|argument| argument.get_long() == Some(&option))
    });
    argument.is_some_and(|argument| {
        argument.get_value_parser().type_id() == ValueParser::path_buf().type_id()
    })
}

pub(super) fn read(recipe: &Recipe) -> Result<ReportRecipe> {
    let recipe: ReportRecipe = recipe.parse()?;
    let refuse = |sentence: String| Err(Usage(sentence).into());
    if recipe.model.is_empty() || recipe.task.is_empty() {
        return refuse("a report needs a [[model]] and a [[task]] at least".to_owned());
    }
    let mut names = BTreeSet::new();
    for (number, model) in recipe.model.iter().enumerate() {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let is_name = !model.name.starts_with('.') && model.name.chars().all(plain);
        if model.name.is_empty() || !is_name {
            return refuse(format!(
                "`model.{number}.name` is {:?}; it names a folder, so write letters, digits, - and _",
                model.name
            ));
        }
        if TAKEN.contains(&&model.name[..]) {
            return refuse(format!(
                "`model.{number}.name` is {}, as a file of the report is called; call it something else",
                model.name
            ));
        }
        if !names.insert(&model.name) {
            return refuse(format!(
                "`model.{number}.name` is {} as of an earlier model; tell them apart",
                model.name
            ));
        }
    }
    for (number, model) in recipe.model.iter().enumerate() {
        let server = ServerArgs {
            endpoint: model.endpoint.clone(),
            ..ServerArgs::default()
        };
        match (&model.endpoint, &model.adapter, &model.key_env) {
            (None, _, Some(_)) => {
                return refuse(format!(
                    "`model.{number}.key_env` is for a server; leave it out, or name an `endpoint`"
                ));
            }
            (Some(_), Some(_), _) => {
                return refuse(format!(
                    "`model.{number}.adapter` is for a model of this machine; a server has its own names for adapters, to be written as `model`"
                ));
            }
            (Some(_), None, _) => {
                server
                    .open(&model.model.display().to_string(), None)
                    .with_context(|| format!("`model.{number}.endpoint`"))?;
            }
            (None, _, None) => {}
        }
    }
    let far = recipe.model.iter().find(|model| model.endpoint.is_some());
    let mut records = BTreeSet::new();
    for (number, task) in recipe.task.iter().enumerate() {
        let kind = &task.kind;
        if !takes(kind, "model") || !takes(kind, "save") {
            let all = Words::command();
            let fit = all.get_subcommands().map(|verb| verb.get_name());
            let fit: Vec<&str> = fit
                .filter(|verb| takes(verb, "model") && takes(verb, "save"))
                .collect();
            return refuse(format!(
                "`task.{number}.kind` is {kind}, which evaluates no model into a report; write one of {}",
                fit.join(", ")
            ));
        }
        if let Some(far) = far.filter(|_| !takes(kind, "endpoint")) {
            return refuse(format!(
                "`task.{number}` is {kind}, which reads likelihoods that a server does not tell, and {} is at one; put the two into reports \
                 of their own",
                far.name
            ));
        }
        if let Some(key) = OWN.iter().find(|key| task.options.contains_key(**key)) {
            return refuse(format!(
                "`task.{number}.{key}` is the stage's to say; leave it out, and name models by [[model]]"
            ));
        }
        if !records.insert(task.record()) {
            return refuse(format!(
                "`task.{number}` is {} a second time; a report has one of each, so put it into a report of its own",
                task.record()
            ));
        }
    }
    Ok(recipe)
}

impl Work for ReportRecipe {
    fn settings(&self) -> Result<Value> {
        Ok(Recipe::resolved_json(self)?)
    }

    fn plan(&self, _: &str, place: &Place, outlook: &mut Outlook) -> Result<Plan> {
        for (number, task) in self.task.iter().enumerate() {
            task.verb(number, place, &[("model", Path::new("model"))])?;
            for (key, path) in task.files(place) {
                if !path.exists() && !outlook.will_have(&path, place) {
                    let sentence = format!(
                        "`task.{number}.{key}` is {}, which is neither there nor left by an earlier stage of this run",
                        path.display()
                    );
                    return Err(Usage(sentence).into());
                }
            }
        }
        let names = |all: Vec<String>| all.join(", ");
        let (models, tasks) = (
            names(self.model.iter().map(|model| model.name.clone()).collect()),
            names(self.task.iter().map(Task::record).collect()),
        );
        Ok(Plan {
            text: format!("{tasks} of {models}"),
            json: json!({"models": self.model.len(), "tasks": self.task.len()}),
        })
    }

    fn run(&self, app: &mut App, _: &str, place: &Place) -> Result<Made> {
        let mut inputs = Inputs::new();
        let mut judged = Vec::new();
        for model in &self.model {
            if model.endpoint.is_some() {
                judged.push((model, model.model.clone(), None));
                continue;
            }
            let folder = place.input(&model.model);
            crate::found::model(&folder)?;
            inputs = ours_or_not(inputs, &format!("{}.model", model.name), &folder)?;
            let adapter = model.adapter.as_deref().map(|name| place.input(name));
            if let Some(adapter) = &adapter {
                crate::found::adapter(adapter)?;
                inputs = ours_or_not(inputs, &format!("{}.adapter", model.name), adapter)?;
            }
            judged.push((model, folder, adapter));
        }
        let mut read = Vec::new();
        for (number, task) in self.task.iter().enumerate() {
            let mut files = Vec::new();
            for (key, path) in task.files(place) {
                inputs = ours_or_not(inputs, &format!("task.{number}.{key}"), &path)?;
                files.push(source(&path)?);
            }
            read.push(files);
        }
        let mut name = place.out.file_name().unwrap_or_default().to_owned();
        name.push(".answers");
        let answers = place.out.with_file_name(name);
        let what = (StageKind::Report, Kind::Scores);
        let settings = self.settings()?;
        let skipped = make(app, what, settings, inputs, &place.out, |app, draft, _| {
            std::fs::create_dir_all(&answers)
                .with_context(|| format!("{}: the folder cannot be made", answers.display()))?;
            let mut runs = Vec::new();
            for (of, model, adapter) in &judged {
                let name = &of.name;
                let save = draft.join(name);
                let about = match &of.endpoint {
                    Some(endpoint) => json!({"endpoint": endpoint, "model": model}),
                    None => about(model, adapter.as_deref())?,
                };
                for (number, task) in self.task.iter().enumerate() {
                    // All that they follow from: where any of it is another one, answers are asked for anew.
                    let of_it = json!([about, task, read[number], app.tool]).to_string();
                    let of_it = Hash::of(of_it.as_bytes()).to_string();
                    let keep = format!("{name}.{}.{}.jsonl", task.record(), &of_it[..12]);
                    let keep = answers.join(keep);
                    let mut more =
                        vec![("model", model.as_path()), ("keep", &keep), ("save", &save)];
                    more.extend(adapter.as_deref().map(|path| ("adapter", path)));
                    more.extend(
                        of.endpoint
                            .as_deref()
                            .map(|url| ("endpoint", Path::new(url))),
                    );
                    more.extend(
                        of.key_env
                            .as_deref()
                            .map(|name| ("key-env", Path::new(name))),
                    );
                    let verb = task.verb(number, place, &more)?;
                    // What keeps no answers is kept whole: its scores and rows, which a run that goes on takes as they are.
                    let whole =
                        answers.join(format!("{name}.{}.{}.json", task.record(), &of_it[..12]));
                    let record = save.join(format!("{}.json", task.record()));
                    let rows = |record: &Path| record.with_extension("rows.jsonl");
                    // The rows are kept first, so where the scores are, they are.
                    let both = [(rows(&record), rows(&whole)), (record, whole)];
                    let there = both.iter().all(|(_, kept)| kept.is_file());
                    if !takes(&task.kind, "keep") && there {
                        std::fs::create_dir_all(&save)?;
                        for (file, kept) in &both {
                            std::fs::copy(kept, file)
                                .with_context(|| kept.display().to_string())?;
                        }
                        let line = format!("{name}, {}: as it was measured before", task.record());
                        app.progress.message(&line);
                        continue;
                    }
                    let said = crate::eval::score(app, verb)
                        .with_context(|| format!("{} of {name}", task.record()))?;
                    match takes(&task.kind, "keep") {
                        true => {
                            let to = save.join(format!("{}.responses.jsonl", task.record()));
                            std::fs::copy(&keep, to).with_context(|| keep.display().to_string())?;
                        }
                        false => {
                            for (file, kept) in &both {
                                atomic_write(kept, &std::fs::read(file)?)?;
                            }
                        }
                    }
                    let line = said.text.lines().next().unwrap_or_default();
                    let line = format!("{name}, {}: {line}", task.record());
                    app.progress.message(&line);
                }
                runs.push(Run::read(&save)?);
            }
            let text = format!("{:#}\n", scores(&runs));
            std::fs::write(draft.join(SCORES), text)?;
            std::fs::write(draft.join("report.html"), html::page(&runs))?;
            std::fs::write(draft.join("report.md"), markdown::card(&runs))?;
            Ok(())
        })?;
        let page = place.out.join("report.html");
        Ok(Made {
            skipped,
            summary: format!(
                "{} evaluations of {} models, on {}",
                self.task.len(),
                self.model.len(),
                page.display()
            ),
            facts: Value::Null,
        })
    }
}
