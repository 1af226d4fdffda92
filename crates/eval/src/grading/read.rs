//! A study out of files of responses, as `eval respond` and `eval summaries --keep` write them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::{Asks, Item, MOST_BYTES, MOST_MODELS, MOST_TASKS, Study};
use crate::rows::{Row, beginning, read_answers, read_rows};
use crate::summaries::read_summaries as read_texts;
use crate::{Error, Result, prompts};

/// A study, and sentences on what of the files is not in it.
#[derive(Clone, Debug)]
pub struct Read {
    /// The study.
    pub study: Study,
    /// What was left out, for a person.
    pub remarks: Vec<String>,
}

fn refused(problem: String) -> Error {
    Error::Study(problem)
}

fn bounded<'a>(row: &Row, key: &str, text: &'a str) -> Result<&'a str> {
    match text.len() <= MOST_BYTES {
        true => Ok(text),
        false => Err(row.wrong(format!(
            "`{key}` has {} bytes, but nobody reads more than {MOST_BYTES} on a page; shorten it",
            text.len()
        ))),
    }
}

/// Names that tell models apart, and enough of them.
fn check_models(models: &[(String, PathBuf)], least: usize) -> Result<()> {
    if !(least..=MOST_MODELS).contains(&models.len()) {
        return Err(refused(format!(
            "there are responses of {} models, but {least} to {MOST_MODELS} are graded together; give --responses FILE once for each",
            models.len()
        )));
    }
    for (place, (name, _)) in models.iter().enumerate() {
        if models[..place].iter().any(|(other, _)| other == name) {
            return Err(refused(format!(
                "two models are called {name:?}; tell them apart by --names"
            )));
        }
        if name.trim().is_empty() {
            return Err(refused(
                "a model's name is empty; give it one by --names".to_owned(),
            ));
        }
    }
    Ok(())
}

fn finished(
    asks: Asks,
    seed: u64,
    models: &[(String, PathBuf)],
    items: Vec<Item>,
    remarks: Vec<String>,
) -> Result<Read> {
    let study = Study {
        asks,
        seed,
        models: models.iter().map(|(name, _)| name.clone()).collect(),
        items,
    };
    let tasks = study.tasks().len();
    if tasks > MOST_TASKS {
        return Err(refused(format!(
            "there are {tasks} tasks to grade, but {MOST_TASKS} are the most; leave prompts or models out"
        )));
    }
    Ok(Read { study, remarks })
}

/// Prompts with responses of two models or more: rows of `prompt` and `response`, perhaps `category`, a file a model.
///
/// # Errors
/// When a file cannot be read, a row is malformed or answers a prompt again, a text is too long, or no prompt is answered by two.
pub fn read_pairs(asks: Asks, seed: u64, models: &[(String, PathBuf)]) -> Result<Read> {
    check_models(models, 2)?;
    let mut items: Vec<Item> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut empty = Vec::new();
    for (model, (_, path)) in models.iter().enumerate() {
        let mut blank = 0;
        for row in read_rows(path)? {
            let prompt = bounded(&row, "prompt", row.text("prompt")?)?;
            let response = bounded(&row, "response", row.text("response")?)?;
            let category = row.text_or_none("category")?.map(str::to_owned);
            blank += usize::from(response.trim().is_empty());
            let place = *places.entry(prompt.to_owned()).or_insert_with(|| {
                let known = prompts().iter().find(|other| other.prompt == prompt);
                items.push(Item {
                    name: prompt.to_owned(),
                    text: prompt.to_owned(),
                    category: known.map(|known| known.category.clone()),
                    responses: vec![None; models.len()],
                });
                items.len() - 1
            });
            let item = &mut items[place];
            item.category = item.category.take().or(category);
            if item.responses[model].replace(response.to_owned()).is_some() {
                return Err(row.wrong(format!(
                    "the prompt {:?} has a response on an earlier line already; keep one response a prompt",
                    beginning(prompt)
                )));
            }
        }
        if blank > 0 {
            empty.push(format!("{}: {blank} responses are empty", path.display()));
        }
    }
    let count = |item: &Item| item.responses.iter().flatten().count();
    let alone = items.iter().filter(|item| count(item) < 2).count();
    let part = items
        .iter()
        .filter(|item| (2..models.len()).contains(&count(item)))
        .count();
    let mut remarks = empty;
    if alone > 0 {
        remarks.push(format!(
            "{alone} prompts are answered by one model alone and are not asked"
        ));
    }
    if part > 0 {
        remarks.push(format!(
            "{part} prompts are not answered by all models; those that answered are compared"
        ));
    }
    items.retain(|item| count(item) > 1);
    if items.is_empty() {
        return Err(refused(
            "no prompt is answered by two models; give responses to the same prompts".to_owned(),
        ));
    }
    finished(asks, seed, models, items, remarks)
}

/// Summaries of texts: `task` as `eval summaries` reads it, and rows of `id` and `response`, a file a model.
///
/// # Errors
/// As [`read_pairs`]; when there are not five dimensions.
pub fn read_summaries(
    asks: Asks,
    seed: u64,
    task: &Path,
    models: &[(String, PathBuf)],
) -> Result<Read> {
    check_models(models, 1)?;
    if let Asks::Summaries { dimensions } = &asks {
        let mut names: Vec<&str> = dimensions.iter().map(|name| name.trim()).collect();
        names.sort_unstable();
        names.dedup();
        if dimensions.len() != 5 || names.len() != 5 || names.contains(&"") {
            return Err(refused(format!(
                "--dimensions {}: a summary is graded by five names, each once",
                dimensions.join(",")
            )));
        }
    }
    let texts = read_texts(task)?;
    let names: Vec<String> = texts.iter().map(|text| text.id.clone()).collect();
    let mut items: Vec<Item> = texts
        .into_iter()
        .map(|text| Item {
            name: text.id,
            text: text.source,
            category: text.use_case,
            responses: vec![None; models.len()],
        })
        .collect();
    let too_long = |path: &Path, id: &str| {
        refused(format!(
            "{}: the text of {id:?} has more than {MOST_BYTES} bytes, which nobody reads on a page; shorten it",
            path.display()
        ))
    };
    let mut remarks = Vec::new();
    for (model, (_, path)) in models.iter().enumerate() {
        let answers = read_answers(path, &names, &["id"], &["response"], false)?;
        let missing = answers.missing(&names).len();
        if missing > 0 {
            remarks.push(format!(
                "{}: {missing} of {} texts have no summary and are not asked",
                path.display(),
                names.len()
            ));
        }
        for (item, response) in items.iter_mut().zip(answers.firsts()) {
            if response.is_some_and(|text| text.len() > MOST_BYTES) {
                return Err(too_long(path, &item.name));
            }
            item.responses[model] = response.map(str::to_owned);
        }
    }
    items.retain(|item| item.responses.iter().any(Option::is_some));
    if let Some(item) = items.iter().find(|item| item.text.len() > MOST_BYTES) {
        return Err(too_long(task, &item.name));
    }
    finished(asks, seed, models, items, remarks)
}
