//! What a `config.json` must say, and may not.

use super::*;

fn qwen3() -> Map<String, Value> {
    let json = json!({
        "architectures": ["Qwen3ForCausalLM"], "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 64,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 128,
        "tie_word_embeddings": true, "bos_token_id": 0, "eos_token_id": [0, 3],
    });
    json.as_object().cloned().unwrap()
}

fn refused(key: &str, value: Value, part: &str) {
    let mut json = qwen3();
    json.insert(key.to_owned(), value);
    let problem = Config::parse(&json).unwrap_err();
    assert!(problem.contains(part), "{key}: {problem}");
}

#[test]
fn what_is_written_reads_back() {
    let mut config = Config::parse(&qwen3()).unwrap();
    for scaling in [
        RopeScaling::None,
        RopeScaling::Linear { factor: 4.0 },
        RopeScaling::Llama3 {
            factor: 8.0,
            low: 1.0,
            high: 4.0,
            original: 8192.0,
        },
    ] {
        config.rope_scaling = scaling;
        assert_eq!(Config::parse(&config.to_json()).unwrap(), config);
    }
    assert_eq!(config.to_json()["rms_norm_eps"], json!(1e-5));
}

#[test]
fn newer_files_keep_the_base_among_the_rotary_parameters() {
    let mut json = qwen3();
    json.remove("rope_theta");
    json.insert(
        "rope_parameters".into(),
        json!({"rope_type": "default", "rope_theta": 1e6}),
    );
    assert_eq!(Config::parse(&json).unwrap().rope_theta, 1e6);
}

#[test]
fn what_would_change_the_result_unseen_is_refused() {
    refused(
        "architectures",
        json!(["GPT2LMHeadModel"]),
        "GPT2LMHeadModel",
    );
    refused("attention_bias", json!(true), "attention_bias");
    refused("hidden_act", json!("gelu"), "gelu");
    refused("use_sliding_window", json!(true), "use_sliding_window");
    refused(
        "rope_scaling",
        json!({"rope_type": "yarn", "factor": 4.0}),
        "yarn",
    );
    refused("num_key_value_heads", json!(3), "shared out");
    refused("head_dim", json!(15), "even");
    refused("vocab_size", json!(0), "vocab_size");
    refused("hidden_size", json!(1u64 << 40), "hidden_size");
    refused("eos_token_id", json!(96), "96");
    refused("num_hidden_layers", json!(1u64 << 32), "four trillion");
    // In quotes it once counted as off.
    for key in ["tie_word_embeddings", "use_sliding_window", "mlp_bias"] {
        for value in [json!("false"), json!("true"), json!(0)] {
            refused(key, value, key);
        }
    }
    refused("rope_scaling", json!("linear"), "must be an object");
    refused("rope_scaling", json!({"rope_type": 3}), "must be a name");
    refused(
        "rope_scaling",
        json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4,
               "original_max_position_embeddings": 64}),
        "below `high_freq_factor`",
    );
}

#[test]
fn sizes_whose_products_pass_all_numbers_are_refused() {
    // With heads of 2^32 the widths of q, k and v once came to 0 modulo 2^64, and every check passed.
    let huge = 1u64 << 32;
    for (heads, kv_heads, head_dim) in [(huge, huge, huge), (huge, huge / 2, huge), (4, 2, huge)] {
        let mut json = qwen3();
        json.insert("num_attention_heads".into(), json!(heads));
        json.insert("num_key_value_heads".into(), json!(kv_heads));
        json.insert("head_dim".into(), json!(head_dim));
        let problem = Config::parse(&json).unwrap_err();
        assert!(problem.contains("must lie in 1..=65536"), "{problem}");
    }
    for keys in [
        &["vocab_size", "hidden_size"][..],
        &["intermediate_size", "hidden_size"],
        &["intermediate_size", "num_hidden_layers"],
        &[
            "intermediate_size",
            "hidden_size",
            "num_hidden_layers",
            "vocab_size",
        ],
    ] {
        let mut json = qwen3();
        for key in keys {
            json.insert((*key).into(), json!(huge));
        }
        let problem = Config::parse(&json).unwrap_err();
        assert!(problem.contains("four trillion"), "{keys:?}: {problem}");
    }
    // A long context alone is fine: what it costs is asked when a cache is made.
    let mut json = qwen3();
    json.insert("max_position_embeddings".into(), json!(huge));
    let config = Config::parse(&json).unwrap();
    assert!(config.forward_flops(config.context) > 1e12);
}

#[test]
fn counts_are_those_of_afm_on_device() {
    // 2.587 B + 0.151 B embedding parameters, as published.
    let config = Config {
        width: 3072,
        layers: 26,
        heads: 24,
        kv_heads: 8,
        head_dim: 128,
        ffn: 8064,
        vocab: 49_152,
        ..Config::parse(&qwen3()).unwrap()
    };
    assert_eq!(
        (config.parameters() - config.embedding_parameters()) / 1_000_000,
        2586
    );
    assert_eq!(config.embedding_parameters() / 1_000_000, 150);
}
