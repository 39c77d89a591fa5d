use ndarray::Array2;

use super::{Decomposition, Keep};
use crate::{Result, linalg};

/// The components of `centred`, `[n, d]`, from the Gram matrix of its shorter side.
///
/// The `d × d` matrix XᵀX has the components as eigenvectors. With fewer rows than columns the `n × n` matrix XXᵀ has
/// the same eigenvalues λ, and from its eigenvectors u the components are Xᵀu / √λ.
pub(super) fn decompose(centred: &Array2<f64>, keep: Keep) -> Result<Decomposition> {
    let (n_rows, n_columns) = centred.dim();
    let x = linalg::view(centred);
    let eigen = linalg::gram_eigen(if n_rows < n_columns { x } else { x.transpose() })?;
    let mut variances: Vec<f64> = eigen.values.iter().map(|value| value / (n_rows - 1) as f64).collect();
    let total_variance = variances.iter().sum();
    let count = keep.count(&variances, total_variance);
    variances.truncate(count);

    // Xᵀu / √λ is orthogonal to the first component up to ε λ₁ / λ only. Where that is too little (a component within
    // rounding errors of no variance at all) the longer side has orthonormal eigenvectors whatever their eigenvalues.
    let separable = eigen.values[count - 1] > eigen.values[0] * f64::EPSILON.sqrt();
    let components = if n_rows < n_columns && separable {
        let mut components = linalg::product(eigen.vectors(count).transpose(), x);
        for (mut component, value) in components.rows_mut().into_iter().zip(&eigen.values) {
            component /= value.sqrt();
        }
        components
    } else {
        let longer = if n_rows < n_columns {
            Some(linalg::gram_eigen(x.transpose())?)
        } else {
            None
        };
        let vectors = longer.as_ref().unwrap_or(&eigen).vectors(count);
        Array2::from_shape_fn((count, n_columns), |(component, column)| vectors[(column, component)])
    };
    Ok(Decomposition {
        components,
        variances,
        total_variance,
    })
}
