//! Function calling: whether a response calls the right function with the right arguments, as the Berkeley Function Calling
//! Leaderboard's AST match has it.
//!
//! A response is a call in Python's form (`f(a=1)`, or a list of them) or JSON (`{"name", "arguments"}`, `{"f": {…}}`, a list of
//! either; arguments may be text that is JSON), or several calls, each within `<tool_call>`. Calls are compared with the possible answers: a value is right where it has the parameter's type and is one of those
//! listed; texts are compared without case and without ` ,./-_*^`; a parameter for which `""` is listed may be left out; several
//! calls may come in any order. Where a question has no answer, none of the functions fits, and a response is right that calls
//! none. Unlike there, a tuple counts as a list.

mod python;

use std::collections::HashMap;
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::rows::{Row, read_named, read_rows, short};
use crate::{Error, Result, stats};

/// A question with the functions that may be called.
#[derive(Clone, Debug, PartialEq)]
pub struct CallQuestion {
    /// `simple_python_0`.
    pub id: String,
    /// What the user says, all turns.
    pub messages: Vec<(String, String)>,
    /// The functions' descriptions.
    pub functions: Vec<Value>,
    /// Each call that is expected: a function's name, and for each parameter the possible values. Empty: no call is right.
    pub answers: Vec<(String, Map<String, Value>)>,
}

/// One call of a response.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The function.
    pub name: String,
    /// Its arguments.
    pub arguments: Map<String, Value>,
}

/// Shares from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CallScores {
    /// Of right responses.
    pub accuracy: f64,
    /// Its standard error; none of one.
    pub standard_error: Option<f64>,
    /// By category, what stands before the number in an id.
    pub categories: std::collections::BTreeMap<String, CategoryScores>,
    /// Responses.
    pub n: usize,
}

/// Of one category.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct CategoryScores {
    /// Of right responses.
    pub accuracy: f64,
    /// Responses.
    pub n: usize,
}

/// Reads questions, and their answers where there is a file of them; without, no call is right.
///
/// # Errors
/// When a file cannot be read, a row is malformed, an id is there twice, or an answer's question is not there.
pub fn read_calls(questions: &Path, answers: Option<&Path>) -> Result<Vec<CallQuestion>> {
    let named = ("questions", "id");
    let mut all = read_named(
        questions,
        named,
        |question: &CallQuestion| &question.id,
        question,
    )?;
    let ids = all.iter().map(|question| question.id.clone());
    let places: HashMap<String, usize> = ids.zip(0..).collect();
    for row in answers.map(read_rows).transpose()?.unwrap_or_default() {
        let id = row.name(&["id"])?;
        let Some(&place) = places.get(&id) else {
            return Err(row.wrong(format!("its id {id} is that of no question")));
        };
        let question = &mut all[place];
        if !question.answers.is_empty() {
            return Err(row.wrong(format!("its id {id} is that of an earlier row")));
        }
        question.answers = truth(&row)?;
    }
    if let (Some(path), Some(without)) = (answers, all.iter().find(|q| q.answers.is_empty())) {
        return Err(Error::Unreadable {
            path: path.to_path_buf(),
            problem: format!("there is no answer for {}; give one a question", without.id),
        });
    }
    Ok(all)
}

fn question(row: &Row) -> Result<CallQuestion> {
    let wrong = || {
        row.wrong(
            "`question` must be a list of turns, each a list of messages with `role` and `content`",
        )
    };
    let mut messages = Vec::new();
    for turn in row.need("question")?.as_array().ok_or_else(wrong)? {
        for message in turn.as_array().ok_or_else(wrong)? {
            let part = |key: &str| message[key].as_str().map(str::to_owned);
            messages.push((
                part("role").ok_or_else(wrong)?,
                part("content").ok_or_else(wrong)?,
            ));
        }
    }
    let functions = row.need("function")?;
    let functions = match functions {
        Value::Array(all) => all.clone(),
        one => vec![one.clone()],
    };
    let described = |function: &Value| {
        function["name"].is_string() && function["parameters"]["properties"].is_object()
    };
    if let Some(other) = functions.iter().find(|function| !described(function)) {
        return Err(row.wrong(format!(
            "a function is {}, but must have `name` and `parameters` with `properties`",
            short(other)
        )));
    }
    Ok(CallQuestion {
        id: row.name(&["id"])?,
        messages,
        functions,
        answers: Vec::new(),
    })
}

fn truth(row: &Row) -> Result<Vec<(String, Map<String, Value>)>> {
    let wrong = || {
        row.wrong(
            "`ground_truth` must be a list of one object a call, {FUNCTION: {PARAMETER: [VALUES]}}",
        )
    };
    let calls = row.need("ground_truth")?.as_array().ok_or_else(wrong)?;
    let call = |call: &Value| {
        let call = call.as_object().filter(|call| call.len() == 1)?;
        let (name, parameters) = call.iter().next()?;
        let parameters = parameters.as_object()?;
        let lists = parameters.values().all(Value::is_array);
        lists.then(|| (name.clone(), parameters.clone()))
    };
    let all: Option<Vec<_>> = calls.iter().map(call).collect();
    all.filter(|all| !all.is_empty()).ok_or_else(wrong)
}

/// What stands around a call in the templates of several models; one a call.
const MARKS: [&str; 2] = ["<tool_call>", "</tool_call>"];

/// The calls of a response; none where it is anything else.
pub fn parse_calls(response: &str) -> Option<Vec<Call>> {
    let mut rest = response.trim();
    if !rest.starts_with(MARKS[0]) {
        return of_text(rest);
    }
    let mut calls = Vec::new();
    while !rest.is_empty() {
        let behind = rest.strip_prefix(MARKS[0])?;
        let (call, more) = behind.split_once(MARKS[1]).unwrap_or((behind, ""));
        calls.extend(of_text(call.trim())?);
        rest = more.trim();
    }
    Some(calls)
}

fn of_text(text: &str) -> Option<Vec<Call>> {
    let text = bare(text);
    if let Ok(value) = serde_json::from_str::<Value>(text) {
        let list = match value {
            Value::Array(list) => list,
            one => vec![one],
        };
        return list.into_iter().map(of_json).collect();
    }
    python::calls(text)
}

/// A text without a block's backticks.
fn bare(text: &str) -> &str {
    let Some(inner) = text.strip_prefix("```") else {
        return text;
    };
    let inner = inner.split_once('\n').map_or(inner, |(_, inner)| inner);
    inner.strip_suffix("```").unwrap_or(inner).trim()
}

fn of_json(value: Value) -> Option<Call> {
    let Value::Object(mut object) = value else {
        return None;
    };
    if let Some(Value::Object(function)) = object.get("function") {
        object = function.clone(); // OpenAI's form
    }
    if let (Some(Value::String(name)), Some(arguments)) = (
        object.get("name"),
        object.get("arguments").or(object.get("parameters")),
    ) {
        let arguments = match arguments {
            Value::Object(arguments) => arguments.clone(),
            Value::String(text) => serde_json::from_str(text).ok()?,
            _ => return None,
        };
        let name = name.clone();
        return Some(Call { name, arguments });
    }
    let mut parts = object.into_iter();
    match (parts.next(), parts.next()) {
        (Some((name, Value::Object(arguments))), None) => Some(Call { name, arguments }),
        (Some((name, Value::String(text))), None) => Some(Call {
            name,
            arguments: serde_json::from_str(&text).ok()?,
        }),
        _ => None,
    }
}

/// Why a response is wrong; `Ok` where it is right.
///
/// # Errors
/// A sentence.
pub fn check_calls(question: &CallQuestion, response: &str) -> Result<(), String> {
    let calls = parse_calls(response);
    if question.answers.is_empty() {
        return match calls {
            Some(calls) if !calls.is_empty() => {
                Err(format!("it calls {}, and no function fits", calls[0].name))
            }
            _ => Ok(()),
        };
    }
    let calls = calls.ok_or("it is no call")?;
    if calls.len() != question.answers.len() {
        return Err(format!(
            "it has {} calls, not {}",
            calls.len(),
            question.answers.len()
        ));
    }
    let mut left: Vec<&Call> = calls.iter().collect();
    for (name, possible) in &question.answers {
        let mut problem = format!("it does not call {name}");
        let found = left.iter().position(|call| {
            if call.name != *name {
                return false;
            }
            match check_call(question, call, possible) {
                Ok(()) => true,
                Err(why) => {
                    problem = why;
                    false
                }
            }
        });
        match found {
            Some(place) => {
                left.remove(place);
            }
            None => return Err(problem),
        }
    }
    Ok(())
}

fn check_call(
    question: &CallQuestion,
    call: &Call,
    possible: &Map<String, Value>,
) -> Result<(), String> {
    let function = question
        .functions
        .iter()
        .find(|f| f["name"] == call.name.as_str());
    let function =
        function.ok_or_else(|| format!("{} is no function of the question", call.name))?;
    let parameters = &function["parameters"];
    let required = parameters["required"].as_array().into_iter().flatten();
    for name in required.filter_map(Value::as_str) {
        if !call.arguments.contains_key(name) {
            return Err(format!("the required {name} is missing"));
        }
    }
    for (name, value) in &call.arguments {
        let described = &parameters["properties"][name];
        let (true, Some(answers)) = (described.is_object(), possible.get(name)) else {
            return Err(format!("{name} is no parameter that is expected"));
        };
        let answers = answers.as_array().map_or(&[][..], Vec::as_slice);
        check_value(described, value, answers)
            .map_err(|why| format!("{name} is {}: {why}", short(value)))?;
    }
    let left_out = |(name, answers): &(&String, &Value)| {
        let optional = answers
            .as_array()
            .is_some_and(|all| all.iter().any(|one| one == ""));
        !call.arguments.contains_key(*name) && !optional
    };
    match possible.iter().find(left_out) {
        Some((name, _)) => Err(format!("{name} is missing")),
        None => Ok(()),
    }
}

/// Python's types, as far as JSON has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Type {
    Text,
    Int,
    Float,
    Bool,
    List,
    Dict,
    None,
}

fn described_type(name: &str) -> Type {
    match name {
        "integer" => Type::Int,
        "float" | "number" => Type::Float,
        "boolean" => Type::Bool,
        "array" | "tuple" => Type::List,
        "dict" | "object" => Type::Dict,
        _ => Type::Text,
    }
}

fn type_of(value: &Value) -> Type {
    match value {
        Value::Null => Type::None,
        Value::Bool(_) => Type::Bool,
        Value::Number(number) if number.is_f64() => Type::Float,
        Value::Number(_) => Type::Int,
        Value::String(_) => Type::Text,
        Value::Array(_) => Type::List,
        Value::Object(_) => Type::Dict,
    }
}

fn check_value(described: &Value, value: &Value, answers: &[Value]) -> Result<(), String> {
    let expected = described_type(described["type"].as_str().unwrap_or("any"));
    let nested = described["items"]["type"].as_str().map(described_type);
    let value = match (expected, value.as_i64()) {
        (Type::Float, Some(whole)) => &Value::from(whole as f64), // as Python takes it
        _ => value,
    };
    // To the reference what may be left out is, of a list, the empty one.
    let empty = |answer: &Value| match answer == "" && expected == Type::List {
        true => Value::Array(Vec::new()),
        false => answer.clone(),
    };
    let variable = check_type(
        value,
        answers,
        expected,
        nested.filter(|_| expected == Type::List),
    )?;
    let answers: Vec<Value> = answers.iter().map(empty).collect();
    let right = match expected {
        _ if variable => answers.iter().any(|answer| equal(answer, value)),
        Type::Dict => answers.iter().any(|answer| check_dict(value, answer)),
        Type::List if nested == Some(Type::Dict) => answers.iter().any(|answer| {
            let (Some(values), Some(answers)) = (value.as_array(), answer.as_array()) else {
                return false;
            };
            let mut pairs = values.iter().zip(answers);
            values.len() == answers.len() && pairs.all(|(value, answer)| check_dict(value, answer))
        }),
        _ => answers
            .iter()
            .any(|answer| equal(&standard(answer), &standard(value))),
    };
    match right {
        true => Ok(()),
        false => Err("it is not among the answers".to_owned()),
    }
}

/// Whether a value may be compared at all, and whether it stands for a variable, whose type is the answers' and not the described one.
fn check_type(
    value: &Value,
    answers: &[Value],
    expected: Type,
    nested: Option<Type>,
) -> Result<bool, String> {
    let answered = answers.iter().find(|answer| **answer != "").map(type_of);
    let variable = answered.is_some_and(|answered| answered != expected);
    if type_of(value) == expected {
        let Some(nested) = nested else {
            return Ok(variable);
        };
        let values = value.as_array().map_or(&[][..], Vec::as_slice);
        let fits = |answer: &Value| match answer {
            Value::Array(answers) => values
                .iter()
                .all(|value| check_type(value, answers, nested, None).is_ok()),
            _ => true,
        };
        return match answers.iter().any(fits) {
            true => Ok(variable),
            false => Err("its elements have another type".to_owned()),
        };
    }
    match answered == Some(type_of(value)) {
        true => Ok(true),
        false => Err(format!("its type is not {expected:?}")),
    }
}

/// An object against one whose values are lists of what is possible.
fn check_dict(value: &Value, answer: &Value) -> bool {
    let (Some(value), Some(answer)) = (value.as_object(), answer.as_object()) else {
        return false;
    };
    let among = |(key, value): (&String, &Value)| {
        let possible = answer.get(key).and_then(Value::as_array);
        possible.is_some_and(|all| {
            all.iter()
                .any(|one| equal(&flat_standard(one), &flat_standard(value)))
        })
    };
    let optional = |possible: &Value| {
        possible
            .as_array()
            .is_some_and(|all| all.iter().any(|one| one == ""))
    };
    value.iter().all(among)
        && answer
            .iter()
            .all(|(key, possible)| value.contains_key(key) || optional(possible))
}

/// A text as it is compared; also within a list.
fn standard(value: &Value) -> Value {
    match value {
        Value::Array(all) => all.iter().map(flat_standard).collect(),
        other => flat_standard(other),
    }
}

fn flat_standard(value: &Value) -> Value {
    let Value::String(text) = value else {
        return value.clone();
    };
    let kept = text.chars().filter(|c| !" ,./-_*^".contains(*c));
    let kept: String = kept.collect::<String>().to_lowercase();
    kept.replace('\'', "\"").into()
}

/// Python's `==`: 1 and 1.0 are the same.
fn equal(one: &Value, two: &Value) -> bool {
    match (one, two) {
        (Value::Number(one), Value::Number(two)) => one.as_f64() == two.as_f64(),
        (Value::Array(one), Value::Array(two)) => {
            one.len() == two.len() && one.iter().zip(two).all(|(one, two)| equal(one, two))
        }
        (Value::Object(one), Value::Object(two)) => {
            let same = |(key, value): (&String, &Value)| {
                two.get(key).is_some_and(|other| equal(value, other))
            };
            one.len() == two.len() && one.iter().all(same)
        }
        _ => one == two,
    }
}

/// Scores verdicts, one a question; questions without one do not count.
pub fn score_calls<'a>(
    verdicts: impl IntoIterator<Item = (&'a CallQuestion, Option<bool>)>,
) -> CallScores {
    let (mut all, mut categories) = (Vec::new(), std::collections::BTreeMap::new());
    for (question, right) in verdicts {
        let Some(right) = right.map(|right| f64::from(u8::from(right))) else {
            continue;
        };
        let category = question
            .id
            .trim_end_matches(|c: char| c.is_ascii_digit() || c == '-');
        let category = category.trim_end_matches('_').to_owned();
        let scores: &mut CategoryScores = categories.entry(category).or_default();
        scores.accuracy = (scores.accuracy * scores.n as f64 + right) / (scores.n + 1) as f64;
        scores.n += 1;
        all.push(right);
    }
    CallScores {
        accuracy: stats::mean(&all),
        standard_error: stats::standard_error(&all),
        categories,
        n: all.len(),
    }
}
