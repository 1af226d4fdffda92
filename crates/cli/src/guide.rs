//! What a text must be, for the engine: a constraint of the command line over a model's vocabulary.

use std::path::Path;

use anyhow::Result;
use russet_engine::guide::{Constraint, Grammar};

use crate::app::{Model, Usage};
use crate::args::GuideArgs;

/// The grammar of what the command line asks for, if it asks.
pub fn grammar(args: &GuideArgs, model: &Model) -> Result<Option<Grammar>> {
    let Some(constraint) = constraint(args)? else {
        return Ok(None);
    };
    let vocabulary = russet_serve::vocabulary(&model.tokenizer, &model.eos())?;
    let compiled = Grammar::compile(&vocabulary, &constraint);
    // What the command line asks for is at fault, whether it stands there or in a file that it names.
    Ok(Some(compiled.map_err(|error| Usage(error.to_string()))?))
}

fn constraint(args: &GuideArgs) -> Result<Option<Constraint>> {
    let read = |option: &str, path: &Path| {
        std::fs::read_to_string(path).map_err(|error| {
            let shown = path.display();
            Usage(format!(
                "{option} {shown}: it cannot be read ({error}); name a text file in UTF-8"
            ))
        })
    };
    Ok(if let Some(path) = &args.json_schema {
        Some(Constraint::JsonSchema(read("--json-schema", path)?))
    } else if args.json_object {
        Some(Constraint::JsonObject)
    } else if let Some(text) = &args.regex {
        Some(Constraint::Regex(text.clone()))
    } else if let Some(path) = &args.grammar {
        Some(Constraint::Grammar(read("--grammar", path)?))
    } else if !args.choice.is_empty() {
        Some(Constraint::Choice(args.choice.clone()))
    } else {
        None
    })
}
