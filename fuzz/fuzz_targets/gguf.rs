//! A GGUF file: its head, its tensors, its decoder. What opens is run.
#![no_main]

use libfuzzer_sys::fuzz_target;
use russet_fuzz::{seed, tiny, use_decoder};
use russet_model::gguf::{Gguf, decoder};

/// Floats that a decoder may take: a file pays for its tensors at most eight times over, and running one takes a few copies.
const FLOATS: usize = 1 << 20;

fuzz_target!(
    init: {
        for (name, bytes) in tiny::gguf() {
            Gguf::parse(&bytes).and_then(|gguf| decoder::load(&gguf)).expect("the seed is valid");
            seed("gguf", name, &bytes);
        }
    },
    |data: &[u8]| {
        let Ok(gguf) = Gguf::parse(data) else { return };
        for name in gguf.tensor_names() {
            let (_, shape) = gguf.tensor(name).expect("it was named");
            let numbers = gguf.tensor_f32(name).expect("it was named");
            assert_eq!(numbers.len(), shape.iter().product::<usize>());
        }
        let small = decoder::config(&gguf).is_ok_and(|config| config.parameters() < FLOATS);
        if small && let Ok(decoder) = decoder::load(&gguf) {
            use_decoder(&decoder);
        }
    }
);
