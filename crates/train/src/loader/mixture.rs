//! Several shards as one row of steps, by weight, some steps ahead of the loop.
//!
//! Sequences come in blocks of [`BLOCK`]. Of the first n sequences source k has `⌊n · share_k⌋`, the largest source the
//! rest, at every block's end; within a block a keyed permutation deals the places out. So the shares hold to a sequence a
//! source over any number of blocks, and which sequence of which source a place has is computed, not counted.
//!
//! A thread makes the next batches while the loop computes. It changes nothing but the time: what it makes is a function of
//! the step.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{Builder, JoinHandle};

use russet_tensor::collective::share;
use russet_tokenizer::TokenShard;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::shard::PackedShard;
use super::{Batch, Batches, Packing, weigh, weigh_evenly};
use crate::permutation::Permutation;
use crate::{Result, TrainError};

/// The stream of random numbers that deals the places of a block.
const DEAL: u64 = 0x4445_414c_0000_0000;
/// Sequences of a block. More than the square of [`MOST`], so that the largest source's part is never negative.
const BLOCK: u64 = 1 << 11;
/// Sources of a mixture at most.
pub const MOST: usize = 32;
/// Steps made ahead of the loop, beside the one in the making.
const AHEAD: usize = 2;

/// A shard in a mixture.
#[derive(Debug)]
pub struct Part {
    /// The shard.
    pub shard: TokenShard,
    /// Its name in the log.
    pub label: String,
    /// Its share of the sequences is this over the sum of all weights.
    pub weight: f64,
}

/// Shards as an endless row of batches.
#[derive(Debug)]
pub struct Mixture {
    deal: Arc<Deal>,
    step: u64,
    ahead: Option<Ahead>,
}

/// Which source each sequence of an endless row comes from, by weight: computed from its number.
#[derive(Clone, Debug)]
pub struct Shares {
    shares: Vec<f64>,
    largest: usize,
    seed: u64,
}

/// What every step follows from.
#[derive(Debug)]
struct Deal {
    shards: Vec<PackedShard>,
    labels: Vec<String>,
    shares: Shares,
    begin_of_text: u32,
    packing: Packing,
    share: (usize, usize),
}

/// The thread that makes batches, and where they come out in order.
#[derive(Debug)]
struct Ahead {
    batches: Receiver<Result<Vec<Batch>>>,
    thread: JoinHandle<()>,
}

/// Steps that have been taken.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    step: u64,
}

impl Mixture {
    /// Begins at the first step. `begin_of_text` stands before each document's first token.
    ///
    /// # Errors
    /// When a shard is too short to be cut.
    ///
    /// # Panics
    /// When there are no parts or more than 32, or their weights are not positive: plans check that.
    pub fn new(parts: Vec<Part>, begin_of_text: u32, packing: Packing) -> Result<Mixture> {
        let weights: Vec<f64> = parts.iter().map(|part| part.weight).collect();
        let shares = Shares::new(&weights, packing.seed);
        let labels = parts.iter().map(|part| part.label.clone()).collect();
        let shards = parts
            .into_iter()
            .enumerate()
            .map(|(source, part)| PackedShard::new(part.shard, source, packing))
            .collect::<Result<_>>()?;
        let deal = Deal {
            shards,
            labels,
            shares,
            begin_of_text,
            packing,
            share: (0, 1),
        };
        Ok(Mixture {
            deal: Arc::new(deal),
            step: 0,
            ahead: None,
        })
    }

    /// One shard.
    #[cfg(test)]
    pub(crate) fn single(
        shard: TokenShard,
        begin_of_text: u32,
        packing: Packing,
    ) -> Result<Mixture> {
        let part = Part {
            shard,
            label: "train".to_owned(),
            weight: 1.0,
        };
        Mixture::new(vec![part], begin_of_text, packing)
    }

    /// The same steps, of which this one brings the given share only: every rank that sees other sequences has another. The
    /// weights stay those of the whole step.
    ///
    /// # Panics
    /// When batches have been taken, or the shares do not divide a step's sequences: plans check that.
    pub fn shared(mut self, place: usize, places: usize) -> Mixture {
        let deal = Arc::get_mut(&mut self.deal).expect("nothing was taken yet");
        assert!(
            place < places && deal.packing.batch_sequences.is_multiple_of(places),
            "share {place} of {places} of {} sequences",
            deal.packing.batch_sequences
        );
        deal.share = (place, places);
        self
    }

    /// The micro-batches of a step, whatever was taken before.
    ///
    /// # Errors
    /// When a shard is damaged.
    pub fn at(&self, step: u64) -> Result<Vec<Batch>> {
        self.deal.step(step)
    }
}

impl Shares {
    /// Shares in proportion to weights, dealt by a seed.
    ///
    /// # Panics
    /// When there are no weights or more than [`MOST`], or they are not positive: plans check that.
    pub fn new(weights: &[f64], seed: u64) -> Shares {
        assert!(
            (1..=MOST).contains(&weights.len()),
            "{} parts",
            weights.len()
        );
        let all: f64 = weights.iter().sum();
        let shares: Vec<f64> = weights.iter().map(|weight| weight / all).collect();
        assert!(
            shares.iter().all(|&share| share > 0.0),
            "the shares {shares:?}"
        );
        let largest =
            (0..shares.len()).fold(0, |most, k| if shares[k] > shares[most] { k } else { most });
        Shares {
            shares,
            largest,
            seed,
        }
    }

    /// Which source a sequence of the row comes from, and which of its sequences it is, counted without end.
    pub fn locate(&self, sequence: u64) -> (usize, u64) {
        if self.shares.len() == 1 {
            return (0, sequence);
        }
        let block = sequence / BLOCK;
        let order = Permutation::new(BLOCK, self.seed ^ DEAL, block);
        let mut place = order.at(sequence % BLOCK);
        for source in (0..self.shares.len()).filter(|&source| source != self.largest) {
            let before = self.dealt(source, block * BLOCK);
            let here = self.dealt(source, (block + 1) * BLOCK) - before;
            if place < here {
                return (source, before + place);
            }
            place -= here;
        }
        let others = (0..self.shares.len()).filter(|&source| source != self.largest);
        let before: u64 = others.map(|source| self.dealt(source, block * BLOCK)).sum();
        (self.largest, block * BLOCK - before + place)
    }

    /// How many of the first `count` sequences come from a source that is not the largest.
    fn dealt(&self, source: usize, count: u64) -> u64 {
        (count as f64 * self.shares[source]).floor() as u64
    }
}

impl Deal {
    fn step(&self, step: u64) -> Result<Vec<Batch>> {
        let Packing {
            batch_sequences,
            micro_batch_sequences,
            ..
        } = self.packing;
        let first = step * batch_sequences as u64;
        let (place, places) = self.share;
        let own = share(batch_sequences, places, place);
        let mut batches = vec![Batch::default(); own.len().div_ceil(micro_batch_sequences)];
        for (number, sequence) in own.enumerate() {
            let batch = &mut batches[number / micro_batch_sequences];
            let (source, index) = self.shares.locate(first + sequence as u64);
            self.shards[source].append(batch, self.begin_of_text, index)?;
        }
        if places == 1 {
            weigh_evenly(&mut batches);
        } else {
            // How many there are in the others' shares is known without their tokens.
            let sequences = first..first + batch_sequences as u64;
            let targets = sequences.map(|sequence| {
                let (source, index) = self.shares.locate(sequence);
                self.shards[source].targets(index)
            });
            weigh(&mut batches, targets.sum());
        }
        Ok(batches)
    }
}

impl Ahead {
    fn begin(deal: &Arc<Deal>, step: u64) -> Result<Ahead> {
        let (sender, batches) = sync_channel(AHEAD);
        let deal_of_thread = deal.clone();
        let work = move || {
            for step in step.. {
                let made = deal_of_thread.step(step);
                let failed = made.is_err();
                // Nobody listens any longer where the loop has ended or gone elsewhere.
                if sender.send(made).is_err() || failed {
                    break;
                }
            }
        };
        let thread = Builder::new().name("russet-loader".to_owned()).spawn(work);
        let thread = thread.map_err(|error| TrainError::Data {
            place: deal.shards[0].shard().path().to_owned(),
            problem: format!("no thread can be started to read it: {error}; stop other programs"),
        })?;
        Ok(Ahead { batches, thread })
    }

    fn end(self) {
        let Ahead { batches, thread } = self;
        drop(batches);
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Batches for Mixture {
    fn next(&mut self) -> Result<Vec<Batch>> {
        let ahead = match self.ahead.take() {
            Some(ahead) => ahead,
            None => Ahead::begin(&self.deal, self.step)?,
        };
        let Ok(made) = ahead.batches.recv() else {
            ahead.end();
            unreachable!("the thread ends before the loop only by a panic or after an error");
        };
        let batches = made?;
        self.ahead = Some(ahead);
        self.step += 1;
        Ok(batches)
    }

    fn state(&self) -> Value {
        json!(Place { step: self.step })
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        let place: std::result::Result<Place, _> = serde_json::from_value(state.clone());
        let Ok(Place { step }) = place else {
            let problem = format!(
                "{state} is no place in its batches; the saved state belongs to other data"
            );
            return Err(TrainError::Data {
                place: self.deal.shards[0].shard().path().to_owned(),
                problem,
            });
        };
        if let Some(ahead) = self.ahead.take() {
            ahead.end();
        }
        self.step = step;
        Ok(())
    }

    fn names(&self) -> Vec<String> {
        let path = |shard: &PackedShard| shard.shard().path().display().to_string();
        self.deal.shards.iter().map(path).collect()
    }

    fn labels(&self) -> Vec<String> {
        self.deal.labels.clone()
    }
}

impl Drop for Mixture {
    fn drop(&mut self) {
        if let Some(Ahead { batches, thread }) = self.ahead.take() {
            drop(batches);
            // A panic of the thread has been or is no longer of interest.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
