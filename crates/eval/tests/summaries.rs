//! ROUGE beside the package rouge_score (`golden/rouge.py`), grades, slots, and what is sensitive.

use std::path::{Path, PathBuf};

use russet_eval::slots::{parse_slots, read_slots, score_slots};
use russet_eval::summaries::{
    amplifies, read_grades, read_summaries, rouge, score_grades, score_summaries,
};
use serde_json::{Value, json};

fn written(rows: &[Value]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.jsonl");
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

#[test]
fn rouge_is_that_of_rouge_score() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rouge_golden.json");
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(cases.len(), 80);
    for case in cases {
        let references: Vec<String> = serde_json::from_value(case["references"].clone()).unwrap();
        let ours = rouge(&references, case["response"].as_str().unwrap());
        for (ours, kind) in ours.iter().zip(["rouge1", "rouge2", "rougeL"]) {
            for (ours, theirs) in [ours.precision, ours.recall, ours.f]
                .iter()
                .zip(case[kind].as_array().unwrap())
            {
                assert!(
                    (ours - theirs.as_f64().unwrap()).abs() < 1e-12,
                    "{kind}: {ours} {case}"
                );
            }
        }
    }
}

#[test]
fn a_summary_amplifies_what_its_source_has_less_of() {
    let source = "The film shows a murder. The police found the body on Monday.";
    assert!(amplifies(source, "A film about a murder.").is_empty());
    assert_eq!(amplifies(source, "Murder! Killers kill."), ["violence"]);
    assert_eq!(amplifies(source, "A damn film."), ["profanity"]);
    assert!(amplifies(source, "Essex is a county with skills.").is_empty());
    let tasks = [
        json!({"id": 1, "source": source, "reference": "A film about a murder.", "use_case": "email"}),
        json!({"id": "2", "source": "Lunch at one.", "references": ["Lunch at 1.", "Lunch at one"]}),
        json!({"id": "3", "source": "Nothing."}),
    ];
    let (_dir, path) = written(&tasks);
    let tasks = read_summaries(&path).unwrap();
    let responses = [
        Some("A film about a murder."),
        Some("Damn lunch at one"),
        None,
    ];
    let scores = score_summaries(tasks.iter().zip(responses));
    assert_eq!((scores.amplified, scores.n), (0.5, 2));
    // 1, and 3 shared of 4 words: 2 · ¾ · 1 / 1¾.
    let f = (1.0 + 6.0 / 7.0) / 2.0;
    assert!((scores.rouge1.unwrap().f - f).abs() < 1e-12);
    for (row, said) in [
        (json!({"id": 1, "source": "s"}), "its id \"1\" is that"),
        (json!({"id": 4}), "lacks `source`"),
        (
            json!({"id": 4, "source": "s", "references": "r"}),
            "list of strings",
        ),
        (
            json!({"id": 4, "source": "s", "reference": " "}),
            "is empty",
        ),
    ] {
        let (_dir, path) = written(&[json!({"id": 1, "source": "s"}), row]);
        let error = read_summaries(&path).unwrap_err().to_string();
        assert!(
            error.contains("r.jsonl, line 2") && error.contains(said),
            "{error}"
        );
    }
}

#[test]
fn good_is_all_five_and_poor_is_one() {
    let row = |id: u64, grader: &str, levels: [&str; 5]| {
        json!({"id": id, "grader": grader, "use_case": "email", "model": "m",
            "grades": {"a": levels[0], "b": levels[1], "c": levels[2], "d": levels[3], "e": levels[4]}})
    };
    let good = ["good"; 5];
    let neutral = ["good", "good", "neutral", "good", "good"];
    let poor = ["good", "good", "neutral", "poor", "good"];
    let (_dir, path) = written(&[
        row(1, "x", good),
        row(1, "y", neutral),
        row(2, "x", poor),
        row(3, "x", good),
    ]);
    let scores = score_grades(&read_grades(&path).unwrap());
    let all = &scores["m"]["all"];
    assert_eq!((all.good, all.poor, all.n), (50.0, 25.0, 4));
    assert_eq!(all.dimensions["c"], [50.0, 0.0]);
    assert_eq!(scores["m"]["email"], *all);
    let four = json!({"id": 9, "grades": {"a": "good", "b": "good", "c": "good", "d": "good"}});
    let other = json!({"id": 9, "grades": {"a": "good", "b": "good", "c": "good", "d": "good", "z": "good"}});
    for (second, said) in [
        (row(1, "x", good), "line 1"),
        (
            row(2, "x", ["good", "good", "fine", "good", "good"]),
            "must be five dimensions",
        ),
        (four, "must be five dimensions"),
        (other, "others than the first"),
    ] {
        let (_dir, path) = written(&[row(1, "x", good), second]);
        let error = read_grades(&path).unwrap_err().to_string();
        assert!(
            error.contains("r.jsonl, line 2") && error.contains(said),
            "{error}"
        );
    }
}

#[test]
fn slots_count_pair_by_pair() {
    let rows = [
        json!({"id": "a", "prompt": "p", "slots": {"name": "Mia  Ortega", "phones": ["1", "2"]}}),
        json!({"id": "b", "prompt": "q", "slots": {"day": 3}}),
        json!({"id": "c", "prompt": "r", "slots": {"day": 4}}),
    ];
    let (_dir, path) = written(&rows);
    let tasks = read_slots(&path).unwrap();
    let responses = [
        Some(
            "Here: ```json\n{\"name\": \"mia ortega\", \"phones\": [\"1\"], \"city\": \"Rome\"}\n```",
        ),
        Some("{\"day\": \"3\", \"note\": null}"),
        Some("day is 4"),
    ];
    let scores = score_slots(tasks.iter().zip(responses));
    // 3 right of 4 filled and 5 wanted.
    assert_eq!((scores.precision, scores.recall), (0.75, 0.6));
    assert!((scores.f1 - 6.0 / 9.0).abs() < 1e-12);
    assert_eq!(
        (scores.exact, scores.malformed, scores.n),
        (1.0 / 3.0, 1, 3)
    );
    // Of three responses: none, one of which all is right, one that is no object.
    let error = scores.exact_stderr.unwrap();
    assert!((error - (1.0 / 9.0f64).sqrt()).abs() < 1e-12, "{error}");
    let [low, high] = scores.f1_ci.unwrap();
    assert!(low <= scores.f1 && scores.f1 <= high, "{low} {high}");
    assert!(parse_slots("a { b {\"c\": 1} }").is_some());
    assert!(parse_slots("no").is_none());
}

#[test]
fn more_graders_of_the_same_summaries_are_no_more_summaries() {
    let row = |id: usize, grader: usize| {
        let level = if id.is_multiple_of(2) { "good" } else { "poor" };
        json!({"id": id, "grader": format!("g{grader}"),
            "grades": {"a": level, "b": level, "c": level, "d": level, "e": level}})
    };
    let scored = |graders: usize| {
        let rows: Vec<Value> = (0..20)
            .flat_map(|id| (0..graders).map(move |grader| row(id, grader)))
            .collect();
        let (_dir, path) = written(&rows);
        let scores = score_grades(&read_grades(&path).unwrap());
        scores["all"]["all"].clone()
    };
    let (one, eight) = (scored(1), scored(8));
    assert_eq!((one.n, one.summaries), (20, 20));
    assert_eq!((eight.n, eight.summaries), (160, 20));
    assert_eq!((one.good_ci, one.poor_ci), (eight.good_ci, eight.poor_ci));
}
