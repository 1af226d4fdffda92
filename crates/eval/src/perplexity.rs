//! Perplexity and bits per byte.
//!
//! With ℓₙ = −ln p(tokenₙ | what lies before it in its window): `nats = Σ ℓₙ`, `perplexity = exp(nats / tokens)`,
//! `bits_per_byte = nats / (ln 2 · bytes)`. Perplexity depends on the tokenizer; bits per byte compares models that
//! have different ones.

use russet_artifact::{Interrupt, Progress};
use russet_model::Decoder;
use russet_tensor::Ctx;
use serde::{Deserialize, Serialize};

use crate::document::{batches, check};
use crate::{Document, Error, Result, Settings};

/// How well a model predicts a text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// The losses of all tokens, summed.
    pub nats: f64,
    /// How many tokens were predicted.
    pub tokens: u64,
    /// Bytes of the text that they stand for.
    pub bytes: u64,
    /// `exp(nats / tokens)`.
    pub perplexity: f64,
    /// `nats / (ln 2 · bytes)`.
    pub bits_per_byte: f64,
}

impl Scores {
    pub(crate) fn new(nats: f64, tokens: u64, bytes: u64) -> Scores {
        let perplexity = libm::exp(nats / tokens as f64);
        let bits_per_byte = nats / (std::f64::consts::LN_2 * bytes as f64);
        Scores {
            nats,
            tokens,
            bytes,
            perplexity,
            bits_per_byte,
        }
    }
}

/// Scores `decoder` on `documents`.
///
/// # Errors
/// When a setting or a token is out of range, there is nothing to score, a loss is not finite, or `interrupt` is raised.
pub fn perplexity(
    decoder: &Decoder,
    ctx: &mut Ctx,
    documents: &[Document],
    settings: &Settings,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<Scores> {
    let totals = check(decoder, documents, settings)?;
    progress.begin("perplexity", Some(totals.tokens), "tokens");
    let mut total = || {
        let (mut nats, mut tokens) = (0.0, 0);
        for batch in batches(documents, settings) {
            if interrupt.is_raised() {
                return Err(Error::Interrupted);
            }
            let hidden = batch.hidden(decoder, ctx, settings.format);
            let losses = decoder.token_losses(ctx, &hidden, &batch.targets);
            nats += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
            tokens += losses.len() as u64;
            if !nats.is_finite() {
                return Err(Error::NotFinite);
            }
            progress.update(tokens, &[("perplexity", libm::exp(nats / tokens as f64))]);
        }
        Ok(nats)
    };
    let nats = total();
    progress.end();
    Ok(Scores::new(nats?, totals.tokens, totals.bytes))
}
