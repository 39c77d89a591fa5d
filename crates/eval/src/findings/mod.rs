//! What the images themselves tell: which ones to look at, and whether more of them would help.

mod duplicates;
mod mislabelled;
mod neighbours;

use luthier_artifact::{Artifact, Split};
use luthier_cache::StoredTable;
use ndarray::{ArrayView1, ArrayView2};
use serde::{Deserialize, Serialize};

use crate::{Evaluation, Result};

/// For how many wrongly predicted images the nearest training images are looked for: the most confident mistakes.
const MAX_COMPARED: usize = 1_000;

/// What is inspected: images with their features, and what models say of those that they have not seen.
#[derive(Clone, Copy, Debug)]
pub struct Inspection<'a> {
    /// What the model says of the test images.
    pub evaluation: &'a Evaluation,
    /// The training images and their features.
    pub train: &'a StoredTable<'a>,
    /// The test images and their features, row by row those of the evaluation.
    pub test: &'a StoredTable<'a>,
    /// The perceptual hashes of training and test images, row by row; `None` if they are not known: then only images
    /// whose files are the same are found to be so.
    pub hashes: Option<[&'a StoredTable<'a>; 2]>,
    /// The training rows that cross-validation held out, in ascending order.
    pub held_out: &'a [usize],
    /// The probability of each class for each of them by models that have not seen it: `f32 [m, k]`.
    pub probabilities: ArrayView2<'a, f32>,
    /// The first principal components of each test image, `[n, 2]`, or `[n, 1]` if there is one only.
    pub components: ArrayView2<'a, f64>,
}

impl Inspection<'_> {
    fn features(&self, split: Split) -> &StoredTable<'_> {
        match split {
            Split::Train => self.train,
            Split::Test => self.test,
        }
    }

    /// Looks for images that deserve a look.
    ///
    /// # Errors
    /// [`Error::Artifact`](crate::Error::Artifact) if features cannot be read.
    pub fn run(&self) -> Result<Findings> {
        let Inspection {
            evaluation,
            train,
            test,
            held_out,
            probabilities,
            components,
            ..
        } = self;
        let n_classes = evaluation.classes.len();
        let of_train = probabilities.mapv(f64::from);
        let of_train = held_out.iter().copied().zip(of_train.outer_iter());
        let of_test = evaluation.rows.iter().map(|row| ArrayView1::from(&row.probabilities));
        let mut judged = mislabelled::judged(Split::Train, &train.rows().labels, of_train);
        judged.extend(mislabelled::judged(
            Split::Test,
            &test.rows().labels,
            of_test.enumerate(),
        ));

        let mut wrong: Vec<usize> = (0..evaluation.n)
            .filter(|&row| !evaluation.rows[row].is_correct())
            .collect();
        let confidence = |row: &usize| evaluation.rows[*row].predicted_probability();
        wrong.sort_by(|a, b| confidence(b).total_cmp(&confidence(a)).then(a.cmp(b)));
        wrong.truncate(MAX_COMPARED);
        wrong.sort_unstable();
        let point = |row: usize| [0, 1].map(|axis| components.get((row, axis)).copied().unwrap_or(0.0));
        Ok(Findings {
            mislabelled: mislabelled::mislabelled(&judged, n_classes),
            judged_training_images: !held_out.is_empty(),
            duplicates: duplicates::duplicates(self)?,
            compared_looks: self.hashes.is_some(),
            neighbours: neighbours::neighbours(train, test, &wrong)?,
            scatter: (0..evaluation.n).map(point).collect(),
        })
    }
}

/// What an inspection of the images found: plain data, and an artifact of the evaluate stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    /// Images whose label is probably wrong, the most suspicious first.
    pub mislabelled: Vec<Suspect>,
    /// Whether training images could be judged: only cross-validation has models that have not seen them.
    pub judged_training_images: bool,
    /// Images that are the same, or look the same.
    pub duplicates: Vec<Duplicates>,
    /// Whether images could be found to look the same: perceptual hashes were at hand.
    pub compared_looks: bool,
    /// For wrongly predicted test images, the thousand most confident mistakes at most, their nearest training images, by
    /// ascending row.
    pub neighbours: Vec<Neighbours>,
    /// The first two principal components of each test image, `[n]` pairs in the order of the rows.
    pub scatter: Vec<[f64; 2]>,
}

/// An image, by its place in the table of its split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ImageRef {
    /// The split.
    pub split: Split,
    /// The row in the split's table, from 0.
    pub row: usize,
}

/// An image whose label is probably wrong.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Suspect {
    /// The image.
    pub image: ImageRef,
    /// The label that it has.
    pub label: usize,
    /// The label that it should probably have.
    pub suggested: usize,
    /// The probability of the label that it has, from a model that has not seen the image.
    pub label_probability: f64,
    /// The probability of the label that it should probably have.
    pub suggested_probability: f64,
}

/// Two images or more that are the same or look the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Duplicates {
    /// The images in ascending order, at least two.
    pub images: Vec<ImageRef>,
    /// How alike they are.
    pub likeness: Likeness,
}

/// How alike images are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Likeness {
    /// The bytes of their files are the same.
    SameBytes,
    /// They look the same.
    SameLook {
        /// The smallest cosine between the features of two of them by which they were joined, -1 to 1.
        cosine: f64,
    },
}

/// The training images most like a test image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Neighbours {
    /// The row of the test image.
    pub row: usize,
    /// Its nearest training images, the nearest first, at most three.
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

impl Artifact for Findings {
    const FORMAT: &'static str = "findings/1";

    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(&(Self::FORMAT, self)).expect("plain data always serialize")
    }

    fn decode(bytes: &[u8]) -> luthier_artifact::Result<Self> {
        let expected = Self::FORMAT;
        let wrong = |found: String| luthier_artifact::Error::Format { expected, found };
        let (format, findings): (String, Self) =
            serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        if format == expected {
            Ok(findings)
        } else {
            Err(wrong(format))
        }
    }
}
