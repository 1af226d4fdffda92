//! What the checkers carry from elsewhere, packed: `golden/ifeval_data.py` makes these files, `data/README.md` names their
//! authors and licences.

use std::sync::LazyLock;

use super::python::regex::Regex;

macro_rules! packed {
    ($name:literal) => {
        LazyLock::new(|| {
            let packed: &[u8] = include_bytes!(concat!("../../data/", $name));
            let bytes = zstd::decode_all(packed).expect("the embedded data are whole");
            String::from_utf8(bytes).expect("the embedded data are UTF-8")
        })
    };
}

static PROMPTS: LazyLock<String> = packed!("ifeval_input_data.jsonl.zst");
static PUNKT: LazyLock<String> = packed!("punkt_english.txt.zst");
static PROFILES: LazyLock<String> = packed!("langdetect_profiles.txt.zst");

/// `ifeval_input_data.jsonl`.
pub fn prompts() -> &'static str {
    &PROMPTS
}

/// Parameters of the sentence tokenizer.
pub fn punkt() -> &'static str {
    &PUNKT
}

/// Profiles of the language detector.
pub fn profiles() -> &'static str {
    &PROFILES
}

/// A pattern of this crate's own.
pub fn pattern(pattern: &str) -> Regex {
    Regex::new(pattern).unwrap_or_else(|error| panic!("{pattern:?} is no pattern: {error}"))
}
