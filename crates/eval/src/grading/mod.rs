//! People grade responses: what is asked, in which order, what was said, and the files that come of it.
//!
//! ```text
//! responses ─▶ Study ─▶ order of each grader ─▶ page ─▶ Grading (a file of SQLite) ─▶ judgements.jsonl   eval pairwise
//!                                                                                     reward.jsonl       reward
//!                                                                                     grades.jsonl       eval summaries
//! ```
//! A [`Study`] asks one of two things. *Pairs*: which of two responses to a prompt is better, and by how much, and how good each is
//! by itself, by the names that a reward model is trained on. *Summaries*: five dimensions of each summary, good, neutral or poor.
//! [`Grading`] keeps it in a file together with every word of every grader; what it has answered to is on disk.
//!
//! Who made a response is nowhere in what a grader is shown: tasks are told apart by their place in the grader's own order. Left out: the
//! page itself and HTTP, which are `serve`'s, and who a grader really is: a name is taken at its word.

mod export;
mod order;
mod read;
mod store;

use std::collections::BTreeMap;

use russet_model::reward::{GRADES, LEVELS};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use export::{Exported, results};
pub use order::Turn;
pub use read::{Read, read_pairs, read_summaries};
pub use store::{Grading, Progress, Said, Shown};

/// How much better a response is, the most first, as rows of preferences have it.
pub const STRENGTHS: [&str; 4] = ["significantly", "better", "slightly", "negligibly"];

/// What a summary is graded by where nothing else is asked for.
pub const DIMENSIONS: [&str; 5] = [
    "composition",
    "comprehensiveness",
    "groundedness",
    "following_instructions",
    "harmlessness",
];

/// What a dimension may be.
pub const VERDICTS: [&str; 3] = ["good", "neutral", "poor"];

/// The most models of a study.
pub const MOST_MODELS: usize = 16;
/// The most tasks of a study.
pub const MOST_TASKS: usize = 100_000;
/// The most bytes of a prompt, a source or a response.
pub const MOST_BYTES: usize = 1 << 20;
/// The most characters of a grader's name.
pub const MOST_NAME: usize = 40;

/// Whether single responses are graded beside a comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Singly {
    /// They are not.
    None,
    /// As many grades as a grader likes to give.
    #[default]
    Optional,
    /// All of both responses.
    Required,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Asks {
    /// Which of two responses is better.
    Pairs {
        /// Whether each is graded too.
        grades: Singly,
    },
    /// How good a summary is.
    Summaries {
        /// Five names.
        dimensions: Vec<String>,
    },
}

/// A prompt, or a text to be summarised, and what models made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The prompt itself, or the text's id.
    pub name: String,
    /// What is shown: the prompt or the text.
    pub text: String,
    /// What kind of prompt it is, or what the summary is for.
    pub category: Option<String>,
    /// Of each model, where it has one.
    pub responses: Vec<Option<String>>,
}

/// What is to be graded, whoever grades it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Study {
    /// What is asked.
    pub asks: Asks,
    /// What orders follow from.
    pub seed: u64,
    /// Names, in the order of each item's responses.
    pub models: Vec<String>,
    /// Prompts or texts.
    pub items: Vec<Item>,
}

/// One question to a grader: of an item one response, or two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// Which item.
    pub item: usize,
    /// Whose response.
    pub first: usize,
    /// And whose beside it.
    pub second: Option<usize>,
}

impl Study {
    /// The tasks in the order of items and models: every two models of an item, or each one.
    pub fn tasks(&self) -> Vec<Task> {
        let mut tasks = Vec::new();
        for (item, of) in self.items.iter().enumerate() {
            let has = |model: &usize| of.responses[*model].is_some();
            for first in (0..self.models.len()).filter(has) {
                match self.asks {
                    Asks::Summaries { .. } => tasks.push(Task {
                        item,
                        first,
                        second: None,
                    }),
                    Asks::Pairs { .. } => {
                        let seconds = (first + 1..self.models.len()).filter(has);
                        tasks.extend(seconds.map(|second| Task {
                            item,
                            first,
                            second: Some(second),
                        }));
                    }
                }
            }
        }
        tasks
    }

    fn response(&self, task: Task, model: usize) -> &str {
        self.items[task.item].responses[model]
            .as_deref()
            .unwrap_or_default()
    }

    /// The responses of a task as they are shown: the second first where it is turned.
    fn shown(&self, task: Task, turned: bool) -> Vec<&str> {
        let mut shown = vec![self.response(task, task.first)];
        shown.extend(task.second.map(|second| self.response(task, second)));
        if turned {
            shown.reverse();
        }
        shown
    }

    /// What a page has to know to ask; no model is named.
    pub fn describe(&self) -> Value {
        match &self.asks {
            Asks::Pairs { grades } => {
                json!({"kind": "pairs", "singly": grades, "grades": GRADES, "levels": LEVELS,
                "strengths": STRENGTHS})
            }
            Asks::Summaries { dimensions } => {
                json!({"kind": "summaries", "dimensions": dimensions, "verdicts": VERDICTS})
            }
        }
    }

    /// Whether an answer is one to this task, as it was shown; a sentence where it is not.
    fn check(&self, task: Task, answer: &Value) -> Result<Answer, String> {
        let wrong = |error: serde_json::Error| format!("this is no answer: {error}");
        match &self.asks {
            Asks::Pairs { grades } => {
                let said = Comparison::deserialize(answer).map_err(wrong)?;
                let texts = self.shown(task, false);
                said.check(*grades, texts[0] == texts[1])?;
                Ok(Answer::Comparison(said))
            }
            Asks::Summaries { dimensions } => {
                let said = Verdict::deserialize(answer).map_err(wrong)?;
                said.check(dimensions)?;
                Ok(Answer::Verdict(said))
            }
        }
    }
}

/// What a grader says of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// Of two responses.
    Comparison(Comparison),
    /// Of a summary.
    Verdict(Verdict),
}

/// Which of the two responses on the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// The first one shown.
    First,
    /// The second one shown.
    Second,
    /// Both are as good.
    Neither,
}

/// Levels of single grades by name, 0 the worst.
pub type Levels = BTreeMap<String, u8>;

/// Two responses compared, as they were shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// Which is better.
    pub better: Better,
    /// By how much, one of [`STRENGTHS`]; of `neither` none.
    #[serde(default)]
    pub strength: Option<String>,
    /// Grades of the first response shown and of the second.
    #[serde(default)]
    pub grades: [Levels; 2],
}

impl Comparison {
    fn check(&self, singly: Singly, same: bool) -> Result<(), String> {
        match (self.better, self.strength.as_deref()) {
            (Better::Neither, Some(_)) => {
                return Err("neither is better, so there is no `strength`; leave it out".to_owned());
            }
            (Better::Neither, None) => {}
            (_, Some(strength)) if STRENGTHS.contains(&strength) => {}
            _ => {
                return Err(format!(
                    "`strength` must be one of {}",
                    STRENGTHS.join(", ")
                ));
            }
        }
        if same && self.better != Better::Neither {
            return Err(
                "both responses are the same text, so neither is better; say that they are equal"
                    .to_owned(),
            );
        }
        for (level, name) in self
            .grades
            .iter()
            .flatten()
            .map(|(name, level)| (level, name))
        {
            if !GRADES.contains(&&name[..]) || usize::from(*level) >= LEVELS {
                return Err(format!(
                    "`grades` may hold {}, each 0 to {}",
                    GRADES.join(", "),
                    LEVELS - 1
                ));
            }
        }
        let given: usize = self.grades.iter().map(BTreeMap::len).sum();
        match singly {
            Singly::None if given > 0 => {
                Err("this study asks for no grades of single responses".to_owned())
            }
            Singly::Required if given < 2 * GRADES.len() => Err(format!(
                "grade both responses by {}; {} grades are missing",
                GRADES.join(", "),
                2 * GRADES.len() - given
            )),
            _ => Ok(()),
        }
    }
}

/// A summary graded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// Each dimension: one of [`VERDICTS`].
    pub grades: BTreeMap<String, String>,
}

impl Verdict {
    fn check(&self, dimensions: &[String]) -> Result<(), String> {
        let all = self.grades.len() == dimensions.len()
            && dimensions.iter().all(|name| self.grades.contains_key(name));
        let known = self
            .grades
            .values()
            .all(|verdict| VERDICTS.contains(&&verdict[..]));
        match all && known {
            true => Ok(()),
            false => Err(format!(
                "`grades` must hold {}, each of them {}",
                dimensions.join(", "),
                VERDICTS.join(", ")
            )),
        }
    }
}

/// A grader's name as it is kept.
fn named(grader: &str) -> crate::Result<&str> {
    let name = grader.trim();
    let good = !name.is_empty()
        && name.chars().count() <= MOST_NAME
        && !name.chars().any(char::is_control);
    match good {
        true => Ok(name),
        false => Err(crate::Error::Answer(format!(
            "a grader's name has 1 to {MOST_NAME} characters, none of them a control character"
        ))),
    }
}

#[cfg(test)]
mod tests;
