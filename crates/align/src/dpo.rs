//! Learning from preferences: the losses of [`crate::preference`] on a decoder.
//!
//! A pair is two neighbouring segments of a batch, the chosen response and the rejected one, each behind the prompt. One
//! forward pass gives each response's log-probability, the loss of the pair and its slopes; the gradient is then that of the
//! weighted next-token loss with the slopes as weights, on the same hidden states. What it costs beyond a next-token step is one
//! more product with the output table.
//!
//! The reference's log-probabilities are computed once, by the model that training begins with, before the first step. They are
//! a function of the recipe's inputs, so a run that goes on computes the same ones again and nothing has to be stored.

use std::collections::HashMap;
use std::sync::Arc;

use russet_model::Decoder;
use russet_tensor::Ctx;
use russet_tensor::ops::{IGNORE, TokenLoss, stand_in};
use russet_train::validation::GoesOn;
use russet_train::{Batch, Measured, Objective, VALIDATION_LOSS};

use crate::data::Source;
use crate::preference::{PairLoss, Scored, pair_loss};
use crate::settings::DpoSettings;

/// Log-probabilities of the chosen and the rejected response of each row.
type Table = HashMap<usize, [f64; 2]>;

/// What the model that training begins with says of every response.
#[derive(Debug)]
pub struct Reference {
    train: Vec<Table>,
    validation: Vec<Table>,
}

impl Reference {
    /// Asks a decoder, one pair a pass: rows have the same bits in a pass of any size.
    pub fn of(
        ctx: &mut Ctx,
        decoder: &Decoder,
        train: &[Source],
        validation: &[Source],
    ) -> Reference {
        let mut table = |source: &Source| {
            let pair = |sequence: usize| {
                let mut batch = Batch::default();
                source.append(&mut batch, 0, sequence);
                let scored = scored(&batch, &token_losses(ctx, decoder, &batch).1);
                let row = batch.origins[0].documents.start;
                (row, [scored[0].0, scored[1].0])
            };
            (0..source.sequences.len()).map(pair).collect::<Table>()
        };
        Reference {
            train: train.iter().map(&mut table).collect(),
            validation: validation.iter().map(&mut table).collect(),
        }
    }
}

/// Hidden states and each token's loss.
fn token_losses(
    ctx: &mut Ctx,
    decoder: &Decoder,
    batch: &Batch,
) -> (russet_tensor::Tensor, Vec<f32>) {
    let hidden = decoder.forward(ctx, &batch.tokens, &batch.segments, None); // [N, D]
    let losses = decoder.token_losses(ctx, &hidden, &batch.targets);
    (hidden, losses)
}

/// Of each segment the log-probability of its learnt tokens, and their number.
fn scored(batch: &Batch, losses: &[f32]) -> Vec<(f64, usize)> {
    let one = |segment: &russet_tensor::Segment| {
        let rows = segment.start..segment.start + segment.len;
        let sum: f64 = losses[rows.clone()]
            .iter()
            .map(|&loss| -f64::from(loss))
            .sum();
        let tokens = batch.targets[rows]
            .iter()
            .filter(|&&target| target != IGNORE)
            .count();
        (sum, tokens)
    };
    batch.segments.iter().map(one).collect()
}

/// The loss of preferences against a reference.
pub struct Preferences {
    settings: DpoSettings,
    reference: Arc<Reference>,
    held_out: bool,
}

impl Preferences {
    /// Of the rows that are trained on.
    pub fn new(settings: DpoSettings, reference: Arc<Reference>) -> Preferences {
        Preferences {
            settings,
            reference,
            held_out: false,
        }
    }

    /// The same of the held-out rows.
    pub fn held_out(self) -> Preferences {
        Preferences {
            held_out: true,
            ..self
        }
    }

    /// The losses of a batch's pairs, in order.
    fn pairs(&self, batch: &Batch, losses: &[f32]) -> Vec<PairLoss> {
        let tables = match self.held_out {
            true => &self.reference.validation,
            false => &self.reference.train,
        };
        let scored = scored(batch, losses);
        let pair = |(scored, origins): (&[(f64, usize)], &[russet_train::Origin])| {
            let known = tables[origins[0].source][&origins[0].documents.start];
            let side = |side: usize| Scored {
                policy: scored[side].0,
                reference: known[side],
                tokens: scored[side].1,
            };
            let DpoSettings {
                loss,
                beta,
                length_normalised,
            } = self.settings;
            pair_loss(loss, beta, length_normalised, side(0), side(1))
        };
        scored
            .chunks_exact(2)
            .zip(batch.origins.chunks_exact(2))
            .map(pair)
            .collect()
    }

    /// Mean loss of held-out pairs, as [`VALIDATION_LOSS`]; the share of pairs whose margin is above 0, of which ties are half;
    /// and the mean margin. None where told to stop.
    pub fn measure(
        &self,
        passes: &[Batch],
        ctx: &mut Ctx,
        decoder: &Decoder,
        goes_on: &mut GoesOn,
    ) -> Option<Measured> {
        let (mut loss, mut right, mut margin, mut count) = (0.0, 0.0, 0.0, 0u64);
        for (number, pass) in passes.iter().enumerate() {
            if !goes_on(number as f64 / passes.len() as f64) {
                return None;
            }
            let (_, losses) = token_losses(ctx, decoder, pass);
            for pair in self.pairs(pass, &losses) {
                loss += pair.loss;
                margin += pair.margin;
                right += match pair.margin {
                    above if above > 0.0 => 1.0,
                    0.0 => 0.5,
                    _ => 0.0,
                };
                count += 1;
            }
        }
        let mean = |sum: f64| sum / count.max(1) as f64;
        Some(vec![
            (VALIDATION_LOSS, mean(loss)),
            ("preference_accuracy", mean(right)),
            ("preference_margin", mean(margin)),
        ])
    }
}

impl Objective for Preferences {
    fn loss(&self, decoder: &Decoder, ctx: &mut Ctx, batch: &Batch) -> TokenLoss {
        let (hidden, losses) = token_losses(ctx, decoder, batch);
        let mut weights = batch.weights.clone(); // 1 / pairs of the step on what is learnt, else 0
        let mut value = 0.0;
        let segments: Vec<_> = batch.segments.iter().collect();
        for (pair, sides) in self
            .pairs(batch, &losses)
            .iter()
            .zip(segments.chunks_exact(2))
        {
            for (segment, slope) in sides.iter().zip([pair.chosen, pair.rejected]) {
                let rows = segment.start..segment.start + segment.len;
                let share = weights[rows.clone()]
                    .iter()
                    .fold(0.0f32, |most, &weight| most.max(weight));
                weights[rows]
                    .iter_mut()
                    .for_each(|weight| *weight *= slope as f32);
                value += 0.5 * f64::from(share) * pair.loss; // both sides have it
            }
        }
        let made = decoder.loss(ctx, &hidden, &batch.targets, &weights);
        TokenLoss {
            loss: stand_in(ctx, &made.loss, value as f32),
            per_token: made.per_token,
        }
    }
}

#[cfg(test)]
mod tests;
