//! Learning from preferences, from files to a checkpoint that prefers.

mod common;

use common::{StopAt, base, bytes, files, finished, plan, run_to};
use russet_align::Lesson;
use russet_artifact::{Interrupt, NoProgress};
use russet_train::Outcome;
use serde_json::{Value, json};

fn report(folder: &std::path::Path) -> Value {
    let text = std::fs::read_to_string(folder.join("report.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn preferences_are_learnt_under_every_loss() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    base(dir);
    files(dir);
    let held = format!("data.validation={}", json!([dir.join("pairs.jsonl")]));
    for (name, changes, first) in [
        ("dpo", &["dpo.beta=0.5"][..], 2f64.ln()),
        ("ipo", &["dpo.loss='ipo'", "dpo.beta=0.5"], 1.0), // (0 - 1)²
        (
            "mean",
            &["dpo.beta=2.0", "dpo.length_normalised=true"],
            2f64.ln(),
        ),
        ("lora", &["dpo.beta=0.5", "adapter.rank=8"], 2f64.ln()),
    ] {
        let changes: Vec<&str> = changes
            .iter()
            .copied()
            .chain([
                held.as_str(),
                "train.steps=40",
                "train.peak_lr=2e-3",
                "train.checkpoint_every=0",
            ])
            .collect();
        let plan = plan(dir, Lesson::Preferences, "pairs.jsonl", &changes).unwrap();
        let out = dir.join(name);
        let made = finished(run_to(&plan, &out, &mut NoProgress, &Interrupt::new()));
        // Before the first step the policy is the reference.
        assert!(
            (f64::from(made.first_loss) - first).abs() < 1e-5,
            "{name}: {}",
            made.first_loss
        );
        let found = report(&out);
        assert_eq!(found["before"]["preference_accuracy"], 0.5, "{name}");
        assert_eq!(
            found["measured"]["preference_accuracy"], 1.0,
            "{name}: {found}"
        );
        assert!(
            f64::from(made.last_loss) < 0.5 * first,
            "{name}: {}",
            made.last_loss
        );
        if name == "ipo" {
            // Drawn to 1 / (2β) and not beyond all bounds.
            let margin = found["measured"]["preference_margin"].as_f64().unwrap();
            assert!((margin - 1.0).abs() < 0.7, "{margin}");
        }
    }
}

#[test]
fn stopped_or_left_in_peace_a_run_leaves_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    base(dir);
    files(dir);
    let plan = plan(dir, Lesson::Preferences, "pairs.jsonl", &[]).unwrap();
    let (whole, parts) = (dir.join("whole"), dir.join("parts"));
    finished(run_to(&plan, &whole, &mut NoProgress, &Interrupt::new()));
    for stop in [3, 7] {
        // A new process knows nothing of the reference.
        let plan = common::plan(dir, Lesson::Preferences, "pairs.jsonl", &[]).unwrap();
        let interrupt = Interrupt::new();
        let stopped = run_to(
            &plan,
            &parts,
            &mut StopAt(stop, interrupt.clone()),
            &interrupt,
        );
        assert!(
            matches!(stopped, Outcome::Interrupted { .. }),
            "{stopped:?}"
        );
    }
    let again = common::plan(dir, Lesson::Preferences, "pairs.jsonl", &[]).unwrap();
    finished(run_to(&again, &parts, &mut NoProgress, &Interrupt::new()));
    assert_eq!(bytes(&parts), bytes(&whole));
}

#[test]
fn what_preferences_cannot_have_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    base(dir);
    files(dir);
    for (change, word) in [
        ("data.too_long='cut'", "data.too_long"),
        ("dpo.beta=0", "dpo.beta"),
        ("train.z_loss=1e-6", "train.z_loss"),
        ("train.sequence_length=8", "nothing of it is left"),
    ] {
        let error = plan(dir, Lesson::Preferences, "pairs.jsonl", &[change]).unwrap_err();
        assert!(error.to_string().contains(word), "{change}: {error}");
    }
    let error = plan(dir, Lesson::Preferences, "train.jsonl", &[])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`chosen`") && error.contains("line 1"),
        "{error}"
    );
}
