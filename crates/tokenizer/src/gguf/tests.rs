use super::*;
use crate::train::{TrainConfig, train};
use proptest::prelude::*;
use std::sync::LazyLock;

static TRAINED: LazyLock<Tokenizer> = LazyLock::new(|| {
    let text =
        "Es war 1 König — „so“, sagte er. It's Anna's; 'so it is' …\n\n\"Yes.\"\n\n  fn x() {}\n"
            .repeat(4);
    let config = TrainConfig {
        vocab_size: 420,
        min_frequency: 2,
        alphabet_min_frequency: 1,
    };
    train(&config, [Ok(text + include_str!("../gguf.rs"))]).unwrap()
});

/// llama.cpp's `gpt2`: words, bytes, merges by rank. Plainly, pair by pair; the words' pattern is Qwen 2's.
fn as_llama_cpp(vocabulary: &GgufVocabulary, text: &str) -> Vec<u32> {
    let pattern = fancy_regex::Regex::new(PATTERNS[0].1).unwrap();
    let ranks: HashMap<&str, usize> = vocabulary
        .merges
        .iter()
        .map(String::as_str)
        .zip(0..)
        .collect();
    let ids: HashMap<&str, u32> = vocabulary
        .tokens
        .iter()
        .map(String::as_str)
        .zip(0..)
        .collect();
    let mut out = Vec::new();
    for word in crate::train::words(&pattern, text) {
        let mut parts: Vec<String> = word.bytes().map(|b| stand_ins(&[b])).collect();
        loop {
            let ranked = parts.windows(2).enumerate();
            let ranked = ranked.filter_map(|(at, w)| {
                Some((*ranks.get(format!("{} {}", w[0], w[1]).as_str())?, at))
            });
            let Some((_, at)) = ranked.min() else { break };
            let right = parts.remove(at + 1);
            parts[at].push_str(&right);
        }
        out.extend(parts.iter().filter_map(|part| ids.get(part.as_str())));
    }
    out
}

#[test]
fn one_trained_here_encodes_the_same_by_bytes() {
    let vocabulary = TRAINED.to_gguf(TRAINED.vocab_size() + 3).unwrap();
    assert_eq!(
        (vocabulary.model.as_str(), vocabulary.pre.as_deref()),
        ("gpt2", Some("qwen2"))
    );
    for text in [
        "",
        "Es war 1 König — „so“, sagte er.",
        "It's Anna's … \"Yes.\"\n\n  fn x() {}\n",
        "12345 and  three   blanks\r\n\tand a tab",
        "a letter outside: \u{1F34E} and \u{4e2d}",
        include_str!("../error.rs"),
    ] {
        let ours = TRAINED.encode(text, false).unwrap();
        assert_eq!(as_llama_cpp(&vocabulary, text), ours, "{text:?}");
    }
    let names: HashSet<&String> = vocabulary.tokens.iter().collect();
    assert_eq!(names.len(), TRAINED.vocab_size() + 3, "every name once");
    assert_eq!(vocabulary.types[0], CONTROL);
    assert_eq!(vocabulary.types[4 + usize::from(b'a')], UNUSED);
    assert_eq!(vocabulary.types[4 + 0xff], NORMAL);
    assert_eq!(vocabulary.types.last(), Some(&UNUSED));
    assert!(vocabulary.add_bos);
    assert_eq!(
        (vocabulary.bos, vocabulary.eos.as_slice()),
        (Some(0), &[0, 3][..])
    );
}

#[test]
fn the_very_tokenizer_comes_back() {
    let vocabulary = TRAINED.to_gguf(TRAINED.vocab_size()).unwrap();
    let back = Tokenizer::from_gguf(&vocabulary).unwrap();
    assert_eq!(back.blake3(), TRAINED.blake3());
    assert_eq!(back.special(), TRAINED.special());
    let source = |tokenizer: &Tokenizer| tokenizer.chat_template().unwrap().source().to_string();
    assert_eq!(source(&back), source(&TRAINED));
    let mut other = vocabulary.clone();
    other.tokens.swap(300, 301);
    let error = Tokenizer::from_gguf(&other).unwrap_err().to_string();
    assert!(error.contains("differ in token 300"), "{error}");
}

/// A `tokenizer.json` as Qwen publishes it.
fn byte_level(pre: &str) -> Tokenizer {
    let mut tokens: Vec<String> = (0..=255u8).map(|byte| stand_ins(&[byte])).collect();
    tokens.extend(["th", "the", "Ġthe", "<|end|>", "<think>"].map(String::from));
    let mut types = vec![NORMAL; 259];
    types.extend([CONTROL, USER_DEFINED]);
    Tokenizer::from_gguf(&GgufVocabulary {
        model: "gpt2".into(),
        pre: Some(pre.into()),
        tokens,
        types,
        merges: vec!["t h".into(), "th e".into(), "Ġ the".into()],
        eos: vec![259],
        ..GgufVocabulary::default()
    })
    .unwrap()
}

#[test]
fn byte_level_ones_keep_tokens_merges_and_pattern() {
    for pre in ["qwen2", "qwen35", "llama-bpe", "gpt-2", "smollm"] {
        let tokenizer = byte_level(pre);
        assert_eq!(
            tokenizer.encode(" the the12", false).unwrap(),
            [258, 258, 49, 50]
        );
        assert_eq!(tokenizer.decode(&[258, 259, 260], true), " the<think>");
        let vocabulary = tokenizer.to_gguf(261).unwrap();
        assert_eq!(vocabulary.pre.as_deref(), Some(pre));
        assert_eq!(vocabulary.merges, ["t h", "th e", "Ġ the"]);
        assert_eq!(&vocabulary.types[258..], [NORMAL, CONTROL, USER_DEFINED]);
        let again = Tokenizer::from_gguf(&vocabulary).unwrap();
        assert_eq!(again.blake3(), tokenizer.blake3());
    }
}

#[test]
fn scores_order_merges_as_ranks_did() {
    let stories = Tokenizer::from_llama2c(
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tok512.bin"),
        512,
    )
    .unwrap();
    let mut vocabulary = stories.to_gguf(512).unwrap();
    assert_eq!(vocabulary.model, "llama");
    assert_eq!(vocabulary.types[..4], [UNKNOWN, CONTROL, CONTROL, BYTE]);
    vocabulary.huggingface = None;
    let back = Tokenizer::from_gguf(&vocabulary).unwrap();
    for text in [
        "Once upon a time, there was",
        " a  b",
        "\u{1F34E} apple\n",
        "",
    ] {
        let ids = stories.encode(text, true).unwrap();
        assert_eq!(back.encode(text, true).unwrap(), ids, "{text:?}");
        assert_eq!(back.decode(&ids, true), stories.decode(&ids, true));
    }
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    let good = GgufVocabulary {
        model: "gpt2".into(),
        pre: Some("qwen2".into()),
        tokens: vec!["a".into(), "b".into(), "ab".into()],
        types: vec![NORMAL; 3],
        merges: vec!["a b".into()],
        ..GgufVocabulary::default()
    };
    Tokenizer::from_gguf(&good).unwrap();
    type Damage = fn(&mut GgufVocabulary);
    let damages: [(Damage, &str); 9] = [
        (|v| v.model = "bert".into(), "`bert`"),
        (|v| v.pre = Some("tekken".into()), "`tekken`"),
        (|v| v.pre = None, "`default`"),
        (|v| v.tokens.clear(), "0 tokens"),
        (|v| v.types.truncate(2), "2 types"),
        (|v| v.bos = Some(3), "special token 3"),
        (|v| v.merges.push("ab".into()), "not two tokens"),
        (|v| v.merges.push("a c".into()), "needs the token \"c\""),
        (|v| v.tokens[1] = "a".into(), "two of its tokens"),
    ];
    for (damage, wanted) in damages {
        let mut bad = good.clone();
        damage(&mut bad);
        let error = Tokenizer::from_gguf(&bad).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error} should say {wanted}");
    }
    let small = TRAINED.to_gguf(10).unwrap_err().to_string();
    assert!(small.contains("10 rows"), "{small}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn words_without_apostrophes_are_the_same_everywhere(text in "([a-zA-Zöé—“”]{1,9}|[ \\n]{1,4}|[0-9]{1,3}|[.,;:!?(){}\"]){0,30}") {
        let vocabulary = TRAINED.to_gguf(TRAINED.vocab_size()).unwrap();
        prop_assert_eq!(as_llama_cpp(&vocabulary, &text), TRAINED.encode(&text, false).unwrap());
    }

    #[test]
    fn entries_of_any_kind_are_opened_or_refused(
        tokens in prop::collection::vec("[ab▁Ġ<0x4F>]{0,5}", 0..8),
        merges in prop::collection::vec("[ab▁ ]{0,4}", 0..5),
        types in prop::collection::vec(0i32..8, 0..8),
        llama in any::<bool>(),
        bos in prop::option::of(0u32..9),
    ) {
        let scores = vec![0.5; tokens.len()];
        let (model, pre) = if llama { ("llama", None) } else { ("gpt2", Some("qwen2".into())) };
        let entries = GgufVocabulary { model: model.into(), pre, tokens, merges, types, scores, bos, add_bos: true, ..GgufVocabulary::default() };
        if let Ok(tokenizer) = Tokenizer::from_gguf(&entries) {
            let _ = tokenizer.encode("abba <0x4F> 12", true);
        }
    }
}
