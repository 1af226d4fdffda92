//! Stopped or left in peace, a run leaves the same bytes.

mod common;
#[path = "common/running.rs"]
mod running;

use std::fs;

use russet_artifact::{Artifact, Draft, Hold, Inputs, Interrupt, Kind, Progress, Stage, read_log};
use russet_train::{Outcome, Plan, Resume, Standing, pretrain};

use running::{corpus, finished, names, result, run, run_as, stop_at};

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
    finished(run_as(
        &dir,
        &["train.checkpoint_every=1"],
        Resume::Restart,
        &Interrupt::new(),
    ));
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

#[test]
fn threads_do_not_change_a_byte_under_any_rule() {
    let (_keep, dir) = corpus();
    for kind in ["adastar", "rmsprop"] {
        let kind = format!("optimizer.kind={kind}");
        let mixture = "data.mixture=[{split='train', weight=2}, {split='validation', weight=1}]";
        let results = ["compute.threads=1", "compute.threads=2"].map(|threads| {
            let changes = [
                &kind,
                threads,
                mixture,
                "data.packing=best-fit",
                "train.ema=0.9",
                "train.peak_lr=1e-3",
            ];
            finished(run_as(&dir, &changes, Resume::Restart, &Interrupt::new()));
            result(&dir)
        });
        assert_eq!(results[0], results[1], "{kind}");
    }
}

#[test]
fn layers_that_slide_and_share_train_save_and_go_on() {
    let (_keep, dir) = corpus();
    let changes = [
        "model.layers=4",
        "model.sliding_window=9",
        "model.layer_types=['sliding_attention', 'full_attention']",
        "model.num_kv_shared_layers=2",
    ];
    let report = finished(run(&dir, &changes));
    let (first, last) = (report.losses[0], *report.losses.last().unwrap());
    assert!(last < 0.9 * first, "{first} to {last}");
    let straight = result(&dir);
    let decoder = russet_model::checkpoint::load(&dir.join("03-pretrain")).unwrap();
    let kinds = [0, 1, 2, 3].map(|layer| decoder.config().attention_of(layer));
    assert_eq!(kinds.map(|kind| kind.keys_of), [0, 1, 0, 1]);
    assert_eq!(
        kinds.map(|kind| kind.window == 9),
        [true, false, true, false]
    );
    fs::remove_dir_all(dir.join("03-pretrain")).unwrap();
    stop_at(&dir, &changes, 11);
    let more = [
        &changes[..],
        &["compute.threads=2", "compute.recompute=block"],
    ]
    .concat();
    finished(run(&dir, &more));
    assert_eq!(result(&dir), straight);
}

#[test]
fn a_stopped_run_goes_on_to_the_same_bytes() {
    let (_keep, dir) = corpus();
    run(&dir, &[]).unwrap();
    let straight = result(&dir);
    fs::remove_dir_all(dir.join("03-pretrain")).unwrap();
    stop_at(&dir, &[], 7);
    stop_at(&dir, &[], 8);
    stop_at(&dir, &[], 23);
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
    stop_at(&dir, &[], 7);
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

/// Rates that do not depend on what is to come make a run that can be made longer or shorter while it runs.
#[test]
fn a_stopped_run_goes_on_to_another_length_where_its_rates_so_far_are_the_same() {
    let (_keep, dir) = corpus();
    let of = |steps: u64| {
        let wsd = "schedule.kind=wsd".to_owned(); // decays over the last fifth
        vec![wsd, format!("train.steps={steps}")]
    };
    let warming = |steps: u64, warmup: u64| {
        let mut changes = of(steps);
        changes.push(format!("train.warmup_steps={warmup}"));
        changes
    };
    let run = |changes: &[String]| {
        run(
            &dir,
            &changes.iter().map(String::as_str).collect::<Vec<_>>(),
        )
    };
    let stop_at = |changes: &[String], step| {
        let changes: Vec<&str> = changes.iter().map(String::as_str).collect();
        stop_at(&dir, &changes, step);
    };
    for steps in [20, 60] {
        finished(run(&of(steps)));
        let straight = result(&dir);
        fs::remove_dir_all(dir.join("03-pretrain")).unwrap();
        stop_at(&of(30), 12);
        finished(run(&of(steps)));
        assert_eq!(result(&dir), straight, "{steps} steps");
        fs::remove_dir_all(dir.join("03-pretrain")).unwrap();
    }
    // From a constant rate to a decay.
    finished(run(&of(20)));
    let straight = result(&dir);
    fs::remove_dir_all(dir.join("03-pretrain")).unwrap();
    stop_at(&["schedule.kind=constant".to_owned()], 12);
    finished(run(&of(20)));
    assert_eq!(result(&dir), straight);
    fs::remove_dir_all(dir.join("03-pretrain")).unwrap();
    // The decay has begun; there are more steps done than asked for; a cosine knows its end from the first step on.
    for (begun, stopped, then) in [
        (of(30), 27, of(40)),
        (warming(30, 5), 12, warming(40, 6)), // it rose at another pace
        (of(30), 12, of(10)),
        (
            vec!["train.steps=30".to_owned()],
            12,
            vec!["train.steps=31".to_owned()],
        ),
    ] {
        stop_at(&begun, stopped);
        let problem = run(&then).unwrap_err().to_string();
        assert!(problem.contains("`train.steps` was 30, is "), "{problem}");
        fs::remove_dir_all(dir.join("03-pretrain.state")).unwrap();
    }
}

/// `state.json` is read before anything of it is believed.
#[test]
fn a_state_of_more_steps_than_can_be_is_refused_at_once() {
    let (_keep, dir) = corpus();
    let constant = ["schedule.kind=constant"];
    stop_at(&dir, &constant, 7);
    let state = dir.join("03-pretrain.state");
    let path = state.join("state.json");
    let text = fs::read_to_string(&path).unwrap();
    let text = text.replace("\"step\": 7", &format!("\"step\": {}", u64::MAX));
    // Written by someone who knows manifests.
    let old = Artifact::open(&state, Kind::TrainState).unwrap();
    let recipe = old.manifest().recipe.clone();
    let inputs = Inputs::new();
    let tokens = Artifact::open(&dir.join("tokens"), Kind::Tokens).unwrap();
    let stage = Stage::new(
        "pretrain",
        &common::tool(),
        recipe,
        inputs.artifact("tokens", &tokens).unwrap(),
    );
    let draft = Draft::create(&state, Kind::TrainState).unwrap();
    for name in old.manifest().files.keys() {
        let bytes = match name.as_str() {
            "state.json" => text.clone().into_bytes(),
            _ => fs::read(state.join(name)).unwrap(),
        };
        draft.write(name, &bytes).unwrap();
    }
    draft.commit(&stage).unwrap();
    let longer = [constant[0], "train.steps=40"];
    run(&dir, &longer).unwrap_err();
}

#[test]
fn a_damaged_state_is_refused() {
    let (_keep, dir) = corpus();
    stop_at(&dir, &[], 7);
    let path = dir.join("03-pretrain.state/rank-00000.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let problem = run(&dir, &[]).unwrap_err().to_string();
    assert!(
        problem.contains("rank-00000.safetensors") && problem.contains("start over"),
        "{problem}"
    );
    // What the sentence advises helps, also where less is left of it.
    fs::write(dir.join("03-pretrain.state/manifest.json"), "{}").unwrap();
    run(&dir, &[]).unwrap_err();
    finished(run_as(&dir, &[], Resume::Restart, &Interrupt::new()));
    assert_eq!(names(&dir), ["03-pretrain", "03-pretrain.log", "tokens"]);
}

#[test]
fn beside_a_damaged_state_the_whole_one_before_it_is_named() {
    let (_keep, dir) = corpus();
    let changes = ["train.keep_last=2", "train.checkpoint_every=3"];
    run(&dir, &changes).unwrap();
    let straight = result(&dir);
    fs::remove_dir_all(dir.join("03-pretrain")).unwrap();
    stop_at(&dir, &changes, 7); // states of steps 6 and 7
    let newest = dir.join("03-pretrain.state");
    let path = newest.join("rank-00000.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let problem = run(&dir, &changes).unwrap_err().to_string();
    assert!(
        problem.contains(
            "The state of step 6, which was kept before it, is whole: remove this folder"
        ),
        "{problem}"
    );
    fs::remove_dir_all(&newest).unwrap();
    finished(run(&dir, &changes));
    assert_eq!(result(&dir), straight);
}

#[test]
fn tokens_that_were_changed_are_not_trained_on() {
    let (_keep, dir) = corpus();
    let path = dir.join("tokens/train.tokens.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let problem = run(&dir, &[]).unwrap_err().to_string();
    assert!(
        problem.contains("train.tokens.safetensors` has BLAKE3"),
        "{problem}"
    );
    assert!(!dir.join("03-pretrain").exists());
}

#[test]
fn a_plan_tells_what_lies_in_its_place() {
    let (_keep, dir) = corpus();
    let out = dir.join("03-pretrain");
    let standing = |changes: &[&str], resume| {
        let plan = Plan::new(common::settings(changes), &dir.join("tokens")).unwrap();
        let tool = common::tool();
        plan.training(&tool).unwrap().standing(&out, resume)
    };
    assert_eq!(standing(&[], Resume::Continue).unwrap(), Standing::Nothing);
    stop_at(&dir, &[], 7);
    let saved = Standing::State {
        step: 7,
        replaces: None,
    };
    assert_eq!(standing(&[], Resume::Continue).unwrap(), saved);
    assert_eq!(standing(&[], Resume::Restart).unwrap(), Standing::Nothing);
    let other = ["train.peak_lr=0.02"];
    standing(&other, Resume::Continue).unwrap_err(); // as the run would be
    finished(run(&dir, &[]));
    assert_eq!(standing(&[], Resume::Continue).unwrap(), Standing::Result);
    let held = Hold::take(&out, &dir.join("03-pretrain.log")).unwrap();
    assert_eq!(standing(&[], Resume::Continue).unwrap(), Standing::Held);
    drop(held);
    let why = "`train.peak_lr` was 0.01, is 0.02".to_owned();
    let earlier = Standing::EarlierResult { why };
    assert_eq!(standing(&other, Resume::Continue).unwrap(), earlier);
    // A file that is none of the result's would be lost, so the run would refuse.
    fs::write(out.join("mine.txt"), "mine").unwrap();
    let problem = standing(&other, Resume::Continue).unwrap_err().to_string();
    assert!(problem.contains("`mine.txt` in it"), "{problem}");
}

/// Keeps what is said.
#[derive(Default)]
struct Said(Vec<String>);

impl Progress for Said {
    fn begin(&mut self, _: &str, _: Option<u64>, _: &str) {}
    fn update(&mut self, _: u64, _: &[(&str, f64)]) {}
    fn message(&mut self, text: &str) {
        self.0.push(text.to_owned());
    }
    fn end(&mut self) {}
}

#[test]
fn what_a_run_will_replace_is_said_when_it_begins() {
    let (_keep, dir) = corpus();
    let best = ["train.keep_best=true", "train.validate_every=10"];
    finished(run(&dir, &best));
    let plan = Plan::new(common::settings(&["train.steps=31"]), &dir.join("tokens")).unwrap();
    let (tool, mut said) = (common::tool(), Said::default());
    let (out, interrupt) = (dir.join("03-pretrain"), Interrupt::new());
    pretrain(&plan, &out, &tool, Resume::Continue, &mut said, &interrupt).unwrap();
    let says = |words: &str| said.0.iter().any(|line| line.contains(words));
    assert!(
        says("which this one replaces when it has ended: `train.steps` was 30, is 31")
            && says(
                "03-pretrain.best is of another run, or of another length of this one, and is left"
            ),
        "{:?}",
        said.0
    );
    assert!(dir.join("03-pretrain.best").is_dir(), "it is left");
}

#[test]
fn a_foreign_folder_is_not_replaced() {
    let (_keep, dir) = corpus();
    fs::create_dir(dir.join("03-pretrain")).unwrap();
    fs::write(dir.join("03-pretrain/thesis.txt"), "mine").unwrap();
    let problem = run(&dir, &[]).unwrap_err().to_string();
    assert!(problem.contains("will not be replaced"), "{problem}");
    assert_eq!(
        names(&dir.join("03-pretrain.log")),
        ["lock"],
        "found before any work was done"
    );
}

#[test]
fn what_another_process_trains_is_left_to_it() {
    let (_keep, dir) = corpus();
    let out = dir.join("03-pretrain");
    let hold = Hold::take(&out, &dir.join("03-pretrain.log")).unwrap();
    let problem = run(&dir, &[]).unwrap_err().to_string();
    assert!(
        problem.contains("03-pretrain: another process"),
        "{problem}"
    );
    assert!(!out.exists() && !dir.join("03-pretrain.state").exists());
    drop(hold);
    finished(run(&dir, &[]));
}

/// Raises the interrupt while a step's validation runs.
struct StopInMeasuring(Interrupt, u64);

impl Progress for StopInMeasuring {
    fn begin(&mut self, _: &str, _: Option<u64>, _: &str) {}
    fn update(&mut self, done: u64, fields: &[(&str, f64)]) {
        if done == self.1 && fields.iter().any(|(name, _)| *name == "validated") {
            self.0.raise();
        }
    }
    fn message(&mut self, _: &str) {}
    fn end(&mut self) {}
}

#[test]
fn a_stop_while_it_is_measured_loses_no_step() {
    let (_keep, dir) = corpus();
    let best = ["train.keep_best=true", "train.validate_every=10"];
    for (step, changes) in [(30, &[][..]), (30, &["parallel.fsdp=2"]), (20, &best)] {
        let kept = |dir: &std::path::Path| {
            let logged = read_log(&dir.join("03-pretrain.log")).unwrap();
            let measured = |event: &russet_artifact::LogEvent| {
                let loss = event.scalars.get("validation_loss")?;
                Some((event.step, *loss))
            };
            let measured: Vec<_> = logged.iter().filter_map(measured).collect();
            let best = dir.join("03-pretrain.best");
            let best = best.exists().then(|| {
                let kept = Artifact::open(&best, Kind::Checkpoint).unwrap();
                kept.manifest_hash()
            });
            (measured, best)
        };
        let straight = finished(run(&dir, changes));
        let wanted = (result(&dir), kept(&dir));
        fs::remove_dir_all(dir.join("03-pretrain")).unwrap();
        let _ = fs::remove_dir_all(dir.join("03-pretrain.best"));
        let plan = Plan::new(common::settings(changes), &dir.join("tokens")).unwrap();
        let interrupt = Interrupt::new();
        let stopped = pretrain(
            &plan,
            &dir.join("03-pretrain"),
            &common::tool(),
            Resume::Continue,
            &mut StopInMeasuring(interrupt.clone(), step),
            &interrupt,
        );
        assert_eq!(stopped.unwrap(), Outcome::Interrupted { step });
        let report = finished(run(&dir, changes));
        assert_eq!(report.bits_per_byte, straight.bits_per_byte);
        assert_eq!((result(&dir), kept(&dir)), wanted, "{changes:?}");
        fs::remove_dir_all(dir.join("03-pretrain")).unwrap();
    }
}

#[test]
fn a_run_that_skips_every_step_leaves_what_lay_there() {
    let (_keep, dir) = corpus();
    finished(run(&dir, &[]));
    let before = result(&dir);
    let problem = run(&dir, &["train.skip_norm=1e-9"])
        .unwrap_err()
        .to_string();
    assert!(
        problem.contains("all 30 steps were skipped") && problem.contains("train.skip_norm"),
        "{problem}"
    );
    assert_eq!(result(&dir), before);
}
