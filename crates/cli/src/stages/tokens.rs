//! `stage = "tokens"`: texts and a tokenizer to token shards.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::Result;
use russet_artifact::{Inputs, Kind, MANIFEST, Recipe};
use russet_tokenizer::{Progress, TokenShard, Tokenizer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Made, Outlook, Place, Plan, StageKind, Work, look_at_texts, make, ours_or_not};
use crate::app::{App, Usage};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TokensRecipe {
    stage: StageKind,
    inputs: TokensInputs,
    /// Each split's files, by its name.
    data: BTreeMap<String, Vec<PathBuf>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokensInputs {
    tokenizer: PathBuf,
}

pub(super) fn read(recipe: &Recipe) -> Result<TokensRecipe> {
    let recipe: TokensRecipe = recipe.parse()?;
    if recipe.data.is_empty() {
        let sentence =
            "`[data]` names no split; write SPLIT = [\"FILE\"], as in train = [\"tales.jsonl\"]";
        return Err(Usage(sentence.into()).into());
    }
    Ok(recipe)
}

impl Work for TokensRecipe {
    fn settings(&self) -> Result<Value> {
        Ok(Recipe::resolved_json(self)?)
    }

    fn plan(&self, name: &str, _: &Place, outlook: &mut Outlook) -> Result<Plan> {
        let known = self.data.keys().cloned().collect();
        outlook.splits.insert(name.to_owned(), known);
        let (mut splits, mut lines) = (Map::new(), Vec::new());
        for (split, paths) in &self.data {
            let found = look_at_texts(&format!("data.{split}"), paths)?;
            lines.push(format!(
                "{split} from {} bytes of files",
                found["file_bytes"]
            ));
            splits.insert(split.clone(), found.into());
        }
        Ok(Plan {
            json: json!({ "splits": splits }),
            text: lines.join("\n"),
        })
    }

    fn run(&self, app: &mut App, name: &str, place: &Place) -> Result<Made> {
        let folder = place.input(&self.inputs.tokenizer);
        let mut inputs = Inputs::new();
        if folder.join(MANIFEST).exists() {
            inputs = ours_or_not(inputs, "tokenizer", &folder)?;
        } else {
            // Of a model from elsewhere what says which tokens there are counts, and its weights do not.
            inputs = inputs.path("tokenizer", &folder.join("tokenizer.json"))?;
            for name in ["tokenizer_config", "generation_config", "config"] {
                let path = folder.join(format!("{name}.json"));
                if path.exists() {
                    inputs = inputs.path(name, &path)?;
                }
            }
        }
        for (split, paths) in &self.data {
            for (index, path) in paths.iter().enumerate() {
                inputs = inputs.path(&format!("{split}-{index}"), path)?;
            }
        }
        let splits: Vec<_> = self.data.clone().into_iter().collect();
        let what = (StageKind::Tokens, Kind::Tokens);
        let skipped = make(
            app,
            what,
            self.settings()?,
            inputs,
            &place.out,
            |app, draft, _| {
                let tokenizer = Tokenizer::open(&folder)?;
                app.progress.begin(name, None, "tokens");
                let (progress, interrupt) = (&mut *app.progress, &app.interrupt);
                let each = &mut |at| {
                    if let Progress::Encoded { tokens, .. } = at {
                        progress.update(tokens, &[]);
                    }
                    match interrupt.is_raised() {
                        true => ControlFlow::Break(()),
                        false => ControlFlow::Continue(()),
                    }
                };
                russet_tokenizer::encode_stage(&tokenizer, &splits, draft, each)?;
                Ok(())
            },
        )?;
        let (mut facts, mut said) = (Map::new(), Vec::new());
        for split in self.data.keys() {
            let shard = TokenShard::open(place.out.join(format!("{split}.tokens.safetensors")))?;
            let (tokens, documents) = (shard.tokens(), shard.documents());
            said.push(format!("{split} {tokens} tokens in {documents} documents"));
            facts.insert(
                split.clone(),
                json!({"tokens": tokens, "documents": documents}),
            );
        }
        Ok(Made {
            skipped,
            summary: said.join(", "),
            facts: json!({ "splits": facts }),
        })
    }
}
