//! `eval reward`: a reward model on preferences that it has not seen.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};
use clap::Args;
use russet_align::data::{Reading, RowKind, Source, TooLong};
use russet_align::reward_model::{bag_of_words, evaluate};
use russet_align::rewards::open;
use russet_kernels::Pool;
use russet_tensor::Ctx;
use russet_tokenizer::Tokenizer;

use super::save::{SaveArgs, Saved};
use crate::app::{App, Said};

#[derive(Args)]
pub struct RewardArgs {
    /// A reward model, or the base of one that is an adapter
    #[arg(long)]
    model: PathBuf,
    /// An adapter with a reward head
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Held-out preferences: rows of `prompt`, `chosen`, `rejected`, perhaps `strength` and grades (.jsonl, plain or packed)
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Preferences to train a logistic regression on bags of tokens on, which is told beside the model
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    #[command(flatten)]
    pub save: SaveArgs,
}

/// Tokens of a pass.
pub const PASS_TOKENS: usize = 8192;

/// The pairs of a file, as a reward model of this context reads them; those that are longer are left out with a message.
pub fn read_pairs(
    app: &mut App,
    file: &Path,
    tokenizer: &Tokenizer,
    context: usize,
) -> Result<Source> {
    let reading = Reading {
        kind: RowKind::Judged,
        sequence_length: context,
        too_long: TooLong::Drop,
        skip_malformed: false,
    };
    let source = Source::read(file, "pairs".to_owned(), tokenizer, reading)?;
    if source.counts.dropped > 0 {
        app.progress.message(&format!(
            "{}: {} pairs are longer than the model's context and are left out",
            file.display(),
            source.counts.dropped
        ));
    }
    Ok(source)
}

pub fn run(app: &mut App, args: &RewardArgs) -> Result<Said> {
    app.stop_on_signals()?;
    crate::found::any_model(&args.model)?;
    if let Some(adapter) = &args.adapter {
        crate::found::adapter(adapter)?;
    }
    for file in args.baseline.iter().chain([&args.data]) {
        crate::found::text(file)?;
    }
    let (decoder, tokenizer) = open(&args.model, args.adapter.as_deref())?;
    let context = decoder.config().context;
    let source = read_pairs(app, &args.data, &tokenizer, context)?;
    let mut ctx = Ctx::new(Arc::new(Pool::new(app.threads)?));
    let interrupt = app.interrupt.clone();
    let mut json = evaluate(
        &mut ctx,
        &decoder,
        &source,
        PASS_TOKENS,
        &mut *app.progress,
        &interrupt,
    )?;
    json["dropped"] = source.counts.dropped.into();
    let number = |key: &str| json[key].as_f64().unwrap_or(f64::NAN);
    let mut text = format!(
        "{} pairs: {:.1} % right, mean margin {:.3}, log loss {:.4}, calibration error {:.4}",
        json["pairs"],
        100.0 * number("accuracy"),
        number("margin"),
        number("log_loss"),
        json["calibration"]["error"].as_f64().unwrap_or(f64::NAN),
    );
    if let Some(file) = &args.baseline {
        let train = read_pairs(app, file, &tokenizer, context)?;
        if train.path == source.path {
            bail!(
                "{}: the baseline would be trained on the rows that it is measured on; name other rows as --baseline",
                file.display()
            );
        }
        let accuracy = bag_of_words(&train, &source, decoder.config().vocab);
        json["baseline"] = serde_json::json!({"kind": "bag-of-tokens logistic regression", "pairs": train.counts.rows, "accuracy": accuracy});
        text += &format!("; a bag of tokens {:.1} %", 100.0 * accuracy);
    }
    let mut inputs = vec![
        ("model", args.model.as_path()),
        ("data", args.data.as_path()),
    ];
    inputs.extend(args.adapter.iter().map(|path| ("adapter", path.as_path())));
    inputs.extend(
        args.baseline
            .iter()
            .map(|path| ("baseline", path.as_path())),
    );
    let saved = Saved {
        name: "reward",
        scores: &json,
        settings: serde_json::json!({}),
        inputs,
        rows: Vec::new(),
    };
    args.save.save(app, &saved)?;
    Ok(Said::new(json, text))
}
