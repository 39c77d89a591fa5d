//! Images → answers.

use std::path::PathBuf;
use std::sync::Mutex;
use std::thread::available_parallelism;

use luthier::{Predictor, PredictorConfig};
use luthier_extract::{Device, ImageSource, Limits, WeightsSource};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::extractor::open_cache;
use crate::watch::{Flag, until_interrupted, wait_for};
use crate::{Error, Image, error};

/// A model with its network.
#[pyclass(frozen)]
pub(crate) struct NativePredictor {
    predictor: Mutex<Predictor>,
    classes: Vec<String>,
}

#[pymethods]
impl NativePredictor {
    #[new]
    #[pyo3(signature = (path, *, weights, cache_dir, cache_remote, device, threads, top_k, min_confidence, keep_known))]
    #[expect(clippy::too_many_arguments, reason = "Python names them")]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        weights: Option<String>,
        cache_dir: Option<PathBuf>,
        cache_remote: Option<String>,
        device: Option<String>,
        threads: Option<usize>,
        top_k: usize,
        min_confidence: Option<f64>,
        keep_known: Option<f64>,
    ) -> PyResult<Self> {
        let store = luthier_cli::weights_store().map_err(|error| Error::new_err(error.to_string()))?;
        if top_k == 0 || threads == Some(0) {
            return Err(PyValueError::new_err("top_k and threads: expected 1 or more, found 0"));
        }
        if let Some(found) = min_confidence.filter(|share| !(0.0..=1.0).contains(share)) {
            let message = format!("min_confidence: expected a probability, 0 to 1, found {found}");
            return Err(PyValueError::new_err(message));
        }
        let device = device
            .map(|device| device.parse().map_err(PyValueError::new_err))
            .transpose()?;
        let config = PredictorConfig {
            weights: weights
                .map(|weights| WeightsSource::parse(&weights).map_err(error))
                .transpose()?,
            // To look for the best one would load CUDA.
            device: device.unwrap_or_else(Device::best),
            batch: None,
            n_threads: threads.unwrap_or_else(|| available_parallelism().map_or(1, usize::from)),
            n_images: None,
            limits: Limits::default(),
            top_k,
            min_confidence,
            keep_known,
        };
        let flag = Flag::default();
        let open = || {
            let cache = open_cache(cache_dir.as_deref(), cache_remote.as_deref())?;
            Predictor::open(&path, &store, cache, &config, &flag)
        };
        let predictor = until_interrupted(py, |is| flag.set(is), || luthier_extract::keep_torch_threads(open))?;
        let predictor = predictor.map_err(error)?;
        Ok(NativePredictor {
            classes: predictor.model().classes.clone(),
            predictor: Mutex::new(predictor),
        })
    }

    /// The classes, in label order.
    #[getter]
    fn classes(&self) -> Vec<String> {
        self.classes.clone()
    }

    /// For each image its prediction as JSON, or the reason why it cannot be read.
    fn predict(&self, py: Python<'_>, images: Vec<Image>) -> PyResult<Vec<(Option<String>, Option<String>)>> {
        let images: Vec<ImageSource> = images.into_iter().map(ImageSource::from).collect();
        let flag = Flag::default();
        let predict = || {
            let mut predictions = Vec::with_capacity(images.len());
            let predictor = wait_for(&self.predictor, &flag).ok_or(luthier_extract::Error::Interrupted)?;
            predictor.predict(&images, &flag, |_, prediction| {
                predictions.push(match prediction {
                    Ok(prediction) => (serde_json::to_string(&prediction).ok(), None),
                    Err(reason) => (None, Some(reason)),
                });
                Ok::<(), luthier::Error>(())
            })?;
            Ok::<_, luthier::Error>(predictions)
        };
        until_interrupted(py, |is| flag.set(is), || luthier_extract::keep_torch_threads(predict))?.map_err(error)
    }
}
