//! A model as the `state_dict` of torchvision's `resnet50(num_classes=k)`.

use std::collections::HashMap;
use std::path::Path;

use luthier_artifact::Observer;
use luthier_classify::Model;
use luthier_extract::{
    ExtractorConfig, NamedTensor, Pooling, PortableNetwork, WeightsSource, WeightsStore, state_dict,
};
use ndarray::{Array1, Array2};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensorError, SafeTensors, serialize};
use serde_json::json;

use crate::onnx::{self, Form};
use crate::{Error, Result};

/// The name of the format in messages.
const NAME: &str = "torchvision's resnet50";

const WEIGHT: &str = "fc.weight";
const BIAS: &str = "fc.bias";

/// Writes the file: the weights as they are, and the model's head as `fc`.
pub(crate) fn encode(
    path: &Path,
    model: &Model,
    extractor: &ExtractorConfig,
    store: &WeightsStore,
    observer: &dyn Observer,
) -> Result<Vec<u8>> {
    let unsuited = |what: String| Error::Unsuited {
        model: path.to_owned(),
        what,
        format: NAME,
    };
    if extractor.views.as_slice().len() > 1 {
        let views = model.extractor.views.join(", ");
        return Err(unsuited(format!("several views, {views}")));
    }
    if extractor.pooling != Pooling::Mean {
        return Err(unsuited(format!("{} pooling", extractor.pooling)));
    }
    let mut tensors = state_dict(&extractor.weights, store, observer)?;
    let (k, d) = model.head_weight.dim();
    tensors.push(NamedTensor {
        name: WEIGHT.to_owned(),
        shape: vec![k, d],
        values: model.head_weight.iter().copied().collect(),
    });
    tensors.push(NamedTensor {
        name: BIAS.to_owned(),
        shape: vec![k],
        values: model.head_bias.to_vec(),
    });
    let bytes: Vec<Vec<u8>> = (tensors.iter())
        .map(|tensor| tensor.values.iter().flat_map(|value| value.to_le_bytes()).collect())
        .collect();
    let views = tensors.iter().zip(&bytes).map(|(tensor, bytes)| {
        let view = TensorView::new(Dtype::F32, tensor.shape.clone(), bytes);
        (
            tensor.name.as_str(),
            view.expect("there are as many values as the shape says"),
        )
    });
    // One entry: the order of several would change from run to run.
    let about = json!({"classes": model.classes, "extractor": model.extractor});
    let metadata = HashMap::from([("luthier".to_owned(), about.to_string())]);
    Ok(serialize(views, Some(metadata)).expect("the names of tensors are all different"))
}

/// The file, read back, as a graph that can be run.
pub(crate) fn graph(
    bytes: &[u8],
    model: &Model,
    extractor: &ExtractorConfig,
    store: &WeightsStore,
    observer: &dyn Observer,
) -> Result<Vec<u8>> {
    let unreadable = |error: SafeTensorError| Error::Unreadable(error.to_string());
    let file = SafeTensors::deserialize(bytes).map_err(unreadable)?;
    let values = |name: &str| -> Result<Vec<f32>> {
        let tensor = file.tensor(name).map_err(unreadable)?;
        let values = tensor.data().as_chunks().0.iter();
        Ok(values.map(|bytes| f32::from_le_bytes(*bytes)).collect())
    };
    let shape = model.head_weight.dim();
    let weight = Array2::from_shape_vec(shape, values(WEIGHT)?);
    let weight = weight.map_err(|error| Error::Unreadable(error.to_string()))?;
    let read = Model {
        head_weight: weight,
        head_bias: Array1::from(values(BIAS)?),
        ..model.clone()
    };
    // Weights are read from files.
    let copy = tempfile::NamedTempFile::new().map_err(Error::io(&std::env::temp_dir()))?;
    std::fs::write(copy.path(), bytes).map_err(Error::io(copy.path()))?;
    let network = PortableNetwork::load(&WeightsSource::File(copy.path().to_owned()), store, observer)?;
    Ok(onnx::encode(
        &read,
        &extractor.views,
        extractor.pooling,
        &network,
        Form::Pixels,
    ))
}
