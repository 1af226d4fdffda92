//! Masks learnt by the one training loop: the task, and the checkpoint that is cut by them.

use std::path::Path;

use russet_artifact::{Interrupt, Kind, Progress, Stage};
use russet_kernels::mask as kernel;
use russet_model::{Decoder, checkpoint};
use russet_tensor::Ctx;
use russet_tensor::mesh::MeshShape;

use super::mask::{Annealed, Sharpness, masked, scores};
use super::{Choice, Pruning, files, greatest, slice};
use crate::Result;
use crate::launch::Launch;
use crate::loader::{Batches, Mixture, Packing, Part};
use crate::objective::{NextToken, Objective};
use crate::plan::label;
use crate::run::{Measure, Measured};
use crate::schedule::{Schedule, Shape};
use crate::settings::{
    AdamWSettings, ComputeSettings, OptimizerSettings, PackingKind, TrainSettings,
};
use crate::state::State;
use crate::training::{Outcome, Resume, Task, Trained, Training};
use crate::validation::{GoesOn, ValidationResult};
use crate::wrapped::{Unwrapped, Wrapped};

/// Steps from one saved state to the next.
pub(super) const CHECKPOINT_EVERY: u64 = 100;

/// What is learnt: the scores of the masks.
struct Learning<'a> {
    pruning: &'a Pruning,
    /// Lowered by the batches, read by the masks.
    sharpness: Sharpness,
}

impl Pruning {
    /// Learns the masks and leaves the smaller checkpoint in `out`.
    pub(super) fn learn(
        &self,
        stage: Stage,
        compute: &ComputeSettings,
        out: &Path,
        resume: Resume,
        progress: &mut dyn Progress,
        interrupt: &Interrupt,
    ) -> Result<Outcome> {
        let settings = &self.settings;
        let train = TrainSettings {
            steps: Some(settings.steps),
            tokens: None,
            batch_sequences: settings.batch_sequences,
            sequence_length: settings.sequence_length,
            micro_batch_sequences: settings.micro_batch_sequences,
            peak_lr: self.peak(),
            warmup_steps: None,
            final_lr_ratio: None,
            clip_norm: if self.is_joint() { 1.0 } else { 0.0 }, // that of the scores alone says little about their scale
            skip_norm: 0.0,
            ema: 0.0,
            z_loss: 0.0,
            seed: settings.seed,
            validate_every: 0,
            validation_tokens: settings.validation_tokens,
            checkpoint_every: CHECKPOINT_EVERY,
            keep_last: 1,
            keep_best: false,
            spike_deviations: 0.0,
            log_every: 1,
        };
        let adamw = AdamWSettings {
            weight_decay: 0.0, // too short to need it
            ..AdamWSettings::default()
        };
        let task = Learning {
            pruning: self,
            sharpness: Sharpness::new(self.epsilons().0),
        };
        let wrap = || {
            let decoder = checkpoint::load(&self.checkpoint)?;
            Ok(masked(
                decoder,
                settings.ffn,
                &task.sharpness,
                self.is_joint(),
            ))
        };
        let unwrap = |decoder: &Decoder| self.cut(decoder).map(Unwrapped::Decoder);
        let training = Training {
            stage,
            train: &train,
            optimizer: OptimizerSettings::AdamW(adamw),
            schedule: Schedule {
                peak: self.peak(),
                warmup_steps: settings.steps.div_ceil(20),
                steps: settings.steps,
                shape: Shape::Cosine { final_ratio: 0.1 },
            },
            compute,
            mesh: MeshShape { sizes: [1; 4] },
            memory: Some(settings.memory(&self.config, compute.recompute)),
            trained: Trained::Wrapped(Wrapped {
                base: self.checkpoint.clone(),
                kind: Kind::Checkpoint,
                wrap: &wrap,
                unwrap: &unwrap,
            }),
            reward: false,
            task: &task,
            measures_start: true,
        };
        training.run(&Launch::Threads, out, resume, progress, interrupt)
    }

    /// Whether the weights learn too.
    fn is_joint(&self) -> bool {
        self.settings.weight_lr > 0.0
    }

    /// The one rate for all: where the weights learn too, scores are kept shorter by the quotient of the rates, and so is ε.
    fn peak(&self) -> f64 {
        match self.is_joint() {
            true => self.settings.weight_lr,
            false => self.settings.lr,
        }
    }

    /// ε of such scores, first and last.
    fn epsilons(&self) -> (f64, f64) {
        let gain = self.settings.lr / self.peak();
        (
            self.settings.epsilon_start / gain,
            self.settings.epsilon_end / gain,
        )
    }

    /// By the masks as they are once hard.
    fn choice(&self, decoder: &Decoder) -> Choice {
        let (k, epsilon) = (self.settings.ffn, self.epsilons().1);
        let (mut kept, mut factors) = (Vec::new(), Vec::new());
        for scores in scores(decoder) {
            let mut mask = vec![0.0; scores.len()];
            kernel::soft_top_k(scores.data(), k, epsilon, &mut mask);
            let stays = greatest(&mask, k);
            factors.push(stays.iter().map(|&i| mask[i]).collect());
            kept.push(stays);
        }
        Choice { kept, factors }
    }

    /// The decoder without what the masks leave out, and without masks.
    fn cut(&self, decoder: &Decoder) -> Result<Decoder> {
        let Choice { kept, factors } = self.choice(decoder);
        if self.is_joint() {
            return Ok(slice(decoder, &kept, &factors));
        }
        // Weights that do not learn are no parameters of the decoder with masks.
        Ok(slice(&checkpoint::load(&self.checkpoint)?, &kept, &factors))
    }
}

impl Task for Learning<'_> {
    fn objective(&self) -> Result<Box<dyn Objective + '_>> {
        Ok(Box::new(NextToken))
    }

    fn batches(&self, _: usize, _: usize) -> Result<Box<dyn Batches + '_>> {
        let Pruning {
            settings, train, ..
        } = self.pruning;
        let packing = Packing {
            kind: PackingKind::Stream,
            sequence_length: settings.sequence_length,
            batch_sequences: settings.batch_sequences,
            micro_batch_sequences: settings.micro(),
            seed: settings.seed,
        };
        let (shard, begin_of_text) = self.pruning.shard(train)?;
        let part = Part {
            shard,
            label: label(&settings.train, |_| false),
            weight: 1.0,
        };
        let (from, to) = self.pruning.epsilons();
        Ok(Box::new(Annealed {
            batches: Mixture::new(vec![part], begin_of_text, packing)?,
            sharpness: self.sharpness.clone(),
            from,
            to,
            step: 0,
            steps: settings.steps,
        }))
    }

    /// Before the first step the checkpoint as it is, after that what would be written.
    fn measure(&self) -> Result<Option<Box<Measure<'_>>>> {
        let Some(validation) = self.pruning.validation()? else {
            return Ok(None);
        };
        let measure = move |ctx: &mut Ctx, decoder: &Decoder, goes_on: &mut GoesOn| {
            let untouched =
                |scores: &russet_tensor::Tensor| scores.data().iter().all(|&s| s == 0.0);
            let bare = match scores(decoder).iter().all(untouched) {
                true => checkpoint::load(&self.pruning.checkpoint)?,
                false => self.pruning.cut(decoder)?,
            };
            let result = validation.measure(ctx, &bare, goes_on)?;
            Ok(result.map(ValidationResult::measured))
        };
        Ok(Some(Box::new(measure)))
    }

    fn files(&self, state: &State, after: &Measured) -> Result<Vec<(String, Vec<u8>)>> {
        let tally = &state.tally;
        let before = tally.before.iter();
        let before = before.filter(|(name, _)| name == crate::VALIDATION_LOSS);
        let before = before
            .map(|&(_, loss)| (crate::VALIDATION_LOSS, loss))
            .collect();
        let choice = self.pruning.choice(&state.decoder);
        let report = self
            .pruning
            .report(choice, Some(tally.last_loss), &before, after);
        Ok(files(&report))
    }
}
