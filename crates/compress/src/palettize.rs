//! The stage: a dense checkpoint in, a palettized package out.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use russet_artifact::{Interrupt, Progress};
use russet_kernels::{Pool, int8};
use russet_model::checkpoint::Blocks;
use russet_model::package::{self, Package, PaletteTensors};
use russet_model::{Config, Decoder, ParameterKind, Weights, checkpoint};
use russet_tensor::Tensor;
use serde::Deserialize;

use crate::budget::Budget;
use crate::calibration::Calibration;
use crate::importance;
use crate::kept::{Folder, State};
use crate::model::Model;
use crate::qat::QAT_REPORT;
use crate::rotate::Turn;
use crate::settings::{LayerReport, Report, Rotation, Sensitivity, Settings, TableBits, Weighting};
use crate::stream;
use crate::table::{self, Table};
use crate::watch::Watch;
use crate::{CompressError, card, refine, sensitivity};

/// Files that go from the checkpoint into the package as they are, where they exist.
const COPIED: [&str; 12] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "LICENSE",
    "NOTICE",
];

/// The file of a package that holds the [`Report`], without its seconds.
pub const REPORT: &str = "palettize.json";

/// The file of a package that shows what other sizes would have cost.
const CURVE: &str = "trade-off.svg";

/// A palettized decoder in memory, in the form in which a package stores it.
pub struct Compressed {
    pub(crate) config: Config,
    pub(crate) tables: BTreeMap<String, int8::Quantized>,
    pub(crate) modules: BTreeMap<String, PaletteTensors>,
    pub(crate) norms: BTreeMap<String, Tensor>,
}

/// Palettizes the dense checkpoint in the folder `checkpoint` and writes the package, with the checkpoint's
/// tokenizer, chat template and generation settings, a model card, [`REPORT`] and a plot of the trade-off, into the folder `draft`. `documents` are token ids of calibration
/// text, encoded by the checkpoint's tokenizer. The result is the same on any number of threads.
///
/// With predicted sensitivities one block of the checkpoint is in memory at a time, and what is done lies in `state`, from where the
/// same call goes on after the process has ended in whatever way; the folder is the caller's to remove once the package is in its place. Measured
/// sensitivities run the whole decoder, and what was measured of each projection is kept.
///
/// # Errors
/// When the checkpoint is missing, damaged or palettized already, the settings ask for what cannot be, the text has no
/// token to predict, the disk refuses, or `interrupt` is raised.
pub fn palettize<D: AsRef<[u32]>>(
    pool: &Arc<Pool>,
    settings: &Settings,
    checkpoint: &Path,
    documents: &[D],
    draft: &Path,
    state: State,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<Report, CompressError> {
    settings.validate()?;
    let started = Instant::now();
    let mut watch = Watch::new(progress, interrupt);
    let told = |calibration: &Calibration, watch: &mut Watch| {
        let (found, asked) = (calibration.tokens(), settings.calibration_tokens);
        if 2 * found < asked {
            watch.say(&format!(
                "the calibration text has {found} tokens of the {asked} that `calibration_tokens` asks for; what is chosen by so few may serve other text badly"
            ));
        }
    };
    let mut report = match settings.sensitivity {
        Sensitivity::Predicted => {
            refuse_package(checkpoint)?;
            let blocks = Blocks::open(checkpoint)?;
            // Before anything is read.
            Budget::new(settings, blocks.config())?;
            let calibration = settings.calibrate(documents, blocks.config())?;
            told(&calibration, &mut watch);
            stream::run(
                pool,
                settings,
                &blocks,
                &calibration,
                draft,
                &state,
                &mut watch,
            )?
        }
        Sensitivity::Measured => {
            let decoder = checkpoint::open(checkpoint)?;
            let calibration = settings.calibrate(documents, decoder.config())?;
            told(&calibration, &mut watch);
            let folder = Folder::open(&state)?;
            let (compressed, report) =
                run(pool, settings, decoder, &calibration, &folder, &mut watch)?;
            compressed.write(draft)?;
            report
        }
    };
    copy_companions(checkpoint, draft)?;
    let package = package::load(draft)?;
    let calibration = settings.calibrate(documents, package.config())?;
    report.loss_after = watch.part(
        "checking the package",
        calibration.tokens(),
        "tokens",
        |watch| calibration.loss(pool, &package, &mut |tokens| watch.step(tokens, &[])),
    )?;
    let stored = serde_json::to_value(&report).expect("a report has a JSON form");
    for (name, text) in [
        (REPORT, format!("{stored:#}\n")),
        ("README.md", card::model_card(settings, &report)),
        (CURVE, card::curve(&report)),
    ] {
        let path = draft.join(name);
        std::fs::write(&path, text).map_err(|problem| CompressError::File { path, problem })?;
    }
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// What was folded into the weights of a package before they were palettized, as its [`REPORT`] says, or [`QAT_REPORT`]; nothing where there is
/// neither. `else_write` is the setting that need not know, where there is one.
pub(crate) fn rotation_of(
    package: &Path,
    else_write: Option<&str>,
) -> Result<Rotation, CompressError> {
    #[derive(Deserialize)]
    struct Told {
        #[serde(default)]
        rotation: Rotation,
    }
    for report in [REPORT, QAT_REPORT] {
        let path = package.join(report);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(problem) if problem.kind() == ErrorKind::NotFound => continue,
            Err(problem) => return Err(CompressError::File { path, problem }),
        };
        let told: Told = serde_json::from_slice(&text).map_err(|problem| {
            let or = else_write.map_or(String::new(), |setting| format!(", or write {setting}"));
            CompressError::Checkpoint(format!(
                "{} does not say how the package's weights were rotated ({problem}), so they cannot be compared with the checkpoint's; \
                 palettize it anew{or}",
                path.display()
            ))
        })?;
        return Ok(told.rotation);
    }
    Ok(Rotation::None)
}

/// Copies what goes along with weights as it is.
pub(crate) fn copy_companions(from: &Path, to: &Path) -> Result<(), CompressError> {
    for name in COPIED {
        let path = from.join(name);
        if path.exists() {
            std::fs::copy(&path, to.join(name))
                .map_err(|problem| CompressError::File { path, problem })?;
        }
    }
    Ok(())
}

/// A package has no dense weights to begin with.
fn refuse_package(folder: &Path) -> Result<(), CompressError> {
    match Weights::open(folder)?.are_palettized() {
        true => Err(CompressError::Checkpoint(format!(
            "{} is palettized already; give the dense checkpoint that the package was made of",
            folder.display()
        ))),
        false => Ok(()),
    }
}

impl Settings {
    /// Whether a decoder of this shape can be palettized as asked, before there is one.
    ///
    /// # Errors
    /// When a projection has a size that the format does not offer, or the target cannot be met.
    pub fn check(&self, config: &Config) -> Result<(), CompressError> {
        self.validate()?;
        // The default is for models of any context, and is cut to a shorter one; what was asked for is not.
        if self.sequence > config.context && self.sequence != Settings::default().sequence {
            return Err(CompressError::Setting {
                key: "sequence",
                value: self.sequence.to_string(),
                problem: format!(
                    "the model sees {} tokens at a time: write at most that, best what it was trained at",
                    config.context
                ),
            });
        }
        Budget::new(self, config).map(drop)
    }

    fn calibrate<D: AsRef<[u32]>>(
        &self,
        documents: &[D],
        config: &Config,
    ) -> Result<Calibration, CompressError> {
        Calibration::new(
            documents,
            self.sequence.min(config.context),
            self.calibration_tokens,
            config.vocab,
        )
    }
}

impl Compressed {
    /// Writes `config.json`, `generation_config.json` and the weights. Returns the bytes of the tensors.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(self, folder: &Path) -> Result<usize, CompressError> {
        let norms = self
            .norms
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.data()))
            .collect();
        let package = Package {
            config: &self.config,
            tables: self.tables,
            modules: self.modules,
            norms,
        };
        Ok(package::write(&package, folder)?)
    }

    /// Bytes of all tensors.
    fn bytes(&self) -> u64 {
        let tables = self
            .tables
            .values()
            .map(|table| table.data.len() + 2 * table.scales.len())
            .sum::<usize>();
        let modules = self
            .modules
            .values()
            .map(PaletteTensors::bytes)
            .sum::<usize>();
        let norms = self
            .norms
            .values()
            .map(|norm| norm.bytes().len())
            .sum::<usize>();
        (tables + modules + norms) as u64
    }
}

/// All but the files; the report still lacks `loss_after` and `seconds`.
pub(crate) fn run(
    pool: &Arc<Pool>,
    settings: &Settings,
    decoder: Decoder,
    calibration: &Calibration,
    kept: &Folder,
    watch: &mut Watch,
) -> Result<(Compressed, Report), CompressError> {
    let decoder = match Turn::new(settings.rotation, decoder.config()) {
        None => decoder,
        Some(turn) => turn.decoder(pool, decoder)?,
    };
    let mut model = Model::new(decoder)?;
    let budget = Budget::new(settings, model.decoder.config())?;
    let fisher =
        settings.weighting == Weighting::Fisher || settings.sensitivity == Sensitivity::Predicted;
    let loss_before = watch.part(
        "reading calibration text",
        calibration.tokens(),
        "tokens",
        |watch| model.gather(pool, calibration, fisher, watch),
    )?;
    from_gathered(
        pool,
        settings,
        &model,
        &budget,
        calibration,
        loss_before,
        kept,
        watch,
    )
}

/// Chooses bits and makes the matrices of a model whose moments are known.
pub(crate) fn from_gathered(
    pool: &Arc<Pool>,
    settings: &Settings,
    model: &Model,
    budget: &Budget,
    calibration: &Calibration,
    loss_before: f64,
    kept: &Folder,
    watch: &mut Watch,
) -> Result<(Compressed, Report), CompressError> {
    let weights = importance::Weights::new(model, settings.weighting);
    let fitted = settings.fitted();
    let rises = match settings.sensitivity {
        Sensitivity::Predicted => sensitivity::predicted(pool, model, &weights, &fitted, watch)?,
        Sensitivity::Measured => {
            sensitivity::measured(pool, model, &weights, calibration, &fitted, kept, watch)?
        }
    };
    let (bits, curve) = budget.choose(&rises);
    let fits = refine::matrices(pool, settings, model, &weights, &bits, calibration, watch)?;

    let mut modules = BTreeMap::new();
    let mut layers = Vec::new();
    for (((projection, fit), bits), rises) in
        model.projections.iter().zip(fits).zip(bits).zip(rises)
    {
        let name = projection.name.clone();
        let error = fit.relative_error();
        layers.push(LayerReport::new(name.clone(), bits, error, &fitted, &rises));
        let packed = fit.matrix.pack().map_err(|problem| CompressError::Layout {
            name: name.clone(),
            problem,
        })?;
        modules.insert(name, packed);
    }
    let bytes: usize = modules.values().map(PaletteTensors::bytes).sum();
    let (tables, palettized, norms) =
        tables_and_norms(pool, settings.table_bits, &model.decoder, watch)?;
    modules.extend(palettized);
    let compressed = Compressed {
        config: model.decoder.config().clone(),
        tables,
        modules,
        norms,
    };
    let report = Report {
        bpw: 8.0 * bytes as f64 / model.weights() as f64,
        bits_per_parameter: 8.0 * compressed.bytes() as f64 / compressed.config.parameters() as f64,
        bytes: compressed.bytes(),
        rotation: settings.rotation,
        seconds: 0.0,
        weights: model.weights(),
        calibration_tokens: calibration.tokens() as u64,
        loss_before,
        loss_after: f64::NAN,
        layers,
        curve,
    };
    Ok((compressed, report))
}

type TablesAndNorms = (
    BTreeMap<String, int8::Quantized>,
    BTreeMap<String, PaletteTensors>,
    BTreeMap<String, Tensor>,
);

/// What is no projection: tables in eight bits, tables in four, norms as they are.
fn tables_and_norms(
    pool: &Pool,
    bits: TableBits,
    decoder: &Decoder,
    watch: &mut Watch,
) -> Result<TablesAndNorms, CompressError> {
    let (mut tables, mut palettized) = (BTreeMap::new(), BTreeMap::new());
    let mut norms = BTreeMap::new();
    for parameter in decoder.parameters() {
        let name = &parameter.parts[0].0;
        match parameter.kind {
            ParameterKind::Norm => {
                norms.insert(name.clone(), parameter.tensor.clone());
            }
            ParameterKind::Embedding => {
                let name = name.strip_suffix(".weight").unwrap_or(name);
                let (shape, weight) = (parameter.tensor.dims2(), parameter.tensor.data());
                let table = table::make(pool, bits, name, shape, weight, &mut |_| watch.look())?;
                match table {
                    Table::Int8(table) => drop(tables.insert(name.to_owned(), table)),
                    Table::Palette(table) => drop(palettized.insert(name.to_owned(), table)),
                }
            }
            ParameterKind::Matrix | ParameterKind::Adapter { .. } => {}
        }
    }
    Ok((tables, palettized, norms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Width;
    use crate::matrix::stored_bytes;
    use russet_artifact::NoProgress;
    use russet_kernels::palette::Bits;
    use russet_model::{Attention, Config, projections};

    /// The way for a whole decoder in memory is the oracle of the way block by block.
    #[test]
    fn block_by_block_is_the_whole_decoder_to_the_byte() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/models");
        let pool = Arc::new(Pool::new(2).unwrap());
        use Bits::{Four, Three, Two, TwoPairs};
        // Of six layers the first two lend their keys and values to the last four, in turns.
        let shared = tempfile::tempdir().unwrap();
        let start = Config::open(&golden.join("qwen3-sliding")).unwrap();
        let config = Config {
            layers: 6,
            attention: Attention::new(5, [true, false].repeat(3), 4),
            ..start
        };
        checkpoint::save(&Decoder::random(&config, 1), shared.path()).unwrap();
        let shared = shared.path().to_str().unwrap();
        let (plain, turned) = (Rotation::None, Rotation::Hadamard);
        let (eight, four) = (TableBits::Eight, TableBits::Four);
        let tied = "qwen3-gqa-tied";
        let all = &[Two, TwoPairs, Three, Four];
        let plainly = &[Two, Four];
        for (name, weighting, error_feedback, choice, rotation, table_bits) in [
            (tied, Weighting::Fisher, true, &plainly[..], plain, eight),
            (tied, Weighting::Fisher, true, plainly, turned, four),
            (
                "llama-mha-untied",
                Weighting::Activation,
                true,
                all,
                plain,
                four,
            ),
            (
                "llama-mha-untied",
                Weighting::None,
                false,
                all,
                turned,
                eight,
            ),
            (
                "qwen3-bf16",
                Weighting::None,
                false,
                &[Two, Three],
                plain,
                four,
            ),
            (
                "qwen3-sliding",
                Weighting::Fisher,
                false,
                plainly,
                plain,
                eight,
            ),
            (shared, Weighting::Fisher, true, plainly, plain, eight),
            (shared, Weighting::Fisher, true, plainly, turned, eight),
        ] {
            let from = golden.join(name); // or `name`, where it is a whole path
            let blocks = Blocks::open(&from).unwrap();
            let token = |i: u64| {
                russet_kernels::random::below(3, i, 0, blocks.config().vocab as u64) as u32
            };
            let documents: Vec<Vec<u32>> = (0..70)
                .map(|d| (0..33).map(|i| token(99 * d + i)).collect())
                .collect();
            let bpw = |bits: Bits| {
                let (config, mut bytes) = (blocks.config(), 0);
                for (_, rows, cols) in (0..config.layers).flat_map(|l| projections(config, l)) {
                    bytes += stored_bytes(bits, rows, cols).unwrap();
                }
                8.0 * bytes as f64 / config.projection_parameters() as f64
            };
            let settings = Settings {
                // Well between the fewest bits and the most, whichever they are.
                target_bpw: 0.6 * bpw(Two) + 0.4 * bpw(Three),
                bits: choice.iter().copied().map(Width).collect(),
                rotation,
                table_bits,
                weighting,
                error_feedback,
                ..Settings::default()
            };
            let calibration = settings.calibrate(&documents, blocks.config()).unwrap();
            assert!(calibration.batches.len() > 1, "{name}: several batches");
            let (interrupt, mut progress) = (Interrupt::new(), NoProgress);
            let mut watch = Watch::new(&mut progress, &interrupt);
            let (whole, by_block) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let decoder = checkpoint::load(&from).unwrap();
            let place = tempfile::tempdir().unwrap();
            let state = State {
                folder: place.path(),
                key: "one",
            };
            let kept = Folder::open(&state).unwrap();
            let (compressed, want) =
                run(&pool, &settings, decoder, &calibration, &kept, &mut watch).unwrap();
            compressed.write(whole.path()).unwrap();
            drop(kept); // the place is held by one at a time
            let got = stream::run(
                &pool,
                &settings,
                &blocks,
                &calibration,
                by_block.path(),
                &state,
                &mut watch,
            )
            .unwrap();
            let json = |report: &Report| serde_json::to_string(report).unwrap();
            assert_eq!(json(&got), json(&want), "{name}");
            for file in ["config.json", "model.safetensors"] {
                let read = |folder: &Path| std::fs::read(folder.join(file)).unwrap();
                assert!(
                    read(whole.path()) == read(by_block.path()),
                    "{name}: {file} differs"
                );
            }
        }
    }
}
