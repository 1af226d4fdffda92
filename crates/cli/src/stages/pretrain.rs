//! `stage = "pretrain"`: token shards to a checkpoint.

use std::path::{Path, PathBuf};

use anyhow::Result;
use russet_artifact::Recipe;
use russet_train::settings::{
    ComputeSettings, DataSettings, ModelSettings, StageName, TrainSettings,
};
use russet_train::{
    DistillSettings, Estimate, Memory, Outcome, Price, Settings, TeacherInput, TrainError,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Made, Outlook, Place, Plan, StageKind, Work, about};
use crate::app::{App, Interrupted, Usage};

/// The recipe as it stands in TOML; but for `inputs` it is [`Settings`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PretrainRecipe {
    #[allow(
        dead_code,
        reason = "read by the job before, and here so that it is a known key"
    )]
    stage: StageKind,
    inputs: PretrainInputs,
    model: ModelSettings,
    train: TrainSettings,
    distill: Option<DistillSettings>,
    #[serde(default)]
    data: DataSettings,
    #[serde(default)]
    compute: ComputeSettings,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PretrainInputs {
    tokens: PathBuf,
    /// A checkpoint that teaches, by `[distill]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    teacher: Option<PathBuf>,
    /// Its predictions, stored beforehand.
    #[serde(skip_serializing_if = "Option::is_none")]
    teacher_logits: Option<PathBuf>,
}

pub(super) struct Pretrain {
    inputs: PretrainInputs,
    /// Resolved, the threads too.
    settings: Settings,
}

pub(super) fn read(app: &App, recipe: &Recipe) -> Result<Pretrain> {
    let PretrainRecipe {
        inputs,
        model,
        train,
        distill,
        data,
        mut compute,
        ..
    } = recipe.parse()?;
    // The command line is nearer to the person than the recipe.
    if app.threads_given {
        compute.threads = Some(app.pool.threads());
    }
    let settings = Settings {
        stage: StageName::Pretrain,
        model,
        train,
        distill,
        data,
        compute,
    };
    let mut settings = settings.resolved()?;
    settings.compute.threads.get_or_insert(app.pool.threads());
    if inputs.teacher.is_some() && inputs.teacher_logits.is_some() {
        let sentence =
            "`inputs.teacher` and `inputs.teacher_logits` are both there; keep one of them";
        return Err(Usage(sentence.into()).into());
    }
    match (inputs.taught_by(Path::to_path_buf), &settings.distill) {
        (Some(teacher), Some(distill)) => teacher.check(distill)?,
        (None, None) => {}
        (Some(_), None) => {
            let sentence = "`inputs` name a teacher, but there is no `[distill]`; say what to learn from it, such as \
                            kind = \"hard\"";
            return Err(Usage(sentence.into()).into());
        }
        (None, Some(_)) => {
            let sentence = "`[distill]` is there, but no teacher; name a checkpoint in `inputs.teacher`, or stored \
                            predictions in `inputs.teacher_logits`";
            return Err(Usage(sentence.into()).into());
        }
    }
    Ok(Pretrain { inputs, settings })
}

impl PretrainInputs {
    /// The teacher, where there is one.
    fn taught_by(&self, place: impl Fn(&Path) -> PathBuf) -> Option<TeacherInput> {
        let checkpoint = self.teacher.as_deref().map(&place);
        let logits = self.teacher_logits.as_deref().map(&place);
        checkpoint
            .map(TeacherInput::Checkpoint)
            .or(logits.map(TeacherInput::Logits))
    }
}

impl Work for Pretrain {
    fn settings(&self) -> Result<Value> {
        let mut json = Recipe::resolved_json(&self.settings)?;
        json["inputs"] = serde_json::to_value(&self.inputs)?;
        Ok(json)
    }

    /// Of the tokens where they lie there already; else of the vocabulary that the run's tokenizer recipe asks for.
    fn plan(&self, name: &str, place: &Place, outlook: &mut Outlook) -> Result<Plan> {
        let data = &self.settings.data;
        outlook.check_split(&self.inputs.tokens, "data.train", &data.train)?;
        if let Some(split) = &data.validation {
            outlook.check_split(&self.inputs.tokens, "data.validation", split)?;
        }
        let tokens = place.input(&self.inputs.tokens);
        let known = match russet_train::Plan::new(self.settings.clone(), &tokens) {
            Err(error @ TrainError::Setting { .. }) => return Err(error.into()),
            Err(_) => None, // They are still to be made.
            Ok(plan) => Some(plan).filter(|plan| {
                // Those of an earlier run, with another tokenizer, say nothing.
                outlook
                    .vocab
                    .is_none_or(|vocab| vocab == plan.config().vocab)
            }),
        };
        let (mut json, mut text, memory, decoder, basis): (Value, String, Memory, _, _) = match (
            known,
            outlook.vocab,
        ) {
            (Some(plan), _) => {
                let description = plan.describe();
                let json = serde_json::to_value(&description)?;
                let config = plan.config().clone();
                let basis = "the tokens that are there";
                (
                    json,
                    description.to_string(),
                    description.memory,
                    config,
                    basis,
                )
            }
            (None, Some(vocab)) => {
                let price = Price::new(self.settings.clone(), vocab)?;
                let json = serde_json::to_value(price)?;
                let config = self.settings.decoder(vocab)?;
                let basis = "the recipes: there are no tokens yet";
                (json, price.to_string(), price.memory, config, basis)
            }
            (None, None) => {
                let reason = format!(
                    "{} is no tokens artifact yet and no tokenizer recipe lies beside this one, so the vocabulary and \
                         with it the size are not known",
                    tokens.display()
                );
                return Ok(Plan {
                    json: json!({ "reason": reason }),
                    text: format!("no estimate: {reason}"),
                });
            }
        };
        outlook.decoders.insert(name.to_owned(), decoder);
        match outlook.gflops {
            Some(gflops) => {
                let flops = json["flops"].as_f64().unwrap_or(f64::NAN);
                let estimate = Estimate::new(flops, gflops);
                text += &format!(
                    "\ntime     about {} at {gflops:.0} GFLOP/s of products\nby {basis}",
                    about(estimate.seconds)
                );
                json["estimate"] = serde_json::to_value(estimate)?;
                json["basis"] = basis.into();
            }
            None if !place.out.exists() => memory.check()?,
            None => {}
        }
        Ok(Plan { json, text })
    }

    fn run(&self, app: &mut App, _: &str, place: &Place) -> Result<Made> {
        let tokens = place.input(&self.inputs.tokens);
        let mut plan = russet_train::Plan::new(self.settings.clone(), &tokens)?;
        if let Some(teacher) = self.inputs.taught_by(|name| place.input(name)) {
            plan = plan.taught_by(teacher)?;
        }
        let outcome = russet_train::pretrain(
            &plan,
            &place.out,
            &app.tool,
            place.resume,
            &mut *app.progress,
            &app.interrupt,
        )?;
        let parameters = plan.config().parameters();
        match outcome {
            Outcome::Current => Ok(Made {
                skipped: true,
                summary: format!("{parameters} parameters"),
                facts: Value::Null,
            }),
            Outcome::Interrupted { step } => {
                let sentence =
                    format!("stopped after step {step}; the same command goes on from there");
                Err(Interrupted(sentence).into())
            }
            Outcome::Finished(report) => {
                let validation = report.bits_per_byte.map_or(String::new(), |bits| {
                    format!(", {bits:.4} bits per byte held out")
                });
                let summary = format!(
                    "{parameters} parameters on {} tokens at {:.0} tokens/s, loss {:.3}{validation}",
                    report.tokens, report.tokens_per_second, report.last_loss
                );
                Ok(Made {
                    skipped: false,
                    summary,
                    facts: serde_json::to_value(&report)?,
                })
            }
        }
    }
}
