//! Token shards: texts as ids, in a file that training maps into memory.
//!
//! `NAME.tokens.safetensors` is a safetensors file, so any tool can read it:
//!
//! | tensor | type | what |
//! |---|---|---|
//! | `tokens` | U16 if the vocabulary has at most 65,536 ids, else U32 | all documents, each ended by `<|endoftext|>` |
//! | `documents` | U64, documents + 1 | where each document starts; the first is 0, the last the token count |
//! | `bytes` | U64, documents | UTF-8 bytes of each document's text, so that a loss becomes bits per byte |
//!
//! Metadata: `format` = `russet.tokens`, `version`, `vocab_size`, `end_of_text`, `tokenizer_blake3`.
//!
//! The writer streams: tokens go to a temporary file beside the target, behind a header of fixed length that is
//! filled in at the end; then the file is flushed to disk and renamed. The reader trusts nothing: header, types,
//! sizes and the order of `documents` are checked when it opens, and each token against the vocabulary when
//! it is copied out. Values are read byte by byte as little-endian, so alignment does not matter.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use russet_kernels::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde_json::json;

use crate::error::{Result, TokenizerError};
use crate::tokenizer::{END_OF_TEXT, Tokenizer};

const FORMAT: &str = "russet.tokens";
const VERSION: &str = "1";
/// Room for the header, its 8-byte length included: a multiple of 8, several times what it needs.
const HEADER: usize = 1024;

/// How wide a stored token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    U16,
    U32,
}

impl Width {
    fn of(vocab_size: usize) -> Width {
        if vocab_size <= 1 << 16 {
            Width::U16
        } else {
            Width::U32
        }
    }

    fn bytes(self) -> usize {
        match self {
            Width::U16 => 2,
            Width::U32 => 4,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Width::U16 => "U16",
            Width::U32 => "U32",
        }
    }
}

/// What a shard holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardSummary {
    /// Documents.
    pub documents: u64,
    /// Tokens, with one `<|endoftext|>` a document.
    pub tokens: u64,
    /// Bytes of the texts.
    pub bytes: u64,
}

/// Writes one shard, document by document. Nothing is under the final name before [`ShardWriter::finish`].
#[derive(Debug)]
pub struct ShardWriter {
    path: PathBuf,
    temporary: PathBuf,
    file: Option<BufWriter<File>>,
    width: Width,
    vocab_size: usize,
    end_of_text: u32,
    blake3: String,
    /// Where each document starts, and the end of the last.
    starts: Vec<u64>,
    bytes: Vec<u64>,
    scratch: Vec<u8>,
}

impl ShardWriter {
    /// Start the shard `path` (its name should end in `.tokens.safetensors`) of this tokenizer's ids. The end of a
    /// document is `<|endoftext|>`, or the tokenizer's first `eos` where it has no such token.
    pub fn create(path: impl AsRef<Path>, tokenizer: &Tokenizer) -> Result<ShardWriter> {
        let path = path.as_ref();
        let end_of_text = tokenizer
            .token_id(END_OF_TEXT)
            .or(tokenizer.special().eos.first().copied())
            .ok_or_else(|| {
                TokenizerError::shard(
                    path,
                    "its tokenizer has neither <|endoftext|> nor an eos token, so documents could not be told apart",
                )
            })?;
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}.tmp", std::process::id()));
        let temporary = PathBuf::from(temporary);
        let mut file = BufWriter::with_capacity(
            1 << 20,
            File::create(&temporary).map_err(|e| TokenizerError::file(&temporary, e))?,
        );
        file.write_all(&[b' '; HEADER])
            .map_err(|e| TokenizerError::file(&temporary, e))?;
        Ok(ShardWriter {
            path: path.to_path_buf(),
            temporary,
            file: Some(file),
            width: Width::of(tokenizer.vocab_size()),
            vocab_size: tokenizer.vocab_size(),
            end_of_text,
            blake3: tokenizer.blake3(),
            starts: vec![0],
            bytes: Vec::new(),
            scratch: Vec::new(),
        })
    }

    /// Append one document: its ids, without the end token (added here), and the bytes of its text.
    pub fn push(&mut self, ids: &[u32], source_bytes: u64) -> Result<()> {
        self.scratch.clear();
        for &id in ids.iter().chain([&self.end_of_text]) {
            if id as usize >= self.vocab_size {
                return Err(TokenizerError::shard(
                    &self.path,
                    format!(
                        "token {id} is not in the vocabulary of {}; encode with the tokenizer that the shard was \
                         created for",
                        self.vocab_size
                    ),
                ));
            }
            match self.width {
                Width::U16 => self.scratch.extend((id as u16).to_le_bytes()),
                Width::U32 => self.scratch.extend(id.to_le_bytes()),
            }
        }
        let file = self.file.as_mut().expect("only finish takes the file");
        file.write_all(&self.scratch)
            .map_err(|e| TokenizerError::file(&self.temporary, e))?;
        let end = self.starts[self.starts.len() - 1] + ids.len() as u64 + 1;
        self.starts.push(end);
        self.bytes.push(source_bytes);
        Ok(())
    }

    /// Write the header and the tables, flush to disk, and give the file its name.
    pub fn finish(mut self) -> Result<ShardSummary> {
        let documents = self.bytes.len() as u64;
        let tokens = self.starts[self.starts.len() - 1];
        let token_end = tokens * self.width.bytes() as u64;
        let starts_end = token_end + 8 * (documents + 1);
        let header = json!({
            "__metadata__": {
                "format": FORMAT,
                "version": VERSION,
                "vocab_size": self.vocab_size.to_string(),
                "end_of_text": self.end_of_text.to_string(),
                "tokenizer_blake3": self.blake3,
            },
            "tokens": {"dtype": self.width.name(), "shape": [tokens], "data_offsets": [0, token_end]},
            "documents": {"dtype": "U64", "shape": [documents + 1], "data_offsets": [token_end, starts_end]},
            "bytes": {"dtype": "U64", "shape": [documents], "data_offsets": [starts_end, starts_end + 8 * documents]},
        })
        .to_string();
        assert!(
            header.len() <= HEADER - 8,
            "header of {} bytes",
            header.len()
        );
        let file = self.file.take().expect("only finish takes the file");
        let write = |mut file: BufWriter<File>| -> std::io::Result<()> {
            for value in self.starts.iter().chain(&self.bytes) {
                file.write_all(&value.to_le_bytes())?;
            }
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&((HEADER - 8) as u64).to_le_bytes())?;
            file.write_all(header.as_bytes())?;
            file.into_inner()?.sync_all()
        };
        write(file).map_err(|e| TokenizerError::file(&self.temporary, e))?;
        std::fs::rename(&self.temporary, &self.path)
            .map_err(|e| TokenizerError::file(&self.path, e))?;
        // The new name itself must survive a crash too.
        let parent = self.path.parent().filter(|p| !p.as_os_str().is_empty());
        if let Ok(dir) = File::open(parent.unwrap_or(Path::new("."))) {
            dir.sync_all()
                .map_err(|e| TokenizerError::file(&self.path, e))?;
        }
        Ok(ShardSummary {
            documents,
            tokens,
            bytes: self.bytes.iter().sum(),
        })
    }
}

impl ShardWriter {
    /// [`ShardWriter::finish`], or an error if no document was written.
    pub(crate) fn finish_unless_empty(self, name: &str) -> Result<ShardSummary> {
        if self.bytes.is_empty() {
            return Err(TokenizerError::shard(
                &self.path,
                format!("no document for the split {name:?}; give text files that are not empty"),
            ));
        }
        self.finish()
    }
}

impl Drop for ShardWriter {
    /// An unfinished shard leaves nothing behind.
    fn drop(&mut self) {
        if self.file.take().is_some() || self.temporary.exists() {
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// One shard, mapped into memory and checked.
#[derive(Debug)]
pub struct TokenShard {
    path: PathBuf,
    map: Mmap,
    width: Width,
    /// Where the three tensors lie in `map`.
    tokens: Range<usize>,
    starts: Range<usize>,
    bytes: Range<usize>,
    vocab_size: usize,
    end_of_text: u32,
    blake3: String,
}

impl TokenShard {
    /// Map a shard and check its header, its tables and the order of its documents.
    pub fn open(path: impl AsRef<Path>) -> Result<TokenShard> {
        let path = path.as_ref();
        let map = Mmap::open(path).map_err(|e| TokenizerError::shard(path, e))?;
        Self::check(path, map).map_err(|reason| TokenizerError::shard(path, reason))
    }

    fn check(path: &Path, map: Mmap) -> Result<TokenShard, String> {
        let not_ours = |what: String| {
            format!("{what}; it was not written by the encode stage, encode the texts again")
        };
        let (_, header) = SafeTensors::read_metadata(&map)
            .map_err(|e| not_ours(format!("it is not a safetensors file ({e})")))?;
        let none = std::collections::HashMap::new();
        let metadata = header.metadata().as_ref().unwrap_or(&none);
        let value = |key: &str| metadata.get(key).map_or("", String::as_str);
        if value("format") != FORMAT || value("version") != VERSION {
            return Err(not_ours(format!(
                "its metadata says format {:?}, version {:?}, not {FORMAT:?}, {VERSION:?}",
                value("format"),
                value("version")
            )));
        }
        let number = |key: &str| {
            value(key).parse::<u32>().map_err(|_| {
                not_ours(format!(
                    "its metadata `{key}` is {:?}, not a number",
                    value(key)
                ))
            })
        };
        let vocab_size = number("vocab_size")? as usize;
        let end_of_text = number("end_of_text")?;
        let blake3 = value("tokenizer_blake3").to_string();

        let data = SafeTensors::deserialize(&map)
            .map_err(|e| not_ours(format!("it is not a whole safetensors file ({e})")))?;
        let range = |name: &str, dtype: Dtype| -> Result<(Range<usize>, usize), String> {
            let tensor = data
                .tensor(name)
                .map_err(|_| not_ours(format!("it has no tensor `{name}`")))?;
            if tensor.dtype() != dtype || tensor.shape().len() != 1 {
                return Err(not_ours(format!(
                    "its tensor `{name}` is {:?} {:?}, not {dtype:?} of one axis",
                    tensor.dtype(),
                    tensor.shape()
                )));
            }
            // The view borrows from `map`, so its distance from the start is its place in the file.
            let from = tensor.data().as_ptr().addr() - map.as_ptr().addr();
            Ok((from..from + tensor.data().len(), tensor.shape()[0]))
        };
        let width = Width::of(vocab_size);
        let token_type = match width {
            Width::U16 => Dtype::U16,
            Width::U32 => Dtype::U32,
        };
        let (tokens, count) = range("tokens", token_type)?;
        let (starts, starts_count) = range("documents", Dtype::U64)?;
        let (bytes, documents) = range("bytes", Dtype::U64)?;
        if documents.checked_add(1) != Some(starts_count) {
            return Err(not_ours(format!(
                "it has {starts_count} document offsets for {documents} documents"
            )));
        }
        let mut last = 0;
        for (i, at) in map[starts.clone()].chunks_exact(8).enumerate() {
            let at = u64::from_le_bytes(at.try_into().expect("eight bytes"));
            // A document has at least its end token, so offsets rise; the first is 0.
            if (i == 0 && at != 0) || (i > 0 && at <= last) || at > count as u64 {
                return Err(not_ours(format!(
                    "its document offset {i} is {at}, after {last}, of {count} tokens"
                )));
            }
            last = at;
        }
        if last != count as u64 {
            return Err(not_ours(format!(
                "its last document ends at token {last}, but it has {count}"
            )));
        }
        drop(data);
        Ok(TokenShard {
            path: path.to_path_buf(),
            map,
            width,
            tokens,
            starts,
            bytes,
            vocab_size,
            end_of_text,
            blake3,
        })
    }

    /// Tokens in all, end tokens included.
    pub fn tokens(&self) -> usize {
        self.tokens.len() / self.width.bytes()
    }

    /// Documents.
    pub fn documents(&self) -> usize {
        self.bytes.len() / 8
    }

    /// The tokens of document `i`, its end token included. Panics if there is no document `i`.
    pub fn document(&self, i: usize) -> Range<usize> {
        assert!(i < self.documents(), "document {i} of {}", self.documents());
        let at = |i: usize| self.u64(&self.starts, i) as usize;
        at(i)..at(i + 1)
    }

    /// UTF-8 bytes of the text of document `i`. Panics if there is no document `i`.
    pub fn document_bytes(&self, i: usize) -> u64 {
        assert!(i < self.documents(), "document {i} of {}", self.documents());
        self.u64(&self.bytes, i)
    }

    /// The document that token `at` belongs to. Panics if there is no such token.
    pub fn document_of(&self, at: usize) -> usize {
        assert!(at < self.tokens(), "token {at} of {}", self.tokens());
        // Offsets rise strictly from 0 to the token count: the last one not above `at`.
        let (mut low, mut high) = (0, self.documents());
        while high - low > 1 {
            let middle = low.midpoint(high);
            if self.u64(&self.starts, middle) as usize <= at {
                low = middle;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Token `at`, not checked against the vocabulary. Panics if there is no such token.
    pub fn get(&self, at: usize) -> u32 {
        assert!(at < self.tokens(), "token {at} of {}", self.tokens());
        let from = self.tokens.start + at * self.width.bytes();
        match self.width {
            Width::U16 => u32::from(u16::from_le_bytes([self.map[from], self.map[from + 1]])),
            Width::U32 => {
                u32::from_le_bytes(self.map[from..from + 4].try_into().expect("four bytes"))
            }
        }
    }

    /// Copy the tokens `range` into `out` (same length), checking each against the vocabulary.
    pub fn copy_into(&self, range: Range<usize>, out: &mut [u32]) -> Result<()> {
        if range.start > range.end || range.end > self.tokens() || range.len() != out.len() {
            return Err(TokenizerError::shard(
                &self.path,
                format!(
                    "tokens {range:?} were asked for into room for {}, and it has {}",
                    out.len(),
                    self.tokens()
                ),
            ));
        }
        let width = self.width.bytes();
        let from = self.tokens.start + range.start * width;
        let data = &self.map[from..from + range.len() * width];
        let mut largest = 0;
        match self.width {
            Width::U16 => {
                for (to, two) in out.iter_mut().zip(data.chunks_exact(2)) {
                    *to = u32::from(u16::from_le_bytes([two[0], two[1]]));
                    largest = largest.max(*to);
                }
            }
            Width::U32 => {
                for (to, four) in out.iter_mut().zip(data.chunks_exact(4)) {
                    *to = u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
                    largest = largest.max(*to);
                }
            }
        }
        if !out.is_empty() && largest as usize >= self.vocab_size {
            return Err(TokenizerError::shard(
                &self.path,
                format!(
                    "it holds the token {largest} in {range:?}, outside its vocabulary of {}; it is damaged, encode the \
                     texts again",
                    self.vocab_size
                ),
            ));
        }
        Ok(())
    }

    /// The tokenizer's vocabulary size.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The token that ends each document.
    pub fn end_of_text(&self) -> u32 {
        self.end_of_text
    }

    /// BLAKE3 of the `tokenizer.json` that made it, in hex; compare with [`Tokenizer::blake3`].
    pub fn tokenizer_blake3(&self) -> &str {
        &self.blake3
    }

    /// Sums over the shard.
    pub fn summary(&self) -> ShardSummary {
        ShardSummary {
            documents: self.documents() as u64,
            tokens: self.tokens() as u64,
            bytes: (0..self.documents())
                .map(|i| self.document_bytes(i))
                .fold(0, u64::saturating_add),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn u64(&self, range: &Range<usize>, i: usize) -> u64 {
        let from = range.start + 8 * i;
        u64::from_le_bytes(self.map[from..from + 8].try_into().expect("eight bytes"))
    }
}
