//! Evaluations made up for the tests, and their reports.

use std::path::Path;

use luthier_artifact::{CandidateC, CrossValidationInfo, Digest, LearningPoint, Split, Threshold};
use luthier_eval::{
    CheckedLabels, Context, CrossValidated, Duplicates, EvaluateConfig, EvaluatedImage, Evaluation, Findings, ImageMap,
    ImageRef, Images, Likeness, Neighbour, Neighbours, Predictions, StageTime, Suspect, Variance, write_report,
};
use ndarray::Array2;

fn images(n: usize) -> Vec<Digest> {
    (0..n).map(|row| Digest::of(&row.to_le_bytes())).collect()
}

/// The probabilities that [`evaluation`] is made from, `[n, n_classes]`.
pub(crate) fn probabilities(n_classes: usize, n: usize) -> Array2<f64> {
    let images = images(n);
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
            + if class == (row % n_classes + shift) % n_classes {
                5.0
            } else {
                0.0
            })
        .exp()
    });
    probabilities.outer_iter_mut().for_each(|mut row| row /= row.sum());
    probabilities
}

/// `n` images in these classes; about one in five is wrong, mostly in favour of the next class.
pub(crate) fn evaluation(classes: &[String], n: usize) -> Evaluation {
    let truth: Vec<usize> = (0..n).map(|row| row % classes.len()).collect();
    let probabilities = probabilities(classes.len(), n);
    let predictions = Predictions {
        classes,
        images: &images(n),
        truth: &truth,
        probabilities: probabilities.view(),
        uncalibrated: probabilities.view(),
    };
    EvaluateConfig {
        confidence: 0.95,
        seed: 0,
    }
    .run(Split::Test, &predictions, Some(&predictions), &())
    .unwrap()
}

pub(crate) fn names<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).to_vec()
}

/// What a report needs beside an evaluation, made up.
pub(crate) struct Made<'a> {
    evaluation: &'a Evaluation,
    probabilities: Array2<f64>,
    findings: Findings,
    files: Vec<String>,
    labels: Vec<usize>,
    digests: Vec<Digest>,
    rows: Vec<usize>,
    cross_validation: Option<CrossValidationInfo>,
    stages: Vec<StageTime>,
}

impl<'a> Made<'a> {
    /// A file name for each row, and nothing found.
    pub(crate) fn for_report(evaluation: &'a Evaluation) -> Self {
        Made {
            evaluation,
            probabilities: probabilities(evaluation.classes.len(), evaluation.n),
            findings: Findings::default(),
            files: (0..evaluation.n).map(|row| format!("folder/{row:05}.jpg")).collect(),
            labels: evaluation.rows.iter().map(|row| row.truth).collect(),
            digests: evaluation.rows.iter().map(|row| row.image).collect(),
            rows: (0..evaluation.n).collect(),
            cross_validation: None,
            stages: Vec::new(),
        }
    }

    /// Something of everything, for an evaluation of at least nine rows with a mistake among them.
    pub(crate) fn with_everything(evaluation: &'a Evaluation) -> Self {
        let n = evaluation.n;
        let n_classes = evaluation.classes.len();
        let train = |row: usize| ImageRef {
            split: Split::Train,
            row: row % n,
        };
        let test = |row: usize| ImageRef {
            split: Split::Test,
            row: row % n,
        };
        let suspect = |image: ImageRef, suggested_probability: f64| Suspect {
            image,
            label: evaluation.rows[image.row].truth,
            suggested: (evaluation.rows[image.row].truth + 1) % n_classes,
            label_probability: 0.01,
            suggested_probability,
        };
        let looks_the_same = Likeness::SameLook { cosine: 0.9987 };
        let mistakes = evaluation.rows.iter().enumerate().filter(|(_, row)| !row.is_correct());
        Made {
            findings: Findings {
                compared_looks: true,
                suspects: vec![suspect(train(4), 0.97), suspect(test(7), 0.93), suspect(train(1), 0.9)],
                judged_training_images: true,
                // Rows `n_classes` apart have the same label.
                duplicates: vec![
                    Duplicates {
                        images: vec![train(0), test(0)],
                        likeness: Likeness::SameBytes,
                    },
                    Duplicates {
                        images: vec![train(1), train(2), test(2)],
                        likeness: looks_the_same,
                    },
                    Duplicates {
                        images: vec![train(3), train(3 + n_classes)],
                        likeness: looks_the_same,
                    },
                ],
                neighbours: (std::iter::once(train(4)).chain(mistakes.map(|(row, _)| test(row))))
                    .map(|image| Neighbours {
                        image,
                        nearest: (0..3)
                            .map(|place| Neighbour {
                                row: (image.row + 2 * place + 1) % n,
                                cosine: 0.9 - 0.1 * place as f64,
                            })
                            .collect(),
                    })
                    .collect(),
                map: {
                    let mut rows: Vec<&EvaluatedImage> = evaluation.rows.iter().collect();
                    rows.sort_by_key(|row| row.image);
                    let place = |row: &&EvaluatedImage| {
                        let noise = |byte: usize| f64::from(row.image.as_bytes()[byte]) / 32.0 - 4.0;
                        let angle = row.truth as f64 / n_classes as f64 * std::f64::consts::TAU;
                        [10.0 * angle.cos() + noise(20), 7.0 * angle.sin() + noise(21)]
                    };
                    ImageMap {
                        images: rows.iter().map(|row| row.image).collect(),
                        places: rows.iter().map(place).collect(),
                    }
                },
            },
            cross_validation: Some(cross_validated()),
            stages: [
                ("scan", 0.04),
                ("extract", 61.5),
                ("features", 1.2),
                ("classify", 3.9),
                ("evaluate", 0.3),
            ]
            .map(|(name, seconds)| StageTime {
                name: name.to_owned(),
                seconds,
            })
            .to_vec(),
            ..Made::for_report(evaluation)
        }
    }

    /// A context of which nothing else is known; the training images are those of the test.
    pub(crate) fn context(&self) -> Context<'_> {
        let images = Images {
            files: &self.files,
            labels: &self.labels,
            digests: &self.digests,
        };
        Context {
            evaluation: self.evaluation,
            probabilities: &self.probabilities,
            findings: &self.findings,
            train: images,
            test: images,
            evaluated: images,
            evaluated_rows: &self.rows,
            checked: CheckedLabels { right: 9, wrong: 31 },
            has_two_folders: true,
            skipped: &[],
            warnings: &[],
            facts: &[],
            date: None,
            stages: &self.stages,
            variance: Variance {
                ratios: &[0.5, 0.3, 0.15, 0.05],
                n_components: 3,
            },
            cross_validation: self.cross_validation.as_ref().map(|info| CrossValidated {
                info,
                c: 0.01,
                temperature: 1.25,
            }),
            thumbnail: &|_, _, _| Ok(None),
            link: &|split, file| Some(format!("../photos/{split}/{file}")),
        }
    }
}

fn cross_validated() -> CrossValidationInfo {
    let candidates = [0.52, 0.41, 0.36, 0.38, 0.47, 0.61].into_iter().zip(-4..);
    let curve = [0.1, 0.25, 0.5, 0.75, 1.0].into_iter().zip([
        [0.11, 0.012],
        [0.05, 0.008],
        [0.019, 0.005],
        [0.006, 0.004],
        [0.0, 0.0],
    ]);
    CrossValidationInfo {
        folds: 5,
        n_held_out: 1_444,
        accuracy: Some(0.925),
        candidates: candidates
            .map(|(log_loss, power)| CandidateC {
                c: 10f64.powi(power),
                log_loss,
                standard_error: 0.02,
            })
            .collect(),
        thresholds: vec![Threshold {
            share: 0.95,
            probability: 0.7,
            distance: None,
        }],
        learning_curve: curve
            .map(|(share, behind)| LearningPoint {
                share,
                n_train: 1_155.0 * share,
                accuracy: 0.925 - behind[0],
                behind,
            })
            .collect(),
    }
}

/// Writes the report of an evaluation of which nothing else is known.
pub(crate) fn write(folder: &Path, evaluation: &Evaluation) {
    write_report(folder, &Made::for_report(evaluation).context()).unwrap();
}

pub(crate) fn read(folder: &Path, name: &str) -> String {
    String::from_utf8(std::fs::read(folder.join(name)).unwrap()).unwrap()
}
