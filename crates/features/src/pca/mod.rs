mod gram;
mod reference;

use std::fmt;

use ndarray::{Array1, Array2, ArrayView2, Axis};
use serde::{Deserialize, Serialize};

use luthier_artifact::{ReadRows, UnknownName};

use crate::rows::{check_finite, read_all};
use crate::{Error, FittedScaler, Moments, Result, StandardScaler, linalg};

/// How many principal components are kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComponentCount {
    /// As many as explain more than this share of the variance, between 0 and 1.
    Variance(f64),
    /// This number of components, at least 1.
    #[serde(rename = "components")]
    Exact(usize),
    /// All components that vary beyond rounding errors.
    ///
    /// The features are only rotated. A penalty on squared weights does not change with a rotation, so that a
    /// classifier of all components equals a classifier of the scaled features.
    All,
}

impl ComponentCount {
    /// As many components as explain more than `share` of the variance.
    ///
    /// # Errors
    /// [`Error::Variance`] unless `0 < share < 1`.
    pub fn variance(share: f64) -> Result<Self> {
        if share > 0.0 && share < 1.0 {
            Ok(ComponentCount::Variance(share))
        } else {
            Err(Error::Variance { found: share })
        }
    }

    /// `count` components.
    ///
    /// # Errors
    /// [`Error::Components`] if `count` is 0.
    pub fn exact(count: usize) -> Result<Self> {
        ComponentCount::Exact(count).check(usize::MAX)
    }

    /// This value, if it can be had of `available` components.
    fn check(self, available: usize) -> Result<Self> {
        match self {
            ComponentCount::Variance(share) => ComponentCount::variance(share),
            ComponentCount::Exact(asked) if asked == 0 || asked > available => {
                Err(Error::Components { asked, available })
            }
            ComponentCount::Exact(_) | ComponentCount::All => Ok(self),
        }
    }

    /// How many components are kept of those with these variances, given in descending order.
    ///
    /// scikit-learn's `searchsorted(cumsum(ratio), share, side="right") + 1`: the shares of the kept ones add up to
    /// more than `share`, not just to `share`.
    fn count(self, variances: &[f64], total: f64) -> usize {
        match self {
            ComponentCount::Exact(count) => count,
            ComponentCount::Variance(share) => {
                let cumulative = variances.iter().scan(0.0, |sum, variance| {
                    *sum += variance / total;
                    Some(*sum)
                });
                (cumulative.take_while(|&sum| sum <= share).count() + 1).min(variances.len())
            }
            ComponentCount::All => variances
                .iter()
                .take_while(|&&variance| variance > rounding(variances))
                .count(),
        }
    }
}

impl fmt::Display for ComponentCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ComponentCount::Variance(share) => share.fmt(f),
            ComponentCount::Exact(count) => count.fmt(f),
            ComponentCount::All => f.write_str("none"),
        }
    }
}

/// Who computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[derive(strum::Display, strum::EnumString, strum::VariantNames)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", parse_err_ty = UnknownName, parse_err_fn = unknown_solver)]
pub enum Solver {
    /// faer's matrix products and eigendecomposition: the fast one.
    #[default]
    Faer,
    /// smartcore's estimators: the reference, some hundred times slower.
    Smartcore,
}

fn unknown_solver(found: &str) -> UnknownName {
    UnknownName::of::<Solver>("solver", found)
}

/// Principal component analysis.
///
/// Same rules as scikit-learn's `PCA`: columns are centred, variances are divided by `n - 1`, and the sign of a
/// component is such that its entry of largest magnitude is positive (`svd_flip(u_based_decision=False)`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pca {
    n_components: ComponentCount,
    solver: Solver,
}

/// What [`Pca::fit`] found. The `p` components are in order of descending variance.
#[derive(Clone, Debug, PartialEq)]
pub struct FittedPca {
    /// The mean of each column, `[d]`.
    pub mean: Array1<f64>,
    /// The components, orthonormal rows of `[p, d]`.
    pub components: Array2<f64>,
    /// The variance along each component, `[p]`.
    pub explained_variance: Array1<f64>,
    /// The variance along each component as a share of the variance of all the data, `[p]`, each in 0 to 1.
    pub explained_variance_ratio: Array1<f64>,
    /// The shares of the components that were not kept, in descending order. smartcore finds none of them when it is
    /// asked for a number of components.
    pub residual_variance_ratio: Array1<f64>,
}

/// The kept components of centred data, before their signs are settled.
struct Decomposition {
    components: Array2<f64>,
    /// In descending order: those of the kept components first.
    variances: Vec<f64>,
    /// Of all the data.
    total_variance: f64,
}

impl Pca {
    /// An analysis that keeps the components `keep` asks for.
    pub fn new(n_components: ComponentCount, solver: Solver) -> Self {
        Pca { n_components, solver }
    }

    /// Finds the principal components of `rows`, `[n, d]` of `f32` or `f64`.
    ///
    /// With at least as many rows as columns they are read once and not kept.
    ///
    /// # Errors
    /// [`Error::TooFewRows`] below two rows; [`Error::Read`] if they cannot be read;
    /// [`Error::NotFinite`] if a value is infinite or not a number; [`Error::Components`] if more are to be kept than
    /// the smaller of `n` and `d`; [`Error::Variance`] if the share to keep is no share; [`Error::NoVariance`] if all
    /// rows are the same; [`Error::NoConvergence`] or [`Error::Smartcore`] if the solver fails.
    pub fn fit(&self, rows: impl ReadRows) -> Result<FittedPca> {
        self.check(rows.n_rows(), rows.n_features())?;
        if self.is_of_moments(&rows) {
            let moments = Moments::of(&rows)?;
            let scale = Array1::ones(moments.n_features());
            return self.fit_moments(moments, &scale);
        }
        let x = read_all(&rows)?;
        check_finite(x.view(), 0)?;
        let mut centred = x.mapv(Into::into);
        let mean = centred.sum_axis(Axis(0)) / x.nrows() as f64;
        centred -= &mean;
        self.fit_centred(mean, &centred)
    }

    /// The scaler of `rows`, and the components of the rows that it has scaled.
    pub(crate) fn fit_scaled(&self, rows: impl ReadRows) -> Result<(FittedScaler, FittedPca)> {
        self.check(rows.n_rows(), rows.n_features())?;
        if self.is_of_moments(&rows) {
            return self.fit_scaled_moments(Moments::of(&rows)?);
        }
        let scaler = StandardScaler::fit(&rows)?;
        let scaled = scaler.transform(read_all(&rows)?.view())?;
        let pca = self.fit_centred(Array1::zeros(scaled.ncols()), &scaled)?;
        Ok((scaler, pca))
    }

    /// [`fit_scaled`](Self::fit_scaled) of rows with these moments, by faer.
    pub(crate) fn fit_scaled_moments(&self, moments: Moments) -> Result<(FittedScaler, FittedPca)> {
        let scaler = moments.scaler();
        let mut pca = self.fit_moments(moments, &scaler.scale)?;
        pca.mean.fill(0.0);
        Ok((scaler, pca))
    }

    /// Whether the components are found from moments; else from the rows, all of them in memory.
    pub(crate) fn is_of_moments(&self, rows: &impl ReadRows) -> bool {
        self.solver == Solver::Faer && rows.n_rows() >= rows.n_features()
    }

    fn check(&self, n_rows: usize, n_columns: usize) -> Result<()> {
        if n_rows < 2 {
            return Err(Error::TooFewRows {
                expected: 2,
                found: n_rows,
            });
        }
        self.n_components.check(n_rows.min(n_columns)).map(drop)
    }

    /// The components of rows with these moments, their columns divided by `scale`.
    fn fit_moments(&self, moments: Moments, scale: &Array1<f64>) -> Result<FittedPca> {
        self.check(moments.n_rows(), moments.n_features())?;
        let mean = moments.mean().clone();
        Ok(FittedPca::settled(
            mean,
            gram::decompose_moments(moments, scale, self.n_components)?,
        ))
    }

    /// The components of centred rows, `[n, d]`, that had this mean.
    fn fit_centred(&self, mean: Array1<f64>, centred: &Array2<f64>) -> Result<FittedPca> {
        if centred.iter().all(|&deviation| deviation == 0.0) {
            return Err(Error::NoVariance);
        }
        let decomposition = match self.solver {
            Solver::Faer => gram::decompose_wide(centred, self.n_components)?,
            Solver::Smartcore => reference::decompose(centred, self.n_components)?,
        };
        Ok(FittedPca::settled(mean, decomposition))
    }
}

impl FittedPca {
    /// Settles the signs of the components.
    fn settled(mean: Array1<f64>, decomposition: Decomposition) -> Self {
        let Decomposition {
            mut components,
            variances,
            total_variance,
        } = decomposition;
        settle_signs(&mut components);
        let (kept, left) = variances.split_at(components.nrows());
        let explained_variance = Array1::from(kept.to_vec());
        FittedPca {
            mean,
            components,
            explained_variance_ratio: &explained_variance / total_variance,
            explained_variance,
            residual_variance_ratio: left.iter().map(|variance| variance / total_variance).collect(),
        }
    }

    /// The number of components, `p`.
    pub fn n_components(&self) -> usize {
        self.components.nrows()
    }

    /// These components divided by their standard deviations, so that what is projected onto them has unit variance.
    ///
    /// scikit-learn's `PCA(whiten=True)`. The rows of `components` are orthogonal, but no longer of length 1. A
    /// component that does not vary beyond rounding errors becomes 0.
    #[must_use]
    pub fn whitened(mut self) -> Self {
        let rounding = rounding(&self.explained_variance.to_vec());
        for (mut component, &variance) in self.components.rows_mut().into_iter().zip(&self.explained_variance) {
            component *= if variance > rounding {
                variance.sqrt().recip()
            } else {
                0.0
            };
        }
        self
    }

    /// Projects `x`, `[n, d]`, onto the components, to `[n, p]`.
    ///
    /// # Errors
    /// [`Error::Width`] if `x` does not have the width seen by `fit`.
    pub fn transform(&self, x: ArrayView2<'_, f64>) -> Result<Array2<f64>> {
        if x.ncols() != self.mean.len() {
            return Err(Error::Width {
                expected: self.mean.len(),
                found: x.ncols(),
            });
        }
        let centred = (&x - &self.mean).as_standard_layout().into_owned();
        Ok(linalg::product(
            linalg::view(&centred),
            linalg::view(&self.components).transpose(),
        ))
    }
}

/// What rounding errors leave of a variance of 0, beside these.
fn rounding(variances: &[f64]) -> f64 {
    variances[0] * variances.len() as f64 * f64::EPSILON
}

/// Turns each component so that its entry of largest magnitude, the first of them if there are several, is positive.
fn settle_signs(components: &mut Array2<f64>) {
    for mut component in components.rows_mut() {
        let largest = component.iter().fold(
            0.0f64,
            |largest, &entry| if entry.abs() > largest.abs() { entry } else { largest },
        );
        if largest < 0.0 {
            component.mapv_inplace(|entry| -entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn a_share_reached_exactly_takes_one_more_component() {
        let n_components = ComponentCount::variance(0.5).unwrap();
        assert_eq!(n_components.count(&[2.0, 1.0, 1.0], 4.0), 2);
        assert_eq!(n_components.count(&[2.1, 1.0, 0.9], 4.0), 1);
    }

    #[test]
    fn a_share_beyond_rounding_keeps_every_component() {
        assert_eq!(
            ComponentCount::Variance(1.0 - f64::EPSILON / 2.0).count(&[0.1; 10], 1.0),
            10
        );
    }

    #[test]
    fn shares_and_counts_are_checked_and_named() {
        assert_eq!(
            ComponentCount::variance(98.0).unwrap_err().to_string(),
            "variance to keep is 98, expected more than 0 and less than 1"
        );
        assert!(ComponentCount::variance(f64::NAN).is_err());
        assert!(ComponentCount::exact(0).is_err());
        let x = array![[1.0, 2.0, 0.0], [3.0, 5.0, 1.0]];
        let asked = Pca::new(ComponentCount::Exact(3), Solver::Faer)
            .fit(x.view())
            .unwrap_err();
        assert_eq!(
            asked.to_string(),
            "3 components are asked for, expected 1 to 2, the smaller of rows and columns"
        );
    }

    #[test]
    fn names_read_back() {
        for solver in [Solver::Faer, Solver::Smartcore] {
            assert_eq!(solver.to_string().parse::<Solver>().unwrap(), solver);
        }
        assert_eq!(
            "svd".parse::<Solver>().unwrap_err().to_string(),
            "solver is \"svd\", expected faer or smartcore"
        );
        assert_eq!(ComponentCount::Variance(0.98).to_string(), "0.98");
        assert_eq!(ComponentCount::Exact(98).to_string(), "98");
        assert_eq!(ComponentCount::All.to_string(), "none");
    }

    #[test]
    fn rows_that_are_all_the_same_have_no_components() {
        let x = Array2::from_elem((5, 3), 0.1);
        for solver in [Solver::Faer, Solver::Smartcore] {
            assert!(matches!(
                Pca::new(ComponentCount::Variance(0.9), solver).fit(x.view()),
                Err(Error::NoVariance)
            ));
        }
    }
}
