//! Adapters are models: listed, loaded, replaced and mixed while others run.

mod common;

use common::{MODEL, adapter, engine_config, make, serve_slowly, serve_with, settings, text};
use serde_json::{Value, json};

fn fields(model: &str) -> Value {
    json!({"model": model, "max_tokens": 20, "ignore_eos": true, "temperature": 0})
}

#[test]
fn an_adapter_is_a_model_among_models() {
    let folder = tempfile::tempdir().unwrap();
    let mut with = settings();
    for (name, seed) in [("one", 1), ("two/2", 2)] {
        let path = folder.path().join(seed.to_string());
        adapter(seed, &path);
        with.adapters.push((name.to_owned(), path));
    }
    let server = serve_with(with, make(engine_config(), None));
    let models = server.get("/v1/models").json();
    let ids: Vec<&Value> = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| &model["id"])
        .collect();
    assert_eq!(ids, [MODEL, "one", "two/2"]);
    let one = &models["data"][1];
    assert_eq!((&one["parent"], &one["root"]), (&json!(MODEL), &json!("1")));
    assert!(models["data"][0]["parent"].is_null());
    assert_eq!(server.get("/v1/models/two/2").json(), models["data"][2]);
    let say = |model: &str| text(&server.complete(json!("The fox"), fields(model)), 0).to_owned();
    let alone: Vec<String> = [MODEL, "one", "two/2"].map(say).into();
    assert!(alone[0] != alone[1] && alone[1] != alone[2] && alone[0] != alone[2]);
    // Mixed in one batch each says what it says alone.
    let server = &server;
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..12)
            .map(|number| {
                (
                    number % 3,
                    scope.spawn(move || say_through(server, number % 3)),
                )
            })
            .collect();
        for (model, said) in asked {
            assert_eq!(said.join().unwrap(), alone[model]);
        }
    });
    let text = server.get("/metrics").body;
    assert!(
        text.contains("russet_model_requests_total{model=\"two/2\"} 5\n"),
        "{text}"
    );
    // Requests load none where that was not asked for.
    for path in ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"] {
        let body = match path.contains("unload") {
            true => json!({"lora_name": "one"}),
            false => json!({"lora_name": "three", "lora_path": "1"}),
        };
        server.post(path, &body).refused(403, None);
    }
}

fn say_through(server: &common::Served, model: usize) -> String {
    let model = [MODEL, "one", "two/2"][model];
    text(&server.complete(json!("The fox"), fields(model)), 0).to_owned()
}

#[test]
fn adapters_come_and_go_while_others_run() {
    let below = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    for seed in [1, 2] {
        adapter(seed, &below.path().join(format!("sub/{seed}")));
    }
    adapter(3, &outside.path().join("3"));
    #[cfg(unix)]
    std::os::unix::fs::symlink(outside.path().join("3"), below.path().join("link")).unwrap();
    std::fs::create_dir(below.path().join("broken")).unwrap();
    let mut open = settings();
    open.adapter_dir = Some(below.path().to_owned());
    let server = serve_slowly(open, engine_config(), 2);
    let load = |name: &str, path: &str, again: bool| {
        let mut body = json!({"lora_name": name, "lora_path": path});
        if again {
            body["load_inplace"] = true.into();
        }
        server.post("/v1/load_lora_adapter", &body)
    };
    server
        .post(
            "/v1/completions",
            &common::completion(json!("a"), json!({"model": "a"})),
        )
        .refused(404, Some("model"));
    assert_eq!(
        load("a", "sub/1", false).body,
        "Success: LoRA adapter 'a' added successfully."
    );
    let say = || text(&server.complete(json!("The fox"), fields("a")), 0).to_owned();
    let first = say();
    load("a", "sub/2", false).refused(400, Some("lora_name"));
    assert_eq!(first, say());
    // Who runs keeps the adapter that it began with. The count below is to be that of the one which begins now.
    server.wait_for("russet_num_requests_running", 0.0);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| {
            let mut fields = fields("a");
            fields["max_tokens"] = 200.into();
            text(&server.complete(json!("The fox"), fields), 0).to_owned()
        });
        server.wait_for("russet_num_requests_running", 1.0);
        assert_eq!(load("a", "sub/2", true).status, 200);
        let second = say();
        assert!(first != second);
        assert!(slow.join().unwrap().starts_with(&first));
        assert_eq!(load("a", "sub/1", true).status, 200);
        assert_eq!(say(), first);
    });
    for (name, path, param) in [
        ("b", "../3", "lora_path"),
        ("b", "/etc", "lora_path"),
        ("b", "link", "lora_path"),
        ("b", "none", "lora_path"),
        ("b", "broken", "lora_path"),
        ("b", "", "lora_path"),
        (MODEL, "sub/1", "lora_name"),
        ("", "sub/1", "lora_name"),
        ("x\n", "sub/1", "lora_name"),
    ] {
        let message = load(name, path, true).refused(400, Some(param));
        let secret = outside.path().to_string_lossy().into_owned();
        assert!(
            !message.contains(&secret) && !message.contains(&*below.path().to_string_lossy()),
            "{message}"
        );
    }
    let absolute = below.path().join("sub/2").canonicalize().unwrap();
    assert_eq!(load("b", &absolute.to_string_lossy(), false).status, 200);
    assert_eq!(
        server.get("/v1/models").json()["data"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
    server
        .post("/v1/unload_lora_adapter", &json!({"lora_name": "c"}))
        .refused(404, Some("lora_name"));
    let gone = server.post("/v1/unload_lora_adapter", &json!({"lora_name": "a"}));
    assert_eq!(gone.body, "Success: LoRA adapter 'a' removed successfully.");
    server
        .post(
            "/v1/completions",
            &common::completion(json!("a"), fields("a")),
        )
        .refused(404, Some("model"));
    // After a panic the engine is another one, and knows what the last one knew.
    let b = text(&server.complete(json!("The fox"), fields("b")), 0).to_owned();
    let prompt: Vec<usize> = (10..10 + common::PANICS).collect();
    let body = common::completion(json!(prompt), json!({"max_tokens": 8, "ignore_eos": true}));
    server.post("/v1/completions", &body).refused(500, None);
    assert_eq!(text(&server.complete(json!("The fox"), fields("b")), 0), b);
}
