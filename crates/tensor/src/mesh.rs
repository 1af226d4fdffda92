//! Ranks in a grid with named axes, and what they have sent along each.
//!
//! ```text
//! rank = ((data · F + fsdp) · S + sequence) · T + tensor
//! ```
//! From the axis that talks least to the one that talks most, so that ranks which talk most are neighbours (AXLearn's
//! order). What each axis means is the business of the model and of the loop.
//!
//! Bytes are counted as the ring algorithms send them at least: an all-gather sends the own part to each other rank, a
//! reduce-scatter and an all-to-all send all but the own part. No count depends on the backend.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::Tensor;
use crate::collective::{Collective, Gather, Pending, Reduce, Rows};
use crate::workspace::Buffer;

/// An axis of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Axis {
    /// Replicas that see different sequences.
    Data,
    /// As `Data`, with parameters, gradients and moments cut in pieces.
    Fsdp,
    /// Parts of the same sequences.
    Sequence,
    /// Parts of the same matrices.
    Tensor,
}

/// All of them, from the one that talks least.
pub const AXES: [Axis; 4] = [Axis::Data, Axis::Fsdp, Axis::Sequence, Axis::Tensor];

impl Axis {
    /// As recipes call it.
    pub fn name(self) -> &'static str {
        ["data", "fsdp", "sequence", "tensor"][self as usize]
    }
}

/// How many ranks there are along each axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeshShape {
    /// In the order of [`AXES`].
    pub sizes: [usize; 4],
}

impl MeshShape {
    /// Ranks along an axis.
    pub fn size(&self, axis: Axis) -> usize {
        self.sizes[axis as usize]
    }

    /// Ranks in all.
    pub fn ranks(&self) -> usize {
        self.sizes.iter().product()
    }

    /// A rank's place along each axis.
    pub fn place(&self, rank: usize) -> [usize; 4] {
        let mut place = [0; 4];
        let mut rest = rank;
        for axis in AXES.into_iter().rev() {
            place[axis as usize] = rest % self.size(axis);
            rest /= self.size(axis);
        }
        place
    }

    /// The ranks that differ from `rank` along the given axes only, in order.
    fn members(&self, rank: usize, axes: &[Axis]) -> Vec<usize> {
        let own = self.place(rank);
        let same = |other: &usize| {
            let place = self.place(*other);
            AXES.iter()
                .all(|axis| axes.contains(axis) || place[*axis as usize] == own[*axis as usize])
        };
        (0..self.ranks()).filter(same).collect()
    }
}

/// The groups that there are, each the ranks along some axes.
const GROUPS: [&[Axis]; 7] = [
    &[Axis::Data],
    &[Axis::Fsdp],
    &[Axis::Sequence],
    &[Axis::Tensor],
    &[Axis::Data, Axis::Sequence],
    &[Axis::Fsdp, Axis::Tensor],
    &AXES,
];

/// Bytes that a rank has sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// In the order of [`AXES`]; sums over data and sequence together count as `Data`.
    pub along: [u64; 4],
    /// To groups of other axes together: losses, norms, votes.
    pub across: u64,
}

impl Moved {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.along.iter().sum::<u64>() + self.across
    }
}

impl std::ops::Sub for Moved {
    type Output = Moved;

    fn sub(mut self, other: Moved) -> Moved {
        for (bytes, before) in self.along.iter_mut().zip(other.along) {
            *bytes -= before;
        }
        self.across -= other.across;
        self
    }
}

/// Makes a rank's view of the group along given axes, of given members.
pub type Join<'a> = dyn FnMut(&'static [Axis], &[usize]) -> Box<dyn Collective> + 'a;

/// A rank's view of all ranks.
pub struct Mesh {
    shape: MeshShape,
    rank: usize,
    groups: BTreeMap<&'static [Axis], Arc<Group>>,
}

impl Mesh {
    /// The view of a rank. `join` makes the group along given axes, of given members in the order of their ranks. Two groups may
    /// have the same members; their calls have nothing to do with one another.
    pub fn new(shape: MeshShape, rank: usize, join: &mut Join) -> Mesh {
        let group = |axes: &&'static [Axis]| {
            let collective = join(axes, &shape.members(rank, axes));
            let group = Group {
                collective,
                sent: AtomicU64::new(0),
                waited: Arc::default(),
            };
            (*axes, Arc::new(group))
        };
        let groups = GROUPS.iter().map(group).collect();
        Mesh {
            shape,
            rank,
            groups,
        }
    }

    /// Ranks along each axis.
    pub fn shape(&self) -> MeshShape {
        self.shape
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Ranks along an axis.
    pub fn size(&self, axis: Axis) -> usize {
        self.shape.size(axis)
    }

    /// This rank's place along an axis.
    pub fn place(&self, axis: Axis) -> usize {
        self.shape.place(self.rank)[axis as usize]
    }

    /// The ranks along an axis.
    pub fn along(&self, axis: Axis) -> &Arc<Group> {
        self.group(GROUPS[axis as usize])
    }

    /// The ranks that have other tokens and the same weights: data and sequence.
    pub fn replicas(&self) -> &Arc<Group> {
        self.group(GROUPS[4])
    }

    /// The ranks that have all weights together: fsdp and tensor.
    pub fn model(&self) -> &Arc<Group> {
        self.group(GROUPS[5])
    }

    /// All ranks.
    pub fn all(&self) -> &Arc<Group> {
        self.group(&AXES)
    }

    fn group(&self, axes: &'static [Axis]) -> &Arc<Group> {
        self.groups.get(axes).expect("one of `GROUPS`")
    }

    /// How long this rank has been in calls so far: waiting for others, and taking what they sent. All ranks make the same
    /// calls, so of a stretch of time the rank that spent the least of it here is the one that the others waited for.
    pub fn waited(&self) -> Duration {
        let nanos = |group: &Arc<Group>| group.waited.load(Ordering::Relaxed);
        Duration::from_nanos(self.groups.values().map(nanos).sum())
    }

    /// What this rank has sent so far.
    pub fn moved(&self) -> Moved {
        let mut moved = Moved::default();
        for (axes, group) in &self.groups {
            let sent = group.sent.load(Ordering::Relaxed);
            match axes {
                [axis] | [axis, Axis::Sequence] => moved.along[*axis as usize] += sent,
                _ => moved.across += sent,
            }
        }
        moved
    }
}

/// The ranks along some axes, as one of them sees them.
pub struct Group {
    collective: Box<dyn Collective>,
    sent: AtomicU64,
    waited: Arc<AtomicU64>, // nanoseconds
}

/// Makes a call, and counts how long it takes.
fn timed<R>(waited: &AtomicU64, call: impl FnOnce() -> R) -> R {
    let begun = Instant::now();
    let result = call();
    waited.fetch_add(begun.elapsed().as_nanos() as u64, Ordering::Relaxed);
    result
}

/// An all-gather that was begun, whose wait is counted.
struct Timed(Box<dyn Pending>, Arc<AtomicU64>);

impl Pending for Timed {
    fn wait(self: Box<Self>) -> Vec<Buffer> {
        let Timed(pending, waited) = *self;
        timed(&waited, || pending.wait())
    }
}

impl Group {
    /// This rank's number in the group.
    pub fn rank(&self) -> usize {
        self.collective.rank()
    }

    /// Ranks in the group.
    pub fn size(&self) -> usize {
        self.collective.size()
    }

    #[cfg(test)]
    pub(crate) fn backend(&self) -> &dyn Collective {
        &*self.collective
    }

    /// This rank's part of numbers that are shared out.
    pub fn part(&self, rows: Rows) -> std::ops::Range<usize> {
        rows.part(self.size(), self.rank())
    }

    fn count(&self, floats: usize) {
        self.sent
            .fetch_add((floats * size_of::<f32>()) as u64, Ordering::Relaxed);
    }

    fn count_gather(&self, messages: &[Gather]) {
        let floats: usize = messages.iter().map(|message| message.part.len()).sum();
        self.count(floats * (self.size() - 1));
    }

    /// See [`Collective::begin_all_gather`].
    pub fn begin_all_gather(&self, messages: Vec<Gather>) -> Box<dyn Pending> {
        self.count_gather(&messages);
        let pending = timed(&self.waited, || self.collective.begin_all_gather(messages));
        Box::new(Timed(pending, self.waited.clone()))
    }

    /// See [`Collective::all_gather`].
    pub fn all_gather(&self, messages: Vec<Gather>) -> Vec<Buffer> {
        self.count_gather(&messages);
        timed(&self.waited, || self.collective.all_gather(messages))
    }

    /// See [`Collective::reduce_scatter`].
    pub fn reduce_scatter(&self, messages: Vec<Reduce>) -> Vec<Buffer> {
        let others = |message: &Reduce| message.rows.len() - self.part(message.rows).len();
        self.count(messages.iter().map(others).sum());
        timed(&self.waited, || self.collective.reduce_scatter(messages))
    }

    /// Sums over all ranks, in place where this is a tensor's only owner: a reduce-scatter, then an all-gather.
    /// `take` makes a buffer for the part of the sums that is this rank's.
    pub fn all_reduce(&self, tensors: Vec<Tensor>, take: impl Fn(usize) -> Buffer) -> Vec<Tensor> {
        let reduce = |tensor: &Tensor| {
            let rows = Rows::flat(tensor.len());
            Reduce {
                data: tensor.clone(),
                rows,
                out: take(self.part(rows).len()),
            }
        };
        let parts = self.reduce_scatter(tensors.iter().map(reduce).collect());
        let shapes: Vec<Vec<usize>> = tensors.iter().map(|t| t.shape().to_vec()).collect();
        let gather = |(tensor, part): (Tensor, Buffer)| Gather {
            part: Tensor::new(&[part.len()], part),
            rows: Rows::flat(tensor.len()),
            out: tensor.into_buffer(&take),
        };
        let sums = self.all_gather(tensors.into_iter().zip(parts).map(gather).collect());
        let sums = sums.into_iter().zip(shapes);
        sums.map(|(sum, shape)| Tensor::new(&shape, sum)).collect()
    }

    /// See [`Collective::shift`].
    pub fn shift(&self, data: &Tensor, out: &mut [f32]) {
        self.count(data.len());
        timed(&self.waited, || self.collective.shift(data, out));
    }

    /// Sends each rank its part and brings what all have for this one; see [`Collective::all_to_all`].
    pub fn all_to_all(&self, data: &Tensor, rows: Rows) -> Vec<f32> {
        let own = self.part(rows).len();
        self.count(rows.len() - own);
        let mut out = [vec![0.0; own * self.size()]];
        timed(&self.waited, || {
            self.collective.all_to_all(&[(data, rows)], &mut out);
        });
        let [out] = out;
        out
    }

    /// What each rank says, in the order of the ranks.
    pub fn all_gather_bytes(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let sent = bytes.len() * (self.size() - 1);
        self.sent.fetch_add(sent as u64, Ordering::Relaxed);
        timed(&self.waited, || self.collective.all_gather_bytes(bytes))
    }

    /// What each rank says, in the order of the ranks, on the first of them.
    pub fn gather_bytes(&self, bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
        if self.rank() != 0 {
            self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        timed(&self.waited, || self.collective.gather_bytes(bytes))
    }

    /// The numbers of each rank, in the order of the ranks.
    pub fn all_gather_f64(&self, numbers: &[f64]) -> Vec<Vec<f64>> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let parse = |bytes: Vec<u8>| {
            let words = bytes.as_chunks::<8>().0.iter();
            words.map(|&word| f64::from_le_bytes(word)).collect()
        };
        let all = self.all_gather_bytes(&bytes).into_iter();
        all.map(parse).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_differ_along_the_axis_that_talks_most() {
        let shape = MeshShape {
            sizes: [2, 3, 1, 4],
        };
        assert_eq!(shape.ranks(), 24);
        assert_eq!(shape.place(0), [0, 0, 0, 0]);
        assert_eq!(shape.place(1), [0, 0, 0, 1]);
        assert_eq!(shape.place(23), [1, 2, 0, 3]);
        assert_eq!(shape.members(5, &[Axis::Tensor]), [4, 5, 6, 7]);
        assert_eq!(shape.members(5, &[Axis::Fsdp]), [1, 5, 9]);
        assert_eq!(shape.members(5, &[Axis::Data, Axis::Sequence]), [5, 17]);
        assert_eq!(shape.members(5, &AXES), (0..24).collect::<Vec<_>>());
    }
}
