use ndarray::{Array2, Axis};
use smartcore::decomposition::pca::{PCA, PCAParameters};

use super::{ComponentCount, Decomposition};
use crate::{Result, linalg};

/// The components of `centred`, `[n, d]`, by smartcore.
///
/// smartcore takes a number of components only and keeps its eigenvalues to itself, so that a share of the variance
/// is cut from a full fit, and variances are measured on the projected data.
pub(super) fn decompose(centred: &Array2<f64>, n_components: ComponentCount) -> Result<Decomposition> {
    let (n_rows, n_columns) = centred.dim();
    let degrees = (n_rows - 1) as f64;
    let n_fitted = match n_components {
        ComponentCount::Exact(count) => count,
        ComponentCount::Variance(_) | ComponentCount::All => n_rows.min(n_columns),
    };
    let pca = PCA::fit(centred, PCAParameters::default().with_n_components(n_fitted))?;

    let components = pca.components().t().as_standard_layout().into_owned();
    let projected = linalg::product(linalg::view(centred), linalg::view(&components).transpose());
    let mut variances = (&projected * &projected).sum_axis(Axis(0)).to_vec();
    variances.iter_mut().for_each(|variance| *variance /= degrees);
    let total_variance = centred.iter().map(|deviation| deviation * deviation).sum::<f64>() / degrees;

    let count = n_components.count(&variances, total_variance);
    let components = components.slice_move(ndarray::s![..count, ..]);
    Ok(Decomposition {
        components,
        variances,
        total_variance,
    })
}
