//! Recovery on a toy: a model of two layers, a crude package of it, and the text that it learnt.

#[path = "../../train/tests/common/mod.rs"]
mod common;
mod toy;

use std::fs;
use std::path::Path;

use std::sync::Arc;

use russet_artifact::{Draft, Inputs, Interrupt, Kind, NoProgress, Progress, Stage};
use russet_compress::{
    CompressError, RECOVER_REPORT, REPORT, RecoverReport, RecoverSettings, RecoverStart, Rotation,
    State, Width, palettize, recover,
};
use russet_kernels::Pool;
use russet_kernels::palette::Bits;
use russet_train::{Outcome, Plan, Resume, Settings, Sources, TeacherInput, TrainError, pretrain};
use toy::{StopAt, packaged, taken};

fn plan(dir: &Path, changes: &[&str]) -> Plan {
    let changes = [&["distill.kind=kl"], changes].concat();
    let sources = Sources {
        package: Some(dir.join("package")),
        ..Sources::from(&dir.join("tokens"))
    };
    let plan = Plan::new(common::adapter_settings::<Settings>(&changes), sources).unwrap();
    let teacher = TeacherInput::Checkpoint(dir.join("checkpoint"));
    plan.taught_by(teacher).unwrap()
}

fn start(start: RecoverStart) -> RecoverSettings {
    RecoverSettings {
        start: Some(start),
        fit_tokens: 1000,
    }
}

fn run(
    dir: &Path,
    changes: &[&str],
    settings: &RecoverSettings,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<Outcome, TrainError> {
    recover(
        &plan(dir, changes),
        settings,
        Some(&dir.join("checkpoint")),
        &dir.join("adapter"),
        &common::tool(),
        Resume::Continue,
        progress,
        interrupt,
    )
}

/// Runs it to its end and takes its artifact away; its report and its identity.
fn whole(dir: &Path, changes: &[&str], settings: &RecoverSettings) -> (RecoverReport, String) {
    let outcome = run(dir, changes, settings, &mut NoProgress, &Interrupt::new());
    assert!(matches!(outcome, Ok(Outcome::Finished(_))), "{outcome:?}");
    taken(&dir.join("adapter"), Kind::Adapter, RECOVER_REPORT)
}

#[test]
fn a_fit_is_a_beginning_that_training_goes_on_from() {
    let (_keep, dir) = packaged();
    let changes = ["train.peak_lr=2e-3", "train.validation_tokens=1000"];
    let (fit, _) = whole(&dir, &changes, &start(RecoverStart::Fit));
    let (zero, _) = whole(&dir, &changes, &start(RecoverStart::Zero));
    let loss = |loss: Option<f64>| loss.unwrap();
    let (fit_losses, zero_losses) = (&fit.held_out, &zero.held_out);
    let (before, fitted) = (loss(fit_losses.loss_before), loss(fit_losses.loss_start));
    assert_eq!(
        (fit_losses.loss_before, zero_losses.loss_start),
        (zero_losses.loss_before, zero_losses.loss_before)
    );
    assert!(
        fitted < before - 0.02,
        "{before} to {fitted} by the fit alone"
    );
    assert!(loss(fit_losses.loss_after) < fitted, "{fit:?}");
    let trained = loss(zero_losses.loss_after);
    assert!(
        loss(fit_losses.loss_after) < trained && trained < before,
        "{fit:?}\n{zero:?}"
    );
    assert!(loss(fit_losses.bits_per_byte_after) < loss(fit_losses.bits_per_byte_before));
    assert_eq!((fit.rank, fit.steps, fit.tokens), (4, 20, 20 * 128));
    // Of each of two layers: q and o 64 rows and columns, k and v 48, gate, up and down 96.
    let numbers = 2 * 4 * (2 * 64 + 2 * 48 + 3 * 96);
    assert_eq!((fit.parameters, fit.adapter_bytes), (numbers, 2 * numbers));
}

#[test]
fn the_higher_the_rank_the_more_the_fit_brings_back() {
    let (_keep, dir) = packaged();
    let losses = [1, 4, 16].map(|rank| {
        let changes = [
            &*format!("adapter.rank={rank}"),
            "train.steps=1",
            "train.warmup_steps=0",
        ];
        let (report, _) = whole(&dir, &changes, &start(RecoverStart::Fit));
        report.held_out.loss_start.unwrap()
    });
    assert!(losses[0] > losses[1] && losses[1] > losses[2], "{losses:?}");
}

/// Replaces the package by one that is palettized by two bits a weight, as the stage does it.
fn palettized(dir: &Path, rotation: Rotation) {
    let (place, checkpoint) = (dir.join("package"), dir.join("checkpoint"));
    fs::remove_dir_all(&place).unwrap();
    let settings = russet_compress::Settings {
        target_bpw: 16.0, // nothing is left to choose
        bits: vec![Width(Bits::Two)],
        rotation,
        sequence: 32,
        ..russet_compress::Settings::default()
    };
    let tokenizer = common::tokenizer();
    let documents: Vec<Vec<u32>> = common::documents(60, 2)
        .iter()
        .map(|text| tokenizer.encode(text, true).unwrap())
        .collect();
    let draft = Draft::create(&place, Kind::Package).unwrap();
    let state = State {
        folder: &dir.join("state"),
        key: "one",
    };
    palettize(
        &Arc::new(Pool::new(2).unwrap()),
        &settings,
        &checkpoint,
        &documents,
        draft.path(),
        state,
        &mut NoProgress,
        &Interrupt::new(),
    )
    .unwrap();
    fs::remove_dir_all(dir.join("state")).unwrap();
    let inputs = Inputs::new().artifact_or_path("checkpoint", &checkpoint, Kind::Checkpoint);
    let stage = Stage::new(
        "palettize",
        &common::tool(),
        serde_json::json!({}),
        inputs.unwrap(),
    );
    draft.commit(&stage).unwrap();
}

/// Writes the package anew with another report.
fn report_says(dir: &Path, change: impl Fn(String) -> String) {
    let (place, old) = (dir.join("package"), dir.join("old"));
    fs::rename(&place, &old).unwrap();
    let draft = Draft::create(&place, Kind::Package).unwrap();
    for entry in fs::read_dir(&old).unwrap().map(Result::unwrap) {
        if entry.file_name() == REPORT {
            let text = change(fs::read_to_string(entry.path()).unwrap());
            fs::write(draft.path().join(REPORT), text).unwrap();
        } else if entry.file_name() != "manifest.json" {
            fs::copy(entry.path(), draft.path().join(entry.file_name())).unwrap();
        }
    }
    fs::remove_dir_all(&old).unwrap();
    let stage = Stage::new(
        "palettize",
        &common::tool(),
        serde_json::json!({}),
        Inputs::new(),
    );
    draft.commit(&stage).unwrap();
}

#[test]
fn a_rotated_package_is_fitted_to_the_rotated_checkpoint() {
    let (_keep, dir) = packaged();
    let changes = ["train.peak_lr=2e-3", "train.validation_tokens=1000"];
    let [plain, turned] = [Rotation::None, Rotation::Hadamard].map(|rotation| {
        palettized(&dir, rotation);
        let (report, _) = whole(&dir, &changes, &start(RecoverStart::Fit));
        let held_out = report.held_out;
        let losses = [
            held_out.loss_before,
            held_out.loss_start,
            held_out.loss_after,
        ];
        losses.map(Option::unwrap)
    });
    for [before, fitted, after] in [plain, turned] {
        assert!(fitted < before && after < fitted, "{plain:?} {turned:?}");
    }
    let (_, first) = whole(&dir, &changes, &start(RecoverStart::Fit));
    let (_, threads) = whole(
        &dir,
        &[&changes[..], &["compute.threads=2"]].concat(),
        &start(RecoverStart::Fit),
    );
    assert_eq!(threads, first);

    // Where a package does not say how it was rotated, nobody guesses.
    let refused = |words: &str| {
        let outcome = run(
            &dir,
            &changes,
            &start(RecoverStart::Fit),
            &mut NoProgress,
            &Interrupt::new(),
        );
        let problem = outcome.unwrap_err().to_string();
        assert!(problem.contains(words), "{problem}");
    };
    report_says(&dir, |text| text.replace("hadamard", "of a later version"));
    refused("does not say how the package's weights were rotated");
    report_says(&dir, |text| {
        let lines = text.lines().filter(|line| !line.contains("rotation"));
        lines.collect::<Vec<_>>().join("\n")
    });
    refused("has another shape than the package");
}

#[test]
fn stopped_it_goes_on_to_the_same_bytes_and_threads_do_not_change_them() {
    let (_keep, dir) = packaged();
    let settings = start(RecoverStart::Fit);
    let (_, straight) = whole(&dir, &[], &settings);
    let (_, threads) = whole(&dir, &["compute.threads=2"], &settings);
    assert_eq!(threads, straight);
    for (number, step) in [3, 4, 11].into_iter().enumerate() {
        let interrupt = Interrupt::new();
        let mut progress = StopAt {
            step,
            run: "adapter",
            interrupt: interrupt.clone(),
            begun: Vec::new(),
        };
        let outcome = run(&dir, &[], &settings, &mut progress, &interrupt).unwrap();
        assert_eq!(outcome, Outcome::Interrupted { step });
        let fits = progress.begun.iter().any(|what| what == "fitting adapters");
        assert_eq!(fits, number == 0, "it is fitted once");
    }
    let (_, resumed) = whole(&dir, &[], &settings);
    assert_eq!(resumed, straight);
}

#[test]
fn a_fit_that_is_stopped_says_so() {
    let (_keep, dir) = packaged();
    let interrupt = Interrupt::new();
    interrupt.raise();
    let outcome = run(
        &dir,
        &[],
        &start(RecoverStart::Fit),
        &mut NoProgress,
        &interrupt,
    );
    let Err(TrainError::Task(problem)) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(matches!(
        problem.downcast_ref(),
        Some(CompressError::Interrupted)
    ));
}

#[test]
fn what_cannot_be_is_refused_with_a_sentence() {
    let (_keep, dir) = packaged();
    let settings = start(RecoverStart::Fit);
    let problem = settings.clone().resolved(false).unwrap_err().to_string();
    assert!(
        problem.contains("nothing says what the weights were"),
        "{problem}"
    );
    let none = RecoverSettings {
        fit_tokens: 0,
        ..RecoverSettings::default()
    };
    assert!(none.resolved(true).is_err());
    let chosen = |taught| RecoverSettings::default().resolved(taught).unwrap().start;
    assert_eq!(chosen(true), Some(RecoverStart::Fit));
    assert_eq!(chosen(false), Some(RecoverStart::Zero));

    let refused = |checkpoint: &Path, words: &str| {
        let outcome = recover(
            &plan(&dir, &[]),
            &settings,
            Some(checkpoint),
            &dir.join("adapter"),
            &common::tool(),
            Resume::Continue,
            &mut NoProgress,
            &Interrupt::new(),
        );
        let problem = outcome.unwrap_err().to_string();
        assert!(problem.contains(words), "{problem}");
        assert!(!dir.join("adapter").exists());
    };
    refused(&dir.join("package"), "is palettized itself");
    let other: Settings = common::settings(&["train.steps=3", "model.ffn=48"]);
    let other = Plan::new(other, &dir.join("tokens")).unwrap();
    let (out, tool) = (dir.join("other"), common::tool());
    let interrupt = Interrupt::new();
    pretrain(
        &other,
        &out,
        &tool,
        Resume::Continue,
        &mut NoProgress,
        &interrupt,
    )
    .unwrap();
    refused(&out, "has another shape than the package");
}
