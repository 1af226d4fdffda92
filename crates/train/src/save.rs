//! Writing to the disk while training goes on.
//!
//! The loop copies what is to be written (a *snapshot*) and hands it to a thread, which writes it as a whole or not at all.
//! Jobs are done in order, one at a time; when one is running and one waits, the loop waits with a third, so memory holds
//! three snapshots at most. What a job came to is asked for between steps: a save that fails leaves the one before in its place,
//! and training goes on to the next.

use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::{Builder, JoinHandle};

use crate::{Result, TrainError};

/// Something to be written.
pub struct Job {
    /// What it is, for messages: "the state of step 200".
    pub what: String,
    /// The writing.
    pub work: Box<dyn FnOnce() -> Result<()> + Send>,
}

/// What a job has come to.
#[derive(Debug)]
pub struct Written {
    /// [`Job::what`].
    pub what: String,
    /// Whether it is on the disk.
    pub result: Result<()>,
}

/// The thread that writes.
#[derive(Debug)]
pub struct Writer {
    jobs: Option<SyncSender<Job>>,
    written: Receiver<Written>,
    thread: Option<JoinHandle<()>>,
    pending: usize,
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn new() -> Result<Writer> {
        let (jobs, next) = sync_channel::<Job>(1);
        let (done, written) = channel();
        let work = move || {
            for Job { what, work } in next {
                let result = work();
                // Nobody listens where the loop has failed; what is on the disk is on the disk.
                let _ = done.send(Written { what, result });
            }
        };
        let thread = Builder::new().name("russet-writer".to_owned()).spawn(work);
        let thread = thread.map_err(TrainError::Thread)?;
        Ok(Writer {
            jobs: Some(jobs),
            written,
            thread: Some(thread),
            pending: 0,
        })
    }

    /// Hands a job over; waits while one is running and another waits.
    pub fn submit(&mut self, job: Job) {
        let jobs = self.jobs.as_ref().expect("there until this is dropped");
        if jobs.send(job).is_err() {
            self.join();
        }
        self.pending += 1;
    }

    /// What has been written since this was asked last.
    pub fn written(&mut self) -> Vec<Written> {
        let written: Vec<Written> = self.written.try_iter().collect();
        self.pending -= written.len();
        written
    }

    /// Waits for all jobs; what has been written since this was asked last.
    pub fn wait(&mut self) -> Vec<Written> {
        let mut written = self.written();
        while self.pending > 0 {
            match self.written.recv() {
                Ok(one) => written.push(one),
                Err(_) => self.join(),
            }
            self.pending -= 1;
        }
        written
    }

    /// Ends the thread; a panic of it goes on here.
    fn join(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && let Err(panic) = thread.join()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Writer {
    /// Waits for what is being written.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic has been told by its own message, and this may be the drop of another.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    fn job(name: &str, work: impl FnOnce() -> Result<()> + Send + 'static) -> Job {
        Job {
            what: name.to_owned(),
            work: Box::new(work),
        }
    }

    #[test]
    fn jobs_are_done_in_order_and_the_caller_goes_on() {
        let mut writer = Writer::new().unwrap();
        let gate = Arc::new(Mutex::new(Vec::new()));
        let held = gate.lock().unwrap();
        for name in ["a", "b"] {
            let gate = gate.clone();
            writer.submit(job(name, move || {
                gate.lock().unwrap().push(name);
                Ok(())
            }));
        }
        assert!(writer.written().is_empty(), "both wait for the gate");
        drop(held);
        let names: Vec<String> = writer.wait().into_iter().map(|one| one.what).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(*gate.lock().unwrap(), ["a", "b"]);
        assert!(writer.wait().is_empty());
    }

    #[test]
    fn what_fails_is_told_and_the_next_is_done() {
        let mut writer = Writer::new().unwrap();
        writer.submit(job("full", || {
            Err(TrainError::setting("train.steps", "is an error"))
        }));
        writer.submit(job("good", || Ok(())));
        let results: Vec<bool> = writer.wait().iter().map(|one| one.result.is_ok()).collect();
        assert_eq!(results, [false, true]);
    }

    #[test]
    fn a_dropped_writer_finishes_its_work() {
        let done = Arc::new(Mutex::new(false));
        let mut writer = Writer::new().unwrap();
        let flag = done.clone();
        writer.submit(job("last", move || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            *flag.lock().unwrap() = true;
            Ok(())
        }));
        drop(writer);
        assert!(*done.lock().unwrap());
    }
}
