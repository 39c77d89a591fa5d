use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;
use rusqlite::ffi::{
    SQLITE_IOERR_CHECKRESERVEDLOCK, SQLITE_IOERR_LOCK, SQLITE_IOERR_RDLOCK, SQLITE_IOERR_SHMLOCK, SQLITE_IOERR_SHMMAP,
    SQLITE_IOERR_SHMOPEN, SQLITE_IOERR_SHMSIZE, SQLITE_IOERR_UNLOCK,
};

use luthier_artifact::Digest;

/// What can go wrong with the cache.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written, or has another format than expected.
    #[error(transparent)]
    File(#[from] luthier_artifact::Error),
    /// The index of the cache failed.
    #[error("{}: {source}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The cache has lost something that it should have. The stage that makes it must run again.
    #[error("{what} {} is lost or damaged", digest.short())]
    Lost {
        /// What it is, for example `artifact`.
        what: &'static str,
        /// Its digest.
        digest: Digest,
    },
    /// Another process has the cache open.
    #[error("{}: another luthier process uses this cache", path.display())]
    InUse {
        /// The lock file.
        path: PathBuf,
    },
    /// Nothing is recorded that could have used the features.
    #[error("{}: no run is recorded, so that nothing tells which features are in use", path.display())]
    NothingRecorded {
        /// The cache's folder.
        path: PathBuf,
    },
    /// The cache can only be read, and something was to be changed.
    #[error("{}: expected a cache that can be written, found one that can only be read", path.display())]
    ReadOnly {
        /// The cache's folder.
        path: PathBuf,
    },
    /// The system refuses a lock, although the file is open for reading and writing: a lock needs no more
    /// than that. Most often the file system has no locks. Without them, processes would disturb each other.
    #[error(
        "{}: expected a lock on a file that is open for reading and writing, found it refused: {source}",
        path.display()
    )]
    Locks {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file system has no shared memory, which the processes that share an index need.
    #[error("{}: expected a file system with shared memory for journal mode wal, found mode {found}", path.display())]
    SharedMemory {
        /// The index file.
        path: PathBuf,
        /// The journal mode that SQLite fell back to.
        found: String,
    },
    /// What machines share could not be reached, or refused.
    #[error("cache remote {url}: {source}")]
    Remote {
        /// The URL.
        url: String,
        /// What went wrong.
        source: object_store::Error,
    },
    /// A URL that names no place for segments.
    #[error("cache remote {url}: {reason}")]
    RemoteUrl {
        /// The URL.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The user interrupted the work. What was done until then is done.
    #[error("interrupted")]
    Interrupted,
    /// Another version of Luthier wrote the cache, in a layout that this one does not read.
    #[error("{}: cache has layout {found}, this luthier reads layout {expected}", path.display())]
    Layout {
        /// The index file.
        path: PathBuf,
        /// The layout this program reads and writes.
        expected: i64,
        /// The layout found in the file.
        found: i64,
    },
}

/// The result of an operation on the cache.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An I/O error at `path`, for `map_err`.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Error {
        let in_file = luthier_artifact::Error::io(path);
        move |source| in_file(source).into()
    }

    /// Whether the disk, or the user's share of it, is full.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Error::File(luthier_artifact::Error::Io { source, .. }) => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            // SQLite grows its shared memory by writing, and has one code for every failure there.
            Error::Index { source, .. } => {
                source.sqlite_error_code() == Some(ErrorCode::DiskFull)
                    || extended_code(source) == Some(SQLITE_IOERR_SHMSIZE)
            }
            _ => false,
        }
    }

    /// Whether the file system lacks the locks or the shared memory that the index needs.
    pub fn lacks_locks(&self) -> bool {
        match self {
            Error::Locks { .. } | Error::SharedMemory { .. } => true,
            Error::Index { source, .. } => {
                source.sqlite_error_code() == Some(ErrorCode::FileLockingProtocolFailed)
                    || extended_code(source).is_some_and(|code| {
                        [
                            SQLITE_IOERR_LOCK,
                            SQLITE_IOERR_RDLOCK,
                            SQLITE_IOERR_UNLOCK,
                            SQLITE_IOERR_CHECKRESERVEDLOCK,
                            SQLITE_IOERR_SHMOPEN,
                            SQLITE_IOERR_SHMLOCK,
                            SQLITE_IOERR_SHMMAP,
                        ]
                        .contains(&code)
                    })
            }
            _ => false,
        }
    }

    /// Whether another process held the index longer than anyone should.
    pub fn is_busy(&self) -> bool {
        let busy = [ErrorCode::DatabaseBusy, ErrorCode::DatabaseLocked];
        matches!(self, Error::Index { source, .. } if source.sqlite_error_code().is_some_and(|code| busy.contains(&code)))
    }

    /// Whether something can be read and not written.
    pub(crate) fn is_read_only(&self) -> bool {
        match self {
            Error::File(luthier_artifact::Error::Io { source, .. }) => matches!(
                source.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
            ),
            Error::Index { source, .. } => matches!(
                source.sqlite_error_code(),
                Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied)
            ),
            _ => false,
        }
    }
}

fn extended_code(error: &rusqlite::Error) -> Option<i32> {
    error.sqlite_error().map(|error| error.extended_code)
}
