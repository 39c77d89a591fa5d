use luthier_artifact::{Digest, ExtractorInfo, FeatureRows, FeatureTable, ReadRows};

use ndarray::ArrayView2;

use crate::{Error, HeldOutPredictions, Result};

/// Images with their labels and features. The features may be in memory, or in the cache, from where they are read in
/// blocks of rows.
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
            features,
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
