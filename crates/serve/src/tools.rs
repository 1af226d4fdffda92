//! Tools: what may be called, the grammar that a call keeps, and calls found in the text of an answer.
//!
//! The form is Hermes' and Qwen's, which templates that say `<tool_call>` teach:
//! ```text
//! <tool_call>
//! {"name": "weather", "arguments": {"city": "Bern"}}
//! </tool_call>
//! ```
//! An answer that must call (`required`, or a tool by name) is calls and nothing else; one that may (`auto`) is any text until
//! `<tool_call>` stands there, and from there on a whole call. The arguments keep the tool's schema either way.

use russet_engine::guide::Constraint;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{ApiError, ApiResult};
use crate::wire::schema;

/// Begins a call.
pub(crate) const OPEN: &str = "<tool_call>";
/// Between that and the name.
const NAME: &str = "\n{\"name\": \"";
/// Between the name and the arguments.
const ARGUMENTS: &str = "\", \"arguments\": ";
/// Behind the arguments. No JSON has a line end behind a brace and then a `<`, so it is none of theirs.
const CLOSE: &str = "}\n</tool_call>";

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tool {
    pub name: String,
    /// As templates take it.
    pub value: Value,
    schema: String,
}

/// How a request says what stands beside `"type": "function"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// In an object called `function`: `/v1/chat/completions`.
    Nested,
    /// Beside it: `/v1/responses`.
    Flat,
}

impl Form {
    /// What a function's value says beside its type.
    fn function<T: serde::de::DeserializeOwned>(self, value: &Value) -> Result<T, String> {
        let mut fields = value.as_object().cloned().unwrap_or_default();
        match fields.remove("type") {
            Some(Value::String(kind)) if kind == "function" => {}
            _ => return Err("only the type `function` is known here".to_owned()),
        }
        let function = match self {
            Form::Flat => Value::Object(fields),
            Form::Nested => {
                let function = fields
                    .remove("function")
                    .ok_or("missing field `function`")?;
                match fields.keys().next() {
                    None => function,
                    Some(other) => return Err(format!("unknown field `{other}`")),
                }
            }
        };
        T::deserialize(function).map_err(|error| error.to_string())
    }

    /// Where a function's name stands.
    pub fn name(self) -> &'static str {
        match self {
            Form::Nested => "function.name",
            Form::Flat => "name",
        }
    }

    /// The form, for a sentence, with these fields.
    fn shown(self, fields: &str) -> String {
        match self {
            Form::Nested => format!("{{\"type\": \"function\", \"function\": {{{fields}}}}}"),
            Form::Flat => format!("{{\"type\": \"function\", {fields}}}"),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Function {
    name: String,
    description: Option<String>,
    parameters: Option<Value>,
    // Arguments keep their schema either way.
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

impl Tool {
    /// A tool of a request.
    pub fn parse(value: &Value, form: Form) -> ApiResult<Tool> {
        let function = form.function(value).map_err(|error| {
            let form = form.shown("\"name\", \"description\", \"parameters\"");
            ApiError::body(format!("a tool is {form}: {error}"))
        })?;
        let Function {
            name,
            description,
            parameters,
            ..
        } = function;
        let letters = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.is_empty() || name.len() > 64 || !name.chars().all(letters) {
            return Err(ApiError::body(
                "a tool's name has 1 to 64 letters, digits, underscores and dashes",
            ));
        }
        let mut schema = match &parameters {
            None => json!({"type": "object", "properties": {}, "additionalProperties": false}),
            Some(Value::Object(fields)) => Value::Object(fields.clone()),
            Some(_) => {
                return Err(ApiError::body(
                    "a tool's parameters are a schema, an object",
                ));
            }
        };
        // Templates show arguments with `", "` and `": "` and no further blanks, so that is how they are written.
        schema["x-guidance"] = json!({
            "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ",
        });
        if schema.get("type").is_none() {
            schema["type"] = "object".into();
        } else if schema["type"] != "object" {
            return Err(ApiError::body(
                "the type of a tool's parameters is \"object\"",
            ));
        }
        let schema = schema::checked(&schema)?;
        let mut function = json!({"name": name});
        if let Some(description) = description {
            function["description"] = description.into();
        }
        if let Some(parameters) = parameters {
            function["parameters"] = parameters;
        }
        Ok(Tool {
            name,
            value: json!({"type": "function", "function": function}),
            schema,
        })
    }
}

/// Whether tools are to be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    None,
    Auto,
    Required,
    /// The one of this name, once.
    Named(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedFunction {
    name: String,
}

impl Choice {
    /// What `tool_choice` says of these tools.
    pub fn parse(value: Option<&Value>, tools: &[Tool], form: Form) -> ApiResult<Choice> {
        let wrong = |said: &str| Err(ApiError::field("tool_choice", said));
        let choice = match value {
            None if tools.is_empty() => return Ok(Choice::None),
            None => return Ok(Choice::Auto),
            Some(Value::String(word)) => match word.as_str() {
                "none" => return Ok(Choice::None),
                "auto" => Choice::Auto,
                "required" => Choice::Required,
                _ => {
                    return wrong(
                        "tool_choice is \"none\", \"auto\", \"required\" or a function by name",
                    );
                }
            },
            Some(value) => match form.function::<NamedFunction>(value) {
                Ok(function) => Choice::Named(function.name),
                Err(error) => {
                    let form = form.shown("\"name\": …");
                    return wrong(&format!("a tool_choice by name is {form}: {error}"));
                }
            },
        };
        if tools.is_empty() {
            return wrong("tool_choice says how tools are called, but there are none");
        }
        if let Choice::Named(name) = &choice
            && !tools.iter().any(|tool| tool.name == *name)
        {
            return wrong("tool_choice names a function that is none of the tools");
        }
        Ok(choice)
    }
}

/// What an answer must be, in llguidance's dialect of Lark; `open` is how `<tool_call>` stands in the vocabulary.
pub(crate) fn constraint(
    tools: &[Tool],
    choice: &Choice,
    parallel: bool,
    open: Open,
) -> Constraint {
    let meant = |tool: &&Tool| match choice {
        Choice::Named(name) => tool.name == *name,
        _ => true,
    };
    let tools: Vec<&Tool> = tools.iter().filter(meant).collect();
    let calls: Vec<String> = (0..tools.len()).map(|n| format!("call_{n}")).collect();
    let mut lark = String::from("%llguidance {}\n");
    let opening = match open {
        Open::Text => json!(OPEN).to_string(),
        Open::Token => OPEN.to_owned(),
    };
    let several = parallel && !matches!(choice, Choice::Named(_));
    lark += &match (choice, several, open) {
        (Choice::Auto, true, Open::Text) => "start: (lead call)* rest\n".to_owned(),
        (Choice::Auto, false, Open::Text) => "start: rest | lead call\n".to_owned(),
        (Choice::Auto, true, Open::Token) => format!("start: rest ({opening} call rest)*\n"),
        (Choice::Auto, false, Open::Token) => format!("start: rest | rest {opening} call\n"),
        (_, true, _) => format!("start: {opening} call (\"\\n\" {opening} call)*\n"),
        (_, false, _) => format!("start: {opening} call\n"),
    };
    if *choice == Choice::Auto {
        if open == Open::Text {
            // Lazy: it ends with the first `<tool_call>`, which nothing else can then be part of.
            lark += &format!("lead[suffix={opening}]: /(?s:.*)/\n");
        }
        lark += "rest: /(?s:.*)/\n";
    }
    lark += &format!("call: {}\n", calls.join(" | "));
    for (number, tool) in tools.iter().enumerate() {
        let begin = json!(format!("{NAME}{}{ARGUMENTS}", tool.name));
        lark += &format!(
            "call_{number}: {begin} arguments_{number} {}\n",
            json!(CLOSE)
        );
        lark += &format!("arguments_{number}: %json {}\n", tool.schema);
    }
    Constraint::Grammar(lark)
}

/// How the mark that begins a call stands in a vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Open {
    /// As text.
    Text,
    /// As a control token.
    Token,
}

/// What a piece of text has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Text of the answer.
    Content(String),
    /// A call has begun.
    Call(String),
    /// The arguments of the last call go on.
    Arguments(String),
}

/// Finds calls in a text that comes in pieces.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    held: String,
    state: State,
    /// How many have begun.
    pub begun: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Content,
    Name,
    Arguments,
    /// Behind a call: blanks until something else comes are no content.
    Between,
}

impl Calls {
    /// Takes more text.
    pub fn push(&mut self, text: &str, out: &mut Vec<Piece>) {
        self.held += text;
        loop {
            match self.state {
                State::Content => match self.held.split_once(OPEN) {
                    Some((before, after)) => {
                        // A line end before a call belongs to the call.
                        content(out, before.strip_suffix('\n').unwrap_or(before));
                        self.held = after.to_owned();
                        self.state = State::Name;
                    }
                    None => {
                        let keep = begins(&self.held, &[OPEN, "\n<tool_call>"]);
                        let tail = self.held.split_off(keep);
                        content(out, &std::mem::replace(&mut self.held, tail));
                        return;
                    }
                },
                State::Between => {
                    let rest = self.held.trim_start();
                    if rest.is_empty() {
                        return;
                    }
                    if let Some(after) = rest.strip_prefix(OPEN) {
                        self.held = after.to_owned();
                        self.state = State::Name;
                    } else if OPEN.starts_with(rest) {
                        return;
                    } else {
                        self.held = rest.to_owned();
                        self.state = State::Content;
                    }
                }
                State::Name => {
                    let Some(rest) = self.held.strip_prefix(NAME) else {
                        if NAME.starts_with(&*self.held) {
                            return;
                        }
                        // Not guided, or cut short: it is text after all.
                        content(out, OPEN);
                        self.state = State::Content;
                        continue;
                    };
                    let Some((name, after)) = rest.split_once(ARGUMENTS) else {
                        return;
                    };
                    out.push(Piece::Call(name.to_owned()));
                    self.begun += 1;
                    self.held = after.to_owned();
                    self.state = State::Arguments;
                }
                State::Arguments => match self.held.split_once(CLOSE) {
                    Some((before, after)) => {
                        arguments(out, before);
                        self.held = after.to_owned();
                        self.state = State::Between;
                    }
                    None => {
                        let keep = begins(&self.held, &[CLOSE]);
                        let tail = self.held.split_off(keep);
                        arguments(out, &std::mem::replace(&mut self.held, tail));
                        return;
                    }
                },
            }
        }
    }

    /// The end of the text: what was held back.
    pub fn finish(&mut self, out: &mut Vec<Piece>) {
        let held = std::mem::take(&mut self.held);
        match self.state {
            State::Content => content(out, &held),
            State::Between if held.trim_start().is_empty() => {}
            State::Between => content(out, held.trim_start()),
            State::Name => content(out, &format!("{OPEN}{held}")),
            State::Arguments => arguments(out, &held),
        }
    }
}

fn content(out: &mut Vec<Piece>, text: &str) {
    if !text.is_empty() {
        out.push(Piece::Content(text.to_owned()));
    }
}

fn arguments(out: &mut Vec<Piece>, text: &str) {
    if !text.is_empty() {
        out.push(Piece::Arguments(text.to_owned()));
    }
}

/// Where the longest tail of `text` begins that one of `marks` may go on from; its length where none does.
fn begins(text: &str, marks: &[&str]) -> usize {
    let tails = text.char_indices().map(|(at, _)| at);
    let mut open = tails.filter(|&at| marks.iter().any(|mark| mark.starts_with(&text[at..])));
    open.next().unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces put together: content, and calls with their arguments.
    fn check(text: &str, content: &str, calls: &[(&str, &str)]) {
        // Whole, a character at a time, and in twos.
        for size in [usize::MAX, 1, 2] {
            let (mut parser, mut pieces) = (Calls::default(), Vec::new());
            let chars: Vec<char> = text.chars().collect();
            for piece in chars.chunks(size.min(chars.len().max(1))) {
                parser.push(&piece.iter().collect::<String>(), &mut pieces);
            }
            parser.finish(&mut pieces);
            let (mut said, mut called) = (String::new(), Vec::<(String, String)>::new());
            for piece in pieces {
                match piece {
                    Piece::Content(text) => said += &text,
                    Piece::Call(name) => called.push((name, String::new())),
                    Piece::Arguments(text) => called.last_mut().unwrap().1 += &text,
                }
            }
            let wanted = calls
                .iter()
                .map(|(n, a)| ((*n).to_owned(), (*a).to_owned()));
            assert_eq!(
                (said.as_str(), called),
                (content, wanted.collect()),
                "{text:?} by {size}"
            );
        }
    }

    #[test]
    fn calls_are_found_in_any_pieces() {
        check("no calls < at all", "no calls < at all", &[]);
        let one = "<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": {}}}\n</tool_call>";
        check(one, "", &[("a", "{\"x\": {}}")]);
        check(&format!("Well:\n{one}"), "Well:", &[("a", "{\"x\": {}}")]);
        check(
            &format!("{one}\n{one}\n"),
            "",
            &[("a", "{\"x\": {}}"), ("a", "{\"x\": {}}")],
        );
        check(
            &format!("{one}\n then <"),
            "then <",
            &[("a", "{\"x\": {}}")],
        );
        check(&format!("é\n\n{one} é"), "é\né", &[("a", "{\"x\": {}}")]);
        // A text in the arguments that looks like the end.
        let text = r#"{"x": "}\n</tool_call>"}"#;
        check(
            &format!("<tool_call>\n{{\"name\": \"b\", \"arguments\": {text}}}\n</tool_call>"),
            "",
            &[("b", text)],
        );
    }

    #[test]
    fn what_is_cut_short_is_told_as_far_as_it_came() {
        check("<tool_ca", "<tool_ca", &[]);
        check("<tool_call>\n{\"na", "<tool_call>\n{\"na", &[]);
        check("<tool_call>no", "<tool_call>no", &[]);
        check(
            "<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": 1",
            "",
            &[("a", "{\"x\": 1")],
        );
        check(
            "<tool_call>\n{\"name\": \"a\", \"arguments\": {}}\n</tool",
            "",
            &[("a", "{}}\n</tool")],
        );
    }

    #[test]
    fn tools_that_cannot_be_called_are_refused() {
        for (tool, says) in [
            (json!({"type": "function"}), "missing field"),
            (
                json!({"type": "retrieval", "function": {"name": "a"}}),
                "type `function`",
            ),
            (
                json!({"type": "function", "function": {"name": "a"}, "x": 1}),
                "unknown field `x`",
            ),
            (
                json!({"type": "function", "function": {"name": "a b"}}),
                "name",
            ),
            (
                json!({"type": "function", "function": {"name": "a", "parameters": []}}),
                "schema",
            ),
            (
                json!({"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}),
                "\"object\"",
            ),
            (
                json!({"type": "function", "function": {"name": "a", "extra": 1}}),
                "extra",
            ),
        ] {
            let said = Tool::parse(&tool, Form::Nested)
                .unwrap_err()
                .json()
                .to_string();
            assert!(said.contains(&says.replace('"', "\\\"")), "{tool}: {said}");
        }
        let nested = |name: &str| json!({"type": "function", "function": {"name": name}});
        let flat = |name: &str| json!({"type": "function", "name": name});
        let tool = Tool::parse(&nested("a"), Form::Nested).unwrap();
        assert_eq!(Tool::parse(&flat("a"), Form::Flat).unwrap(), tool);
        assert!(Tool::parse(&flat("a"), Form::Nested).is_err());
        assert!(Tool::parse(&nested("a"), Form::Flat).is_err());
        let tools = [tool];
        for (form, named) in [
            (Form::Nested, &nested as &dyn Fn(&str) -> Value),
            (Form::Flat, &flat),
        ] {
            let parse = |value: Option<Value>, tools| Choice::parse(value.as_ref(), tools, form);
            assert_eq!(parse(None, &tools).unwrap(), Choice::Auto);
            assert_eq!(parse(None, &[]).unwrap(), Choice::None);
            assert!(parse(Some(json!("auto")), &[]).is_err());
            assert!(parse(Some(json!("any")), &tools).is_err());
            let choice = parse(Some(named("a")), &tools).unwrap();
            assert_eq!(choice, Choice::Named("a".to_owned()));
            assert!(parse(Some(named("b")), &tools).is_err());
        }
    }
}
