//! The checkpoint that a run leaves: everything that a folder of the Hugging Face hub has. No time goes into it, nor a name:
//! the same run leaves the same bytes.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use russet_artifact::Draft;
use russet_model::{Config, checkpoint};

use crate::named::Named;
use crate::plan::Plan;
use crate::state::State;
use crate::validation::ValidationResult;
use crate::{Result, TrainError};

/// Files of a tokenizer's folder that go with the model.
pub(crate) const TOKENIZER_FILES: [&str; 3] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];

/// A checkpoint to be written, whatever becomes of the decoder.
pub(crate) struct Checkpoint {
    config: Config,
    weights: Vec<Named>,
    tokenizer: PathBuf,
    card: String,
}

impl Checkpoint {
    /// The weights that a state's decoder has now, and what there is to say of them. On a mesh all ranks ask, and the first
    /// gets it.
    pub(crate) fn of(
        plan: &Plan,
        state: &State,
        measured: Option<ValidationResult>,
    ) -> Option<Checkpoint> {
        let weights = Named::merged(&state.decoder)?;
        Some(Checkpoint {
            config: state.decoder.config().clone(),
            weights,
            tokenizer: plan.tokenizer().to_owned(),
            card: model_card(plan, state, measured),
        })
    }

    /// Fills a draft.
    pub(crate) fn write(&self, draft: &Draft) -> Result<()> {
        let weights = Named::outputs(&self.weights);
        checkpoint::save_tensors(&self.config, &weights, draft.path())?;
        for name in TOKENIZER_FILES {
            let from = self.tokenizer.join(name);
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
        draft.write("README.md", self.card.as_bytes())?;
        Ok(())
    }
}

fn model_card(plan: &Plan, state: &State, measured: Option<ValidationResult>) -> String {
    let (config, train) = (plan.config(), &plan.settings().train);
    let optimizer = plan.optimizer();
    let mut card = String::from(
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [russet]\n---\n\n# Base model\n\n\
         A decoder trained with Russet to predict the next token. It continues text; it has not been taught to follow \
         instructions.\n\n| | |\n|---|---|\n",
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
    let begins = match plan.checkpoint() {
        Some(_) => "the input `checkpoint` of `manifest.json`",
        None => "random weights",
    };
    row("begins with", begins.to_owned());
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
    let terms = match (plan.settings().distill.is_some(), train.z_loss > 0.0) {
        (true, true) => ", the teacher's and the z-loss's terms in it",
        (true, false) => ", the teacher's term in it",
        (false, true) => ", the z-loss in it",
        (false, false) => "",
    };
    let loss = state.tally.last_loss;
    row(
        "training loss",
        format!("{loss:.4} nats per token, last step{terms}"),
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
