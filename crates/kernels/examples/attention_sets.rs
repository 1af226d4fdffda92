//! Attention by instruction set, type and length of sequences, forward and backward: one thread, the best of 20 runs.
//!
//! `cargo run --release -p russet-kernels --example attention_sets`
#![allow(clippy::print_stdout)]

use std::time::Instant;

use russet_kernels::attention::{NO_WINDOW, Query, attention_backward, attention_forward};
use russet_kernels::rope::HeadShape;
use russet_kernels::{Compute, Isa, Pool, random};

fn main() {
    let shape = HeadShape {
        heads: 8,
        kv_heads: 2,
        head_dim: 64,
    };
    let tokens = 2048;
    let numbers = |stream: u64, len: usize| -> Vec<f32> {
        (0..len as u64)
            .map(|i| random::normal(1, stream, i))
            .collect()
    };
    let width = shape.qkv_width();
    let qkv = numbers(0, tokens * width);
    let d_out = numbers(1, tokens * shape.q_width());
    for length in [256, 512, 2048] {
        let segments: Vec<(usize, usize)> = (0..tokens)
            .step_by(length)
            .map(|start| (start, length))
            .collect();
        let queries: Vec<Query> = segments
            .iter()
            .map(|&(start, len)| Query::flat(shape, &qkv, start, len))
            .collect();
        // Pairs of a query and a key that it sees, times 2 K operations a product.
        let operations = (tokens * (length + 1) / 2 * shape.heads * 2 * shape.head_dim) as f64;
        for isa in Isa::available().filter(|&isa| isa >= Isa::Avx2) {
            for compute in [Compute::F32, Compute::Bf16] {
                let pool = Pool::with_isa(1, isa);
                let mut out = vec![0.0; tokens * shape.q_width()];
                let mut lse = vec![0.0; tokens * shape.heads];
                let mut d_qkv = vec![0.0; tokens * width];
                let mut best = [f64::INFINITY; 2];
                for _ in 0..20 {
                    let begun = Instant::now();
                    attention_forward(
                        &pool, compute, shape, &qkv, width, &queries, &mut out, &mut lse,
                    );
                    best[0] = best[0].min(begun.elapsed().as_secs_f64());
                    let begun = Instant::now();
                    attention_backward(
                        &pool, compute, shape, NO_WINDOW, &qkv, &segments, &out, &lse, &d_out,
                        &mut d_qkv,
                    );
                    best[1] = best[1].min(begun.elapsed().as_secs_f64());
                }
                println!(
                    "{length:5} {isa:?} {compute:?}: forward {:.2} ms, {:.0} GFLOP/s; backward {:.2} ms, {:.0} GFLOP/s",
                    best[0] * 1e3,
                    2.0 * operations / best[0] / 1e9,
                    best[1] * 1e3,
                    5.0 * operations / best[1] / 1e9,
                );
            }
        }
    }
}
