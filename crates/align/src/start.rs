//! What every run of alignment begins with and leaves: a model that exists, its tokenizer with a chat template, who learns, the
//! report beside the weights.

use std::collections::BTreeMap;
use std::path::Path;

use russet_artifact::{Artifact, Inputs, Kind};
use russet_model::{Config, Decoder, adapter, checkpoint};
use russet_tokenizer::{CHATML_TOOLS, IM_END, IM_START, Tokenizer};
use russet_train::{
    AdapterSettings, Adapters, First, Measured, Result, State, TrainError, Trained,
};
use serde_json::{Value, json};

use crate::settings::refuse;

/// The file of the artifact that says what the data came to and what was measured.
pub const REPORT: &str = "report.json";

/// A model to begin with, looked at.
pub(crate) struct Start {
    /// The model, and the adapter that training goes on with.
    pub inputs: Inputs,
    /// What will be trained: with room for the sequences, where the weights are its own.
    pub config: Config,
    /// With the template that is learnt.
    pub tokenizer: Tokenizer,
    /// That template, to be written beside the weights where the checkpoint has another or none.
    pub template: Option<String>,
}

impl Start {
    /// Of `checkpoint`, and `own`, an adapter to go on with, which only a run that `adapts` can; for sequences of `length` tokens.
    ///
    /// # Errors
    /// When the model is none, has no chat template, or was made for less; or an adapter stands where none is trained.
    pub fn new(
        checkpoint: &Path,
        own: Option<&Path>,
        adapts: bool,
        length: usize,
        chat_template: Option<&Path>,
    ) -> Result<Start> {
        let start = Config::open(checkpoint)?;
        let mut inputs = base_input(Inputs::new(), "checkpoint", checkpoint, adapts)?;
        if let Some(own) = own {
            if !adapts {
                return refuse(
                    "adapter",
                    "is missing, but `inputs.adapter` names an adapter to go on with; write [adapter]",
                );
            }
            inputs = inputs.artifact_or_path("adapter", own, Kind::Adapter)?;
        }
        let (tokenizer, template) = tokenizer(checkpoint, chat_template)?;
        if tokenizer.vocab_size() > start.vocab {
            let problem = format!(
                "its tokenizer has {} tokens but its vocabulary {}; they do not belong together",
                tokenizer.vocab_size(),
                start.vocab
            );
            return Err(TrainError::Data {
                place: checkpoint.to_owned(),
                problem,
            });
        }
        let config = match adapts {
            // Its base answers for its context.
            true if start.context < length => {
                let problem = format!(
                    "is {length}, but the base was made for {} tokens of context; lower it",
                    start.context
                );
                return refuse("train.sequence_length", problem);
            }
            true => start,
            false => Config {
                context: start.context.max(length),
                ..start
            },
        };
        Ok(Start {
            inputs,
            config,
            tokenizer,
            template,
        })
    }
}

/// A model as an input: a checkpoint, or below adapters a package too.
pub(crate) fn base_input(inputs: Inputs, key: &str, folder: &Path, adapts: bool) -> Result<Inputs> {
    if !adapts || !folder.join("manifest.json").exists() {
        return Ok(inputs.artifact_or_path(key, folder, Kind::Checkpoint)?);
    }
    let artifact = Artifact::open_any(folder)?;
    match artifact.kind() {
        Kind::Checkpoint | Kind::Package => Ok(inputs.artifact(key, &artifact)?),
        _ => Ok(inputs.artifact_or_path(key, folder, Kind::Checkpoint)?),
    }
}

/// The model's tokenizer with the template that is learnt; and that template where the checkpoint has another or none.
pub(crate) fn tokenizer(
    folder: &Path,
    chat_template: Option<&Path>,
) -> Result<(Tokenizer, Option<String>)> {
    let tokenizer = Tokenizer::open(folder)?;
    if let Some(path) = chat_template {
        let refuse = |error: std::io::Error| TrainError::Data {
            place: path.to_owned(),
            problem: format!("cannot be read, and `data.chat_template` names it: {error}"),
        };
        let source = std::fs::read_to_string(path).map_err(refuse)?;
        let tokenizer = tokenizer.with_chat_template(source.clone())?;
        return Ok((tokenizer, Some(source)));
    }
    if let Some(template) = tokenizer.chat_template() {
        let source = template.source().to_owned();
        return Ok((tokenizer, Some(source)));
    }
    let special = |name: &str| {
        tokenizer
            .token_id(name)
            .is_some_and(|id| tokenizer.is_special(id))
    };
    if !special(IM_START) || !special(IM_END) {
        return Err(TrainError::Data {
            place: folder.to_owned(),
            problem: "it has no chat template, and its tokenizer not the tokens of ChatML; put a template into its folder \
                      as chat_template.jinja, or fine-tune it first with one as `data.chat_template` (`russet sft`)"
                .to_owned(),
        });
    }
    let tokenizer = tokenizer.with_chat_template(CHATML_TOOLS)?;
    Ok((tokenizer, Some(CHATML_TOOLS.to_owned())))
}

/// The model that training begins with.
pub(crate) fn decoder(folder: &Path, own: Option<&Path>) -> Result<Decoder> {
    let decoder = checkpoint::open(folder)?;
    Ok(match own {
        Some(folder) => adapter::attach(decoder, folder, None)?,
        None => decoder,
    })
}

/// What learns: all weights of `config` from the checkpoint's, or adapters on it.
pub(crate) fn learner(
    config: &Config,
    checkpoint: &Path,
    own: Option<&Path>,
    adapter: Option<&AdapterSettings>,
) -> Trained<'static> {
    match adapter {
        None => Trained::Weights {
            config: config.clone(),
            checkpoint: Some(checkpoint.to_owned()),
            tokenizer: checkpoint.to_owned(),
        },
        Some(settings) => Trained::Adapters(Adapters {
            base: checkpoint.to_owned(),
            settings: settings.clone(),
            first: own.map_or(First::New, |own| First::Of(own.to_owned())),
        }),
    }
}

/// Numbers that learn.
pub(crate) fn trained_parameters(config: &Config, adapter: Option<&AdapterSettings>) -> usize {
    adapter.map_or(config.parameters(), |adapter| adapter.parameters(config))
}

/// What lies beside the weights: card, report, and the template where one is written.
pub(crate) fn files(
    stage: &str,
    card: String,
    data: Value,
    template: Option<&String>,
    state: &State,
    measured: &Measured,
) -> Vec<(String, Vec<u8>)> {
    let after = measured
        .iter()
        .map(|&(name, value)| (name.to_owned(), value));
    let report = json!({
        "stage": stage,
        "steps": state.step,
        "data": data,
        "before": state.tally.before.iter().cloned().collect::<BTreeMap<String, f64>>(),
        "measured": after.collect::<BTreeMap<String, f64>>(),
    });
    let mut files = vec![
        ("README.md".to_owned(), card),
        (REPORT.to_owned(), format!("{report:#}\n")),
    ];
    files.extend(template.map(|source| ("chat_template.jinja".to_owned(), source.clone())));
    let bytes = files.into_iter();
    bytes
        .map(|(name, text)| (name, text.into_bytes()))
        .collect()
}
