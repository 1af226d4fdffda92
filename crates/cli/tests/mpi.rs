//! `mpirun russet pretrain`: the bits of threads, and what becomes of a run whose ranks are killed or stopped.
//!
//! `RUSSET_TEST_KILL_REPETITIONS=10` kills a rank ten times in place of two.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Ran, ok, russet};
use serde_json::Value;

/// How many runs lose a rank.
const REPETITIONS: &str = "RUSSET_TEST_KILL_REPETITIONS";

/// The time that all ranks have to end in when one is gone.
const SOON: Duration = Duration::from_secs(30);

/// A corpus with its tokens; `None`, which is said, where there is no mpirun.
#[allow(clippy::print_stderr, reason = "a skipped test says why")]
fn corpus() -> Option<(tempfile::TempDir, PathBuf)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|folder| folder.join("mpirun").is_file()) {
        eprintln!("skipped: there is no mpirun");
        return None;
    }
    let keep = tempfile::tempdir().unwrap();
    let dir = keep.path().to_owned();
    common::mini(&dir);
    ok(
        &dir,
        &[
            "tokenizer",
            "train",
            "mini/01-tokenizer.toml",
            "--set",
            "tokenizer.vocab_size=304",
        ],
    );
    ok(&dir, &["tokenizer", "shards", "mini/02-tokens.toml"]);
    Some((keep, dir))
}

/// The arguments of a run on a mesh of so many ranks along data, fsdp, sequence and tensor.
fn arguments(mesh: [usize; 4], out: &str, steps: u64) -> Vec<String> {
    let mut arguments = vec![
        "pretrain".to_owned(),
        "mini/03-pretrain.toml".to_owned(),
        "--json".to_owned(),
    ];
    let mut set = |text: String| arguments.extend(["--set".to_owned(), text]);
    for (axis, size) in ["data", "fsdp", "sequence", "tensor"].iter().zip(mesh) {
        set(format!("parallel.{axis}={size}"));
    }
    set("model.width=64".to_owned());
    set("model.kv_heads=4".to_owned());
    set("train.log_every=1".to_owned());
    set("train.checkpoint_every=5".to_owned());
    set(format!("train.steps={steps}"));
    arguments.extend(["--out".to_owned(), out.to_owned()]);
    arguments
}

fn mpirun(dir: &Path, ranks: usize, arguments: &[String]) -> Command {
    let mut command = Command::new("mpirun");
    command
        .args([
            "--allow-run-as-root",
            "--oversubscribe",
            "-n",
            &ranks.to_string(),
        ])
        .arg(env!("CARGO_BIN_EXE_russet"))
        .args(arguments)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Waits for the end, which must come in time.
#[track_caller]
fn ended(mut child: Child, time: Duration) -> Ran {
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > time {
            child.kill().unwrap();
            let ran = Ran::from(child.wait_with_output().unwrap());
            panic!("not at its end after {time:?}: {}", ran.stderr);
        }
        sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap().into()
}

#[track_caller]
fn trained(dir: &Path, ranks: usize, arguments: &[String]) -> Ran {
    let ran = ended(mpirun(dir, ranks, arguments).spawn().unwrap(), 4 * SOON);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    ran
}

fn weights(dir: &Path, out: &str) -> Vec<u8> {
    fs::read(dir.join(out).join("model.safetensors")).unwrap()
}

/// Steps and the bits of their losses, over all starts of a run.
fn curve(dir: &Path, out: &str) -> Vec<(u64, u64)> {
    let log = fs::read_to_string(dir.join(format!("{out}.log/log.jsonl"))).unwrap();
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        Some((row["step"].as_u64()?, row["loss"].as_f64()?.to_bits()))
    };
    log.lines().filter_map(row).collect()
}

#[test]
fn processes_train_to_the_bits_of_threads() {
    let Some((_keep, dir)) = corpus() else { return };
    let meshes = [
        [2, 1, 1, 1],
        [1, 2, 1, 1],
        [1, 1, 1, 2],
        [4, 1, 1, 1],
        [1, 4, 1, 1],
        [1, 1, 1, 4],
        [2, 2, 1, 1],
        [2, 1, 1, 2],
        [1, 2, 1, 2],
        [1, 1, 2, 1],
        [1, 1, 4, 1],
        [2, 1, 2, 1],
        [1, 2, 2, 1],
        [1, 1, 2, 2],
    ];
    for mesh in meshes {
        let name = |who: &str| format!("run-{who}-{mesh:?}/03-pretrain").replace([' ', ','], "");
        let (threads, processes) = (name("threads"), name("processes"));
        let ran = Ran::from(
            russet(&dir, &[])
                .args(arguments(mesh, &threads, 12))
                .output()
                .unwrap(),
        );
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let wanted = ran.json();
        let found = trained(
            &dir,
            mesh.iter().product(),
            &arguments(mesh, &processes, 12),
        )
        .json();
        assert_eq!(found["losses"].as_array().unwrap().len(), 12);
        for field in ["losses", "bytes_moved_per_step", "validation_nats"] {
            assert_eq!(found[field], wanted[field], "{mesh:?} {field}");
        }
        assert!(
            weights(&dir, &processes) == weights(&dir, &threads),
            "{mesh:?}"
        );
    }
}

/// The processes that another one started.
fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let child = |process: fs::DirEntry| {
        let stat = fs::read_to_string(process.path().join("stat")).ok()?;
        // "PID (NAME) STATE PARENT …"; a name may hold anything.
        let found: u32 = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
        (found == parent).then(|| process.file_name().to_str()?.parse().ok())?
    };
    let mut children: Vec<u32> = processes.filter_map(child).collect();
    children.sort_unstable();
    children
}

fn signal(name: &str, process: u32) {
    let status = Command::new("kill")
        .args([name, &process.to_string()])
        .status();
    assert!(status.unwrap().success());
}

/// Waits until a run that goes on has logged a step of at least this number.
fn until_step(dir: &Path, out: &str, step: u64, child: &mut Child) {
    let begun = Instant::now();
    loop {
        let log = fs::read_to_string(dir.join(format!("{out}.log/log.jsonl")));
        let last = log
            .unwrap_or_default()
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok()?["step"].as_u64())
            .max();
        if last >= Some(step) {
            return;
        }
        assert!(
            child.try_wait().unwrap().is_none(),
            "the run ended before step {step}"
        );
        assert!(begun.elapsed() < 4 * SOON, "step {step} does not come");
        sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_killed_rank_ends_all_and_the_next_start_goes_on_to_the_same_bits() {
    let Some((_keep, dir)) = corpus() else { return };
    let repetitions = std::env::var(REPETITIONS).map_or(2, |count| count.parse().unwrap());
    const STEPS: u64 = 60;
    let mesh = [1, 2, 1, 2];
    trained(&dir, 4, &arguments(mesh, "straight/03-pretrain", STEPS));
    for repetition in 0..repetitions {
        let out = format!("killed-{repetition}/03-pretrain");
        let arguments = arguments(mesh, &out, STEPS);
        let mut child = mpirun(&dir, 4, &arguments).spawn().unwrap();
        // As good as at random: the processes run on while this one looks.
        let step = 1 + repetition * 29 % (STEPS - 12);
        until_step(&dir, &out, step, &mut child);
        let ranks = children(child.id());
        assert_eq!(ranks.len(), 4, "{ranks:?}");
        let rank = (repetition as usize + 1) % 4;
        signal("-KILL", ranks[rank]);
        let killed = ended(child, SOON);
        assert_ne!(killed.code, 0);
        let named = format!("rank {rank}");
        assert!(killed.stderr.contains(&named), "{named}: {}", killed.stderr);
        assert!(!dir.join(&out).exists());
        trained(&dir, 4, &arguments);
        assert_eq!(curve(&dir, &out), curve(&dir, "straight/03-pretrain"));
        assert!(weights(&dir, &out) == weights(&dir, "straight/03-pretrain"));
    }
}

#[test]
fn a_stopped_run_goes_on_with_fewer_ranks() {
    let Some((_keep, dir)) = corpus() else { return };
    const STEPS: u64 = 80;
    trained(
        &dir,
        4,
        &arguments([1, 4, 1, 1], "straight/03-pretrain", STEPS),
    );
    let out = "stopped/03-pretrain";
    let mut child = mpirun(&dir, 4, &arguments([1, 4, 1, 1], out, STEPS))
        .spawn()
        .unwrap();
    until_step(&dir, out, 3, &mut child);
    signal("-USR1", child.id());
    let stopped = ended(child, SOON);
    assert_eq!(stopped.code, 0, "{}", stopped.stderr);
    assert_eq!(stopped.json()["interrupted"], true);
    let went_on = trained(&dir, 2, &arguments([1, 2, 1, 1], out, STEPS));
    assert!(
        went_on.stderr.contains("going on after step"),
        "{}",
        went_on.stderr
    );
    let (found, wanted) = (curve(&dir, out), curve(&dir, "straight/03-pretrain"));
    assert_eq!(found.len(), wanted.len());
    for ((step, found), (_, wanted)) in found.iter().zip(&wanted) {
        let (found, wanted) = (f64::from_bits(*found), f64::from_bits(*wanted));
        assert!(
            (found - wanted).abs() <= 1e-4 * wanted,
            "step {step}: {found}, {wanted}"
        );
    }
}

#[test]
fn errors_are_told_once() {
    let Some((_keep, dir)) = corpus() else { return };
    let fails = |ranks: usize, arguments: &[String], code: i32| {
        let ran = ended(mpirun(&dir, ranks, arguments).spawn().unwrap(), SOON);
        assert_eq!(ran.code, code, "{}", ran.stderr);
        assert_eq!(ran.stdout, "");
        let told: Vec<&str> = ran
            .stderr
            .lines()
            .filter(|line| line.starts_with("error: "))
            .collect();
        assert_eq!(told.len(), 1, "{}", ran.stderr);
        told[0].to_owned()
    };
    let told = fails(2, &arguments([1, 4, 1, 1], "mesh/03-pretrain", 12), 2);
    assert!(
        told.contains("4 ranks") && told.contains("mpirun -n 4"),
        "{told}"
    );
    let told = fails(2, &["run".to_owned(), "mini".to_owned()], 2);
    assert!(told.contains("only `russet pretrain`"), "{told}");
    // The second of two ranks has a recipe that is not there.
    let mut both = arguments([1, 2, 1, 1], "one/03-pretrain", 12);
    both.extend(
        [
            ":",
            "-n",
            "1",
            env!("CARGO_BIN_EXE_russet"),
            "pretrain",
            "none.toml",
        ]
        .map(str::to_owned),
    );
    let told = fails(1, &both, 2);
    assert!(told.contains("rank 1 of 2: none.toml"), "{told}");
}
