//! A small tokenizer for tests, trained on the held-out tales that lie in this repository.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use russet_tokenizer::{Tokenizer, TrainConfig, read_texts, train};

/// 354 KB of children's tales.
pub fn tales() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/tales/heldout.jsonl.zst")
}

pub fn small() -> TrainConfig {
    TrainConfig {
        vocab_size: 1024,
        ..TrainConfig::default()
    }
}

pub static TRAINED: LazyLock<Tokenizer> =
    LazyLock::new(|| train(&small(), read_texts(tales()).unwrap()).unwrap());

/// A folder with the trained tokenizer in it.
pub fn saved() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    TRAINED.save(dir.path()).unwrap();
    dir
}
