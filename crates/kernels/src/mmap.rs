//! Files seen as memory: a read-only map whose pages the system loads when they are touched.
//!
//! Weights are used in place from such a map, so opening a model copies nothing and two processes
//! share one copy. What is left out: writable maps, locking pages, and watching for changes. A file
//! that somebody truncates while it is mapped ends the process (`SIGBUS`) when the lost pages are
//! touched; artifacts are written once and renamed into place, never edited, so this needs a hand
//! from outside.

use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};

/// A whole file, read-only, as a slice of bytes. Starts on a page boundary.
#[derive(Debug)]
pub struct Mmap {
    map: memmap2::Mmap,
    path: PathBuf,
}

/// How the pages of a map are about to be read; see [`Mmap::advise`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// No particular order (the system's default read-ahead).
    Normal,
    /// Scattered single rows, as an embedding lookup does: no read-ahead.
    Random,
    /// From front to back, once: generous read-ahead.
    Sequential,
    /// All of it soon: start loading now.
    WillNeed,
}

/// Why a file cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MmapError {
    /// The file could not be opened or its kind not read.
    #[error("cannot open {path}: {source}; check that the file exists and may be read", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A folder, pipe, socket or device.
    #[error("{path} is not a regular file, so it cannot be mapped into memory; name the file itself", path = path.display())]
    NotAFile {
        /// What was named.
        path: PathBuf,
    },
    /// No bytes, so nothing to map.
    #[error("{path} is empty; it was probably not written to its end, so write or fetch it again", path = path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The system refused the map or the advice.
    #[error("cannot map {path} ({bytes} bytes) into memory: {source}", path = path.display())]
    Map {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        bytes: u64,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Mmap {
    /// Maps all of the file at `path`, read-only.
    ///
    /// # Errors
    /// A sentence naming the file when it cannot be opened, is not a regular file, is empty, or the
    /// system refuses the map.
    pub fn open(path: impl AsRef<Path>) -> Result<Mmap, MmapError> {
        let path = path.as_ref().to_path_buf();
        // The kind is asked by name first: opening a pipe for reading would wait for a writer.
        let named = match std::fs::metadata(&path) {
            Ok(named) => named,
            Err(source) => return Err(MmapError::Open { path, source }),
        };
        if !named.is_file() {
            return Err(MmapError::NotAFile { path });
        }
        let opened = File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (bytes, file) = match opened {
            Ok(opened) => opened,
            Err(source) => return Err(MmapError::Open { path, source }),
        };
        if bytes == 0 {
            return Err(MmapError::Empty { path });
        }
        // SAFETY: the map is read-only and private to this value, which hands out `&[u8]` tied to
        // its own life, so no Rust code can write it. Bytes may change only if another program
        // edits the file in place; that is outside the contract stated at the top of the module,
        // and every reader of these bytes validates what it reads and tolerates any bit pattern
        // (u8, i8, f16 and f32 have no invalid ones).
        match unsafe { memmap2::Mmap::map(&file) } {
            Ok(map) => Ok(Mmap { map, path }),
            Err(source) => Err(MmapError::Map {
                path,
                bytes,
                source,
            }),
        }
    }

    /// The file that is mapped, as it was named to [`Mmap::open`].
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells the system how the pages will be read. Changes speed only; does nothing where the
    /// system has no such call.
    ///
    /// # Errors
    /// What the system said, when it refuses.
    pub fn advise(&self, advice: Advice) -> Result<(), MmapError> {
        #[cfg(unix)]
        {
            let told = self.map.advise(match advice {
                Advice::Normal => memmap2::Advice::Normal,
                Advice::Random => memmap2::Advice::Random,
                Advice::Sequential => memmap2::Advice::Sequential,
                Advice::WillNeed => memmap2::Advice::WillNeed,
            });
            told.map_err(|source| MmapError::Map {
                path: self.path.clone(),
                bytes: self.map.len() as u64,
                source,
            })
        }
        #[cfg(not(unix))]
        {
            let _ = advice;
            Ok(())
        }
    }
}

impl Deref for Mmap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl AsRef<[u8]> for Mmap {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_refused(path: &Path, expected: &str) {
        let said = Mmap::open(path).expect_err("should be refused").to_string();
        assert!(said.contains(expected), "`{said}` lacks `{expected}`");
        assert!(
            said.contains(&path.display().to_string()),
            "`{said}` does not name the file"
        );
    }

    #[test]
    fn a_mapped_file_reads_as_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let bytes: Vec<u8> = (0..10_000u32).map(|i| (i * 7) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let map = Mmap::open(&path).unwrap();
        assert_eq!(&map[..], &bytes[..]);
        assert_eq!(map.path(), path);
        for advice in [
            Advice::Random,
            Advice::Sequential,
            Advice::WillNeed,
            Advice::Normal,
        ] {
            map.advise(advice).unwrap();
        }
        assert_eq!(&map[..], &bytes[..]);
    }

    #[test]
    fn a_map_outlives_the_name_of_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        std::fs::write(&path, b"still here").unwrap();
        let map = Mmap::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(&map[..], b"still here");
    }

    #[test]
    fn what_cannot_be_mapped_is_refused_with_a_sentence() {
        let folder = tempfile::tempdir().unwrap();
        check_refused(&folder.path().join("absent"), "check that the file exists");
        check_refused(folder.path(), "is not a regular file");
        let empty = folder.path().join("empty");
        std::fs::write(&empty, b"").unwrap();
        check_refused(&empty, "is empty");
        #[cfg(unix)]
        check_refused(Path::new("/dev/zero"), "is not a regular file");
    }
}
