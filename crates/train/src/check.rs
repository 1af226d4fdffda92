//! Whether settings make sense together, and what they leave open.

use russet_model::config::RopeScaling;
use russet_model::{Attention, Config, Family};
use russet_tokenizer::SpecialIds;

use crate::device::DeviceKind;
use crate::loader::{MOST, Packing};
use crate::schedule::{Schedule, Shape};
use crate::settings::{
    DataSettings, LayerType, ModelSettings, OptimizerSettings, ParallelSettings, ScheduleSettings,
    Settings, TrainSettings,
};
use crate::{Result, TrainError};

/// AFM's base of the rotary frequencies before the context is lengthened.
const ROPE_THETA: f64 = 500_000.0;
/// AFM's.
const NORM_EPSILON: f64 = 1e-5;
/// AFM's, of its core pre-training.
const FINAL_LR_RATIO: f64 = 0.005;

fn refuse<T>(key: &'static str, problem: impl Into<String>) -> Result<T> {
    Err(TrainError::setting(key, problem))
}

/// What the first weights are.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    /// Random ones.
    Random,
    /// Those of a checkpoint of this shape.
    Checkpoint(&'a Config),
    /// Those of a checkpoint that is still to be made; what follows from its shape stays open.
    ToCome,
}

impl<'a> From<Option<&'a Config>> for Start<'a> {
    fn from(shape: Option<&'a Config>) -> Start<'a> {
        shape.map_or(Start::Random, Start::Checkpoint)
    }
}

impl Settings {
    /// Checked, and with everything filled in that follows without the tokens: what [`crate::Plan::new`] begins with.
    ///
    /// # Errors
    /// When a setting cannot be.
    pub fn resolved(mut self, start: Start) -> Result<Settings> {
        self.train.resolve(&self.optimizer, &self.schedule)?;
        resolve_model(&mut self.model, &self.train, start)?;
        resolve_data(&mut self.data, &self.train)?;
        if let Some(distill) = &self.distill {
            distill.check()?;
        }
        self.adapter = match self.adapter.take() {
            Some(adapter) => Some(adapter.resolved()?),
            None => None,
        };
        match self.compute.threads {
            None | Some(1..=1024) => {}
            Some(_) => {
                return refuse(
                    "compute.threads",
                    "must be from 1 to 1024; leave it out to use every core",
                );
            }
        }
        self.parallel = self.parallel.chosen(DeviceKind::Cpu, 1)?;
        check_parallel(&self)?;
        // Of any vocabulary: only its size is the tokens' to say.
        match start {
            Start::Random => self.decoder(1, None).map(drop)?,
            Start::Checkpoint(shape) => self.decoder(1, Some(shape)).map(drop)?,
            Start::ToCome => {}
        }
        Ok(self)
    }

    /// The decoder that resolved settings describe: that of the checkpoint `start` with what differs, or a new one over a
    /// vocabulary of `vocab`.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn decoder(&self, vocab: usize, start: Option<&Config>) -> Result<Config> {
        decoder_config(&self.model, start, &SpecialIds::default(), vocab)
    }
}

impl TrainSettings {
    /// Checks the loop with its rule and its schedule, fills in what was left open, and gives the learning rates.
    ///
    /// # Errors
    /// When a setting cannot be.
    pub fn resolve(
        &mut self,
        optimizer: &OptimizerSettings,
        schedule: &ScheduleSettings,
    ) -> Result<Schedule> {
        resolve_train(self, schedule)?;
        check_train(self)?;
        check_optimizer(optimizer, self)?;
        Ok(self::schedule(self, schedule))
    }
}

fn size(key: &'static str, size: usize) -> Result<()> {
    match size {
        1..=0x100_0000 => Ok(()),
        _ => refuse(key, format!("is {size}; it must be from 1 to 16777216")),
    }
}

fn resolve_model(model: &mut ModelSettings, train: &TrainSettings, start: Start) -> Result<()> {
    let shape = [
        ("model.width", model.width),
        ("model.layers", model.layers),
        ("model.heads", model.heads),
        ("model.kv_heads", model.kv_heads),
        ("model.ffn", model.ffn),
    ];
    if !matches!(start, Start::Random) {
        let others = [
            ("model.head_dim", model.head_dim.is_some()),
            ("model.norm_epsilon", model.norm_epsilon.is_some()),
            ("model.tied", model.tied.is_some()),
            ("model.sliding_window", model.sliding_window.is_some()),
            ("model.layer_types", model.layer_types.is_some()),
            (
                "model.num_kv_shared_layers",
                model.num_kv_shared_layers.is_some(),
            ),
        ];
        let given = shape.iter().map(|(key, size)| (*key, size.is_some()));
        if let Some((key, _)) = given.chain(others).find(|(_, given)| *given) {
            return refuse(
                key,
                "stands beside `inputs.checkpoint`, whose shape the model has; leave it out (only \
                 `model.context` and `model.rope_theta` may differ)",
            );
        }
    }
    if let Start::Checkpoint(start) = start {
        model.rope_theta.get_or_insert(start.rope_theta);
        model
            .context
            .get_or_insert(start.context.max(train.sequence_length));
    }
    if let Start::Random = start {
        for (key, given) in shape {
            let Some(given) = given else {
                return refuse(
                    key,
                    "is missing; say it, or name the checkpoint to begin with as `inputs.checkpoint`",
                );
            };
            size(key, given)?;
        }
        let (width, heads) = (model.width.expect("above"), model.heads.expect("above"));
        if model.head_dim.is_none() {
            if !width.is_multiple_of(heads) {
                let problem = format!(
                    "is missing, and `model.width` {width} is no multiple of `model.heads` {heads}; say how wide a head is"
                );
                return refuse("model.head_dim", problem);
            }
            model.head_dim = Some(width / heads);
        }
        size("model.head_dim", model.head_dim.expect("just set"))?;
        check_attention(model)?;
        model.context.get_or_insert(train.sequence_length);
        model.rope_theta.get_or_insert(ROPE_THETA);
        model.norm_epsilon.get_or_insert(NORM_EPSILON);
        model.tied.get_or_insert(true);
    }
    if let Some(context) = model
        .context
        .filter(|&context| context < train.sequence_length)
    {
        let problem = format!(
            "is {context}, less than `train.sequence_length` {}, which the model will have learnt; leave it out or raise it",
            train.sequence_length
        );
        return refuse("model.context", problem);
    }
    size("model.context", model.context.unwrap_or(1))
}

/// Whether kinds of layers are said with a window, and go into the layers.
fn check_attention(model: &ModelSettings) -> Result<()> {
    let layers = model.layers.expect("sizes are checked");
    if let Some(window) = model.sliding_window {
        size("model.sliding_window", window)?;
    }
    let Some(types) = &model.layer_types else {
        return Ok(());
    };
    if types.is_empty() || !layers.is_multiple_of(types.len()) {
        let problem = format!(
            "lists {} kinds of layers, which do not divide `model.layers` {layers}; list one a layer, or a pattern that fits",
            types.len()
        );
        return refuse("model.layer_types", problem);
    }
    match (model.sliding_window, types.contains(&LayerType::Sliding)) {
        (None, true) => refuse(
            "model.layer_types",
            "has layers that slide, but `model.sliding_window` does not say how many tokens they see",
        ),
        (Some(_), false) => refuse(
            "model.layer_types",
            "has no `sliding_attention`, so nothing reads `model.sliding_window`; leave one of them out",
        ),
        _ => Ok(()),
    }
}

/// How the layers of resolved settings differ.
fn attention(model: &ModelSettings, layers: usize) -> Attention {
    let kv_shared = model.num_kv_shared_layers.unwrap_or(0);
    let Some(window) = model.sliding_window else {
        return Attention::new(0, Vec::new(), kv_shared);
    };
    let slides = |layer: usize| match &model.layer_types {
        None => true,
        Some(types) => types[layer % types.len()] == LayerType::Sliding,
    };
    Attention::new(window, (0..layers).map(slides).collect(), kv_shared)
}

fn resolve_train(train: &mut TrainSettings, schedule: &ScheduleSettings) -> Result<()> {
    size("train.batch_sequences", train.batch_sequences)?;
    size("train.sequence_length", train.sequence_length)?;
    let micro = *train
        .micro_batch_sequences
        .get_or_insert(train.batch_sequences);
    size("train.micro_batch_sequences", micro)?;
    let per_step = (train.batch_sequences * train.sequence_length) as u64;
    let steps = match (train.steps, train.tokens.take()) {
        (Some(_), Some(_)) => {
            return refuse(
                "train.tokens",
                "stands beside `train.steps`; keep one of them",
            );
        }
        (None, None) => return refuse("train.steps", "is missing; say how long to train"),
        (Some(steps), None) => steps,
        (None, Some(tokens)) => tokens.div_ceil(per_step),
    };
    if !(1..=1 << 32).contains(&steps) {
        return refuse(
            "train.steps",
            format!("is {steps}; it must be from 1 to 4294967296"),
        );
    }
    train.steps = Some(steps);
    let warmup = *train.warmup_steps.get_or_insert(steps.div_ceil(100));
    if warmup > steps {
        return refuse(
            "train.warmup_steps",
            format!("is {warmup}, more than all {steps} steps; lower it too"),
        );
    }
    match (schedule, train.final_lr_ratio) {
        (ScheduleSettings::Constant {}, Some(_)) => {
            return refuse(
                "train.final_lr_ratio",
                "stands beside a constant schedule, which ends at the peak; leave it out",
            );
        }
        (ScheduleSettings::Constant {}, None) => {}
        (ScheduleSettings::Cosine {}, None) => train.final_lr_ratio = Some(FINAL_LR_RATIO),
        (ScheduleSettings::Wsd(_), None) => train.final_lr_ratio = Some(0.0),
        (_, Some(ratio)) if !(0.0..=1.0).contains(&ratio) => {
            return refuse(
                "train.final_lr_ratio",
                format!("is {ratio}; it must be from 0 to 1"),
            );
        }
        (_, Some(_)) => {}
    }
    if let ScheduleSettings::Wsd(wsd) = schedule {
        if !(wsd.decay_share > 0.0 && wsd.decay_share <= 1.0) {
            let problem = format!("is {}; it must be above 0 and at most 1", wsd.decay_share);
            return refuse("schedule.decay_share", problem);
        }
        let decay = decay_steps(steps, wsd.decay_share);
        if warmup + decay > steps {
            let problem = format!(
                "makes {decay} steps of decay, which with `train.warmup_steps` {warmup} are more than all {steps} steps"
            );
            return refuse("schedule.decay_share", problem);
        }
    }
    Ok(())
}

/// Whether the numbers of `[train]` make sense. Comparisons are written so that NaN fails them.
fn check_train(train: &TrainSettings) -> Result<()> {
    let (batch, micro) = (
        train.batch_sequences,
        train.micro_batch_sequences.expect("resolved"),
    );
    if !batch.is_multiple_of(micro) {
        return refuse(
            "train.micro_batch_sequences",
            format!("is {micro}, which does not divide the batch of {batch}"),
        );
    }
    if batch * train.sequence_length > 1 << 31 {
        return refuse(
            "train.batch_sequences",
            "times `train.sequence_length` is more than 2^31 tokens",
        );
    }
    if !(train.peak_lr > 0.0 && train.peak_lr <= 10.0) {
        return refuse(
            "train.peak_lr",
            format!("is {}; it must be above 0 and at most 10", train.peak_lr),
        );
    }
    for (key, limit) in [
        ("train.clip_norm", train.clip_norm),
        ("train.skip_norm", train.skip_norm),
        ("train.spike_deviations", train.spike_deviations),
    ] {
        if !(limit >= 0.0 && limit.is_finite()) {
            return refuse(
                key,
                format!("is {limit}; it must be positive, or 0 for no limit"),
            );
        }
    }
    if !(0.0..1.0).contains(&train.ema) {
        return refuse(
            "train.ema",
            format!("is {}; it must be below 1, or 0 for no mean", train.ema),
        );
    }
    if !(0.0..=1.0).contains(&train.z_loss) {
        return refuse(
            "train.z_loss",
            format!("is {}; it must be from 0 to 1", train.z_loss),
        );
    }
    if train.log_every == 0 {
        return refuse("train.log_every", "is 0; it must be at least 1");
    }
    if !(1..=1000).contains(&train.keep_last) {
        return refuse(
            "train.keep_last",
            format!("is {}; it must be from 1 to 1000", train.keep_last),
        );
    }
    if train.validation_tokens == Some(0) {
        return refuse(
            "train.validation_tokens",
            "is 0; leave it out to measure the whole shard",
        );
    }
    Ok(())
}

fn check_optimizer(optimizer: &OptimizerSettings, train: &TrainSettings) -> Result<()> {
    let (betas, epsilon, most_decay) = match optimizer {
        OptimizerSettings::AdamW(settings) => (
            [
                ("optimizer.beta1", settings.beta1),
                ("optimizer.beta2", settings.beta2),
            ],
            settings.epsilon,
            1.0 / train.peak_lr,
        ),
        OptimizerSettings::AdaStar(settings) => {
            if !(settings.clip_rms >= 0.0 && settings.clip_rms.is_finite()) {
                let problem = format!(
                    "is {}; it must be positive, or 0 for no limit",
                    settings.clip_rms
                );
                return refuse("optimizer.clip_rms", problem);
            }
            let betas = [
                ("optimizer.beta1", settings.beta1),
                ("optimizer.beta2", settings.beta2),
            ];
            (betas, settings.epsilon, 1.0)
        }
        OptimizerSettings::RmsProp(settings) => (
            [
                ("optimizer.momentum", settings.momentum),
                ("optimizer.alpha", settings.alpha),
            ],
            settings.epsilon,
            1.0 / train.peak_lr,
        ),
    };
    for (key, beta) in betas {
        // As the kernels have it: what f32 rounds to 1 forgets nothing and divides by 0.
        if !(beta >= 0.0 && (beta as f32) < 1.0) {
            return refuse(
                key,
                format!("is {beta}; it must be at least 0 and below 1, in single precision too"),
            );
        }
    }
    // Below 1e-36 it would leave the range of f32 and be no protection from a division by zero.
    if !(1e-36..=1.0).contains(&epsilon) {
        return refuse(
            "optimizer.epsilon",
            format!("is {epsilon}; it must be from 1e-36 to 1"),
        );
    }
    let decay = optimizer.weight_decay();
    if !(0.0..=most_decay).contains(&decay) {
        let problem = match optimizer {
            OptimizerSettings::AdaStar(_) => format!("is {decay}; it must be from 0 to 1"),
            _ => format!("is {decay}; it must be from 0 to 1 / `train.peak_lr`"),
        };
        return refuse("optimizer.weight_decay", problem);
    }
    match optimizer.mup_base_width() {
        0 => Ok(()),
        base => size("optimizer.mup_base_width", base),
    }
}

fn resolve_data(data: &mut DataSettings, train: &TrainSettings) -> Result<()> {
    if train.keep_best && data.validation.is_none() {
        return refuse(
            "train.keep_best",
            "needs a loss on held-out text; set `data.validation` to a shard's name",
        );
    }
    if train.keep_best && train.validate_every == 0 {
        return refuse(
            "train.keep_best",
            "keeps the best of several measurements, but `train.validate_every` is 0, so there is one, at the end; say how \
             often to measure",
        );
    }
    if data.validation.is_none() {
        let given = [
            ("train.validate_every", train.validate_every > 0),
            ("train.validation_tokens", train.validation_tokens.is_some()),
        ];
        if let Some((key, _)) = given.iter().find(|(_, given)| *given) {
            return refuse(
                key,
                "is there, but nothing to measure on; set `data.validation` to a shard's name, or leave it out",
            );
        }
    }
    if data.mixture.is_empty() {
        data.train.get_or_insert("train".to_owned());
        return Ok(());
    }
    if data.train.is_some() {
        return refuse(
            "data.train",
            "stands beside `data.mixture`; keep one of them",
        );
    }
    if data.mixture.len() > MOST {
        let problem = format!(
            "has {} shards; at most {MOST} can be mixed, so join some where texts become tokens",
            data.mixture.len()
        );
        return refuse("data.mixture", problem);
    }
    for part in &data.mixture {
        if !(part.weight > 0.0 && part.weight <= 1e9) {
            let problem = format!(
                "of `{}` is {}; it must be above 0 and at most 1e9, so leave the shard out or raise it",
                part.split, part.weight
            );
            return refuse("data.mixture.weight", problem);
        }
    }
    Ok(())
}

/// Ranks of a mesh at most.
const MOST_RANKS: usize = 1 << 16;

/// Whether a mesh is one, and divides the batch. Whether it divides the model is seen where the vocabulary is known.
pub(crate) fn check_parallel(settings: &Settings) -> Result<()> {
    let ParallelSettings {
        data,
        fsdp,
        sequence,
        tensor,
        pipeline,
        ..
    } = settings.parallel;
    for (key, size) in [
        ("parallel.data", data),
        ("parallel.fsdp", fsdp),
        ("parallel.sequence", sequence),
        ("parallel.tensor", tensor),
    ] {
        if !(1..=MOST_RANKS).contains(&size) {
            return refuse(key, format!("is {size}; it must be from 1 to {MOST_RANKS}"));
        }
    }
    if pipeline != 1 {
        let problem = format!(
            "is {pipeline}, but blocks cannot be dealt out over ranks yet; leave it out and use `parallel.data`, \
             `parallel.fsdp`, `parallel.sequence` or `parallel.tensor`"
        );
        return refuse("parallel.pipeline", problem);
    }
    let places = data.saturating_mul(fsdp);
    let ranks = [sequence, tensor]
        .iter()
        .fold(places, |ranks, size| ranks.saturating_mul(*size));
    if ranks > MOST_RANKS {
        return refuse(
            "parallel.data",
            format!(
                "times `parallel.fsdp`, `parallel.sequence` and `parallel.tensor` is more than {MOST_RANKS} ranks"
            ),
        );
    }
    let length = settings.train.sequence_length;
    if sequence > 1 && 2 * sequence > length {
        let problem = format!(
            "is {sequence}, and each of its ranks has two runs of the tokens of at least one sequence, which has {length}; use \
             at most {}",
            (length / 2).max(1)
        );
        return refuse("parallel.sequence", problem);
    }
    let batch = settings.train.batch_sequences;
    if !batch.is_multiple_of(places) {
        let problem = format!(
            "is {batch}, which `parallel.data` times `parallel.fsdp`, {places}, does not divide; make it a multiple"
        );
        return refuse("train.batch_sequences", problem);
    }
    for (key, size, what) in [
        ("parallel.tensor", tensor, "the whole vocabulary"),
        ("parallel.sequence", sequence, "whole sequences"),
    ] {
        if settings.distill.is_some() && size > 1 {
            let problem = format!(
                "is {size} beside `[distill]`, whose loss needs {what} on each rank; use `parallel.data` or `parallel.fsdp`"
            );
            return refuse(key, problem);
        }
    }
    Ok(())
}

/// Whether a mesh divides a model.
pub(crate) fn check_mesh(settings: &Settings, config: &Config) -> Result<()> {
    match settings.parallel.tensor {
        1 => Ok(()),
        tensor => russet_model::cut::check(config, tensor)
            .map_err(|problem| TrainError::setting("parallel.tensor", problem)),
    }
}

/// The steps of a decay over a share of all.
fn decay_steps(steps: u64, share: f64) -> u64 {
    ((steps as f64 * share).ceil() as u64).clamp(1, steps)
}

/// The learning rates of resolved settings.
pub(crate) fn schedule(train: &TrainSettings, schedule: &ScheduleSettings) -> Schedule {
    let (steps, final_ratio) = (train.steps.expect("resolved"), train.final_lr_ratio);
    Schedule {
        peak: train.peak_lr,
        warmup_steps: train.warmup_steps.expect("resolved"),
        steps,
        shape: match schedule {
            ScheduleSettings::Cosine {} => Shape::Cosine {
                final_ratio: final_ratio.expect("resolved"),
            },
            ScheduleSettings::Wsd(wsd) => Shape::Wsd {
                decay_steps: decay_steps(steps, wsd.decay_share),
                decay: wsd.decay,
                final_ratio: final_ratio.expect("resolved"),
            },
            ScheduleSettings::Constant {} => Shape::Constant,
        },
    }
}

/// How resolved settings cut and deal shards.
pub(crate) fn packing(settings: &Settings) -> Packing {
    let train = &settings.train;
    Packing {
        kind: settings.data.packing,
        sequence_length: train.sequence_length,
        batch_sequences: train.batch_sequences,
        micro_batch_sequences: train.micro_batch_sequences.expect("resolved"),
        seed: train.seed,
    }
}

/// The decoder of resolved settings: that of `start` with what differs, or a new one for a tokenizer's vocabulary.
pub(crate) fn decoder_config(
    model: &ModelSettings,
    start: Option<&Config>,
    special: &SpecialIds,
    vocab: usize,
) -> Result<Config> {
    const RESOLVED: &str = "resolved settings have every size";
    let (rope_theta, context) = (
        model.rope_theta.expect(RESOLVED),
        model.context.expect(RESOLVED),
    );
    let config = match start {
        Some(start) => Config {
            rope_theta,
            context,
            ..start.clone()
        },
        None => Config {
            family: Family::Qwen3,
            vocab,
            width: model.width.expect(RESOLVED),
            layers: model.layers.expect(RESOLVED),
            heads: model.heads.expect(RESOLVED),
            kv_heads: model.kv_heads.expect(RESOLVED),
            head_dim: model.head_dim.expect(RESOLVED),
            ffn: model.ffn.expect(RESOLVED),
            norm_epsilon: model.norm_epsilon.expect(RESOLVED) as f32,
            rope_theta,
            rope_scaling: RopeScaling::None,
            attention: attention(model, model.layers.expect(RESOLVED)),
            context,
            tied: model.tied.expect(RESOLVED),
            bos: special.bos,
            eos: special.eos.clone(),
        },
    };
    config
        .check()
        .map_err(|problem| TrainError::setting("model", format!("cannot be built: {problem}")))?;
    Ok(config)
}
