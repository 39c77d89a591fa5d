use std::cmp::Ordering;

use luthier_artifact::{Artifact, Digest, Key, Observer, ReadRows, Split, json};
use ndarray::{Array2, ArrayView1, ArrayView2, Axis, s};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{ImageRef, Suspects};
use crate::{Error, Evaluation, Result};

/// How many training images are compared at once: 16 MB of features.
const TRAIN_BLOCK: usize = 2048;
/// How many images are compared with them in one product.
const TEST_BLOCK: usize = 64;

/// The neighbours stage: the training images nearest to mistakes, and to images whose label is probably wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighboursConfig {
    /// How many neighbours an image has.
    pub n_neighbors: usize,
    /// For how many wrongly predicted images neighbours are looked for: the most confident mistakes.
    pub max_mistakes: usize,
    /// For how many suspects neighbours are looked for: the most suspicious.
    pub max_suspects: usize,
}

impl Default for NeighboursConfig {
    fn default() -> Self {
        NeighboursConfig {
            n_neighbors: 3,
            max_mistakes: 1_000,
            max_suspects: 100,
        }
    }
}

/// The nearest training images of images, by split and row.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NearestImages(pub Vec<Neighbours>);

/// The training images most like an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Neighbours {
    /// The image.
    pub image: ImageRef,
    /// Its nearest training images, the nearest first.
    pub nearest: Vec<Neighbour>,
}

/// A training image near another image.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Neighbour {
    /// The row of the training image.
    pub row: usize,
    /// The cosine between the features of both, -1 to 1.
    pub cosine: f64,
}

impl Artifact for NearestImages {
    const FORMAT: &'static str = "nearest-images/2";

    fn encode(&self) -> Vec<u8> {
        json::encode(Self::FORMAT, self)
    }

    fn decode(bytes: &[u8]) -> luthier_artifact::Result<Self> {
        json::decode(Self::FORMAT, bytes)
    }
}

impl NeighboursConfig {
    /// Changes when [`run`](NeighboursConfig::run) gives other results.
    pub const VERSION: u32 = 3;

    /// The images that neighbours are looked for, by split and row. `rows` has the row of each evaluated image in the table
    /// of its split, ascending.
    pub fn asked(&self, evaluation: &Evaluation, rows: &[usize], suspects: &Suspects) -> Vec<ImageRef> {
        let split = evaluation.split;
        let mistakes = evaluation.mistakes().into_iter().take(self.max_mistakes);
        let mistakes = mistakes.map(|row| ImageRef { split, row: rows[row] });
        let suspects = suspects
            .suspects
            .iter()
            .take(self.max_suspects)
            .map(|suspect| suspect.image);
        let mut asked: Vec<ImageRef> = mistakes.chain(suspects).collect();
        asked.sort_unstable();
        asked.dedup();
        asked
    }

    /// The stage's key. `asked` is the digest of the images that neighbours are looked for,
    /// [`digest_of`](Self::digest_of).
    pub fn key(&self, train: Digest, test: Digest, asked: Digest) -> Key {
        let NeighboursConfig {
            n_neighbors,
            // The images are an input.
            max_mistakes: _,
            max_suspects: _,
        } = self;
        Key::stage("neighbours", Self::VERSION)
            .field("neighbours", n_neighbors)
            .input("train", train)
            .input("test", test)
            .input("asked", asked)
            .finish()
    }

    /// The digest of what is asked for, for the key.
    pub fn digest_of(asked: &[ImageRef]) -> Digest {
        let lines = asked.iter().map(|ImageRef { split, row }| format!("{split} {row}\n"));
        Digest::of(lines.collect::<String>().as_bytes())
    }

    /// The training images nearest to images, by the cosine between their features. A training image is no neighbour of
    /// itself. `asked` is ordered. `known` are some of them, in this order, for which the same training images were compared before.
    ///
    /// Training images are read once, in blocks, if there is an image that is not known.
    ///
    /// # Errors
    /// [`Error::Read`] if features cannot be read; [`Error::Interrupted`] if the observer says so before a block.
    pub fn run(
        &self,
        train: &dyn ReadRows<Feature = f32>,
        test: &dyn ReadRows<Feature = f32>,
        asked: &[ImageRef],
        known: NearestImages,
        observer: &dyn Observer,
    ) -> Result<NearestImages> {
        let NearestImages(mut found) = known;
        let is_known = |image: &ImageRef| found.binary_search_by_key(image, |found| found.image).is_ok();
        let unknown: Vec<ImageRef> = asked.iter().copied().filter(|image| !is_known(image)).collect();
        found.extend(self.find(train, test, &unknown, observer)?);
        found.sort_by_key(|found| found.image);
        Ok(NearestImages(found))
    }

    fn find(
        &self,
        train: &dyn ReadRows<Feature = f32>,
        test: &dyn ReadRows<Feature = f32>,
        asked: &[ImageRef],
        observer: &dyn Observer,
    ) -> Result<Vec<Neighbours>> {
        if asked.is_empty() {
            return Ok(Vec::new());
        }
        let mut features = Array2::zeros((asked.len(), train.n_features()));
        for (place, image) in asked.iter().enumerate() {
            let row = features.slice_mut(s![place..place + 1, ..]);
            let table = match image.split {
                Split::Train => train,
                Split::Test => test,
            };
            table.read(image.row, row).map_err(Error::Read)?;
        }
        normalize(&mut features);
        let n = train.n_rows();
        let starts: Vec<usize> = (0..n).step_by(TRAIN_BLOCK).collect();
        let of_block = |&start: &usize| -> Result<Vec<Vec<Neighbour>>> {
            Error::if_interrupted(observer)?;
            let mut block = Array2::zeros((TRAIN_BLOCK.min(n - start), train.n_features()));
            train.read(start, block.view_mut()).map_err(Error::Read)?;
            normalize(&mut block);
            let chunks = features
                .axis_chunks_iter(Axis(0), TEST_BLOCK)
                .zip(asked.chunks(TEST_BLOCK));
            Ok(chunks
                .flat_map(|(features, asked)| self.compare(features, asked, start, block.view()))
                .collect())
        };
        let of_blocks: Vec<Vec<Vec<Neighbour>>> = starts.par_iter().map(of_block).collect::<Result<_>>()?;
        let mut found: Vec<Neighbours> = (asked.iter())
            .map(|&image| Neighbours {
                image,
                nearest: Vec::new(),
            })
            .collect();
        for of_block in of_blocks {
            for (found, nearest) in found.iter_mut().zip(of_block) {
                found.nearest.extend(nearest);
            }
        }
        for Neighbours { nearest, .. } in &mut found {
            // Of those as near, the first row comes first, as the blocks do.
            nearest.sort_by(|a, b| b.cosine.partial_cmp(&a.cosine).unwrap_or(Ordering::Equal));
            nearest.truncate(self.n_neighbors);
        }
        Ok(found)
    }

    /// For each asked image those of a block of training images that are nearest to it, the nearest first.
    fn compare(
        &self,
        features: ArrayView2<'_, f32>,
        asked: &[ImageRef],
        start: usize,
        block: ArrayView2<'_, f32>,
    ) -> Vec<Vec<Neighbour>> {
        let cosines = features.dot(&block.t());
        let of_image = |(cosines, image): (ArrayView1<'_, f32>, &ImageRef)| {
            let mut nearest: Vec<Neighbour> = Vec::new();
            for (place, &cosine) in cosines.iter().enumerate() {
                let other = ImageRef {
                    split: Split::Train,
                    row: start + place,
                };
                if *image == other {
                    continue;
                }
                let cosine = f64::from(cosine);
                if nearest.len() < self.n_neighbors || nearest.last().is_some_and(|last| cosine > last.cosine) {
                    let neighbour = Neighbour { row: other.row, cosine };
                    // Behind those as near, which come first.
                    let behind = nearest.partition_point(|nearer| nearer.cosine >= cosine);
                    nearest.insert(behind, neighbour);
                    nearest.truncate(self.n_neighbors);
                }
            }
            nearest
        };
        cosines.outer_iter().zip(asked).map(of_image).collect()
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
