//! What every verb has at hand: threads, progress, the wish to stop, and how to print.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use russet_artifact::{Artifact, Interrupt, NoProgress, Progress, Tool};
use russet_kernels::Pool;
use russet_model::{Decoder, adapter, checkpoint};
use russet_tokenizer::{ChatTemplate, Tokenizer};
use russet_train::{Device, Launch};
use serde_json::Value;

/// The shared state of one invocation.
pub struct App {
    pub json: bool,
    pub tool: Tool,
    pub pool: Arc<Pool>,
    /// Whether `--threads` was given, which then holds against a recipe's `compute.threads`.
    pub threads_given: bool,
    /// Threads that a job may have on this machine, on all processes of this one's launcher together; `pool` has this one's.
    pub threads: usize,
    /// What plans are made for, if it is not this machine.
    pub device: Option<Device>,
    pub progress: Box<dyn Progress>,
    pub interrupt: Interrupt,
    /// Last, so that MPI ends after all else.
    pub launch: Launch,
}

/// The work was asked to stop and has put down what it had; the process ends well.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Interrupted(pub String);

impl Interrupted {
    /// Of a stage that keeps nothing of its beginnings.
    pub fn again() -> Interrupted {
        Interrupted("stopped; the same command begins this stage again".to_owned())
    }
}

/// The command line itself is at fault; the process exits with 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// What an engine says of its settings, by the options that they are here; `less` says which of them make its cache smaller.
pub fn by_option(error: russet_engine::Error, less: &str) -> anyhow::Error {
    use russet_engine::Error;
    let option = match &error {
        Error::Setting { setting, .. } => match *setting {
            "cache bytes" => "--cache-mib",
            "context" => "--context",
            "format" => "--cache-type",
            _ => return error.into(),
        },
        Error::AdapterBudget { .. } => "--adapter-mib",
        Error::Memory { .. } => {
            return Usage(format!("{error}; {less}")).into();
        }
        _ => return error.into(),
    };
    Usage(format!("{option}: {error}")).into()
}

impl App {
    pub fn new(json: bool, threads: Option<u16>, launch: Launch) -> Result<App> {
        let own = threads.map_or(launch.cores(), usize::from);
        let pool = Pool::new((own / launch.processes_here()).max(1))
            .map_err(|error| Usage(error.to_string()))?;
        let progress: Box<dyn Progress> = match launch.is_first() {
            true => crate::progress::progress(json),
            false => Box::new(NoProgress),
        };
        Ok(App {
            json,
            tool: Tool::new(env!("CARGO_PKG_VERSION"), env!("RUSSET_COMMIT")),
            pool: Arc::new(pool),
            threads_given: threads.is_some(),
            threads: own,
            device: None,
            progress,
            interrupt: Interrupt::new(),
            launch,
        })
    }

    /// From now on SIGINT and SIGTERM ask the work to put down what it has; a second one ends the process at once. Where
    /// several processes work together so does SIGUSR1, which their launchers pass on without ending them, and however often
    /// it comes: a launcher may send each process what another one sent to all.
    pub fn stop_on_signals(&self) -> Result<()> {
        use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
        use std::sync::atomic::{AtomicBool, Ordering};
        // Two who hear one signal would take it for a second one.
        static HEARD: AtomicBool = AtomicBool::new(false);
        if HEARD.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let together = self.launch.processes() > 1;
        let mut signals = vec![SIGINT, SIGTERM];
        signals.extend(together.then_some(SIGUSR1));
        let mut signals = signal_hook::iterator::Signals::new(signals)?;
        let flag = self.interrupt.flag();
        // A thread of its own: a handler may not print.
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                for _ in signals.forever() {
                    if flag.swap(true, Ordering::SeqCst) && !together {
                        eprintln!(
                            "error: stopped at once by a second signal; what was saved before is whole, and the same \
                             command goes on from there"
                        );
                        std::process::exit(1);
                    }
                }
            })?;
        Ok(())
    }

    /// Prints the result: the JSON object where that was asked for, else what a person reads. Of several processes the
    /// first speaks.
    pub fn print(&self, json: &Value, text: &str) -> Result<()> {
        if !self.launch.is_first() {
            return Ok(());
        }
        let line = if self.json {
            format!("{json}\n")
        } else {
            format!("{text}\n")
        };
        write_stdout(line.as_bytes()).context("standard output is closed")
    }
}

/// What a verb has come to.
pub struct Said {
    /// For a program.
    pub json: Value,
    /// For a person.
    pub text: String,
}

impl Said {
    pub fn new(json: Value, text: String) -> Said {
        Said { json, text }
    }
}

/// Writes to standard output.
pub fn write_stdout(bytes: &[u8]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// By which name an adapter knows the model in a folder. One from elsewhere has no identity but all its bytes; its adapters are
/// taken at their word.
pub fn base(folder: &Path) -> Option<String> {
    let artifact = Artifact::open_any(folder).ok()?;
    Some(artifact.manifest_hash().to_string())
}

/// A model with its tokenizer.
pub struct Model {
    pub decoder: Decoder,
    pub tokenizer: Tokenizer,
}

impl Model {
    /// Opens a folder of either kind, with an adapter on it where one is named.
    pub fn open(folder: &Path, adapter: Option<&Path>) -> Result<Model> {
        crate::found::model(folder)?;
        crate::found::own_tokenizer(folder)?;
        if let Some(adapter) = adapter {
            crate::found::adapter(adapter)?;
        }
        let mut decoder = checkpoint::open(folder)?;
        if let Some(adapter) = adapter {
            decoder = adapter::attach_as_served(decoder, adapter, base(folder).as_deref())?;
        }
        let tokenizer = Tokenizer::open(folder)?;
        let (ids, vocab) = (tokenizer.vocab_size(), decoder.config().vocab);
        if ids > vocab {
            anyhow::bail!(
                "{}: the tokenizer has {ids} tokens but the model's vocabulary {vocab}; they do not belong together",
                folder.display()
            );
        }
        Ok(Model { decoder, tokenizer })
    }

    /// Opens a model to talk to: where it has no chat template it gets ChatML's, and `progress` says so.
    pub fn open_for_chat(
        folder: &Path,
        adapter: Option<&Path>,
        progress: &mut dyn Progress,
    ) -> Result<Model> {
        let mut model = Model::open(folder, adapter)?;
        if model.tokenizer.chat_template().is_none() {
            progress.message(&format!(
                "{}: there is no chat template, so ChatML is used",
                folder.display()
            ));
            let chatml = ChatTemplate::chatml();
            model.tokenizer = model.tokenizer.with_chat_template(chatml.source())?;
        }
        Ok(model)
    }

    /// The token that stands before a text.
    pub fn bos(&self) -> Result<u32> {
        let special = self.tokenizer.special();
        let bos = special
            .bos
            .or(self.decoder.config().bos)
            .or(special.eos.first().copied());
        bos.context("the model names no token that begins a text (bos_token_id in config.json)")
    }

    /// Tokens that end a text.
    pub fn eos(&self) -> Vec<u32> {
        let mut eos = self.tokenizer.special().eos.clone();
        eos.extend(
            self.decoder
                .config()
                .eos
                .iter()
                .filter(|id| !self.tokenizer.special().eos.contains(id)),
        );
        eos
    }

    /// A prompt's tokens: as the tokenizer begins a text, or its first token alone where the prompt is empty.
    pub fn encode_prompt(&self, prompt: &str) -> Result<Vec<u32>> {
        let tokens = self.tokenizer.encode(prompt, true)?;
        Ok(if tokens.is_empty() {
            vec![self.bos()?]
        } else {
            tokens
        })
    }
}
