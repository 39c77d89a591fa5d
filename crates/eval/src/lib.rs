//! How well a model does: the metrics, and the report that shows them.
//!
//! - [`EvaluateConfig::run`] turns [`Predictions`] into an [`Evaluation`]; it is a pure function
//! - [`TestProbabilities`] keeps the many numbers that an [`Evaluation`] leaves out
//! - [`DuplicatesConfig`], [`SuspectsConfig`] and [`NeighboursConfig`] find images that deserve a look: [`Findings`]
//! - [`write_report`] renders an [`Evaluation`] and its [`Context`] as a page, tables and plots
//! - [`Comparison`] says what became better and worse from one report to another
//!
//! Figures agree with scikit-learn's. This crate knows nothing of tensors or training.

mod comparison;
mod error;
mod evaluate;
mod findings;
mod interval;
mod metrics;
mod reliability;
mod report;

pub use comparison::{
    Answer, Change, ClassChange, Comparison, FactChange, Flip, McNemar, Relabelled, ReportedRun, Side, Verdict,
};
pub use error::{Error, Result};
pub use evaluate::{EvaluateConfig, EvaluatedImage, Evaluation, HeldOutFigures, Predictions, TestProbabilities};
pub use findings::{
    Duplicates, DuplicatesConfig, Findings, HeldOutImages, ImageMap, ImageRef, Likeness, LookAlikeGroup, LookAlikes,
    MapConfig, NearestImages, Neighbour, Neighbours, NeighboursConfig, Suspect, Suspects, SuspectsConfig, normalize,
};
pub use interval::{BOOTSTRAP_RESAMPLES, Estimate};
pub use metrics::ClassMetrics;
pub use reliability::{Reliability, ReliabilityBin};
pub use report::{
    CheckedLabels, Context, CrossValidated, Images, REPORT_FILES, Skipped, StageTime, Thumbnail, Variance, Warning,
    write_report,
};
