//! `eval` and `bench`: what a model is worth, and how fast it is.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};
use russet_engine::BenchConfig;
use russet_eval::{Document, Settings};
use russet_kernels::probe;
use russet_model::stored::{self, Output};
use russet_model::{Decoder, KvFormat, adapter, package};
use russet_tensor::{Ctx, DType, Segments, Stack};
use russet_tokenizer::{Tokenizer, read_texts};
use russet_train::settings::ComputeType;
use serde_json::json;

use crate::app::{App, Model, Said, Usage, base};
use crate::args::{BenchArgs, BenchTrainArgs, CacheType, PerplexityArgs, Type};
use crate::eval::save::Saved;
use crate::text::TraceFile;

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
pub fn perplexity(app: &mut App, args: &PerplexityArgs) -> Result<Said> {
    app.stop_on_signals()?;
    crate::found::text(&args.text)?;
    let model = Model::open(&args.model, args.adapter.as_deref())?;
    let documents = documents(&model.tokenizer, &args.text)?;
    let settings = Settings {
        format: args.cache_type.format(),
        ..settings(&model, args.window)?
    };
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
    let mut told = json!({"window": settings.window});
    if settings.format != KvFormat::F32 {
        told["cache_type"] = CacheType::name_of(settings.format).into();
    }
    let saved = Saved {
        name: "perplexity",
        scores: &json,
        settings: told,
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
    Ok(Said::new(json, text))
}

/// Writes the logits of given tokens.
pub fn logits(app: &App, model: &Path, tokens: &[u32], out: &Path) -> Result<Said> {
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
    let text = format!("{}: logits of {} tokens", out.display(), tokens.len());
    Ok(Said::new(json, text))
}

/// The decoder that is measured, with its name and how many weights it has.
fn measured_decoder(app: &App, args: &BenchArgs) -> Result<(Decoder, String)> {
    let (decoder, name) = match (&args.measured.random, &args.measured.model) {
        (Some(shape), _) => {
            let decoder = package::random(
                &shape.config(),
                args.measured.bpw,
                &args.measured.bits,
                0,
                &app.pool,
            )?;
            (
                decoder,
                format!("random, {} bits a weight", args.measured.bpw),
            )
        }
        (None, Some(model)) => {
            crate::found::model(model)?;
            let decoder = russet_model::checkpoint::open(model)?;
            (decoder, model.display().to_string())
        }
        (None, None) => unreachable!("clap asks for one of them"),
    };
    Ok((decoder, name))
}

/// The adapters that are measured too, and what they are called.
fn measured_adapters(decoder: &Decoder, args: &BenchArgs) -> Result<(Vec<Stack>, String)> {
    let layouts = decoder.layouts();
    if let Some(rank) = args.adapter_rank {
        let one = |seed| [Arc::new(adapter::random(&layouts, rank.into(), seed))].into();
        let name = match args.adapters {
            1 => format!("a random adapter of rank {rank}"),
            count => format!("{count} random adapters of rank {rank}"),
        };
        return Ok(((0..u64::from(args.adapters)).map(one).collect(), name));
    }
    let base = args.measured.model.as_deref().and_then(base);
    let mut stacks = Vec::new();
    for folder in &args.adapter {
        crate::found::adapter(folder)?;
        let adapter = adapter::load(&layouts, folder, base.as_deref())?;
        stacks.push([Arc::new(adapter)].into());
    }
    let names = args
        .adapter
        .iter()
        .map(|folder| folder.display().to_string());
    Ok((stacks, names.collect::<Vec<_>>().join(", ")))
}

/// One test in the words of llama.cpp's `llama-bench -o json`.
fn llama_bench(tokens: usize, rates: &[f64]) -> serde_json::Map<String, serde_json::Value> {
    let mean = |numbers: &[f64]| numbers.iter().sum::<f64>() / numbers.len() as f64;
    // Of a sample: over one less than there are.
    let deviation = |numbers: &[f64]| {
        let mean = mean(numbers);
        let squares: f64 = numbers.iter().map(|x| (x - mean) * (x - mean)).sum();
        (squares / (numbers.len() - 1).max(1) as f64).sqrt()
    };
    let nanoseconds: Vec<f64> = rates
        .iter()
        .map(|rate| (tokens as f64 / rate * 1e9).round())
        .collect();
    let json = json!({
        "avg_ns": mean(&nanoseconds).round() as u64,
        "stddev_ns": deviation(&nanoseconds).round() as u64,
        "avg_ts": mean(rates),
        "stddev_ts": deviation(rates),
        "samples_ns": nanoseconds.iter().map(|&ns| ns as u64).collect::<Vec<_>>(),
        "samples_ts": rates,
    });
    match json {
        serde_json::Value::Object(fields) => fields,
        _ => unreachable!("an object was written"),
    }
}

/// Prefill and decode speed, beside what the memory can deliver.
pub fn bench(app: &mut App, args: &BenchArgs) -> Result<()> {
    for (flag, value) in [
        ("-p", args.prompt_tokens),
        ("-n", args.generate_tokens),
        ("-b", args.sequences),
        ("-r", args.repeats),
    ] {
        if value == 0 {
            return Err(Usage(format!("{flag} is 0, so there is nothing to measure")).into());
        }
    }
    let (decoder, name) = measured_decoder(app, args)?;
    let config = BenchConfig {
        prompt: args.prompt_tokens,
        generate: args.generate_tokens,
        sequences: args.sequences,
        repeats: args.repeats,
        format: args.cache.format(&decoder),
    };
    let (adapters, through) = measured_adapters(&decoder, args)?;
    if adapters.len() > args.sequences {
        let sentence = format!(
            "there are {} adapters and {} sequences to go through one each; give -b {0} or fewer adapters",
            adapters.len(),
            args.sequences
        );
        return Err(Usage(sentence).into());
    }
    let trace = args.trace.as_deref().map(TraceFile::create).transpose()?;
    let measured = russet_engine::bench(&decoder, &app.pool, &config, &adapters)?;
    if let Some(file) = trace {
        let trace = russet_engine::bench::trace(&decoder, &app.pool, &config, &adapters)?;
        file.write(&trace, &mut *app.progress)?;
    }
    let peak = probe::int8_gop_s(&app.pool);
    let threads = app.pool.threads();
    let (pp, mut tg) = (
        format!("pp{}", args.prompt_tokens),
        format!("tg{}", args.generate_tokens),
    );
    if args.sequences > 1 {
        tg += &format!(" x {}", args.sequences);
    }
    // The projections alone: logits of one row and attention are little beside them, and left out.
    let operations = 2.0 * decoder.config().projection_parameters() as f64;
    let prefill_gop_s = measured.prefill_tokens_per_second * operations / 1e9;
    let projections: usize = decoder.linears().map(|l| l.stored_bytes()).sum();
    let model_size = projections + decoder.output_table().stored_bytes();
    let of_peak = match decoder.multiplies_in_8_bits() {
        true => format!("{prefill_gop_s:.0} of {peak:.0} GOP/s in 8 bits"),
        false => format!("{prefill_gop_s:.0} GOP/s in floating point"),
    };
    let shares = measured.profile.each_ref().map(|shares| {
        let kernels = shares.kernels.iter();
        let named = kernels.map(|(kernel, share)| (kernel.name().to_owned(), *share));
        let mut named: Vec<(String, f64)> = named.collect();
        named.push(("outside".to_owned(), shares.outside));
        named
    });
    let name_of = &name;
    let cache_type = CacheType::name_of(config.format);
    let test = |name: &str, prompt: usize, generate: usize, rates: &[f64]| {
        let mut fields = llama_bench(prompt + generate * args.sequences, rates);
        let json = json!({
            "test": name,
            "model_filename": args.measured.model,
            "model_type": name_of,
            "model_size": model_size,
            "model_n_params": decoder.config().parameters(),
            "n_threads": threads,
            "n_prompt": prompt,
            "n_gen": generate,
            "n_sequences": if generate == 0 { 1 } else { args.sequences },
            "type_k": cache_type,
            "type_v": cache_type,
        });
        for (key, value) in json.as_object().expect("an object") {
            fields.insert(key.clone(), value.clone());
        }
        fields
    };
    let with_shares = |mut fields: serde_json::Map<_, _>, share: usize| {
        let shares: BTreeMap<_, _> = shares[share].iter().cloned().collect();
        fields.insert("shares".to_owned(), json!(shares));
        fields
    };
    let prompt = |rates: &[f64]| test(&pp, args.prompt_tokens, 0, rates);
    let generate = |rates: &[f64]| test(&tg, 0, args.generate_tokens, rates);
    let mut json = json!({
        pp.clone(): measured.prefill_tokens_per_second,
        tg.clone(): measured.decode_tokens_per_second,
        "bytes_per_token": measured.bytes_per_token,
        "dram_gb_s": measured.dram_gb_s,
        "decode_gb_s": measured.decode_gb_s(),
        "int8_gop_s": peak,
        "prefill_gop_s": prefill_gop_s,
        "threads": threads,
        "cache_bytes_per_token": measured.cache_bytes_per_token,
        "tests": [
            with_shares(prompt(&measured.prefill), 0),
            with_shares(generate(&measured.decode), 1),
        ],
    });
    let mut text = format!(
        "{name}: {pp} {:.1} tokens/s, {of_peak}; {tg} {:.1} tokens/s, {} bytes of weights a step make {:.2} GB/s, \
         memory reads {:.1} GB/s ({threads} threads)",
        measured.prefill_tokens_per_second,
        measured.decode_tokens_per_second,
        measured.bytes_per_token,
        measured.decode_gb_s(),
        measured.dram_gb_s,
    );
    if let Some(adapted) = &measured.adapted {
        let slower = [
            adapted.prefill_tokens_per_second / measured.prefill_tokens_per_second,
            adapted.decode_tokens_per_second / measured.decode_tokens_per_second,
        ];
        text += &format!(
            "\nthrough {through}: {pp} {:.1} tokens/s ({:.0} %); {tg} {:.1} tokens/s ({:.0} %), {} bytes a step",
            adapted.prefill_tokens_per_second,
            100.0 * slower[0],
            adapted.decode_tokens_per_second,
            100.0 * slower[1],
            adapted.bytes_per_token,
        );
        json["adapter"] = json!({
            "paths": args.adapter,
            "rank": args.adapter_rank,
            "adapters": adapters.len(),
            pp.clone(): adapted.prefill_tokens_per_second,
            tg.clone(): adapted.decode_tokens_per_second,
            "prefill_share": slower[0],
            "decode_share": slower[1],
            "bytes_per_token": adapted.bytes_per_token,
            "tests": [prompt(&adapted.prefill), generate(&adapted.decode)],
        });
    }
    if args.profile {
        for (test, shares) in [pp, tg].iter().zip(&shares) {
            for (kernel, share) in shares {
                text += &format!("\n{test:<10}{kernel:<14}{:5.1} %", 100.0 * share);
            }
        }
    }
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
