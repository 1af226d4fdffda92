//! A model answers a set of prompts, into a file that survives a kill: every answer is a line as soon as its batch is done, and the same
//! command goes on behind the last whole line. `eval respond` does that for any file of prompts.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use russet_artifact::Hash;
use russet_engine::{Engine, EngineConfig, Generate, Request, Sampling};
use russet_eval::{Answers, Begun, read_answers, read_begun, read_named};
use russet_tokenizer::{Message, Tokenizer};
use serde_json::{Value, json};

use super::save::source;
use super::server::{Server, ServerArgs};
use crate::app::{App, Interrupted, Model, Said, Usage};

/// Sequences that the engine continues together; what a killed run has lost at most.
const SLOTS: usize = 8;

/// Prompts of which a server that answers one of them is not asked in vain.
const PROBES: usize = 8;

/// Where responses come from: a file, or a model that answers now.
#[derive(Args)]
pub struct Source {
    /// Recorded responses (.jsonl, plain, .gz or .zst)
    #[arg(long, conflicts_with = "model", value_name = "FILE")]
    pub responses: Option<PathBuf>,
    #[command(flatten)]
    pub asked: Asked,
}

/// A model that is to answer.
#[derive(Args)]
pub struct Asked {
    /// A checkpoint or package that is to answer, its likeliest tokens; with --endpoint a name of the server's
    #[arg(long)]
    pub model: Option<PathBuf>,
    /// An adapter (PEFT folder) to put onto the model
    #[arg(long, requires = "model")]
    pub adapter: Option<PathBuf>,
    /// How many tokens a response may have (default: 1024)
    #[arg(long, requires = "model")]
    pub max_tokens: Option<usize>,
    /// Where the responses go, and where they are gone on with (default: the folder's name and the verb's, in the working directory)
    #[arg(long, requires = "model", value_name = "FILE.jsonl")]
    pub keep: Option<PathBuf>,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Who answers: by their bytes, since another model may come to lie in the same place, and the same one in another.
pub fn about(folder: &Path, adapter: Option<&Path>) -> Result<Value> {
    crate::found::model(folder)?;
    adapter.map(crate::found::adapter).transpose()?;
    let bytes = |path: &Path| {
        let mut source = source(path)?;
        if let Value::Object(source) = &mut source {
            source.remove("path");
        }
        anyhow::Ok(source)
    };
    Ok(json!({"model": bytes(folder)?, "adapter": adapter.map(bytes).transpose()?}))
}

/// What of an evaluation's answers was otherwise than it would be now, in words.
fn otherwise(was: &Value, is: &Value) -> String {
    let mut said = Vec::new();
    for (key, words) in [
        ("model", "by another model"),
        ("endpoint", "by another server"),
        ("adapter", "with another adapter"),
        ("prompts", "to other prompts"),
        ("task", "to other questions"),
    ] {
        if was[key] != is[key] {
            said.push(words.to_owned());
        }
    }
    if was["max_tokens"] != is["max_tokens"] {
        let tokens = |of: &Value| of["max_tokens"].as_u64().unwrap_or(0);
        said.push(format!(
            "with --max-tokens {}, not {}",
            tokens(was),
            tokens(is)
        ));
    }
    match said.is_empty() {
        true => "by another version of this program".to_owned(),
        false => said.join(", "),
    }
}

impl Asked {
    fn max_tokens(&self) -> usize {
        self.max_tokens.unwrap_or(1024)
    }

    /// Refuses what is meant for a model where there is none, since something else is there. Clap passes over `requires` where what is
    /// required conflicts with what is there.
    pub fn nobody_is(&self, there: &str) -> Result<()> {
        let given = [
            ("--adapter", self.adapter.is_some()),
            ("--max-tokens", self.max_tokens.is_some()),
            ("--keep", self.keep.is_some()),
        ];
        let given = given.into_iter().chain(self.server.given());
        match given.into_iter().find(|(_, given)| *given) {
            Some((option, _)) => Err(Usage(format!(
                "{option} is for a model that answers now, and the {there} are there; leave it out, or give --model DIR"
            ))
            .into()),
            None => Ok(()),
        }
    }
}

impl Source {
    /// What a saved evaluation says of where its responses come from.
    pub fn inputs<'a>(&'a self, responses: &'a Path) -> Vec<(&'a str, &'a Path)> {
        let mut inputs = vec![("responses", responses)];
        // A server's model is a name and no folder.
        let here = self.asked.server.endpoint.is_none();
        let model = self.asked.model.as_deref().filter(|_| here);
        inputs.extend(model.map(|path| ("model", path)));
        inputs.extend(self.asked.adapter.as_deref().map(|path| ("adapter", path)));
        inputs
    }

    /// And with which settings.
    pub fn settings(&self) -> Value {
        let model = &self.asked.model;
        let mut settings =
            json!({"max_tokens": model.is_some().then_some(self.asked.max_tokens())});
        if let (Some(endpoint), Some(model)) = (&self.asked.server.endpoint, model) {
            settings["endpoint"] = endpoint.clone().into();
            settings["model"] = model.display().to_string().into();
        }
        settings
    }
}

/// How prompts are told apart and shown to a model.
pub struct Form<'a> {
    /// The verb's word.
    pub verb: &'a str,
    /// Keys of a response's name; rows are written with the first.
    pub keys: &'a [&'a str],
    /// Keys of the response itself; rows are written with the first.
    pub values: &'a [&'a str],
    /// Whether prompts are continued as they stand instead of going through the chat template.
    pub continued: bool,
    /// Whether a file may have several responses to a prompt.
    pub several: bool,
    /// What ends a continued text, apart from the model's own tokens.
    pub stops: &'a [&'a str],
}

impl<'a> Form<'a> {
    /// One `response` a prompt, by one of these keys, through the chat template.
    pub fn new(verb: &'a str, keys: &'a [&'a str]) -> Form<'a> {
        Form {
            verb,
            keys,
            values: &["response"],
            continued: false,
            several: false,
            stops: &[],
        }
    }
}

/// A prompt with the name that its response is found by.
pub struct Question {
    pub name: String,
    pub text: String,
    /// What kind of prompt it is, where that is said: it goes along with the response.
    pub category: Option<String>,
}

impl Question {
    /// Of no category.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Question {
        Question {
            name: name.into(),
            text: text.into(),
            category: None,
        }
    }
}

/// The responses, from the file or the model, and the file they lie in.
pub fn answers(
    app: &mut App,
    source: &Source,
    form: &Form,
    questions: &[Question],
) -> Result<(Answers, PathBuf)> {
    let path = match (&source.responses, &source.asked.model) {
        (Some(path), _) => {
            source.asked.nobody_is("responses")?;
            crate::found::text(path)?;
            path.clone()
        }
        (None, Some(model)) => ask(app, &source.asked, model, form, questions)?,
        (None, None) => return Err(Usage("give --responses FILE or --model DIR".into()).into()),
    };
    let names: Vec<String> = questions
        .iter()
        .map(|question| question.name.clone())
        .collect();
    let answers = read_answers(&path, &names, form.keys, form.values, form.several)?;
    let missing = answers.missing(&names);
    if !missing.is_empty() {
        let begun: Vec<String> = missing
            .iter()
            .take(4)
            .map(|name| format!("{:?}", name.chars().take(40).collect::<String>()))
            .collect();
        app.progress.message(&format!(
            "{}: {} of {} have no response and do not count, {} among them",
            path.display(),
            missing.len(),
            names.len(),
            begun.join(", ")
        ));
    }
    super::remark(app, &path, &answers.empty, "responses are empty");
    Ok((answers, path))
}

/// Lets a model answer what is not answered yet.
pub fn ask(
    app: &mut App,
    asked: &Asked,
    folder: &Path,
    form: &Form,
    questions: &[Question],
) -> Result<PathBuf> {
    let max_tokens = asked.max_tokens();
    if max_tokens == 0 {
        let sentence = "--max-tokens is 0, so there would be no responses; allow at least 1";
        return Err(Usage(sentence.into()).into());
    }
    let name = folder.display().to_string();
    let server = asked.server.open(&name, asked.adapter.as_deref())?;
    let keep = keep(asked.keep.as_deref(), form.verb, folder)?;
    app.stop_on_signals()?;
    let mut about = match asked.server.about(&name) {
        Some(about) => about,
        None => about(folder, asked.adapter.as_deref())?,
    };
    about["max_tokens"] = max_tokens.into();
    let texts: Vec<&str> = questions
        .iter()
        .map(|question| &question.text[..])
        .collect();
    about["prompts"] = Hash::of(texts.join("\0").as_bytes()).to_string().into();
    let (mut file, left) = Kept::open(&keep, form, questions, &about)?;
    if left.is_empty() {
        return Ok(keep);
    }
    if left.len() < questions.len() {
        app.progress.message(&format!(
            "{}: {} of {} are answered already; going on behind them",
            keep.display(),
            questions.len() - left.len(),
            questions.len()
        ));
    }
    match server {
        Some(server) => ask_server(app, &server, form, questions, &mut file, &left, max_tokens)?,
        None => ask_model(app, asked, folder, form, questions, &mut file, &left)?,
    }
    Ok(keep)
}

/// A server answers, some prompts at once.
fn ask_server(
    app: &mut App,
    server: &Server,
    form: &Form,
    questions: &[Question],
    file: &mut Kept,
    left: &[usize],
    max_tokens: usize,
) -> Result<()> {
    app.progress
        .begin(form.verb, Some(questions.len() as u64), "responses");
    let mut answered = questions.len() - left.len();
    let (mut any, mut refused) = (answered > 0, 0);
    for chunk in left.chunks(server.at_once) {
        let prompts: Vec<&str> = chunk
            .iter()
            .map(|place| &questions[*place].text[..])
            .collect();
        let answers = match app.interrupt.is_raised() {
            true => None,
            false => server.ask(app, &prompts, max_tokens)?,
        };
        let Some(answers) = answers else {
            app.progress.end();
            return Err(file.stopped(answered).into());
        };
        any |= answers.iter().any(Result::is_ok);
        refused += answers.iter().filter(|answer| answer.is_err()).count();
        if let Some(Err(why)) = answers.first()
            && !any
            && refused >= PROBES.min(questions.len())
        {
            app.progress.end();
            bail!(
                "--endpoint: the server answers none of the first {refused} prompts ({why}); look at --model and --max-tokens, and at what \
                 the server says"
            );
        }
        for (place, answer) in chunk.iter().zip(answers) {
            match answer {
                Ok(answer) => file.push(&questions[*place], answer.into())?,
                Err(why) => {
                    app.progress.message(&format!(
                        "prompt {place} (from 0): the server does not answer it ({why}); its response is empty, and the same command \
                         asks it again"
                    ));
                    file.push_refused(&questions[*place], &why)?;
                }
            }
        }
        answered += chunk.len();
        app.progress.update(answered as u64, &[]);
    }
    app.progress.end();
    Ok(())
}

/// A model answers through the engine, some prompts at once.
fn ask_model(
    app: &mut App,
    asked: &Asked,
    folder: &Path,
    form: &Form,
    questions: &[Question],
    file: &mut Kept,
    left: &[usize],
) -> Result<()> {
    let max_tokens = asked.max_tokens();
    let model = match form.continued {
        true => Model::open(folder, asked.adapter.as_deref())?,
        false => Model::open_for_chat(folder, asked.adapter.as_deref(), &mut *app.progress)?,
    };
    let stop_tokens = model.eos();
    let context = model.decoder.config().context;
    let encode = |question: &Question| match form.continued {
        true => model.encode_prompt(&question.text),
        false => encode(&model.tokenizer, &question.text),
    };
    let encoded: Vec<Vec<u32>> = questions.iter().map(encode).collect::<Result<_>>()?;
    let longest = encoded
        .iter()
        .map(Vec::len)
        .filter(|len| *len < context)
        .max();
    let Some(longest) = longest else {
        bail!(
            "{}: the model sees only {context} tokens, and every prompt has as many or more; take one with a longer context",
            folder.display()
        );
    };
    let Model { decoder, tokenizer } = model;
    if max_tokens >= context {
        app.progress.message(&format!(
            "--max-tokens {max_tokens}: the model sees {context} tokens, prompt and response together, and stops there"
        ));
    }
    let room = context.min(longest.saturating_add(max_tokens));
    let config = EngineConfig::new(room, SLOTS.min(questions.len()));
    let mut engine = Engine::new(decoder, app.pool.clone(), config)?;
    app.progress
        .begin(form.verb, Some(questions.len() as u64), "responses");
    let mut answered = questions.len() - left.len();
    for chunk in left.chunks(SLOTS) {
        if app.interrupt.is_raised() {
            app.progress.end();
            return Err(file.stopped(answered).into());
        }
        let fits = |place: &&usize| encoded[**place].len() < context;
        let requests: Vec<Request> = chunk
            .iter()
            .filter(fits)
            .map(|place| Request {
                prompt: encoded[*place].clone(),
                max_tokens,
                sampling: Sampling::GREEDY,
                stop_tokens: stop_tokens.clone(),
                ..Request::default()
            })
            .collect();
        let mut made = engine.generate_batch(&requests)?.into_iter();
        for place in chunk {
            let generation = fits(&place).then(|| made.next()).flatten();
            let response = match generation {
                Some(generation) => {
                    let text = tokenizer.decode(generation.content(), true);
                    cut(&text, form.stops).to_owned()
                }
                None => {
                    app.progress.message(&format!(
                        "prompt {place} (from 0) has {} tokens, but the model sees only {context}; its response is empty",
                        encoded[*place].len()
                    ));
                    String::new()
                }
            };
            file.push(&questions[*place], response.into())?;
        }
        answered += chunk.len();
        app.progress.update(answered as u64, &[]);
    }
    app.progress.end();
    Ok(())
}

/// A text up to the first of some strings.
fn cut<'a>(text: &'a str, stops: &[&str]) -> &'a str {
    let ends = stops.iter().filter_map(|stop| text.find(stop));
    &text[..ends.min().unwrap_or(text.len())]
}

fn encode(tokenizer: &Tokenizer, prompt: &str) -> Result<Vec<u32>> {
    Ok(tokenizer.encode_chat(&[Message::new("user", prompt)], true)?)
}

/// Where responses go.
pub fn keep(given: Option<&Path>, verb: &str, folder: &Path) -> Result<PathBuf> {
    let path = match given {
        Some(path) => path.to_owned(),
        None => {
            let name = folder.file_name().unwrap_or("model".as_ref());
            PathBuf::from(format!("{}.{verb}.jsonl", name.to_string_lossy()))
        }
    };
    if path.extension().is_none_or(|ending| ending != "jsonl") {
        return Err(Usage(format!(
            "--keep {}: responses are kept as JSON Lines; let the name end in .jsonl",
            path.display()
        ))
        .into());
    }
    Ok(path)
}

/// A file of responses that is being written.
pub struct Kept<'a> {
    path: PathBuf,
    file: File,
    form: &'a Form<'a>,
    about: Value,
}

impl<'a> Kept<'a> {
    /// Opens it and says which places of the set are still to be asked, in order. A last line without its end is dropped: it was being
    /// written when the run was killed; so are those of prompts that a server refused. What is there must answer these prompts, by the
    /// same model.
    pub fn open(
        path: &Path,
        form: &'a Form<'a>,
        questions: &[Question],
        about: &Value,
    ) -> Result<(Kept<'a>, Vec<usize>)> {
        let (mut file, begun) = begin(path, "--keep")?;
        let names = questions.iter().map(|question| &question.name[..]);
        let mut left: HashMap<&str, usize> = names.zip(0..).collect();
        let mut answered = String::new();
        let mut refused = false;
        for row in &begun.rows {
            let name = row.name(form.keys)?;
            let is_refused = row.get(REFUSED).is_some();
            let known = match is_refused {
                true => left.contains_key(&name[..]),
                false => left.remove(&name[..]).is_some(),
            };
            if !known {
                return Err(row
                    .wrong("its prompt is none of the set, or answered before; these responses are of other prompts, so name another file by --keep")
                    .into());
            }
            if row.get("about") != Some(about) {
                let was = row.get("about").unwrap_or(&Value::Null);
                return Err(row
                    .wrong(format!(
                        "it was answered {}; name another file by --keep, or remove this one",
                        otherwise(was, about)
                    ))
                    .into());
            }
            refused |= is_refused;
            if !is_refused {
                answered += &format!("{}\n", Value::Object(row.object.clone()));
            }
        }
        let failed = || format!("{}: the responses cannot be written", path.display());
        match refused {
            true => anew(&mut file, answered.as_bytes()).with_context(failed)?,
            false => go_on(&mut file, &begun).with_context(failed)?,
        }
        let kept = Kept {
            path: path.to_owned(),
            file,
            form,
            about: about.clone(),
        };
        let mut left: Vec<usize> = left.into_values().collect();
        left.sort_unstable();
        Ok((kept, left))
    }

    /// What to say when somebody asked to stop behind so many responses.
    pub fn stopped(&self, count: usize) -> Interrupted {
        Interrupted(format!(
            "stopped; {count} {} lie in {}, and the same command goes on behind them",
            if self.form.values == ["log_probs"] {
                "questions"
            } else {
                "responses"
            },
            self.path.display()
        ))
    }

    /// Adds a response.
    pub fn push(&mut self, question: &Question, response: Value) -> Result<()> {
        let row = self.row(question, response);
        self.write(&row)
    }

    /// Adds an empty response, with why a server gave none. Who goes on asks it again.
    fn push_refused(&mut self, question: &Question, why: &str) -> Result<()> {
        let mut row = self.row(question, "".into());
        row[REFUSED] = why.into();
        self.write(&row)
    }

    fn row(&self, question: &Question, response: Value) -> Value {
        let (key, value) = (self.form.keys[0], self.form.values[0]);
        let mut row = json!({key: question.name, value: response, "about": self.about});
        if let Some(category) = &question.category {
            row["category"] = category.clone().into();
        }
        row
    }

    fn write(&mut self, row: &Value) -> Result<()> {
        let failed = || format!("{}: the responses cannot be written", self.path.display());
        let line = format!("{row}\n");
        self.file.write_all(line.as_bytes()).with_context(failed)
    }
}

/// Why a server gave no answer.
const REFUSED: &str = "refused";

/// Opens a file of rows that is to grow, which another run must not be writing, and reads what it has. `option` is where its name came
/// from.
pub fn begin(path: &Path, option: &str) -> Result<(File, Begun)> {
    let failed = || {
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty() && !folder.exists());
        match folder {
            Some(folder) => format!(
                "{}: make the folder {} first",
                path.display(),
                folder.display()
            ),
            None => format!("{}: it cannot be written", path.display()),
        }
    };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(failed)?;
    // Where a file system knows no locks there is none.
    if let Err(TryLockError::WouldBlock) = file.try_lock() {
        bail!(
            "{}: another run is writing this file; wait for it, or name another one by {option}",
            path.display()
        );
    }
    Ok((file, read_begun(path)?))
}

/// Makes a file ready for more lines behind those that are whole, and cuts off what follows them.
pub fn go_on(file: &mut File, begun: &Begun) -> std::io::Result<()> {
    file.set_len(begun.bytes)?;
    file.seek(SeekFrom::End(0))?;
    if !begun.ended {
        file.write_all(b"\n")?;
    }
    Ok(())
}

/// Puts other lines into a file.
fn anew(file: &mut File, lines: &[u8]) -> std::io::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    file.write_all(lines)?;
    file.set_len(lines.len() as u64)
}

#[derive(Args)]
pub struct RespondArgs {
    /// The prompts: rows of `prompt` (default: the set of eleven categories)
    #[arg(long)]
    prompts: Option<PathBuf>,
    #[command(flatten)]
    asked: Asked,
}

/// `eval respond`: answers, and says where they lie.
pub fn run(app: &mut App, args: &RespondArgs) -> Result<Said> {
    let Some(model) = &args.asked.model else {
        return Err(Usage("give --model DIR, which is to answer".into()).into());
    };
    let questions: Vec<Question> = match &args.prompts {
        None => russet_eval::prompts()
            .iter()
            .map(|prompt| Question {
                category: Some(prompt.category.clone()),
                ..Question::new(&prompt.prompt, &prompt.prompt)
            })
            .collect(),
        Some(path) => prompts(path)?,
    };
    let form = Form::new("respond", &["prompt"]);
    let kept = ask(app, &args.asked, model, &form, &questions)?;
    let json = json!({"responses": kept, "n": questions.len()});
    let text = format!("{}: {} responses", kept.display(), questions.len());
    Ok(Said::new(json, text))
}

/// Prompts of a file, each once.
pub fn prompts(path: &Path) -> Result<Vec<Question>> {
    crate::found::text(path)?;
    let questions = read_named(
        path,
        ("prompts", "prompt"),
        |question: &Question| &question.name,
        |row| {
            let prompt = row.text("prompt")?;
            Ok(Question {
                category: row.text_or_none("category")?.map(str::to_owned),
                ..Question::new(prompt, prompt)
            })
        },
    )?;
    Ok(questions)
}
