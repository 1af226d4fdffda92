//! Logits against `transformers` on the same weights. The goldens in `golden/models` are made by `golden/make_models.py`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use russet_kernels::{Isa, Pool};
use russet_model::{Decoder, adapter, checkpoint};
use russet_tensor::{Ctx, Segments};
use safetensors::SafeTensors;

/// What `transformers` and we may differ by: rounding alone moves these logits by 1e-5 (measured by the maker), the mildest
/// mistake tried, an epsilon of 1e-5 for 1e-6, by 4e-4.
const TOLERANCE: f32 = 2e-4;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../golden/models")
        .join(name)
}

/// Compares the logits of both sequences, packed into one batch, with the expected ones.
fn check(decoder: &Decoder, expected: &Path) {
    let bytes = std::fs::read(expected).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tokens = file.tensor("tokens").unwrap();
    let tokens: Vec<u32> = tokens
        .data()
        .as_chunks()
        .0
        .iter()
        .map(|&b| i64::from_le_bytes(b) as u32)
        .collect();
    let logits = file.tensor("logits").unwrap();
    let logits: Vec<f32> = logits
        .data()
        .as_chunks()
        .0
        .iter()
        .map(|&b| f32::from_le_bytes(b))
        .collect();
    for isa in [Isa::Scalar, Isa::detect().unwrap()] {
        let mut ctx = Ctx::new(Arc::new(Pool::with_isa(2, isa)));
        let segments = Segments::packed(&[tokens.len() / 2; 2]);
        let hidden = decoder.forward(&mut ctx, &tokens, &segments, None);
        let got = decoder.logits(&mut ctx, &hidden);
        assert_eq!(got.len(), logits.len());
        let worst = got
            .data()
            .iter()
            .zip(&logits)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(
            worst <= TOLERANCE,
            "{}: off by {worst} on {isa:?}",
            expected.display()
        );
    }
}

fn check_model(name: &str) {
    let folder = golden(name);
    check(
        &checkpoint::load(&folder).unwrap(),
        &folder.join("expected.safetensors"),
    );
}

#[test]
fn qwen3_with_grouped_queries_and_tied_tables() {
    check_model("qwen3-gqa-tied");
}

#[test]
fn qwen3_with_all_heads_and_its_own_output_table() {
    check_model("qwen3-mha-untied");
}

#[test]
fn qwen3_in_bf16() {
    check_model("qwen3-bf16");
}

#[test]
fn llama_with_grouped_queries_and_tied_tables_in_bf16() {
    check_model("llama-gqa-tied");
}

#[test]
fn llama_with_all_heads_and_its_own_output_table_in_f16() {
    check_model("llama-mha-untied");
}

#[test]
fn llama_in_two_shards() {
    check_model("llama-gqa-sharded");
}

#[test]
fn llama_with_scaled_rotation() {
    check_model("llama-rope-scaling");
}

#[test]
fn qwen3_with_windows_in_listed_layers() {
    check_model("qwen3-sliding");
}

#[test]
fn qwen3_with_windows_in_the_last_layers() {
    check_model("qwen3-sliding-last");
}

/// A window off by one is seen.
#[test]
fn the_bound_of_a_window_is_that_of_transformers() {
    let folder = golden("qwen3-sliding");
    let decoder = checkpoint::load(&folder).unwrap();
    let other = tempfile::tempdir().unwrap();
    checkpoint::save(&decoder, other.path()).unwrap();
    let path = other.path().join("config.json");
    let json = std::fs::read_to_string(&path).unwrap();
    for window in [4, 6] {
        let window = format!("\"sliding_window\": {window}");
        std::fs::write(&path, json.replace("\"sliding_window\": 5", &window)).unwrap();
        let off = checkpoint::load(other.path()).unwrap();
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            check(&off, &folder.join("expected.safetensors"));
        }));
        assert!(checked.is_err(), "{window} passes for 5");
    }
}

#[test]
fn a_peft_adapter_equals_the_merged_model() {
    let folder = golden("qwen3-gqa-tied");
    let decoder = adapter::attach(
        checkpoint::load(&folder).unwrap(),
        &folder.join("adapter"),
        None,
    )
    .unwrap();
    check(&decoder, &folder.join("adapter/expected.safetensors"));
}

#[test]
fn what_is_saved_reads_back_to_the_bit() {
    for name in [
        "qwen3-gqa-tied",
        "qwen3-mha-untied",
        "llama-mha-untied",
        "qwen3-sliding",
        "qwen3-sliding-last",
    ] {
        let decoder = checkpoint::load(&golden(name)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        checkpoint::save(&decoder, folder.path()).unwrap();
        let again = checkpoint::load(folder.path()).unwrap();
        assert_eq!(decoder.config(), again.config());
        for (a, b) in decoder.parameters().iter().zip(again.parameters()) {
            assert_eq!((&a.parts, a.tensor.data()), (&b.parts, b.tensor.data()));
        }
    }
}

#[test]
fn a_saved_adapter_reads_back_to_the_bit() {
    let folder = golden("qwen3-gqa-tied");
    let decoder = adapter::attach(
        checkpoint::load(&folder).unwrap(),
        &folder.join("adapter"),
        None,
    )
    .unwrap();
    let out = tempfile::tempdir().unwrap();
    adapter::save(&decoder, "base", out.path()).unwrap();
    let again = adapter::attach(checkpoint::load(&folder).unwrap(), out.path(), None).unwrap();
    check(&again, &folder.join("adapter/expected.safetensors"));
}
