use faer::traits::ComplexField;
use faer::{MatMut, MatRef};
use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use rayon::prelude::*;

use luthier_artifact::ReadRows;

use crate::rows::{BLOCK, for_each_block};
use crate::scaler::is_constant;
use crate::{Error, FittedScaler, Result, linalg};

/// Rows that one task of a block sums over: fixed, so that sums do not depend on the number of threads.
const CHUNK: usize = 128;

/// Up to this many rows the products of a block are computed in `f64`, beyond in `f32`, which is twice as fast.
///
/// Either way they are added up in `f64`. What `f32` costs falls with the number of rows, for its errors are random:
/// at 50,000 × 2,048 no share of the variance was off by more than 6e-11, and the kept components spanned the same
/// space to 3e-8.
const ROWS_IN_F64: usize = 8192;

/// Number, means and comoments of rows: all that scaler and principal components need, of the size `d²`.
///
/// Rows are read once. The moments of each block of rows are taken about its own means and merged with those before
/// (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979), so
/// that nothing cancels, however large the means are. Sums are of two levels, within a block and over the blocks:
/// for 1,000,000 rows their relative error is at most (2,048 + 489) · 1.1e-16 = 2.8e-13.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    n_rows: usize,
    /// `[d]`.
    mean: Array1<f64>,
    /// `Σ (x - mean)(x - mean)ᵀ`, `[d, d]`: the diagonal and what is right of it; zeros are left of it.
    comoments: Array2<f64>,
}

impl Moments {
    /// The moments of all rows.
    ///
    /// # Errors
    /// [`Error::TooFewRows`] without rows, [`Error::Read`] if they cannot be read,
    /// [`Error::NotFinite`] if a feature is infinite or not a number.
    pub fn of(rows: impl ReadRows) -> Result<Self> {
        if rows.n_rows() <= ROWS_IN_F64 {
            Moments::with_products_in::<f64>(&rows)
        } else {
            Moments::with_products_in::<f32>(&rows)
        }
    }

    fn with_products_in<P: Product>(rows: &impl ReadRows) -> Result<Self> {
        let (n, d) = (rows.n_rows(), rows.n_features());
        if n == 0 {
            return Err(Error::TooFewRows { expected: 1, found: 0 });
        }
        let mut moments = Moments {
            n_rows: 0,
            mean: Array1::zeros(d),
            comoments: Array2::zeros((d, d)),
        };
        let mut centred = vec![P::zero(); n.min(BLOCK) * d];
        let mut products = Array2::from_elem((d, d), P::zero());
        for_each_block(rows, |_, x| {
            let columns = Columns::of(x);
            let centred = &mut centred[..x.len()];
            columns.centre(x, centred);
            let z = MatRef::from_row_major_slice(centred, x.nrows(), d);
            let slice = products.as_slice_mut().expect("a new array is in C order");
            // The lower triangle of a matrix in Fortran order is the upper one in C order.
            linalg::lower_product(MatMut::from_column_major_slice_mut(slice, d, d), z.transpose());
            moments.merge_parts(x.nrows(), &columns.mean, |row, sums| {
                let diagonal = sums[0] + columns.squares[row];
                let products = products.slice(s![row, row..]);
                for ((sum, product), unit) in sums.iter_mut().zip(products).zip(columns.unit.slice(s![row..])) {
                    *sum += product.to_f64() * (columns.unit[row] * unit);
                }
                sums[0] = diagonal;
            });
            Ok(())
        })?;
        Ok(moments)
    }

    /// The number of rows.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// The number of columns.
    pub fn n_features(&self) -> usize {
        self.mean.len()
    }

    /// Takes the rows of `other` in.
    ///
    /// # Errors
    /// [`Error::Width`] if they have another number of columns.
    pub fn merge(&mut self, other: &Moments) -> Result<()> {
        if other.n_features() != self.n_features() {
            return Err(Error::Width {
                expected: self.n_features(),
                found: other.n_features(),
            });
        }
        self.merge_parts(other.n_rows, &other.mean, |row, sums| {
            let comoments = other.comoments.slice(s![row, row..]);
            sums.iter_mut()
                .zip(comoments)
                .for_each(|(sum, comoment)| *sum += comoment);
        });
        Ok(())
    }

    /// [`merge`](Moments::merge) where `add` adds the comoments of a row, from the diagonal on.
    fn merge_parts(&mut self, n_rows: usize, mean: &Array1<f64>, add: impl Fn(usize, &mut [f64]) + Sync) {
        let (here, there) = (self.n_rows as f64, n_rows as f64);
        let shift = mean - &self.mean;
        let weight = here * there / (here + there);
        self.comoments
            .axis_iter_mut(Axis(0))
            .into_par_iter()
            .enumerate()
            .for_each(|(row, mut sums)| {
                let sums = &mut sums.as_slice_mut().expect("rows of a matrix in C order are contiguous")[row..];
                add(row, sums);
                let weighted = weight * shift[row];
                for (sum, shift) in sums.iter_mut().zip(shift.slice(s![row..])) {
                    *sum += weighted * shift;
                }
            });
        self.mean.scaled_add(there / (here + there), &shift);
        self.n_rows += n_rows;
    }

    /// What [`StandardScaler::fit`](crate::StandardScaler::fit) finds.
    pub fn scaler(&self) -> FittedScaler {
        FittedScaler::of_squares(self.n_rows, self.mean.clone(), &self.comoments.diag().to_owned())
    }

    /// The comoments of the columns divided by `scale`, of which the lower triangle in Fortran order is filled; a
    /// column that does not vary beyond rounding errors has none.
    pub(crate) fn scaled(&self, scale: &Array1<f64>) -> Array2<f64> {
        let n = self.n_rows as f64;
        let factors = Array1::from_shape_fn(self.n_features(), |column| {
            if is_constant(self.comoments[[column, column]] / n, self.mean[column], n) {
                0.0
            } else {
                scale[column].recip()
            }
        });
        let mut scaled = self.comoments.clone();
        for (mut row, &factor) in scaled.rows_mut().into_iter().zip(&factors) {
            row *= factor;
            row *= &factors;
        }
        scaled
    }

    /// The means of the columns, `[d]`.
    pub(crate) fn mean(&self) -> &Array1<f64> {
        &self.mean
    }
}

/// The moments of a block's columns.
pub(crate) struct Columns {
    pub(crate) mean: Array1<f64>,
    /// The sum of the squared deviations.
    pub(crate) squares: Array1<f64>,
    /// A power of two close to the standard deviation: deviations divided by it keep clear of `f32`'s limits.
    unit: Array1<f64>,
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
    fn centre<T: Copy + Send + Sync + Into<f64>, P: Product>(&self, x: ArrayView2<'_, T>, centred: &mut [P]) {
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
trait Product: ComplexField + Copy + Send + Sync {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_in_f32_add_up_to_those_in_f64() {
        let x = Array2::from_shape_fn((3 * BLOCK + 5, 7), |(row, column)| {
            ((row * (column + 3) * 7919) % 1009) as f32 * 10f32.powi(6 * column as i32 - 20)
        });
        let (narrow, wide) = (
            Moments::with_products_in::<f32>(&x.view()).unwrap(),
            Moments::with_products_in::<f64>(&x.view()).unwrap(),
        );
        assert_eq!((narrow.n_rows, &narrow.mean), (wide.n_rows, &wide.mean));
        assert_ne!(narrow.comoments, wide.comoments);
        for row in 0..7 {
            for column in row..7 {
                let scale = (wide.comoments[[row, row]] * wide.comoments[[column, column]]).sqrt();
                let off = (narrow.comoments[[row, column]] - wide.comoments[[row, column]]) / scale;
                assert!(off.abs() < 1e-7, "{row}, {column}: {off:e}");
            }
        }
    }
}
