//! Small checkpoints, text for them, and the stage on both: what the tests of this crate share.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russet_artifact::{Interrupt, NoProgress, Progress};
use russet_compress::{CompressError, Report, Settings, State, Width, palettize};
use russet_kernels::palette::Bits;
use russet_kernels::{Pool, random};
use russet_model::{Config, Decoder, KvCache, llama2c};
use russet_tensor::{Ctx, Segments};

pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../golden")
        .join(name)
}

pub fn width(bits: u32) -> Width {
    Width(Bits::from_bits(bits as usize).unwrap())
}

pub fn widths(bits: &[u32]) -> Vec<Width> {
    bits.iter().map(|&bits| width(bits)).collect()
}

pub fn pool(threads: usize) -> Arc<Pool> {
    Arc::new(Pool::new(threads).unwrap())
}

/// Documents of random tokens.
pub fn noise(config: &Config) -> Vec<Vec<u32>> {
    let token = |document: u64, i: u64| random::below(7, document, i, config.vocab as u64) as u32;
    (0..6)
        .map(|document| (0..20).map(|i| token(document, i)).collect())
        .collect()
}

pub fn run(
    threads: usize,
    settings: &Settings,
    from: &Path,
    documents: &[Vec<u32>],
    to: &Path,
) -> Result<Report, CompressError> {
    let place = tempfile::tempdir().unwrap();
    let state = State {
        folder: &place.path().join("state"),
        key: "one",
    };
    palettize(
        &pool(threads),
        settings,
        from,
        documents,
        to,
        state,
        &mut NoProgress,
        &Interrupt::new(),
    )
}

/// Raises the interrupt after so many updates.
pub struct Cut(pub usize, pub Interrupt);

impl Progress for Cut {
    fn begin(&mut self, _: &str, _: Option<u64>, _: &str) {}
    fn update(&mut self, _: u64, _: &[(&str, f64)]) {
        self.0 = self.0.saturating_sub(1);
        if self.0 == 0 {
            self.1.raise();
        }
    }
    fn message(&mut self, _: &str) {}
    fn end(&mut self) {}
}

/// All files of a folder.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder)
        .unwrap()
        .map(Result::unwrap)
        .filter(|entry| entry.path().is_file());
    entries
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                std::fs::read(entry.path()).unwrap(),
            )
        })
        .collect()
}

/// The share of the way from two bits everywhere to four that a target of bits a weight is, for any model.
pub fn target(config: &Config, share: f64) -> f64 {
    let (width, ffn) = (config.width, config.ffn);
    let (q, kv) = (
        config.heads * config.head_dim,
        config.kv_heads * config.head_dim,
    );
    let shapes = [
        (q, width),
        (kv, width),
        (kv, width),
        (width, q),
        (ffn, width),
        (ffn, width),
        (width, ffn),
    ];
    let bytes = |bits: Bits| -> usize {
        let size = |&(rows, cols)| {
            let sizes = russet_kernels::palette::sizes(bits, rows, cols).unwrap();
            sizes.indices + sizes.palette + 2 * sizes.scales
        };
        config.layers * shapes.iter().map(size).sum::<usize>()
    };
    let [low, high] = [Bits::Two, Bits::Four]
        .map(|bits| 8.0 * bytes(bits) as f64 / config.projection_parameters() as f64);
    low + (high - low) * share
}

/// A trained model and text that it has written itself: 24 stories of 200 tokens.
pub fn stories() -> (Decoder, Vec<Vec<u32>>) {
    let decoder = llama2c::load(&golden("stories260K/stories260K.bin")).unwrap();
    let (count, vocab) = (24, decoder.config().vocab);
    let mut ctx = Ctx::new(pool(2));
    let mut cache = KvCache::new(decoder.config(), count, count * 256);
    let mut stories = vec![vec![1]; count];
    for step in 0..200 {
        let (mut tokens, mut segments) = (Vec::new(), Segments::default());
        for (slot, story) in stories.iter().enumerate() {
            segments.push(1, cache.extend(slot, 1).unwrap(), slot);
            tokens.push(story[step]);
        }
        let hidden = decoder.forward(&mut ctx, &tokens, &segments, Some(&mut cache));
        let logits = decoder.logits(&mut ctx, &hidden);
        for (slot, (story, row)) in stories
            .iter_mut()
            .zip(logits.data().chunks_exact(vocab))
            .enumerate()
        {
            let largest = row.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
            let total: f32 = row.iter().map(|z| (z - largest).exp()).sum();
            let mut left = total * random::uniform(5, slot as u64, step as u64);
            let passed = row.iter().position(|z| {
                left -= (z - largest).exp();
                left < 0.0
            });
            story.push(passed.unwrap_or(vocab - 1) as u32);
        }
    }
    (decoder, stories)
}

/// KL(checkpoint ‖ package) in nats a token over some of the stories.
pub fn divergence(dense: &Decoder, package: &Decoder, stories: &[Vec<u32>]) -> f64 {
    let mut ctx = Ctx::new(pool(2));
    let vocab = dense.config().vocab;
    let (mut sum, mut tokens) = (0.0, 0);
    for story in stories {
        let segments = Segments::packed(&[story.len()]);
        let logits = [dense, package].map(|decoder| {
            let hidden = decoder.forward(&mut ctx, story, &segments, None);
            decoder.logits(&mut ctx, &hidden)
        });
        let rows = logits
            .each_ref()
            .map(|logits| logits.data().chunks_exact(vocab));
        let [p, q] = rows;
        for (p, q) in p.zip(q) {
            let [p, q] = [p, q].map(|row| {
                let mut row = row.to_vec();
                russet_kernels::cross_entropy::log_softmax(ctx.pool.isa(), &mut row);
                row
            });
            let each = p
                .iter()
                .zip(&q)
                .map(|(&p, &q)| f64::from(p.exp() * (p - q)));
            sum += each.sum::<f64>();
            tokens += 1;
        }
    }
    sum / f64::from(tokens)
}
