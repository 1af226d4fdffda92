//! The rate of dense products at the shapes of a training step: y = x Wᵀ, dX = dY W and dW += dYᵀ X, in f32 and in bf16.
//!
//! `cargo run --release -p russet-kernels --example matmul_rate [-- threads [rounds]]`
//!
//! The peak is that of the multiply-add instruction on registers, all threads together, measured in the same run.
#![allow(clippy::print_stdout, unsafe_code)]

use std::hint::black_box;
use std::time::Instant;

use russet_kernels::{Compute, Isa, Mat, MatMut, Pool, matmul_in, random};

const TOKENS: usize = 2048;
/// Outputs x inputs of the weights of a decoder 512 wide, and its table.
const WEIGHTS: [(usize, usize); 5] = [
    (768, 512),
    (512, 512),
    (2816, 512),
    (512, 1408),
    (8192, 512),
];

fn main() {
    let number = |index: usize, or: usize| {
        std::env::args()
            .nth(index)
            .map_or(or, |text| text.parse().expect("a number"))
    };
    let pool = Pool::new(number(1, 2)).expect("RUSSET_ISA that this CPU has");
    let rounds = number(2, 7);
    let peaks = [Compute::F32, Compute::Bf16].map(|compute| peak(&pool, compute));
    println!(
        "{} threads, {:?}, bf16 pairs: {}; register peaks f32 {:.0}, bf16 {:.0} GFLOP/s",
        pool.threads(),
        pool.isa(),
        Isa::has_bf16(),
        peaks[0],
        peaks[1]
    );
    println!("W (outputs x inputs)  product   f32 GFLOP/s  of peak   bf16 GFLOP/s  of peak");
    let mut sums = [[0.0; 2]; 2]; // seconds, operations
    for (outputs, inputs) in WEIGHTS {
        let values = |stream: u64, len: usize| -> Vec<f32> {
            (0..len as u64)
                .map(|i| random::normal(1, stream, i))
                .collect()
        };
        let (x, w) = (values(1, TOKENS * inputs), values(2, outputs * inputs));
        let (mut y, mut dx, mut dw) = (
            values(3, TOKENS * outputs),
            values(4, TOKENS * inputs),
            values(5, outputs * inputs),
        );
        for product in ["forward", "dX", "dW"] {
            let flops = 2.0 * (TOKENS * outputs * inputs) as f64;
            let mut best = [f64::INFINITY; 2];
            for _ in 0..rounds {
                for (compute, best) in [Compute::F32, Compute::Bf16].into_iter().zip(&mut best) {
                    let (xm, wm) = (Mat::new(&x, TOKENS, inputs), Mat::new(&w, outputs, inputs));
                    let begun = Instant::now();
                    match product {
                        "forward" => {
                            let y = MatMut::new(&mut y, TOKENS, outputs);
                            matmul_in(&pool, compute, xm, wm.t(), y, false);
                        }
                        "dX" => {
                            let (y, dx) = (
                                Mat::new(&y, TOKENS, outputs),
                                MatMut::new(&mut dx, TOKENS, inputs),
                            );
                            matmul_in(&pool, compute, y, wm, dx, false);
                        }
                        _ => {
                            let (y, dw) = (
                                Mat::new(&y, TOKENS, outputs),
                                MatMut::new(&mut dw, outputs, inputs),
                            );
                            matmul_in(&pool, compute, y.t(), xm, dw, true);
                        }
                    }
                    *best = best.min(begun.elapsed().as_secs_f64());
                }
            }
            let rate = best.map(|seconds| flops / seconds / 1e9);
            println!(
                "{outputs:5} x {inputs:<5}         {product:8} {:11.0} {:7.0} % {:13.0} {:7.0} %",
                rate[0],
                100.0 * rate[0] / peaks[0],
                rate[1],
                100.0 * rate[1] / peaks[1]
            );
            for (sum, best) in sums.iter_mut().zip(best) {
                sum[0] += best;
                sum[1] += flops;
            }
        }
    }
    for (name, (sum, peak)) in ["f32", "bf16"].into_iter().zip(sums.into_iter().zip(peaks)) {
        let rate = sum[1] / sum[0] / 1e9;
        println!(
            "all, {name}: {rate:.0} GFLOP/s, {:.0} % of the peak",
            100.0 * rate / peak
        );
    }
}

/// GFLOP/s of independent chains of multiply-adds in registers; 0 where the instruction does not exist.
fn peak(pool: &Pool, compute: Compute) -> f64 {
    const TURNS: usize = 1_000_000;
    let mut best = 0.0f64;
    for _ in 0..5 {
        let begun = Instant::now();
        let tasks = pool.threads();
        pool.run(tasks, |_| chains(pool.isa(), compute, TURNS));
        let width = match compute {
            Compute::F32 => 2.0 * 16.0 * 12.0,
            Compute::Bf16 if pool.isa() == Isa::Amx => 4.0 * 2.0 * 16.0 * 16.0 * 32.0,
            Compute::Bf16 => 4.0 * 16.0 * 12.0,
        };
        let flops = width * (TURNS * tasks) as f64;
        best = best.max(flops / begun.elapsed().as_secs_f64() / 1e9);
    }
    if supported(pool.isa(), compute) {
        best
    } else {
        0.0
    }
}

fn supported(isa: Isa, compute: Compute) -> bool {
    cfg!(target_arch = "x86_64")
        && isa >= Isa::Avx512
        && (compute == Compute::F32 || Isa::has_bf16())
}

/// Twelve chains: more than the latency of any such instruction. Of tiles four, as there are registers for.
fn chains(isa: Isa, compute: Compute, turns: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::*;
        #[target_feature(enable = "avx512f")]
        fn f32_chains(turns: usize) {
            let mut sums = [_mm512_setzero_ps(); 12];
            let x = black_box(_mm512_set1_ps(1.0));
            for _ in 0..turns {
                for sum in &mut sums {
                    *sum = _mm512_fmadd_ps(x, x, *sum);
                }
            }
            black_box(sums);
        }
        #[target_feature(enable = "avx512f,avx512bf16")]
        fn bf16_chains(turns: usize) {
            let mut sums = [_mm512_setzero_ps(); 12];
            let x = black_box(_mm512_set1_ps(1.0));
            let x = _mm512_cvtne2ps_pbh(x, x);
            for _ in 0..turns {
                for sum in &mut sums {
                    *sum = _mm512_dpbf16_ps(*sum, x, x);
                }
            }
            black_box(sums);
        }
        /// `isa` being AMX, which `Pool` has asked the system for.
        fn tile_chains(turns: usize) {
            #[repr(align(64))]
            struct Config([u8; 64]);
            let mut config = Config([0; 64]);
            config.0[0] = 1;
            for tile in 0..8 {
                (config.0[16 + 2 * tile], config.0[48 + tile]) = (64, 16);
            }
            // SAFETY: tile registers are nobody else's here.
            unsafe {
                std::arch::asm!(
                    "ldtilecfg [{config}]",
                    "2:",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "dec {turns}",
                    "jnz 2b",
                    "tilerelease",
                    config = in(reg) config.0.as_ptr(),
                    turns = inout(reg) turns => _,
                );
            }
        }
        if supported(isa, compute) {
            // SAFETY: `supported` has asked the CPU.
            unsafe {
                match compute {
                    Compute::F32 => f32_chains(turns),
                    Compute::Bf16 if isa == Isa::Amx => tile_chains(turns),
                    Compute::Bf16 => bf16_chains(turns),
                }
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = black_box((isa, compute, turns));
}
