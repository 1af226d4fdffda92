//! `eval math`: GSM8K and its like.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use russet_eval::math::{judge_problem, read_number, read_problems, score_problems};
use serde_json::json;

use super::respond::{Form, Question, Source, answers};
use super::save::{SaveArgs, Saved};
use crate::app::{App, Said};

#[derive(Args)]
pub struct MathArgs {
    /// Problems: rows of `question` and `answer`, which ends in `#### NUMBER` (.jsonl, plain or packed)
    #[arg(long, value_name = "FILE")]
    task: PathBuf,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    pub save: SaveArgs,
}

/// What is asked for behind the question.
const ASK: &str = "\n\nThink step by step. End with a line of `#### ` and the number alone.";

pub fn run(app: &mut App, args: &MathArgs) -> Result<Said> {
    crate::found::text(&args.task)?;
    let problems = read_problems(&args.task)?;
    let questions: Vec<Question> = problems
        .iter()
        .map(|problem| Question::new(&problem.question, format!("{}{ASK}", problem.question)))
        .collect();
    let form = Form::new("math", &["question", "prompt"]);
    let (answers, path) = answers(app, &args.source, &form, &questions)?;
    let firsts = answers.firsts();
    let scores = score_problems(problems.iter().zip(firsts.clone()));
    let json = serde_json::to_value(&scores)?;
    let rows = problems.iter().zip(firsts).filter_map(|(problem, response)| {
        let (strict, flexible) = judge_problem(problem, response?);
        let note = match (strict, flexible) {
            (true, _) => String::new(),
            (false, true) => "right, but not behind ####".to_owned(),
            _ => format!(
                "the answer is {}, and {} is read from this",
                problem.answer,
                read_number(response?).unwrap_or_else(|| "no number".to_owned())
            ),
        };
        Some(json!({"name": "", "prompt": problem.question, "response": response, "passed": flexible, "note": note}))
    });
    let saved = Saved {
        name: "math",
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
        "right behind #### {:.1} %, by the last number {:.1} %, of {} responses",
        100.0 * scores.strict,
        100.0 * scores.flexible,
        scores.n
    );
    Ok(Said::new(json, text))
}
