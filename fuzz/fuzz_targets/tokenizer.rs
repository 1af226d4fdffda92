//! `tokenizer.json`, and `tokenizer_config.json` beside it: the second up to a zero byte, then the first.
#![no_main]

use libfuzzer_sys::fuzz_target;
use russet_fuzz::{
    caught_panics_are_fine, halves, joined, put, scratch, seed, tiny, use_tokenizer,
};
use russet_tokenizer::Tokenizer;

fuzz_target!(
    init: {
        caught_panics_are_fine();
        let files = tiny::tokenizer();
        seed("tokenizer", "valid", &joined(&files.config, &files.weights));
    },
    |data: &[u8]| {
        let (config, tokenizer) = halves(data);
        put("tokenizer_config.json", config);
        put("tokenizer.json", tokenizer);
        if let Ok(tokenizer) = Tokenizer::open(scratch()) {
            use_tokenizer(&tokenizer);
        }
    }
);
