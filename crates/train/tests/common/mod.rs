//! A toy corpus, its tokenizer and its shards: what the tests of this crate train on.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use russet_artifact::{Draft, Inputs, Kind, Override, Recipe, Stage, Tool};
use russet_kernels::palette::Bits;
use russet_kernels::{int8, palette, random};
use russet_model::package::{self, Package, PaletteTensors};
use russet_model::{Parameter, ParameterKind, checkpoint};
use russet_tokenizer::{ShardWriter, TokenShard, Tokenizer, TokenizerError, TrainConfig};
use serde::de::DeserializeOwned;

/// Short texts with some order in them, and some of several sequences' length.
pub fn documents(count: u64, seed: u64) -> Vec<String> {
    let words = [
        "the", "fox", "hen", "saw", "a", "red", "barn", "and", "ran", "home", "then", "slept",
    ];
    let text = |document: u64| {
        let length = 4 + random::below(seed, document, 0, 60);
        let mut word = random::below(seed, document, 1, words.len() as u64);
        let mut text = String::new();
        for position in 0..length {
            text += words[word as usize];
            text += if position % 9 == 8 { ". " } else { " " };
            // Each word is followed by one of three.
            word = (word * 5 + 1 + random::below(seed, document, 2 + position, 3))
                % words.len() as u64;
        }
        text
    };
    (0..count).map(text).collect()
}

/// A tokenizer of the toy corpus, trained anew: a few hundredths of a second.
pub fn tokenizer() -> Tokenizer {
    tokenizer_of(300)
}

/// One of so many tokens.
pub fn tokenizer_of(vocab_size: usize) -> Tokenizer {
    let config = TrainConfig {
        vocab_size,
        min_frequency: 2,
        alphabet_min_frequency: 2,
    };
    russet_tokenizer::train(
        &config,
        documents(50, 1).into_iter().map(Ok::<_, TokenizerError>),
    )
    .unwrap()
}

/// A shard of given documents, ids without the end token each, one byte of text an id.
pub fn shard(dir: &Path, documents: &[&[u32]]) -> TokenShard {
    let path = dir.join("some.tokens.safetensors");
    let mut writer = ShardWriter::create(&path, &tokenizer()).unwrap();
    for ids in documents {
        writer.push(ids, ids.len() as u64).unwrap();
    }
    writer.finish().unwrap();
    TokenShard::open(&path).unwrap()
}

/// A tokens artifact in `dir/tokens` with the splits `train` and `validation`, and the tokenizer in it.
pub fn tokens(dir: &Path) -> PathBuf {
    tokens_of(dir, &tokenizer())
}

/// The same of a given tokenizer.
pub fn tokens_of(dir: &Path, tokenizer: &Tokenizer) -> PathBuf {
    let place = dir.join("tokens");
    let draft = Draft::create(&place, Kind::Tokens).unwrap();
    tokenizer.save(draft.path()).unwrap();
    for (name, count, seed) in [("train", 60, 2), ("validation", 8, 3)] {
        let mut writer = ShardWriter::create(
            draft.path().join(format!("{name}.tokens.safetensors")),
            tokenizer,
        )
        .unwrap();
        for text in documents(count, seed) {
            writer
                .push(&tokenizer.encode(&text, false).unwrap(), text.len() as u64)
                .unwrap();
        }
        writer.finish().unwrap();
    }
    let stage = Stage::new("tokens", &tool(), serde_json::json!({}), Inputs::new());
    draft.commit(&stage).unwrap();
    place
}

pub fn tool() -> Tool {
    Tool::new("0.0.0", "test")
}

/// As [`settings`], of adapters on a package.
pub fn adapter_settings<T: DeserializeOwned>(changes: &[&str]) -> T {
    let text = r#"
        stage = "recover"
        [adapter]
        rank = 4
        [train]
        steps = 20
        batch_sequences = 4
        sequence_length = 32
        peak_lr = 1e-2
        warmup_steps = 2
        checkpoint_every = 5
        validation_tokens = 100
        log_every = 1
        [optimizer]
        kind = "adamw"
        [data]
        validation = "validation"
        [compute]
        threads = 1
    "#;
    parse(text, changes)
}

/// A recipe that trains in a moment, with changes: `train.steps=12`.
pub fn settings<T: DeserializeOwned>(changes: &[&str]) -> T {
    let text = r#"
        stage = "pretrain"
        [model]
        width = 32
        layers = 2
        heads = 4
        kv_heads = 2
        ffn = 64
        [train]
        steps = 30
        batch_sequences = 4
        sequence_length = 32
        micro_batch_sequences = 2
        peak_lr = 1e-2
        warmup_steps = 3
        checkpoint_every = 5
        validation_tokens = 100
        log_every = 1
        [optimizer]
        kind = "adamw"
        [data]
        validation = "validation"
        [compute]
        threads = 1
    "#;
    parse(text, changes)
}

fn parse<T: DeserializeOwned>(text: &str, changes: &[&str]) -> T {
    let changes: Vec<Override> = changes
        .iter()
        .map(|change| change.parse().unwrap())
        .collect();
    Recipe::from_text("recipe", text, &changes)
        .unwrap()
        .parse()
        .unwrap()
}

/// A package of the checkpoint in `folder`, beside it: two bits a weight in evenly spread tables, as crude as can be.
pub fn package(folder: &Path) -> PathBuf {
    let place = folder.with_file_name("package");
    let decoder = checkpoint::load(folder).unwrap();
    let (mut tables, mut modules, mut norms) = Default::default();
    let parameters = decoder.parameters();
    for parameter in &parameters {
        add(parameter, &mut tables, &mut modules, &mut norms);
    }
    let package = Package {
        config: decoder.config(),
        tables,
        modules,
        norms,
    };
    let draft = Draft::create(&place, Kind::Package).unwrap();
    package::write(&package, draft.path()).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(folder.join(name), draft.path().join(name)).unwrap();
    }
    let inputs = Inputs::new();
    let inputs = inputs.artifact_or_path("checkpoint", folder, Kind::Checkpoint);
    let stage = Stage::new("palettize", &tool(), serde_json::json!({}), inputs.unwrap());
    draft.commit(&stage).unwrap();
    place
}

fn add<'a>(
    parameter: &Parameter<'a>,
    tables: &mut BTreeMap<String, int8::Quantized>,
    modules: &mut BTreeMap<String, PaletteTensors>,
    norms: &mut BTreeMap<String, &'a [f32]>,
) {
    let data = parameter.tensor.data();
    let name = parameter.parts[0].0.clone();
    let bare = |name: &str| name.strip_suffix(".weight").unwrap().to_owned();
    match parameter.kind {
        ParameterKind::Norm => drop(norms.insert(name, data)),
        ParameterKind::Embedding => {
            let (rows, cols) = parameter.tensor.dims2();
            let table = int8::quantize(rows, cols, data).unwrap();
            tables.insert(bare(&name), table);
        }
        _ => {
            let (_, cols) = parameter.tensor.dims2();
            let mut start = 0;
            for (name, rows) in &parameter.parts {
                let part = &data[start * cols..(start + rows) * cols];
                start += rows;
                modules.insert(bare(name), crude(part, *rows, cols));
            }
        }
    }
}

fn crude(weight: &[f32], rows: usize, cols: usize) -> PaletteTensors {
    const LEVELS: [i8; 4] = [-96, -32, 32, 96];
    let bits = Bits::Two;
    let sizes = palette::sizes(bits, rows, cols).unwrap();
    let mut scales = vec![half::f16::ZERO; sizes.scales];
    let mut indices = Vec::new();
    for (row, scale) in weight.chunks_exact(cols).zip(&mut scales) {
        let largest = row.iter().fold(1e-6f32, |most, x| most.max(x.abs()));
        *scale = half::f16::from_f32(largest / 127.0);
        let off = |x: f32, level: i8| (x - scale.to_f32() * f32::from(level)).abs();
        for &x in row {
            let near = |&a: &usize, &b: &usize| off(x, LEVELS[a]).total_cmp(&off(x, LEVELS[b]));
            indices.push((0..4).min_by(near).unwrap() as u8);
        }
    }
    PaletteTensors {
        bits,
        indices: palette::pack(bits, rows, cols, &indices).unwrap(),
        palette: LEVELS.repeat(sizes.palette / 4),
        scales,
    }
}
