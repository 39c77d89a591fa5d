use ndarray::{Array1, Array2, ArrayView2, Axis};

use crate::{Error, Result};

/// Standardizes features by removing the mean and scaling to unit variance, a column at a time.
///
/// Same rules as scikit-learn's `StandardScaler`: the population variance (divided by `n`), and a scale of 1 for
/// columns that do not vary beyond rounding errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandardScaler;

/// What [`StandardScaler::fit`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct FittedScaler {
    /// The mean of each column, `[d]`.
    pub mean: Array1<f64>,
    /// The standard deviation of each column, or 1 for a constant one: `[d]`, positive.
    pub scale: Array1<f64>,
}

impl StandardScaler {
    /// Estimates mean and scale from `x`, `[n, d]` of `f32` or `f64`.
    ///
    /// # Errors
    /// [`Error::TooFewRows`] without rows, [`Error::NotFinite`] if a feature is infinite or not a number.
    pub fn fit<T: Copy + Into<f64>>(x: ArrayView2<'_, T>) -> Result<FittedScaler> {
        let (n_rows, n_columns) = x.dim();
        if n_rows == 0 {
            return Err(Error::TooFewRows { expected: 1, found: 0 });
        }
        check_finite(x)?;
        let n = n_rows as f64;

        let mut mean = Array1::<f64>::zeros(n_columns);
        for row in x.rows() {
            mean.zip_mut_with(&row, |sum, &value| *sum += value.into());
        }
        mean /= n;

        // The corrected two-pass algorithm: without rounding, the deviations would add up to zero.
        let mut squares = Array1::<f64>::zeros(n_columns);
        let mut deviations = Array1::<f64>::zeros(n_columns);
        for row in x.rows() {
            for (column, &value) in row.iter().enumerate() {
                let deviation = value.into() - mean[column];
                squares[column] += deviation * deviation;
                deviations[column] += deviation;
            }
        }
        let variance = (squares - &deviations * &deviations / n) / n;

        let scale = Array1::from_shape_fn(n_columns, |column| {
            if is_constant(variance[column], mean[column], n) {
                1.0
            } else {
                variance[column].sqrt()
            }
        });
        Ok(FittedScaler { mean, scale })
    }
}

impl FittedScaler {
    /// Standardizes `x`, `[n, d]` of `f32` or `f64`, to `[n, d]`.
    ///
    /// # Errors
    /// [`Error::Width`] if `x` does not have the width seen by `fit`, [`Error::NotFinite`] if a feature is infinite
    /// or not a number.
    pub fn transform<T: Copy + Into<f64>>(&self, x: ArrayView2<'_, T>) -> Result<Array2<f64>> {
        if x.ncols() != self.mean.len() {
            return Err(Error::Width {
                expected: self.mean.len(),
                found: x.ncols(),
            });
        }
        check_finite(x)?;
        let mut scaled = x.mapv(Into::into);
        scaled -= &self.mean.view().insert_axis(Axis(0));
        scaled /= &self.scale.view().insert_axis(Axis(0));
        Ok(scaled)
    }
}

/// Whether a variance is indistinguishable from zero, given the error bound of the two-pass algorithm.
///
/// scikit-learn's `_is_constant_feature`, after Chan, Golub and LeVeque, "Algorithms for computing the sample
/// variance: analysis and recommendations".
fn is_constant(variance: f64, mean: f64, n: f64) -> bool {
    variance <= n * f64::EPSILON * variance + (n * mean * f64::EPSILON).powi(2)
}

/// Names the first feature that is infinite or not a number.
pub(crate) fn check_finite<T: Copy + Into<f64>>(x: ArrayView2<'_, T>) -> Result<()> {
    match x.indexed_iter().find(|&(_, &value)| !value.into().is_finite()) {
        Some(((row, column), &value)) => Err(Error::NotFinite {
            row,
            column,
            value: value.into(),
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn a_constant_column_keeps_its_scale_even_if_its_mean_is_rounded() {
        // 0.1 is no binary fraction: the computed variance of the first column is not exactly 0.
        let x = Array2::from_shape_fn((1000, 2), |(row, column)| if column == 0 { 0.1f64 } else { row as f64 });
        let scaler = StandardScaler::fit(x.view()).unwrap();
        assert_eq!(scaler.scale[0], 1.0);
        assert!((scaler.scale[1] - ((1000.0f64 * 1000.0 - 1.0) / 12.0).sqrt()).abs() < 1e-9);
    }

    #[test]
    fn a_feature_that_is_not_finite_is_named_by_row_and_column() {
        let x = array![[1.0f32, 2.0], [3.0, f32::NAN]];
        let error = StandardScaler::fit(x.view()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "feature at row 1, column 1 is NaN, expected a finite number"
        );

        let scaler = FittedScaler {
            mean: array![0.0, 0.0],
            scale: array![1.0, 1.0],
        };
        let x = array![[1.0f32, 2.0], [f32::INFINITY, 4.0]];
        assert!(matches!(
            scaler.transform(x.view()),
            Err(Error::NotFinite { row: 1, column: 0, .. })
        ));
    }

    #[test]
    fn another_width_than_fitted_is_an_error() {
        let scaler = StandardScaler::fit(array![[1.0f32, 2.0], [3.0, 5.0]].view()).unwrap();
        let error = scaler.transform(array![[1.0f32]].view()).unwrap_err();
        assert_eq!(error.to_string(), "features have 1 columns, expected 2");
    }

    #[test]
    fn no_rows_are_an_error() {
        assert!(matches!(
            StandardScaler::fit(Array2::<f32>::zeros((0, 3)).view()),
            Err(Error::TooFewRows { expected: 1, found: 0 })
        ));
    }
}
