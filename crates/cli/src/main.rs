//! `russet`: parse, read the recipe, call one function, print.

mod app;
mod args;
mod chat;
mod convert;
mod eval;
mod found;
mod grade;
mod guide;
mod measure;
mod needle;
mod outcome;
mod progress;
mod rules;
mod run;
mod serve;
mod serving;
mod shape;
mod stages;
mod text;
mod watch;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser};

use app::{App, Usage};
use args::{BenchArgs, BenchVerb, Cli, TokenizerVerb, Verb};
use outcome::{Outcome, outcome};
use russet_train::{Launch, Resume};
use serde_json::json;
use stages::StageKind;

fn main() -> ExitCode {
    let Cli {
        json,
        threads,
        verb,
    } = Cli::parse();
    let launch = match Launch::detect() {
        Ok(launch) => launch,
        Err(error) if Launch::process_as_told() == 0 => return tell(&error.into(), json, ""),
        Err(_) => return ExitCode::from(2), // the first tells it
    };
    let together = (launch.processes() > 1).then(|| (launch.process(), launch.processes()));
    // Together until the error has been told: what ends with `app` are the other processes' hopes for this one.
    let mut app = match App::new(json, threads, launch) {
        Ok(app) => app,
        Err(error) => return tell(&error, json, ""),
    };
    let error = match dispatch(&mut app, verb) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(error) => error,
    };
    let outcome = outcome(&error);
    match together {
        Some((process, _)) if matches!(outcome, Outcome::Interrupted(_)) => match process {
            0 => tell(&error, json, ""),
            _ => ExitCode::SUCCESS,
        },
        Some((process, processes)) => {
            // What goes wrong on all of them the first tells, which then ends the others while they wait here.
            let mut whose = String::new();
            if process > 0 {
                std::thread::sleep(THE_FIRST_SPEAKS);
                whose = format!("rank {process} of {processes}: ");
            }
            let code = tell(&error, json, &whose);
            app.launch.abort(match outcome {
                Outcome::Usage => 2,
                _ => 1,
            });
            code
        }
        None => tell(&error, json, ""),
    }
}

/// How long a process waits for the first one to tell of an error that is everybody's.
const THE_FIRST_SPEAKS: Duration = Duration::from_secs(2);

/// Says how a verb ended that did not simply succeed, and with which code the process ends.
fn tell(error: &anyhow::Error, json: bool, whose: &str) -> ExitCode {
    let outcome = outcome(error);
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
    let whose = match said.starts_with("rank ") {
        true => "",
        false => whose,
    };
    // In one piece: a launcher writes to the same stream, and its lines may come between pieces.
    let line = format!("error: {whose}{said}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    match outcome {
        Outcome::Usage => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    }
}

fn resume(restart: bool) -> Resume {
    match restart {
        true => Resume::Restart,
        false => Resume::Continue,
    }
}

fn dispatch(app: &mut App, verb: Verb) -> Result<()> {
    let processes = app.launch.processes();
    if processes > 1 && !matches!(verb, Verb::Pretrain(_)) {
        let sentence = format!(
            "{processes} processes were started together, but only `russet pretrain` shares its work out over several; start \
             this without mpirun"
        );
        return Err(Usage(sentence).into());
    }
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
            app.device = args.device;
            run::single(app, &args.recipe, StageKind::Pretrain, resume(args.restart))
        }
        Verb::Sft(args) => run::single(app, &args.recipe, StageKind::Sft, resume(args.restart)),
        Verb::Dpo(args) => run::single(app, &args.recipe, StageKind::Dpo, resume(args.restart)),
        Verb::Reward(args) => {
            run::single(app, &args.recipe, StageKind::Reward, resume(args.restart))
        }
        Verb::Reject(args) => {
            run::single(app, &args.recipe, StageKind::Reject, resume(args.restart))
        }
        Verb::Rlhf(args) => run::single(app, &args.recipe, StageKind::Rlhf, resume(args.restart)),
        Verb::TeacherLogits(args) => {
            run::single(app, &args, StageKind::TeacherLogits, Resume::Continue)
        }
        Verb::Prune(args) => run::single(app, &args.recipe, StageKind::Prune, resume(args.restart)),
        Verb::Palettize(args) => run::palettize(app, &args),
        Verb::Recover(args) => {
            run::single(app, &args.recipe, StageKind::Recover, resume(args.restart))
        }
        Verb::Qat(args) => run::single(app, &args.recipe, StageKind::Qat, resume(args.restart)),
        Verb::Generate(args) => text::generate(app, &args),
        Verb::Chat(args) => chat::chat(app, &args),
        Verb::Serve(args) => serve::serve(app, args),
        Verb::Grade(args) => grade::grade(app, &args),
        Verb::Eval(verb) => {
            let said = eval::score(app, verb)?;
            app.print(&said.json, &said.text)
        }
        Verb::Bench(BenchArgs {
            what: Some(BenchVerb::Train(args)),
            ..
        }) => measure::bench_train(app, &args),
        Verb::Bench(BenchArgs {
            what: Some(BenchVerb::Serving(args)),
            ..
        }) => serving::serving(app, &args),
        Verb::Bench(BenchArgs {
            what: Some(BenchVerb::FirstToken { model }),
            ..
        }) => serving::first_token(app, &model),
        Verb::Bench(args) => measure::bench(app, &args),
        Verb::Convert(args) => convert::convert(app, &args),
        Verb::Watch(args) => watch::watch(app, &args),
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "russet", &mut script);
            app::write_stdout(&script).context("standard output is closed")
        }
    }
}
