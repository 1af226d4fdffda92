//! What a run keeps besides its last weights, and runs that begin with an earlier one's.

mod common;
#[path = "common/running.rs"]
mod running;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use russet_artifact::{Artifact, Draft, Inputs, Interrupt, Kind, NoProgress, Stage, read_log};
use russet_kernels::Pool;
use russet_model::{Config, checkpoint};
use russet_tensor::Ctx;
use russet_tokenizer::{ShardWriter, TokenShard, TokenizerError, TrainConfig};
use russet_train::settings::{ModelSettings, Settings};
use russet_train::{Outcome, Plan, Resume, Sources, TrainError, Validation, pretrain};

use running::{corpus, finished, names, result, run, stop_at};

/// The mean loss of a checkpoint on what the toy recipe holds out, as training measures it.
fn validation_loss(dir: &Path, checkpoint: &str) -> f64 {
    let decoder = checkpoint::open(&dir.join(checkpoint)).unwrap();
    let shard = TokenShard::open(dir.join("tokens/validation.tokens.safetensors")).unwrap();
    let begin = decoder.config().bos.unwrap();
    let validation = Validation::new(shard, begin, Some(100), 32, 64).unwrap();
    let mut ctx = Ctx::new(Arc::new(Pool::new(1).unwrap()));
    validation
        .measure(&mut ctx, &decoder, &mut |_| true)
        .unwrap()
        .expect("it was not stopped")
        .nats_per_token
}

/// Validation losses by step, from the log.
fn logged(dir: &Path) -> Vec<(u64, f64)> {
    let log = read_log(&dir.join("03-pretrain.log")).unwrap();
    let loss = |event: &russet_artifact::LogEvent| {
        let loss = event.scalars.get("validation_loss")?;
        Some((event.step, *loss))
    };
    log.iter().filter_map(loss).collect()
}

#[test]
fn a_running_mean_is_what_is_measured_and_written() {
    let (_keep, dir) = corpus();
    let changes = ["train.ema=0.8", "train.validate_every=10"];
    let report = finished(run(&dir, &changes));
    let straight = result(&dir);
    let measured = validation_loss(&dir, "03-pretrain");
    assert_eq!(measured, report.validation_nats.unwrap());
    let card = fs::read_to_string(dir.join("03-pretrain/README.md")).unwrap();
    assert!(
        card.contains("running mean over steps, decay 0.8"),
        "{card}"
    );

    fs::remove_dir_all(dir.join("03-pretrain")).unwrap();
    stop_at(&dir, &changes, 8);
    assert!(
        dir.join("03-pretrain.state/rank-00000.safetensors")
            .exists()
    );
    stop_at(&dir, &changes, 21);
    finished(run(&dir, &changes));
    assert_eq!(result(&dir), straight, "it survives a stop");

    fs::remove_dir_all(dir.join("03-pretrain")).unwrap();
    let without = finished(run(&dir, &["train.validate_every=10"]));
    assert_ne!(result(&dir), straight);
    assert_eq!(
        without.last_loss, report.last_loss,
        "training itself is the same"
    );
}

#[test]
fn the_best_checkpoint_is_the_one_of_the_lowest_validation_loss() {
    let (_keep, dir) = corpus();
    // A rate that is much too high at its peak, so that the best does not come last.
    let changes = [
        "train.keep_best=true",
        "train.validate_every=3",
        "train.peak_lr=2.0",
        "optimizer.weight_decay=0",
        "schedule.kind=constant",
        "train.warmup_steps=28",
    ];
    let report = finished(run(&dir, &changes));
    let losses = logged(&dir);
    let (step, least) = losses
        .iter()
        .copied()
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .unwrap();
    assert_eq!(losses.len(), 10);
    assert!(step < 30, "the best is not the last: {losses:?}");
    assert_eq!(report.best_step, Some(step));
    assert_eq!(validation_loss(&dir, "03-pretrain.best"), least);
    let best = Artifact::open(&dir.join("03-pretrain.best"), Kind::Checkpoint).unwrap();
    best.verify().unwrap();
    assert_eq!(best.manifest().recipe["best_step"], step);
    // Stopped after the best: it is remembered.
    fs::remove_dir_all(dir.join("03-pretrain")).unwrap();
    stop_at(&dir, &changes, step + 1);
    let again = finished(run(&dir, &changes));
    assert_eq!(again.best_step, Some(step));
    assert_eq!(validation_loss(&dir, "03-pretrain.best"), least);
}

#[test]
fn as_many_states_are_kept_as_asked_and_an_older_one_can_be_gone_on_from() {
    let (_keep, dir) = corpus();
    let changes = ["train.keep_last=3", "train.checkpoint_every=5"];
    run(&dir, &changes).unwrap();
    let straight = result(&dir);
    assert_eq!(names(&dir), ["03-pretrain", "03-pretrain.log", "tokens"]);
    fs::remove_dir_all(dir.join("03-pretrain")).unwrap();

    stop_at(&dir, &changes, 23);
    let states = [
        "03-pretrain.log",
        "03-pretrain.state",
        "03-pretrain.state-000015",
        "03-pretrain.state-000020",
        "tokens",
    ];
    assert_eq!(names(&dir), states);
    fs::remove_dir_all(dir.join("03-pretrain.state")).unwrap();
    stop_at(&dir, &changes, 21);
    assert_eq!(names(&dir), states, "gone on from step 20, not from 15");
    finished(run(&dir, &changes));
    assert_eq!(result(&dir), straight);
    assert_eq!(names(&dir), ["03-pretrain", "03-pretrain.log", "tokens"]);
}

/// The recipe of a later stage: other data, longer sequences, a higher base of the rotary frequencies.
fn later(dir: &Path) -> Result<Plan, TrainError> {
    let mut settings: Settings = common::settings(&[
        "train.sequence_length=64",
        "train.peak_lr=1e-3",
        "train.steps=12",
        "data.mixture=[{split='train', weight=1}, {split='validation', weight=1}]",
        "data.packing=best-fit",
    ]);
    settings.model = ModelSettings {
        rope_theta: Some(6_315_089.0),
        ..ModelSettings::default()
    };
    let sources = Sources {
        tokens: dir.join("tokens"),
        checkpoint: Some(dir.join("03-pretrain")),
        package: None,
        mixture: vec![],
    };
    Plan::new(settings, sources)
}

#[test]
fn a_stage_begins_with_the_weights_of_another() {
    let (_keep, dir) = corpus();
    let core = finished(run(&dir, &[]));
    let go = |name: &str, plan: &Plan| {
        let out = dir.join(name);
        let (mut silent, interrupt) = (NoProgress, Interrupt::new());
        let tool = common::tool();
        pretrain(plan, &out, &tool, Resume::Continue, &mut silent, &interrupt)
    };
    let plan = later(&dir).unwrap();
    let report = finished(go("04-continued", &plan));
    assert!(
        report.first_loss < core.last_loss + 0.5 && core.first_loss > core.last_loss + 1.0,
        "{core:?} {report:?}"
    );
    let config = Config::open(&dir.join("04-continued")).unwrap();
    assert_eq!((config.rope_theta, config.context), (6_315_089.0, 64));
    let artifact = Artifact::open(&dir.join("04-continued"), Kind::Checkpoint).unwrap();
    let input = artifact.input("checkpoint").unwrap();
    assert_eq!(input.dir().file_name().unwrap(), "03-pretrain");
    let card = fs::read_to_string(dir.join("04-continued/README.md")).unwrap();
    assert!(card.contains("the input `checkpoint`"), "{card}");
    assert_eq!(go("04-continued", &plan).unwrap(), Outcome::Current);

    // Another core makes another stage of it.
    fs::remove_dir_all(dir.join("03-pretrain")).unwrap();
    run(&dir, &["train.seed=4"]).unwrap();
    let key = |plan: &Plan| plan.stage(&common::tool()).unwrap().key();
    assert_ne!(key(&later(&dir).unwrap()), key(&plan));
}

#[test]
fn a_checkpoint_of_another_tokenizer_or_none_is_refused() {
    let (_keep, dir) = corpus();
    let problem = later(&dir).unwrap_err().to_string();
    assert!(problem.contains("03-pretrain"), "{problem}");
    run(&dir, &[]).unwrap();

    let config = TrainConfig {
        vocab_size: 290,
        min_frequency: 2,
        alphabet_min_frequency: 2,
    };
    let texts = common::documents(50, 1);
    let given = texts.iter().cloned().map(Ok::<_, TokenizerError>);
    let other = russet_tokenizer::train(&config, given).unwrap();
    fs::remove_dir_all(dir.join("tokens")).unwrap();
    let draft = Draft::create(&dir.join("tokens"), Kind::Tokens).unwrap();
    other.save(draft.path()).unwrap();
    for split in ["train", "validation"] {
        let path = draft.path().join(format!("{split}.tokens.safetensors"));
        let mut writer = ShardWriter::create(path, &other).unwrap();
        for text in &texts {
            let ids = other.encode(text, false).unwrap();
            writer.push(&ids, text.len() as u64).unwrap();
        }
        writer.finish().unwrap();
    }
    let stage = Stage::new(
        "tokens",
        &common::tool(),
        serde_json::json!({}),
        Inputs::new(),
    );
    draft.commit(&stage).unwrap();
    let problem = later(&dir).unwrap_err().to_string();
    assert!(
        problem.contains("was not trained with the tokenizer"),
        "{problem}"
    );
}
