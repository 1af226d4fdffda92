//! One process at a time: a place that is being written to is held.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

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
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => Err(Error::Held {
                place: place.to_owned(),
            }),
            // Some network file systems have no locks; there the user has to know.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Hold { _lock: lock }),
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
        drop(held);
        Hold::take(&place, &dir).unwrap();
    }
}
