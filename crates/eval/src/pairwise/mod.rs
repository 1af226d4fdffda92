//! Which of two responses is better: judgements of people or models, and what they come to.
//!
//! [`Judgements::read`] takes AlpacaEval's annotation files, PandaLM's rows of three annotators and a plain form of our own;
//! [`score`] gives each model's win rate with intervals, its strength by Bradley and Terry ("Rank Analysis of Incomplete Block
//! Designs", 1952) and by Elo, the win rate were all responses of one length (AlpacaEval 2, arXiv 2404.04475), the same by category,
//! and how far judges agree. [`judge`] asks a model; [`next_committee`] says who teaches in the next round.
//!
//! ```text
//! score of a game          1 the second is better, 0 the first, ½ a tie, or between
//! win rate of a model      mean of its scores              standard error   their deviation (n − 1) / √n
//! interval                 the middle 95 % of resampled games, those of one prompt drawn together
//! ```

mod agreement;
mod committee;
pub mod judge;
mod length;
mod read;
mod strength;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

pub use agreement::{Agreement, JudgePair, agreement, cohen, fleiss};
pub use committee::{Seats, Standing, next_committee};
pub use length::{LengthControlled, LengthRow, length_controlled};
pub use read::{Form, Game, Judgements, Vote};
pub use strength::{SCALE, bradley_terry};

use crate::stats;
use crate::{Error, Result};

/// How intervals are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairwiseSettings {
    /// How often games are resampled; at least 1.
    pub rounds: usize,
    /// What the draws follow from.
    pub seed: u64,
}

impl Default for PairwiseSettings {
    /// 1,000 rounds, seed 0.
    fn default() -> PairwiseSettings {
        PairwiseSettings {
            rounds: 1000,
            seed: 0,
        }
    }
}

/// What the judgements come to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PairwiseScores {
    /// By name.
    pub models: BTreeMap<String, ModelScores>,
    /// Of every two models that met.
    pub pairs: Vec<PairScores>,
    /// By category and name, where the judgements have categories.
    pub categories: BTreeMap<String, BTreeMap<String, Outcomes>>,
    /// Between judges, where there are several.
    pub agreement: Option<Agreement>,
    /// Games that counted.
    pub games: usize,
}

/// Wins, ties and losses, in per cent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Outcomes {
    /// Games.
    pub games: usize,
    /// Won, a score above ½.
    pub win: f64,
    /// Tied.
    pub tie: f64,
    /// Lost.
    pub loss: f64,
    /// The mean score.
    pub win_rate: f64,
}

/// A model's scores; rates in per cent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelScores {
    /// The mean of its scores.
    pub win_rate: f64,
    /// Of the win rate; none of one game.
    pub standard_error: Option<f64>,
    /// Its strength by Bradley and Terry, a natural logarithm; the mean of all models is 0.
    pub bt: f64,
    /// Of `bt`.
    pub ci: [f64; 2],
    /// Of the win rate.
    pub win_rate_ci: [f64; 2],
    /// Elo: the mean over orders of the games, 1000 the mean of all models.
    pub elo: f64,
    /// Of `elo`.
    pub elo_ci: [f64; 2],
    /// Wins, ties and losses.
    #[serde(flatten)]
    pub outcomes: Rates,
    /// Were all responses of one length: where it met one other model alone, and lengths are known.
    pub length_controlled_win_rate: Option<f64>,
    /// Of that.
    pub lc_standard_error: Option<f64>,
}

/// [`Outcomes`] with intervals.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// Games.
    pub games: usize,
    /// Won.
    pub win: f64,
    /// Tied.
    pub tie: f64,
    /// Lost.
    pub loss: f64,
    /// Of `win`.
    pub win_ci: [f64; 2],
    /// Of `tie`.
    pub tie_ci: [f64; 2],
    /// Of `loss`.
    pub loss_ci: [f64; 2],
}

/// Two models that met; the rates are the second's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PairScores {
    /// The first, in AlpacaEval's files the baseline.
    pub first: String,
    /// The second.
    pub second: String,
    /// Wins, ties and losses of the second.
    #[serde(flatten)]
    pub outcomes: Outcomes,
    /// Were all responses of one length, where lengths are known.
    pub length_controlled: Option<LengthControlled>,
}

/// A game seen by one of its models.
#[derive(Clone, Copy)]
struct Seen {
    model: usize,
    score: f64,
}

/// Games as numbers: what resampling works on.
struct Table {
    names: Vec<String>,
    /// (first, second, score)
    games: Vec<(usize, usize, f64)>,
    /// Games of each prompt: they are drawn together.
    prompts: Vec<Vec<usize>>,
}

impl Table {
    fn new(games: &[Game]) -> Table {
        let names: BTreeSet<&str> = games
            .iter()
            .flat_map(|game| [&game.first[..], &game.second])
            .collect();
        let places: BTreeMap<&str, usize> = names.iter().copied().zip(0..).collect();
        let mut prompts: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (place, game) in games.iter().enumerate() {
            prompts.entry(&game.prompt).or_default().push(place);
        }
        // In the order of the file, so that a file's name for a prompt decides no draw.
        let mut prompts: Vec<Vec<usize>> = prompts.into_values().collect();
        prompts.sort_unstable();
        let number = |game: &Game| {
            (
                places[&game.first[..]],
                places[&game.second[..]],
                game.score,
            )
        };
        Table {
            games: games.iter().map(number).collect(),
            prompts,
            names: names.into_iter().map(str::to_owned).collect(),
        }
    }

    /// Both views of a game; of a model against itself one, a tie.
    fn seen(&self, game: usize) -> impl Iterator<Item = Seen> {
        let (first, second, score) = self.games[game];
        let both = [
            (second, if first == second { 0.5 } else { score }),
            (first, 1.0 - score),
        ];
        let both = both.map(|(model, score)| Seen { model, score });
        both.into_iter().take(if first == second { 1 } else { 2 })
    }

    fn all(&self) -> impl Iterator<Item = usize> + Clone {
        0..self.games.len()
    }

    /// The games of a round of resampling.
    fn drawn(&self, seed: u64, round: u64) -> Vec<usize> {
        let prompts = stats::resample(seed, round, self.prompts.len());
        prompts
            .flat_map(|prompt| self.prompts[prompt].iter().copied())
            .collect()
    }

    /// Of each model: games, wins, ties, losses, summed score.
    fn tally(&self, games: impl Iterator<Item = usize>) -> Vec<[f64; 5]> {
        let mut tally = vec![[0.0; 5]; self.names.len()];
        for seen in games.flat_map(|game| self.seen(game)) {
            let counts = &mut tally[seen.model];
            counts[0] += 1.0;
            counts[outcome(seen.score)] += 1.0;
            counts[4] += seen.score;
        }
        tally
    }
}

/// 1 won, 2 tied, 3 lost.
fn outcome(score: f64) -> usize {
    match score.total_cmp(&0.5) {
        std::cmp::Ordering::Greater => 1,
        std::cmp::Ordering::Equal => 2,
        std::cmp::Ordering::Less => 3,
    }
}

fn outcomes(tally: &[f64; 5]) -> Outcomes {
    let [games, win, tie, loss, score] = *tally;
    let share = |count: f64| 100.0 * count / games.max(1.0);
    Outcomes {
        games: games as usize,
        win: share(win),
        tie: share(tie),
        loss: share(loss),
        win_rate: share(score),
    }
}

/// Scores judgements. `gamed` are rows of the baseline made longer and shorter, with which AlpacaEval 2 steadies its regression;
/// without them it is its `length_controlled_noreg`.
///
/// # Errors
/// [`Error::Setting`] when there are no rounds.
pub fn score(
    judgements: &Judgements,
    gamed: &[LengthRow],
    settings: &PairwiseSettings,
) -> Result<PairwiseScores> {
    let PairwiseSettings { rounds, seed } = *settings;
    if rounds == 0 {
        return Err(Error::Setting {
            setting: "rounds",
            value: 0,
            wanted: "at least 1".to_owned(),
        });
    }
    let table = Table::new(&judgements.games);
    let whole = table.tally(table.all());
    let bt = bradley_terry(table.names.len(), table.all().map(|game| table.games[game]));
    let mut draws = vec![vec![Vec::new(); 6]; table.names.len()];
    for round in 0..rounds as u64 {
        let drawn = table.drawn(seed, round);
        let strengths = bradley_terry(
            table.names.len(),
            drawn.iter().map(|&game| table.games[game]),
        );
        let ratings = strength::elo(&table.games, &drawn, table.names.len(), seed, round);
        for (model, tally) in table.tally(drawn.into_iter()).iter().enumerate() {
            draws[model][4].push(strengths[model]);
            draws[model][5].push(ratings[model]);
            if tally[0] > 0.0 {
                let Outcomes {
                    win,
                    tie,
                    loss,
                    win_rate,
                    ..
                } = outcomes(tally);
                for (draws, value) in draws[model].iter_mut().zip([win, tie, loss, win_rate]) {
                    draws.push(value);
                }
            }
        }
    }
    let mut scores = vec![Vec::new(); table.names.len()];
    for seen in table.all().flat_map(|game| table.seen(game)) {
        scores[seen.model].push(seen.score);
    }
    let pairs = pairs(&judgements.games, gamed)?;
    let mut models = BTreeMap::new();
    for (model, name) in table.names.iter().enumerate() {
        let whole = outcomes(&whole[model]);
        let elo = stats::mean(&draws[model][5]);
        let mut of = |what: usize, value: f64| match &mut draws[model][what] {
            none if none.is_empty() => [value, value],
            draws => stats::interval(draws),
        };
        let controlled = alone(&pairs, name);
        models.insert(
            name.clone(),
            ModelScores {
                win_rate: whole.win_rate,
                standard_error: stats::standard_error(&scores[model]).map(|error| 100.0 * error),
                bt: bt[model],
                ci: of(4, bt[model]),
                win_rate_ci: of(3, whole.win_rate),
                elo,
                elo_ci: of(5, elo),
                outcomes: Rates {
                    games: whole.games,
                    win: whole.win,
                    tie: whole.tie,
                    loss: whole.loss,
                    win_ci: of(0, whole.win),
                    tie_ci: of(1, whole.tie),
                    loss_ci: of(2, whole.loss),
                },
                length_controlled_win_rate: controlled.map(|(rate, _)| rate),
                lc_standard_error: controlled.and_then(|(_, error)| error),
            },
        );
    }
    Ok(PairwiseScores {
        models,
        pairs,
        categories: categories(&judgements.games),
        agreement: agreement(&judgements.votes),
        games: judgements.games.len(),
    })
}

/// The length-controlled win rate of a model that met one other alone, and its error.
fn alone(pairs: &[PairScores], name: &str) -> Option<(f64, Option<f64>)> {
    let mut met = pairs
        .iter()
        .filter(|pair| pair.first == name || pair.second == name);
    let (Some(pair), None) = (met.next(), met.next()) else {
        return None;
    };
    let controlled = pair.length_controlled.as_ref()?;
    let rate = match pair.second == name {
        true => controlled.win_rate,
        false => 100.0 - controlled.win_rate,
    };
    Some((rate, controlled.standard_error))
}

/// A game with the models in the order of their pair.
fn turned(game: &Game, first: &str) -> LengthRow {
    let same = game.first == first;
    let lengths = game
        .lengths
        .map(|[one, two]| if same { [one, two] } else { [two, one] });
    LengthRow {
        score: if same { game.score } else { 1.0 - game.score },
        longer: lengths.map_or(f64::NAN, |[one, two]| one as f64 - two as f64),
        difficulty: game.difficulty,
    }
}

fn pairs(games: &[Game], gamed: &[LengthRow]) -> Result<Vec<PairScores>> {
    // In the order in which two models first meet.
    let mut order: Vec<(&str, &str)> = Vec::new();
    let mut rows: BTreeMap<(&str, &str), Vec<LengthRow>> = BTreeMap::new();
    for game in games.iter().filter(|game| game.first != game.second) {
        let pair = (&game.first[..], &game.second[..]);
        let pair = match rows.contains_key(&(pair.1, pair.0)) {
            true => (pair.1, pair.0),
            false => pair,
        };
        let entry = rows.entry(pair).or_insert_with(|| {
            order.push(pair);
            Vec::new()
        });
        entry.push(turned(game, pair.0));
    }
    let pair = |(first, second): (&str, &str)| {
        let rows = &rows[&(first, second)];
        let mut tally = [0.0; 5];
        for row in rows {
            tally[0] += 1.0;
            tally[outcome(row.score)] += 1.0;
            tally[4] += row.score;
        }
        let known = rows.iter().all(|row| row.longer.is_finite());
        let length_controlled = match known && rows.len() >= length::FOLDS {
            true => Some(length_controlled(rows, gamed)?),
            false => None,
        };
        Ok(PairScores {
            first: first.to_owned(),
            second: second.to_owned(),
            outcomes: outcomes(&tally),
            length_controlled,
        })
    };
    order.into_iter().map(pair).collect()
}

fn categories(games: &[Game]) -> BTreeMap<String, BTreeMap<String, Outcomes>> {
    let mut by_category: BTreeMap<&str, Vec<Game>> = BTreeMap::new();
    for game in games {
        if let Some(category) = &game.category {
            by_category.entry(category).or_default().push(game.clone());
        }
    }
    let of = |games: Vec<Game>| {
        let table = Table::new(&games);
        let tally = table.tally(table.all());
        let named = table.names.iter().cloned();
        named.zip(tally.iter().map(outcomes)).collect()
    };
    by_category
        .into_iter()
        .map(|(category, games)| (category.to_owned(), of(games)))
        .collect()
}
