//! `eval texts`: the texts that a feature is tried on, drawn evenly over kinds of content, lengths and stacks.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use russet_artifact::atomic_write;
use russet_eval::strata::{Drawn, StrataSettings, draw};
use serde_json::json;

use super::save::not_onto;
use crate::app::{App, Said, Usage};

#[derive(Args)]
pub struct TextsArgs {
    /// Documents: rows of `id`, `source`, `use_case` and perhaps `content`; given once for each file
    #[arg(long, required = true, value_name = "FILE")]
    from: Vec<PathBuf>,
    /// Rows that are added as they are; may be given again
    #[arg(long, value_name = "FILE")]
    whole: Vec<PathBuf>,
    /// Texts of each use case
    #[arg(long, default_value_t = StrataSettings::default().rows)]
    rows: usize,
    /// The share of them that are stacks of several documents
    #[arg(long, default_value_t = StrataSettings::default().stacked)]
    stacked: f64,
    /// Documents of a stack at most
    #[arg(long, default_value_t = StrataSettings::default().most)]
    most: usize,
    /// The same seed draws the same texts
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where they go, for `eval summaries --task` and `grade --task`
    #[arg(long, value_name = "FILE.jsonl")]
    out: PathBuf,
}

pub fn run(app: &mut App, args: &TextsArgs) -> Result<Said> {
    for path in args.from.iter().chain(&args.whole) {
        crate::found::text(path)?;
    }
    if args.out.extension().is_none_or(|ending| ending != "jsonl") {
        let sentence = format!("--out {}: let the name end in .jsonl", args.out.display());
        return Err(Usage(sentence).into());
    }
    let read: Vec<&Path> = args
        .from
        .iter()
        .chain(&args.whole)
        .map(PathBuf::as_path)
        .collect();
    not_onto("--out", &args.out, &read)?;
    app.stop_on_signals()?;
    let settings = StrataSettings {
        rows: args.rows,
        stacked: args.stacked,
        most: args.most,
        seed: args.seed,
    };
    let drawn = draw(&args.from, &args.whole, &settings, &app.interrupt)?;
    tell_short(app, &drawn, args.rows);
    atomic_write(&args.out, lines(&drawn).as_bytes())?;
    let text = format!(
        "{}: {} texts of {} strata",
        args.out.display(),
        drawn.rows.len(),
        drawn.strata.len()
    );
    let json = json!({"out": args.out, "n": drawn.rows.len(), "strata": drawn.strata});
    Ok(Said::new(json, text))
}

/// Says which use cases have fewer texts than were asked for.
pub fn tell_short(app: &mut App, drawn: &Drawn, wanted: usize) {
    for (case, rows) in &drawn.short {
        app.progress.message(&format!(
            "{case}: {rows} texts and not {wanted}; there are too few documents for more"
        ));
    }
}

/// The rows, a line each.
pub fn lines(drawn: &Drawn) -> String {
    drawn.rows.iter().map(|row| format!("{row}\n")).collect()
}
