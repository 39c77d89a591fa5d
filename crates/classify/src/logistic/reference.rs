use ndarray::{Array2, Axis, concatenate};
use smartcore::linear::logistic_regression::{LogisticRegression, LogisticRegressionParameters};

use crate::Result;

/// The coefficients by smartcore, `[k, p + 1]`, the bias in the last column.
///
/// smartcore minimizes `Σ log loss + alpha/2 ‖weight‖²` without a penalty on the bias, which is scikit-learn's
/// objective for `alpha = 1/C`; with two classes it has one weight vector, that of the second class.
pub(super) fn minimize(x: &Array2<f64>, labels: &[usize], n_classes: usize, c: f64) -> Result<Array2<f64>> {
    let labels: Vec<u32> = labels.iter().map(|&label| label as u32).collect();
    let fitted = LogisticRegression::fit(x, &labels, LogisticRegressionParameters::default().with_alpha(1.0 / c))?;
    let coefficients = concatenate(Axis(1), &[fitted.coefficients().view(), fitted.intercept().view()])
        .expect("smartcore gives an intercept a class");
    Ok(if n_classes == 2 {
        concatenate(Axis(0), &[(&coefficients * -0.5).view(), (&coefficients * 0.5).view()])
            .expect("both have the same width")
    } else {
        coefficients.as_standard_layout().into_owned()
    })
}
