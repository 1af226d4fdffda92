//! Who answers: a model on this machine, through the engine, or a server of OpenAI's API.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use russet_align::committee::{Plan as Committee, seed};
use russet_artifact::{Artifact, Hash, Inputs, Kind, MANIFEST};
use russet_engine::{Engine, EngineConfig, Event, Flow, Request, Sampling};
use russet_serve::client::{ChatRequest, Client, ClientError, Patience};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::state::Log;
use super::{Place, stopped};
use crate::app::{App, Model, Usage};

/// `[[member]]`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberSettings {
    /// What rows and reports call it.
    pub name: String,
    /// A checkpoint or package; of an endpoint what the server calls the model.
    model: String,
    /// An adapter on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    adapter: Option<PathBuf>,
    /// The address of a server, `http://HOST:PORT/v1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    /// The environment variable that holds the server's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_env: Option<String>,
    /// Requests that a server gets at once; 8 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at_once: Option<usize>,
    /// How often a server is asked that does not answer; 5 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attempts: Option<u32>,
    /// Seconds before the second attempt, doubled before each further one; 0.5 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wait_seconds: Option<f64>,
    /// Seconds that an answer may take; 120 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer_seconds: Option<f64>,
}

/// An answer as it was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    pub text: String,
    /// Why it ended: "stop" where by itself.
    pub finish: String,
}

/// What a member has answered.
#[derive(Default)]
pub struct Drawn {
    /// Of each prompt from the first on; none where it was not answered.
    pub rows: Vec<Vec<Option<Said>>>,
    /// Why there are no more.
    pub left_out: Option<String>,
    /// Prompts that it cannot read.
    pub too_long: usize,
    /// Answers that a server refused.
    pub refused: usize,
}

impl Drawn {
    /// Of an earlier run.
    pub fn new(rows: Vec<Vec<Option<Said>>>) -> Drawn {
        Drawn {
            rows,
            ..Drawn::default()
        }
    }

    /// Answers that were given.
    pub fn answers(&self) -> usize {
        self.rows.iter().flatten().flatten().count()
    }

    /// Whether it has answered a prompt.
    pub fn has(&self, prompt: usize) -> bool {
        let answers = self.rows.get(prompt).into_iter().flatten();
        answers.flatten().next().is_some()
    }
}

impl MemberSettings {
    pub fn check(&self) -> Result<()> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let name = &self.name;
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) || name.starts_with('.') {
            return Err(Usage(format!(
                "`member.name` is {name:?}; take 1 to 64 letters, digits, '-', '_' and '.', the last not first"
            ))
            .into());
        }
        let of_server = [
            ("key_env", self.key_env.is_some()),
            ("at_once", self.at_once.is_some()),
            ("attempts", self.attempts.is_some()),
            ("wait_seconds", self.wait_seconds.is_some()),
            ("answer_seconds", self.answer_seconds.is_some()),
        ];
        let wrong = match &self.endpoint {
            None => of_server.iter().find(|(_, given)| *given).map(|(key, _)| {
                format!(
                    "`member.{key}` of {name} is for a server; leave it out, or name an `endpoint`"
                )
            }),
            Some(_) if self.adapter.is_some() => Some(format!(
                "`member.adapter` of {name} is for a model of this machine; a server has its own names for adapters, to be written as `model`"
            )),
            Some(_) => {
                let within = |value: Option<f64>, most: f64| {
                    value.is_none_or(|value| value > 0.0 && value <= most)
                };
                if !self
                    .at_once
                    .is_none_or(|at_once| (1..=1024).contains(&at_once))
                {
                    Some(format!("`member.at_once` of {name} must be from 1 to 1024"))
                } else if !self
                    .attempts
                    .is_none_or(|attempts| (1..=20).contains(&attempts))
                {
                    Some(format!("`member.attempts` of {name} must be from 1 to 20"))
                } else if !within(self.wait_seconds, 60.0) {
                    Some(format!(
                        "`member.wait_seconds` of {name} must be above 0 and at most 60"
                    ))
                } else if !within(self.answer_seconds, 3600.0) {
                    Some(format!(
                        "`member.answer_seconds` of {name} must be above 0 and at most 3600"
                    ))
                } else {
                    let client = Client::new(
                        self.endpoint.as_deref().unwrap_or_default(),
                        &self.model,
                        None,
                        self.patience(),
                    );
                    client
                        .err()
                        .map(|error| format!("`member.endpoint` of {name}: {error}"))
                }
            }
        };
        wrong.map_or(Ok(()), |sentence| Err(Usage(sentence).into()))
    }

    fn patience(&self) -> Patience {
        let usual = Patience::default();
        let seconds =
            |given: Option<f64>, usual: Duration| given.map_or(usual, Duration::from_secs_f64);
        Patience {
            attempts: self.attempts.unwrap_or(usual.attempts),
            wait: seconds(self.wait_seconds, usual.wait),
            answer: seconds(self.answer_seconds, usual.answer),
        }
    }

    /// What of it an artifact is a function of, besides its folders' bytes.
    pub fn key(&self) -> Value {
        match &self.endpoint {
            None => json!({"name": self.name}),
            Some(endpoint) => json!({"name": self.name, "endpoint": endpoint, "model": self.model}),
        }
    }

    /// For a plan: who will be asked elsewhere.
    pub fn asked(&self) -> Option<String> {
        let endpoint = self.endpoint.as_ref()?;
        Some(format!("{} is {} at {endpoint}", self.name, self.model))
    }

    /// Its folders by the names of inputs.
    pub fn folders(&self) -> Vec<(String, &Path)> {
        if self.endpoint.is_some() {
            return Vec::new();
        }
        let mut folders = vec![(format!("member-{}", self.name), Path::new(&self.model))];
        if let Some(adapter) = &self.adapter {
            folders.push((format!("adapter-{}", self.name), adapter));
        }
        folders
    }

    /// Adds what it reads to the inputs of the stage.
    pub fn inputs(&self, mut inputs: Inputs, place: &Place) -> Result<Inputs> {
        for (number, (key, name)) in self.folders().into_iter().enumerate() {
            let folder = place.input(name);
            if number > 0 {
                crate::found::adapter(&folder)?;
                inputs = inputs.artifact_or_path(&key, &folder, Kind::Adapter)?;
                continue;
            }
            crate::found::model(&folder)?;
            inputs = match folder.join(MANIFEST).exists() {
                true => inputs.artifact(&key, &Artifact::open_any(&folder)?)?,
                false => inputs.path(&key, &folder)?,
            };
        }
        Ok(inputs)
    }

    /// What its answers follow from.
    pub fn about(&self, plan: &Committee, inputs: &Inputs, place: &Place) -> Result<Hash> {
        let reject = &plan.settings().reject;
        let of_folders: Vec<Value> = self
            .folders()
            .iter()
            .map(|(_, name)| {
                json!(
                    inputs
                        .hash_of(&place.input(name))
                        .map(|hash| hash.to_string())
                )
            })
            .collect();
        let asked: Vec<&str> = plan.questions().iter().map(|one| &one.name[..]).collect();
        let about = json!({
            "member": self.key(), "folders": of_folders, "samples": reject.samples, "temperature": reject.temperature,
            "top_p": reject.top_p, "max_tokens": reject.max_tokens, "seed": reject.seed,
            "prompts": Hash::of(asked.join("\0").as_bytes()),
        });
        Ok(Hash::of(about.to_string().as_bytes()))
    }

    /// Lets it answer the prompts behind those that it has answered; `fresh` hears of how many answers there are now of this run.
    pub fn draw(
        &self,
        app: &mut App,
        plan: &Committee,
        place: &Place,
        log: &mut Log,
        drawn: &mut Drawn,
        fresh: &mut dyn FnMut(&mut App, u64),
    ) -> Result<()> {
        if drawn.rows.len() >= plan.questions().len() {
            return Ok(());
        }
        match &self.endpoint {
            None => self.generate(app, plan, place, log, drawn, fresh),
            Some(endpoint) => self.ask(app, plan, endpoint, log, drawn, fresh),
        }
    }

    /// On this machine: the engine is kept full across prompts, and rows are written in the prompts' order.
    fn generate(
        &self,
        app: &mut App,
        plan: &Committee,
        place: &Place,
        log: &mut Log,
        drawn: &mut Drawn,
        fresh: &mut dyn FnMut(&mut App, u64),
    ) -> Result<()> {
        let folder = place.input(Path::new(&self.model));
        let adapter = self.adapter.as_ref().map(|adapter| place.input(adapter));
        let model = Model::open_for_chat(&folder, adapter.as_deref(), &mut *app.progress)?;
        let context = model.decoder.config().context;
        let (reject, questions) = (&plan.settings().reject, plan.questions());
        let mut encoded = Vec::new();
        for question in questions {
            match question.asked.encode(&model.tokenizer) {
                Ok(tokens) => encoded.push(tokens),
                Err(problem) => {
                    let (file, line) = question.place;
                    bail!(
                        "{}: line {line}: member {} cannot be asked this: {problem}; leave the row or the member out",
                        plan.settings().data.prompts[file].display(),
                        self.name
                    );
                }
            }
        }
        let fits = |tokens: &Vec<u32>| tokens.len() < context;
        let longest = encoded
            .iter()
            .filter(|tokens| fits(tokens))
            .map(Vec::len)
            .max();
        let Some(longest) = longest else {
            bail!(
                "{}: the model sees only {context} tokens, and every prompt has as many or more; leave member {} out",
                folder.display(),
                self.name
            );
        };
        let room = context.min(longest.saturating_add(reject.max_tokens));
        let stop_tokens = model.eos();
        let Model { decoder, tokenizer } = model;
        let config = EngineConfig::new(room, reject.slots);
        let mut engine = Engine::new(decoder, app.pool.clone(), config)?;
        let begun = drawn.rows.len();
        let mut next = begun;
        // Prompts on their way, in order, and where each request's answer goes.
        let mut rows: VecDeque<Vec<Option<Said>>> = VecDeque::new();
        let mut places = BTreeMap::new();
        let mut ended = 0;
        while drawn.rows.len() < questions.len() {
            if app.interrupt.is_raised() {
                return Err(stopped().into());
            }
            while next < questions.len() && places.len() < 2 * reject.slots {
                rows.push_back(vec![None; reject.samples]);
                if fits(&encoded[next]) {
                    let request = Request {
                        prompt: encoded[next].clone(),
                        max_tokens: reject.max_tokens,
                        sampling: Sampling {
                            temperature: reject.temperature as f32,
                            top_p: reject.top_p as f32,
                            seed: seed(reject.seed, &self.name, next),
                            ..Sampling::default()
                        },
                        stop_tokens: stop_tokens.clone(),
                        ..Request::default()
                    };
                    let ids = engine.submit_answers(request, reject.samples)?;
                    for (sample, id) in ids.into_iter().enumerate() {
                        places.insert(id, (next, sample));
                    }
                } else {
                    drawn.too_long += 1;
                }
                next += 1;
            }
            let mut problem = None;
            let first = drawn.rows.len();
            engine.step(&mut |event| {
                if let Event::End(id, answer) = event
                    && let Some((prompt, sample)) = places.remove(&id)
                {
                    match answer {
                        Ok(answer) => {
                            ended += 1;
                            rows[prompt - first][sample] = Some(Said {
                                text: tokenizer.decode(answer.content(), true),
                                finish: answer.finish.to_string(),
                            });
                        }
                        Err(error) => drop(problem.get_or_insert(error)),
                    }
                }
                Flow::Continue
            });
            if let Some(error) = problem {
                return Err(error.into());
            }
            // Whole rows in front; one that is not asked has no answer to wait for.
            while let Some(row) = rows.front() {
                let number = drawn.rows.len();
                if row.iter().any(Option::is_none) && fits(&encoded[number]) {
                    break;
                }
                log.push(number, row)?;
                drawn.rows.extend(rows.pop_front());
            }
            fresh(app, ended);
        }
        Ok(())
    }

    /// Elsewhere: some requests at once. A prompt that meets silence costs its own answers, as long as the server answers others; one after
    /// another, nothing between them, and the server counts as dead.
    fn ask(
        &self,
        app: &mut App,
        plan: &Committee,
        endpoint: &str,
        log: &mut Log,
        drawn: &mut Drawn,
        fresh: &mut dyn FnMut(&mut App, u64),
    ) -> Result<()> {
        let key = match &self.key_env {
            None => None,
            Some(name) => match std::env::var(name) {
                Ok(key) => Some(key),
                Err(_) => bail!(
                    "member {}: the environment variable {name} is not set, but `key_env` says that it holds the server's key; set it",
                    self.name
                ),
            },
        };
        let client = Client::new(endpoint, &self.model, key.as_deref(), self.patience());
        let client = client.map_err(|error| Usage(format!("member {}: {error}", self.name)))?;
        let (reject, questions) = (&plan.settings().reject, plan.questions());
        let at_once = self.at_once.unwrap_or(8);
        let prompts = (at_once / reject.samples).max(1);
        let stop = app.interrupt.flag();
        let mut asked = 0;
        // Prompts that met silence since the server was last heard, and rows that wait for it to be heard again.
        let (mut silent, mut held) = (BTreeSet::new(), Vec::new());
        while drawn.rows.len() + held.len() < questions.len() {
            let first = drawn.rows.len() + held.len();
            let last = questions.len().min(first + prompts);
            let mut requests = Vec::new();
            for (number, question) in (first..).zip(&questions[first..last]) {
                let conversation = &question.asked.conversation;
                for sample in 0..reject.samples as u64 {
                    requests.push(ChatRequest {
                        messages: conversation.messages.clone(),
                        tools: conversation.tools.clone(),
                        max_tokens: reject.max_tokens,
                        temperature: reject.temperature,
                        top_p: reject.top_p,
                        seed: seed(reject.seed, &self.name, number) + sample,
                    });
                }
            }
            let mut answers = Vec::new();
            for some in requests.chunks(at_once) {
                match client.chat(some, &stop) {
                    Ok(some) => {
                        let of = |at: usize| first + (answers.len() + at) / reject.samples;
                        let mut last = None;
                        for (at, answer) in some.iter().enumerate() {
                            if let Err(why @ ClientError::Silent(_)) = answer {
                                silent.insert(of(at));
                                last = Some(why.to_string());
                            }
                        }
                        if some
                            .iter()
                            .any(|one| !matches!(one, Err(ClientError::Silent(_))))
                        {
                            silent.clear();
                        } else if silent.len() > 1 {
                            drawn.left_out = last;
                            return Ok(());
                        }
                        answers.extend(some);
                    }
                    Err(ClientError::Stopped) => {
                        return Err(stopped().into());
                    }
                    Err(dead) => {
                        drawn.left_out = Some(dead.to_string());
                        return Ok(());
                    }
                }
            }
            asked += answers.len() as u64;
            drawn.refused += answers.iter().filter(|answer| answer.is_err()).count();
            let mut said = answers.into_iter().map(|answer| {
                let answer = answer.ok()?;
                Some(Said {
                    text: answer.text,
                    finish: answer.finish,
                })
            });
            for _ in first..last {
                let row: Vec<Option<Said>> = said.by_ref().take(reject.samples).collect();
                held.push(row);
            }
            if silent.is_empty() || last == questions.len() {
                for row in held.drain(..) {
                    log.push(drawn.rows.len(), &row)?;
                    drawn.rows.push(row);
                }
            }
            fresh(app, asked);
        }
        Ok(())
    }
}
