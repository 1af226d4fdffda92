//! What a person decides about palettization, and what is reported back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{CompressError, TradeOff};

/// How a checkpoint is palettized; the defaults are what measured best.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Bits a weight of the projections, with everything that is stored for them: indices, tables and scales.
    pub target_bpw: f64,
    /// Bytes of all tensors of the package, in place of `target_bpw`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_bytes: Option<u64>,
    /// Bits (2 or 4) of projections whose names are like a pattern, in which `*` stands for any text; the others are chosen.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub pins: BTreeMap<String, u32>,
    /// How much a weight matters in k-means.
    pub weighting: Weighting,
    /// Whether the error of a column is made good in later columns, and indices, tables and scales are chosen by
    /// the error of the product's output rather than of each weight.
    pub error_feedback: bool,
    /// How it is found out what two bits cost each projection.
    pub sensitivity: Sensitivity,
    /// At most so many tokens of the calibration text are used, taken evenly from all of it.
    pub calibration_tokens: usize,
    /// Tokens that are seen together. Documents are cut into pieces of at most so many, or of the model's context.
    pub sequence: usize,
}

/// How much a weight matters in k-means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// By the diagonal of the Fisher information, `E[g²x²]` over tokens: x the weight's input, g the gradient at its output.
    Fisher,
    /// By the mean square of its input, `E[x²]`. Needs no backward pass.
    Activation,
    /// All alike.
    None,
}

/// How it is found out what two bits cost each projection over four, in nats a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sensitivity {
    /// To second order, ½ Σ F Δw² with the Fisher information F: nothing is run.
    Predicted,
    /// By the divergence from the dense model with only this projection changed: two runs a projection.
    Measured,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            target_bpw: 3.5,
            target_bytes: None,
            pins: BTreeMap::new(),
            weighting: Weighting::Fisher,
            error_feedback: true,
            sensitivity: Sensitivity::Predicted,
            calibration_tokens: 32_768,
            sequence: 512,
        }
    }
}

impl Settings {
    /// Whether the settings can be meant.
    ///
    /// # Errors
    /// With the first setting that cannot.
    pub fn validate(&self) -> Result<(), CompressError> {
        let refuse = |key, value: &dyn ToString, problem: &str| {
            Err(CompressError::Setting {
                key,
                value: value.to_string(),
                problem: problem.to_owned(),
            })
        };
        if !(self.target_bpw > 0.0 && self.target_bpw.is_finite()) {
            return refuse(
                "target_bpw",
                &self.target_bpw,
                "it must be a number of bits above 0, such as 3.5",
            );
        }
        if self.target_bytes.is_some() && self.target_bpw != Settings::default().target_bpw {
            return refuse(
                "target_bytes",
                &self.target_bytes.unwrap_or_default(),
                "`target_bpw` is set as well: leave one of them out",
            );
        }
        if let Some((pattern, bits)) = self.pins.iter().find(|(_, bits)| ![2, 4].contains(*bits)) {
            let value = format!("{pattern:?} = {bits}");
            return refuse("pins", &value, "there are 2 and 4 bits: pin to one of them");
        }
        if self.sequence < 2 {
            return refuse(
                "sequence",
                &self.sequence,
                "a token's loss needs the token before it: write 2 or more, such as 512",
            );
        }
        if self.calibration_tokens < 2 {
            return refuse(
                "calibration_tokens",
                &self.calibration_tokens,
                "calibration needs text: write 2 or more, such as 32768",
            );
        }
        Ok(())
    }
}

/// What was made of a checkpoint. Written down it has no `seconds`: what is stored is a function of settings and inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Bits a weight of the projections, with tables and scales.
    pub bpw: f64,
    /// Bits a parameter of the whole model, with the 8-bit embedding and the norms in f32.
    pub bits_per_parameter: f64,
    /// Of all tensors.
    pub bytes: u64,
    /// From the start to the last check.
    #[serde(skip)]
    pub seconds: f64,
    /// Weights of the projections.
    pub weights: u64,
    /// Tokens of text that were used.
    pub calibration_tokens: u64,
    /// The checkpoint's loss on them, nats a token.
    pub loss_before: f64,
    /// The loss of the package as it was written, loaded and run.
    pub loss_after: f64,
    /// The projections in the order of the forward pass.
    pub layers: Vec<LayerReport>,
    /// What other sizes would have cost with the same pins, from four bits to two.
    pub curve: Vec<TradeOff>,
}

/// What was made of one projection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Its name: `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Bits of an index: 2 or 4.
    pub bits: u32,
    /// Σ ω Δw² / Σ ω w² with the weighting ω that was chosen.
    pub error: f64,
    /// What two bits cost over four, nats a token.
    pub sensitivity: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(settings: Settings, key: &str) {
        let problem = settings.validate().unwrap_err().to_string();
        assert!(problem.starts_with(&format!("`{key}` is ")), "{problem}");
    }

    #[test]
    fn settings_that_cannot_be_meant_are_refused() {
        Settings::default().validate().unwrap();
        refused(
            Settings {
                target_bytes: Some(1 << 20),
                target_bpw: 3.0,
                ..Settings::default()
            },
            "target_bytes",
        );
        refused(
            Settings {
                pins: [("*.q_proj".to_owned(), 3)].into(),
                ..Settings::default()
            },
            "pins",
        );
        for target_bpw in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            refused(
                Settings {
                    target_bpw,
                    ..Settings::default()
                },
                "target_bpw",
            );
        }
        refused(
            Settings {
                sequence: 1,
                ..Settings::default()
            },
            "sequence",
        );
        refused(
            Settings {
                calibration_tokens: 0,
                ..Settings::default()
            },
            "calibration_tokens",
        );
    }

    #[test]
    fn a_setting_that_is_not_known_is_an_error() {
        let known = serde_json::json!({"target_bpw": 3.0, "weighting": "activation", "sensitivity": "measured"});
        let settings: Settings = serde_json::from_value(known).unwrap();
        assert_eq!(
            (settings.target_bpw, settings.weighting),
            (3.0, Weighting::Activation)
        );
        assert!(serde_json::from_value::<Settings>(serde_json::json!({"bits": 3})).is_err());
        assert!(
            serde_json::from_value::<Settings>(serde_json::json!({"weighting": "hessian"}))
                .is_err()
        );
    }
}
