//! `recipes/tiny` as it stands, up to the first ten losses of its training.

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Ran, russet};
use serde_json::Value;

/// The bits of the first ten losses, on AVX2. The steps are of the whole recipe: its schedule, its data, its decoder.
const GOLDEN: [u32; 10] = [
    0x410e9ed5, 0x410cfffa, 0x410be2cc, 0x410a9cb4, 0x4107f66e, 0x410559b3, 0x4103cab4, 0x40feb996,
    0x40f7e11e, 0x40f58756,
];

/// Trains until ten losses are logged, then asks it to stop; their bits.
fn first_losses(root: &Path, out: &Path, threads: usize) -> Vec<u32> {
    let run = out.join(format!("pretrain-{threads}"));
    let threads = threads.to_string();
    let mut arguments = vec![
        "pretrain",
        "recipes/tiny/03-pretrain.toml",
        "--threads",
        &threads,
    ];
    let (tokens, run_name) = (out.join("02-tokens"), run.display().to_string());
    let tokens = format!("inputs.tokens={:?}", tokens.display().to_string());
    arguments.extend([
        "--set",
        "train.log_every=1",
        "--set",
        &tokens,
        "--out",
        &run_name,
    ]);
    let mut child = russet(root, &arguments)
        .env("RUSSET_ISA", "avx2")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A line of progress a second or so, on standard error; when it says ten steps, ten losses are logged.
    let (mut said, mut asked) = (String::new(), false);
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        let progress: Value = serde_json::from_str(&line).unwrap_or_default();
        if !asked && progress["unit"] == "steps" && progress["done"].as_u64() >= Some(10) {
            asked = true;
            let stop = Command::new("kill").arg(child.id().to_string()).status();
            assert!(stop.unwrap().success());
        }
        said += &line;
        said.push('\n');
    }
    assert!(child.wait().unwrap().success(), "{said}");
    let log = std::fs::read_to_string(format!("{run_name}.log/log.jsonl")).unwrap();
    let rows = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let losses = rows.filter_map(|row| row["loss"].as_f64());
    losses
        .take(10)
        .map(|loss| (loss as f32).to_bits())
        .collect()
}

#[test]
fn its_first_losses_are_golden_on_one_thread_and_on_two() {
    #[cfg(target_arch = "x86_64")]
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    let avx2 = false;
    if !avx2 {
        eprintln!("skipped: the golden losses are those of AVX2, which this CPU has not");
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let keep = tempfile::tempdir().unwrap();
    let out = keep.path();
    let name = |stage: &str| out.join(stage).display().to_string();
    for (verb, stage) in [("train", "01-tokenizer"), ("shards", "02-tokens")] {
        let recipe = format!("recipes/tiny/{stage}.toml");
        let arguments = ["tokenizer", verb, &recipe, "--out", &name(stage)];
        let ran = Ran::from(russet(&root, &arguments).output().unwrap());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
    for threads in [1, 2] {
        let found = first_losses(&root, out, threads);
        assert_eq!(found, GOLDEN, "{threads} threads: {found:#x?}");
    }
}
