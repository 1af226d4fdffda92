//! Stages of training that begin with one another's checkpoints.

mod common;

use std::path::Path;

use common::{exits, mini, ok};
use serde_json::Value;

const CORE: &str = "stage = \"pretrain\"\n[inputs]\ntokens = \"02-tokens\"\n[model]\nwidth = 32\nlayers = 2\nheads = 4\n\
                    kv_heads = 2\nffn = 64\n[train]\nsteps = 40\nbatch_sequences = 4\nsequence_length = 32\n\
                    peak_lr = 1e-2\nkeep_best = true\nvalidate_every = 20\n[optimizer]\nkind = \"adastar\"\n\
                    [data]\nvalidation = \"heldout\"\n";

/// Goes on with core's weights on a mixture, with windows four times as long.
const LONGER: &str = "stage = \"pretrain\"\n[inputs]\ntokens = \"02-tokens\"\ncheckpoint = \"03-core\"\n[model]\n\
                      rope_theta = 6_315_089\n[train]\nsteps = 10\nbatch_sequences = 2\nsequence_length = 128\n\
                      peak_lr = 1e-3\n[schedule]\nkind = \"wsd\"\n[data]\npacking = \"best-fit\"\n\
                      validation = \"heldout\"\n[[data.mixture]]\nsplit = \"train\"\nweight = 3\n[[data.mixture]]\n\
                      split = \"heldout\"\ntokens = \"02-tokens\"\nweight = 1\n";

/// `mini` with two stages of training and an evaluation.
fn chain(dir: &Path) {
    mini(dir);
    let recipes = dir.join("mini");
    for old in ["03-pretrain", "04-palettize", "05-eval", "06-sample"] {
        std::fs::remove_file(recipes.join(format!("{old}.toml"))).unwrap();
    }
    std::fs::write(recipes.join("03-core.toml"), CORE).unwrap();
    std::fs::write(recipes.join("04-longer.toml"), LONGER).unwrap();
    let palettize = "stage = \"palettize\"\n[inputs]\ncheckpoint = \"04-longer\"\n[data]\n\
                     calibration = [\"train.jsonl\"]\n[palettize]\ncalibration_tokens = 2000\ntarget_bpw = 4.5\n";
    std::fs::write(recipes.join("05-palettize.toml"), palettize).unwrap();
}

#[test]
fn a_stage_goes_on_with_the_weights_of_the_one_before() {
    let keep = tempfile::tempdir().unwrap();
    let dir = keep.path();
    chain(dir);
    // Before anything has run, the shape is what the recipe before makes.
    let plans = ok(dir, &["run", "mini", "--dry-run", "--json"]).json();
    let stage = |number: usize| &plans["stages"][number];
    assert_eq!(stage(3)["plan"]["parameters"], 28_224);
    assert_eq!(stage(3)["settings"]["model"]["context"], 128);
    assert_eq!(stage(3)["settings"]["inputs"]["checkpoint"], "03-core");
    assert!(stage(4)["plan"]["weights"].as_u64() > Some(0));
    assert!(!dir.join("runs").exists());

    let run = || -> Vec<bool> {
        let json = ok(dir, &["run", "mini", "--json"]).json();
        let stages = json["stages"].as_array().unwrap().iter();
        stages
            .map(|stage| stage["skipped"].as_bool().unwrap())
            .collect()
    };
    assert_eq!(run(), [false; 5]);
    assert_eq!(run(), [true; 5]);
    let read = |path: &str| -> Value {
        let bytes = std::fs::read(dir.join("runs/mini").join(path)).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    };
    let (core, longer) = (read("03-core/config.json"), read("04-longer/config.json"));
    assert_eq!(core["max_position_embeddings"], 32);
    assert_eq!(longer["max_position_embeddings"], 128);
    assert_eq!(longer["hidden_size"], core["hidden_size"]);
    let inputs = &read("04-longer/manifest.json")["inputs"];
    assert_eq!(inputs["checkpoint"]["kind"], "checkpoint");
    assert_eq!(inputs["mixture-1"]["kind"], "tokens");
    assert!(dir.join("runs/mini/03-core.best/manifest.json").is_file());

    // What is there now says the same, with the sources by name.
    let plan = ok(dir, &["run", "mini", "--dry-run", "--json"]).json()["stages"][3]["plan"].clone();
    assert_eq!(plan["parameters"], 28_224);
    assert_eq!(plan["sources"][0]["share"], 0.75);
    assert_eq!(plan["basis"], "the tokens that are there");
    // A core of another shape: what lies there of the run before is no basis.
    let wider = ["--set", "03-core.model.ffn=96", "--dry-run", "--json"];
    let plans = ok(dir, &[&["run", "mini"][..], &wider].concat()).json();
    assert_eq!(
        plans["stages"][3]["plan"]["parameters"],
        28_224 + 2 * 3 * 32 * 32
    );

    // The second begins where the first ended, not at random.
    let restart = ["pretrain", "mini/04-longer.toml", "--restart", "--json"];
    let report = ok(dir, &restart).json();
    assert_eq!(report["skipped"], false);
    assert!(
        report["first_loss"].as_f64() < Some(4.0),
        "ln 300 is 5.7: {report}"
    );
    // A changed first stage runs the second again.
    let changed = ["run", "mini", "--json", "--set", "03-core.train.seed=7"];
    let json = ok(dir, &changed).json();
    let ran: Vec<&Value> = json["stages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|stage| &stage["skipped"])
        .collect();
    assert_eq!(ran, [true, true, false, false, false]);
}

#[test]
fn a_stage_without_its_checkpoint_says_so() {
    let keep = tempfile::tempdir().unwrap();
    let dir = keep.path();
    chain(dir);
    let set = ["--set", "04-longer.inputs.checkpoint=nowhere"];
    let ran = exits(dir, 2, &[&["run", "mini"][..], &set].concat());
    assert!(
        ran.stderr.contains("`inputs.checkpoint` is nowhere"),
        "{}",
        ran.stderr
    );
    // Without the recipes before it, what it begins with cannot be known.
    std::fs::create_dir(dir.join("alone")).unwrap();
    std::fs::copy(
        dir.join("mini/04-longer.toml"),
        dir.join("alone/04-longer.toml"),
    )
    .unwrap();
    let alone = ["pretrain", "alone/04-longer.toml", "--dry-run", "--json"];
    let plans = ok(dir, &alone).json();
    let reason = plans["stages"][0]["plan"]["reason"].as_str();
    let reason = reason.unwrap_or_else(|| panic!("{plans}"));
    assert!(reason.contains("is not there yet"), "{reason}");
    let set = ["--set", "04-longer.model.ffn=64"];
    let ran = exits(dir, 2, &[&["run", "mini"][..], &set].concat());
    assert!(
        ran.stderr
            .contains("`model.ffn` stands beside `inputs.checkpoint`"),
        "{}",
        ran.stderr
    );
    assert!(!dir.join("runs").exists());
}

#[test]
fn a_stage_may_begin_with_the_best_of_the_one_before() {
    let keep = tempfile::tempdir().unwrap();
    let dir = keep.path();
    chain(dir);
    std::fs::remove_file(dir.join("mini/05-palettize.toml")).unwrap();
    let best = "04-longer.inputs.checkpoint=03-core.best";
    let run = ["run", "mini", "--json", "--set", best];
    let plan = ok(dir, &[&run[..], &["--dry-run"]].concat()).json();
    assert_eq!(plan["stages"][3]["plan"]["parameters"], 28_224);
    ok(dir, &run);
    let bytes = std::fs::read(dir.join("runs/mini/04-longer/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(manifest["inputs"]["checkpoint"]["path"], "../03-core.best");

    let none = [
        "--out",
        "runs/other",
        "--set",
        "03-core.train.keep_best=false",
    ];
    let ran = exits(dir, 2, &[&run[..], &none].concat());
    assert!(
        ran.stderr.contains("where `train.keep_best` is set"),
        "{}",
        ran.stderr
    );
}
