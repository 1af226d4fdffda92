//! Verdicts beside the reference's: the cases of every kind, draws, and a model's published verdicts.

use std::collections::BTreeMap;
use std::path::Path;

use russet_eval::ifeval::{Instruction, KINDS, Prompts, Verdict, check, intervals, judge, score};
use russet_eval::{Answers, Error, read_answers};
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

#[derive(Deserialize)]
struct Published {
    prompt: String,
    response: String,
    ids: Vec<String>,
    strict: Vec<bool>,
    loose: Vec<bool>,
}

/// The reference's verdicts on GPT-4 as its authors published them (Apache-2.0), a part: 2023's nltk, an unseeded langdetect.
#[test]
fn published_verdicts_are_ours() {
    let prompts = Prompts::embedded();
    let rows: Vec<Published> = lines("tests/ifeval_gpt4.jsonl.zst");
    assert_eq!(rows.len(), 48);
    let mut drawn = 0;
    for row in rows {
        let mut all = prompts.all().iter();
        let prompt = all.find(|prompt| prompt.prompt == row.prompt).unwrap();
        let ids: Vec<&str> = prompt.instructions.iter().map(Instruction::id).collect();
        assert_eq!(ids, row.ids);
        let verdict = judge(prompt, &row.response);
        let ours = verdict
            .follow_list_strict
            .into_iter()
            .zip(verdict.follow_list_loose);
        let theirs = row.strict.into_iter().zip(row.loose);
        for ((id, ours), theirs) in ids.into_iter().zip(ours).zip(theirs) {
            // Followed as it is, and by no form of it: then, the reference drew a letter at random where `#` was asked for,
            // another one for each verdict. It does so no more.
            if theirs == (true, false) {
                assert_eq!((id, prompt.key), ("keywords:letter_frequency", 1122));
                drawn += 1;
                continue;
            }
            assert_eq!(ours, theirs, "{id}: {}", row.prompt);
        }
    }
    assert_eq!(drawn, 1);
}

#[test]
fn the_benchmark_is_whole() {
    let prompts = Prompts::embedded();
    let all = prompts.all();
    assert_eq!(all.len(), 541);
    let instructions = all.iter().flat_map(|prompt| &prompt.instructions);
    let mut ids: Vec<&str> = instructions.map(Instruction::id).collect();
    assert_eq!(ids.len(), 834);
    ids.sort_unstable();
    ids.dedup();
    let mut kinds = KINDS;
    kinds.sort_unstable();
    assert_eq!(ids, kinds);
}

#[test]
fn one_response_is_checked_by_one_instruction() {
    let followed = |id: &str, arguments: Value, response: &str| {
        check(id, arguments.as_object().unwrap(), response)
    };
    assert!(followed("punctuation:no_comma", json!({}), "none").unwrap());
    assert!(
        !followed("punctuation:no_comma", json!({}), " \n").unwrap(),
        "empty follows nothing"
    );
    // As tables have it: every argument of any kind, most of them null; whole numbers as fractions.
    let wide = json!({"num_words": 2.0, "relation": "less than", "letter": null, "keywords": null});
    assert!(followed("length_constraints:number_words", wide, "one").unwrap());
    // Keywords are patterns, as in the reference.
    let dot = json!({"keywords": ["c.t"]});
    assert!(followed("keywords:existence", dot, "CUT").unwrap());

    let refused = |id: &str, arguments: Value, words: &[&str]| {
        let error = followed(id, arguments, "a").unwrap_err().to_string();
        for word in [&[id], words].concat() {
            assert!(error.contains(word), "{error:?} lacks {word:?}");
        }
    };
    refused(
        "keywords:none",
        json!({}),
        &["no such kind", "keywords:existence"],
    );
    refused("keywords:existence", json!({}), &["`keywords`", "missing"]);
    refused(
        "keywords:existence",
        json!({"keywords": []}),
        &["`keywords`", "list"],
    );
    refused(
        "keywords:existence",
        json!({"keywords": [1]}),
        &["`keywords`", "strings"],
    );
    refused(
        "keywords:existence",
        json!({"keywords": ["("]}),
        &["`keywords`", "regular expression", "escape"],
    );
    refused(
        "keywords:frequency",
        json!({"keyword": "", "frequency": 1, "relation": "at least"}),
        &["`keyword`"],
    );
    refused(
        "length_constraints:number_words",
        json!({"num_words": 3, "relation": "at most"}),
        &["`relation`", "less than"],
    );
    refused(
        "length_constraints:number_words",
        json!({"num_words": -3, "relation": "at least"}),
        &["`num_words`", "0 or more"],
    );
    refused(
        "punctuation:no_comma",
        json!({"commas": 1}),
        &["`commas`", "takes none"],
    );
    refused(
        "language:response_language",
        json!({"language": "xx"}),
        &["`language`", "zh-cn"],
    );
    let letter = json!({"letter": "ab", "let_frequency": 1, "let_relation": "at least"});
    refused(
        "keywords:letter_frequency",
        letter,
        &["`letter`", "one character"],
    );
    let nth = json!({"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "a"});
    refused(
        "length_constraints:nth_paragraph_first_word",
        nth,
        &["`nth_paragraph`", "1 to"],
    );
    // What hangs in Python is refused here.
    let endless = json!({"keywords": ["(a|aa)*(a|aa)*(a|aa)*c"]});
    let error = followed("keywords:existence", endless, &"a".repeat(200)).unwrap_err();
    assert!(error.to_string().contains("without end"), "{error}");
}

/// What models that have come off their rails write.
fn derailed() -> Vec<String> {
    let mut all: Vec<String> = ["\n", " ", "[", "<", "*", ".", "\"", "-", ". ", "\n\n* "]
        .iter()
        .map(|of| of.repeat(20_000 / of.len()))
        .collect();
    all.push(format!("It ends.{}x", " ".repeat(20_000)));
    all.push(format!("It ends.{}x", "\n".repeat(20_000)));
    all
}

#[test]
fn every_prompt_judges_a_derailed_response() {
    // Of each kind the first prompt: all 541 would take minutes in a build for tests.
    let prompts = Prompts::embedded();
    let mut kinds: BTreeMap<&str, &russet_eval::ifeval::Prompt> = BTreeMap::new();
    for prompt in prompts.all() {
        for instruction in &prompt.instructions {
            kinds.entry(instruction.id()).or_insert(prompt);
        }
    }
    assert_eq!(kinds.len(), 25);
    for response in derailed() {
        for prompt in kinds.values() {
            let verdict = judge(prompt, &response);
            let begins: String = response.chars().take(9).collect();
            assert_eq!(verdict.endless, [""; 0], "{begins:?}, {}", prompt.key);
        }
    }
}

#[test]
fn a_keyword_that_backtracks_without_end_ends_no_scoring() {
    let dir = tempfile::tempdir().unwrap();
    let rows = r#"{"key": 7, "prompt": "a", "instruction_id_list": ["punctuation:no_comma", "keywords:existence"], "kwargs": [{}, {"keywords": ["(a|aa)*(a|aa)*(a|aa)*c"]}]}
{"key": 8, "prompt": "b", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
"#;
    let prompts = Prompts::read(&write(dir.path(), "prompts.jsonl", rows)).unwrap();
    let response = "a".repeat(200);
    let responses = [Some(&response[..]), Some("b")];
    let (scores, verdicts) = score(&prompts, responses.into_iter()).unwrap();
    assert_eq!((scores.prompt_strict, scores.n), (0.5, 2));
    assert_eq!(verdicts[0].follow_list_strict, [true, false]);
    assert_eq!(verdicts[0].endless, ["keywords:existence"]);
    let told = serde_json::to_value(&verdicts).unwrap();
    assert_eq!(told[0]["endless"], json!(["keywords:existence"]));
    assert!(told[1].get("endless").is_none(), "the benchmark's own keys");
    // Without its first line it can be told.
    let two = format!("{response}\nac");
    let verdict = judge(&prompts.all()[0], &two);
    assert_eq!(verdict.follow_list_strict, [true, false]);
    assert_eq!(verdict.follow_list_loose, [true, true]);
    assert!(score(&prompts, [Some("a")].into_iter()).is_err());
}

/// A file with these bytes beside others.
fn write(dir: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

const PROMPTS: &str = r#"{"key": 3, "prompt": "a", "instruction_id_list": ["punctuation:no_comma", "startend:quotation"], "kwargs": [{}, {}]}
{"key": 5, "prompt": "b", "instruction_id_list": ["length_constraints:number_words"], "kwargs": [{"num_words": 2, "relation": "at least"}]}
{"key": 8, "prompt": "c", "instruction_id_list": ["detectable_format:title"], "kwargs": [{}]}
"#;

/// The responses of a file to the prompts.
fn answers(path: &Path, prompts: &Prompts) -> Result<Answers, Error> {
    let names: Vec<String> = prompts.all().iter().map(|p| p.prompt.clone()).collect();
    read_answers(path, &names, &["prompt"], &["response"], false)
}

#[test]
fn scores_are_shares_of_what_was_answered() {
    let dir = tempfile::tempdir().unwrap();
    let prompts = Prompts::read(&write(dir.path(), "prompts.jsonl", PROMPTS)).unwrap();
    // In any order, with keys of somebody's own and empty lines; the third prompt has none.
    let rows = "{\"prompt\": \"b\", \"response\": \"*one*\\ntwo\", \"model\": \"x\"}\n\n{\"response\": \"No quotes\", \"prompt\": \"a\"}\n";
    let path = write(dir.path(), "responses.jsonl", rows);
    let responses = answers(&path, &prompts).unwrap();
    assert!(responses.empty.is_empty());
    let (scores, verdicts) = score(&prompts, responses.firsts()).unwrap();
    let expected = json!({
        "prompt_strict": 0.5, "instruction_strict": 2.0 / 3.0, "prompt_loose": 0.5, "instruction_loose": 2.0 / 3.0, "n": 2
    });
    assert_eq!(serde_json::to_value(scores).unwrap(), expected);
    let first = json!({
        "key": 3, "follow_all_strict": false, "follow_list_strict": [true, false],
        "follow_all_loose": false, "follow_list_loose": [true, false]
    });
    assert_eq!(serde_json::to_value(&verdicts[0]).unwrap(), first);
    assert_eq!(verdicts[1].key, 5);
    // Packed, the same.
    let packed = dir.path().join("responses.jsonl.zst");
    std::fs::write(&packed, zstd::encode_all(rows.as_bytes(), 3).unwrap()).unwrap();
    let again = answers(&packed, &prompts).unwrap();
    assert_eq!(score(&prompts, again.firsts()).unwrap(), (scores, verdicts));
}

#[test]
fn intervals_are_of_resampled_prompts() {
    // A hundred prompts of two instructions: half of them follow both, the others one.
    let verdict = |key: u64| {
        let first = key.is_multiple_of(2);
        Verdict {
            key,
            follow_all_strict: first,
            follow_list_strict: vec![true, first],
            follow_all_loose: true,
            follow_list_loose: vec![true, true],
            endless: Vec::new(),
        }
    };
    let verdicts: Vec<Verdict> = (0..100).map(verdict).collect();
    let all: BTreeMap<_, _> = intervals(&verdicts).unwrap().into_iter().collect();
    // 1.96 standard errors of a share of a half among 100 are 0.098; of instructions half as much, since they come in prompts.
    let [low, high] = all["prompt_strict"];
    assert!(
        (low - 0.402).abs() < 0.025 && (high - 0.598).abs() < 0.025,
        "{low} {high}"
    );
    let [low, high] = all["instruction_strict"];
    assert!(
        (low - 0.701).abs() < 0.015 && (high - 0.799).abs() < 0.015,
        "{low} {high}"
    );
    assert_eq!(all["prompt_loose"], [1.0, 1.0]);
    assert_eq!(intervals(&verdicts[..1]), None);
}

#[test]
fn rows_are_refused_with_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let prompts = Prompts::read(&write(dir.path(), "prompts.jsonl", PROMPTS)).unwrap();
    let says = |error: Error, words: &[&str]| {
        let error = error.to_string();
        for word in words {
            assert!(error.contains(word), "{error:?} lacks {word:?}");
        }
    };
    let good = "{\"prompt\": \"a\", \"response\": \"x\"}\n";
    for (rows, words) in [
        (
            format!("{good}{{\"prompt\": \"b\"}}\n"),
            &["r.jsonl, line 2", "`response`"][..],
        ),
        (format!("{good}\n[]\n"), &["line 3", "JSON object"]),
        (
            format!("{good}{{\"prompt\": \"b\", \"response\": null}}"),
            &["line 2", "no answer"],
        ),
        (
            format!("{good}{good}"),
            &["line 2", "line 1 already", "keep one"],
        ),
        (
            good.replace("\"a\"", "\"a \""),
            &["line 1", "none of the 3", "\"a \"", "to the last space"],
        ),
        (String::new(), &["r.jsonl", "no responses"]),
    ] {
        says(
            answers(&write(dir.path(), "r.jsonl", &rows), &prompts).unwrap_err(),
            words,
        );
    }
    says(
        answers(&write(dir.path(), "r.csv", good), &prompts).unwrap_err(),
        &["r.csv", ".jsonl"],
    );
    let blank = "{\"prompt\": \"a\", \"response\": \"\\u00a0\\n\"}\n";
    let blank = answers(&write(dir.path(), "r.jsonl", blank), &prompts).unwrap();
    assert_eq!(blank.empty, [1]);
    assert_eq!(
        score(&prompts, blank.firsts()).unwrap().0.instruction_loose,
        0.0
    );

    let row = PROMPTS.lines().next().unwrap();
    for (rows, words) in [
        (format!("{row}\n{row}\n"), &["p.jsonl, line 2", "key 3"][..]),
        (
            format!("{row}\n{}", row.replace('3', "4")),
            &["line 2", "prompt is that of an earlier row"],
        ),
        (
            row.replace("[{}, {}]", "[{}]"),
            &["2 instructions", "1 `kwargs`"],
        ),
        (
            row.replace("no_comma", "no_commas"),
            &["line 1", "no such kind"],
        ),
        (row.replace("kwargs", "args"), &["line 1", "`kwargs`"]),
        (
            r#"{"key": 1, "prompt": "a", "instruction_id_list": [], "kwargs": []}"#.to_owned(),
            &["line 1", "no instructions"],
        ),
    ] {
        says(
            Prompts::read(&write(dir.path(), "p.jsonl", &rows)).unwrap_err(),
            words,
        );
    }
}
