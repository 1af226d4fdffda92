//! A thread pool made for decoding: jobs of some microseconds, one after the other, on a shared machine.
//!
//! A job is a number of tasks. Threads claim tasks one by one, so that a thread which the operating
//! system has taken off its core delays at most the task it holds; nothing waits at a barrier for
//! every thread to show up (one kind of task waits for those before it, see `adapter`), and the caller finishes the job alone if no other thread wakes in time.
//! An idle worker spins for [`SPIN`] (longer than the gap between two layers) and then sleeps, so a
//! pool at rest costs nothing. A thread off its core still holds the task that it has claimed; so that a busy neighbour does not take
//! it off there, a worker offers its core between tasks, every two milliseconds.
//!
//! The pool knows nothing of what it runs. It has no queue and no futures: one job at a time.

use std::any::Any;
use std::cell::Cell;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::isa::{Isa, IsaError};
use shared::{AtomicBool, AtomicU32, Lock, UnsafeCell};

/// What threads meet by: the standard library's, or under `--cfg loom` those of a checker that tries the orders of their steps.
pub(crate) mod shared {
    #[cfg(loom)]
    pub use loom::{
        cell::UnsafeCell,
        sync::atomic::{AtomicBool, AtomicU32},
        sync::{Condvar, Mutex as Lock},
    };
    #[cfg(all(not(loom), not(target_os = "linux")))]
    pub use std::sync::Condvar;
    #[cfg(not(loom))]
    pub use std::sync::{
        Mutex as Lock,
        atomic::{AtomicBool, AtomicU32},
    };

    /// The standard library's, as the checker wants it used.
    #[cfg(not(loom))]
    #[derive(Default)]
    pub struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    #[cfg(not(loom))]
    impl<T> UnsafeCell<T> {
        pub fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
            read(self.0.get())
        }

        pub fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
            write(self.0.get())
        }
    }
}

/// How long an idle worker polls for the next job before it sleeps.
pub const SPIN: Duration = Duration::from_micros(50);

/// How long a worker keeps its core before it offers it to others, between two tasks. Where nobody waits for it, the offer
/// costs a system call. The system would take the core at a tick, 4 ms apart on Linux, in the middle of a task for which all others
/// wait until its thread is back; given away between tasks, the others go on.
const TURN: Duration = Duration::from_millis(2);

/// Threads that run one job at a time, the caller among them.
///
/// Results never depend on `threads`: callers cut work into tasks by shape alone.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the thread whose job is running.
    owner: Mutex<()>,
    order: Mutex<Order>,
    isa: Isa,
}

/// What a thread without a task asks for of the weights that are multiplied next: of the tasks' beginnings, as much as arrives
/// between two products.
const FETCH: usize = 64 << 10;

/// Which weights were multiplied after which. A decoder goes through its weights in the same order for every token, so what
/// followed last time follows again; where it does not, some lines were read in vain.
#[derive(Default)]
struct Order {
    /// Where weights begin, and the beginning and bytes a task of those after them.
    after: HashMap<usize, [usize; 2]>,
    last: usize,
}

impl Order {
    /// More beginnings than any model has products; then it learns anew.
    const MOST: usize = 1 << 14;

    /// Notes that the weights at `at` are multiplied now, and tells what follows, [0, 0] where that is not known.
    fn next(&mut self, at: usize, task: usize) -> [usize; 2] {
        if self.after.len() >= Order::MOST {
            self.after.clear();
        }
        let last = std::mem::replace(&mut self.last, at);
        self.after.insert(last, [at, task]);
        self.after.get(&at).copied().unwrap_or_default()
    }
}

impl Pool {
    /// A pool of `threads` (the caller is one of them) on the detected instruction set.
    ///
    /// # Errors
    /// See [`Isa::detect`].
    pub fn new(threads: usize) -> Result<Pool, IsaError> {
        Ok(Pool::with_isa(threads, Isa::detect()?))
    }

    /// A pool of `threads` (at least 1, the caller included) on a given instruction set.
    ///
    /// # Panics
    /// When the CPU lacks the instructions, or the system refuses another thread.
    pub fn with_isa(threads: usize, isa: Isa) -> Pool {
        assert!(
            isa <= Isa::best(),
            "this CPU cannot run {isa:?}, it offers {:?}",
            Isa::best()
        );
        let shared = Arc::new(Shared::default());
        let workers = (1..threads)
            .map(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("russet-{index}"))
                    .spawn(move || shared.work(index))
                    .expect("the system refused to start a worker thread")
            })
            .collect();
        Pool {
            shared,
            workers,
            owner: Mutex::default(),
            order: Mutex::default(),
            isa,
        }
    }

    /// Says that the next job multiplies the weights at `at`, so many bytes a task, from memory. Once it is over, threads that wait
    /// fetch what came after these weights last time: for the caller's work between two products memory would idle.
    pub(crate) fn streams(&self, at: *const u8, task: usize) {
        if self.workers.is_empty() {
            return; // nobody waits
        }
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let [next, task] = order.next(at.addr(), task);
        self.shared.next_task.store(task, Ordering::Relaxed);
        self.shared.next.store(next, Ordering::Relaxed);
    }

    /// Whether a task of the job that runs now has panicked: those not begun are then skipped, so whoever waits for one waits in vain.
    pub(crate) fn has_failed(&self) -> bool {
        self.shared.panicked.load(Ordering::Relaxed)
    }

    /// The instruction set that kernels run on this pool use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Threads, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(0) … task(tasks-1)`, each once, on any thread, and returns when all are done.
    ///
    /// A `run` inside a task of the same pool, and a job of one task, run inline on the calling
    /// thread. Jobs started by several threads at once run one after the other. Two pools must not
    /// call each other in a ring (a task of A running on B a task that runs on A): that would wait for itself.
    ///
    /// # Panics
    /// With the first panic of a task, after every claimed task has ended; tasks not yet claimed are
    /// skipped. The pool stays usable.
    pub fn run<F: Fn(usize) + Sync>(&self, tasks: usize, task: F) {
        if self.workers.is_empty() || tasks <= 1 || RUNNING.get() == Arc::as_ptr(&self.shared) {
            (0..tasks).for_each(task);
            return;
        }
        assert!(
            u32::try_from(tasks).is_ok(),
            "a job of {tasks} tasks exceeds 2^32 - 1"
        );
        let owner = self.owner.lock().unwrap_or_else(PoisonError::into_inner);
        let previous = RUNNING.replace(Arc::as_ptr(&self.shared));
        // SAFETY: we hold `owner`, and `task` outlives `finish`, which returns only when no thread
        // holds a task of this job and none is left to claim.
        unsafe {
            self.shared
                .publish(&task, tasks as u32, self.workers.len() as u32)
        };
        while let Some(claim) = self.shared.claim() {
            self.shared.execute(claim);
        }
        let panic = self.shared.finish();
        RUNNING.set(previous);
        drop(owner);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Cuts `out` into chunks of `chunk_len` (the last may be shorter) and runs `body(index, chunk)` for each.
    ///
    /// # Panics
    /// When `chunk_len` is 0, or as [`Pool::run`].
    pub fn for_each_chunk<T, F>(&self, out: &mut [T], chunk_len: usize, body: F)
    where
        T: Send,
        F: Fn(usize, &mut [T]) + Sync,
    {
        assert!(chunk_len > 0, "for_each_chunk needs chunks of at least 1");
        let len = out.len();
        let out = Disjoint::new(out);
        self.run(len.div_ceil(chunk_len), |index| {
            let start = index * chunk_len;
            // SAFETY: task `index` alone takes [index * chunk_len, (index + 1) * chunk_len).
            body(index, unsafe {
                out.range(start, chunk_len.min(len - start))
            });
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.shut_down();
        for worker in self.workers.drain(..) {
            // A worker catches every panic of a task, so joining cannot fail for one.
            let _ = worker.join();
        }
    }
}

/// A mutable slice that tasks share, each writing ranges that no other touches.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out only ranges that the caller of `range` vouches to be disjoint, so sharing it
// moves each element to one thread at most, for which `T: Send` suffices.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}
// SAFETY: as for a `&mut [T]`.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Disjoint {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            slice: PhantomData,
        }
    }

    /// The elements `[start, start + len)`; bounds are checked.
    ///
    /// # Safety
    /// While the result lives, no other range taken from here may overlap it.
    #[inline]
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn range(&self, start: usize, len: usize) -> &mut [T] {
        assert!(
            start <= self.len && len <= self.len - start,
            "range {start}+{len} of {}",
            self.len
        );
        // SAFETY: in bounds by the assertion, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    /// Where element `start` lies, for strided writes within `[start, start + len)`; bounds are checked.
    pub(crate) fn pointer(&self, start: usize, len: usize) -> *mut T {
        assert!(
            start <= self.len && len <= self.len - start,
            "range {start}+{len} of {}",
            self.len
        );
        // SAFETY: in bounds by the assertion.
        unsafe { self.start.add(start) }
    }
}

thread_local! {
    /// The pool whose task this thread is running, if any.
    static RUNNING: Cell<*const Shared> = const { Cell::new(std::ptr::null()) };
}

/// The job being run: a closure of unknown type and how to call it.
#[derive(Clone, Copy)]
struct Job {
    task: *const (),
    call: unsafe fn(*const (), usize),
    tasks: u32,
}

/// What a thread gets for having claimed a task.
struct Claim {
    task: *const (),
    call: unsafe fn(*const (), usize),
    index: usize,
}

/// One cache line pair to itself: Intel and AMD prefetch lines in pairs.
#[repr(align(128))]
#[derive(Default)]
struct Alone<T>(T);

/// State shared by the caller and the workers.
///
/// The life of a job: `publish` writes `job`, then `pending`, then `unclaimed`; a claim lowers
/// `unclaimed`; the end of a task lowers `pending`; the job is over when `pending` is 0. `job` is
/// read only by a thread that holds a claim, and written only when nobody can.
#[derive(Default)]
struct Shared {
    /// Tasks that nobody has claimed yet.
    unclaimed: Alone<AtomicU32>,
    /// Tasks that have not ended yet; the caller sleeps on it.
    pending: Alone<AtomicU32>,
    /// Rises with every job; idle workers sleep on it.
    epoch: Alone<AtomicU32>,
    /// Address of the weights that are probably multiplied next, and bytes of a task of that product; 0 where not known.
    next: AtomicUsize,
    next_task: AtomicUsize,
    sleepers: AtomicU32,
    caller_sleeps: AtomicBool,
    panicked: AtomicBool,
    shutdown: AtomicBool,
    job: UnsafeCell<Option<Job>>,
    panic: Lock<Option<Box<dyn Any + Send>>>,
    bed: Bed,
}

// SAFETY: `job` is the only field that is not Sync by itself; see the type's comment for who touches
// it when. The closure behind it is `Sync` by the bound on `Pool::run`.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl Shared {
    /// Offers a job to the workers.
    ///
    /// # Safety
    /// The caller holds `Pool::owner`, and keeps `task` alive until `finish` has returned.
    unsafe fn publish<F: Fn(usize) + Sync>(&self, task: &F, tasks: u32, workers: u32) {
        /// Calls the closure that `task` points to.
        unsafe fn call<F: Fn(usize)>(task: *const (), index: usize) {
            // SAFETY: `task` is the `&F` that `publish` was given, alive while a claim is held.
            unsafe { (*task.cast::<F>())(index) }
        }
        self.panicked.store(false, Ordering::Relaxed);
        // SAFETY: the previous job is over (`finish` saw `pending` = 0) and `unclaimed` is 0, so no
        // thread holds or can get a claim, and only claim holders read `job`.
        self.job.with_mut(|job| unsafe {
            *job = Some(Job {
                task: std::ptr::from_ref(task).cast(),
                call: call::<F>,
                tasks,
            });
        });
        self.pending.store(tasks, Ordering::Relaxed);
        // Release: whoever claims a task sees `job` and `pending`.
        self.unclaimed.store(tasks, Ordering::Release);
        // SeqCst on both sides: either a worker going to sleep sees the new epoch, or we see the sleeper.
        self.epoch.fetch_add(1, Ordering::SeqCst);
        in_one_order();
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            self.bed.wake(&self.epoch, workers.min(tasks - 1));
        }
    }

    /// Takes the next task of the current job, whichever that is by now.
    fn claim(&self) -> Option<Claim> {
        let mut unclaimed = self.unclaimed.load(Ordering::Relaxed);
        while unclaimed > 0 {
            match self.unclaimed.compare_exchange_weak(
                unclaimed,
                unclaimed - 1,
                // The store in `publish` heads a chain of such exchanges, so this sees its writes.
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    // SAFETY: the claim keeps `pending` above 0, so `job` is not written now.
                    let job = self.job.with(|job| unsafe { *job });
                    let Job { task, call, tasks } = job.expect("a claim implies a job");
                    let index = (tasks - unclaimed) as usize;
                    return Some(Claim { task, call, index });
                }
                Err(now) => unclaimed = now,
            }
        }
        None
    }

    /// Runs a claimed task and hands the claim back.
    fn execute(&self, claim: Claim) {
        if !self.panicked.load(Ordering::Relaxed) {
            // SAFETY: the claim keeps the closure alive: `finish` waits for `pending` to reach 0.
            let result = catch_unwind(AssertUnwindSafe(|| unsafe {
                (claim.call)(claim.task, claim.index)
            }));
            if let Err(payload) = result {
                let mut slot = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
                slot.get_or_insert(payload);
                self.panicked.store(true, Ordering::Relaxed);
            }
        }
        // SeqCst with `finish`: either it sees 0, or we see that it sleeps.
        if self.pending.fetch_sub(1, Ordering::SeqCst) == 1 {
            in_one_order();
            if self.caller_sleeps.load(Ordering::SeqCst) {
                self.bed.wake(&self.pending, 1);
            }
        }
    }

    /// Waits until every task has ended, and returns the first panic.
    fn finish(&self) -> Option<Box<dyn Any + Send>> {
        let pending = || self.pending.load(Ordering::Acquire);
        self.fetch(0, || pending() == 0);
        if !spin_until(|| pending() == 0) {
            self.caller_sleeps.store(true, Ordering::SeqCst);
            in_one_order();
            loop {
                let now = self.pending.load(Ordering::SeqCst);
                if now == 0 {
                    break;
                }
                self.bed.sleep_while(&self.pending, now);
            }
            self.caller_sleeps.store(false, Ordering::Relaxed);
        }
        if self.panicked.load(Ordering::Relaxed) {
            return self
                .panic
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
        }
        None
    }

    /// Asks for the beginning of the task that thread `index` will probably have of the next product, until `enough`.
    fn fetch(&self, index: usize, enough: impl Fn() -> bool) {
        let (at, task) = (
            self.next.load(Ordering::Relaxed),
            self.next_task.load(Ordering::Relaxed),
        );
        if at == 0 {
            return;
        }
        for from in (0..FETCH.min(task)).step_by(512) {
            if enough() {
                return;
            }
            for line in (from..from + 512).step_by(64) {
                prefetch(at.wrapping_add(index * task).wrapping_add(line));
            }
        }
    }

    /// Sends the workers home.
    fn shut_down(&self) {
        self.shutdown.store(true, Ordering::SeqCst);
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.bed.wake(&self.epoch, u32::MAX);
    }

    /// The life of worker `index`.
    fn work(&self, index: usize) {
        RUNNING.set(std::ptr::from_ref(self));
        let mut fetched = 0;
        let mut turn = Instant::now();
        loop {
            while let Some(claim) = self.claim() {
                self.execute(claim);
                if turn.elapsed() > TURN {
                    std::thread::yield_now();
                    turn = Instant::now();
                }
            }
            let called = || {
                self.unclaimed.load(Ordering::Relaxed) > 0 || self.shutdown.load(Ordering::Relaxed)
            };
            if fetched != self.next.load(Ordering::Relaxed) {
                fetched = self.next.load(Ordering::Relaxed);
                self.fetch(index, called);
            }
            if !spin_until(called) {
                self.sleepers.fetch_add(1, Ordering::SeqCst);
                in_one_order();
                let epoch = self.epoch.load(Ordering::SeqCst);
                if !called() {
                    self.bed.sleep_while(&self.epoch, epoch);
                }
                turn = Instant::now();
                self.sleepers.fetch_sub(1, Ordering::SeqCst);
            }
            if self.shutdown.load(Ordering::SeqCst) {
                return;
            }
        }
    }
}

/// Says to the checker that the operations before and after are in the one order that all threads agree on, as SeqCst makes them:
/// it takes SeqCst for less unless a fence says it.
#[inline(always)]
fn in_one_order() {
    #[cfg(loom)]
    loom::sync::atomic::fence(Ordering::SeqCst);
}

/// Asks for the line at an address, which need not be there, into L2.
#[inline]
pub(crate) fn prefetch(at: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch reads nothing and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::without_provenance(at)) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

impl<T> std::ops::Deref for Alone<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// Polls `condition` for [`SPIN`]; whether it came true.
fn spin_until(condition: impl Fn() -> bool) -> bool {
    if cfg!(loom) {
        return condition(); // an order in which it came true at the last look is among those that are tried
    }
    let mut started = None;
    loop {
        // Reading the clock costs as much as some twenty pauses.
        for _ in 0..32 {
            if condition() {
                return true;
            }
            std::hint::spin_loop();
        }
        let started: &Instant = started.get_or_insert_with(Instant::now);
        if started.elapsed() > SPIN {
            return false;
        }
    }
}

/// Where threads sleep until a word changes: the futex of Linux.
#[cfg(all(target_os = "linux", not(loom)))]
#[derive(Default)]
struct Bed;

#[cfg(all(target_os = "linux", not(loom)))]
impl Bed {
    /// Sleeps while `word` holds `value`; may also wake for nothing.
    fn sleep_while(&self, word: &AtomicU32, value: u32) {
        // SAFETY: the word is alive for the call; the kernel compares it with `value` atomically and
        // a null timeout waits for ever. Any error means "look again", which callers do.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                word.as_ptr(),
                libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                value,
                std::ptr::null::<libc::timespec>(),
            );
        }
    }

    /// Wakes up to `threads` that sleep on `word`.
    fn wake(&self, word: &AtomicU32, threads: u32) {
        let threads = i32::try_from(threads).unwrap_or(i32::MAX);
        // SAFETY: FUTEX_WAKE does not even read the word.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                word.as_ptr(),
                libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
                threads,
            );
        }
    }
}

/// Where threads sleep until a word changes: a condition variable, for systems other than Linux.
#[cfg(any(loom, not(target_os = "linux")))]
#[derive(Default)]
struct Bed {
    door: Lock<()>,
    bell: shared::Condvar,
}

#[cfg(any(loom, not(target_os = "linux")))]
impl Bed {
    /// Sleeps while `word` holds `value`; may also wake for nothing.
    fn sleep_while(&self, word: &AtomicU32, value: u32) {
        let door = self.door.lock().unwrap_or_else(PoisonError::into_inner);
        if word.load(Ordering::SeqCst) == value {
            drop(self.bell.wait(door));
        }
    }

    /// Wakes all: workers and caller share the bell, and look at their own word again.
    fn wake(&self, _word: &AtomicU32, _threads: u32) {
        drop(self.door.lock().unwrap_or_else(PoisonError::into_inner));
        self.bell.notify_all();
    }
}

/// Every order in which a caller and its workers can take their steps, as far as `LOOM_MAX_PREEMPTIONS` allows:
/// `RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=3 cargo test --release -p russet-kernels --lib orders`.
#[cfg(all(test, loom))]
mod orders {
    use super::*;

    /// Jobs of two tasks, one after the other, beside `workers`. The checker itself reports a thread that sleeps for ever, and a job
    /// that is written while somebody reads it.
    fn check(workers: usize, jobs: usize) {
        loom::model(move || {
            let shared = Arc::new(Shared::default());
            let threads: Vec<_> = (1..=workers)
                .map(|index| {
                    let shared = shared.clone();
                    loom::thread::spawn(move || shared.work(index))
                })
                .collect();
            for _ in 0..jobs {
                let counts = [AtomicUsize::new(0), AtomicUsize::new(0)];
                let task = |index: usize| {
                    counts[index].fetch_add(1, Ordering::Relaxed);
                };
                // SAFETY: nobody else publishes, and `task` outlives `finish`.
                unsafe { shared.publish(&task, 2, workers as u32) };
                while let Some(claim) = shared.claim() {
                    shared.execute(claim);
                }
                assert!(shared.finish().is_none(), "no task panics");
                assert_eq!(counts.map(AtomicUsize::into_inner), [1, 1]);
            }
            shared.shut_down();
            for thread in threads {
                thread.join().expect("a worker's end");
            }
        });
    }

    #[test]
    fn each_task_of_each_job_runs_once_and_nobody_sleeps_for_ever() {
        check(1, 2);
    }

    #[test]
    fn so_with_two_workers() {
        check(2, 1);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Runs `tasks` on a pool of `threads` and asserts that each ran once.
    fn check_each_once(pool: &Pool, tasks: usize) {
        let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        pool.run(tasks, |index| {
            counts[index].fetch_add(1, Ordering::Relaxed);
        });
        assert!(
            counts
                .iter()
                .all(|count| count.load(Ordering::Relaxed) == 1),
            "{tasks} tasks"
        );
    }

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 3, 5] {
            let pool = Pool::with_isa(threads, Isa::Scalar);
            for round in 0..2000 {
                check_each_once(&pool, [0, 1, 2, 3, 7, 64, 257][round % 7]);
            }
        }
    }

    #[test]
    fn what_followed_is_expected_to_follow() {
        let mut order = Order::default();
        let round = [100, 200, 300];
        for at in round {
            assert_eq!(order.next(at, at / 2), [0, 0], "nothing is known yet");
        }
        assert_eq!(order.next(100, 50), [200, 100]);
        assert_eq!(order.next(200, 100), [300, 150]);
        assert_eq!(order.next(300, 150), [100, 50]);
        // Another order from here on.
        assert_eq!(order.next(200, 100), [300, 150]);
        order.next(100, 50);
        assert_eq!(order.next(200, 100), [100, 50]);
    }

    #[test]
    fn workers_wake_from_sleep() {
        let pool = Pool::with_isa(3, Isa::Scalar);
        for _ in 0..20 {
            std::thread::sleep(SPIN * 4);
            check_each_once(&pool, 16);
        }
        // Both threads must take part: each of two tasks waits until the other has begun.
        let pool = Pool::with_isa(2, Isa::Scalar);
        std::thread::sleep(SPIN * 4);
        let begun = AtomicUsize::new(0);
        pool.run(2, |_| {
            begun.fetch_add(1, Ordering::SeqCst);
            while begun.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let pool = Pool::with_isa(3, Isa::Scalar);
        for round in 0..50 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(40, |index| {
                    assert!(index != round % 40, "task {index} fails")
                });
            }));
            let payload = result.expect_err("the panic was lost");
            let message = payload
                .downcast_ref::<String>()
                .expect("assert! panics with a String");
            assert_eq!(message, &format!("task {} fails", round % 40));
            check_each_once(&pool, 40);
        }
    }

    #[test]
    fn nested_jobs_run_inline() {
        let pool = Pool::with_isa(3, Isa::Scalar);
        let total = AtomicUsize::new(0);
        pool.run(8, |_| {
            let thread = std::thread::current().id();
            pool.run(8, |inner| {
                assert_eq!(std::thread::current().id(), thread);
                total.fetch_add(inner, Ordering::Relaxed);
            });
        });
        assert_eq!(total.load(Ordering::Relaxed), 8 * 28);
    }

    #[test]
    fn jobs_of_several_threads_run_one_after_the_other() {
        let pool = Pool::with_isa(2, Isa::Scalar);
        let busy: [AtomicUsize; 4] = Default::default();
        std::thread::scope(|scope| {
            for me in 0..busy.len() {
                let (pool, busy) = (&pool, &busy);
                scope.spawn(move || {
                    for _ in 0..200 {
                        pool.run(4, |_| {
                            busy[me].fetch_add(1, Ordering::SeqCst);
                            std::thread::yield_now();
                            for (other, count) in busy.iter().enumerate() {
                                let count = count.load(Ordering::SeqCst);
                                assert!(other == me || count == 0, "job {me} overlaps job {other}");
                            }
                            busy[me].fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
    }

    #[test]
    fn chunks_cover_the_slice_in_order() {
        let pool = Pool::with_isa(2, Isa::Scalar);
        let mut out = vec![0usize; 103];
        pool.for_each_chunk(&mut out, 10, |index, chunk| {
            for (offset, value) in chunk.iter_mut().enumerate() {
                *value = index * 10 + offset;
            }
        });
        assert!(out.iter().enumerate().all(|(index, &value)| index == value));
    }

    #[test]
    fn dropping_a_sleeping_pool_returns() {
        for _ in 0..20 {
            let pool = Pool::with_isa(4, Isa::Scalar);
            std::thread::sleep(SPIN * 2);
            drop(pool);
        }
    }
}
