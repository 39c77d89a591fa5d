mod lbfgs;
mod objective;
mod reference;

use luthier_artifact::{Observer, UnknownName};
use luthier_features::{Solver, check_finite};
use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use serde::{Deserialize, Serialize};

use self::objective::{Objective, largest};
use crate::softmax::{argmax_rows, softmax_loss, softmax_rows};
use crate::{Error, Result};

/// Multinomial logistic regression with an L2 penalty.
///
/// Minimizes scikit-learn's objective, `C · Σ log loss + ½ ‖weight‖²`: the bias is not penalized. There is one
/// optimum, and it is what [`fit`](LogisticRegression::fit) finds; scikit-learn stops earlier by default.
///
/// With two classes scikit-learn fits one weight vector `w` for the second class against the first. The same
/// probabilities come from the rows `-w/2` and `w/2`, which is how they are given here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogisticRegression {
    /// The inverse strength of regularization, positive.
    pub c: f64,
    /// Who computes.
    pub solver: Solver,
    /// How much each class counts.
    pub class_weight: ClassWeight,
    /// The fit has converged when no entry of the gradient of `mean log loss + ½ ‖weight‖² / (C n)` is larger, or when
    /// another step would lower the objective by less than its rounding errors.
    ///
    /// smartcore has a rule of its own; its result is measured by the gradient all the same.
    pub tolerance: f64,
    /// faer's solver gives up after this many iterations; smartcore's does after 1,000.
    pub max_iterations: usize,
}

/// How much the log loss of an image counts, by its class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[derive(strum::Display, strum::EnumString, strum::VariantNames)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", parse_err_ty = UnknownName, parse_err_fn = unknown_class_weight)]
pub enum ClassWeight {
    /// All the same.
    #[default]
    Uniform,
    /// In inverse proportion to the number of images of its class, so that all classes count the same.
    ///
    /// `n / (k · images of the class)`: scikit-learn's `class_weight="balanced"`, after King and Zeng, "Logistic
    /// Regression in Rare Events Data", 2001.
    Balanced,
}

fn unknown_class_weight(found: &str) -> UnknownName {
    UnknownName::of::<ClassWeight>("class weight", found)
}

impl ClassWeight {
    /// The weight of each class's rows, `[k]`; those of all rows add up to their number.
    fn of(self, labels: &[usize], n_classes: usize) -> Vec<f64> {
        match self {
            ClassWeight::Uniform => vec![1.0; n_classes],
            ClassWeight::Balanced => {
                let mut counts = vec![0usize; n_classes];
                labels.iter().for_each(|&label| counts[label] += 1);
                let share = labels.len() as f64 / n_classes as f64;
                counts.iter().map(|&count| share / count as f64).collect()
            }
        }
    }
}

/// What [`LogisticRegression::fit`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct FittedLogisticRegression {
    /// The weights, `[k, p]`: a row a class.
    pub weight: Array2<f64>,
    /// The intercepts, `[k]`, which add up to 0.
    pub bias: Array1<f64>,
    /// How many iterations it took; `None` from smartcore, which does not tell.
    pub iterations: Option<usize>,
    /// The largest magnitude in the gradient at the end.
    pub gradient_norm: f64,
    /// Whether more iterations would change nothing: the gradient is within the tolerance, or a step no longer lowers
    /// the objective by more than its rounding errors.
    pub converged: bool,
}

impl LogisticRegression {
    /// A regression with this C, held to a gradient of 1e-10.
    ///
    /// Coefficients are then within 1e-6 of the largest for C up to about 1, and less well known for larger C, where
    /// the penalty hardly holds the weights of separable classes; probabilities hardly change any more.
    ///
    /// # Errors
    /// [`Error::C`] unless `c` is positive and finite.
    pub fn new(c: f64, solver: Solver) -> Result<Self> {
        let regression = LogisticRegression {
            c,
            solver,
            class_weight: ClassWeight::Uniform,
            tolerance: 1e-10,
            max_iterations: 10_000,
        };
        regression.check_c().map(|()| regression)
    }

    fn check_c(&self) -> Result<()> {
        let is_positive = self.c > 0.0 && self.c.is_finite();
        if is_positive {
            Ok(())
        } else {
            Err(Error::C {
                found: self.c.to_string(),
            })
        }
    }

    /// Fits `x`, `[n, p]`, to `labels`, one a row, each below `n_classes`.
    ///
    /// A fit that does not converge is a warning, and [`converged`](FittedLogisticRegression::converged) is false.
    ///
    /// # Errors
    /// [`Error::C`], [`Error::TooFewClasses`] below two classes, [`Error::Labels`] unless there is a label a row,
    /// [`Error::LabelOutOfRange`], [`Error::TooFewImages`] if a class has no row, [`Error::Features`] if a value is
    /// infinite or not a number, [`Error::ClassWeight`] for weights that the solver does not have,
    /// [`Error::Diverged`] or [`Error::Smartcore`] if the solver fails.
    pub fn fit(&self, x: ArrayView2<'_, f64>, labels: &[usize], n_classes: usize) -> Result<FittedLogisticRegression> {
        self.fit_observed(x, labels, n_classes, &())
    }

    /// [`fit`](Self::fit), for an observer who may interrupt: faer's solver asks before each iteration.
    ///
    /// # Errors
    /// Those of [`fit`](Self::fit); [`Error::Interrupted`].
    pub fn fit_observed(
        &self,
        x: ArrayView2<'_, f64>,
        labels: &[usize],
        n_classes: usize,
        observer: &dyn Observer,
    ) -> Result<FittedLogisticRegression> {
        let fitted = self.fit_from(x, labels, n_classes, None, observer)?;
        if !fitted.converged {
            tracing::warn!(
                "logistic regression with C = {} stopped at a gradient of {:.1e}, expected {:.1e}: lower C, or keep fewer components",
                self.c,
                fitted.gradient_norm,
                self.tolerance,
            );
        }
        Ok(fitted)
    }

    /// [`fit_observed`](Self::fit_observed) without the warning, starting from an earlier fit of as many classes and columns.
    pub(crate) fn fit_from(
        &self,
        x: ArrayView2<'_, f64>,
        labels: &[usize],
        n_classes: usize,
        start: Option<&FittedLogisticRegression>,
        observer: &dyn Observer,
    ) -> Result<FittedLogisticRegression> {
        self.check_c()?;
        check_labels(x.nrows(), labels, n_classes)?;
        check_finite(x, 0)?;
        Error::if_interrupted(observer)?;

        let x = x.as_standard_layout();
        let objective = Objective::new(x.view(), labels, &self.class_weight.of(labels, n_classes), self.c);
        let (coefficients, iterations, is_within_rounding) = match self.solver {
            Solver::Faer => {
                let start = start.map_or_else(
                    || Array2::zeros(objective.dim()),
                    FittedLogisticRegression::coefficients,
                );
                let minimum = lbfgs::minimize(&objective, start, self.tolerance, self.max_iterations, observer)?;
                (
                    minimum.coefficients,
                    Some(minimum.iterations),
                    minimum.is_within_rounding,
                )
            }
            Solver::Smartcore if self.class_weight != ClassWeight::Uniform => return Err(Error::ClassWeight),
            Solver::Smartcore => (
                reference::minimize(&x.to_owned(), labels, n_classes, self.c)?,
                None,
                false,
            ),
        };
        if !coefficients.iter().all(|value| value.is_finite()) {
            return Err(Error::Diverged {
                solver: self.solver,
                c: self.c,
            });
        }
        let gradient_norm = largest(&objective.at(&coefficients).gradient);
        let p = x.ncols();
        // The same constant added to every intercept changes no probability: of all optima the one around zero.
        let bias = coefficients.column(p);
        Ok(FittedLogisticRegression {
            weight: coefficients.slice(s![.., ..p]).as_standard_layout().into_owned(),
            bias: &bias - bias.sum() / n_classes as f64,
            iterations,
            gradient_norm,
            converged: gradient_norm <= self.tolerance || is_within_rounding,
        })
    }
}

impl FittedLogisticRegression {
    /// The probability of each class for each row of `x`, `[n, p]`: `[n, k]`, rows that add up to 1.
    ///
    /// # Errors
    /// [`Error::Width`] if `x` does not have the width seen by `fit`.
    pub fn predict_proba(&self, x: ArrayView2<'_, f64>) -> Result<Array2<f64>> {
        self.scores(x).map(softmax_rows)
    }

    /// The most probable class of each row of `x`, `[n, p]`: the first of them on a tie.
    ///
    /// # Errors
    /// [`Error::Width`] if `x` does not have the width seen by `fit`.
    pub fn predict(&self, x: ArrayView2<'_, f64>) -> Result<Vec<usize>> {
        self.predict_proba(x).map(|probabilities| argmax_rows(&probabilities))
    }

    /// The scores of each row of `x`, `[n, p]`, which are `x · weightᵀ + bias`: `[n, k]`.
    ///
    /// # Errors
    /// [`Error::Width`] if `x` does not have the width seen by `fit`.
    pub fn scores(&self, x: ArrayView2<'_, f64>) -> Result<Array2<f64>> {
        if x.ncols() != self.weight.ncols() {
            return Err(Error::Width {
                expected: self.weight.ncols(),
                found: x.ncols(),
            });
        }
        Ok((x.dot(&self.weight.t()) + &self.bias).as_standard_layout().into_owned())
    }

    /// Weight and bias as the solvers have them: `[k, p + 1]`, the bias in the last column.
    fn coefficients(&self) -> Array2<f64> {
        let bias = self.bias.view().insert_axis(Axis(1));
        let coefficients =
            ndarray::concatenate(Axis(1), &[self.weight.view(), bias]).expect("weight and bias have a row a class");
        coefficients.as_standard_layout().into_owned()
    }
}

/// The mean log loss (natural logarithm) of `scores`, `[n, k]`, with these labels.
pub(crate) fn log_loss(scores: &Array2<f64>, labels: &[usize]) -> f64 {
    let losses = scores
        .rows()
        .into_iter()
        .zip(labels)
        .map(|(row, &label)| softmax_loss(&mut row.to_vec(), label));
    losses.sum::<f64>() / labels.len() as f64
}

pub(crate) fn check_labels(rows: usize, labels: &[usize], n_classes: usize) -> Result<()> {
    if n_classes < 2 {
        return Err(Error::TooFewClasses { found: n_classes });
    }
    if labels.len() != rows {
        return Err(Error::Labels {
            rows,
            labels: labels.len(),
        });
    }
    let mut counts = vec![0usize; n_classes];
    for (row, &label) in labels.iter().enumerate() {
        *counts
            .get_mut(label)
            .ok_or(Error::LabelOutOfRange { row, label, n_classes })? += 1;
    }
    match counts.iter().position(|&count| count == 0) {
        Some(label) => Err(Error::TooFewImages {
            class: label.to_string(),
            expected: 1,
            found: 0,
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    fn error(x: Array2<f64>, labels: &[usize], n_classes: usize) -> String {
        let regression = LogisticRegression::new(1.0, Solver::Faer).unwrap();
        regression.fit(x.view(), labels, n_classes).unwrap_err().to_string()
    }

    #[test]
    fn labels_that_do_not_fit_are_errors_that_say_so() {
        let x = array![[0.0], [1.0]];
        assert_eq!(error(x.clone(), &[0, 0], 1), "1 classes, expected at least 2");
        assert_eq!(error(x.clone(), &[0], 2), "1 labels for 2 rows, expected one a row");
        assert_eq!(
            error(x.clone(), &[0, 2], 2),
            "label 2 at row 1, expected less than the number of classes, 2"
        );
        assert_eq!(
            error(x, &[0, 1], 3),
            "class 2 has 0 training images, expected at least 1"
        );
        assert_eq!(
            error(Array2::zeros((0, 1)), &[], 2),
            "class 0 has 0 training images, expected at least 1"
        );
        assert_eq!(
            error(array![[f64::NAN], [1.0]], &[0, 1], 2),
            "feature at row 0, column 0 is NaN, expected a finite number"
        );
    }

    #[test]
    fn c_must_be_positive() {
        for c in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(
                matches!(LogisticRegression::new(c, Solver::Faer), Err(Error::C { .. })),
                "{c}"
            );
        }
    }

    /// Random numbers from 0 to 1.
    fn uniform(state: &mut u64) -> f64 {
        *state = (state.wrapping_mul(6364136223846793005)).wrapping_add(1442695040888963407);
        (*state >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A random set of 2 to 10 classes with 5 to 20 images each, of up to 60 components of falling variance.
    fn small_set(seed: u64) -> (Array2<f64>, Vec<usize>, usize) {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
        let n_classes = 2 + (9.0 * uniform(&mut state)) as usize;
        let labels: Vec<usize> = (0..n_classes)
            .flat_map(|label| vec![label; 5 + (16.0 * uniform(&mut state)) as usize])
            .collect();
        let p = labels.len().min(60) - 1;
        let centres = Array2::from_shape_simple_fn((n_classes, p), || 2.0 * uniform(&mut state) - 1.0);
        let x = Array2::from_shape_fn((labels.len(), p), |(row, column)| {
            let noise = 4.0 * uniform(&mut state) - 2.0;
            (centres[[labels[row], column]] + noise) * 30.0 / (column + 1) as f64
        });
        (x, labels, n_classes)
    }

    #[test]
    fn fits_of_small_sets_that_end_at_rounding_errors_have_converged() {
        let mut n_above_tolerance = 0;
        for seed in 0..40 {
            let (x, labels, n_classes) = small_set(seed);
            for c in [1e-2, 1.0, 1e2, 1e4] {
                let regression = LogisticRegression::new(c, Solver::Faer).unwrap();
                let fitted = regression.fit(x.view(), &labels, n_classes).unwrap();
                n_above_tolerance += usize::from(fitted.gradient_norm > regression.tolerance);
                assert!(fitted.converged, "seed {seed}, C = {c}: {:e}", fitted.gradient_norm);
            }
        }
        assert!(n_above_tolerance > 0, "no set shows what the test is about");
    }

    #[test]
    fn a_fit_with_too_few_iterations_has_not_converged_however_small_the_set() {
        for seed in 0..40 {
            let (x, labels, n_classes) = small_set(seed);
            let regression = LogisticRegression {
                max_iterations: 5,
                ..LogisticRegression::new(1.0, Solver::Faer).unwrap()
            };
            let fitted = regression.fit(x.view(), &labels, n_classes).unwrap();
            assert!(!fitted.converged, "seed {seed}: {:e}", fitted.gradient_norm);
        }
    }

    #[test]
    fn a_fit_cut_short_says_that_it_did_not_converge() {
        let x = array![[0.0, 1.0], [1.0, -1.0], [2.0, 0.5], [0.5, 0.1]];
        let regression = LogisticRegression {
            max_iterations: 1,
            ..LogisticRegression::new(1.0, Solver::Faer).unwrap()
        };
        let fitted = regression.fit(x.view(), &[0, 1, 1, 0], 2).unwrap();
        assert_eq!(fitted.iterations, Some(1));
        assert!(!fitted.converged && fitted.gradient_norm > regression.tolerance);
    }
}
