//! `eval report`: one page, one table for a model card and one file of scores, of one run or several.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use russet_artifact::atomic_write;
use russet_eval::report::{Run, html, markdown, scores};
use serde_json::json;

use super::save::not_into_an_artifact;
use crate::app::Said;

#[derive(Args)]
pub struct ReportArgs {
    /// Folders that `--save` has filled; of two, the page shows the difference
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Where scores.json, report.html and report.md go (default: the first run)
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn run(args: &ReportArgs) -> Result<Said> {
    for folder in &args.runs {
        if !folder.is_dir() {
            bail!(
                "{}: there is no such folder; `--save DIR` of the verbs of eval makes one",
                folder.display()
            );
        }
    }
    let mut runs: Vec<Run> = Vec::new();
    for folder in &args.runs {
        let mut run = Run::read(folder)?;
        if runs.iter().any(|other| other.name == run.name) {
            run.name = folder.display().to_string(); // of two folders of one name
        }
        runs.push(run);
    }
    let out = args.out.as_ref().unwrap_or(&args.runs[0]);
    not_into_an_artifact(out)?;
    std::fs::create_dir_all(out)?;
    let text = format!("{:#}\n", scores(&runs));
    atomic_write(&out.join("scores.json"), text.as_bytes())?;
    atomic_write(&out.join("report.html"), html::page(&runs).as_bytes())?;
    atomic_write(&out.join("report.md"), markdown::card(&runs).as_bytes())?;
    let page = out.join("report.html");
    let evals: usize = runs.iter().map(|run| run.records.len()).sum();
    let text = format!(
        "{}: {evals} evaluations of {} runs",
        page.display(),
        runs.len()
    );
    Ok(Said::new(
        json!({"page": page, "card": out.join("report.md"), "scores": out.join("scores.json"), "evals": evals}),
        text,
    ))
}
