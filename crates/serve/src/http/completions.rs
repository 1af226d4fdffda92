//! `/v1/completions`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Extension, Request, State as From};
use axum::http::StatusCode;
use axum::response::Response;
use russet_engine::Token;
use serde_json::{Value, json};

use super::conversation::Usage;
use super::stream::{Broken, Out, done, respond, unless_gone};
use super::{Shared, body, json as reply};
use crate::answer::{Answers, Said, Scored, Style};
use crate::error::{ApiError, ApiResult};
use crate::keys::Caller;
use crate::model::Text;
use crate::registry::now;
use crate::wire::completions::{Body, Prompt};
use crate::wire::parse;
use crate::worker::Ticket;

/// Continues prompts.
pub(super) async fn completions(
    From(state): From<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> ApiResult<Response> {
    let begun = Instant::now();
    let bytes = body(&state, request).await?;
    let mut body: Body = parse(&bytes)?;
    drop(bytes);
    let (mut common, own) = (body.common()?, body.own()?);
    let adapters = state.registry.stack(&common.model)?;
    let text = state.text.clone();
    let (echo, prompts) = (own.echo, own.prompts);
    let encoded = state
        .blocking(move || encode(&text, prompts, echo))
        .await??;
    let guide = state.grammar(common.constraint.take()).await?;
    let scores_prompt = own.echo && own.logprobs.is_some();
    let requests = encoded.iter().map(|prompt| {
        let mut asked = state.request(&common, &caller, &adapters);
        asked.sampling.top_logprobs = own.logprobs.unwrap_or(0);
        asked.prompt_logprobs = own.logprobs.filter(|_| scores_prompt);
        asked.max_tokens = match scores_prompt {
            true => own.max_tokens,
            // The engine is to be asked for something.
            false => own.max_tokens.max(1),
        };
        asked.guide = guide.clone();
        asked.prompt = prompt.tokens.clone();
        asked
    });
    let requests = requests.collect();
    let job = Job {
        id: state.id("cmpl-"),
        created: now(),
        begun,
        answers: common.answers,
        style: Style {
            stops: std::mem::take(&mut common.stops),
            scored: own.logprobs.is_some(),
            specials: false,
        },
        prompts: encoded,
        echo: own.echo,
        silent: own.max_tokens == 0,
        usage: common.include_usage,
        model: common.model,
    };
    let ticket = state
        .submit(&caller, requests, job.answers, &job.model, "prompt")
        .await?;
    if common.stream {
        return Ok(respond(&state, done, move |state, out| {
            stream(state, out, job, ticket)
        }));
    }
    let (choices, usage) = job.whole(&state, ticket).await?;
    let choices: Vec<Value> = choices
        .iter()
        .enumerate()
        .map(|(index, choice)| job.choice(&state.text, index, choice, 0, Some(choice.reason)))
        .collect();
    Ok(reply(
        StatusCode::OK,
        &job.object(&state, choices.into(), Some(usage.json())),
    ))
}

/// A prompt's tokens, and what is echoed of it.
struct Encoded {
    tokens: Vec<u32>,
    echo: String,
    /// Whether the answer begins a text.
    begins: bool,
}

fn encode(text: &Text, prompts: Vec<Prompt>, echo: bool) -> ApiResult<Vec<Encoded>> {
    let encode = |prompt| {
        Ok(match prompt {
            Prompt::Text(prompt) => Encoded {
                tokens: text
                    .encode_prompt(&prompt)
                    .map_err(|error| ApiError::field("prompt", error.to_string()))?,
                begins: prompt.is_empty(),
                echo: if echo { prompt } else { String::new() },
            },
            Prompt::Tokens(tokens) => {
                let shown = text.tokenizer.decode(&tokens, true);
                Encoded {
                    tokens,
                    begins: shown.is_empty(),
                    echo: if echo { shown } else { String::new() },
                }
            }
        })
    };
    prompts.into_iter().map(encode).collect()
}

/// What is to be continued.
struct Job {
    id: String,
    created: u64,
    begun: Instant,
    model: String,
    prompts: Vec<Encoded>,
    /// Answers to each prompt.
    answers: usize,
    style: Style,
    echo: bool,
    /// Nothing is to be said but the prompt.
    silent: bool,
    usage: bool,
}

/// An answer in the making.
#[derive(Clone, Default)]
struct Choice {
    text: String,
    scored: Vec<Place>,
    reason: &'static str,
}

/// A token, its alternatives, and where it begins, in characters of the text.
#[derive(Clone)]
struct Place {
    token: u32,
    logprob: Option<f32>, // of the first token of a prompt there is none
    top: Vec<Token>,
    offset: usize,
}

impl Job {
    fn places(&self) -> usize {
        self.prompts.len() * self.answers
    }

    fn answers<'a>(&self, state: &'a Shared, ticket: Ticket) -> Answers<'a> {
        let begins: Vec<bool> = (0..self.places())
            .map(|place| self.prompts[place / self.answers].begins)
            .collect();
        let tokenizer = &state.text.tokenizer;
        Answers::new(
            ticket,
            tokenizer,
            &begins,
            &self.style,
            &state.metrics,
            self.begun,
        )
    }

    fn prompt_tokens(&self) -> usize {
        self.prompts.iter().map(|prompt| prompt.tokens.len()).sum()
    }

    /// All answers, whole.
    async fn whole(&self, state: &Shared, ticket: Ticket) -> ApiResult<(Vec<Choice>, Usage)> {
        let mut answers = self.answers(state, ticket);
        let mut choices = vec![Choice::default(); self.places()];
        let mut prompts: Vec<Vec<Place>> = vec![Vec::new(); self.prompts.len()];
        let mut usage = Usage::new(self.prompt_tokens());
        while let Some(said) = answers.next().await? {
            let (place, delta, ended) = match said {
                Said::More(place, delta) => (place, delta, None),
                Said::End(place, delta, ended) => (place, delta, Some(ended)),
            };
            let choice = &mut choices[place];
            if !self.silent {
                choice.scored.extend(places(delta.scored, 0));
                choice.text += &delta.text;
            }
            let Some(mut ended) = ended else {
                continue;
            };
            if self.silent {
                (ended.tokens, ended.reason) = (0, "length");
            }
            usage.add(&ended);
            choice.reason = ended.reason;
            if let Some(generation) = ended.generation
                && !generation.prompt_logprobs.is_empty()
            {
                let scored = generation
                    .prompt_logprobs
                    .into_iter()
                    .zip(generation.prompt_top);
                let scored = scored
                    .map(|(token, top)| Scored { token, top, at: 0 })
                    .collect();
                prompts[place / self.answers] =
                    self.scored_prompt(&state.text, place / self.answers, scored);
            }
        }
        if self.echo {
            for (place, choice) in choices.iter_mut().enumerate() {
                let prompt = &self.prompts[place / self.answers];
                let shift = prompt.echo.chars().count();
                if self.style.scored {
                    let mut scored = prompts[place / self.answers].clone();
                    if scored.is_empty() {
                        // A prompt of one token has nothing before it to be foretold from.
                        scored = self.scored_prompt(&state.text, place / self.answers, Vec::new());
                    }
                    let answer = choice.scored.drain(..).map(|mut place| {
                        place.offset += shift;
                        place
                    });
                    scored.extend(answer);
                    choice.scored = scored;
                }
                choice.text.insert_str(0, &prompt.echo);
            }
        }
        Ok((choices, usage))
    }

    /// The tokens of a prompt in its text; the first has no probability.
    fn scored_prompt(&self, text: &Text, prompt: usize, scored: Vec<Scored>) -> Vec<Place> {
        let mut places = Vec::new();
        let mut pieces = text.tokenizer.detokenizer(true);
        let mut offset = 0;
        let mut scored = scored.into_iter();
        for (number, &token) in self.prompts[prompt].tokens.iter().enumerate() {
            let scored = if number == 0 { None } else { scored.next() };
            let logprob = scored.as_ref().map(|scored| scored.token.logprob);
            places.push(Place {
                token,
                logprob,
                top: scored.map(|scored| scored.top).unwrap_or_default(),
                offset,
            });
            offset += pieces.push(token).chars().count();
        }
        places
    }

    /// One choice of a response, from the token at `from` on.
    fn choice(
        &self,
        text: &Text,
        index: usize,
        choice: &Choice,
        from: usize,
        reason: Option<&str>,
    ) -> Value {
        json!({
            "index": index,
            "text": choice.text,
            "logprobs": self.logprobs(text, &choice.scored[from..]),
            "finish_reason": reason,
        })
    }

    fn logprobs(&self, text: &Text, places: &[Place]) -> Value {
        if !self.style.scored {
            return Value::Null;
        }
        let tokens: Vec<String> = places.iter().map(|place| text.shown(place.token)).collect();
        let logprobs: Vec<Option<f32>> = places.iter().map(|place| place.logprob).collect();
        let offsets: Vec<usize> = places.iter().map(|place| place.offset).collect();
        let top = places.iter().map(|place| {
            let own = place.logprob?;
            let mut map: BTreeMap<String, f32> = BTreeMap::new();
            map.insert(text.shown(place.token), own);
            for token in &place.top {
                // Two tokens can look the same: the more probable one is meant.
                let logprob = map.entry(text.shown(token.id)).or_insert(token.logprob);
                *logprob = logprob.max(token.logprob);
            }
            Some(map)
        });
        json!({
            "tokens": tokens,
            "token_logprobs": logprobs,
            "top_logprobs": top.collect::<Vec<_>>(),
            "text_offset": offsets,
        })
    }

    fn object(&self, state: &Shared, choices: Value, usage: Option<Value>) -> Value {
        let mut object = json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": state.fingerprint,
            "choices": choices,
        });
        if let Some(usage) = usage {
            object["usage"] = usage;
        }
        object
    }

    /// A piece of the stream.
    fn chunk(&self, state: &Shared, choices: Value, usage: Option<Value>) -> Value {
        let usage = self.usage.then(|| usage.unwrap_or(Value::Null));
        self.object(state, choices, usage)
    }
}

/// Tokens of an answer whose text begins behind `shift` characters.
fn places(scored: Vec<Scored>, shift: usize) -> impl Iterator<Item = Place> {
    scored.into_iter().map(move |scored| Place {
        token: scored.token.id,
        logprob: Some(scored.token.logprob),
        top: scored.top,
        offset: shift + scored.at,
    })
}

/// Writes answers as they come.
async fn stream(state: Shared, out: Arc<Out>, job: Job, ticket: Ticket) -> Result<(), Broken> {
    let usage = if job.echo && job.style.scored || job.silent {
        // The probabilities of a prompt come with the end of its answer, and stand before it.
        let (choices, usage) = unless_gone(&out, job.whole(&state, ticket)).await?;
        for (index, choice) in choices.iter().enumerate() {
            let choice = job.choice(&state.text, index, choice, 0, Some(choice.reason));
            out.send(&job.chunk(&state, json!([choice]), None)).await?;
        }
        usage
    } else {
        let mut answers = job.answers(&state, ticket);
        let mut usage = Usage::new(job.prompt_tokens());
        let mut echoed = vec![0; job.places()]; // characters
        if job.echo {
            for (index, length) in echoed.iter_mut().enumerate() {
                let echo = &job.prompts[index / job.answers].echo;
                *length = echo.chars().count();
                let choice = Choice {
                    text: echo.clone(),
                    ..Choice::default()
                };
                let choice = job.choice(&state.text, index, &choice, 0, None);
                out.send(&job.chunk(&state, json!([choice]), None)).await?;
            }
        }
        while let Some(said) = unless_gone(&out, answers.next()).await? {
            let (index, delta, ended) = match said {
                Said::More(index, delta) => (index, delta, None),
                Said::End(index, delta, ended) => (index, delta, Some(ended)),
            };
            let mut choice = Choice {
                text: delta.text,
                ..Choice::default()
            };
            choice.scored.extend(places(delta.scored, echoed[index]));
            let reason = ended.as_ref().map(|ended| ended.reason);
            let choice = job.choice(&state.text, index, &choice, 0, reason);
            out.send(&job.chunk(&state, json!([choice]), None)).await?;
            if let Some(ended) = ended {
                usage.add(&ended);
            }
        }
        usage
    };
    if job.usage {
        out.send(&job.chunk(&state, json!([]), Some(usage.json())))
            .await?;
    }
    Ok(())
}
