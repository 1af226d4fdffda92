//! How fast attention reads the cache: f32 pages and 8-bit pages, alternating, beside a plain read of as many bytes.
//!
//! Decode: one row of one sequence after a long past. Prefill: 512 rows after the same past. Heads as in Qwen3's 0.6B (16 over 8 of
//! 128) and 3B (24 over 8), several layers' worth of pages so that they come from memory.
//!
//! ```text
//! cargo run --release -p russet-kernels --example attention_rate [past] [rounds]
//! ```
#![allow(clippy::print_stdout)]

use russet_kernels::attention::{
    Keys, NO_WINDOW, PAGE_TOKENS, Pages8, Query, append_to_pages, append_to_pages8,
    attention_forward, page_len, page8_len, page8_scales,
};
use russet_kernels::rope::HeadShape;
use russet_kernels::{Compute, Pool, probe, random};
use std::time::Instant;

/// As many copies of the sequence as make 64 MiB or more in 8 bits: twice the last-level cache.
const BYTES: usize = 64 << 20;

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

fn measure(pool: &Pool, heads: usize, past: usize, rounds: usize) {
    let shape = HeadShape {
        heads,
        kv_heads: 8,
        head_dim: 128,
    };
    let (rows, width) = (512, shape.qkv_width());
    let pages = (past + rows).div_ceil(PAGE_TOKENS);
    let copies = (BYTES / (pages * page8_len(shape))).max(1) + 1;
    let qkv: Vec<f32> = (0..rows * width)
        .map(|at| random::normal(1, 0, at as u64))
        .collect();
    let tables: Vec<Vec<u32>> = (0..copies)
        .map(|copy| {
            (copy * pages..(copy + 1) * pages)
                .map(|page| page as u32)
                .collect()
        })
        .collect();
    // Not of zeros: memory that was never written would be timed as the system hands it out.
    let mut arena = vec![1.0f32; copies * pages * page_len(shape)];
    let mut numbers = vec![1i8; copies * pages * page8_len(shape)];
    let mut scales = vec![1.0f32; copies * pages * page8_scales(shape)];
    let mut append = [vec![], vec![]];
    for table in &tables {
        for start in (0..past + rows).step_by(rows) {
            let count = rows.min(past + rows - start);
            let some = &qkv[..count * width];
            append[0].push(seconds(|| {
                append_to_pages(shape, some, start, &mut arena, page_len(shape), table);
            }));
            append[1].push(seconds(|| {
                append_to_pages8(pool, shape, some, start, &mut numbers, &mut scales, table);
            }));
        }
    }
    let [wide, narrow] = append.map(|times| median(times) * 1e6 / rows as f64);
    println!("{heads} heads: appending {wide:.2} us a token, in 8 bits {narrow:.2}");
    for count in [1, rows] {
        let (mut out, mut lse) = (vec![0.0; count * shape.q_width()], vec![0.0; count * heads]);
        let mut times = [vec![], vec![], vec![]];
        for round in 0..rounds {
            let table = &tables[round % copies];
            let wide = Keys::Pages {
                arena: &arena,
                page_stride: page_len(shape),
                table,
            };
            let narrow = Keys::Pages8(Pages8 {
                numbers: &numbers,
                scales: &scales,
                table,
            });
            for (keys, times) in [wide, narrow].into_iter().zip(&mut times) {
                let query = Query {
                    start: 0,
                    len: count,
                    past,
                    window: NO_WINDOW,
                    keys,
                };
                let q = &qkv[..count * width];
                times.push(seconds(|| {
                    let (out, lse) = (&mut out, &mut lse);
                    attention_forward(pool, Compute::F32, shape, q, width, &[query], out, lse);
                }));
            }
            let far = (round + copies / 2) % copies;
            let read = past.div_ceil(PAGE_TOKENS) * page8_len(shape);
            let bytes = bytemuck::cast_slice(&numbers[far * pages * page8_len(shape)..][..read]);
            times[2].push(seconds(|| probe::stream(pool, bytes)));
        }
        let [wide, narrow, stream] = times.map(median);
        let bytes = (past * shape.kv_width() * 2) as f64;
        println!(
            "{heads} heads, {count} rows after {past}: f32 {:.0} us ({:.1} GB/s), 8 bits {:.0} us ({:.1} GB/s), stream {:.1} GB/s",
            wide * 1e6,
            4.0 * bytes / wide / 1e9,
            narrow * 1e6,
            bytes / narrow / 1e9,
            bytes / stream / 1e9,
        );
    }
}

fn main() {
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|word| word.parse().ok());
    let past = numbers.next().unwrap_or(8192);
    let rounds = numbers.next().unwrap_or(15);
    for threads in [1, 2] {
        let pool = Pool::new(threads).expect("an instruction set");
        println!("{threads} threads");
        for heads in [16, 24] {
            measure(&pool, heads, past, rounds);
        }
    }
}
