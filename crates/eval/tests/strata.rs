//! Texts that features are tried on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use russet_artifact::Interrupt;
use russet_eval::strata::{Drawn, StrataSettings, draw};
use russet_eval::summaries::read_summaries;
use serde_json::{Value, json};

fn write(dir: &Path, name: &str, rows: &[Value]) -> PathBuf {
    let path = dir.join(name);
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(&path, text).unwrap();
    path
}

/// Twelve emails of two contents and all lengths, and three messages of one.
fn texts() -> Vec<Value> {
    let email = |n: usize| {
        let content = if n.is_multiple_of(2) { "work" } else { "home" };
        json!({"id": format!("e{n}"), "source": "word ".repeat(n + 1), "use_case": "email", "content": content, "reference": "words"})
    };
    let message = |n: usize| json!({"id": format!("m{n}"), "source": format!("message {n}"), "use_case": "message"});
    (0..12).map(email).chain((0..3).map(message)).collect()
}

fn drawn(dir: &Path, rows: &[Value], settings: &StrataSettings) -> Drawn {
    draw(
        &[write(dir, "texts.jsonl", rows)],
        &[],
        settings,
        &Interrupt::new(),
    )
    .unwrap()
}

#[test]
fn every_stratum_has_its_share_and_stacks_are_of_one_kind() {
    let dir = tempfile::tempdir().unwrap();
    let settings = StrataSettings {
        rows: 20,
        stacked: 0.5,
        most: 3,
        seed: 1,
    };
    let all = drawn(dir.path(), &texts(), &settings);
    let mut of: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut ids = BTreeSet::new();
    let kinds: BTreeMap<String, String> = texts()
        .iter()
        .map(|row| {
            let text = |key: &str| row[key].as_str().unwrap().to_owned();
            (text("id"), text("use_case"))
        })
        .collect();
    for row in &all.rows {
        assert!(ids.insert(row["id"].to_string()), "{row}");
        let key = |key: &str| row[key].as_str().unwrap().to_owned();
        *of.entry((key("use_case"), key("stratum"))).or_default() += 1;
        let Some(documents) = row["documents"].as_array() else {
            continue;
        };
        // A stack is of different documents of one use case, and says what they say.
        let names: BTreeSet<&str> = documents.iter().map(|id| id.as_str().unwrap()).collect();
        assert_eq!(names.len(), documents.len(), "{row}");
        assert!(
            names.iter().all(|id| kinds[*id] == key("use_case")),
            "{row}"
        );
        assert_eq!(key("source").matches("\n\n").count() + 1, names.len());
        assert!(row.get("reference").is_none(), "nobody has summarised it");
    }
    let count = |case: &str, stratum: &str| of.get(&(case.to_owned(), stratum.to_owned())).copied();
    // Ten of twelve emails, over two contents and three lengths of two each.
    for content in ["home", "work"] {
        for length in ["short", "medium", "long"] {
            let rows = count("email", &format!("{content}, single, {length}")).unwrap();
            assert!((1..=2).contains(&rows), "{content} {length}: {rows}");
        }
    }
    for size in [2, 3] {
        assert_eq!(count("email", &format!("stack of {size}")), Some(5));
    }
    let emails = all.rows.iter().filter(|row| row["use_case"] == "email");
    assert_eq!(emails.count(), 20);
    // Three messages, their three pairs and the one of all: no set twice, and the lack is said.
    assert_eq!(all.short, [("message".to_owned(), 7)]);
    let told: usize = all.strata.iter().map(|stratum| stratum.rows).sum();
    assert_eq!(told, all.rows.len());
    // What was drawn is what eval summaries reads.
    assert_eq!(
        read_summaries(&write(dir.path(), "drawn.jsonl", &all.rows))
            .unwrap()
            .len(),
        27
    );
}

#[test]
fn the_draw_follows_from_the_seed_and_not_from_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let settings = StrataSettings {
        rows: 8,
        ..StrataSettings::default()
    };
    let one = drawn(dir.path(), &texts(), &settings);
    let mut turned = texts();
    turned.reverse();
    assert_eq!(drawn(dir.path(), &turned, &settings), one);
    let other = StrataSettings {
        seed: 1,
        ..settings
    };
    assert_ne!(drawn(dir.path(), &texts(), &other), one);
    // None stacked, and a file that is taken whole.
    let plain = StrataSettings {
        rows: 4,
        stacked: 0.0,
        ..settings
    };
    let whole = [json!({"id": "s1", "source": "A knife.", "use_case": "sensitive"})];
    let whole = write(dir.path(), "whole.jsonl", &whole);
    let texts = write(dir.path(), "texts.jsonl", &texts());
    let all = draw(&[texts], &[whole], &plain, &Interrupt::new()).unwrap();
    assert!(all.rows.iter().all(|row| row.get("documents").is_none()));
    assert_eq!(all.rows.last().unwrap()["stratum"], "taken whole");
    assert_eq!(all.rows.len(), 8);
}

#[test]
fn what_cannot_be_drawn_from_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let row = json!({"id": "a", "source": "text", "use_case": "email"});
    for (rows, says) in [
        (vec![row.clone(), row.clone()], "line 2: its id a"),
        (
            vec![json!({"id": "a", "source": " ", "use_case": "email"})],
            "line 1: its `source` is empty",
        ),
        (
            vec![json!({"id": "a", "source": "text"})],
            "line 1: it lacks `use_case`",
        ),
        (vec![], "there are no texts"),
    ] {
        let path = write(dir.path(), "texts.jsonl", &rows);
        let error = draw(&[path], &[], &StrataSettings::default(), &Interrupt::new())
            .unwrap_err()
            .to_string();
        assert!(error.contains(says), "{error}");
    }
    let path = [write(dir.path(), "texts.jsonl", &[row])];
    let refused = |settings: StrataSettings| {
        draw(&path, &[], &settings, &Interrupt::new())
            .unwrap_err()
            .to_string()
    };
    let usual = StrataSettings::default();
    assert!(refused(StrataSettings { rows: 0, ..usual }).contains("rows is 0"));
    assert!(
        refused(StrataSettings {
            stacked: 1.5,
            ..usual
        })
        .contains("from 0 to 100")
    );
    assert!(refused(StrataSettings { most: 1, ..usual }).contains("most is 1"));
}
