use faer::linalg::matmul::matmul;
use faer::linalg::solvers::Llt;
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::{Accum, Mat, MatRef, Side};
use luthier_features::check_finite;
use luthier_features::linalg::{par, product, view};
use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;

use crate::logistic::check_labels;
use crate::{Error, Result};

/// The Mahalanobis distance to the nearest class, by which an image unlike anything in training shows.
///
/// All classes share one covariance: Lee, Lee, Lee and Shin, "A Simple Unified Framework for Detecting
/// Out-of-Distribution Samples and Adversarial Attacks", 2018. It is shrunk towards a multiple of the identity as Ledoit
/// and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004, say how far, for with as
/// many components as images the sample's own can hardly be inverted.
///
/// Distances are divided by the square root of the number of components, so that they are standard deviations, about 1
/// for an image of a class, whatever the number: that differs from fold to fold.
///
/// Distances of training images are too small, for their noise is what the covariance was fitted to: a threshold comes
/// from [`HeldOut::distances`](crate::HeldOut::distances).
#[derive(Clone, Debug, PartialEq)]
pub struct ClassDistance {
    /// `L⁻¹`, lower triangular, `[p, p]`, where the covariance is `L Lᵀ`.
    pub whitening: Array2<f32>,
    /// `L⁻¹ μ` of each class's mean μ, `[k, p]`.
    pub centres: Array2<f32>,
}

impl ClassDistance {
    /// Estimates means and covariance from `x`, `[n, p]`, with labels below `n_classes`.
    ///
    /// # Errors
    /// Those of [`LogisticRegression::fit`](crate::LogisticRegression::fit) for labels and values that do not fit;
    /// [`Error::NoSpread`] if the images of each class are all the same.
    pub fn fit(x: ArrayView2<'_, f64>, labels: &[usize], n_classes: usize) -> Result<Self> {
        check_labels(x.nrows(), labels, n_classes)?;
        check_finite(x, 0)?;
        let (n, p) = x.dim();
        let mut means = Array2::<f64>::zeros((n_classes, p));
        let mut counts = vec![0.0; n_classes];
        for (row, &label) in x.rows().into_iter().zip(labels) {
            means.row_mut(label).scaled_add(1.0, &row);
            counts[label] += 1.0;
        }
        for (mut mean, count) in means.rows_mut().into_iter().zip(&counts) {
            mean /= *count;
        }
        let mut centred = x.as_standard_layout().into_owned();
        for (mut row, &label) in centred.rows_mut().into_iter().zip(labels) {
            row -= &means.row(label);
        }

        let mut covariance = Mat::<f64>::zeros(p, p);
        let z = view(&centred);
        matmul(
            covariance.as_mut(),
            Accum::Replace,
            z.transpose(),
            z,
            1.0 / n as f64,
            par(),
        );
        let shrinkage = ledoit_wolf(&centred, covariance.as_ref());
        let mean_variance = (0..p).map(|column| covariance[(column, column)]).sum::<f64>() / p as f64;
        let mean_square = x.iter().map(|value| value * value).sum::<f64>() / (n * p) as f64;
        // Less is what rounding leaves of images that are all the same.
        if mean_variance <= mean_square * (n as f64 * f64::EPSILON).powi(2) {
            return Err(Error::NoSpread);
        }
        for column in 0..p {
            for row in 0..p {
                covariance[(row, column)] *= 1.0 - shrinkage;
            }
            covariance[(column, column)] += shrinkage * mean_variance;
        }
        let factor = Llt::new(covariance.as_ref(), Side::Lower).map_err(|_| Error::NoSpread)?;
        let mut whitening = Mat::<f64>::identity(p, p);
        solve_lower_triangular_in_place(factor.L(), whitening.as_mut(), par());
        let centres = product(view(&means), whitening.transpose());
        Ok(ClassDistance {
            whitening: Array2::from_shape_fn((p, p), |(row, column)| whitening[(row, column)] as f32),
            centres: centres.mapv(|value| value as f32),
        })
    }

    /// [`fit`](Self::fit), or `None` where that is [`Error::NoSpread`].
    pub(crate) fn fit_if_spread(x: ArrayView2<'_, f64>, labels: &[usize], n_classes: usize) -> Result<Option<Self>> {
        match ClassDistance::fit(x, labels, n_classes) {
            Err(Error::NoSpread) => Ok(None),
            distance => distance.map(Some),
        }
    }

    /// The distance of each row of `x`, `[n, p]`, to the nearest class: `[n]`, in standard deviations.
    ///
    /// # Errors
    /// [`Error::Width`] if `x` does not have the width seen by `fit`.
    pub fn distances(&self, x: ArrayView2<'_, f64>) -> Result<Vec<f64>> {
        let expected = self.centres.ncols();
        if x.ncols() != expected {
            return Err(Error::Width {
                expected,
                found: x.ncols(),
            });
        }
        Ok(self.nearest(&self.whitening.mapv(f64::from), &x.as_standard_layout().into_owned()))
    }

    /// [`distances`](Self::distances) of rows of the right width in C order, given the whitening in double precision.
    pub(crate) fn nearest(&self, whitening: &Array2<f64>, x: &Array2<f64>) -> Vec<f64> {
        let p = self.centres.ncols() as f64;
        let whitened = product(view(x), view(whitening).transpose());
        let rows: Vec<_> = whitened.rows().into_iter().collect();
        let nearest = rows.into_par_iter().map(|row| {
            let squares = self.centres.rows().into_iter().map(|centre| {
                let pairs = row.iter().zip(centre);
                pairs.map(|(a, &b)| (a - f64::from(b)).powi(2)).sum::<f64>()
            });
            (squares.fold(f64::INFINITY, f64::min) / p).sqrt()
        });
        nearest.collect()
    }
}

/// How far the covariance `s` of `centred` rows is to be shrunk: equations 14 of Ledoit and Wolf, as scikit-learn's
/// `ledoit_wolf_shrinkage` has them.
fn ledoit_wolf(centred: &Array2<f64>, s: MatRef<'_, f64>) -> f64 {
    let (n, p) = (centred.nrows() as f64, centred.ncols() as f64);
    let squared_norm = s.squared_norm_l2();
    let trace: f64 = (0..s.nrows()).map(|column| s[(column, column)]).sum();
    // How far the covariance is from a multiple of the identity, and how far that is due to chance.
    let distance = squared_norm - trace * trace / p;
    let fourths: f64 = centred.map_axis(Axis(1), |row| row.dot(&row).powi(2)).sum();
    let chance = (fourths / n - squared_norm) / n;
    if distance <= 0.0 {
        1.0
    } else {
        (chance / distance).clamp(0.0, 1.0)
    }
}
