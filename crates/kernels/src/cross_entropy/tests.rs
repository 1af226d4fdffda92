//! Against the formulas in f64, a token at a time, on every instruction set and any number of rows a chunk.

use crate::Isa;
use proptest::prelude::*;

use super::*;
use crate::random;

/// The loss of one token and its derivative by the logits.
fn oracle(
    z: &[f64],
    target: usize,
    z_loss: f64,
    mix: f64,
    opinion: &Option<Plain>,
) -> (f64, Vec<f64>) {
    let log_sum = log_sum(z);
    let p: Vec<f64> = z.iter().map(|z| (z - log_sum).exp()).collect();
    let share = if opinion.is_some() { 1.0 - mix } else { 1.0 };
    let mut loss = share * (log_sum - z[target]) + z_loss * log_sum * log_sum;
    let mut d: Vec<f64> = p
        .iter()
        .map(|p| p * (share + 2.0 * z_loss * log_sum))
        .collect();
    d[target] -= share;
    match opinion {
        None => {}
        Some(Plain::Top1(likeliest)) => {
            loss += mix * (log_sum - z[*likeliest]);
            d.iter_mut().zip(&p).for_each(|(d, p)| *d += mix * p);
            d[*likeliest] -= mix;
        }
        Some(Plain::Full(other, temperature)) => {
            let soft = |z: &[f64]| {
                let z: Vec<f64> = z.iter().map(|z| z / temperature).collect();
                let sum = self::log_sum(&z);
                z.iter().map(|z| z - sum).collect::<Vec<f64>>()
            };
            for ((d, p), q) in d.iter_mut().zip(soft(z)).zip(soft(other)) {
                loss += mix * temperature * temperature * q.exp() * (q - p);
                *d += mix * temperature * (p.exp() - q.exp());
            }
        }
        Some(Plain::Sparse(ids, log_probs)) => {
            let mut q: Vec<f64> = log_probs.iter().map(|l| l.exp()).collect();
            let sum: f64 = q.iter().sum();
            let mut tail = 1.0 - sum;
            if sum > 1.0 || ids.len() == z.len() {
                q.iter_mut().for_each(|q| *q /= sum);
                tail = 0.0;
            }
            let p_tail: f64 = (0..z.len())
                .filter(|v| !ids.contains(v))
                .map(|v| p[v])
                .sum();
            for (&q, &id) in q.iter().zip(ids) {
                loss += mix * q * (q / p[id]).ln();
                d[id] += mix * (p[id] - q);
            }
            if tail > 0.0 {
                loss += mix * tail * (tail / p_tail).ln();
            }
            for v in (0..z.len()).filter(|v| !ids.contains(v)) {
                d[v] += mix * p[v] * (1.0 - tail / p_tail);
            }
        }
    }
    (loss, d)
}

enum Plain {
    Top1(usize),
    Full(Vec<f64>, f64),
    Sparse(Vec<usize>, Vec<f64>),
}

fn log_sum(z: &[f64]) -> f64 {
    let highest = z.iter().fold(f64::MIN, |a, &b| a.max(b));
    highest + z.iter().map(|z| (z - highest).exp()).sum::<f64>().ln()
}

fn logits(hidden: &[f32], table: &[f32], width: usize, n: usize) -> Vec<f64> {
    let hidden = &hidden[n * width..][..width];
    table
        .chunks_exact(width)
        .map(|row| {
            row.iter()
                .zip(hidden)
                .map(|(&a, &b)| f64::from(a) * f64::from(b))
                .sum()
        })
        .collect()
}

fn numbers(len: usize, seed: u64, stream: u64, scale: f32) -> Vec<f32> {
    (0..len as u64)
        .map(|i| scale * random::normal(seed, stream, i))
        .collect()
}

fn isas() -> impl Iterator<Item = Isa> {
    Isa::available()
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    None,
    Top1,
    Full(f32),
    Sparse(usize),
}

fn check(tokens: usize, vocab: usize, kind: Kind, mix: f32, z_loss: f32, scale: f32, seed: u64) {
    let (width, teacher_width) = (5, 3);
    let hidden = numbers(tokens * width, seed, 0, scale);
    let table = numbers(vocab * width, seed, 1, 1.0);
    let teacher_hidden = numbers(tokens * teacher_width, seed, 2, scale);
    let teacher_table = numbers(vocab * teacher_width, seed, 3, 1.0);
    let weights: Vec<f32> = (0..tokens).map(|n| 0.25 + n as f32 % 3.0).collect();
    let targets: Vec<u32> = (0..tokens as u64)
        .map(|n| match random::below(seed, 4, n, 5) {
            0 => IGNORE,
            _ => random::below(seed, 5, n, vocab as u64) as u32,
        })
        .collect();
    let head = Head {
        hidden: &teacher_hidden,
        table: &teacher_table,
    };
    let k = match kind {
        Kind::Sparse(k) => k.min(vocab),
        _ => 1,
    };
    // The k likeliest of each token, a little more probability than they have in every third.
    let (mut ids, mut log_probs) = (Vec::new(), Vec::new());
    for n in 0..tokens {
        let z = logits(&teacher_hidden, &teacher_table, teacher_width, n);
        let sum = log_sum(&z);
        let mut order: Vec<usize> = (0..vocab).collect();
        order.sort_by(|&a, &b| z[b].total_cmp(&z[a]));
        ids.extend(order[..k].iter().map(|&id| id as u32));
        let more = if n % 3 == 0 { 1e-3 } else { 0.0 };
        log_probs.extend(order[..k].iter().map(|&id| (z[id] - sum + more) as f32));
    }
    let teacher = match kind {
        Kind::None => None,
        Kind::Top1 => Some(Teacher::Top1(head)),
        Kind::Full(temperature) => Some(Teacher::Full { head, temperature }),
        Kind::Sparse(_) => Some(Teacher::Sparse {
            ids: &ids,
            log_probs: &log_probs,
        }),
    };
    let terms = Terms {
        z_loss,
        teacher: teacher.map(|teacher| (teacher, mix)),
    };

    let (mut losses, mut d_hidden) = (vec![0.0; tokens], vec![0.0; tokens * width]);
    let mut d_table = vec![1.0; vocab * width];
    for n in (0..tokens).filter(|&n| targets[n] != IGNORE) {
        let z = logits(&hidden, &table, width, n);
        let opinion = match kind {
            Kind::None => None,
            Kind::Top1 => Some(Plain::Top1(ids[n] as usize)),
            Kind::Full(temperature) => {
                let other = logits(&teacher_hidden, &teacher_table, teacher_width, n);
                Some(Plain::Full(other, f64::from(temperature)))
            }
            Kind::Sparse(_) => Some(Plain::Sparse(
                ids[n * k..][..k].iter().map(|&id| id as usize).collect(),
                log_probs[n * k..][..k]
                    .iter()
                    .map(|&l| f64::from(l))
                    .collect(),
            )),
        };
        let (loss, d) = oracle(
            &z,
            targets[n] as usize,
            f64::from(z_loss),
            f64::from(mix),
            &opinion,
        );
        losses[n] = loss;
        for (v, d) in d.iter().enumerate() {
            for i in 0..width {
                let d = d * f64::from(weights[n]);
                d_hidden[n * width + i] += d * f64::from(table[v * width + i]);
                d_table[v * width + i] += d * f64::from(hidden[n * width + i]);
            }
        }
    }

    for isa in isas() {
        let mut first: Option<Vec<f32>> = None;
        for (threads, rows) in [(1, 1), (2, 3), (2, tokens), (1, tokens + 7)] {
            let pool = Pool::with_isa(threads, isa);
            let (mut l, mut dh) = (vec![9.0; tokens], vec![9.0; tokens * width]);
            let mut dt = vec![1.0; vocab * width];
            let gradients = HeadGradients {
                hidden: &mut dh,
                table: Some(&mut dt),
            };
            let student = Head {
                hidden: &hidden,
                table: &table,
            };
            in_chunks(
                &pool,
                Compute::F32,
                rows,
                student,
                &targets,
                &weights,
                &terms,
                &mut l,
                Some(gradients),
            );
            let what = format!("{isa:?}, {rows} rows of {tokens}, {kind:?}");
            close(&l, &losses, &format!("losses: {what}"));
            close(&dh, &d_hidden, &format!("d_hidden: {what}"));
            close(&dt, &d_table, &format!("d_table: {what}"));
            // A row does not know which chunk it is in. (d_table adds up chunk by chunk.)
            let bits = [l, dh].concat();
            assert!(*first.get_or_insert_with(|| bits.clone()) == bits, "{what}");
        }
    }
}

/// Sums of up to 300 terms of order 10 in f32 are right to some 1e-6 of their size; 2e-5 of the largest leaves room for the
/// logits themselves, and a term left out costs a hundred times that.
#[track_caller]
fn close(got: &[f32], want: &[f64], what: &str) {
    let largest = want.iter().fold(1.0f64, |a, b| a.max(b.abs()));
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        assert!(
            (f64::from(got) - want).abs() <= 2e-5 * largest,
            "{what}, element {i}: {got}, not {want}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_body_equals_the_formula(
        tokens in 1usize..20,
        vocab in 2usize..150,
        kind in prop::sample::select(vec![
            Kind::None, Kind::Top1, Kind::Full(1.0), Kind::Full(2.5), Kind::Full(0.5), Kind::Sparse(1), Kind::Sparse(4),
            Kind::Sparse(64), Kind::Sparse(149),
        ]),
        mix in prop::sample::select(vec![0.0f32, 0.5, 0.9, 1.0]),
        z_loss in prop::sample::select(vec![0.0f32, 1e-6, 1e-2]),
        scale in prop::sample::select(vec![0.1f32, 1.0, 4.0]),
        seed in 0u64..10_000,
    ) {
        check(tokens, vocab, kind, mix, z_loss, scale, seed);
    }
}

#[test]
fn without_terms_it_is_the_plain_loss_to_the_bit_and_no_gradient_changes_no_loss() {
    let (tokens, vocab, width) = (70, 33, 8);
    let pool = Pool::with_isa(2, Isa::best());
    let (hidden, table) = (
        numbers(tokens * width, 1, 0, 1.0),
        numbers(vocab * width, 1, 1, 1.0),
    );
    let targets: Vec<u32> = (0..tokens as u32).map(|n| n % 33).collect();
    let weights = vec![1.0; tokens];
    let mut losses = vec![vec![0.0; tokens]; 3];
    forward(
        &pool,
        Compute::F32,
        &hidden,
        &table,
        &targets,
        &mut losses[0],
    );
    let (mut d_hidden, mut d_table) = (vec![0.0; hidden.len()], vec![0.0; table.len()]);
    forward_backward(
        &pool,
        Compute::F32,
        &hidden,
        &table,
        &targets,
        &weights,
        &mut losses[1],
        &mut d_hidden,
        &mut d_table,
    );
    let head = Head {
        hidden: &hidden,
        table: &table,
    };
    with_terms(
        &pool,
        Compute::F32,
        head,
        &targets,
        &weights,
        &Terms::default(),
        &mut losses[2],
        None,
    );
    assert_eq!(losses[1], losses[2]);
    for (a, b) in losses[0].iter().zip(&losses[1]) {
        assert!((a - b).abs() < 1e-6 * b.abs().max(1.0), "{a} and {b}");
    }
}

/// Logits far apart: what vanishes in f32 may not become NaN.
#[test]
fn a_tail_that_vanishes_stays_finite() {
    let pool = Pool::with_isa(1, Isa::best());
    let head = Head {
        hidden: &[1.0],
        table: &[500.0, 0.0, -500.0],
    };
    for (id, log_prob) in [(0, -0.5), (2, -0.5), (1, -40.0)] {
        let terms = Terms {
            z_loss: 0.0,
            teacher: Some((
                Teacher::Sparse {
                    ids: &[id],
                    log_probs: &[log_prob],
                },
                1.0,
            )),
        };
        let (mut loss, mut d_hidden, mut d_table) = ([0.0], [0.0], [0.0; 3]);
        let gradients = HeadGradients {
            hidden: &mut d_hidden,
            table: Some(&mut d_table),
        };
        with_terms(
            &pool,
            Compute::F32,
            head,
            &[0],
            &[1.0],
            &terms,
            &mut loss,
            Some(gradients),
        );
        let all = [&loss[..], &d_hidden, &d_table].concat();
        assert!(all.iter().all(|x| x.is_finite()), "{all:?}");
    }
}
