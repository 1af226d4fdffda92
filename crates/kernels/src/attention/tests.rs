//! Attention against the formula, on every instruction set, from rows and from pages.

use proptest::prelude::*;

use super::*;
use crate::isa::Isa;
use crate::matmul::bf16;
use crate::random::normal;

pub(super) fn isas() -> Vec<Isa> {
    let isas: Vec<Isa> = Isa::available().collect();
    if !isas.contains(&Isa::Amx) {
        eprintln!("not tested on AMX tiles: this CPU has none, or the system does not allow them");
    }
    isas
}

pub(super) fn numbers(len: usize, seed: u64) -> Vec<f32> {
    (0..len).map(|i| normal(seed, 0, i as u64)).collect()
}

/// In f32, rounding of sums over a few hundred terms of order one.
///
/// In bf16 against the formula of rounded inputs: probabilities and the gradients of scores are rounded once more, by up to 2⁻⁹ of
/// themselves. Two such roundings are 2⁻⁸ of the tensor's root mean square; rows that see few keys are several times as large.
pub(super) fn close(compute: Compute, got: &[f32], want: &[f32], what: &str) {
    if compute == Compute::F32 {
        for (i, (a, b)) in got.iter().zip(want).enumerate() {
            assert!(
                (a - b).abs() <= 2e-5 * (1.0 + b.abs()) * 4.0,
                "{what}[{i}]: {a}, formula {b}"
            );
        }
        return;
    }
    let rms = |numbers: &mut dyn Iterator<Item = f32>| {
        let sum: f64 = numbers.map(|x| f64::from(x) * f64::from(x)).sum();
        (sum / got.len().max(1) as f64).sqrt()
    };
    let size = rms(&mut want.iter().copied());
    let error = rms(&mut got.iter().zip(want).map(|(a, b)| a - b));
    let worst = got.iter().zip(want).map(|(a, b)| f64::from((a - b).abs()));
    let worst = worst.fold(0.0, f64::max);
    assert!(
        error <= size / 256.0 + 1e-6 && worst <= size / 16.0 + 1e-5,
        "{what}: off by {error}, at most {worst}, of {size}"
    );
}

pub(super) fn rounded(numbers: &[f32]) -> Vec<f32> {
    numbers.iter().map(|&x| bf16::round(x)).collect()
}

/// Windows that begin and end everywhere in a tile.
pub(super) const WINDOWS: [usize; 9] = [NO_WINDOW, 1, 2, 7, 40, 63, 64, 65, 130];

fn flat_queries<'a>(
    shape: HeadShape,
    window: usize,
    qkv: &'a [f32],
    segments: &[(usize, usize)],
) -> Vec<Query<'a>> {
    let query = |&(start, len): &(usize, usize)| Query::flat(shape, qkv, start, len).within(window);
    segments.iter().map(query).collect()
}

fn check(shape: HeadShape, window: usize, lengths: &[usize], seed: u64) {
    for compute in [Compute::F32, Compute::Bf16] {
        check_in(compute, shape, window, lengths, seed);
    }
}

fn check_in(compute: Compute, shape: HeadShape, window: usize, lengths: &[usize], seed: u64) {
    let tokens: usize = lengths.iter().sum();
    let (width, q_width) = (shape.qkv_width(), shape.q_width());
    let qkv = numbers(tokens * width, seed);
    let d_out = numbers(tokens * q_width, seed + 1);
    let mut segments = Vec::new();
    for &len in lengths {
        let start = segments.last().map_or(0, |&(start, len)| start + len);
        segments.push((start, len));
    }
    let (mut out, mut lse) = (vec![0.0; tokens * q_width], vec![0.0; tokens * shape.heads]);
    let mut d_qkv = vec![0.0; tokens * width];
    {
        let (qkv, d_out) = match compute {
            Compute::F32 => (qkv.clone(), d_out.clone()),
            Compute::Bf16 => (rounded(&qkv), rounded(&d_out)),
        };
        oracle::forward(
            shape,
            &qkv,
            width,
            &flat_queries(shape, window, &qkv, &segments),
            &mut out,
            &mut lse,
        );
        oracle::backward(shape, window, &qkv, &segments, &d_out, &mut d_qkv);
    }
    let queries = flat_queries(shape, window, &qkv, &segments);
    let mut vectors: Option<Vec<f32>> = None;
    for isa in isas() {
        let mut bits: Vec<Vec<f32>> = Vec::new();
        for threads in [1, 3] {
            let pool = Pool::with_isa(threads, isa);
            let (mut got, mut got_lse) = (vec![f32::NAN; out.len()], vec![f32::NAN; lse.len()]);
            attention_forward(
                &pool,
                compute,
                shape,
                &qkv,
                width,
                &queries,
                &mut got,
                &mut got_lse,
            );
            close(compute, &got, &out, "out");
            close(Compute::F32, &got_lse, &lse, "lse");
            let mut got_d = vec![f32::NAN; d_qkv.len()];
            attention_backward(
                &pool, compute, shape, window, &qkv, &segments, &got, &got_lse, &d_out, &mut got_d,
            );
            close(compute, &got_d, &d_qkv, "d_qkv");
            bits.push([got, got_lse, got_d].concat());
        }
        assert!(bits[0] == bits[1], "threads change bits on {isa:?}");
        if compute == Compute::Bf16 && matches!(isa, Isa::Avx2 | Isa::Avx512) {
            let want = vectors.get_or_insert_with(|| bits[0].clone());
            assert!(*want == bits[0], "{isa:?} differs from AVX2");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_body_equals_the_formula(
        kv_heads in 1usize..3,
        group in 1usize..4,
        head_dim in prop::sample::select(vec![2usize, 8, 16, 20, 32, 64]),
        window in prop::sample::select(WINDOWS.to_vec()),
        lengths in prop::collection::vec(0usize..90, 1..4),
        seed in 0u64..1000,
    ) {
        check(HeadShape { heads: kv_heads * group, kv_heads, head_dim }, window, &lengths, seed);
    }
}

#[test]
fn long_sequences_and_wide_heads_equal_the_formula() {
    check(
        HeadShape {
            heads: 2,
            kv_heads: 1,
            head_dim: 128,
        },
        NO_WINDOW,
        &[200],
        5,
    );
    check(
        HeadShape {
            heads: 3,
            kv_heads: 3,
            head_dim: 64,
        },
        NO_WINDOW,
        &[129, 64, 1],
        6,
    );
}

#[test]
fn windows_of_every_size_equal_the_formula() {
    let shape = HeadShape {
        heads: 2,
        kv_heads: 1,
        head_dim: 16,
    };
    for window in WINDOWS {
        check(shape, window, &[300, 64, 70], 7);
    }
}

/// A window as long as the sequence is none, to the bit; and what lies before a window has no part in a row, whatever it is.
#[test]
fn a_window_hides_what_lies_before_it_and_nothing_else() {
    let shape = HeadShape {
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
    };
    let (width, tokens) = (shape.qkv_width(), 200);
    let qkv = numbers(tokens * width, 3);
    let both = [Compute::F32, Compute::Bf16];
    for (isa, compute) in isas().into_iter().flat_map(|isa| both.map(|c| (isa, c))) {
        let pool = Pool::with_isa(1, isa);
        let attend = |qkv: &[f32], window: usize| {
            let mut out = vec![0.0; tokens * shape.q_width()];
            let mut lse = vec![0.0; tokens * shape.heads];
            let query = [Query::flat(shape, qkv, 0, tokens).within(window)];
            attention_forward(
                &pool, compute, shape, qkv, width, &query, &mut out, &mut lse,
            );
            out
        };
        assert!(attend(&qkv, NO_WINDOW) == attend(&qkv, tokens), "{isa:?}");
        // Another beginning: rows from 70 + 100 on do not see it.
        let mut other = qkv.clone();
        other[..71 * width].copy_from_slice(&numbers(71 * width, 4));
        let [one, two] = [&qkv, &other].map(|qkv| attend(qkv, 100));
        let at = 170 * shape.q_width();
        assert!(one[at..] == two[at..], "{isa:?}");
        assert!(one[at - shape.q_width()..at] != two[at - shape.q_width()..at]);
    }
}

/// Queries that lie apart from the keys of another layer give the bits of those in one packed row, forward and backward.
#[test]
fn queries_apart_from_their_keys_give_the_same_bits() {
    let shape = HeadShape {
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
    };
    let (width, q_width, tokens) = (shape.qkv_width(), shape.q_width(), 150);
    let segments = [(0, 70), (70, 80)];
    let (qkv, d_out) = (numbers(tokens * width, 1), numbers(tokens * q_width, 2));
    let columns = |of: &[f32], range: Range<usize>| -> Vec<f32> {
        let rows = of.chunks_exact(width);
        rows.flat_map(|row| row[range.clone()].to_vec()).collect()
    };
    let (q, kv) = (columns(&qkv, 0..q_width), columns(&qkv, q_width..width));
    let both = [Compute::F32, Compute::Bf16];
    for (isa, compute) in isas().into_iter().flat_map(|isa| both.map(|c| (isa, c))) {
        for window in [NO_WINDOW, 50] {
            let pool = Pool::with_isa(2, isa);
            let empty = || [vec![0.0; tokens * q_width], vec![0.0; tokens * shape.heads]];
            let ([mut out, mut lse], [mut out2, mut lse2]) = (empty(), empty());
            let queries = flat_queries(shape, window, &qkv, &segments);
            attention_forward(
                &pool, compute, shape, &qkv, width, &queries, &mut out, &mut lse,
            );
            let queries =
                segments.map(|(start, len)| Query::shared(shape, &kv, start, len).within(window));
            attention_forward(
                &pool, compute, shape, &q, q_width, &queries, &mut out2, &mut lse2,
            );
            assert!((&out, &lse) == (&out2, &lse2), "{isa:?}, {compute:?}");
            let mut d_qkv = vec![f32::NAN; qkv.len()];
            attention_backward(
                &pool, compute, shape, window, &qkv, &segments, &out, &lse, &d_out, &mut d_qkv,
            );
            let (mut d_q, mut d_kv) = (vec![f32::NAN; q.len()], vec![f32::NAN; kv.len()]);
            attention_shared_backward(
                &pool,
                compute,
                shape,
                window,
                [&q, &kv],
                &segments,
                [&out, &lse, &d_out],
                [&mut d_q, &mut d_kv],
            );
            assert!(d_q == columns(&d_qkv, 0..q_width), "{isa:?}, {compute:?}");
            assert!(d_kv == columns(&d_qkv, q_width..width));
        }
    }
}

#[test]
fn keys_in_pages_chunks_and_batches_give_the_bits_of_the_flat_pass() {
    let shape = HeadShape {
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
    };
    let (width, q_width, tokens) = (shape.qkv_width(), shape.q_width(), 150);
    let qkv = numbers(tokens * width, 1);
    let both = [Compute::F32, Compute::Bf16];
    let cases = isas().into_iter().flat_map(|isa| both.map(|c| (isa, c)));
    let cases = cases.flat_map(|(isa, c)| [NO_WINDOW, 1, 40, 64, 100].map(|w| (isa, c, w)));
    for (isa, compute, window) in cases {
        let pool = Pool::with_isa(2, isa);
        let mut flat = vec![0.0; tokens * q_width];
        let mut lse = vec![0.0; tokens * shape.heads];
        let query = Query::flat(shape, &qkv, 0, tokens).within(window);
        attention_forward(
            &pool,
            compute,
            shape,
            &qkv,
            width,
            &[query],
            &mut flat,
            &mut lse,
        );
        for chunks in [vec![150], vec![64, 86], vec![1; 150], vec![100, 1, 49]] {
            let page_stride = page_len(shape);
            let mut arena = vec![f32::NAN; 4 * page_stride]; // what is not written must not be read
            let table = [2u32, 0, 3];
            let mut past = 0;
            for len in chunks {
                let rows = &qkv[past * width..(past + len) * width];
                append_to_pages(shape, rows, past, &mut arena, page_stride, &table);
                let keys = Keys::Pages {
                    arena: &arena,
                    page_stride,
                    table: &table,
                };
                let query = Query {
                    start: 0,
                    len,
                    past,
                    window,
                    keys,
                };
                let (mut out, mut lse) = (vec![0.0; len * q_width], vec![0.0; len * shape.heads]);
                attention_forward(
                    &pool,
                    compute,
                    shape,
                    rows,
                    width,
                    &[query],
                    &mut out,
                    &mut lse,
                );
                assert!(
                    out == flat[past * q_width..(past + len) * q_width],
                    "{isa:?}, {compute:?}, window {window}, from {past}"
                );
                past += len;
            }
        }
    }
}

#[test]
fn pages_of_half_precision_give_the_bits_of_their_numbers_in_f32() {
    // Heads that are no whole vectors too.
    for head_dim in [16, 22] {
        let shape = HeadShape {
            heads: 4,
            kv_heads: 2,
            head_dim,
        };
        let (width, past, len) = (shape.qkv_width(), 130, 9);
        let qkv = numbers((past + len) * width, 1);
        let rounded: Vec<f32> = qkv.iter().map(|&x| f16::from_f32(x).to_f32()).collect();
        let table = [2u32, 0, 3];
        let stride = page_len(shape);
        let mut halves = vec![f16::NAN; 4 * stride];
        let mut floats = vec![f32::NAN; 4 * stride];
        append_to_pages(shape, &qkv, 0, &mut halves, stride, &table);
        append_to_pages(shape, &rounded, 0, &mut floats, stride, &table);
        let keys = [
            Keys::Pages16 {
                arena: &halves,
                table: &table,
            },
            Keys::Pages {
                arena: &floats,
                page_stride: stride,
                table: &table,
            },
        ];
        for isa in isas() {
            for compute in [Compute::F32, Compute::Bf16] {
                let pool = Pool::with_isa(2, isa);
                let of = |keys| {
                    let query = Query {
                        start: 0,
                        len,
                        past,
                        window: 100,
                        keys,
                    };
                    let mut out = vec![f32::NAN; len * shape.q_width()];
                    let mut lse = vec![f32::NAN; len * shape.heads];
                    let rows = &qkv[past * width..];
                    attention_forward(
                        &pool,
                        compute,
                        shape,
                        rows,
                        width,
                        &[query],
                        &mut out,
                        &mut lse,
                    );
                    (out, lse)
                };
                let [halves, floats] = keys.map(of);
                assert_eq!(halves, floats, "{isa:?}, {compute:?}, {head_dim}");
            }
        }
    }
}
