//! Shapes of decoders that are made of random weights, to measure speed with.

use std::str::FromStr;

use russet_model::config::RopeScaling;
use russet_model::{Config, Family};
use russet_train::bench::sizes;

/// A decoder's shape: that of a known size, or one spelled out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RandomShape([usize; NAMES.len()]);

const NAMES: [&str; 7] = [
    "dim", "layers", "heads", "kv_heads", "head_dim", "ffn", "vocab",
];

/// The sizes that `bench/peers` measures other engines at: Qwen3's, with a vocabulary of 49,152.
const KNOWN: [(&str, RandomShape); 2] = [
    ("0.6b", RandomShape([1024, 28, 16, 8, 128, 3072, 49_152])),
    ("3b", RandomShape([3072, 26, 24, 8, 128, 8192, 49_152])),
];

impl FromStr for RandomShape {
    type Err = String;

    fn from_str(text: &str) -> Result<RandomShape, String> {
        let lower = text.to_ascii_lowercase();
        if let Some((_, shape)) = KNOWN.iter().find(|(name, _)| *name == lower) {
            return Ok(*shape);
        }
        let shape = sizes(text, NAMES)
            .map_err(|problem| format!("{problem}; the sizes known by name are 0.6b and 3b"))?;
        let shape = RandomShape(shape);
        shape.config().check()?;
        Ok(shape)
    }
}

impl RandomShape {
    pub fn config(&self) -> Config {
        let [width, layers, heads, kv_heads, head_dim, ffn, vocab] = self.0;
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
