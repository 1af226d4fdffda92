//! What a person decides about palettization, and what is reported back.

use std::collections::BTreeMap;

use russet_kernels::palette::Bits;
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
    /// The bits that a projection's indices may have: some of 2, 3 and 4. AFM has 2 and 4.
    #[serde(skip_serializing_if = "is_plain")]
    pub bits: Vec<u32>,
    /// Bits (2, 3 or 4, whatever `bits` says) of projections whose names are like a pattern, in which `*` stands for any text; the others are
    /// chosen.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub pins: BTreeMap<String, u32>,
    /// How much a weight matters in k-means.
    pub weighting: Weighting,
    /// Whether the error of a column is made good in later columns, and indices, tables and scales are chosen by
    /// the error of the product's output rather than of each weight.
    pub error_feedback: bool,
    /// How it is found out what fewer bits cost each projection.
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

/// How it is found out what fewer bits cost each projection over four, in nats a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sensitivity {
    /// To second order, ½ Σ F Δw² with the Fisher information F: nothing is run.
    Predicted,
    /// By the divergence from the dense model with only this projection changed: a run a projection and width.
    Measured,
}

/// AFM's bits, the default.
const PLAIN: [u32; 2] = [2, 4];

fn is_plain(bits: &[u32]) -> bool {
    bits == PLAIN
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            target_bpw: 3.5,
            target_bytes: None,
            bits: PLAIN.to_vec(),
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
        let known = |bits: &u32| Bits::from_bits(*bits as usize).is_some();
        let again = |bits: &u32| self.bits.iter().filter(|other| *other == bits).count() > 1;
        if self.bits.is_empty() || !self.bits.iter().all(known) || self.bits.iter().any(again) {
            return refuse(
                "bits",
                &format!("{:?}", self.bits),
                "there are 2, 3 and 4 bits: write one of them or several, each once, as in [2, 3, 4]",
            );
        }
        if let Some((pattern, bits)) = self.pins.iter().find(|(_, bits)| !known(bits)) {
            let value = format!("{pattern:?} = {bits}");
            return refuse(
                "pins",
                &value,
                "there are 2, 3 and 4 bits: pin to one of them",
            );
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

    /// The bits that a projection may have where nothing pins it, the fewest first.
    pub(crate) fn choice(&self) -> Vec<Bits> {
        let among = |bits: &Bits| self.bits.contains(&(bits.bits() as u32));
        Bits::ALL.into_iter().filter(among).collect()
    }

    /// The bits that some projection may have, the fewest first.
    pub(crate) fn possible(&self) -> Vec<Bits> {
        let mut pinned = self.pins.values();
        let among = |bits: &Bits| {
            let bits = bits.bits() as u32;
            self.bits.contains(&bits) || pinned.any(|pin| *pin == bits)
        };
        let mut all = Bits::ALL.to_vec();
        all.retain(among);
        all
    }

    /// The bits that every projection is fitted with, the fewest first: those that are possible, and four, over which the price of fewer
    /// counts.
    pub(crate) fn fitted(&self) -> Vec<Bits> {
        let possible = self.possible();
        let among = |bits: &Bits| *bits == Bits::Four || possible.contains(bits);
        Bits::ALL.into_iter().filter(among).collect()
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
    /// What other sizes would have cost with the same bits and pins, from the largest package to the smallest.
    pub curve: Vec<TradeOff>,
}

/// What was made of one projection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Its name: `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Bits of an index: 2, 3 or 4.
    pub bits: u32,
    /// Σ ω Δw² / Σ ω w² with the weighting ω that was chosen.
    pub error: f64,
    /// What the fewest bits that it was fitted with cost over four, nats a token: two bits, where `bits` has them.
    pub sensitivity: f64,
    /// What each number of bits but four costs over four, nats a token; nothing where that is two alone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rises: BTreeMap<u32, f64>,
}

impl LayerReport {
    /// What was made of `name`, whose `rises` are those of `fitted`.
    pub(crate) fn new(
        name: String,
        bits: Bits,
        error: f64,
        fitted: &[Bits],
        rises: &[f64],
    ) -> LayerReport {
        let each = || fitted.iter().zip(rises).map(|(bits, rise)| (bits, *rise));
        let plain = fitted == [Bits::Two, Bits::Four];
        let told = each().filter(|(bits, _)| !plain && **bits != Bits::Four);
        LayerReport {
            name,
            bits: bits.bits() as u32,
            error,
            sensitivity: rises[0],
            rises: told
                .map(|(bits, rise)| (bits.bits() as u32, rise))
                .collect(),
        }
    }
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
                pins: [("*.q_proj".to_owned(), 5)].into(),
                ..Settings::default()
            },
            "pins",
        );
        for bits in [vec![], vec![1], vec![2, 8], vec![4, 4]] {
            refused(
                Settings {
                    bits,
                    ..Settings::default()
                },
                "bits",
            );
        }
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
    fn every_width_that_is_possible_is_fitted_and_four() {
        use Bits::{Four, Three, Two};
        let of = |bits: &[u32], pin: Option<u32>| {
            let settings = Settings {
                bits: bits.to_vec(),
                pins: pin.map(|bits| ("*".to_owned(), bits)).into_iter().collect(),
                ..Settings::default()
            };
            settings.validate().unwrap();
            (settings.choice(), settings.possible(), settings.fitted())
        };
        let plain = vec![Two, Four];
        assert_eq!(of(&[2, 4], Some(2)), (plain.clone(), plain.clone(), plain));
        assert_eq!(
            of(&[4, 2], Some(3)),
            (vec![Two, Four], Bits::ALL.to_vec(), Bits::ALL.to_vec())
        );
        assert_eq!(
            of(&[3], None),
            (vec![Three], vec![Three], vec![Three, Four])
        );
    }

    #[test]
    fn the_plain_bits_are_not_written_down() {
        let stored = |settings: &Settings| serde_json::to_value(settings).unwrap();
        assert_eq!(stored(&Settings::default()).get("bits"), None);
        let three = Settings {
            bits: vec![2, 3, 4],
            ..Settings::default()
        };
        assert_eq!(stored(&three)["bits"], serde_json::json!([2, 3, 4]));
        assert_eq!(
            serde_json::from_value::<Settings>(stored(&three)).unwrap(),
            three
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
        assert!(serde_json::from_value::<Settings>(serde_json::json!({"bit": [3]})).is_err());
        assert!(
            serde_json::from_value::<Settings>(serde_json::json!({"weighting": "hessian"}))
                .is_err()
        );
    }
}
