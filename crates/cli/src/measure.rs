//! `eval` and `bench`: what a model is worth, and how fast it is.

use std::path::Path;

use anyhow::{Result, bail};
use russet_engine::BenchConfig;
use russet_eval::{Document, Settings};
use russet_kernels::probe;
use russet_model::stored::{self, Output};
use russet_tensor::{Ctx, DType, Segments};
use russet_tokenizer::{Tokenizer, read_texts};
use russet_train::settings::ComputeType;
use serde_json::json;

use crate::app::{App, Model, Usage};
use crate::args::{BenchArgs, BenchTrainArgs, PerplexityArgs, Type};
use crate::eval::save::Saved;

/// Tokens in view at a time unless something else is asked for.
const WINDOW: usize = 1024;

/// The documents of a text with their tokens, as the model's tokenizer cuts them.
pub fn documents(tokenizer: &Tokenizer, path: &Path) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    crate::found::text(path)?;
    for text in read_texts(path)? {
        let text = text?;
        let tokens = tokenizer.encode(&text, false)?;
        if !tokens.is_empty() {
            documents.push(Document {
                tokens,
                bytes: text.len() as u64,
            });
        }
    }
    if documents.is_empty() {
        bail!("{}: there is no text in it", path.display());
    }
    Ok(documents)
}

/// How a text is shown to a model.
pub fn settings(model: &Model, window: Option<usize>) -> Result<Settings> {
    let window = self::window(model.decoder.config().context, window)?;
    Ok(Settings::new(model.bos()?, window))
}

/// Tokens in view at a time, of a model that sees `context`.
pub fn window(context: usize, asked: Option<usize>) -> Result<usize> {
    match asked {
        Some(window) if window == 0 || window > context => {
            let sentence =
                format!("the window is {window} tokens, but the model sees from 1 to {context}");
            Err(Usage(sentence).into())
        }
        window => Ok(window.unwrap_or(context.min(WINDOW))),
    }
}

/// Perplexity and bits per byte, and the divergence from another model.
pub fn perplexity(app: &mut App, args: &PerplexityArgs) -> Result<()> {
    app.stop_on_signals()?;
    crate::found::text(&args.text)?;
    let model = Model::open(&args.model, args.adapter.as_deref())?;
    let documents = documents(&model.tokenizer, &args.text)?;
    let settings = settings(&model, args.window)?;
    let mut ctx = Ctx::new(app.pool.clone());
    let (scores, divergence) = match &args.against {
        None => {
            let progress = &mut *app.progress;
            let scores = russet_eval::perplexity(
                &model.decoder,
                &mut ctx,
                &documents,
                &settings,
                progress,
                &app.interrupt,
            )?;
            (scores, None)
        }
        Some(against) => {
            let reference = Model::open(against, None)?;
            if reference.tokenizer.blake3() != model.tokenizer.blake3() {
                bail!(
                    "{} and {} have different tokenizers, so their predictions cannot be compared token by token",
                    args.model.display(),
                    against.display()
                );
            }
            let (a, b, progress) = (&reference.decoder, &model.decoder, &mut *app.progress);
            let both = russet_eval::compare(
                a,
                b,
                &mut ctx,
                &documents,
                &settings,
                progress,
                &app.interrupt,
            )?;
            (both.other, Some((both.kld, both.same_top)))
        }
    };
    let json = json!({
        "perplexity": scores.perplexity,
        "bits_per_byte": scores.bits_per_byte,
        "tokens": scores.tokens,
        "kld": divergence.map(|(kld, _)| kld),
        "same_top": divergence.map(|(_, same_top)| same_top),
    });
    let mut inputs = vec![("text", args.text.as_path()), ("model", &args.model)];
    inputs.extend(args.adapter.as_deref().map(|path| ("adapter", path)));
    inputs.extend(args.against.as_deref().map(|path| ("against", path)));
    let saved = Saved {
        name: "perplexity",
        scores: &json,
        settings: json!({"window": settings.window}),
        inputs,
        rows: Vec::new(),
    };
    args.save.save(app, &saved)?;
    let mut text = format!(
        "perplexity {:.3}, {:.4} bits per byte over {} tokens",
        scores.perplexity, scores.bits_per_byte, scores.tokens
    );
    if let Some((kld, same_top)) = divergence {
        text += &format!(
            "; divergence {kld:.4} nats, same likeliest token {:.1} %",
            100.0 * same_top
        );
    }
    app.print(&json, &text)
}

/// Writes the logits of given tokens.
pub fn logits(app: &App, model: &Path, tokens: &[u32], out: &Path) -> Result<()> {
    crate::found::model(model)?;
    let decoder = russet_model::checkpoint::open(model)?;
    let vocab = decoder.config().vocab;
    if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocab) {
        return Err(Usage(format!(
            "token {token} is not in the model's vocabulary of {vocab}"
        ))
        .into());
    }
    let (Some(folder), Some(stem)) = (
        out.parent(),
        out.file_name()
            .and_then(|n| n.to_str()?.strip_suffix(".safetensors")),
    ) else {
        return Err(Usage(format!(
            "{}: the file's name must end in .safetensors",
            out.display()
        ))
        .into());
    };
    if !folder.as_os_str().is_empty() && !folder.is_dir() {
        bail!(
            "{}: there is no such folder to write the logits to; make it first",
            folder.display()
        );
    }
    let mut ctx = Ctx::new(app.pool.clone());
    let hidden = decoder.forward(&mut ctx, tokens, &Segments::packed(&[tokens.len()]), None);
    let logits = decoder.logits(&mut ctx, &hidden);
    let shape = logits.shape().to_vec();
    let tensor = Output {
        name: "logits".into(),
        dtype: DType::F32,
        shape,
        bytes: logits.bytes(),
    };
    stored::write(folder, stem, &[tensor], usize::MAX)?;
    let json = json!({"out": out, "shape": logits.shape()});
    app.print(
        &json,
        &format!("{}: logits of {} tokens", out.display(), tokens.len()),
    )
}

/// Prefill and decode speed, beside what the memory can deliver.
pub fn bench(app: &App, args: &BenchArgs) -> Result<()> {
    for (flag, value) in [
        ("-p", args.prompt_tokens),
        ("-n", args.generate_tokens),
        ("-r", args.repeats),
    ] {
        if value == 0 {
            return Err(Usage(format!("{flag} is 0, so there is nothing to measure")).into());
        }
    }
    let model = args.model.as_ref().expect("clap asks for it");
    crate::found::model(model)?;
    let decoder = russet_model::checkpoint::open(model)?;
    let config = BenchConfig {
        prompt: args.prompt_tokens,
        generate: args.generate_tokens,
        repeats: args.repeats,
    };
    let measured = russet_engine::bench(&decoder, &app.pool, &config)?;
    let dram = probe::dram_read_gb_s(&app.pool);
    let (pp, tg) = (
        format!("pp{}", args.prompt_tokens),
        format!("tg{}", args.generate_tokens),
    );
    let json = json!({
        pp.clone(): measured.prefill_tokens_per_second,
        tg.clone(): measured.decode_tokens_per_second,
        "bytes_per_token": measured.bytes_per_token,
        "dram_gb_s": dram,
        "decode_gb_s": measured.decode_gb_s(),
        "threads": app.pool.threads(),
    });
    let text = format!(
        "{pp} {:.1} tokens/s, {tg} {:.1} tokens/s; {} bytes of weights a token make {:.2} GB/s, memory reads {dram:.1} GB/s ({} threads)",
        measured.prefill_tokens_per_second,
        measured.decode_tokens_per_second,
        measured.bytes_per_token,
        measured.decode_gb_s(),
        app.pool.threads()
    );
    app.print(&json, &text)
}

/// One step of training, timed.
pub fn bench_train(app: &mut App, args: &BenchTrainArgs) -> Result<()> {
    app.stop_on_signals()?;
    let dtype = match args.dtype {
        Type::F32 => ComputeType::F32,
        Type::Bf16 => ComputeType::Bf16,
    };
    let mut ctx = Ctx::new(app.pool.clone());
    ctx.recompute = args.recompute;
    let report = russet_train::bench(
        &args.shape,
        dtype,
        &mut ctx,
        args.steps,
        &mut *app.progress,
        &app.interrupt,
    )?;
    let mut text = format!(
        "{:.2} M parameters, {} tokens a step, {} threads: {:.0} tokens/s, {:.2} CPU seconds a step, at most {:.0} MB in memory; \
         {:.0} % of the {:.0} GFLOP/s that a square product of this type reaches",
        report.parameters as f64 / 1e6,
        report.tokens,
        report.threads,
        report.tokens_per_second,
        report.cpu_s_per_step,
        report.peak_rss_bytes as f64 / 1e6,
        100.0 * report.mfu,
        report.peak_gflops,
    );
    for (kernel, share) in &report.profile {
        text += &format!("\n{kernel:<16}{:5.1} %", 100.0 * share);
    }
    app.print(&serde_json::to_value(&report)?, &text)
}
