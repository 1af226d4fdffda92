//! The 25 kinds of instruction, and whether one response follows one of them.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::python::regex::{Endless, Regex};
use super::python::{self, is_blank, is_lower, is_space, is_upper, json, strip};
use super::{arguments, data, language, sentences, words};
use crate::{Error, Result};

/// An instruction with its arguments, checked: what `instruction_id_list` and `kwargs` of the prompts hold.
#[derive(Debug)]
pub struct Instruction {
    id: String,
    kind: Kind,
}

/// A kind with its arguments.
#[derive(Debug)]
pub(super) enum Kind {
    Existence(Vec<Regex>),
    Frequency(Regex, Count),
    ForbiddenWords(Vec<Regex>),
    /// None for the empty letter that `" "` comes to, which no text has.
    LetterFrequency(Option<String>, Count),
    ResponseLanguage(String),
    Sentences(Count),
    Paragraphs(i64),
    Words(Count),
    NthParagraphFirstWord {
        paragraphs: i64,
        nth: i64,
        word: String,
    },
    Placeholders(i64),
    Postscript(Regex),
    BulletLists(i64),
    ConstrainedResponse,
    HighlightedSections(i64),
    MultipleSections(Regex, i64),
    JsonFormat,
    Title,
    TwoResponses,
    RepeatPrompt(String),
    EndChecker(String),
    CapitalWordFrequency(Count),
    EnglishCapital,
    EnglishLowercase,
    NoComma,
    Quotation,
}

/// `less than` or `at least` so many.
#[derive(Clone, Copy, Debug)]
pub(super) struct Count {
    pub at_least: bool,
    pub number: i64,
}

impl Count {
    fn holds(self, counted: usize) -> bool {
        (counted as i64 >= self.number) == self.at_least
    }
}

/// The ids, in the order of the reference's registry.
pub const KINDS: [&str; 25] = [
    "keywords:existence",
    "keywords:frequency",
    "keywords:forbidden_words",
    "keywords:letter_frequency",
    "language:response_language",
    "length_constraints:number_sentences",
    "length_constraints:number_paragraphs",
    "length_constraints:number_words",
    "length_constraints:nth_paragraph_first_word",
    "detectable_content:number_placeholders",
    "detectable_content:postscript",
    "detectable_format:number_bullet_lists",
    "detectable_format:constrained_response",
    "detectable_format:number_highlighted_sections",
    "detectable_format:multiple_sections",
    "detectable_format:json_format",
    "detectable_format:title",
    "combination:two_responses",
    "combination:repeat_prompt",
    "startend:end_checker",
    "change_case:capital_word_frequency",
    "change_case:english_capital",
    "change_case:english_lowercase",
    "punctuation:no_comma",
    "startend:quotation",
];

/// Whether `response` follows the instruction `id` with these arguments, strictly: the reward of a rule.
///
/// The ids are [`KINDS`], the arguments those of `kwargs` in `ifeval_input_data.jsonl`; arguments that are null count as
/// absent. An empty response, or one of spaces only, follows nothing. [`Instruction::new`] once is cheaper for many responses.
///
/// ```
/// use serde_json::json;
///
/// let arguments = json!({"num_words": 3, "relation": "at least"});
/// let arguments = arguments.as_object().unwrap();
/// assert!(russet_eval::ifeval::check("length_constraints:number_words", arguments, "One two three.")?);
/// # Ok::<(), russet_eval::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Instruction`] when the id is none of the 25, when an argument is missing, unknown or of the wrong kind, when a keyword
/// is not a pattern (the reference uses keywords as regular expressions), or when matching it backtracks without end.
pub fn check(id: &str, arguments: &Map<String, Value>, response: &str) -> Result<bool> {
    Instruction::new(id, arguments)?.followed(response)
}

impl Instruction {
    /// Reads an instruction; where the reference would draw a missing argument at random, this is an error.
    ///
    /// # Errors
    ///
    /// As [`check`].
    pub fn new(id: &str, arguments: &Map<String, Value>) -> Result<Instruction> {
        let kind = arguments::kind(id, arguments)?;
        Ok(Instruction {
            id: id.to_owned(),
            kind,
        })
    }

    /// Its id, one of [`KINDS`].
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether a response follows it.
    ///
    /// # Errors
    ///
    /// [`Error::Instruction`] when matching a keyword backtracks without end.
    pub fn followed(&self, response: &str) -> Result<bool> {
        if is_blank(response) {
            return Ok(false);
        }
        self.holds(response)
            .map_err(|endless| self.endless(endless))
    }

    /// Whether any form of a response follows it: as it is, without its first line, its last line or both, and each of these
    /// without asterisks.
    ///
    /// # Errors
    ///
    /// As [`Instruction::followed`].
    pub fn followed_loosely(&self, response: &str) -> Result<bool> {
        self.any(&variants(response))
    }

    /// Whether one of these texts follows it; an error only where none does.
    pub(super) fn any(&self, variants: &[Cow<'_, str>]) -> Result<bool> {
        let mut endless = None;
        for variant in variants {
            match self.followed(variant) {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(error) => endless = Some(error),
            }
        }
        endless.map_or(Ok(false), Err)
    }

    fn endless(&self, endless: Endless) -> Error {
        Error::Instruction {
            id: self.id.clone(),
            problem: format!(
                "{endless}; where that lies in a keyword, write it without repeats in repeats"
            ),
        }
    }

    fn holds(&self, response: &str) -> Result<bool, Endless> {
        let chars = || response.chars().collect::<Vec<char>>();
        let all = |regex: &Regex| regex.find_all(&chars());
        let found = |regex: &Regex, text: &[char]| Ok(regex.search(text)?.is_some());
        Ok(match &self.kind {
            Kind::Existence(keywords) => {
                let text = chars();
                for keyword in keywords {
                    if !found(keyword, &text)? {
                        return Ok(false);
                    }
                }
                true
            }
            Kind::Frequency(keyword, count) => count.holds(all(keyword)?.len()),
            Kind::ForbiddenWords(words) => {
                let text = chars();
                for word in words {
                    if found(word, &text)? {
                        return Ok(false);
                    }
                }
                true
            }
            Kind::LetterFrequency(letter, count) => {
                let lower = response.to_lowercase();
                count.holds(match letter {
                    // A letter that is two in small, as İ, equals no single one.
                    Some(letter) if letter.chars().count() == 1 => lower.matches(letter).count(),
                    _ => 0,
                })
            }
            Kind::ResponseLanguage(wanted) => {
                language::detect(response)?.is_none_or(|language| language == wanted)
            }
            Kind::Sentences(count) => count.holds(sentences::sentences(&chars())?.len()),
            Kind::Paragraphs(wanted) => starred_paragraphs(response)? == Some(*wanted),
            Kind::Words(count) => count.holds(python::count_words(response)),
            Kind::NthParagraphFirstWord {
                paragraphs,
                nth,
                word,
            } => nth_first_word(response, *paragraphs, *nth, word),
            Kind::Placeholders(least) => all(&PATTERNS.placeholder)?.len() as i64 >= *least,
            Kind::Postscript(marker) => {
                let lower: Vec<char> = response.to_lowercase().chars().collect();
                found(marker, &lower)?
            }
            Kind::BulletLists(wanted) => {
                let text = chars();
                let stars = PATTERNS.star.find_all(&text)?.len();
                let dashes = PATTERNS.dash.find_all(&text)?.len();
                (stars + dashes) as i64 == *wanted
            }
            Kind::ConstrainedResponse => [
                "My answer is yes.",
                "My answer is no.",
                "My answer is maybe.",
            ]
            .iter()
            .any(|option| response.contains(option)),
            Kind::HighlightedSections(least) => highlights(&chars())? as i64 >= *least,
            Kind::MultipleSections(heading, least) => {
                // `re.split` gives what groups hold as pieces too, and the reference counts them.
                let pieces = all(heading)?.len() * (1 + heading.groups());
                pieces as i64 >= *least
            }
            Kind::JsonFormat => {
                let mut text = strip(response);
                for fence in ["```json", "```Json", "```JSON", "```"] {
                    text = text.strip_prefix(fence).unwrap_or(text);
                }
                json::is_json(strip(text.strip_suffix("```").unwrap_or(text)))
            }
            Kind::Title => {
                let text = chars();
                PATTERNS.title.find_all(&text)?.iter().any(|title| {
                    let title: String = text[title.start..title.end].iter().collect();
                    let inside = title.trim_start_matches('<').trim_end_matches('>');
                    !is_blank(inside)
                })
            }
            Kind::TwoResponses => two_responses(response),
            Kind::RepeatPrompt(prompt) => strip(response).to_lowercase().starts_with(prompt),
            Kind::EndChecker(phrase) => {
                let text = strip(response).trim_matches('"').to_lowercase();
                text.ends_with(phrase)
            }
            Kind::CapitalWordFrequency(count) => {
                let words = words::words(response)?;
                count.holds(words.iter().filter(|word| is_upper(word)).count())
            }
            Kind::EnglishCapital => is_upper(response) && is_english(response)?,
            Kind::EnglishLowercase => is_lower(response) && is_english(response)?,
            Kind::NoComma => !response.contains(','),
            Kind::Quotation => {
                let text = strip(response);
                text.len() > 1 && text.starts_with('"') && text.ends_with('"')
            }
        })
    }
}

fn is_english(text: &str) -> Result<bool, Endless> {
    Ok(language::detect(text)?.is_none_or(|language| language == "en"))
}

/// The forms that a loose verdict looks at, each once.
pub(super) fn variants(response: &str) -> Vec<Cow<'_, str>> {
    let after_first = response.split_once('\n').map(|(_, rest)| rest);
    let before_last = |text: &'_ str| text.rfind('\n').map_or(0, |end| end);
    let no_first = after_first.unwrap_or("");
    let no_last = &response[..before_last(response)];
    let neither = &no_first[..before_last(no_first)];
    let whole = [response, strip(no_first), strip(no_last), strip(neither)];
    let mut variants: Vec<Cow<'_, str>> = Vec::new();
    for text in whole {
        let plain = match text.contains('*') {
            true => Cow::Owned(text.replace('*', "")),
            false => Cow::Borrowed(text),
        };
        for variant in [Cow::Borrowed(text), plain] {
            // Most are the same text again, and detecting a language costs.
            if !variants.contains(&variant) {
                variants.push(variant);
            }
        }
    }
    variants
}

/// Paragraphs between `***`; None where one inside is empty.
fn starred_paragraphs(response: &str) -> Result<Option<i64>, Endless> {
    let text: Vec<char> = response.chars().collect();
    let mut paragraphs = Vec::new();
    let mut from = 0;
    for divider in PATTERNS.divider.find_all(&text)? {
        paragraphs.push(&text[from..divider.start]);
        from = divider.end;
    }
    paragraphs.push(&text[from..]);
    let (mut count, last) = (paragraphs.len() as i64, paragraphs.len() - 1);
    for (i, paragraph) in paragraphs.iter().enumerate() {
        if paragraph.iter().all(|c| is_space(*c)) {
            if i != 0 && i != last {
                return Ok(None);
            }
            count -= 1;
        }
    }
    Ok(Some(count))
}

/// Whether there are so many paragraphs between empty lines, and the nth, counted with empty ones, begins with `wanted`.
fn nth_first_word(response: &str, wanted_paragraphs: i64, nth: i64, wanted: &str) -> bool {
    let paragraphs: Vec<&str> = response.split("\n\n").collect();
    let count = paragraphs.iter().filter(|text| !is_blank(text)).count() as i64;
    if nth > count {
        return false;
    }
    let Some(word) = python::split(paragraphs[nth as usize - 1]).next() else {
        return false;
    };
    let word = word.trim_start_matches('\'').trim_start_matches('"');
    let letters = word.split(['.', ',', '?', '!', '\'', '"']).next();
    // Letter by letter: a sigma at the end of a word stays what it is by itself.
    let first: String = letters
        .unwrap_or("")
        .chars()
        .flat_map(char::to_lowercase)
        .collect();
    count == wanted_paragraphs && first == wanted
}

/// `*so*` and `**so**`, which counts twice or more: the reference adds both patterns up.
fn highlights(text: &[char]) -> Result<usize, Endless> {
    let inside = |start: usize, end: usize| text[start..end].iter().any(|c| !is_space(*c));
    let mut count = 0;
    for one in PATTERNS.highlight.find_all(text)? {
        count += usize::from(inside(one.start + 1, one.end - 1));
    }
    for one in PATTERNS.double_highlight.find_all(text)? {
        count += usize::from(inside(one.start + 2, one.end - 2));
    }
    Ok(count)
}

fn two_responses(response: &str) -> bool {
    let parts: Vec<&str> = response.split("******").collect();
    let mut valid = Vec::new();
    for (i, part) in parts.iter().enumerate() {
        if !is_blank(part) {
            valid.push(strip(part));
        } else if i != 0 && i != parts.len() - 1 {
            return false;
        }
    }
    valid.len() == 2 && valid[0] != valid[1]
}

struct Patterns {
    placeholder: Regex,
    star: Regex,
    dash: Regex,
    highlight: Regex,
    double_highlight: Regex,
    divider: Regex,
    title: Regex,
}

/// The reference's, verbatim.
static PATTERNS: std::sync::LazyLock<Patterns> = std::sync::LazyLock::new(|| Patterns {
    placeholder: data::pattern(r"\[.*?\]"),
    star: data::pattern(r"(?m)^\s*\*[^\*].*$"),
    dash: data::pattern(r"(?m)^\s*-.*$"),
    highlight: data::pattern(r"\*[^\n\*]*\*"),
    double_highlight: data::pattern(r"\*\*[^\n\*]*\*\*"),
    divider: data::pattern(r"\s?\*\*\*\s?"),
    title: data::pattern(r"<<[^\n]+>>"),
});
