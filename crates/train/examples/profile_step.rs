//! Where the time of a training step goes: the whole step measured, and beside it each kernel alone at the step's shapes.
//!
//! `cargo run --release -p russet-train --example profile_step [-- NAME=VALUE ...]` with the names of [`Shape`], `threads`,
//! `dtype` (`f32` or `bf16`), `recompute` (`none` or `block`), `steps`, and `kernels=0` to measure the step alone.
//!
//! The sum of the kernels is about the step: what is missing is memory that other operations have pushed out of cache.
#![allow(clippy::print_stdout)]

use std::sync::Arc;
use std::time::Instant;

use russet_kernels::attention::{Query, attention_backward, attention_forward};
use russet_kernels::rope::{RopeTable, qk_norm_rope_backward, qk_norm_rope_forward};
use russet_kernels::{
    Compute, Mat, MatMut, Pool, cross_entropy, elementwise, embedding, matmul_in, norm, optimizer,
    random, swiglu,
};
use russet_model::config::RopeScaling;
use russet_model::{Config, Decoder, Family};
use russet_tensor::{Ctx, Gradients, Segments};
use russet_train::optimizer::{clip_gradients, gradient_norm};
use russet_train::{AdamWSettings, Batch, NextToken, Objective, Optimizer, matmul_gflops_in};

/// What is measured; by default the step of a decoder of 21 M parameters.
struct Shape {
    dim: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    ffn: usize,
    vocab: usize,
    seq: usize,
    batch: usize,
}

impl Shape {
    fn tokens(&self) -> usize {
        self.batch * self.seq
    }

    fn config(&self) -> Config {
        Config {
            family: Family::Qwen3,
            vocab: self.vocab,
            width: self.dim,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.dim / self.heads,
            ffn: self.ffn,
            norm_epsilon: 1e-5,
            rope_theta: 500_000.0,
            rope_scaling: RopeScaling::None,
            context: self.seq,
            tied: true,
            bos: None,
            eos: vec![],
        }
    }
}

fn main() {
    let mut shape = Shape {
        dim: 512,
        layers: 6,
        heads: 8,
        kv_heads: 2,
        ffn: 1408,
        vocab: 8192,
        seq: 256,
        batch: 8,
    };
    let (mut threads, mut steps, mut alone) = (2, 8, 1);
    let (mut compute, mut recompute) = (Compute::F32, false);
    for argument in std::env::args().skip(1) {
        let (name, value) = argument.split_once('=').expect("NAME=VALUE");
        if name == "dtype" {
            compute = match value {
                "f32" => Compute::F32,
                "bf16" => Compute::Bf16,
                _ => panic!("dtype is f32 or bf16, not {value}"),
            };
            continue;
        }
        if name == "recompute" {
            recompute = match value {
                "none" => false,
                "block" => true,
                _ => panic!("recompute is none or block, not {value}"),
            };
            continue;
        }
        let place = match name {
            "dim" => &mut shape.dim,
            "layers" => &mut shape.layers,
            "heads" => &mut shape.heads,
            "kv_heads" => &mut shape.kv_heads,
            "ffn" => &mut shape.ffn,
            "vocab" => &mut shape.vocab,
            "seq" => &mut shape.seq,
            "batch" => &mut shape.batch,
            "threads" => &mut threads,
            "steps" => &mut steps,
            "kernels" => &mut alone,
            _ => panic!("`{name}` is none of the names that the top of this file lists"),
        };
        *place = value.parse().expect("a whole number");
    }
    let pool = Arc::new(Pool::new(threads).expect("RUSSET_ISA that this CPU has"));
    let (config, tokens) = (shape.config(), shape.tokens());
    println!(
        "{:.2} M parameters, {tokens} tokens a step, {threads} threads, {:?}, {compute:?}",
        config.parameters() as f64 / 1e6,
        pool.isa()
    );
    let peak = matmul_gflops_in(&pool, compute);
    let step = whole_step(&shape, (compute, recompute), &pool, steps as u64);
    // Tokens see half of their window.
    let flops = 3.0 * tokens as f64 * config.forward_flops(shape.seq / 2);
    println!(
        "step {:.1} ms, {:.0} tokens/s, {:.1} GFLOP/s = {:.1} % of a peak of {peak:.0} GFLOP/s\n",
        step * 1e3,
        tokens as f64 / step,
        flops / step / 1e9,
        flops / step / 1e7 / peak
    );
    println!("resident at most {:.0} MB", resident_peak());
    if alone == 0 {
        return;
    }
    let mut rows = kernels(&shape, compute, &pool);
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
        matmul_gflops_in(&pool, compute)
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

/// The most memory that this process had, in MB; 0 where the system does not say.
fn resident_peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok())
        .map_or(0.0, |kib| kib * 1024.0 / 1e6)
}

/// Seconds of all threads so far; 0 where the system does not say.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace();
    ticks
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum::<f64>()
        / 100.0
}

/// Seconds of the fastest of some steps; the parts are printed.
fn whole_step(
    shape: &Shape,
    (compute, recompute): (Compute, bool),
    pool: &Arc<Pool>,
    steps: u64,
) -> f64 {
    let (config, tokens) = (&shape.config(), shape.tokens());
    let mut ctx = Ctx::new(pool.clone());
    ctx.compute = compute;
    ctx.recompute = recompute;
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
        segments: Segments::packed(&vec![shape.seq; shape.batch]),
        targets: ids(tokens, config.vocab),
        weights: vec![1.0 / tokens as f32; tokens],
        ..Batch::default()
    };
    let mut gradients = Gradients::default();
    let mut best = [f64::INFINITY; 4];
    let mut all = Vec::new();
    let mut cpu = 0.0;
    for step in 1..=steps {
        if step == 2 {
            cpu = cpu_seconds();
        }
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
        all.push(whole);
        if whole < best[3] {
            best = [forward, backward, update, whole];
        }
    }
    let [forward, backward, update, whole] = best.map(|seconds| seconds * 1e3);
    println!(
        "forward with the loss {forward:.1} ms, backward {backward:.1} ms, clip and update {update:.1} ms, all {whole:.1} ms"
    );
    all.sort_by(f64::total_cmp);
    println!(
        "median step {:.1} ms; after the first {:.2} processor seconds a step",
        1e3 * all[all.len() / 2],
        (cpu_seconds() - cpu) / (steps - 1).max(1) as f64
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
fn kernels(of: &Shape, compute: Compute, pool: &Pool) -> Vec<(String, f64)> {
    let config = &of.config();
    let (n, d, f, v) = (of.tokens(), config.width, config.ffn, config.vocab);
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
            matmul_in(
                pool,
                compute,
                x,
                w.t(),
                MatMut::new(&mut y, n, outputs),
                false,
            );
        });
        let backward = time(layers, || {
            let (x, w, dy) = (
                Mat::new(&x, n, inputs),
                Mat::new(&w, outputs, inputs),
                Mat::new(&y, n, outputs),
            );
            matmul_in(
                pool,
                compute,
                dy.t(),
                x,
                MatMut::new(&mut dw, outputs, inputs),
                true,
            );
            matmul_in(pool, compute, dy, w, MatMut::new(&mut dx, n, inputs), false);
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
    let positions: Vec<u32> = (0..n as u32).map(|i| i % of.seq as u32).collect();
    let table = RopeTable::new(of.seq, config.head_dim, 500_000.0);
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
    let segments: Vec<(usize, usize)> = (0..of.batch).map(|s| (s * of.seq, of.seq)).collect();
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
            compute,
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
