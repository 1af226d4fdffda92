//! Fine-tuning on conversations, from files to a checkpoint that answers.

mod common;

use std::sync::Arc;

use common::{QUESTIONS, StopAt, base, bytes, files, finished, plan, run_to, settings, write};
use russet_align::{Lesson, Plan, Settings, Sources};
use russet_artifact::{Artifact, Interrupt, Kind, NoProgress};
use russet_engine::{Engine, EngineConfig, Flow, Generate, Request};
use russet_kernels::Pool;
use russet_model::{Decoder, adapter, checkpoint};
use russet_tokenizer::{Message, Tokenizer};
use russet_train::Outcome;
use serde_json::{Value, json};

/// What a model answers, greedily, through the engine and the template as `chat` does.
fn answer(decoder: Decoder, tokenizer: &Tokenizer, asked: &str) -> String {
    let prompt = tokenizer
        .encode_chat(&[Message::new("user", asked)], true)
        .unwrap();
    let context = decoder.config().context;
    let mut engine = Engine::new(
        decoder,
        Arc::new(Pool::new(1).unwrap()),
        EngineConfig::new(context, 1),
    )
    .unwrap();
    let request = Request {
        prompt,
        max_tokens: 24,
        stop_tokens: tokenizer.special().eos.clone(),
        ..Request::default()
    };
    let made = engine.generate(&request, &mut |_| Flow::Continue).unwrap();
    tokenizer.decode(&made.tokens, true)
}

#[test]
fn a_tiny_model_overfits_and_answers() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    base(dir);
    files(dir);
    let changes = [
        "train.steps=150",
        "train.batch_sequences=1",
        "train.checkpoint_every=0",
    ];
    let plan = plan(dir, Lesson::Conversations, "train.jsonl", &changes).unwrap();
    let out = dir.join("tuned");
    let report = finished(run_to(&plan, &out, &mut NoProgress, &Interrupt::new()));
    assert!(
        report.last_loss < 0.05,
        "{} to {}",
        report.first_loss,
        report.last_loss
    );
    Artifact::open(&out, Kind::Checkpoint)
        .unwrap()
        .verify()
        .unwrap();
    let tokenizer = Tokenizer::open(&out).unwrap();
    assert!(tokenizer.chat_template().is_some());
    for (asked, said) in QUESTIONS {
        assert_eq!(
            answer(checkpoint::open(&out).unwrap(), &tokenizer, asked),
            said
        );
    }
    // Called again, there is nothing to do; and idle settings make no other run.
    let again = run_to(&plan, &out, &mut NoProgress, &Interrupt::new());
    assert_eq!(again, Outcome::Current);
}

/// On a base that has learnt other answers to the same questions.
#[test]
fn adapters_learn_to_answer_too() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    base(dir);
    files(dir);
    let rows: Vec<Value> = (0..QUESTIONS.len())
        .map(|at| {
            let other = QUESTIONS[(at + 1) % QUESTIONS.len()].1;
            json!({"prompt": QUESTIONS[at].0, "completion": other})
        })
        .collect();
    write(&dir.join("others.jsonl"), &rows);
    let all = [
        "train.steps=150",
        "train.batch_sequences=1",
        "train.checkpoint_every=0",
    ];
    let first = plan(dir, Lesson::Conversations, "others.jsonl", &all).unwrap();
    let tuned = dir.join("tuned");
    finished(run_to(&first, &tuned, &mut NoProgress, &Interrupt::new()));

    let changes = [
        "train.steps=200",
        "train.batch_sequences=4",
        "train.checkpoint_every=0",
        "adapter.rank=8",
    ];
    let sources = Sources {
        checkpoint: tuned.clone(),
        adapter: None,
    };
    let settings = settings(dir, "train.jsonl", &changes);
    let plan = Plan::new(Lesson::Conversations, settings, sources).unwrap();
    let out = dir.join("adapter");
    let report = finished(run_to(&plan, &out, &mut NoProgress, &Interrupt::new()));
    assert!(
        report.last_loss < 0.1,
        "{} to {}",
        report.first_loss,
        report.last_loss
    );
    let tokenizer = Tokenizer::open(&tuned).unwrap();
    let adapted = || adapter::attach(checkpoint::open(&tuned).unwrap(), &out, None).unwrap();
    for (at, (asked, said)) in QUESTIONS.into_iter().enumerate() {
        assert_eq!(answer(adapted(), &tokenizer, asked), said);
        let before = answer(checkpoint::open(&tuned).unwrap(), &tokenizer, asked);
        assert_eq!(before, QUESTIONS[(at + 1) % QUESTIONS.len()].1);
    }
}

#[test]
fn stopped_or_left_in_peace_a_run_leaves_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    base(dir);
    files(dir);
    let held = format!("data.validation={}", json!([dir.join("held.jsonl")]));
    for (name, more) in [
        ("full", vec![]),
        ("lora", vec!["adapter.rank=4", "adapter.dtype=f32"]),
    ] {
        let mut changes = vec![
            held.as_str(),
            "train.validate_every=3",
            "train.keep_best=true",
        ];
        changes.extend(more);
        let plan = plan(dir, Lesson::Conversations, "train.jsonl", &changes).unwrap();
        let out = |word: &str| dir.join(format!("{name}-{word}"));
        finished(run_to(
            &plan,
            &out("whole"),
            &mut NoProgress,
            &Interrupt::new(),
        ));
        let parts = out("parts");
        for stop in [2, 5, 9] {
            let interrupt = Interrupt::new();
            let stopped = run_to(
                &plan,
                &parts,
                &mut StopAt(stop, interrupt.clone()),
                &interrupt,
            );
            assert!(
                matches!(stopped, Outcome::Interrupted { step } if step >= stop),
                "{stopped:?}"
            );
        }
        finished(run_to(&plan, &parts, &mut NoProgress, &Interrupt::new()));
        assert_eq!(bytes(&parts), bytes(&out("whole")), "{name}");
        // The best by held-out loss lies beside it.
        let best = out("whole.best");
        let kind = if name == "full" {
            Kind::Checkpoint
        } else {
            Kind::Adapter
        };
        Artifact::open(&best, kind).unwrap();
    }
}

#[test]
fn the_report_tells_what_the_data_came_to() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    base(dir);
    files(dir);
    let long = "and the fox ".repeat(60);
    let rows = [
        json!({"prompt": QUESTIONS[0].0, "completion": QUESTIONS[0].1}),
        json!({"instruction": QUESTIONS[1].0, "output": long}),
        json!({"conversations": [{"from": "human", "value": long}, {"from": "gpt", "value": "No."}]}),
        json!({"text": "no conversation"}),
    ];
    write(&dir.join("mixed.jsonl"), &rows);
    let held = format!("data.validation={}", json!([dir.join("held.jsonl")]));
    let changes = ["data.skip_malformed=true", held.as_str(), "train.steps=2"];
    let plan = plan(dir, Lesson::Conversations, "mixed.jsonl", &changes).unwrap();
    let out = dir.join("tuned");
    let report = finished(run_to(&plan, &out, &mut NoProgress, &Interrupt::new()));
    let text = std::fs::read_to_string(out.join("report.json")).unwrap();
    let found: Value = serde_json::from_str(&text).unwrap();
    let counts = &found["data"]["train"][0]["counts"];
    assert_eq!(
        (
            &counts["rows"],
            &counts["malformed"],
            &counts["cut"],
            &counts["dropped"]
        ),
        (&json!(3), &json!(1), &json!(1), &json!(1)),
        "{found}"
    );
    assert_eq!(
        found["measured"]["validation_loss"],
        json!(report.validation_nats.unwrap())
    );
    assert!(found["before"]["validation_loss"].as_f64().unwrap() > 3.0);
}

#[test]
fn settings_that_cannot_be_are_refused_by_their_keys() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    base(dir);
    files(dir);
    for (changes, word) in [
        (&["data.train=[]"][..], "data.train"),
        (&["data.mixture=[{file='x', weight=1}]"], "data.mixture"),
        (&["data.epochs=1"], "train.steps"),
        (&["train.keep_best=true"], "data.validation"),
        (&["train.validate_every=2"], "data.validation"),
        (&["dpo.beta=0.1"], "`dpo`"),
        (&["adapter.rank=0"], "adapter.rank"),
        (&["train.micro_batch_sequences=3"], "micro_batch_sequences"),
        (&["data.chat_template='nowhere.jinja'"], "nowhere.jinja"),
        (&["data.train=['nowhere.jsonl']"], "nowhere.jsonl"),
        (&["train.sequence_length=8"], "nothing of it is left"),
    ] {
        let changes: Vec<&str> = changes
            .iter()
            .copied()
            .chain(["data.too_long='drop'"])
            .collect();
        let error = plan(dir, Lesson::Conversations, "train.jsonl", &changes).unwrap_err();
        assert!(error.to_string().contains(word), "{changes:?}: {error}");
    }
    for changes in [["train.dropout=0.1"], ["data.tokens='x'"]] {
        let refused = std::panic::catch_unwind(|| settings(dir, "train.jsonl", &changes));
        assert!(refused.is_err(), "{changes:?}");
    }
}

#[test]
fn epochs_say_how_long() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    base(dir);
    files(dir);
    let text = format!(
        "[train]\nbatch_sequences = 1\nsequence_length = 64\n[data]\ntrain = [{}]\nepochs = 2.5\n",
        json!(dir.join("train.jsonl"))
    );
    let settings: Settings = russet_artifact::Recipe::from_text("recipe", &text, &[])
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(
        (settings.train.peak_lr, settings.train.warmup_steps),
        (2e-5, Some(0))
    );
    let sources = Sources {
        checkpoint: dir.join("base"),
        adapter: None,
    };
    let plan = Plan::new(Lesson::Conversations, settings, sources).unwrap();
    let sequences = plan.counts().sequences as f64;
    assert_eq!(
        plan.settings().train.steps,
        Some((2.5 * sequences).ceil() as u64)
    );
}
