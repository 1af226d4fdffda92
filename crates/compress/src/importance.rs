//! How much each weight matters, from what was gathered of its product.

use crate::model::{Model, Projection};
use crate::settings::Weighting;
use crate::strip::Importance;

/// A choice of weighting, ready for every projection of a model.
pub(crate) struct Weights {
    weighting: Weighting,
    columns: Vec<Vec<f32>>, // by product: E[x²], or ones
}

impl Weights {
    /// Of a model whose moments were gathered, with Fisher information where `weighting` asks for it.
    pub fn new(model: &Model, weighting: Weighting) -> Weights {
        let columns = model.products.iter().map(|product| match weighting {
            Weighting::Fisher => Vec::new(),
            Weighting::Activation => product
                .moments
                .inputs
                .iter()
                .map(|&sum| (sum / model.tokens as f64) as f32)
                .collect(),
            Weighting::None => vec![1.0; product.layout.inputs],
        });
        Weights {
            weighting,
            columns: columns.collect(),
        }
    }

    /// That of one projection.
    pub fn of<'a>(&'a self, model: &'a Model, projection: &Projection) -> Importance<'a> {
        match self.weighting {
            Weighting::Fisher => Weights::fisher(model, projection),
            _ => Importance::columns(&self.columns[projection.product]),
        }
    }

    /// Whether a fit's error is that of Fisher information.
    pub fn are_fisher(&self) -> bool {
        self.weighting == Weighting::Fisher
    }

    /// The Fisher information of one projection, summed over tokens.
    pub fn fisher<'a>(model: &'a Model, projection: &Projection) -> Importance<'a> {
        let all = &model.products[projection.product].moments.fisher;
        Importance::elements(
            &all[projection.rows.start * projection.cols..projection.rows.end * projection.cols],
            projection.cols,
        )
    }
}
