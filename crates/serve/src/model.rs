//! The text side of a model: tokens to words and back. The engine knows none of it.

use std::sync::Arc;

use russet_engine::guide::Vocabulary;
use russet_tokenizer::{CHATML, CHATML_TOOLS, Tokenizer};

use crate::tools::{OPEN, Open};

/// What serving a model needs to know beside its engine.
pub struct Model {
    /// What it is called in requests.
    pub name: String,
    /// Its tokenizer, with a chat template where it is to chat.
    pub tokenizer: Tokenizer,
    /// The token that stands before a text.
    pub bos: u32,
    /// Tokens that end an answer.
    pub eos: Vec<u32>,
}

/// A model's text side, ready.
pub(crate) struct Text {
    pub tokenizer: Tokenizer,
    pub vocabulary: Vocabulary,
    pub bos: u32,
    pub eos: Vec<u32>,
    /// How calls of tools begin; `None`: the chat template has no form for tools.
    pub tools: Option<Open>,
}

/// The tokens of a tokenizer, as guides need them.
///
/// # Errors
/// When no token ends an answer.
pub fn vocabulary(tokenizer: &Tokenizer, ends: &[u32]) -> russet_engine::Result<Vocabulary> {
    let ids = 0..tokenizer.vocab_size() as u32;
    let bytes = |id| tokenizer.token_bytes(id).to_vec();
    let tokens = ids.clone().map(bytes).collect();
    let special: Vec<u32> = ids.filter(|&id| tokenizer.is_special(id)).collect();
    let known = |&&end: &&u32| (end as usize) < tokenizer.vocab_size();
    let ends: Vec<u32> = ends.iter().filter(known).copied().collect();
    Vocabulary::new(tokens, &special, &ends)
}

impl Text {
    pub fn new(model: Model) -> crate::Result<Arc<Text>> {
        let Model {
            mut tokenizer,
            bos,
            eos,
            ..
        } = model;
        // The same without tools.
        if tokenizer
            .chat_template()
            .is_some_and(|template| template.source() == CHATML)
        {
            tokenizer = tokenizer
                .with_chat_template(CHATML_TOOLS)
                .map_err(|error| crate::Error::Start(error.to_string()))?;
        }
        let template = tokenizer
            .chat_template()
            .map_or("", |template| template.source());
        let tools =
            (template.contains("tools") && template.contains(OPEN)).then(|| {
                match tokenizer.token_id(OPEN) {
                    Some(id) if tokenizer.is_special(id) => Open::Token,
                    _ => Open::Text,
                }
            });
        let vocabulary = vocabulary(&tokenizer, &eos).map_err(crate::Error::Engine)?;
        Ok(Arc::new(Text {
            tokenizer,
            vocabulary,
            bos,
            eos,
            tools,
        }))
    }

    /// A prompt's tokens: as the tokenizer begins a text, or its first token alone where the prompt is empty.
    pub fn encode_prompt(&self, prompt: &str) -> russet_tokenizer::Result<Vec<u32>> {
        let tokens = self.tokenizer.encode(prompt, true)?;
        Ok(if tokens.is_empty() {
            vec![self.bos]
        } else {
            tokens
        })
    }

    /// A token as a text: what it adds, or a control token's name. Bytes that are no text by themselves are written as
    /// OpenAI does it.
    pub fn shown(&self, id: u32) -> String {
        if self.tokenizer.is_special(id) {
            return self.tokenizer.token(id).unwrap_or_default().to_owned();
        }
        let bytes = self.tokenizer.token_bytes(id);
        match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => {
                let escaped: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
                format!("bytes:{escaped}")
            }
        }
    }
}
