//! The border between `ndarray`, which holds matrices, and faer, which computes with them.
//!
//! Results are the same bytes for any number of threads.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::traits::ComplexField;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use ndarray::{Array2, ArrayViewMut2};

use crate::{Error, Result};

/// How faer works in parallel: in 8 parts, on as many threads as there are.
///
/// faer sums over the parts. Their number is fixed, so that results do not depend on the number of threads.
pub fn par() -> Par {
    const PARTS: usize = 8;
    Par::rayon(PARTS)
}

/// Eigenvalues in descending order, and the eigenvectors in columns of the same order.
pub(crate) struct Eigen {
    /// `[n]`, not negative.
    pub(crate) values: Vec<f64>,
    ascending: Mat<f64>,
}

impl Eigen {
    /// The eigenvectors of the `count` largest eigenvalues, `[n, count]`.
    pub(crate) fn vectors(&self, count: usize) -> MatRef<'_, f64> {
        let n = self.ascending.ncols();
        self.ascending.subcols(n - count, count).reverse_cols()
    }
}

/// faer's view of a matrix.
///
/// # Panics
/// If the matrix is not in C order.
pub fn view(x: &Array2<f64>) -> MatRef<'_, f64> {
    let slice = x.as_slice().expect("matrices are kept in C order");
    MatRef::from_row_major_slice(slice, x.nrows(), x.ncols())
}

/// `a · b`: `[n, m]` and `[m, p]` to `[n, p]`, in C order.
pub fn product(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Array2<f64> {
    let mut c = Array2::zeros((a.nrows(), b.ncols()));
    product_into(c.view_mut(), a, b);
    c
}

/// Puts `a · b` into `c`: `[n, m]` and `[m, p]` into `[n, p]`.
///
/// # Panics
/// If `c` is not in C order.
pub(crate) fn product_into(mut c: ArrayViewMut2<'_, f64>, a: MatRef<'_, f64>, b: MatRef<'_, f64>) {
    let (n_rows, n_columns) = c.dim();
    let slice = c.as_slice_mut().expect("matrices are kept in C order");
    let c = MatMut::from_row_major_slice_mut(slice, n_rows, n_columns);
    matmul(c, Accum::Replace, a, b, 1.0, par());
}

/// Puts the lower triangle of `x · xᵀ` into `c`.
pub(crate) fn lower_product<T: ComplexField>(c: MatMut<'_, T>, x: MatRef<'_, T>) {
    triangular::matmul(
        c,
        BlockStructure::TriangularLower,
        Accum::Replace,
        x,
        BlockStructure::Rectangular,
        x.transpose(),
        BlockStructure::Rectangular,
        T::one_impl(),
        par(),
    );
}

/// The eigendecomposition of the Gram matrix `x · xᵀ`.
///
/// # Errors
/// [`Error::NoConvergence`] if it fails.
pub(crate) fn gram_eigen(x: MatRef<'_, f64>) -> Result<Eigen> {
    let mut gram = Mat::zeros(x.nrows(), x.nrows());
    lower_product(gram.as_mut(), x);
    eigen(gram.as_ref())
}

/// The eigendecomposition of a symmetric matrix without negative eigenvalues, of which the lower triangle is read.
///
/// # Errors
/// [`Error::NoConvergence`] if it fails.
pub(crate) fn eigen(gram: MatRef<'_, f64>) -> Result<Eigen> {
    let size = gram.nrows();
    let mut vectors = Mat::zeros(size, size);
    let mut values = faer::diag::Diag::zeros(size);
    let scratch = self_adjoint_evd_scratch::<f64>(size, ComputeEigenvectors::Yes, par(), Default::default());
    self_adjoint_evd(
        gram,
        values.as_mut(),
        Some(vectors.as_mut()),
        par(),
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    )
    .map_err(|_| Error::NoConvergence { size })?;
    // A Gram matrix has no negative eigenvalues; computed ones can be below zero by a rounding error.
    let values = values
        .column_vector()
        .iter()
        .rev()
        .map(|&value| value.max(0.0))
        .collect();
    Ok(Eigen {
        values,
        ascending: vectors,
    })
}
