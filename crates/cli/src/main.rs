//! `russet`: parse, read the recipe, call one function, print.

mod app;
mod args;
mod chat;
mod measure;
mod progress;
mod recipes;
mod run;
mod stop;
mod text;
mod watch;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser};

use app::App;
use args::{Cli, EvalVerb, TokenizerVerb, Verb};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match App::new(cli.json, cli.threads).and_then(|mut app| dispatch(&mut app, cli.verb)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<app::Interrupted>() => {
            eprintln!("{error}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            // Causes that the outer sentence already quotes are not said twice.
            let mut said = error.to_string();
            for cause in error.chain().skip(1).map(ToString::to_string) {
                if !said.contains(&cause) {
                    said = format!("{said}: {cause}");
                }
            }
            eprintln!("error: {said}");
            if error.is::<app::Usage>() {
                ExitCode::from(2)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn dispatch(app: &mut App, verb: Verb) -> Result<()> {
    match verb {
        Verb::Run(args) => run::run(app, &args),
        Verb::Tokenizer(TokenizerVerb::Train(args)) => run::single(app, &args, "tokenizer"),
        Verb::Tokenizer(TokenizerVerb::Shards(args)) => run::single(app, &args, "tokens"),
        Verb::Tokenizer(TokenizerVerb::Encode {
            model,
            text,
            special,
        }) => text::encode(app, &model, &text, special),
        Verb::Pretrain(args) => run::single(app, &args, "pretrain"),
        Verb::Palettize(args) => run::palettize(app, &args),
        Verb::Generate(args) => text::generate(app, &args),
        Verb::Chat(args) => chat::chat(app, &args),
        Verb::Eval(EvalVerb::Perplexity(args)) => measure::perplexity(app, &args),
        Verb::Eval(EvalVerb::Logits { model, tokens, out }) => {
            measure::logits(app, &model, &tokens, &out)
        }
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
