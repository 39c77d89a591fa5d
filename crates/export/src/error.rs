use std::path::{Path, PathBuf};

/// What can go wrong when a model is exported.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The weights, or libtorch, failed.
    #[error(transparent)]
    Extract(#[from] luthier_extract::Error),
    /// The model cannot be used, or its network not be loaded.
    #[error(transparent)]
    Luthier(#[from] luthier::Error),
    /// A folder or a temporary file cannot be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file could not be written.
    #[error(transparent)]
    Artifact(#[from] luthier_artifact::Error),
    /// libtorch refused a step of the check.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
    /// A format that cannot hold what the model needs.
    #[error("{}: {what}, which {format} cannot hold", model.display())]
    Unsuited {
        /// The model file.
        model: PathBuf,
        /// What it needs.
        what: String,
        /// The format.
        format: &'static str,
    },
    /// A folder that would be written over.
    #[error("{}: is there already, expected a folder that is new", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// A file that what is exported is made from.
    #[error("{}: is what is exported, expected another file to write to", path.display())]
    Input {
        /// The file.
        path: PathBuf,
    },
    /// A file that does not read back as it was written.
    #[error("the exported file does not read back: {0}")]
    Unreadable(String),
    /// A file that answers otherwise than the model.
    #[error("the exported file differs from predict by {found:.1e}, expected at most {expected:.0e}")]
    Differs {
        /// The largest difference of a probability.
        found: f64,
        /// What rounding explains.
        expected: f64,
    },
}

impl Error {
    /// For `map_err`: adds the path to what the system said.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Io {
            path: path.to_owned(),
            source,
        }
    }

    /// Whether the caller interrupted the work.
    pub fn is_interrupt(&self) -> bool {
        match self {
            Error::Luthier(error) => error.is_interrupt(),
            Error::Extract(error) => matches!(error, luthier_extract::Error::Interrupted),
            _ => false,
        }
    }
}

/// The result of exporting.
pub type Result<T> = std::result::Result<T, Error>;
