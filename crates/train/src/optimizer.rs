//! From gradients to weights.
//!
//! One of three rules over `decoder.parameters()`; the formulas stand in `russet_kernels::optimizer`. Weight decay goes to
//! matrices and tables, never to norms: a norm's weight multiplies what has just been brought to unit size, so pulling it
//! to zero shrinks the signal and regularises nothing. The embedding decays with the matrices because where it is tied it
//! *is* the output matrix, and without decay the logits grow freely; a row whose token never comes shrinks, which is what
//! a row that means nothing should do.
//!
//! A *parameter block*, whose update AdaStar limits, is one named matrix of one layer, as in AXLearn. What is packed here
//! for the sake of larger products is several blocks: query, key and value are three row ranges of one tensor, gate and up
//! two. A norm is a block, and so is a table.
//!
//! muP-simple (AFM; arXiv 2309.14322 calls it so): the rate of every matrix is multiplied by base width / model width, that
//! of tables and norms by 1. The matrices of an adapter keep 1: their rate is not one found at another width.
//!
//! Gradients are first brought below a norm, all of them together (arXiv 1211.5063), and from another norm on the step is
//! skipped. Sums of squares are taken in f64 in a fixed order, so norms do not depend on threads. The factor that shortens
//! is handed to the rule, which multiplies as it reads.

use russet_kernels::optimizer as kernel;
use russet_kernels::{Pool, elementwise};
use russet_model::stored::Output;
use russet_model::{Cut, Decoder, Parameter, ParameterKind};
use russet_tensor::mesh::{Axis, Mesh};
use russet_tensor::{Gradients, Tensor};

use crate::Result;
use crate::named;
use crate::pieces::Pieces;
use crate::settings::{AdaStarSettings, OptimizerSettings};

/// A rule for updating weights, with what it remembers of earlier steps.
#[derive(Clone, Debug)]
pub struct Optimizer {
    rule: OptimizerSettings,
    moments: Vec<Moments>, // in the order of `decoder.parameters()`
}

/// What one step is told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Which update of the weights this is, counted from 1; skipped ones are not counted.
    pub update: u64,
    /// The learning rate.
    pub rate: f64,
    /// The learning rate as a share of its peak.
    pub share: f64,
    /// What gradients are multiplied by; see [`clip_factor`].
    pub grad_scale: f32,
}

/// What is remembered of one parameter. All rules keep two numbers a weight: a mean of updates or gradients, and one of
/// squares.
#[derive(Clone, Debug)]
struct Moments {
    cut: Cut, // its parts are the blocks
    decays: bool,
    multiplier: f64, // of the rate
    m: Vec<f32>,
    v: Vec<f32>,
}

impl Optimizer {
    /// Before the first step.
    pub fn new(rule: OptimizerSettings, decoder: &Decoder) -> Optimizer {
        let width = decoder.config().width;
        let moments = |parameter: Parameter| Moments {
            cut: named::cut(&parameter),
            decays: decays(parameter.kind),
            multiplier: multiplier(&rule, parameter.kind, width),
            m: vec![0.0; parameter.tensor.len()],
            v: vec![0.0; parameter.tensor.len()],
        };
        let moments = decoder.parameters().into_iter().map(moments).collect();
        Optimizer { rule, moments }
    }

    /// Updates every weight that has a gradient.
    ///
    /// # Panics
    /// When the decoder is not the one that the optimizer was made for.
    pub fn update(
        &mut self,
        pool: &Pool,
        decoder: &mut Decoder,
        gradients: &Gradients,
        step: Step,
    ) {
        let rule = self.rule;
        if let (OptimizerSettings::AdaStar(settings), Some(mesh)) = (&rule, decoder.mesh()) {
            let mesh = mesh.clone();
            return self.adastar_in_pieces(pool, settings, &mesh, decoder, gradients, step);
        }
        let mut moments = self.moments.iter_mut();
        decoder.visit_mut(&mut |tensor| {
            let moments = moments
                .next()
                .expect("a decoder with the parameters of the optimizer's");
            if let Some(gradient) = gradients.get(tensor) {
                let (weight, gradient) = (tensor.data_mut(), gradient.data());
                moments.update(pool, &rule, step, weight, gradient);
            }
        });
        assert!(
            moments.next().is_none(),
            "a decoder with fewer parameters than the optimizer's"
        );
    }

    /// AdaStar where blocks are in pieces: all first passes, one sum over the ranks that have pieces, all second passes.
    fn adastar_in_pieces(
        &mut self,
        pool: &Pool,
        settings: &AdaStarSettings,
        mesh: &Mesh,
        decoder: &mut Decoder,
        gradients: &Gradients,
        step: Step,
    ) {
        let mut sums = Vec::new();
        for (moments, parameter) in self.moments.iter_mut().zip(decoder.parameters()) {
            let adastar = moments.adastar(settings, step);
            let speaks = !moments.cut.replicated || mesh.place(Axis::Tensor) == 0;
            let gradient = gradients.get(parameter.tensor).map(Tensor::data);
            for block in moments.cut.blocks() {
                let v = &mut moments.v[block.clone()];
                let sum = gradient.map_or(0.0, |gradient| {
                    kernel::adastar_squares(pool, &adastar, &gradient[block], v)
                });
                sums.push(if speaks { sum } else { 0.0 });
            }
        }
        let mut whole = vec![0.0; sums.len()];
        for heard in mesh.model().all_gather_f64(&sums) {
            for (sum, part) in whole.iter_mut().zip(heard) {
                *sum += part;
            }
        }
        let (mut moments, mut sums) = (self.moments.iter_mut(), whole.into_iter());
        decoder.visit_mut(&mut |tensor| {
            let moments = moments.next().expect("as many as parameters");
            let adastar = moments.adastar(settings, step);
            let gradient = gradients.get(tensor).map(Tensor::data);
            for (part, block) in moments.cut.parts.iter().zip(moments.cut.blocks()) {
                let sum = sums.next().expect("as many as blocks");
                let Some(gradient) = gradient else { continue };
                let mean = sum / part.shape.iter().product::<usize>() as f64;
                kernel::adastar_apply(
                    pool,
                    &adastar,
                    mean,
                    &mut tensor.data_mut()[block.clone()],
                    &gradient[block.clone()],
                    &mut moments.m[block.clone()],
                    &moments.v[block],
                );
            }
        });
    }

    /// Bytes that it remembers.
    pub fn bytes(&self) -> usize {
        self.moments
            .iter()
            .map(|moments| size_of_val(&moments.m[..]) + size_of_val(&moments.v[..]))
            .sum()
    }

    /// Adds the moments to the tensors of a file, under the parameters' names with `.m` and `.v` added.
    pub(crate) fn outputs<'a>(&'a self, outputs: &mut Vec<Output<'a>>) {
        for Moments { cut, m, v, .. } in &self.moments {
            named::write(cut, m, ".m", outputs);
            named::write(cut, v, ".v", outputs);
        }
    }

    /// Reads what [`Optimizer::outputs`] wrote, on whatever mesh.
    ///
    /// # Errors
    /// When something is missing, damaged, or of another decoder.
    pub(crate) fn load(&mut self, saved: &mut Pieces) -> Result<()> {
        for (number, Moments { cut, m, v, .. }) in self.moments.iter_mut().enumerate() {
            *m = saved.read(number, cut, ".m")?;
            *v = saved.read(number, cut, ".v")?;
        }
        Ok(())
    }
}

impl Moments {
    fn adastar(&self, settings: &AdaStarSettings, step: Step) -> kernel::AdaStar {
        let decay = match self.decays {
            true => settings.weight_decay,
            false => 0.0,
        };
        kernel::AdaStar {
            rate: (step.rate * self.multiplier) as f32,
            decay: (step.share * decay) as f32,
            beta1: settings.beta1 as f32,
            beta2: settings.beta2 as f32,
            eps: settings.epsilon as f32,
            clip_rms: match settings.clip_rms {
                0.0 => f32::INFINITY,
                limit => limit as f32,
            },
            grad_scale: step.grad_scale,
            step: step.update,
        }
    }

    fn update(
        &mut self,
        pool: &Pool,
        rule: &OptimizerSettings,
        step: Step,
        weight: &mut [f32],
        gradient: &[f32],
    ) {
        let decay = if self.decays {
            rule.weight_decay()
        } else {
            0.0
        };
        let rate = step.rate * self.multiplier;
        match rule {
            OptimizerSettings::AdamW(settings) => {
                let (m, v) = (&mut self.m[..], &mut self.v[..]);
                let adamw = kernel::AdamW {
                    lr: rate as f32,
                    beta1: settings.beta1 as f32,
                    beta2: settings.beta2 as f32,
                    eps: settings.epsilon as f32,
                    weight_decay: decay as f32,
                    grad_scale: step.grad_scale,
                    step: step.update,
                };
                kernel::adamw_step(pool, &adamw, weight, gradient, m, v);
            }
            OptimizerSettings::AdaStar(settings) => {
                let adastar = self.adastar(settings, step);
                for block in self.cut.blocks() {
                    kernel::adastar_step(
                        pool,
                        &adastar,
                        &mut weight[block.clone()],
                        &gradient[block.clone()],
                        &mut self.m[block.clone()],
                        &mut self.v[block],
                    );
                }
            }
            OptimizerSettings::RmsProp(settings) => {
                let (m, v) = (&mut self.m[..], &mut self.v[..]);
                let rmsprop = kernel::RmsProp {
                    lr: rate as f32,
                    alpha: settings.alpha as f32,
                    momentum: settings.momentum as f32,
                    eps: settings.epsilon as f32,
                    weight_decay: decay as f32,
                    grad_scale: step.grad_scale,
                };
                kernel::rmsprop_step(pool, &rmsprop, weight, gradient, m, v);
            }
        }
    }
}

/// Which weights decay; see the top of the file. The matrices of an adapter are matrices.
fn decays(kind: ParameterKind) -> bool {
    match kind {
        ParameterKind::Matrix | ParameterKind::Embedding | ParameterKind::Adapter { .. } => true,
        ParameterKind::Norm => false,
    }
}

/// muP-simple's multiplier of the rate; see the top of the file.
pub(crate) fn multiplier(rule: &OptimizerSettings, kind: ParameterKind, width: usize) -> f64 {
    match (rule.mup_base_width(), kind) {
        (0, _) => 1.0,
        (base, ParameterKind::Matrix) => base as f64 / width as f64,
        (_, ParameterKind::Embedding | ParameterKind::Norm | ParameterKind::Adapter { .. }) => 1.0,
    }
}

/// The sum of squares of all gradients that a decoder speaks for: of all of them where it lies on no mesh.
pub fn sum_of_squares(pool: &Pool, decoder: &Decoder, gradients: &Gradients) -> f64 {
    let parameters = decoder.parameters();
    let owned = parameters
        .iter()
        .filter(|parameter| parameter.cut.is_none_or(|cut| cut.owned));
    let gradients = owned.filter_map(|parameter| gradients.get(parameter.tensor));
    gradients
        .map(|gradient| elementwise::sum_of_squares(pool, gradient.data()))
        .sum()
}

/// What shortens gradients of the given norm to `limit`; 1 where they are no longer than that.
pub fn clip_factor(norm: f64, limit: Option<f64>) -> f32 {
    match limit {
        Some(limit) if norm > limit => (limit / norm) as f32,
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests;
