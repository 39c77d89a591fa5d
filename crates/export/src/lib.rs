//! Trained models in the formats of other programs: ONNX, and torchvision's `state_dict`.
//!
//! [`export`] writes a file, reads it back, and lets it answer to a few images beside [`Predictor`].

mod check;
mod error;
mod onnx;
mod torchvision;

use std::io::Write;
use std::path::Path;

use luthier::{Predictor, PredictorConfig};
use luthier_artifact::Observer;
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
    /// How its answers differ from [`Predictor`]'s.
    pub difference: Difference,
}

/// Writes a model file as `format` to `output`, which appears only when the check is passed.
///
/// # Errors
/// [`Error::Unsuited`] if the format cannot hold what the model needs, [`Error::Differs`] if the file does not answer as
/// the model does, those of [`Predictor::open`] and of weights, and [`Error::Io`] if the file cannot be written.
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
    let io = |source| Error::Io {
        path: output.to_owned(),
        source,
    };
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(io)?;
    let (form, graph) = match format {
        Format::Onnx(form) => {
            let network = PortableNetwork::load(&extractor.weights, store, observer)?;
            let graph = onnx::encode(trained, views, pooling, &network, form);
            file.write_all(&graph).map_err(io)?;
            (form, std::fs::read(file.path()).map_err(io)?)
        }
        Format::Torchvision => {
            let bytes = torchvision::encode(model, trained, extractor, store, observer)?;
            file.write_all(&bytes).map_err(io)?;
            (
                Form::Pixels,
                torchvision::graph(file.path(), trained, extractor, store, observer)?,
            )
        }
    };
    let difference = check::compare(&predictor, &graph, form)?;
    // A model in another format answers otherwise by its rounding.
    if extractor.precision == Precision::Fp32 {
        difference.check()?;
    }
    file.as_file().sync_all().map_err(io)?;
    let size = file.as_file().metadata().map_err(io)?.len();
    set_permissions(&file).map_err(io)?;
    file.persist(output).map_err(|error| io(error.error))?;
    Ok(Exported { size, difference })
}

/// As for any file that a user makes: a temporary one is its owner's alone.
#[cfg(unix)]
fn set_permissions(file: &tempfile::NamedTempFile) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn set_permissions(_: &tempfile::NamedTempFile) -> std::io::Result<()> {
    Ok(())
}
