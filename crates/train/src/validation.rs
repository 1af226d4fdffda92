//! How well a decoder predicts text that it was not trained on.
//!
//! Whole documents are measured, so that losses can be set against the bytes of their texts: nats per token depend on the
//! tokenizer, bits per byte do not.
//!
//! ```text
//! nats per token = Σ loss / predicted tokens          bits per byte = Σ loss / (ln 2 · bytes of the documents)
//! ```
//! A document's first token is not predicted (nothing stands before it) and its `<|endoftext|>` is, so there are as many
//! predictions as tokens of text. A document longer than the sequence length is cut; each piece's first prediction sees
//! one token, so long documents are measured a little harder than they would be in one piece.

use russet_model::Decoder;
use russet_tensor::ops::IGNORE;
use russet_tensor::{Ctx, Segments};
use russet_tokenizer::TokenShard;
use serde::Serialize;

use crate::permutation::Permutation;
use crate::{Result, TrainError};

/// Held-out documents and how they are measured.
#[derive(Debug)]
pub struct Validation {
    shard: TokenShard,
    documents: Vec<usize>, // in rising order
    sequence_length: usize,
    pass_tokens: usize,
}

/// What a validation found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ValidationResult {
    /// Mean loss of a predicted token.
    pub nats_per_token: f64,
    /// The losses in bits over the bytes of the texts.
    pub bits_per_byte: f64,
    /// Predicted tokens.
    pub tokens: u64,
    /// Bytes of the documents.
    pub bytes: u64,
    /// Documents.
    pub documents: u64,
}

impl Validation {
    /// Takes documents from all over the shard, always the same ones, until they have `budget` tokens (all of them where
    /// that is absent), to be measured in passes of about `pass_tokens` tokens.
    ///
    /// # Errors
    /// When the documents have no bytes, so that there is nothing to measure.
    pub fn new(
        shard: TokenShard,
        budget: Option<u64>,
        sequence_length: usize,
        pass_tokens: usize,
    ) -> Result<Validation> {
        let order = Permutation::new(shard.documents() as u64, 0, 0);
        let (mut documents, mut tokens) = (Vec::new(), 0);
        for index in 0..shard.documents() as u64 {
            if budget.is_some_and(|budget| tokens >= budget) {
                break;
            }
            let document = order.at(index) as usize;
            tokens += shard.document(document).len() as u64;
            documents.push(document);
        }
        documents.sort_unstable();
        let bytes: u64 = documents
            .iter()
            .map(|&document| shard.document_bytes(document))
            .sum();
        if bytes == 0 || tokens == documents.len() as u64 {
            let problem =
                "its documents are empty, so there is nothing to validate on; encode some text"
                    .to_owned();
            return Err(TrainError::Data {
                place: shard.path().to_owned(),
                problem,
            });
        }
        Ok(Validation {
            shard,
            documents,
            sequence_length,
            pass_tokens: pass_tokens.max(sequence_length),
        })
    }

    /// Measures a decoder.
    ///
    /// # Errors
    /// When the shard is damaged.
    pub fn measure(&self, ctx: &mut Ctx, decoder: &Decoder) -> Result<ValidationResult> {
        let mut pass = Pass::default();
        let mut sum = ValidationResult {
            nats_per_token: 0.0,
            bits_per_byte: 0.0,
            tokens: 0,
            bytes: 0,
            documents: 0,
        };
        let mut nats = 0.0;
        for &document in &self.documents {
            let range = self.shard.document(document);
            sum.bytes += self.shard.document_bytes(document);
            sum.tokens += range.len() as u64 - 1;
            sum.documents += 1;
            let last = range.end - 1; // has nothing to predict
            for start in (range.start..last).step_by(self.sequence_length) {
                let end = last.min(start + self.sequence_length);
                if pass.tokens.len() + (end - start) > self.pass_tokens {
                    nats += pass.measure(ctx, decoder);
                }
                pass.append(&self.shard, start..end)?;
            }
        }
        nats += pass.measure(ctx, decoder);
        sum.nats_per_token = nats / sum.tokens as f64;
        sum.bits_per_byte = nats / std::f64::consts::LN_2 / sum.bytes as f64;
        Ok(sum)
    }
}

/// Tokens that go through the decoder together.
#[derive(Default)]
struct Pass {
    tokens: Vec<u32>,
    targets: Vec<u32>,
    segments: Segments,
}

impl Pass {
    /// Adds tokens `range` as a segment, each predicting the token after it.
    fn append(&mut self, shard: &TokenShard, range: std::ops::Range<usize>) -> Result<()> {
        let row = self.tokens.len();
        self.tokens.resize(row + range.len(), IGNORE);
        shard.copy_into(range.clone(), &mut self.tokens[row..])?;
        self.targets.resize(row + range.len(), IGNORE);
        shard.copy_into(range.start + 1..range.end + 1, &mut self.targets[row..])?;
        self.segments.push(range.len(), 0, 0);
        Ok(())
    }

    /// The sum of the losses in nats; leaves the pass empty.
    fn measure(&mut self, ctx: &mut Ctx, decoder: &Decoder) -> f64 {
        let Pass {
            tokens,
            targets,
            segments,
        } = std::mem::take(self);
        if tokens.is_empty() {
            return 0.0;
        }
        let hidden = decoder.forward(ctx, &tokens, &segments, None);
        decoder
            .token_losses(ctx, &hidden, &targets)
            .iter()
            .map(|&loss| f64::from(loss))
            .sum()
    }
}

#[cfg(test)]
mod tests;
