//! What Python does with text, to the letter: the reference checkers are Python, and a verdict hangs on what counts as
//! a space, a letter or a match.
//!
//! Left out: characters assigned after Unicode 14 (Python 3.11's), which are taken as Rust takes them.

pub mod json;
pub mod random;
pub mod regex;
mod words;

/// `str.isspace` of one character: Unicode's white space, and the four separators of ASCII that Rust leaves out.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `\w`: letters, numbers and the underscore. Marks are none, so `\w+` cuts Devanagari words in pieces.
pub fn is_word(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_alphanumeric() || c == '_';
    }
    c.is_alphanumeric() && !words::is_alphabetic_mark(c)
}

/// `str.strip()`.
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Whether anything but space is in it.
pub fn is_blank(text: &str) -> bool {
    text.chars().all(is_space)
}

/// `str.split()`.
pub fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|piece| !piece.is_empty())
}

/// `str.lower()` of one character by itself, when that is one character.
pub fn simple_lower(c: char) -> char {
    match c {
        'İ' => 'i', // Its full mapping is two characters, its simple one is not.
        _ => c.to_lowercase().next().unwrap_or(c),
    }
}

/// `str.isupper()`: at least one cased character, and none in lower or title case.
pub fn is_upper(text: &str) -> bool {
    let mut cased = false;
    for c in text.chars() {
        if c.is_lowercase() || is_title(c) {
            return false;
        }
        cased |= c.is_uppercase();
    }
    cased
}

/// `str.islower()`.
pub fn is_lower(text: &str) -> bool {
    let mut cased = false;
    for c in text.chars() {
        if c.is_uppercase() || is_title(c) {
            return false;
        }
        cased |= c.is_lowercase();
    }
    cased
}

/// Letters that are a capital and a small one at once, as `ǅ`.
fn is_title(c: char) -> bool {
    matches!(c, 'ǅ' | 'ǈ' | 'ǋ' | 'ǲ' | '\u{1f88}'..='\u{1f8f}' | '\u{1f98}'..='\u{1f9f}' | '\u{1fa8}'..='\u{1faf}'
        | '\u{1fbc}' | '\u{1fcc}' | '\u{1ffc}')
}

/// How many `\w+` a text has.
pub fn count_words(text: &str) -> usize {
    let (mut words, mut inside) = (0, false);
    for c in text.chars() {
        let word = is_word(c);
        words += usize::from(word && !inside);
        inside = word;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_letters_and_case_are_pythons() {
        assert_eq!(strip("\u{1f} a\u{85}\u{3000}"), "a");
        assert!(
            !is_space('\u{200b}'),
            "zero width, and no space to either language"
        );
        assert_eq!(split(" a\u{1c}b\n").collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(
            count_words("don't stop_me 3.5 नमस्ते ²"),
            8,
            "marks cut, superscripts do not"
        );
        assert!(is_upper("A1!") && !is_upper("1!") && !is_upper("Ab") && !is_upper("Aǅ"));
        assert!(is_lower("a ª") && !is_lower("") && !is_lower("aB"));
        assert!(is_upper("Ⅷ") && !is_upper("Aª"));
        assert_eq!(simple_lower('İ'), 'i');
    }
}
