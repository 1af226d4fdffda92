//! `eval calls`: BFCL's questions about functions.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use russet_eval::calls::{CallQuestion, check_calls, read_calls, score_calls};
use serde_json::{Value, json};

use super::respond::{Form, Question, Source, answers};
use super::save::{SaveArgs, Saved};
use crate::app::{App, Said};

#[derive(Args)]
pub struct CallsArgs {
    /// Questions: rows of `id`, `question`, `function` (.json, .jsonl, plain or packed)
    #[arg(long, value_name = "FILE")]
    task: PathBuf,
    /// Possible answers: rows of `id` and `ground_truth`; without, no function fits any question (irrelevance)
    #[arg(long, value_name = "FILE")]
    answers: Option<PathBuf>,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    pub save: SaveArgs,
}

pub fn run(app: &mut App, args: &CallsArgs) -> Result<Said> {
    crate::found::text(&args.task)?;
    if let Some(answers) = &args.answers {
        crate::found::text(answers)?;
    }
    let tasks = read_calls(&args.task, args.answers.as_deref())?;
    let questions: Vec<Question> = tasks
        .iter()
        .map(|task| Question::new(&task.id, prompt(task)))
        .collect();
    let form = Form {
        values: &["result", "response"],
        ..Form::new("calls", &["id"])
    };
    let (answers, path) = answers(app, &args.source, &form, &questions)?;
    let verdicts: Vec<Option<Result<(), String>>> = tasks
        .iter()
        .zip(&answers.of_rows)
        .map(|(task, responses)| Some(check_calls(task, responses.first()?)))
        .collect();
    let right = verdicts
        .iter()
        .map(|verdict| verdict.as_ref().map(Result::is_ok));
    let scores = score_calls(tasks.iter().zip(right));
    let json = serde_json::to_value(&scores)?;
    let rows = tasks.iter().zip(&answers.of_rows).zip(&verdicts);
    let rows = rows.filter_map(|((task, responses), verdict)| {
        let verdict = verdict.as_ref()?;
        Some(
            json!({"name": task.id, "prompt": prompt(task), "response": responses.first()?,
            "passed": verdict.is_ok(), "note": verdict.as_ref().err()}),
        )
    });
    let mut inputs = vec![("task", args.task.as_path())];
    inputs.extend(args.answers.as_deref().map(|path| ("answers", path)));
    let saved = Saved {
        name: if args.answers.is_some() {
            "calls"
        } else {
            "calls-irrelevance"
        },
        scores: &json,
        settings: args.source.settings(),
        inputs: [inputs, args.source.inputs(&path)].concat(),
        rows: rows.collect(),
    };
    args.save.save(app, &saved)?;
    let text = format!(
        "right {:.1} % of {} responses",
        100.0 * scores.accuracy,
        scores.n
    );
    Ok(Said::new(json, text))
}

/// The functions, how to call them, and what the user says.
fn prompt(task: &CallQuestion) -> String {
    let functions: Vec<String> = task.functions.iter().map(Value::to_string).collect();
    let said: Vec<&str> = task
        .messages
        .iter()
        .map(|(_, content)| content.as_str())
        .collect();
    format!(
        "You may call these functions:\n{}\n\nIf one fits the request below, answer with the call alone, in the form \
         name(parameter=value, …), several apart by commas. If none fits, answer in words.\n\n{}",
        functions.join("\n"),
        said.join("\n")
    )
}
