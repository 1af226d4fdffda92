//! `run` and the verbs of single stages, from recipes to scores.

mod common;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{exits, fields, manifests, mini, ok, russet};
use serde_json::Value;

const STAGES: [&str; 6] = [
    "01-tokenizer",
    "02-tokens",
    "03-pretrain",
    "04-palettize",
    "05-eval",
    "06-sample",
];

fn skipped(run: &Value) -> Vec<bool> {
    let stages = run["stages"].as_array().unwrap().iter();
    stages
        .map(|stage| stage["skipped"].as_bool().unwrap())
        .collect()
}

#[test]
fn a_run_makes_everything_and_the_second_skips_it() {
    let dir = tempfile::tempdir().unwrap();
    mini(dir.path());
    let first = ok(dir.path(), &["run", "mini", "--json"]);
    let json = first.json();
    fields(
        &json,
        &["stages", "bits_per_byte", "bpw", "sample", "interrupted"],
    );
    assert_eq!(skipped(&json), [false; 6]);
    for (stage, name) in json["stages"].as_array().unwrap().iter().zip(STAGES) {
        fields(stage, &["name", "seconds", "skipped", "artifact"]);
        assert_eq!(stage["name"], name);
        let artifact = dir.path().join(stage["artifact"].as_str().unwrap());
        assert!(artifact.join("manifest.json").is_file(), "{artifact:?}");
        // The manifest has the stage's word: renumbering a recipe runs nothing again.
        let manifest = std::fs::read(artifact.join("manifest.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(manifest["stage"], name[3..]);
    }
    let bits = |which: &str| json["bits_per_byte"][which].as_f64().unwrap();
    let (checkpoint, package) = (bits("checkpoint"), bits("package"));
    assert!(
        checkpoint < 2.0,
        "the decoder has learnt nothing: {checkpoint}"
    );
    assert!(
        package < 1.05 * checkpoint,
        "the package has {package} bits per byte, the checkpoint {checkpoint}"
    );
    assert!(json["bpw"].as_f64().unwrap() <= 4.5);
    let sample = json["sample"].as_str().unwrap();
    assert!(
        sample.starts_with("the fox") && sample.len() > 10,
        "{sample:?}"
    );
    // Where standard error is no terminal, all of it but an error is lines of JSON.
    for line in first.stderr.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("{line:?}"));
    }

    // What it learnt can be looked at.
    let watched = ok(dir.path(), &["watch", "runs/mini", "--json"]).json();
    let words = [
        "log",
        "pace",
        "step",
        "seconds",
        "loss",
        "validation_loss",
        "learning_rate",
        "gradient_norm",
        "tokens_per_second",
        "mfu",
        "skipped_steps",
        "steps",
        "seconds_left",
        "tokens",
        "messages",
    ];
    fields(&watched, &words);
    assert_eq!(
        (&watched["step"], &watched["pace"]),
        (&40.into(), &"finished".into())
    );
    assert!(
        watched["loss"].as_f64() > Some(0.0) && watched["tokens"]["train"].as_f64() > Some(9000.0)
    );

    let before = manifests(&dir.path().join("runs/mini"));
    assert_eq!(before.len(), 6);
    let dry = ok(dir.path(), &["run", "mini", "--dry-run", "--json"]).json();
    assert_eq!(
        dry["stages"][2]["plan"]["place"],
        serde_json::json!({"holds": "result", "inputs_may_change": true})
    );
    let second = ok(dir.path(), &["run", "mini", "--json"]).json();
    assert_eq!(skipped(&second), [true; 6]);
    for same in ["bits_per_byte", "bpw", "sample"] {
        assert_eq!(second[same], json[same]);
    }
    assert_eq!(manifests(&dir.path().join("runs/mini")), before);

    // A changed setting runs its stage and what lies behind it, and no other.
    let changed = ["run", "mini", "--json", "--set", "sample.sample.seed=3"];
    let third = ok(dir.path(), &changed).json();
    assert_eq!(skipped(&third), [true, true, true, true, true, false]);

    // Another number is the same stage.
    let recipes = dir.path().join("mini");
    std::fs::rename(
        recipes.join("06-sample.toml"),
        recipes.join("07-sample.toml"),
    )
    .unwrap();
    let runs = dir.path().join("runs/mini");
    std::fs::rename(runs.join("06-sample"), runs.join("07-sample")).unwrap();
    assert_eq!(skipped(&ok(dir.path(), &changed).json()), [true; 6]);
}

#[test]
fn each_stage_by_its_own_verb_leaves_the_same_bytes_as_the_run() {
    let dir = tempfile::tempdir().unwrap();
    mini(dir.path());
    ok(dir.path(), &["run", "mini", "--out", "whole"]);
    let one = |verb: &[&str]| {
        let mut arguments = verb.to_vec();
        arguments.push("--json");
        ok(dir.path(), &arguments).json()
    };
    let stage = ["name", "seconds", "skipped", "artifact", "summary"];
    let tokenizer = one(&["tokenizer", "train", "mini/01-tokenizer.toml"]);
    fields(&tokenizer, &[&stage[..], &["vocab"]].concat());
    let tokens = one(&["tokenizer", "shards", "mini/02-tokens.toml"]);
    fields(&tokens, &[&stage[..], &["splits"]].concat());
    let pretrain = ["pretrain", "mini/03-pretrain.toml", "--threads", "1"];
    let report = [
        "first_loss",
        "last_loss",
        "steps",
        "tokens",
        "tokens_per_second",
        "mfu",
        "peak_gflops",
        "validation_nats",
        "bits_per_byte",
        "skipped_steps",
        "best_step",
        "peak_bytes",
        "ranks",
        "peak_bytes_per_rank",
        "bytes_moved_per_step",
        "losses",
    ];
    let place = |more: &[&str]| {
        let dry = one(&[&pretrain[..], &["--dry-run"], more].concat());
        let plan = &dry["stages"][0]["plan"];
        assert_eq!(plan["fits_here"], true);
        plan["place"].clone()
    };
    assert_eq!(place(&[]), serde_json::json!({"holds": "nothing"}));
    let trained = one(&pretrain);
    assert_eq!(place(&[]), serde_json::json!({"holds": "result"}));
    // Ten tokens make a step, in the place of the recipe's 40.
    let other = place(&["--set", "train.tokens=10"]);
    assert_eq!(other["holds"], "earlier_result");
    let why = other["why"].as_str().unwrap();
    assert!(why.contains("`train.steps` was 40, is 1"), "{why}");
    fields(&trained, &[&stage[..], &report].concat());
    assert!(trained["last_loss"].as_f64() < trained["first_loss"].as_f64());
    assert_eq!(trained["steps"], 40);
    assert_eq!(trained["losses"].as_array().unwrap().len(), 40);
    let again = one(&pretrain);
    fields(&again, &stage);
    assert_eq!(again["skipped"], true);
    let palettize = [
        "palettize",
        "--model",
        "runs/mini/03-pretrain",
        "--calibration",
        "train.jsonl",
        "--target-bpw",
        "4.5",
        "--set",
        "palettize.calibration_tokens=2000",
        "--out",
        "runs/mini/04-palettize",
    ];
    let compressed = one(&palettize);
    let report = [
        "bpw",
        "bits_per_parameter",
        "bytes",
        "weights",
        "calibration_tokens",
        "loss_before",
        "loss_after",
        "layers",
        "curve",
    ];
    fields(&compressed, &[&stage[..], &report].concat());
    fields(
        &compressed["layers"][0],
        &["name", "bits", "error", "sensitivity", "rises"],
    );
    assert_eq!(one(&palettize)["skipped"], true);
    let hash = |run: &str, name: &str| {
        let path = dir.path().join(run).join(name).join("manifest.json");
        let manifest: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        manifest["files"].clone()
    };
    for name in &STAGES[..4] {
        assert_eq!(hash("runs/mini", name), hash("whole", name), "{name}");
    }
    // From the first step, though the checkpoint is there.
    let restarted = one(&[&pretrain[..], &["--restart"]].concat());
    assert_eq!(
        (&restarted["skipped"], &restarted["steps"]),
        (&false.into(), &40.into())
    );
    assert_eq!(
        hash("runs/mini", "03-pretrain"),
        hash("whole", "03-pretrain")
    );
    // A verb refuses another stage's recipe.
    exits(dir.path(), 2, &["pretrain", "mini/02-tokens.toml"]);
}

#[test]
fn a_dry_run_tells_what_would_be_done_and_does_nothing() {
    let dir = tempfile::tempdir().unwrap();
    mini(dir.path());
    let json = ok(dir.path(), &["run", "mini", "--dry-run", "--json"]).json();
    fields(&json, &["stages"]);
    let stages = json["stages"].as_array().unwrap();
    for (stage, name) in stages.iter().zip(STAGES) {
        fields(stage, &["name", "settings", "plan"]);
        assert_eq!(stage["name"], name);
        assert!(stage["plan"].is_object(), "{stage}");
    }
    let settings = &stages[2]["settings"];
    assert_eq!(settings["model"]["head_dim"], 8);
    assert_eq!(settings["train"]["micro_batch_sequences"], 4);
    assert!(settings["compute"]["threads"].as_u64() > Some(0));
    let plan = &stages[2]["plan"];
    assert_eq!(plan["tokens"], 40 * 4 * 64);
    fields(
        &plan["memory"],
        &[
            "weights",
            "gradients",
            "optimizer",
            "saving",
            "activations",
            "teacher",
        ],
    );
    assert!(plan["estimate"]["seconds"].as_f64() > Some(0.0));
    let plan = &stages[3]["plan"];
    assert!(plan["memory_bytes"].as_u64() > Some(10_000) && plan["estimate"]["seconds"].is_f64());
    assert_eq!(stages[4]["plan"]["window"], 128);
    assert!(!dir.path().join("runs").exists());

    // The command line's threads hold against the recipe's.
    let threads = |arguments: &[&str]| {
        let recipe = ["pretrain", "mini/03-pretrain.toml", "--dry-run", "--json"];
        let ran = ok(dir.path(), &[&recipe[..], arguments].concat()).json();
        ran["stages"][0]["settings"]["compute"]["threads"].as_u64()
    };
    assert_eq!(threads(&["--set", "compute.threads=3"]), Some(3));
    assert_eq!(
        threads(&["--set", "compute.threads=3", "--threads", "2"]),
        Some(2)
    );

    // For a person, the same in lines; alone and without a tokenizer's recipe, the reason why there is no price.
    let text = ok(dir.path(), &["run", "mini", "--dry-run"]).stdout;
    for part in ["model.head_dim = 8", "| memory ", "| time ", "04-palettize"] {
        assert!(text.contains(part), "{text}");
    }
    let alone = dir.path().join("alone");
    std::fs::create_dir(&alone).unwrap();
    std::fs::copy(
        dir.path().join("mini/03-pretrain.toml"),
        alone.join("a.toml"),
    )
    .unwrap();
    let lone = ok(dir.path(), &["pretrain", "alone/a.toml", "--dry-run"]).stdout;
    assert!(
        lone.contains("no estimate: ") && lone.contains("tokenizer recipe"),
        "{lone}"
    );
}

/// A rank in each of several devices that are not here: which mesh, and what a step of it takes.
#[test]
fn a_dry_run_plans_meshes_for_this_machine_and_for_devices_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    mini(dir.path());
    // The vocabulary is the tokenizer recipe's, and no text is needed.
    std::fs::remove_file(dir.path().join("train.jsonl")).unwrap();
    let recipe = dir.path().join("mini/03-pretrain.toml");
    let rules = "[[parallel.rule]]\ndevice = \"cuda\"\nranks = 4\nfsdp = 2\ntensor = 2\n[[parallel.rule]]\n\
                 device = \"cpu\"\nranks = 2\nsequence = 2\n";
    let text = std::fs::read_to_string(&recipe).unwrap();
    std::fs::write(&recipe, format!("{text}\n{rules}")).unwrap();
    let plan = ["pretrain", "mini/03-pretrain.toml", "--dry-run"];
    let of = |more: &[&str]| {
        let json = ok(dir.path(), &[&plan[..], &["--json"], more].concat()).json();
        json["stages"][0]["plan"].clone()
    };
    let device = "kind=cuda,memory_gib=80,tflops=989,per_host=2,link_gb_s=450,network_gb_s=50";
    let elsewhere = ["--device", device, "--set", "parallel.ranks=4"];
    let cuda = of(&elsewhere);
    assert_eq!(cuda["parallel"]["mesh"], serde_json::json!([1, 2, 1, 2]));
    let step = &cuda["step"];
    assert_eq!(step["own"]["mesh"], cuda["parallel"]["mesh"]);
    assert_eq!(step["device"]["kind"], "cuda");
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value}"));
    let seconds = number(&cuda["estimate"]["seconds"]);
    assert!((seconds - 40.0 * number(&step["own"]["seconds"])).abs() < 1e-9 * seconds);
    assert!(step["fits"] == true && number(&step["own"]["mfu"]) < 0.75);
    assert!(!step["fastest"].as_array().unwrap().is_empty());
    let text = ok(dir.path(), &[&plan[..], &elsewhere].concat()).stdout;
    for part in [
        "step ",
        "on 4 cuda: products ",
        "data x fsdp x sequence x tensor",
        "1 x 2 x 1 x 2",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // On this machine: the rule of its kind, or axes that are set.
    let two = of(&["--set", "parallel.ranks=2"]);
    assert_eq!(two["parallel"]["mesh"], serde_json::json!([1, 1, 2, 1]));
    assert!(number(&two["step"]["own"]["along"][2]) > 0.0);
    let set = of(&["--set", "parallel.data=4"]);
    assert_eq!(set["parallel"]["mesh"], serde_json::json!([4, 1, 1, 1]));
    let one = of(&[]);
    assert!(one["parallel"].is_null() && one["step"]["device"]["kind"] == "cpu");
    // What cannot be.
    for (more, part) in [
        (&["--set", "parallel.ranks=3"][..], "`parallel.ranks` is 3"),
        (&["--device", "kind=cuda"], "memory_gib is missing"),
    ] {
        let ran = exits(dir.path(), 2, &[&plan[..], more].concat());
        assert!(ran.stderr.contains(part), "{}", ran.stderr);
    }
    let ran = exits(
        dir.path(),
        2,
        &["pretrain", "mini/03-pretrain.toml", "--device", device],
    );
    assert!(ran.stderr.contains("--dry-run"), "{}", ran.stderr);
}

#[test]
fn every_recipe_is_checked_before_the_first_stage_runs() {
    let dir = tempfile::tempdir().unwrap();
    mini(dir.path());
    for (set, code, part) in [
        ("tokenizer.tokenizer.vocab_size=5", 2, "vocab_size"),
        ("tokens.data.train=[]", 2, "`data.train`"),
        ("pretrain.train.peak_lr=-1", 2, "`train.peak_lr` is -1"),
        (
            "tokenizer.vocab_size=5",
            2,
            "did you mean `tokenizer.tokenizer.vocab_size`?",
        ),
        ("pretrain.nonsense=1", 2, "unknown field `nonsense`"),
        (
            "pretrain.optimizer.beta1=2",
            2,
            "`kind` is missing, which decides what other keys there are",
        ),
        (
            "pretrain.inputs.checkpoint=x",
            2,
            "`model.width` stands beside `inputs.checkpoint`",
        ),
        ("pretrain.model.heads=5", 2, "`model.head_dim` is missing"),
        ("pretrain.stage=prettrain", 2, "did you mean `pretrain`?"),
        ("palettize.palettize.target_bpw=-1", 2, "`target_bpw` is -1"),
        (
            "palettize.palettize.target_bpw=5",
            2,
            "choose a target in between",
        ),
        ("eval.eval.window=0", 2, "`eval.window` is 0"),
        ("eval.eval.window=999", 2, "the model sees from 1 to 128"),
        ("eval.data.heldout=none.jsonl", 1, "none.jsonl"),
        ("sample.sample.max_tokens=0", 2, "`sample.max_tokens` is 0"),
        ("sample.sample.top_p=0", 2, "top_p is 0"),
        (
            "pretrain.inputs.tokens=nope",
            2,
            "`inputs.tokens` is nope, which is neither an earlier stage of this run (01-tokenizer, 02-tokens)",
        ),
        (
            "eval.inputs.checkpoint=06-sample",
            2,
            "06-sample, which runs later",
        ),
        (
            "pretrain.data.validation=test",
            2,
            "02-tokens makes no such split; write one of heldout, train",
        ),
        ("palettize.palettize.sequence=129", 2, "`sequence` is 129"),
        ("nothing.a=1", 2, "`nothing` is no stage"),
        ("noequals", 2, "KEY=VALUE"),
    ] {
        let ran = exits(dir.path(), code, &["run", "mini", "--set", set]);
        assert!(ran.stderr.contains(part), "{set}: {}", ran.stderr);
        assert!(!dir.path().join("runs").exists(), "{set}");
    }
    if Path::new("/proc/meminfo").exists() {
        let large = "pretrain.model.width=65536";
        let ran = exits(dir.path(), 2, &["run", "mini", "--set", large]);
        assert!(ran.stderr.contains("GiB"), "{}", ran.stderr);
    }
    exits(dir.path(), 2, &["run", "nowhere"]);

    // Where the run goes: not over files of other kinds.
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("thesis.tex"), "precious").unwrap();
    let refused = |arguments: &[&str], part: &str| {
        let ran = exits(dir.path(), 2, arguments);
        assert!(ran.stderr.contains(part), "{}", ran.stderr);
    };
    refused(
        &["run", "mini", "--out", "other"],
        "none of them is of a run",
    );
    refused(&["run", "mini", "--out", "train.jsonl"], "this is a file");
    assert_eq!(std::fs::read_dir(&other).unwrap().count(), 1);
    // Which recipes.
    refused(&["run", "."], "did you mean ./mini?");
    refused(&["pretrain", "mini"], "this is a folder");
    let whole = "03-pretrain.train.steps=3";
    refused(
        &["pretrain", "mini/03-pretrain.toml", "--set", whole],
        "write --set train.steps=",
    );
    let recipes = dir.path().join("mini");
    std::fs::copy(recipes.join("06-sample.toml"), recipes.join("more.toml")).unwrap();
    refused(
        &["run", "mini"],
        "more.toml: a recipe of a run has a number",
    );
}

#[test]
fn a_run_that_was_moved_is_the_same_run_to_every_verb() {
    let dir = tempfile::tempdir().unwrap();
    mini(dir.path());
    for name in ["04-palettize", "05-eval", "06-sample"] {
        std::fs::remove_file(dir.path().join(format!("mini/{name}.toml"))).unwrap();
    }
    let steps = ["--json", "--set", "pretrain.train.steps=2"];
    ok(dir.path(), &[&["run", "mini"][..], &steps].concat());
    std::fs::create_dir_all(dir.path().join("deep/er")).unwrap();
    std::fs::rename(dir.path().join("runs/mini"), dir.path().join("deep/er/one")).unwrap();
    let moved = ["run", "mini", "--out", "deep/er/one"];
    let again = ok(dir.path(), &[&moved[..], &steps].concat()).json();
    assert_eq!(skipped(&again), [true; 3]);

    // A single verb finds its inputs beside the place that it writes to, before those of the default run.
    ok(
        dir.path(),
        &[
            "run",
            "mini",
            "--json",
            "--set",
            "pretrain.train.steps=2",
            "--set",
            "tokenizer.tokenizer.vocab_size=301",
        ],
    );
    let single = [
        "pretrain",
        "mini/03-pretrain.toml",
        "--out",
        "deep/er/one/03-pretrain",
        "--set",
        "train.steps=2",
    ];
    let plan = ok(dir.path(), &[&single[..], &["--dry-run"]].concat()).stdout;
    assert!(
        plan.contains("tokens   from deep/er/one/02-tokens"),
        "{plan}"
    );
    let same = ok(dir.path(), &single);
    assert!(same.stdout.contains(": unchanged, "), "{}", same.stdout);
    let json = ok(dir.path(), &[&single[..], &["--json"]].concat());
    assert!(json.stderr.contains("unchanged, "), "{}", json.stderr);
}

#[cfg(unix)]
#[test]
fn a_run_that_is_told_to_stop_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    mini(dir.path());
    ok(
        dir.path(),
        &[
            "run",
            "mini",
            "--out",
            "whole",
            "--set",
            "pretrain.train.steps=300",
        ],
    );
    let long = ["run", "mini", "--json", "--set", "pretrain.train.steps=300"];
    let child = russet(dir.path(), &long)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = dir.path().join("runs/mini/03-pretrain.log");
    let started = Instant::now();
    while !log.exists() {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "training has not begun"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    let kill = std::process::Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status();
    assert!(kill.unwrap().success());
    let stopped = common::Ran::from(child.wait_with_output().unwrap());
    assert_eq!(stopped.code, 0, "{}", stopped.stderr);
    let json = stopped.json();
    assert_eq!(json["interrupted"], true);
    assert_eq!(skipped(&json), [false, false]);
    assert!(json["bpw"].is_null() && json["sample"] == "");
    assert!(
        stopped.stderr.contains("03-pretrain: stopped after step"),
        "{}",
        stopped.stderr
    );
    assert!(dir.path().join("runs/mini/03-pretrain.state").exists());

    // Another run is not gone on with, and the sentence says how to begin anew.
    let other = [
        "pretrain",
        "mini/03-pretrain.toml",
        "--set",
        "train.seed=99",
    ];
    let refused = exits(dir.path(), 1, &other);
    assert!(
        refused
            .stderr
            .contains("remove this folder to start over (so does --restart"),
        "{}",
        refused.stderr
    );
    let resumed = ok(dir.path(), &long);
    assert!(
        resumed.stderr.contains("going on after step"),
        "{}",
        resumed.stderr
    );
    let json = resumed.json();
    assert_eq!(json["interrupted"], false);
    assert_eq!(skipped(&json), [true, true, false, false, false, false]);
    let weights = |run: &str| {
        std::fs::read(dir.path().join(run).join("03-pretrain/model.safetensors")).unwrap()
    };
    assert!(
        weights("runs/mini") == weights("whole"),
        "the resumed weights differ"
    );
}

#[cfg(unix)]
#[test]
fn a_second_signal_ends_at_once_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    mini(dir.path());
    // Steps long enough that the second signal comes before the first is noticed.
    let slow = [
        "run",
        "mini",
        "--set",
        "pretrain.model.width=256",
        "--set",
        "palettize.palettize.target_bpw=3",
        "--set",
        "pretrain.train.batch_sequences=64",
        "--set",
        "pretrain.train.steps=1000",
    ];
    let mut child = russet(dir.path(), &slow)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = dir.path().join("runs/mini/03-pretrain.log");
    let started = Instant::now();
    while !log.exists() {
        assert!(
            child.try_wait().unwrap().is_none() && started.elapsed() < Duration::from_secs(60),
            "{:?}",
            common::Ran::from(child.wait_with_output().unwrap()).stderr
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    let (id, both) = (child.id(), "kill -INT $0; kill -TERM $0");
    let kill = std::process::Command::new("sh")
        .args(["-c", both, &id.to_string()])
        .status();
    assert!(kill.unwrap().success());
    let ended = common::Ran::from(child.wait_with_output().unwrap());
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(
        ended.stderr.contains("error: stopped at once"),
        "{}",
        ended.stderr
    );
}
