use luthier_artifact::{LearningPoint, Observer, ReadRows, Watched};
use ndarray::{ArrayView2, Axis};

use crate::cross_validation::tolerance;
use crate::folds::Folds;
use crate::{CrossValidation, FittedLogisticRegression, LogisticRegression, Result, Training};

/// The shares of the images that models are trained on.
const SHARES: [f64; 4] = [0.25, 0.5, 0.75, 1.0];

impl CrossValidation {
    /// Trains with this C on growing shares of each fold's images, and judges the held-out images.
    ///
    /// `z` are the components of the training images, `[n, p]`. The folds are those of [`CrossValidation::run`], but
    /// scaler and components are fitted to all images, for the curve shows what labels are worth. Each fit has at least
    /// one image of each class.
    ///
    /// # Errors
    /// Those of [`CrossValidation::run`].
    pub fn learning_curve<R: ReadRows<Feature = f32>>(
        &self,
        train: &Training<'_, R>,
        z: ArrayView2<'_, f64>,
        c: f64,
        observer: &dyn Observer,
    ) -> Result<Vec<LearningPoint>> {
        let folds = Folds::deal(train, self.folds, self.seed)?;
        let task = observer.task("fits of the learning curve", (folds.n_folds * SHARES.len()) as u64);
        let watched = Watched { observer, task: &*task };
        // One after the other, for each takes a copy of most of the components.
        let judged = (0..folds.n_folds)
            .map(|fold| self.judge_shares(train, z, c, &folds, fold, watched))
            .collect::<Result<Vec<_>>>();
        drop(task);
        let judged: Vec<[JudgedShare; SHARES.len()]> = judged?;
        let of_share = |place: usize| judged.iter().map(move |shares| &shares[place]);
        let last: Vec<bool> = of_share(SHARES.len() - 1)
            .flat_map(|judged| &judged.is_right)
            .copied()
            .collect();
        let points = SHARES.iter().enumerate().map(|(place, &share)| {
            let is_right: Vec<bool> = of_share(place).flat_map(|judged| &judged.is_right).copied().collect();
            let n_trained: usize = of_share(place).map(|judged| judged.n_trained).sum();
            LearningPoint {
                share,
                n_train: n_trained as f64 / folds.n_folds as f64,
                accuracy: is_right.iter().filter(|&&right| right).count() as f64 / is_right.len() as f64,
                behind: difference(&last, &is_right),
            }
        });
        Ok(points.collect())
    }

    fn judge_shares<R: ReadRows<Feature = f32>>(
        &self,
        train: &Training<'_, R>,
        z: ArrayView2<'_, f64>,
        c: f64,
        folds: &Folds,
        fold: usize,
        watched: Watched<'_>,
    ) -> Result<[JudgedShare; SHARES.len()]> {
        let held_out = folds.rows(|of| *of == Some(fold));
        let (z_held_out, labels_held_out) = (z.select(Axis(0), &held_out), train.labels_of(&held_out));
        let mut warm: Option<FittedLogisticRegression> = None;
        let mut judged: [JudgedShare; SHARES.len()] = Default::default();
        for (judged, share) in judged.iter_mut().zip(SHARES) {
            let rows = folds.share_of_others(fold, train, share);
            let regression = LogisticRegression {
                class_weight: self.class_weight,
                tolerance: tolerance(c, rows.len()),
                ..LogisticRegression::new(c, self.solver)?
            };
            let (z, labels) = (z.select(Axis(0), &rows), train.labels_of(&rows));
            let fitted = regression.fit_from(z.view(), &labels, train.n_classes(), warm.as_ref(), watched.observer)?;
            watched.task.advance(1);
            let predicted = fitted.predict(z_held_out.view())?;
            *judged = JudgedShare {
                n_trained: rows.len(),
                is_right: predicted.iter().zip(&labels_held_out).map(|(a, b)| a == b).collect(),
            };
            warm = Some(fitted);
        }
        Ok(judged)
    }
}

/// How well a model of a share of the images predicts the images that its fold holds out.
#[derive(Default)]
struct JudgedShare {
    n_trained: usize,
    /// One entry an image.
    is_right: Vec<bool>,
}

/// How much more often `last` is right than `first` about the same images, and the standard error of the difference.
fn difference(last: &[bool], first: &[bool]) -> [f64; 2] {
    let n = last.len() as f64;
    let differences = || (last.iter().zip(first)).map(|(&last, &first)| f64::from(last) - f64::from(first));
    let mean = differences().sum::<f64>() / n;
    let variance = differences().map(|difference| (difference - mean).powi(2)).sum::<f64>() / n;
    [mean, (variance / n).sqrt()]
}

#[cfg(test)]
mod tests {
    use luthier_artifact::{Digest, ExtractorInfo};
    use luthier_features::{ComponentCount, FeaturesConfig, Solver};
    use ndarray::Array2;

    use super::*;
    use crate::ClassWeight;

    #[test]
    fn points_are_what_models_of_the_images_dealt_first_get_right() {
        // Two classes that overlap, and a third of which there is one image.
        let labels: Vec<usize> = (0..81).map(|row| if row == 80 { 2 } else { row % 2 }).collect();
        let images: Vec<Digest> = (0..81u64).map(|row| Digest::of(&row.to_le_bytes())).collect();
        let x = Array2::from_shape_fn((81, 3), |(row, column)| {
            let noise = f32::from(images[row].as_bytes()[column]) / 64.0;
            noise + if column == labels[row] { 1.5 } else { 0.0 }
        });
        let classes = ["a", "b", "c"].map(str::to_owned);
        let train = Training {
            classes: &classes,
            extractor: &ExtractorInfo {
                views: Vec::new(),
                pooling: "mean".into(),
                combine: String::new(),
                decode: String::new(),
                weights: String::new(),
                weights_sha256: String::new(),
                precision: String::new(),
            },
            labels: &labels,
            images: &images,
            look_alikes: &[],
            features: x.view(),
        };
        let cross_validation = CrossValidation {
            features: FeaturesConfig {
                n_components: ComponentCount::All,
                whiten: false,
                solver: Solver::Faer,
            },
            solver: Solver::Faer,
            class_weight: ClassWeight::Uniform,
            folds: 4,
            seed: 7,
        };
        let z = x.mapv(f64::from);
        let points = cross_validation.learning_curve(&train, z.view(), 1.0, &()).unwrap();

        let folds = Folds::deal(&train, 4, 7).unwrap();
        let right_of = |share: f64| -> Vec<bool> {
            let of_fold = |fold: usize| {
                let rows = folds.share_of_others(fold, &train, share);
                let regression = LogisticRegression::new(1.0, Solver::Faer).unwrap();
                let fitted = regression
                    .fit(z.select(Axis(0), &rows).view(), &train.labels_of(&rows), 3)
                    .unwrap();
                let held_out = folds.rows(|of| *of == Some(fold));
                let predicted = fitted.predict(z.select(Axis(0), &held_out).view()).unwrap();
                (predicted.into_iter().zip(held_out))
                    .map(|(label, row)| label == labels[row])
                    .collect::<Vec<_>>()
            };
            (0..4).flat_map(of_fold).collect()
        };
        let all = right_of(1.0);
        assert_eq!(points.iter().map(|point| point.share).collect::<Vec<_>>(), SHARES);
        // Of 30 images of each class and the one that is never held out.
        assert_eq!(
            points.iter().map(|point| point.n_train).collect::<Vec<_>>(),
            [17.0, 31.0, 47.0, 61.0]
        );
        for point in &points {
            let right = right_of(point.share);
            let accuracy = |right: &[bool]| right.iter().filter(|&&right| right).count() as f64 / 80.0;
            assert_eq!(point.accuracy, accuracy(&right));
            assert!((point.behind[0] - (accuracy(&all) - accuracy(&right))).abs() < 1e-12);
            let changed = right.iter().zip(&all).filter(|(a, b)| a != b).count() as f64 / 80.0;
            assert!((point.behind[1] - ((changed - point.behind[0].powi(2)) / 80.0).sqrt()).abs() < 1e-12);
        }
        assert!(points[0].behind[1] > 0.0, "{points:?}");
    }
}
