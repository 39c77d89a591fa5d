use luthier_artifact::{Interrupted, ReadError};

/// What can go wrong with scaling or projecting features.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A feature is infinite or not a number.
    #[error("feature at row {row}, column {column} is {value}, expected a finite number")]
    NotFinite {
        /// The row, counted from 0.
        row: usize,
        /// The column, counted from 0.
        column: usize,
        /// What was there instead.
        value: f64,
    },
    /// Rows could not be read from where they are kept.
    #[error(transparent)]
    Read(ReadError),
    /// The user interrupted the work.
    #[error("interrupted")]
    Interrupted,
    /// There is too little to estimate from.
    #[error("features have {found} rows, expected at least {expected}")]
    TooFewRows {
        /// The smallest number of rows that has an estimate.
        expected: usize,
        /// The number of rows.
        found: usize,
    },
    /// A matrix does not have the width seen by `fit`.
    #[error("features have {found} columns, expected {expected}")]
    Width {
        /// The width seen by `fit`.
        expected: usize,
        /// The width of the matrix.
        found: usize,
    },
    /// More components are asked for than there are, or none.
    #[error("{asked} components are asked for, expected 1 to {available}, the smaller of rows and columns")]
    Components {
        /// The number asked for.
        asked: usize,
        /// The smaller of rows and columns.
        available: usize,
    },
    /// The share of the variance to keep is not a share.
    #[error("variance to keep is {found}, expected more than 0 and less than 1")]
    Variance {
        /// The share asked for.
        found: f64,
    },
    /// All rows are the same, so that no direction explains anything.
    #[error("features have no variance, expected rows that differ")]
    NoVariance,
    /// The eigendecomposition failed.
    #[error("eigendecomposition of the {size} × {size} Gram matrix did not converge")]
    NoConvergence {
        /// The matrix's number of rows.
        size: usize,
    },
    /// smartcore failed.
    #[error("smartcore: {0}")]
    Smartcore(#[from] smartcore::error::Failed),
}

/// The result of an operation on features.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The error of rows that could not be read.
    pub(crate) fn of_read(error: ReadError) -> Self {
        if error.is::<Interrupted>() {
            Error::Interrupted
        } else {
            Error::Read(error)
        }
    }
}
