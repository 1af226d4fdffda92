//! `eval slots`: what a response has extracted.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use russet_eval::slots::{exact, read_slots, score_slots};
use serde_json::{Value, json};

use super::respond::{Form, Question, Source, answers};
use super::save::{SaveArgs, Saved};
use crate::app::{App, Said};

#[derive(Args)]
pub struct SlotsArgs {
    /// Rows of `id`, `prompt` and `slots`
    #[arg(long, value_name = "FILE")]
    task: PathBuf,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    pub save: SaveArgs,
}

pub fn run(app: &mut App, args: &SlotsArgs) -> Result<Said> {
    crate::found::text(&args.task)?;
    let tasks = read_slots(&args.task)?;
    let questions: Vec<Question> = tasks
        .iter()
        .map(|task| Question::new(&task.id, &task.prompt))
        .collect();
    let form = Form::new("slots", &["id"]);
    let (answers, path) = answers(app, &args.source, &form, &questions)?;
    let firsts = answers.firsts();
    let scores = score_slots(tasks.iter().zip(firsts.clone()));
    let json = serde_json::to_value(scores)?;
    let rows = tasks.iter().zip(firsts).filter_map(|(task, response)| {
        let response = response?;
        let note = format!("wanted {}", Value::Object(task.slots.clone()));
        Some(json!({"name": task.id, "prompt": task.prompt, "response": response, "passed": exact(task, response), "note": note}))
    });
    let saved = Saved {
        name: "slots",
        scores: &json,
        settings: args.source.settings(),
        inputs: [
            vec![("task", args.task.as_path())],
            args.source.inputs(&path),
        ]
        .concat(),
        rows: rows.collect(),
    };
    args.save.save(app, &saved)?;
    let text = format!(
        "F1 {:.3} (precision {:.3}, recall {:.3}), all right {:.1} % of {} responses, {} of them no JSON",
        scores.f1,
        scores.precision,
        scores.recall,
        100.0 * scores.exact,
        scores.n,
        scores.malformed
    );
    Ok(Said::new(json, text))
}
