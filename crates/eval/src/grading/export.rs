//! What graders said, as the rows that others read; and what it comes to so far.
//!
//! | file | a row | read by |
//! |---|---|---|
//! | `judgements.jsonl` | the plain form of [`pairwise`], the grader being the judge; `strength`, `grades_a`, `grades_b`, `shown` beside it | `eval pairwise` |
//! | `reward.jsonl` | `prompt`, `chosen`, `rejected`, `strength`, `chosen_grades`, `rejected_grades`; ties are in it nowhere | `reward`, `dpo` |
//! | `grades.jsonl` | `id`, `use_case`, `model`, `grader`, `grades` | `eval summaries` |

use std::collections::BTreeMap;
use std::path::Path;

use russet_model::reward::{GRADES, LEVELS};
use serde_json::{Value, json};

use super::{Answer, Asks, Better, Comparison, Grading, Levels, Said, Study, VERDICTS};
use crate::pairwise::{Judgements, PairwiseSettings, Vote, agreement, score};
use crate::rows::Row;
use crate::summaries::{grades_of, score_grades};
use crate::{Result, stats};

/// How often games are resampled for intervals on a page that is looked at again and again.
const ROUNDS: usize = 200;

/// A file to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Exported {
    /// What it is called.
    pub name: &'static str,
    /// Its rows.
    pub rows: Vec<Value>,
}

impl Exported {
    /// The rows, one a line.
    pub fn text(&self) -> String {
        self.rows.iter().map(|row| format!("{row}\n")).collect()
    }
}

impl Grading {
    /// The files, with the models' names. One may be without rows: of ties nobody learns a preference.
    ///
    /// # Errors
    /// When the study's file fails.
    pub fn export(&self) -> Result<Vec<Exported>> {
        let (study, said) = (self.study(), self.said()?);
        let file = |name, rows| Exported { name, rows };
        Ok(match study.asks {
            Asks::Pairs { .. } => vec![
                file("judgements.jsonl", judgements(study, &said, &study.models)),
                file("reward.jsonl", reward(study, &said)),
            ],
            Asks::Summaries { .. } => {
                vec![file("grades.jsonl", grades(study, &said, &study.models))]
            }
        })
    }
}

/// A comparison by models: the score of the second, and the grades of the first and of the second.
fn of_models(said: &Comparison, turned: bool) -> (f64, [&Levels; 2]) {
    let score = match (said.better, turned) {
        (Better::Neither, _) => 0.5,
        (Better::First, false) | (Better::Second, true) => 0.0,
        _ => 1.0,
    };
    let [one, two] = &said.grades;
    (score, if turned { [two, one] } else { [one, two] })
}

/// Everything said of pairs: whose responses, and what.
fn comparisons(said: &[Said]) -> impl Iterator<Item = (&Said, usize, &Comparison)> {
    said.iter().filter_map(|one| match &one.answer {
        Answer::Comparison(comparison) => Some((one, one.task.second?, comparison)),
        Answer::Verdict(_) => None,
    })
}

fn judgements(study: &Study, said: &[Said], names: &[String]) -> Vec<Value> {
    let row = |(one, second, comparison): (&Said, usize, &Comparison)| {
        let (score, [of_first, of_second]) = of_models(comparison, one.turned);
        let winner = match score {
            0.0 => "a",
            1.0 => "b",
            _ => "tie",
        };
        let item = &study.items[one.task.item];
        json!({
            "prompt": item.text, "category": item.category, "model_a": names[one.task.first], "model_b": names[second],
            "response_a": study.response(one.task, one.task.first), "response_b": study.response(one.task, second),
            "winner": winner, "strength": comparison.strength, "judge": one.grader, "grades_a": of_first, "grades_b": of_second,
            "shown": if one.turned { "ba" } else { "ab" }, "at": one.at,
        })
    };
    comparisons(said).map(row).collect()
}

fn reward(study: &Study, said: &[Said]) -> Vec<Value> {
    let row = |(one, second, comparison): (&Said, usize, &Comparison)| {
        let (score, mut grades) = of_models(comparison, one.turned);
        let mut sides = [one.task.first, second];
        if score == 0.5 {
            return None;
        }
        if score == 1.0 {
            sides.reverse();
            grades.reverse();
        }
        let [chosen, rejected] = sides.map(|model| study.response(one.task, model));
        Some(json!({
            "prompt": study.items[one.task.item].text, "chosen": chosen, "rejected": rejected, "strength": comparison.strength,
            "chosen_grades": grades[0], "rejected_grades": grades[1], "grader": one.grader,
        }))
    };
    comparisons(said).filter_map(row).collect()
}

fn grades(study: &Study, said: &[Said], names: &[String]) -> Vec<Value> {
    let row = |one: &Said| {
        let Answer::Verdict(verdict) = &one.answer else {
            return None;
        };
        let item = &study.items[one.task.item];
        Some(json!({
            "id": item.name, "use_case": item.category, "model": names[one.task.first], "grader": one.grader,
            "grades": verdict.grades, "at": one.at,
        }))
    };
    said.iter().filter_map(row).collect()
}

/// What was said comes to: scores of `names` and how far graders agree, by the readers and sums of `eval pairwise` and `eval
/// summaries`. Null where nothing was said.
///
/// # Errors
/// Those of the readers; none is known that a study's own rows bring about.
pub fn results(study: &Study, said: &[Said], names: &[String]) -> Result<Value> {
    if said.is_empty() {
        return Ok(Value::Null);
    }
    let rows = |name: &str, rows: Vec<Value>| -> Vec<Row> {
        let row = |(line, row)| match row {
            Value::Object(object) => Some(Row::new(Path::new(name), line, object)),
            _ => None,
        };
        (1..).zip(rows).filter_map(row).collect()
    };
    match &study.asks {
        Asks::Pairs { .. } => {
            let name = "judgements.jsonl";
            let rows = rows(name, judgements(study, said, names));
            let judgements = Judgements::of_rows(Path::new(name), &rows)?;
            let settings = PairwiseSettings {
                rounds: ROUNDS,
                seed: 0,
            };
            let scores = score(&judgements, &[], &settings)?;
            Ok(json!({"pairwise": scores, "grades": singly(said, names)}))
        }
        Asks::Summaries { dimensions } => {
            let name = "grades.jsonl";
            let rows = rows(name, grades(study, said, names));
            let scores = score_grades(&grades_of(Path::new(name), &rows)?);
            let agree = dimensions.iter().map(|dimension| {
                let vote = |one: &Said| {
                    let Answer::Verdict(verdict) = &one.answer else {
                        return None;
                    };
                    let said = verdict.grades.get(dimension)?;
                    let label = VERDICTS.iter().position(|verdict| verdict == said)?;
                    Some(Vote {
                        item: format!("{} {}", one.task.item, one.task.first),
                        judge: one.grader.clone(),
                        label: label as u8,
                    })
                };
                let votes: Vec<Vote> = said.iter().filter_map(vote).collect();
                (dimension.clone(), json!(agreement(&votes)))
            });
            let agree: BTreeMap<String, Value> = agree.collect();
            Ok(json!({"summaries": scores, "agreement": agree}))
        }
    }
}

/// Of each grade of single responses: the mean level of each model, how often it has each level, and how far graders agree on
/// responses that they met in the same pair.
fn singly(said: &[Said], names: &[String]) -> Value {
    let mut all = BTreeMap::new();
    for grade in GRADES {
        let mut models: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        let mut votes = Vec::new();
        for (one, second, comparison) in comparisons(said) {
            let (_, grades) = of_models(comparison, one.turned);
            for (model, levels) in [one.task.first, second].into_iter().zip(grades) {
                let Some(&level) = levels.get(grade) else {
                    continue;
                };
                models
                    .entry(&names[model])
                    .or_default()
                    .push(f64::from(level));
                votes.push(Vote {
                    item: format!("{} {} {second} {model}", one.task.item, one.task.first),
                    judge: one.grader.clone(),
                    label: level,
                });
            }
        }
        let scores: BTreeMap<&str, Value> = models
            .into_iter()
            .map(|(model, levels)| {
                let count = |level: usize| levels.iter().filter(|of| **of == level as f64).count();
                let counts: Vec<usize> = (0..LEVELS).map(count).collect();
                (
                    model,
                    json!({"mean": stats::mean(&levels), "levels": counts, "n": levels.len()}),
                )
            })
            .collect();
        if !scores.is_empty() {
            all.insert(
                grade,
                json!({"models": scores, "agreement": agreement(&votes)}),
            );
        }
    }
    json!(all)
}
