//! Trained models for elsewhere: ONNX, torchvision's `state_dict`, and a folder of model and weights.
//!
//! [`export`] writes what is asked for, reads it back, and lets it answer to a few images beside [`Predictor`].

mod bundle;
mod check;
mod error;
mod onnx;
mod torchvision;

use std::path::Path;

use luthier::{Predictor, PredictorConfig};
use luthier_artifact::{Observer, folder_of, write_atomically};
use luthier_extract::{PortableNetwork, Precision, WeightsSource, WeightsStore};

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
    /// A folder with the model file and its weights, for Luthier on another machine.
    Bundle,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exported {
    /// The size of all files in bytes.
    pub size: u64,
    /// In which format the model computes.
    pub precision: Precision,
    /// How its answers differ from [`Predictor`]'s.
    pub difference: Difference,
}

/// Writes a model file as `format` to `output`, which appears only when the check is passed.
///
/// # Errors
/// [`Error::Unsuited`] if the format cannot hold what the model needs, [`Error::Differs`] if what was written does not
/// answer as the model does, [`Error::Exists`] if a bundle's folder is there already, [`Error::Input`] if `output` is the model
/// or the file of its weights, those of [`Predictor::open`] and of weights, and [`Error::Io`] and [`Error::Artifact`] if files cannot be written.
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
    // Before the work: a file that appears at its end needs a folder, and takes no other's place.
    std::fs::metadata(folder_of(output)).map_err(Error::io(output))?;
    let is_output = |input: &Path| matches!((output.canonicalize(), input.canonicalize()), (Ok(a), Ok(b)) if a == b);
    let weights = match &extractor.weights {
        WeightsSource::File(path) => Some(path.as_path()),
        WeightsSource::Named(_) | WeightsSource::Untrained => None,
    };
    if is_output(model) || weights.is_some_and(is_output) {
        return Err(Error::Input {
            path: output.to_owned(),
        });
    }
    let (size, difference) = match format {
        Format::Onnx(form) => {
            let network = PortableNetwork::load(&extractor.weights, store, observer)?;
            let bytes = onnx::encode(trained, &extractor.views, extractor.pooling, &network, form);
            let difference = check::graph(&predictor, &bytes, form)?;
            write(output, &bytes, extractor.precision, difference)?
        }
        Format::Torchvision => {
            let bytes = torchvision::encode(model, trained, extractor, store, observer)?;
            let graph = torchvision::graph(&bytes, trained, extractor, store, observer)?;
            let difference = check::graph(&predictor, &graph, Form::Pixels)?;
            write(output, &bytes, extractor.precision, difference)?
        }
        Format::Bundle => bundle::write(model, output, &predictor, store, &config, observer)?,
    };
    Ok(Exported {
        size,
        precision: extractor.precision,
        difference,
    })
}

/// Writes a file that answers in single precision. A model in another format answers otherwise by its rounding.
fn write(output: &Path, bytes: &[u8], precision: Precision, difference: Difference) -> Result<(u64, Difference)> {
    if precision == Precision::Fp32 {
        difference.check()?;
    }
    write_atomically(output, bytes)?;
    Ok((bytes.len() as u64, difference))
}
