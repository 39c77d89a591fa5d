use luthier_artifact::{Artifact, Digest, Key, Observer, Split, Tensors, TensorsBuilder, json};
use ndarray::{Array2, ArrayView1, ArrayView2};
use serde::{Deserialize, Serialize};

use crate::interval::{bootstrap_macro_f1, wilson};
use crate::metrics::{Counts, average};
use crate::{ClassMetrics, Error, Estimate, Reliability, Result};

/// How far the sum of a row's probabilities may be from 1.
const SUM_TOLERANCE: f64 = 1e-6;

/// What a model says about images that it has not seen. Row `i` belongs to `images[i]`.
#[derive(Clone, Copy, Debug)]
pub struct Predictions<'a> {
    /// Class names in label order.
    pub classes: &'a [String],
    /// The digest of each image.
    pub images: &'a [Digest],
    /// The true label of each image, below `classes.len()`.
    pub truth: &'a [usize],
    /// The probability of each class for each image: `f64 [n, k]`, each row in `0..=1` with sum 1.
    pub probabilities: ArrayView2<'a, f64>,
    /// The same before calibration, which leaves the predicted class as it is: the same matrix if there was none.
    pub uncalibrated: ArrayView2<'a, f64>,
}

/// The configuration of the evaluate stage.
#[derive(Clone, Debug, PartialEq)]
pub struct EvaluateConfig {
    /// The confidence level of the intervals, between 0 and 1; 0.95 is customary.
    pub confidence: f64,
    /// The seed of the bootstrap.
    pub seed: u64,
}

impl EvaluateConfig {
    /// Changes when [`run`](EvaluateConfig::run) gives other results.
    pub const VERSION: u32 = 6;

    /// The stage's key.
    pub fn key(&self, model: Digest, held_out: Digest, test: Digest) -> Key {
        let EvaluateConfig { confidence, seed } = self;
        Key::stage("evaluate", Self::VERSION)
            .field("confidence", confidence)
            .field("seed", seed)
            .input("model", model)
            .input("held-out", held_out)
            .input("test", test)
            .finish()
    }

    /// Measures the predictions for images of a split, and, beside them, those for training images that cross-validation
    /// held out, if there are any.
    ///
    /// The predicted class is the one with the highest probability, the first of them on ties.
    ///
    /// # Errors
    /// [`Error::Confidence`] if the level is not between 0 and 1, [`Error::Classes`] for fewer than two classes,
    /// [`Error::Empty`] without rows, [`Error::Shape`] if the parts have different lengths,
    /// [`Error::Label`] and [`Error::Probabilities`] for a row outside its range;
    /// [`Error::Interrupted`] if the observer says so before a resample of the bootstrap.
    pub fn run(
        &self,
        split: Split,
        predictions: &Predictions<'_>,
        held_out: Option<&Predictions<'_>>,
        observer: &dyn Observer,
    ) -> Result<Evaluation> {
        let &EvaluateConfig { confidence, seed } = self;
        if !(confidence > 0.0 && confidence < 1.0) {
            return Err(Error::Confidence { found: confidence });
        }
        predictions.check()?;

        let &Predictions {
            classes, uncalibrated, ..
        } = predictions;
        let rows = predictions.rows();
        let before = rows.iter().zip(uncalibrated.outer_iter());

        let n_classes = classes.len();
        let mut counts = Counts::new(n_classes);
        let mut confusion = vec![vec![0; n_classes]; n_classes];
        for row in &rows {
            counts.add(row.truth, row.predicted);
            confusion[row.truth][row.predicted] += 1;
        }
        let outcomes: Vec<(usize, usize)> = rows.iter().map(|row| (row.truth, row.predicted)).collect();
        let per_class: Vec<ClassMetrics> = counts.per_class().collect();
        Ok(Evaluation {
            classes: classes.to_vec(),
            split,
            held_out: held_out.map(|held_out| held_out.figures(confidence)).transpose()?,
            n: rows.len(),
            confidence,
            accuracy: wilson(counts.n_correct(), counts.n(), confidence),
            macro_f1: bootstrap_macro_f1(&outcomes, n_classes, confidence, seed, observer)?,
            log_loss: log_loss(&rows),
            reliability: Reliability::of(rows.iter().map(|row| (row.predicted_probability(), row.is_correct()))),
            uncalibrated: (split == Split::Test)
                .then(|| Reliability::of(before.map(|(row, before)| (before[row.predicted], row.is_correct())))),
            top_k: [1, 2, 3, 5]
                .into_iter()
                .filter(|&k| k < n_classes)
                .map(|k| (k, top_k_accuracy(&rows, k)))
                .collect(),
            macro_average: counts.macro_average(n_classes),
            weighted_average: average(&per_class, |class| class.support as f64),
            per_class,
            confusion,
            rows,
        })
    }
}

impl Predictions<'_> {
    fn rows(&self) -> Vec<EvaluatedImage> {
        let rows = self.images.iter().zip(self.truth).zip(self.probabilities.outer_iter());
        rows.map(|((&image, &truth), probabilities)| EvaluatedImage::new(image, truth, probabilities))
            .collect()
    }

    /// The figures without what is told of single classes and images.
    fn figures(&self, confidence: f64) -> Result<HeldOutFigures> {
        self.check()?;
        let (rows, n_classes) = (self.rows(), self.classes.len());
        let mut counts = Counts::new(n_classes);
        rows.iter().for_each(|row| counts.add(row.truth, row.predicted));
        Ok(HeldOutFigures {
            n: rows.len(),
            accuracy: wilson(counts.n_correct(), counts.n(), confidence),
            macro_f1: counts.macro_average(n_classes).f1,
            log_loss: log_loss(&rows),
        })
    }

    fn check(&self) -> Result<()> {
        let (n, n_classes) = (self.truth.len(), self.classes.len());
        if n_classes < 2 {
            return Err(Error::Classes { found: n_classes });
        }
        if n == 0 {
            return Err(Error::Empty);
        }
        let lengths = [
            ("image digests", n, self.images.len()),
            ("rows of probabilities", n, self.probabilities.nrows()),
            ("columns of probabilities", n_classes, self.probabilities.ncols()),
            ("rows of uncalibrated probabilities", n, self.uncalibrated.nrows()),
            (
                "columns of uncalibrated probabilities",
                n_classes,
                self.uncalibrated.ncols(),
            ),
        ];
        if let Some((what, expected, found)) = lengths.into_iter().find(|(_, expected, found)| expected != found) {
            return Err(Error::Shape { what, expected, found });
        }
        if let Some(row) = self.truth.iter().position(|&label| label >= n_classes) {
            return Err(Error::Label {
                row,
                label: self.truth[row],
                n_classes,
            });
        }
        let both = [self.probabilities, self.uncalibrated];
        for (row, probabilities) in both.iter().flat_map(|matrix| matrix.outer_iter().enumerate()) {
            let sum = probabilities.sum();
            let in_range = probabilities.iter().all(|p| (0.0..=1.0).contains(p));
            if !in_range || (sum - 1.0).abs() > SUM_TOLERANCE {
                return Err(Error::Probabilities { row, sum });
            }
        }
        Ok(())
    }
}

/// How well a model does on a test set: plain data, and an artifact of the evaluate stage. Every run reads it, so that it
/// holds only what is said of the answers; [`TestProbabilities`] has the rest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Class names in label order.
    pub classes: Vec<String>,
    /// The split that the images are of: the test images, or, where there are none, training images that cross-validation
    /// held out.
    pub split: Split,
    /// Beside test images, the figures for training images that cross-validation held out, if it held any out.
    pub held_out: Option<HeldOutFigures>,
    /// The number of images, at least 1.
    pub n: usize,
    /// The confidence level of the intervals, between 0 and 1.
    pub confidence: f64,
    /// The share of the images whose predicted class is the true one, with Wilson's score interval.
    pub accuracy: Estimate,
    /// The unweighted mean of F1 over the classes that have test images or predictions, as scikit-learn's
    /// `f1_score(average="macro")` has it, with the percentile interval of a seeded bootstrap:
    /// [`BOOTSTRAP_RESAMPLES`](crate::BOOTSTRAP_RESAMPLES) resamples of the rows, drawn with ChaCha8,
    /// each as long as the test set, and quantiles interpolated linearly.
    pub macro_f1: Estimate,
    /// The mean negative logarithm of the true class's probability, in nats.
    /// Probabilities are clipped to 2⁻⁵² from 0 and 1, as in scikit-learn.
    pub log_loss: f64,
    /// Whether predictions are right as often as they say.
    pub reliability: Reliability,
    /// The same before calibration; `None` of images that were held out, of which that is not kept.
    pub uncalibrated: Option<Reliability>,
    /// For each k of 1, 2, 3 and 5 below the number of classes: k, and the share of the images whose true class is among
    /// the k most probable. On ties the first class is the more probable one (scikit-learn's `top_k_accuracy_score` takes the last).
    pub top_k: Vec<(usize, f64)>,
    /// One entry a class, in label order.
    pub per_class: Vec<ClassMetrics>,
    /// The unweighted mean over the classes that have test images or predictions.
    pub macro_average: ClassMetrics,
    /// The mean over all classes, weighted by support.
    pub weighted_average: ClassMetrics,
    /// `confusion[truth][predicted]` images, `k × k`.
    pub confusion: Vec<Vec<u64>>,
    /// One entry an image, in the order of the predictions.
    pub rows: Vec<EvaluatedImage>,
}

/// How well the models of the cross-validation do on training images that they have not seen.
///
/// C and the temperature of the probabilities are chosen by the same predictions, so that these figures are a little too
/// good.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldOutFigures {
    /// The number of images, at least 1.
    pub n: usize,
    /// The share of the images whose predicted class is the true one, with Wilson's score interval.
    pub accuracy: Estimate,
    /// The unweighted mean of F1 over the classes.
    pub macro_f1: f64,
    /// The mean negative logarithm of the true class's probability, in nats.
    pub log_loss: f64,
}

/// The prediction for one image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluatedImage {
    /// The digest of the image file's bytes.
    pub image: Digest,
    /// The label of the true class.
    pub truth: usize,
    /// The label of the most probable class, the first on ties.
    pub predicted: usize,
    predicted_probability: f64,
    true_probability: f64,
    true_rank: usize,
}

impl EvaluatedImage {
    /// `probabilities` are those of each class, in label order.
    pub(crate) fn new(image: Digest, truth: usize, probabilities: ArrayView1<'_, f64>) -> Self {
        let predicted = (1..probabilities.len()).fold(0usize, |best, class| {
            if probabilities[class] > probabilities[best] {
                class
            } else {
                best
            }
        });
        let own = probabilities[truth];
        let comes_before = |&(class, &other): &(usize, &f64)| other > own || (other == own && class < truth);
        EvaluatedImage {
            image,
            truth,
            predicted,
            predicted_probability: probabilities[predicted],
            true_probability: own,
            true_rank: 1 + probabilities.iter().enumerate().filter(comes_before).count(),
        }
    }

    /// Whether the predicted class is the true one.
    pub fn is_correct(&self) -> bool {
        self.truth == self.predicted
    }

    /// The probability of the predicted class.
    pub fn predicted_probability(&self) -> f64 {
        self.predicted_probability
    }

    /// The probability of the true class.
    pub fn true_probability(&self) -> f64 {
        self.true_probability
    }

    /// The place of the true class when classes are ordered by falling probability, from 1. On ties the first class comes first.
    pub fn true_rank(&self) -> usize {
        self.true_rank
    }
}

pub(crate) fn log_loss(rows: &[EvaluatedImage]) -> f64 {
    let clipped = |p: f64| p.clamp(f64::EPSILON, 1.0 - f64::EPSILON);
    let sum: f64 = rows.iter().map(|row| -clipped(row.true_probability()).ln()).sum();
    sum / rows.len() as f64
}

fn top_k_accuracy(rows: &[EvaluatedImage], k: usize) -> f64 {
    rows.iter().filter(|row| row.true_rank() <= k).count() as f64 / rows.len() as f64
}

/// At most `most` of the items, spread evenly over them.
pub(crate) fn evenly<T>(items: &[T], most: usize) -> impl Iterator<Item = &T> {
    let n = items.len().min(most);
    (0..n).map(move |place| &items[place * items.len() / n])
}

impl Evaluation {
    /// What one of the images is called: `test image` or `held-out image`.
    pub fn noun(&self) -> &'static str {
        match self.split {
            Split::Test => "test image",
            Split::Train => "held-out image",
        }
    }

    /// At most `most` of the rows, ascending: the most confident mistakes, but no more than half of them if others can be had,
    /// and rows that were predicted rightly, those with the smallest digests. So a sample is part of any larger one, and
    /// stays nearly the same when an image comes or goes.
    pub fn sample(&self, most: usize) -> Vec<usize> {
        let mut right: Vec<usize> = (0..self.n).filter(|&row| self.rows[row].is_correct()).collect();
        let mut rows = self.mistakes();
        rows.truncate(most - right.len().min(most / 2));
        right.sort_by_key(|&row| self.rows[row].image);
        right.truncate(most - rows.len());
        rows.extend(right);
        rows.sort_unstable();
        rows
    }

    /// The rows whose predicted class is not the true one, the most confident mistakes first.
    pub fn mistakes(&self) -> Vec<usize> {
        let mut wrong: Vec<usize> = (0..self.n).filter(|&row| !self.rows[row].is_correct()).collect();
        let confidence = |row: &usize| self.rows[*row].predicted_probability();
        wrong.sort_by(|a, b| confidence(b).total_cmp(&confidence(a)).then(a.cmp(b)));
        wrong
    }

    /// The number of images whose predicted class is the true one.
    pub fn n_correct(&self) -> usize {
        self.rows.iter().filter(|row| row.is_correct()).count()
    }

    /// What is amiss in an evaluation that did not come from [`EvaluateConfig::run`].
    fn inconsistency(&self) -> Option<String> {
        let k = self.classes.len();
        if self.rows.len() != self.n {
            return Some(format!("{} rows for {} images", self.rows.len(), self.n));
        }
        if self.per_class.len() != k || self.confusion.len() != k || self.confusion.iter().any(|row| row.len() != k) {
            return Some(format!("tables of other than {k} classes"));
        }
        let outside = |row: &EvaluatedImage| row.truth >= k || row.predicted >= k;
        self.rows
            .iter()
            .position(outside)
            .map(|row| format!("a row {row} of other than {k} classes"))
    }
}

impl Artifact for Evaluation {
    const FORMAT: &'static str = "evaluation/4";

    fn encode(&self) -> Vec<u8> {
        json::encode(Self::FORMAT, self)
    }

    fn decode(bytes: &[u8]) -> luthier_artifact::Result<Self> {
        let evaluation: Self = json::decode(Self::FORMAT, bytes)?;
        match evaluation.inconsistency() {
            Some(found) => Err(luthier_artifact::Error::Format {
                expected: Self::FORMAT,
                found,
            }),
            None => Ok(evaluation),
        }
    }
}

/// The probability of each class for each test image, `f64 [n, k]`, beside their [`Evaluation`]: an artifact of the
/// evaluate stage. Without test images it has no rows: `HeldOutPredictions` then has what was evaluated.
#[derive(Clone, Debug, PartialEq)]
pub struct TestProbabilities(pub Array2<f64>);

impl Artifact for TestProbabilities {
    const FORMAT: &'static str = "test-probabilities/1";

    fn encode(&self) -> Vec<u8> {
        TensorsBuilder::new(Self::FORMAT, &())
            .tensor("probabilities", &self.0)
            .finish()
    }

    fn decode(bytes: &[u8]) -> luthier_artifact::Result<Self> {
        let probabilities = Tensors::open(Self::FORMAT, bytes)?.matrix("probabilities")?;
        Ok(TestProbabilities(probabilities))
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_spread_evenly_starts_with_the_first_and_reaches_the_end() {
        let items: Vec<usize> = (0..100).collect();
        assert_eq!(evenly(&items, 4).copied().collect::<Vec<_>>(), [0, 25, 50, 75]);
        assert_eq!(evenly(&items, 1_000).count(), 100);
        assert_eq!(evenly(&items, 0).count(), 0);
    }

    const CONFIG: EvaluateConfig = EvaluateConfig {
        confidence: 0.95,
        seed: 0,
    };

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|class| format!("class {class}")).collect()
    }

    fn digests(n: usize) -> Vec<Digest> {
        (0..n).map(|row| Digest::of(&row.to_le_bytes())).collect()
    }

    fn run(truth: &[usize], probabilities: &Array2<f64>) -> Result<Evaluation> {
        let (classes, images) = (names(probabilities.ncols()), digests(truth.len()));
        let predictions = Predictions {
            classes: &classes,
            images: &images,
            truth,
            probabilities: probabilities.view(),
            uncalibrated: probabilities.view(),
        };
        CONFIG.run(Split::Test, &predictions, Some(&predictions), &())
    }

    #[test]
    fn held_out_figures_are_those_of_an_evaluation() {
        let found = run(&[0, 1, 1], &array![[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]).unwrap();
        let held_out = found.held_out.unwrap();
        assert_eq!((held_out.n, held_out.accuracy), (found.n, found.accuracy));
        assert_eq!(
            (held_out.macro_f1, held_out.log_loss),
            (found.macro_f1.value, found.log_loss)
        );
    }

    #[test]
    fn every_field_and_input_changes_the_key() {
        let [model, held_out, test, other] =
            ["model", "held-out", "test", "other"].map(|input| Digest::of(input.as_bytes()));
        let confidence = EvaluateConfig {
            confidence: 0.9,
            ..CONFIG
        };
        let seed = EvaluateConfig { seed: 1, ..CONFIG };
        let keys = [
            CONFIG.key(model, held_out, test),
            confidence.key(model, held_out, test),
            seed.key(model, held_out, test),
            CONFIG.key(other, held_out, test),
            CONFIG.key(model, other, test),
            CONFIG.key(model, held_out, other),
        ];
        for (place, key) in keys.iter().enumerate() {
            assert!(!keys[..place].contains(key), "{place}");
        }
    }

    #[test]
    fn the_key_is_pinned() {
        assert_eq!(
            CONFIG
                .key(Digest::of(b"model"), Digest::of(b"held-out"), Digest::of(b"test"))
                .digest()
                .to_string(),
            "a370829deeb9287911756ca75a827f38e67b63a453c7976f516453ce757980fb"
        );
    }

    #[test]
    fn the_first_class_wins_a_tie() {
        let evaluation = run(&[2, 1], &array![[0.25, 0.25, 0.25, 0.25], [0.1, 0.4, 0.4, 0.1]]).unwrap();
        assert_eq!(
            evaluation.rows.iter().map(|row| row.predicted).collect::<Vec<_>>(),
            [0, 1]
        );
        assert_eq!(
            evaluation
                .rows
                .iter()
                .map(EvaluatedImage::true_rank)
                .collect::<Vec<_>>(),
            [3, 1]
        );
        assert_eq!(evaluation.top_k, [(1, 0.5), (2, 0.5), (3, 1.0)]);
    }

    #[test]
    fn the_log_loss_of_a_true_class_without_probability_is_finite() {
        let evaluation = run(&[1], &array![[1.0, 0.0]]).unwrap();
        assert_eq!(evaluation.log_loss, -f64::EPSILON.ln());
    }

    #[test]
    fn predictions_that_do_not_fit_together_are_refused_with_both_numbers() {
        let fine = array![[0.5, 0.5], [1.0, 0.0]];
        let message = |result: Result<Evaluation>| result.unwrap_err().to_string();
        assert_eq!(
            message(run(&[0], &fine)),
            "predictions have 2 rows of probabilities, expected 1"
        );
        assert_eq!(
            message(run(&[0, 2], &fine)),
            "row 1 has label 2, expected a label below 2"
        );
        assert_eq!(
            message(run(&[], &Array2::zeros((0, 2)))),
            "test set has no readable image, expected at least one"
        );
        assert_eq!(
            message(run(&[0], &array![[1.0]])),
            "predictions have 1 classes, expected at least two"
        );
        assert_eq!(
            message(run(&[0], &array![[0.5, 0.25]])),
            "row 0 has probabilities that sum to 0.75, expected values from 0 to 1 that sum to 1"
        );
        for row in [array![[f64::NAN, 1.0]], array![[-0.5, 1.5]]] {
            assert!(matches!(run(&[0], &row), Err(Error::Probabilities { row: 0, .. })));
        }
        let (classes, images) = (names(2), digests(2));
        let predictions = Predictions {
            classes: &classes,
            images: &images,
            truth: &[0, 1],
            probabilities: fine.view(),
            uncalibrated: fine.view(),
        };
        for confidence in [0.0, 1.0, 95.0, f64::NAN] {
            assert!(matches!(
                EvaluateConfig { confidence, seed: 0 }.run(Split::Test, &predictions, None, &()),
                Err(Error::Confidence { .. })
            ));
        }
    }

    #[test]
    fn foreign_and_inconsistent_bytes_are_refused() {
        let evaluation = run(&[0, 1], &array![[0.9, 0.1], [0.2, 0.8]]).unwrap();
        let mut foreign = evaluation.clone();
        foreign.rows[1].truth = 2;
        let error = Evaluation::decode(&foreign.encode()).unwrap_err().to_string();
        assert_eq!(error, "expected evaluation/4, found a row 1 of other than 2 classes");
        let bytes = evaluation.encode();
        for length in 0..bytes.len() {
            assert!(Evaluation::decode(&bytes[..length]).is_err());
        }
        let other = String::from_utf8(bytes)
            .unwrap()
            .replacen("evaluation/4", "evaluation/5", 1);
        assert!(Evaluation::decode(other.as_bytes()).is_err());
    }

    #[test]
    fn the_evaluation_of_an_image_is_small_however_many_classes_there_are() {
        let (n, k) = (2_000, 200);
        let mut probabilities = Array2::from_shape_fn((n, k), |(row, class)| {
            1.0 + ((31 * row + 17 * class) % 101) as f64 / 7.0
        });
        probabilities.outer_iter_mut().for_each(|mut row| row /= row.sum());
        let truth: Vec<usize> = (0..n).map(|row| row % k).collect();
        let evaluation = run(&truth, &probabilities).unwrap();
        // 40 of these are the confusion matrix's.
        assert!(evaluation.encode().len() < 400 * n, "{}", evaluation.encode().len() / n);
        let probabilities = TestProbabilities(probabilities).encode();
        assert!(probabilities.len() < 8 * n * k + 1_000, "{}", probabilities.len());
    }

    #[test]
    fn probabilities_survive_bit_for_bit() {
        let some = array![
            [0.1, 0.9],
            [f64::MIN_POSITIVE, 1.0 - f64::EPSILON],
            [1.0 / 3.0, 2.0 / 3.0]
        ];
        for expected in [some, Array2::zeros((0, 3))] {
            let TestProbabilities(found) =
                TestProbabilities::decode(&TestProbabilities(expected.clone()).encode()).unwrap();
            assert_eq!(found.mapv(f64::to_bits), expected.mapv(f64::to_bits));
        }
    }

    /// Labels and probabilities of up to 30 images in 2 to 6 classes.
    fn any_predictions() -> impl Strategy<Value = (Vec<usize>, Array2<f64>)> {
        (1..30_usize, 2..6_usize)
            .prop_flat_map(|(n, k)| {
                (
                    prop::collection::vec(0..k, n),
                    prop::collection::vec(0.0..1.0_f64, n * k),
                    Just((n, k)),
                )
            })
            .prop_map(|(truth, weights, shape)| {
                let mut probabilities = Array2::from_shape_vec(shape, weights).expect("n * k weights") + 1e-3;
                probabilities.outer_iter_mut().for_each(|mut row| row /= row.sum());
                (truth, probabilities)
            })
    }

    proptest! {
        #[test]
        fn decodes_what_it_encoded_to_the_last_bit((truth, probabilities) in any_predictions()) {
            let evaluation = run(&truth, &probabilities).unwrap();
            prop_assert_eq!(Evaluation::decode(&evaluation.encode()).unwrap(), evaluation);
        }

        #[test]
        fn figures_agree_with_one_another((truth, probabilities) in any_predictions()) {
            let evaluation = run(&truth, &probabilities).unwrap();
            let Estimate { value, lower, upper } = evaluation.accuracy;
            prop_assert!(0.0 <= lower && lower <= value && value <= upper && upper <= 1.0);
            prop_assert_eq!(evaluation.n_correct() as f64 / evaluation.n as f64, value);
            prop_assert_eq!(evaluation.macro_f1.value, evaluation.macro_average.f1);
            // Weighted recall is accuracy: each class's hits, over all images.
            prop_assert!((evaluation.weighted_average.recall - value).abs() < 1e-12);
            prop_assert_eq!(evaluation.confusion.iter().flatten().sum::<u64>(), evaluation.n as u64);
            prop_assert!(evaluation.top_k.iter().map(|&(_, accuracy)| accuracy).is_sorted());
            prop_assert_eq!(evaluation.top_k[0], (1, value));
        }

        #[test]
        fn the_order_of_the_rows_changes_no_figure_but_the_bootstrap((truth, probabilities) in any_predictions()) {
            let forward = run(&truth, &probabilities).unwrap();
            let reversed_truth: Vec<usize> = truth.into_iter().rev().collect();
            let reversed = run(&reversed_truth, &probabilities.slice(ndarray::s![..;-1, ..]).to_owned()).unwrap();
            prop_assert_eq!(reversed.accuracy, forward.accuracy);
            prop_assert_eq!(reversed.per_class, forward.per_class);
            prop_assert_eq!(reversed.confusion, forward.confusion);
            prop_assert!((reversed.log_loss - forward.log_loss).abs() < 1e-12);
        }
    }
}
