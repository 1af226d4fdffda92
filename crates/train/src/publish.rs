//! The artifact that a run leaves: everything that a folder of the Hugging Face hub has. No time goes into it, nor a name:
//! the same run leaves the same bytes.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use russet_artifact::Draft;
use russet_model::adapter::{About, Matrix, save_matrices};
use russet_model::{Config, Decoder, ParameterKind, checkpoint};
use russet_tensor::DType;

use crate::named::Named;
use crate::run::{BITS_PER_BYTE, Measured, VALIDATION_LOSS};
use crate::settings::{OptimizerSettings, TrainSettings};
use crate::state::State;
use crate::{Result, TrainError};

/// Files of a tokenizer's folder that go with the model.
pub(crate) const TOKENIZER_FILES: [&str; 3] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];

/// An artifact to be written, whatever becomes of the decoder.
pub(crate) struct Publication {
    weights: Vec<Named>,
    form: Form,
    /// What goes beside the weights.
    pub files: Vec<(String, Vec<u8>)>,
}

enum Form {
    Checkpoint { config: Config, tokenizer: PathBuf },
    Adapter(About),
    Files(WriteFiles),
}

/// Writes the files of a model into a folder.
pub type WriteFiles = Box<dyn Fn(&Path) -> Result<()> + Send + Sync>;

impl Publication {
    /// All weights that a decoder has now, and the tokenizer that goes with them. On a mesh all ranks ask, and the first gets it.
    pub(crate) fn checkpoint(decoder: &Decoder, tokenizer: &Path) -> Option<Publication> {
        Some(Publication {
            weights: Named::merged(decoder)?,
            form: Form::Checkpoint {
                config: decoder.config().clone(),
                tokenizer: tokenizer.to_owned(),
            },
            files: Vec::new(),
        })
    }

    /// The adapters that a decoder has now, of the base with that hash.
    pub(crate) fn adapter(decoder: &Decoder, base: Option<String>, dtype: DType) -> Publication {
        Publication {
            weights: Named::weights(decoder),
            form: Form::Adapter(About {
                name: None,
                base,
                dtype,
            }),
            files: Vec::new(),
        }
    }

    /// What somebody else writes.
    pub(crate) fn files(write: WriteFiles) -> Publication {
        Publication {
            weights: Vec::new(),
            form: Form::Files(write),
            files: Vec::new(),
        }
    }

    /// Fills a draft.
    pub(crate) fn write(&self, draft: &Draft) -> Result<()> {
        match &self.form {
            Form::Checkpoint { config, tokenizer } => {
                let weights = Named::outputs(&self.weights);
                checkpoint::save_tensors(config, &weights, draft.path())?;
                copy_tokenizer(tokenizer, &self.files, draft)?;
            }
            Form::Adapter(about) => {
                let matrices: Vec<Matrix> = self.weights.iter().flat_map(matrices).collect();
                save_matrices(&matrices, about, draft.path())?;
            }
            Form::Files(write) => write(draft.path())?,
        }
        for (name, bytes) in &self.files {
            draft.write(name, bytes)?;
        }
        Ok(())
    }
}

/// Copies what belongs to a tokenizer, but for files that the task brings itself.
fn copy_tokenizer(folder: &Path, own: &[(String, Vec<u8>)], draft: &Draft) -> Result<()> {
    let copied = |name: &&str| own.iter().all(|(own, _)| own != name);
    for name in TOKENIZER_FILES.into_iter().filter(copied) {
        let from = folder.join(name);
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
    Ok(())
}

/// Rows of a card's table that say how something was trained; `terms` is what the loss has besides, " with the teacher's term".
pub fn card_rows(
    train: &TrainSettings,
    optimizer: &OptimizerSettings,
    state: &State,
    measured: &Measured,
    terms: &str,
) -> String {
    let mut rows = String::new();
    let mut row = |name: &str, value: String| {
        writeln!(rows, "| {name} | {value} |").expect("a string takes what is written");
    };
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
            "{}, peak learning rate {}, weight decay {}",
            optimizer.name(),
            train.peak_lr,
            optimizer.weight_decay()
        ),
    );
    if train.ema > 0.0 {
        row(
            "weights",
            format!("running mean over steps, decay {}", train.ema),
        );
    }
    let loss = state.tally.last_loss;
    row(
        "training loss",
        format!("{loss:.4} nats per token{terms}, last step"),
    );
    let find = |name: &str| measured.iter().find(|one| one.0 == name).map(|one| one.1);
    if let Some(nats) = find(VALIDATION_LOSS) {
        let bits = find(BITS_PER_BYTE);
        let bits = bits.map_or(String::new(), |bits| format!(", {bits:.4} bits per byte"));
        row("validation loss", format!("{nats:.4} nats per token{bits}"));
    }
    rows
}

/// A parameter of an adapter, or of the reward head beside it, as it is written.
fn matrices(parameter: &Named) -> impl Iterator<Item = Matrix<'_>> {
    let scale = match parameter.cut.kind {
        ParameterKind::Adapter { scale } => scale,
        _ => 1.0, // all else but a head is frozen where adapters are trained
    };
    let parts = parameter.cut.parts.iter().zip(parameter.cut.blocks());
    parts.map(move |(part, block)| Matrix {
        name: &part.name,
        shape: [part.shape[0], part.shape[1]],
        scale,
        values: &parameter.values[block],
    })
}
