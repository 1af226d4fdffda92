//! Masks computed beside the forward pass, on a thread that waits for them.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Guide, Next};
use crate::Result;

/// Below this a mask is made where it is needed: waking a thread and reading its answer cost about as much.
const WORTH: Duration = Duration::from_micros(40);

/// A guide, the answer so far, and what may be tried behind it, on their way to the thread.
struct Job {
    place: usize,
    guide: Guide,
    answer: Vec<u32>,
    drafts: Vec<u32>,
}

/// A guide on its way back, with what may come after the answer and after each draft.
pub(crate) struct Masks {
    /// What the caller gave with the guide.
    pub(crate) place: usize,
    /// The guide.
    pub(crate) guide: Guide,
    /// What may come after the answer, and after the answer with each further draft; shorter where a draft was refused.
    pub(crate) next: Result<Vec<Next>>,
}

/// A thread that computes masks.
pub(crate) struct Worker {
    jobs: Option<Sender<Job>>,
    done: Receiver<Masks>,
    thread: Option<JoinHandle<()>>,
    running: usize,
    ready: Vec<Masks>,
}

impl Worker {
    /// # Panics
    /// When the system gives no thread.
    pub(crate) fn new() -> Worker {
        let (jobs, received) = channel::<Job>();
        let (send, done) = channel();
        let work = move || {
            for job in received {
                if send.send(masks(job)).is_err() {
                    return; // nobody waits any more
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("masks".to_owned())
            .spawn(work)
            .expect("the system gives one more thread");
        Worker {
            jobs: Some(jobs),
            done,
            thread: Some(thread),
            running: 0,
            ready: Vec::new(),
        }
    }

    /// Begins the masks after `answer` and each of `drafts`; at once, where that costs less than handing them over.
    pub(crate) fn begin(&mut self, place: usize, guide: Guide, answer: Vec<u32>, drafts: Vec<u32>) {
        let job = Job {
            place,
            guide,
            answer,
            drafts,
        };
        if job.guide.spent() * (1 + job.drafts.len() as u32) < WORTH {
            self.ready.push(masks(job));
            return;
        }
        let jobs = self.jobs.as_ref().expect("it is taken in drop only");
        jobs.send(job).expect("the thread lives as long as this");
        self.running += 1;
    }

    /// Waits for all that was begun.
    pub(crate) fn finish(&mut self) -> Vec<Masks> {
        let mut ready = std::mem::take(&mut self.ready);
        for _ in 0..std::mem::take(&mut self.running) {
            ready.push(self.done.recv().expect("the thread answers every job"));
        }
        ready
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None; // ends its loop
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn masks(job: Job) -> Masks {
    let Job {
        place,
        mut guide,
        mut answer,
        drafts,
    } = job;
    let compute = || {
        let mut found = vec![guide.next(&answer)?];
        for draft in drafts {
            match found.last() {
                Some(Next::Tokens(allowed)) if allowed.has(draft) => answer.push(draft),
                _ => break,
            }
            found.push(guide.next(&answer)?);
        }
        Ok(found)
    };
    let next = compute();
    Masks { place, guide, next }
}
