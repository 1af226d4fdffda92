//! A file of responses, joined with a prompt of each kind and judged.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use russet_eval::ifeval::{Prompts, score};
use russet_eval::read_answers;
use russet_fuzz::{put, seed};

/// Kinds and arguments, a prompt each; the prompt's text is its place.
const KINDS: &[(&str, &str)] = &[
    ("keywords:existence", r#"{"keywords": ["a", "b.c"]}"#),
    (
        "keywords:frequency",
        r#"{"keyword": "a", "frequency": 2, "relation": "at least"}"#,
    ),
    ("keywords:forbidden_words", r#"{"forbidden_words": ["a"]}"#),
    (
        "keywords:letter_frequency",
        r#"{"letter": "a", "let_frequency": 2, "let_relation": "less than"}"#,
    ),
    ("language:response_language", r#"{"language": "vi"}"#),
    (
        "length_constraints:number_sentences",
        r#"{"num_sentences": 2, "relation": "at least"}"#,
    ),
    (
        "length_constraints:number_paragraphs",
        r#"{"num_paragraphs": 2}"#,
    ),
    (
        "length_constraints:number_words",
        r#"{"num_words": 2, "relation": "at least"}"#,
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        r#"{"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "a"}"#,
    ),
    (
        "detectable_content:number_placeholders",
        r#"{"num_placeholders": 2}"#,
    ),
    (
        "detectable_content:postscript",
        r#"{"postscript_marker": "P.S."}"#,
    ),
    (
        "detectable_format:number_bullet_lists",
        r#"{"num_bullets": 2}"#,
    ),
    (
        "detectable_format:number_highlighted_sections",
        r#"{"num_highlights": 2}"#,
    ),
    (
        "detectable_format:multiple_sections",
        r#"{"section_spliter": "S", "num_sections": 2}"#,
    ),
    ("detectable_format:json_format", "{}"),
    ("detectable_format:title", "{}"),
    ("combination:two_responses", "{}"),
    ("combination:repeat_prompt", r#"{"prompt_to_repeat": "a"}"#),
    ("startend:end_checker", r#"{"end_phrase": "a"}"#),
    (
        "change_case:capital_word_frequency",
        r#"{"capital_frequency": 2, "capital_relation": "at least"}"#,
    ),
    ("change_case:english_capital", "{}"),
];

static PROMPTS: LazyLock<Prompts> = LazyLock::new(|| {
    let row = |(key, (id, kwargs)): (usize, &(&str, &str))| {
        format!(
            r#"{{"key": {key}, "prompt": "{key}", "instruction_id_list": ["{id}"], "kwargs": [{kwargs}]}}"#
        )
    };
    let rows: Vec<String> = KINDS.iter().enumerate().map(row).collect();
    Prompts::read(&put("prompts.jsonl", rows.join("\n").as_bytes())).expect("the prompts are valid")
});

fuzz_target!(
    init: {
        let row = |key: usize| format!("{{\"prompt\": \"{key}\", \"response\": \"A b. *c*\\n[d], \\\"e\\\"\"}}\n");
        let rows: String = (0..KINDS.len()).map(row).collect();
        seed("ifeval_responses", "valid", rows.as_bytes());
    },
    |data: &[u8]| {
        let prompts = &*PROMPTS;
        let path = put("responses.jsonl", data);
        let names: Vec<String> = prompts.all().iter().map(|p| p.prompt.clone()).collect();
        if let Ok(responses) = read_answers(&path, &names, &["prompt"], &["response"], false) {
            let (scores, verdicts) = score(prompts, responses.firsts()).expect("no pattern here backtracks without end");
            assert_eq!(scores.n, verdicts.len());
            assert!(scores.instruction_strict <= scores.instruction_loose);
        }
    }
);
