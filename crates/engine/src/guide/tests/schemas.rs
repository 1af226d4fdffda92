//! Schemas with what they take and what they refuse, one a keyword.

use super::*;

/// (schema, taken, refused)
const CASES: &[(&str, &[&str], &[&str])] = &[
    (
        r#"{"type": "string"}"#,
        &[r#""""#, r#""é\n""#],
        &["1", r#""a"#, "\"a\nb\""],
    ),
    (
        r#"{"type": "integer"}"#,
        &["0", "-12"],
        &["1.5", "01", "\"1\""],
    ),
    (
        r#"{"type": "number"}"#,
        &["1", "-0.5e-3"],
        &[".5", "1.", "NaN"],
    ),
    (r#"{"type": "boolean"}"#, &["true", "false"], &["True", "0"]),
    (r#"{"type": "null"}"#, &["null"], &["nil", ""]),
    (
        r#"{"type": ["string", "null"]}"#,
        &["null", r#""a""#],
        &["1"],
    ),
    (
        r#"{"enum": ["ab", 12, null]}"#,
        &[r#""ab""#, "12", "null"],
        &[r#""abc""#, "1"],
    ),
    (
        r#"{"const": {"a": [1]}}"#,
        &[r#"{"a": [1]}"#, r#"{"a":[1]}"#],
        &[r#"{"a": [2]}"#],
    ),
    (
        r#"{"type": "string", "minLength": 2, "maxLength": 3}"#,
        &[r#""ab""#, r#""日本é""#],
        &[r#""a""#, r#""abcd""#],
    ),
    (
        r#"{"type": "string", "pattern": "^a+b$"}"#,
        &[r#""aab""#],
        &[r#""aabb""#, r#""b""#],
    ),
    (
        r#"{"type": "string", "pattern": "er"}"#,
        &[r#""the er""#],
        &[r#""the""#],
    ),
    (
        r#"{"type": "string", "format": "date"}"#,
        &[r#""2024-02-29""#],
        &[r#""2024-2-29""#, r#""2024-13-01""#],
    ),
    (
        r#"{"type": "string", "format": "uuid"}"#,
        &[r#""123e4567-e89b-12d3-a456-426614174000""#],
        &[r#""123e4567""#],
    ),
    (
        r#"{"type": "string", "format": "ipv4"}"#,
        &[r#""10.0.0.255""#],
        &[r#""10.0.0.256""#, r#""10.0.0""#],
    ),
    (
        r#"{"type": "integer", "minimum": 3, "maximum": 12}"#,
        &["3", "12"],
        &["2", "13", "100"],
    ),
    (
        r#"{"type": "integer", "exclusiveMinimum": -2, "exclusiveMaximum": 2}"#,
        &["-1", "1"],
        &["-2", "2"],
    ),
    (
        r#"{"type": "integer", "multipleOf": 3}"#,
        &["0", "12"],
        &["13"],
    ),
    (
        r#"{"type": "number", "minimum": 0.5}"#,
        &["0.5", "12"],
        &["0.4", "-1"],
    ),
    (
        r#"{"type": "array", "items": {"type": "integer"}}"#,
        &["[]", "[1, 2]"],
        &["[1,]", "[true]"],
    ),
    (
        r#"{"type": "array", "minItems": 1, "maxItems": 2}"#,
        &["[1]", "[1, \"a\"]"],
        &["[]", "[1, 2, 3]"],
    ),
    (
        r#"{"type": "array", "prefixItems": [{"type": "integer"}], "items": false}"#,
        &["[1]"],
        &["[true]", "[1, 2]"],
    ),
    (
        r#"{"$schema": "http://json-schema.org/draft-07/schema#", "type": "array", "items": [{"type": "null"}, {"type": "boolean"}], "additionalItems": false}"#,
        &["[null, true]"],
        &["[true]", "[null, true, 1]"],
    ),
    (
        r#"{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false}"#,
        &[r#"{"a": 1}"#],
        &["{}", r#"{"a": 1, "b": 2}"#, r#"{"a": "1"}"#],
    ),
    (
        r#"{"type": "object", "properties": {"a": {"type": "integer"}}}"#,
        &["{}", r#"{"a": 1}"#, r#"{"b": "x"}"#],
        &[r#"{"a": "x"}"#],
    ),
    (
        r#"{"type": "object", "additionalProperties": {"type": "boolean"}}"#,
        &[r#"{"x": true}"#],
        &[r#"{"x": 1}"#],
    ),
    (
        r#"{"type": "object", "patternProperties": {"^n_": {"type": "number"}}, "additionalProperties": false}"#,
        &[r#"{"n_a": 1}"#],
        &[r#"{"m_a": 1}"#, r#"{"n_a": "x"}"#],
    ),
    (
        r#"{"type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": {"type": "null"}}"#,
        &[r#"{"a": null}"#],
        &["{}", r#"{"a": null, "b": null}"#],
    ),
    (
        r##"{"$defs": {"n": {"type": "integer"}}, "type": "array", "items": {"$ref": "#/$defs/n"}}"##,
        &["[1]"],
        &["[null]"],
    ),
    (
        r##"{"type": "object", "properties": {"v": {"type": "integer"}, "next": {"$ref": "#"}}, "required": ["v"], "additionalProperties": false}"##,
        &[r#"{"v": 1, "next": {"v": 2}}"#],
        &[r#"{"v": 1, "next": {}}"#],
    ),
    (
        r##"{"definitions": {"a/b": {"type": "null"}}, "$ref": "#/definitions/a~1b"}"##,
        &["null"],
        &["1"],
    ),
    (
        r##"{"$defs": {"x": {"$anchor": "here", "type": "boolean"}}, "$ref": "#here"}"##,
        &["true"],
        &["1"],
    ),
    (
        r#"{"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 2}]}"#,
        &["1", r#""ab""#],
        &[r#""abc""#, "null"],
    ),
    (
        r#"{"oneOf": [{"type": "integer"}, {"type": "boolean"}]}"#,
        &["1", "true"],
        &["null"],
    ),
    (
        r#"{"allOf": [{"type": "integer", "minimum": 2}, {"maximum": 4}]}"#,
        &["2", "4"],
        &["1", "5"],
    ),
    (
        r#"{"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]}]}"#,
        &[r#"{"a": 1, "b": null}"#],
        &[r#"{"a": 1}"#],
    ),
    ("true", &["1", "[]", "null"], &["x"]),
    ("{}", &["1", r#"{"a": 1}"#], &["x"]),
];

#[test]
fn schemas_take_what_they_should_and_nothing_else() {
    let mut wrong = Vec::new();
    for &(text, taken, refused) in CASES {
        let grammar = schema(text);
        let refuses = taken.iter().filter(|instance| !takes(&grammar, instance));
        wrong.extend(refuses.map(|instance| format!("{text} refused {instance}")));
        let takes = refused.iter().filter(|instance| takes(&grammar, instance));
        wrong.extend(takes.map(|instance| format!("{text} took {instance}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A random walk through the masks that prefers to close what is open ends in an instance that `serde_json` reads.
#[test]
fn whatever_the_masks_lead_to_is_json() {
    for (case, &(text, ..)) in CASES.iter().enumerate() {
        let grammar = schema(text);
        let (mut guide, mut answer) = (grammar.guide(), Vec::new());
        for step in 0..400 {
            let Next::Tokens(allowed) = guide.next(&answer).unwrap() else {
                break;
            };
            if allowed.has(END) {
                break;
            }
            let closing = [b'"', b']', b'}'].map(u32::from);
            let close = closing.into_iter().find(|&token| allowed.has(token));
            let place = random::below(case as u64, 1, step, allowed.count() as u64) as usize;
            let any = allowed.ids(usize::MAX).nth(place).unwrap();
            answer.push(match close {
                Some(token) if step > 20 => token,
                _ => any,
            });
        }
        if !guide.accepts(&answer).unwrap() {
            continue; // a number's or a pattern's digits went on and on
        }
        let trie = grammar.vocabulary.factory().tok_env().tok_trie();
        let made = String::from_utf8(trie.decode(&answer)).unwrap();
        let value: std::result::Result<Value, _> = serde_json::from_str(&made);
        assert!(value.is_ok(), "{text} led to {made}");
    }
}
