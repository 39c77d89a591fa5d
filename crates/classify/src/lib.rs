//! Logistic regression on principal components, the choice of its C, and the model file.
//!
//! - [`LogisticRegression`] → [`FittedLogisticRegression`]: scikit-learn's model, to its optimum, by either [`Solver`]
//! - [`ChooseC`]: a given C, or the one of smallest log loss in stratified cross-validation
//! - [`CrossValidation`] → [`HeldOut`]: the table of C against log loss, and what models say of images they have not
//!   seen; [`Temperature`], [`Threshold`] and [`ClassDistance`]: what follows from that for predictions
//! - [`Training`], [`ClassifyConfig`] → [`Model`] and [`HeldOutPredictions`]: the stage `classify`; an encoded model *is*
//!   the file `model.safetensors`
//! - [`Classifier`]: smartcore's `SupervisedEstimator` and `Predictor` over the same code
//!
//! Everything is computed in `f64`, and gives the same bytes for any number of threads.
//!
//! This crate knows features and labels: no images, no tensors of a network.

mod calibration;
mod choice;
mod cross_validation;
mod distance;
mod error;
mod estimator;
mod folds;
mod held_out;
mod learning_curve;
mod logistic;
mod model;
mod softmax;
mod stage;
mod training;

pub use calibration::{Temperature, confidences, thresholds_that_keep};
pub use choice::{ChooseC, Rule};
pub use cross_validation::{CrossValidation, HeldOut, HeldOutScores};
pub use distance::ClassDistance;
pub use error::{Error, Result};
pub use estimator::Classifier;
pub use held_out::HeldOutPredictions;
pub use logistic::{ClassWeight, FittedLogisticRegression, LogisticRegression};
pub use luthier_artifact::{CandidateC, CrossValidationInfo, LearningPoint, Threshold};
pub use luthier_features::Solver;
pub use model::{DistanceMeter, Model, Scorer, TrainingInfo};
pub use stage::{Classified, ClassifyConfig, HeldOutFigures};
pub use training::Training;
