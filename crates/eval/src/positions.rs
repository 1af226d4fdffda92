//! Perplexity by position: whether a model uses what lies far back.
//!
//! Each document's first `length` tokens are read at once, and losses are averaged over tokens of like position: where a model
//! uses its context, later tokens cost less. Shorter documents are left out, so that every position is averaged over the same
//! texts.

use russet_artifact::{Interrupt, Progress};
use russet_model::Decoder;
use russet_tensor::{Ctx, Segments};
use serde::Serialize;

use crate::{Document, Error, Result, stats};

/// Losses of the positions `from..to`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PositionScores {
    /// The first position, 0 being that of a document's first token.
    pub from: usize,
    /// Behind the last.
    pub to: usize,
    /// Tokens that were averaged.
    pub tokens: u64,
    /// Mean loss of a token.
    pub nats: f64,
    /// Its standard error over documents; none of one.
    pub standard_error: Option<f64>,
    /// exp(nats).
    pub perplexity: f64,
}

/// Scores `decoder` in buckets of `bucket` positions, the last one shorter where `length` is no multiple.
///
/// # Errors
/// When `length` is beyond the context, a setting is 0, a token is unknown, no document is long enough, a loss is not finite, or
/// `interrupt` is raised.
pub fn by_position(
    decoder: &Decoder,
    ctx: &mut Ctx,
    documents: &[Document],
    bos: u32,
    length: usize,
    bucket: usize,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<Vec<PositionScores>> {
    let (most, vocab) = (decoder.config().context, decoder.config().vocab);
    for (setting, value, top) in [("length", length, most), ("bucket", bucket, length)] {
        if !(1..=top).contains(&value) {
            return Err(Error::Setting {
                setting,
                value,
                wanted: format!("from 1 to {top}"),
            });
        }
    }
    let long: Vec<&Document> = documents
        .iter()
        .filter(|d| d.tokens.len() >= length)
        .collect();
    if long.is_empty() {
        let longest = documents.iter().map(|d| d.tokens.len()).max().unwrap_or(0);
        return Err(Error::Setting {
            setting: "length",
            value: length,
            wanted: format!("at most {longest}, the tokens of the longest document"),
        });
    }
    let unknown = |token: &u32| *token as usize >= vocab;
    let all = long.iter().flat_map(|d| &d.tokens[..length]).chain([&bos]);
    if let Some(&token) = all.clone().find(|token| unknown(token)) {
        return Err(Error::UnknownToken {
            place: "a token of the documents".to_owned(),
            token,
            vocab,
        });
    }
    progress.begin("positions", Some(long.len() as u64), "documents");
    // [buckets][documents], means
    let mut means = vec![Vec::new(); length.div_ceil(bucket)];
    let mut read = || {
        for (done, document) in long.iter().enumerate() {
            if interrupt.is_raised() {
                return Err(Error::Interrupted);
            }
            let targets = &document.tokens[..length];
            let inputs = [&[bos][..], &targets[..length - 1]].concat(); // [T]
            let hidden = decoder.forward(ctx, &inputs, &Segments::packed(&[length]), None);
            let losses = decoder.token_losses(ctx, &hidden, targets);
            for (means, losses) in means.iter_mut().zip(losses.chunks(bucket)) {
                let sum: f64 = losses.iter().map(|loss| f64::from(*loss)).sum();
                if !sum.is_finite() {
                    return Err(Error::NotFinite);
                }
                means.push(sum / losses.len() as f64);
            }
            progress.update(done as u64 + 1, &[]);
        }
        Ok(())
    };
    let outcome = read();
    progress.end();
    outcome?;
    let scores = means
        .iter()
        .zip((0..length).step_by(bucket))
        .map(|(means, from)| {
            let (to, nats) = (length.min(from + bucket), stats::mean(means));
            PositionScores {
                from,
                to,
                tokens: (means.len() * (to - from)) as u64,
                nats,
                standard_error: stats::standard_error(means),
                perplexity: libm::exp(nats),
            }
        });
    Ok(scores.collect())
}
