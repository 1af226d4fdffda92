//! `eval ifeval`: whether responses follow instructions that can be checked, from a file or from a model.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use russet_engine::{Engine, EngineConfig, Flow, Request, Sampling};
use russet_eval::ifeval::{IfevalScores, Prompts, Response, Responses, Verdict, score};
use russet_tokenizer::{Message, Tokenizer};

use crate::app::{App, Interrupted, Model, Usage};
use crate::eval::save::{SaveArgs, Saved};
use serde_json::{Value, json};

/// Sequences that the engine continues together.
const SLOTS: usize = 8;

/// Responses that are written together: what a stopped run has lost at most.
const CHUNK: usize = 32;

#[derive(Args)]
pub struct IfevalArgs {
    /// What a model has answered: rows of `prompt` and `response` (.jsonl, plain, .gz or .zst)
    #[arg(long, conflicts_with = "model", required_unless_present = "model")]
    responses: Option<PathBuf>,
    /// A checkpoint or package that is to answer now, its likeliest tokens through its chat template
    #[arg(long)]
    model: Option<PathBuf>,
    /// An adapter (PEFT folder) to put onto the model
    #[arg(long, conflicts_with = "responses")]
    adapter: Option<PathBuf>,
    /// How many tokens a response may have
    #[arg(long, conflicts_with = "responses", default_value_t = 1024)]
    max_tokens: usize,
    /// Where the model's responses go (default: the name of its folder and .ifeval.jsonl, in the working directory)
    #[arg(long, conflicts_with = "responses", value_name = "FILE.jsonl")]
    keep: Option<PathBuf>,
    /// Other prompts than IFEval's: rows of `key`, `prompt`, `instruction_id_list` and `kwargs`
    #[arg(long)]
    prompts: Option<PathBuf>,
    /// Where to write a verdict a prompt
    #[arg(long, value_name = "FILE.jsonl")]
    verdicts: Option<PathBuf>,
    #[command(flatten)]
    save: SaveArgs,
}

/// Scores and prints.
pub fn run(app: &mut App, args: &IfevalArgs) -> Result<()> {
    let prompts = match &args.prompts {
        None => Prompts::embedded(),
        Some(path) => {
            crate::found::text(path)?;
            Prompts::read(path)?
        }
    };
    let path = match (&args.responses, &args.model) {
        (Some(path), _) => {
            crate::found::text(path)?;
            path.clone()
        }
        (None, Some(model)) => answer(app, args, model, &prompts)?,
        (None, None) => {
            return Err(Usage("give --responses FILE or --model DIR".into()).into());
        }
    };
    let responses = Responses::read(&path, &prompts)?;
    tell(app, &path, &prompts, &responses);
    let (scores, verdicts) = score(&prompts, &responses)?;
    if let Some(path) = &args.verdicts {
        write_verdicts(path, &verdicts)?;
    }
    let json = serde_json::to_value(scores)?;
    save(
        app,
        args,
        &path,
        &json,
        rows(&prompts, &responses, &verdicts),
    )?;
    app.print(&json, &table(&scores))
}

fn save(app: &App, args: &IfevalArgs, path: &Path, scores: &Value, rows: Vec<Value>) -> Result<()> {
    let mut inputs = vec![("responses", path)];
    inputs.extend(args.model.as_deref().map(|path| ("model", path)));
    inputs.extend(args.adapter.as_deref().map(|path| ("adapter", path)));
    inputs.extend(args.prompts.as_deref().map(|path| ("prompts", path)));
    let asked = args.model.is_some();
    let saved = Saved {
        name: "ifeval",
        scores,
        settings: json!({"max_tokens": asked.then_some(args.max_tokens)}),
        inputs,
        rows,
    };
    args.save.save(app, &saved)
}

/// Each response with what it follows.
fn rows(prompts: &Prompts, responses: &Responses, verdicts: &[Verdict]) -> Vec<Value> {
    let row = |verdict: &Verdict| {
        let place = prompts
            .all()
            .iter()
            .position(|prompt| prompt.key == verdict.key)?;
        let prompt = &prompts.all()[place];
        let followed = prompt.instructions.iter().zip(&verdict.follow_list_strict);
        let broken: Vec<&str> = followed
            .filter(|(_, followed)| !**followed)
            .map(|(instruction, _)| instruction.id())
            .collect();
        let note = match (broken.is_empty(), verdict.follow_all_loose) {
            (true, _) => String::new(),
            (_, loose) => format!(
                "does not follow {}{}",
                broken.join(", "),
                if loose { "; loosely it does" } else { "" }
            ),
        };
        Some(
            json!({"name": prompt.key.to_string(), "prompt": prompt.prompt, "response": responses.of(place),
            "passed": verdict.follow_all_strict, "note": note}),
        )
    };
    verdicts.iter().filter_map(row).collect()
}

/// Says what does not count, and what counts for nothing.
fn tell(app: &mut App, path: &Path, prompts: &Prompts, responses: &Responses) {
    let missing = responses.missing(prompts);
    if !missing.is_empty() {
        app.progress.message(&format!(
            "{}: {} of {} prompts have no response and do not count: keys {}",
            path.display(),
            missing.len(),
            prompts.all().len(),
            some(&missing)
        ));
    }
    let empty = responses.empty_lines();
    if !empty.is_empty() {
        app.progress.message(&format!(
            "{}: {} responses are empty and follow no instruction: lines {}; ask the model again if it should have answered",
            path.display(),
            empty.len(),
            some(empty)
        ));
    }
}

/// The first numbers of a list.
fn some(numbers: &[u64]) -> String {
    let shown: Vec<String> = numbers.iter().take(8).map(ToString::to_string).collect();
    let more = if numbers.len() > 8 { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
}

fn write_verdicts(path: &Path, verdicts: &[Verdict]) -> Result<()> {
    let failed = || format!("{}: the verdicts cannot be written", path.display());
    let mut file = BufWriter::new(File::create(path).with_context(failed)?);
    for verdict in verdicts {
        let line = serde_json::to_string(verdict)?;
        writeln!(file, "{line}").with_context(failed)?;
    }
    file.flush().with_context(failed)
}

fn table(scores: &IfevalScores) -> String {
    let line = |what: &str, strict: f64, loose: f64| {
        format!(
            "{what:<14} strict {:5.1} %, loose {:5.1} %",
            100.0 * strict,
            100.0 * loose
        )
    };
    [
        line("prompts", scores.prompt_strict, scores.prompt_loose),
        line(
            "instructions",
            scores.instruction_strict,
            scores.instruction_loose,
        ),
        format!("{} responses", scores.n),
    ]
    .join("\n")
}

/// Lets a model answer every prompt, and keeps its responses.
fn answer(app: &mut App, args: &IfevalArgs, folder: &Path, prompts: &Prompts) -> Result<PathBuf> {
    if args.max_tokens == 0 {
        return Err(Usage(
            "--max-tokens is 0, so there would be no responses; allow at least 1".into(),
        )
        .into());
    }
    let keep = keep(args, folder)?;
    app.stop_on_signals()?;
    let model = Model::open_for_chat(folder, args.adapter.as_deref(), &mut *app.progress)?;
    let stop_tokens = model.eos();
    let Model { decoder, tokenizer } = model;
    let encoded: Vec<Vec<u32>> = prompts
        .all()
        .iter()
        .map(|prompt| encode(&tokenizer, &prompt.prompt))
        .collect::<Result<_>>()?;
    let most = decoder.config().context;
    let longest = encoded.iter().map(Vec::len).filter(|len| *len < most).max();
    let Some(longest) = longest else {
        bail!(
            "{}: the model sees only {most} tokens, and every prompt has as many or more; score one with a longer context",
            folder.display()
        );
    };
    let context = most.min(longest.saturating_add(args.max_tokens));
    let config = EngineConfig::new(context, SLOTS.min(encoded.len()));
    let mut engine = Engine::new(decoder, app.pool.clone(), config)?;
    let failed = || format!("{}: the responses cannot be written", keep.display());
    let mut file = File::create_new(&keep).with_context(failed)?;
    app.progress
        .begin("ifeval", Some(encoded.len() as u64), "responses");
    let mut done = 0;
    for (prompts, encoded) in prompts.all().chunks(CHUNK).zip(encoded.chunks(CHUNK)) {
        let fits = |tokens: &&Vec<u32>| tokens.len() < most;
        let requests: Vec<Request> = encoded
            .iter()
            .filter(fits)
            .map(|tokens| Request {
                prompt: tokens.clone(),
                max_tokens: args.max_tokens,
                sampling: Sampling {
                    temperature: 0.0,
                    ..Sampling::default()
                },
                stop_tokens: stop_tokens.clone(),
                ..Request::default()
            })
            .collect();
        let interrupt = &app.interrupt;
        let made = engine.stream_batch(&requests, &mut |_, _| match interrupt.is_raised() {
            true => Flow::Stop,
            false => Flow::Continue,
        })?;
        if app.interrupt.is_raised() {
            app.progress.end();
            let kept = keep.display();
            return Err(Interrupted(format!(
                "stopped; {done} responses lie in {kept}, and --responses {kept} scores them"
            ))
            .into());
        }
        let mut made = made.iter();
        for (prompt, tokens) in prompts.iter().zip(encoded) {
            let generation = match fits(&tokens) {
                true => made.next(),
                false => None,
            };
            let response = match generation {
                Some(generation) => tokenizer.decode(generation.content(), true),
                None => {
                    app.progress.message(&format!(
                        "prompt {} has {} tokens, but the model sees only {most}; its response is empty",
                        prompt.key,
                        tokens.len()
                    ));
                    String::new()
                }
            };
            let row = serde_json::to_string(&Response {
                prompt: prompt.prompt.clone(),
                response,
            })?;
            writeln!(file, "{row}").with_context(failed)?;
            done += 1;
        }
        app.progress.update(done, &[]);
    }
    app.progress.end();
    Ok(keep)
}

/// Where responses go; never over others, which took hours.
fn keep(args: &IfevalArgs, folder: &Path) -> Result<PathBuf> {
    let path = match &args.keep {
        Some(path) => path.clone(),
        None => {
            let name = folder.file_name().unwrap_or("model".as_ref());
            PathBuf::from(format!("{}.ifeval.jsonl", name.to_string_lossy()))
        }
    };
    if path.extension().is_none_or(|ending| ending != "jsonl") {
        return Err(Usage(format!(
            "--keep {}: responses are kept as JSON Lines; let the name end in .jsonl",
            path.display()
        ))
        .into());
    }
    if path.exists() {
        bail!(
            "{0}: there are responses already; score them by --responses {0}, remove them, or name another file by --keep",
            path.display()
        );
    }
    Ok(path)
}

fn encode(tokenizer: &Tokenizer, prompt: &str) -> Result<Vec<u32>> {
    let message = Message {
        role: "user".to_owned(),
        content: prompt.to_owned(),
    };
    Ok(tokenizer.encode_chat(&[message], true)?)
}
