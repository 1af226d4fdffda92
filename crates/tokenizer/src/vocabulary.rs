//! What each id adds to a text, as bytes.
//!
//! A `decoder` of a `tokenizer.json` is a chain of small steps over all tokens of a text. For the
//! decoders that language models use, that chain is piecewise: the text is the concatenation of one
//! byte string per token, except that something is stripped from its very start. So the byte strings
//! are worked out once, here, and decoding (and streaming) is a table look-up.
//!
//! Understood: `ByteLevel` (GPT-2, Llama 3, Qwen), `Metaspace`, and sequences of `Replace`,
//! `ByteFallback`, `Fuse` and `Strip` (Llama 2, Gemma, and the tokenizers trained here). Left out, and
//! refused with a sentence: `WordPiece`, `CTC`, `BPEDecoder` and anything that looks across tokens.

use serde_json::Value;

/// What is taken off the start of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// Nothing.
    Keep,
    /// Up to `count` characters `what`.
    Strip { what: char, count: usize },
    /// Every character `what` of the first token (`Metaspace`).
    Without { what: char },
}

/// One entry of a file's vocabulary.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    /// As the file writes it.
    pub(crate) name: String,
    /// What the decoder is given (differs where an added token was normalized).
    pub(crate) seen: String,
    /// A control token?
    pub(crate) special: bool,
}

/// All tokens by id: their names, their bytes, and whether they are special.
#[derive(Clone, Debug)]
pub(crate) struct Vocabulary {
    names: Vec<Option<Box<str>>>,
    bytes: Vec<u8>,
    ends: Vec<u32>,
    special: Vec<bool>,
    pub(crate) start: Start,
}

impl Vocabulary {
    /// `tokens[id]`; holes are `None`.
    pub(crate) fn new(tokens: Vec<Option<Token>>, decoder: &Value) -> Result<Self, String> {
        let scheme = Scheme::parse(decoder)?;
        let mut new = Vocabulary {
            names: Vec::with_capacity(tokens.len()),
            bytes: Vec::new(),
            ends: Vec::with_capacity(tokens.len()),
            special: Vec::with_capacity(tokens.len()),
            start: scheme.start,
        };
        for token in tokens {
            if let Some(token) = token {
                scheme.piece(&token.seen, &mut new.bytes);
                new.names.push(Some(token.name.into_boxed_str()));
                new.special.push(token.special);
            } else {
                new.names.push(None);
                new.special.push(false);
            }
            let end = u32::try_from(new.bytes.len())
                .map_err(|_| "its tokens are longer than 4 GiB together".to_string())?;
            new.ends.push(end);
        }
        Ok(new)
    }

    /// Highest id + 1.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    pub(crate) fn name(&self, id: u32) -> Option<&str> {
        self.names.get(id as usize)?.as_deref()
    }

    /// What `id` adds to a text; nothing if there is no such id.
    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        if id >= self.ends.len() {
            return &[];
        }
        let from = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[from as usize..self.ends[id] as usize]
    }

    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// Names and ids of the special tokens, by id.
    pub(crate) fn specials(&self) -> impl Iterator<Item = (u32, &str)> {
        (0..self.len() as u32)
            .filter(|&id| self.is_special(id))
            .filter_map(|id| Some((id, self.name(id)?)))
    }
}

/// The decoder as steps on one token.
struct Scheme {
    steps: Vec<Step>,
    start: Start,
}

enum Step {
    /// Every `from` becomes `to`.
    Replace { from: String, to: String },
    /// `<0xNN>` becomes one byte.
    Byte,
    /// GPT-2's printable stand-ins become bytes; a token with any other character stays as it is.
    ByteLevel,
}

impl Scheme {
    fn parse(decoder: &Value) -> Result<Scheme, String> {
        let mut scheme = Scheme {
            steps: Vec::new(),
            start: Start::Keep,
        };
        let mut fused = false;
        let mut flat = Vec::new();
        flatten(decoder, 0, &mut flat)?;
        if flat.is_empty() {
            return Err(
                "it has no `decoder`, so its tokens cannot be put together into a text; \
                 add one (for example ByteLevel) or take another tokenizer"
                    .to_string(),
            );
        }
        for step in flat {
            let kind = step["type"].as_str().unwrap_or("(none)");
            let alone = scheme.steps.is_empty() && scheme.start == Start::Keep;
            let last_is_bytes = matches!(scheme.steps.last(), Some(Step::Byte | Step::ByteLevel));
            match kind {
                "Fuse" => fused = true,
                "ByteFallback" if !fused && !last_is_bytes => scheme.steps.push(Step::Byte),
                "ByteLevel" if !fused && alone => {
                    scheme.steps.push(Step::ByteLevel);
                    fused = true;
                }
                "Replace" if !last_is_bytes => {
                    let from = step["pattern"]["String"].as_str().unwrap_or("");
                    let to = step["content"].as_str().unwrap_or("");
                    if from.chars().count() != 1 || to.len() > 16 {
                        return Err("its decoder has a `Replace` step of another kind than one character for \
                             a short text; that is not understood here"
                            .to_string());
                    }
                    scheme.steps.push(Step::Replace {
                        from: from.to_string(),
                        to: to.to_string(),
                    });
                }
                "Metaspace" if !fused && alone => {
                    let what = one_char(&step["replacement"])?;
                    scheme.steps.push(Step::Replace {
                        from: what.to_string(),
                        to: " ".to_string(),
                    });
                    let never = step["prepend_scheme"].as_str() == Some("never")
                        || step["add_prefix_space"].as_bool() == Some(false);
                    if !never {
                        scheme.start = Start::Without { what };
                    }
                    fused = true;
                }
                "Strip"
                    if fused && scheme.start == Start::Keep && step["stop"].as_u64() == Some(0) =>
                {
                    let count = step["start"].as_u64().unwrap_or(0);
                    scheme.start = Start::Strip {
                        what: one_char(&step["content"])?,
                        count: usize::try_from(count).unwrap_or(usize::MAX),
                    };
                }
                other => {
                    return Err(format!(
                        "its decoder step `{other}` (or its place in the chain) is not understood; understood are \
                         ByteLevel, Metaspace, and chains of Replace, ByteFallback, Fuse and Strip"
                    ));
                }
            }
        }
        Ok(scheme)
    }

    /// Append what one token adds to a text.
    fn piece(&self, token: &str, out: &mut Vec<u8>) {
        let mut text = std::borrow::Cow::Borrowed(token);
        for step in &self.steps {
            match step {
                Step::Replace { from, to } => {
                    if text.contains(from.as_str()) {
                        text = text.replace(from.as_str(), to).into();
                    }
                }
                Step::Byte => {
                    if let Some(byte) = byte_token(&text) {
                        out.push(byte);
                        return;
                    }
                }
                Step::ByteLevel => {
                    let before = out.len();
                    for c in text.chars() {
                        match byte_level(c) {
                            Some(byte) => out.push(byte),
                            None => {
                                out.truncate(before);
                                out.extend_from_slice(text.as_bytes());
                                break;
                            }
                        }
                    }
                    return;
                }
            }
        }
        out.extend_from_slice(text.as_bytes());
    }
}

/// The value of a token named `<0xNN>`, as the library reads it.
pub(crate) fn byte_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() != 2 {
        return None;
    }
    u8::from_str_radix(hex, 16).ok()
}

/// GPT-2's map from printable characters to bytes (Radford et al. 2019, `bytes_to_unicode`), inverted.
pub(crate) fn byte_level(c: char) -> Option<u8> {
    let code = c as u32;
    match code {
        // Printable bytes stand for themselves.
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => Some(code as u8),
        // The 68 others, in order: 0..=32, 127..=160, 173.
        0x100..=0x120 => Some((code - 0x100) as u8),
        0x121..=0x142 => Some((code - 0x121 + 127) as u8),
        0x143 => Some(173),
        _ => None,
    }
}

fn one_char(value: &Value) -> Result<char, String> {
    let mut chars = value.as_str().unwrap_or("").chars();
    match (chars.next(), chars.next()) {
        (Some(c), None) => Ok(c),
        _ => Err(
            "its decoder names a `replacement` or `content` that is not one character".to_string(),
        ),
    }
}

/// Decoder sequences, flattened. Depth is bounded because the file is a stranger's.
fn flatten<'a>(value: &'a Value, depth: usize, out: &mut Vec<&'a Value>) -> Result<(), String> {
    if depth > 8 || out.len() > 64 {
        return Err("its decoder is nested deeper or longer than any real one".to_string());
    }
    if value.is_null() {
        return Ok(());
    }
    if value["type"].as_str() == Some("Sequence") {
        for step in value["decoders"].as_array().map_or(&[][..], Vec::as_slice) {
            flatten(step, depth + 1, out)?;
        }
        return Ok(());
    }
    out.push(value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pieces(decoder: Value, tokens: &[&str]) -> Result<Vec<Vec<u8>>, String> {
        let tokens = tokens
            .iter()
            .map(|t| {
                Some(Token {
                    name: t.to_string(),
                    seen: t.to_string(),
                    special: false,
                })
            })
            .collect::<Vec<_>>();
        let vocabulary = Vocabulary::new(tokens, &decoder)?;
        Ok((0..vocabulary.len() as u32)
            .map(|id| vocabulary.bytes(id).to_vec())
            .collect())
    }

    #[test]
    fn byte_level_inverts_the_published_table() {
        // Built as GPT-2's encoder.py builds it.
        let mut next = 256;
        for byte in 0u32..256 {
            let printable = (0x21..=0x7e).contains(&byte)
                || (0xa1..=0xac).contains(&byte)
                || (0xae..=0xff).contains(&byte);
            let code = if printable {
                byte
            } else {
                next += 1;
                next - 1
            };
            let c = char::from_u32(code).expect("below the surrogates");
            assert_eq!(byte_level(c), Some(byte as u8));
        }
        assert_eq!(byte_level('\u{144}'), None);
        assert_eq!(byte_level(' '), None);
    }

    #[test]
    fn each_known_decoder_gives_its_bytes() {
        let ours =
            json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]});
        assert_eq!(
            pieces(ours, &[" a", "<0xE2>", "<0x4>"]).unwrap(),
            [b" a".to_vec(), vec![0xe2], b"<0x4>".to_vec()]
        );
        let llama = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        assert_eq!(
            pieces(llama, &["▁▁a", "<0x41>"]).unwrap(),
            [b"  a".to_vec(), b"A".to_vec()]
        );
        let gpt = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true});
        assert_eq!(
            pieces(gpt, &["Ġa", "[PA D]"]).unwrap(),
            [b" a".to_vec(), b"[PA D]".to_vec()]
        );
    }

    #[test]
    fn other_decoders_are_refused_by_name() {
        for decoder in [
            json!({"type": "WordPiece", "prefix": "##"}),
            json!(null),
            json!({"type": "CTC"}),
        ] {
            let error = pieces(decoder, &["a"]).unwrap_err();
            assert!(error.contains("decoder"), "{error}");
        }
    }
}
