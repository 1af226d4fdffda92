//! The trace: every operation of every step, with what the shapes say it must move and compute.

mod common;

use std::collections::BTreeMap;

use common::{CONTEXT, adapter, greedy, palettized, pool, tokens};
use russet_engine::{Engine, EngineConfig, Flow, Generate, Request, bytes_per_token};
use russet_model::KvFormat;
use russet_tensor::Trace;
use serde_json::Value;

#[test]
fn attention_moves_what_the_cache_holds() {
    for (format, token) in [
        (KvFormat::F32, 4 * 2 * 2 * 16),
        (KvFormat::F16, 2 * 2 * 2 * 16),
        (KvFormat::Int8, 2 * (16 + 16 + 8)),
    ] {
        let config = EngineConfig {
            format,
            ..EngineConfig::new(CONTEXT, 1)
        };
        let mut engine = Engine::new(palettized(), pool(1), config).unwrap();
        engine.set_trace(Some(Trace::default()));
        let request = greedy(tokens(1, 10), 3);
        engine.generate(&request, &mut |_| Flow::Continue).unwrap();
        let trace = engine.set_trace(None).unwrap();
        let steps = trace.events().iter().filter(|e| e.op.name == "attention");
        let moved: Vec<u64> = steps.map(|event| event.op.bytes).step_by(2).collect();
        // Four heads of 16 in and out for each row, and what ten, eleven and twelve tokens have in two key heads of 16.
        let expected = [(10, 10), (1, 11), (1, 12)].map(|(rows, keys)| rows * 512 + keys * token);
        assert_eq!(moved, expected, "{format:?}");
    }
}

#[test]
fn operations_are_written_down_with_layers_bytes_and_flops() {
    let decoder = palettized();
    let per_token = bytes_per_token(&decoder);
    let config = EngineConfig::new(CONTEXT, 2);
    let mut engine = Engine::new(decoder, pool(2), config).unwrap();
    let folder = adapter(2, 1, "self_attn");
    engine.adapters().load("a", folder.path()).unwrap();
    let request = Request {
        adapters: vec!["a".into()],
        ..greedy(tokens(1, 10), 3)
    };
    let silent = engine.generate(&request, &mut |_| Flow::Continue).unwrap();
    assert!(engine.set_trace(Some(Trace::default())).is_none());
    let made = engine.generate(&request, &mut |_| Flow::Continue).unwrap();
    assert_eq!(made.tokens, silent.tokens);
    let trace = engine.set_trace(None).unwrap();

    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for event in trace.events() {
        *counts.entry(event.op.name).or_default() += 1;
    }
    // Three steps of two layers; two norms a layer. Sums and gates are parts of the products before them.
    for (name, count) in [
        ("step", 3),
        ("schedule", 3),
        ("sample", 3),
        ("logits", 3),
        ("norm", 12),
        ("rope", 6),
        ("attention", 6),
        ("qkv", 6),
        ("output", 6),
        ("gate_up", 6),
        ("down", 6),
    ] {
        assert_eq!(counts.get(name), Some(&count), "{name}");
    }
    // The first pass has ten rows, of which the products make two operations a weight and row.
    let first: Vec<_> = trace
        .events()
        .iter()
        .take_while(|e| e.op.name != "step")
        .collect();
    let sum = |name: &str| -> u64 {
        let of = first.iter().filter(|e| e.op.name == name);
        of.map(|event| event.op.flops).sum()
    };
    // So have an adapter's of rank 2, counted where they are added; then there is one a number for the sum, and eight for a gate.
    assert_eq!(sum("qkv"), 2 * 2 * 10 * (48 * 128 + 2 * (3 * 48 + 128)));
    let output = 2 * (64 * 48 + 2 * (64 + 48)) + 48;
    assert_eq!(sum("output"), 2 * 10 * output);
    assert_eq!(sum("gate_up"), 2 * 10 * (2 * 48 * 160 + 8 * 80));
    assert_eq!(sum("down"), 2 * 10 * (2 * 80 * 48 + 48));
    assert_eq!(sum("logits"), 2 * 48 * 97);
    // q kᵀ and the sum of values for 55 pairs of positions.
    assert_eq!(sum("attention"), 2 * 2 * 2 * 55 * 4 * 16);
    // Of one row, weights are most of what moves.
    let steps: Vec<_> = trace
        .events()
        .split(|event| event.op.name == "step")
        .collect();
    let products = ["qkv", "output", "gate_up", "down", "logits"];
    let moved = steps[1].iter().filter(|e| products.contains(&e.op.name));
    let moved: u64 = moved.map(|event| event.op.bytes).sum();
    assert!(moved > per_token as u64 * 9 / 10 && moved < 2 * per_token as u64);

    let mut json = Vec::new();
    trace.write(&mut json).unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    let events = json["traceEvents"].as_array().unwrap();
    assert_eq!(events.len(), trace.events().len());
    let step = events.iter().find(|event| event["name"] == "step").unwrap();
    let inside = events.iter().find(|event| event["name"] == "qkv").unwrap();
    assert_eq!(
        (&inside["args"]["layer"], &inside["ph"]),
        (&0.into(), &"X".into())
    );
    let span = |event: &Value| {
        let start = event["ts"].as_f64().unwrap();
        (start, start + event["dur"].as_f64().unwrap())
    };
    assert!(span(step).0 <= span(inside).0 && span(inside).1 <= span(step).1);
}
