//! Adapters: PEFT folders of low-rank matrices (`adapter_config.json`, `adapter_model.safetensors`).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use half::{bf16, f16};
use russet_kernels::random as numbers;
use russet_tensor::ops::{self, Adapter, LoraPart};
use russet_tensor::{DType, Tensor};
use serde_json::{Value, json};

use crate::config::Fields;
use crate::reward::{RewardHead, SCORE};
use crate::stored::{self, Planned, Stored};
use crate::{Decoder, Frozen, Layout, Lora, ModelError, Parameter, ParameterKind, Projection};

/// What PEFT puts before a module's name.
const PREFIX: &str = "base_model.model.";

/// One projection's matrices: its name, A, B and the scale.
type Matrices = (String, Tensor, Tensor, f32);

/// Puts the adapter in `folder` onto a decoder, whose parameters are then the adapter's. Where `base` is given, an adapter that
/// names another under `russet_base` is refused; many name none.
///
/// # Errors
/// When a file is missing or damaged, a setting is not understood, a shape does not fit this decoder, or the base is another.
pub fn attach(decoder: Decoder, folder: &Path, base: Option<&str>) -> Result<Decoder, ModelError> {
    let dense = |matrix: Tensor| Tensor::new(matrix.shape(), matrix.to_f32());
    attach_with(decoder, folder, base, dense)
}

/// As [`attach`], with the numbers that the adapter has where it is served by name ([`load`]): the same answers, to the bit.
///
/// # Errors
/// As [`attach`].
pub fn attach_as_served(
    decoder: Decoder,
    folder: &Path,
    base: Option<&str>,
) -> Result<Decoder, ModelError> {
    attach_with(decoder, folder, base, |matrix| ops::as_adapted(&matrix))
}

fn attach_with(
    decoder: Decoder,
    folder: &Path,
    base: Option<&str>,
    dense: impl Fn(Tensor) -> Tensor,
) -> Result<Decoder, ModelError> {
    let (matrices, head) = read(
        &decoder.layouts(),
        Some(decoder.config().width),
        folder,
        base,
    )?;
    let mut adapters = matrices.into_iter();
    let dense = |(name, a, b, scale): Matrices| (name, dense(a), dense(b), scale);
    let adapted = adapted(decoder, |_| {
        let own = adapters.next().expect("a list for each product");
        own.into_iter().map(dense).collect()
    });
    Ok(match head {
        Some(head) => adapted.with_reward(head),
        None => adapted,
    })
}

/// The decoder with what `own` says on each product, and all else frozen.
fn adapted(decoder: Decoder, mut own: impl FnMut(&Layout) -> Vec<Matrices>) -> Decoder {
    let adapted = decoder.map_linears(|linear| {
        let own = own(linear.layout());
        match own.is_empty() {
            true => Box::new(Frozen(linear)),
            false => Box::new(Lora::new(linear, own)),
        }
    });
    adapted.freeze()
}

/// Reads the adapter in `folder` to go beside a decoder of these layouts, on the rows that ask for it
/// ([`russet_tensor::Segments::push_adapted`]).
///
/// # Errors
/// As [`attach`].
pub fn load(layouts: &[Layout], folder: &Path, base: Option<&str>) -> Result<Adapter, ModelError> {
    let (matrices, _) = read(layouts, None, folder, base)?;
    Ok(beside(layouts, matrices))
}

/// An adapter of random matrices on every projection, to go beside a decoder of these layouts: to measure speed with.
pub fn random(layouts: &[Layout], rank: usize, seed: u64) -> Adapter {
    let mut stream = 0;
    let mut matrix = |rows: usize, cols: usize| {
        stream += 1;
        let deviation = (cols as f32).sqrt().recip();
        Tensor::from_fn(&[rows, cols], |i| {
            let number = deviation * numbers::normal(seed, stream, i as u64);
            f32::from_bits(number.to_bits() & 0xffff_0000) // as files of bf16 hold them
        })
    };
    let mut own = |layout: &Layout| -> Vec<Matrices> {
        let projections = layout.projections.iter();
        let made = projections.map(|projection| {
            let (a, b) = (matrix(rank, layout.inputs), matrix(projection.rows, rank));
            (projection.name.clone(), a, b, 1.0)
        });
        made.collect()
    };
    beside(layouts, layouts.iter().map(&mut own).collect())
}

/// An adapter of the matrices of each product.
fn beside(layouts: &[Layout], matrices: Vec<Vec<Matrices>>) -> Adapter {
    let places = layouts.iter().zip(matrices).map(|(layout, own)| {
        let part = |(name, a, b, scale): Matrices| {
            let mut ranges = layout.ranges();
            let (_, columns) = ranges
                .find(|(projection, _)| projection.name == name)
                .expect("a projection of the layout");
            LoraPart {
                columns,
                a,
                b,
                scale,
            }
        };
        own.into_iter().map(part).collect()
    });
    Adapter::new(places.collect())
}

/// The matrices of each of a decoder's products as they are stored; and the reward head, where the decoder has a `width` to take one.
fn read(
    layouts: &[Layout],
    width: Option<usize>,
    folder: &Path,
    base: Option<&str>,
) -> Result<(Vec<Vec<Matrices>>, Option<RewardHead>), ModelError> {
    let path = folder.join("adapter_config.json");
    let settings = crate::config::read_json(&path)?;
    let settings =
        Settings::parse(&settings).map_err(|problem| ModelError::file(&path, problem))?;
    if let (Some(base), Some(made_for)) = (base, &settings.base)
        && base != made_for
    {
        let problem = format!(
            "the adapter was trained on the base {made_for}, but this one is {base}; load it with its own base"
        );
        return Err(ModelError::file(&path, problem));
    }
    let mut stored = Stored::open_file(&folder.join("adapter_model.safetensors"))?;
    let mut adapters = Vec::new();
    for layout in layouts {
        let mut own = Vec::new();
        for projection in &layout.projections {
            let name = &projection.name;
            let (a, b) = (
                format!("{PREFIX}{name}.lora_A.weight"),
                format!("{PREFIX}{name}.lora_B.weight"),
            );
            if !stored.has(&a) && !stored.has(&b) {
                continue;
            }
            let rank = settings.rank(name);
            let a = take_finite(&mut stored, &a, &[rank, layout.inputs])?;
            let b = take_finite(&mut stored, &b, &[projection.rows, rank])?;
            own.push((name.clone(), a, b, settings.scale(name)));
        }
        adapters.push(own);
    }
    let head = match width {
        Some(width) => RewardHead::take(width, PREFIX, &mut stored)?,
        None if stored.has(&format!("{PREFIX}{SCORE}")) => {
            let problem = "is of a reward model, which tells how good answers are and gives none; judge with it by \
                           `russet eval reward --adapter`";
            return Err(ModelError::file(&path, problem));
        }
        None => None,
    };
    stored.finish()?;
    if adapters.iter().all(Vec::is_empty) {
        return Err(ModelError::file(
            &path,
            "the adapter has no matrices, so it would change nothing",
        ));
    }
    Ok((adapters, head))
}

/// Takes a matrix, none of whose numbers is a NaN or an infinity: every answer through it would end in an error that could not say whose
/// fault it is.
fn take_finite(stored: &mut Stored, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
    let matrix = stored.take_floats(name, shape)?;
    match matrix.first_not_finite() {
        None => Ok(matrix),
        Some(place) => {
            let problem = format!(
                "holds a number that is not finite, at place {place} (counted from 0, row by row); the training diverged or the file is \
                 damaged: take an earlier state of it, or fetch it anew"
            );
            Err(ModelError::tensor(stored.place(), name, problem))
        }
    }
}

/// Puts a fresh adapter of the given rank on every projection whose name `chosen` accepts: A normal with variance
/// 1 / inputs, B zero, so that nothing changes yet (arXiv 2106.09685). The decoder's parameters are then the adapter's.
pub fn attach_new(
    decoder: Decoder,
    rank: usize,
    alpha: f32,
    seed: u64,
    chosen: impl Fn(&str) -> bool,
) -> Decoder {
    let mut stream = 1 << 32; // apart from the streams of the weights themselves
    adapted(decoder, |layout| {
        let mut own = Vec::new();
        for projection in layout.projections.iter().filter(|p| chosen(&p.name)) {
            stream += 1;
            let deviation = (layout.inputs as f32).sqrt().recip();
            let a = Tensor::from_fn(&[rank, layout.inputs], |i| {
                deviation * numbers::normal(seed, stream, i as u64)
            });
            let b = Tensor::new(&[projection.rows, rank], vec![0.0; projection.rows * rank]);
            own.push((projection.name.clone(), a, b, alpha / rank as f32));
        }
        own
    })
}

/// Puts given matrices onto a decoder: of each projection by its name A `[R, D]` and B `[rows, R]`, whose product counts `scale`
/// times. The decoder's parameters are then these.
///
/// # Panics
/// When a shape does not fit.
pub fn attach_made(
    decoder: Decoder,
    mut made: BTreeMap<String, (Tensor, Tensor)>,
    scale: f32,
) -> Decoder {
    adapted(decoder, |layout| {
        let own = |projection: &Projection| {
            let (a, b) = made.remove(&projection.name)?;
            Some((projection.name.clone(), a, b, scale))
        };
        layout.projections.iter().filter_map(own).collect()
    })
}

/// A matrix of an adapter, or of the reward head beside it, to be written.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// Its name as a parameter: `model.layers.0.self_attn.q_proj.lora_A.weight`, `score.weight`.
    pub name: &'a str,
    /// `[R, D]` or `[rows, R]`.
    pub shape: [usize; 2],
    /// `alpha / rank`; says nothing of a reward head.
    pub scale: f32,
    /// Its numbers.
    pub values: &'a [f32],
}

/// What an adapter says of itself besides its matrices.
#[derive(Clone, Debug)]
pub struct About {
    /// `base_model_name_or_path`: the base for people and for PEFT, which may say nothing.
    pub name: Option<String>,
    /// `russet_base`: the base to the byte; see [`attach`].
    pub base: Option<String>,
    /// The type of the numbers in the file: f32, f16 or bf16.
    pub dtype: DType,
}

/// Writes the adapters of a decoder, and its reward head where it has one, as a PEFT folder in `f32`.
///
/// # Errors
/// When the decoder has no adapters, or adapters of several ranks or scales; or the disk refuses.
pub fn save(decoder: &Decoder, base: &str, folder: &Path) -> Result<(), ModelError> {
    let parameters = decoder.parameters();
    let own = |parameter: &&Parameter| {
        let mut heads = HEADS.iter();
        matches!(parameter.kind, ParameterKind::Adapter { .. })
            || heads.any(|head| parameter.parts[0].0.starts_with(head))
    };
    let mut matrices = Vec::new();
    for parameter in parameters.iter().filter(own) {
        let scale = match parameter.kind {
            ParameterKind::Adapter { scale } => scale,
            _ => 1.0,
        };
        let width = parameter.tensor.dims2().1;
        let mut values = parameter.tensor.data();
        for (name, rows) in &parameter.parts {
            let (own, rest) = values.split_at(rows * width);
            values = rest;
            matrices.push(Matrix {
                name,
                shape: [*rows, width],
                scale,
                values: own,
            });
        }
    }
    let about = About {
        name: Some(base.to_owned()),
        base: None,
        dtype: DType::F32,
    };
    save_matrices(&matrices, &about, folder)
}

/// Writes matrices as a PEFT folder.
///
/// # Errors
/// When there are none, or they are of several ranks or scales; a number has no place in the type; or the disk refuses.
pub fn save_matrices(matrices: &[Matrix], about: &About, folder: &Path) -> Result<(), ModelError> {
    let (mut modules, mut layers) = (Vec::new(), BTreeSet::new());
    let mut rank_and_scale = None;
    let mut planned = Vec::new();
    for matrix in matrices {
        if let Some(module) = matrix.name.strip_suffix(".lora_A.weight") {
            let own = (matrix.shape[0], matrix.scale);
            if *rank_and_scale.get_or_insert(own) != own {
                return Err(ModelError::file(
                    folder,
                    "adapters of several ranks or scales cannot share one PEFT folder",
                ));
            }
            let last = module.rsplit('.').next().unwrap_or(module).to_owned();
            if !modules.contains(&last) {
                modules.push(last);
            }
            layers.extend(layer_of(module));
        }
        planned.push(Planned {
            name: format!("{PREFIX}{}", matrix.name),
            dtype: about.dtype,
            shape: matrix.shape.to_vec(),
        });
    }
    let Some((rank, scale)) = rank_and_scale else {
        return Err(ModelError::file(
            folder,
            "the model has no adapters to write",
        ));
    };
    let mut settings = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": about.name, "r": rank,
        "lora_alpha": scale * rank as f32, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": false,
        "target_modules": modules, "layers_to_transform": layers, "layers_pattern": "layers", "inference_mode": true,
        "use_rslora": false, "use_dora": false,
    });
    let of_head = |word: &str| matrices.iter().any(|one| one.name.starts_with(word));
    let heads: Vec<&str> = HEADS.into_iter().filter(|word| of_head(word)).collect();
    if !heads.is_empty() {
        settings["task_type"] = "SEQ_CLS".into();
        settings["modules_to_save"] = json!(heads);
    }
    if let Some(base) = &about.base {
        settings["russet_base"] = base.as_str().into();
    }
    let path = folder.join("adapter_config.json");
    std::fs::write(&path, format!("{settings:#}\n"))
        .map_err(|error| ModelError::file(&path, error))?;
    stored::write_each(folder, "adapter_model", &planned, usize::MAX, |index| {
        let Matrix { name, values, .. } = matrices[index];
        let stored = stored_as(about.dtype, values);
        stored.ok_or_else(|| {
            let problem = format!(
                "holds numbers that {:?} has no place for; write the adapter as bf16 or f32",
                about.dtype
            );
            ModelError::tensor(folder, name, problem)
        })
    })
}

/// The layer that a module's name counts.
pub fn layer_of(module: &str) -> Option<usize> {
    let (_, rest) = module.split_once("layers.")?;
    rest.split('.').next()?.parse().ok()
}

/// The bytes of numbers in a type of floats, each rounded to the nearest; `None` where a finite one becomes infinite.
///
/// # Panics
/// When the type is one of integers.
fn stored_as(dtype: DType, values: &[f32]) -> Option<Cow<'_, [u8]>> {
    let mut rounded = values.to_vec();
    round(dtype, &mut rounded);
    let fits = |(x, rounded): (&f32, &f32)| !x.is_finite() || rounded.is_finite();
    if !values.iter().zip(&rounded).all(fits) {
        return None;
    }
    Some(match dtype {
        DType::F32 => Cow::Borrowed(bytemuck::cast_slice(values)),
        DType::F16 => {
            let halves = values.iter().map(|&x| f16::from_f32(x));
            Cow::Owned(halves.flat_map(f16::to_le_bytes).collect())
        }
        _ => {
            let halves = values.iter().map(|&x| bf16::from_f32(x));
            Cow::Owned(halves.flat_map(bf16::to_le_bytes).collect())
        }
    })
}

/// Rounds numbers to what a type of floats has, so that nothing is lost in writing them as it. Twice is nothing.
///
/// # Panics
/// When the type is one of integers.
pub fn round(dtype: DType, values: &mut [f32]) {
    match dtype {
        DType::F32 => {}
        DType::F16 => values
            .iter_mut()
            .for_each(|x| *x = f16::from_f32(*x).to_f32()),
        DType::BF16 => values
            .iter_mut()
            .for_each(|x| *x = bf16::from_f32(*x).to_f32()),
        DType::I8 | DType::U8 => panic!("an adapter of integers"),
    }
}

/// What of `adapter_config.json` changes the result.
struct Settings {
    rank: usize,
    alpha: f64,
    root: bool,           // scaled by the root of the rank (rsLoRA)
    base: Option<String>, // of what it was trained on, the name that whoever trained it gave
    ranks: BTreeMap<String, usize>,
    alphas: BTreeMap<String, f64>,
}

impl Settings {
    fn parse(json: &serde_json::Map<String, Value>) -> Result<Settings, String> {
        if json.get("peft_type").and_then(Value::as_str) != Some("LORA") {
            return Err(format!(
                "`peft_type` is {}, but Russet reads LORA",
                json.get("peft_type").unwrap_or(&Value::Null)
            ));
        }
        for (key, value) in json {
            refuse_unknown(key, value)?;
        }
        let rank = |value: &Value| {
            let rank = value.as_u64().filter(|rank| (1..=4096).contains(rank));
            rank.map(|rank| rank as usize)
                .ok_or_else(|| format!("a rank is {value}, but it must lie in 1..=4096"))
        };
        let number = |value: &Value| {
            value
                .as_f64()
                .ok_or_else(|| format!("an alpha is {value}, but it must be a number"))
        };
        Ok(Settings {
            rank: rank(json.get("r").unwrap_or(&Value::Null))?,
            alpha: number(json.get("lora_alpha").unwrap_or(&Value::Null))?,
            root: Fields(json).flag("use_rslora")?,
            base: match json.get("russet_base") {
                None | Some(Value::Null) => None,
                Some(Value::String(base)) => Some(base.clone()),
                Some(other) => {
                    return Err(format!("`russet_base` is {other}, but it must be a text"));
                }
            },
            ranks: patterns(json, "rank_pattern", rank)?,
            alphas: patterns(json, "alpha_pattern", number)?,
        })
    }

    fn rank(&self, module: &str) -> usize {
        matching(&self.ranks, module).unwrap_or(self.rank)
    }

    fn scale(&self, module: &str) -> f32 {
        let (rank, alpha) = (
            self.rank(module) as f64,
            matching(&self.alphas, module).unwrap_or(self.alpha),
        );
        (alpha / if self.root { rank.sqrt() } else { rank }) as f32
    }
}

/// Settings that say how an adapter was made or which modules carry it; what its matrices do is the same whatever they say.
const HISTORY: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size", // of `use_qalora`, which must be off
    "revision",
    "target_modules",
    "task_type",
];

/// Modules of a reward head, which are whole in an adapter's file.
const HEADS: [&str; 2] = ["score", "grades"];

/// Settings that [`Settings::parse`] reads.
const READ: &[&str] = &[
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "russet_base",
];

/// Lets through what is read, what changes nothing, and what is switched off. PEFT gains settings with every version, and most change
/// what the matrices mean, so one that nobody here has heard of is refused.
fn refuse_unknown(key: &str, value: &Value) -> Result<(), String> {
    let off = value.is_null() || [json!(false), json!([]), json!({})].contains(value);
    if READ.contains(&key) || HISTORY.contains(&key) || off {
        return Ok(());
    }
    match (key, value) {
        // What lies beside the matrices is read with them.
        ("modules_to_save", Value::Array(names))
            if names
                .iter()
                .all(|name| HEADS.iter().any(|head| name == head)) =>
        {
            Ok(())
        }
        ("bias", Value::String(bias)) if bias == "none" => Ok(()),
        ("bias", _) => Err(format!(
            "`bias` is {value}, but Russet's layers have no biases"
        )),
        // These draw the matrices and leave the base alone; others (PiSSA, OLoRA, CorDA, LoftQ) change it.
        ("init_lora_weights", Value::Bool(true)) => Ok(()),
        ("init_lora_weights", Value::String(how))
            if ["gaussian", "eva", "orthogonal"].contains(&how.as_str()) =>
        {
            Ok(())
        }
        ("init_lora_weights", _) => Err(format!(
            "`init_lora_weights` is {value}, which may have changed the base model too; convert the adapter to plain LoRA \
             with PEFT (`save_pretrained` with `path_initial_model_for_weight_conversion`)"
        )),
        _ => Err(format!(
            "`{key}` is {value}, which Russet does not know; an adapter trained with it would give other answers here"
        )),
    }
}

/// The values of `rank_pattern` or `alpha_pattern` by module name.
fn patterns<T>(
    json: &serde_json::Map<String, Value>,
    key: &str,
    value: impl Fn(&Value) -> Result<T, String>,
) -> Result<BTreeMap<String, T>, String> {
    let object = match json.get(key) {
        None | Some(Value::Null) => return Ok(BTreeMap::new()),
        Some(Value::Object(object)) => object,
        Some(other) => return Err(format!("`{key}` is {other}, but it must be an object")),
    };
    let one = |(pattern, setting): (&String, &Value)| {
        // PEFT takes these for regular expressions; one that is more than a name would here match nothing, unseen.
        let plain = |c: char| c.is_ascii_alphanumeric() || ['.', '_', '-'].contains(&c);
        if !pattern.chars().all(plain) {
            return Err(format!(
                "`{key}` has the pattern `{pattern}`; Russet reads names of modules, not regular expressions"
            ));
        }
        Ok((pattern.clone(), value(setting)?))
    };
    object.iter().map(one).collect()
}

/// PEFT matches a pattern against the end of a module's name, at a dot.
fn matching<T: Copy>(patterns: &BTreeMap<String, T>, module: &str) -> Option<T> {
    let fits = |pattern: &str| module == pattern || module.ends_with(&format!(".{pattern}"));
    patterns
        .iter()
        .find(|(pattern, _)| fits(pattern))
        .map(|(_, &value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(change: Value) -> Result<Settings, String> {
        // What PEFT 0.18 writes for a plain adapter.
        let mut settings = json!({
            "alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null, "auto_mapping": null,
            "base_model_name_or_path": "base", "bias": "none", "corda_config": null, "ensure_weight_tying": false,
            "eva_config": null, "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true,
            "init_lora_weights": true, "layer_replication": null, "layers_pattern": null, "layers_to_transform": null,
            "loftq_config": {}, "lora_alpha": 8, "lora_bias": false, "lora_dropout": 0.1, "megatron_config": null,
            "megatron_core": "megatron.core", "modules_to_save": null, "peft_type": "LORA", "peft_version": "0.18.0",
            "qalora_group_size": 16, "r": 4, "rank_pattern": {}, "revision": null, "target_modules": ["q_proj"],
            "target_parameters": null, "task_type": "CAUSAL_LM", "trainable_token_indices": null, "use_dora": false,
            "use_qalora": false, "use_rslora": false,
        });
        let settings = settings.as_object_mut().unwrap();
        settings.extend(change.as_object().unwrap().clone());
        Settings::parse(settings)
    }

    #[test]
    fn a_plain_adapter_is_read_with_all_that_peft_writes() {
        let settings = parse(json!({})).unwrap();
        assert_eq!(settings.scale("model.layers.0.self_attn.q_proj"), 2.0);
        let settings =
            parse(json!({"use_rslora": true, "alpha_pattern": {"self_attn.q_proj": 16}})).unwrap();
        assert_eq!(settings.scale("model.layers.0.self_attn.q_proj"), 8.0);
        assert_eq!(settings.scale("model.layers.0.mlp.up_proj"), 4.0);
        parse(json!({"init_lora_weights": "gaussian"})).unwrap();
    }

    #[test]
    fn what_would_change_the_result_unseen_is_refused() {
        for (key, value) in [
            ("alora_invocation_tokens", json!([1, 2])),
            ("arrow_config", json!({"top_k": 2})),
            ("layer_replication", json!([[0, 2]])),
            ("trainable_token_indices", json!([5])),
            ("target_parameters", json!(["experts.up"])),
            ("use_dora", json!(true)),
            ("use_dora", json!("true")),
            ("use_rslora", json!("true")),
            ("use_rslora", json!(1)),
            ("fan_in_fan_out", json!(true)),
            ("bias", json!("all")),
            ("init_lora_weights", json!("pissa_niter_4")),
            ("a_setting_of_tomorrow", json!("on")),
            ("rank_pattern", json!([4])),
            ("rank_pattern", json!({"q_proj": 0})),
            ("alpha_pattern", json!({"layers\\.[01]\\..*q_proj": 16})),
            ("alpha_pattern", json!({"q_proj": "16"})),
            ("r", json!(0)),
            ("lora_alpha", json!(null)),
            ("peft_type", json!("IA3")),
        ] {
            assert!(
                parse(json!({key: value.clone()})).is_err(),
                "{key}: {value}"
            );
        }
    }
}
