//! A recipe of fine-tuning that has been checked, with its data: what would be learnt, and the run that learns it.
//!
//! A [`Plan`] is a [`Task`] of the training crate's one loop: it brings batches of conversations or preferences, the loss, and
//! the measure on held-out rows.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use russet_artifact::{Artifact, Inputs, Interrupt, Kind, Progress, Recipe, Stage, Tool};
use russet_model::{Config, Decoder};
use russet_tensor::{Ctx, MeshShape};
use russet_tokenizer::{CHATML_TOOLS, IM_END, IM_START, Tokenizer};
use russet_train::plan::{IDLE_SETTINGS, label};
use russet_train::{
    Adapters, Batches, Distill, First, GoesOn, Launch, Measure, Measured, NextToken, Objective,
    Outcome, Result, Resume, State, Task, TrainError, Trained, Training,
};
use serde_json::{Value, json};

use crate::data::{Counts, Dealing, Dealt, Mean, Reading, RowKind, Source, TooLong, held_out};
use crate::dpo::{self, Reference};
use crate::reward_model::Rewards;
use crate::settings::{Lesson, Settings};

/// The file of the artifact that says what the data came to and what was measured.
pub const REPORT: &str = "report.json";

/// Where the inputs of a recipe lie.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The model to begin with: a checkpoint, or where adapters are trained a package too.
    pub checkpoint: PathBuf,
    /// An adapter (PEFT folder) that training goes on with; with `[adapter]` only.
    pub adapter: Option<PathBuf>,
}

/// A checked recipe with its data.
#[derive(Debug)]
pub struct Plan {
    lesson: Lesson,
    settings: Settings,
    sources: Sources,
    config: Config,
    template: Option<String>, // to be written beside the weights
    inputs: Inputs,
    train: Vec<Source>,
    weights: Vec<f64>,
    validation: Vec<Source>,
    reference: Mutex<Option<Arc<Reference>>>,
}

impl Plan {
    /// Checks settings against each other and the model, and reads the data.
    ///
    /// # Errors
    /// When a setting cannot be, the model is none or has no chat template, or a row cannot be read.
    pub fn new(lesson: Lesson, settings: Settings, sources: Sources) -> Result<Plan> {
        let mut settings = settings.resolved(lesson)?;
        let start = Config::open(&sources.checkpoint)?;
        let inputs = Inputs::new();
        let mut inputs = base_input(
            inputs,
            "checkpoint",
            &sources.checkpoint,
            settings.adapter.is_some(),
        )?;
        if let Some(adapter) = &sources.adapter {
            if settings.adapter.is_none() {
                let problem = "is missing, but `inputs.adapter` names an adapter to go on with; write [adapter]".to_owned();
                return Err(TrainError::Setting {
                    key: "adapter",
                    problem,
                });
            }
            inputs = inputs.artifact_or_path("adapter", adapter, Kind::Adapter)?;
        }
        let (tokenizer, template) =
            tokenizer(&sources.checkpoint, settings.data.chat_template.as_deref())?;
        if tokenizer.vocab_size() > start.vocab {
            let problem = format!(
                "its tokenizer has {} tokens but its vocabulary {}; they do not belong together",
                tokenizer.vocab_size(),
                start.vocab
            );
            return Err(TrainError::Data {
                place: sources.checkpoint.clone(),
                problem,
            });
        }
        if let Some(path) = &settings.data.chat_template {
            inputs = inputs.path("chat_template", path)?;
        }
        let reading = Reading {
            kind: match lesson {
                Lesson::Conversations => RowKind::Conversations,
                Lesson::Preferences => RowKind::Pairs,
                Lesson::Rewards => RowKind::Judged,
            },
            sequence_length: settings.train.sequence_length,
            too_long: settings.data.too_long.unwrap_or(TooLong::Drop),
            skip_malformed: settings.data.skip_malformed,
        };
        let data = &settings.data;
        let mixed = data
            .mixture
            .iter()
            .map(|part| (&part.file, Some(part.weight)));
        let files = data.train.iter().map(|file| (file, None)).chain(mixed);
        let (mut train, mut weights) = (Vec::<Source>::new(), Vec::new());
        for (number, (file, weight)) in files.enumerate() {
            inputs = inputs.path(&format!("train-{number}"), file)?;
            let label = label(&stem(file), |label| {
                train.iter().any(|source| source.label == label)
            });
            let source = Source::read(file, label, &tokenizer, reading)?;
            weights.push(weight.unwrap_or(source.sequences.len() as f64));
            train.push(source);
        }
        let mut validation = Vec::new();
        for (number, file) in data.validation.iter().enumerate() {
            inputs = inputs.path(&format!("validation-{number}"), file)?;
            validation.push(Source::read(
                file,
                "validation".to_owned(),
                &tokenizer,
                reading,
            )?);
        }
        if let Some(epochs) = data.epochs {
            let sequences: usize = train.iter().map(|source| source.sequences.len()).sum();
            let steps = epochs * sequences as f64 / settings.train.batch_sequences.max(1) as f64;
            settings.train.steps = Some(steps.ceil() as u64);
        }
        settings
            .train
            .resolve(&settings.optimizer, &settings.schedule)?;
        let length = settings.train.sequence_length;
        let config = match settings.adapter {
            // Its base answers for its context.
            Some(_) if start.context < length => {
                let problem = format!(
                    "is {length}, but the base was made for {} tokens of context; lower it",
                    start.context
                );
                return Err(TrainError::Setting {
                    key: "train.sequence_length",
                    problem,
                });
            }
            Some(_) => start,
            None => Config {
                context: start.context.max(length),
                ..start
            },
        };
        Ok(Plan {
            lesson,
            settings,
            sources,
            config,
            template,
            inputs,
            train,
            weights,
            validation,
            reference: Mutex::new(None),
        })
    }

    /// The settings with everything that was left open filled in, except threads.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The decoder's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Files, what they came to, and how long it goes on, for a program.
    pub fn describe(&self) -> Value {
        let numbers = match &self.settings.adapter {
            Some(adapter) => adapter.parameters(&self.config),
            None => self.config.parameters(),
        };
        json!({
            "parameters": self.config.parameters(),
            "trained_parameters": numbers,
            "steps": self.settings.train.steps,
            "batch_sequences": self.settings.train.batch_sequences,
            "data": self.data(true),
        })
    }

    /// What each file came to, in the recipe's order. Artifacts do not say its name: renaming a file makes no other run.
    fn data(&self, names: bool) -> Value {
        let all: f64 = self.weights.iter().sum();
        let file = |source: &Source| {
            let mut json = json!({"counts": source.counts});
            if names {
                json["file"] = source.path.display().to_string().into();
            }
            json
        };
        let train = self
            .train
            .iter()
            .zip(&self.weights)
            .map(|(source, weight)| {
                let mut json = file(source);
                json["share"] = (weight / all).into();
                json
            });
        let train: Vec<Value> = train.collect();
        let validation: Vec<Value> = self.validation.iter().map(file).collect();
        json!({"train": train, "validation": validation})
    }

    /// Counts of all training files together.
    pub fn counts(&self) -> Counts {
        self.train.iter().fold(Counts::default(), |sum, source| {
            let one = source.counts;
            Counts {
                rows: sum.rows + one.rows,
                malformed: sum.malformed + one.malformed,
                cut: sum.cut + one.cut,
                dropped: sum.dropped + one.dropped,
                tokens: sum.tokens + one.tokens,
                learnt_tokens: sum.learnt_tokens + one.learnt_tokens,
                sequences: sum.sequences + one.sequences,
            }
        })
    }

    /// The stage that writes the artifact: everything the result is a function of, and nothing else.
    ///
    /// # Errors
    /// When the settings have no JSON form.
    pub fn stage(&self, tool: &Tool) -> Result<Stage> {
        let mut recipe = Recipe::resolved_json(&self.settings)?;
        for (table, key) in IDLE_SETTINGS {
            if let Some(table) = recipe.get_mut(table).and_then(Value::as_object_mut) {
                table.remove(key);
            }
        }
        // Names of files do not matter: `inputs` has what lies behind them.
        if let Some(data) = recipe["data"].as_object_mut() {
            for key in ["train", "validation", "chat_template", "epochs"] {
                data.remove(key);
            }
            let mixture = data.get_mut("mixture").and_then(Value::as_array_mut);
            for part in mixture
                .into_iter()
                .flatten()
                .filter_map(Value::as_object_mut)
            {
                part.remove("file");
            }
        }
        Ok(Stage::new(
            self.lesson.word(),
            tool,
            recipe,
            self.inputs.clone(),
        ))
    }

    /// Trains, and leaves the checkpoint or the adapter in `out`. Killed at any moment and called again, it leaves the same
    /// bytes.
    ///
    /// # Errors
    /// When `out` or the state beside it holds something else, the run diverges, or the system refuses.
    pub fn run(
        &self,
        out: &Path,
        tool: &Tool,
        resume: Resume,
        progress: &mut dyn Progress,
        interrupt: &Interrupt,
    ) -> Result<Outcome> {
        let Settings {
            train,
            optimizer,
            schedule,
            adapter,
            compute,
            ..
        } = &self.settings;
        let trained = match adapter {
            None => Trained::Weights {
                config: self.config.clone(),
                checkpoint: Some(self.sources.checkpoint.clone()),
                tokenizer: self.sources.checkpoint.clone(),
            },
            Some(settings) => Trained::Adapters(Adapters {
                base: self.sources.checkpoint.clone(),
                settings: settings.clone(),
                first: self.sources.adapter.clone().map_or(First::New, First::Of),
            }),
        };
        for source in &self.train {
            for line in said(source) {
                progress.message(&line);
            }
        }
        let mut train = train.clone();
        let training = Training {
            stage: self.stage(tool)?,
            schedule: train.resolve(optimizer, schedule)?,
            train: &self.settings.train,
            optimizer: *optimizer,
            compute,
            mesh: MeshShape { sizes: [1; 4] },
            memory: None,
            trained,
            reward: self.lesson == Lesson::Rewards,
            task: self,
            measures_start: !self.validation.is_empty(),
        };
        training.run(&Launch::Threads, out, resume, progress, interrupt)
    }

    /// What the model that training begins with says of every response: computed once a process.
    fn reference(&self) -> Result<Arc<Reference>> {
        let mut held = self
            .reference
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(reference) = &*held {
            return Ok(reference.clone());
        }
        let mut ctx = Ctx::new(Arc::new(self.settings.compute.pool(1)?));
        ctx.compute = self.settings.compute.dtype.kernel();
        let decoder =
            dpo::starting_decoder(&self.sources.checkpoint, self.sources.adapter.as_deref())?;
        let made = Arc::new(Reference::of(
            &mut ctx,
            &decoder,
            &self.train,
            &self.validation,
        ));
        *held = Some(made.clone());
        Ok(made)
    }

    fn pass_tokens(&self) -> usize {
        let train = &self.settings.train;
        train.sequence_length * train.micro_batch_sequences.unwrap_or(train.batch_sequences)
    }

    fn card(&self, state: &State, measured: &Measured) -> String {
        let what = match self.lesson {
            Lesson::Conversations => {
                "A decoder fine-tuned with Russet on conversations: it learnt what the assistant says in them, and nothing else \
                 of them."
            }
            Lesson::Preferences => {
                "A decoder fine-tuned with Russet on preferences: of two answers to a prompt it learnt to prefer the better one."
            }
            Lesson::Rewards => {
                "A reward model trained with Russet on preferences: the head at the last token of a conversation, the one that ends \
                 the answer, says how good the answer is. Differences mean something, levels do not."
            }
        };
        let library = if self.settings.adapter.is_some() {
            "peft"
        } else {
            "transformers"
        };
        let pipeline = match self.lesson {
            Lesson::Rewards => "text-classification",
            _ => "text-generation",
        };
        let mut card = format!(
            "---\nlibrary_name: {library}\npipeline_tag: {pipeline}\ntags: [russet, {}]\n---\n\n# Tuned model\n\n{what}\n\n\
             | | |\n|---|---|\n",
            self.lesson.word()
        );
        let mut row = |name: &str, value: String| {
            writeln!(card, "| {name} | {value} |").expect("a string takes what is written");
        };
        let (train, counts) = (&self.settings.train, self.counts());
        row("parameters", self.config.parameters().to_string());
        row(
            "begins with",
            "the input `checkpoint` of `manifest.json`".to_owned(),
        );
        row("steps", state.step.to_string());
        row("rows", counts.rows.to_string());
        row(
            "tokens of them that are learnt",
            counts.learnt_tokens.to_string(),
        );
        let batch = format!(
            "{} sequences of at most {} tokens",
            train.batch_sequences, train.sequence_length
        );
        row("batch", batch);
        let optimizer = self.settings.optimizer;
        row(
            "optimizer",
            format!("{}, peak learning rate {}", optimizer.name(), train.peak_lr),
        );
        if let Some(dpo) = &self.settings.dpo {
            let form = if dpo.length_normalised {
                ", length-normalised"
            } else {
                ""
            };
            row("loss", format!("{:?}, β = {}{form}", dpo.loss, dpo.beta));
        }
        if let Some(reward) = &self.settings.reward {
            row(
                "loss",
                format!(
                    "soft targets by strength, {} where a row names none; grades count {}",
                    reward.strength.word(),
                    reward.grade_weight
                ),
            );
        }
        row(
            "training loss",
            format!("{:.4}, last step", state.tally.last_loss),
        );
        for (name, value) in measured {
            row(&name.replace('_', " "), format!("{value:.4}"));
        }
        card.push_str(
            "\nSettings, inputs and hashes stand in `manifest.json`, counts in `report.json`.\n",
        );
        card
    }
}

impl Task for Plan {
    fn objective(&self) -> Result<Box<dyn Objective + '_>> {
        let z_loss = self.settings.train.z_loss as f32;
        if let Some(reward) = self.settings.reward {
            return Ok(Box::new(Rewards::new(reward, &self.train)));
        }
        Ok(match &self.settings.dpo {
            Some(dpo) => Box::new(dpo::Preferences::new(*dpo, self.reference()?)),
            None if z_loss > 0.0 => Box::new(Distill {
                z_loss,
                teacher: None,
            }),
            None => Box::new(NextToken),
        })
    }

    fn batches(&self, place: usize, places: usize) -> Result<Box<dyn Batches + '_>> {
        assert_eq!((place, places), (0, 1), "one rank sees all of the data");
        let train = &self.settings.train;
        let dealing = Dealing {
            batch_sequences: train.batch_sequences,
            micro_batch_sequences: train.micro_batch_sequences.unwrap_or(train.batch_sequences),
            seed: train.seed,
            mean: match self.lesson {
                Lesson::Conversations => Mean::Tokens,
                Lesson::Preferences | Lesson::Rewards => Mean::Sequences,
            },
        };
        Ok(Box::new(Dealt::new(&self.train, &self.weights, dealing)))
    }

    fn measure(&self) -> Result<Option<Box<Measure<'_>>>> {
        if self.validation.is_empty() {
            return Ok(None);
        }
        let budget = self.settings.train.validation_tokens;
        let passes = held_out(&self.validation, budget, self.pass_tokens());
        if let Some(reward) = self.settings.reward {
            let objective = Rewards::new(reward, &self.validation);
            let measure = move |ctx: &mut Ctx, decoder: &Decoder, goes_on: &mut GoesOn| {
                Ok(objective.measure(&passes, ctx, decoder, goes_on))
            };
            return Ok(Some(Box::new(measure)));
        }
        Ok(Some(match &self.settings.dpo {
            None => Box::new(
                move |ctx: &mut Ctx, decoder: &Decoder, goes_on: &mut GoesOn| {
                    Ok(crate::sft::measure(&passes, ctx, decoder, goes_on))
                },
            ),
            Some(dpo) => {
                let objective = dpo::Preferences::new(*dpo, self.reference()?).held_out();
                Box::new(
                    move |ctx: &mut Ctx, decoder: &Decoder, goes_on: &mut GoesOn| {
                        Ok(objective.measure(&passes, ctx, decoder, goes_on))
                    },
                )
            }
        }))
    }

    fn files(&self, state: &State, measured: &Measured) -> Result<Vec<(String, Vec<u8>)>> {
        let values =
            |pairs: &mut dyn Iterator<Item = (String, f64)>| pairs.collect::<BTreeMap<_, _>>();
        let mut after = measured
            .iter()
            .map(|(name, value)| ((*name).to_owned(), *value));
        let report = json!({
            "stage": self.lesson.word(),
            "steps": state.step,
            "data": self.data(false),
            "before": values(&mut state.tally.before.iter().cloned()),
            "measured": values(&mut after),
        });
        let mut files = vec![
            (
                "README.md".to_owned(),
                self.card(state, measured).into_bytes(),
            ),
            (REPORT.to_owned(), format!("{report:#}\n").into_bytes()),
        ];
        if let (Some(template), None) = (&self.template, &self.settings.adapter) {
            files.push((
                "chat_template.jinja".to_owned(),
                template.clone().into_bytes(),
            ));
        }
        Ok(files)
    }
}

/// A model as an input: a checkpoint, or below adapters a package too.
pub(crate) fn base_input(inputs: Inputs, key: &str, folder: &Path, adapts: bool) -> Result<Inputs> {
    if !adapts || !folder.join("manifest.json").exists() {
        return Ok(inputs.artifact_or_path(key, folder, Kind::Checkpoint)?);
    }
    let artifact = Artifact::open_any(folder)?;
    match artifact.kind() {
        Kind::Checkpoint | Kind::Package => Ok(inputs.artifact(key, &artifact)?),
        _ => Ok(inputs.artifact_or_path(key, folder, Kind::Checkpoint)?),
    }
}

/// The model's tokenizer with the template that is learnt; and that template where the checkpoint has another or none.
pub(crate) fn tokenizer(
    folder: &Path,
    chat_template: Option<&Path>,
) -> Result<(Tokenizer, Option<String>)> {
    let tokenizer = Tokenizer::open(folder)?;
    if let Some(path) = chat_template {
        let refuse = |error: std::io::Error| TrainError::Data {
            place: path.to_owned(),
            problem: format!("cannot be read, and `data.chat_template` names it: {error}"),
        };
        let source = std::fs::read_to_string(path).map_err(refuse)?;
        let tokenizer = tokenizer.with_chat_template(source.clone())?;
        return Ok((tokenizer, Some(source)));
    }
    if let Some(template) = tokenizer.chat_template() {
        let source = template.source().to_owned();
        return Ok((tokenizer, Some(source)));
    }
    let special = |name: &str| {
        tokenizer
            .token_id(name)
            .is_some_and(|id| tokenizer.is_special(id))
    };
    if !special(IM_START) || !special(IM_END) {
        return Err(TrainError::Data {
            place: folder.to_owned(),
            problem: "it has no chat template, and its tokenizer not the tokens of ChatML; name a template as \
                      `data.chat_template`"
                .to_owned(),
        });
    }
    let tokenizer = tokenizer.with_chat_template(CHATML_TOOLS)?;
    Ok((tokenizer, Some(CHATML_TOOLS.to_owned())))
}

/// What a person should hear of a file.
fn said(source: &Source) -> Vec<String> {
    let Counts {
        malformed,
        cut,
        dropped,
        ..
    } = source.counts;
    let said = [
        (malformed, "rows cannot be read and are left out"),
        (cut, "conversations are longer than a sequence and cut"),
        (dropped, "rows are longer than a sequence and left out"),
    ];
    let said = said.into_iter().filter(|(count, _)| *count > 0);
    said.map(|(count, what)| format!("{}: {count} {what}", source.path.display()))
        .collect()
}

/// A file's name up to the first dot.
pub(crate) fn stem(file: &Path) -> String {
    let name = file.file_name().map(|name| name.to_string_lossy());
    let stem = name.as_deref().and_then(|name| name.split('.').next());
    stem.filter(|stem| !stem.is_empty())
        .unwrap_or("train")
        .to_owned()
}
