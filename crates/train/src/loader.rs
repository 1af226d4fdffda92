//! Documents packed into sequences.
//!
//! The stream of a shard's tokens is cut into windows of T targets, met in an order that a keyed permutation gives anew each
//! epoch. From the second epoch on the cuts begin at another offset, so that a text is not always broken at the same word.
//! Within a window each document is a segment of its own: tokens attend only within it, and positions count from where it
//! or the window begins. Every token is a target once an epoch. The input before a document's first token is the token
//! that begins texts, and its last target is the one that ends them (`<|endoftext|>` both, in tokenizers trained here):
//! what is measured and generated later begins and ends the same way, and nothing is predicted from another document.
//!
//! ```text
//! inputs    ⏹  t  h  e     c  a  t  ⏹  O  n  c
//! targets   t  h  e     c  a  t  ⏹  O  n  c  e
//! segments  └───────────────────┘  └────────┘
//! ```
//!
//! Everything is a function of (shard, settings, epoch, index): that pair is the loader's whole state.

use std::ops::Range;

use russet_kernels::random;
use russet_tensor::Segments;
use russet_tensor::ops::IGNORE;
use russet_tokenizer::TokenShard;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::permutation::Permutation;
use crate::{Result, TrainError};

/// Streams of random numbers that belong to a run's seed, apart from those of the initial weights (which are small).
const SHUFFLE: u64 = 0x5348_5546_464c_4500;
const OFFSET: u64 = 0x4f46_4653_4554_0000;

/// What one forward and backward pass sees: N tokens in one or more segments.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// `[N]`.
    pub tokens: Vec<u32>,
    /// The runs of them that attend to one another.
    pub segments: Segments,
    /// The token that should follow each, or `IGNORE`, `[N]`.
    pub targets: Vec<u32>,
    /// What each token's loss counts, `[N]`.
    pub weights: Vec<f32>,
    /// Which tokens of the shard the targets are, in order; empty where they come from no shard.
    pub origins: Vec<Range<usize>>,
    /// Where it comes from, for messages: documents or examples by number.
    pub documents: Vec<Range<usize>>,
}

/// Where the loop gets its data. Position in the data is its only state.
pub trait Batches {
    /// The micro-batches of the next step. The weights of all of them together make the step's loss: for a mean over
    /// tokens each is 1 / (targets counted in the step).
    ///
    /// # Errors
    /// When the data cannot be read or are not what they should be.
    fn next(&mut self) -> Result<Vec<Batch>>;

    /// Where it stands.
    fn state(&self) -> Value;

    /// Goes to where [`Batches::state`] said.
    ///
    /// # Errors
    /// When that is no place in this data.
    fn restore(&mut self, state: &Value) -> Result<()>;

    /// What the documents of a batch are numbers of: "train.tokens.safetensors".
    fn name(&self) -> String;
}

/// How a shard is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    /// T, tokens of a sequence.
    pub sequence_length: usize,
    /// Sequences of a step.
    pub batch_sequences: usize,
    /// Sequences of a micro-batch; divides `batch_sequences`.
    pub micro_batch_sequences: usize,
    /// What the order follows from.
    pub seed: u64,
}

/// A token shard as an endless row of batches.
#[derive(Debug)]
pub struct PackedShard {
    shard: TokenShard,
    begin_of_text: u32,
    packing: Packing,
    place: Place,
}

/// How many windows have been taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    epoch: u64,
    index: u64,
}

impl PackedShard {
    /// Begins at the first epoch. `begin_of_text` stands before each document's first token.
    ///
    /// # Errors
    /// When the shard is shorter than one sequence.
    pub fn new(shard: TokenShard, begin_of_text: u32, packing: Packing) -> Result<PackedShard> {
        if shard.tokens() < packing.sequence_length {
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
        Ok(PackedShard {
            shard,
            begin_of_text,
            packing,
            place: Place::default(),
        })
    }

    /// Where the windows of an epoch begin, and how many there are.
    fn cut(&self, epoch: u64) -> (usize, u64) {
        let (length, tokens) = (self.packing.sequence_length, self.shard.tokens());
        let offset = match epoch {
            0 => 0,
            _ => {
                let room = length.min(tokens - length + 1) as u64;
                random::below(self.packing.seed, OFFSET, epoch, room) as usize
            }
        };
        (offset, ((tokens - offset) / length) as u64)
    }

    /// The first target of the next window.
    fn advance(&mut self) -> usize {
        let Place { epoch, index } = self.place;
        let (offset, windows) = self.cut(epoch);
        self.place = match index + 1 {
            next if next < windows => Place { epoch, index: next },
            _ => Place {
                epoch: epoch + 1,
                index: 0,
            },
        };
        let order = Permutation::new(windows, self.packing.seed ^ SHUFFLE, epoch);
        offset + order.at(index) as usize * self.packing.sequence_length
    }
}

/// Appends the tokens `range` of a shard as targets, and before each the input that predicts it, cut into segments at the
/// beginnings of documents. Weights stay to be set.
pub(crate) fn append(
    batch: &mut Batch,
    shard: &TokenShard,
    begin_of_text: u32,
    range: Range<usize>,
) -> Result<()> {
    let row = batch.tokens.len();
    batch.targets.resize(row + range.len(), IGNORE);
    shard.copy_into(range.clone(), &mut batch.targets[row..])?;
    batch.tokens.push(begin_of_text);
    batch
        .tokens
        .extend_from_slice(&batch.targets[row..row + range.len() - 1]);
    if range.start > 0 {
        shard.copy_into(range.start - 1..range.start, &mut batch.tokens[row..=row])?;
    }
    let first = shard.document_of(range.start);
    let (mut document, mut at) = (first, range.start);
    while at < range.end {
        let whole = shard.document(document);
        if at == whole.start {
            batch.tokens[row + at - range.start] = begin_of_text;
        }
        let stop = whole.end.min(range.end);
        batch.segments.push(stop - at, 0, 0);
        at = stop;
        document += 1;
    }
    batch.documents.push(first..document);
    batch.origins.push(range);
    Ok(())
}

impl Batches for PackedShard {
    fn next(&mut self) -> Result<Vec<Batch>> {
        let Packing {
            batch_sequences,
            micro_batch_sequences,
            ..
        } = self.packing;
        let mut batches = Vec::with_capacity(batch_sequences / micro_batch_sequences);
        for _ in 0..batch_sequences / micro_batch_sequences {
            let mut batch = Batch::default();
            for _ in 0..micro_batch_sequences {
                let start = self.advance();
                let targets = start..start + self.packing.sequence_length;
                append(&mut batch, &self.shard, self.begin_of_text, targets)?;
            }
            batches.push(batch);
        }
        weigh_evenly(&mut batches);
        Ok(batches)
    }

    fn state(&self) -> Value {
        json!(self.place)
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        let place: Option<Place> = serde_json::from_value(state.clone()).ok();
        match place.filter(|place| place.index < self.cut(place.epoch).1) {
            Some(place) => self.place = place,
            None => {
                let problem = format!(
                    "{state} is no place in its batches; the saved state belongs to other data"
                );
                return Err(TrainError::Data {
                    place: self.shard.path().to_owned(),
                    problem,
                });
            }
        }
        Ok(())
    }

    fn name(&self) -> String {
        self.shard.path().display().to_string()
    }
}

/// Gives each target of a step the same weight, 1 / (targets counted in all its micro-batches).
pub fn weigh_evenly(batches: &mut [Batch]) {
    let counted = |batch: &Batch| {
        batch
            .targets
            .iter()
            .filter(|&&target| target != IGNORE)
            .count()
    };
    let all: usize = batches.iter().map(counted).sum();
    let weight = 1.0 / all.max(1) as f32;
    for batch in batches {
        let weigh = |&target: &u32| if target == IGNORE { 0.0 } else { weight };
        batch.weights.clear();
        batch.weights.extend(batch.targets.iter().map(weigh));
    }
}

#[cfg(test)]
mod tests;
