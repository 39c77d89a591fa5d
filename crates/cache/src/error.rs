use std::io;
use std::path::{Path, PathBuf};

use luthier_artifact::Digest;

/// What can go wrong with the cache.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written, or has another format than expected.
    #[error(transparent)]
    File(#[from] luthier_artifact::Error),
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
        self.is_io(&[io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded])
    }

    /// Whether the file system lacks the locks that a cache needs.
    pub fn lacks_locks(&self) -> bool {
        matches!(self, Error::Locks { .. })
    }

    /// Whether something can be read and not written.
    pub(crate) fn is_read_only(&self) -> bool {
        self.is_io(&[io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem])
    }

    fn is_io(&self, kinds: &[io::ErrorKind]) -> bool {
        matches!(self, Error::File(luthier_artifact::Error::Io { source, .. }) if kinds.contains(&source.kind()))
    }
}
