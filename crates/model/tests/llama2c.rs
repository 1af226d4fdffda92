//! A trained model of llama2.c, in both versions of its file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use russet_kernels::Pool;
use russet_model::llama2c;
use russet_tensor::{Ctx, Segments};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../golden/stories260K")
        .join(name)
}

#[test]
fn both_versions_hold_the_same_model() {
    let first = llama2c::load(&file("stories260K.bin")).unwrap();
    let versioned = llama2c::load(&file("checkpoint_v1.bin")).unwrap();
    assert_eq!(first.config().parameters(), versioned.config().parameters());
    for (a, b) in first.parameters().iter().zip(versioned.parameters()) {
        assert_eq!((&a.parts, a.tensor.data()), (&b.parts, b.tensor.data()));
    }
}

#[test]
fn it_predicts_its_stories() {
    let decoder = llama2c::load(&file("stories260K.bin")).unwrap();
    let mut ctx = Ctx::new(Arc::new(Pool::new(2).unwrap()));
    // "<s> Once upon a time" in its vocabulary of 512, then what most of its stories go on with: ",".
    let tokens = [1, 403, 407, 261, 378];
    let hidden = decoder.forward(&mut ctx, &tokens, &Segments::packed(&[5]), None);
    let losses = decoder.token_losses(&mut ctx, &hidden, &[403, 407, 261, 378, 432]);
    assert!(losses.iter().skip(1).all(|&loss| loss < 1.0), "{losses:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damaged_files_are_refused_with_a_sentence(cut in 0usize..1_056_540, at in 0usize..28, bit in 0u32..8) {
        let whole = std::fs::read(file("stories260K.bin")).unwrap();
        let truncated = llama2c::parse(&whole[..cut]);
        prop_assert!(truncated.is_err());
        let mut flipped = whole;
        flipped[at] ^= 1 << bit; // anywhere in the header
        // Only the context's length may change unseen where rotary tables are short of it.
        prop_assert!(llama2c::parse(&flipped).is_err());
    }
}
