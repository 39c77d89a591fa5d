use std::collections::BTreeMap;

use luthier_artifact::{Digest, ReadRows};
use luthier_features::{FeaturesConfig, Keep, Moments, Projection, Solver, Subset};
use ndarray::Array2;
use rayon::prelude::*;

use crate::logistic::log_loss;
use crate::{
    CandidateC, ClassDistance, ClassWeight, Error, FittedLogisticRegression, LogisticRegression, Result, Training,
};

/// By how much, for each weight, the objective of a candidate may be above its optimum.
const EXCESS: f64 = 1e-8;

/// Stratified cross-validation on the training images.
///
/// Scaler and components are fitted anew in each fold, so that nothing of the images held out is known; a fold with
/// fewer images than the components asked for keeps as many as it can. Folds are judged in parallel.
///
/// The only image of a class is held out in no fold, for nothing would be known of its class. Copies of an image in one
/// class are held out together, or the others would be no judges.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossValidation {
    /// How scaler and components are fitted.
    pub features: FeaturesConfig,
    /// Who fits the regression.
    pub solver: Solver,
    /// How much each class counts in the fits; all images held out count the same.
    pub class_weight: ClassWeight,
    /// The number of folds, at least 2; fewer if fewer images can be held out.
    pub folds: usize,
    /// What the shuffle before starts from.
    pub seed: u64,
}

/// What models say of training images that they have not seen.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldOut {
    /// The rows that were held out, `m` of them, in ascending order.
    pub rows: Vec<usize>,
    /// The number of folds.
    pub n_folds: usize,
    /// What was found for each C of the grid.
    pub candidates: Vec<JudgedC>,
    /// The distance of each held-out image to the nearest class, `[m]`; `None` if the images of each class are all the
    /// same in some fold.
    pub distances: Option<Vec<f64>>,
}

/// What cross-validation found for one C.
#[derive(Clone, Debug, PartialEq)]
pub struct JudgedC {
    /// How well it did.
    pub candidate: CandidateC,
    /// The scores of each held-out image, `[m, k]`: the logarithms of its probabilities up to a constant.
    pub scores: Array2<f64>,
}

/// What one fold's models say of the images that it holds out.
struct JudgedFold {
    /// For each C of the grid the mean log loss and the scores.
    candidates: Vec<(f64, Array2<f64>)>,
    distances: Option<Vec<f64>>,
}

impl CrossValidation {
    /// Judges every C of a grid on `train`, in ascending order: each fit starts from the one before.
    ///
    /// # Errors
    /// [`Error::Folds`] below two folds, [`Error::NothingToHoldOut`] if no class has two images, and those of the fits.
    pub fn run<R: ReadRows<Feature = f32>>(&self, train: &Training<'_, R>, grid: &[f64]) -> Result<HeldOut> {
        let folds = Folds::deal(train, self.folds, self.seed)?;
        let mut alone = train.labels_of(&folds.rows(Option::is_none));
        alone.dedup();
        for label in alone {
            let class = &train.classes[label];
            tracing::warn!("class {class} has one training image, which cross-validation cannot hold out");
        }
        let moments = self.moments(train, &folds)?;
        let judged: Vec<JudgedFold> = (0..folds.n_folds)
            .into_par_iter()
            .map(|fold| self.judge(train, &folds, fold, moments.as_deref(), grid))
            .collect::<Result<_>>()?;

        let rows = folds.rows(Option::is_some);
        let places: Vec<Vec<usize>> = (0..folds.n_folds)
            .map(|fold| {
                (0..rows.len())
                    .filter(|&place| folds.of[rows[place]] == Some(fold))
                    .collect()
            })
            .collect();
        let candidates = grid.iter().enumerate().map(|(index, &c)| {
            let losses: Vec<f64> = judged.iter().map(|fold| fold.candidates[index].0).collect();
            let mut scores = Array2::zeros((rows.len(), train.n_classes()));
            for (fold, places) in judged.iter().zip(&places) {
                for (&place, found) in places.iter().zip(fold.candidates[index].1.rows()) {
                    scores.row_mut(place).assign(&found);
                }
            }
            let candidate = summarize(c, &losses);
            JudgedC { candidate, scores }
        });
        let candidates = candidates.collect();
        let distances = judged
            .iter()
            .map(|fold| fold.distances.as_ref())
            .collect::<Option<Vec<_>>>();
        let distances = distances.map(|folds| {
            let mut distances = vec![0.0; rows.len()];
            for (places, found) in places.iter().zip(folds) {
                for (&place, &distance) in places.iter().zip(found) {
                    distances[place] = distance;
                }
            }
            distances
        });
        Ok(HeldOut {
            rows,
            n_folds: folds.n_folds,
            candidates,
            distances,
        })
    }

    /// The moments of each fold's rows, if scaler and components come from moments: a row is then multiplied for its own
    /// fold alone, and the moments of the others are added up.
    fn moments<R: ReadRows<Feature = f32>>(
        &self,
        train: &Training<'_, R>,
        folds: &Folds,
    ) -> Result<Option<Vec<Moments>>> {
        let n_fitted = (0..folds.n_folds).map(|fold| folds.rows(|of| of != &Some(fold)).len());
        let is_tall = n_fitted.min().is_some_and(|n| n >= train.features.n_features());
        if self.features.solver != Solver::Faer || !is_tall {
            return Ok(None);
        }
        // The rows that are never held out, if there are any, come last.
        let parts = (0..folds.n_folds).map(Some).chain([None]);
        let parts = parts.map(|part| folds.rows(|of| *of == part));
        let moments = parts.filter(|rows| !rows.is_empty()).map(|chosen| {
            Moments::of(Subset {
                rows: &train.features,
                chosen: &chosen,
            })
        });
        Ok(Some(moments.collect::<luthier_features::Result<_>>()?))
    }

    /// Fits to all rows but those of a fold, for every C, and judges these.
    fn judge<R: ReadRows<Feature = f32>>(
        &self,
        train: &Training<'_, R>,
        folds: &Folds,
        fold: usize,
        moments: Option<&[Moments]>,
        grid: &[f64],
    ) -> Result<JudgedFold> {
        let (held_out, fitted) = (folds.rows(|of| *of == Some(fold)), folds.rows(|of| *of != Some(fold)));
        let keep = match self.features.keep {
            Keep::Components(count) => Keep::Components(count.min(fitted.len() - 1).min(train.features.n_features())),
            share => share,
        };
        let features = FeaturesConfig { keep, ..self.features };
        let subset = |chosen| Subset {
            rows: &train.features,
            chosen,
        };
        let projection = match moments {
            Some(moments) => {
                let mut others = moments.iter().enumerate().filter(|&(part, _)| part != fold);
                let (_, first) = others.next().expect("there are two folds or more");
                let mut sum = first.clone();
                others.try_for_each(|(_, moments)| sum.merge(moments))?;
                Projection::of_moments(features, &sum)?
            }
            None => features.run(subset(&fitted))?,
        };
        let (z, z_held_out) = (
            projection.transform(subset(&fitted))?,
            projection.transform(subset(&held_out))?,
        );
        let (labels, labels_held_out) = (train.labels_of(&fitted), train.labels_of(&held_out));

        let mut warm: Option<FittedLogisticRegression> = None;
        let candidates = grid.iter().map(|&c| {
            let regression = LogisticRegression {
                class_weight: self.class_weight,
                tolerance: tolerance(c, labels.len()),
                ..LogisticRegression::new(c, self.solver)?
            };
            let fitted = regression.fit_from(z.view(), &labels, train.n_classes(), warm.as_ref())?;
            let scores = fitted.scores(z_held_out.view())?;
            let loss = log_loss(&scores, &labels_held_out);
            tracing::debug!(fold, c, loss, iterations = fitted.iterations, "cross-validation");
            warm = Some(fitted);
            Ok((loss, scores))
        });
        let candidates = candidates.collect::<Result<_>>()?;
        let distance = ClassDistance::fit_if_spread(z.view(), &labels, train.n_classes())?;
        let distances = distance
            .map(|distance| distance.distances(z_held_out.view()))
            .transpose()?;
        Ok(JudgedFold { candidates, distances })
    }
}

/// The gradient at which the fit of a candidate to `n` images ends.
///
/// Where no entry of the gradient is larger than `t`, the objective, whose curvature in the weights is at least
/// `λ = 1/(C n)`, is at most `t² / 2λ` a weight above its optimum. One tolerance for all would waste time on small C, and
/// flatter large ones: stopping early acts like a penalty.
pub(crate) fn tolerance(c: f64, n: usize) -> f64 {
    (2.0 * EXCESS / (c * n as f64)).sqrt()
}

/// Mean and standard error of a candidate's losses, one a fold.
fn summarize(c: f64, losses: &[f64]) -> CandidateC {
    let n = losses.len() as f64;
    let log_loss = losses.iter().sum::<f64>() / n;
    let variance = losses.iter().map(|loss| (loss - log_loss).powi(2)).sum::<f64>() / (n - 1.0);
    CandidateC {
        c,
        log_loss,
        standard_error: (variance / n).sqrt(),
    }
}

/// Who is held out when.
pub(crate) struct Folds {
    /// The fold in which each row is held out, if it is in any.
    of: Vec<Option<usize>>,
    /// The place of each row's image in the order in which its class was dealt.
    turns: Vec<usize>,
    /// The number of folds, none of which is empty.
    pub(crate) n_folds: usize,
}

impl Folds {
    /// Deals out each class evenly, in an order that depends on the seed and the images only, not on that of the rows.
    pub(crate) fn deal<R: ReadRows<Feature = f32>>(train: &Training<'_, R>, folds: usize, seed: u64) -> Result<Self> {
        if folds < 2 {
            return Err(Error::Folds { found: folds });
        }
        // The rows of each image of each class.
        let mut classes = vec![BTreeMap::<Digest, Vec<usize>>::new(); train.n_classes()];
        for (row, (&label, image)) in train.labels.iter().zip(train.images).enumerate() {
            let draw = Digest::of(&[&seed.to_le_bytes(), image.as_bytes().as_slice()].concat());
            classes[label].entry(draw).or_default().push(row);
        }
        let mut turns = vec![0; train.n_rows()];
        for (turn, rows) in classes.iter().flat_map(|images| images.values().enumerate()) {
            rows.iter().for_each(|&row| turns[row] = turn);
        }
        classes.retain(|images| images.len() > 1);
        let n_dealt = classes.iter().map(BTreeMap::len).sum::<usize>();
        if n_dealt == 0 {
            return Err(Error::NothingToHoldOut);
        }
        let n_folds = folds.min(n_dealt);
        let mut of = vec![None; train.n_rows()];
        // Dealing goes on where the class before ended, so that the folds are of one size as well.
        for (turn, rows) in classes.iter().flat_map(BTreeMap::values).enumerate() {
            rows.iter().for_each(|&row| of[row] = Some(turn % n_folds));
        }
        Ok(Folds { of, turns, n_folds })
    }

    /// The rows of which this is true, in ascending order.
    pub(crate) fn rows(&self, is_chosen: impl Fn(&Option<usize>) -> bool) -> Vec<usize> {
        (0..self.of.len()).filter(|&row| is_chosen(&self.of[row])).collect()
    }

    /// Of the rows that a fold does not hold out this share of each class, and of none less than one row: those dealt
    /// first, in ascending order.
    pub(crate) fn share_of_others<R: ReadRows<Feature = f32>>(
        &self,
        fold: usize,
        train: &Training<'_, R>,
        share: f64,
    ) -> Vec<usize> {
        let mut classes = vec![Vec::new(); train.n_classes()];
        for row in self.rows(|of| *of != Some(fold)) {
            classes[train.labels[row]].push(row);
        }
        let mut rows: Vec<usize> = (classes.iter_mut())
            .flat_map(|rows| {
                rows.sort_by_key(|&row| (self.turns[row], row));
                let n = (share * rows.len() as f64).ceil() as usize;
                rows[..n].iter().copied()
            })
            .collect();
        rows.sort_unstable();
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use luthier_artifact::{ExtractorInfo, FeatureTable};
    use ndarray::Axis;

    fn table(sizes: &[usize]) -> FeatureTable {
        let labels: Vec<usize> = sizes
            .iter()
            .enumerate()
            .flat_map(|(label, &size)| vec![label; size])
            .collect();
        let info = |text: &str| text.to_owned();
        FeatureTable {
            classes: (0..sizes.len()).map(|class| format!("class-{class}")).collect(),
            extractor: ExtractorInfo {
                views: vec![info("squash")],
                combine: info("mean"),
                decode: info("scaled"),
                weights: info("untrained"),
                weights_sha256: info("00"),
                precision: info("fp32"),
            },
            images: (0..labels.len()).map(|row| Digest::of(&row.to_le_bytes())).collect(),
            features: Array2::zeros((labels.len(), 1)),
            labels,
        }
    }

    #[test]
    fn smaller_shares_are_part_of_larger_ones_and_miss_no_class() {
        let table = table(&[23, 7, 1]);
        let train = Training::from(&table);
        let folds = Folds::deal(&train, 5, 0).unwrap();
        for fold in 0..5 {
            let [quarter, half, all] = [0.25, 0.5, 1.0].map(|share| folds.share_of_others(fold, &train, share));
            assert_eq!(all, folds.rows(|of| *of != Some(fold)));
            assert!(quarter.iter().all(|row| half.contains(row)) && half.len() > quarter.len());
            assert!((0..3).all(|label| quarter.iter().any(|&row| table.labels[row] == label)));
        }
    }

    #[test]
    fn folds_share_out_every_class_and_all_images_evenly() {
        let train = table(&[23, 7, 11]);
        let Folds {
            of: fold_of, n_folds, ..
        } = Folds::deal(&Training::from(&train), 5, 1).unwrap();
        assert_eq!(n_folds, 5);
        let sizes = |label: Option<usize>| {
            let mut sizes = [0usize; 5];
            for (fold, &of) in fold_of.iter().flatten().zip(&train.labels) {
                sizes[*fold] += usize::from(label.is_none_or(|label| label == of));
            }
            sizes.iter().max().unwrap() - sizes.iter().min().unwrap()
        };
        for group in [None, Some(0), Some(1), Some(2)] {
            assert!(sizes(group) <= 1, "{group:?}");
        }
    }

    #[test]
    fn folds_follow_the_image_and_the_seed_but_not_the_order_of_rows() {
        let train = table(&[20, 20]);
        let deal = |train: &FeatureTable, seed| Folds::deal(&Training::from(train), 4, seed).unwrap().of;
        let folds = deal(&train, 1);
        let mut swapped = train.clone();
        swapped.images.swap(3, 9);
        let (mut expected, found) = (folds.clone(), deal(&swapped, 1));
        expected.swap(3, 9);
        assert_eq!(found, expected);
        assert_ne!(deal(&train, 2), folds);
    }

    #[test]
    fn small_classes_are_held_out_as_far_as_they_can_be() {
        let deal = |sizes: &[usize], folds| Folds::deal(&Training::from(&table(sizes)), folds, 1);
        // The three of the second class are held out in three different folds, the one of the third in none.
        let Folds { of, n_folds, .. } = deal(&[9, 3, 1], 5).unwrap();
        assert_eq!(n_folds, 5);
        let small: std::collections::HashSet<_> = of[9..12].iter().flatten().collect();
        assert_eq!((small.len(), of[12]), (3, None));
        assert_eq!(deal(&[2, 1], 5).unwrap().n_folds, 2);
        let mut copies = table(&[6]);
        copies.images[3] = copies.images[0];
        let Folds { of, .. } = Folds::deal(&Training::from(&copies), 5, 1).unwrap();
        assert_eq!(of[3], of[0]);
        assert!(matches!(deal(&[1, 1], 5), Err(Error::NothingToHoldOut)));
        assert!(matches!(deal(&[9, 9], 1), Err(Error::Folds { found: 1 })));
    }

    /// Rows that follow no order, in columns of different variance.
    fn with_features(mut train: FeatureTable, d: usize) -> FeatureTable {
        let mut state = 1u64;
        train.features = Array2::from_shape_fn((train.n_rows(), d), |(row, column)| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let noise = (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
            noise * (column + 1) as f32 + if column == train.labels[row] { 1.0 } else { 0.0 }
        });
        train
    }

    #[test]
    fn every_row_is_judged_by_what_was_fitted_to_the_other_folds() {
        // Fewer features than rows, where moments of folds are added up, and more.
        for d in [6, 60] {
            let train = with_features(table(&[18, 12, 9]), d);
            let features = FeaturesConfig {
                keep: Keep::Variance(0.9),
                whiten: false,
                solver: Solver::Faer,
            };
            let cross_validation = CrossValidation {
                features,
                solver: Solver::Faer,
                class_weight: ClassWeight::Uniform,
                folds: 3,
                seed: 4,
            };
            let training = Training::from(&train);
            let held_out = cross_validation.run(&training, &[0.5]).unwrap();
            let ([judged], Some(distances)) = (held_out.candidates.as_slice(), held_out.distances) else {
                panic!("one C, and images that differ");
            };
            assert_eq!(held_out.rows, (0..39).collect::<Vec<_>>());

            let fold_of = Folds::deal(&training, 3, 4).unwrap().of;
            let mut losses = Vec::new();
            for fold in 0..3 {
                let (out, fitted): (Vec<usize>, Vec<usize>) = (0..39).partition(|&row| fold_of[row] == Some(fold));
                let labels: Vec<usize> = fitted.iter().map(|&row| train.labels[row]).collect();
                let x = train.features.select(Axis(0), &fitted);
                let projection = features.run(x.view()).unwrap();
                let z = projection.transform(x.view()).unwrap();
                let z_out = projection
                    .transform(train.features.select(Axis(0), &out).view())
                    .unwrap();
                let regression = LogisticRegression::new(0.5, Solver::Faer).unwrap();
                let expected = regression
                    .fit(z.view(), &labels, 3)
                    .unwrap()
                    .scores(z_out.view())
                    .unwrap();
                let found = judged.scores.select(Axis(0), &out);
                let off = (&found - &expected).fold(0.0f64, |largest, value| largest.max(value.abs()));
                // Candidates are judged before they have quite converged.
                assert!(off < 5e-3, "{d} features: scores off by {off:e}");
                let labels_out: Vec<usize> = out.iter().map(|&row| train.labels[row]).collect();
                losses.push(log_loss(&expected, &labels_out));

                let distance = ClassDistance::fit(z.view(), &labels, 3).unwrap();
                for (expected, &row) in distance.distances(z_out.view()).unwrap().iter().zip(&out) {
                    assert!(
                        (expected - distances[row]).abs() < 1e-6 * expected,
                        "{d} features, row {row}"
                    );
                }
            }
            let mean = losses.iter().sum::<f64>() / 3.0;
            assert!((judged.candidate.log_loss - mean).abs() < 1e-4, "{d} features");
        }
    }
}
