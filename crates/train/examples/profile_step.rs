//! Where the time of a training step goes: the whole step measured, and beside it each kernel alone at the step's shapes.
//!
//! `cargo run --release -p russet-train --example profile_step [-- threads]`
//!
//! The sum of the kernels is about the step: what is missing is memory that other operations have pushed out of cache.
#![allow(clippy::print_stdout)]

use std::sync::Arc;
use std::time::Instant;

use russet_kernels::attention::{Query, attention_backward, attention_forward};
use russet_kernels::rope::{RopeTable, qk_norm_rope_backward, qk_norm_rope_forward};
use russet_kernels::{
    Mat, MatMut, Pool, cross_entropy, elementwise, embedding, matmul, norm, optimizer, random,
    swiglu,
};
use russet_model::config::RopeScaling;
use russet_model::{Config, Decoder, Family};
use russet_tensor::{Ctx, Gradients, Segments};
use russet_train::optimizer::{clip_gradients, gradient_norm};
use russet_train::{AdamWSettings, Batch, NextToken, Objective, Optimizer, matmul_gflops};

const SEQUENCES: usize = 8;
const LENGTH: usize = 256;
const STEPS: u64 = 8;

fn main() {
    let threads = std::env::args()
        .nth(1)
        .map_or(2, |text| text.parse().expect("a number of threads"));
    let pool = Arc::new(Pool::new(threads).expect("RUSSET_ISA that this CPU has"));
    let config = Config {
        family: Family::Qwen3,
        vocab: 8192,
        width: 512,
        layers: 6,
        heads: 8,
        kv_heads: 2,
        head_dim: 64,
        ffn: 1408,
        norm_epsilon: 1e-5,
        rope_theta: 500_000.0,
        rope_scaling: RopeScaling::None,
        context: LENGTH,
        tied: true,
        bos: None,
        eos: vec![],
    };
    let tokens = SEQUENCES * LENGTH;
    println!(
        "{:.2} M parameters, {tokens} tokens a step, {threads} threads, {:?}",
        config.parameters() as f64 / 1e6,
        pool.isa()
    );
    let peak = matmul_gflops(&pool);
    let step = whole_step(&config, &pool);
    // Tokens see half of their window.
    let flops = 3.0 * tokens as f64 * config.forward_flops(LENGTH / 2);
    println!(
        "step {:.1} ms, {:.0} tokens/s, {:.1} GFLOP/s = {:.1} % of a peak of {peak:.0} GFLOP/s\n",
        step * 1e3,
        tokens as f64 / step,
        flops / step / 1e9,
        flops / step / 1e7 / peak
    );
    let mut rows = kernels(&config, &pool);
    rows.sort_by(|a, b| b.1.total_cmp(&a.1));
    let sum: f64 = rows.iter().map(|row| row.1).sum();
    for (name, seconds) in &rows {
        println!(
            "{name:<28} {:8.2} ms {:5.1} %",
            seconds * 1e3,
            100.0 * seconds / step
        );
    }
    println!(
        "{:<28} {:8.2} ms {:5.1} %",
        "all else",
        (step - sum) * 1e3,
        100.0 * (step - sum) / step
    );
    println!(
        "\npeak of the probe afterwards {:.0} GFLOP/s",
        matmul_gflops(&pool)
    );
}

fn ids(count: usize, vocab: usize) -> Vec<u32> {
    (0..count as u64)
        .map(|i| random::below(1, 0, i, vocab as u64) as u32)
        .collect()
}

fn values(len: usize) -> Vec<f32> {
    (0..len as u64).map(|i| random::normal(2, 0, i)).collect()
}

/// Seconds of the fastest of some steps; the parts are printed.
fn whole_step(config: &Config, pool: &Arc<Pool>) -> f64 {
    let tokens = SEQUENCES * LENGTH;
    let mut ctx = Ctx::new(pool.clone());
    let mut decoder = Decoder::random(config, 1);
    let settings = AdamWSettings {
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
    };
    let mut optimizer = Optimizer::adamw(settings, &decoder);
    let batch = Batch {
        tokens: ids(tokens, config.vocab),
        segments: Segments::packed(&[LENGTH; SEQUENCES]),
        targets: ids(tokens, config.vocab),
        weights: vec![1.0 / tokens as f32; tokens],
        ..Batch::default()
    };
    let mut gradients = Gradients::default();
    let mut best = [f64::INFINITY; 4];
    for step in 1..=STEPS {
        let mut clock = Instant::now();
        let mut lap = || {
            std::mem::replace(&mut clock, Instant::now())
                .elapsed()
                .as_secs_f64()
        };
        ctx.start_tape(
            decoder
                .parameters()
                .iter()
                .map(|parameter| parameter.tensor.id()),
        );
        let loss = NextToken.loss(&decoder, &mut ctx, &batch).loss;
        let forward = lap();
        ctx.backward(&loss, 1.0, &mut gradients);
        let backward = lap();
        let norm = gradient_norm(pool, &decoder, &gradients);
        clip_gradients(pool, &decoder, &mut gradients, norm, 1.0);
        optimizer.update(pool, &mut decoder, &gradients, step, 1e-3);
        gradients.clear();
        let update = lap();
        let whole = forward + backward + update;
        if whole < best[3] {
            best = [forward, backward, update, whole];
        }
    }
    let [forward, backward, update, whole] = best.map(|seconds| seconds * 1e3);
    println!(
        "forward with the loss {forward:.1} ms, backward {backward:.1} ms, clip and update {update:.1} ms, all {whole:.1} ms"
    );
    println!(
        "activations and gradients at most {:.1} MiB",
        ctx.peak_bytes() as f64 / (1 << 20) as f64
    );
    best[3]
}

/// Seconds of the fastest of five runs, times how often a step does it.
fn time(times: usize, mut run: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let begun = Instant::now();
        run();
        best = best.min(begun.elapsed().as_secs_f64());
    }
    best * times as f64
}

/// Each kernel's seconds in a step.
fn kernels(config: &Config, pool: &Pool) -> Vec<(String, f64)> {
    let (n, d, f, v) = (SEQUENCES * LENGTH, config.width, config.ffn, config.vocab);
    let (shape, layers) = (config.head_shape(), config.layers);
    let (q, heads) = (config.qkv_width(), config.heads * config.head_dim);
    let mut rows = Vec::new();
    let mut row = |name: &str, seconds: f64| rows.push((name.to_owned(), seconds));

    for (name, inputs, outputs) in [
        ("qkv", d, q),
        ("output", heads, d),
        ("gate_up", d, 2 * f),
        ("down", f, d),
    ] {
        let (x, w) = (values(n * inputs), values(outputs * inputs));
        let (mut y, mut dx, mut dw) = (
            values(n * outputs),
            values(n * inputs),
            values(outputs * inputs),
        );
        let forward = time(layers, || {
            let (x, w) = (Mat::new(&x, n, inputs), Mat::new(&w, outputs, inputs));
            matmul(pool, x, w.t(), MatMut::new(&mut y, n, outputs), false);
        });
        let backward = time(layers, || {
            let (x, w, dy) = (
                Mat::new(&x, n, inputs),
                Mat::new(&w, outputs, inputs),
                Mat::new(&y, n, outputs),
            );
            matmul(pool, dy.t(), x, MatMut::new(&mut dw, outputs, inputs), true);
            matmul(pool, dy, w, MatMut::new(&mut dx, n, inputs), false);
        });
        row(&format!("product {name} forward"), forward);
        row(&format!("product {name} backward"), backward);
    }

    let (x, w) = (values(n * d), values(d));
    let (mut out, mut inv, mut dx, mut dw) =
        (values(n * d), vec![1.0; n], values(n * d), values(d));
    row(
        "rms_norm forward",
        time(2 * layers + 1, || {
            norm::rms_norm_forward(pool, &x, &w, 1e-5, &mut out, &mut inv)
        }),
    );
    row(
        "rms_norm backward",
        time(2 * layers + 1, || {
            norm::rms_norm_backward(pool, &x, &w, &inv, &out, &mut dx, &mut dw)
        }),
    );
    row(
        "residual sums",
        time(4 * layers, || elementwise::add(pool, &x, &out, &mut dx)),
    );

    let qkv = values(n * q);
    let positions: Vec<u32> = (0..n as u32).map(|i| i % LENGTH as u32).collect();
    let table = RopeTable::new(LENGTH, config.head_dim, 500_000.0);
    let k = values(config.head_dim);
    let (mut rotated, mut inv) = (
        values(n * q),
        vec![1.0; n * (config.heads + config.kv_heads)],
    );
    let forward = time(layers, || {
        qk_norm_rope_forward(
            pool,
            shape,
            &qkv,
            &positions,
            &table,
            Some(&k),
            Some(&k),
            1e-5,
            &mut rotated,
            &mut inv,
        );
    });
    row("qk_norm_rope forward", forward);
    let (mut d_qkv, mut dq, mut dk) = (values(n * q), k.clone(), k.clone());
    let backward = time(layers, || {
        let norms = (Some(&mut dq[..]), Some(&mut dk[..]));
        qk_norm_rope_backward(
            pool,
            shape,
            &qkv,
            &positions,
            &table,
            Some(&k),
            Some(&k),
            &inv,
            &rotated,
            &mut d_qkv,
            norms.0,
            norms.1,
        );
    });
    row("qk_norm_rope backward", backward);

    let (mut attended, mut lse) = (values(n * heads), vec![0.0; n * config.heads]);
    let segments: Vec<(usize, usize)> = (0..SEQUENCES).map(|s| (s * LENGTH, LENGTH)).collect();
    let queries: Vec<Query> = segments
        .iter()
        .map(|&(start, len)| Query::flat(shape, &rotated, start, len))
        .collect();
    let forward = time(layers, || {
        attention_forward(pool, shape, &rotated, q, &queries, &mut attended, &mut lse)
    });
    row("attention forward", forward);
    let d_out = values(n * heads);
    let backward = time(layers, || {
        attention_backward(
            pool, shape, &rotated, &segments, &attended, &lse, &d_out, &mut d_qkv,
        );
    });
    row("attention backward", backward);

    let (gate_up, mut hidden, mut d_gate_up) =
        (values(n * 2 * f), values(n * f), values(n * 2 * f));
    row(
        "swiglu forward",
        time(layers, || swiglu::forward(pool, &gate_up, f, &mut hidden)),
    );
    row(
        "swiglu backward",
        time(layers, || {
            swiglu::backward(pool, &gate_up, f, &hidden, &mut d_gate_up)
        }),
    );

    let (table, tokens) = (values(v * d), ids(n, v));
    let (mut d_table, mut losses, weights) = (values(v * d), vec![0.0; n], vec![1.0 / n as f32; n]);
    row(
        "embedding forward",
        time(1, || embedding::gather(pool, &table, &tokens, &mut out)),
    );
    row(
        "embedding backward",
        time(1, || {
            embedding::scatter_add(pool, &tokens, &x, &mut d_table)
        }),
    );
    let both = time(1, || {
        cross_entropy::forward_backward(
            pool,
            &x,
            &table,
            &tokens,
            &weights,
            &mut losses,
            &mut dx,
            &mut d_table,
        );
    });
    row("cross_entropy, both", both);
    row(
        "rotary table",
        time(1, || drop(config.rope_table(&positions))),
    );

    let parameters = config.parameters();
    let (mut weight, grad, mut m, mut s) = (
        values(parameters),
        values(parameters),
        vec![0.0; parameters],
        vec![0.0; parameters],
    );
    row(
        "gradient norm",
        time(1, || {
            std::hint::black_box(elementwise::sum_of_squares(pool, &grad));
        }),
    );
    let adamw = optimizer::AdamW {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        step: 3,
    };
    row(
        "adamw",
        time(1, || {
            optimizer::adamw_step(pool, &adamw, &mut weight, &grad, &mut m, &mut s)
        }),
    );
    rows
}
