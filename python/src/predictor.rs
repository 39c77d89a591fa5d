//! Images → answers.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use luthier::{Predictor, PredictorConfig};
use luthier_cache::Cache;
use luthier_extract::{ImageSource, WeightsSource};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::watch::{Flag, until_interrupted};
use crate::{Error, Image, error};

/// A model with its network.
#[pyclass(frozen)]
pub(crate) struct NativePredictor(Mutex<Predictor>);

impl NativePredictor {
    fn predictor(&self) -> MutexGuard<'_, Predictor> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl NativePredictor {
    #[new]
    #[pyo3(signature = (path, *, weights, cache_dir, device, threads, top_k, min_confidence, keep_known))]
    #[expect(clippy::too_many_arguments, reason = "Python names them")]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        weights: Option<String>,
        cache_dir: Option<PathBuf>,
        device: Option<String>,
        threads: Option<usize>,
        top_k: usize,
        min_confidence: Option<f64>,
        keep_known: Option<f64>,
    ) -> PyResult<Self> {
        let store = luthier_cli::weights_store().map_err(|error| Error::new_err(error.to_string()))?;
        let default = PredictorConfig::default();
        let device = device
            .map(|device| device.parse().map_err(PyValueError::new_err))
            .transpose()?;
        let config = PredictorConfig {
            weights: weights
                .map(|weights| WeightsSource::parse(&weights).map_err(error))
                .transpose()?,
            device: device.unwrap_or(default.device),
            n_threads: threads.unwrap_or(default.n_threads),
            top_k,
            min_confidence,
            keep_known,
            ..default
        };
        let flag = Flag::default();
        let open = || {
            let cache = cache_dir.as_deref().map(Cache::open).transpose()?;
            Predictor::open(&path, &store, cache, &config, &flag)
        };
        until_interrupted(py, |is| flag.set(is), open)?
            .map(|predictor| NativePredictor(Mutex::new(predictor)))
            .map_err(error)
    }

    /// The classes, in label order.
    #[getter]
    fn classes(&self) -> Vec<String> {
        self.predictor().model().classes.clone()
    }

    /// For each image its prediction as JSON, or the reason why it cannot be read.
    fn predict(&self, py: Python<'_>, images: Vec<Image>) -> PyResult<Vec<(Option<String>, Option<String>)>> {
        let images: Vec<ImageSource> = images.into_iter().map(ImageSource::from).collect();
        let flag = Flag::default();
        let predict = || {
            let mut predictions = Vec::with_capacity(images.len());
            self.predictor().predict(&images, &flag, |_, prediction| {
                predictions.push(match prediction {
                    Ok(prediction) => (serde_json::to_string(&prediction).ok(), None),
                    Err(reason) => (None, Some(reason)),
                });
                Ok::<(), luthier::Error>(())
            })?;
            Ok::<_, luthier::Error>(predictions)
        };
        until_interrupted(py, |is| flag.set(is), predict)?.map_err(error)
    }
}
