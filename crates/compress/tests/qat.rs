//! Palettes that learn, on a toy: a model of two layers, a crude package of it, and the text that it learnt.

#[path = "../../train/tests/common/mod.rs"]
mod common;
mod toy;

use std::fs;
use std::path::Path;

use russet_artifact::{Interrupt, Kind, NoProgress, Progress};
use russet_compress::{QAT_REPORT, QatMethod, QatReport, QatSettings, qat};
use russet_model::package;
use russet_train::settings::StageName;
use russet_train::{Outcome, Plan, Resume, Settings, Sources, TeacherInput, TrainError};
use toy::{StopAt, packaged, taken};

fn plan(dir: &Path, changes: &[&str]) -> Plan {
    let changes = [&["distill.kind=kl"], changes].concat();
    let sources = Sources {
        package: Some(dir.join("package")),
        ..Sources::from(&dir.join("tokens"))
    };
    let mut settings: Settings = common::adapter_settings(&changes);
    (settings.stage, settings.adapter) = (StageName::Qat, None);
    let plan = Plan::new(settings, sources).unwrap();
    let teacher = TeacherInput::Checkpoint(dir.join("checkpoint"));
    plan.taught_by(teacher).unwrap()
}

fn method(method: QatMethod) -> QatSettings {
    QatSettings {
        method,
        temperature: None,
    }
}

fn run(
    dir: &Path,
    changes: &[&str],
    settings: &QatSettings,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<Outcome, TrainError> {
    qat(
        &plan(dir, changes),
        settings,
        Some(&dir.join("checkpoint")),
        &dir.join("learnt"),
        &common::tool(),
        Resume::Continue,
        progress,
        interrupt,
    )
}

/// Runs it to its end and takes its artifact away; its report and its identity.
fn whole(dir: &Path, changes: &[&str], settings: &QatSettings) -> (QatReport, String) {
    let outcome = run(dir, changes, settings, &mut NoProgress, &Interrupt::new());
    assert!(matches!(outcome, Ok(Outcome::Finished(_))), "{outcome:?}");
    let out = dir.join("learnt");
    package::load(&out).unwrap();
    let sizes = |folder: &Path| {
        fs::metadata(folder.join("model.safetensors"))
            .unwrap()
            .len()
    };
    assert_eq!(sizes(&out), sizes(&dir.join("package")), "the bits stay");
    taken(&out, Kind::Package, QAT_REPORT)
}

#[test]
fn every_method_brings_back_some_of_what_palettizing_lost() {
    let (_keep, dir) = packaged();
    let changes = ["train.peak_lr=2e-3", "train.validation_tokens=1000"];
    let loss = |loss: Option<f64>| loss.unwrap();
    for (one, moves) in [
        (QatMethod::Tables, false),
        (QatMethod::StraightThrough, true),
        (QatMethod::Dkm, true),
    ] {
        let (report, _) = whole(&dir, &changes, &method(one));
        let held_out = &report.held_out;
        let (before, after) = (loss(held_out.loss_before), loss(held_out.loss_after));
        assert!(after < before - 0.01, "{one:?}: {before} to {after}");
        assert_eq!((report.method, report.steps), (one, 20));
        assert_eq!(report.moved > 0.0, moves, "{one:?}: {}", report.moved);
        // What the run begins with is the package, but for the order of sums.
        let start = loss(held_out.loss_start);
        assert!((start - before).abs() < 1e-4, "{one:?}: {before}, {start}");
    }
}

#[test]
fn what_was_measured_last_is_what_was_written() {
    let (_keep, dir) = packaged();
    let changes = ["train.validation_tokens=1000"];
    let outcome = run(
        &dir,
        &changes,
        &method(QatMethod::Dkm),
        &mut NoProgress,
        &Interrupt::new(),
    );
    assert!(matches!(outcome, Ok(Outcome::Finished(_))), "{outcome:?}");
    let report = fs::read(dir.join("learnt").join(QAT_REPORT)).unwrap();
    let report: QatReport = serde_json::from_slice(&report).unwrap();
    // Once more, from the package: its loss before is that of what was written.
    fs::remove_dir_all(dir.join("package")).unwrap();
    fs::rename(dir.join("learnt"), dir.join("package")).unwrap();
    let (again, _) = whole(&dir, &changes, &method(QatMethod::Tables));
    let (said, is) = (
        report.held_out.loss_after.unwrap(),
        again.held_out.loss_before.unwrap(),
    );
    assert!((said - is).abs() < 1e-4, "said {said}, but it is {is}");
}

#[test]
fn a_run_that_is_stopped_leaves_the_bytes_of_one_in_one_go() {
    let (_keep, dir) = packaged();
    for one in [QatMethod::Tables, QatMethod::Dkm] {
        let changes = ["train.validation_tokens=1000", "train.checkpoint_every=7"];
        let (_, want) = whole(&dir, &changes, &method(one));
        let threads = [&changes[..], &["compute.threads=2"]].concat();
        assert_eq!(whole(&dir, &threads, &method(one)).1, want, "{one:?}");
        let interrupt = Interrupt::new();
        let mut stop = StopAt {
            step: 9,
            run: "learnt",
            interrupt: interrupt.clone(),
            begun: Vec::new(),
        };
        let outcome = run(&dir, &changes, &method(one), &mut stop, &interrupt);
        assert!(
            matches!(outcome, Ok(Outcome::Interrupted { .. })),
            "{outcome:?}"
        );
        let (_, got) = whole(&dir, &changes, &method(one));
        assert_eq!(got, want, "{one:?}");
    }
}

#[test]
fn what_cannot_be_is_refused_with_a_sentence() {
    let (_keep, dir) = packaged();
    let refused =
        |settings: QatSettings, taught: bool| settings.resolved(taught).unwrap_err().to_string();
    let untaught = refused(method(QatMethod::Dkm), false);
    assert!(untaught.contains("`inputs.teacher`"), "{untaught}");
    let soft = |method, temperature| QatSettings {
        method,
        temperature: Some(temperature),
    };
    let cold = refused(soft(QatMethod::Dkm, 0.0), true);
    assert!(cold.contains("0.0001 to 100"), "{cold}");
    let idle = refused(soft(QatMethod::Tables, 0.1), true);
    assert!(idle.contains("leave it out"), "{idle}");
    let refused = |changes: &[&str], teacher: &Path, words: &str| {
        let outcome = qat(
            &plan(&dir, changes),
            &method(QatMethod::StraightThrough),
            Some(teacher),
            &dir.join("learnt"),
            &common::tool(),
            Resume::Continue,
            &mut NoProgress,
            &Interrupt::new(),
        );
        let problem = outcome.unwrap_err().to_string();
        assert!(problem.contains(words), "{problem}");
        assert!(!dir.join("learnt").exists());
    };
    let teacher = dir.join("checkpoint");
    refused(&[], &dir.join("package"), "palettized itself");
    refused(&["compute.dtype=bf16"], &teacher, "`compute.dtype` is");
    refused(
        &["compute.recompute=block"],
        &teacher,
        "`compute.recompute` is",
    );
    fs::write(dir.join("package/palettize.json"), "{\"rotation\": 3}").unwrap();
    refused(&[], &teacher, "write qat.method = \"tables\"");
}
