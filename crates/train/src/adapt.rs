//! `[adapter]`: low-rank matrices beside frozen weights (arXiv 2106.09685).
//!
//! ```text
//! y = W x + (α / r) · B A x        A [r, D] normal with variance 1 / D, B [F, r] zero: nothing changes yet
//! ```
//! W is a package's, used as it is stored, or a checkpoint's; only A and B learn, and they are what a run leaves. Ranks, targets
//! and the 16-bit file are AFM's (arXiv 2407.21075, sections 5 and 6). Left out: dropout, biases, other ranks for other layers.

use russet_model::adapter::{attach_new, layer_of};
use russet_model::{Config, Decoder, projections};
use russet_tensor::DType;
use serde::{Deserialize, Serialize};

use crate::{Result, TrainError};

/// `[adapter]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterSettings {
    /// r; AFM has 8, 16 and 32.
    #[serde(default = "rank")]
    pub rank: usize,
    /// α; the rank where absent, so that the product counts once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Which projections of a layer have one; all seven where absent.
    #[serde(default = "every_projection")]
    pub projections: Vec<ProjectionName>,
    /// Which layers, counted from 0; all where absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<usize>,
    /// The type of the numbers in the file. They are trained in f32, and rounded before they are measured for the last time.
    #[serde(default)]
    pub dtype: AdapterType,
}

/// A projection of a layer.
#[allow(missing_docs, reason = "the names that checkpoints have for them")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProjectionName {
    #[serde(rename = "q_proj")]
    Query,
    #[serde(rename = "k_proj")]
    Key,
    #[serde(rename = "v_proj")]
    Value,
    #[serde(rename = "o_proj")]
    Output,
    #[serde(rename = "gate_proj")]
    Gate,
    #[serde(rename = "up_proj")]
    Up,
    #[serde(rename = "down_proj")]
    Down,
}

/// The type of an adapter's numbers in its file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdapterType {
    /// Eleven bits of precision: what an adapter has no use for is range.
    #[default]
    F16,
    /// Eight bits of precision, and the range of f32.
    Bf16,
    /// As they were trained.
    F32,
}

fn rank() -> usize {
    16 // AFM
}

fn every_projection() -> Vec<ProjectionName> {
    ProjectionName::ALL.to_vec()
}

impl ProjectionName {
    /// In the order of the forward pass.
    pub const ALL: [ProjectionName; 7] = [
        ProjectionName::Query,
        ProjectionName::Key,
        ProjectionName::Value,
        ProjectionName::Output,
        ProjectionName::Gate,
        ProjectionName::Up,
        ProjectionName::Down,
    ];

    /// As checkpoints and PEFT write it.
    pub fn word(self) -> &'static str {
        match self {
            ProjectionName::Query => "q_proj",
            ProjectionName::Key => "k_proj",
            ProjectionName::Value => "v_proj",
            ProjectionName::Output => "o_proj",
            ProjectionName::Gate => "gate_proj",
            ProjectionName::Up => "up_proj",
            ProjectionName::Down => "down_proj",
        }
    }
}

impl AdapterType {
    /// The tensors' word for it.
    pub fn dtype(self) -> DType {
        match self {
            AdapterType::F16 => DType::F16,
            AdapterType::Bf16 => DType::BF16,
            AdapterType::F32 => DType::F32,
        }
    }
}

impl Default for AdapterSettings {
    fn default() -> AdapterSettings {
        AdapterSettings {
            rank: rank(),
            alpha: None,
            projections: every_projection(),
            layers: Vec::new(),
            dtype: AdapterType::default(),
        }
    }
}

impl AdapterSettings {
    /// Checked, and with everything filled in.
    ///
    /// # Errors
    /// When a setting cannot be on any base.
    pub fn resolved(mut self) -> Result<AdapterSettings> {
        let refuse = |key, problem: String| Err(TrainError::setting(key, problem));
        if !(1..=4096).contains(&self.rank) {
            let problem = format!("is {}; it must be from 1 to 4096, such as 16", self.rank);
            return refuse("adapter.rank", problem);
        }
        let alpha = *self.alpha.get_or_insert(self.rank as f64);
        if !(1e-6..=1e6).contains(&alpha) {
            let problem = format!("is {alpha}; it must be from 1e-6 to 1e6, such as the rank");
            return refuse("adapter.alpha", problem);
        }
        if self.projections.is_empty() {
            let problem = "is an empty list; leave it out to adapt all seven".to_owned();
            return refuse("adapter.projections", problem);
        }
        for (at, one) in self.projections.iter().enumerate() {
            if self.projections[..at].contains(one) {
                let problem = format!("names {} twice; keep one", one.word());
                return refuse("adapter.projections", problem);
            }
        }
        for (at, one) in self.layers.iter().enumerate() {
            if self.layers[..at].contains(one) {
                return refuse("adapter.layers", format!("names {one} twice; keep one"));
            }
        }
        Ok(self)
    }

    /// Whether a decoder of this shape can have these adapters.
    ///
    /// # Errors
    /// When it has no such layer, or a projection with fewer rows or columns than the rank.
    pub fn check_base(&self, base: &Config) -> Result<()> {
        if let Some(layer) = self.layers.iter().find(|&&layer| layer >= base.layers) {
            let problem = format!(
                "names layer {layer}, but the base has {}, counted from 0",
                base.layers
            );
            return Err(TrainError::setting("adapter.layers", problem));
        }
        // A layer that uses another's keys and values has no matrices of them to adapt.
        let has_any = |layer: usize| {
            let mut named = projections(base, layer).into_iter();
            named.any(|(name, ..)| self.chooses(&name))
        };
        if let Some(layer) = self.layers.iter().find(|&&layer| !has_any(layer)) {
            let problem = format!(
                "names layer {layer}, which uses the keys and values of layer {} and has none of `adapter.projections`; leave it out",
                base.attention_of(*layer).keys_of
            );
            return Err(TrainError::setting("adapter.layers", problem));
        }
        for (name, rows, cols) in self.adapted(base) {
            let most = rows.min(cols);
            if self.rank > most {
                let problem = format!(
                    "is {}, but `{name}` is a matrix of {rows} rows and {cols} columns, which a rank of {most} changes in every \
                     way; write at most that",
                    self.rank
                );
                return Err(TrainError::setting("adapter.rank", problem));
            }
        }
        Ok(())
    }

    /// Whether a projection of this name has an adapter.
    pub fn chooses(&self, name: &str) -> bool {
        let last = name.rsplit('.').next();
        let projection = self.projections.iter().any(|one| Some(one.word()) == last);
        let layer = layer_of(name).is_some_and(|layer| self.layers.contains(&layer));
        projection && (self.layers.is_empty() || layer)
    }

    /// Name, rows and columns of every projection that has one.
    fn adapted<'a>(
        &'a self,
        base: &'a Config,
    ) -> impl Iterator<Item = (String, usize, usize)> + 'a {
        let all = (0..base.layers).flat_map(|layer| projections(base, layer));
        all.filter(|(name, ..)| self.chooses(name))
    }

    /// Numbers of all matrices on a base of this shape.
    pub fn parameters(&self, base: &Config) -> usize {
        self.adapted(base)
            .map(|(_, rows, cols)| self.rank * (rows + cols))
            .sum()
    }

    /// What a product of two matrices counts, `alpha / rank`.
    pub fn scale(&self) -> f32 {
        (self.alpha.unwrap_or(self.rank as f64) / self.rank as f64) as f32
    }

    /// The decoder with new adapters, which change nothing yet, and all else frozen.
    pub fn attach(&self, decoder: Decoder, seed: u64) -> Decoder {
        let alpha = self.scale() * self.rank as f32;
        attach_new(decoder, self.rank, alpha, seed, |name| self.chooses(name))
    }
}
