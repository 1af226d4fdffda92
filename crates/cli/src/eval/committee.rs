//! `eval committee`: who teaches in the next round of rejection sampling.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use russet_eval::pairwise::{Judgements, PairwiseSettings, Seats, next_committee, score};
use serde_json::json;

use crate::app::Said;

#[derive(Args)]
pub struct CommitteeArgs {
    /// Judgements of candidates, as `eval pairwise` reads them: `judgements.jsonl` of `reject`, or of `eval judge`; may be given again
    #[arg(long, required = true, value_name = "FILE")]
    judgements: Vec<PathBuf>,
    /// The models of the latest round, separated by commas; all others are of earlier ones
    #[arg(long, required = true, value_delimiter = ',')]
    latest: Vec<String>,
    /// Seats of the committee
    #[arg(long, default_value_t = 4)]
    members: usize,
    /// Of these for the best of earlier rounds
    #[arg(long, default_value_t = 1)]
    earlier: usize,
    /// How often games are resampled for the intervals
    #[arg(long, default_value_t = 1000)]
    rounds: usize,
    /// The same seed gives the same intervals
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub fn run(args: &CommitteeArgs) -> Result<Said> {
    let mut all: Option<Judgements> = None;
    for path in &args.judgements {
        crate::found::text(path)?;
        let read = Judgements::read(path)?;
        match &mut all {
            None => all = Some(read),
            Some(all) => all.games.extend(read.games),
        }
    }
    let mut all = all.expect("clap wants one at least");
    all.votes.clear(); // who agrees with whom is not asked
    let settings = PairwiseSettings {
        rounds: args.rounds,
        seed: args.seed,
    };
    let scores = score(&all, &[], &settings)?;
    let latest: BTreeSet<&str> = args.latest.iter().map(String::as_str).collect();
    let seats = Seats {
        members: args.members,
        earlier: args.earlier,
    };
    let standings = next_committee(&scores, &latest, seats)?;
    let chosen = standings.iter().filter(|one| one.chosen);
    let chosen: Vec<&str> = chosen.map(|one| &one.name[..]).collect();
    let width = standings.iter().map(|one| one.name.len()).max();
    let lines: Vec<String> = standings
        .iter()
        .map(|one| {
            let why = match (one.chosen, one.latest, one.promising) {
                (true, true, _) => "chosen: of the latest round, and promising",
                (true, false, _) => "chosen: the best of earlier rounds",
                (false, true, true) => "promising, but the seats are taken",
                (false, true, false) => "of the latest round, and clearly behind the best",
                (false, false, _) => "of earlier rounds",
            };
            format!(
                "{:<width$}  Bradley-Terry {:+.2} [{:+.2}, {:+.2}]  {why}",
                one.name,
                one.bt,
                one.ci[0],
                one.ci[1],
                width = width.unwrap_or(0)
            )
        })
        .collect();
    let json = json!({"committee": chosen, "candidates": standings, "games": scores.games});
    Ok(Said::new(json, lines.join("\n")))
}
