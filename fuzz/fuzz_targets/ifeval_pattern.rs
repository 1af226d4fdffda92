//! A keyword, which is a pattern of Python's `re`, up to a zero byte; then the text it is looked for in.
#![no_main]

use libfuzzer_sys::fuzz_target;
use russet_eval::ifeval::check;
use russet_fuzz::{halves, joined, seed};

fuzz_target!(
    init: {
        for (name, pattern) in [
            ("word", "cat"),
            ("groups", r"(?P<x>a|b)*(?P=x)(?(x)c|d)"),
            ("look", r"(?<=a)b(?!c)(?>d+)e?+"),
            ("sets", r"(?i:[^a-z\d_-]{2,3}?)\b$"),
        ] {
            seed("ifeval_pattern", name, &joined(pattern.as_bytes(), "a cat, bbc".as_bytes()));
        }
    },
    |data: &[u8]| {
        let (pattern, text) = halves(data);
        let text = (std::str::from_utf8(pattern), std::str::from_utf8(text));
        let (Ok(pattern), Ok(text)) = text else { return };
        let arguments = serde_json::json!({"keyword": pattern, "frequency": 1, "relation": "at least"});
        let arguments = arguments.as_object().expect("it is an object");
        let _ = check("keywords:frequency", arguments, text);
    }
);
