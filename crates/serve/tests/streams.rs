//! Streams say what whole answers say, as OpenAI's clients expect it, and stop being made when nobody reads them.

mod common;

use std::io::Read;
use std::time::{Duration, Instant};

use common::{
    completion, content, conversation, engine_config, serve, serve_slowly, settings, text,
};
use russet_serve::Limits;
use serde_json::{Value, json};

/// The text of each choice of a stream of a chat, and how each ended.
fn told(events: &[Value], choices: usize) -> Vec<(String, String)> {
    let mut told = vec![(String::new(), String::new()); choices];
    for event in events {
        for choice in event["choices"].as_array().unwrap() {
            let told = &mut told[choice["index"].as_u64().unwrap() as usize];
            assert!(told.1.is_empty(), "nothing follows an end");
            let text = choice.get("text").unwrap_or(&choice["delta"]["content"]);
            told.0 += text.as_str().unwrap_or_default();
            told.1 += choice["finish_reason"].as_str().unwrap_or_default();
        }
    }
    told
}

#[test]
fn a_stream_has_the_form_that_clients_expect() {
    let server = serve();
    let fields = json!({"stream": true, "max_tokens": 6, "ignore_eos": true, "stream_options": {"include_usage": true}});
    let events = server
        .post("/v1/chat/completions", &conversation("Hi", fields))
        .events();
    let first = &events[0]["choices"][0];
    assert_eq!(
        first["delta"],
        json!({"role": "assistant", "content": "", "refusal": null})
    );
    let (id, created) = (&events[0]["id"], &events[0]["created"]);
    for event in &events {
        let keys: Vec<&String> = event.as_object().unwrap().keys().collect();
        assert_eq!(
            keys,
            [
                "id",
                "object",
                "created",
                "model",
                "system_fingerprint",
                "choices",
                "usage"
            ]
        );
        assert_eq!((&event["id"], &event["created"]), (id, created));
        assert_eq!(event["object"], "chat.completion.chunk");
    }
    let (usage, last) = (&events[events.len() - 1], &events[events.len() - 2]);
    assert_eq!(
        (&usage["choices"], &usage["usage"]["completion_tokens"]),
        (&json!([]), &json!(6))
    );
    assert_eq!(
        (
            &last["choices"][0]["finish_reason"],
            &last["choices"][0]["delta"]
        ),
        (&json!("length"), &json!({}))
    );
    assert!(last["usage"].is_null());
    // Unasked there is no word of it.
    let events = server
        .post(
            "/v1/chat/completions",
            &conversation("Hi", json!({"stream": true, "max_tokens": 2})),
        )
        .events();
    assert!(events.iter().all(|event| event.get("usage").is_none()));
    let events = server
        .post(
            "/v1/completions",
            &completion(json!("Hi"), json!({"stream": true, "max_tokens": 2})),
        )
        .events();
    assert!(
        events
            .iter()
            .all(|event| event["object"] == "text_completion")
    );
}

#[test]
fn a_stream_says_what_the_whole_answer_says() {
    let server = serve();
    for fields in [
        json!({"max_tokens": 60, "ignore_eos": true}),
        json!({"max_tokens": 30, "n": 3}),
        json!({"max_tokens": 60, "ignore_eos": true, "logprobs": true, "top_logprobs": 2}),
        json!({"max_tokens": 30, "structured_outputs": {"regex": "[a-z ]{20}"}}),
        json!({"max_tokens": 1}),
    ] {
        let whole = server.chat("A tale", fields.clone());
        let mut streamed = fields.clone();
        streamed["stream"] = true.into();
        let events = server
            .post("/v1/chat/completions", &conversation("A tale", streamed))
            .events();
        let choices = whole["choices"].as_array().unwrap();
        let told = told(&events, choices.len());
        for (index, choice) in choices.iter().enumerate() {
            assert_eq!(told[index].0, content(&whole, index), "{fields}");
            assert_eq!(told[index].1, choice["finish_reason"].as_str().unwrap());
        }
        let scores = events
            .iter()
            .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array());
        let scores: Vec<Value> = scores.flatten().cloned().collect();
        if fields.get("logprobs").is_some() {
            assert_eq!(Value::from(scores), choices[0]["logprobs"]["content"]);
        }
    }
    for fields in [
        json!({"max_tokens": 40, "ignore_eos": true, "logprobs": 1}),
        json!({"max_tokens": 10, "echo": true, "n": 2}),
        json!({"max_tokens": 10, "echo": true, "logprobs": 1, "n": 2}),
        json!({"max_tokens": 0, "echo": true}),
    ] {
        let prompt = json!(["The fox", "A hen"]);
        let whole = server.complete(prompt.clone(), fields.clone());
        let mut streamed = fields.clone();
        streamed["stream"] = true.into();
        let events = server
            .post("/v1/completions", &completion(prompt, streamed))
            .events();
        let choices = whole["choices"].as_array().unwrap();
        let told = told(&events, choices.len());
        for (index, choice) in choices.iter().enumerate() {
            assert_eq!(told[index].0, text(&whole, index), "{fields}");
            assert_eq!(told[index].1, choice["finish_reason"].as_str().unwrap());
            let of = |event: &&Value| event["choices"][0]["index"] == index;
            for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                let parts = events
                    .iter()
                    .filter(of)
                    .filter_map(|event| event["choices"][0]["logprobs"][list].as_array());
                let parts: Vec<Value> = parts.flatten().cloned().collect();
                if choice["logprobs"].is_object() {
                    assert_eq!(Value::from(parts), choice["logprobs"][list], "{list}");
                }
            }
        }
    }
}

#[test]
fn no_part_of_a_stop_string_is_ever_told() {
    let server = serve();
    let fields = json!({"max_tokens": 150, "ignore_eos": true});
    let whole = server.complete(json!("The fox"), fields.clone());
    let chars: Vec<char> = text(&whole, 0).chars().collect();
    for from in (0..chars.len() - 6).step_by(9) {
        let stop: String = chars[from..from + 2 + from % 5].iter().collect();
        let wanted = &text(&whole, 0)[..text(&whole, 0).find(&stop).unwrap()];
        let mut fields = fields.clone();
        (fields["stop"], fields["stream"]) = (json!([stop]), true.into());
        let events = server
            .post("/v1/completions", &completion(json!("The fox"), fields))
            .events();
        let told = told(&events, 1);
        assert_eq!(
            (told[0].0.as_str(), told[0].1.as_str()),
            (wanted, "stop"),
            "{stop:?}"
        );
    }
}

#[test]
fn silence_has_comments() {
    let limits = Limits {
        keep_alive: Duration::from_millis(20),
        ..Limits::default()
    };
    let mut settings = settings();
    settings.limits = limits;
    let server = serve_slowly(settings, engine_config(), 120);
    let body = conversation(
        "Hi",
        json!({"stream": true, "max_tokens": 3, "ignore_eos": true}),
    );
    let reply = server.post("/v1/chat/completions", &body);
    assert!(reply.body.contains(": keep-alive\n\n"), "{}", reply.body);
    assert!(reply.events().len() >= 3);
}

#[test]
fn who_leaves_is_not_answered_any_more() {
    let server = serve_slowly(settings(), engine_config(), 5);
    for (streamed, path) in [
        (true, "/v1/chat/completions"),
        (false, "/v1/chat/completions"),
    ] {
        let fields = json!({"stream": streamed, "ignore_eos": true});
        let mut stream = server.open(path, &conversation("A tale", fields));
        server.wait_for("russet_num_requests_running", 1.0);
        if streamed {
            stream.read_exact(&mut [0; 200]).unwrap();
        }
        let before = server.metric("russet_engine_steps_total");
        drop(stream);
        let begun = Instant::now();
        server.wait_for("russet_num_requests_running", 0.0);
        // A whole context would have taken 1,024 steps of 5 ms.
        assert!(
            begun.elapsed() < Duration::from_secs(2),
            "{:?}",
            begun.elapsed()
        );
        assert!(server.metric("russet_engine_steps_total") - before < 400.0);
    }
    // Those that wait go as well.
    let busy: Vec<_> = (0..4)
        .map(|_| {
            server.open(
                "/v1/completions",
                &completion(json!("a"), json!({"ignore_eos": true, "max_tokens": 400})),
            )
        })
        .collect();
    server.wait_for("russet_num_requests_running", 4.0);
    let waits = server.open("/v1/completions", &completion(json!("a"), json!({})));
    server.wait_for("russet_num_requests_waiting", 1.0);
    drop(waits);
    server.wait_for("russet_num_requests_waiting", 0.0);
    drop(busy);
    server.wait_for("russet_num_requests_running", 0.0);
    // Streamed or not, they are counted as what they are.
    let cut = "russet_request_finished_total{reason=\"disconnected\"}";
    server.wait_for(cut, 7.0);
}

#[test]
fn hundreds_of_disconnects_leave_nothing_behind() {
    let server = serve();
    let wanted = server.chat("Hello", json!({"max_tokens": 12}));
    std::thread::scope(|scope| {
        for worker in 0..4u64 {
            let server = &server;
            scope.spawn(move || {
                for round in 0..100u64 {
                    let number = worker * 1000 + round;
                    let fields = json!({"stream": number % 3 != 0, "max_tokens": 100, "ignore_eos": true, "n": 1 + number % 3});
                    let mut stream = server.open("/v1/chat/completions", &conversation("A tale", fields));
                    let mut some = vec![0; (number * 37 % 900) as usize];
                    match number % 4 {
                        0 => {}
                        1 => std::thread::sleep(Duration::from_micros(number * 11 % 4000)),
                        _ => drop(stream.read(&mut some)),
                    }
                }
            });
        }
    });
    server.wait_for("russet_num_requests_running", 0.0);
    server.wait_for("russet_num_requests_waiting", 0.0);
    assert_eq!(
        content(&server.chat("Hello", json!({"max_tokens": 12})), 0),
        content(&wanted, 0)
    );
    assert_eq!(server.metric("russet_panics_total"), 0.0);
    assert_eq!(server.metric("russet_engine_restarts_total"), 0.0);
}
