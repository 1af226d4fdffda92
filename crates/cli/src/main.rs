//! `russet`: parse, read the recipe, call one function, print.

mod app;
mod args;
mod chat;
mod found;
mod ifeval;
mod measure;
mod needle;
mod outcome;
mod progress;
mod run;
mod stages;
mod stop;
mod text;
mod watch;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser};

use app::App;
use args::{BenchArgs, BenchVerb, Cli, EvalVerb, TokenizerVerb, Verb};
use outcome::{Outcome, outcome};
use russet_train::Resume;
use serde_json::json;
use stages::StageKind;

fn main() -> ExitCode {
    let Cli {
        json,
        threads,
        verb,
    } = Cli::parse();
    let error = match App::new(json, threads).and_then(|mut app| dispatch(&mut app, verb)) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(error) => error,
    };
    let outcome = outcome(&error);
    if let Outcome::Interrupted(sentence) = &outcome {
        eprintln!("{sentence}");
        let object = json!({"interrupted": true, "message": sentence});
        return match json {
            true if app::write_stdout(format!("{object}\n").as_bytes()).is_err() => {
                ExitCode::FAILURE
            }
            _ => ExitCode::SUCCESS,
        };
    }
    // Causes that the outer sentence already quotes are not said twice.
    let mut said = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !said.contains(&cause) {
            said = format!("{said}: {cause}");
        }
    }
    eprintln!("error: {said}");
    match outcome {
        Outcome::Usage => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    }
}

fn dispatch(app: &mut App, verb: Verb) -> Result<()> {
    match verb {
        Verb::Run(args) => run::run(app, &args),
        Verb::Tokenizer(TokenizerVerb::Train(args)) => {
            run::single(app, &args, StageKind::Tokenizer, Resume::Continue)
        }
        Verb::Tokenizer(TokenizerVerb::Shards(args)) => {
            run::single(app, &args, StageKind::Tokens, Resume::Continue)
        }
        Verb::Tokenizer(TokenizerVerb::Encode {
            model,
            text,
            special,
        }) => text::encode(app, &model, &text, special),
        Verb::Pretrain(args) => {
            let resume = match args.restart {
                true => Resume::Restart,
                false => Resume::Continue,
            };
            run::single(app, &args.recipe, StageKind::Pretrain, resume)
        }
        Verb::TeacherLogits(args) => {
            run::single(app, &args, StageKind::TeacherLogits, Resume::Continue)
        }
        Verb::Prune(args) => run::single(app, &args, StageKind::Prune, Resume::Continue),
        Verb::Palettize(args) => run::palettize(app, &args),
        Verb::Generate(args) => text::generate(app, &args),
        Verb::Chat(args) => chat::chat(app, &args),
        Verb::Eval(EvalVerb::Perplexity(args)) => measure::perplexity(app, &args),
        Verb::Eval(EvalVerb::Needle(args)) => needle::run(app, &args),
        Verb::Eval(EvalVerb::Ifeval(args)) => ifeval::run(app, &args),
        Verb::Eval(EvalVerb::Logits { model, tokens, out }) => {
            measure::logits(app, &model, &tokens, &out)
        }
        Verb::Bench(BenchArgs {
            what: Some(BenchVerb::Train(args)),
            ..
        }) => measure::bench_train(app, &args),
        Verb::Bench(args) => measure::bench(app, &args),
        Verb::Convert(args) => text::convert(app, &args),
        Verb::Watch(args) => watch::watch(app, &args),
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "russet", &mut script);
            app::write_stdout(&script).context("standard output is closed")
        }
    }
}
