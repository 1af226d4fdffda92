//! The tokenizer files of llama2.c (Karpathy 2023), as a Hugging Face tokenizer.
//!
//! File: i32 longest token length, then for each token f32 score, i32 length, bytes; all little-endian. Ids
//! 0, 1, 2 are `<unk>`, `bos`, `eos`; 3..=258 are the bytes `<0x00>`..=`<0xFF>`. llama2.c encodes by putting a
//! space before the text, taking characters (bytes, where a character is unknown), and merging, again
//! and again, the pair whose joined token has the best score, the leftmost of equals. [`Greedy`] does the
//! same with a heap; `encode_plainly` in the tests is llama2.c's quadratic loop.
//!
//! The `tokenizer.json` that such a tokenizer is saved as ranks its merges by score, so the `tokenizers` crate
//! encodes the same, except between tokens of equal score (in Llama 2's file only runs of spaces), where a rank
//! cannot say "leftmost" and the lower id goes first.
//!
//! Decoding strips one space after `bos` and at the start of a text, as llama2.c's `decode` does.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};
use std::path::Path;

use serde_json::{Map, json};

use crate::error::{Result, TokenizerError};
use crate::open::read_bounded;
use crate::tokenizer::{SpecialIds, SpecialNames, Tokenizer};

/// llama2.c's own files have 32,000 tokens in 434 KB.
const LARGEST_FILE: u64 = 64 << 20;
/// Ids of `<unk>`, `bos`, `eos` and 256 bytes.
const FIXED: usize = 3 + 256;
/// llama2.c starts its search for the best score here, so nothing below is ever merged.
const LOWEST: f32 = -1e10;

/// The entries of a file, checked: exactly `vocab_size` of them, each UTF-8, each name once.
#[derive(Debug)]
pub(crate) struct Entries {
    names: Vec<String>,
    scores: Vec<f32>,
}

pub(crate) fn open(path: &Path, vocab_size: usize) -> Result<Tokenizer> {
    let bytes = read_bounded(path, LARGEST_FILE)?;
    parse(&bytes, vocab_size)
        .and_then(|entries| convert(&entries))
        .map_err(|reason| TokenizerError::file(path, reason))
}

/// Read a file's bytes. Every length is checked against what is left.
pub(crate) fn parse(bytes: &[u8], vocab_size: usize) -> Result<Entries, String> {
    if vocab_size < FIXED {
        return Err(format!(
            "a llama2.c vocabulary has at least {FIXED} tokens (three special ones and 256 bytes), so vocab_size \
             {vocab_size} is wrong; take it from the model's header"
        ));
    }
    let mut rest = bytes;
    let longest = take_i32(&mut rest).ok_or("it is shorter than its 4-byte header")?;
    if longest < 1 {
        return Err(format!(
            "its header says the longest token has {longest} bytes, so it is not a llama2.c tokenizer file"
        ));
    }
    let mut entries = Entries {
        names: Vec::new(),
        scores: Vec::new(),
    };
    let mut ids: HashMap<&str, usize> = HashMap::new();
    for id in 0..vocab_size {
        let entry = (|| {
            let score = f32::from_bits(take_i32(&mut rest)?.cast_unsigned());
            let length = take_i32(&mut rest)?;
            Some((score, length))
        })();
        let Some((score, length)) = entry else {
            return Err(format!(
                "it ends after {id} tokens, but {vocab_size} were asked for; check the vocabulary size"
            ));
        };
        let length = usize::try_from(length)
            .ok()
            .filter(|&n| n <= longest as usize && n <= rest.len())
            .ok_or_else(|| {
                format!("its token {id} says it has {length} bytes, which does not fit the file; it is damaged")
            })?;
        let (name, after) = rest.split_at(length);
        rest = after;
        let name = std::str::from_utf8(name).map_err(|_| {
            format!("its token {id} is not UTF-8 text; such a vocabulary is not understood here")
        })?;
        let name = match id {
            0 => "<unk>",
            1 => "<s>",
            2 => "</s>",
            _ => name,
        };
        if (3..FIXED).contains(&id) && name != format!("<0x{:02X}>", id - 3) {
            return Err(format!(
                "its token {id} is {name:?}, but a llama2.c vocabulary has <0x{:02X}> there; it is another kind of file",
                id - 3
            ));
        }
        if score.is_nan() {
            return Err(format!(
                "the score of its token {id} ({name:?}) is not a number"
            ));
        }
        if let Some(first) = ids.insert(name, id) {
            return Err(format!("its tokens {first} and {id} are both {name:?}"));
        }
        entries.names.push(name.to_string());
        entries.scores.push(score);
    }
    if !rest.is_empty() {
        return Err(format!(
            "it goes on for {} bytes after {vocab_size} tokens; check the vocabulary size",
            rest.len()
        ));
    }
    Ok(entries)
}

fn take_i32(rest: &mut &[u8]) -> Option<i32> {
    let (head, tail) = rest.split_first_chunk::<4>()?;
    *rest = tail;
    Some(i32::from_le_bytes(*head))
}

/// llama2.c's encoder: the pair with the best score first, the leftmost of equals.
#[derive(Debug)]
pub(crate) struct Greedy {
    /// Characters and longer tokens by name.
    ids: HashMap<Box<str>, u32>,
    /// What two tokens make, and its score.
    merges: HashMap<(u32, u32), (f32, u32)>,
}

impl Greedy {
    fn new(entries: &Entries) -> Greedy {
        let ids: HashMap<Box<str>, u32> = entries
            .names
            .iter()
            .zip(0..)
            .skip(3)
            .map(|(name, id)| (name.as_str().into(), id))
            .collect();
        // Every way to cut a token into two tokens is a merge. The special three take no part.
        let mut merges = HashMap::new();
        for (name, &id) in &ids {
            // -0 and 0 are equal scores, as they are to C.
            let score = entries.scores[id as usize] + 0.0;
            if score <= LOWEST {
                continue;
            }
            for (at, _) in name.char_indices().skip(1) {
                if let (Some(&a), Some(&b)) = (ids.get(&name[..at]), ids.get(&name[at..])) {
                    merges.insert((a, b), (score, id));
                }
            }
        }
        Greedy { ids, merges }
    }

    /// Ids of `text` with the space before it, without `bos`.
    pub(crate) fn encode(&self, text: &str) -> Vec<u32> {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len() + 1);
        let mut take = |c: &str| match self.ids.get(c) {
            Some(&id) => symbols.push(Symbol::new(id)),
            None => symbols.extend(c.bytes().map(|b| Symbol::new(u32::from(b) + 3))),
        };
        if !text.is_empty() {
            take(" ");
        }
        for c in text.chars() {
            take(c.encode_utf8(&mut [0; 4]));
        }
        for at in 0..symbols.len() {
            symbols[at].before = at.checked_sub(1);
            symbols[at].after = Some(at + 1).filter(|&next| next < symbols.len());
        }
        let mut heap = BinaryHeap::new();
        for at in 0..symbols.len() {
            self.offer(&symbols, at, &mut heap);
        }
        while let Some(best) = heap.pop() {
            let at = best.at.0;
            let left = symbols[at];
            // An entry whose symbols have been merged since is out of date.
            let Some(next) = left.after else { continue };
            if left.gone || (left.id, symbols[next].id) != best.pair {
                continue;
            }
            symbols[at].id = best.token;
            symbols[at].after = symbols[next].after;
            symbols[next].gone = true;
            if let Some(beyond) = symbols[at].after {
                symbols[beyond].before = Some(at);
            }
            self.offer(&symbols, at, &mut heap);
            if let Some(before) = symbols[at].before {
                self.offer(&symbols, before, &mut heap);
            }
        }
        symbols.iter().filter(|s| !s.gone).map(|s| s.id).collect()
    }

    /// Put the pair that starts at `at` on the heap, if it makes a token.
    fn offer(&self, symbols: &[Symbol], at: usize, heap: &mut BinaryHeap<Candidate>) {
        let Some(next) = symbols[at].after else {
            return;
        };
        let pair = (symbols[at].id, symbols[next].id);
        if let Some(&(score, token)) = self.merges.get(&pair) {
            heap.push(Candidate {
                score,
                at: Reverse(at),
                pair,
                token,
            });
        }
    }
}

/// A token of a text in the making, linked to its neighbours.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    before: Option<usize>,
    after: Option<usize>,
    gone: bool,
}

impl Symbol {
    fn new(id: u32) -> Self {
        Self {
            id,
            before: None,
            after: None,
            gone: false,
        }
    }
}

/// A possible merge: the best score first, then the leftmost.
struct Candidate {
    score: f32,
    at: Reverse<usize>,
    pair: (u32, u32),
    token: u32,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score
            .total_cmp(&other.score)
            .then(self.at.cmp(&other.at))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Candidate {}

/// Entries -> a tokenizer, by way of a `tokenizer.json`.
fn convert(entries: &Entries) -> Result<Tokenizer, String> {
    let greedy = Greedy::new(entries);
    let mut merges: Vec<(f32, u32, u32, u32)> = greedy
        .merges
        .iter()
        .map(|(&(a, b), &(score, id))| (score, id, a, b))
        .collect();
    merges.sort_by(|x, y| y.0.total_cmp(&x.0).then((x.1, x.2).cmp(&(y.1, y.2))));
    let mut vocab = Map::new();
    for (id, name) in entries.names.iter().enumerate() {
        vocab.insert(name.clone(), json!(id));
    }
    let rules: Vec<_> = merges
        .iter()
        .map(|&(_, _, a, b)| json!([entries.names[a as usize], entries.names[b as usize]]))
        .collect();
    let added: Vec<_> = ["<unk>", "<s>", "</s>"]
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
        "normalizer": {"type": "Prepend", "prepend": " "},
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"SpecialToken": {"id": "<s>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
        },
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": rules
        }
    });
    let (hf, value) = crate::open::parse(json.to_string().as_bytes())?;
    let json = hf.to_string(true).map_err(|e| e.to_string())?.into_bytes();
    let special = SpecialIds {
        bos: Some(1),
        eos: vec![2],
        pad: None,
    };
    let names = SpecialNames {
        bos: Some("<s>".to_string()),
        eos: Some("</s>".to_string()),
        pad: None,
        unk: Some("<unk>".to_string()),
    };
    Ok(Tokenizer::assemble(hf, json, &value, special, names, None)?.encoding_as_llama2c(greedy))
}

/// llama2.c's `encode` (run.c), without `bos` and `eos`: the oracle.
#[cfg(test)]
fn encode_plainly(entries: &Entries, text: &str) -> Vec<u32> {
    let ids: HashMap<&str, u32> = entries
        .names
        .iter()
        .zip(0..)
        .skip(3)
        .map(|(name, id)| (name.as_str(), id))
        .collect();
    let mut tokens = Vec::new();
    let space = if text.is_empty() { "" } else { " " };
    for c in space.chars().chain(text.chars()) {
        let mut buffer = [0; 4];
        let c: &str = c.encode_utf8(&mut buffer);
        match ids.get(c) {
            Some(&id) => tokens.push(id),
            None => tokens.extend(c.bytes().map(|b| u32::from(b) + 3)),
        }
    }
    loop {
        let (mut best, mut best_score) = (None, LOWEST);
        for at in 0..tokens.len().saturating_sub(1) {
            let joined = format!(
                "{}{}",
                entries.names[tokens[at] as usize],
                entries.names[tokens[at + 1] as usize]
            );
            if let Some(&id) = ids.get(joined.as_str())
                && entries.scores[id as usize] > best_score
            {
                best_score = entries.scores[id as usize];
                best = Some((at, id));
            }
        }
        let Some((at, id)) = best else {
            return tokens;
        };
        tokens[at] = id;
        tokens.remove(at + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    const FILE: &[u8] = include_bytes!("../tests/fixtures/tok512.bin");
    static ENTRIES: LazyLock<Entries> = LazyLock::new(|| parse(FILE, 512).unwrap());
    static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| convert(&ENTRIES).unwrap());

    fn check(text: &str) {
        let plain = encode_plainly(&ENTRIES, text);
        assert_eq!(TOKENIZER.encode(text, false).unwrap(), plain, "{text:?}");
        let mut with_bos = vec![1];
        with_bos.extend(&plain);
        assert_eq!(TOKENIZER.encode(text, true).unwrap(), with_bos);
        // llama2.c strips one space of the first token after bos; the dummy space is always there to strip.
        assert_eq!(TOKENIZER.decode(&with_bos, true), text);
    }

    #[test]
    fn encoding_equals_llama2c_on_stories() {
        check("");
        check(" ");
        check("Once upon a time, there was a little girl named Lily.");
        check("Lily's mom said, \"Let's go!\"\n\n  two  spaces…");
        check("<s> </s> <0x41> <unk>");
        check("naïve 日本語 🦊 e\u{301} \u{0}\u{7f}\t");
        check("aaaaaaaaaaaaaaa sssssss wawawawawas hehehehe ttttthththt");
    }

    #[test]
    fn a_space_is_stripped_after_bos_only() {
        let ids = TOKENIZER.encode("the end", true).unwrap();
        assert_eq!(TOKENIZER.decode(&ids, true), "the end");
        let twice = [ids.clone(), ids].concat();
        assert_eq!(TOKENIZER.decode(&twice, true), "the endthe end");
        let end = TOKENIZER.encode("end", false).unwrap();
        let mut stream = TOKENIZER.detokenizer_continuing(true);
        let text: String = end.iter().map(|&id| stream.push(id)).collect();
        assert_eq!(text, " end");
    }

    #[test]
    fn damaged_files_are_refused_with_a_sentence() {
        for (bytes, size, says) in [
            (&FILE[..3], 512, "header"),
            (&FILE[..FILE.len() - 1], 512, "does not fit"),
            (FILE, 513, "ends after 512"),
            (FILE, 511, "goes on"),
            (FILE, 5, "at least 259"),
            (&[0xff; 64], 512, "not a llama2.c"),
        ] {
            let error = parse(bytes, size).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn encoding_equals_llama2c_on_its_own_pieces(ids in prop::collection::vec(259usize..512, 0..24)) {
            check(&ids.iter().map(|&id| ENTRIES.names[id].as_str()).collect::<String>());
        }

        #[test]
        fn encoding_equals_llama2c_on_any_text(text in any::<String>()) {
            check(&text);
        }

        /// Small vocabularies with many equal scores, where "leftmost" decides; -1e10 and -0 among them.
        #[test]
        fn encoding_equals_llama2c_among_equal_scores(
            tokens in prop::collection::btree_set("[ ab]{1,5}", 0..30),
            scores in prop::collection::vec(prop::sample::select(vec![0.0, -0.0, -1.0, -2.0, -1e9, -1e10, f32::NEG_INFINITY]), 30),
            text in "[ abc]{0,24}",
        ) {
            let mut entries = Entries { names: ENTRIES.names[..FIXED].to_vec(), scores: vec![0.0; FIXED] };
            for (name, &score) in tokens.iter().zip(&scores) {
                entries.names.push(name.clone());
                entries.scores.push(score);
            }
            let tokenizer = convert(&entries).unwrap();
            prop_assert_eq!(tokenizer.encode(&text, false).unwrap(), encode_plainly(&entries, &text));
        }

        /// What is saved and opened again is the library's; the sample file has no equal scores.
        #[test]
        fn the_saved_form_equals_llama2c(text in any::<String>()) {
            let encoding = TOKENIZER.encode_with(&text, false, crate::SpecialTokens::Parse).unwrap();
            if !text.contains("s>") && !text.contains("<unk>") {
                prop_assert_eq!(encoding, encode_plainly(&ENTRIES, &text));
            }
        }

        #[test]
        fn any_bytes_are_parsed_or_refused(at in 0usize..6000, to in any::<[u8; 4]>(), size in 500usize..520) {
            let mut bytes = FILE.to_vec();
            bytes[at..at + 4].copy_from_slice(&to);
            if let Ok(entries) = parse(&bytes, size) {
                let _ = convert(&entries);
            }
        }
    }
}
