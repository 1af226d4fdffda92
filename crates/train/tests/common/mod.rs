//! A toy corpus, its tokenizer and its shards: what the tests of this crate train on.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::{Path, PathBuf};

use russet_artifact::{Draft, Inputs, Kind, Override, Recipe, Stage, Tool};
use russet_kernels::random;
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
    let changes: Vec<Override> = changes
        .iter()
        .map(|change| change.parse().unwrap())
        .collect();
    Recipe::from_text("recipe", text, &changes)
        .unwrap()
        .parse()
        .unwrap()
}
