//! Documents packed into sequences, sequences dealt to steps.
//!
//! ```text
//! shards ─▶ sequences of T tokens (`shard`) ─▶ a mixture by weight (`mixture`) ─▶ batches, some ahead of the loop
//! ```
//! Within a sequence each document is a segment of its own: tokens attend only within it, and positions count from where
//! it or the sequence begins. Every token is a target once an epoch, but for what is left over at the end of a
//! shard that is cut as a stream. The input before a document's first token is the token
//! that begins texts, and its last target is the one that ends them (`<|endoftext|>` both, in tokenizers trained here):
//! what is measured and generated later begins and ends the same way, and nothing is predicted from another document.
//!
//! ```text
//! inputs    ⏹  t  h  e     c  a  t  ⏹  O  n  c
//! targets   t  h  e     c  a  t  ⏹  O  n  c  e
//! segments  └───────────────────┘  └────────┘
//! ```
//!
//! A batch is a function of (shards, settings, step): the step is the loader's whole state, and whoever shares the work of
//! a step out over several machines finds the same batch in each.

mod mixture;
mod shard;

use std::ops::Range;

use russet_model::Decoder;
use russet_tensor::ops::IGNORE;
use russet_tensor::{Ctx, Segments};
use russet_tokenizer::TokenShard;
use serde_json::Value;

pub use mixture::{MOST, Mixture, Part, Shares};
pub use shard::best_fit;

use crate::Result;
use crate::settings::PackingKind;

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
    /// Where it comes from, for messages, counts and stored predictions: the sources of all tokens in order, or nothing where
    /// they come from none.
    pub origins: Vec<Origin>,
}

/// Where tokens of a batch come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The source, by its place in [`Batches::names`].
    pub source: usize,
    /// Its documents or examples, by number.
    pub documents: Range<usize>,
    /// Which tokens of the source the targets are that came from it, in order.
    pub targets: Range<usize>,
}

/// Where the loop gets its data. Position in the data is its only state.
pub trait Batches {
    /// Looks at the model before the step's micro-batches are asked for, where data come of the model that learns: rollouts.
    /// Others do not look.
    ///
    /// # Errors
    /// When the data cannot be made.
    fn prepare(&mut self, ctx: &mut Ctx, decoder: &Decoder) -> Result<()> {
        let _ = (ctx, decoder);
        Ok(())
    }

    /// Why the run ends here, though steps are left; asked after [`Batches::prepare`].
    fn ends(&self) -> Option<String> {
        None
    }

    /// Whether a later process could go on from [`Batches::state`] as it is now. Not in the middle of steps that share something
    /// that only this process has; the run is then saved, and a wish to stop heard, behind the last of them.
    fn is_whole(&self) -> bool {
        true
    }

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

    /// What documents are numbers of, a name a source: "runs/tiny/02-tokens/train.tokens.safetensors".
    fn names(&self) -> Vec<String>;

    /// The sources' names in the log, each once: "train".
    fn labels(&self) -> Vec<String>;
}

/// How shards are cut and dealt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    /// How documents become sequences.
    pub kind: PackingKind,
    /// T, tokens of a sequence.
    pub sequence_length: usize,
    /// Sequences of a step.
    pub batch_sequences: usize,
    /// Sequences of a micro-batch at most; divides `batch_sequences`.
    pub micro_batch_sequences: usize,
    /// What the order follows from.
    pub seed: u64,
}

/// Appends the tokens `range` of a shard as targets, and before each the input that predicts it, cut into segments at the
/// beginnings of documents. Weights stay to be set.
pub(crate) fn append(
    batch: &mut Batch,
    shard: &TokenShard,
    source: usize,
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
    batch.origins.push(Origin {
        source,
        documents: first..document,
        targets: range,
    });
    Ok(())
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
    weigh(batches, all);
}

/// Gives each target of some of a step's micro-batches the weight 1 / (targets counted in all of them).
pub(crate) fn weigh(batches: &mut [Batch], all: usize) {
    let weight = 1.0 / all.max(1) as f32;
    for batch in batches {
        let weigh = |&target: &u32| if target == IGNORE { 0.0 } else { weight };
        batch.weights.clear();
        batch.weights.extend(batch.targets.iter().map(weigh));
    }
}

#[cfg(test)]
mod tests;
