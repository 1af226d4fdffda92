//! Who may ask: keys from a file that holds only their hashes.
//!
//! A line is a name, the hash of a key, what it may do beyond asking and for how much it may ask: `alice blake3:5f… adapters
//! at-once=4`. Keys are 256 random bits
//! ([`new_key`]), so a fast hash is enough: there is nothing to guess from. Hashes are compared in constant time, all of them.

use std::path::Path;
use std::sync::Arc;

use crate::meter::{Allowance, Meter};
use crate::{Error, Result};

/// The longest file of keys.
const LARGEST: u64 = 1 << 20;
/// The longest key that is looked at.
const LONGEST: usize = 256;
const CONTEXT: &str = "russet-serve 2026 API key";
const PREFIX: &str = "rsk-";

/// The keys of a server.
#[derive(Debug)]
pub struct Keys(Vec<Entry>);

#[derive(Debug)]
struct Entry {
    name: String,
    hash: blake3::Hash,
    adapters: bool,
    meter: Arc<Meter>,
}

/// Who has shown a key.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The key's name; `None` where there are no keys.
    pub name: Option<String>,
    /// Whether it may load and unload adapters.
    pub adapters: bool,
    /// What it has asked for; `None` where there are no keys.
    pub meter: Option<Arc<Meter>>,
}

impl Keys {
    /// Reads a file of keys.
    ///
    /// # Errors
    /// When it cannot be read, holds no key, or a line is not of the form.
    pub fn read(path: &Path) -> Result<Keys> {
        let failed = |said: String| Error::Setting(format!("{}: {said}", path.display()));
        let length = std::fs::metadata(path).map(|file| file.len());
        if length.as_ref().is_ok_and(|&bytes| bytes > LARGEST) {
            return Err(failed(format!(
                "a file of keys has {LARGEST} bytes at most"
            )));
        }
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        Keys::parse(&text).map_err(failed)
    }

    fn parse(text: &str) -> std::result::Result<Keys, String> {
        let mut keys: Vec<Entry> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wanted = || {
                format!(
                    "line {}: it must be a name, `blake3:` and 64 hexadecimal digits, and behind them `adapters` where the key may \
                     load them, requests-per-minute=N, tokens-per-minute=N, at-once=N, each once and N at least 1; `russet serve \
                     --new-key NAME` makes one",
                    number + 1
                )
            };
            let mut words = line.split_whitespace();
            let (name, hash) = words.next().zip(words.next()).ok_or_else(wanted)?;
            let hash = hash.strip_prefix("blake3:").ok_or_else(wanted)?;
            let hash = blake3::Hash::from_hex(hash).map_err(|_| wanted())?;
            let (mut adapters, mut allowance) = (false, Allowance::default());
            for word in words {
                let known = match word {
                    "adapters" => !std::mem::replace(&mut adapters, true),
                    word => allowance.take(word),
                };
                if !known {
                    return Err(wanted());
                }
            }
            if keys.iter().any(|other| other.name == name) {
                return Err(format!("line {}: there are two keys `{name}`", number + 1));
            }
            keys.push(Entry {
                name: name.to_owned(),
                hash,
                adapters,
                meter: Meter::new(allowance),
            });
        }
        match keys.is_empty() {
            true => Err(
                "there is no key in this file, so nobody could ask; `russet serve --new-key NAME` makes one".to_owned(),
            ),
            false => Ok(Keys(keys)),
        }
    }

    /// Whose key this is.
    pub(crate) fn find(&self, key: &str) -> Option<Caller> {
        if key.len() > LONGEST {
            return None;
        }
        let hash = hash(key);
        let mut found = None;
        for entry in &self.0 {
            // `blake3::Hash` compares in constant time.
            if entry.hash == hash {
                found = Some(entry);
            }
        }
        found.map(|entry| Caller {
            name: Some(entry.name.clone()),
            adapters: entry.adapters,
            meter: Some(entry.meter.clone()),
        })
    }
}

fn hash(key: &str) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(key.as_bytes());
    hasher.finalize()
}

/// A new key, and the line that makes a server know it.
///
/// # Errors
/// When the system gives no random numbers, or the name is not one word.
pub fn new_key(name: &str, adapters: bool) -> Result<(String, String)> {
    if name.is_empty() || name.starts_with('#') || name.contains(char::is_whitespace) {
        return Err(Error::Setting(format!(
            "--new-key {name:?}: a key's name is one word that does not begin with #"
        )));
    }
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::Start(format!("no random numbers: {error}")))?;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let key = format!("{PREFIX}{hex}");
    let more = if adapters { " adapters" } else { "" };
    let line = format!("{name} blake3:{}{more}", hash(&key).to_hex());
    Ok((key, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_by_its_hash_alone() {
        let (alice, first) = new_key("alice", true).unwrap();
        let (bob, second) = new_key("bob", false).unwrap();
        assert!(alice != bob && alice.len() == 68);
        let file = format!("# keys\n{first}\n\n{second}\n");
        assert!(!file.contains(&alice) && !file.contains(&bob));
        let keys = Keys::parse(&file).unwrap();
        let caller = keys.find(&alice).unwrap();
        assert_eq!(
            (caller.name.as_deref(), caller.adapters),
            (Some("alice"), true)
        );
        let caller = keys.find(&bob).unwrap();
        assert_eq!(
            (caller.name.as_deref(), caller.adapters),
            (Some("bob"), false)
        );
        for other in [
            "",
            "rsk-",
            &alice[..67],
            &format!("{alice}0"),
            &"a".repeat(1000),
        ] {
            assert!(keys.find(other).is_none(), "{other}");
        }
    }

    #[test]
    fn a_file_that_is_not_of_the_form_is_refused_by_line() {
        let (_, line) = new_key("alice", false).unwrap();
        for (text, says) in [
            ("", "there is no key"),
            ("# none\n", "there is no key"),
            ("alice\n", "line 1"),
            ("alice 1234\n", "line 1"),
            ("\nalice blake3:12\n", "line 2"),
            (&format!("{line} admin\n"), "line 1"),
            (&format!("{line} adapters adapters\n"), "line 1"),
            (&format!("{line} at-once=0\n"), "line 1"),
            (&format!("{line} at-once=1 at-once=1\n"), "line 1"),
            (
                &format!("{line}\n{line}\n"),
                "line 2: there are two keys `alice`",
            ),
        ] {
            let said = Keys::parse(text).unwrap_err();
            assert!(said.contains(says), "{text:?}: {said}");
        }
        assert!(new_key("a b", false).is_err() && new_key("", false).is_err());
    }
}
