//! SwiGLU against its formula in f64, on every instruction set and thread count.

use crate::Isa;
use proptest::prelude::*;

use super::*;
use crate::random::normal;

/// Gates from where the exponential overflows to where it vanishes, with the ordinary ones between.
const FAR: [f32; 10] = [
    -1e4, -100.0, -88.0, -30.0, -0.0, 0.0, 30.0, 88.0, 100.0, 1e4,
];

fn close(what: &str, got: f32, want: f64, scale: f64) {
    // A few roundings and the vectors' exponential, which is good to 2 in the last place. It ends at e^88, so a gate of
    // -1e4 leaves 1e4 / e^88 = 6e-35 of nothing.
    let tolerance = 2e-6 * scale + 1e-33;
    assert!(
        (f64::from(got) - want).abs() <= tolerance,
        "{what}: {got}, formula {want}"
    );
}

fn check(rows: usize, ffn: usize, seed: u64) {
    let mut gate_up: Vec<f32> = (0..2 * rows * ffn)
        .map(|i| 3.0 * normal(seed, 0, i as u64))
        .collect();
    for (i, value) in gate_up
        .iter_mut()
        .enumerate()
        .filter(|(i, _)| i % (2 * ffn) < ffn)
    {
        if (i as u64).wrapping_add(seed).is_multiple_of(7) {
            *value = FAR[i / 7 % FAR.len()];
        }
    }
    let d_out: Vec<f32> = (0..rows * ffn).map(|i| normal(seed, 1, i as u64)).collect();
    for isa in Isa::available() {
        let mut results = Vec::new();
        for threads in [1, 3] {
            let pool = Pool::with_isa(threads, isa);
            let (mut out, mut d) = (vec![f32::NAN; rows * ffn], vec![f32::NAN; 2 * rows * ffn]);
            forward(&pool, &gate_up, ffn, &mut out);
            backward(&pool, &gate_up, ffn, &d_out, &mut d);
            results.push([out, d]);
        }
        assert!(results[0] == results[1], "{isa:?}: threads change bits");
        let [out, d_gate_up] = &results[0];
        for n in 0..rows {
            for i in 0..ffn {
                let (at_gate, at_up) = (2 * n * ffn + i, (2 * n + 1) * ffn + i);
                let (gate, up) = (f64::from(gate_up[at_gate]), f64::from(gate_up[at_up]));
                let d = f64::from(d_out[n * ffn + i]);
                let sigma = 1.0 / (1.0 + (-gate).exp());
                let what = format!("{isa:?}, gate {gate}, up {up}");
                let want = gate * sigma * up;
                close(&format!("out, {what}"), out[n * ffn + i], want, want.abs());
                let want = d * gate * sigma;
                close(&format!("d_up, {what}"), d_gate_up[at_up], want, want.abs());
                // Its two terms may cancel near a gate of -1.28, where silu turns.
                let want = d * up * sigma * (1.0 + gate * (1.0 - sigma));
                let scale = (d * up * sigma).abs() * (1.0 + gate.abs());
                close(&format!("d_gate, {what}"), d_gate_up[at_gate], want, scale);
            }
        }
    }
}

#[test]
fn rows_that_fill_several_tasks() {
    assert!(rows_per_task(2 * 300) < 30);
    check(90, 300, 5);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_width_follows_the_formula(rows in 0usize..6, ffn in 1usize..70, seed: u64) {
        check(rows, ffn, seed);
    }
}
