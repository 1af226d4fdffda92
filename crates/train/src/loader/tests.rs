use super::*;
use crate::common;

/// Documents of lengths that fall on, before and after the ends of windows of 8; ids tell the place: 4 + 10·document +
/// position, below the toy vocabulary.
pub(super) fn toy(dir: &std::path::Path) -> TokenShard {
    let lengths = [3usize, 4, 0, 20, 7, 1, 2, 15, 8];
    let documents: Vec<Vec<u32>> = lengths
        .iter()
        .enumerate()
        .map(|(document, &length)| {
            (0..length)
                .map(|i| 4 + 30 * document as u32 + i as u32)
                .collect()
        })
        .collect();
    let documents: Vec<&[u32]> = documents.iter().map(|ids| &ids[..]).collect();
    common::shard(dir, &documents)
}

pub(super) const BEGIN: u32 = 1;

pub(super) fn packing(kind: PackingKind, micro_batch_sequences: usize) -> Packing {
    Packing {
        kind,
        sequence_length: 8,
        batch_sequences: 2,
        micro_batch_sequences,
        seed: 3,
    }
}

fn packed(dir: &std::path::Path, kind: PackingKind, micro_batch_sequences: usize) -> Mixture {
    Mixture::single(toy(dir), BEGIN, packing(kind, micro_batch_sequences)).unwrap()
}

const KINDS: [PackingKind; 2] = [PackingKind::Stream, PackingKind::BestFit];

#[test]
fn segments_begin_and_end_with_their_document() {
    let dir = tempfile::tempdir().unwrap();
    let shard = toy(dir.path());
    let end_of_text = shard.end_of_text();
    for kind in KINDS {
        let mut loader = packed(dir.path(), kind, 2);
        let (mut begun, mut cut) = (0, 0);
        for _ in 0..40 {
            for batch in loader.next().unwrap() {
                assert!(
                    batch.tokens.len() <= 16
                        && (kind == PackingKind::BestFit || batch.tokens.len() == 16)
                );
                let origins = batch.origins.iter();
                let told: Vec<u32> = origins
                    .flat_map(|origin| origin.targets.clone())
                    .map(|at| shard.get(at))
                    .collect();
                assert_eq!(told, batch.targets);
                assert_eq!(told.len(), batch.tokens.len());
                assert!(!batch.targets.contains(&IGNORE) && !batch.tokens.contains(&end_of_text));
                for segment in batch.segments.iter() {
                    let tokens = &batch.tokens[segment.start..][..segment.len];
                    let targets = &batch.targets[segment.start..][..segment.len];
                    let last = segment.len - 1;
                    assert_eq!(tokens[1..], targets[..last], "the target is the next input");
                    assert!(
                        !targets[..last].contains(&end_of_text),
                        "an end ends its segment"
                    );
                    // Ids tell document and place.
                    let starts_document = targets[0] == end_of_text || (targets[0] - 4) % 30 == 0;
                    if tokens[0] == BEGIN {
                        assert!(starts_document, "{targets:?}");
                        begun += 1;
                    } else {
                        assert!(targets[0] == end_of_text || targets[0] == tokens[0] + 1);
                        cut += 1;
                    }
                }
            }
        }
        assert!(
            begun > 20 && cut > 20,
            "both cases were met: {begun}, {cut}"
        );
    }
}

#[test]
fn every_token_of_every_document_is_a_target() {
    let dir = tempfile::tempdir().unwrap();
    let shard = toy(dir.path());
    let mut batch = Batch::default();
    append(&mut batch, &shard, 5, BEGIN, 0..shard.tokens()).unwrap();
    let expected: Vec<u32> = (0..shard.tokens()).map(|at| shard.get(at)).collect();
    assert_eq!(batch.targets, expected);
    let lengths: Vec<usize> = batch.segments.iter().map(|segment| segment.len).collect();
    assert_eq!(lengths, [4, 5, 1, 21, 8, 2, 3, 16, 9]);
    assert_eq!(
        batch.tokens.iter().filter(|&&token| token == BEGIN).count(),
        9
    );
    let origin = Origin {
        source: 5,
        documents: 0..9,
        targets: 0..69,
    };
    assert_eq!(batch.origins, [origin]);
}

#[test]
fn restored_batches_are_those_that_would_have_come() {
    let dir = tempfile::tempdir().unwrap();
    let view = |batches: &[Batch]| -> Vec<_> {
        batches
            .iter()
            .map(|b| (b.tokens.clone(), b.targets.clone()))
            .collect()
    };
    for kind in KINDS {
        let mut straight = packed(dir.path(), kind, 1);
        // Gone to and fro: what was made ahead for another place is not given out.
        let mut other = packed(dir.path(), kind, 1);
        for step in 0..20 {
            let state = straight.state();
            let a = straight.next().unwrap();
            other.next().unwrap();
            other.restore(&state).unwrap();
            let b = other.next().unwrap();
            assert_eq!(view(&a), view(&b), "step {step}");
            assert_eq!(view(&a), view(&straight.at(step).unwrap()), "step {step}");
            assert_eq!(straight.state(), other.state());
        }
        for state in [
            serde_json::json!({"step": -1}),
            serde_json::json!({"epoch": 0, "index": 1}),
            Value::Null,
        ] {
            let problem = other.restore(&state).unwrap_err().to_string();
            assert!(problem.contains("no place"), "{problem}");
        }
    }
}

#[test]
fn micro_batches_cut_the_same_step() {
    let dir = tempfile::tempdir().unwrap();
    for kind in KINDS {
        let (mut whole, mut cut) = (packed(dir.path(), kind, 2), packed(dir.path(), kind, 1));
        for _ in 0..10 {
            let (whole, cut) = (whole.next().unwrap(), cut.next().unwrap());
            assert_eq!((whole.len(), cut.len()), (1, 2));
            let joined = |get: fn(&Batch) -> &Vec<u32>| {
                cut.iter()
                    .flat_map(|batch| get(batch).clone())
                    .collect::<Vec<_>>()
            };
            assert_eq!(whole[0].tokens, joined(|batch| &batch.tokens));
            assert_eq!(whole[0].targets, joined(|batch| &batch.targets));
            let sum: f64 = cut
                .iter()
                .flat_map(|batch| &batch.weights)
                .map(|&weight| f64::from(weight))
                .sum();
            assert!(
                (sum - 1.0).abs() < 1e-6,
                "weights of a step sum to one, found {sum}"
            );
        }
    }
}

#[test]
fn shares_of_a_step_are_the_step() {
    let dir = tempfile::tempdir().unwrap();
    for kind in KINDS {
        let whole = Mixture::single(
            toy(dir.path()),
            BEGIN,
            Packing {
                batch_sequences: 6,
                micro_batch_sequences: 2,
                ..packing(kind, 1)
            },
        );
        let whole = whole.unwrap();
        for places in [1, 2, 3, 6] {
            for step in 0..8 {
                let wanted = whole.at(step).unwrap();
                let share = |place| {
                    let packing = Packing {
                        batch_sequences: 6,
                        micro_batch_sequences: 2,
                        ..packing(kind, 1)
                    };
                    let mixture = Mixture::single(toy(dir.path()), BEGIN, packing).unwrap();
                    mixture.shared(place, places).at(step).unwrap()
                };
                let shares: Vec<Batch> = (0..places).flat_map(share).collect();
                let tokens = |batches: &[Batch]| -> Vec<u32> {
                    batches
                        .iter()
                        .flat_map(|batch| batch.tokens.clone())
                        .collect()
                };
                assert_eq!(tokens(&shares), tokens(&wanted));
                assert!(shares.iter().all(|batch| batch.tokens.len() <= 16));
                let weight = wanted[0].weights[0];
                assert!(
                    shares
                        .iter()
                        .flat_map(|batch| &batch.weights)
                        .all(|&w| w == weight)
                );
            }
        }
    }
}
