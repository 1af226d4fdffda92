//! Files of judgements, in three forms.
//!
//! | form | a row has |
//! |---|---|
//! | AlpacaEval's annotations | `generator_1`, `generator_2`, `preference` from 1 to 2 (0 a tie, null none); `instruction`, `output_1`, `output_2`, `annotator`, `instruction_difficulty` where known |
//! | PandaLM's | `cmp_key` (both models' names, an underscore between), `annotator1` to `annotator3` (1, 2, 0 a tie), `idx` |
//! | plain | `prompt`, `model_a`, `model_b`, `winner` (`a`, `b`, `tie`) or `preference`; `judge`, `category`, `response_a`, `response_b` where known |
//!
//! A judge who has seen a pair in both orders has judged it once, by the mean of both: a preference for a place is a tie.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::rows::{Row, beginning, read_rows, short};
use crate::{Error, Result};

/// Which form a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Annotations of AlpacaEval.
    AlpacaEval,
    /// Three annotators a row.
    PandaLm,
    /// Our own.
    Plain,
}

/// Two responses compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Game {
    /// What tells prompts apart.
    pub prompt: String,
    /// The first model, AlpacaEval's baseline.
    pub first: String,
    /// The second.
    pub second: String,
    /// 1 where the second is better, 0 the first.
    pub score: f64,
    /// What kind of prompt it is.
    pub category: Option<String>,
    /// Characters of both responses.
    pub lengths: Option<[usize; 2]>,
    /// The instruction's difficulty, as AlpacaEval 2 has it.
    pub difficulty: Option<f64>,
    /// Both responses, where the file has them.
    pub responses: Option<[String; 2]>,
}

/// What one judge said of one pair of responses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vote {
    /// The pair.
    pub item: String,
    /// Who.
    pub judge: String,
    /// 1 the first by name is better, 2 the second, 0 neither.
    pub label: u8,
}

/// A file's judgements.
#[derive(Clone, Debug)]
pub struct Judgements {
    /// What the file is.
    pub form: Form,
    /// What counts.
    pub games: Vec<Game>,
    /// Where judges are named: what each said.
    pub votes: Vec<Vote>,
    /// PandaLM's rows: their name as it stands there, and what most annotators say (none where all three differ).
    pub majority: Vec<(Value, Option<u8>)>,
    /// Lines without a judgement; they do not count.
    pub unjudged: Vec<u64>,
    /// Lines whose prompt and models an earlier line has too; they count.
    pub repeated: Vec<u64>,
    /// Lines with a response that is empty.
    pub empty: Vec<u64>,
}

/// One reading of a pair, before both orders are brought together.
struct Reading {
    game: Game,
    judge: Option<String>,
    line: u64,
}

impl Judgements {
    /// Reads a file: JSON Lines, or an array of JSON.
    ///
    /// # Errors
    /// [`Error::File`] when the file cannot be read; [`Error::Row`] when a row is malformed, lacks a key or is of another form than
    /// the first, when a judgement is out of range, or when a judge of the plain form judges the same responses in the same order
    /// again; [`Error::NoJudgements`] when there is none.
    pub fn read(path: &Path) -> Result<Judgements> {
        Judgements::of_rows(path, &read_rows(path)?)
    }

    /// The same of rows that were read, or that a file of this name will have.
    pub(crate) fn of_rows(path: &Path, rows: &[Row]) -> Result<Judgements> {
        let none = || Error::NoJudgements {
            path: PathBuf::from(path),
        };
        let form = form(rows.first().ok_or_else(none)?)?;
        let mut judgements = Judgements {
            form,
            games: Vec::new(),
            votes: Vec::new(),
            majority: Vec::new(),
            unjudged: Vec::new(),
            repeated: Vec::new(),
            empty: Vec::new(),
        };
        let (mut readings, mut items) = (Vec::new(), HashSet::new());
        for (number, row) in rows.iter().enumerate() {
            match form {
                Form::PandaLm => judgements.pandalm(row, number, &mut items)?,
                Form::AlpacaEval => {
                    let names = ["generator_1", "generator_2", "output_1", "output_2"];
                    let judge = ["annotator", "instruction"];
                    readings.extend(judgements.reading(row, number, names, judge)?);
                }
                Form::Plain => {
                    let names = ["model_a", "model_b", "response_a", "response_b"];
                    readings.extend(judgements.reading(row, number, names, ["judge", "prompt"])?);
                }
            }
        }
        judgements.bring_together(rows, readings)?;
        match (judgements.games.is_empty(), judgements.unjudged.len()) {
            (true, 0) => Err(none()),
            (true, unjudged) => Err(Error::Unreadable {
                path: PathBuf::from(path),
                problem: format!(
                    "none of its {unjudged} rows says who is better; `preference` is null"
                ),
            }),
            (false, _) => Ok(judgements),
        }
    }

    fn reading(
        &mut self,
        row: &Row,
        number: usize,
        [first, second, output_1, output_2]: [&str; 4],
        [judge, prompt]: [&str; 2],
    ) -> Result<Option<Reading>> {
        let (first, second) = (row.text(first)?, row.text(second)?);
        if first == second {
            return Err(row.wrong(format!("it sets {first} against itself; name two models")));
        }
        let Some(score) = score(row)? else {
            self.unjudged.push(row.line);
            return Ok(None);
        };
        let outputs = [row.text_or_none(output_1)?, row.text_or_none(output_2)?];
        if outputs
            .iter()
            .flatten()
            .any(|output| output.trim().is_empty())
        {
            self.empty.push(row.line);
        }
        let lengths = match outputs {
            [Some(one), Some(two)] => Some([one, two].map(|text| text.chars().count())),
            _ => None,
        };
        // A file of bare preferences has a prompt a row.
        let prompt = match (self.form, row.text_or_none(prompt)?) {
            (_, Some(prompt)) => prompt.to_owned(),
            (Form::Plain, None) => row.text(prompt)?.to_owned(),
            _ => format!("row {number}"), // not by line: an array may stand on one
        };
        let category = match row.text_or_none("category")? {
            None => row.text_or_none("dataset")?,
            some => some,
        };
        let difficulty = row
            .get("instruction_difficulty")
            .map(|_| row.number("instruction_difficulty"));
        let game = Game {
            prompt,
            first: first.to_owned(),
            second: second.to_owned(),
            score,
            category: category.map(str::to_owned),
            lengths,
            difficulty: difficulty.transpose()?,
            responses: both(outputs),
        };
        Ok(Some(Reading {
            game,
            judge: row.text_or_none(judge)?.map(str::to_owned),
            line: row.line,
        }))
    }

    /// Both orders of a judge's pair become one game of the plain form; AlpacaEval's rows stay as they are.
    fn bring_together(&mut self, rows: &[Row], readings: Vec<Reading>) -> Result<()> {
        type Key = (Option<String>, String, [String; 2]);
        let mut seen: HashMap<Key, Vec<(bool, u64, usize)>> = HashMap::new();
        let mut sums: Vec<(Reading, f64)> = Vec::new();
        for reading in readings {
            let game = &reading.game;
            let swapped = game.first > game.second;
            let mut names = [game.first.clone(), game.second.clone()];
            names.sort();
            let key = (reading.judge.clone(), game.prompt.clone(), names);
            let earlier = seen.entry(key).or_default();
            let same = earlier.iter().find(|(order, _, _)| *order == swapped);
            match (self.form, same, earlier.first()) {
                (Form::Plain, Some((_, line, _)), _) => {
                    let row = rows.iter().find(|row| row.line == reading.line);
                    return Err(row.expect("it was read from one").wrong(format!(
                        "the same judge has judged the same models on {:?} in the same order on line {line}; keep one",
                        beginning(&game.prompt)
                    )));
                }
                (Form::Plain, None, Some(&(_, line, place))) => {
                    // The other order: the mean of both, seen as the first had it.
                    earlier.push((swapped, line, place));
                    let (first, count) = &mut sums[place];
                    first.game.score += 1.0 - reading.game.score;
                    *count += 1.0;
                    continue;
                }
                (_, Some(_), _) => self.repeated.push(reading.line),
                _ => earlier.push((swapped, reading.line, sums.len())),
            }
            sums.push((reading, 1.0));
        }
        for (mut reading, count) in sums {
            reading.game.score /= count;
            let game = reading.game;
            if let Some(judge) = reading.judge {
                let (mut names, mut score) = ([&game.first[..], &game.second], game.score);
                if names[0] > names[1] {
                    names.reverse();
                    score = 1.0 - score;
                }
                self.votes.push(Vote {
                    item: [&game.prompt[..], names[0], names[1]].join("\0"),
                    judge,
                    label: label(score),
                });
            }
            self.games.push(game);
        }
        Ok(())
    }

    fn pandalm(&mut self, row: &Row, number: usize, items: &mut HashSet<String>) -> Result<()> {
        let models = row.text("cmp_key")?;
        let mut names = models.split('_');
        let (Some(first), Some(second), None) = (names.next(), names.next(), names.next()) else {
            return Err(row.wrong(format!(
                "`cmp_key` is {models:?}, but must be two names of models with one underscore between"
            )));
        };
        let item = row
            .name(&["idx"])
            .unwrap_or_else(|_| format!("row {number}"));
        let name = match row.get("idx") {
            Some(Value::Number(name)) => Value::from(name.clone()),
            _ => item.clone().into(),
        };
        if !items.insert(item.clone()) {
            return Err(row.wrong(format!(
                "its `idx` {item} is that of an earlier row; remove one"
            )));
        }
        let mut counts: BTreeMap<u8, usize> = BTreeMap::new();
        for judge in ["annotator1", "annotator2", "annotator3"] {
            let value = row.need(judge)?;
            let label = value.as_u64().filter(|label| *label <= 2);
            let label = label.ok_or_else(|| {
                row.wrong(format!(
                    "`{judge}` is {}, but must be 1 or 2 for the better response, or 0 for neither",
                    short(value)
                ))
            })? as u8;
            *counts.entry(label).or_default() += 1;
            self.votes.push(Vote {
                item: item.clone(),
                judge: judge.to_owned(),
                label,
            });
        }
        let majority = counts.into_iter().find(|(_, count)| *count > 1);
        let majority = majority.map(|(label, _)| label);
        // PandaLM's file has a response `true` that is no string.
        let said = |key: &str| -> Result<Option<String>> {
            Ok(match row.get(key) {
                Some(bare @ (Value::Bool(_) | Value::Number(_))) => Some(bare.to_string()),
                _ => row.text_or_none(key)?.map(str::to_owned),
            })
        };
        let outputs = [said("response1")?, said("response2")?];
        let outputs = outputs.each_ref().map(Option::as_deref);
        if outputs
            .iter()
            .flatten()
            .any(|output| output.trim().is_empty())
        {
            self.empty.push(row.line);
        }
        let prompt = match row.text_or_none("instruction")? {
            Some(instruction) => {
                let input = row.text_or_none("input")?.unwrap_or_default();
                format!("{instruction}\0{input}")
            }
            None => item.clone(),
        };
        self.games.push(Game {
            prompt,
            first: first.to_owned(),
            second: second.to_owned(),
            score: match majority {
                Some(1) => 0.0,
                Some(2) => 1.0,
                _ => 0.5,
            },
            category: row.text_or_none("motivation_app")?.map(str::to_owned),
            lengths: match outputs {
                [Some(one), Some(two)] => Some([one, two].map(|text| text.chars().count())),
                _ => None,
            },
            difficulty: None,
            responses: both(outputs),
        });
        self.majority.push((name, majority));
        Ok(())
    }
}

fn both(outputs: [Option<&str>; 2]) -> Option<[String; 2]> {
    let [one, two] = outputs;
    Some([one?.to_owned(), two?.to_owned()])
}

fn label(score: f64) -> u8 {
    match score.total_cmp(&0.5) {
        std::cmp::Ordering::Less => 1,
        std::cmp::Ordering::Greater => 2,
        std::cmp::Ordering::Equal => 0,
    }
}

fn form(row: &Row) -> Result<Form> {
    let forms = [
        ("generator_1", Form::AlpacaEval),
        ("annotator1", Form::PandaLm),
        ("model_a", Form::Plain),
    ];
    let found = forms.iter().find(|(key, _)| row.get(key).is_some());
    found.map(|(_, form)| *form).ok_or_else(|| {
        row.wrong(
            "it is no judgement: give `generator_1`, `generator_2`, `preference` (AlpacaEval), `cmp_key`, `annotator1`, \
             `annotator2`, `annotator3` (PandaLM), or `prompt`, `model_a`, `model_b`, `winner`",
        )
    })
}

/// How much better the second is; none where nobody has judged.
fn score(row: &Row) -> Result<Option<f64>> {
    if row.get("winner").is_some() {
        let winner = row.text("winner")?;
        let score = match winner {
            // A capital letter may be a model's own name.
            "a" | "model_a" => 0.0,
            "b" | "model_b" => 1.0,
            "tie" => 0.5,
            _ => {
                return Err(row.wrong(format!(
                    "`winner` is {winner:?}, but must be `a`, `b` or `tie`"
                )));
            }
        };
        // Where both are there they say the same, or one of them is a mistake.
        return match preferred(row)? {
            Some(other) if label(other) != label(score) => Err(row.wrong(format!(
                "`winner` is {winner:?}, but `preference` says otherwise; keep the one that is meant"
            ))),
            _ => Ok(Some(score)),
        };
    }
    if !row.object.contains_key("preference") {
        row.need(match row.get("model_a") {
            Some(_) => "winner",
            None => "preference",
        })?;
    }
    preferred(row)
}

/// What `preference` says, where it says something.
fn preferred(row: &Row) -> Result<Option<f64>> {
    if row.get("preference").is_none() {
        return Ok(None);
    }
    match row.number("preference")? {
        0.0 => Ok(Some(0.5)),
        preference if (1.0..=2.0).contains(&preference) => Ok(Some(preference - 1.0)),
        preference => Err(row.wrong(format!(
            "`preference` is {preference}, but must be from 1, the first, to 2, the second; 1.5 or 0 is a tie"
        ))),
    }
}
