//! Who teaches in the next round: AFM's iTeC takes the latest promising models and the best of earlier rounds (arXiv 2407.21075).
//!
//! ```text
//! order        by strength (Bradley-Terry) over all judgements together
//! earlier      the strongest so many that are not of the latest round
//! promising    of the latest round, whoever's interval is not wholly below that of the strongest of all
//! committee    those of earlier rounds, and the strongest promising ones for the rest of the seats
//! ```
//! How AFM tells what is promising is not published.

use std::collections::BTreeSet;

use serde::Serialize;

use super::PairwiseScores;
use crate::{Error, Result};

/// How many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seats {
    /// Of the committee.
    pub members: usize,
    /// Of these for models of earlier rounds.
    pub earlier: usize,
}

/// A candidate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Standing {
    /// Its name.
    pub name: String,
    /// Its strength.
    pub bt: f64,
    /// Of that.
    pub ci: [f64; 2],
    /// Whether it is of the latest round.
    pub latest: bool,
    /// Whether it may be the strongest of all, as far as the judgements tell.
    pub promising: bool,
    /// Whether it has a seat.
    pub chosen: bool,
}

/// All candidates, the strongest first, with who has a seat. Seats for which nobody is promising stay empty.
///
/// # Errors
/// [`Error::Setting`] when there are more seats for earlier rounds than seats, or none; [`Error::Study`] when a name of the latest
/// round is in no judgement.
pub fn next_committee(
    scores: &PairwiseScores,
    latest: &BTreeSet<&str>,
    seats: Seats,
) -> Result<Vec<Standing>> {
    if seats.members == 0 || seats.earlier > seats.members {
        return Err(Error::Setting {
            setting: "earlier",
            value: seats.earlier,
            wanted: format!("at most the members of the committee, {}", seats.members),
        });
    }
    if let Some(name) = latest
        .iter()
        .find(|name| !scores.models.contains_key(**name))
    {
        let known: Vec<&str> = scores.models.keys().map(String::as_str).collect();
        return Err(Error::Study(format!(
            "{name:?} is in no judgement; there are {}",
            known.join(", ")
        )));
    }
    let mut all: Vec<Standing> = scores
        .models
        .iter()
        .map(|(name, of)| Standing {
            name: name.clone(),
            bt: of.bt,
            ci: of.ci,
            latest: latest.contains(&name[..]),
            promising: false,
            chosen: false,
        })
        .collect();
    all.sort_by(|one, other| other.bt.total_cmp(&one.bt)); // of equal ones by name
    let floor = all.first().map_or(f64::NEG_INFINITY, |best| best.ci[0]);
    for one in &mut all {
        one.promising = one.ci[1] >= floor;
    }
    let mut free = seats.members;
    for one in all.iter_mut().filter(|one| !one.latest).take(seats.earlier) {
        one.chosen = true;
        free -= 1;
    }
    let promising = all.iter_mut().filter(|one| one.latest && one.promising);
    for one in promising.take(free) {
        one.chosen = true;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::super::{Form, Game, Judgements, PairwiseSettings, score};
    use super::*;

    /// Of a chain in which each model beats the next in so many of 40 games.
    fn chain(names: &[&str], wins: &[usize]) -> PairwiseScores {
        let mut games = Vec::new();
        for (pair, wins) in names.windows(2).zip(wins) {
            for number in 0..40 {
                games.push(Game {
                    prompt: number.to_string(),
                    first: pair[0].to_owned(),
                    second: pair[1].to_owned(),
                    score: f64::from(u8::from(number >= *wins)),
                    category: None,
                    lengths: None,
                    difficulty: None,
                    responses: None,
                });
            }
        }
        let judgements = Judgements {
            form: Form::Plain,
            games,
            votes: Vec::new(),
            majority: Vec::new(),
            unjudged: Vec::new(),
            repeated: Vec::new(),
            empty: Vec::new(),
        };
        let settings = PairwiseSettings {
            rounds: 50,
            seed: 0,
        };
        score(&judgements, &[], &settings).unwrap()
    }

    #[test]
    fn the_best_of_before_stays_and_the_promising_of_the_latest_join_it() {
        // new-1 is about as good as old-1; new-2 is far behind; old-2 between.
        let scores = chain(&["old-1", "new-1", "old-2", "new-2"], &[21, 30, 36]);
        let latest = BTreeSet::from(["new-1", "new-2"]);
        let seats = |members, earlier| Seats { members, earlier };
        let chosen = |seats| {
            let all = next_committee(&scores, &latest, seats).unwrap();
            let chosen = all.into_iter().filter(|one| one.chosen);
            chosen.map(|one| one.name).collect::<Vec<_>>()
        };
        assert_eq!(chosen(seats(2, 1)), ["old-1", "new-1"]);
        // Nobody takes a seat only because it is free.
        assert_eq!(chosen(seats(4, 1)), ["old-1", "new-1"]);
        assert_eq!(chosen(seats(4, 2)), ["old-1", "new-1", "old-2"]);
        assert_eq!(chosen(seats(1, 0)), ["new-1"]);
        assert!(next_committee(&scores, &latest, seats(1, 2)).is_err());
        let said = next_committee(&scores, &BTreeSet::from(["new-3"]), seats(2, 1));
        let said = said.unwrap_err().to_string();
        assert!(
            said.contains("\"new-3\"") && said.contains("old-2"),
            "{said}"
        );
    }
}
