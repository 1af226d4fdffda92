//! GSM8K: the number that a response ends in ("Training Verifiers to Solve Math Word Problems", arXiv 2110.14168).
//!
//! ```text
//! strict      the number behind the last `####`, as the worked answers of the set are written
//! flexible    that, or where there is none the last number in the response
//! ```
//! Numbers are compared as numbers: `1,000`, `$1000`, `1000.00` and `1e3` are the same, `.5` is `0.5`; behind `####` so are `1 000`, and `- 3` is `-3`.

use std::path::Path;

use serde::Serialize;

use crate::rows::{beginning, read_named};
use crate::{Result, stats};

/// A problem with its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What is asked.
    pub question: String,
    /// The number, without separators.
    pub answer: String,
}

impl Problem {
    /// One whose worked answer ends in `#### NUMBER`; none where it does not.
    pub fn of(question: &str, worked: &str) -> Option<Problem> {
        Some(Problem {
            question: question.to_owned(),
            answer: marked(worked)?,
        })
    }
}

/// Shares from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MathScores {
    /// Of responses right behind `####`.
    pub strict: f64,
    /// Its standard error; none of one response.
    pub strict_stderr: Option<f64>,
    /// Of responses right by their last number.
    pub flexible: f64,
    /// Its standard error.
    pub flexible_stderr: Option<f64>,
    /// Responses.
    pub n: usize,
}

/// Reads rows of `question` and `answer`, which ends in `#### NUMBER`.
///
/// # Errors
/// When the file cannot be read, a row is not such a problem, or its question is there already.
pub fn read_problems(path: &Path) -> Result<Vec<Problem>> {
    read_named(
        path,
        ("problems", "question"),
        |problem: &Problem| &problem.question,
        |row| {
            let (question, answer) = (row.text("question")?, row.text("answer")?);
            Problem::of(question, answer).ok_or_else(|| {
                row.wrong(format!(
                    "`answer` is {:?}, but must end in `#### ` and a number",
                    beginning(answer)
                ))
            })
        },
    )
}

/// Whether a response is right: strictly, flexibly.
pub fn judge_problem(problem: &Problem, response: &str) -> (bool, bool) {
    let right =
        |number: Option<String>| number.is_some_and(|number| same(&number, &problem.answer));
    let strict = marked(response);
    let flexible = strict.clone().or_else(|| last_number(response));
    (right(strict), right(flexible))
}

/// Scores responses, one a problem; none where there is none, which does not count.
pub fn score_problems<'a>(
    pairs: impl IntoIterator<Item = (&'a Problem, Option<&'a str>)>,
) -> MathScores {
    let answered = pairs
        .into_iter()
        .filter_map(|(problem, response)| Some((problem, response?)));
    let (strict, flexible): (Vec<f64>, Vec<f64>) = answered
        .map(|(problem, response)| judge_problem(problem, response))
        .map(|(strict, flexible)| (f64::from(u8::from(strict)), f64::from(u8::from(flexible))))
        .unzip();
    MathScores {
        strict: stats::mean(&strict),
        strict_stderr: stats::standard_error(&strict),
        flexible: stats::mean(&flexible),
        flexible_stderr: stats::standard_error(&flexible),
        n: strict.len(),
    }
}

/// The number that is read from a response: the one behind the last `####`, else the last one.
pub fn read_number(response: &str) -> Option<String> {
    marked(response).or_else(|| last_number(response))
}

/// The number right behind the last `####`.
fn marked(text: &str) -> Option<String> {
    let (_, behind) = text.rsplit_once("####")?;
    let behind = joined(behind.trim_start().lines().next()?);
    let (start, number) = numbers(&behind).next()?;
    // A sign of currency may stand before it, words may not.
    behind[..start]
        .chars()
        .all(|c| !c.is_alphanumeric())
        .then_some(number)
}

/// A number alone on its line, without spaces between groups of three digits and behind its sign.
fn joined(line: &str) -> String {
    let chars: Vec<char> = line.chars().collect();
    let digit = |place: usize| chars.get(place).is_some_and(char::is_ascii_digit);
    let group = |place: usize| (1..=3).all(|i| digit(place + i)) && !digit(place + 4);
    let kept = chars.iter().enumerate().filter(|(place, c)| {
        let sign = *place == 1 && chars[0] == '-' && digit(2);
        let between = *place > 0 && digit(place - 1) && group(*place);
        !(c.is_whitespace() && (sign || between))
    });
    kept.map(|(_, c)| *c).collect()
}

fn last_number(text: &str) -> Option<String> {
    numbers(text).last().map(|(_, number)| number)
}

/// The largest power of ten that a number may be written with.
const POWER: usize = 30;

/// Numbers of a text, where they begin: digits with commas between groups, a sign, a fraction and a power of ten.
fn numbers(text: &str) -> impl Iterator<Item = (usize, String)> {
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        let digit = |place: usize| bytes.get(place).is_some_and(u8::is_ascii_digit);
        let mut start = at + bytes[at..].iter().position(u8::is_ascii_digit)?;
        let (mut end, mut number, mut fraction) = (start, String::new(), false);
        // ".5", but not the point of "v.5" or "1..5".
        let before = text[..start].strip_suffix('.');
        let ends = |c: char| c.is_alphanumeric() || c == '.';
        if start > at && before.is_some_and(|before| !before.ends_with(ends)) {
            (start, fraction) = (start - 1, true);
            number.push_str("0.");
        }
        while let Some(&byte) = bytes.get(end) {
            match byte {
                b'0'..=b'9' => number.push(char::from(byte)),
                b',' if !fraction && digit(end + 1) && digit(end + 2) && digit(end + 3) => {}
                b'.' if !fraction && digit(end + 1) => {
                    fraction = true;
                    number.push('.');
                }
                _ => break,
            }
            end += 1;
        }
        if let Some((power, behind)) = power(&text[end..]) {
            number = shifted(&number, power);
            end += behind;
        }
        at = end;
        // A minus is a sign unless it stands between two things.
        let before = text[..start].trim_end_matches('$');
        let signed = before
            .strip_suffix('-')
            .is_some_and(|before| !before.ends_with(|c: char| c.is_alphanumeric() || c == ')'));
        if signed {
            number.insert(0, '-');
        }
        Some((start, number))
    })
}

/// The power of ten that a text begins with, `e5` or `E-3`, and its length.
fn power(text: &str) -> Option<(i32, usize)> {
    let rest = text.strip_prefix(['e', 'E'])?;
    let digits = rest.trim_start_matches(['+', '-']);
    let digits = &digits[..digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len())];
    let sign = &rest[..digits.as_ptr() as usize - rest.as_ptr() as usize];
    let length = 1 + sign.len() + digits.len();
    let apart = !text[length..].starts_with(|c: char| c.is_alphanumeric());
    let power: usize = digits.parse().ok().filter(|power| *power <= POWER)?;
    let power = if sign == "-" {
        -(power as i32)
    } else {
        power as i32
    };
    (apart && sign.len() < 2).then_some((power, length))
}

/// A number without a sign times a power of ten.
fn shifted(number: &str, power: i32) -> String {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!(
        "{}{whole}{fraction}{}",
        "0".repeat(POWER),
        "0".repeat(POWER)
    );
    let point = (POWER + whole.len()) as i32 + power;
    let (whole, fraction) = digits.split_at(point as usize);
    format!("{whole}.{fraction}")
}

/// Whether two numbers are the same, written otherwise.
fn same(one: &str, two: &str) -> bool {
    let bare = |number: &str| {
        let number = match number.contains('.') {
            true => number.trim_end_matches('0').trim_end_matches('.'),
            false => number,
        };
        let (sign, digits) = match number.strip_prefix('-') {
            Some(digits) => ("-", digits),
            None => ("", number),
        };
        let digits = digits.trim_start_matches('0');
        let digits = match digits.is_empty() || digits.starts_with('.') {
            true => format!("0{digits}"),
            false => digits.to_owned(),
        };
        match digits == "0" {
            true => digits,
            false => format!("{sign}{digits}"),
        }
    };
    bare(one) == bare(two)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_found_where_people_write_them() {
        let check = |answer: &str, response: &str, verdict: (bool, bool)| {
            let problem = Problem {
                question: String::new(),
                answer: answer.to_owned(),
            };
            assert_eq!(judge_problem(&problem, response), verdict, "{response:?}");
        };
        check("72", "48 + 24 = 72\n#### 72", (true, true));
        check("1000", "#### $1,000.00", (true, true));
        check("1000", "That makes 1,000 euros.", (false, true));
        check("-5", "It is -5.", (false, true));
        check("5", "10-5", (false, true));
        check("5", "#### 4", (false, false));
        check("5", "#### five, so 5", (false, true));
        check("0.5", "#### .5", (true, true));
        check("0.5", "It is $.5", (false, true));
        check("5", "See v.5", (false, true));
        check("100000", "#### 1e5", (true, true));
        check("0.0125", "#### 1.25E-2", (true, true));
        check("3", "#### 3e", (true, true));
        check("1200", "#### 1 200", (true, true));
        check("1200000", "#### 1 200 000 euros", (true, true));
        check("12", "#### 12 3000", (true, true));
        check("-3", "#### - 3", (true, true));
        check("3", "#### 10 - 3", (false, false));
        check("0.5", "#### 0.50", (true, true));
        check("3", "#### 2\n#### 3", (true, true));
        check("3", "First 3, then 4", (false, false));
        check("12", "1,2", (false, false));
        check("12", "", (false, false));
        check("0", "#### -0", (true, true));
    }
}
