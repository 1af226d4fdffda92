//! A model of two layers, a crude package of it, and the text that it learnt.

use std::fs;
use std::path::{Path, PathBuf};

use russet_artifact::{Artifact, Interrupt, Kind, NoProgress, Progress};
use russet_train::{Outcome, Plan, Resume, Settings, pretrain};

use serde::de::DeserializeOwned;

use crate::common;

/// A folder with tokens, a checkpoint and a package of it.
pub fn packaged() -> (tempfile::TempDir, PathBuf) {
    let keep = tempfile::tempdir().unwrap();
    let dir = keep.path().to_owned();
    common::tokens(&dir);
    let settings: Settings = common::settings(&["train.steps=120"]);
    let plan = Plan::new(settings, &dir.join("tokens")).unwrap();
    let (out, tool) = (dir.join("checkpoint"), common::tool());
    let interrupt = Interrupt::new();
    let trained = pretrain(
        &plan,
        &out,
        &tool,
        Resume::Continue,
        &mut NoProgress,
        &interrupt,
    );
    assert!(matches!(trained, Ok(Outcome::Finished(_))));
    common::package(&out);
    (keep, dir)
}

/// Takes an artifact away; its report and its identity.
pub fn taken<T: DeserializeOwned>(out: &Path, kind: Kind, report: &str) -> (T, String) {
    let artifact = Artifact::open(out, kind).unwrap();
    artifact.verify().unwrap();
    let report = fs::read(out.join(report)).unwrap();
    fs::remove_dir_all(out).unwrap();
    let identity = artifact.manifest_hash().to_string();
    (serde_json::from_slice(&report).unwrap(), identity)
}

/// Raises the wish to stop when it has heard of a step of the run of that name, and remembers what was begun.
pub struct StopAt {
    pub step: u64,
    pub run: &'static str,
    pub interrupt: Interrupt,
    pub begun: Vec<String>,
}

impl Progress for StopAt {
    fn begin(&mut self, what: &str, _: Option<u64>, _: &str) {
        self.begun.push(what.to_owned());
    }
    fn update(&mut self, done: u64, _: &[(&str, f64)]) {
        if done == self.step && self.begun.last().is_some_and(|what| what == self.run) {
            self.interrupt.raise();
        }
    }
    fn message(&mut self, _: &str) {}
    fn end(&mut self) {}
}
