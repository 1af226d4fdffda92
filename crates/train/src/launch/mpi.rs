//! Ranks as processes that MPI started together.
//!
//! ```text
//! the rank's thread   all-gathers, all-to-alls, shifts: as they are called, one after another
//! a thread a group    all-gathers that are begun ahead: in order, while the rank computes
//! ```
//! Communicators stay on the thread that made them, so each group has two: one of the rank's thread, and one of the thread that
//! brings parameters ahead, which starts with the first all-gather of its group that is begun. A request of MPI that outlives
//! the call would have to borrow buffers that the safe interface cannot lend for so long; a blocking call on a thread of its own
//! needs no such loan, and makes progress by itself, where Open MPI's requests move on inside of other calls only. It takes a
//! library that lets several threads call at once (`MPI_THREAD_MULTIPLE`); with any other the call is made when it is begun.
//!
//! Sums are not MPI's: they are taken above the primitives in the order of the ranks, so a mesh of processes computes the
//! bits of a mesh of threads.
//!
//! A rank that fails ends all by `MPI_Abort`, and the launcher ends the others of a rank that is killed. So nothing here waits
//! for one that is gone, and [`russet_tensor::collective::Lost`] is never said.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{JoinHandle, available_parallelism};

use mpi::Threading;
use mpi::datatype::{Partition, PartitionMut};
use mpi::environment::{Universe, initialize_with_threading, processor_name};
use mpi::point_to_point::send_receive_into;
use mpi::topology::{Group as _, SimpleCommunicator};
use mpi::traits::*;
use russet_tensor::collective::{Collective, Gather, Pending, Rows};
use russet_tensor::mesh::Mesh;
use russet_tensor::{Buffer as Floats, MeshShape, Tensor};

use super::Started;
use crate::{Result, TrainError};

/// Numbers of a message from which it travels alone, straight to its place; smaller ones of a call are packed together, since
/// a message costs some microseconds however short it is.
const ALONE: usize = 1 << 16;

/// Bytes of a word that travels with its length; a longer one takes a second call.
const WORD: usize = 256;

/// The most bytes of one message between two ranks: MPI counts in 31 bits.
const CHUNK: usize = 1 << 30;

thread_local! {
    /// The communicators of the rank's thread.
    static COMMUNICATORS: RefCell<Vec<SimpleCommunicator>> = const { RefCell::new(Vec::new()) };
}

/// All processes that MPI started together, as one of them sees them. Stays on the thread that began it.
pub struct World {
    concurrent: bool,
    local_size: usize,
    cores: usize,
    groups: AtomicI32, // made so far, the same number on every rank
    ahead: Arc<Mutex<Vec<JoinHandle<()>>>>,
    _universe: Universe, // MPI ends when it is dropped, after all else
}

impl World {
    pub(super) fn begin(started: &Started) -> Result<World> {
        let Some((universe, threading)) = initialize_with_threading(Threading::Multiple) else {
            return Err(TrainError::Launch(format!(
                "{} started this process, but MPI was begun in it before",
                started.by
            )));
        };
        let here = universe.world().split_shared(0);
        let local_size = here.size() as usize;
        Ok(World {
            concurrent: threading == Threading::Multiple,
            local_size,
            cores: own_cores(&here),
            groups: AtomicI32::new(0),
            ahead: Arc::default(),
            _universe: universe,
        })
    }

    /// Processes.
    pub fn size(&self) -> usize {
        SimpleCommunicator::world().size() as usize
    }

    /// This one.
    pub fn rank(&self) -> usize {
        SimpleCommunicator::world().rank() as usize
    }

    /// Those on this machine.
    pub fn local_size(&self) -> usize {
        self.local_size
    }

    /// The cores that this one may use: those that the launcher bound it to, shared with others that it bound to the same.
    pub fn cores(&self) -> usize {
        self.cores
    }

    /// Ends all of them, with an exit code.
    pub fn abort(&self, code: i32) -> ! {
        SimpleCommunicator::world().abort(code)
    }

    /// This rank's view of a mesh of all processes.
    pub fn mesh(&self, shape: MeshShape) -> Arc<Mesh> {
        let rank = self.rank();
        Arc::new(Mesh::new(shape, rank, &mut |_, members| {
            Box::new(self.join(rank, members))
        }))
    }

    /// The machine of each process, in the order of the ranks.
    pub(crate) fn machines(&self) -> Vec<String> {
        let name = processor_name().unwrap_or_default();
        let names = words(&SimpleCommunicator::world(), name.as_bytes());
        let text = |name: Vec<u8>| String::from_utf8_lossy(&name).into_owned();
        names.into_iter().map(text).collect()
    }

    fn join(&self, rank: usize, members: &[usize]) -> Mpi {
        let number = self.groups.fetch_add(1, Ordering::Relaxed);
        let place = members.iter().position(|&member| member == rank);
        let members: Vec<i32> = members.iter().map(|&member| member as i32).collect();
        let communicator = meet(&members, 2 * number);
        let index = COMMUNICATORS.with_borrow_mut(|all| {
            all.push(communicator);
            all.len() - 1
        });
        Mpi {
            index,
            number,
            rank: place.expect("a member"),
            members,
            concurrent: self.concurrent,
            jobs: OnceLock::new(),
            ahead: self.ahead.clone(),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // The others would wait for this one.
        if std::thread::panicking() {
            self.abort(101); // as a panic of a process alone
        }
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in ahead.drain(..) {
            let _ = thread.join(); // what it had to say it said to whoever waited for it
        }
        COMMUNICATORS.with_borrow_mut(Vec::clear);
    }
}

/// The cores of this process, those that others may use too divided by how many those are.
fn own_cores(here: &SimpleCommunicator) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let all = words(here, list.unwrap_or_default().trim().as_bytes());
    let allowed: Vec<BTreeSet<usize>> = all
        .iter()
        .map(|list| core_list(&String::from_utf8_lossy(list)))
        .collect();
    let own = &allowed[here.rank() as usize];
    let sharing = |other: &&BTreeSet<usize>| own.is_empty() || !own.is_disjoint(other);
    let cores = available_parallelism().map_or(1, usize::from);
    (cores / allowed.iter().filter(sharing).count().max(1)).max(1)
}

/// "0-3,8": the kernel's way to write a set of cores.
fn core_list(text: &str) -> BTreeSet<usize> {
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

/// Makes a communicator of some processes, which all of them call for.
fn meet(members: &[i32], tag: i32) -> SimpleCommunicator {
    let world = SimpleCommunicator::world();
    let group = world.group().include(members);
    let made = world.split_by_subgroup_with_tag(&group, tag);
    made.expect("this process is a member")
}

/// A rank's view of a group of processes.
struct Mpi {
    index: usize, // of `COMMUNICATORS`
    number: i32,
    rank: usize,
    members: Vec<i32>,
    concurrent: bool,
    jobs: OnceLock<Sender<Job>>,
    ahead: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

/// An all-gather that was begun, and where its result goes.
struct Job {
    messages: Vec<Gather>,
    done: Sender<Vec<Floats>>,
}

impl Mpi {
    fn with<R>(&self, call: impl FnOnce(&SimpleCommunicator) -> R) -> R {
        COMMUNICATORS.with_borrow(|all| {
            let own = all.get(self.index);
            call(own.expect("the thread that began MPI makes the calls"))
        })
    }

    /// The thread that makes this group's calls ahead.
    fn jobs(&self) -> &Sender<Job> {
        self.jobs.get_or_init(|| {
            let (sender, jobs) = channel();
            let (members, tag) = (self.members.clone(), 2 * self.number + 1);
            let builder = std::thread::Builder::new().name("russet-ahead".to_owned());
            let thread = builder.spawn(move || serve(&members, tag, &jobs));
            let thread = thread.expect("the system refused to start a thread for a rank");
            let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
            ahead.push(thread);
            sender
        })
    }
}

fn serve(members: &[i32], tag: i32, jobs: &Receiver<Job>) {
    let communicator = meet(members, tag);
    for Job { messages, done } in jobs {
        // Whoever no longer wants it has dropped it.
        let _ = done.send(all_gather(&communicator, messages));
    }
}

/// An all-gather that was begun ahead.
struct Begun(Receiver<Vec<Floats>>);

impl Pending for Begun {
    fn wait(self: Box<Self>) -> Vec<Floats> {
        let done = self.0.recv();
        done.expect("the thread that makes calls ahead has ended")
    }
}

/// An all-gather that was over when it had begun.
struct Over(Vec<Floats>);

impl Pending for Over {
    fn wait(self: Box<Self>) -> Vec<Floats> {
        self.0
    }
}

/// Numbers of each rank in MPI's type, and where they begin behind one another.
fn partition(lens: impl Iterator<Item = usize>) -> (Vec<i32>, Vec<i32>) {
    let mut end = 0;
    let part = |len: usize| {
        let start = end;
        end += len;
        let count = |number: usize| i32::try_from(number).ok();
        let both = count(len).zip(count(start));
        both.expect("MPI counts in 31 bits: a matrix of so many numbers needs more ranks along `parallel.tensor`")
    };
    lens.map(part).unzip()
}

fn part_lens(rows: Rows, size: usize) -> impl Iterator<Item = usize> {
    (0..size).map(move |rank| rows.part(size, rank).len())
}

fn all_gather(communicator: &SimpleCommunicator, messages: Vec<Gather>) -> Vec<Floats> {
    let size = communicator.size() as usize;
    let is_small = |message: &Gather| message.rows.len() < ALONE;
    let packs = messages.iter().filter(|message| is_small(message)).count() > 1;
    let small: Vec<&Gather> = messages
        .iter()
        .filter(|message| packs && is_small(message))
        .collect();
    let mut whole = Vec::new();
    let mut starts = Vec::new();
    if packs {
        let own: Vec<f32> = small
            .iter()
            .flat_map(|message| message.part.data())
            .copied()
            .collect();
        let of_rank = |rank| {
            small
                .iter()
                .map(move |m| m.rows.part(size, rank).len())
                .sum()
        };
        let (counts, begins) = partition((0..size).map(of_rank));
        whole.resize(small.iter().map(|message| message.rows.len()).sum(), 0.0);
        starts = begins.iter().map(|&start| start as usize).collect();
        let mut into = PartitionMut::new(&mut whole[..], counts, begins);
        communicator.all_gather_varcount_into(&own[..], &mut into);
    }
    let bring = |message: Gather| {
        let Gather {
            part,
            rows,
            mut out,
        } = message;
        if packs && rows.len() < ALONE {
            for (rank, start) in starts.iter_mut().enumerate() {
                let place = rows.part(size, rank);
                let len = place.len();
                out[place].copy_from_slice(&whole[*start..][..len]);
                *start += len;
            }
        } else {
            let (counts, begins) = partition(part_lens(rows, size));
            let mut into = PartitionMut::new(&mut out[..], counts, begins);
            communicator.all_gather_varcount_into(part.data(), &mut into);
        }
        out
    };
    messages.into_iter().map(bring).collect()
}

fn all_to_all(
    communicator: &SimpleCommunicator,
    messages: &[(&Tensor, Rows)],
    out: &mut [Vec<f32>],
) {
    let (size, own) = (communicator.size() as usize, communicator.rank() as usize);
    let is_small = |rows: &Rows| rows.len() < ALONE;
    let small: Vec<usize> = (0..messages.len())
        .filter(|&message| is_small(&messages[message].1))
        .collect();
    let packs = small.len() > 1;
    if packs {
        let mut data = Vec::new();
        for rank in 0..size {
            for &message in &small {
                let (tensor, rows) = messages[message];
                data.extend_from_slice(&tensor.data()[rows.part(size, rank)]);
            }
        }
        let for_rank = |rank: usize| -> usize {
            let len = |&message: &usize| messages[message].1.part(size, rank).len();
            small.iter().map(len).sum()
        };
        let (counts, begins) = partition((0..size).map(for_rank));
        let mut received = vec![0.0f32; size * for_rank(own)];
        let (own_counts, own_begins) = partition((0..size).map(|_| for_rank(own)));
        communicator.all_to_all_varcount_into(
            &Partition::new(&data[..], counts, begins),
            &mut PartitionMut::new(&mut received[..], own_counts, own_begins),
        );
        let mut rest = &received[..];
        for rank in 0..size {
            for &message in &small {
                let len = messages[message].1.part(size, own).len();
                let (part, behind) = rest.split_at(len);
                out[message][rank * len..][..len].copy_from_slice(part);
                rest = behind;
            }
        }
    }
    for ((tensor, rows), out) in messages.iter().zip(out) {
        if packs && is_small(rows) {
            continue;
        }
        let (counts, begins) = partition(part_lens(*rows, size));
        let len = rows.part(size, own).len();
        let (own_counts, own_begins) = partition((0..size).map(|_| len));
        communicator.all_to_all_varcount_into(
            &Partition::new(tensor.data(), counts, begins),
            &mut PartitionMut::new(&mut out[..], own_counts, own_begins),
        );
    }
}

/// What each rank says, in order.
fn words(communicator: &SimpleCommunicator, own: &[u8]) -> Vec<Vec<u8>> {
    let size = communicator.size() as usize;
    let mut word = [0u8; WORD];
    let (len, rest) = word.split_at_mut(size_of::<u64>());
    len.copy_from_slice(&(own.len() as u64).to_le_bytes());
    let begin = own.len().min(rest.len());
    rest[..begin].copy_from_slice(&own[..begin]);
    let mut all = vec![0u8; size * WORD];
    communicator.all_gather_into(&word[..], &mut all[..]);
    let said = |word: &[u8]| {
        let (len, rest) = word.split_at(size_of::<u64>());
        let len = u64::from_le_bytes(len.try_into().expect("eight bytes"));
        (len as usize, rest.to_vec())
    };
    let said: Vec<(usize, Vec<u8>)> = all.chunks(WORD).map(said).collect();
    if said.iter().all(|(len, word)| *len <= word.len()) {
        let whole = |(len, word): (usize, Vec<u8>)| word[..len].to_vec();
        return said.into_iter().map(whole).collect();
    }
    let (counts, begins) = partition(said.iter().map(|(len, _)| *len));
    let mut all = vec![0u8; said.iter().map(|(len, _)| len).sum()];
    communicator.all_gather_varcount_into(
        own,
        &mut PartitionMut::new(&mut all[..], &counts[..], &begins[..]),
    );
    let places = counts.iter().zip(&begins);
    places
        .map(|(&len, &start)| all[start as usize..][..len as usize].to_vec())
        .collect()
}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.members.len()
    }

    fn begin_all_gather(&self, messages: Vec<Gather>) -> Box<dyn Pending> {
        if !self.concurrent {
            return Box::new(Over(self.all_gather(messages)));
        }
        let (done, result) = channel();
        let sent = self.jobs().send(Job { messages, done });
        sent.expect("the thread that makes calls ahead has ended");
        Box::new(Begun(result))
    }

    fn all_gather(&self, messages: Vec<Gather>) -> Vec<Floats> {
        self.with(|communicator| all_gather(communicator, messages))
    }

    fn all_to_all(&self, messages: &[(&Tensor, Rows)], out: &mut [Vec<f32>]) {
        self.with(|communicator| all_to_all(communicator, messages, out));
    }

    fn shift(&self, data: &Tensor, out: &mut [f32]) {
        self.with(|communicator| {
            let size = communicator.size();
            let at = |steps| communicator.process_at_rank((communicator.rank() + steps) % size);
            send_receive_into(data.data(), &at(1), out, &at(size - 1));
        });
    }

    fn all_gather_bytes(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.with(|communicator| words(communicator, bytes))
    }

    /// Each rank's word in turn, so that the first has room for one more than it keeps and no count is too large for MPI.
    fn gather_bytes(&self, bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
        self.with(|communicator| {
            let mut lens = vec![0u64; self.size()];
            communicator.all_gather_into(&[bytes.len() as u64][..], &mut lens[..]);
            if self.rank > 0 {
                for chunk in bytes.chunks(CHUNK) {
                    communicator.process_at_rank(0).send(chunk);
                }
                return None;
            }
            let mut heard = vec![bytes.to_vec()];
            for (rank, &len) in lens.iter().enumerate().skip(1) {
                let mut said = vec![0u8; len as usize];
                for chunk in said.chunks_mut(CHUNK) {
                    communicator
                        .process_at_rank(rank as i32)
                        .receive_into(chunk);
                }
                heard.push(said);
            }
            Some(heard)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_cores_are_read_as_the_kernel_writes_them() {
        assert_eq!(core_list("0-3,8"), BTreeSet::from([0, 1, 2, 3, 8]));
        assert_eq!(core_list("5"), BTreeSet::from([5]));
        assert_eq!(core_list(""), BTreeSet::new());
    }

    #[test]
    fn parts_lie_behind_one_another() {
        assert_eq!(
            partition([3, 0, 4].into_iter()),
            (vec![3, 0, 4], vec![0, 3, 3])
        );
    }

    #[test]
    #[should_panic(expected = "31 bits")]
    fn more_numbers_than_mpi_counts_are_a_panic_with_a_reason() {
        partition([1 << 31].into_iter());
    }
}
