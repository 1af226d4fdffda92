//! `stage = "recover"`: a package to an adapter that brings back what palettizing lost.

use std::path::{Path, PathBuf};

use anyhow::Result;
use russet_artifact::Recipe;
use russet_compress::{RECOVER_REPORT, RecoverReport, RecoverSettings};
use russet_train::settings::{
    ComputeSettings, DataSettings, ModelSettings, OptimizerSettings, ParallelSettings,
    ScheduleSettings, StageName, TrainSettings,
};
use russet_train::{
    AdapterSettings, DeviceKind, DistillKind, DistillSettings, Estimate, Outcome, Price, Settings,
    Sources, Start, TeacherInput,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::pretrain::check_splits;
use super::{Made, Outlook, Place, Plan, StageKind, Work, about, read_json};
use crate::app::{App, Interrupted, Usage};

/// The recipe as it stands in TOML.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecoverRecipe {
    #[allow(
        dead_code,
        reason = "read by the job before, and here so that it is a known key"
    )]
    stage: StageKind,
    inputs: RecoverInputs,
    #[serde(default)]
    adapter: AdapterSettings,
    #[serde(default)]
    recover: RecoverSettings,
    train: TrainSettings,
    #[serde(default)]
    optimizer: OptimizerSettings,
    #[serde(default)]
    schedule: ScheduleSettings,
    distill: Option<DistillSettings>,
    #[serde(default)]
    data: DataSettings,
    #[serde(default)]
    compute: ComputeSettings,
    /// Known, so that it is refused with a reason.
    #[serde(default)]
    parallel: ParallelSettings,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecoverInputs {
    tokens: PathBuf,
    package: PathBuf,
    /// The checkpoint that the package was made of: the adapters are fitted to it, and learn from its predictions.
    #[serde(skip_serializing_if = "Option::is_none")]
    teacher: Option<PathBuf>,
}

pub(super) struct Recover {
    inputs: RecoverInputs,
    recover: RecoverSettings,
    /// Resolved, the threads too; what follows from the package's shape is left open.
    settings: Settings,
}

pub(super) fn read(app: &App, recipe: &Recipe) -> Result<Recover> {
    let RecoverRecipe {
        inputs,
        adapter,
        recover,
        train,
        optimizer,
        schedule,
        mut distill,
        data,
        mut compute,
        parallel,
        ..
    } = recipe.parse()?;
    let parallel = parallel.chosen(DeviceKind::Cpu, app.launch.processes())?;
    let ranks = parallel.mesh().ranks();
    if ranks > 1 {
        let sentence = format!(
            "`[parallel]` makes {ranks} ranks, but adapters are trained on one, whose products use all threads; leave it out"
        );
        return Err(Usage(sentence).into());
    }
    if app.threads_given {
        compute.threads = Some(app.threads);
    }
    match (&inputs.teacher, &distill) {
        (Some(_), None) => distill = Some(by_default()),
        (None, Some(_)) => {
            let sentence = "`[distill]` is there, but no teacher; name the checkpoint that the package was made of in \
                            `inputs.teacher`";
            return Err(Usage(sentence.into()).into());
        }
        _ => {}
    }
    if let (Some(teacher), Some(distill)) = (&inputs.teacher, &distill) {
        TeacherInput::Checkpoint(teacher.clone()).check(distill)?;
    }
    let settings = Settings {
        stage: StageName::Recover,
        model: ModelSettings::default(),
        train,
        optimizer,
        schedule,
        adapter: Some(adapter),
        distill,
        data,
        compute,
        parallel,
    };
    let mut settings = settings.resolved(Start::ToCome)?;
    settings.compute.threads.get_or_insert(app.threads);
    let recover = recover.resolved(inputs.teacher.is_some())?;
    Ok(Recover {
        inputs,
        recover,
        settings,
    })
}

/// What is learnt from the checkpoint that the package was made of, where nothing is said of it: all of its probabilities say
/// more of a token than the token itself.
fn by_default() -> DistillSettings {
    DistillSettings {
        kind: DistillKind::Kl,
        mix: 0.9,
        temperature: 1.0,
    }
}

impl Recover {
    fn sources(&self, place: &Place) -> Sources {
        let mixture = self.settings.data.mixture.iter();
        let input = |name: &PathBuf| place.input(name);
        Sources {
            tokens: input(&self.inputs.tokens),
            checkpoint: None,
            package: Some(input(&self.inputs.package)),
            mixture: mixture
                .map(|part| part.tokens.as_ref().map(input))
                .collect(),
        }
    }

    fn json(&self, settings: &Settings) -> Result<Value> {
        let mut json = Recipe::resolved_json(settings)?;
        json["inputs"] = serde_json::to_value(&self.inputs)?;
        json["recover"] = serde_json::to_value(&self.recover)?;
        // Neither is a key that a person may write.
        if let Value::Object(json) = &mut json {
            json.remove("model");
            json.remove("parallel");
        }
        Ok(json)
    }

    fn adapter(&self) -> &AdapterSettings {
        let adapter = self.settings.adapter.as_ref();
        adapter.expect("the settings of recovery have adapters")
    }
}

impl Work for Recover {
    fn settings(&self) -> Result<Value> {
        self.json(&self.settings)
    }

    fn plan(&self, _: &str, place: &Place, outlook: &mut Outlook) -> Result<Plan> {
        check_splits(outlook, &self.settings.data, &self.inputs.tokens)?;
        let Some(package) = outlook.decoder(&self.inputs.package, place) else {
            let reason = format!(
                "{} is not there yet, so its size is not known",
                place.input(&self.inputs.package).display()
            );
            return Ok(Plan {
                json: json!({ "reason": reason }),
                text: format!("no estimate: {reason}"),
            });
        };
        self.adapter().check_base(&package)?;
        let price = Price::new(self.settings.clone(), package.vocab, Some(&package))?;
        let parameters = self.adapter().parameters(&package);
        let bytes = parameters * self.adapter().dtype.dtype().bytes();
        let mut json = serde_json::to_value(price)?;
        json["adapter_parameters"] = parameters.into();
        json["adapter_bytes"] = bytes.into();
        let mut text = format!(
            "{price}\nadapter  {:.2} M parameters of rank {} in {:.2} MiB",
            parameters as f64 / 1e6,
            self.adapter().rank,
            bytes as f64 / (1u64 << 20) as f64
        );
        match outlook.rate(self.settings.compute.dtype) {
            Some(rate) => {
                // The teacher's forward pass beside the two that adapters need.
                let taught = if self.inputs.teacher.is_some() {
                    1.5
                } else {
                    1.0
                };
                let estimate = Estimate::new(taught * price.flops, rate);
                text += &format!("\ntime     {}", about(estimate.seconds));
                json["estimate"] = serde_json::to_value(estimate)?;
            }
            None if !place.out.exists() => price.memory.check()?,
            None => {}
        }
        Ok(Plan { json, text })
    }

    fn run(&self, app: &mut App, _: &str, place: &Place) -> Result<Made> {
        let teacher = self.inputs.teacher.as_deref();
        let teacher = teacher.map(|name: &Path| place.input(name));
        let mut plan = russet_train::Plan::new(self.settings.clone(), self.sources(place))?;
        if let Some(teacher) = &teacher {
            plan = plan.taught_by(TeacherInput::Checkpoint(teacher.clone()))?;
        }
        let outcome = russet_compress::recover(
            &plan,
            &self.recover,
            teacher.as_deref(),
            &place.out,
            &app.tool,
            place.resume,
            &mut *app.progress,
            &app.interrupt,
        )?;
        if let Outcome::Interrupted { step } = outcome {
            let sentence =
                format!("stopped after step {step}; the same command goes on from there");
            return Err(Interrupted(sentence).into());
        }
        let mut facts = read_json(&place.out.join(RECOVER_REPORT))?;
        let report: RecoverReport = serde_json::from_value(facts.clone())?;
        let held_out = match (report.loss_before, report.loss_after) {
            (Some(before), Some(after)) => {
                format!(", {before:.4} to {after:.4} nats per token held out")
            }
            _ => String::new(),
        };
        let mut summary = format!(
            "rank {}, {} bytes, {} tokens{held_out}",
            report.rank, report.adapter_bytes, report.tokens
        );
        let skipped = match outcome {
            Outcome::Finished(trained) => {
                summary += &trained.skipped_words();
                facts["seconds"] = trained.seconds.into();
                facts["tokens_per_second"] = trained.tokens_per_second.into();
                facts["losses"] = serde_json::to_value(&trained.losses)?;
                false
            }
            _ => true,
        };
        Ok(Made {
            skipped,
            summary,
            facts,
        })
    }
}
