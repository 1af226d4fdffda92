//! `convert` to GGUF and back, as a user calls it.

mod common;

use common::{exits, fields, golden, ok};
use std::path::Path;

/// The stories of llama2.c as a Hugging Face folder.
fn stories(dir: &Path) {
    let model = golden("stories260K/stories260K.bin");
    let from = ["convert", "--from", "llama2c", "--to", "hf", "--in"];
    ok(
        dir,
        &[&from[..], &[model.to_str().unwrap(), "--out", "stories"]].concat(),
    );
}

const TO: [&str; 7] = ["convert", "--from", "hf", "--to", "gguf", "--in", "stories"];
const BACK: [&str; 5] = ["convert", "--from", "gguf", "--to", "hf"];

fn generated(dir: &Path, model: &str) -> serde_json::Value {
    let prompt = [
        "generate",
        "--prompt",
        "Once upon a time",
        "--temperature",
        "0",
        "--max-tokens",
        "40",
    ];
    ok(dir, &[&prompt[..], &["--json", "--model", model]].concat()).json()["token_ids"].clone()
}

#[test]
fn a_model_comes_back_from_gguf_and_says_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    stories(dir);
    let made = ok(
        dir,
        &[&TO[..], &["--type", "f32", "--out", "s.gguf", "--json"]].concat(),
    )
    .json();
    fields(
        &made,
        &[
            "out",
            "parameters",
            "vocab",
            "layers",
            "bytes",
            "types",
            "requantized",
        ],
    );
    assert_eq!(
        made["bytes"],
        std::fs::metadata(dir.join("s.gguf")).unwrap().len()
    );
    assert_eq!(
        (&made["requantized"], &made["types"]["F32"]),
        (&false.into(), &47.into())
    );
    ok(
        dir,
        &[&BACK[..], &["--in", "s.gguf", "--out", "back"]].concat(),
    );
    assert_eq!(generated(dir, "stories"), generated(dir, "back"));
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    assert_eq!(
        read("stories/model.safetensors"),
        read("back/model.safetensors")
    );
    assert_eq!(read("stories/tokenizer.json"), read("back/tokenizer.json"));
    let card = std::fs::read_to_string(dir.join("back/README.md")).unwrap();
    assert!(card.contains("a GGUF file"), "{card}");
    // The same file once more, and over itself.
    let first = read("s.gguf");
    ok(
        dir,
        &[&TO[..], &["--type", "f32", "--out", "s.gguf"]].concat(),
    );
    assert_eq!(first, read("s.gguf"));
    // Quantized, it is smaller and still a model.
    for (kind, most) in [("f16", 560_000), ("q8_0", 400_000), ("q4_k", 400_000)] {
        let out = format!("{kind}.gguf");
        ok(dir, &[&TO[..], &["--type", kind, "--out", &out]].concat());
        assert!(read(&out).len() < most, "{kind}: {}", read(&out).len());
        ok(dir, &[&BACK[..], &["--in", &out, "--out", kind]].concat());
        assert_eq!(generated(dir, kind).as_array().unwrap().len(), 40, "{kind}");
    }
}

#[test]
fn what_makes_no_sense_is_a_usage_error_and_broken_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    stories(dir);
    ok(dir, &[&TO[..], &["--out", "s.gguf"]].concat());
    let says = |code: i32, arguments: &[&str], wanted: &str| {
        let ran = exits(dir, code, arguments);
        assert!(
            ran.stderr.contains(wanted),
            "{} should say {wanted}",
            ran.stderr
        );
    };
    let bin = golden("stories260K/stories260K.bin");
    let bin = bin.to_str().unwrap();
    says(
        2,
        &[
            "convert", "--from", "llama2c", "--to", "gguf", "--in", bin, "--out", "x.gguf",
        ],
        "--to hf first",
    );
    says(
        2,
        &[
            "convert", "--from", "gguf", "--to", "gguf", "--in", "s.gguf", "--out", "x.gguf",
        ],
        "--to hf first",
    );
    says(
        2,
        &[&BACK[..], &["--in", "stories", "--out", "x"]].concat(),
        "write --from hf",
    );
    says(
        2,
        &[
            "convert", "--from", "hf", "--to", "hf", "--in", "s.gguf", "--out", "x",
        ],
        "--from gguf",
    );
    says(
        2,
        &[
            &BACK[..],
            &["--in", "s.gguf", "--out", "x", "--type", "f16"],
        ]
        .concat(),
        "leave it out",
    );
    says(
        2,
        &[&TO[..], &["--out", "stories"]].concat(),
        "name it, as in stories/model.gguf",
    );
    says(
        1,
        &[&TO[..], &["--out", "nowhere/x.gguf"]].concat(),
        "make it first",
    );
    says(
        1,
        &[&BACK[..], &["--in", "nothing.gguf", "--out", "x"]].concat(),
        "no such file",
    );
    std::fs::write(dir.join("letter"), "of love").unwrap();
    says(1, &[&TO[..], &["--out", "letter"]].concat(), "not replaced");
    says(
        1,
        &[&BACK[..], &["--in", "letter", "--out", "x"]].concat(),
        "does not begin as a GGUF file",
    );
    let whole = std::fs::read(dir.join("s.gguf")).unwrap();
    std::fs::write(dir.join("cut.gguf"), &whole[..whole.len() / 2]).unwrap();
    says(
        1,
        &[&BACK[..], &["--in", "cut.gguf", "--out", "x"]].concat(),
        "truncated",
    );
    assert!(!dir.join("x").exists());
    let left: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(
        left.iter()
            .all(|name| !name.to_string_lossy().starts_with('.')),
        "{left:?}"
    );
}
