use luthier_artifact::{Digest, ExtractorInfo, FeatureRows, FeatureTable, ReadRows};
use ndarray::ArrayView2;

use crate::{Error, HeldOutPredictions, Result};

/// Images with their labels and features. The features are in memory, or are read in blocks of rows from where they
/// are kept.
#[derive(Clone, Copy, Debug)]
pub struct Training<'a, R> {
    /// The class names in label order, `k` of them.
    pub classes: &'a [String],
    /// How the features were made.
    pub extractor: &'a ExtractorInfo,
    /// The label of each row, `[n]`.
    pub labels: &'a [usize],
    /// The image of each row, `[n]`.
    pub images: &'a [Digest],
    /// Groups of images that look alike: cross-validation holds the images of a group out together. Digests without a
    /// row have no effect.
    pub look_alikes: &'a [Vec<Digest>],
    /// `f32 [n, d]`.
    pub features: R,
}

impl<'a> From<&'a FeatureTable> for Training<'a, ArrayView2<'a, f32>> {
    fn from(table: &'a FeatureTable) -> Self {
        Training {
            classes: &table.classes,
            extractor: &table.extractor,
            labels: &table.labels,
            images: &table.images,
            look_alikes: &[],
            features: table.features(),
        }
    }
}

impl<'a, R: ReadRows<Feature = f32>> Training<'a, R> {
    /// Rows with their features, wherever these are kept.
    pub fn new(rows: &'a FeatureRows, features: R) -> Self {
        Training {
            classes: &rows.classes,
            extractor: &rows.extractor,
            labels: &rows.labels,
            images: &rows.images,
            look_alikes: &[],
            features,
        }
    }
}

impl<'a, R> Training<'a, R> {
    /// These rows, where the images of each group look alike.
    ///
    /// Cross-validation holds the images of a group out together, as scikit-learn's `StratifiedGroupKFold` does with
    /// its `groups`: a model that has seen one of them says too much about the others. Groups that share an image are
    /// one group. The order of groups and images has no effect.
    #[must_use]
    pub fn with_look_alikes(self, groups: &'a [Vec<Digest>]) -> Self {
        Training {
            look_alikes: groups,
            ..self
        }
    }
}

impl<R: ReadRows<Feature = f32>> Training<'_, R> {
    /// The number of rows, `n`.
    pub(crate) fn n_rows(&self) -> usize {
        self.labels.len()
    }

    /// The number of classes, `k`.
    pub(crate) fn n_classes(&self) -> usize {
        self.classes.len()
    }

    /// The labels of some rows.
    pub(crate) fn labels_of(&self, rows: &[usize]) -> Vec<usize> {
        rows.iter().map(|&row| self.labels[row]).collect()
    }

    /// The digest of the images and their labels.
    pub(crate) fn digest(&self) -> Digest {
        HeldOutPredictions::digest_of(self.images, self.labels)
    }

    /// An error that names the first class without an image.
    pub(crate) fn check_classes(&self) -> Result<()> {
        match (0..self.n_classes()).find(|label| !self.labels.contains(label)) {
            None => Ok(()),
            Some(label) => Err(Error::TooFewImages {
                class: self.classes[label].clone(),
                expected: 1,
                found: 0,
            }),
        }
    }
}
