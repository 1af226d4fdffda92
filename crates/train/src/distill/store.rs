//! Stored predictions: the K likeliest tokens of each position of a token shard, as a teacher saw them.
//!
//! `SPLIT.teacher.safetensors` lies beside nothing that it changes: in an artifact of its own, named after the split whose
//! positions it follows.
//!
//! | tensor | type | what |
//! |---|---|---|
//! | `ids` | U16 if the vocabulary has at most 65,536 ids, else U32; `[tokens, K]` | distinct as written (which is not checked again), the likeliest first |
//! | `log_probs` | F16 `[tokens, K]` | their log-probabilities, in nats |
//!
//! Row i belongs to token i of the shard and is predicted from what lies before it in its document and its window. The
//! probability that a row leaves, `1 - Σ exp(log_probs)`, belongs to all other tokens together; nothing is said of how it is
//! spread. An F16 log-probability of -1 is right to 0.0005, one of -10 to 0.004.
//!
//! Metadata: `format` = `russet.teacher`, `version`, `vocab_size`. The file is mapped; types, sizes and every id are checked when
//! it opens.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::f16;
use russet_kernels::Mmap;
use russet_kernels::cross_entropy::MAX_SPARSE;
use safetensors::{Dtype, SafeTensors};
use serde_json::json;

use crate::{Result, TrainError};

const FORMAT: &str = "russet.teacher";
const VERSION: &str = "1";
/// Room for the header, its 8-byte length included.
const HEADER: usize = 512;

/// The file of a split.
pub fn file_name(split: &str) -> String {
    format!("{split}.teacher.safetensors")
}

fn id_bytes(vocab: usize) -> usize {
    if vocab <= 1 << 16 { 2 } else { 4 }
}

fn error(path: &Path, problem: impl std::fmt::Display) -> TrainError {
    TrainError::Data {
        place: path.to_owned(),
        problem: format!("{problem}; run its `teacher-logits` stage again"),
    }
}

/// Writes one file, rows in order. It should lie in a draft, which is renamed into place as a whole.
#[derive(Debug)]
pub struct TeacherWriter {
    path: PathBuf,
    file: File,
    tokens: usize,
    k: usize,
    vocab: usize,
    written: usize,
}

impl TeacherWriter {
    /// A file for `tokens` rows of `k` out of `vocab`.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn create(path: &Path, tokens: usize, k: usize, vocab: usize) -> Result<TeacherWriter> {
        let ids = (tokens * k * id_bytes(vocab)) as u64;
        let end = ids + (tokens * k * size_of::<f16>()) as u64;
        let header = json!({
            "__metadata__": {"format": FORMAT, "version": VERSION, "vocab_size": vocab.to_string()},
            "ids": {
                "dtype": if id_bytes(vocab) == 2 { "U16" } else { "U32" }, "shape": [tokens, k], "data_offsets": [0, ids],
            },
            "log_probs": {"dtype": "F16", "shape": [tokens, k], "data_offsets": [ids, end]},
        });
        let header = format!("{:width$}", header.to_string(), width = HEADER - 8);
        assert_eq!(header.len(), HEADER - 8, "the header has room");
        let create = || -> std::io::Result<File> {
            let mut file = File::create_new(path)?;
            file.set_len(HEADER as u64 + end)?;
            file.write_all(&((HEADER - 8) as u64).to_le_bytes())?;
            file.write_all(header.as_bytes())?;
            Ok(file)
        };
        let file = create().map_err(|problem| error(path, problem))?;
        Ok(TeacherWriter {
            path: path.to_owned(),
            file,
            tokens,
            k,
            vocab,
            written: 0,
        })
    }

    /// Appends rows, each of K `(id, log-probability)`.
    ///
    /// # Errors
    /// When the disk refuses.
    ///
    /// # Panics
    /// When they are more rows than were announced.
    pub fn push(&mut self, rows: &[(u32, f32)]) -> Result<()> {
        let (start, bytes) = (self.written * self.k, id_bytes(self.vocab));
        let count = rows.len() / self.k;
        assert!(
            rows.len() == count * self.k && self.written + count <= self.tokens,
            "{} of a teacher's rows behind {} of {}",
            rows.len(),
            self.written,
            self.tokens
        );
        let ids: Vec<u8> = rows
            .iter()
            .flat_map(|(id, _)| id.to_le_bytes()[..bytes].to_vec())
            .collect();
        let log_probs: Vec<u8> = rows
            .iter()
            .flat_map(|&(_, log_prob)| f16::from_f32(log_prob).to_le_bytes())
            .collect();
        let behind = HEADER + self.tokens * self.k * bytes;
        for (at, bytes) in [
            (HEADER + start * bytes, ids),
            (behind + start * size_of::<f16>(), log_probs),
        ] {
            self.file
                .seek(SeekFrom::Start(at as u64))
                .and_then(|_| self.file.write_all(&bytes))
                .map_err(|problem| error(&self.path, problem))?;
        }
        self.written += count;
        Ok(())
    }

    /// Ends the file. (The draft's commit brings it to the disk.)
    ///
    /// # Panics
    /// When rows are missing.
    pub fn finish(self) {
        assert_eq!(self.written, self.tokens, "rows of a teacher");
    }
}

/// A file of stored predictions, mapped and checked.
#[derive(Debug)]
pub struct TeacherLogits {
    map: Mmap,
    ids: Range<usize>,
    log_probs: Range<usize>,
    tokens: usize,
    k: usize,
    vocab: usize,
}

impl TeacherLogits {
    /// Maps a file and checks all of it.
    ///
    /// # Errors
    /// When it is not whole or not one of ours.
    pub fn open(path: &Path) -> Result<TeacherLogits> {
        let map = Mmap::open(path).map_err(|problem| error(path, problem))?;
        Self::check(map).map_err(|problem| error(path, problem))
    }

    fn check(map: Mmap) -> std::result::Result<TeacherLogits, String> {
        let broken = |e| format!("it is not a whole safetensors file ({e})");
        let (_, header) = SafeTensors::read_metadata(&map).map_err(broken)?;
        let none = std::collections::HashMap::new();
        let metadata = header.metadata().as_ref().unwrap_or(&none);
        let value = |key: &str| metadata.get(key).map_or("", String::as_str);
        if (value("format"), value("version")) != (FORMAT, VERSION) {
            return Err(format!(
                "its metadata says format {:?}, version {:?}, not {FORMAT:?}, {VERSION:?}",
                value("format"),
                value("version")
            ));
        }
        let vocab: usize = value("vocab_size")
            .parse()
            .map_err(|_| format!("its metadata `vocab_size` is {:?}", value("vocab_size")))?;
        let data = SafeTensors::deserialize(&map).map_err(broken)?;
        let range = |name: &str,
                     dtype: Dtype|
         -> std::result::Result<(Range<usize>, usize, usize), String> {
            let tensor = data
                .tensor(name)
                .map_err(|_| format!("it has no tensor `{name}`"))?;
            let (&[tokens, k], true) = (tensor.shape(), tensor.dtype() == dtype) else {
                return Err(format!(
                    "its tensor `{name}` is {:?} {:?}, not {dtype:?} of two dims",
                    tensor.dtype(),
                    tensor.shape()
                ));
            };
            // The view borrows from `map`, so its distance from the start is its place in the file.
            let from = tensor.data().as_ptr().addr() - map.as_ptr().addr();
            Ok((from..from + tensor.data().len(), tokens, k))
        };
        let bytes = id_bytes(vocab);
        let dtype = if bytes == 2 { Dtype::U16 } else { Dtype::U32 };
        let (ids, tokens, k) = range("ids", dtype)?;
        let (log_probs, rows, columns) = range("log_probs", Dtype::F16)?;
        if (rows, columns) != (tokens, k) || !(1..=MAX_SPARSE.min(vocab.max(1))).contains(&k) {
            return Err(format!(
                "it has ids of [{tokens}, {k}] and log-probabilities of [{rows}, {columns}], out of {vocab}"
            ));
        }
        drop(data);
        let logits = TeacherLogits {
            map,
            ids,
            log_probs,
            tokens,
            k,
            vocab,
        };
        for at in 0..tokens * k {
            let (id, log_prob) = (logits.id(at), logits.log_prob(at));
            if id as usize >= vocab || log_prob.is_nan() || log_prob > 0.0 {
                let (row, of) = (at / k, at % k);
                return Err(format!(
                    "row {row} gives the token {id} the log-probability {log_prob} in place {of}, out of {vocab} tokens"
                ));
            }
        }
        Ok(logits)
    }

    /// Rows, one a token of the shard.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// K.
    pub fn k(&self) -> usize {
        self.k
    }

    /// V.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// The first `k` ids and log-probabilities of the rows of `range`, `[N, k]` each.
    ///
    /// # Panics
    /// When a row or `k` lies outside.
    pub fn rows(&self, range: Range<usize>, k: usize) -> (Vec<u32>, Vec<f32>) {
        assert!(k <= self.k, "{k} of {} stored predictions", self.k);
        let places = || range.clone().flat_map(|row| row * self.k..row * self.k + k);
        let ids = places().map(|at| self.id(at)).collect();
        let log_probs = places().map(|at| self.log_prob(at)).collect();
        (ids, log_probs)
    }

    fn id(&self, at: usize) -> u32 {
        let ids = &self.map[self.ids.clone()];
        match id_bytes(self.vocab) {
            2 => u32::from(u16::from_le_bytes([ids[2 * at], ids[2 * at + 1]])),
            _ => u32::from_le_bytes(ids[4 * at..4 * at + 4].try_into().expect("four bytes")),
        }
    }

    fn log_prob(&self, at: usize) -> f32 {
        let from = self.log_probs.start + 2 * at;
        f16::from_le_bytes([self.map[from], self.map[from + 1]]).to_f32()
    }
}
