//! `stage = "sample"`: a model and a prompt to a text.

use std::path::PathBuf;

use anyhow::Result;
use russet_artifact::{Artifact, Inputs, Kind, Recipe};
use russet_engine::{Engine, EngineConfig, Flow, Request, Sampling};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Made, Outlook, Place, Plan, StageKind, Work, make, read_json};
use crate::app::{App, Interrupted, Model, Usage};
use crate::text::continue_prompt;

/// The file of the artifact.
const SAMPLE: &str = "sample.json";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SampleRecipe {
    stage: StageKind,
    inputs: SampleInputs,
    sample: SampleSettings,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SampleInputs {
    model: PathBuf,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SampleSettings {
    prompt: String,
    max_tokens: usize,
    /// 0 takes the likeliest token.
    #[serde(default)]
    temperature: f64,
    /// Keep the likeliest tokens that make up this share of the probability.
    #[serde(default = "one")]
    top_p: f64,
    #[serde(default)]
    seed: u64,
}

fn one() -> f64 {
    1.0
}

pub(super) fn read(recipe: &Recipe) -> Result<SampleRecipe> {
    let recipe: SampleRecipe = recipe.parse()?;
    if recipe.sample.max_tokens == 0 {
        let sentence =
            "`sample.max_tokens` is 0, so there is nothing to sample; ask for at least 1";
        return Err(Usage(sentence.into()).into());
    }
    let sampling = recipe.sampling().check();
    sampling.map_err(|error| Usage(format!("`[sample]`: {error}")))?;
    Ok(recipe)
}

impl SampleRecipe {
    fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.sample.temperature as f32,
            top_p: self.sample.top_p as f32,
            seed: self.sample.seed,
            ..Sampling::default()
        }
    }
}

impl Work for SampleRecipe {
    fn settings(&self) -> Result<Value> {
        Ok(Recipe::resolved_json(self)?)
    }

    fn plan(&self, _: &str, _: &Place, _: &mut Outlook) -> Result<Plan> {
        let tokens = self.sample.max_tokens;
        Ok(Plan {
            json: json!({ "tokens": tokens }),
            text: format!("at most {tokens} tokens"),
        })
    }

    fn run(&self, app: &mut App, name: &str, place: &Place) -> Result<Made> {
        let folder = place.input(&self.inputs.model);
        let inputs = Inputs::new().artifact("model", &Artifact::open_any(&folder)?)?;
        let what = (StageKind::Sample, Kind::Samples);
        let skipped = make(
            app,
            what,
            self.settings()?,
            inputs,
            &place.out,
            |app, draft, _| {
                let sample = &self.sample;
                let model = Model::open(&folder, None)?;
                let prompt = model.encode_prompt(&sample.prompt)?;
                let context = model
                    .decoder
                    .config()
                    .context
                    .min(prompt.len().saturating_add(sample.max_tokens));
                let request = Request {
                    prompt,
                    max_tokens: sample.max_tokens,
                    sampling: self.sampling(),
                    stop_tokens: model.eos(),
                    ..Request::default()
                };
                let Model { decoder, tokenizer } = model;
                let mut engine =
                    Engine::new(decoder, app.pool.clone(), EngineConfig::new(context, 1))?;
                app.progress
                    .begin(name, Some(sample.max_tokens as u64), "tokens");
                let (progress, interrupt) = (&mut *app.progress, &app.interrupt);
                let (mut tokens, mut stopped) = (0, false);
                let made = continue_prompt(
                    &mut engine,
                    &tokenizer,
                    &request,
                    &[],
                    sample.prompt.is_empty(),
                    &mut |_| {
                        tokens += 1;
                        progress.update(tokens, &[]);
                        stopped = interrupt.is_raised();
                        if stopped { Flow::Stop } else { Flow::Continue }
                    },
                )?;
                if stopped {
                    return Err(Interrupted::again().into());
                }
                let json = json!({
                    "prompt": sample.prompt, "text": made.text, "tokens": made.generation.tokens.len(),
                    "finish": made.finish.to_string(),
                });
                std::fs::write(draft.join(SAMPLE), format!("{json:#}\n"))?;
                Ok(())
            },
        )?;
        let facts = read_json(&place.out.join(SAMPLE))?;
        Ok(Made {
            skipped,
            summary: format!("{} tokens", facts["tokens"]),
            facts,
        })
    }
}
