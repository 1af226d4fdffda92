//! The smallest valid files of each kind, made by our own writers, for the corpora to start from.

use half::f16;
use russet_kernels::{Isa, Pool, int8, palette};
use russet_model::config::RopeScaling;
use russet_model::gguf::{self, GgufType};
use russet_model::package::{Package, PaletteTensors};
use russet_model::{Config, Decoder, Family, ParameterKind, Weights, adapter, checkpoint, package};
use russet_tokenizer::{TrainConfig, train};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A small text file (settings) and the file it speaks of.
pub struct Files {
    pub config: Vec<u8>,
    pub weights: Vec<u8>,
    /// Names of the tensors, in order.
    pub names: Vec<String>,
}

fn config() -> Config {
    Config {
        family: Family::Qwen3,
        vocab: 5,
        width: 4,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        head_dim: 2,
        ffn: 3,
        norm_epsilon: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        attention: Default::default(),
        context: 8,
        tied: true,
        bos: None,
        eos: vec![0],
    }
}

/// The decoder that the files below describe.
pub fn decoder() -> Decoder {
    Decoder::random(&config(), 1)
}

/// A dense checkpoint.
pub fn checkpoint() -> Files {
    let decoder = decoder();
    let names = decoder
        .parameters()
        .into_iter()
        .flat_map(|p| p.parts)
        .map(|(name, _)| name)
        .collect();
    written(names, "config.json", "model.safetensors", |folder| {
        checkpoint::save(&decoder, folder).expect("a checkpoint can be written");
    })
}

/// A palettized package of every number of bits, all indices and entries zero.
pub fn package() -> Files {
    let (config, decoder) = (config(), decoder());
    let parameters = decoder.parameters();
    let (mut tables, mut norms, mut modules) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for parameter in &parameters {
        let name = &parameter.parts[0].0;
        match parameter.kind {
            ParameterKind::Norm => drop(norms.insert(name.clone(), parameter.tensor.data())),
            ParameterKind::Embedding => {
                let (rows, cols) = parameter.tensor.dims2();
                let table = int8::quantize(rows, cols, parameter.tensor.data())
                    .expect("a table can be quantized");
                tables.insert(name.trim_end_matches(".weight").to_owned(), table);
            }
            _ => {}
        }
    }
    let mut widths = palette::Bits::ALL.into_iter().cycle();
    for layout in decoder.linears().map(|linear| linear.layout()) {
        for projection in &layout.projections {
            let (rows, cols) = (projection.rows, layout.inputs);
            let bits = widths.next().expect("they begin again");
            let sizes = palette::sizes(bits, rows, cols).expect("the sizes are small");
            let indices = palette::pack(bits, rows, cols, &vec![0; rows * cols]).expect("they fit");
            let tensors = PaletteTensors {
                bits,
                indices,
                palette: vec![0; sizes.palette],
                scales: vec![f16::ONE; sizes.scales],
            };
            modules.insert(projection.name.clone(), tensors);
        }
    }
    written(Vec::new(), "config.json", "model.safetensors", |folder| {
        let package = Package {
            config: &config,
            tables,
            modules,
            norms,
        };
        package::write(&package, folder).expect("a package can be written");
    })
}

/// GGUF files of a smallest decoder of each family, in F32, and of one in Q8_0 and Q4_0.
pub fn gguf() -> Vec<(&'static str, Vec<u8>)> {
    let (mut wide, mut llama) = (config(), config());
    (wide.width, wide.ffn, wide.head_dim) = (32, 32, 16);
    llama.family = Family::Llama;
    let pool = Pool::with_isa(1, Isa::Scalar);
    let kinds = [
        ("qwen3", config(), GgufType::F32),
        ("llama", llama, GgufType::F16),
        ("q8_0", wide.clone(), GgufType::Q8_0),
        ("q4_0", wide, GgufType::Q4_0),
    ];
    kinds
        .into_iter()
        .map(|(name, config, kind)| {
            let folder = crate::scratch().join("tiny-gguf");
            std::fs::create_dir_all(&folder).expect("the scratch folder takes folders");
            let decoder = Decoder::random(&config, 1);
            checkpoint::save(&decoder, &folder).expect("a checkpoint can be written");
            let path = folder.join("model.gguf");
            let mut weights = Weights::open(&folder).expect("it was just written");
            gguf::decoder::export(&pool, &mut weights, kind, &path, |_| ())
                .expect("a file can be written");
            let bytes = std::fs::read(&path).expect("the writer wrote it");
            std::fs::remove_dir_all(&folder).expect("it can be removed");
            (name, bytes)
        })
        .collect()
}

/// A LoRA adapter of rank 1 on every projection.
pub fn adapter() -> Files {
    let decoder = adapter::attach_new(decoder(), 1, 2.0, 1, |_| true);
    written(
        Vec::new(),
        "adapter_config.json",
        "adapter_model.safetensors",
        |folder| {
            adapter::save(&decoder, "base", folder).expect("an adapter can be written");
        },
    )
}

/// `tokenizer_config.json` and `tokenizer.json` of the smallest vocabulary.
pub fn tokenizer() -> Files {
    let text = "Once upon a time there was a little girl. Once upon a time, 12 o'clock. ".repeat(3);
    let settings = TrainConfig {
        vocab_size: 300,
        min_frequency: 2,
        alphabet_min_frequency: 1,
    };
    let tokenizer = train(&settings, [Ok(text)]).expect("a tokenizer can be trained");
    written(
        Vec::new(),
        "tokenizer_config.json",
        "tokenizer.json",
        |folder| {
            tokenizer.save(folder).expect("a tokenizer can be saved");
        },
    )
}

fn written(names: Vec<String>, config: &str, weights: &str, write: impl FnOnce(&Path)) -> Files {
    let folder: PathBuf = crate::scratch().join("tiny");
    std::fs::create_dir_all(&folder).expect("the scratch folder takes folders");
    write(&folder);
    let read = |name: &str| std::fs::read(folder.join(name)).expect("the writer wrote it");
    let files = Files {
        config: read(config),
        weights: read(weights),
        names,
    };
    std::fs::remove_dir_all(&folder).expect("it can be removed");
    files
}
