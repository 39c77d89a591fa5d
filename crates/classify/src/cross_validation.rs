use luthier_artifact::{CandidateC, Observer, ReadRows, Watched};
use luthier_features::{ComponentCount, FeaturesConfig, Interruptible, Moments, Projection, Solver, Subset};
use ndarray::Array2;
use rayon::prelude::*;

use crate::folds::Folds;
use crate::logistic::log_loss;
use crate::{ClassDistance, ClassWeight, FittedLogisticRegression, LogisticRegression, Result, Training};

/// How far, for each weight, the objective of a candidate may be above its optimum.
const EXCESS: f64 = 1e-8;

/// How many bytes the moments of all folds may take, and how many the decompositions that run at once.
///
/// One fold is always allowed. The limits change the order of the work, but no result. With 2,048 features they allow
/// 127 folds in one pass over the rows, of which 16 are decomposed at once; with 8,192 features 7 and 1.
const MEMORY: usize = 2 << 30;

/// Stratified cross-validation on the training images.
///
/// Each fold fits scaler and components anew, so that they know nothing of the held-out images. A fold with fewer
/// images than the components asked for keeps as many components as it can. Folds are judged in parallel, as far as
/// memory allows.
///
/// Copies of an image in one class are held out together, and so are images that look alike
/// ([`Training::with_look_alikes`]): a model that has seen one of them says too much about the others. The only image of
/// a class, or the only group of look-alikes, is never held out, because nothing would be known of its class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossValidation {
    /// How scaler and components are fitted.
    pub features: FeaturesConfig,
    /// Who fits the regression.
    pub solver: Solver,
    /// How much each class counts in the fits; all held-out images count the same.
    pub class_weight: ClassWeight,
    /// The number of folds, at least 2; fewer if fewer images can be held out.
    pub folds: usize,
    /// The seed of the shuffle before.
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
    pub candidates: Vec<HeldOutScores>,
    /// The distance of each held-out image to the nearest class, `[m]`; `None` if the images of each class are all the
    /// same in some fold.
    pub distances: Option<Vec<f64>>,
}

/// What cross-validation found for one C.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldOutScores {
    /// How well it did.
    pub candidate: CandidateC,
    /// The scores of each held-out image, `[m, k]`: the logarithms of its probabilities up to a constant.
    pub scores: Array2<f64>,
}

/// What one fold's models say of the images that the fold holds out.
struct JudgedFold {
    /// For each C of the grid the mean log loss and the scores.
    candidates: Vec<(f64, Array2<f64>)>,
    distances: Option<Vec<f64>>,
}

impl CrossValidation {
    /// Judges every C of a grid on `train`, in ascending order: each fit starts from the fit before.
    ///
    /// The observer is told of `fits`. It is asked before each block of rows and each iteration of a fit whether to go
    /// on; the eigendecomposition of a fold cannot be interrupted.
    ///
    /// # Errors
    /// [`Error::Folds`](crate::Error::Folds) below two folds,
    /// [`Error::NothingToHoldOut`](crate::Error::NothingToHoldOut) if no class has two images that differ,
    /// [`Error::Interrupted`](crate::Error::Interrupted), and the errors of the fits.
    pub fn run<R: ReadRows<Feature = f32>>(
        &self,
        train: &Training<'_, R>,
        grid: &[f64],
        observer: &dyn Observer,
    ) -> Result<HeldOut> {
        let folds = Folds::deal(train, self.folds, self.seed)?;
        let task = observer.task("fits", (folds.n_folds * grid.len()) as u64);
        let watched = Watched { observer, task: &*task };
        let mut judged = self.judge_folds(train, &folds, grid, watched)?;
        drop(task);

        let rows = folds.rows(Option::is_some);
        let places: Vec<Vec<usize>> = (0..folds.n_folds)
            .map(|fold| {
                (0..rows.len())
                    .filter(|&place| folds.of(rows[place]) == Some(fold))
                    .collect()
            })
            .collect();
        let candidates = grid.iter().enumerate().map(|(index, &c)| {
            let losses: Vec<f64> = judged.iter().map(|fold| fold.candidates[index].0).collect();
            let mut scores = Array2::zeros((rows.len(), train.n_classes()));
            for (fold, places) in judged.iter_mut().zip(&places) {
                // Gone once it is copied, so that no more than one candidate's scores are in memory twice.
                let of_fold = std::mem::take(&mut fold.candidates[index].1);
                for (&place, found) in places.iter().zip(of_fold.rows()) {
                    scores.row_mut(place).assign(&found);
                }
            }
            let candidate = summarize(c, &losses);
            HeldOutScores { candidate, scores }
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

    /// Judges all folds, as many at once as memory allows.
    fn judge_folds<R: ReadRows<Feature = f32>>(
        &self,
        train: &Training<'_, R>,
        folds: &Folds,
        grid: &[f64],
        watched: Watched<'_>,
    ) -> Result<Vec<JudgedFold>> {
        let d = train.features.n_features();
        let n_fitted = (0..folds.n_folds).map(|fold| folds.rows(|of| of != &Some(fold)).len());
        let (least, most) = (n_fitted.clone().min().unwrap_or(0), n_fitted.max().unwrap_or(0));
        let is_of_moments = self.features.solver == Solver::Faer && least >= d;
        let in_one_pass = if is_of_moments {
            (MEMORY / Moments::n_bytes(d)).max(1)
        } else {
            folds.n_folds
        };
        let at_once = (MEMORY / decomposition_bytes(most, d, is_of_moments)).max(1);

        let all: Vec<usize> = (0..folds.n_folds).collect();
        let mut judged = Vec::with_capacity(all.len());
        for pass in all.chunks(in_one_pass) {
            let moments: Vec<Option<Moments>> = if is_of_moments {
                let moments = moments_of_others(train, folds, pass, watched.observer)?;
                moments.into_iter().map(Some).collect()
            } else {
                vec![None; pass.len()]
            };
            // The moments of a fold are gone once the fold is judged.
            let mut left = pass.iter().copied().zip(moments);
            loop {
                let next: Vec<_> = left.by_ref().take(at_once).collect();
                if next.is_empty() {
                    break;
                }
                let found = next
                    .into_par_iter()
                    .map(|(fold, moments)| self.judge(train, folds, fold, moments, grid, watched))
                    .collect::<Result<Vec<_>>>()?;
                judged.extend(found);
            }
        }
        Ok(judged)
    }

    /// Fits to all rows but those of a fold, for every C, and judges the rows of the fold.
    ///
    /// `moments` are those of the fitted rows, if scaler and components come from moments.
    fn judge<R: ReadRows<Feature = f32>>(
        &self,
        train: &Training<'_, R>,
        folds: &Folds,
        fold: usize,
        moments: Option<Moments>,
        grid: &[f64],
        watched: Watched<'_>,
    ) -> Result<JudgedFold> {
        let (held_out, fitted) = (folds.rows(|of| *of == Some(fold)), folds.rows(|of| *of != Some(fold)));
        let n_components = match self.features.n_components {
            ComponentCount::Exact(count) => {
                ComponentCount::Exact(count.min(fitted.len() - 1).min(train.features.n_features()))
            }
            other => other,
        };
        let features = FeaturesConfig {
            n_components,
            ..self.features
        };
        let subset = |chosen| Interruptible {
            rows: Subset {
                rows: &train.features,
                chosen,
            },
            observer: watched.observer,
        };
        let projection = match moments {
            Some(moments) => Projection::of_moments(features, moments)?,
            None => features.run(subset(&fitted), watched.observer)?,
        };
        let (z, z_held_out) = (
            projection.transform(subset(&fitted))?,
            projection.transform(subset(&held_out))?,
        );
        drop(projection);
        let (labels, labels_held_out) = (train.labels_of(&fitted), train.labels_of(&held_out));

        let mut warm: Option<FittedLogisticRegression> = None;
        let candidates = grid.iter().map(|&c| {
            let regression = LogisticRegression {
                class_weight: self.class_weight,
                tolerance: tolerance(c, labels.len()),
                ..LogisticRegression::new(c, self.solver)?
            };
            let fitted = regression.fit_from(z.view(), &labels, train.n_classes(), warm.as_ref(), watched.observer)?;
            let scores = fitted.scores(z_held_out.view())?;
            let loss = log_loss(&scores, &labels_held_out);
            tracing::debug!(fold, c, loss, iterations = fitted.iterations, "cross-validation");
            watched.task.advance(1);
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

/// For each fold of `pass` the moments of all rows that it does not hold out.
///
/// A row is multiplied once, for the part that it is held out with, and the moments of the parts are added up. Only one
/// part and the sums are in memory.
fn moments_of_others<R: ReadRows<Feature = f32>>(
    train: &Training<'_, R>,
    folds: &Folds,
    pass: &[usize],
    observer: &dyn Observer,
) -> Result<Vec<Moments>> {
    let mut sums: Vec<Option<Moments>> = vec![None; pass.len()];
    // The rows that are never held out, if there are any, come last.
    for part in (0..folds.n_folds).map(Some).chain([None]) {
        let chosen = folds.rows(|of| *of == part);
        if chosen.is_empty() {
            continue;
        }
        let rows = Subset {
            rows: &train.features,
            chosen: &chosen,
        };
        let moments = Moments::of(Interruptible { rows, observer })?;
        for (sum, _) in sums.iter_mut().zip(pass).filter(|&(_, &fold)| part != Some(fold)) {
            match sum {
                Some(sum) => sum.merge(&moments)?,
                None => *sum = Some(moments.clone()),
            }
        }
    }
    Ok(sums
        .into_iter()
        .map(|sum| sum.expect("there are two folds or more"))
        .collect())
}

/// About how many bytes the decomposition of a fold's `n` rows of `d` features takes: the scaled comoments, their
/// eigenvectors and the solver's scratch; or, if there are fewer rows than features, also the rows.
fn decomposition_bytes(n: usize, d: usize, is_of_moments: bool) -> usize {
    let side = if is_of_moments { d } else { n.min(d) };
    let rows = if is_of_moments { 0 } else { 2 * n * d };
    size_of::<f64>() * (4 * side * side + rows).max(1)
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

#[cfg(test)]
mod tests {
    use luthier_artifact::FeatureTable;
    use ndarray::Axis;

    use super::*;
    use crate::folds::tests::table;

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
                n_components: ComponentCount::Variance(0.9),
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
            let held_out = cross_validation.run(&training, &[0.5], &()).unwrap();
            let ([judged], Some(distances)) = (held_out.candidates.as_slice(), held_out.distances) else {
                panic!("one C, and images that differ");
            };
            assert_eq!(held_out.rows, (0..39).collect::<Vec<_>>());

            let folds = Folds::deal(&training, 3, 4).unwrap();
            let mut losses = Vec::new();
            for fold in 0..3 {
                let (out, fitted): (Vec<usize>, Vec<usize>) = (0..39).partition(|&row| folds.of(row) == Some(fold));
                let labels: Vec<usize> = fitted.iter().map(|&row| train.labels[row]).collect();
                let x = train.features.select(Axis(0), &fitted);
                let projection = features.run(x.view(), &()).unwrap();
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
