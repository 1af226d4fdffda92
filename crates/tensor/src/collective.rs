//! What ranks say to one another: the few primitives that a backend offers, and what is built on them.
//!
//! A *rank* is one of several that run the same program on a share of the work, in lock step: all of a *group* make the
//! same calls in the same order. What a call moves is [`Rows`], of which each rank has a part by [`share`]; so every rank
//! knows every length and none is sent. Sums are taken here or as if here, in the order of the ranks, so that they depend
//! neither on the backend nor on time.
//!
//! Callers assume no common memory. A backend may have it: [`crate::threads`] reads the parts where they lie.

use std::ops::Range;

use crate::Tensor;
use crate::workspace::Buffer;

/// The part of `total` things that the given rank of a group has: as even as possible, in the order of the ranks.
pub fn share(total: usize, size: usize, rank: usize) -> Range<usize> {
    rank * total / size..(rank + 1) * total / size
}

/// Numbers that are shared out over a group: a rank has whole rows, by [`share`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Rows in all.
    pub rows: usize,
    /// Numbers of one.
    pub width: usize,
}

impl Rows {
    /// So many numbers, of which any may be the first of a part.
    pub fn flat(len: usize) -> Rows {
        Rows {
            rows: len,
            width: 1,
        }
    }

    /// Numbers in all.
    pub fn len(&self) -> usize {
        self.rows * self.width
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the numbers of a rank's part lie in the whole.
    pub fn part(&self, size: usize, rank: usize) -> Range<usize> {
        let rows = share(self.rows, size, rank);
        rows.start * self.width..rows.end * self.width
    }
}

/// A message of an all-gather: each rank has a part, and gets the whole.
pub struct Gather {
    /// This rank's part, of any shape.
    pub part: Tensor,
    /// The whole.
    pub rows: Rows,
    /// Where the whole goes.
    pub out: Buffer,
}

/// A message of a reduce-scatter: each rank has numbers for the whole, and gets the sum over all ranks of its part.
pub struct Reduce {
    /// This rank's summand, of any shape.
    pub data: Tensor,
    /// How the whole is shared out.
    pub rows: Rows,
    /// Where the sum goes, as long as the part.
    pub out: Buffer,
}

/// An all-gather that has begun.
pub trait Pending: Send {
    /// The wholes, in the order of the messages.
    fn wait(self: Box<Self>) -> Vec<Buffer>;
}

/// A rank's view of a group. Messages of one call travel together.
///
/// A call that waits for a rank which is gone unwinds with [`Lost`] and says nothing: whoever started the ranks tells.
pub trait Collective: Send + Sync {
    /// This rank's number in the group.
    fn rank(&self) -> usize;

    /// Ranks in the group.
    fn size(&self) -> usize;

    /// Begins to bring parts together. Until the wait the parts must not change.
    fn begin_all_gather(&self, messages: Vec<Gather>) -> Box<dyn Pending>;

    /// Brings parts together. When it returns no rank needs this one's parts any longer.
    fn all_gather(&self, messages: Vec<Gather>) -> Vec<Buffer> {
        self.begin_all_gather(messages).wait()
    }

    /// Sends each rank its part of `data`, laid out as `rows`, and fills `out` with what all have for this one, a part after
    /// the other in the order of the ranks. When it returns no rank needs `data` any longer.
    fn all_to_all(&self, messages: &[(&Tensor, Rows)], out: &mut [Vec<f32>]);

    /// Sends `data` to the next rank, and fills `out` with what the one before sends; the last one's next is the first.
    fn shift(&self, data: &Tensor, out: &mut [f32]);

    /// What each rank says, in the order of the ranks; lengths may differ and are not known before.
    fn all_gather_bytes(&self, bytes: &[u8]) -> Vec<Vec<u8>>;

    /// As [`Collective::all_gather_bytes`], but only the first rank hears.
    fn gather_bytes(&self, bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
        let heard = self.all_gather_bytes(bytes);
        (self.rank() == 0).then_some(heard)
    }

    /// The sums over all ranks of this one's parts, each added up in the order of the ranks.
    fn reduce_scatter(&self, messages: Vec<Reduce>) -> Vec<Buffer> {
        let (size, rank) = (self.size(), self.rank());
        let data: Vec<_> = messages
            .iter()
            .map(|message| (&message.data, message.rows))
            .collect();
        let mut received: Vec<Vec<f32>> = data
            .iter()
            .map(|(_, rows)| vec![0.0; size * rows.part(size, rank).len()])
            .collect();
        self.all_to_all(&data, &mut received);
        let mut sums = Vec::with_capacity(messages.len());
        for (message, received) in messages.into_iter().zip(received) {
            let mut out = message.out;
            for rank in 0..size {
                let part = &received[rank * out.len()..][..out.len()];
                add_part(&mut out, part, rank);
            }
            sums.push(out);
        }
        sums
    }
}

/// Takes the summand of the given rank in: that of the first is where the sum begins.
pub(crate) fn add_part(sum: &mut [f32], part: &[f32], rank: usize) {
    if rank == 0 {
        sum.copy_from_slice(part);
        return;
    }
    for (sum, x) in sum.iter_mut().zip(part) {
        *sum += x;
    }
}

/// The payload of the panic that ends a rank which waits for one that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The rank that is gone, by its number in the mesh.
    pub rank: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_even_and_leave_nothing_out() {
        for total in 0..40 {
            for size in 1..9 {
                let mut next = 0;
                for rank in 0..size {
                    let part = share(total, size, rank);
                    assert_eq!(part.start, next);
                    assert!(part.len().abs_diff(total / size) <= 1);
                    next = part.end;
                }
                assert_eq!(next, total);
            }
        }
    }
}
