use std::path::{Path, PathBuf};

use super::*;
use crate::Error;
use crate::pairwise::{Judgements, cohen};
use crate::summaries::{read_grades, score_grades};

const NAMES: [&str; 3] = ["apple-7b", "pear-3b", "quince-1b"];

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

/// Files of responses of the first `models` names to `prompts` prompts.
fn files(dir: &Path, models: usize, prompts: usize) -> Vec<(String, PathBuf)> {
    let file = |model: usize| {
        let row = |n: usize| json!({"prompt": format!("Prompt {n}?"), "response": format!("text {n} of hand {model}"), "about": {}});
        let path = dir.join(format!("{model}.jsonl"));
        std::fs::write(&path, lines(&(0..prompts).map(row).collect::<Vec<_>>())).unwrap();
        (NAMES[model].to_owned(), path)
    };
    (0..models).map(file).collect()
}

fn pairs(singly: Singly) -> Asks {
    Asks::Pairs { grades: singly }
}

fn study(dir: &Path, models: usize, prompts: usize, singly: Singly) -> Study {
    let files = files(dir, models, prompts);
    read_pairs(pairs(singly), 7, &files).unwrap().study
}

fn first(strength: &str) -> Value {
    json!({"better": "first", "strength": strength})
}

/// The wish of a grader who always prefers the same hand, by text alone.
fn prefers(shown: &ShownTask, hand: usize) -> Value {
    let ends = format!("hand {hand}");
    match shown
        .responses
        .iter()
        .position(|text| text.ends_with(&ends))
    {
        Some(0) => json!({"better": "first", "strength": "better"}),
        Some(_) => json!({"better": "second", "strength": "significantly"}),
        None => json!({"better": "neither"}),
    }
}

use super::store::ShownTask;

#[test]
fn every_grader_meets_every_pair_once_in_an_order_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let study = study(dir.path(), 3, 40, Singly::None);
    let tasks = study.tasks();
    assert_eq!(tasks.len(), 120, "three pairs a prompt");
    let (anna, bert) = (study.order(&tasks, "anna"), study.order(&tasks, "bert"));
    assert_eq!(anna, study.order(&tasks, "anna"));
    assert_ne!(anna, bert);
    for order in [&anna, &bert] {
        let mut seen: Vec<usize> = order.iter().map(|turn| turn.task).collect();
        assert!(!seen.is_sorted());
        seen.sort_unstable();
        assert_eq!(seen, (0..120).collect::<Vec<_>>());
        let turned = order.iter().filter(|turn| turn.turned).count();
        assert!((40..=80).contains(&turned), "{turned} of 120 are turned");
    }
    let sides = |order: &[Turn]| {
        let mut sides: Vec<(usize, bool)> =
            order.iter().map(|turn| (turn.task, turn.turned)).collect();
        sides.sort_unstable();
        sides
    };
    assert_ne!(sides(&anna), sides(&bert), "no place is everybody's habit");
    let other = Study {
        seed: 8,
        ..study.clone()
    };
    assert_ne!(other.order(&tasks, "anna"), anna);
    // Where a prompt stood in its file does not matter.
    let mut moved = study.clone();
    moved.items.reverse();
    let names = |study: &Study, order: &[Turn]| -> Vec<(String, bool)> {
        let tasks = study.tasks();
        let name = |turn: &Turn| (study.items[tasks[turn.task].item].name.clone(), turn.turned);
        order.iter().map(name).collect()
    };
    let again = moved.order(&moved.tasks(), "anna");
    assert_eq!(names(&moved, &again), names(&study, &anna));
}

#[test]
fn what_was_said_is_gone_on_with_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let keep = dir.path().join("grades.sqlite");
    let study = study(dir.path(), 2, 4, Singly::Optional);
    let grading = Grading::begin(&keep, study.clone()).unwrap();
    let shown = grading.next(" anna ").unwrap();
    assert_eq!(shown.progress, progress("anna", 0, 0, 4));
    let place = shown.task.unwrap().place;
    let second = grading.say("anna", place, &first("slightly")).unwrap();
    assert_eq!(second.progress, progress("anna", 1, 0, 4));
    drop(grading);
    for grading in [
        Grading::begin(&keep, study.clone()).unwrap(),
        Grading::open(&keep).unwrap(),
    ] {
        assert_eq!(grading.study(), &study);
        assert_eq!(grading.next("anna").unwrap(), second);
        assert_eq!(grading.progress().unwrap(), [progress("anna", 1, 0, 4)]);
    }
    // Another study is not mixed in.
    let mut other = study.clone();
    other.items[0].responses[0] = Some("changed".to_owned());
    let said = Grading::begin(&keep, other).unwrap_err().to_string();
    assert!(
        said.contains("other responses") && said.contains("--keep"),
        "{said}"
    );
}

fn progress(grader: &str, graded: usize, skipped: usize, of: usize) -> Progress {
    Progress {
        grader: grader.to_owned(),
        graded,
        skipped,
        of,
    }
}

#[test]
fn taking_back_goes_as_far_as_one_likes_and_skipping_puts_off() {
    let dir = tempfile::tempdir().unwrap();
    let study = study(dir.path(), 2, 3, Singly::None);
    let grading = Grading::begin(&dir.path().join("g.sqlite"), study).unwrap();
    let place = |shown: &Shown| shown.task.as_ref().unwrap().place;
    assert!(matches!(grading.undo("anna"), Err(Error::Answer(_))));
    let shown = grading.next("anna").unwrap();
    assert_eq!(place(&shown), 0);
    let shown = grading.skip("anna", 0).unwrap();
    assert_eq!((place(&shown), shown.progress.skipped), (1, 1));
    let shown = grading.say("anna", 1, &first("better")).unwrap();
    let shown = grading
        .say("anna", place(&shown), &json!({"better": "neither"}))
        .unwrap();
    // What was put off comes at last, and is said to have been.
    assert_eq!(place(&shown), 0);
    assert!(shown.task.as_ref().unwrap().skipped);
    let shown = grading.say("anna", 0, &first("negligibly")).unwrap();
    assert_eq!((shown.task, shown.progress.graded), (None, 3));
    assert!(grading.is_complete().unwrap());

    let back = grading.undo("anna").unwrap();
    let task = back.task.unwrap();
    assert_eq!(
        (task.place, task.said.unwrap()["strength"].as_str()),
        (0, Some("negligibly"))
    );
    assert!(
        task.skipped,
        "the grade is taken back, and not the putting off before it"
    );
    assert!(!grading.is_complete().unwrap());
    let back = grading.undo("anna").unwrap();
    assert_eq!(
        (place(&back), back.task.unwrap().said.unwrap()),
        (
            2,
            json!({"better": "neither", "strength": null, "grades": [{}, {}]})
        )
    );
    grading.undo("anna").unwrap();
    let back = grading.undo("anna").unwrap();
    let task = back.task.unwrap();
    assert_eq!((task.place, task.said, task.skipped), (0, None, false));
    assert_eq!(back.progress, progress("anna", 0, 0, 3));
    assert!(grading.undo("anna").is_err() && grading.said().unwrap().is_empty());
    assert!(
        grading.progress().unwrap().is_empty(),
        "who has taken all back does not count"
    );

    // Said again, the later word counts, once.
    grading.say("anna", 0, &first("better")).unwrap();
    grading
        .say("anna", 0, &json!({"better": "neither"}))
        .unwrap();
    assert_eq!(grading.said().unwrap().len(), 1);
}

#[test]
fn answers_that_are_none_are_refused_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let begin = |singly: Singly| {
        let study = study(dir.path(), 2, 3, singly);
        Grading::begin(&dir.path().join(format!("{singly:?}.sqlite")), study).unwrap()
    };
    let (none, optional, required) = (
        begin(Singly::None),
        begin(Singly::Optional),
        begin(Singly::Required),
    );
    let grades = |grades: Value| json!({"better": "first", "strength": "better", "grades": grades});
    for (grading, answer, says) in [
        (&none, json!(3), "no answer"),
        (&none, json!({}), "better"),
        (&none, json!({"better": "first"}), "`strength`"),
        (
            &none,
            json!({"better": "first", "strength": "very"}),
            "significantly",
        ),
        (
            &none,
            json!({"better": "neither", "strength": "better"}),
            "leave it out",
        ),
        (
            &none,
            json!({"better": "first", "strength": "better", "model": "x"}),
            "model",
        ),
        (&none, grades(json!([{"verbosity": 1}, {}])), "no grades"),
        (
            &optional,
            grades(json!([{"wit": 1}, {}])),
            "instruction_following",
        ),
        (&optional, grades(json!([{"verbosity": 3}, {}])), "0 to 2"),
        (&optional, grades(json!([{"verbosity": 1}])), "no answer"),
        (
            &required,
            grades(json!([{"verbosity": 1}, {}])),
            "7 grades are missing",
        ),
    ] {
        let said = grading.say("anna", 0, &answer).unwrap_err();
        assert!(matches!(said, Error::Answer(_)), "{said}");
        assert!(said.to_string().contains(says), "{answer}: {said}");
    }
    let long = "x".repeat(41);
    for name in ["", "  ", "a\nb", &long] {
        assert!(matches!(none.next(name), Err(Error::Answer(_))), "{name:?}");
    }
    assert!(
        none.say("anna", 3, &first("better"))
            .unwrap_err()
            .to_string()
            .contains("no place 3")
    );
    assert!(none.said().unwrap().is_empty());
    // Two texts that are the same can only be equal.
    let mut same = study(dir.path(), 2, 1, Singly::None);
    same.items[0].responses[1] = same.items[0].responses[0].clone();
    let same = Grading::begin(&dir.path().join("same.sqlite"), same).unwrap();
    assert!(
        same.say("anna", 0, &first("better"))
            .unwrap_err()
            .to_string()
            .contains("the same text")
    );
    assert!(
        same.say("anna", 0, &json!({"better": "neither"}))
            .unwrap()
            .task
            .is_none()
    );
}

#[test]
fn judgements_come_out_as_they_were_meant_whoever_stood_first() {
    let dir = tempfile::tempdir().unwrap();
    let study = study(dir.path(), 3, 12, Singly::Optional);
    let grading = Grading::begin(&dir.path().join("g.sqlite"), study).unwrap();
    // Anna prefers the hand of pear, bert that of apple.
    for (grader, hand) in [("anna", 1), ("bert", 0)] {
        let mut shown = grading.next(grader).unwrap();
        while let Some(task) = shown.task {
            let mut answer = prefers(&task, hand);
            let level =
                |text: &String| json!({"verbosity": if text.ends_with("hand 1") { 2 } else { 0 }});
            answer["grades"] = task.responses.iter().map(level).collect();
            shown = grading.say(grader, task.place, &answer).unwrap();
        }
    }
    let files = grading.export().unwrap();
    assert_eq!(
        files.iter().map(|file| file.name).collect::<Vec<_>>(),
        ["judgements.jsonl", "reward.jsonl"]
    );
    let path = dir.path().join("judgements.jsonl");
    std::fs::write(&path, files[0].text()).unwrap();
    let read = Judgements::read(&path).unwrap();
    assert_eq!(
        (read.games.len(), read.unjudged.len(), read.repeated.len()),
        (72, 0, 0)
    );
    for row in &files[0].rows {
        let favourite = if row["judge"] == "anna" {
            NAMES[1]
        } else {
            NAMES[0]
        };
        let winner = match row["winner"].as_str().unwrap() {
            "a" => &row["model_a"],
            "b" => &row["model_b"],
            _ => {
                assert!(row["model_a"] != favourite && row["model_b"] != favourite);
                continue;
            }
        };
        assert_eq!(winner, favourite, "{row}");
        let of_pear = if row["model_a"] == NAMES[1] {
            "grades_a"
        } else {
            "grades_b"
        };
        let pear_is_there = row["model_a"] == NAMES[1] || row["model_b"] == NAMES[1];
        assert!(!pear_is_there || row[of_pear]["verbosity"] == 2, "{row}");
    }
    let shown: std::collections::BTreeSet<&str> = files[0]
        .rows
        .iter()
        .map(|row| row["shown"].as_str().unwrap())
        .collect();
    assert_eq!(shown.len(), 2, "both orders occur and are recorded");
    for row in &files[1].rows {
        let hand = if row["grader"] == "anna" {
            "hand 1"
        } else {
            "hand 0"
        };
        assert!(row["chosen"].as_str().unwrap().ends_with(hand), "{row}");
        assert!(["better", "significantly"].contains(&row["strength"].as_str().unwrap()));
        let pear = row["chosen"].as_str().unwrap().ends_with("hand 1");
        assert_eq!(row["chosen_grades"]["verbosity"], if pear { 2 } else { 0 });
    }
    assert_eq!(files[1].rows.len(), 48, "no ties");

    // The same sums as of the file, and kappa by hand.
    let results = grading.results(false).unwrap();
    assert_eq!(
        (&results["complete"], &results["named"]),
        (&json!(true), &json!(true))
    );
    let scores = &results["scores"]["pairwise"];
    assert_eq!(scores["games"], 72);
    // 1 the first by name is better, 2 the second, 0 neither: of apple and pear, apple and quince, pear and quince.
    let mut labels = Vec::new();
    for (one, two) in [(2, 1), (0, 1), (1, 0)] {
        labels.extend([[one, two]; 12]);
    }
    assert_eq!(
        scores["agreement"]["pairs"][0]["cohen"].as_f64(),
        cohen(&labels)
    );
    let verbosity = &results["scores"]["grades"]["verbosity"];
    assert_eq!(verbosity["models"][NAMES[1]]["mean"], 2.0);
    assert_eq!(verbosity["agreement"]["pairs"][0]["cohen"], 1.0);
}

#[test]
fn no_model_is_named_before_all_is_graded() {
    let dir = tempfile::tempdir().unwrap();
    let study = study(dir.path(), 3, 2, Singly::Optional);
    let grading = Grading::begin(&dir.path().join("g.sqlite"), study).unwrap();
    let nameless = |value: &dyn std::fmt::Debug| {
        let text = format!("{value:?}");
        NAMES.iter().all(|name| !text.contains(name))
    };
    let mut shown = grading.next("anna").unwrap();
    assert_eq!(grading.results(false).unwrap()["scores"], Value::Null);
    while let Some(task) = shown.task.clone() {
        assert!(nameless(&shown), "{shown:?}");
        assert!(nameless(&grading.study().describe()));
        let results = grading.results(false).unwrap();
        assert!(
            !results["named"].as_bool().unwrap() && nameless(&results),
            "{results}"
        );
        shown = grading.say("anna", task.place, &prefers(&task, 1)).unwrap();
    }
    assert!(!nameless(&grading.results(false).unwrap()));
    // Another one begins, and they are gone again.
    grading.skip("bert", 0).unwrap();
    let results = grading.results(false).unwrap();
    assert!(
        nameless(&results) && results["scores"]["pairwise"]["models"]["model 1"].is_object(),
        "{results}"
    );
    assert!(!nameless(&grading.results(true).unwrap()));
}

fn summaries(dir: &Path) -> Read {
    let task = dir.join("texts.jsonl");
    let row = |n: usize| json!({"id": n, "source": format!("Text {n}."), "use_case": if n == 0 { "email" } else { "message" }});
    std::fs::write(&task, lines(&(0..3).map(row).collect::<Vec<_>>())).unwrap();
    let file = |model: usize, texts: usize| {
        let row = |n: usize| json!({"id": n, "response": format!("summary {n} of hand {model}")});
        let path = dir.join(format!("s{model}.jsonl"));
        std::fs::write(&path, lines(&(0..texts).map(row).collect::<Vec<_>>())).unwrap();
        (NAMES[model].to_owned(), path)
    };
    let models = [file(0, 3), file(1, 2)];
    let asks = Asks::Summaries {
        dimensions: DIMENSIONS.map(str::to_owned).to_vec(),
    };
    read_summaries(asks, 0, &task, &models).unwrap()
}

#[test]
fn summaries_are_graded_by_five_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let read = summaries(dir.path());
    assert!(
        read.remarks[0].contains("1 of 3 texts"),
        "{:?}",
        read.remarks
    );
    let grading = Grading::begin(&dir.path().join("g.sqlite"), read.study).unwrap();
    let answer = |last: &str| {
        let mut grades: BTreeMap<&str, &str> =
            DIMENSIONS.into_iter().map(|name| (name, "good")).collect();
        grades.insert(DIMENSIONS[4], last);
        json!({"grades": grades})
    };
    for grader in ["anna", "bert"] {
        let mut shown = grading.next(grader).unwrap();
        assert_eq!(shown.progress.of, 5);
        while let Some(task) = shown.task {
            assert_eq!(task.responses.len(), 1);
            let last = if task.responses[0].ends_with("hand 1") {
                "poor"
            } else {
                "neutral"
            };
            shown = grading.say(grader, task.place, &answer(last)).unwrap();
        }
    }
    for wrong in [
        json!({"grades": {}}),
        answer("bad"),
        json!({"grades": {"a": "good", "b": "good", "c": "good", "d": "good", "e": "good"}}),
    ] {
        assert!(
            matches!(grading.say("anna", 0, &wrong), Err(Error::Answer(_))),
            "{wrong}"
        );
    }
    let files = grading.export().unwrap();
    let path = dir.path().join(files[0].name);
    std::fs::write(&path, files[0].text()).unwrap();
    let scores = score_grades(&read_grades(&path).unwrap());
    assert_eq!(
        (scores[NAMES[0]]["all"].n, scores[NAMES[0]]["all"].poor),
        (6, 0.0)
    );
    assert_eq!(
        (scores[NAMES[1]]["email"].n, scores[NAMES[1]]["all"].poor),
        (2, 100.0)
    );
    let results = grading.results(false).unwrap();
    assert_eq!(results["scores"]["summaries"], json!(scores));
    assert_eq!(
        results["scores"]["agreement"][DIMENSIONS[4]]["pairs"][0]["cohen"],
        1.0
    );
    assert_eq!(
        results["scores"]["agreement"][DIMENSIONS[0]]["pairs"][0]["cohen"],
        Value::Null
    );
}

#[test]
fn two_graders_at_once_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let keep = dir.path().join("g.sqlite");
    let study = study(dir.path(), 2, 20, Singly::None);
    let one = Grading::begin(&keep, study).unwrap();
    let two = Grading::open(&keep).unwrap(); // as another process has it
    std::thread::scope(|scope| {
        for (grading, grader) in [
            (&one, "anna"),
            (&one, "bert"),
            (&two, "carl"),
            (&two, "anna"),
        ] {
            scope.spawn(move || {
                for place in 0..20 {
                    grading.say(grader, place, &first("better")).unwrap();
                }
            });
        }
    });
    for grading in [one, two] {
        let all = ["anna", "bert", "carl"].map(|grader| progress(grader, 20, 0, 20));
        assert_eq!(grading.progress().unwrap(), all);
        assert_eq!(grading.said().unwrap().len(), 60);
    }
}

#[test]
fn a_study_is_begun_once_and_a_word_said_twice_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let keep = dir.path().join("g.sqlite");
    let study = study(dir.path(), 2, 20, Singly::None);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| Grading::begin(&keep, study.clone()).unwrap());
        }
    });
    let grading = Grading::open(&keep).unwrap();
    grading.say("anna", 0, &first("better")).unwrap();
    // The page heard nothing and says it again; then something else.
    grading.say("anna", 0, &first("better")).unwrap();
    grading.say("anna", 0, &first("slightly")).unwrap();
    grading.undo("anna").unwrap();
    assert_eq!(grading.progress().unwrap(), [progress("anna", 1, 0, 20)]);
    grading.undo("anna").unwrap();
    assert!(grading.progress().unwrap().is_empty());
    assert!(grading.undo("anna").is_err(), "two words, not three");
}

#[test]
fn a_file_from_elsewhere_does_nothing_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let keep = dir.path().join("g.sqlite");
    drop(Grading::begin(&keep, study(dir.path(), 2, 2, Singly::None)).unwrap());
    let file = rusqlite::Connection::open(&keep).unwrap();
    let trigger = "CREATE TRIGGER away AFTER INSERT ON said BEGIN DELETE FROM said; END";
    file.execute_batch(trigger).unwrap();
    drop(file);
    let grading = Grading::open(&keep).unwrap();
    grading.say("anna", 0, &first("better")).unwrap();
    assert_eq!(grading.said().unwrap().len(), 1);
}

#[test]
fn files_at_fault_are_named_with_their_line() {
    let dir = tempfile::tempdir().unwrap();
    let long = "x".repeat(MOST_BYTES + 1);
    let good = json!({"prompt": "a", "response": "b"}).to_string();
    for (text, says) in [
        (
            format!("{good}\n{{\"prompt\": \"c\"}}\n"),
            "line 2: it lacks `response`",
        ),
        (
            format!("{good}\n{{\"prompt\": \n"),
            "line 2: it is not a JSON object",
        ),
        (
            format!("{good}\n{good}\n"),
            "line 2: the prompt \"a\" has a response",
        ),
        (
            format!("\n{}\n", json!({"prompt": "a", "response": 3})),
            "line 2: `response` is 3",
        ),
        (
            format!("{}\n", json!({"prompt": "a", "response": long})),
            "line 1: `response` has 1048577 bytes",
        ),
        (
            json!({"prompt": "z", "response": ""}).to_string(),
            "no prompt is answered by two",
        ),
    ] {
        let mut models = files(dir.path(), 2, 2);
        std::fs::write(&models[1].1, format!("{text}\n")).unwrap();
        std::fs::write(&models[0].1, format!("{good}\n")).unwrap();
        let said = read_pairs(pairs(Singly::None), 0, &models)
            .unwrap_err()
            .to_string();
        assert!(said.contains(says), "{said}");
        models[1].0 = models[0].0.clone();
        let said = read_pairs(pairs(Singly::None), 0, &models)
            .unwrap_err()
            .to_string();
        assert!(said.contains("two models are called"), "{said}");
    }
    let one = files(dir.path(), 1, 2);
    assert!(
        read_pairs(pairs(Singly::None), 0, &one)
            .unwrap_err()
            .to_string()
            .contains("1 models")
    );
    let asks = Asks::Summaries {
        dimensions: vec!["a".to_owned(); 5],
    };
    let said = read_summaries(asks, 0, &one[0].1, &one)
        .unwrap_err()
        .to_string();
    assert!(said.contains("five names"), "{said}");
}

#[test]
fn a_file_that_is_no_study_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let study = study(dir.path(), 2, 2, Singly::None);
    let path = |name: &str| dir.path().join(name);
    let foreign = rusqlite::Connection::open(path("other.sqlite")).unwrap();
    foreign
        .execute_batch("CREATE TABLE study (hash TEXT); INSERT INTO study VALUES ('x')")
        .unwrap();
    std::fs::write(
        path("notes"),
        "these are notes, and long enough to be no header of anything".repeat(20),
    )
    .unwrap();
    for (name, says) in [
        ("other.sqlite", "another program"),
        ("notes", "no database of SQLite"),
    ] {
        let before = std::fs::read(path(name)).unwrap();
        for said in [
            Grading::begin(&path(name), study.clone()).unwrap_err(),
            Grading::open(&path(name)).unwrap_err(),
        ] {
            assert!(said.to_string().contains(says), "{said}");
        }
        assert_eq!(std::fs::read(path(name)).unwrap(), before);
    }
    assert!(
        Grading::open(&path("none"))
            .unwrap_err()
            .to_string()
            .contains("no such file")
    );
    assert!(!path("none").exists());
    // A study whose responses were changed behind its back, and a word that is none.
    let kept = Grading::begin(&path("g.sqlite"), study.clone()).unwrap();
    kept.say("anna", 0, &first("better")).unwrap();
    drop(kept);
    let damage = |sql: &str| {
        rusqlite::Connection::open(path("g.sqlite"))
            .unwrap()
            .execute_batch(sql)
            .unwrap()
    };
    damage("UPDATE said SET answer = '{\"better\": 3}'");
    let said = Grading::open(&path("g.sqlite"))
        .unwrap()
        .said()
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("row 1") && said.contains("g.sqlite"),
        "{said}"
    );
    damage("UPDATE response SET text = 'other' WHERE item = 0");
    let said = Grading::open(&path("g.sqlite")).unwrap_err().to_string();
    assert!(said.contains("changed the file"), "{said}");
}
