//! (being written: work claiming, short spin, futex)
use crate::isa::{Isa, IsaError};

/// Threads that run one job at a time.
pub struct Pool {
    threads: usize,
    isa: Isa,
}

impl Pool {
    /// A pool of `threads` (the caller is one of them) on the detected instruction set.
    ///
    /// # Errors
    /// See [`Isa::detect`].
    pub fn new(threads: usize) -> Result<Pool, IsaError> {
        Ok(Pool::with_isa(threads, Isa::detect()?))
    }
    /// A pool on a given instruction set.
    pub fn with_isa(threads: usize, isa: Isa) -> Pool {
        Pool { threads: threads.max(1), isa }
    }
    /// The instruction set that kernels run on this pool use.
    pub fn isa(&self) -> Isa {
        self.isa
    }
    /// Threads, the caller included.
    pub fn threads(&self) -> usize {
        self.threads
    }
    /// Runs `task(0) … task(tasks-1)`, each once, on any thread, and returns when all are done.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        for index in 0..tasks {
            task(index);
        }
    }
}
