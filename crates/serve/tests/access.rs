//! Who may ask, from where, and that nothing of what is asked or answered is found afterwards.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{
    Reply, completion, conversation, engine_config, make, model, serve, serve_with, settings,
};
use russet_serve::{Keys, Server, Tls, new_key};
use serde_json::json;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

fn keys(lines: &[&str]) -> Keys {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(lines.join("\n").as_bytes()).unwrap();
    Keys::read(file.path()).unwrap()
}

#[test]
fn a_key_opens_and_nothing_else_does() {
    let (alice, first) = new_key("alice", true).unwrap();
    let (bob, second) = new_key("bob", false).unwrap();
    let below = tempfile::tempdir().unwrap();
    common::adapter(1, &below.path().join("1"));
    let mut closed = settings();
    closed.keys = Some(keys(&[&first, &second]));
    closed.adapter_dir = Some(below.path().to_owned());
    let server = serve_with(closed, make(engine_config(), None));
    let ask = |method: &str, path: &str, shown: Option<&str>, body: &str| -> Reply {
        let mut headers = vec![("Content-Type", "application/json")];
        headers.extend(shown.map(|shown| ("Authorization", shown)));
        server.send(method, path, &headers, body)
    };
    let body = completion(json!("a"), json!({"max_tokens": 2})).to_string();
    let hash = first
        .split("blake3:")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap();
    for shown in [
        None,
        Some(""),
        Some("Bearer"),
        Some("Bearer "),
        Some(&*alice),
        Some(&*format!("Basic {alice}")),
        Some(&*format!("Bearer {alice}x")),
        Some(&*format!("Bearer {}", &alice[..60])),
        Some(&*format!("Bearer {hash}")),
        Some(&*format!("Bearer blake3:{hash}")),
    ] {
        for (method, path) in [
            ("POST", "/v1/completions"),
            ("GET", "/v1/models"),
            ("GET", "/metrics"),
            ("POST", "/tokenize"),
            ("GET", "/x"),
        ] {
            let reply = ask(method, path, shown, &body);
            reply.refused(401, None);
            assert_eq!(reply.headers["www-authenticate"], "Bearer");
            assert_eq!(reply.json()["error"]["code"], "invalid_api_key");
        }
    }
    for path in ["/health", "/ready", "/"] {
        assert_eq!(ask("GET", path, None, "").status, 200);
    }
    let (alice, bob) = (format!("Bearer {alice}"), format!("bearer {bob}"));
    for key in [&alice, &bob] {
        assert_eq!(ask("POST", "/v1/completions", Some(key), &body).status, 200);
    }
    let load = json!({"lora_name": "a", "lora_path": "1"}).to_string();
    ask("POST", "/v1/load_lora_adapter", Some(&bob), &load).refused(403, None);
    assert_eq!(
        ask("POST", "/v1/load_lora_adapter", Some(&alice), &load).status,
        200
    );
    // What one has asked is not found in the cache by another.
    let prompt = "The fox and the hen and the red barn. ".repeat(12);
    let body = completion(json!(prompt), json!({"max_tokens": 2})).to_string();
    let cached = |key: &str| {
        let answer = ask("POST", "/v1/completions", Some(key), &body).json();
        answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
    };
    assert!(cached(&alice) < 2);
    assert!(cached(&alice) > 64);
    assert!(cached(&bob) < 2, "no more than what all texts begin with");
}

#[test]
fn an_address_that_others_reach_wants_keys_and_tls() {
    let (_, line) = new_key("alice", false).unwrap();
    let bind = |insecure: bool, closed: bool, tls: bool| {
        let mut open = settings();
        open.address = "0.0.0.0:0".parse().unwrap();
        open.insecure = insecure;
        open.keys = closed.then(|| keys(&[&line]));
        open.tls = tls.then(tls_of_tests);
        Server::bind(open, model(), make(engine_config(), None))
    };
    for (closed, tls, option) in [
        (false, false, "--api-keys"),
        (false, true, "--api-keys"),
        (true, false, "--tls-cert"),
    ] {
        let said = bind(false, closed, tls).unwrap_err().to_string();
        assert!(
            said.contains(option) && said.contains("--insecure"),
            "{said}"
        );
        assert!(bind(true, closed, tls).is_ok());
    }
    assert!(bind(false, true, true).is_ok());
    let taken = serve();
    let mut same = settings();
    same.address = taken.address;
    let said = Server::bind(same, model(), make(engine_config(), None))
        .unwrap_err()
        .to_string();
    assert!(said.contains("is another server there?"), "{said}");
}

fn fixture(name: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    fixtures.join(name)
}

fn tls_of_tests() -> Tls {
    Tls::read(&fixture("certificate.pem"), &fixture("key.pem")).unwrap()
}

/// One request to a server whose certificate is known, and all that comes back.
fn over_tls(address: SocketAddr, request: &str) -> Vec<u8> {
    let certificate = CertificateDer::from_pem_file(fixture("certificate.pem")).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(client, TcpStream::connect(address).unwrap());
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

#[test]
fn what_is_said_over_tls_is_answered_and_what_is_said_in_the_clear_is_not() {
    let mut closed = settings();
    closed.tls = Some(tls_of_tests());
    closed.limits.patience = Duration::from_millis(300);
    let server = serve_with(closed, make(engine_config(), None));
    let json = [("Content-Type", "application/json")];
    let ask = |fields: serde_json::Value| {
        let body = completion(json!("The fox"), fields).to_string();
        let head = common::head("POST", "/v1/completions", &json, body.len());
        format!("{head}{body}")
    };
    let plain = serve();
    let wanted = plain.complete(json!("The fox"), json!({"max_tokens": 9}));
    for _ in 0..2 {
        let reply = common::parse(&over_tls(server.address, &ask(json!({"max_tokens": 9}))));
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(common::text(&reply.json(), 0), common::text(&wanted, 0));
        let streamed = ask(json!({"max_tokens": 9, "stream": true}));
        let reply = common::parse(&over_tls(server.address, &streamed));
        assert!(reply.events().len() > 1);
        // Who speaks in the clear, and who does not speak at all, is no client.
        let clear = common::raw(server.address, ask(json!({})).as_bytes());
        assert!(!clear.starts_with(b"HTTP"), "{clear:?}");
        let begun = std::time::Instant::now();
        assert!(common::raw(server.address, b"").is_empty());
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn a_certificate_that_cannot_be_shown_is_refused_by_its_file() {
    let (certificate, key) = (fixture("certificate.pem"), fixture("key.pem"));
    for (certificate, key, says) in [
        (Path::new("/nowhere"), &*key, "/nowhere"),
        (&certificate, Path::new("/nowhere"), "/nowhere"),
        (&key, &key, "no certificate"),
        (&certificate, &certificate, "certificate.pem"),
    ] {
        let said = Tls::read(certificate, key).unwrap_err().to_string();
        assert!(said.contains(says) && said.contains("PEM"), "{said}");
    }
}

#[test]
fn a_key_has_as_much_as_its_line_says() {
    let made: Vec<(String, String)> =
        ["requests-per-minute=3", "at-once=1", "tokens-per-minute=40"]
            .iter()
            .enumerate()
            .map(|(number, limit)| {
                let (key, line) = new_key(&format!("key{number}"), false).unwrap();
                (format!("Bearer {key}"), format!("{line} {limit}"))
            })
            .collect();
    let lines: Vec<&str> = made.iter().map(|(_, line)| &**line).collect();
    let mut closed = settings();
    closed.keys = Some(keys(&lines));
    let server = serve_with(
        closed,
        make(engine_config(), Some(Duration::from_millis(3))),
    );
    let ask = |key: usize, method: &str, fields: serde_json::Value| {
        let path = if method == "GET" {
            "/v1/models"
        } else {
            "/v1/completions"
        };
        let headers = [
            ("Content-Type", "application/json"),
            ("Authorization", &*made[key].0),
        ];
        let body = completion(json!([5]), fields).to_string();
        server.send(method, path, &headers, &body)
    };
    let limited = |reply: &Reply, says: &str| {
        let said = reply.refused(429, None);
        assert!(said.contains(says), "{said}");
        assert_eq!(reply.json()["error"]["type"], "rate_limit_error");
        reply.headers["retry-after"].parse::<u64>().unwrap()
    };
    let few = || json!({"max_tokens": 1});
    for left in ["2", "1", "0"] {
        let reply = ask(0, "POST", few());
        assert_eq!(reply.status, 200);
        let told = |what: &str| reply.headers[&format!("x-ratelimit-{what}-requests")].as_str();
        assert_eq!((told("limit"), told("remaining")), ("3", left));
        assert!(told("reset").ends_with('s'), "{reply:?}");
        assert!(!reply.headers.contains_key("x-ratelimit-limit-tokens"));
    }
    let reply = ask(0, "POST", few());
    let wait = limited(&reply, "3 requests a minute");
    assert!((10..=20).contains(&wait), "{wait}");
    assert_eq!(reply.headers["x-ratelimit-remaining-requests"], "0");
    let reply = ask(0, "GET", json!({}));
    assert_eq!(reply.status, 200, "reading costs nothing");
    assert!(!reply.headers.contains_key("x-ratelimit-limit-requests"));
    // One that is still streaming is open; one that was left is not.
    let long = completion(
        json!([5]),
        json!({"max_tokens": 900, "ignore_eos": true, "stream": true}),
    )
    .to_string();
    let headers = [
        ("Content-Type", "application/json"),
        ("Authorization", &*made[1].0),
    ];
    let mut stream = TcpStream::connect(server.address).unwrap();
    let head = common::head("POST", "/v1/completions", &headers, long.len());
    stream
        .write_all(format!("{head}{long}").as_bytes())
        .unwrap();
    stream.read_exact(&mut [0; 300]).unwrap();
    assert_eq!(limited(&ask(1, "POST", few()), "as it may at once: 1"), 1);
    drop(stream);
    let begun = std::time::Instant::now();
    while ask(1, "POST", few()).status == 429 {
        assert!(begun.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(20));
    }
    // Tokens of the prompt and of the answer count, streamed or not.
    for stream in [false, true] {
        let fields = json!({"max_tokens": 29, "ignore_eos": true, "stream": stream});
        assert_eq!(ask(2, "POST", fields).status, 200);
    }
    let reply = ask(2, "POST", few());
    assert_eq!(
        (
            &*reply.headers["x-ratelimit-limit-tokens"],
            &*reply.headers["x-ratelimit-remaining-tokens"]
        ),
        ("40", "0")
    );
    let wait = limited(&reply, "40 tokens a minute");
    assert!((20..=32).contains(&wait), "{wait}");
}

#[test]
fn a_page_elsewhere_cannot_ask_through_a_browser() {
    let server = serve();
    let body = completion(json!("a"), json!({"max_tokens": 2})).to_string();
    let json = ("Content-Type", "application/json");
    for host in [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "[::2]:80",
    ] {
        server
            .send("POST", "/v1/completions", &[json, ("Host", host)], &body)
            .refused(403, None);
        server
            .send("GET", "/", &[("Host", host)], "")
            .refused(403, None);
    }
    for host in ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"] {
        assert_eq!(
            server
                .send("POST", "/v1/completions", &[json, ("Host", host)], &body)
                .status,
            200,
            "{host}"
        );
    }
    // Without JSON's type a browser would not ask first; and nobody is told that other origins are welcome.
    server
        .send(
            "POST",
            "/v1/completions",
            &[("Content-Type", "text/plain")],
            &body,
        )
        .refused(415, None);
    let preflight = server.send(
        "OPTIONS",
        "/v1/completions",
        &[("Origin", "https://evil.example")],
        "",
    );
    assert_eq!(preflight.status, 405);
    assert!(
        !preflight
            .headers
            .keys()
            .any(|name| name.starts_with("access-control"))
    );
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn neither_logs_nor_metrics_hold_what_was_said() {
    let log = Log::default();
    let kept = log.clone();
    // Everything of every crate, down to the last detail.
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || kept.clone())
        .init();
    let (key, line) = new_key("alice", true).unwrap();
    let mut closed = settings();
    closed.keys = Some(keys(&[&line]));
    let server = serve_with(
        closed,
        make(engine_config(), Some(Duration::from_millis(1))),
    );
    let bearer = format!("Bearer {key}");
    let canary = "zanzibar-7731";
    let ask = |path: &str, body: &serde_json::Value| {
        let headers = [
            ("Content-Type", "application/json"),
            ("Authorization", &*bearer),
        ];
        server.send("POST", path, &headers, &body.to_string())
    };
    let mut answers = String::new();
    for stream in [false, true] {
        for fields in [
            json!({"max_tokens": 20, "stream": stream, "ignore_eos": true}),
            json!({"max_tokens": 20, "stream": stream, "stop": canary, "user": canary, "metadata": {(canary): canary}}),
            json!({"max_tokens": 30, "stream": stream, "structured_outputs": {"regex": canary}}),
            json!({"stream": stream, (canary): 1}),
            json!({"stream": stream, "temperature": canary}),
            json!({"stream": stream, "structured_outputs": {"regex": format!("({canary}")}}),
            json!({"stream": stream, "model": canary}),
        ] {
            answers += &ask(
                "/v1/chat/completions",
                &conversation(canary, fields.clone()),
            )
            .body;
            answers += &ask(
                "/v1/completions",
                &completion(json!(canary), fields.clone()),
            )
            .body;
            let mut response = fields;
            if let Some(tokens) = response.as_object_mut().unwrap().remove("max_tokens") {
                response["max_output_tokens"] = tokens;
            }
            (response["input"], response["instructions"]) = (canary.into(), canary.into());
            if response.get("model").is_none() {
                response["model"] = common::MODEL.into();
            }
            answers += &ask("/v1/responses", &response).body;
        }
    }
    for input in [json!(canary), json!([canary, canary])] {
        ask(
            "/v1/embeddings",
            &json!({"model": common::MODEL, "input": input, "user": canary}),
        );
    }
    ask("/tokenize", &json!({"prompt": canary}));
    ask(&format!("/{canary}"), &json!({}));
    ask(&format!("/v1/models/{canary}?{canary}"), &json!({}));
    ask(
        "/v1/load_lora_adapter",
        &json!({"lora_name": canary, "lora_path": canary}),
    );
    server.send(
        "POST",
        "/v1/completions",
        &[("Authorization", canary)],
        canary,
    );
    assert!(answers.contains(canary), "the guided answer says it");
    let metrics = {
        let headers = [("Authorization", &*bearer)];
        server.send("GET", "/metrics", &headers, "").body
    };
    drop(server);
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(
        log.matches("answered").count() > 30 && log.contains("req-"),
        "{log}"
    );
    assert!(metrics.contains("russet_generation_tokens_total"));
    for (place, text) in [("log", &log), ("metrics", &metrics)] {
        for secret in [canary, "zanzibar", "7731", &key, &key[4..]] {
            assert!(!text.contains(secret), "{secret} in the {place}: {text}");
        }
    }
}
