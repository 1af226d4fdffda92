//! Tokens to text, one at a time.
//!
//! A token may end in the middle of a character. What is complete is handed out at once; at most three
//! bytes wait for the next token. The pieces put together are exactly what decoding all tokens at once
//! gives, because that is how [`crate::Tokenizer::decode`] does it. Bytes that can never become a
//! character turn into U+FFFD, one per maximal broken part (as `String::from_utf8_lossy` does; the
//! Hugging Face library agrees for `ByteLevel` and writes one per byte for `ByteFallback`).

use crate::vocabulary::{Start, Vocabulary};

/// A stream of tokens becoming text; see [`crate::Tokenizer::detokenizer`].
#[derive(Clone, Debug)]
pub struct Detokenizer<'a> {
    vocabulary: &'a Vocabulary,
    skip_special: bool,
    /// Bytes of a character that is not complete yet; at most three between calls.
    pending: Vec<u8>,
    /// What is still to be taken off the start.
    start: Start,
    /// The id after which the start rule holds again (llama2.c: the token before is `bos`).
    bos: Option<u32>,
}

impl<'a> Detokenizer<'a> {
    pub(crate) fn new(
        vocabulary: &'a Vocabulary,
        skip_special: bool,
        starts_text: bool,
        bos: Option<u32>,
    ) -> Self {
        Self {
            vocabulary,
            skip_special,
            pending: Vec::new(),
            start: if starts_text {
                vocabulary.start
            } else {
                Start::Keep
            },
            bos,
        }
    }

    /// Take one token; return the text that is complete now (often all of it, sometimes none).
    /// An id that the tokenizer does not have adds nothing.
    pub fn push(&mut self, id: u32) -> String {
        let mut out = String::new();
        self.push_into(id, &mut out);
        out
    }

    /// [`Detokenizer::push`] onto the end of `out`.
    pub fn push_into(&mut self, id: u32, out: &mut String) {
        if self.vocabulary.name(id).is_some()
            && !(self.skip_special && self.vocabulary.is_special(id))
        {
            self.take(id);
            self.drain(false, out);
        }
        if self.bos == Some(id) {
            self.start = self.vocabulary.start;
        }
    }

    /// Append the bytes of one token, less what the start rule takes off.
    fn take(&mut self, id: u32) {
        let mut bytes = self.vocabulary.bytes(id);
        match &mut self.start {
            Start::Keep => self.pending.extend_from_slice(bytes),
            Start::Strip { what, count } => {
                // Leading occurrences may be spread over several tokens.
                let mut buffer = [0; 4];
                let mark = what.encode_utf8(&mut buffer).as_bytes();
                while *count > 0 && bytes.starts_with(mark) {
                    bytes = &bytes[mark.len()..];
                    *count -= 1;
                }
                if !bytes.is_empty() || *count == 0 {
                    self.start = Start::Keep;
                }
                self.pending.extend_from_slice(bytes);
            }
            Start::Without { what } => {
                let what = *what;
                let name = self.vocabulary.name(id).unwrap_or_default();
                self.pending.extend(name.replace(what, "").as_bytes());
                self.start = Start::Keep;
            }
        }
    }

    /// The end of the stream: what was held back, as U+FFFD since it never became a character.
    pub fn finish(mut self) -> String {
        let mut out = String::new();
        self.finish_into(&mut out);
        out
    }

    pub(crate) fn finish_into(&mut self, out: &mut String) {
        self.drain(true, out);
    }

    /// Move what is decided from `pending` to `out`.
    fn drain(&mut self, end: bool, out: &mut String) {
        let mut from = 0;
        while from < self.pending.len() {
            match std::str::from_utf8(&self.pending[from..]) {
                Ok(text) => {
                    out.push_str(text);
                    from = self.pending.len();
                }
                Err(error) => {
                    let valid = from + error.valid_up_to();
                    out.push_str(
                        std::str::from_utf8(&self.pending[from..valid])
                            .expect("valid up to here, as the error says"),
                    );
                    from = valid;
                    match error.error_len() {
                        Some(broken) => {
                            out.push(char::REPLACEMENT_CHARACTER);
                            from += broken;
                        }
                        None if end => {
                            out.push(char::REPLACEMENT_CHARACTER);
                            from = self.pending.len();
                        }
                        None => break,
                    }
                }
            }
        }
        self.pending.drain(..from);
    }
}
