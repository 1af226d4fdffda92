//! `stage = "sft"`, `stage = "dpo"` and `stage = "reward"`: a checkpoint and rows of conversations or preferences to a tuned one, or
//! to a reward model.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use russet_align::settings::{DataSettings, DpoSettings, RewardSettings, constant, train_table};
use russet_align::{Lesson, Plan as AlignPlan, REPORT, Settings, Sources};
use russet_artifact::Recipe;
use russet_train::settings::{ComputeSettings, OptimizerSettings, ScheduleSettings, TrainSettings};
use russet_train::{AdapterSettings, Outcome, TrainError, TrainReport};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Made, Outlook, Place, Plan, StageKind, Work, read_json};
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
    goes_on(inputs.adapter.as_deref(), settings.adapter.is_some())?;
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
        let mut settings = self.settings.clone();
        let data = &mut settings.data;
        let mixed = data.mixture.iter_mut().map(|part| &mut part.file);
        let files = data.train.iter_mut().chain(&mut data.validation);
        files.chain(mixed).for_each(|file| *file = place.rows(file));
        AlignPlan::new(self.lesson, settings, self.sources(place))
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
        let mut there = place.input(&self.inputs.checkpoint).exists();
        for (key, files) in self.files() {
            there &= outlook.rows(place, key, &files)?.is_some();
        }
        let (train, adapts) = (&self.settings.train, self.settings.adapter.is_some());
        tuned(outlook, name, place, &self.inputs.checkpoint, train, adapts);
        let Some(plan) = known(outlook, there, || self.open(place))? else {
            return Ok(steps_alone(train, "data"));
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
        let rows = plan.counts().rows;
        made(place, outcome, |found, report| {
            let mut summary = format!("{} steps on {rows} rows", found["steps"]);
            if let Some(report) = report {
                summary += &format!(", loss {:.4} to {:.4}", report.first_loss, report.last_loss);
                summary += &report.skipped_words();
            }
            for (name, words) in [
                ("validation_loss", "held out"),
                ("preference_accuracy", "of held-out preferences right"),
            ] {
                if let Some(value) = found["measured"][name].as_f64() {
                    summary += &format!(", {value:.4} {words}");
                }
            }
            summary
        })
    }
}

/// An adapter to go on with is one that learns.
pub(super) fn goes_on(own: Option<&Path>, adapts: bool) -> Result<()> {
    if own.is_some() && !adapts {
        let sentence = "`inputs.adapter` names an adapter to go on with, but there is no `[adapter]`; write that";
        return Err(Usage(sentence.into()).into());
    }
    Ok(())
}

/// Tells later stages the decoder that tuning leaves: its checkpoint's, with room for the sequences. Adapters leave none.
pub(super) fn tuned(
    outlook: &mut Outlook,
    name: &str,
    place: &Place,
    checkpoint: &Path,
    train: &TrainSettings,
    adapts: bool,
) {
    if let Some(start) = outlook.decoder(checkpoint, place)
        && !adapts
    {
        let context = start.context.max(train.sequence_length);
        outlook
            .decoders
            .insert(name.to_owned(), russet_model::Config { context, ..start });
    }
}

/// A plan with its rows read, in a dry run whose inputs are there; ahead of a real run they are read once, by the run itself.
pub(super) fn known<P>(
    outlook: &Outlook,
    there: bool,
    open: impl FnOnce() -> Result<P, TrainError>,
) -> Result<Option<P>> {
    if !there || outlook.f32.is_none() {
        return Ok(None);
    }
    match open() {
        Ok(plan) => Ok(Some(plan)),
        Err(error @ (TrainError::Setting { .. } | TrainError::Data { .. })) => Err(error.into()),
        Err(_) => Ok(None),
    }
}

/// What can be told without rows.
pub(super) fn steps_alone(train: &TrainSettings, rows: &str) -> Plan {
    let text = match train.steps {
        Some(steps) => format!("{steps} steps"),
        None => format!("as many steps as the {rows} make"),
    };
    Plan {
        json: json!({ "steps": train.steps }),
        text,
    }
}

/// What came of a run, with the artifact's report; `summary` has that and, of a run that trained just now, the loop's.
pub(super) fn made(
    place: &Place,
    outcome: Outcome,
    summary: impl FnOnce(&Value, Option<&TrainReport>) -> String,
) -> Result<Made> {
    let report = match outcome {
        Outcome::Interrupted { step } => {
            let sentence =
                format!("stopped after step {step}; the same command goes on from there");
            return Err(Interrupted(sentence).into());
        }
        Outcome::Current => None,
        Outcome::Finished(report) => Some(report),
    };
    let mut facts = read_report(&place.out)?;
    let summary = summary(&facts, report.as_ref());
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

fn read_report(folder: &Path) -> Result<Value> {
    read_json(&folder.join(REPORT)).context("the artifact's report")
}
