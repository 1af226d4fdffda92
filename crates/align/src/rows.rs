//! Conversations and preferences out of JSONL files (`.jsonl`, plain, `.zst` or `.gz`), in the forms that data sets have.
//!
//! | keys of a row | form |
//! |---|---|
//! | `messages` (and `tools`) | OpenAI's: objects with `role`, `content`, `tool_calls`, `weight` |
//! | `conversations` (and `system`, `tools`) | ShareGPT's: objects with `from` and `value` |
//! | `instruction`, `output` (and `input`, `system`) | Alpaca's |
//! | `prompt`, `completion` | either two texts or two lists of messages |
//! | `prompt`, `chosen`, `rejected` (and `strength`, `chosen_grades`, `rejected_grades`) | a preference: texts or lists of messages |
//! | `prompt`, `messages` or `question`, and what rules read | something to answer |
//!
//! The form is found out for each row. A row that is none of these is an error with file and line, or skipped and counted
//! where that was asked for.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use russet_model::reward::{GRADES, LEVELS};
use russet_tokenizer::{Conversation, Tokenizer, read_lines};
use russet_train::{Result, TrainError};
use serde_json::{Map, Value, json};

use crate::data::DATE;
use crate::reward::Strength;

/// A conversation, and which of its messages are learnt.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// What was said.
    pub conversation: Conversation,
    /// Whether each message counts where the assistant said it: not those of a prompt, nor those of `"weight": 0`.
    pub learnt: Vec<bool>,
}

/// Two answers to one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// The prompt with the better answer.
    pub chosen: Example,
    /// The same with the other.
    pub rejected: Example,
    /// How sure whoever compared them was, where that is said.
    pub strength: Option<Strength>,
    /// The level of each of [`GRADES`], of the chosen answer and the rejected one, where it was graded.
    pub grades: [Graded; 2],
}

/// The levels of an answer, 0 the worst, in the order of [`GRADES`].
pub type Graded = [Option<usize>; GRADES.len()];

/// Something to answer, and what rules read of its row.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// What was said so far; the assistant is next.
    pub conversation: Conversation,
    /// All keys of the row.
    pub row: Map<String, Value>,
}

/// Rows of a file, each with its line, and how many were skipped.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows<T> {
    /// What was read.
    pub rows: Vec<(u64, T)>,
    /// Rows that are none.
    pub malformed: u64,
}

/// The conversations of a file.
///
/// # Errors
/// When the file cannot be read, has no row, or a row is none and `skip_malformed` is not set.
pub fn read_conversations(path: &Path, skip_malformed: bool) -> Result<Rows<Example>> {
    read(path, skip_malformed, conversation)
}

/// The preferences of a file.
///
/// # Errors
/// As [`read_conversations`].
pub fn read_pairs(path: &Path, skip_malformed: bool) -> Result<Rows<Pair>> {
    read(path, skip_malformed, pair)
}

/// What a file asks.
///
/// # Errors
/// As [`read_conversations`].
pub fn read_prompts(path: &Path, skip_malformed: bool) -> Result<Rows<Asked>> {
    read(path, skip_malformed, asked)
}

impl Asked {
    /// As the tokenizer's chat template writes it, ready to be answered.
    ///
    /// # Errors
    /// A sentence without file and line: why the template refuses it.
    pub fn encode(&self, tokenizer: &Tokenizer) -> std::result::Result<Vec<u32>, String> {
        let now = SystemTime::UNIX_EPOCH + DATE;
        tokenizer
            .encode_conversation(&self.conversation, true, now)
            .map_err(|error| error.to_string())
    }
}

/// A prompt with the place that it stands in, by number of the file and line, and what a check made of it.
pub(crate) type Checked<T> = ((usize, u64), Asked, T);

/// The prompts of several files that `check` lets pass, and how many rows are left out because they are none or do not.
///
/// # Errors
/// As [`read_prompts`]; what `check` says counts as a row that is none.
pub(crate) fn read_checked<T>(
    files: &[PathBuf],
    skip_malformed: bool,
    mut check: impl FnMut(&Asked) -> Parsed<T>,
) -> Result<(Vec<Checked<T>>, u64)> {
    let (mut all, mut malformed) = (Vec::new(), 0);
    for (file, path) in files.iter().enumerate() {
        let rows = read_prompts(path, skip_malformed)?;
        malformed += rows.malformed;
        for (line, asked) in rows.rows {
            match check(&asked) {
                Ok(made) => all.push(((file, line), asked, made)),
                Err(_) if skip_malformed => malformed += 1,
                Err(problem) => return Err(refused(path, line, &problem)),
            }
        }
    }
    Ok((all, malformed))
}

fn refused(path: &Path, line: u64, problem: &str) -> TrainError {
    TrainError::Data {
        place: path.to_owned(),
        problem: format!(
            "line {line}: {problem}. Mend the row, or set `data.skip_malformed = true` to leave such rows out"
        ),
    }
}

type Parsed<T> = std::result::Result<T, String>;

fn read<T>(
    path: &Path,
    skip_malformed: bool,
    parse: impl Fn(Map<String, Value>) -> Parsed<T>,
) -> Result<Rows<T>> {
    let mut found = Rows {
        rows: Vec::new(),
        malformed: 0,
    };
    for line in read_lines(path)? {
        let (line, bytes) = line?;
        let object = match serde_json::from_slice(&bytes) {
            Ok(Value::Object(object)) => Ok(object),
            Ok(_) => Err("it is no JSON object".to_owned()),
            Err(error) => Err(format!("it is no JSON object: {error}")),
        };
        match object.and_then(&parse) {
            Ok(row) => found.rows.push((line, row)),
            Err(_) if skip_malformed => found.malformed += 1,
            Err(problem) => return Err(refused(path, line, &problem)),
        }
    }
    if found.rows.is_empty() {
        let problem = match found.malformed {
            0 => "it has no rows; write one a line".to_owned(),
            malformed => format!(
                "none of its {malformed} rows can be read; leave `data.skip_malformed` out to see why"
            ),
        };
        return Err(TrainError::Data {
            place: path.to_owned(),
            problem,
        });
    }
    Ok(found)
}

/// A row of fine-tuning.
fn conversation(mut row: Map<String, Value>) -> Parsed<Example> {
    let tools = tools(row.remove("tools"))?;
    let example = if let Some(value) = row.remove("messages") {
        messages(value, "messages")?
    } else if let Some(value) = row.remove("conversations") {
        let mut turns = shared(value)?;
        let has_system = turns.first().is_some_and(|turn| turn["role"] == "system");
        if let (Some(system), false) = (optional_text(&mut row, "system")?, has_system) {
            turns.insert(0, turn("system", system));
        }
        of_objects(turns)
    } else if row.contains_key("instruction") {
        let (instruction, output) = (text(&mut row, "instruction")?, text(&mut row, "output")?);
        let asked = match optional_text(&mut row, "input")? {
            Some(input) => format!("{instruction}\n\n{input}"),
            None => instruction,
        };
        let system = optional_text(&mut row, "system")?;
        let turns = system
            .map(|system| turn("system", system))
            .into_iter()
            .chain([turn("user", asked), turn("assistant", output)]);
        of_objects(turns.collect())
    } else if row.contains_key("completion") {
        let prompt = row.remove("prompt").ok_or("it has no `prompt`")?;
        let completion = row.remove("completion").expect("just found");
        answered(prompt, completion, "completion")?
    } else if row.contains_key("chosen") {
        return Err(
            "it is a preference, which `dpo` learns from; name a file of conversations".to_owned(),
        );
    } else {
        return Err(format!(
            "it has the keys {}, but none of `messages`, `conversations`, `instruction` and `output`, `prompt` and \
             `completion`",
            keys(&row)
        ));
    };
    checked(example, tools)
}

/// A row of preferences.
fn pair(mut row: Map<String, Value>) -> Parsed<Pair> {
    let tools = tools(row.remove("tools"))?;
    let mut take = |key: &str| row.remove(key).ok_or(format!("it has no `{key}`"));
    let (chosen, rejected) = (take("chosen")?, take("rejected")?);
    let prompt = row.remove("prompt");
    let side = |value: Value, key: &str| {
        let example = match (&prompt, value) {
            (Some(prompt), value) => answered(prompt.clone(), value, key)?,
            // The whole conversation in both, whose last message is what is compared.
            (None, value @ Value::Array(_)) => {
                let mut example = messages(value, key)?;
                let last = example.learnt.len().saturating_sub(1);
                example.learnt[..last].fill(false);
                example
            }
            (None, _) => return Err("it has no `prompt`".to_owned()),
        };
        checked(example, tools.clone())
    };
    let (chosen, rejected) = (side(chosen, "chosen")?, side(rejected, "rejected")?);
    if chosen == rejected {
        return Err("`chosen` and `rejected` are the same, so neither is better".to_owned());
    }
    let strength = match row.remove("strength") {
        None | Some(Value::Null) => None,
        Some(word) => Some(serde_json::from_value(word.clone()).map_err(|_| {
            format!(
                "`strength` is {word}, but must be one of \"significantly\", \"better\", \"slightly\" and \"negligibly\""
            )
        })?),
    };
    let grades = ["chosen_grades", "rejected_grades"].map(|key| graded(row.remove(key), key));
    let [of_chosen, of_rejected] = grades;
    Ok(Pair {
        chosen,
        rejected,
        strength,
        grades: [of_chosen?, of_rejected?],
    })
}

/// The levels of an answer, by the names of grades.
fn graded(value: Option<Value>, key: &str) -> Parsed<Graded> {
    let mut levels = Graded::default();
    let object = match value {
        None | Some(Value::Null) => return Ok(levels),
        Some(Value::Object(object)) => object,
        Some(other) => {
            let names = GRADES.join(", ");
            return Err(format!(
                "`{key}` is {}, but it must be an object with levels of {names}",
                kind(&other)
            ));
        }
    };
    for (name, level) in object {
        let Some(place) = GRADES.iter().position(|grade| *grade == name) else {
            return Err(format!(
                "`{key}` has {name:?}, which is none of the grades {}",
                GRADES.join(", ")
            ));
        };
        levels[place] = match level.as_u64() {
            _ if level.is_null() => None,
            Some(level) if level < LEVELS as u64 => Some(level as usize),
            _ => {
                return Err(format!(
                    "`{key}` has the level {level} of {name}, but levels are 0, 1 and 2, the best"
                ));
            }
        };
    }
    Ok(levels)
}

/// A row that asks something.
fn asked(row: Map<String, Value>) -> Parsed<Asked> {
    let tools = tools(row.get("tools").cloned())?;
    let found = ["prompt", "messages", "question"]
        .into_iter()
        .find_map(|key| Some((key, row.get(key)?.clone())));
    let mut conversation = match found {
        Some((_, Value::String(text))) => of_objects(vec![turn("user", text)]),
        Some((key, value)) => messages(value, key)?,
        None => {
            return Err(format!(
                "it has the keys {}, but none of `prompt`, `messages` and `question`",
                keys(&row)
            ));
        }
    }
    .conversation;
    if conversation
        .messages
        .last()
        .is_some_and(|last| last["role"] == "assistant")
    {
        return Err(
            "its last message is the assistant's, but there the answer should begin; leave it out"
                .to_owned(),
        );
    }
    conversation.tools = tools;
    Ok(Asked { conversation, row })
}

/// A prompt and its answer; the answer is learnt.
fn answered(prompt: Value, answer: Value, key: &str) -> Parsed<Example> {
    let before = match prompt {
        Value::String(text) => of_objects(vec![turn("user", text)]),
        prompt => messages(prompt, "prompt")?,
    };
    let after = match answer {
        Value::String(text) => of_objects(vec![turn("assistant", text)]),
        answer => messages(answer, key)?,
    };
    let asked = before.learnt.len();
    let mut conversation = before.conversation;
    conversation.messages.extend(after.conversation.messages);
    let mut learnt = vec![false; asked];
    learnt.extend(after.learnt);
    Ok(Example {
        conversation,
        learnt,
    })
}

/// Whether there is anything to learn, and the assistant's turns are told apart.
fn checked(mut example: Example, tools: Vec<Value>) -> Parsed<Example> {
    example.conversation.tools = tools;
    let of_assistant = |message: &Map<String, Value>| message["role"] == "assistant";
    let messages = &example.conversation.messages;
    let mut own = messages.iter().zip(&example.learnt);
    match own.any(|(message, &learnt)| learnt && of_assistant(message)) {
        true => Ok(example),
        false => Err("the assistant says nothing in it that could be learnt".to_owned()),
    }
}

fn of_objects(messages: Vec<Map<String, Value>>) -> Example {
    Example {
        learnt: vec![true; messages.len()],
        conversation: Conversation {
            messages,
            tools: Vec::new(),
        },
    }
}

/// OpenAI's messages.
fn messages(value: Value, key: &str) -> Parsed<Example> {
    let Value::Array(values) = value else {
        return Err(format!(
            "`{key}` is {}, but it must be a list",
            kind(&value)
        ));
    };
    if values.is_empty() {
        return Err(format!("`{key}` is empty"));
    }
    let (mut messages, mut learnt) = (Vec::new(), Vec::new());
    for (number, value) in values.into_iter().enumerate() {
        let place = format!("message {} of `{key}`", number + 1);
        let Value::Object(mut message) = value else {
            return Err(format!(
                "{place} is {}, but it must be an object with `role` and `content`",
                kind(&value)
            ));
        };
        match message.get("role") {
            Some(Value::String(role)) if !role.is_empty() => {}
            Some(Value::String(_)) => return Err(format!("{place} has an empty `role`")),
            _ => return Err(format!("{place} has no `role`")),
        }
        let counts = match message.remove("weight") {
            None => true,
            Some(weight) => match weight.as_f64() {
                Some(0.0) => false,
                Some(1.0) => true,
                _ => {
                    return Err(format!(
                        "{place} has the `weight` {weight}, but 0 leaves a message out and 1 learns it"
                    ));
                }
            },
        };
        let calls = tool_calls(&mut message, &place)?;
        let content = match message.remove("content") {
            Some(Value::String(text)) => Value::String(text),
            Some(Value::Array(parts)) => Value::String(joined(parts, &place)?),
            None | Some(Value::Null) if calls => Value::Null,
            Some(other) if !other.is_null() => {
                return Err(format!("{place} has a `content` that is {}", kind(&other)));
            }
            _ => return Err(format!("{place} has no `content`")),
        };
        message.insert("content".to_owned(), content);
        messages.push(message);
        learnt.push(counts);
    }
    Ok(Example {
        conversation: Conversation {
            messages,
            tools: Vec::new(),
        },
        learnt,
    })
}

/// Makes calls what templates read: arguments as an object, where they came as its text. Whether there are any.
fn tool_calls(message: &mut Map<String, Value>, place: &str) -> Parsed<bool> {
    let calls = match message.get_mut("tool_calls") {
        None => return Ok(false),
        Some(Value::Null) => {
            message.remove("tool_calls");
            return Ok(false);
        }
        Some(Value::Array(calls)) => calls,
        Some(other) => {
            let found = kind(other);
            return Err(format!(
                "{place} has `tool_calls` that are {found}, but they must be a list"
            ));
        }
    };
    for call in calls.iter_mut() {
        let function = match call.get("function").is_some() {
            true => call.get_mut("function").expect("just found"),
            false => call,
        };
        if !function.get("name").is_some_and(Value::is_string) {
            return Err(format!("{place} calls a tool without a `name`"));
        }
        if let Some(Value::String(text)) = function.get("arguments") {
            match serde_json::from_str::<Value>(text) {
                Ok(arguments @ Value::Object(_)) => function["arguments"] = arguments,
                _ => {
                    return Err(format!(
                        "{place} calls a tool with `arguments` that are no JSON object"
                    ));
                }
            }
        }
    }
    Ok(!calls.is_empty())
}

/// Parts of content, of which the texts are read.
fn joined(parts: Vec<Value>, place: &str) -> Parsed<String> {
    let mut whole = String::new();
    for part in parts {
        match (part["type"].as_str(), part["text"].as_str()) {
            (Some("text"), Some(text)) => whole.push_str(text),
            (found, _) => {
                return Err(format!(
                    "{place} has a part of the type {found:?}; only parts of the type \"text\" are read"
                ));
            }
        }
    }
    Ok(whole)
}

/// ShareGPT's turns.
fn shared(value: Value) -> Parsed<Vec<Map<String, Value>>> {
    let Value::Array(values) = value else {
        return Err(format!(
            "`conversations` is {}, but it must be a list",
            kind(&value)
        ));
    };
    let one = |(number, value): (usize, Value)| {
        let place = format!("turn {} of `conversations`", number + 1);
        // Some sets of this name hold OpenAI's keys.
        let get = |ours: &str, theirs: &str| value.get(ours).or_else(|| value.get(theirs));
        let from = get("from", "role").and_then(Value::as_str);
        let said = get("value", "content").and_then(Value::as_str);
        let (Some(from), Some(said)) = (from, said) else {
            return Err(format!("{place} has no text `from` and `value`"));
        };
        let role = match from {
            "function_call" | "tool_call" => return called(said, &place),
            "human" | "user" => "user",
            "gpt" | "assistant" | "chatgpt" | "bing" | "bard" => "assistant",
            "system" => "system",
            "tool" | "observation" | "function_response" => "tool",
            other => {
                return Err(format!(
                    "{place} is from {other:?}, who is none of human, gpt, function_call, observation and system"
                ));
            }
        };
        Ok(turn(role, said.to_owned()))
    };
    values.into_iter().enumerate().map(one).collect()
}

/// A turn of ShareGPT's that calls a tool: the text of an object with `name` and `arguments`.
fn called(said: &str, place: &str) -> Parsed<Map<String, Value>> {
    let function = serde_json::from_str(said);
    let Ok(function @ Value::Object(_)) = function else {
        return Err(format!(
            "{place} calls a tool, but it is no JSON object with `name` and `arguments`"
        ));
    };
    let mut turn = turn("assistant", String::new());
    let call = json!({"type": "function", "function": function});
    turn.insert("tool_calls".to_owned(), json!([call]));
    tool_calls(&mut turn, place)?;
    Ok(turn)
}

/// Descriptions of tools; some sets have them as text, and some without saying that they are functions.
fn tools(value: Option<Value>) -> Parsed<Vec<Value>> {
    let described = |tools: Vec<Value>| {
        let one = |tool: Value| match tool.get("name").is_some() && tool.get("function").is_none() {
            true => json!({"type": "function", "function": tool}),
            false => tool,
        };
        tools.into_iter().map(one).collect()
    };
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(tools)) => Ok(described(tools)),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(Vec::new()),
        Some(Value::String(text)) => match serde_json::from_str(&text) {
            Ok(Value::Array(tools)) => Ok(described(tools)),
            _ => Err("`tools` is a text that is no JSON list".to_owned()),
        },
        Some(other) => Err(format!(
            "`tools` is {}, but it must be a list",
            kind(&other)
        )),
    }
}

fn turn(role: &str, content: String) -> Map<String, Value> {
    match json!({"role": role, "content": content}) {
        Value::Object(turn) => turn,
        _ => unreachable!("an object was written"),
    }
}

fn text(row: &mut Map<String, Value>, key: &str) -> Parsed<String> {
    match row.remove(key) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!(
            "`{key}` is {}, but it must be a text",
            kind(&other)
        )),
        None => Err(format!("it has no `{key}`")),
    }
}

/// A text that need not be there; an empty one is none.
fn optional_text(row: &mut Map<String, Value>, key: &str) -> Parsed<Option<String>> {
    match row.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(_) => Ok(Some(text(row, key)?).filter(|text| !text.is_empty())),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn keys(row: &Map<String, Value>) -> String {
    let names: Vec<String> = row.keys().take(8).map(|key| format!("`{key}`")).collect();
    match names.is_empty() {
        true => "(none)".to_owned(),
        false => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text<T>(text: &str, read: impl Fn(&Path) -> Result<Rows<T>>) -> Result<Rows<T>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl.zst");
        std::fs::write(&path, zstd::encode_all(text.as_bytes(), 3).unwrap()).unwrap();
        read(&path)
    }

    #[track_caller]
    fn says(row: Value, turns: &[(&str, &str, bool)]) {
        let rows = read_text(&row.to_string(), |path| read_conversations(path, false)).unwrap();
        let Example {
            conversation,
            learnt,
        } = &rows.rows[0].1;
        let found: Vec<(&str, &str, bool)> = conversation
            .messages
            .iter()
            .zip(learnt)
            .map(|(message, &learnt)| {
                let text = |key: &str| message[key].as_str().unwrap_or("(none)");
                (text("role"), text("content"), learnt)
            })
            .collect();
        assert_eq!(found, turns);
    }

    #[test]
    fn every_form_is_a_conversation() {
        let plain = [("user", "Hi", true), ("assistant", "Hello", true)];
        says(
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content":
                [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}]}),
            &plain,
        );
        says(
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}),
            &plain,
        );
        says(
            json!({"instruction": "Hi", "input": "", "output": "Hello"}),
            &plain,
        );
        says(
            json!({"instruction": "Add.", "input": "1 1", "output": "2", "system": "Be brief."}),
            &[
                ("system", "Be brief.", true),
                ("user", "Add.\n\n1 1", true),
                ("assistant", "2", true),
            ],
        );
        let asked = [("user", "Hi", false), ("assistant", "Hello", true)];
        says(json!({"prompt": "Hi", "completion": "Hello"}), &asked);
        says(
            json!({"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello"}]}),
            &asked,
        );
        says(
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho", "weight": 0},
                {"role": "user", "content": "Hm"}, {"role": "assistant", "content": "Hello", "weight": 1}]}),
            &[
                ("user", "Hi", true),
                ("assistant", "Ho", false),
                ("user", "Hm", true),
                ("assistant", "Hello", true),
            ],
        );
    }

    #[test]
    fn calls_of_tools_are_read_with_their_arguments() {
        let row = json!({
            "tools": [{"type": "function", "function": {"name": "add"}}],
            "messages": [
                {"role": "user", "content": "1 + 1?"},
                {"role": "assistant", "content": null, "tool_calls": [{"id": "a", "type": "function", "function":
                    {"name": "add", "arguments": "{\"a\": 1}"}}]},
                {"role": "tool", "tool_call_id": "a", "content": "2"},
                {"role": "assistant", "content": "2"},
            ],
        });
        let rows = read_text(&row.to_string(), |path| read_conversations(path, false)).unwrap();
        let conversation = &rows.rows[0].1.conversation;
        assert_eq!(conversation.tools.len(), 1);
        let called = &conversation.messages[1]["tool_calls"][0]["function"];
        assert_eq!(called["arguments"], json!({"a": 1}));
    }

    /// The form of LLaMA-Factory's examples, Glaive's conversations among them.
    #[test]
    fn calls_of_sharegpt_are_calls() {
        let row = json!({
            "tools": "[{\"name\": \"add\", \"description\": \"Adds\", \"parameters\": {\"type\": \"object\"}}]",
            "conversations": [
                {"from": "human", "value": "1 + 1?"},
                {"from": "function_call", "value": "{\"name\": \"add\", \"arguments\": {\"a\": 1}}"},
                {"from": "observation", "value": "2"},
                {"from": "gpt", "value": "Two."},
            ],
        });
        let rows = read_text(&row.to_string(), |path| read_conversations(path, false)).unwrap();
        let conversation = &rows.rows[0].1.conversation;
        assert_eq!(conversation.tools[0]["function"]["name"], "add");
        let messages = &conversation.messages;
        assert_eq!(
            messages[1]["tool_calls"],
            json!([{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}])
        );
        let roles: Vec<_> = messages.iter().map(|message| &message["role"]).collect();
        assert_eq!(roles, ["user", "assistant", "tool", "assistant"]);
        let broken = row
            .to_string()
            .replace("{\\\"name\\\": \\\"add\\\", \\\"arg", "{\\\"arg");
        let error = read_text(&broken, |path| read_conversations(path, false)).unwrap_err();
        assert!(error.to_string().contains("without a `name`"), "{error}");
    }

    #[test]
    fn preferences_share_a_prompt() {
        let row = json!({"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"});
        let rows = read_text(&row.to_string(), |path| read_pairs(path, false)).unwrap();
        let Pair {
            chosen, rejected, ..
        } = &rows.rows[0].1;
        assert_eq!(chosen.learnt, [false, true]);
        assert_eq!(rejected.conversation.messages[1]["content"], "Go away");
        assert_eq!(
            chosen.conversation.messages[0],
            rejected.conversation.messages[0]
        );
        let turn = |role: &str, text: &str| json!({"role": role, "content": text});
        // As in HH-RLHF's later forms: both conversations whole.
        let row = json!({"chosen": [turn("user", "Hi"), turn("assistant", "a"), turn("user", "b"), turn("assistant", "c")],
            "rejected": [turn("user", "Hi"), turn("assistant", "a"), turn("user", "b"), turn("assistant", "d")]});
        let rows = read_text(&row.to_string(), |path| read_pairs(path, false)).unwrap();
        assert_eq!(rows.rows[0].1.chosen.learnt, [false, false, false, true]);
    }

    #[test]
    fn what_is_malformed_is_told_by_file_and_line_or_counted() {
        let good = json!({"prompt": "Hi", "completion": "Hello"}).to_string();
        for (bad, word) in [
            ("{\"text\": \"Hi\"}", "`text`"),
            ("[1]", "no JSON object"),
            ("{\"messages\": [", "no JSON object"),
            ("{\"messages\": []}", "empty"),
            ("{\"messages\": \"Hi\"}", "a text"),
            ("{\"messages\": [{\"content\": \"Hi\"}]}", "`role`"),
            ("{\"messages\": [{\"role\": \"user\"}]}", "`content`"),
            (
                "{\"messages\": [{\"role\": \"user\", \"content\": 7}]}",
                "a number",
            ),
            (
                "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}",
                "nothing",
            ),
            (
                "{\"messages\": [{\"role\": \"assistant\", \"content\": \"Hi\", \"weight\": 0.5}]}",
                "`weight`",
            ),
            (
                "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image_url\"}]}]}",
                "image_url",
            ),
            (
                "{\"conversations\": [{\"from\": \"cat\", \"value\": \"Hi\"}]}",
                "cat",
            ),
            ("{\"instruction\": \"Hi\"}", "`output`"),
            ("{\"completion\": \"Hi\"}", "`prompt`"),
            (
                "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}",
                "preference",
            ),
        ] {
            let text = format!("{good}\n\n{bad}\n{good}\n");
            let error = read_text(&text, |path| read_conversations(path, false)).unwrap_err();
            let error = error.to_string();
            for word in ["rows.jsonl.zst", "line 3", word, "skip_malformed"] {
                assert!(error.contains(word), "{error:?} lacks {word:?}");
            }
            let rows = read_text(&text, |path| read_conversations(path, true)).unwrap();
            assert_eq!((rows.rows.len(), rows.malformed), (2, 1), "{bad}");
            assert_eq!(rows.rows[1].0, 4);
        }
        for (text, word) in [("", "no rows"), ("[]\n", "none of its 1 rows")] {
            let error = read_text(text, |path| read_conversations(path, true)).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
        for (bad, word) in [
            (json!({"prompt": "a", "chosen": "b"}), "`rejected`"),
            (json!({"chosen": "b", "rejected": "c"}), "`prompt`"),
            (
                json!({"prompt": "a", "chosen": "b", "rejected": "b"}),
                "the same",
            ),
            (
                json!({"prompt": "a", "chosen": "b", "rejected": "c", "strength": "very"}),
                "`strength`",
            ),
            (
                json!({"prompt": "a", "chosen": "b", "rejected": "c", "chosen_grades": [1]}),
                "`chosen_grades`",
            ),
            (
                json!({"prompt": "a", "chosen": "b", "rejected": "c", "rejected_grades": {"wit": 1}}),
                "wit",
            ),
            (
                json!({"prompt": "a", "chosen": "b", "rejected": "c", "rejected_grades": {"verbosity": 3}}),
                "level 3",
            ),
        ] {
            let error = read_text(&bad.to_string(), |path| read_pairs(path, false)).unwrap_err();
            let error = error.to_string();
            assert!(error.contains(word) && error.contains("line 1"), "{error}");
        }
        let turn = |role: &str| json!({"role": role, "content": "Hi"});
        for (bad, word) in [
            (json!({"text": "a"}), "`question`"),
            (json!({"prompt": 7}), "a number"),
            (
                json!({"messages": [turn("user"), turn("assistant")]}),
                "assistant's",
            ),
        ] {
            let text = format!("{}\n{bad}\n", json!({"prompt": "Hi"}));
            let error = read_text(&text, |path| read_prompts(path, false)).unwrap_err();
            let error = error.to_string();
            assert!(error.contains(word) && error.contains("line 2"), "{error}");
        }
    }

    #[test]
    fn strengths_and_grades_are_read() {
        let row = json!({"prompt": "Hi", "chosen": "Hello", "rejected": "Go away", "strength": "slightly",
            "chosen_grades": {"verbosity": 2}, "rejected_grades": {"harmlessness": 0, "verbosity": null}});
        let rows = read_text(&row.to_string(), |path| read_pairs(path, false)).unwrap();
        let pair = &rows.rows[0].1;
        assert_eq!(pair.strength, Some(Strength::Slightly));
        assert_eq!(pair.grades[0], [None, Some(2), None, None]);
        assert_eq!(pair.grades[1], [None, None, None, Some(0)]);
    }

    #[test]
    fn what_is_asked_keeps_its_row_for_rules() {
        let row = json!({"question": "2 + 2?", "answer": "#### 4"});
        let rows = read_text(&row.to_string(), |path| read_prompts(path, false)).unwrap();
        let asked = &rows.rows[0].1;
        assert_eq!(asked.conversation.messages[0]["content"], "2 + 2?");
        assert_eq!(asked.row["answer"], "#### 4");
    }
}
