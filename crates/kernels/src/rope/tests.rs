//! Normalised and rotated heads against the formula in f64, on every instruction set and thread count.

use crate::Isa;
use proptest::prelude::*;

use super::*;
use crate::random::{below, normal};

fn numbers(seed: u64, stream: u64, len: usize) -> Vec<f32> {
    (0..len as u64).map(|i| normal(seed, stream, i)).collect()
}

/// One head forward: normalised where there is a weight, then rotated as complex numbers; with its 1 / rms.
fn forward(x: &[f64], weight: Option<&[f32]>, eps: f32, turns: &[(f64, f64)]) -> (Vec<f64>, f64) {
    let r = match weight {
        None => 1.0,
        Some(_) => {
            1.0 / (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + f64::from(eps)).sqrt()
        }
    };
    let y: Vec<f64> = x
        .iter()
        .enumerate()
        .map(|(i, x)| x * r * weight.map_or(1.0, |w| f64::from(w[i])))
        .collect();
    let half = turns.len();
    let mut out = vec![0.0; x.len()];
    for (i, (cos, sin)) in turns.iter().enumerate() {
        // (a + ib)(cos + i sin)
        let (a, b) = (y[i], y[i + half]);
        out[i] = a * cos - b * sin;
        out[i + half] = a * sin + b * cos;
    }
    (out, r)
}

/// The gradient of Σ d_out · forward(x) by x and by the weight, term by term: each of the outputs' derivatives by each input.
fn backward(
    x: &[f64],
    weight: Option<&[f32]>,
    eps: f32,
    turns: &[(f64, f64)],
    d_out: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let half = turns.len();
    let mut d_y = vec![0.0; x.len()];
    for (i, (cos, sin)) in turns.iter().enumerate() {
        d_y[i] = d_out[i] * cos + d_out[i + half] * sin;
        d_y[i + half] = d_out[i + half] * cos - d_out[i] * sin;
    }
    let Some(weight) = weight else {
        return (d_y, vec![0.0; x.len()]);
    };
    let (_, r) = forward(x, Some(weight), eps, turns);
    // y_j = w_j x_j r, and ∂r/∂x_i = -r³ x_i / K.
    let d_r: f64 = (0..x.len())
        .map(|j| d_y[j] * f64::from(weight[j]) * x[j])
        .sum();
    let d_x = (0..x.len())
        .map(|i| d_y[i] * f64::from(weight[i]) * r - d_r * r * r * r * x[i] / x.len() as f64);
    (
        d_x.collect(),
        (0..x.len()).map(|i| d_y[i] * x[i] * r).collect(),
    )
}

fn close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        assert!(
            (f64::from(got) - want).abs() <= tolerance,
            "{what}[{i}]: {got}, formula {want}"
        );
    }
}

fn check(shape: HeadShape, rows: usize, norms: [bool; 2], seed: u64) {
    let (width, head_dim, normed) = (
        shape.qkv_width(),
        shape.head_dim,
        shape.heads + shape.kv_heads,
    );
    let eps = 1e-3;
    let (qkv, d_out) = (
        numbers(seed, 0, rows * width),
        numbers(seed, 1, rows * width),
    );
    let weights = [numbers(seed, 2, head_dim), numbers(seed, 3, head_dim)];
    let weight = |which: usize| norms[which].then_some(&weights[which][..]);
    let positions: Vec<u32> = (0..rows)
        .map(|n| below(seed, 4, n as u64, 90) as u32)
        .collect();
    let table = RopeTable::new(90, head_dim, 10_000.0);
    let before = [numbers(seed, 5, head_dim), numbers(seed, 6, head_dim)]; // gradients of weights are added to

    // The formula, head by head; values pass through.
    let mut want_out: Vec<f64> = qkv.iter().map(|&x| f64::from(x)).collect();
    let mut want_d: Vec<f64> = d_out.iter().map(|&d| f64::from(d)).collect();
    let mut want_weights = before
        .clone()
        .map(|w| w.iter().map(|&w| f64::from(w)).collect::<Vec<_>>());
    let mut want_inv = Vec::new();
    for (n, &position) in positions.iter().enumerate() {
        let (cos, sin) = table.at(position);
        let turns: Vec<(f64, f64)> = cos
            .iter()
            .zip(sin)
            .map(|(&c, &s)| (f64::from(c), f64::from(s)))
            .collect();
        for head in 0..normed {
            let range = n * width + head * head_dim..n * width + (head + 1) * head_dim;
            let which = usize::from(head >= shape.heads);
            let (x, d) = (
                want_out[range.clone()].to_vec(),
                want_d[range.clone()].to_vec(),
            );
            let (out, r) = forward(&x, weight(which), eps, &turns);
            let (d_x, d_w) = backward(&x, weight(which), eps, &turns, &d);
            want_out[range.clone()].copy_from_slice(&out);
            want_d[range].copy_from_slice(&d_x);
            want_weights[which]
                .iter_mut()
                .zip(d_w)
                .for_each(|(sum, d_w)| *sum += d_w);
            want_inv.push(r);
        }
    }
    for isa in Isa::available() {
        let mut results = Vec::new();
        for threads in [1, 3] {
            let pool = Pool::with_isa(threads, isa);
            let nan = vec![f32::NAN; rows * width];
            let (mut out, mut inv, mut d_qkv) = (nan.clone(), vec![f32::NAN; rows * normed], nan);
            let (q, k) = (weight(0), weight(1));
            qk_norm_rope_forward(
                &pool, shape, &qkv, &positions, &table, q, k, eps, &mut out, &mut inv,
            );
            let [mut d_q, mut d_k] = before.clone();
            let (want_q, want_k) = (
                norms[0].then_some(&mut d_q[..]),
                norms[1].then_some(&mut d_k[..]),
            );
            qk_norm_rope_backward(
                &pool, shape, &qkv, &positions, &table, q, k, &inv, &d_out, &mut d_qkv, want_q,
                want_k,
            );
            results.push([out, inv, d_qkv, d_q, d_k]);
        }
        assert!(results[0] == results[1], "{isa:?}: threads change bits");
        let [out, inv, d_qkv, d_q, d_k] = &results[0];
        // Numbers of order one, a norm over few of them perhaps thirty: some roundings of 6e-8 each.
        close("out", out, &want_out, 2e-5);
        close("inv_rms", inv, &want_inv, 2e-5);
        close("d_qkv", d_qkv, &want_d, 2e-3);
        for (name, got, want) in [
            ("d_q_norm", d_q, &want_weights[0]),
            ("d_k_norm", d_k, &want_weights[1]),
        ] {
            close(name, got, want, 1e-5 * ((rows * shape.heads) as f64 + 10.0));
        }
    }
}

#[test]
fn rows_that_fill_several_tasks() {
    let shape = HeadShape {
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
    };
    assert!(rows_per_task(shape.qkv_width()) < 70);
    check(shape, 150, [true, true], 3);
}

#[test]
fn a_table_holds_cosines_and_sines_of_angles_rounded_to_f32() {
    let table = RopeTable::new(5000, 16, 10_000.0);
    assert_eq!((table.positions(), table.half), (5000, 8));
    for position in [0u32, 1, 7, 4999] {
        let (cos, sin) = table.at(position);
        for i in 0..8 {
            let angle = f64::from(position) * 10_000f64.powf(-2.0 * i as f64 / 16.0);
            // The frequency and the product are rounded once each.
            let tolerance = angle * 1.2e-7 + 6e-8;
            assert!(
                (f64::from(cos[i]) - angle.cos()).abs() <= tolerance,
                "cos {position} {i}"
            );
            assert!(
                (f64::from(sin[i]) - angle.sin()).abs() <= tolerance,
                "sin {position} {i}"
            );
        }
    }
}

#[test]
#[should_panic(expected = "position 90 in a rope table of 90")]
fn a_position_beyond_the_table_panics() {
    let shape = HeadShape {
        heads: 1,
        kv_heads: 1,
        head_dim: 2,
    };
    let (table, pool) = (RopeTable::new(90, 2, 10.0), Pool::with_isa(1, Isa::Scalar));
    qk_norm_rope_forward(
        &pool,
        shape,
        &[0.0; 6],
        &[90],
        &table,
        None,
        None,
        0.0,
        &mut [0.0; 6],
        &mut [0.0; 2],
    );
}

#[test]
fn in_place_it_has_the_same_bits() {
    let shape = HeadShape {
        heads: 4,
        kv_heads: 2,
        head_dim: 34,
    };
    let rows = 70;
    let qkv = numbers(3, 0, rows * shape.qkv_width());
    let (q, k) = (numbers(3, 1, 34), numbers(3, 2, 34));
    let positions: Vec<u32> = (0..rows as u32).rev().collect();
    let table = RopeTable::new(rows, 34, 100.0);
    for isa in Isa::available() {
        let pool = Pool::with_isa(2, isa);
        for norms in [[Some(&q[..]), Some(&k[..])], [None, None]] {
            let mut out = vec![f32::NAN; qkv.len()];
            let mut inv_rms = vec![f32::NAN; rows * 6];
            qk_norm_rope_forward(
                &pool,
                shape,
                &qkv,
                &positions,
                &table,
                norms[0],
                norms[1],
                1e-6,
                &mut out,
                &mut inv_rms,
            );
            let mut own = qkv.clone();
            let mut own_rms = vec![f32::NAN; rows * 6];
            qk_norm_rope_in_place(
                &pool,
                shape,
                &mut own,
                &positions,
                &table,
                norms,
                1e-6,
                &mut own_rms,
            );
            assert_eq!((own, own_rms), (out, inv_rms), "{isa:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_shape_follows_the_formula(
        kv_heads in 1usize..4, group in 1usize..4, half in 1usize..20, rows in 0usize..8, q: bool, k: bool, seed: u64,
    ) {
        let shape = HeadShape { heads: kv_heads * group, kv_heads, head_dim: 2 * half };
        check(shape, rows, [q, k], seed);
    }
}
