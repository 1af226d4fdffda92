//! `stage = "sft"`, `stage = "dpo"` and `stage = "reward"`: a checkpoint and rows of conversations or preferences to a tuned one, or
//! to a reward model.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use russet_align::plan::REPORT;
use russet_align::settings::{DataSettings, DpoSettings, RewardSettings, constant, train_table};
use russet_align::{Lesson, Plan as AlignPlan, Settings, Sources};
use russet_artifact::Recipe;
use russet_train::settings::{ComputeSettings, OptimizerSettings, ScheduleSettings, TrainSettings};
use russet_train::{AdapterSettings, Outcome, TrainError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Made, Outlook, Place, Plan, StageKind, Work, look_at_texts, read_json};
use crate::app::{App, Interrupted, Usage};

/// The recipe as it stands in TOML; but for `inputs` it is [`Settings`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AlignRecipe {
    stage: StageKind,
    inputs: AlignInputs,
    #[serde(deserialize_with = "train_table")]
    train: TrainSettings,
    #[serde(default)]
    optimizer: OptimizerSettings,
    #[serde(default = "constant")]
    schedule: ScheduleSettings,
    adapter: Option<AdapterSettings>,
    dpo: Option<DpoSettings>,
    reward: Option<RewardSettings>,
    data: DataSettings,
    #[serde(default)]
    compute: ComputeSettings,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AlignInputs {
    /// The model to begin with.
    checkpoint: PathBuf,
    /// An adapter to go on with, beside `[adapter]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<PathBuf>,
}

pub(super) struct Align {
    kind: StageKind,
    lesson: Lesson,
    inputs: AlignInputs,
    settings: Settings,
}

pub(super) fn read(app: &App, recipe: &Recipe, lesson: Lesson) -> Result<Align> {
    let AlignRecipe {
        stage,
        inputs,
        train,
        optimizer,
        schedule,
        adapter,
        dpo,
        reward,
        data,
        mut compute,
    } = recipe.parse()?;
    // The command line is nearer to the person than the recipe.
    if app.threads_given {
        compute.threads = Some(app.threads);
    }
    let settings = Settings {
        train,
        optimizer,
        schedule,
        adapter,
        dpo,
        reward,
        data,
        compute,
    };
    let mut settings = settings.resolved(lesson)?;
    settings.compute.threads.get_or_insert(app.threads);
    if inputs.adapter.is_some() && settings.adapter.is_none() {
        let sentence = "`inputs.adapter` names an adapter to go on with, but there is no `[adapter]`; write that";
        return Err(Usage(sentence.into()).into());
    }
    Ok(Align {
        kind: stage,
        lesson,
        inputs,
        settings,
    })
}

impl Align {
    fn sources(&self, place: &Place) -> Sources {
        let input = |name: &PathBuf| place.input(name);
        Sources {
            checkpoint: input(&self.inputs.checkpoint),
            adapter: self.inputs.adapter.as_ref().map(input),
        }
    }

    fn open(&self, place: &Place) -> Result<AlignPlan, TrainError> {
        AlignPlan::new(self.lesson, self.settings.clone(), self.sources(place))
    }

    /// Every file of rows, with the key that names it.
    fn files(&self) -> [(&'static str, Vec<PathBuf>); 3] {
        let data = &self.settings.data;
        [
            ("data.train", data.train.clone()),
            (
                "data.mixture",
                data.mixture.iter().map(|part| part.file.clone()).collect(),
            ),
            ("data.validation", data.validation.clone()),
        ]
    }
}

impl Work for Align {
    fn settings(&self) -> Result<Value> {
        let mut json = Recipe::resolved_json(&self.settings)?;
        json["stage"] = self.kind.word().into();
        json["inputs"] = serde_json::to_value(&self.inputs)?;
        Ok(json)
    }

    /// With the data's counts where the model is there already, whose tokenizer makes tokens of them.
    fn plan(&self, name: &str, place: &Place, outlook: &mut Outlook) -> Result<Plan> {
        for (key, files) in self.files() {
            if !files.is_empty() {
                look_at_texts(key, &files)?;
            }
        }
        if let Some(start) = outlook.decoder(&self.inputs.checkpoint, place)
            && self.settings.adapter.is_none()
        {
            let context = start.context.max(self.settings.train.sequence_length);
            outlook
                .decoders
                .insert(name.to_owned(), russet_model::Config { context, ..start });
        }
        let sources = self.sources(place);
        // Ahead of a real run the rows are read once, by the run itself.
        let known = match sources.checkpoint.exists() && outlook.gflops.is_some() {
            true => match self.open(place) {
                Ok(plan) => Some(plan),
                Err(error @ (TrainError::Setting { .. } | TrainError::Data { .. })) => {
                    return Err(error.into());
                }
                Err(_) => None,
            },
            false => None,
        };
        let Some(plan) = known else {
            let steps = self.settings.train.steps;
            let text = match steps {
                Some(steps) => format!("{steps} steps"),
                None => "as many steps as the data make".to_owned(),
            };
            return Ok(Plan {
                json: json!({ "steps": steps }),
                text,
            });
        };
        let (json, counts) = (plan.describe(), plan.counts());
        let text = format!(
            "{} numbers trained of a model of {}\n{} rows, {} tokens, {} of them learnt, in {} sequences\n{} steps",
            json["trained_parameters"],
            json["parameters"],
            counts.rows,
            counts.tokens,
            counts.learnt_tokens,
            counts.sequences,
            json["steps"]
        );
        Ok(Plan { json, text })
    }

    fn run(&self, app: &mut App, _: &str, place: &Place) -> Result<Made> {
        let folder = place.input(&self.inputs.checkpoint);
        match self.lesson {
            Lesson::Rewards => crate::found::any_model(&folder)?,
            _ => crate::found::model(&folder)?,
        }
        let plan = self.open(place)?;
        let outcome = plan.run(
            &place.out,
            &app.tool,
            place.resume,
            &mut *app.progress,
            &app.interrupt,
        )?;
        let report = match outcome {
            Outcome::Interrupted { step } => {
                let sentence =
                    format!("stopped after step {step}; the same command goes on from there");
                return Err(Interrupted(sentence).into());
            }
            Outcome::Current => None,
            Outcome::Finished(report) => Some(report),
        };
        let found = read_report(&place.out)?;
        let mut summary = format!("{} steps on {} rows", found["steps"], plan.counts().rows);
        if let Some(report) = &report {
            summary += &format!(", loss {:.4} to {:.4}", report.first_loss, report.last_loss);
        }
        for (name, words) in [
            ("validation_loss", "held out"),
            ("preference_accuracy", "of held-out preferences right"),
        ] {
            if let Some(value) = found["measured"][name].as_f64() {
                summary += &format!(", {value:.4} {words}");
            }
        }
        let mut facts = found;
        if let Some(Value::Object(report)) = report.map(serde_json::to_value).transpose()? {
            for (key, value) in report {
                facts[key] = value;
            }
        }
        Ok(Made {
            skipped: facts.get("losses").is_none(),
            summary,
            facts,
        })
    }
}

pub(super) fn read_report(folder: &Path) -> Result<Value> {
    read_json(&folder.join(REPORT)).context("the artifact's report")
}
