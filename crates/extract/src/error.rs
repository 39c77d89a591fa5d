use std::io;
use std::path::{Path, PathBuf};

use luthier_artifact::Split;

/// What can go wrong between a folder and its features.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A data folder that is not there, or not a folder.
    #[error("{}: no such folder", path.display())]
    MissingFolder {
        /// The folder.
        path: PathBuf,
    },
    /// A data folder without a single image.
    #[error("{}: no images, expected {}/<class>/<image>.jpg (or png, gif, bmp, webp, tif)", path.display(), path.display())]
    NoImages {
        /// The folder.
        path: PathBuf,
    },
    /// The folder of a class without a single image.
    #[error("{}: no images of this class, expected .jpg, .png, .gif, .bmp, .webp or .tif files", path.display())]
    ClassWithoutImages {
        /// The class's folder.
        path: PathBuf,
    },
    /// A data folder with images of one class only.
    #[error("{}: found one class ({class}), expected at least two folders with images", path.display())]
    SingleClass {
        /// The folder.
        path: PathBuf,
        /// The class.
        class: String,
    },
    /// Classes that the test folder has and the train folder lacks.
    #[error("{}: no training images for {}, which {} has", train.display(), classes.join(", "), test.display())]
    TestOnlyClasses {
        /// The train folder.
        train: PathBuf,
        /// The test folder.
        test: PathBuf,
        /// The classes.
        classes: Vec<String>,
    },
    /// A class whose images are all unreadable.
    #[error("class {class}: none of its {n_images} {split} images can be read; the first, {file}: {reason}")]
    EmptyClass {
        /// The class.
        class: String,
        /// The split.
        split: Split,
        /// How many images the class has.
        n_images: usize,
        /// The first of them.
        file: String,
        /// Why it cannot be read.
        reason: String,
    },
    /// An image or a weights file whose bytes are no longer those that were hashed.
    #[error("{}: changed while it was being read", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A file that is no safetensors file, or has tensors that ResNet-50 lacks.
    #[error("{}: expected a safetensors file with the tensors of ResNet-50, found {found}", path.display())]
    Weights {
        /// The weights file.
        path: PathBuf,
        /// What was found instead.
        found: String,
    },
    /// Weights whose bytes are not those that their name stands for.
    #[error("{}: expected SHA-256 {expected}, found {found}", path.display())]
    WeightsDigest {
        /// The weights file.
        path: PathBuf,
        /// The pinned digest.
        expected: String,
        /// The digest of the file.
        found: String,
    },
    /// Weights that are neither known by name nor a file.
    #[error("{name}: expected a .safetensors file, `untrained`, or one of {known}, found none of them")]
    UnknownWeights {
        /// What was asked for.
        name: String,
        /// The known names.
        known: String,
    },
    /// Weights that could not be downloaded.
    #[error("{url}: {message}")]
    Download {
        /// The name of the weights.
        name: String,
        /// Where they were to come from.
        url: String,
        /// What went wrong.
        message: String,
    },
    /// A device that is not there, or cannot do what was asked.
    #[error("device {device}: {message}")]
    Device {
        /// The device.
        device: String,
        /// What it cannot do.
        message: String,
    },
    /// libtorch failed.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] luthier_cache::Error),
    /// The user interrupted the run; what was embedded is kept.
    #[error("interrupted")]
    Interrupted,
}

/// The result of extraction.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An I/O error at `path`, for `map_err`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    }

    /// The way out, where there is one to name.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::TestOnlyClasses { .. } => {
                Some("add training images for these classes, or remove their test folders".to_owned())
            }
            Error::MissingFolder { .. } | Error::NoImages { .. } | Error::SingleClass { .. } => {
                Some("a data folder holds one folder of images per class".to_owned())
            }
            Error::ClassWithoutImages { .. } => {
                Some("add images (HEIC, AVIF and others must be converted), or remove the folder".to_owned())
            }
            Error::EmptyClass { .. } => Some("replace the images, or remove the class's folder".to_owned()),
            Error::Changed { .. } => Some("run again once the file is complete".to_owned()),
            Error::WeightsDigest { path, .. } => {
                Some(format!("remove {} and run again to download it anew", path.display()))
            }
            Error::Download { name, .. } => Some(format!(
                "connect to the network (HTTPS_PROXY and LUTHIER_WEIGHTS_MIRROR are honoured) and run `luthier weights fetch {name}`; \
                 or pass --weights FILE.safetensors; or look around with --weights untrained"
            )),
            _ => None,
        }
    }
}
