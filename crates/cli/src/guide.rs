//! What a text must be, for the engine: a constraint of the command line over a model's vocabulary.

use std::path::Path;

use anyhow::{Context, Result};
use russet_engine::guide::{Constraint, Grammar};

use crate::app::Model;
use crate::args::GuideArgs;

/// The grammar of what the command line asks for, if it asks.
pub fn grammar(args: &GuideArgs, model: &Model) -> Result<Option<Grammar>> {
    let Some(constraint) = constraint(args)? else {
        return Ok(None);
    };
    let vocabulary = russet_serve::vocabulary(&model.tokenizer, &model.eos())?;
    Ok(Some(Grammar::compile(&vocabulary, &constraint)?))
}

fn constraint(args: &GuideArgs) -> Result<Option<Constraint>> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))
    };
    Ok(if let Some(path) = &args.json_schema {
        Some(Constraint::JsonSchema(read(path)?))
    } else if args.json_object {
        Some(Constraint::JsonObject)
    } else if let Some(text) = &args.regex {
        Some(Constraint::Regex(text.clone()))
    } else if let Some(path) = &args.grammar {
        Some(Constraint::Grammar(read(path)?))
    } else if !args.choice.is_empty() {
        Some(Constraint::Choice(args.choice.clone()))
    } else {
        None
    })
}
