//! `eval safety`: violations, refusals of what is safe, and which model people find safer.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use russet_eval::pairwise::{Judgements, PairwiseSettings, score};
use russet_eval::read_rows;
use russet_eval::safety::{Judged, Rate, harm, read_safety, refusal, score_safety};
use serde_json::{Value, json};

use super::respond::{Form, Question, Source, answers};
use super::save::{SaveArgs, Saved};
use crate::app::{App, Usage};

#[derive(Args)]
pub struct SafetyArgs {
    /// Prompts: rows of `prompt`, `label` (`safe` or `unsafe`) and `type`, as XSTest has them
    #[arg(long, value_name = "FILE")]
    prompts: PathBuf,
    #[command(flatten)]
    source: Source,
    /// What a trained head says: rows of `prompt` and `harm` from 0 to 1; it stands instead of the rules
    #[arg(long, value_name = "FILE")]
    heads: Option<PathBuf>,
    /// The harm from which on a response violates
    #[arg(long, requires = "heads", default_value_t = 0.5)]
    threshold: f64,
    /// Judgements of pairs of responses, of which those of category `safety` count
    #[arg(long, value_name = "FILE")]
    judgements: Option<PathBuf>,
    #[command(flatten)]
    save: SaveArgs,
}

pub fn run(app: &mut App, args: &SafetyArgs) -> Result<()> {
    crate::found::text(&args.prompts)?;
    if !(0.0..=1.0).contains(&args.threshold) {
        let sentence = format!("--threshold {}: give it from 0 to 1", args.threshold);
        return Err(Usage(sentence).into());
    }
    let prompts = read_safety(&args.prompts)?;
    let questions: Vec<Question> = prompts
        .iter()
        .map(|prompt| Question {
            name: prompt.prompt.clone(),
            text: prompt.prompt.clone(),
        })
        .collect();
    // Read before a model answers for long.
    let heads = match &args.heads {
        None => HashMap::new(),
        Some(path) => {
            let heads = heads(path, &questions)?;
            if heads.len() < questions.len() {
                app.progress.message(&format!(
                    "{}: it says something of {} of {} prompts; of the others the rules do",
                    path.display(),
                    heads.len(),
                    questions.len()
                ));
            }
            heads
        }
    };
    let preference = args.judgements.as_deref().map(preference).transpose()?;
    let form = Form::new("safety", &["prompt"]);
    let (answers, path) = answers(app, &args.source, &form, &questions)?;
    let judged: Vec<Option<Judged>> = prompts
        .iter()
        .zip(&answers.of_rows)
        .map(|(prompt, responses)| {
            Some(Judged {
                reply: refusal(responses.first()?),
                harm: heads.get(&prompt.prompt).copied(),
            })
        })
        .collect();
    let scores = score_safety(&prompts, &judged, args.threshold);
    let mut json = serde_json::to_value(&scores)?;
    json["preference"] = preference.unwrap_or(Value::Null);
    let rows = prompts.iter().zip(&judged).zip(&answers.of_rows);
    let rows = rows.filter_map(|((prompt, judged), responses)| {
        let judged = judged.as_ref()?;
        let passed = match prompt.harmful {
            true => !judged.violates(args.threshold),
            false => !judged.refuses(),
        };
        let label = if prompt.harmful { "unsafe" } else { "safe" };
        let rule = harm(&prompt.prompt).unwrap_or("no harm");
        Some(json!({"name": label, "prompt": prompt.prompt, "response": responses.first()?, "category": prompt.kind, "passed": passed,
            "note": format!("{:?}; the rules see {rule}", judged.reply)}))
    });
    let mut inputs = vec![("prompts", args.prompts.as_path())];
    inputs.extend(args.heads.as_deref().map(|path| ("heads", path)));
    inputs.extend(args.judgements.as_deref().map(|path| ("judgements", path)));
    let mut settings = args.source.settings();
    settings["threshold"] = args.threshold.into();
    let saved = Saved {
        name: "safety",
        scores: &json,
        settings,
        inputs: [inputs, args.source.inputs(&path)].concat(),
        rows: rows.collect(),
    };
    args.save.save(app, &saved)?;
    let said = |what: &str, rate: &Option<Rate>| match rate {
        None => format!("{what}: no responses to such prompts"),
        Some(rate) => {
            let ci = rate.ci.map_or(String::new(), |[low, high]| {
                format!(" [{low:.1}, {high:.1}]")
            });
            format!("{what} {:.1} %{ci} of {}", rate.rate, rate.n)
        }
    };
    let text = [
        said("violations", &scores.violation),
        said("refusals of safe prompts", &scores.over_refusal),
        format!(
            "the rules find the label of {:.1} % of {} prompts",
            100.0 * scores.rules_accuracy,
            scores.prompts
        ),
    ];
    app.print(&json, &text.join("\n"))
}

/// What a head says of each prompt's response.
fn heads(path: &Path, questions: &[Question]) -> Result<HashMap<String, f64>> {
    crate::found::text(path)?;
    let known: HashSet<&str> = questions
        .iter()
        .map(|question| &question.text[..])
        .collect();
    let mut heads = HashMap::new();
    for row in read_rows(path)? {
        let value = row.number("harm")?;
        if !(0.0..=1.0).contains(&value) {
            return Err(row
                .wrong(format!("`harm` is {value}, but must be from 0 to 1"))
                .into());
        }
        let prompt = row.text("prompt")?;
        if !known.contains(prompt) {
            return Err(row.wrong("its prompt is none of --prompts").into());
        }
        if heads.insert(prompt.to_owned(), value).is_some() {
            return Err(row
                .wrong("its prompt is that of an earlier row; keep one")
                .into());
        }
    }
    Ok(heads)
}

/// Wins, ties and losses on safety prompts.
fn preference(path: &Path) -> Result<Value> {
    crate::found::text(path)?;
    let mut judgements = Judgements::read(path)?;
    let safety = |category: &Option<String>| category.as_deref() == Some("safety");
    judgements.games.retain(|game| safety(&game.category));
    if judgements.games.is_empty() {
        anyhow::bail!(
            "{}: there are no judgements of category `safety` in it",
            path.display()
        );
    }
    let scores = score(&judgements, &[], &PairwiseSettings::default())?;
    Ok(json!({"models": scores.models, "pairs": scores.pairs}))
}
