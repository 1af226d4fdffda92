//! A recipe of fine-tuning that has been checked, with its data: what would be learnt, and the run that learns it.
//!
//! A [`Plan`] is a [`Task`] of the training crate's one loop: it brings batches of conversations or preferences, the loss, and
//! the measure on held-out rows.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use russet_artifact::{Inputs, Interrupt, Progress, Recipe, Stage, Tool};
use russet_model::{Config, Decoder};
use russet_tensor::{Ctx, MeshShape};
use russet_train::plan::{IDLE_SETTINGS, label};
use russet_train::{
    Batches, Distill, GoesOn, Launch, Measure, Measured, NextToken, Objective, Outcome, Result,
    Resume, State, Task, Training,
};
use serde_json::{Value, json};

use crate::data::{Counts, Dealing, Dealt, Mean, Reading, RowKind, Source, TooLong, held_out};
use crate::dpo::{self, Reference};
use crate::reward_model::Rewards;
use crate::settings::{Lesson, Settings};
use crate::start::{self, Start};

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
        let Start {
            mut inputs,
            config,
            tokenizer,
            template,
        } = Start::new(
            &sources.checkpoint,
            sources.adapter.as_deref(),
            settings.adapter.is_some(),
            settings.train.sequence_length,
            settings.data.chat_template.as_deref(),
        )?;
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
        let adapter = self.settings.adapter.as_ref();
        json!({
            "parameters": self.config.parameters(),
            "trained_parameters": start::trained_parameters(&self.config, adapter),
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
        let (checkpoint, own) = (&self.sources.checkpoint, self.sources.adapter.as_deref());
        let trained = start::learner(&self.config, checkpoint, own, adapter.as_ref());
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
        let own = self.sources.adapter.as_deref();
        let decoder = start::decoder(&self.sources.checkpoint, own)?;
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
        let template = self.template.as_ref();
        Ok(start::files(
            self.lesson.word(),
            self.card(state, measured),
            self.data(false),
            template.filter(|_| self.settings.adapter.is_none()),
            state,
            measured,
        ))
    }
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
