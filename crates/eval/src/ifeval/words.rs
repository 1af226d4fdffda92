//! Words as `nltk.word_tokenize` finds them: sentences, then the Treebank rules as nltk 3.9.1 has improved them.

use std::sync::LazyLock;

use super::data;
use super::python::is_space;
use super::python::regex::{Endless, Regex};
use super::sentences::sentences;

/// Patterns and what they are replaced by, in order; `\0` is the whole match.
const RULES: &[(&str, &str)] = &[
    // Quotes that open.
    ("([«“‘„]|[`]+)", r" \1 "),
    (r#"^""#, "``"),
    (r"(``)", r" \1 "),
    (r#"([ \(\[{<])("|'{2})"#, r"\1 `` "),
    (r"(?i)(')(?!re|ve|ll|m|t|s|d|n)(\w)\b", r"\1 \2"),
    // Punctuation.
    (r#"([^\.])(\.)([\]\)}>"'»”’ ]*)\s*$"#, r"\1 \2 \3 "),
    (r"([:,])([^\d])", r" \1 \2"),
    (r"([:,])$", r" \1 "),
    (r"\.{2,}", r" \0 "),
    (r"[;@#$%&]", r" \0 "),
    (r#"([^\.])(\.)([\]\)}>"']*)\s*$"#, r"\1 \2\3 "),
    (r"[?!]", r" \0 "),
    (r"([^'])' ", r"\1 ' "),
    (r"[*]", r" \0 "),
    (r"[\]\[\(\)\{\}\<\>]", r" \0 "),
    (r"--", r" -- "),
];

/// The same once the text has a space at either end.
const PADDED_RULES: &[(&str, &str)] = &[
    // Quotes that close.
    ("([»”’])", r" \1 "),
    ("''", " '' "),
    (r#"""#, " '' "),
    (r"\s+", " "),
    (r"([^' ])('[sS]|'[mM]|'[dD]|') ", r"\1 \2 "),
    (r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", r"\1 \2 "),
    // Contractions.
    (r"(?i)\b(can)(not)\b", r" \1 \2 "),
    (r"(?i)\b(d)('ye)\b", r" \1 \2 "),
    (r"(?i)\b(gim)(me)\b", r" \1 \2 "),
    (r"(?i)\b(gon)(na)\b", r" \1 \2 "),
    (r"(?i)\b(got)(ta)\b", r" \1 \2 "),
    (r"(?i)\b(lem)(me)\b", r" \1 \2 "),
    (r"(?i)\b(more)('n)\b", r" \1 \2 "),
    (r"(?i)\b(wan)(na)(?=\s)", r" \1 \2 "),
    (r"(?i) ('t)(is)\b", r" \1 \2 "),
    (r"(?i) ('t)(was)\b", r" \1 \2 "),
];

type Rule = (Regex, &'static str);

fn compiled(rules: &'static [(&str, &str)]) -> Vec<Rule> {
    let rules = rules.iter();
    rules
        .map(|(pattern, template)| (data::pattern(pattern), *template))
        .collect()
}

static FIRST: LazyLock<Vec<Rule>> = LazyLock::new(|| compiled(RULES));
static SECOND: LazyLock<Vec<Rule>> = LazyLock::new(|| compiled(PADDED_RULES));

/// The words of a text.
pub fn words(text: &str) -> Result<Vec<String>, Endless> {
    let text: Vec<char> = text.chars().collect();
    let mut words = Vec::new();
    for sentence in sentences(&text)? {
        let mut text = text[sentence].to_vec();
        for (pattern, template) in &*FIRST {
            text = pattern.replace_all(&text, template)?;
        }
        text.insert(0, ' ');
        text.push(' ');
        for (pattern, template) in &*SECOND {
            text = pattern.replace_all(&text, template)?;
        }
        let pieces = text
            .split(|c| is_space(*c))
            .filter(|piece| !piece.is_empty());
        words.extend(pieces.map(|piece| piece.iter().collect::<String>()));
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_nltks() {
        // nltk.word_tokenize of each
        for (text, expected) in [
            (
                "Good muffins cost $3.88 (roughly 3,36 euros)\nin New York.  Please buy me\ntwo of them.\nThanks.",
                "Good|muffins|cost|$|3.88|(|roughly|3,36|euros|)|in|New|York|.|Please|buy|me|two|of|them|.|Thanks|.",
            ),
            (
                "I CANNOT won't they'll 'Tis “SO”",
                "I|CAN|NOT|wo|n't|they|'ll|'T|is|“|SO|”",
            ),
            ("**NOTE**: A-B, \"C\"", "*|*|NOTE|*|*|:|A-B|,|``|C|''"),
        ] {
            assert_eq!(words(text).unwrap().join("|"), expected);
        }
    }
}
