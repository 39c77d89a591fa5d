//! What a model file says of itself.

use std::path::Path;

use luthier_artifact::{Artifact as _, Digest, ExtractorInfo, Threshold};
use luthier_classify::Model;
use serde::Serialize;

use crate::Result;

/// What there is to know of a model before one uses it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelCard {
    /// The digest of the file: blake3, 64 hexadecimal digits.
    pub digest: String,
    /// The size of the file in bytes.
    pub bytes: u64,
    /// The format, for example `model/3`.
    pub format: &'static str,
    /// The classes in the order of their labels.
    pub classes: Vec<String>,
    /// How the network sees an image.
    pub extractor: ExtractorInfo,
    /// The number of training images.
    pub n_train: usize,
    /// The inverse strength of regularization.
    pub c: f64,
    /// The number of principal components.
    pub n_components: usize,
    /// What cross-validation says; `None` if C was given.
    pub held_out: Option<HeldOutCard>,
}

/// What cross-validation says of a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HeldOutCard {
    /// How many training images it held out.
    pub n: usize,
    /// The share of them that was predicted rightly, 0 to 1; `None` in models of versions that did not keep it.
    pub accuracy: Option<f64>,
    /// What tells known images from unknown ones.
    pub thresholds: Vec<Threshold>,
}

impl ModelCard {
    /// Reads a model file.
    ///
    /// # Errors
    /// Those of [`Model::load`].
    pub fn read(path: &Path) -> Result<Self> {
        Ok(ModelCard::of(&Model::load(path)?))
    }

    /// The card of a model. Its digest and size are those of the file that it makes.
    pub fn of(model: &Model) -> Self {
        let bytes = model.encode();
        let training = &model.training;
        let held_out = training.cross_validation.as_ref().map(|found| HeldOutCard {
            n: found.n_held_out,
            accuracy: found.accuracy,
            thresholds: found.thresholds.clone(),
        });
        ModelCard {
            digest: Digest::of(&bytes).to_string(),
            bytes: bytes.len() as u64,
            format: Model::FORMAT,
            classes: model.classes.clone(),
            extractor: model.extractor.clone(),
            n_train: training.n_train,
            c: training.c,
            n_components: training.n_components,
            held_out,
        }
    }
}
