//! What cross-validation on the training images found, as plain data: the model file and the report carry it.

use serde::{Deserialize, Serialize};

/// What cross-validation on the training images found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CrossValidationInfo {
    /// The number of folds.
    pub folds: usize,
    /// The number of images that were held out in some fold.
    pub n_held_out: usize,
    /// The share of these images that is predicted rightly with the chosen C, 0 to 1; `None` in models of versions that
    /// did not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// How well each candidate did, in ascending order of C.
    pub candidates: Vec<CandidateC>,
    /// Thresholds that most of the held-out images pass, in ascending order of their share.
    pub thresholds: Vec<Threshold>,
    /// What fewer training images would have given with the chosen C, by ascending number.
    pub learning_curve: Vec<LearningPoint>,
}

/// How well one C did in cross-validation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CandidateC {
    /// The inverse strength of regularization.
    pub c: f64,
    /// The mean over the folds of the mean log loss (natural logarithm) on the held-out images.
    pub log_loss: f64,
    /// The standard error of that mean.
    pub standard_error: f64,
}

/// What to ask of a prediction, so that a given share of images of known classes passes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Threshold {
    /// The share of the held-out images that pass both conditions, 0 to 1.
    pub share: f64,
    /// The smallest probability of the most probable class.
    pub probability: f64,
    /// The largest distance to the nearest class, in standard deviations; `None` if the model knows no distances.
    pub distance: Option<f64>,
}

/// How well models do that were trained on a share of the images.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LearningPoint {
    /// The share of the images that were trained on, above 0, at most 1.
    pub share: f64,
    /// The mean number of these images.
    pub n_train: f64,
    /// The share of the held-out images that were predicted rightly.
    pub accuracy: f64,
    /// How far the accuracy is below the accuracy of the last point, and the standard error of that difference over
    /// the images. Both are 0 for the last point.
    pub behind: [f64; 2],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_models_did_not_keep_before_is_not_known() {
        let json = r#"{"folds":5,"n_held_out":12,"candidates":[],"thresholds":[],"learning_curve":[]}"#;
        let found: CrossValidationInfo = serde_json::from_str(json).unwrap();
        assert_eq!((found.n_held_out, found.accuracy), (12, None));
        assert_eq!(serde_json::to_string(&found).unwrap(), json);
    }
}
