//! `stage = "prune"`: a checkpoint to one with narrower feed-forward layers.

use std::path::PathBuf;

use anyhow::{Result, bail};
use russet_artifact::{Artifact, Inputs, Kind, Recipe, Stage};
use russet_model::Config;
use russet_train::Estimate;
use russet_train::plan::IDLE_SETTINGS;
use russet_train::prune::{PRUNE_REPORT, PruneMethod, PruneReport, PruneSettings, Pruned, Pruning};
use russet_train::settings::ComputeSettings;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Made, Outlook, Place, Plan, StageKind, Work, about, read_json};
use crate::app::{App, Interrupted};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PruneRecipe {
    stage: StageKind,
    inputs: PruneInputs,
    prune: PruneSettings,
    #[serde(default)]
    compute: ComputeSettings,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PruneInputs {
    checkpoint: PathBuf,
    /// What the masks learn on and the model is measured on.
    tokens: PathBuf,
}

pub(super) fn read(app: &App, recipe: &Recipe) -> Result<PruneRecipe> {
    let mut recipe: PruneRecipe = recipe.parse()?;
    recipe.prune.check()?;
    // The command line is nearer to the person than the recipe.
    if app.threads_given {
        recipe.compute.threads = Some(app.threads);
    }
    recipe.compute.threads.get_or_insert(app.threads);
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
        if self.prune.method == PruneMethod::Learned {
            outlook.check_split(&self.inputs.tokens, "prune.train", train)?;
        }
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
        let flops = self.prune.flops(&config);
        let mut json = json!({"parameters_before": before, "parameters": after, "flops": flops});
        let mut text = format!(
            "{:.2} M parameters to {:.2} M: feed-forward layers {} wide to {}",
            before as f64 / 1e6,
            after as f64 / 1e6,
            config.ffn,
            self.prune.ffn
        );
        let memory = self.prune.memory(&config, self.compute.recompute);
        match outlook.rate(self.compute.dtype) {
            _ if flops == 0.0 => {} // nothing is learnt
            Some(rate) => {
                let estimate = Estimate::new(flops, rate);
                let fits = memory.check();
                text += &format!(
                    ", {} of learning\nmemory   {memory}",
                    about(estimate.seconds)
                );
                if let Err(error) = &fits {
                    text += &format!("\nhere     it would be refused: {error}");
                }
                json["memory"] = serde_json::to_value(memory)?;
                json["fits_here"] = fits.is_ok().into();
                json["estimate"] = serde_json::to_value(estimate)?;
            }
            None if !place.out.exists() => memory.check()?,
            None => {}
        }
        Ok(Plan { json, text })
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
        let pruning = Pruning::new(self.prune.clone(), &checkpoint, &tokens)?;
        let mut settings = self.settings()?;
        if let Value::Object(settings) = &mut settings {
            settings.remove("inputs");
        }
        // Masks are added up in other pieces where blocks are computed again, so that setting does change bits here.
        let idle = IDLE_SETTINGS.iter().filter(|(_, key)| *key != "recompute");
        for (table, key) in idle {
            if let Some(Value::Object(table)) = settings.get_mut(*table) {
                table.remove(*key);
            }
        }
        let stage = Stage::new(StageKind::Prune.word(), &app.tool, settings, inputs);
        let pruned = pruning.run(
            stage,
            &self.compute,
            &place.out,
            place.resume,
            &mut *app.progress,
            &app.interrupt,
        )?;
        if let Pruned::Interrupted { step } = pruned {
            let sentence =
                format!("stopped after step {step}; the same command goes on from there");
            return Err(Interrupted(sentence).into());
        }
        let facts = read_json(&place.out.join(PRUNE_REPORT))?;
        let report: PruneReport = serde_json::from_value(facts.clone())?;
        let held_out = match (report.nats_before, report.nats_after) {
            (Some(before), Some(after)) => {
                format!(", {before:.4} to {after:.4} nats per token held out")
            }
            _ => String::new(),
        };
        Ok(Made {
            skipped: pruned == Pruned::Current,
            summary: format!(
                "{} parameters of {}{held_out}",
                report.parameters, report.parameters_before
            ),
            facts,
        })
    }
}
