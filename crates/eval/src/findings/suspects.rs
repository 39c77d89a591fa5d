use std::cmp::Ordering;

use luthier_artifact::{Artifact, Digest, Key, Split, json};
use ndarray::{ArrayView1, ArrayView2};
use serde::{Deserialize, Serialize};

use super::ImageRef;
use crate::Evaluation;

/// The suspects stage: which images probably have the wrong label.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SuspectsConfig {
    /// How sure a class must be of an image, beside how sure it is on average of the images that bear its label.
    ///
    /// The default is 0.9. With 30 labels of 1,444 photographs swapped at random, five times, 23 to 27 of the 30 were
    /// among the first 60 suspects. With 1 they were 20 to 26. With 0.8 they were 24 to 27, but 47 of the photographs as
    /// they are became suspects instead of 36.
    pub confident: f64,
}

impl Default for SuspectsConfig {
    fn default() -> Self {
        SuspectsConfig { confident: 0.9 }
    }
}

/// What cross-validation's models say of training images that they have not seen.
#[derive(Clone, Copy, Debug)]
pub struct HeldOutImages<'a> {
    /// The label of every training image.
    pub labels: &'a [usize],
    /// The rows of the training images that were held out, ascending: `m` of them.
    pub rows: &'a [usize],
    /// The probability of each class for each image that was held out, `f32 [m, k]`.
    pub probabilities: ArrayView2<'a, f32>,
}

/// Images whose label is probably wrong.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Suspects {
    /// The images, the most suspicious first.
    pub suspects: Vec<Suspect>,
    /// Whether training images could be judged: only cross-validation has models that have not seen them.
    pub judged_training_images: bool,
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

impl Artifact for Suspects {
    const FORMAT: &'static str = "suspects/1";

    fn encode(&self) -> Vec<u8> {
        json::encode(Self::FORMAT, self)
    }

    fn decode(bytes: &[u8]) -> luthier_artifact::Result<Self> {
        json::decode(Self::FORMAT, bytes)
    }
}

impl SuspectsConfig {
    /// Changes when [`run`](SuspectsConfig::run) gives other results.
    pub const VERSION: u32 = 1;

    /// The stage's key. Model and test images decide what the evaluation says of each test image, so that the evaluation
    /// itself, whose intervals have a confidence level and a seed, is no input. `checked` stands for the images whose label
    /// somebody has looked at, if there are any: they are no suspects.
    pub fn key(&self, model: Digest, held_out: Digest, test: Digest, checked: Option<Digest>) -> Key {
        let SuspectsConfig { confident } = self;
        let key = Key::stage("suspects", Self::VERSION)
            .field("confident", confident)
            .input("model", model)
            .input("held-out", held_out)
            .input("test", test);
        match checked {
            Some(checked) => key.input("checked", checked).finish(),
            None => key.finish(),
        }
    }

    /// Judges the labels of the training images that were held out, and of the test images. `test` has the probability of
    /// each class for each test image, `[n, k]`: no rows if the evaluation is about the training images once more.
    pub fn run(&self, held_out: &HeldOutImages<'_>, evaluation: &Evaluation, test: ArrayView2<'_, f64>) -> Suspects {
        let of_train = held_out.probabilities.mapv(f64::from);
        let of_train = held_out.rows.iter().copied().zip(of_train.outer_iter());
        let test_labels: Vec<usize> = evaluation.rows.iter().map(|row| row.truth).collect();
        let mut judged = judged(Split::Train, held_out.labels, of_train);
        judged.extend(self::judged(Split::Test, &test_labels, test.outer_iter().enumerate()));
        Suspects {
            suspects: self.suspects(&judged, evaluation.classes.len()),
            judged_training_images: !held_out.rows.is_empty(),
        }
    }

    /// The images whose label is probably wrong, the most suspicious first.
    ///
    /// Confident learning: Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", 2021.
    /// A class is confident in an image if it is nearly as probable ([`confident`](Self::confident)) as it is on average for the images that bear
    /// its label, or more so. An image is suspicious if a class other than its own is confident in it, and more probable; the most suspicious
    /// are those with the widest margin. The averages are those of the training images, or of the test images if no
    /// training image was held out.
    fn suspects(&self, judged: &[JudgedImage<'_>], n_classes: usize) -> Vec<Suspect> {
        let has_train = judged.iter().any(|judged| judged.image.split == Split::Train);
        let of_averages = if has_train { Split::Train } else { Split::Test };
        let mut sums = vec![(0.0, 0usize); n_classes];
        for judged in judged.iter().filter(|judged| judged.image.split == of_averages) {
            let (sum, n) = &mut sums[judged.label];
            *sum += judged.probabilities[judged.label];
            *n += 1;
        }
        // No image of an unknown class can be confident.
        let averages = sums
            .iter()
            .map(|&(sum, n)| if n == 0 { f64::INFINITY } else { sum / n as f64 });
        let averages: Vec<f64> = averages.collect();

        let mut suspects: Vec<Suspect> = judged
            .iter()
            .filter_map(|judged| self.suspect(judged, &averages))
            .collect();
        suspects.sort_by(|a, b| {
            let margin = |suspect: &Suspect| suspect.suggested_probability - suspect.label_probability;
            (margin(b).total_cmp(&margin(a))).then_with(|| a.image.cmp(&b.image))
        });
        suspects
    }

    fn suspect(&self, judged: &JudgedImage<'_>, averages: &[f64]) -> Option<Suspect> {
        let &JudgedImage {
            image,
            label,
            probabilities,
        } = judged;
        let is_confident = |class: usize| probabilities[class] >= self.confident * averages[class];
        let confident = (0..averages.len()).filter(|&class| class != label && is_confident(class));
        let suggested = confident.max_by(|&a, &b| match probabilities[a].total_cmp(&probabilities[b]) {
            // The first class wins a tie.
            Ordering::Equal => b.cmp(&a),
            other => other,
        })?;
        (probabilities[suggested] > probabilities[label]).then_some(Suspect {
            image,
            label,
            suggested,
            label_probability: probabilities[label],
            suggested_probability: probabilities[suggested],
        })
    }
}

/// What models that have not seen an image say of it.
struct JudgedImage<'a> {
    image: ImageRef,
    label: usize,
    /// The probability of each class, `[k]`.
    probabilities: ArrayView1<'a, f64>,
}

/// The judged images of a split: its labels, and the rows of which there are probabilities.
fn judged<'a>(
    split: Split,
    labels: &[usize],
    rows: impl Iterator<Item = (usize, ArrayView1<'a, f64>)>,
) -> Vec<JudgedImage<'a>> {
    rows.map(|(row, probabilities)| JudgedImage {
        image: ImageRef { split, row },
        label: labels[row],
        probabilities,
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::*;

    fn find(split: Split, labels: &[usize], probabilities: &Array2<f64>) -> Vec<Suspect> {
        let judged = judged(split, labels, probabilities.outer_iter().enumerate());
        SuspectsConfig::default().suspects(&judged, probabilities.ncols())
    }

    #[test]
    fn a_class_more_confident_than_usual_in_an_image_of_another_is_suspicious() {
        // The averages of the classes' own images: 0.7 and 0.6.
        let probabilities = array![
            [0.9, 0.1],
            [0.8, 0.2],
            [0.4, 0.6],
            [0.1, 0.9],
            [0.75, 0.25],
            [0.35, 0.65]
        ];
        let labels = [0, 0, 0, 1, 1, 1];
        for split in [Split::Train, Split::Test] {
            let found = find(split, &labels, &probabilities);
            // Image 4 is 0.5 more probable another class, image 2 is 0.2.
            assert_eq!(
                found
                    .iter()
                    .map(|suspect| (suspect.image.row, suspect.label, suspect.suggested))
                    .collect::<Vec<_>>(),
                [(4, 1, 0), (2, 0, 1)]
            );
            assert_eq!(
                (found[0].label_probability, found[0].suggested_probability),
                (0.25, 0.75)
            );
        }
    }

    #[test]
    fn a_wrong_prediction_alone_is_no_suspicion() {
        // Class 1 is usually certain: 0.6 is not much for it.
        let probabilities = array![[0.9, 0.1], [0.4, 0.6], [0.0, 1.0], [0.0, 1.0]];
        assert_eq!(find(Split::Train, &[0, 0, 1, 1], &probabilities), []);
    }

    #[test]
    fn a_class_without_images_is_never_suggested() {
        let probabilities = array![[0.1, 0.2, 0.7], [0.1, 0.8, 0.1]];
        assert_eq!(find(Split::Train, &[0, 1], &probabilities), []);
    }
}
