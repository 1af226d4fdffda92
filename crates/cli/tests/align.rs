//! `sft`, `dpo`, `reward` and `rlhf`: a run that learns to answer, and the chat that it then holds.

mod common;

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use common::{Ran, exits, mini, ok, russet, write};
use serde_json::{Value, json};

const CHATS: [(&str, &str); 3] = [
    ("who saw the hen", "the fox"),
    ("where is home", "a red barn"),
    ("who slept then", "the hen and the fox"),
];

/// A checkpoint that continues text in `runs/mini/03-pretrain`, and files of rows.
fn begin(dir: &Path) {
    mini(dir);
    for name in ["04-palettize", "05-eval", "06-sample"] {
        std::fs::remove_file(dir.join(format!("mini/{name}.toml"))).unwrap();
    }
    ok(dir, &["run", "mini"]);
    let turn = |role: &str, text: &str| json!({"role": role, "content": text});
    let chats: Vec<Value> = CHATS
        .iter()
        .map(|(asked, said)| json!({"messages": [turn("user", asked), turn("assistant", said)]}))
        .collect();
    write(dir, "chats.jsonl", &chats);
    let pairs: Vec<Value> = (0..CHATS.len())
        .map(|at| {
            let other = CHATS[(at + 1) % CHATS.len()].1;
            json!({"prompt": CHATS[at].0, "chosen": other, "rejected": CHATS[at].1})
        })
        .collect();
    write(dir, "pairs.jsonl", &pairs);
    let recipe =
        |name: &str, text: &str| std::fs::write(dir.join("mini").join(name), text).unwrap();
    recipe(
        "04-sft.toml",
        "stage = \"sft\"\n[inputs]\ncheckpoint = \"03-pretrain\"\n[train]\nsteps = 120\nbatch_sequences = 1\n\
         sequence_length = 128\npeak_lr = 5e-3\nvalidate_every = 60\nkeep_best = true\n[optimizer]\nkind = \"adamw\"\n\
         [data]\ntrain = [\"chats.jsonl\"]\nvalidation = [\"chats.jsonl\"]\n",
    );
    recipe(
        "05-dpo.toml",
        "stage = \"dpo\"\n[inputs]\ncheckpoint = \"04-sft\"\n[train]\nbatch_sequences = 3\nsequence_length = 128\n\
         peak_lr = 1e-3\n[optimizer]\nkind = \"adamw\"\n[data]\ntrain = [\"pairs.jsonl\"]\nvalidation = [\"pairs.jsonl\"]\n\
         epochs = 20\n[dpo]\nbeta = 0.3\n",
    );
}

/// What a chat answers to lines of input.
fn chat(dir: &Path, model: &str, lines: &str) -> Vec<String> {
    let mut child = russet(
        dir,
        &[
            "chat",
            "--model",
            model,
            "--temperature",
            "0",
            "--max-tokens",
            "40",
            "--json",
        ],
    )
    .stdin(Stdio::piped())
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(lines.as_bytes())
        .unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let text = |line: &str| {
        let json: Value = serde_json::from_str(line).unwrap();
        json["text"].as_str().unwrap().to_owned()
    };
    ran.stdout.lines().map(text).collect()
}

#[test]
fn a_run_learns_to_answer_and_then_to_prefer() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    begin(dir);
    let plan = ok(dir, &["sft", "mini/04-sft.toml", "--dry-run", "--json"]).json();
    let plan = &plan["stages"][0]["plan"];
    assert_eq!(plan["data"]["train"][0]["counts"]["rows"], 3, "{plan}");
    let made = ok(dir, &["sft", "mini/04-sft.toml", "--json"]).json();
    assert_eq!(
        (&made["steps"], &made["skipped"]),
        (&json!(120), &json!(false))
    );
    assert!(
        made["measured"]["validation_loss"].as_f64().unwrap() < 0.1,
        "{made}"
    );
    let lines: String = CHATS
        .iter()
        .map(|(asked, _)| format!("/new\n{asked}\n"))
        .collect();
    let answers = chat(dir, "runs/mini/04-sft", &lines);
    assert_eq!(answers, CHATS.map(|(_, said)| said));

    // The whole folder goes on with what is not there yet.
    let run = ok(dir, &["run", "mini", "--json"]).json();
    let skipped: Vec<bool> = run["stages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|stage| stage["skipped"] == true)
        .collect();
    assert_eq!(skipped, [true, true, true, true, false]);
    let again = ok(dir, &["dpo", "mini/05-dpo.toml", "--json"]).json();
    assert_eq!(
        (&again["skipped"], &again["steps"]),
        (&json!(true), &json!(20))
    );
    assert_eq!(again["before"]["preference_accuracy"], 0.5);
    assert_eq!(again["measured"]["preference_accuracy"], 1.0, "{again}");
}

#[test]
fn a_reward_model_judges_and_a_policy_learns_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    begin(dir);
    let recipe =
        |name: &str, text: &str| std::fs::write(dir.join("mini").join(name), text).unwrap();
    recipe(
        "06-reward.toml",
        "stage = \"reward\"\n[inputs]\ncheckpoint = \"03-pretrain\"\n[train]\nbatch_sequences = 3\nsequence_length = 128\n\
         peak_lr = 3e-3\n[optimizer]\nkind = \"adamw\"\n[data]\ntrain = [\"pairs.jsonl\"]\nvalidation = [\"pairs.jsonl\"]\n\
         epochs = 30\n",
    );
    recipe(
        "07-rlhf.toml",
        "stage = \"rlhf\"\n[inputs]\ncheckpoint = \"03-pretrain\"\nreward = \"06-reward\"\n[train]\nsteps = 4\n\
         batch_sequences = 6\nsequence_length = 128\npeak_lr = 1e-3\n[optimizer]\nkind = \"adamw\"\n[rlhf]\nsamples = 3\n\
         steps_per_batch = 2\nmax_tokens = 8\n[[rlhf.rewards]]\nkind = \"model\"\n[[rlhf.rewards]]\nkind = \"exact\"\n\
         [data]\ntrain = [\"asked.jsonl\"]\nvalidation = [\"asked.jsonl\"]\n",
    );
    let asked = CHATS.map(|(asked, said)| json!({"prompt": asked, "answer": said}));
    write(dir, "asked.jsonl", &asked);
    let made = ok(dir, &["reward", "mini/06-reward.toml", "--json"]).json();
    assert_eq!(made["measured"]["preference_accuracy"], 1.0, "{made}");
    let eval = [
        "eval",
        "reward",
        "--data",
        "pairs.jsonl",
        "--json",
        "--model",
    ];
    let with = |model: &'static str| eval.into_iter().chain([model]).collect::<Vec<_>>();
    let told = ok(dir, &with("runs/mini/06-reward")).json();
    assert_eq!(
        (&told["pairs"], &told["accuracy"]),
        (&json!(3), &json!(1.0)),
        "{told}"
    );
    assert!(
        told["calibration"]["error"].as_f64().unwrap() < 0.5,
        "{told}"
    );
    // Who answers does not judge, and who judges does not answer.
    let ran = exits(dir, 1, &with("runs/mini/03-pretrain"));
    assert!(ran.stderr.contains("no reward head"), "{}", ran.stderr);
    let ran = exits(
        dir,
        1,
        &[
            "generate",
            "--model",
            "runs/mini/06-reward",
            "--prompt",
            "the",
        ],
    );
    assert!(ran.stderr.contains("eval reward"), "{}", ran.stderr);

    // It is a trained head of harm, where what was rejected is the harm.
    let label = |at: usize| json!({"prompt": CHATS[at].0, "label": "unsafe", "type": "made"});
    write(dir, "unsafe.jsonl", &[label(0), label(1)]);
    let said = |at: usize, text: &str| json!({"prompt": CHATS[at].0, "response": text});
    let responses = [said(0, CHATS[1].1), said(1, CHATS[1].1)]; // chosen once, and once rejected
    write(dir, "responses.jsonl", &responses);
    let safety = [
        "eval",
        "safety",
        "--prompts",
        "unsafe.jsonl",
        "--responses",
        "responses.jsonl",
        "--json",
        "--head-pairs",
        "pairs.jsonl",
        "--head",
    ];
    let with = |model: &'static str| safety.into_iter().chain([model]).collect::<Vec<_>>();
    let told = ok(dir, &with("runs/mini/06-reward")).json();
    assert_eq!(told["violation"]["rate"], 50.0, "{told}");
    assert_eq!(
        (&told["head"]["pairs"], &told["head"]["accuracy"]),
        (&json!(3), &json!(1.0)),
        "{told}"
    );
    assert!(told["head"]["slope"].as_f64() > Some(0.0), "{told}");
    let ran = exits(dir, 1, &with("runs/mini/03-pretrain"));
    assert!(ran.stderr.contains("no reward head"), "{}", ran.stderr);
    // Pairs the wrong way round.
    let turned: Vec<Value> = (0..3)
        .map(|at| {
            let other = CHATS[(at + 1) % CHATS.len()].1;
            json!({"prompt": CHATS[at].0, "chosen": CHATS[at].1, "rejected": other})
        })
        .collect();
    write(dir, "turned.jsonl", &turned);
    let mut arguments = with("runs/mini/06-reward");
    arguments[8] = "turned.jsonl";
    let ran = exits(dir, 1, &arguments);
    assert!(
        ran.stderr.contains("knows nothing of harm"),
        "{}",
        ran.stderr
    );

    let plan = ok(dir, &["rlhf", "mini/07-rlhf.toml", "--dry-run", "--json"]).json();
    let plan = &plan["stages"][0]["plan"];
    assert_eq!(plan["data"]["train"]["prompts"], 3, "{plan}");
    let made = ok(dir, &["rlhf", "mini/07-rlhf.toml", "--json"]).json();
    assert_eq!(
        (&made["steps"], &made["skipped"]),
        (&json!(4), &json!(false))
    );
    assert!(made["measured"]["validation_reward"].is_number(), "{made}");
    let again = ok(dir, &["rlhf", "mini/07-rlhf.toml", "--json"]).json();
    assert_eq!(again["skipped"], true);
    // Baselines are trained on other rows than they are measured on.
    let held: Vec<Value> = (0..3)
        .map(|at| json!({"prompt": CHATS[at].0, "chosen": "home", "rejected": CHATS[at].1}))
        .collect();
    write(dir, "held.jsonl", &held);
    let told = ok(
        dir,
        &[
            "eval",
            "reward",
            "--model",
            "runs/mini/06-reward",
            "--data",
            "held.jsonl",
            "--baseline",
            "pairs.jsonl",
            "--json",
        ],
    );
    assert!(told.json()["baseline"]["accuracy"].is_number());
}

#[test]
fn mistakes_are_told_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    begin(dir);
    for (verb, set, code, word) in [
        ("sft", "train.dropout=0.1", 2, "dropout"),
        ("sft", "dpo.beta=0.1", 2, "`dpo`"),
        ("sft", "data.train=['nowhere.jsonl']", 1, "nowhere.jsonl"),
        ("sft", "inputs.checkpoint='nowhere'", 1, "nowhere"),
        ("sft", "data.train=['pairs.jsonl']", 1, "line 1"),
        ("dpo", "data.too_long='cut'", 2, "data.too_long"),
        ("dpo", "reward.grade_weight=1", 2, "`reward`"),
    ] {
        let recipe = if verb == "sft" {
            "mini/04-sft.toml"
        } else {
            "mini/05-dpo.toml"
        };
        let ran = Ran::from(russet(dir, &[verb, recipe, "--set", set]).output().unwrap());
        assert_eq!(ran.code, code, "{set}: {}", ran.stderr);
        assert!(ran.stderr.contains(word), "{set}: {}", ran.stderr);
    }
    exits(dir, 2, &["sft", "mini/05-dpo.toml"]);
}
