//! What an unfinished run has drawn and judged: rows of a file, each numbered, below a line that says what they are of.
//!
//! Rows are added and never changed, so a killed process spoils the last line at most. What does not read as the next row ends the file
//! there, and comes to be drawn again: the file is the run's own, and nothing in it is dear.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use russet_artifact::{Hash, Hold};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The file by which a folder is known as one of a state.
const LOCK: &str = "lock";

/// Removes the folder of work for `place`, if it is one and no other process is at it.
pub fn clear(place: &Path, folder: &Path) -> Result<()> {
    if !folder.join(LOCK).is_file() {
        return Ok(());
    }
    let _held = Hold::take(place, folder)?;
    std::fs::remove_dir_all(folder)
        .with_context(|| format!("{}: the state cannot be removed", folder.display()))
}

/// A file of rows that is being written.
pub struct Log {
    path: PathBuf,
    file: File,
}

#[derive(Serialize, Deserialize)]
struct Head {
    about: String,
}

#[derive(Serialize, Deserialize)]
struct Row<T> {
    number: usize,
    row: T,
}

impl Log {
    /// Opens it with the rows that it has, none where they are of something else.
    pub fn open<T: DeserializeOwned>(path: &Path, about: &Hash) -> Result<(Log, Vec<T>)> {
        let failed = || format!("{}: the state cannot be read or written", path.display());
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            read => read.with_context(failed)?,
        };
        let mut lines = bytes
            .split_inclusive(|byte| *byte == b'\n')
            .filter(|line| line.ends_with(b"\n"));
        let head = lines.next();
        let about = about.to_string();
        let same = head.is_some_and(|line| {
            serde_json::from_slice(line).is_ok_and(|head: Head| head.about == about)
        });
        let mut rows = Vec::new();
        let mut whole = 0;
        if let (true, Some(head)) = (same, head) {
            whole = head.len();
            for line in lines {
                match serde_json::from_slice::<Row<T>>(line) {
                    Ok(Row { number, row }) if number == rows.len() => rows.push(row),
                    _ => break,
                }
                whole += line.len();
            }
        }
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .with_context(failed)?;
        file.set_len(whole as u64).with_context(failed)?;
        file.seek(SeekFrom::End(0)).with_context(failed)?;
        let mut log = Log {
            path: path.to_owned(),
            file,
        };
        if whole == 0 {
            log.line(&Head { about })?;
        }
        Ok((log, rows))
    }

    /// Adds the row of this number.
    pub fn push<T: Serialize>(&mut self, number: usize, row: &T) -> Result<()> {
        self.line(&Row { number, row })
    }

    /// Puts all of it onto the disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().with_context(|| self.failed())
    }

    fn line(&mut self, value: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        self.file.write_all(&line).with_context(|| self.failed())
    }

    fn failed(&self) -> String {
        format!("{}: the state cannot be written", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_off_is_written_again_and_other_work_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let (one, other) = (Hash::of(b"one"), Hash::of(b"other"));
        let (mut log, rows) = Log::open::<String>(&path, &one).unwrap();
        assert!(rows.is_empty());
        for (number, row) in ["a", "b", "c"].iter().enumerate() {
            log.push(number, row).unwrap();
        }
        log.sync().unwrap();
        let whole = std::fs::read(&path).unwrap();
        // Cut at every byte: what is whole is there, what follows comes again, to the same bytes.
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (mut log, rows) = Log::open::<String>(&path, &one).unwrap();
            assert_eq!(rows, ["a", "b", "c"][..rows.len()]);
            for number in rows.len()..3 {
                log.push(number, &["a", "b", "c"][number]).unwrap();
            }
            assert_eq!(std::fs::read(&path).unwrap(), whole, "cut at {cut}");
        }
        // A disk that lost a page leaves zeros.
        let mut torn = whole.clone();
        let end = torn.len();
        torn[end - 10..].fill(0);
        std::fs::write(&path, &torn).unwrap();
        let (_, rows) = Log::open::<String>(&path, &one).unwrap();
        assert_eq!(rows, ["a", "b"]);
        assert_eq!(Log::open::<String>(&path, &other).unwrap().1.len(), 0);
    }
}
