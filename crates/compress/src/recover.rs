//! Accuracy recovery: adapters that bring back what palettizing lost (arXiv 2407.21075, section 5.1).
//!
//! ```text
//! y = Ŵ x + (α / r) · B A x        Ŵ the package's, used as it is served; A, B trained by the pre-training recipe
//! start   "fit":  B A x ≈ (W − Ŵ) x over the inputs x that the package's products see (`low_rank`), W the checkpoint's
//!         "zero": B = 0
//! loss    (1 − m) (−ln p[t]) + m KL(q ‖ p),  q the checkpoint's predictions, where it is given
//! ```
//! The run is [`russet_train::Training`] with a plan's task: the one loop, its saved states, its validation. What is added here is
//! where the adapters begin, and the report of what they brought back.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use russet_artifact::{Interrupt, Progress, Tool};
use russet_kernels::Pool;
use russet_model::{Weights, package};
use russet_tensor::{Ctx, Tensor};
use russet_train::{First, Launch, Measured, Outcome, Plan, Resume, State, TrainError, Trained};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::CompressError;
use crate::low_rank::{LowRank, low_rank};
use crate::on_package::{Dense, HeldOut, OnPackage, Written, base, of_task};
use crate::refine::BYTES;
use crate::tap::{Covariance, Handle, Listen, tapped};
use crate::watch::Watch;

/// The file of a recovery adapter that holds the [`RecoverReport`].
pub const RECOVER_REPORT: &str = "recover.json";

/// `[recover]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RecoverSettings {
    /// Where the adapters begin; fitted where absent and there is a checkpoint to fit to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<RecoverStart>,
    /// Tokens of the training text, at least, whose activations the fit is made on.
    pub fit_tokens: u64,
}

/// Where recovery adapters begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecoverStart {
    /// At the best low-rank stand-in for what each projection lost.
    Fit,
    /// At adapters that change nothing.
    Zero,
}

impl Default for RecoverSettings {
    fn default() -> RecoverSettings {
        RecoverSettings {
            start: None,
            fit_tokens: 32_768,
        }
    }
}

impl RecoverSettings {
    /// Checked, and with everything filled in; `taught` says whether there is the checkpoint that the package was made of.
    ///
    /// # Errors
    /// When a setting cannot be.
    pub fn resolved(mut self, taught: bool) -> Result<RecoverSettings, CompressError> {
        let start = *self.start.get_or_insert(match taught {
            true => RecoverStart::Fit,
            false => RecoverStart::Zero,
        });
        if start == RecoverStart::Fit && !taught {
            let problem = "nothing says what the weights were; name the checkpoint that the package was made of in \
                           `inputs.teacher`, or write \"zero\"";
            return CompressError::setting("recover.start", &"\"fit\"", problem);
        }
        if self.fit_tokens == 0 {
            let problem = "a fit needs text; write at least 1, such as 32768";
            return CompressError::setting("recover.fit_tokens", &0, problem);
        }
        Ok(self)
    }
}

/// What recovery adapters have brought back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecoverReport {
    /// r.
    pub rank: usize,
    /// Where they began.
    pub start: RecoverStart,
    /// Updates.
    pub steps: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Numbers of all matrices.
    pub parameters: u64,
    /// Bytes of them, in the type of the file.
    pub adapter_bytes: u64,
    /// What it did to text held out.
    #[serde(flatten)]
    pub held_out: HeldOut,
}

/// Trains recovery adapters by `plan`, whose base is a package, and leaves them in `out`. `checkpoint` is what the package was made
/// of, for `start = "fit"`. Killed at any moment and called again, it leaves the same bytes.
///
/// # Errors
/// As [`russet_train::Training::run`]; what goes wrong in the fit comes as [`TrainError::Task`].
pub fn recover(
    plan: &Plan,
    settings: &RecoverSettings,
    checkpoint: Option<&Path>,
    out: &Path,
    tool: &Tool,
    resume: Resume,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<Outcome, TrainError> {
    let settings = settings
        .clone()
        .resolved(checkpoint.is_some())
        .map_err(of_task)?;
    let report = |state: &State, _: &Measured, held_out| {
        let adapter = plan.settings().adapter.as_ref();
        let adapter = adapter.expect("a plan of adapters");
        let parameters = adapter.parameters(plan.config()) as u64;
        let report = RecoverReport {
            rank: adapter.rank,
            start: settings.start.expect("resolved"),
            steps: state.step,
            tokens: state.tally.tokens,
            parameters,
            adapter_bytes: parameters * adapter.dtype.dtype().bytes() as u64,
            held_out,
        };
        Written {
            name: RECOVER_REPORT,
            report: json!(report),
            card: None,
        }
    };
    let recovery = OnPackage::new(plan, &report);
    let fitted = |pool: &Arc<Pool>, progress: &mut dyn Progress| {
        let checkpoint = checkpoint.expect("resolved settings ask for it");
        fit(pool, plan, &settings, checkpoint, progress, interrupt).map_err(of_task)
    };
    let mut training = plan.training(tool)?;
    let own = serde_json::to_value(&settings).expect("settings have a JSON form");
    training.stage.recipe["recover"] = own;
    training.task = &recovery;
    let Trained::Adapters(adapters) = &mut training.trained else {
        return Err(of_task(CompressError::Checkpoint(
            "recovery trains adapters on a package, and the plan has none".to_owned(),
        )));
    };
    if settings.start == Some(RecoverStart::Fit) {
        adapters.first = First::Made(&fitted);
    }
    training.run(&Launch::Threads, out, resume, progress, interrupt)
}

/// A and B of each projection that has an adapter: the best stand-in for what the package lost of the checkpoint, over the inputs that
/// its products see in the first steps' text.
fn fit(
    pool: &Arc<Pool>,
    plan: &Plan,
    settings: &RecoverSettings,
    checkpoint: &Path,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<BTreeMap<String, (Tensor, Tensor)>, CompressError> {
    let adapter = plan.settings().adapter.as_ref();
    let adapter = adapter.expect("a plan of adapters");
    let package = base(plan);
    let mut dense = Dense::open(plan, checkpoint, "recover.start = \"zero\"")?;
    let mut stored = Weights::open(package)?;
    let (decoder, taps) = tapped(package::load(package)?);
    let layouts = decoder.layouts();
    let train = |error: TrainError| CompressError::Train(Box::new(error));
    let (mut batches, mut tokens) = (Vec::new(), 0);
    let data = plan.open_train().map_err(train)?;
    for step in 0.. {
        if tokens >= settings.fit_tokens || step >= plan.steps() {
            break;
        }
        for batch in data.at(step).map_err(train)? {
            tokens += batch.tokens.len() as u64;
            batches.push(batch);
        }
    }
    let chosen: Vec<usize> = (0..taps.len())
        .filter(|&product| {
            let mut named = layouts[product].projections.iter();
            named.any(|projection| adapter.chooses(&projection.name))
        })
        .collect();
    let total: usize = chosen
        .iter()
        .map(|&p| layouts[p].rows() * layouts[p].inputs)
        .sum();
    let mut made = BTreeMap::new();
    let mut left = 0.0;
    let mut watch = Watch::new(progress, interrupt);
    watch.part("fitting adapters", total, "weights", |watch| {
        let mut rest = &chosen[..];
        while !rest.is_empty() {
            let bytes = |&product: &usize| layouts[product].inputs.pow(2) * size_of::<f32>();
            let mut taken = 0;
            let mut sum = 0;
            while taken < rest.len() && (taken == 0 || sum + bytes(&rest[taken]) <= BYTES) {
                sum += bytes(&rest[taken]);
                taken += 1;
            }
            let (now, later) = rest.split_at(taken);
            rest = later;
            for &product in now {
                let listen = Covariance::new(layouts[product].inputs, Arc::default());
                taps[product].listen(Listen::Covariance(listen));
            }
            let mut ctx = Ctx::new(Arc::clone(pool));
            for batch in &batches {
                decoder.forward(&mut ctx, &batch.tokens, &batch.segments, None);
                watch.step(0, &[])?;
            }
            for &product in now {
                let inputs = covariance(&taps[product]);
                let cols = layouts[product].inputs;
                let chosen = |name: &str| adapter.chooses(name);
                let weights = dense.take(pool, &layouts[product], chosen)?;
                for (projection, mut error) in weights {
                    let name = format!("{}.weight", projection.name);
                    let shape = [projection.rows, cols];
                    let stored = stored.take(pool, &name, &shape)?;
                    error
                        .iter_mut()
                        .zip(stored)
                        .for_each(|(x, stored)| *x -= stored);
                    crate::model::check_finite(&projection.name, &error, cols)?;
                    let fit = low_rank(pool, &error, cols, &inputs, adapter.rank);
                    left += share(&fit);
                    let told = [("left", share(&fit))];
                    let one = matrices(fit, shape, adapter.rank, adapter.scale());
                    made.insert(projection.name.clone(), one);
                    watch.step(projection.rows * cols, &told)?;
                }
            }
        }
        Ok(())
    })?;
    progress.message(&format!(
        "the adapters begin at a fit on {tokens} tokens that leaves {:.1} % of what palettizing changed in the outputs of {} \
         projections, in the mean",
        100.0 * left / made.len().max(1) as f64,
        made.len()
    ));
    Ok(made)
}

fn covariance(tap: &Handle) -> Vec<f32> {
    match tap.listen(Listen::Nothing) {
        Listen::Covariance(covariance) => covariance.sum,
        _ => unreachable!("covariance was asked for"),
    }
}

/// The share of what was lost that still is.
fn share(fit: &LowRank) -> f64 {
    match fit.energy > 0.0 {
        true => fit.left / fit.energy,
        false => 0.0,
    }
}

/// A and B as parameters, whose product counts `scale` times.
fn matrices(
    LowRank { a, b, .. }: LowRank,
    [rows, cols]: [usize; 2],
    rank: usize,
    scale: f32,
) -> (Tensor, Tensor) {
    let root = scale.sqrt();
    let scaled = |x: Vec<f32>| -> Vec<f32> { x.into_iter().map(|x| x / root).collect() };
    (
        Tensor::new(&[rank, cols], scaled(a)),
        Tensor::new(&[rows, rank], scaled(b)),
    )
}
