use std::io;
use std::path::{Path, PathBuf};

use crate::Digest;

/// What can go wrong with an artifact or the cache.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Bytes that are not of the expected format.
    #[error("expected {expected}, found {found}")]
    Format {
        /// The expected format.
        expected: &'static str,
        /// What was there instead.
        found: String,
    },
    /// The index of the cache failed.
    #[error("{}: {source}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// Something that the cache should have and has not. What was to be computed from it must be computed again.
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
    /// The cache was written by another version of Luthier.
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

/// The result of an operation on artifacts or the cache.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An I/O error at `path`, for `map_err`.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    }
}
