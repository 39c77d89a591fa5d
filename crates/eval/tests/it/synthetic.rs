//! Evaluations made up for the tests, and their reports.

use std::path::Path;

use luthier_artifact::Digest;
use luthier_eval::{Context, EvaluateConfig, Evaluation, Findings, Images, Predictions, Variance, write_report};
use ndarray::Array2;

/// `n` images in these classes; about one in five is wrong, mostly in favour of the next class.
pub(crate) fn evaluation(classes: &[String], n: usize) -> Evaluation {
    let n_classes = classes.len();
    let images: Vec<Digest> = (0..n).map(|row| Digest::of(&row.to_le_bytes())).collect();
    let truth: Vec<usize> = (0..n).map(|row| row % n_classes).collect();
    // The digest's bytes serve as random numbers.
    let mut probabilities = Array2::from_shape_fn((n, n_classes), |(row, class)| {
        // The class's share keeps bytes that happen to be equal from making a tie.
        let noise = (f64::from(images[row].as_bytes()[class % 32]) + class as f64 / n_classes as f64) / 256.0;
        let wrong = images[row].as_bytes()[31] < 51;
        let shift = if wrong {
            1 + usize::from(images[row].as_bytes()[30] < 64)
        } else {
            0
        };
        (4.0 * noise
            + if class == (truth[row] + shift) % n_classes {
                5.0
            } else {
                0.0
            })
        .exp()
    });
    probabilities.outer_iter_mut().for_each(|mut row| row /= row.sum());
    let predictions = Predictions {
        classes,
        images: &images,
        truth: &truth,
        probabilities: probabilities.view(),
        uncalibrated: probabilities.view(),
    };
    EvaluateConfig {
        confidence: 0.95,
        seed: 0,
    }
    .run(&predictions)
    .unwrap()
}

pub(crate) fn names<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).to_vec()
}

/// What a report needs beside an evaluation, made up.
pub(crate) struct Made<'a> {
    evaluation: &'a Evaluation,
    findings: Findings,
    files: Vec<String>,
    labels: Vec<usize>,
}

impl<'a> Made<'a> {
    /// A file name for each row, and nothing found.
    pub(crate) fn for_report(evaluation: &'a Evaluation) -> Self {
        Made {
            evaluation,
            findings: Findings::default(),
            files: (0..evaluation.n).map(|row| format!("folder/{row:05}.jpg")).collect(),
            labels: evaluation.rows.iter().map(|row| row.truth).collect(),
        }
    }

    /// A context of which nothing else is known; the training images are those of the test.
    pub(crate) fn context(&self) -> Context<'_> {
        let images = Images {
            files: &self.files,
            labels: &self.labels,
        };
        Context {
            evaluation: self.evaluation,
            findings: &self.findings,
            train: images,
            test: images,
            skipped: &[],
            warnings: &[],
            facts: &[],
            date: None,
            stages: &[],
            variance: Variance {
                ratios: &[0.5, 0.3, 0.15, 0.05],
                n_components: 3,
            },
            cross_validation: None,
            thumbnail: &|_, _, _| None,
        }
    }
}

/// Writes the report of an evaluation of which nothing else is known.
pub(crate) fn write(folder: &Path, evaluation: &Evaluation) {
    write_report(folder, &Made::for_report(evaluation).context()).unwrap();
}

pub(crate) fn read(folder: &Path, name: &str) -> String {
    String::from_utf8(std::fs::read(folder.join(name)).unwrap()).unwrap()
}
