//! What figures and findings amount to: drawn once, for the page, the JSON and the tables alike.

use std::cmp::Reverse;

use luthier_artifact::{CrossValidationInfo, Digest, LearningPoint, Split};
use serde::Serialize;

use super::Context;
use super::words::{count, points};
use crate::interval::wilson;
use crate::{Duplicates, Estimate, EvaluatedImage, Evaluation, ImageRef, Likeness};

/// With fewer training images than this a class is called small.
pub(super) const FEW_TRAIN: usize = 20;
/// With fewer test images than this the recall of a class is hardly known.
pub(super) const FEW_TEST: usize = 10;
/// A gain in accuracy that is worth the work of taking photographs.
const WORTHWHILE_GAIN: f64 = 0.01;

/// What figures and findings amount to.
pub(super) struct Conclusions<'a> {
    /// The mistakes, the most confident first; equally confident ones by file.
    pub(super) mistakes: Vec<Mistake<'a>>,
    /// The most frequent pair first; of equally frequent ones, the one that takes more of its class.
    pub(super) confused_pairs: Vec<ConfusedPair<'a>>,
    /// The most suspicious first.
    pub(super) mislabelled: Vec<Mislabelled<'a>>,
    pub(super) duplicates: Vec<DuplicateImages<'a>>,
    pub(super) leakage: Leakage,
    /// In label order.
    pub(super) few_images: Vec<FewImages<'a>>,
    pub(super) more_images: MoreImages,
}

/// A test image whose predicted class is not the true one.
pub(super) struct Mistake<'a> {
    /// Its place among the evaluation's rows.
    pub(super) at: usize,
    pub(super) file: &'a str,
    pub(super) row: &'a EvaluatedImage,
    /// The nearest first.
    pub(super) nearest: Vec<Nearest<'a>>,
}

/// A training image near another image.
#[derive(Clone, Serialize)]
pub(super) struct Nearest<'a> {
    pub(super) file: &'a str,
    pub(super) class: &'a str,
    pub(super) cosine: f64,
}

/// Test images of one class that were taken for another.
#[derive(Serialize)]
pub(super) struct ConfusedPair<'a> {
    #[serde(skip)]
    pub(super) truth: usize,
    #[serde(skip)]
    pub(super) predicted: usize,
    pub(super) true_class: &'a str,
    pub(super) predicted_class: &'a str,
    /// The number of test images of the true class.
    pub(super) support: u64,
    /// The most confident first.
    pub(super) images: Vec<Confused<'a>>,
}

#[derive(Serialize)]
pub(super) struct Confused<'a> {
    pub(super) file: &'a str,
    pub(super) predicted_probability: f64,
    pub(super) true_probability: f64,
}

/// An image by its names.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Image<'a> {
    pub(super) split: Split,
    pub(super) file: &'a str,
    pub(super) class: &'a str,
    #[serde(skip)]
    pub(super) digest: Digest,
}

/// An image whose label is probably wrong.
#[derive(Serialize)]
pub(super) struct Mislabelled<'a> {
    #[serde(flatten)]
    pub(super) image: Image<'a>,
    pub(super) suggested_class: &'a str,
    pub(super) label_probability: f64,
    pub(super) suggested_probability: f64,
    /// The nearest first.
    #[serde(rename = "nearest_training_images")]
    pub(super) nearest: Vec<Nearest<'a>>,
}

/// Images that are the same or look the same.
#[derive(Serialize)]
pub(super) struct DuplicateImages<'a> {
    pub(super) meanings: Vec<Meaning>,
    /// Whether the bytes of the files are the same.
    pub(super) same_bytes: bool,
    /// Of images that only look the same, the smallest cosine by which they were joined.
    pub(super) cosine: Option<f64>,
    pub(super) images: Vec<Image<'a>>,
}

/// What is wrong with an image that occurs more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Meaning {
    /// It is in train and test.
    Leakage,
    /// It is in two classes.
    ContradictoryLabels,
    /// It is in one class of one split more than once, and nothing else is wrong.
    Redundant,
}

impl Meaning {
    pub(super) const ALL: [Meaning; 3] = [Meaning::Leakage, Meaning::ContradictoryLabels, Meaning::Redundant];

    pub(super) fn name(self) -> &'static str {
        match self {
            Meaning::Leakage => "leakage",
            Meaning::ContradictoryLabels => "contradictory labels",
            Meaning::Redundant => "redundant",
        }
    }
}

/// Test images that are in training too.
#[derive(Serialize)]
pub(super) struct Leakage {
    /// How many there are.
    pub(super) n: usize,
    /// The accuracy on the other test images, if there are others.
    pub(super) accuracy_without: Option<f64>,
}

/// A class with fewer than [`FEW_TRAIN`] training images or fewer than [`FEW_TEST`] test images.
#[derive(Serialize)]
pub(super) struct FewImages<'a> {
    pub(super) class: &'a str,
    pub(super) n_train: usize,
    pub(super) n_test: usize,
    /// With Wilson's interval; `None` without test images.
    pub(super) recall: Option<Estimate>,
}

/// Whether more training images would raise the accuracy.
#[derive(Serialize)]
pub(super) struct MoreImages {
    pub(super) answer: WouldHelp,
    /// The answer and its reason in words.
    pub(super) explanation: String,
    /// What the last doubling of the training images brought; `None` if it is not known.
    pub(super) last_doubling: Option<Doubling>,
    /// What the next would probably bring, from the smaller to the larger; only where the answer is yes.
    pub(super) expected_gain: Option<[f64; 2]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum WouldHelp {
    Yes,
    Hardly,
    Unknown,
}

#[derive(Clone, Copy, Serialize)]
pub(super) struct Doubling {
    pub(super) n_train_before: f64,
    pub(super) n_train_after: f64,
    pub(super) gain: f64,
    pub(super) standard_error: f64,
}

impl<'a> Conclusions<'a> {
    pub(super) fn of(context: &Context<'a>) -> Self {
        let mistakes = mistakes(context);
        let findings = context.findings;
        let class = |label: usize| context.evaluation.classes[label].as_str();
        Conclusions {
            confused_pairs: confused_pairs(context.evaluation, &mistakes),
            mislabelled: (findings.suspects.iter())
                .map(|suspect| Mislabelled {
                    image: Image {
                        class: class(suspect.label),
                        ..image(context, suspect.image)
                    },
                    suggested_class: class(suspect.suggested),
                    label_probability: suspect.label_probability,
                    suggested_probability: suspect.suggested_probability,
                    nearest: nearest(context, suspect.image),
                })
                .collect(),
            duplicates: findings
                .duplicates
                .iter()
                .map(|same| duplicates(context, same))
                .collect(),
            leakage: leakage(context),
            few_images: few_images(context),
            more_images: MoreImages::of(context.cross_validation.map(|found| found.info)),
            mistakes,
        }
    }
}

fn image<'a>(context: &Context<'a>, ImageRef { split, row }: ImageRef) -> Image<'a> {
    let images = match split {
        Split::Train => context.train,
        Split::Test => context.test,
    };
    Image {
        split,
        file: &images.files[row],
        class: &context.evaluation.classes[images.labels[row]],
        digest: images.digests[row],
    }
}

/// The training images most like an image.
fn nearest<'a>(context: &Context<'a>, of: ImageRef) -> Vec<Nearest<'a>> {
    let neighbours = &context.findings.neighbours;
    let Ok(found) = neighbours.binary_search_by_key(&of, |neighbours| neighbours.image) else {
        return Vec::new();
    };
    let named = neighbours[found].nearest.iter().map(|neighbour| {
        let near = ImageRef {
            split: Split::Train,
            row: neighbour.row,
        };
        let Image { file, class, .. } = image(context, near);
        Nearest {
            file,
            class,
            cosine: neighbour.cosine,
        }
    });
    named.collect()
}

fn mistakes<'a>(context: &Context<'a>) -> Vec<Mistake<'a>> {
    let split = context.evaluation.split;
    let files = context.evaluated.files.iter().zip(&context.evaluation.rows).enumerate();
    let mut mistakes: Vec<Mistake<'a>> = files
        .filter(|(_, (_, row))| !row.is_correct())
        .map(|(at, (file, row))| Mistake {
            at,
            file,
            row,
            nearest: nearest(
                context,
                ImageRef {
                    split,
                    row: context.evaluated_rows[at],
                },
            ),
        })
        .collect();
    mistakes.sort_by(|a, b| {
        b.row
            .predicted_probability()
            .total_cmp(&a.row.predicted_probability())
            .then_with(|| a.file.cmp(b.file))
    });
    mistakes
}

fn confused_pairs<'a>(evaluation: &'a Evaluation, mistakes: &[Mistake<'a>]) -> Vec<ConfusedPair<'a>> {
    let pair = |mistake: &Mistake<'_>| (mistake.row.truth, mistake.row.predicted);
    let mut by_pair: Vec<&Mistake<'a>> = mistakes.iter().collect();
    // A stable sort, so that the most confident stay first.
    by_pair.sort_by_key(|mistake| pair(mistake));
    let mut pairs: Vec<ConfusedPair<'a>> = by_pair
        .chunk_by(|a, b| pair(a) == pair(b))
        .map(|images| {
            let (truth, predicted) = pair(images[0]);
            ConfusedPair {
                truth,
                predicted,
                true_class: &evaluation.classes[truth],
                predicted_class: &evaluation.classes[predicted],
                support: evaluation.per_class[truth].support,
                images: (images.iter())
                    .map(|mistake| Confused {
                        file: mistake.file,
                        predicted_probability: mistake.row.predicted_probability(),
                        true_probability: mistake.row.true_probability(),
                    })
                    .collect(),
            }
        })
        .collect();
    pairs.sort_by_key(|pair| (Reverse(pair.images.len()), pair.support, pair.truth, pair.predicted));
    pairs
}

fn duplicates<'a>(context: &Context<'a>, Duplicates { images, likeness }: &Duplicates) -> DuplicateImages<'a> {
    let images: Vec<Image<'a>> = images.iter().map(|&at| image(context, at)).collect();
    let mut meanings = Vec::new();
    if images.iter().any(|image| image.split != images[0].split) {
        meanings.push(Meaning::Leakage);
    }
    if images.iter().any(|image| image.class != images[0].class) {
        meanings.push(Meaning::ContradictoryLabels);
    }
    let mut places: Vec<_> = images.iter().map(|image| (image.split, image.class)).collect();
    places.sort_unstable();
    if places.windows(2).any(|pair| pair[0] == pair[1]) {
        meanings.push(Meaning::Redundant);
    }
    DuplicateImages {
        meanings,
        same_bytes: *likeness == Likeness::SameBytes,
        cosine: match *likeness {
            Likeness::SameBytes => None,
            Likeness::SameLook { cosine } => Some(cosine),
        },
        images,
    }
}

fn leakage(context: &Context<'_>) -> Leakage {
    let mut leaked = vec![false; context.evaluation.n];
    for Duplicates { images, .. } in &context.findings.duplicates {
        if images.iter().any(|image| image.split == Split::Train) {
            for image in images.iter().filter(|image| image.split == Split::Test) {
                leaked[image.row] = true;
            }
        }
    }
    let rows = context.evaluation.rows.iter().zip(&leaked);
    let others: Vec<&EvaluatedImage> = rows.filter(|&(_, &leaked)| !leaked).map(|(row, _)| row).collect();
    let n_correct = others.iter().filter(|row| row.is_correct()).count();
    Leakage {
        n: leaked.len() - others.len(),
        accuracy_without: (!others.is_empty()).then(|| n_correct as f64 / others.len() as f64),
    }
}

fn few_images<'a>(context: &Context<'a>) -> Vec<FewImages<'a>> {
    let evaluation = context.evaluation;
    let mut n_train = vec![0; evaluation.classes.len()];
    context.train.labels.iter().for_each(|&label| n_train[label] += 1);
    let classes = evaluation.classes.iter().zip(n_train).enumerate();
    classes
        .map(|(label, (class, n_train))| {
            let n_test = evaluation.per_class[label].support;
            FewImages {
                class,
                n_train,
                n_test: n_test as usize,
                recall: (n_test > 0).then(|| wilson(evaluation.confusion[label][label], n_test, evaluation.confidence)),
            }
        })
        .filter(|class| class.n_train < FEW_TRAIN || class.n_test < FEW_TEST)
        .collect()
}

impl MoreImages {
    /// Judges by the last doubling of the training images: from about half of them to all.
    ///
    /// Its gain is uncertain by two standard errors, or by three images where so few were predicted otherwise that the
    /// standard error says nothing (of `n` images without a single one, the share may still be `3 / n`).
    /// The answer is yes if the gain is above 0 whatever the uncertainty, hardly if it is below [`WORTHWHILE_GAIN`] whatever
    /// the uncertainty, and unknown otherwise. Where the error falls as a power of the number of images down to some floor,
    /// with an exponent from 0 to 1, each doubling brings half to all of what the one before brought.
    fn of(cross_validation: Option<&CrossValidationInfo>) -> Self {
        let unknown = |explanation: &str| MoreImages {
            answer: WouldHelp::Unknown,
            explanation: explanation.to_owned(),
            last_doubling: None,
            expected_gain: None,
        };
        let Some(found) = cross_validation else {
            return unknown(
                "Cannot be told: only cross-validation trains with fewer images, and C was given. \
                 Choose it by --c auto to know.",
            );
        };
        let Some(doubling) = last_doubling(&found.learning_curve) else {
            return unknown("Cannot be told: no model was trained with half of the images.");
        };
        let Doubling {
            n_train_before,
            n_train_after,
            gain,
            standard_error,
        } = doubling;
        let margin = f64::max(2.0 * standard_error, 3.0 / found.n_held_out.max(1) as f64);
        let observed = format!(
            "from {} to {} training images the accuracy {} by {} ± {} percentage points",
            count(n_train_before.round()),
            count(n_train_after.round()),
            if gain < 0.0 { "fell" } else { "rose" },
            points(gain.abs()),
            points(margin),
        );
        let (answer, expected_gain, explanation) = if gain - margin > 0.0 && gain + margin >= WORTHWHILE_GAIN {
            let (less, more) = (points(0.5 * gain), points(gain));
            let words = format!(
                "Yes: twice as many would probably bring {less} to {more} percentage points more, \
                 half to all of what the last doubling brought ({observed})."
            );
            (WouldHelp::Yes, Some([0.5 * gain, gain]), words)
        } else if gain + margin < WORTHWHILE_GAIN {
            (WouldHelp::Hardly, None, format!("Hardly: {observed}."))
        } else {
            let words = format!("Cannot be told: {observed}, which may be chance as well as a worthwhile gain.");
            (WouldHelp::Unknown, None, words)
        };
        MoreImages {
            answer,
            explanation,
            last_doubling: Some(doubling),
            expected_gain,
        }
    }
}

/// From the point at about half of the images, if there is one, to the last.
fn last_doubling(curve: &[LearningPoint]) -> Option<Doubling> {
    let (last, before) = curve.split_last()?;
    let from_half = |point: &LearningPoint| (point.n_train / last.n_train - 0.5).abs();
    let half = (before.iter()).min_by(|a, b| from_half(a).total_cmp(&from_half(b)))?;
    let [gain, standard_error] = half.behind;
    (from_half(half) <= 0.1).then_some(Doubling {
        n_train_before: half.n_train,
        n_train_after: last.n_train,
        gain,
        standard_error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(n_held_out: usize, behind: [f64; 2], answer: WouldHelp, words: &str) {
        let point = |share: f64, behind: [f64; 2]| LearningPoint {
            share,
            n_train: 800.0 * share,
            accuracy: 0.9 - behind[0],
            behind,
        };
        let found = MoreImages::of(Some(&CrossValidationInfo {
            folds: 5,
            n_held_out,
            accuracy: None,
            candidates: Vec::new(),
            thresholds: Vec::new(),
            learning_curve: vec![point(0.25, [0.5, 0.001]), point(0.5, behind), point(1.0, [0.0; 2])],
        }));
        assert_eq!(found.answer, answer, "{}", found.explanation);
        assert!(found.explanation.contains(words), "{}", found.explanation);
        assert_eq!(found.expected_gain.is_some(), answer == WouldHelp::Yes);
    }

    #[test]
    fn more_images_help_where_the_last_doubling_did_beyond_doubt() {
        check(1_000, [0.02, 0.004], WouldHelp::Yes, "1.0 to 2.0 percentage points");
        check(1_000, [0.02, 0.011], WouldHelp::Unknown, "2.0 ± 2.2");
        check(1_000, [0.001, 0.002], WouldHelp::Hardly, "0.1 ± 0.4");
        check(1_000, [0.001, 0.005], WouldHelp::Unknown, "chance");
        check(1_000, [-0.02, 0.004], WouldHelp::Hardly, "fell by 2.0 ± 0.8");
    }

    #[test]
    fn a_standard_error_of_nothing_is_not_believed_of_few_images() {
        check(20, [0.0, 0.0], WouldHelp::Unknown, "0.0 ± 15.0");
        check(3_000, [0.0, 0.0], WouldHelp::Hardly, "0.0 ± 0.1");
    }

    #[test]
    fn without_a_point_at_about_half_nothing_is_told() {
        let point = |n_train: f64| LearningPoint {
            share: n_train / 100.0,
            n_train,
            accuracy: 0.5,
            behind: [0.1, 0.01],
        };
        assert!(last_doubling(&[point(20.0), point(100.0)]).is_none());
        assert!(last_doubling(&[point(100.0)]).is_none());
        assert!(last_doubling(&[]).is_none());
        assert_eq!(
            last_doubling(&[point(45.0), point(100.0)]).unwrap().n_train_before,
            45.0
        );
    }
}
