use super::*;
use crate::common;
use crate::loader::tests::{BEGIN, packing};
use crate::settings::PackingKind;

/// Shards whose tokens tell their source: 10 + source.
fn mixture(dir: &std::path::Path, weights: &[f64]) -> Mixture {
    let parts = weights.iter().enumerate().map(|(source, &weight)| {
        let dir = dir.join(source.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        let ids = vec![10 + source as u32; 50 + 10 * source];
        Part {
            shard: common::shard(&dir, &[&ids, &ids]),
            label: format!("s{source}"),
            weight,
        }
    });
    Mixture::new(parts.collect(), BEGIN, packing(PackingKind::Stream, 2)).unwrap()
}

#[test]
fn shares_hold_to_a_sequence_and_every_sequence_comes_once() {
    let dir = tempfile::tempdir().unwrap();
    for weights in [vec![3.0, 1.0], vec![1e-4, 0.2, 0.7, 0.1], vec![1.0; 7]] {
        let mixture = mixture(dir.path(), &weights);
        let all: f64 = weights.iter().sum();
        let mut next = vec![0; weights.len()];
        let blocks = 6;
        for block in 0..blocks {
            let mut of_block: Vec<Vec<u64>> = vec![Vec::new(); weights.len()];
            for sequence in block * BLOCK..(block + 1) * BLOCK {
                let (source, index) = mixture.deal.shares.locate(sequence);
                of_block[source].push(index);
            }
            // The indices of a block follow on those of the block before, in some order.
            for (indices, next) in of_block.iter_mut().zip(&mut next) {
                indices.sort_unstable();
                assert!(
                    indices
                        .iter()
                        .copied()
                        .eq(*next..*next + indices.len() as u64)
                );
                *next += indices.len() as u64;
            }
        }
        for (count, weight) in next.iter().zip(&weights) {
            let share = (blocks * BLOCK) as f64 * weight / all;
            assert!(
                (*count as f64 - share).abs() < weights.len() as f64,
                "{count} of {share}"
            );
        }
    }
}

#[test]
fn sources_are_spread_over_a_block() {
    let dir = tempfile::tempdir().unwrap();
    let mixture = mixture(dir.path(), &[1.0, 3.0]);
    // A quarter of any 256 neighbours, 64, with a standard deviation below 7.
    for first in (0..BLOCK).step_by(256) {
        let count = (first..first + 256)
            .filter(|&sequence| mixture.deal.shares.locate(sequence).0 == 0)
            .count();
        assert!((36..92).contains(&count), "{count}");
    }
}

#[test]
fn batches_come_from_the_source_that_they_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut mixture = mixture(dir.path(), &[1.0, 2.0]);
    let mut tokens = [0, 0];
    for _ in 0..30 {
        for batch in mixture.next().unwrap() {
            let mut row = 0;
            for origin in &batch.origins {
                let targets = &batch.targets[row..row + origin.targets.len()];
                let own = 10 + origin.source as u32;
                assert!(targets.iter().all(|&target| target == own || target < 10));
                assert!(targets.contains(&own) && origin.documents.end <= 2);
                tokens[origin.source] += origin.targets.len();
                row += origin.targets.len();
            }
            assert_eq!(row, batch.tokens.len());
        }
    }
    assert_eq!(tokens[0] + tokens[1], 30 * 16);
    assert!((100..220).contains(&tokens[0]), "{tokens:?}");
    assert_eq!(mixture.labels(), ["s0", "s1"]);
    assert!(mixture.names()[1].ends_with("1/some.tokens.safetensors"));
}

#[test]
fn one_source_is_taken_in_its_own_order() {
    let dir = tempfile::tempdir().unwrap();
    let mixture = mixture(dir.path(), &[2.5]);
    assert!((0..5000).all(|sequence| mixture.deal.shares.locate(sequence) == (0, sequence)));
}
