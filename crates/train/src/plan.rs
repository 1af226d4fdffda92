//! A recipe that has been checked: what would be trained, on what, at what price.
//!
//! Settings are checked once, here; the loop does not doubt them again. What the recipe left open is filled in, so that
//! the resolved settings say everything the result is a function of.

use std::path::{Path, PathBuf};

use russet_artifact::{Artifact, Inputs, Kind, Recipe, Stage, Tool};
use russet_model::{Config, ParameterKind, Weights};
use russet_tensor::MeshShape;
use russet_tokenizer::{TokenShard, Tokenizer};
use serde_json::Value;

use crate::check::{self, Start, decoder_config};
use crate::distill::{Distill, Taught, TeacherInput};
use crate::loader::{Mixture, Packing, Part};
use crate::objective::{NextToken, Objective};
use crate::optimizer::multiplier;
use crate::parallel::MeshPlan;
use crate::price::{
    Description, Estimate, SourceDescription, TeacherPrice, memory, training_flops,
};
use crate::probe::Rate;
use crate::schedule::Schedule;
use crate::settings::{MixtureSettings, OptimizerSettings, Settings, StageName};
use crate::training::{Adapters, First, Trained, Training};
use crate::{Result, TrainError};

/// Settings that never change the weights or what is said of them; a run that differs in these alone is the same run.
pub const IDLE_SETTINGS: [(&str, &str); 8] = [
    ("compute", "threads"),
    ("compute", "recompute"),
    ("train", "log_every"),
    ("train", "checkpoint_every"),
    ("train", "keep_last"),
    ("train", "keep_best"),
    ("train", "spike_deviations"),
    ("train", "validate_every"),
];

/// Where the inputs of a recipe lie.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The tokens artifact.
    pub tokens: PathBuf,
    /// The checkpoint that the first weights are those of, or that adapters are trained on; at random where absent.
    pub checkpoint: Option<PathBuf>,
    /// The package that is trained on: adapters beside it, or its palettes.
    pub package: Option<PathBuf>,
    /// The tokens artifact of each `[[data.mixture]]`; `tokens` where absent.
    pub mixture: Vec<Option<PathBuf>>,
}

impl<P: AsRef<Path>> From<&P> for Sources
where
    P: ?Sized,
{
    /// Tokens alone.
    fn from(tokens: &P) -> Sources {
        Sources {
            tokens: tokens.as_ref().to_owned(),
            checkpoint: None,
            package: None,
            mixture: Vec::new(),
        }
    }
}

/// A checked recipe with its data.
#[derive(Debug)]
pub struct Plan {
    settings: Settings,
    config: Config,
    steps: u64,
    inputs: Inputs,
    tokenizer: PathBuf,
    base: Option<PathBuf>, // a checkpoint, or the package under adapters
    train: Vec<Source>,
    validation: Option<PathBuf>,
    validation_tokens: u64, // of the split
    begin_of_text: u32,
    teacher: Option<TeacherInput>,
    teacher_config: Option<Config>, // of one that runs in the same process
}

/// A shard to train on.
#[derive(Debug)]
struct Source {
    path: PathBuf,
    label: String,
    weight: f64,
    tokens: u64,
    documents: u64,
    split: String,
    tokens_artifact: Artifact, // where the split lies
}

impl Plan {
    /// Checks settings against each other, the tokens and the checkpoint to begin with. Where there is no more than a tokens
    /// artifact, its folder stands for all sources.
    ///
    /// # Errors
    /// When a setting cannot be, a folder is no tokens artifact with the shards and the tokenizer that are needed, or the
    /// checkpoint is none or of another tokenizer.
    pub fn new(settings: Settings, sources: impl Into<Sources>) -> Result<Plan> {
        let sources = sources.into();
        let base = sources.package.as_ref().or(sources.checkpoint.as_ref());
        let start = base.map(|base| Config::open(base)).transpose()?;
        check_base(&settings, &sources)?;
        let settings = settings.resolved(Start::from(start.as_ref()))?;
        check_adapter(&settings, start.as_ref())?;
        let tokens = Artifact::open(&sources.tokens, Kind::Tokens)?;
        let mut inputs = Inputs::new().artifact("tokens", &tokens)?;
        let folder = match tokens.file("tokenizer.json") {
            Ok(_) => tokens.dir().to_owned(),
            Err(_) => tokens.input("tokenizer")?.dir().to_owned(),
        };
        let tokenizer = Tokenizer::open(&folder)?;
        let train = open_sources(&settings, &sources, &tokens)?;
        for (number, source) in train.iter().enumerate() {
            if sources.mixture.get(number).is_some_and(Option::is_some) {
                inputs = inputs.artifact(&format!("mixture-{number}"), &source.tokens_artifact)?;
            }
        }
        let validation = settings
            .data
            .validation
            .as_ref()
            .map(|name| shard_path(&tokens, name))
            .transpose()?;
        let mut validation_tokens = 0;
        for path in train.iter().map(|source| &source.path).chain(&validation) {
            let shard = TokenShard::open(path)?;
            check_tokenizer(&shard, &tokenizer, &folder)?;
            validation_tokens = shard.tokens() as u64; // the last one's
        }
        if let (Some(path), Some(start)) = (base, &start) {
            check_checkpoint(path, start, &tokenizer, &folder)?;
            inputs = match sources.package {
                Some(_) => inputs.artifact_or_path("package", path, Kind::Package)?,
                None => inputs.artifact_or_path("checkpoint", path, Kind::Checkpoint)?,
            };
        }

        let special = tokenizer.special();
        let vocab = tokenizer.vocab_size();
        let mut config = decoder_config(&settings.model, start.as_ref(), special, vocab)?;
        // A tokenizer that names no beginning of texts begins each with the end of the one before.
        let end_of_text = TokenShard::open(&train[0].path)?.end_of_text();
        let begin_of_text = *config.bos.get_or_insert(end_of_text);
        check::check_mesh(&settings, &config)?;
        let steps = settings.train.steps.expect("resolved above");
        Ok(Plan {
            config,
            steps,
            inputs,
            tokenizer: folder,
            base: base.cloned(),
            train,
            validation,
            validation_tokens,
            begin_of_text,
            teacher: None,
            teacher_config: None,
            settings,
        })
    }

    /// The plan with a teacher for its `[distill]`.
    ///
    /// # Errors
    /// When there is no `[distill]`, it asks for what this teacher does not offer, or the teacher is missing, has another tokenizer or
    /// vocabulary, was made for shorter sequences, or was asked in windows of another length.
    pub fn taught_by(mut self, teacher: TeacherInput) -> Result<Plan> {
        let Some(distill) = &self.settings.distill else {
            let problem = "is missing, but `inputs` name a teacher; say what to learn from it, such as kind = \"hard\"";
            return Err(TrainError::setting("distill", problem));
        };
        teacher.check(distill)?;
        let shard = TokenShard::open(&self.train[0].path)?;
        self.teacher_config = teacher.look(&shard, self.settings.train.sequence_length)?;
        self.teacher = Some(teacher);
        Ok(self)
    }

    /// What is learnt. Opens the teacher, if there is one.
    ///
    /// # Errors
    /// When the teacher is missing or knows other tokens.
    pub fn objective(&self) -> Result<Box<dyn Objective>> {
        let z_loss = self.settings.train.z_loss as f32;
        let teacher = match (&self.settings.distill, &self.teacher) {
            (None, _) if z_loss == 0.0 => return Ok(Box::new(NextToken)),
            (None, _) => None,
            (Some(_), None) => {
                let problem = "is there, but no teacher; name a checkpoint in `inputs.teacher`, or stored predictions in \
                               `inputs.teacher_logits`";
                return Err(TrainError::setting("distill", problem));
            }
            (Some(distill), Some(input)) => {
                let taught = |source: &Source| {
                    Ok(Taught {
                        tokens: source.tokens_artifact.clone(),
                        split: source.split.clone(),
                        shard: TokenShard::open(&source.path)?,
                    })
                };
                let shards: Vec<Taught> = self.train.iter().map(taught).collect::<Result<_>>()?;
                let teacher = input.open(&shards, self.settings.train.sequence_length)?;
                Some((teacher, *distill))
            }
        };
        Ok(Box::new(Distill { z_loss, teacher }))
    }

    /// The settings with everything that was left open filled in, except threads.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The decoder's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Updates of the weights.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The folder of the tokenizer that made the tokens.
    pub fn tokenizer(&self) -> &Path {
        &self.tokenizer
    }

    /// The folder of the checkpoint that the first weights are those of, if they are not random; that of the package or checkpoint
    /// under adapters.
    pub fn base(&self) -> Option<&Path> {
        self.base.as_deref()
    }

    /// The teacher, if there is one.
    pub fn teacher(&self) -> Option<&TeacherInput> {
        self.teacher.as_ref()
    }

    /// The names of what is trained on, and the share of the sequences that each gives.
    pub fn shares(&self) -> Vec<(&str, f64)> {
        let all: f64 = self.train.iter().map(|source| source.weight).sum();
        let shares = self.train.iter();
        let shares = shares.map(|source| (source.label.as_str(), source.weight / all));
        shares.collect()
    }

    /// What the loss that is reported has besides the text's: " with the teacher's term".
    pub fn loss_terms(&self) -> &'static str {
        match (
            self.settings.distill.is_some(),
            self.settings.train.z_loss > 0.0,
        ) {
            (true, true) => " with the teacher's and the z-loss's terms",
            (true, false) => " with the teacher's term",
            (false, true) => " with the z-loss",
            (false, false) => "",
        }
    }

    /// The learning rates.
    pub fn schedule(&self) -> Schedule {
        check::schedule(&self.settings.train, &self.settings.schedule)
    }

    /// The rule that updates weights.
    pub fn optimizer(&self) -> OptimizerSettings {
        self.settings.optimizer
    }

    /// How shards are cut and dealt.
    pub fn packing(&self) -> Packing {
        check::packing(&self.settings)
    }

    /// The token that stands before each document.
    pub fn begin_of_text(&self) -> u32 {
        self.begin_of_text
    }

    /// The ranks to train on.
    pub fn mesh(&self) -> MeshShape {
        self.settings.parallel.mesh()
    }

    /// Opens what is trained on, at the first step.
    ///
    /// # Errors
    /// When a shard has gone or changed since the plan was made, or is too short for one sequence.
    pub fn open_train(&self) -> Result<Mixture> {
        let open = |source: &Source| {
            Ok(Part {
                shard: TokenShard::open(&source.path)?,
                label: source.label.clone(),
                weight: source.weight,
            })
        };
        let parts = self.train.iter().map(open).collect::<Result<_>>()?;
        Mixture::new(parts, self.begin_of_text, self.packing())
    }

    /// Opens the held-out shard, if there is one.
    ///
    /// # Errors
    /// When it has gone or changed since the plan was made.
    pub fn open_validation(&self) -> Result<Option<TokenShard>> {
        Ok(self.validation.as_ref().map(TokenShard::open).transpose()?)
    }

    /// The run that it comes to, its task the plan itself. Adapters begin as those that change nothing yet.
    ///
    /// # Errors
    /// As [`Plan::stage`].
    pub fn training(&self, tool: &Tool) -> Result<Training<'_>> {
        let settings = &self.settings;
        Ok(Training {
            stage: self.stage(tool)?,
            train: &settings.train,
            optimizer: self.optimizer(),
            schedule: self.schedule(),
            compute: &settings.compute,
            mesh: self.mesh(),
            memory: Some(self.describe().memory),
            trained: match (&settings.adapter, &self.base) {
                (Some(adapter), Some(base)) => Trained::Adapters(Adapters {
                    base: base.clone(),
                    settings: adapter.clone(),
                    first: First::New,
                }),
                _ => Trained::Weights {
                    config: self.config.clone(),
                    checkpoint: self.base.clone(),
                    tokenizer: self.tokenizer.clone(),
                },
            },
            reward: false,
            task: self,
            measures_start: settings.adapter.is_some(),
        })
    }

    /// The stage that writes the checkpoint: everything the result is a function of, and nothing else. Threads and how
    /// often something is logged, saved or validated are not part of it.
    ///
    /// # Errors
    /// When the settings have no JSON form.
    pub fn stage(&self, tool: &Tool) -> Result<Stage> {
        let mut recipe = Recipe::resolved_json(&self.settings)?;
        // The mesh changes the order of sums alone, so a run may go on with more or fewer ranks than it began with.
        if let Value::Object(recipe) = &mut recipe {
            recipe.remove("parallel");
        }
        for (table, key) in IDLE_SETTINGS {
            if let Some(Value::Object(table)) = recipe.get_mut(table) {
                table.remove(key);
            }
        }
        // Their names do not matter: `inputs` has what lies behind them.
        if let Some(Value::Array(mixture)) = recipe.pointer_mut("/data/mixture") {
            for part in mixture.iter_mut().filter_map(Value::as_object_mut) {
                part.remove("tokens");
            }
        }
        let mut inputs = self.inputs.clone();
        if let Some(teacher) = &self.teacher {
            inputs = teacher.record(inputs)?;
        }
        Ok(Stage::new(self.settings.stage.word(), tool, recipe, inputs))
    }

    /// What it amounts to.
    pub fn describe(&self) -> Description {
        let packing = self.packing();
        let tokens_per_step = (packing.batch_sequences * packing.sequence_length) as u64;
        let tokens = self.steps * tokens_per_step;
        let flops = training_flops(&self.config, &self.settings, tokens);
        let price = |teacher: &Config| TeacherPrice::new(teacher, &self.settings, tokens);
        let teacher = self.teacher_config.as_ref().map(price);
        let mut memory = memory(&self.config, &self.settings);
        memory.teacher = teacher.map_or(0, |teacher| teacher.bytes);
        let train = &self.settings.train;
        let once = match self.validation {
            Some(_) => self
                .validation_tokens
                .min(train.validation_tokens.unwrap_or(u64::MAX)),
            None => 0,
        };
        // The last step is measured once, whether it is due or not.
        let times = match train.validate_every {
            0 => 1,
            every => self.steps.saturating_sub(1) / every + 1,
        };
        let validation_tokens = times * once;
        let forward = self.config.forward_flops(train.sequence_length / 2);
        let all: f64 = self.train.iter().map(|source| source.weight).sum();
        let describe = |source: &Source| SourceDescription {
            name: source.label.clone(),
            share: source.weight / all,
            tokens: source.tokens,
            documents: source.documents,
            epochs: tokens as f64 * (source.weight / all) / source.tokens as f64,
        };
        Description {
            parameters: self.config.parameters(),
            embedding_parameters: self.config.embedding_parameters(),
            vocab: self.config.vocab,
            steps: self.steps,
            tokens_per_step,
            tokens,
            sources: self.train.iter().map(describe).collect(),
            flops,
            teacher,
            memory,
            parallel: MeshPlan::new(&self.config, &self.settings),
            matrix_rate: multiplier(
                &self.settings.optimizer,
                ParameterKind::Matrix,
                self.config.width,
            ),
            threads: self.settings.compute.threads(),
            validates: self.validation.is_some(),
            validation_tokens,
            validation_flops: validation_tokens as f64 * forward,
        }
    }

    /// How long it takes on a machine of the given rate in the recipe's type.
    pub fn estimate(&self, rate: Rate) -> Estimate {
        Estimate::new(self.describe().flops, rate)
    }
}

fn shard_path(tokens: &Artifact, name: &str) -> Result<PathBuf> {
    Ok(tokens.file(&format!("{name}.tokens.safetensors"))?)
}

fn check_tokenizer(shard: &TokenShard, tokenizer: &Tokenizer, folder: &Path) -> Result<()> {
    if shard.tokenizer_blake3() == tokenizer.blake3()
        && shard.vocab_size() == tokenizer.vocab_size()
    {
        return Ok(());
    }
    let problem = format!(
        "was not made by the tokenizer in {}; encode the text again",
        folder.display()
    );
    Err(TrainError::Data {
        place: shard.path().to_owned(),
        problem,
    })
}

/// Whether what is trained fits what it is to be trained on.
fn check_base(settings: &Settings, sources: &Sources) -> Result<()> {
    let wrong = |place: &Path, problem: String| {
        let place = place.to_owned();
        Err(TrainError::Data { place, problem })
    };
    let is_package = |path: &Path| Ok::<_, TrainError>(Weights::open(path)?.are_palettized());
    match (&sources.package, &sources.checkpoint) {
        (Some(_), Some(_)) => {
            let problem = "are both there; keep the one that adapters are trained on";
            return Err(TrainError::setting(
                "inputs.package` and `inputs.checkpoint",
                problem,
            ));
        }
        (Some(path), None) if !is_package(path)? => {
            let problem = "is no package: its weights are not palettized, so there is nothing to train on; palettize it first, or \
                           name the package that was made of it";
            return wrong(path, problem.to_owned());
        }
        (None, Some(path)) if settings.adapter.is_none() && is_package(path)? => {
            let problem =
                "is a package, whose weights are frozen; name the checkpoint that it was made of";
            return wrong(path, problem.to_owned());
        }
        _ => {}
    }
    let nothing = sources.package.is_none() && sources.checkpoint.is_none();
    let problem = match &settings.adapter {
        None if sources.package.is_some() && settings.stage != StageName::Qat => {
            "is missing, but a package's weights are frozen; say which adapters are trained on it"
        }
        Some(_) if nothing => {
            "is there, but nothing to be adapted; name a package in `inputs.package`"
        }
        _ => return Ok(()),
    };
    Err(TrainError::setting("adapter", problem))
}

/// Whether what is trained on a base of this shape fits it.
fn check_adapter(settings: &Settings, base: Option<&Config>) -> Result<()> {
    let (adapter, Some(base)) = (&settings.adapter, base) else {
        return Ok(());
    };
    if let Some(adapter) = adapter {
        adapter.check_base(base)?;
    } else if settings.stage != StageName::Qat {
        return Ok(());
    }
    let length = settings.train.sequence_length;
    if length > base.context {
        let problem = format!(
            "is {length}, but the base was made for {} tokens of context, which this does not change; write at most that",
            base.context
        );
        return Err(TrainError::setting("train.sequence_length", problem));
    }
    Ok(())
}

/// A checkpoint can go on with tokens of its own tokenizer only.
fn check_checkpoint(path: &Path, start: &Config, tokens: &Tokenizer, folder: &Path) -> Result<()> {
    let own = Tokenizer::open(path)?;
    if own.blake3() == tokens.blake3() && start.vocab >= tokens.vocab_size() {
        return Ok(());
    }
    let problem = format!(
        "was not trained with the tokenizer in {}; make tokens with the checkpoint's own",
        folder.display()
    );
    Err(TrainError::Data {
        place: path.to_owned(),
        problem,
    })
}

/// The shards to train on.
fn open_sources(settings: &Settings, sources: &Sources, tokens: &Artifact) -> Result<Vec<Source>> {
    let single = settings.data.train.iter().map(|split| MixtureSettings {
        tokens: None,
        split: split.clone(),
        weight: 1.0,
    });
    let parts: Vec<MixtureSettings> = single.chain(settings.data.mixture.clone()).collect();
    let mut opened = Vec::<Source>::new();
    for (number, part) in parts.into_iter().enumerate() {
        let artifact = match sources.mixture.get(number).and_then(Option::as_ref) {
            Some(path) => Artifact::open(path, Kind::Tokens)?,
            None => tokens.clone(),
        };
        let path = shard_path(&artifact, &part.split)?;
        let shard = TokenShard::open(&path)?;
        let label = label(&part.split, |label| {
            opened.iter().any(|source| source.label == label)
        });
        opened.push(Source {
            label,
            weight: part.weight,
            tokens: shard.tokens() as u64,
            documents: shard.documents() as u64,
            path,
            split: part.split,
            tokens_artifact: artifact,
        });
    }
    Ok(opened)
}

/// What the log calls a source: its name, numbered where another has it (splits of several artifacts, or files of several folders,
/// may share one) or the log means something else by it: it counts a source as `tokens_NAME`.
pub fn label(name: &str, taken: impl Fn(&str) -> bool) -> String {
    let numbered = (2..).map(|number| format!("{name}-{number}"));
    std::iter::once(name.to_owned())
        .chain(numbered)
        .find(|label| label != "per_second" && !taken(label))
        .expect("there are more numbers than sources")
}

#[cfg(test)]
mod tests;
