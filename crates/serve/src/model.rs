//! The model file and its training images, also when another takes its place.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use luthier::{ModelCard, Predictor, PredictorConfig, TrainingImages};
use luthier_artifact::{FileStat, Observer};
use luthier_extract::{ImageSource, WeightsStore, sample_images};

use crate::Result;
use crate::desk::Desk;
use crate::metrics::Metrics;

/// How often the model file is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// Where the model is, and how it is opened.
#[derive(Clone, Debug)]
pub(crate) struct ModelSource {
    pub(crate) path: PathBuf,
    /// The folder of the features that it was trained on, if the nearest training images are to be told.
    pub(crate) features: Option<PathBuf>,
    pub(crate) store: WeightsStore,
    pub(crate) config: PredictorConfig,
}

/// What is known of a model beside its answers.
pub(crate) struct About {
    pub(crate) card: ModelCard,
    pub(crate) training: Option<TrainingImages>,
}

/// A model that can answer.
pub(crate) struct Opened {
    pub(crate) predictor: Predictor,
    pub(crate) about: Arc<About>,
}

/// What is known of the model that answers, which another may replace.
pub(crate) type Current = Arc<RwLock<Arc<About>>>;

impl ModelSource {
    /// Opens the model, and has it answer once: what is made for the first image is then made.
    pub(crate) fn open(&self, observer: &dyn Observer) -> Result<Opened> {
        let predictor = Predictor::open(&self.path, &self.store, None, &self.config, observer)?;
        let image = ImageSource::Bytes(sample_images()[0].into());
        predictor.predict(&[image], observer, |_, _| Ok::<(), luthier::Error>(()))?;
        let model = predictor.model();
        let training = (self.features.as_deref())
            .map(|folder| TrainingImages::read(folder, model))
            .transpose()?;
        let card = ModelCard::of(model);
        Ok(Opened {
            predictor,
            about: Arc::new(About { card, training }),
        })
    }

    /// What tells whether the file is another one.
    pub(crate) fn stat(&self) -> Option<FileStat> {
        FileStat::of(&self.path).ok()
    }

    /// Looks at the file from time to time, until `is_over`. A new model answers from the next batch on; one that cannot be
    /// used is told of once. `known` is the stat of the file before the model was opened.
    pub(crate) fn watch(
        &self,
        mut known: Option<FileStat>,
        desk: &Desk,
        current: &Current,
        metrics: &Metrics,
        is_over: impl Fn() -> bool,
    ) {
        while !is_over() {
            std::thread::sleep(INTERVAL);
            let found = self.stat();
            if found.is_none() || found == known {
                continue;
            }
            known = found;
            match self.open(&()) {
                Ok(model) => {
                    let digest = &model.about.card.digest;
                    tracing::info!("{}: another model, {digest}", self.path.display());
                    *current.write().unwrap_or_else(PoisonError::into_inner) = model.about.clone();
                    desk.replace(model);
                    metrics.reloads.inc();
                }
                Err(error) => tracing::warn!("{error}: the model that was there before still answers"),
            }
        }
    }
}
