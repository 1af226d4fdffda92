//! What is trained on a package: `stage = "recover"`, to an adapter that brings back what palettizing lost, and `stage = "qat"`, to a
//! package whose palettes have learnt.

use std::path::{Path, PathBuf};

use anyhow::Result;
use russet_artifact::{Artifact, InputKind, InputRecord, Kind, Recipe};
use russet_compress::{
    HeldOut, QAT_REPORT, QatReport, QatSettings, RECOVER_REPORT, RecoverReport, RecoverSettings,
};
use russet_model::Config;
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

/// The recipe as it stands in TOML. `adapter` and `recover` are of recovery alone, and `qat` of quantization-aware training.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PackageRecipe {
    #[allow(
        dead_code,
        reason = "read by the job before, and here so that it is a known key"
    )]
    stage: StageKind,
    inputs: PackageInputs,
    adapter: Option<AdapterSettings>,
    recover: Option<RecoverSettings>,
    qat: Option<QatSettings>,
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
struct PackageInputs {
    tokens: PathBuf,
    package: PathBuf,
    /// The checkpoint that the package was made of: adapters are fitted to it, weights begin with its own, and both learn from its
    /// predictions.
    #[serde(skip_serializing_if = "Option::is_none")]
    teacher: Option<PathBuf>,
}

pub(super) struct OnPackage {
    inputs: PackageInputs,
    learns: Learns,
    /// Resolved, the threads too; what follows from the package's shape is left open.
    settings: Settings,
}

/// What is trained.
enum Learns {
    /// Adapters, which stand in the settings.
    Adapters(RecoverSettings),
    /// The package's own palettes.
    Palettes(QatSettings),
}

pub(super) fn recover(app: &App, recipe: &Recipe) -> Result<OnPackage> {
    let mut recipe: PackageRecipe = recipe.parse()?;
    let extra = recipe.qat.is_some().then_some("qat");
    refuse(
        extra,
        "recovery trains adapters, and palettes are trained by `stage = \"qat\"`",
    )?;
    let recover = recipe.recover.take().unwrap_or_default();
    let recover = recover.resolved(recipe.inputs.teacher.is_some())?;
    recipe.adapter.get_or_insert_default();
    read(app, recipe, StageName::Recover, Learns::Adapters(recover))
}

pub(super) fn qat(app: &App, recipe: &Recipe) -> Result<OnPackage> {
    let mut recipe: PackageRecipe = recipe.parse()?;
    let adapters = [
        recipe.adapter.is_some().then_some("adapter"),
        recipe.recover.is_some().then_some("recover"),
    ];
    let extra = adapters.into_iter().flatten().next();
    refuse(
        extra,
        "palettes are trained here, and adapters by `stage = \"recover\"`",
    )?;
    let qat = recipe.qat.take().unwrap_or_default();
    let qat = qat.resolved(recipe.inputs.teacher.is_some())?;
    qat.check_compute(&recipe.compute)?;
    read(app, recipe, StageName::Qat, Learns::Palettes(qat))
}

/// Refuses a table that nothing would read.
fn refuse(extra: Option<&str>, why: &str) -> Result<()> {
    match extra {
        Some(table) => Err(Usage(format!(
            "`[{table}]` is there, but {why}; leave the table out"
        ))
        .into()),
        None => Ok(()),
    }
}

fn read(app: &App, recipe: PackageRecipe, stage: StageName, learns: Learns) -> Result<OnPackage> {
    let PackageRecipe {
        inputs,
        adapter,
        train,
        optimizer,
        schedule,
        mut distill,
        data,
        mut compute,
        parallel,
        ..
    } = recipe;
    let parallel = parallel.chosen(DeviceKind::Cpu, app.launch.processes())?;
    let ranks = parallel.mesh().ranks();
    if ranks > 1 {
        let what = learns.word();
        let sentence = format!(
            "`[parallel]` makes {ranks} ranks, but {what} are trained on one, whose products use all threads; leave it out"
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
        stage,
        model: ModelSettings::default(),
        train,
        optimizer,
        schedule,
        adapter,
        distill,
        data,
        compute,
        parallel,
    };
    let mut settings = settings.resolved(Start::ToCome)?;
    settings.compute.threads.get_or_insert(app.threads);
    Ok(OnPackage {
        inputs,
        learns,
        settings,
    })
}

/// Refuses a teacher other than the checkpoint that the package was made of, where manifests can tell: adapters would be fitted to the
/// difference, and weights would begin with another model's.
fn made_of(package: &Path, teacher: &Path) -> Result<()> {
    let (Ok(made), Ok(taught)) = (Artifact::open_any(package), Artifact::open_any(teacher)) else {
        return Ok(()); // what is wrong with either is told where it is read
    };
    let other = |input: &&InputRecord| {
        let both = input.kind == InputKind::Artifact(Kind::Checkpoint);
        both && taught.kind() == Kind::Checkpoint && input.blake3 != taught.manifest().identity()
    };
    match made.manifest().inputs.get("checkpoint").filter(other) {
        Some(input) => {
            Err(Usage(format!(
                "`inputs.teacher` is {}, but {} was made of another checkpoint, {} from there; name that one, or a copy of it",
                teacher.display(),
                package.display(),
                input.path
            ))
            .into())
        }
        None => Ok(()),
    }
}

impl Learns {
    fn word(&self) -> &'static str {
        match self {
            Learns::Adapters(_) => "adapters",
            Learns::Palettes(_) => "palettes",
        }
    }
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

impl OnPackage {
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
        match &self.learns {
            Learns::Adapters(recover) => json["recover"] = serde_json::to_value(recover)?,
            Learns::Palettes(qat) => json["qat"] = serde_json::to_value(qat)?,
        }
        // Neither is a key that a person may write.
        if let Value::Object(json) = &mut json {
            json.remove("model");
            json.remove("parallel");
        }
        Ok(json)
    }

    /// What the adapters come to, where there are any, for a program and a person.
    fn adapters(&self, package: &Config) -> Result<Option<(Value, String)>> {
        let Some(adapter) = &self.settings.adapter else {
            return Ok(None);
        };
        adapter.check_base(package)?;
        let parameters = adapter.parameters(package);
        let bytes = parameters * adapter.dtype.dtype().bytes();
        let text = format!(
            "\nadapter  {:.2} M parameters of rank {} in {:.2} MiB",
            parameters as f64 / 1e6,
            adapter.rank,
            bytes as f64 / (1u64 << 20) as f64
        );
        let json = json!({"adapter_parameters": parameters, "adapter_bytes": bytes});
        Ok(Some((json, text)))
    }

    /// What the report says, and in a line.
    fn report(&self, out: &Path) -> Result<(Value, String)> {
        let held_out = |held_out: &HeldOut| match (held_out.loss_before, held_out.loss_after) {
            (Some(before), Some(after)) => {
                format!(", {before:.4} to {after:.4} nats per token held out")
            }
            _ => String::new(),
        };
        Ok(match &self.learns {
            Learns::Adapters(_) => {
                let facts = read_json(&out.join(RECOVER_REPORT))?;
                let report: RecoverReport = serde_json::from_value(facts.clone())?;
                let summary = format!(
                    "rank {}, {} bytes, {} tokens{}",
                    report.rank,
                    report.adapter_bytes,
                    report.tokens,
                    held_out(&report.held_out)
                );
                (facts, summary)
            }
            Learns::Palettes(_) => {
                let facts = read_json(&out.join(QAT_REPORT))?;
                let report: QatReport = serde_json::from_value(facts.clone())?;
                let summary = format!(
                    "{:.1} % of the indices moved, {} tokens{}",
                    100.0 * report.moved,
                    report.tokens,
                    held_out(&report.held_out)
                );
                (facts, summary)
            }
        })
    }
}

impl Work for OnPackage {
    fn settings(&self) -> Result<Value> {
        self.json(&self.settings)
    }

    fn plan(&self, name: &str, place: &Place, outlook: &mut Outlook) -> Result<Plan> {
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
        let adapters = self.adapters(&package)?;
        if adapters.is_none() {
            outlook.decoders.insert(name.to_owned(), package.clone());
        }
        let mut price = Price::new(self.settings.clone(), package.vocab, Some(&package))?;
        if let Learns::Palettes(qat) = &self.learns {
            qat.lighten(&package, &mut price.memory);
        }
        let mut text = price.to_string();
        let mut json = serde_json::to_value(price)?;
        if let Some((Value::Object(own), line)) = adapters {
            text += &line;
            own.into_iter().for_each(|(key, value)| json[key] = value);
        }
        match outlook.rate(self.settings.compute.dtype) {
            Some(rate) => {
                // The teacher's forward pass beside the two that adapters need, or the three of weights.
                let passes = if self.settings.adapter.is_some() {
                    2.0
                } else {
                    3.0
                };
                let taught = match self.inputs.teacher {
                    Some(_) => (passes + 1.0) / passes,
                    None => 1.0,
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
            made_of(&place.input(&self.inputs.package), teacher)?;
            plan = plan.taught_by(TeacherInput::Checkpoint(teacher.clone()))?;
        }
        let (out, tool, resume) = (&place.out, &app.tool, place.resume);
        let (progress, interrupt) = (&mut *app.progress, &app.interrupt);
        let teacher = teacher.as_deref();
        let outcome = match &self.learns {
            Learns::Adapters(recover) => russet_compress::recover(
                &plan, recover, teacher, out, tool, resume, progress, interrupt,
            )?,
            Learns::Palettes(qat) => {
                russet_compress::qat(&plan, qat, teacher, out, tool, resume, progress, interrupt)?
            }
        };
        if let Outcome::Interrupted { step } = outcome {
            let sentence =
                format!("stopped after step {step}; the same command goes on from there");
            return Err(Interrupted(sentence).into());
        }
        let (mut facts, mut summary) = self.report(&place.out)?;
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
