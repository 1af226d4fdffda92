//! `grade`: a page on which people compare responses, and the files of what they said.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use russet_artifact::atomic_write;
use russet_eval::grading::{Asks, DIMENSIONS, Grading, Singly, read_pairs, read_summaries};
use russet_serve::grade::{Answered, Desk, Refusal, page};
use serde_json::{Value, json};

use crate::app::{App, Usage};
use crate::eval::save::{not_into_an_artifact, plain_name};

#[derive(Args)]
pub struct GradeArgs {
    /// Responses of a model, as `eval respond` or `eval summaries` keeps them; given once for each model. Without, the page goes on
    /// with what --keep has
    #[arg(long, value_name = "FILE")]
    responses: Vec<PathBuf>,
    /// What the models are called, separated by commas (default: the files' names); graders do not see it
    #[arg(long, value_delimiter = ',', requires = "responses")]
    names: Vec<String>,
    /// What graders compare
    #[arg(long, value_enum, default_value_t = Kind::Pairs, requires = "responses")]
    kind: Kind,
    /// Texts that were summarised: rows of `id`, `source`, `use_case`; of --kind summaries
    #[arg(long, value_name = "FILE", requires = "responses")]
    task: Option<PathBuf>,
    /// Five names that a summary is graded by, separated by commas; of --kind summaries
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAMES",
        requires = "responses"
    )]
    dimensions: Vec<String>,
    /// Whether each response of a pair is graded by itself too; of --kind pairs
    #[arg(long, value_enum, value_name = "WHETHER", requires = "responses")]
    grades: Option<Whether>,
    /// The same seed gives each grader the same order
    #[arg(long, default_value_t = 0, requires = "responses")]
    seed: u64,
    /// Where responses and grades are kept, and gone on with
    #[arg(long, value_name = "FILE", default_value = "grades.sqlite")]
    keep: PathBuf,
    /// Port to listen on, of this machine alone; 0 takes a free one
    #[arg(long, default_value_t = 8001)]
    port: u16,
    /// Write what was said so far into files of this folder, and end
    #[arg(long, value_name = "DIR", conflicts_with = "port")]
    export: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Which of two responses to a prompt is better
    Pairs,
    /// How good each summary of a text is
    Summaries,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Whether {
    /// Not
    None,
    /// Where a grader likes to (the default)
    Optional,
    /// Always
    Required,
}

/// Serves the page until SIGTERM or SIGINT, or writes the files.
pub fn grade(app: &mut App, args: &GradeArgs) -> Result<()> {
    let grading = open(app, args)?;
    if let Some(folder) = &args.export {
        return export(app, &grading, folder);
    }
    let of = grading.study().tasks().len();
    let page = page(args.port, Arc::new(Table(grading)))?;
    crate::serve::logs(app.json);
    app.stop_on_signals()?;
    let port = page.address()?.port();
    let url = format!("http://{}:{port}", Ipv4Addr::LOCALHOST);
    app.print(
        &json!({"url": url, "results": format!("{url}/results"), "keep": args.keep, "tasks": of}),
        &format!(
            "{of} tasks are graded at {url}; what they come to stands at {url}/results, which graders need not see. All is kept in {}. \
             SIGTERM or Ctrl-C ends it.",
            args.keep.display()
        ),
    )?;
    page.run(app.interrupt.flag())?;
    Ok(())
}

fn open(app: &mut App, args: &GradeArgs) -> Result<Grading> {
    if let (Kind::Pairs, Some(_)) = (args.kind, &args.task) {
        return Err(Usage("--task is for summaries; say --kind summaries too".into()).into());
    }
    if args.kind == Kind::Pairs && !args.dimensions.is_empty() {
        return Err(Usage("--dimensions is for summaries; say --kind summaries too".into()).into());
    }
    if args.kind == Kind::Summaries && args.grades.is_some() {
        return Err(Usage("--grades is for pairs; a summary is always graded".into()).into());
    }
    if let Some(folder) = args.keep.parent() {
        not_into_an_artifact(&Path::new(".").join(folder))?;
    }
    if args.responses.is_empty() {
        return Ok(Grading::open(&args.keep)?);
    }
    for path in args.responses.iter().chain(&args.task) {
        crate::found::text(path)?;
    }
    let names = match args.names.len() {
        0 => args.responses.iter().map(|path| plain_name(path)).collect(),
        n if n == args.responses.len() => args.names.clone(),
        n => {
            let sentence = format!(
                "--names has {n} names for {} files of responses; give one for each",
                args.responses.len()
            );
            return Err(Usage(sentence).into());
        }
    };
    let models: Vec<(String, PathBuf)> = names.into_iter().zip(args.responses.clone()).collect();
    let read = match (args.kind, &args.task) {
        (Kind::Pairs, _) => {
            let grades = match args.grades {
                Some(Whether::None) => Singly::None,
                None | Some(Whether::Optional) => Singly::Optional,
                Some(Whether::Required) => Singly::Required,
            };
            read_pairs(Asks::Pairs { grades }, args.seed, &models)?
        }
        (Kind::Summaries, Some(task)) => {
            let dimensions = match args.dimensions.is_empty() {
                true => DIMENSIONS.map(str::to_owned).to_vec(),
                false => args
                    .dimensions
                    .iter()
                    .map(|name| name.trim().to_owned())
                    .collect(),
            };
            read_summaries(Asks::Summaries { dimensions }, args.seed, task, &models)?
        }
        (Kind::Summaries, None) => {
            return Err(Usage("--kind summaries needs the texts; give --task FILE".into()).into());
        }
    };
    for remark in &read.remarks {
        app.progress.message(remark);
    }
    Ok(Grading::begin(&args.keep, read.study)?)
}

fn export(app: &App, grading: &Grading, folder: &Path) -> Result<()> {
    not_into_an_artifact(folder)?;
    let files = grading.export()?;
    std::fs::create_dir_all(folder)
        .with_context(|| format!("{}: the folder cannot be made", folder.display()))?;
    let (mut rows, mut said) = (serde_json::Map::new(), Vec::new());
    for file in &files {
        let path = folder.join(file.name);
        atomic_write(&path, file.text().as_bytes())?;
        rows.insert(file.name.to_owned(), file.rows.len().into());
        said.push(format!("{}: {} rows", path.display(), file.rows.len()));
    }
    let json = json!({"export": folder, "rows": rows, "graders": grading.progress()?});
    app.print(&json, &said.join("\n"))
}

/// A study as the page asks it: evaluation's, handed to the server.
struct Table(Grading);

fn refusal(error: russet_eval::Error) -> Refusal {
    match error {
        russet_eval::Error::Answer(said) => Refusal::Asked(said),
        other => Refusal::Failed(other.to_string()),
    }
}

fn shown(shown: russet_eval::Result<russet_eval::grading::Shown>) -> Answered {
    let shown = shown.map_err(refusal)?;
    serde_json::to_value(shown).map_err(|error| Refusal::Failed(error.to_string()))
}

impl Desk for Table {
    fn study(&self) -> Value {
        self.0.study().describe()
    }

    fn next(&self, grader: &str) -> Answered {
        shown(self.0.next(grader))
    }

    fn say(&self, grader: &str, place: usize, answer: &Value) -> Answered {
        shown(self.0.say(grader, place, answer))
    }

    fn skip(&self, grader: &str, place: usize) -> Answered {
        shown(self.0.skip(grader, place))
    }

    fn undo(&self, grader: &str) -> Answered {
        shown(self.0.undo(grader))
    }

    fn results(&self) -> Answered {
        self.0.results(false).map_err(refusal)
    }

    fn export(&self, name: &str) -> Result<Option<String>, Refusal> {
        if !self.0.is_complete().map_err(refusal)? {
            return Err(Refusal::Early(
                "these files name the models, so the page has them once every grader has graded every task; whoever started it \
                 has them at any time by russet grade --export DIR"
                    .to_owned(),
            ));
        }
        let files = self.0.export().map_err(refusal)?;
        let file = files.into_iter().find(|file| file.name == name);
        Ok(file.map(|file| file.text()))
    }
}
