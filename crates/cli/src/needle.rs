//! `eval needle`: whether a model finds a fact in a long text.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use russet_eval::needle::{Found, Haystack, NeedleScores, NeedleSettings, needle};
use russet_tensor::Ctx;
use russet_tokenizer::{Tokenizer, read_texts};
use serde_json::json;

use crate::app::{App, Model, Said};
use crate::eval::save::{SaveArgs, Saved};

/// Tokens of the text that are used at most.
const FILLER: usize = 1 << 18;

/// The commonest words of a text are no names for things; they are left out where enough others remain.
const COMMON: usize = 50;

/// Words that keys and values are drawn from at most.
const WORDS: usize = 400;

/// What is said around key and value.
const PHRASE: [&str; 3] = [" The secret word of the", " is", "."];

#[derive(Args)]
pub struct NeedleArgs {
    /// A checkpoint or package
    #[arg(long)]
    model: PathBuf,
    /// An adapter (PEFT folder) to put onto it
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// The text that the facts are hidden in, and whose words they are about (.txt or .jsonl, plain, .gz or .zst)
    #[arg(long)]
    text: PathBuf,
    /// Tokens of the prompts, separated by commas
    #[arg(long, value_delimiter = ',', required = true)]
    lengths: Vec<usize>,
    /// Where the fact stands, from 0 (the beginning) to 1 (just before the question), separated by commas
    #[arg(long, value_delimiter = ',', default_values_t = [0.0, 0.25, 0.5, 0.75, 1.0])]
    depths: Vec<f64>,
    /// Prompts of each length and depth
    #[arg(long, default_value_t = 16)]
    trials: usize,
    /// Values that compete, the right one among them
    #[arg(long, default_value_t = 16)]
    values: usize,
    /// The same seed asks for the same facts
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    pub save: SaveArgs,
}

/// Measures and prints.
pub fn run(app: &mut App, args: &NeedleArgs) -> Result<Said> {
    app.stop_on_signals()?;
    let model = Model::open(&args.model, args.adapter.as_deref())?;
    let haystack = haystack(&model.tokenizer, &args.text, args.values)?;
    let settings = NeedleSettings {
        bos: model.bos()?,
        lengths: args.lengths.clone(),
        depths: args.depths.clone(),
        trials: args.trials,
        values: args.values,
        seed: args.seed,
    };
    let mut ctx = Ctx::new(app.pool.clone());
    let (progress, interrupt) = (&mut *app.progress, &app.interrupt);
    let scores = needle(
        &model.decoder,
        &mut ctx,
        &haystack,
        &settings,
        progress,
        interrupt,
    )?;
    let json = serde_json::to_value(&scores)?;
    let mut inputs = vec![("text", args.text.as_path()), ("model", &args.model)];
    inputs.extend(args.adapter.as_deref().map(|path| ("adapter", path)));
    let saved = Saved {
        name: "needle",
        scores: &json,
        settings: json!({"lengths": args.lengths, "depths": args.depths, "trials": args.trials, "values": args.values, "seed": args.seed}),
        inputs,
        rows: Vec::new(),
    };
    args.save.save(app, &saved)?;
    Ok(Said::new(json, table(&scores)))
}

/// Fills prompts with the text, and takes its words for the facts.
fn haystack(tokenizer: &Tokenizer, path: &Path, values: usize) -> Result<Haystack> {
    let (mut filler, mut counts) = (Vec::new(), BTreeMap::<String, usize>::new());
    for text in read_texts(path)? {
        let text = text?;
        for word in text.split(|c: char| !c.is_alphabetic()) {
            if (3..=12).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_lowercase()) {
                *counts.entry(word.to_owned()).or_default() += 1;
            }
        }
        filler.extend(tokenizer.encode(&text, false)?);
        if filler.len() >= FILLER {
            break;
        }
    }
    filler.truncate(FILLER);
    let mut counts: Vec<(String, usize)> = counts.into_iter().collect();
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let mut words = Vec::new();
    for (word, _) in &counts {
        if let [token] = tokenizer.encode(&format!(" {word}"), false)?[..]
            && !words.contains(&token)
        {
            words.push(token);
        }
        if words.len() == COMMON + WORDS {
            break;
        }
    }
    if words.len() <= values {
        bail!(
            "{}: only {} of its words are one token each, but a key and {values} values are needed; lower --values or give \
             more text",
            path.display(),
            words.len()
        );
    }
    let common = COMMON.min(words.len() - values - 1);
    let words = words.split_off(common);
    let [before, between, after] = PHRASE.map(|part| tokenizer.encode(part, false));
    Ok(Haystack {
        filler,
        words,
        phrase: [before?, between?, after?],
    })
}

fn table(scores: &NeedleScores) -> String {
    let line = |what: &str, found: &Found| {
        format!(
            "{what:<14} right {:5.1} %, rank {:5.2} of {}, {:+.3} nats by the fact",
            100.0 * found.accuracy,
            found.mean_rank,
            scores.values,
            found.gain
        )
    };
    let mut lines = Vec::new();
    for length in &scores.lengths {
        lines.push(line(&format!("{} tokens", length.length), &length.found));
        let depths = length.depths.iter();
        lines
            .extend(depths.map(|depth| line(&format!("  depth {:.2}", depth.depth), &depth.found)));
    }
    lines.push(format!(
        "{} prompts of each length and depth; a guess is right in {:.1} %",
        scores.trials,
        100.0 * scores.chance
    ));
    lines.join("\n")
}
