//! The model that is compressed: its products behind taps, and its projections by name.

use std::ops::Range;
use std::sync::Arc;

use russet_kernels::Pool;
use russet_model::{Decoder, Dense, Layout, ParameterKind};
use russet_tensor::{Gradients, Tensor};

use crate::CompressError;
use crate::calibration::Calibration;
use crate::matrix::Matrix;
use crate::tap::{self, Handle, Listen, Moments};
use crate::watch::Watch;

/// A dense decoder under compression.
pub(crate) struct Model {
    pub decoder: Decoder,
    /// In the order of the forward pass.
    pub products: Vec<Product>,
    /// In the order of the forward pass.
    pub projections: Vec<Projection>,
    /// That moments were gathered over.
    pub tokens: usize,
}

/// One product of the forward pass, which packs one or more projections.
pub(crate) struct Product {
    pub tap: Handle,
    pub layout: Layout,
    pub weight: Tensor, // [F, D]
    /// What was gathered of it.
    pub moments: Moments,
}

/// One named projection.
pub(crate) struct Projection {
    pub name: String,
    /// Its product.
    pub product: usize,
    /// Its rows in the product's weight.
    pub rows: Range<usize>,
    /// Its inputs.
    pub cols: usize,
}

impl Model {
    /// Puts a dense decoder behind taps.
    pub fn new(decoder: Decoder) -> Result<Model, CompressError> {
        let (decoder, taps) = tap::tapped(decoder);
        let (mut products, mut projections) = (Vec::new(), Vec::new());
        for (linear, tap) in decoder.linears().zip(taps) {
            let mut weight = None;
            linear.visit(&mut |parameter| {
                if parameter.kind == ParameterKind::Matrix {
                    weight = Some(parameter.tensor.clone());
                }
            });
            let layout = linear.layout().clone();
            let weight = weight.ok_or_else(|| {
                CompressError::Checkpoint(format!(
                    "`{}` is palettized already; give the dense checkpoint that the package was made of",
                    layout.projections[0].name
                ))
            })?;
            for (projection, rows) in layout.ranges() {
                let (name, cols) = (projection.name.clone(), layout.inputs);
                check_finite(
                    &name,
                    &weight.data()[rows.start * cols..rows.end * cols],
                    cols,
                )?;
                projections.push(Projection {
                    name,
                    product: products.len(),
                    rows,
                    cols,
                });
            }
            products.push(Product {
                tap,
                layout,
                weight,
                moments: Moments::default(),
            });
        }
        check_tables(&decoder)?;
        Ok(Model {
            decoder,
            products,
            projections,
            tokens: 0,
        })
    }

    /// Weights of all projections.
    pub fn weights(&self) -> u64 {
        self.projections.iter().map(Projection::weights).sum()
    }

    /// A projection's weights, `[rows, cols]`.
    pub fn weight(&self, projection: &Projection) -> &[f32] {
        let range = projection.rows.start * projection.cols..projection.rows.end * projection.cols;
        &self.products[projection.product].weight.data()[range]
    }

    /// Gathers moments of all products over the text, with Fisher information where `fisher`, and returns the loss
    /// in nats a token.
    pub fn gather(
        &mut self,
        pool: &Arc<Pool>,
        calibration: &Calibration,
        fisher: bool,
        watch: &mut Watch,
    ) -> Result<f64, CompressError> {
        for product in &self.products {
            product.tap.listen(Listen::Moments(Moments::default()));
        }
        let mut ctx = calibration.ctx(pool);
        let mut gradients = Gradients::default();
        // A gradient must be wanted of something at the bottom, so that one flows through every product.
        let bottom = self
            .decoder
            .parameters()
            .iter()
            .find(|p| p.kind == ParameterKind::Norm)
            .map(|p| p.tensor.id());
        let (mut sum, mut tokens) = (0.0, 0);
        for batch in &calibration.batches {
            if fisher {
                ctx.start_tape(bottom);
            }
            let hidden = self
                .decoder
                .forward(&mut ctx, &batch.tokens, &batch.segments(), None);
            let losses = if fisher {
                let weights = vec![1.0; batch.tokens.len()];
                let loss = self
                    .decoder
                    .loss(&mut ctx, &hidden, &batch.targets, &weights);
                ctx.backward(&loss.loss, 1.0, &mut gradients);
                gradients.clear();
                loss.per_token
            } else {
                self.decoder.token_losses(&mut ctx, &hidden, &batch.targets)
            };
            sum += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
            tokens += batch.tokens.len();
            watch.step(batch.tokens.len(), &[("loss", sum / tokens as f64)])?;
        }
        for product in &mut self.products {
            let Listen::Moments(moments) = product.tap.listen(Listen::Nothing) else {
                unreachable!("moments were asked for")
            };
            product.moments = moments;
        }
        self.tokens = tokens;
        self.check_moments()?;
        finite(sum / tokens as f64)
    }

    /// Refuses moments that overflowed: what is made of them would choose nothing.
    pub fn check_moments(&self) -> Result<(), CompressError> {
        let too_large = |product: &Product| {
            let moments = &product.moments;
            let mut floats = moments.fisher.iter().chain(&moments.token_weights);
            !(moments.inputs.iter().all(|x| x.is_finite()) && floats.all(|x| x.is_finite()))
        };
        let mut named = self.projections.iter();
        match named.find(|projection| too_large(&self.products[projection.product])) {
            None => Ok(()),
            Some(projection) => Err(overflowed(&projection.name)),
        }
    }

    /// Runs with one projection's weights replaced from now on, until [`Handle::replace`] is called again.
    pub fn try_one(&self, pool: &Pool, projection: &Projection, matrix: &Matrix) {
        let product = &self.products[projection.product];
        let mut weight = product.weight.data().to_vec();
        matrix.dequantize(
            pool,
            &mut weight
                [projection.rows.start * projection.cols..projection.rows.end * projection.cols],
        );
        let weight = Tensor::new(product.weight.shape(), weight);
        product
            .tap
            .replace(Some(Arc::new(Dense::new(product.layout.clone(), weight))));
    }
}

impl Projection {
    /// How many weights.
    pub fn weights(&self) -> u64 {
        (self.rows.len() * self.cols) as u64
    }
}

/// Whether the tables of a decoder are numbers.
pub(crate) fn check_tables(decoder: &Decoder) -> Result<(), CompressError> {
    let parameters = decoder.parameters();
    let tables = parameters
        .iter()
        .filter(|p| p.kind == ParameterKind::Embedding);
    for table in tables {
        check_finite(
            &table.parts[0].0,
            table.tensor.data(),
            table.tensor.dims2().1,
        )?;
    }
    Ok(())
}

/// What is said of calibration text that brings infinities to a projection.
pub(crate) fn overflowed(name: &str) -> CompressError {
    CompressError::Calibration(format!(
        "brings numbers too large for f32 to `{name}`; the checkpoint is probably of a diverged run"
    ))
}

/// The loss of calibration text, refused where it is no number.
pub(crate) fn finite(loss: f64) -> Result<f64, CompressError> {
    match loss.is_finite() {
        true => Ok(loss),
        false => Err(CompressError::Calibration(format!(
            "has a loss of {loss} under the checkpoint, which is probably of a diverged run; palettize one that still learnt"
        ))),
    }
}

/// Refuses weights that are no numbers.
pub(crate) fn check_finite(name: &str, weight: &[f32], cols: usize) -> Result<(), CompressError> {
    match weight.iter().position(|w| !w.is_finite()) {
        None => Ok(()),
        Some(at) => {
            let name = name.strip_suffix(".weight").unwrap_or(name);
            Err(CompressError::Weight {
                name: format!("{name}.weight"),
                value: weight[at],
                row: at / cols,
                column: at % cols,
            })
        }
    }
}
