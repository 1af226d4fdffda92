//! Any mesh trains the same model: the losses of one rank within 1e-5, the same bits on the same mesh.

mod common;
#[path = "common/running.rs"]
mod running;

use std::path::{Path, PathBuf};

use running::run_anew;

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

/// The small recipe on a mesh of so many ranks along data, fsdp and tensor, with further changes.
fn on(mesh: [usize; 3], changes: &[&str]) -> Vec<String> {
    let [data, fsdp, tensor] = mesh;
    let axes = [("data", data), ("fsdp", fsdp), ("tensor", tensor)];
    let small = SMALL
        .iter()
        .chain(changes)
        .map(|change| (*change).to_owned());
    let mesh = axes
        .iter()
        .map(|(axis, size)| format!("parallel.{axis}={size}"));
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
fn check(dir: &Path, changes: &[&str], meshes: &[[usize; 3]]) {
    let one = run_anew(dir, &strs(&on([1, 1, 1], changes)));
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

#[test]
fn two_and_four_ranks_train_as_one_does() {
    let (_keep, dir) = corpus();
    let meshes = [
        [2, 1, 1],
        [1, 2, 1],
        [1, 1, 2],
        [4, 1, 1],
        [1, 4, 1],
        [1, 1, 4],
        [2, 2, 1],
        [2, 1, 2],
        [1, 2, 2],
    ];
    check(&dir, &[], &meshes);
}

#[test]
fn eight_ranks_train_as_one_does() {
    let (_keep, dir) = corpus();
    let meshes = [
        [8, 1, 1],
        [1, 8, 1],
        [1, 1, 8],
        [2, 2, 2],
        [4, 2, 1],
        [2, 4, 1],
        [4, 1, 2],
        [2, 1, 4],
        [1, 4, 2],
        [1, 2, 4],
    ];
    check(&dir, &[], &meshes);
}

#[test]
fn every_rule_and_setting_works_on_a_mesh() {
    let (_keep, dir) = corpus();
    let adastar = [
        "optimizer.kind=adastar",
        "train.peak_lr=1e-2",
        "train.z_loss=1e-4",
    ];
    check(&dir, &adastar, &[[1, 2, 2], [2, 1, 2]]);
    let rmsprop = [
        "optimizer.kind=rmsprop",
        "train.peak_lr=1e-3",
        "compute.recompute=block",
        "train.micro_batch_sequences=2",
        "model.tied=false",
    ];
    check(&dir, &rmsprop, &[[1, 2, 2], [2, 2, 1]]);
    let ragged = [
        "data.packing=best-fit",
        "data.mixture=[{split='train', weight=2}, {split='validation', weight=1}]",
        "train.ema=0.9",
        "train.clip_norm=0.5",
    ];
    check(&dir, &ragged, &[[1, 2, 2], [2, 1, 4]]);
}
