//! The other end of the wire: asks a server of OpenAI's API for answers.
//!
//! [`Client::new`] takes the address that such servers tell, `http://HOST:PORT/v1`; [`Client::chat`] asks several things at once over
//! connections of their own. What may pass by itself, a server that is broken, gone or silent, is tried again after waits that double, a
//! bounded number of times; then this request has met silence ([`ClientError::Silent`]). A server that is busy and says until when is waited
//! for so long, an hour in all. What no repetition mends is said at once ([`ClientError::Dead`]).
//!
//! As on the server's side TLS is left out: an address with `https` is refused, and a proxy on this machine brings it. What was asked
//! and answered is in no error and no event. A key goes into the header and nowhere else.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, Uri, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// The longest answer that is read, in bytes.
const MOST_BYTES: usize = 16 << 20;
/// How often the wish to stop is looked at.
const GLANCE: Duration = Duration::from_millis(50);
/// The longest that a request waits for a server that says when to ask again.
const MOST_WAITED: Duration = Duration::from_secs(3600);
/// The longest of a server's own words that is passed on.
const WORDS: usize = 200;

/// How long a server is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Attempts, at least 1.
    pub attempts: u32,
    /// Before the second attempt; doubled before each further one.
    pub wait: Duration,
    /// For one whole answer.
    pub answer: Duration,
}

impl Default for Patience {
    /// Five attempts, half a second, two minutes.
    fn default() -> Patience {
        Patience {
            attempts: 5,
            wait: Duration::from_millis(500),
            answer: Duration::from_secs(120),
        }
    }
}

/// What a server is asked.
#[derive(Clone, Debug)]
pub struct ChatRequest {
    /// What was said so far, as OpenAI has it.
    pub messages: Vec<Map<String, Value>>,
    /// Functions that may be called; none where empty.
    pub tools: Vec<Value>,
    /// The most tokens of the answer.
    pub max_tokens: usize,
    /// As servers have it.
    pub temperature: f64,
    /// As servers have it.
    pub top_p: f64,
    /// The same seed is to give the same answer; how far it does is the server's affair.
    pub seed: u64,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatAnswer {
    /// What was said; empty where the server says nothing but calls of tools.
    pub text: String,
    /// Why it ended: `"stop"`, `"length"`, or what else the server has.
    pub finish: String,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The address is none.
    #[error("{0}")]
    Address(String),
    /// The server does not answer this; it may answer others. With the status, and the beginning of what it says of it, which may quote what was
    /// asked: for who asked, and for no log.
    #[error("it refuses with status {0}{space}{1}", space = if .1.is_empty() { "" } else { ": " })]
    Refused(u16, String),
    /// The server did not answer this, however often it was asked; it may answer others.
    #[error("{0}")]
    Silent(String),
    /// The server answers nothing that this key or model could ask.
    #[error("{0}")]
    Dead(String),
    /// Somebody asked to stop.
    #[error("stopped")]
    Stopped,
}

/// A server that answers.
#[derive(Debug)]
pub struct Client {
    runtime: tokio::runtime::Runtime,
    server: Server,
}

#[derive(Clone)]
struct Server {
    host: String,
    port: u16,
    path: String,
    model: String,
    key: Option<String>,
    patience: Patience,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {}:{}", self.model, self.host, self.port)
    }
}

/// Host with port, and path, of an address.
fn address(endpoint: &str) -> Result<(String, u16, String), ClientError> {
    let refuse = |why: &str| Err(ClientError::Address(format!("{endpoint:?} {why}")));
    let Ok(uri) = endpoint.parse::<Uri>() else {
        return refuse("is no address; write one such as http://127.0.0.1:8000/v1");
    };
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => {
            return refuse(
                "asks for TLS, which is not spoken here; let a proxy on this machine bring it, and name that by http://",
            );
        }
        _ => return refuse("is no address; write one such as http://127.0.0.1:8000/v1"),
    }
    if uri.query().is_some() || endpoint.contains(['@', '#']) {
        return refuse("has more than host, port and path; leave that out");
    }
    let Some(host) = uri.host().filter(|host| !host.is_empty()) else {
        return refuse("names no host; write one such as http://127.0.0.1:8000/v1");
    };
    let path = uri.path().trim_end_matches('/').to_owned();
    Ok((host.to_owned(), uri.port_u16().unwrap_or(80), path))
}

impl Client {
    /// Of the server at `endpoint`, such as `http://127.0.0.1:8000/v1`, and the model that it calls `model`; with a key where it wants
    /// one. Nothing is sent yet.
    ///
    /// # Errors
    /// [`ClientError::Address`] when the address is none, asks for TLS, or the key cannot stand in a header.
    pub fn new(
        endpoint: &str,
        model: &str,
        key: Option<&str>,
        patience: Patience,
    ) -> Result<Client, ClientError> {
        let (host, port, path) = address(endpoint)?;
        let printable = |key: &str| key.bytes().all(|byte| (0x21..0x7f).contains(&byte));
        if !key.is_none_or(|key| !key.is_empty() && printable(key)) {
            let sentence = "the key has characters that no header may have, or is empty";
            return Err(ClientError::Address(sentence.to_owned()));
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| ClientError::Address(format!("no connections: {error}")))?;
        Ok(Client {
            runtime,
            server: Server {
                host,
                port,
                path,
                model: model.to_owned(),
                key: key.map(str::to_owned),
                patience,
            },
        })
    }

    /// Asks all of these at once; the answers come in their order.
    ///
    /// # Errors
    /// [`ClientError::Dead`] when the server answers nothing that this key or model could ask; [`ClientError::Stopped`] once `stop` is
    /// set. That one of them is refused or meets silence is its own answer.
    pub fn chat(
        &self,
        requests: &[ChatRequest],
        stop: &AtomicBool,
    ) -> Result<Vec<Result<ChatAnswer, ClientError>>, ClientError> {
        self.runtime.block_on(async {
            let mut asked = JoinSet::new();
            for (place, request) in requests.iter().enumerate() {
                let (server, request) = (self.server.clone(), request.clone());
                asked.spawn(async move { (place, server.patiently(&request).await) });
            }
            let mut answers: Vec<Option<Result<ChatAnswer, ClientError>>> =
                vec![None; requests.len()];
            loop {
                let next = tokio::select! {
                    () = wished(stop) => return Err(ClientError::Stopped), // dropping the set ends the rest
                    next = asked.join_next() => next,
                };
                let Some(next) = next else {
                    break;
                };
                match next {
                    Ok((_, Err(dead @ ClientError::Dead(_)))) => return Err(dead),
                    Ok((place, answer)) => answers[place] = Some(answer),
                    Err(error) => return Err(ClientError::Dead(error.to_string())),
                }
            }
            let answers = answers.into_iter();
            Ok(answers.map(|answer| answer.expect("all ended")).collect())
        })
    }
}

async fn wished(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(GLANCE).await;
    }
}

/// One attempt that has failed.
enum Failed {
    /// Another may not.
    Passing(String),
    /// The server says when to ask again.
    Busy(Duration),
    Final(ClientError),
}

fn passing(what: &str, error: &dyn std::fmt::Display) -> Failed {
    Failed::Passing(format!("{what}: {error}"))
}

impl Server {
    /// As often as patience has it.
    async fn patiently(&self, request: &ChatRequest) -> Result<ChatAnswer, ClientError> {
        let Patience { attempts, wait, .. } = self.patience;
        let (mut failures, mut waited) = (0, Duration::ZERO);
        loop {
            let why = match self.once(request).await {
                Ok(answer) => return Ok(answer),
                Err(Failed::Final(error)) => return Err(error),
                // A server that says when is alive, and its word is no failure of its own.
                Err(Failed::Busy(until)) if until <= MOST_WAITED.saturating_sub(waited) => {
                    waited += until;
                    tokio::time::sleep(until).await;
                    continue;
                }
                Err(Failed::Busy(_)) => "status 429".to_owned(),
                Err(Failed::Passing(why)) => why,
            };
            failures += 1;
            if failures >= attempts.max(1) {
                return Err(ClientError::Silent(format!(
                    "{}:{} does not answer after {failures} attempts: {why}",
                    self.host, self.port
                )));
            }
            // At most a minute: doubling has no end of its own.
            let doubled = wait.saturating_mul(1 << (failures - 1).min(16));
            tokio::time::sleep(doubled.min(Duration::from_secs(60))).await;
        }
    }

    async fn once(&self, request: &ChatRequest) -> Result<ChatAnswer, Failed> {
        let whole = async {
            let stream = TcpStream::connect((self.host.trim_matches(['[', ']']), self.port)).await;
            let stream = stream.map_err(|error| passing("no connection", &error))?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|error| passing("no connection", &error))?;
            let body = self.body(request);
            let request = self.request(body).map_err(Failed::Final)?;
            let exchange = async move {
                // Owns the sender, whose end is the connection's.
                let response = sender.send_request(request).await;
                let response = response.map_err(|error| passing("no answer", &error))?;
                let status = response.status();
                let until = response.headers().get(header::RETRY_AFTER);
                let until = until.and_then(|until| until.to_str().ok()?.trim().parse().ok());
                if let (StatusCode::TOO_MANY_REQUESTS, Some(seconds)) = (status, until) {
                    return Err(Failed::Busy(Duration::from_secs(u64::max(seconds, 1))));
                }
                let bytes = to_bytes(Body::new(response.into_body()), MOST_BYTES).await;
                let bytes = bytes.map_err(|error| passing("half an answer", &error))?;
                self.read(status, &bytes)
            };
            let (answer, _) = tokio::join!(exchange, connection);
            answer
        };
        match tokio::time::timeout(self.patience.answer, whole).await {
            Ok(answer) => answer,
            Err(_) => Err(Failed::Passing(format!(
                "no answer within {} s",
                self.patience.answer.as_secs_f64()
            ))),
        }
    }

    fn body(&self, request: &ChatRequest) -> Value {
        let mut messages = request.messages.clone();
        messages.iter_mut().for_each(arguments_as_text);
        let mut body = json!({
            "model": self.model, "messages": messages, "max_tokens": request.max_tokens,
            "temperature": request.temperature, "top_p": request.top_p, "seed": request.seed,
        });
        if !request.tools.is_empty() {
            body["tools"] = request.tools.clone().into();
        }
        body
    }

    fn request(&self, body: Value) -> Result<Request<Body>, ClientError> {
        let mut request = Request::post(format!("{}/chat/completions", self.path))
            .header(header::HOST, format!("{}:{}", self.host, self.port))
            .header(header::CONNECTION, "close")
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        request
            .body(Body::from(body.to_string()))
            .map_err(|error| ClientError::Address(format!("the request cannot be made: {error}")))
    }

    /// What a response says.
    fn read(&self, status: StatusCode, bytes: &[u8]) -> Result<ChatAnswer, Failed> {
        let json: Value = serde_json::from_slice(bytes).unwrap_or_default();
        let words = || {
            let words = json["error"]["message"].as_str().unwrap_or_default();
            words.chars().take(WORDS).collect::<String>()
        };
        match status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => {
                return Err(Failed::Final(ClientError::Dead(format!(
                    "{}:{} refuses with status {}: {}",
                    self.host,
                    self.port,
                    status.as_u16(),
                    words()
                ))));
            }
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                return Err(Failed::Passing(format!("status {}", status.as_u16())));
            }
            status if status.is_server_error() => {
                return Err(Failed::Passing(format!("status {}", status.as_u16())));
            }
            status => {
                let refused = ClientError::Refused(status.as_u16(), words());
                return Err(Failed::Final(refused));
            }
        }
        let choice = &json["choices"][0];
        if !choice["message"].is_object() {
            let sentence = "an answer that is none of OpenAI's API".to_owned();
            return Err(Failed::Passing(sentence));
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(ChatAnswer {
            text: text(&choice["message"]["content"]),
            finish: text(&choice["finish_reason"]),
        })
    }
}

/// Arguments of calls as OpenAI has them, the text of an object, where templates read the object itself.
fn arguments_as_text(message: &mut Map<String, Value>) {
    let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        let arguments = &mut call["function"]["arguments"];
        if arguments.is_object() {
            *arguments = arguments.to_string().into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_earlier_calls_travel_as_text() {
        let call = json!({"type": "function", "function": {"name": "f", "arguments": {"a": 1}}});
        let message = json!({"role": "assistant", "content": null, "tool_calls": [call]});
        let mut message = message.as_object().unwrap().clone();
        arguments_as_text(&mut message);
        let told = &message["tool_calls"][0]["function"]["arguments"];
        assert_eq!(told, "{\"a\":1}");
    }

    #[test]
    fn addresses_are_read_and_others_refused_with_a_remedy() {
        assert_eq!(
            address("http://127.0.0.1:8000/v1/").unwrap(),
            ("127.0.0.1".to_owned(), 8000, "/v1".to_owned())
        );
        assert_eq!(address("http://host").unwrap().1, 80);
        for (endpoint, word) in [
            ("https://host/v1", "TLS"),
            ("host/v1", "no address"),
            ("http://user:secret@host/v1", "leave that out"),
            ("", "no address"),
        ] {
            let ClientError::Address(said) = address(endpoint).unwrap_err() else {
                panic!("{endpoint}");
            };
            assert!(said.contains(word), "{endpoint}: {said}");
        }
        let bad = Client::new("http://h", "m", Some("a\nb"), Patience::default());
        assert!(matches!(bad, Err(ClientError::Address(_))));
    }
}
