//! The stages `report` and `texts`: several models side by side, and what features are tried on.

mod common;

use std::path::Path;

use common::{exits, golden, ok, rows, stories, write};
use serde_json::{Value, json};

#[test]
fn a_recipe_puts_several_models_side_by_side_and_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    stories(dir);
    let (question, problem) = (
        json!({"id": "q", "context": "Once upon a", "choices": [" time", " xq"], "answer": 0}),
        json!({"question": "1 + 1?", "answer": "#### 2"}),
    );
    write(dir, "c.jsonl", &[question]);
    write(dir, "math.jsonl", &[problem]);
    write(
        dir,
        "text.jsonl",
        &[
            json!({"text": "Once upon a time there was a little girl and her mom. They went to the big park and they saw a dog. ".repeat(8)}),
        ],
    );
    std::fs::create_dir(dir.join("worth")).unwrap();
    let recipe = |more: &str| {
        let text = format!(
            "stage = \"report\"\n[[model]]\nname = \"plain\"\nmodel = \"stories\"\n[[model]]\nname = \"again\"\nmodel = \"stories\"\n\
             [[task]]\nkind = \"perplexity\"\ntext = \"text.jsonl\"\nwindow = 64\nagainst = \"stories\"\n\
             [[task]]\nkind = \"choice\"\ntask = \"c.jsonl\"\n[[task]]\nkind = \"math\"\ntask = \"math.jsonl\"\nmax_tokens = 3\n{more}"
        );
        std::fs::write(dir.join("worth/01-report.toml"), text).unwrap();
    };
    recipe("[[task]]\nkind = \"positions\"\ntext = \"text.jsonl\"\nlength = 32\nbucket = 16\n");
    let run = || ok(dir, &["run", "worth", "--json"]).json();
    let facts = run();
    assert_eq!(facts["stages"][0]["skipped"], false);
    let out = dir.join("runs/worth/01-report");
    let read =
        |path: &Path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    for model in ["plain", "again"] {
        let of = |eval: &str| read(&out.join(model).join(format!("{eval}.json")));
        let perplexity = of("perplexity");
        assert_eq!(perplexity["settings"]["window"], 64);
        assert_eq!(
            perplexity["scores"]["kld"].as_f64().map(f64::abs),
            Some(0.0)
        );
        assert_eq!(of("choice-c")["scores"]["acc"], 1.0, "a time is likelier");
        assert_eq!(of("math")["scores"]["n"], 1);
        assert_eq!(of("positions")["scores"]["positions"][1]["from"], 16);
    }
    let both = read(&out.join("scores.json"));
    assert_eq!(
        both["runs"][0]["evals"]["choice-c"]["scores"],
        both["runs"][1]["evals"]["choice-c"]["scores"]
    );
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("plain") && page.contains("perplexity at 0 to 16"));
    assert_eq!(run()["stages"][0]["skipped"], true, "nothing has changed");

    // Whoever goes on asks only for what was not answered: the answers that are there are taken as they are.
    let answers = dir.join("runs/worth/01-report.answers");
    let kept = |what: &str| -> Vec<std::path::PathBuf> {
        let files = std::fs::read_dir(&answers).unwrap();
        let files = files.map(|file| file.unwrap().path());
        let named = files.filter(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with(what)
        });
        named.collect()
    };
    let [kept_math] = &kept("plain.math.")[..] else {
        panic!("one file of answers")
    };
    let answered = std::fs::read_to_string(kept_math).unwrap();
    let mut row: Value = serde_json::from_str(answered.trim()).unwrap();
    row["response"] = "#### 2".into();
    std::fs::write(kept_math, format!("{row}\n")).unwrap();
    std::fs::remove_dir_all(&out).unwrap();
    run();
    assert_eq!(read(&out.join("plain/math.json"))["scores"]["strict"], 1.0);
    assert_eq!(read(&out.join("again/math.json"))["scores"]["strict"], 0.0);

    // What was measured without answers is not measured again either; and the answers go along with the scores.
    let both = kept("plain.perplexity.");
    let whole = both.iter().find(|path| path.extension().unwrap() == "json");
    let whole = whole.expect("one record, beside its rows");
    assert_eq!(both.len(), 2);
    let mut record = read(whole);
    record["scores"]["perplexity"] = json!(7.5);
    std::fs::write(whole, record.to_string()).unwrap();
    let row = "{\"prompt\": \"a row\"}\n";
    std::fs::write(whole.with_extension("rows.jsonl"), row).unwrap();
    std::fs::remove_dir_all(&out).unwrap();
    run();
    assert_eq!(
        read(&out.join("plain/perplexity.json"))["scores"]["perplexity"],
        7.5
    );
    let kept_rows = std::fs::read_to_string(out.join("plain/perplexity.rows.jsonl"));
    assert_eq!(kept_rows.unwrap(), row);
    assert_eq!(
        rows(&out, "plain/math.responses.jsonl")[0]["response"],
        "#### 2"
    );

    // Another question is another file of answers, and the old one is in nobody's way.
    write(
        dir,
        "math.jsonl",
        &[json!({"question": "2 + 2?", "answer": "#### 4"})],
    );
    assert_eq!(run()["stages"][0]["skipped"], false);
    assert_eq!(read(&out.join("plain/math.json"))["scores"]["strict"], 0.0);
    assert_eq!(kept("plain.math.").len(), 2);

    for (more, says) in [
        (
            "[[task]]\nkind = \"math\"\ntask = \"other.jsonl\"\n",
            "a second time",
        ),
        ("[[task]]\nkind = \"judge\"\n", "`task.3.kind` is judge"),
        ("[[task]]\nkind = \"no\"\n", "write one of"),
        (
            "[[task]]\nkind = \"ifeval\"\nmax_token = 3\n",
            "`task.3` (ifeval)",
        ),
        (
            "[[task]]\nkind = \"ifeval\"\nsave = \"x\"\n",
            "`task.3.save` is the stage's",
        ),
        (
            "[[model]]\nname = \"plain\"\nmodel = \"stories\"\n",
            "tell them apart",
        ),
        (
            "[[model]]\nname = \"../x\"\nmodel = \"stories\"\n",
            "it names a folder",
        ),
        (
            "[[model]]\nname = \"gone\"\nmodel = \"gone\"\n",
            "`model.2.model` is gone",
        ),
    ] {
        recipe(more);
        let ran = exits(dir, 2, &["run", "worth"]);
        assert!(ran.stderr.contains(says), "{says}: {}", ran.stderr);
    }
}

#[test]
fn texts_are_drawn_and_summarised_by_a_recipe() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    stories(dir);
    let text = |n: usize| json!({"id": format!("t{n}"), "use_case": "email", "source": format!("Mail {n}. {}", "word ".repeat(n)), "reference": "Mail"});
    write(dir, "texts.jsonl", &(0..6).map(text).collect::<Vec<_>>());
    write(
        dir,
        "sensitive.jsonl",
        &[json!({"id": "s", "use_case": "sensitive", "source": "A knife."})],
    );
    let drawn = [
        "eval",
        "texts",
        "--from",
        "texts.jsonl",
        "--whole",
        "sensitive.jsonl",
        "--rows",
        "8",
        "--out",
        "drawn.jsonl",
        "--json",
    ];
    let drawn = ok(dir, &drawn).json();
    assert_eq!(
        (&drawn["n"], rows(dir, "drawn.jsonl").len()),
        (&json!(9), 9)
    );
    std::fs::create_dir(dir.join("sums")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.join("sums").join(name), text).unwrap();
    write(
        "01-texts.toml",
        "stage = \"texts\"\n[texts]\nrows = 8\n[data]\ntexts = [\"texts.jsonl\"]\nwhole = [\"sensitive.jsonl\"]\n",
    );
    write(
        "02-report.toml",
        "stage = \"report\"\n[[model]]\nname = \"plain\"\nmodel = \"stories\"\n[[task]]\nkind = \"summaries\"\n\
         task = \"01-texts/texts.jsonl\"\nmax_tokens = 4\n",
    );
    ok(dir, &["run", "sums", "--dry-run"]);
    ok(dir, &["run", "sums"]);
    let run = dir.join("runs/sums");
    // The same draw, by verb and by stage.
    assert_eq!(
        std::fs::read(dir.join("drawn.jsonl")).unwrap(),
        std::fs::read(run.join("01-texts/texts.jsonl")).unwrap()
    );
    let record = std::fs::read(run.join("02-report/plain/summaries.json")).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    assert_eq!(record["scores"]["n"], 9);
    assert_eq!(record["scores"]["use_cases"]["sensitive"]["n"], 1);
    // What people grade.
    let graded = [
        "grade",
        "--kind",
        "summaries",
        "--task",
        "runs/sums/01-texts/texts.jsonl",
        "--responses",
        "runs/sums/02-report/plain/summaries.responses.jsonl",
        "--export",
        "out",
    ];
    ok(dir, &graded);
    for (text, says) in [
        ("stage = \"texts\"\n[data]\ntexts = []\n", "empty list"),
        (
            "stage = \"texts\"\n[texts]\nrows = 0\n[data]\ntexts = [\"texts.jsonl\"]\n",
            "`texts.rows` is 0",
        ),
        (
            "stage = \"texts\"\n[texts]\nstacked = 2\n[data]\ntexts = [\"texts.jsonl\"]\n",
            "from 0 to 1",
        ),
    ] {
        write("01-texts.toml", text);
        let ran = common::russet(dir, &["run", "sums"]).output().unwrap();
        let said = String::from_utf8(ran.stderr).unwrap();
        assert!(!ran.status.success() && said.contains(says), "{said}");
    }
}

#[test]
fn the_reports_that_come_along_are_in_order() {
    let root = golden("..");
    let plans = |recipes: &str| -> Vec<Value> {
        let plans = ok(&root, &["run", recipes, "--dry-run", "--json"]).json();
        let stages = plans["stages"].as_array().unwrap().iter();
        stages.map(|stage| stage["plan"].clone()).collect()
    };
    let worth = plans("recipes/worth");
    assert_eq!(worth.len(), 6);
    assert_eq!(worth[0]["answers"], 1760, "{worth:?}");
    let of = |plan: &Value| (plan["models"].as_u64(), plan["tasks"].as_u64());
    assert_eq!(of(&worth[5]), (Some(4), Some(4)));
    let summaries = plans("recipes/summaries");
    assert_eq!(summaries[0]["rows"], 750);
    assert_eq!(of(&summaries[1]), (Some(1), Some(1)));
}
