//! Sentences as nltk's Punkt tokenizer finds them, with its English parameters (Kiss and Strunk 2006, "Unsupervised
//! Multilingual Sentence Boundary Detection").
//!
//! Patterns, order of the rules and their tables are those of nltk 3.9.1. Later versions of nltk take curly quotes for
//! closing punctuation as well; the verdicts that the reference published come from before that.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::LazyLock;

use super::data;
use super::python::regex::{Endless, Match, Regex, is_decimal};
use super::python::{is_space, is_word};

/// Where the word types of the parameters were seen: bits of nltk's orthographic context.
const BEGIN_UPPER: u8 = 1 << 1;
const MIDDLE_UPPER: u8 = 1 << 2;
const UNKNOWN_UPPER: u8 = 1 << 3;
const BEGIN_LOWER: u8 = 1 << 4;
const MIDDLE_LOWER: u8 = 1 << 5;
const UNKNOWN_LOWER: u8 = 1 << 6;
const UPPER: u8 = BEGIN_UPPER | MIDDLE_UPPER | UNKNOWN_UPPER;
const LOWER: u8 = BEGIN_LOWER | MIDDLE_LOWER | UNKNOWN_LOWER;

/// Characters that end no word but stand behind one.
const NO_WORD: &str = r#"(?:[)";}\]*:@'({\[?!])"#;
const DASHES_AND_DOTS: &str = r"(?:\-{2,}|\.{2,}|(?:\.\s){2,}\.)";

/// What the parameters say, and the patterns.
struct Punkt {
    abbreviations: HashSet<&'static str>,
    collocations: HashSet<(&'static str, &'static str)>,
    starters: HashSet<&'static str>,
    contexts: HashMap<&'static str, u8>,
    end: Regex,
    words: Regex,
    closing: Regex,
    number: Regex,
    ellipsis: Regex,
}

static PUNKT: LazyLock<Punkt> = LazyLock::new(|| {
    let mut punkt = Punkt {
        abbreviations: HashSet::new(),
        collocations: HashSet::new(),
        starters: HashSet::new(),
        contexts: HashMap::new(),
        end: data::pattern(&format!(r"[.?!](?=({NO_WORD}|\s+(\S+)))")),
        words: data::pattern(&format!(
            r#"({DASHES_AND_DOTS}|(?=[^("`{{\[:;&#*@)}}\]\-,])\S+?(?=\s|$|{NO_WORD}|{DASHES_AND_DOTS}|,(?=$|\s|{NO_WORD}|{DASHES_AND_DOTS}))|\S)"#
        )),
        closing: data::pattern(r#"(?m)["')\]}]+?(?:\s+|(?=--)|$)"#),
        number: data::pattern(r"^-?[.,]?\d[\d,.-]*\.?$"),
        ellipsis: data::pattern(r"\.\.+$"),
    };
    for line in data::punkt().lines() {
        let mut fields = line.split('\t');
        let kind = fields.next().unwrap_or_default();
        match (kind, fields.next(), fields.next()) {
            ("a", Some(word), None) => drop(punkt.abbreviations.insert(word)),
            ("s", Some(word), None) => drop(punkt.starters.insert(word)),
            ("c", Some(first), Some(second)) => drop(punkt.collocations.insert((first, second))),
            ("o", Some(word), Some(bits)) => {
                let bits = bits.parse().expect("the embedded parameters are whole");
                punkt.contexts.insert(word, bits);
            }
            _ => panic!("the embedded sentence parameters have a line {line:?}"),
        }
    }
    punkt
});

/// A word with its marks.
struct Token {
    text: Vec<char>,
    /// In small letters, numbers all the same.
    kind: String,
    period: bool,
    ends: bool,
    abbreviation: bool,
    ellipsis: bool,
}

impl Token {
    fn new(punkt: &Punkt, text: &[char]) -> Result<Token, Endless> {
        let lower = text.iter().collect::<String>().to_lowercase();
        let letters: Vec<char> = lower.chars().collect();
        let kind = match punkt.number.match_start(&letters)? {
            Some(_) => "##number##".to_owned(),
            None => lower,
        };
        Ok(Token {
            text: text.to_vec(),
            kind,
            period: text.ends_with(&['.']),
            ends: false,
            abbreviation: false,
            ellipsis: false,
        })
    }

    fn without_period(&self) -> &str {
        match self.kind.strip_suffix('.') {
            Some(kind) if !kind.is_empty() => kind,
            _ => &self.kind,
        }
    }

    fn without_final_period(&self) -> &str {
        match self.ends {
            true => self.without_period(),
            false => &self.kind,
        }
    }

    /// One letter and a period at the beginning of it, as Python's `match` has it.
    fn is_initial(&self) -> bool {
        let letter = |c: char| is_word(c) && !is_decimal(c);
        matches!(self.text[..], [c, '.'] if letter(c))
    }

    fn first_upper(&self) -> bool {
        self.text[0].is_uppercase()
    }

    fn first_lower(&self) -> bool {
        self.text[0].is_lowercase()
    }

    /// The marks that the word itself justifies.
    fn annotate(&mut self, punkt: &Punkt) -> Result<(), Endless> {
        if matches!(self.text[..], ['.' | '?' | '!']) {
            self.ends = true;
        } else if punkt.ellipsis.match_start(&self.text)?.is_some() {
            self.ellipsis = true;
        } else if self.period && !self.text.ends_with(&['.', '.']) {
            let word: String = self.text[..self.text.len() - 1].iter().collect();
            let word = word.to_lowercase();
            let last = word.rsplit('-').next().unwrap_or(&word);
            let known = |word: &str| punkt.abbreviations.contains(word);
            if known(&word) || known(last) {
                self.abbreviation = true;
            } else {
                self.ends = true;
            }
        }
        Ok(())
    }

    /// The marks that the next word justifies.
    fn annotate_before(&mut self, punkt: &Punkt, next: &Token) {
        if !self.period {
            return;
        }
        let (kind, next_kind) = (self.without_period(), next.without_final_period());
        let initial = self.is_initial();
        if punkt.collocations.contains(&(kind, next_kind)) {
            (self.ends, self.abbreviation) = (false, true);
            return;
        }
        let number = kind == "##number##";
        let begins = punkt.begins_sentence(next);
        if (self.abbreviation || self.ellipsis) && !initial {
            let starter = next.first_upper() && punkt.starters.contains(next_kind);
            if begins == Some(true) || starter {
                self.ends = true;
                return;
            }
        }
        if initial || number {
            let seen_lower = punkt.context(next_kind) & LOWER != 0;
            let name = begins.is_none() && initial && next.first_upper() && !seen_lower;
            if begins == Some(false) || name {
                (self.ends, self.abbreviation) = (false, true);
            }
        }
    }
}

impl Punkt {
    fn context(&self, kind: &str) -> u8 {
        self.contexts.get(kind).copied().unwrap_or(0)
    }

    /// Whether a word begins a sentence, by its case and what cases it was seen in; None where that says nothing.
    fn begins_sentence(&self, token: &Token) -> Option<bool> {
        if matches!(token.text[..], [';' | ':' | ',' | '.' | '!' | '?']) {
            return Some(false);
        }
        let context = self.context(token.without_final_period());
        if token.first_upper() && context & LOWER != 0 && context & MIDDLE_UPPER == 0 {
            return Some(true);
        }
        if token.first_lower() && (context & UPPER != 0 || context & BEGIN_LOWER == 0) {
            return Some(false);
        }
        None
    }

    /// Whether a sentence ends in a word and what follows it.
    fn contains_end(&self, text: &[char]) -> Result<bool, Endless> {
        let mut tokens = Vec::new();
        for line in text.split(|c| *c == '\n') {
            if line.iter().all(|c| is_space(*c)) {
                continue;
            }
            for word in self.words.find_all(line)? {
                let mut token = Token::new(self, &line[word.start..word.end])?;
                token.annotate(self)?;
                tokens.push(token);
            }
        }
        for i in 0..tokens.len().saturating_sub(1) {
            let (before, after) = tokens.split_at_mut(i + 1);
            before[i].annotate_before(self, &after[0]);
        }
        let before_last = tokens.len().saturating_sub(1);
        Ok(tokens[..before_last].iter().any(|token| token.ends))
    }

    /// Places that may end a sentence, each with the word before and what follows it.
    fn candidates(&self, text: &[char]) -> Result<Vec<(Match, Vec<char>)>, Endless> {
        let context = |word: &Range<usize>, end: &Match| {
            let after = end.group(1).expect("it looks ahead to what follows");
            [
                &text[word.clone()],
                &text[end.start..end.end],
                &text[after.0..after.1],
            ]
            .concat()
        };
        let mut candidates = Vec::new();
        let mut previous: Option<(Range<usize>, Match)> = None;
        let mut word = 0..0;
        for end in self.end.find_all(text)? {
            let before = &text[word.end..end.start];
            let space = before
                .iter()
                .rposition(|c| matches!(c, ' ' | '\t'..='\r'))
                .unwrap_or(0);
            let start = match space {
                0 => word.start,
                _ => space + word.end + 1,
            };
            if let Some((word, end)) = previous.take_if(|(word, _)| word.end <= start) {
                candidates.push((end.clone(), context(&word, &end)));
            }
            word = start..end.start;
            previous = Some((word.clone(), end));
        }
        if let Some((word, end)) = previous {
            let context = context(&word, &end);
            candidates.push((end, context));
        }
        Ok(candidates)
    }

    fn sentences(&self, text: &[char]) -> Result<Vec<Range<usize>>, Endless> {
        let (mut slices, mut last) = (Vec::new(), 0);
        for (end, context) in self.candidates(text)? {
            if self.contains_end(&context)? {
                slices.push((last, end.end));
                last = end.group(2).map_or(end.end, |(start, _)| start);
            }
        }
        let trimmed = text
            .iter()
            .rposition(|c| !is_space(*c))
            .map_or(0, |i| i + 1);
        slices.push((last, trimmed));
        // Closing punctuation goes to the sentence before it.
        let (mut sentences, mut moved) = (Vec::new(), 0);
        for (i, (start, end)) in slices.iter().enumerate() {
            let start = start + moved;
            let next = slices.get(i + 1);
            let next_text = next.map(|(start, end)| &text[*start..(*end).max(*start)]);
            let closing = match next_text {
                Some(text) => self.closing.match_start(text)?,
                None => None,
            };
            match (closing, next) {
                (Some(closing), Some((next, _))) => {
                    let part = &text[*next..*next + closing.end];
                    let kept = part
                        .iter()
                        .rposition(|c| !is_space(*c))
                        .map_or(0, |i| i + 1);
                    sentences.push(start..next + kept);
                    moved = closing.end;
                }
                _ => {
                    moved = 0;
                    if start < *end {
                        sentences.push(start..*end);
                    }
                }
            }
        }
        Ok(sentences)
    }
}

/// `nltk.sent_tokenize`: ranges of characters.
pub fn sentences(text: &[char]) -> Result<Vec<Range<usize>>, Endless> {
    PUNKT.sentences(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        let chars: Vec<char> = text.chars().collect();
        let found: Vec<String> = sentences(&chars)
            .unwrap()
            .into_iter()
            .map(|range| chars[range].iter().collect())
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn sentences_end_where_punkt_ends_them() {
        // nltk.sent_tokenize of each
        check("", &[]);
        check("Hello there", &["Hello there"]);
        check(
            "Dr. Smith met Mr. J. Bach. He left.",
            &["Dr. Smith met Mr. J. Bach.", "He left."],
        );
        check(
            "It cost 3.50 in the U.S. The end.",
            &["It cost 3.50 in the U.S.", "The end."],
        );
        check(
            "Very bad acting!!! I promise.",
            &["Very bad acting!!!", "I promise."],
        );
        check(
            "(And (this)) '?) Next one.",
            &["(And (this)) '?)", "Next one."],
        );
        check(
            "He said \"Go.\" Then left... maybe. ",
            &["He said \"Go.\"", "Then left... maybe."],
        );
        check(
            "No.5 is e.g. fine.\n\n1. One\n2. Two",
            &["No.5 is e.g.", "fine.", "1.", "One\n2.", "Two"],
        );
    }
}
