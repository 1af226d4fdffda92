//! `grade` from the command line: a page that is killed and loses nothing, several graders, and files that the other verbs read.

mod common;

use std::path::Path;
use std::process::Child;

use common::{exits, fields, listening, ok, request, rows, write};
use russet_align::reward::Strength;
use russet_align::rows::read_pairs;
use serde_json::{Value, json};

const HOSTILE: &str = "</script><script>alert(1)</script><img src=x onerror=alert(2)>";
const MODELS: [&str; 3] = ["zebra-9b", "okapi-2b", "tapir-1b"];

/// Three models' responses to five prompts.
fn responses(dir: &Path) {
    for (model, name) in MODELS.iter().enumerate() {
        let row = |n: usize| {
            let text = if n == 0 {
                format!("{HOSTILE} by hand {model}")
            } else {
                format!("text {n} by hand {model}")
            };
            json!({"prompt": format!("Prompt {n}?"), "response": text, "about": {"model": {"path": name}}})
        };
        write(
            dir,
            &format!("{name}.jsonl"),
            &(0..5).map(row).collect::<Vec<_>>(),
        );
    }
}

/// A page on a free port.
struct Page {
    child: Child,
    address: String,
}

impl Page {
    fn start(dir: &Path, more: &[&str]) -> Page {
        let arguments = [&["--json", "grade", "--port", "0"], more].concat();
        let (child, said, address) = listening(dir, &arguments);
        fields(&said, &["url", "results", "keep", "tasks"]);
        assert!(address.starts_with("127.0.0.1:"));
        Page { child, address }
    }

    fn send(&self, head: &str, body: &str) -> (u16, String) {
        let answer = request(&self.address, &format!("{head} HTTP/1.1"), body);
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let (status, text) = self.send(&format!("POST {path}"), &body.to_string());
        assert_eq!(status, 200, "{text}");
        let named = MODELS.iter().find(|name| text.contains(**name));
        assert_eq!(named, None, "no model is named: {text}");
        serde_json::from_str(&text).unwrap()
    }

    fn next(&self, grader: &str) -> Value {
        self.post("/api/next", &json!({"grader": grader}))
    }

    /// Says of each task that the response of a hand is better, until `most` are said; where the grader then stands.
    fn grade(&self, grader: &str, hand: usize, most: usize) -> Value {
        let mut shown = self.next(grader);
        for _ in 0..most {
            if shown["task"].is_null() {
                break;
            }
            let ends = format!("hand {hand}");
            let texts = shown["task"]["responses"].as_array().unwrap();
            let has = |text: &Value| text.as_str().unwrap().ends_with(&ends);
            let mut answer = match texts.iter().position(has) {
                Some(0) => json!({"better": "first", "strength": "significantly"}),
                Some(_) => json!({"better": "second", "strength": "negligibly"}),
                None => json!({"better": "neither"}),
            };
            answer["grades"] = texts
                .iter()
                .map(|text| json!({"truthfulness": if has(text) { 2 } else { 0 }}))
                .collect();
            let said = json!({"grader": grader, "place": shown["task"]["place"], "answer": answer});
            shown = self.post("/api/say", &said);
        }
        shown
    }

    /// As the system ends what it kills: at once.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_killed_page_has_every_grade_and_the_files_are_read_by_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    responses(dir);
    let files: Vec<String> = MODELS.iter().map(|name| format!("{name}.jsonl")).collect();
    let begin = [
        "--responses",
        &files[0],
        "--responses",
        &files[1],
        "--responses",
        &files[2],
        "--seed",
        "3",
    ];

    // Killed right after the second of two words, three times, and gone on with; with the responses or without.
    let mut said = 0;
    for more in [&begin[..], &begin, &[]] {
        let page = Page::start(dir, more);
        let shown = page.grade("anna", 1, 2);
        page.kill();
        said += 2;
        assert_eq!(
            shown["progress"],
            json!({"grader": "anna", "graded": said, "skipped": 0, "of": 15})
        );
        let page = Page::start(dir, &[]);
        assert_eq!(page.next("anna"), shown);
        page.kill();
    }

    // Two at once; the page names models once all is graded, and not before.
    let page = Page::start(dir, &[]);
    let (status, early) = page.send("GET /export/judgements.jsonl", "");
    assert_eq!(status, 409);
    assert!(early.contains("--export"), "{early}");
    page.post("/api/skip", &json!({"grader": "bert", "place": 0}));
    let (status, results) = page.send("GET /api/results", "");
    assert!(
        status == 200
            && results.contains("model 1")
            && MODELS.iter().all(|name| !results.contains(name)),
        "{results}"
    );
    std::thread::scope(|scope| {
        for (grader, hand) in [("anna", 1), ("bert", 0)] {
            let page = &page;
            scope.spawn(move || assert!(page.grade(grader, hand, 99)["task"].is_null()));
        }
    });
    let (status, results) = page.send("GET /api/results", "");
    let results: Value = serde_json::from_str(&results).unwrap();
    assert_eq!((status, &results["complete"]), (200, &json!(true)));
    assert_eq!(
        results["scores"]["pairwise"]["models"]["okapi-2b"]["games"],
        20
    );
    let (status, downloaded) = page.send("GET /export/judgements.jsonl", "");
    assert_eq!(status, 200);

    // While the page is up the files are written too, and are the same.
    let wrote = ok(dir, &["--json", "grade", "--export", "out"]).json();
    fields(&wrote, &["export", "rows", "graders"]);
    assert_eq!(
        wrote["rows"],
        json!({"judgements.jsonl": 30, "reward.jsonl": 20})
    );
    assert_eq!(
        std::fs::read_to_string(dir.join("out/judgements.jsonl")).unwrap(),
        downloaded
    );
    page.kill();

    let scores = ok(
        dir,
        &[
            "eval",
            "pairwise",
            "--judgements",
            "out/judgements.jsonl",
            "--json",
        ],
    )
    .json();
    assert_eq!(scores["games"], 30);
    // Anna always took okapi, bert zebra: each won ten of twenty, tied five and lost five.
    for name in ["okapi-2b", "zebra-9b"] {
        assert_eq!(scores["models"][name]["win_rate"], 62.5, "{name}");
    }
    assert_eq!(
        scores["agreement"],
        results["scores"]["pairwise"]["agreement"]
    );
    let pairs = read_pairs(&dir.join("out/reward.jsonl"), false).unwrap();
    assert_eq!((pairs.rows.len(), pairs.malformed), (20, 0));
    for (row, (_, pair)) in rows(dir, "out/reward.jsonl").iter().zip(&pairs.rows) {
        let hand = if row["grader"] == "anna" {
            "hand 1"
        } else {
            "hand 0"
        };
        let last = &pair.chosen.conversation.messages.last().unwrap()["content"];
        assert!(last.as_str().unwrap().ends_with(hand), "{row}");
        assert!(matches!(
            pair.strength,
            Some(Strength::Significantly | Strength::Negligibly)
        ));
        assert_eq!(
            pair.grades,
            [[None, None, Some(2), None], [None, None, Some(0), None]]
        );
    }
    let strengths: std::collections::HashSet<_> =
        pairs.rows.iter().map(|(_, pair)| pair.strength).collect();
    assert_eq!(strengths.len(), 2, "both sides were first at times");
    // What is hostile in a text is there as it was.
    assert!(
        rows(dir, "out/reward.jsonl")
            .iter()
            .any(|row| row["chosen"] == format!("{HOSTILE} by hand 1"))
    );
}

#[test]
fn summaries_are_graded_and_read_by_their_verb() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(
        dir,
        "texts.jsonl",
        &[json!({"id": "a", "source": "Long text.", "use_case": "email"})],
    );
    write(dir, "s.jsonl", &[json!({"id": "a", "response": "Short."})]);
    let begin = [
        "--kind",
        "summaries",
        "--task",
        "texts.jsonl",
        "--responses",
        "s.jsonl",
        "--names",
        "zebra-9b",
        "--dimensions",
        "a,b,c,d,e",
    ];
    let page = Page::start(dir, &begin);
    let grades = json!({"a": "good", "b": "good", "c": "good", "d": "good", "e": "poor"});
    let done = page.post(
        "/api/say",
        &json!({"grader": "anna", "place": 0, "answer": {"grades": grades}}),
    );
    assert!(done["task"].is_null());
    page.kill();
    ok(dir, &["grade", "--export", "out"]);
    let scores = ok(
        dir,
        &[
            "--json",
            "eval",
            "summaries",
            "--grades",
            "out/grades.jsonl",
        ],
    )
    .json();
    assert_eq!(scores["models"]["zebra-9b"]["email"]["poor"], 100.0);
}

#[test]
fn what_cannot_be_graded_is_refused_with_file_line_or_option() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    responses(dir);
    std::fs::write(
        dir.join("bad.jsonl"),
        "{\"prompt\": \"a\", \"response\": \"b\"}\n{\"prompt\": 3}\n",
    )
    .unwrap();
    let two = [
        "--responses",
        "zebra-9b.jsonl",
        "--responses",
        "okapi-2b.jsonl",
    ];
    for (code, more, says) in [
        (1, vec![], "grades.sqlite: there is no such file"),
        (2, vec!["--responses", "zebra-9b.jsonl"], "1 models"),
        (2, [&two[..], &["--names", "a"]].concat(), "--names"),
        (
            2,
            [&two[..], &["--names", "a,a"]].concat(),
            "two models are called",
        ),
        (
            1,
            vec!["--responses", "zebra-9b.jsonl", "--responses", "bad.jsonl"],
            "bad.jsonl, line 2",
        ),
        (
            1,
            vec!["--responses", "zebra-9b.jsonl", "--responses", "none.jsonl"],
            "none.jsonl",
        ),
        (
            2,
            [&two[..], &["--task", "zebra-9b.jsonl"]].concat(),
            "--kind summaries",
        ),
        (
            2,
            [&two[..], &["--dimensions", "a,b,c,d,e"]].concat(),
            "--kind summaries",
        ),
        (2, [&two[..], &["--kind", "summaries"]].concat(), "--task"),
        (2, vec!["--seed", "3"], "--responses"),
        (2, vec!["--port", "0", "--export", "out"], "--port"),
        (2, [&two[..], &["--host", "0.0.0.0"]].concat(), "--host"),
    ] {
        let ran = exits(dir, code, &[&["grade"], &more[..]].concat());
        assert!(ran.stderr.contains(says), "{more:?}: {}", ran.stderr);
    }
    assert!(!dir.join("grades.sqlite").exists());
    // What SQLite would keep in memory alone is a file like any other.
    let page = Page::start(dir, &[&two[..], &["--keep", ":memory:"]].concat());
    page.kill();
    assert!(dir.join(":memory:").is_file());
    std::fs::create_dir(dir.join("artifact")).unwrap();
    std::fs::write(dir.join("artifact/manifest.json"), "{}").unwrap();
    let within = [&["grade", "--keep", "artifact/g.sqlite"], &two[..]].concat();
    let refused = exits(dir, 2, &within);
    assert!(refused.stderr.contains("artifact"), "{}", refused.stderr);
    let page = Page::start(dir, &two);
    page.kill();
    let other = exits(dir, 1, &[&["grade", "--seed", "9"], &two[..]].concat());
    assert!(
        other
            .stderr
            .contains("grades.sqlite: it keeps the grades of other"),
        "{}",
        other.stderr
    );
    let foreign = exits(dir, 1, &["grade", "--keep", "zebra-9b.jsonl"]);
    assert!(
        foreign.stderr.contains("no database of SQLite"),
        "{}",
        foreign.stderr
    );
}
