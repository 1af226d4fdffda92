//! The norm against its formula in f64, on every instruction set and thread count.

use crate::Isa;
use proptest::prelude::*;

use super::*;
use crate::random::normal;

fn numbers(seed: u64, stream: u64, len: usize) -> Vec<f32> {
    (0..len as u64).map(|i| normal(seed, stream, i)).collect()
}

/// What the formula at the top of the module gives for one row: out, inv_rms, d_x, and what the row adds to d_weight.
fn oracle(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    d_out: &[f32],
) -> (Vec<f64>, f64, Vec<f64>, Vec<f64>) {
    let width = x.len() as f64;
    let [x, weight, d_out] =
        [x, weight, d_out].map(|v| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
    let r = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / width + f64::from(eps)).sqrt();
    let hat: Vec<f64> = x.iter().map(|x| x * r).collect();
    let g: Vec<f64> = weight.iter().zip(&d_out).map(|(w, d)| w * d).collect();
    let mean = g.iter().zip(&hat).map(|(g, hat)| g * hat).sum::<f64>() / width;
    (
        hat.iter().zip(&weight).map(|(hat, w)| hat * w).collect(),
        r,
        g.iter()
            .zip(&hat)
            .map(|(g, hat)| r * (g - hat * mean))
            .collect(),
        d_out.iter().zip(&hat).map(|(d, hat)| d * hat).collect(),
    )
}

/// f32 sums of a few hundred terms in sixteen lanes err by some 20 roundings of 6e-8; `scale` is the largest of the
/// terms that a result is the sum of, which it may be far below.
fn close(what: &str, got: &[f32], want: &[f64], scale: f64) {
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        assert!(
            (f64::from(got) - want).abs() <= 4e-6 * scale,
            "{what}[{i}]: {got}, formula {want}"
        );
    }
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most, value| most.max(value.abs()))
}

/// Rows of very different sizes, one of zeros among them.
fn check(rows: usize, width: usize, eps: f32, seed: u64) {
    let mut x = numbers(seed, 0, rows * width);
    for (n, row) in x.chunks_exact_mut(width).enumerate() {
        let size = [1.0, 0.0, 1e-4, 300.0, 1.0][n % 5];
        row.iter_mut().for_each(|x| *x *= size);
    }
    let (weight, d_out) = (numbers(seed, 1, width), numbers(seed, 2, rows * width));
    let before = numbers(seed, 3, width); // d_weight is added to
    let mut results: Vec<[Vec<f32>; 4]> = Vec::new();
    for (isa, threads) in Isa::available().flat_map(|isa| [(isa, 1), (isa, 3)]) {
        let pool = Pool::with_isa(threads, isa);
        let nan = vec![f32::NAN; rows * width];
        let (mut out, mut inv_rms, mut d_x, mut d_weight) =
            (nan.clone(), vec![f32::NAN; rows], nan, before.clone());
        rms_norm_forward(&pool, &x, &weight, eps, &mut out, &mut inv_rms);
        rms_norm_backward(
            &pool,
            &x,
            &weight,
            &inv_rms,
            &d_out,
            &mut d_x,
            &mut d_weight,
        );
        results.push([out, inv_rms, d_x, d_weight]);
    }
    let [out, inv_rms, d_x, d_weight] = &results[0];
    let mut sum: Vec<f64> = before.iter().map(|&w| f64::from(w)).collect();
    for n in 0..rows {
        let row = n * width..(n + 1) * width;
        let d = &d_out[row.clone()];
        let (o, r, dx, dw) = oracle(&x[row.clone()], &weight, eps, d);
        close("inv_rms", &inv_rms[n..=n], &[r], r);
        close("out", &out[row.clone()], &o, largest(&o));
        let terms = d
            .iter()
            .zip(&weight)
            .fold(0f32, |most, (d, w)| most.max((d * w).abs()));
        let hat = x[row.clone()]
            .iter()
            .fold(0.0, |most: f64, &x| most.max(f64::from(x).abs() * r));
        close("d_x", &d_x[row], &dx, r * f64::from(terms) * (1.0 + hat));
        sum.iter_mut().zip(&dw).for_each(|(sum, dw)| *sum += dw);
    }
    close("d_weight", d_weight, &sum, 10.0 * (rows as f64).sqrt());
    // Lanes are the same on every instruction set, tasks whatever the threads.
    for other in &results[1..] {
        assert!(results[0] == *other, "{rows} rows of {width}: bits differ");
    }
}

#[test]
fn rows_that_fill_several_tasks() {
    let width = 300;
    assert!(rows_per_task(width) < 60);
    check(200, width, 1e-5, 7);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_width_follows_the_formula(rows in 0usize..9, width in 1usize..130, eps in 1e-6f32..1e-2, seed: u64) {
        check(rows, width, eps, seed);
    }
}
