//! Reading a Hugging Face tokenizer folder that a stranger wrote.
//!
//! The `tokenizers` crate trusts its input: it indexes where a file may lie, allocates what a file says
//! and pads to lengths a file names. So the file is bounded, parsed once as plain JSON and checked for what
//! would hurt later, and the crate's own reader runs where a panic is caught. Settings that would make
//! encoding random (`dropout`) are refused; `padding` and `truncation`, which belong to a batch and not
//! to a text, are never applied.

use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde_json::Value;

use crate::chat::ChatTemplate;
use crate::error::{Result, TokenizerError};
use crate::tokenizer::{END_OF_TEXT, IM_END, IM_START, PAD, SpecialIds, SpecialNames, Tokenizer};
use crate::vocabulary::Token;

/// Larger than any published `tokenizer.json` (the largest known, of Gemma 3, has 33 MB).
const LARGEST_TOKENIZER: u64 = 128 << 20;
/// For the small files beside it.
const LARGEST_CONFIG: u64 = 16 << 20;
/// Ids may have holes, but not be this large: the tables are indexed by id.
const LARGEST_ID: u32 = 1 << 22;

pub(crate) fn open(path: &Path) -> Result<Tokenizer> {
    let (dir, file) = if path.is_dir() {
        (path, path.join("tokenizer.json"))
    } else {
        (path.parent().unwrap_or(Path::new(".")), path.to_path_buf())
    };
    let json = read_bounded(&file, LARGEST_TOKENIZER)?;
    let (hf, value) = parse(&json).map_err(|reason| TokenizerError::file(&file, reason))?;

    let generation = optional_json(&dir.join("generation_config.json"))?;
    let model = optional_json(&dir.join("config.json"))?;
    let config_path = dir.join("tokenizer_config.json");
    let config = optional_json(&config_path)?;
    let id_of = |token: &str| hf.token_to_id(token);
    let names = SpecialNames {
        bos: token_name(&config, "bos_token"),
        eos: token_name(&config, "eos_token"),
        pad: token_name(&config, "pad_token"),
        unk: token_name(&config, "unk_token"),
    };
    let mut special = SpecialIds::default();
    for source in [&generation, &model] {
        special.bos = special
            .bos
            .or(ids(&source["bos_token_id"]).first().copied());
        special.pad = special
            .pad
            .or(ids(&source["pad_token_id"]).first().copied());
        add(&mut special.eos, ids(&source["eos_token_id"]));
    }
    special.bos = special.bos.or(names.bos.as_deref().and_then(id_of));
    special.pad = special.pad.or(names.pad.as_deref().and_then(id_of));
    add(&mut special.eos, names.eos.as_deref().and_then(id_of));
    let (special, names) = with_our_own(special, names, id_of);
    if let Some(bos) = special.bos
        && hf.id_to_token(bos).is_none()
    {
        return Err(TokenizerError::file(
            dir,
            format!(
                "its config names bos_token_id {bos}, which its tokenizer.json does not have; the files belong to \
                 different models"
            ),
        ));
    }

    let template_path = dir.join("chat_template.jinja");
    let template = if template_path.is_file() {
        let source = read_bounded(&template_path, LARGEST_CONFIG)?;
        let source = String::from_utf8(source)
            .map_err(|_| TokenizerError::file(&template_path, "it is not UTF-8 text"))?;
        Some((source, template_path))
    } else {
        template_in(&config["chat_template"]).map(|source| (source, config_path))
    };
    let template = match template {
        Some((source, path)) => Some(
            ChatTemplate::with_names(source, &names).map_err(|e| TokenizerError::file(&path, e))?,
        ),
        None => None,
    };
    Tokenizer::assemble(hf, json, &value, special, names, template)
        .map_err(|reason| TokenizerError::file(&file, reason))
}

/// The bytes of a `tokenizer.json` -> the library's tokenizer and the file as plain JSON.
pub(crate) fn parse(json: &[u8]) -> Result<(tokenizers::Tokenizer, Value), String> {
    let value: Value = serde_json::from_slice(json).map_err(|e| {
        format!("it is not a tokenizer.json: {e}; take the file from its source again")
    })?;
    if value["model"].is_null() {
        return Err("it has no `model`, so it is not a tokenizer.json".to_string());
    }
    check(&value)?;
    let hf = catch_unwind(AssertUnwindSafe(|| tokenizers::Tokenizer::from_bytes(json)))
        .map_err(|_| {
            "its parts contradict each other (a merge or a character map does not fit the vocabulary); take the \
             file from its source again"
                .to_string()
        })?
        .map_err(|e| format!("the tokenizers library refuses it: {e}"))?;
    Ok((hf, value))
}

/// The vocabulary by id, with holes as `None`.
pub(crate) fn tokens_by_id(hf: &tokenizers::Tokenizer) -> Result<Vec<Option<Token>>, String> {
    let vocab = hf.get_vocab(true);
    let added = hf.get_added_vocabulary();
    let ids = vocab
        .values()
        .chain(added.get_added_tokens_decoder().keys());
    let Some(&largest) = ids.max() else {
        return Err("its vocabulary is empty".to_string());
    };
    if largest >= LARGEST_ID {
        return Err(format!(
            "it has a token with id {largest}; ids must be below {LARGEST_ID}"
        ));
    }
    let mut tokens = vec![None; largest as usize + 1];
    for (name, id) in vocab {
        let slot: &mut Option<Token> = &mut tokens[id as usize];
        // Two names for one id: keep the smaller, so that the result does not depend on hash order.
        if slot.as_ref().is_none_or(|other| name < other.name) {
            *slot = Some(Token {
                seen: name.clone(),
                name,
                special: false,
            });
        }
    }
    for (&id, token) in added.get_added_tokens_decoder() {
        let seen = added
            .simple_id_to_token(id)
            .unwrap_or_else(|| token.content.clone());
        tokens[id as usize] = Some(Token {
            name: token.content.clone(),
            seen,
            special: token.special,
        });
    }
    Ok(tokens)
}

/// What the library would take at its word and should not.
fn check(value: &Value) -> Result<(), String> {
    let model = &value["model"];
    if model["dropout"].as_f64().is_some_and(|p| p != 0.0) {
        return Err(format!(
            "its model has dropout {}, which makes encoding random; set \"dropout\" to null",
            model["dropout"]
        ));
    }
    if let Some(vocab) = model["vocab"].as_object()
        && let Some((token, id)) = vocab
            .iter()
            .find(|(_, id)| id.as_u64().is_none_or(|id| id >= u64::from(LARGEST_ID)))
    {
        return Err(format!(
            "its token {token:?} has the id {id}; ids must be whole numbers below {LARGEST_ID}"
        ));
    }
    if let Some(added) = value["added_tokens"].as_array()
        && let Some(token) = added.iter().find(|t| {
            t["id"]
                .as_u64()
                .is_none_or(|id| id >= u64::from(LARGEST_ID))
        })
    {
        return Err(format!(
            "its added token {} has the id {}; ids must be whole numbers below {LARGEST_ID}",
            token["content"], token["id"]
        ));
    }
    let mut growth = 1.0;
    normalizer_growth(&value["normalizer"], 0, &mut growth)?;
    if growth > 1e4 {
        return Err("its normalizer could blow a text up more than ten thousand times; that is not a real tokenizer"
            .to_string());
    }
    let post = value["post_processor"].to_string();
    if post.len() > 64 << 10 {
        return Err(
            "its post_processor has more than 64 KiB; a real one puts a few tokens around a text"
                .to_string(),
        );
    }
    Ok(())
}

/// An upper bound on bytes out per byte in, so that no chain of replacements can fill the memory.
fn normalizer_growth(step: &Value, depth: usize, growth: &mut f64) -> Result<(), String> {
    if depth > 8 {
        return Err("its normalizer is nested deeper than any real one".to_string());
    }
    match step["type"].as_str() {
        Some("Sequence") => {
            for inner in step["normalizers"]
                .as_array()
                .map_or(&[][..], Vec::as_slice)
            {
                normalizer_growth(inner, depth + 1, growth)?;
            }
        }
        Some("Replace") => {
            let to = step["content"].as_str().unwrap_or("").len();
            let from = step["pattern"]["String"].as_str().map_or(0, str::len);
            // A pattern that can match the empty string inserts between any two characters.
            *growth *= if from == 0 {
                to as f64 + 1.0
            } else {
                (to as f64 / from as f64).max(1.0)
            };
        }
        Some("Prepend") => *growth *= step["prepend"].as_str().unwrap_or("").len() as f64 + 1.0,
        // The longest canonical or compatibility decomposition is 18 times its source (U+FDFA).
        Some("NFKD" | "NFKC") => *growth *= 18.0,
        Some("NFD" | "NFC" | "Lowercase" | "ByteLevel" | "BertNormalizer") => *growth *= 4.0,
        _ => {}
    }
    Ok(())
}

/// The roles that the four names of [`crate::train`] have, where a file holds all of them.
fn with_our_own(
    mut special: SpecialIds,
    mut names: SpecialNames,
    id_of: impl Fn(&str) -> Option<u32>,
) -> (SpecialIds, SpecialNames) {
    let ours = [END_OF_TEXT, PAD, IM_START, IM_END].map(&id_of);
    if let [Some(end), Some(pad), Some(2), Some(im_end)] = ours
        && (end, pad, im_end) == (0, 1, 3)
    {
        special.bos = special.bos.or(Some(end));
        special.pad = special.pad.or(Some(pad));
        add(&mut special.eos, [end, im_end]);
        names.bos.get_or_insert_with(|| END_OF_TEXT.to_string());
        names.eos.get_or_insert_with(|| END_OF_TEXT.to_string());
        names.pad.get_or_insert_with(|| PAD.to_string());
    }
    (special, names)
}

fn add(to: &mut Vec<u32>, ids: impl IntoIterator<Item = u32>) {
    for id in ids {
        if !to.contains(&id) {
            to.push(id);
        }
    }
}

/// `5` or `[5, 6]`; anything else is no id.
fn ids(value: &Value) -> Vec<u32> {
    let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value.as_array() {
        Some(list) => list.iter().filter_map(one).collect(),
        None => one(value).into_iter().collect(),
    }
}

/// `"<s>"` or `{"content": "<s>", …}`.
fn token_name(config: &Value, key: &str) -> Option<String> {
    let value = &config[key];
    value
        .as_str()
        .or_else(|| value["content"].as_str())
        .map(str::to_string)
}

/// A template as `tokenizer_config.json` holds it: a string, or a list of named ones.
fn template_in(value: &Value) -> Option<String> {
    if let Some(source) = value.as_str() {
        return Some(source.to_string());
    }
    let list = value.as_array()?;
    let named = list.iter().find(|t| t["name"].as_str() == Some("default"));
    Some(named?["template"].as_str()?.to_string())
}

fn optional_json(path: &Path) -> Result<Value> {
    if !path.is_file() {
        return Ok(Value::Null);
    }
    let bytes = read_bounded(path, LARGEST_CONFIG)?;
    serde_json::from_slice(&bytes)
        .map_err(|e| TokenizerError::file(path, format!("it is not JSON: {e}; mend or remove it")))
}

pub(crate) fn read_bounded(path: &Path, largest: u64) -> Result<Vec<u8>> {
    // Asked before opening, because opening a pipe would wait for its writer.
    let metadata = std::fs::metadata(path).map_err(|e| TokenizerError::file(path, e))?;
    if !metadata.is_file() {
        return Err(TokenizerError::file(path, "it is not a regular file"));
    }
    let file = File::open(path).map_err(|e| TokenizerError::file(path, e))?;
    let mut bytes = Vec::new();
    file.take(largest + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| TokenizerError::file(path, e))?;
    if bytes.len() as u64 > largest {
        return Err(TokenizerError::file(
            path,
            format!(
                "it has more than {} MiB; no real file of its kind is that large",
                largest >> 20
            ),
        ));
    }
    Ok(bytes)
}
