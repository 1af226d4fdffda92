//! One process at a time: a place that is being written to is held.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::error::{Error, Result};

/// A place that this process holds until it drops this or ends, however it ends. Advisory: who does not ask is not kept out.
#[derive(Debug)]
pub struct Hold {
    _lock: File,
}

impl Hold {
    /// Holds `place` by a lock on the file `lock` in the folder `dir`, which is made where it is missing. The file stays.
    ///
    /// # Errors
    /// When another process holds it, or the system refuses the file.
    pub fn take(place: &Path, dir: &Path) -> Result<Hold> {
        fs::create_dir_all(dir).map_err(Error::io("create the folder", dir))?;
        let path: PathBuf = dir.join("lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        let mut got = lock.try_lock();
        // [`Hold::is_held`] of another process takes it for a moment.
        for _ in 0..3 {
            if matches!(got, Err(TryLockError::WouldBlock)) {
                thread::sleep(Duration::from_millis(30));
                got = lock.try_lock();
            }
        }
        match got {
            Err(TryLockError::WouldBlock) => Err(Error::Held {
                place: place.to_owned(),
            }),
            // Some network file systems have no locks; there the user has to know.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Hold { _lock: lock }),
        }
    }

    /// Whether a living process holds a place whose lock lies in the folder `dir`; nothing where that cannot be told: no such
    /// file, or a file system without locks.
    pub fn is_held(dir: &Path) -> Option<bool> {
        let lock = File::open(dir.join("lock")).ok()?;
        match lock.try_lock_shared() {
            Ok(()) => Some(false),
            Err(TryLockError::WouldBlock) => Some(true),
            Err(TryLockError::Error(_)) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_held_by_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let (place, dir) = (folder.path().join("run"), folder.path().join("run.log"));
        let held = Hold::take(&place, &dir).unwrap();
        let refused = Hold::take(&place, &dir).unwrap_err().to_string();
        assert!(refused.contains("another process"), "{refused}");
        assert_eq!(Hold::is_held(&dir), Some(true));
        drop(held);
        // A process that another test begins just now has this one's files until it is another program.
        let begun = std::time::Instant::now();
        while Hold::is_held(&dir) != Some(false) {
            assert!(begun.elapsed() < Duration::from_secs(5), "it is let go");
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(Hold::is_held(folder.path()), None);
        Hold::take(&place, &dir).unwrap();
    }
}
