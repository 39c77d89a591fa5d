use luthier_artifact::ReadRows;
use ndarray::{Array1, Array2, ArrayView2, Zip};

use crate::columns::{Columns, is_constant};
use crate::rows::{check_finite, for_each_block};
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
    /// Estimates mean and scale from `rows`, `[n, d]` of `f32` or `f64`, read once.
    ///
    /// # Errors
    /// [`Error::TooFewRows`] without rows, [`Error::Read`] if they cannot be read,
    /// [`Error::NotFinite`] if a feature is infinite or not a number.
    pub fn fit(rows: impl ReadRows) -> Result<FittedScaler> {
        let (n_rows, n_columns) = (rows.n_rows(), rows.n_features());
        if n_rows == 0 {
            return Err(Error::TooFewRows { expected: 1, found: 0 });
        }
        let mut mean = Array1::zeros(n_columns);
        let mut squares = Array1::zeros(n_columns);
        for_each_block(&rows, |start, x| {
            // As `Moments` merges blocks.
            let columns = Columns::of(x);
            let (before, here) = (start as f64, x.nrows() as f64);
            let shift = columns.mean - &mean;
            squares += &columns.squares;
            squares.scaled_add(before * here / (before + here), &(&shift * &shift));
            mean.scaled_add(here / (before + here), &shift);
            Ok(())
        })?;
        Ok(FittedScaler::of_squares(n_rows, mean, &squares))
    }
}

impl FittedScaler {
    /// The scaler of `n_rows` rows with these means and sums of squared deviations.
    pub(crate) fn of_squares(n_rows: usize, mean: Array1<f64>, squares: &Array1<f64>) -> Self {
        let n = n_rows as f64;
        let scale = Array1::from_shape_fn(mean.len(), |column| {
            let variance = squares[column] / n;
            if is_constant(variance, mean[column], n) {
                1.0
            } else {
                variance.sqrt()
            }
        });
        FittedScaler { mean, scale }
    }

    /// Standardizes `x`, `[n, d]` of `f32` or `f64`, to `[n, d]`.
    ///
    /// # Errors
    /// [`Error::Width`] if `x` does not have the width seen by `fit`, [`Error::NotFinite`] if a feature is infinite
    /// or not a number.
    pub fn transform<T: Copy + Send + Sync + Into<f64>>(&self, x: ArrayView2<'_, T>) -> Result<Array2<f64>> {
        self.check_width(x.ncols())?;
        check_finite(x, 0)?;
        let mut scaled = Array2::zeros(x.dim());
        Zip::from(scaled.rows_mut())
            .and(x.rows())
            .par_for_each(|mut scaled, x| {
                Zip::from(&mut scaled)
                    .and(&x)
                    .and(&self.mean)
                    .and(&self.scale)
                    .for_each(|scaled, &value, mean, scale| *scaled = (value.into() - mean) / scale);
            });
        Ok(scaled)
    }

    pub(crate) fn check_width(&self, found: usize) -> Result<()> {
        let expected = self.mean.len();
        if found == expected {
            Ok(())
        } else {
            Err(Error::Width { expected, found })
        }
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
