//! `eval prompts`, `respond`, `judge` and `pairwise`, one after another and by themselves.

mod common;

use std::io::Write;

use common::{exits, fields, golden, ok, rows, write};
use serde_json::{Value, json};

#[test]
fn annotations_give_win_rates_with_errors() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let row = |preference: f64| json!({"generator_1": "base", "generator_2": "new", "preference": preference});
    write(dir, "a.jsonl", &[row(2.0), row(1.0), row(1.5), row(2.0)]);
    let score = ["eval", "pairwise", "--judgements", "a.jsonl"];
    let json = ok(dir, &[&score[..], &["--json"]].concat()).json();
    fields(
        &json,
        &["models", "pairs", "categories", "agreement", "games"],
    );
    let new = &json["models"]["new"];
    assert_eq!(new["win_rate"], 62.5);
    // pandas' sem of 1, 0, 0.5, 1.
    assert!((new["standard_error"].as_f64().unwrap() - 23.935_677_693_908_453).abs() < 1e-9);
    let [low, high] = [0, 1].map(|end| new["ci"][end].as_f64().unwrap());
    let bt = new["bt"].as_f64().unwrap();
    assert!(low <= bt && bt <= high && bt > 0.0);
    assert_eq!(json["models"]["base"]["bt"].as_f64().unwrap(), -bt);
    let array: Vec<Value> = rows(dir, "a.jsonl");
    std::fs::write(dir.join("a.json"), json!(array).to_string()).unwrap();
    let again = ok(
        dir,
        &["eval", "pairwise", "--judgements", "a.json", "--json"],
    );
    assert_eq!(again.json(), json);
    let text = ok(dir, &score).stdout;
    assert!(
        text.starts_with("new ") && text.contains("62.5 %"),
        "{text}"
    );

    let save = [&score[..], &["--save", "run"]].concat();
    ok(dir, &save);
    let saved: Value =
        serde_json::from_slice(&std::fs::read(dir.join("run/pairwise.json")).unwrap()).unwrap();
    assert_eq!(saved["scores"], json);
    assert_eq!(saved["inputs"]["judgements"]["path"], "a.jsonl");
    assert_eq!(rows(dir, "run/pairwise.rows.jsonl").len(), 4);

    write(dir, "b.jsonl", &[row(3.0)]);
    let refused = exits(dir, 1, &["eval", "pairwise", "--judgements", "b.jsonl"]);
    assert!(
        refused.stderr.contains("b.jsonl, line 1"),
        "{}",
        refused.stderr
    );
    exits(dir, 1, &["eval", "pairwise", "--judgements", "none.jsonl"]);
    exits(dir, 2, &[&score[..], &["--rounds", "0"]].concat());
    exits(dir, 2, &["eval", "pairwise"]);
}

#[test]
fn labels_of_most_annotators_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let row = |idx: u64, votes: [u64; 3]| json!({"idx": idx, "cmp_key": "a-1_b.2", "annotator1": votes[0], "annotator2": votes[1], "annotator3": votes[2]});
    write(dir, "p.jsonl", &[row(7, [1, 1, 0]), row(8, [0, 1, 2])]);
    let score = [
        "eval",
        "pairwise",
        "--judgements",
        "p.jsonl",
        "--labels",
        "l.jsonl",
        "--json",
    ];
    let json = ok(dir, &score).json();
    assert_eq!(json["majority"], json!({"0": 0, "1": 1, "2": 0, "none": 1}));
    assert_eq!(json["agreement"]["items"], 2);
    let labels = [
        json!({"idx": 7, "label": 1}),
        json!({"idx": 8, "label": null}),
    ];
    assert_eq!(rows(dir, "l.jsonl"), labels);
    let mut onto = score.to_vec();
    onto[5] = "p.jsonl";
    assert!(
        exits(dir, 2, &onto)
            .stderr
            .contains("is read by the same command")
    );
    assert_eq!(rows(dir, "p.jsonl").len(), 2);
    // As PandaLM's own file has it: a response that is no string.
    let mut odd = row(9, [1, 1, 1]);
    (odd["response1"], odd["response2"]) = (json!(true), json!("yes"));
    write(dir, "p.jsonl", &[odd]);
    assert_eq!(ok(dir, &score).json()["majority"]["1"], 1);
    let silent = json!({"prompt": "p", "model_a": "x", "model_b": "y", "preference": null});
    write(dir, "null.jsonl", &[silent]);
    let refused = exits(dir, 1, &["eval", "pairwise", "--judgements", "null.jsonl"]);
    assert!(
        refused.stderr.contains("none of its 1 rows says"),
        "{}",
        refused.stderr
    );
}

#[test]
fn two_models_answer_and_a_third_judges() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let model = golden("stories260K/stories260K.bin");
    let convert = [
        "convert", "--from", "llama2c", "--to", "hf", "--out", "stories", "--in",
    ];
    ok(dir, &[&convert[..], &[model.to_str().unwrap()]].concat());

    ok(dir, &["eval", "prompts", "--out", "all.jsonl"]);
    let all = rows(dir, "all.jsonl");
    assert!(all.len() >= 220);
    fields(&all[0], &["id", "category", "prompt"]);
    let some = [
        "eval",
        "prompts",
        "--categories",
        "safety,writing",
        "--json",
    ];
    assert_eq!(
        ok(dir, &some).json()["prompts"].as_array().unwrap().len(),
        40
    );
    exits(dir, 2, &["eval", "prompts", "--categories", "cooking"]);

    write(dir, "few.jsonl", &all[..10]);
    let respond = [
        "eval",
        "respond",
        "--model",
        "stories",
        "--prompts",
        "few.jsonl",
        "--max-tokens",
        "6",
        "--keep",
        "one.jsonl",
        "--json",
    ];
    ok(dir, &respond);
    let whole = rows(dir, "one.jsonl");
    assert_eq!(whole.len(), 10);
    // Killed in the middle of a line: that one is answered again, and all come out as before.
    let text = std::fs::read_to_string(dir.join("one.jsonl")).unwrap();
    let third = text.match_indices('\n').nth(2).unwrap().0;
    std::fs::write(dir.join("one.jsonl"), &text[..third + 20]).unwrap();
    let again = ok(dir, &respond);
    assert!(
        again.stderr.contains("3 of 10 are answered"),
        "{}",
        again.stderr
    );
    assert_eq!(rows(dir, "one.jsonl"), whole);
    // What was answered under other settings, or to other prompts, is not gone on with.
    let mut other = respond.to_vec();
    other[7] = "5";
    assert!(exits(dir, 1, &other).stderr.contains("one.jsonl, line 1"));
    write(dir, "few.jsonl", &all[1..11]);
    assert!(
        exits(dir, 1, &respond)
            .stderr
            .contains("name another file by --keep")
    );
    write(dir, "few.jsonl", &[all[0].clone(), all[0].clone()]);
    assert!(exits(dir, 1, &respond).stderr.contains("few.jsonl, line 2"));

    let better: Vec<Value> = whole
        .iter()
        .map(|row| json!({"prompt": row["prompt"], "response": "A response."}))
        .collect();
    write(dir, "two.jsonl", &better);
    let judge = [
        "eval",
        "judge",
        "--responses",
        "one.jsonl",
        "--responses",
        "two.jsonl",
        "--model",
        "stories",
        "--out",
        "j.jsonl",
        "--json",
    ];
    let judged = ok(dir, &judge).json();
    assert_eq!(judged["n"], 10);
    let judgements = rows(dir, "j.jsonl");
    assert_eq!(judgements.len(), 10);
    assert_eq!(
        (&judgements[0]["model_a"], &judgements[0]["model_b"]),
        (&json!("one"), &json!("two"))
    );
    assert_eq!(judgements[0]["category"], all[0]["category"]);
    // Names are those of the files, as `grade` has them.
    std::fs::copy(dir.join("one.jsonl"), dir.join("v1.2.jsonl")).unwrap();
    std::fs::copy(dir.join("two.jsonl"), dir.join("v1.3.jsonl")).unwrap();
    let mut dotted = judge.to_vec();
    (dotted[3], dotted[5], dotted[9]) = ("v1.2.jsonl", "v1.3.jsonl", "d.jsonl");
    ok(dir, &dotted);
    assert_eq!(rows(dir, "d.jsonl")[0]["model_b"], "v1.3");
    // Nothing is asked again, and a judgement cut off is.
    let text = std::fs::read_to_string(dir.join("j.jsonl")).unwrap();
    let mut file = std::fs::File::create(dir.join("j.jsonl")).unwrap();
    file.write_all(&text.as_bytes()[..text.len() - 9]).unwrap();
    ok(dir, &judge);
    assert_eq!(rows(dir, "j.jsonl"), judgements);
    exits(dir, 2, &judge[..4]);
    exits(dir, 2, &[&judge[..], &["--names", "x,x"]].concat());
}
