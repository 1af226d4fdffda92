//! What fewer bits cost each projection over four, in nats a token.
//!
//! Predicted: the loss is flat at a trained model, so to second order Δw costs ½ Σ F Δw² with the diagonal Fisher
//! information F. Measured: the divergence KL(dense ‖ changed) of the next token's distribution, with only that
//! projection changed, over a part of the calibration text. It is never negative and, unlike the loss, has no noise
//! from what the text happens to say next.

use std::sync::Arc;

use russet_kernels::palette::Bits;
use russet_kernels::{Pool, cross_entropy};
use russet_model::Decoder;
use russet_tensor::{Ctx, Tensor, ops};

use crate::CompressError;
use crate::calibration::{Batch, Calibration};
use crate::importance::Weights;
use crate::kept::{Folder, numbered};
use crate::matrix::{self, Fitted};
use crate::model::{Model, Projection, overflowed};
use crate::watch::Watch;

/// At most so many tokens are run for each measurement.
pub(crate) const TOKENS: usize = 4096;

/// Rows of logits that are formed at a time.
const ROWS: usize = 128;

/// By prediction, of each projection a number for each of `fitted`. Moments must have been gathered with Fisher information.
pub(crate) fn predicted(
    pool: &Pool,
    model: &Model,
    weights: &Weights,
    fitted: &[Bits],
    watch: &mut Watch,
) -> Result<Vec<Vec<f64>>, CompressError> {
    watch.part(
        "predicting what fewer bits cost",
        model.weights() as usize,
        "weights",
        |watch| {
            model
                .projections
                .iter()
                .map(|projection| {
                    let (_, rises) = each(pool, model, weights, projection, fitted);
                    watch.step(projection.weights() as usize, &[])?;
                    Ok(rises)
                })
                .collect()
        },
    )
}

/// One projection with each of the bits, the last of which are four, and by prediction what each costs over four.
pub(crate) fn each(
    pool: &Pool,
    model: &Model,
    weights: &Weights,
    projection: &Projection,
    fitted: &[Bits],
) -> (Vec<Fitted>, Vec<f64>) {
    let weight = model.weight(projection);
    let fisher = Weights::fisher(model, projection);
    let importance = weights.of(model, projection);
    let fits = matrix::palettize_each(pool, weight, projection.cols, importance, fitted);
    let error = |fit: &Fitted| match weights.are_fisher() {
        true => fit.error,
        false => fit.matrix.error(pool, weight, fisher),
    };
    let errors: Vec<f64> = fits.iter().map(error).collect();
    let rises = over_four(&errors);
    let rises = rises.map(|rise| 0.5 * rise / model.tokens as f64);
    (fits, rises.collect())
}

/// Costs of each of the bits less that of four, the last.
fn over_four(costs: &[f64]) -> impl Iterator<Item = f64> {
    let four = costs.last().expect("four bits are always fitted");
    costs.iter().map(move |cost| cost - four)
}

/// By measurement, of each projection a number for each of `fitted`. What is measured lies in `kept` and is not measured again.
pub(crate) fn measured(
    pool: &Arc<Pool>,
    model: &Model,
    weights: &Weights,
    calibration: &Calibration,
    fitted: &[Bits],
    kept: &Folder,
    watch: &mut Watch,
) -> Result<Vec<Vec<f64>>, CompressError> {
    let step = calibration.tokens().div_ceil(TOKENS).max(1);
    let part: Vec<Batch> = calibration.batches.iter().step_by(step).cloned().collect();
    let dense = hidden_states(pool, &model.decoder, &part);
    watch.part(
        "measuring what fewer bits cost",
        model.projections.len(),
        "projections",
        |watch| {
            model
                .projections
                .iter()
                .enumerate()
                .map(|(number, projection)| {
                    let name = numbered("rises", number);
                    if let Some(rises) = kept.numbers(&name, fitted.len())? {
                        watch.resumed(1);
                        return Ok(rises);
                    }
                    let (weight, cols) = (model.weight(projection), projection.cols);
                    let importance = weights.of(model, projection);
                    let fits = matrix::palettize_each(pool, weight, cols, importance, fitted);
                    let mut costs = vec![0.0; fitted.len()];
                    for (cost, fit) in costs.iter_mut().zip(fits) {
                        model.try_one(pool, projection, &fit.matrix);
                        *cost = divergence(
                            pool,
                            &model.decoder,
                            &dense,
                            &hidden_states(pool, &model.decoder, &part),
                        );
                        model.products[projection.product].tap.replace(None);
                    }
                    if !costs.iter().all(|cost| cost.is_finite()) {
                        return Err(overflowed(&projection.name));
                    }
                    let rises: Vec<f64> = over_four(&costs).collect();
                    kept.put_numbers(&name, &rises)?;
                    watch.step(1, &[("nats", rises[0])])?;
                    Ok(rises)
                })
                .collect()
        },
    )
}

/// The final hidden states of each batch, in f32.
pub(crate) fn hidden_states(pool: &Arc<Pool>, decoder: &Decoder, batches: &[Batch]) -> Vec<Tensor> {
    let mut ctx = Ctx::new(Arc::clone(pool));
    batches
        .iter()
        .map(|batch| decoder.forward(&mut ctx, &batch.tokens, &batch.segments(), None))
        .collect()
}

/// KL(p ‖ q) in nats, averaged over tokens, of the distributions that two runs' hidden states give.
pub(crate) fn divergence(pool: &Arc<Pool>, decoder: &Decoder, p: &[Tensor], q: &[Tensor]) -> f64 {
    let mut ctx = Ctx::new(Arc::clone(pool));
    let vocab = decoder.config().vocab;
    let (mut sum, mut tokens) = (0.0, 0);
    for (p, q) in p.iter().zip(q) {
        let rows: Vec<usize> = (0..p.dims2().0).collect();
        for rows in rows.chunks(ROWS) {
            let logits = [p, q].map(|hidden| {
                let hidden = ops::rows(&mut ctx, hidden, rows);
                decoder.logits(&mut ctx, &hidden)
            });
            let mut each = vec![0.0f64; rows.len()];
            pool.for_each_chunk(&mut each, 1, |row, each| {
                let [p, q] = logits.each_ref().map(|logits| {
                    let mut row = logits.data()[row * vocab..][..vocab].to_vec();
                    cross_entropy::log_softmax(pool.isa(), &mut row);
                    row
                });
                each[0] = p
                    .iter()
                    .zip(&q)
                    .map(|(&p, &q)| f64::from(p.exp() * (p - q)))
                    .sum();
            });
            sum += each.iter().sum::<f64>();
            tokens += rows.len();
        }
    }
    sum / tokens as f64
}
