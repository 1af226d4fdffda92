//! A palettized package: `config.json` up to a zero byte, then `model.safetensors`. What opens is run.
#![no_main]

use libfuzzer_sys::fuzz_target;
use russet_fuzz::{halves, joined, put, scratch, seed, tiny, use_decoder};
use russet_model::package;

fuzz_target!(
    init: {
        let files = tiny::package();
        seed("package", "valid", &joined(&files.config, &files.weights));
    },
    |data: &[u8]| {
        let (config, weights) = halves(data);
        put("config.json", config);
        put("model.safetensors", weights);
        if let Ok(decoder) = package::load(&scratch()) {
            use_decoder(&decoder);
        }
    }
);
