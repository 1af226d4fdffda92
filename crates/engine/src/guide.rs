//! Guided generation: which tokens may come next, so that an answer is JSON of a schema, matches a regular expression, is
//! in a grammar or is one of a few texts.
//!
//! The work is the `llguidance` crate's: a lexer of derivatives of regular expressions under an Earley parser, walked
//! over a trie of the vocabulary. Around it stand the promises that crate leaves to its user: bounds on every input,
//! sentences for errors, and nothing shared between sequences, so that none can hurt another.
//!
//! ```text
//! Vocabulary (once a tokenizer) ─▶ Grammar (once a constraint, to be kept) ─▶ Guide (once a sequence) ─▶ Allowed (a token)
//! ```
//! The engine knows no text: a [`Vocabulary`] is made of the bytes of tokens, which the caller takes from its tokenizer.
//! Any way to cut a text into tokens is allowed, not only the tokenizer's own. Left out: forcing tokens without a forward
//! pass, which would need the tokenizer here.

mod problem;
mod vocabulary;
mod worker;

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use llguidance::Matcher;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use serde_json::{Value, json};

use crate::{Allowed, Error, Result};
use problem::{refusal, sentence};
pub use vocabulary::Vocabulary;
pub(crate) use worker::{Masks, Worker};

/// The longest constraint, in bytes of its text. The largest schema of MaskBench has 132 KiB.
const MOST_TEXT: usize = 1 << 20;
/// The most texts to choose from.
const MOST_CHOICES: usize = 4096;
/// The most brackets open at once. llguidance bounds groups and rules itself, but not the conditions of a rule.
const MOST_OPEN: usize = 500;
/// The most blanks in a row between parts of JSON: a line's end and two blanks for each of 63 levels. A model that has learnt little
/// writes blanks for as long as it may, and would else never come to a value.
const MOST_BLANKS: usize = 128;
/// Stack of the thread that compiles: schemas may nest 128 deep and take about 3 KiB each level.
const STACK: usize = 32 << 20;

/// What is spent at most, of memory and time: llguidance's own measures, stated here so that an update changes none.
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2000,
        initial_lexer_fuel: 1_000_000, // about 20 ms
        step_lexer_fuel: 200_000,      // about 14 ms
        step_max_items: 50_000,        // about 3 ms
        max_lexer_states: 50_000, // about 2 KiB each; the crate's default is five times as many
        max_grammar_size: 500_000,
        precompute_large_lexemes: true,
        verbose_errors: false, // grammar and answer stay out of sentences
    }
}

/// What an answer must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Constraint {
    /// JSON of this schema (JSON text; drafts 4 to 2020-12). Keywords that cannot be kept are refused.
    JsonSchema(String),
    /// Any JSON object.
    JsonObject,
    /// A text that this regular expression matches from beginning to end (Rust's syntax, without look-around and
    /// anchors).
    Regex(String),
    /// A text of this grammar, in llguidance's dialect of Lark; it begins with the rule `start`.
    Grammar(String),
    /// One of these texts.
    Choice(Vec<String>),
}

impl Constraint {
    fn name(&self) -> &'static str {
        match self {
            Constraint::JsonSchema(_) => "JSON schema",
            Constraint::JsonObject => "JSON object",
            Constraint::Regex(_) => "regular expression",
            Constraint::Grammar(_) => "grammar",
            Constraint::Choice(_) => "choice",
        }
    }

    fn parse(&self) -> std::result::Result<TopLevelGrammar, String> {
        match self {
            Constraint::JsonSchema(text) => {
                sized(text.len())?;
                let schema = serde_json::from_str(text)
                    .map_err(|error| format!("it is not JSON: {error}; mend it there"))?;
                Ok(TopLevelGrammar::from_json_schema(with_few_blanks(schema)))
            }
            Constraint::JsonObject => {
                let schema = with_few_blanks(json!({"type": "object"}));
                Ok(TopLevelGrammar::from_json_schema(schema))
            }
            Constraint::Regex(text) => {
                sized(text.len())?;
                flat(text)?;
                Ok(TopLevelGrammar::from_regex(text))
            }
            Constraint::Grammar(text) => {
                sized(text.len())?;
                flat(text)?;
                Ok(TopLevelGrammar::from_lark(text.clone()))
            }
            Constraint::Choice(texts) => {
                if texts.is_empty() || texts.len() > MOST_CHOICES {
                    return Err(format!(
                        "it has {} texts, but there must be 1 to {MOST_CHOICES}",
                        texts.len()
                    ));
                }
                if texts.iter().any(String::is_empty) {
                    return Err("one of its texts is empty; leave it out".to_owned());
                }
                sized(texts.iter().map(String::len).sum())?;
                let escaped: Vec<String> = texts.iter().map(|text| literal(text)).collect();
                Ok(TopLevelGrammar::from_regex(&escaped.join("|")))
            }
        }
    }
}

/// A schema whose instances have no more than 128 blanks in a row between their parts, unless it says itself how blanks go
/// (llguidance's `x-guidance`).
fn with_few_blanks(schema: Value) -> Value {
    let mut schema = match schema {
        Value::Bool(true) => json!({}), // the same schema, with room for a word
        schema => schema,
    };
    let Some(fields) = schema.as_object_mut() else {
        return schema;
    };
    let options = fields.entry("x-guidance").or_insert_with(|| json!({}));
    if let Some(options) = options.as_object_mut()
        && !options.contains_key("whitespace_flexible")
    {
        let few = format!("[\\x20\\x0A\\x0D\\x09]{{1,{MOST_BLANKS}}}");
        let pattern = options.entry("whitespace_pattern");
        pattern.or_insert(Value::String(few));
    }
    schema
}

fn sized(bytes: usize) -> std::result::Result<(), String> {
    if bytes > MOST_TEXT {
        return Err(format!(
            "it has {bytes} bytes, but {MOST_TEXT} are the most"
        ));
    }
    Ok(())
}

/// Whether brackets nest no deeper than a parser may follow.
fn flat(text: &str) -> std::result::Result<(), String> {
    let (mut open, mut most) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            _ => continue,
        }
        most = most.max(open);
    }
    if most > MOST_OPEN {
        return Err(format!(
            "{most} brackets are open at once, but {MOST_OPEN} are the most; make it flatter"
        ));
    }
    Ok(())
}

/// A text as a regular expression that matches it and nothing else.
fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii_punctuation() {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// A constraint compiled for a vocabulary: made once, kept by the caller, shared by any number of sequences.
#[derive(Clone)]
pub struct Grammar {
    vocabulary: Vocabulary,
    name: &'static str,
    fresh: Arc<Mutex<Matcher>>, // never moved from its beginning
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammar")
            .field("of", &self.name)
            .finish_non_exhaustive()
    }
}

impl Grammar {
    /// Compiles a constraint. Takes from under a millisecond to, at the bounds, some tens of them.
    ///
    /// # Errors
    /// When the constraint is not well-formed, asks for what cannot be guided, or goes beyond the bounds.
    pub fn compile(vocabulary: &Vocabulary, constraint: &Constraint) -> Result<Grammar> {
        let name = constraint.name();
        let refused = |problem: String| Error::Guide { name, problem };
        // A thread of its own, for its stack.
        let matcher = thread::scope(|scope| {
            let compile = || -> std::result::Result<Matcher, String> {
                let grammar = constraint.parse()?;
                let parser = vocabulary.factory().create_parser(grammar);
                let matcher = Matcher::new(parser);
                match matcher.get_error() {
                    Some(error) => Err(refusal(constraint, &error)),
                    None => Ok(matcher),
                }
            };
            thread::Builder::new()
                .name("guide".to_owned())
                .stack_size(STACK)
                .spawn_scoped(scope, compile)
                .map_err(|error| format!("no thread could be started for it: {error}"))?
                .join()
                .map_err(|_| "the library for grammars stopped on it".to_owned())?
        });
        Ok(Grammar {
            vocabulary: vocabulary.clone(),
            name,
            fresh: Arc::new(Mutex::new(matcher.map_err(refused)?)),
        })
    }

    /// The vocabulary that it was compiled for.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// A guide at the beginning of an answer.
    pub fn guide(&self) -> Guide {
        // Deep: a sequence shares no state with another, so neither waits for nor breaks on it.
        let matcher = match self.fresh.lock() {
            Ok(fresh) => fresh.deep_clone(),
            Err(poisoned) => poisoned.into_inner().deep_clone(),
        };
        Guide {
            vocabulary: self.vocabulary.clone(),
            name: self.name,
            matcher,
            taken: Vec::new(),
            spent: Duration::ZERO,
        }
    }
}

impl PartialEq for Grammar {
    /// Whether both are the same compiled grammar.
    fn eq(&self, other: &Grammar) -> bool {
        Arc::ptr_eq(&self.fresh, &other.fresh)
    }
}

/// What may come next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// One of these tokens.
    Tokens(Allowed),
    /// Nothing but the end: the answer is complete and cannot go on.
    End,
}

/// Where one sequence stands in its grammar.
pub struct Guide {
    vocabulary: Vocabulary,
    name: &'static str,
    matcher: Matcher,
    taken: Vec<u32>, // the answer as far as the matcher has read it
    spent: Duration, // on the last mask
}

impl std::fmt::Debug for Guide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guide")
            .field("of", &self.name)
            .field("taken", &self.taken.len())
            .finish_non_exhaustive()
    }
}

impl Guide {
    /// What may come after `answer`, which may be longer or shorter than the time before. An end token is allowed where
    /// the answer is complete but could go on.
    ///
    /// # Errors
    /// When the answer is not one that the grammar allows, or the step goes beyond the bounds.
    pub fn next(&mut self, answer: &[u32]) -> Result<Next> {
        let began = Instant::now();
        self.follow(answer)?;
        if self.matcher.is_stopped() {
            return match self.matcher.stop_reason().is_ok() {
                true => Ok(Next::End),
                false => Err(self.refused(&self.matcher.get_error().unwrap_or_default())),
            };
        }
        let mask = self.matcher.compute_mask();
        let mask = mask.map_err(|error| self.refused(&error.to_string()))?;
        self.spent = began.elapsed();
        let allowed = Allowed::from_words(mask.as_slice().to_vec());
        let ends = self.vocabulary.ends();
        let ends = ends.iter().filter(|&&end| allowed.has(end)).count();
        if ends > 0 && allowed.count() == ends {
            return Ok(Next::End);
        }
        Ok(Next::Tokens(allowed))
    }

    /// How many of `drafts` the grammar allows one after another behind `answer`.
    ///
    /// # Errors
    /// As [`Guide::next`].
    pub fn allows(&mut self, answer: &[u32], drafts: &[u32]) -> Result<usize> {
        self.follow(answer)?;
        if self.matcher.is_stopped() {
            return Ok(0);
        }
        let allowed = self.matcher.validate_tokens(drafts);
        allowed.map_err(|error| self.refused(&error.to_string()))
    }

    /// Whether `answer` is complete: the end may come here.
    ///
    /// # Errors
    /// As [`Guide::next`].
    pub fn accepts(&mut self, answer: &[u32]) -> Result<bool> {
        self.follow(answer)?;
        if self.matcher.is_stopped() {
            return Ok(self.matcher.stop_reason().is_ok());
        }
        let accepts = self.matcher.is_accepting();
        accepts.map_err(|error| self.refused(&error.to_string()))
    }

    /// Whether nothing can follow `answer` but the end, as far as that shows without a mask.
    ///
    /// # Errors
    /// As [`Guide::next`].
    pub fn is_at_end(&mut self, answer: &[u32]) -> Result<bool> {
        self.follow(answer)?;
        Ok(self.matcher.is_stopped() && self.matcher.stop_reason().is_ok())
    }

    /// How long the last mask took.
    pub(crate) fn spent(&self) -> Duration {
        self.spent
    }

    /// Goes from the answer it has read to this one.
    fn follow(&mut self, answer: &[u32]) -> Result<()> {
        let same = self.taken.iter().zip(answer).take_while(|(a, b)| a == b);
        let same = same.count();
        let back = self.taken.len() - same;
        self.taken.truncate(same);
        let moved = self
            .matcher
            .rollback(back)
            .and_then(|()| self.matcher.consume_tokens(&answer[same..]));
        moved.map_err(|error| self.refused(&error.to_string()))?;
        self.taken.extend_from_slice(&answer[same..]);
        Ok(())
    }

    fn refused(&self, error: &str) -> Error {
        Error::Guide {
            name: self.name,
            problem: sentence(error),
        }
    }
}

#[cfg(test)]
mod tests;
