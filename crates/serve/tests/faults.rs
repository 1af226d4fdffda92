//! Too much, too slow, broken, in the middle of an end: the server answers the next request.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{
    PANICS, completion, content, conversation, engine_config, head, parse, raw, serve,
    serve_slowly, settings,
};
use russet_engine::EngineConfig;
use russet_serve::Limits;
use serde_json::{Value, json};

fn long() -> Value {
    completion(
        json!("The fox"),
        json!({"max_tokens": 400, "ignore_eos": true, "stream": true}),
    )
}

#[test]
fn a_full_queue_sends_clients_away_for_a_while() {
    let config = EngineConfig {
        slots: 1,
        queue: 2,
        ..engine_config()
    };
    let server = serve_slowly(settings(), config, 5);
    let one = server.open("/v1/completions", &long());
    server.wait_for("russet_num_requests_running", 1.0);
    let waiting: Vec<TcpStream> = (0..2)
        .map(|_| server.open("/v1/completions", &long()))
        .collect();
    server.wait_for("russet_num_requests_waiting", 2.0);
    for body in [
        completion(json!("a"), json!({})),
        completion(json!(["a", "b"]), json!({"stream": true})),
    ] {
        let reply = server.post("/v1/completions", &body);
        reply.refused(429, None);
        assert_eq!(reply.headers["retry-after"], "1");
        assert_eq!(reply.json()["error"]["code"], "queue_full");
    }
    assert_eq!(
        server.metric("russet_num_requests_waiting"),
        2.0,
        "none of two prompts was taken"
    );
    drop((one, waiting));
    server.wait_for("russet_num_requests_waiting", 0.0);
    server.complete(json!("a"), json!({"max_tokens": 2}));
}

#[test]
fn an_answer_has_its_deadline() {
    let mut slow = settings();
    slow.limits.deadline = Duration::from_millis(300);
    let server = serve_slowly(slow, engine_config(), 20);
    let mut body = long();
    body["stream"] = false.into();
    let reply = server.post("/v1/completions", &body);
    reply.refused(504, None);
    body["stream"] = true.into();
    let reply = server.post("/v1/completions", &body);
    assert_eq!(reply.status, 200);
    let last = reply.body.trim_end().rsplit("\n\n").next().unwrap();
    let error: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "deadline_exceeded");
    let cut = "russet_request_finished_total{reason=\"deadline\"}";
    assert_eq!(server.metric(cut), 2.0);
    assert!(
        server.metric("russet_generation_tokens_total") > 2.0,
        "what had been made"
    );
    server.complete(json!("a"), json!({"max_tokens": 2}));
}

#[test]
fn a_refusal_is_read_by_who_was_still_sending() {
    let mut small = settings();
    small.limits.body = 10_000;
    let server = common::serve_with(small, common::make(engine_config(), None));
    let json = ("Content-Type", "application/json");
    // Far more than sockets hold on their way. Refused by its length, as it comes, by its kind, by its path.
    let body = vec![b'a'; 32 << 20];
    for (path, headers, status) in [
        ("/v1/completions", vec![json], 413),
        ("/v1/completions", vec![], 415),
        ("/nowhere", vec![json], 404),
    ] {
        let mut stream = TcpStream::connect(server.address).unwrap();
        let head = head("POST", path, &headers, body.len());
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&body).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(parse(&answer).status, status, "{path}");
    }
    // In pieces of no told length.
    let mut stream = TcpStream::connect(server.address).unwrap();
    let head = head("POST", "/v1/completions", &[json], 0);
    let head = head.replace("Content-Length: 0", "Transfer-Encoding: chunked");
    stream.write_all(head.as_bytes()).unwrap();
    for piece in body.chunks(1 << 20) {
        let size = format!("{:x}\r\n", piece.len());
        for bytes in [size.as_bytes(), piece, b"\r\n"] {
            stream.write_all(bytes).unwrap();
        }
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(parse(&answer).status, 413);
}

#[test]
fn bodies_that_are_no_requests_are_refused() {
    let mut small = settings();
    small.limits.body = 10_000;
    small.limits.patience = Duration::from_millis(300);
    let server = common::serve_with(small, common::make(engine_config(), None));
    let json = [("Content-Type", "application/json")];
    for path in [
        "/v1/chat/completions",
        "/v1/completions",
        "/tokenize",
        "/detokenize",
    ] {
        for body in [
            "",
            "{",
            "[]",
            "null",
            "5",
            "\"a\"",
            "{} {}",
            "{\"model\": }",
            "\u{0}",
            "{\"a\": \"\\ud800\"}",
            &"[".repeat(9000),
        ] {
            let reply = server.send("POST", path, &json, body);
            assert_eq!(reply.status, 400, "{body:?}: {reply:?}");
            assert!(reply.json()["error"]["message"].is_string());
        }
        server
            .send("POST", path, &[("Content-Type", "text/plain")], "{}")
            .refused(415, None);
        server.send("POST", path, &[], "{}").refused(415, None);
        server
            .send("POST", path, &json, &format!("\"{}\"", "a".repeat(10_000)))
            .refused(413, None);
    }
    // Without a length, in pieces.
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = format!("1000\r\n{}\r\n", "a".repeat(0x1000));
    let reply = raw(
        server.address,
        format!("{head}{}0\r\n\r\n", chunk.repeat(4)).as_bytes(),
    );
    parse(&reply).refused(413, None);
    // A body that does not come.
    let begun = Instant::now();
    let late = raw(
        server.address,
        common::head("POST", "/v1/completions", &json, 100).as_bytes(),
    );
    parse(&late).refused(408, None);
    assert!(begun.elapsed() < Duration::from_secs(10));
    // What is no HTTP, and a head that never ends.
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"GET\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
    ] {
        raw(server.address, bytes);
    }
    let begun = Instant::now();
    raw(server.address, b"POST / HTTP/1.1\r\nX: ");
    assert!(begun.elapsed() < Duration::from_secs(10), "it was let go");
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.metric("russet_panics_total"), 0.0);
}

#[test]
fn hostile_forms_end_in_a_sentence() {
    let server = serve();
    for structured in [
        json!({"regex": "(".repeat(2000)}),
        json!({"grammar": "start: start start"}),
        json!({"grammar": "nonsense"}),
        json!({"json": {"$ref": "http://example.com/schema"}}),
        json!({"json": {"type": "object", "patternProperties": {"(": {}}}}),
        json!({"choice": []}),
        json!({"json": 5}),
    ] {
        let reply = server.post(
            "/v1/chat/completions",
            &conversation(
                "Hi",
                json!({"structured_outputs": structured, "max_tokens": 8}),
            ),
        );
        let message = reply.refused(400, reply.json()["error"]["param"].as_str());
        assert!(!message.is_empty());
    }
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_panic_ends_what_was_on_its_way_and_not_the_server() {
    let server = serve_slowly(settings(), engine_config(), 3);
    let wanted = server.chat("Hello", json!({"max_tokens": 8}));
    let other = server.open("/v1/completions", &long());
    server.wait_for("russet_num_requests_running", 1.0);
    let prompt: Vec<usize> = (10..10 + PANICS).collect();
    let reply = server.post(
        "/v1/completions",
        &completion(json!(prompt), json!({"max_tokens": 8, "ignore_eos": true})),
    );
    reply.refused(500, None);
    assert_eq!(reply.json()["error"]["code"], "internal_error");
    assert!(!reply.body.contains("as the test wants it"));
    let mut rest = Vec::new();
    let mut other = other;
    other.read_to_end(&mut rest).unwrap();
    assert!(parse(&rest).body.contains("internal_error"));
    assert_eq!(server.metric("russet_engine_restarts_total"), 1.0);
    let cut = "russet_request_finished_total{reason=\"error\"}";
    assert_eq!(server.metric(cut), 2.0);
    assert_eq!(
        content(&server.chat("Hello", json!({"max_tokens": 8})), 0),
        content(&wanted, 0)
    );
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_reader_that_takes_nothing_is_let_go() {
    let mut short = settings();
    short.limits.patience = Duration::from_millis(300);
    let server = serve_slowly(short, engine_config(), 0);
    // Alternatives make the pieces large, so that buffers fill.
    let fields =
        json!({"stream": true, "ignore_eos": true, "logprobs": true, "top_logprobs": 20, "n": 64});
    let stream = server.open("/v1/chat/completions", &conversation("A tale", fields));
    server.wait_for("russet_num_requests_running", 4.0);
    let begun = Instant::now();
    server.wait_for("russet_num_requests_running", 0.0);
    assert!(begun.elapsed() < Duration::from_secs(25));
    server.complete(json!("a"), json!({"max_tokens": 2}));
    drop(stream);
}

#[test]
fn a_server_that_is_told_to_stop_ends_what_it_has_begun() {
    let server = serve_slowly(settings(), engine_config(), 5);
    let body = completion(
        json!("The fox"),
        json!({"max_tokens": 60, "ignore_eos": true, "stream": true}),
    );
    let mut begun = server.open("/v1/completions", &body);
    // A connection that idles does not hold it up.
    let mut idle = TcpStream::connect(server.address).unwrap();
    idle.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    server.wait_for("russet_num_requests_running", 1.0);
    server.ask_to_stop();
    let mut rest = Vec::new();
    begun.read_to_end(&mut rest).unwrap();
    let events = parse(&rest).events();
    assert_eq!(
        events.last().unwrap()["choices"][0]["finish_reason"],
        "length"
    );
    let address = server.address;
    server.wait().unwrap();
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn what_does_not_end_in_time_is_called_off() {
    let mut hasty = settings();
    hasty.limits = Limits {
        drain: Duration::from_millis(200),
        ..hasty.limits
    };
    let server = serve_slowly(hasty, engine_config(), 20);
    let mut begun = server.open("/v1/completions", &long());
    server.wait_for("russet_num_requests_running", 1.0);
    let stopped = Instant::now();
    server.ask_to_stop();
    let mut rest = Vec::new();
    begun.read_to_end(&mut rest).unwrap();
    assert!(parse(&rest).body.contains("the server is going down"));
    server.wait().unwrap();
    assert!(stopped.elapsed() < Duration::from_secs(8));
}

#[test]
fn a_connection_serves_one_request_after_another() {
    let server = serve();
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    for _ in 0..20 {
        let body = completion(json!("a"), json!({"max_tokens": 2})).to_string();
        let json = [("Content-Type", "application/json")];
        let head =
            head("POST", "/v1/completions", &json, body.len()).replace("Connection: close\r\n", "");
        stream
            .write_all(format!("{head}{body}").as_bytes())
            .unwrap();
        let mut got = Vec::new();
        let mut piece = [0; 4096];
        while !String::from_utf8_lossy(&got).contains("cached_tokens") {
            let read = stream.read(&mut piece).unwrap();
            assert!(read > 0);
            got.extend_from_slice(&piece[..read]);
        }
        assert!(got.starts_with(b"HTTP/1.1 200"));
    }
}
