//! `eval ifeval`: whether responses follow instructions that can be checked, from a file or from a model.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use russet_eval::Answers;
use russet_eval::ifeval::{IfevalScores, Prompt, Prompts, Verdict, intervals, score};
use serde_json::{Value, json};

use super::respond::{Form, Question, Source, answers};
use super::save::{SaveArgs, Saved, not_onto};
use crate::app::{App, Said};

#[derive(Args)]
pub struct IfevalArgs {
    #[command(flatten)]
    source: Source,
    /// Other prompts than IFEval's: rows of `key`, `prompt`, `instruction_id_list` and `kwargs`
    #[arg(long)]
    prompts: Option<PathBuf>,
    /// Where to write a verdict a prompt
    #[arg(long, value_name = "FILE.jsonl")]
    verdicts: Option<PathBuf>,
    #[command(flatten)]
    pub save: SaveArgs,
}

/// Scores and prints.
pub fn run(app: &mut App, args: &IfevalArgs) -> Result<Said> {
    let prompts = match &args.prompts {
        None => Prompts::embedded(),
        Some(path) => {
            crate::found::text(path)?;
            Prompts::read(path)?
        }
    };
    let questions: Vec<Question> = prompts
        .all()
        .iter()
        .map(|prompt| Question::new(&prompt.prompt, &prompt.prompt))
        .collect();
    let form = Form::new("ifeval", &["prompt"]);
    let (answers, path) = answers(app, &args.source, &form, &questions)?;
    if let Some(out) = &args.verdicts {
        let read: Vec<&Path> = args
            .prompts
            .iter()
            .map(PathBuf::as_path)
            .chain([&*path])
            .collect();
        not_onto("--verdicts", out, &read)?;
    }
    let (scores, verdicts) = score(&prompts, answers.firsts())?;
    for verdict in verdicts
        .iter()
        .filter(|verdict| !verdict.endless.is_empty())
    {
        app.progress.message(&format!(
            "prompt {}: matching {} backtracks without end, so it counts as not followed",
            verdict.key,
            verdict.endless.join(", ")
        ));
    }
    if let Some(path) = &args.verdicts {
        write_verdicts(path, &verdicts)?;
    }
    let json = serde_json::to_value(scores)?;
    let mut inputs = args.source.inputs(&path);
    inputs.extend(args.prompts.as_deref().map(|path| ("prompts", path)));
    // For the report: what is printed is the benchmark's own five numbers.
    let mut told = json.clone();
    if let Some(intervals) = intervals(&verdicts) {
        told["ci"] = Value::Object(
            intervals
                .into_iter()
                .map(|(name, ci)| (name.to_owned(), json!(ci)))
                .collect(),
        );
    }
    let saved = Saved {
        name: "ifeval",
        scores: &told,
        settings: args.source.settings(),
        inputs,
        rows: rows(&prompts, &answers, &verdicts),
    };
    args.save.save(app, &saved)?;
    Ok(Said::new(json, table(&scores)))
}

/// Each response with what it follows.
fn rows(prompts: &Prompts, answers: &Answers, verdicts: &[Verdict]) -> Vec<Value> {
    let answered = prompts.all().iter().zip(answers.firsts());
    let answered = answered.filter_map(|(prompt, response)| Some((prompt, response?)));
    let row = |((prompt, response), verdict): ((&Prompt, &str), &Verdict)| {
        let followed = prompt.instructions.iter().zip(&verdict.follow_list_strict);
        let broken: Vec<&str> = followed
            .filter(|(_, followed)| !**followed)
            .map(|(instruction, _)| instruction.id())
            .collect();
        let note = match (broken.is_empty(), verdict.follow_all_loose) {
            (true, _) => String::new(),
            (_, loose) => format!(
                "does not follow {}{}",
                broken.join(", "),
                if loose { "; loosely it does" } else { "" }
            ),
        };
        let note = match verdict.endless.is_empty() {
            true => note,
            false => format!(
                "{note}; matching {} backtracks without end",
                verdict.endless.join(", ")
            ),
        };
        json!({"name": prompt.key.to_string(), "prompt": prompt.prompt, "response": response,
            "passed": verdict.follow_all_strict, "note": note})
    };
    answered.zip(verdicts).map(row).collect()
}

fn write_verdicts(path: &Path, verdicts: &[Verdict]) -> Result<()> {
    let failed = || format!("{}: the verdicts cannot be written", path.display());
    let mut file = BufWriter::new(File::create(path).with_context(failed)?);
    for verdict in verdicts {
        let line = serde_json::to_string(verdict)?;
        writeln!(file, "{line}").with_context(failed)?;
    }
    file.flush().with_context(failed)
}

fn table(scores: &IfevalScores) -> String {
    let line = |what: &str, strict: f64, loose: f64| {
        format!(
            "{what:<14} strict {:5.1} %, loose {:5.1} %",
            100.0 * strict,
            100.0 * loose
        )
    };
    [
        line("prompts", scores.prompt_strict, scores.prompt_loose),
        line(
            "instructions",
            scores.instruction_strict,
            scores.instruction_loose,
        ),
        format!("{} responses", scores.n),
    ]
    .join("\n")
}
