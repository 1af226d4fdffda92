//! Files and folders that are either wholly there or not there at all.
//!
//! The order is always: write beside, fsync, rename, fsync the folder (Pillai et al., "All file systems are not created
//! equal", OSDI 2014). Nothing here knows what an artifact is.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Component, Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// Writes a single file so that a crash leaves the old one or the new one: temporary beside it, fsync, rename, fsync folder.
///
/// # Errors
/// When the folder is missing, the disk is full or the system refuses; the old file is then untouched.
pub fn atomic_write(path: &Path, bytes: &[u8]) -> Result<()> {
    let (parent, name) = split(path)?;
    let temporary = parent.join(format!(".{name}.tmp-{}-{}", process::id(), unique()));
    let written = write_synced(&temporary, bytes)
        .and_then(|()| rename("rename a new file to", &temporary, path));
    if written.is_err() {
        // The first error is the one to tell; what is left is only a hidden file.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    sync_folder(&parent)
}

/// A new file with `bytes`, on the disk when this returns.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    step();
    let mut file = File::create_new(path).map_err(Error::io("create", path))?;
    step();
    file.write_all(bytes).map_err(Error::io("write", path))?;
    step();
    file.sync_all().map_err(Error::io("write", path))
}

/// Makes renames and creations inside `folder` durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    step();
    // Only Unix lets a folder be opened as a file.
    if cfg!(unix) {
        File::open(folder)
            .and_then(|open| open.sync_all())
            .map_err(Error::io("write", folder))?;
    }
    Ok(())
}

/// Parent and UTF-8 name of a path that ends in a name.
pub(crate) fn split(path: &Path) -> Result<(PathBuf, String)> {
    let name = match path.components().next_back() {
        Some(Component::Normal(name)) => name.to_str(),
        _ => None,
    };
    let name = name.ok_or_else(|| Error::BadDraft {
        dir: path.to_owned(),
        reason: "its path does not end in a name of plain UTF-8 text; name a file or folder, not `.` or `..`".into(),
    })?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    Ok((parent, name.to_owned()))
}

/// `fs::rename`, with its sentence.
pub(crate) fn rename(action: &'static str, from: &Path, to: &Path) -> Result<()> {
    step();
    fs::rename(from, to).map_err(Error::io(action, to))?;
    step();
    Ok(())
}

/// Between any two changes to the disk; the tests end the process at each in turn.
fn step() {
    #[cfg(test)]
    tests::end_at_step();
}

/// A number that no other caller in this process has.
pub(crate) fn unique() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// What became of locking a folder.
pub(crate) enum Lock {
    /// Ours until dropped, or until this process dies.
    Held(FolderLock),
    /// A living process has it.
    Busy,
    /// Not on this file system, or no longer there.
    Unknown,
}

/// A folder locked (`flock`) by this process.
#[derive(Debug)]
pub(crate) struct FolderLock(File);

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Closing is not enough: a child just forked holds a copy of the handle until its exec.
        let _ = self.0.unlock();
    }
}

/// Tries to lock a folder, or waits for it.
pub(crate) fn lock_folder(folder: &Path, wait: bool) -> Lock {
    let Ok(open) = File::open(folder) else {
        return Lock::Unknown;
    };
    if wait {
        return match open.lock() {
            Ok(()) => Lock::Held(FolderLock(open)),
            Err(_) => Lock::Unknown,
        };
    }
    match open.try_lock() {
        Ok(()) => Lock::Held(FolderLock(open)),
        Err(fs::TryLockError::WouldBlock) => Lock::Busy,
        Err(fs::TryLockError::Error(_)) => Lock::Unknown,
    }
}

/// Swaps two folders in one step; `false` where system or file system cannot.
#[cfg(any(target_os = "linux", target_os = "macos"))]
pub(crate) fn exchange(a: &Path, b: &Path) -> Result<bool> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    step();
    match renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(false),
        Err(errno) => Err(Error::io("rename a new folder to", b)(errno.into())),
    }
}

/// Swaps two folders in one step; `false` where system or file system cannot.
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
pub(crate) fn exchange(_: &Path, _: &Path) -> Result<bool> {
    Ok(false)
}

/// Which symbolic links [`list_files`] goes through.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// None: an artifact holds its own bytes.
    Refuse,
    /// Those to files: people link data sets together. Never those to folders, which can make rings.
    ToFiles,
}

/// The files below a folder, as sorted relative names with `/`; anything but files and folders is refused.
pub(crate) fn list_files(root: &Path, links: Links) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let mut pending = vec![String::new()];
    while let Some(folder) = pending.pop() {
        let here = root.join(&folder);
        for entry in fs::read_dir(&here).map_err(Error::io("list", &here))? {
            let entry = entry.map_err(Error::io("list", &here))?;
            let path = entry.path();
            let refuse = |why: &str| Error::BadPath {
                path: path.clone(),
                reason: why.to_owned(),
            };
            let name = entry.file_name();
            let name = name
                .to_str()
                .ok_or_else(|| refuse("has a name that is not UTF-8 text"))?;
            let name = if folder.is_empty() {
                name.to_owned()
            } else {
                format!("{folder}/{name}")
            };
            let is = entry.file_type().map_err(Error::io("look at", &path))?;
            if is.is_dir() {
                pending.push(name);
            } else if is.is_file() {
                names.push(name);
            } else if is.is_symlink() && links == Links::ToFiles {
                if !fs::metadata(&path)
                    .map_err(Error::io("follow the link", &path))?
                    .is_file()
                {
                    return Err(refuse("is a link to something that is not a file"));
                }
                names.push(name);
            } else {
                return Err(refuse(
                    "is a link, socket, pipe or device, and only plain files belong here",
                ));
            }
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The folders that lie between `root` and its files, deepest first, `root` last.
pub(crate) fn folders_of(root: &Path, files: &[String]) -> Vec<PathBuf> {
    let mut folders: Vec<&str> = files
        .iter()
        .flat_map(|name| name.match_indices('/').map(|(at, _)| &name[..at]))
        .collect();
    folders.sort_unstable_by(|a, b| b.cmp(a)); // "a/b" before "a"
    folders.dedup();
    folders
        .into_iter()
        .map(|folder| root.join(folder))
        .chain([root.to_owned()])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ends this process at the step of the number in an environment variable, like a kill: no drop runs.
    pub(super) fn end_at_step() {
        static STEPS: AtomicU64 = AtomicU64::new(0);
        let Ok(end) = std::env::var("RUSSET_ARTIFACT_TEST_END_AT") else {
            return;
        };
        if STEPS.fetch_add(1, Ordering::Relaxed) == end.parse::<u64>().unwrap() {
            process::exit(77);
        }
    }

    #[test]
    fn atomic_write_replaces_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        atomic_write(&path, b"old").unwrap();
        atomic_write(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(
            list_files(dir.path(), Links::Refuse).unwrap(),
            ["state.json"]
        );
        let missing = atomic_write(&dir.path().join("no/such/file"), b"")
            .unwrap_err()
            .to_string();
        assert!(missing.starts_with("cannot create "), "{missing}");
        assert!(atomic_write(&dir.path().join(".."), b"").is_err());
    }

    #[test]
    fn folders_come_deepest_first() {
        let files = ["a/b/x".to_owned(), "a/y".to_owned(), "z".to_owned()];
        let expected = ["r/a/b", "r/a", "r"].map(PathBuf::from);
        assert_eq!(folders_of(Path::new("r"), &files), expected);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_refused_unless_they_lead_to_files() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("real"), "x").unwrap();
        symlink("real", dir.path().join("link")).unwrap();
        let refused = list_files(dir.path(), Links::Refuse)
            .unwrap_err()
            .to_string();
        assert!(refused.contains("link is a link"), "{refused}");
        assert_eq!(
            list_files(dir.path(), Links::ToFiles).unwrap(),
            ["link", "real"]
        );
        symlink(".", dir.path().join("ring")).unwrap();
        let ring = list_files(dir.path(), Links::ToFiles)
            .unwrap_err()
            .to_string();
        assert!(
            ring.contains("ring is a link to something that is not a file"),
            "{ring}"
        );
    }
}
