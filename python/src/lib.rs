//! The extension module `luthier.luthier_native`: what the Python package calls. Its classes and words for users are in
//! `luthier/`.
//!
//! Every call that takes a while releases the interpreter, and ends soon after Ctrl-C.

mod extractor;
mod predictor;
mod watch;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use luthier_artifact::file_names;
use luthier_extract::ImageSource;
use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;

create_exception!(
    luthier,
    Error,
    PyException,
    "What Luthier cannot do, in the words of the command line."
);

/// An image as Python names it: a path, or the bytes of a file in any format that Luthier reads.
#[derive(FromPyObject)]
enum Image {
    Bytes(Vec<u8>),
    Path(PathBuf),
}

impl From<Image> for ImageSource {
    fn from(image: Image) -> Self {
        match image {
            Image::Bytes(bytes) => ImageSource::Bytes(Arc::from(bytes)),
            Image::Path(path) => ImageSource::File(path),
        }
    }
}

/// An error with its words, and those of its causes.
fn error(error: impl std::error::Error) -> PyErr {
    Error::new_err(error.to_string())
}

#[pymodule]
mod luthier_native {
    use super::*;

    #[pymodule_export]
    use super::Error;
    #[pymodule_export]
    use super::extractor::NativeExtractor;
    #[pymodule_export]
    use super::predictor::NativePredictor;

    /// Runs the command `luthier`, and gives its exit status.
    #[pyfunction]
    fn main(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
        py.detach(|| luthier_cli::main(arguments))
    }

    /// Runs `luthier pipeline` with these arguments, and gives its summary as JSON.
    #[pyfunction]
    fn pipeline(py: Python<'_>, arguments: Vec<OsString>) -> PyResult<String> {
        let ran = watch::until_interrupted(py, luthier_cli::set_interrupted, || luthier_cli::pipeline(arguments))?;
        let summary = ran.map_err(Error::new_err)?;
        // Names that are not UTF-8 as Python has them.
        serde_json::to_string(&summary).map(file_names::to_json).map_err(error)
    }
}
