//! A model of two layers, a crude package of it, and the text that it learnt.

use std::path::PathBuf;

use russet_artifact::{Interrupt, NoProgress, Progress};
use russet_train::{Outcome, Plan, Resume, Settings, pretrain};

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
