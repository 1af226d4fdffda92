//! A tiny model with random weights behind a server of its own, and a small HTTP client over plain sockets.
#![allow(dead_code)] // each test file uses its share

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use russet_engine::{Engine, EngineConfig, Propose, Request, RequestId, Reuse};
use russet_kernels::{Pool, random};
use russet_model::config::RopeScaling;
use russet_model::{Config, Decoder, Family};
use russet_serve::{Limits, MakeEngine, Model, Server, Settings};
use russet_tokenizer::{Tokenizer, TrainConfig, read_texts, train};
use serde_json::{Value, json};

pub const VOCAB: usize = 512;
pub const CONTEXT: usize = 1024;
pub const MODEL: &str = "tiny";

/// A folder with a tokenizer trained on the held-out tales.
static TOKENIZER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let tales = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/tales/heldout.jsonl.zst");
    let config = TrainConfig {
        vocab_size: VOCAB,
        ..TrainConfig::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let trained = train(&config, read_texts(tales).unwrap()).unwrap();
    trained.save(folder.path()).unwrap();
    folder
});

pub fn tokenizer() -> Tokenizer {
    Tokenizer::open(TOKENIZER.path()).unwrap()
}

pub fn config() -> Config {
    Config {
        family: Family::Qwen3,
        vocab: VOCAB,
        width: 32,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 16,
        ffn: 48,
        norm_epsilon: 1e-5,
        rope_theta: 500_000.0,
        rope_scaling: RopeScaling::None,
        attention: Default::default(),
        context: CONTEXT,
        tied: true,
        bos: Some(0),
        eos: vec![0, 3],
    }
}

pub fn decoder() -> Decoder {
    Decoder::random(&config(), 1)
}

/// A PEFT folder of an adapter that changes every projection.
pub fn adapter(seed: u64, folder: &Path) {
    let mut adapted = russet_model::adapter::attach_new(decoder(), 2, 8.0, seed, |_| true).freeze();
    // B begins as zeros, with which an adapter changes nothing.
    let mut stream = 0;
    adapted.visit_mut(&mut |tensor| {
        stream += 1;
        for (i, value) in tensor.data_mut().iter_mut().enumerate() {
            *value = 0.2 * random::normal(seed, stream, i as u64);
        }
    });
    std::fs::create_dir_all(folder).unwrap();
    russet_model::adapter::save(&adapted, "base", folder).unwrap();
}

pub fn settings() -> Settings {
    Settings {
        address: "127.0.0.1:0".parse().unwrap(),
        keys: None,
        tls: None,
        insecure: false,
        adapters: Vec::new(),
        adapter_dir: None,
        fingerprint: "test".to_owned(),
        limits: Limits::default(),
    }
}

pub fn engine_config() -> EngineConfig {
    EngineConfig {
        reuse: Reuse::Tenant,
        queue: 64,
        ..EngineConfig::new(CONTEXT, 4)
    }
}

/// A step that takes a while, and a prompt of this many tokens from 10 on that makes it panic.
pub struct Slow(pub Duration);
pub const PANICS: usize = 13;

impl Propose for Slow {
    fn begin(&mut self, _: RequestId, _: &Request) {}

    fn propose(&mut self, _: RequestId, tokens: &[u32], _: usize) -> Vec<u32> {
        std::thread::sleep(self.0);
        let meant = tokens.len() == PANICS + 1 && tokens[0] == 10;
        assert!(!meant, "as the test wants it");
        Vec::new()
    }
}

pub fn make(config: EngineConfig, slow: Option<Duration>) -> MakeEngine {
    make_of(decoder(), config, slow)
}

pub fn make_of(decoder: Decoder, config: EngineConfig, slow: Option<Duration>) -> MakeEngine {
    let decoder = Arc::new(decoder);
    let pool = Arc::new(Pool::new(1).unwrap());
    Box::new(move || {
        let mut engine = Engine::new(decoder.clone(), pool.clone(), config)?;
        if let Some(slow) = slow {
            engine.set_proposer(Some(Box::new(Slow(slow))));
        }
        Ok(engine)
    })
}

pub fn model() -> Model {
    Model {
        name: MODEL.to_owned(),
        tokenizer: tokenizer(),
        bos: 0,
        eos: vec![0, 3],
    }
}

/// A server that stops when it goes.
pub struct Served {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<russet_serve::Result<()>>>,
}

pub fn serve() -> Served {
    serve_with(settings(), make(engine_config(), None))
}

/// With steps that take so many milliseconds.
pub fn serve_slowly(settings: Settings, config: EngineConfig, milliseconds: u64) -> Served {
    serve_with(
        settings,
        make(config, Some(Duration::from_millis(milliseconds))),
    )
}

pub fn serve_with(settings: Settings, make: MakeEngine) -> Served {
    serve_model(settings, make, model())
}

pub fn serve_model(settings: Settings, make: MakeEngine, model: Model) -> Served {
    let server = Server::bind(settings, model, make).unwrap();
    let address = server.address().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    Served {
        address,
        stop,
        thread: Some(std::thread::spawn(move || server.run(told))),
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.ask_to_stop();
        if let Some(thread) = self.thread.take() {
            let served = thread.join();
            if !std::thread::panicking() {
                served.unwrap().unwrap();
            }
        }
    }
}

/// A response.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Reply {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The objects of a stream, which must end in `[DONE]`.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{self:?}");
        assert_eq!(self.headers["content-type"], "text/event-stream");
        let mut events: Vec<&str> = Vec::new();
        for block in self.body.split("\n\n").filter(|block| !block.is_empty()) {
            match block.strip_prefix("data: ") {
                Some(data) => events.push(data),
                None => assert!(block.starts_with(':'), "{block:?}"),
            }
        }
        assert_eq!(events.pop(), Some("[DONE]"), "{self:?}");
        let parse = |event: &str| serde_json::from_str(event).unwrap();
        events.into_iter().map(parse).collect()
    }

    /// Checks a refusal: its status, the field it names, and OpenAI's shape.
    #[track_caller]
    pub fn refused(&self, status: u16, param: Option<&str>) -> String {
        assert_eq!(self.status, status, "{self:?}");
        let json = self.json();
        let error = &json["error"];
        let keys: Vec<&String> = error.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["message", "type", "param", "code"]);
        assert_eq!(error["param"].as_str(), param, "{self:?}");
        error["message"].as_str().unwrap().to_owned()
    }
}

/// One request in bytes, and all bytes that come back.
pub fn raw(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    // A server that refuses may stop reading.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

pub fn head(method: &str, path: &str, headers: &[(&str, &str)], length: usize) -> String {
    let mut head =
        format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !headers
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("host"))
    {
        head += "Host: localhost\r\n";
    }
    head + "\r\n"
}

pub fn parse(bytes: &[u8]) -> Reply {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("no head: {:?}", String::from_utf8_lossy(bytes)));
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let mut lines = head.lines();
    let status = lines
        .next()
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    let headers: BTreeMap<String, String> = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let mut body = &bytes[end + 4..];
    let mut whole = Vec::new();
    if headers
        .get("transfer-encoding")
        .is_some_and(|coding| coding == "chunked")
    {
        while let Some(line) = body.windows(2).position(|two| two == b"\r\n") {
            let size = std::str::from_utf8(&body[..line]).unwrap();
            let size = usize::from_str_radix(size, 16).unwrap();
            let start = line + 2;
            if size == 0 || body.len() < start + size {
                break;
            }
            whole.extend_from_slice(&body[start..start + size]);
            body = &body[start + size + 2..];
        }
    } else {
        whole.extend_from_slice(body);
    }
    Reply {
        status,
        headers,
        body: String::from_utf8(whole).unwrap(),
    }
}

impl Served {
    pub fn ask_to_stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Waits until the server has ended; how it did.
    pub fn wait(mut self) -> russet_serve::Result<()> {
        self.thread.take().unwrap().join().unwrap()
    }

    pub fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], "")
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        let json = [("Content-Type", "application/json")];
        self.send("POST", path, &json, &body.to_string())
    }

    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        let head = head(method, path, headers, body.len());
        parse(&raw(self.address, format!("{head}{body}").as_bytes()))
    }

    /// A connection with this request on it, nothing read.
    pub fn open(&self, path: &str, body: &Value) -> TcpStream {
        let body = body.to_string();
        let json = [("Content-Type", "application/json")];
        let head = head("POST", path, &json, body.len());
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        stream
            .write_all(format!("{head}{body}").as_bytes())
            .unwrap();
        stream
    }

    /// A completion of `prompt` with further fields; 200.
    #[track_caller]
    pub fn complete(&self, prompt: Value, fields: Value) -> Value {
        let reply = self.post("/v1/completions", &completion(prompt, fields));
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()
    }

    /// An answer to `content` with further fields; 200.
    #[track_caller]
    pub fn chat(&self, content: &str, fields: Value) -> Value {
        let reply = self.post("/v1/chat/completions", &conversation(content, fields));
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()
    }

    /// A number of `/metrics`.
    #[track_caller]
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
            .parse()
            .unwrap()
    }

    /// Waits until a number of `/metrics` is this.
    #[track_caller]
    pub fn wait_for(&self, name: &str, value: f64) {
        let begun = Instant::now();
        while self.metric(name) != value {
            let waited = begun.elapsed();
            assert!(
                waited < Duration::from_secs(30),
                "{name} is {}, not {value}",
                self.metric(name)
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn with(mut body: Value, fields: Value) -> Value {
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

pub fn completion(prompt: Value, fields: Value) -> Value {
    with(json!({"model": MODEL, "prompt": prompt, "seed": 1}), fields)
}

pub fn conversation(content: &str, fields: Value) -> Value {
    let messages = json!([{"role": "user", "content": content}]);
    with(
        json!({"model": MODEL, "messages": messages, "seed": 1}),
        fields,
    )
}

/// The text of a completion's choice.
pub fn text(answer: &Value, index: usize) -> &str {
    answer["choices"][index]["text"].as_str().unwrap()
}

/// The content of a chat's choice.
pub fn content(answer: &Value, index: usize) -> &str {
    answer["choices"][index]["message"]["content"]
        .as_str()
        .unwrap()
}
