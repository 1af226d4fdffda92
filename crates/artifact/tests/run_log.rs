//! The run log: what goes in comes out, also after a crash, also in TensorBoard.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use russet_artifact::tensorboard::{Value, records};
use russet_artifact::{RunLog, read_log};

/// `(step, name, value)` of every scalar, from both files, which must agree.
fn scalars(dir: &Path) -> Vec<(u64, String, f64)> {
    let lines: Vec<_> = read_log(dir)
        .unwrap()
        .into_iter()
        .flat_map(|event| {
            event
                .scalars
                .into_iter()
                .map(move |(name, value)| (event.step, name, value))
        })
        .collect();
    let file = fs::read(dir.join("events.out.tfevents.russet")).unwrap();
    let events: Vec<_> = records(&file)
        .into_iter()
        .flat_map(|(event, _)| {
            event
                .values
                .into_iter()
                .map(move |(name, value)| (event.step, name, value))
        })
        .filter_map(|(step, name, value)| match value {
            Value::Scalar(value) => Some((step as u64, name, f64::from(value))),
            Value::Text(_) => None,
        })
        .collect();
    let bits = |all: &[(u64, String, f64)]| -> Vec<_> {
        all.iter()
            .map(|(s, n, v)| (*s, n.clone(), v.to_bits()))
            .collect()
    };
    assert_eq!(bits(&lines), bits(&events));
    lines
}

fn steps(dir: &Path) -> Vec<u64> {
    scalars(dir).iter().map(|(step, ..)| *step).collect()
}

/// Steps 1 to `last`, with a loss that float32 holds exactly.
fn log_steps(log: &mut RunLog, steps: std::ops::RangeInclusive<u64>) {
    for step in steps {
        log.scalars(step, &[("loss", step as f64 / 4.0)]).unwrap();
    }
}

#[test]
fn a_line_is_one_flat_object() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = RunLog::create(dir.path()).unwrap();
    log.scalars(
        12,
        &[
            ("loss", 2.25),
            ("learning_rate", 3e-4),
            ("bad", f64::NAN),
            ("big", f64::INFINITY),
        ],
    )
    .unwrap();
    log.text(12, "sam\"ple", "Once\nupon").unwrap();
    let text = fs::read_to_string(dir.path().join("log.jsonl")).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert!(
        lines[0].starts_with("{\"step\":12,\"wall_seconds\":0.0"),
        "{}",
        lines[0]
    );
    assert!(
        lines[0].ends_with(
            ",\"loss\":2.25,\"learning_rate\":0.0003,\"bad\":\"NaN\",\"big\":\"Infinity\"}"
        ),
        "{}",
        lines[0]
    );
    assert!(
        lines[1].ends_with(",\"text\":{\"sam\\\"ple\":\"Once\\nupon\"}}"),
        "{}",
        lines[1]
    );
    let events = read_log(dir.path()).unwrap();
    assert_eq!(events[0].scalars["learning_rate"], 3e-4);
    assert!(events[0].scalars["bad"].is_nan() && events[0].scalars["big"] == f64::INFINITY);
    assert_eq!(events[1].texts["sam\"ple"], "Once\nupon");
}

#[test]
fn resume_drops_what_came_after_the_step() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = RunLog::create(dir.path()).unwrap();
    log_steps(&mut log, 1..=9);
    let seconds = log.wall_seconds();
    drop(log);
    let mut log = RunLog::resume(dir.path(), 6).unwrap();
    assert_eq!(steps(dir.path()), [1, 2, 3, 4, 5, 6]);
    log_steps(&mut log, 7..=8);
    assert_eq!(steps(dir.path()), [1, 2, 3, 4, 5, 6, 7, 8]);
    let walls: Vec<_> = read_log(dir.path())
        .unwrap()
        .iter()
        .map(|event| event.wall_seconds)
        .collect();
    assert!(walls.is_sorted() && log.wall_seconds() < seconds + 60.0);
    drop(log);
    // Nothing to drop: the bytes stay.
    let before = fs::read(dir.path().join("log.jsonl")).unwrap();
    drop(RunLog::resume(dir.path(), u64::MAX).unwrap());
    assert_eq!(fs::read(dir.path().join("log.jsonl")).unwrap(), before);
    drop(RunLog::create(dir.path()).unwrap());
    assert!(steps(dir.path()).is_empty());
}

#[test]
fn resume_without_a_log_begins_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = RunLog::resume(&dir.path().join("new/log"), 5).unwrap();
    log_steps(&mut log, 6..=6);
    assert_eq!(steps(&dir.path().join("new/log")), [6]);
    assert!(read_log(dir.path()).unwrap().is_empty());
}

#[test]
fn wherever_a_crash_tears_the_end_the_rest_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    log_steps(&mut RunLog::create(dir.path()).unwrap(), 1..=3);
    let files = ["log.jsonl", "events.out.tfevents.russet"].map(|name| dir.path().join(name));
    let whole = files.clone().map(|path| fs::read(path).unwrap());
    let lines = String::from_utf8(whole[0].clone()).unwrap();
    let last = [
        lines.lines().last().unwrap().len() + 1,
        records(&whole[1]).last().unwrap().1.len(),
    ];
    for cut in 1..=last[0].max(last[1]) {
        for ((path, whole), last) in files.iter().zip(&whole).zip(last) {
            fs::write(path, &whole[..whole.len() - cut.min(last)]).unwrap();
        }
        let mut log = RunLog::resume(dir.path(), 3).unwrap();
        assert_eq!(steps(dir.path()), [1, 2]);
        log_steps(&mut log, 3..=4);
        assert_eq!(steps(dir.path()), [1, 2, 3, 4]);
    }
}

#[test]
fn a_line_of_something_else_is_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    log_steps(&mut RunLog::create(dir.path()).unwrap(), 1..=3);
    let path = dir.path().join("log.jsonl");
    for line in [
        "hello",
        "{}",
        "{\"step\":-1,\"wall_seconds\":0}",
        "{\"step\":1,\"wall_seconds\":0,\"loss\":\"high\"}",
        "[1]",
    ] {
        let before = fs::read(&path).unwrap();
        let mut file = fs::File::options().append(true).open(&path).unwrap();
        writeln!(file, "{line}").unwrap();
        let error = RunLog::resume(dir.path(), 2).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!(
                "{}: line 4 is not a line of a run log",
                path.display()
            )),
            "{error}"
        );
        fs::write(&path, before).unwrap();
    }
}

#[test]
fn names_that_would_clash_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = RunLog::create(dir.path()).unwrap();
    for name in ["", "step", "wall_seconds", "text"] {
        assert!(
            log.scalars(1, &[(name, 1.0)]).is_err() && log.text(1, name, "").is_err(),
            "{name}"
        );
    }
    let twice = log
        .scalars(1, &[("loss", 1.0), ("loss", 2.0)])
        .unwrap_err()
        .to_string();
    assert!(
        twice.contains("`loss` is logged twice at step 1"),
        "{twice}"
    );
    assert!(log.scalars(u64::MAX, &[("loss", 1.0)]).is_err());
    assert!(steps(dir.path()).is_empty());
}

/// A full disk tears no line: what was whole stays whole, and logging goes on when there is room.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_whole_lines() {
    const CHILD: &str = "RUSSET_RUN_LOG_TEST_CHILD";
    if let Ok(dir) = std::env::var(CHILD) {
        let mut log = RunLog::create(Path::new(&dir)).unwrap();
        let error = (1..)
            .find_map(|step| log.scalars(step, &[("loss", 1.0)]).err())
            .unwrap()
            .to_string();
        assert!(error.contains("raise the file size limit"), "{error}");
        log.scalars(u64::from(u32::MAX), &[]).unwrap_err();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let status = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "a_full_disk_leaves_whole_lines"])
        .env(CHILD, dir.path())
        .output()
        .unwrap();
    assert!(
        status.status.success(),
        "{}",
        String::from_utf8_lossy(&status.stdout)
    );
    let text = fs::read_to_string(dir.path().join("log.jsonl")).unwrap();
    assert!(
        text.len() > 2000 && text.ends_with("}\n"),
        "{} bytes",
        text.len()
    );
    assert!(read_log(dir.path()).unwrap().len() > 20);
}

/// What TensorBoard itself reads out of the file, if a Python that has it is named.
#[test]
fn tensorboard_reads_the_events() {
    let Some(python) = std::env::var_os("RUSSET_PYTHON") else {
        eprintln!(
            "skipped: set RUSSET_PYTHON to a Python with the `tensorboard` package to read the file with it"
        );
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut log = RunLog::create(dir.path()).unwrap();
    log_steps(&mut log, 1..=5);
    log.text(5, "sample", "Once upon a *time*").unwrap();
    drop(log);
    let mut log = RunLog::resume(dir.path(), 5).unwrap();
    log.scalars(300, &[("loss", 0.5), ("train/learning_rate", 3e-4)])
        .unwrap();
    let script = r#"
import sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
accumulator = EventAccumulator(sys.argv[1], size_guidance={"tensors": 0, "scalars": 0})
accumulator.Reload()
tags = accumulator.Tags()
for tag in sorted(tags["scalars"]):
    for event in accumulator.Scalars(tag):
        print(tag, event.step, event.wall_time > 1.7e9, f"{event.value:.6g}")
for tag in sorted(tags["tensors"]):
    plugin = accumulator.SummaryMetadata(tag).plugin_data.plugin_name
    for event in accumulator.Tensors(tag):
        shape = [dim.size for dim in event.tensor_proto.tensor_shape.dim]
        print(plugin, tag, event.step, shape, event.tensor_proto.string_val[0].decode())
"#;
    let output = Command::new(&python)
        .args(["-c", script])
        .arg(dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let expected = "loss 1 True 0.25\nloss 2 True 0.5\nloss 3 True 0.75\nloss 4 True 1\nloss 5 True 1.25\nloss 300 True 0.5\n\
                    train/learning_rate 300 True 0.0003\ntext sample 5 [1] Once upon a *time*\n";
    assert_eq!(text, expected);
}
