//! `chat`: a conversation in the terminal.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::{Result, bail};
use russet_engine::{Engine, EngineConfig, Finish, Flow, Request, Reuse};
use russet_model::KvFormat;
use russet_tokenizer::Message;
use serde_json::json;

use crate::app::{App, Model, Usage, by_option, write_stdout};
use crate::args::ChatArgs;
use crate::text::{continue_prompt, sampling};

/// What a person may say that is not for the model.
const COMMANDS: &str = "/help lists these commands; /new begins a new conversation; /bye or Ctrl-D ends. Any other line is a message to the model.";

/// Reads a line, answers, remembers, until the input ends.
pub fn chat(app: &mut App, args: &ChatArgs) -> Result<()> {
    let sampling = sampling(&args.sampling)?;
    if args.max_tokens == 0 {
        return Err(Usage(
            "--max-tokens is 0, so there would be no answers; allow at least 1".into(),
        )
        .into());
    }
    let model = Model::open_for_chat(&args.model, args.adapter.as_deref(), &mut *app.progress)?;
    let (stop_tokens, context) = (model.eos(), model.decoder.config().context);
    let Model { decoder, tokenizer } = model;
    let format = args.cache.format(&decoder);
    let remedy = match format {
        KvFormat::Int8 => "free memory, or take a model of a shorter context",
        _ => "--cache-type q8 asks for less",
    };
    let config = EngineConfig {
        reuse: Reuse::Prefix,
        format,
        ..EngineConfig::new(context, 1)
    };
    let engine = Engine::new(decoder, app.pool.clone(), config);
    let mut engine = engine.map_err(|error| by_option(error, remedy))?;
    let beginning = || {
        args.system
            .iter()
            .map(|text| message("system", text))
            .collect::<Vec<_>>()
    };
    let mut messages = beginning();
    let interactive = std::io::stdin().is_terminal() && !app.json;
    if interactive {
        app.progress.message(
            "Type a message; /new begins again, /bye or Ctrl-D ends, /help lists the commands.",
        );
    }
    let mut lines = std::io::stdin().lock();
    loop {
        if interactive {
            write_stdout(b"> ")?;
        }
        let mut line = Vec::new();
        if lines.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let line = match str::from_utf8(&line) {
            Ok(line) => line,
            Err(error) => {
                app.progress.message(&format!(
                    "This line is not UTF-8 from byte {} on, so it is left out; send it again as UTF-8.",
                    error.valid_up_to()
                ));
                continue;
            }
        };
        match line.trim() {
            "" => continue,
            "/bye" => return Ok(()),
            "/help" => app.progress.message(COMMANDS),
            "/new" => messages = beginning(),
            text => {
                messages.push(message("user", text));
                let prompt = tokenizer.encode_chat(&messages, true)?;
                if prompt.len() >= context {
                    app.progress.message(&format!(
                        "The conversation has {} tokens, but the model sees only {context}; /new begins again.",
                        prompt.len()
                    ));
                    messages.pop();
                    continue;
                }
                let stop_tokens = stop_tokens.clone();
                let request = Request {
                    prompt,
                    max_tokens: args.max_tokens,
                    sampling,
                    logit_bias: args.sampling.logit_bias.clone(),
                    stop_tokens,
                    ..Request::default()
                };
                let stops = &args.sampling.stop;
                let mut closed = false;
                let made = continue_prompt(
                    &mut engine,
                    &tokenizer,
                    &request,
                    stops,
                    true,
                    &mut |piece| {
                        closed |= !app.json && write_stdout(piece.as_bytes()).is_err();
                        if closed { Flow::Stop } else { Flow::Continue }
                    },
                )?;
                if closed {
                    bail!("standard output was closed before the answer ended");
                }
                let json = json!({"text": made.text, "tokens": made.generation.tokens.len(), "finish": made.finish.to_string()});
                app.print(&json, "")?;
                if made.finish == Finish::Context {
                    app.progress.message(&format!(
                        "The model's context of {context} tokens is full; /new begins again."
                    ));
                }
                messages.push(message("assistant", &made.text));
            }
        }
        std::io::stdout().flush()?;
    }
}

fn message(role: &str, content: &str) -> Message {
    Message {
        role: role.to_owned(),
        content: content.to_owned(),
    }
}
