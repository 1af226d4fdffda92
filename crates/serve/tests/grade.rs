//! The grading page's routes: who may use them, what they refuse, and that a desk's words come through as they are.

mod common;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use common::{Reply, head, parse, raw};
use russet_serve::grade::{self, Answered, Desk, Refusal};
use serde_json::{Value, json};

const HOSTILE: &str = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u{202e}&lt;";

/// Says what it was asked, and refuses by name.
#[derive(Default)]
struct Echo(Mutex<Vec<String>>);

impl Echo {
    fn heard(&self, word: String, grader: &str) -> Answered {
        self.0.lock().unwrap().push(word.clone());
        match grader {
            "wrong" => Err(Refusal::Asked("you are wrong".to_owned())),
            "early" => Err(Refusal::Early("come again".to_owned())),
            "broken" => Err(Refusal::Failed("/secret/disk is full".to_owned())),
            "panic" => panic!("as the test wants it"),
            _ => Ok(json!({"heard": word, "text": HOSTILE})),
        }
    }
}

impl Desk for Echo {
    fn study(&self) -> Value {
        json!({"kind": "pairs"})
    }
    fn next(&self, grader: &str) -> Answered {
        self.heard(format!("next {grader}"), grader)
    }
    fn say(&self, grader: &str, place: usize, answer: &Value) -> Answered {
        self.heard(format!("say {grader} {place} {answer}"), grader)
    }
    fn skip(&self, grader: &str, place: usize) -> Answered {
        self.heard(format!("skip {grader} {place}"), grader)
    }
    fn undo(&self, grader: &str) -> Answered {
        self.heard(format!("undo {grader}"), grader)
    }
    fn results(&self) -> Answered {
        self.heard("results".to_owned(), "")
    }
    fn export(&self, name: &str) -> Result<Option<String>, Refusal> {
        Ok((name == "a.jsonl").then(|| "{}\n".to_owned()))
    }
}

struct Served {
    address: SocketAddr,
    desk: Arc<Echo>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<russet_serve::Result<()>>>,
}

fn serve() -> Served {
    let desk = Arc::new(Echo::default());
    let page = grade::page(0, desk.clone()).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    Served {
        address: page.address().unwrap(),
        desk,
        stop: stop.clone(),
        thread: Some(std::thread::spawn(move || page.run(stop))),
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap().unwrap();
        }
    }
}

impl Served {
    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        let head = head(method, path, headers, body.len());
        parse(&raw(self.address, format!("{head}{body}").as_bytes()))
    }

    fn post(&self, path: &str, body: &Value) -> Reply {
        let json = [("Content-Type", "application/json")];
        self.send("POST", path, &json, &body.to_string())
    }

    fn heard(&self) -> usize {
        self.desk.0.lock().unwrap().len()
    }
}

#[test]
fn what_the_page_asks_reaches_the_desk_and_its_words_the_page() {
    let served = serve();
    assert!(served.address.ip().is_loopback());
    for (path, body, heard) in [
        ("next", json!({"grader": "anna"}), "next anna"),
        (
            "say",
            json!({"grader": "anna", "place": 3, "answer": {"x": [1]}}),
            "say anna 3 {\"x\":[1]}",
        ),
        ("skip", json!({"grader": "anna", "place": 0}), "skip anna 0"),
        ("undo", json!({"grader": "anna"}), "undo anna"),
    ] {
        let reply = served.post(&format!("/api/{path}"), &body);
        assert_eq!((reply.status, &reply.json()["heard"]), (200, &json!(heard)));
        // Text travels as text: JSON that says so, which no browser takes for a page.
        assert_eq!(reply.json()["text"], HOSTILE);
        assert_eq!(reply.headers["content-type"], "application/json");
        assert_eq!(reply.headers["x-content-type-options"], "nosniff");
        assert_eq!(reply.headers["cache-control"], "no-store");
    }
    assert_eq!(
        served.send("GET", "/api/study", &[], "").json()["kind"],
        "pairs"
    );
    assert_eq!(
        served.send("GET", "/api/results", &[], "").json()["heard"],
        "results"
    );
    let file = served.send("GET", "/export/a.jsonl", &[], "");
    assert_eq!((file.status, &file.body[..]), (200, "{}\n"));
    assert_eq!(
        file.headers["content-disposition"],
        "attachment; filename=\"a.jsonl\""
    );
    for path in ["/", "/results"] {
        let page = served.send("GET", path, &[], "");
        assert_eq!(page.status, 200);
        let policy = &page.headers["content-security-policy"];
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
        // Nothing in it makes HTML of a text, and nothing comes from elsewhere.
        let squeezed: String = page.body.split_whitespace().collect();
        for never in [
            "innerHTML=",
            "innerHTML+=",
            "insertAdjacentHTML",
            "document.write",
            "outerHTML",
            "src=",
            "https:",
        ] {
            assert!(!squeezed.contains(never), "{never}");
        }
    }
}

#[test]
fn only_this_machine_and_the_page_itself_may_ask() {
    let served = serve();
    let body = json!({"grader": "anna"}).to_string();
    let kind = ("Content-Type", "application/json");
    for more in [
        ("Host", "evil.example"),
        ("Host", "localhost.evil.example:80"),
        ("Origin", "http://evil.example"),
        ("Origin", "http://localhost:1"),
        ("Origin", "null"),
        ("Origin", "https://localhost"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
    ] {
        let reply = served.send("POST", "/api/next", &[kind, more], &body);
        reply.refused(403, None);
        let code = if more.0 == "Host" {
            "wrong_host"
        } else {
            "wrong_origin"
        };
        assert_eq!(reply.json()["error"]["code"], code, "{more:?}");
    }
    for path in ["/", "/api/results", "/export/a.jsonl"] {
        served
            .send("GET", path, &[("Host", "evil.example")], "")
            .refused(403, None);
    }
    for wrong in ["text/plain", "application/x-www-form-urlencoded"] {
        served
            .send("POST", "/api/next", &[("Content-Type", wrong)], &body)
            .refused(415, None);
    }
    assert_eq!(served.heard(), 0);
    let own = served.address.to_string();
    let origin = format!("http://{own}");
    let browser = [
        kind,
        ("Host", &own[..]),
        ("Origin", &origin),
        ("Sec-Fetch-Site", "same-origin"),
    ];
    assert_eq!(
        served.send("POST", "/api/next", &browser, &body).status,
        200
    );
}

#[test]
fn what_is_not_understood_is_refused_and_what_fails_stays_here() {
    let served = serve();
    served.send("GET", "/nowhere", &[], "").refused(404, None);
    served
        .send("GET", "/export/b.jsonl", &[], "")
        .refused(404, None);
    served
        .send("GET", "/export/..%2Fa.jsonl", &[], "")
        .refused(404, None);
    served.send("GET", "/api/next", &[], "").refused(405, None);
    served
        .send(
            "POST",
            "/api/results",
            &[("Content-Type", "application/json")],
            "",
        )
        .refused(405, None);
    served
        .post("/api/next", &json!({}))
        .refused(400, Some("grader"));
    served
        .post("/api/next", &json!({"grader": "a", "model": "b"}))
        .refused(400, Some("model"));
    served
        .post("/api/next", &json!({"grader": 3}))
        .refused(400, Some("grader"));
    served
        .post("/api/skip", &json!({"grader": "a", "place": -1}))
        .refused(400, Some("place"));
    served
        .send(
            "POST",
            "/api/next",
            &[("Content-Type", "application/json")],
            "{\"grader\"",
        )
        .refused(400, None);
    let large = json!({"grader": "x".repeat(70_000)});
    let said = served.post("/api/next", &large).refused(413, None);
    assert!(said.contains("65536"), "{said}");
    assert_eq!(served.heard(), 0);
    let refused = |grader: &str, status| {
        served
            .post("/api/next", &json!({"grader": grader}))
            .refused(status, None)
    };
    assert_eq!(refused("wrong", 400), "you are wrong");
    assert_eq!(refused("early", 409), "come again");
    let said = refused("broken", 500);
    assert!(
        said.contains("was not kept") && !said.contains("secret"),
        "{said}"
    );
    refused("panic", 500);
    assert_eq!(
        served.post("/api/next", &json!({"grader": "anna"})).status,
        200,
        "others go on"
    );
}
