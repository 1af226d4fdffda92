use super::*;
use crate::loader::tests::{packing, toy};

fn packed(dir: &std::path::Path, kind: PackingKind) -> PackedShard {
    PackedShard::new(toy(dir), 0, packing(kind, 1)).unwrap()
}

#[test]
fn an_epoch_of_the_stream_meets_every_window_once() {
    let dir = tempfile::tempdir().unwrap();
    let packed = packed(dir.path(), PackingKind::Stream);
    let (mut offsets, mut orders, mut number) = (Vec::new(), Vec::new(), 0);
    for epoch in 0..6 {
        let (offset, windows) = packed.cut(epoch);
        let mut starts = Vec::new();
        for _ in 0..windows {
            let [range] = &packed.sequence(number)[..] else {
                panic!("a window is one range")
            };
            assert_eq!(range.len(), 8);
            starts.push(range.start);
            number += 1;
        }
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
fn a_stream_too_short_for_a_sequence_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let of_length = |sequence_length| {
        let packing = Packing {
            sequence_length,
            ..packing(PackingKind::Stream, 1)
        };
        PackedShard::new(toy(dir.path()), 0, packing)
    };
    let problem = of_length(70).unwrap_err().to_string();
    assert!(
        problem.contains("69 tokens") && problem.contains("needs 70"),
        "{problem}"
    );
    // The shortest possible shard has one window, in every epoch.
    let short = of_length(69).unwrap();
    for number in 0..3 {
        let ranges = short.sequence(number);
        assert_eq!((ranges.len(), &ranges[0]), (1, &(0..69)));
    }
}

/// A shard of `count` documents of random lengths below `most`, and one long one.
fn random_documents(dir: &std::path::Path, count: u64, most: u64) -> TokenShard {
    let mut documents: Vec<Vec<u32>> = (0..count)
        .map(|i| vec![4 + (i % 250) as u32; random::below(9, 0, i, most) as usize])
        .collect();
    documents.push(vec![7; 20 * most as usize]);
    let documents: Vec<&[u32]> = documents.iter().map(|ids| &ids[..]).collect();
    crate::common::shard(dir, &documents)
}

#[test]
fn best_fit_keeps_documents_whole_and_leaves_little_room() {
    let dir = tempfile::tempdir().unwrap();
    let packing = Packing {
        sequence_length: 64,
        ..packing(PackingKind::BestFit, 1)
    };
    let shard = random_documents(dir.path(), 3000, 100);
    let (tokens, documents) = (shard.tokens(), shard.documents());
    let packed = PackedShard::new(shard, 0, packing).unwrap();
    let windows = packed.windows.as_ref().unwrap();
    assert!(windows.starts.len() > 3, "{} windows", windows.starts.len());
    let count = windows.sequences;
    let (mut seen, mut cuts) = (vec![0u32; tokens], 0);
    for number in 0..count {
        let ranges = packed.sequence(number);
        let length: usize = ranges.iter().map(Range::len).sum();
        assert!(length <= 64, "{length} tokens");
        for range in ranges {
            let document = packed.shard.document(packed.shard.document_of(range.start));
            assert!(range.end <= document.end, "a range is of one document");
            // Only what is longer than a sequence is cut, and only at multiples of one.
            assert_eq!((range.start - document.start) % 64, 0);
            assert!(range.end == document.end || range.len() == 64);
            cuts += usize::from(range.end < document.end);
            range.for_each(|at| seen[at] += 1);
        }
    }
    assert!(
        seen.iter().all(|&times| times == 1),
        "every token once an epoch"
    );
    let needed: usize = (0..documents)
        .map(|document| (packed.shard.document(document).len() - 1) / 64)
        .sum();
    assert_eq!(cuts, needed);
    let filled = tokens as f64 / (count * 64) as f64;
    assert!(filled > 0.98, "{filled} of the room is filled");
    // The next epoch has the same sequences in another order.
    let epoch = |epoch: u64| -> Vec<_> {
        (0..count)
            .map(|index| packed.sequence(epoch * count + index))
            .map(|ranges| ranges[0].start)
            .collect()
    };
    let (mut first, mut second) = (epoch(0), epoch(1));
    assert_ne!(first, second);
    first.sort_unstable();
    second.sort_unstable();
    assert_eq!(first, second);
}

#[test]
fn the_longest_go_first_each_where_least_is_left() {
    let pieces: Vec<Range<usize>> = [3, 8, 5, 2, 4, 6, 1].map(|length| 0..length).to_vec();
    // 8 | 6, 2 | 5, 3 | 4, 1 in bins of 8.
    assert_eq!(
        best_fit(&pieces, 8),
        [vec![1], vec![5, 3], vec![2, 0], vec![4, 6]]
    );
    assert!(best_fit(&[], 8).is_empty());
}
