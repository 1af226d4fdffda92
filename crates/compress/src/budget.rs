//! The bits of each projection: what the target asks for, what is pinned, and what every other target would have cost.

use russet_kernels::palette::Bits;
use russet_model::{Config, projections};
use serde::{Deserialize, Serialize};

use crate::allocate::{Choice, allocate};
use crate::settings::{Settings, TableBits, Width};
use crate::{CompressError, matrix, table};

/// Points of the curve, evenly spread in bytes.
const POINTS: u64 = 33;

/// A package that could be: of so many bytes, at such a price.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TradeOff {
    /// Bits a weight of the projections, with tables and scales.
    pub bpw: f64,
    /// Of all tensors.
    pub bytes: u64,
    /// What it costs over four bits everywhere, nats a token, by the sensitivities that the bits are chosen by.
    pub rise: f64,
}

/// What the settings allow the projections of a decoder.
pub(crate) struct Budget {
    fitted: Vec<Bits>,
    bytes: Vec<Vec<u64>>, // of each projection with each of the bits that it is fitted with
    open: Vec<Vec<usize>>, // which of these it may have
    weights: u64,
    rest: u64,   // bytes of what is not palettized
    needed: u64, // that must be saved over the largest package
}

impl Budget {
    /// # Errors
    /// When a projection has a size that the format does not offer, a pin fits nothing or two of them contradict each other, the
    /// decoder cannot be rotated, or the target cannot be met.
    pub fn new(settings: &Settings, config: &Config) -> Result<Budget, CompressError> {
        let config = &settings.packaged(config)?;
        let (fitted, choice) = (settings.fitted(), settings.choice());
        let (mut bytes, mut open) = (Vec::new(), Vec::new());
        let mut fits = vec![false; settings.pins.len()];
        for (name, rows, cols) in (0..config.layers).flat_map(|layer| projections(config, layer)) {
            let stored = |&bits| match matrix::stored_bytes(bits, rows, cols) {
                Ok(bytes) => Ok(bytes as u64),
                Err(problem) => Err(CompressError::Layout {
                    name: name.clone(),
                    problem,
                }),
            };
            bytes.push(fitted.iter().map(stored).collect::<Result<Vec<_>, _>>()?);
            let pin = pin(settings, &name, &mut fits)?;
            let may = |bits: &Bits| pin.map_or(choice.contains(bits), |pin| pin == *bits);
            open.push(
                (0..fitted.len())
                    .filter(|&width| may(&fitted[width]))
                    .collect(),
            );
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
            fitted,
            bytes,
            open,
            weights: config.projection_parameters() as u64,
            rest: rest(settings, config)?,
            needed: 0,
        };
        budget.needed = budget.bytes_to_save(settings)?;
        Ok(budget)
    }

    /// Bits of each projection, and what other targets would cost; `rises` are what each of the bits that a projection is fitted
    /// with costs over four.
    pub fn choose(&self, rises: &[Vec<f64>]) -> (Vec<Bits>, Vec<TradeOff>) {
        let most = self.most() - self.least();
        let curve = (0..POINTS).map(|point| {
            let widths = self.widths(rises, most * point / (POINTS - 1));
            let (mut sum, mut rise) = (0, 0.0);
            for (place, width) in widths.into_iter().enumerate() {
                sum += self.bytes[place][width];
                rise += rises[place][width];
            }
            TradeOff {
                bpw: self.bpw(sum),
                bytes: sum + self.rest,
                rise,
            }
        });
        let mut curve: Vec<TradeOff> = curve.collect();
        curve.dedup_by_key(|point| point.bytes);
        let widths = self.widths(rises, self.needed);
        (
            widths.into_iter().map(|width| self.fitted[width]).collect(),
            curve,
        )
    }

    /// Places in `fitted` of the bits of the least rise that save so many bytes over the largest package.
    fn widths(&self, rises: &[Vec<f64>], needed: u64) -> Vec<usize> {
        let items = self.open.iter().enumerate().map(|(place, open)| {
            let choice = |&width: &usize| Choice {
                saved: self.largest(place) - self.bytes[place][width],
                rise: rises[place][width],
            };
            open.iter().map(choice).collect()
        });
        let items: Vec<Vec<Choice>> = items.collect();
        let taken = allocate(&items, needed).expect("that much can be saved was checked before");
        self.open
            .iter()
            .zip(taken)
            .map(|(open, choice)| open[choice])
            .collect()
    }

    fn largest(&self, place: usize) -> u64 {
        let open = self.open[place]
            .iter()
            .map(|&width| self.bytes[place][width]);
        open.max().expect("every projection may have some bits")
    }

    /// Bytes of all projections with the most that they may take: with four bits everywhere, unless pins or `bits` say otherwise.
    fn most(&self) -> u64 {
        (0..self.open.len()).map(|place| self.largest(place)).sum()
    }

    /// The same with the least.
    fn least(&self) -> u64 {
        let least = |(bytes, open): (&Vec<u64>, &Vec<usize>)| {
            let open = open.iter().map(|&width| bytes[width]);
            open.min().expect("every projection may have some bits")
        };
        self.bytes.iter().zip(&self.open).map(least).sum()
    }

    fn bpw(&self, bytes: u64) -> f64 {
        8.0 * bytes as f64 / self.weights as f64
    }

    fn bytes_to_save(&self, settings: &Settings) -> Result<u64, CompressError> {
        let (least, most) = (self.least(), self.most());
        // Where there is nothing to choose, a target only has to be large enough.
        let chosen = self.open.iter().any(|open| open.len() > 1);
        let but = match settings.pins.is_empty() || !chosen {
            false => ", as far as pins let it",
            true => "",
        };
        let choice = settings.choice();
        let [fewest, most_bits] = [choice.first(), choice.last()].map(|bits| match bits {
            Some(Bits::Two) => "two",
            Some(Bits::Three) => "three",
            Some(Bits::Four) | None => "four",
            Some(pairs) => pairs.name(),
        });
        let range = |least: String, most: String| match chosen {
            false => format!(
                "with these bits and pins nothing is left to choose, and this model takes {most}"
            ),
            true => format!(
                "this model can have {least} ({fewest} bits everywhere) to {most} ({most_bits} bits everywhere)"
            ),
        };
        let remedy = match chosen {
            true => "choose a target in between",
            false => "choose that or more",
        };
        let (budget, refusal) = match settings.target_bytes {
            // What a person reads off the sentence, rounded, must be accepted.
            None => {
                let bpw = settings.target_bpw;
                let range = range(
                    format!("{:.3}", (self.bpw(least) * 1000.0).ceil() / 1000.0),
                    match chosen {
                        true => format!("{:.3}", (self.bpw(most) * 1000.0).floor() / 1000.0),
                        false => format!("{:.3}", (self.bpw(most) * 1000.0).ceil() / 1000.0),
                    },
                );
                let problem =
                    format!("{range} bits a weight{but}, tables and scales included; {remedy}");
                let meant = bpw >= self.bpw(least) && (bpw <= self.bpw(most) || !chosen);
                let bytes = (bpw * self.weights as f64 / 8.0).floor() as u64;
                (
                    bytes,
                    (!meant).then(|| ("target_bpw", bpw.to_string(), problem)),
                )
            }
            Some(bytes) => {
                let range = range(
                    (least + self.rest).to_string(),
                    (most + self.rest).to_string(),
                );
                let tables = match settings.table_bits {
                    TableBits::Eight => "eight",
                    TableBits::Four => "four",
                };
                let problem = format!(
                    "{range} bytes{but}, of which {} are the tables in {tables} bits and the norms; {remedy}",
                    self.rest
                );
                let meant = bytes >= least + self.rest && (bytes <= most + self.rest || !chosen);
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
            None => Ok(most - budget.min(most)),
        }
    }
}

/// What the pins say of a projection; notes which of them say something.
fn pin(settings: &Settings, name: &str, fits: &mut [bool]) -> Result<Option<Bits>, CompressError> {
    let mut found: Option<(&str, Bits)> = None;
    for ((pattern, &Width(bits)), fits) in settings.pins.iter().zip(fits) {
        if !matches(pattern, name) {
            continue;
        }
        *fits = true;
        if let Some((other, earlier)) = found
            && earlier != bits
        {
            return Err(CompressError::Setting {
                key: "pins",
                value: format!("{pattern:?} = {}", bits.name()),
                problem: format!(
                    "{other:?} pins {name} to {} bits; let one of them fit less",
                    earlier.name()
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
fn rest(settings: &Settings, config: &Config) -> Result<u64, CompressError> {
    let table = table::stored_bytes(settings.table_bits, config.vocab, config.width);
    let table = table.map_err(|problem| CompressError::Layout {
        name: "model.embed_tokens".to_owned(),
        problem,
    })?;
    let tables = if config.tied { 1 } else { 2 };
    let norms =
        config.parameters() - config.projection_parameters() - config.embedding_parameters();
    Ok((tables * table + 4 * norms) as u64)
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

    fn width(bits: u32) -> Width {
        Width(Bits::from_bits(bits as usize).unwrap())
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
            ("*.v_proj".to_owned(), width(4)),
            ("model.layers.0.*proj".to_owned(), width(2)),
        ];
        let contradicting = Settings {
            bits: vec![width(2), width(4)],
            pins: pins.clone().into(),
            ..Settings::default()
        };
        refused(
            &contradicting,
            &["pins", "model.layers.0.self_attn.v_proj", "4 bits"],
        );
        let settings = Settings {
            pins: [
                pins[0].clone(),
                ("model.layers.0.mlp.*".to_owned(), width(2)),
            ]
            .into(),
            bits: vec![width(2), width(4)],
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
        let rises: Vec<Vec<f64>> = (0..21).map(|place| vec![rise(place), 0.0]).collect();
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
        let pinned = &budget.bytes[4..7]; // the first block's feed-forward half
        let saved: u64 = pinned.iter().map(|bytes| bytes[1] - bytes[0]).sum();
        assert_eq!(first.bytes, sum(1) - saved + budget.rest);
        assert!(last.bytes > sum(0) + budget.rest && last.bpw < 2.8);
        assert!(
            curve
                .windows(2)
                .all(|pair| pair[0].bytes > pair[1].bytes && pair[0].rise <= pair[1].rise)
        );
    }

    #[test]
    fn three_bits_are_chosen_pinned_and_left_out() {
        // Three bits cost a tenth of what two do, but in the first block, whose two cost nothing.
        let rises = |fitted: &[Bits]| -> Vec<Vec<f64>> {
            let rise = |place: usize, bits: &Bits| match bits {
                Bits::Two if place < 7 => 0.0,
                Bits::Two => 1.0,
                Bits::Three => 0.1,
                Bits::Four => 0.0,
                pairs => panic!("{pairs:?} was not asked for"),
            };
            let each = |place| fitted.iter().map(|bits| rise(place, bits)).collect();
            (0..21).map(each).collect()
        };
        let choose = |bits: &[u32], pins: &[(&str, u32)]| {
            let pins = pins
                .iter()
                .map(|&(name, bits)| (name.to_owned(), width(bits)));
            let settings = Settings {
                target_bpw: 3.0,
                bits: bits.iter().map(|&bits| width(bits)).collect(),
                pins: pins.collect(),
                ..Settings::default()
            };
            let budget = Budget::new(&settings, &config()).unwrap();
            let rises = rises(&budget.fitted);
            let (bits, _) = budget.choose(&rises);
            let bytes = |(place, bits): (usize, &Bits)| {
                let width = budget.fitted.iter().position(|b| b == bits).unwrap();
                budget.bytes[place][width]
            };
            let sum: u64 = bits.iter().enumerate().map(bytes).sum();
            assert!(budget.bpw(sum) <= 3.0);
            let count = |what| bits.iter().filter(|bits| **bits == what).count();
            let range = budget.most() - budget.least();
            let price = |step: u64| -> f64 {
                let widths = budget.widths(&rises, range * step / 8);
                widths
                    .iter()
                    .zip(&rises)
                    .map(|(&width, rises)| rises[width])
                    .sum()
            };
            (
                [Bits::Two, Bits::Three, Bits::Four].map(count),
                bits,
                (0..=8).map(price).collect::<Vec<f64>>(),
            )
        };
        let (counts, bits, prices) = choose(&[2, 3, 4], &[]);
        assert!(counts[0] == 7 && counts[1] > 7, "{counts:?}");
        assert!(bits[..7].iter().all(|bits| *bits == Bits::Two));
        let (plain, _, plain_prices) = choose(&[2, 4], &[]);
        assert_eq!(plain[1], 0);
        // More to choose from is never worse at the same size, and here better in between.
        let pairs = || prices.iter().zip(&plain_prices);
        assert!(
            pairs().all(|(more, plain)| *more <= plain + 1e-9),
            "{prices:?} {plain_prices:?}"
        );
        assert!(
            prices[4] < 0.5 * plain_prices[4],
            "{prices:?} {plain_prices:?}"
        );
        let (pinned, bits, _) = choose(&[2, 4], &[("*.v_proj", 3)]);
        assert!(pinned[1] == 3 && bits[2] == Bits::Three, "{pinned:?}");
    }

    #[test]
    fn pairs_are_weighed_with_their_tables() {
        let settings = Settings {
            target_bpw: 3.6,
            bits: [Bits::Two, Bits::ThreePairs].map(Width).to_vec(),
            ..Settings::default()
        };
        let budget = Budget::new(&settings, &config()).unwrap();
        assert_eq!(budget.fitted, [Bits::Two, Bits::ThreePairs, Bits::Four]);
        // q of 64 x 64: four strips of indices, tables and scales.
        assert_eq!(
            budget.bytes[0][..2],
            [4 * (256 + 4 + 32), 4 * (384 + 128 + 32)]
        );
        let (bits, _) = budget.choose(&vec![vec![1.0, 0.1, 0.0]; 21]);
        assert!(bits.contains(&Bits::ThreePairs) && !bits.contains(&Bits::Four));
        let all = Settings {
            target_bpw: 5.0,
            ..settings
        };
        refused(&all, &["two bits everywhere", "3v bits everywhere"]);
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
        let (least, most) = (any.least() + any.rest, any.most() + any.rest);
        assert_eq!(Budget::new(&at(most), &config()).unwrap().needed, 0);
        refused(&at(most + 1), &[&most.to_string()]);
        // Tables in four bits leave room: 100 rows of 64 are seven strips of 1,024 bytes: half of them, less 16 entries.
        let four = |target_bytes| Settings {
            table_bits: TableBits::Four,
            ..at(target_bytes)
        };
        let saved = 7 * (16 * 64 / 2 - 16);
        assert_eq!(
            Budget::new(&four(most - saved), &config()).unwrap().needed,
            0
        );
        refused(
            &four(most),
            &[&(most - saved).to_string(), "the tables in four bits"],
        );
        let budget = Budget::new(&at(least), &config()).unwrap();
        let (bits, _) = budget.choose(&vec![vec![0.5, 0.2, 0.0]; 21]);
        assert!(bits.iter().all(|bits| *bits == Bits::Two));
        // With nothing to choose, a target only has to be large enough.
        let three = |target_bpw| Settings {
            bits: vec![width(3)],
            target_bpw,
            ..Settings::default()
        };
        refused(
            &three(3.0),
            &["nothing is left to choose", "takes 3.278 bits a weight"],
        );
        let budget = Budget::new(&three(3.5), &config()).unwrap();
        let (bits, curve) = budget.choose(&vec![vec![0.5, 0.0]; 21]);
        assert!(bits.iter().all(|bits| *bits == Bits::Three));
        assert_eq!((curve.len(), curve[0].rise), (1, 21.0 * 0.5));
        let nowhere = Settings {
            pins: [("*.w_proj".to_owned(), width(4))].into(),
            ..Settings::default()
        };
        refused(&nowhere, &["pins", "*.w_proj", "q_proj"]);
    }
}
