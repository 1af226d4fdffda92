//! What a model answered, joined with the prompts by their text.

use std::path::{Path, PathBuf};

use russet_tokenizer::read_lines;
use serde::{Deserialize, Serialize};

use super::Prompts;
use super::python::is_blank;
use crate::{Error, Result};

/// A row of a file of responses; other keys are passed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// The prompt, character for character.
    pub prompt: String,
    /// What was answered.
    pub response: String,
}

/// The responses to a set of prompts.
#[derive(Clone, Debug, Default)]
pub struct Responses {
    /// Of each prompt in order, where there is one.
    pub(super) of_prompts: Vec<Option<String>>,
    empty: Vec<u64>,
}

impl Responses {
    /// Reads JSON Lines of `prompt` and `response`, plain, `.zst` or `.gz`.
    ///
    /// # Errors
    ///
    /// [`Error::File`] when the file cannot be read; [`Error::Row`] when a row is malformed or lacks a key, when its prompt is not in
    /// the set, or has a response already; [`Error::NoResponses`] when there is none at all.
    pub fn read(path: &Path, prompts: &Prompts) -> Result<Responses> {
        let mut of_prompts = vec![None; prompts.all().len()];
        let mut lines: Vec<u64> = vec![0; of_prompts.len()];
        let mut empty = Vec::new();
        for line in read_lines(path)? {
            let (line, bytes) = line?;
            let row = |problem| Error::Row {
                path: PathBuf::from(path),
                line,
                problem,
            };
            let Response { prompt, response } = serde_json::from_slice(&bytes).map_err(|error| {
                row(format!(
                    "it is not a JSON object with strings `prompt` and `response`: {error}; write one object a line"
                ))
            })?;
            let Some(place) = prompts.place(&prompt) else {
                return Err(row(format!(
                    "its prompt is none of the {}, {:?}; give each prompt as it stands in the set, to the last space",
                    of_prompts.len(),
                    beginning(&prompt)
                )));
            };
            if lines[place] > 0 {
                return Err(row(format!(
                    "its prompt is that of line {} too, {:?}; keep one response a prompt",
                    lines[place],
                    beginning(&prompt)
                )));
            }
            lines[place] = line;
            if is_blank(&response) {
                empty.push(line);
            }
            of_prompts[place] = Some(response);
        }
        if of_prompts.iter().all(Option::is_none) {
            return Err(Error::NoResponses {
                path: PathBuf::from(path),
            });
        }
        Ok(Responses { of_prompts, empty })
    }

    /// The response to the prompt of this place, where there is one.
    pub fn of(&self, place: usize) -> Option<&str> {
        self.of_prompts.get(place)?.as_deref()
    }

    /// Lines of responses that are empty or blank; they follow nothing.
    pub fn empty_lines(&self) -> &[u64] {
        &self.empty
    }

    /// Keys of prompts that have no response; they do not count.
    pub fn missing(&self, prompts: &Prompts) -> Vec<u64> {
        let pairs = prompts.all().iter().zip(&self.of_prompts);
        pairs
            .filter(|(_, response)| response.is_none())
            .map(|(prompt, _)| prompt.key)
            .collect()
    }
}

/// Enough of a prompt to know it by.
fn beginning(prompt: &str) -> String {
    let mut beginning: String = prompt.chars().take(60).collect();
    if beginning.len() < prompt.len() {
        beginning.push('…');
    }
    beginning
}
