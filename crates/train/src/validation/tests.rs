use super::*;
use crate::common;
use crate::run::tests::context;
use russet_model::Config;
use russet_tensor::Segments;

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

const BEGIN: u32 = 1;

/// Each piece of each document alone through the decoder: nats of the texts, and of their ends.
fn naively(ctx: &mut Ctx, decoder: &Decoder, shard: &TokenShard, length: usize) -> (f64, f64) {
    let (mut text, mut end) = (0.0, 0.0);
    for document in 0..shard.documents() {
        let targets: Vec<u32> = shard.document(document).map(|at| shard.get(at)).collect();
        let inputs = [&[BEGIN], &targets[..targets.len() - 1]].concat();
        for (inputs, targets) in inputs.chunks(length).zip(targets.chunks(length)) {
            let hidden = decoder.forward(ctx, inputs, &Segments::packed(&[inputs.len()]), None);
            let losses = decoder.token_losses(ctx, &hidden, targets);
            text += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
        }
        // The last loss of each document is its end's.
        let last = (targets.len() - 1) / length * length;
        let inputs = &inputs[last..];
        let hidden = decoder.forward(ctx, inputs, &Segments::packed(&[inputs.len()]), None);
        let losses = decoder.token_losses(ctx, &hidden, &targets[last..]);
        end += f64::from(losses[losses.len() - 1]);
    }
    (text - end, end)
}

fn validation(dir: &std::path::Path, lengths: &[u32], budget: Option<u64>) -> Result<Validation> {
    Validation::new(shard(dir, lengths), BEGIN, budget, 16, 24)
}

#[test]
fn measures_are_those_of_each_document_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (mut ctx, decoder) = (context(2), decoder());
    let validation = validation(dir.path(), &[5, 40, 1, 0, 16, 15, 3], None).unwrap();
    let found = validation
        .measure(&mut ctx, &decoder, &mut |_| true)
        .unwrap()
        .unwrap();
    let (text, end) = naively(&mut ctx, &decoder, &validation.shard, 16);
    let nats = (text + end) / 87.0;
    let bits = text / std::f64::consts::LN_2 / 80.0; // a byte an id
    assert!(
        (found.nats_per_token - nats).abs() < 1e-6,
        "{found:?}, not {nats}"
    );
    assert!(
        (found.bits_per_byte - bits).abs() < 1e-6,
        "{found:?}, not {bits}"
    );
    assert_eq!((found.tokens, found.bytes, found.documents), (87, 80, 7));
}

#[test]
fn a_measurement_is_dropped_before_any_pass() {
    let dir = tempfile::tempdir().unwrap();
    let (mut ctx, decoder) = (context(1), decoder());
    let validation = validation(dir.path(), &[9; 40], None).unwrap();
    let mut shares = Vec::new();
    let stopped = validation.measure(&mut ctx, &decoder, &mut |share| {
        shares.push(share);
        shares.len() < 3
    });
    assert_eq!(stopped.unwrap(), None);
    // Two documents of ten tokens are a pass of at most 24.
    assert_eq!(shares, [0.0, 0.05, 0.1]);
}

#[test]
fn a_budget_takes_whole_documents_from_all_over() {
    let dir = tempfile::tempdir().unwrap();
    let take = |budget| validation(dir.path(), &[9; 40], budget).unwrap().documents;
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
    let problem = validation(dir.path(), &[0, 0], None)
        .unwrap_err()
        .to_string();
    assert!(problem.contains("nothing to validate on"), "{problem}");
}
