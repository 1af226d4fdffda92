//! Multiple choice by likelihood: HellaSwag, ARC, MMLU, and rows of our own.
//!
//! ```text
//! acc         the share of questions whose right choice has the largest Σ ln p(token)
//! acc_norm    the same of Σ ln p(token) / bytes of the choice, so that short choices have no advantage
//! ```
//! Prompts are those of EleutherAI's evaluation harness without examples. Of equally likely choices the first is taken. Where a
//! context and a choice share a token, that token counts as the choice's. Whether a model could say the answer is not asked.

use std::path::Path;

use russet_artifact::Interrupt;
use russet_model::Decoder;
use russet_tensor::{Ctx, Segments, ops};
use serde::Serialize;
use serde_json::Value;

use crate::letter::letter;
use crate::rows::{Row, read_named, read_rows, short};
use crate::{Error, Result};

/// A question with its choices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChoiceQuestion {
    /// What tells it apart: its `id` where it has one, else its number from 0.
    pub id: String,
    /// What stands before each choice.
    pub context: String,
    /// What may follow, each with a space before it.
    pub choices: Vec<String>,
    /// What is counted as a choice's length: its own bytes, without what is put before it.
    pub bytes: Vec<usize>,
    /// The right one's place.
    pub answer: usize,
    /// Of what it is a part, where that is said: MMLU's subject.
    pub subject: Option<String>,
}

/// Shares from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChoiceScores {
    /// By likelihood.
    pub acc: f64,
    /// Its standard error; none of one question.
    pub acc_stderr: Option<f64>,
    /// By likelihood a byte; none where a response names a letter alone.
    pub acc_norm: Option<f64>,
    /// Its standard error.
    pub acc_norm_stderr: Option<f64>,
    /// The accuracy of a guess.
    pub chance: f64,
    /// Questions that count.
    pub n: usize,
}

/// Reads questions. A row is HellaSwag's (`endings`), ARC's (`answerKey`), MMLU's (`question`, `choices`, `answer`) or plain
/// (`context`, `choices`,
/// `answer`).
///
/// # Errors
/// When the file cannot be read or a row is not such a question.
pub fn read_questions(path: &Path) -> Result<Vec<ChoiceQuestion>> {
    let mut number = 0;
    read_named(
        path,
        ("questions", "id"),
        |question: &ChoiceQuestion| &question.id,
        |row| {
            let mut question = question(row)?;
            question.id = match row.get("id").or(row.get("ind")) {
                Some(_) => row.name(&["id", "ind"])?,
                None => number.to_string(),
            };
            number += 1;
            if question.choices.len() < 2 || question.answer >= question.choices.len() {
                return Err(row.wrong(format!(
                    "it has {} choices and the answer is number {} (from 0); give at least two, the answer among them",
                    question.choices.len(),
                    question.answer
                )));
            }
            Ok(question)
        },
    )
}

fn question(row: &Row) -> Result<ChoiceQuestion> {
    let made = |context: String, choices: Vec<String>, answer| ChoiceQuestion {
        id: String::new(),
        context,
        bytes: choices.iter().map(String::len).collect(),
        choices: choices.iter().map(|choice| format!(" {choice}")).collect(),
        answer,
        subject: None,
    };
    if row.get("endings").is_some() {
        let context = match row.get("ctx_a") {
            Some(_) => {
                let second = row.text_or_none("ctx_b")?.unwrap_or_default();
                format!("{} {}", row.text("ctx_a")?, capitalised(second))
            }
            None => row.text("ctx")?.to_owned(),
        };
        let context = match row.text_or_none("activity_label")? {
            Some(label) => format!("{label}: {context}"),
            None => context,
        };
        let endings = texts(row, "endings")?
            .iter()
            .map(|text| plain(text))
            .collect();
        return Ok(made(plain(&context), endings, place(row, "label", &[])?));
    }
    if row.get("answerKey").is_some() {
        let (stem, choices, labels) = arc(row)?;
        let context = format!("Question: {stem}\nAnswer:");
        return Ok(made(context, choices, place(row, "answerKey", &labels)?));
    }
    if row.get("context").is_some() {
        let choices = texts(row, "choices")?;
        return Ok(made(
            row.text("context")?.to_owned(),
            choices,
            place(row, "answer", &[])?,
        ));
    }
    let choices = texts(row, "choices")?;
    let letters: Vec<String> = ('A'..='Z').take(choices.len()).map(String::from).collect();
    let subject = row.text_or_none("subject")?;
    let mut context = subject.map_or(String::new(), |subject| {
        format!(
            "The following are multiple choice questions (with answers) about {}.\n\n",
            subject.replace('_', " ")
        )
    });
    context += row.text("question")?.trim();
    for (letter, choice) in letters.iter().zip(&choices) {
        context += &format!("\n{letter}. {choice}");
    }
    context += "\nAnswer:";
    let answer = place(row, "answer", &letters)?;
    Ok(ChoiceQuestion {
        subject: subject.map(str::to_owned),
        ..made(context, letters, answer)
    })
}

/// Question, choices and their labels, of ARC's own files or of its table at Hugging Face.
fn arc(row: &Row) -> Result<(String, Vec<String>, Vec<String>)> {
    let strings = |value: &Value| -> Option<Vec<String>> {
        let all = value.as_array()?.iter();
        all.map(|value| value.as_str().map(str::to_owned)).collect()
    };
    let read = || {
        let question = row.get("question")?;
        if let Some(stem) = question.as_str() {
            let choices = row.get("choices")?;
            return Some((
                stem.to_owned(),
                strings(&choices["text"])?,
                strings(&choices["label"])?,
            ));
        }
        let mut all = (Vec::new(), Vec::new());
        for choice in question["choices"].as_array()? {
            all.0.push(choice["text"].as_str()?.to_owned());
            all.1.push(choice["label"].as_str()?.to_owned());
        }
        Some((question["stem"].as_str()?.to_owned(), all.0, all.1))
    };
    read().ok_or_else(|| {
        row.wrong("it is no question of ARC: give `question` and `choices` with `text` and `label`, or `question` with `stem` and `choices`")
    })
}

fn texts(row: &Row, key: &str) -> Result<Vec<String>> {
    let value = row.need(key)?;
    let all = value.as_array().map(|all| {
        all.iter()
            .map(|text| text.as_str().map(str::to_owned))
            .collect::<Option<Vec<String>>>()
    });
    all.flatten().ok_or_else(|| {
        row.wrong(format!(
            "`{key}` is {}, but must be a list of strings",
            short(value)
        ))
    })
}

/// A place from 0, as a number, its digits, or one of the labels.
fn place(row: &Row, key: &str, labels: &[String]) -> Result<usize> {
    let value = row.need(key)?;
    let named = value.as_str().and_then(|text| {
        let label = labels.iter().position(|label| label == text);
        label.or_else(|| text.parse().ok())
    });
    let found = named.or_else(|| value.as_u64().map(|number| number as usize));
    found.ok_or_else(|| {
        row.wrong(format!(
            "`{key}` is {}, but must be a place from 0 or a choice's label",
            short(value)
        ))
    })
}

/// HellaSwag's texts without their marks, as the harness has it.
fn plain(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut plain = String::new();
    let mut rest = text.as_str();
    while let Some(open) = rest.find('[') {
        let Some(close) = rest[open..].find(']') else {
            break;
        };
        plain += &rest[..open];
        rest = &rest[open + close + 1..];
    }
    plain += rest;
    plain.replace("  ", " ")
}

/// Python's `capitalize`: the first letter large, all others small.
fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    let first: String = chars
        .next()
        .map(|c| c.to_uppercase().collect())
        .unwrap_or_default();
    first + &chars.as_str().to_lowercase()
}

/// A sequence of which only the last tokens are scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continuation {
    /// What stands before, with the beginning-of-text token; cut off at its start where all is longer than the model's context.
    pub before: Vec<u32>,
    /// What is scored, at least one token.
    pub scored: Vec<u32>,
}

/// Cuts the tokens of `context` and of `context` with a choice into what is given and what is scored.
pub fn continuation(bos: u32, context: &[u32], whole: &[u32]) -> Continuation {
    let shared = context
        .iter()
        .zip(whole)
        .take_while(|(a, b)| a == b)
        .count();
    let shared = shared.min(whole.len().saturating_sub(1));
    Continuation {
        before: [&[bos][..], &whole[..shared]].concat(),
        scored: whole[shared..].to_vec(),
    }
}

/// Σ ln p of each continuation's scored tokens, `[N]`; several share a forward pass of up to `pass_tokens` tokens.
///
/// # Errors
/// When a continuation's scored tokens are none or more than the context, a token is unknown, a sum is not finite, or `interrupt`
/// is raised.
pub fn log_likelihoods(
    decoder: &Decoder,
    ctx: &mut Ctx,
    continuations: &[Continuation],
    pass_tokens: usize,
    interrupt: &Interrupt,
) -> Result<Vec<f64>> {
    let (most, vocab) = (decoder.config().context, decoder.config().vocab);
    let mut sums = Vec::with_capacity(continuations.len());
    let mut waiting = continuations.iter().zip(0..).peekable();
    while waiting.peek().is_some() {
        if interrupt.is_raised() {
            return Err(Error::Interrupted);
        }
        let (mut tokens, mut lengths, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        let (mut targets, mut counts) = (Vec::new(), Vec::new());
        while let Some((next, place)) = waiting.peek() {
            let scored = next.scored.len();
            if scored == 0 || scored > most {
                return Err(Error::Setting {
                    setting: "tokens of a choice",
                    value: scored,
                    wanted: format!("from 1 to {most}, the context of the model"),
                });
            }
            // The last token is predicted and not read.
            let all = [&next.before[..], &next.scored[..scored - 1]].concat();
            let all = &all[all.len().saturating_sub(most)..];
            if !tokens.is_empty() && tokens.len() + all.len() > pass_tokens {
                break;
            }
            if let Some(&token) = all
                .iter()
                .chain(&next.scored)
                .find(|t| **t as usize >= vocab)
            {
                return Err(Error::UnknownToken {
                    place: format!("a token of continuation {place} (from 0)"),
                    token,
                    vocab,
                });
            }
            tokens.extend_from_slice(all);
            rows.extend(tokens.len() - scored..tokens.len());
            lengths.push(all.len());
            targets.extend_from_slice(&next.scored);
            counts.push(scored);
            waiting.next();
        }
        // [N, D], of which the rows that predict: [M, D]
        let hidden = decoder.forward(ctx, &tokens, &Segments::packed(&lengths), None);
        let hidden = ops::rows(ctx, &hidden, &rows);
        let losses = decoder.token_losses(ctx, &hidden, &targets);
        let mut start = 0;
        for count in counts {
            let sum: f64 = losses[start..start + count]
                .iter()
                .map(|loss| f64::from(*loss))
                .sum();
            if !sum.is_finite() {
                return Err(Error::NotFinite);
            }
            sums.push(-sum);
            start += count;
        }
    }
    Ok(sums)
}

/// What was recorded of a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Recorded {
    /// Σ ln p of each choice.
    LogProbs(Vec<f64>),
    /// A response.
    Chosen {
        /// The choice that it names, where it names one.
        place: Option<usize>,
        /// Its words.
        said: String,
    },
}

impl Recorded {
    /// Whether the right choice is the likeliest, and whether it is a byte.
    pub fn right(&self, question: &ChoiceQuestion) -> (bool, Option<bool>) {
        match self {
            Recorded::Chosen { place, .. } => (*place == Some(question.answer), None),
            Recorded::LogProbs(log_probs) => {
                let normed = log_probs.iter().zip(&question.bytes);
                let normed: Vec<f64> = normed
                    .map(|(p, bytes)| p / (*bytes).max(1) as f64)
                    .collect();
                let right = |values: &[f64]| first_highest(values) == question.answer;
                (right(log_probs), Some(right(&normed)))
            }
        }
    }
}

fn first_highest(values: &[f64]) -> usize {
    let mut best = 0;
    for (place, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = place;
        }
    }
    best
}

/// Reads recorded rows: `id`, and `log_probs` of each choice or a `response` that begins with one or comes to its letter.
///
/// # Errors
/// When a row is malformed, names no question or one that an earlier row has named, or there is none.
pub fn read_recorded(path: &Path, questions: &[ChoiceQuestion]) -> Result<Vec<Option<Recorded>>> {
    let mut recorded = vec![None; questions.len()];
    let ids = questions.iter().map(|question| question.id.as_str());
    let places: std::collections::HashMap<&str, usize> = ids.zip(0..).collect();
    for row in read_rows(path)? {
        let id = row.name(&["id"])?;
        let Some(&place) = places.get(id.as_str()) else {
            return Err(row.wrong(format!(
                "its id {id} is none of the {} questions'",
                questions.len()
            )));
        };
        if recorded[place].is_some() {
            return Err(row.wrong(format!("its id {id} is that of an earlier row; keep one")));
        }
        let question = &questions[place];
        recorded[place] = Some(match row.get("log_probs") {
            Some(value) => {
                let all: Option<Vec<f64>> = value
                    .as_array()
                    .and_then(|all| all.iter().map(Value::as_f64).collect());
                let all = all.filter(|all| all.len() == question.choices.len());
                Recorded::LogProbs(all.ok_or_else(|| {
                    row.wrong(format!(
                        "`log_probs` is {}, but must be {} numbers, one a choice",
                        short(value),
                        question.choices.len()
                    ))
                })?)
            }
            None => {
                let said = row.text("response")?;
                Recorded::Chosen {
                    place: chosen(said, question),
                    said: said.to_owned(),
                }
            }
        });
    }
    match recorded.iter().all(Option::is_none) {
        true => Err(Error::NoResponses {
            path: path.to_path_buf(),
        }),
        false => Ok(recorded),
    }
}

/// The longest choice that a response begins with, or the letter that it comes to.
fn chosen(response: &str, question: &ChoiceQuestion) -> Option<usize> {
    let response = response.trim();
    // "10" does not begin "100", nor "10.5".
    let ends = |rest: &str| {
        let mut rest = rest.chars();
        match rest.next() {
            Some('.' | ',') => !rest.next().is_some_and(|c| c.is_ascii_digit()),
            next => !next.is_some_and(char::is_alphanumeric),
        }
    };
    let begins = |(place, choice): (usize, &String)| {
        let choice = choice.trim();
        // A choice that is a letter is MMLU's, and looked for as one.
        let is_letter = choice.len() == 1 && choice.starts_with(|c: char| c.is_ascii_alphabetic());
        let rest = response.strip_prefix(choice).filter(|rest| ends(rest))?;
        let whole = choice.len() > 1 || rest.chars().all(|c| !c.is_alphanumeric());
        (!choice.is_empty() && !is_letter && whole).then_some((choice.len(), place))
    };
    let choices = question.choices.iter().enumerate();
    let longest = choices
        .filter_map(begins)
        .rev()
        .max_by_key(|(length, _)| *length);
    let last = ('A'..='Z').nth(question.choices.len() - 1).unwrap_or('Z');
    let by_letter = || letter(response, last).map(|letter| letter as usize - 'A' as usize);
    longest
        .map(|(_, place)| place)
        .or_else(by_letter)
        .or_else(|| by_number(response, question))
        .or_else(|| mentioned(response, question))
}

/// The place that "option 2" names, where numbers are not the choices themselves.
fn by_number(response: &str, question: &ChoiceQuestion) -> Option<usize> {
    let numbers = |choice: &String| choice.trim().parse::<f64>().is_ok();
    if question.choices.iter().any(numbers) {
        return None;
    }
    let words: Vec<&str> = response
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    words.windows(2).rev().find_map(|pair| {
        let named = ["option", "choice", "number"];
        let named = named.iter().any(|word| word.eq_ignore_ascii_case(pair[0]));
        let place = pair[1].parse::<usize>().ok()?.checked_sub(1)?;
        (named && place < question.choices.len()).then_some(place)
    })
}

/// The one choice whose words stand in a response.
fn mentioned(response: &str, question: &ChoiceQuestion) -> Option<usize> {
    let words = |text: &str| -> String {
        let text = text.to_lowercase();
        let words = text.split(|c: char| !c.is_alphanumeric());
        let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
        format!(" {} ", words.join(" "))
    };
    let said = words(response);
    let mut found = question.choices.iter().enumerate().filter(|(_, choice)| {
        let choice = words(choice);
        choice.len() > 3 && said.contains(&choice)
    });
    match (found.next(), found.next()) {
        (Some((place, _)), None) => Some(place),
        _ => None,
    }
}

/// Scores what was recorded; questions without a record do not count.
pub fn score_choices(questions: &[ChoiceQuestion], recorded: &[Option<Recorded>]) -> ChoiceScores {
    let (mut acc, mut norm, mut chance) = (Vec::new(), Vec::new(), 0.0);
    for (question, recorded) in questions.iter().zip(recorded) {
        let Some(recorded) = recorded else {
            continue;
        };
        let (right, normed) = recorded.right(question);
        acc.push(f64::from(u8::from(right)));
        norm.extend(normed.map(|normed| f64::from(u8::from(normed))));
        chance += 1.0 / question.choices.len() as f64;
    }
    let whole = norm.len() == acc.len() && !norm.is_empty();
    ChoiceScores {
        acc: crate::stats::mean(&acc),
        acc_stderr: crate::stats::standard_error(&acc),
        acc_norm: whole.then(|| crate::stats::mean(&norm)),
        acc_norm_stderr: whole.then(|| crate::stats::standard_error(&norm)).flatten(),
        chance: chance / acc.len() as f64,
        n: acc.len(),
    }
}
