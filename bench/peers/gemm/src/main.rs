//! x Wᵀ in f32 by Russet and by the `gemm` crate, alternating on one set of cores; medians in GFLOP/s.
//!
//!     cargo run --release --manifest-path bench/peers/gemm/Cargo.toml [-- THREADS]

use std::time::Instant;

use gemm::Parallelism;
use russet_kernels::{Mat, MatMut, Pool, matmul, random};

/// [tokens, inputs, features]: the products of the step that `russet bench train` times, and fewer tokens.
const SHAPES: [[usize; 3]; 7] = [
    [2048, 512, 2816],
    [2048, 512, 768],
    [2048, 1408, 512],
    [512, 512, 512],
    [128, 512, 512],
    [16, 512, 512],
    [1, 512, 512],
];
const ROUNDS: usize = 15;

fn main() {
    let threads: usize = std::env::args()
        .nth(1)
        .map_or(2, |text| text.parse().expect("a number of threads"));
    let pool = Pool::new(threads).expect("RUSSET_ISA that this CPU has");
    let parallelism = if threads == 1 {
        Parallelism::None
    } else {
        Parallelism::Rayon(threads)
    };
    println!(
        "| x Wᵀ, {threads} threads, {:?} | Russet | gemm |\n|---|---|---|",
        pool.isa()
    );
    for [m, k, n] in SHAPES {
        let values = |stream, len| {
            (0..len)
                .map(|i| random::normal(1, stream, i as u64))
                .collect::<Vec<f32>>()
        };
        let (x, w) = (values(0, m * k), values(1, n * k));
        let (mut ours, mut theirs) = (vec![0.0; m * n], vec![0.0; m * n]);
        let flops = 2.0 * (m * n * k) as f64;
        let repeats = (2e8 / flops).ceil() as usize;
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            for _ in 0..repeats {
                matmul(
                    &pool,
                    Mat::new(&x, m, k),
                    Mat::new(&w, n, k).t(),
                    MatMut::new(&mut ours, m, n),
                    false,
                );
            }
            times[0].push(begun.elapsed().as_secs_f64());
            let begun = Instant::now();
            for _ in 0..repeats {
                // SAFETY: the strides are those of the row-major slices, which hold m·n, m·k and n·k numbers.
                unsafe {
                    gemm::gemm(
                        m,
                        n,
                        k,
                        theirs.as_mut_ptr(),
                        1,
                        n as isize,
                        false,
                        x.as_ptr(),
                        1,
                        k as isize,
                        w.as_ptr(),
                        k as isize,
                        1,
                        0.0,
                        1.0,
                        false,
                        false,
                        false,
                        parallelism,
                    );
                }
            }
            times[1].push(begun.elapsed().as_secs_f64());
        }
        let largest = ours
            .iter()
            .zip(&theirs)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(largest < 1e-2, "the results differ by {largest}");
        let rate = |times: &mut Vec<f64>| {
            times.sort_by(f64::total_cmp);
            flops * repeats as f64 / times[ROUNDS / 2] / 1e9
        };
        let [ours, theirs] = &mut times;
        println!(
            "| [{m}, {k}] x [{n}, {k}] | {:.0} | {:.0} |",
            rate(ours),
            rate(theirs)
        );
    }
}
