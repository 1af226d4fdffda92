//! A PEFT folder: `adapter_config.json` up to a zero byte, then `adapter_model.safetensors`. What fits is run.
#![no_main]

use libfuzzer_sys::fuzz_target;
use russet_fuzz::{halves, joined, put, scratch, seed, tiny, use_decoder};
use russet_model::adapter;

fuzz_target!(
    init: {
        let files = tiny::adapter();
        seed("adapter", "valid", &joined(&files.config, &files.weights));
    },
    |data: &[u8]| {
        let (config, weights) = halves(data);
        put("adapter_config.json", config);
        put("adapter_model.safetensors", weights);
        if let Ok(decoder) = adapter::attach(tiny::decoder(), &scratch(), None) {
            use_decoder(&decoder);
        }
    }
);
