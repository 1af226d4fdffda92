//! `model.safetensors.index.json` beside a checkpoint's one shard.
#![no_main]

use libfuzzer_sys::fuzz_target;
use russet_fuzz::{put, scratch, seed, seed_golden, tiny};
use russet_model::checkpoint;

fuzz_target!(
    init: {
        let files = tiny::checkpoint();
        put("config.json", &files.config);
        put("a.safetensors", &files.weights);
        let map: serde_json::Map<_, _> = files.names.iter().map(|name| (name.clone(), "a.safetensors".into())).collect();
        let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
        seed("checkpoint_index", "valid", index.to_string().as_bytes());
        seed_golden("checkpoint_index", "models/llama-gqa-sharded/model.safetensors.index.json");
    },
    |data: &[u8]| {
        put("model.safetensors.index.json", data);
        let _ = checkpoint::load(&scratch());
    }
);
