//! What a step of each optimizer costs on the blocks of a 21.1 M-parameter decoder, and what share of the memory's rate it
//! reaches.
//!
//! `cargo run --release -p russet-train --example optimizer_rates [-- threads]`
#![allow(clippy::print_stdout)]

use std::time::Instant;

use russet_kernels::optimizer::{AdaStar, AdamW, RmsProp, adamw_step, adastar_step, rmsprop_step};
use russet_kernels::{Pool, random};

/// Width 512, 6 layers, 8 heads, 4 of keys and values, feed-forward 1408, vocabulary 8192; norms are nothing beside them.
fn blocks() -> Vec<usize> {
    let layer = [
        512 * 512,
        256 * 512,
        256 * 512,
        512 * 512,
        1408 * 512,
        1408 * 512,
        1408 * 512,
    ];
    let mut blocks = vec![8192 * 512];
    blocks.extend([layer; 6].as_flattened());
    blocks
}

fn main() {
    let threads = std::env::args()
        .nth(1)
        .map_or(2, |text| text.parse().expect("a number of threads"));
    let pool = Pool::new(threads).expect("RUSSET_ISA that this CPU has");
    let blocks = blocks();
    let parameters: usize = blocks.iter().sum();
    let draw = |stream| -> Vec<f32> {
        (0..parameters as u64)
            .map(|i| random::normal(1, stream, i))
            .collect()
    };
    let (mut w, g) = (draw(0), draw(1));
    let (mut m, mut v) = (vec![0.0; parameters], vec![0.0; parameters]);
    println!(
        "{:.1} M weights, {threads} threads, {:?}",
        parameters as f64 / 1e6,
        pool.isa()
    );
    let adamw = AdamW {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        grad_scale: 0.5,
        step: 3,
    };
    let adastar = AdaStar {
        rate: 1e-3,
        decay: 3e-4,
        beta1: 0.95,
        beta2: 0.95,
        eps: 1e-30,
        clip_rms: 1.0,
        grad_scale: 0.5,
        step: 3,
    };
    let rmsprop = RmsProp {
        lr: 1e-3,
        alpha: 0.99,
        momentum: 0.9,
        eps: 1e-8,
        weight_decay: 0.0,
        grad_scale: 0.5,
    };
    // Floats that go over the bus for a weight: read w, g, m, v and write w, m, v; AdaStar reads g and v twice.
    for (name, floats) in [("adamw", 7), ("rmsprop", 7), ("adastar", 9)] {
        let mut best = f64::INFINITY;
        for _ in 0..12 {
            let begun = Instant::now();
            let mut at = 0;
            for &len in &blocks {
                let block = at..at + len;
                at = block.end;
                let (w, g) = (&mut w[block.clone()], &g[block.clone()]);
                let (m, v) = (&mut m[block.clone()], &mut v[block]);
                match name {
                    "adamw" => adamw_step(&pool, &adamw, w, g, m, v),
                    "rmsprop" => rmsprop_step(&pool, &rmsprop, w, g, m, v),
                    _ => {
                        adastar_step(&pool, &adastar, w, g, m, v);
                    }
                }
            }
            best = best.min(begun.elapsed().as_secs_f64());
        }
        let rate = (4 * floats * parameters) as f64 / best / 1e9;
        println!("{name:<8} {:6.2} ms {rate:6.1} GB/s", best * 1e3);
    }
}
