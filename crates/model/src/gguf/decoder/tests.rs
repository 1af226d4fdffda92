use super::*;
use russet_kernels::{Isa, Pool};
use std::path::PathBuf;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../golden/models")
        .join(name)
}

fn pool() -> Pool {
    Pool::with_isa(1, Isa::Scalar)
}

const MODELS: [&str; 7] = [
    "qwen3-gqa-tied",
    "qwen3-mha-untied",
    "qwen3-bf16",
    "llama-gqa-tied",
    "llama-mha-untied",
    "llama-gqa-sharded",
    "llama-rope-scaling",
];

fn exported(name: &str, kind: GgufType) -> (Config, Vec<u8>, Exported) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mut weights = Weights::open(&golden(name)).unwrap();
    let config = weights.config().clone();
    let done = export(&pool(), &mut weights, kind, &path, |_| ()).unwrap();
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(bytes.len() as u64, done.bytes);
    (config, bytes, done)
}

#[test]
fn every_golden_model_comes_back_as_it_was() {
    for name in MODELS {
        let (config, bytes, _) = exported(name, GgufType::F32);
        let gguf = Gguf::parse(&bytes).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let found = Config {
            bos: config.bos,
            eos: config.eos.clone(),
            ..super::config(&gguf).unwrap()
        };
        assert_eq!(found, config, "{name}");
        import(&gguf, &config, Path::new("x.gguf"), folder.path()).unwrap();
        let mut before = Weights::open(&golden(name)).unwrap();
        let mut after = Weights::open(folder.path()).unwrap();
        for (tensor, shape) in before.tensors().unwrap() {
            let wanted = before.take(&pool(), &tensor, &shape).unwrap();
            let found = after.take(&pool(), &tensor, &shape).unwrap();
            assert_eq!(wanted, found, "{name} {tensor}");
        }
    }
}

/// llama.cpp would see the whole context, or miss tensors.
#[test]
fn what_llama_cpp_has_not_is_not_written() {
    let refused = |folder: &Path, key: &str| {
        let mut weights = Weights::open(folder).unwrap();
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("model.gguf");
        let problem = export(&pool(), &mut weights, GgufType::F32, &path, |_| ()).unwrap_err();
        assert!(problem.to_string().contains(key), "{problem}");
        assert!(!path.exists());
    };
    refused(&golden("qwen3-sliding"), "`sliding_window` = 5");
    let folder = tempfile::tempdir().unwrap();
    let config = Config {
        attention: Attention::new(0, Vec::new(), 1),
        ..Config::open(&golden("qwen3-sliding")).unwrap()
    };
    checkpoint::save(&Decoder::random(&config, 1), folder.path()).unwrap();
    refused(folder.path(), "`num_kv_shared_layers` = 1");
}

#[test]
fn heads_of_llama_are_turned_and_those_of_qwen_are_not() {
    let numbers: Vec<f32> = (0..16).map(|i| i as f32).collect(); // two heads of four rows of two
    let turned = pairs_together(&numbers, 4, 2);
    assert_eq!(turned[..8], [0., 1., 4., 5., 2., 3., 6., 7.]);
    assert_eq!(halves_apart(&turned, 4, 2), numbers);
    for (name, same) in [("qwen3-gqa-tied", true), ("llama-gqa-sharded", false)] {
        let (config, bytes, _) = exported(name, GgufType::F32);
        let gguf = Gguf::parse(&bytes).unwrap();
        let mut weights = Weights::open(&golden(name)).unwrap();
        for part in ["q", "k", "v"] {
            let rows = if part == "q" {
                config.heads
            } else {
                config.kv_heads
            } * config.head_dim;
            let ours = format!("model.layers.0.self_attn.{part}_proj.weight");
            let ours = weights.take(&pool(), &ours, &[rows, config.width]).unwrap();
            let there = gguf
                .tensor_f32(&format!("blk.0.attn_{part}.weight"))
                .unwrap();
            assert_eq!(there == ours, same || part == "v", "{name} {part}");
        }
    }
}

#[test]
fn rows_that_are_no_whole_blocks_get_a_wider_type() {
    let matrix = "model.layers.0.mlp.up_proj.weight";
    let table = "model.embed_tokens.weight";
    for (kind, name, columns, wanted) in [
        (GgufType::Q4K, matrix, 512, GgufType::Q4K),
        (GgufType::Q4K, matrix, 704, GgufType::Q8_0),
        (GgufType::Q4K, matrix, 40, GgufType::F16),
        (GgufType::Q4_0, matrix, 704, GgufType::Q4_0),
        (GgufType::Q4_0, table, 512, GgufType::Q8_0),
        (GgufType::Q8_0, table, 512, GgufType::Q8_0),
        (GgufType::F16, table, 40, GgufType::F16),
        (GgufType::BF16, matrix, 7, GgufType::BF16),
    ] {
        assert_eq!(
            stored_as(kind, name, &[3, columns]),
            wanted,
            "{kind:?} {columns}"
        );
    }
    assert_eq!(
        stored_as(GgufType::Q4K, "model.norm.weight", &[512]),
        GgufType::F32
    );
}

#[test]
fn types_are_counted() {
    let (config, _, done) = exported("qwen3-mha-untied", GgufType::F16);
    let norms = config.layers * 4 + 1;
    assert_eq!(
        done.types,
        [
            (GgufType::F32, norms),
            (GgufType::F16, config.layers * 7 + 2)
        ]
    );
}

#[test]
fn entries_and_tensors_that_contradict_are_refused() {
    let (config, bytes, _) = exported("qwen3-gqa-tied", GgufType::F32);
    let changed = |from: &[u8], to: &[u8]| {
        let mut bytes = bytes.clone();
        let at = bytes
            .windows(from.len())
            .position(|w| w == from)
            .expect("it is there");
        bytes[at..at + to.len()].copy_from_slice(to);
        match Gguf::parse(&bytes) {
            Ok(gguf) => load(&gguf).map(drop).unwrap_err(),
            Err(problem) => problem,
        }
    };
    let number = |key: &str, value: usize| {
        [
            key.as_bytes(),
            &4u32.to_le_bytes(),
            &(value as u32).to_le_bytes(),
        ]
        .concat()
    };
    let heads = number("qwen3.attention.head_count", config.heads);
    for (from, to, wanted) in [
        (b"qwen3".to_vec(), b"gemma".to_vec(), "gemma"),
        (heads, number("qwen3.attention.head_count", 3), "shared out"),
        (
            number("qwen3.block_count", config.layers),
            number("qwen3.block_count", 1 << 31),
            "weights",
        ),
        (
            number("qwen3.block_count", config.layers),
            number("qwen3.block_count", config.layers + 1),
            "is missing",
        ),
        (
            number("qwen3.block_count", config.layers),
            number("qwen3.block_count", config.layers - 1),
            "not part of the architecture",
        ),
        (
            number("qwen3.feed_forward_length", config.ffn),
            number("qwen3.feed_forward_length", config.ffn - 1),
            "has the shape",
        ),
        (
            number("qwen3.attention.value_length", config.head_dim),
            number("qwen3.attention.value_length", 2),
            "of one width",
        ),
        (
            b"qwen3.context_length".to_vec(),
            b"qwen3.context_Length".to_vec(),
            "is missing",
        ),
    ] {
        let problem = changed(&from, &to);
        assert!(problem.contains(wanted), "{problem} should say {wanted}");
    }
}

#[test]
fn a_loaded_decoder_has_the_golden_logits() {
    use russet_tensor::{Ctx, Segments};
    let (_, bytes, _) = exported("llama-gqa-tied", GgufType::F32);
    let decoder = load(&Gguf::parse(&bytes).unwrap()).unwrap();
    let original = checkpoint::load(&golden("llama-gqa-tied")).unwrap();
    let mut ctx = Ctx::new(std::sync::Arc::new(pool()));
    let tokens = [1, 2, 3, 4];
    let mut logits = |decoder: &Decoder| {
        let hidden = decoder.forward(&mut ctx, &tokens, &Segments::packed(&[4]), None);
        decoder.logits(&mut ctx, &hidden).data().to_vec()
    };
    assert_eq!(logits(&decoder), logits(&original));
}
