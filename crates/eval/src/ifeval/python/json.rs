//! Whether `json.loads` takes a text: JSON as Python reads it, with `NaN`, `Infinity` and lone surrogates.

/// Values inside values; Python's scanner ends with an error of another kind a little beyond.
const DEPTH: usize = 980;

/// Digits of an integer that Python converts at most.
const DIGITS: usize = 4300;

/// Whether the whole text is one value.
pub fn is_json(text: &str) -> bool {
    let mut scanner = Scanner {
        bytes: text.as_bytes(),
        at: 0,
    };
    scanner.space();
    let whole = scanner.value(0).is_some();
    scanner.space();
    whole && scanner.at == text.len()
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn eat(&mut self, word: &[u8]) -> Option<()> {
        self.bytes[self.at..]
            .starts_with(word)
            .then(|| self.at += word.len())
    }

    fn value(&mut self, depth: usize) -> Option<()> {
        if depth > DEPTH {
            return None;
        }
        match self.peek()? {
            b'"' => self.string(),
            b'{' => self.members(depth, b'}', true),
            b'[' => self.members(depth, b']', false),
            b'n' => self.eat(b"null"),
            b't' => self.eat(b"true"),
            b'f' => self.eat(b"false"),
            b'N' => self.eat(b"NaN"),
            b'I' => self.eat(b"Infinity"),
            b'-' if self.eat(b"-Infinity").is_some() => Some(()),
            _ => self.number(),
        }
    }

    /// An object or an array, from its opening bracket on.
    fn members(&mut self, depth: usize, close: u8, named: bool) -> Option<()> {
        self.at += 1;
        self.space();
        if self.eat(&[close]).is_some() {
            return Some(());
        }
        loop {
            if named {
                (self.peek()? == b'"').then_some(())?;
                self.string()?;
                self.space();
                self.eat(b":")?;
                self.space();
            }
            self.value(depth + 1)?;
            self.space();
            if self.eat(&[close]).is_some() {
                return Some(());
            }
            self.eat(b",")?;
            self.space();
        }
    }

    fn string(&mut self) -> Option<()> {
        self.at += 1;
        loop {
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Some(());
                }
                b'\\' => {
                    let escape = *self.bytes.get(self.at + 1)?;
                    self.at += 2;
                    match escape {
                        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {}
                        b'u' => {
                            let digits = self.bytes.get(self.at..self.at + 4)?;
                            digits.iter().all(u8::is_ascii_hexdigit).then_some(())?;
                            self.at += 4;
                        }
                        _ => return None,
                    }
                }
                0..0x20 => return None,
                _ => self.at += 1,
            }
        }
    }

    fn digits(&mut self) -> usize {
        let first = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        self.at - first
    }

    /// A number; what cannot belong to it is left to whoever comes next, as in `1.` and `01`.
    fn number(&mut self) -> Option<()> {
        let _ = self.eat(b"-");
        let mut integer = 1;
        if self.eat(b"0").is_none() {
            integer = self.digits();
            (integer > 0).then_some(())?;
        }
        let whole = self.at;
        if self.eat(b".").is_some() && self.digits() == 0 {
            self.at = whole;
        }
        let before = self.at;
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            if self.digits() == 0 {
                self.at = before;
            }
        }
        (self.at > whole || integer <= DIGITS).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_python_takes() {
        for text in [
            "1",
            " [1, -0, 2.5e3, 1E+2, 0.0] ",
            "{}",
            "[]",
            r#"{"a": {"b": [null, true, false]}}"#,
            "NaN",
            "[-Infinity, Infinity]",
            r#""\ud800""#,
            r#"{"a": 1, "a": 2}"#,
            "1e999",
            "\"é\u{7f}\"",
        ] {
            assert!(is_json(text), "{text}");
        }
        for text in [
            "",
            "01",
            "1.",
            ".5",
            "+1",
            "[1,]",
            "{,}",
            "{'a': 1}",
            "{\"a\" 1}",
            "\"a\nb\"",
            r#""\x""#,
            r#""\u12g4""#,
            "nul",
            "-",
            "\u{feff}1",
            "1 2",
            "[1",
            "\u{a0}1",
            "-NaN",
            "1e",
            "{1: 2}",
            "\"a",
        ] {
            assert!(!is_json(text), "{text}");
        }
        assert!(is_json(&"9".repeat(4300)) && !is_json(&"9".repeat(4301)));
        assert!(is_json(&("9".repeat(4301) + ".5")));
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(is_json(&nested(900)) && !is_json(&nested(100_000)));
    }
}
