//! `/openapi.json` describes what is answered, no more and no less.

mod common;

use std::collections::BTreeSet;
use std::io::Write;

use common::{CONTEXT, MODEL, engine_config, make, serve, serve_with, settings, tokenizer};
use russet_serve::{Keys, new_key};
use serde_json::{Value, json};

/// Methods and paths of the description.
fn described(document: &Value) -> BTreeSet<(String, String)> {
    let paths = document["paths"].as_object().unwrap();
    let operations = paths.iter().flat_map(|(path, item)| {
        let methods = item.as_object().unwrap().keys();
        methods.map(move |method| (method.to_uppercase(), path.clone()))
    });
    operations.collect()
}

#[test]
fn every_path_is_described_and_every_description_answered() {
    let server = serve();
    let reply = server.get("/openapi.json");
    assert_eq!(reply.headers["content-type"], "application/json");
    let document = reply.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let described = described(&document);
    // The paths that the page on the server lists.
    let page = include_str!("../../../docs/serve.md");
    let (_, table) = page.split_once("## Endpoints").unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    let mut listed = BTreeSet::new();
    for row in rows.take_while(|row| row.contains("/")) {
        let mut method = "";
        for word in row.split('|').nth(1).unwrap().split(", ") {
            let word = word.trim().trim_matches('`');
            let path = word.split_once(' ').map_or(word, |(verb, path)| {
                method = verb;
                path
            });
            listed.insert((method.to_owned(), path.replace("NAME", "{name}")));
        }
        if row.contains("`GET /`") {
            break;
        }
    }
    assert_eq!(described, listed);
    for (method, path) in &described {
        let path = path.replace("{name}", MODEL);
        let json = [("Content-Type", "application/json")];
        let status = |method: &str| server.send(method, &path, &json, "{}").status;
        assert!(![404, 405].contains(&status(method)), "{method} {path}");
        let other = if method == "GET" { "POST" } else { "GET" };
        assert_eq!(status(other), 405, "{other} {path}");
    }
    server.get("/v1/nothing").refused(404, None);
}

#[test]
fn schemas_have_the_fields_that_are_parsed() {
    let server = serve();
    let document = server.get("/openapi.json").json();
    let schemas = &document["components"]["schemas"];
    let mut checked = 0;
    for (method, path) in described(&document) {
        let operation = &document["paths"][&path][method.to_lowercase()];
        let error = &operation["responses"]["default"]["content"]["application/json"]["schema"];
        assert_eq!(error["$ref"], "#/components/schemas/ErrorBody");
        let Some(schema) =
            operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].as_str()
        else {
            assert_eq!(method, "GET", "{path} has no body");
            continue;
        };
        let schema = &schemas[schema.rsplit('/').next().unwrap()];
        assert_eq!(schema["additionalProperties"], false, "{path}");
        let code = |field: &str| {
            let reply = server.post(&path, &json!({(field): null}));
            reply.json()["error"]["code"].clone()
        };
        for (field, _) in schema["properties"].as_object().unwrap() {
            assert_ne!(code(field), "unsupported_parameter", "{path}: {field}");
            checked += 1;
        }
        assert_eq!(code("no_such_field"), "unsupported_parameter", "{path}");
        for field in schema["required"].as_array().into_iter().flatten() {
            // Without it the body is refused.
            let reply = server.post(&path, &json!({}));
            assert_eq!(reply.status, 400, "{path}: {field}");
        }
    }
    assert!(checked > 80, "{checked}");
    // What schemas refer to is there.
    let text = schemas.to_string();
    for reference in text.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(schemas.get(name).is_some(), "{name}");
    }
    let required = &schemas["ChatCompletionRequest"]["required"];
    assert_eq!(required, &json!(["messages", "model"]));
}

#[test]
fn a_server_that_wants_keys_says_so() {
    let (key, line) = new_key("alice", false).unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(line.as_bytes()).unwrap();
    let mut closed = settings();
    closed.keys = Some(Keys::read(file.path()).unwrap());
    let server = serve_with(closed, make(engine_config(), None));
    server.get("/openapi.json").refused(401, None);
    let bearer = format!("Bearer {key}");
    let headers = [("Authorization", &*bearer)];
    let document = server.send("GET", "/openapi.json", &headers, "").json();
    assert_eq!(
        document["components"]["securitySchemes"]["key"]["scheme"],
        "bearer"
    );
    for (method, path) in described(&document) {
        let operation = &document["paths"][&path][method.to_lowercase()];
        let open = ["/", "/health", "/ready"].contains(&path.as_str());
        assert_eq!(operation.get("security").is_none(), open, "{path}");
    }
}

#[test]
fn the_tokenizer_is_told() {
    let server = serve();
    let info = server.get("/tokenizer_info").json();
    assert_eq!(info["tokenizer_class"], "PreTrainedTokenizerFast");
    assert_eq!(info["model_max_length"], CONTEXT);
    let name = |token: &str| tokenizer().token_id(info[token].as_str().unwrap());
    assert_eq!(name("eos_token"), Some(tokenizer().special().eos[0]));
    let template = info["chat_template"].as_str().unwrap();
    assert!(template.contains("<|im_start|>") && template.contains("tools"));
}
