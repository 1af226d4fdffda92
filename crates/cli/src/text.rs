//! `generate`, `tokenizer encode` and `convert`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use russet_artifact::{Artifact, Draft, Inputs, Kind, Stage};
use russet_engine::{Engine, EngineConfig, Finish, Flow, Generate, Generation, Request, Sampling};
use russet_model::{Decoder, checkpoint, llama2c};
use russet_tensor::Trace;
use russet_tokenizer::{SpecialTokens, Tokenizer};
use serde_json::json;

use crate::app::{App, Model, Usage, write_stdout};
use crate::args::{ConvertArgs, Format, GenerateArgs, SamplingArgs, Target};
use crate::stop::StopFilter;

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
        seed: args.seed,
    };
    sampling.check().map_err(|error| Usage(error.to_string()))?;
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
    let sampling = sampling(&args.sampling)?;
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
        stop_tokens: model.eos(),
        ..Request::default()
    };
    let Model { decoder, tokenizer } = model;
    let mut engine = Engine::new(decoder, app.pool.clone(), EngineConfig::new(needed, 1))?;
    // Opened before the work, so that a place that cannot be written is known at once.
    let trace = args.trace.as_deref().map(TraceFile::create).transpose()?;
    if trace.is_some() {
        engine.set_trace(Some(Trace::default()));
    }
    if !app.json {
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
        file.write(&trace)?;
    }
    if closed {
        bail!("standard output was closed before the text ended");
    }
    let generation = &made.generation;
    let finish = made.finish;
    // Of a single token there is no time between two.
    let speed = (generation.tokens.len() > 1).then(|| generation.decode_tokens_per_second());
    let json = json!({
        "text": made.text,
        "tokens": generation.tokens.len(),
        "prompt_tokens": generation.prompt_tokens,
        "tokens_per_second": speed,
        "token_ids": generation.tokens,
        "finish": finish.to_string(),
        "prefill_seconds": generation.prefill_seconds,
    });
    app.print(&json, "")?;
    if !app.json {
        let (prompt, tokens) = (generation.prompt_tokens, generation.tokens.len());
        let speed = speed.map_or(String::new(), |speed| format!(" at {speed:.1} tokens/s"));
        app.progress.message(&format!(
            "{prompt} prompt tokens, {tokens} generated{speed}, ended by {finish}"
        ));
    }
    Ok(())
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
    pub fn write(self, trace: &Trace) -> Result<()> {
        let mut out = BufWriter::new(self.file);
        let written = trace.write(&mut out).and_then(|()| out.flush());
        written.with_context(|| format!("{}: the trace cannot be written", self.path.display()))
    }
}

/// Converts a model's files to a Hugging Face folder in f32.
pub fn convert(app: &App, args: &ConvertArgs) -> Result<()> {
    let Target::Hf = args.to;
    crate::found::of_form(&args.input, args.from == Format::Llama2c)?;
    // An artifact of ours counts by its manifest, anything else by its bytes.
    let model = match Artifact::open_any(&args.input) {
        Ok(artifact) => Inputs::new().artifact("model", &artifact)?,
        Err(_) => Inputs::new().path("model", &args.input)?,
    };
    let (decoder, tokenizer, inputs, from) = match args.from {
        Format::Llama2c => {
            let decoder = llama2c::load(&args.input)?;
            let path = args
                .tokenizer
                .clone()
                .map_or_else(|| tokenizer_beside(&args.input), Ok)?;
            let tokenizer = Tokenizer::from_llama2c(&path, decoder.config().vocab)?;
            let inputs = model.path("tokenizer", &path)?;
            (decoder, tokenizer, inputs, "llama2c")
        }
        Format::Hf => {
            if let Some(path) = &args.tokenizer {
                let sentence = "is a tokenizer of llama2.c's, and a Hugging Face folder has its own; leave --tokenizer out";
                return Err(Usage(format!("--tokenizer {} {sentence}", path.display())).into());
            }
            let tokenizer = Tokenizer::open(&args.input)?;
            (checkpoint::load(&args.input)?, tokenizer, model, "hf")
        }
    };
    let stage = Stage::new(
        "convert",
        &app.tool,
        json!({"stage": "convert", "from": from, "to": "hf"}),
        inputs,
    );
    let draft = Draft::of_stage(&args.out, Kind::Checkpoint, &stage.name)?;
    checkpoint::save(&decoder, draft.path())?;
    tokenizer.save(draft.path())?;
    draft.write("README.md", model_card(&decoder, args.from).as_bytes())?;
    draft.commit(&stage)?;
    let config = decoder.config();
    let out = args.out.display();
    let json = json!({"out": args.out, "parameters": config.parameters(), "vocab": config.vocab, "layers": config.layers});
    app.print(
        &json,
        &format!("{out}: {} parameters in f32", config.parameters()),
    )
}

/// The `README.md` of a converted checkpoint.
fn model_card(decoder: &Decoder, from: Format) -> String {
    let config = decoder.config();
    let source = match from {
        Format::Llama2c => "a model file of llama2.c",
        Format::Hf => "a Hugging Face folder",
    };
    format!(
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [russet]\n---\n\n# Converted model\n\n\
         Converted by Russet from {source} to f32; nothing was trained. The licence is that of the model it was made of.\n\n\
         | | |\n|---|---|\n| parameters | {} |\n| layers x width | {} x {} |\n| vocabulary | {} |\n| context | {} |\n\n\
         What it was made of stands in `manifest.json`, with hashes.\n",
        config.parameters(),
        config.layers,
        config.width,
        config.vocab,
        config.context
    )
}

/// llama2.c's tokenizer file beside a model.
fn tokenizer_beside(model: &Path) -> Result<PathBuf> {
    let folder = model
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .with_context(|| format!("{}: cannot be listed", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or("");
            path != model && name.starts_with("tok") && name.ends_with(".bin")
        })
        .collect();
    match (found.pop(), found.len()) {
        (Some(path), 0) => Ok(path),
        (Some(_), _) => bail!(
            "{}: several files could be its tokenizer; name one by --tokenizer",
            model.display()
        ),
        (None, _) => bail!(
            "{}: no tok*.bin lies beside it; name its tokenizer file by --tokenizer",
            model.display()
        ),
    }
}
