//! Masks on the hidden dims, as layers of the decoder that is trained.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use russet_model::{Decoder, Frozen, Layout, Linear, Parameter, ParameterKind};
use russet_tensor::{Ctx, Tensor, ops};
use serde_json::{Value, json};

use crate::Result;
use crate::loader::{Batch, Batches};

/// ε, shared by all masks and the one who lowers it.
#[derive(Clone)]
pub(super) struct Sharpness(Arc<AtomicU64>);

impl Sharpness {
    pub fn new(epsilon: f64) -> Sharpness {
        Sharpness(Arc::new(AtomicU64::new(epsilon.to_bits())))
    }

    fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }

    fn set(&self, epsilon: f64) {
        self.0.store(epsilon.to_bits(), Ordering::Relaxed);
    }
}

/// `down` behind a mask on its inputs.
struct Masked {
    inner: Box<dyn Linear>,
    scores: Tensor, // s, [F]
    name: String,
    k: usize,
    sharpness: Sharpness,
    trains: bool, // whether the weight below learns too
}

/// The decoder with a mask that keeps `k` hidden dims in front of each `down`, all scores 0. Its parameters are the scores,
/// and where `joint` is set all weights too.
pub(super) fn masked(decoder: Decoder, k: usize, sharpness: &Sharpness, joint: bool) -> Decoder {
    let decoder = if joint { decoder } else { decoder.freeze() };
    decoder.map_linears(|inner| {
        let layout = inner.layout();
        let name = match &layout.projections[..] {
            [only] => only.name.strip_suffix(".down_proj"),
            _ => None,
        };
        match name.map(|name| format!("{name}.mask")) {
            Some(name) => Box::new(Masked {
                scores: Tensor::new(&[layout.inputs], vec![0.0; layout.inputs]),
                name,
                k,
                sharpness: sharpness.clone(),
                trains: joint,
                inner,
            }),
            None if joint => inner,
            None => Box::new(Frozen(inner)),
        }
    })
}

/// The scores of all layers, first to last.
pub(super) fn scores(decoder: &Decoder) -> Vec<Tensor> {
    let parameters = decoder.parameters();
    let scores = parameters.iter().filter(|parameter| is_mask(parameter));
    scores.map(|parameter| parameter.tensor.clone()).collect()
}

pub(super) fn is_mask(parameter: &Parameter) -> bool {
    parameter.parts[0].0.ends_with(".mlp.mask")
}

impl Linear for Masked {
    fn forward(&self, ctx: &mut Ctx, x: &Tensor) -> Tensor {
        let mask = ops::soft_top_k(ctx, &self.scores, self.k, self.sharpness.get()); // [F]
        let x = ops::scale_columns(ctx, x, &mask); // [N, F]
        self.inner.forward(ctx, &x)
    }

    fn layout(&self) -> &Layout {
        self.inner.layout()
    }

    fn stored_bytes(&self) -> usize {
        self.inner.stored_bytes() + self.scores.bytes().len()
    }

    fn visit<'a>(&'a self, visit: &mut dyn FnMut(Parameter<'a>)) {
        if self.trains {
            self.inner.visit(visit);
        }
        visit(Parameter {
            parts: vec![(self.name.clone(), 1)],
            kind: ParameterKind::Norm, // a factor of columns, as a norm's weight is: not decayed
            tensor: &self.scores,
            cut: None,
        });
    }

    fn visit_mut(&mut self, visit: &mut dyn FnMut(&mut Tensor)) {
        if self.trains {
            self.inner.visit_mut(visit);
        }
        visit(&mut self.scores);
    }
}

/// Batches that lower ε as they are given out, by the same factor a step: `ε = from (to / from)^(step / (steps - 1))`.
pub(super) struct Annealed<B> {
    pub batches: B,
    pub sharpness: Sharpness,
    pub from: f64,
    pub to: f64,
    pub step: u64,
    pub steps: u64,
}

impl<B: Batches> Batches for Annealed<B> {
    fn next(&mut self) -> Result<Vec<Batch>> {
        let way = self.step as f64 / (self.steps.max(2) - 1) as f64;
        let epsilon = self.from * libm::pow(self.to / self.from, way);
        self.sharpness.set(epsilon);
        self.step += 1;
        self.batches.next()
    }

    fn state(&self) -> Value {
        json!({"step": self.step, "batches": self.batches.state()})
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        let step = state["step"].as_u64();
        // The batches refuse what is no place.
        let place = step.map_or(&Value::Null, |_| &state["batches"]);
        self.batches.restore(place)?;
        self.step = step.unwrap_or_default();
        Ok(())
    }

    fn names(&self) -> Vec<String> {
        self.batches.names()
    }

    fn labels(&self) -> Vec<String> {
        self.batches.labels()
    }
}
