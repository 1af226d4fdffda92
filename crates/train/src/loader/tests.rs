use super::*;
use crate::common;

/// Documents of lengths that fall on, before and after the ends of windows of 8; ids tell the place: 4 + 10·document +
/// position, below the toy vocabulary.
fn toy(dir: &std::path::Path) -> TokenShard {
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

const BEGIN: u32 = 1;

fn packed(dir: &std::path::Path, micro_batch_sequences: usize) -> PackedShard {
    let packing = Packing {
        sequence_length: 8,
        batch_sequences: 2,
        micro_batch_sequences,
        seed: 3,
    };
    PackedShard::new(toy(dir), BEGIN, packing).unwrap()
}

#[test]
fn segments_begin_and_end_with_their_document() {
    let dir = tempfile::tempdir().unwrap();
    let shard = toy(dir.path());
    let end_of_text = shard.end_of_text();
    let mut loader = packed(dir.path(), 2);
    let (mut begun, mut cut) = (0, 0);
    for _ in 0..40 {
        for batch in loader.next().unwrap() {
            assert_eq!((batch.documents.len(), batch.tokens.len()), (2, 16));
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

#[test]
fn every_token_of_every_document_is_a_target() {
    let dir = tempfile::tempdir().unwrap();
    let shard = toy(dir.path());
    let mut batch = Batch::default();
    append(&mut batch, &shard, BEGIN, 0..shard.tokens()).unwrap();
    let expected: Vec<u32> = (0..shard.tokens()).map(|at| shard.get(at)).collect();
    assert_eq!(batch.targets, expected);
    let lengths: Vec<usize> = batch.segments.iter().map(|segment| segment.len).collect();
    assert_eq!(lengths, [4, 5, 1, 21, 8, 2, 3, 16, 9]);
    assert_eq!(
        batch.tokens.iter().filter(|&&token| token == BEGIN).count(),
        9
    );
    assert_eq!(batch.documents, vec![0..9; 1]);
}

#[test]
fn an_epoch_meets_every_window_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut loader = packed(dir.path(), 1);
    let mut offsets = Vec::new();
    let mut orders = Vec::new();
    for epoch in 0..6 {
        let (offset, windows) = loader.cut(epoch);
        assert_eq!(loader.place, Place { epoch, index: 0 });
        let starts: Vec<usize> = (0..windows).map(|_| loader.advance()).collect();
        let mut sorted = starts.clone();
        sorted.sort_unstable();
        let expected: Vec<usize> = (0..windows as usize)
            .map(|window| offset + 8 * window)
            .collect();
        assert_eq!(sorted, expected);
        offsets.push(offset);
        orders.push(starts);
    }
    assert_eq!(offsets[0], 0);
    offsets.sort_unstable();
    offsets.dedup();
    orders.sort_unstable();
    orders.dedup();
    assert!(
        offsets.len() > 2 && orders.len() == 6,
        "epochs differ in cut and order: {offsets:?} {orders:?}"
    );
}

#[test]
fn restored_batches_are_those_that_would_have_come() {
    let dir = tempfile::tempdir().unwrap();
    let mut straight = packed(dir.path(), 1);
    for step in 0..20 {
        let mut other = packed(dir.path(), 1);
        other.restore(&straight.state()).unwrap();
        let (a, b) = (straight.next().unwrap(), other.next().unwrap());
        let view = |batches: &[Batch]| -> Vec<_> {
            batches
                .iter()
                .map(|b| (b.tokens.clone(), b.targets.clone()))
                .collect()
        };
        assert_eq!(view(&a), view(&b), "step {step}");
        assert_eq!(straight.state(), other.state());
    }
}

#[test]
fn micro_batches_cut_the_same_step() {
    let dir = tempfile::tempdir().unwrap();
    let (mut whole, mut cut) = (packed(dir.path(), 2), packed(dir.path(), 1));
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

#[test]
fn what_is_no_place_or_too_short_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut loader = packed(dir.path(), 1);
    for state in [
        json!({"epoch": 0, "index": 1000}),
        json!({"epoch": -1, "index": 0}),
        json!(null),
    ] {
        let problem = loader.restore(&state).unwrap_err().to_string();
        assert!(problem.contains("no place"), "{problem}");
    }
    let packing = Packing {
        sequence_length: 70,
        ..loader.packing
    };
    let shard = toy(dir.path());
    assert_eq!(shard.tokens(), 69);
    let problem = PackedShard::new(shard, BEGIN, packing)
        .unwrap_err()
        .to_string();
    assert!(
        problem.contains("69 tokens") && problem.contains("needs 70"),
        "{problem}"
    );
    // The shortest possible shard has one window, in every epoch.
    let packing = Packing {
        sequence_length: 69,
        ..loader.packing
    };
    let mut short = PackedShard::new(toy(dir.path()), BEGIN, packing).unwrap();
    assert_eq!(
        [0, 0, 0],
        [short.advance(), short.advance(), short.advance()]
    );
}
