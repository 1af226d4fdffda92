//! The tokenizer files of llama2.c (Karpathy 2023), as a Hugging Face tokenizer.
//!
//! File: i32 longest token length, then for each token f32 score, i32 length, bytes; all little-endian. Ids
//! 0, 1, 2 are `<unk>`, `bos`, `eos`; 3..=258 are the bytes `<0x00>`..=`<0xFF>`. llama2.c encodes by putting a
//! space before the text, taking characters (bytes, where a character is unknown), and merging, again
//! and again, the pair whose joined token has the best score, the leftmost of equals. Byte-pair encoding with
//! merges ranked by that score does the same in n log n; `encode_plainly` below is llama2.c's loop, and
//! the tests compare the two. Two tokens with one score would make "leftmost" matter between them, which
//! ranks cannot say, so such a file is refused (no trained one has that).
//!
//! Decoding strips one space after `bos` and at the start of a text, as llama2.c's `decode` does.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, json};

use crate::error::{Result, TokenizerError};
use crate::open::read_bounded;
use crate::tokenizer::{SpecialIds, SpecialNames, Tokenizer};

/// llama2.c's own files have 32,000 tokens in 434 KB.
const LARGEST_FILE: u64 = 64 << 20;
/// Ids of `<unk>`, `bos`, `eos` and 256 bytes.
const FIXED: usize = 3 + 256;

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
        if id >= 3 && id < FIXED && name != format!("<0x{:02X}>", id - 3) {
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

/// Entries -> a `tokenizer.json`, opened.
fn convert(entries: &Entries) -> Result<Tokenizer, String> {
    let ids: HashMap<&str, usize> = entries
        .names
        .iter()
        .enumerate()
        .map(|(id, name)| (name.as_str(), id))
        .collect();
    // Every way to cut a token into two tokens is a merge. The special three take no part.
    let mut merges: Vec<(f32, usize, usize, usize)> = Vec::new();
    for (id, name) in entries.names.iter().enumerate().skip(3) {
        for (at, _) in name.char_indices().skip(1) {
            let halves = (ids.get(&name[..at]), ids.get(&name[at..]));
            if let (Some(&a), Some(&b)) = halves
                && a >= 3
                && b >= 3
            {
                merges.push((entries.scores[id], id, a, b));
            }
        }
    }
    merges.sort_by(|x, y| y.0.total_cmp(&x.0).then(x.1.cmp(&y.1)));
    for pair in merges.windows(2) {
        if pair[0].0 == pair[1].0 && pair[0].1 != pair[1].1 {
            return Err(format!(
                "its tokens {:?} and {:?} have the same score {}, so their order is not defined",
                entries.names[pair[0].1], entries.names[pair[1].1], pair[0].0
            ));
        }
    }
    let mut vocab = Map::new();
    for (id, name) in entries.names.iter().enumerate() {
        vocab.insert(name.clone(), json!(id));
    }
    let rules: Vec<_> = merges
        .iter()
        .map(|&(_, _, a, b)| json!([entries.names[a], entries.names[b]]))
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
    let (hf, decoder) = crate::open::parse(json.to_string().as_bytes())?;
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
    Ok(Tokenizer::assemble(hf, json, &decoder, special, names, None)?.stripping_after_bos())
}

/// llama2.c's `encode` (run.c), without `bos` and `eos`: the oracle.
#[cfg(test)]
fn encode_plainly(entries: &Entries, text: &str) -> Vec<u32> {
    let ids: HashMap<&str, u32> = entries
        .names
        .iter()
        .zip(0..)
        .map(|(name, id)| (name.as_str(), id))
        .collect();
    let mut tokens = Vec::new();
    if !text.is_empty() {
        tokens.push(ids[" "]);
    }
    for c in text.chars() {
        let mut buffer = [0; 4];
        let c: &str = c.encode_utf8(&mut buffer);
        match ids.get(c) {
            Some(&id) => tokens.push(id),
            None => tokens.extend(c.bytes().map(|b| u32::from(b) + 3)),
        }
    }
    loop {
        let mut best: Option<(f32, usize, u32)> = None;
        for at in 0..tokens.len().saturating_sub(1) {
            let joined = format!(
                "{}{}",
                entries.names[tokens[at] as usize],
                entries.names[tokens[at + 1] as usize]
            );
            if let Some(&id) = ids.get(joined.as_str()) {
                let score = entries.scores[id as usize];
                if best.is_none_or(|(s, ..)| score > s) {
                    best = Some((score, at, id));
                }
            }
        }
        let Some((_, at, id)) = best else {
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
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn encoding_equals_llama2c_on_its_own_pieces(ids in prop::collection::vec(259usize..512, 0..24)) {
            check(&ids.iter().map(|&id| ENTRIES.names[id].as_str()).collect::<String>());
        }

        #[test]
        fn encoding_equals_llama2c_on_any_text(text in any::<String>()) {
            check(&text);
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
