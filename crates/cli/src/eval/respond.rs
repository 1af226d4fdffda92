//! A model answers a set of prompts, into a file that survives a kill: every answer is a line as soon as its batch is done, and the same
//! command goes on behind the last whole line. `eval respond` does that for any file of prompts.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use russet_artifact::Hash;
use russet_engine::{Engine, EngineConfig, Generate, Request, Sampling};
use russet_eval::{Answers, Begun, read_answers, read_begun, read_rows};
use russet_tokenizer::{Message, Tokenizer};
use serde_json::{Value, json};

use super::save::source;
use crate::app::{App, Interrupted, Model, Said, Usage};

/// Sequences that the engine continues together; what a killed run has lost at most.
const SLOTS: usize = 8;

/// Where responses come from: a file, or a model that answers now.
#[derive(Args)]
pub struct Source {
    /// Recorded responses (.jsonl, plain, .gz or .zst)
    #[arg(
        long,
        conflicts_with = "model",
        required_unless_present = "model",
        value_name = "FILE"
    )]
    pub responses: Option<PathBuf>,
    #[command(flatten)]
    pub asked: Asked,
}

/// A model that is to answer.
#[derive(Args)]
pub struct Asked {
    /// A checkpoint or package that is to answer, its likeliest tokens
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
}

/// Who answers: by their bytes, since another model may come to lie in the same place.
pub fn about(folder: &Path, adapter: Option<&Path>) -> Result<Value> {
    crate::found::model(folder)?;
    adapter.map(crate::found::adapter).transpose()?;
    Ok(json!({"model": source(folder)?, "adapter": adapter.map(source).transpose()?}))
}

impl Asked {
    fn max_tokens(&self) -> usize {
        self.max_tokens.unwrap_or(1024)
    }

    /// Refuses what is meant for a model where there is none. Clap passes over `requires` where what is required conflicts with
    /// what is there.
    fn nobody_is(&self) -> Result<()> {
        let given = [
            ("--adapter", self.adapter.is_some()),
            ("--max-tokens", self.max_tokens.is_some()),
            ("--keep", self.keep.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((option, _)) => Err(Usage(format!(
                "{option} is for a model that answers now, and the responses are there; leave it out, or give --model DIR"
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
        inputs.extend(self.asked.model.as_deref().map(|path| ("model", path)));
        inputs.extend(self.asked.adapter.as_deref().map(|path| ("adapter", path)));
        inputs
    }

    /// And with which settings.
    pub fn settings(&self) -> Value {
        let asked = self.asked.model.is_some();
        json!({"max_tokens": asked.then_some(self.asked.max_tokens())})
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
            source.asked.nobody_is()?;
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
    let keep = keep(asked.keep.as_deref(), form.verb, folder)?;
    app.stop_on_signals()?;
    let mut about = about(folder, asked.adapter.as_deref())?;
    about["max_tokens"] = max_tokens.into();
    let texts: Vec<&str> = questions
        .iter()
        .map(|question| &question.text[..])
        .collect();
    about["prompts"] = Hash::of(texts.join("\0").as_bytes()).to_string().into();
    let (mut file, answered) = Kept::open(&keep, form, questions, &about)?;
    if answered == questions.len() {
        return Ok(keep);
    }
    if answered > 0 {
        app.progress.message(&format!(
            "{}: {answered} of {} are answered already; going on behind them",
            keep.display(),
            questions.len()
        ));
    }
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
    let room = context.min(longest.saturating_add(max_tokens));
    let config = EngineConfig::new(room, SLOTS.min(questions.len()));
    let mut engine = Engine::new(decoder, app.pool.clone(), config)?;
    app.progress
        .begin(form.verb, Some(questions.len() as u64), "responses");
    for start in (answered..questions.len()).step_by(SLOTS) {
        if app.interrupt.is_raised() {
            app.progress.end();
            return Err(Interrupted(format!(
                "stopped; {start} responses lie in {}, and the same command goes on behind them",
                keep.display()
            ))
            .into());
        }
        let chunk = start..questions.len().min(start + SLOTS);
        let fits = |place: &usize| encoded[*place].len() < context;
        let requests: Vec<Request> = chunk
            .clone()
            .filter(fits)
            .map(|place| Request {
                prompt: encoded[place].clone(),
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
                        encoded[place].len()
                    ));
                    String::new()
                }
            };
            file.push(&questions[place].name, response.into())?;
        }
        app.progress
            .update(questions.len().min(start + SLOTS) as u64, &[]);
    }
    app.progress.end();
    Ok(keep)
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
    /// Opens it and says how many responses it has. A last line without its end is dropped: it was being written when the run was killed.
    /// What is there must answer the same prompts in the same order, by the same model.
    pub fn open(
        path: &Path,
        form: &'a Form<'a>,
        questions: &[Question],
        about: &Value,
    ) -> Result<(Kept<'a>, usize)> {
        let begun = read_begun(path)?;
        let rows = &begun.rows;
        for (row, place) in rows.iter().zip(0..) {
            let name = row.name(form.keys)?;
            if questions
                .get(place)
                .is_none_or(|question| question.name != name)
            {
                return Err(row
                    .wrong(format!(
                        "its prompt is not number {} of the set; these responses are of other prompts, so name another file by --keep",
                        place + 1
                    ))
                    .into());
            }
            if row.get("about") != Some(about) {
                return Err(row
                    .wrong(format!(
                        "it was answered under {}, not {about}; name another file by --keep",
                        row.get("about").unwrap_or(&Value::Null)
                    ))
                    .into());
            }
        }
        let failed = || format!("{}: the responses cannot be written", path.display());
        let file = go_on(path, &begun).with_context(failed)?;
        let kept = Kept {
            path: path.to_owned(),
            file,
            form,
            about: about.clone(),
        };
        Ok((kept, rows.len()))
    }

    /// Adds a response.
    pub fn push(&mut self, name: &str, response: Value) -> Result<()> {
        let (key, value) = (self.form.keys[0], self.form.values[0]);
        let row = json!({key: name, value: response, "about": self.about});
        let line = format!("{row}\n");
        let failed = || format!("{}: the responses cannot be written", self.path.display());
        self.file.write_all(line.as_bytes()).with_context(failed)
    }
}

/// Opens a file for more lines behind those that are whole, and cuts off what follows them.
pub fn go_on(path: &Path, begun: &Begun) -> std::io::Result<File> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    file.set_len(begun.bytes)?;
    file.seek(SeekFrom::End(0))?;
    if !begun.ended {
        file.write_all(b"\n")?;
    }
    Ok(file)
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
                name: prompt.prompt.clone(),
                text: prompt.prompt.clone(),
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
    let mut seen = std::collections::HashMap::new();
    let mut questions = Vec::new();
    for row in read_rows(path)? {
        let prompt = row.text("prompt")?;
        if let Some(line) = seen.insert(prompt.to_owned(), row.line) {
            return Err(row
                .wrong(format!("its prompt is that of line {line} too; keep one"))
                .into());
        }
        questions.push(Question {
            name: prompt.to_owned(),
            text: prompt.to_owned(),
        });
    }
    if questions.is_empty() {
        bail!(
            "{}: there are no prompts in it; give rows of `prompt`",
            path.display()
        );
    }
    Ok(questions)
}
