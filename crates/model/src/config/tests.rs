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
    refused("use_sliding_window", json!(true), "`sliding_window`");
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

/// A Qwen3 of four layers with these keys.
fn with(keys: Value) -> Map<String, Value> {
    let mut json = qwen3();
    json.insert("num_hidden_layers".into(), json!(4));
    json.extend(keys.as_object().cloned().unwrap());
    json
}

#[test]
fn windows_are_read_as_transformers_does_and_written_back() {
    let (full, sliding) = ("full_attention", "sliding_attention");
    for (keys, slides) in [
        (json!({"sliding_window": 8, "max_window_layers": 2}), vec![]),
        (
            json!({"use_sliding_window": false, "sliding_window": 8, "layer_types": [full, full, full, full]}),
            vec![],
        ),
        (
            json!({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 4}),
            vec![],
        ),
        (
            json!({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 3}),
            vec![3],
        ),
        (
            json!({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 0}),
            vec![0, 1, 2, 3],
        ),
        // Where layers are listed the number is not read.
        (
            json!({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 4,
                   "layer_types": [sliding, full, sliding, full]}),
            vec![0, 2],
        ),
    ] {
        let config = Config::parse(&with(keys.clone())).unwrap();
        let found: Vec<usize> = (0..4)
            .filter(|&layer| config.attention_of(layer).window == 8)
            .collect();
        assert_eq!(found, slides, "{keys}");
        assert_eq!(Config::parse(&config.to_json()).unwrap(), config, "{keys}");
        assert_eq!(
            config.to_json().contains_key("layer_types"),
            !slides.is_empty()
        );
    }
}

#[test]
fn the_last_layers_use_keys_of_the_last_of_their_kind() {
    let (full, sliding) = ("full_attention", "sliding_attention");
    for (keys, keys_of, lenders) in [
        (json!({"num_kv_shared_layers": 0}), [0, 1, 2, 3], vec![]),
        (json!({"num_kv_shared_layers": 1}), [0, 1, 2, 2], vec![2]),
        (json!({"num_kv_shared_layers": 3}), [0, 0, 0, 0], vec![0]),
        (
            json!({"num_kv_shared_layers": 2, "use_sliding_window": true, "sliding_window": 8,
                   "layer_types": [full, sliding, full, sliding]}),
            [0, 1, 0, 1],
            vec![0, 1],
        ),
        (
            json!({"num_kv_shared_layers": 2, "use_sliding_window": true, "sliding_window": 8,
                   "layer_types": [sliding, full, sliding, sliding]}),
            [0, 1, 0, 0],
            vec![0],
        ),
    ] {
        let config = Config::parse(&with(keys.clone())).unwrap();
        assert_eq!(
            [0, 1, 2, 3].map(|l| config.attention_of(l).keys_of),
            keys_of,
            "{keys}"
        );
        let lends = |layer: &usize| config.attention_of(*layer).lends;
        assert_eq!((0..4).filter(lends).collect::<Vec<_>>(), lenders, "{keys}");
        assert_eq!(config.lenders(), lenders.len());
        assert_eq!(Config::parse(&config.to_json()).unwrap(), config, "{keys}");
    }
}

#[test]
fn layers_that_do_not_go_together_are_refused() {
    let (full, sliding) = ("full_attention", "sliding_attention");
    for (keys, part) in [
        (
            json!({"layer_types": [full, full, full, sliding]}),
            "layer 3 is a sliding_attention, but `use_sliding_window`",
        ),
        (
            json!({"use_sliding_window": true, "sliding_window": null, "max_window_layers": 0}),
            "`sliding_window` does not say",
        ),
        (
            json!({"use_sliding_window": true, "sliding_window": 0, "max_window_layers": 0}),
            "`sliding_window` is 0",
        ),
        (
            json!({"use_sliding_window": true, "sliding_window": 8}),
            "neither `layer_types` nor `max_window_layers`",
        ),
        (
            json!({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": -1}),
            "`max_window_layers` is -1",
        ),
        (
            json!({"use_sliding_window": true, "sliding_window": 8, "layer_types": [sliding]}),
            "lists 1 layers",
        ),
        (
            json!({"layer_types": [full, full, full, "chunked_attention"]}),
            "layer 3 is \"chunked_attention\"",
        ),
        (json!({"layer_types": "full_attention"}), "must be a list"),
        (
            json!({"num_kv_shared_layers": 4}),
            "`num_kv_shared_layers` is 4",
        ),
        (
            json!({"num_kv_shared_layers": "2"}),
            "must be a whole number",
        ),
        (
            json!({"num_kv_shared_layers": 2, "use_sliding_window": true, "sliding_window": 8,
                   "layer_types": [full, full, sliding, full]}),
            "layer 2 must use the keys and values of a sliding_attention among layers 0 to 1",
        ),
        (
            json!({"architectures": ["LlamaForCausalLM"], "use_sliding_window": true, "sliding_window": 8,
                   "max_window_layers": 0}),
            "a LlamaForCausalLM has no sliding windows",
        ),
        // A number that is only claimed must cost nothing.
        (
            json!({"num_hidden_layers": 1u64 << 32, "hidden_size": 4, "head_dim": 2, "num_attention_heads": 2,
                   "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 0}),
            "at most 65536",
        ),
    ] {
        let problem = Config::parse(&with(keys.clone())).unwrap_err();
        assert!(problem.contains(part), "{keys}: {problem}");
    }
}

#[test]
fn layers_without_keys_have_fewer_weights_and_bytes() {
    let plain = Config::parse(&with(json!({}))).unwrap();
    let shared = Config::parse(&with(json!({"num_kv_shared_layers": 2}))).unwrap();
    let kv = 2 * 2 * 16 * 32; // k_proj and v_proj
    assert_eq!(
        plain.projection_parameters() - shared.projection_parameters(),
        2 * kv
    );
    assert_eq!(plain.parameters() - shared.parameters(), 2 * (kv + 16)); // and k_norm
    assert_eq!(
        plain.cache_bytes_per_token(),
        2 * shared.cache_bytes_per_token()
    );
    let tensors = |config: &Config| {
        let tensors = crate::cut::tensors(config);
        tensors
            .iter()
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum::<usize>()
    };
    assert_eq!(tensors(&shared), shared.parameters());
}

/// Pairs as they are counted one by one.
#[test]
fn what_windows_hide_costs_nothing() {
    let keys = json!({"use_sliding_window": true, "sliding_window": 3, "max_window_layers": 3});
    let config = Config::parse(&with(keys)).unwrap();
    for len in [1, 2, 3, 4, 10] {
        let slow: usize = (1..=len).map(|seen: usize| 3 * seen + seen.min(3)).sum();
        assert_eq!(config.pairs(len), slow as f64, "{len}");
    }
    let cost = |context| config.forward_flops(context) - config.forward_flops(0);
    assert_eq!(cost(10), (3 * 10 + 3) as f64 * config.pair_flops());
}
