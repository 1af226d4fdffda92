//! How fast a decoder reads and writes: `pp`, prompt tokens a second, and `tg`, generated tokens a second.
//!
//! The figures mean what llama.cpp's `llama-bench` means by them: one sequence from an empty cache, a prompt of random
//! tokens read in chunks of [`PREFILL_CHUNK`] rows with the last row's logits, then, apart, tokens generated one by
//! one from a single one, of one sequence or of several at once. The kinds alternate and the median counts, since a shared machine
//! drifts; the bandwidth of memory is probed each time beside them. Left out: sampling (greedy here).

use std::sync::Arc;
use std::time::Instant;

use russet_kernels::profile::{self, Kernel};
use russet_kernels::{Pool, elementwise, probe, random};
use russet_model::{Decoder, Embedding, KvCache, ParameterKind};
use russet_tensor::{Ctx, Segments, ops};

use crate::engine::cache_fits;
use crate::{Error, Result};

/// Rows of one forward pass while the prompt is read.
pub const PREFILL_CHUNK: usize = 512;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BenchConfig {
    /// Tokens of the prompt, at least 1.
    pub prompt: usize,
    /// Tokens that each sequence generates, at least 1.
    pub generate: usize,
    /// Sequences that generate at once, at least 1. The prompt is read by one.
    pub sequences: usize,
    /// How often each is measured, at least 1, after one round that is not counted.
    pub repeats: usize,
}

impl Default for BenchConfig {
    /// `pp512` and `tg128` of one sequence, five times.
    fn default() -> BenchConfig {
        BenchConfig {
            prompt: 512,
            generate: 128,
            sequences: 1,
            repeats: 5,
        }
    }
}

/// What was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Bench {
    /// Prompt tokens a second, each repeat's.
    pub prefill: Vec<f64>,
    /// Generated tokens a second, all sequences together, each repeat's.
    pub decode: Vec<f64>,
    /// Bytes read from memory a second by nothing but reading, in GB/s, each repeat's.
    pub dram: Vec<f64>,
    /// The median of `prefill`.
    pub prefill_tokens_per_second: f64,
    /// The median of `decode`.
    pub decode_tokens_per_second: f64,
    /// The median of `dram`.
    pub dram_gb_s: f64,
    /// Sequences that generated at once.
    pub sequences: usize,
    /// Bytes of weights that a step reads, which makes a token of each sequence: [`bytes_per_token`].
    pub bytes_per_token: usize,
    /// Where the time of one more round goes that is not counted.
    pub profile: [Shares; 2],
}

/// Shares of the time on the clock: of reading the prompt, or of generating.
#[derive(Clone, Debug, PartialEq)]
pub struct Shares {
    /// Of each kind of kernel that ran.
    pub kernels: Vec<(Kernel, f64)>,
    /// Of all else: making tensors, and what lies between kernels.
    pub outside: f64,
}

impl Shares {
    /// Of what has run since `profile::start`, `seconds` long.
    fn stop(seconds: f64) -> Shares {
        let kernels: Vec<(Kernel, f64)> = profile::stop()
            .into_iter()
            .filter(|&(_, of_kind)| of_kind > 0.0)
            .map(|(kernel, of_kind)| (kernel, of_kind / seconds))
            .collect();
        let inside: f64 = kernels.iter().map(|(_, share)| share).sum();
        Shares {
            kernels,
            outside: (1.0 - inside).max(0.0),
        }
    }
}

impl Bench {
    /// Bytes of weights read a second while generating, in GB/s (1e9 bytes).
    pub fn decode_gb_s(&self) -> f64 {
        let steps = self.decode_tokens_per_second / self.sequences as f64;
        steps * self.bytes_per_token as f64 / 1e9
    }
}

/// Measures `decoder` on `pool`.
///
/// # Errors
/// When a setting is 0 or beyond the model's context, or the cache cannot fit this machine.
pub fn bench(decoder: &Decoder, pool: &Arc<Pool>, config: &BenchConfig) -> Result<Bench> {
    let context = decoder.config().context;
    for (setting, value) in [("prompt", config.prompt), ("generate", config.generate)] {
        if !(1..=context).contains(&value) {
            return Err(Error::setting(
                setting,
                value,
                format!("from 1 to {context}, the context of the model"),
            ));
        }
    }
    for (setting, value) in [("repeats", config.repeats), ("sequences", config.sequences)] {
        if value == 0 {
            return Err(Error::setting(setting, value, "at least 1"));
        }
    }
    let tokens = config.prompt.max(config.generate);
    cache_fits(decoder, config.sequences, tokens)?;
    let mut run = Run {
        decoder,
        ctx: Ctx::new(pool.clone()),
        cache: KvCache::new(
            decoder.config(),
            config.sequences,
            config.prompt.max(config.sequences * config.generate),
        ),
        prompt: (0..config.prompt as u64)
            .map(|i| random::below(0, 0, i, decoder.config().vocab as u64) as u32)
            .collect(),
        config,
    };
    let (mut prefill, mut decode, mut dram) = (Vec::new(), Vec::new(), Vec::new());
    for repeat in 0..=config.repeats {
        let (read, written) = (run.read()?, run.write()?);
        if repeat > 0 {
            dram.push(probe::dram_read_gb_s(pool));
            prefill.push(config.prompt as f64 / read);
            decode.push((config.sequences * config.generate) as f64 / written);
        }
    }
    profile::start();
    let read = Shares::stop(run.read()?);
    profile::start();
    let written = Shares::stop(run.write()?);
    Ok(Bench {
        prefill_tokens_per_second: median(&prefill),
        decode_tokens_per_second: median(&decode),
        dram_gb_s: median(&dram),
        prefill,
        decode,
        dram,
        sequences: config.sequences,
        bytes_per_token: bytes_per_token(decoder),
        profile: [read, written],
    })
}

/// What a round works with.
struct Run<'a> {
    decoder: &'a Decoder,
    ctx: Ctx,
    cache: KvCache,
    prompt: Vec<u32>,
    config: &'a BenchConfig,
}

impl Run<'_> {
    /// Reads the prompt; the seconds it took.
    fn read(&mut self) -> Result<f64> {
        let start = Instant::now();
        for chunk in self.prompt.chunks(PREFILL_CHUNK) {
            let past = self.cache.extend(0, chunk.len())?;
            let mut segments = Segments::default();
            segments.push(chunk.len(), past, 0);
            let ctx = &mut self.ctx;
            let hidden = self
                .decoder
                .forward(ctx, chunk, &segments, Some(&mut self.cache));
            if past + chunk.len() == self.prompt.len() {
                let last = ops::rows(ctx, &hidden, &[chunk.len() - 1]);
                std::hint::black_box(self.decoder.logits(ctx, &last));
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        self.cache.truncate(0, 0);
        Ok(seconds)
    }

    /// Generates; the seconds it took.
    fn write(&mut self) -> Result<f64> {
        let sequences = self.config.sequences;
        let vocab = self.decoder.config().vocab;
        let start = Instant::now();
        let mut tokens: Vec<u32> = (0..sequences).map(|slot| (slot % vocab) as u32).collect();
        for _ in 0..self.config.generate {
            let mut segments = Segments::default();
            for slot in 0..sequences {
                segments.push(1, self.cache.extend(slot, 1)?, slot);
            }
            let ctx = &mut self.ctx;
            let hidden = self
                .decoder
                .forward(ctx, &tokens, &segments, Some(&mut self.cache)); // [B, D]
            let logits = self.decoder.logits(ctx, &hidden); // [B, V]
            ctx.pool.for_each_chunk(&mut tokens, 1, |row, token| {
                token[0] = elementwise::highest(&logits.data()[row * vocab..][..vocab]) as u32;
            });
        }
        let seconds = start.elapsed().as_secs_f64();
        for slot in 0..sequences {
            self.cache.truncate(slot, 0);
        }
        Ok(seconds)
    }
}

/// Bytes of weights that a token generated alone reads: every projection and norm, the output table, and one row of
/// the embedding. Keys and values are not weights and not counted.
pub fn bytes_per_token(decoder: &Decoder) -> usize {
    let projections: usize = decoder.linears().map(|linear| linear.stored_bytes()).sum();
    let parameters = decoder.parameters();
    let norms = parameters
        .iter()
        .filter(|parameter| parameter.kind == ParameterKind::Norm);
    let norms: usize = norms.map(|parameter| parameter.tensor.bytes().len()).sum();
    // A package has all its tables in one form, so the embedding's row is like one of the output table.
    let (table, row) = match decoder.output_table() {
        Embedding::Dense(table) => (
            table.bytes().len(),
            size_of::<f32>() * decoder.config().width,
        ),
        Embedding::Int8(table) => (table.stored_bytes(), table.cols() + size_of::<u16>()),
    };
    projections + norms + table + row
}

fn median(rates: &[f64]) -> f64 {
    let mut sorted = rates.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        (sorted[middle - 1] + sorted[middle]) / 2.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_the_mean_of_two() {
        assert_eq!(median(&[3.0, 1.0, 10.0]), 3.0);
        assert_eq!(median(&[4.0, 1.0, 10.0, 2.0]), 3.0);
    }
}
