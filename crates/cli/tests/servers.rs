//! A server that answers in a model's place.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::{exits, listening, ok, rows, stories, write};
use serde_json::{Value, json};

#[test]
fn a_server_answers_in_a_models_place() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    stories(dir);
    let problem =
        |n: usize| json!({"question": format!("{n} + 1?"), "answer": format!("#### {}", n + 1)});
    write(dir, "math.jsonl", &(0..3).map(problem).collect::<Vec<_>>());
    write(
        dir,
        "c.jsonl",
        &[json!({"id": "q", "context": "Once upon a", "choices": ["time", "xq"], "answer": 0})],
    );
    write(
        dir,
        "code.jsonl",
        &[
            json!({"task_id": "t/0", "prompt": "def one():\n", "entry_point": "one", "test": "def check(f):\n    pass"}),
        ],
    );
    let (mut child, said, address) = listening(
        dir,
        &[
            "serve",
            "--model",
            "stories",
            "--port",
            "0",
            "--json",
            "--threads",
            "1",
        ],
    );
    let (name, url) = (
        said["model"].as_str().unwrap(),
        format!("http://{address}/v1"),
    );
    let far = ["--endpoint", &url, "--model", name];
    let math = [
        "eval",
        "math",
        "--task",
        "math.jsonl",
        "--max-tokens",
        "8",
        "--json",
    ];
    let asked = ok(
        dir,
        &[
            &math[..],
            &far,
            &["--at-once", "2", "--keep", "far.jsonl", "--save", "run"],
        ]
        .concat(),
    );
    assert_eq!(asked.json()["n"], 3);
    // The same weights and template: word for word what the model says here.
    ok(
        dir,
        &[&math[..], &["--model", "stories", "--keep", "here.jsonl"]].concat(),
    );
    let texts = |file: &str| -> Vec<Value> {
        rows(dir, file)
            .iter()
            .map(|row| row["response"].clone())
            .collect()
    };
    assert_eq!(texts("far.jsonl"), texts("here.jsonl"));
    // A server is no folder: its name and address are settings, and what it said is what was read.
    let record: Value =
        serde_json::from_slice(&std::fs::read(dir.join("run/math.json")).unwrap()).unwrap();
    assert_eq!(record["settings"]["endpoint"], url);
    assert_eq!(record["settings"]["model"], name);
    assert!(record["inputs"].get("model").is_none() && record["inputs"]["responses"].is_object());
    // Gone on with behind the last whole line; and not by another server.
    let text = std::fs::read_to_string(dir.join("far.jsonl")).unwrap();
    std::fs::write(dir.join("far.jsonl"), &text[..text.len() - 9]).unwrap();
    ok(dir, &[&math[..], &far, &["--keep", "far.jsonl"]].concat());
    assert_eq!(
        std::fs::read_to_string(dir.join("far.jsonl")).unwrap(),
        text
    );
    let refused = exits(
        dir,
        1,
        &[&math[..], &["--model", "stories", "--keep", "far.jsonl"]].concat(),
    );
    assert!(
        refused.stderr.contains("far.jsonl, line 1") && refused.stderr.contains("by another model"),
        "{}",
        refused.stderr
    );

    // A letter of a choice, a program, a judge.
    let choice = [
        "eval", "choice", "--task", "c.jsonl", "--keep", "l.jsonl", "--json",
    ];
    let scores = ok(dir, &[&choice[..], &far].concat()).json();
    assert_eq!(
        (&scores["n"], &scores["acc_norm"]),
        (&json!(1), &Value::Null)
    );
    assert!(rows(dir, "l.jsonl")[0]["response"].is_string());
    let code = [
        "eval",
        "code",
        "--task",
        "code.jsonl",
        "--keep",
        "p.jsonl",
        "--max-tokens",
        "4",
        "--unconfined",
        "--json",
    ];
    assert_eq!(ok(dir, &[&code[..], &far].concat()).json()["samples"], 1);
    let prompts = |response: &str| {
        let row = |n: usize| json!({"prompt": format!("Say {n}"), "response": response, "category": "writing"});
        (0..3).map(row).collect::<Vec<_>>()
    };
    write(dir, "a.jsonl", &prompts("one"));
    write(dir, "b.jsonl", &prompts("two"));
    let judge = [
        "eval",
        "judge",
        "--responses",
        "a.jsonl",
        "--responses",
        "b.jsonl",
        "--out",
        "j.jsonl",
        "--json",
    ];
    assert_eq!(ok(dir, &[&judge[..], &far].concat()).json()["n"], 3);
    let judged = rows(dir, "j.jsonl");
    assert_eq!(judged[0]["judge"], format!("{name} at {url}"));
    assert_eq!(judged[0]["by"]["endpoint"], url);

    // In a report beside a model of this machine.
    std::fs::create_dir(dir.join("both")).unwrap();
    let recipe = |task: &str| {
        let text = format!(
            "stage = \"report\"\n[[model]]\nname = \"here\"\nmodel = \"stories\"\n[[model]]\nname = \"far\"\nmodel = \"{name}\"\n\
             endpoint = \"{url}\"\n[[task]]\n{task}\n"
        );
        std::fs::write(dir.join("both/01-report.toml"), text).unwrap();
    };
    recipe("kind = \"math\"\ntask = \"math.jsonl\"\nmax_tokens = 8");
    ok(dir, &["run", "both"]);
    let of = |model: &str| {
        rows(
            &dir.join("runs/both/01-report"),
            &format!("{model}/math.rows.jsonl"),
        )
    };
    assert_eq!(of("here"), of("far"));
    recipe("kind = \"perplexity\"\ntext = \"math.jsonl\"");
    let refused = exits(dir, 2, &["run", "both"]);
    assert!(
        refused
            .stderr
            .contains("likelihoods that a server does not tell"),
        "{}",
        refused.stderr
    );

    // A name that the server does not know, and what is not for a server.
    let nobody = ["--endpoint", &url, "--model", "nobody", "--keep", "n.jsonl"];
    let refused = exits(dir, 1, &[&math[..], &nobody].concat());
    assert!(refused.stderr.contains("404"), "{}", refused.stderr);
    child.kill().unwrap();
    child.wait().unwrap();
    for (more, says) in [
        (vec!["--endpoint", "https://h/v1", "--model", "m"], "TLS"),
        (
            vec!["--endpoint", &url, "--model", "m", "--adapter", "a"],
            "names for adapters",
        ),
        (
            vec!["--model", "stories", "--key-env", "K"],
            "--key-env is for a server",
        ),
    ] {
        let refused = exits(dir, 2, &[&math[..], &more].concat());
        assert!(
            refused.stderr.contains(says),
            "{more:?}: {}",
            refused.stderr
        );
    }
    let recorded = [
        "eval",
        "math",
        "--task",
        "math.jsonl",
        "--responses",
        "here.jsonl",
    ];
    let refused = exits(dir, 2, &[&recorded[..], &["--endpoint", &url]].concat());
    assert!(
        refused
            .stderr
            .contains("--endpoint is for a model that answers now"),
        "{}",
        refused.stderr
    );
    let refused = exits(
        dir,
        1,
        &[&math[..], &far, &["--key-env", "NO_SUCH_KEY"]].concat(),
    );
    assert!(refused.stderr.contains("NO_SUCH_KEY"), "{}", refused.stderr);
}

/// A server that says what `answer` makes of a request's body: a status and a body. Where it listens, and how often it was asked.
fn pretended(
    answer: impl Fn(&Value) -> (u16, Value) + Send + 'static,
) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut length, mut line) = (0, String::new());
            while reader.read_line(&mut line).unwrap() > 2 {
                let lower = line.to_lowercase();
                if let Some(value) = lower.strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let (status, body) = answer(&serde_json::from_slice(&body).unwrap());
            count.fetch_add(1, Ordering::SeqCst);
            let body = body.to_string();
            let head = format!(
                "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let _gone = stream.write_all(format!("{head}{body}").as_bytes());
        }
    });
    (url, asked)
}

fn said(text: &str) -> (u16, Value) {
    (
        200,
        json!({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}),
    )
}

fn refused() -> (u16, Value) {
    (
        400,
        json!({"error": {"message": "max_tokens is too large"}}),
    )
}

fn problems(dir: &Path, count: usize) {
    let problem =
        |n: usize| json!({"question": format!("{n} + 1?"), "answer": format!("#### {}", n + 1)});
    let all: Vec<Value> = (0..count).map(problem).collect();
    write(dir, "math.jsonl", &all);
}

#[test]
fn a_server_that_refuses_all_ends_the_evaluation() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    problems(dir, 30);
    let (url, asked) = pretended(|_| refused());
    let math = "eval math --task math.jsonl --keep k.jsonl --model m --endpoint";
    let math: Vec<&str> = math.split(' ').chain([&url[..]]).collect();
    let ran = exits(dir, 1, &math);
    assert!(
        ran.stderr.contains("answers none of the first 8 prompts"),
        "{}",
        ran.stderr
    );
    assert_eq!(asked.load(Ordering::SeqCst), 8);
    assert!(rows(dir, "k.jsonl").is_empty());
    assert!(!ran.stderr.contains("most servers"), "{}", ran.stderr);
    let mut bare = math.clone();
    let without = url.trim_end_matches("/v1");
    *bare.last_mut().unwrap() = without;
    let ran = exits(dir, 1, &bare);
    assert!(ran.stderr.contains("under /v1"), "{}", ran.stderr);
    // One at a time it is tried as often.
    let ran = exits(dir, 1, &[&math[..], &["--at-once", "1"]].concat());
    assert!(ran.stderr.contains("none of the first 8"), "{}", ran.stderr);
    write(dir, "a.jsonl", &[json!({"prompt": "p", "response": "a"})]);
    write(dir, "b.jsonl", &[json!({"prompt": "p", "response": "b"})]);
    let judge =
        "eval judge --responses a.jsonl --responses b.jsonl --out j.jsonl --model m --endpoint";
    let judge: Vec<&str> = judge.split(' ').chain([&url[..]]).collect();
    assert!(exits(dir, 1, &judge).stderr.contains("answers none"));
    assert!(rows(dir, "j.jsonl").is_empty());
}

#[test]
fn what_a_server_refused_counts_as_empty_and_is_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    problems(dir, 12);
    let wayward = Arc::new(Mutex::new(true));
    let state = wayward.clone();
    let (url, asked) = pretended(move |request| {
        let prompt = request["messages"][0]["content"].as_str().unwrap();
        match prompt.starts_with("3 +") && *state.lock().unwrap() {
            true => refused(),
            false => {
                let n: usize = prompt.split(' ').next().unwrap().parse().unwrap();
                said(&format!("#### {}", n + 1))
            }
        }
    });
    let math = "eval math --task math.jsonl --keep k.jsonl --json --model m --endpoint";
    let math: Vec<&str> = math.split(' ').chain([&url[..]]).collect();
    let ran = ok(dir, &math);
    assert!(ran.stderr.contains("prompt 3 (from 0)"), "{}", ran.stderr);
    assert_eq!(
        (&ran.json()["n"], rows(dir, "k.jsonl").len()),
        (&json!(12), 12)
    );
    assert!(ran.json()["strict"].as_f64().unwrap() < 1.0);
    assert!(rows(dir, "k.jsonl")[3]["refused"].is_string());
    *wayward.lock().unwrap() = false;
    let ran = ok(dir, &math);
    assert!(
        ran.stderr.contains("11 of 12 are answered already"),
        "{}",
        ran.stderr
    );
    assert_eq!(
        (&ran.json()["strict"], &ran.json()["n"]),
        (&json!(1.0), &json!(12))
    );
    assert_eq!(asked.load(Ordering::SeqCst), 13);
    let kept = rows(dir, "k.jsonl");
    assert!(kept.len() == 12 && kept.iter().all(|row| row.get("refused").is_none()));
}
