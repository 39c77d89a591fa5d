use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The lock of the whole cache. A process holds it shared while it has the cache open. Whatever
/// removes from the cache holds it exclusively.
///
/// The system releases the lock when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    file: File,
}

/// The lock held exclusively, until this is dropped.
pub(super) struct Exclusive<'a>(&'a Lock);

impl Lock {
    pub(super) fn shared(path: &Path) -> Result<Self> {
        // For reading too: NFSv4 refuses a shared lock on a file that is open only for writing.
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(Error::io(path))?;
        let lock = Lock {
            path: path.to_owned(),
            file,
        };
        lock.share()?;
        Ok(lock)
    }

    pub(super) fn exclusive(&self) -> Result<Exclusive<'_>> {
        let Lock { path, file } = self;
        file.unlock().map_err(Error::io(path))?;
        if let Err(error) = file.try_lock() {
            self.share()?;
            return Err(match error {
                TryLockError::WouldBlock => Error::InUse { path: path.clone() },
                TryLockError::Error(error) => self.refused(error),
            });
        }
        Ok(Exclusive(self))
    }

    fn share(&self) -> Result<()> {
        self.file.lock_shared().map_err(|error| self.refused(error))
    }

    /// Why the system refused a lock. A wait that a signal interrupted is not repeated by the
    /// standard library, and says nothing about the file system.
    fn refused(&self, source: io::Error) -> Error {
        match source.kind() {
            io::ErrorKind::Interrupted => Error::io(&self.path)(source),
            _ => Error::Locks {
                path: self.path.clone(),
                source,
            },
        }
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        // Linux turns an exclusive lock into a shared one in place. Elsewhere it must be released
        // first.
        let Lock { path, file } = self.0;
        if let Err(error) = file.unlock().and_then(|()| file.lock_shared()) {
            tracing::warn!("{}: {error}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn the_lock_file_is_open_for_reading_too() {
        let folder = tempfile::tempdir().unwrap();
        let lock = Lock::shared(&folder.path().join("lock")).unwrap();
        let mut file: &File = &lock.file;
        assert_eq!(file.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_refused_lock_says_what_was_asked_for_and_an_interrupted_wait_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let lock = Lock::shared(&folder.path().join("lock")).unwrap();
        // The second is ENOSYS of a file system without locks.
        for kind in [io::ErrorKind::PermissionDenied, io::ErrorKind::Unsupported] {
            let error = lock.refused(kind.into());
            assert!(error.lacks_locks(), "{error}");
            let expected = "lock: expected a lock on a file that is open for reading and writing, found it refused: ";
            assert!(error.to_string().contains(expected), "{error}");
        }
        assert!(!lock.refused(io::ErrorKind::Interrupted.into()).lacks_locks());
    }
}
