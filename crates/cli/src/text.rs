//! `generate` and `tokenizer encode`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use russet_artifact::Progress;
use russet_engine::{
    DraftModel, Engine, EngineConfig, Finish, Flow, Generate, Generation, PromptLookup, Propose,
    Request, Sampling,
};
use russet_tensor::Trace;
use russet_tokenizer::{SpecialTokens, StopFilter, Tokenizer};
use serde_json::json;

use crate::app::{App, Model, Usage, by_option, write_stdout};
use crate::args::{GenerateArgs, SamplingArgs};
use crate::guide;

/// Prints the token ids of a text.
pub fn encode(app: &App, model: &Path, text: &str, special: bool) -> Result<()> {
    crate::found::tokenizer(model)?;
    let tokenizer = Tokenizer::open(model)?;
    let special = if special {
        SpecialTokens::Parse
    } else {
        SpecialTokens::Text
    };
    let ids = tokenizer.encode_with(text, true, special)?;
    let shown: Vec<String> = ids.iter().map(ToString::to_string).collect();
    app.print(&json!({"ids": ids, "tokens": ids.len()}), &shown.join(" "))
}

/// The engine's settings of what the command line says.
pub fn sampling(args: &SamplingArgs) -> Result<Sampling> {
    let sampling = Sampling {
        temperature: args.temperature,
        top_k: (args.top_k > 0).then_some(args.top_k),
        top_p: args.top_p,
        min_p: args.min_p,
        presence_penalty: args.presence_penalty,
        frequency_penalty: args.frequency_penalty,
        repetition_penalty: args.repetition_penalty,
        top_logprobs: 0,
        seed: args.seed,
    };
    sampling.check().map_err(|error| Usage(error.to_string()))?;
    let mut biased: Vec<u32> = args.logit_bias.iter().map(|&(token, _)| token).collect();
    biased.sort_unstable();
    if let Some(twice) = biased.windows(2).find(|two| two[0] == two[1]) {
        let sentence = format!(
            "--logit-bias names the token {} more than once, and only one value can be added to its logit; give it once, with their sum \
             if that is meant",
            twice[0]
        );
        return Err(Usage(sentence).into());
    }
    Ok(sampling)
}

/// What a prompt was continued with.
pub struct Continuation {
    pub text: String,
    pub generation: Generation,
    /// How it ended; a stop string counts as a stop.
    pub finish: Finish,
}

/// Continues a prompt, handing on text as it becomes certain, for as long as that is wanted.
pub fn continue_prompt(
    engine: &mut Engine,
    tokenizer: &Tokenizer,
    request: &Request,
    stops: &[String],
    begins_text: bool,
    on_text: &mut dyn FnMut(&str) -> Flow,
) -> Result<Continuation> {
    let mut filter = StopFilter::new(stops);
    let mut pieces = if begins_text {
        tokenizer.detokenizer(true)
    } else {
        tokenizer.detokenizer_continuing(true)
    };
    let (mut text, mut stopped) = (String::new(), false);
    let generation = engine.generate(request, &mut |token| {
        let (piece, stop) = filter.push(&pieces.push(token.id));
        let flow = on_text(&piece);
        text.push_str(&piece);
        stopped = stop;
        if stop { Flow::Stop } else { flow }
    })?;
    if !stopped {
        let (mut rest, stop) = filter.push(&pieces.finish());
        stopped = stop;
        if !stop {
            rest += &filter.finish();
        }
        if !rest.is_empty() {
            on_text(&rest);
            text.push_str(&rest);
        }
    }
    let finish = if stopped {
        Finish::Stop
    } else {
        generation.finish
    };
    Ok(Continuation {
        text,
        generation,
        finish,
    })
}

/// Continues a prompt and prints the text as it comes.
pub fn generate(app: &mut App, args: &GenerateArgs) -> Result<()> {
    let sampling = Sampling {
        top_logprobs: args.top_logprobs,
        ..sampling(&args.sampling)?
    };
    sampling.check().map_err(|error| Usage(error.to_string()))?;
    if args.top_logprobs > 0 && !app.json {
        return Err(Usage("--top-logprobs goes into the JSON object; add --json".into()).into());
    }
    if args.max_tokens == 0 {
        return Err(Usage(
            "--max-tokens is 0, so there is nothing to generate; ask for at least 1".into(),
        )
        .into());
    }
    let model = Model::open(&args.model, args.adapter.as_deref())?;
    let prompt = model.encode_prompt(&args.prompt)?;
    let context = model.decoder.config().context;
    let needed = prompt.len().saturating_add(args.max_tokens).min(context);
    let request = Request {
        prompt,
        max_tokens: args.max_tokens,
        sampling,
        logit_bias: args.sampling.logit_bias.clone(),
        guide: guide::grammar(&args.guide, &model)?,
        stop_tokens: model.eos(),
        ..Request::default()
    };
    let proposer = proposer(app, args, &model, needed)?;
    let Model { decoder, tokenizer } = model;
    let config = EngineConfig {
        format: args.cache.format(&decoder),
        ..EngineConfig::new(needed, 1)
    };
    let engine = Engine::new(decoder, app.pool.clone(), config);
    let mut engine =
        engine.map_err(|error| by_option(error, "a smaller --max-tokens asks for less"))?;
    engine.set_proposer(proposer);
    // Opened before the work, so that a place that cannot be written is known at once.
    let trace = args.trace.as_deref().map(TraceFile::create).transpose()?;
    if trace.is_some() {
        engine.set_trace(Some(Trace::default()));
    }
    if !app.json {
        engine.check(&request)?;
        write_stdout(args.prompt.as_bytes()).context("standard output is closed")?;
    }
    let mut closed = false;
    let stops = &args.sampling.stop;
    let begins = args.prompt.is_empty();
    let made = continue_prompt(
        &mut engine,
        &tokenizer,
        &request,
        stops,
        begins,
        &mut |piece| {
            closed |= !app.json && write_stdout(piece.as_bytes()).is_err();
            if closed { Flow::Stop } else { Flow::Continue }
        },
    )?;
    if let Some((file, trace)) = trace.zip(engine.set_trace(None)) {
        file.write(&trace, &mut *app.progress)?;
    }
    if closed {
        bail!("standard output was closed before the text ended");
    }
    let generation = &made.generation;
    let finish = made.finish;
    // Of a single token there is no time between two.
    let speed = (generation.tokens.len() > 1).then(|| generation.decode_tokens_per_second());
    let mut json = json!({
        "text": made.text,
        "tokens": generation.tokens.len(),
        "prompt_tokens": generation.prompt_tokens,
        "tokens_per_second": speed,
        "token_ids": generation.tokens,
        "finish": finish.to_string(),
        "prefill_seconds": generation.prefill_seconds,
    });
    if args.top_logprobs > 0 {
        let places = generation.top.iter().map(|place| {
            let tokens = place.iter();
            let token = tokens.map(|token| json!({"id": token.id, "logprob": token.logprob}));
            token.collect::<Vec<_>>()
        });
        json["logprobs"] = json!(generation.logprobs);
        json["top_logprobs"] = places.collect();
    }
    if let Some(speculation) = &generation.speculation {
        json["speculation"] = json!({
            "drafted": speculation.drafted,
            "accepted": speculation.accepted,
            "steps": speculation.steps,
            "acceptance": speculation.acceptance(),
            "break_even": speculation.break_even,
        });
    }
    app.print(&json, "")?;
    if request.guide.is_some() && matches!(finish, Finish::Length | Finish::Context) {
        app.progress.message(&format!(
            "the answer is cut short by {finish} and not complete under its guide; raise --max-tokens"
        ));
    }
    if !app.json {
        let (prompt, tokens) = (generation.prompt_tokens, generation.tokens.len());
        let speed = speed.map_or(String::new(), |speed| format!(" at {speed:.1} tokens/s"));
        let guesses = generation.speculation.map_or(String::new(), |s| {
            format!(", {} of {} guesses right", s.accepted, s.drafted)
        });
        app.progress.message(&format!(
            "{prompt} prompt tokens, {tokens} generated{speed}{guesses}, ended by {finish}"
        ));
    }
    Ok(())
}

/// What guesses tokens, if anything is to.
fn proposer(
    app: &App,
    args: &GenerateArgs,
    model: &Model,
    context: usize,
) -> Result<Option<Box<dyn Propose>>> {
    if args.prompt_lookup {
        return Ok(Some(Box::new(PromptLookup::new())));
    }
    let Some(folder) = &args.draft else {
        return Ok(None);
    };
    let draft = Model::open(folder, None)?;
    if draft.tokenizer.blake3() != model.tokenizer.blake3() {
        bail!(
            "{}: its tokenizer is another than that of {}, so it cannot guess its tokens; take a smaller model of the same family",
            folder.display(),
            args.model.display()
        );
    }
    let format = args.cache.format(&draft.decoder);
    let draft = DraftModel::new(draft.decoder, app.pool.clone(), 1, context, format)?;
    Ok(Some(Box::new(draft)))
}

/// A file that a trace goes to.
pub struct TraceFile {
    path: PathBuf,
    file: File,
}

impl TraceFile {
    /// Creates the file.
    pub fn create(path: &Path) -> Result<TraceFile> {
        let failed = || format!("{}: the trace cannot be written", path.display());
        Ok(TraceFile {
            file: File::create(path).with_context(failed)?,
            path: path.to_path_buf(),
        })
    }

    /// Writes the trace.
    pub fn write(self, trace: &Trace, progress: &mut dyn Progress) -> Result<()> {
        let mut out = BufWriter::new(self.file);
        if trace.dropped() > 0 {
            let kept = trace.events().len();
            progress.message(&format!(
                "{}: the first {kept} operations are in the trace, {} more came after them",
                self.path.display(),
                trace.dropped()
            ));
        }
        let written = trace.write(&mut out).and_then(|()| out.flush());
        written.with_context(|| format!("{}: the trace cannot be written", self.path.display()))
    }
}
