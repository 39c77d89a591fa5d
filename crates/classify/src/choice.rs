use std::fmt;
use std::str::FromStr;

use luthier_artifact::{Digest, FeatureTable};
use luthier_features::{FeaturesConfig, Keep, Moments, Projection, Solver, Subset};
use ndarray::Array2;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::logistic::log_loss;
use crate::{ClassDistance, Error, FittedLogisticRegression, LogisticRegression, Result};

/// The candidates of [`ChooseC::Auto`].
pub(crate) const GRID: [f64; 9] = [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4];

/// The gradient at which a candidate is judged: its log loss is then known to four digits (three for C = 1e4), far
/// below the differences between folds. Stopping much earlier would flatter large C, as it acts like a penalty.
const TOLERANCE: f64 = 1e-8;

/// Where C, the inverse strength of regularization, comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ChooseC {
    /// It is given.
    Fixed(f64),
    /// Cross-validation on the training images chooses among 1e-4, 1e-3, … 1e4.
    Auto,
}

impl fmt::Display for ChooseC {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChooseC::Fixed(c) => c.fmt(f),
            ChooseC::Auto => f.write_str("auto"),
        }
    }
}

impl FromStr for ChooseC {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.parse::<f64>() {
            _ if text == "auto" => Ok(ChooseC::Auto),
            Ok(c) if c > 0.0 && c.is_finite() => Ok(ChooseC::Fixed(c)),
            _ => Err(Error::C { found: text.to_owned() }),
        }
    }
}

/// How well one C did in cross-validation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CandidateC {
    /// The inverse strength of regularization.
    pub c: f64,
    /// The mean over the folds of the mean log loss (natural logarithm) on the images held out.
    pub log_loss: f64,
    /// The standard error of that mean.
    pub standard_error: f64,
}

/// Stratified cross-validation on the training images.
///
/// Scaler and components are fitted anew in each fold, so that nothing of the images held out is known; a fold with
/// fewer images than the components asked for keeps as many as it can. Folds are judged in parallel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossValidation {
    /// How scaler and components are fitted.
    pub features: FeaturesConfig,
    /// Who fits the regression.
    pub solver: Solver,
    /// The number of folds, at least 2; a class with fewer images lowers it.
    pub folds: usize,
    /// What the shuffle before starts from.
    pub seed: u64,
}

/// What cross-validation found for one C.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldOut {
    /// How well it did.
    pub candidate: CandidateC,
    /// The scores of each training image from the model that had not seen it, `[n, k]`: the logarithms of its
    /// probabilities up to a constant.
    pub scores: Array2<f64>,
}

/// Which candidate is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rule {
    /// The one of smallest log loss; of equals the first.
    #[default]
    SmallestLoss,
    /// The first whose log loss is within one standard error of the smallest: the strongest regularization that cannot
    /// be told from the best.
    ///
    /// Breiman, Friedman, Olshen and Stone, "Classification and Regression Trees", 1984, section 3.4.3.
    OneStandardError,
}

impl Rule {
    /// The place of the chosen one among `candidates`, in ascending order of C; `None` if there are none.
    pub fn choose(self, candidates: &[CandidateC]) -> Option<usize> {
        let by_loss = |a: &(usize, &CandidateC), b: &(usize, &CandidateC)| a.1.log_loss.total_cmp(&b.1.log_loss);
        let (smallest, best) = candidates.iter().enumerate().min_by(by_loss)?;
        let bound = match self {
            Rule::SmallestLoss => return Some(smallest),
            Rule::OneStandardError => best.log_loss + best.standard_error,
        };
        candidates.iter().position(|candidate| candidate.log_loss <= bound)
    }
}

/// Warns if the best C may lie outside the grid.
pub(crate) fn warn_at_edge(candidates: &[CandidateC], chosen: usize) {
    let c = candidates[chosen].c;
    let (edge, way_out) = if chosen == 0 {
        (
            "smallest",
            "more images or fewer components may help, or a smaller C, given as such",
        )
    } else if chosen + 1 == candidates.len() {
        (
            "largest",
            "the classes are separable, and a larger C, given as such, may do better",
        )
    } else {
        return;
    };
    tracing::warn!("C = {c} is the {edge} candidate and has the smallest log loss: {way_out}");
}

/// A fold of a cross-validation.
struct Fold {
    index: usize,
    /// The rows that are held out, in ascending order.
    held_out: Vec<usize>,
    /// The labels of the others.
    labels: Vec<usize>,
    /// The components of the others, and of those held out.
    z: Array2<f64>,
    z_held_out: Array2<f64>,
}

impl CrossValidation {
    /// Judges every C of a grid on `train`, in ascending order: each fit starts from the one before.
    ///
    /// # Errors
    /// [`Error::Folds`] below two folds, [`Error::TooFewImages`] if a class has fewer than two images, and those of
    /// the fits.
    pub fn scores(&self, train: &FeatureTable, grid: &[f64]) -> Result<Vec<HeldOut>> {
        let folds = self.each_fold(train, |fold| {
            let mut warm: Option<FittedLogisticRegression> = None;
            let labels_held_out: Vec<usize> = fold.held_out.iter().map(|&row| train.labels[row]).collect();
            let judged = grid.iter().map(|&c| {
                let regression = LogisticRegression {
                    tolerance: TOLERANCE,
                    ..LogisticRegression::new(c, self.solver)?
                };
                let fitted = regression.fit_from(fold.z.view(), &fold.labels, train.classes.len(), warm.as_ref())?;
                let scores = fitted.scores(fold.z_held_out.view())?;
                let loss = log_loss(&scores, &labels_held_out);
                tracing::debug!(
                    fold = fold.index,
                    c,
                    loss,
                    iterations = fitted.iterations,
                    "cross-validation"
                );
                warm = Some(fitted);
                Ok((loss, scores))
            });
            Ok((judged.collect::<Result<Vec<_>>>()?, fold.held_out))
        })?;

        let n = folds.len() as f64;
        let held_out = grid.iter().enumerate().map(|(index, &c)| {
            let losses: Vec<f64> = folds.iter().map(|(judged, _)| judged[index].0).collect();
            let log_loss = losses.iter().sum::<f64>() / n;
            let variance = losses.iter().map(|loss| (loss - log_loss).powi(2)).sum::<f64>() / (n - 1.0);
            let mut scores = Array2::zeros((train.n_rows(), train.classes.len()));
            for (judged, rows) in &folds {
                for (row, found) in rows.iter().zip(judged[index].1.rows()) {
                    scores.row_mut(*row).assign(&found);
                }
            }
            HeldOut {
                candidate: CandidateC {
                    c,
                    log_loss,
                    standard_error: (variance / n).sqrt(),
                },
                scores,
            }
        });
        Ok(held_out.collect())
    }

    /// The distance of each training image to the nearest class of the images that were not held out with it, `[n]`.
    ///
    /// # Errors
    /// As [`scores`](Self::scores), and those of [`ClassDistance::fit`].
    pub fn distances(&self, train: &FeatureTable) -> Result<Vec<f64>> {
        let folds = self.each_fold(train, |fold| {
            let distance = ClassDistance::fit(fold.z.view(), &fold.labels, train.classes.len())?;
            Ok((distance.distances(fold.z_held_out.view())?, fold.held_out))
        })?;
        let mut distances = vec![0.0; train.n_rows()];
        for (found, rows) in folds {
            rows.into_iter()
                .zip(found)
                .for_each(|(row, distance)| distances[row] = distance);
        }
        Ok(distances)
    }

    /// What `judge` makes of each fold.
    fn each_fold<T: Send>(&self, train: &FeatureTable, judge: impl Fn(Fold) -> Result<T> + Sync) -> Result<Vec<T>> {
        let (fold_of, n_folds) = stratified_folds(train, self.folds, self.seed)?;
        let x = train.features();
        let rows_of = |is_chosen: &dyn Fn(usize) -> bool| -> Vec<usize> {
            (0..train.n_rows()).filter(|&row| is_chosen(fold_of[row])).collect()
        };
        // Where there are more rows than features, each row is multiplied for its own fold alone, and the moments of
        // the others are added up: one pass in place of as many as there are folds but one.
        let smallest = train.n_rows() - train.n_rows().div_ceil(n_folds);
        let moments: Option<Vec<Moments>> = if self.features.solver == Solver::Faer && smallest >= x.ncols() {
            let of_fold = |fold| {
                let chosen = &rows_of(&|of| of == fold);
                Moments::of(Subset { rows: x, chosen })
            };
            Some((0..n_folds).map(of_fold).collect::<luthier_features::Result<_>>()?)
        } else {
            None
        };
        (0..n_folds)
            .into_par_iter()
            .map(|index| {
                let (held_out, fitted) = (rows_of(&|of| of == index), rows_of(&|of| of != index));
                let rows = Subset {
                    rows: x,
                    chosen: &fitted,
                };
                let keep = match self.features.keep {
                    Keep::Components(count) => Keep::Components(count.min(fitted.len()).min(x.ncols())),
                    share => share,
                };
                let config = FeaturesConfig { keep, ..self.features };
                let projection = match &moments {
                    Some(moments) => {
                        let mut others = moments.iter().enumerate().filter(|&(fold, _)| fold != index);
                        let (_, first) = others.next().expect("there are two folds or more");
                        let mut sum = first.clone();
                        others.try_for_each(|(_, moments)| sum.merge(moments))?;
                        Projection::of_moments(config, &sum)?
                    }
                    None => Projection::fit(config, rows)?,
                };
                judge(Fold {
                    index,
                    labels: fitted.iter().map(|&row| train.labels[row]).collect(),
                    z: projection.transform(rows)?,
                    z_held_out: projection.transform(Subset {
                        rows: x,
                        chosen: &held_out,
                    })?,
                    held_out,
                })
            })
            .collect()
    }
}

/// The fold in which each row is held out, and the number of folds: at most the size of the smallest class.
///
/// Each class is dealt out evenly, in an order that depends on the seed and the images only, not on that of the rows.
fn stratified_folds(train: &FeatureTable, folds: usize, seed: u64) -> Result<(Vec<usize>, usize)> {
    if folds < 2 {
        return Err(Error::Folds { found: folds });
    }
    let mut classes = vec![Vec::new(); train.classes.len()];
    for (row, (&label, image)) in train.labels.iter().zip(&train.images).enumerate() {
        let draw = Digest::of(&[&seed.to_le_bytes(), image.as_bytes().as_slice()].concat());
        classes[label].push((draw, row));
    }
    let mut n_folds = folds;
    for (rows, class) in classes.iter().zip(&train.classes) {
        if rows.len() < 2 {
            return Err(Error::TooFewImages {
                class: class.clone(),
                expected: 2,
                found: rows.len(),
            });
        }
        n_folds = n_folds.min(rows.len());
    }
    let mut fold_of = vec![0; train.n_rows()];
    classes.iter_mut().for_each(|rows| rows.sort_unstable());
    // Dealing goes on where the class before ended, so that the folds are of one size as well.
    for (turn, &(_, row)) in classes.iter().flatten().enumerate() {
        fold_of[row] = turn % n_folds;
    }
    Ok((fold_of, n_folds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use luthier_artifact::ExtractorInfo;
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
    fn folds_share_out_every_class_and_all_images_evenly() {
        let train = table(&[23, 7, 11]);
        let (fold_of, n_folds) = stratified_folds(&train, 5, 1).unwrap();
        assert_eq!(n_folds, 5);
        let sizes = |label: Option<usize>| {
            let mut sizes = [0usize; 5];
            for (&fold, &of) in fold_of.iter().zip(&train.labels) {
                sizes[fold] += usize::from(label.is_none_or(|label| label == of));
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
        let (folds, _) = stratified_folds(&train, 4, 1).unwrap();
        let mut swapped = train.clone();
        swapped.images.swap(3, 9);
        let (mut expected, found) = (folds.clone(), stratified_folds(&swapped, 4, 1).unwrap().0);
        expected.swap(3, 9);
        assert_eq!(found, expected);
        assert_ne!(stratified_folds(&train, 4, 2).unwrap().0, folds);
    }

    #[test]
    fn folds_are_no_more_than_the_smallest_class_has_images() {
        assert_eq!(stratified_folds(&table(&[9, 3]), 5, 1).unwrap().1, 3);
        assert_eq!(
            stratified_folds(&table(&[9, 1]), 5, 1).unwrap_err().to_string(),
            "class class-1 has 1 training images, expected at least 2"
        );
        assert!(matches!(
            stratified_folds(&table(&[9, 9]), 1, 1),
            Err(Error::Folds { found: 1 })
        ));
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
                solver: Solver::Faer,
            };
            let cross_validation = CrossValidation {
                features,
                solver: Solver::Faer,
                folds: 3,
                seed: 4,
            };
            let [held_out] = cross_validation.scores(&train, &[0.5]).unwrap().try_into().unwrap();
            let distances = cross_validation.distances(&train).unwrap();

            let (fold_of, _) = stratified_folds(&train, 3, 4).unwrap();
            let mut losses = Vec::new();
            for fold in 0..3 {
                let (out, fitted): (Vec<usize>, Vec<usize>) = (0..39).partition(|&row| fold_of[row] == fold);
                let labels: Vec<usize> = fitted.iter().map(|&row| train.labels[row]).collect();
                let x = train.features.select(Axis(0), &fitted);
                let projection = Projection::fit(features, x.view()).unwrap();
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
                let found = held_out.scores.select(Axis(0), &out);
                let off = (&found - &expected).fold(0.0f64, |largest, value| largest.max(value.abs()));
                assert!(off < 1e-5, "{d} features: scores off by {off:e}");
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
            assert!((held_out.candidate.log_loss - mean).abs() < 1e-6, "{d} features");
        }
    }

    fn candidates(log_losses: &[f64]) -> Vec<CandidateC> {
        let candidate = |(index, &log_loss): (usize, &f64)| CandidateC {
            c: 10f64.powi(index as i32),
            log_loss,
            standard_error: 0.1,
        };
        log_losses.iter().enumerate().map(candidate).collect()
    }

    #[test]
    fn the_rules_choose_the_best_or_the_strongest_regularization_as_good() {
        let table = candidates(&[0.9, 0.55, 0.52, 0.5, 0.5, 0.7]);
        assert_eq!(Rule::SmallestLoss.choose(&table), Some(3));
        assert_eq!(Rule::OneStandardError.choose(&table), Some(1));
        assert_eq!(Rule::OneStandardError.choose(&[]), None);
    }

    #[test]
    fn c_reads_back_what_it_prints_and_refuses_the_rest() {
        for text in ["auto", "1", "0.01"] {
            assert_eq!(text.parse::<ChooseC>().unwrap().to_string(), text);
        }
        for text in ["0", "-1", "inf", "nan", "", "Auto"] {
            let error = text.parse::<ChooseC>().unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("C is {text}, expected a positive number or auto")
            );
        }
    }
}
