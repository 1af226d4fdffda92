//! `stage = "pretrain"`: token shards to a checkpoint.

use std::path::{Path, PathBuf};

use anyhow::Result;
use russet_artifact::Recipe;
use russet_model::Config;
use russet_train::settings::{
    ComputeSettings, DataSettings, ModelSettings, OptimizerSettings, ParallelSettings,
    ScheduleSettings, StageName, TrainSettings,
};
use russet_train::{
    Device, DeviceKind, DistillSettings, Estimate, Memory, Outcome, Price, Rate, Settings, Sources,
    Start, TeacherInput, TeacherPrice, TrainError, copy_bytes_a_second,
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
    #[serde(default)]
    model: ModelSettings,
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
    #[serde(default)]
    parallel: ParallelSettings,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PretrainInputs {
    tokens: PathBuf,
    /// The checkpoint to begin with; random weights where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<PathBuf>,
    /// A checkpoint that teaches, by `[distill]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    teacher: Option<PathBuf>,
    /// Its predictions, stored beforehand.
    #[serde(skip_serializing_if = "Option::is_none")]
    teacher_logits: Option<PathBuf>,
}

pub(super) struct Pretrain {
    inputs: PretrainInputs,
    /// Processes on this machine and in all, which share the memory out.
    processes: (usize, usize),
    /// What is planned for, if it is not this machine.
    device: Option<Device>,
    /// Resolved, the threads too; of a checkpoint to begin with, its shape is left open.
    settings: Settings,
}

pub(super) fn read(app: &App, recipe: &Recipe) -> Result<Pretrain> {
    let PretrainRecipe {
        inputs,
        model,
        train,
        optimizer,
        schedule,
        distill,
        data,
        mut compute,
        parallel,
        ..
    } = recipe.parse()?;
    let kind = app.device.map_or(DeviceKind::Cpu, |device| device.kind);
    let parallel = parallel.chosen(kind, app.launch.processes())?;
    // The command line is nearer to the person than the recipe.
    if app.threads_given {
        compute.threads = Some(app.threads);
    }
    let settings = Settings {
        stage: StageName::Pretrain,
        model,
        train,
        optimizer,
        schedule,
        adapter: None,
        distill,
        data,
        compute,
        parallel,
    };
    let start = match inputs.checkpoint {
        Some(_) => Start::ToCome,
        None => Start::Random,
    };
    let mut settings = settings.resolved(start)?;
    settings.compute.threads.get_or_insert(app.threads);
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
    Ok(Pretrain {
        inputs,
        processes: (app.launch.processes_here(), app.launch.processes()),
        device: app.device,
        settings,
    })
}

impl PretrainInputs {
    /// All that are named.
    fn named(&self) -> impl Iterator<Item = &Path> {
        let rest = [&self.checkpoint, &self.teacher, &self.teacher_logits];
        let rest = rest.into_iter().flatten();
        std::iter::once(&self.tokens)
            .chain(rest)
            .map(PathBuf::as_path)
    }

    /// The teacher, where there is one.
    fn taught_by(&self, place: impl Fn(&Path) -> PathBuf) -> Option<TeacherInput> {
        let checkpoint = self.teacher.as_deref().map(&place);
        let logits = self.teacher_logits.as_deref().map(&place);
        checkpoint
            .map(TeacherInput::Checkpoint)
            .or(logits.map(TeacherInput::Logits))
    }
}

/// Whether the run's tokens recipes make the splits that are named here.
pub(super) fn check_splits(outlook: &Outlook, data: &DataSettings, tokens: &Path) -> Result<()> {
    let train = data.train.as_deref().or(match data.mixture.is_empty() {
        true => Some("train"),
        false => None,
    });
    if let Some(split) = train {
        outlook.check_split(tokens, "data.train", split)?;
    }
    for part in &data.mixture {
        let tokens = part.tokens.as_deref().unwrap_or(tokens);
        outlook.check_split(tokens, "data.mixture", &part.split)?;
    }
    match &data.validation {
        Some(split) => outlook.check_split(tokens, "data.validation", split),
        None => Ok(()),
    }
}

impl Pretrain {
    fn sources(&self, place: &Place) -> Sources {
        let input = |name: &PathBuf| place.input(name);
        let mixture = self.settings.data.mixture.iter();
        Sources {
            tokens: input(&self.inputs.tokens),
            checkpoint: self.inputs.checkpoint.as_ref().map(input),
            package: None,
            mixture: mixture
                .map(|part| part.tokens.as_ref().map(input))
                .collect(),
        }
    }

    /// The plan over what lies there.
    fn open(&self, place: &Place) -> Result<russet_train::Plan, TrainError> {
        let plan = russet_train::Plan::new(self.settings.clone(), self.sources(place))?;
        match self.inputs.taught_by(|name| place.input(name)) {
            Some(teacher) => plan.taught_by(teacher),
            None => Ok(plan),
        }
    }

    /// The shape of the checkpoint to begin with, where there is one and its shape is known.
    fn start(&self, place: &Place, outlook: &Outlook) -> Option<Config> {
        outlook.decoder(self.inputs.checkpoint.as_deref()?, place)
    }

    /// A rank's part of this machine, or of those that the processes are on, whose products run at `rate` in this process.
    fn here(&self, rate: Rate, ranks: usize) -> Device {
        let (here, all) = self.processes;
        let cores = self.settings.compute.threads.unwrap_or(1);
        let copy = copy_bytes_a_second();
        let of_all = Rate {
            gflops: rate.gflops * all as f64,
            ..rate
        };
        Device::here(of_all, copy, cores * all / here, ranks)
    }

    fn json(&self, settings: &Settings) -> Result<Value> {
        let mut json = Recipe::resolved_json(settings)?;
        json["inputs"] = serde_json::to_value(&self.inputs)?;
        Ok(json)
    }
}

/// What a run comes to, by the tokens that are there or by the recipes alone.
struct Reckoned {
    json: Value,
    text: String,
    memory: Memory,
    settings: Settings,
    decoder: Config,
    basis: &'static str,
}

impl Work for Pretrain {
    fn settings(&self) -> Result<Value> {
        self.json(&self.settings)
    }

    fn foreseen(&self, place: &Place, outlook: &Outlook) -> Result<Value> {
        match self.start(place, outlook) {
            Some(start) => self.json(&self.settings.clone().resolved(Start::Checkpoint(&start))?),
            None => self.settings(),
        }
    }

    /// Of the tokens where they lie there already; else of the vocabulary that the run's tokenizer recipe asks for.
    fn plan(&self, name: &str, place: &Place, outlook: &mut Outlook) -> Result<Plan> {
        check_splits(outlook, &self.settings.data, &self.inputs.tokens)?;
        let sources = self.sources(place);
        let start = self.start(place, outlook);
        if let (Some(checkpoint), None) = (&sources.checkpoint, &start) {
            let reason = format!(
                "{} is not there yet, so its size is not known",
                checkpoint.display()
            );
            return Ok(Plan {
                json: json!({ "reason": reason }),
                text: format!("no estimate: {reason}"),
            });
        }
        let vocab = start.as_ref().map(|start| start.vocab).or(outlook.vocab);
        let settled = {
            let mixture = self.settings.data.mixture.iter();
            let mixture = mixture.filter_map(|part| part.tokens.as_deref());
            let mut inputs = self.inputs.named().chain(mixture);
            inputs.all(|input| outlook.is_settled(input, place))
        };
        let known = match self.open(place) {
            Err(error @ TrainError::Setting { .. }) => return Err(error.into()),
            Err(error) if settled => return Err(error.into()),
            Err(_) => None, // They are still to be made.
            Ok(plan) => Some(plan).filter(|plan| {
                // Those of an earlier run, with another tokenizer or another decoder, say nothing.
                let size = start.as_ref().map(Config::parameters);
                vocab.is_none_or(|vocab| vocab == plan.config().vocab)
                    && size.is_none_or(|size| size == plan.config().parameters())
            }),
        };
        let standing = match &known {
            Some(plan) if outlook.looks => {
                let training = plan.training(&outlook.tool)?;
                match training.standing(&place.out, place.resume) {
                    // Inputs that are made anew may mend it.
                    Err(error) if !settled => Some(Err(error)),
                    standing => Some(Ok(standing?)),
                }
            }
            _ => None,
        };
        let teacher = self.inputs.teacher.as_deref();
        let teacher = teacher.and_then(|name| outlook.decoder(name, place));
        let Reckoned {
            mut json,
            mut text,
            memory,
            settings,
            decoder,
            basis,
        } = match (known, vocab) {
            (Some(plan), _) => {
                let description = plan.describe();
                Reckoned {
                    json: serde_json::to_value(&description)?,
                    text: description.to_string(),
                    memory: description.memory,
                    settings: plan.settings().clone(),
                    decoder: plan.config().clone(),
                    basis: "the tokens that are there",
                }
            }
            (None, Some(vocab)) => {
                let start = start.as_ref();
                let settings = self.settings.clone().resolved(Start::from(start))?;
                let mut price = Price::new(self.settings.clone(), vocab, start)?;
                if let Some(teacher) = &teacher {
                    let teacher = TeacherPrice::new(teacher, &settings, price.tokens);
                    price.memory.teacher = teacher.bytes;
                }
                Reckoned {
                    json: serde_json::to_value(price)?,
                    text: price.to_string(),
                    memory: price.memory,
                    decoder: settings.decoder(vocab, start)?,
                    settings,
                    basis: match sources.tokens.exists() {
                        true => "the recipes: inputs are still to be made, or made anew",
                        false => "the recipes: there are no tokens yet",
                    },
                }
            }
            (None, None) => {
                let reason = format!(
                    "{} is no tokens artifact yet and no tokenizer recipe lies beside this one, so the vocabulary and \
                         with it the size are not known",
                    sources.tokens.display()
                );
                return Ok(Plan {
                    json: json!({ "reason": reason }),
                    text: format!("no estimate: {reason}"),
                });
            }
        };
        match outlook.rate(settings.compute.dtype) {
            Some(rate) => {
                let ranks = settings.parallel.mesh().ranks();
                let device = self.device.unwrap_or_else(|| self.here(rate, ranks));
                let step =
                    russet_train::Outlook::new(&decoder, &settings, device, teacher.as_ref());
                let mut estimate = step.estimate(settings.train.steps.unwrap_or(0));
                // Measuring is counted where it is known how much: of tokens that are there, on this machine.
                let measuring = json["validation_flops"].as_f64();
                if let Some(flops) = measuring.filter(|_| self.device.is_none()) {
                    let measuring = Estimate::new(flops, rate);
                    estimate.seconds += measuring.seconds;
                    estimate.seconds_at_peak += measuring.seconds_at_peak;
                }
                if let Some(teacher) = &teacher {
                    text += &format!(
                        "\nteacher  {:.2} M parameters, a forward pass of every token",
                        teacher.parameters() as f64 / 1e6
                    );
                }
                text += &format!("\n{step}\ntime     {}", about(estimate.seconds));
                if self.device.is_none() {
                    text += &format!(" at {:.0} GFLOP/s of products", rate.gflops);
                    let (here, all) = self.processes;
                    let fits = memory.check_share(here, all);
                    if let Err(error) = &fits {
                        text += &format!("\nhere     it would be refused: {error}");
                    }
                    json["fits_here"] = match self.inputs.teacher.is_some() && teacher.is_none() {
                        true => Value::Null, // nothing is known of its size yet
                        false => fits.is_ok().into(),
                    };
                }
                text += &format!("\nby {basis}");
                json["step"] = serde_json::to_value(step)?;
                json["estimate"] = serde_json::to_value(estimate)?;
                json["basis"] = basis.into();
            }
            None if !place.out.exists() => {
                let (here, all) = self.processes;
                memory.check_share(here, all)?;
            }
            None => {}
        }
        if let Some(standing) = standing {
            let said = match standing {
                Ok(standing) => {
                    json["place"] = serde_json::to_value(&standing)?;
                    standing.to_string()
                }
                Err(error) => {
                    json["place"] = json!({"refused": error.to_string()});
                    format!("it would be refused: {error}")
                }
            };
            text += &format!("\nplace    {}: {said}", place.out.display());
            if !settled {
                json["place"]["inputs_may_change"] = true.into();
                text += ", if the stages before leave what lies there now";
            }
        }
        outlook.decoders.insert(name.to_owned(), decoder);
        Ok(Plan { json, text })
    }

    fn run(&self, app: &mut App, _: &str, place: &Place) -> Result<Made> {
        let plan = self.open(place)?;
        let outcome = russet_train::pretrain_as(
            &app.launch,
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
                    "{parameters} parameters on {} tokens at {:.0} tokens/s, loss {:.3}{}{validation}{}",
                    report.tokens,
                    report.tokens_per_second,
                    report.last_loss,
                    plan.loss_terms(),
                    report.skipped_words(),
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
