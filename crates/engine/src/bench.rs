//! How fast a decoder reads and writes: `pp`, prompt tokens a second, and `tg`, generated tokens a second.
//!
//! The figures mean what llama.cpp's `llama-bench` means by them: one sequence from an empty cache, a prompt of random
//! tokens read in chunks of [`PREFILL_CHUNK`] rows with the last row's logits, then, apart, tokens generated one by
//! one from a single one, of one sequence or of several at once. The kinds alternate and the median counts, since a shared machine
//! drifts; the bandwidth of memory is probed each time beside them. Through adapters the same is measured once more in every
//! round. Left out: sampling (greedy here).

use std::sync::Arc;
use std::time::Instant;

use russet_kernels::profile::{self, Kernel};
use russet_kernels::{Pool, elementwise, probe, random};
use russet_model::cache::BLOCK_TOKENS;
use russet_model::{Decoder, KvCache, KvFormat, ParameterKind};
use russet_tensor::{Ctx, Op, Segments, Stack, Trace, ops};

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
    /// What keys and values are kept in.
    pub format: KvFormat,
}

impl Default for BenchConfig {
    /// `pp512` and `tg128` of one sequence, five times, keys and values in f32.
    fn default() -> BenchConfig {
        BenchConfig {
            prompt: 512,
            generate: 128,
            sequences: 1,
            repeats: 5,
            format: KvFormat::F32,
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
    /// Bytes of keys and values that a token of a sequence takes.
    pub cache_bytes_per_token: usize,
    /// The same through adapters, where there are some.
    pub adapted: Option<Adapted>,
    /// Where the time of one more round goes that is not counted.
    pub profile: [Shares; 2],
}

/// What was measured through adapters, in the same rounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapted {
    /// Prompt tokens a second, each repeat's.
    pub prefill: Vec<f64>,
    /// Generated tokens a second, all sequences together, each repeat's.
    pub decode: Vec<f64>,
    /// The median of `prefill`.
    pub prefill_tokens_per_second: f64,
    /// The median of `decode`.
    pub decode_tokens_per_second: f64,
    /// Bytes of weights that a step reads, those of the adapters among them.
    pub bytes_per_token: usize,
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

/// One round of reading and generating through `adapters` (as [`bench()`] goes through them), written down operation by operation. None of it counts: [`bench()`] measures.
///
/// # Errors
/// As [`bench()`].
pub fn trace(
    decoder: &Decoder,
    pool: &Arc<Pool>,
    config: &BenchConfig,
    adapters: &[Stack],
) -> Result<Trace> {
    let mut run = Run::new(decoder, pool, config)?;
    run.adapters = adapters;
    run.ctx.trace = Some(Trace::default());
    for (name, rows) in [
        ("prompt", config.prompt),
        ("generate", config.sequences * config.generate),
    ] {
        let begun = Instant::now();
        match name {
            "prompt" => run.read()?,
            _ => run.write()?,
        };
        let op = Op {
            name,
            rows,
            ..Op::default()
        };
        run.ctx.trace.as_mut().expect("set above").add(op, begun);
    }
    Ok(run.ctx.trace.expect("set above"))
}

/// Refuses what cannot be measured.
fn check(decoder: &Decoder, config: &BenchConfig) -> Result<()> {
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
    cache_fits(decoder, config.format, config.sequences, tokens)
}

/// Measures `decoder` on `pool`, alone and, where there are `adapters`, through them, in turns: the prompt through the first stack, sequences that
/// generate through one stack after another.
///
/// # Errors
/// When a setting is 0 or beyond the model's context, the cache cannot fit this machine, or its format the model's heads.
pub fn bench(
    decoder: &Decoder,
    pool: &Arc<Pool>,
    config: &BenchConfig,
    adapters: &[Stack],
) -> Result<Bench> {
    let mut run = Run::new(decoder, pool, config)?;
    let (mut prefill, mut decode, mut dram) = (Vec::new(), Vec::new(), Vec::new());
    let (mut prefill_adapted, mut decode_adapted) = (Vec::new(), Vec::new());
    let rates = |run: &mut Run| {
        let (read, written) = (run.read()?, run.write()?);
        let generated = (config.sequences * config.generate) as f64;
        Ok::<_, Error>((config.prompt as f64 / read, generated / written))
    };
    for repeat in 0..=config.repeats {
        let alone = rates(&mut run)?;
        if repeat > 0 {
            dram.push(probe::dram_read_gb_s(pool));
            prefill.push(alone.0);
            decode.push(alone.1);
        }
        if adapters.is_empty() {
            continue;
        }
        run.adapters = adapters;
        let through = rates(&mut run)?;
        run.adapters = &[];
        if repeat > 0 {
            prefill_adapted.push(through.0);
            decode_adapted.push(through.1);
        }
    }
    let used = adapters
        .iter()
        .take(config.sequences)
        .flat_map(|s| s.iter());
    let bytes_of_adapters: usize = used.map(|adapter| adapter.bytes()).sum();
    let adapted = (!adapters.is_empty()).then(|| Adapted {
        prefill_tokens_per_second: median(&prefill_adapted),
        decode_tokens_per_second: median(&decode_adapted),
        prefill: prefill_adapted,
        decode: decode_adapted,
        bytes_per_token: bytes_per_token(decoder) + bytes_of_adapters,
    });
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
        cache_bytes_per_token: KvCache::block_bytes(decoder.config(), config.format) / BLOCK_TOKENS,
        adapted,
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
    adapters: &'a [Stack], // of the sequences, in turns
}

impl<'a> Run<'a> {
    fn new(decoder: &'a Decoder, pool: &Arc<Pool>, config: &'a BenchConfig) -> Result<Run<'a>> {
        check(decoder, config)?;
        let vocab = decoder.config().vocab as u64;
        Ok(Run {
            decoder,
            ctx: Ctx::new(pool.clone()),
            cache: KvCache::sized(
                decoder.config(),
                config.format,
                config.sequences,
                config.prompt.max(config.sequences * config.generate),
            ),
            prompt: (0..config.prompt as u64)
                .map(|i| random::below(0, 0, i, vocab) as u32)
                .collect(),
            config,
            adapters: &[],
        })
    }

    /// What the rows of a sequence go through.
    fn stack(&self, sequence: usize) -> Stack {
        match self.adapters.len() {
            0 => Stack::default(),
            stacks => self.adapters[sequence % stacks].clone(),
        }
    }

    /// Reads the prompt; the seconds it took.
    fn read(&mut self) -> Result<f64> {
        let start = Instant::now();
        for chunk in self.prompt.chunks(PREFILL_CHUNK) {
            let past = self.cache.extend(0, chunk.len())?;
            let mut segments = Segments::default();
            segments.push_adapted(chunk.len(), past, 0, &self.stack(0));
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
                let past = self.cache.extend(slot, 1)?;
                segments.push_adapted(1, past, slot, &self.stack(slot));
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
    let output = decoder.output_table().stored_bytes();
    projections + norms + output + decoder.input_table().row_bytes()
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
