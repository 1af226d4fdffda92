//! Packages that were never trained: weights of a given shape and size, to measure speed with.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use half::f16;
use russet_kernels::palette::Bits;
use russet_kernels::{Pool, int8, palette, random as numbers};
use russet_tensor::{DType, FrozenTable, Int8Weight, PaletteWeight, Tensor};

use crate::block::layouts;
use crate::{Block, Config, Decoder, Embedding, Family, Layout, ModelError, Palettized};

/// Bytes that one task fills.
const TASK: usize = 1 << 20;

/// Root of the mean square of numbers spread evenly over -127..=127, as table entries and 8-bit values are here.
const SPREAD: f32 = 73.0;

/// A palettized decoder of random weights, in memory, of at most `bits_per_weight` over all projections (indices, tables and
/// scales together): each projection takes the most of the bits in `choice` that keep the mean below. Rows have the length that an
/// initialised decoder's have, so that activations stay finite. The same seed gives the same weights.
///
/// # Errors
/// When the shape has no decoder or its bytes no place, or `choice` nothing that is small enough.
pub fn random(
    config: &Config,
    bits_per_weight: f64,
    choice: &[Bits],
    seed: u64,
    pool: &Arc<Pool>,
) -> Result<Decoder, ModelError> {
    let place = Path::new("a random package");
    config
        .check()
        .map_err(|problem| ModelError::file(place, problem))?;
    let mut maker = Maker::new(bits_per_weight, choice, seed, pool);
    let fails = |error: String| ModelError::file(place, error);
    let embedding = maker.table(config).map_err(fails)?;
    let ones = |len| Tensor::new(&[len], vec![1.0; len]);
    let mut blocks = Vec::new();
    for layer in 0..config.layers {
        let mut linear = |layout| maker.linear(layout).map(Box::new).map_err(fails);
        let [qkv, output, gate_up, down] = layouts(config, layer);
        let normed = config.family == Family::Qwen3;
        let attention = config.attention_of(layer);
        blocks.push(Block {
            attention,
            attention_norm: ones(config.width),
            qkv: linear(qkv)?,
            q_norm: normed.then(|| ones(config.head_dim)),
            k_norm: (normed && !attention.shares).then(|| ones(config.head_dim)),
            output: linear(output)?,
            ffn_norm: ones(config.width),
            gate_up: linear(gate_up)?,
            down: linear(down)?,
        });
    }
    let head = match config.tied {
        true => None,
        false => Some(maker.table(config).map_err(fails)?),
    };
    let norm = ones(config.width);
    Ok(Decoder::new(config.clone(), embedding, blocks, norm, head))
}

/// Writes such a package into `folder`, of which no more than a tensor is in memory at a time. Its weights are others than those of [`random`].
/// Returns the bytes of the tensors.
///
/// # Errors
/// As [`random`], or when the disk refuses.
pub fn write_random(
    config: &Config,
    bits_per_weight: f64,
    choice: &[Bits],
    seed: u64,
    pool: &Arc<Pool>,
    folder: &Path,
) -> Result<usize, ModelError> {
    let fails = |error: String| ModelError::file(folder, error);
    config.check().map_err(fails)?;
    let mut maker = Maker::new(bits_per_weight, choice, seed, pool);
    let mut modules = BTreeMap::new();
    for layout in (0..config.layers).flat_map(|layer| layouts(config, layer)) {
        for projection in layout.projections {
            let (bits, _) = maker
                .choose(projection.rows, layout.inputs)
                .map_err(fails)?;
            modules.insert(projection.name, (bits, projection.rows, layout.inputs));
        }
    }
    let halves = |(len, scale): (usize, f16)| scale.to_le_bytes().repeat(len);
    super::write_each(config, &modules, folder, |name| {
        let (module, part) = name.rsplit_once('.').unwrap_or((name, ""));
        let made = match (part, modules.get(module)) {
            ("indices", Some(&(bits, rows, cols))) => {
                let sizes =
                    palette::sizes(bits, rows, cols).map_err(|error| fails(error.to_string()))?;
                maker.bytes(sizes.indices)
            }
            ("palette", Some(&(bits, rows, cols))) => {
                let sizes =
                    palette::sizes(bits, rows, cols).map_err(|error| fails(error.to_string()))?;
                entries(bits, sizes.palette)
            }
            ("scales", Some(&(_, rows, cols))) => {
                halves((rows.next_multiple_of(palette::STRIP), scale(cols)))
            }
            ("values", _) => maker.values(config).map_err(fails)?,
            ("scales", None) => halves((
                config.vocab.next_multiple_of(palette::STRIP),
                scale(config.width),
            )),
            // A norm, of which there are two lengths.
            _ => {
                let of_heads = module.ends_with("q_norm") || module.ends_with("k_norm");
                let len = if of_heads {
                    config.head_dim
                } else {
                    config.width
                };
                1f32.to_le_bytes().repeat(len)
            }
        };
        Ok(Cow::Owned(made))
    })
}

/// The scale of rows of so many inputs.
fn scale(cols: usize) -> f16 {
    f16::from_f32(1.0 / (SPREAD * (cols as f32).sqrt()))
}

/// So many entries of palettes, spread evenly.
fn entries(bits: Bits, len: usize) -> Vec<u8> {
    let of = bits.entries();
    let entry = |at: usize| ((at % of * 254 / (of - 1)) as i32 - 127) as i8 as u8;
    (0..len).map(entry).collect()
}

struct Maker<'a> {
    choice: Vec<Bits>,
    seed: u64,
    stream: u64,
    pool: &'a Pool,
    budget: f64,
    bits: f64,    // of the projections so far
    weights: f64, // in them
}

impl<'a> Maker<'a> {
    fn new(budget: f64, choice: &[Bits], seed: u64, pool: &'a Pool) -> Maker<'a> {
        Maker {
            choice: choice.to_vec(),
            seed,
            stream: 0,
            pool,
            budget,
            bits: 0.0,
            weights: 0.0,
        }
    }

    /// Bytes of a stream of their own.
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        self.stream += 1;
        let (seed, stream) = (self.seed, self.stream);
        let mut bytes = vec![0u8; len];
        self.pool.for_each_chunk(&mut bytes, TASK, |task, bytes| {
            for (i, eight) in bytes.chunks_mut(8).enumerate() {
                let word = numbers::hash(seed, stream, (task * TASK / 8 + i) as u64);
                eight.copy_from_slice(&word.to_le_bytes()[..eight.len()]);
            }
        });
        bytes
    }

    /// The 8-bit numbers of an embedding.
    fn values(&mut self, config: &Config) -> Result<Vec<u8>, String> {
        let sizes = int8::sizes(config.vocab, config.width).map_err(|error| error.to_string())?;
        let mut values = self.bytes(sizes.data);
        for value in values.iter_mut().filter(|value| **value == 0x80) {
            *value = 0x81; // -127: the format is symmetric
        }
        Ok(values)
    }

    fn table(&mut self, config: &Config) -> Result<Embedding, String> {
        let (rows, cols) = (config.vocab, config.width);
        let sizes = int8::sizes(rows, cols).map_err(|error| error.to_string())?;
        let values = Tensor::from_bytes(DType::I8, &[sizes.data], self.values(config)?);
        let scales = Tensor::from_halves(&[sizes.scales], vec![scale(cols); sizes.scales]);
        values
            .and_then(|values| Int8Weight::new(rows, cols, values, scales))
            .map(|table| Embedding::Frozen(FrozenTable::Int8(table)))
            .map_err(|error| error.to_string())
    }

    fn linear(&mut self, layout: Layout) -> Result<Palettized, String> {
        let cols = layout.inputs;
        let weights = layout
            .projections
            .iter()
            .map(|projection| self.weight(projection.rows, cols))
            .collect::<Result<_, _>>()?;
        Ok(Palettized::new(layout, weights))
    }

    /// The width that the next projection gets.
    fn choose(&mut self, rows: usize, cols: usize) -> Result<(Bits, palette::Sizes), String> {
        let sized = |bits| {
            let sizes = palette::sizes(bits, rows, cols).map_err(|error| error.to_string())?;
            let bytes = sizes.indices + sizes.palette + 2 * sizes.scales;
            Ok::<_, String>((bits, sizes, 8.0 * bytes as f64))
        };
        self.weights += (rows * cols) as f64;
        let all = self.choice.iter().map(|&bits| sized(bits));
        let mut all = all.collect::<Result<Vec<_>, _>>()?;
        all.sort_by(|a, b| b.2.total_cmp(&a.2)); // the most first
        let fits = |(.., stored): &&(_, _, f64)| self.bits + stored <= self.budget * self.weights;
        let Some(&(bits, sizes, stored)) = all.iter().find(fits) else {
            let (bits, _, least) = all.last().ok_or("there are no bits to choose from")?;
            return Err(format!(
                "{} bits a weight are too few: palettes of width {} with indices and scales take {:.3} here",
                self.budget,
                bits.name(),
                least / (rows * cols) as f64
            ));
        };
        self.bits += stored;
        Ok((bits, sizes))
    }

    fn weight(&mut self, rows: usize, cols: usize) -> Result<PaletteWeight, String> {
        let (bits, sizes) = self.choose(rows, cols)?;
        let indices = self.bytes(sizes.indices);
        let indices = Tensor::from_bytes(DType::U8, &[sizes.indices], indices);
        let entries = entries(bits, sizes.palette);
        let entries = Tensor::from_bytes(DType::I8, &[sizes.palette], entries);
        let scales = Tensor::from_halves(&[sizes.scales], vec![scale(cols); sizes.scales]);
        indices
            .and_then(|indices| PaletteWeight::new(bits, rows, cols, indices, entries?, scales))
            .map_err(|error| error.to_string())
    }
}
