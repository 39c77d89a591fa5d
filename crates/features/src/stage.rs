use faer::MatRef;
use luthier_artifact::{Artifact, Digest, Key, Observer, ReadRows, Tensors, TensorsBuilder};
use ndarray::{Array2, Zip, s};
use serde::{Deserialize, Serialize};

use crate::linalg;
use crate::rows::{BLOCK, Interruptible, for_each_block};
use crate::{ComponentCount, FittedPca, FittedScaler, Moments, Pca, Result, Solver};

/// The stage `features`: scale, then project.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FeaturesConfig {
    /// How many components are kept.
    #[serde(rename = "keep")]
    pub n_components: ComponentCount,
    /// Whether what is projected is divided by its standard deviations.
    pub whiten: bool,
    /// Who computes the components.
    pub solver: Solver,
}

impl FeaturesConfig {
    /// Changes when the stage gives other results for the same inputs.
    pub const VERSION: u32 = 4;

    /// What the projection of the feature table with digest `train` depends on.
    pub fn key(&self, train: Digest) -> Key {
        let FeaturesConfig {
            n_components,
            whiten,
            solver,
        } = self;
        let key = Key::stage("features", Self::VERSION);
        let key = match n_components {
            ComponentCount::Variance(share) => key.field("variance", share),
            ComponentCount::Exact(count) => key.field("components", count),
            ComponentCount::All => key.field("components", "none"),
        };
        key.field("whiten", whiten)
            .field("solver", solver)
            .input("train", train)
            .finish()
    }

    /// Fits scaler and components to `rows`, `f32 [n, d]`.
    ///
    /// With at least as many rows as columns they are read once and not kept. The observer is asked before each block of
    /// 2,048 rows; the eigendecomposition that follows cannot be interrupted.
    ///
    /// # Errors
    /// Those of [`Pca::fit`]; [`Error::Interrupted`](crate::Error::Interrupted).
    pub fn run(&self, rows: impl ReadRows<Feature = f32>, observer: &dyn Observer) -> Result<Projection> {
        let (scaler, pca) = Pca::new(self.n_components, self.solver).fit_scaled(Interruptible { rows, observer })?;
        Ok(Projection::new(*self, scaler, pca))
    }
}

/// From features to principal components: what the stage `features` gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Projection {
    /// How it was made.
    pub config: FeaturesConfig,
    /// The scaling of each feature.
    pub scaler: FittedScaler,
    /// The components of the scaled features.
    pub pca: FittedPca,
}

impl Projection {
    /// Fits scaler and components to rows with these moments, by faer.
    ///
    /// # Errors
    /// Those of [`Pca::fit`].
    pub fn of_moments(config: FeaturesConfig, moments: Moments) -> Result<Self> {
        let (scaler, pca) = Pca::new(config.n_components, config.solver).fit_scaled_moments(moments)?;
        Ok(Projection::new(config, scaler, pca))
    }

    fn new(config: FeaturesConfig, scaler: FittedScaler, pca: FittedPca) -> Self {
        let pca = if config.whiten { pca.whitened() } else { pca };
        Projection { config, scaler, pca }
    }

    /// Scales and projects `rows`, `[n, d]`, to `[n, p]`.
    ///
    /// # Errors
    /// [`Error::Width`](crate::Error::Width) if they do not have the width seen by `fit`,
    /// [`Error::Read`](crate::Error::Read) if they cannot be read, [`Error::Interrupted`](crate::Error::Interrupted) if
    /// they are [`Interruptible`] and somebody interrupts, [`Error::NotFinite`](crate::Error::NotFinite) if a feature is infinite or not a number.
    pub fn transform(&self, rows: impl ReadRows<Feature = f32>) -> Result<Array2<f64>> {
        let (n, width) = (rows.n_rows(), rows.n_features());
        let mut projected = Array2::zeros((n, self.pca.n_components()));
        self.scaler.check_width(width)?;
        // One buffer for all blocks: new memory costs the system as much as the arithmetic.
        let mut buffer = Array2::zeros((BLOCK.min(n), width));
        for_each_block(&rows, |start, x| {
            let mut centred = buffer.slice_mut(s![..x.nrows(), ..]);
            let FittedScaler { mean, scale } = &self.scaler;
            (Zip::from(centred.rows_mut()).and(x.rows())).par_for_each(|centred, x| {
                (Zip::from(centred).and(x).and(mean).and(scale).and(&self.pca.mean)).for_each(
                    |centred, &value, mean, scale, centre| *centred = (f64::from(value) - mean) / scale - centre,
                );
            });
            let slice = centred.as_slice().expect("rows of a new array are in one piece");
            linalg::product_into(
                projected.slice_mut(s![start..start + x.nrows(), ..]),
                MatRef::from_row_major_slice(slice, x.nrows(), width),
                linalg::view(&self.pca.components).transpose(),
            );
            Ok(())
        })?;
        Ok(projected)
    }
}

impl Artifact for Projection {
    const FORMAT: &'static str = "projection/3";

    fn encode(&self) -> Vec<u8> {
        let Projection { config, scaler, pca } = self;
        TensorsBuilder::new(Self::FORMAT, config)
            .tensor("scaler.mean", &scaler.mean)
            .tensor("scaler.scale", &scaler.scale)
            .tensor("pca.mean", &pca.mean)
            .tensor("pca.components", &pca.components)
            .tensor("pca.explained_variance", &pca.explained_variance)
            .tensor("pca.explained_variance_ratio", &pca.explained_variance_ratio)
            .tensor("pca.residual_variance_ratio", &pca.residual_variance_ratio)
            .finish()
    }

    fn decode(bytes: &[u8]) -> luthier_artifact::Result<Self> {
        let tensors = Tensors::open(Self::FORMAT, bytes)?;
        let scaler = FittedScaler {
            mean: tensors.vector("scaler.mean")?,
            scale: tensors.vector("scaler.scale")?,
        };
        let pca = FittedPca {
            mean: tensors.vector("pca.mean")?,
            components: tensors.matrix("pca.components")?,
            explained_variance: tensors.vector("pca.explained_variance")?,
            explained_variance_ratio: tensors.vector("pca.explained_variance_ratio")?,
            residual_variance_ratio: tensors.vector("pca.residual_variance_ratio")?,
        };
        let (p, d) = pca.components.dim();
        for (name, length, expected) in [
            ("scaler.mean", scaler.mean.len(), d),
            ("scaler.scale", scaler.scale.len(), d),
            ("pca.mean", pca.mean.len(), d),
            ("pca.explained_variance", pca.explained_variance.len(), p),
            ("pca.explained_variance_ratio", pca.explained_variance_ratio.len(), p),
        ] {
            if length != expected {
                return Err(tensors.wrong(format!("{name} of length {length} beside components of {p} × {d}")));
            }
        }
        Ok(Projection {
            config: tensors.header()?,
            scaler,
            pca,
        })
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    const CONFIG: FeaturesConfig = FeaturesConfig {
        n_components: ComponentCount::Variance(0.98),
        whiten: false,
        solver: Solver::Faer,
    };

    #[test]
    fn every_field_and_input_changes_the_key() {
        let train = Digest::of(b"train");
        let key = CONFIG.key(train).digest();
        assert_eq!(CONFIG.key(train).digest(), key);
        assert_ne!(
            FeaturesConfig {
                n_components: ComponentCount::Variance(0.97),
                ..CONFIG
            }
            .key(train)
            .digest(),
            key
        );
        assert_ne!(
            FeaturesConfig {
                n_components: ComponentCount::Exact(98),
                ..CONFIG
            }
            .key(train)
            .digest(),
            key
        );
        assert_ne!(
            FeaturesConfig {
                n_components: ComponentCount::All,
                ..CONFIG
            }
            .key(train)
            .digest(),
            key
        );
        assert_ne!(FeaturesConfig { whiten: true, ..CONFIG }.key(train).digest(), key);
        assert_ne!(
            FeaturesConfig {
                solver: Solver::Smartcore,
                ..CONFIG
            }
            .key(train)
            .digest(),
            key
        );
        assert_ne!(CONFIG.key(Digest::of(b"other")).digest(), key);
    }

    #[test]
    fn the_key_is_pinned() {
        assert_eq!(
            CONFIG.key(Digest::of(b"train")).digest().to_string(),
            "899082bb8fb57b301ea560ddaf119dbb5639097c9e2f39b08f0422ea2935a7fa"
        );
    }

    #[test]
    fn tensors_that_do_not_fit_together_are_refused() {
        let mut projection = CONFIG
            .run(array![[1.0, 2.0], [3.0, 5.0], [4.0, -1.0]].view(), &())
            .unwrap();
        projection.pca.mean = array![0.0];
        let error = Projection::decode(&projection.encode()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "expected projection/3, found pca.mean of length 1 beside components of 2 × 2"
        );
    }
}
