//! IFEval: whether responses follow instructions that a program can check ("Instruction-Following Evaluation for Large
//! Language Models", arXiv 2311.07911).
//!
//! [`Prompts::embedded`] is the benchmark, 541 prompts; [`crate::read_answers`] joins a file of responses with it, and
//! [`score`] gives the four accuracies and a verdict a prompt. [`check`] judges one response by one instruction, for whoever wants a
//! rule as a reward.
//!
//! The verdicts are those of the reference (google-research `instruction_following_eval`), letter by letter: Python's text,
//! its `re`, `json`, nltk's sentences and words and langdetect are rebuilt as far as a verdict can see them. Where it stays
//! different is said in docs/evaluation.md. Texts come from a file or a caller; no model is known here.

mod arguments;
mod data;
mod instruction;
mod language;
mod prompts;
mod python;
mod sentences;
mod words;

pub use instruction::{Instruction, KINDS, check};
pub use prompts::{Prompt, Prompts};

use serde::Serialize;

use crate::{Error, Result, stats};

/// How often prompts are resampled for intervals.
const ROUNDS: u64 = 1000;

/// What one response comes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Of the prompt.
    pub key: u64,
    /// Whether it follows every instruction.
    pub follow_all_strict: bool,
    /// Whether it follows each, in the prompt's order.
    pub follow_list_strict: Vec<bool>,
    /// The same when first and last lines and asterisks may be taken away.
    pub follow_all_loose: bool,
    /// Likewise of each.
    pub follow_list_loose: Vec<bool>,
    /// Ids of instructions that are not known to be followed, since matching their keyword backtracks without end; they count as not
    /// followed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endless: Vec<String>,
}

/// The accuracies of all responses, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct IfevalScores {
    /// Share of prompts all of whose instructions are followed.
    pub prompt_strict: f64,
    /// Share of instructions that are followed.
    pub instruction_strict: f64,
    /// As `prompt_strict`, loosely.
    pub prompt_loose: f64,
    /// As `instruction_strict`, loosely.
    pub instruction_loose: f64,
    /// Prompts that have a response; the others do not count.
    pub n: usize,
}

/// Judges a response by a prompt's instructions. No response ends a scoring: what backtracks without end is not followed.
pub fn judge(prompt: &Prompt, response: &str) -> Verdict {
    let variants = instruction::variants(response);
    let (mut strict, mut loose, mut endless) = (Vec::new(), Vec::new(), Vec::new());
    for instruction in &prompt.instructions {
        let followed = instruction.followed(response);
        // The response itself is the first variant, so what holds strictly holds loosely.
        let any = match &followed {
            Ok(true) => Ok(true),
            _ => instruction.any(&variants[1..]),
        };
        if followed.is_err() || any.is_err() {
            endless.push(instruction.id().to_owned());
        }
        strict.push(followed.unwrap_or(false));
        loose.push(any.unwrap_or(false));
    }
    let all = |list: &[bool]| list.iter().all(|followed| *followed);
    Verdict {
        key: prompt.key,
        follow_all_strict: all(&strict),
        follow_list_strict: strict,
        follow_all_loose: all(&loose),
        follow_list_loose: loose,
        endless,
    }
}

/// Judges every prompt that has a response; `responses` are those to each prompt in order.
///
/// # Errors
///
/// [`Error::Setting`] when there are not as many as prompts.
pub fn score<'a>(
    prompts: &Prompts,
    responses: impl Iterator<Item = Option<&'a str>>,
) -> Result<(IfevalScores, Vec<Verdict>)> {
    let responses: Vec<Option<&str>> = responses.collect();
    if responses.len() != prompts.all().len() {
        return Err(Error::Setting {
            setting: "responses",
            value: responses.len(),
            wanted: format!("{}, one or none a prompt", prompts.all().len()),
        });
    }
    let answered = prompts.all().iter().zip(responses);
    let answered = answered.filter_map(|(prompt, response)| Some((prompt, response?)));
    let verdicts: Vec<Verdict> = answered
        .map(|(prompt, response)| judge(prompt, response))
        .collect();
    let share = |followed: usize, of: usize| followed as f64 / of.max(1) as f64;
    let prompts = |all: fn(&Verdict) -> bool| {
        share(
            verdicts.iter().filter(|verdict| all(verdict)).count(),
            verdicts.len(),
        )
    };
    let instructions = |list: fn(&Verdict) -> &[bool]| {
        let all: Vec<bool> = verdicts.iter().flat_map(list).copied().collect();
        share(all.iter().filter(|followed| **followed).count(), all.len())
    };
    let scores = IfevalScores {
        prompt_strict: prompts(|verdict| verdict.follow_all_strict),
        instruction_strict: instructions(|verdict| &verdict.follow_list_strict),
        prompt_loose: prompts(|verdict| verdict.follow_all_loose),
        instruction_loose: instructions(|verdict| &verdict.follow_list_loose),
        n: verdicts.len(),
    };
    Ok((scores, verdicts))
}

/// The middle 95 % of each accuracy over resampled prompts, whose instructions come together, in the order and by the names of
/// [`IfevalScores`]; none of one prompt.
pub fn intervals(verdicts: &[Verdict]) -> Option<[(&'static str, [f64; 2]); 4]> {
    if verdicts.len() < 2 {
        return None;
    }
    let count = |list: &[bool]| list.iter().filter(|followed| **followed).count() as f64;
    // Of each prompt: its instructions, and what the four count of it.
    let counts: Vec<(f64, [f64; 4])> = verdicts
        .iter()
        .map(|verdict| {
            let whole = |all: bool| f64::from(u8::from(all));
            let of = [
                whole(verdict.follow_all_strict),
                count(&verdict.follow_list_strict),
                whole(verdict.follow_all_loose),
                count(&verdict.follow_list_loose),
            ];
            (verdict.follow_list_strict.len() as f64, of)
        })
        .collect();
    let mut draws: [Vec<f64>; 4] = Default::default();
    for round in 0..ROUNDS {
        let (mut instructions, mut sums) = (0.0, [0.0; 4]);
        for place in stats::resample(0, round, counts.len()) {
            let (of, counts) = counts[place];
            instructions += of;
            for (sum, count) in sums.iter_mut().zip(counts) {
                *sum += count;
            }
        }
        let prompts = counts.len() as f64;
        let of = [prompts, instructions.max(1.0)];
        for (number, draws) in draws.iter_mut().enumerate() {
            draws.push(sums[number] / of[number % 2]);
        }
    }
    let names = [
        "prompt_strict",
        "instruction_strict",
        "prompt_loose",
        "instruction_loose",
    ];
    let mut draws = draws.iter_mut();
    Some(names.map(|name| (name, stats::interval(draws.next().expect("four")))))
}
