//! Tokenizers from elsewhere: decoded as the tokenizers library does it, and harmless when broken.

mod common;

use common::{TRAINED, saved};
use proptest::prelude::*;
use russet_tokenizer::{Detokenizer, SpecialTokens, Tokenizer};
use serde_json::{Map, Value, json};

fn open(file: &Value) -> Result<Tokenizer, String> {
    open_bytes(file.to_string().as_bytes())
}

fn open_bytes(bytes: &[u8]) -> Result<Tokenizer, String> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), bytes).unwrap();
    Tokenizer::open(dir.path()).map_err(|e| e.to_string())
}

fn special(id: u32, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
           "special": true})
}

/// GPT-2's way: bytes as printable characters, `ByteLevel` before and after, a few merges.
fn byte_level() -> Value {
    let mut vocab = Map::new();
    let mut next = 256u32;
    let mut byte_char = Vec::new();
    for byte in 0u32..256 {
        let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if printable { byte } else { next };
        next += u32::from(!printable);
        byte_char.push(char::from_u32(code).unwrap());
        vocab.insert(byte_char[byte as usize].to_string(), json!(byte));
    }
    for (i, token) in ["th", "the", "Ġthe", "Ġa"].iter().enumerate() {
        vocab.insert((*token).to_string(), json!(256 + i));
    }
    json!({"version": "1.0", "added_tokens": [special(260, "<|end|>"),
        {"id": 261, "content": "<think>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
         "special": false}],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["t", "h"], ["th", "e"], ["Ġ", "the"], ["Ġ", "a"]]}})
}

/// Llama 2's way (`Prepend` and `Replace` before; `Replace`, `ByteFallback`, `Fuse`, `Strip` after), or with `Metaspace`.
fn spaced(metaspace: bool) -> Value {
    let mut vocab = Map::new();
    for (id, name) in ["<unk>", "<s>", "</s>"].iter().enumerate() {
        vocab.insert((*name).to_string(), json!(id));
    }
    for byte in 0..256 {
        vocab.insert(format!("<0x{byte:02X}>"), json!(3 + byte));
    }
    for (i, token) in [
        "▁", "a", "e", "h", "n", "t", "th", "the", "▁the", "▁a", "▁▁",
    ]
    .iter()
    .enumerate()
    {
        vocab.insert((*token).to_string(), json!(259 + i));
    }
    let metaspace_step =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    json!({"version": "1.0", "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": if metaspace { Value::Null } else { json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}) },
        "pre_tokenizer": if metaspace { metaspace_step.clone() } else { Value::Null },
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": if metaspace { metaspace_step } else { json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}) },
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
            "merges": [["t", "h"], ["th", "e"], ["▁", "the"], ["▁", "a"], ["▁", "▁"]]}})
}

fn drain(mut stream: Detokenizer<'_>, ids: &[u32]) -> String {
    let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
    text += &stream.finish();
    text
}

/// Encoding and decoding equal the library's own, at once and streamed, for text without broken bytes.
fn check(file: &Value, text: &str) {
    let ours = open(file).unwrap();
    let library = tokenizers::Tokenizer::from_bytes(file.to_string()).unwrap();
    for add_special in [false, true] {
        let ids = ours
            .encode_with(text, add_special, SpecialTokens::Parse)
            .unwrap();
        assert_eq!(
            ids,
            library.encode_fast(text, add_special).unwrap().get_ids()
        );
        for skip in [false, true] {
            let whole = library.decode(&ids, skip).unwrap();
            assert_eq!(ours.decode(&ids, skip), whole, "{text:?} {ids:?} {skip}");
            assert_eq!(drain(ours.detokenizer(skip), &ids), whole);
        }
    }
}

#[test]
fn decoding_equals_the_library() {
    for file in [byte_level(), spaced(false)] {
        for text in [
            "",
            " ",
            "  the a",
            "then the end",
            "日本 🦊 é",
            "a\n\nthe<|end|> the</s>  a <think>",
        ] {
            check(&file, text);
        }
    }
    // This decoder has no byte step, so only text in the alphabet.
    for text in ["", " ", "  the a", "then the  hen", "the</s> a"] {
        check(&spaced(true), text);
    }
}

#[test]
fn a_continuing_stream_keeps_the_space() {
    let tokenizer = open(&spaced(false)).unwrap();
    let prompt = tokenizer.encode("the", true).unwrap();
    let whole = tokenizer.encode("the a the", true).unwrap();
    assert_eq!(whole[..prompt.len()], prompt);
    let rest = drain(
        tokenizer.detokenizer_continuing(true),
        &whole[prompt.len()..],
    );
    assert_eq!(rest, " a the");
    assert_eq!(tokenizer.decode(&prompt, true) + &rest, "the a the");
}

#[test]
fn special_tokens_are_text_unless_parsed_and_added_words_are_words() {
    let tokenizer = open(&byte_level()).unwrap();
    let ids = tokenizer.encode("a<|end|><think>", false).unwrap();
    assert!(!ids.contains(&260));
    assert!(
        ids.contains(&261),
        "an added token that is not special is vocabulary"
    );
    assert!(
        tokenizer
            .encode_with("a<|end|>", false, SpecialTokens::Parse)
            .unwrap()
            .contains(&260)
    );
}

#[test]
fn special_ids_come_from_the_files_beside() {
    let dir = saved();
    let write = |name: &str, value: Value| {
        std::fs::write(dir.path().join(name), value.to_string()).unwrap()
    };
    write("config.json", json!({"bos_token_id": 9, "eos_token_id": 8}));
    write(
        "generation_config.json",
        json!({"eos_token_id": [3, 7], "pad_token_id": 6}),
    );
    let special = Tokenizer::open(dir.path()).unwrap().special().clone();
    assert_eq!((special.bos, special.pad), (Some(9), Some(6)));
    assert_eq!(special.eos, [3, 7, 8, 0]);
    std::fs::write(dir.path().join("config.json"), "{").unwrap();
    let error = Tokenizer::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("config.json"), "{error}");
}

#[test]
fn padding_and_truncation_in_the_file_are_not_applied() {
    let mut file = byte_level();
    file["truncation"] =
        json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    file["padding"] = json!({"strategy": {"Fixed": 4_000_000_000_u64}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "x"});
    assert_eq!(
        open(&file).unwrap().encode("abcde", false).unwrap().len(),
        5
    );
}

#[test]
fn hostile_files_are_refused_with_a_sentence() {
    let refuse = |change: &dyn Fn(&mut Value), says: &str| {
        let mut file = byte_level();
        change(&mut file);
        let error = open(&file).expect_err(says);
        assert!(
            error.contains("tokenizer.json") && error.contains(says),
            "{error}"
        );
    };
    refuse(&|f| f["model"]["dropout"] = json!(0.1), "dropout");
    refuse(
        &|f| f["model"]["vocab"]["a"] = json!(4_000_000_000_u64),
        "4000000000",
    );
    refuse(&|f| f["model"]["vocab"]["a"] = json!(-1), "-1");
    refuse(
        &|f| f["added_tokens"][0]["id"] = json!(4_000_000_000_u64),
        "<|end|>",
    );
    refuse(
        &|f| f["model"]["merges"] = json!([["no", "such"]]),
        "refuses",
    );
    refuse(
        &|f| f["model"]["continuing_subword_prefix"] = json!("toolong"),
        "",
    );
    refuse(&|f| f["model"] = json!(null), "model");
    refuse(
        &|f| {
            f["decoder"] =
                json!({"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": true})
        },
        "CTC",
    );
    refuse(&|f| f["decoder"] = json!(null), "decoder");
    let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"});
    refuse(
        &|f| f["normalizer"] = json!({"type": "Sequence", "normalizers": vec![double.clone(); 12]}),
        "blow",
    );
    refuse(
        &|f| f["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "(((("}, "behavior": "Isolated", "invert": false}),
        "",
    );
    let nested = "[".repeat(100_000);
    assert!(
        open_bytes(nested.as_bytes())
            .unwrap_err()
            .contains("not a tokenizer.json")
    );
    assert!(
        open_bytes(b"")
            .unwrap_err()
            .contains("not a tokenizer.json")
    );
    let missing = Tokenizer::open("/no/such/folder").unwrap_err().to_string();
    assert!(missing.contains("/no/such/folder"), "{missing}");
}

#[test]
fn an_id_outside_the_vocabulary_is_refused() {
    let mut file = spaced(false);
    file["post_processor"]["special_tokens"]["<s>"]["ids"] = json!([4_000_000_000_u32]);
    let tokenizer = open(&file).unwrap();
    let error = tokenizer.encode("the", true).unwrap_err().to_string();
    assert!(error.contains("4000000000"), "{error}");
    assert!(tokenizer.encode("the", false).is_ok());
    let dir = saved();
    std::fs::write(dir.path().join("config.json"), "{\"bos_token_id\": 5000}").unwrap();
    let error = Tokenizer::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("bos_token_id 5000"), "{error}");
}

#[test]
fn a_pattern_too_large_is_refused() {
    for pattern in [
        "((a{1000}){1000}){1000}",
        "(((?=b)a{1000}){1000}){1000}",
        "(?<=(a{1000}){1000})b",
    ] {
        let mut file = byte_level();
        file["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
            "invert": false});
        match open(&file) {
            Ok(tokenizer) => assert!(tokenizer.encode(&"ab".repeat(100), false).is_ok()),
            Err(error) => assert!(error.contains("tokenizer.json"), "{error}"),
        }
    }
}

#[test]
fn a_slow_pattern_ends() {
    let mut file = byte_level();
    file["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "(a+)+(?!x)b|(?=y)z"}, "behavior": "Isolated",
        "invert": false});
    if let Ok(tokenizer) = open(&file) {
        let _ = tokenizer.encode(&"a".repeat(2000), false);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn decoding_any_text_equals_the_library(text in any::<String>()) {
        check(&byte_level(), &text);
        check(&spaced(false), &text);
    }

    #[test]
    fn any_mutated_file_opens_or_is_refused(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
                                            which in 0usize..3, cut in prop::option::weighted(0.2, any::<prop::sample::Index>())) {
        let file = match which { 0 => byte_level(), 1 => spaced(false), _ => spaced(true) };
        let mut bytes = file.to_string().into_bytes();
        for (at, with) in &edits {
            let at = at.index(bytes.len());
            bytes[at] = *with;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(tokenizer) = open_bytes(&bytes)
            && let Ok(ids) = tokenizer.encode("the a <|end|> 日", true)
        {
            let _ = tokenizer.decode(&ids, true);
        }
    }

    /// Whole values swapped for strange ones: deeper than single bytes reach.
    #[test]
    fn any_swapped_value_opens_or_is_refused(which in 0usize..3, at in any::<prop::sample::Index>(), with in 0usize..12) {
        let mut file = match which { 0 => byte_level(), 1 => spaced(false), _ => spaced(true) };
        let strange = [json!(null), json!(-1), json!(1e300), json!(""), json!("▁"), json!([]), json!({}), json!(u64::MAX),
            json!([[["x"]]]), json!("x".repeat(300)), json!(true), json!({"type": "Sequence"})];
        let mut paths = Vec::new();
        collect(&file, String::new(), &mut paths);
        let path = &paths[at.index(paths.len())];
        *file.pointer_mut(path).unwrap() = strange[with].clone();
        if let Ok(tokenizer) = open(&file) {
            for special in [SpecialTokens::Text, SpecialTokens::Parse] {
                if let Ok(ids) = tokenizer.encode_with("the a <|end|> 日", true, special) {
                    let _ = tokenizer.decode(&ids, false);
                }
            }
        }
    }
}

/// JSON pointers of everything but the many entries of the vocabulary.
fn collect(value: &Value, at: String, out: &mut Vec<String>) {
    if let Some(map) = value.as_object() {
        for (key, inner) in map.iter().take(24) {
            collect(
                inner,
                format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")),
                out,
            );
        }
    } else if let Some(list) = value.as_array() {
        for (i, inner) in list.iter().enumerate() {
            collect(inner, format!("{at}/{i}"), out);
        }
    }
    if !at.is_empty() {
        out.push(at);
    }
}

#[test]
fn the_trained_tokenizer_decodes_as_the_library_does() {
    let dir = saved();
    let library = tokenizers::Tokenizer::from_file(dir.path().join("tokenizer.json")).unwrap();
    for text in ["The Giant's 3 gardens.\n\n\"日本\"", "🦊<|im_end|>", " x"] {
        let ids = TRAINED.encode(text, false).unwrap();
        assert_eq!(
            library.decode(&ids, false).unwrap(),
            TRAINED.decode(&ids, false)
        );
    }
}
