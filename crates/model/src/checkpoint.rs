//! Checkpoints: Hugging Face folders of a dense decoder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use russet_tensor::{DType, Mesh, Tensor};
use serde_json::{Map, Value, json};

use crate::block::{Block, layouts};
use crate::reward::{RewardHead, SCORE};
use crate::stored::{self, Output, Stored};
use crate::{Attention, Config, Decoder, Dense, Embedding, Family, Layout, Linear, ModelError};

/// Opens a folder of either kind: a palettized package where its configuration says so, else a dense checkpoint.
///
/// # Errors
/// As for [`load`] and [`crate::package::load`].
pub fn open(folder: &Path) -> Result<Decoder, ModelError> {
    let config = crate::config::read_json(&folder.join("config.json"))?;
    match config.get("quantization_config") {
        None | Some(Value::Null) => load(folder),
        Some(_) => crate::package::load(folder),
    }
}

/// Reads a dense checkpoint: `config.json` and safetensors of f32, f16 or bf16, in one file or sharded. One of a reward model has
/// its head.
///
/// # Errors
/// When a file is missing, damaged, or describes what Russet does not know.
pub fn load(folder: &Path) -> Result<Decoder, ModelError> {
    let config = Config::open(folder)?;
    let mut stored = Stored::open(folder, "model")?;
    let decoder = assemble(&config, &mut stored, dense_table(&config), dense_product)?;
    let reward = RewardHead::take(config.width, "", &mut stored)?;
    finish(&config, stored)?;
    Ok(match reward {
        Some(head) => decoder.with_reward(head),
        None => decoder,
    })
}

/// A rank's part of a dense checkpoint.
///
/// # Errors
/// As for [`load`].
///
/// # Panics
/// When the mesh does not divide the model, which [`crate::cut::check`] says.
pub fn load_on_mesh(folder: &Path, mesh: &Arc<Mesh>) -> Result<Decoder, ModelError> {
    let config = Config::open(folder)?;
    let mut stored = Stored::open(folder, "model")?;
    let decoder = Decoder::on_mesh(&config, Some(mesh), |_, cut| {
        let mut parts = Vec::new();
        for part in &cut.parts {
            let tensor = stored.take_floats(&part.name, &part.shape)?;
            parts.push(tensor.to_f32());
        }
        Ok(cut.of_whole(&parts))
    })?;
    finish(&config, stored)?;
    Ok(decoder)
}

/// Ends the reading of a checkpoint.
pub(crate) fn finish(config: &Config, mut stored: Stored) -> Result<(), ModelError> {
    // Some older files carry what follows from the configuration.
    if config.tied {
        stored.ignore("lm_head.weight");
    }
    for layer in 0..config.layers {
        stored.ignore(&format!(
            "model.layers.{layer}.self_attn.rotary_emb.inv_freq"
        ));
    }
    stored.finish()
}

/// Builds a decoder from stored tensors; `table` reads an embedding, `linear` a product.
pub(crate) fn assemble(
    config: &Config,
    stored: &mut Stored,
    table: impl Fn(&mut Stored, &str) -> Result<Embedding, ModelError>,
    linear: impl Fn(&mut Stored, Layout) -> Result<Box<dyn Linear>, ModelError>,
) -> Result<Decoder, ModelError> {
    let embedding = table(stored, "model.embed_tokens")?;
    let mut blocks = Vec::new();
    for layer in 0..config.layers {
        blocks.push(block(config, stored, layer, &linear)?);
    }
    let norm = stored.take_f32("model.norm.weight", &[config.width])?;
    let head = if config.tied {
        None
    } else {
        Some(table(stored, "lm_head")?)
    };
    Ok(Decoder::new(config.clone(), embedding, blocks, norm, head))
}

/// Builds one block.
fn block(
    config: &Config,
    stored: &mut Stored,
    layer: usize,
    linear: &impl Fn(&mut Stored, Layout) -> Result<Box<dyn Linear>, ModelError>,
) -> Result<Block, ModelError> {
    let norm = |stored: &mut Stored, name: &str, len| {
        stored.take_f32(&format!("model.layers.{layer}.{name}.weight"), &[len])
    };
    let [qkv, output, gate_up, down] = layouts(config, layer);
    let attention = config.attention_of(layer);
    let head_norm = |stored: &mut Stored, name: &str, has: bool| match (config.family, has) {
        (Family::Qwen3, true) => norm(stored, name, config.head_dim).map(Some),
        _ => Ok(None),
    };
    Ok(Block {
        attention,
        attention_norm: norm(stored, "input_layernorm", config.width)?,
        qkv: linear(stored, qkv)?,
        q_norm: head_norm(stored, "self_attn.q_norm", true)?,
        k_norm: head_norm(stored, "self_attn.k_norm", !attention.shares)?,
        output: linear(stored, output)?,
        ffn_norm: norm(stored, "post_attention_layernorm", config.width)?,
        gate_up: linear(stored, gate_up)?,
        down: linear(stored, down)?,
    })
}

/// A dense checkpoint of which only one block is in memory at a time.
pub struct Blocks {
    folder: PathBuf,
    config: Config,
}

impl Blocks {
    /// Of the checkpoint in a folder, whose files are looked through.
    ///
    /// # Errors
    /// When a tensor is missing, superfluous or of another shape, or the folder holds a package.
    pub fn open(folder: &Path) -> Result<Blocks, ModelError> {
        let config = Config::open(folder)?;
        let mut stored = Stored::open(folder, "model")?;
        if config.layers > stored.count() {
            let problem = format!(
                "has {} layers, but there are {} tensors",
                config.layers,
                stored.count()
            );
            return Err(ModelError::file(&folder.join("config.json"), problem));
        }
        for (name, shape) in crate::cut::tensors(&config) {
            stored.take_floats(&name, &shape)?;
        }
        finish(&config, stored)?;
        Ok(Blocks {
            folder: folder.to_path_buf(),
            config,
        })
    }

    /// The whole decoder's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// A tensor in f32.
    ///
    /// # Errors
    /// When the files have changed meanwhile.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        Stored::open(&self.folder, "model")?.take_f32(name, shape)
    }

    /// The decoder without blocks: tables and the last norm.
    ///
    /// # Errors
    /// When the files have changed meanwhile.
    pub fn ends(&self) -> Result<Decoder, ModelError> {
        let mut stored = Stored::open(&self.folder, "model")?;
        let config = Config {
            layers: 0,
            attention: Attention::default(),
            ..self.config.clone()
        };
        assemble(&config, &mut stored, dense_table(&config), dense_product)
    }

    /// Block `layer` alone, as block 0 of a decoder whose table is one row of zeros; its products have their own names.
    ///
    /// # Errors
    /// When the files have changed meanwhile.
    pub fn block(&self, layer: usize) -> Result<Decoder, ModelError> {
        let mut stored = Stored::open(&self.folder, "model")?;
        // The block knows by itself what it sees.
        let block = block(&self.config, &mut stored, layer, &dense_product)?;
        let config = Config {
            layers: 1,
            vocab: 1,
            tied: true,
            attention: Attention::default(),
            ..self.config.clone()
        };
        let zeros = Tensor::new(&[1, config.width], vec![0.0; config.width]);
        let norm = Tensor::new(&[config.width], vec![1.0; config.width]);
        Ok(Decoder::new(
            config,
            Embedding::Dense(zeros),
            vec![block],
            norm,
            None,
        ))
    }
}

/// Reads a table in f32.
fn dense_table(config: &Config) -> impl Fn(&mut Stored, &str) -> Result<Embedding, ModelError> {
    let shape = [config.vocab, config.width];
    move |stored, name| {
        Ok(Embedding::Dense(
            stored.take_f32(&format!("{name}.weight"), &shape)?,
        ))
    }
}

/// Reads a product in f32.
fn dense_product(stored: &mut Stored, layout: Layout) -> Result<Box<dyn Linear>, ModelError> {
    // All parts are found in the files before memory is taken, so that sizes which are only claimed cost nothing.
    let mut parts = Vec::new();
    for projection in &layout.projections {
        let name = format!("{}.weight", projection.name);
        parts.push(stored.take_floats(&name, &[projection.rows, layout.inputs])?);
    }
    let mut packed = Vec::with_capacity(layout.rows() * layout.inputs);
    for part in &parts {
        packed.extend_from_slice(&part.to_f32());
    }
    let weight = Tensor::new(&[layout.rows(), layout.inputs], packed);
    Ok(Box::new(Dense::new(layout, weight)))
}

/// Writes a dense checkpoint's `config.json`, `generation_config.json` and weights in `f32` into `folder`, which
/// should be a draft that is renamed into place.
///
/// # Errors
/// When the disk refuses.
pub fn save(decoder: &Decoder, folder: &Path) -> Result<(), ModelError> {
    let parameters = decoder.parameters();
    let mut tensors = Vec::new();
    for parameter in &parameters {
        tensors.extend(outputs(&parameter.parts, parameter.tensor));
    }
    save_tensors(decoder.config(), &tensors, folder)
}

/// As [`save`], of weights that lie elsewhere than in a decoder: a copy of them, a mean.
///
/// # Errors
/// When the disk refuses.
pub fn save_tensors(config: &Config, tensors: &[Output], folder: &Path) -> Result<(), ModelError> {
    let json = match tensors.iter().any(|tensor| tensor.name == SCORE) {
        true => config.to_reward_json(),
        false => config.to_json(),
    };
    write_json(json, folder)?;
    stored::write(folder, "model", tensors, stored::SHARD_BYTES)
}

/// Writes `config.json` and `generation_config.json`: what a folder needs to tell its decoder's shape.
///
/// # Errors
/// When the disk refuses.
pub fn save_config(config: &Config, folder: &Path) -> Result<(), ModelError> {
    write_config(config, None, folder)
}

/// A packed tensor as the named tensors it is made of.
pub fn outputs<'a>(parts: &[(String, usize)], tensor: &'a Tensor) -> Vec<Output<'a>> {
    let width = *tensor.shape().last().expect("a parameter has a shape");
    let bytes: &[u8] = tensor.bytes();
    let mut start = 0;
    let part = |(name, rows): &(String, usize)| {
        let end = start + rows * width * size_of::<f32>();
        let bytes = &bytes[start..end];
        start = end;
        let shape = if tensor.shape().len() == 1 {
            vec![width]
        } else {
            vec![*rows, width]
        };
        Output {
            name: name.clone(),
            dtype: DType::F32,
            shape,
            bytes,
        }
    };
    parts.iter().map(part).collect()
}

/// Writes `config.json` and `generation_config.json`.
pub(crate) fn write_config(
    config: &Config,
    quantization: Option<Value>,
    folder: &Path,
) -> Result<(), ModelError> {
    let mut json = config.to_json();
    if let Some(quantization) = quantization {
        json.insert("quantization_config".into(), quantization);
    }
    write_json(json, folder)
}

fn write_json(json: Map<String, Value>, folder: &Path) -> Result<(), ModelError> {
    let generation =
        json!({"bos_token_id": json["bos_token_id"], "eos_token_id": json["eos_token_id"]});
    for (name, json) in [
        ("config.json", Value::Object(json)),
        ("generation_config.json", generation),
    ] {
        let path = folder.join(name);
        std::fs::write(&path, format!("{json:#}\n"))
            .map_err(|error| ModelError::file(&path, error))?;
    }
    Ok(())
}
