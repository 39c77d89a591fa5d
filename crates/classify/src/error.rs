use std::path::PathBuf;

use luthier_artifact::Observer;

/// What can go wrong with training or using a model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Labels and rows do not pair up.
    #[error("{labels} labels for {rows} rows, expected one a row")]
    Labels {
        /// The number of rows.
        rows: usize,
        /// The number of labels.
        labels: usize,
    },
    /// There is nothing to tell apart.
    #[error("{found} classes, expected at least 2")]
    TooFewClasses {
        /// The number of classes.
        found: usize,
    },
    /// A label is not the place of a class.
    #[error("label {label} at row {row}, expected less than the number of classes, {n_classes}")]
    LabelOutOfRange {
        /// The row, counted from 0.
        row: usize,
        /// The label.
        label: usize,
        /// The number of classes.
        n_classes: usize,
    },
    /// A class has too few images: without any, its intercept has no optimum.
    #[error("class {class} has {found} training images, expected at least {expected}")]
    TooFewImages {
        /// The class: its name, or its label where names are not known.
        class: String,
        /// The smallest number that will do.
        expected: usize,
        /// The number of images.
        found: usize,
    },
    /// Cross-validation has nothing to judge by: each class has one image, or images that look alike.
    #[error("no class has two different training images, expected such classes to hold images out")]
    NothingToHoldOut,
    /// There is nothing to judge by.
    #[error("{found} rows, expected at least {expected}")]
    TooFewRows {
        /// The smallest number that will do.
        expected: usize,
        /// The number of rows.
        found: usize,
    },
    /// A share is not a share.
    #[error("share to keep is {found}, expected more than 0 and at most 1")]
    Share {
        /// The share asked for.
        found: f64,
    },
    /// Images do not differ within their classes, so that no distance can be measured by how much they do.
    #[error("the images of each class have the same features, expected some that differ")]
    NoSpread,
    /// A matrix does not have the width the model was trained with.
    #[error("features have {found} columns, expected {expected}")]
    Width {
        /// The width the model was trained with.
        expected: usize,
        /// The width of the matrix.
        found: usize,
    },
    /// C is not an inverse strength of regularization.
    #[error("C is {found}, expected a positive number, auto or auto-1se")]
    C {
        /// What was given.
        found: String,
    },
    /// The number of folds is too small to hold any of them out.
    #[error("{found} folds, expected at least 2")]
    Folds {
        /// The number of folds.
        found: usize,
    },
    /// Scaling or projecting failed, or a value is infinite or not a number.
    #[error(transparent)]
    Features(luthier_features::Error),
    /// The user interrupted the work.
    #[error("interrupted")]
    Interrupted,
    /// The solver ended at coefficients that are not finite.
    #[error("coefficients found by {solver} with C = {c} are not finite")]
    Diverged {
        /// The solver.
        solver: luthier_features::Solver,
        /// The inverse strength of regularization.
        c: f64,
    },
    /// smartcore is asked for what it does not have.
    #[error("smartcore's logistic regression has no class weights, expected solver faer, or classes of equal weight")]
    ClassWeight,
    /// smartcore failed.
    #[error("smartcore: {0}")]
    Smartcore(#[from] smartcore::error::Failed),
    /// A file could not be read.
    #[error(transparent)]
    Read(luthier_artifact::Error),
    /// A file is not a model.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        source: luthier_artifact::Error,
    },
}

/// The result of an operation on models.
pub type Result<T> = std::result::Result<T, Error>;

impl From<luthier_features::Error> for Error {
    fn from(error: luthier_features::Error) -> Self {
        match error {
            luthier_features::Error::Interrupted => Error::Interrupted,
            other => Error::Features(other),
        }
    }
}

impl Error {
    /// [`Error::Interrupted`] if somebody interrupts.
    pub(crate) fn if_interrupted(observer: &dyn Observer) -> Result<()> {
        if observer.is_interrupted() {
            Err(Error::Interrupted)
        } else {
            Ok(())
        }
    }
}
