//! Stored predictions. What opens gives every row it promises, of tokens in the vocabulary and log-probabilities.
#![no_main]

use libfuzzer_sys::fuzz_target;
use russet_fuzz::{put, scratch, seed};
use russet_train::distill::{TeacherLogits, TeacherWriter};

fuzz_target!(
    init: {
        for (name, vocab) in [("narrow", 100), ("wide", 70_000)] {
            let path = scratch().join(format!("{name}.teacher.safetensors"));
            let _ = std::fs::remove_file(&path);
            let mut writer = TeacherWriter::create(&path, 2, 2, vocab).expect("a file can be made");
            writer.push(&[(9, -0.5), (4, -1.0), (0, 0.0), (1, -30.0)]).expect("it takes rows");
            writer.finish();
            seed("teacher_logits", name, &std::fs::read(path).expect("it is there"));
        }
    },
    |data: &[u8]| {
        let path = put("fuzz.teacher.safetensors", data);
        let Ok(logits) = TeacherLogits::open(&path) else { return };
        for row in 0..logits.tokens() {
            let (ids, log_probs) = logits.rows(row..row + 1, logits.k());
            assert!(ids.iter().all(|id| (*id as usize) < logits.vocab()), "a token beyond the vocabulary");
            assert!(log_probs.iter().all(|log_prob| *log_prob <= 0.0), "no log-probability");
        }
    }
);
