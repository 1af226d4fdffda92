//! An instruction's `kwargs`, read and checked.

use serde_json::{Map, Value};

use super::instruction::{Count, KINDS, Kind};
use super::language;
use super::python::regex::Regex;
use super::python::strip;
use crate::{Error, Result};

/// The kind of this id with its arguments; none may be missing, wrong or left over.
pub fn kind(id: &str, all: &Map<String, Value>) -> Result<Kind> {
    let mut arguments = Arguments {
        id,
        all,
        used: Vec::new(),
    };
    let kind = arguments.kind()?;
    arguments.none_left()?;
    Ok(kind)
}

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
