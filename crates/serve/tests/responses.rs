//! `/v1/responses` says what `/v1/chat/completions` says, in items and events.

mod common;

use common::{MODEL, Reply, Served, content, engine_config, serve, serve_slowly, settings};
use serde_json::{Value, json};

fn body(input: Value, fields: Value) -> Value {
    let mut body = json!({"model": MODEL, "input": input, "seed": 1});
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

#[track_caller]
fn ask(server: &Served, input: Value, fields: Value) -> Value {
    let reply = server.post("/v1/responses", &body(input, fields));
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()
}

/// The events of a stream: named as they say themselves, numbered from 0 on.
#[track_caller]
fn events(reply: &Reply) -> Vec<Value> {
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.headers["content-type"], "text/event-stream");
    let mut events = Vec::new();
    for block in reply
        .body
        .split("\n\n")
        .filter(|block| !block.is_empty() && !block.starts_with(':'))
    {
        let (name, data) = block.split_once("\ndata: ").unwrap();
        let event: Value = serde_json::from_str(data).unwrap();
        assert_eq!(name.strip_prefix("event: "), event["type"].as_str());
        assert_eq!(event["sequence_number"], events.len());
        events.push(event);
    }
    events
}

/// What differs from one time to the next is made the same.
fn without_names(mut response: Value) -> Value {
    (response["id"], response["created_at"]) = (Value::Null, Value::Null);
    for item in response["output"].as_array_mut().unwrap() {
        item["id"] = Value::Null;
        if item["type"] == "function_call" {
            item["call_id"] = Value::Null;
        }
    }
    response
}

/// Follows the events as a client does: what they add up to is the response that the last one brings.
#[track_caller]
fn check_stream(events: &[Value]) -> Value {
    let kinds: Vec<&str> = events
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    assert_eq!(kinds[..2], ["response.created", "response.in_progress"]);
    let (first, last) = (
        &events[0]["response"],
        &events[events.len() - 1]["response"],
    );
    assert_eq!(
        (&first["status"], &first["output"]),
        (&json!("in_progress"), &json!([]))
    );
    assert_eq!((&first["id"], &first["usage"]), (&last["id"], &Value::Null));
    let status = last["status"].as_str().unwrap();
    assert_eq!(kinds[kinds.len() - 1], format!("response.{status}"));
    let mut items: Vec<Value> = Vec::new();
    let (mut said, mut scored, mut open) = (String::new(), Vec::new(), false);
    for event in &events[2..events.len() - 1] {
        let kind = event["type"].as_str().unwrap();
        let item = &event["item"];
        assert_eq!(event["output_index"], items.len(), "{event}");
        if let Some(id) = event.get("item_id") {
            assert!(open && id.as_str().is_some_and(|id| id.contains('_')));
        }
        match kind {
            "response.output_item.added" => {
                assert!(!open && item["status"] == "in_progress");
                (said, scored, open) = (String::new(), Vec::new(), true);
            }
            "response.content_part.added" => assert_eq!(event["part"]["text"], ""),
            "response.output_text.delta" => {
                said += event["delta"].as_str().unwrap();
                scored.extend(event["logprobs"].as_array().unwrap().clone());
            }
            "response.function_call_arguments.delta" => said += event["delta"].as_str().unwrap(),
            "response.output_text.done" => {
                assert_eq!(
                    (&event["text"], &event["logprobs"]),
                    (&json!(said), &json!(scored))
                );
            }
            "response.content_part.done" => assert_eq!(event["part"]["text"], said),
            "response.function_call_arguments.done" => assert_eq!(event["arguments"], said),
            "response.output_item.done" => {
                let text = match item["type"].as_str() {
                    Some("message") => &item["content"][0]["text"],
                    _ => &item["arguments"],
                };
                assert_eq!(text, &json!(said));
                items.push(item.clone());
                open = false;
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(last["output"], Value::from(items));
    last.clone()
}

/// Asks whole and streamed; both say the same.
#[track_caller]
fn both(server: &Served, input: Value, fields: Value) -> Value {
    let whole = ask(server, input.clone(), fields.clone());
    let mut fields = fields;
    fields["stream"] = true.into();
    let streamed = events(&server.post("/v1/responses", &body(input, fields)));
    let last = check_stream(&streamed);
    let (mut last, whole_again) = (without_names(last), without_names(whole.clone()));
    // The second time the prompt lies in the cache.
    last["usage"]["input_tokens_details"] = whole_again["usage"]["input_tokens_details"].clone();
    assert_eq!(last, whole_again);
    whole
}

fn said(response: &Value) -> &str {
    response["output"][0]["content"][0]["text"]
        .as_str()
        .unwrap()
}

#[test]
fn a_response_says_what_a_chat_says() {
    let server = serve();
    let chat = |fields: Value| {
        let mut fields = fields;
        fields["max_tokens"] = 20.into();
        server.chat("A tale", fields)
    };
    let wanted = chat(json!({"ignore_eos": true}));
    let got = both(
        &server,
        json!("A tale"),
        json!({"max_output_tokens": 20, "ignore_eos": true}),
    );
    assert_eq!(said(&got), content(&wanted, 0));
    assert_eq!(
        (&got["object"], &got["model"]),
        (&json!("response"), &json!(MODEL))
    );
    assert_eq!(
        (&got["status"], &got["incomplete_details"]),
        (
            &json!("incomplete"),
            &json!({"reason": "max_output_tokens"})
        )
    );
    let item = &got["output"][0];
    assert_eq!(
        (&item["type"], &item["role"], &item["status"]),
        (&json!("message"), &json!("assistant"), &json!("incomplete"))
    );
    assert!(got["id"].as_str().unwrap().starts_with("resp_"));
    assert!(item["id"].as_str().unwrap().starts_with("msg_"));
    let (usage, tokens) = (&got["usage"], &wanted["usage"]);
    assert_eq!(usage["input_tokens"], tokens["prompt_tokens"]);
    assert_eq!(usage["output_tokens"], 20);
    assert_eq!(usage["total_tokens"], tokens["total_tokens"]);
    assert_eq!(usage["output_tokens_details"]["reasoning_tokens"], 0);
    // One that is over by itself, in a form.
    let fields = json!({"structured_outputs": {"regex": "[a-z]{6}"}, "temperature": 0.5, "top_p": 0.9, "top_k": 20});
    let got = both(&server, json!("A tale"), fields.clone());
    let mut same = fields;
    same["max_tokens"] = 20.into();
    assert_eq!(said(&got), content(&server.chat("A tale", same), 0));
    assert_eq!(
        (&got["status"], &got["incomplete_details"]),
        (&json!("completed"), &Value::Null)
    );
    assert_eq!(
        (&got["temperature"], &got["top_p"]),
        (&json!(0.5), &json!(0.9_f32))
    );
    // The conversation is the chat's.
    let input = json!([
        {"role": "user", "content": "Hi"},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
         "content": [{"type": "output_text", "text": "Ho", "annotations": [], "logprobs": []}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "He"}, {"type": "input_text", "text": "y"}]},
    ]);
    let fields = json!({"instructions": "Be kind.", "max_output_tokens": 12, "ignore_eos": true});
    let got = ask(&server, input, fields);
    let messages = json!([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"},
                          {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "Hey"}]);
    let wanted = server.post(
        "/v1/chat/completions",
        &json!({"model": MODEL, "messages": messages, "seed": 1, "max_tokens": 12, "ignore_eos": true}),
    );
    assert_eq!(said(&got), content(&wanted.json(), 0));
    assert_eq!(got["instructions"], "Be kind.");
}

#[test]
fn log_probabilities_and_forms_are_those_of_a_chat() {
    let server = serve();
    let fields = json!({"include": ["message.output_text.logprobs"], "top_logprobs": 2, "max_output_tokens": 9, "ignore_eos": true});
    let got = both(&server, json!("Hi"), fields);
    let chat = json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 9, "ignore_eos": true});
    let wanted = server.chat("Hi", chat);
    assert_eq!(
        got["output"][0]["content"][0]["logprobs"],
        wanted["choices"][0]["logprobs"]["content"]
    );
    assert_eq!(got["top_logprobs"], 2);
    let schema = json!({"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false,
                        "x-guidance": {"whitespace_flexible": false}});
    let format = json!({"type": "json_schema", "name": "n", "strict": true, "schema": schema});
    let got = both(&server, json!("Hi"), json!({"text": {"format": format}}));
    let answer: Value = serde_json::from_str(said(&got)).unwrap();
    assert!(answer["n"] == 1 || answer["n"] == 2);
    assert_eq!(got["text"]["format"], format);
    let got = ask(
        &server,
        json!("Hi"),
        json!({"text": {"format": {"type": "text"}}, "max_output_tokens": 2}),
    );
    assert_eq!(got["text"]["format"]["type"], "text");
}

#[test]
fn tools_are_called_and_answered() {
    let server = serve();
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string", "enum": ["Bern", "Oslo"]}},
                            "required": ["city"], "additionalProperties": false});
    let tools = json!([{"type": "function", "name": "weather", "parameters": parameters, "strict": true},
                       {"type": "function", "name": "now", "description": "The time"}]);
    let named = json!({"type": "function", "name": "weather"});
    let fields = json!({"tools": tools, "tool_choice": named});
    let got = both(&server, json!("The weather?"), fields);
    assert_eq!((&got["tools"], &got["tool_choice"]), (&tools, &named));
    assert_eq!(
        (&got["status"], got["output"].as_array().unwrap().len()),
        (&json!("completed"), 1)
    );
    let call = got["output"][0].clone();
    assert_eq!(
        (&call["type"], &call["name"]),
        (&json!("function_call"), &json!("weather"))
    );
    assert!(call["call_id"].as_str().unwrap().starts_with("call_"));
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
    assert!(arguments["city"] == "Bern" || arguments["city"] == "Oslo");
    // Any number of calls, of either; streams of them add up.
    for seed in 0..4 {
        let fields = json!({"tools": tools, "tool_choice": "required", "max_output_tokens": 120, "seed": seed});
        let got = both(&server, json!("The weather?"), fields);
        // Where it was cut short in the beginning of a call, that is text.
        let items = got["output"].as_array().unwrap();
        let whole = items.len() - usize::from(got["status"] == "incomplete");
        let called =
            |item: &Value| item["type"] == "function_call" && item["status"] == "completed";
        assert!(items[..whole].iter().all(called), "{got}");
        let fields = json!({"tools": tools, "max_output_tokens": 60, "seed": seed});
        both(&server, json!("The weather?"), fields);
    }
    // What it called and what came of it go back as a chat's do.
    let output = json!({"type": "function_call_output", "call_id": call["call_id"], "output": [{"type": "input_text", "text": "rain"}]});
    let input = json!([{"role": "user", "content": "The weather?"}, call, output]);
    let fields =
        json!({"tools": tools, "tool_choice": "none", "max_output_tokens": 12, "ignore_eos": true});
    let got = ask(&server, input, fields);
    let function = json!({"name": "weather", "arguments": call["arguments"]});
    let messages = json!([
        {"role": "user", "content": "The weather?"},
        {"role": "assistant", "tool_calls": [{"id": call["call_id"], "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": call["call_id"], "content": "rain"},
    ]);
    let chat = json!({"model": MODEL, "messages": messages, "seed": 1, "max_tokens": 12, "ignore_eos": true});
    let wanted = server.post("/v1/chat/completions", &chat).json();
    assert_eq!(said(&got), content(&wanted, 0));
    assert_eq!(
        got["usage"]["input_tokens"],
        wanted["usage"]["prompt_tokens"]
    );
}

#[test]
fn a_field_is_carried_out_or_refused_by_name() {
    let server = serve();
    let tool = json!({"type": "function", "name": "a"});
    for (fields, param) in [
        (json!({"input": null}), "input"),
        (
            json!({"input": [{"role": "user", "content": "a", "x": 1}]}),
            "input[0].x",
        ),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"temperature": 3}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (
            json!({"include": ["message.output_text.logprobs"], "top_logprobs": 21}),
            "top_logprobs",
        ),
        (
            json!({"include": ["reasoning.encrypted_content"]}),
            "include",
        ),
        (
            json!({"include": ["message.output_text.logprobs"], "tools": [tool]}),
            "include",
        ),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0]"),
        (
            json!({"tools": [{"type": "function", "function": {"name": "a"}}]}),
            "tools[0]",
        ),
        (json!({"tools": [tool, tool]}), "tools[1].name"),
        (
            json!({"tools": [tool], "tool_choice": {"type": "function", "function": {"name": "a"}}}),
            "tool_choice",
        ),
        (
            json!({"tools": [tool], "text": {"format": {"type": "json_object"}}}),
            "text.format",
        ),
        (json!({"parallel_tool_calls": false}), "parallel_tool_calls"),
        (json!({"text": {"verbosity": "low"}}), "text.verbosity"),
        (json!({"text": {"format": {"type": "xml"}}}), "text.format"),
        (
            json!({"text": {"format": {"type": "json_schema", "name": "", "schema": {}}}}),
            "text.format.name",
        ),
        (
            json!({"text": {"format": {"type": "json_schema", "name": "a"}}}),
            "text.format.schema",
        ),
        (
            json!({"text": {"format": {"type": "json_object"}}, "structured_outputs": {"regex": "a"}}),
            "structured_outputs",
        ),
        (json!({"stream_options": {}}), "stream_options"),
        (
            json!({"stream": true, "stream_options": {"include_usage": true}}),
            "stream_options.include_usage",
        ),
        (json!({"store": true}), "store"),
        (
            json!({"previous_response_id": "resp_1"}),
            "previous_response_id",
        ),
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"background": true}), "background"),
        (json!({"truncation": "auto"}), "truncation"),
        (json!({"service_tier": "flex"}), "service_tier"),
        (json!({"metadata": {"a": "b".repeat(600)}}), "metadata"),
        (json!({"reasoning": {"effort": "high"}}), "reasoning"),
        (json!({"max_tool_calls": 1}), "max_tool_calls"),
        (json!({"messages": []}), "messages"),
        (json!({"n": 2}), "n"),
    ] {
        let reply = server.post("/v1/responses", &body(json!("Hi"), fields));
        reply.refused(400, Some(param));
    }
    let long = server.post(
        "/v1/responses",
        &body(json!("fox ".repeat(2000)), json!({})),
    );
    long.refused(400, Some("input"));
    assert_eq!(long.json()["error"]["code"], "context_length_exceeded");
    // What changes nothing may be said.
    let plain = ask(&server, json!("Hi"), json!({"max_output_tokens": 6}));
    let got = ask(
        &server,
        json!("Hi"),
        json!({"max_output_tokens": 6, "store": false, "previous_response_id": null, "background": false, "truncation": "disabled",
               "include": [], "tools": [], "tool_choice": "none", "metadata": {"a": "b"}, "user": "u", "service_tier": "auto",
               "safety_identifier": "s", "prompt_cache_key": "k", "top_logprobs": 0, "text": {}}),
    );
    assert_eq!(said(&got), said(&plain));
    assert_eq!(
        (&got["metadata"], &got["user"]),
        (&json!({"a": "b"}), &json!("u"))
    );
    assert_eq!(got["store"], false);
    // Nothing is there to be asked for afterwards.
    server
        .get(&format!("/v1/responses/{}", got["id"].as_str().unwrap()))
        .refused(404, None);
}

#[test]
fn a_stream_that_breaks_says_so_in_its_last_event() {
    let mut limited = settings();
    limited.limits.deadline = std::time::Duration::from_millis(150);
    let server = serve_slowly(limited, engine_config(), 20);
    let fields = json!({"stream": true, "ignore_eos": true});
    let told = events(&server.post("/v1/responses", &body(json!("Hi"), fields)));
    let last = &told[told.len() - 1];
    assert_eq!(last["type"], "response.failed");
    let response = &last["response"];
    assert_eq!(
        (&response["status"], &response["error"]["code"]),
        (&json!("failed"), &json!("server_error"))
    );
    assert!(
        response["error"]["message"]
            .as_str()
            .unwrap()
            .contains("time")
    );
    let whole = server.post(
        "/v1/responses",
        &body(json!("Hi"), json!({"ignore_eos": true})),
    );
    whole.refused(504, None);
}
