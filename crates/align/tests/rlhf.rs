//! Reinforcement learning, from prompts and rewards to a policy that earns more.

mod common;

use std::path::Path;

use common::{StopAt, base, bytes, finished, recipe, tool, write};
use russet_align::Lesson;
use russet_align::rewards::{Answer, NoRules, Reward, Rules};
use russet_align::rlhf::{Plan, Settings, Sources};
use russet_align::rows::Asked;
use russet_artifact::{Interrupt, LogEvent, NoProgress, Progress, read_log};
use russet_tensor::Ctx;
use russet_train::{Outcome, Result, Resume, TrainReport};
use serde_json::{Value, json};

/// The share of an answer that is lower-case letters.
struct Letters;

impl Reward for Letters {
    fn check(&self, asked: &Asked) -> std::result::Result<(), String> {
        match asked.row.get("refused") {
            None => Ok(()),
            Some(_) => Err("it has `refused`".to_owned()),
        }
    }

    fn rewards(&self, _: &mut Ctx, answers: &[Answer]) -> std::result::Result<Vec<f64>, String> {
        let share = |answer: &Answer| {
            let letters = answer.text.chars().filter(char::is_ascii_lowercase).count();
            letters as f64 / answer.text.chars().count().max(1) as f64
        };
        Ok(answers.iter().map(share).collect())
    }
}

struct Known;

impl Rules for Known {
    fn kinds(&self) -> &[&'static str] {
        &["letters"]
    }

    fn rule(&self, kind: &str) -> Option<Box<dyn Reward>> {
        (kind == "letters").then(|| Box::new(Letters) as _)
    }
}

fn begin(dir: &Path) {
    base(dir);
    let prompts: Vec<Value> = common::QUESTIONS
        .iter()
        .map(|(asked, _)| json!({"prompt": asked}))
        .collect();
    write(&dir.join("prompts.jsonl"), &prompts);
}

fn settings(dir: &Path, changes: &[&str]) -> Settings {
    let text = format!(
        "[train]\nsteps = 8\nbatch_sequences = 8\nsequence_length = 40\npeak_lr = 3e-3\nlog_every = 1\ncheckpoint_every = 4\n\
         [optimizer]\nkind = \"adamw\"\n[rlhf]\nmax_tokens = 8\nsteps_per_batch = 2\n[[rlhf.rewards]]\nkind = \"letters\"\n\
         [data]\ntrain = [{}]\n[compute]\nthreads = 1\n",
        json!(dir.join("prompts.jsonl"))
    );
    recipe(&text, changes)
}

fn sources(dir: &Path) -> Sources {
    Sources {
        checkpoint: dir.join("base"),
        adapter: None,
        reward: None,
        reward_adapter: None,
    }
}

fn plan(dir: &Path, changes: &[&str]) -> Result<Plan> {
    Plan::new(settings(dir, changes), sources(dir), &Known)
}

fn run_to(plan: &Plan, out: &Path, progress: &mut dyn Progress, interrupt: &Interrupt) -> Outcome {
    plan.run(out, &tool(), Resume::Continue, progress, interrupt)
        .unwrap()
}

fn run(plan: &Plan, out: &Path) -> TrainReport {
    finished(run_to(plan, out, &mut NoProgress, &Interrupt::new()))
}

/// A column of a run's log.
fn logged(out: &Path, name: &str) -> Vec<f64> {
    let log = out.with_file_name(format!(
        "{}.log",
        out.file_name().unwrap().to_str().unwrap()
    ));
    let events = read_log(&log).unwrap();
    let value = |event: &LogEvent| event.scalars.get(name).copied();
    events.iter().filter_map(value).collect()
}

#[test]
fn what_is_rewarded_becomes_more_under_every_algorithm() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    begin(dir);
    let held = format!("data.validation={}", json!([dir.join("prompts.jsonl")]));
    for (name, changes) in [
        ("mdloo", &["rlhf.algorithm='mdloo'"][..]),
        ("token", &["rlhf.divergence='token'"]),
        (
            "vocabulary",
            &[
                "rlhf.divergence='vocabulary'",
                "rlhf.gamma={from=0.1, to=0.02}",
            ],
        ),
        ("ppo", &["rlhf.algorithm='ppo'"]),
        ("grpo", &["rlhf.algorithm='grpo'"]),
        ("rloo", &["rlhf.algorithm='rloo'", "rlhf.steps_per_batch=1"]),
        ("lora", &["adapter.rank=8", "train.peak_lr=1e-2"]),
    ] {
        let usual = [
            "train.steps=48",
            "train.batch_sequences=32",
            "rlhf.samples=8",
            "train.micro_batch_sequences=16",
            "train.checkpoint_every=0",
            "rlhf.beta=0.01",
            held.as_str(),
        ];
        let changes: Vec<&str> = usual.into_iter().chain(changes.iter().copied()).collect();
        let out = dir.join(name);
        run(&plan(dir, &changes).unwrap(), &out);
        let rewards = logged(&out, "reward");
        let mean = |some: &[f64]| some.iter().sum::<f64>() / some.len() as f64;
        let (first, last) = (mean(&rewards[..4]), mean(&rewards[rewards.len() - 4..]));
        assert!(
            last > first + 0.15,
            "{name}: {first} to {last}: {rewards:?}"
        );
        // The policy has left the reference, and generation said what training says.
        assert!(logged(&out, "kl").last().unwrap() > &0.05, "{name}");
        assert!(
            logged(&out, "rollout_gap").iter().all(|&gap| gap <= 1e-4),
            "{name}"
        );
        assert!(logged(&out, "entropy").iter().all(|&entropy| entropy > 0.0));
        let report: Value =
            serde_json::from_slice(&std::fs::read(out.join("report.json")).unwrap()).unwrap();
        let at = |when: &str| report[when]["validation_reward"].as_f64().unwrap();
        assert!(at("measured") > at("before"), "{name}: {report}");
    }
}

/// With one step a batch ρ is 1: MDLOO, its forms and PPO are RLOO, to the last bit of the weights.
#[test]
fn one_step_a_batch_is_rloo() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    begin(dir);
    let weights = |name: &str, changes: &[&str]| {
        let changes: Vec<&str> = changes
            .iter()
            .copied()
            .chain(["rlhf.steps_per_batch=1", "train.steps=3"])
            .collect();
        run(&plan(dir, &changes).unwrap(), &dir.join(name));
        std::fs::read(dir.join(name).join("model.safetensors")).unwrap()
    };
    let rloo = weights("rloo", &["rlhf.algorithm='rloo'"]);
    assert_ne!(
        rloo,
        std::fs::read(dir.join("base/model.safetensors")).unwrap()
    );
    for (name, change) in [
        ("answer", "rlhf.divergence='answer'"),
        ("token", "rlhf.divergence='token'"),
        ("vocabulary", "rlhf.divergence='vocabulary'"),
        ("ppo", "rlhf.algorithm='ppo'"),
    ] {
        assert!(weights(name, &[change]) == rloo, "{name}");
    }
}

#[test]
fn stopped_or_left_in_peace_a_run_leaves_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    begin(dir);
    for (name, changes) in [
        (
            "all",
            &[
                "rlhf.divergence='vocabulary'",
                "rlhf.beta={from=0.1, to=0.0}",
            ][..],
        ),
        (
            "lora",
            &["adapter.rank=4", "rlhf.batch_kl=0.02", "train.peak_lr=2e-2"],
        ),
    ] {
        let changes: Vec<&str> = changes
            .iter()
            .copied()
            .chain([
                "train.steps=9",
                "rlhf.steps_per_batch=3",
                "train.checkpoint_every=2",
            ])
            .collect();
        let again = || plan(dir, &changes).unwrap();
        let (whole, parts) = (dir.join(name), dir.join(format!("{name}-parts")));
        run(&again(), &whole);
        for stop in [1, 4] {
            let interrupt = Interrupt::new();
            let mut progress = StopAt(stop, interrupt.clone());
            let stopped = run_to(&again(), &parts, &mut progress, &interrupt);
            let Outcome::Interrupted { step } = stopped else {
                panic!("{stopped:?}");
            };
            // Not in the middle of a batch, whose answers only this process has.
            assert!(name == "lora" || step.is_multiple_of(3), "{name}: {step}");
        }
        finished(run_to(&again(), &parts, &mut NoProgress, &Interrupt::new()));
        assert_eq!(bytes(&parts), bytes(&whole), "{name}");
    }
}

#[test]
fn a_run_ends_where_the_policy_has_gone_too_far() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    begin(dir);
    let changes = [
        "train.steps=200",
        "train.peak_lr=2e-3",
        "rlhf.beta=0",
        "rlhf.stop_kl=0.5",
    ];
    let made = run(&plan(dir, &changes).unwrap(), &dir.join("out"));
    // Between two batches, and long before the end.
    assert!(
        made.steps >= 2 && made.steps.is_multiple_of(2) && made.steps < 200,
        "{}",
        made.steps
    );
    let kl = logged(&dir.join("out"), "kl");
    assert!(kl.iter().all(|&kl| kl <= 0.5), "{kl:?}");
}

#[test]
fn a_reward_model_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    begin(dir);
    common::files(dir);
    let reward = common::plan(dir, Lesson::Rewards, "pairs.jsonl", &[]).unwrap();
    let made = common::run_to(
        &reward,
        &dir.join("reward"),
        &mut NoProgress,
        &Interrupt::new(),
    );
    finished(made);
    let settings = settings(
        dir,
        &["rlhf.rewards=[{kind='model'}, {kind='format', pattern='(?s)^.{3}', weight=0.5}]"],
    );
    let sources = Sources {
        reward: Some(dir.join("reward")),
        ..sources(dir)
    };
    let plan = Plan::new(settings.clone(), sources.clone(), &NoRules).unwrap();
    run(&plan, &dir.join("out"));
    assert!(
        logged(&dir.join("out"), "reward")
            .iter()
            .all(|reward| reward.is_finite())
    );
    // A policy is a model that answers, without a head.
    assert!(
        russet_model::checkpoint::open(&dir.join("out"))
            .unwrap()
            .reward_head()
            .is_none()
    );
    let sources = Sources {
        reward: Some(dir.join("base")),
        ..sources
    };
    let plan = Plan::new(settings, sources, &NoRules).unwrap();
    let error = plan
        .run(
            &dir.join("none"),
            &tool(),
            Resume::Continue,
            &mut NoProgress,
            &Interrupt::new(),
        )
        .unwrap_err();
    assert!(error.to_string().contains("no reward head"), "{error}");
}

#[test]
fn what_cannot_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    begin(dir);
    for (change, word) in [
        ("rlhf.samples=1", "rlhf.samples"),
        ("rlhf.samples=3", "train.batch_sequences"),
        ("rlhf.max_tokens=40", "rlhf.max_tokens"),
        ("rlhf.max_tokens=36", "no prompt is left"),
        ("rlhf.clip=0.2", "rlhf.clip"),
        ("rlhf.beta=-1", "rlhf.beta"),
        ("rlhf.clamp=0", "rlhf.clamp"),
        ("rlhf.algorithm='rloo'", "rlhf.steps_per_batch"),
        ("rlhf.rewards=[]", "rlhf.rewards"),
        ("rlhf.rewards=[{kind='wit'}]", "letters"),
        ("rlhf.rewards=[{kind='model'}]", "inputs.reward"),
        ("rlhf.rewards=[{kind='format'}]", "rlhf.rewards.pattern"),
        (
            "rlhf.rewards=[{kind='format', pattern='('}]",
            "no regular expression",
        ),
        ("compute.dtype='bf16'", "compute.dtype"),
        ("train.tokens=100", "train.tokens"),
        ("data.epochs=2", "data.epochs"),
        ("train.keep_best=true", "train.keep_best"),
    ] {
        let error = plan(dir, &[change])
            .err()
            .unwrap_or_else(|| panic!("{change} passes"));
        assert!(error.to_string().contains(word), "{change}: {error}");
    }
    for (row, word) in [
        (json!({"prompt": "Hi", "refused": true}), "`refused`"),
        (json!({"text": "Hi"}), "`prompt`"),
    ] {
        write(&dir.join("prompts.jsonl"), &[json!({"prompt": "Hi"}), row]);
        let error = plan(dir, &[]).err().unwrap().to_string();
        for word in ["prompts.jsonl", "line 2", word] {
            assert!(error.contains(word), "{error}");
        }
        let plan = plan(dir, &["data.skip_malformed=true"]).unwrap();
        assert_eq!((plan.counts().prompts, plan.counts().malformed), (1, 1));
    }
}
