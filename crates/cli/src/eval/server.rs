//! A server of OpenAI's API that answers in a model's place.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use russet_serve::client::{ChatRequest, Client, ClientError, Patience};
use serde_json::{Map, Value, json};

use crate::app::{App, Usage};

/// Requests at once unless something else is asked for.
const AT_ONCE: usize = 8;

/// Seconds that an answer may take unless something else is asked for: a thousand tokens of a busy server.
const SECONDS: f64 = 600.0;

/// A server that is to answer.
#[derive(Args, Clone, Default)]
pub struct ServerArgs {
    /// A server of OpenAI's API that is to answer, http://HOST:PORT/v1; --model is then what it calls the model
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// The environment variable that holds the server's key
    #[arg(long, value_name = "NAME")]
    pub key_env: Option<String>,
    /// Requests that the server gets at once (default: 8)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub at_once: Option<u16>,
    /// Seconds that an answer of the server may take (default: 600)
    #[arg(long, value_name = "SECONDS")]
    pub answer_seconds: Option<f64>,
}

/// A server under the name that it has for a model.
pub struct Server {
    client: Client,
    pub at_once: usize,
    /// What to look at where it fails.
    hint: &'static str,
}

impl ServerArgs {
    /// The options that are there, by their names.
    pub fn given(&self) -> [(&'static str, bool); 4] {
        [
            ("--endpoint", self.endpoint.is_some()),
            ("--key-env", self.key_env.is_some()),
            ("--at-once", self.at_once.is_some()),
            ("--answer-seconds", self.answer_seconds.is_some()),
        ]
    }

    /// Refuses what is for a server where none is named.
    pub fn check(&self) -> Result<()> {
        if self.endpoint.is_none()
            && let Some((option, _)) = self.given().iter().find(|(_, given)| *given)
        {
            let sentence = format!("{option} is for a server; name it by --endpoint URL");
            return Err(Usage(sentence).into());
        }
        Ok(())
    }

    /// What answers follow from: none without a server.
    pub fn about(&self, model: &str) -> Option<Value> {
        let endpoint = self.endpoint.as_ref()?;
        Some(json!({"endpoint": endpoint, "model": model}))
    }

    /// Nothing is sent yet; none where no server is named.
    pub fn open(&self, model: &str, adapter: Option<&Path>) -> Result<Option<Server>> {
        self.check()?;
        let Some(endpoint) = &self.endpoint else {
            return Ok(None);
        };
        if let Some(adapter) = adapter {
            return Err(Usage(format!(
                "--adapter {}: a server has its own names for adapters; give that as --model",
                adapter.display()
            ))
            .into());
        }
        let seconds = self.answer_seconds.unwrap_or(SECONDS);
        if !(seconds > 0.0 && seconds <= 86_400.0) {
            let sentence =
                format!("--answer-seconds is {seconds}; give it above 0, and at most a day, 86400");
            return Err(Usage(sentence).into());
        }
        let key = match &self.key_env {
            None => None,
            Some(name) => match std::env::var(name) {
                Ok(key) => Some(key),
                Err(_) => bail!(
                    "--key-env {name}: this environment variable is not set; put the server's key into it"
                ),
            },
        };
        let patience = Patience {
            answer: Duration::from_secs_f64(seconds),
            ..Patience::default()
        };
        let client = Client::new(endpoint, model, key.as_deref(), patience);
        let client = client.map_err(|error| Usage(format!("--endpoint: {error}")))?;
        let versioned = endpoint.trim_end_matches('/').ends_with("/v1");
        Ok(Some(Server {
            client,
            hint: match versioned {
                true => "",
                false => "; most servers have their API under /v1, which this address lacks",
            },
            at_once: self.at_once.map_or(AT_ONCE, usize::from),
        }))
    }
}

impl Server {
    /// Asks each of these, a message of a user, for its likeliest answer; at most [`Server::at_once`] of them. Of one that the server
    /// refuses, such as one that is too long for it, the reason. Nothing at all where somebody asked to stop.
    pub fn ask(
        &self,
        app: &App,
        prompts: &[&str],
        max_tokens: usize,
    ) -> Result<Option<Vec<Result<String, String>>>> {
        let request = |prompt: &&str| ChatRequest {
            messages: vec![Map::from_iter([
                ("role".to_owned(), "user".into()),
                ("content".to_owned(), Value::from(*prompt)),
            ])],
            tools: Vec::new(),
            max_tokens,
            temperature: 0.0,
            top_p: 1.0,
            seed: 0,
        };
        let requests: Vec<ChatRequest> = prompts.iter().map(request).collect();
        let mut all = Vec::new();
        for answer in match self.client.chat(&requests, &app.interrupt.flag()) {
            Ok(answers) => answers,
            Err(ClientError::Stopped) => return Ok(None),
            Err(error) => bail!("--endpoint: {error}{}", self.hint),
        } {
            all.push(match answer {
                Ok(answer) => Ok(answer.text),
                Err(refused @ ClientError::Refused(..)) => Err(format!("{refused}{}", self.hint)),
                Err(error) => bail!("--endpoint: {error}{}", self.hint),
            });
        }
        Ok(Some(all))
    }
}
