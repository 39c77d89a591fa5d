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
