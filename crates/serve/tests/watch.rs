//! The page of a run: what it is told, and who may ask.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Reply, head, parse, raw};
use serde_json::json;

#[test]
fn the_page_is_told_what_the_run_says_and_answers_this_machine_alone() {
    let tell = |seen: u64| match seen {
        0 => Ok(json!({"seen": 7, "points": {"loss": [[1.0, 5.5]]}})),
        7 => Ok(json!({"seen": 7, "pace": "running"})),
        8 => panic!("as the test wants it"),
        _ => Err("log.jsonl: line 3 is not a line of a run log".to_owned()),
    };
    let page = russet_serve::watch::page(0, Arc::new(tell)).unwrap();
    let (address, stop) = (page.address().unwrap(), Arc::new(AtomicBool::new(false)));
    assert!(address.ip().is_loopback());
    let told = stop.clone();
    let thread = std::thread::spawn(move || page.run(told));
    let get = |path: &str, headers: &[(&str, &str)]| -> Reply {
        parse(&raw(address, head("GET", path, headers, 0).as_bytes()))
    };

    let page = get("/", &[]);
    assert_eq!(page.status, 200);
    let policy = &page.headers["content-security-policy"];
    assert!(policy.contains("default-src 'none'") && policy.contains("connect-src 'self'"));
    assert!(page.body.contains("var uPlot=") && page.body.contains("The MIT License"));
    for never in ["innerHTML", "insertAdjacentHTML", "document.write", " src="] {
        assert!(!page.body.contains(never), "{never}");
    }

    assert_eq!(get("/api/run/0", &[]).json()["points"]["loss"][0][1], 5.5);
    assert_eq!(get("/api/run/7", &[]).json()["pace"], "running");
    let broken = get("/api/run/9", &[]);
    assert_eq!(
        (broken.status, &broken.json()["error"]["message"]),
        (500, &json!("log.jsonl: line 3 is not a line of a run log"))
    );
    assert_eq!(get("/api/run/8", &[]).status, 500, "and the page goes on");
    for path in [
        "/api/run/x",
        "/api/run/-1",
        "/api/run/",
        "/api",
        "/etc/passwd",
    ] {
        get(path, &[]).refused(404, None);
    }
    get("/api/run/0", &[("Host", "evil.example")]).refused(403, None);
    let post = head("POST", "/api/run/0", &[], 0);
    parse(&raw(address, post.as_bytes())).refused(405, None);

    stop.store(true, Ordering::SeqCst);
    thread.join().unwrap().unwrap();
}
