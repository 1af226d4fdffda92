//! What a stranger may send: an error or an answer, soon, never a panic.

use super::*;

/// The constraint is refused, or compiles; then a random walk of 50 tokens through it ends or goes on. Either way within
/// ten seconds, on a machine that does other things too.
fn survives(constraint: Constraint) -> Option<String> {
    let began = Instant::now();
    let grammar = match compile(constraint.clone()) {
        Ok(grammar) => grammar,
        Err(error) => {
            let sentence = error.to_string();
            assert!(
                sentence.len() < 600 && !sentence.contains("backtrace"),
                "{sentence}"
            );
            assert!(began.elapsed() < Duration::from_secs(10), "{sentence}");
            return Some(sentence);
        }
    };
    let (mut guide, mut answer) = (grammar.guide(), Vec::new());
    let mut error = None;
    for step in 0..50 {
        match guide.next(&answer) {
            Ok(Next::End) => break,
            Ok(Next::Tokens(allowed)) => {
                let place = random::below(9, 0, step, allowed.count() as u64) as usize;
                answer.push(allowed.ids(usize::MAX).nth(place).unwrap());
            }
            Err(refused) => {
                error = Some(refused.to_string());
                break;
            }
        }
    }
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "slow: {constraint:.200?}"
    );
    error
}

fn nested(open: &str, middle: &str, close: &str, depth: usize) -> String {
    open.repeat(depth) + middle + &close.repeat(depth)
}

#[test]
fn hostile_regular_expressions_end_in_a_sentence() {
    for (text, refused) in [
        ("(".to_owned(), true),
        ("[z-a]".to_owned(), true),
        ("a{999999999}".to_owned(), false),
        ("(((a{100}){100}){100}){100}".to_owned(), false),
        (nested("(", "a", ")", 400), true),
        (nested("(", "a", ")", 100_000), true),
        ("(a?){500}a{500}".to_owned(), false),
        ("(x+x+)+y".to_owned(), false),
        ("(?=a)b".to_owned(), true),
        (r"\p{L}{1,2000}\p{N}{1,2000}".to_owned(), false),
        ("a|".repeat(20_000) + "b", false),
        ("\0/\n\\/".to_owned(), false),
        ("(.*a.{12}){3}".to_owned(), false),
    ] {
        let shown = text[..text.len().min(40)].to_owned();
        let error = survives(Constraint::Regex(text));
        assert!(!refused || error.is_some(), "{shown} was taken");
    }
}

#[test]
fn hostile_schemas_end_in_a_sentence() {
    let many: Vec<String> = (0..3000).map(|i| format!("\"p{i}\": {{}}")).collect();
    let wide = format!(
        "{{\"type\": \"object\", \"properties\": {{{}}}, \"additionalProperties\": false}}",
        many.join(",")
    );
    for (text, refused) in [
        ("{".to_owned(), true),
        ("[1]".to_owned(), true),
        (r#"{"type": "strin"}"#.to_owned(), true),
        (r##"{"$ref": "#"}"##.to_owned(), false),
        (r##"{"$ref": "#/nowhere"}"##.to_owned(), true),
        (r#"{"$ref": "https://example.com/schema"}"#.to_owned(), true),
        (r#"{"$ref": "file:///etc/passwd"}"#.to_owned(), true),
        (
            r##"{"allOf": [{"$ref": "#"}, {"$ref": "#"}]}"##.to_owned(),
            false,
        ),
        (
            r##"{"anyOf": [{"$ref": "#"}, {"type": "array", "items": {"$ref": "#"}}]}"##.to_owned(),
            false,
        ),
        (nested(r#"{"not":"#, "{}", "}", 60), true),
        (nested(r#"{"items":"#, "{}", "}", 126), false),
        (nested(r#"{"items":"#, "{}", "}", 100_000), true),
        (nested("[", "", "]", 1_000_000), true),
        (
            r#"{"type": "string", "pattern": "(a{50}){50}b{1000}", "minLength": 5000}"#.to_owned(),
            false,
        ),
        (
            r#"{"type": "string", "minLength": 1000000000}"#.to_owned(),
            false,
        ),
        (
            r#"{"type": "array", "minItems": 100000000, "items": {"type": "null"}}"#.to_owned(),
            false,
        ),
        (
            r#"{"type": "number", "multipleOf": 1e-300}"#.to_owned(),
            false,
        ),
        (
            r#"{"type": "integer", "minimum": -1e308, "maximum": 1e308}"#.to_owned(),
            false,
        ),
        (
            r#"{"type": "string", "format": "no-such-format"}"#.to_owned(),
            true,
        ),
        (r#"{"enum": []}"#.to_owned(), true),
        (format!("{{\"const\": \"{}\"}}", "x".repeat(1 << 21)), true),
        (wide, false),
    ] {
        let shown = text[..text.len().min(60)].to_owned();
        let error = survives(Constraint::JsonSchema(text));
        assert!(!refused || error.is_some(), "{shown} was taken");
    }
}

#[test]
fn hostile_grammars_end_in_a_sentence() {
    let chain: String = (0..2000)
        .map(|i| format!("r{i}: r{} r{}\n", i + 1, i + 1))
        .collect();
    for (text, refused) in [
        (String::new(), true),
        ("start: nowhere".to_owned(), true),
        ("start: start".to_owned(), true),
        ("start: start start | \"x\"".to_owned(), false),
        ("start: (a | b)*\na: \"x\"*\nb: \"x\"*".to_owned(), false),
        (format!("start: {}", nested("(", "\"a\"", ")", 5000)), true),
        (
            format!(
                "start::x: \"a\" %if {}",
                nested("not(", "true", ")", 100_000)
            ),
            true,
        ),
        (format!("start: r0\n{chain}r2000: \"x\""), false),
        ("start: /(a|b)*c{1000}/{1000}".to_owned(), false),
        ("start: \"a\"{1,2000000000}".to_owned(), false),
        ("%import common.NOWHERE\nstart: NOWHERE".to_owned(), true),
        ("start: %json { \"type\": 7 }".to_owned(), true),
        ("start: <[999999]>".to_owned(), true),
        ("start: \"".to_owned(), true),
    ] {
        let shown = text[..text.len().min(60)].to_owned();
        let error = survives(Constraint::Grammar(text));
        assert!(!refused || error.is_some(), "{shown} was taken");
    }
}

#[test]
fn hostile_choices_end_in_a_sentence() {
    for texts in [
        Vec::new(),
        vec![String::new()],
        vec!["a".to_owned(); 5000],
        vec!["a".repeat(2 << 20)],
    ] {
        assert!(survives(Constraint::Choice(texts)).is_some());
    }
    let many = (0..4096).map(|i| format!("choice-{i}")).collect();
    assert_eq!(survives(Constraint::Choice(many)), None);
}

#[test]
fn random_texts_end_in_a_sentence() {
    let alphabet = b"(){}[]|*+?.\\/\"'a1,:-^$\n startx%<>~&";
    for case in 0..300 {
        let length = random::below(case, 0, 0, 30);
        let letter = |i| alphabet[random::below(case, 1, i, alphabet.len() as u64) as usize];
        let text: String = (0..length).map(|i| letter(i) as char).collect();
        survives(Constraint::Regex(text.clone()));
        survives(Constraint::Grammar(format!("start: {text}")));
        survives(Constraint::JsonSchema(format!(
            "{{\"type\": \"string\", \"pattern\": {}}}",
            serde_json::json!(text)
        )));
    }
}
