//! The letter that an answer comes to: a judge's verdict, a choice among several. Told from words, the surest sign first; what stands
//! within `<think>` is thought and not said.

/// Words that lead from "the answer" to its letter.
const LEADS: &str = "\
    is was be would should therefore thus the my final best correct right option choice letter response assistant";

/// What is named by a letter.
const NAMED: &str =
    "response responses option choice answer assistant model letter verdict candidate";

/// What may follow a letter that is a name, where a lower-case word behind `A` otherwise makes it the article.
const DOES: &str = "is was isn wins has does beats because since as and or";

/// The letter from `A` to `last` that a text comes to: all of it; in double brackets; behind "answer" or "verdict"; at its beginning, as
/// in `B.`; said to be better or right; else the last one that stands alone and in no list.
pub(crate) fn letter(text: &str, last: char) -> Option<char> {
    let text = text.rsplit_once("</think>").map_or(text, |(_, said)| said);
    let all = text.trim_matches(|c: char| !c.is_alphanumeric());
    if let Some(letter) = single(&all.to_uppercase(), last) {
        return Some(letter);
    }
    let words = Words::of(text, last);
    let places = || (0..words.all.len()).rev();
    let bracketed = places().find(|&i| {
        let around = (words.before(i), words.after(i));
        around.0.ends_with("[[") && around.1.starts_with("]]") && words.letter(i).is_some()
    });
    let found = bracketed
        .or_else(|| places().find_map(|i| words.led_to(i)))
        .or_else(|| words.begins())
        .or_else(|| places().find(|&i| words.is_better(i)))
        .or_else(|| places().find(|&i| words.letter(i).is_some() && !words.is_listed(i)));
    found.and_then(|i| words.letter(i))
}

fn single(text: &str, last: char) -> Option<char> {
    let mut chars = text.chars();
    let first = chars.next().filter(|c| ('A'..=last).contains(c));
    first.filter(|_| chars.next().is_none())
}

fn among(list: &str, word: &str) -> bool {
    list.split_ascii_whitespace()
        .any(|one| one.eq_ignore_ascii_case(word))
}

/// A text's words with their places.
struct Words<'a> {
    text: &'a str,
    all: Vec<(usize, &'a str)>,
    last: char,
}

impl<'a> Words<'a> {
    fn of(text: &'a str, last: char) -> Words<'a> {
        let words = text.split(|c: char| !c.is_alphanumeric());
        let at = |word: &str| word.as_ptr() as usize - text.as_ptr() as usize;
        let words = words.filter(|word| !word.is_empty());
        Words {
            text,
            all: words.map(|word| (at(word), word)).collect(),
            last,
        }
    }

    fn word(&self, i: usize) -> &'a str {
        self.all.get(i).map_or("", |(_, word)| *word)
    }

    fn before(&self, i: usize) -> &'a str {
        &self.text[..self.all[i].0]
    }

    fn after(&self, i: usize) -> &'a str {
        let (at, word) = self.all[i];
        &self.text[at + word.len()..]
    }

    /// What stands between a word and the next.
    fn gap(&self, i: usize) -> &'a str {
        let after = self.after(i);
        let next = self.all.get(i + 1).map_or(self.text.len(), |(at, _)| *at);
        &after[..next - (self.text.len() - after.len())]
    }

    /// The letter that a word is, unless it is the article or the pronoun.
    fn letter(&self, i: usize) -> Option<char> {
        let letter = single(self.word(i), self.last)?;
        if !matches!(letter, 'A' | 'I') || (i > 0 && among(NAMED, self.word(i - 1))) {
            return Some(letter);
        }
        let next = self.word(i + 1);
        let small = next.starts_with(char::is_lowercase) && !among(DOES, next);
        let spaced = self
            .gap(i)
            .chars()
            .all(|c| c == ' ' || c == '\'' || c == '’');
        (!(small && spaced)).then_some(letter)
    }

    /// Whether another letter follows at once, as in "A, B or C": then it is a list of what there is.
    fn lists(&self, i: usize) -> bool {
        let next = i + 1 + usize::from(among("or and", self.word(i + 1)));
        let close =
            (i..next).all(|i| matches!(self.gap(i).trim_matches(' '), "" | "," | "/" | "|"));
        close && single(self.word(next), self.last).is_some()
    }

    /// Whether it is one of such a list.
    fn is_listed(&self, i: usize) -> bool {
        self.lists(i) || (1..=2).any(|back| i >= back && self.ends_list(i - back, i))
    }

    fn ends_list(&self, from: usize, to: usize) -> bool {
        let next = from + 1 + usize::from(among("or and", self.word(from + 1)));
        next == to && single(self.word(from), self.last).is_some() && self.lists(from)
    }

    /// The letter's place to which the word "answer" or "verdict" leads.
    fn led_to(&self, i: usize) -> Option<usize> {
        if !among("answer verdict", self.word(i)) {
            return None;
        }
        let mut led = self.gap(i).contains([':', '=', '*', '(', '[']);
        for place in i + 1..self.all.len().min(i + 8) {
            if self.letter(place).is_some() {
                return (led && !self.lists(place)).then_some(place);
            }
            let word = self.word(place);
            if !among(LEADS, word) || self.gap(place).contains(['.', '\n']) {
                return None;
            }
            led |= among("is was be", word) || self.gap(place).contains([':', '=']);
        }
        None
    }

    fn begins(&self) -> Option<usize> {
        let lone = self.letter(0).is_some() && !self.lists(0);
        let ends = |c: char| ".):,;*]\n\r".contains(c);
        (lone && self.after(0).trim_start_matches(' ').starts_with(ends)).then_some(0)
    }

    fn is_better(&self, i: usize) -> bool {
        let sure = |i: usize| {
            among(
                "better best correct right preferable stronger superior",
                self.word(i),
            )
        };
        let said = self.word(i + 1) == "wins"
            || (among("is was", self.word(i + 1))
                && (sure(i + 2)
                    || (among(
                        "the a clearly slightly much far significantly",
                        self.word(i + 2),
                    ) && sure(i + 3))));
        said && self.letter(i).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_surest_sign_decides() {
        for (text, expected) in [
            ("B", Some('B')),
            (" b.\n", Some('B')),
            ("**C**", Some('C')),
            (" [[A]]", Some('A')),
            ("A is longer, B is true. [[B]]", Some('B')),
            ("Verdict: C, both", Some('C')),
            ("[Verdict: A, B or C]\nB", Some('B')),
            ("A careful reading shows B is better.", Some('B')),
            ("A careful reading shows nothing.", None),
            ("A is better.", Some('A')),
            ("Response A clearly follows the prompt.", Some('A')),
            ("B is better than A.", Some('B')),
            ("The answer is A because it is shorter than B.", Some('A')),
            ("The correct answer is therefore option (C).", Some('C')),
            ("Answer A has errors. My verdict: **B**", Some('B')),
            ("B\n\nA is longer than it should be.", Some('B')),
            ("B. A reader gets more from it than from A.", Some('B')),
            ("A reader would take B", Some('B')),
            ("A is wrong, so B", Some('B')),
            ("<think>A or C?</think> B", Some('B')),
            ("<think>The answer is A.</think>", None),
            ("A and B are equally good", None),
            ("Both be avenue [A, B, B", None),
            ("To be a man sits. A man sits.", None),
            ("I would say C", Some('C')),
            ("Both Are", None),
            ("neither", None),
            ("D", None),
            ("Ça, c'est B", Some('B')),
            ("", None),
        ] {
            assert_eq!(letter(text, 'C'), expected, "{text:?}");
        }
        assert_eq!(letter("I'd say E", 'D'), None);
        assert_eq!(letter("I think it is J", 'J'), Some('J'));
        assert_eq!(letter("I", 'J'), Some('I'));
    }
}
