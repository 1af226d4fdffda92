//! Where tasks of one job meet without a job's end between them: the last to arrive does what is left to do, and whoever goes on waits for
//! it.

use std::sync::atomic::Ordering;

use crate::pool::shared::{AtomicBool, AtomicU32};

/// Tasks that have not arrived, and whether what is left to do then has been done.
pub(super) struct Meeting {
    left: AtomicU32,
    done: AtomicBool,
}

impl Meeting {
    /// Of so many tasks; of none there is nothing to wait for.
    pub fn of(tasks: usize) -> Meeting {
        Meeting {
            left: AtomicU32::new(u32::try_from(tasks).expect("tasks of a job")),
            done: AtomicBool::new(tasks == 0),
        }
    }

    /// How many have not arrived.
    pub fn left(&self) -> usize {
        self.left.load(Ordering::Relaxed) as usize
    }

    /// A task has ended. The last one does what is left to do.
    pub fn arrive(&self, last: impl FnOnce()) {
        // Acquire: who arrives last sees what all have written.
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            last();
            self.done.store(true, Ordering::Release);
        }
    }

    /// Waits until all is done, or `given_up`; whether it is. Whoever waits must have seen every task taken.
    pub fn wait(&self, given_up: impl Fn() -> bool) -> bool {
        let mut looks = 0;
        while !self.done.load(Ordering::Acquire) {
            if given_up() {
                return false;
            }
            looks += 1;
            pause(looks);
        }
        true
    }
}

fn pause(looks: usize) {
    #[cfg(loom)]
    let _ = (looks, loom::thread::yield_now());
    #[cfg(not(loom))]
    match looks % 1024 {
        0 => std::thread::yield_now(), // one of them is off its core
        _ => std::hint::spin_loop(),
    }
}

/// Every order of the steps of two threads, as for the pool's. Two that wait for a third would go round for ever.
#[cfg(all(test, loom))]
mod orders {
    use super::*;
    use loom::cell::UnsafeCell;
    use std::sync::Arc;

    struct Job {
        meeting: Meeting,
        parts: [UnsafeCell<u32>; 2],
        total: UnsafeCell<u32>,
    }

    impl Job {
        fn down(&self, task: usize) {
            // SAFETY: a task is one thread's; the checker reports whoever reads meanwhile.
            self.parts[task].with_mut(|part| unsafe { *part = 1 + task as u32 });
            self.meeting.arrive(|| {
                let parts = self.parts.each_ref();
                // SAFETY: as above.
                let sum = parts.map(|part| part.with(|part| unsafe { *part }));
                self.total
                    .with_mut(|total| unsafe { *total = sum.iter().sum() });
            });
        }

        fn up(&self) {
            assert!(self.meeting.wait(|| false));
            // SAFETY: as above.
            assert_eq!(self.total.with(|total| unsafe { *total }), 3);
        }
    }

    #[test]
    fn whoever_goes_on_sees_what_came_of_all() {
        loom::model(|| {
            let job = Arc::new(Job {
                meeting: Meeting::of(2),
                parts: [UnsafeCell::new(0), UnsafeCell::new(0)],
                total: UnsafeCell::new(0),
            });
            let threads = [0, 1].map(|task| {
                let job = job.clone();
                loom::thread::spawn(move || {
                    job.down(task);
                    job.up();
                })
            });
            for thread in threads {
                thread.join().expect("a thread's end");
            }
        });
    }

    #[test]
    fn nobody_waits_for_what_was_given_up() {
        loom::model(|| {
            let failed = Arc::new(AtomicBool::new(false));
            let meeting = Arc::new(Meeting::of(1));
            let other = {
                let (failed, meeting) = (failed.clone(), meeting.clone());
                loom::thread::spawn(move || meeting.wait(|| failed.load(Ordering::Relaxed)))
            };
            failed.store(true, Ordering::Relaxed);
            assert!(!other.join().expect("its end"));
        });
    }
}
