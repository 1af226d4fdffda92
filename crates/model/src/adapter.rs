//! Adapters: PEFT folders of low-rank matrices (`adapter_config.json`, `adapter_model.safetensors`).

use std::collections::BTreeMap;
use std::path::Path;

use russet_kernels::random;
use russet_tensor::Tensor;
use serde_json::{Value, json};

use crate::stored::{self, Output, Stored};
use crate::{Decoder, Linear, Lora, ModelError, ParameterKind};

/// What PEFT puts before a module's name.
const PREFIX: &str = "base_model.model.";

/// Puts the adapter in `folder` onto a decoder.
///
/// # Errors
/// When a file is missing or damaged, a setting is not understood, or a shape does not fit this decoder.
pub fn attach(decoder: Decoder, folder: &Path) -> Result<Decoder, ModelError> {
    let path = folder.join("adapter_config.json");
    let settings = crate::config::read_json(&path)?;
    let settings =
        Settings::parse(&settings).map_err(|problem| ModelError::file(&path, problem))?;
    let mut stored = Stored::open_file(&folder.join("adapter_model.safetensors"))?;
    let mut adapters: BTreeMap<String, (String, Tensor, Tensor, f32)> = BTreeMap::new();
    for linear in decoder.linears() {
        let layout = linear.layout();
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
            adapters.insert(name.clone(), (name.clone(), a, b, settings.scale(name)));
        }
    }
    stored.finish()?;
    if adapters.is_empty() {
        return Err(ModelError::file(
            &path,
            "the adapter has no matrices, so it would change nothing",
        ));
    }
    Ok(decoder.map_linears(|linear| {
        let names: Vec<String> = linear
            .layout()
            .projections
            .iter()
            .map(|p| p.name.clone())
            .collect();
        let own: Vec<_> = names
            .iter()
            .filter_map(|name| adapters.remove(name))
            .collect();
        if own.is_empty() {
            linear
        } else {
            Box::new(Lora::new(linear, own))
        }
    }))
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
    root: bool, // scaled by the root of the rank (rsLoRA)
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
        let off = |key: &str| {
            json.get(key).is_none_or(|v| {
                v.is_null() || v == &json!(false) || v == &json!([]) || v == &json!({})
            })
        };
        for key in [
            "use_dora",
            "fan_in_fan_out",
            "lora_bias",
            "modules_to_save",
            "use_qalora",
        ] {
            if !off(key) {
                return Err(format!("`{key}` is set, which Russet does not know"));
            }
        }
        if json.get("bias").is_some_and(|bias| bias != &json!("none")) {
            return Err(format!(
                "`bias` is {}, but Russet's layers have no biases",
                json["bias"]
            ));
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
        let object = |key: &str| {
            json.get(key)
                .and_then(Value::as_object)
                .cloned()
                .unwrap_or_default()
        };
        Ok(Settings {
            rank: rank(json.get("r").unwrap_or(&Value::Null))?,
            alpha: number(json.get("lora_alpha").unwrap_or(&Value::Null))?,
            root: json.get("use_rslora") == Some(&json!(true)),
            ranks: object("rank_pattern")
                .iter()
                .map(|(k, v)| Ok((k.clone(), rank(v)?)))
                .collect::<Result<_, String>>()?,
            alphas: object("alpha_pattern")
                .iter()
                .map(|(k, v)| Ok((k.clone(), number(v)?)))
                .collect::<Result<_, String>>()?,
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

/// PEFT matches a pattern against the end of a module's name, at a dot.
fn matching<T: Copy>(patterns: &BTreeMap<String, T>, module: &str) -> Option<T> {
    let fits = |pattern: &str| module == pattern || module.ends_with(&format!(".{pattern}"));
    patterns
        .iter()
        .find(|(pattern, _)| fits(pattern))
        .map(|(_, &value)| value)
}
