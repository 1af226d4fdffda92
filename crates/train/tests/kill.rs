//! Killed at any moment, also while it saves, a run ends in the same bytes; and a full disk leaves what was saved before.
//!
//! `RUSSET_TEST_KILL_REPETITIONS=20` kills twenty runs in place of four, five times each.

mod common;
#[path = "common/running.rs"]
mod running;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use russet_artifact::{Artifact, Kind, Progress};
use russet_kernels::random;
use russet_train::{Outcome, Plan, Resume, pretrain};

use running::{corpus, names, result, run};

/// How many runs are killed.
const REPETITIONS: &str = "RUSSET_TEST_KILL_REPETITIONS";
/// What the child process is told: the folder it works in, and the recipe's changes, a line each.
const CHILD_FOLDER: &str = "RUSSET_TEST_CHILD_FOLDER";
const CHILD_CHANGES: &str = "RUSSET_TEST_CHILD_CHANGES";

/// Every step saves, so that a kill at any moment falls into saving as often as not.
const PLAIN: &[&str] = &["train.checkpoint_every=1"];
/// Everything that has a state of its own.
const EVERYTHING: &[&str] = &[
    "train.checkpoint_every=1",
    "train.keep_last=3",
    "train.keep_best=true",
    "train.validate_every=4",
    "train.ema=0.9",
    "optimizer.kind=adastar",
    "schedule.kind=wsd",
    "data.packing=best-fit",
    "data.mixture=[{split='train', weight=2}, {split='validation', weight=1}]",
];

/// The same on four ranks.
const ON_A_MESH: &[&str] = &[
    "train.checkpoint_every=1",
    "train.keep_last=2",
    "train.ema=0.9",
    "optimizer.kind=adastar",
    "data.packing=best-fit",
    "parallel.fsdp=2",
    "parallel.tensor=2",
];

fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(CHILD_ARGUMENTS);
    command
}

const CHILD_ARGUMENTS: [&str; 4] = ["--exact", "the_child_process", "--ignored", "--nocapture"];

fn spawn(mut command: Command, dir: &Path, changes: &[&str]) -> Child {
    command
        .env(CHILD_FOLDER, dir)
        .env(CHILD_CHANGES, changes.join("\n"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Says on the standard error what a person should read.
struct Messages;

impl Progress for Messages {
    fn begin(&mut self, _: &str, _: Option<u64>, _: &str) {}
    fn update(&mut self, _: u64, _: &[(&str, f64)]) {}
    #[allow(clippy::print_stderr, reason = "the parent reads it")]
    fn message(&mut self, text: &str) {
        eprintln!("{text}");
    }
    fn end(&mut self) {}
}

#[test]
#[ignore = "what the other tests start in a process of its own, to kill it"]
fn the_child_process() {
    let dir = std::env::var_os(CHILD_FOLDER).expect("started by another test");
    let changes = std::env::var(CHILD_CHANGES).unwrap();
    let changes: Vec<&str> = changes.lines().collect();
    let dir = Path::new(&dir);
    let plan = Plan::new(common::settings(&changes), &dir.join("tokens")).unwrap();
    let outcome = pretrain(
        &plan,
        &dir.join("03-pretrain"),
        &common::tool(),
        Resume::Continue,
        &mut Messages,
        &Default::default(),
    );
    let outcome = outcome.unwrap();
    assert!(
        matches!(outcome, Outcome::Finished(_) | Outcome::Current),
        "{outcome:?}"
    );
}

/// When a child is killed.
#[derive(Clone, Copy, Debug)]
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
    let repetitions = std::env::var(REPETITIONS).map_or(4, |count| count.parse().unwrap());
    let program = std::env::current_exe().unwrap();
    let (_keep, dir) = corpus();
    let mut straight = [PLAIN, EVERYTHING, ON_A_MESH].map(|changes| {
        run(&dir, changes).unwrap();
        let hashes = (result(&dir), best(&dir));
        clear(&dir);
        (changes, hashes)
    });
    straight.rotate_left(1); // the harder one first
    let mut saving = (0, 0); // kills while a state was being saved, and attempts
    for repetition in 0..repetitions {
        let (changes, wanted) = &straight[repetition as usize % 3];
        let draw = |number, bound| random::below(7, repetition, number, bound);
        let moments = [
            Moment::Saving(1 + draw(0, 4)),
            Moment::After(Duration::from_micros(draw(1, 150_000))),
            Moment::Saving(1 + draw(2, 4)),
            Moment::After(Duration::from_micros(draw(3, 400_000))),
            Moment::Finished,
        ];
        for moment in moments {
            let mut child = spawn(command(&program), &dir, changes);
            let killed = kill(&mut child, &dir, moment);
            if let Moment::Saving(_) = moment {
                saving.0 += u64::from(killed);
                saving.1 += 1;
            }
        }
        let child = spawn(command(&program), &dir, changes);
        let child = child.wait_with_output().unwrap();
        assert!(
            child.status.success(),
            "{}",
            String::from_utf8_lossy(&child.stderr)
        );
        assert_eq!(
            &(result(&dir), best(&dir)),
            wanted,
            "repetition {repetition}"
        );
        // A kill between two renames leaves at most hidden drafts, which the next draft for the place sweeps up.
        let visible = |name: &String| !name.starts_with('.') && name != "03-pretrain.best";
        let left: Vec<String> = names(&dir).into_iter().filter(visible).collect();
        assert_eq!(left, ["03-pretrain", "03-pretrain.log", "tokens"]);
        clear(&dir);
    }
    // A late kill of the time may have met the run's end, after which there are no saves.
    let (killed, attempts) = saving;
    assert!(
        2 * killed >= attempts,
        "{killed} of {attempts} kills fell into a save"
    );
}

/// The hash of the best checkpoint, where it is kept.
fn best(dir: &Path) -> Option<String> {
    let kept = Artifact::open(&dir.join("03-pretrain.best"), Kind::Checkpoint).ok()?;
    Some(kept.manifest_hash().to_string())
}

/// Removes all but the tokens.
fn clear(dir: &Path) {
    for name in names(dir).iter().filter(|name| *name != "tokens") {
        fs::remove_dir_all(dir.join(name)).unwrap();
    }
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

/// A limit on the size of files is a disk that is full, for those larger than it: the state's do not fit.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_last_state_and_says_so() {
    full_disk(&["train.steps=200", "train.checkpoint_every=1"]);
    // Of two pieces as well: none is put in its place without the other.
    full_disk(&[
        "train.steps=60",
        "train.checkpoint_every=1",
        "parallel.fsdp=2",
    ]);
}

/// The log is not what a run is for. That the checkpoint does not fit either ends it at last.
#[cfg(unix)]
#[test]
fn a_log_that_cannot_grow_does_not_stop_a_run() {
    let (_keep, dir) = corpus();
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "trap '' XFSZ; ulimit -f 6; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(CHILD_ARGUMENTS);
    let changes = ["train.steps=60", "train.checkpoint_every=0"];
    let child = spawn(shell, &dir, &changes).wait_with_output().unwrap();
    let said = String::from_utf8(child.stderr).unwrap();
    assert_eq!(said.matches("the log is not written").count(), 1, "{said}");
    assert!(said.contains("Training goes on"), "{said}");
    assert!(said.contains("model.safetensors"), "{said}");
}

#[cfg(unix)]
fn full_disk(changes: &[&str]) {
    use std::io::{BufRead, BufReader};

    let (_keep, dir) = corpus();
    run(&dir, changes).unwrap();
    let straight = result(&dir);
    clear(&dir);
    running::stop_at(&dir, changes, 7);
    let saved = fs::read(dir.join("03-pretrain.state/state.json")).unwrap();

    // A shell's unit is 512 or 1024 bytes; a state of 340 KB has no room in 120 of either, nor has half of it. A write beyond the limit is an
    // error for those who ignore the signal.
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "trap '' XFSZ; ulimit -f 120; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(CHILD_ARGUMENTS);
    let mut child = spawn(shell, &dir, changes);
    let said = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = said.map(Result::unwrap);
    let message = said
        .find(|line| line.contains("could not be saved"))
        .expect("a save fails");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        message.starts_with("the state of step 8 could not be saved: ")
            && message.contains("too large")
            && message.contains("What was saved before is untouched"),
        "{message}"
    );
    let left = fs::read(dir.join("03-pretrain.state/state.json")).unwrap();
    assert_eq!(left, saved, "the state of step 7 is there");
    run(&dir, changes).unwrap();
    assert_eq!(result(&dir), straight);
}
