//! A small tokenizer, a random checkpoint, and files of rows.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use russet_align::{Lesson, Plan, Settings, Sources};
use russet_artifact::{Draft, Inputs, Interrupt, Kind, Override, Progress, Recipe, Stage, Tool};
use russet_model::config::RopeScaling;
use russet_model::{Config, Decoder, Family, checkpoint};
use russet_tokenizer::{Tokenizer, TokenizerError, TrainConfig};
use russet_train::{Outcome, Result, Resume, TrainReport};
use serde_json::{Value, json};

pub const QUESTIONS: [(&str, &str); 4] = [
    ("What does the fox say?", "Nothing at all."),
    ("Where is the red barn?", "Behind the hill."),
    ("Who saw the hen?", "The fox did."),
    ("When does the sun rise?", "In the morning, as ever."),
];

/// Of the questions and answers, trained anew: a few hundredths of a second.
pub static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let config = TrainConfig {
        vocab_size: 310,
        min_frequency: 2,
        alphabet_min_frequency: 1,
    };
    let texts = QUESTIONS.iter().flat_map(|(asked, said)| [*asked, *said]);
    let texts = texts.chain(["the fox and the hen saw the barn and the sun"]);
    russet_tokenizer::train(
        &config,
        texts.map(|text| Ok::<_, TokenizerError>(text.to_owned())),
    )
    .unwrap()
});

pub fn tool() -> Tool {
    Tool::new("0.0.0", "test")
}

/// A checkpoint of random weights in `dir/base`.
pub fn base(dir: &Path) -> PathBuf {
    let tokenizer = &*TOKENIZER;
    let config = Config {
        family: Family::Qwen3,
        vocab: tokenizer.vocab_size(),
        width: 48,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        ffn: 96,
        norm_epsilon: 1e-5,
        rope_theta: 500_000.0,
        rope_scaling: RopeScaling::None,
        attention: Default::default(),
        context: 64,
        tied: true,
        bos: tokenizer.special().bos,
        eos: tokenizer.special().eos.clone(),
    };
    let place = dir.join("base");
    let draft = Draft::create(&place, Kind::Checkpoint).unwrap();
    checkpoint::save(&Decoder::random(&config, 3), draft.path()).unwrap();
    tokenizer.save(draft.path()).unwrap();
    let stage = Stage::new("pretrain", &tool(), json!({}), Inputs::new());
    draft.commit(&stage).unwrap();
    place
}

/// Writes rows as lines.
pub fn write(path: &Path, rows: &[Value]) {
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(path, text).unwrap();
}

/// Conversations of the questions, and preferences of each answer over the next one's.
pub fn files(dir: &Path) {
    let turn = |role: &str, text: &str| json!({"role": role, "content": text});
    let conversations: Vec<Value> = QUESTIONS
        .iter()
        .map(|(asked, said)| json!({"messages": [turn("user", asked), turn("assistant", said)]}))
        .collect();
    write(&dir.join("train.jsonl"), &conversations);
    write(&dir.join("held.jsonl"), &conversations[..2]);
    let pairs: Vec<Value> = (0..QUESTIONS.len())
        .map(|number| {
            let other = QUESTIONS[(number + 1) % QUESTIONS.len()].1;
            json!({"prompt": QUESTIONS[number].0, "chosen": QUESTIONS[number].1, "rejected": other})
        })
        .collect();
    write(&dir.join("pairs.jsonl"), &pairs);
}

/// A recipe that trains in a moment, with changes: `train.steps=12`.
pub fn settings(dir: &Path, file: &str, changes: &[&str]) -> Settings {
    let text = format!(
        "[train]\nsteps = 12\nbatch_sequences = 2\nsequence_length = 64\npeak_lr = 3e-3\nlog_every = 1\ncheckpoint_every = 4\n\
         [optimizer]\nkind = \"adamw\"\n[data]\ntrain = [{}]\n[compute]\nthreads = 1\n",
        json!(dir.join(file))
    );
    recipe(&text, changes)
}

/// Settings of any stage from a recipe's text and changes to it.
pub fn recipe<S: serde::de::DeserializeOwned>(text: &str, changes: &[&str]) -> S {
    let changes: Vec<Override> = changes
        .iter()
        .map(|change| change.parse().unwrap())
        .collect();
    Recipe::from_text("recipe", text, &changes)
        .unwrap()
        .parse()
        .unwrap()
}

pub fn plan(dir: &Path, lesson: Lesson, file: &str, changes: &[&str]) -> Result<Plan> {
    let sources = Sources {
        checkpoint: dir.join("base"),
        adapter: None,
    };
    Plan::new(lesson, settings(dir, file, changes), sources)
}

pub fn run_to(
    plan: &Plan,
    out: &Path,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Outcome {
    plan.run(out, &tool(), Resume::Continue, progress, interrupt)
        .unwrap()
}

#[track_caller]
pub fn finished(outcome: Outcome) -> TrainReport {
    match outcome {
        Outcome::Finished(report) => report,
        other => panic!("{other:?}"),
    }
}

/// Every file of an artifact with its bytes.
pub fn bytes(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(path).unwrap())
        })
        .collect();
    files.sort();
    files
}

/// Asks to stop when a step is done.
pub struct StopAt(pub u64, pub Interrupt);

impl Progress for StopAt {
    fn begin(&mut self, _: &str, _: Option<u64>, _: &str) {}
    fn update(&mut self, step: u64, _: &[(&str, f64)]) {
        if step >= self.0 {
            self.1.raise();
        }
    }
    fn message(&mut self, _: &str) {}
    fn end(&mut self) {}
}
