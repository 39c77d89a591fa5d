use faer::{MatMut, MatRef};
use luthier_artifact::ReadRows;
use ndarray::{Array1, Array2, s};
use rayon::prelude::*;

use crate::columns::{Columns, Product, is_constant};
use crate::rows::{BLOCK, for_each_block};
use crate::{Error, FittedScaler, Result, linalg};

/// Up to this many rows the products of a block are computed in `f64`, beyond in `f32`, which is twice as fast.
///
/// Either way they are added up in `f64`. What `f32` costs falls with the number of rows, for its errors are random:
/// at 50,000 × 2,048 no share of the variance was off by more than 6e-11, and the kept components spanned the same
/// space to 3e-8.
const ROWS_IN_F64: usize = 8192;

/// Number, means and comoments of rows: all that scaler and principal components need, `d (d + 1) / 2` numbers of
/// 8 bytes.
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
    /// `Σ (x - mean)(x - mean)ᵀ`: of each row the diagonal and the entries right of it, `d` to 1 of them.
    comoments: Vec<Vec<f64>>,
}

impl Moments {
    /// The moments of all rows.
    ///
    /// # Errors
    /// [`Error::TooFewRows`] without rows, [`Error::Read`] if they cannot be read, [`Error::Interrupted`],
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
        let mut moments = Moments::of_no_rows(d);
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

    /// The moments of no rows, of `d` features.
    pub fn of_no_rows(d: usize) -> Self {
        Moments {
            n_rows: 0,
            mean: Array1::zeros(d),
            comoments: (0..d).map(|row| vec![0.0; d - row]).collect(),
        }
    }

    /// Moments from their parts: the number of rows, the means, `[d]`, and what [`comoments`](Moments::comoments) gives.
    /// `None` if these do not fit together, or if one is infinite or not a number.
    pub fn from_parts(n_rows: usize, mean: Array1<f64>, comoments: &[f64]) -> Option<Self> {
        let (d, mut rest) = (mean.len(), comoments);
        let mut triangle = Vec::with_capacity(d);
        for row in 0..d {
            let (first, others) = rest.split_at_checked(d - row)?;
            triangle.push(first.to_vec());
            rest = others;
        }
        let is_finite = mean.iter().chain(comoments).all(|value| value.is_finite());
        (rest.is_empty() && is_finite).then_some(Moments {
            n_rows,
            mean,
            comoments: triangle,
        })
    }

    /// `Σ (x - mean)(x - mean)ᵀ`, `[d (d + 1) / 2]`: the upper triangle, row by row.
    pub fn comoments(&self) -> Array1<f64> {
        self.comoments.iter().flatten().copied().collect()
    }

    /// How many bytes the moments of rows with `d` features take.
    pub fn n_bytes(d: usize) -> usize {
        size_of::<f64>() * d * (d + 3) / 2
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
        if other.n_rows == 0 {
            return Ok(());
        }
        self.merge_parts(other.n_rows, &other.mean, |row, sums| {
            sums.iter_mut()
                .zip(&other.comoments[row])
                .for_each(|(sum, comoment)| *sum += comoment);
        });
        Ok(())
    }

    /// [`merge`](Moments::merge) where `add` adds the comoments of a row, from the diagonal on.
    fn merge_parts(&mut self, n_rows: usize, mean: &Array1<f64>, add: impl Fn(usize, &mut [f64]) + Sync) {
        let (here, there) = (self.n_rows as f64, n_rows as f64);
        let shift = mean - &self.mean;
        let weight = here * there / (here + there);
        self.comoments.par_iter_mut().enumerate().for_each(|(row, sums)| {
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
        let squares = self.comoments.iter().map(|row| row[0]).collect();
        FittedScaler::of_squares(self.n_rows, self.mean.clone(), &squares)
    }

    /// The comoments of the columns divided by `scale`, `[d, d]`: the upper triangle in C order is filled.
    ///
    /// Of a column that does not vary beyond rounding errors they are 0.
    pub(crate) fn into_scaled(self, scale: &Array1<f64>) -> Array2<f64> {
        let n = self.n_rows as f64;
        let factors = Array1::from_shape_fn(self.n_features(), |column| {
            if is_constant(self.comoments[column][0] / n, self.mean[column], n) {
                0.0
            } else {
                scale[column].recip()
            }
        });
        let mut scaled = Array2::zeros((factors.len(), factors.len()));
        // Row by row, so that the memory of the one triangle is freed while the other fills.
        for (row, comoments) in self.comoments.into_iter().enumerate() {
            let filled = scaled.slice_mut(s![row, row..]);
            for ((scaled, comoment), factor) in filled.into_iter().zip(comoments).zip(factors.slice(s![row..])) {
                *scaled = comoment * factors[row] * factor;
            }
        }
        scaled
    }

    /// The means of the columns, `[d]`.
    pub fn mean(&self) -> &Array1<f64> {
        &self.mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_to_the_whole_and_come_back_from_their_numbers() {
        let x = Array2::from_shape_fn((BLOCK + 900, 7), |(row, column)| {
            ((row * (column + 3) * 7919) % 1009) as f64 * 10f64.powi(2 * column as i32 - 5) + 1e3
        });
        let whole = Moments::of(x.view()).unwrap();
        let mut sum = Moments::of_no_rows(7);
        for part in [0..1, 1..1, 1..1000, 1000..BLOCK + 900] {
            let part = match part.is_empty() {
                true => Moments::of_no_rows(7),
                false => Moments::of(x.slice(s![part, ..])).unwrap(),
            };
            let comoments = part.comoments();
            let read = Moments::from_parts(part.n_rows(), part.mean().clone(), comoments.as_slice().unwrap()).unwrap();
            assert_eq!(read, part);
            sum.merge(&read).unwrap();
        }
        assert_eq!(sum.n_rows(), whole.n_rows());
        assert!((sum.mean() / whole.mean() - 1.0).iter().all(|off| off.abs() < 1e-14));
        let scale = whole.scaler().scale * (whole.n_rows() as f64).sqrt();
        for row in 0..7 {
            for column in row..7 {
                let off = sum.comoments[row][column - row] - whole.comoments[row][column - row];
                assert!(
                    (off / (scale[row] * scale[column])).abs() < 1e-13,
                    "{row}, {column}: {off:e}"
                );
            }
        }
        assert_eq!(Moments::from_parts(1, Array1::zeros(3), &[0.0; 5]), None);
        assert_eq!(Moments::from_parts(1, Array1::zeros(3), &[0.0; 7]), None);
        for value in [f64::NAN, f64::INFINITY] {
            assert_eq!(Moments::from_parts(1, Array1::zeros(1), &[value]), None);
            assert_eq!(Moments::from_parts(1, Array1::from_elem(1, value), &[0.0]), None);
        }
    }

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
                let scale = (wide.comoments[row][0] * wide.comoments[column][0]).sqrt();
                let off = (narrow.comoments[row][column - row] - wide.comoments[row][column - row]) / scale;
                assert!(off.abs() < 1e-7, "{row}, {column}: {off:e}");
            }
        }
    }
}
