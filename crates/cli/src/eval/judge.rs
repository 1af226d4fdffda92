//! `eval judge`: a model says which of two models' responses is better, each pair in both orders.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use russet_engine::{Engine, EngineConfig};
use russet_eval::pairwise::judge::{Judge, ModelJudge, Opinion, Question, judge_both_ways};
use russet_eval::{Row, prompts, read_rows};
use russet_tokenizer::Tokenizer;
use serde_json::json;

use super::respond::{about, begin, go_on};
use super::save::plain_name;
use super::server::{Server, ServerArgs};
use crate::app::{App, Interrupted, Model, Said, Usage};

/// Pairs that are judged together, each in two orders.
const PAIRS: usize = 4;

/// Tokens that a server may take to come to a verdict.
const ANSWER: usize = 256;

#[derive(Args)]
pub struct JudgeArgs {
    /// Responses of two models to the same prompts: rows of `prompt` and `response`; given twice
    #[arg(long, required = true, value_name = "FILE")]
    responses: Vec<PathBuf>,
    /// What the two models are called, separated by a comma (default: the files' names)
    #[arg(long, value_delimiter = ',')]
    names: Vec<String>,
    /// The model that judges, through its chat template; with --endpoint a name of the server's
    #[arg(long)]
    model: PathBuf,
    /// An adapter (PEFT folder) to put onto it
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Where judgements go, for `eval pairwise`, and where they are gone on with
    #[arg(long, value_name = "FILE.jsonl")]
    out: PathBuf,
    #[command(flatten)]
    server: ServerArgs,
}

struct Pair {
    question: Question,
    category: Option<String>,
}

pub fn run(app: &mut App, args: &JudgeArgs) -> Result<Said> {
    let [one, two] = &args.responses[..] else {
        let times = match args.responses.len() {
            1 => "once".to_owned(),
            times => format!("{times} times"),
        };
        let sentence =
            format!("--responses is there {times}, but two models are compared; give it twice");
        return Err(Usage(sentence).into());
    };
    let names = names(&args.names, one, two)?;
    if args.out.extension().is_none_or(|ending| ending != "jsonl") {
        let sentence = format!("--out {}: let the name end in .jsonl", args.out.display());
        return Err(Usage(sentence).into());
    }
    let pairs = pairs(app, one, two)?;
    let failed = || format!("{}: the judgements cannot be written", args.out.display());
    let model = args.model.display();
    let adapter = args.adapter.as_deref();
    let server = args.server.open(&model.to_string(), adapter)?;
    let judge = match (&args.server.endpoint, adapter) {
        (Some(endpoint), _) => format!("{model} at {endpoint}"),
        (None, None) => model.to_string(),
        (None, Some(adapter)) => format!("{model} + {}", adapter.display()),
    };
    // By its bytes too: another model may come to lie in the same place.
    let by = match args.server.about(&model.to_string()) {
        Some(by) => by,
        None => about(&args.model, adapter)?,
    };
    let (mut file, begun) = begin(&args.out, "--out")?;
    let (mut done, mut consistent, mut silent) = (0, 0usize, 0usize);
    for row in &begun.rows {
        let same = pairs.get(done).is_some_and(|pair| {
            row.text("prompt").ok() == Some(&pair.question.prompt)
                && row.text("model_a").ok() == Some(&names[0])
                && row.text("model_b").ok() == Some(&names[1])
                && row.text("judge").ok() == Some(&judge)
                && row.text("response_a").ok() == Some(&pair.question.first)
                && row.text("response_b").ok() == Some(&pair.question.second)
                && row.get("by") == Some(&by)
        });
        if !same {
            return Err(row
                .wrong("it is no judgement of this judge on these responses; name another file by --out")
                .into());
        }
        consistent += usize::from(row.get("consistent") == Some(&true.into()));
        silent += usize::from(row.get("preference").is_none());
        done += 1;
    }
    go_on(&mut file, &begun).with_context(failed)?;
    if done < pairs.len() {
        app.stop_on_signals()?;
        let mut here = match server {
            Some(_) => None,
            None => Some(Here::open(app, args)?),
        };
        let at_once = server
            .as_ref()
            .map_or(PAIRS, |server| server.at_once.div_ceil(2));
        app.progress
            .begin("judge", Some(pairs.len() as u64), "pairs");
        for chunk in pairs[done..].chunks(at_once) {
            let stopped = || {
                Interrupted(format!(
                    "stopped; {done} judgements lie in {}, and the same command goes on behind them",
                    args.out.display()
                ))
            };
            if app.interrupt.is_raised() {
                app.progress.end();
                return Err(stopped().into());
            }
            let questions: Vec<Question> = chunk.iter().map(|pair| pair.question.clone()).collect();
            let both = match (&mut here, &server) {
                (Some(here), _) => judge_both_ways(&mut here.judge(), &questions),
                (None, Some(server)) => {
                    let any = done > silent;
                    judge_both_ways(&mut Far { app, server, any }, &questions)
                }
                (None, None) => unreachable!("one of them judges"),
            };
            if both.is_err() && app.interrupt.is_raised() {
                app.progress.end();
                return Err(stopped().into());
            }
            for (pair, both) in chunk.iter().zip(both?) {
                consistent += usize::from(both.consistent);
                silent += usize::from(both.second.is_none());
                let row = json!({
                    "prompt": pair.question.prompt, "category": pair.category, "model_a": names[0], "model_b": names[1],
                    "response_a": pair.question.first, "response_b": pair.question.second,
                    "preference": both.second.map(|second| 1.0 + second), "judge": judge,
                    "consistent": both.consistent, "words": both.words, "by": by,
                });
                file.write_all(format!("{row}\n").as_bytes())
                    .with_context(failed)?;
                done += 1;
            }
            app.progress.update(done as u64, &[]);
        }
        app.progress.end();
    }
    let json = json!({"judgements": args.out, "n": done, "consistent": consistent, "without_verdict": silent});
    let text = format!(
        "{}: {done} judgements; {consistent} point the same way in both orders, {silent} have no verdict",
        args.out.display()
    );
    Ok(Said::new(json, text))
}

/// A model on this machine.
struct Here {
    engine: Engine,
    tokenizer: Tokenizer,
    stop_tokens: Vec<u32>,
    context: usize,
}

impl Here {
    fn open(app: &mut App, args: &JudgeArgs) -> Result<Here> {
        let model = Model::open_for_chat(&args.model, args.adapter.as_deref(), &mut *app.progress)?;
        let stop_tokens = model.eos();
        let context = model.decoder.config().context;
        let config = EngineConfig::new(context, 2 * PAIRS);
        let Model { decoder, tokenizer } = model;
        Ok(Here {
            engine: Engine::new(decoder, app.pool.clone(), config)?,
            tokenizer,
            stop_tokens,
            context,
        })
    }

    fn judge(&mut self) -> ModelJudge<'_> {
        ModelJudge {
            model: &mut self.engine,
            tokenizer: &self.tokenizer,
            stop_tokens: self.stop_tokens.clone(),
            context: self.context,
        }
    }
}

/// A server. It tells words and no likelihoods, so that a verdict is 0, a half or 1.
struct Far<'a> {
    app: &'a App,
    server: &'a Server,
    /// Whether it has answered before.
    any: bool,
}

impl Judge for Far<'_> {
    fn judge(&mut self, questions: &[Question]) -> russet_eval::Result<Vec<Opinion>> {
        let failed = |error: anyhow::Error| russet_eval::Error::Model(format!("{error:#}"));
        let shown: Vec<String> = questions.iter().map(Question::shown).collect();
        let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
        let mut opinions = Vec::new();
        for some in shown.chunks(self.server.at_once) {
            let answers = self.server.ask(self.app, some, ANSWER).map_err(failed)?;
            let answers = answers.ok_or_else(|| failed(anyhow::anyhow!("stopped")))?;
            self.any |= answers.iter().any(Result::is_ok);
            if let Some(Err(why)) = answers.first()
                && !self.any
            {
                let sentence = format!("the server answers none of the first questions ({why})");
                return Err(failed(anyhow::anyhow!(sentence)));
            }
            opinions.extend(answers.into_iter().map(|answer| match answer {
                Ok(words) => Opinion::of_words(words),
                Err(why) => Opinion {
                    second: None,
                    words: why,
                },
            }));
        }
        Ok(opinions)
    }
}

fn names(given: &[String], one: &Path, two: &Path) -> Result<[String; 2]> {
    let names = match given {
        [] => [one, two].map(plain_name),
        [one, two] => [one.clone(), two.clone()],
        _ => {
            return Err(Usage(format!("--names has {} names; give two", given.len())).into());
        }
    };
    if names[0] == names[1] {
        let sentence = format!(
            "both models are called {:?}; tell them apart by --names",
            names[0]
        );
        return Err(Usage(sentence).into());
    }
    Ok(names)
}

/// Prompts that both have answered.
fn pairs(app: &mut App, one: &Path, two: &Path) -> Result<Vec<Pair>> {
    for path in [one, two] {
        crate::found::text(path)?;
    }
    let mut seconds = std::collections::HashMap::new();
    for row in read_rows(two)? {
        let prompt = row.text("prompt")?.to_owned();
        let response = row.text("response")?.to_owned();
        if seconds.insert(prompt, response).is_some() {
            return Err(again(&row).into());
        }
    }
    let (mut pairs, mut alone) = (Vec::new(), Vec::new());
    let mut seen = std::collections::HashSet::new();
    for row in read_rows(one)? {
        let (prompt, first) = (row.text("prompt")?, row.text("response")?);
        if !seen.insert(prompt.to_owned()) {
            return Err(again(&row).into());
        }
        let Some(second) = seconds.get(prompt) else {
            alone.push(row.line);
            continue;
        };
        let known = prompts().iter().find(|other| other.prompt == prompt);
        let category = row.text_or_none("category")?;
        pairs.push(Pair {
            question: Question {
                prompt: prompt.to_owned(),
                first: first.to_owned(),
                second: second.clone(),
            },
            category: category
                .map(str::to_owned)
                .or(known.map(|prompt| prompt.category.clone())),
        });
    }
    super::remark(
        app,
        one,
        &alone,
        "prompts are answered by the first model alone",
    );
    if pairs.is_empty() {
        bail!(
            "{} and {}: no prompt is answered in both; compare responses to the same prompts",
            one.display(),
            two.display()
        );
    }
    Ok(pairs)
}

fn again(row: &Row) -> russet_eval::Error {
    row.wrong("its prompt is that of an earlier row too; keep one response a prompt")
}
