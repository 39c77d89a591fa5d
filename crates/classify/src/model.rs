use std::path::Path;

use luthier_artifact::{Artifact, CrossValidationInfo, ExtractorInfo, ReadRows, Tensors, TensorsBuilder};
use luthier_features::{Projection, Solver, for_each_block};
use ndarray::{Array1, Array2, Axis, concatenate, s};
use serde::{Deserialize, Serialize};

use crate::softmax::softmax_rows;
use crate::{ClassDistance, ClassWeight, Error, FittedLogisticRegression, Result};

/// How a model was trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingInfo {
    /// The number of training images.
    pub n_train: usize,
    /// The inverse strength of regularization.
    pub c: f64,
    /// How much each class counted.
    pub class_weight: ClassWeight,
    /// What cross-validation found; `None` if C was given.
    pub cross_validation: Option<CrossValidationInfo>,
    /// The solver's iterations; `None` from smartcore, which does not tell.
    pub iterations: Option<usize>,
    /// Whether the fit converged.
    pub converged: bool,
    /// The largest magnitude in the gradient at the end of the fit.
    pub gradient_norm: f64,
    /// The number of principal components.
    pub n_components: usize,
    /// The share of the variance that they explain, 0 to 1.
    pub explained_variance_ratio: f64,
    /// Who fitted the regression.
    pub solver: Solver,
}

/// A trained classifier of features: `[n, d]` to the probabilities of `k` classes, by way of `p` components.
///
/// Encoded it is the file `model.safetensors`, whose tensors have the names of the fields with a dot for the first
/// underscore.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// The class names in label order, `k` of them.
    pub classes: Vec<String>,
    /// How the features were made: those of an image to be predicted must be made the same way.
    pub extractor: ExtractorInfo,
    /// How it was trained.
    pub training: TrainingInfo,
    /// The mean of each feature, `[d]`.
    pub scaler_mean: Array1<f32>,
    /// The scale of each feature, `[d]`.
    pub scaler_scale: Array1<f32>,
    /// The mean of each scaled feature, `[d]`.
    pub pca_mean: Array1<f32>,
    /// The principal components, `[p, d]`.
    pub pca_components: Array2<f32>,
    /// The share of the variance along each component, in descending order, `[q]`: the `p` kept ones, and those left out as
    /// far as they are known.
    pub pca_variance_ratios: Array1<f64>,
    /// The weights on the components, `[k, p]`.
    pub classifier_weight: Array2<f32>,
    /// The intercepts, `[k]`.
    pub classifier_bias: Array1<f32>,
    /// By what scores are divided to become the logarithms of probabilities, positive: fitted to the images held out in
    /// cross-validation, 1 without.
    pub temperature: f32,
    /// All of the above as one affine map of the features, `[k, d]`: this is what predicts.
    pub head_weight: Array2<f32>,
    /// Its intercepts, `[k]`.
    pub head_bias: Array1<f32>,
    /// How far an image is from the classes, by its components; `None` without cross-validation, or if the images of each
    /// class are all the same.
    pub distance: Option<ClassDistance>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    classes: Vec<String>,
    extractor: ExtractorInfo,
    training: TrainingInfo,
}

impl Model {
    /// Puts the parts together and folds them into the head.
    ///
    /// With scale σ, means μ and m, components V, weights W, intercepts b and temperature T the scores of features x are
    /// `(W V ((x - μ) / σ - m) + b) / T`. The head is computed in `f64` and rounded once.
    pub(crate) fn assemble(
        classes: Vec<String>,
        extractor: ExtractorInfo,
        training: TrainingInfo,
        projection: &Projection,
        classifier: &FittedLogisticRegression,
        temperature: f32,
        distance: Option<ClassDistance>,
    ) -> Self {
        let Projection { scaler, pca, .. } = projection;
        let on_scaled = classifier.weight.dot(&pca.components);
        let head_weight = &on_scaled / &scaler.scale;
        let head_bias = &classifier.bias - &head_weight.dot(&scaler.mean) - on_scaled.dot(&pca.mean);
        let calibrated = f64::from(temperature).recip();
        let vector = |values: &Array1<f64>| values.mapv(|value| value as f32);
        let matrix = |values: &Array2<f64>| values.mapv(|value| value as f32);
        Model {
            classes,
            extractor,
            training,
            scaler_mean: vector(&scaler.mean),
            scaler_scale: vector(&scaler.scale),
            pca_mean: vector(&pca.mean),
            pca_components: matrix(&pca.components),
            pca_variance_ratios: concatenate![Axis(0), pca.explained_variance_ratio, pca.residual_variance_ratio],
            classifier_weight: matrix(&classifier.weight),
            classifier_bias: vector(&classifier.bias),
            temperature,
            head_weight: matrix(&(head_weight * calibrated)),
            head_bias: vector(&(head_bias * calibrated)),
            distance,
        }
    }

    /// Reads a model file.
    ///
    /// # Errors
    /// [`Error::Read`] if the file cannot be read; [`Error::File`], which names it, what was expected and what was
    /// found, if it is not a model.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path)
            .map_err(luthier_artifact::Error::io(path))
            .map_err(Error::Read)?;
        Model::decode(&bytes).map_err(|source| Error::File {
            path: path.to_owned(),
            source,
        })
    }

    /// The probability of each class for each row of `features`, `[n, d]`: `[n, k]`, rows that add up to 1.
    ///
    /// # Errors
    /// Those of [`scores`](Self::scores).
    pub fn predict_proba(&self, features: impl ReadRows<Feature = f32>) -> Result<Array2<f64>> {
        self.scorer().predict_proba(features)
    }

    /// The probabilities that scores stand for, and those that they stood for before calibration: each `[n, k]`.
    pub fn probabilities(&self, scores: Array2<f64>) -> [Array2<f64>; 2] {
        let uncalibrated = &scores * f64::from(self.temperature);
        [softmax_rows(scores), softmax_rows(uncalibrated)]
    }

    /// The scores of each row of `features`, `[n, d]`, which are the logarithms of the probabilities up to a constant:
    /// `[n, k]`.
    ///
    /// # Errors
    /// [`Error::Width`] if the features do not have the width the model was trained with; [`Error::Features`] if they
    /// cannot be read, or one is infinite or not a number.
    pub fn scores(&self, features: impl ReadRows<Feature = f32>) -> Result<Array2<f64>> {
        self.scorer().scores(features)
    }

    /// What gives the scores, made ready once: for images that come one by one.
    pub fn scorer(&self) -> Scorer {
        Scorer {
            weight: self.head_weight.mapv(f64::from),
            bias: self.head_bias.mapv(f64::from),
        }
    }

    /// The distance of each row of `features`, `[n, d]`, to the nearest class: `[n]`, as [`ClassDistance`] has it; `None`
    /// if the model knows no distances.
    ///
    /// # Errors
    /// Those of [`scores`](Self::scores).
    pub fn distances(&self, features: impl ReadRows<Feature = f32>) -> Result<Option<Vec<f64>>> {
        match self.distance_meter() {
            Some(meter) => meter.distances(features).map(Some),
            None => check_width(&features, self.head_weight.ncols()).map(|()| None),
        }
    }

    /// What gives the principal components of features.
    fn projector(&self) -> Projector {
        Projector {
            mean: self.scaler_mean.mapv(f64::from),
            scale: self.scaler_scale.mapv(f64::from),
            pca_mean: self.pca_mean.mapv(f64::from),
            components: self.pca_components.mapv(f64::from),
        }
    }

    /// What gives the distances, made ready once: for images that come one by one. `None` if the model knows no distances.
    pub fn distance_meter(&self) -> Option<DistanceMeter<'_>> {
        let distance = self.distance.as_ref()?;
        Some(DistanceMeter {
            projector: self.projector(),
            whitening: distance.whitening.mapv(f64::from),
            distance,
        })
    }
}

/// The head of a model in double precision.
#[derive(Clone, Debug, PartialEq)]
pub struct Scorer {
    /// `[k, d]`.
    weight: Array2<f64>,
    /// `[k]`.
    bias: Array1<f64>,
}

impl Scorer {
    /// As [`Model::scores`].
    ///
    /// # Errors
    /// Those of [`Model::scores`].
    pub fn scores(&self, features: impl ReadRows<Feature = f32>) -> Result<Array2<f64>> {
        let Scorer { weight, bias } = self;
        check_width(&features, weight.ncols())?;
        let mut scores = Array2::zeros((features.n_rows(), bias.len()));
        for_each_block(&features, |start, block| {
            let found = block.mapv(f64::from).dot(&weight.t()) + bias;
            scores.slice_mut(s![start..start + block.nrows(), ..]).assign(&found);
            Ok(())
        })?;
        Ok(scores)
    }

    /// As [`Model::predict_proba`].
    ///
    /// # Errors
    /// Those of [`Model::scores`].
    pub fn predict_proba(&self, features: impl ReadRows<Feature = f32>) -> Result<Array2<f64>> {
        self.scores(features).map(softmax_rows)
    }
}

/// Scaling and components of a model in double precision.
#[derive(Clone, Debug, PartialEq)]
struct Projector {
    /// `[d]`, as are `scale` and `pca_mean`.
    mean: Array1<f64>,
    scale: Array1<f64>,
    pca_mean: Array1<f64>,
    /// `[p, d]`.
    components: Array2<f64>,
}

impl Projector {
    fn project(&self, features: impl ReadRows<Feature = f32>) -> Result<Array2<f64>> {
        check_width(&features, self.components.ncols())?;
        let mut z = Array2::zeros((features.n_rows(), self.components.nrows()));
        for_each_block(&features, |start, block| {
            let centred = (block.mapv(f64::from) - &self.mean) / &self.scale - &self.pca_mean;
            z.slice_mut(s![start..start + block.nrows(), ..])
                .assign(&centred.dot(&self.components.t()));
            Ok(())
        })?;
        Ok(z)
    }
}

/// What a model measures distances by, in double precision.
#[derive(Clone, Debug, PartialEq)]
pub struct DistanceMeter<'a> {
    projector: Projector,
    /// `[p, p]`.
    whitening: Array2<f64>,
    distance: &'a ClassDistance,
}

impl DistanceMeter<'_> {
    /// The distance of each row of `features`, `[n, d]`, to the nearest class: `[n]`, as [`ClassDistance`] has it.
    ///
    /// # Errors
    /// Those of [`Model::scores`].
    pub fn distances(&self, features: impl ReadRows<Feature = f32>) -> Result<Vec<f64>> {
        let z = self.projector.project(features)?;
        Ok(self.distance.nearest(&self.whitening, &z))
    }
}

fn check_width(features: &impl ReadRows, expected: usize) -> Result<()> {
    let found = features.n_features();
    if found == expected {
        Ok(())
    } else {
        Err(Error::Width { expected, found })
    }
}

impl Artifact for Model {
    const FORMAT: &'static str = "model/3";

    fn encode(&self) -> Vec<u8> {
        let Model {
            classes,
            extractor,
            training,
            ..
        } = self.clone();
        let tensors = TensorsBuilder::new(
            Self::FORMAT,
            &Header {
                classes,
                extractor,
                training,
            },
        )
        .tensor("scaler.mean", &self.scaler_mean)
        .tensor("scaler.scale", &self.scaler_scale)
        .tensor("pca.mean", &self.pca_mean)
        .tensor("pca.components", &self.pca_components)
        .tensor("pca.variance_ratios", &self.pca_variance_ratios)
        .tensor("classifier.weight", &self.classifier_weight)
        .tensor("classifier.bias", &self.classifier_bias)
        .tensor("head.weight", &self.head_weight)
        .tensor("head.bias", &self.head_bias)
        .tensor("temperature", &Array1::from_elem(1, self.temperature));
        match &self.distance {
            Some(ClassDistance { whitening, centres }) => tensors
                .tensor("distance.whitening", whitening)
                .tensor("distance.centres", centres),
            None => tensors,
        }
        .finish()
    }

    fn decode(bytes: &[u8]) -> luthier_artifact::Result<Self> {
        let tensors = Tensors::open(Self::FORMAT, bytes)?;
        let Header {
            classes,
            extractor,
            training,
        } = tensors.header()?;
        let pca_components: Array2<f32> = tensors.matrix("pca.components")?;
        let ((p, d), k) = (pca_components.dim(), classes.len());
        if p != training.n_components {
            return Err(tensors.wrong(format!(
                "pca.components with {p} rows for {} components",
                training.n_components
            )));
        }
        let vector = |name: &str, length: usize| -> luthier_artifact::Result<Array1<f32>> {
            let vector = tensors.vector(name)?;
            check(&tensors, name, vector.as_slice(), vector.shape(), &[length])?;
            Ok(vector)
        };
        let matrix = |name: &str, rows: usize, columns: usize| -> luthier_artifact::Result<Array2<f32>> {
            let matrix = tensors.matrix(name)?;
            check(&tensors, name, matrix.as_slice(), matrix.shape(), &[rows, columns])?;
            Ok(matrix)
        };
        let pca_variance_ratios: Array1<f64> = tensors.vector("pca.variance_ratios")?;
        if pca_variance_ratios.len() < p || pca_variance_ratios.iter().any(|ratio| !ratio.is_finite()) {
            return Err(tensors.wrong(format!("no {p} finite numbers in pca.variance_ratios")));
        }
        let temperature = vector("temperature", 1)?[0];
        if temperature <= 0.0 {
            return Err(tensors.wrong(format!("a temperature of {temperature}")));
        }
        let distance = if tensors.has("distance.whitening") {
            Some(ClassDistance {
                whitening: matrix("distance.whitening", p, p)?,
                centres: matrix("distance.centres", k, p)?,
            })
        } else {
            None
        };
        Ok(Model {
            temperature,
            distance,
            scaler_mean: vector("scaler.mean", d)?,
            scaler_scale: vector("scaler.scale", d)?,
            pca_mean: vector("pca.mean", d)?,
            pca_components: matrix("pca.components", p, d)?,
            pca_variance_ratios,
            classifier_weight: matrix("classifier.weight", k, p)?,
            classifier_bias: vector("classifier.bias", k)?,
            head_weight: matrix("head.weight", k, d)?,
            head_bias: vector("head.bias", k)?,
            classes,
            extractor,
            training,
        })
    }
}

/// Checks a tensor's shape, and that its values are finite.
fn check(
    tensors: &Tensors<'_>,
    name: &str,
    values: Option<&[f32]>,
    shape: &[usize],
    expected: &[usize],
) -> luthier_artifact::Result<()> {
    if shape != expected {
        return Err(tensors.wrong(format!("{name} of shape {shape:?} instead of {expected:?}")));
    }
    let values = values.expect("tensors are read in C order");
    match values.iter().find(|value| !value.is_finite()) {
        Some(value) => Err(tensors.wrong(format!("{value} in {name}"))),
        None => Ok(()),
    }
}
