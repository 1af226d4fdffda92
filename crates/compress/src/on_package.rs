//! What is learnt on a package: a plan's task, with a report of what it has brought back.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use russet_kernels::Pool;
use russet_model::{Layout, Projection, Weights, package};
use russet_tensor::Ctx;
use russet_train::{
    BITS_PER_BYTE, Batches, Measure, Measured, Objective, Plan, State, Task, TrainError,
    VALIDATION_LOSS,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::palettize::rotation_of;
use crate::rotate::{Turn, norm_before};
use crate::{CompressError, Rotation};

/// Held-out text under a package, before and after something was learnt on it; none where nothing is held out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldOut {
    /// The package's loss, nats a token.
    pub loss_before: Option<f64>,
    /// That before the first step, of what the run begins with.
    pub loss_start: Option<f64>,
    /// That of what was written.
    pub loss_after: Option<f64>,
    /// The package's bits per byte.
    pub bits_per_byte_before: Option<f64>,
    /// Those before the first step.
    pub bits_per_byte_start: Option<f64>,
    /// Those of what was written.
    pub bits_per_byte_after: Option<f64>,
}

/// Makes the report of a finished run, for the file of that name, and perhaps a card.
type Write<'a> = dyn Fn(&State, &Measured, HeldOut) -> Written + Sync + 'a;

/// What goes beside the weights.
pub(crate) struct Written {
    /// The name of the report's file.
    pub name: &'static str,
    pub report: Value,
    /// `README.md`; the plan's where absent.
    pub card: Option<String>,
}

/// A plan's task with a report.
pub(crate) struct OnPackage<'a> {
    plan: &'a Plan,
    write: &'a Write<'a>,
    before: OnceLock<Measured>, // of the package alone
}

impl<'a> OnPackage<'a> {
    pub fn new(plan: &'a Plan, write: &'a Write<'a>) -> OnPackage<'a> {
        OnPackage {
            plan,
            write,
            before: OnceLock::new(),
        }
    }

    /// What the package alone measures.
    fn before(&self) -> russet_train::Result<&Measured> {
        if let Some(before) = self.before.get() {
            return Ok(before);
        }
        let measured = match self.plan.measure()? {
            None => Measured::new(),
            Some(mut measure) => {
                let compute = &self.plan.settings().compute;
                let mut ctx = Ctx::new(Arc::new(compute.pool(1)?));
                ctx.compute = compute.dtype.kernel();
                let measured = measure(&mut ctx, &package::load(base(self.plan))?, &mut |_| true)?;
                measured.expect("nobody stopped it")
            }
        };
        Ok(self.before.get_or_init(|| measured))
    }
}

/// The folder of a plan's package.
pub(crate) fn base(plan: &Plan) -> &Path {
    plan.base().expect("a plan on a package has one")
}

impl Task for OnPackage<'_> {
    fn objective(&self) -> russet_train::Result<Box<dyn Objective + '_>> {
        Task::objective(self.plan)
    }

    fn batches(&self, place: usize, places: usize) -> russet_train::Result<Box<dyn Batches + '_>> {
        self.plan.batches(place, places)
    }

    fn measure(&self) -> russet_train::Result<Option<Box<Measure<'_>>>> {
        self.plan.measure()
    }

    fn files(
        &self,
        state: &State,
        measured: &Measured,
    ) -> russet_train::Result<Vec<(String, Vec<u8>)>> {
        let before = self.before()?;
        let of = |measured: &[(&str, f64)], name: &str| {
            let found = measured.iter().find(|(one, _)| *one == name);
            found.map(|(_, value)| *value)
        };
        let start = |name: &str| {
            let found = state.tally.before.iter().find(|(one, _)| one == name);
            found.map(|(_, value)| *value)
        };
        let (nats, bits) = (VALIDATION_LOSS, BITS_PER_BYTE);
        let held_out = HeldOut {
            loss_before: of(before, nats),
            loss_start: start(nats),
            loss_after: of(measured, nats),
            bits_per_byte_before: of(before, bits),
            bits_per_byte_start: start(bits),
            bits_per_byte_after: of(measured, bits),
        };
        let Written { name, report, card } = (self.write)(state, measured, held_out);
        let mut files = match card {
            None => self.plan.files(state, measured)?,
            Some(card) => vec![("README.md".to_owned(), card.into_bytes())],
        };
        let text = format!("{report:#}\n");
        files.push((name.to_owned(), text.into_bytes()));
        Ok(files)
    }
}

/// The checkpoint that a plan's package was made of, its weights as they were when they were palettized.
pub(crate) struct Dense {
    weights: Weights,
    turn: Option<Turn>,
}

impl Dense {
    /// Opens it. `else_write` is the setting that does without.
    pub fn open(plan: &Plan, checkpoint: &Path, else_write: &str) -> Result<Dense, CompressError> {
        let weights = Weights::open(checkpoint)?;
        let wrong = |sentence: &str| {
            let place = checkpoint.display();
            Err(CompressError::Checkpoint(format!("{place} {sentence}")))
        };
        if weights.are_palettized() {
            return wrong(
                "is palettized itself; name the dense checkpoint that the package was made of",
            );
        }
        let rotation = rotation_of(base(plan), Some(else_write))?;
        let untied = rotation != Rotation::None;
        let (config, package) = (weights.config(), plan.config());
        if config.projection_parameters() != package.projection_parameters()
            || config.layers != package.layers
            || config.attention != package.attention
            || (config.tied && !untied) != package.tied
        {
            return wrong(&format!(
                "has another shape than the package; name the checkpoint that it was made of, or write {else_write}"
            ));
        }
        let turn = Turn::new(rotation, weights.config());
        Ok(Dense { weights, turn })
    }

    /// The weights of the projections of a product that are chosen by name, `[rows, inputs]` each.
    pub fn take<'a>(
        &mut self,
        pool: &Pool,
        layout: &'a Layout,
        chosen: impl Fn(&str) -> bool,
    ) -> Result<Vec<(&'a Projection, Vec<f32>)>, CompressError> {
        let cols = layout.inputs;
        let gain = match norm_before(layout) {
            Some(norm) if self.turn.is_some() => self.weights.take(pool, &norm, &[cols])?,
            _ => Vec::new(),
        };
        let mut taken = Vec::new();
        for projection in layout.projections.iter().filter(|one| chosen(&one.name)) {
            let name = format!("{}.weight", projection.name);
            let mut weight = self.weights.take(pool, &name, &[projection.rows, cols])?;
            crate::model::check_finite(&projection.name, &weight, cols)?;
            if let Some(turn) = &self.turn {
                turn.weight(pool, &name, &mut weight, cols, &gain);
            }
            taken.push((projection, weight));
        }
        Ok(taken)
    }
}

pub(crate) fn of_task(error: CompressError) -> TrainError {
    TrainError::Task(Box::new(error))
}
