//! Token shards: what is written is read, what is broken is refused.

mod common;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::LazyLock;

use common::{TRAINED, small, tales};
use proptest::prelude::*;
use russet_tokenizer::{
    Progress, ShardWriter, TokenShard, Tokenizer, TokenizerError, encode_stage, read_texts,
    train_stage,
};
use serde_json::{Map, json};

fn write(path: &Path, tokenizer: &Tokenizer, documents: &[(Vec<u32>, u64)]) {
    let mut writer = ShardWriter::create(path, tokenizer).unwrap();
    for (ids, bytes) in documents {
        writer.push(ids, *bytes).unwrap();
    }
    let summary = writer.finish().unwrap();
    assert_eq!(summary.documents, documents.len() as u64);
}

fn check(tokenizer: &Tokenizer, documents: &[(Vec<u32>, u64)]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tokens.safetensors");
    write(&path, tokenizer, documents);
    let shard = TokenShard::open(&path).unwrap();
    assert_eq!(shard.documents(), documents.len());
    assert_eq!(shard.vocab_size(), tokenizer.vocab_size());
    assert_eq!(shard.tokenizer_blake3(), tokenizer.blake3());
    let mut all = Vec::new();
    for (i, (ids, bytes)) in documents.iter().enumerate() {
        let mut expected = ids.clone();
        expected.push(shard.end_of_text());
        let range = shard.document(i);
        assert_eq!(range, all.len()..all.len() + expected.len());
        let mut got = vec![0; range.len()];
        shard.copy_into(range.clone(), &mut got).unwrap();
        assert_eq!(got, expected);
        assert_eq!(shard.document_bytes(i), *bytes);
        assert_eq!(shard.document_of(range.start), i);
        assert_eq!(shard.document_of(range.end - 1), i);
        all.extend(expected);
    }
    assert_eq!(shard.tokens(), all.len());
    assert!((0..all.len()).all(|i| shard.get(i) == all[i]));
    assert_eq!(
        shard.summary().bytes,
        documents.iter().map(|d| d.1).sum::<u64>()
    );
    assert!(
        shard
            .copy_into(0..all.len() + 1, &mut vec![0; all.len() + 1])
            .is_err()
    );
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        1,
        "a temporary file is left"
    );
}

/// A tokenizer with more ids than two bytes hold.
fn wide() -> Tokenizer {
    let mut vocab = Map::new();
    for byte in 0..256 {
        vocab.insert(format!("<0x{byte:02X}>"), json!(byte));
    }
    for id in 256..70_000 {
        vocab.insert(format!("t{id}"), json!(id));
    }
    let file = json!({"version": "1.0", "added_tokens": [{"id": 70_000, "content": "<|endoftext|>", "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false, "special": true}], "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": {"type": "ByteFallback"},
        "model": {"type": "BPE", "byte_fallback": true, "vocab": vocab, "merges": []}});
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    Tokenizer::open(dir.path()).unwrap()
}

#[test]
fn what_is_written_is_read() {
    check(
        &TRAINED,
        &[(vec![5, 6, 1023], 7), (vec![], 0), (vec![4], 1)],
    );
    check(&TRAINED, &[(vec![9; 5000], 12_345)]);
    check(&TRAINED, &[]);
    let wide = wide();
    assert_eq!(wide.vocab_size(), 70_001);
    check(&wide, &[(vec![69_999, 0, 65_536], 3), (vec![70_000], 1)]);
}

#[test]
fn any_safetensors_reader_sees_the_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tokens.safetensors");
    write(&path, &TRAINED, &[(vec![7, 8], 5), (vec![9], 2)]);
    let bytes = std::fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("tokens").unwrap().shape(), [5]);
    assert_eq!(
        file.tensor("tokens").unwrap().data(),
        [7, 0, 8, 0, 0, 0, 9, 0, 0, 0]
    );
    assert_eq!(file.tensor("documents").unwrap().shape(), [3]);
    assert_eq!(
        file.tensor("bytes").unwrap().data(),
        [5, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]
    );
}

#[test]
fn an_unfinished_shard_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tokens.safetensors");
    let mut writer = ShardWriter::create(&path, &TRAINED).unwrap();
    writer.push(&[1, 2], 3).unwrap();
    let error = writer.push(&[1024], 3).unwrap_err().to_string();
    assert!(error.contains("1024"), "{error}");
    drop(writer);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn damaged_shards_are_refused_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tokens.safetensors");
    write(&path, &TRAINED, &[(vec![7, 8], 5), (vec![9], 2)]);
    let good = std::fs::read(&path).unwrap();
    let damage = |change: &dyn Fn(&mut Vec<u8>), says: &str| {
        let mut bytes = good.clone();
        change(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        let error = match TokenShard::open(&path) {
            Err(error) => error.to_string(),
            Ok(shard) => shard.copy_into(0..5, &mut [0; 5]).unwrap_err().to_string(),
        };
        assert!(
            error.contains("a.tokens.safetensors") && error.contains(says),
            "{error}"
        );
    };
    let replace = |from: &'static str, to: &'static str| {
        move |bytes: &mut Vec<u8>| {
            let text = String::from_utf8_lossy(&bytes[8..1024]).replacen(from, to, 1);
            let text = format!("{:<1016}", text.trim_end());
            bytes.splice(8..1024, text.into_bytes());
        }
    };
    let tokens = 1024; // where the data starts
    damage(&|b| b.truncate(100), "safetensors");
    damage(&|b| b.truncate(b.len() - 8), "safetensors");
    damage(&|b| b.clear(), "empty");
    damage(&|b| b[7] = 0xff, "safetensors");
    damage(&replace("russet.tokens", "russet.others"), "format");
    damage(&replace("\"1\"", "\"2\""), "version");
    damage(&replace("\"1024\"", "\"many\""), "vocab_size");
    damage(&replace("\"1024\"", "\"8\""), "outside its vocabulary of 8");
    damage(&replace("\"U16\"", "\"I16\""), "I16");
    damage(&replace("\"bytes\"", "\"bites\""), "`bytes`");
    damage(&|b| b[tokens + 1] = 0xff, "outside its vocabulary");
    damage(&|b| b[tokens + 10] = 1, "document offset 0");
    damage(&|b| b[tokens + 18] = 9, "document offset 1 is 9");
    damage(&|b| b[tokens + 26] = 4, "last document ends at token 4");
    damage(&|b| b[tokens + 26] = 3, "document offset 2 is 3");
}

#[test]
fn the_two_stages_lead_from_texts_to_shards() {
    let dir = tempfile::tempdir().unwrap();
    let mut heard = Vec::new();
    let tokenizer_dir = dir.path().join("01-tokenizer");
    let report = train_stage(&small(), &[tales()], &tokenizer_dir, &mut |p| {
        heard.push(p);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!((report.documents, report.vocab_size), (42, 1024));
    assert!(heard.contains(&Progress::Merged {
        tokens: 1024,
        of: 1024
    }));
    let tokenizer = Tokenizer::open(&tokenizer_dir).unwrap();
    assert_eq!(tokenizer.blake3(), TRAINED.blake3());

    let odd = dir.path().join("odd.jsonl");
    std::fs::write(&odd, "{\"text\": \"\"}\n{\"text\": \"a fox\"}\n").unwrap();
    let splits = [
        ("train".to_string(), vec![tales(), odd.clone()]),
        ("heldout".to_string(), vec![odd]),
    ];
    let out = dir.path().join("02-tokens");
    let report = encode_stage(
        &tokenizer,
        &splits,
        &out,
        &mut |_| ControlFlow::Continue(()),
    )
    .unwrap();
    assert_eq!(report.splits[0].2.documents, 43);
    assert_eq!(report.splits[1].2.documents, 1);
    let shard = TokenShard::open(out.join("train.tokens.safetensors")).unwrap();
    assert_eq!(shard.summary(), report.splits[0].2);
    let first = read_texts(tales()).unwrap().next().unwrap().unwrap();
    let mut ids = vec![0; shard.document(0).len()];
    shard.copy_into(shard.document(0), &mut ids).unwrap();
    assert_eq!(tokenizer.decode(&ids, true), first);
    assert_eq!(shard.document_bytes(0), first.len() as u64);

    let again = dir.path().join("again");
    encode_stage(&tokenizer, &splits, &again, &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap();
    for name in ["train", "heldout"] {
        let name = format!("{name}.tokens.safetensors");
        assert_eq!(
            std::fs::read(out.join(&name)).unwrap(),
            std::fs::read(again.join(&name)).unwrap()
        );
    }
}

#[test]
fn stages_refuse_what_they_cannot_use() {
    let dir = tempfile::tempdir().unwrap();
    let none = dir.path().join("none.jsonl");
    std::fs::write(&none, "").unwrap();
    let encode = |name: &str, input: &Path| {
        encode_stage(
            &TRAINED,
            &[(name.to_string(), vec![input.to_path_buf()])],
            dir.path(),
            &mut |_| ControlFlow::Continue(()),
        )
        .unwrap_err()
        .to_string()
    };
    assert!(encode("a", &none).contains("no document"));
    assert!(encode("../a", &tales()).contains("name of a split"));
    assert!(encode("a", &dir.path().join("missing.txt")).contains("missing.txt"));
    assert!(!dir.path().join("a.tokens.safetensors").exists());
    let nothing = train_stage(&small(), &[none], dir.path(), &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap_err();
    assert!(nothing.to_string().contains("too small"), "{nothing}");
}

#[test]
fn stages_stop_when_asked_and_leave_nothing_whole() {
    let dir = tempfile::tempdir().unwrap();
    let stop = &mut |_| ControlFlow::Break(());
    let trained = train_stage(&small(), &[tales()], dir.path(), stop);
    assert!(matches!(trained, Err(TokenizerError::Interrupted)));
    let splits = [("a".to_owned(), vec![tales()])];
    let encoded = encode_stage(&TRAINED, &splits, dir.path(), stop);
    assert!(matches!(encoded, Err(TokenizerError::Interrupted)));
    assert!(!dir.path().join("tokenizer.json").exists());
    assert!(!dir.path().join("a.tokens.safetensors").exists());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn any_damaged_bytes_are_read_or_refused(at in 0usize..1100, with in any::<u8>(), cut in 0usize..1200) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tokens.safetensors");
        let mut bytes = GOOD.clone();
        let at = at % bytes.len();
        bytes[at] ^= with;
        bytes.truncate(bytes.len().min(cut + 40));
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(shard) = TokenShard::open(&path) {
            for i in 0..shard.documents() {
                let range = shard.document(i);
                let _ = shard.copy_into(range.clone(), &mut vec![0; range.len()]);
            }
        }
    }
}

/// The bytes of a small shard.
static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tokens.safetensors");
    write(&path, &TRAINED, &[(vec![7, 8], 5), (vec![9], 2)]);
    std::fs::read(&path).unwrap()
});
