//! Which parts of a long text are measured.
//!
//! Calibration reads a few thousand tokens, and a text may have gigabytes. Every document is cut into pieces of a few
//! sequences, every piece draws a number from its place, and the lowest numbers stay: a uniform sample of the whole
//! text in one pass, in memory for the sample alone. Neither the order of a corpus nor one long document decides.

use std::collections::{BTreeMap, BinaryHeap};

use russet_kernels::random;

use crate::Settings;

/// Bytes of a token, generously: English has three to five, and what is too much is thinned out evenly later.
const TOKEN_BYTES: usize = 8;

/// Bytes before a piece's end in which a blank is looked for, so that few words are cut.
const BLANK_WITHIN: usize = 64;

/// A part of a document, to be encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// The text.
    pub text: String,
    /// Whether it is the document's beginning, and so gets the token that begins a text.
    pub begins: bool,
}

struct Piece {
    document: u64,
    begins: bool,
    text: String,
}

impl Settings {
    /// A sample of `documents` with about as many tokens as calibration wants and rather more, in the order of the text;
    /// all of it where that is less. Pieces that follow each other are one excerpt.
    ///
    /// # Errors
    /// The first among `documents`.
    pub fn excerpts<E>(
        &self,
        documents: impl IntoIterator<Item = Result<String, E>>,
    ) -> Result<Vec<Excerpt>, E> {
        let piece_bytes = self.sequence.saturating_mul(TOKEN_BYTES);
        let wanted = self.calibration_tokens.saturating_mul(TOKEN_BYTES);
        let mut kept: BTreeMap<u64, Piece> = BTreeMap::new();
        let mut drawn: BinaryHeap<(u64, u64)> = BinaryHeap::new(); // (what the piece drew, its place)
        let (mut place, mut bytes) = (0, 0);
        for (document, text) in documents.into_iter().enumerate() {
            let text = text?;
            let mut rest = text.as_str();
            let mut begins = true;
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(cut(rest, piece_bytes));
                rest = after;
                bytes += piece.len();
                drawn.push((random::hash(0, 0, place), place));
                let piece = Piece {
                    document: document as u64,
                    begins,
                    text: piece.to_owned(),
                };
                kept.insert(place, piece);
                place += 1;
                begins = false;
                while let Some(&(_, last)) = drawn.peek() {
                    let without = bytes - kept[&last].text.len();
                    if without < wanted {
                        break;
                    }
                    bytes = without;
                    drawn.pop();
                    kept.remove(&last);
                }
            }
        }
        let mut excerpts: Vec<Excerpt> = Vec::new();
        let mut before = None;
        for (place, piece) in kept {
            match excerpts.last_mut() {
                Some(excerpt) if before == Some((place.wrapping_sub(1), piece.document)) => {
                    excerpt.text.push_str(&piece.text);
                }
                _ => excerpts.push(Excerpt {
                    text: piece.text,
                    begins: piece.begins,
                }),
            }
            before = Some((place, piece.document));
        }
        Ok(excerpts)
    }
}

/// Where a piece of at most `most` bytes ends: before a blank if one is near, else between characters. At least one
/// character.
fn cut(text: &str, most: usize) -> usize {
    if text.len() <= most {
        return text.len();
    }
    let end = text.floor_char_boundary(most);
    let from = text.floor_char_boundary(end.saturating_sub(BLANK_WITHIN));
    match text[from..end].rfind([' ', '\n']) {
        Some(blank) if from + blank > 0 => from + blank,
        _ if end > 0 => end,
        _ => text.chars().next().map_or(0, char::len_utf8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excerpts(sequence: usize, calibration_tokens: usize, documents: &[String]) -> Vec<Excerpt> {
        let settings = Settings {
            sequence,
            calibration_tokens,
            ..Settings::default()
        };
        let documents = documents.iter().cloned().map(Ok::<_, ()>);
        settings.excerpts(documents).unwrap()
    }

    #[test]
    fn a_short_text_is_taken_whole() {
        let documents = ["a fox ".repeat(40), String::new(), "é".repeat(50)];
        let taken = excerpts(4, 1000, &documents);
        let whole = |text: &str| Excerpt {
            text: text.to_owned(),
            begins: true,
        };
        assert_eq!(taken, [whole(&documents[0]), whole(&documents[2])]);
    }

    #[test]
    fn of_a_long_text_parts_from_all_over_are_taken() {
        // One document far longer than what is wanted, then many short ones, numbered.
        let long = "word ".repeat(20_000);
        let short = (0..200).map(|i| format!("{i:03} {}", "hen ".repeat(124)));
        let documents: Vec<String> = std::iter::once(long).chain(short).collect();
        let taken = excerpts(64, 1000, &documents);
        let bytes: usize = taken.iter().map(|excerpt| excerpt.text.len()).sum();
        assert!((8_000..9_000).contains(&bytes), "{bytes}");
        let of_long = taken.iter().filter(|e| e.text.contains("word")).count();
        assert!(
            (1..taken.len()).contains(&of_long),
            "{of_long} of {}",
            taken.len()
        );
        let numbers: Vec<usize> = taken
            .iter()
            .filter(|e| e.begins && !e.text.contains("word"))
            .map(|e| e.text[..3].parse().unwrap())
            .collect();
        assert!(
            numbers.is_sorted() && numbers.last() > Some(&100),
            "{numbers:?}"
        );
        for excerpt in &taken {
            let parts = documents.iter().filter(|text| text.contains(&excerpt.text));
            assert!(parts.count() >= 1, "{excerpt:?}");
        }
        assert_eq!(taken, excerpts(64, 1000, &documents));
    }

    #[test]
    fn pieces_end_between_characters() {
        assert_eq!(cut("éé", 3), 2);
        assert_eq!(cut("🦊", 1), 4);
        assert_eq!(cut("a fox ran", 7), 5);
        assert_eq!(cut(" abc", 3), 3);
    }

    #[test]
    fn an_error_among_the_documents_ends_it() {
        let documents = [Ok("a".to_owned()), Err("torn")];
        assert_eq!(Settings::default().excerpts(documents), Err("torn"));
    }
}
