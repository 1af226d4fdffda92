//! What a text must be, for the engine: a constraint of the command line over a model's vocabulary.

use std::path::Path;

use anyhow::{Context, Result};
use russet_engine::guide::{Constraint, Grammar, Vocabulary};
use russet_tokenizer::Tokenizer;

use crate::app::Model;
use crate::args::GuideArgs;

/// The grammar of what the command line asks for, if it asks.
pub fn grammar(args: &GuideArgs, model: &Model) -> Result<Option<Grammar>> {
    let Some(constraint) = constraint(args)? else {
        return Ok(None);
    };
    let vocabulary = vocabulary(&model.tokenizer, &model.eos())?;
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

/// The tokens of a tokenizer, as guides need them.
pub fn vocabulary(tokenizer: &Tokenizer, ends: &[u32]) -> Result<Vocabulary> {
    let ids = 0..tokenizer.vocab_size() as u32;
    let bytes = |id| tokenizer.token_bytes(id).to_vec();
    let tokens = ids.clone().map(bytes).collect();
    let special: Vec<u32> = ids.filter(|&id| tokenizer.is_special(id)).collect();
    let known = |&&end: &&u32| (end as usize) < tokenizer.vocab_size();
    let ends: Vec<u32> = ends.iter().filter(known).copied().collect();
    Ok(Vocabulary::new(tokens, &special, &ends)?)
}
