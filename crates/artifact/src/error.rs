use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong with an artifact or a file.
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
}

/// The result of an operation on artifacts.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An I/O error at `path`, for `map_err`.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    }
}
