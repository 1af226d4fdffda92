//! What a trained tokenizer promises: exact size, one text one file, nothing lost, nothing forged.

mod common;

use common::{TRAINED, saved, small, tales};
use proptest::prelude::*;
use russet_tokenizer::{
    END_OF_TEXT, IM_END, IM_START, PAD, SpecialTokens, Tokenizer, TrainConfig, read_texts, train,
};

fn round_trip(text: &str) {
    let ids = TRAINED.encode(text, false).unwrap();
    assert_eq!(TRAINED.decode(&ids, false), text);
    // Plain text never becomes a control token, so leaving those out changes nothing.
    assert_eq!(TRAINED.decode(&ids, true), text);
    let mut stream = TRAINED.detokenizer(false);
    let mut streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
    streamed += &stream.finish();
    assert_eq!(streamed, text);
}

#[test]
fn every_text_comes_back() {
    for text in [
        "",
        " ",
        "Once upon a time there was a fox, and he'd 3 tails.",
        "\"Oh!\" said the Giant.\n\n\"My own garden is my own garden.\"\r\n\t",
        "  leading, trailing  ",
        "日本語 русский عربى עברית ภาษา 한국어",
        "🦊👩‍👩‍👧‍👦🏳️‍🌈 e\u{301}\u{327} \u{202e}rtl\u{202c} \u{feff}bom",
        "\u{0}\u{1}\u{7f}\u{80}\u{85}\u{a0}\u{2028}\u{2029}\u{10ffff}\u{fffd}",
        "<0x41><0xE2><|endoftext|><|im_start|>user<|pad|><unk></s>",
        "▁Ġ Ċ▁",
    ] {
        round_trip(text);
    }
    for tale in read_texts(tales()).unwrap().take(5) {
        round_trip(&tale.unwrap());
    }
}

#[test]
fn a_long_run_of_blanks_comes_back() {
    round_trip(&" ".repeat(300_000));
    round_trip(&format!("a{}b", "\n ".repeat(50_000)));
    round_trip(&"x".repeat(100_000));
}

#[test]
fn a_name_of_a_byte_or_special_token_is_ordinary_text() {
    for name in ["<0x41>", "<0x0A>", IM_END, END_OF_TEXT, PAD, IM_START] {
        let ids = TRAINED.encode(name, false).unwrap();
        assert!(ids.len() > 1, "{name} is {ids:?}");
        let begun = TRAINED.encode(name, true).unwrap();
        assert_eq!(
            begun,
            [&[0], &ids[..]].concat(),
            "a text begins with {END_OF_TEXT}"
        );
        assert!(ids.iter().all(|&id| !TRAINED.is_special(id)));
    }
    for (id, name) in [(0, END_OF_TEXT), (1, PAD), (2, IM_START), (3, IM_END)] {
        assert_eq!(TRAINED.token_id(name), Some(id));
        assert_eq!(TRAINED.token(id), Some(name));
        let text = format!("a{name}b");
        let parsed = TRAINED
            .encode_with(&text, false, SpecialTokens::Parse)
            .unwrap();
        assert_eq!(parsed.iter().filter(|&&t| t == id).count(), 1);
        assert_eq!(TRAINED.decode(&parsed, true), "ab");
        assert_eq!(TRAINED.decode(&parsed, false), text);
    }
}

#[test]
fn digits_stand_alone_and_unknown_characters_are_bytes() {
    let ids = TRAINED.encode("19842", false).unwrap();
    assert_eq!(ids.len(), 5);
    let fox = TRAINED.encode("🦊", false).unwrap();
    assert_eq!(
        fox,
        "🦊".bytes().map(|b| 4 + u32::from(b)).collect::<Vec<_>>()
    );
    assert_eq!(TRAINED.token(4 + 0x41), Some("<0x41>"));
    assert_eq!(TRAINED.token_bytes(4 + 0xe2), [0xe2]);
}

#[test]
fn the_vocabulary_has_exactly_the_size_asked_for() {
    for vocab_size in [500, 777, 1024] {
        let config = TrainConfig {
            vocab_size,
            ..small()
        };
        let texts = read_texts(tales()).unwrap().take(12);
        let tokenizer = train(&config, texts).unwrap();
        assert_eq!(tokenizer.vocab_size(), vocab_size);
        assert!((0..vocab_size as u32).all(|id| tokenizer.token(id).is_some()));
    }
}

#[test]
fn a_size_that_cannot_be_is_refused_with_the_way_out() {
    let check = |vocab_size: usize, text: &str, says: &str| {
        let config = TrainConfig {
            vocab_size,
            min_frequency: 2,
            alphabet_min_frequency: 1,
        };
        let error = train(&config, [Ok(text.to_string())])
            .unwrap_err()
            .to_string();
        assert!(error.contains(says), "{error}");
    };
    check(259, "a text", "259 is too small");
    check(262, "abcdef", "the 6 characters");
    check(500, "the cat the cat", "set vocab_size to 27");
}

#[test]
fn one_text_gives_one_file_on_any_number_of_threads() {
    let train_on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| train(&small(), read_texts(tales()).unwrap()).unwrap())
    };
    for threads in [1, 3] {
        assert_eq!(train_on(threads).blake3(), TRAINED.blake3());
    }
}

#[test]
fn a_saved_tokenizer_opens_as_itself() {
    let dir = saved();
    for path in [dir.path().to_path_buf(), dir.path().join("tokenizer.json")] {
        let opened = Tokenizer::open(path).unwrap();
        assert_eq!(opened.blake3(), TRAINED.blake3());
        assert_eq!(opened.special(), TRAINED.special());
        assert_eq!(opened.special().eos, [0, 3]);
        let text = "The Happy Prince, 1888 – é";
        assert_eq!(
            opened.encode(text, true).unwrap(),
            TRAINED.encode(text, true).unwrap()
        );
        let hello = [russet_tokenizer::Message::new("user", "hi")];
        assert_eq!(
            opened.encode_chat(&hello, true).unwrap(),
            TRAINED.encode_chat(&hello, true).unwrap()
        );
    }
}

#[test]
fn a_batch_equals_its_texts_one_by_one() {
    let texts: Vec<String> = read_texts(tales())
        .unwrap()
        .take(8)
        .map(Result::unwrap)
        .collect();
    let batch = TRAINED.encode_batch(&texts, false).unwrap();
    for (text, ids) in texts.iter().zip(batch) {
        assert_eq!(TRAINED.encode(text, false).unwrap(), ids);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn any_text_comes_back(text in any::<String>()) {
        round_trip(&text);
    }

    #[test]
    fn any_mix_of_hard_pieces_comes_back(parts in prop::collection::vec(prop::sample::select(vec![
        " ", "  ", "\n", "\r\n", "\t", "'s", "'", "’ll", "the", "Fox", "e\u{301}", "🦊", "<0x0A>", "<|im_end|>", "1", "--",
        ".\"\n\n", "日", "\u{0}", "\u{a0}",
    ]), 0..40)) {
        round_trip(&parts.concat());
    }

    /// Any ids at all, broken bytes and unknown ids included: the stream's pieces are the whole.
    #[test]
    fn streamed_pieces_equal_decoding_at_once(ids in prop::collection::vec(
        prop_oneof![0u32..1024, 4u32..260, 1020u32..1030], 0..60), skip in any::<bool>()) {
        let mut stream = TRAINED.detokenizer(skip);
        let mut streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
        streamed += &stream.finish();
        prop_assert_eq!(&streamed, &TRAINED.decode(&ids, skip));
        let bytes: Vec<u8> = ids.iter().filter(|&&id| !(skip && TRAINED.is_special(id)))
            .flat_map(|&id| TRAINED.token_bytes(id).to_vec()).collect();
        prop_assert_eq!(streamed, String::from_utf8_lossy(&bytes));
    }
}
