//! Training a tokenizer: byte-pair encoding (Sennrich et al. 2016) of any vocabulary size.
//!
//! The recipe: no normalizer, so decoding gives back every byte; digits stand alone; words keep the space
//! before them; characters too rare for the alphabet become `<0xNN>` byte tokens, which are ordinary
//! entries that no text can name (digits stand alone, and each of those names holds one). Ids: four
//! special tokens, 256 bytes, the alphabet by code point, then one token per merge.
//!
//! The trained file is for the `tokenizers` crate, but that crate's trainer is not used: it counts pairs in `i32`,
//! which a large corpus overflows, and it drops characters outside the alphabet, so that their neighbours count
//! as a pair that no text has. Elsewhere the two agree: the same merges, in the same order, on the training tales (8,000
//! and 16,000 tokens) and on 20 MB of Python (20,000). Here counts are exact, ties go to the pair of smaller
//! ids, and one text gives one file, byte for byte, on any number of threads. [`merges_naively`] is the definition.
//!
//! Left out: subword regularisation, a limit on token length, and merging across words.

use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::ops::ControlFlow;

use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::chat::ChatTemplate;
use crate::error::{Result, TokenizerError};
use crate::tokenizer::{END_OF_TEXT, IM_END, IM_START, PAD, SpecialIds, SpecialNames, Tokenizer};

/// How a text is cut into words before merging. In order: an English contraction's ending; letters with
/// the space before them; one digit; other signs with the space before and the line ends after them
/// (`."` and an empty line are often one token); line ends with the blanks before them; blanks, leaving the last
/// one to the word after it. Unlike GPT-2's, the contraction must end the word, so that `'twas` and a quoted
/// `'so` are not torn; and combining marks belong to their letters.
pub const WORD_PATTERN: &str = concat!(
    r"['’](?:[sdmtSDMT]|ll|LL|re|RE|ve|VE)(?![\p{L}\p{M}])",
    r"| ?[\p{L}\p{M}]+",
    r"|\p{N}",
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+",
    r"|\s+(?!\S)",
    r"|\s+",
);

/// Special tokens and bytes: the least a vocabulary holds besides the alphabet.
const FIXED: usize = 4 + 256;
/// Documents counted at a time; only the speed depends on it.
const BATCH: usize = 256;

/// What to train.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainConfig {
    /// Tokens in all, special and byte tokens included. The result has exactly this many.
    pub vocab_size: usize,
    /// How often a pair must occur to become a token.
    pub min_frequency: u64,
    /// How often a character must occur to be in the alphabet; rarer ones become bytes.
    pub alphabet_min_frequency: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49_152,
            min_frequency: 2,
            alphabet_min_frequency: 16,
        }
    }
}

impl TrainConfig {
    /// Whether there can be such a vocabulary, whatever the text.
    pub fn check(&self) -> Result<()> {
        if self.vocab_size < FIXED {
            return Err(TokenizerError::Train(format!(
                "a vocabulary of {} is too small: 4 special tokens and 256 bytes already take {FIXED}; set vocab_size \
                 higher",
                self.vocab_size
            )));
        }
        if u32::try_from(self.vocab_size).is_err() {
            return Err(TokenizerError::Train(format!(
                "a vocabulary of {} does not fit 32-bit ids",
                self.vocab_size
            )));
        }
        Ok(())
    }
}

/// How far training is; given now and then to the `progress` closure, which may break it off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Texts read so far.
    Read {
        /// Documents.
        documents: u64,
        /// Bytes of UTF-8 text.
        bytes: u64,
    },
    /// Tokens in the vocabulary so far.
    Merged {
        /// Tokens.
        tokens: usize,
        /// Tokens asked for.
        of: usize,
    },
    /// Texts encoded so far.
    Encoded {
        /// Documents.
        documents: u64,
        /// Tokens written.
        tokens: u64,
    },
}

/// Train a tokenizer on `texts`. The first error among `texts` ends it.
pub fn train<I>(config: &TrainConfig, texts: I) -> Result<Tokenizer>
where
    I: IntoIterator<Item = Result<String>>,
{
    train_with(config, texts, &mut |_| ControlFlow::Continue(()))
}

/// [`train`], telling `progress` how far it is. Where that breaks, the error is [`TokenizerError::Interrupted`].
pub fn train_with<I>(
    config: &TrainConfig,
    texts: I,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Tokenizer>
where
    I: IntoIterator<Item = Result<String>>,
{
    config.check()?;
    let words = count_words(texts, progress)?;
    let corpus = Corpus::new(config, &words)?;
    drop(words);
    let room = config.vocab_size - FIXED - corpus.alphabet.len();
    let merges = merges(&corpus, room, config.min_frequency, progress)?;
    let tokens = FIXED + corpus.alphabet.len() + merges.added;
    if tokens < config.vocab_size {
        return Err(TokenizerError::Train(format!(
            "the text is too small for a vocabulary of {}: it gives {tokens} tokens (4 special, 256 bytes, {} \
             characters and {} pairs that occur {} times or more); give more text, or set vocab_size to {tokens} or \
             less",
            config.vocab_size,
            corpus.alphabet.len(),
            merges.added,
            config.min_frequency
        )));
    }
    build(&corpus.alphabet, &merges.pairs)
}

/// Unique words and how often each occurs.
fn count_words<I>(
    texts: I,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<BTreeMap<String, u64>>
where
    I: IntoIterator<Item = Result<String>>,
{
    let pattern = fancy_regex::Regex::new(WORD_PATTERN).expect("the pattern is a constant");
    let mut counts: HashMap<String, u64> = HashMap::new();
    let mut texts = texts.into_iter();
    let (mut documents, mut bytes) = (0, 0);
    loop {
        let batch = texts.by_ref().take(BATCH).collect::<Result<Vec<_>>>()?;
        if batch.is_empty() {
            break;
        }
        let counted = batch
            .par_iter()
            .fold(HashMap::new, |mut counts: HashMap<&str, u64>, text| {
                for word in words(&pattern, text) {
                    *counts.entry(word).or_default() += 1;
                }
                counts
            })
            .collect::<Vec<_>>();
        for part in counted {
            for (word, count) in part {
                match counts.get_mut(word) {
                    Some(n) => *n += count,
                    None => {
                        counts.insert(word.to_string(), count);
                    }
                }
            }
        }
        documents += batch.len() as u64;
        bytes += batch.iter().map(|t| t.len() as u64).sum::<u64>();
        if progress(Progress::Read { documents, bytes }).is_break() {
            return Err(TokenizerError::Interrupted);
        }
    }
    // Sorted, so that nothing after this depends on hash order.
    Ok(counts.into_iter().collect())
}

/// The words of a text. Should the pattern give up (it has a step limit), the rest is one word, as the
/// `tokenizers` crate does it.
pub(crate) fn words<'t>(pattern: &fancy_regex::Regex, text: &'t str) -> Vec<&'t str> {
    let mut found = Vec::new();
    let mut end = 0;
    for word in pattern.find_iter(text) {
        let Ok(word) = word else { break };
        if word.start() > end {
            found.push(&text[end..word.start()]);
        }
        found.push(word.as_str());
        end = word.end();
    }
    if end < text.len() {
        found.push(&text[end..]);
    }
    found
}

/// Words as ids. A word is cut where a character is not in the alphabet, since no merge crosses that.
struct Corpus {
    /// By code point; the id of `alphabet[i]` is `FIXED + i`.
    alphabet: Vec<char>,
    words: Vec<(Vec<u32>, u64)>,
}

impl Corpus {
    fn new(config: &TrainConfig, words: &BTreeMap<String, u64>) -> Result<Corpus> {
        let mut characters: BTreeMap<char, u64> = BTreeMap::new();
        for (word, count) in words {
            for c in word.chars() {
                *characters.entry(c).or_default() += count;
            }
        }
        let alphabet: Vec<char> = characters
            .into_iter()
            .filter(|&(_, count)| count >= config.alphabet_min_frequency.max(1))
            .map(|(c, _)| c)
            .collect();
        if FIXED + alphabet.len() > config.vocab_size {
            return Err(TokenizerError::Train(format!(
                "a vocabulary of {} cannot hold 4 special tokens, 256 bytes and the {} characters that occur {} times \
                 or more; set vocab_size to at least {}",
                config.vocab_size,
                alphabet.len(),
                config.alphabet_min_frequency,
                FIXED + alphabet.len()
            )));
        }
        let id_of: HashMap<char, u32> = alphabet.iter().copied().zip(FIXED as u32..).collect();
        let mut cut: BTreeMap<Vec<u32>, u64> = BTreeMap::new();
        let mut part = Vec::new();
        for (word, &count) in words {
            for c in word.chars() {
                if let Some(&id) = id_of.get(&c) {
                    part.push(id);
                } else {
                    *cut.entry(std::mem::take(&mut part)).or_default() += count;
                }
            }
            *cut.entry(std::mem::take(&mut part)).or_default() += count;
        }
        let words = cut.into_iter().filter(|(ids, _)| ids.len() > 1).collect();
        Ok(Corpus { alphabet, words })
    }
}

type Pair = (u32, u32);

/// What merging found.
#[derive(Debug, Default, PartialEq, Eq)]
struct Merges {
    /// In order of rank.
    pairs: Vec<Pair>,
    /// The same, to look up.
    known: HashSet<Pair>,
    /// New tokens; fewer than `pairs` where one token is made in two ways.
    added: usize,
}

impl Merges {
    /// Note a merge and return its token. A pair can come up again, where a second way to make one of its
    /// halves was found since; it keeps its first rank, which is the one that encoding would apply.
    fn note(&mut self, pair: Pair, names: &mut Names) -> u32 {
        let (token, is_new) = names.join(pair);
        self.added += usize::from(is_new);
        if self.known.insert(pair) {
            self.pairs.push(pair);
        }
        token
    }
}

/// Names of the tokens made so far, so that a token made in two ways has one id.
struct Names {
    name: Vec<String>,
    id: HashMap<String, u32>,
}

impl Names {
    fn new(alphabet: &[char]) -> Names {
        let mut names = Names {
            name: vec![String::new(); FIXED],
            id: HashMap::new(),
        };
        for c in alphabet {
            names.make(c.to_string());
        }
        names
    }

    /// The id of `name`, and whether it is new.
    fn make(&mut self, name: String) -> (u32, bool) {
        if let Some(&id) = self.id.get(&name) {
            return (id, false);
        }
        let id = self.name.len() as u32;
        self.id.insert(name.clone(), id);
        self.name.push(name);
        (id, true)
    }

    fn join(&mut self, (a, b): Pair) -> (u32, bool) {
        self.make(format!(
            "{}{}",
            self.name[a as usize], self.name[b as usize]
        ))
    }
}

/// The most frequent pair, again and again: until `room` tokens are made or no pair occurs `min_frequency` times.
///
/// Each pair knows the words it may be in. The heap holds every pair with a count at least its present one;
/// an entry found out of date when popped goes back with the present count.
fn merges(
    corpus: &Corpus,
    room: usize,
    min_frequency: u64,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Merges> {
    let mut names = Names::new(&corpus.alphabet);
    let mut words = corpus.words.clone();
    let mut pairs: HashMap<Pair, PairUse> = HashMap::new();
    for (at, (word, count)) in words.iter().enumerate() {
        for pair in windows(word) {
            pairs.entry(pair).or_default().add(*count, at as u32);
        }
    }
    let mut heap: BinaryHeap<Candidate> = pairs
        .iter()
        .map(|(&pair, used)| Candidate::new(used.count, pair))
        .collect();
    let mut found = Merges::default();
    let of = FIXED + corpus.alphabet.len() + room;
    let mut grown: Vec<Pair> = Vec::new();
    while found.added < room {
        let Some(top) = heap.pop() else { break };
        let now = pairs.get(&top.pair()).map_or(0, |used| used.count);
        if now < top.count {
            if now > 0 {
                heap.push(Candidate::new(now, top.pair()));
            }
            continue;
        }
        if now == 0 || now < min_frequency {
            break;
        }
        let (a, b) = top.pair();
        let new = found.note((a, b), &mut names);
        let mut places = std::mem::take(&mut pairs.get_mut(&(a, b)).expect("just found").words);
        places.sort_unstable();
        places.dedup();
        for at in places {
            let (word, count) = &mut words[at as usize];
            if !windows(word).any(|pair| pair == (a, b)) {
                continue; // merged away since it was noted
            }
            for pair in windows(word) {
                pairs.entry(pair).or_default().count -= *count;
            }
            merge_word(word, (a, b), new);
            // Only pairs that hold the new token can be new to this word, or have grown.
            for pair in windows(word) {
                let used = pairs.entry(pair).or_default();
                if pair.0 == new || pair.1 == new {
                    used.add(*count, at);
                    grown.push(pair);
                } else {
                    used.count += *count;
                }
            }
        }
        grown.sort_unstable();
        grown.dedup();
        for pair in grown.drain(..) {
            heap.push(Candidate::new(pairs[&pair].count, pair));
        }
        if found.added % 256 == 0 || found.added == room {
            let tokens = of - room + found.added;
            if progress(Progress::Merged { tokens, of }).is_break() {
                return Err(TokenizerError::Interrupted);
            }
        }
    }
    Ok(found)
}

/// How often a pair occurs, and in which words (some may have lost it).
#[derive(Default)]
struct PairUse {
    count: u64,
    words: Vec<u32>,
}

impl PairUse {
    fn add(&mut self, count: u64, word: u32) {
        self.count += count;
        if self.words.last() != Some(&word) {
            self.words.push(word);
        }
    }
}

/// Ordered by count, then by smaller ids.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    count: u64,
    pair: std::cmp::Reverse<Pair>,
}

impl Candidate {
    fn new(count: u64, pair: Pair) -> Self {
        Self {
            count,
            pair: std::cmp::Reverse(pair),
        }
    }

    fn pair(&self) -> Pair {
        self.pair.0
    }
}

fn windows(word: &[u32]) -> impl Iterator<Item = Pair> {
    word.windows(2).map(|w| (w[0], w[1]))
}

/// Every `pair` in `word`, from the left, becomes `new`.
fn merge_word(word: &mut Vec<u32>, pair: Pair, new: u32) {
    let (mut read, mut write) = (0, 0);
    while read < word.len() {
        if read + 1 < word.len() && (word[read], word[read + 1]) == pair {
            word[write] = new;
            read += 2;
        } else {
            word[write] = word[read];
            read += 1;
        }
        write += 1;
    }
    word.truncate(write);
}

/// The `tokenizer.json` of an alphabet and merges, opened.
fn build(alphabet: &[char], merges: &[Pair]) -> Result<Tokenizer> {
    let specials = [END_OF_TEXT, PAD, IM_START, IM_END];
    let mut names = Names::new(alphabet);
    let mut vocab = Map::new();
    for (id, name) in specials.iter().enumerate() {
        vocab.insert(name.to_string(), json!(id));
    }
    for byte in 0..256 {
        vocab.insert(format!("<0x{byte:02X}>"), json!(specials.len() + byte));
    }
    let mut rules = Vec::with_capacity(merges.len());
    for &(a, b) in merges {
        names.join((a, b));
        rules.push(json!([names.name[a as usize], names.name[b as usize]]));
    }
    for (name, id) in &names.id {
        vocab.insert(name.clone(), json!(id));
    }
    let added: Vec<Value> = specials
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {
            "type": "Split", "pattern": {"Regex": WORD_PATTERN}, "behavior": "Isolated", "invert": false
        },
        "post_processor": begins_with_end_of_text(),
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": rules
        }
    });
    let broken = |reason: String| TokenizerError::Train(format!("the result is broken: {reason}"));
    let (hf, value) = crate::open::parse(json.to_string().as_bytes()).map_err(broken)?;
    // The library writes the vocabulary by id and the merges by rank: the form everybody knows.
    let json = hf
        .to_string(true)
        .map_err(|e| broken(e.to_string()))?
        .into_bytes();
    let special = SpecialIds {
        bos: Some(0),
        eos: vec![0, 3],
        pad: Some(1),
    };
    let names = SpecialNames {
        bos: Some(END_OF_TEXT.to_string()),
        eos: Some(END_OF_TEXT.to_string()),
        pad: Some(PAD.to_string()),
        unk: None,
    };
    Tokenizer::assemble(
        hf,
        json,
        &value,
        special,
        names,
        Some(ChatTemplate::chatml()),
    )
    .map_err(broken)
}

/// The definition of [`merges`]: count every pair anew before each merge. Quadratic; for tests.
/// The post-processor of tokenizers trained here: a text begins with the token that ends the one before it, as
/// documents in a shard do.
pub(crate) fn begins_with_end_of_text() -> Value {
    let first = |type_id: u32| json!({"SpecialToken": {"id": END_OF_TEXT, "type_id": type_id}});
    let text = |name: &str, type_id: u32| json!({"Sequence": {"id": name, "type_id": type_id}});
    json!({
        "type": "TemplateProcessing",
        "single": [first(0), text("A", 0)],
        "pair": [first(0), text("A", 0), first(1), text("B", 1)],
        "special_tokens": {END_OF_TEXT: {"id": END_OF_TEXT, "ids": [0], "tokens": [END_OF_TEXT]}}
    })
}

#[cfg(test)]
fn merges_naively(corpus: &Corpus, room: usize, min_frequency: u64) -> Merges {
    let mut names = Names::new(&corpus.alphabet);
    let mut words = corpus.words.clone();
    let mut found = Merges::default();
    while found.added < room {
        let mut counts: BTreeMap<Pair, u64> = BTreeMap::new();
        for (word, count) in &words {
            for pair in windows(word) {
                *counts.entry(pair).or_default() += count;
            }
        }
        let best = counts
            .iter()
            .max_by_key(|&(&pair, &count)| (count, std::cmp::Reverse(pair)));
        let Some((&pair, &count)) = best else { break };
        if count < min_frequency {
            break;
        }
        let new = found.note(pair, &mut names);
        for (word, _) in &mut words {
            merge_word(word, pair, new);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn corpus(texts: &[&str]) -> Corpus {
        let config = TrainConfig {
            vocab_size: 1 << 20,
            min_frequency: 1,
            alphabet_min_frequency: 1,
        };
        let texts = texts.iter().map(|t| Ok(t.to_string()));
        let words = count_words(texts, &mut |_| ControlFlow::Continue(())).unwrap();
        Corpus::new(&config, &words).unwrap()
    }

    fn all_merges(corpus: &Corpus, room: usize, least: u64) -> Merges {
        merges(corpus, room, least, &mut |_| ControlFlow::Continue(())).unwrap()
    }

    fn cut(text: &str) -> Vec<&str> {
        words(&fancy_regex::Regex::new(WORD_PATTERN).unwrap(), text)
    }

    #[test]
    fn words_are_cut_as_the_pattern_says() {
        assert_eq!(cut("I don't know."), ["I", " don", "'t", " know", "."]);
        assert_eq!(
            cut("'twas 'so' he'd"),
            ["'", "twas", " '", "so", "'", " he", "'d"]
        );
        assert_eq!(cut("in 1984,"), ["in", " ", "1", "9", "8", "4", ","]);
        assert_eq!(cut("end.\"\n\n\"Oh"), ["end", ".\"\n\n", "\"", "Oh"]);
        assert_eq!(cut("a  \n\n    b"), ["a", "  \n\n", "   ", " b"]);
        assert_eq!(cut("said--and"), ["said", "--", "and"]);
        assert_eq!(cut("e\u{301}t"), ["e\u{301}t"]);
        assert_eq!(cut("tail  "), ["tail", "  "]);
    }

    #[test]
    fn a_token_made_in_two_ways_has_one_id() {
        // "abc" can be a+bc and ab+c.
        let corpus = corpus(&["abc abc abc ab ab ab ab bc bc bc bc bc abc"]);
        let fast = all_merges(&corpus, 20, 1);
        assert_eq!(fast, merges_naively(&corpus, 20, 1));
        assert!(fast.added <= fast.pairs.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn fast_merging_equals_counting_anew(text in "[abc]{0,12}( [abcd]{1,9}){0,24}", room in 0usize..40,
                                             least in 1u64..4) {
            let corpus = corpus(&[&text]);
            prop_assert_eq!(all_merges(&corpus, room, least), merges_naively(&corpus, room, least));
        }

        #[test]
        fn words_cover_the_text(text in any::<String>()) {
            prop_assert_eq!(cut(&text).concat(), text);
        }
    }
}
