//! The tokenizer of a GGUF file: `MODEL PRE BOS ADD` on the first line, a token with its type and score on each line up to an empty one, merges on
//! the rest. What opens is used.
#![no_main]

use libfuzzer_sys::fuzz_target;
use russet_fuzz::{caught_panics_are_fine, seed, use_tokenizer};
use russet_tokenizer::{GgufVocabulary, Tokenizer};

const LLAMA: &str = "llama - 1 1\n<unk> 2 0\n<s> 3 0\n<0x41> 6 0\n\u{2581} 1 0\na 1 -1\nb 1 -2\nab 1 -3\n\u{2581}ab 1 -4\n\n";
const GPT2: &str =
    "gpt2 qwen2 0 0\n<|end|> 3 0\na 1 0\nb 1 0\nab 1 0\n\u{120} 1 0\n\nab \u{120}\na b\n";

fn entries(text: &str) -> Option<GgufVocabulary> {
    let mut lines = text.lines();
    let mut head = lines.next()?.split(' ');
    let mut entries = GgufVocabulary {
        model: head.next()?.into(),
        pre: head.next().filter(|pre| *pre != "-").map(Into::into),
        bos: head.next().and_then(|id| id.parse().ok()),
        add_bos: head.next() == Some("1"),
        add_space_prefix: true,
        ..GgufVocabulary::default()
    };
    for line in lines.by_ref().take_while(|line| !line.is_empty()) {
        let mut parts = line.rsplitn(3, ' ');
        entries.scores.push(parts.next()?.parse().unwrap_or(0.0));
        entries.types.push(parts.next()?.parse().unwrap_or(1));
        entries.tokens.push(parts.next()?.into());
    }
    entries.merges = lines.map(Into::into).collect();
    Some(entries)
}

fuzz_target!(
    init: {
        caught_panics_are_fine();
        seed("gguf_tokenizer", "llama", LLAMA.as_bytes());
        Tokenizer::from_gguf(&entries(LLAMA).expect("the seed is whole")).expect("the seed is valid");
        let good = GPT2.replace("ab \u{120}\n", "");
        seed("gguf_tokenizer", "gpt2", good.as_bytes());
        Tokenizer::from_gguf(&entries(&good).expect("the seed is whole")).expect("the seed is valid");
        seed("gguf_tokenizer", "gpt2-bad-merge", GPT2.as_bytes());
    },
    |data: &[u8]| {
        let Ok(text) = std::str::from_utf8(data) else { return };
        if let Some(entries) = entries(text) && let Ok(tokenizer) = Tokenizer::from_gguf(&entries) {
            use_tokenizer(&tokenizer);
        }
    }
);
