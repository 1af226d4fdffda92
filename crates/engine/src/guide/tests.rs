use super::*;
use russet_kernels::random;

mod hostile;
mod schemas;

/// The id of the token that ends an answer in [`vocabulary`].
const END: u32 = 256;

/// All bytes, an end, a control token, and some pieces as tokenizers have them.
fn vocabulary() -> Vocabulary {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    tokens.push(b"<|end|>".to_vec());
    tokens.push(b"<|tool|>".to_vec());
    let pieces = [
        "{\"", "\":", "\": ", "\",", "\", \"", "true", "false", "null", "ab", "abc", "the", " the",
        "er", "name", "age", "12", "123", "\"}", "}}", "]}", "[{", ", ", "  ", "\n", "é", "日本",
    ];
    tokens.extend(pieces.iter().map(|piece| piece.as_bytes().to_vec()));
    Vocabulary::new(tokens, &[END, END + 1], &[END]).unwrap()
}

fn compile(constraint: Constraint) -> Result<Grammar> {
    Grammar::compile(&vocabulary(), &constraint)
}

fn schema(text: &str) -> Grammar {
    compile(Constraint::JsonSchema(text.to_owned()))
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Whether a text is in a grammar: every token is in the mask before it, and the end may come behind it. Asked twice,
/// cut into the longest tokens and into bytes; the answers must agree.
fn takes(grammar: &Grammar, text: &str) -> bool {
    let walk = |tokens: Vec<u32>| {
        let mut guide = grammar.guide();
        for (place, &token) in tokens.iter().enumerate() {
            match guide.next(&tokens[..place]).unwrap() {
                Next::Tokens(allowed) if allowed.has(token) => {}
                _ => return false,
            }
        }
        guide.accepts(&tokens).unwrap()
    };
    let long = walk(grammar.vocabulary.cut(text));
    let bytes = walk(text.bytes().map(u32::from).collect());
    assert_eq!(long, bytes, "{text:?} cut in two ways");
    long
}

#[test]
fn a_choice_is_one_of_its_texts() {
    let texts = [
        "a",
        "ab",
        "abc.",
        "x*y",
        "new\nline",
        "\"quoted\\\"",
        "日本",
    ];
    let grammar = compile(Constraint::Choice(
        texts.iter().map(|&text| text.to_owned()).collect(),
    ))
    .unwrap();
    for text in texts {
        assert!(takes(&grammar, text), "{text:?}");
    }
    for text in ["", "b", "abc", "abcd", "xxy", "new", "日", "abc.."] {
        assert!(!takes(&grammar, text), "{text:?}");
    }
}

#[test]
fn a_regular_expression_matches_from_beginning_to_end() {
    let grammar = compile(Constraint::Regex(r"[0-9]{4}-[0-9]{2}(/[a-z]+)?".to_owned())).unwrap();
    for (text, taken) in [
        ("2024-05", true),
        ("2024-05/abc", true),
        ("2024-5", false),
        ("x2024-05", false),
        ("2024-05/", false),
        ("2024-05/abc1", false),
    ] {
        assert_eq!(takes(&grammar, text), taken, "{text:?}");
    }
}

#[test]
fn a_grammar_counts_its_brackets() {
    let grammar = compile(Constraint::Grammar(
        "start: list\nlist: \"[\" [item (\",\" item)*] \"]\"\nitem: list | /[a-z]+/\n".to_owned(),
    ))
    .unwrap();
    for (text, taken) in [
        ("[]", true),
        ("[ab,[[]],c]", true),
        ("[ab,[[],c]", false),
        ("[,]", false),
        ("[]]", false),
    ] {
        assert_eq!(takes(&grammar, text), taken, "{text:?}");
    }
}

#[test]
fn a_json_object_is_any_and_nothing_else() {
    let grammar = compile(Constraint::JsonObject).unwrap();
    for (text, taken) in [
        ("{}", true),
        (r#"{"a": [1, -2.5e3, {"b": null}], "c": "é\n"}"#, true),
        ("[]", false),
        ("\"a\"", false),
        ("{'a': 1}", false),
        (r#"{"a": 01}"#, false),
        (r#"{"a": 1"#, false),
    ] {
        assert_eq!(takes(&grammar, text), taken, "{text:?}");
    }
}

#[test]
fn what_is_wrong_with_a_constraint_is_told_with_its_place() {
    let said = |constraint: Constraint| compile(constraint).unwrap_err().to_string();
    let regex = |text: &str| said(Constraint::Regex(text.to_owned()));
    for (text, says) in [
        ("(", "unclosed group, at character 1 (`(`); write it in"),
        ("é[z-a]", "the end, at character 3 (`z-a]`); write it in"),
        ("a/b\n(c", "unclosed group, at character 5 (`(c`)"),
        (r"\/(a)\1", "not supported, at character 6 (`\\1`)"),
        (
            &format!("({}", "a".repeat(99)),
            "(`(aaaaaaaaaaaaaaaaaaaaaaa…`)",
        ),
        (r"\bword", "answer: lookarounds not supported yet"),
    ] {
        let said = regex(text);
        assert!(
            said.contains(says) && said.contains("Rust's syntax"),
            "{said}"
        );
        assert!(!said.contains('\n') && !said.contains("start: "), "{said}");
    }
    let grammar = |text: &str| said(Constraint::Grammar(text.to_owned()));
    for (text, says) in [
        ("", "no start rule found; write it in"),
        (
            "start: \"a\"\n  | nowhere",
            "line 1, column 8: unknown name: \"nowhere\"; ",
        ),
        ("start: \"", "line 1, column 9: lexer error; "),
        (
            "start: /a(?=b)/",
            "line 1, column 8: in the pattern `a(?=b)` look-around",
        ),
    ] {
        let said = grammar(text);
        assert!(
            said.contains(says) && said.contains("dialect of Lark"),
            "{said}"
        );
        assert!(!said.contains('\n'), "{said}");
    }
    let empty = compile(Constraint::Grammar("start: start".to_owned())).unwrap();
    let refused = empty.guide().next(&[]).unwrap_err().to_string();
    assert!(refused.contains("no text is in it"), "{refused}");
    let schema = |text: &str| said(Constraint::JsonSchema(text.to_owned()));
    for (text, says) in [
        ("{", "at line 1 column 1; mend it there"),
        (
            r#"{"type": "strin"}"#,
            "Invalid type: strin; mend the schema",
        ),
        (
            r#"{"pattern": "a("}"#,
            "in the pattern `a(` unclosed group, at character 2 (`(`); mend",
        ),
    ] {
        let said = schema(text);
        assert!(said.contains(says), "{said}");
    }
}

#[test]
fn blanks_between_parts_of_json_come_to_an_end() {
    let spaced = |count: usize| {
        let blanks = " ".repeat(count);
        format!("{{{blanks}\"a\"{blanks}:{blanks}[1,{blanks}2]{blanks}}}")
    };
    let nested = (0..40).fold(json!(1), |inner, _| json!({"a": [inner]}));
    let nested = serde_json::to_string_pretty(&nested).unwrap();
    let deepest = nested
        .lines()
        .map(|line| line.len() - line.trim_start().len());
    assert_eq!(deepest.max(), Some(160));
    let (nested, deeper) = (nested.replace("  ", " "), nested);
    let grammars = [
        compile(Constraint::JsonObject).unwrap(),
        schema("{}"),
        schema("true"),
        schema(r#"{"type": "object", "x-guidance": {"key_separator": ":"}}"#),
    ];
    for grammar in grammars {
        assert!(takes(&grammar, &spaced(0)) && takes(&grammar, &spaced(MOST_BLANKS)));
        assert!(!takes(&grammar, &spaced(MOST_BLANKS + 1)));
        assert!(takes(&grammar, &nested) && !takes(&grammar, &deeper));
    }
    // A schema that says how blanks go is taken at its word.
    let one = schema(r#"{"x-guidance": {"whitespace_pattern": " "}}"#);
    assert!(takes(&one, &spaced(1)) && !takes(&one, &spaced(2)));
    let none = schema(r#"{"x-guidance": {"whitespace_flexible": false}}"#);
    assert!(takes(&none, &spaced(0)) && !takes(&none, &spaced(1)));
}

#[test]
fn where_nothing_can_follow_is_the_end() {
    let grammar = schema(r#"{"type": "boolean"}"#);
    let mut guide = grammar.guide();
    assert!(matches!(guide.next(&[]).unwrap(), Next::Tokens(_)));
    let text = grammar.vocabulary.cut("true");
    assert_eq!(guide.next(&text).unwrap(), Next::End);
    // A number can go on: the end is one of several.
    let grammar = schema(r#"{"type": "integer"}"#);
    let Next::Tokens(allowed) = grammar.guide().next(&grammar.vocabulary.cut("12")).unwrap() else {
        panic!("a number can go on");
    };
    assert!(allowed.has(END) && allowed.has(u32::from(b'3')) && !allowed.has(u32::from(b'a')));
    // And the end, once drawn, is the end.
    let ended = [u32::from(b'1'), END];
    let mut guide = grammar.guide();
    assert_eq!(guide.next(&ended).unwrap(), Next::End);
    assert!(guide.accepts(&ended).unwrap());
}

#[test]
fn a_guide_that_went_back_is_one_that_never_went() {
    let grammar = schema(
        r#"{"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
            "required": ["name"], "additionalProperties": false}"#,
    );
    let text = grammar.vocabulary.cut(r#"{"name": "the abc", "age": 123}"#);
    let other = grammar.vocabulary.cut(r#"{"name": "ab", "age": 1"#);
    let fresh: Vec<Next> = (0..=text.len())
        .map(|end| grammar.guide().next(&text[..end]).unwrap())
        .collect();
    let mut moved = grammar.guide();
    for round in 0..60 {
        let end = random::below(1, 0, round, text.len() as u64 + 1) as usize;
        let detour = random::below(1, 1, round, other.len() as u64 + 1) as usize;
        moved.next(&other[..detour]).unwrap();
        assert_eq!(moved.next(&text[..end]).unwrap(), fresh[end], "at {end}");
    }
}

#[test]
fn drafts_are_allowed_as_far_as_the_grammar_goes() {
    let grammar = schema(r#"{"type": "array", "items": {"type": "integer"}}"#);
    let cut = |text: &str| text.bytes().map(u32::from).collect::<Vec<u32>>();
    let mut guide = grammar.guide();
    assert_eq!(guide.allows(&cut("[1"), &cut("2,3]")).unwrap(), 4);
    assert_eq!(guide.allows(&cut("[1"), &cut("2x3]")).unwrap(), 1);
    assert_eq!(guide.allows(&cut("[1"), &cut("a")).unwrap(), 0);
    assert_eq!(guide.allows(&cut("[1]"), &cut("2")).unwrap(), 0);
    // Asking does not move it.
    assert!(guide.accepts(&cut("[12]")).unwrap());
}

#[test]
fn masks_from_the_thread_are_those_made_here() {
    let grammar = schema(r#"{"type": "array", "items": {"type": "string"}}"#);
    let mut worker = Worker::new();
    let answer = grammar.vocabulary.cut("[\"the ab");
    let mut drafts = grammar.vocabulary.cut("c\", \"er\"]");
    drafts.push(u32::from(b'}'));
    for round in 0..3 {
        for place in 0..4 {
            let mut guide = grammar.guide();
            if place % 2 == 1 {
                guide.spent = Duration::from_secs(1); // one that is worth handing over
            }
            worker.begin(place, guide, answer.clone(), drafts.clone());
        }
        let mut places = Vec::new();
        for masks in worker.finish() {
            places.push(masks.place);
            let next = masks.next.unwrap();
            // The last draft, `}`, is refused, and after `]` nothing can follow.
            assert_eq!(next.len(), drafts.len(), "round {round}");
            assert_eq!(next.last(), Some(&Next::End));
            let mut guide = masks.guide;
            for (count, next) in next.iter().enumerate() {
                let mut so_far = answer.clone();
                so_far.extend(&drafts[..count]);
                assert_eq!(&guide.next(&so_far).unwrap(), next);
            }
        }
        places.sort_unstable();
        assert_eq!(places, [0, 1, 2, 3]);
    }
}

#[test]
fn control_tokens_come_where_a_grammar_asks_for_them() {
    let grammar = compile(Constraint::Grammar(
        "start: \"ab\" <|tool|> \"c\"\n".to_owned(),
    ))
    .unwrap();
    let (b, c) = (u32::from(b'b'), u32::from(b'c'));
    let mut guide = grammar.guide();
    let only = |guide: &mut Guide, answer: &[u32]| match guide.next(answer).unwrap() {
        Next::Tokens(allowed) => allowed.ids(usize::MAX).collect::<Vec<u32>>(),
        Next::End => Vec::new(),
    };
    assert_eq!(only(&mut guide, &[u32::from(b'a'), b]), [END + 1]);
    assert_eq!(only(&mut guide, &[u32::from(b'a'), b, END + 1]), [c]);
    // A text that only spells its name is no control token.
    assert!(!takes(&schema(r#"{"type": "null"}"#), "<|tool|>"));
    let mut guide = compile(Constraint::JsonObject).unwrap().guide();
    for answer in ["", "{", "{\""] {
        let answer: Vec<u32> = answer.bytes().map(u32::from).collect();
        assert!(!only(&mut guide, &answer).contains(&(END + 1)));
    }
}

#[test]
fn one_compiled_grammar_serves_several_sequences_at_once() {
    let grammar = schema(r#"{"type": "array", "items": {"type": "string"}}"#);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for text in ["[\"abc\", \"the\"]", "[]", "[\"é日本\"]"] {
                    assert!(takes(&grammar, text));
                }
                // One that breaks disturbs no other.
                assert!(grammar.guide().next(&[u32::from(b'x')]).is_err());
            });
        }
    });
}

#[test]
fn a_vocabulary_is_checked() {
    let tokens = || vec![b"a".to_vec(), b"b".to_vec(), Vec::new()];
    for (special, ends) in [(&[3][..], &[2][..]), (&[], &[3]), (&[], &[])] {
        let sentence = Vocabulary::new(tokens(), special, ends)
            .unwrap_err()
            .to_string();
        assert!(sentence.starts_with("the vocabulary "), "{sentence}");
    }
    let vocabulary = Vocabulary::new(tokens(), &[], &[2]).unwrap();
    assert_eq!((vocabulary.tokens(), vocabulary.ends()), (3, &[2][..]));
    // A token longer than the trie takes does no harm.
    let mut long = tokens();
    long.push(vec![b' '; 5000]);
    Vocabulary::new(long, &[], &[2]).unwrap();
}
