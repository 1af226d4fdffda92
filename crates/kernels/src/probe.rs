//! What this machine can give: the ceilings beside which decode and prefill figures are printed.
//!
//! A decoded token reads every weight once, so a model of W bytes cannot decode faster than
//! bandwidth / W tokens a second. On a shared machine the bandwidth drifts by a factor of two
//! within minutes: probe in the same run, next to the figure it explains. It leaves out caches,
//! writes and latency.

use crate::Pool;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Larger than any L3 that matters here, so that every pass comes from memory.
const BYTES: usize = 256 << 20;
/// What a task reads: long enough that claiming it costs nothing.
const TASK: usize = 256 << 10;
const PASSES: usize = 5;

/// Sequential read bandwidth from memory in GB/s (1e9 bytes), all threads of `pool` together: the
/// best of five passes over 256 MiB. Takes a few tenths of a second.
pub fn dram_read_gb_s(pool: &Pool) -> f64 {
    // Written, not only reserved: untouched pages all map to one page of zeros.
    let data: Vec<u64> = (0..BYTES as u64 / 8).collect();
    let mut best = f64::INFINITY;
    for _ in 0..PASSES {
        let start = Instant::now();
        stream(pool, bytemuck::cast_slice(&data));
        best = best.min(start.elapsed().as_secs_f64());
    }
    BYTES as f64 / best / 1e9
}

/// Reads all of `data` once, in tasks of 256 KiB.
pub fn stream(pool: &Pool, data: &[u8]) {
    pool.run(data.len().div_ceil(TASK), |task| {
        let data = &data[task * TASK..data.len().min((task + 1) * TASK)];
        black_box(match pool.isa() {
            // SAFETY: the pool vouches for its instruction set.
            #[cfg(target_arch = "x86_64")]
            crate::Isa::Avx512 | crate::Isa::Amx => unsafe { fold_avx512(data) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            crate::Isa::Avx2 => unsafe { fold_avx2(data) },
            _ => fold(data),
        });
    });
}

/// How many bytes before their use lines are asked for: hardware prefetch stops at each page's end,
/// and a probe that waits there would call slower kernels perfect.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 4096;

/// Something that needs every byte and costs less than loading it.
#[inline(always)]
fn fold(data: &[u8]) -> u64 {
    let mut sums = [0u64; 64]; // eight 64-byte lines: enough independent chains for any width
    let lines = data.chunks_exact(512);
    let rest = lines.remainder();
    for line in lines {
        #[cfg(target_arch = "x86_64")]
        for part in (0..512).step_by(64) {
            use std::arch::x86_64::*;
            let next = line.as_ptr().wrapping_add(AHEAD + part);
            // SAFETY: prefetching may name any address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(next.cast()) };
        }
        for (sum, bytes) in sums.iter_mut().zip(line.chunks_exact(8)) {
            *sum |= u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        }
    }
    let rest = rest.iter().fold(0, |sum, &byte| sum | u64::from(byte));
    sums.iter().fold(rest, |sum, &part| sum | part)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn fold_avx2(data: &[u8]) -> u64 {
    fold(data)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn fold_avx512(data: &[u8]) -> u64 {
    fold(data)
}

/// Int8 multiply-add rate in 1e9 operations a second (a multiply and an add are two), all threads of
/// `pool` together, from registers alone: the ceiling of prefill. The best of five tries; takes
/// some tens of milliseconds.
pub fn int8_gop_s(pool: &Pool) -> f64 {
    const ROUNDS: usize = 200_000;
    let mut best = 0.0f64;
    for _ in 0..PASSES {
        let start = Instant::now();
        let done = AtomicU64::new(0);
        // More tasks than threads, so that a thread which starts late does not idle the others.
        pool.run(pool.threads() * 8, |_| {
            let operations = match pool.isa() {
                // SAFETY: the pool vouches for its instruction set.
                #[cfg(target_arch = "x86_64")]
                crate::Isa::Avx512 => unsafe { multiply_avx512(ROUNDS) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                crate::Isa::Amx => unsafe { crate::simd::tiles::multiply_registers(ROUNDS / 8) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                crate::Isa::Avx2 => unsafe { multiply_avx2(ROUNDS) },
                _ => multiply(ROUNDS),
            };
            done.fetch_add(operations, Ordering::Relaxed);
        });
        let operations = done.into_inner() as f64;
        best = best.max(operations / start.elapsed().as_secs_f64() / 1e9);
    }
    best
}

/// Chains that are kept going; more than latency times instructions a cycle.
#[cfg(target_arch = "x86_64")]
const CHAINS: usize = 12;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn multiply_avx512(rounds: usize) -> u64 {
    use std::arch::x86_64::*;
    let mut sums = [_mm512_setzero_si512(); CHAINS];
    let (a, b) = (
        _mm512_set1_epi8(black_box(3)),
        _mm512_set1_epi8(black_box(5)),
    );
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
        }
        // Hides the sums' values, so that the loop is not folded into one multiplication.
        for sum in &mut sums {
            // SAFETY: no instruction, only a claim to change the register.
            unsafe {
                std::arch::asm!(
                    "/* {0} */",
                    inout(zmm_reg) * sum,
                    options(pure, nomem, nostack)
                )
            };
        }
    }
    black_box(sums);
    (rounds * CHAINS * 64 * 2) as u64
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn multiply_avx2(rounds: usize) -> u64 {
    use std::arch::x86_64::*;
    let mut sums = [_mm256_setzero_si256(); CHAINS];
    let (mut a, b) = (
        _mm256_set1_epi8(black_box(3)),
        _mm256_set1_epi8(black_box(5)),
    );
    let ones = _mm256_set1_epi16(1);
    for _ in 0..rounds {
        for sum in &mut sums {
            // SAFETY: no instruction, only a claim to change the register: each product is new.
            unsafe {
                std::arch::asm!("/* {0} */", inout(ymm_reg) a, options(pure, nomem, nostack))
            };
            let pairs = _mm256_maddubs_epi16(a, b);
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
        }
    }
    black_box(sums);
    (rounds * CHAINS * 32 * 2) as u64
}

/// Plain Rust: dot products of 128 from L1.
fn multiply(rounds: usize) -> u64 {
    let (a, b) = (black_box([3i8; 128]), black_box([5i8; 128]));
    let mut sum = 0i32;
    for _ in 0..rounds / 8 {
        let (a, b) = (black_box(&a), black_box(&b));
        let dot: i32 = a
            .iter()
            .zip(b)
            .map(|(&a, &b)| i32::from(a) * i32::from(b))
            .sum();
        sum = sum.wrapping_add(dot);
    }
    black_box(sum);
    (rounds / 8 * 128 * 2) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn every_body_folds_every_byte() {
        let mut data = vec![0u8; 1029];
        for place in [0, 511, 512, 1023, 1028] {
            data[place] = 1 << (place % 8);
            let expected = fold(&data);
            assert_ne!(expected, 0);
            #[cfg(target_arch = "x86_64")]
            {
                if Isa::best() >= Isa::Avx2 {
                    // SAFETY: checked on the line above.
                    assert_eq!(unsafe { fold_avx2(&data) }, expected);
                }
                if Isa::best() >= Isa::Avx512 {
                    // SAFETY: checked on the line above.
                    assert_eq!(unsafe { fold_avx512(&data) }, expected);
                }
            }
            data[place] = 0;
        }
    }
}
