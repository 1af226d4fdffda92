//! The tokenizer: text to ids and back.
//!
//! The merging itself is the `tokenizers` crate's; around it stand the promises that crate does not
//! make: it never panics on a text or a file, a user's text never becomes a control token unless asked,
//! decoding is a table look-up that streams, and padding, truncation and dropout written in a
//! `tokenizer.json` are not applied behind one's back.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::OnceLock;
use std::time::SystemTime;

use rayon::prelude::*;
use serde_json::json;

use crate::chat::{ChatTemplate, Message};
use crate::conversation::{Conversation, Turns};
use crate::detokenizer::Detokenizer;
use crate::direct::{self, Seen};
use crate::error::{Result, TokenizerError};
use crate::llama2c::Greedy;
use crate::vocabulary::Vocabulary;

/// Ends a document; `bos` and `eos` of pre-training. Id 0 in tokenizers trained here.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Fills up a batch; never predicted. Id 1.
pub const PAD: &str = "<|pad|>";
/// Opens a chat message (ChatML). Id 2.
pub const IM_START: &str = "<|im_start|>";
/// Closes a chat message (ChatML). Id 3.
pub const IM_END: &str = "<|im_end|>";

/// What a special token's name inside a text means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialTokens {
    /// Ordinary text: `"<|im_end|>"` becomes the tokens of these ten characters. For anything a user wrote.
    Text,
    /// The token itself. For text that the program wrote, such as a rendered chat template.
    Parse,
}

/// The ids with a role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// Put before a text.
    pub bos: Option<u32>,
    /// Every id that ends a generation, in the order found (a chat model has the end of a message here too).
    pub eos: Vec<u32>,
    /// Fills up a batch.
    pub pad: Option<u32>,
}

/// Names of the special tokens that chat templates refer to (`bos_token` and so on), if known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SpecialNames {
    pub(crate) bos: Option<String>,
    pub(crate) eos: Option<String>,
    pub(crate) pad: Option<String>,
    pub(crate) unk: Option<String>,
}

/// A tokenizer, ready to use from any number of threads.
pub struct Tokenizer {
    /// Special tokens inside a text are text.
    plain: tokenizers::Tokenizer,
    /// The same one, special tokens parsed; made when first asked for.
    parsing: OnceLock<tokenizers::Tokenizer>,
    /// The bytes of `tokenizer.json`.
    json: Vec<u8>,
    vocabulary: Vocabulary,
    special: SpecialIds,
    names: SpecialNames,
    template: Option<ChatTemplate>,
    /// How plain text is encoded.
    way: Way,
}

/// How plain text is encoded; text whose special tokens are parsed always goes by the library.
enum Way {
    /// The `tokenizers` crate.
    Library,
    /// Word by word; see [`crate::direct`].
    Words,
    /// As llama2.c does; it also strips a space after every `bos`, not only at the start.
    Greedy(Greedy),
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("special", &self.special)
            .field("chat_template", &self.template.is_some())
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Read a tokenizer: a Hugging Face folder, or a `tokenizer.json` (the files beside it are read too).
    ///
    /// Special ids come from `generation_config.json`, `config.json` and `tokenizer_config.json`; the chat
    /// template from `chat_template.jinja` or `tokenizer_config.json`. A bad file is refused with a sentence.
    pub fn open(path: impl AsRef<Path>) -> Result<Tokenizer> {
        crate::open::open(path.as_ref())
    }

    /// Read a llama2.c tokenizer file (`tokenizer.bin`, `tok512.bin`) of `vocab_size` tokens; `bos` is 1, `eos` is 2.
    pub fn from_llama2c(path: impl AsRef<Path>, vocab_size: usize) -> Result<Tokenizer> {
        crate::llama2c::open(path.as_ref(), vocab_size)
    }

    /// Put the parts together. `json` is what `hf` was read from, `value` the same parsed; the error is a
    /// reason without a path.
    pub(crate) fn assemble(
        mut hf: tokenizers::Tokenizer,
        json: Vec<u8>,
        value: &serde_json::Value,
        special: SpecialIds,
        names: SpecialNames,
        template: Option<ChatTemplate>,
    ) -> Result<Tokenizer, String> {
        let tokens = crate::open::tokens_by_id(&hf)?;
        let vocabulary = Vocabulary::new(tokens, &value["decoder"])?;
        hf.with_padding(None);
        hf.with_truncation(None).map_err(|e| e.to_string())?;
        hf.set_encode_special_tokens(true);
        Ok(Tokenizer {
            plain: hf,
            parsing: OnceLock::new(),
            json,
            vocabulary,
            special,
            names,
            template,
            way: if direct::applies(value) {
                Way::Words
            } else {
                Way::Library
            },
        })
    }

    pub(crate) fn encoding_as_llama2c(mut self, greedy: Greedy) -> Self {
        self.way = Way::Greedy(greedy);
        self
    }

    /// The same tokenizer with another chat template (Jinja text); it may speak of `bos_token` and its like.
    pub fn with_chat_template(mut self, source: impl Into<String>) -> Result<Self> {
        self.template = Some(ChatTemplate::with_names(source.into(), &self.names)?);
        Ok(self)
    }

    /// Text to ids. The names of special tokens inside `text` are ordinary text; `add_special` puts
    /// around it what the tokenizer's post-processor says (`bos`, where it is trained here).
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        self.encode_with(text, add_special, SpecialTokens::Text)
    }

    /// [`Tokenizer::encode`] with a choice for special tokens named inside `text`.
    pub fn encode_with(
        &self,
        text: &str,
        add_special: bool,
        special: SpecialTokens,
    ) -> Result<Vec<u32>> {
        match (special, &self.way) {
            (SpecialTokens::Text, Way::Words) => {
                self.encode_words(text, add_special, &mut Seen::default())
            }
            (SpecialTokens::Text, Way::Greedy(greedy)) => {
                let bos = self.special.bos.filter(|_| add_special);
                Ok(bos.into_iter().chain(greedy.encode(text)).collect())
            }
            (SpecialTokens::Text, Way::Library) => {
                self.encode_by_library(&self.plain, text, add_special)
            }
            (SpecialTokens::Parse, _) => self.encode_by_library(self.parsing(), text, add_special),
        }
    }

    /// The `tokenizers` crate's own way, for any tokenizer.
    fn encode_by_library(
        &self,
        hf: &tokenizers::Tokenizer,
        text: &str,
        add_special: bool,
    ) -> Result<Vec<u32>> {
        let encoding = guarded(|| hf.encode_fast(text, add_special))?;
        // A post-processor names ids of its own, which the vocabulary need not have.
        if let Some(id) = encoding
            .get_ids()
            .iter()
            .find(|&&id| id as usize >= self.vocab_size())
        {
            return Err(TokenizerError::Encode(format!(
                "this tokenizer.json puts the id {id} into a text, but its vocabulary ends at {}; mend its \
                 post_processor",
                self.vocab_size()
            )));
        }
        Ok(encoding.get_ids().to_vec())
    }

    /// [`crate::direct`]; the post-processor is then known to put `<|endoftext|>` before a text.
    fn encode_words(&self, text: &str, add_special: bool, seen: &mut Seen) -> Result<Vec<u32>> {
        let mut ids: Vec<u32> = self
            .special
            .bos
            .filter(|_| add_special)
            .into_iter()
            .collect();
        guarded(|| direct::encode(self.plain.get_model(), text, seen, &mut ids))?;
        Ok(ids)
    }

    /// [`Tokenizer::encode`] for many texts on all cores; the result is in the order of `texts`.
    pub fn encode_batch<S: AsRef<str> + Sync>(
        &self,
        texts: &[S],
        add_special: bool,
    ) -> Result<Vec<Vec<u32>>> {
        if matches!(self.way, Way::Words) {
            return texts
                .par_iter()
                .map_init(Seen::default, |seen, text| {
                    self.encode_words(text.as_ref(), add_special, seen)
                })
                .collect();
        }
        texts
            .par_iter()
            .map(|text| self.encode(text.as_ref(), add_special))
            .collect()
    }

    /// Ids to text. Ids that the tokenizer does not have add nothing; broken UTF-8 becomes U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut out = String::new();
        let mut stream = self.detokenizer(skip_special);
        for &id in ids {
            stream.push_into(id, &mut out);
        }
        stream.finish_into(&mut out);
        out
    }

    /// A stream of tokens that starts a text: its pieces together are [`Tokenizer::decode`] of its tokens.
    pub fn detokenizer(&self, skip_special: bool) -> Detokenizer<'_> {
        Detokenizer::new(&self.vocabulary, skip_special, true, self.strip_bos())
    }

    /// A stream of tokens that goes on after a prompt: a leading space is kept where starting a text would
    /// strip it. Prompt text + pieces is the whole text.
    pub fn detokenizer_continuing(&self, skip_special: bool) -> Detokenizer<'_> {
        Detokenizer::new(&self.vocabulary, skip_special, false, self.strip_bos())
    }

    /// Highest id + 1: the rows an embedding table needs at least.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    /// The id of a token by its name, special or not.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.plain.token_to_id(token)
    }

    /// The name of a token as the file writes it (`Ġthe`, `▁the`, `<0x0A>`).
    pub fn token(&self, id: u32) -> Option<&str> {
        self.vocabulary.name(id)
    }

    /// The bytes one token adds to a text, in the middle of it. Empty for an unknown id.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.vocabulary.bytes(id)
    }

    /// Is it a control token, which `skip_special` leaves out?
    pub fn is_special(&self, id: u32) -> bool {
        self.vocabulary.is_special(id)
    }

    /// The ids with a role.
    pub fn special(&self) -> &SpecialIds {
        &self.special
    }

    /// The chat template, if the tokenizer came with one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Render a conversation with this tokenizer's chat template.
    pub fn render_chat(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.template_or_error()?
            .render(messages, add_generation_prompt)
    }

    /// Render a conversation and encode it: special tokens that the template wrote are tokens, the same strings
    /// inside a message are text. While the template runs, each special token's name inside a message is
    /// one private-use character; the result is cut at the special tokens it holds then, which are the template's
    /// own, and the parts between are encoded as plain text with the names put back.
    pub fn encode_chat(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>> {
        let conversation = Conversation::from(messages);
        self.encode_conversation(&conversation, add_generation_prompt, SystemTime::now())
    }

    /// [`Tokenizer::encode_chat`] of a conversation with tools, at a given time.
    pub fn encode_conversation(
        &self,
        conversation: &Conversation,
        add_generation_prompt: bool,
        now: SystemTime,
    ) -> Result<Vec<u32>> {
        let template = self.template_or_error()?;
        crate::chat::encode(self, template, conversation, add_generation_prompt, now)
    }

    /// Render and encode a whole conversation, and say which tokens are the assistant's: see [`Turns`].
    ///
    /// Errors where the template does not let that be known exactly.
    pub fn encode_turns(&self, conversation: &Conversation, now: SystemTime) -> Result<Turns> {
        crate::conversation::encode_turns(self, self.template_or_error()?, conversation, now)
    }

    /// BLAKE3 of the `tokenizer.json` bytes, in hex: the identity that token shards and models name.
    pub fn blake3(&self) -> String {
        blake3::hash(&self.json).to_hex().to_string()
    }

    /// Write `tokenizer.json`, `tokenizer_config.json` and, if there is one, `chat_template.jinja` into the
    /// folder `dir` (made if missing), as `transformers.AutoTokenizer` reads them.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        std::fs::create_dir_all(dir).map_err(|e| TokenizerError::file(dir, e))?;
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.join(name);
            std::fs::write(&path, bytes).map_err(|e| TokenizerError::file(&path, e))
        };
        write("tokenizer.json", &self.json)?;
        let config = format!("{:#}\n", self.config());
        write("tokenizer_config.json", config.as_bytes())?;
        if let Some(template) = &self.template {
            write("chat_template.jinja", template.source().as_bytes())?;
        }
        Ok(())
    }

    /// What its `tokenizer_config.json` says, without the chat template.
    pub fn config(&self) -> serde_json::Value {
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": false,
            "add_prefix_space": false,
            "model_max_length": 1_000_000_000_000_000_u64,
        });
        for (key, name) in [
            ("bos_token", &self.names.bos),
            ("eos_token", &self.names.eos),
            ("pad_token", &self.names.pad),
            ("unk_token", &self.names.unk),
        ] {
            if let Some(name) = name {
                config[key] = json!(name);
            }
        }
        config
    }

    /// The library's tokenizer with special tokens parsed.
    pub(crate) fn parsing(&self) -> &tokenizers::Tokenizer {
        self.parsing.get_or_init(|| {
            let mut hf = self.plain.clone();
            hf.set_encode_special_tokens(false);
            hf
        })
    }

    /// Names and ids of the special tokens, by id.
    pub(crate) fn specials(&self) -> impl Iterator<Item = (u32, &str)> {
        self.vocabulary.specials()
    }

    /// The bytes of its `tokenizer.json`.
    pub(crate) fn json(&self) -> &[u8] {
        &self.json
    }

    /// Whether it is of the form that is trained here.
    pub(crate) fn encodes_by_words(&self) -> bool {
        matches!(self.way, Way::Words)
    }

    /// The name of the token for what has none.
    pub(crate) fn unknown(&self) -> Option<&String> {
        self.names.unk.as_ref()
    }

    fn strip_bos(&self) -> Option<u32> {
        self.special
            .bos
            .filter(|_| matches!(self.way, Way::Greedy(_)))
    }

    fn template_or_error(&self) -> Result<&ChatTemplate> {
        self.template.as_ref().ok_or_else(|| {
            TokenizerError::Chat(
                "this tokenizer has none, so it cannot hold a conversation; put a chat_template.jinja beside its \
                 tokenizer.json, or use a chat model"
                    .to_string(),
            )
        })
    }
}

/// Run the library where a panic is caught: a stranger's `tokenizer.json` can hold what makes it panic only
/// when a text meets it.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .map_err(|_| {
            TokenizerError::Encode(
                "this tokenizer.json is broken: the tokenizers library stopped on it; take the file from its source \
                 again"
                    .to_string(),
            )
        })?
        .map_err(|e| TokenizerError::Encode(format!("the tokenizers library says: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::{TrainConfig, train};
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static TRAINED: LazyLock<Tokenizer> = LazyLock::new(|| {
        let text = include_str!("tokenizer.rs").to_string();
        let config = TrainConfig {
            vocab_size: 700,
            ..TrainConfig::default()
        };
        train(&config, [Ok(text)]).unwrap()
    });

    fn check(text: &str) {
        assert!(matches!(TRAINED.way, Way::Words));
        let library = TRAINED
            .encode_by_library(&TRAINED.plain, text, true)
            .unwrap();
        assert_eq!(TRAINED.encode(text, true).unwrap(), library, "{text:?}");
        let batch = TRAINED.encode_batch(&[text, text], true).unwrap();
        assert_eq!(batch, [library.clone(), library]);
    }

    #[test]
    fn the_short_way_equals_the_library_on_source_code() {
        check(include_str!("chat.rs"));
        check(include_str!("../../../data/tales/README.md"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn the_short_way_equals_the_library(text in any::<String>()) {
            check(&text);
        }

        #[test]
        fn the_short_way_equals_the_library_on_words(text in "([a-z]{1,9}|[ \\n]{1,3}|<\\|im_end\\|>|['.,1é]){0,40}") {
            check(&text);
        }
    }
}
