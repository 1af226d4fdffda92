//! `eval ifeval`, from a file of responses and from a model.

mod common;

use common::{exits, fields, golden, ok, rows, write};
use serde_json::json;

const SCORES: [&str; 5] = [
    "prompt_strict",
    "instruction_strict",
    "prompt_loose",
    "instruction_loose",
    "n",
];

/// Two of IFEval's prompts, 1001 and 1005.
const JAPAN: &str = "I am planning a trip to Japan, and I would like thee to write an itinerary for my journey in a Shakespearean style. You are not allowed to use any commas in your response.";
const RESUME: &str = "Write a resume for a fresh high school graduate who is seeking their first job. Make sure to include at least 12 placeholder represented by square brackets, such as [address], [name].";

#[test]
fn a_file_of_responses_gives_scores_and_verdicts() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let responses = [
        json!({"prompt": RESUME, "response": "", "model": "none"}),
        json!({"prompt": JAPAN, "response": "Hark, thee:\nGo forth to Kyoto."}),
    ];
    write(dir, "responses.jsonl", &responses);
    let score = ["eval", "ifeval", "--responses", "responses.jsonl"];
    let ran = ok(
        dir,
        &[&score[..], &["--verdicts", "v.jsonl", "--json"]].concat(),
    );
    let scores = ran.json();
    fields(&scores, &SCORES);
    let expected = json!({
        "prompt_strict": 0.0, "instruction_strict": 0.0, "prompt_loose": 0.5, "instruction_loose": 0.5, "n": 2
    });
    assert_eq!(scores, expected);
    for said in [
        "539 of 541 have no response",
        "1 responses are empty",
        "lines 1",
    ] {
        assert!(
            ran.stderr.contains(said),
            "{said:?} is not in {}",
            ran.stderr
        );
    }
    let verdict = |key: u64, loose: bool| {
        json!({"key": key, "follow_all_strict": false, "follow_list_strict": [false],
            "follow_all_loose": loose, "follow_list_loose": [loose]})
    };
    assert_eq!(
        rows(dir, "v.jsonl"),
        [verdict(1001, true), verdict(1005, false)]
    );
    let text = ok(dir, &score).stdout;
    assert!(
        text.contains("loose  50.0 %") && text.contains("2 responses"),
        "{text}"
    );

    write(
        dir,
        "other.jsonl",
        &[json!({"prompt": "Write.", "response": "a"})],
    );
    let refused = exits(dir, 1, &["eval", "ifeval", "--responses", "other.jsonl"]);
    assert!(
        refused.stderr.contains("other.jsonl, line 1"),
        "{}",
        refused.stderr
    );
    exits(dir, 1, &["eval", "ifeval", "--responses", "nowhere.jsonl"]);
    exits(dir, 2, &["eval", "ifeval"]);
    exits(dir, 2, &[&score[..], &["--model", "m"]].concat());
    exits(dir, 2, &[&score[..], &["--keep", "k.jsonl"]].concat());
    exits(dir, 2, &[&score[..], &["--max-tokens", "3"]].concat());
}

#[test]
fn a_match_without_end_is_said_and_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let prompt = |key: u64, keyword: &str| {
        json!({"key": key, "prompt": keyword, "instruction_id_list": ["keywords:existence"],
            "kwargs": [{"keywords": [keyword]}]})
    };
    let endless = "(a|aa)*(a|aa)*(a|aa)*c";
    write(dir, "p.jsonl", &[prompt(3, endless), prompt(4, "a")]);
    let response = |to: &str| json!({"prompt": to, "response": "a".repeat(200)});
    write(dir, "r.jsonl", &[response(endless), response("a")]);
    let score =
        "eval ifeval --prompts p.jsonl --responses r.jsonl --verdicts v.jsonl --save run --json";
    let ran = ok(dir, &score.split(' ').collect::<Vec<_>>());
    assert_eq!(ran.json()["prompt_strict"], 0.5);
    let said = "prompt 3: matching keywords:existence backtracks without end";
    assert!(ran.stderr.contains(said), "{}", ran.stderr);
    assert_eq!(
        rows(dir, "v.jsonl")[0]["endless"],
        json!(["keywords:existence"])
    );
    let note = &rows(dir, "run/ifeval.rows.jsonl")[0]["note"];
    assert!(note.as_str().unwrap().contains("without end"), "{note}");
}

#[test]
fn a_model_answers_and_its_responses_stay() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let model = golden("stories260K/stories260K.bin");
    let convert = [
        "convert", "--from", "llama2c", "--to", "hf", "--out", "stories", "--in",
    ];
    ok(dir, &[&convert[..], &[model.to_str().unwrap()]].concat());
    let prompt = |key: u64, text: &str| {
        json!({"key": key, "prompt": text, "instruction_id_list": ["length_constraints:number_words"],
            "kwargs": [{"num_words": 1, "relation": "at least"}]})
    };
    // Of the model's context of 512 the last leaves nothing.
    let long = "Tell me of the dragon. ".repeat(200);
    let prompts = [
        prompt(1, "Tell me a tale."),
        prompt(2, "And one more?"),
        prompt(3, &long),
    ];
    write(dir, "prompts.jsonl", &prompts);
    let score = ["eval", "ifeval", "--prompts", "prompts.jsonl", "--json"];
    let answer = [&score[..], &["--model", "stories", "--max-tokens", "12"]].concat();
    let ran = ok(dir, &answer);
    for said in ["ChatML", "prompt 2 (from 0) has", "its response is empty"] {
        assert!(
            ran.stderr.contains(said),
            "{said:?} is not in {}",
            ran.stderr
        );
    }
    let scores = ran.json();
    assert_eq!(scores["n"], 3);
    let kept = rows(dir, "stories.ifeval.jsonl");
    assert_eq!(kept.len(), 3);
    fields(&kept[0], &["prompt", "response", "about"]);
    assert!(!kept[0]["response"].as_str().unwrap().trim().is_empty());
    assert_eq!(kept[2]["response"], "");
    // What was kept scores the same, and who asks again goes on behind it.
    let again = ok(
        dir,
        &[&score[..], &["--responses", "stories.ifeval.jsonl"]].concat(),
    );
    assert_eq!(again.json(), scores);
    let whole = std::fs::read_to_string(dir.join("stories.ifeval.jsonl")).unwrap();
    let first = whole.find('\n').unwrap() + 1;
    std::fs::write(dir.join("stories.ifeval.jsonl"), &whole[..first + 9]).unwrap();
    let resumed = ok(dir, &answer);
    assert!(resumed.stderr.contains("1 of 3 are answered already"));
    assert_eq!(resumed.json(), scores);
    assert_eq!(rows(dir, "stories.ifeval.jsonl"), kept);

    for (code, more) in [
        (2, &["--keep", "k.txt"][..]),
        (2, &["--max-tokens", "0", "--keep", "z.jsonl"]),
        (1, &["--adapter", "nowhere", "--keep", "z.jsonl"]),
    ] {
        exits(
            dir,
            code,
            &[&score[..], &["--model", "stories"], more].concat(),
        );
    }
    assert!(!dir.join("z.jsonl").exists());
}
