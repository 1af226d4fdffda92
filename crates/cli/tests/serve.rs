//! `serve` from the command line: a model on a port, keys, refusals, and an end in order.

mod common;

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command};

use common::{exits, golden, listening, ok, request};
use serde_json::Value;

fn model(dir: &Path) {
    let source = golden("stories260K/stories260K.bin");
    let source = source.to_str().unwrap();
    ok(
        dir,
        &[
            "convert", "--from", "llama2c", "--to", "hf", "--in", source, "--out", "stories",
        ],
    );
}

/// A server on a free port: the process, and where it listens.
fn serve(dir: &Path, more: &[&str]) -> (Child, String) {
    let arguments = [
        &["--json", "serve", "--model", "stories", "--port", "0"],
        more,
    ]
    .concat();
    let (child, said, address) = listening(dir, &arguments);
    assert_eq!(said["model"], "stories");
    (child, address)
}

/// Asks it to end; its log. It must end well.
#[cfg(unix)]
fn end(mut child: Child) -> String {
    let killed = Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut log = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut log)
        .unwrap();
    log
}

#[cfg(unix)]
#[test]
fn a_model_is_served_until_it_is_told_to_stop() {
    let keep = tempfile::tempdir().unwrap();
    model(keep.path());
    let (child, address) = serve(keep.path(), &["--prompt-lookup", "--cache-type", "q8"]);
    let body =
        r#"{"model": "stories", "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}"#;
    let served = request(&address, "POST /v1/completions HTTP/1.1", body);
    let plain = ok(
        keep.path(),
        &[
            "--json",
            "generate",
            "--model",
            "stories",
            "--prompt",
            "Once upon a time",
            "--max-tokens",
            "12",
            "--temperature",
            "0",
            "--cache-type",
            "q8",
        ],
    );
    let served: Value = serde_json::from_str(served.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(served["choices"][0]["text"], plain.json()["text"]);
    let log = end(child);
    let events: Vec<Value> = log
        .lines()
        .filter(|line| line.contains("answered"))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(events.len(), 1, "{log}");
    assert_eq!(events[0]["fields"]["endpoint"], "/v1/completions");
    assert!(!log.contains("Once"), "{log}");
}

#[cfg(unix)]
#[test]
fn a_name_of_this_machine_is_an_address() {
    let keep = tempfile::tempdir().unwrap();
    model(keep.path());
    let (child, address) = serve(keep.path(), &["--host", "localhost"]);
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    assert!(request(&address, "GET /health HTTP/1.1", "").starts_with("HTTP/1.1 200"));
    end(child);
}

#[cfg(unix)]
#[test]
fn a_key_that_was_made_here_opens() {
    let keep = tempfile::tempdir().unwrap();
    model(keep.path());
    let made = ok(keep.path(), &["serve", "--new-key", "alice", "--json"]).json();
    std::fs::write(keep.path().join("keys"), made["line"].as_str().unwrap()).unwrap();
    let (child, address) = serve(keep.path(), &["--api-keys", "keys"]);
    assert!(request(&address, "GET /v1/models HTTP/1.1", "").starts_with("HTTP/1.1 401"));
    let key = made["key"].as_str().unwrap();
    let head = format!("GET /v1/models HTTP/1.1\r\nAuthorization: Bearer {key}");
    assert!(request(&address, &head, "").starts_with("HTTP/1.1 200"));
    assert!(!end(child).contains(key));
}

#[test]
fn what_cannot_be_served_is_refused() {
    let keep = tempfile::tempdir().unwrap();
    model(keep.path());
    let refused = |code: i32, arguments: &[&str]| {
        exits(keep.path(), code, &[&["serve"], arguments].concat()).stderr
    };
    let said = refused(
        2,
        &["--model", "stories", "--host", "0.0.0.0", "--port", "0"],
    );
    assert!(said.contains("--api-keys FILE"), "{said}");
    let said = refused(2, &["--model", "stories", "--tls-cert", "certificate"]);
    assert!(said.contains("--tls-key"), "{said}");
    let said = refused(
        2,
        &[
            "--model",
            "stories",
            "--tls-cert",
            "none",
            "--tls-key",
            "none",
        ],
    );
    assert!(said.contains("none") && said.contains("PEM"), "{said}");
    let said = refused(2, &["--model", "stories", "--api-keys", "none"]);
    assert!(said.contains("none"), "{said}");
    assert!(refused(1, &["--model", "nothing"]).contains("there is no such folder"));
    refused(2, &[]);
    refused(2, &["--model", "stories", "--adapter", "x"]);
    refused(1, &["--model", "stories", "--adapter", "x=nothing"]);
    let same = ["--adapter", "a=one", "--adapter", "a=two"];
    let said = refused(2, &[&["--model", "stories"], &same[..]].concat());
    assert!(
        said.contains("given twice") && said.contains("two"),
        "{said}"
    );
    // No name may end in it (RFC 6761), so nobody knows this one.
    let said = refused(2, &["--model", "stories", "--host", "nowhere.invalid"]);
    assert!(said.contains("--host nowhere.invalid"), "{said}");
    refused(2, &["--model", "stories", "--new-key", "a"]);
    refused(2, &["--new-key", "a", "--port", "9"]);
    refused(2, &["--new-key", "a", "--cache-type", "q8"]);
    for (option, value) in [("--context", "1"), ("--cache-mib", "0")] {
        let said = refused(2, &["--model", "stories", option, value]);
        assert!(said.contains(&format!("error: {option}: ")), "{said}");
    }
    refused(2, &["--model", "stories", "--cache-type", "int8"]);
}
