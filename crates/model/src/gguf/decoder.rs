//! A decoder in GGUF: how its sizes and tensors are named there, and what has to be turned.
//!
//! | here | there |
//! |---|---|
//! | `Qwen3ForCausalLM`, `LlamaForCausalLM` | `general.architecture` `qwen3`, `llama`; their names begin the keys below |
//! | layers, width, ffn, context, vocab | `.block_count`, `.embedding_length`, `.feed_forward_length`, `.context_length`, `.vocab_size` |
//! | heads, kv_heads, head_dim | `.attention.head_count`, `.attention.head_count_kv`, `.attention.key_length` and `.value_length` |
//! | epsilon, base | `.attention.layer_norm_rms_epsilon`, `.rope.freq_base` |
//! | linear scaling | `.rope.scaling.type` `linear`, `.rope.scaling.factor` |
//! | llama3 scaling | the tensor `rope_freqs.weight` [K/2], what frequencies are divided by; its four numbers under `russet.rope.llama3` |
//! | tied tables | no `output.weight` |
//!
//! Llama's rotation turns neighbours there and halves here, so rows of q and k lie in another order: row `h + 2i` of a head there is row
//! `i + h·K/2` here. Qwen3's lie as here.

use std::borrow::Cow;
use std::path::Path;

use russet_kernels::Pool;

use super::{Gguf, GgufType, GgufWriter};
use crate::config::{Attention, RopeScaling};
use crate::stored::{self, Planned};
use crate::{Config, Decoder, Family, ModelError, Weights, checkpoint, cut};

/// The entry that keeps the four numbers of llama3 scaling; the format's own factors are what follows from them.
const LLAMA3: &str = "russet.rope.llama3";
/// factor, low, high, original of the published models, for files that others wrote.
const PUBLISHED: [[f64; 4]; 2] = [[8.0, 1.0, 4.0, 8192.0], [32.0, 1.0, 4.0, 8192.0]];

/// What has been written.
#[derive(Clone, Debug, PartialEq)]
pub struct Exported {
    /// Bytes of the file.
    pub bytes: u64,
    /// How many tensors have each type, in the order of [`GgufType::ALL`], those that none has left out.
    pub types: Vec<(GgufType, usize)>,
}

/// Writes a model as a GGUF file at `path`, its matrices in `kind`; `vocabulary` adds the tokenizer's entries.
///
/// Norms stay F32. With 4 bits the tables are Q8_0; where rows are not whole blocks of `kind`, Q8_0 takes its place, and F16 Q8_0's.
///
/// # Errors
/// When a tensor is missing, or the disk refuses.
pub fn export(
    pool: &Pool,
    weights: &mut Weights,
    kind: GgufType,
    path: &Path,
    vocabulary: impl FnOnce(&mut GgufWriter),
) -> Result<Exported, ModelError> {
    let config = weights.config().clone();
    let mut file = GgufWriter::new();
    sizes(&config, kind, &mut file).map_err(|problem| ModelError::file(path, problem))?;
    vocabulary(&mut file);
    let tensors = weights.tensors()?;
    let mut types: Vec<(GgufType, usize)> = Vec::new();
    for (name, shape) in &tensors {
        let kind = stored_as(kind, name, shape);
        match types.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => types.push((kind, 1)),
        }
        file.tensor(name_there(name), kind, shape.clone());
    }
    types.sort_by_key(|(kind, _)| GgufType::ALL.iter().position(|known| known == kind));
    let factors = match config.rope_scaling {
        RopeScaling::Llama3 { .. } => Some(divisors(&config)),
        _ => None,
    };
    if let Some(factors) = &factors {
        file.tensor(
            "rope_freqs.weight".into(),
            GgufType::F32,
            vec![factors.len()],
        );
    }
    let bytes = file.write(path, |index| {
        let Some((name, shape)) = tensors.get(index) else {
            return Ok(factors.clone().expect("announced above"));
        };
        let numbers = weights.take(pool, name, shape)?;
        Ok(match turned(&config, name) {
            true => pairs_together(&numbers, config.head_dim, config.width),
            false => numbers,
        })
    })?;
    Ok(Exported { bytes, types })
}

/// The type of a tensor in a file of `kind`.
fn stored_as(kind: GgufType, name: &str, shape: &[usize]) -> GgufType {
    let &[_, columns] = shape else {
        return GgufType::F32;
    };
    let table = name == "model.embed_tokens.weight" || name == "lm_head.weight";
    let kind = match kind {
        GgufType::Q4_0 | GgufType::Q4K | GgufType::Q6K if table => GgufType::Q8_0,
        kind => kind,
    };
    [kind, GgufType::Q8_0, GgufType::F16]
        .into_iter()
        .find(|kind| columns.is_multiple_of(kind.block()))
        .expect("F16 has blocks of one")
}

/// Writes the entries of a decoder's shape.
fn sizes(config: &Config, kind: GgufType, file: &mut GgufWriter) -> Result<(), String> {
    let arch = architecture(config.family);
    // llama.cpp would read the file and see the whole context, or miss tensors.
    for (key, set) in [
        ("sliding_window", config.attention.window),
        ("num_kv_shared_layers", config.attention.kv_shared),
    ] {
        if set > 0 {
            return Err(format!(
                "cannot hold a model with `{key}` = {set}: llama.cpp's {arch} has no such layers; serve the folder with Russet, or \
                 train a model without it"
            ));
        }
    }
    file.text("general.architecture", arch);
    file.text("general.type", "model");
    file.unsigned("general.quantization_version", 2);
    // Numbers of llama.cpp's list of files, in which each stands for what most of its tensors are.
    file.unsigned(
        "general.file_type",
        match kind {
            GgufType::F32 => 0,
            GgufType::F16 => 1,
            GgufType::Q4_0 => 2,
            GgufType::Q8_0 => 7,
            GgufType::Q4K => 14,
            GgufType::Q6K => 18,
            GgufType::BF16 => 32,
        },
    );
    for (key, size) in [
        ("block_count", config.layers),
        ("context_length", config.context),
        ("embedding_length", config.width),
        ("feed_forward_length", config.ffn),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
        ("vocab_size", config.vocab),
    ] {
        let size = u32::try_from(size)
            .map_err(|_| format!("cannot say {key} = {size}, which is beyond 32 bits"))?;
        file.unsigned(&format!("{arch}.{key}"), size);
    }
    file.float(
        &format!("{arch}.attention.layer_norm_rms_epsilon"),
        config.norm_epsilon,
    );
    file.float(&format!("{arch}.rope.freq_base"), config.rope_theta as f32);
    match config.rope_scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => {
            file.text(&format!("{arch}.rope.scaling.type"), "linear");
            file.float(&format!("{arch}.rope.scaling.factor"), factor as f32);
        }
        RopeScaling::Llama3 {
            factor,
            low,
            high,
            original,
        } => file.floats(LLAMA3, &[factor, low, high, original].map(|x| x as f32)),
    }
    Ok(())
}

/// A decoder's shape. Beginning and end of a text come from the tokenizer's entries.
///
/// # Errors
/// A sentence naming the key that is missing or describes what Russet does not know.
pub fn config(gguf: &Gguf) -> Result<Config, String> {
    let family = match gguf.text("general.architecture")? {
        Some("qwen3") => Family::Qwen3,
        Some("llama") => Family::Llama,
        other => {
            return Err(format!(
                "its architecture is {}; Russet reads qwen3 and llama",
                other.unwrap_or("missing")
            ));
        }
    };
    if gguf.entry("split.count").is_some() && gguf.unsigned("split.count")? != Some(1) {
        return Err("is one of several files of a model; join them with llama.cpp's llama-gguf-split --merge".into());
    }
    let arch = architecture(family);
    let key = |name: &str| format!("{arch}.{name}");
    let optional = |name: &str| -> Result<Option<usize>, String> {
        match gguf.unsigned(&key(name))? {
            None => Ok(None),
            Some(size) if (1..=1 << 32).contains(&size) => Ok(Some(size as usize)),
            Some(size) => Err(format!(
                "`{arch}.{name}` is {size}, but it must be a number of at least 1"
            )),
        }
    };
    let size =
        |name: &str| optional(name)?.ok_or_else(|| format!("the key `{arch}.{name}` is missing"));
    if gguf
        .unsigned(&key("expert_count"))?
        .is_some_and(|count| count > 0)
    {
        return Err("is a mixture of experts, which Russet does not know".into());
    }
    let (width, heads) = (size("embedding_length")?, size("attention.head_count")?);
    let head_dim = match optional("attention.key_length")? {
        Some(head_dim) => head_dim,
        None if width % heads == 0 => width / heads,
        None => return Err(format!("the key `{arch}.attention.key_length` is missing")),
    };
    for name in ["attention.value_length", "rope.dimension_count"] {
        if let Some(other) = optional(name)?.filter(|&other| other != head_dim) {
            return Err(format!(
                "`{arch}.{name}` is {other}, but Russet's heads are of one width, here {head_dim}"
            ));
        }
    }
    let Some((_, &[rows, columns])) = gguf.tensor("token_embd.weight") else {
        return Err("has no table `token_embd.weight` of rows and columns".into());
    };
    if columns != width {
        return Err(format!(
            "its table has rows of {columns}, but `{arch}.embedding_length` is {width}"
        ));
    }
    let theta = gguf.float(&key("rope.freq_base"))?.unwrap_or(10_000.0);
    let mut config = Config {
        family,
        vocab: rows,
        width,
        layers: size("block_count")?,
        heads,
        kv_heads: optional("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        ffn: size("feed_forward_length")?,
        norm_epsilon: match gguf.float(&key("attention.layer_norm_rms_epsilon"))? {
            Some(epsilon) => epsilon as f32,
            None => {
                return Err(format!(
                    "the key `{arch}.attention.layer_norm_rms_epsilon` is missing"
                ));
            }
        },
        rope_theta: theta,
        rope_scaling: RopeScaling::None,
        attention: Attention::default(),
        context: size("context_length")?,
        tied: gguf.tensor("output.weight").is_none(),
        bos: None,
        eos: Vec::new(),
    };
    config.check()?;
    config.rope_scaling = scaling(gguf, arch, &config)?;
    config.check()?;
    if config.layers > gguf.tensors.len() {
        return Err(format!(
            "claims {} layers, but has {} tensors in all",
            config.layers,
            gguf.tensors.len()
        ));
    }
    Ok(config)
}

fn scaling(gguf: &Gguf, arch: &str, config: &Config) -> Result<RopeScaling, String> {
    let factor = gguf.float(&format!("{arch}.rope.scaling.factor"))?;
    match (gguf.text(&format!("{arch}.rope.scaling.type"))?, factor) {
        (None | Some("none"), _) => {}
        (Some("linear"), Some(factor)) if factor > 0.0 && factor.is_finite() => {
            return Ok(RopeScaling::Linear { factor });
        }
        (Some(kind), _) => {
            return Err(format!(
                "its rotary scaling is `{kind}`; Russet reads linear and llama3's factors"
            ));
        }
    }
    let Some(found) = gguf.tensor_f32("rope_freqs.weight") else {
        return Ok(RopeScaling::None);
    };
    let own = match gguf.array(LLAMA3)? {
        Some(array) => Some(
            <[f64; 4]>::try_from(array.floats()?)
                .map_err(|_| format!("`{LLAMA3}` must hold four numbers"))?,
        ),
        None => None,
    };
    for [factor, low, high, original] in own.into_iter().chain(PUBLISHED) {
        let rope_scaling = RopeScaling::Llama3 {
            factor,
            low,
            high,
            original,
        };
        let tried = Config {
            rope_scaling,
            ..config.clone()
        };
        let wanted = divisors(&tried);
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-4 * b.abs();
        if wanted.len() == found.len() && found.iter().zip(&wanted).all(near) {
            return Ok(rope_scaling);
        }
    }
    Err("its `rope_freqs.weight` are not the factors of a published Llama 3; Russet reads no others".into())
}

/// What each frequency is divided by.
fn divisors(config: &Config) -> Vec<f32> {
    let plain = Config {
        rope_scaling: RopeScaling::None,
        ..config.clone()
    };
    let frequencies = config.inverse_frequencies();
    let pairs = plain.inverse_frequencies().into_iter().zip(frequencies);
    pairs.map(|(plain, stretched)| plain / stretched).collect()
}

/// Refuses tensors that nothing would ask for, and shapes other than the sizes'.
fn check(gguf: &Gguf, config: &Config) -> Result<Vec<Planned>, String> {
    let tensors = cut::tensors(config);
    let mut known: Vec<String> = vec!["rope_freqs.weight".into()];
    for (name, shape) in &tensors {
        let there = name_there(name);
        match gguf.tensor(&there) {
            None => {
                return Err(format!(
                    "the tensor `{there}` is missing; is it another architecture than its entries say?"
                ));
            }
            Some((_, found)) if found != shape => {
                return Err(format!(
                    "its tensor `{there}` has the shape {found:?}, but its entries ask for {shape:?}"
                ));
            }
            Some(_) => known.push(there),
        }
    }
    known.sort();
    if let Some(name) = gguf.tensor_names().find(|name| {
        known
            .binary_search_by(|known| known.as_str().cmp(name))
            .is_err()
    }) {
        return Err(format!(
            "its tensor `{name}` is not part of the architecture; Russet's layers have no biases and no further weights"
        ));
    }
    let plan = |(name, shape)| Planned {
        name,
        dtype: russet_tensor::DType::F32,
        shape,
    };
    Ok(tensors.into_iter().map(plan).collect())
}

/// A checkpoint's tensor, in f32.
fn tensor(gguf: &Gguf, config: &Config, name: &str) -> Vec<f32> {
    let numbers = gguf.tensor_f32(&name_there(name)).expect("checked before");
    match turned(config, name) {
        true => halves_apart(&numbers, config.head_dim, config.width),
        false => numbers,
    }
}

/// Writes a checkpoint's `config.json`, `generation_config.json` and weights in f32 into `folder`, tensor by tensor.
///
/// # Errors
/// When a tensor is missing, superfluous or of another shape, or the disk refuses; `path` names the file in it.
pub fn import(gguf: &Gguf, config: &Config, path: &Path, folder: &Path) -> Result<(), ModelError> {
    let planned = check(gguf, config).map_err(|problem| ModelError::file(path, problem))?;
    checkpoint::save_config(config, folder)?;
    stored::write_each(folder, "model", &planned, stored::SHARD_BYTES, |index| {
        let numbers = tensor(gguf, config, &planned[index].name);
        Ok(Cow::Owned(
            numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ))
    })
}

/// The whole decoder in memory.
///
/// # Errors
/// A sentence without the file's name.
pub fn load(gguf: &Gguf) -> Result<Decoder, String> {
    let config = config(gguf)?;
    check(gguf, &config)?;
    Decoder::on_mesh(&config, None, |_, cut| {
        let part = |part: &cut::CutPart| tensor(gguf, &config, &part.name);
        let parts: Vec<Vec<f32>> = cut.parts.iter().map(part).collect();
        Ok::<_, String>(cut.of_whole(&parts))
    })
}

fn architecture(family: Family) -> &'static str {
    match family {
        Family::Qwen3 => "qwen3",
        Family::Llama => "llama",
    }
}

/// A tensor's name there.
fn name_there(name: &str) -> String {
    let whole = match name {
        "model.embed_tokens.weight" => Some("token_embd.weight"),
        "model.norm.weight" => Some("output_norm.weight"),
        "lm_head.weight" => Some("output.weight"),
        _ => None,
    };
    if let Some(whole) = whole {
        return whole.into();
    }
    let of_layer = name
        .strip_prefix("model.layers.")
        .and_then(|rest| rest.split_once('.'));
    let (layer, part) = of_layer.expect("every other tensor is a layer's");
    let part = match part {
        "input_layernorm.weight" => "attn_norm",
        "self_attn.q_proj.weight" => "attn_q",
        "self_attn.k_proj.weight" => "attn_k",
        "self_attn.v_proj.weight" => "attn_v",
        "self_attn.o_proj.weight" => "attn_output",
        "self_attn.q_norm.weight" => "attn_q_norm",
        "self_attn.k_norm.weight" => "attn_k_norm",
        "post_attention_layernorm.weight" => "ffn_norm",
        "mlp.gate_proj.weight" => "ffn_gate",
        "mlp.up_proj.weight" => "ffn_up",
        "mlp.down_proj.weight" => "ffn_down",
        other => unreachable!("{other} is no tensor of a layer"),
    };
    format!("blk.{layer}.{part}.weight")
}

/// Whether a tensor's rows lie in another order there.
fn turned(config: &Config, name: &str) -> bool {
    let rotated = name.ends_with(".q_proj.weight") || name.ends_with(".k_proj.weight");
    config.family == Family::Llama && rotated
}

/// Rows of each head in the order 0, K/2, 1, K/2 + 1, …: rotated halves become rotated pairs.
fn pairs_together(weight: &[f32], head_dim: usize, width: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(weight.len());
    for head in weight.chunks_exact(head_dim * width) {
        let (first, second) = head.split_at(head_dim / 2 * width);
        for (a, b) in first.chunks_exact(width).zip(second.chunks_exact(width)) {
            out.extend_from_slice(a);
            out.extend_from_slice(b);
        }
    }
    out
}

/// Rows of each head in the order 0, 2, 4, …, 1, 3, 5, …: rotated pairs become rotated halves, as llama2.c's files ask for too.
pub(crate) fn halves_apart(weight: &[f32], head_dim: usize, width: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(weight.len());
    for head in weight.chunks_exact(head_dim * width) {
        for parity in 0..2 {
            for row in head.chunks_exact(width).skip(parity).step_by(2) {
                out.extend_from_slice(row);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests;
