//! `/v1/embeddings`: vectors of length 1 that depend on their text and their model alone.

mod common;

use common::{
    CONTEXT, MODEL, Served, VOCAB, adapter, config, decoder, engine_config, make, serve,
    serve_slowly, serve_with, settings, tokenizer,
};
use russet_engine::{Engine, EngineConfig};
use russet_kernels::Pool;
use russet_tensor::{Ctx, Segments};
use serde_json::{Value, json};
use std::sync::Arc;

fn body(input: Value, fields: Value) -> Value {
    let mut body = json!({"model": MODEL, "input": input});
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

#[track_caller]
fn embed(server: &Served, input: Value, fields: Value) -> Value {
    let reply = server.post("/v1/embeddings", &body(input, fields));
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()
}

fn vector(answer: &Value, index: usize) -> Vec<f32> {
    let values = answer["data"][index]["embedding"].as_array().unwrap();
    let value = |value: &Value| value.as_f64().unwrap() as f32;
    values.iter().map(value).collect()
}

/// By hand: the mean of a whole pass, brought to length 1.
fn wanted(tokens: &[u32]) -> Vec<f32> {
    let pool = Arc::new(Pool::new(1).unwrap());
    let segments = Segments::packed(&[tokens.len()]);
    let hidden = decoder().forward(&mut Ctx::new(pool), tokens, &segments, None);
    let width = config().width;
    let sum = |d: usize| {
        let column = hidden.data()[d..].iter().step_by(width);
        column.map(|&value| f64::from(value)).sum::<f64>()
    };
    let mean: Vec<f64> = (0..width).map(|d| sum(d) / tokens.len() as f64).collect();
    let length = mean.iter().map(|value| value * value).sum::<f64>().sqrt();
    mean.iter().map(|value| (value / length) as f32).collect()
}

#[test]
fn a_vector_is_the_mean_of_the_final_hidden_states_of_length_1() {
    let server = serve();
    let text = "The fox and the hen. ".repeat(30);
    let ids = tokenizer().encode(&text, true).unwrap();
    assert!(ids.len() > 128);
    let answer = embed(&server, json!(text), json!({}));
    assert_eq!(
        (&answer["object"], &answer["model"]),
        (&json!("list"), &json!(MODEL))
    );
    let one = &answer["data"][0];
    assert_eq!(
        (&one["object"], &one["index"]),
        (&json!("embedding"), &json!(0))
    );
    assert_eq!(
        answer["usage"],
        json!({"prompt_tokens": ids.len(), "total_tokens": ids.len()})
    );
    let (got, wanted) = (vector(&answer, 0), wanted(&ids));
    assert_eq!(got.len(), config().width);
    // The engine's mean is f32 before it is scaled: two roundings of 2^-24.
    for (got, wanted) in got.iter().zip(&wanted) {
        assert!((got - wanted).abs() < 3e-7, "{got}, {wanted}");
    }
    let squares = got.iter().map(|&value| f64::from(value).powi(2));
    assert!((squares.sum::<f64>() - 1.0).abs() < 1e-6);
    assert_eq!(server.metric("russet_generation_tokens_total"), 0.0);
    assert_eq!(
        server.metric("russet_prompt_tokens_total"),
        ids.len() as f64
    );
    assert_eq!(
        server.metric("russet_request_finished_total{reason=\"embedding\"}"),
        1.0
    );
}

#[test]
fn inputs_are_texts_tokens_or_lists_of_either_and_vectors_numbers_or_base64() {
    let server = serve();
    let ids = |text: &str| tokenizer().encode(text, true).unwrap();
    let (one, two) = ("The fox ran", "A hen slept é");
    let alone = [one, two].map(|text| vector(&embed(&server, json!(text), json!({})), 0));
    assert!(alone[0] != alone[1]);
    for input in [json!([one, two]), json!([ids(one), ids(two)])] {
        let both = embed(&server, input, json!({}));
        assert_eq!(
            (&vector(&both, 0), &vector(&both, 1)),
            (&alone[0], &alone[1])
        );
        assert_eq!(both["data"][1]["index"], 1);
        let tokens = ids(one).len() + ids(two).len();
        assert_eq!(both["usage"]["total_tokens"], tokens);
    }
    let fields = json!({"dimensions": config().width, "encoding_format": "float", "user": "u"});
    let tokens = embed(&server, json!(ids(one)), fields);
    assert_eq!(vector(&tokens, 0), alone[0]);
    let packed = embed(&server, json!(two), json!({"encoding_format": "base64"}));
    let text = packed["data"][0]["embedding"].as_str().unwrap();
    let letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::new();
    for four in text.as_bytes().chunks(4) {
        let bits = four.iter().fold(0u32, |bits, &letter| {
            bits << 6 | letters.find(char::from(letter)).unwrap_or(0) as u32
        });
        bytes.extend(&bits.to_be_bytes()[1..]);
    }
    let values = bytes.chunks_exact(4).take(config().width);
    let values: Vec<f32> = values
        .map(|four| f32::from_le_bytes(four.try_into().unwrap()))
        .collect();
    assert_eq!(values, alone[1]);
    // A whole context, which nothing has to follow.
    let long: Vec<u32> = (0..CONTEXT as u32).map(|id| 10 + id % 400).collect();
    embed(&server, json!(long), json!({}));
}

#[test]
fn a_field_is_carried_out_or_refused_by_name() {
    let server = serve();
    for (input, fields, param) in [
        (json!(""), json!({}), "input"),
        (json!([]), json!({}), "input"),
        (json!(["a", ""]), json!({}), "input"),
        (json!(["a", 1]), json!({}), "input"),
        (json!([[1], []]), json!({}), "input"),
        (json!([1, VOCAB]), json!({}), "input"),
        (json!({}), json!({}), "input"),
        (Value::Null, json!({}), "input"),
        (json!(vec!["a"; 2049]), json!({}), "input"),
        (json!("a"), json!({"dimensions": 16}), "dimensions"),
        (json!("a"), json!({"dimensions": 0}), "dimensions"),
        (
            json!("a"),
            json!({"encoding_format": "int8"}),
            "encoding_format",
        ),
        (json!("a"), json!({"user": "u".repeat(1000)}), "user"),
        (json!("a"), json!({"normalize": true}), "normalize"),
    ] {
        server
            .post("/v1/embeddings", &body(input, fields))
            .refused(400, Some(param));
    }
    server
        .post("/v1/embeddings", &json!({"model": MODEL}))
        .refused(400, Some("input"));
    server
        .post("/v1/embeddings", &json!({"model": "other", "input": "a"}))
        .refused(404, Some("model"));
    let long = server.post(
        "/v1/embeddings",
        &body(json!(vec![5; CONTEXT + 1]), json!({})),
    );
    long.refused(400, Some("input"));
    assert_eq!(long.json()["error"]["code"], "context_length_exceeded");
}

#[test]
fn hundreds_of_inputs_neither_fill_the_queue_nor_stand_before_others() {
    let config = EngineConfig {
        queue: 8,
        ..engine_config()
    };
    let mut small = settings();
    small.limits.answers = 4;
    let server = serve_slowly(small, config, 2);
    let inputs: Vec<u32> = (0..300).map(|n| 10 + n).collect();
    let inputs: Vec<[u32; 1]> = inputs.iter().map(|&id| [id]).collect();
    let stream = server.open("/v1/embeddings", &body(json!(inputs), json!({})));
    let embedded = || server.metric("russet_request_finished_total{reason=\"embedding\"}");
    while !server.get("/metrics").body.contains("reason=\"embedding\"") {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    // Another's answer comes while they run.
    server.complete(json!("The fox"), json!({"max_tokens": 2}));
    assert!(embedded() < 200.0, "{}", embedded());
    // Who leaves is not embedded any more.
    drop(stream);
    std::thread::sleep(std::time::Duration::from_millis(700));
    assert!(embedded() < 300.0, "{}", embedded());
    let cut = "russet_request_finished_total{reason=\"disconnected\"}";
    assert!((1.0..=4.0).contains(&server.metric(cut)));
    let answer = embed(&server, json!(inputs[..40]), json!({}));
    let alone = embed(&server, json!(inputs[39]), json!({}));
    assert_eq!(vector(&answer, 39), vector(&alone, 0));
}

#[test]
fn an_adapter_has_vectors_of_its_own_whatever_runs_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    adapter(1, folder.path());
    let mut with = settings();
    with.adapters
        .push(("one".to_owned(), folder.path().to_owned()));
    let server = serve_with(with, make(engine_config(), None));
    let say = |model: &str| {
        vector(
            &embed(&server, json!("The fox"), json!({"model": model})),
            0,
        )
    };
    let alone = [MODEL, "one"].map(say);
    assert!(alone[0] != alone[1]);
    std::thread::scope(|scope| {
        let (server, alone, say) = (&server, &alone, &say);
        for number in 0..8 {
            scope.spawn(move || match number % 4 {
                3 => drop(server.complete(json!("A tale"), json!({"max_tokens": 40}))),
                even if even % 2 == 0 => assert_eq!(say(MODEL), alone[0]),
                _ => assert_eq!(say("one"), alone[1]),
            });
        }
    });
}

#[test]
fn what_is_no_number_is_no_vector() {
    let make = Box::new(|| {
        let mut decoder = decoder();
        decoder.visit_mut(&mut |tensor| {
            if let Some(value) = tensor.data_mut().last_mut() {
                *value = f32::NAN;
            }
        });
        Engine::new(decoder, Arc::new(Pool::new(1).unwrap()), engine_config())
    });
    let server = serve_with(settings(), make);
    let reply = server.post("/v1/embeddings", &body(json!("a"), json!({})));
    reply.refused(500, None);
    assert_eq!(reply.json()["error"]["code"], "not_finite");
}
