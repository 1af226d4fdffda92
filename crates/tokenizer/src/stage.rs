//! The two stages of a recipe: train a tokenizer, and turn texts into token shards.
//!
//! Plain paths in, files into a given folder out; manifests, recipes and the choice of folder are the caller's.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::error::{Result, TokenizerError};
use crate::shard::{ShardSummary, ShardWriter};
use crate::texts::read_texts;
use crate::tokenizer::Tokenizer;
use crate::train::{Progress, TrainConfig, train_with};

/// Documents encoded at a time on all cores; bounds memory, does not change the result.
const BATCH: usize = 256;
/// Bytes of text at which a batch is encoded though it has fewer documents.
const BATCH_BYTES: usize = 16 << 20;

/// What [`train_stage`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainReport {
    /// Documents read.
    pub documents: u64,
    /// Bytes of text read.
    pub bytes: u64,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
}

/// What [`encode_stage`] did, one entry a split, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodeReport {
    /// Name of the split, its file, and what it holds.
    pub splits: Vec<(String, PathBuf, ShardSummary)>,
}

/// Train a tokenizer on the documents of `inputs` and write `tokenizer.json`, `tokenizer_config.json` and
/// `chat_template.jinja` into `out_dir`.
pub fn train_stage(
    config: &TrainConfig,
    inputs: &[PathBuf],
    out_dir: &Path,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<TrainReport> {
    let (mut documents, mut bytes) = (0, 0);
    let texts = documents_of(inputs).inspect(|text| {
        if let Ok(text) = text {
            documents += 1;
            bytes += text.len() as u64;
        }
    });
    let tokenizer = train_with(config, texts, progress)?;
    tokenizer.save(out_dir)?;
    Ok(TrainReport {
        documents,
        bytes,
        vocab_size: tokenizer.vocab_size(),
    })
}

/// Encode each split, a name and its text files, into `out_dir/NAME.tokens.safetensors`. Empty documents are
/// left out; an empty split is an error.
pub fn encode_stage(
    tokenizer: &Tokenizer,
    splits: &[(String, Vec<PathBuf>)],
    out_dir: &Path,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<EncodeReport> {
    std::fs::create_dir_all(out_dir).map_err(|e| TokenizerError::file(out_dir, e))?;
    let mut report = EncodeReport { splits: Vec::new() };
    let (mut documents, mut tokens) = (0, 0);
    for (name, inputs) in splits {
        if name.is_empty() || name.contains(['/', '\\']) || name.starts_with('.') {
            return Err(TokenizerError::file(
                out_dir,
                format!("{name:?} cannot be the name of a split; use letters, digits and dashes"),
            ));
        }
        let path = out_dir.join(format!("{name}.tokens.safetensors"));
        let mut writer = ShardWriter::create(&path, tokenizer)?;
        let mut texts = documents_of(inputs);
        loop {
            let mut batch: Vec<String> = Vec::new();
            let mut bytes = 0;
            while batch.len() < BATCH && bytes < BATCH_BYTES {
                let Some(text) = texts.next() else { break };
                let text = text?;
                if !text.is_empty() {
                    bytes += text.len();
                    batch.push(text);
                }
            }
            if batch.is_empty() {
                break;
            }
            for (text, ids) in batch.iter().zip(tokenizer.encode_batch(&batch, false)?) {
                writer.push(&ids, text.len() as u64)?;
                documents += 1;
                tokens += ids.len() as u64 + 1;
            }
            if progress(Progress::Encoded { documents, tokens }).is_break() {
                return Err(TokenizerError::Interrupted);
            }
        }
        drop(texts);
        let summary = writer.finish_unless_empty(name)?;
        report.splits.push((name.clone(), path, summary));
    }
    Ok(report)
}

/// The documents of several files, one after another.
fn documents_of(inputs: &[PathBuf]) -> impl Iterator<Item = Result<String>> {
    inputs.iter().flat_map(|path| {
        // Either the documents of the file, or the one error that it cannot be opened.
        let (texts, error) = match read_texts(path) {
            Ok(texts) => (Some(texts), None),
            Err(error) => (None, Some(Err(error))),
        };
        texts.into_iter().flatten().chain(error)
    })
}
