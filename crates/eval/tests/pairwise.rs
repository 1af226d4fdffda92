//! Judgements beside what alpaca_eval, scikit-learn and statsmodels make of them (`golden/pairwise.py`), simulated games, and faults.

use std::path::{Path, PathBuf};

use russet_eval::pairwise::{
    Form, Game, Judgements, LengthRow, PairwiseScores, PairwiseSettings, cohen, fleiss,
    length_controlled, score,
};
use russet_kernels::random;
use serde_json::{Value, json};

fn golden() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pairwise_golden.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn written(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

fn read(name: &str, text: &str) -> Judgements {
    let (_dir, path) = written(name, text);
    Judgements::read(&path).unwrap()
}

fn scored(judgements: &Judgements) -> PairwiseScores {
    let settings = PairwiseSettings {
        rounds: 200,
        seed: 1,
    };
    score(judgements, &[], &settings).unwrap()
}

#[track_caller]
fn close(ours: f64, theirs: &Value, tolerance: f64) {
    let theirs = theirs.as_f64().unwrap();
    assert!((ours - theirs).abs() < tolerance, "{ours} and {theirs}");
}

#[test]
fn annotations_of_alpaca_eval_score_as_there() {
    for case in golden()["cases"].as_array().unwrap() {
        let rows = case["rows"].as_array().unwrap();
        let annotation = |(number, row): (usize, &Value)| {
            let text = |length: &Value| "é".repeat(length.as_u64().unwrap() as usize);
            json!({"instruction": format!("{number}?"), "generator_1": "base", "generator_2": "new", "annotator": "x",
                "preference": row["preference"], "output_1": text(&row["length_1"]), "output_2": text(&row["length_2"]),
                "instruction_difficulty": row.get("instruction_difficulty")})
        };
        let rows: Vec<Value> = rows.iter().enumerate().map(annotation).collect();
        let as_array = read("a.json", &serde_json::to_string_pretty(&rows).unwrap());
        let as_lines = read("a.jsonl", &lines(&rows));
        assert_eq!(as_array.games, as_lines.games);
        assert_eq!(as_array.form, Form::AlpacaEval);
        let gamed = gamed(case);
        let settings = PairwiseSettings {
            rounds: 50,
            seed: 0,
        };
        let scores = score(&as_array, &gamed, &settings).unwrap();
        let (new, base) = (&scores.models["new"], &scores.models["base"]);
        close(new.win_rate, &case["win_rate"], 1e-9);
        close(new.standard_error.unwrap(), &case["standard_error"], 1e-9);
        assert!((new.win_rate + base.win_rate - 100.0).abs() < 1e-9);
        let percent = |count: &Value| 100.0 * count.as_f64().unwrap() / rows.len() as f64;
        assert!((new.outcomes.win - percent(&case["wins"])).abs() < 1e-9);
        assert!((new.outcomes.tie - percent(&case["draws"])).abs() < 1e-9);
        let [low, high] = new.win_rate_ci;
        assert!(low < new.win_rate && new.win_rate < high);
        // Both minimise to the last digits; 1e-6 of a per cent is what the two solvers leave.
        let controlled = &case["controlled"];
        close(
            new.length_controlled_win_rate.unwrap(),
            &controlled["win_rate"],
            1e-4,
        );
        close(
            new.lc_standard_error.unwrap(),
            &controlled["standard_error"],
            1e-4,
        );
    }
}

fn gamed(case: &Value) -> Vec<LengthRow> {
    let gamed = case["gamed"].as_array().unwrap().iter();
    let row = |row: &Value| LengthRow {
        score: row["preference"].as_f64().unwrap(),
        longer: row["std_delta_len"].as_f64().unwrap(),
        difficulty: row["instruction_difficulty"].as_f64(),
    };
    gamed.map(row).collect()
}

#[test]
fn length_control_equals_the_reference_regression() {
    for case in golden()["cases"].as_array().unwrap() {
        let row = |row: &Value| LengthRow {
            score: row["preference"].as_f64().unwrap() - 1.0,
            longer: row["length_1"].as_f64().unwrap() - row["length_2"].as_f64().unwrap(),
            difficulty: row.get("instruction_difficulty").and_then(Value::as_f64),
        };
        let rows: Vec<LengthRow> = case["rows"].as_array().unwrap().iter().map(row).collect();
        let ours = length_controlled(&rows, &gamed(case)).unwrap();
        let theirs = &case["controlled"];
        close(ours.c, &theirs["c"], 1e-9);
        close(ours.length, &theirs["length"], 1e-5);
        close(ours.model, &theirs["model"], 1e-5);
        match ours.difficulty {
            Some(difficulty) => close(difficulty, &theirs["difficulty"], 1e-5),
            None => assert!(theirs["difficulty"].is_null()),
        }
        close(ours.win_rate, &theirs["win_rate"], 1e-4);
    }
    let row = |difficulty| LengthRow {
        score: 1.0,
        longer: 1.0,
        difficulty,
    };
    let mixed = length_controlled(&[row(Some(0.1)), row(None)], &[]).unwrap_err();
    assert!(mixed.to_string().contains("1 of 2"), "{mixed}");
}

#[test]
fn kappas_are_those_of_scikit_learn_and_statsmodels() {
    let golden = golden();
    let agreement = &golden["agreement"];
    let labels: Vec<Vec<u8>> = serde_json::from_value(agreement["labels"].clone()).unwrap();
    for (pair, (i, j)) in [(0, 1), (0, 2), (1, 2)].into_iter().enumerate() {
        let both: Vec<[u8; 2]> = labels.iter().map(|row| [row[i], row[j]]).collect();
        close(cohen(&both).unwrap(), &agreement["cohen"][pair], 1e-12);
    }
    close(fleiss(&labels).unwrap(), &agreement["fleiss"], 1e-12);
}

/// 600 games of four models whose strengths are known.
fn simulated(seed: u64) -> (Vec<f64>, Judgements) {
    let strengths = vec![-0.9, -0.2, 0.3, 0.8];
    let games = (0..600).map(|game| {
        let first = random::below(seed, 0, game, 4) as usize;
        let second = (first + 1 + random::below(seed, 1, game, 3) as usize) % 4;
        let p = 1.0 / (1.0 + libm::exp(strengths[first] - strengths[second]));
        Game {
            prompt: game.to_string(),
            first: format!("m{first}"),
            second: format!("m{second}"),
            score: f64::from(u8::from(f64::from(random::uniform(seed, 2, game)) < p)),
            category: (game % 2 == 0).then(|| "even".to_owned()),
            lengths: None,
            difficulty: None,
            responses: None,
        }
    });
    let judgements = Judgements {
        form: Form::Plain,
        games: games.collect(),
        votes: Vec::new(),
        majority: Vec::new(),
        unjudged: Vec::new(),
        repeated: Vec::new(),
        empty: Vec::new(),
    };
    (strengths, judgements)
}

#[test]
fn bradley_terry_recovers_known_strengths_within_its_intervals() {
    // 95 % intervals of 4 models in 12 runs: 46 of 48 hold on average; fewer than 41 come once in a hundred.
    let (mut held, mut widths) = (0, 0.0);
    for seed in 0..12 {
        let (strengths, judgements) = simulated(seed);
        let scores = scored(&judgements);
        for (model, strength) in strengths.iter().enumerate() {
            let model = &scores.models[&format!("m{model}")];
            let [low, high] = model.ci;
            held += usize::from(low <= *strength && *strength <= high);
            widths += (high - low) / 48.0;
            assert!((model.bt - strength).abs() < 0.5, "{model:?}");
            assert!(
                (model.elo - 1000.0 - 173.7 * strength).abs() < 90.0,
                "{model:?}"
            );
            assert!(model.elo_ci[0] < model.elo && model.elo < model.elo_ci[1]);
        }
    }
    assert!((41..=48).contains(&held), "{held}");
    // By theory about 4 · √(1.5 / 300 / 0.22) · ¾.
    assert!((0.25..0.6).contains(&widths), "{widths}");
}

#[test]
fn the_same_seed_gives_the_same_intervals() {
    let (_, judgements) = simulated(3);
    assert_eq!(scored(&judgements), scored(&judgements));
    let other = PairwiseSettings {
        rounds: 200,
        seed: 2,
    };
    let other = score(&judgements, &[], &other).unwrap();
    let ours = scored(&judgements);
    assert_eq!(ours.models["m0"].bt, other.models["m0"].bt);
    assert_ne!(ours.models["m0"].ci, other.models["m0"].ci);
    let even = &ours.categories["even"];
    let games: usize = even.values().map(|outcomes| outcomes.games).sum();
    assert_eq!(games, 600, "300 games, two sides each");
    let none = PairwiseSettings { rounds: 0, seed: 0 };
    assert!(score(&judgements, &[], &none).is_err());
}

#[test]
fn three_annotators_give_a_majority_and_their_agreement() {
    let row = |idx: u64, votes: [u64; 3]| {
        json!({"idx": idx, "cmp_key": "llama-7b_opt-7b", "instruction": "i", "input": idx.to_string(), "response1": "a", "response2": "bb",
            "annotator1": votes[0], "annotator2": votes[1], "annotator3": votes[2], "motivation_app": "Gmail"})
    };
    let rows = [
        row(1, [1, 1, 2]),
        row(2, [2, 2, 2]),
        row(3, [0, 1, 2]),
        row(4, [0, 0, 1]),
        row(5, [2, 2, 1]),
    ];
    let judgements = read("p.jsonl", &lines(&rows));
    let majority: Vec<Option<u8>> = judgements
        .majority
        .iter()
        .map(|(_, label)| *label)
        .collect();
    assert_eq!(majority, [Some(1), Some(2), None, Some(0), Some(2)]);
    let scores = scored(&judgements);
    assert_eq!(scores.models["opt-7b"].win_rate, 60.0);
    assert_eq!(scores.models["llama-7b"].win_rate, 40.0);
    assert_eq!(scores.categories["Gmail"]["opt-7b"].games, 5);
    let agreement = scores.agreement.unwrap();
    assert_eq!((agreement.items, agreement.pairs.len()), (5, 3));
    assert_eq!(agreement.unanimous, Some(0.2));
    assert_eq!(agreement.pairs[0].observed, 0.8);
}

#[test]
fn a_judge_who_saw_both_orders_has_judged_once() {
    let row = |prompt: &str, a: &str, b: &str, winner: &str, judge: &str| json!({"prompt": prompt, "model_a": a, "model_b": b, "winner": winner, "judge": judge, "category": "c"});
    let rows = [
        row("p", "x", "y", "b", "j"),
        row("p", "y", "x", "a", "j"), // y again
        row("q", "x", "y", "a", "j"),
        row("q", "y", "x", "a", "j"), // for the place
        row("p", "y", "x", "b", "k"),
    ];
    let judgements = read("j.jsonl", &lines(&rows));
    let games: Vec<f64> = judgements.games.iter().map(|game| game.score).collect();
    assert_eq!(games, [1.0, 0.5, 1.0]);
    let labels: Vec<u8> = judgements.votes.iter().map(|vote| vote.label).collect();
    assert_eq!(labels, [2, 0, 1]);
    let scores = scored(&judgements);
    let x = &scores.models["x"];
    assert_eq!((x.outcomes.games, x.win_rate), (3, 50.0));
    assert_eq!((x.outcomes.win, x.outcomes.tie), (100.0 / 3.0, 100.0 / 3.0));
    assert_eq!(scores.agreement.unwrap().pairs[0].observed, 0.0);
}

#[test]
fn what_is_wrong_with_a_row_is_said_with_its_line() {
    let alpaca = |preference: Value| json!({"generator_1": "a", "generator_2": "b", "preference": preference});
    let plain =
        |winner: &str| json!({"prompt": "p", "model_a": "a", "model_b": "b", "winner": winner});
    let pandalm = |key: &str, vote: Value| json!({"cmp_key": key, "annotator1": vote, "annotator2": 1, "annotator3": 1, "idx": 1});
    for (rows, said) in [
        (
            vec![alpaca(json!(1)), alpaca(json!(2.5))],
            "line 2: `preference` is 2.5",
        ),
        (vec![alpaca(json!("b"))], "line 1: `preference` is \"b\""),
        (
            vec![json!({"generator_1": "a", "generator_2": "b"})],
            "lacks `preference`",
        ),
        (
            vec![json!({"generator_1": "a", "preference": 1})],
            "lacks `generator_2`",
        ),
        (
            vec![alpaca(json!(1)), plain("a")],
            "line 2: it lacks `generator_1`",
        ),
        (vec![plain("a"), plain("b")], "line 2: the same judge"),
        (vec![plain("c")], "`winner` is \"c\""),
        (
            vec![
                json!({"prompt": "p", "model_a": "a", "model_b": "b", "winner": "a", "preference": 2}),
            ],
            "line 1: `winner` is \"a\", but `preference` says otherwise",
        ),
        (
            vec![json!({"model_a": "a", "model_b": "b", "winner": "a"})],
            "lacks `prompt`",
        ),
        (
            vec![json!({"model_a": "a", "model_b": "b", "prompt": "p"})],
            "lacks `winner`",
        ),
        (vec![pandalm("a_b_c", json!(1))], "`cmp_key`"),
        (vec![pandalm("a_b", json!(3))], "`annotator1` is 3"),
        (
            vec![pandalm("a_b", json!(1)), pandalm("a_b", json!(1))],
            "line 2: its `idx` 1",
        ),
        (vec![json!({"text": "t"})], "line 1: it is no judgement"),
        (vec![], "there are no judgements"),
        (
            vec![alpaca(Value::Null)],
            "none of its 1 rows says who is better",
        ),
    ] {
        let (_dir, path) = written("r.jsonl", &lines(&rows));
        let error = Judgements::read(&path).unwrap_err().to_string();
        assert!(error.contains(said), "{said:?} is not in {error}");
        assert!(error.contains("r.jsonl"), "{error}");
    }
    let twice = [
        json!({"instruction": "i", "generator_1": "a", "generator_2": "b", "preference": 1, "output_1": "", "output_2": "x"}),
        json!({"instruction": "i", "generator_1": "a", "generator_2": "b", "preference": 0}),
        json!({"instruction": "j", "generator_1": "a", "generator_2": "b", "preference": null}),
    ];
    let judgements = read("t.jsonl", &lines(&twice));
    assert_eq!(judgements.repeated, [2]);
    assert_eq!(judgements.unjudged, [3]);
    assert_eq!(judgements.empty, [1]);
    assert_eq!(
        judgements
            .games
            .iter()
            .map(|game| game.score)
            .collect::<Vec<_>>(),
        [0.0, 0.5]
    );
}
