//! What serving asks of an engine beside its rates: how soon a process answers, and what it costs to swap an adapter.
//!
//! ```text
//! cargo run --release -p russet-engine --example serving -- start FOLDER [0.6b|3b] [rounds]
//! cargo run --release -p russet-engine --example serving -- swap [0.6b|3b] [rounds]
//! ```
//! `start` writes a package of random weights at 3.5 bits into FOLDER where there is none, and starts a process a round that opens it and
//! answers a prompt of 16 tokens: the time from before the process is made to its first token, and the memory it had then, beside the package's
//! size and the cache's. `swap` generates with one sequence while another thread loads an adapter of rank 16 on every projection, in
//! bf16, from its folder, and while it only asks for one that is in memory: how long each takes, and the longest wait of the sequence for
//! its next token, beside that without. Times are medians and 99th percentiles. Left out: tokenizers, HTTP, and a cold page cache.
#![allow(clippy::print_stdout)]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use half::f16;
use russet_engine::{Engine, EngineConfig, Flow, Generate, Request};
use russet_kernels::palette::Bits;
use russet_kernels::{Pool, process, random};
use russet_model::adapter::{About, Matrix, save_matrices};
use russet_model::config::RopeScaling;
use russet_model::{Config, Decoder, Family, KvCache, KvFormat, Layout, checkpoint, package};
use russet_tensor::DType;

/// Context of the engine: what its cache is made for.
const CONTEXT: usize = 1024;
const PROMPT: usize = 16;
const RANK: usize = 16;

fn shape(name: &str) -> Config {
    let (width, layers, heads, kv_heads, ffn) = match name {
        "3b" => (3072, 26, 24, 8, 8192),
        "0.6b" => (1024, 28, 16, 8, 3072),
        _ => panic!("there are the shapes 0.6b and 3b, not {name}"),
    };
    Config {
        family: Family::Qwen3,
        vocab: 49_152,
        width,
        layers,
        heads,
        kv_heads,
        head_dim: 128,
        ffn,
        norm_epsilon: 1e-6,
        rope_theta: 500_000.0,
        rope_scaling: RopeScaling::None,
        attention: Default::default(),
        context: 4096,
        tied: true,
        bos: None,
        eos: vec![],
    }
}

/// Writes random weights as a package: of each four projections one at 2 bits, the others at 4.
fn write_package(config: &Config, layouts: &[Layout], folder: &Path) {
    let mut modules = BTreeMap::new();
    for layout in layouts {
        for projection in &layout.projections {
            let bits = match modules.len() % 4 {
                3 => Bits::Two,
                _ => Bits::Four,
            };
            let module = (bits, projection.rows, layout.inputs);
            modules.insert(projection.name.clone(), module);
        }
    }
    let bytes = |len: usize| -> Vec<u8> {
        let words = (0..len.div_ceil(8) as u64).flat_map(|i| random::hash(1, 0, i).to_le_bytes());
        words.take(len).collect()
    };
    let halves = |len: usize| f16::from_f32(2e-4).to_le_bytes().repeat(len);
    package::write_each(config, &modules, folder, |name| {
        let (module, part) = name.rsplit_once('.').expect("a suffix");
        let made = match (part, modules.get(module)) {
            ("weight", _) => {
                let len = match name.contains("q_norm") || name.contains("k_norm") {
                    true => config.head_dim,
                    false => config.width,
                };
                1f32.to_le_bytes().repeat(len)
            }
            ("values", _) => bytes(
                russet_kernels::int8::sizes(config.vocab, config.width)
                    .expect("a table")
                    .data,
            ),
            ("scales", None) => {
                let sizes = russet_kernels::int8::sizes(config.vocab, config.width);
                halves(sizes.expect("a table").scales)
            }
            (part, Some(&(bits, rows, cols))) => {
                let sizes = russet_kernels::palette::sizes(bits, rows, cols).expect("a matrix");
                match part {
                    "indices" => bytes(sizes.indices),
                    "palette" => bytes(sizes.palette),
                    _ => halves(sizes.scales),
                }
            }
            _ => panic!("{name}: what is it?"),
        };
        Ok(Cow::Owned(made))
    })
    .expect("a package");
}

fn engine(decoder: Decoder) -> Engine {
    let pool = Arc::new(Pool::new(2).expect("an instruction set"));
    Engine::new(decoder, pool, EngineConfig::new(CONTEXT, 1)).expect("an engine")
}

fn request(tokens: usize, max_tokens: usize, adapter: Option<&str>) -> Request {
    let prompt = (0..tokens as u64).map(|i| random::below(0, 1, i, 49_152) as u32);
    Request {
        prompt: prompt.collect(),
        max_tokens,
        adapters: adapter.into_iter().map(str::to_owned).collect(),
        ..Request::default()
    }
}

/// The median and the 99th percentile, in milliseconds.
fn told(mut times: Vec<Duration>) -> String {
    times.sort();
    let at =
        |share: f64| times[((times.len() - 1) as f64 * share).round() as usize].as_secs_f64() * 1e3;
    format!(
        "median {:.3} ms, p99 {:.3} ms of {}",
        at(0.5),
        at(0.99),
        times.len()
    )
}

/// Opens the package, answers, and says what memory that took: the process that `start` starts.
fn answer(folder: &Path) {
    let decoder = checkpoint::open(folder).expect("a package");
    let mut engine = engine(decoder);
    let mut first = false;
    let answer = engine.generate(&request(PROMPT, 1, None), &mut |_| {
        first = true;
        Flow::Continue
    });
    answer.expect("an answer");
    assert!(first, "there was a token");
    println!(
        "{}",
        process::peak_rss_bytes().expect("what the system says")
    );
}

fn start(folder: &Path, name: &str, rounds: usize) {
    let config = shape(name);
    if !folder.join("config.json").exists() {
        std::fs::create_dir_all(folder).expect("a folder");
        let pool = Arc::new(Pool::new(2).expect("an instruction set"));
        let decoder = package::random(&config, 3.5, &[Bits::Two, Bits::Four], 0, &pool);
        write_package(&config, &decoder.expect("a decoder").layouts(), folder);
    }
    let size: u64 = std::fs::read_dir(folder)
        .expect("the folder")
        .map(|file| file.and_then(|file| file.metadata()).expect("a file").len())
        .sum();
    let cache = CONTEXT / 64 * KvCache::block_bytes(&config, KvFormat::F32);
    let mut times = Vec::new();
    let mut resident = 0;
    for round in 0..=rounds {
        let begun = Instant::now();
        let mut child = Command::new(std::env::current_exe().expect("a program"));
        let output = child.arg("answer").arg(folder).output().expect("a process");
        let took = begun.elapsed();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let said = String::from_utf8(output.stdout).expect("a number");
        resident = resident.max(said.trim().parse::<u64>().expect("a number"));
        // The first one finds a cold page cache.
        if round > 0 {
            times.push(took);
        }
    }
    println!("{name}: first token of {PROMPT} after {}", told(times));
    let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
    println!(
        "resident at most {:.0} MiB; the package has {:.0}, the whole cache of {CONTEXT} tokens {:.0}",
        mib(resident),
        mib(size),
        mib(cache as u64),
    );
}

/// Writes an adapter of random numbers, in bf16.
fn write_adapter(layouts: &[Layout], seed: u64, folder: &Path) -> usize {
    let (mut numbers, mut total) = (Vec::new(), 0);
    for layout in layouts {
        for projection in &layout.projections {
            for (part, shape) in [("A", [RANK, layout.inputs]), ("B", [projection.rows, RANK])] {
                let stream = numbers.len() as u64;
                let values = (0..(shape[0] * shape[1]) as u64)
                    .map(|i| random::normal(seed, stream, i) * 0.01)
                    .map(|number| f32::from_bits(number.to_bits() & 0xffff_0000));
                let values: Vec<f32> = values.collect();
                total += values.len();
                numbers.push((
                    format!("{}.lora_{part}.weight", projection.name),
                    shape,
                    values,
                ));
            }
        }
    }
    let matrices = numbers.iter().map(|(name, shape, values)| Matrix {
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
    save_matrices(&matrices.collect::<Vec<_>>(), &about, folder).expect("an adapter");
    2 * total
}

fn swap(name: &str, rounds: usize) {
    let config = shape(name);
    let pool = Arc::new(Pool::new(2).expect("an instruction set"));
    let decoder = package::random(&config, 3.5, &[Bits::Two, Bits::Four], 0, &pool);
    let mut engine = engine(decoder.expect("a decoder"));
    let folders = [1, 2].map(|seed| {
        let folder = tempfile::tempdir().expect("a folder");
        let bytes = write_adapter(&engine.decoder().layouts(), seed, folder.path());
        println!(
            "{name}: an adapter of rank {RANK} on every projection, {:.1} MB",
            bytes as f64 / 1e6
        );
        folder
    });
    let adapters = engine.adapters().clone();
    adapters.load("one", folders[0].path()).expect("an adapter");
    let gaps = |engine: &mut Engine| {
        let (mut last, mut gaps) = (None, Vec::new());
        let answer = engine.generate(&request(PROMPT, 96, Some("one")), &mut |_| {
            let now = Instant::now();
            gaps.extend(last.replace(now).map(|last| now - last));
            Flow::Continue
        });
        answer.expect("an answer");
        gaps
    };
    println!("a token, nobody swaps: {}", told(gaps(&mut engine)));
    let done = AtomicBool::new(false);
    let (loads, waits) = std::thread::scope(|scope| {
        let loader = scope.spawn(|| {
            let mut times = Vec::new();
            while !done.load(Ordering::Relaxed) || times.len() < rounds {
                let begun = Instant::now();
                let folder = folders[times.len() % 2].path();
                adapters.load("two", folder).expect("an adapter");
                times.push(begun.elapsed());
                std::thread::sleep(Duration::from_millis(20));
            }
            times
        });
        let waits = gaps(&mut engine);
        done.store(true, Ordering::Relaxed);
        (loader.join().expect("a thread"), waits)
    });
    println!("from its folder, a sequence generating: {}", told(loads));
    println!("a token, while adapters are loaded: {}", told(waits));
    // In memory: what a request that names another adapter than the last one waits for before it stands in line.
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        for (change, times) in times.iter_mut().enumerate() {
            let name = ["one", "two"][(round * change) % 2];
            let begun = Instant::now();
            engine.submit(request(1, 1, Some(name))).expect("a place");
            times.push(begun.elapsed());
            while engine.step(&mut |_| Flow::Continue) {}
        }
    }
    let [same, other] = times;
    println!("asked for in memory, the same as before: {}", told(same));
    println!("asked for in memory, the other one: {}", told(other));
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let rounds = |at: usize| {
        words
            .get(at)
            .map_or(20, |word| word.parse().expect("a number of rounds"))
    };
    match words[..] {
        ["answer", folder] => answer(Path::new(folder)),
        ["start", folder, ..] => start(
            Path::new(folder),
            words.get(2).unwrap_or(&"0.6b"),
            rounds(3),
        ),
        ["swap", ..] => swap(words.get(1).unwrap_or(&"0.6b"), rounds(2)),
        _ => println!("serving start FOLDER [SHAPE] [ROUNDS] | serving swap [SHAPE] [ROUNDS]"),
    }
}
