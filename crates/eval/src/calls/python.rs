//! Calls written in Python: names, keyword arguments, and literals as values.
//!
//! A bare name as a value is its text, as the leaderboard reads it; a call as a value is its text too. Positional arguments,
//! operators and all else make a text no call.

use serde_json::{Map, Value};

use super::Call;

/// How deep lists and dictionaries may nest.
const DEPTH: usize = 64;

/// One call, several apart by commas, lines or semicolons, or a list of them, apart by commas.
pub(super) fn calls(text: &str) -> Option<Vec<Call>> {
    let mut parser = Parser { text, at: 0 };
    let list = parser.take("[");
    let mut calls = Vec::new();
    loop {
        parser.space();
        if list && parser.take("]") {
            break;
        }
        if parser.rest().is_empty() {
            if list {
                return None;
            }
            break;
        }
        calls.push(parser.call(0)?);
        let end = parser.at;
        parser.space();
        let line = text[end..parser.at].contains('\n');
        let apart = match list {
            true => parser.take(",") || parser.rest().starts_with(']'),
            false => parser.take(",") || parser.take(";") || line || parser.rest().is_empty(),
        };
        if !apart {
            return None;
        }
    }
    parser.space();
    (parser.rest().is_empty() && !calls.is_empty()).then_some(calls)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    /// Whether this comes next, after space; it is then behind us.
    fn take(&mut self, what: &str) -> bool {
        self.space();
        let next = self.rest().starts_with(what);
        self.at += if next { what.len() } else { 0 };
        next
    }

    /// A name, dotted where that is allowed.
    fn name(&mut self, dotted: bool) -> Option<&'a str> {
        self.space();
        let rest = self.rest();
        let part = |c: char| c.is_alphanumeric() || c == '_' || (dotted && c == '.');
        let end = rest.find(|c| !part(c)).unwrap_or(rest.len());
        let name = &rest[..end];
        let begins = name.starts_with(|c: char| c.is_alphabetic() || c == '_');
        self.at += if begins { end } else { 0 };
        begins.then_some(name)
    }

    fn call(&mut self, depth: usize) -> Option<Call> {
        let name = self.name(true)?.to_owned();
        let mut arguments = Map::new();
        if !self.take("(") {
            return None;
        }
        while !self.take(")") {
            let key = self.name(false)?.to_owned();
            if !self.take("=") {
                return None;
            }
            let value = self.value(depth + 1)?;
            arguments.insert(key, value);
            if !self.take(",") && !self.rest().trim_start().starts_with(')') {
                return None;
            }
        }
        Some(Call { name, arguments })
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > DEPTH {
            return None;
        }
        self.space();
        match self.rest().chars().next()? {
            '[' => self.list("[", "]", depth),
            '(' => self.list("(", ")", depth),
            '{' => self.dictionary(depth),
            '"' | '\'' => self.text_value(false).map(Value::String),
            'r' | 'R' if self.rest()[1..].starts_with(['"', '\'']) => {
                self.at += 1;
                self.text_value(true).map(Value::String)
            }
            '-' | '+' | '.' | '0'..='9' => self.number(),
            _ => {
                let start = self.at;
                let name = self.name(true)?;
                if self.rest().starts_with('(') {
                    self.at = start;
                    self.call(depth)?;
                    return Some(self.text[start..self.at].into());
                }
                Some(match name {
                    "True" | "true" => true.into(),
                    "False" | "false" => false.into(),
                    "None" | "null" => Value::Null,
                    name => name.into(),
                })
            }
        }
    }

    fn list(&mut self, open: &str, close: &str, depth: usize) -> Option<Value> {
        self.take(open);
        let (mut list, mut comma) = (Vec::new(), true);
        while !self.take(close) {
            if !comma {
                return None;
            }
            list.push(self.value(depth + 1)?);
            comma = self.take(",");
        }
        // One value in parentheses without a comma is that value.
        match (open, list.len(), comma) {
            ("(", 1, false) => list.pop(),
            _ => Some(list.into()),
        }
    }

    fn dictionary(&mut self, depth: usize) -> Option<Value> {
        self.take("{");
        let (mut all, mut comma) = (Map::new(), true);
        while !self.take("}") {
            if !comma {
                return None;
            }
            let key = match self.value(depth + 1)? {
                Value::String(key) => key,
                Value::Number(key) => key.to_string(),
                _ => return None,
            };
            if !self.take(":") {
                return None;
            }
            let value = self.value(depth + 1)?;
            all.insert(key, value);
            comma = self.take(",");
        }
        Some(all.into())
    }

    fn number(&mut self) -> Option<Value> {
        let rest = self.rest();
        let mut before = ' ';
        let part = |c: char| {
            let sign = matches!(c, '+' | '-') && matches!(before, ' ' | 'e' | 'E');
            let part = sign || c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '_');
            before = c;
            part
        };
        let end = rest.chars().take_while({
            let mut part = part;
            move |c| part(*c)
        });
        let end: usize = end.map(char::len_utf8).sum();
        let digits = rest[..end].replace('_', "");
        let digits = digits.strip_prefix('+').unwrap_or(&digits);
        self.at += end;
        match digits.parse::<i64>() {
            Ok(whole) => Some(whole.into()),
            Err(_) => {
                let number: f64 = digits.parse().ok()?;
                serde_json::Number::from_f64(number).map(Value::Number)
            }
        }
    }

    fn text_value(&mut self, raw: bool) -> Option<String> {
        let rest = self.rest();
        let quote = rest.chars().next()?;
        let three: String = [quote; 3].iter().collect();
        let end = match rest.starts_with(&three) {
            true => three,
            false => quote.to_string(),
        };
        self.at += end.len();
        let mut text = String::new();
        while !self.rest().starts_with(&end) {
            let c = self.rest().chars().next()?;
            self.at += c.len_utf8();
            if c != '\\' || raw {
                text.push(c);
                continue;
            }
            let escaped = self.rest().chars().next()?;
            self.at += escaped.len_utf8();
            match escaped {
                'n' => text.push('\n'),
                't' => text.push('\t'),
                'r' => text.push('\r'),
                '0' => text.push('\0'),
                '\n' => {}
                '\\' | '\'' | '"' => text.push(escaped),
                'x' | 'u' => {
                    let count = if escaped == 'x' { 2 } else { 4 };
                    let digits = self.rest().get(..count)?;
                    text.push(char::from_u32(u32::from_str_radix(digits, 16).ok()?)?);
                    self.at += count;
                }
                other => text.extend(['\\', other]),
            }
        }
        self.at += end.len();
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn calls_are_read_as_python_writes_them() {
        let check = |text: &str, expected: &[(&str, Value)]| {
            let found = calls(text).map(|calls| {
                let one = |call: Call| (call.name, Value::Object(call.arguments));
                calls.into_iter().map(one).collect::<Vec<_>>()
            });
            let expected = expected
                .iter()
                .map(|(name, value)| (name.to_string(), value.clone()));
            assert_eq!(found, Some(expected.collect()), "{text}");
        };
        check(
            "[math.hypot(x=4, y=-5.5e1,)]",
            &[("math.hypot", json!({"x": 4, "y": -55.0}))],
        );
        check(
            "f(a=\"it's\", b='x\\n\\u00e9', c=[1, (2, 3)], d={'k': True, 2: None}, e=unit)",
            &[(
                "f",
                json!({"a": "it's", "b": "x\né", "c": [1, [2, 3]], "d": {"k": true, "2": null}, "e": "unit"}),
            )],
        );
        for apart in ["\n", ", ", ";", " ;\n"] {
            let text = format!("f(a=1){apart}g()");
            check(&text, &[("f", json!({"a": 1})), ("g", json!({}))]);
        }
        check("[f(), g(),\n]", &[("f", json!({})), ("g", json!({}))]);
        check(
            "f(a=g(b=1), c=(2))",
            &[("f", json!({"a": "g(b=1)", "c": 2}))],
        );
        check("f(a=1_000)", &[("f", json!({"a": 1000}))]);
        for text in [
            "",
            "[]",
            "f",
            "f(1)",
            "f(a=1",
            "f(a=1 b=2)",
            "I call f(a=1)",
            "[f(a=1)",
            "f(a=[1 2])",
            "f(a=1) g(b=2)",
            "[f(a=1) g(b=2)]",
            "[f(a=1)\ng(b=2)]",
            "f(a='x)",
        ] {
            assert_eq!(calls(text), None, "{text}");
        }
        for deep in ["[", "(", "{1:", "g(b="] {
            assert_eq!(calls(&format!("f(a={})", deep.repeat(50_000))), None);
        }
    }
}
