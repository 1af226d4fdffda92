//! How a long job says how far it is, and how it is told to stop.
//!
//! Bars, JSON lines and signal handlers are the command line's business; here are only the words they share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where a long job reports. Every call is cheap enough for every step; how often anything shows is the listener's choice.
pub trait Progress: Send {
    /// A job begins: its name, how much there is to do if that is known, and in what ("steps", "tokens", "bytes").
    fn begin(&mut self, stage: &str, total: Option<u64>, unit: &str);
    /// So much of it was done in an earlier run: the pace, and with it the time that remains, counts from here.
    fn resumed(&mut self, _done: u64) {}
    /// So much of it is done, and these are the numbers to show beside it.
    fn update(&mut self, done: u64, fields: &[(&str, f64)]);
    /// Something a person should read.
    fn message(&mut self, text: &str);
    /// The job that began last has ended, well or badly.
    fn end(&mut self);
}

/// Says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn begin(&mut self, _: &str, _: Option<u64>, _: &str) {}
    fn update(&mut self, _: u64, _: &[(&str, f64)]) {}
    fn message(&mut self, _: &str) {}
    fn end(&mut self) {}
}

/// A request to stop, shared by its clones. Long loops look at it once a step, put down what they have, and return.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Not raised.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks every holder of a clone to stop.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether anyone has asked.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// The flag itself, for a signal handler to set.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clone_sees_the_request() {
        let interrupt = Interrupt::new();
        let clone = interrupt.clone();
        assert!(!clone.is_raised());
        interrupt.flag().store(true, Ordering::Relaxed);
        assert!(clone.is_raised() && interrupt.is_raised());
        let other = Interrupt::new();
        assert!(!other.is_raised());
    }
}
