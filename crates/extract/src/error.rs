use std::io;
use std::path::{Path, PathBuf};

use luthier_artifact::{Digest, Split};

/// What can go wrong between a folder and its features.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error(transparent)]
    File(#[from] luthier_artifact::Error),
    /// A data folder does not exist, or is no folder.
    #[error("{}: no such folder", path.display())]
    MissingFolder {
        /// The folder.
        path: PathBuf,
    },
    /// A data folder has no image.
    #[error("{}: no images, expected {}/<class>/<image>.jpg (or png, webp, heic and others)", path.display(), path.display())]
    NoImages {
        /// The folder.
        path: PathBuf,
    },
    /// The folder of a class has no image.
    #[error("{}: no images of this class, expected .jpg, .png, .webp, .heic or other image files", path.display())]
    ClassWithoutImages {
        /// The class's folder.
        path: PathBuf,
    },
    /// A folder has no image, however deep.
    #[error("{}: no images in this folder or below it", path.display())]
    NoFiles {
        /// The folder.
        path: PathBuf,
    },
    /// The images of a list are in no folders that could be their classes.
    #[error("a list of files without classes: {problem}")]
    NoFolders {
        /// What is wrong with the list.
        problem: String,
    },
    /// What is to be left out is not a glob.
    #[error("{origin}: {problem}")]
    Exclude {
        /// The option or the file.
        origin: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A data folder has images of only one class.
    #[error("{}: found one class ({class}), expected at least two folders with images", path.display())]
    SingleClass {
        /// The folder.
        path: PathBuf,
        /// The class.
        class: String,
    },
    /// The test folder has classes that the train folder lacks.
    #[error("{}: no training images for {}, which {} has", train.display(), classes.join(", "), test.display())]
    TestOnlyClasses {
        /// The train folder.
        train: PathBuf,
        /// The test folder.
        test: PathBuf,
        /// The classes.
        classes: Vec<String>,
    },
    /// A table is no table of labels.
    #[error("{}:{line}: {problem}", path.display())]
    Labels {
        /// The table.
        path: PathBuf,
        /// The line, from 1 on.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A pattern does not find classes in the names of files.
    #[error("--class-from {pattern}: {problem}")]
    ClassPattern {
        /// The regular expression.
        pattern: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A folder that should hold a folder for each class holds one for each split.
    #[error("{}: found folders for training and test, expected one folder per class", path.display())]
    ParentOfSplits {
        /// The folder.
        path: PathBuf,
    },
    /// All images of these classes are for the test.
    #[error("all images of {} are for the test, expected some to train on", classes.join(", "))]
    AllForTest {
        /// The classes.
        classes: Vec<String>,
    },
    /// No image is for the test.
    #[error("none of the {n_images} images is for the test, expected some")]
    NoneForTest {
        /// How many images there are.
        n_images: usize,
    },
    /// Decisions leave out every image.
    #[error("{}: leaves out every image, expected some that stay", path.display())]
    AllExcluded {
        /// The file of decisions.
        path: PathBuf,
    },
    /// None of the images of a class can be read.
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
    /// None of the images without labels can be read.
    #[error("{}: none of the {n_images} images can be read; the first, {file}: {reason}", path.display())]
    NoneReadable {
        /// The folder.
        path: PathBuf,
        /// How many images there are.
        n_images: usize,
        /// The first of them.
        file: String,
        /// Why it cannot be read.
        reason: String,
    },
    /// An image or a weights file no longer has the bytes that were hashed.
    #[error("{}: changed while it was being read", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The bytes of an image in memory do not have the digest that was given for them.
    #[error("image in memory: expected digest {expected}, found {found}")]
    OtherBytes {
        /// The digest that was given.
        expected: Digest,
        /// The digest of the bytes.
        found: Digest,
    },
    /// A file is neither a safetensors file nor a PyTorch checkpoint, or its tensors are not those of ResNet-50.
    #[error("{}: expected the tensors of ResNet-50 in a .safetensors or .pth file, found {found}", path.display())]
    Weights {
        /// The weights file.
        path: PathBuf,
        /// What was found instead.
        found: String,
    },
    /// A file in the store of weights does not have the bytes that its name stands for.
    #[error("{}: expected SHA-256 {expected}, found {found}", path.display())]
    WeightsDigest {
        /// The weights file.
        path: PathBuf,
        /// The pinned digest.
        expected: String,
        /// The digest of the file.
        found: String,
    },
    /// The name of weights is unknown, and no file has this name.
    #[error("{name}: expected a .safetensors file, `untrained`, or one of {known}, found none of them")]
    UnknownWeights {
        /// The name.
        name: String,
        /// The known names.
        known: String,
    },
    /// A server sent other bytes than the name of the weights stands for. They were not kept.
    #[error("{url}: expected SHA-256 {expected}, found {found}: the file there is not the one that {name} stands for")]
    DownloadDigest {
        /// The name of the weights.
        name: String,
        /// The address of the file.
        url: String,
        /// The pinned digest.
        expected: String,
        /// The digest of the bytes that came.
        found: String,
    },
    /// Weights could not be downloaded. What was received is kept for the next attempt.
    #[error("{url}: {message}")]
    Download {
        /// The name of the weights.
        name: String,
        /// The address of the file.
        url: String,
        /// What went wrong.
        message: String,
    },
    /// A device does not exist.
    #[error("device {device}: {message}")]
    Device {
        /// The device.
        device: String,
        /// What is missing.
        message: String,
    },
    /// A device cannot compute in a number format.
    #[error("device {device}: {message}")]
    Precision {
        /// The device.
        device: String,
        /// The number format.
        precision: String,
        /// What the device lacks.
        message: String,
    },
    /// The network made something that is no number: an activation was too large for the number format.
    #[error("device {device}: features are not finite in {precision}")]
    NotFinite {
        /// The device.
        device: String,
        /// The number format.
        precision: String,
    },
    /// libtorch failed. The text is the first line of its message; with `-v` the rest is printed
    /// too.
    #[error("libtorch: {0}")]
    Torch(String),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] luthier_cache::Error),
    /// The user interrupted the run. Features that were computed are kept.
    #[error("interrupted")]
    Interrupted,
}

/// The result of extraction.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An I/O error at `path`, for `map_err`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Error {
        let error = luthier_artifact::Error::io(path);
        move |source| Error::File(error(source))
    }

    /// An error of libtorch. Its message continues with the frames of the C++ stack, which tell a
    /// user nothing: they go to the log.
    pub(crate) fn torch(message: &str) -> Error {
        let message = message.strip_prefix("Internal torch error: ").unwrap_or(message);
        let (first, frames) = message.split_once('\n').unwrap_or((message, ""));
        if !frames.trim().is_empty() {
            tracing::debug!("libtorch: {message}");
        }
        Error::Torch(first.trim_end().to_owned())
    }

    /// The way out for the user, if there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::TestOnlyClasses { .. } => {
                Some("add training images for these classes, or remove their test folders".to_owned())
            }
            Error::MissingFolder { .. } => Some("a data folder holds one folder of images per class".to_owned()),
            Error::NoImages { .. } | Error::SingleClass { .. } => Some(
                "a data folder holds one folder of images per class; otherwise name the classes with --labels TABLE or \
                 --class-from PATTERN, or do without: luthier extract --unlabelled"
                    .to_owned(),
            ),
            Error::NoFolders { .. } => Some("say where the class is in a path: --class-from PATTERN".to_owned()),
            Error::Exclude { .. } => Some("the syntax is that of .gitignore: *.gif, thumbs/, raw/**/*.png".to_owned()),
            Error::ClassWithoutImages { .. } => {
                Some("add images (cameras' raw files must be exported as JPEG or TIFF), or remove the folder".to_owned())
            }
            Error::ClassPattern { .. } => {
                Some(r"for drum_001.jpg and harp_002.jpg: --class-from '(?<class>[a-z]+)_\d+'".to_owned())
            }
            Error::ParentOfSplits { path } => Some(format!(
                "name both: --train-dir {} --test-dir {}",
                path.join("train").display(),
                path.join("test").display()
            )),
            Error::AllForTest { .. } | Error::NoneForTest { .. } => Some(
                "images are drawn for the test by their bytes and the seed alone: add images, draw others with --seed N, \
                 name those for the test (--test-dir, or the column split of a table), or do without (--test-fraction 0)"
                    .to_owned(),
            ),
            Error::EmptyClass { .. } => Some(
                "replace these images; or remove them if the class has others; or remove the class's folder".to_owned(),
            ),
            Error::Changed { .. } => Some("run again once the file is complete".to_owned()),
            Error::WeightsDigest { path, .. } => {
                Some(format!("remove {} and run again to download it anew", path.display()))
            }
            Error::DownloadDigest { .. } => Some(
                "run again, in case it was damaged on the way; if its owner replaced the file, pass an older copy with \
                 --weights FILE.safetensors, or set LUTHIER_WEIGHTS_MIRROR to a server that has one"
                    .to_owned(),
            ),
            Error::Precision { precision, .. } => Some(format!(
                "use --precision fp32 (train again with it, if the model asks for {precision})"
            )),
            Error::NotFinite { precision, .. } => Some(match precision.as_str() {
                "fp16" => "numbers end at 65,504 in fp16: use --precision bf16 or fp32".to_owned(),
                _ => "check that the weights are those of a trained network".to_owned(),
            }),
            Error::Download { name, .. } => Some(format!(
                "connect to the network (HTTPS_PROXY and LUTHIER_WEIGHTS_MIRROR are honoured) and run `luthier weights fetch {name}`; \
                 or pass --weights FILE.safetensors; or look around with --weights untrained"
            )),
            _ => None,
        }
    }
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        Error::torch(&error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_libtorch_are_one_line_without_the_frames_of_its_stack() {
        let message = "mkldnn_reorder_conv2d_weight: bf16 path needs the cpu support avx512\n\
                       Exception raised from mkldnn_check_low_precision at Utils.h:147 (most recent call first):\n\
                       frame #0: c10::Error::Error(c10::SourceLocation) + 0x9d (0x7fc4fd78305d in libc10.so)";
        let error = Error::from(tch::TchError::Torch(message.to_owned()));
        assert_eq!(
            error.to_string(),
            "libtorch: mkldnn_reorder_conv2d_weight: bf16 path needs the cpu support avx512"
        );
        assert!(
            std::error::Error::source(&error).is_none(),
            "a cause would be printed after it"
        );
    }
}
