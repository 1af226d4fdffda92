//! What a person decides about palettization, and what is reported back.

use std::collections::BTreeMap;

use russet_kernels::palette::Bits;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{CompressError, TradeOff};

/// How a checkpoint is palettized; the defaults are what measured best among those that take minutes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Bits a weight of the projections, with everything that is stored for them: indices, tables and scales.
    pub target_bpw: f64,
    /// Bytes of all tensors of the package, in place of `target_bpw`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_bytes: Option<u64>,
    /// The bits that a projection's indices may have: some of 2, 3 and 4, and of "2v", "3v" and "4v", where an index stands for two
    /// weights. AFM has 2 and 4.
    pub bits: Vec<Width>,
    /// Bits (any, whatever `bits` says) of projections whose names are like a pattern, in which `*` stands for any text; the others are
    /// chosen.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub pins: BTreeMap<String, Width>,
    /// What is folded into the weights before they are palettized.
    #[serde(skip_serializing_if = "Rotation::is_none")]
    pub rotation: Rotation,
    /// Bits of the tables of embedding and output.
    #[serde(skip_serializing_if = "TableBits::are_eight")]
    pub table_bits: TableBits,
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

/// Bits of a projection's indices, as a person writes them: a number, or "3v" where an index stands for two weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Width(pub Bits);

impl Serialize for Width {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.dims() {
            1 => serializer.serialize_u32(self.0.bits() as u32),
            _ => serializer.serialize_str(self.0.name()),
        }
    }
}

impl<'de> Deserialize<'de> for Width {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Width, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Width;

            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("2, 3 or 4, or \"2v\", \"3v\" or \"4v\" for palettes of pairs")
            }

            fn visit_u64<E: de::Error>(self, bits: u64) -> Result<Width, E> {
                self.visit_str(&bits.to_string())
            }

            fn visit_i64<E: de::Error>(self, bits: i64) -> Result<Width, E> {
                self.visit_str(&bits.to_string())
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Width, E> {
                let bits = Bits::from_name(name);
                bits.map(Width)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Other(name), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// What is folded into the weights before they are palettized, so that none stands out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rotation {
    /// Nothing.
    #[default]
    None,
    /// Random signs and Walsh-Hadamard matrices, on the residual stream and on the values of each head (arXiv 2404.00456).
    Hadamard,
}

impl Rotation {
    pub(crate) fn is_none(&self) -> bool {
        *self == Rotation::None
    }
}

/// Bits of a table's weights, written as a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "i64")]
pub enum TableBits {
    /// Eight, with a scale a row.
    #[default]
    Eight,
    /// Four: indices into a palette for every 16 rows, as projections have them.
    Four,
}

impl TableBits {
    /// Those of a palette; nothing where there is none.
    pub(crate) fn palette(self) -> Option<Bits> {
        match self {
            TableBits::Eight => None,
            TableBits::Four => Some(Bits::Four),
        }
    }

    fn are_eight(&self) -> bool {
        *self == TableBits::Eight
    }
}

impl TryFrom<i64> for TableBits {
    type Error = String;

    fn try_from(bits: i64) -> Result<TableBits, String> {
        match bits {
            8 => Ok(TableBits::Eight),
            4 => Ok(TableBits::Four),
            _ => Err(format!("a table has 8 bits or 4, not {bits}")),
        }
    }
}

impl From<TableBits> for i64 {
    fn from(bits: TableBits) -> i64 {
        match bits {
            TableBits::Eight => 8,
            TableBits::Four => 4,
        }
    }
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

/// All bits, the fewest first.
const ORDER: [Bits; 6] = [
    Bits::Two,
    Bits::TwoPairs,
    Bits::Three,
    Bits::ThreePairs,
    Bits::Four,
    Bits::FourPairs,
];

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            target_bpw: 3.5,
            target_bytes: None,
            bits: [Bits::Two, Bits::Three, Bits::Four].map(Width).to_vec(),
            pins: BTreeMap::new(),
            rotation: Rotation::None,
            table_bits: TableBits::Eight,
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
        let refuse = CompressError::setting;
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
        let again = |bits: &Width| self.bits.iter().filter(|other| *other == bits).count() > 1;
        if self.bits.is_empty() || self.bits.iter().any(again) {
            let names: Vec<&str> = self.bits.iter().map(|bits| bits.0.name()).collect();
            return refuse(
                "bits",
                &format!("[{}]", names.join(", ")),
                "write one of 2, 3, 4, \"2v\", \"3v\" and \"4v\" or several, each once, as in [2, 3, 4]",
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
        let among = |bits: &Bits| self.bits.contains(&Width(*bits));
        ORDER.into_iter().filter(among).collect()
    }

    /// The bits that some projection may have, the fewest first.
    pub(crate) fn possible(&self) -> Vec<Bits> {
        let pinned = |bits: &Bits| self.pins.values().any(|pin| pin.0 == *bits);
        let among = |bits: &Bits| self.bits.contains(&Width(*bits)) || pinned(bits);
        ORDER.into_iter().filter(among).collect()
    }

    /// The bits that every projection is fitted with: those that are possible, the fewest first, and at the end four of single weights,
    /// over which the price of all others counts.
    pub(crate) fn fitted(&self) -> Vec<Bits> {
        let mut fitted = self.possible();
        fitted.retain(|bits| *bits != Bits::Four);
        fitted.push(Bits::Four);
        fitted
    }
}

/// What was made of a checkpoint. Written down it has no `seconds`: what is stored is a function of settings and inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Bits a weight of the projections, with tables and scales.
    pub bpw: f64,
    /// Bits a parameter of the whole model, with the tables of embedding and output, and the norms in f32.
    pub bits_per_parameter: f64,
    /// Of all tensors.
    pub bytes: u64,
    /// What was folded into the weights that were palettized. Who compares them with the checkpoint's must fold it into those too.
    #[serde(default, skip_serializing_if = "Rotation::is_none")]
    pub rotation: Rotation,
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
    /// Bits a weight: 2, 3 or 4, or "2v", "3v" or "4v" where an index stands for two.
    pub bits: Width,
    /// The error over that of zeros: of the product's output, Σ Δ H Δᵀ / Σ w H wᵀ, where errors were fed back; else Σ ω Δw² / Σ ω w² with the
    /// weighting ω that was chosen.
    pub error: f64,
    /// What the fewest bits that it was fitted with cost over four, nats a token: two bits, where `bits` has them.
    pub sensitivity: f64,
    /// What each number of bits but four costs over four, nats a token; nothing where that is two alone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rises: BTreeMap<String, f64>,
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
            bits: Width(bits),
            error,
            sensitivity: rises[0],
            rises: told
                .map(|(bits, rise)| (bits.name().to_owned(), rise))
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
                target_bpw: 0.0,
                ..Settings::default()
            },
            "target_bpw",
        );
        for bits in [vec![], vec![Width(Bits::FourPairs); 2]] {
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
        use Bits::{Four, FourPairs, Three, ThreePairs, Two};
        let of = |bits: &[Bits], pin: Option<Bits>| {
            let settings = Settings {
                bits: bits.iter().copied().map(Width).collect(),
                pins: pin
                    .map(|bits| ("*".to_owned(), Width(bits)))
                    .into_iter()
                    .collect(),
                ..Settings::default()
            };
            settings.validate().unwrap();
            (settings.choice(), settings.possible(), settings.fitted())
        };
        let plain = vec![Two, Four];
        let three = vec![Two, Three, Four];
        assert_eq!(
            of(&[Two, Four], Some(Two)),
            (plain.clone(), plain.clone(), plain.clone())
        );
        assert_eq!(of(&[Four, Two], Some(Three)), (plain, three.clone(), three));
        assert_eq!(
            of(&[Three], None),
            (vec![Three], vec![Three], vec![Three, Four])
        );
        // Two pins to widths that are no choice.
        let pins = [("a", Width(Three)), ("b", Width(Two))];
        let settings = Settings {
            bits: vec![Width(Four)],
            pins: pins.map(|(name, bits)| (name.to_owned(), bits)).into(),
            ..Settings::default()
        };
        assert_eq!(settings.possible(), [Two, Three, Four]);
        let pairs = vec![Three, ThreePairs, FourPairs];
        assert_eq!(
            of(&[FourPairs, Three, ThreePairs], None),
            (
                pairs.clone(),
                pairs,
                vec![Three, ThreePairs, FourPairs, Four]
            )
        );
    }

    #[test]
    fn bits_are_written_down_as_a_person_writes_them_and_a_rotation_where_there_is_one() {
        let stored = |settings: &Settings| serde_json::to_value(settings).unwrap();
        let plain = stored(&Settings::default());
        assert_eq!(plain["bits"], serde_json::json!([2, 3, 4]));
        assert_eq!(plain.get("rotation"), None);
        let rotated = Settings {
            rotation: Rotation::Hadamard,
            ..Settings::default()
        };
        assert_eq!(stored(&rotated)["rotation"], "hadamard");
        let three = Settings {
            bits: vec![Width(Bits::Two), Width(Bits::ThreePairs)],
            pins: [("*.v_proj".to_owned(), Width(Bits::Three))].into(),
            ..Settings::default()
        };
        assert_eq!(stored(&three)["bits"], serde_json::json!([2, "3v"]));
        assert_eq!(stored(&three)["pins"]["*.v_proj"], 3);
        assert_eq!(
            serde_json::from_value::<Settings>(stored(&three)).unwrap(),
            three
        );
    }

    #[test]
    fn tables_have_eight_bits_or_four() {
        let stored = |settings: &Settings| serde_json::to_value(settings).unwrap();
        assert_eq!(stored(&Settings::default()).get("table_bits"), None);
        let read = |bits: serde_json::Value| {
            serde_json::from_value::<Settings>(serde_json::json!({"table_bits": bits}))
        };
        let four = read(4.into()).unwrap();
        assert_eq!(four.table_bits, TableBits::Four);
        assert_eq!(stored(&four)["table_bits"], 4);
        assert_eq!(read(8.into()).unwrap(), Settings::default());
        for wrong in [2, 0, -4, 16] {
            let problem = read(wrong.into()).unwrap_err().to_string();
            assert!(
                problem.contains(&format!("8 bits or 4, not {wrong}")),
                "{problem}"
            );
        }
        assert!(read("4v".into()).is_err());
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
        for wrong in [
            serde_json::json!({"bits": [2, 8]}),
            serde_json::json!({"bits": ["8v"]}),
            serde_json::json!({"pins": {"*.q_proj": -3}}),
        ] {
            let problem = serde_json::from_value::<Settings>(wrong).unwrap_err();
            assert!(problem.to_string().contains("2, 3 or 4, or"), "{problem}");
        }
        for wrong in [
            serde_json::json!({"weighting": "hessian"}),
            serde_json::json!({"rotation": "learnt"}),
        ] {
            assert!(serde_json::from_value::<Settings>(wrong).is_err());
        }
    }
}
