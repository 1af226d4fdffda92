//! A conversation with tools, and which of its tokens the assistant said.
//!
//! Fine-tuning learns the assistant's tokens and no others, so a border between a prompt and an answer must be a border
//! between tokens. It is so when a prompt is answered: the prompt is encoded alone, and the answer comes token by token. Where
//! a byte-pair encoding of the whole text would merge across a border, the text is cut there, and both sides are encoded
//! alone: what is learnt is what generation will see.
//!
//! Where the borders are, the template says, in one of two ways:
//!
//! - it marks the assistant's text, `{% generation %}…{% endgeneration %}`, as transformers' `return_assistant_tokens_mask`
//!   reads it; what is marked counts, no more and no less;
//! - else the conversation is rendered prefix by prefix: an answer begins where the messages before it, rendered with the
//!   generation prompt, end, and ends with the first token behind that which ends a generation. A template that renders a
//!   conversation's beginning otherwise than the beginning of the whole is refused.

use std::ops::Range;
use std::time::SystemTime;

use minijinja::Value as Jinja;
use minijinja::value::Serde;
use serde_json::{Map, Value};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::{OffsetReferential, OffsetType};

use crate::chat::{ChatTemplate, Masks, Message, free_characters};
use crate::error::{Result, TokenizerError};
use crate::tokenizer::{SpecialTokens, Tokenizer};

/// Messages with whatever keys their template reads, and the tools that may be called.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// Each has a `role`, mostly a `content`, and perhaps `tool_calls`, `name` and others.
    pub messages: Vec<Map<String, Value>>,
    /// Functions as OpenAI describes them; none where empty.
    pub tools: Vec<Value>,
}

/// A conversation's tokens, and which the assistant said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turns {
    /// All tokens, as [`Tokenizer::encode_conversation`] makes them but for cuts at borders.
    pub ids: Vec<u32>,
    /// What the assistant said, in order and apart; the token that ends a turn is part of it.
    pub spans: Vec<Span>,
}

/// What the assistant said in one turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The message, by number; `None` where the template's marks are not one for each of the assistant's messages.
    pub message: Option<usize>,
    /// Its tokens.
    pub tokens: Range<usize>,
}

impl From<&[Message]> for Conversation {
    fn from(messages: &[Message]) -> Conversation {
        let object = |message: &Message| {
            let pairs = [("role", &message.role), ("content", &message.content)];
            pairs
                .map(|(key, text)| (key.to_owned(), Value::from(text.as_str())))
                .into_iter()
                .collect()
        };
        Conversation {
            messages: messages.iter().map(object).collect(),
            tools: Vec::new(),
        }
    }
}

impl Conversation {
    /// Hands out every string in it, keys too.
    pub(crate) fn each_text(&self, each: &mut dyn FnMut(&str)) {
        self.messages.iter().for_each(|message| {
            message.iter().for_each(|(key, value)| {
                each(key);
                each_text(value, each);
            });
        });
        self.tools.iter().for_each(|tool| each_text(tool, each));
    }

    /// The same with every string changed.
    pub(crate) fn map(&self, change: &dyn Fn(&str) -> String) -> Conversation {
        Conversation {
            messages: self
                .messages
                .iter()
                .map(|message| map_object(message, change))
                .collect(),
            tools: self.tools.iter().map(|tool| map(tool, change)).collect(),
        }
    }

    /// Bytes of all strings.
    pub(crate) fn bytes(&self) -> usize {
        let mut bytes = 0;
        self.each_text(&mut |text| bytes += text.len());
        bytes
    }

    /// Whether any string has `special` in it.
    pub(crate) fn names(&self, special: &str) -> bool {
        let mut found = false;
        self.each_text(&mut |text| found |= text.contains(special));
        found
    }

    fn is_of_assistant(&self, message: usize) -> bool {
        self.messages[message].get("role").and_then(Value::as_str) == Some("assistant")
    }
}

fn each_text(value: &Value, each: &mut dyn FnMut(&str)) {
    match value {
        Value::String(text) => each(text),
        Value::Array(values) => values.iter().for_each(|value| each_text(value, each)),
        Value::Object(object) => object.iter().for_each(|(key, value)| {
            each(key);
            each_text(value, each);
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn map_object(object: &Map<String, Value>, change: &dyn Fn(&str) -> String) -> Map<String, Value> {
    object
        .iter()
        .map(|(key, value)| (change(key), map(value, change)))
        .collect()
}

fn map(value: &Value, change: &dyn Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => change(text).into(),
        Value::Array(values) => values.iter().map(|value| map(value, change)).collect(),
        Value::Object(object) => map_object(object, change).into(),
        other => other.clone(),
    }
}

/// Text that the assistant says, before it is tokens.
struct Said {
    message: Option<usize>,
    bytes: Range<usize>,
}

pub(crate) fn encode_turns(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    conversation: &Conversation,
    now: SystemTime,
) -> Result<Turns> {
    let masks = Masks::of(tokenizer, template, conversation);
    let hidden = masks
        .as_ref()
        .map(|masks| conversation.map(&|text| masks.hide(text)));
    let shown = hidden.as_ref().unwrap_or(conversation);
    let marked = template.marks_generation();
    let (text, said) = match marked {
        true => by_marks(template, conversation, shown, now)?,
        false => by_prefixes(template, shown, now)?,
    };
    let cuts: Vec<usize> = said
        .iter()
        .flat_map(|said| [said.bytes.start, said.bytes.end])
        .collect();
    let (ids, places) = encode_cut(tokenizer, masks.as_ref(), &text, &cuts)?;
    let ends = &tokenizer.special().eos;
    let mut spans = Vec::new();
    for (said, places) in said.into_iter().zip(places.chunks_exact(2)) {
        let mut tokens = places[0]..places[1];
        if !marked {
            let end = ids[tokens.clone()].iter().position(|id| ends.contains(id));
            let Some(end) = end else {
                return Err(TokenizerError::Chat(
                    "it ends the assistant's turn with no token that ends a generation, so a model that learns it would never \
                     stop; name the turn's last token in `eos_token_id` of generation_config.json"
                        .to_owned(),
                ));
            };
            tokens.end = tokens.start + end + 1;
        }
        if !tokens.is_empty() {
            spans.push(Span {
                message: said.message,
                tokens,
            });
        }
    }
    Ok(Turns { ids, spans })
}

/// The messages as templates see them.
fn values(conversation: &Conversation) -> Vec<Jinja> {
    let value = |message| Jinja::from(Serde(message));
    conversation.messages.iter().map(value).collect()
}

/// What the template marks as the assistant's.
fn by_marks(
    template: &ChatTemplate,
    conversation: &Conversation,
    shown: &Conversation,
    now: SystemTime,
) -> Result<(String, Vec<Said>)> {
    // Of the conversation as it was, so that no character is one that hides a name.
    let free = free_characters(conversation, template, 2);
    let Ok(marks) = <[char; 2]>::try_from(free) else {
        return Err(TokenizerError::Chat(
            "this conversation uses every private-use character, so nothing can be marked in it; leave some out".to_owned(),
        ));
    };
    let turns = values(shown);
    let rendered = template.render_turns(
        &turns,
        shown,
        false,
        now,
        marks.map(|mark| mark.to_string()),
    )?;
    let (mut text, mut said) = (String::new(), Vec::new());
    let mut begun = None;
    for c in rendered.chars() {
        match (marks.iter().position(|&mark| mark == c), begun) {
            (None, _) => text.push(c),
            (Some(0), None) => begun = Some(text.len()),
            (Some(1), Some(start)) => {
                begun = None;
                said.push(Said {
                    message: None,
                    bytes: start..text.len(),
                });
            }
            _ => {
                return Err(TokenizerError::Chat(
                    "its `generation` blocks lie within one another, so what the assistant says cannot be told; mend the \
                     template"
                        .to_owned(),
                ));
            }
        }
    }
    let own: Vec<usize> = (0..shown.messages.len())
        .filter(|&message| shown.is_of_assistant(message))
        .collect();
    if own.len() == said.len() {
        for (said, message) in said.iter_mut().zip(own) {
            said.message = Some(message);
        }
    }
    Ok((text, said))
}

/// What comes after each beginning that ends where the assistant is to speak.
fn by_prefixes(
    template: &ChatTemplate,
    shown: &Conversation,
    now: SystemTime,
) -> Result<(String, Vec<Said>)> {
    let turns = values(shown);
    let render = |count: usize, prompt: bool| {
        let none = [String::new(), String::new()];
        template.render_turns(&turns[..count], shown, prompt, now, none)
    };
    let text = render(turns.len(), false)?;
    let mut said = Vec::new();
    for message in (0..turns.len()).filter(|&message| shown.is_of_assistant(message)) {
        let before = render(message, true)?;
        let after = render(message + 1, false)?;
        if !text.starts_with(&before) || !text.starts_with(&after) || after.len() < before.len() {
            return Err(TokenizerError::Chat(format!(
                "it renders the beginning of this conversation, up to message {}, otherwise than the beginning of the whole, \
                 so what the assistant says cannot be told; mark it in the template with {{% generation %}} and \
                 {{% endgeneration %}}",
                message + 1
            )));
        }
        said.push(Said {
            message: Some(message),
            bytes: before.len()..after.len(),
        });
    }
    Ok((text, said))
}

/// Encodes a rendered text so that a token begins at each of `cuts`, bytes in rising order; and the tokens that do.
fn encode_cut(
    tokenizer: &Tokenizer,
    masks: Option<&Masks>,
    text: &str,
    cuts: &[usize],
) -> Result<(Vec<u32>, Vec<usize>)> {
    if masks.is_none()
        && !tokenizer.encodes_by_words()
        && let Some(made) = encode_whole(tokenizer, text, cuts)?
    {
        return Ok(made);
    }
    let show = |part: &str| masks.map_or_else(|| part.to_owned(), |masks| masks.show(part));
    let (mut ids, mut places) = (Vec::new(), Vec::new());
    let mut cuts = cuts.iter().copied().peekable();
    let split = tokenizer
        .parsing()
        .get_added_vocabulary()
        .extract_and_normalize::<NormalizerWrapper>(None, text);
    for (_, (start, end), tokens) in split.get_splits(OffsetReferential::Original, OffsetType::Byte)
    {
        if let Some(tokens) = tokens {
            while cuts.next_if(|&cut| cut <= start).is_some() {
                places.push(ids.len());
            }
            // One inside is of the blanks that the token takes in.
            ids.extend(tokens.iter().map(|token| token.id));
            while cuts.next_if(|&cut| cut < end).is_some() {
                places.push(ids.len());
            }
            continue;
        }
        let mut at = start;
        while at < end {
            while cuts.next_if(|&cut| cut <= at).is_some() {
                places.push(ids.len());
            }
            let stop = cuts.peek().map_or(end, |&cut| cut.min(end));
            let part = show(&text[at..stop]);
            let made = tokenizer.encode(&part, false)?;
            if stop - at < end - start && !tokenizer.encodes_by_words() {
                let bytes = made.iter().flat_map(|&id| tokenizer.token_bytes(id));
                if !bytes.eq(part.as_bytes()) {
                    return Err(TokenizerError::Chat(
                        "this tokenizer puts something before a text of its own, so the border of what the assistant says \
                         falls into a token; end the generation prompt with a special token or a line end"
                            .to_owned(),
                    ));
                }
            }
            ids.extend(made);
            at = stop;
        }
    }
    places.extend(cuts.map(|_| ids.len()));
    Ok((ids, places))
}

/// The whole text's tokens, where each cut is a border of them: where the tokens of the text before it are how they begin.
fn encode_whole(
    tokenizer: &Tokenizer,
    text: &str,
    cuts: &[usize],
) -> Result<Option<(Vec<u32>, Vec<usize>)>> {
    let ids = tokenizer.encode_with(text, false, SpecialTokens::Parse)?;
    let mut places = Vec::new();
    for &cut in cuts {
        let before = tokenizer.encode_with(&text[..cut], false, SpecialTokens::Parse)?;
        if !ids.starts_with(&before) {
            return Ok(None);
        }
        places.push(before.len());
    }
    Ok(Some((ids, places)))
}
