//! Attention over 8-bit pages against the formula, and that a row has its bits wherever it is computed.

use crate::Isa;
use proptest::prelude::*;

use super::tests::{WINDOWS, numbers};
use super::*;
use crate::random::below;

/// Keys and values of one sequence in pages of their own order.
struct Cache {
    numbers: Vec<i8>,
    scales: Vec<f32>,
    table: Vec<u32>,
}

impl Cache {
    /// Room for `tokens`. What is not written must not count: numbers of another sequence, scales that are NaN.
    fn new(shape: HeadShape, tokens: usize) -> Cache {
        let pages = tokens.div_ceil(PAGE_TOKENS);
        Cache {
            numbers: vec![-77; pages * page8_len(shape)],
            scales: vec![f32::NAN; pages * page8_scales(shape)],
            table: (0..pages as u32).rev().collect(),
        }
    }

    fn append(&mut self, pool: &Pool, shape: HeadShape, rows: &[f32], past: usize) {
        let (numbers, scales) = (&mut self.numbers, &mut self.scales);
        append_to_pages8(pool, shape, rows, past, numbers, scales, &self.table);
    }

    fn keys(&self) -> Keys<'_> {
        Keys::Pages8(Pages8 {
            numbers: &self.numbers,
            scales: &self.scales,
            table: &self.table,
        })
    }
}

fn attend(pool: &Pool, shape: HeadShape, q: &[f32], queries: &[Query]) -> (Vec<f32>, Vec<f32>) {
    let rows = q.len() / shape.qkv_width();
    let mut out = vec![f32::NAN; rows * shape.q_width()];
    let mut lse = vec![f32::NAN; rows * shape.heads];
    let width = shape.qkv_width();
    attention_forward(
        pool,
        Compute::F32,
        shape,
        q,
        width,
        queries,
        &mut out,
        &mut lse,
    );
    (out, lse)
}

/// A number of q is off by up to 2⁻¹⁶ of the largest, which is about 4; a score, the sum of K of them times keys of order one over √K,
/// by some 1e-4, and so is a probability, of itself. Weights are off by as much of the largest of a tile.
fn check(shape: HeadShape, window: usize, lengths: &[usize], seed: u64) {
    let tokens: usize = lengths.iter().sum();
    let width = shape.qkv_width();
    let qkv = numbers(tokens * width, seed);
    let mut vectors: Option<Vec<f32>> = None;
    for isa in Isa::available() {
        let mut bits = Vec::new();
        for threads in [1, 3] {
            let pool = Pool::with_isa(threads, isa);
            let mut caches = Vec::new();
            let mut start = 0;
            for &len in lengths {
                let mut cache = Cache::new(shape, len);
                let rows = &qkv[start * width..(start + len) * width];
                cache.append(&pool, shape, rows, 0);
                caches.push((cache, start, len));
                start += len;
            }
            let mut queries = Vec::new();
            for (cache, start, len) in &caches {
                queries.push(Query {
                    start: *start,
                    len: *len,
                    past: 0,
                    window,
                    keys: cache.keys(),
                });
            }
            let (got, got_lse) = attend(&pool, shape, &qkv, &queries);
            let (mut want, mut want_lse) = (vec![0.0; got.len()], vec![0.0; got_lse.len()]);
            oracle::forward(shape, &qkv, width, &queries, &mut want, &mut want_lse);
            for (what, got, want) in [("out", &got, &want), ("lse", &got_lse, &want_lse)] {
                for (i, (a, b)) in got.iter().zip(want).enumerate() {
                    assert!(
                        (a - b).abs() <= 5e-4 * (1.0 + b.abs()),
                        "{isa:?}: {what}[{i}]: {a}, formula {b}"
                    );
                }
            }
            bits.push([got, got_lse].concat());
        }
        assert!(bits[0] == bits[1], "threads change bits on {isa:?}");
        if isa > Isa::Scalar {
            let want = vectors.get_or_insert_with(|| bits[0].clone());
            assert!(*want == bits[0], "{isa:?} differs from AVX2");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn every_body_equals_the_formula(
        kv_heads in 1usize..3,
        group in 1usize..9,
        head_dim in prop::sample::select(vec![2usize, 8, 16, 20, 64, 128]),
        window in prop::sample::select(WINDOWS.to_vec()),
        lengths in prop::collection::vec(0usize..90, 1..4),
        seed in 0u64..1000,
    ) {
        check(HeadShape { heads: kv_heads * group, kv_heads, head_dim }, window, &lengths, seed);
    }
}

#[test]
fn several_spans_equal_the_formula() {
    let shape = HeadShape {
        heads: 2,
        kv_heads: 1,
        head_dim: 16,
    };
    for window in [NO_WINDOW, 2100, 200] {
        check(shape, window, &[2200], 7);
    }
}

#[test]
fn a_row_has_its_bits_in_any_chunk_batch_and_number_of_threads() {
    let shape = HeadShape {
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
    };
    let (width, q_width, tokens) = (shape.qkv_width(), shape.q_width(), 4_500);
    let qkv = numbers(tokens * width, 1);
    // Windows that begin within spans, and a few tiles back.
    let windows = [NO_WINDOW, 2500, 100];
    for (isa, window) in Isa::available().flat_map(|isa| windows.map(|window| (isa, window))) {
        let alone = Pool::with_isa(1, isa);
        let mut cache = Cache::new(shape, tokens);
        cache.append(&alone, shape, &qkv, 0);
        let whole = Query {
            start: 0,
            len: tokens,
            past: 0,
            window,
            keys: cache.keys(),
        };
        let (want, want_lse) = attend(&alone, shape, &qkv, &[whole]);
        // In chunks, where the few rows of each are shared out by spans.
        let mut past = 0;
        let mut chunked = Cache::new(shape, tokens);
        let many = Pool::with_isa(4, isa);
        for len in [1, 63, 1, 2000, 20, 1, 2000, 1, 1, 100, 312] {
            let rows = &qkv[past * width..(past + len) * width];
            chunked.append(&many, shape, rows, past);
            let query = Query {
                start: 0,
                len,
                past,
                window,
                keys: chunked.keys(),
            };
            let (out, lse) = attend(&many, shape, rows, &[query]);
            let end = past + len;
            assert!(
                out == want[past * q_width..end * q_width],
                "{isa:?}, window {window}, from {past}"
            );
            assert!(lse == want_lse[past * shape.heads..end * shape.heads]);
            past += len;
        }
        assert_eq!(past, tokens);
        assert!(cache.numbers == chunked.numbers, "appending in chunks");
        let bits = |cache: &Cache| cache.scales.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(bits(&cache) == bits(&chunked), "appending in chunks");
        // Single rows of the sequence side by side.
        let places: Vec<usize> = (0..6)
            .map(|i| below(3, 0, i, tokens as u64) as usize)
            .collect();
        let rows: Vec<f32> = places
            .iter()
            .flat_map(|&at| &qkv[at * width..(at + 1) * width])
            .copied()
            .collect();
        let query = |(start, &past): (usize, &usize)| Query {
            start,
            len: 1,
            past,
            window,
            keys: cache.keys(),
        };
        let queries: Vec<Query> = places.iter().enumerate().map(query).collect();
        let (out, _) = attend(&many, shape, &rows, &queries);
        for (out, &at) in out.chunks(q_width).zip(&places) {
            assert!(out == &want[at * q_width..(at + 1) * q_width], "row {at}");
        }
    }
}

#[test]
fn tokens_are_off_by_half_a_step_and_keep_off_their_neighbours() {
    let shape = HeadShape {
        heads: 1,
        kv_heads: 2,
        head_dim: 20,
    };
    let shape = HeadShape { heads: 2, ..shape };
    let (width, tokens) = (shape.qkv_width(), 70);
    let qkv = numbers(tokens * width, 4);
    for isa in Isa::available() {
        let pool = Pool::with_isa(2, isa);
        let mut cache = Cache::new(shape, 130);
        cache.append(&pool, shape, &qkv, 3);
        let Keys::Pages8(pages) = cache.keys() else {
            unreachable!("made of 8-bit pages")
        };
        for kv_head in 0..2 {
            for t in 0..3 {
                assert!(pages.tile(shape, 0, kv_head).key_scales[t].is_nan());
            }
            for (n, row) in qkv.chunks(width).enumerate() {
                let (tile, t) = ((n + 3) / 64, (n + 3) % 64);
                let tile = pages.tile(shape, tile, kv_head);
                for i in 0..20 {
                    let key = tile.keys[(i / 2 * 64 + t) * 2 + i % 2];
                    let value = tile.values[(t / 2 * 32 + i) * 2 + t % 2];
                    for (from, scale, got) in [
                        (40 + kv_head * 20 + i, tile.key_scales[t], key),
                        (80 + kv_head * 20 + i, tile.value_scales[t], value),
                    ] {
                        let off = (row[from] - scale * f32::from(got)).abs();
                        assert!(off <= 0.5001 * scale, "token {n}, number {i}: off by {off}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_fault_shows_in_the_rows_that_see_it_and_in_no_other() {
    // Row 70 has the fault; it is in its own window, and a window of 5 ends at row 74.
    for (window, rows) in [(NO_WINDOW, 70..80), (5, 70..75)] {
        faults(window, rows);
    }
}

fn faults(window: usize, faulty: Range<usize>) {
    let shape = HeadShape {
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
    };
    let (width, q_width, tokens) = (shape.qkv_width(), shape.q_width(), 80);
    for place in [16, 24] {
        // A number of a key, and one of a value.
        let mut qkv = numbers(tokens * width, 2);
        qkv[70 * width + place] = f32::INFINITY;
        for isa in Isa::available() {
            let pool = Pool::with_isa(2, isa);
            let mut cache = Cache::new(shape, tokens);
            cache.append(&pool, shape, &qkv, 0);
            let query = Query {
                start: 0,
                len: tokens,
                past: 0,
                window,
                keys: cache.keys(),
            };
            let (out, _) = attend(&pool, shape, &qkv, &[query]);
            for (row, out) in out.chunks(q_width).enumerate() {
                assert!(
                    out.iter().all(|x| x.is_nan() == faulty.contains(&row)),
                    "{isa:?}, row {row}"
                );
            }
        }
    }
}

/// Weights are rounded by what the row sees: a value that is larger than all others by far, in the same tile but out of sight, before a
/// window or behind the row, is nothing to it.
#[test]
fn what_a_row_does_not_see_changes_none_of_its_bits() {
    let shape = HeadShape {
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
    };
    let (width, q_width, tokens, window) = (shape.qkv_width(), shape.q_width(), 60, 5);
    let plain = numbers(tokens * width, 2);
    let mut spoilt = plain.clone();
    for number in &mut spoilt[20 * width + 24..21 * width] {
        *number *= 1e6;
    }
    for isa in Isa::available() {
        let pool = Pool::with_isa(2, isa);
        let [plain, spoilt] = [&plain, &spoilt].map(|qkv| {
            let mut cache = Cache::new(shape, tokens);
            cache.append(&pool, shape, qkv, 0);
            let query = Query {
                start: 0,
                len: tokens,
                past: 0,
                window,
                keys: cache.keys(),
            };
            attend(&pool, shape, qkv, &[query]).0
        });
        for (row, (plain, spoilt)) in plain
            .chunks(q_width)
            .zip(spoilt.chunks(q_width))
            .enumerate()
        {
            let sees = (20..20 + window).contains(&row);
            assert_eq!(plain != spoilt, sees, "{isa:?}, row {row}");
        }
    }
}

#[test]
#[should_panic(expected = "hold one twice")]
fn a_page_twice_in_a_table_is_a_bug() {
    let shape = HeadShape {
        heads: 1,
        kv_heads: 1,
        head_dim: 2,
    };
    let mut cache = Cache::new(shape, 128);
    cache.table = vec![1, 1];
    let pool = Pool::with_isa(1, Isa::Scalar);
    cache.append(&pool, shape, &numbers(100 * 6, 1), 0);
}
