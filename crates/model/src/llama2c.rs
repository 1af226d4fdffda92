//! Reads the model files of llama2.c: its first format, without a version, and version 1.
//!
//! Both hold `f32` weights of a Llama. It rotates neighbouring pairs of a head where the Hugging Face order rotates
//! halves, so the rows of query and key are reordered on the way in. (karpathy/llama2.c, `export.py`, `run.c`)

use std::path::Path;

use russet_kernels::Mmap;
use russet_tensor::Tensor;

use crate::block::{Block, layouts};
use crate::config::{Attention, RopeScaling};
use crate::gguf::decoder::halves_apart;
use crate::{Config, Decoder, Dense, Embedding, Family, Layout, Linear, ModelError};

/// "ak42", which opens every file that has a version.
const MAGIC: u32 = 0x616b_3432;
/// Bytes before the weights of version 1.
const HEADER_BYTES: usize = 256;

/// Reads a llama2.c model file as a dense decoder.
///
/// # Errors
/// When the file is truncated, of a quantized version, or its header makes no sense.
pub fn load(path: &Path) -> Result<Decoder, ModelError> {
    let map = Mmap::open(path).map_err(|error| ModelError::unmapped(path, error))?;
    parse(&map).map_err(|problem| ModelError::file(path, problem))
}

/// Reads the bytes of a llama2.c model file; the error is a sentence without the file's name.
///
/// # Errors
/// As for [`load`].
pub fn parse(bytes: &[u8]) -> Result<Decoder, String> {
    let mut reader = Reader { rest: bytes };
    let versioned =
        bytes.len() >= 4 && u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) == MAGIC;
    if versioned {
        reader.int()?;
        let version = reader.int()?;
        if version != 1 {
            return Err(format!(
                "is of version {version}; Russet reads llama2.c's unversioned format and version 1"
            ));
        }
    }
    let mut header = [0i32; 7];
    for number in &mut header {
        *number = reader.int()?;
    }
    let [width, ffn, layers, heads, kv_heads, vocab, context] = header;
    let tied = if versioned {
        reader.bytes(1)?[0] != 0
    } else {
        vocab > 0
    };
    if versioned {
        reader.rest = bytes.get(HEADER_BYTES..).ok_or("ends within its header")?;
    }
    let size = |name: &str, number: i32| match usize::try_from(number) {
        Ok(size) if size > 0 => Ok(size),
        _ => Err(format!(
            "gives {number} as its {name}, so it is no llama2.c model or it is damaged"
        )),
    };
    let (width, heads) = (size("dim", width)?, size("n_heads", heads)?);
    let config = Config {
        family: Family::Llama,
        vocab: size("vocab_size", vocab.saturating_abs())?,
        width,
        layers: size("n_layers", layers)?,
        heads,
        kv_heads: size("n_kv_heads", kv_heads)?,
        head_dim: width / heads,
        ffn: size("hidden_dim", ffn)?,
        norm_epsilon: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        attention: Attention::default(),
        context: size("max_seq_len", context)?,
        tied,
        bos: Some(1),
        // Its programs end a text at either: BOS delimits stories in training.
        eos: vec![2, 1],
    };
    if !width.is_multiple_of(heads) {
        return Err(format!(
            "has a width of {width}, which {heads} heads cannot share"
        ));
    }
    config.check()?;
    let floats = (reader.rest.len() / 4) as u128;
    let needed = config.parameters() as u128; // the sizes are below 2^42, so nothing overflows
    if floats < needed {
        return Err(format!(
            "holds {floats} weights where its header promises {needed}; it is truncated"
        ));
    }
    if versioned {
        versioned_weights(&mut reader, config)
    } else {
        first_weights(&mut reader, config)
    }
}

/// Norms in three groups, then the table, then the matrices, each kind for all layers.
fn versioned_weights(reader: &mut Reader, config: Config) -> Result<Decoder, String> {
    let (width, layers) = (config.width, config.layers);
    let attention_norms = reader.floats(layers * width)?;
    let ffn_norms = reader.floats(layers * width)?;
    let norm = reader.floats(width)?;
    let table = reader.floats(config.vocab * width)?;
    let [query, key, value, output] = attention(reader, &config)?;
    let gate = reader.floats(layers * config.ffn * width)?;
    let down = reader.floats(layers * config.ffn * width)?;
    let up = reader.floats(layers * config.ffn * width)?;
    let head = if config.tied {
        None
    } else {
        Some(reader.floats(config.vocab * width)?)
    };
    reader.end()?;
    let parts = Parts {
        table,
        attention_norms,
        query,
        key,
        value,
        output,
        ffn_norms,
        gate,
        down,
        up,
        norm,
        head,
    };
    Ok(parts.assemble(config))
}

/// The table, then each kind for all layers, the rotary tables between the last norm and the output table.
fn first_weights(reader: &mut Reader, config: Config) -> Result<Decoder, String> {
    let (width, layers) = (config.width, config.layers);
    let table = reader.floats(config.vocab * width)?;
    let attention_norms = reader.floats(layers * width)?;
    let [query, key, value, output] = attention(reader, &config)?;
    let ffn_norms = reader.floats(layers * width)?;
    let gate = reader.floats(layers * config.ffn * width)?;
    let down = reader.floats(layers * config.ffn * width)?;
    let up = reader.floats(layers * config.ffn * width)?;
    let norm = reader.floats(width)?;
    reader.floats(config.context.saturating_mul(config.head_dim))?; // cosines and sines, which follow from the sizes
    let head = if config.tied {
        None
    } else {
        Some(reader.floats(config.vocab * width)?)
    };
    reader.end()?;
    let parts = Parts {
        table,
        attention_norms,
        query,
        key,
        value,
        output,
        ffn_norms,
        gate,
        down,
        up,
        norm,
        head,
    };
    Ok(parts.assemble(config))
}

fn attention(reader: &mut Reader, config: &Config) -> Result<[Vec<f32>; 4], String> {
    let square = config.layers * config.width * config.width;
    let kv = config.layers * config.kv_heads * config.head_dim * config.width;
    Ok([
        reader.floats(square)?,
        reader.floats(kv)?,
        reader.floats(kv)?,
        reader.floats(square)?,
    ])
}

/// Weights by kind, all layers of a kind together.
struct Parts {
    table: Vec<f32>,           // [V, D]
    attention_norms: Vec<f32>, // [layers, D]
    query: Vec<f32>,           // [layers, D, D]
    key: Vec<f32>,             // [layers, G·K, D]
    value: Vec<f32>,           // [layers, G·K, D]
    output: Vec<f32>,          // [layers, D, D]
    ffn_norms: Vec<f32>,       // [layers, D]
    gate: Vec<f32>,            // [layers, F, D]
    down: Vec<f32>,            // [layers, D, F]
    up: Vec<f32>,              // [layers, F, D]
    norm: Vec<f32>,            // [D]
    head: Option<Vec<f32>>,    // [V, D]
}

impl Parts {
    fn assemble(self, config: Config) -> Decoder {
        let (width, layers) = (config.width, config.layers);
        let layer = |weights: &[f32], index: usize| {
            let len = weights.len() / layers;
            weights[index * len..][..len].to_vec()
        };
        let dense = |layout: Layout, weight: Vec<f32>| -> Box<dyn Linear> {
            let weight = Tensor::new(&[layout.rows(), layout.inputs], weight);
            Box::new(Dense::new(layout, weight))
        };
        let blocks = (0..layers)
            .map(|index| {
                let [qkv, output, gate_up, down] = layouts(&config, index);
                let mut packed = halves_apart(&layer(&self.query, index), config.head_dim, width);
                packed.extend(halves_apart(
                    &layer(&self.key, index),
                    config.head_dim,
                    width,
                ));
                packed.extend(layer(&self.value, index));
                let mut gate = layer(&self.gate, index);
                gate.extend(layer(&self.up, index));
                Block {
                    attention_norm: Tensor::new(&[width], layer(&self.attention_norms, index)),
                    qkv: dense(qkv, packed),
                    q_norm: None,
                    k_norm: None,
                    attention: config.attention_of(index),
                    output: dense(output, layer(&self.output, index)),
                    ffn_norm: Tensor::new(&[width], layer(&self.ffn_norms, index)),
                    gate_up: dense(gate_up, gate),
                    down: dense(down, layer(&self.down, index)),
                }
            })
            .collect();
        let table = |values| Embedding::Dense(Tensor::new(&[config.vocab, width], values));
        let (embedding, head) = (table(self.table), self.head.map(table));
        Decoder::new(
            config.clone(),
            embedding,
            blocks,
            Tensor::new(&[width], self.norm),
            head,
        )
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (bytes, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or("ends before its weights do; it is truncated")?;
        self.rest = rest;
        Ok(bytes)
    }

    fn int(&mut self) -> Result<i32, String> {
        let bytes = self.bytes(4)?;
        Ok(i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn floats(&mut self, count: usize) -> Result<Vec<f32>, String> {
        let bytes = self.bytes(count.saturating_mul(4))?;
        Ok(bytes
            .as_chunks()
            .0
            .iter()
            .map(|&b| f32::from_le_bytes(b))
            .collect())
    }

    fn end(&self) -> Result<(), String> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(format!(
                "has {left} bytes after its last weight, so its header does not describe it"
            )),
        }
    }
}
