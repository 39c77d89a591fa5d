//! Trained models in the formats of other programs: ONNX, and torchvision's `state_dict`.
//!
//! [`export`] writes a file, reads it back, and lets it answer to a few images beside [`Predictor`].

mod check;
mod error;
mod onnx;
mod torchvision;

use std::path::Path;

use luthier::{Predictor, PredictorConfig};
use luthier_artifact::{Observer, write_atomically};
use luthier_extract::{PortableNetwork, Precision, WeightsStore};

pub use check::Difference;
pub use error::{Error, Result};
pub use onnx::{Form, IMAGE, OUTPUT};

/// What a model can be written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// ONNX: the whole network, in single precision.
    Onnx(Form),
    /// safetensors with the `state_dict` of torchvision's `resnet50(num_classes=k)`, whose `fc` is the model's head.
    Torchvision,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exported {
    /// The size of the file in bytes.
    pub size: u64,
    /// In which format the model computes; the file computes in single precision.
    pub precision: Precision,
    /// How its answers differ from [`Predictor`]'s.
    pub difference: Difference,
}

/// Writes a model file as `format` to `output`, which appears only when the check is passed.
///
/// # Errors
/// [`Error::Unsuited`] if the format cannot hold what the model needs, [`Error::Differs`] if the file does not answer as
/// the model does, those of [`Predictor::open`] and of weights, and
/// [`Error::Io`] and [`Error::Artifact`] if the file cannot be written.
pub fn export(
    model: &Path,
    format: Format,
    output: &Path,
    store: &WeightsStore,
    config: &PredictorConfig,
    observer: &dyn Observer,
) -> Result<Exported> {
    let config = PredictorConfig {
        top_k: usize::MAX,
        ..config.clone()
    };
    let predictor = Predictor::open(model, store, None, &config, observer)?;
    let (trained, extractor) = (predictor.model(), predictor.extractor());
    let (views, pooling) = (&extractor.views, extractor.pooling);
    // Before the work: a file that appears at its end needs a folder.
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty());
    std::fs::metadata(folder.unwrap_or(Path::new("."))).map_err(|source| Error::Io {
        path: output.to_owned(),
        source,
    })?;
    let (bytes, difference) = match format {
        Format::Onnx(form) => {
            let network = PortableNetwork::load(&extractor.weights, store, observer)?;
            let bytes = onnx::encode(trained, views, pooling, &network, form);
            let difference = check::compare(&predictor, &bytes, form)?;
            (bytes, difference)
        }
        Format::Torchvision => {
            let bytes = torchvision::encode(model, trained, extractor, store, observer)?;
            let graph = torchvision::graph(&bytes, trained, extractor, store, observer)?;
            (bytes, check::compare(&predictor, &graph, Form::Pixels)?)
        }
    };
    // A model in another format answers otherwise by its rounding.
    if extractor.precision == Precision::Fp32 {
        difference.check()?;
    }
    write_atomically(output, &bytes)?;
    Ok(Exported {
        size: bytes.len() as u64,
        precision: extractor.precision,
        difference,
    })
}
