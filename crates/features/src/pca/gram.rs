use faer::MatRef;
use ndarray::{Array1, Array2};

use super::{ComponentCount, Decomposition};
use crate::linalg::{self, Eigen};
use crate::{Error, Moments, Result};

/// The components of rows with these moments, their columns divided by `scale`.
///
/// The `d × d` matrix of the comoments, XᵀX, has the components as eigenvectors.
pub(super) fn decompose_moments(
    moments: Moments,
    scale: &Array1<f64>,
    n_components: ComponentCount,
) -> Result<Decomposition> {
    let n_rows = moments.n_rows();
    let scaled = moments.into_scaled(scale);
    if scaled.diag().iter().all(|&square| square == 0.0) {
        return Err(Error::NoVariance);
    }
    let slice = scaled.as_slice().expect("a new array is in C order");
    let eigen = linalg::eigen(MatRef::from_column_major_slice(slice, scaled.nrows(), scaled.ncols()))?;
    drop(scaled);
    let (variances, total_variance) = eigen.variances(n_rows);
    Ok(Decomposition {
        components: eigen.rows(n_components.count(&variances, total_variance)),
        variances,
        total_variance,
    })
}

/// The components of `centred`, `[n, d]` with fewer rows than columns.
///
/// The `n × n` matrix XXᵀ has the same eigenvalues λ as XᵀX, and from its eigenvectors u the components are Xᵀu / √λ.
pub(super) fn decompose_wide(centred: &Array2<f64>, n_components: ComponentCount) -> Result<Decomposition> {
    let x = linalg::view(centred);
    let eigen = linalg::gram_eigen(x)?;
    let (variances, total_variance) = eigen.variances(centred.nrows());
    let count = n_components.count(&variances, total_variance);

    // Xᵀu / √λ is orthogonal to the first component up to ε λ₁ / λ only. Where that is too little (a component within
    // rounding errors of no variance at all) the longer side has orthonormal eigenvectors whatever their eigenvalues.
    let separable = eigen.values[count - 1] > eigen.values[0] * f64::EPSILON.sqrt();
    let components = if separable {
        let mut components = linalg::product(eigen.vectors(count).transpose(), x);
        for (mut component, value) in components.rows_mut().into_iter().zip(&eigen.values) {
            component /= value.sqrt();
        }
        components
    } else {
        linalg::gram_eigen(x.transpose())?.rows(count)
    };
    Ok(Decomposition {
        components,
        variances,
        total_variance,
    })
}

impl Eigen {
    /// The variances of all components of `n_rows` rows, and their sum.
    fn variances(&self, n_rows: usize) -> (Vec<f64>, f64) {
        let variances: Vec<f64> = self.values.iter().map(|value| value / (n_rows - 1) as f64).collect();
        let total_variance = variances.iter().sum();
        (variances, total_variance)
    }

    /// The eigenvectors of the `count` largest eigenvalues, `[count, n]`.
    fn rows(&self, count: usize) -> Array2<f64> {
        let vectors = self.vectors(count);
        Array2::from_shape_fn((count, vectors.nrows()), |(component, column)| {
            vectors[(column, component)]
        })
    }
}
