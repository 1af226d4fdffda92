//! `eval prompts`: the set of eleven categories, to be answered and compared.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use russet_eval::{CATEGORIES, Prompt, prompts};
use serde_json::json;

use crate::app::{Said, Usage};

#[derive(Args)]
pub struct PromptsArgs {
    /// Where to write them, a row each of `id`, `category` and `prompt` (default: they are printed)
    #[arg(long, value_name = "FILE.jsonl")]
    out: Option<PathBuf>,
    /// Only of these categories, separated by commas
    #[arg(long, value_delimiter = ',')]
    categories: Vec<String>,
}

pub fn run(args: &PromptsArgs) -> Result<Said> {
    for category in &args.categories {
        if !CATEGORIES.contains(&category.as_str()) {
            return Err(Usage(format!(
                "there is no category {category:?}; there are {}",
                CATEGORIES.join(", ")
            ))
            .into());
        }
    }
    if let Some(path) = &args.out
        && path.extension().is_none_or(|ending| ending != "jsonl")
    {
        let sentence = format!(
            "--out {}: they are lines of JSON; let the name end in .jsonl",
            path.display()
        );
        return Err(Usage(sentence).into());
    }
    let wanted =
        |prompt: &&Prompt| args.categories.is_empty() || args.categories.contains(&prompt.category);
    let chosen: Vec<&Prompt> = prompts().iter().filter(wanted).collect();
    match &args.out {
        None => {
            let lines: Vec<String> = chosen
                .iter()
                .map(|prompt| format!("{:<26}{}", prompt.id, prompt.prompt))
                .collect();
            Ok(Said::new(json!({"prompts": chosen}), lines.join("\n")))
        }
        Some(path) => {
            let rows: String = chosen
                .iter()
                .map(|prompt| format!("{}\n", json!(prompt)))
                .collect();
            std::fs::write(path, rows)
                .with_context(|| format!("{}: the prompts cannot be written", path.display()))?;
            let text = format!("{}: {} prompts", path.display(), chosen.len());
            Ok(Said::new(json!({"out": path, "n": chosen.len()}), text))
        }
    }
}
