//! What the targets share: a folder to put foreign bytes into, seeds, and a use for what was accepted.
//!
//! A target promises that its parser returns, whatever the bytes: no panic, no endless loop, no memory beyond what the bytes can pay
//! for. What a parser accepts is then used a little, since a reader that accepts nonsense fails later.

pub mod tiny;

use russet_kernels::{Isa, Pool};
use russet_model::Decoder;
use russet_tensor::{Ctx, Segments};
use russet_tokenizer::{Message, Tokenizer};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

/// Where golden/ lies.
pub const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../golden");

/// A folder of this process for parsers that open files; in memory where the system has such a place.
pub fn scratch() -> PathBuf {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() {
            memory.to_path_buf()
        } else {
            std::env::temp_dir()
        };
        remove_those_of_dead_processes(&place);
        let folder = place.join(format!("{SCRATCH}{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("the scratch folder can be made");
        folder
    });
    FOLDER.clone()
}

const SCRATCH: &str = "russet-fuzz-";

/// A target ends by a signal and cannot clear up after itself, so the next one does.
fn remove_those_of_dead_processes(place: &Path) {
    for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name
            .strip_prefix(SCRATCH)
            .map(|id| Path::new("/proc").join(id));
        if process.is_some_and(|process| !process.exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Writes a file into [`scratch`]. Nothing may still map the one of the same name.
pub fn put(name: &str, bytes: &[u8]) -> PathBuf {
    let path = scratch().join(name);
    std::fs::write(&path, bytes).expect("the scratch folder takes files");
    path
}

/// Puts a valid input into the target's corpus, where libFuzzer begins.
pub fn seed(target: &str, name: &str, bytes: &[u8]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    std::fs::create_dir_all(&folder).expect("the corpus folder can be made");
    std::fs::write(folder.join(name), bytes).expect("the corpus folder takes files");
}

/// A file of golden/ as a seed.
pub fn seed_golden(target: &str, file: &str) {
    let bytes = std::fs::read(Path::new(GOLDEN).join(file)).expect("golden/ is complete");
    seed(target, &file.replace('/', "-"), &bytes);
}

/// An input that stands for two files: text up to the first zero byte, the rest after it.
pub fn halves(input: &[u8]) -> (&[u8], &[u8]) {
    let at = input
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(input.len());
    (&input[..at], input.get(at + 1..).unwrap_or(&[]))
}

/// Two files as one input; see [`halves`].
pub fn joined(text: &[u8], rest: &[u8]) -> Vec<u8> {
    [text, &[0], rest].concat()
}

/// libFuzzer aborts at every panic; a parser that catches those of a library below it is in order. One that leaves the target still aborts.
pub fn caught_panics_are_fine() {
    std::panic::set_hook(Box::new(|_| ()));
}

/// Runs three tokens through a decoder, whatever its weights are.
pub fn use_decoder(decoder: &Decoder) {
    static POOL: LazyLock<Arc<Pool>> = LazyLock::new(|| Arc::new(Pool::with_isa(1, Isa::Scalar)));
    let mut ctx = Ctx::new(POOL.clone());
    let hidden = decoder.forward(&mut ctx, &[0, 0, 0], &Segments::packed(&[2, 1]), None);
    let logits = decoder.logits(&mut ctx, &hidden);
    assert_eq!(logits.shape(), [3, decoder.config().vocab]);
}

/// Encodes, decodes and renders.
pub fn use_tokenizer(tokenizer: &Tokenizer) {
    let text = "Once upon a time, 12 o'clock\n\u{1F34E} <|im_end|>";
    if let Ok(ids) = tokenizer.encode(text, true) {
        let streamed: String = {
            let mut stream = tokenizer.detokenizer(false);
            let mut text: String = ids.iter().map(|id| stream.push(*id)).collect();
            text.push_str(&stream.finish());
            text
        };
        assert_eq!(
            streamed,
            tokenizer.decode(&ids, false),
            "a stream says what decoding says"
        );
    }
    let _ = tokenizer.encode_chat(&[Message::new("user", text)], true);
    for id in [0, 1, 255, u32::MAX] {
        let _ = (
            tokenizer.token(id),
            tokenizer.is_special(id),
            tokenizer.decode(&[id], true),
        );
    }
}
