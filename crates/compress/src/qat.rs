//! Quantization-aware training: the palettes of a package learn by gradient, end to end.
//!
//! ```text
//! tables             ŵ = s p[i], indices i as they are                      entries p and scales s learn
//! straight-through   i = the entry nearest to w / s                         w learns too, by the gradient at ŵ (arXiv 1308.3432)
//! dkm                ŵ = s Σ a p, a soft choice that is hard when measured   w learns too (DKM, arXiv 2108.12659)
//! loss               (1 − m) (−ln p[t]) + m KL(q ‖ p),  q the checkpoint's predictions, where it is given
//! ```
//! Entries and scales round on the way as they will be stored, and activations as a palettized product rounds them, so that what is trained
//! is what is served. Bits of projections stay; tables of the vocabulary and norms are frozen. The run is [`russet_train::Training`], the
//! palettes stand in the decoder as a [`Linear`]. What comes out is a package.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use russet_artifact::{Interrupt, Kind, Progress, Tool};
use russet_kernels::Pool;
use russet_kernels::palette::{self, STRIP};
use russet_model::package::PaletteTensors;
use russet_model::{
    Config, Decoder, Layout, Linear, Parameter, ParameterKind, Weights, package, projections,
};
use russet_tensor::ops::{self, Learnt, LearntFrom};
use russet_tensor::{Ctx, PaletteWeight, Tensor};
use russet_train::settings::{ComputeSettings, ComputeType, Recompute};
use russet_train::{
    Launch, Measured, Memory, Outcome, Plan, Resume, State, TrainError, Trained, Unwrapped,
    Wrapped, card_rows,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::CompressError;
use crate::on_package::{Dense, HeldOut, OnPackage, Written, base, of_task};
use crate::palettize::{copy_companions, rotation_of};
use crate::settings::Rotation;

/// The file of a package that holds the [`QatReport`].
pub const QAT_REPORT: &str = "qat.json";

/// `[qat]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QatSettings {
    /// What learns, and how entries are chosen meanwhile.
    pub method: QatMethod,
    /// How soft the choice of `dkm` is: τ over the squared step between entries, were they even; 0.1 where absent. Of the other
    /// methods it is no setting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
}

/// What learns, and how entries are chosen meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QatMethod {
    /// Entries and scales; indices stay.
    #[default]
    Tables,
    /// Weights as well, which choose their nearest entries.
    StraightThrough,
    /// Weights as well, which choose softly.
    Dkm,
}

/// What does without the checkpoint.
const ELSE: &str = "qat.method = \"tables\"";

/// Chosen so that a weight a quarter of the way between two entries is all but decided, not measured.
const TEMPERATURE: f64 = 0.1;

impl QatSettings {
    /// Checked, and with everything filled in; `taught` says whether there is the checkpoint that the package was made of.
    ///
    /// # Errors
    /// When a setting cannot be.
    pub fn resolved(mut self, taught: bool) -> Result<QatSettings, CompressError> {
        if self.method != QatMethod::Tables && !taught {
            let problem = "nothing says what the weights were; name the checkpoint that the package was made of in \
                           `inputs.teacher`, or write \"tables\"";
            return CompressError::setting("qat.method", &json!(self.method), problem);
        }
        match (self.method, self.temperature) {
            (QatMethod::Dkm, None) => self.temperature = Some(TEMPERATURE),
            (QatMethod::Dkm, Some(temperature)) if !(1e-4..=100.0).contains(&temperature) => {
                let problem = "it must be from 0.0001 to 100, such as 0.1";
                return CompressError::setting("qat.temperature", &temperature, problem);
            }
            (QatMethod::Tables | QatMethod::StraightThrough, Some(temperature)) => {
                let problem = "only `qat.method = \"dkm\"` chooses softly; leave it out";
                return CompressError::setting("qat.temperature", &temperature, problem);
            }
            _ => {}
        }
        Ok(self)
    }

    /// Whether it can be done as `[compute]` says.
    ///
    /// # Errors
    /// When blocks would be computed again, in which palettes would be expanded anew for every few rows and their gradients add up in
    /// another order, or products be in another type than they are served in.
    pub fn check_compute(&self, compute: &ComputeSettings) -> Result<(), CompressError> {
        if compute.recompute == Recompute::Block {
            let problem = "palettes that learn keep all blocks; leave it out, and take smaller micro-batches where memory is short";
            return CompressError::setting("compute.recompute", &"\"block\"", problem);
        }
        if compute.dtype != ComputeType::F32 {
            let problem =
                "palettes are trained as they are served, which is not in bf16; leave it out";
            return CompressError::setting("compute.dtype", &"\"bf16\"", problem);
        }
        Ok(())
    }

    /// Takes off a plan's memory what weights that do not learn have not: with `tables` only entries and scales have gradients and moments.
    pub fn lighten(&self, config: &Config, memory: &mut Memory) {
        if self.method != QatMethod::Tables {
            return;
        }
        let rows = |layer| {
            projections(config, layer)
                .into_iter()
                .map(|(_, rows, _)| rows)
        };
        let rows: usize = (0..config.layers).flat_map(rows).sum();
        // A scale a row, and at most the 512 numbers of a palette of pairs for sixteen.
        let most = 4 * rows * (1 + 512 / STRIP);
        memory.gradients = memory.gradients.min(most);
        memory.optimizer = memory.optimizer.min(3 * most);
        memory.saving = memory.saving.min(4 * most);
    }
}

/// What quantization-aware training has come to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QatReport {
    /// What learnt.
    pub method: QatMethod,
    /// Updates.
    pub steps: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Numbers that learnt.
    pub parameters: u64,
    /// The share of all indices that are others than before.
    pub moved: f64,
    /// What was folded into the weights before they were palettized.
    #[serde(default, skip_serializing_if = "Rotation::is_none")]
    pub rotation: Rotation,
    /// What it did to text held out.
    #[serde(flatten)]
    pub held_out: HeldOut,
}

/// Trains the palettes of the package that is the base of `plan`, and leaves a package in `out`. `checkpoint` is what the package was made of.
/// Killed at any moment and called again, it leaves the same bytes.
///
/// # Errors
/// As [`russet_train::Training::run`]; what is wrong with package or checkpoint comes as [`TrainError::Task`].
pub fn qat(
    plan: &Plan,
    settings: &QatSettings,
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
    let (package, compute) = (base(plan), &plan.settings().compute);
    settings.check_compute(compute).map_err(of_task)?;
    // Indices that stay are compared with nothing, so how they were rotated is only passed on.
    let way_out = (settings.method != QatMethod::Tables).then_some(ELSE);
    let rotation = rotation_of(package, way_out).map_err(of_task)?;
    let pool = compute.pool(1)?;
    let moved = Mutex::new(0.0); // of what was unwrapped last
    let wrap = || wrapped(plan, &settings, checkpoint).map_err(of_task);
    let unwrap = |decoder: &Decoder| {
        let modules = modules(&pool, package, decoder, settings.method).map_err(of_task)?;
        *moved.lock().unwrap_or_else(PoisonError::into_inner) = modules.moved;
        let from = package.to_owned();
        let write = move |to: &Path| {
            package::replace(&from, &modules.tensors, to)?;
            copy_companions(&from, to).map_err(of_task)
        };
        Ok(Unwrapped::Files(Box::new(write)))
    };
    let report = |state: &State, measured: &Measured, held_out| {
        let report = QatReport {
            method: settings.method,
            steps: state.step,
            tokens: state.tally.tokens,
            parameters: state
                .decoder
                .parameters()
                .iter()
                .map(|p| p.tensor.len() as u64)
                .sum(),
            moved: *moved.lock().unwrap_or_else(PoisonError::into_inner),
            rotation,
            held_out,
        };
        Written {
            name: QAT_REPORT,
            card: Some(card(plan, state, measured, &report)),
            report: json!(report),
        }
    };
    let task = OnPackage::new(plan, &report);
    let mut training = plan.training(tool)?;
    training.stage.recipe["qat"] =
        serde_json::to_value(&settings).expect("settings have a JSON form");
    training.task = &task;
    training.measures_start = true;
    if let Some(memory) = &mut training.memory {
        settings.lighten(plan.config(), memory);
    }
    training.trained = Trained::Wrapped(Wrapped {
        base: package.to_owned(),
        kind: Kind::Package,
        wrap: &wrap,
        unwrap: &unwrap,
    });
    training.run(&Launch::Threads, out, resume, progress, interrupt)
}

/// A product whose palettes learn.
struct Learning {
    layout: Layout,
    parts: Vec<Learnt>,
}

impl Linear for Learning {
    fn forward(&self, ctx: &mut Ctx, x: &Tensor) -> Tensor {
        let x = ops::rounded(ctx, x);
        let weight = ops::learnt_weight(ctx, self.layout.inputs, &self.parts);
        ops::linear(ctx, &x, &weight)
    }

    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn stored_bytes(&self) -> usize {
        4 * self.layout.rows() * self.layout.inputs
    }

    fn visit<'a>(&'a self, visit: &mut dyn FnMut(Parameter<'a>)) {
        for (part, projection) in self.parts.iter().zip(&self.layout.projections) {
            let name = |end: &str| format!("{}.{end}", projection.name);
            if let LearntFrom::Nearest(tensor) | LearntFrom::Soft(tensor, _) = &part.from {
                visit(Parameter {
                    parts: vec![(name(WEIGHT), projection.rows)],
                    kind: ParameterKind::Matrix,
                    tensor,
                    cut: None,
                });
            }
            // Not decayed, as norms are not.
            for (end, tensor) in [(PALETTE, &part.entries), (SCALES, &part.factors)] {
                visit(Parameter {
                    parts: vec![(name(end), 1)],
                    kind: ParameterKind::Norm,
                    tensor,
                    cut: None,
                });
            }
        }
    }

    fn visit_mut(&mut self, visit: &mut dyn FnMut(&mut Tensor)) {
        for part in &mut self.parts {
            if let LearntFrom::Nearest(tensor) | LearntFrom::Soft(tensor, _) = &mut part.from {
                visit(tensor);
            }
            visit(&mut part.entries);
            visit(&mut part.factors);
        }
    }
}

/// The ends of parameters' names.
const WEIGHT: &str = "weight";
const PALETTE: &str = "palette";
const SCALES: &str = "scales";

/// The package's decoder with palettes that learn.
fn wrapped(
    plan: &Plan,
    settings: &QatSettings,
    checkpoint: Option<&Path>,
) -> Result<Decoder, CompressError> {
    let package = base(plan);
    let decoder = package::load(package)?.freeze();
    let mut stored = Weights::open(package)?;
    let mut dense = match settings.method {
        QatMethod::Tables => None,
        _ => {
            let checkpoint = checkpoint.expect("resolved settings ask for it");
            Some(Dense::open(plan, checkpoint, ELSE)?)
        }
    };
    let pool = plan
        .settings()
        .compute
        .pool(1)
        .map_err(|error| CompressError::Train(Box::new(error)))?;
    let mut products = Vec::new();
    for layout in decoder.layouts() {
        let mut weights = match &mut dense {
            None => Vec::new(),
            Some(dense) => dense.take(&pool, &layout, |_| true)?,
        }
        .into_iter();
        let mut parts = Vec::new();
        for projection in &layout.projections {
            let shape = (projection.rows, layout.inputs);
            let weight = stored.take_palettized(&projection.name, shape)?;
            let values = weights.next().map(|(_, mut values)| {
                as_stored(&weight, &mut values);
                Tensor::new(&[shape.0, shape.1], values)
            });
            let from = match (values, settings.temperature) {
                (None, _) => LearntFrom::Indices(unpacked(&weight)),
                (Some(weights), None) => LearntFrom::Nearest(weights),
                (Some(weights), Some(temperature)) => LearntFrom::Soft(weights, temperature as f32),
            };
            let entries = weight.view().palette();
            let entries: Vec<f32> = entries.iter().map(|&p| f32::from(p) / 127.0).collect();
            let entries = Tensor::new(&[entries.len()], entries);
            let factors = Tensor::new(&[shape.0], vec![1.0; shape.0]);
            parts.push(learnt(&weight, entries, factors, from));
        }
        drop(weights);
        products.push(Learning { layout, parts });
    }
    let mut products = products.into_iter();
    Ok(decoder.map_linears(|_| Box::new(products.next().expect("a product each"))))
}

fn learnt(weight: &PaletteWeight, entries: Tensor, factors: Tensor, from: LearntFrom) -> Learnt {
    let scales = &weight.view().scales()[..weight.rows()];
    Learnt {
        bits: weight.bits(),
        entries,
        factors,
        scales: scales.iter().map(|scale| scale.to_f32()).collect(),
        from,
    }
}

/// Puts weights that are nearer to another entry than the package's where the package has them: so the run begins with the package, and with what
/// error feedback chose. Anywhere else in the entry's cell they would soon leave it again (LOG.md). `values` are `[rows, cols]`.
fn as_stored(weight: &PaletteWeight, values: &mut [f32]) {
    let (view, bits, cols) = (weight.view(), weight.bits(), weight.cols());
    let (entries, width) = (bits.entries(), bits.indices(cols));
    let indices = unpacked(weight);
    for (row, values) in values.chunks_exact_mut(cols).enumerate() {
        let scale = view.scales()[row].to_f32();
        let table = &view.palette()[row / STRIP * bits.table()..][..bits.table()];
        for (number, &chosen) in indices[row * width..][..width].iter().enumerate() {
            let inputs = &bits.inputs(number)[..bits.dims()];
            let stored = |half: usize, k: usize| scale * f32::from(table[half * entries + k]);
            let off = |k: usize| -> f32 {
                let halves = inputs.iter().enumerate();
                let offs = halves.filter_map(|(half, &input)| {
                    let w = values.get(input)?;
                    Some((w - stored(half, k)).powi(2))
                });
                offs.sum()
            };
            let (chosen, own) = (usize::from(chosen), off(usize::from(chosen)));
            if (0..entries).any(|other| off(other) < own) {
                for (half, &input) in inputs.iter().enumerate() {
                    if let Some(w) = values.get_mut(input) {
                        *w = stored(half, chosen);
                    }
                }
            }
        }
    }
}

/// A projection's indices, `[rows, indices of a row]`.
fn unpacked(weight: &PaletteWeight) -> std::sync::Arc<[u8]> {
    let (view, bits) = (weight.view(), weight.bits());
    let indices = palette::unpack(bits, weight.rows(), weight.cols(), view.indices());
    indices.expect("the sizes were checked").into()
}

/// What would be stored of a decoder whose palettes have learnt.
struct Modules {
    tensors: BTreeMap<String, PaletteTensors>,
    moved: f64,
}

fn modules(
    pool: &Pool,
    package: &Path,
    decoder: &Decoder,
    method: QatMethod,
) -> Result<Modules, CompressError> {
    let mut stored = Weights::open(package)?;
    let parameters: BTreeMap<String, Tensor> = decoder
        .parameters()
        .into_iter()
        .map(|parameter| (parameter.parts[0].0.clone(), parameter.tensor.clone()))
        .collect();
    let (mut tensors, mut moved, mut all) = (BTreeMap::new(), 0, 0);
    for layout in decoder.layouts() {
        for projection in &layout.projections {
            let (name, shape) = (&projection.name, (projection.rows, layout.inputs));
            let weight = stored.take_palettized(name, shape)?;
            let find = |end: &str| parameters[&format!("{name}.{end}")].clone();
            let before = unpacked(&weight);
            let from = match method {
                QatMethod::Tables => LearntFrom::Indices(before.clone()),
                _ => LearntFrom::Nearest(find(WEIGHT)),
            };
            let learnt = learnt(&weight, find(PALETTE), find(SCALES), from);
            let indices = learnt.indices(pool, layout.inputs);
            moved += indices
                .iter()
                .zip(&before[..])
                .filter(|(a, b)| a != b)
                .count();
            all += indices.len();
            let (entries, mut scales) = learnt.stored();
            scales.resize(shape.0.next_multiple_of(STRIP), half::f16::ZERO);
            let bits = weight.bits();
            let packed = palette::pack(bits, shape.0, shape.1, &indices);
            let indices = packed.map_err(|problem| CompressError::Layout {
                name: name.clone(),
                problem,
            })?;
            let palette = entries.into_iter().map(|entry| entry as i8).collect();
            tensors.insert(
                name.clone(),
                PaletteTensors {
                    bits,
                    indices,
                    palette,
                    scales,
                },
            );
        }
    }
    let moved = moved as f64 / all as f64;
    Ok(Modules { tensors, moved })
}

/// The model card of the package. No time goes into it: the same run leaves the same bytes.
fn card(plan: &Plan, state: &State, measured: &Measured, report: &QatReport) -> String {
    let learnt = match report.method {
        QatMethod::Tables => "entries and scales of its palettes, indices as they were",
        QatMethod::StraightThrough => "weights through their nearest entries, entries and scales",
        QatMethod::Dkm => "weights through a soft choice of entries, entries and scales",
    };
    let rows = card_rows(
        &plan.settings().train,
        &plan.optimizer(),
        state,
        measured,
        plan.loss_terms(),
    );
    format!(
        "---\npipeline_tag: text-generation\ntags: [russet, palettized]\n---\n\n# Palettized package\n\n\
         A package that was trained as it is served. What each tensor is stands under `quantization_config` in `config.json`; what it was made \
         of is the input `package` of `manifest.json`.\n\n| | |\n|---|---|\n| learnt | {learnt} |\n| numbers that learnt | {} |\n\
         | indices that are others now | {:.2} % |\n{rows}\nSettings, inputs and hashes stand in `manifest.json`, what it did to text held out \
         in `{QAT_REPORT}`.\n",
        report.parameters,
        100.0 * report.moved
    )
}
