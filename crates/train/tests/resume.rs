//! Stopped, killed or left in peace, a run leaves the same bytes.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use russet_artifact::{Artifact, Interrupt, Kind, NoProgress, Progress, read_log};
use russet_kernels::random;
use russet_train::{Outcome, Plan, Resume, TrainError, TrainReport, pretrain};

/// The recipe's changes for the child process, and the folder it works in.
const CHILD_FOLDER: &str = "RUSSET_TEST_CHILD_FOLDER";
/// Every step saves, so that a kill at any moment falls into saving as often as not.
const SAVING: [&str; 1] = ["train.checkpoint_every=1"];

fn run_as(
    dir: &Path,
    changes: &[&str],
    resume: Resume,
    interrupt: &Interrupt,
) -> Result<Outcome, TrainError> {
    let plan = Plan::new(common::settings(changes), &dir.join("tokens"))?;
    pretrain(
        &plan,
        &dir.join("03-pretrain"),
        &common::tool(),
        resume,
        &mut NoProgress,
        interrupt,
    )
}

fn run(dir: &Path, changes: &[&str]) -> Result<Outcome, TrainError> {
    run_as(dir, changes, Resume::Continue, &Interrupt::new())
}

fn finished(outcome: Result<Outcome, TrainError>) -> TrainReport {
    match outcome {
        Ok(Outcome::Finished(report)) => report,
        other => panic!("the run should have finished, not {other:?}"),
    }
}

/// Hash of the manifest, which stands for every byte of the checkpoint.
fn result(dir: &Path) -> String {
    let artifact = Artifact::open(&dir.join("03-pretrain"), Kind::Checkpoint).unwrap();
    artifact.verify().unwrap();
    artifact.manifest_hash().to_string()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn corpus() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    common::tokens(dir.path());
    let path = dir.path().to_owned();
    (dir, path)
}

#[test]
fn a_run_leaves_a_whole_checkpoint_and_a_log() {
    let (_keep, dir) = corpus();
    let report = finished(run(&dir, &["train.validate_every=10"]));
    assert_eq!((report.steps, report.tokens), (30, 30 * 128));
    assert!(report.last_loss < report.first_loss - 1.0, "{report:?}");
    let bits = report.bits_per_byte.unwrap();
    assert!(
        report.validation_nats.unwrap() < f64::from(report.first_loss) && bits > 0.0 && bits < 8.0,
        "{report:?}"
    );
    assert!(
        report.mfu > 0.0 && report.mfu < 1.5 && report.peak_bytes > 0 && report.seconds > 0.0,
        "{report:?}"
    );

    assert_eq!(
        names(&dir),
        ["03-pretrain", "03-pretrain.log", "tokens"],
        "neither state nor drafts are left"
    );
    let files = names(&dir.join("03-pretrain"));
    for file in [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
    ] {
        assert!(files.contains(&file.to_owned()), "{file} of {files:?}");
    }
    let decoder = russet_model::checkpoint::open(&dir.join("03-pretrain")).unwrap();
    assert_eq!(decoder.config().layers, 2);
    let artifact = Artifact::open(&dir.join("03-pretrain"), Kind::Checkpoint).unwrap();
    assert_eq!(
        artifact.input("tokens").unwrap().dir().file_name().unwrap(),
        "tokens"
    );

    let log = read_log(&dir.join("03-pretrain.log")).unwrap();
    let logged = |name: &str| -> Vec<u64> {
        log.iter()
            .filter(|event| event.scalars.contains_key(name))
            .map(|event| event.step)
            .collect()
    };
    assert_eq!(logged("loss"), (1..=30).collect::<Vec<u64>>());
    assert_eq!(logged("validation_bits_per_byte"), [10, 20, 30]);
    for name in ["learning_rate", "gradient_norm", "tokens_per_second", "mfu"] {
        assert_eq!(logged(name).len(), 30, "{name}");
    }
    assert_eq!(log[0].scalars["loss"] as f32, report.first_loss);

    assert_eq!(
        run(&dir, &["train.log_every=3"]).unwrap(),
        Outcome::Current,
        "idle settings make no other run"
    );
}

#[test]
fn threads_and_saving_do_not_change_a_byte() {
    let (_keep, dir) = corpus();
    run(&dir, &[]).unwrap();
    let one = result(&dir);
    finished(run_as(
        &dir,
        &["compute.threads=2"],
        Resume::Restart,
        &Interrupt::new(),
    ));
    assert_eq!(result(&dir), one);
    finished(run_as(&dir, &SAVING, Resume::Restart, &Interrupt::new()));
    assert_eq!(result(&dir), one);
    finished(run_as(
        &dir,
        &["compute.recompute=block"],
        Resume::Restart,
        &Interrupt::new(),
    ));
    assert_eq!(result(&dir), one);
    finished(run_as(
        &dir,
        &["train.seed=9"],
        Resume::Restart,
        &Interrupt::new(),
    ));
    assert_ne!(result(&dir), one, "another seed is another model");
    finished(run_as(
        &dir,
        &["compute.dtype=bf16"],
        Resume::Restart,
        &Interrupt::new(),
    ));
    assert_ne!(result(&dir), one, "another type is another model");
}

/// Stops the run when it has done so many steps.
struct StopAt(u64, Interrupt);

impl Progress for StopAt {
    fn begin(&mut self, _: &str, _: Option<u64>, _: &str) {}
    fn update(&mut self, done: u64, _: &[(&str, f64)]) {
        if done == self.0 {
            self.1.raise();
        }
    }
    fn message(&mut self, _: &str) {}
    fn end(&mut self) {}
}

fn stop_at(dir: &Path, step: u64) {
    let plan = Plan::new(common::settings(&[]), &dir.join("tokens")).unwrap();
    let interrupt = Interrupt::new();
    let mut progress = StopAt(step, interrupt.clone());
    let out = dir.join("03-pretrain");
    let outcome = pretrain(
        &plan,
        &out,
        &common::tool(),
        Resume::Continue,
        &mut progress,
        &interrupt,
    )
    .unwrap();
    assert_eq!(outcome, Outcome::Interrupted { step });
    assert!(!out.exists() && dir.join("03-pretrain.state/optimizer.safetensors").exists());
}

#[test]
fn a_stopped_run_goes_on_to_the_same_bytes() {
    let (_keep, dir) = corpus();
    run(&dir, &[]).unwrap();
    let straight = result(&dir);
    fs::remove_dir_all(dir.join("03-pretrain")).unwrap();
    stop_at(&dir, 7);
    stop_at(&dir, 8);
    stop_at(&dir, 23);
    finished(run(&dir, &["compute.threads=2"]));
    assert_eq!(result(&dir), straight);
    assert_eq!(names(&dir), ["03-pretrain", "03-pretrain.log", "tokens"]);
    let log = read_log(&dir.join("03-pretrain.log")).unwrap();
    let steps: Vec<u64> = log
        .iter()
        .filter(|event| event.scalars.contains_key("loss"))
        .map(|event| event.step)
        .collect();
    assert_eq!(
        steps,
        (1..=30).collect::<Vec<u64>>(),
        "the log has each step once"
    );
}

#[test]
fn the_state_of_another_run_is_refused_until_told_to_start_over() {
    let (_keep, dir) = corpus();
    stop_at(&dir, 7);
    let problem = run(&dir, &["train.peak_lr=0.02"]).unwrap_err().to_string();
    assert!(
        problem.contains("`train.peak_lr` was 0.01, is 0.02") && problem.contains("start over"),
        "{problem}"
    );
    finished(run_as(
        &dir,
        &["train.peak_lr=0.02"],
        Resume::Restart,
        &Interrupt::new(),
    ));
    assert_eq!(names(&dir), ["03-pretrain", "03-pretrain.log", "tokens"]);
}

#[test]
fn a_damaged_state_is_refused() {
    let (_keep, dir) = corpus();
    stop_at(&dir, 7);
    let path = dir.join("03-pretrain.state/optimizer.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let problem = run(&dir, &[]).unwrap_err().to_string();
    assert!(
        problem.contains("optimizer.safetensors") && problem.contains("start over"),
        "{problem}"
    );
}

#[test]
fn a_foreign_folder_is_not_replaced() {
    let (_keep, dir) = corpus();
    fs::create_dir(dir.join("03-pretrain")).unwrap();
    fs::write(dir.join("03-pretrain/thesis.txt"), "mine").unwrap();
    let problem = run(&dir, &[]).unwrap_err().to_string();
    assert!(problem.contains("will not be replaced"), "{problem}");
    assert_eq!(
        names(&dir),
        ["03-pretrain", "tokens"],
        "found before any work was done"
    );
}

fn spawn(dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "the_child_process",
            "--ignored",
            "--test-threads=1",
        ])
        .env(CHILD_FOLDER, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "what `a_killed_run_goes_on_to_the_same_bytes` starts in a process of its own, to kill it"]
fn the_child_process() {
    let dir = std::env::var_os(CHILD_FOLDER).expect("started by another test");
    let outcome = run(Path::new(&dir), &SAVING).unwrap();
    assert!(
        matches!(outcome, Outcome::Finished(_) | Outcome::Current),
        "{outcome:?}"
    );
}

/// When a child is killed.
#[derive(Clone, Copy)]
enum Moment {
    /// While a draft of the state is there, the so manieth that it makes.
    Saving(u64),
    /// So long after its start.
    After(Duration),
    /// As soon as the checkpoint is in its place, while the state still is.
    Finished,
}

#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    let (_keep, dir) = corpus();
    run(&dir, &[]).unwrap();
    let straight = result(&dir);
    fs::remove_dir_all(dir.join("03-pretrain")).unwrap();

    let random_moment = |i| Duration::from_micros(random::below(1, 0, i, 100_000));
    let mut moments: Vec<Moment> = [1, 2, 3, 1, 2, 3].map(Moment::Saving).to_vec();
    moments.extend((0..5).map(|i| Moment::After(random_moment(i))));
    moments.push(Moment::Finished);
    for moment in moments {
        let killed = kill(&mut spawn(&dir), &dir, moment);
        let may_end = !matches!(moment, Moment::Saving(_));
        assert!(killed || may_end, "the run ended before it was killed");
    }
    let child = spawn(&dir).wait_with_output().unwrap();
    assert!(
        child.status.success(),
        "{}",
        String::from_utf8_lossy(&child.stderr)
    );
    assert_eq!(result(&dir), straight);
    // A kill between two renames leaves at most hidden drafts, which the next draft for the place sweeps up.
    let visible = |name: &String| !name.starts_with('.');
    let left: Vec<String> = names(&dir).into_iter().filter(visible).collect();
    assert_eq!(left, ["03-pretrain", "03-pretrain.log", "tokens"]);
}

/// Kills a child at a moment. `false` if it had ended, well, before.
fn kill(child: &mut Child, dir: &Path, moment: Moment) -> bool {
    // By its process id, since a killed one's draft lies there until the next is made.
    let prefix = format!(".03-pretrain.state.tmp-{}-", child.id());
    let is_draft_of_state = |name: &String| name.starts_with(&prefix);
    let begun = Instant::now();
    let (mut drafts, mut had_draft) = (0, false);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            let mut said = String::new();
            let stderr = child.stderr.as_mut().unwrap();
            std::io::Read::read_to_string(stderr, &mut said).unwrap();
            assert!(status.success(), "{said}");
            return false;
        }
        let has_draft = names(dir).iter().any(is_draft_of_state);
        drafts += u64::from(has_draft && !had_draft);
        had_draft = has_draft;
        let now = match moment {
            Moment::Saving(wanted) => has_draft && drafts == wanted,
            Moment::After(time) => begun.elapsed() > time,
            Moment::Finished => dir.join("03-pretrain").exists(),
        };
        if now {
            child.kill().unwrap();
            child.wait().unwrap();
            return true;
        }
        sleep(Duration::from_micros(50));
    }
}
