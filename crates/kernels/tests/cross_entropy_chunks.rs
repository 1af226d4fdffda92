//! The loss of more tokens than one chunk of logits holds, against its formula in f64, on every instruction set.

use russet_kernels::cross_entropy::{IGNORE, forward, forward_backward};
use russet_kernels::random::{below, normal};
use russet_kernels::{Compute, Isa, Pool};

/// For losses of up to 14 nats and gradients of up to 1, over sums of 17,000 terms that round in f32 along their way; the
/// largest seen is 1.4e-5. A chunk left out or taken twice costs 1e-2.
const TOLERANCE: f64 = 5e-5;

fn numbers(stream: u64, len: usize) -> Vec<f32> {
    (0..len as u64).map(|i| normal(1, stream, i)).collect()
}

/// What the formula gives: losses, d_hidden, and what is added to d_table.
fn oracle(
    hidden: &[f32],
    table: &[f32],
    targets: &[u32],
    weights: &[f32],
    width: usize,
) -> [Vec<f64>; 3] {
    let vocab = table.len() / width;
    let (mut losses, mut d_hidden, mut d_table) =
        (vec![], vec![0.0; hidden.len()], vec![0.0; table.len()]);
    for (n, &target) in targets.iter().enumerate() {
        if target == IGNORE {
            losses.push(0.0);
            continue;
        }
        let h = &hidden[n * width..][..width];
        let logit = |v: usize| -> f64 {
            h.iter()
                .zip(&table[v * width..])
                .map(|(&h, &t)| f64::from(h) * f64::from(t))
                .sum()
        };
        let logits: Vec<f64> = (0..vocab).map(logit).collect();
        let sum: f64 = logits.iter().map(|z| z.exp()).sum(); // of order one, so nothing overflows
        losses.push(sum.ln() - logits[target as usize]);
        for (v, z) in logits.iter().enumerate() {
            let hit = f64::from(u8::from(v == target as usize));
            let d = f64::from(weights[n]) * (z.exp() / sum - hit);
            for (i, &h) in h.iter().enumerate() {
                d_hidden[n * width + i] += d * f64::from(table[v * width + i]);
                d_table[v * width + i] += d * f64::from(h);
            }
        }
    }
    [losses, d_hidden, d_table]
}

fn close(what: &str, got: &[f32], want: &[f64]) {
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        assert!(
            (f64::from(got) - want).abs() <= TOLERANCE,
            "{what}[{i}]: {got}, formula {want}"
        );
    }
}

fn check(rows: usize, vocab: usize, width: usize) {
    let (hidden, table) = (numbers(0, rows * width), numbers(1, vocab * width));
    let targets: Vec<u32> = (0..rows)
        .map(|n| {
            if n % 13 == 5 {
                IGNORE
            } else {
                below(1, 2, n as u64, vocab as u64) as u32
            }
        })
        .collect();
    let weights: Vec<f32> = (0..rows).map(|n| 0.1 * (1 + n % 3) as f32).collect();
    let before = numbers(3, table.len()); // d_table is added to
    let [losses, d_hidden, mut d_table] = oracle(&hidden, &table, &targets, &weights, width);
    d_table
        .iter_mut()
        .zip(&before)
        .for_each(|(d, &b)| *d += f64::from(b));
    for isa in Isa::available() {
        let mut results = Vec::new();
        for threads in [1, 3] {
            let pool = Pool::with_isa(threads, isa);
            let mut alone = vec![f32::NAN; rows];
            forward(&pool, Compute::F32, &hidden, &table, &targets, &mut alone);
            close("loss without gradient", &alone, &losses);
            let (mut got, mut d_h, mut d_t) = (
                vec![f32::NAN; rows],
                vec![f32::NAN; hidden.len()],
                before.clone(),
            );
            forward_backward(
                &pool,
                Compute::F32,
                &hidden,
                &table,
                &targets,
                &weights,
                &mut got,
                &mut d_h,
                &mut d_t,
            );
            results.push([got, d_h, d_t]);
        }
        assert!(results[0] == results[1], "{isa:?}: threads change bits");
        let [got, d_h, d_t] = &results[0];
        close("loss", got, &losses);
        close("d_hidden", d_h, &d_hidden);
        close("d_table", d_t, &d_table);
    }
}

#[test]
fn rows_of_a_large_vocabulary() {
    check(150, 17_000, 3); // 64 rows a chunk at most
}

#[test]
fn many_rows_of_a_small_vocabulary() {
    check(2100, 13, 5); // 1024 rows a chunk at most
}
