//! Luthier as a library: photographs in folders → features → a trained model, an evaluation and predictions.
//!
//! - [`Predictor`]: opens a model, and answers to images, by path or by their bytes
//! - [`TrainingImages`]: which of the images that a model was trained on an image looks most like
//! - [`Engine`]: runs a [`Pipeline`] through a [`Cache`](luthier_cache::Cache), or parts of it, or says what it would run
//!   and why
//! - [`Session`]: people decide about images one by one, and a model that learns from it says which is next
//! - [`Sorter`] and [`Arrivals`]: put images into a folder for each answer, and wait for images that arrive in a folder
//!
//! `pipeline.rs` is the method: the order of the stages. `runner.rs` takes each stage through the cache.
//!
//! Nothing here prints, or reads arguments, the environment or `luthier.toml`. Warnings go to `tracing`, progress to an
//! [`Observer`](luthier_artifact::Observer).
//!
//! ```no_run
//! use luthier::{Predictor, PredictorConfig};
//! use luthier_extract::WeightsStore;
//!
//! # fn main() -> luthier::Result<()> {
//! let store = WeightsStore::new("weights".into(), None);
//! let predictor = Predictor::open("models/model.safetensors".as_ref(), &store, None, &PredictorConfig::default(), &())?;
//! for prediction in predictor.predict_files(&["harp.jpg".into()])? {
//!     println!("{}", prediction.map_or_else(|reason| reason, |prediction| prediction.answer));
//! }
//! # Ok(())
//! # }
//! ```

mod arrivals;
mod engine;
mod error;
mod estimate;
mod export;
mod features_folder;
mod history;
mod model_card;
mod moments_folder;
mod pipeline;
mod predictor;
mod reason;
mod relabel;
mod report;
mod results;
mod runner;
mod session;
mod shard;
mod sorter;
mod thumbnails;
mod training_images;
mod views;
pub mod words;

pub use arrivals::Arrivals;
pub use engine::{
    Engine, ExtractSummary, ImageCounts, JudgeConfig, MomentsSummary, OutputPaths, PipelineSummary, Plan, PlannedStage,
    ShardSummary, TestFigures, TrainConfig,
};
pub use error::{Error, Result};
pub use estimate::About;
pub use export::MODEL_FILE;
pub use history::EarlierRun;
pub use model_card::{HeldOutCard, ModelCard};
pub use pipeline::{Data, Pipeline, describe_c, describe_components};
pub use predictor::{ClassProbability, Prediction, Predictor, PredictorConfig, UNKNOWN};
pub use reason::{Fate, ImageChange, ImageChanges, Reason, Reasons, RenamedClass, Setting, Weights, input_name, short};
pub use relabel::relabel;
pub use report::is_untrained;
pub use runner::{STAGES, StageReport, Status, VIEWS};
pub use session::{
    Answer, CopyOf, Item, Judgement, Progress, Session, SessionFile, SessionImage, Snapshot, Subject, Suggestion, Task,
    Why,
};
pub use shard::Shard;
pub use sorter::{Sorter, Transfer};
pub use training_images::{NearestImage, TrainingImages};
pub use views::{JudgedView, JudgedViews, ViewsConfig};
