//! What stands in other layers while it is trained.

use std::path::PathBuf;

use russet_artifact::Kind;
use russet_model::Decoder;

use crate::Result;
use crate::publish::WriteFiles;

/// A decoder in layers that are taken off again before it is written: masks, palettes that learn.
pub struct Wrapped<'a> {
    /// What it was before, whose tokenizer a checkpoint has too.
    pub base: PathBuf,
    /// What the run leaves.
    pub kind: Kind,
    /// Opens it and puts them on. Its parameters are what is trained.
    pub wrap: &'a (dyn Fn() -> Result<Decoder> + Sync),
    /// What is written of a decoder that wears them.
    pub unwrap: &'a (dyn Fn(&Decoder) -> Result<Unwrapped> + Sync),
}

/// What is written of a wrapped decoder.
#[allow(
    clippy::large_enum_variant,
    reason = "there is one, when it is written"
)]
pub enum Unwrapped {
    /// A checkpoint.
    Decoder(Decoder),
    /// All of the artifact but the task's files, by what writes them into a folder.
    Files(WriteFiles),
}
