//! `stage = "rlhf"`: a policy, prompts and rewards to a policy that earns more.

use std::path::PathBuf;

use anyhow::Result;
use russet_align::rlhf::settings::{PromptSettings, train_table};
use russet_align::rlhf::{Plan as RlhfPlan, RlhfSettings, Settings, Sources};
use russet_align::settings::constant;
use russet_artifact::Recipe;
use russet_train::settings::{ComputeSettings, OptimizerSettings, ScheduleSettings, TrainSettings};
use russet_train::{AdapterSettings, TrainError, TrainReport};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::align::{goes_on, known, made, steps_alone, tuned};
use super::{Made, Outlook, Place, Plan, StageKind, Work, look_at_texts};
use crate::app::App;
use crate::rules::Checkers;

/// The recipe as it stands in TOML; but for `inputs` it is [`Settings`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RlhfRecipe {
    #[serde(rename = "stage")]
    _stage: StageKind,
    inputs: RlhfInputs,
    #[serde(deserialize_with = "train_table")]
    train: TrainSettings,
    #[serde(default)]
    optimizer: OptimizerSettings,
    #[serde(default = "constant")]
    schedule: ScheduleSettings,
    adapter: Option<AdapterSettings>,
    rlhf: RlhfSettings,
    data: PromptSettings,
    #[serde(default)]
    compute: ComputeSettings,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RlhfInputs {
    /// The policy to begin with.
    checkpoint: PathBuf,
    /// An adapter to go on with, beside `[adapter]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<PathBuf>,
    /// The reward model.
    #[serde(skip_serializing_if = "Option::is_none")]
    reward: Option<PathBuf>,
    /// Its adapter, where it is one on the base `reward`.
    #[serde(skip_serializing_if = "Option::is_none")]
    reward_adapter: Option<PathBuf>,
}

pub(super) struct Rlhf {
    inputs: RlhfInputs,
    settings: Settings,
}

pub(super) fn read(app: &App, recipe: &Recipe) -> Result<Rlhf> {
    let RlhfRecipe {
        _stage: _,
        inputs,
        train,
        optimizer,
        schedule,
        adapter,
        rlhf,
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
        rlhf,
        data,
        compute,
    };
    let mut settings = settings.resolved()?;
    settings.compute.threads.get_or_insert(app.threads);
    goes_on(inputs.adapter.as_deref(), settings.adapter.is_some())?;
    Ok(Rlhf { inputs, settings })
}

impl Rlhf {
    fn open(&self, place: &Place) -> Result<RlhfPlan, TrainError> {
        let input = |name: &PathBuf| place.input(name);
        let RlhfInputs {
            checkpoint,
            adapter,
            reward,
            reward_adapter,
        } = &self.inputs;
        let sources = Sources {
            checkpoint: input(checkpoint),
            adapter: adapter.as_ref().map(input),
            reward: reward.as_ref().map(input),
            reward_adapter: reward_adapter.as_ref().map(input),
        };
        RlhfPlan::new(self.settings.clone(), sources, &Checkers)
    }
}

impl Work for Rlhf {
    fn settings(&self) -> Result<Value> {
        let mut json = Recipe::resolved_json(&self.settings)?;
        json["stage"] = StageKind::Rlhf.word().into();
        json["inputs"] = serde_json::to_value(&self.inputs)?;
        Ok(json)
    }

    /// With the prompts' counts where the models are there already.
    fn plan(&self, name: &str, place: &Place, outlook: &mut Outlook) -> Result<Plan> {
        let data = &self.settings.data;
        look_at_texts("data.train", &data.train)?;
        if !data.validation.is_empty() {
            look_at_texts("data.validation", &data.validation)?;
        }
        let (train, adapts) = (&self.settings.train, self.settings.adapter.is_some());
        tuned(outlook, name, place, &self.inputs.checkpoint, train, adapts);
        let inputs = &self.inputs;
        let all = [
            Some(&inputs.checkpoint),
            inputs.adapter.as_ref(),
            inputs.reward.as_ref(),
            inputs.reward_adapter.as_ref(),
        ];
        let there = all
            .into_iter()
            .flatten()
            .all(|name| place.input(name).exists());
        let Some(plan) = known(outlook, there, || self.open(place))? else {
            return Ok(steps_alone(train, "prompts"));
        };
        let (json, counts) = (plan.describe(), plan.counts());
        let text = format!(
            "{} numbers trained of a model of {}\n{} prompts of {} tokens, {} answers a batch\n{} steps, {} to a batch",
            json["trained_parameters"],
            json["parameters"],
            counts.prompts,
            counts.tokens,
            json["answers"],
            json["steps"],
            json["steps_per_batch"],
        );
        Ok(Plan { json, text })
    }

    fn run(&self, app: &mut App, _: &str, place: &Place) -> Result<Made> {
        crate::found::model(&place.input(&self.inputs.checkpoint))?;
        if let Some(reward) = &self.inputs.reward {
            crate::found::any_model(&place.input(reward))?;
        }
        let plan = self.open(place)?;
        let outcome = plan.run(
            &place.out,
            &app.tool,
            place.resume,
            &mut *app.progress,
            &app.interrupt,
        )?;
        let prompts = plan.counts().prompts;
        made(place, outcome, |found, report| {
            let mut summary = format!("{} steps on {prompts} prompts", found["steps"]);
            summary += &report.map_or(String::new(), TrainReport::skipped_words);
            let held_out = |when: &str| found[when]["validation_reward"].as_f64();
            if let (Some(before), Some(after)) = (held_out("before"), held_out("measured")) {
                summary += &format!(", held-out reward {before:.4} to {after:.4}");
            }
            summary
        })
    }
}
