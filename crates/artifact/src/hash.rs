//! BLAKE3 of bytes, files and folders, read as a stream.
//!
//! A folder's hash covers the relative names, lengths and hashes of its files in name order; times, owners and modes do
//! not enter, so touching a file changes nothing.
//!
//! O'Connor, Aumasson, Neves, Wilcox-O'Hearn: BLAKE3, one function, fast everywhere (2020).

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::disk;
use crate::error::{Error, Result};

/// A BLAKE3 hash; prints and parses as 64 lower-case hexadecimal digits, as `b3sum` does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash([u8; 32]);

impl Hash {
    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The hash of a file's bytes.
///
/// # Errors
/// When the file cannot be opened or read.
pub fn hash_file(path: &Path) -> Result<Hash> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    Ok(hash_open_file(&file).map_err(Error::io("read", path))?.0)
}

/// The hash of every file below a folder: names, lengths and contents. Links to files are followed, links to folders refused.
///
/// # Errors
/// When something below is neither file nor folder, or cannot be read.
pub fn hash_folder(path: &Path) -> Result<Hash> {
    let mut hasher = blake3::Hasher::new();
    for name in disk::list_files(path, disk::Links::ToFiles)? {
        let path = path.join(&name);
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        let (hash, bytes) = hash_open_file(&file).map_err(Error::io("read", &path))?;
        // Lengths first, so that no two different folders feed the same bytes.
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(&bytes.to_le_bytes());
        hasher.update(hash.as_bytes());
    }
    Ok(Hash(*hasher.finalize().as_bytes()))
}

/// Hash and byte length of what is left to read in `file`.
pub(crate) fn hash_open_file(mut file: &File) -> io::Result<(Hash, u64)> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0_u8; 256 << 10];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((Hash(*hasher.finalize().as_bytes()), bytes)),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                bytes += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({self})")
    }
}

impl FromStr for Hash {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let digits = text.as_bytes();
        let wrong = || {
            format!(
                "`{}` is not a BLAKE3 hash of 64 lower-case hexadecimal digits",
                shorten(text)
            )
        };
        if digits.len() != 64 {
            return Err(wrong());
        }
        let digit = |d: u8| match d {
            b'0'..=b'9' => Ok(d - b'0'),
            b'a'..=b'f' => Ok(d - b'a' + 10),
            _ => Err(wrong()),
        };
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// At most 80 characters of a text that may come from anywhere, control characters escaped.
pub(crate) fn shorten(text: &str) -> String {
    let mut short: String = text
        .chars()
        .take(80)
        .flat_map(|c| c.escape_debug())
        .collect();
    if text.chars().nth(80).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn hash_is_the_published_one() {
        // The empty-input vector of the BLAKE3 specification.
        let empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(Hash::of(b"").to_string(), empty);
        assert_eq!(empty.parse(), Ok(Hash::of(b"")));
        assert!(empty.to_uppercase().parse::<Hash>().is_err());
        assert!("é".repeat(32).parse::<Hash>().is_err());
    }

    #[test]
    fn folder_hash_sees_names_and_bytes_but_not_times() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("a", "1");
        write("b/c", "2");
        let first = hash_folder(dir.path()).unwrap();
        write("a", "1"); // new time, same bytes
        assert_eq!(hash_folder(dir.path()).unwrap(), first);
        write("a", "3");
        let changed = hash_folder(dir.path()).unwrap();
        assert_ne!(changed, first);
        write("a", "1");
        fs::rename(dir.path().join("a"), dir.path().join("d")).unwrap();
        assert_ne!(hash_folder(dir.path()).unwrap(), first);
    }
}
