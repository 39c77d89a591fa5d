use luthier_artifact::{Artifact, Digest, Key, ReadRows, json};
use ndarray::{Array2, s};
use serde::{Deserialize, Serialize};

use super::{normalize, tsne};
use crate::{Error, Evaluation, Result};

/// Fewer images are no map.
const LEAST: usize = 12;

/// The map stage: evaluated images in a plane, so that those with like features lie together.
///
/// t-SNE on features of length 1. It begins with their first two principal components, not with random numbers, so that the
/// same images give the same map.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MapConfig {
    /// How many neighbours count for an image, about. The default is 30, and fewer where there are few images.
    pub perplexity: f64,
    /// How many images are on the map, at most. The default is 1,000: more are a cloud.
    pub max_images: usize,
}

impl Default for MapConfig {
    fn default() -> Self {
        MapConfig {
            perplexity: 30.0,
            max_images: 1_000,
        }
    }
}

/// Where evaluated images lie on the map.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageMap {
    /// The digests of the images' bytes, ascending.
    pub images: Vec<Digest>,
    /// The place of each: across and up, in no unit.
    pub places: Vec<[f64; 2]>,
}

impl ImageMap {
    /// Where an image lies, if it is on the map.
    pub fn place(&self, image: &Digest) -> Option<[f64; 2]> {
        Some(self.places[self.images.binary_search(image).ok()?])
    }
}

impl Artifact for ImageMap {
    const FORMAT: &'static str = "map/2";

    fn encode(&self) -> Vec<u8> {
        json::encode(Self::FORMAT, self)
    }

    fn decode(bytes: &[u8]) -> luthier_artifact::Result<Self> {
        json::decode(Self::FORMAT, bytes)
    }
}

impl MapConfig {
    /// Changes when [`run`](MapConfig::run) gives other results.
    pub const VERSION: u32 = 3;

    /// The stage's key. `mapped` is the digest of the digests of the images and of their features.
    pub fn key(&self, mapped: Digest) -> Key {
        let MapConfig {
            perplexity,
            // What is mapped says which images.
            max_images: _,
        } = self;
        Key::stage("map", Self::VERSION)
            .field("perplexity", perplexity)
            .input("mapped", mapped)
            .finish()
    }

    /// The images of an evaluation that are mapped, each with its row in the evaluation; ascending.
    pub fn images(&self, evaluation: &Evaluation) -> Vec<(Digest, usize)> {
        let rows = evaluation.sample(self.max_images).into_iter();
        let mut images: Vec<(Digest, usize)> = rows.map(|row| (evaluation.rows[row].image, row)).collect();
        images.sort_unstable();
        images.dedup_by_key(|(image, _)| *image);
        images
    }

    /// Maps images, which are the rows `at` of a table.
    ///
    /// # Errors
    /// [`Error::Read`] if features cannot be read.
    pub fn run(&self, table: &dyn ReadRows<Feature = f32>, images: Vec<Digest>, at: &[usize]) -> Result<ImageMap> {
        if images.len() < LEAST {
            return Ok(ImageMap::default());
        }
        let mut features = Array2::zeros((images.len(), table.n_features()));
        for (place, &row) in at.iter().enumerate() {
            (table.read(row, features.slice_mut(s![place..place + 1, ..]))).map_err(Error::Read)?;
        }
        normalize(&mut features);
        let perplexity = self.perplexity.min((images.len() - 1) as f64 / 3.0);
        let places = tsne::embed(&features, perplexity);
        Ok(ImageMap {
            images,
            places: places.into_iter().map(|place| place.map(f64::from)).collect(),
        })
    }
}
