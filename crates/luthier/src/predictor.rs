//! A model and the network that fits it: images → answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use luthier_artifact::{Digest, ExtractorInfo, Observer, folder_of};
use luthier_cache::Cache;
use luthier_classify::{DistanceMeter, Model, Scorer, Threshold};
use luthier_extract::{
    CachedExtractor, Device, ExtractorConfig, ImageFeatures, ImageSource, Limits, View, Views, WeightsSource,
    WeightsStore,
};
use ndarray::{Axis, aview1};
use serde::Serialize;

use crate::{Error, Result};

/// The answer to an image that is not like those of any class.
pub const UNKNOWN: &str = "unknown";

/// How a [`Predictor`] works, beside what its model says.
#[derive(Clone, Debug)]
pub struct PredictorConfig {
    /// The weights of the network; `None` for those that the model names, which [`WeightsStore::find`] finds.
    pub weights: Option<WeightsSource>,
    /// Where the network runs.
    pub device: Device,
    /// How many images go through the network at once; `None` for one on the CPU, 128 on CUDA and 32 on Apple's GPU.
    pub batch: Option<usize>,
    /// How many threads decode and compute.
    pub n_threads: usize,
    /// How many images are to come; `None` if nobody knows. Threads are divided by it, no answer depends on it.
    pub n_images: Option<usize>,
    /// How much an image may cost; one that costs more cannot be read.
    pub limits: Limits,
    /// How many classes an answer names.
    pub top_k: usize,
    /// The answer is [`UNKNOWN`] if the most probable class is less probable than this, 0 to 1.
    pub min_confidence: Option<f64>,
    /// The answer is [`UNKNOWN`] unless the image is as sure, and as near to a class, as this percentage of the training
    /// images that cross-validation held out, for example 95.
    pub keep_known: Option<f64>,
}

impl Default for PredictorConfig {
    /// All cores, the three most probable classes, and never `unknown`.
    fn default() -> Self {
        PredictorConfig {
            weights: None,
            device: Device::best(),
            batch: None,
            n_threads: available_parallelism().map_or(1, usize::from),
            n_images: None,
            limits: Limits::default(),
            top_k: 3,
            min_confidence: None,
            keep_known: None,
        }
    }
}

/// What a model says of an image.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// The digest of the bytes that were read.
    #[serde(skip)]
    pub image: Digest,
    /// The features of all views, `[d]`.
    #[serde(skip)]
    pub features: Vec<f32>,
    /// The most probable class, or [`UNKNOWN`].
    pub answer: String,
    /// The distance to the nearest class, in standard deviations, with [`keep_known`](PredictorConfig::keep_known).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distance: Option<f64>,
    /// The most probable classes, the most probable first.
    pub predictions: Vec<ClassProbability>,
}

/// A class and how probable it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassProbability {
    /// The class.
    pub class: String,
    /// 0 to 1.
    pub probability: f64,
}

/// A model with the network that fits it, ready to predict.
pub struct Predictor {
    model: Model,
    scorer: Scorer,
    extractor: CachedExtractor,
    views: Views,
    top_k: usize,
    min_confidence: f64,
    keep_known: Option<Threshold>,
}

impl Predictor {
    /// Opens a model file, and loads the network with the weights, views and number format that the model was trained with.
    /// With a cache, the network is loaded only for an image that the cache does not know, and what it computes is kept.
    ///
    /// # Errors
    /// [`Error::Classify`] if the file is no model; [`Error::OtherWeights`] and [`Error::UnknownWeights`] if the weights are
    /// not at hand; [`Error::NoThresholds`], [`Error::NoSuchThreshold`] and [`Error::ClassUnknown`] if the model cannot
    /// tell what is unknown; [`Error::Extract`] if the network cannot be loaded.
    pub fn open(
        path: &Path,
        store: &WeightsStore,
        cache: Option<Cache>,
        config: &PredictorConfig,
        observer: &dyn Observer,
    ) -> Result<Predictor> {
        let model = Model::load(path)?;
        let can_be_unknown = config.min_confidence.is_some() || config.keep_known.is_some();
        if can_be_unknown && model.classes.iter().any(|class| class == UNKNOWN) {
            return Err(Error::ClassUnknown { model: path.to_owned() });
        }
        let keep_known = config
            .keep_known
            .map(|percent| threshold(&model, percent, path))
            .transpose()?;
        let extractor = extractor_config(config, store, &model.extractor, path)?;
        Ok(Predictor {
            scorer: model.scorer(),
            views: extractor.views.clone(),
            extractor: load_network(extractor, config, (store, cache), &model.extractor, path, observer)?,
            model,
            top_k: config.top_k,
            min_confidence: config.min_confidence.unwrap_or(0.0),
            keep_known,
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// How the network sees images.
    pub fn extractor(&self) -> &ExtractorConfig {
        self.extractor.config()
    }

    /// Predicts image files; the same order. An image that cannot be read gives the reason.
    ///
    /// # Errors
    /// [`Error::Extract`] if the network fails.
    pub fn predict_files(&self, files: &[PathBuf]) -> Result<Vec<std::result::Result<Prediction, String>>> {
        let images: Vec<ImageSource> = files.iter().cloned().map(ImageSource::File).collect();
        let mut predictions = Vec::with_capacity(images.len());
        self.predict(&images, &(), |_, prediction| {
            predictions.push(prediction);
            Ok::<(), Error>(())
        })?;
        Ok(predictions)
    }

    /// Predicts images, from files or from memory. `each` gets the place of each image in `images` and its prediction, in
    /// order and as soon as it is there. For an image that cannot be read it gets the reason.
    ///
    /// # Errors
    /// [`Error::Extract`] if the network fails or the observer interrupts, and whatever `each` returns.
    pub fn predict<E: From<Error>>(
        &self,
        images: &[ImageSource],
        observer: &dyn Observer,
        mut each: impl FnMut(usize, std::result::Result<Prediction, String>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let meter = self.keep_known.and_then(|_| self.model.distance_meter());
        let mut failure = None;
        let (mut waiting, mut next) = (BTreeMap::new(), 0);
        let done = self.extractor.features(images, observer, |place, features| {
            waiting.insert(place, self.outcome(features, meter.as_ref()));
            while let Some(outcome) = waiting.remove(&next) {
                // The extractor's callback knows only its own errors: others are kept for later.
                if let Err(error) = outcome.map_err(E::from).and_then(|outcome| each(next, outcome)) {
                    failure = Some(error);
                    return Err(luthier_extract::Error::Interrupted);
                }
                next += 1;
            }
            Ok(())
        });
        done.map_err(|error| failure.take().unwrap_or_else(|| Error::from(error).into()))
    }

    /// The prediction, or why there is none.
    fn outcome(
        &self,
        features: ImageFeatures,
        meter: Option<&DistanceMeter<'_>>,
    ) -> Result<std::result::Result<Prediction, String>> {
        let (image, rows) = match features {
            ImageFeatures::Unreadable { reason } => return Ok(Err(reason)),
            ImageFeatures::Rows { digest, rows } => (digest, rows),
        };
        let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        let features = self.views.combine(&rows);
        if let Some((place, value)) = features.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            return Ok(Err(format!("feature {place} is {value}, expected a finite number")));
        }
        self.prediction(image, features, meter).map(Ok)
    }

    fn prediction(&self, image: Digest, features: Vec<f32>, meter: Option<&DistanceMeter<'_>>) -> Result<Prediction> {
        let row = aview1(&features).insert_axis(Axis(0));
        let probabilities = self.scorer.predict_proba(row)?;
        let mut ranked: Vec<(usize, f64)> = probabilities.row(0).iter().copied().enumerate().collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        let (best, confidence) = ranked[0];
        let distance = match meter {
            Some(meter) => Some(meter.distances(row)?[0]),
            None => None,
        };
        let mut is_known = confidence >= self.min_confidence;
        if let Some(threshold) = self.keep_known {
            let is_far = matches!((distance, threshold.distance), (Some(found), Some(farthest)) if found > farthest);
            is_known &= confidence >= threshold.probability && !is_far;
        }
        let class = |label: usize| self.model.classes[label].clone();
        let best_first = ranked.into_iter().take(self.top_k);
        Ok(Prediction {
            image,
            features,
            answer: if is_known { class(best) } else { UNKNOWN.to_owned() },
            distance,
            predictions: best_first
                .map(|(label, probability)| ClassProbability {
                    class: class(label),
                    probability,
                })
                .collect(),
        })
    }
}

/// The threshold of a model that keeps this percentage of known images.
fn threshold(model: &Model, percent: f64, path: &Path) -> Result<Threshold> {
    let Some(found) = &model.training.cross_validation else {
        return Err(Error::NoThresholds { model: path.to_owned() });
    };
    let is_asked = |threshold: &&Threshold| (100.0 * threshold.share - percent).abs() < 1e-9;
    found.thresholds.iter().find(is_asked).copied().ok_or_else(|| {
        let percents = found
            .thresholds
            .iter()
            .map(|threshold| (100.0 * threshold.share).to_string());
        Error::NoSuchThreshold {
            found: percent,
            known: percents.collect::<Vec<_>>().join(", "),
        }
    })
}

/// Loads the network, if its weights are those that the model was trained with.
fn load_network(
    extractor: ExtractorConfig,
    config: &PredictorConfig,
    (store, cache): (&WeightsStore, Option<Cache>),
    info: &ExtractorInfo,
    model: &Path,
    observer: &dyn Observer,
) -> Result<CachedExtractor> {
    let weights = extractor.weights.clone();
    let check = || check_weights(&weights, info, model);
    let load = || {
        CachedExtractor::new(
            extractor,
            store.clone(),
            config.n_threads,
            config.n_images,
            cache,
            observer,
        )
    };
    if let WeightsSource::File(_) = weights {
        // Hashing a file takes about as long as loading it: beside it.
        let (checked, network) = std::thread::scope(|scope| {
            let checked = scope.spawn(check);
            let network = load();
            (checked.join().expect("checking does not panic"), network)
        });
        checked?;
        Ok(network?)
    } else {
        check()?;
        Ok(load()?)
    }
}

/// An error unless these are the weights that the model was trained with.
fn check_weights(source: &WeightsSource, info: &ExtractorInfo, model: &Path) -> Result<()> {
    let expected = &info.weights_sha256;
    let found = source.sha256()?;
    if found == *expected {
        return Ok(());
    }
    Err(Error::OtherWeights {
        model: model.to_owned(),
        expected: expected.clone(),
        found,
        name: WeightsSource::known(expected).is_some().then(|| info.weights.clone()),
    })
}

/// The extractor that the model was trained with, or an error if its weights are not found.
fn extractor_config(
    config: &PredictorConfig,
    store: &WeightsStore,
    info: &ExtractorInfo,
    model: &Path,
) -> Result<ExtractorConfig> {
    let ExtractorInfo {
        views,
        pooling,
        combine,
        decode,
        weights,
        weights_sha256,
        precision,
    } = info;
    let unknown = |what: &'static str, value: &str| Error::UnknownSetting {
        model: model.to_owned(),
        what,
        value: value.to_owned(),
    };
    let find = || store.find(weights_sha256, folder_of(model));
    let source = config.weights.clone().or_else(find);
    let views: Vec<View> = (views.iter())
        .map(|view| view.parse().map_err(|_| unknown("view", view)))
        .collect::<Result<_>>()?;
    let combination = combine.parse().map_err(|_| unknown("combination", combine))?;
    Ok(ExtractorConfig {
        views: Views::new(views, combination).map_err(|_| unknown("views", &info.views.join(", ")))?,
        pooling: pooling.parse().map_err(|_| unknown("pooling", pooling))?,
        decode: decode.parse().map_err(|_| unknown("decoding", decode))?,
        limits: config.limits,
        weights: source.ok_or_else(|| Error::UnknownWeights {
            model: model.to_owned(),
            weights: weights.clone(),
            sha256: weights_sha256.clone(),
        })?,
        precision: precision.parse().map_err(|_| unknown("precision", precision))?,
        device: config.device,
        batch: config.batch,
    })
}
