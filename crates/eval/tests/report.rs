//! The page, the card and the file of scores.

use std::path::Path;

use russet_eval::report::{Run, html, markdown, scores};
use serde_json::{Value, json};

/// What would be markup, a script, an attribute's end, or a hidden turn of direction.
const WICKED: &str = "</pre><script>alert(1)</script><img src=x onerror=alert(2)> \" ' &amp; \u{202e}evil\u{1b}[31m |`x`|";

fn record(dir: &Path, eval: &str, scores: &Value, rows: &[Value]) {
    let record = json!({
        "format": 1, "eval": eval, "scores": scores, "settings": {"max_tokens": 5},
        "inputs": {"responses": {"path": "<r>.jsonl", "blake3": "0123456789abcdef0123"}},
        "tool": {"version": "0.1.0", "commit": "abc"},
    });
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join(format!("{eval}.json")), record.to_string()).unwrap();
    let rows: String = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(dir.join(format!("{eval}.rows.jsonl")), rows).unwrap();
}

fn math(right: f64) -> Value {
    json!({"strict": right, "strict_stderr": 0.01, "flexible": right, "flexible_stderr": 0.01, "n": 100})
}

#[test]
fn the_page_shows_text_as_text() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("run<b>");
    let row = json!({"name": WICKED, "prompt": WICKED, "response": WICKED, "category": WICKED, "passed": false, "note": WICKED});
    record(&dir, "math", &math(0.5), &[row]);
    record(
        &dir,
        "pairwise",
        &json!({"models": {WICKED: {"win_rate": 40.0, "win_rate_ci": [30.0, 50.0], "bt": 0.1, "ci": [-1.0, 1.0]}}}),
        &[],
    );
    let runs = [Run::read(&dir).unwrap()];
    let page = html::page(&runs);
    for tag in [
        "<script",
        "<img",
        "onerror=alert(2)>",
        "\u{202e}",
        "\u{1b}",
        "run<b>",
        "<r>.jsonl",
    ] {
        assert!(!page.contains(tag), "{tag:?} stands in the page");
    }
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(page.contains("⟨U+202E⟩evil⟨U+001B⟩"));
    // Nothing comes from elsewhere, and the page itself forbids it.
    assert!(page.contains("default-src 'none'"));
    for outside in ["http:", "https:", "src=", "@import", "url("] {
        assert!(
            !page.replace("img src=x", "").contains(outside),
            "{outside}"
        );
    }
    // What opens is closed.
    for tag in ["details", "div", "pre", "table", "svg", "span"] {
        let count = |mark: String| page.matches(&mark).count();
        let opened = count(format!("<{tag}>")) + count(format!("<{tag} "));
        assert_eq!(opened, count(format!("</{tag}>")), "{tag}");
    }
    assert!(page.contains("50.0 % <span class=\"i\">[48.0, 52.0]</span>"));
    assert!(page.contains("1 rows, 1 of them with something wrong"));
    assert!(page.contains("0123456789abcdef") && !page.contains("0123456789abcdef0"));
    let card = markdown::card(&runs);
    assert!(
        !card.contains("<script") && card.contains("\\`x\\`"),
        "{card}"
    );
    let cells = card
        .lines()
        .filter(|line| line.starts_with("| right"))
        .map(|line| line.replace("\\|", "").matches('|').count());
    assert_eq!(cells.collect::<Vec<_>>(), [3, 3]);
}

#[test]
fn two_runs_stand_side_by_side_with_their_difference() {
    let dir = tempfile::tempdir().unwrap();
    let row = |response: &str, passed: bool| json!({"name": "", "prompt": "1 + 1?", "response": response, "passed": passed});
    record(
        &dir.path().join("before"),
        "math",
        &math(0.4),
        &[row("three", false)],
    );
    record(
        &dir.path().join("after"),
        "math",
        &math(0.6),
        &[row("two", true)],
    );
    record(
        &dir.path().join("after"),
        "slots",
        &json!({"f1": 0.25, "exact": 0.1}),
        &[],
    );
    let runs = ["before", "after"].map(|name| Run::read(&dir.path().join(name)).unwrap());
    let page = html::page(&runs);
    assert!(page.contains("<span class=\"good\">+20.0</span>"));
    // Both responses behind one line of the prompt, and a dash where a run has none.
    assert_eq!(
        page.matches("<pre>1 + 1?</pre>").count(),
        2,
        "among what changed, and among all"
    );
    assert!(page.contains("<pre>three</pre>") && page.contains("<pre>two</pre>"));
    assert!(page.contains("<td class=\"n\">–</td>"));
    assert!(
        page.contains("Of 1 rows that before and after both have, after has 1 right that before has wrong, and 0 wrong that before has right"),
        "{page}"
    );
    assert!(page.contains("1 rows that after has right now, against before"));
    let turned = [runs[1].clone(), runs[0].clone()];
    assert!(html::page(&turned).contains("<span class=\"bad\">-20.0</span>"));
    let all = scores(&runs);
    assert_eq!(all["runs"][1]["evals"]["math"]["scores"]["strict"], 0.6);
    assert_eq!(
        all["runs"][0]["evals"]["math"]["inputs"]["responses"]["blake3"],
        "0123456789abcdef0123"
    );
    let card = markdown::card(&runs);
    assert!(
        card.contains("| before | after |") && card.contains("40.0 % \\[38.0, 42.0\\]"),
        "{card}"
    );
}

#[test]
fn what_is_no_run_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let said = |dir: &Path| Run::read(dir).unwrap_err().to_string();
    assert!(said(dir.path()).contains("no record of an evaluation"));
    record(dir.path(), "math", &math(0.5), &[json!({"prompt": 3})]);
    let error = said(dir.path());
    assert!(error.contains("math.rows.jsonl, line 1"), "{error}");
    let path = dir.path().join("math.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"format\":1", "\"format\":2")).unwrap();
    assert!(said(dir.path()).contains("it has format 2"));
    std::fs::write(&path, "{}").unwrap();
    assert!(said(dir.path()).contains("no record of an evaluation: missing field"));
}

#[test]
fn a_run_has_one_record_of_each_evaluation_and_all_of_one_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(format!("{name}.json"));
    let of = |eval: &str, model: &str| {
        let record = json!({"format": 1, "eval": eval, "scores": math(0.5), "settings": {}, "tool": {},
            "inputs": {"model": {"path": "m", "blake3": model}}});
        std::fs::write(path(eval), record.to_string()).unwrap();
    };
    of("math", "1");
    of("slots", "1");
    of("reward", "2");
    assert_eq!(Run::read(dir.path()).unwrap().records.len(), 3);
    let refused = |names: [&str; 2]| {
        let error = Run::read(dir.path()).unwrap_err().to_string();
        for name in names {
            assert!(error.contains(name), "{error}");
        }
    };
    std::fs::copy(path("math"), path("math-copy")).unwrap();
    refused(["math.json", "math-copy.json"]);
    std::fs::remove_file(path("math-copy")).unwrap();
    of("slots", "2");
    refused(["math.json", "slots.json"]);
}

#[test]
fn figures_stand_beside_the_tables_that_have_enough_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let of = |win: f64| json!({"win_rate": win, "win": win, "tie": 0.0, "loss": 100.0 - win, "games": 20});
    let category = json!({"old": of(40.0), "new": of(60.0)});
    let pairwise = json!({
        "models": {"old": {"win_rate": 40.0, "bt": -0.2}, "new": {"win_rate": 60.0, "bt": 0.2}},
        "pairs": [{"first": "old", "second": "new", "win": 50.5, "tie": 19.25, "loss": 30.25}],
        "categories": {"coding": category, "writing": category, "safety": category},
    });
    let needle = json!({"values": 16, "trials": 8, "found": {"accuracy": 0.5}, "accuracy_stderr": 0.1, "lengths": [
        {"length": 256, "found": {"accuracy": 0.75}, "accuracy_stderr": 0.05, "depths": [
            {"depth": 0.0, "found": {"accuracy": 1.0}}, {"depth": 0.5, "found": {"accuracy": 0.5}}]},
        {"length": 512, "found": {"accuracy": 0.25}, "depths": [
            {"depth": 0.0, "found": {"accuracy": 0.25}}, {"depth": 0.5, "found": {"accuracy": 0.25}}]}]});
    let position = |from: usize, nats: f64| json!({"from": from, "to": from + 64, "tokens": 640, "nats": nats, "standard_error": 0.01, "perplexity": nats.exp()});
    let positions = json!({"positions": [position(0, 3.0), position(64, 2.5)]});
    let safety = json!({"violation": {"rate": 7.5, "ci": [5.0, 10.0], "n": 40}, "over_refusal": {"rate": 12.0, "n": 40}, "helped": {"rate": 78.0, "n": 40}, "empty": {"rate": 5.0, "n": 80},
        "preference": {"models": {"old": {"win": 30.0}}, "pairs": [{"first": "old", "second": "new", "win": 40.0, "tie": 35.0, "loss": 25.0}]}});
    let ifeval = json!({"prompt_strict": 0.79, "instruction_strict": 0.86, "prompt_loose": 0.8, "instruction_loose": 0.87, "n": 541,
        "ci": {"prompt_strict": [0.755, 0.825]}});
    let all = [
        ("pairwise", &pairwise),
        ("needle", &needle),
        ("positions", &positions),
        ("safety", &safety),
        ("ifeval", &ifeval),
    ];
    for (eval, scores) in all {
        record(&dir.path().join("one"), eval, scores, &[]);
    }
    record(&dir.path().join("two"), "ifeval", &ifeval, &[]);
    let runs = ["one", "two"].map(|name| Run::read(&dir.path().join(name)).unwrap());
    let page = html::page(&runs);
    // The chart of all shares: violations and refusals turned, so that outwards is better.
    assert!(page.contains("<h2>At a glance</h2>"));
    assert!(
        page.contains("one, no violation: 92.5 %")
            && page.contains("one, safe prompts answered: 78.0 %")
    );
    assert!(page.contains("two, ifeval: prompt, strict: 79.0 %"));
    assert!(
        !page.contains("two, no violation"),
        "what was not measured has no point"
    );
    assert!(page.contains("<td>empty responses</td>"));
    // Preference in the form of 2024, of all prompts and of those on safety; and by category.
    assert!(page.contains("new against old"));
    for bar in ["wins 50.5 %", "ties 19.2 %", "losses 30.2 %", "wins 40.0 %"] {
        assert!(page.contains(&format!("title=\"{bar}\"")), "{bar}");
    }
    assert!(page.contains("new, coding: 60.0 %"));
    // Needles by depth and length, losses by position, and intervals.
    assert!(page.contains("<th class=\"n\">256 tokens</th>") && page.contains(">100 %</td>"));
    assert!(page.contains("one, at 96: 12.182"));
    assert!(page.contains("79.0 % <span class=\"i\">[75.5, 82.5]</span>"));
    assert!(page.contains("75.0 % <span class=\"i\">[65.2, 84.8]</span>"));
    // In the order of the figures of 2024: instructions, then prompts.
    let at = |label: &str| page.find(&format!("<td>{label}</td>")).unwrap();
    assert!(at("instruction, strict") < at("prompt, strict"));
    let tags = ["details", "div", "table", "svg", "span", "text", "title"];
    for tag in tags {
        let count = |mark: String| page.matches(&mark).count();
        let opened = count(format!("<{tag}>")) + count(format!("<{tag} "));
        assert_eq!(opened, count(format!("</{tag}>")), "{tag}");
    }
    // Three runs are compared with the first, each.
    let three = [runs[1].clone(), runs[1].clone(), runs[1].clone()];
    let page = html::page(&three);
    assert_eq!(page.matches("<span class=\"i\">+0.0</span>").count(), 8);
}
