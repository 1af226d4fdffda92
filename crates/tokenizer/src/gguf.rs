//! A tokenizer as the entries of a GGUF file, and back.
//!
//! llama.cpp cuts words by a pattern that it knows under a name (`tokenizer.ggml.pre`), and knows two kinds of pair merging: `gpt2`, whose
//! tokens are bytes as printable characters and whose merges have ranks, and `llama`, without words, whose tokens have scores. So:
//!
//! | tokenizer | in GGUF | the same ids |
//! |---|---|---|
//! | `ByteLevel` with the pattern of Qwen 2, Qwen 3.5, Llama 3, GPT-2 or SmolLM | `gpt2`, tokens and merges as they are | but for a normalizer, which llama.cpp leaves out |
//! | trained here | `gpt2` with the pattern `qwen2` | see below |
//! | Llama 2's kind, llama2.c's | `llama`, scores by the rank of the merge | where one token is made by one merge |
//!
//! One trained here has characters where `gpt2` has bytes, so each character of several bytes gets merges that put it together, its last
//! bytes first, before all others. Byte tokens of characters that the alphabet has are never used and marked so. It differs where
//! an apostrophe begins a word (`'so` is `'s`, `o` there; in 2.3 MB of tales, code and documentation 36 of 644,981 tokens), around a
//! combining mark, and in a character outside the alphabet that ends in the same bytes as one in it, of which bytes are lost.
//!
//! The whole `tokenizer.json` goes along under `tokenizer.huggingface.json`; a reader that knows the key, as this one, gets the very tokenizer
//! back. Without it one is made of tokens, types, and merges or scores.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use crate::chat::ChatTemplate;
use crate::error::{Result, TokenizerError};
use crate::tokenizer::{SpecialIds, SpecialNames, Tokenizer};
use crate::vocabulary::{byte_level, byte_token};

/// What llama.cpp knows tokens as.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// A longer token is not cut in two in every way; the longest of published vocabularies have some hundred bytes.
const LONGEST: usize = 1024;

/// Patterns by the names that llama.cpp has for them, the first name being the one written.
const PATTERNS: [(&[&str], &str); 3] = [
    (
        &["qwen2", "deepseek-r1-qwen"],
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        &["qwen35"],
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        &["llama-bpe", "llama3", "llama-v3"],
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
];

/// The entries below `tokenizer.` of a GGUF file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufVocabulary {
    /// `ggml.model`: `gpt2` or `llama`.
    pub model: String,
    /// `ggml.pre`: the name of the pattern that cuts words.
    pub pre: Option<String>,
    /// `ggml.tokens`, by id.
    pub tokens: Vec<String>,
    /// `ggml.token_type`, by id.
    pub types: Vec<i32>,
    /// `ggml.scores`, by id; `llama` only.
    pub scores: Vec<f32>,
    /// `ggml.merges`, by rank, each two tokens with a blank between; `gpt2` only.
    pub merges: Vec<String>,
    /// `ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `ggml.eos_token_id` and `ggml.eot_token_id`.
    pub eos: Vec<u32>,
    /// `ggml.unknown_token_id`.
    pub unknown: Option<u32>,
    /// `ggml.padding_token_id`.
    pub pad: Option<u32>,
    /// `ggml.add_bos_token`.
    pub add_bos: bool,
    /// `ggml.add_space_prefix`.
    pub add_space_prefix: bool,
    /// `chat_template`.
    pub chat_template: Option<String>,
    /// `huggingface.json`: the whole `tokenizer.json`.
    pub huggingface: Option<String>,
}

impl Tokenizer {
    /// This tokenizer for a GGUF file of a model whose table has `rows` rows.
    ///
    /// # Errors
    /// When llama.cpp knows no such tokenizer.
    pub fn to_gguf(&self, rows: usize) -> Result<GgufVocabulary> {
        let refused = TokenizerError::Gguf;
        let file: Value = serde_json::from_slice(self.json()).expect("it was read before");
        if self.vocab_size() > rows {
            return Err(refused(format!(
                "it has {} tokens, but the model's table {rows} rows; they belong to different models",
                self.vocab_size()
            )));
        }
        let first = self.encode("", true)?;
        let special = self.special();
        let mut vocabulary = GgufVocabulary {
            bos: special.bos,
            eos: special.eos.clone(),
            pad: special.pad,
            add_bos: special.bos.is_some() && first.first().copied() == special.bos,
            chat_template: self.chat_template().map(|t| t.source().to_string()),
            huggingface: String::from_utf8(self.json().to_vec()).ok(),
            ..GgufVocabulary::default()
        };
        if file["model"]["type"] != "BPE" {
            return Err(refused(format!(
                "its model is {}, and Russet writes BPE",
                file["model"]["type"]
            )));
        }
        let added: HashMap<u64, bool> = file["added_tokens"]
            .as_array()
            .map_or(&[][..], Vec::as_slice)
            .iter()
            .filter_map(|token| Some((token["id"].as_u64()?, token["special"] == true)))
            .collect();
        for id in 0..self.vocab_size() as u32 {
            let (name, kind) = match (self.token(id), added.get(&u64::from(id))) {
                (None, _) => (String::new(), UNUSED),
                (Some(name), Some(true)) => (name.to_string(), CONTROL),
                (Some(name), Some(false)) => (name.to_string(), USER_DEFINED),
                (Some(name), None) => (name.to_string(), NORMAL),
            };
            vocabulary.tokens.push(name);
            vocabulary.types.push(kind);
        }
        let rules = rules(&file["model"]["merges"]).map_err(refused)?;
        let byte_fallback = file["model"]["byte_fallback"] == true;
        if file["decoder"]["type"] == "ByteLevel" {
            vocabulary.model = "gpt2".into();
            vocabulary.pre = Some(pattern_name(&file).map_err(refused)?.into());
            vocabulary.merges = rules.iter().map(|(a, b)| format!("{a} {b}")).collect();
        } else if self.encodes_by_words() && byte_fallback {
            self.with_bytes(&mut vocabulary, &rules);
        } else if byte_fallback && puts_a_blank_before(&file) {
            self.with_scores(&mut vocabulary, &rules);
        } else {
            return Err(refused(
                "its way of cutting words has no name in llama.cpp that Russet knows; Russet writes tokenizers trained here, ByteLevel ones of \
                 Qwen, Llama 3, GPT-2 and SmolLM, and Llama 2's"
                    .into(),
            ));
        }
        fill(&mut vocabulary, rows);
        Ok(vocabulary)
    }

    /// Tokens of characters as tokens of bytes.
    fn with_bytes(&self, vocabulary: &mut GgufVocabulary, rules: &[(String, String)]) {
        vocabulary.model = "gpt2".into();
        vocabulary.pre = Some("qwen2".into());
        let mut characters = HashSet::new();
        for id in 0..self.vocab_size() as u32 {
            let name = self.token(id).unwrap_or("");
            let mut chars = name.chars();
            if let (Some(c), None) = (chars.next(), chars.next()) {
                characters.insert(c);
            }
        }
        let mut merges = Vec::new();
        let mut sorted: Vec<char> = characters.iter().copied().collect();
        sorted.sort_unstable();
        for c in sorted {
            let mut buffer = [0; 4];
            let bytes = c.encode_utf8(&mut buffer).as_bytes();
            for at in (0..bytes.len() - 1).rev() {
                let (first, rest) = (stand_ins(&bytes[at..=at]), stand_ins(&bytes[at + 1..]));
                merges.push(format!("{first} {rest}"));
            }
        }
        let mut seen = HashSet::new();
        merges.retain(|merge| seen.insert(merge.clone()));
        merges.extend(
            rules
                .iter()
                .map(|(a, b)| format!("{} {}", stand_ins(a.as_bytes()), stand_ins(b.as_bytes()))),
        );
        vocabulary.merges = merges;
        let tokens = vocabulary.tokens.iter_mut().zip(&mut vocabulary.types);
        for (id, (token, kind)) in (0u32..).zip(tokens) {
            if *kind != NORMAL {
                continue;
            }
            match byte_token(token) {
                Some(byte) if byte.is_ascii() && characters.contains(&char::from(byte)) => {
                    *kind = UNUSED;
                }
                _ => *token = stand_ins(self.token_bytes(id)),
            }
        }
    }

    /// Tokens with scores: the earlier a token is merged, the higher.
    fn with_scores(&self, vocabulary: &mut GgufVocabulary, rules: &[(String, String)]) {
        vocabulary.model = "llama".into();
        vocabulary.add_space_prefix = true;
        let mut ranks: HashMap<String, usize> = HashMap::new();
        for (rank, (a, b)) in rules.iter().enumerate() {
            ranks.entry(format!("{a}{b}")).or_insert(rank);
        }
        let tokens = vocabulary.tokens.iter_mut().zip(&mut vocabulary.types);
        for (id, (token, kind)) in (0u32..).zip(tokens) {
            vocabulary
                .scores
                .push(ranks.get(token).map_or(0.0, |&rank| -(rank as f32)));
            if *kind == NORMAL {
                match byte_token(token) {
                    Some(_) => *kind = BYTE,
                    None => *token = token.replace(' ', "▁"),
                }
            } else if self.unknown() == Some(token) {
                *kind = UNKNOWN;
                vocabulary.unknown = Some(id);
            }
        }
    }

    /// The tokenizer that a GGUF file's entries describe.
    ///
    /// # Errors
    /// When they contradict one another, or say what is not understood here.
    pub fn from_gguf(vocabulary: &GgufVocabulary) -> Result<Tokenizer> {
        open(vocabulary).map_err(TokenizerError::Gguf)
    }
}

fn open(vocabulary: &GgufVocabulary) -> Result<Tokenizer, String> {
    let tokens = &vocabulary.tokens;
    if tokens.is_empty() || vocabulary.types.len() != tokens.len() {
        return Err(format!(
            "it has {} tokens and {} types of tokens; both are needed, one each",
            tokens.len(),
            vocabulary.types.len()
        ));
    }
    let names = vocabulary.pad.iter().chain(&vocabulary.unknown);
    for &id in names.chain(&vocabulary.bos).chain(&vocabulary.eos) {
        if id as usize >= tokens.len() {
            return Err(format!(
                "its special token {id} is beyond its {} tokens",
                tokens.len()
            ));
        }
    }
    let own = match &vocabulary.huggingface {
        Some(json) => json.as_bytes().to_vec(),
        None => made(vocabulary)?.to_string().into_bytes(),
    };
    let (hf, value) = crate::open::parse(&own)?;
    let json = match &vocabulary.huggingface {
        Some(_) => own,
        None => hf.to_string(true).map_err(|e| e.to_string())?.into_bytes(),
    };
    let name = |id: Option<u32>| id.map(|id| tokens[id as usize].clone());
    let names = SpecialNames {
        bos: name(vocabulary.bos),
        eos: name(vocabulary.eos.first().copied()),
        pad: name(vocabulary.pad),
        unk: name(vocabulary.unknown),
    };
    let template = match &vocabulary.chat_template {
        None => None,
        Some(source) => Some(
            ChatTemplate::with_names(source.clone(), &names).map_err(|error| error.to_string())?,
        ),
    };
    let special = SpecialIds {
        bos: vocabulary.bos,
        eos: vocabulary.eos.clone(),
        pad: vocabulary.pad,
    };
    let tokenizer = Tokenizer::assemble(hf, json, &value, special, names, template)?;
    if vocabulary.huggingface.is_some() {
        agrees(&tokenizer, vocabulary)?;
    }
    Ok(tokenizer)
}

/// Whether the `tokenizer.json` in a file says of each token what the file's own list says.
fn agrees(tokenizer: &Tokenizer, vocabulary: &GgufVocabulary) -> Result<(), String> {
    let differ = |id: usize| {
        format!(
            "its `tokenizer.huggingface.json` and its `tokenizer.ggml.tokens` differ in token {id}; they belong to different models"
        )
    };
    if tokenizer.vocab_size() > vocabulary.tokens.len() {
        return Err(differ(vocabulary.tokens.len()));
    }
    for (id, token) in vocabulary.tokens.iter().enumerate() {
        let found = tokenizer.token_bytes(id as u32);
        let fits = match vocabulary.types[id] {
            NORMAL if vocabulary.model == "gpt2" => found == bytes_of(token),
            NORMAL => found == token.replace('▁', " ").as_bytes(),
            CONTROL | USER_DEFINED | UNKNOWN => tokenizer.token(id as u32) == Some(token),
            _ => true,
        };
        if !fits {
            return Err(differ(id));
        }
    }
    Ok(())
}

/// A `tokenizer.json` of tokens, types, and merges or scores.
fn made(vocabulary: &GgufVocabulary) -> Result<Value, String> {
    let mut vocab = Map::new();
    let mut added = Vec::new();
    let each = vocabulary.tokens.iter().zip(&vocabulary.types);
    for (id, (token, kind)) in each.enumerate() {
        if vocab.insert(token.clone(), json!(id)).is_some() {
            return Err(format!("two of its tokens are {token:?}"));
        }
        if matches!(*kind, CONTROL | USER_DEFINED | UNKNOWN) {
            added.push(json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": *kind != USER_DEFINED}));
        }
    }
    let bytes = vocabulary.model == "gpt2";
    let rules: Vec<(&str, &str)> = match vocabulary.model.as_str() {
        "gpt2" => {
            let mut rules = Vec::new();
            for merge in &vocabulary.merges {
                // The first token may be a blank itself, so the search begins behind its first character.
                let from = merge.chars().next().map_or(0, char::len_utf8);
                let at = merge[from..].find(' ').map(|at| at + from);
                let at = at.ok_or_else(|| format!("its merge {merge:?} is not two tokens"))?;
                rules.push((&merge[..at], &merge[at + 1..]));
            }
            rules
        }
        "llama" => by_score(vocabulary)?,
        other => {
            return Err(format!(
                "its tokenizer is `{other}`; Russet reads `gpt2` and `llama`, or a `tokenizer.huggingface.json`"
            ));
        }
    };
    // The library refuses merges whose parts or whole are no tokens. Those of a tokenizer trained here, where bytes make up a character, are such.
    for (a, b) in &rules {
        for name in [(*a).to_string(), (*b).to_string(), format!("{a}{b}")] {
            if !vocab.contains_key(&name) {
                return Err(format!(
                    "its merge of {a:?} and {b:?} needs the token {name:?}, which it has not; without a `tokenizer.huggingface.json` it cannot be read here"
                ));
            }
        }
    }
    let merges: Vec<Value> = rules.iter().map(|(a, b)| json!([a, b])).collect();
    let prefix = vocabulary.add_space_prefix && !bytes;
    let (pre, ignore_merges) = match bytes {
        true => pattern(vocabulary.pre.as_deref())?,
        false => (Value::Null, false),
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let blanks = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let (normalizer, decoder) = match (bytes, prefix) {
        (true, _) => (Value::Null, byte_level),
        (false, true) => (
            json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, blanks]}),
            json!({"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}),
        ),
        (false, false) => (
            blanks,
            json!({"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]}),
        ),
    };
    let first = vocabulary.bos.filter(|_| vocabulary.add_bos);
    let post = first.map_or(Value::Null, |id| {
        let name = &vocabulary.tokens[id as usize];
        let bos = |type_id: u32| json!({"SpecialToken": {"id": name, "type_id": type_id}});
        let text = |name: &str, type_id: u32| json!({"Sequence": {"id": name, "type_id": type_id}});
        json!({"type": "TemplateProcessing", "single": [bos(0), text("A", 0)],
            "pair": [bos(0), text("A", 0), bos(1), text("B", 1)],
            "special_tokens": {name: {"id": name, "ids": [id], "tokens": [name]}}})
    });
    let unknown = vocabulary.unknown.map(|id| &vocabulary.tokens[id as usize]);
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": pre, "post_processor": post, "decoder": decoder,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": !bytes, "byte_fallback": !bytes, "ignore_merges": ignore_merges,
            "vocab": vocab, "merges": merges
        }
    }))
}

/// Every way to make a token of two, the highest score first.
fn by_score(vocabulary: &GgufVocabulary) -> Result<Vec<(&str, &str)>, String> {
    if vocabulary.scores.len() != vocabulary.tokens.len() {
        return Err(format!(
            "it has {} tokens and {} scores; both are needed, one each",
            vocabulary.tokens.len(),
            vocabulary.scores.len()
        ));
    }
    let normal: HashMap<&str, u32> = (0u32..)
        .zip(&vocabulary.tokens)
        .filter(|(id, _)| vocabulary.types[*id as usize] == NORMAL)
        .map(|(id, token)| (token.as_str(), id))
        .collect();
    let mut rules = Vec::new();
    for (id, token) in (0u32..).zip(&vocabulary.tokens) {
        if !normal.contains_key(token.as_str()) {
            continue;
        }
        if token.len() > LONGEST {
            return Err(format!(
                "its token {id} has {} bytes; real ones have {LONGEST} at most",
                token.len()
            ));
        }
        let score = vocabulary.scores[id as usize];
        if score.is_nan() {
            return Err(format!("the score of its token {id} is not a number"));
        }
        for (at, _) in token.char_indices().skip(1) {
            let (a, b) = token.split_at(at);
            if let (Some(&left), Some(&right)) = (normal.get(a), normal.get(b)) {
                rules.push((score, id, left, right, a, b));
            }
        }
    }
    rules.sort_by(|x, y| {
        y.0.total_cmp(&x.0)
            .then((x.1, x.2, x.3).cmp(&(y.1, y.2, y.3)))
    });
    Ok(rules.into_iter().map(|rule| (rule.4, rule.5)).collect())
}

/// How words are cut by a name, and whether a word that is a token is taken whole.
fn pattern(name: Option<&str>) -> Result<(Value, bool), String> {
    let level = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": regex});
    match name {
        Some("gpt-2") => return Ok((level(true), false)),
        Some("smollm") => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            return Ok((
                json!({"type": "Sequence", "pretokenizers": [digits, level(true)]}),
                false,
            ));
        }
        _ => {}
    }
    for (names, regex) in PATTERNS {
        if names.iter().any(|known| Some(*known) == name) {
            let split = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
            let whole = names[0] == "llama-bpe";
            return Ok((
                json!({"type": "Sequence", "pretokenizers": [split, level(false)]}),
                whole,
            ));
        }
    }
    let known: Vec<&str> = PATTERNS.iter().map(|(names, _)| names[0]).collect();
    Err(format!(
        "its words are cut in the way `{}`; Russet reads {}, gpt-2 and smollm, or a `tokenizer.huggingface.json`",
        name.unwrap_or("default"),
        known.join(", ")
    ))
}

/// The name of the way in which a `ByteLevel` tokenizer cuts words.
fn pattern_name(file: &Value) -> Result<&'static str, String> {
    let pre = &file["pre_tokenizer"];
    let steps: Vec<&Value> = match pre["pretokenizers"].as_array() {
        Some(steps) if pre["type"] == "Sequence" => steps.iter().collect(),
        _ => vec![pre],
    };
    let by_regex = |step: &Value| {
        step["type"] == "ByteLevel"
            && step["use_regex"] != false
            && step["add_prefix_space"] != true
    };
    let plain = |step: &Value| {
        step["type"] == "ByteLevel"
            && step["use_regex"] == false
            && step["add_prefix_space"] != true
    };
    match steps[..] {
        [step] if by_regex(step) => return Ok("gpt-2"),
        [digits, step]
            if digits["type"] == "Digits"
                && digits["individual_digits"] == true
                && by_regex(step) =>
        {
            return Ok("smollm");
        }
        [split, step]
            if split["type"] == "Split" && split["behavior"] == "Isolated" && plain(step) =>
        {
            let regex = split["pattern"]["Regex"].as_str();
            if let Some((names, _)) = PATTERNS.iter().find(|(_, known)| Some(*known) == regex) {
                return Ok(names[0]);
            }
        }
        _ => {}
    }
    Err("the pattern by which it cuts words has no name in llama.cpp that Russet knows".into())
}

/// Whether a tokenizer without words puts one blank before a text, as Llama 2's and llama2.c's do.
fn puts_a_blank_before(file: &Value) -> bool {
    let (normalizer, pre) = (&file["normalizer"], &file["pre_tokenizer"]);
    let prepends = |step: &Value| {
        step["type"] == "Prepend" && (step["prepend"] == " " || step["prepend"] == "▁")
    };
    let by_normalizer = match normalizer["normalizers"].as_array() {
        Some(steps) => steps.first().is_some_and(prepends),
        None => prepends(normalizer),
    };
    if pre.is_null() {
        return by_normalizer;
    }
    let scheme = &pre["prepend_scheme"];
    normalizer.is_null()
        && pre["type"] == "Metaspace"
        && pre["split"] == false
        && (*scheme == "first" || *scheme == "always")
}

/// The merges of a `tokenizer.json`, in either of its spellings.
fn rules(merges: &Value) -> Result<Vec<(String, String)>, String> {
    let strange = |merge: &Value| format!("its merge {merge} is not two tokens");
    let one = |merge: &Value| {
        let pair = match (merge.as_str(), merge.as_array().map(Vec::as_slice)) {
            (Some(text), _) => text.split_once(' '),
            (None, Some([a, b])) => a.as_str().zip(b.as_str()),
            _ => None,
        };
        let (a, b) = pair.ok_or_else(|| strange(merge))?;
        Ok((a.to_string(), b.to_string()))
    };
    merges
        .as_array()
        .map_or(&[][..], Vec::as_slice)
        .iter()
        .map(one)
        .collect()
}

/// Names for the rows that no token has, each its own.
fn fill(vocabulary: &mut GgufVocabulary, rows: usize) {
    vocabulary.tokens.resize(rows, String::new());
    vocabulary.types.resize(rows, UNUSED);
    if vocabulary.model == "llama" {
        vocabulary.scores.resize(rows, 0.0);
    }
    let mut taken: HashSet<String> = vocabulary.tokens.iter().cloned().collect();
    for (id, token) in vocabulary.tokens.iter_mut().enumerate() {
        if token.is_empty() {
            let mut name = format!("[PAD{id}]");
            while !taken.insert(name.clone()) {
                name.insert(0, '[');
            }
            *token = name;
        }
    }
}

/// Bytes as printable characters.
fn stand_ins(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| stand_in(byte)).collect()
}

/// The inverse of [`byte_level`].
fn stand_in(byte: u8) -> char {
    let code = u32::from(byte);
    let code = match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => code,
        0..=32 => 0x100 + code,
        127..=160 => 0x121 + code - 127,
        173 => 0x143,
    };
    char::from_u32(code).expect("far below the surrogates")
}

/// What a token of stand-ins adds to a text; one with other characters stands for itself.
fn bytes_of(token: &str) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = token.chars().map(byte_level).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

#[cfg(test)]
mod tests;
