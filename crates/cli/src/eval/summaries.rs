//! `eval summaries`: ROUGE and amplification of responses, or good and poor rates of graders' verdicts.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use russet_eval::summaries::{
    SENSITIVE, SummaryTask, amplifies, read_grades, read_summaries, rouge, score_grades,
    score_summaries,
};
use serde_json::json;

use super::respond::{Asked, Form, Question, Source, answers};
use super::save::{SaveArgs, Saved};
use crate::app::{App, Said, Usage};

#[derive(Args)]
pub struct SummariesArgs {
    /// Graders' verdicts: rows of `id`, `grades` of five dimensions, `use_case`, `model`, `grader`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["task", "responses", "model"])]
    grades: Option<PathBuf>,
    /// Texts: rows of `id`, `source`, `reference` or `references`, `use_case`
    #[arg(long, value_name = "FILE")]
    task: Option<PathBuf>,
    /// Recorded summaries: rows of `id` and `response`
    #[arg(long, conflicts_with = "model", value_name = "FILE")]
    responses: Option<PathBuf>,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    pub save: SaveArgs,
}

pub fn run(app: &mut App, args: SummariesArgs) -> Result<Said> {
    let SummariesArgs {
        grades,
        task,
        responses,
        asked,
        save,
    } = args;
    match (grades, task) {
        (Some(path), _) => {
            asked.nobody_is("grades")?;
            grade(app, &path, &save)
        }
        (None, Some(task)) => {
            let source = Source { responses, asked };
            summarise(app, &task, &source, &save)
        }
        (None, None) => Err(Usage(
            "give --task FILE with --responses FILE or --model DIR, or --grades FILE".into(),
        )
        .into()),
    }
}

fn grade(app: &App, path: &Path, save: &SaveArgs) -> Result<Said> {
    crate::found::text(path)?;
    let scores = score_grades(&read_grades(path)?);
    let json = json!({"models": scores});
    let saved = Saved {
        name: "grades",
        scores: &json,
        settings: json!({}),
        inputs: vec![("grades", path)],
        rows: Vec::new(),
    };
    save.save(app, &saved)?;
    let mut lines = Vec::new();
    for (model, cases) in &scores {
        for (case, scores) in cases {
            let within = |ci: Option<[f64; 2]>| {
                ci.map_or(String::new(), |[low, high]| {
                    format!(" [{low:.1}, {high:.1}]")
                })
            };
            lines.push(format!(
                "{model}, {case}: good {:.1} %{}, poor {:.1} %{} of {} grades of {} summaries",
                scores.good,
                within(scores.good_ci),
                scores.poor,
                within(scores.poor_ci),
                scores.n,
                scores.summaries
            ));
        }
    }
    Ok(Said::new(json, lines.join("\n")))
}

/// What a model is told: what the text is, where that is not what is tested by it.
fn asked(task: &SummaryTask) -> String {
    let what = task.use_case.as_deref().filter(|what| *what != SENSITIVE);
    format!(
        "Summarise this {} in at most three sentences.\n\n{}",
        what.unwrap_or("text"),
        task.source
    )
}

fn summarise(app: &mut App, task: &Path, source: &Source, save: &SaveArgs) -> Result<Said> {
    crate::found::text(task)?;
    let tasks = read_summaries(task)?;
    let questions: Vec<Question> = tasks
        .iter()
        .map(|task| Question {
            category: task.use_case.clone(),
            ..Question::new(&task.id, asked(task))
        })
        .collect();
    let form = Form::new("summaries", &["id"]);
    let (answers, path) = answers(app, source, &form, &questions)?;
    let firsts = answers.firsts();
    let scores = score_summaries(tasks.iter().zip(firsts.clone()));
    let mut json = serde_json::to_value(&scores)?;
    let mut cases = std::collections::BTreeMap::new();
    for (task, response) in tasks.iter().zip(firsts.clone()) {
        if let (Some(case), Some(_)) = (&task.use_case, response) {
            let of: &mut Vec<_> = cases.entry(case).or_default();
            of.push((task, response));
        }
    }
    for (case, pairs) in cases {
        json["use_cases"][case] = serde_json::to_value(score_summaries(pairs))?;
    }
    let rows = tasks.iter().zip(firsts).filter_map(|(task, response)| {
        let response = response?;
        let more = amplifies(&task.source, response);
        let rouge = (!task.references.is_empty()).then(|| rouge(&task.references, response)[2].f);
        let note = match more.is_empty() {
            true => rouge.map_or(String::new(), |f| format!("ROUGE-L {f:.3}")),
            false => format!("amplifies {}", more.join(", ")),
        };
        let empty = response.trim().is_empty();
        let note = if empty { "it is empty".to_owned() } else { note };
        Some(json!({"name": task.id, "prompt": task.source, "response": response, "category": task.use_case,
            "passed": more.is_empty() && !empty, "note": note}))
    });
    let saved = Saved {
        name: "summaries",
        scores: &json,
        settings: source.settings(),
        inputs: [vec![("task", task)], source.inputs(&path)].concat(),
        rows: rows.collect(),
    };
    save.save(app, &saved)?;
    let part = |name: &str, rouge: Option<russet_eval::summaries::Rouge>| {
        rouge.map_or(String::new(), |rouge| format!("{name} {:.3}, ", rouge.f))
    };
    let text = format!(
        "{}{}{}{:.1} % amplify what is sensitive, {:.1} % of the words stay; {} summaries",
        part("ROUGE-1", scores.rouge1),
        part("ROUGE-2", scores.rouge2),
        part("ROUGE-L", scores.rouge_l),
        100.0 * scores.amplified,
        100.0 * scores.compression,
        scores.n
    );
    Ok(Said::new(json, text))
}
