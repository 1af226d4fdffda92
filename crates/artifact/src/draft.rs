//! Writing an artifact: all of it, or none.
//!
//! Files go to `.NAME.tmp-PID-N` beside the place. `commit` hashes and fsyncs them, writes the manifest last, exchanges
//! the folder with whatever older artifact lies in the place, and fsyncs the parent. Killed at any moment, the place holds
//! the old artifact or the new one. What a dead process left behind goes when the next draft for the same place begins:
//! each draft keeps its folder locked (`flock`), which ends with its process and, unlike a process id, is never taken for
//! another's.
//!
//! Where the system cannot exchange two folders in one step, the old one is set aside as `.NAME.old-PID-N` first. A crash
//! just then leaves the place empty, and the next [`Draft::create`] or [`Artifact::open`] puts it back.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process;

use crate::artifact::Artifact;
use crate::disk::{self, FolderLock, Links, Lock};
use crate::error::{Error, Result};
use crate::hash::{self, shorten};
use crate::manifest::{FileRecord, InputRecord, Kind, MANIFEST, Manifest, check_file_name};
use crate::stage::Stage;

/// An artifact in the making. Dropping it without [`Draft::commit`] removes it.
#[derive(Debug)]
pub struct Draft {
    dir: PathBuf,
    parent: PathBuf,
    kind: Kind,
    folder: PathBuf,
    lock: Option<FolderLock>,
    exchange: bool,
}

impl Draft {
    /// A new empty folder beside `dir`, which must hold nothing, an empty folder, or an older artifact of this kind.
    ///
    /// Checked here and again at the end, so that a long job learns now that it could not put down its result.
    ///
    /// # Errors
    /// When `dir` holds anything else, or the system refuses.
    pub fn create(dir: &Path, kind: Kind) -> Result<Self> {
        Self::begin(dir, kind, None)
    }

    /// As [`Draft::create`], for the artifact of a stage of this name: an older one must be of that stage too, so that a
    /// conversion never takes the place of a checkpoint that was trained. [`Draft::commit`] asks the same.
    ///
    /// # Errors
    /// As [`Draft::create`].
    pub fn of_stage(dir: &Path, kind: Kind, stage: &str) -> Result<Self> {
        Self::begin(dir, kind, Some(stage))
    }

    fn begin(dir: &Path, kind: Kind, stage: Option<&str>) -> Result<Self> {
        let (parent, name) = disk::split(dir)?;
        fs::create_dir_all(&parent).map_err(Error::io("create the folder", &parent))?;
        restore_aside(dir);
        let occupant = occupant(dir, kind, stage)?;
        sweep(&parent, &name, "tmp");
        if matches!(occupant, Occupant::Artifact) {
            sweep(&parent, &name, "old");
        }
        loop {
            let folder = parent.join(format!(".{name}.tmp-{}-{}", process::id(), disk::unique()));
            match fs::create_dir(&folder) {
                // Left by a dead process that had our number, and locked by a third just now.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                created => created.map_err(Error::io("create the folder", dir))?,
            }
            let lock = match disk::lock_folder(&folder, true) {
                Lock::Held(file) => Some(file),
                Lock::Busy | Lock::Unknown => None,
            };
            // Between creation and lock, another process may have taken it for a dead one's.
            if folder.is_dir() {
                return Ok(Self {
                    dir: dir.to_owned(),
                    parent,
                    kind,
                    folder,
                    lock,
                    exchange: true,
                });
            }
        }
    }

    /// The folder to write files into, sub-folders as you like, no links.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Writes one file, creating the folders on its way.
    ///
    /// # Errors
    /// When `name` is not a relative name with `/`, the file is there already, or the disk is full.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        check_file_name(name).map_err(|why| self.bad(format!("file name `{name}` {why}")))?;
        let path = self.folder.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(Error::io("create the folder", parent))?;
        }
        // Not synced yet: commit syncs every file, whoever wrote it.
        let mut file = File::create_new(&path).map_err(Error::io("create", &path))?;
        file.write_all(bytes).map_err(Error::io("write", &path))
    }

    /// Hashes and fsyncs every file, writes the manifest, and puts the folder in its place.
    ///
    /// # Errors
    /// When the disk is full, a file is not a plain file, an input has gone, or the place has been taken by something that
    /// is not an older artifact of this kind and stage. The older artifact is then as it was.
    pub fn commit(self, stage: &Stage) -> Result<Artifact> {
        let names = disk::list_files(&self.folder, Links::Refuse)?;
        let mut files = BTreeMap::new();
        for name in &names {
            check_file_name(name).map_err(|why| self.bad(format!("file name `{name}` {why}")))?;
            let path = self.folder.join(name);
            let file = File::open(&path).map_err(Error::io("open", &path))?;
            let (blake3, bytes) = hash::hash_open_file(&file).map_err(Error::io("read", &path))?;
            file.sync_all().map_err(Error::io("write", &path))?;
            files.insert(name.clone(), FileRecord { blake3, bytes });
        }
        let manifest = Manifest::new(
            self.kind,
            &stage.name,
            &stage.tool,
            &stage.recipe,
            files,
            self.inputs(stage)?,
        );
        let bytes = manifest.to_bytes();
        // What could not be opened again (a recipe nested too deep, too many files) must not be committed.
        let manifest = Manifest::from_bytes(&bytes)
            .map_err(|why| self.bad(format!("its manifest would not be readable: {why}")))?;
        disk::write_synced(&self.folder.join(MANIFEST), &bytes)?;
        self.level_permissions(&names)?;
        for folder in disk::folders_of(&self.folder, &names) {
            disk::sync_folder(&folder)?;
        }
        self.put_in_place(&stage.name)?;
        disk::sync_folder(&self.parent)?;
        Ok(Artifact::committed(self.dir.clone(), manifest))
        // Dropping `self` removes what the exchange left in the temporary place: the older artifact.
    }

    /// Gives all files the permissions of the manifest, which are those of this process's new files: a library that writes
    /// by way of a private temporary file would leave one that nobody else can read.
    fn level_permissions(&self, names: &[String]) -> Result<()> {
        let permissions = |path: &Path| {
            let is = fs::metadata(path).map_err(Error::io("look at", path))?;
            Ok(is.permissions())
        };
        let wanted = permissions(&self.folder.join(MANIFEST))?;
        for path in names.iter().map(|name| self.folder.join(name)) {
            if permissions(&path)? != wanted {
                fs::set_permissions(&path, wanted.clone())
                    .map_err(Error::io("set the permissions of", &path))?;
            }
        }
        Ok(())
    }

    fn put_in_place(&self, stage: &str) -> Result<()> {
        match occupant(&self.dir, self.kind, Some(stage))? {
            Occupant::Nothing => {}
            Occupant::EmptyFolder => fs::remove_dir(&self.dir)
                .map_err(Error::io("remove the empty folder", &self.dir))?,
            Occupant::Artifact => {
                if self.exchange && disk::exchange(&self.folder, &self.dir)? {
                    return Ok(());
                }
                return self.replace_by_renames();
            }
        }
        disk::rename("rename a new folder to", &self.folder, &self.dir)
    }

    fn replace_by_renames(&self) -> Result<()> {
        let (_, name) = disk::split(&self.dir)?;
        // Locked, so that nobody puts it back before the new one is there.
        let lock = disk::lock_folder(&self.dir, true);
        let aside = self
            .parent
            .join(format!(".{name}.old-{}-{}", process::id(), disk::unique()));
        disk::rename("set aside the old artifact as", &self.dir, &aside)?;
        if let Err(error) = disk::rename("rename a new folder to", &self.folder, &self.dir) {
            disk::rename("put back", &aside, &self.dir)?;
            return Err(error);
        }
        // Durable before the old one goes; and out of the name that would be put back.
        disk::sync_folder(&self.parent)?;
        disk::rename("clear away the old artifact as", &aside, &self.folder)?;
        drop(lock);
        Ok(())
    }

    fn inputs(&self, stage: &Stage) -> Result<BTreeMap<String, InputRecord>> {
        let parent = fs::canonicalize(&self.parent).map_err(Error::io("look at", &self.parent))?;
        let (_, name) = disk::split(&self.dir)?;
        let here = parent.join(name);
        let mut records = BTreeMap::new();
        for (name, input) in stage.inputs.iter() {
            let there =
                fs::canonicalize(&input.path).map_err(Error::io("find the input", &input.path))?;
            let path = relative(&here, &there).ok_or_else(|| Error::BadInput {
                name: name.to_owned(),
                path: input.path.clone(),
                reason: "has no relative path of plain UTF-8 text from here; move or rename it"
                    .to_owned(),
            })?;
            records.insert(
                name.to_owned(),
                InputRecord {
                    kind: input.kind,
                    blake3: input.hash,
                    path,
                },
            );
        }
        Ok(records)
    }

    fn bad(&self, reason: String) -> Error {
        Error::BadDraft {
            dir: self.dir.clone(),
            reason,
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // What stays is swept by the next draft.
        let _ = fs::remove_dir_all(&self.folder);
        self.lock = None;
    }
}

pub(crate) enum Occupant {
    Nothing,
    EmptyFolder,
    Artifact,
}

/// What lies in the place for a new artifact, if it is something that may be replaced.
pub(crate) fn occupant(dir: &Path, kind: Kind, stage: Option<&str>) -> Result<Occupant> {
    let occupied = |reason: String| Error::Occupied {
        dir: dir.to_owned(),
        reason,
    };
    let is = match fs::symlink_metadata(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Occupant::Nothing),
        is => is.map_err(Error::io("look at", dir))?,
    };
    if !is.is_dir() {
        return Err(occupied(
            "it is a link or a file, not a folder; name another folder".to_owned(),
        ));
    }
    if fs::read_dir(dir)
        .map_err(Error::io("list", dir))?
        .next()
        .is_none()
    {
        return Ok(Occupant::EmptyFolder);
    }
    let manifest = Manifest::read(dir).map_err(|error| {
        let error = match error {
            Error::NotAnArtifact { .. } => format!("no {MANIFEST}, so no stage wrote them"),
            error => error.to_string(),
        };
        occupied(format!(
            "it holds files, and {error}; name another folder, or move this one away yourself"
        ))
    })?;
    if manifest.kind != kind {
        return Err(occupied(format!(
            "it is a {} artifact, and a {kind} is to be written; name another folder, or move this one away yourself",
            manifest.kind
        )));
    }
    if let Some(stage) = stage.filter(|stage| *stage != manifest.stage) {
        return Err(occupied(format!(
            "`{}` wrote it, and the result of `{stage}` is to be written; name another folder, or move this one away yourself",
            shorten(&manifest.stage)
        )));
    }
    let stranger = disk::list_files(dir, Links::Refuse)
        .map_err(|error| occupied(format!("{error}; move it away first")))?
        .into_iter()
        .find(|name| name != MANIFEST && !manifest.files.contains_key(name));
    match stranger {
        Some(name) => Err(occupied(format!(
            "`{name}` in it is not in its manifest and would be lost; move that file away first"
        ))),
        None => Ok(Occupant::Artifact),
    }
}

/// Removes the folders that dead processes left for this place.
fn sweep(parent: &Path, name: &str, word: &str) {
    for stale in leftovers(parent, name, word) {
        if let Lock::Held(lock) = disk::lock_folder(&stale, false) {
            // Failing to tidy must not stop a stage.
            let _ = fs::remove_dir_all(&stale);
            drop(lock);
        }
    }
}

/// Puts back what a crash between two renames set aside. Any failure shows as the place being empty.
pub(crate) fn restore_aside(dir: &Path) {
    let missing =
        || fs::symlink_metadata(dir).is_err_and(|error| error.kind() == ErrorKind::NotFound);
    let Ok((parent, name)) = disk::split(dir) else {
        return;
    };
    if !missing() {
        return;
    }
    for aside in leftovers(&parent, &name, "old") {
        // Waits for a living process to finish its second rename.
        let _lock = disk::lock_folder(&aside, true);
        if missing() && Manifest::read(&aside).is_ok() {
            let _ = fs::rename(&aside, dir);
        }
    }
}

/// The folders `.NAME.WORD-DIGITS-DIGITS` in `parent`, in name order.
fn leftovers(parent: &Path, name: &str, word: &str) -> Vec<PathBuf> {
    let prefix = format!(".{name}.{word}-");
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let ours = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        let numbers = name
            .to_str()
            .and_then(|name| name.strip_prefix(&prefix)?.split_once('-'));
        numbers.is_some_and(|(pid, count)| digits(pid) && digits(count))
            && entry.file_type().is_ok_and(|is| is.is_dir())
    };
    let Ok(entries) = fs::read_dir(parent) else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries
        .flatten()
        .filter(ours)
        .map(|entry| entry.path())
        .collect();
    found.sort_unstable();
    found
}

/// The way from one absolute path to another, with `/`.
fn relative(from: &Path, to: &Path) -> Option<String> {
    let shared = from
        .components()
        .zip(to.components())
        .take_while(|(a, b)| a == b)
        .count();
    if shared == 0 {
        return None; // two drives
    }
    let up = from.components().skip(shared).map(|_| Some(".."));
    let down = to
        .components()
        .skip(shared)
        .map(|part| part.as_os_str().to_str());
    let parts: Option<Vec<&str>> = up.chain(down).collect();
    parts
        .filter(|parts| !parts.is_empty())
        .map(|parts| parts.join("/"))
}

#[cfg(test)]
mod tests;
