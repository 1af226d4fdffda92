//! The short way to encode plain text with a tokenizer trained here.
//!
//! The `tokenizers` crate keeps, for every byte of a text, where it came from; a tokenizer without a normalizer
//! needs none of that. So: cut into words, look each up among those seen, merge the new ones with the crate's own
//! model. Several times as fast and equal to the crate's way, which stays for every other tokenizer and is
//! the oracle of the test.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::Value;
use tokenizers::Model;

use crate::train::{WORD_PATTERN, begins_with_end_of_text, words};

static PATTERN: LazyLock<fancy_regex::Regex> =
    LazyLock::new(|| fancy_regex::Regex::new(WORD_PATTERN).expect("the pattern is a constant"));

/// Words remembered at most; natural text repeats far fewer.
const WORDS: usize = 1 << 16;
/// A longer word is not worth remembering.
const LONGEST: usize = 64;

/// Is this `tokenizer.json` of the form that [`crate::train`] writes, so that words alone decide the tokens?
pub(crate) fn applies(file: &Value) -> bool {
    let pre = &file["pre_tokenizer"];
    file["normalizer"].is_null()
        && file["post_processor"] == begins_with_end_of_text()
        && pre["type"] == "Split"
        && pre["pattern"]["Regex"] == WORD_PATTERN
        && pre["behavior"] == "Isolated"
        && pre["invert"] == false
        && file["model"]["type"] == "BPE"
        && file["added_tokens"]
            .as_array()
            .is_none_or(|tokens| tokens.iter().all(|t| t["special"] == true))
}

/// Words already encoded; may be shared by all texts of one tokenizer on one thread.
#[derive(Default)]
pub(crate) struct Seen {
    /// Word -> its place in `ids`.
    places: HashMap<Box<str>, (u32, u32)>,
    ids: Vec<u32>,
}

/// Append the ids of `text`, special tokens being text.
pub(crate) fn encode(
    model: &tokenizers::ModelWrapper,
    text: &str,
    seen: &mut Seen,
    out: &mut Vec<u32>,
) -> Result<(), tokenizers::Error> {
    for word in words(&PATTERN, text) {
        if let Some(&(from, to)) = seen.places.get(word) {
            out.extend_from_slice(&seen.ids[from as usize..to as usize]);
            continue;
        }
        let from = out.len();
        out.extend(model.tokenize(word)?.iter().map(|token| token.id));
        if word.len() <= LONGEST && seen.places.len() < WORDS {
            let start = seen.ids.len() as u32;
            seen.ids.extend_from_slice(&out[from..]);
            let end = seen.ids.len() as u32;
            seen.places.insert(word.into(), (start, end));
        }
    }
    Ok(())
}
