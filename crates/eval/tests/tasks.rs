//! Multiple choice, programs, calls of functions, and losses by position.

mod common;

use std::path::PathBuf;

use common::{CONTEXT, bigram, ctx, dense, tokens};
use russet_artifact::{Interrupt, NoProgress};
use russet_eval::calls::{CallQuestion, check_calls, parse_calls, read_calls, score_calls};
use russet_eval::choice::{
    Continuation, Recorded, continuation, log_likelihoods, read_questions, read_recorded,
    score_choices,
};
use russet_eval::code::{Attempt, Task, attempt, read_tasks, score_code};
use russet_eval::math::{read_problems, score_problems};
use russet_eval::positions::by_position;
use russet_eval::sandbox::{Limits, Sandbox};
use russet_eval::{Document, Error, read_rows};
use russet_kernels::random;
use serde_json::{Value, json};

fn written(name: &str, rows: &[Value]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

#[test]
fn questions_of_four_forms_are_read() {
    let rows = [
        json!({"ind": 7, "activity_label": "Roof", "ctx_a": "A man stands.", "ctx_b": "he [step] HOLDS", "ctx": "no",
            "endings": ["a saw. [title] End", "it  well", "c", "d"], "label": "1"}),
        json!({"id": "arc", "question": "Why?", "choices": {"text": ["x", "yy"], "label": ["1", "2"]}, "answerKey": "2"}),
        json!({"id": "raw", "question": {"stem": "Why?", "choices": [{"text": "x", "label": "A"}, {"text": "y", "label": "B"}]}, "answerKey": "A"}),
        json!({"question": "1 + 1?", "choices": ["1", "2"], "answer": 1, "subject": "abstract_algebra"}),
        json!({"context": "The", "choices": ["fox", "hens"], "answer": 0}),
    ];
    let (_dir, path) = written("q.jsonl", &rows);
    let all = read_questions(&path).unwrap();
    assert_eq!(
        all[0].context,
        "Roof: A man stands. He  holds".replace("  ", " ")
    );
    assert_eq!(all[0].choices[..2], [" a saw.. End", " it well"]);
    assert_eq!((all[0].id.as_str(), all[0].answer), ("7", 1));
    assert_eq!(all[1].context, "Question: Why?\nAnswer:");
    assert_eq!(
        (&all[1].choices[..], all[1].answer),
        (&[" x".to_owned(), " yy".to_owned()][..], 1)
    );
    assert_eq!(all[1].bytes, [1, 2]);
    assert_eq!((all[2].choices.len(), all[2].answer), (2, 0));
    assert!(
        all[3]
            .context
            .ends_with("about abstract algebra.\n\n1 + 1?\nA. 1\nB. 2\nAnswer:")
    );
    assert_eq!(all[3].choices, [" A", " B"]);
    assert_eq!((all[3].id.as_str(), all[4].id.as_str()), ("3", "4"));
    for (row, said) in [
        (
            json!({"context": "c", "choices": ["a", "b"], "answer": 2}),
            "answer is number 2",
        ),
        (
            json!({"context": "c", "choices": ["a"], "answer": 0}),
            "at least two",
        ),
        (
            json!({"context": "c", "choices": "a", "answer": 0}),
            "list of strings",
        ),
        (
            json!({"question": "c", "choices": ["a", "b"], "answer": "Z"}),
            "`answer` is \"Z\"",
        ),
        (
            json!({"question": "c", "answerKey": "A"}),
            "no question of ARC",
        ),
        (
            json!({"choices": ["a", "b"], "answer": 0}),
            "lacks `question`",
        ),
    ] {
        let (_dir, path) = written("q.jsonl", &[rows[4].clone(), row]);
        let error = read_questions(&path).unwrap_err().to_string();
        assert!(
            error.contains("q.jsonl, line 2") && error.contains(said),
            "{said}: {error}"
        );
    }
}

#[test]
fn likelihoods_are_the_sums_that_the_model_gives() {
    // After 0 comes 1 with ½, after 1 comes 2 with ¼.
    let decoder = bigram(&[&[0.25, 0.5, 0.25], &[0.5, 0.25, 0.25], &[0.2, 0.3, 0.5]]);
    let of = |before: &[u32], scored: &[u32]| Continuation {
        before: before.to_vec(),
        scored: scored.to_vec(),
    };
    let all = [
        of(&[0], &[1, 2]),
        of(&[2, 1], &[0]),
        of(&[0], &[1, 2, 2, 2]),
    ];
    for pass in [1, 5, 1000] {
        let sums = log_likelihoods(&decoder, &mut ctx(1), &all, pass, &Interrupt::new()).unwrap();
        let expected = [0.5f64 * 0.25, 0.5, 0.5 * 0.25 * 0.5 * 0.5];
        for (sum, expected) in sums.iter().zip(expected) {
            assert!(
                (sum - expected.ln()).abs() < 1e-4,
                "{sum} {}",
                expected.ln()
            );
        }
    }
    // What is longer than the context loses its beginning, not what is scored.
    let decoder = dense(3);
    let long = of(&tokens(1, 100), &tokens(2, 5));
    let whole = [&long.before[..], &long.scored[..4]].concat();
    let cut = of(&whole[whole.len() - CONTEXT..whole.len() - 4], &long.scored);
    let sums = log_likelihoods(&decoder, &mut ctx(1), &[long, cut], 9, &Interrupt::new()).unwrap();
    assert!((sums[0] - sums[1]).abs() < 1e-5, "{sums:?}");
    let too_long = of(&[0], &tokens(2, CONTEXT + 1));
    assert!(log_likelihoods(&decoder, &mut ctx(1), &[too_long], 9, &Interrupt::new()).is_err());
    let unknown = log_likelihoods(
        &decoder,
        &mut ctx(1),
        &[of(&[0], &[999])],
        9,
        &Interrupt::new(),
    );
    assert!(matches!(unknown, Err(Error::UnknownToken { .. })));
    let stopped = Interrupt::new();
    stopped.raise();
    let stopped = log_likelihoods(&decoder, &mut ctx(1), &[of(&[0], &[1])], 9, &stopped);
    assert!(matches!(stopped, Err(Error::Interrupted)));
}

#[test]
fn a_token_that_context_and_choice_share_is_the_choices() {
    let of = |before: &[u32], scored: &[u32]| Continuation {
        before: before.to_vec(),
        scored: scored.to_vec(),
    };
    assert_eq!(continuation(0, &[5, 6], &[5, 6, 7]), of(&[0, 5, 6], &[7]));
    assert_eq!(continuation(0, &[5, 6], &[5, 9, 7]), of(&[0, 5], &[9, 7]));
    assert_eq!(continuation(0, &[5, 6], &[5, 6]), of(&[0, 5], &[6]));
}

/// The choice that a response was read as.
fn place_of(recorded: &Option<Recorded>) -> Option<usize> {
    match recorded {
        Some(Recorded::Chosen { place, .. }) => *place,
        other => panic!("{other:?} is no response"),
    }
}

#[test]
fn the_likeliest_choice_is_taken_by_sum_and_by_byte() {
    let rows = [
        json!({"id": "a", "context": "c", "choices": ["xx", "yyyyyyyy"], "answer": 1}),
        json!({"id": "b", "context": "c", "choices": ["x", "y"], "answer": 0}),
        json!({"id": "c", "context": "c", "choices": ["x", "y", "z", "w"], "answer": 0}),
    ];
    let (_dir, path) = written("q.jsonl", &rows);
    let questions = read_questions(&path).unwrap();
    let recorded = [
        json!({"id": "b", "log_probs": [-1.0, -1.0]}),
        json!({"id": "a", "log_probs": [-3.0, -4.0]}),
    ];
    let (_dir, path) = written("r.jsonl", &recorded);
    let recorded = read_recorded(&path, &questions).unwrap();
    let scores = score_choices(&questions, &recorded);
    // "a" is right by bytes only: -0.5 a byte against -1.5. "b" is a draw, and the first is taken.
    assert_eq!((scores.acc, scores.acc_norm, scores.n), (0.5, Some(1.0), 2));
    assert_eq!((scores.chance, scores.acc_stderr), (0.5, Some(0.5)));
    let said = [
        json!({"id": "a", "response": "The answer is (B)."}),
        json!({"id": "b", "response": "y, I think"}),
        json!({"id": "c", "response": "I'd say E"}),
    ];
    let (_dir, path) = written("r.jsonl", &said);
    let recorded = read_recorded(&path, &questions).unwrap();
    assert_eq!(place_of(&recorded[0]), Some(1));
    assert_eq!(place_of(&recorded[2]), None);
    let scores = score_choices(&questions, &recorded);
    assert_eq!((scores.acc, scores.acc_norm), (1.0 / 3.0, None));
    // The longest choice with an end behind it; a letter where none begins the response.
    let numbers =
        json!({"id": "n", "context": "c", "choices": ["10", "100", "5", "10.5"], "answer": 1});
    let (_dir, path) = written("q.jsonl", &[numbers]);
    let number = read_questions(&path).unwrap();
    for (response, place) in [
        ("100", Some(1)),
        ("100, since", Some(1)),
        ("10", Some(0)),
        ("10.", Some(0)),
        ("10.5 is", Some(3)),
        ("1000", None),
        ("5", Some(2)),
        ("B", Some(1)),
        ("A close look says it is C.", Some(2)),
    ] {
        let (_dir, path) = written("r.jsonl", &[json!({"id": "n", "response": response})]);
        let recorded = read_recorded(&path, &number).unwrap();
        assert_eq!(place_of(&recorded[0]), place, "{response}");
    }
    let colours =
        json!({"id": "n", "context": "c", "choices": ["red", "green", "dark green"], "answer": 1});
    let (_dir, path) = written("q.jsonl", &[colours]);
    let colour = read_questions(&path).unwrap();
    for (response, place) in [
        ("b", Some(1)),
        ("Option 2", Some(1)),
        ("It is not option 1 but option 3.", Some(2)),
        ("Option 4", None),
        ("I'd say it is red.", Some(0)),
        ("Red or green", None),
        ("<think>A?</think> C", Some(2)),
    ] {
        let (_dir, path) = written("r.jsonl", &[json!({"id": "n", "response": response})]);
        let recorded = read_recorded(&path, &colour).unwrap();
        assert_eq!(place_of(&recorded[0]), place, "{response}");
    }
    for (row, said) in [
        (json!({"id": "z", "response": "A"}), "its id z is none"),
        (json!({"id": "a", "log_probs": [1.0]}), "must be 2 numbers"),
        (json!({"id": "a"}), "lacks `response`"),
    ] {
        let (_dir, path) = written("r.jsonl", &[row]);
        let error = read_recorded(&path, &questions).unwrap_err().to_string();
        assert!(
            error.contains("r.jsonl, line 1") && error.contains(said),
            "{error}"
        );
    }
}

#[test]
fn word_problems_count_by_their_number() {
    let rows = [
        json!({"question": "one", "answer": "1 + 1 = 2\n#### 2"}),
        json!({"question": "two", "answer": "#### 1,200"}),
        json!({"question": "three", "answer": "#### 3"}),
    ];
    let (_dir, path) = written("g.jsonl", &rows);
    let problems = read_problems(&path).unwrap();
    assert_eq!(problems[1].answer, "1200");
    let responses = [Some("So #### 2"), Some("It is 1200."), None];
    let scores = score_problems(problems.iter().zip(responses));
    assert_eq!((scores.strict, scores.flexible, scores.n), (0.5, 1.0, 2));
    for (row, said) in [
        (json!({"question": "one", "answer": "#### 2"}), "line 1 too"),
        (json!({"question": "x", "answer": "2"}), "must end in"),
        (json!({"question": "x"}), "lacks `answer`"),
    ] {
        let (_dir, path) = written("g.jsonl", &[rows[0].clone(), row]);
        let error = read_problems(&path).unwrap_err().to_string();
        assert!(
            error.contains("line 2: ") && error.contains(said),
            "{error}"
        );
    }
}

fn task() -> Task {
    Task {
        id: "t/0".to_owned(),
        prompt: "def twice(x):\n    \"\"\"Twice x.\"\"\"\n".to_owned(),
        entry_point: "twice".to_owned(),
        test: "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0"
            .to_owned(),
    }
}

/// Runs completions with what this system permits: the sandbox, or limits alone where it permits none (and says so).
fn ran(completion: &str, limits: Limits) -> (bool, Attempt) {
    let (confined, sandbox) = match Sandbox::new(limits) {
        Ok(sandbox) => (true, sandbox),
        Err(error) => {
            assert!(error.to_string().contains("--unconfined"), "{error}");
            eprintln!("skipped in part: {error}");
            (false, Sandbox::limits_only(limits))
        }
    };
    (
        confined,
        attempt(&sandbox, "python3", &task(), completion).unwrap(),
    )
}

#[test]
fn programs_pass_by_their_tests_alone() {
    let limits = Limits {
        seconds: 20,
        ..Limits::default()
    };
    let check = |completion: &str, passed: bool, note: &str| {
        let (_, attempt) = ran(completion, limits);
        assert_eq!(attempt.passed, passed, "{completion}: {attempt:?}");
        assert!(attempt.note.contains(note), "{completion}: {attempt:?}");
    };
    check("    return 2 * x\n", true, "");
    check("```python\ndef twice(x):\n    return x + x\n```", true, "");
    check("    return 2 * x\n```\nIt doubles.", true, "");
    check("    return x\n", false, "AssertionError");
    check("    return (\n", false, "SyntaxError");
    check(
        "    import sys; sys.exit(0)\n",
        false,
        "ended before the tests",
    );
    check(
        "    import os; os._exit(125)\n",
        false,
        "ended before the tests",
    );
    check("    return bytearray(4 << 30)\n", false, "MemoryError");
    check(
        "    open('f', 'wb').write(bytes(3 << 20)); return 2 * x\n",
        false,
        "",
    );
}

#[test]
fn a_program_that_does_not_end_is_killed() {
    let limits = Limits {
        seconds: 1,
        ..Limits::default()
    };
    let (_, attempt) = ran("    import time\n    time.sleep(100)\n", limits);
    assert!(
        !attempt.passed && attempt.note.contains("end of its time"),
        "{attempt:?}"
    );
}

#[test]
fn the_sandbox_has_no_network_and_leaves_files_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine");
    std::fs::write(&path, "mine").unwrap();
    let limits = Limits {
        seconds: 20,
        ..Limits::default()
    };
    let spoil = format!(
        "    import socket\n    try:\n        socket.create_connection(('127.0.0.1', 9), 1)\n    except OSError as error:\n        \
         assert 'unreachable' in str(error), error\n    open({path:?}, 'w').write('spoilt')\n    return 2 * x\n"
    );
    let (confined, attempt) = ran(&spoil, limits);
    if confined {
        assert!(
            attempt.note.contains("Read-only file system"),
            "{attempt:?}"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    }
    let (_, here) = ran("    open('own', 'w').write('x'); return 2 * x\n", limits);
    assert!(here.passed, "{here:?}");
    // Nor by mounting anew what was made read-only.
    let escape = format!(
        "    import subprocess\n    subprocess.run(['mount', '-o', 'remount,bind,rw', '/'], stderr=subprocess.DEVNULL)\n    \
         open({path:?}, 'w').write('spoilt')\n    return 2 * x\n"
    );
    let (confined, attempt) = ran(&escape, limits);
    if confined {
        assert!(
            attempt.note.contains("Read-only file system"),
            "{attempt:?}"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    }
    // Nor does it find in its folder what is printed at the end of all.
    let cheats = "    import os, sys\n    for file in sorted(os.listdir('.')):\n        for line in open(file).read().splitlines():\n            \
                  print(line)\n            print(line.split('\"')[1] if '\"' in line else '')\n    sys.stdout.flush()\n    os._exit(0)\n";
    let (_, cheat) = ran(cheats, limits);
    assert!(!cheat.passed, "{cheat:?}");
    // What it does to its own folder is its own affair.
    let empties =
        "    import os\n    [os.remove(file) for file in os.listdir('.')]\n    return 2 * x\n";
    assert!(ran(empties, limits).1.passed);
}

#[test]
fn code_scores_are_means_over_tasks() {
    let attempt = |passed| Attempt {
        passed,
        note: String::new(),
    };
    let scores = score_code(&[
        vec![attempt(true), attempt(false)],
        vec![attempt(true)],
        vec![],
    ]);
    assert_eq!((scores.pass_at_1, scores.pass_at_10), (0.75, None));
    assert_eq!((scores.n, scores.samples), (2, 3));
    let row = json!({"task_id": "a", "prompt": "p", "entry_point": "f()", "test": "t"});
    let (_dir, path) = written("h.jsonl", &[row]);
    let error = read_tasks(&path).unwrap_err().to_string();
    assert!(error.contains("line 1: `entry_point`"), "{error}");
}

#[test]
fn calls_are_judged_as_the_leaderboard_judges() {
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/calls_golden.jsonl.zst");
    let rows = read_rows(&path).unwrap();
    assert_eq!(rows.len(), 640);
    let (mut right, mut different) = (0, Vec::new());
    for row in rows {
        let (_a, questions) = written("q.jsonl", &[row.object["question"].clone()]);
        let truth =
            json!({"id": row.object["question"]["id"], "ground_truth": row.object["ground_truth"]});
        let (_b, answers) = written("a.jsonl", &[truth]);
        let question = read_calls(&questions, Some(&answers)).unwrap().remove(0);
        let response = row.text("response").unwrap();
        let ours = check_calls(&question, response);
        let theirs = row.object["valid"] == true;
        right += usize::from(theirs);
        if ours.is_ok() != theirs {
            different.push(format!(
                "line {}: {ours:?}, there {theirs}: {response}",
                row.line
            ));
        }
    }
    assert!(right > 200);
    assert!(
        different.is_empty(),
        "{} differ:\n{}",
        different.len(),
        different.join("\n")
    );
}

#[test]
fn calls_come_in_json_too_and_none_where_none_fits() {
    let forms = [
        "f(a=1)",
        "```python\n[f(a=1)]\n```",
        r#"{"name": "f", "arguments": {"a": 1}}"#,
        r#"[{"type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]"#,
        r#"{"f": {"a": 1}}"#,
        r#"[{"f": "{\"a\": 1}"}]"#,
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>",
    ];
    for text in forms {
        let calls = parse_calls(text).unwrap_or_else(|| panic!("{text}"));
        assert_eq!((calls.len(), calls[0].name.as_str()), (1, "f"), "{text}");
        assert_eq!(calls[0].arguments["a"], 1, "{text}");
    }
    // A block a call, as templates write them.
    let block = |name: &str| {
        format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {{}}}}\n</tool_call>\n")
    };
    let both = parse_calls(&format!("{}{}", block("f"), block("g"))).unwrap();
    let names: Vec<&str> = both.iter().map(|call| &call.name[..]).collect();
    assert_eq!(names, ["f", "g"]);
    for text in [
        format!("{}and {}", block("f"), block("g")),
        format!("{}<tool_call>g<", block("f")),
        "<tool_call></tool_call>".to_owned(),
    ] {
        assert_eq!(parse_calls(&text), None, "{text}");
    }
    let question = |id: &str| CallQuestion {
        id: id.to_owned(),
        messages: Vec::new(),
        functions: Vec::new(),
        answers: Vec::new(),
    };
    let question = question("irrelevance_3");
    assert!(check_calls(&question, "None of the functions fits.").is_ok());
    assert!(check_calls(&question, "").is_ok());
    assert!(
        check_calls(&question, "f(a=1)")
            .unwrap_err()
            .contains("no function fits")
    );
    let scores = score_calls([
        (&question, Some(true)),
        (&question, Some(false)),
        (&question, None),
    ]);
    assert_eq!((scores.accuracy, scores.n), (0.5, 2));
    assert_eq!(scores.categories["irrelevance"].n, 2);
}

#[test]
fn losses_by_position_are_those_of_the_whole() {
    let decoder = dense(5);
    let document = |seed, count| Document {
        tokens: tokens(seed, count),
        bytes: count as u64,
    };
    let documents = [document(1, 40), document(2, 12), document(3, 50)];
    let scores = by_position(
        &decoder,
        &mut ctx(1),
        &documents,
        0,
        40,
        16,
        &mut NoProgress,
        &Interrupt::new(),
    )
    .unwrap();
    let bounds: Vec<_> = scores
        .iter()
        .map(|of| (of.from, of.to, of.tokens))
        .collect();
    assert_eq!(bounds, [(0, 16, 32), (16, 32, 32), (32, 40, 16)]);
    let nats: f64 = scores.iter().map(|of| of.nats * of.tokens as f64).sum();
    let long = [
        document(1, 40),
        Document {
            tokens: tokens(3, 50)[..40].to_vec(),
            bytes: 40,
        },
    ];
    let settings = russet_eval::Settings::new(0, 40);
    let whole = russet_eval::perplexity(
        &decoder,
        &mut ctx(1),
        &long,
        &settings,
        &mut NoProgress,
        &Interrupt::new(),
    )
    .unwrap();
    assert!((nats - whole.nats).abs() < 1e-3, "{nats} {}", whole.nats);
    let refused = by_position(
        &decoder,
        &mut ctx(1),
        &documents,
        0,
        60,
        16,
        &mut NoProgress,
        &Interrupt::new(),
    );
    assert!(refused.unwrap_err().to_string().contains("at most 50"));
}

#[test]
fn no_response_makes_a_parser_fall() {
    let texts = [
        "[f(a=\"it's\", b='x\\n\\u00e9', c=[1, (2, 3)], d={'k': True, 2: None}, e=unit, r=r'\\d', n=-5.5e1)]",
        r#"[{"name": "f", "arguments": {"a": [1, "é"]}}]"#,
        "```json\n{\"f\": {}}\n```",
    ];
    let mut read = 0;
    for (number, text) in texts.iter().enumerate() {
        for round in 0..3000 {
            let mut chars: Vec<char> = text.chars().collect();
            for change in 0..1 + round % 3 {
                let draw = |what, bound: usize| {
                    random::below(number as u64, round, 4 * change + what, bound as u64) as usize
                };
                let at = draw(0, chars.len());
                match draw(1, 3) {
                    0 => drop(chars.remove(at)),
                    1 => chars.insert(at, texts[0].chars().nth(draw(2, 60)).unwrap()),
                    _ => chars[at] = ['é', '\\', '\'', '(', '\0', '='][draw(3, 6)],
                }
            }
            let text: String = chars.into_iter().collect();
            read += usize::from(parse_calls(&text).is_some());
            let _slots = russet_eval::slots::parse_slots(&text);
        }
    }
    assert!((100..8900).contains(&read), "{read}");
}
