//! What the library for grammars says is wrong with a constraint, as a sentence: what, where, and what to do.

use super::Constraint;

/// The longest piece of a pattern that is shown.
const MOST_SHOWN: usize = 24;

/// The first lines of an error of llguidance's, without the traces that follow.
pub(super) fn sentence(error: &str) -> String {
    const MOST: usize = 400;
    let end = ["\n<backtrace>", "\n<non-verbose/>", "\n<state>"]
        .iter()
        .filter_map(|mark| error.find(mark))
        .min()
        .unwrap_or(error.len());
    let mut text = error[..end].trim().to_owned();
    if text.len() > MOST {
        text.truncate(text.floor_char_boundary(MOST));
        text.push('…');
    }
    if text == "NoExtensionBias" {
        return "no text is in it, so no answer could be; let it begin with something".to_owned();
    }
    match text.strip_prefix("panic: ") {
        Some(what) => format!("the library for grammars stopped on it ({what})"),
        None => text,
    }
}

/// What is wrong with a constraint that does not compile.
pub(super) fn refusal(constraint: &Constraint, error: &str) -> String {
    let remedy = match constraint {
        Constraint::Regex(_) => {
            "write it in Rust's syntax, without look-around, back-references and word boundaries"
        }
        Constraint::Grammar(_) => {
            "write it in llguidance's dialect of Lark, beginning with the rule `start`"
        }
        Constraint::JsonSchema(_) => "mend the schema there, or leave out what it names",
        Constraint::JsonObject | Constraint::Choice(_) => "ask for less",
    };
    let what = match (constraint, pattern(error)) {
        (Constraint::Regex(text), Some(broken)) => {
            let place = unescaped(text, broken.column);
            broken.told(text, place)
        }
        // Of a pattern within something else.
        (_, Some(broken)) => {
            let told = broken.told(broken.text, broken.column);
            let place = line_and_column(error).map(|(place, _)| format!("{place}: "));
            let place = place.unwrap_or_default();
            format!(
                "{place}in the pattern `{}` {told}",
                start_of(broken.text, 0)
            )
        }
        (Constraint::Regex(_), None) => {
            // The line and column are of the grammar that was made of it.
            let (_, said) = line_and_column(error).unwrap_or((String::new(), error));
            let said = said
                .split_once("(in regex): ")
                .map_or(said, |(_, said)| said);
            first_line(said).to_owned()
        }
        (_, None) => match line_and_column(error) {
            Some((place, said)) => format!("{place}: {}", first_line(said)),
            None => error.to_owned(),
        },
    };
    format!("{}; {remedy}", sentence(&what))
}

/// A regular expression that does not parse, as the parser of the `regex` crate shows it.
struct Broken<'a> {
    what: &'a str,
    text: &'a str,
    /// In characters, from 0.
    column: usize,
}

impl Broken<'_> {
    fn told(&self, text: &str, place: usize) -> String {
        let (what, shown) = (self.what, start_of(text, place));
        format!("{what}, at character {} (`{shown}`)", place + 1)
    }
}

/// Finds the picture that the parser draws: the expression, and below it where it goes wrong.
fn pattern(error: &str) -> Option<Broken<'_>> {
    let (_, picture) = error.split_once("regex parse error:\n")?;
    let mut lines = picture.lines();
    let (text, marks) = (lines.next()?, lines.next()?);
    let what = lines.next()?.strip_prefix("error: ")?;
    Some(Broken {
        what,
        text: text.strip_prefix("    ")?,
        column: marks.strip_prefix("    ")?.find('^')?,
    })
}

/// The place in a regular expression that stands at `column` once llguidance has escaped it for its grammar.
fn unescaped(text: &str, column: usize) -> usize {
    let (mut shown, mut escaped) = (0, false);
    for (place, c) in text.chars().enumerate() {
        if shown >= column && !escaped {
            return place;
        }
        match c {
            '\\' if !escaped => {
                escaped = true;
                continue;
            }
            '/' | '\n' | '\r' | '\t' => shown += 2,
            _ => shown += 1 + usize::from(escaped),
        }
        escaped = false;
    }
    text.chars().count()
}

/// A text from a character on, as far as it is shown.
fn start_of(text: &str, place: usize) -> String {
    let mut rest = text.chars().skip(place);
    let mut shown: String = rest.by_ref().take(MOST_SHOWN).collect();
    if rest.next().is_some() {
        shown.push('…');
    }
    shown
}

/// `at 2(9): …` or `2(9): …`, read apart.
fn line_and_column(error: &str) -> Option<(String, &str)> {
    let (place, said) = error.split_once("): ")?;
    let place = place.strip_prefix("at ").unwrap_or(place);
    let (line, column) = place.split_once('(')?;
    let (line, column) = (line.parse::<usize>().ok()?, column.parse::<usize>().ok()?);
    Some((format!("line {line}, column {column}"), said))
}

/// What stands before the picture of the place.
fn first_line(said: &str) -> &str {
    let end = said.find("\n   ").unwrap_or(said.len());
    said[..end].trim()
}
