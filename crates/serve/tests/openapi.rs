//! `/openapi.json` describes what is answered, no more and no less.

mod common;

use std::collections::BTreeSet;
use std::io::Write;

use common::{
    CONTEXT, MODEL, completion, conversation, engine_config, make, serve, serve_with, settings,
    tokenizer,
};
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

/// Holds a value against a schema: every field is described, and what is needed is there.
fn fits(schemas: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap();
        return fits(schemas, &schemas[name], value, at);
    }
    for word in ["oneOf", "anyOf"] {
        if let Some(ways) = schema[word].as_array() {
            let tried = ways.iter().map(|way| fits(schemas, way, value, at));
            let tried: Result<Vec<()>, String> = match tried.clone().any(|way| way.is_ok()) {
                true => Ok(Vec::new()),
                false => tried.collect(),
            };
            return tried.map(drop);
        }
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
    };
    let is = |wanted: &str| wanted == kind || (wanted, kind) == ("number", "integer");
    let right = match &schema["type"] {
        Value::Null => true, // of any type
        Value::String(wanted) => is(wanted),
        Value::Array(types) => types.iter().any(|wanted| is(wanted.as_str().unwrap())),
        other => panic!("{other}"),
    };
    if !right {
        return Err(format!("{at} is {value}, not as in {schema}"));
    }
    if let (Some(items), Some(values)) = (schema.get("items"), value.as_array()) {
        for (place, value) in values.iter().enumerate() {
            fits(schemas, items, value, &format!("{at}[{place}]"))?;
        }
    }
    let Some(fields) = value.as_object() else {
        return Ok(());
    };
    for (name, value) in fields {
        let at = format!("{at}.{name}");
        let own = schema["properties"].get(name);
        match own.or(schema.get("additionalProperties")) {
            Some(schema) => fits(schemas, schema, value, &at)?,
            None if schema.get("properties").is_none() => {}
            None => return Err(format!("{at} is not described")),
        }
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        if !fields.contains_key(name.as_str().unwrap()) {
            return Err(format!("{at} lacks {name}"));
        }
    }
    Ok(())
}

#[test]
fn answers_are_as_they_are_described() {
    let server = serve();
    let document = server.get("/openapi.json").json();
    let schemas = &document["components"]["schemas"];
    let schema = |method: &str, path: &str, kind: &str| {
        let answer = &document["paths"][path][method]["responses"]["200"];
        let schema = &answer["content"][kind]["schema"];
        assert!(schema.is_object(), "{method} {path} gives {kind}");
        schema.clone()
    };
    let check = |schema: &Value, value: &Value| {
        fits(schemas, schema, value, "answer").unwrap_or_else(|said| panic!("{said}: {value}"));
    };
    let function = json!({"name": "f", "parameters": {"type": "object", "properties": {"x": {"enum": [1]}}, "required": ["x"]}});
    let tool = json!({"type": "function", "function": function});
    let response = |fields: Value| {
        let mut body = json!({"model": MODEL, "input": "Hi", "max_output_tokens": 5});
        let more = fields.as_object().unwrap().clone();
        body.as_object_mut().unwrap().extend(more);
        body
    };
    let told = json!({"name": "f", "type": "function", "parameters": function["parameters"]});
    let usage = json!({"include_usage": true});
    for (path, body) in [
        (
            "/v1/chat/completions",
            conversation("Hi", json!({"max_tokens": 4, "n": 2})),
        ),
        (
            "/v1/chat/completions",
            conversation(
                "Hi",
                json!({"max_tokens": 4, "logprobs": true, "top_logprobs": 2}),
            ),
        ),
        (
            "/v1/chat/completions",
            conversation("Hi", json!({"tools": [tool], "tool_choice": "required"})),
        ),
        (
            "/v1/completions",
            completion(
                json!("The fox"),
                json!({"max_tokens": 4, "echo": true, "logprobs": 2}),
            ),
        ),
        ("/v1/completions", completion(json!("The fox"), json!({}))),
        ("/v1/responses", response(json!({}))),
        (
            "/v1/responses",
            response(json!({"include": ["message.output_text.logprobs"], "top_logprobs": 1})),
        ),
        (
            "/v1/responses",
            response(json!({"tools": [told], "tool_choice": "required", "max_output_tokens": 90})),
        ),
    ] {
        let whole = server.post(path, &body).json();
        check(&schema("post", path, "application/json"), &whole);
        let mut streamed = body;
        streamed["stream"] = true.into();
        if path != "/v1/responses" {
            streamed["stream_options"] = usage.clone();
        }
        let events = schema("post", path, "text/event-stream");
        let body = server.post(path, &streamed).body;
        let lines = body.lines().filter_map(|line| line.strip_prefix("data: "));
        let mut seen = 0;
        for line in lines.filter(|&line| line != "[DONE]") {
            check(&events, &serde_json::from_str(line).unwrap());
            seen += 1;
        }
        assert!(seen > 1, "{path}: {body}");
    }
    for (path, body) in [
        ("/v1/embeddings", json!({"model": MODEL, "input": "a"})),
        (
            "/v1/embeddings",
            json!({"model": MODEL, "input": [[5], [6]], "encoding_format": "base64"}),
        ),
        (
            "/tokenize",
            json!({"prompt": "a", "return_token_strs": true}),
        ),
        ("/tokenize", json!({"prompt": "a"})),
        ("/detokenize", json!({"tokens": [5]})),
    ] {
        let given = server.post(path, &body);
        assert_eq!(given.status, 200, "{given:?}");
        check(&schema("post", path, "application/json"), &given.json());
    }
    for path in [
        "/health",
        "/ready",
        "/v1/models",
        "/v1/models/{name}",
        "/tokenizer_info",
        "/openapi.json",
    ] {
        let given = server.get(&path.replace("{name}", MODEL)).json();
        check(&schema("get", path, "application/json"), &given);
    }
    // What is refused has the form that stands beside `default`.
    let refused = server.post("/v1/embeddings", &json!({})).json();
    let refusal = &document["paths"]["/v1/embeddings"]["post"]["responses"]["default"];
    check(&refusal["content"]["application/json"]["schema"], &refused);
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
        // Which refusals there are beside those of fields.
        let refused = |status: &str| operation["responses"].get(status).is_some();
        assert_eq!(refused("401"), !open, "{path}");
        assert!(refused("403"), "it listens for this machine alone");
        assert_eq!(refused("429"), method == "POST", "{path}");
    }
    // Without keys the scheme is described, and nothing wants it.
    let document = serve().get("/openapi.json").json();
    assert!(document["components"]["securitySchemes"]["key"].is_object());
    let operation = |path: &str| &document["paths"][path]["post"];
    for path in ["/tokenize", "/v1/completions"] {
        let operation = operation(path);
        assert!(operation.get("security").is_none());
        assert!(operation["responses"].get("401").is_none());
        let queued = path == "/v1/completions";
        assert_eq!(operation["responses"].get("429").is_some(), queued);
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
