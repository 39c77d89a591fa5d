use std::error::Error;

use ndarray::{ArrayView2, ArrayViewMut2, s};

/// The error of the storage that holds the rows, for example of the cache.
pub type ReadError = Box<dyn Error + Send + Sync>;

/// A table of features that is read a block of rows at a time, and need not be in memory as a whole.
///
/// Estimators read every row once, in order, and the next block while they compute with the one before.
pub trait ReadRows: Sync {
    /// `f32` or `f64`.
    type Feature: Copy + Default + Send + Sync + Into<f64>;

    /// The number of rows, `n`.
    fn n_rows(&self) -> usize;

    /// The number of columns, `d`.
    fn n_features(&self) -> usize;

    /// Copies rows into `block`, `[m, d]`: the rows `start` to `start + m - 1`, all of which must exist.
    ///
    /// # Errors
    /// The error of the storage that holds the rows.
    fn read(&self, start: usize, block: ArrayViewMut2<'_, Self::Feature>) -> Result<(), ReadError>;
}

impl<T: Copy + Default + Send + Sync + Into<f64>> ReadRows for ArrayView2<'_, T> {
    type Feature = T;

    fn n_rows(&self) -> usize {
        self.nrows()
    }

    fn n_features(&self) -> usize {
        self.ncols()
    }

    fn read(&self, start: usize, mut block: ArrayViewMut2<'_, T>) -> Result<(), ReadError> {
        let end = start + block.nrows();
        block.assign(&self.slice(s![start..end, ..]));
        Ok(())
    }
}

/// Some rows of a table, as a table of their own.
#[derive(Clone, Copy, Debug)]
pub struct SomeRows<'a, R> {
    /// The table.
    pub table: R,
    /// Its rows.
    pub rows: &'a [usize],
}

impl<R: ReadRows> ReadRows for SomeRows<'_, R> {
    type Feature = R::Feature;

    fn n_rows(&self) -> usize {
        self.rows.len()
    }

    fn n_features(&self) -> usize {
        self.table.n_features()
    }

    fn read(&self, start: usize, mut block: ArrayViewMut2<'_, R::Feature>) -> Result<(), ReadError> {
        let rows = &self.rows[start..start + block.nrows()];
        let mut place = 0;
        // Rows that follow each other are read at once.
        for run in rows.chunk_by(|row, next| row + 1 == *next) {
            let end = place + run.len();
            self.table.read(run[0], block.slice_mut(s![place..end, ..]))?;
            place = end;
        }
        Ok(())
    }
}

impl<R: ReadRows + ?Sized> ReadRows for &R {
    type Feature = R::Feature;

    fn n_rows(&self) -> usize {
        R::n_rows(self)
    }

    fn n_features(&self) -> usize {
        R::n_features(self)
    }

    fn read(&self, start: usize, block: ArrayViewMut2<'_, R::Feature>) -> Result<(), ReadError> {
        R::read(self, start, block)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::*;

    #[test]
    fn some_rows_are_read_in_their_order() {
        let table = Array2::from_shape_fn((6, 2), |(row, column)| (10 * row + column) as f32);
        let rows = [0, 1, 4, 3, 5];
        let some = SomeRows {
            table: table.view(),
            rows: &rows,
        };
        assert_eq!((some.n_rows(), some.n_features()), (5, 2));
        let mut block = Array2::zeros((3, 2));
        some.read(1, block.view_mut()).unwrap();
        assert_eq!(block, array![[10.0, 11.0], [40.0, 41.0], [30.0, 31.0]]);
    }
}
