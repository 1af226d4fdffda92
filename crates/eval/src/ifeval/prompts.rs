//! Prompts with their instructions: the benchmark's, or others in its form.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use russet_tokenizer::read_lines;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Instruction, data};
use crate::{Error, Result};

/// A prompt and what a response to it must follow.
#[derive(Debug)]
pub struct Prompt {
    /// Its number in the set.
    pub key: u64,
    /// What the model is told.
    pub prompt: String,
    /// What is checked.
    pub instructions: Vec<Instruction>,
}

/// A set of prompts.
#[derive(Debug)]
pub struct Prompts {
    all: Vec<Prompt>,
    texts: HashSet<String>, // of prompts, to find one that comes twice
    keys: HashSet<u64>,     // likewise
}

#[derive(Deserialize)]
struct Row {
    key: u64,
    prompt: String,
    instruction_id_list: Vec<String>,
    kwargs: Vec<Map<String, Value>>,
}

impl Prompts {
    /// The 541 prompts of IFEval.
    pub fn embedded() -> Prompts {
        let mut prompts = Prompts::empty();
        for line in data::prompts().lines() {
            let pushed = prompts.push(line.as_bytes());
            pushed
                .unwrap_or_else(|problem| panic!("the embedded prompts are whole, but {problem}"));
        }
        prompts
    }

    /// Other prompts: JSON Lines of `key`, `prompt`, `instruction_id_list` and `kwargs`, plain, `.zst` or `.gz`.
    ///
    /// # Errors
    ///
    /// [`Error::File`] when the file cannot be read, [`Error::Row`] when a row is not such a prompt, when its prompt or key is one of
    /// an earlier row, or when an instruction cannot be checked.
    pub fn read(path: &Path) -> Result<Prompts> {
        let mut prompts = Prompts::empty();
        for line in read_lines(path)? {
            let (line, bytes) = line?;
            prompts.push(&bytes).map_err(|problem| Error::Row {
                path: PathBuf::from(path),
                line,
                problem,
            })?;
        }
        Ok(prompts)
    }

    /// All of them, in the file's order.
    pub fn all(&self) -> &[Prompt] {
        &self.all
    }

    fn empty() -> Prompts {
        Prompts {
            all: Vec::new(),
            texts: HashSet::new(),
            keys: HashSet::new(),
        }
    }

    fn push(&mut self, line: &[u8]) -> Result<(), String> {
        let row: Row = serde_json::from_slice(line).map_err(|error| {
            format!("it is not a JSON object with `key`, `prompt`, `instruction_id_list` and `kwargs`: {error}")
        })?;
        let Row {
            key,
            prompt,
            instruction_id_list: ids,
            kwargs,
        } = row;
        if ids.len() != kwargs.len() {
            return Err(format!(
                "it has {} instructions and {} `kwargs`; give one object an instruction, {{}} where it takes none",
                ids.len(),
                kwargs.len()
            ));
        }
        if ids.is_empty() {
            return Err(
                "it has no instructions, so there is nothing to follow; leave the row out".into(),
            );
        }
        if !self.keys.insert(key) {
            return Err(format!(
                "its key {key} is that of an earlier row; number the prompts apart"
            ));
        }
        if !self.texts.insert(prompt.clone()) {
            return Err("its prompt is that of an earlier row; responses are joined by prompt, so remove one".into());
        }
        let pairs = ids.iter().zip(&kwargs);
        let instructions = pairs.map(|(id, kwargs)| Instruction::new(id, kwargs));
        let instructions = instructions
            .collect::<Result<_>>()
            .map_err(|error| error.to_string())?;
        self.all.push(Prompt {
            key,
            prompt,
            instructions,
        });
        Ok(())
    }
}
