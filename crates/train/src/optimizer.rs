//! From gradients to weights.
//!
//! AdamW (arXiv 1711.05101) over `decoder.parameters()`. Weight decay goes to matrices and tables, never to norms: a norm's
//! weight multiplies what has just been brought to unit size, so pulling it to zero shrinks the signal and regularises
//! nothing. The embedding decays with the matrices because where it is tied it *is* the output matrix, and without decay
//! the logits grow freely; a row whose token never comes shrinks, which is what a row that means nothing should do.
//!
//! Gradients are first brought below a norm, all of them together (arXiv 1211.5063). Sums of squares are taken in f64 in a
//! fixed order, so the norm does not depend on threads.

use std::path::Path;

use russet_kernels::optimizer::{self as kernel};
use russet_kernels::{Pool, elementwise};
use russet_model::stored::{self, Output, Stored};
use russet_model::{Decoder, Parameter, ParameterKind};
use russet_tensor::{DType, Gradients};
use serde::{Deserialize, Serialize};

use crate::Result;

/// The file of a saved optimizer, without its ending.
const FILE: &str = "optimizer";

/// A rule for updating weights, with what it remembers of earlier steps.
#[derive(Debug)]
pub enum Optimizer {
    /// Adam with decoupled weight decay.
    AdamW(AdamW),
}

/// Settings of AdamW.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamWSettings {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// λ; a step takes `learning rate · λ` of each decayed weight.
    pub weight_decay: f64,
}

/// AdamW's moments, in the order of `decoder.parameters()`.
#[derive(Debug)]
pub struct AdamW {
    settings: AdamWSettings,
    moments: Vec<Moments>,
}

#[derive(Debug)]
struct Moments {
    decays: bool,
    m: Vec<f32>,
    v: Vec<f32>,
}

impl Optimizer {
    /// AdamW before its first step.
    pub fn adamw(settings: AdamWSettings, decoder: &Decoder) -> Optimizer {
        let moments = |parameter: Parameter| Moments {
            decays: decays(parameter.kind),
            m: vec![0.0; parameter.tensor.len()],
            v: vec![0.0; parameter.tensor.len()],
        };
        let moments = decoder.parameters().into_iter().map(moments).collect();
        Optimizer::AdamW(AdamW { settings, moments })
    }

    /// Updates every weight that has a gradient. `step` counts from 1.
    ///
    /// # Panics
    /// When the decoder is not the one that the optimizer was made for.
    pub fn update(
        &mut self,
        pool: &Pool,
        decoder: &mut Decoder,
        gradients: &Gradients,
        step: u64,
        rate: f64,
    ) {
        let Optimizer::AdamW(AdamW { settings, moments }) = self;
        let mut moments = moments.iter_mut();
        decoder.visit_mut(&mut |tensor| {
            let Moments { decays, m, v } = moments
                .next()
                .expect("a decoder with the parameters of the optimizer's");
            let Some(gradient) = gradients.get(tensor) else {
                return;
            };
            let adamw = kernel::AdamW {
                lr: rate as f32,
                beta1: settings.beta1 as f32,
                beta2: settings.beta2 as f32,
                eps: settings.epsilon as f32,
                weight_decay: if *decays {
                    settings.weight_decay as f32
                } else {
                    0.0
                },
                step,
            };
            kernel::adamw_step(pool, &adamw, tensor.data_mut(), gradient.data(), m, v);
        });
        assert!(
            moments.next().is_none(),
            "a decoder with fewer parameters than the optimizer's"
        );
    }

    /// Bytes that it remembers.
    pub fn bytes(&self) -> usize {
        let Optimizer::AdamW(AdamW { moments, .. }) = self;
        moments
            .iter()
            .map(|moments| size_of_val(&moments.m[..]) + size_of_val(&moments.v[..]))
            .sum()
    }

    /// Writes `optimizer.safetensors`: the moments under the parameters' names with `.m` and `.v` added.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, decoder: &Decoder, folder: &Path) -> Result<()> {
        let Optimizer::AdamW(AdamW { moments, .. }) = self;
        let mut outputs = Vec::new();
        for (parameter, moments) in decoder.parameters().iter().zip(moments) {
            for (moment, values) in [("m", &moments.m), ("v", &moments.v)] {
                let mut rest = &values[..];
                for (name, shape) in parts(parameter) {
                    let (part, after) = rest.split_at(shape.iter().product());
                    let bytes = bytemuck::cast_slice(part);
                    outputs.push(Output {
                        name: format!("{name}.{moment}"),
                        dtype: DType::F32,
                        shape,
                        bytes,
                    });
                    rest = after;
                }
            }
        }
        Ok(stored::write(folder, FILE, &outputs, stored::SHARD_BYTES)?)
    }

    /// Reads what [`Optimizer::save`] wrote.
    ///
    /// # Errors
    /// When the file is missing, damaged, or of another decoder.
    pub fn load(&mut self, decoder: &Decoder, folder: &Path) -> Result<()> {
        let Optimizer::AdamW(AdamW { moments, .. }) = self;
        let mut stored = Stored::open(folder, FILE)?;
        for (parameter, moments) in decoder.parameters().iter().zip(moments) {
            for (moment, values) in [("m", &mut moments.m), ("v", &mut moments.v)] {
                let mut rest = &mut values[..];
                for (name, shape) in parts(parameter) {
                    let (part, after) = rest.split_at_mut(shape.iter().product());
                    part.copy_from_slice(
                        stored.take_f32(&format!("{name}.{moment}"), &shape)?.data(),
                    );
                    rest = after;
                }
            }
        }
        Ok(stored.finish()?)
    }
}

/// Which weights decay; see the top of the file. The matrices of an adapter are matrices.
fn decays(kind: ParameterKind) -> bool {
    match kind {
        ParameterKind::Matrix | ParameterKind::Embedding | ParameterKind::Adapter { .. } => true,
        ParameterKind::Norm => false,
    }
}

/// The named tensors that a parameter packs, each with its shape.
fn parts(parameter: &Parameter) -> Vec<(String, Vec<usize>)> {
    let shape = parameter.tensor.shape();
    let width = *shape.last().expect("a parameter has a shape");
    let part = |(name, rows): &(String, usize)| {
        (
            name.clone(),
            if shape.len() == 1 {
                vec![width]
            } else {
                vec![*rows, width]
            },
        )
    };
    parameter.parts.iter().map(part).collect()
}

/// The Euclidean norm of all gradients as one vector.
pub fn gradient_norm(pool: &Pool, decoder: &Decoder, gradients: &Gradients) -> f64 {
    let parameters = decoder.parameters();
    let gradients = parameters
        .iter()
        .filter_map(|parameter| gradients.get(parameter.tensor));
    gradients
        .map(|gradient| elementwise::sum_of_squares(pool, gradient.data()))
        .sum::<f64>()
        .sqrt()
}

/// Multiplies every gradient by `limit / norm` where `norm`, which [`gradient_norm`] gave, is above `limit`.
pub fn clip_gradients(
    pool: &Pool,
    decoder: &Decoder,
    gradients: &mut Gradients,
    norm: f64,
    limit: f64,
) {
    if norm <= limit {
        return;
    }
    for parameter in decoder.parameters() {
        if let Some(gradient) = gradients.get_mut(parameter.tensor) {
            elementwise::scale_in_place(pool, gradient, (limit / norm) as f32);
        }
    }
}

#[cfg(test)]
mod tests;
