use std::io;
use std::path::{Path, PathBuf};

use crate::words::counted;

/// What can go wrong between photographs and answers.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Scanning, weights or the network failed, or the caller interrupted the work.
    #[error(transparent)]
    Extract(#[from] luthier_extract::Error),
    /// Scaling or projecting failed.
    #[error(transparent)]
    Features(#[from] luthier_features::Error),
    /// Training or using the model failed.
    #[error(transparent)]
    Classify(#[from] luthier_classify::Error),
    /// The evaluation or its report failed.
    #[error(transparent)]
    Eval(#[from] luthier_eval::Error),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] luthier_cache::Error),
    /// A file could not be written, or has another format than expected.
    #[error(transparent)]
    Artifact(#[from] luthier_artifact::Error),
    /// A file or folder could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A feature is infinite or not a number.
    #[error("{image}: feature {feature} is {value}, expected a finite number")]
    NotFinite {
        /// The image's file, or its digest where the file is not known.
        image: String,
        /// The feature, from 0.
        feature: usize,
        /// Its value.
        value: f64,
    },
    /// Features were made in another way than those that the model was trained on.
    #[error("model was trained on features of {expected}, found features of {found}")]
    OtherExtractor {
        /// How the features of the model were made.
        expected: String,
        /// How these features were made.
        found: String,
    },
    /// Features are of other classes than the model's.
    #[error("model knows the classes {expected:?}, features have {found:?}")]
    OtherClasses {
        /// The classes of the model.
        expected: Vec<String>,
        /// The classes of the features.
        found: Vec<String>,
    },
    /// A run that the cache does not know, or that wrote elsewhere.
    #[error("no run {number}, {}", known_runs(known))]
    NoSuchRun {
        /// Its number.
        number: i64,
        /// The runs that there are.
        known: Vec<i64>,
    },
    /// A run whose results the cache has not all kept.
    #[error("run {number}: the cache has not kept all that it made")]
    RunIsGone {
        /// Its number.
        number: i64,
    },
    /// There are neither test images nor training images that were held out.
    #[error("nothing to evaluate the model by: there are no test images, and with a given C none are held out")]
    NothingToEvaluate,
    /// A folder without features.
    #[error("{}: no such file, expected what `luthier extract` writes", path.display())]
    NoFeatures {
        /// The `features.json` that is missing.
        path: PathBuf,
    },
    /// A folder with the features of images without labels.
    #[error("{}: features of images without classes, expected some with classes", path.display())]
    UnlabelledFeatures {
        /// The `features.json`.
        path: PathBuf,
    },
    /// A file of a features folder that does not hold what it should.
    #[error("{}: expected {expected}, found {found}", path.display())]
    FeaturesFile {
        /// The file.
        path: PathBuf,
        /// What was expected.
        expected: String,
        /// What was there instead.
        found: String,
    },
    /// A file of a features folder that another run wrote than the run that wrote `features.json`.
    #[error("{}: expected the rows that features.json describes, found rows of another run", path.display())]
    MixedFeatures {
        /// The file.
        path: PathBuf,
    },
    /// A folder or file of moments that does not hold what it should.
    #[error("{}: expected {expected}, found {found}", path.display())]
    Moments {
        /// The folder or file.
        path: PathBuf,
        /// What was expected.
        expected: String,
        /// What was there instead.
        found: String,
    },
    /// Unreadable images, where the caller wants none.
    #[error("{} cannot be read; the first: {first}", counted(n, "image"))]
    UnreadableImages {
        /// How many there are.
        n: usize,
        /// The first of them, with the reason.
        first: String,
    },
    /// Other weights than those that the model was trained with.
    #[error("{}: trained with weights {}…, found {}…", model.display(), short(expected), short(found))]
    OtherWeights {
        /// The model file.
        model: PathBuf,
        /// SHA-256 of the weights that the model was trained with.
        expected: String,
        /// SHA-256 of the weights at hand.
        found: String,
        /// The name of the expected weights, if they are known by name.
        name: Option<String>,
    },
    /// Weights that are not known by name, and whose file was neither given nor found.
    #[error("{}: trained with weights {weights} ({}…), whose file was not found", model.display(), short(sha256))]
    UnknownWeights {
        /// The model file.
        model: PathBuf,
        /// What the weights were called when the model was trained.
        weights: String,
        /// Their SHA-256.
        sha256: String,
    },
    /// A model that asks for something that this version does not know.
    #[error("{}: trained with {what} {value}, which this luthier does not know", model.display())]
    UnknownSetting {
        /// The model file.
        model: PathBuf,
        /// What is not known, for example `view`.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// A model without the thresholds that tell known images from unknown ones.
    #[error(
        "{}: trained with a given C, without the cross-validation that thresholds for unknown images rest on",
        model.display()
    )]
    NoThresholds {
        /// The model file.
        model: PathBuf,
    },
    /// A share of known images for which the model has no threshold.
    #[error("percentage of known images to keep is {found}, expected one of {known}")]
    NoSuchThreshold {
        /// What was asked for, in percent.
        found: f64,
        /// The percentages that the model knows.
        known: String,
    },
    /// A model with a class of the name that stands for unknown images.
    #[error(
        "{}: has a class unknown, expected none of that name: it could not be told from the answer unknown",
        model.display()
    )]
    ClassUnknown {
        /// The model file.
        model: PathBuf,
    },
    /// A class whose name no folder can have.
    #[error("class {class:?}: expected a name that a folder can have")]
    ClassFolder {
        /// The class.
        class: String,
    },
    /// Labels that no folders say, which files cannot be moved between.
    #[error("the classes come from a table or a pattern, expected a folder for each class")]
    NoClassFolders,
    /// An image that was decided about since it was shown.
    #[error("{file}: decided about meanwhile, in another window")]
    DecidedMeanwhile {
        /// The file.
        file: String,
    },
    /// A class that the pipeline would pass over, because no image has it.
    #[error("class {class:?} is none of the data's, expected one that has images")]
    NewClass {
        /// The class.
        class: String,
    },
    /// An image without a class, which nobody can call right.
    #[error("{file}: has no class yet, expected one to be named")]
    NoClass {
        /// The file.
        file: String,
    },
    /// A path that names no file.
    #[error("{}: expected the name of a file", path.display())]
    NoFileName {
        /// The path.
        path: PathBuf,
    },
    /// An image is not the one that was read any more; it is still where it was.
    #[error("changed since it was read, and left where it is")]
    OtherImage {
        /// The image's file.
        path: PathBuf,
    },
    /// An image could not be put where it belongs; it is still where it was.
    #[error("not put to {}: {source}", to.display())]
    NotPut {
        /// Where it belongs.
        to: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An image was put where it belongs, and could not be removed from where it was.
    #[error("not removed, though it is at {}: {source}", at.display())]
    NotRemoved {
        /// Where it is now.
        at: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The result of an operation of this library.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An I/O error at `path`, for `map_err`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    }

    /// The cache's error behind this one, if there is one.
    pub fn cache(&self) -> Option<&luthier_cache::Error> {
        let read = match self {
            Error::Cache(error) | Error::Extract(luthier_extract::Error::Cache(error)) => return Some(error),
            Error::Features(luthier_features::Error::Read(error))
            | Error::Classify(luthier_classify::Error::Features(luthier_features::Error::Read(error)))
            | Error::Eval(luthier_eval::Error::Read(error)) => error,
            _ => return None,
        };
        read.downcast_ref()
    }

    /// What the system said, if a file or folder is behind this error.
    pub fn system(&self) -> Option<&io::Error> {
        match self {
            Error::Io { source, .. } | Error::NotPut { source, .. } | Error::NotRemoved { source, .. } => Some(source),
            Error::Extract(luthier_extract::Error::File(luthier_artifact::Error::Io { source, .. })) => Some(source),
            _ => match self.file()? {
                luthier_artifact::Error::Io { source, .. } => Some(source),
                luthier_artifact::Error::Format { .. } => None,
            },
        }
    }

    /// The error of a file behind this one, if there is one.
    fn file(&self) -> Option<&luthier_artifact::Error> {
        match self {
            Error::Artifact(error)
            | Error::Eval(luthier_eval::Error::Artifact(error))
            | Error::Classify(luthier_classify::Error::Read(error)) => Some(error),
            _ => match self.cache()? {
                luthier_cache::Error::File(error) => Some(error),
                _ => None,
            },
        }
    }

    /// Whether no file can be written any more: the disk is full or read-only.
    pub fn is_disk_full(&self) -> bool {
        let full = [
            io::ErrorKind::StorageFull,
            io::ErrorKind::QuotaExceeded,
            io::ErrorKind::ReadOnlyFilesystem,
        ];
        self.system().is_some_and(|error| full.contains(&error.kind()))
            || self.cache().is_some_and(luthier_cache::Error::is_disk_full)
    }

    /// Whether the caller interrupted the work.
    pub fn is_interrupt(&self) -> bool {
        matches!(
            self,
            Error::Extract(luthier_extract::Error::Interrupted)
                | Error::Eval(luthier_eval::Error::Interrupted(_))
                | Error::Features(luthier_features::Error::Interrupted)
                | Error::Classify(
                    luthier_classify::Error::Interrupted
                        | luthier_classify::Error::Features(luthier_features::Error::Interrupted)
                )
        ) || matches!(self.cache(), Some(luthier_cache::Error::Interrupted))
    }

    /// Whether the cache has lost something that can be made again.
    pub(crate) fn is_loss(&self) -> bool {
        matches!(self.cache(), Some(luthier_cache::Error::Lost { .. }))
    }
}

fn known_runs(known: &[i64]) -> String {
    match known {
        [] => "and no other wrote here".to_owned(),
        [only] => format!("expected {only}"),
        [first, .., last] => format!("expected one of {} from {first} to {last}", known.len()),
    }
}

fn short(sha256: &str) -> &str {
    sha256.get(..8).unwrap_or(sha256)
}
