//! `config.json` of a checkpoint. What is accepted says the same when it is written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use russet_fuzz::seed_golden;
use russet_model::Config;

fuzz_target!(
    init: {
        for model in ["qwen3-gqa-tied", "qwen3-mha-untied", "llama-gqa-tied", "llama-rope-scaling"] {
            seed_golden("config", &format!("models/{model}/config.json"));
        }
    },
    |data: &[u8]| {
        let Ok(serde_json::Value::Object(json)) = serde_json::from_slice(data) else { return };
        if let Ok(config) = Config::parse(&json) {
            let _ = (config.parameters(), config.forward_flops(16), config.cache_bytes_per_token());
            assert_eq!(Config::parse(&config.to_json()), Ok(config));
        }
    }
);
