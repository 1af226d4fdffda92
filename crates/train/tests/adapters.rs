//! Adapters on frozen weights: what learns, what is left, and what is refused.

mod common;
#[path = "common/running.rs"]
mod running;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russet_artifact::{Artifact, Interrupt, Kind, NoProgress, Progress, read_log};
use russet_kernels::Pool;
use russet_model::{ParameterKind, adapter, checkpoint, package};
use russet_tensor::{Ctx, Gradients};
use russet_tokenizer::TokenShard;
use russet_train::{
    Batches, NextToken, Objective, Outcome, Plan, Resume, Settings, Sources, TeacherInput,
    TrainError, TrainReport, Validation, pretrain,
};

use running::{corpus, finished, names};

/// A folder with tokens, a checkpoint trained on them and a package of it.
fn packaged() -> (tempfile::TempDir, PathBuf) {
    let (keep, dir) = corpus();
    finished(running::run(&dir, &["train.steps=60"]));
    common::package(&dir.join("03-pretrain"));
    (keep, dir)
}

fn sources(dir: &Path) -> Sources {
    Sources {
        package: Some(dir.join("package")),
        ..Sources::from(&dir.join("tokens"))
    }
}

fn plan(dir: &Path, changes: &[&str]) -> Result<Plan, TrainError> {
    Plan::new(common::adapter_settings::<Settings>(changes), sources(dir))
}

fn train(
    plan: &Plan,
    dir: &Path,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<Outcome, TrainError> {
    let (out, tool) = (dir.join("adapter"), common::tool());
    pretrain(plan, &out, &tool, Resume::Continue, progress, interrupt)
}

fn adapted(dir: &Path, changes: &[&str]) -> TrainReport {
    let plan = plan(dir, changes).unwrap();
    finished(train(&plan, dir, &mut NoProgress, &Interrupt::new()))
}

fn result(dir: &Path) -> String {
    let artifact = Artifact::open(&dir.join("adapter"), Kind::Adapter).unwrap();
    artifact.verify().unwrap();
    artifact.manifest_hash().to_string()
}

/// What the recipe holds out, as training measures it.
fn validation_loss(dir: &Path, with: Option<&Path>) -> f64 {
    let mut decoder = package::load(&dir.join("package")).unwrap();
    if let Some(folder) = with {
        decoder = adapter::attach(decoder, folder, None).unwrap();
    }
    let shard = TokenShard::open(dir.join("tokens/validation.tokens.safetensors")).unwrap();
    let begin = decoder.config().bos.unwrap();
    let validation = Validation::new(shard, begin, Some(100), 32, 128).unwrap();
    let mut ctx = Ctx::new(Arc::new(Pool::new(1).unwrap()));
    let measured = validation.measure(&mut ctx, &decoder, &mut |_| true);
    measured.unwrap().unwrap().nats_per_token
}

#[test]
fn adapters_bring_back_what_a_crude_package_has_lost() {
    let (_keep, dir) = packaged();
    let before = fs::read(dir.join("package/model.safetensors")).unwrap();
    let report = adapted(&dir, &["train.validate_every=10"]);
    assert_eq!((report.steps, report.tokens), (20, 20 * 128));
    let bare = validation_loss(&dir, None);
    assert_eq!(report.validation_nats_before, Some(bare));
    let after = report.validation_nats.unwrap();
    assert!(after < bare - 0.1, "{bare} to {after}");
    assert_eq!(after, validation_loss(&dir, Some(&dir.join("adapter"))));
    assert_eq!(
        fs::read(dir.join("package/model.safetensors")).unwrap(),
        before,
        "the package is as it was"
    );

    let files = names(&dir.join("adapter"));
    let wanted = [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ];
    assert_eq!(files, wanted);
    let artifact = Artifact::open(&dir.join("adapter"), Kind::Adapter).unwrap();
    assert_eq!(artifact.manifest().stage, "recover");
    let base = artifact.input("package").unwrap().manifest_hash();
    let config = fs::read_to_string(dir.join("adapter/adapter_config.json")).unwrap();
    assert!(
        config.contains(&format!("\"russet_base\": \"{base}\"")),
        "{config}"
    );
    let other = "0".repeat(64);
    let problem = adapter::attach(
        package::load(&dir.join("package")).unwrap(),
        &dir.join("adapter"),
        Some(&other),
    );
    let problem = problem.err().unwrap().to_string();
    assert!(problem.contains("was trained on the base"), "{problem}");

    let log = read_log(&dir.join("adapter.log")).unwrap();
    let logged = log
        .iter()
        .filter(|event| event.scalars.contains_key("validation_loss"));
    assert_eq!(
        logged.map(|event| event.step).collect::<Vec<_>>(),
        [0, 10, 20]
    );
    assert!(!dir.join("adapter.state").exists());
    let plan = plan(&dir, &["train.log_every=3"]).unwrap();
    let again = train(&plan, &dir, &mut NoProgress, &Interrupt::new());
    assert_eq!(again.unwrap(), Outcome::Current);
}

#[test]
fn gradients_flow_to_the_adapters_and_to_nothing_else() {
    let (_keep, dir) = packaged();
    for base in ["package", "03-pretrain"] {
        let settings: Settings = common::adapter_settings(&[
            "adapter.projections=['q_proj','down_proj']",
            "adapter.layers=[1]",
        ]);
        let chosen = settings.adapter.unwrap().resolved().unwrap();
        let decoder = checkpoint::open(&dir.join(base)).unwrap();
        let parameters = chosen.parameters(decoder.config());
        let decoder = chosen.attach(decoder, 1);
        let all = decoder.parameters();
        let named: Vec<&str> = all.iter().map(|one| one.parts[0].0.as_str()).collect();
        assert_eq!(
            named,
            [
                "model.layers.1.self_attn.q_proj.lora_A.weight",
                "model.layers.1.self_attn.q_proj.lora_B.weight",
                "model.layers.1.mlp.down_proj.lora_A.weight",
                "model.layers.1.mlp.down_proj.lora_B.weight",
            ],
            "{base}"
        );
        let numbers: usize = all.iter().map(|one| one.tensor.len()).sum();
        assert_eq!(numbers, parameters);
        let mut ctx = Ctx::new(Arc::new(Pool::new(2).unwrap()));
        let batch = plan(&dir, &[])
            .unwrap()
            .open_train()
            .unwrap()
            .next()
            .unwrap();
        let mut gradients = Gradients::default();
        ctx.start_tape(all.iter().map(|one| one.tensor.id()));
        let loss = NextToken.loss(&decoder, &mut ctx, &batch[0]).loss;
        ctx.backward(&loss, 1.0, &mut gradients);
        for one in &all {
            assert!(matches!(one.kind, ParameterKind::Adapter { scale: 1.0 }));
            let gradient = gradients.get(one.tensor).unwrap();
            // B is zero, so nothing flows to A yet.
            let moves = gradient.data().iter().any(|&x| x != 0.0);
            assert_eq!(
                moves,
                one.parts[0].0.contains("lora_B"),
                "{}",
                one.parts[0].0
            );
        }
    }
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

#[test]
fn a_stopped_run_goes_on_to_the_same_bytes() {
    let (_keep, dir) = packaged();
    let changes = [
        "train.ema=0.8",
        "train.validate_every=5",
        "train.keep_best=true",
    ];
    let straight = adapted(&dir, &changes);
    let bytes = result(&dir);
    let best = Artifact::open(&dir.join("adapter.best"), Kind::Adapter).unwrap();
    let best = best.manifest_hash();
    fs::remove_dir_all(dir.join("adapter")).unwrap();
    fs::remove_dir_all(dir.join("adapter.best")).unwrap();
    // At 0 it is still measured for the first time, at 20 for the last.
    for step in [0, 3, 4, 11, 20] {
        let plan = plan(&dir, &changes).unwrap();
        let interrupt = Interrupt::new();
        let mut progress = StopAt(step, interrupt.clone());
        let outcome = train(&plan, &dir, &mut progress, &interrupt).unwrap();
        assert_eq!(outcome, Outcome::Interrupted { step });
    }
    let resumed = adapted(&dir, &changes);
    assert_eq!(result(&dir), bytes);
    let again = Artifact::open(&dir.join("adapter.best"), Kind::Adapter).unwrap();
    assert_eq!(again.manifest_hash(), best);
    assert_eq!(
        resumed.validation_nats_before,
        straight.validation_nats_before
    );
    assert_eq!(resumed.last_loss, straight.last_loss);
}

#[test]
fn threads_and_recomputation_do_not_change_a_byte() {
    let (_keep, dir) = packaged();
    let mut results = Vec::new();
    for change in [
        "compute.threads=1",
        "compute.threads=2",
        "compute.recompute=block",
    ] {
        adapted(&dir, &[change]);
        results.push(result(&dir));
        fs::remove_dir_all(dir.join("adapter")).unwrap();
    }
    assert!(results.iter().all(|one| *one == results[0]), "{results:?}");
}

#[test]
fn the_type_of_the_file_is_what_was_asked_for() {
    let (_keep, dir) = packaged();
    let mut sizes = Vec::new();
    for dtype in ["f32", "f16", "bf16"] {
        let report = adapted(&dir, &[&format!("adapter.dtype={dtype}")]);
        let measured = validation_loss(&dir, Some(&dir.join("adapter")));
        assert_eq!(report.validation_nats, Some(measured), "{dtype}");
        let file = dir.join("adapter/adapter_model.safetensors");
        sizes.push(fs::metadata(file).unwrap().len());
        fs::remove_dir_all(dir.join("adapter")).unwrap();
    }
    // The names of types in the header are of unlike length.
    assert!(
        sizes[0] > sizes[1] * 3 / 2 && sizes[1].abs_diff(sizes[2]) < 100,
        "{sizes:?}"
    );
}

#[test]
fn a_teacher_draws_the_package_back_to_what_it_was() {
    let (_keep, dir) = packaged();
    let changes = ["distill.kind=kl", "distill.mix=1.0"];
    let taught = plan(&dir, &changes).unwrap();
    let taught = taught.taught_by(TeacherInput::Checkpoint(dir.join("03-pretrain")));
    let report = train(&taught.unwrap(), &dir, &mut NoProgress, &Interrupt::new());
    let report = finished(report);
    // The whole loss is the divergence from the teacher, which the package begins with and the adapters take away.
    assert!(
        report.last_loss < 0.7 * report.first_loss && report.last_loss > 0.0,
        "{} to {}",
        report.first_loss,
        report.last_loss
    );
}

#[test]
fn what_cannot_be_is_refused_with_a_sentence() {
    let (_keep, dir) = packaged();
    let refused = |changes: &[&str], sources: Sources, words: &str| {
        let settings = common::adapter_settings::<Settings>(changes);
        let problem = match Plan::new(settings, sources) {
            Err(problem) => problem.to_string(),
            Ok(_) => panic!("{words}: it was taken"),
        };
        assert!(problem.contains(words), "{problem}");
    };
    let dense = Sources {
        package: Some(dir.join("03-pretrain")),
        ..sources(&dir)
    };
    refused(&[], dense, "03-pretrain: is no package");
    let both = Sources {
        checkpoint: Some(dir.join("03-pretrain")),
        ..sources(&dir)
    };
    refused(&[], both, "are both there");
    let nothing = Sources::from(&dir.join("tokens"));
    refused(
        &[],
        nothing,
        "`adapter` is there, but nothing to be adapted",
    );
    refused(
        &["adapter.rank=33"],
        sources(&dir),
        "`adapter.rank` is 33, but `model.layers.0.self_attn.q_proj` is a matrix of 32 rows and 32 columns",
    );
    // k and v have 16 rows.
    refused(&["adapter.rank=17"], sources(&dir), "self_attn.k_proj");
    refused(&["adapter.rank=0"], sources(&dir), "`adapter.rank` is 0");
    refused(
        &["adapter.layers=[2]"],
        sources(&dir),
        "names layer 2, but the base has 2",
    );
    refused(
        &["adapter.projections=[]"],
        sources(&dir),
        "is an empty list",
    );
    refused(
        &["train.sequence_length=64", "train.batch_sequences=2"],
        sources(&dir),
        "the base was made for 32 tokens",
    );
    let other = dir.join("other");
    fs::create_dir(&other).unwrap();
    let other = common::tokens_of(&other, &common::tokenizer_of(290));
    let foreign = Sources {
        package: Some(dir.join("package")),
        ..Sources::from(&other)
    };
    refused(&[], foreign, "was not trained with the tokenizer");
    let mesh = plan(&dir, &["parallel.data=2"]).unwrap();
    let problem = train(&mesh, &dir, &mut NoProgress, &Interrupt::new());
    let problem = problem.unwrap_err().to_string();
    assert!(problem.contains("adapters are trained on one"), "{problem}");

    let settings: Settings = common::settings(&["model={}"]);
    let as_checkpoint = Sources {
        checkpoint: Some(dir.join("package")),
        ..Sources::from(&dir.join("tokens"))
    };
    let problem = Plan::new(settings, as_checkpoint).unwrap_err().to_string();
    assert!(
        problem.contains("package, whose weights are frozen"),
        "{problem}"
    );
}
