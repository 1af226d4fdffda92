//! The stages of a run, a file each: a recipe in, an artifact out.
//!
//! A [`Job`] is a recipe that has been read, filled in and checked, so that a mistake in the last recipe of a run shows
//! before the first has run for an hour. [`StageKind`] is the one place that knows which words there are.

mod align;
mod eval;
mod on_package;
mod palettize;
mod pretrain;
mod prune;
mod reject;
mod report;
mod rlhf;
mod sample;
mod teacher_logits;
mod texts;
mod tokenizer;
mod tokens;

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use russet_align::Lesson;
use russet_artifact::{Artifact, Inputs, Kind, MANIFEST, Recipe, Stage, Tool};
use russet_kernels::Pool;
use russet_model::Config;
use russet_tokenizer::read_texts;
use russet_train::settings::ComputeType;
use russet_train::{Rate, Resume};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::app::{App, Usage};

/// What a recipe is for: its key `stage`, and the name in the manifest of what it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageKind {
    Tokenizer,
    Tokens,
    #[serde(rename = "teacher-logits")]
    TeacherLogits,
    Pretrain,
    Sft,
    Dpo,
    Reward,
    Reject,
    Rlhf,
    Prune,
    Palettize,
    Recover,
    Qat,
    Eval,
    Report,
    Sample,
    Texts,
}

impl StageKind {
    /// As recipes and manifests write it.
    pub fn word(self) -> &'static str {
        match self {
            StageKind::Tokenizer => "tokenizer",
            StageKind::Tokens => "tokens",
            StageKind::TeacherLogits => "teacher-logits",
            StageKind::Pretrain => "pretrain",
            StageKind::Sft => "sft",
            StageKind::Dpo => "dpo",
            StageKind::Reward => "reward",
            StageKind::Reject => "reject",
            StageKind::Rlhf => "rlhf",
            StageKind::Prune => "prune",
            StageKind::Palettize => "palettize",
            StageKind::Recover => "recover",
            StageKind::Qat => "qat",
            StageKind::Eval => "eval",
            StageKind::Report => "report",
            StageKind::Sample => "sample",
            StageKind::Texts => "texts",
        }
    }

    /// Reads, fills in and checks the settings.
    fn read(self, app: &App, recipe: &Recipe) -> Result<Box<dyn Work>> {
        Ok(match self {
            StageKind::Tokenizer => Box::new(tokenizer::read(recipe)?),
            StageKind::Tokens => Box::new(tokens::read(recipe)?),
            StageKind::TeacherLogits => Box::new(teacher_logits::read(recipe)?),
            StageKind::Pretrain => Box::new(pretrain::read(app, recipe)?),
            StageKind::Sft => Box::new(align::read(app, recipe, Lesson::Conversations)?),
            StageKind::Dpo => Box::new(align::read(app, recipe, Lesson::Preferences)?),
            StageKind::Reward => Box::new(align::read(app, recipe, Lesson::Rewards)?),
            StageKind::Reject => Box::new(reject::read(recipe)?),
            StageKind::Rlhf => Box::new(rlhf::read(app, recipe)?),
            StageKind::Prune => Box::new(prune::read(app, recipe)?),
            StageKind::Palettize => Box::new(palettize::read(recipe)?),
            StageKind::Recover => Box::new(on_package::recover(app, recipe)?),
            StageKind::Qat => Box::new(on_package::qat(app, recipe)?),
            StageKind::Eval => Box::new(eval::read(recipe)?),
            StageKind::Report => Box::new(report::read(recipe)?),
            StageKind::Sample => Box::new(sample::read(recipe)?),
            StageKind::Texts => Box::new(texts::read(recipe)?),
        })
    }
}

/// What a stage does; one implementation a file.
trait Work {
    /// Every setting, defaults filled in.
    fn settings(&self) -> Result<Value>;

    /// The same where what earlier stages will leave decides some of them.
    fn foreseen(&self, _: &Place, _: &Outlook) -> Result<Value> {
        self.settings()
    }

    /// What it will come to, and whether it can be at all. Tells the outlook what later stages will find.
    fn plan(&self, name: &str, place: &Place, outlook: &mut Outlook) -> Result<Plan>;

    /// Leaves the artifact, or finds that nothing has changed.
    fn run(&self, app: &mut App, name: &str, place: &Place) -> Result<Made>;
}

/// Where a recipe's inputs and its artifact lie.
pub struct Place {
    /// The folders that inputs are named in; the first that has one holds it.
    pub runs: Vec<PathBuf>,
    /// The artifact's own folder.
    pub out: PathBuf,
    /// What becomes of a training that was stopped.
    pub resume: Resume,
}

impl Place {
    /// An input: a stage of the same run by its folder's name, else a path as it stands.
    fn input(&self, name: &Path) -> PathBuf {
        let beside = || self.runs.iter().map(|run| run.join(name));
        let found = beside().find(|path| path.exists());
        match found.or_else(|| beside().next().filter(|_| !name.exists())) {
            Some(path) => path,
            None => name.to_path_buf(),
        }
    }

    /// A file of rows: one in the artifact of a stage of the same run, by its folder's name (`04-reject/sft.jsonl`), else a path as it
    /// stands.
    fn rows(&self, file: &Path) -> PathBuf {
        let within = file.is_relative() && file.components().count() > 1;
        let beside = self.runs.iter().map(|run| run.join(file));
        let found = beside.filter(|_| within).find(|path| path.is_file());
        found.unwrap_or_else(|| file.to_path_buf())
    }
}

/// What is known ahead of a run about what its stages will find.
pub struct Outlook {
    /// The rate of this machine's products of f32, measured; `None` ahead of a real run, which refuses what cannot be afforded
    /// where a dry run tells its price.
    f32: Option<Rate>,
    /// What the rate of products of bf16 is measured on, once it is asked for.
    pool: Option<Arc<Pool>>,
    bf16: OnceCell<Rate>,
    /// Entries of the vocabulary.
    vocab: Option<usize>,
    /// The decoders of the checkpoints that the run will make, by the name of the stage.
    decoders: BTreeMap<String, Config>,
    /// The splits of the tokens that the run will make, by the name of the stage.
    splits: BTreeMap<String, Vec<String>>,
    /// The places of stages that run before the one that is planned now, so that what lies there may be made anew.
    earlier: BTreeSet<PathBuf>,
    /// Whether the plan tells what lies in a stage's own place: a run finds out when it is the stage's turn.
    looks: bool,
    /// For what lies there: another version makes it anew.
    tool: Tool,
    /// The files of rows that the run will make, below the name of the stage.
    rows: BTreeSet<PathBuf>,
}

impl Outlook {
    /// Of nothing but the machine, whose threads are given for a dry run.
    pub fn new(pool: Option<Arc<Pool>>, tool: Tool) -> Outlook {
        Outlook {
            f32: pool
                .as_deref()
                .map(|pool| Rate::measure(pool, ComputeType::F32.kernel())),
            pool,
            bf16: OnceCell::new(),
            vocab: None,
            decoders: BTreeMap::new(),
            splits: BTreeMap::new(),
            earlier: BTreeSet::new(),
            looks: false,
            tool,
            rows: BTreeSet::new(),
        }
    }

    /// From now on plans tell what lies in the stages' places.
    pub fn look_at_places(&mut self) {
        self.looks = true;
    }

    /// Hears that what lies in this place may be made anew before the stages that are planned from now on run.
    pub fn runs_before(&mut self, place: &Place) {
        self.earlier.insert(place.out.clone());
    }

    /// Whether an input is what the stage will find: it is there, and nothing of the run makes it anew before.
    fn is_settled(&self, input: &Path, place: &Place) -> bool {
        let path = place.input(input);
        let made = path.extension().is_some_and(|end| end == "best");
        let made = if made {
            path.with_extension("")
        } else {
            path.clone()
        };
        path.exists() && !self.earlier.contains(&made)
    }

    /// Whether a path lies where a stage that runs before leaves its result.
    fn will_have(&self, path: &Path, place: &Place) -> bool {
        let mut below = place.runs.iter().map(|run| run.join(path));
        self.earlier.iter().any(|made| path.starts_with(made))
            || below.any(|path| self.earlier.iter().any(|made| path.starts_with(made)))
    }

    /// The rate of products of a type, in a dry run.
    fn rate(&self, dtype: ComputeType) -> Option<Rate> {
        match dtype {
            ComputeType::F32 => self.f32,
            ComputeType::Bf16 => self.pool.as_ref().map(|pool| {
                let measure = || Rate::measure(pool, dtype.kernel());
                *self.bf16.get_or_init(measure)
            }),
        }
    }

    /// Forgets which splits there will be: what lies there may have been made with other settings.
    pub fn forget_splits(&mut self) {
        self.splits.clear();
    }

    /// Refuses a split that the run's tokens will not have.
    fn check_split(&self, tokens: &Path, key: &str, split: &str) -> Result<()> {
        let splits = tokens.to_str().and_then(|name| self.splits.get(name));
        match splits {
            Some(splits) if !splits.iter().any(|one| one == split) => Err(Usage(format!(
                "`{key}` is {split}, but {} makes no such split; write one of {}",
                tokens.display(),
                splits.join(", ")
            ))
            .into()),
            _ => Ok(()),
        }
    }

    /// Checks that files of rows are there, and where; `None` where the run is still to make one of them.
    fn rows(&self, place: &Place, key: &str, files: &[PathBuf]) -> Result<Option<Vec<PathBuf>>> {
        let found: Vec<PathBuf> = files.iter().map(|file| place.rows(file)).collect();
        let mut whole = true;
        for (file, path) in files.iter().zip(&found) {
            if self.rows.contains(file) && !path.exists() {
                whole = false;
            } else {
                look_at_texts(key, std::slice::from_ref(path))?;
            }
        }
        Ok(whole.then_some(found))
    }

    /// The shape of a checkpoint: that which the run will make, else that which lies there.
    fn decoder(&self, input: &Path, place: &Place) -> Option<Config> {
        let name = input.to_str();
        let made = name.and_then(|name| {
            self.decoders
                .get(name)
                .or_else(|| self.decoders.get(name.strip_suffix(".best")?))
        });
        made.cloned()
            .or_else(|| Config::open(&place.input(input)).ok())
    }
}

/// What a stage will come to, for a program and for a person.
pub struct Plan {
    json: Value,
    text: String,
}

/// What a stage has left.
struct Made {
    skipped: bool,
    /// What a person would want to know of it.
    summary: String,
    /// What a program would: the fields of the verb's JSON object besides those of every stage.
    facts: Value,
}

/// What a stage has come to.
#[derive(Serialize)]
pub struct Done {
    pub name: String,
    pub seconds: f64,
    pub skipped: bool,
    pub artifact: PathBuf,
    #[serde(skip)]
    pub summary: String,
    #[serde(skip)]
    pub facts: Value,
}

impl Done {
    /// The object of a verb that runs one stage. Where the facts have `seconds` of their own, those hold.
    pub fn json(&self) -> Result<Value> {
        let mut json = serde_json::to_value(self)?;
        json["summary"] = self.summary.clone().into();
        if let Value::Object(facts) = &self.facts {
            for (key, value) in facts {
                json[key] = value.clone();
            }
        }
        Ok(json)
    }
}

/// A recipe, read and checked.
pub struct Job {
    pub name: String,
    pub kind: StageKind,
    work: Box<dyn Work>,
}

/// The key that says what the others mean.
#[derive(Deserialize)]
struct Head {
    stage: StageKind,
}

impl Job {
    pub fn new(app: &App, recipe: &Recipe) -> Result<Job> {
        let Head { stage: kind } = recipe.parse()?;
        let work = kind
            .read(app, recipe)
            .with_context(|| recipe.name().to_owned())?;
        Ok(Job {
            name: recipe.name().to_owned(),
            kind,
            work,
        })
    }

    /// Its settings and its plan, as `--dry-run` shows them.
    pub fn plan(&self, place: &Place, outlook: &mut Outlook) -> Result<(Value, String)> {
        let Plan { mut json, text } = self
            .work
            .plan(&self.name, place, outlook)
            .with_context(|| self.name.clone())?;
        let settings = self.work.foreseen(place, outlook)?;
        let mut lines = vec![self.name.clone()];
        flatten("", &settings, &mut |key, value| {
            lines.push(format!("  {key} = {value}"));
        });
        lines.extend(text.lines().map(|line| format!("  | {line}")));
        let mut found = Map::new();
        for (key, name) in inputs(&settings) {
            let key = key.trim_start_matches("inputs.").to_owned();
            let path = place.input(&name).display().to_string();
            lines.push(format!("  | {key:<8} from {path}"));
            found.insert(key, path.into());
        }
        if !found.is_empty() {
            json["inputs"] = found.into();
        }
        let json = json!({"name": self.name, "settings": settings, "plan": json});
        Ok((json, lines.join("\n")))
    }

    /// The best of a training, which lies beside its result, where the recipe has it kept.
    pub fn best(&self) -> Option<String> {
        let settings = self.work.settings().ok()?;
        let kept = settings["train"]["keep_best"] == true;
        kept.then(|| format!("{}.best", self.name))
    }

    /// Refuses an input that neither is there nor will have been made by then: `earlier` are the stages before this one and what
    /// they leave beside their results, `later` those after it.
    pub fn check_inputs(&self, place: &Place, earlier: &[&str], later: &[&str]) -> Result<()> {
        for (key, name) in inputs(&self.work.settings()?) {
            let is = |stage: &&&str| Path::new(stage) == name;
            let shown = name.display();
            let sentence = if earlier.iter().any(|stage| is(&stage)) {
                continue;
            } else if later.iter().any(|stage| is(&stage)) {
                format!(
                    "{shown}, which runs later; stages run in the order of their numbers, so give it a lower one"
                )
            } else if place.input(&name).exists() {
                continue;
            } else {
                let earlier = match earlier {
                    [] => String::new(),
                    names => format!(" ({})", names.join(", ")),
                };
                let best = match name.extension().is_some_and(|end| end == "best") {
                    true => {
                        "; a training stage leaves its best beside its result where `train.keep_best` is set"
                    }
                    false => "",
                };
                format!(
                    "{shown}, which is neither an earlier stage of this run{earlier} nor a path that exists{best}"
                )
            };
            return Err(Usage(format!("{}: `{key}` is {sentence}", self.name)).into());
        }
        Ok(())
    }

    /// Runs it, or finds that nothing has changed.
    pub fn run(&self, app: &mut App, place: &Place) -> Result<Done> {
        let started = Instant::now();
        let made = self.work.run(app, &self.name, place);
        app.progress.end();
        let made = made?;
        Ok(Done {
            name: self.name.clone(),
            seconds: started.elapsed().as_secs_f64(),
            skipped: made.skipped,
            artifact: place.out.clone(),
            summary: made.summary,
            facts: made.facts,
        })
    }
}

/// The inputs that settings name, by their keys.
fn inputs(settings: &Value) -> Vec<(String, PathBuf)> {
    let named = settings["inputs"].as_object().into_iter().flatten();
    let named = named.map(|(key, name)| (format!("inputs.{key}"), name));
    let mixture = settings["data"]["mixture"].as_array();
    let mixture = mixture.into_iter().flatten().enumerate();
    let mixed =
        mixture.map(|(number, part)| (format!("data.mixture.{number}.tokens"), &part["tokens"]));
    let of_members = ["member", "model"].into_iter().flat_map(|table| {
        let members = settings[table].as_array();
        let members = members.into_iter().flatten().enumerate();
        let here = members.filter(|(_, member)| member.get("endpoint").is_none());
        here.flat_map(move |(number, member)| {
            ["model", "adapter"].map(|key| (format!("{table}.{number}.{key}"), &member[key]))
        })
    });
    named
        .chain(mixed)
        .chain(of_members)
        .filter_map(|(key, name)| Some((key, PathBuf::from(name.as_str()?))))
        .collect()
}

/// Each value of nested tables under its dotted key.
fn flatten(path: &str, value: &Value, each: &mut dyn FnMut(&str, &Value)) {
    match value {
        Value::Object(table) => {
            for (key, value) in table {
                let dot = if path.is_empty() { "" } else { "." };
                flatten(&format!("{path}{dot}{key}"), value, each);
            }
        }
        value => each(path, value),
    }
}

/// Makes an artifact unless it lies there already; returns whether it did. What decides that is the stage's word, the
/// settings without the names of inputs, and the inputs' bytes: renaming or renumbering a folder runs nothing again.
fn make(
    app: &mut App,
    what: (StageKind, Kind),
    settings: Value,
    inputs: Inputs,
    out: &Path,
    work: impl FnOnce(&mut App, &Path, &Stage) -> Result<()>,
) -> Result<bool> {
    remake(app, what, settings, inputs, out, Resume::Continue, work)
}

/// As [`make`]; on [`Resume::Restart`] whatever lies there.
fn remake(
    app: &mut App,
    (stage, kind): (StageKind, Kind),
    mut settings: Value,
    inputs: Inputs,
    out: &Path,
    resume: Resume,
    work: impl FnOnce(&mut App, &Path, &Stage) -> Result<()>,
) -> Result<bool> {
    if let Value::Object(settings) = &mut settings {
        settings.remove("inputs");
    }
    let stage = Stage::new(stage.word(), &app.tool, settings, inputs);
    if resume == Resume::Continue && stage.current(out, kind).is_ok() {
        return Ok(true);
    }
    let draft = stage.begin(out, kind)?;
    work(app, draft.path(), &stage)?;
    draft.commit(&stage)?;
    Ok(false)
}

/// Checks that texts are there and of a kind that is read; their number and bytes on the disk.
fn look_at_texts(key: &str, paths: &[PathBuf]) -> Result<Map<String, Value>> {
    if paths.is_empty() {
        return Err(Usage(format!("`{key}` is an empty list; name a text file")).into());
    }
    let mut bytes = 0;
    for path in paths {
        crate::found::text(path).with_context(|| format!("`{key}`"))?;
        read_texts(path).with_context(|| format!("`{key}`"))?;
        bytes += std::fs::metadata(path).map_or(0, |is| is.len());
    }
    let mut found = Map::new();
    found.insert("files".into(), paths.len().into());
    found.insert("file_bytes".into(), bytes.into());
    Ok(found)
}

/// An input that may be of any kind: an artifact by its manifest, else a file or folder by its bytes.
fn ours_or_not(inputs: Inputs, name: &str, path: &Path) -> Result<Inputs> {
    Ok(match path.join(MANIFEST).exists() {
        true => inputs.artifact(name, &Artifact::open_any(path)?)?,
        false => inputs.path(name, path)?,
    })
}

fn read_json(path: &Path) -> Result<Value> {
    let bytes =
        std::fs::read(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{}: is not JSON", path.display()))
}

/// "about 20 s", "about 3 min", "about 1.2 h": as exact as an estimate is.
fn about(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => "less than a second".to_owned(),
        s if s < 100.0 => format!("about {s:.0} s"),
        s if s < 6000.0 => format!("about {:.0} min", s / 60.0),
        s => format!("about {:.1} h", s / 3600.0),
    }
}
