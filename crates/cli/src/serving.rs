//! `bench serving`: what serving asks of an engine beside its rates. How soon a process answers, what memory that takes, and what it
//! costs to change adapters while a sequence generates. Left out: tokenizers, HTTP, and a cold page cache.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use russet_engine::{Engine, EngineConfig, Flow, Generate, Request};
use russet_kernels::{process, random};
use russet_model::adapter::{About, Matrix, save_matrices};
use russet_model::cache::BLOCK_TOKENS;
use russet_model::{Decoder, KvCache, Layout, checkpoint, package};
use russet_tensor::DType;
use serde_json::{Value, json};

use crate::app::{App, Usage};
use crate::args::ServingArgs;

/// Tokens that the engine has room for, where the model sees as many.
const CONTEXT: usize = 1024;
/// Tokens of the prompt that a process answers.
const PROMPT: usize = 16;
/// Tokens that a sequence generates while adapters are loaded.
const GENERATED: usize = 96;
/// Sequences without an adapter beside adapters in memory, and as many where there are none.
const UNUSED: usize = 4;
/// Between two loads.
const PAUSE: Duration = Duration::from_millis(20);

fn engine(app: &App, decoder: Decoder) -> Result<Engine> {
    let context = decoder.config().context.min(CONTEXT);
    if context < 2 * PROMPT {
        bail!(
            "the model sees {context} tokens; to measure with it takes {}",
            2 * PROMPT
        );
    }
    let config = EngineConfig {
        format: decoder.cache_format(),
        ..EngineConfig::new(context, 1)
    };
    Ok(Engine::new(decoder, app.pool.clone(), config)?)
}

fn request(engine: &Engine, tokens: usize, max_tokens: usize, adapter: Option<&str>) -> Request {
    let vocab = engine.decoder().config().vocab as u64;
    let prompt = (0..tokens as u64).map(|i| random::below(0, 1, i, vocab) as u32);
    Request {
        prompt: prompt.collect(),
        max_tokens,
        adapters: adapter.into_iter().map(str::to_owned).collect(),
        ..Request::default()
    }
}

/// Opens a model, answers, and says what memory that took: the process that [`serving`] starts.
pub fn first_token(app: &App, model: &Path) -> Result<()> {
    let mut engine = engine(app, checkpoint::open(model)?)?;
    let request = request(&engine, PROMPT, 1, None);
    engine.generate(&request, &mut |_| Flow::Continue)?;
    let resident = process::peak_rss_bytes();
    app.print(&json!({"resident_bytes": resident}), "")
}

/// Times in milliseconds.
struct Times(Vec<f64>);

impl Times {
    fn new(times: Vec<Duration>) -> Times {
        let mut times: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        times.sort_by(f64::total_cmp);
        Times(times)
    }

    /// The nearest of rank `share`.
    fn at(&self, share: f64) -> f64 {
        let last = self.0.len() - 1;
        self.0[(last as f64 * share).round() as usize]
    }

    fn json(&self) -> Value {
        json!({"median": self.at(0.5), "p99": self.at(0.99), "samples": self.0.len()})
    }

    fn text(&self) -> String {
        let (median, p99, samples) = (self.at(0.5), self.at(0.99), self.0.len());
        format!("median {median:.3} ms, p99 {p99:.3} ms of {samples}")
    }
}

/// Starts a process a round, after one that is not counted: the times to their first tokens, and the most memory that one had.
fn starts(app: &App, model: &Path, rounds: usize) -> Result<(Times, u64)> {
    let (mut times, mut resident) = (Vec::new(), 0);
    for round in 0..=rounds {
        let begun = Instant::now();
        let mut child = Command::new(std::env::current_exe()?);
        child.args(["bench", "first-token", "--json", "--threads"]);
        child
            .arg(app.pool.threads().to_string())
            .arg("--model")
            .arg(model);
        let output = child
            .stdin(Stdio::null())
            .output()
            .context("no process could be started")?;
        let took = begun.elapsed();
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let said: Value = serde_json::from_slice(&output.stdout)?;
        resident = resident.max(said["resident_bytes"].as_u64().unwrap_or(0));
        if round > 0 {
            times.push(took); // the first finds a cold page cache
        }
    }
    Ok((Times::new(times), resident))
}

/// Writes an adapter of random numbers on every projection, in bf16. Returns the bytes of its numbers.
fn write_adapter(layouts: &[Layout], rank: usize, seed: u64, folder: &Path) -> Result<usize> {
    let mut matrices = Vec::new();
    for projection in layouts.iter().flat_map(|layout| {
        let projections = layout.projections.iter();
        projections.map(|projection| (&projection.name, projection.rows, layout.inputs))
    }) {
        let (name, rows, inputs) = projection;
        for (part, shape) in [("A", [rank, inputs]), ("B", [rows, rank])] {
            let stream = matrices.len() as u64;
            let number = |i| {
                f32::from_bits((0.01 * random::normal(seed, stream, i)).to_bits() & 0xffff_0000)
            };
            let values: Vec<f32> = (0..(shape[0] * shape[1]) as u64).map(number).collect();
            matrices.push((format!("{name}.lora_{part}.weight"), shape, values));
        }
    }
    let total: usize = matrices.iter().map(|(.., values)| values.len()).sum();
    let matrices = matrices.iter().map(|(name, shape, values)| Matrix {
        name,
        shape: *shape,
        scale: 1.0,
        values,
    });
    let about = About {
        name: None,
        base: None,
        dtype: DType::BF16,
    };
    save_matrices(&matrices.collect::<Vec<_>>(), &about, folder)?;
    Ok(2 * total)
}

/// What changing adapters takes.
struct Swaps {
    adapter_bytes: usize,
    /// A token of a sequence without an adapter while there is none in memory, and beside two that nobody asks for.
    plain: [Times; 2],
    /// A token of a sequence with an adapter while nobody loads.
    token: Times,
    /// The same while adapters are loaded.
    token_meanwhile: Times,
    /// An adapter read from its folder meanwhile.
    disk: Times,
    /// What a request waits for that names another adapter than the last one, both in memory.
    memory: Times,
}

fn swaps(app: &App, model: &Path, args: &ServingArgs) -> Result<Swaps> {
    let mut engine = engine(app, checkpoint::open(model)?)?;
    let layouts = engine.decoder().layouts();
    let folders = [tempfile::tempdir()?, tempfile::tempdir()?];
    let mut adapter_bytes = 0;
    for (seed, folder) in (1..).zip(&folders) {
        adapter_bytes = write_adapter(&layouts, args.adapter_rank.into(), seed, folder.path())?;
    }
    let rounds = usize::from(args.rounds);
    let adapters = engine.adapters().clone();
    let generated = GENERATED.min(engine.decoder().config().context - PROMPT);
    let tokens = |engine: &mut Engine, adapter| -> Result<Vec<Duration>> {
        let (mut last, mut times) = (None, Vec::new());
        let request = request(engine, PROMPT, generated, adapter);
        engine.generate(&request, &mut |_| {
            let now = Instant::now();
            times.extend(last.replace(now).map(|last| now - last));
            Flow::Continue
        })?;
        Ok(times)
    };
    let mut plain = [Vec::new(), Vec::new()];
    tokens(&mut engine, None)?; // pages that nobody has touched yet
    for turn in 0..2 * UNUSED {
        // None, both, both, none, …
        let loaded = usize::from(matches!(turn % 4, 1 | 2));
        adapters.remove("one");
        adapters.remove("two");
        if loaded == 1 {
            adapters.load("one", folders[0].path())?;
            adapters.load("two", folders[1].path())?;
        }
        plain[loaded].extend(tokens(&mut engine, None)?);
    }
    adapters.load("one", folders[0].path())?;
    adapters.load("two", folders[1].path())?;
    let token = Times::new(tokens(&mut engine, Some("one"))?);
    let done = AtomicBool::new(false);
    let (loads, meanwhile) = std::thread::scope(|scope| {
        let loader = scope.spawn(|| -> Result<Vec<Duration>> {
            let mut times = Vec::new();
            while !done.load(Ordering::Relaxed) || times.len() < rounds {
                let begun = Instant::now();
                adapters.load("two", folders[times.len() % 2].path())?;
                times.push(begun.elapsed());
                std::thread::sleep(PAUSE);
            }
            Ok(times)
        });
        let (mut meanwhile, mut failed) = (Vec::new(), None);
        // As long as it takes to load so often.
        while !loader.is_finished() {
            match tokens(&mut engine, Some("one")) {
                Ok(times) => meanwhile.extend(times),
                Err(error) => failed = Some(error),
            }
            if failed.is_some() || meanwhile.len() >= 4 * GENERATED {
                done.store(true, Ordering::Relaxed);
            }
        }
        let loads = loader.join();
        let loads = loads.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        failed.map_or(Ok((loads, meanwhile)), Err)
    })?;
    let mut memory = Vec::new();
    for round in 0..rounds {
        let begun = Instant::now();
        engine.submit(request(&engine, 1, 1, Some(["one", "two"][round % 2])))?;
        memory.push(begun.elapsed());
        while engine.step(&mut |_| Flow::Continue) {}
    }
    Ok(Swaps {
        adapter_bytes,
        plain: plain.map(Times::new),
        token,
        token_meanwhile: Times::new(meanwhile),
        disk: Times::new(loads),
        memory: Times::new(memory),
    })
}

/// How soon a process answers, and what it costs to change adapters.
pub fn serving(app: &App, args: &ServingArgs) -> Result<()> {
    let made = tempfile::tempdir()?;
    let model = match (&args.measured.random, &args.measured.model) {
        (Some(shape), _) => {
            let config = shape.config();
            package::write_random(
                &config,
                args.measured.bpw,
                &args.measured.bits,
                0,
                &app.pool,
                made.path(),
            )?;
            made.path()
        }
        (None, Some(model)) => {
            crate::found::model(model)?;
            model
        }
        (None, None) => return Err(Usage("give --model DIR or --random SHAPE".to_owned()).into()),
    };
    let mut package = 0;
    for file in std::fs::read_dir(model)? {
        let name = file?.path();
        if name
            .extension()
            .is_some_and(|extension| extension == "safetensors")
        {
            package += name.metadata()?.len();
        }
    }
    let decoder = checkpoint::open(model)?;
    let blocks = decoder.config().context.min(CONTEXT).div_ceil(BLOCK_TOKENS);
    let cache = blocks * KvCache::block_bytes(decoder.config(), decoder.cache_format());
    drop(decoder);
    let (first, resident) = starts(app, model, args.rounds.into())?;
    let swaps = swaps(app, model, args)?;
    let json = json!({
        "first_token_ms": first.json(),
        "resident_bytes": resident,
        "package_bytes": package,
        "cache_bytes": cache,
        "adapter_bytes": swaps.adapter_bytes,
        "swap_memory_ms": swaps.memory.json(),
        "swap_disk_ms": swaps.disk.json(),
        "token_plain_ms": swaps.plain[0].json(),
        "token_beside_unused_ms": swaps.plain[1].json(),
        "token_ms": swaps.token.json(),
        "token_while_loading_ms": swaps.token_meanwhile.json(),
        "threads": app.pool.threads(),
    });
    let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
    let text = format!(
        "first token of {PROMPT} after the start of a process: {}\n\
         resident then: {:.0} MiB; the weights have {:.0}, the cache {:.0}\n\
         an adapter of rank {} on every projection, {:.1} MB, another one asked for in memory: {}\n\
         the same from its folder, while a sequence generates: {}\n\
         a token of that sequence: {}; while nobody loads: {}\n\
         a token without an adapter: {}; beside two in memory that nobody asks for: {}",
        first.text(),
        mib(resident),
        mib(package),
        mib(cache as u64),
        args.adapter_rank,
        swaps.adapter_bytes as f64 / 1e6,
        swaps.memory.text(),
        swaps.disk.text(),
        swaps.token_meanwhile.text(),
        swaps.token.text(),
        swaps.plain[0].text(),
        swaps.plain[1].text(),
    );
    app.print(&json, &text)
}
