//! One shard as an endless row of sequences, each a function of its number.
//!
//! *Stream*: the stream of a shard's tokens is cut into windows of T targets, met in an order that a keyed permutation
//! gives anew each epoch. From the second epoch on the cuts begin at another offset, so that a text is not always broken
//! at the same word.
//!
//! *Best fit* (Ding et al., "Fewer Truncations Improve Language Modeling", arXiv 2404.10830): documents longer than T are
//! cut into pieces, shorter ones stay whole. A window of [`WINDOW`] pieces, of documents in shuffled order, is packed by
//! best-fit decreasing: the longest first, each into the fullest sequence that has room for it. Sequences then have at
//! most T tokens, mostly T, and no padding. The packing is the same in every epoch, the order of sequences is not. Which
//! sequences a window makes is counted once, when the shard is opened; a window is packed again when one of them is asked
//! for, so memory grows with windows and not with documents.

use std::collections::BTreeMap;
use std::ops::Range;

use russet_kernels::random;
use russet_tokenizer::TokenShard;

use super::{Batch, Packing, append};
use crate::permutation::Permutation;
use crate::settings::PackingKind;
use crate::{Result, TrainError};

/// Streams of random numbers that belong to a run's seed, apart from those of the initial weights (which are small).
const SHUFFLE: u64 = 0x5348_5546_464c_4500;
const OFFSET: u64 = 0x4f46_4653_4554_0000;
const DOCUMENTS: u64 = 0x444f_4355_4d45_4e54;

/// Pieces that are packed together. 1024 leave under a hundredth of the room empty where any documents are short, and are
/// packed in some tens of microseconds.
const WINDOW: usize = 1024;

/// A shard and how it is cut.
#[derive(Debug)]
pub(crate) struct PackedShard {
    shard: TokenShard,
    source: usize,
    packing: Packing,
    windows: Option<Windows>, // of best fit
}

/// Where each window of pieces begins.
#[derive(Debug)]
struct Windows {
    starts: Vec<WindowStart>,
    sequences: u64,
}

#[derive(Clone, Copy, Debug)]
struct WindowStart {
    place: u64,   // of its first document in the shuffled order
    piece: usize, // of that document
    first_sequence: u64,
}

impl PackedShard {
    /// A shard as the source of the given number.
    ///
    /// # Errors
    /// When a stream is shorter than one sequence.
    pub(crate) fn new(shard: TokenShard, source: usize, packing: Packing) -> Result<PackedShard> {
        if packing.kind == PackingKind::Stream && shard.tokens() < packing.sequence_length {
            let problem = format!(
                "it has {} tokens, but one sequence needs {}; encode more text or lower `train.sequence_length`",
                shard.tokens(),
                packing.sequence_length
            );
            return Err(TrainError::Data {
                place: shard.path().to_owned(),
                problem,
            });
        }
        let mut packed = PackedShard {
            shard,
            source,
            packing,
            windows: None,
        };
        if packing.kind == PackingKind::BestFit {
            packed.windows = Some(packed.count_windows());
        }
        Ok(packed)
    }

    pub(crate) fn shard(&self) -> &TokenShard {
        &self.shard
    }

    /// Appends the sequence of the given number. Weights stay to be set.
    ///
    /// # Errors
    /// When the shard is damaged.
    pub(crate) fn append(&self, batch: &mut Batch, begin_of_text: u32, number: u64) -> Result<()> {
        for range in self.sequence(number) {
            append(batch, &self.shard, self.source, begin_of_text, range)?;
        }
        Ok(())
    }

    /// Targets of the sequence of the given number.
    pub(crate) fn targets(&self, number: u64) -> usize {
        match self.windows {
            None => self.packing.sequence_length,
            Some(_) => self.sequence(number).iter().map(Range::len).sum(),
        }
    }

    /// The tokens of a sequence, by ranges of targets.
    fn sequence(&self, number: u64) -> Vec<Range<usize>> {
        let Some(windows) = &self.windows else {
            let length = self.packing.sequence_length;
            let (mut epoch, mut index) = (0, number);
            let (mut offset, mut count) = self.cut(epoch);
            // Epochs differ by a window at most; a hash an epoch is nothing beside the epoch.
            while index >= count {
                index -= count;
                epoch += 1;
                (offset, count) = self.cut(epoch);
            }
            let window = self.order(count, epoch).at(index) as usize;
            let start = offset + window * length;
            return std::iter::once(start..start + length).collect();
        };
        let (epoch, index) = (number / windows.sequences, number % windows.sequences);
        let sequence = self.order(windows.sequences, epoch).at(index);
        let window = windows
            .starts
            .partition_point(|start| start.first_sequence <= sequence)
            - 1;
        let start = windows.starts[window];
        let pieces: Vec<Range<usize>> = self
            .pieces(start.place, start.piece)
            .take(WINDOW)
            .map(|(_, _, range)| range)
            .collect();
        let mut bins = best_fit(&pieces, self.packing.sequence_length);
        let bin = bins.swap_remove((sequence - start.first_sequence) as usize);
        bin.into_iter().map(|piece| pieces[piece].clone()).collect()
    }

    /// The order of an epoch's sequences.
    fn order(&self, count: u64, epoch: u64) -> Permutation {
        Permutation::new(count, self.packing.seed ^ SHUFFLE, self.stream(epoch))
    }

    /// A stream of random numbers of this source alone.
    fn stream(&self, epoch: u64) -> u64 {
        (self.source as u64) << 48 | epoch
    }

    /// Where the windows of a stream's epoch begin, and how many there are.
    fn cut(&self, epoch: u64) -> (usize, u64) {
        let (length, tokens) = (self.packing.sequence_length, self.shard.tokens());
        let offset = match epoch {
            0 => 0,
            _ => {
                let room = length.min(tokens - length + 1) as u64;
                random::below(self.packing.seed, OFFSET, self.stream(epoch), room) as usize
            }
        };
        (offset, ((tokens - offset) / length) as u64)
    }

    /// Pieces of documents in shuffled order from a place on: the document's place, the piece's number, its tokens.
    fn pieces(&self, place: u64, piece: usize) -> impl Iterator<Item = (u64, usize, Range<usize>)> {
        let length = self.packing.sequence_length;
        let documents = self.shard.documents() as u64;
        let order = Permutation::new(documents, self.packing.seed ^ DOCUMENTS, self.stream(0));
        (place..documents).flat_map(move |at| {
            let whole = self.shard.document(order.at(at) as usize);
            let first = if at == place { piece } else { 0 };
            whole
                .clone()
                .step_by(length)
                .enumerate()
                .skip(first)
                .map(move |(piece, start)| (at, piece, start..whole.end.min(start + length)))
        })
    }

    fn count_windows(&self) -> Windows {
        let mut windows = Windows {
            starts: Vec::new(),
            sequences: 0,
        };
        let mut pieces = self.pieces(0, 0).peekable();
        while let Some(&(place, piece, _)) = pieces.peek() {
            windows.starts.push(WindowStart {
                place,
                piece,
                first_sequence: windows.sequences,
            });
            let window: Vec<Range<usize>> = pieces
                .by_ref()
                .take(WINDOW)
                .map(|(_, _, range)| range)
                .collect();
            windows.sequences += best_fit(&window, self.packing.sequence_length).len() as u64;
        }
        windows
    }
}

/// Packs pieces, none longer than `room`, into bins of `room` tokens, the longest first, each into the fullest bin that has
/// room for it; gives the pieces of each bin by number.
pub fn best_fit(pieces: &[Range<usize>], room: usize) -> Vec<Vec<usize>> {
    let mut longest_first: Vec<usize> = (0..pieces.len()).collect();
    longest_first.sort_by_key(|&piece| std::cmp::Reverse(pieces[piece].len()));
    let mut bins: Vec<Vec<usize>> = Vec::new();
    let mut by_room: BTreeMap<usize, Vec<usize>> = BTreeMap::new(); // the bins that have so much left
    for piece in longest_first {
        let length = pieces[piece].len();
        let fullest = by_room.range(length..).next().map(|(&left, _)| left);
        let (bin, left) = match fullest {
            Some(left) => {
                let equal = by_room.get_mut(&left).expect("just found");
                let bin = equal.pop().expect("no entry is empty");
                if equal.is_empty() {
                    by_room.remove(&left);
                }
                (bin, left)
            }
            None => {
                bins.push(Vec::new());
                (bins.len() - 1, room)
            }
        };
        bins[bin].push(piece);
        if left > length {
            by_room.entry(left - length).or_default().push(bin);
        }
    }
    bins
}

#[cfg(test)]
mod tests;
