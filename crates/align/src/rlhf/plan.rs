//! A recipe of reinforcement learning that has been checked, with its prompts, and the run that learns from their answers.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russet_artifact::{Inputs, Interrupt, Progress, Recipe, Stage, Tool};
use russet_model::{Config, Decoder, Embedding};
use russet_tensor::{Ctx, MeshShape};
use russet_tokenizer::Tokenizer;
use russet_train::plan::IDLE_SETTINGS;
use russet_train::{
    Batches, GoesOn, Launch, Measure, Measured, Objective, Outcome, Result, Resume, State, Task,
    Training, VALIDATION_LOSS,
};
use serde_json::{Value, json};

use super::prompts::{Counts, Prompt, Prompts, drawn};
use super::rollout::{Drawer, Rollouts};
use super::settings::{Divergence, KEYS, Settings};
use super::{PolicyGradient, SharedBoard};
use crate::rewards::{ModelReward, Rules, Sum, reward_inputs, rules};
use crate::settings::refuse;
use crate::start::{self, Start};

/// Where the inputs of a recipe lie.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The policy to begin with, which is the reference too: a checkpoint, or where adapters are trained a package too.
    pub checkpoint: PathBuf,
    /// An adapter (PEFT folder) that training goes on with; with `[adapter]` only.
    pub adapter: Option<PathBuf>,
    /// The reward model: a checkpoint with a reward head, or the base of `reward_adapter`.
    pub reward: Option<PathBuf>,
    /// An adapter with a reward head.
    pub reward_adapter: Option<PathBuf>,
}

/// A checked recipe with its prompts.
pub struct Plan {
    settings: Settings,
    sources: Sources,
    config: Config,
    tokenizer: Tokenizer,
    template: Option<String>, // to be written beside the weights
    inputs: Inputs,
    train: Prompts,
    validation: Option<Prompts>,
    rewards: Sum, // but for the reward model, which a run opens
}

impl Plan {
    /// Checks settings against each other and the models, and reads the prompts.
    ///
    /// # Errors
    /// When a setting cannot be, a model is none, or a row cannot be read or judged.
    pub fn new(settings: Settings, sources: Sources, known: &dyn Rules) -> Result<Plan> {
        let mut settings = settings.resolved()?;
        let adapts = settings.adapter.is_some();
        let length = settings.train.sequence_length;
        let own = sources.adapter.as_deref();
        let Start {
            mut inputs,
            config,
            tokenizer,
            template,
        } = Start::new(&sources.checkpoint, own, adapts, length, None)?;
        let judge = sources.reward.as_deref();
        let judge_adapter = sources.reward_adapter.as_deref();
        inputs = reward_inputs(inputs, settings.asks_model(), judge, judge_adapter)?;
        let rewards = rules(&settings.rlhf.rewards, known, &KEYS)?;
        let data = &settings.data;
        let read = |files: &[PathBuf]| {
            let most = length - settings.rlhf.max_tokens;
            Prompts::read(files, &tokenizer, most, data.skip_malformed, &rewards)
        };
        for (key, files) in [("train", &data.train), ("validation", &data.validation)] {
            for (number, file) in files.iter().enumerate() {
                inputs = inputs.path(&format!("{key}-{number}"), file)?;
            }
        }
        let train = read(&data.train)?;
        let validation = match data.validation.is_empty() {
            true => None,
            false => Some(read(&data.validation)?),
        };
        if let Some(epochs) = data.epochs {
            let prompts = settings.train.batch_sequences / settings.rlhf.samples;
            let batches = (epochs * train.all.len() as f64 / prompts as f64).ceil() as u64;
            let each = settings.rlhf.steps_per_batch.unwrap_or(1);
            settings.train.steps = Some(batches.saturating_mul(each));
        }
        settings
            .train
            .resolve(&settings.optimizer, &settings.schedule)?;
        Ok(Plan {
            settings,
            sources,
            config,
            tokenizer,
            template,
            inputs,
            train,
            validation,
            rewards,
        })
    }

    /// The settings with everything that was left open filled in, except threads.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What the files of prompts came to.
    pub fn counts(&self) -> Counts {
        self.train.counts
    }

    /// Files, what they came to, and how long it goes on, for a program.
    pub fn describe(&self) -> Value {
        let adapter = self.settings.adapter.as_ref();
        json!({
            "parameters": self.config.parameters(),
            "trained_parameters": start::trained_parameters(&self.config, adapter),
            "steps": self.settings.train.steps,
            "steps_per_batch": self.settings.rlhf.steps_per_batch,
            "answers": self.settings.train.batch_sequences,
            "data": self.data(),
        })
    }

    fn data(&self) -> Value {
        let counts = |prompts: &Prompts| json!(prompts.counts);
        json!({"train": counts(&self.train), "validation": self.validation.as_ref().map(counts)})
    }

    /// The stage that writes the artifact: everything the result is a function of, and nothing else.
    ///
    /// # Errors
    /// When the settings have no JSON form.
    pub fn stage(&self, tool: &Tool) -> Result<Stage> {
        let mut recipe = Recipe::resolved_json(&self.settings)?;
        let idle = IDLE_SETTINGS.into_iter().chain([
            // Answers are the same in any batch, and `inputs` has what lies behind the names of files.
            ("rlhf", "slots"),
            ("data", "train"),
            ("data", "validation"),
            ("data", "epochs"),
        ]);
        for (table, key) in idle {
            if let Some(table) = recipe.get_mut(table).and_then(Value::as_object_mut) {
                table.remove(key);
            }
        }
        Ok(Stage::new("rlhf", tool, recipe, self.inputs.clone()))
    }

    /// Trains, and leaves the checkpoint or the adapter in `out`. Killed at any moment and called again, it leaves the same
    /// bytes.
    ///
    /// # Errors
    /// When `out` or the state beside it holds something else, an answer cannot be judged, the run diverges, or the system refuses.
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
        for (count, what) in [
            (self.train.counts.malformed, "cannot be read or judged"),
            (self.train.counts.dropped, "leave no room for an answer"),
        ] {
            if count > 0 {
                progress.message(&format!("{count} prompts {what} and are left out"));
            }
        }
        let task = Running {
            plan: self,
            interrupt,
            board: SharedBoard::default(),
            rewards: self.open_rewards()?,
        };
        let mut resolved = train.clone();
        let training = Training {
            stage: self.stage(tool)?,
            schedule: resolved.resolve(optimizer, schedule)?,
            train,
            optimizer: *optimizer,
            compute,
            mesh: MeshShape { sizes: [1; 4] },
            memory: None,
            trained,
            reward: false,
            task: &task,
            measures_start: self.validation.is_some(),
        };
        training.run(&Launch::Threads, out, resume, progress, interrupt)
    }

    /// The reward models of the recipe by weight.
    fn open_rewards(&self) -> Result<Vec<(f64, Arc<ModelReward>)>> {
        let Some(folder) = &self.sources.reward else {
            return Ok(Vec::new());
        };
        let model = ModelReward::open(folder, self.sources.reward_adapter.as_deref())?;
        let model = Arc::new(model);
        let settings = self.settings.rlhf.rewards.iter();
        let models = settings.filter(|reward| reward.kind == "model");
        Ok(models.map(|one| (one.weight, model.clone())).collect())
    }

    fn steps(&self) -> u64 {
        self.settings
            .train
            .steps
            .expect("resolved settings say how many")
    }

    fn card(&self, state: &State, measured: &Measured) -> String {
        let library = match self.settings.adapter {
            Some(_) => "peft",
            None => "transformers",
        };
        let mut card = format!(
            "---\nlibrary_name: {library}\npipeline_tag: text-generation\ntags: [russet, rlhf]\n---\n\n# Tuned model\n\n\
             A decoder tuned with Russet by reinforcement learning: it answered prompts, its answers were given rewards, and it learnt \
             to give more of what was worth more.\n\n| | |\n|---|---|\n"
        );
        let mut row = |name: &str, value: String| {
            writeln!(card, "| {name} | {value} |").expect("a string takes what is written");
        };
        let (train, rlhf) = (&self.settings.train, &self.settings.rlhf);
        row("parameters", self.config.parameters().to_string());
        row(
            "begins with",
            "the input `checkpoint` of `manifest.json`".to_owned(),
        );
        row("algorithm", rlhf.algorithm.word().to_owned());
        let kinds: Vec<&str> = rlhf.rewards.iter().map(|one| one.kind.as_str()).collect();
        row("rewards", kinds.join(", "));
        row("steps", state.step.to_string());
        row("prompts", self.train.counts.prompts.to_string());
        let batch = format!(
            "{} answers of at most {} tokens, {} to a prompt",
            train.batch_sequences, rlhf.max_tokens, rlhf.samples
        );
        row("batch", batch);
        row(
            "optimizer",
            format!(
                "{}, peak learning rate {}",
                self.settings.optimizer.name(),
                train.peak_lr
            ),
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

/// A plan that runs.
struct Running<'a> {
    plan: &'a Plan,
    interrupt: &'a Interrupt,
    board: SharedBoard,
    rewards: Vec<(f64, Arc<ModelReward>)>,
}

impl Running<'_> {
    fn drawer(&self) -> Drawer<'_> {
        let plan = self.plan;
        let mut ends = plan.config.eos.clone();
        for id in &plan.tokenizer.special().eos {
            if !ends.contains(id) {
                ends.push(*id);
            }
        }
        Drawer {
            settings: &plan.settings.rlhf,
            tokenizer: &plan.tokenizer,
            rules: &plan.rewards,
            models: &self.rewards,
            ends,
            length: plan.settings.train.sequence_length,
            interrupt: self.interrupt,
        }
    }
}

impl Task for Running<'_> {
    fn objective(&self) -> Result<Box<dyn Objective + '_>> {
        let rlhf = self.plan.settings.rlhf.clone();
        let objective = PolicyGradient::new(rlhf, self.plan.steps(), self.board.clone());
        Ok(Box::new(objective))
    }

    fn batches(&self, place: usize, places: usize) -> Result<Box<dyn Batches + '_>> {
        assert_eq!((place, places), (0, 1), "one rank sees all of the data");
        let plan = self.plan;
        let train = &plan.settings.train;
        let sources = &plan.sources;
        let start = || start::decoder(&sources.checkpoint, sources.adapter.as_deref());
        let reference = match plan.settings.asks_reference() {
            true => Some(Arc::new(start()?)),
            false => None,
        };
        if plan.settings.rlhf.divergence == Some(Divergence::Vocabulary) {
            // Looked at here, where a model is open at the latest: a package's table has few bits.
            let quantized = match &reference {
                Some(decoder) => matches!(decoder.output_table(), Embedding::Frozen(_)),
                None => matches!(start()?.output_table(), Embedding::Frozen(_)),
            };
            if quantized {
                return refuse(
                    "rlhf.divergence",
                    "is \"vocabulary\", which needs a table in f32, and the base is a package, whose table has fewer bits; write \"token\"",
                );
            }
        }
        Ok(Box::new(Rollouts {
            drawer: self.drawer(),
            prompts: &plan.train,
            reference,
            seed: train.seed,
            steps: plan.steps(),
            answers: train.batch_sequences,
            micro: train.micro_batch_sequences.unwrap_or(train.batch_sequences),
            board: self.board.clone(),
            ended: None,
        }))
    }

    /// Of an answer to each held-out prompt `validation_reward`, `validation_length`, and as [`VALIDATION_LOSS`] the reward's
    /// negative.
    fn measure(&self) -> Result<Option<Box<Measure<'_>>>> {
        let Some(prompts) = &self.plan.validation else {
            return Ok(None);
        };
        let drawer = self.drawer();
        let measure = move |ctx: &mut Ctx, decoder: &Decoder, goes_on: &mut GoesOn| {
            let (mut rewards, mut tokens) = (0.0, 0usize);
            let all = &prompts.all;
            let group = drawer.settings.slots.max(1);
            for (chunk, group) in all.chunks(group).enumerate() {
                let done = chunk * drawer.settings.slots.max(1);
                if !goes_on(done as f64 / all.len() as f64) {
                    return Ok(None);
                }
                let asked: Vec<(&Prompt, u64)> = group
                    .iter()
                    .enumerate()
                    .map(|(at, prompt)| (prompt, drawn(0, u64::MAX, (done + at) as u64)))
                    .collect();
                let Some(generations) = drawer.draw(ctx, decoder, &asked, 1)? else {
                    return Ok(None);
                };
                let judged = drawer.judge(ctx, prompts, &asked, 1, generations)?;
                rewards += judged.rewards.iter().sum::<f64>();
                tokens += judged
                    .generations
                    .iter()
                    .map(|one| one.tokens.len())
                    .sum::<usize>();
            }
            let count = all.len() as f64;
            Ok(Some(vec![
                (VALIDATION_LOSS, -rewards / count),
                ("validation_reward", rewards / count),
                ("validation_length", tokens as f64 / count),
            ]))
        };
        Ok(Some(Box::new(measure)))
    }

    fn files(&self, state: &State, measured: &Measured) -> Result<Vec<(String, Vec<u8>)>> {
        let plan = self.plan;
        let template = plan.template.as_ref();
        Ok(start::files(
            "rlhf",
            plan.card(state, measured),
            plan.data(),
            template.filter(|_| plan.settings.adapter.is_none()),
            state,
            measured,
        ))
    }
}
