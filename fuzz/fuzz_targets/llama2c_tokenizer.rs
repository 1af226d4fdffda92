//! A llama2.c tokenizer file; the first byte is the vocabulary's size.
#![no_main]

use libfuzzer_sys::fuzz_target;
use russet_fuzz::{caught_panics_are_fine, put, seed, use_tokenizer};
use russet_tokenizer::Tokenizer;

/// `max_token_length`, then score, length and bytes of each token.
fn vocabulary() -> Vec<u8> {
    let mut file = 4i32.to_le_bytes().to_vec();
    let bytes = (0..=255u8).map(|byte| format!("<0x{byte:02X}>"));
    for token in ["<unk>", "\n<s>\n", "\n</s>\n"]
        .map(str::to_owned)
        .into_iter()
        .chain(bytes)
    {
        file.extend(0f32.to_le_bytes());
        file.extend((token.len() as i32).to_le_bytes());
        file.extend(token.as_bytes());
    }
    file
}

fuzz_target!(
    init: {
        caught_panics_are_fine();
        seed("llama2c_tokenizer", "valid", &[&[3u8], &vocabulary()[..]].concat());
        let golden = std::fs::read(format!("{}/stories260K/tok512.bin", russet_fuzz::GOLDEN)).expect("golden/ is complete");
        seed("llama2c_tokenizer", "stories", &[&[0u8], &golden[..]].concat());
    },
    |data: &[u8]| {
        let Some((&size, file)) = data.split_first() else { return };
        let size = if size == 0 { 512 } else { 256 + usize::from(size) };
        let path = put("tokenizer.bin", file);
        if let Ok(tokenizer) = Tokenizer::from_llama2c(path, size) {
            use_tokenizer(&tokenizer);
        }
    }
);
