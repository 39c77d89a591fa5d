use luthier_artifact::{Artifact, Digest, Key, ReadRows, Split, json};
use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Error, Evaluation, Result};

/// How many training images are compared at once: 16 MB of features.
const TRAIN_BLOCK: usize = 2048;
/// How many test images a thread compares with them.
const TEST_BLOCK: usize = 64;

/// The neighbours stage: the training images nearest to mistakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighboursConfig {
    /// How many neighbours an image has.
    pub n_neighbors: usize,
    /// For how many wrongly predicted images neighbours are looked for: the most confident mistakes.
    pub max_images: usize,
}

impl Default for NeighboursConfig {
    fn default() -> Self {
        NeighboursConfig {
            n_neighbors: 3,
            max_images: 1_000,
        }
    }
}

/// An image that neighbours are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Its row in the evaluation.
    pub row: usize,
    /// Its row in the table of its split.
    pub at: usize,
}

/// The nearest training images of evaluated images, by ascending row.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NearestImages(pub Vec<Neighbours>);

/// The training images most like an evaluated image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Neighbours {
    /// The row of the image in the evaluation.
    pub row: usize,
    /// Its nearest training images, the nearest first.
    pub nearest: Vec<Neighbour>,
}

/// A training image near a test image.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Neighbour {
    /// The row of the training image.
    pub row: usize,
    /// The cosine between the features of both, -1 to 1.
    pub cosine: f64,
}

impl Artifact for NearestImages {
    const FORMAT: &'static str = "nearest-images/1";

    fn encode(&self) -> Vec<u8> {
        json::encode(Self::FORMAT, self)
    }

    fn decode(bytes: &[u8]) -> luthier_artifact::Result<Self> {
        json::decode(Self::FORMAT, bytes)
    }
}

impl NeighboursConfig {
    /// Changes when [`run`](NeighboursConfig::run) gives other results.
    pub const VERSION: u32 = 2;

    /// The rows of the evaluation that neighbours are looked for: the most confident mistakes, by ascending row.
    pub fn rows(&self, evaluation: &Evaluation) -> Vec<usize> {
        let mut wrong: Vec<usize> = (0..evaluation.n)
            .filter(|&row| !evaluation.rows[row].is_correct())
            .collect();
        let confidence = |row: &usize| evaluation.rows[*row].predicted_probability();
        wrong.sort_by(|a, b| confidence(b).total_cmp(&confidence(a)).then(a.cmp(b)));
        wrong.truncate(self.max_images);
        wrong.sort_unstable();
        wrong
    }

    /// The stage's key. `asked` is the digest of the images that neighbours are looked for,
    /// [`digest_of`](Self::digest_of).
    pub fn key(&self, train: Digest, test: Digest, asked: Digest) -> Key {
        let NeighboursConfig {
            n_neighbors,
            max_images: _, // The rows say which images.
        } = self;
        Key::stage("neighbours", Self::VERSION)
            .field("neighbours", n_neighbors)
            .input("train", train)
            .input("test", test)
            .input("mistakes", asked)
            .finish()
    }

    /// The digest of what is asked for, for the key.
    pub fn digest_of(split: Split, asked: &[Asked]) -> Digest {
        let numbers = asked.iter().flat_map(|asked| [asked.row, asked.at]);
        let bytes = numbers.flat_map(|number| (number as u64).to_le_bytes());
        let bytes: Vec<u8> = split.to_string().into_bytes().into_iter().chain(bytes).collect();
        Digest::of(&bytes)
    }

    /// The training images nearest to images of the table of a split, by the cosine between their features. A training
    /// image is no neighbour of itself.
    ///
    /// Training images are read once, in blocks.
    ///
    /// # Errors
    /// [`Error::Read`] if features cannot be read.
    pub fn run(
        &self,
        train: &dyn ReadRows<Feature = f32>,
        (split, table): (Split, &dyn ReadRows<Feature = f32>),
        asked: &[Asked],
    ) -> Result<NearestImages> {
        if asked.is_empty() {
            return Ok(NearestImages::default());
        }
        let mut features = Array2::zeros((asked.len(), table.n_features()));
        for (place, asked) in asked.iter().enumerate() {
            let row = features.slice_mut(s![place..place + 1, ..]);
            table.read(asked.at, row).map_err(Error::Read)?;
        }
        normalize(&mut features);
        let mut found: Vec<Neighbours> = (asked.iter())
            .map(|asked| Neighbours {
                row: asked.row,
                nearest: Vec::new(),
            })
            .collect();
        let n = train.n_rows();
        for start in (0..n).step_by(TRAIN_BLOCK) {
            let mut block = Array2::zeros((TRAIN_BLOCK.min(n - start), train.n_features()));
            train.read(start, block.view_mut()).map_err(Error::Read)?;
            normalize(&mut block);
            (found.par_chunks_mut(TEST_BLOCK).enumerate()).for_each(|(chunk, found)| {
                let first = chunk * TEST_BLOCK;
                let places = first..first + found.len();
                let features = features.slice(s![places.clone(), ..]);
                self.compare(split, (&asked[places], features), (start, block.view()), found);
            });
        }
        Ok(NearestImages(found))
    }

    fn compare(
        &self,
        split: Split,
        (asked, features): (&[Asked], ArrayView2<'_, f32>),
        (start, block): (usize, ArrayView2<'_, f32>),
        found: &mut [Neighbours],
    ) {
        let cosines = features.dot(&block.t());
        for ((cosines, Neighbours { nearest, .. }), asked) in cosines.outer_iter().zip(found).zip(asked) {
            for (place, &cosine) in cosines.iter().enumerate() {
                if split == Split::Train && asked.at == start + place {
                    continue;
                }
                let cosine = f64::from(cosine);
                if nearest.len() < self.n_neighbors || nearest.last().is_some_and(|last| cosine > last.cosine) {
                    let neighbour = Neighbour {
                        row: start + place,
                        cosine,
                    };
                    // Behind those as near, which come first.
                    let behind = nearest.partition_point(|nearer| nearer.cosine >= cosine);
                    nearest.insert(behind, neighbour);
                    nearest.truncate(self.n_neighbors);
                }
            }
        }
    }
}

/// Gives each row the length 1; a row of zeros stays.
pub fn normalize(rows: &mut Array2<f32>) {
    for mut row in rows.outer_iter_mut() {
        let length = row.dot(&row).sqrt();
        if length > 0.0 {
            row /= length;
        }
    }
}
