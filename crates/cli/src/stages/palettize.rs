//! `stage = "palettize"`: a checkpoint to a package.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use russet_artifact::{Inputs, Interrupt, Kind, Recipe};
use russet_compress::{CompressError, REPORT, State, TableBits};
use russet_tokenizer::{Tokenizer, read_texts};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Made, Outlook, Place, Plan, StageKind, Work, about, look_at_texts, make, read_json};
use crate::app::App;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PalettizeRecipe {
    stage: StageKind,
    inputs: PalettizeInputs,
    data: PalettizeData,
    #[serde(default)]
    palettize: russet_compress::Settings,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PalettizeInputs {
    checkpoint: PathBuf,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PalettizeData {
    /// Text that the weights' importance is measured on.
    calibration: Vec<PathBuf>,
}

pub(super) fn read(recipe: &Recipe) -> Result<PalettizeRecipe> {
    let recipe: PalettizeRecipe = recipe.parse()?;
    recipe.palettize.validate()?;
    Ok(recipe)
}

impl Work for PalettizeRecipe {
    fn settings(&self) -> Result<Value> {
        Ok(Recipe::resolved_json(self)?)
    }

    fn plan(&self, name: &str, place: &Place, outlook: &mut Outlook) -> Result<Plan> {
        look_at_texts("data.calibration", &self.data.calibration)?;
        let Some(config) = outlook.decoder(&self.inputs.checkpoint, place) else {
            let reason = format!(
                "{} is not there yet, so its size is not known",
                place.input(&self.inputs.checkpoint).display()
            );
            return Ok(Plan {
                json: json!({ "reason": reason }),
                text: format!("no estimate: {reason}"),
            });
        };
        self.palettize.check(&config)?;
        let price = self.palettize.price(&config);
        let package = self.palettize.packaged(&config)?;
        outlook.decoders.insert(name.to_owned(), package);
        let mut json = serde_json::to_value(price)?;
        let mut text = format!(
            "{:.2} M weights to {}{}, from at most {} tokens of text\nmemory   {:.0} MiB",
            price.weights as f64 / 1e6,
            match self.palettize.target_bytes {
                Some(bytes) => format!("a package of {bytes} bytes"),
                None => format!("{} bits each", self.palettize.target_bpw),
            },
            match self.palettize.table_bits {
                TableBits::Eight => "",
                TableBits::Four => ", with tables in 4 bits",
            },
            price.calibration_tokens,
            price.memory_bytes as f64 / (1u64 << 20) as f64,
        );
        if let Some(rate) = outlook.f32 {
            let seconds = price.seconds(rate.gflops);
            text += &format!("\ntime     {}", about(seconds));
            json["estimate"] = json!({ "seconds": seconds });
        }
        Ok(Plan { json, text })
    }

    fn run(&self, app: &mut App, _: &str, place: &Place) -> Result<Made> {
        let checkpoint = place.input(&self.inputs.checkpoint);
        if !checkpoint.is_dir() {
            bail!(
                "{}: there is no such checkpoint folder",
                checkpoint.display()
            );
        }
        let mut inputs =
            Inputs::new().artifact_or_path("checkpoint", &checkpoint, Kind::Checkpoint)?;
        for (index, path) in self.data.calibration.iter().enumerate() {
            inputs = inputs.path(&format!("calibration-{index}"), path)?;
        }
        let (what, settings) = ((StageKind::Palettize, Kind::Package), self.settings()?);
        let mut seconds = None;
        // Beside the package, as a training's: `NAME.state`.
        let mut name = place.out.file_name().unwrap_or_default().to_owned();
        name.push(".state");
        let folder = place.out.with_file_name(name);
        let skipped = make(
            app,
            what,
            settings,
            inputs,
            &place.out,
            |app, draft, stage| {
                let documents = self.calibration(&checkpoint, &app.interrupt)?;
                let report = russet_compress::palettize(
                    &app.pool,
                    &self.palettize,
                    &checkpoint,
                    &documents,
                    draft,
                    State {
                        folder: &folder,
                        key: &stage.key().to_string(),
                    },
                    &mut *app.progress,
                    &app.interrupt,
                )?;
                seconds = Some(report.seconds);
                Ok(())
            },
        )?;
        State::clear(&folder)?;
        let mut facts = read_json(&place.out.join(REPORT))?;
        let summary = format!(
            "{} bits a weight, {} bytes",
            short(&facts["bpw"]),
            facts["bytes"]
        );
        if let Some(seconds) = seconds {
            facts["seconds"] = seconds.into();
        }
        Ok(Made {
            skipped,
            summary,
            facts,
        })
    }
}

impl PalettizeRecipe {
    /// Token ids of a sample of the calibration text.
    fn calibration(&self, checkpoint: &Path, interrupt: &Interrupt) -> Result<Vec<Vec<u32>>> {
        let tokenizer = Tokenizer::open(checkpoint)?;
        let texts = self.data.calibration.iter().flat_map(|path| {
            let (texts, error) = match read_texts(path) {
                Ok(texts) => (Some(texts), None),
                Err(error) => (None, Some(Err(error))),
            };
            texts.into_iter().flatten().chain(error)
        });
        let texts = texts.map(|text| match interrupt.is_raised() {
            true => Err(anyhow::Error::from(CompressError::Interrupted)),
            false => Ok(text?),
        });
        let excerpts = self.palettize.excerpts(texts)?;
        // As in training, a document begins with the token that begins texts, and only its beginning does.
        let encode = |excerpt: &russet_compress::Excerpt| {
            Ok(tokenizer.encode(&excerpt.text, excerpt.begins)?)
        };
        excerpts.iter().map(encode).collect()
    }
}

fn short(bits: &Value) -> String {
    format!("{:.3}", bits.as_f64().unwrap_or(f64::NAN))
}
