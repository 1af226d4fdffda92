//! A token shard. What opens gives every document and token it promises.
#![no_main]

use libfuzzer_sys::fuzz_target;
use russet_fuzz::{put, scratch, seed, tiny};
use russet_tokenizer::{ShardWriter, TokenShard, Tokenizer};

fuzz_target!(
    init: {
        let files = tiny::tokenizer();
        put("tokenizer.json", &files.weights);
        let tokenizer = Tokenizer::open(scratch().join("tokenizer.json")).expect("the seed is valid");
        let path = scratch().join("seed.tokens.safetensors");
        let mut writer = ShardWriter::create(&path, &tokenizer).expect("a shard can be made");
        writer.push(&[5, 6, 7], 3).expect("it takes tokens");
        writer.push(&[8], 1).expect("it takes tokens");
        writer.finish().expect("it can be finished");
        seed("token_shard", "valid", &std::fs::read(path).expect("it is there"));
    },
    |data: &[u8]| {
        let path = put("fuzz.tokens.safetensors", data);
        let Ok(shard) = TokenShard::open(path) else { return };
        let mut end = 0;
        for document in 0..shard.documents() {
            let range = shard.document(document);
            assert_eq!(range.start, end, "documents follow each other");
            end = range.end;
            let _ = shard.document_bytes(document);
            let mut tokens = vec![0; range.len()];
            if shard.copy_into(range.clone(), &mut tokens).is_ok() {
                assert!(tokens.iter().all(|token| (*token as usize) < shard.vocab_size()), "a token beyond the vocabulary");
            }
        }
        assert_eq!(end, shard.tokens());
    }
);
