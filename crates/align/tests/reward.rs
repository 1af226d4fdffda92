//! A reward model, from preferences to a checkpoint that tells better answers from worse.

mod common;

use common::{StopAt, base, bytes, finished, plan, run_to, write};
use russet_align::{Lesson, rewards};
use russet_artifact::{Interrupt, NoProgress};
use russet_model::{adapter, checkpoint};
use russet_train::Outcome;
use serde_json::{Value, json};

fn report(folder: &std::path::Path) -> Value {
    let text = std::fs::read_to_string(folder.join("report.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Preferences for whoever names the fox, in words that come in any order: `seed` makes other rows of the same kind.
fn pairs(seed: usize, count: usize) -> Vec<Value> {
    let words = ["the", "barn", "and", "sun", "hen", "saw", "hill", "rise"];
    let said = |number: usize, with: &str| {
        let at = |place: usize| words[(seed + number * 7 + place * (3 + number % 5)) % words.len()];
        let mut said: Vec<&str> = (0..5).map(at).collect();
        said.insert(number % 6, with);
        said.join(" ")
    };
    let strengths = ["significantly", "better", "slightly", "negligibly"];
    let one = |number: usize| {
        let mut row = json!({
            "prompt": format!("Who saw {}?", words[number % words.len()]),
            "chosen": said(number, "fox"),
            "rejected": said(number + 3, "hen"),
            "strength": strengths[number % 2],
        });
        if number.is_multiple_of(3) {
            row["chosen_grades"] = json!({"truthfulness": 2});
            row["rejected_grades"] = json!({"truthfulness": 0});
        }
        row
    };
    (0..count).map(one).collect()
}

fn begin(dir: &std::path::Path) {
    base(dir);
    write(&dir.join("pairs.jsonl"), &pairs(0, 32));
    write(&dir.join("held.jsonl"), &pairs(5, 24));
}

#[test]
fn separable_preferences_are_learnt_by_all_weights_and_by_adapters() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    begin(dir);
    let held = format!("data.validation={}", json!([dir.join("held.jsonl")]));
    let changes = |more: &'static str| {
        let usual = [
            "train.steps=60",
            "train.batch_sequences=8",
            "train.peak_lr=2e-3",
        ];
        usual.into_iter().chain([more]).collect::<Vec<_>>()
    };
    for (name, more) in [("whole", "train.seed=1"), ("lora", "adapter.rank=8")] {
        let mut changes = changes(more);
        changes.push(&held);
        let plan = plan(dir, Lesson::Rewards, "pairs.jsonl", &changes).unwrap();
        let out = dir.join(name);
        finished(run_to(&plan, &out, &mut NoProgress, &Interrupt::new()));
        let found = report(&out);
        let measured = &found["measured"];
        assert!(
            measured["preference_accuracy"].as_f64().unwrap() > 0.95,
            "{found}"
        );
        assert!(
            measured["grade_accuracy"].as_f64().unwrap() > 0.9,
            "{found}"
        );
        // Asked for σ(r_c - r_r) of 0.95 and 0.85, and no more.
        let margin = measured["reward_margin"].as_f64().unwrap();
        assert!(margin > 1.0 && margin < 5.0, "{found}");
    }
    // What was written opens again, with its head.
    let config = std::fs::read_to_string(dir.join("whole/config.json")).unwrap();
    assert!(
        config.contains("Qwen3ForSequenceClassification"),
        "{config}"
    );
    let decoder = checkpoint::open(&dir.join("whole")).unwrap();
    assert!(decoder.reward_head().unwrap().has_grades());
    let adapted = checkpoint::open(&dir.join("base")).unwrap();
    assert!(adapted.reward_head().is_none());
    let adapted = adapter::attach(adapted, &dir.join("lora"), None).unwrap();
    assert!(adapted.reward_head().unwrap().has_grades());
    rewards::ModelReward::open(&dir.join("base"), Some(&dir.join("lora"))).unwrap();
    let error = rewards::ModelReward::open(&dir.join("base"), None)
        .err()
        .unwrap();
    assert!(error.to_string().contains("no reward head"), "{error}");
    // An adapter that judges is none to answer through.
    let error = adapter::load(&decoder.layouts(), &dir.join("lora"), None)
        .err()
        .unwrap();
    assert!(error.to_string().contains("reward model"), "{error}");
}

#[test]
fn stopped_or_left_in_peace_a_run_leaves_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    begin(dir);
    for (name, change) in [("all", "train.seed=1"), ("lora", "adapter.rank=4")] {
        let again = || plan(dir, Lesson::Rewards, "pairs.jsonl", &[change]).unwrap();
        let (whole, parts) = (dir.join(name), dir.join(format!("{name}-parts")));
        finished(run_to(&again(), &whole, &mut NoProgress, &Interrupt::new()));
        for stop in [3, 7] {
            let interrupt = Interrupt::new();
            let mut progress = StopAt(stop, interrupt.clone());
            let stopped = run_to(&again(), &parts, &mut progress, &interrupt);
            assert!(
                matches!(stopped, Outcome::Interrupted { .. }),
                "{stopped:?}"
            );
        }
        finished(run_to(&again(), &parts, &mut NoProgress, &Interrupt::new()));
        assert_eq!(bytes(&parts), bytes(&whole), "{name}");
    }
}

#[test]
fn what_a_reward_model_cannot_have_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    begin(dir);
    for (change, word) in [
        ("data.too_long='cut'", "data.too_long"),
        ("dpo.beta=0.1", "dpo"),
        ("reward.grade_weight=-1", "reward.grade_weight"),
        ("train.z_loss=1e-6", "train.z_loss"),
    ] {
        let error = plan(dir, Lesson::Rewards, "pairs.jsonl", &[change]).unwrap_err();
        assert!(error.to_string().contains(word), "{change}: {error}");
    }
    let error = plan(
        dir,
        Lesson::Preferences,
        "pairs.jsonl",
        &["reward.grade_weight=1"],
    );
    assert!(error.unwrap_err().to_string().contains("`reward`"));
    let mut rows = pairs(0, 3);
    rows[1]["strength"] = json!("very");
    write(&dir.join("bad.jsonl"), &rows);
    let error = plan(dir, Lesson::Rewards, "bad.jsonl", &[])
        .unwrap_err()
        .to_string();
    for word in ["bad.jsonl", "line 2", "`strength`"] {
        assert!(error.contains(word), "{error}");
    }
}
