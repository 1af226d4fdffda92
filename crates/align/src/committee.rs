//! Rejection sampling with a committee of teachers: AFM's iTeC (arXiv 2407.21075), one round of it.
//!
//! ```text
//!            ┌─ member 1 ─ K answers ─┐
//! prompts ───┤  …                     ├─▶ scores ─▶ rank of each prompt ─▶ filters, duplicates, caps ─▶ conversations (`sft`)
//!            └─ member M ─ K answers ─┘                                                             └─▶ preferences (`dpo`)
//! ```
//! The best answer is chosen prompt by prompt, not by the best member: a member that is weaker all in all is the best teacher of what
//! it does best.
//!
//! - [`Plan`] is a checked recipe with its prompts. It says what is asked ([`Question`]) and which seed an answer has.
//! - [`Judge`] says what answers are worth: a reward model, rules, or a sum of them ([`crate::rewards`]).
//! - [`select`] and [`pairs`] say what is kept, as functions of texts and scores.
//! - [`rows`] writes what is learnt from.
//!
//! Who answers is not known here: checkpoints, packages and servers are the caller's, and so is where answers lie meanwhile.

pub mod rows;
mod select;
pub mod settings;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;

use russet_artifact::{Inputs, Recipe};
use russet_kernels::random;
use russet_tensor::Ctx;
use russet_train::{Result, TrainError};
use serde::Serialize;
use serde_json::{Value, json};

pub use select::{Candidate, Fate, Verdict, pairs, repetition, select, similarity, words};
pub use settings::Settings;

use crate::rewards::{Answer, ModelReward, Reward, Rules, Sum, reward_inputs, rules, sum};
use crate::rows::{Asked, read_checked};

/// A stream of random numbers that belongs to a run's seed.
const DRAWN: u64 = 0x434f_4d4d_4954_5445;

/// Where the inputs of a recipe lie.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The files of prompts.
    pub prompts: Vec<PathBuf>,
    /// The reward model: a checkpoint with a reward head, or the base of `reward_adapter`.
    pub reward: Option<PathBuf>,
    /// An adapter with a reward head.
    pub reward_adapter: Option<PathBuf>,
}

/// Something that the committee is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// What was said so far.
    pub asked: Asked,
    /// What tells it apart from the others: the text of a single message, else all messages and tools as JSON.
    pub name: String,
    /// Its file, by number, and its line.
    pub place: (usize, u64),
}

/// What files of prompts came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Prompts that are asked.
    pub prompts: u64,
    /// Rows that cannot be read or judged, or ask what an earlier one asks, and are left out.
    pub malformed: u64,
}

/// A checked recipe with its prompts.
pub struct Plan {
    settings: Settings,
    sources: Sources,
    questions: Vec<Question>,
    counts: Counts,
    inputs: Inputs,
    rules: Sum,
}

impl Plan {
    /// Checks settings for so many members and reads the prompts.
    ///
    /// # Errors
    /// When a setting cannot be, a row cannot be read or judged, or two ask the same.
    pub fn new(
        settings: Settings,
        members: usize,
        sources: Sources,
        known: &dyn Rules,
    ) -> Result<Plan> {
        settings.check(members)?;
        let mut inputs = reward_inputs(
            Inputs::new(),
            settings.asks_model(),
            sources.reward.as_deref(),
            sources.reward_adapter.as_deref(),
        )?;
        for (number, file) in sources.prompts.iter().enumerate() {
            inputs = inputs.path(&format!("prompts-{number}"), file)?;
        }
        let rules = rules(&settings.reject.rewards, known, &settings::KEYS)?;
        let mut seen: BTreeMap<String, ()> = BTreeMap::new();
        let check = |asked: &Asked| {
            rules.check(asked)?;
            let name = name(asked);
            match seen.insert(name.clone(), ()) {
                None => Ok(name),
                Some(()) => Err("it asks what an earlier row asks".to_owned()),
            }
        };
        let skips = settings.data.skip_malformed;
        let (read, malformed) = read_checked(&sources.prompts, skips, check)?;
        let questions: Vec<Question> = read
            .into_iter()
            .map(|(place, asked, name)| Question { asked, name, place })
            .collect();
        if let (true, Some(file)) = (questions.is_empty(), sources.prompts.first()) {
            return Err(TrainError::Data {
                place: file.clone(),
                problem: format!(
                    "no prompt is left of {malformed} rows; leave `data.skip_malformed` out to see why"
                ),
            });
        }
        let counts = Counts {
            prompts: questions.len() as u64,
            malformed,
        };
        Ok(Plan {
            settings,
            sources,
            questions,
            counts,
            inputs,
            rules,
        })
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The settings that the result is a function of: how many answers are made at once is not among them, and what lies behind the
    /// names of files is in [`Plan::inputs`].
    ///
    /// # Errors
    /// When they have no JSON form.
    pub fn key(&self) -> Result<Value> {
        let mut json = Recipe::resolved_json(&self.settings)?;
        for (table, key) in [("reject", "slots"), ("data", "prompts")] {
            if let Some(table) = json.get_mut(table).and_then(Value::as_object_mut) {
                table.remove(key);
            }
        }
        Ok(json)
    }

    /// What is asked.
    pub fn questions(&self) -> &[Question] {
        &self.questions
    }

    /// What the files came to.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The reward model and the files of prompts.
    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// Opens what judges.
    ///
    /// # Errors
    /// When the reward model is none.
    pub fn judge(&self) -> Result<Judge<'_>> {
        let open = |folder: &PathBuf| -> Result<(f64, ModelReward)> {
            let model = ModelReward::open(folder, self.sources.reward_adapter.as_deref())?;
            let settings = self.settings.reject.rewards.iter();
            let of_model = settings.filter(|reward| reward.kind == "model");
            Ok((of_model.map(|reward| reward.weight).sum(), model))
        };
        Ok(Judge {
            rules: &self.rules,
            model: self.sources.reward.as_ref().map(open).transpose()?,
        })
    }
}

/// The seed of a member's first answer to a prompt; that of each further one is the next number. It follows from the member's name and
/// not from its place, so that another member changes no answer; and it has 31 bits, which every server takes.
pub fn seed(seed: u64, member: &str, prompt: usize) -> u64 {
    let stream = member.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3) // FNV-1a
    });
    random::hash(seed ^ DRAWN, stream, prompt as u64) >> 33
}

/// What tells a prompt apart.
fn name(asked: &Asked) -> String {
    let conversation = &asked.conversation;
    match &conversation.messages[..] {
        [only] if conversation.tools.is_empty() && only["role"] == "user" => {
            only["content"].as_str().unwrap_or_default().to_owned()
        }
        messages => json!({"messages": messages, "tools": conversation.tools}).to_string(),
    }
}

/// Says what answers are worth.
pub struct Judge<'a> {
    rules: &'a Sum,
    /// With its weight.
    model: Option<(f64, ModelReward)>,
}

impl Judge<'_> {
    /// The score of each answer; none of one that is longer than the reward model reads.
    ///
    /// # Errors
    /// A sentence, when one cannot be judged.
    pub fn scores(
        &self,
        ctx: &mut Ctx,
        answers: &[Answer],
    ) -> std::result::Result<Vec<Option<f64>>, String> {
        let rules = self.rules.0.iter().map(|(weight, rule)| (*weight, &**rule));
        let model = self.model.iter();
        let model = model.map(|(weight, model)| (*weight, model as &dyn Reward));
        let rewards: Vec<(f64, &dyn Reward)> = rules.chain(model).collect();
        let mut taken = Vec::new();
        for answer in answers {
            let mut takes = true;
            for (_, reward) in &rewards {
                takes &= reward.takes(answer)?;
            }
            taken.push(takes);
        }
        let read: Vec<Answer> = answers
            .iter()
            .zip(&taken)
            .filter(|(_, takes)| **takes)
            .map(|(answer, _)| *answer)
            .collect();
        let mut scores = sum(ctx, &rewards, &read)?.into_iter();
        let score = |takes: bool| takes.then(|| scores.next()).flatten();
        Ok(taken.into_iter().map(score).collect())
    }
}
