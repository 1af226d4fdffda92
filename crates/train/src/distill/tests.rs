use std::path::PathBuf;

use russet_artifact::{Draft, Interrupt, NoProgress, Stage};
use russet_tensor::ops::IGNORE;
use serde_json::json;

use super::*;
use crate::common;
use crate::loader::Batches;
use crate::run::tests::context;
use crate::{Outcome, Plan, Resume, Settings, pretrain};

/// A tokens artifact and a teacher trained on it, an eyeblink long.
fn teacher(dir: &Path) -> PathBuf {
    common::tokens(dir);
    train(dir, "teacher", &["train.seed=9", "model.width=40"], None);
    dir.join("teacher")
}

fn plan(dir: &Path, changes: &[&str], input: Option<TeacherInput>) -> Result<Plan> {
    let plan = Plan::new(common::settings::<Settings>(changes), &dir.join("tokens"))?;
    match input {
        Some(input) => plan.taught_by(input),
        None => Ok(plan),
    }
}

fn train(dir: &Path, name: &str, changes: &[&str], input: Option<TeacherInput>) {
    let plan = plan(dir, changes, input).unwrap();
    let outcome = pretrain(
        &plan,
        &dir.join(name),
        &common::tool(),
        Resume::Continue,
        &mut NoProgress,
        &Interrupt::new(),
    );
    assert!(matches!(outcome, Ok(Outcome::Finished(_))), "{outcome:?}");
}

/// The artifact of the stage `teacher-logits`.
fn logits(dir: &Path, k: usize) -> PathBuf {
    let tokens = Artifact::open(&dir.join("tokens"), Kind::Tokens).unwrap();
    let out = dir.join(format!("logits-{k}"));
    let draft = Draft::create(&out, Kind::TeacherLogits).unwrap();
    let settings = TeachSettings {
        k,
        sequence_length: 32,
        splits: vec!["train".to_owned(), "validation".to_owned()],
    };
    let report = teach(
        &settings,
        &dir.join("teacher"),
        &tokens,
        draft.path(),
        &context(2).pool,
        &mut NoProgress,
        &Interrupt::new(),
    )
    .unwrap();
    assert!(report.covered > 0.2 && report.covered <= 1.0, "{report:?}");
    assert!(report.nats_per_token < 5.0, "{report:?}");
    let inputs = Inputs::new().artifact("tokens", &tokens).unwrap();
    let recipe = json!({"teacher_logits": settings});
    let stage = Stage::new("teacher-logits", &common::tool(), recipe, inputs);
    draft.commit(&stage).unwrap();
    out
}

/// The loss of a student's first batch, summed over its micro-batches.
fn first_loss(dir: &Path, changes: &[&str], input: Option<TeacherInput>) -> f64 {
    let plan = plan(dir, changes, input).unwrap();
    let objective = plan.objective().unwrap();
    let mut batches = plan.open_train().unwrap();
    let student = Decoder::random(plan.config(), 4);
    let mut ctx = context(2);
    let batches = batches.next().unwrap();
    let losses = batches
        .iter()
        .map(|batch| f64::from(objective.loss(&student, &mut ctx, batch).loss.data()[0]));
    losses.sum()
}

#[test]
fn the_hard_mix_is_nine_tenths_of_the_teachers_token_and_one_of_the_texts() {
    let keep = tempfile::tempdir().unwrap();
    let dir = keep.path();
    let input = TeacherInput::Checkpoint(teacher(dir));
    let got = first_loss(
        dir,
        &["distill.kind=\"hard\"", "train.z_loss=1e-2"],
        Some(input),
    );

    let plan = plan(dir, &[], None).unwrap();
    let (student, teacher) = (
        Decoder::random(plan.config(), 4),
        checkpoint::load(&dir.join("teacher")).unwrap(),
    );
    let mut batches = plan.open_train().unwrap();
    let mut ctx = context(1);
    let mut want = 0.0;
    for batch in batches.next().unwrap() {
        let mut logits = |decoder: &Decoder| {
            let hidden = decoder.forward(&mut ctx, &batch.tokens, &batch.segments, None);
            decoder.logits(&mut ctx, &hidden).data().to_vec()
        };
        let (student, teacher) = (logits(&student), logits(&teacher));
        let rows = student.chunks_exact(300).zip(teacher.chunks_exact(300));
        for ((z, q), (&target, &weight)) in rows.zip(batch.targets.iter().zip(&batch.weights)) {
            assert_ne!(target, IGNORE);
            let sum = z.iter().map(|&z| f64::from(z).exp()).sum::<f64>().ln();
            let best = (0..300).fold(0, |best, id| if q[id] > q[best] { id } else { best });
            let label = 0.9 * f64::from(z[best]) + 0.1 * f64::from(z[target as usize]);
            want += f64::from(weight) * (sum - label + 1e-2 * sum * sum);
        }
    }
    assert!((got - want).abs() < 1e-5, "{got}, not {want}");
}

#[test]
fn what_is_stored_teaches_what_the_teacher_beside_the_student_would() {
    let keep = tempfile::tempdir().unwrap();
    let dir = keep.path();
    let beside = TeacherInput::Checkpoint(teacher(dir));
    let loss = |kind: &str, input: &TeacherInput| {
        let kind = format!("distill.kind=\"{kind}\"");
        first_loss(dir, &[&kind, "distill.mix=1.0"], Some(input.clone()))
    };
    let (few, many) = (
        TeacherInput::Logits(logits(dir, 4)),
        TeacherInput::Logits(logits(dir, 256)),
    );
    let (hard, kl) = (loss("hard", &beside), loss("kl", &beside));
    assert!((loss("hard", &few) - hard).abs() < 1e-5);
    // With more outcomes told apart the divergence rises to the full one; 256 of 300 leave little. Log-probabilities in F16
    // are right to 0.002 of a unit.
    let (few, many) = (loss("top_k", &few), loss("top_k", &many));
    assert!(
        few < many && many < kl + 2e-3 && kl - many < 0.02 * kl,
        "{few}, {many}, {kl}"
    );
}

#[test]
fn each_source_of_a_mixture_has_predictions_of_its_own() {
    let keep = tempfile::tempdir().unwrap();
    let dir = keep.path();
    teacher(dir);
    let folder = logits(dir, 4);
    let mixture = "data.mixture=[{split='validation', weight=1}, {split='train', weight=1}]";
    let changes = [
        "distill.kind=\"hard\"",
        "distill.mix=1.0",
        "train.batch_sequences=16",
        "data.packing=best-fit",
        mixture,
    ];
    let input = TeacherInput::Logits(folder.clone());
    let got = first_loss(dir, &changes, Some(input));

    let stored = ["validation", "train"]
        .map(|split| TeacherLogits::open(&folder.join(store::file_name(split))).unwrap());
    let plan = plan(dir, &changes, None).unwrap();
    let student = Decoder::random(plan.config(), 4);
    let mut ctx = context(1);
    let (mut want, mut seen) = (0.0, [0, 0]);
    for batch in plan.open_train().unwrap().next().unwrap() {
        let hidden = student.forward(&mut ctx, &batch.tokens, &batch.segments, None);
        let logits = student.logits(&mut ctx, &hidden).data().to_vec();
        let mut ids = Vec::new();
        for origin in &batch.origins {
            seen[origin.source] += origin.targets.len();
            ids.extend(stored[origin.source].rows(origin.targets.clone(), 1).0);
        }
        for ((z, &id), &weight) in logits.chunks_exact(300).zip(&ids).zip(&batch.weights) {
            let sum = z.iter().map(|&z| f64::from(z).exp()).sum::<f64>().ln();
            want += f64::from(weight) * (sum - f64::from(z[id as usize]));
        }
    }
    assert!(
        seen.iter().all(|&tokens| tokens > 0),
        "both were met: {seen:?}"
    );
    assert!((got - want).abs() < 1e-5, "{got}, not {want}");
}

/// Equal to the last bit on one thread and two and with blocks computed again, and nearer to the teacher than the text alone brings it.
#[test]
fn a_distilled_run_is_deterministic_and_draws_near_its_teacher() {
    let keep = tempfile::tempdir().unwrap();
    let dir = keep.path();
    let beside = TeacherInput::Checkpoint(teacher(dir));
    let kl = [
        "distill.kind=\"kl\"",
        "distill.mix=1.0",
        "distill.temperature=2.0",
    ];
    train(dir, "plain", &[], None);
    train(dir, "taught", &kl, Some(beside.clone()));
    train(
        dir,
        "taught-2",
        &[&kl[..], &["compute.threads=2", "compute.recompute=block"]].concat(),
        Some(beside.clone()),
    );
    let hash = |name: &str| {
        let artifact = Artifact::open(&dir.join(name), Kind::Checkpoint).unwrap();
        assert_eq!(artifact.input("teacher").is_ok(), name != "plain");
        artifact.manifest().files["model.safetensors"].blake3
    };
    assert_eq!(hash("taught"), hash("taught-2"));
    assert_ne!(hash("taught"), hash("plain"));

    let plan = plan(dir, &kl, Some(beside)).unwrap();
    let objective = plan.objective().unwrap();
    let mut batches = plan.open_train().unwrap();
    let batch = &batches.next().unwrap()[0];
    let distance = |name: &str| {
        let decoder = checkpoint::load(&dir.join(name)).unwrap();
        objective.loss(&decoder, &mut context(1), batch).loss.data()[0]
    };
    let (plain, taught) = (distance("plain"), distance("taught"));
    assert!(taught < 0.8 * plain, "{taught} and {plain}");
}

#[test]
fn teachers_that_do_not_fit_are_refused_with_a_sentence() {
    let keep = tempfile::tempdir().unwrap();
    let dir = keep.path();
    let beside = TeacherInput::Checkpoint(teacher(dir));
    let stored = TeacherInput::Logits(logits(dir, 4));
    let problem = |changes: &[&str], input: Option<&TeacherInput>| -> String {
        let objective = plan(dir, changes, input.cloned()).and_then(|plan| plan.objective());
        objective.err().expect("should be refused").to_string()
    };
    let hard = "distill.kind=\"hard\"";
    for (changes, input, sentence) in [
        (vec![hard], None, "`distill` is there, but no teacher"),
        (vec![], Some(&beside), "`distill` is missing"),
        (
            vec!["distill.kind=\"kl\""],
            Some(&stored),
            "which needs all probabilities",
        ),
        (
            vec!["distill.kind=\"top_k\""],
            Some(&beside),
            "which reads stored probabilities",
        ),
        (
            vec![hard, "distill.mix=0.0"],
            Some(&beside),
            "`distill.mix` is 0",
        ),
        (
            vec![hard, "distill.temperature=2.0"],
            Some(&beside),
            "has a temperature",
        ),
        (
            vec![hard, "train.sequence_length=64"],
            Some(&beside),
            "made for 32 tokens of context",
        ),
        (
            vec!["distill.kind=\"top_k\"", "train.sequence_length=64"],
            Some(&stored),
            "asked in windows of 32 tokens",
        ),
        (vec!["train.z_loss=-1.0"], None, "`train.z_loss` is -1"),
    ] {
        let problem = problem(&changes, input);
        assert!(problem.contains(sentence), "{problem}");
    }

    // Another tokenizer, told apart by its bytes.
    let tokenizer = dir.join("teacher/tokenizer.json");
    let text = std::fs::read_to_string(&tokenizer).unwrap();
    std::fs::write(&tokenizer, text + "\n").unwrap();
    let problem = problem(&[hard], Some(&beside));
    assert!(problem.contains("another tokenizer"), "{problem}");
}

#[test]
fn a_teacher_beside_the_student_has_its_price() {
    let keep = tempfile::tempdir().unwrap();
    let dir = keep.path();
    let input = TeacherInput::Checkpoint(teacher(dir));
    let shape = Config::open(&dir.join("teacher")).unwrap();
    let alone = plan(dir, &[], None).unwrap().describe();
    let hard = ["distill.kind=\"hard\""];
    let taught = plan(dir, &hard, Some(input.clone())).unwrap().describe();
    let price = taught.teacher.unwrap();
    assert_eq!(price.bytes, 4 * shape.parameters());
    assert_eq!(
        taught.memory.total(),
        alone.memory.total() + price.bytes,
        "its weights and nothing else"
    );
    assert_eq!(price.flops, taught.tokens as f64 * shape.forward_flops(16));
    let ranks = plan(dir, &[hard[0], "parallel.data=2"], Some(input)).unwrap();
    assert_eq!(ranks.describe().memory.teacher, 2 * price.bytes);
}

#[test]
fn stored_predictions_come_back_and_damage_is_found() {
    let dir = tempfile::tempdir().unwrap();
    for vocab in [100, 70_000] {
        let path = dir.path().join(format!("{vocab}.safetensors"));
        let mut writer = TeacherWriter::create(&path, 3, 2, vocab).unwrap();
        let rows = [
            (99, -0.5),
            (4, -1.0),
            (0, 0.0),
            (1, -30.0),
            (7, -0.25),
            (8, -8.0),
        ];
        writer.push(&rows[..4]).unwrap();
        writer.push(&rows[4..]).unwrap();
        writer.finish();
        let logits = TeacherLogits::open(&path).unwrap();
        assert_eq!((logits.tokens(), logits.k(), logits.vocab()), (3, 2, vocab));
        assert_eq!(
            logits.rows(1..3, 2),
            (vec![0, 1, 7, 8], vec![0.0, -30.0, -0.25, -8.0])
        );
        assert_eq!(logits.rows(0..2, 1), (vec![99, 0], vec![-0.5, 0.0]));
        drop(logits);

        let whole = std::fs::read(&path).unwrap();
        let refused = |bytes: &[u8], sentence: &str| {
            std::fs::write(&path, bytes).unwrap();
            let problem = TeacherLogits::open(&path).unwrap_err().to_string();
            assert!(problem.contains(sentence), "{problem}");
        };
        refused(&whole[..whole.len() - 1], "not a whole safetensors file");
        let changed = |at: usize, byte: u8| {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            bytes
        };
        let id = if vocab == 100 { 512 } else { 514 };
        refused(&changed(id, 255), "row 0 gives the token");
        refused(
            &changed(whole.len() - 1, 0x7e),
            "row 2 gives the token 8 the log-probability NaN",
        );
    }
}

#[test]
fn replicas_and_ranks_with_pieces_learn_from_a_teacher_as_one_rank_does() {
    let keep = tempfile::tempdir().unwrap();
    let dir = keep.path();
    let teacher = teacher(dir);
    for kind in ["hard", "kl"] {
        let losses = |mesh: &str| {
            let distill = format!("distill={{kind='{kind}'}}");
            let input = Some(TeacherInput::Checkpoint(teacher.clone()));
            let plan = plan(dir, &[&distill, mesh, "train.checkpoint_every=0"], input).unwrap();
            let (out, tool) = (dir.join("taught"), common::tool());
            let (resume, interrupt) = (Resume::Restart, Interrupt::new());
            let outcome = pretrain(&plan, &out, &tool, resume, &mut NoProgress, &interrupt);
            match outcome.unwrap() {
                Outcome::Finished(report) => report.losses,
                other => panic!("{other:?}"),
            }
        };
        let one = losses("parallel.data=1");
        for mesh in ["parallel.data=2", "parallel.fsdp=2"] {
            let many = losses(mesh);
            assert_eq!(many.len(), one.len());
            for (many, one) in many.iter().zip(&one) {
                assert!(
                    (many - one).abs() <= 1e-5 * one,
                    "{kind}, {mesh}: {many}, on one rank {one}"
                );
            }
        }
    }
}
