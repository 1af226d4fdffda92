//! A llama2.c model file, unversioned or version 1. What opens is run.
#![no_main]

use libfuzzer_sys::fuzz_target;
use russet_fuzz::{seed, use_decoder};
use russet_model::llama2c;

/// dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len; then the weights, and the rotary tables of the unversioned form.
fn model(version1: bool) -> Vec<u8> {
    let mut file = Vec::new();
    if version1 {
        file.extend(0x616b_3432u32.to_le_bytes());
        file.extend(1i32.to_le_bytes());
    }
    for number in [4i32, 3, 1, 2, 1, 5, 8] {
        file.extend(number.to_le_bytes());
    }
    if version1 {
        file.push(1);
        file.resize(256, 0);
    }
    let floats = 116 + if version1 { 0 } else { 16 };
    file.resize(file.len() + 4 * floats, 0x3c);
    file
}

fuzz_target!(
    init: {
        seed("llama2c_model", "version0", &model(false));
        seed("llama2c_model", "version1", &model(true));
        llama2c::parse(&model(false)).expect("the seed is valid");
        llama2c::parse(&model(true)).expect("the seed is valid");
    },
    |data: &[u8]| {
        if let Ok(decoder) = llama2c::parse(data) {
            use_decoder(&decoder);
        }
    }
);
