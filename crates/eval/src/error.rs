use std::path::PathBuf;

use luthier_artifact::{Interrupted, Observer};

/// What can go wrong in an evaluation or its report.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Parts of the predictions that do not belong together.
    #[error("predictions have {found} {what}, expected {expected}")]
    Shape {
        /// What was counted.
        what: &'static str,
        /// The number that agrees with the other parts.
        expected: usize,
        /// The number that was given.
        found: usize,
    },
    /// There is nothing to evaluate on.
    #[error("test set has no readable image, expected at least one")]
    Empty,
    /// There is nothing to tell apart.
    #[error("predictions have {found} classes, expected at least two")]
    Classes {
        /// The number of classes.
        found: usize,
    },
    /// A label outside the classes.
    #[error("row {row} has label {label}, expected a label below {n_classes}")]
    Label {
        /// The row, from 0.
        row: usize,
        /// Its label.
        label: usize,
        /// The number of classes.
        n_classes: usize,
    },
    /// Values that are no probability distribution.
    #[error("row {row} has probabilities that sum to {sum}, expected values from 0 to 1 that sum to 1")]
    Probabilities {
        /// The row, from 0.
        row: usize,
        /// The sum of its values.
        sum: f64,
    },
    /// A confidence level that no interval has.
    #[error("confidence is {found}, expected a number above 0 and below 1")]
    Confidence {
        /// The level that was given.
        found: f64,
    },
    /// A list of files that does not belong to the evaluation.
    #[error("report has {found} file names, expected {expected}, one for each row of the evaluation")]
    Files {
        /// The number of rows.
        expected: usize,
        /// The number of file names.
        found: usize,
    },
    /// The user wants the work to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The confusion matrix could not be drawn as pixels.
    #[error("confusion_matrix.png: {0}")]
    Plot(String),
    /// A file that is no report, or one that this version does not know.
    #[error("{}: expected a report.json of schema {expected}, found {found}", path.display())]
    NoReport {
        /// The file.
        path: PathBuf,
        /// The schema that is known.
        expected: &'static str,
        /// What was there instead.
        found: String,
    },
    /// Runs on different images.
    #[error(
        "no image is in both reports with the same true class, expected at least one; the baseline has {baseline} images, \
         the candidate {candidate}"
    )]
    NothingInCommon {
        /// The number of images of the baseline.
        baseline: usize,
        /// The number of images of the candidate.
        candidate: usize,
    },
    /// A file of the report could not be read or written.
    #[error(transparent)]
    Artifact(#[from] luthier_artifact::Error),
    /// Features could not be read from where they are kept.
    #[error(transparent)]
    Read(luthier_artifact::ReadError),
}

/// The result of an evaluation or its report.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// [`Error::Interrupted`] if somebody interrupts.
    pub(crate) fn if_interrupted(observer: &dyn Observer) -> Result<()> {
        match observer.is_interrupted() {
            true => Err(Interrupted.into()),
            false => Ok(()),
        }
    }
}
