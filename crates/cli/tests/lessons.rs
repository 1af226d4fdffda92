//! Teachers, students and pruned models, from recipes.

mod common;

use std::path::Path;

use common::{exits, fields, mini, ok};
use serde_json::Value;

fn write(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join("mini").join(name), text).unwrap();
}

const STUDENT: &str = "[model]\nwidth = 24\nlayers = 1\nheads = 2\nkv_heads = 1\nffn = 32\ncontext = 128\n[train]\nsteps = 20\n\
                       batch_sequences = 4\nsequence_length = 64\npeak_lr = 1e-2\nz_loss = 1e-6\n";

/// `mini` up to its checkpoint, which is then the teacher.
fn taught(dir: &Path) {
    mini(dir);
    for name in ["04-palettize", "05-eval", "06-sample"] {
        std::fs::remove_file(dir.join(format!("mini/{name}.toml"))).unwrap();
    }
}

#[test]
fn a_teacher_is_asked_a_student_learns_and_a_model_is_pruned() {
    let keep = tempfile::tempdir().unwrap();
    let dir = keep.path();
    taught(dir);
    write(
        dir,
        "04-teacher.toml",
        "stage = \"teacher-logits\"\n[inputs]\nteacher = \"03-pretrain\"\ntokens = \"02-tokens\"\n[teacher_logits]\nk = 8\n\
         sequence_length = 64\n",
    );
    let inputs = "stage = \"pretrain\"\n[inputs]\ntokens = \"02-tokens\"\n";
    write(
        dir,
        "05-stored.toml",
        &format!("{inputs}teacher_logits = \"04-teacher\"\n[distill]\nkind = \"top_k\"\n{STUDENT}"),
    );
    write(
        dir,
        "06-beside.toml",
        &format!(
            "{inputs}teacher = \"03-pretrain\"\n[distill]\nkind = \"hard\"\nmix = 0.9\n{STUDENT}"
        ),
    );
    write(
        dir,
        "07-prune.toml",
        "stage = \"prune\"\n[inputs]\ncheckpoint = \"03-pretrain\"\ntokens = \"02-tokens\"\n[prune]\nffn = 24\nsteps = 10\n\
         batch_sequences = 4\nsequence_length = 64\nvalidation = \"heldout\"\n",
    );
    let plan = ok(dir, &["run", "mini", "--json", "--dry-run"]).json();
    // 300 · 32 of the table, 2 · (8 · 8 · 32 + 32 · 32 + 3 · 64 · 32 + 80) of the blocks, 32 of the last norm.
    let price = &plan["stages"][6]["plan"];
    assert_eq!(price["parameters_before"], 28_224);
    assert_eq!(price["parameters"], 28_224 - 2 * 3 * 40 * 32);
    let run = || {
        let json = ok(dir, &["run", "mini", "--json"]).json();
        let stages = json["stages"].as_array().unwrap().clone();
        stages
            .iter()
            .map(|stage| stage["skipped"].as_bool().unwrap())
            .collect::<Vec<bool>>()
    };
    assert_eq!(run(), [false; 7]);
    assert_eq!(run(), [true; 7]);

    let read = |path: &str| -> Value {
        serde_json::from_slice(&std::fs::read(dir.join("runs/mini").join(path)).unwrap()).unwrap()
    };
    let teacher = read("04-teacher/teacher-logits.json");
    fields(&teacher, &["tokens", "covered", "nats_per_token"]);
    assert_eq!(
        read("05-stored/manifest.json")["inputs"]["teacher_logits"]["kind"],
        "teacher-logits"
    );
    assert_eq!(
        read("06-beside/manifest.json")["inputs"]["teacher"]["kind"],
        "checkpoint"
    );
    assert_eq!(read("07-prune/config.json")["intermediate_size"], 24);
    let verb = ok(dir, &["prune", "mini/07-prune.toml", "--json"]).json();
    assert_eq!(
        (&verb["ffn_before"], &verb["ffn"]),
        (&64.into(), &24.into())
    );
    let text = ok(
        dir,
        &[
            "generate",
            "--model",
            "runs/mini/07-prune",
            "--prompt",
            "the fox",
            "--max-tokens",
            "4",
        ],
    );
    assert!(!text.stdout.trim().is_empty());

    let needle = ok(
        dir,
        &[
            "eval",
            "needle",
            "--model",
            "runs/mini/03-pretrain",
            "--text",
            "train.jsonl",
            "--lengths",
            "64,128",
            "--values",
            "4",
            "--trials",
            "3",
            "--json",
        ],
    )
    .json();
    fields(
        &needle,
        &[
            "values",
            "trials",
            "chance",
            "found",
            "accuracy_stderr",
            "lengths",
        ],
    );
    assert_eq!(needle["lengths"][1]["length"], 128);
    assert_eq!(needle["lengths"][1]["depths"].as_array().unwrap().len(), 5);
    fields(
        &needle["found"],
        &["accuracy", "mean_rank", "log_prob", "gain"],
    );
}

#[test]
fn what_does_not_go_together_is_refused_before_anything_runs() {
    let keep = tempfile::tempdir().unwrap();
    let dir = keep.path();
    taught(dir);
    for (inputs, distill, sentence) in [
        ("", "[distill]\nkind = \"hard\"\n", "but no teacher"),
        ("teacher = \"x\"\n", "", "there is no `[distill]`"),
        (
            "teacher = \"x\"\nteacher_logits = \"y\"\n",
            "",
            "keep one of them",
        ),
        (
            "teacher = \"x\"\n",
            "[distill]\nkind = \"top_k\"\n",
            "reads stored probabilities",
        ),
        (
            "teacher_logits = \"x\"\n",
            "[distill]\nkind = \"kl\"\n",
            "needs all probabilities",
        ),
    ] {
        let recipe = format!(
            "stage = \"pretrain\"\n[inputs]\ntokens = \"02-tokens\"\n{inputs}{distill}{STUDENT}"
        );
        write(dir, "04-student.toml", &recipe);
        let ran = exits(dir, 2, &["run", "mini"]);
        assert!(ran.stderr.contains(sentence), "{}", ran.stderr);
        assert!(!dir.join("runs").exists());
    }
}
