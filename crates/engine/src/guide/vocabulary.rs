//! The tokens of a tokenizer, as bytes in a trie.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::earley::SlicedBiasComputer;
use llguidance::panic_utils::catch_unwind;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};

use super::limits;
use crate::{Error, Result};

/// The longest token that the trie takes; a longer one is never allowed under a guide.
const LONGEST: usize = 1000;

/// What guides need to know of a tokenizer, made once; a copy of it costs nothing.
#[derive(Clone)]
pub struct Vocabulary(Arc<Inner>);

struct Inner {
    factory: ParserFactory,
    ends: Vec<u32>,
    tokens: usize,
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vocabulary of {} tokens", self.0.tokens)
    }
}

impl Vocabulary {
    /// A vocabulary: `tokens[id]` is what a token adds to a text, empty where there is none; those in `special` are
    /// control tokens, their bytes a name (`<|im_end|>`) by which a grammar may ask for them; those in `ends` end an
    /// answer. Takes some tens of milliseconds for 50,000 tokens.
    ///
    /// # Errors
    /// When there are no tokens, no ends, or an id lies beyond the tokens.
    pub fn new(mut tokens: Vec<Vec<u8>>, special: &[u32], ends: &[u32]) -> Result<Vocabulary> {
        let refused = |problem: String| Error::Guide {
            name: "vocabulary",
            problem,
        };
        let count = tokens.len();
        if let Some(id) = special.iter().chain(ends).find(|&&id| id as usize >= count) {
            return Err(refused(format!(
                "it has {count} tokens, but a special token or an end is {id}"
            )));
        }
        if ends.is_empty() || count >= 1 << 24 {
            return Err(refused(format!(
                "it has {count} tokens, of which {} end an answer; there must be one end at least, and fewer than 2^24 tokens",
                ends.len()
            )));
        }
        for (id, token) in tokens.iter_mut().enumerate() {
            let id = id as u32;
            // An end needs no bytes: it is allowed by its number.
            if token.len() > LONGEST || (ends.contains(&id) && !special.contains(&id)) {
                token.clear();
            } else if special.contains(&id) && !token.is_empty() {
                token.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
            }
        }
        let make = || {
            let info = TokRxInfo::new(count as u32, ends[0]);
            let trie = TokTrie::from(&info, &tokens).with_eos_tokens(ends);
            let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            let slices = SlicedBiasComputer::general_slices();
            let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)?;
            factory.quiet();
            *factory.limits_mut() = limits();
            Ok(factory)
        };
        let factory = catch_unwind(AssertUnwindSafe(make))
            .map_err(|error| refused(super::sentence(&error.to_string())))?;
        Ok(Vocabulary(Arc::new(Inner {
            factory,
            ends: ends.to_vec(),
            tokens: count,
        })))
    }

    /// How many tokens it has.
    pub fn tokens(&self) -> usize {
        self.0.tokens
    }

    /// The tokens that end an answer.
    pub fn ends(&self) -> &[u32] {
        &self.0.ends
    }

    pub(super) fn factory(&self) -> &ParserFactory {
        &self.0.factory
    }

    /// A way to cut bytes into tokens, the longest token first; not the tokenizer's own.
    #[cfg(test)]
    pub(super) fn cut(&self, text: &str) -> Vec<u32> {
        let trie = self.0.factory.tok_env().tok_trie();
        trie.greedy_tokenize(text.as_bytes())
    }
}
