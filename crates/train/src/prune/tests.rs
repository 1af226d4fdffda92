use std::fs;

use russet_artifact::{Inputs, NoProgress};
use russet_kernels::mask as kernel;
use russet_tensor::{Segments, Tensor};

use super::mask::{Sharpness, masked, scores};
use super::*;
use crate::common;
use crate::run::tests::{context, tiny};
use crate::{Plan, Settings, pretrain};

const TOKENS: [u32; 9] = [3, 60, 7, 7, 12, 44, 0, 1, 2];

fn logits(decoder: &Decoder) -> Vec<f32> {
    let mut ctx = context(2);
    let hidden = decoder.forward(&mut ctx, &TOKENS, &Segments::packed(&[5, 4]), None);
    decoder.logits(&mut ctx, &hidden).data().to_vec()
}

#[track_caller]
fn close(got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        // Sums of some forty terms of order 1, in another order.
        assert!((got - want).abs() < 1e-4, "{got}, not {want}");
    }
}

/// Every third hidden dim of each layer made idle, in the one way or the other.
fn with_idle_dims() -> Decoder {
    let mut decoder = tiny();
    let (ffn, width) = (decoder.config().ffn, decoder.config().width);
    decoder.visit_mut(&mut |tensor: &mut Tensor| {
        let shape = tensor.shape().to_vec();
        for i in (0..ffn).step_by(3) {
            if shape == [2 * ffn, width] && i % 2 == 0 {
                tensor.data_mut()[(ffn + i) * width..][..width].fill(0.0);
            }
            if shape == [width, ffn] && i % 2 == 1 {
                tensor
                    .data_mut()
                    .chunks_exact_mut(ffn)
                    .for_each(|row| row[i] = 0.0);
            }
        }
    });
    decoder
}

#[test]
fn what_is_idle_can_be_sliced_away() {
    let decoder = with_idle_dims();
    let ffn = decoder.config().ffn;
    let idle = ffn.div_ceil(3);
    let kept: Vec<Vec<usize>> = magnitudes(&decoder)
        .iter()
        .map(|scores| greatest(scores, ffn - idle))
        .collect();
    assert_eq!(kept[0], (0..ffn).filter(|i| i % 3 != 0).collect::<Vec<_>>());
    let small = slice(&decoder, &kept, &vec![vec![1.0; ffn - idle]; 2]);
    assert_eq!(small.config().ffn, ffn - idle);
    close(&logits(&small), &logits(&decoder));
}

/// A mask that has become hard is the slice; one that is still soft is the slice with what it left out at nothing.
#[test]
fn a_hard_mask_equals_the_slice() {
    let k = 11;
    let sharpness = Sharpness::new(0.05);
    let mut soft = masked(tiny(), k, &sharpness, false);
    let mut layer = 0;
    soft.visit_mut(&mut |scores| {
        layer += 1;
        for (i, s) in scores.data_mut().iter_mut().enumerate() {
            *s = ((i * 7 + layer) % 40) as f32;
        }
    });
    assert_eq!(layer, 2, "the scores alone are parameters");
    let masks: Vec<Vec<f32>> = scores(&soft)
        .iter()
        .map(|scores| {
            let mut mask = vec![0.0; scores.len()];
            kernel::soft_top_k(scores.data(), k, 0.05, &mut mask);
            mask
        })
        .collect();
    let kept: Vec<Vec<usize>> = masks.iter().map(|mask| greatest(mask, k)).collect();
    let factors: Vec<Vec<f32>> = masks
        .iter()
        .zip(&kept)
        .map(|(mask, kept)| kept.iter().map(|&i| mask[i]).collect())
        .collect();
    close(&logits(&slice(&tiny(), &kept, &factors)), &logits(&soft));
}

/// A checkpoint trained on the toy corpus, and its tokens.
fn trained(dir: &Path) -> PathBuf {
    common::tokens(dir);
    let settings: Settings = common::settings(&["train.steps=120"]);
    let outcome = pretrain(
        &Plan::new(settings, &dir.join("tokens")).unwrap(),
        &dir.join("03-pretrain"),
        &common::tool(),
        Resume::Continue,
        &mut NoProgress,
        &Interrupt::new(),
    );
    assert!(matches!(outcome, Ok(Outcome::Finished(_))), "{outcome:?}");
    dir.join("03-pretrain")
}

fn settings(method: PruneMethod) -> PruneSettings {
    let learns = method == PruneMethod::Learned;
    PruneSettings {
        ffn: 16,
        method,
        steps: if learns { 60 } else { steps() },
        lr: if learns { 0.05 } else { lr() },
        weight_lr: 0.0,
        epsilon_start: 1.0,
        epsilon_end: 0.01,
        batch_sequences: 4,
        micro_batch_sequences: Some(2),
        sequence_length: 32,
        seed: u64::from(method != PruneMethod::Magnitude),
        train: "train".to_owned(),
        validation: Some("validation".to_owned()),
        validation_tokens: None,
    }
}

fn prune_into(
    dir: &Path,
    out: &Path,
    settings: &PruneSettings,
    threads: usize,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<Pruned> {
    let tokens = Artifact::open(&dir.join("tokens"), Kind::Tokens).unwrap();
    let recipe = serde_json::to_value(settings).unwrap();
    let stage = Stage::new("prune", &common::tool(), recipe, Inputs::new());
    let compute = ComputeSettings {
        threads: Some(threads),
        ..ComputeSettings::default()
    };
    Pruning::new(settings.clone(), &dir.join("03-pretrain"), &tokens)?.run(
        stage,
        &compute,
        out,
        Resume::Continue,
        progress,
        interrupt,
    )
}

fn report(out: &Path) -> PruneReport {
    serde_json::from_slice(&fs::read(out.join(PRUNE_REPORT)).unwrap()).unwrap()
}

fn run(
    dir: &Path,
    settings: &PruneSettings,
    threads: usize,
    interrupt: &Interrupt,
) -> Result<(PruneReport, tempfile::TempDir)> {
    let keep = tempfile::tempdir().unwrap();
    let out = keep.path().join("07-prune");
    let pruned = prune_into(dir, &out, settings, threads, &mut NoProgress, interrupt)?;
    if let Pruned::Interrupted { .. } = pruned {
        return Err(TrainError::Interrupted);
    }
    Ok((report(&out), keep))
}

#[test]
fn learned_masks_lose_less_than_chance_and_the_checkpoint_opens() {
    let keep = tempfile::tempdir().unwrap();
    let dir = keep.path();
    trained(dir);
    let made =
        |settings: &PruneSettings, threads| run(dir, settings, threads, &Interrupt::new()).unwrap();
    let (learned, out) = made(&settings(PruneMethod::Learned), 1);
    let (again, out_again) = made(&settings(PruneMethod::Learned), 2);
    assert_eq!(learned, again);
    let (out, out_again) = (
        out.path().join("07-prune"),
        out_again.path().join("07-prune"),
    );
    let bytes = |out: &Path| fs::read(out.join("model.safetensors")).unwrap();
    assert!(bytes(&out) == bytes(&out_again), "threads change bits");

    let decoder = checkpoint::open(&out).unwrap();
    assert_eq!(
        (decoder.config().ffn, decoder.config().parameters()),
        (16, learned.parameters)
    );
    assert_eq!(
        learned.parameters_before - learned.parameters,
        2 * 3 * 32 * (64 - 16)
    );
    assert!(
        learned
            .kept
            .iter()
            .all(|kept| kept.len() == 16 && kept.is_sorted())
    );
    assert!(out.join("tokenizer.json").exists() && out.join("README.md").exists());
    let log = russet_artifact::read_log(&out.with_extension("log")).unwrap();
    let losses = log
        .iter()
        .filter(|event| event.scalars.contains_key("loss"));
    assert_eq!(losses.count(), 60);

    let (random, _) = made(&settings(PruneMethod::Random), 1);
    let (magnitude, _) = made(&settings(PruneMethod::Magnitude), 1);
    let joint = PruneSettings {
        weight_lr: 1e-3,
        ..settings(PruneMethod::Learned)
    };
    let (joint, _) = made(&joint, 1);
    let after = |report: &PruneReport| report.nats_after.unwrap();
    assert_eq!(
        (random.nats_before, random.last_loss),
        (learned.nats_before, None)
    );
    let nats = [&joint, &learned, &magnitude, &random].map(after);
    assert!(nats.is_sorted(), "{nats:?}");
    assert!(learned.hardness.unwrap() > 0.8, "{:?}", learned.hardness);
}

#[test]
fn what_cannot_be_pruned_is_refused_with_a_sentence() {
    let keep = tempfile::tempdir().unwrap();
    let dir = keep.path();
    trained(dir);
    let refused = |change: &dyn Fn(&mut PruneSettings), sentence: &str| {
        let mut settings = settings(PruneMethod::Learned);
        change(&mut settings);
        let problem = run(dir, &settings, 1, &Interrupt::new())
            .unwrap_err()
            .to_string();
        assert!(problem.contains(sentence), "{problem}");
    };
    refused(
        &|s| s.ffn = 64,
        "`prune.ffn` is 64, but the checkpoint's feed-forward layers are 64 wide",
    );
    refused(&|s| s.ffn = 0, "`prune.ffn` is 0");
    refused(&|s| s.micro_batch_sequences = Some(3), "does not divide");
    refused(&|s| s.lr = f64::NAN, "`prune.lr` is NaN");
    refused(&|s| s.epsilon_end = 2.0, "more than `prune.epsilon_start`");
    refused(
        &|s| {
            s.method = PruneMethod::Random;
            s.weight_lr = 0.1;
        },
        "and so is `prune.weight_lr`, but only `method = \"learned\"` trains",
    );
    refused(
        &|s| s.method = PruneMethod::Magnitude,
        "`prune.steps` is there, and so is `prune.lr`, but only `method = \"learned\"` trains",
    );
    refused(
        &|s| {
            *s = settings(PruneMethod::Magnitude);
            s.seed = 7;
        },
        "`prune.seed` is there, but nothing reads it",
    );
    refused(
        &|s| {
            *s = settings(PruneMethod::Random);
            s.validation = None;
        },
        "`prune.batch_sequences` is there, but without `prune.validation` nothing reads it",
    );
    refused(
        &|s| {
            s.validation = None;
            s.validation_tokens = Some(10);
        },
        "nothing to measure on",
    );
    refused(
        &|s| s.train = "other".to_owned(),
        "other.tokens.safetensors",
    );
    let raised = Interrupt::new();
    raised.raise();
    let stopped = run(dir, &settings(PruneMethod::Learned), 1, &raised);
    assert!(matches!(stopped, Err(TrainError::Interrupted)));
}

#[test]
fn a_reward_model_is_refused() {
    let keep = tempfile::tempdir().unwrap();
    let dir = keep.path();
    let checkpoint = trained(dir);
    let decoder = checkpoint::load(&checkpoint).unwrap();
    let head = russet_model::RewardHead::random(decoder.config(), 0);
    checkpoint::save(&decoder.with_reward(head), &checkpoint).unwrap();
    let settings = settings(PruneMethod::Magnitude);
    let problem = run(dir, &settings, 1, &Interrupt::new()).unwrap_err();
    assert!(
        problem.to_string().contains("it is a reward model; prune"),
        "{problem}"
    );
}

/// Raises the interrupt when a step is done.
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
fn learning_that_was_stopped_goes_on_to_the_same_bytes() {
    let keep = tempfile::tempdir().unwrap();
    let dir = keep.path();
    trained(dir);
    for weight_lr in [0.0, 1e-3] {
        let settings = PruneSettings {
            weight_lr,
            ..settings(PruneMethod::Learned)
        };
        let manifest = |out: &Path| {
            let artifact = Artifact::open(out, Kind::Checkpoint).unwrap();
            artifact.verify().unwrap();
            artifact.manifest_hash()
        };
        let (straight, out) = (dir.join("straight"), dir.join("stopped"));
        let into = |out: &Path, stop: u64| {
            let interrupt = Interrupt::new();
            let mut progress = StopAt(stop, interrupt.clone());
            prune_into(dir, out, &settings, 1, &mut progress, &interrupt).unwrap()
        };
        assert_eq!(into(&straight, u64::MAX), Pruned::Finished);
        for step in [7, 31] {
            assert_eq!(into(&out, step), Pruned::Interrupted { step });
            assert!(!out.exists() && out.with_extension("state").is_dir());
        }
        assert_eq!(into(&out, u64::MAX), Pruned::Finished);
        assert_eq!(manifest(&out), manifest(&straight), "{weight_lr}");
        assert_eq!(into(&out, u64::MAX), Pruned::Current);
        fs::remove_dir_all(&out).unwrap();
        fs::remove_dir_all(&straight).unwrap();
    }
}
