//! How far one model's predictions lie from another's on the same text.
//!
//! With p the reference's and q the other's distribution after each token: `kld = mean Σᵥ pᵥ (ln pᵥ − ln qᵥ)`, the
//! nats that a coder loses by believing q, and `same_top = share of tokens where argmax p = argmax q`, the lower id
//! winning ties. Both say more about a squeezed model than perplexity does, in which gains and losses cancel.

use russet_artifact::{Interrupt, Progress};
use russet_kernels::elementwise::highest;
use russet_model::{Decoder, KvFormat};
use russet_tensor::{Ctx, Tensor, ops};
use serde::{Deserialize, Serialize};

use crate::document::{batches, check};
use crate::{Document, Error, Result, Scores, Settings};

/// Rows of logits of each model that are in memory at a time.
const LOGIT_ROWS: usize = 128;

/// Two models on one text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The reference's own scores.
    pub reference: Scores,
    /// The other's own scores.
    pub other: Scores,
    /// Mean divergence KL(reference ‖ other), nats a token.
    pub kld: f64,
    /// The share of tokens where both have the same most probable token.
    pub same_top: f64,
}

/// Compares `other` with `reference` on `documents`; the reference's keys and values stay in f32.
///
/// # Errors
/// As for [`crate::perplexity`], for either model; and when their vocabularies differ in size.
pub fn compare(
    reference: &Decoder,
    other: &Decoder,
    ctx: &mut Ctx,
    documents: &[Document],
    settings: &Settings,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<Comparison> {
    let vocabularies = (reference.config().vocab, other.config().vocab);
    if vocabularies.0 != vocabularies.1 {
        return Err(Error::Vocabularies {
            reference: vocabularies.0,
            other: vocabularies.1,
        });
    }
    check(other, documents, settings)?;
    let totals = check(reference, documents, settings)?;
    progress.begin("compare", Some(totals.tokens), "tokens");
    let mut total = || {
        let (mut sum, mut tokens) = (Row::default(), 0);
        for batch in batches(documents, settings) {
            let p = batch.hidden(reference, ctx, KvFormat::F32);
            let q = batch.hidden(other, ctx, settings.format);
            for (chunk, targets) in batch.targets.chunks(LOGIT_ROWS).enumerate() {
                if interrupt.is_raised() {
                    return Err(Error::Interrupted);
                }
                let first = chunk * LOGIT_ROWS;
                let picked: Vec<usize> = (first..first + targets.len()).collect();
                let logits = |decoder: &Decoder, ctx: &mut Ctx, hidden: &Tensor| {
                    let hidden = ops::rows(ctx, hidden, &picked);
                    decoder.logits(ctx, &hidden)
                };
                let p = logits(reference, ctx, &p); // [M, V]
                let q = logits(other, ctx, &q);
                for row in rows(ctx, p.data(), q.data(), targets) {
                    sum.add(row);
                }
                tokens += targets.len() as u64;
                if !(sum.divergence + sum.reference + sum.other).is_finite() {
                    return Err(Error::NotFinite);
                }
                let perplexity = libm::exp(sum.other / tokens as f64);
                progress.update(
                    tokens,
                    &[
                        ("perplexity", perplexity),
                        ("kld", sum.divergence / tokens as f64),
                    ],
                );
            }
        }
        Ok(sum)
    };
    let sum = total();
    progress.end();
    let sum = sum?;
    let tokens = totals.tokens as f64;
    Ok(Comparison {
        reference: Scores::new(sum.reference, totals.tokens, totals.bytes),
        other: Scores::new(sum.other, totals.tokens, totals.bytes),
        kld: sum.divergence / tokens,
        same_top: sum.same_top / tokens,
    })
}

/// What one token adds.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    divergence: f64,
    same_top: f64,  // 1 or 0
    reference: f64, // loss in nats
    other: f64,
}

impl Row {
    fn add(&mut self, row: Row) {
        self.divergence += row.divergence;
        self.same_top += row.same_top;
        self.reference += row.reference;
        self.other += row.other;
    }

    /// One token's share from both models' logits `[V]`, in `f64`: differences of 1e-6 nats are of interest.
    fn new(p: &[f32], q: &[f32], target: usize) -> Row {
        let (top_p, top_q) = (highest(p), highest(q));
        let (most_p, most_q) = (f64::from(p[top_p]), f64::from(q[top_q]));
        let (mut sum_p, mut sum_q, mut difference) = (0.0, 0.0, 0.0);
        for (&p, &q) in p.iter().zip(q) {
            let (p, q) = (f64::from(p), f64::from(q));
            let weight = libm::exp(p - most_p);
            sum_p += weight;
            sum_q += libm::exp(q - most_q);
            difference += weight * (p - q);
        }
        // ln pᵥ − ln qᵥ is the difference of the logits less that of their log-sums.
        let (log_p, log_q) = (most_p + libm::log(sum_p), most_q + libm::log(sum_q));
        Row {
            divergence: difference / sum_p - (log_p - log_q),
            same_top: f64::from(top_p == top_q),
            reference: log_p - f64::from(p[target]),
            other: log_q - f64::from(q[target]),
        }
    }
}

/// The rows of a chunk, each by one task.
fn rows(ctx: &Ctx, p: &[f32], q: &[f32], targets: &[u32]) -> Vec<Row> {
    let vocab = p.len() / targets.len();
    let mut rows = vec![Row::default(); targets.len()];
    ctx.pool.for_each_chunk(&mut rows, 1, |m, row| {
        let columns = m * vocab..(m + 1) * vocab;
        row[0] = Row::new(&p[columns.clone()], &q[columns], targets[m] as usize);
    });
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_equals_the_formula() {
        let (p, q): ([f64; 4], [f64; 4]) = ([0.5, 0.25, 0.2, 0.05], [0.125, 0.5, 0.25, 0.125]);
        // Logits are free up to a constant, and each model has its own.
        let logits = |p: [f64; 4], shift: f64| p.map(|p| (p.ln() + shift) as f32);
        let row = Row::new(&logits(p, 30.0), &logits(q, -7.0), 2);
        let wanted: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
        // The logits are rounded to f32: near 30 by 2e-6.
        assert!(
            (row.divergence - wanted).abs() < 5e-6,
            "{row:?}, wanted {wanted}"
        );
        assert!(
            (row.reference + 0.2f64.ln()).abs() < 5e-6 && (row.other + 0.25f64.ln()).abs() < 5e-6,
            "{row:?}"
        );
        assert_eq!(row.same_top, 0.0);
    }

    #[test]
    fn a_row_against_itself_is_exactly_nothing() {
        let logits: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.7).sin() * 20.0).collect();
        let row = Row::new(&logits, &logits, 3);
        assert_eq!((row.divergence, row.same_top), (0.0, 1.0));
    }

    #[test]
    fn the_lower_id_wins_ties_for_the_top() {
        assert_eq!(
            Row::new(&[1.0, 2.0, 2.0], &[0.0, 3.0, 1.0], 0).same_top,
            1.0
        );
        assert_eq!(
            Row::new(&[1.0, 2.0, 2.0], &[0.0, 1.0, 3.0], 0).same_top,
            0.0
        );
    }
}
