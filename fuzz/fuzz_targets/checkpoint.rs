//! A checkpoint folder: `config.json` up to a zero byte, then `model.safetensors`. What opens is run.
#![no_main]

use libfuzzer_sys::fuzz_target;
use russet_fuzz::{halves, joined, put, scratch, seed, tiny, use_decoder};
use russet_model::checkpoint;

fuzz_target!(
    init: {
        let files = tiny::checkpoint();
        seed("checkpoint", "valid", &joined(&files.config, &files.weights));
    },
    |data: &[u8]| {
        let (config, weights) = halves(data);
        put("config.json", config);
        put("model.safetensors", weights);
        if let Ok(decoder) = checkpoint::load(&scratch()) {
            use_decoder(&decoder);
        }
    }
);
