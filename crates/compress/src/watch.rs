//! Telling how far the work is, and looking whether it should stop.

use russet_artifact::{Interrupt, Progress};

use crate::CompressError;

/// Progress and interrupt, side by side.
pub(crate) struct Watch<'a> {
    progress: &'a mut dyn Progress,
    interrupt: &'a Interrupt,
    done: u64,
}

impl<'a> Watch<'a> {
    /// Over what the caller gave.
    pub fn new(progress: &'a mut dyn Progress, interrupt: &'a Interrupt) -> Watch<'a> {
        Watch {
            progress,
            interrupt,
            done: 0,
        }
    }

    /// Says a sentence between parts.
    pub fn say(&mut self, sentence: &str) {
        self.progress.message(sentence);
    }

    /// Runs a named part of the work, which ends for the listener however it ends.
    pub fn part<T>(
        &mut self,
        name: &str,
        total: usize,
        unit: &str,
        work: impl FnOnce(&mut Watch) -> Result<T, CompressError>,
    ) -> Result<T, CompressError> {
        self.progress.begin(name, Some(total as u64), unit);
        self.done = 0;
        let result = self.step(0, &[]).and_then(|()| work(self));
        self.progress.end();
        result
    }

    /// So much more was done in an earlier run.
    pub fn resumed(&mut self, more: usize) {
        self.done += more as u64;
        self.progress.resumed(self.done);
    }

    /// So much more is done.
    ///
    /// # Errors
    /// When somebody asked to stop.
    pub fn step(&mut self, more: usize, fields: &[(&str, f64)]) -> Result<(), CompressError> {
        self.done += more as u64;
        self.progress.update(self.done, fields);
        self.look()
    }

    /// Looks whether the work should stop, where no part of it is under way.
    ///
    /// # Errors
    /// When somebody asked to stop.
    pub fn look(&self) -> Result<(), CompressError> {
        if self.interrupt.is_raised() {
            Err(CompressError::Interrupted)
        } else {
            Ok(())
        }
    }
}
