//! Adapters: PEFT folders of low-rank matrices (`adapter_config.json`, `adapter_model.safetensors`).

use std::collections::BTreeMap;
use std::path::Path;

use russet_kernels::random;
use russet_tensor::Tensor;
use russet_tensor::ops::{Adapter, LoraPart};
use serde_json::{Value, json};

use crate::config::Fields;
use crate::stored::{self, Output, Stored};
use crate::{Decoder, Layout, Linear, Lora, ModelError, ParameterKind};

/// What PEFT puts before a module's name.
const PREFIX: &str = "base_model.model.";

/// One projection's matrices: its name, A, B and the scale.
type Matrices = (String, Tensor, Tensor, f32);

/// Puts the adapter in `folder` onto a decoder.
///
/// # Errors
/// When a file is missing or damaged, a setting is not understood, or a shape does not fit this decoder.
pub fn attach(decoder: Decoder, folder: &Path) -> Result<Decoder, ModelError> {
    let mut adapters = read(&decoder.layouts(), folder, None)?.into_iter();
    Ok(decoder.map_linears(|linear| {
        let own = adapters.next().expect("a list for each product");
        if own.is_empty() {
            linear
        } else {
            Box::new(Lora::new(linear, own))
        }
    }))
}

/// Reads the adapter in `folder` to go beside a decoder of these layouts, on the rows that ask for it
/// ([`russet_tensor::Segments::push_adapted`]). Where `base` is given, an adapter that names another base under
/// `russet_base` is refused; many name none.
///
/// # Errors
/// As [`attach`].
pub fn load(layouts: &[Layout], folder: &Path, base: Option<&str>) -> Result<Adapter, ModelError> {
    let matrices = read(layouts, folder, base)?;
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
    Ok(Adapter::new(places.collect()))
}

/// The matrices of each of a decoder's products.
fn read(
    layouts: &[Layout],
    folder: &Path,
    base: Option<&str>,
) -> Result<Vec<Vec<Matrices>>, ModelError> {
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
            let a = stored.take_f32(&a, &[rank, layout.inputs])?;
            let b = stored.take_f32(&b, &[projection.rows, rank])?;
            own.push((name.clone(), a, b, settings.scale(name)));
        }
        adapters.push(own);
    }
    stored.finish()?;
    if adapters.iter().all(Vec::is_empty) {
        return Err(ModelError::file(
            &path,
            "the adapter has no matrices, so it would change nothing",
        ));
    }
    Ok(adapters)
}

/// Puts a fresh adapter of the given rank on every projection whose name `chosen` accepts: A normal with variance
/// 1 / inputs, B zero, so that nothing changes yet (arXiv 2106.09685).
pub fn attach_new(
    decoder: Decoder,
    rank: usize,
    alpha: f32,
    seed: u64,
    chosen: impl Fn(&str) -> bool,
) -> Decoder {
    let mut stream = 1 << 32; // apart from the streams of the weights themselves
    decoder.map_linears(|linear| {
        let layout = linear.layout().clone();
        let mut own = Vec::new();
        for projection in layout.projections.iter().filter(|p| chosen(&p.name)) {
            stream += 1;
            let deviation = (layout.inputs as f32).sqrt().recip();
            let a = Tensor::from_fn(&[rank, layout.inputs], |i| {
                deviation * random::normal(seed, stream, i as u64)
            });
            let b = Tensor::new(&[projection.rows, rank], vec![0.0; projection.rows * rank]);
            own.push((projection.name.clone(), a, b, alpha / rank as f32));
        }
        if own.is_empty() {
            linear
        } else {
            Box::new(Lora::new(linear, own))
        }
    })
}

/// Writes the adapters of a decoder as a PEFT folder in `f32`.
///
/// # Errors
/// When the decoder has no adapters, or adapters of several ranks or scales; or the disk refuses.
pub fn save(decoder: &Decoder, base: &str, folder: &Path) -> Result<(), ModelError> {
    let parameters = decoder.parameters();
    let (mut tensors, mut modules, mut rank_and_scale) = (Vec::new(), Vec::new(), None);
    for parameter in &parameters {
        let ParameterKind::Adapter { scale } = parameter.kind else {
            continue;
        };
        let (name, _) = &parameter.parts[0];
        if let Some(module) = name.strip_suffix(".lora_A.weight") {
            let own = (parameter.tensor.dims2().0, scale);
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
        }
        let (rows, cols) = parameter.tensor.dims2();
        let (name, bytes) = (format!("{PREFIX}{name}"), parameter.tensor.bytes());
        tensors.push(Output {
            name,
            dtype: parameter.tensor.dtype(),
            shape: vec![rows, cols],
            bytes,
        });
    }
    let Some((rank, scale)) = rank_and_scale else {
        return Err(ModelError::file(
            folder,
            "the model has no adapters to write",
        ));
    };
    let settings = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": rank,
        "lora_alpha": scale * rank as f32, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": false,
        "target_modules": modules, "inference_mode": true, "use_rslora": false, "use_dora": false,
    });
    let path = folder.join("adapter_config.json");
    std::fs::write(&path, format!("{settings:#}\n"))
        .map_err(|error| ModelError::file(&path, error))?;
    stored::write(folder, "adapter_model", &tensors, usize::MAX)
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
