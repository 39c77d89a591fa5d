//! The model file, also when another takes its place.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use luthier::{ModelCard, Predictor, PredictorConfig};
use luthier_artifact::FileStat;
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
    pub(crate) store: WeightsStore,
    pub(crate) config: PredictorConfig,
}

/// A model's card, which another may replace.
pub(crate) type Card = Arc<RwLock<Arc<ModelCard>>>;

impl ModelSource {
    /// Opens the model, and has it answer once: what is made for the first image is then made.
    pub(crate) fn open(&self) -> Result<(Predictor, ModelCard)> {
        let predictor = Predictor::open(&self.path, &self.store, None, &self.config, &())?;
        let image = ImageSource::Bytes(sample_images()[0].into());
        predictor.predict(&[image], &(), |_, _| Ok::<(), luthier::Error>(()))?;
        let card = ModelCard::of(predictor.model());
        Ok((predictor, card))
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
        card: &Card,
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
            match self.open() {
                Ok((predictor, new)) => {
                    tracing::info!("{}: another model, {}", self.path.display(), new.digest);
                    desk.replace(predictor);
                    *card.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
                    metrics.reloads.inc();
                }
                Err(error) => tracing::warn!("{error}: the model that was there before still answers"),
            }
        }
    }
}
