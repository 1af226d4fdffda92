//! `eval pairwise`: what judgements of pairs come to.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use russet_eval::pairwise::{Game, Judgements, LengthRow, PairwiseScores, PairwiseSettings, score};
use russet_eval::read_rows;
use serde_json::{Value, json};

use super::remark;
use super::save::{SaveArgs, Saved, not_onto};
use crate::app::{App, Said, Usage};

#[derive(Args)]
pub struct PairwiseArgs {
    /// Judgements: AlpacaEval's annotations, PandaLM's rows, or rows of `prompt`, `model_a`, `model_b`, `winner` (.json, .jsonl,
    /// plain or .zst)
    #[arg(long, value_name = "FILE")]
    judgements: PathBuf,
    /// How often games are resampled for the intervals
    #[arg(long, default_value_t = 1000)]
    rounds: usize,
    /// The same seed gives the same intervals
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// AlpacaEval's gamed baselines: rows of `preference` (0 to 1), `std_delta_len`, `instruction_difficulty`
    #[arg(long, value_name = "FILE")]
    gamed: Option<PathBuf>,
    /// Where to write what most annotators say of each of PandaLM's rows: `idx` and `label`
    #[arg(long, value_name = "FILE.jsonl")]
    labels: Option<PathBuf>,
    #[command(flatten)]
    pub save: SaveArgs,
}

pub fn run(app: &mut App, args: &PairwiseArgs) -> Result<Said> {
    let path = &args.judgements;
    crate::found::text(path)?;
    if let Some(labels) = &args.labels {
        not_onto("--labels", labels, &[path])?;
    }
    let judgements = Judgements::read(path)?;
    remark(
        app,
        path,
        &judgements.unjudged,
        "rows have no judgement and do not count",
    );
    remark(
        app,
        path,
        &judgements.repeated,
        "rows judge a prompt and models that an earlier row judges too, and count",
    );
    remark(app, path, &judgements.empty, "rows have an empty response");
    let gamed = args
        .gamed
        .as_deref()
        .map(gamed)
        .transpose()?
        .unwrap_or_default();
    let settings = PairwiseSettings {
        rounds: args.rounds,
        seed: args.seed,
    };
    let scores = score(&judgements, &gamed, &settings)?;
    if let Some(path) = &args.labels {
        if judgements.majority.is_empty() {
            let sentence = format!(
                "--labels {}: what most annotators say is told of PandaLM's rows alone, and these are of another form",
                path.display()
            );
            return Err(Usage(sentence).into());
        }
        write_labels(path, &judgements)?;
    }
    let mut json = serde_json::to_value(&scores)?;
    if !judgements.majority.is_empty() {
        json["majority"] = majority(&judgements);
    }
    let mut inputs = vec![("judgements", path.as_path())];
    inputs.extend(args.gamed.as_deref().map(|path| ("gamed", path)));
    args.save.save(
        app,
        &Saved {
            name: "pairwise",
            scores: &json,
            settings: json!({"rounds": args.rounds, "seed": args.seed}),
            inputs,
            rows: judgements.games.iter().map(row).collect(),
        },
    )?;
    Ok(Said::new(json, table(&scores)))
}

/// A game as the report shows it.
fn row(game: &Game) -> Value {
    let shown =
        |[one, two]: &[String; 2]| format!("[{}]\n{one}\n\n[{}]\n{two}", game.first, game.second);
    json!({"name": format!("{} | {}", game.first, game.second), "prompt": game.prompt.replace('\0', "\n"),
        "category": game.category, "response": game.responses.as_ref().map(shown),
        "note": format!("score of {}: {:.3}", game.second, game.score)})
}

fn gamed(path: &Path) -> Result<Vec<LengthRow>> {
    crate::found::text(path)?;
    let row = |row: russet_eval::Row| {
        let score = row.number("preference")?;
        if !(0.0..=1.0).contains(&score) {
            return Err(row.wrong(format!(
                "`preference` is {score}, but must be from 0 to 1 here"
            )));
        }
        let difficulty = row
            .get("instruction_difficulty")
            .map(|_| row.number("instruction_difficulty"));
        Ok(LengthRow {
            score,
            longer: row.number("std_delta_len")?,
            difficulty: difficulty.transpose()?,
        })
    };
    let rows: russet_eval::Result<_> = read_rows(path)?.into_iter().map(row).collect();
    Ok(rows?)
}

/// How many rows each label has.
fn majority(judgements: &Judgements) -> Value {
    let count = |label: Option<u8>| {
        let of = judgements
            .majority
            .iter()
            .filter(|(_, other)| *other == label);
        of.count()
    };
    json!({"0": count(Some(0)), "1": count(Some(1)), "2": count(Some(2)), "none": count(None)})
}

fn write_labels(path: &Path, judgements: &Judgements) -> Result<()> {
    let row =
        |(idx, label): &(Value, Option<u8>)| format!("{}\n", json!({"idx": idx, "label": label}));
    let rows: String = judgements.majority.iter().map(row).collect();
    std::fs::write(path, rows)
        .with_context(|| format!("{}: the labels cannot be written", path.display()))
}

fn table(scores: &PairwiseScores) -> String {
    let width = scores.models.keys().map(String::len).max().unwrap_or(0);
    let mut models: Vec<_> = scores.models.iter().collect();
    models.sort_by(|a, b| b.1.bt.total_cmp(&a.1.bt));
    let mut lines: Vec<String> = models
        .iter()
        .map(|(name, model)| {
            let [low, high] = model.win_rate_ci;
            let rates = &model.outcomes;
            let controlled = model
                .length_controlled_win_rate
                .map_or(String::new(), |rate| format!(", length-controlled {rate:.1} %"));
            format!(
                "{name:<width$}  wins {:.1} %, ties {:.1} %, losses {:.1} % of {}; win rate {:.1} % [{low:.1}, {high:.1}]{controlled}; \
                 Bradley-Terry {:+.2} [{:+.2}, {:+.2}], Elo {:.0} [{:.0}, {:.0}]",
                rates.win,
                rates.tie,
                rates.loss,
                rates.games,
                model.win_rate,
                model.bt,
                model.ci[0],
                model.ci[1],
                model.elo,
                model.elo_ci[0],
                model.elo_ci[1],
            )
        })
        .collect();
    if let Some(agreement) = &scores.agreement {
        for pair in &agreement.pairs {
            let kappa = pair
                .cohen
                .map_or("none".to_owned(), |kappa| format!("{kappa:.3}"));
            lines.push(format!(
                "{} and {}: alike in {:.1} % of {}, kappa {kappa}",
                pair.judges[0],
                pair.judges[1],
                100.0 * pair.observed,
                pair.items
            ));
        }
        if let Some(fleiss) = agreement.fleiss {
            lines.push(format!("all judges: Fleiss' kappa {fleiss:.3}"));
        }
    }
    lines.join("\n")
}
