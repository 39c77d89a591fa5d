//! Images → features.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread::available_parallelism;

use luthier_cache::{Cache, Remote};
use luthier_extract::{
    CachedExtractor, Combine, Decoding, Device, ExtractorConfig, ImageFeatures, ImageSource, Limits, Pooling,
    Precision, View, Views, WeightsSource, WeightsStore,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyDict};

use crate::watch::{Flag, until_interrupted, wait_for};
use crate::{Error, Image, error};

/// From how many images on the network is made ready for many.
const MANY: usize = 256;

/// The cache in a folder, which shares features with other machines. With `remote` alone, it is in a temporary folder.
pub(crate) fn open_cache(folder: Option<&Path>, remote: Option<&str>) -> luthier_cache::Result<Option<Cache>> {
    let cache = match (folder, remote) {
        (Some(folder), _) => Cache::open(folder)?,
        (None, Some(_)) => Cache::temporary()?,
        (None, None) => return Ok(None),
    };
    Ok(Some(match remote {
        Some(url) => cache.with_remote(Remote::open(url)?),
        None => cache,
    }))
}

/// The network, loaded when the first images come.
#[pyclass(frozen)]
pub(crate) struct NativeExtractor {
    config: ExtractorConfig,
    store: WeightsStore,
    n_threads: usize,
    cache_dir: Option<PathBuf>,
    cache_remote: Option<String>,
    loaded: Mutex<Option<Loaded>>,
}

struct Loaded {
    extractor: CachedExtractor,
    is_for_many: bool,
}

/// Why images cannot be read, each with its place.
type Reasons = Vec<(usize, String)>;

/// The features of images one after the other, and the reasons of those that cannot be read.
type Embedded = (Vec<f32>, Reasons);

impl NativeExtractor {
    fn embed_images(&self, images: &[ImageSource], flag: &Flag) -> luthier_extract::Result<Embedded> {
        let mut loaded = wait_for(&self.loaded, flag).ok_or(luthier_extract::Error::Interrupted)?;
        let is_for_many = images.len() >= MANY;
        let extractor = match &mut *loaded {
            Some(loaded) if loaded.is_for_many || !is_for_many => &loaded.extractor,
            slot => {
                // One network after the other is in memory.
                *slot = None;
                let cache = open_cache(self.cache_dir.as_deref(), self.cache_remote.as_deref())?;
                let n_images = is_for_many.then_some(images.len());
                let (config, store) = (self.config.clone(), self.store.clone());
                let extractor = CachedExtractor::new(config, store, self.n_threads, n_images, cache, flag)?;
                &slot.insert(Loaded { extractor, is_for_many }).extractor
            }
        };
        let width = self.n_features();
        let mut features = vec![f32::NAN; images.len() * width];
        let mut unreadable = Vec::new();
        extractor.features(images, flag, |place, found| {
            match found {
                ImageFeatures::Rows { rows, .. } => {
                    let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
                    features[place * width..][..width].copy_from_slice(&self.config.views.combine(&rows));
                }
                ImageFeatures::Unreadable { reason } => unreadable.push((place, reason)),
            }
            Ok(())
        })?;
        unreadable.sort();
        // Engines end their workers without notice.
        if self.cache_remote.is_some() {
            extractor.share()?;
        }
        Ok((features, unreadable))
    }
}

#[pymethods]
impl NativeExtractor {
    /// Settings have the names and values of the command line's; `None` is its default.
    #[new]
    fn new(settings: &Bound<'_, PyDict>) -> PyResult<Self> {
        let text = |name: &str| -> PyResult<Option<String>> {
            let value = settings.get_item(name)?.filter(|value| !value.is_none());
            value.map(|value| value.str()?.extract()).transpose()
        };
        fn read<T: std::str::FromStr>(name: &str, text: Option<String>) -> PyResult<Option<T>>
        where
            T::Err: std::fmt::Display,
        {
            let read = text.map(|text| {
                text.parse()
                    .map_err(|error| PyValueError::new_err(format!("{name}: {error}")))
            });
            read.transpose()
        }
        let weights = match text("weights")? {
            Some(weights) => WeightsSource::parse(&weights).map_err(error)?,
            None => WeightsSource::parse(luthier_extract::NamedWeights::ALL[0].name).map_err(error)?,
        };
        let views: Vec<View> = (text("views")?.as_deref().unwrap_or("squash").split(','))
            .map(|view| {
                view.parse()
                    .map_err(|error| PyValueError::new_err(format!("views: {error}")))
            })
            .collect::<PyResult<_>>()?;
        let combine: Combine = read("combine", text("combine")?)?.unwrap_or(Combine::Mean);
        let views = Views::new(views, combine).map_err(|error| PyValueError::new_err(format!("views: {error}")))?;
        let device: Device = read("device", text("device")?)?.unwrap_or_else(Device::best);
        let precision = match text("precision")?.as_deref() {
            Some("auto") => Precision::best(device),
            precision => read("precision", precision.map(str::to_owned))?.unwrap_or(Precision::Fp32),
        };
        let config = ExtractorConfig {
            views,
            pooling: read::<Pooling>("pooling", text("pooling")?)?.unwrap_or_default(),
            decode: read::<Decoding>("decode", text("decode")?)?.unwrap_or(Decoding::Scaled),
            limits: Limits::default(),
            weights,
            precision,
            device,
            batch: read("batch", text("batch")?)?,
        };
        device.check(precision).map_err(error)?;
        let threads: Option<usize> = read("threads", text("threads")?)?;
        if threads == Some(0) || config.batch == Some(0) {
            return Err(PyValueError::new_err("threads and batch: expected 1 or more, found 0"));
        }
        let cache_dir = settings.get_item("cache_dir")?.filter(|folder| !folder.is_none());
        Ok(NativeExtractor {
            config,
            store: luthier_cli::weights_store().map_err(|error| Error::new_err(error.to_string()))?,
            n_threads: threads.unwrap_or_else(|| available_parallelism().map_or(1, usize::from)),
            cache_dir: cache_dir.map(|folder| folder.extract()).transpose()?,
            cache_remote: text("cache_remote")?,
            loaded: Mutex::new(None),
        })
    }

    /// The number of features of an image.
    #[getter]
    fn n_features(&self) -> usize {
        self.config.views.width()
    }

    /// The features of images, `float32 [n, n_features]` in C order, and the place and the reason of each image that cannot be
    /// read: its features are NaN.
    fn embed<'py>(&self, py: Python<'py>, images: Vec<Image>) -> PyResult<(Bound<'py, PyByteArray>, Reasons)> {
        let images: Vec<ImageSource> = images.into_iter().map(ImageSource::from).collect();
        let flag = Flag::default();
        let embed = || luthier_extract::keep_torch_threads(|| self.embed_images(&images, &flag));
        let embedded = until_interrupted(py, |is| flag.set(is), embed)?;
        let (features, unreadable) = embedded.map_err(error)?;
        let n_bytes = size_of_val(features.as_slice());
        let array = PyByteArray::new_with(py, n_bytes, |bytes| {
            for (to, feature) in bytes.chunks_exact_mut(size_of::<f32>()).zip(&features) {
                to.copy_from_slice(&feature.to_ne_bytes());
            }
            Ok(())
        })?;
        Ok((array, unreadable))
    }
}
