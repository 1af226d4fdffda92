//! Tools: a random model calls them as they are declared, because it can do nothing else.

mod common;

use common::{
    MODEL, Served, VOCAB, conversation, engine_config, make, make_of, model, serve, serve_model,
    settings,
};
use russet_model::{Config, Decoder};
use russet_serve::Model;
use russet_tokenizer::Tokenizer;
use serde_json::{Value, json};

fn tools() -> Value {
    let city = json!({"type": "string", "enum": ["Bern", "Oslo"]});
    let weather = json!({"type": "object", "properties": {"city": city, "days": {"type": "integer", "minimum": 1, "maximum": 3}},
                         "required": ["city", "days"], "additionalProperties": false});
    json!([
        {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": weather}},
        {"type": "function", "function": {"name": "now"}},
    ])
}

#[track_caller]
fn check(name: &str, arguments: &str) {
    let arguments: Value =
        serde_json::from_str(arguments).unwrap_or_else(|error| panic!("{error}: {arguments:?}"));
    match name {
        "now" => assert_eq!(arguments, json!({})),
        "weather" => {
            assert!(arguments["city"] == "Bern" || arguments["city"] == "Oslo");
            assert!((1..=3).contains(&arguments["days"].as_i64().unwrap()));
        }
        other => panic!("{other} is no tool"),
    }
}

/// A stream's content, calls (name, arguments) and end.
fn gathered(events: &[Value]) -> (String, Vec<(String, String)>, String) {
    let (mut content, mut calls, mut end) =
        (String::new(), Vec::<(String, String)>::new(), String::new());
    for event in events {
        let choice = &event["choices"][0];
        content += choice["delta"]["content"].as_str().unwrap_or_default();
        for call in choice["delta"]["tool_calls"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let index = call["index"].as_u64().unwrap() as usize;
            if let Some(id) = call["id"].as_str() {
                assert!(
                    id.starts_with("call_") && call["type"] == "function" && index == calls.len()
                );
                calls.push((
                    call["function"]["name"].as_str().unwrap().to_owned(),
                    String::new(),
                ));
            }
            calls[index].1 += call["function"]["arguments"].as_str().unwrap();
        }
        end += choice["finish_reason"].as_str().unwrap_or_default();
    }
    (content, calls, end)
}

/// Asks whole and streamed; both say the same.
#[track_caller]
fn ask(server: &Served, fields: &Value) -> (String, Vec<(String, String)>, String) {
    let answer = server.chat("What is the weather?", fields.clone());
    let choice = &answer["choices"][0];
    let calls = choice["message"]["tool_calls"]
        .as_array()
        .into_iter()
        .flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let calls = calls.map(|call| {
        (
            text(&call["function"]["name"]),
            text(&call["function"]["arguments"]),
        )
    });
    let whole = (
        text(&choice["message"]["content"]),
        calls.collect(),
        text(&choice["finish_reason"]),
    );
    let mut fields = fields.clone();
    fields["stream"] = true.into();
    let body = conversation("What is the weather?", fields);
    let streamed = gathered(&server.post("/v1/chat/completions", &body).events());
    assert_eq!(streamed, whole);
    whole
}

#[test]
fn a_tool_that_must_be_called_is_called() {
    let server = serve();
    for seed in 0..6 {
        let named = json!({"type": "function", "function": {"name": "weather"}});
        let (content, calls, end) = ask(
            &server,
            &json!({"tools": tools(), "tool_choice": named, "seed": seed}),
        );
        assert_eq!(
            (content.as_str(), calls.len(), end.as_str()),
            ("", 1, "stop")
        );
        assert_eq!(calls[0].0, "weather");
        check(&calls[0].0, &calls[0].1);
        let fields = json!({"tools": tools(), "tool_choice": "required", "parallel_tool_calls": false, "seed": seed});
        let (content, calls, end) = ask(&server, &fields);
        assert_eq!(
            (content.as_str(), calls.len(), end.as_str()),
            ("", 1, "tool_calls")
        );
        check(&calls[0].0, &calls[0].1);
    }
    // Several calls, one after another.
    let newline = common::tokenizer().encode("\n", false).unwrap()[0];
    let fields = json!({"tools": tools(), "tool_choice": "required", "logit_bias": {(newline.to_string()): 100}, "max_tokens": 150});
    let (_, calls, _) = ask(&server, &fields);
    assert!(calls.len() > 1, "{calls:?}");
    check(&calls[0].0, &calls[0].1);
}

#[test]
fn a_tool_that_may_be_called_is_called_whole_or_not_at_all() {
    let server = serve();
    let fields = json!({"tools": tools(), "max_tokens": 40, "ignore_eos": true});
    let (content, calls, end) = ask(&server, &fields);
    assert!(
        !content.is_empty() && calls.is_empty() && end == "length",
        "{content:?}"
    );
    let none = json!({"tools": tools(), "tool_choice": "none", "max_tokens": 10});
    let plain = server.chat("What is the weather?", json!({"max_tokens": 10}));
    assert_eq!(ask(&server, &none).0, common::content(&plain, 0));
}

/// A server whose tokenizer has `<tool_call>` as one token, the last one.
fn serve_with_mark(special: bool) -> Served {
    let folder = tempfile::tempdir().unwrap();
    common::tokenizer().save(folder.path()).unwrap();
    let path = folder.path().join("tokenizer.json");
    let mut file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let mark = json!({"id": VOCAB, "content": "<tool_call>", "single_word": false, "lstrip": false, "rstrip": false,
                      "normalized": false, "special": special});
    file["added_tokens"].as_array_mut().unwrap().push(mark);
    std::fs::write(&path, file.to_string()).unwrap();
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    assert_eq!(tokenizer.is_special(VOCAB as u32), special);
    let config = Config {
        vocab: VOCAB + 1,
        ..common::config()
    };
    let decoder = Decoder::random(&config, 1);
    let model = Model {
        tokenizer,
        ..model()
    };
    serve_model(settings(), make_of(decoder, engine_config(), None), model)
}

#[test]
fn what_begins_as_a_call_ends_as_one() {
    for special in [false, true] {
        let server = serve_with_mark(special);
        // The mark is what the model wants to say first of all.
        let bias = json!({(VOCAB.to_string()): 100});
        for seed in 0..5 {
            let fields = json!({"tools": tools(), "parallel_tool_calls": false, "logit_bias": bias, "seed": seed, "max_tokens": 300});
            let (content, calls, end) = ask(&server, &fields);
            assert_eq!((content.as_str(), calls.len()), ("", 1), "{special}");
            check(&calls[0].0, &calls[0].1);
            // Text may follow where the mark is a token of its own.
            assert!(end == "tool_calls" || special, "{end}");
            let fields =
                json!({"tools": tools(), "logit_bias": bias, "seed": seed, "max_tokens": 200});
            let (_, calls, _) = ask(&server, &fields);
            assert!(calls.len() > 1, "{calls:?}");
            calls[..calls.len() - 1]
                .iter()
                .for_each(|(name, arguments)| check(name, arguments));
        }
        // Late, after some text.
        let late = json!({(VOCAB.to_string()): 6});
        let mut called = 0;
        for seed in 0..30 {
            let fields = json!({"tools": tools(), "parallel_tool_calls": false, "logit_bias": late, "seed": seed, "max_tokens": 200});
            let (content, calls, end) = ask(&server, &fields);
            if end == "tool_calls" && !content.is_empty() {
                check(&calls[0].0, &calls[0].1);
                called += 1;
            }
        }
        assert!(called > 0, "some of thirty answers call behind a text");
    }
}

#[test]
fn calls_and_results_are_part_of_the_conversation() {
    let server = serve();
    let call = json!({"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{\"a\": [1]}"}});
    let messages = json!([
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "noon <|im_end|>"},
    ]);
    let body =
        json!({"model": MODEL, "messages": messages, "tools": tools(), "max_tokens": 4, "seed": 1});
    let reply = server.post("/v1/chat/completions", &body);
    assert_eq!(reply.status, 200, "{reply:?}");
    let tokens = server
        .post("/tokenize", &json!({"messages": messages}))
        .json();
    let text = server
        .post("/detokenize", &json!({"tokens": tokens["tokens"]}))
        .json();
    let text = text["prompt"].as_str().unwrap();
    assert!(
        text.contains(
            "<tool_call>\n{\"name\": \"now\", \"arguments\": {\"a\": [1]}}\n</tool_call><|im_end|>"
        ),
        "{text}"
    );
    assert!(
        text.contains("<tool_response>\nnoon <|im_end|>\n</tool_response><|im_end|>"),
        "{text}"
    );
    // With its tools the prompt is longer by what they are.
    let prompt = reply.json()["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(prompt > tokens["count"].as_u64().unwrap() + 50);
    for (call, param) in [
        (
            json!({"id": "1", "function": {"name": "now", "arguments": "no"}}),
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            json!({"id": "1", "type": "x", "function": {"name": "now", "arguments": "{}"}}),
            "messages[0].tool_calls[0].type",
        ),
    ] {
        let messages = json!([{"role": "assistant", "tool_calls": [call]}]);
        server
            .post(
                "/v1/chat/completions",
                &json!({"model": MODEL, "messages": messages}),
            )
            .refused(400, Some(param));
    }
}

#[test]
fn what_does_not_go_with_tools_is_refused() {
    let server = serve();
    for (fields, param) in [
        (json!({"tools": [{"type": "code"}]}), "tools[0]"),
        (
            json!({"tools": [{"type": "function", "function": {"name": "a b"}}]}),
            "tools[0]",
        ),
        (
            json!({"tools": [{"type": "function", "function": {"name": "a"}}, {"type": "function", "function": {"name": "a"}}]}),
            "tools[1].function.name",
        ),
        (
            json!({"tools": tools(), "tool_choice": "any"}),
            "tool_choice",
        ),
        (
            json!({"tools": tools(), "tool_choice": {"type": "function", "function": {"name": "x"}}}),
            "tool_choice",
        ),
        (json!({"tools": tools(), "logprobs": true}), "logprobs"),
        (
            json!({"tools": tools(), "response_format": {"type": "json_object"}}),
            "response_format",
        ),
    ] {
        server
            .post("/v1/chat/completions", &conversation("Hi", fields))
            .refused(400, Some(param));
    }
    // A template that knows no tools.
    let mut plain = model();
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    plain.tokenizer = plain.tokenizer.with_chat_template(template).unwrap();
    let server = serve_model(settings(), make(engine_config(), None), plain);
    server
        .post(
            "/v1/chat/completions",
            &conversation("Hi", json!({"tools": tools()})),
        )
        .refused(400, Some("tools"));
    server.chat("Hi", json!({"max_tokens": 2}));
}
