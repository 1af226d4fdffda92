//! A stage runs again when a byte of what it is a function of has moved, and only then; every artifact can be walked back.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use russet_artifact::{Artifact, Draft, Inputs, Kind, Stage, Tool};
use serde_json::{Value, json};

/// text (a file), extra (a folder) -> tokens -> checkpoint, each stage as `russet run` would drive it.
struct Run {
    root: tempfile::TempDir,
    /// Where text and extra lie.
    texts: PathBuf,
    tool: Tool,
    steps: u64,
}

impl Run {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let run = Self {
            texts: root.path().to_owned(),
            root,
            tool: Tool::new("0.1.0", "aaaa"),
            steps: 10,
        };
        fs::create_dir_all(run.at("extra/deep")).unwrap();
        fs::write(run.at("text.txt"), "once upon a time").unwrap();
        fs::write(run.at("extra/deep/more.txt"), "there was").unwrap();
        run
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Which stages ran, with the reason.
    fn run(&self) -> Vec<String> {
        let mut ran = Vec::new();
        let (text, extra) = (self.texts.join("text.txt"), self.texts.join("extra"));
        let inputs = Inputs::new().path("text", &text).unwrap();
        let inputs = inputs.path("extra", &extra).unwrap();
        let tokens = self.stage(
            "tokenize",
            json!({ "vocab": 32 }),
            inputs,
            "02-tokens",
            Kind::Tokens,
            &mut ran,
        );
        let inputs = Inputs::new().artifact("tokens", &tokens).unwrap();
        let recipe = json!({ "train": { "rate": 0.1, "steps": self.steps } });
        self.stage(
            "pretrain",
            recipe,
            inputs,
            "03-pretrain",
            Kind::Checkpoint,
            &mut ran,
        );
        ran
    }

    fn stage(
        &self,
        name: &str,
        recipe: Value,
        inputs: Inputs,
        dir: &str,
        kind: Kind,
        ran: &mut Vec<String>,
    ) -> Artifact {
        let stage = Stage::new(name, &self.tool, recipe, inputs);
        stage.current(&self.at(dir), kind).unwrap_or_else(|stale| {
            ran.push(format!("{name}: {stale}"));
            let draft = Draft::create(&self.at(dir), kind).unwrap();
            draft.write("out", stage.key().as_bytes()).unwrap();
            let artifact = draft.commit(&stage).unwrap();
            assert_eq!(artifact.manifest().key(), stage.key());
            artifact
        })
    }
}

#[track_caller]
fn check(change: impl FnOnce(&mut Run), expected: &[&str]) {
    let mut run = Run::new();
    assert_eq!(run.run().len(), 2, "both run the first time");
    assert!(run.run().is_empty(), "and neither the second");
    change(&mut run);
    let place = format!("{}/", run.root.path().display());
    let ran: Vec<_> = run
        .run()
        .iter()
        .map(|line| line.replace(&place, ""))
        .collect();
    assert_eq!(ran, expected);
    assert!(run.run().is_empty());
}

#[test]
fn touching_an_input_runs_nothing() {
    check(
        |run| {
            for name in [
                "text.txt",
                "extra/deep/more.txt",
                "02-tokens/out",
                "02-tokens/manifest.json",
            ] {
                let file = fs::File::options().write(true).open(run.at(name)).unwrap();
                file.set_modified(SystemTime::now() + Duration::from_secs(9999))
                    .unwrap();
            }
        },
        &[],
    );
}

#[test]
fn another_commit_of_the_same_version_runs_nothing() {
    check(|run| run.tool.commit = "bbbb".into(), &[]);
}

#[test]
fn a_run_that_has_moved_runs_nothing() {
    // The text stays where it is, so that from here another path leads to it.
    let mut run = Run::new();
    run.run();
    let manifest = |run: &Run| Artifact::open(&run.at("02-tokens"), Kind::Tokens).unwrap();
    let before = manifest(&run);
    let moved = tempfile::tempdir().unwrap();
    let place = moved.path().join("deeper/run");
    fs::create_dir_all(&place).unwrap();
    for name in ["text.txt", "extra"] {
        fs::rename(run.at(name), place.join(name)).unwrap();
    }
    let texts = std::mem::replace(&mut run.texts, place);
    assert_ne!(texts, run.texts);
    assert!(run.run().is_empty());
    // Written once more from there, the tokens are the same artifact to what was made of them.
    fs::remove_dir_all(run.at("02-tokens")).unwrap();
    assert_eq!(run.run().len(), 1);
    let after = manifest(&run);
    assert_ne!(
        after.manifest().inputs["text"].path,
        before.manifest().inputs["text"].path
    );
    assert_eq!(after.manifest_hash(), before.manifest_hash());
}

#[test]
fn changed_bytes_of_an_input_run_everything_after_it() {
    let expected = [
        "tokenize: input `text` has changed",
        "pretrain: input `tokens` has changed",
    ];
    check(
        |run| fs::write(run.at("text.txt"), "once upon a tima").unwrap(),
        &expected,
    );
    let expected = [
        "tokenize: input `extra` has changed",
        "pretrain: input `tokens` has changed",
    ];
    check(
        |run| fs::write(run.at("extra/deep/new.txt"), "").unwrap(),
        &expected,
    );
    let to = |run: &Run, name: &str| run.at(&format!("extra/deep/{name}"));
    check(
        |run| fs::rename(to(run, "more.txt"), to(run, "less.txt")).unwrap(),
        &expected,
    );
}

#[test]
fn a_changed_setting_runs_its_stage() {
    check(
        |run| run.steps = 12,
        &["pretrain: `train.steps` was 10, is 12"],
    );
}

#[test]
fn settings_that_differ_are_named_up_to_three() {
    let run = Run::new();
    let dir = run.at("a");
    let stage = |recipe| Stage::new("test", &run.tool, recipe, Inputs::new());
    let old = stage(json!({"a": "x", "b": {"c": 1, "d": true}, "e": 2, "f": 3}));
    let draft = Draft::create(&dir, Kind::Tokens).unwrap();
    draft.commit(&old).unwrap();
    let new = stage(json!({"a": "y", "b": {"c": 2}, "e": 3, "g": 3}));
    assert_eq!(
        new.current(&dir, Kind::Tokens).unwrap_err().to_string(),
        "`a` was \"x\", is \"y\", `b.c` was 1, is 2, `b.d` is gone, and 3 more settings"
    );
}

/// The manifest of the result would name bytes that it was not made of.
#[test]
fn nothing_is_begun_on_an_input_that_has_changed_behind_its_manifest() {
    let run = Run::new();
    run.run();
    let tokens = Artifact::open(&run.at("02-tokens"), Kind::Tokens).unwrap();
    let inputs = Inputs::new().artifact("tokens", &tokens).unwrap();
    let stage = Stage::new("pretrain", &run.tool, Value::Null, inputs);
    let begin = || stage.begin(&run.at("b"), Kind::Checkpoint).map(drop);
    // What only lies beside the listed files is no input.
    fs::write(run.at("02-tokens/note.txt"), "mine").unwrap();
    begin().unwrap();
    let path = run.at("02-tokens/out");
    let mut bytes = fs::read(&path).unwrap();
    bytes[0] ^= 1;
    fs::write(&path, bytes).unwrap();
    let problem = begin().unwrap_err().to_string();
    assert!(
        problem.contains("file `out` has BLAKE3") && problem.contains("write the artifact again"),
        "{problem}"
    );
    fs::remove_file(run.at("02-tokens/note.txt")).unwrap();
    Draft::create(&run.at("02-tokens"), Kind::Tokens)
        .unwrap()
        .commit(&Stage::new(
            "tokenize",
            &run.tool,
            Value::Null,
            Inputs::new(),
        ))
        .unwrap();
    let problem = begin().unwrap_err().to_string();
    assert!(problem.contains("was written anew"), "{problem}");
}

#[test]
fn another_version_runs_everything() {
    let reason = "it was written by version 0.1.0, and this is 0.2.0";
    check(
        |run| run.tool.version = "0.2.0".into(),
        &[
            &format!("tokenize: {reason}"),
            &format!("pretrain: {reason}"),
        ],
    );
}

/// The tokens are made again as they were, so what was made from them still holds.
#[test]
fn a_spoilt_artifact_is_made_again_and_nothing_after_it() {
    let run = Run::new();
    run.run();
    let mut spoilt = fs::read(run.at("02-tokens/out")).unwrap();
    spoilt[0] ^= 1;
    fs::write(run.at("02-tokens/out"), spoilt).unwrap();
    let ran = run.run();
    assert_eq!(ran.len(), 1, "{ran:?}");
    assert!(
        ran[0].starts_with("tokenize: ") && ran[0].contains("file `out` has BLAKE3"),
        "{ran:?}"
    );
}

#[test]
fn an_input_that_has_gone_or_another_name_runs_the_stage() {
    let run = Run::new();
    run.run();
    let inputs = Inputs::new().path("text", &run.at("text.txt")).unwrap();
    let stage = |name: &str, inputs: &Inputs| {
        Stage::new(name, &run.tool, json!({ "vocab": 32 }), inputs.clone())
    };
    let says = |stage: Stage| {
        stage
            .current(&run.at("02-tokens"), Kind::Tokens)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(says(stage("tokenize", &inputs)), "input `extra` is gone");
    assert_eq!(
        says(stage("pack", &inputs)),
        "it was written by `tokenize`, and this is `pack`"
    );
    let more = inputs
        .path("extra", &run.at("extra"))
        .unwrap()
        .path("new", &run.at("extra"))
        .unwrap();
    assert_eq!(says(stage("tokenize", &more)), "input `new` is new");
}

#[test]
fn every_artifact_can_be_walked_back() {
    let run = Run::new();
    run.run();
    // From any working folder, and after the whole run has moved.
    let moved = tempfile::tempdir().unwrap();
    let place = moved.path().join("elsewhere");
    fs::rename(run.root.path(), &place).unwrap();
    let checkpoint = Artifact::open(&place.join("03-pretrain"), Kind::Checkpoint).unwrap();
    assert_eq!(checkpoint.manifest().inputs["tokens"].path, "../02-tokens");
    let tokens = checkpoint.input("tokens").unwrap();
    assert_eq!(tokens.kind(), Kind::Tokens);
    let text = &tokens.manifest().inputs["text"];
    assert_eq!(text.path, "../text.txt");
    assert_eq!(
        text.blake3,
        russet_artifact::hash_file(&place.join("text.txt")).unwrap()
    );
    let error = tokens.input("text").unwrap_err().to_string();
    assert!(
        error.contains("is a plain file or folder, where the way back ends"),
        "{error}"
    );
    let error = checkpoint.input("text").unwrap_err().to_string();
    assert!(
        error.ends_with("lists no input `text`; it has `tokens`"),
        "{error}"
    );

    // Written anew from other text: the way back is broken, and says so.
    let again = Stage::new("tokenize", &run.tool, Value::Null, Inputs::new());
    Draft::create(&place.join("02-tokens"), Kind::Tokens)
        .unwrap()
        .commit(&again)
        .unwrap();
    let error = checkpoint.input("tokens").unwrap_err().to_string();
    assert!(error.contains("has been written anew"), "{error}");
}

#[test]
fn inputs_that_are_none_are_sentences() {
    let run = Run::new();
    let missing = Inputs::new()
        .path("text", Path::new("no/such/file"))
        .unwrap_err()
        .to_string();
    assert!(
        missing.starts_with("cannot find the input no/such/file: "),
        "{missing}"
    );
    let text = Inputs::new().path("text", &run.at("text.txt")).unwrap();
    let twice = text
        .clone()
        .path("text", &run.at("extra"))
        .unwrap_err()
        .to_string();
    assert!(
        twice.contains("there is another input of this name"),
        "{twice}"
    );
    assert!(text.clone().path("", &run.at("extra")).is_err());
    let device = Inputs::new().path("text", Path::new("/dev/null"));
    assert!(
        !cfg!(unix)
            || device
                .unwrap_err()
                .to_string()
                .contains("is neither a file nor a folder")
    );
    // Gone between hashing and commit: no manifest that names what is not there.
    fs::remove_file(run.at("text.txt")).unwrap();
    let stage = Stage::new("tokenize", &run.tool, Value::Null, text);
    let error = Draft::create(&run.at("a"), Kind::Tokens)
        .unwrap()
        .commit(&stage)
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("cannot find the input "), "{error}");
    assert!(!run.at("a").exists());
}
