//! A sequence cut in two, whose later rows see the earlier ones as a part, against the formula of the whole.

use super::*;
use crate::attention::tests::{close, isas, numbers, rounded};
use crate::attention::{NO_WINDOW, attention_backward, oracle};

/// The columns of keys and values of some rows.
fn keys_and_values(shape: HeadShape, qkv: &[f32]) -> Vec<f32> {
    let rows = qkv.chunks_exact(shape.qkv_width());
    rows.flat_map(|row| row[shape.q_width()..].iter().copied())
        .collect()
}

/// Sequences `(earlier, later)` rows; all earlier rows lie in one buffer and all later ones in another. With `halves` the earlier ones
/// are two parts, one after another, the first of them with a gap.
fn check(
    compute: Compute,
    shape: HeadShape,
    window: usize,
    halves: bool,
    sequences: &[(usize, usize)],
    seed: u64,
) {
    let (width, q_width, heads) = (shape.qkv_width(), shape.q_width(), shape.heads);
    let mut wanted = [const { Vec::new() }; 3]; // out, lse and d_qkv of the later rows
    let (mut wanted_d_kv, mut kv) = (Vec::new(), Vec::new());
    let (mut qkv, mut d_out) = (Vec::new(), Vec::new());
    let (mut parts, mut own) = ([Vec::new(), Vec::new()], Vec::new());
    for (number, &(earlier, later)) in sequences.iter().enumerate() {
        let all = earlier + later;
        let given = numbers(all * width, seed + number as u64);
        let mut d_given = numbers(all * q_width, seed + 50 + number as u64);
        d_given[..earlier * q_width].fill(0.0); // only what later rows give
        let (rows, d_rows) = match compute {
            Compute::F32 => (given.clone(), d_given.clone()),
            Compute::Bf16 => (rounded(&given), rounded(&d_given)),
        };
        let (mut out, mut lse) = (vec![0.0; all * q_width], vec![0.0; all * heads]);
        let query = Query::flat(shape, &rows, 0, all).within(window);
        oracle::forward(shape, &rows, width, &[query], &mut out, &mut lse);
        let mut d_qkv = vec![0.0; all * width];
        oracle::backward(shape, window, &rows, &[(0, all)], &d_rows, &mut d_qkv);
        let (start, first_key) = (qkv.len() / width, kv.len() / (2 * shape.kv_width()));
        own.push((start, later));
        let first = if halves { earlier / 2 } else { 0 };
        for (parts, keys) in parts.iter_mut().zip([0..first, first..earlier]) {
            let part = Part {
                start,
                len: later,
                first_key: first_key + keys.start,
                keys: keys.len(),
                gap: earlier - keys.end,
            };
            // What no row sees may be left out or not.
            if later > 0 && !keys.is_empty() && (seed.is_multiple_of(2) || part.is_seen(window)) {
                parts.push(part);
            }
        }
        wanted[0].extend_from_slice(&out[earlier * q_width..]);
        wanted[1].extend_from_slice(&lse[earlier * heads..]);
        wanted[2].extend_from_slice(&d_qkv[earlier * width..]);
        wanted_d_kv.extend(keys_and_values(shape, &d_qkv[..earlier * width]));
        kv.extend(keys_and_values(shape, &given[..earlier * width]));
        qkv.extend_from_slice(&given[earlier * width..]);
        d_out.extend_from_slice(&d_given[earlier * q_width..]);
    }
    for isa in isas() {
        let mut bits: Vec<Vec<f32>> = Vec::new();
        for threads in [1, 3] {
            let pool = Pool::with_isa(threads, isa);
            let [mut out, mut lse, mut d_qkv] = [0, 1, 2].map(|k| vec![f32::NAN; wanted[k].len()]);
            let [mut part_out, mut part_lse] = [0, 1].map(|k| vec![f32::NAN; wanted[k].len()]);
            let queries: Vec<Query> = own
                .iter()
                .map(|&(start, len)| Query::flat(shape, &qkv, start, len).within(window))
                .collect();
            attention_forward(
                &pool, compute, shape, &qkv, width, &queries, &mut out, &mut lse,
            );
            for parts in &parts {
                attention_part_forward(
                    &pool,
                    compute,
                    shape,
                    window,
                    [&qkv, &kv],
                    parts,
                    [&mut part_out, &mut part_lse],
                    [&mut out, &mut lse],
                );
            }
            close(compute, &out, &wanted[0], "out");
            close(Compute::F32, &lse, &wanted[1], "lse");
            attention_backward(
                &pool, compute, shape, window, &qkv, &own, &out, &lse, &d_out, &mut d_qkv,
            );
            let mut d_kv = vec![0.0; kv.len()];
            for parts in &parts {
                attention_part_backward(
                    &pool,
                    compute,
                    shape,
                    window,
                    [&qkv, &kv],
                    parts,
                    [&out, &lse, &d_out],
                    [&mut d_qkv, &mut d_kv],
                );
            }
            close(compute, &d_qkv, &wanted[2], "d_qkv");
            close(compute, &d_kv, &wanted_d_kv, "d_kv");
            bits.push([out, lse, d_qkv, d_kv].concat());
        }
        assert!(bits[0] == bits[1], "threads change bits on {isa:?}");
    }
}

#[test]
fn what_is_seen_in_parts_is_the_whole() {
    let shapes = [(2, 1, 8), (3, 3, 20), (4, 2, 64)];
    let cuts: [&[(usize, usize)]; 4] = [
        &[(1, 1), (5, 3)],
        &[(64, 64)],
        &[(70, 33), (0, 9), (1, 130)],
        &[(129, 1), (17, 0), (40, 65)],
    ];
    for (seed, (heads, kv_heads, head_dim)) in shapes.into_iter().enumerate() {
        let shape = HeadShape {
            heads,
            kv_heads,
            head_dim,
        };
        for (number, cut) in cuts.into_iter().enumerate() {
            for compute in [Compute::F32, Compute::Bf16] {
                let seed = 10 * seed as u64 + number as u64;
                check(compute, shape, NO_WINDOW, false, cut, seed);
                for window in [1, 30, 64, 100] {
                    check(compute, shape, window, true, cut, seed);
                }
            }
        }
    }
}

/// Scores of hundreds, of which one part has the high ones and then the other: what is put together stays finite.
#[test]
fn parts_that_weigh_nothing_are_taken_in_without_harm() {
    let shape = HeadShape {
        heads: 1,
        kv_heads: 1,
        head_dim: 4,
    };
    let pool = Pool::with_isa(1, crate::isa::Isa::best());
    for (own, other, wanted) in [(1.0, 90.0, 2.0), (90.0, 1.0, 1.0)] {
        let row = |key: f32, value: f32| [[10.0; 4], [key; 4], [value; 4]].concat();
        let (qkv, kv) = (row(own, 1.0), row(other, 2.0)[4..].to_vec());
        let (mut out, mut lse) = ([0.0; 4], [0.0]);
        let query = Query::flat(shape, &qkv, 0, 1);
        attention_forward(
            &pool,
            Compute::F32,
            shape,
            &qkv,
            12,
            &[query],
            &mut out,
            &mut lse,
        );
        let part = Part {
            start: 0,
            len: 1,
            first_key: 0,
            keys: 1,
            gap: 0,
        };
        attention_part_forward(
            &pool,
            Compute::F32,
            shape,
            NO_WINDOW,
            [&qkv, &kv],
            &[part],
            [&mut [0.0; 4], &mut [0.0]],
            [&mut out, &mut lse],
        );
        assert_eq!((out, lse), ([wanted; 4], [1800.0]));
        let (mut d_qkv, mut d_kv) = ([0.0; 12], [0.0; 8]);
        attention_part_backward(
            &pool,
            Compute::F32,
            shape,
            NO_WINDOW,
            [&qkv, &kv],
            &[part],
            [&out, &lse, &[1.0; 4]],
            [&mut d_qkv, &mut d_kv],
        );
        assert_eq!(d_kv[4..], [wanted - 1.0; 4]);
        assert!(d_qkv.iter().chain(&d_kv).all(|x| x.is_finite()));
    }
}
