//! `eval code`: HumanEval and its like, run in a sandbox.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use russet_eval::code::{Attempt, attempt, read_tasks, score_code};
use russet_eval::sandbox::{Limits, Sandbox};
use serde_json::json;

use super::respond::{Form, Question, Source, answers};
use super::save::{SaveArgs, Saved};
use crate::app::{App, Interrupted, Said, Usage};

#[derive(Args)]
pub struct CodeArgs {
    /// Tasks: rows of `task_id`, `prompt`, `entry_point`, `test` (.jsonl, plain or packed)
    #[arg(long, value_name = "FILE")]
    task: PathBuf,
    #[command(flatten)]
    source: Source,
    /// The interpreter
    #[arg(long, default_value = "python3")]
    python: String,
    /// Seconds that a program may take
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// MiB of memory that a program may take
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(64..=1 << 20))]
    memory: u64,
    /// Run programs even where they cannot be kept from the network and from your files: limits of time and memory alone
    #[arg(long)]
    unconfined: bool,
    #[command(flatten)]
    pub save: SaveArgs,
}

/// What a server is asked for.
const ASK: &str = "Complete this program. Answer with the whole function in one block of code, its imports too.\n\n";

/// Where a model that continues the prompt has left the function.
const STOPS: [&str; 6] = [
    "\ndef ",
    "\nclass ",
    "\nif __name__",
    "\nprint(",
    "\n#",
    "\n```",
];

pub fn run(app: &mut App, args: &CodeArgs) -> Result<Said> {
    crate::found::text(&args.task)?;
    let tasks = read_tasks(&args.task)?;
    let limits = Limits {
        seconds: args.seconds,
        memory_mib: args.memory,
        ..Limits::default()
    };
    // Before a model has answered for hours.
    let sandbox = match args.unconfined {
        true => Sandbox::limits_only(limits),
        false => Sandbox::new(limits)?,
    };
    let folder = tempfile::tempdir()?;
    let tried = sandbox.run(folder.path(), &args.python, &["-I", "-c", "pass"])?;
    if tried.code != Some(0) {
        let why = match (tried.late, tried.stderr.trim()) {
            (true, _) => format!(
                "it has not ended within {} s; allow more by --seconds, or name the interpreter itself and not what starts it",
                args.seconds
            ),
            (false, "") => "it ended without a word".to_owned(),
            (false, said) => said.to_owned(),
        };
        let sentence = format!(
            "--python {}: it does not run within the limits ({why})",
            args.python
        );
        return Err(Usage(sentence).into());
    }
    let questions: Vec<Question> = tasks
        .iter()
        .map(|task| Question::new(&task.id, &task.prompt))
        .collect();
    // A model here continues the program as it stands; a server is asked for the whole of it.
    let chat = args.source.asked.server.endpoint.is_some();
    let questions: Vec<Question> = questions
        .into_iter()
        .map(|question| match chat {
            true => Question::new(
                question.name,
                format!("{ASK}```python\n{}```", question.text),
            ),
            false => question,
        })
        .collect();
    let form = Form {
        values: &["completion", "response"],
        continued: true,
        several: true,
        stops: if chat { &[] } else { &STOPS },
        ..Form::new("code", &["task_id"])
    };
    let (answers, path) = answers(app, &args.source, &form, &questions)?;
    if args.source.responses.is_some() {
        app.stop_on_signals()?;
    }
    app.progress
        .begin("programs", Some(tasks.len() as u64), "tasks");
    let mut attempts: Vec<Vec<Attempt>> = Vec::new();
    let mut rows = Vec::new();
    for (done, (task, completions)) in tasks.iter().zip(&answers.of_rows).enumerate() {
        if app.interrupt.is_raised() {
            app.progress.end();
            let sentence = format!(
                "stopped; the responses lie in {0}, and --responses {0} runs their programs",
                path.display()
            );
            return Err(Interrupted(sentence).into());
        }
        let mut of_task = Vec::new();
        for completion in completions {
            let attempt = attempt(&sandbox, &args.python, task, completion)?;
            rows.push(
                json!({"name": task.id, "prompt": task.prompt, "response": completion,
                "passed": attempt.passed, "note": attempt.note}),
            );
            of_task.push(attempt);
        }
        attempts.push(of_task);
        app.progress.update(done as u64 + 1, &[]);
    }
    app.progress.end();
    let scores = score_code(&attempts);
    let mut json = serde_json::to_value(&scores)?;
    json["confined"] = (!args.unconfined).into();
    let mut settings = args.source.settings();
    settings["seconds"] = args.seconds.into();
    settings["memory"] = args.memory.into();
    settings["unconfined"] = args.unconfined.into();
    let saved = Saved {
        name: "code",
        scores: &json,
        settings,
        inputs: [
            vec![("task", args.task.as_path())],
            args.source.inputs(&path),
        ]
        .concat(),
        rows,
    };
    args.save.save(app, &saved)?;
    let ten = scores.pass_at_10.map_or(String::new(), |ten| {
        format!(", one of ten {:.1} %", 100.0 * ten)
    });
    let text = format!(
        "passes {:.1} %{ten}, of {} samples of {} tasks",
        100.0 * scores.pass_at_1,
        scores.samples,
        scores.n
    );
    Ok(Said::new(json, text))
}
