//! Python's `re` on text: the reference's patterns verbatim, and keywords that it uses as patterns without escaping.
//!
//! A backtracking matcher over characters, because that is what decides in Python: which alternative is tried first, what
//! a group holds, where an empty match may stand. `\w`, `\s`, `\b` and letter case are Python's and not the `regex` crate's
//! (whose `\w` takes combining marks and whose case folding keeps `i` and `ı` apart); compiling takes microseconds, where
//! Unicode classes of an automaton take milliseconds a keyword. Matching that backtracks without end, which in Python
//! hangs, is an error here.
//!
//! Left out: bytes patterns, locales and `\N{name}`, which is refused.

mod class;
mod machine;
mod parse;
mod program;

pub use class::is_decimal;

use machine::Machine;
use program::{Op, Program};

/// Why a pattern is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadPattern(pub String);

/// A search that was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("matching backtracks without end")]
pub struct Endless;
/// A compiled pattern.
#[derive(Debug)]
pub struct Regex {
    program: Program,
}

/// Where a pattern matched.
#[derive(Clone, Debug)]
pub struct Match {
    pub start: usize,
    pub end: usize,
    slots: Vec<Option<usize>>,
}

impl Match {
    /// What a group holds; 0 is the whole.
    pub fn group(&self, group: usize) -> Option<(usize, usize)> {
        match group {
            0 => Some((self.start, self.end)),
            _ => Some((self.slots[2 * group - 2]?, self.slots[2 * group - 1]?)),
        }
    }
}

impl Regex {
    /// `re.compile(pattern)`; flags stand in the pattern, as in `(?i)` before it.
    pub fn new(pattern: &str) -> Result<Regex, BadPattern> {
        let program = program::compile(pattern)?;
        Ok(Regex { program })
    }

    /// Groups that count.
    pub fn groups(&self) -> usize {
        self.program.groups
    }

    /// `search`: the first match.
    pub fn search(&self, text: &[char]) -> Result<Option<Match>, Endless> {
        self.find(text, 0, false)
    }

    /// `match`: at the beginning only.
    pub fn match_start(&self, text: &[char]) -> Result<Option<Match>, Endless> {
        let mut machine = Machine::new(&self.program, text);
        machine.try_at(0, false)
    }

    /// `finditer`.
    pub fn find_all(&self, text: &[char]) -> Result<Vec<Match>, Endless> {
        let mut all = Vec::new();
        let (mut from, mut must_advance) = (0, false);
        while let Some(found) = self.find(text, from, must_advance)? {
            from = found.end;
            // Behind an empty match a longer one may begin at the same place, but no second empty one.
            must_advance = found.start == found.end;
            all.push(found);
        }
        Ok(all)
    }

    /// `sub`; `template` knows `\0` (the whole) to `\9`.
    pub fn replace_all(&self, text: &[char], template: &str) -> Result<Vec<char>, Endless> {
        let found = self.find_all(text)?;
        if found.is_empty() {
            return Ok(text.to_vec());
        }
        let (mut out, mut copied) = (Vec::with_capacity(text.len() + 2 * found.len()), 0);
        for one in &found {
            out.extend_from_slice(&text[copied..one.start]);
            let mut pieces = template.chars();
            while let Some(c) = pieces.next() {
                match (
                    c,
                    pieces.as_str().chars().next().and_then(|c| c.to_digit(10)),
                ) {
                    ('\\', Some(group)) => {
                        pieces.next();
                        if let Some((start, end)) = one.group(group as usize) {
                            out.extend_from_slice(&text[start..end]);
                        }
                    }
                    _ => out.push(c),
                }
            }
            copied = one.end;
        }
        out.extend_from_slice(&text[copied..]);
        Ok(out)
    }

    fn find(
        &self,
        text: &[char],
        from: usize,
        must_advance: bool,
    ) -> Result<Option<Match>, Endless> {
        let mut machine = Machine::new(&self.program, text);
        for start in from..=text.len() {
            // Most places fail at the first character, which needs no machine.
            if let Op::One(class) = &self.program.ops[0]
                && !text.get(start).is_some_and(|c| class.takes(*c))
            {
                continue;
            }
            if let Some(found) = machine.try_at(start, must_advance && start == from)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chars(text: &str) -> Vec<char> {
        text.chars().collect()
    }

    /// `re.findall` as the whole matches.
    fn all(pattern: &str, text: &str) -> Vec<String> {
        let text = chars(text);
        let found = Regex::new(pattern).unwrap().find_all(&text).unwrap();
        found
            .iter()
            .map(|one| text[one.start..one.end].iter().collect())
            .collect()
    }

    #[test]
    fn matches_what_python_matches() {
        // (pattern, text, [m.group() for m in re.finditer(pattern, text)])
        let cases: &[(&str, &str, &[&str])] = &[
            (r"a|ab", "abab", &["a", "a"]),
            (r"a*", "baac", &["", "aa", "", ""]),
            (r"a*?", "aa", &["", "a", "", "a", ""]),
            (r"(?:a|b)*?c", "abcbc", &["abc", "bc"]),
            (r"(a)|b", "ab", &["a", "b"]),
            (r"(\w)\1", "aabbc", &["aa", "bb"]),
            (r"(?i)(\w)\1", "aAbB", &["aA", "bB"]),
            (r"(?<=a)b", "abcb", &["b"]),
            (r"(?<!a)b", "abcb", &["b"]),
            (r"a(?!b)", "abac", &["a"]),
            (r"a++b", "aab", &["aab"]),
            (r"a++ab", "aab", &[]),
            (r"(?>a|ab)c", "abc", &[]),
            (r"(a)?b(?(1)c|d)", "abc bd abd", &["abc", "bd", "bd"]),
            (r"x{2,3}", "xxxxx", &["xxx", "xx"]),
            (r"x{,2}y", "xxxy", &["xxy"]),
            (r"x{a}", "x{a}", &["x{a}"]),
            (r"[]a]+", "]a[", &["]a"]),
            (r"[^\W\d_]+", "ab1c_d", &["ab", "c", "d"]),
            (r"[a-]+", "a-b", &["a-"]),
            (r"(?m)^.*$", "ab\n\ncd", &["ab", "", "cd"]),
            (r"(?m)^\s*-.*$", "-a\n\n -b", &["-a", "\n -b"]),
            (r".$", "ab\n", &["b"]),
            (r".\Z", "ab\n", &[]),
            (r"(?s)a.b", "a\nb", &["a\nb"]),
            (r"(?x) a b # c", "ab", &["ab"]),
            (r"\bé\w*", "été Été", &["été"]),
            (r"(?i)é\w*", "Été", &["Été"]),
            (r"(?i)straße", "STRASSE STRAẞE", &["STRAẞE"]),
            (r"(?i)i", "Iıİi", &["I", "ı", "İ", "i"]),
            (r"(?i)[^k]", "kK\u{212a}x", &["x"]),
            (r"(?i)[H-J]+", "hıJ", &["hıJ"]),
            (r"(?i:A)b", "ab aB", &["ab"]),
            (r"\d+", "3٣ ²", &["3٣"]),
            (r"(?a)\w+", "aé", &["a"]),
            (r"(a*)*", "b", &["", ""]),
            (r"(?:a?)*?b", "aab", &["aab"]),
            (r"(?:(a)|b)*", "abx", &["ab", "", ""]),
            (r"\x41\u0042\103", "ABC", &["ABC"]),
            (
                r#"(?P<q>["']).*?(?P=q)"#,
                r#"'a"' "b""#,
                &["'a\"'", "\"b\""],
            ),
            (r"c(?#comment)d", "cd", &["cd"]),
            (r"", "ab", &["", "", ""]),
            (r"|a", "a", &["", "a", ""]),
            (r"\B", "", &[]),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(all(pattern, text), *expected, "{pattern:?} on {text:?}");
        }
    }

    #[test]
    fn refuses_what_python_refuses() {
        for pattern in [
            "(", ")", "[", "a**", "*a", "+", "?", "a{2}{3}", "(?P<a", "(?P=a)", "\\1", "(\\1)",
            "\\q", "\\", "[b-a]", "[\\w-z]", "x(?i)y", "(?z)", "(?<=a*)b", "a{3,2}", "(?L)a", "^*",
            "(?(1)a)", "\\N{DOG}", "[\\8]", "(?", "(?-:a)", "(?i-)",
        ] {
            assert!(Regex::new(pattern).is_err(), "{pattern:?}");
        }
        // Neither time nor memory for what a stranger may write.
        assert!(Regex::new("((((a|b){1000}){1000}){1000})").is_err());
        assert!(Regex::new("((((((){99999}){99999}){99999}){99999}){99999})").is_err());
        assert!(Regex::new(&"(".repeat(100_000)).is_err());
        let endless = Regex::new("(a|aa)*(a|aa)*(a|aa)*c").unwrap();
        assert!(endless.search(&chars(&"a".repeat(200))).is_err());
    }

    /// What a pattern finds when it keeps nothing of where it failed.
    fn plainly(pattern: &str, text: &[char]) -> Vec<(usize, usize)> {
        let mut regex = Regex::new(pattern).unwrap();
        regex.program.by_place = false;
        places(&regex, text)
    }

    fn places(regex: &Regex, text: &[char]) -> Vec<(usize, usize)> {
        let found = regex.find_all(text).unwrap();
        found.iter().map(|one| (one.start, one.end)).collect()
    }

    #[test]
    fn what_failed_is_not_tried_again_and_nothing_else_is_left_out() {
        use russet_kernels::random;
        let patterns = [
            r"\s*x",
            r"(?m)^\s*x.*$",
            r"\s+?x",
            r"\s*+x",
            r"\s{3,}x",
            r"\s{12,}?x",
            r"a\s*\s*b",
            r"a\s{2,}\s{11,}b",
            r"([^a])(a)([ b]*)\s*$",
            r"\s*?\s*?\Z",
            r"a.*?b|\s*c",
            r"(?:\s*a|\s*b)\s*c",
            r"(?=\s*a)\s*.",
            r"(?!\s*a)\s*.",
            r"(?>\s*a?)\s*b",
            r"(?<=a)\s*b",
            r"\s*",
            r"\s*?",
            r"\s*(?=a)",
            r"[ab]*[ \n]*[ab]*c",
        ];
        let mut found = 0;
        for (number, pattern) in patterns.iter().enumerate() {
            let regex = Regex::new(pattern).unwrap();
            assert!(regex.program.by_place, "{pattern}");
            for round in 0..200 {
                let draw = |at, of| random::below(number as u64, round, at, of) as usize;
                // Runs of one letter, some longer than what is kept.
                let mut text = Vec::new();
                for run in 0..1 + draw(0, 6) as u64 {
                    let letter = [' ', '\n', 'a', 'b', 'c', 'x'][draw(2 * run + 1, 6)];
                    text.extend(std::iter::repeat_n(letter, 1 + draw(2 * run + 2, 30)));
                }
                let ours = places(&regex, &text);
                assert_eq!(ours, plainly(pattern, &text), "{pattern:?} on {text:?}");
                found += ours.len();
            }
        }
        assert!(found > 10_000, "{found}");
        // Each of these took the square of the text's length.
        for (pattern, text) in [
            (r"(?m)\s*p\.\s?s\..*$", "\n".repeat(100_000)),
            (r"(?m)^\s*\*[^\*].*$", "\n".repeat(100_000)),
            (r"(?m)^\s*-.*$", " ".repeat(100_000)),
            (r"\[.*?\]", "[".repeat(100_000)),
            (r"<<[^\n]+>>", "<".repeat(100_000)),
            (
                r#"([^\.])(\.)([\]\)}>"' ]*)\s*$"#,
                format!("a.{}b", " ".repeat(100_000)),
            ),
        ] {
            let regex = Regex::new(pattern).unwrap();
            assert!(
                regex.find_all(&chars(&text)).unwrap().is_empty(),
                "{pattern}"
            );
        }
    }

    #[test]
    fn templates_put_groups_back() {
        let replaced = |pattern: &str, text: &str, template: &str| {
            let regex = Regex::new(pattern).unwrap();
            regex
                .replace_all(&chars(text), template)
                .unwrap()
                .iter()
                .collect::<String>()
        };
        assert_eq!(replaced("(b)(c)?", "abcab", r"<\1\2>"), "a<bc>a<b>");
        assert_eq!(replaced("-", "a-b", r" \0 "), "a - b");
        assert_eq!(replaced("x*", "abc", "-"), "-a-b-c-");
    }
}
