//! Pre-training: the task of packed token shards, by a checked [`Plan`].

use std::path::Path;

use russet_artifact::{Interrupt, Progress, Tool};
use russet_model::Decoder;
use russet_tensor::Ctx;

use crate::Result;
use crate::launch::Launch;
use crate::loader::Batches;
use crate::objective::Objective;
use crate::plan::Plan;
use crate::publish::card_rows;
use crate::run::{Measure, Measured};
use crate::state::State;
use crate::training::{Outcome, Resume, Task};
use crate::validation::{GoesOn, Validation, ValidationResult};

/// Trains a decoder by `plan` and leaves its checkpoint, or where adapters are trained these, in `out`. Killed at any moment and called again, it leaves the
/// same weights to the last bit. Ranks are threads of this process.
///
/// # Errors
/// When `out` or the state beside it holds something else, the run diverges, or the system refuses.
pub fn pretrain(
    plan: &Plan,
    out: &Path,
    tool: &Tool,
    resume: Resume,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<Outcome> {
    pretrain_as(
        &Launch::Threads,
        plan,
        out,
        tool,
        resume,
        progress,
        interrupt,
    )
}

/// As [`pretrain`], with ranks as they were launched. Each process calls it alike and returns alike; `progress` hears of the
/// first alone. After an error the other processes may still wait for this one, so it is to end them.
///
/// # Errors
/// As [`pretrain`], and when there are not as many processes as ranks.
pub fn pretrain_as(
    launch: &Launch,
    plan: &Plan,
    out: &Path,
    tool: &Tool,
    resume: Resume,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<Outcome> {
    plan.training(tool)?
        .run(launch, out, resume, progress, interrupt)
}

impl Task for Plan {
    fn objective(&self) -> Result<Box<dyn Objective + '_>> {
        Plan::objective(self)
    }

    fn batches(&self, place: usize, places: usize) -> Result<Box<dyn Batches + '_>> {
        Ok(Box::new(self.open_train()?.shared(place, places)))
    }

    fn measure(&self) -> Result<Option<Box<Measure<'_>>>> {
        let Some(shard) = self.open_validation()? else {
            return Ok(None);
        };
        let train = &self.settings().train;
        let validation = Validation::new(
            shard,
            self.begin_of_text(),
            train.validation_tokens,
            train.sequence_length,
            self.packing().micro_batch_sequences * train.sequence_length,
        )?;
        let measure = move |ctx: &mut Ctx, decoder: &Decoder, goes_on: &mut GoesOn| {
            let result = validation.measure(ctx, decoder, goes_on)?;
            Ok(result.map(ValidationResult::measured))
        };
        Ok(Some(Box::new(measure)))
    }

    fn is_of_any_length(&self) -> bool {
        // Adapters are rounded at the end, which a stop in the last measurement saves.
        self.settings().adapter.is_none()
    }

    fn files(&self, state: &State, measured: &Measured) -> Result<Vec<(String, Vec<u8>)>> {
        let card = model_card(self, state, measured).into_bytes();
        Ok(vec![("README.md".to_owned(), card)])
    }
}

fn model_card(plan: &Plan, state: &State, measured: &Measured) -> String {
    let (config, settings) = (plan.config(), plan.settings());
    let row = |name: &str, value: String| format!("| {name} | {value} |\n");
    let mut card = match &settings.adapter {
        None => String::from(
            "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [russet]\n---\n\n# Base model\n\n\
             A decoder trained with Russet to predict the next token. It continues text; it has not been taught to follow \
             instructions.\n\n| | |\n|---|---|\n",
        ),
        Some(_) => String::from(
            "---\nlibrary_name: peft\ntags: [russet, lora]\n---\n\n# Adapter\n\nLow-rank matrices trained with Russet beside \
             frozen weights, to go on top of them and of no others.\n\n| | |\n|---|---|\n",
        ),
    };
    match &settings.adapter {
        None => {
            card += &row("parameters", config.parameters().to_string());
            card += &row(
                "layers x width",
                format!("{} x {}", config.layers, config.width),
            );
            let heads = format!(
                "{} query, {} key-value, {} wide",
                config.heads, config.kv_heads, config.head_dim
            );
            card += &row("heads", heads);
            let slides = &config.attention.sliding;
            if slides.contains(&true) {
                let count = slides.iter().filter(|slides| **slides).count();
                let value = format!("{} tokens, in {count} layers", config.attention.window);
                card += &row("sliding window", value);
            }
            if config.attention.kv_shared > 0 {
                let value = format!("the last {}", config.attention.kv_shared);
                card += &row("layers that use keys and values of others", value);
            }
            card += &row("feed-forward width", config.ffn.to_string());
            card += &row("vocabulary", config.vocab.to_string());
            card += &row("context", config.context.to_string());
            let begins = match plan.base() {
                Some(_) => "the input `checkpoint` of `manifest.json`",
                None => "random weights",
            };
            card += &row("begins with", begins.to_owned());
        }
        Some(adapter) => {
            let names: Vec<&str> = adapter.projections.iter().map(|one| one.word()).collect();
            card += &row(
                "base",
                "the input `package` or `checkpoint` of `manifest.json`".to_owned(),
            );
            card += &row("parameters", adapter.parameters(config).to_string());
            card += &row("rank", adapter.rank.to_string());
            card += &row("projections", names.join(", "));
        }
    }
    let percent = |(name, share)| format!("{name} {:.0} %", 100.0 * share);
    let shares: Vec<String> = plan.shares().into_iter().map(percent).collect();
    card += &row("texts", shares.join(", "));
    if let (Some(teacher), Some(distill)) = (plan.teacher(), &settings.distill) {
        card += &row(
            "teacher",
            format!(
                "the input `{}` of `manifest.json`: {distill}",
                teacher.input()
            ),
        );
    }
    let terms = plan.loss_terms();
    card += &card_rows(&settings.train, &plan.optimizer(), state, measured, terms);
    card.push_str("\nSettings, inputs and hashes stand in `manifest.json`.\n");
    card
}
