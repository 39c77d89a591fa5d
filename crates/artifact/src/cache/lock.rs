use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Every process that has the cache open holds this lock together with the others; `gc` wants it for itself.
/// The system gives it back when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    file: File,
}

/// The lock held alone, until it is dropped.
pub(super) struct Exclusive<'a>(&'a Lock);

impl Lock {
    pub(super) fn shared(path: &Path) -> Result<Self> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(Error::io(path))?;
        match file.lock_shared() {
            // A file system without locks: everything but `gc` is safe without one.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            other => other.map_err(Error::io(path))?,
        }
        Ok(Lock {
            path: path.to_owned(),
            file,
        })
    }

    pub(super) fn exclusive(&self) -> Result<Exclusive<'_>> {
        self.file.unlock().map_err(Error::io(&self.path))?;
        match self.file.try_lock() {
            Ok(()) => Ok(Exclusive(self)),
            Err(TryLockError::WouldBlock) => {
                self.file.lock_shared().map_err(Error::io(&self.path))?;
                Err(Error::InUse {
                    path: self.path.clone(),
                })
            }
            Err(TryLockError::Error(error)) => Err(Error::io(&self.path)(error)),
        }
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        // Linux changes an exclusive lock into a shared one in place; elsewhere it must be given back first.
        let Exclusive(Lock { path, file }) = self;
        if let Err(error) = file.unlock().and_then(|()| file.lock_shared()) {
            tracing::warn!("{}: {error}", path.display());
        }
    }
}
