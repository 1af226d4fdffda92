//! Ranks as threads of one process.
//!
//! ```text
//! post the parts ─▶ wait until all have ─▶ copy from where they lie ─▶ say so ─▶ wait until all have said so
//! ```
//! Parts are tensors, whose elements are shared by counting: nothing is staged, and a rank reads what it needs straight
//! from the others' buffers. The last wait makes a rank the only owner of its buffers again, at a moment that does not
//! depend on how fast the others are; only an all-gather that was begun ahead leaves it out.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::Tensor;
use crate::collective::{Collective, Gather, Lost, Pending, Reduce, Rows, add_part};
use crate::mesh::{Axis, Mesh, MeshShape};
use crate::tensor::DType;
use crate::workspace::Buffer;

/// Why [`run`] brought nothing home.
#[derive(Debug)]
pub enum Failure<E> {
    /// What a rank returned.
    Error(E),
    /// A rank panicked; its message has been printed where panics are.
    Panicked {
        /// Which.
        rank: usize,
        /// What it said.
        message: String,
    },
}

/// Runs `work` on every rank of a mesh, rank 0 on the calling thread, and returns what they bring, in order.
///
/// # Errors
/// When a rank fails; the others then end where they next wait for it.
///
/// # Panics
/// When the system has no thread to give.
pub fn run<R: Send, E: Send>(
    shape: MeshShape,
    work: impl Fn(Arc<Mesh>) -> Result<R, E> + Sync,
) -> Result<Vec<R>, Failure<E>> {
    run_with(shape, &work, &work)
}

/// As [`run`], with work of its own for rank 0, which need not be shared with other threads.
///
/// # Errors
/// As [`run`].
///
/// # Panics
/// As [`run`].
pub fn run_with<R: Send, E: Send>(
    shape: MeshShape,
    first: impl FnOnce(Arc<Mesh>) -> Result<R, E>,
    others: impl Fn(Arc<Mesh>) -> Result<R, E> + Sync,
) -> Result<Vec<R>, Failure<E>> {
    let world = Arc::new(World::default());
    let views = meshes(shape, &world);
    let told = |rank: usize, result: std::thread::Result<Result<R, E>>| {
        if !matches!(result, Ok(Ok(_))) {
            world.lose(rank);
        }
        result
    };
    let other = |mesh: Mesh| {
        let rank = mesh.rank();
        told(
            rank,
            catch_unwind(AssertUnwindSafe(|| others(Arc::new(mesh)))),
        )
    };
    let results = std::thread::scope(|scope| {
        let mut views = views.into_iter();
        let own = views.next().expect("a mesh has a rank");
        let others: Vec<_> = views
            .map(|mesh| {
                let name = format!("russet-rank-{}", mesh.rank());
                let builder = std::thread::Builder::new().name(name);
                let thread = builder.spawn_scoped(scope, || other(mesh));
                thread.expect("the system refused to start a thread for a rank")
            })
            .collect();
        let result = catch_unwind(AssertUnwindSafe(|| first(Arc::new(own))));
        let mut results = vec![told(0, result)];
        for thread in others {
            results.push(thread.join().expect("a rank catches its panics"));
        }
        results
    });
    let mut brought = Vec::with_capacity(results.len());
    let mut failure = None;
    for (rank, result) in results.into_iter().enumerate() {
        match result {
            Ok(Ok(result)) => brought.push(result),
            // An error says more than the panics that came of it.
            Ok(Err(error)) if !matches!(failure, Some(Failure::Error(_))) => {
                failure = Some(Failure::Error(error));
            }
            Ok(Err(_)) => {}
            Err(panic) if panic.is::<Lost>() => {}
            Err(panic) if failure.is_none() => {
                let message = message(&*panic);
                failure = Some(Failure::Panicked { rank, message });
            }
            Err(_) => {}
        }
    }
    match failure {
        Some(failure) => Err(failure),
        None => Ok(brought),
    }
}

/// What a panic said.
pub fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "it did not say why".to_owned())
}

/// Each rank's view of a mesh, in order.
fn meshes(shape: MeshShape, world: &Arc<World>) -> Vec<Mesh> {
    let mut meetings: HashMap<(&[Axis], Vec<usize>), Arc<Meeting>> = HashMap::new();
    let mut view = |rank| {
        Mesh::new(shape, rank, &mut |axes, members| {
            let meeting = meetings.entry((axes, members.to_vec())).or_insert_with(|| {
                let meeting = Arc::new(Meeting {
                    size: members.len(),
                    rounds: Mutex::default(),
                    changed: Condvar::new(),
                });
                let mut all = world
                    .meetings
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                all.push(meeting.clone());
                meeting
            });
            Box::new(Threads {
                meeting: meeting.clone(),
                world: world.clone(),
                rank: members
                    .iter()
                    .position(|&member| member == rank)
                    .expect("a member"),
                next: AtomicU64::new(0),
            })
        })
    };
    (0..shape.ranks()).map(&mut view).collect()
}

/// What all ranks share.
#[derive(Default)]
struct World {
    lost: Mutex<Option<usize>>,
    meetings: Mutex<Vec<Arc<Meeting>>>,
}

impl World {
    fn lost(&self) -> Option<usize> {
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends whoever waits for a rank, now or later. The first that is lost is the one that is named.
    fn lose(&self, rank: usize) {
        self.lost
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(rank);
        for meeting in &*self.meetings.lock().unwrap_or_else(PoisonError::into_inner) {
            // With the lock in hand nobody is between looking and sleeping.
            let _rounds = meeting.rounds();
            meeting.changed.notify_all();
        }
    }
}

/// Where the ranks of one group meet, once a call.
struct Meeting {
    size: usize,
    rounds: Mutex<HashMap<u64, Round>>, // by the number of the call
    changed: Condvar,
}

#[derive(Default)]
struct Round {
    parts: Vec<Option<Arc<Vec<Tensor>>>>, // of each rank
    posted: usize,
    taken: usize,
}

impl Meeting {
    fn rounds(&self) -> MutexGuard<'_, HashMap<u64, Round>> {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A rank's view of a group of threads.
struct Threads {
    meeting: Arc<Meeting>,
    world: Arc<World>,
    rank: usize,
    next: AtomicU64,
}

impl Threads {
    fn post(&self, parts: Vec<Tensor>) -> Call {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let Meeting { size, changed, .. } = &*self.meeting;
        let mut rounds = self.meeting.rounds();
        let round = rounds.entry(number).or_default();
        round.parts.resize(*size, None);
        round.parts[self.rank] = Some(Arc::new(parts));
        round.posted += 1;
        if round.posted == *size {
            changed.notify_all();
        }
        Call {
            meeting: self.meeting.clone(),
            world: self.world.clone(),
            number,
        }
    }

    /// One call from beginning to end: `read` sees the parts of all ranks.
    fn meet<R>(&self, parts: Vec<Tensor>, read: impl FnOnce(&[Arc<Vec<Tensor>>]) -> R) -> R {
        let call = self.post(parts);
        let result = call.read(read);
        call.until_all_have_read();
        result
    }
}

/// A call that was made.
struct Call {
    meeting: Arc<Meeting>,
    world: Arc<World>,
    number: u64,
}

impl Call {
    /// Waits until `ready`; unwinds where a rank is gone.
    fn wait<'a>(
        &'a self,
        ready: impl Fn(Option<&Round>, usize) -> bool,
    ) -> MutexGuard<'a, HashMap<u64, Round>> {
        let mut rounds = self.meeting.rounds();
        while !ready(rounds.get(&self.number), self.meeting.size) {
            if let Some(rank) = self.world.lost() {
                drop(rounds);
                resume_unwind(Box::new(Lost { rank }));
            }
            let woken = self.meeting.changed.wait(rounds);
            rounds = woken.unwrap_or_else(PoisonError::into_inner);
        }
        rounds
    }

    fn read<R>(&self, read: impl FnOnce(&[Arc<Vec<Tensor>>]) -> R) -> R {
        let rounds = self.wait(|round, size| round.is_some_and(|round| round.posted == size));
        let round = &rounds[&self.number];
        let parts: Vec<_> = round.parts.iter().flatten().cloned().collect();
        drop(rounds);
        let result = read(&parts);
        drop(parts);
        let mut rounds = self.meeting.rounds();
        let round = rounds.get_mut(&self.number).expect("until all have taken");
        round.taken += 1;
        if round.taken == self.meeting.size {
            rounds.remove(&self.number);
            self.meeting.changed.notify_all();
        }
        result
    }

    fn until_all_have_read(&self) {
        drop(self.wait(|round, _| round.is_none()));
    }
}

/// Copies the parts of all ranks into the wholes.
fn collect(parts: &[Arc<Vec<Tensor>>], into: Vec<(Rows, Buffer)>) -> Vec<Buffer> {
    let whole = |(message, (rows, mut out)): (usize, (Rows, Buffer))| {
        for (rank, of_rank) in parts.iter().enumerate() {
            let place = rows.part(parts.len(), rank);
            out[place].copy_from_slice(of_rank[message].data());
        }
        out
    };
    into.into_iter().enumerate().map(whole).collect()
}

fn of_bytes(bytes: &[u8]) -> Tensor {
    let part = Tensor::from_bytes(DType::U8, &[bytes.len()], bytes.to_vec());
    part.expect("as many bytes as there are")
}

fn copies(parts: &[Arc<Vec<Tensor>>]) -> Vec<Vec<u8>> {
    parts.iter().map(|part| part[0].bytes().to_vec()).collect()
}

fn unzip(messages: Vec<Gather>) -> (Vec<Tensor>, Vec<(Rows, Buffer)>) {
    let pair = |Gather { part, rows, out }| (part, (rows, out));
    messages.into_iter().map(pair).unzip()
}

/// An all-gather that was begun ahead.
struct Begun {
    call: Call,
    into: Vec<(Rows, Buffer)>,
}

impl Pending for Begun {
    fn wait(self: Box<Self>) -> Vec<Buffer> {
        let Begun { call, into } = *self;
        call.read(|parts| collect(parts, into))
    }
}

impl Collective for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.meeting.size
    }

    fn begin_all_gather(&self, messages: Vec<Gather>) -> Box<dyn Pending> {
        let (parts, into) = unzip(messages);
        Box::new(Begun {
            call: self.post(parts),
            into,
        })
    }

    fn all_gather(&self, messages: Vec<Gather>) -> Vec<Buffer> {
        let (parts, into) = unzip(messages);
        self.meet(parts, |parts| collect(parts, into))
    }

    fn all_to_all(&self, messages: &[(&Tensor, Rows)], out: &mut [Vec<f32>]) {
        let data = messages.iter().map(|(data, _)| (*data).clone()).collect();
        self.meet(data, |parts| {
            for (message, ((_, rows), out)) in messages.iter().zip(out).enumerate() {
                let own = rows.part(parts.len(), self.rank);
                for (rank, of_rank) in parts.iter().enumerate() {
                    let part = &of_rank[message].data()[own.clone()];
                    out[rank * own.len()..][..own.len()].copy_from_slice(part);
                }
            }
        });
    }

    fn shift(&self, data: &Tensor, out: &mut [f32]) {
        self.meet(vec![data.clone()], |parts| {
            let before = (self.rank + parts.len() - 1) % parts.len();
            out.copy_from_slice(parts[before][0].data());
        });
    }

    fn all_gather_bytes(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.meet(vec![of_bytes(bytes)], copies)
    }

    fn gather_bytes(&self, bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
        let first = self.rank == 0;
        self.meet(vec![of_bytes(bytes)], |parts| first.then(|| copies(parts)))
    }

    fn reduce_scatter(&self, messages: Vec<Reduce>) -> Vec<Buffer> {
        /// Numbers that are added up at a time: what is summed stays in the cache.
        const RUN: usize = 4096;
        let split = |Reduce { data, rows, out }| (data, (rows, out));
        let (data, into): (Vec<Tensor>, Vec<_>) = messages.into_iter().map(split).unzip();
        self.meet(data, |parts| {
            let sum = |(message, (rows, mut out)): (usize, (Rows, Buffer))| {
                let own = rows.part(parts.len(), self.rank);
                for (run, sum) in out.chunks_mut(RUN).enumerate() {
                    for (rank, of_rank) in parts.iter().enumerate() {
                        let start = own.start + run * RUN;
                        let part = &of_rank[message].data()[start..start + sum.len()];
                        add_part(sum, part, rank);
                    }
                }
                out
            };
            into.into_iter().enumerate().map(sum).collect()
        })
    }
}

#[cfg(test)]
mod tests;
