//! An adapter that brings back what palettizing lost, from a recipe to its use.

mod common;

use std::path::Path;

use common::{exits, fields, mini, ok};
use serde_json::Value;

/// `mini` up to a package of few bits, and its recovery.
fn recovered(dir: &Path) {
    mini(dir);
    for name in ["05-eval", "06-sample"] {
        std::fs::remove_file(dir.join(format!("mini/{name}.toml"))).unwrap();
    }
    let recipe = "stage = \"recover\"\n[inputs]\ntokens = \"02-tokens\"\npackage = \"04-palettize\"\nteacher = \"03-pretrain\"\n\
                  [adapter]\nrank = 4\n[recover]\nfit_tokens = 2000\n[train]\nsteps = 20\nbatch_sequences = 4\n\
                  sequence_length = 64\npeak_lr = 2e-3\n[data]\nvalidation = \"heldout\"\n";
    std::fs::write(dir.join("mini/05-recover.toml"), recipe).unwrap();
}

const FEW_BITS: &str = "04-palettize.palettize.target_bpw=3.2";

#[test]
fn a_recovery_adapter_is_made_and_serves_on_its_package_alone() {
    let keep = tempfile::tempdir().unwrap();
    let dir = keep.path();
    recovered(dir);
    let plan = ok(
        dir,
        &["run", "mini", "--json", "--dry-run", "--set", FEW_BITS],
    )
    .json();
    let price = &plan["stages"][4]["plan"];
    // Of each of two layers: q and o 64 rows and columns, k and v 48, gate, up and down 96.
    let numbers = 2 * 4 * (2 * 64 + 2 * 48 + 3 * 96);
    assert_eq!(price["adapter_parameters"], numbers);
    assert_eq!(price["adapter_bytes"], 2 * numbers);
    let settings = &plan["stages"][4]["settings"];
    assert_eq!(settings["recover"]["start"], "fit");
    assert_eq!(settings["distill"]["kind"], "kl");

    let run = || -> Vec<bool> {
        let json = ok(dir, &["run", "mini", "--json", "--set", FEW_BITS]).json();
        let stages = json["stages"].as_array().unwrap().clone();
        let skipped = |stage: &Value| stage["skipped"].as_bool().unwrap();
        stages.iter().map(skipped).collect()
    };
    assert_eq!(run(), [false; 5]);
    assert_eq!(run(), [true; 5]);
    let said = ok(dir, &["run", "mini", "--set", FEW_BITS]).stdout;
    let next =
        "russet generate --model runs/mini/04-palettize --adapter runs/mini/05-recover --prompt";
    assert!(said.contains(next), "{said}");

    let place = "runs/mini/05-recover";
    let report = std::fs::read(dir.join(place).join("recover.json")).unwrap();
    let report: Value = serde_json::from_slice(&report).unwrap();
    let names = [
        "rank",
        "start",
        "steps",
        "tokens",
        "parameters",
        "adapter_bytes",
        "loss_before",
        "loss_start",
        "loss_after",
        "bits_per_byte_before",
        "bits_per_byte_start",
        "bits_per_byte_after",
    ];
    fields(&report, &names);
    let number = |name: &str| report[name].as_f64().unwrap();
    assert!(number("loss_after") < number("loss_before"), "{report}");
    assert_eq!(number("tokens"), 20.0 * 4.0 * 64.0);
    // The verb has the same facts, also where there is nothing to do.
    let recipe = ["recover", "mini/05-recover.toml", "--out", place, "--json"];
    let again = ok(dir, &recipe).json();
    assert_eq!(
        (&again["skipped"], &again["loss_after"]),
        (&true.into(), &report["loss_after"])
    );

    let (package, dense) = ("runs/mini/04-palettize", "runs/mini/03-pretrain");
    let perplexity = |more: &[&str]| {
        let all = [
            &[
                "eval",
                "perplexity",
                "--model",
                package,
                "--text",
                "heldout.jsonl",
                "--json",
            ],
            more,
        ];
        ok(dir, &all.concat()).json()["bits_per_byte"]
            .as_f64()
            .unwrap()
    };
    let (bare, with) = (perplexity(&[]), perplexity(&["--adapter", place]));
    assert!(with < bare, "{bare} to {with}");
    let generate = |model, code| {
        let asked = [
            "generate",
            "--model",
            model,
            "--adapter",
            place,
            "--prompt",
            "the fox",
        ];
        let more = ["--max-tokens", "4", "--json"];
        exits(dir, code, &[&asked[..], &more].concat())
    };
    generate(package, 0);
    let bench = |model, code| {
        let asked = ["bench", "--model", model, "--adapter", place, "--json"];
        let small = ["-p", "8", "-n", "4", "-r", "2"];
        exits(dir, code, &[&asked[..], &small].concat())
    };
    let measured = bench(package, 0).json();
    let through = &measured["adapter"];
    for field in ["pp8", "tg4", "prefill_share", "decode_share"] {
        assert!(through[field].as_f64() > Some(0.0), "{field} of {through}");
    }
    // Matrices are f16 in memory, whatever the file holds.
    let more = through["bytes_per_token"].as_u64().unwrap()
        - measured["bytes_per_token"].as_u64().unwrap();
    assert!(more >= report["adapter_bytes"].as_u64().unwrap());
    for tests in [&measured["tests"], &through["tests"]] {
        assert_eq!(
            (&tests[0]["n_prompt"], &tests[1]["n_gen"]),
            (&8.into(), &4.into())
        );
        assert_eq!(tests[1]["samples_ts"].as_array().map(Vec::len), Some(2));
    }
    assert!(bench(dense, 1).stderr.contains("was trained on the base"));
    let refused = generate(dense, 1).stderr;
    assert!(refused.contains("was trained on the base"), "{refused}");
    let named = format!("a={place}");
    let serve = [
        "serve",
        "--model",
        dense,
        "--adapter",
        &named,
        "--port",
        "0",
    ];
    let refused = exits(dir, 1, &serve).stderr;
    assert!(refused.contains("was trained on the base"), "{refused}");
}

#[test]
fn what_cannot_be_recovered_is_refused_with_a_sentence() {
    let keep = tempfile::tempdir().unwrap();
    let dir = keep.path();
    recovered(dir);
    std::fs::rename(dir.join("mini/05-recover.toml"), dir.join("lost.toml")).unwrap();
    ok(dir, &["run", "mini", "--json"]);
    let refused = |code: i32, set: &str, words: &str| {
        let run = ["recover", "lost.toml", "--out", "runs/mini/x", "--set", set];
        let said = exits(dir, code, &run).stderr;
        assert!(said.contains(words), "{said}");
    };
    refused(1, "inputs.package=03-pretrain", "is no package");
    refused(2, "adapter.rank=17", "`adapter.rank` is 17, but");
    refused(2, "adapter.dropout=0.1", "dropout");
    refused(2, "parallel.data=2", "adapters are trained on one");
    refused(2, "recover.fit_tokens=0", "`recover.fit_tokens` is 0");
    refused(2, "distill.kind=top_k", "reads stored probabilities");
    refused(
        1,
        "inputs.teacher=04-palettize",
        "a checkpoint is wanted here",
    );
    // The same weights, once made into a package and back: another checkpoint.
    let convert = "convert --from hf --to hf --in runs/mini/04-palettize --out runs/mini/other";
    ok(dir, &convert.split(' ').collect::<Vec<_>>());
    refused(2, "inputs.teacher=other", "was made of another checkpoint");
}

#[test]
fn palettes_learn_by_their_own_verb_and_the_package_that_comes_of_it_serves() {
    let keep = tempfile::tempdir().unwrap();
    let dir = keep.path();
    recovered(dir);
    let lost = dir.join("mini/05-recover.toml");
    let recipe = std::fs::read_to_string(&lost).unwrap();
    let tables = "[adapter]\nrank = 4\n[recover]\nfit_tokens = 2000\n";
    let recipe = recipe.replace(tables, "[qat]\nmethod = \"straight-through\"\n");
    std::fs::write(&lost, recipe.replace("\"recover\"", "\"qat\"")).unwrap();
    std::fs::rename(&lost, dir.join("mini/05-qat.toml")).unwrap();
    let run = ["run", "mini", "--json", "--set", FEW_BITS];
    let plan = ok(dir, &[&run[..], &["--dry-run"]].concat()).json();
    assert_eq!(
        plan["stages"][4]["settings"]["qat"]["method"],
        "straight-through"
    );
    ok(dir, &run);
    let place = "runs/mini/05-qat";
    let verb = ["qat", "mini/05-qat.toml", "--out", place, "--json"];
    let report = ok(dir, &verb).json();
    assert_eq!(report["skipped"], true);
    let number = |name: &str| report[name].as_f64().unwrap();
    assert!(number("loss_after") < number("loss_before"), "{report}");
    assert!(number("moved") > 0.0, "{report}");
    let generate = [
        "generate",
        "--model",
        place,
        "--prompt",
        "the fox",
        "--max-tokens",
        "4",
    ];
    ok(dir, &generate);

    let refused = |verb: &str, set: &str, words: &str| {
        let run = [
            verb,
            "mini/05-qat.toml",
            "--out",
            "runs/mini/x",
            "--set",
            set,
        ];
        let said = exits(dir, 2, &run).stderr;
        assert!(said.contains(words), "{said}");
    };
    refused("qat", "adapter.rank=4", "`[adapter]` is there, but");
    refused("qat", "recover.fit_tokens=9", "`[recover]` is there, but");
    refused("qat", "parallel.data=2", "palettes are trained on one");
    refused("qat", "qat.temperature=0.5", "leave it out");
    refused(
        "qat",
        "compute.recompute=\"block\"",
        "`compute.recompute` is",
    );
    refused("qat", "compute.dtype=\"bf16\"", "`compute.dtype` is");
    refused("recover", "qat.method=\"dkm\"", "stage");
}
