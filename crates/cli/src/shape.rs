//! Shapes of decoders that are made of random weights, to measure speed with.

use std::str::FromStr;

use russet_model::config::RopeScaling;
use russet_model::{Attention, Config, Family};
use russet_train::bench::sizes;

/// A decoder's shape: that of a known size, or one spelled out; and what may be said of either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RandomShape {
    sizes: [usize; NAMES.len()],
    /// W, where all layers slide.
    window: Option<usize>,
    /// How many of the last layers use keys and values of the last one before them.
    kv_shared: usize,
}

const NAMES: [&str; 7] = [
    "dim", "layers", "heads", "kv_heads", "head_dim", "ffn", "vocab",
];

/// The sizes that `bench/peers` measures other engines at: Qwen3's, with a vocabulary of 49,152.
const KNOWN: [(&str, [usize; NAMES.len()]); 2] = [
    ("0.6b", [1024, 28, 16, 8, 128, 3072, 49_152]),
    ("3b", [3072, 26, 24, 8, 128, 8192, 49_152]),
];

/// The one number of a part `NAME=NUMBER`, if that is its name.
fn option(name: &'static str, part: &str) -> Result<Option<usize>, String> {
    match part.split_once('=') {
        Some((found, _)) if found.trim() == name => sizes(part, [name]).map(|[size]| Some(size)),
        _ => Ok(None),
    }
}

impl FromStr for RandomShape {
    type Err = String;

    fn from_str(text: &str) -> Result<RandomShape, String> {
        let (mut window, mut kv_shared) = (None, None);
        let mut rest = Vec::new();
        'parts: for part in text.split(',') {
            for (name, value) in [("window", &mut window), ("kv_shared", &mut kv_shared)] {
                if let Some(size) = option(name, part)? {
                    if value.replace(size).is_some() {
                        return Err(format!("{name} is given twice"));
                    }
                    continue 'parts;
                }
            }
            rest.push(part);
        }
        let rest = rest.join(",");
        let lower = rest.to_ascii_lowercase();
        let sizes = match KNOWN.iter().find(|(name, _)| *name == lower) {
            Some((_, known)) => *known,
            None => sizes(&rest, NAMES)
                .map_err(|problem| format!("{problem}; the sizes known by name are 0.6b and 3b"))?,
        };
        let shape = RandomShape {
            sizes,
            window,
            kv_shared: kv_shared.unwrap_or(0),
        };
        shape.config().check()?;
        Ok(shape)
    }
}

impl RandomShape {
    pub fn config(&self) -> Config {
        let [width, layers, heads, kv_heads, head_dim, ffn, vocab] = self.sizes;
        Config {
            family: Family::Qwen3,
            vocab,
            width,
            layers,
            heads,
            kv_heads,
            head_dim,
            ffn,
            norm_epsilon: 1e-6,
            rope_theta: 1e6,
            rope_scaling: RopeScaling::None,
            attention: Attention::new(
                self.window.unwrap_or(0),
                vec![self.window.is_some(); layers],
                self.kv_shared,
            ),
            context: 32_768,
            tied: true,
            bos: None,
            eos: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_known_or_spelled_out() {
        let shape: RandomShape = "0.6B".parse().unwrap();
        assert_eq!(shape.config().projection_parameters(), 440_401_920);
        let spelled = "dim=1024,layers=28,heads=16,kv_heads=8,head_dim=128,ffn=3072,vocab=49152";
        assert_eq!(spelled.parse(), Ok(shape));
        let less: RandomShape = "0.6b,kv_shared=10,window=256".parse().unwrap();
        let less = less.config();
        assert_eq!((less.kv_layers(), less.attention_of(27).window), (18, 256));
        assert_eq!(less.attention_of(27).keys_of, 17);
    }

    #[test]
    fn what_is_no_shape_is_refused_and_says_why() {
        for (text, sentence) in [
            (
                "7b",
                "`7b` is no part of a shape; it is NAME=NUMBER with each",
            ),
            ("dim=0", "dim is `0`"),
            ("dim=8,dim=8", "dim is given twice"),
            (
                "dim=8",
                "layers, heads, kv_heads, head_dim, ffn, vocab are missing",
            ),
            ("0.6b,window=0", "window is `0`"),
            ("0.6b,window=4,window=4", "window is given twice"),
            ("0.6b,kv_shared=28", "`num_kv_shared_layers` is 28"),
            (
                "dim=8,layers=1,heads=3,kv_heads=2,head_dim=4,ffn=8,vocab=9",
                "3 query heads cannot be shared",
            ),
        ] {
            let problem = text.parse::<RandomShape>().unwrap_err();
            assert!(problem.starts_with(sentence), "{problem}");
        }
    }
}
