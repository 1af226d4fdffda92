//! Verdicts beside the reference's: the cases of every kind, draws, and a model's published verdicts.

use std::collections::BTreeMap;
use std::path::Path;

use russet_eval::Error;
use russet_eval::ifeval::{Instruction, KINDS, Prompts, Responses, check, judge, score};
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
struct Case {
    id: Option<String>,
    kwargs: Map<String, Value>,
    response: String,
    strict: bool,
    loose: bool,
}

/// A file of this crate, unpacked.
fn lines<T: for<'a> Deserialize<'a>>(name: &str) -> Vec<T> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let bytes = std::fs::read(&path).unwrap();
    let bytes = match name.ends_with(".zst") {
        true => zstd::decode_all(&bytes[..]).unwrap(),
        false => bytes,
    };
    let text = String::from_utf8(bytes).unwrap();
    text.split_terminator('\n')
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Compares strict and loose verdicts; every difference is listed.
fn compare(cases: impl IntoIterator<Item = (String, Case)>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    let mut different = Vec::new();
    for (id, case) in cases {
        let instruction = Instruction::new(&id, &case.kwargs).unwrap();
        let ours = (
            instruction.followed(&case.response).unwrap(),
            instruction.followed_loosely(&case.response).unwrap(),
        );
        if ours != (case.strict, case.loose) {
            different.push(format!(
                "{id} {:?} on {:?}: {ours:?}",
                case.kwargs, case.response
            ));
        }
        *counts.entry(id).or_default() += 1;
    }
    assert!(
        different.is_empty(),
        "{} of {} differ from the reference:\n{}",
        different.len(),
        counts.values().sum::<usize>(),
        different.join("\n")
    );
    counts
}

#[test]
fn cases_of_every_kind_are_judged_as_the_reference_judges() {
    let cases = KINDS.iter().flat_map(|id| {
        let cases: Vec<Case> = lines(&format!("cases/{}.jsonl", id.replace(':', ".")));
        cases.into_iter().map(|case| (id.to_string(), case))
    });
    let counts = compare(cases);
    assert_eq!(counts.len(), 25);
    assert!(counts.values().all(|count| *count >= 40), "{counts:?}");
}

#[test]
fn draws_are_judged_as_the_reference_judges() {
    let cases: Vec<Case> = lines("tests/ifeval_draws.jsonl.zst");
    let counts = compare(
        cases
            .into_iter()
            .map(|mut case| (case.id.take().unwrap(), case)),
    );
    assert_eq!(counts.values().sum::<usize>(), 60 * 25);
}
