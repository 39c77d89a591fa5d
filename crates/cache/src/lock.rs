use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Every process that has the cache open holds this lock together with the others; what removes wants it for itself.
/// The system gives it back when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock(LockFile);

/// The lock held alone, until it is dropped.
pub(super) struct Exclusive<'a>(&'a Lock);

impl Lock {
    pub(super) fn shared(path: &Path) -> Result<Self> {
        let file = LockFile::open(path)?;
        file.shared()?;
        Ok(Lock(file))
    }

    pub(super) fn exclusive(&self) -> Result<Exclusive<'_>> {
        let LockFile { path, file } = &self.0;
        file.unlock().map_err(Error::io(path))?;
        match file.try_lock() {
            Ok(()) => Ok(Exclusive(self)),
            Err(TryLockError::WouldBlock) => {
                self.0.shared()?;
                Err(Error::InUse { path: path.clone() })
            }
            Err(TryLockError::Error(error)) => Err(Error::io(path)(error)),
        }
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        // Linux changes an exclusive lock into a shared one in place; elsewhere it must be given back first.
        let LockFile { path, file } = &self.0.0;
        if let Err(error) = file.unlock().and_then(|()| file.lock_shared()) {
            tracing::warn!("{}: {error}", path.display());
        }
    }
}

/// The way to the index: whoever writes passes together with other writers, for the time of one transaction; whoever
/// puts another file in the index's place passes alone.
#[derive(Debug)]
pub(super) struct Gate(LockFile);

/// Given back when dropped.
pub(super) struct Pass<'a>(&'a Gate);

impl Gate {
    pub(super) fn new(path: &Path) -> Result<Self> {
        LockFile::open(path).map(Gate)
    }

    pub(super) fn together(&self) -> Result<Pass<'_>> {
        self.0.shared()?;
        Ok(Pass(self))
    }

    /// Waits for the writers' transactions to end.
    pub(super) fn alone(&self) -> Result<Pass<'_>> {
        self.0.file.lock().map_err(|error| self.0.refused(error))?;
        Ok(Pass(self))
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let LockFile { path, file } = &self.0.0;
        if let Err(error) = file.unlock() {
            tracing::warn!("{}: {error}", path.display());
        }
    }
}

/// A file that is only locked, never read.
#[derive(Debug)]
struct LockFile {
    path: PathBuf,
    file: File,
}

impl LockFile {
    fn open(path: &Path) -> Result<Self> {
        let file = File::options()
            .create(true)
            .truncate(false)
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

    /// Apart from an interrupted wait, which the standard library does not repeat, a lock fails only where there are none.
    fn refused(&self, source: io::Error) -> Error {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::Interrupted => Error::Io { path, source },
            _ => Error::Locks { path, source },
        }
    }
}
