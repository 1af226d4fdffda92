//! How fast a decoder reads and writes: `pp`, prompt tokens a second, and `tg`, generated tokens a second.
//!
//! The figures mean what llama.cpp's `llama-bench` means by them: one sequence from an empty cache, a prompt of random
//! tokens read in chunks of [`PREFILL_CHUNK`] rows with the last row's logits, then, apart, tokens generated one by
//! one from a single one. The kinds alternate and the median counts, since a shared machine drifts. Left out: batches, sampling
//! (greedy here), and the bandwidth of memory, which `russet_kernels::probe` measures for the same pool.

use std::sync::Arc;
use std::time::Instant;

use russet_kernels::{Pool, elementwise, random};
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
    /// Tokens generated, at least 1.
    pub generate: usize,
    /// How often each is measured, at least 1, after one round that is not counted.
    pub repeats: usize,
}

impl Default for BenchConfig {
    /// `pp512` and `tg128`, five times.
    fn default() -> BenchConfig {
        BenchConfig {
            prompt: 512,
            generate: 128,
            repeats: 5,
        }
    }
}

/// What was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Bench {
    /// Prompt tokens a second, each repeat's.
    pub prefill: Vec<f64>,
    /// Generated tokens a second, each repeat's.
    pub decode: Vec<f64>,
    /// The median of `prefill`.
    pub prefill_tokens_per_second: f64,
    /// The median of `decode`.
    pub decode_tokens_per_second: f64,
    /// Bytes of weights that a generated token reads: [`bytes_per_token`].
    pub bytes_per_token: usize,
}

impl Bench {
    /// Bytes of weights read a second while generating, in GB/s (1e9 bytes).
    pub fn decode_gb_s(&self) -> f64 {
        self.decode_tokens_per_second * self.bytes_per_token as f64 / 1e9
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
    if config.repeats == 0 {
        return Err(Error::setting("repeats", 0, "at least 1"));
    }
    let tokens = config.prompt.max(config.generate);
    cache_fits(decoder, 1, tokens)?;
    let vocab = decoder.config().vocab;
    let prompt: Vec<u32> = (0..config.prompt as u64)
        .map(|i| random::below(0, 0, i, vocab as u64) as u32)
        .collect();
    let mut ctx = Ctx::new(pool.clone());
    let mut cache = KvCache::new(decoder.config(), 1, tokens);
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for repeat in 0..=config.repeats {
        let start = Instant::now();
        for chunk in prompt.chunks(PREFILL_CHUNK) {
            let last = chunk.len() == prompt.len() - cache.len(0);
            advance(decoder, &mut ctx, &mut cache, chunk, last)?;
        }
        let read = config.prompt as f64 / start.elapsed().as_secs_f64();
        cache.truncate(0, 0);

        let start = Instant::now();
        let mut token = prompt[0];
        for _ in 0..config.generate {
            token = advance(decoder, &mut ctx, &mut cache, &[token], true)?;
        }
        let written = config.generate as f64 / start.elapsed().as_secs_f64();
        cache.truncate(0, 0);

        if repeat > 0 {
            prefill.push(read);
            decode.push(written);
        }
    }
    Ok(Bench {
        prefill_tokens_per_second: median(&prefill),
        decode_tokens_per_second: median(&decode),
        prefill,
        decode,
        bytes_per_token: bytes_per_token(decoder),
    })
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

/// Runs `tokens` after what the cache holds; the most probable next token where the logits are wanted, else 0.
fn advance(
    decoder: &Decoder,
    ctx: &mut Ctx,
    cache: &mut KvCache,
    tokens: &[u32],
    logits: bool,
) -> Result<u32> {
    let mut segments = Segments::default();
    segments.push(tokens.len(), cache.extend(0, tokens.len())?, 0);
    let hidden = decoder.forward(ctx, tokens, &segments, Some(cache));
    if !logits {
        return Ok(0);
    }
    let hidden = ops::rows(ctx, &hidden, &[tokens.len() - 1]);
    let logits = decoder.logits(ctx, &hidden);
    Ok(elementwise::highest(logits.data()) as u32)
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
