use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Error, Result};

/// What the system says if a lock asks for more than the file was opened for. The number is the
/// same on every Unix.
const EBADF: i32 = 9;

/// The lock of the whole cache. A process holds it shared while it has the cache open. Whatever
/// removes from the cache holds it exclusively.
///
/// The system releases the lock when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock {
    file: LockFile,
    /// How often it is held exclusively: what removes may find an index damaged, which needs the lock too.
    n_exclusive: Mutex<usize>,
}

/// The lock held exclusively, until this is dropped.
pub(super) struct Exclusive<'a>(&'a Lock);

impl Lock {
    pub(super) fn shared(path: &Path) -> Result<Self> {
        let file = LockFile::open(path)?;
        file.shared()?;
        Ok(Lock {
            file,
            n_exclusive: Mutex::default(),
        })
    }

    pub(super) fn exclusive(&self) -> Result<Exclusive<'_>> {
        let mut n_exclusive = self.n_exclusive();
        if *n_exclusive == 0 {
            let LockFile { path, file } = &self.file;
            file.unlock().map_err(Error::io(path))?;
            if let Err(error) = file.try_lock() {
                self.file.shared()?;
                return Err(match error {
                    TryLockError::WouldBlock => Error::InUse { path: path.clone() },
                    TryLockError::Error(error) => self.file.refused(error),
                });
            }
        }
        *n_exclusive += 1;
        Ok(Exclusive(self))
    }

    fn n_exclusive(&self) -> MutexGuard<'_, usize> {
        self.n_exclusive.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        let mut n_exclusive = self.0.n_exclusive();
        *n_exclusive -= 1;
        if *n_exclusive > 0 {
            return;
        }
        // Linux turns an exclusive lock into a shared one in place. Elsewhere it must be released
        // first.
        let LockFile { path, file } = &self.0.file;
        if let Err(error) = file.unlock().and_then(|()| file.lock_shared()) {
            tracing::warn!("{}: {error}", path.display());
        }
    }
}

/// A file that is only locked.
#[derive(Debug)]
struct LockFile {
    path: PathBuf,
    file: File,
}

impl LockFile {
    fn open(path: &Path) -> Result<Self> {
        // For reading too: NFSv4 refuses a shared lock on a file that is open only for writing.
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(Error::io(path))?;
        Ok(LockFile {
            path: path.to_owned(),
            file,
        })
    }

    fn shared(&self) -> Result<()> {
        self.file.lock_shared().map_err(|error| self.refused(error))
    }

    /// Why the system refused a lock. A wait that a signal interrupted is not repeated by the
    /// standard library, and says nothing about the file system.
    fn refused(&self, source: io::Error) -> Error {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::Interrupted => Error::io(&path)(source),
            _ if cfg!(unix) && source.raw_os_error() == Some(EBADF) => Error::LockRefused { path, source },
            _ => Error::Locks { path, source },
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
        let mut file: &File = &lock.file.file;
        assert_eq!(file.read(&mut [0]).unwrap(), 0);
    }

    #[cfg(unix)]
    #[test]
    fn a_refused_lock_is_not_blamed_on_a_file_system_without_locks() {
        let folder = tempfile::tempdir().unwrap();
        let file = LockFile::open(&folder.path().join("lock")).unwrap();
        let error = file.refused(io::Error::from_raw_os_error(EBADF));
        assert!(!error.lacks_locks(), "{error}");
        let error = error.to_string();
        assert!(
            error.contains("lock: expected a lock on a file that is open for reading and writing, found it refused"),
            "{error}"
        );
        // ENOSYS of a file system without locks.
        assert!(file.refused(io::ErrorKind::Unsupported.into()).lacks_locks());
    }
}
