use super::*;
use crate::common;
use crate::run::tests::context;
use russet_model::Config;

fn decoder() -> Decoder {
    let config = Config {
        vocab: 300,
        ..crate::run::tests::tiny().config().clone()
    };
    Decoder::random(&config, 5)
}

fn shard(dir: &std::path::Path, lengths: &[u32]) -> TokenShard {
    let documents: Vec<Vec<u32>> = lengths
        .iter()
        .map(|&length| (0..length).map(|i| 4 + (i * 7 + length) % 290).collect())
        .collect();
    common::shard(
        dir,
        &documents.iter().map(|ids| &ids[..]).collect::<Vec<_>>(),
    )
}

/// Each piece of each document alone through the decoder.
fn naively(
    ctx: &mut Ctx,
    decoder: &Decoder,
    shard: &TokenShard,
    documents: &[usize],
    length: usize,
) -> f64 {
    let mut nats = 0.0;
    for &document in documents {
        let tokens: Vec<u32> = shard.document(document).map(|at| shard.get(at)).collect();
        for start in (0..tokens.len() - 1).step_by(length) {
            let end = (start + length).min(tokens.len() - 1);
            let hidden = decoder.forward(
                ctx,
                &tokens[start..end],
                &Segments::packed(&[end - start]),
                None,
            );
            let losses = decoder.token_losses(ctx, &hidden, &tokens[start + 1..end + 1]);
            nats += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
        }
    }
    nats
}

#[test]
fn measures_are_those_of_each_document_alone() {
    let dir = tempfile::tempdir().unwrap();
    let lengths = [5, 40, 1, 16, 17, 3];
    let (mut ctx, decoder) = (context(2), decoder());
    let validation = Validation::new(shard(dir.path(), &lengths), None, 16, 24).unwrap();
    let found = validation.measure(&mut ctx, &decoder).unwrap();
    let nats = naively(
        &mut ctx,
        &decoder,
        &validation.shard,
        &[0, 1, 2, 3, 4, 5],
        16,
    );
    assert!(
        (found.nats_per_token - nats / 82.0).abs() < 1e-6,
        "{found:?}, not {nats}"
    );
    assert!(
        (found.bits_per_byte - nats / std::f64::consts::LN_2 / 82.0).abs() < 1e-6,
        "a byte an id"
    );
    assert_eq!((found.tokens, found.bytes, found.documents), (82, 82, 6));
}

#[test]
fn a_budget_takes_whole_documents_from_all_over() {
    let dir = tempfile::tempdir().unwrap();
    let take = |budget| {
        Validation::new(shard(dir.path(), &[9; 40]), budget, 16, 24)
            .unwrap()
            .documents
    };
    let some = take(Some(95));
    assert_eq!(some.len(), 10, "documents of ten tokens until there are 95");
    assert_eq!(some, take(Some(95)), "the same ones each time");
    assert!(some[0] < 10 && some[9] > 29, "{some:?}");
    assert_eq!(take(Some(1)).len(), 1);
    assert_eq!(take(None).len(), 40);
}

#[test]
fn nothing_to_measure_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let problem = Validation::new(shard(dir.path(), &[0, 0]), None, 16, 24)
        .unwrap_err()
        .to_string();
    assert!(problem.contains("nothing to validate on"), "{problem}");
}
