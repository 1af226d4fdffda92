//! `stage = "eval"`: a checkpoint and its package to scores.

use std::path::PathBuf;

use anyhow::Result;
use russet_artifact::{Artifact, Inputs, Kind, Recipe};
use russet_tensor::Ctx;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Made, Outlook, Place, Plan, StageKind, Work, look_at_texts, make, read_json};
use crate::app::{App, Model, Usage};
use crate::measure;

/// The file of the artifact.
const SCORES: &str = "scores.json";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EvalRecipe {
    stage: StageKind,
    inputs: EvalInputs,
    data: EvalData,
    #[serde(default)]
    eval: EvalSettings,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EvalInputs {
    checkpoint: PathBuf,
    package: PathBuf,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EvalData {
    heldout: PathBuf,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EvalSettings {
    /// Tokens in view at a time; the model's context, at most 1024, where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<usize>,
}

pub(super) fn read(recipe: &Recipe) -> Result<EvalRecipe> {
    let recipe: EvalRecipe = recipe.parse()?;
    if recipe.eval.window == Some(0) {
        let sentence = "`eval.window` is 0; leave it out, or give the tokens in view, such as 1024";
        return Err(Usage(sentence.into()).into());
    }
    Ok(recipe)
}

impl Work for EvalRecipe {
    fn settings(&self) -> Result<Value> {
        Ok(Recipe::resolved_json(self)?)
    }

    fn plan(&self, _: &str, place: &Place, outlook: &mut Outlook) -> Result<Plan> {
        let mut json = look_at_texts("data.heldout", std::slice::from_ref(&self.data.heldout))?;
        let config = outlook.decoder(&self.inputs.checkpoint, place);
        let window = config
            .map(|config| measure::window(config.context, self.eval.window))
            .transpose()?;
        json.insert("window".into(), window.into());
        let view = window.map_or(String::new(), |window| format!(", {window} tokens in view"));
        Ok(Plan {
            text: format!("two models on {} bytes of files{view}", json["file_bytes"]),
            json: json.into(),
        })
    }

    fn run(&self, app: &mut App, _: &str, place: &Place) -> Result<Made> {
        let (checkpoint, package) = (
            place.input(&self.inputs.checkpoint),
            place.input(&self.inputs.package),
        );
        let inputs = Inputs::new()
            .artifact(
                "checkpoint",
                &Artifact::open(&checkpoint, Kind::Checkpoint)?,
            )?
            .artifact("package", &Artifact::open(&package, Kind::Package)?)?
            .path("heldout", &self.data.heldout)?;
        let what = (StageKind::Eval, Kind::Scores);
        let skipped = make(
            app,
            what,
            self.settings()?,
            inputs,
            &place.out,
            |app, draft, _| {
                let (dense, palettized) = (
                    Model::open(&checkpoint, None)?,
                    Model::open(&package, None)?,
                );
                let documents = measure::documents(&dense.tokenizer, &self.data.heldout)?;
                let view = measure::settings(&dense, self.eval.window)?;
                let mut ctx = Ctx::new(app.pool.clone());
                let (a, b, progress) = (&dense.decoder, &palettized.decoder, &mut *app.progress);
                let both = russet_eval::compare(
                    a,
                    b,
                    &mut ctx,
                    &documents,
                    &view,
                    progress,
                    &app.interrupt,
                )?;
                let scores = json!({
                    "checkpoint": both.reference, "package": both.other, "kld": both.kld, "same_top": both.same_top,
                });
                std::fs::write(draft.join(SCORES), format!("{scores:#}\n"))?;
                Ok(())
            },
        )?;
        let facts = read_json(&place.out.join(SCORES))?;
        let bits = |which: &str| facts[which]["bits_per_byte"].as_f64().unwrap_or(f64::NAN);
        let (before, after) = (bits("checkpoint"), bits("package"));
        let more = 100.0 * (after / before - 1.0);
        Ok(Made {
            skipped,
            summary: format!(
                "bits per byte held out: checkpoint {before:.4}, package {after:.4} ({more:+.2} %)"
            ),
            facts,
        })
    }
}
