//! `eval choice`: HellaSwag, ARC, MMLU and their like, by likelihood.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use russet_eval::choice::{
    ChoiceQuestion, ChoiceScores, Continuation, Recorded, continuation, log_likelihoods,
    read_questions, read_recorded, score_choices,
};
use russet_tensor::Ctx;
use russet_tokenizer::Tokenizer;
use serde_json::{Value, json};

use super::respond::{Form, Kept, Question, about, keep};
use super::save::{SaveArgs, Saved, plain_name, source};
use crate::app::{App, Interrupted, Model, Said, Usage};

/// Questions between two looks at the wish to stop; what a killed run has lost at most.
const CHUNK: usize = 8;

/// Tokens of one forward pass.
const PASS_TOKENS: usize = 2048;

#[derive(Args)]
pub struct ChoiceArgs {
    /// Questions of HellaSwag, ARC or MMLU, or rows of `context`, `choices`, `answer` (.json, .jsonl, plain or packed)
    #[arg(long, value_name = "FILE")]
    task: PathBuf,
    /// What was recorded: rows of `id` and `log_probs` of each choice, or a `response` that names one
    #[arg(
        long,
        conflicts_with = "model",
        required_unless_present = "model",
        value_name = "FILE"
    )]
    responses: Option<PathBuf>,
    /// A checkpoint or package whose likelihoods decide
    #[arg(long)]
    model: Option<PathBuf>,
    /// An adapter (PEFT folder) to put onto the model
    #[arg(long, conflicts_with = "responses")]
    adapter: Option<PathBuf>,
    /// Where the likelihoods go, and where they are gone on with (default: the folder's name and the task's, in the working directory)
    #[arg(long, conflicts_with = "responses", value_name = "FILE.jsonl")]
    keep: Option<PathBuf>,
    #[command(flatten)]
    save: SaveArgs,
}

pub fn run(app: &mut App, args: &ChoiceArgs) -> Result<Said> {
    crate::found::text(&args.task)?;
    let questions = read_questions(&args.task)?;
    let path = match (&args.responses, &args.model) {
        (Some(path), _) => {
            crate::found::text(path)?;
            path.clone()
        }
        (None, Some(model)) => ask(app, args, model, &questions)?,
        (None, None) => return Err(Usage("give --responses FILE or --model DIR".into()).into()),
    };
    let recorded = read_recorded(&path, &questions)?;
    let missing = recorded.iter().filter(|one| one.is_none()).count();
    if missing > 0 {
        app.progress.message(&format!(
            "{}: {missing} of {} questions have no row and do not count",
            path.display(),
            questions.len()
        ));
    }
    let scores = score_choices(&questions, &recorded);
    let mut json = serde_json::to_value(&scores)?;
    json["subjects"] = subjects(&questions, &recorded)?;
    let rows = questions
        .iter()
        .zip(&recorded)
        .filter_map(|(question, recorded)| {
            let recorded = recorded.as_ref()?;
            let response = match recorded {
                Recorded::LogProbs(all) => json!(all).to_string(),
                Recorded::Chosen(chosen) => json!(chosen).to_string(),
            };
            Some(
                json!({"name": question.id, "prompt": question.context, "response": response,
            "passed": recorded.right(question).0, "category": question.subject,
            "note": format!("the answer is{}", question.choices[question.answer])}),
            )
        });
    let mut inputs = vec![("task", args.task.as_path())];
    match &args.model {
        Some(model) => inputs.push(("model", model)),
        None => inputs.push(("responses", &path)),
    }
    inputs.extend(args.adapter.as_deref().map(|adapter| ("adapter", adapter)));
    let name = format!("choice-{}", plain_name(&args.task));
    let saved = Saved {
        name: &name,
        scores: &json,
        settings: json!({}),
        inputs,
        rows: rows.collect(),
    };
    args.save.save(app, &saved)?;
    Ok(Said::new(json, table(&scores)))
}

/// The same by subject, where questions have one.
fn subjects(questions: &[ChoiceQuestion], recorded: &[Option<Recorded>]) -> Result<Value> {
    let mut all = std::collections::BTreeMap::new();
    for (question, recorded) in questions.iter().zip(recorded) {
        if let (Some(subject), Some(_)) = (&question.subject, recorded) {
            let of: &mut (Vec<_>, Vec<_>) = all.entry(subject).or_default();
            of.0.push(question.clone());
            of.1.push(recorded.clone());
        }
    }
    let scored = all.into_iter().map(|(subject, (questions, recorded))| {
        let scores = score_choices(&questions, &recorded);
        Ok((subject.clone(), serde_json::to_value(scores)?))
    });
    Ok(Value::Object(scored.collect::<Result<_>>()?))
}

fn ask(
    app: &mut App,
    args: &ChoiceArgs,
    folder: &Path,
    questions: &[ChoiceQuestion],
) -> Result<PathBuf> {
    let verb = format!("choice-{}", plain_name(&args.task));
    let path = keep(args.keep.as_deref(), &verb, folder)?;
    let form = Form {
        values: &["log_probs"],
        continued: true,
        ..Form::new("choice", &["id"])
    };
    let named: Vec<Question> = questions
        .iter()
        .map(|question| Question {
            name: question.id.clone(),
            text: String::new(),
        })
        .collect();
    app.stop_on_signals()?;
    let mut about = about(folder, args.adapter.as_deref())?;
    about["task"] = source(&args.task)?;
    let (mut file, done) = Kept::open(&path, &form, &named, &about)?;
    if done == questions.len() {
        return Ok(path);
    }
    let model = Model::open(folder, args.adapter.as_deref())?;
    let bos = model.bos()?;
    let mut ctx = Ctx::new(app.pool.clone());
    app.progress
        .begin("choice", Some(questions.len() as u64), "questions");
    let mut asked = done;
    for chunk in questions[done..].chunks(CHUNK) {
        let mut all = Vec::new();
        for question in chunk {
            all.extend(continuations(&model.tokenizer, bos, question)?);
        }
        let sums = log_likelihoods(&model.decoder, &mut ctx, &all, PASS_TOKENS, &app.interrupt);
        if app.interrupt.is_raised() {
            app.progress.end();
            let sentence = format!(
                "stopped; {asked} questions lie in {}, and the same command goes on behind them",
                path.display()
            );
            return Err(Interrupted(sentence).into());
        }
        let mut sums = sums?.into_iter();
        for question in chunk {
            let of: Vec<f64> = sums.by_ref().take(question.choices.len()).collect();
            file.push(&question.id, json!(of))?;
            asked += 1;
        }
        app.progress.update(asked as u64, &[]);
    }
    app.progress.end();
    Ok(path)
}

fn continuations(
    tokenizer: &Tokenizer,
    bos: u32,
    question: &ChoiceQuestion,
) -> Result<Vec<Continuation>> {
    let context = tokenizer.encode(&question.context, false)?;
    let choices = question.choices.iter().map(|choice| {
        let whole = tokenizer.encode(&format!("{}{choice}", question.context), false)?;
        Ok(continuation(bos, &context, &whole))
    });
    choices.collect()
}

fn table(scores: &ChoiceScores) -> String {
    let error =
        |error: Option<f64>| error.map_or(String::new(), |e| format!(" ± {:.1}", 100.0 * e));
    let mut text = format!(
        "right {:.1} %{}",
        100.0 * scores.acc,
        error(scores.acc_stderr)
    );
    if let Some(norm) = scores.acc_norm {
        text += &format!(
            ", by bytes {:.1} %{}",
            100.0 * norm,
            error(scores.acc_norm_stderr)
        );
    }
    text + &format!(
        " of {} questions; a guess {:.1} %",
        scores.n,
        100.0 * scores.chance
    )
}
