use luthier_artifact::{CandidateC, CrossValidationInfo, Digest, LearningPoint, Split, Threshold, file_names};
use ndarray::ArrayView1;
use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use serde_json::value::to_raw_value;

use super::conclusions::{
    Conclusions, ConfusedPair, DuplicateImages, FewImages, Leakage, Mislabelled, MoreImages, Nearest,
};
use super::{Context, CrossValidated, Skipped, StageTime, Variance, Warning};
use crate::{ClassMetrics, Estimate, HeldOutFigures, Reliability};

/// Changes when a field of `report.json` changes its name or meaning, not when one is added.
const SCHEMA: &str = "luthier-report/1";

#[derive(Serialize)]
struct Report<'a> {
    schema: &'static str,
    date: Option<&'a str>,
    n: usize,
    confidence: f64,
    accuracy: Estimate,
    macro_f1: Estimate,
    log_loss: f64,
    /// What the figures are about: test images, or training images that cross-validation held out.
    split: Split,
    /// Beside figures about test images.
    held_out: Option<HeldOutFigures>,
    top_k: Vec<TopK>,
    calibration: Calibration<'a>,
    cross_validation: Option<CrossValidationEntry<'a>>,
    warnings: &'a [Warning],
    facts: Vec<Fact<'a>>,
    classes: &'a [String],
    per_class: Vec<Class<'a>>,
    macro_average: ClassMetrics,
    weighted_average: ClassMetrics,
    confusion: &'a [Vec<u64>],
    confused_pairs: &'a [ConfusedPair<'a>],
    judged_training_images: bool,
    compared_looks: bool,
    mislabelled: &'a [Mislabelled<'a>],
    duplicates: &'a [DuplicateImages<'a>],
    leakage: &'a Leakage,
    few_images: &'a [FewImages<'a>],
    more_images: &'a MoreImages,
    variance: Variance<'a>,
    stages: &'a [StageTime],
    skipped: &'a [Skipped],
    predictions: Vec<OneLine<PredictionEntry<'a>>>,
}

#[derive(Serialize)]
struct CrossValidationEntry<'a> {
    folds: usize,
    n_held_out: usize,
    candidates: &'a [CandidateC],
    c: f64,
    temperature: f64,
    thresholds: &'a [Threshold],
    learning_curve: &'a [LearningPoint],
}

impl<'a> CrossValidationEntry<'a> {
    fn of(found: CrossValidated<'a>) -> Self {
        let CrossValidated { info, c, temperature } = found;
        let CrossValidationInfo {
            folds,
            n_held_out,
            // The figures say it.
            accuracy: _,
            candidates,
            thresholds,
            learning_curve,
        } = info;
        CrossValidationEntry {
            folds: *folds,
            n_held_out: *n_held_out,
            candidates,
            c,
            temperature,
            thresholds,
            learning_curve,
        }
    }
}

#[derive(Serialize)]
struct Calibration<'a> {
    before: Option<&'a Reliability>,
    after: &'a Reliability,
}

#[derive(Serialize)]
struct TopK {
    k: usize,
    accuracy: f64,
}

#[derive(Serialize)]
struct Fact<'a> {
    name: &'a str,
    value: &'a str,
}

#[derive(Serialize)]
struct Class<'a> {
    class: &'a str,
    #[serde(flatten)]
    metrics: ClassMetrics,
}

#[derive(Serialize)]
struct PredictionEntry<'a> {
    file: &'a str,
    image: Digest,
    true_class: &'a str,
    predicted_class: &'a str,
    #[serde(serialize_with = "numbers")]
    probabilities: ArrayView1<'a, f64>,
    /// Across and up on the map.
    #[serde(skip_serializing_if = "Option::is_none")]
    map: Option<[f64; 2]>,
    /// Of a wrongly predicted image.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    nearest_training_images: &'a [Nearest<'a>],
}

fn numbers<S: Serializer>(numbers: &ArrayView1<'_, f64>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(numbers)
}

/// What is written on one line. All else has a line for each number; predictions have as many numbers as images times
/// classes.
struct OneLine<T>(T);

impl<T: Serialize> Serialize for OneLine<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        to_raw_value(&self.0).map_err(S::Error::custom)?.serialize(serializer)
    }
}

/// Everything the report knows, as JSON.
pub(super) fn report(context: &Context<'_>, conclusions: &Conclusions<'_>) -> Vec<u8> {
    let evaluation = context.evaluation;
    let mut nearest: Vec<&[Nearest<'_>]> = vec![&[]; evaluation.n];
    for mistake in &conclusions.mistakes {
        nearest[mistake.at] = &mistake.nearest;
    }
    let class_of = |label: usize| evaluation.classes[label].as_str();
    let report = Report {
        schema: SCHEMA,
        date: context.date,
        n: evaluation.n,
        confidence: evaluation.confidence,
        accuracy: evaluation.accuracy,
        macro_f1: evaluation.macro_f1,
        log_loss: evaluation.log_loss,
        split: evaluation.split,
        held_out: evaluation.held_out,
        top_k: evaluation
            .top_k
            .iter()
            .map(|&(k, accuracy)| TopK { k, accuracy })
            .collect(),
        calibration: Calibration {
            before: evaluation.uncalibrated.as_ref(),
            after: &evaluation.reliability,
        },
        cross_validation: context.cross_validation.map(CrossValidationEntry::of),
        warnings: context.warnings,
        facts: context.facts.iter().map(|(name, value)| Fact { name, value }).collect(),
        classes: &evaluation.classes,
        per_class: evaluation
            .classes
            .iter()
            .zip(&evaluation.per_class)
            .map(|(class, &metrics)| Class { class, metrics })
            .collect(),
        macro_average: evaluation.macro_average,
        weighted_average: evaluation.weighted_average,
        confusion: &evaluation.confusion,
        confused_pairs: &conclusions.confused_pairs,
        judged_training_images: context.findings.judged_training_images,
        compared_looks: context.findings.compared_looks,
        mislabelled: &conclusions.mislabelled,
        duplicates: &conclusions.duplicates,
        leakage: &conclusions.leakage,
        few_images: &conclusions.few_images,
        more_images: &conclusions.more_images,
        variance: context.variance,
        stages: context.stages,
        skipped: context.skipped,
        predictions: context
            .evaluated
            .files
            .iter()
            .zip(&evaluation.rows)
            .zip(context.probabilities.outer_iter())
            .enumerate()
            .map(|(at, ((file, row), probabilities))| {
                OneLine(PredictionEntry {
                    file,
                    image: row.image,
                    true_class: class_of(row.truth),
                    predicted_class: class_of(row.predicted),
                    probabilities,
                    map: context.findings.map.place(&row.image),
                    nearest_training_images: nearest[at],
                })
            })
            .collect(),
    };
    let json = serde_json::to_string_pretty(&report).expect("numbers, strings and digests always serialize");
    (file_names::to_json(json) + "\n").into_bytes()
}
