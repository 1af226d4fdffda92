//! Pre-training: the loop on packed token shards, and the checkpoint it leaves.
//!
//! ```text
//! OUT/         the checkpoint: a Hugging Face folder, written at the end
//! OUT.state/   where the run stands, while it runs
//! OUT.log/     losses and rates, kept
//! ```

use std::ffi::OsString;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russet_artifact::{Draft, Interrupt, Kind, Progress, RunLog, Tool};
use russet_model::{Decoder, checkpoint};
use russet_tensor::Ctx;
use serde::Serialize;

use crate::loader::{Batches, PackedShard};
use crate::optimizer::Optimizer;
use crate::plan::Plan;
use crate::probe::matmul_gflops_in;
use crate::run::{Ended, Loop, Measure, train};
use crate::settings::Recompute;
use crate::state::{State, StateStore};
use crate::validation::{Validation, ValidationResult};
use crate::{Result, TrainError};

/// What to do with what an earlier process left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resume {
    /// Go on from a saved state of the same run; refuse that of another; do nothing if the checkpoint is there.
    #[default]
    Continue,
    /// Begin at the first step, whatever is there.
    Restart,
}

/// How [`pretrain`] ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The checkpoint is written.
    Finished(TrainReport),
    /// The checkpoint of these settings and inputs was there already.
    Current,
    /// Stopped on request; the same call goes on from here.
    Interrupted {
        /// Steps done.
        step: u64,
    },
}

/// What a finished run says of itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainReport {
    /// Loss of the first step, in nats per token.
    pub first_loss: f32,
    /// Loss of the last step.
    pub last_loss: f32,
    /// Updates of the weights.
    pub steps: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Seconds spent in steps, over all resumes.
    pub seconds: f64,
    /// The one by the other.
    pub tokens_per_second: f64,
    /// Operations that the model needs over those that the machine, at the rate measured at the start, could have done.
    pub mfu: f64,
    /// The measured rate of the machine's products, in GFLOP/s.
    pub peak_gflops: f64,
    /// Mean loss on held-out text, in nats per token.
    pub validation_nats: Option<f64>,
    /// The same in bits per byte of text.
    pub bits_per_byte: Option<f64>,
    /// The most bytes of weights, gradients, moments and activations at one time in this process.
    pub peak_bytes: usize,
}

/// Files of a tokenizer's folder that go with the model.
pub(crate) const TOKENIZER_FILES: [&str; 3] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];

/// Trains a decoder by `plan` and leaves its checkpoint in `out`. Killed at any moment and called again, it leaves the
/// same weights to the last bit.
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
    let stage = plan.stage(tool)?;
    let store = StateStore::new(beside(out, "state")?, stage.clone());
    match resume {
        Resume::Restart => store.remove()?,
        Resume::Continue if stage.current(out, Kind::Checkpoint).is_ok() => {
            // Left where the process was killed just after its last rename.
            if store.holds_this_run() {
                store.remove()?;
            }
            return Ok(Outcome::Current);
        }
        Resume::Continue => {}
    }
    plan.describe().memory.check()?;
    // Before the work: a place that cannot be written to is found now.
    let draft = Draft::of_stage(out, Kind::Checkpoint, &stage.name)?;

    let objective = plan.objective()?;
    let settings = &plan.settings().train;
    let mut ctx = Ctx::new(Arc::new(plan.pool()?));
    ctx.compute = plan.settings().compute.dtype.kernel();
    ctx.recompute = plan.settings().compute.recompute == Recompute::Block;
    let peak_flops = matmul_gflops_in(&ctx.pool, ctx.compute) * 1e9;
    let mut batches = PackedShard::new(plan.open_train()?, plan.begin_of_text(), plan.packing())?;
    let mut state = match store.load(
        |decoder| Optimizer::adamw(plan.adamw(), decoder),
        ctx.pool.isa(),
    )? {
        Some(loaded) => {
            batches.restore(&loaded.batches)?;
            progress.message(&format!(
                "going on after step {} of {}",
                loaded.state.step,
                plan.steps()
            ));
            if let Some(isa) = loaded.other_isa {
                progress.message(&format!(
                    "the steps before ran on {isa} and these run on {:?}, which round differently: the weights will not be \
                     to the last bit those of a run in one go (set RUSSET_ISA to go on as it began)",
                    ctx.pool.isa()
                ));
            }
            loaded.state
        }
        None => {
            let decoder = Decoder::random(plan.config(), settings.seed);
            let optimizer = Optimizer::adamw(plan.adamw(), &decoder);
            State::new(decoder, optimizer)
        }
    };
    let log_dir = beside(out, "log")?;
    let mut log = match state.step {
        0 => RunLog::create(&log_dir)?,
        step => RunLog::resume(&log_dir, step)?,
    };

    let validation = plan.open_validation()?.map(|shard| {
        let pass_tokens = plan.packing().micro_batch_sequences * settings.sequence_length;
        Validation::new(
            shard,
            plan.begin_of_text(),
            settings.validation_tokens,
            settings.sequence_length,
            pass_tokens,
        )
    });
    let validation = validation.transpose()?;
    let mut measured = None;
    let mut measure = |ctx: &mut Ctx, decoder: &Decoder| {
        let validation = validation
            .as_ref()
            .expect("only handed over where there is one");
        let result = validation.measure(ctx, decoder)?;
        measured = Some(result);
        Ok(vec![
            ("validation_loss", result.nats_per_token),
            ("validation_bits_per_byte", result.bits_per_byte),
        ])
    };
    let measure: &mut Measure = &mut measure;
    let run = Loop {
        name: "pretrain",
        steps: plan.steps(),
        schedule: plan.schedule(),
        clip_norm: (settings.clip_norm > 0.0).then_some(settings.clip_norm),
        objective: &*objective,
        batches: &mut batches,
        measure: validation
            .is_some()
            .then_some((settings.validate_every, measure)),
        store: Some((settings.checkpoint_every, &store)),
        log: Some((settings.log_every, &mut log)),
        progress,
        interrupt,
        peak_flops,
    };
    if train(run, &mut ctx, &mut state)? == Ended::Interrupted {
        return Ok(Outcome::Interrupted { step: state.step });
    }
    write_checkpoint(plan, &state, measured, &draft)?;
    draft.commit(&stage)?;
    store.remove()?;

    let weights = plan.config().parameters() * size_of::<f32>();
    let tally = state.tally;
    Ok(Outcome::Finished(TrainReport {
        first_loss: tally.first_loss,
        last_loss: tally.last_loss,
        steps: state.step,
        tokens: tally.tokens,
        seconds: tally.seconds,
        tokens_per_second: tally.tokens as f64 / tally.seconds,
        mfu: tally.flops / tally.seconds / peak_flops,
        peak_gflops: peak_flops / 1e9,
        validation_nats: measured.map(|result| result.nats_per_token),
        bits_per_byte: measured.map(|result| result.bits_per_byte),
        peak_bytes: weights + state.optimizer.bytes() + ctx.peak_bytes(),
    }))
}

/// Fills a draft with everything that a folder of the Hugging Face hub has. No time goes into it, nor a name: the same run
/// leaves the same bytes.
fn write_checkpoint(
    plan: &Plan,
    state: &State,
    measured: Option<ValidationResult>,
    draft: &Draft,
) -> Result<()> {
    checkpoint::save(&state.decoder, draft.path())?;
    for name in TOKENIZER_FILES {
        let from = plan.tokenizer().join(name);
        match fs::read(&from) {
            Ok(bytes) => draft.write(name, &bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                let problem = format!("cannot be read, and the checkpoint needs it: {error}");
                return Err(TrainError::Data {
                    place: from,
                    problem,
                });
            }
        }
    }
    draft.write("README.md", model_card(plan, state, measured).as_bytes())?;
    Ok(())
}

fn model_card(plan: &Plan, state: &State, measured: Option<ValidationResult>) -> String {
    let (config, train) = (plan.config(), &plan.settings().train);
    let mut card = String::from(
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [russet]\n---\n\n# Base model\n\n\
         A decoder trained from scratch with Russet to predict the next token. It continues text; it has not been taught to \
         follow instructions.\n\n| | |\n|---|---|\n",
    );
    let mut row = |name: &str, value: String| {
        writeln!(card, "| {name} | {value} |").expect("a string takes what is written");
    };
    row("parameters", config.parameters().to_string());
    row(
        "layers x width",
        format!("{} x {}", config.layers, config.width),
    );
    let heads = format!(
        "{} query, {} key-value, {} wide",
        config.heads, config.kv_heads, config.head_dim
    );
    row("heads", heads);
    row("feed-forward width", config.ffn.to_string());
    row("vocabulary", config.vocab.to_string());
    row("context", config.context.to_string());
    row("steps", state.step.to_string());
    row("tokens seen", state.tally.tokens.to_string());
    row(
        "batch",
        format!(
            "{} sequences of {} tokens",
            train.batch_sequences, train.sequence_length
        ),
    );
    row(
        "optimizer",
        format!(
            "AdamW, peak learning rate {}, weight decay {}",
            train.peak_lr, train.weight_decay
        ),
    );
    row(
        "training loss",
        format!("{:.4} nats per token, last step", state.tally.last_loss),
    );
    if let Some(result) = measured {
        let ValidationResult {
            nats_per_token,
            bits_per_byte,
            documents,
            ..
        } = result;
        let value = format!(
            "{nats_per_token:.4} nats per token, {bits_per_byte:.4} bits per byte, {documents} held-out documents"
        );
        row("validation loss", value);
    }
    card.push_str("\nSettings, inputs and hashes stand in `manifest.json`.\n");
    card
}

/// The folder beside `out` that has its name and `.WORD`.
fn beside(out: &Path, word: &str) -> Result<PathBuf> {
    let name = out.file_name().ok_or_else(|| TrainError::Data {
        place: out.to_owned(),
        problem: "does not end in a folder's name; say where the checkpoint goes".to_owned(),
    })?;
    let mut name: OsString = name.to_owned();
    name.push(format!(".{word}"));
    Ok(out.with_file_name(name))
}
