//! The images that a model was trained on, and which of them an image looks most like.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use luthier_artifact::{Digest, Split, file_names};
use luthier_classify::Model;
use luthier_eval::normalize;
use luthier_extract::thumbnail;
use ndarray::{Array2, aview1};
use serde::Serialize;

use crate::Result;
use crate::features_folder::{read_json, read_table};
use crate::pipeline::check_match;

/// The training images of a model, with their features in memory: 8 KB an image and view.
#[derive(Debug)]
pub struct TrainingImages {
    /// Rows of length 1, `[n, d]`.
    features: Array2<f32>,
    images: Vec<TrainingImage>,
    rows: HashMap<Digest, usize>,
}

#[derive(Debug)]
struct TrainingImage {
    path: PathBuf,
    class: String,
    digest: Digest,
}

/// A training image near another image.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NearestImage {
    /// The digest of the image's bytes: blake3, 64 hexadecimal digits.
    pub digest: Digest,
    /// Its class.
    pub class: String,
    /// The cosine between the features of both, -1 to 1.
    pub cosine: f32,
}

impl TrainingImages {
    /// Reads what `luthier pipeline` or `luthier extract` wrote to a folder of features.
    ///
    /// # Errors
    /// [`Error::NoFeatures`](crate::Error::NoFeatures), [`Error::FeaturesFile`](crate::Error::FeaturesFile) and
    /// [`Error::MixedFeatures`](crate::Error::MixedFeatures) if there are none that can be used;
    /// [`Error::OtherExtractor`](crate::Error::OtherExtractor) and [`Error::OtherClasses`](crate::Error::OtherClasses) if
    /// they are not the model's.
    pub fn read(folder: &Path, model: &Model) -> Result<Self> {
        let (json, _) = read_json(folder)?;
        let table = read_table(folder, Split::Train, &json)?;
        check_match(model, &table.rows)?;
        let mut features = table.features;
        normalize(&mut features);
        let root = file_names::path_of(json.folders.get(Split::Train));
        let images: Vec<TrainingImage> = (json.rows.train.into_iter())
            .map(|row| TrainingImage {
                path: root.join(file_names::path_of(&row.file)),
                class: row.class,
                digest: row.digest,
            })
            .collect();
        let rows = images.iter().enumerate().map(|(row, image)| (image.digest, row));
        Ok(TrainingImages {
            features,
            rows: rows.collect(),
            images,
        })
    }

    /// The `n` training images whose features have the largest cosine to `features`, `[d]`; the nearest first. There are
    /// none near features of another width.
    pub fn nearest(&self, features: &[f32], n: usize) -> Vec<NearestImage> {
        if features.len() != self.features.ncols() {
            return Vec::new();
        }
        let features = aview1(features);
        let length = features.dot(&features).sqrt();
        let cosines = self.features.dot(&features) / length;
        let mut rows: Vec<usize> = (0..self.images.len()).collect();
        rows.sort_by(|&a, &b| cosines[b].total_cmp(&cosines[a]));
        let nearest = rows.into_iter().take(n);
        nearest
            .map(|row| NearestImage {
                digest: self.images[row].digest,
                class: self.images[row].class.clone(),
                cosine: cosines[row],
            })
            .collect()
    }

    /// A small JPEG of the training image with this digest, at most `side` pixels wide and high. `None` if there is no
    /// such image, or its file is gone, has changed or cannot be read.
    pub fn thumbnail(&self, digest: &Digest, side: u32) -> Option<Vec<u8>> {
        let image = &self.images[*self.rows.get(digest)?];
        let bytes = std::fs::read(&image.path).ok()?;
        (Digest::of(&bytes) == *digest).then(|| thumbnail(&bytes, side).ok())?
    }
}
