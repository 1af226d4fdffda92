//! A whole artifact on the disk, read only.
//!
//! Opening checks the manifest and that every file is there with its length, which costs one system call a file;
//! [`Artifact::verify`] reads every byte. Other crates wrap it: `pub struct Tokens(Artifact)`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::disk::{self, Links};
use crate::draft;
use crate::error::{Error, Result};
use crate::hash::{self, Hash};
use crate::manifest::{InputKind, Kind, MANIFEST, Manifest};

/// A folder that a stage left behind, its manifest read and checked.
#[derive(Clone, Debug)]
pub struct Artifact {
    dir: PathBuf,
    manifest: Manifest,
    hash: Hash,
}

impl Artifact {
    /// Opens a folder that must be an artifact of this kind.
    ///
    /// # Errors
    /// When there is none, it is of another kind, its manifest is not one that Russet writes, or a file is missing or has
    /// another length.
    pub fn open(dir: &Path, kind: Kind) -> Result<Self> {
        let artifact = Self::open_any(dir)?;
        if artifact.kind() != kind {
            return Err(Error::WrongKind {
                dir: dir.to_owned(),
                found: artifact.kind(),
                wanted: kind,
            });
        }
        Ok(artifact)
    }

    /// Opens a folder that may be an artifact of any kind.
    ///
    /// # Errors
    /// As [`Artifact::open`], but for the kind.
    pub fn open_any(dir: &Path) -> Result<Self> {
        draft::restore_aside(dir);
        let not = |reason: &str| Error::NotAnArtifact {
            dir: dir.to_owned(),
            reason: reason.to_owned(),
        };
        match fs::metadata(dir) {
            Ok(is) if is.is_dir() => {}
            Ok(_) => return Err(not("it is a file; name the folder")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(not("there is nothing; run the stage that writes it first"));
            }
            Err(error) => return Err(Error::io("look at", dir)(error)),
        }
        let manifest = Manifest::read(dir)?;
        let hash = manifest.identity();
        let artifact = Self {
            dir: dir.to_owned(),
            manifest,
            hash,
        };
        for name in artifact.manifest.files.keys() {
            artifact.look_at(name)?;
        }
        Ok(artifact)
    }

    pub(crate) fn committed(dir: PathBuf, manifest: Manifest) -> Self {
        let hash = manifest.identity();
        Self {
            dir,
            manifest,
            hash,
        }
    }

    /// Reads every byte and compares it with the manifest.
    ///
    /// # Errors
    /// Names the first file that is changed, missing, or there without being listed.
    pub fn verify(&self) -> Result<()> {
        self.verify_listed()?;
        for name in disk::list_files(&self.dir, Links::Refuse)? {
            if name != MANIFEST && !self.manifest.files.contains_key(&name) {
                return Err(self.bad(
                    &name,
                    "is not in the manifest, so it came later; move it elsewhere".to_owned(),
                ));
            }
        }
        Ok(())
    }

    /// The same of the files that the manifest lists, whatever lies beside them.
    pub(crate) fn verify_listed(&self) -> Result<()> {
        for (name, record) in &self.manifest.files {
            self.look_at(name)?;
            let path = self.dir.join(name);
            let (hash, bytes) = File::open(&path)
                .and_then(|file| hash::hash_open_file(&file))
                .map_err(Error::io("read", &path))?;
            if (hash, bytes) != (record.blake3, record.bytes) {
                return Err(self.bad(
                    name,
                    format!("has BLAKE3 {hash}, and the manifest says {}", record.blake3),
                ));
            }
        }
        Ok(())
    }

    /// The folder, as it was named.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.manifest.kind
    }

    /// What its manifest says.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// BLAKE3 of the manifest but for where its inputs lay: it stands for every byte of the artifact and of everything it
    /// was made from, wherever they lie. See [`Manifest::identity`].
    pub fn manifest_hash(&self) -> Hash {
        self.hash
    }

    /// The path of a file that the manifest lists, by its relative name with `/`.
    ///
    /// # Errors
    /// When it is not listed; the sentence says what is.
    pub fn file(&self, name: &str) -> Result<PathBuf> {
        match self.manifest.files.contains_key(name) {
            true => Ok(self.dir.join(name)),
            false => Err(self.not_listed("file", name, self.manifest.files.keys())),
        }
    }

    /// One step back: the artifact this one was made from, if it still lies where it lay and is what it was.
    ///
    /// # Errors
    /// When the input is not listed, is no artifact, has gone, or has another manifest now.
    pub fn input(&self, name: &str) -> Result<Self> {
        let record = self
            .manifest
            .inputs
            .get(name)
            .ok_or_else(|| self.not_listed("input", name, self.manifest.inputs.keys()))?;
        let path = self.dir.join(&record.path);
        let bad = |reason: String| Error::BadInput {
            name: name.to_owned(),
            path: path.clone(),
            reason,
        };
        let InputKind::Artifact(kind) = record.kind else {
            return Err(bad(
                "is a plain file or folder, where the way back ends".to_owned()
            ));
        };
        let input = Self::open(&path, kind)?;
        if input.hash != record.blake3 {
            return Err(bad(format!(
                "has been written anew: its manifest has BLAKE3 {}, and {} was made from {}",
                input.hash,
                self.dir.display(),
                record.blake3
            )));
        }
        Ok(input)
    }

    /// A listed file is a plain file below plain folders, with its length.
    fn look_at(&self, name: &str) -> Result<()> {
        let mut path = self.dir.clone();
        let mut parts = name.split('/').peekable();
        while let Some(part) = parts.next() {
            path.push(part);
            let is = match fs::symlink_metadata(&path) {
                Ok(is) => is,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return Err(self.bad(name, "is missing".to_owned()));
                }
                Err(error) => return Err(Error::io("look at", &path)(error)),
            };
            if parts.peek().is_some() && !is.is_dir() {
                return Err(self.bad(name, "lies behind a link or a file".to_owned()));
            }
            if parts.peek().is_none() {
                let bytes = self.manifest.files[name].bytes;
                if !is.is_file() {
                    return Err(
                        self.bad(name, "is a link or a folder, not a plain file".to_owned())
                    );
                }
                if is.len() != bytes {
                    return Err(self.bad(
                        name,
                        format!("has {} bytes, and the manifest says {bytes}", is.len()),
                    ));
                }
            }
        }
        Ok(())
    }

    fn bad(&self, name: &str, reason: String) -> Error {
        Error::BadFile {
            dir: self.dir.clone(),
            name: name.to_owned(),
            reason,
        }
    }

    fn not_listed<'a>(
        &self,
        what: &'static str,
        name: &str,
        names: impl Iterator<Item = &'a String>,
    ) -> Error {
        let mut has = names
            .take(9)
            .map(|name| format!("`{name}`"))
            .collect::<Vec<_>>();
        if has.len() == 9 {
            has[8] = "…".to_owned();
        }
        let has = if has.is_empty() {
            "none".to_owned()
        } else {
            has.join(", ")
        };
        Error::NotListed {
            dir: self.dir.clone(),
            what,
            name: name.to_owned(),
            has,
        }
    }
}
