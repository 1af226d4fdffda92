//! What this machine's arithmetic gives: the peak beside which a run's speed is printed.
//!
//! "Peak" is the rate at which Russet's own product in the run's type runs on large matrices, with the run's
//! threads and instruction set, measured now. It is not the number on the data sheet, which no program on a shared
//! machine with a floating clock can be held to. Model FLOPs utilisation (MFU, arXiv 2204.02311, appendix B) relative to it
//! says which share of the time goes into the products that the model needs.

use std::time::Instant;

use russet_kernels::{Compute, Isa, Mat, MatMut, Pool, matmul_in};

use crate::price::{EXPECTED_MFU, EXPECTED_MFU_ON_TILES};

/// M = N and K of the product, large enough for every thread.
const SIZES: [usize; 2] = [1024, 1024];
/// In bf16: operands are rounded once and multiplied by as many others as M or N says, which must not be few, for rounding is then
/// a fifth of the time.
const SIZES_IN_BF16: [usize; 2] = [2048, 1024];
/// Without SIMD bodies one product of the full size takes a second, and the rate depends little on the size.
const SCALAR_SIZES: [usize; 2] = [192, 192];
/// The best of so many; the first also warms up.
const PASSES: usize = 6;

/// How fast products of a type run on this machine, and a step beside them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// 10⁹ operations a second of products alone (a multiply and an add are two).
    pub gflops: f64,
    /// The share of it that whole steps usually reach.
    pub reaches: f64,
}

impl Rate {
    /// Of all threads of `pool` together, by [`matmul_gflops_in`].
    pub fn measure(pool: &Pool, compute: Compute) -> Rate {
        let on_tiles = pool.isa() == Isa::Amx && compute == Compute::Bf16;
        Rate {
            gflops: matmul_gflops_in(pool, compute),
            reaches: if on_tiles {
                EXPECTED_MFU_ON_TILES
            } else {
                EXPECTED_MFU
            },
        }
    }
}

/// `f32` GFLOP/s (a multiply and an add are two) of all threads of `pool` together. Takes some tenths of a second.
pub fn matmul_gflops(pool: &Pool) -> f64 {
    matmul_gflops_in(pool, Compute::F32)
}

/// As [`matmul_gflops`], multiplying in the given type.
pub fn matmul_gflops_in(pool: &Pool, compute: Compute) -> f64 {
    let [size, depth] = match (pool.isa(), compute) {
        (Isa::Scalar, _) => SCALAR_SIZES,
        (_, Compute::F32) => SIZES,
        (_, Compute::Bf16) => SIZES_IN_BF16,
    };
    let values = |salt: usize| -> Vec<f32> {
        (0..size * depth)
            .map(|i| ((i * 31 + salt) % 17) as f32 - 8.0)
            .collect()
    };
    let (a, b) = (values(1), values(5));
    let mut c = vec![0.0; size * size];
    let mut best = f64::INFINITY;
    for _ in 0..PASSES {
        let start = Instant::now();
        let out = MatMut::new(&mut c, size, size);
        matmul_in(
            pool,
            compute,
            Mat::new(&a, size, depth),
            Mat::new(&b, size, depth).t(),
            out,
            false,
        );
        best = best.min(start.elapsed().as_secs_f64());
    }
    std::hint::black_box(&c);
    2.0 * (size * size * depth) as f64 / best / 1e9
}
