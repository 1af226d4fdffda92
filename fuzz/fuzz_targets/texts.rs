//! A file of texts, plain or packed: the first byte says by which ending it is known.
#![no_main]

use libfuzzer_sys::fuzz_target;
use russet_fuzz::{put, seed};
use russet_tokenizer::{Limits, read_texts_within};

const ENDINGS: [&str; 6] = ["txt", "jsonl", "txt.gz", "jsonl.gz", "txt.zst", "jsonl.zst"];

fuzz_target!(
    init: {
        seed("texts", "txt", b"\0One text.\n\nAnother.");
        seed("texts", "jsonl", b"\x01{\"text\": \"one\"}\n{\"id\": 2, \"text\": \"two\"}\n");
        seed("texts", "gz", b"\x02\x1f\x8b\x08\0\0\0\0\0\0\x03\xcbH\xcd\xc9\xc9\x07\0\x86\xa6\x106\x05\0\0\0");
        seed("texts", "zst", b"\x04\x28\xb5\x2f\xfd\x04\x00\x29\x00\x00hello\x50\x75\x1c\x04");
    },
    |data: &[u8]| {
        let Some((ending, file)) = data.split_first() else { return };
        let path = put(&format!("texts.{}", ENDINGS[usize::from(*ending) % ENDINGS.len()]), file);
        let limits = Limits { document_bytes: 1 << 12, file_bytes: 1 << 16 };
        let Ok(texts) = read_texts_within(&path, limits) else { return };
        for text in texts {
            match text {
                Ok(text) => assert!(text.len() <= 1 << 12, "a text passed the limit"),
                Err(_) => return,
            }
        }
    }
);
