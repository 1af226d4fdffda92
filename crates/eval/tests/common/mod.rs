//! Small decoders: one whose probabilities are known by construction, one random, one palettized.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::sync::Arc;

use half::f16;
use russet_kernels::palette::{self, Bits};
use russet_kernels::{Pool, int8, random};
use russet_model::config::RopeScaling;
use russet_model::package::{self, Package, PaletteTensors};
use russet_model::{Config, Decoder, Family, ParameterKind};
use russet_tensor::Ctx;

pub const VOCAB: usize = 53;
pub const CONTEXT: usize = 64;

fn config() -> Config {
    Config {
        family: Family::Qwen3,
        vocab: VOCAB,
        width: 32,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 16,
        ffn: 48,
        norm_epsilon: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        attention: Default::default(),
        context: CONTEXT,
        tied: true,
        bos: Some(0),
        eos: vec![0],
    }
}

/// Random weights, one table for input and output.
pub fn dense(seed: u64) -> Decoder {
    Decoder::random(&config(), seed)
}

/// A decoder whose next token depends on the last alone: `probabilities[last][next]`. Embeddings are unit vectors, the
/// blocks add nothing, and the output table holds the logarithms.
pub fn bigram(probabilities: &[&[f32]]) -> Decoder {
    let vocab = probabilities.len();
    let shape = Config {
        vocab,
        width: vocab,
        layers: 1,
        heads: 1,
        head_dim: 2,
        ffn: 2,
        tied: false,
        ..config()
    };
    let mut decoder = Decoder::random(
        &Config {
            norm_epsilon: 1e-12,
            ..shape
        },
        0,
    );
    let mut place = 0;
    let last = decoder.parameters().len() - 1;
    decoder.visit_mut(&mut |tensor| {
        let norm = tensor.shape().len() == 1;
        for (i, value) in tensor.data_mut().iter_mut().enumerate() {
            let (row, column) = (i / vocab, i % vocab);
            *value = if place == 0 {
                f32::from(u8::from(row == column))
            } else if place == last {
                probabilities[column][row].ln()
            } else if norm {
                // A unit vector's mean square is 1 / V.
                (vocab as f32).sqrt().recip()
            } else {
                0.0
            };
        }
        place += 1;
    });
    decoder
}

/// `decoder` with every matrix rounded to sixteen even steps and its table to eight bits.
pub fn palettized(decoder: &Decoder) -> Decoder {
    let (mut modules, mut tables, mut norms) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for parameter in decoder.parameters() {
        let mut start = 0;
        for (name, rows) in &parameter.parts {
            let width = *parameter.tensor.shape().last().unwrap();
            let values = &parameter.tensor.data()[start..start + rows * width];
            start += values.len();
            let module = name.trim_end_matches(".weight").to_owned();
            match parameter.kind {
                ParameterKind::Norm => drop(norms.insert(name.clone(), values)),
                ParameterKind::Embedding => {
                    drop(tables.insert(module, int8::quantize(*rows, width, values).unwrap()))
                }
                _ => drop(modules.insert(module, palettize(*rows, width, values))),
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    package::write(
        &Package {
            config: decoder.config(),
            tables,
            modules,
            norms,
        },
        folder.path(),
    )
    .unwrap();
    russet_model::checkpoint::open(folder.path()).unwrap()
}

fn palettize(rows: usize, cols: usize, values: &[f32]) -> PaletteTensors {
    let bits = Bits::Four;
    let sizes = palette::sizes(bits, rows, cols).unwrap();
    let table: Vec<i8> = (0..16).map(|entry| (-120 + 16 * entry) as i8).collect();
    let mut scales = vec![f16::ZERO; sizes.scales];
    let mut indices = Vec::new();
    for (row, scale) in values.chunks_exact(cols).zip(&mut scales) {
        *scale =
            f16::from_f32(row.iter().fold(0.0f32, |most, value| most.max(value.abs())) / 120.0);
        let step = 16.0 * scale.to_f32();
        indices.extend(
            row.iter()
                .map(|value| (value / step + 7.5).round().clamp(0.0, 15.0) as u8),
        );
    }
    PaletteTensors {
        bits,
        indices: palette::pack(bits, rows, cols, &indices).unwrap(),
        palette: table.repeat(sizes.palette / table.len()),
        scales,
    }
}

pub fn ctx(threads: usize) -> Ctx {
    Ctx::new(Arc::new(Pool::new(threads).unwrap()))
}

pub fn tokens(seed: u64, count: usize) -> Vec<u32> {
    (0..count as u64)
        .map(|i| random::below(seed, 0, i, VOCAB as u64) as u32)
        .collect()
}
