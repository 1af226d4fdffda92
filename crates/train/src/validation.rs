//! How well a decoder predicts text that it was not trained on.
//!
//! Whole documents are measured, so that losses can be set against the bytes of their texts: nats per token depend on the
//! tokenizer, bits per byte do not.
//!
//! ```text
//! nats per token = Σ loss / tokens             over all tokens, `<|endoftext|>` too: the training loss's counterpart
//! bits per byte  = Σ loss / (ln 2 · bytes)     over the tokens of the texts alone
//! ```
//! A document's first token is predicted from the token that begins texts, as in training. A document longer than the
//! sequence length is cut; a later piece's first prediction sees one token, so long documents are measured a little harder
//! than through windows that overlap, as the evaluation of a finished model does.

use russet_model::Decoder;
use russet_tensor::Ctx;
use russet_tensor::mesh::Axis;
use russet_tokenizer::TokenShard;
use serde::Serialize;

use crate::loader::{Batch, append};
use crate::permutation::Permutation;
use crate::ranks::place_in_data;
use crate::run::{BITS_PER_BYTE, Measured, VALIDATION_LOSS};
use crate::{Result, TrainError};

/// Hears the share of a measurement that is done, and says whether to go on.
pub type GoesOn<'a> = dyn FnMut(f64) -> bool + 'a;

/// Held-out documents and how they are measured.
#[derive(Debug)]
pub struct Validation {
    shard: TokenShard,
    begin_of_text: u32,
    documents: Vec<usize>, // in rising order
    sequence_length: usize,
    pass_tokens: usize,
}

/// What a validation found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ValidationResult {
    /// Mean loss of a token.
    pub nats_per_token: f64,
    /// The losses of the texts' tokens in bits over the bytes of the texts.
    pub bits_per_byte: f64,
    /// Tokens, `<|endoftext|>` of each document included.
    pub tokens: u64,
    /// Bytes of the documents.
    pub bytes: u64,
    /// Documents.
    pub documents: u64,
}

impl ValidationResult {
    /// As the log and the best have it.
    pub(crate) fn measured(self) -> Measured {
        vec![
            (VALIDATION_LOSS, self.nats_per_token),
            (BITS_PER_BYTE, self.bits_per_byte),
        ]
    }
}

impl Validation {
    /// Takes documents from all over the shard, always the same ones, until they have `budget` tokens (all of them where
    /// that is absent), to be measured in passes of about `pass_tokens` tokens.
    ///
    /// # Errors
    /// When the documents have no bytes, so that there is nothing to measure.
    pub fn new(
        shard: TokenShard,
        begin_of_text: u32,
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
        if bytes == 0 {
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
            begin_of_text,
            documents,
            sequence_length,
            pass_tokens: pass_tokens.max(sequence_length),
        })
    }

    /// Measures a decoder. Before each pass (on a mesh, before as many as can go on at once) `goes_on` is asked, and told which
    /// share is done; where it says no there is no result. Ranks of a mesh ask alike, so theirs must answer alike.
    ///
    /// # Errors
    /// When the shard is damaged.
    pub fn measure(
        &self,
        ctx: &mut Ctx,
        decoder: &Decoder,
        goes_on: &mut GoesOn,
    ) -> Result<Option<ValidationResult>> {
        let mut pass = Batch::default();
        let (mut tokens, mut bytes) = (0, 0);
        let all: usize = self
            .documents
            .iter()
            .map(|&document| self.shard.document(document).len())
            .sum();
        let mut nats = Nats::new(decoder, self.shard.end_of_text());
        for &document in &self.documents {
            let range = self.shard.document(document);
            bytes += self.shard.document_bytes(document);
            tokens += range.len();
            for start in range.clone().step_by(self.sequence_length) {
                let piece = start..range.end.min(start + self.sequence_length);
                if pass.tokens.len() + piece.len() > self.pass_tokens {
                    let before = tokens - range.len() + (start - range.start);
                    // Ranks that have passes of their own are together again when each has had one.
                    let together = nats.passes.is_multiple_of(nats.place.1);
                    if together && !goes_on((before - pass.tokens.len()) as f64 / all as f64) {
                        return Ok(None);
                    }
                    nats.add(ctx, decoder, std::mem::take(&mut pass));
                }
                append(&mut pass, &self.shard, 0, self.begin_of_text, piece)?;
            }
        }
        nats.add(ctx, decoder, pass);
        nats.finish(ctx, decoder);
        Ok(Some(ValidationResult {
            nats_per_token: (nats.text + nats.end) / tokens as f64,
            bits_per_byte: nats.text / std::f64::consts::LN_2 / bytes as f64,
            tokens: tokens as u64,
            bytes,
            documents: self.documents.len() as u64,
        }))
    }
}

/// Sums of losses. On a mesh the passes are dealt out in turn, and every rank makes as many.
struct Nats {
    end_of_text: u32,
    text: f64,
    end: f64,
    place: (usize, usize),
    passes: usize,
    first: Batch, // for ranks that are left without a pass at the end
}

impl Nats {
    fn new(decoder: &Decoder, end_of_text: u32) -> Nats {
        Nats {
            end_of_text,
            text: 0.0,
            end: 0.0,
            place: place_in_data(decoder.mesh()),
            passes: 0,
            first: Batch::default(),
        }
    }

    /// Adds the losses of what goes through the decoder together; it is never empty.
    fn add(&mut self, ctx: &mut Ctx, decoder: &Decoder, pass: Batch) {
        let (place, places) = self.place;
        if self.passes % places == place {
            let losses = losses(ctx, decoder, &pass);
            let targets = decoder.own_tokens(&pass.targets);
            for (&loss, &target) in losses.iter().zip(&*targets) {
                let sum = if target == self.end_of_text {
                    &mut self.end
                } else {
                    &mut self.text
                };
                *sum += f64::from(loss);
            }
        }
        if self.passes == 0 && places > 1 {
            self.first = pass;
        }
        self.passes += 1;
    }

    /// Sums over all ranks.
    fn finish(&mut self, ctx: &mut Ctx, decoder: &Decoder) {
        let Some(mesh) = decoder.mesh() else { return };
        let (place, places) = self.place;
        let left = self.passes % places;
        if left > 0 && place >= left {
            // The others wait for what this rank has of the weights.
            losses(ctx, decoder, &self.first);
        }
        let heard = mesh.all().all_gather_f64(&[self.text, self.end]);
        (self.text, self.end) = (0.0, 0.0);
        for (rank, sums) in heard.into_iter().enumerate() {
            if mesh.shape().place(rank)[Axis::Tensor as usize] == 0 {
                self.text += sums[0];
                self.end += sums[1];
            }
        }
    }
}

fn losses(ctx: &mut Ctx, decoder: &Decoder, pass: &Batch) -> Vec<f32> {
    let hidden = decoder.forward(ctx, &pass.tokens, &pass.segments, None);
    decoder.token_losses(ctx, &hidden, &pass.targets)
}

#[cfg(test)]
mod tests;
