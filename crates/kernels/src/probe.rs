//! What this machine's memory gives: the ceiling beside which decode figures are printed.
//!
//! A decoded token reads every weight once, so a model of W bytes cannot decode faster than
//! bandwidth / W tokens a second. On a shared machine the bandwidth drifts by a factor of two
//! within minutes: probe in the same run, next to the figure it explains. It leaves out caches,
//! writes and latency.

use crate::Pool;
use std::hint::black_box;
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
            crate::Isa::Avx512 => unsafe { fold_avx512(data) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            crate::Isa::Avx2 => unsafe { fold_avx2(data) },
            _ => fold(data),
        });
    });
}

/// Something that needs every byte and costs less than loading it.
#[inline(always)]
fn fold(data: &[u8]) -> u64 {
    let mut sums = [0u64; 64]; // eight 64-byte lines: enough independent chains for any width
    let lines = data.chunks_exact(512);
    let rest = lines.remainder();
    for line in lines {
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
