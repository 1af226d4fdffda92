//! Damaged and hostile folders: a checkpoint, an adapter and a package end in a sentence or load as what they still say, and never
//! panic, hang or take memory that the files do not have.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use half::f16;
use proptest::prelude::*;
use russet_kernels::palette::{self, Bits};
use russet_kernels::{Pool, int8};
use russet_model::package::{self, Package, PaletteTensors};
use russet_model::stored::{self, Output, Stored};
use russet_model::{Decoder, ModelError, ParameterKind, adapter, checkpoint};
use russet_tensor::{Ctx, Segments};
use serde_json::{Value, json};
use tempfile::TempDir;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../golden/models")
        .join(name)
}

/// A folder's files by name.
type Files = BTreeMap<String, Vec<u8>>;

fn read(folder: &Path) -> Files {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .filter(|entry| entry.path().is_file())
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.path()))
        .filter(|(name, _)| name != "expected.safetensors")
        .map(|(name, path)| (name, std::fs::read(path).unwrap()))
        .collect()
}

fn written(files: &Files) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

/// Puts palettes in place of a golden's matrices, and of its table where that is to have four bits, and writes the package.
fn small_package(four: bool) -> TempDir {
    let decoder = checkpoint::load(&golden("qwen3-gqa-tied")).unwrap();
    let (mut modules, mut tables, mut norms) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let parameters = decoder.parameters();
    for parameter in &parameters {
        for (name, rows) in &parameter.parts {
            let cols = *parameter.tensor.shape().last().unwrap();
            let module = name.trim_end_matches(".weight").to_owned();
            match parameter.kind {
                ParameterKind::Norm => drop(norms.insert(name.clone(), parameter.tensor.data())),
                ParameterKind::Embedding if four => {
                    drop(modules.insert(module, any_palette(Bits::Four, *rows, cols)));
                }
                ParameterKind::Embedding => {
                    let table = int8::quantize(*rows, cols, parameter.tensor.data()).unwrap();
                    tables.insert(module, table);
                }
                _ => {
                    let bits = Bits::ALL[modules.len() % Bits::ALL.len()];
                    drop(modules.insert(module, any_palette(bits, *rows, cols)));
                }
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let package = Package {
        config: decoder.config(),
        tables,
        modules,
        norms,
    };
    package::write(&package, folder.path()).unwrap();
    folder
}

fn any_palette(bits: Bits, rows: usize, cols: usize) -> PaletteTensors {
    let sizes = palette::sizes(bits, rows, cols).unwrap();
    let entries = bits.entries();
    let indices: Vec<u8> = (0..rows * bits.indices(cols))
        .map(|i| (i % entries) as u8)
        .collect();
    PaletteTensors {
        bits,
        indices: palette::pack(bits, rows, cols, &indices).unwrap(),
        palette: [-100, -30, 30, 100].repeat(sizes.palette / 4), // whole tables: all have a multiple of four entries
        scales: vec![f16::from_f32(0.01); sizes.scales],
    }
}

/// A kind of folder, whole, and how it is opened.
struct Case {
    name: &'static str,
    files: Files,
    open: fn(&Path) -> Result<Decoder, ModelError>,
}

fn base() -> Decoder {
    checkpoint::load(&golden("qwen3-gqa-tied")).unwrap()
}

static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    vec![
        Case {
            name: "checkpoint",
            files: read(&golden("qwen3-gqa-tied")),
            open: checkpoint::open,
        },
        Case {
            name: "sharded checkpoint",
            files: read(&golden("llama-gqa-sharded")),
            open: checkpoint::open,
        },
        Case {
            name: "package",
            files: read(small_package(false).path()),
            open: checkpoint::open,
        },
        Case {
            name: "package with a table of four bits",
            files: read(small_package(true).path()),
            open: checkpoint::open,
        },
        Case {
            name: "adapter",
            files: read(&golden("qwen3-gqa-tied/adapter")),
            open: |folder| adapter::attach(base(), folder, None),
        },
    ]
});

/// The files of a case that its loader reads.
fn chosen(case: &Case, file: usize) -> String {
    let names: Vec<&String> = case
        .files
        .keys()
        .filter(|name| *name != "generation_config.json")
        .collect();
    names[file % names.len()].clone()
}

#[test]
fn whole_they_open() {
    for case in CASES.iter() {
        let opened = (case.open)(written(&case.files).path());
        assert!(opened.is_ok(), "{}: {}", case.name, opened.err().unwrap());
    }
}

#[test]
fn a_missing_file_is_named() {
    for case in CASES.iter() {
        for file in 0..case.files.len() {
            let (mut files, name) = (case.files.clone(), chosen(case, file));
            files.remove(&name);
            let problem = (case.open)(written(&files).path()).err().unwrap();
            // Without its index a sharded folder is taken for one of a single file.
            let named = name.trim_end_matches(".index.json");
            assert!(
                problem.to_string().contains(named),
                "{} without {name}: {problem}",
                case.name
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_file_cut_short_is_refused(case in 0usize..5, file in 0usize..8, cut in 0.0..1.0f64) {
        let case = &CASES[case];
        let (mut files, name) = (case.files.clone(), chosen(case, file));
        let bytes = files.get_mut(&name).unwrap();
        // A JSON file may end in a line end that nothing misses.
        let whole = bytes.trim_ascii_end().len();
        bytes.truncate((whole as f64 * cut) as usize);
        let opened = (case.open)(written(&files).path());
        prop_assert!(opened.is_err(), "{}: {name} cut at {cut}", case.name);
        let problem = opened.err().unwrap().to_string();
        prop_assert!(problem.contains(&name), "{problem}");
    }

    /// In the weights a flipped bit is another weight; anywhere else it may be another model or none.
    #[test]
    fn a_flipped_bit_never_panics(case in 0usize..5, file in 0usize..8, at in 0.0..1.0f64, bit in 0u32..8, header in any::<bool>()) {
        let case = &CASES[case];
        let (mut files, name) = (case.files.clone(), chosen(case, file));
        let bytes = files.get_mut(&name).unwrap();
        // Half of the flips go where lengths, names, shapes and offsets stand.
        let reach = if header { bytes.len().min(2048) } else { bytes.len() };
        bytes[(reach as f64 * at) as usize] ^= 1 << bit;
        match (case.open)(written(&files).path()) {
            Err(problem) => prop_assert!(problem.to_string().len() > 20, "{problem}"),
            // What opens also runs; what it computes may be no number, which the engine refuses.
            Ok(decoder) => {
                let mut ctx = Ctx::new(Arc::new(Pool::new(1).unwrap()));
                let tokens = [0, decoder.config().vocab as u32 - 1];
                let hidden = decoder.forward(&mut ctx, &tokens, &Segments::packed(&[2]), None);
                decoder.logits(&mut ctx, &hidden);
            }
        }
    }

    #[test]
    fn other_sizes_than_the_files_have_are_refused(
        case in 0usize..4,
        key in prop::sample::select(vec![
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
            "intermediate_size",
        ]),
        other in prop::sample::select(vec![
            json!(0), json!(1), json!(2), json!(3), json!(6), json!(7), json!(4096), json!(65_536), json!(1u64 << 31), json!(1u64 << 32),
            json!(u64::MAX), json!(-1), json!(2.5), json!("8"), json!(null), json!([8]),
        ]),
    ) {
        let case = &CASES[case];
        let mut files = case.files.clone();
        let mut config: Value = serde_json::from_slice(&files["config.json"]).unwrap();
        // A null is a missing key, and two keys have a meaning then.
        prop_assume!(config[key] != other);
        prop_assume!(!(other.is_null() && ["head_dim", "num_key_value_heads"].contains(&key)));
        config[key] = other.clone();
        files.insert("config.json".into(), config.to_string().into_bytes());
        let opened = (case.open)(written(&files).path());
        prop_assert!(opened.is_err(), "{}: {key} {other}", case.name);
    }
}

/// A folder of a Llama with the given changes to its configuration and no tensors but the named ones, all zero.
fn hostile(changes: Value, tensors: &[(&str, [usize; 2])]) -> TempDir {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 16, "hidden_size": 4, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 4, "intermediate_size": 4,
        "max_position_embeddings": 64, "tie_word_embeddings": true, "rms_norm_eps": 1e-5,
    });
    let changes = changes.as_object().unwrap().clone();
    config.as_object_mut().unwrap().extend(changes);
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let start = end;
        end += 4 * shape[0] * shape[1];
        // Norms have one dim.
        let shape = if name.contains("norm") {
            &shape[1..]
        } else {
            &shape[..]
        };
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]});
        header.insert((*name).to_owned(), entry);
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + end, 0);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    folder
}

fn refused(folder: &TempDir, part: &str) {
    let problem = checkpoint::open(folder.path()).err().expect("a refusal");
    assert!(problem.to_string().contains(part), "{problem}");
}

#[test]
fn a_size_that_is_only_claimed_costs_no_memory() {
    // Its product of gate and up was once reserved whole, 2^35 weights, before anybody looked whether the file has one.
    let folder = hostile(
        json!({"intermediate_size": 1u64 << 32}),
        &[
            ("model.embed_tokens.weight", [16, 4]),
            ("model.layers.0.input_layernorm.weight", [1, 4]),
            ("model.layers.0.post_attention_layernorm.weight", [1, 4]),
            ("model.layers.0.self_attn.q_proj.weight", [4, 4]),
            ("model.layers.0.self_attn.k_proj.weight", [4, 4]),
            ("model.layers.0.self_attn.v_proj.weight", [4, 4]),
            ("model.layers.0.self_attn.o_proj.weight", [4, 4]),
        ],
    );
    refused(&folder, "`model.layers.0.mlp.gate_proj.weight` is missing");
}

#[test]
fn widths_that_wrap_around_to_nothing_are_refused() {
    // Heads of 2^32 by a width of 2^32 are 0 modulo 2^64: these projections without a row once fitted, and generating hung.
    let huge = 1u64 << 32;
    let folder = hostile(
        json!({"num_attention_heads": huge, "num_key_value_heads": huge, "head_dim": huge}),
        &[
            ("model.embed_tokens.weight", [16, 4]),
            ("model.norm.weight", [1, 4]),
            ("model.layers.0.input_layernorm.weight", [1, 4]),
            ("model.layers.0.post_attention_layernorm.weight", [1, 4]),
            ("model.layers.0.self_attn.q_proj.weight", [0, 4]),
            ("model.layers.0.self_attn.k_proj.weight", [0, 4]),
            ("model.layers.0.self_attn.v_proj.weight", [0, 4]),
            ("model.layers.0.self_attn.o_proj.weight", [4, 0]),
            ("model.layers.0.mlp.gate_proj.weight", [4, 4]),
            ("model.layers.0.mlp.up_proj.weight", [4, 4]),
            ("model.layers.0.mlp.down_proj.weight", [4, 4]),
        ],
    );
    refused(&folder, "`num_attention_heads` is 4294967296");
}

#[test]
fn a_package_of_unknown_making_is_refused() {
    let whole = read(small_package(false).path());
    for (change, part) in [
        (json!({"quant_method": "gptq"}), "gptq"),
        (json!({"version": 2}), "version"),
        (json!({"group_rows": 32}), "group_rows"),
        (json!({"act_order": true}), "act_order"),
        (json!({"modules": {}}), "does not list"),
        (
            json!({"modules": {"model.layers.0.self_attn.q_proj": {"bits": 5}}}),
            "q_proj",
        ),
        (
            json!({"modules": {"model.layers.0.self_attn.q_proj": {"bits": 2, "dims": 3}}}),
            "q_proj",
        ),
        (
            json!({"modules": {"model.layers.0.self_attn.q_proj": {"bits": 2, "dims": 2, "axis": 0}}}),
            "q_proj",
        ),
    ] {
        let mut files = whole.clone();
        let mut config: Value = serde_json::from_slice(&files["config.json"]).unwrap();
        let quantization = config["quantization_config"].as_object_mut().unwrap();
        quantization.extend(change.as_object().unwrap().clone());
        files.insert("config.json".into(), config.to_string().into_bytes());
        refused(&written(&files), part);
    }
}

#[test]
fn tensors_of_other_bits_than_are_claimed_are_refused_by_name() {
    let whole = read(small_package(true).path());
    let config: Value = serde_json::from_slice(&whole["config.json"]).unwrap();
    let modules = config["quantization_config"]["modules"]
        .as_object()
        .unwrap();
    let width = |settings: &Value| {
        let dims = settings
            .get("dims")
            .map_or(1, |dims| dims.as_u64().unwrap());
        Bits::new(settings["bits"].as_u64().unwrap() as usize, dims as usize).unwrap()
    };
    for (name, settings) in modules {
        let bits = width(settings);
        for other in Bits::ALL.into_iter().filter(|other| *other != bits) {
            let (mut files, mut config) = (whole.clone(), config.clone());
            config["quantization_config"]["modules"][name] =
                json!({"bits": other.bits(), "dims": other.dims()});
            files.insert("config.json".into(), config.to_string().into_bytes());
            refused(&written(&files), name);
        }
    }
    let said: Vec<Bits> = modules.values().map(width).collect();
    assert!(Bits::ALL.iter().all(|bits| said.contains(bits)), "{said:?}");
}

#[test]
fn a_table_of_other_bits_than_are_claimed_is_refused_by_name() {
    let table = "model.embed_tokens";
    let listed = |files: &Files, settings: Option<Value>| {
        let (mut files, bytes) = (files.clone(), &files["config.json"]);
        let mut config: Value = serde_json::from_slice(bytes).unwrap();
        let modules = config["quantization_config"]["modules"]
            .as_object_mut()
            .unwrap();
        match settings {
            Some(settings) => modules.insert(table.to_owned(), settings),
            None => modules.remove(table),
        };
        files.insert("config.json".into(), config.to_string().into_bytes());
        written(&files)
    };
    let [eight, four] = [false, true].map(|four| read(small_package(four).path()));
    refused(
        &listed(&eight, Some(json!({"bits": 4}))),
        "`model.embed_tokens.indices` is missing",
    );
    refused(
        &listed(&four, None),
        "`model.embed_tokens.values` is missing",
    );
    refused(
        &listed(&eight, Some(json!({"bits": 8}))),
        "the settings of module `model.embed_tokens` are {\"bits\":8}",
    );
    // Both forms at once: one of them nobody asked for.
    let mut both = small_package(true);
    let config = std::fs::read(both.path().join("config.json")).unwrap();
    let mut stored = Stored::open(both.path(), "model").unwrap();
    let mut names: Vec<String> = stored.names().map(str::to_owned).collect();
    names.push(format!("{table}.values"));
    let tensors: Vec<(String, russet_tensor::Tensor)> = names
        .into_iter()
        .map(|name| match stored.shape(&name).map(<[usize]>::to_vec) {
            Some(shape) => (name.clone(), stored.take(&name, &shape).unwrap()),
            None => (name, russet_tensor::Tensor::new(&[1], vec![0.0])),
        })
        .collect();
    let outputs: Vec<Output> = tensors
        .iter()
        .map(|(name, tensor)| Output {
            name: name.clone(),
            dtype: tensor.dtype(),
            shape: tensor.shape().to_vec(),
            bytes: tensor.bytes(),
        })
        .collect();
    both = tempfile::tempdir().unwrap();
    std::fs::write(both.path().join("config.json"), config).unwrap();
    stored::write(both.path(), "model", &outputs, usize::MAX).unwrap();
    refused(&both, "`model.embed_tokens.values` is not part");
}
