//! The other end of the wire: what passes is asked again, what does not is said, and nothing waits for ever.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use russet_serve::client::{ChatAnswer, ChatRequest, Client, ClientError, Patience};
use serde_json::{Map, Value, json};

/// A server that gives these responses one after another, a connection each, and then is gone; what it was asked.
fn server(responses: Vec<String>) -> (String, std::thread::JoinHandle<Vec<Value>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/v1", listener.local_addr().unwrap());
    let serve = move || {
        let mut asked = Vec::new();
        for response in responses {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut all, mut some) = (Vec::new(), [0; 4096]);
            loop {
                let read = stream.read(&mut some).unwrap();
                all.extend_from_slice(&some[..read]);
                let text = String::from_utf8_lossy(&all).into_owned();
                if let Some((_, body)) = text.split_once("\r\n\r\n")
                    && let Ok(body) = serde_json::from_str(body)
                {
                    asked.push(body);
                    break;
                }
                assert!(read > 0, "half a request: {text}");
            }
            // A client that has stopped listening is its own affair.
            let _ = stream.write_all(response.as_bytes());
        }
        asked
    };
    (address, std::thread::spawn(serve))
}

fn response(status: u16, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn said(text: &str) -> String {
    let choice =
        json!({"message": {"role": "assistant", "content": text}, "finish_reason": "stop"});
    response(200, &json!({"choices": [choice]}))
}

fn ask(text: &str) -> ChatRequest {
    let mut message = Map::new();
    message.insert("role".to_owned(), "user".into());
    message.insert("content".to_owned(), text.into());
    ChatRequest {
        messages: vec![message],
        tools: Vec::new(),
        max_tokens: 5,
        temperature: 0.5,
        top_p: 1.0,
        seed: 9,
    }
}

const PATIENCE: Patience = Patience {
    attempts: 3,
    wait: Duration::from_millis(10),
    answer: Duration::from_millis(200),
};

type Answers = Result<Vec<Result<ChatAnswer, ClientError>>, ClientError>;

fn chat(address: &str, texts: &[&str]) -> Answers {
    let client = Client::new(address, "big", None, PATIENCE).unwrap();
    let requests: Vec<ChatRequest> = texts.iter().map(|text| ask(text)).collect();
    client.chat(&requests, &AtomicBool::new(false))
}

#[test]
fn what_passes_by_itself_is_asked_again() {
    let busy = response(503, &json!({}));
    let limited = response(429, &json!({}));
    let (address, server) = server(vec![busy, limited, said("yes")]);
    let answers = chat(&address, &["hi"]).unwrap();
    let wanted = ChatAnswer {
        text: "yes".to_owned(),
        finish: "stop".to_owned(),
    };
    assert_eq!(answers, [Ok(wanted)]);
    let asked = server.join().unwrap();
    assert_eq!(asked.len(), 3);
    let wanted = json!({
        "model": "big", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "temperature": 0.5, "top_p": 1.0, "seed": 9,
    });
    assert_eq!(asked[2], wanted);
}

#[test]
fn one_that_is_refused_costs_itself_alone() {
    let refusal = response(400, &json!({"error": {"message": "hi is too long"}}));
    let (address, server) = server(vec![refusal]);
    assert_eq!(
        chat(&address, &["hi"]).unwrap(),
        [Err(ClientError::Refused(400, "hi is too long".to_owned()))]
    );
    server.join().unwrap();
}

#[test]
fn what_no_repetition_mends_is_said_at_once() {
    let refusal = response(404, &json!({"error": {"message": "there is no model big"}}));
    let (address, server) = server(vec![refusal]);
    let error = chat(&address, &["hi"]).unwrap_err().to_string();
    assert!(error.contains("404: there is no model big"), "{error}");
    assert_eq!(server.join().unwrap().len(), 1);
}

#[test]
fn a_server_that_is_gone_silent_or_no_server_is_given_up_after_some_waits() {
    let silence = |address: &str| match &chat(address, &["hi"]).unwrap()[..] {
        [Err(error @ ClientError::Silent(_))] => error.to_string(),
        answers => panic!("{answers:?}"),
    };
    let (gone, over) = server(Vec::new());
    over.join().unwrap();
    let error = silence(&gone);
    assert!(error.contains("after 3 attempts: no connection"), "{error}");
    // Takes connections, and that is all.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let begun = Instant::now();
    let address = format!("http://{}", silent.local_addr().unwrap());
    let error = silence(&address);
    assert!(error.contains("no answer within 0.2 s"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    let cut = "HTTP/1.1 200 X\r\nContent-Length: 99\r\n\r\n{".to_owned();
    let other = response(200, &json!({"object": "list"}));
    let (address, over) = server(vec![cut, "SSH-2.0\r\n".to_owned(), other]);
    let error = silence(&address);
    assert!(error.contains("none of OpenAI's API"), "{error}");
    assert_eq!(over.join().unwrap().len(), 3);
}

#[test]
fn what_was_answered_stays_where_another_meets_silence() {
    let (address, over) = server(vec![said("yes")]);
    let answers = chat(&address, &["hi", "ho"]).unwrap();
    over.join().unwrap();
    let heard = answers.iter().filter(|answer| answer.is_ok()).count();
    assert_eq!(heard, 1, "{answers:?}");
    let silent = |answer: &&Result<_, _>| matches!(answer, Err(ClientError::Silent(_)));
    assert_eq!(answers.iter().filter(silent).count(), 1, "{answers:?}");
}

#[test]
fn a_busy_server_is_waited_for_as_long_as_it_says_and_that_is_no_failure() {
    let busy = "HTTP/1.1 429 X\r\nRetry-After: 1\r\nContent-Length: 2\r\n\r\n{}".to_owned();
    let (address, over) = server(vec![busy, said("yes")]);
    let patience = Patience {
        attempts: 1,
        ..PATIENCE
    };
    let client = Client::new(&address, "big", None, patience).unwrap();
    let begun = Instant::now();
    let answers = client.chat(&[ask("hi")], &AtomicBool::new(false)).unwrap();
    assert!(answers[0].is_ok(), "{answers:?}");
    assert!(begun.elapsed() >= Duration::from_secs(1));
    over.join().unwrap();
    // One that says to wait for longer than anybody would is not waited for.
    let busy = |seconds: u64| {
        format!("HTTP/1.1 429 X\r\nRetry-After: {seconds}\r\nContent-Length: 2\r\n\r\n{{}}")
    };
    let (address, over) = server(vec![busy(1), busy(u64::MAX)]);
    let client = Client::new(&address, "big", None, patience).unwrap();
    let answers = client.chat(&[ask("hi")], &AtomicBool::new(false)).unwrap();
    assert!(
        matches!(answers[0], Err(ClientError::Silent(_))),
        "{answers:?}"
    );
    over.join().unwrap();
}

#[test]
fn a_wish_to_stop_is_heard_while_a_server_is_silent() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", silent.local_addr().unwrap());
    let patience = Patience {
        answer: Duration::from_secs(60),
        ..PATIENCE
    };
    let client = Client::new(&address, "big", None, patience).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            stop.store(true, Ordering::Relaxed);
        });
        let begun = Instant::now();
        let answers = client.chat(&[ask("hi"), ask("ho")], &stop);
        assert_eq!(answers, Err(ClientError::Stopped));
        assert!(begun.elapsed() < Duration::from_secs(5));
    });
}
