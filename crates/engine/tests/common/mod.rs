//! Small decoders with random weights: dense, and the same palettized.
#![allow(dead_code)] // each test file uses its share

use std::collections::BTreeMap;
use std::sync::Arc;

use half::f16;
use russet_engine::{Engine, Event, Flow, Generation, Request, RequestId, Sampling};
use russet_kernels::palette::{self, Bits};
use russet_kernels::{Pool, int8, random};
use russet_model::config::RopeScaling;
use russet_model::package::{self, Package, PaletteTensors};
use russet_model::{Attention, Config, Decoder, Family, ParameterKind};

pub const VOCAB: usize = 97;
pub const CONTEXT: usize = 256;

pub fn config() -> Config {
    Config {
        family: Family::Qwen3,
        vocab: VOCAB,
        width: 48,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        ffn: 80,
        norm_epsilon: 1e-5,
        rope_theta: 500_000.0,
        rope_scaling: RopeScaling::None,
        attention: Default::default(),
        context: CONTEXT,
        tied: true,
        bos: Some(0),
        eos: vec![0],
    }
}

pub fn dense() -> Decoder {
    Decoder::random(&config(), 1)
}

/// One whose first and third layers slide, and whose last two use the keys and values of the first two.
pub fn sliding_and_sharing() -> Decoder {
    let config = Config {
        layers: 4,
        attention: Attention::new(40, vec![true, false, true, false], 2),
        ..config()
    };
    Decoder::random(&config, 1)
}

/// The dense decoder with every matrix rounded to even steps, of two, three and four bits, and the table to eight bits.
pub fn palettized() -> Decoder {
    rounded(&dense())
}

/// Any decoder so rounded.
pub fn rounded(decoder: &Decoder) -> Decoder {
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
                _ => {
                    let bits = match module.rsplit_once('.').unwrap().1 {
                        "q_proj" | "down_proj" => Bits::Three,
                        "up_proj" => Bits::Two,
                        _ => Bits::Four,
                    };
                    drop(modules.insert(module, palettize(bits, *rows, width, values)));
                }
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

fn palettize(bits: Bits, rows: usize, cols: usize, values: &[f32]) -> PaletteTensors {
    let sizes = palette::sizes(bits, rows, cols).unwrap();
    let entries = bits.entries() as i32;
    let apart = 256 / entries;
    let table = (0..entries).map(|entry| (-120 + apart * entry).min(127) as i8);
    let table: Vec<i8> = table.collect();
    let mut scales = vec![f16::ZERO; sizes.scales];
    let mut indices = Vec::new();
    for (row, scale) in values.chunks_exact(cols).zip(&mut scales) {
        *scale =
            f16::from_f32(row.iter().fold(0.0f32, |most, value| most.max(value.abs())) / 120.0);
        let (step, last) = (apart as f32 * scale.to_f32(), (entries - 1) as f32);
        let index = |value: &f32| ((value + 120.0 * scale.to_f32()) / step).round();
        indices.extend(row.iter().map(|value| index(value).clamp(0.0, last) as u8));
    }
    PaletteTensors {
        bits,
        indices: palette::pack(bits, rows, cols, &indices).unwrap(),
        palette: table.repeat(sizes.palette / table.len()),
        scales,
    }
}

pub fn pool(threads: usize) -> Arc<Pool> {
    Arc::new(Pool::new(threads).unwrap())
}

pub fn tokens(seed: u64, count: usize) -> Vec<u32> {
    (0..count as u64)
        .map(|i| random::below(seed, 0, i, VOCAB as u64) as u32)
        .collect()
}

pub fn greedy(prompt: Vec<u32>, max_tokens: usize) -> Request {
    Request {
        prompt,
        max_tokens,
        sampling: Sampling::GREEDY,
        stop_tokens: Vec::new(),
        ..Request::default()
    }
}

pub fn sampled(prompt: Vec<u32>, max_tokens: usize, seed: u64) -> Request {
    let sampling = Sampling {
        seed,
        ..Sampling::default()
    };
    Request {
        prompt,
        max_tokens,
        sampling,
        stop_tokens: Vec::new(),
        ..Request::default()
    }
}

/// Steps until nothing is left; the tokens shown and the answers.
pub fn finish(engine: &mut Engine) -> BTreeMap<RequestId, Generation> {
    let mut answers = BTreeMap::new();
    let mut shown: BTreeMap<RequestId, Vec<u32>> = BTreeMap::new();
    let mut more = true;
    while more {
        more = engine.step(&mut |event| {
            match event {
                Event::Token(id, token) => shown.entry(id).or_default().push(token.id),
                Event::Top(..) => {}
                Event::End(id, answer) => assert!(answers.insert(id, answer.unwrap()).is_none()),
            }
            Flow::Continue
        });
        engine.check_invariants();
    }
    for (id, answer) in &answers {
        let shown = shown.get(id).map_or(&[][..], |tokens| tokens);
        assert!(answer.content().ends_with(shown), "{id:?}"); // what came before `finish` is not in `shown`
    }
    answers
}

/// A PEFT folder of an adapter of the given rank that changes every projection whose name holds `on`.
pub fn adapter(rank: usize, seed: u64, on: &str) -> tempfile::TempDir {
    let mut adapted =
        russet_model::adapter::attach_new(dense(), rank, 8.0, seed, |name| name.contains(on))
            .freeze();
    // B begins as zeros, with which an adapter changes nothing.
    let mut stream = 0;
    adapted.visit_mut(&mut |tensor| {
        stream += 1;
        for (i, value) in tensor.data_mut().iter_mut().enumerate() {
            *value = 0.2 * random::normal(seed, stream, i as u64);
        }
    });
    let folder = tempfile::tempdir().unwrap();
    russet_model::adapter::save(&adapted, "base", folder.path()).unwrap();
    folder
}
