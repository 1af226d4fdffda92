//! `stage = "prune"`: a checkpoint to one with narrower feed-forward layers.

use std::path::PathBuf;

use anyhow::{Result, bail};
use russet_artifact::{Artifact, Inputs, Kind, Recipe};
use russet_model::Config;
use russet_train::prune::{PRUNE_REPORT, PruneReport, PruneSettings, prune};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Made, Outlook, Place, Plan, StageKind, Work, make, read_json};
use crate::app::App;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PruneRecipe {
    stage: StageKind,
    inputs: PruneInputs,
    prune: PruneSettings,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PruneInputs {
    checkpoint: PathBuf,
    /// What the masks learn on and the model is measured on.
    tokens: PathBuf,
}

pub(super) fn read(recipe: &Recipe) -> Result<PruneRecipe> {
    let recipe: PruneRecipe = recipe.parse()?;
    recipe.prune.check()?;
    Ok(recipe)
}

impl Work for PruneRecipe {
    fn settings(&self) -> Result<Value> {
        Ok(Recipe::resolved_json(self)?)
    }

    fn plan(&self, name: &str, place: &Place, outlook: &mut Outlook) -> Result<Plan> {
        let PruneSettings {
            train, validation, ..
        } = &self.prune;
        outlook.check_split(&self.inputs.tokens, "prune.train", train)?;
        if let Some(split) = validation {
            outlook.check_split(&self.inputs.tokens, "prune.validation", split)?;
        }
        let Some(config) = outlook.decoder(&self.inputs.checkpoint, place) else {
            let reason = format!(
                "{} is not there yet, so its size is not known",
                place.input(&self.inputs.checkpoint).display()
            );
            return Ok(Plan {
                json: json!({ "reason": reason }),
                text: format!("no estimate: {reason}"),
            });
        };
        self.prune.check_model(&config)?;
        let small = Config {
            ffn: self.prune.ffn,
            ..config.clone()
        };
        let (before, after) = (config.parameters(), small.parameters());
        outlook.decoders.insert(name.to_owned(), small);
        Ok(Plan {
            json: json!({"parameters_before": before, "parameters": after}),
            text: format!(
                "{:.2} M parameters to {:.2} M: feed-forward layers {} wide to {}",
                before as f64 / 1e6,
                after as f64 / 1e6,
                config.ffn,
                self.prune.ffn
            ),
        })
    }

    fn run(&self, app: &mut App, _: &str, place: &Place) -> Result<Made> {
        let checkpoint = place.input(&self.inputs.checkpoint);
        if !checkpoint.is_dir() {
            bail!(
                "{}: there is no such checkpoint folder",
                checkpoint.display()
            );
        }
        let tokens = Artifact::open(&place.input(&self.inputs.tokens), Kind::Tokens)?;
        let inputs = Inputs::new().artifact("tokens", &tokens)?;
        let inputs = inputs.artifact_or_path("checkpoint", &checkpoint, Kind::Checkpoint)?;
        let (what, settings) = ((StageKind::Prune, Kind::Checkpoint), self.settings()?);
        let skipped = make(app, what, settings, inputs, &place.out, |app, draft, _| {
            prune(
                &self.prune,
                &checkpoint,
                &tokens,
                draft,
                &app.pool,
                &mut *app.progress,
                &app.interrupt,
            )?;
            Ok(())
        })?;
        let facts = read_json(&place.out.join(PRUNE_REPORT))?;
        let report: PruneReport = serde_json::from_value(facts.clone())?;
        let held_out = match (report.nats_before, report.nats_after) {
            (Some(before), Some(after)) => {
                format!(", {before:.4} to {after:.4} nats per token held out")
            }
            _ => String::new(),
        };
        Ok(Made {
            skipped,
            summary: format!(
                "{} parameters of {}{held_out}",
                report.parameters, report.parameters_before
            ),
            facts,
        })
    }
}
