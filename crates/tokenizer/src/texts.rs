//! Documents out of files: `.txt` (one document) and `.jsonl` (one a line, key `text`), each plain, `.zst` or `.gz`.
//!
//! The files may be a stranger's, so a line, a document and what a file unpacks to are bounded, and a
//! decompressor gets a bounded window. Errors name the file and, for JSON lines, the line. Left out: Parquet
//! (the data crate's), other keys than `text`, and guessing a format from content.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Result, TokenizerError};

/// How much a file may hold; [`Limits::default`] fits any text corpus kept in shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one line of JSON, or of one `.txt` document.
    pub document_bytes: u64,
    /// Bytes of the whole file after decompression.
    pub file_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            document_bytes: 64 << 20,
            file_bytes: 256 << 30,
        }
    }
}

/// Documents of one file, in order; ends after the first error.
pub struct Texts {
    path: PathBuf,
    reader: Box<dyn BufRead + Send>,
    lines: bool,
    line: u64,
    limits: Limits,
    done: bool,
    buffer: Vec<u8>,
}

/// [`read_texts_within`] the default limits.
pub fn read_texts(path: impl AsRef<Path>) -> Result<Texts> {
    read_texts_within(path, Limits::default())
}

/// The lines of a `.jsonl` file, plain or packed as [`read_texts`] has it, each with its number from 1; empty ones are left
/// out. For rows with other keys than `text`.
pub fn read_lines(path: impl AsRef<Path>) -> Result<Lines> {
    let path = path.as_ref();
    let texts = read_texts_within(path, Limits::default())?;
    match texts.lines {
        true => Ok(Lines(texts)),
        false => Err(TokenizerError::file(
            path,
            "rows are read from .jsonl files, plain or with .zst or .gz after that; rename or convert it",
        )),
    }
}

/// Lines of one file, in order; ends after the first error.
pub struct Lines(Texts);

impl Iterator for Lines {
    type Item = Result<(u64, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.done {
            return None;
        }
        let next = self.0.next_bytes();
        self.0.done |= !matches!(next, Ok(Some(())));
        let Texts { line, buffer, .. } = &mut self.0;
        next.map(|some| some.map(|()| (*line, std::mem::take(buffer))))
            .transpose()
    }
}

/// The documents of `path`: `.txt` or `.jsonl`, plain or with `.zst` or `.gz` after it.
pub fn read_texts_within(path: impl AsRef<Path>, limits: Limits) -> Result<Texts> {
    let path = path.as_ref();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let (bare, packing) = match name.rsplit_once('.') {
        Some((bare, packing @ ("zst" | "gz"))) => (bare, packing),
        _ => (name.as_ref(), ""),
    };
    let lines = match bare.rsplit_once('.') {
        Some((_, "jsonl")) => true,
        Some((_, "txt")) => false,
        _ => {
            return Err(TokenizerError::file(
                path,
                "texts are read from .txt and .jsonl files, plain or with .zst or .gz after that; rename or convert it",
            ));
        }
    };
    let failed = |e: std::io::Error| TokenizerError::file(path, e);
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(TokenizerError::file(path, "it is not a regular file"));
    }
    let file = BufReader::new(File::open(path).map_err(failed)?);
    let unpacked: Box<dyn Read + Send> = match packing {
        "zst" => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(file).map_err(failed)?;
            decoder.window_log_max(27).map_err(failed)?; // 128 MiB, what `zstd -d` allows too
            Box::new(decoder)
        }
        "gz" => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        _ => Box::new(file),
    };
    // One byte more than allowed, so that "too much" can be told from "just enough".
    let bounded = unpacked.take(limits.file_bytes.saturating_add(1));
    Ok(Texts {
        path: path.to_path_buf(),
        reader: Box::new(Counted {
            inner: BufReader::with_capacity(1 << 16, bounded),
        }),
        lines,
        line: 0,
        limits,
        done: false,
        buffer: Vec::new(),
    })
}

/// A buffered reader whose end of input tells whether the bound was hit.
struct Counted<R> {
    inner: BufReader<std::io::Take<R>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        self.inner.read(out)
    }
}

impl<R: Read> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        // `Take` at zero means the file unpacks to more than was allowed.
        if self.inner.get_ref().limit() == 0 {
            return Err(std::io::Error::other(
                "it unpacks to more bytes than are allowed for one file; split it, or raise the limit",
            ));
        }
        self.inner.fill_buf()
    }

    fn consume(&mut self, bytes: usize) {
        self.inner.consume(bytes);
    }
}

#[derive(Deserialize)]
struct Row {
    text: String,
}

impl Texts {
    fn line_error(&self, reason: impl std::fmt::Display) -> TokenizerError {
        TokenizerError::Line {
            path: self.path.clone(),
            line: self.line,
            reason: reason.to_string(),
        }
    }

    /// Fill `buffer` up to a line end (or the end of the file); false at the end of the file.
    fn fill(&mut self, until_line_end: bool) -> std::io::Result<Filled> {
        self.buffer.clear();
        let most = self.limits.document_bytes;
        let mut bounded = self.reader.by_ref().take(most.saturating_add(1));
        let read = if until_line_end {
            bounded.read_until(b'\n', &mut self.buffer)?
        } else {
            bounded.read_to_end(&mut self.buffer)?
        };
        Ok(if read == 0 {
            Filled::End
        } else if read as u64 > most {
            Filled::TooLong
        } else {
            Filled::Some
        })
    }

    /// Fills `buffer` with the next line that is not empty.
    fn next_bytes(&mut self) -> Result<Option<()>> {
        loop {
            self.line += 1;
            match self
                .fill(true)
                .map_err(|e| self.line_error(unreadable(&e)))?
            {
                Filled::End => return Ok(None),
                Filled::TooLong => {
                    return Err(self.line_error(format!(
                        "it is longer than {} bytes; cut the document into several",
                        self.limits.document_bytes
                    )));
                }
                Filled::Some if self.buffer.trim_ascii().is_empty() => {}
                Filled::Some => return Ok(Some(())),
            }
        }
    }

    fn next_line(&mut self) -> Result<Option<String>> {
        if self.next_bytes()?.is_none() {
            return Ok(None);
        }
        let row: Row = serde_json::from_slice(&self.buffer).map_err(|e| {
            self.line_error(format!("it is not a JSON object with a string `text`: {e}"))
        })?;
        Ok(Some(row.text))
    }

    fn whole_file(&mut self) -> Result<Option<String>> {
        let failed = |path: &Path, e: String| TokenizerError::file(path, e);
        match self
            .fill(false)
            .map_err(|e| failed(&self.path, unreadable(&e)))?
        {
            Filled::End => Ok(None),
            Filled::TooLong => Err(failed(
                &self.path,
                format!(
                    "it is one document of more than {} bytes; cut it into documents, one a line of a .jsonl file",
                    self.limits.document_bytes
                ),
            )),
            Filled::Some => String::from_utf8(std::mem::take(&mut self.buffer))
                .map(Some)
                .map_err(|e| {
                    failed(
                        &self.path,
                        format!(
                            "byte {} is not UTF-8; convert it to UTF-8",
                            e.utf8_error().valid_up_to()
                        ),
                    )
                }),
        }
    }
}

/// A packed file that ends too early, or any other that cannot be read on.
fn unreadable(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            format!(
                "the file ends before its packing does ({error}); it was cut off, so copy or fetch it again"
            )
        }
        _ => error.to_string(),
    }
}

enum Filled {
    Some,
    End,
    TooLong,
}

impl Iterator for Texts {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = if self.lines {
            self.next_line()
        } else {
            self.done = true;
            self.whole_file()
        };
        self.done |= !matches!(next, Ok(Some(_)));
        next.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn check(name: &str, bytes: &[u8], limits: Limits) -> Result<Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        read_texts_within(&path, limits)?.collect()
    }

    const LINES: &[u8] = b"{\"text\": \"one\"}\n\n{\"id\": 7, \"text\": \"tw\\u00f6\"}";

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn every_packing_gives_the_same_documents() {
        let zst = zstd::encode_all(LINES, 3).unwrap();
        for (name, bytes) in [
            ("a.jsonl", LINES),
            ("a.b.jsonl.zst", &zst),
            ("a.jsonl.gz", &gz(LINES)),
        ] {
            assert_eq!(
                check(name, bytes, Limits::default()).unwrap(),
                ["one", "twö"]
            );
        }
        assert_eq!(
            check("a.txt", b"a\nb\n", Limits::default()).unwrap(),
            ["a\nb\n"]
        );
        assert_eq!(
            check("a.txt.gz", &gz(b"c"), Limits::default()).unwrap(),
            ["c"]
        );
        assert!(check("a.jsonl", b"", Limits::default()).unwrap().is_empty());
    }

    #[test]
    fn lines_come_with_their_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let text = |bytes| String::from_utf8(bytes).unwrap().trim().to_owned();
            let lines = read_lines(&path)?.map(|line| line.map(|(n, bytes)| (n, text(bytes))));
            lines.collect::<Result<Vec<_>>>()
        };
        let expected = vec![(1, "{\"a\": 1}".to_owned()), (3, "b".to_owned())];
        let bytes = b"{\"a\": 1}\n\nb";
        assert_eq!(read("a.jsonl", bytes).unwrap(), expected);
        assert_eq!(read("a.jsonl.gz", &gz(bytes)).unwrap(), expected);
        let error = read("a.txt", bytes).unwrap_err().to_string();
        assert!(error.contains(".jsonl"), "{error}");
    }

    #[test]
    fn errors_name_the_line_and_the_way_out() {
        let says = |name: &str, bytes: &[u8], limits: Limits, words: &[&str]| {
            let error = check(name, bytes, limits).unwrap_err().to_string();
            for word in words {
                assert!(error.contains(word), "{error:?} lacks {word:?}");
            }
        };
        let d = Limits::default();
        says(
            "a.jsonl",
            b"{\"text\": \"one\"}\n{\"txt\": 1}\n",
            d,
            &["a.jsonl, line 2", "`text`"],
        );
        says("a.jsonl", b"{\"text\": \"\xff\"}", d, &["line 1"]);
        says("a.txt", b"ab\xff", d, &["byte 2", "UTF-8"]);
        says("a.csv", b"", d, &[".jsonl"]);
        says("a.jsonl.zst", b"not zstd at all", d, &["line 1"]);
        let small = Limits {
            document_bytes: 20,
            ..d
        };
        says(
            "a.jsonl",
            b"{\"text\": \"0123456789012345\"}",
            small,
            &["line 1", "longer than 20"],
        );
        says("a.txt", &[b'a'; 21], small, &["20 bytes"]);
    }

    #[test]
    fn a_decompression_bomb_ends_at_the_limit() {
        let line = b"{\"text\": \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"}\n";
        let zst = zstd::encode_all(&line.repeat(10_000)[..], 3).unwrap();
        let limits = Limits {
            file_bytes: 10_000,
            ..Limits::default()
        };
        let error = check("bomb.jsonl.zst", &zst, limits)
            .unwrap_err()
            .to_string();
        assert!(error.contains("more bytes than are allowed"), "{error}");
        // Exactly at the limit is still fine.
        let limits = Limits {
            file_bytes: line.len() as u64,
            ..Limits::default()
        };
        assert_eq!(check("fit.jsonl", line, limits).unwrap().len(), 1);
    }
}
