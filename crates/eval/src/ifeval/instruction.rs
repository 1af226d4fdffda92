//! The 25 kinds of instruction, and whether one response follows one of them.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::python::regex::{Endless, Regex};
use super::python::{self, is_blank, is_lower, is_space, is_upper, json, strip};
use super::{data, language, sentences, words};
use crate::{Error, Result};

/// An instruction with its arguments, checked: what `instruction_id_list` and `kwargs` of the prompts hold.
#[derive(Debug)]
pub struct Instruction {
    id: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
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
struct Count {
    at_least: bool,
    number: i64,
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
        let mut arguments = Arguments {
            id,
            all: arguments,
            used: Vec::new(),
        };
        let kind = arguments.kind()?;
        arguments.none_left()?;
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

    /// Whether one of these texts follows it.
    pub(super) fn any(&self, variants: &[Cow<'_, str>]) -> Result<bool> {
        for variant in variants {
            if self.followed(variant)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn endless(&self, endless: Endless) -> Error {
        Error::Instruction {
            id: self.id.clone(),
            problem: format!("{endless}; write the keyword without repeats in repeats"),
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

/// Arguments as they are read.
struct Arguments<'a> {
    id: &'a str,
    all: &'a Map<String, Value>,
    used: Vec<&'static str>,
}

impl<'a> Arguments<'a> {
    fn kind(&mut self) -> Result<Kind> {
        Ok(match self.id {
            "keywords:existence" => Kind::Existence(self.patterns("keywords", "(?i)", "")?),
            "keywords:frequency" => {
                let keyword = self.text("keyword")?;
                if keyword.is_empty() {
                    return Err(self.bad("`keyword` is empty; give a word".into()));
                }
                let keyword = strip(keyword);
                let pattern = self.pattern("keyword", &format!("(?i){keyword}"))?;
                Kind::Frequency(pattern, self.count("frequency", "relation", true)?)
            }
            "keywords:forbidden_words" => {
                Kind::ForbiddenWords(self.patterns("forbidden_words", r"(?i)\b", r"\b")?)
            }
            "keywords:letter_frequency" => {
                let letter = self.text("letter")?;
                if letter.chars().count() != 1 {
                    return Err(
                        self.bad(format!("`letter` is {letter:?}, and must be one character"))
                    );
                }
                let letter = strip(letter).to_lowercase();
                let letter = (!letter.is_empty()).then_some(letter);
                Kind::LetterFrequency(letter, self.count("let_frequency", "let_relation", true)?)
            }
            "language:response_language" => {
                let language = self.text("language")?;
                if !language::CODES.contains(&language) {
                    return Err(self.bad(format!(
                        "`language` is {language:?}, which the detector never answers; the codes are {}",
                        language::CODES.join(", ")
                    )));
                }
                Kind::ResponseLanguage(language.to_owned())
            }
            "length_constraints:number_sentences" => {
                Kind::Sentences(self.count("num_sentences", "relation", true)?)
            }
            "length_constraints:number_paragraphs" => {
                Kind::Paragraphs(self.number("num_paragraphs", true)?)
            }
            "length_constraints:number_words" => {
                Kind::Words(self.count("num_words", "relation", true)?)
            }
            "length_constraints:nth_paragraph_first_word" => {
                let paragraphs = self.number("num_paragraphs", true)?;
                let nth = self.number("nth_paragraph", true)?;
                if !(1..=paragraphs).contains(&nth) {
                    return Err(self.bad(format!(
                        "`nth_paragraph` is {nth}, and must be from 1 to `num_paragraphs`, {paragraphs}"
                    )));
                }
                Kind::NthParagraphFirstWord {
                    paragraphs,
                    nth,
                    word: self.text("first_word")?.to_lowercase(),
                }
            }
            "detectable_content:number_placeholders" => {
                Kind::Placeholders(self.number("num_placeholders", true)?)
            }
            "detectable_content:postscript" => {
                let marker = strip(self.text("postscript_marker")?);
                let pattern = match marker {
                    "P.P.S" => r"(?m)\s*p\.\s?p\.\s?s.*$".to_owned(),
                    "P.S." => r"(?m)\s*p\.\s?s\..*$".to_owned(),
                    other => format!(r"(?m)\s*{}.*$", other.to_lowercase()),
                };
                Kind::Postscript(self.pattern("postscript_marker", &pattern)?)
            }
            "detectable_format:number_bullet_lists" => {
                Kind::BulletLists(self.number("num_bullets", true)?)
            }
            "detectable_format:constrained_response" => Kind::ConstrainedResponse,
            "detectable_format:number_highlighted_sections" => {
                Kind::HighlightedSections(self.number("num_highlights", true)?)
            }
            "detectable_format:multiple_sections" => {
                let heading = strip(self.text("section_spliter")?);
                let heading = format!(r"\s?{heading}\s?\d+\s?");
                let heading = self.pattern("section_spliter", &heading)?;
                Kind::MultipleSections(heading, self.number("num_sections", true)?)
            }
            "detectable_format:json_format" => Kind::JsonFormat,
            "detectable_format:title" => Kind::Title,
            "combination:two_responses" => Kind::TwoResponses,
            "combination:repeat_prompt" => {
                let prompt = self.text("prompt_to_repeat")?;
                if prompt.is_empty() {
                    return Err(self.bad("`prompt_to_repeat` is empty; give the text".into()));
                }
                Kind::RepeatPrompt(strip(prompt).to_lowercase())
            }
            "startend:end_checker" => {
                Kind::EndChecker(strip(self.text("end_phrase")?).to_lowercase())
            }
            "change_case:capital_word_frequency" => Kind::CapitalWordFrequency(self.count(
                "capital_frequency",
                "capital_relation",
                false,
            )?),
            "change_case:english_capital" => Kind::EnglishCapital,
            "change_case:english_lowercase" => Kind::EnglishLowercase,
            "punctuation:no_comma" => Kind::NoComma,
            "startend:quotation" => Kind::Quotation,
            _ => {
                return Err(self.bad(format!(
                    "there is no such kind of instruction; the kinds are {}",
                    KINDS.join(", ")
                )));
            }
        })
    }

    fn bad(&self, problem: String) -> Error {
        Error::Instruction {
            id: self.id.to_owned(),
            problem,
        }
    }

    fn get(&mut self, name: &'static str) -> Result<&'a Value> {
        self.used.push(name);
        match self.all.get(name) {
            Some(value) if !value.is_null() => Ok(value),
            _ => Err(self.bad(format!("its argument `{name}` is missing; the reference would draw one at random, so give it"))),
        }
    }

    fn text(&mut self, name: &'static str) -> Result<&'a str> {
        let value = self.get(name)?;
        value
            .as_str()
            .ok_or_else(|| self.bad(format!("`{name}` is {value}, and must be a string")))
    }

    fn number(&mut self, name: &'static str, natural: bool) -> Result<i64> {
        let value = self.get(name)?;
        let number = value.as_i64().or_else(|| {
            // Tables of the prompts made through other formats have 3.0 for 3.
            let whole = value.as_f64().filter(|number| number.fract() == 0.0)?;
            (whole.abs() < 1e15).then_some(whole as i64)
        });
        match number {
            Some(number) if number >= 0 || !natural => Ok(number),
            _ => {
                let least = if natural { ", 0 or more" } else { "" };
                let problem = format!("`{name}` is {value}, and must be a whole number{least}");
                Err(self.bad(problem))
            }
        }
    }

    fn count(
        &mut self,
        number: &'static str,
        relation: &'static str,
        natural: bool,
    ) -> Result<Count> {
        let number = self.number(number, natural)?;
        let at_least = match self.text(relation)? {
            "at least" => true,
            "less than" => false,
            other => {
                let problem =
                    format!("`{relation}` is {other:?}, and must be \"less than\" or \"at least\"");
                return Err(self.bad(problem));
            }
        };
        Ok(Count { at_least, number })
    }

    fn pattern(&self, name: &str, pattern: &str) -> Result<Regex> {
        Regex::new(pattern).map_err(|error| {
            self.bad(format!("`{name}` is used as a regular expression, as the reference does, and is none: {error}; escape it"))
        })
    }

    fn patterns(&mut self, name: &'static str, before: &str, behind: &str) -> Result<Vec<Regex>> {
        let value = self.get(name)?;
        let words = value.as_array().filter(|words| !words.is_empty());
        let words = words.ok_or_else(|| {
            self.bad(format!(
                "`{name}` is {value}, and must be a list of strings"
            ))
        })?;
        let word = |word: &Value| match word.as_str() {
            Some(word) => self.pattern(name, &format!("{before}{word}{behind}")),
            None => Err(self.bad(format!("`{name}` holds {word}, and must hold strings"))),
        };
        words.iter().map(word).collect()
    }

    fn none_left(&self) -> Result<()> {
        let unknown = self
            .all
            .iter()
            .find(|(name, value)| !value.is_null() && !self.used.contains(&name.as_str()));
        match unknown {
            None => Ok(()),
            Some((name, _)) => Err(self.bad(format!(
                "it has an argument `{name}`, which this kind does not take; it takes {}",
                match self.used.is_empty() {
                    true => "none".to_owned(),
                    false => self.used.join(", "),
                }
            ))),
        }
    }
}
