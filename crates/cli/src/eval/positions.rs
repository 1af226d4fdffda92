//! `eval positions`: perplexity by position.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use russet_eval::positions::by_position;
use russet_tensor::Ctx;
use serde_json::json;

use super::save::{SaveArgs, Saved};
use crate::app::{App, Model, Said};
use crate::measure;

#[derive(Args)]
pub struct PositionsArgs {
    /// A checkpoint or package
    #[arg(long)]
    model: PathBuf,
    /// An adapter (PEFT folder) to put onto it
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// The text; documents shorter than the length are left out (.txt or .jsonl, plain, .gz or .zst)
    #[arg(long)]
    text: PathBuf,
    /// Tokens of each document that are read (default: the model's context)
    #[arg(long)]
    length: Option<usize>,
    /// Positions that are averaged together (default: a sixteenth of the length)
    #[arg(long)]
    bucket: Option<usize>,
    #[command(flatten)]
    pub save: SaveArgs,
}

pub fn run(app: &mut App, args: &PositionsArgs) -> Result<Said> {
    app.stop_on_signals()?;
    crate::found::text(&args.text)?;
    let model = Model::open(&args.model, args.adapter.as_deref())?;
    let documents = measure::documents(&model.tokenizer, &args.text)?;
    let length = args.length.unwrap_or(model.decoder.config().context);
    let bucket = args.bucket.unwrap_or((length / 16).max(1));
    let mut ctx = Ctx::new(app.pool.clone());
    let scores = by_position(
        &model.decoder,
        &mut ctx,
        &documents,
        model.bos()?,
        length,
        bucket,
        &mut *app.progress,
        &app.interrupt,
    )?;
    let json = json!({"length": length, "bucket": bucket, "positions": scores});
    let mut inputs = vec![
        ("text", args.text.as_path()),
        ("model", args.model.as_path()),
    ];
    inputs.extend(args.adapter.as_deref().map(|adapter| ("adapter", adapter)));
    let saved = Saved {
        name: "positions",
        scores: &json,
        settings: json!({"length": length, "bucket": bucket}),
        inputs,
        rows: Vec::new(),
    };
    args.save.save(app, &saved)?;
    let lines: Vec<String> = scores
        .iter()
        .map(|of| {
            let (from, to) = (of.from, of.to);
            format!(
                "{from:>7} to {to:<7} perplexity {:9.3} ({} tokens)",
                of.perplexity, of.tokens
            )
        })
        .collect();
    Ok(Said::new(json, lines.join("\n")))
}
