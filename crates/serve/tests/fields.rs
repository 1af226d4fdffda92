//! Every field of the two ways to ask for text: carried out, or refused by name.

mod common;

use common::{CONTEXT, MODEL, VOCAB, completion, content, conversation, serve, text, tokenizer};
use serde_json::{Value, json};

#[test]
fn a_completion_has_openais_shape() {
    let server = serve();
    let answer = server.complete(
        json!("Once upon a time"),
        json!({"max_tokens": 5, "ignore_eos": true}),
    );
    let keys: Vec<&String> = answer.as_object().unwrap().keys().collect();
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
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(
        (&answer["object"], &answer["model"]),
        (&json!("text_completion"), &json!(MODEL))
    );
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(
        (&choice["index"], &choice["logprobs"]),
        (&json!(0), &Value::Null)
    );
    let prompt = tokenizer().encode("Once upon a time", true).unwrap().len();
    assert_eq!(
        answer["usage"],
        json!({"prompt_tokens": prompt, "completion_tokens": 5, "total_tokens": prompt + 5,
               "prompt_tokens_details": {"cached_tokens": 0}})
    );
    // Sixteen where nothing is said; an empty prompt begins a text.
    let answer = server.complete(json!(""), json!({"ignore_eos": true}));
    assert_eq!(answer["usage"]["completion_tokens"], 16);
    assert_eq!(answer["usage"]["prompt_tokens"], 1);
}

#[test]
fn prompts_are_texts_tokens_or_lists_of_either() {
    let server = serve();
    let fields = || json!({"max_tokens": 8});
    let ids = |text: &str| tokenizer().encode(text, true).unwrap();
    let (one, two) = ("The fox ran", "A hen slept");
    let alone: Vec<Value> = [one, two]
        .map(|prompt| server.complete(json!(prompt), fields()))
        .into();
    for prompt in [json!([one, two]), json!([ids(one), ids(two)])] {
        let both = server.complete(prompt, fields());
        assert_eq!(
            (text(&both, 0), text(&both, 1)),
            (text(&alone[0], 0), text(&alone[1], 0))
        );
        assert_eq!(both["choices"][1]["index"], 1);
    }
    assert_eq!(
        text(&server.complete(json!(ids(one)), fields()), 0),
        text(&alone[0], 0)
    );
    let several = server.complete(json!([one, two]), json!({"max_tokens": 8, "n": 3}));
    assert_eq!(several["choices"].as_array().unwrap().len(), 6);
    assert_eq!(
        (text(&several, 0), text(&several, 3)),
        (text(&alone[0], 0), text(&alone[1], 0))
    );
    assert!(
        text(&several, 0) != text(&several, 1),
        "answers have seeds of their own"
    );
    let message = server
        .post("/v1/completions", &completion(json!([1, VOCAB]), json!({})))
        .refused(400, Some("prompt"));
    assert!(message.contains("the model knows only tokens"), "{message}");
}

#[test]
fn an_echo_brings_the_prompt_and_its_log_probabilities() {
    let server = serve();
    let prompt = "The fox, the hen é";
    let plain = server.complete(
        json!(prompt),
        json!({"max_tokens": 6, "ignore_eos": true, "logprobs": 2}),
    );
    let echo = json!({"max_tokens": 6, "ignore_eos": true, "echo": true});
    let echoed = server.complete(json!(prompt), echo);
    assert_eq!(text(&echoed, 0), format!("{prompt}{}", text(&plain, 0)));
    let scored = json!({"max_tokens": 6, "ignore_eos": true, "echo": true, "logprobs": 2, "n": 2});
    let scored = server.complete(json!(prompt), scored);
    assert_eq!(text(&scored, 0), text(&echoed, 0));
    let ids = tokenizer().encode(prompt, true).unwrap();
    for (index, plain) in [(0, &plain), (1, &Value::Null)] {
        let logprobs = &scored["choices"][index]["logprobs"];
        for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(
                logprobs[list].as_array().unwrap().len(),
                ids.len() + 6,
                "{list}"
            );
        }
        assert!(logprobs["token_logprobs"][0].is_null() && logprobs["top_logprobs"][0].is_null());
        assert!(logprobs["token_logprobs"][1].as_f64().unwrap() < 0.0);
        let whole: Vec<char> = text(&scored, index).chars().collect();
        let (tokens, offsets) = (
            logprobs["tokens"].as_array().unwrap(),
            &logprobs["text_offset"],
        );
        for (place, token) in tokens.iter().enumerate().skip(1) {
            let token = token.as_str().unwrap();
            if token.starts_with("bytes:") || token.starts_with("<|") {
                continue;
            }
            let from = offsets[place].as_u64().unwrap() as usize;
            let there: String = whole[from..].iter().take(token.chars().count()).collect();
            // A space that begins the text is no token's alone.
            assert!(
                there == token || place == 1,
                "{token:?} at {from}: {there:?}"
            );
        }
        if !plain.is_null() {
            let tail = logprobs["token_logprobs"].as_array().unwrap()[ids.len()..].to_vec();
            assert_eq!(
                Value::from(tail),
                plain["choices"][0]["logprobs"]["token_logprobs"]
            );
        }
    }
    // A prompt's tokens cost what they cost when they are generated.
    let generated = server.complete(
        json!(ids),
        json!({"max_tokens": 8, "ignore_eos": true, "logprobs": 0, "temperature": 0}),
    );
    let tokens = generated["choices"][0]["logprobs"]["token_logprobs"].clone();
    let silent = json!({"max_tokens": 0, "echo": true, "logprobs": 1});
    let silent = server.complete(json!(prompt), silent);
    assert_eq!(text(&silent, 0), prompt);
    assert_eq!(silent["usage"]["completion_tokens"], 0);
    assert_eq!(tokens.as_array().unwrap().len(), 8);
    // Of a prompt alone there may be a whole context.
    let whole: Vec<u32> = (0..CONTEXT as u32).map(|id| 10 + id % 400).collect();
    let scored = server.complete(
        json!(whole),
        json!({"max_tokens": 0, "echo": true, "logprobs": 0}),
    );
    let logprobs = &scored["choices"][0]["logprobs"]["token_logprobs"];
    assert_eq!(logprobs.as_array().unwrap().len(), CONTEXT);
    assert_eq!(scored["choices"][0]["finish_reason"], "length");
    server
        .post(
            "/v1/completions",
            &completion(
                json!(whole),
                json!({"max_tokens": 1, "echo": true, "logprobs": 0}),
            ),
        )
        .refused(400, Some("prompt"));
    // One token has nothing before it.
    let one = server.complete(
        json!([5]),
        json!({"max_tokens": 0, "echo": true, "logprobs": 1}),
    );
    assert_eq!(
        one["choices"][0]["logprobs"]["token_logprobs"],
        json!([null])
    );
}

#[test]
fn log_probabilities_go_with_the_text() {
    let server = serve();
    let fields = json!({"max_tokens": 40, "ignore_eos": true, "logprobs": true, "top_logprobs": 3});
    let answer = server.chat("Hello", fields);
    let scored = answer["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap()
        .clone();
    assert_eq!(scored.len(), 40);
    for token in &scored {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        let logprob = |token: &Value| token["logprob"].as_f64().unwrap();
        assert!(logprob(&top[0]) >= logprob(&top[1]) && logprob(&top[0]) >= logprob(token));
    }
    // The greedy token is the most probable one.
    let fields = json!({"max_tokens": 4, "ignore_eos": true, "logprobs": true, "top_logprobs": 1, "temperature": 0});
    let greedy = server.chat("Hello", fields);
    for token in greedy["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap()
    {
        assert_eq!(token["token"], token["top_logprobs"][0]["token"]);
    }
    let none = server.chat("Hello", json!({"max_tokens": 4}));
    assert!(none["choices"][0]["logprobs"].is_null());
}

#[test]
fn what_shapes_the_draw_shapes_the_answer() {
    let server = serve();
    let say = |fields: Value| {
        let mut fields = fields;
        fields["max_tokens"] = 24.into();
        fields["ignore_eos"] = true.into();
        text(&server.complete(json!("The fox"), fields), 0).to_owned()
    };
    let plain = say(json!({}));
    assert_eq!(
        plain,
        say(json!({"seed": 1})),
        "the same seed gives the same text"
    );
    assert!(plain != say(json!({"seed": 2})));
    let unseeded = |_| say(json!({"seed": null}));
    assert!(
        unseeded(0) != unseeded(1),
        "without a seed every request has its own"
    );
    let greedy = say(json!({"temperature": 0}));
    assert_eq!(greedy, say(json!({"temperature": 0, "seed": 9})));
    // Each of these leaves one token, so the seed does not matter.
    for fields in [
        json!({"top_k": 1, "seed": 7}),
        json!({"top_p": 1e-6, "seed": 7}),
        json!({"min_p": 1.0, "seed": 7}),
    ] {
        assert_eq!(greedy, say(fields.clone()), "{fields}");
    }
    assert!(plain != say(json!({"temperature": 1.7})));
    // A random model repeats itself greedily; penalties end that.
    for fields in [
        json!({"temperature": 0, "presence_penalty": 2.0}),
        json!({"temperature": 0, "frequency_penalty": 2.0}),
        json!({"temperature": 0, "repetition_penalty": 3.0}),
    ] {
        assert!(greedy != say(fields.clone()), "{fields}");
    }
    let tokenizer = tokenizer();
    let id = tokenizer.token_id("e").unwrap();
    assert_eq!(
        say(json!({"logit_bias": {(id.to_string()): 100}})),
        "e".repeat(24)
    );
}

#[test]
fn an_answer_ends_where_it_is_told_to() {
    let server = serve();
    let whole = server.complete(
        json!("The fox"),
        json!({"max_tokens": 200, "ignore_eos": true}),
    );
    let whole = text(&whole, 0);
    let chars: Vec<char> = whole.chars().collect();
    for (from, length) in [(0, 1), (5, 1), (20, 3), (40, 7), (61, 2)] {
        let stop: String = chars[from..from + length].iter().collect();
        if stop.contains('\u{fffd}') {
            continue;
        }
        let wanted = &whole[..whole.find(&stop).unwrap()];
        for given in [json!(stop), json!(["never in it", stop])] {
            let fields =
                json!({"max_tokens": 200, "ignore_eos": true, "stop": given, "logprobs": 0});
            let answer = server.complete(json!("The fox"), fields);
            assert_eq!(text(&answer, 0), wanted, "{stop:?}");
            assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        }
    }
    let first = server.chat("Hi", json!({"max_tokens": 1, "ignore_eos": true}));
    assert_eq!(first["choices"][0]["finish_reason"], "length");
    let newer = server.chat(
        "Hi",
        json!({"max_completion_tokens": 3, "ignore_eos": true}),
    );
    assert_eq!(newer["usage"]["completion_tokens"], 3);
    // As long as the context lasts.
    let all = server.chat("Hi", json!({"ignore_eos": true}));
    assert_eq!(all["usage"]["total_tokens"], CONTEXT);
    assert_eq!(all["choices"][0]["finish_reason"], "length");
    // A model that ends by itself: everything but its end is forbidden.
    let ended = server.complete(json!("The fox"), json!({"logit_bias": {"3": 100}}));
    assert_eq!(
        (text(&ended, 0), &ended["choices"][0]["finish_reason"]),
        ("", &json!("stop"))
    );
}

#[test]
fn answers_keep_the_form_that_is_asked_for() {
    let server = serve();
    let schema = json!({"type": "object", "properties": {"name": {"enum": ["fox", "hen"]}, "legs": {"type": "integer", "minimum": 2, "maximum": 4}},
                        "required": ["name", "legs"], "additionalProperties": false});
    let named = |strict: bool| json!({"type": "json_schema", "json_schema": {"name": "animal", "strict": strict, "schema": schema}});
    let check = |answer: &str| {
        let json: Value =
            serde_json::from_str(answer).unwrap_or_else(|error| panic!("{error}: {answer:?}"));
        assert!(json["name"] == "fox" || json["name"] == "hen");
        assert!((2..=4).contains(&json["legs"].as_i64().unwrap()));
        assert_eq!(json.as_object().unwrap().len(), 2);
    };
    // A random model would write blanks between the parts for ever.
    let blanks: Vec<(String, i32)> = (0..VOCAB as u32)
        .filter(|&id| {
            let bytes = tokenizer().token_bytes(id).to_vec();
            bytes.len() > 1 && bytes.iter().all(u8::is_ascii_whitespace)
                || matches!(&bytes[..], b"\n" | b"\t" | b"\r" | b" ")
        })
        .map(|id| (id.to_string(), -100))
        .collect();
    let blanks: Value = blanks
        .into_iter()
        .map(|(id, bias)| (id, bias.into()))
        .collect::<serde_json::Map<String, Value>>()
        .into();
    for fields in [
        json!({"response_format": named(true)}),
        json!({"response_format": named(false), "seed": 5}),
        json!({"structured_outputs": {"json": schema}}),
    ] {
        let mut fields = fields;
        fields["logit_bias"] = blanks.clone();
        let answer = server.chat("An animal", fields.clone());
        check(content(&answer, 0));
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        check(text(
            &server.complete(json!("An animal"), {
                let mut f = fields;
                f["max_tokens"] = 200.into();
                f
            }),
            0,
        ));
    }
    let object =
        json!({"response_format": {"type": "json_object"}, "max_tokens": 60, "logit_bias": blanks});
    let object = server.chat("Anything", object);
    assert!(content(&object, 0).starts_with('{'));
    let free = server.chat(
        "Hi",
        json!({"response_format": {"type": "text"}, "max_tokens": 4}),
    );
    assert_eq!(
        content(&free, 0),
        content(&server.chat("Hi", json!({"max_tokens": 4})), 0)
    );
    let regex = server.chat("Hi", json!({"structured_outputs": {"regex": "[ab]{7}"}}));
    assert!(content(&regex, 0).len() == 7 && content(&regex, 0).chars().all(|c| "ab".contains(c)));
    let choice = server.chat(
        "Hi",
        json!({"structured_outputs": {"choice": ["yes", "no"]}}),
    );
    assert!(["yes", "no"].contains(&content(&choice, 0)));
    let grammar = server.chat(
        "Hi",
        json!({"structured_outputs": {"grammar": "start: \"x\" | \"yy\""}}),
    );
    assert!(["x", "yy"].contains(&content(&grammar, 0)));
}

/// A refusal of one changed field.
#[track_caller]
fn refused(server: &common::Served, path: &str, body: Value, param: &str) {
    let reply = server.post(path, &body);
    let message = reply.refused(400, Some(param));
    let last = param.rsplit('.').next().unwrap();
    let last = last.split('[').next().unwrap();
    assert!(message.contains(last) || message.len() > 20, "{message}");
}

#[test]
fn a_field_that_cannot_be_carried_out_is_named() {
    let server = serve();
    for (field, value) in [
        ("audio", json!({})),
        ("function_call", json!("auto")),
        ("functions", json!([])),
        ("prediction", json!({})),
        ("reasoning_effort", json!("low")),
        ("verbosity", json!("low")),
        ("web_search_options", json!({})),
        ("best_of", json!(1)),
        ("prompt", json!("a")),
        ("anything", json!(null)),
        ("temperature", json!(-1)),
        ("temperature", json!(2.1)),
        ("temperature", json!("hot")),
        ("top_p", json!(0)),
        ("top_p", json!(1.1)),
        ("top_k", json!(-2)),
        ("min_p", json!(2)),
        ("presence_penalty", json!(3)),
        ("frequency_penalty", json!(-3)),
        ("repetition_penalty", json!(0)),
        ("logit_bias", json!({"a": 1})),
        ("logit_bias", json!({"1": 101})),
        ("logit_bias", json!({"100000": 1})),
        ("n", json!(0)),
        ("n", json!(1000)),
        ("max_tokens", json!(0)),
        ("max_completion_tokens", json!(0)),
        ("max_tokens", json!(-1)),
        ("stop", json!(5)),
        ("stop", json!([""])),
        ("stop", json!(vec!["a"; 17])),
        ("seed", json!(1.5)),
        ("stream", json!("yes")),
        ("stream_options", json!({"include_usage": true})),
        ("top_logprobs", json!(2)),
        ("store", json!(true)),
        ("service_tier", json!("flex")),
        ("modalities", json!(["text", "audio"])),
        ("metadata", json!({"a": "b".repeat(513)})),
        ("user", json!("u".repeat(513))),
        ("tool_choice", json!("auto")),
        ("parallel_tool_calls", json!(true)),
        ("response_format", json!({"type": "xml"})),
        ("response_format", json!({"type": "json_schema"})),
        ("structured_outputs", json!({})),
        ("structured_outputs", json!({"regex": "a", "grammar": "b"})),
        ("structured_outputs", json!({"regex": "("})),
        ("messages", json!([])),
    ] {
        refused(
            &server,
            "/v1/chat/completions",
            conversation("Hi", json!({field: value})),
            field,
        );
    }
    for (field, value) in [
        ("best_of", json!(2)),
        ("suffix", json!("end")),
        ("logprobs", json!(21)),
        ("logprobs", json!(true)),
        ("max_tokens", json!(0)),
        ("messages", json!([])),
        ("tools", json!([])),
        ("top_logprobs", json!(1)),
        ("prompt", json!([])),
        ("prompt", json!([[]])),
        ("prompt", json!({"a": 1})),
        ("max_completion_tokens", json!(3)),
    ] {
        refused(
            &server,
            "/v1/completions",
            completion(json!("Hi"), json!({field: value})),
            field,
        );
    }
    for (message, param) in [
        (json!({"role": "robot", "content": "a"}), "messages[0].role"),
        (json!({"role": "user"}), "messages[0].content"),
        (json!({"role": "user", "content": 5}), "messages[0].content"),
        (
            json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}),
            "messages[0].content",
        ),
        (
            json!({"role": "user", "content": "a", "name": "Bob"}),
            "messages[0].name",
        ),
        (
            json!({"role": "user", "content": "a", "extra": 1}),
            "messages[0].extra",
        ),
        (
            json!({"role": "user", "content": "a", "tool_call_id": "x"}),
            "messages[0].tool_call_id",
        ),
        (
            json!({"role": "tool", "content": "a"}),
            "messages[0].tool_call_id",
        ),
        (
            json!({"role": "assistant", "content": "a", "refusal": "no"}),
            "messages[0].refusal",
        ),
        (json!({"content": "a"}), "messages[0].role"),
    ] {
        let reply = server.post(
            "/v1/chat/completions",
            &json!({"model": MODEL, "messages": [message]}),
        );
        reply.refused(400, Some(param));
    }
    let deep = (0..70).fold(
        json!({"type": "string"}),
        |inner, _| json!({"type": "array", "items": inner}),
    );
    let format = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": deep}});
    let reply = server.post(
        "/v1/chat/completions",
        &conversation("Hi", json!({"response_format": format})),
    );
    let message = reply.refused(400, Some("response_format.json_schema.schema"));
    assert!(
        message.contains("nests 70 deep") || message.contains("deep"),
        "{message}"
    );
    let format = json!({"type": "json_schema", "json_schema": {"name": "a"}});
    let reply = server.post(
        "/v1/chat/completions",
        &conversation("Hi", json!({"response_format": format})),
    );
    let message = reply.refused(400, Some("response_format.json_schema.schema"));
    assert!(message.contains("is missing"), "{message}");
    // A field without a model, twice, or of another model.
    server
        .post("/v1/chat/completions", &json!({"messages": []}))
        .refused(400, Some("model"));
    let json = [("Content-Type", "application/json")];
    let twice = "{\"model\": \"tiny\", \"prompt\": \"a\", \"n\": 1, \"n\": 2}";
    server
        .send("POST", "/v1/completions", &json, twice)
        .refused(400, Some("n"));
    let other = server.post("/v1/completions", &json!({"model": "other", "prompt": "a"}));
    other.refused(404, Some("model"));
    assert_eq!(other.json()["error"]["code"], "model_not_found");
    let long = server.post(
        "/v1/completions",
        &completion(json!("fox ".repeat(1200)), json!({})),
    );
    long.refused(400, Some("prompt"));
    assert_eq!(long.json()["error"]["code"], "context_length_exceeded");
}

#[test]
fn fields_that_change_no_answer_change_no_answer() {
    let server = serve();
    let plain = server.chat("Hi", json!({"max_tokens": 6}));
    let fields = json!({
        "max_tokens": 6, "user": "u", "metadata": {"a": "b"}, "store": false, "service_tier": "auto", "safety_identifier": "s",
        "prompt_cache_key": "k", "modalities": ["text"], "logprobs": false, "top_logprobs": null, "n": 1, "stream": false,
        "response_format": null, "tools": [], "tool_choice": "none", "top_k": -1,
    });
    let labelled = server.chat("Hi", fields);
    assert_eq!(content(&plain, 0), content(&labelled, 0));
    // An answer is sent back as it came, and parts of a text are a text.
    let history = |content: Value| {
        let mut said = plain["choices"][0]["message"].clone();
        said["annotations"] = json!([]);
        said["audio"] = Value::Null;
        let messages = json!([{"role": "developer", "content": "Be kind."}, {"role": "user", "content": content}, said,
                              {"role": "user", "content": "More"}]);
        let body = json!({"model": MODEL, "messages": messages, "max_tokens": 6, "seed": 1});
        let reply = server.post("/v1/chat/completions", &body);
        assert_eq!(reply.status, 200, "{reply:?}");
        common::content(&reply.json(), 0).to_owned()
    };
    let parts = json!([{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]);
    assert_eq!(history(json!("Hi")), history(parts));
}

#[test]
fn models_tokens_and_health_are_told() {
    let server = serve();
    let models = server.get("/v1/models").json();
    assert_eq!(models["data"][0]["id"], MODEL);
    assert_eq!(models["data"][0]["max_model_len"], CONTEXT);
    assert_eq!(server.get("/v1/models/tiny").json(), models["data"][0]);
    server.get("/v1/models/other").refused(404, Some("model"));
    for path in ["/health", "/ready"] {
        assert_eq!(server.get(path).status, 200);
    }
    let text = "The fox <|im_end|> é";
    let ids = tokenizer().encode(text, true).unwrap();
    let told = server
        .post(
            "/tokenize",
            &json!({"prompt": text, "return_token_strs": true}),
        )
        .json();
    assert_eq!(
        (&told["tokens"], &told["count"]),
        (&json!(ids), &json!(ids.len()))
    );
    assert_eq!(told["token_strs"].as_array().unwrap().len(), ids.len());
    let bare = server
        .post(
            "/tokenize",
            &json!({"model": MODEL, "prompt": text, "add_special_tokens": false}),
        )
        .json();
    assert_eq!(bare["tokens"], json!(ids[1..]));
    let back = server
        .post("/detokenize", &json!({"tokens": ids[1..]}))
        .json();
    assert_eq!(back["prompt"], text);
    let messages = [russet_tokenizer::Message::new("user", "Hi")];
    let wanted = tokenizer().encode_chat(&messages, true).unwrap();
    let chat = server
        .post(
            "/tokenize",
            &json!({"messages": [{"role": "user", "content": "Hi"}]}),
        )
        .json();
    assert_eq!(chat["tokens"], json!(wanted));
    server
        .post("/tokenize", &json!({}))
        .refused(400, Some("prompt"));
    server
        .post("/tokenize", &json!({"prompt": "a", "other": 1}))
        .refused(400, Some("other"));
    server
        .post("/detokenize", &json!({"tokens": [VOCAB]}))
        .refused(400, Some("tokens"));
    server
        .post("/detokenize", &json!({"tokens": [], "model": "x"}))
        .refused(404, Some("model"));
    server.get("/nothing").refused(404, None);
    server.get("/v1/completions").refused(405, None);
    let page = server.get("/");
    assert!(
        page.body.starts_with("<!doctype html>")
            && page.headers["content-security-policy"].starts_with("default-src 'none'")
    );
    assert!(server.metric("russet_prompt_tokens_total") == 0.0);
    server.complete(
        serde_json::json!("The fox"),
        json!({"max_tokens": 7, "ignore_eos": true}),
    );
    assert_eq!(server.metric("russet_generation_tokens_total"), 7.0);
    assert_eq!(
        server.metric("russet_time_to_first_token_seconds_count"),
        1.0
    );
    assert_eq!(
        server.metric("russet_inter_token_latency_seconds_count"),
        6.0
    );
    server.wait_for("russet_num_requests_running", 0.0); // told a moment after the answer
}
