//! The bits of each projection: what the target asks for, what is pinned, and what every other target would have cost.

use russet_kernels::int8;
use russet_kernels::palette::Bits;
use russet_model::{Config, projections};
use serde::{Deserialize, Serialize};

use crate::allocate::{Choice, allocate};
use crate::settings::Settings;
use crate::{CompressError, matrix};

/// Points of the curve, evenly spread in bytes.
const POINTS: u64 = 33;

/// A package that could be: of so many bytes, at such a price.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TradeOff {
    /// Bits a weight of the projections, with tables and scales.
    pub bpw: f64,
    /// Of all tensors.
    pub bytes: u64,
    /// What it costs over four bits wherever they may be, nats a token, by the sensitivities that the bits are chosen by.
    pub rise: f64,
}

/// What the settings allow the projections of a decoder.
pub(crate) struct Budget {
    bytes: Vec<[u64; 2]>, // of each projection with two and with four bits
    pinned: Vec<Option<Bits>>,
    weights: u64,
    rest: u64,   // bytes of what is not palettized
    needed: u64, // that two bits must save over four everywhere
}

impl Budget {
    /// # Errors
    /// When a projection has a size that the format does not offer, a pin fits nothing or two of them contradict each other, or
    /// the target cannot be met.
    pub fn new(settings: &Settings, config: &Config) -> Result<Budget, CompressError> {
        let (mut bytes, mut pinned) = (Vec::new(), Vec::new());
        let mut fits = vec![false; settings.pins.len()];
        for (name, rows, cols) in (0..config.layers).flat_map(|layer| projections(config, layer)) {
            let stored = |bits| match matrix::stored_bytes(bits, rows, cols) {
                Ok(bytes) => Ok(bytes as u64),
                Err(problem) => Err(CompressError::Layout {
                    name: name.clone(),
                    problem,
                }),
            };
            bytes.push([stored(Bits::Two)?, stored(Bits::Four)?]);
            pinned.push(pin(settings, &name, &mut fits)?);
        }
        if let Some(unused) = fits.iter().position(|fits| !fits) {
            let (pattern, _) = settings.pins.iter().nth(unused).expect("a place for each");
            return Err(CompressError::Setting {
                key: "pins",
                value: format!("{pattern:?}"),
                problem: "no projection has a name like that; names are as `model.layers.0.self_attn.q_proj`, and `*` stands for \
                          any part of one"
                    .to_owned(),
            });
        }
        let mut budget = Budget {
            bytes,
            pinned,
            weights: config.projection_parameters() as u64,
            rest: rest(config)?,
            needed: 0,
        };
        budget.needed = budget.bytes_to_save(settings)?;
        Ok(budget)
    }

    /// Bits of each projection, and what other targets would cost; `rises` are what two bits cost each over four.
    pub fn choose(&self, rises: &[f64]) -> (Vec<Bits>, Vec<TradeOff>) {
        let least = self.saved_by_pins();
        let most = self.fours() - self.least();
        let step = |point: u64| least + (most - least) * point / (POINTS - 1);
        let curve = (0..POINTS).map(|point| {
            let bits = self.bits(rises, step(point));
            let at = |(sum, rise): (u64, f64), ((bytes, bits), own): ((&[u64; 2], &Bits), &f64)| {
                let two = *bits == Bits::Two;
                (
                    sum + bytes[usize::from(!two)],
                    rise + if two { *own } else { 0.0 },
                )
            };
            let (sum, rise) = self.bytes.iter().zip(&bits).zip(rises).fold((0, 0.0), at);
            TradeOff {
                bpw: self.bpw(sum),
                bytes: sum + self.rest,
                rise,
            }
        });
        let mut curve: Vec<TradeOff> = curve.collect();
        curve.dedup_by_key(|point| point.bytes);
        (self.bits(rises, self.needed), curve)
    }

    /// The bits of the least rise that save so many bytes.
    fn bits(&self, rises: &[f64], needed: u64) -> Vec<Bits> {
        let open = |place: &usize| self.pinned[*place].is_none();
        let places: Vec<usize> = (0..rises.len()).filter(open).collect();
        let choice = |&place: &usize| Choice {
            saved: self.saved(place),
            rise: rises[place],
        };
        let choices: Vec<Choice> = places.iter().map(choice).collect();
        let needed = needed.saturating_sub(self.saved_by_pins());
        let taken = allocate(&choices, needed).expect("that much can be saved was checked before");
        let mut bits: Vec<Bits> = self
            .pinned
            .iter()
            .map(|pin| pin.unwrap_or(Bits::Four))
            .collect();
        for (place, two) in places.into_iter().zip(taken) {
            if two {
                bits[place] = Bits::Two;
            }
        }
        bits
    }

    fn saved(&self, place: usize) -> u64 {
        let [two, four] = self.bytes[place];
        four - two
    }

    fn saved_by_pins(&self) -> u64 {
        let pinned = |place: &usize| self.pinned[*place] == Some(Bits::Two);
        (0..self.bytes.len())
            .filter(pinned)
            .map(|place| self.saved(place))
            .sum()
    }

    /// Bytes of all projections with four bits everywhere.
    fn fours(&self) -> u64 {
        self.bytes.iter().map(|[_, four]| four).sum()
    }

    /// The same with two bits wherever they may be.
    fn least(&self) -> u64 {
        let each = self.bytes.iter().zip(&self.pinned);
        each.map(|([two, four], pin)| if *pin == Some(Bits::Four) { four } else { two })
            .sum()
    }

    fn bpw(&self, bytes: u64) -> f64 {
        8.0 * bytes as f64 / self.weights as f64
    }

    fn bytes_to_save(&self, settings: &Settings) -> Result<u64, CompressError> {
        let (least, most) = (self.least(), self.fours() - self.saved_by_pins());
        let but = match self.pinned.iter().any(Option::is_some) {
            true => ", as far as pins let it",
            false => "",
        };
        let (budget, refusal) = match settings.target_bytes {
            // What a person reads off the sentence, rounded, must be accepted.
            None => {
                let bpw = settings.target_bpw;
                let problem = format!(
                    "this model can have {:.3} (two bits everywhere) to {:.3} (four bits everywhere) bits a weight{but}, tables \
                     and scales included; choose a target in between",
                    (self.bpw(least) * 1000.0).ceil() / 1000.0,
                    (self.bpw(most) * 1000.0).floor() / 1000.0,
                );
                let meant = bpw >= self.bpw(least) && bpw <= self.bpw(most);
                let bytes = (bpw * self.weights as f64 / 8.0).floor() as u64;
                (
                    bytes,
                    (!meant).then(|| ("target_bpw", bpw.to_string(), problem)),
                )
            }
            Some(bytes) => {
                let problem = format!(
                    "this model can have {} (two bits everywhere) to {} (four bits everywhere) bytes{but}, of which {} are the \
                     tables in eight bits and the norms; choose a target in between",
                    least + self.rest,
                    most + self.rest,
                    self.rest
                );
                let meant = bytes >= least + self.rest && bytes <= most + self.rest;
                let refusal = (!meant).then(|| ("target_bytes", bytes.to_string(), problem));
                (bytes.saturating_sub(self.rest), refusal)
            }
        };
        match refusal {
            Some((key, value, problem)) => Err(CompressError::Setting {
                key,
                value,
                problem,
            }),
            None => Ok(self.fours() - budget.min(self.fours())),
        }
    }
}

/// What the pins say of a projection; notes which of them say something.
fn pin(settings: &Settings, name: &str, fits: &mut [bool]) -> Result<Option<Bits>, CompressError> {
    let mut found: Option<(&str, Bits)> = None;
    for ((pattern, &bits), fits) in settings.pins.iter().zip(fits) {
        if !matches(pattern, name) {
            continue;
        }
        *fits = true;
        let bits = match bits {
            2 => Bits::Two,
            _ => Bits::Four, // no others pass the check of the settings
        };
        if let Some((other, earlier)) = found
            && earlier != bits
        {
            return Err(CompressError::Setting {
                key: "pins",
                value: format!("{pattern:?} = {}", bits.bits()),
                problem: format!(
                    "{other:?} pins {name} to {} bits; let one of them fit less",
                    earlier.bits()
                ),
            });
        }
        found = Some((pattern, bits));
    }
    Ok(found.map(|(_, bits)| bits))
}

/// Whether a name is like a pattern, in which `*` stands for any text.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(name) = name.strip_prefix(first) else {
        return false;
    };
    (0..=name.len()).any(|at| name.is_char_boundary(at) && matches(rest, &name[at..]))
}

/// Bytes of tables and norms in a package.
fn rest(config: &Config) -> Result<u64, CompressError> {
    let table =
        int8::sizes(config.vocab, config.width).map_err(|problem| CompressError::Layout {
            name: "model.embed_tokens".to_owned(),
            problem,
        })?;
    let tables = if config.tied { 1 } else { 2 };
    let norms =
        config.parameters() - config.projection_parameters() - config.embedding_parameters();
    Ok((tables * (table.data + 2 * table.scales) + 4 * norms) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let json = serde_json::json!({
            "architectures": ["Qwen3ForCausalLM"], "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 3,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "intermediate_size": 128,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 32, "hidden_act": "silu",
            "tie_word_embeddings": true, "bos_token_id": 0, "eos_token_id": 0,
        });
        Config::parse(json.as_object().unwrap()).unwrap()
    }

    fn refused(settings: &Settings, said: &[&str]) {
        let problem = Budget::new(settings, &config()).err().expect("refused");
        let problem = problem.to_string();
        for said in said {
            assert!(problem.contains(said), "{said:?} is not in {problem}");
        }
    }

    #[test]
    fn a_pattern_matches_what_a_person_means() {
        let name = "model.layers.10.mlp.up_proj";
        for pattern in [
            "*",
            "*.up_proj",
            "model.layers.1*",
            "model.*.mlp.*",
            name,
            "**_proj*",
        ] {
            assert!(matches(pattern, name), "{pattern}");
        }
        for pattern in ["", "up_proj", "model.layers.1.*", "*.up", "mlp*"] {
            assert!(!matches(pattern, name), "{pattern}");
        }
    }

    #[test]
    fn pins_hold_and_the_rest_makes_up_for_them() {
        let pins = [
            ("*.v_proj".to_owned(), 4),
            ("model.layers.0.*proj".to_owned(), 2),
        ];
        let contradicting = Settings {
            pins: pins.clone().into(),
            ..Settings::default()
        };
        refused(
            &contradicting,
            &["pins", "model.layers.0.self_attn.v_proj", "4 bits"],
        );
        let settings = Settings {
            pins: [pins[0].clone(), ("model.layers.0.mlp.*".to_owned(), 2)].into(),
            target_bpw: 3.2,
            ..Settings::default()
        };
        let budget = Budget::new(&settings, &config()).unwrap();
        // Two bits are best for v, if they were asked, and worst for the first block's.
        let rise = |place| match place % 7 {
            2 => -1.0,
            kind if place < 7 => f64::from(9 + kind),
            kind => 0.1 * f64::from(kind),
        };
        let rises: Vec<f64> = (0..21).map(rise).collect();
        let (bits, curve) = budget.choose(&rises);
        for (place, bits) in bits.iter().enumerate() {
            match (place / 7, place % 7) {
                (_, 2) => assert_eq!(*bits, Bits::Four),
                (0, 4..) => assert_eq!(*bits, Bits::Two),
                (0, _) => assert_eq!(*bits, Bits::Four),
                _ => {}
            }
        }
        let sum = |two: usize| -> u64 { budget.bytes.iter().map(|bytes| bytes[two]).sum() };
        let (first, last) = (curve[0], curve[curve.len() - 1]);
        assert_eq!(first.bytes, sum(1) - budget.saved_by_pins() + budget.rest);
        assert!(last.bytes > sum(0) + budget.rest && last.bpw < 2.8);
        assert!(
            curve
                .windows(2)
                .all(|pair| pair[0].bytes > pair[1].bytes && pair[0].rise <= pair[1].rise)
        );
    }

    #[test]
    fn bytes_are_those_of_the_whole_package() {
        let at = |target_bytes| Settings {
            target_bytes: Some(target_bytes),
            ..Settings::default()
        };
        refused(
            &at(1000),
            &["`target_bytes` is 1000", "two bits everywhere"],
        );
        let any = Budget::new(&Settings::default(), &config()).unwrap();
        let (least, most) = (any.least() + any.rest, any.fours() + any.rest);
        assert_eq!(Budget::new(&at(most), &config()).unwrap().needed, 0);
        refused(&at(most + 1), &[&most.to_string()]);
        let budget = Budget::new(&at(least), &config()).unwrap();
        let (bits, _) = budget.choose(&[0.5; 21]);
        assert!(bits.iter().all(|bits| *bits == Bits::Two));
        let nowhere = Settings {
            pins: [("*.w_proj".to_owned(), 4)].into(),
            ..Settings::default()
        };
        refused(&nowhere, &["pins", "*.w_proj", "q_proj"]);
    }
}
