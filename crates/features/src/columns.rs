//! Means and squared deviations of single columns, on which the scaler and the moments are built.

use faer::traits::ComplexField;
use ndarray::{Array1, ArrayView2, Axis};
use rayon::prelude::*;

/// Rows that one task of a block sums over: fixed, so that sums do not depend on the number of threads.
const CHUNK: usize = 128;

/// The moments of a block's columns.
pub(crate) struct Columns {
    pub(crate) mean: Array1<f64>,
    /// The sum of the squared deviations.
    pub(crate) squares: Array1<f64>,
    /// A power of two close to the standard deviation: deviations divided by it keep clear of `f32`'s limits.
    pub(crate) unit: Array1<f64>,
}

impl Columns {
    pub(crate) fn of<T: Copy + Send + Sync + Into<f64>>(x: ArrayView2<'_, T>) -> Self {
        let (n, d) = x.dim();
        // About the first row, so that the mean of equal values is exactly that value.
        let pivot = x.row(0).mapv(Into::into);
        let sums = |about: &Array1<f64>| {
            let chunks: Vec<_> = x.axis_chunks_iter(Axis(0), CHUNK).collect();
            let chunks: Vec<_> = chunks
                .into_par_iter()
                .map(|rows| {
                    let (mut sums, mut squares) = (Array1::<f64>::zeros(d), Array1::<f64>::zeros(d));
                    for row in rows.rows() {
                        ndarray::Zip::from(&mut sums)
                            .and(&mut squares)
                            .and(&row)
                            .and(about)
                            .for_each(|sum, square, &value, about| {
                                let deviation = value.into() - about;
                                *sum += deviation;
                                *square += deviation * deviation;
                            });
                    }
                    (sums, squares)
                })
                .collect();
            chunks
                .into_iter()
                .reduce(|a, b| (a.0 + b.0, a.1 + b.1))
                .expect("a block has rows")
        };
        let (sum, about_pivot) = sums(&pivot);
        let mean = pivot + sum / n as f64;
        // The corrected two-pass algorithm: without rounding, the deviations would add up to zero.
        let (sum, squares) = sums(&mean);
        let squares = squares - &sum * &sum / n as f64;
        let unit = about_pivot.mapv(|squares| match (squares / n as f64).sqrt().log2().round().exp2() {
            unit if unit > 0.0 => unit,
            _ => 1.0,
        });
        Columns { mean, squares, unit }
    }

    /// Writes the deviations of `x`, in units, to `centred`, of the same shape and in C order.
    pub(crate) fn centre<T: Copy + Send + Sync + Into<f64>, P: Product>(
        &self,
        x: ArrayView2<'_, T>,
        centred: &mut [P],
    ) {
        let factors = self.unit.mapv(f64::recip);
        let rows: Vec<_> = x.rows().into_iter().collect();
        centred
            .par_chunks_mut(x.ncols().max(1))
            .zip(rows)
            .for_each(|(centred, row)| {
                for (((centred, &value), mean), factor) in centred.iter_mut().zip(&row).zip(&self.mean).zip(&factors) {
                    *centred = P::from_f64((value.into() - mean) * factor);
                }
            });
    }
}

/// The numbers in which the products of a block are computed.
pub(crate) trait Product: ComplexField + Copy + Send + Sync {
    fn zero() -> Self;
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
}

impl Product for f32 {
    fn zero() -> Self {
        0.0
    }
    fn from_f64(value: f64) -> Self {
        value as f32
    }
    fn to_f64(self) -> f64 {
        self.into()
    }
}

impl Product for f64 {
    fn zero() -> Self {
        0.0
    }
    fn from_f64(value: f64) -> Self {
        value
    }
    fn to_f64(self) -> f64 {
        self
    }
}

/// Whether a variance is indistinguishable from zero, given the error bound of the two-pass algorithm.
///
/// scikit-learn's `_is_constant_feature`, after Chan, Golub and LeVeque, "Algorithms for computing the sample
/// variance: analysis and recommendations".
pub(crate) fn is_constant(variance: f64, mean: f64, n: f64) -> bool {
    variance <= n * f64::EPSILON * variance + (n * mean * f64::EPSILON).powi(2)
}
