//! A Rust source cut into what is code, what is comment and what is string, line by line.
//!
//! Enough of the lexical grammar to tell `unsafe` the keyword from `unsafe` the word: line and nested block comments, string, byte, C and
//! raw literals, characters against lifetimes. It knows nothing of tokens or syntax.

/// One line, cut up.
#[derive(Debug, Default, PartialEq)]
pub struct Line {
    /// The code, with comments gone and every string literal emptied to `""`.
    pub code: String,
    /// The text of its comments.
    pub comment: String,
    /// The contents of string literals that begin on it.
    pub strings: Vec<String>,
}

impl Line {
    /// Identifiers and keywords of the code.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        self.code
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|word| !word.is_empty())
    }
}

/// Cuts a source into its lines.
pub fn lines(source: &str) -> Vec<Line> {
    let text: Vec<char> = source.chars().collect();
    let mut out = vec![Line::default()];
    let mut at = 0;
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    while at < text.len() {
        let here = text[at];
        let next = text.get(at + 1).copied().unwrap_or('\0');
        let line = out.last_mut().expect("there is always a last line");
        match here {
            '\n' => {
                out.push(Line::default());
                at += 1;
            }
            '/' if next == '/' => {
                while at < text.len() && text[at] != '\n' {
                    line.comment.push(text[at]);
                    at += 1;
                }
            }
            '/' if next == '*' => at = block_comment(&text, at, &mut out),
            'r' if at == 0 || !is_word(text[at - 1]) || raw_prefix(&text, at) => {
                match raw_string_start(&text, at) {
                    Some((start, hashes)) => at = raw_string(&text, start, hashes, &mut out),
                    None => {
                        line.code.push(here);
                        at += 1;
                    }
                }
            }
            '"' => at = string(&text, at, &mut out),
            '\'' => at = character_or_lifetime(&text, at, line),
            _ => {
                line.code.push(here);
                at += 1;
            }
        }
    }
    out
}

/// Is this `r` the second letter of `br` or `cr`, standing alone?
fn raw_prefix(text: &[char], at: usize) -> bool {
    let before = at.checked_sub(2).map(|index| text[index]);
    matches!(text[at - 1], 'b' | 'c') && !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
}

/// `r##"`: where the contents start and how many hashes there are; `None` for `r#type` and plain words.
fn raw_string_start(text: &[char], at: usize) -> Option<(usize, usize)> {
    let hashes = text[at + 1..].iter().take_while(|&&c| c == '#').count();
    (text.get(at + 1 + hashes) == Some(&'"')).then_some((at + 2 + hashes, hashes))
}

fn raw_string(text: &[char], start: usize, hashes: usize, out: &mut Vec<Line>) -> usize {
    let mut end = start;
    let closes = |end: usize| {
        text[end] == '"'
            && text[end + 1..]
                .iter()
                .take(hashes)
                .filter(|&&c| c == '#')
                .count()
                == hashes
    };
    while end < text.len() && !closes(end) {
        end += 1;
    }
    push_string(text, start, end, out);
    (end + 1 + hashes).min(text.len())
}

fn string(text: &[char], at: usize, out: &mut Vec<Line>) -> usize {
    let mut end = at + 1;
    while end < text.len() && text[end] != '"' {
        end += if text[end] == '\\' { 2 } else { 1 };
    }
    let end = end.min(text.len());
    push_string(text, at + 1, end, out);
    (end + 1).min(text.len())
}

/// Notes a literal on the line where it begins and opens the further lines it spans.
fn push_string(text: &[char], start: usize, end: usize, out: &mut Vec<Line>) {
    let contents: String = text[start..end].iter().collect();
    let more = contents.matches('\n').count();
    let line = out.last_mut().expect("there is always a last line");
    line.code.push_str("\"\"");
    line.strings.push(contents);
    out.extend((0..more).map(|_| Line::default()));
}

fn block_comment(text: &[char], mut at: usize, out: &mut Vec<Line>) -> usize {
    let mut depth = 0;
    while at < text.len() {
        match (text[at], text.get(at + 1)) {
            ('/', Some('*')) => {
                depth += 1;
                at += 2;
            }
            ('*', Some('/')) => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    break;
                }
            }
            ('\n', _) => {
                out.push(Line::default());
                at += 1;
            }
            (c, _) => {
                out.last_mut()
                    .expect("there is always a last line")
                    .comment
                    .push(c);
                at += 1;
            }
        }
    }
    at
}

/// `'x'` and `'\u{1F}'` are skipped; the quote of `'a` is kept as code.
fn character_or_lifetime(text: &[char], at: usize, line: &mut Line) -> usize {
    if text.get(at + 1) == Some(&'\\') {
        let mut end = at + 3; // past the escaped character, which may be a quote
        while end < text.len() && text[end] != '\'' {
            end += 1;
        }
        return end + 1;
    }
    if text.get(at + 2) == Some(&'\'') {
        return at + 3;
    }
    line.code.push('\'');
    at + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(source: &str, words: &[&str]) {
        let lines = lines(source);
        assert_eq!(
            lines.len(),
            source.matches('\n').count() + 1,
            "a line for each line of {source:?}"
        );
        assert_eq!(
            lines.iter().flat_map(Line::words).collect::<Vec<_>>(),
            words,
            "{source}"
        );
    }

    #[test]
    fn only_code_is_code() {
        check("a // b\nc", &["a", "c"]);
        check("a /* b /* c */ d\n e */ f", &["a", "f"]);
        check(r#"a "b \" c" d"#, &["a", "d"]);
        check("a r#\"b \" c\"# d", &["a", "d"]);
        check("br\"b\\\" c br##\"x\"# y\"## d", &["b", "c", "b", "d"]);
        check("a r#type b", &["a", "r", "type", "b"]);
        check("var\"x\" y", &["var", "y"]);
        check("'a' b '\\'' c '\"' d '\\u{1F}' e", &["b", "c", "d", "e"]);
        check("f<'a>(x: &'a str) 'x'", &["f", "a", "x", "a", "str"]);
        check("a \"b\nc\" d", &["a", "d"]);
        check("a \"b", &["a"]);
        check("a r#\"b", &["a"]);
        check("a /* b", &["a"]);
        check("a '\\", &["a"]);
    }

    #[test]
    fn comments_and_strings_are_kept_beside() {
        let lines = lines("x(\"npm\"); // SAFETY: fine\n");
        assert_eq!(lines[0].strings, ["npm"]);
        assert!(lines[0].comment.contains("SAFETY: fine"));
        assert_eq!(lines[0].code.trim(), "x(\"\");");
    }
}
