//! Runs of the toy recipe, whole and stopped.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::fs;
use std::path::{Path, PathBuf};

use russet_artifact::{Artifact, Interrupt, Kind, NoProgress, Progress};
use russet_train::{Outcome, Plan, Resume, TrainError, TrainReport, pretrain};

use crate::common;

pub fn run_as(
    dir: &Path,
    changes: &[&str],
    resume: Resume,
    interrupt: &Interrupt,
) -> Result<Outcome, TrainError> {
    let plan = Plan::new(common::settings(changes), &dir.join("tokens"))?;
    pretrain(
        &plan,
        &dir.join("03-pretrain"),
        &common::tool(),
        resume,
        &mut NoProgress,
        interrupt,
    )
}

pub fn run(dir: &Path, changes: &[&str]) -> Result<Outcome, TrainError> {
    run_as(dir, changes, Resume::Continue, &Interrupt::new())
}

/// Runs anew, with what an earlier run left removed.
pub fn run_anew(dir: &Path, changes: &[&str]) -> TrainReport {
    finished(run_as(dir, changes, Resume::Restart, &Interrupt::new()))
}

/// The report of a run that did.
pub fn finished(outcome: Result<Outcome, TrainError>) -> TrainReport {
    match outcome {
        Ok(Outcome::Finished(report)) => report,
        other => panic!("the run should have finished, not {other:?}"),
    }
}

/// Hash of the manifest, which stands for every byte of the checkpoint.
pub fn result(dir: &Path) -> String {
    let artifact = Artifact::open(&dir.join("03-pretrain"), Kind::Checkpoint).unwrap();
    artifact.verify().unwrap();
    artifact.manifest_hash().to_string()
}

/// What lies in a folder, in order.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A folder with tokens in it.
pub fn corpus() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    common::tokens(dir.path());
    let path = dir.path().to_owned();
    (dir, path)
}

/// Stops the run when it has done so many steps.
struct StopAt(u64, Interrupt);

impl Progress for StopAt {
    fn begin(&mut self, _: &str, _: Option<u64>, _: &str) {}
    fn update(&mut self, done: u64, _: &[(&str, f64)]) {
        if done == self.0 {
            self.1.raise();
        }
    }
    fn message(&mut self, _: &str) {}
    fn end(&mut self) {}
}

/// Stops a run after a step.
pub fn stop_at(dir: &Path, changes: &[&str], step: u64) {
    let plan = Plan::new(common::settings(changes), &dir.join("tokens")).unwrap();
    let interrupt = Interrupt::new();
    let mut progress = StopAt(step, interrupt.clone());
    let out = dir.join("03-pretrain");
    let outcome = pretrain(
        &plan,
        &out,
        &common::tool(),
        Resume::Continue,
        &mut progress,
        &interrupt,
    )
    .unwrap();
    assert_eq!(outcome, Outcome::Interrupted { step });
    assert!(
        !out.exists()
            && dir
                .join("03-pretrain.state/rank-00000.safetensors")
                .exists()
    );
}
