//! Any mesh trains the same model: the losses of one rank within 1e-5, the same bits on the same mesh.

mod common;
#[path = "common/running.rs"]
mod running;

use std::path::{Path, PathBuf};

use russet_artifact::{Interrupt, NoProgress, Progress};
use russet_tensor::mesh::AXES;
use russet_train::settings::{ModelSettings, Settings};
use russet_train::{Plan, RankPlan, Resume, Sources, TrainError, pretrain};

use running::{finished, result, run, run_anew, stop_at};

/// Eight heads of each kind, so that eight ranks can share them out; and no saves, which have tests of their own.
const SMALL: &[&str] = &[
    "model.width=64",
    "model.heads=8",
    "model.kv_heads=8",
    "model.ffn=128",
    "train.batch_sequences=8",
    "train.micro_batch_sequences=8",
    "train.sequence_length=16",
    "train.steps=20",
    "train.peak_lr=3e-3",
    "train.checkpoint_every=0",
];

/// A folder with tokens of a vocabulary that eight ranks can share out.
fn corpus() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    common::tokens_of(dir.path(), &common::tokenizer_of(304));
    let path = dir.path().to_owned();
    (dir, path)
}

/// The small recipe on a mesh of so many ranks along data, fsdp, sequence and tensor, with further changes.
fn on(mesh: [usize; 4], changes: &[&str]) -> Vec<String> {
    let axes = AXES.iter().map(|axis| axis.name()).zip(mesh);
    let small = SMALL
        .iter()
        .chain(changes)
        .map(|change| (*change).to_owned());
    let mesh = axes.map(|(axis, size)| format!("parallel.{axis}={size}"));
    small.chain(mesh).collect()
}

fn strs(changes: &[String]) -> Vec<&str> {
    changes.iter().map(String::as_str).collect()
}

fn assert_close(found: &[f32], wanted: &[f32], what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    for (step, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        assert!(
            (found - wanted).abs() <= 1e-5 * wanted.abs(),
            "{what}, step {}: {found}, on one rank {wanted}",
            step + 1
        );
    }
}

/// The losses of one rank and of each mesh.
fn check(dir: &Path, changes: &[&str], meshes: &[[usize; 4]]) {
    let one = run_anew(dir, &strs(&on([1, 1, 1, 1], changes)));
    assert!(one.last_loss < one.first_loss - 0.3, "{one:?}");
    assert_eq!((one.ranks, &one.bytes_moved_per_step[..]), (1, &[0][..]));
    for mesh in meshes {
        let many = run_anew(dir, &strs(&on(*mesh, changes)));
        let what = format!("{mesh:?} {changes:?}");
        assert_close(&many.losses, &one.losses, &what);
        assert_eq!(many.ranks, mesh.iter().product::<usize>());
        assert_eq!((many.tokens, many.steps), (one.tokens, one.steps), "{what}");
        assert!(many.bytes_moved_per_step.iter().all(|&bytes| bytes > 0));
        let (a, b) = (one.validation_nats.unwrap(), many.validation_nats.unwrap());
        assert!((a - b).abs() <= 2e-5 * a, "{what}: {b}, on one rank {a}");
        // What is left is a whole checkpoint, whoever had what.
        russet_model::checkpoint::load(&dir.join("03-pretrain")).unwrap();
    }
}

/// Every mesh of so many ranks.
fn meshes(ranks: usize) -> Vec<[usize; 4]> {
    let mut all = vec![vec![]];
    for axis in 0..AXES.len() {
        let longer = |sizes: Vec<usize>| {
            let rest = ranks / sizes.iter().product::<usize>();
            let last = axis + 1 == AXES.len();
            let fits = move |size: &usize| rest.is_multiple_of(*size) && (!last || *size == rest);
            let with = move |size| [&sizes[..], &[size]].concat();
            (1..=rest).filter(fits).map(with).collect::<Vec<_>>()
        };
        all = all.into_iter().flat_map(longer).collect();
    }
    let whole = |sizes: Vec<usize>| sizes.try_into().expect("four axes");
    all.into_iter().map(whole).collect()
}

#[test]
fn two_and_four_ranks_train_as_one_does() {
    let (_keep, dir) = corpus();
    let meshes = [meshes(2), meshes(4)].concat();
    assert_eq!(meshes.len(), 4 + 10);
    check(&dir, &[], &meshes);
}

#[test]
fn eight_ranks_train_as_one_does() {
    let (_keep, dir) = corpus();
    let meshes = meshes(8);
    assert_eq!(meshes.len(), 20);
    check(&dir, &[], &meshes);
}

/// What the formulas say of each rank.
fn planned(dir: &Path, changes: &[String]) -> Vec<RankPlan> {
    let plan = Plan::new(common::settings(&strs(changes)), &dir.join("tokens")).unwrap();
    let rank = |rank| RankPlan::new(plan.config(), plan.settings(), rank);
    (0..plan.mesh().ranks()).map(rank).collect()
}

#[test]
fn bytes_sent_are_those_of_the_plan_and_memory_is_within_a_tenth() {
    let (_keep, dir) = corpus();
    let (mut wrong, mut ratios) = (Vec::new(), Vec::new());
    let big = [
        "model.layers=4",
        "train.steps=2",
        "train.warmup_steps=1",
        "train.sequence_length=64",
    ];
    let sharing = ["model.num_kv_shared_layers=2", "model.sliding_window=20"];
    for (mesh, changes) in [
        ([2, 1, 1, 1], &[][..]),
        ([1, 2, 1, 1], &["compute.recompute=block"][..]),
        ([1, 1, 1, 2], &["train.micro_batch_sequences=4"][..]),
        ([1, 4, 1, 1], &["model.tied=false"][..]),
        ([1, 1, 1, 4], &["compute.recompute=block"][..]),
        ([2, 2, 1, 1], &["train.micro_batch_sequences=1"][..]),
        (
            [1, 2, 1, 2],
            &["optimizer.kind=adastar", "train.ema=0.5"][..],
        ),
        ([2, 1, 1, 2], &["optimizer.kind=adastar"][..]),
        (
            [2, 2, 1, 2],
            &["data.validation='validation'", "train.checkpoint_every=1"][..],
        ),
        ([1, 1, 2, 1], &[][..]),
        ([1, 1, 4, 1], &["compute.recompute=block"][..]),
        ([1, 1, 3, 2], &["train.micro_batch_sequences=1"][..]),
        (
            [1, 2, 2, 1],
            &["model.kv_heads=2", "compute.recompute=block"][..],
        ),
        (
            [2, 1, 2, 2],
            &["optimizer.kind=adastar", "train.ema=0.5"][..],
        ),
        ([1, 2, 1, 2], &sharing[..]),
        ([1, 1, 2, 1], &sharing[..]),
        (
            [1, 1, 2, 2],
            &[&sharing[..], &["compute.recompute=block"]].concat(),
        ),
    ] {
        let changes = on(mesh, &[&big[..], changes].concat());
        let plans = planned(&dir, &changes);
        let report = run_anew(&dir, &strs(&changes));
        let moved: Vec<u64> = plans.iter().map(|plan| plan.moved.total()).collect();
        if report.bytes_moved_per_step != moved {
            let found = &report.bytes_moved_per_step;
            wrong.push(format!("{changes:?} sent {found:?}, planned {plans:?}"));
        }
        for (rank, (plan, found)) in plans.iter().zip(&report.peak_bytes_per_rank).enumerate() {
            let ratio = *found as f64 / plan.peak as f64;
            ratios.push((mesh, rank, (1000.0 * ratio).round() / 1000.0));
            if !(0.9..1.1).contains(&ratio) {
                wrong.push(format!("{changes:?}, rank {rank}: {ratio} of {plan:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}\n{ratios:?}", wrong.join("\n"));
}

#[test]
fn memory_falls_as_ranks_are_added() {
    let (_keep, dir) = corpus();
    let peak = |mesh| {
        let report = run_anew(
            &dir,
            &strs(&on(mesh, &["train.steps=1", "train.warmup_steps=1"])),
        );
        *report.peak_bytes_per_rank.iter().max().unwrap() as f64
    };
    let one = peak([1, 1, 1, 1]);
    let (data, fsdp, tensor) = (peak([4, 1, 1, 1]), peak([1, 4, 1, 1]), peak([1, 1, 1, 4]));
    let both = peak([1, 4, 1, 2]);
    let long = |mesh| {
        let length = ["train.sequence_length=512", "train.batch_sequences=1"];
        let changes = [
            "train.steps=1",
            "train.warmup_steps=1",
            "train.micro_batch_sequences=1",
        ];
        let report = run_anew(&dir, &strs(&on(mesh, &[&length[..], &changes].concat())));
        *report.peak_bytes_per_rank.iter().max().unwrap() as f64
    };
    let weights = 16.0 * 64.0 * 1024.0; // gradients and moments too, about, which stay whole
    let (one_long, sequence) = (long([1, 1, 1, 1]), long([1, 1, 4, 1]));
    assert!(
        sequence - weights < 0.5 * (one_long - weights),
        "{sequence} of {one_long}"
    );
    // Weights, moments and gradients are most of it. Along data they stay whole, along fsdp a fourth is left and the table
    // and three blocks that come together, along tensor a fourth and the rows that do.
    assert!(data > 0.5 * one && data < one, "{data} of {one}");
    assert!(
        fsdp < 0.6 * one && tensor < 0.5 * one,
        "{fsdp} and {tensor} of {one}"
    );
    assert!(
        both < 0.8 * fsdp && both < tensor,
        "{both}, {fsdp}, {tensor}"
    );
}

#[test]
fn every_rule_and_setting_works_on_a_mesh() {
    let (_keep, dir) = corpus();
    let adastar = [
        "optimizer.kind=adastar",
        "train.peak_lr=1e-2",
        "train.z_loss=1e-4",
    ];
    check(&dir, &adastar, &[[1, 2, 1, 2], [2, 1, 1, 2], [1, 1, 2, 2]]);
    let rmsprop = [
        "optimizer.kind=rmsprop",
        "train.peak_lr=1e-3",
        "compute.recompute=block",
        "train.micro_batch_sequences=2",
        "model.tied=false",
    ];
    check(&dir, &rmsprop, &[[1, 2, 1, 2], [2, 2, 1, 1], [1, 2, 3, 1]]);
    let ragged = [
        "data.packing=best-fit",
        "data.mixture=[{split='train', weight=2}, {split='validation', weight=1}]",
        "train.ema=0.9",
        "train.clip_norm=0.5",
        "train.validate_every=5",
        "train.keep_best=true",
    ];
    check(&dir, &ragged, &[[1, 2, 1, 2], [2, 1, 1, 4], [1, 2, 4, 1]]);
    russet_model::checkpoint::load(&dir.join("03-pretrain.best")).unwrap();
    let mixed = [
        "model.layers=3",
        "model.sliding_window=10",
        "model.layer_types=['full_attention', 'sliding_attention', 'sliding_attention']",
        "model.num_kv_shared_layers=1",
        "compute.recompute=block",
    ];
    check(&dir, &mixed, &[[1, 2, 1, 2], [1, 1, 4, 1], [2, 1, 2, 2]]);
    // In bf16 another order of sums moves operands to other roundings, so losses are as near as the type is fine.
    let bf16 = ["compute.dtype=bf16"];
    let [one, many] =
        [[1, 1, 1, 1], [1, 2, 2, 2]].map(|mesh| run_anew(&dir, &strs(&on(mesh, &bf16))));
    for (one, many) in one.losses.iter().zip(&many.losses) {
        assert!((one - many).abs() < 5e-3 * one, "{many}, on one rank {one}");
    }
}

#[test]
fn a_stage_begins_with_a_checkpoint_on_any_mesh() {
    let (_keep, dir) = corpus();
    run_anew(&dir, &strs(&on([1, 1, 1, 1], &["model.tied=false"])));
    let later = |mesh| {
        let mut settings: Settings = common::settings(&strs(&on(mesh, &["train.seed=5"])));
        settings.model = ModelSettings::default();
        let sources = Sources {
            tokens: dir.join("tokens"),
            checkpoint: Some(dir.join("03-pretrain")),
            package: None,
            mixture: vec![],
        };
        let plan = Plan::new(settings, sources).unwrap();
        finished(pretrain(
            &plan,
            &dir.join("04-continued"),
            &common::tool(),
            Resume::Restart,
            &mut NoProgress,
            &Interrupt::new(),
        ))
    };
    let one = later([1, 1, 1, 1]);
    assert!(
        one.first_loss < 5.0,
        "it begins where the first ended: {one:?}"
    );
    for mesh in [[1, 2, 1, 2], [2, 1, 1, 2]] {
        assert_close(&later(mesh).losses, &one.losses, &format!("{mesh:?}"));
    }
}

/// What changes between the runs of a chain, but for the mesh: everything that has a state of its own.
const STATEFUL: &[&str] = &[
    "train.checkpoint_every=3",
    "train.ema=0.9",
    "optimizer.kind=adastar",
    "train.peak_lr=1e-2",
];

#[test]
fn the_same_mesh_goes_on_to_the_same_bits() {
    let (_keep, dir) = corpus();
    for mesh in [[2, 1, 1, 1], [1, 2, 1, 2], [2, 1, 2, 2]] {
        let changes = on(mesh, STATEFUL);
        let changes = strs(&changes);
        run_anew(&dir, &changes);
        let straight = result(&dir);
        run_anew(&dir, &changes);
        assert_eq!(result(&dir), straight, "{mesh:?}: time does not matter");
        std::fs::remove_dir_all(dir.join("03-pretrain")).unwrap();
        stop_at(&dir, &changes, 4);
        stop_at(&dir, &changes, 11);
        finished(run(&dir, &changes));
        assert_eq!(result(&dir), straight, "{mesh:?}");
    }
}

#[test]
fn a_run_goes_on_on_any_other_mesh() {
    let (_keep, dir) = corpus();
    let one = run_anew(&dir, &strs(&on([1, 1, 1, 1], STATEFUL)));
    // Each begins where the one before stopped.
    let chain = [
        [1, 1, 1, 1],
        [1, 4, 1, 2],
        [1, 3, 1, 1],
        [2, 1, 3, 4],
        [1, 2, 2, 1],
        [1, 1, 1, 1],
    ];
    std::fs::remove_dir_all(dir.join("03-pretrain")).unwrap();
    let batch = ["train.batch_sequences=12", "train.micro_batch_sequences=12"];
    let divisible = [STATEFUL, &batch[..]].concat();
    let whole = run_anew(&dir, &strs(&on([1, 1, 1, 1], &divisible)));
    assert_ne!(one.losses, whole.losses);
    std::fs::remove_dir_all(dir.join("03-pretrain")).unwrap();
    for (number, mesh) in chain[..5].iter().enumerate() {
        stop_at(&dir, &strs(&on(*mesh, &divisible)), 3 * (number as u64 + 1));
    }
    let last = finished(run(&dir, &strs(&on(chain[5], &divisible))));
    assert_close(&last.losses, &whole.losses[15..], "after five other meshes");
    let (a, b) = (
        last.validation_nats.unwrap(),
        whole.validation_nats.unwrap(),
    );
    assert!((a - b).abs() <= 2e-5 * b, "{a} and {b}");
}

/// A disaster on the first rank, which the others wait for.
struct Disaster;

impl Progress for Disaster {
    fn begin(&mut self, _: &str, _: Option<u64>, _: &str) {}
    fn update(&mut self, done: u64, _: &[(&str, f64)]) {
        assert!(done < 5, "the screen has gone dark");
    }
    fn message(&mut self, _: &str) {}
    fn end(&mut self) {}
}

#[test]
fn a_rank_that_panics_ends_the_run_with_its_name_and_the_run_goes_on() {
    let (_keep, dir) = corpus();
    let changes = on([1, 2, 1, 2], &["train.checkpoint_every=2"]);
    let changes = strs(&changes);
    run_anew(&dir, &changes);
    let straight = result(&dir);
    std::fs::remove_dir_all(dir.join("03-pretrain")).unwrap();
    let plan = Plan::new(common::settings(&changes), &dir.join("tokens")).unwrap();
    let ended = pretrain(
        &plan,
        &dir.join("03-pretrain"),
        &common::tool(),
        Resume::Continue,
        &mut Disaster,
        &Interrupt::new(),
    );
    let problem = match ended {
        Err(
            error @ TrainError::Rank {
                rank: 0, ranks: 4, ..
            },
        ) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(
        problem.starts_with("rank 0 of 4 is gone: the screen has gone dark")
            && problem.contains("goes on from there"),
        "{problem}"
    );
    finished(run(&dir, &changes));
    assert_eq!(result(&dir), straight);
}

#[test]
fn what_cannot_be_is_refused_with_the_setting() {
    let (_keep, dir) = corpus();
    for (changes, key, part) in [
        (
            &["parallel.pipeline=2"][..],
            "parallel.pipeline",
            "leave it out",
        ),
        (
            &["parallel.sequence=9"],
            "parallel.sequence",
            "use at most 8",
        ),
        (
            &["parallel.sequence=2", "distill={kind='hard'}"],
            "parallel.sequence",
            "beside `[distill]`",
        ),
        (&["parallel.data=0"], "parallel.data", "from 1 to"),
        (
            &["parallel.data=3"],
            "train.batch_sequences",
            "make it a multiple",
        ),
        (&["parallel.tensor=16"], "parallel.tensor", "kv_heads, 8"),
        (
            &["parallel.fsdp=1000", "parallel.data=1000"],
            "parallel.data",
            "more than",
        ),
        (
            &["parallel.tensor=2", "distill={kind='hard'}"],
            "parallel.tensor",
            "beside `[distill]`",
        ),
    ] {
        let changes: Vec<&str> = SMALL.iter().chain(changes).copied().collect();
        let problem = Plan::new(common::settings(&changes), &dir.join("tokens"));
        let problem = problem.unwrap_err().to_string();
        assert!(
            problem.starts_with(&format!("`{key}`")) && problem.contains(part),
            "{changes:?}: {problem}"
        );
    }
    // A mesh makes no other run, and says what it costs.
    let plan = |mesh| {
        let settings = common::settings(&strs(&on(mesh, &[])));
        Plan::new(settings, &dir.join("tokens")).unwrap()
    };
    let (one, four) = (plan([1, 1, 1, 1]), plan([1, 2, 1, 2]));
    let key = |plan: &Plan| plan.stage(&common::tool()).unwrap().key();
    assert_eq!(key(&one), key(&four));
    assert_eq!(one.describe().parallel, None);
    let described = four.describe();
    let cost = described.parallel.unwrap();
    assert_eq!((cost.ranks, cost.mesh), (4, [1, 2, 1, 2]));
    let text = described.to_string();
    assert!(
        text.contains("ranks    4: each ")
            && text.contains(", along fsdp ")
            && text.contains(", along tensor "),
        "{text}"
    );
}
