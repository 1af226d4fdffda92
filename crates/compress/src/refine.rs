//! The matrices that a package stores, for bits that are chosen.

use std::sync::Arc;

use russet_kernels::Pool;
use russet_kernels::palette::Bits;

use crate::CompressError;
use crate::calibration::Calibration;
use crate::curvature::Curvature;
use crate::feedback::Refinement;
use crate::importance::Weights;
use crate::matrix::{self, Fitted};
use crate::model::{Model, Product, overflowed};
use crate::settings::{Settings, Weighting};
use crate::tap::{Covariance, Listen};
use crate::watch::Watch;

/// Bytes of covariances that are held at a time; where they take more, the text is read again.
pub(crate) const BYTES: usize = 2 << 30;

/// One matrix a projection.
pub(crate) fn matrices(
    pool: &Arc<Pool>,
    settings: &Settings,
    model: &Model,
    weights: &Weights,
    bits: &[Bits],
    calibration: &Calibration,
    watch: &mut Watch,
) -> Result<Vec<Fitted>, CompressError> {
    let mut fits = watch.part(
        "palettizing",
        model.weights() as usize,
        "weights",
        |watch| {
            model
                .projections
                .iter()
                .zip(bits)
                .map(|(projection, &bits)| {
                    let importance = weights.of(model, projection);
                    let fit = matrix::palettize(
                        pool,
                        model.weight(projection),
                        projection.cols,
                        importance,
                        bits,
                    );
                    watch.step(
                        model.weight(projection).len(),
                        &[("error", fit.relative_error())],
                    )?;
                    Ok(fit)
                })
                .collect::<Result<Vec<_>, CompressError>>()
        },
    )?;
    if settings.error_feedback {
        watch.part(
            "feeding errors back",
            model.weights() as usize,
            "weights",
            |watch| feed_back(pool, settings, model, calibration, &mut fits, watch),
        )?;
    }
    Ok(fits)
}

fn feed_back(
    pool: &Arc<Pool>,
    settings: &Settings,
    model: &Model,
    calibration: &Calibration,
    fits: &mut [Fitted],
    watch: &mut Watch,
) -> Result<(), CompressError> {
    let mut first = 0;
    while first < model.products.len() {
        let mut last = first;
        let mut bytes = 0;
        while last < model.products.len()
            && (last == first || bytes + covariance_bytes(&model.products[last]) <= BYTES)
        {
            bytes += covariance_bytes(&model.products[last]);
            last += 1;
        }
        let products: Vec<usize> = (first..last).collect();
        listen(settings, model, &products);
        let mut ctx = calibration.ctx(pool);
        for batch in &calibration.batches {
            model
                .decoder
                .forward(&mut ctx, &batch.tokens, &batch.segments(), None);
            watch.step(0, &[])?;
        }
        refine(pool, model, &products, fits, watch)?;
        first = last;
    }
    Ok(())
}

/// Has products gather the covariance of their inputs over what is run next.
pub(crate) fn listen(settings: &Settings, model: &Model, products: &[usize]) {
    let fisher = settings.weighting == Weighting::Fisher;
    for &number in products {
        let product = &model.products[number];
        let token_weights = if fisher {
            product.moments.token_weights.clone()
        } else {
            Vec::new()
        };
        product.tap.listen(Listen::Covariance(Covariance::new(
            product.layout.inputs,
            Arc::new(token_weights),
        )));
    }
}

/// Refines the projections of products by what [`listen`] had them gather; `fits` are those of all projections of the model.
pub(crate) fn refine(
    pool: &Pool,
    model: &Model,
    products: &[usize],
    fits: &mut [Fitted],
    watch: &mut Watch,
) -> Result<(), CompressError> {
    for &number in products {
        let product = &model.products[number];
        let Listen::Covariance(covariance) = product.tap.listen(Listen::Nothing) else {
            unreachable!("covariance was asked for")
        };
        let (mut sum, width) = (covariance.sum, product.layout.inputs);
        let outputs = covariance.outputs;
        if !(sum.iter().all(|x| x.is_finite()) && outputs.iter().all(|x| x.is_finite())) {
            let mut named = model.projections.iter();
            let of = named.find(|projection| projection.product == number);
            return Err(overflowed(of.map_or("a product", |of| &of.name)));
        }
        let of_product = |fits: &[Fitted], pairs: bool| -> Vec<usize> {
            let all = model.projections.iter().zip(fits).enumerate();
            all.filter(|(_, (projection, fit))| {
                projection.product == number && (fit.matrix.bits.dims() > 1) == pairs
            })
            .map(|(place, _)| place)
            .collect()
        };
        // Pairs see the columns in another order.
        let (singles, pairs) = (of_product(fits, false), of_product(fits, true));
        let both = !singles.is_empty() && !pairs.is_empty();
        for (places, in_pairs) in [(singles, false), (pairs, true)] {
            if places.is_empty() {
                continue;
            }
            let sum = match both && !in_pairs {
                true => sum.clone(),
                false => std::mem::take(&mut sum),
            };
            let curvature = Curvature::new(pool, sum, width, in_pairs);
            for place in places {
                let (projection, fit) = (&model.projections[place], &mut fits[place]);
                // Errors fed forward column by column, tables and scales refitted to what that chose, then each index once
                // more. A second refit gains less than 0.2 % of the error, no descent costs a tenth of it (LOG.md).
                let weight = model.weight(projection);
                let mut refinement =
                    Refinement::feed_back(pool, &curvature, weight, fit.matrix.clone());
                refinement.refit();
                let refinement = refinement.descend();
                fit.error = refinement.error();
                fit.energy = curvature.energy(&outputs[projection.rows.clone()], weight);
                fit.matrix = refinement.finish();
                watch.step(
                    model.weight(projection).len(),
                    &[("error", fit.relative_error())],
                )?;
            }
        }
    }
    Ok(())
}

fn covariance_bytes(product: &Product) -> usize {
    product.layout.inputs * product.layout.inputs * size_of::<f32>()
}
