use bhtsne::{Neighbor, tSNE};
use luthier_artifact::{Artifact, Digest, Key, ReadRows, json};
use ndarray::{Array2, ArrayView1, s};
use rayon::ThreadPoolBuilder;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::normalize;
use crate::{Error, Evaluation, Result};

/// How many rows are compared with all at once.
const BLOCK: usize = 256;

/// Fewer images are no map.
const LEAST: usize = 12;

/// How exactly far points are summed up: Barnes and Hut's angle, which t-SNE's authors recommend.
const THETA: f32 = 0.5;

const EPOCHS: usize = 750;

/// The map stage: evaluated images in a plane, so that those with like features lie together.
///
/// t-SNE (van der Maaten and Hinton, "Visualizing data using t-SNE", 2008, and "Accelerating t-SNE using tree-based
/// algorithms", 2014) on features of length 1. It begins with the graph's eigenvectors, not with random numbers, so that the
/// same images give the same map.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MapConfig {
    /// How many neighbours count for an image, about: 30 in the paper. Fewer where there are few images.
    pub perplexity: f64,
    /// How many images are on the map, at most. The default is 1,000: they are drawn in a second, and more are a cloud.
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
    pub const VERSION: u32 = 2;

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
        let neighbours = neighbours(&features, (3.0 * perplexity) as usize);
        let fit = || {
            let unused = vec![(); images.len()];
            let mut places = tSNE::<f32, (), 2>::new(&unused);
            (places.perplexity(perplexity as f32).epochs(EPOCHS))
                // Belkina and others, "Automated optimized parameters for t-SNE", 2019.
                .learning_rate((images.len() as f32 / 12.0).max(200.0))
                .spectral_init()
                .barnes_hut_with_neighbors(THETA, &neighbours);
            places.embedding()
        };
        // Several threads would round otherwise each time.
        let places = match ThreadPoolBuilder::new().num_threads(1).build() {
            Ok(one) => one.install(fit),
            Err(_) => fit(),
        };
        Ok(ImageMap {
            images,
            places: places
                .chunks_exact(2)
                .map(|place| [place[0].into(), place[1].into()])
                .collect(),
        })
    }
}

/// The `n` nearest other rows of each row, the nearest first, with their distances. Rows have the length 1.
fn neighbours(features: &Array2<f32>, n: usize) -> Vec<Vec<Neighbor<f32>>> {
    let starts: Vec<usize> = (0..features.nrows()).step_by(BLOCK).collect();
    let of_block = |&start: &usize| -> Vec<Vec<Neighbor<f32>>> {
        let end = (start + BLOCK).min(features.nrows());
        let cosines = features.slice(s![start..end, ..]).dot(&features.t());
        let rows = (start..end).zip(cosines.outer_iter());
        rows.map(|(row, cosines)| nearest(row, cosines, n)).collect()
    };
    starts.par_iter().flat_map_iter(of_block).collect()
}

fn nearest(row: usize, cosines: ArrayView1<'_, f32>, n: usize) -> Vec<Neighbor<f32>> {
    let mut others: Vec<usize> = (0..cosines.len()).filter(|&other| other != row).collect();
    let nearer = |a: &usize, b: &usize| cosines[*b].total_cmp(&cosines[*a]).then(a.cmp(b));
    if n < others.len() {
        others.select_nth_unstable_by(n, nearer);
        others.truncate(n);
    }
    others.sort_unstable_by(nearer);
    let neighbour = |index: usize| Neighbor {
        index,
        // Between points of length 1.
        distance: (2.0 - 2.0 * cosines[index]).max(0.0).sqrt(),
    };
    others.into_iter().map(neighbour).collect()
}
