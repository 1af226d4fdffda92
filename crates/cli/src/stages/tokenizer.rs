//! `stage = "tokenizer"`: texts to a tokenizer.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::Result;
use russet_artifact::{Inputs, Kind, Recipe};
use russet_tokenizer::{Progress, TrainConfig};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Made, Outlook, Place, Plan, StageKind, Work, look_at_texts, make};
use crate::app::{App, Usage};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenizerRecipe {
    stage: StageKind,
    tokenizer: TokenizerSettings,
    data: Texts,
}

/// `[tokenizer]`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenizerSettings {
    /// Entries of the vocabulary, special tokens and bytes included.
    #[serde(default = "vocab_size")]
    vocab_size: usize,
}

fn vocab_size() -> usize {
    49_152 // AFM on device
}

/// Files of text.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Texts {
    texts: Vec<PathBuf>,
}

pub(super) fn read(recipe: &Recipe) -> Result<TokenizerRecipe> {
    let recipe: TokenizerRecipe = recipe.parse()?;
    let check = recipe.config().check();
    check.map_err(|error| Usage(format!("`tokenizer.vocab_size`: {error}")))?;
    Ok(recipe)
}

impl TokenizerRecipe {
    fn config(&self) -> TrainConfig {
        TrainConfig {
            vocab_size: self.tokenizer.vocab_size,
            ..TrainConfig::default()
        }
    }
}

impl Work for TokenizerRecipe {
    fn settings(&self) -> Result<Value> {
        Ok(Recipe::resolved_json(self)?)
    }

    fn plan(&self, _: &str, _: &Place, outlook: &mut Outlook) -> Result<Plan> {
        let vocab = self.tokenizer.vocab_size;
        outlook.vocab = Some(vocab); // which a later recipe may be priced with where there are no texts
        let found = look_at_texts("data.texts", &self.data.texts)?;
        Ok(Plan {
            text: format!(
                "a vocabulary of {vocab} from {} bytes of files",
                found["file_bytes"]
            ),
            json: found.into(),
        })
    }

    fn run(&self, app: &mut App, name: &str, place: &Place) -> Result<Made> {
        let mut inputs = Inputs::new();
        for (index, path) in self.data.texts.iter().enumerate() {
            inputs = inputs.path(&format!("text-{index}"), path)?;
        }
        let what = (StageKind::Tokenizer, Kind::Tokenizer);
        let skipped = make(
            app,
            what,
            self.settings()?,
            inputs,
            &place.out,
            |app, draft, _| {
                app.progress.begin(name, None, "bytes");
                let (progress, interrupt) = (&mut *app.progress, &app.interrupt);
                let each = &mut |at| {
                    if let Progress::Read { bytes, .. } = at {
                        progress.update(bytes, &[]);
                    }
                    match interrupt.is_raised() {
                        true => ControlFlow::Break(()),
                        false => ControlFlow::Continue(()),
                    }
                };
                russet_tokenizer::train_stage(&self.config(), &self.data.texts, draft, each)?;
                Ok(())
            },
        )?;
        let vocab = self.tokenizer.vocab_size;
        Ok(Made {
            skipped,
            summary: format!("a vocabulary of {vocab}"),
            facts: json!({"vocab": vocab}),
        })
    }
}
