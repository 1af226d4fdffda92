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

use super::respond::{Asked, Form, Kept, Question, about, ask as ask_words, keep};
use super::save::{SaveArgs, Saved, plain_name, source};
use super::server::ServerArgs;
use crate::app::{App, Model, Said, Usage};

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
    #[arg(long, conflicts_with = "model", value_name = "FILE")]
    responses: Option<PathBuf>,
    /// A checkpoint or package whose likelihoods decide; with --endpoint a name of the server's, which is asked for a letter
    #[arg(long)]
    model: Option<PathBuf>,
    /// An adapter (PEFT folder) to put onto the model
    #[arg(long, conflicts_with = "responses")]
    adapter: Option<PathBuf>,
    /// Where the likelihoods go, and where they are gone on with (default: the folder's name and the task's, in the working directory)
    #[arg(long, conflicts_with = "responses", value_name = "FILE.jsonl")]
    keep: Option<PathBuf>,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    pub save: SaveArgs,
}

/// Tokens that a server may take to come to a letter.
const LETTER_TOKENS: usize = 256;

pub fn run(app: &mut App, args: &ChoiceArgs) -> Result<Said> {
    crate::found::text(&args.task)?;
    let questions = read_questions(&args.task)?;
    let path = match (&args.responses, &args.model) {
        (Some(path), _) => {
            if let Some((option, _)) = args.server.given().iter().find(|(_, given)| *given) {
                let sentence = format!(
                    "{option} is for a server that answers now, and the responses are there; leave it out"
                );
                return Err(Usage(sentence).into());
            }
            crate::found::text(path)?;
            path.clone()
        }
        (None, Some(model)) if args.server.endpoint.is_some() => {
            ask_server(app, args, model, &questions)?
        }
        (None, Some(model)) => {
            args.server.check()?;
            ask(app, args, model, &questions)?
        }
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
            let of = |place: usize| question.choices[place].trim();
            let read = match recorded {
                Recorded::Chosen { place: None, .. } => "; no choice is read from this".to_owned(),
                Recorded::Chosen {
                    place: Some(place), ..
                } => format!("; read as {}", of(*place)),
                Recorded::LogProbs(_) => String::new(),
            };
            let response = match recorded {
                Recorded::LogProbs(all) => json!(all).to_string(),
                Recorded::Chosen { said, .. } => said.clone(),
            };
            Some(
                json!({"name": question.id, "prompt": question.context, "response": response,
            "passed": recorded.right(question).0, "category": question.subject,
            "note": format!("the answer is {}{read}", of(question.answer))}),
            )
        });
    let mut inputs = vec![("task", args.task.as_path())];
    let mut settings = json!({});
    match (&args.model, &args.server.endpoint) {
        (Some(model), Some(endpoint)) => {
            inputs.push(("responses", &path));
            settings = json!({"endpoint": endpoint, "model": model});
        }
        (Some(model), None) => inputs.push(("model", model)),
        (None, _) => inputs.push(("responses", &path)),
    }
    inputs.extend(args.adapter.as_deref().map(|adapter| ("adapter", adapter)));
    let name = format!("choice-{}", plain_name(&args.task));
    let saved = Saved {
        name: &name,
        scores: &json,
        settings,
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
        .map(|question| Question::new(&question.id, String::new()))
        .collect();
    app.stop_on_signals()?;
    let mut about = about(folder, args.adapter.as_deref())?;
    about["task"] = source(&args.task)?;
    let (mut file, left) = Kept::open(&path, &form, &named, &about)?;
    if left.is_empty() {
        return Ok(path);
    }
    let model = Model::open(folder, args.adapter.as_deref())?;
    let bos = model.bos()?;
    let mut ctx = Ctx::new(app.pool.clone());
    app.progress
        .begin("choice", Some(questions.len() as u64), "questions");
    let mut asked = questions.len() - left.len();
    for chunk in left.chunks(CHUNK) {
        let mut all = Vec::new();
        for place in chunk {
            all.extend(continuations(&model.tokenizer, bos, &questions[*place])?);
        }
        let sums = log_likelihoods(&model.decoder, &mut ctx, &all, PASS_TOKENS, &app.interrupt);
        if app.interrupt.is_raised() {
            app.progress.end();
            return Err(file.stopped(asked).into());
        }
        let mut sums = sums?.into_iter();
        for place in chunk {
            let choices = questions[*place].choices.len();
            let of: Vec<f64> = sums.by_ref().take(choices).collect();
            file.push(&named[*place], json!(of))?;
        }
        asked += chunk.len();
        app.progress.update(asked as u64, &[]);
    }
    app.progress.end();
    Ok(path)
}

/// A server tells no likelihoods of texts that it did not write, so it is asked for the letter of a choice.
fn ask_server(
    app: &mut App,
    args: &ChoiceArgs,
    model: &Path,
    questions: &[ChoiceQuestion],
) -> Result<PathBuf> {
    let verb = format!("choice-{}", plain_name(&args.task));
    let asked = Asked {
        model: args.model.clone(),
        adapter: args.adapter.clone(),
        max_tokens: Some(LETTER_TOKENS),
        keep: args.keep.clone(),
        server: args.server.clone(),
    };
    let named: Vec<Question> = questions
        .iter()
        .map(|question| Question::new(&question.id, lettered(question)))
        .collect();
    ask_words(app, &asked, model, &Form::new(&verb, &["id"]), &named)
}

/// A question with its choices behind letters.
fn lettered(question: &ChoiceQuestion) -> String {
    let letters = ('A'..='Z').zip(&question.choices);
    let is_letter = |(letter, choice): (char, &String)| choice.trim() == letter.to_string();
    let context = question.context.trim_end_matches("Answer:").trim_end();
    // MMLU's context has the choices already, and the choices are the letters.
    let choices = match letters.clone().all(is_letter) {
        true => String::new(),
        false => letters
            .map(|(letter, choice)| format!("\n{letter}. {}", choice.trim()))
            .collect(),
    };
    format!(
        "{context}\n{choices}\n\nWhich of these comes next, or is right? Answer with its letter alone."
    )
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
