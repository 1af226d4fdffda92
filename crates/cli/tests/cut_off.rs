//! `palettize` that is killed, and run again.

mod common;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{golden, ok, russet};

const PALETTIZE: [&str; 13] = [
    "palettize",
    "--model",
    "stories",
    "--target-bpw",
    "3.6",
    "--bits",
    "2,3,4",
    "--set",
    "palettize.calibration_tokens=2048",
    "--set",
    "palettize.sequence=128",
    "--threads",
    "1",
];

fn files(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, |entries| {
        let names = entries.flatten().map(|entry| entry.file_name());
        names
            .filter(|name| !name.to_string_lossy().contains(".part"))
            .count()
    })
}

#[test]
fn a_killed_palettization_goes_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let model = golden("stories260K/stories260K.bin");
    let from = ["convert", "--from", "llama2c", "--to", "hf", "--in"];
    ok(
        dir,
        &[&from[..], &[model.to_str().unwrap(), "--out", "stories"]].concat(),
    );
    let tales = golden("../data/tales/heldout.jsonl.zst");
    let calibration = ["--calibration", tales.to_str().unwrap()];
    let arguments = |out: &'static str| [&PALETTIZE[..], &calibration, &["--out", out]].concat();
    ok(dir, &arguments("whole"));
    assert!(!dir.join("whole.state").exists(), "done, and still a state");

    // Killed when so many files are whole: within reading, weighing and refining; one process after another.
    let mut kills = 0;
    for count in [2, 5, 9, 12, 16] {
        let mut child = russet(dir, &arguments("cut"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let started = Instant::now();
        while files(&dir.join("cut.state")) < count && child.try_wait().unwrap().is_none() {
            assert!(
                started.elapsed() < Duration::from_secs(120),
                "nothing comes of it"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        kills += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
    }
    assert!(kills > 1, "it was done before it could be killed");
    ok(dir, &arguments("cut"));
    for file in [
        "model.safetensors",
        "config.json",
        "palettize.json",
        "README.md",
        "manifest.json",
    ] {
        let read = |out: &str| std::fs::read(dir.join(out).join(file)).unwrap();
        assert!(read("whole") == read("cut"), "{file} is another");
    }
    assert!(!dir.join("cut.state").exists());
}
