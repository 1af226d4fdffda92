use super::*;
use proptest::prelude::*;
use russet_kernels::random;
use russet_tokenizer::TrainConfig;
use std::sync::LazyLock;

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let config = TrainConfig {
        vocab_size: 400,
        min_frequency: 2,
        alphabet_min_frequency: 1,
    };
    let text = include_str!("../rows.rs").to_owned();
    russet_tokenizer::train(&config, [Ok::<_, TokenizerError>(text)]).unwrap()
});

const READING: Reading = Reading {
    kind: RowKind::Conversations,
    sequence_length: 96,
    too_long: TooLong::Cut,
    skip_malformed: false,
};

/// Conversations of 1 to 3 turns, of a file's own.
fn row(seed: u64, number: u64) -> Value {
    let words = |stream: u64| {
        let count = 1 + random::below(seed, number, stream, 12);
        let word = |place| {
            ["row", "key", "text", "line"]
                [random::below(seed, number, stream * 100 + place, 4) as usize]
        };
        (0..count).map(word).collect::<Vec<_>>().join(" ")
    };
    let turns = 1 + random::below(seed, number, 0, 3);
    let messages: Vec<Value> = (0..turns)
        .flat_map(|turn| {
            let (asked, said) = (words(2 * turn + 1), words(2 * turn + 2));
            [
                json!({"role": "user", "content": asked}),
                json!({"role": "assistant", "content": said}),
            ]
        })
        .collect();
    json!({ "messages": messages })
}

fn source(dir: &Path, name: &str, rows: &[Value], reading: Reading) -> Result<Source> {
    let path = dir.join(name);
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(&path, text).unwrap();
    Source::read(&path, name.to_owned(), &TOKENIZER, reading)
}

fn rows(seed: u64, count: u64) -> Vec<Value> {
    (0..count).map(|number| row(seed, number)).collect()
}

const DEALING: Dealing = Dealing {
    batch_sequences: 4,
    micro_batch_sequences: 2,
    seed: 5,
    mean: Mean::Tokens,
};

#[test]
fn what_is_learnt_is_the_answers_and_their_ends() {
    let dir = tempfile::tempdir().unwrap();
    let rows = [json!({"messages": [
        {"role": "user", "content": "key"}, {"role": "assistant", "content": "row line"},
        {"role": "user", "content": "text"}, {"role": "assistant", "content": "no", "weight": 0},
        {"role": "user", "content": "line"}, {"role": "assistant", "content": "key"},
        {"role": "user", "content": "unanswered"},
    ]})];
    let source = source(dir.path(), "a.jsonl", &rows, READING).unwrap();
    let Encoded {
        inputs, targets, ..
    } = &source.examples[0];
    let learnt: Vec<u32> = targets
        .iter()
        .copied()
        .filter(|&target| target != IGNORE)
        .collect();
    assert_eq!(
        TOKENIZER.decode(&learnt, false),
        "row line<|im_end|>key<|im_end|>"
    );
    // A target is the input after it, and nothing follows the last one.
    for place in 0..targets.len() - 1 {
        assert!(targets[place] == IGNORE || targets[place] == inputs[place + 1]);
    }
    assert_ne!(targets.last(), Some(&IGNORE));
    let before = targets.iter().position(|&target| target != IGNORE).unwrap();
    let shown = TOKENIZER.decode(&inputs[..=before], false);
    assert_eq!(
        shown,
        "<|im_start|>user\nkey<|im_end|>\n<|im_start|>assistant\n"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]
    #[test]
    fn every_example_is_whole_in_one_sequence_and_met_once_an_epoch(seed: u64, count in 1u64..60) {
        let dir = tempfile::tempdir().unwrap();
        let source = source(dir.path(), "a.jsonl", &rows(seed, count), READING).unwrap();
        let mut packed: Vec<usize> = source.sequences.concat();
        packed.sort_unstable();
        prop_assert!(packed.into_iter().eq(0..source.examples.len()));
        for sequence in &source.sequences {
            let tokens: usize = sequence.iter().map(|&one| source.examples[one].inputs.len()).sum();
            prop_assert!(tokens <= READING.sequence_length);
        }
        let sequences = source.sequences.len() as u64;
        let sources = [source];
        let dealing = Dealing { batch_sequences: 1, micro_batch_sequences: 1, ..DEALING };
        let dealt = Dealt::new(&sources, &[1.0], dealing);
        for epoch in 0..2 {
            let mut met: Vec<usize> = (0..sequences)
                .flat_map(|step| dealt.at(epoch * sequences + step))
                .flat_map(|batch| batch.origins.into_iter().map(|origin| origin.documents.start))
                .collect();
            met.sort_unstable();
            prop_assert!(met.into_iter().eq(0..count as usize));
        }
    }
}

#[test]
fn a_batch_is_a_function_of_the_step_and_its_segments_are_examples() {
    let dir = tempfile::tempdir().unwrap();
    let sources = [
        source(dir.path(), "a.jsonl", &rows(1, 40), READING).unwrap(),
        source(dir.path(), "b.jsonl", &rows(2, 30), READING).unwrap(),
    ];
    let mut dealt = Dealt::new(&sources, &[3.0, 1.0], DEALING);
    let mut first = Vec::new();
    for _ in 0..6 {
        first.push(format!("{:?}", dealt.next().unwrap()));
    }
    let mut other = Dealt::new(&sources, &[3.0, 1.0], DEALING);
    other.restore(&json!({"step": 4})).unwrap();
    assert_eq!(format!("{:?}", other.next().unwrap()), first[4]);
    assert_eq!(other.state(), json!({"step": 5}));
    assert!(other.restore(&json!({"place": 4})).is_err());
    for batch in dealt.at(9) {
        assert_eq!(batch.segments.iter().len(), batch.origins.len());
        for (segment, origin) in batch.segments.iter().zip(&batch.origins) {
            let source = &sources[origin.source];
            let example = source
                .examples
                .iter()
                .find(|one| one.row == origin.documents.start)
                .unwrap();
            let rows = segment.start..segment.start + segment.len;
            assert_eq!(batch.tokens[rows.clone()], example.inputs);
            assert_eq!(batch.targets[rows], example.targets);
        }
    }
    let all: f32 = dealt
        .at(3)
        .iter()
        .flat_map(|batch| batch.weights.clone())
        .sum();
    assert!((all - 1.0).abs() < 1e-5, "{all}");
}

/// Blocks of 2,048 sequences keep the shares to a sequence.
#[test]
fn files_are_mixed_by_weight() {
    let dir = tempfile::tempdir().unwrap();
    let sources = [
        source(dir.path(), "a.jsonl", &rows(1, 9), READING).unwrap(),
        source(dir.path(), "b.jsonl", &rows(2, 9), READING).unwrap(),
    ];
    let dealt = Dealt::new(&sources, &[3.0, 1.0], DEALING);
    let mut met = [0; 2];
    for step in 0..512 {
        for batch in dealt.at(step) {
            let starts: Vec<usize> = batch.origins.iter().map(|origin| origin.source).collect();
            // Sequences of one file may be neighbours, so count by what they hold.
            for (source, of) in sources.iter().enumerate() {
                let own = starts.iter().filter(|&&one| one == source).count();
                met[source] += own * 1000 / of.examples.len().max(1);
            }
        }
    }
    // 2,048 sequences, a fourth of them of the second file; each file's examples are met evenly.
    let epochs =
        |source: usize, share: f64| 2048.0 * share / sources[source].sequences.len() as f64;
    let ratio = met[0] as f64 / met[1] as f64;
    let wanted = epochs(0, 0.75) / epochs(1, 0.25);
    assert!((ratio / wanted - 1.0).abs() < 0.02, "{ratio} and {wanted}");
}

#[test]
fn what_is_too_long_is_cut_or_dropped_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let long = "row key ".repeat(100);
    let turn = |role: &str, text: &str| json!({"role": role, "content": text});
    let rows = [
        json!({"messages": [turn("user", "key"), turn("assistant", "row")]}),
        json!({"messages": [turn("user", "key"), turn("assistant", &long)]}),
        json!({"messages": [turn("user", &long), turn("assistant", "row")]}),
        json!({"messages": [turn("user", "key"), turn("assistant", "row"), turn("user", &long), turn("assistant", "row")]}),
    ];
    let cut = source(dir.path(), "a.jsonl", &rows, READING).unwrap();
    assert_eq!(
        (cut.counts.rows, cut.counts.cut, cut.counts.dropped),
        (4, 2, 1)
    );
    // Of the last one the first answer is left, and nothing behind it.
    assert_eq!(cut.examples[2].inputs, cut.examples[0].inputs);
    assert_eq!(
        cut.examples.iter().map(|one| one.row).collect::<Vec<_>>(),
        [0, 1, 3]
    );
    let dropping = Reading {
        too_long: TooLong::Drop,
        ..READING
    };
    let dropped = source(dir.path(), "a.jsonl", &rows, dropping).unwrap();
    assert_eq!((dropped.counts.cut, dropped.counts.dropped), (0, 3));
    let error = source(dir.path(), "a.jsonl", &rows[1..3], dropping)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("nothing of it is left") && error.contains("2 rows"),
        "{error}"
    );
}

#[test]
fn pairs_are_neighbours_and_dropped_together() {
    let dir = tempfile::tempdir().unwrap();
    let rows = [
        json!({"prompt": "key", "chosen": "row", "rejected": "row key ".repeat(100)}),
        json!({"prompt": "key", "chosen": "row", "rejected": "line"}),
    ];
    let reading = Reading {
        kind: RowKind::Pairs,
        too_long: TooLong::Drop,
        ..READING
    };
    let source = source(dir.path(), "a.jsonl", &rows, reading).unwrap();
    assert_eq!((source.counts.dropped, source.examples.len()), (1, 2));
    assert_eq!(source.sequences, [[0, 1]]);
    let learnt = |example: &Encoded| {
        let ids: Vec<u32> = example
            .targets
            .iter()
            .copied()
            .filter(|&id| id != IGNORE)
            .collect();
        TOKENIZER.decode(&ids, false)
    };
    assert_eq!(learnt(&source.examples[0]), "row<|im_end|>");
    assert_eq!(learnt(&source.examples[1]), "line<|im_end|>");
}

#[test]
fn tools_need_a_template_that_shows_them() {
    let dir = tempfile::tempdir().unwrap();
    let rows = [
        json!({"tools": [{"name": "add"}], "messages": [{"role": "user", "content": "key"},
        {"role": "assistant", "content": "row"}]}),
    ];
    let error = source(dir.path(), "a.jsonl", &rows, READING)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("tools") && error.contains("data.chat_template") && error.contains("line 1"),
        "{error}"
    );
}

#[test]
fn held_out_rows_are_always_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let sources = [source(dir.path(), "a.jsonl", &rows(1, 50), READING).unwrap()];
    let tokens = |passes: &[Batch]| passes.iter().map(|pass| pass.tokens.len()).sum::<usize>();
    let all = held_out(&sources, None, 200);
    assert_eq!(tokens(&all) as u64, sources[0].counts.tokens);
    assert!(all.len() > 3 && all.iter().all(|pass| pass.tokens.len() < 200 + 96));
    let some = held_out(&sources, Some(300), 200);
    assert!((300..400).contains(&tokens(&some)), "{}", tokens(&some));
    assert_eq!(
        format!("{some:?}"),
        format!("{:?}", held_out(&sources, Some(300), 200))
    );
}
